"""How the pages say times, sizes and states: the functions that templates use."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

__all__ = ["SHAPES", "ago", "count", "iso", "left", "shape", "short"]

_UNITS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))

SHAPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("healthy", "activated", "finished", "done", "accepted", "verified", "valid", "member"), "good"),
    **dict.fromkeys(
        ("failed", "stopped", "refused", "invalid", "expired", "aborted", "revoked", "action_fail", "join_refused"),
        "bad",
    ),
    **dict.fromkeys(("unanswered", "paused", "awaiting approval", "action_unknown"), "warn"),
    **dict.fromkeys(
        ("ordered", "posted", "taken", "fetching", "ready", "activating", "running", "waiting for you"), "busy"
    ),
}
"""The look of a state by its word; any other is "idle"."""


def shape(state: str) -> str:
    """Return the look of a state: good, bad, warn, busy or idle."""
    return SHAPES.get(state.lower(), "good" if state.lower().endswith("_success") else "idle")


def ago(at: float | None, now: float) -> str:
    """Say how long ago something was, to a minute."""
    if at is None:
        return "never"
    past = now - at
    if past < 60.0:
        return "just now" if past > -60.0 else iso(at)
    length, unit = next(each for each in _UNITS if past >= each[0])
    return f"{past / length:.0f} {unit} ago"


def left(until: float, now: float) -> str:
    """Say how much time is left."""
    rest = max(0, int(until - now))
    if rest >= 3600:
        return f"{rest // 3600} h {rest % 3600 // 60} min"
    return f"{rest // 60}:{rest % 60:02}"


def iso(at: float) -> str:
    """Return a Unix time in ISO 8601, to a second."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f}"


def short(text: str, most: int) -> str:
    """Return a text that is not longer than so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def count(number: int, one: str, many: str = "") -> str:
    """Say how many there are."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
