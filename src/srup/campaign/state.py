"""What is remembered of a campaign: its own state, and that of each device, as they stand in a store."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Final, Self

from ..errors import StoreError

__all__ = ["ENDED", "OVER", "UNDER_WAY", "At", "Campaign", "Member", "State"]


class State(StrEnum):
    """Where a campaign stands."""

    AWAITING_APPROVAL = "awaiting approval"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    ABORTED = "aborted"
    EXPIRED = "expired"


OVER: Final = frozenset({State.FINISHED, State.STOPPED, State.ABORTED, State.EXPIRED})
"""The states in which nothing more is ordered."""


class At(StrEnum):
    """Where a device stands in a campaign: entered by a signed answer of the device, by the operator, or by time."""

    WAITING = "waiting"
    ORDERED = "ordered"
    READY = "ready"
    ACTIVATED = "activated"  # was told to activate, and is a deployed one, which never says what came of it
    HEALTHY = "healthy"  # says itself that the firmware runs, after a restart if it needs one
    FAILED = "failed"
    UNANSWERED = "unanswered"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


UNDER_WAY: Final = frozenset({At.ORDERED, At.READY})
"""The states in which a device is at work."""

ENDED: Final = frozenset(At) - UNDER_WAY - {At.WAITING}
"""The states that a device does not leave by itself."""


@dataclass(frozen=True)
class Member:
    """A device of a ``group``, from 0, ``at`` a state ``since`` a Unix time; ``reason`` says why it is not further.

    ``orders`` counts all that it was ever sent, and with them names the last; ``tries`` those that count now.
    ``ordered`` and ``activated`` say when it was last told to update and to activate, the latter until the time
    ``activates_until`` if that has an end, and so often as ``told`` says; it is not told to update before
    ``not_before``. ``fetched``: it was READY in this try. ``follows``: the outcome of the last order is still to come.
    ``gives_up``: that was taken back, and this is the state it leads to. ``result`` is how the last try ended.
    """

    group: int = -1
    at: At = At.WAITING
    since: float = 0.0
    reason: str = ""
    orders: int = 0
    tries: int = 0
    ordered: float | None = None
    activated: float | None = None
    not_before: float = 0.0
    fetched: bool = False
    follows: bool = False
    gives_up: str = ""
    result: str = ""
    activates_until: float | None = None
    told: int = 0

    @property
    def failing(self) -> bool:
        """Whether its last try came to nothing: by its own word, or in silence after it was told to activate."""
        if self.at not in (At.FAILED, At.UNANSWERED, At.WAITING):
            return False
        return self.result == At.FAILED or (self.result == At.UNANSWERED and self.activated is not None)

    def dump(self) -> bytes:
        """Return it as JSON."""
        empty = asdict(Member())
        return json.dumps({name: value for name, value in asdict(self).items() if value != empty[name]}).encode()

    @classmethod
    def load(cls, content: bytes) -> Self:
        """Return what :meth:`dump` has written; StoreError for anything else."""
        try:
            told = json.loads(content)
            return cls(**told | {"at": At(told.get("at", At.WAITING))})
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"what is kept of a device in a campaign is not readable: {error}") from None


@dataclass(frozen=True)
class Campaign:
    """A campaign's own state. ``key`` is random: the ids of orders are made of it.

    ``admitted`` once it is known who takes part; ``group`` is the last that is open, and ``passed`` says since when the
    gate behind it would let the next one in. ``may_activate``: the operator has given the command. ``approvals`` are
    those who have approved it, and when. ``settled``: it is over, and no outcome is to come any more.
    """

    key: str
    state: State
    since: float
    by: str = ""
    reason: str = ""
    created: float = 0.0
    approvals: tuple[tuple[str, float], ...] = ()
    admitted: bool = False
    group: int = 0
    passed: float | None = None
    may_activate: bool = False
    settled: bool = False

    def order_id(self, device: int, number: int, verb: str = "update") -> bytes:
        """Return the id of an order of this campaign: the same each time, so that it is posted once."""
        return blake2b(f"{self.key}/{device:x}/{number}/{verb}".encode(), digest_size=16).digest()

    def dump(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, content: bytes) -> Self:
        """Return what :meth:`dump` has written; StoreError for anything else."""
        try:
            told = json.loads(content)
            approvals = tuple((str(who), float(at)) for who, at in told["approvals"])
            return cls(**told | {"state": State(told["state"]), "approvals": approvals})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"what is kept of a campaign is not readable: {error}") from None
