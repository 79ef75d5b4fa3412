"""Plots as SVG, made of numbers without I/O. Colours come from the style sheet, by the class of each part.

Each says in words what it shows, for who does not see it.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ..extras import missing_named

with missing_named():
    from markupsafe import Markup

__all__ = ["Line", "Part", "Step", "bar", "columns", "steps"]

_WIDE: Final = 720
_HIGH: Final = 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 24


class Part(NamedTuple):
    """A part of a bar: how it looks (good, bad, warn, busy, idle), its word and its number."""

    look: str
    word: str
    number: int


class Step(NamedTuple):
    """A line of steps: how it looks, its word, and its numbers, each from a time on."""

    look: str
    word: str
    points: Sequence[tuple[float, float]]


class Line(NamedTuple):
    """A straight line across, at a number: how it looks, and its word."""

    look: str
    word: str
    at: float


def bar(parts: Iterable[Part]) -> Markup:
    """Return a bar in parts, each as long as its number."""
    shown = [part for part in parts if part.number]
    total = sum(part.number for part in shown)
    words = ", ".join(f"{part.number} {part.word}" for part in shown) or "nothing"
    pieces, x = [], 0.0
    for part in shown:
        width = 1000.0 * part.number / total
        pieces.append(
            Markup('<rect class="p-{}" x="{:.1f}" y="0" width="{:.1f}" height="16"><title>{}</title></rect>').format(
                part.look, x, max(1.0, width - 2.0), f"{part.number} {part.word}"
            )
        )
        x += width
    head = Markup('<svg class="bar" viewBox="0 0 1000 16" preserveAspectRatio="none" role="img" aria-label="{}">')
    return head.format(words) + Markup("").join(pieces) + Markup("</svg>")


def columns(numbers: Sequence[int], labels: Sequence[str], title: str) -> Markup:
    """Return columns, the last one on the right, each with its label where there is room for it."""
    most = max([1, *numbers])
    wide = (_WIDE - _LEFT - _RIGHT) / max(1, len(numbers))
    high = _HIGH - _TOP - _BOTTOM
    pieces = [_grid(most, lambda number: _TOP + high * (1 - number / most))]
    for index, (number, label) in enumerate(zip(numbers, labels, strict=True)):
        x, height = _LEFT + index * wide, high * number / most
        pieces.append(
            Markup(
                '<rect class="p-accent" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(x + 1, _TOP + high - height, max(1.0, wide - 2), height, f"{label}: {number}")
        )
        if index % max(1, len(numbers) // 6) == 0 or index == len(numbers) - 1:
            anchor = "end" if index == len(numbers) - 1 else "start"
            place = x + wide if anchor == "end" else x
            if not (anchor == "start" and index > len(numbers) - 6):
                pieces.append(_text(place, _HIGH - 8, label, anchor))
    return _plot(title, pieces)


def steps(
    lines: Sequence[Step],
    across: Sequence[Line],
    begin: float,
    end: float,
    ticks: Sequence[tuple[float, str]],
    title: str,
) -> Markup:
    """Return lines of steps over time, and straight ones across."""
    most = max([1.0, *(value for line in lines for _, value in line.points), *(line.at for line in across)])
    span, high = max(1.0, end - begin), _HIGH - _TOP - _BOTTOM

    def x(at: float) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * (min(max(at, begin), end) - begin) / span

    def y(value: float) -> float:
        return _TOP + high * (1 - value / most)

    pieces = [_grid(most, y)]
    for straight in across:
        pieces.append(
            Markup('<line class="l-{} across" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"><title>{}</title></line>').format(
                straight.look, _LEFT, _WIDE - _RIGHT, y(straight.at), y(straight.at), straight.word
            )
        )
        pieces.append(_text(_WIDE - _RIGHT, max(9.0, y(straight.at) - 4), straight.word, "end"))
    for line in lines:
        path, height = "", y(0)
        for at, value in line.points:
            path += f" H{x(at):.1f} V{y(value):.1f}" if path else f"M{x(at):.1f} {height:.1f} V{y(value):.1f}"
        if path:
            pieces.append(
                Markup('<path class="l-{}" d="{}"><title>{}</title></path>').format(
                    line.look, f"{path} H{x(end):.1f}", line.word
                )
            )
    for at, label in ticks:
        pieces.append(_text(x(at), _HIGH - 8, label, "end" if x(at) > _WIDE * 0.8 else "start"))
    return _plot(title, pieces)


def _plot(title: str, pieces: Iterable[Markup]) -> Markup:
    head = Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDE, _HIGH, title)
    return head + Markup("").join(pieces) + Markup("</svg>")


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _grid(most: float, y: "object") -> Markup:
    pieces = []
    for number in sorted({0, round(most / 2), round(most)}):
        height = y(number)  # type: ignore[operator]
        pieces.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                _LEFT, _WIDE - _RIGHT, height, height
            )
        )
        pieces.append(_text(_LEFT - 6, height + 4, f"{number:,}", "end"))
    return Markup("").join(pieces)
