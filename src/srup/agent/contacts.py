"""When each device was last heard: the time of the newest message that its key has signed and that was accepted."""

from typing import TYPE_CHECKING, Final

from ..records import Fact, State
from .duty import Duty
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["HEARD", "PRECISION", "Contacts"]

HEARD: Final = "heard"
"""The fact about a device that says when it was last heard, in Unix time."""

PRECISION: Final = 60.0
"""Seconds for which that is not written again, so that it costs little."""


class Contacts(Duty):
    """Keeps the times where there is a store; nothing is decided by them."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._heard: dict[int, int] = {}
        self._latest = 0  # one number for all that are heard in one second, so that a large fleet takes less memory

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`."""
        for fact in self._engine.facts.take_all(HEARD):
            if (heard := fact.value or "").isdecimal():
                self._heard[fact.identity] = int(heard)

    def accepted(self, transaction: Transaction, sender: int, at: float) -> None:
        """See :meth:`Duty.accepted`."""
        if 0 <= at - self._heard.get(sender, -PRECISION) < PRECISION or self._engine.store is None:
            return  # a clock that was set back tells of what is newer, too
        if self._latest != int(at):
            self._latest = int(at)
        self._heard[self._engine.session.peer(sender).identity] = self._latest  # the number that is kept there already
        transaction.changes.facts.append(Fact(sender, HEARD, f"{at:.0f}"))
