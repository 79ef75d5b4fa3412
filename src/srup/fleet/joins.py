"""Joins that wait for somebody's word, as an operator sees them."""

from dataclasses import dataclass, field
from typing import Self

from ..agent.joinboard import JoinRecord
from ..joinvalue import JoinValue

__all__ = ["WaitingJoin"]


@dataclass(frozen=True)
class WaitingJoin:
    """A join of ``device`` that waits ``since`` then and until it ``expires``, both in Unix time.

    One of the ``kind`` "human" waits for :meth:`Fleet.decide_join`: compare its ``value``, in whichever form, with what
    the device shows, and name it by its ``id``. One that is "observed" waits for the device ``observer``; its value is
    None, and nobody else can decide. ``fingerprint`` is that of the device's key. Keep the value to yourself while the
    join waits.
    """

    device: int
    id: str
    kind: str
    since: float
    expires: float
    fingerprint: str
    observer: int | None = None
    value: JoinValue | None = field(default=None, repr=False)

    @property
    def words(self) -> str | None:
        """The value as twelve words; needs the extra ``srup[join]``."""
        return None if self.value is None else self.value.words

    @property
    def number(self) -> str | None:
        """The value as eight groups of five digits."""
        return None if self.value is None else self.value.groups

    @property
    def qr(self) -> str | None:
        """The text of the QR code that the device shows."""
        return None if self.value is None else self.value.text

    @classmethod
    def of(cls, record: JoinRecord) -> Self:
        """Return what a record says."""
        details = record._asdict()
        text = details.pop("value")
        return cls(**details, value=JoinValue(text.encode()) if text else None)
