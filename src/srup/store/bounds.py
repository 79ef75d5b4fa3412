"""Bounds of what callers give to a store: outside of them it is a ValueError, and nothing was asked or written."""

from typing import Final

__all__ = ["MAX_TIME", "check_int", "check_seconds", "check_time"]

MAX_TIME: Final = float(1 << 53)
"""The latest Unix time that a record of an event has: up to here doubles tell seconds apart."""


def check_int(value: object, what: str, least: int, most: int) -> None:
    """Raise ValueError, which says ``what`` is wrong, unless this is an int in these bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} must be an int from {least} to {most}, not {value!r:.40}")


def check_seconds(value: object, what: str, least: float, most: float) -> None:
    """Raise ValueError, which says ``what`` is wrong, unless this is a number of seconds in these bounds."""
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise ValueError(f"{what} must be a number of seconds from {least:g} to {most:g}, not {value!r:.40}")


def check_time(value: object, what: str) -> float:
    """Return a Unix time to compare with as a float, which may be infinite; ValueError unless it is a number."""
    if type(value) not in (int, float) or value != value:
        raise ValueError(f"{what} must be a Unix time, not {value!r:.40}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # type: ignore[operator]
