"""What becomes of an order, as it is written down for whoever has posted it."""

import json
from typing import NamedTuple, Self

from .. import errors
from ..errors import EncodeError, PolicyError, SrupError, StoreError, UpdateError
from ..session.policy import check_seconds
from ..update import UpdateState
from ..wire import Status
from .arguments import check_type
from .verbs import VERBS

__all__ = ["OrderReport"]


class OrderReport(NamedTuple):
    """What an order had come to ``at`` that Unix time.

    ``state`` is POSTED, then TAKEN by the worker that serves the device, which has made it durable and sends it, and at
    last DONE or FAILED. An update goes through the states of :class:`UpdateOrder` after POSTED. With ``over`` comes
    what it came to: a ``value`` (the name of a Status or of an UpdateState, a description), or an ``error``, its name,
    with the ``text`` of it. ``token`` is the one under which the device was asked.
    """

    at: float
    kind: str
    state: str
    over: bool = False
    value: str | None = None
    error: str | None = None
    text: str | None = None
    token: str | None = None

    def dump(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(
            {name: value for name, value in self._asdict().items() if value is not None and value is not False}
        ).encode()

    @classmethod
    def load(cls, content: bytes) -> Self:
        """Return what :meth:`dump` has written; StoreError for anything else."""
        try:
            report = cls(**json.loads(content))
            check_seconds(report.at, "at", zero=True)
            check_type(report.over, bool, "over")
            for name in ("kind", "state"):
                check_type(getattr(report, name), str, name)
            for name in ("value", "error", "text", "token"):
                check_type(getattr(report, name), (str, type(None)), name)
            if report.over and report.error is None:
                report.result()
            elif report.error == "UpdateError" and report.value is not None:
                Status[report.value]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError(f"a report on an order is not readable: {type(error).__name__}: {error}") from None
        return report

    def result(self) -> Status | UpdateState | str | None:
        """Return or raise what the server's own method of this kind would have."""
        if self.error is not None:
            raise self._error()
        result = VERBS[self.kind].result if self.kind in VERBS else None
        return self.value if result is None else result[self.value or ""]

    def _error(self) -> Exception:
        text = self.text or ""
        if self.error == "UpdateError":
            return UpdateError(Status[self.value] if self.value else Status.UPDATE_FAIL_SERVER, text)
        if self.error == "EncodeError":
            return EncodeError(*text.split(": ", 1)) if ": " in text else EncodeError("order", text)
        kinds: dict[str, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError}
        plain = [errors.InvalidKeyError, PolicyError, errors.TransportError, errors.UnansweredError]
        return (kinds | {kind.__name__: kind for kind in plain}).get(self.error or "", SrupError)(text)
