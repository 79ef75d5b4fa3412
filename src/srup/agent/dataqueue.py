"""Values that wait to be sent with a receipt: for a partner that is not joined yet, or for others to be confirmed."""

from collections import deque
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from ..errors import PolicyError

__all__ = ["DataQueue", "Value", "Waiting"]

MAX_WAITING: Final = 10_000
"""How many values one agent may have waiting, for all partners together."""


class Value(NamedTuple):
    """A named value; its form in an inbox or outbox entry is the name behind two bytes of length, then the data."""

    data_id: str
    data: bytes

    def pack(self) -> bytes:
        """Return the bytes to store."""
        name = self.data_id.encode()
        return len(name).to_bytes(2, "big") + name + self.data

    @classmethod
    def unpack(cls, body: bytes) -> "Value":
        """Return the value that :meth:`pack` has written."""
        end = 2 + int.from_bytes(body[:2], "big")
        return cls(body[2:end].decode(), body[end:])


class Waiting(NamedTuple):
    """A value in the queue, by the number of its outbox entry; it is not sent any more at ``expiry`` (Unix time)."""

    number: int
    partner: int
    value: Value
    expiry: float
    future: "Future[Any] | None" = None


class DataQueue:
    """First in, first out for each partner; what a partner cannot take now delays no other one."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Waiting]] = {}
        self._awake: dict[int, None] = {}
        self._held: dict[int, float] = {}
        self._count = 0
        self._due: float | None = None

    def __len__(self) -> int:
        return self._count

    def oldest(self) -> int | None:
        """Return the lowest number of those that wait, None if nothing does; any thread may ask."""
        heads = [next(iter(queue.copy()), None) for queue in list(self._queues.values())]
        return min((head.number for head in heads if head is not None), default=None)

    def add(self, waiting: Waiting) -> None:
        """Append a value; PolicyError when there are too many."""
        if self._count >= MAX_WAITING:
            raise PolicyError(f"{self._count} values wait already")
        self._queues.setdefault(waiting.partner, deque()).append(waiting)
        self._count += 1
        self._due = waiting.expiry if self._due is None else min(self._due, waiting.expiry)
        self.wake(waiting.partner)

    def wake(self, partner: int) -> None:
        """Note that this partner may be able to take something."""
        if partner in self._queues:  # who is held is noted again when that is over
            self._awake[partner] = None

    def hold(self, partner: int, until: float) -> None:
        """Send a partner nothing before that time, or before :meth:`release`: it may yet say that it gives receipts."""
        self._held[partner] = until

    def held(self) -> list[int]:
        """Return the partners that are held."""
        return list(self._held)

    def release(self, partner: int) -> None:
        """Hold a partner's values no more."""
        if self._held.pop(partner, None) is not None:
            self.wake(partner)

    def awake(self, now: float) -> list[int]:
        """Return the partners that were noted since the last call, and those that are not held any more."""
        for partner in [partner for partner, until in self._held.items() if now >= until]:
            del self._held[partner]
            self.wake(partner)
        awake = [partner for partner in self._awake if partner not in self._held]
        self._awake = {}
        return awake

    def first(self, partner: int) -> Waiting | None:
        """Return what is next for a partner, and leave it there."""
        queue = self._queues.get(partner)
        return queue[0] if queue else None

    def drop_first(self, partner: int) -> None:
        """Take away what was next for a partner."""
        queue = self._queues[partner]
        queue.popleft()
        self._count -= 1
        if not queue:
            del self._queues[partner]

    def drop(self, partner: int | None = None) -> list[Waiting]:
        """Take away and return all that waits for a partner, or all that waits."""
        queues = list(self._queues) if partner is None else [partner]
        dropped = [waiting for each in queues for waiting in self._queues.pop(each, ())]
        self._count -= len(dropped)
        return dropped

    def deadline(self) -> float | None:
        """Return when something may expire or need not be held any more, None for never."""
        dues = list(self._held.values()) if self._due is None else [self._due, *self._held.values()]
        return min(dues, default=None)

    def expire(self, now: float) -> list[Waiting]:
        """Take away and return what has expired."""
        if self._due is None or now < self._due:
            return []
        expired = [waiting for queue in self._queues.values() for waiting in queue if now >= waiting.expiry]
        left = [waiting for queue in self._queues.values() for waiting in queue if now < waiting.expiry]
        awake = list(self._awake)
        self._queues, self._count, self._due = {}, 0, None
        for waiting in left:
            self.add(waiting)
        self._awake = dict.fromkeys(partner for partner in awake if partner in self._queues)
        return expired
