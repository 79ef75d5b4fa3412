"""Time as an agent uses it: one that only goes forward, for deadlines, and Unix time, which somebody may set."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

__all__ = ["STEP", "LocalTime"]

STEP: Final = 1.0
"""In seconds: a Unix clock that differs by more from what it would have come to has been set."""

_HELD_UP: Final = 0.1  # seconds from one look at a clock to the next
_ATTEMPTS: Final = 10

Clock = Callable[[], float]

_SYSTEM: Final[Clock] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class LocalTime:
    """What a ``clock``, which returns Unix time, and a monotonic clock say together.

    A call returns the local time, in seconds: Unix time as it was at :meth:`begin`, and from then on that plus what the
    monotonic clock has counted, whatever becomes of Unix time. Deadlines of a process are in local time. What other
    processes read, tokens and stores above all, is in Unix time: :attr:`lead` seconds more.

    The monotonic clock is the ``monotonic`` method of the clock, if it has one, and that of the system for time.time;
    it counts while the machine sleeps where the system has such a clock. Any other clock is followed forwards, and not
    back when it is set back. Any thread may ask.
    """

    def __init__(self, clock: Clock) -> None:
        self.unix = clock
        monotonic: Clock | None = _SYSTEM if clock is time.time else getattr(clock, "monotonic", None)
        self._monotonic = monotonic or _Forwards(clock)
        self._offset = 0.0
        self._lead = 0.0  # what it was when somebody asked last
        self.begin()

    def begin(self) -> None:
        """Let local time be what Unix time is now."""
        self._offset = self.unix() - self._monotonic()

    def __call__(self) -> float:
        """Return the local time."""
        return self._monotonic() + self._offset

    @property
    def lead(self) -> float:
        """How far Unix time is ahead of local time now."""
        lead = self.unix() - self()
        if not -_HELD_UP < lead - self._lead < _HELD_UP:
            for _ in range(_ATTEMPTS):  # a process that is held up between two looks has not seen the clock being set
                before, unix, after = self(), self.unix(), self()
                lead = unix - after
                if after - before < _HELD_UP:
                    break
        self._lead = lead
        return lead


class _Forwards:
    """Goes as a clock does, but goes on from where it was when that one is set back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = 0.0
        self._last = clock()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            now = self._clock()
            self._offset = max(self._offset, self._last - now)
            self._last = now + self._offset
            return self._last
