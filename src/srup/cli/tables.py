"""Tables and times, as commands print them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import Final

__all__ = ["ago", "iso", "table"]

_UNITS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (0.0, "s"))
_LEAST: Final = 12  # columns to which one of them is cut before it is left out


def ago(at: float | None, now: float) -> str:
    """Say how long ago something was, to people; when it was, to programs."""
    if at is None:
        return "never"
    if not sys.stdout.isatty():
        return iso(at) or ""
    past = max(0.0, now - at)
    length, unit = next(each for each in _UNITS if past >= 2 * each[0])
    return f"{past / (length or 1.0):.0f} {unit} ago"


def iso(at: float | None) -> str | None:
    """Return a Unix time in ISO 8601; None for none."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def table(rows: Sequence[Mapping[str, str]], give_way: Sequence[str]) -> Iterator[str]:
    """Return the lines of a table that never wraps: in a narrow window columns ``give_way``, in this order."""
    if not rows:
        return
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    room = get_terminal_size().columns if sys.stdout.isatty() else 1 << 20
    for name in give_way:
        over = sum(widths.values()) + 2 * (len(widths) - 1) - room
        if over <= 0:
            break
        widths[name] = max(_LEAST, widths[name] - over)
        if sum(widths.values()) + 2 * (len(widths) - 1) > room:
            del widths[name]
    for row in [dict(zip(widths, widths, strict=True)), *rows]:
        cells = (_cut(row[name], width).ljust(width) for name, width in widths.items())
        yield "  ".join(cells).rstrip()[:room]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
