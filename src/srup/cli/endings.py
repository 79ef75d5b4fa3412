"""How commands end when a signal tells them to (docs/observability.md, "Exit status").

A service that is told to end has done what it was started for: status 0. Everything else was interrupted: 128 + n.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["ENDINGS", "has_terminal", "interrupt", "interruptible", "told_to_end"]

ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command: Ctrl-C, a service manager, a terminal that is gone."""


def has_terminal() -> bool:
    """Return whether we were started from a terminal; without one, SIGHUP does not say that it is gone."""
    return any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _heard() -> list[signal.Signals]:
    """Those that whoever has started us lets us hear: nohup takes SIGHUP away."""
    return [ending for ending in ENDINGS if signal.getsignal(ending) is not signal.SIG_IGN]


_interrupted_by: Final[list[int]] = []


def interrupt(number: int, _frame: FrameType | None = None) -> None:
    """Raise KeyboardInterrupt, for any signal; a second one must not disturb how everything that was started ends.

    SystemExit would end no more than a handler where agents run on this thread, as simulated ones do.
    """
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    _interrupted_by.append(number)
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Let each signal end a command in order during this block, and the process with 128 and the signal's number."""
    for ending in _heard():
        if ending is not signal.SIGINT:  # that is one already, and may come twice
            signal.signal(ending, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _end_at_once()
        sys.exit(128 + (_interrupted_by or [signal.SIGINT])[0])
    except SystemExit as ended:
        _end_at_once()
        if ended.code != 128 + signal.SIGINT or not _interrupted_by:
            raise
        sys.exit(128 + _interrupted_by[0])  # what is between us and the command knows Ctrl-C only


def _end_at_once() -> None:
    """Let another Ctrl-C end the process: all that is done by now is to wait for a thread that may hang."""
    if signal.SIGINT in _heard() or _interrupted_by:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def told_to_end(end: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Call ``end`` with the signal that tells a service to end, during this block and on the main thread."""

    def handler(number: int, _frame: FrameType | None) -> None:
        end(signal.Signals(number))

    # An exception out of the blue would leave a screen half drawn, or a commit half told.
    before = {ending: signal.signal(ending, handler) for ending in _heard()}
    try:
        yield
    finally:
        for ending, was in before.items():
            signal.signal(ending, was)
