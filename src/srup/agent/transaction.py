"""A transaction: what one turn of the engine changes, and what happens after its commit.

It is passed to whatever takes part in the turn. Where a ``Transaction | None`` is taken, None stands for a moment
outside of any turn, in which nothing has to become durable first.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from ..errors import SrupError
from ..keys import PublicKey
from ..records import Changes

__all__ = ["Call", "Cause", "Dispatch", "EntryNumbers", "Handling", "Transaction", "after_commit"]


class Cause(NamedTuple):
    """An order of a mailbox: its id, 16 bytes, and who has posted it."""

    order: bytes
    posted_by: str


class Handling(NamedTuple):
    """What a handler is being called for; see :attr:`Agent.handling`.

    ``id`` is the same whenever the application is told of the same thing. ``again`` says that it may have been told
    before: the process ended before the handler did.
    """

    partner: int
    id: str
    again: bool


class Call(NamedTuple):
    """A call of a handler, for which partner it is, and the inbox entry (its number, or 0) that is finished with it.

    ``job`` gets the ``arguments``.

    One that is ``pinned`` is made only while ``pin`` is the key by which the partner is known. ``token`` is what the
    partner has asked it under; ``again`` says that it may have been made before, ``inline`` that it waits for no thread
    of the application's. ``lost`` is called instead of it when that key is gone.
    """

    job: Callable[..., object]
    peer: int | None = None
    number: int = 0
    token: bytes = b""
    pinned: bool = False
    pin: PublicKey | None = None
    again: bool = False
    inline: bool = False
    lost: Callable[[], object] | None = None
    arguments: tuple[object, ...] = ()

    @property
    def handling(self) -> Handling | None:
        """What the application is told about it, if it is for something that a partner has asked."""
        if self.peer is None or not (self.number or self.pinned):
            return None
        name = f"{self.peer:x}/{self.number}" if self.number else self.token.hex()
        return Handling(self.peer, name, self.again)


class Dispatch:
    """A signed message on its way to the transport. ``error`` is why it did not get there."""

    __slots__ = ("error", "topic", "wire")

    def __init__(self, topic: str, wire: bytes, error: SrupError | None = None) -> None:
        self.topic = topic
        self.wire = wire
        self.error = error


class Transaction:
    """What is put off until ``changes`` are durable: ``effects``, in order, then ``calls`` of handlers.

    ``futures`` are those that the effects end. ``signer`` is the key that has signed the message in hand, ``cause`` the
    order that is being carried out. ``due`` says that something is to be done for which it may be time, whatever has
    arrived, ``busy`` that the turn had anything to do.
    """

    __slots__ = ("_changes", "busy", "calls", "cause", "due", "effects", "futures", "signer")

    def __init__(self) -> None:
        self._changes: Changes | None = None
        self.effects: list[Callable[[], object]] = []
        self.calls: list[Call] = []
        self.futures: list[Future[Any]] = []
        self.signer: PublicKey | None = None
        self.cause: Cause | None = None
        self.due = False
        self.busy = False

    @property
    def changes(self) -> Changes:
        """What is to become durable; made when somebody asks, for few turns without a store need it."""
        if self._changes is None:
            self._changes = Changes()
        return self._changes


def after_commit(transaction: Transaction | None, effect: Callable[[], object]) -> None:
    """Let something take effect outside when the transaction is durable: at once if there is none."""
    if transaction is None:
        effect()
    else:
        transaction.effects.append(effect)


class EntryNumbers:
    """The numbers of inbox and outbox entries: each is above all earlier ones, those before a restart included."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = 0

    def next(self, now: float | None = None) -> int:
        """Return a new number; it comes from the clock, in microseconds, unless that says ``now`` already."""
        micros = int((self._clock() if now is None else now) * 1e6)
        self._last = micros if micros > self._last else self._last + 1
        return self._last

    def note(self, number: int) -> None:
        """Take note of a number that was given before."""
        self._last = max(self._last, number)
