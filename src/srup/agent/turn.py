"""A turn: what one step of an agent changes, and what it does outside once that is on durable storage."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from ..errors import SrupError
from ..records import Changes

__all__ = ["Call", "Dispatch", "Handling", "Turn"]


class Handling(NamedTuple):
    """What a handler is being called for; see :attr:`Agent.handling`.

    ``id`` is the same whenever the application is told of the same thing. ``again`` says that it may have been told
    before: the process ended before the handler did.
    """

    partner: int
    id: str
    again: bool


class Call(NamedTuple):
    """A call of a handler, and the inbox entry (its number, or 0) that is finished with it."""

    job: Callable[[], object]
    handling: Handling | None = None
    number: int = 0


class Dispatch:
    """A signed message on its way to the transport. ``error`` is why it did not get there."""

    __slots__ = ("error", "topic", "wire")

    def __init__(self, topic: str, wire: bytes, error: SrupError | None = None) -> None:
        self.topic = topic
        self.wire = wire
        self.error = error


class Turn:
    """What is put off until ``changes`` are durable, in order; ``futures`` are those that ``effects`` end."""

    __slots__ = ("calls", "changes", "effects", "futures")

    def __init__(self) -> None:
        self.changes = Changes()
        self.effects: list[Callable[[], object]] = []
        self.calls: list[Call] = []
        self.futures: list[Future[Any]] = []
