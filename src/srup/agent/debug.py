"""A view of an agent for debugging, tests and simulations. Reading it changes nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..keys import PrivateKey
from ..session.common import CommonSession as Session
from ..store import Store
from ..transport.base import Transport

if TYPE_CHECKING:
    from .engine import Engine
    from .threads import Threads

__all__ = ["DebugView"]


class DebugView:
    """What an agent is made of and how far it is. Names may change from version to version."""

    __slots__ = ("_engine", "_threads")

    def __init__(self, engine: "Engine", threads: "Threads") -> None:
        self._engine = engine
        self._threads = threads

    @property
    def session(self) -> Session:
        """The protocol's state."""
        return self._engine.session

    @property
    def transport(self) -> Transport:
        """The link to the broker."""
        return self._engine.transport

    @property
    def store(self) -> Store | None:
        """Where the state is kept."""
        return self._engine.store

    @property
    def key(self) -> PrivateKey:
        """The key that signs for those that have not taken a newer one."""
        return self._engine.own_keys.current

    @property
    def former_key(self) -> PrivateKey | None:
        """The key that still opens what was sealed to it."""
        return self._engine.own_keys.former

    @property
    def pending(self) -> list[tuple[int, bytes]]:
        """For whose answers futures wait, and under which tokens."""
        return self._engine.requests.pending()

    @property
    def inbox(self) -> int:
        """How many messages and jobs wait for a turn."""
        return len(self._engine.inbox)

    @property
    def handlers(self) -> int:
        """How many calls of handlers are handed over and wait for their turn."""
        return self._engine.handlers.backlog.handed_over()

    @property
    def values(self) -> int:
        """How many values wait to be sent."""
        return len(self._engine.values)

    @property
    def unacknowledged(self) -> int:
        """How many messages are not acknowledged yet because the handlers are far behind."""
        return self._engine.inbound.unacknowledged()

    @property
    def commit_failed(self) -> bool:
        """Whether a transaction waits for the store to work again."""
        return self._engine.commit_failed

    @property
    def facts(self) -> Mapping[int, Mapping[str, str]]:
        """What is known about partners and about ourselves."""
        return self._engine.facts.all()

    @property
    def threaded(self) -> bool:
        """Whether a thread was started for the turns."""
        return self._threads.employed

    @property
    def alive(self) -> bool:
        """Whether a thread takes the turns."""
        return self._threads.employed and self._threads.alive

    def join(self, timeout: float) -> bool:
        """Wait until the thread that takes the turns has ended; return whether it has, or there was none."""
        self._threads.join(timeout)
        return not self._threads.employed or not self._threads.alive

    def part(self, kind: type[Any]) -> Any:
        """Return one of the duties that the agent is made of (srup.agent.duty)."""
        return self._engine.part(kind)
