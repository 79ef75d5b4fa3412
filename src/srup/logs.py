"""The log as lines for people: one entry a line, with nothing in it that steers a terminal, and no floods.

The library only speaks to ``logging``; :func:`shown` is for programs that have not set it up.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from .printable import printable

__all__ = ["LONGEST", "Limiter", "Line", "TextFormatter", "shown", "traceback_lines"]

_MOST: Final = 30
"""How many lines of one kind are shown in each period; whoever floods us must not fill a disk or hide the rest (T9)."""

_PERIOD: Final = 60.0
"""In seconds."""

_KINDS: Final = 1000
"""So many kinds, to forget those that did not come lately."""


LONGEST: Final = 1000
"""How much is shown of a line, and of a field beside it, in characters: strangers make them as long as a message."""

_FIRST, _LAST = 10, 50  # lines that are shown of a traceback


class Line(NamedTuple):
    """Whether a line is shown, whether it is the last one of its kind for a while, and how many were not before it."""

    shown: bool
    last: bool = False
    left_out: int = 0

    def note(self) -> str:
        """Return what stands behind the line about the others."""
        before = f" (and {self.left_out} more like it before)" if self.left_out else ""
        return before + (f" (more like it are left out for {_PERIOD:.0f} seconds)" if self.last else "")


class Limiter:
    """Lets some lines of each kind through in each minute, and counts the others.

    Of many kinds those are forgotten that did not come lately.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._kinds: dict[str, tuple[float, int]] = {}  # since when it is counted, and how often it came
        self._look_from = _KINDS

    def admit(self, kind: str, now: float) -> Line:
        """Count one more of a kind."""
        since, count = self._kinds.get(kind, (now, 0))
        left_out = 0
        if now - since >= _PERIOD:
            left_out, since, count = max(0, count - self._most), now, 0
        self._kinds[kind] = since, count + 1
        if len(self._kinds) > self._look_from:
            self._kinds = {each: known for each, known in list(self._kinds.items()) if now - known[0] < _PERIOD}
            self._look_from = max(_KINDS, 2 * len(self._kinds))
        return Line(count < self._most, count + 1 == self._most, left_out)

    def left_out(self) -> int:
        """Return how many were left out and not told of yet."""
        return sum(max(0, count - self._most) for _, count in self._kinds.values())


def traceback_lines(text: str) -> list[str]:
    """Return a formatted traceback as lines to be shown: escaped, and not too many."""
    lines = text.splitlines()
    if len(lines) > _FIRST + _LAST:
        lines[_FIRST:-_LAST] = [f"... {len(lines) - _FIRST - _LAST} lines ..."]
    return [_indented(line[:LONGEST]) for line in lines]


def _indented(line: str) -> str:
    """Escape a line, but for what Python puts before it."""
    if not line.strip(" ^~"):
        return line  # what marks a place in the line above
    rest = line.lstrip(" ")
    return " " * min(len(line) - len(rest), 8) + printable(rest, None, words=True)


class TextFormatter(logging.Formatter):
    """One line, and those of a traceback behind it, which look like no other entry."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the escaped lines of a record."""
        record.message = printable(record.getMessage(), LONGEST, words=True)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        more = traceback_lines(self.formatException(record.exc_info)) if record.exc_info else []
        return "\n".join([self.formatMessage(record), *(f"  | {line}" for line in more)])


@contextmanager
def shown() -> Iterator[None]:
    """Show what srup logs as INFO or above on standard error during this block.

    Nothing is changed if the application has set up logging: a handler of the root logger or of ``srup`` takes the
    lines then. A level that was set for ``srup`` counts.
    """
    logger = logging.getLogger("srup")
    if logger.hasHandlers() or sys.stderr is None:
        yield
        return
    handler, level = _StandardError(), logger.level
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes lines to standard error; of each kind, which is the text that its author wrote, no more than so many."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        self._limiter = Limiter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Count the record; return whether it is shown."""
        record.line = line = self._limiter.admit(str(record.msg), time.monotonic())
        return line.shown and bool(super().filter(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines, and a note if lines like these are or were left out."""
        first, newline, more = super().format(record).partition("\n")
        line = getattr(record, "line", Line(True))
        return f"{first}{line.note()}{newline}{more}"
