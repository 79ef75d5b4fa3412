"""When each of many wants attention; looking for the next one takes no longer with thousands."""

import heapq
from itertools import count
from math import inf
from typing import Generic, TypeVar

__all__ = ["Alarms"]

Sleeper = TypeVar("Sleeper")


class Alarms(Generic[Sleeper]):
    """One time for each sleeper. Times are in seconds on any one clock; one thread uses it."""

    def __init__(self) -> None:
        self._times: dict[Sleeper, float] = {}
        self._heap: list[tuple[float, int, Sleeper]] = []  # those that `_times` does not know are void
        self._serial = count()

    def set(self, sleeper: Sleeper, when: float) -> None:
        """Wake it at ``when``, unless it is woken before that anyway: then it can ask again. ``inf`` is never."""
        if when < self._times.get(sleeper, inf):
            self._times[sleeper] = when
            heapq.heappush(self._heap, (when, next(self._serial), sleeper))

    def due(self, now: float) -> list[Sleeper]:
        """Whose time is up, in that order; they have no alarm any more."""
        woken = []
        while self._heap and self._heap[0][0] <= now:
            when, _, sleeper = heapq.heappop(self._heap)
            if self._times.get(sleeper) == when:
                del self._times[sleeper]
                woken.append(sleeper)
        return woken

    def next(self) -> float:
        """When somebody is due at the earliest; ``inf`` for never."""
        return self._heap[0][0] if self._heap else inf
