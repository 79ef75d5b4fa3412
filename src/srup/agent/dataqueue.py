"""Values that wait to be sent with a receipt: for a partner that is not joined yet, or for others to be confirmed."""

import heapq
from collections import deque
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from ..errors import PolicyError

__all__ = ["DataQueue", "Value", "Waiting", "pack_name"]

MAX_WAITING: Final = 30_000
"""How many values one agent may have waiting, for all partners together. One partner has half of what is free."""


def pack_name(data_id: str) -> bytes:
    """Return what stands before the data of a value of this name where it is stored."""
    name = data_id.encode()
    return len(name).to_bytes(2, "big") + name


class Value(NamedTuple):
    """A named value; its form in an inbox or outbox entry is the name behind two bytes of length, then the data."""

    data_id: str
    data: bytes

    def pack(self) -> bytes:
        """Return the bytes to store."""
        return pack_name(self.data_id) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> "Value":
        """Return the value that :meth:`pack` has written."""
        end = 2 + int.from_bytes(body[:2], "big")
        return cls(body[2:end].decode(), body[end:])


class Waiting(NamedTuple):
    """A value in the queue, by the number of its outbox entry; it is not sent any more at ``expiry``."""

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
        self._expiries: list[tuple[float, int, int]] = []  # a heap: expiry, number, partner; some wait no more

    def __len__(self) -> int:
        return self._count

    def oldest(self) -> int | None:
        """Return the lowest number of those that wait, None if nothing does; any thread may ask."""
        heads = [next(iter(queue.copy()), None) for queue in list(self._queues.values())]
        return min((head.number for head in heads if head is not None), default=None)

    def all(self) -> list[Waiting]:
        """Return all that wait, those for one partner in their order."""
        return [waiting for queue in self._queues.values() for waiting in queue]

    def add(self, waiting: Waiting) -> None:
        """Append a value; PolicyError when its partner's share is used up, so that none refuses another one."""
        waiting_already = len(self._queues.get(waiting.partner, ()))
        if waiting_already >= (MAX_WAITING - self._count) // 2:
            raise PolicyError(f"queue full: {waiting_already} values pending for {waiting.partner:x}")
        self.put(waiting)

    def put(self, waiting: Waiting) -> None:
        """Append a value that was accepted before."""
        self._queues.setdefault(waiting.partner, deque()).append(waiting)
        self._count += 1
        heapq.heappush(self._expiries, (waiting.expiry, waiting.number, waiting.partner))
        if len(self._expiries) > 64 + 2 * self._count:
            waits = (each for queue in self._queues.values() for each in queue)
            self._expiries = [(each.expiry, each.number, each.partner) for each in waits]
            heapq.heapify(self._expiries)
        self.wake(waiting.partner)

    def wake(self, partner: int) -> None:
        """Note that this partner may be able to take something."""
        if partner in self._queues:  # who is held is noted again when that is over
            self._awake[partner] = None

    def hold(self, partner: int, until: float) -> None:
        """Send a partner nothing before that time, or before :meth:`release`: it may yet say that it gives receipts."""
        self._held[partner] = until

    @property
    def is_quiet(self) -> bool:
        """Whether nobody was noted, and nobody is held."""
        return not (self._awake or self._held)

    def held(self) -> list[int]:
        """Return the partners that are held."""
        return list(self._held)

    def release(self, partner: int) -> None:
        """Hold a partner's values no more."""
        if self._held.pop(partner, None) is not None:
            self.wake(partner)

    def awake(self, now: float) -> list[int]:
        """Return the partners that were noted since the last call, and those that are not held any more."""
        if not self._awake and not self._held:
            return []
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

    def take_back(self, partner: int, number: int) -> Waiting | None:
        """Take away and return one that waits for a partner; None if it does not wait any more."""
        queue = self._queues.get(partner, deque())
        found = next((waiting for waiting in queue if waiting.number == number), None)
        if found is not None:
            queue.remove(found)
            self._count -= 1
            if not queue:
                del self._queues[partner]
        return found

    def drop(self, partner: int | None = None) -> list[Waiting]:
        """Take away and return all that waits for a partner, or all that waits."""
        queues = list(self._queues) if partner is None else [partner]
        dropped = [waiting for each in queues for waiting in self._queues.pop(each, ())]
        self._count -= len(dropped)
        return dropped

    def deadline(self) -> float | None:
        """Return when something may expire or need not be held any more, None for never."""
        expiries = self._expiries
        if not expiries and not self._held:
            return None
        while expiries and not self._may_wait(*expiries[0][1:]):
            heapq.heappop(expiries)
        return min([*self._held.values(), *(expiry for expiry, *_ in expiries[:1])], default=None)

    def expire(self, now: float) -> list[Waiting]:
        """Take away and return what has expired."""
        due: dict[int, set[int]] = {}
        while self._expiries and self._expiries[0][0] <= now:
            _, number, partner = heapq.heappop(self._expiries)
            if self._may_wait(number, partner):
                due.setdefault(partner, set()).add(number)
        return [waiting for partner, numbers in due.items() for waiting in self._take_out(partner, numbers)]

    def _may_wait(self, number: int, partner: int) -> bool:
        """Return whether a value that was appended has not been taken away from the front."""
        queue = self._queues.get(partner)
        return queue is not None and queue[0].number <= number

    def _take_out(self, partner: int, numbers: set[int]) -> list[Waiting]:
        """Take away and return the values of these numbers, which mostly stand at the front."""
        queue, out = self._queues[partner], []
        while queue and queue[0].number in numbers:
            out.append(queue.popleft())
        if len(out) < len(numbers):
            out += [waiting for waiting in queue if waiting.number in numbers]
            self._queues[partner] = queue = deque(waiting for waiting in queue if waiting.number not in numbers)
        self._count -= len(out)
        if not queue:
            del self._queues[partner]
            self._awake.pop(partner, None)
        return out
