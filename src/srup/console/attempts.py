"""Attempts to log in, which are bounded: for each name and address, and altogether."""

import threading
from collections import OrderedDict
from typing import Final

__all__ = ["Attempts"]

_REMEMBERED: Final = 4096


class Attempts:
    """``burst`` may fail at once, then ``rate`` a second; one that succeeds does not count.

    Each is counted when it begins, so that nobody makes many at the same time. Threads may share one of these.
    """

    def __init__(self, rate: float = 1 / 30, burst: float = 5.0) -> None:
        self._rate = rate
        self._burst = burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # and since when
        self._lock = threading.Lock()

    def begin(self, who: str, now: float) -> bool:
        """Count one of ``who`` at ``now`` (in seconds, of any clock); tell whether it may be made."""
        with self._lock:
            left, since = self._left.pop(who, (self._burst, now))
            left = min(self._burst, left + max(0.0, now - since) * self._rate)
            allowed = left >= 1.0
            self._left[who] = (left - 1.0 if allowed else left, now)
            while len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)
            return allowed

    def succeeded(self, who: str) -> None:
        """Let the last one of ``who`` not count."""
        with self._lock:
            if who in self._left:
                left, since = self._left[who]
                self._left[who] = (left + 1.0, since)
