"""A duty: one concern of an agent, such as joining or updates, with its own state.

A device or a server is an engine and the duties that are added to it (:meth:`Engine.add`). The engine calls all of them
in the order in which they were added, on the thread that takes the turns unless something else is said.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ..errors import SrupError
from ..records import InboxEntry, OutboxEntry, State
from ..session.events import Event
from ..session.exchange import Exchange
from ..transport.topics import Address
from .transaction import Cause, Transaction

if TYPE_CHECKING:
    from .inbound import Refusal

__all__ = ["Duty", "Listener"]

Listener = Callable[[Transaction, Any], object]


class Duty:
    """The base of all duties: each does nothing, and overrides what it needs."""

    def events(self) -> Mapping[type[Event], Listener]:
        """Return which events of the session it takes."""
        return {}

    # Life.

    def introduce(self) -> None:
        """Log what people compare when two ends do not come together."""

    def amend(self, state: State) -> State:
        """Return the state of the store as it is to be taken over."""
        return state

    def restore(self, transaction: Transaction, state: State) -> None:
        """Take over what it knows besides the session, before what handlers have not finished is handed over again."""

    def restored(self, transaction: Transaction, state: State) -> None:
        """Do what comes when all the rest is taken over."""

    def prepare(self) -> None:
        """Subscribe, and do what else comes before everything that arrives."""

    def begin(self) -> None:
        """Do what is to be done once we have started."""

    def employ(self, name: str) -> None:
        """Start what runs on threads of its own, whose names begin so; a simulation has none."""

    def dismiss(self) -> None:
        """End what runs on other threads: the agent was told to stop. On any thread."""

    def stopped(self) -> None:
        """End the futures of the application that nothing will end any more. On any thread."""

    def members(self) -> int:
        """Return with how many partners we are joined. On any thread."""
        return 0

    # Turns.

    def precede(self, transaction: Transaction) -> bool:
        """Do what must come before everything that has arrived; return whether there was anything to do."""
        return False

    def tick(self, transaction: Transaction, now: float) -> None:
        """Do what is due: called once :meth:`due` has come, and in each turn that somebody has asked for."""

    def close(self, transaction: Transaction, now: float) -> None:
        """Put into the transaction what only its end can say."""

    def keep(self, transaction: Transaction) -> None:
        """Put into the transaction what a store is to keep and only the end of a turn can say; not without a store."""

    def due(self) -> float | None:
        """Return when there is something to do even if nothing arrives; None for never."""
        return None

    # What happens.

    def clock_set(self, transaction: Transaction) -> None:
        """Somebody has set the Unix clock; deadlines, which are in local time, stay what they are."""

    def link_changed(self, transaction: Transaction, connected: bool) -> None:
        """The link to the broker has come or gone."""

    def check_address(self, address: Address, sender: int) -> None:
        """Raise PolicyError unless this sender's messages belong on this topic."""

    def sender_verified(self, transaction: Transaction, sender: int) -> None:
        """A message of ``sender`` has verified and had no effect yet; raising a SrupError refuses it."""

    def accepted(self, transaction: Transaction, sender: int, at: float) -> None:
        """A message of ``sender`` was genuine and fresh, and the session has taken it at this Unix time."""

    def cause_of(self, peer: int, token: bytes) -> Cause | None:
        """Return the order from outside that what is under way with ``peer`` under this token belongs to."""
        return None

    def key_withdrawn(self, transaction: Transaction, identity: int) -> None:
        """A key of ``identity`` was removed, replaced or revoked, by us or by the application."""

    def excuses(self, refusal: "Refusal") -> bool:
        """Return whether a message that would be refused is seen to in another way."""
        return False

    def end_exchange(self, transaction: Transaction, exchange: Exchange, error: SrupError) -> bool:
        """End one of our requests in its own way; return whether there was one."""
        return False

    def peer_replaced(self, transaction: Transaction, peer: int) -> None:
        """An identity is another partner now, or none: forget the former one."""

    def reported(self, entry: OutboxEntry) -> "Future[Any] | None":
        """Return the future of somebody who waits since before a restart for this value to be sent."""
        return None

    def redeliver(self, transaction: Transaction, entry: InboxEntry) -> bool:
        """Hand over again what a handler had not finished before a restart; return whether it is there to take it."""
        return False

    def revive(self, name: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """Return the arguments of the handler ``name`` from what is kept of them."""
        return arguments
