"""What a rehearsal has shown, as text and as JSON."""

from collections.abc import Iterator
from shutil import get_terminal_size
from typing import Any, Final

from ..campaign import At, Member
from ..campaign.rehearsal import Rehearsal
from ..campaign.schedule import shown_duration
from ..campaign.state import ENDED
from ..printable import printable

__all__ = ["lines", "report"]

_LEVELS: Final = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # from nobody to all
_FAILED: Final = "x"
_MOST: Final = 40  # moments that are shown
_WIDEST: Final = 60


def report(done: Rehearsal) -> dict[str, Any]:
    """Return what JSON says of a rehearsal; times are in seconds after its beginning."""
    groups = []
    for number, group in enumerate(done.document.groups):
        begin, end = done.span(number) or (None, None)
        counts = {str(at): count for at, count in _counts(done, number).items()}
        size, devices = str(group.size), done.sizes[number]
        groups.append(
            {"group": number + 1, "size": size, "devices": devices, "from": begin, "to": end, "counts": counts}
        )
    return {
        "name": done.document.name,
        "state": str(done.campaign.state),
        "reason": done.campaign.reason or None,
        "seconds": round(done.seconds, 3),
        "devices": len(done.members),
        "counts": {str(at): count for at, count in _counts(done).items()},
        "orders": done.orders,
        "most_at_once": done.most_at_once,
        "groups": groups,
        "timeline": [{"after": round(each.after, 3), "event": each.event} for each in done.moments],
    }


def lines(done: Rehearsal) -> Iterator[str]:
    """Return the lines that a person reads."""
    why = f": {done.campaign.reason}" if done.campaign.reason else ""
    yield f"{done.document.name} would be {done.campaign.state} after {shown_duration(done.seconds)}{_printed(why)}"
    counted = ", ".join(f"{count} {at}" for at, count in _counts(done).items())
    yield f"  {_devices(len(done.members))}: {counted or 'none'}"
    yield f"  {done.orders} orders, {_devices(done.most_at_once)} at work at once at most"
    yield ""
    yield from _groups(done)
    yield ""
    yield from _moments(done)


def _groups(done: Rehearsal) -> Iterator[str]:
    """Draw how each group goes over time: how many have succeeded, and where devices have ended otherwise."""
    rows = []
    for number, size in enumerate(done.sizes):
        begin, end = done.span(number) or (None, None)
        times = "never" if begin is None or end is None else f"{shown_duration(begin)} - {shown_duration(end)}"
        rows.append((str(number + 1), str(size), times))
    widths = [max(len(head), *(len(row[column]) for row in rows)) for column, head in enumerate(_HEADS)]
    room = min(_WIDEST, get_terminal_size().columns - sum(widths) - 2 * len(widths))
    step = f"a column is {shown_duration(done.seconds / max(1, room))}"
    heads = "  ".join(head.ljust(width) for head, width in zip(_HEADS, widths, strict=True))
    yield f"{heads}  {step}" if room >= len(step) else heads.rstrip()
    for number, row in enumerate(rows):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{cells}  {_course(done, number, room)}".rstrip()


_HEADS: Final = ("GROUP", "DEVICES", "WHEN")


def _course(done: Rehearsal, group: int, width: int) -> str:
    """Return a character for each part of the time: the share that has succeeded by its end, x where devices failed."""
    size, drawn, samples = done.sizes[group], [], iter(done.samples)
    upcoming = next(samples, None)
    good = ended = bad = 0
    for column in range(max(0, width)):
        until = done.seconds * (column + 1) / width + 1e-9
        while upcoming is not None and upcoming.after <= until:
            good, ended = upcoming.good[group], upcoming.ended[group]
            upcoming = next(samples, None)
        more, bad = ended - good > bad, ended - good
        level = 0 if not size else -(-good * (len(_LEVELS) - 1) // size)
        drawn.append(_FAILED if more else _LEVELS[level])
    return "".join(drawn)


def _moments(done: Rehearsal) -> Iterator[str]:
    shown = done.moments[:_MOST]
    times = [shown_duration(each.after) for each in shown]
    width = max(map(len, times), default=0)
    for at, each in zip(times, shown, strict=True):
        yield f"  {at:>{width}}  {_printed(each.event)}"
    if len(done.moments) > _MOST:
        yield f"  and {len(done.moments) - _MOST} more"
    reasons: dict[str, int] = {}
    for member in done.members.values():
        if member.at in ENDED and member.reason:
            reasons[member.reason] = reasons.get(member.reason, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda each: -each[1]):
        yield f"  {_devices(count)}: {_printed(reason)}"


def _counts(done: Rehearsal, group: int | None = None) -> dict[At, int]:
    members: list[Member] = [each for each in done.members.values() if group in (None, each.group)]
    counted = {at: sum(each.at is at for each in members) for at in At}
    return {at: count for at, count in counted.items() if count}


def _devices(number: int) -> str:
    return f"{number:,} {'device' if number == 1 else 'devices'}"


def _printed(text: str) -> str:
    return printable(text, 300, words=True)
