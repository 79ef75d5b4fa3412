"""Times, shares and windows of a campaign, as a person writes them, and when a window is open."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final, NamedTuple, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["ALL", "Daily", "Size", "as_share", "duration", "iso", "shown_duration", "zone"]

_UNITS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")
_LONGEST: Final = 3650 * 86400.0


def duration(text: object) -> float:
    """Return how many seconds such as "90s", "30min", "2h", "1h 30min" or "7d" are; ValueError for anything else."""
    parts = _PART.findall(text) if isinstance(text, str) else []
    if not parts or not isinstance(text, str) or _PART.sub("", text).strip():
        raise ValueError(f"{text!r} is no time: a number and s, min, h or d, as in '90min'")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > _LONGEST:
        raise ValueError(f"{text!r} is longer than ten years")
    return seconds


def shown_duration(seconds: float) -> str:
    """Return a time as a person reads it, to two units: "45 s", "2 h 5 min", "3 d"."""
    left = round(seconds)
    if left < 120:
        return f"{left} s"
    parts = []
    left = left if left < 3600 else round(left / 60) * 60
    for unit in ("d", "h", "min", "s"):
        count, left = divmod(left, int(_UNITS[unit]))
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def as_share(text: object) -> float:
    """Return a percentage such as "5%" or "99.5%" as a number from 0 to 1; ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", text) if isinstance(text, str) else None
    if match is None or float(match[1]) > 100.0:
        raise ValueError(f"{text!r} is no percentage from '0%' to '100%'")
    return float(match[1]) / 100.0


class Size(NamedTuple):
    """How many devices: a number, or a share of all."""

    number: int = 0
    share: float | None = None

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a number above 0, or a percentage above 0 %; ValueError for anything else."""
        if isinstance(value, str):
            share = as_share(value)
            if share == 0.0:
                raise ValueError("'0%' is nobody")
            return cls(share=share)
        if type(value) is not int or value < 1:
            raise ValueError(f"{value!r} is neither a number of devices nor a percentage such as '10%'")
        return cls(value)

    def of(self, total: int) -> int:
        """Return how many that are of a ``total``; a share is rounded up."""
        return self.number if self.share is None else math.ceil(round(self.share * total, 6))

    def __str__(self) -> str:
        return str(self.number) if self.share is None else f"{self.share * 100:g} %"


ALL: Final = Size(share=1.0)
"""The size of a group that takes whoever is left."""


def zone(name: object) -> ZoneInfo:
    """Return a time zone by its IANA name; ValueError for what is none, or unknown on this machine."""
    try:
        if isinstance(name, str) and name:
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    raise ValueError(f"{name!r} is no time zone that this machine knows, such as 'Europe/Berlin'")


@dataclass(frozen=True)
class Daily:
    """A part of each day by the clock on the wall, such as 02:00-05:00; it may go past midnight.

    It opens once a day, whatever is done to the clock: when the time of its opening is left out it opens when that time
    would have been, and when an hour comes twice it neither opens nor closes a second time.
    """

    begin: time
    end: time

    @classmethod
    def read(cls, text: object) -> Self:
        """Read "02:00-05:00"; ValueError for anything else."""
        match = re.fullmatch(r"(\d\d:\d\d)\s*-\s*(\d\d:\d\d)", text) if isinstance(text, str) else None
        try:
            if match is not None:
                begin, end = (time.fromisoformat(each) for each in match.groups())
                if begin != end:
                    return cls(begin, end)
        except ValueError:
            pass
        raise ValueError(f"{text!r} is no part of a day, such as '02:00-05:00'")

    def opening(self, now: float, where: ZoneInfo) -> tuple[float, float]:
        """Return from when to when it is open: now, if it is open at this Unix time, or else the next time."""
        today = datetime.fromtimestamp(now, where).date()
        for days in (-1, 0, 1, 2):
            day = today + timedelta(days=days)
            last = day if self.begin < self.end else day + timedelta(days=1)
            begin, end = (
                datetime.combine(date, clock, where).timestamp()
                for date, clock in ((day, self.begin), (last, self.end))
            )
            end = end if begin < end else begin + self._length()  # it lies at the edge of an hour that is left out
            if now < end:
                return begin, end
        raise AssertionError("no day has this time")  # pragma: no cover - every day has one, or the next

    def _length(self) -> float:
        begin, end = (60.0 * (60 * each.hour + each.minute) for each in (self.begin, self.end))
        return (end - begin) % 86400.0

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"


def iso(at: float) -> str:
    """Return a Unix time in ISO 8601, to a second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
