"""How the value of a join looks in a terminal: words, number groups and a QR code, the same on both sides."""

import sys
from collections.abc import Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..agent.admission import Decision
from ..joinvalue import JoinValue
from .terminal import console

__all__ = ["ANSWERS", "ASKED", "VALUE_FORMS", "ValueBoard", "time_left"]

VALUE_FORMS: Final = ("mnemonic", "segno")
"""The optional packages that make words and QR codes of a value."""

ANSWERS: Final[Mapping[str, Decision]] = {"a": "accept", "r": "refuse", "f": "fail"}
"""What is decided about a join, by what is typed."""

ASKED: Final = "a accept, r refuse, f fail (cannot be compared), then Enter:"

_A_ROW: Final = 4  # words, and groups of digits
_WORD: Final = 9  # columns; the longest word of the list has eight letters
_GAP: Final = 3


class ValueBoard:
    """A value, laid out for the size of a window.

    The QR code stands beside the words where there is room for it, else under them, else nowhere. Its colours are
    given, so that it reads the same on a dark and on a light background.
    """

    def __init__(self, value: JoinValue) -> None:
        self._forms = Text("\n").join(
            [
                Text("Words", "bold"),
                Text(_rows(value.words.split(), _WORD)),
                Text("Numbers", "bold"),
                Text(_rows(value.groups.split(), 6)),
            ]
        )
        code = value.qr().rstrip("\n")
        self._code = Text(code, "#ffffff on #000000", no_wrap=True)
        self._size = len(code.partition("\n")[0]), code.count("\n") + 1

    def body(self, heading: str, columns: int, rows: int) -> RenderableType:
        """Return what fits into so many columns and rows, ``heading`` first."""
        top = Text(heading, "bold cyan")
        used = len(top.wrap(console, columns))
        width, height = self._size
        if not _has_blocks():
            return Group(top, self._forms, Text("(no QR code: this terminal's text is not UTF-8)", "dim"))
        if rows >= used + height and columns >= width + _GAP + _A_ROW * _WORD:
            beside = Table.grid(padding=(0, _GAP, 0, 0))
            beside.add_row(self._code, self._forms)
            return Group(top, beside)
        if rows >= used + self._forms.plain.count("\n") + 1 + height and columns >= width:
            return Group(top, self._forms, self._code)
        return Group(top, self._forms, Text("(a larger window shows a QR code as well)", "dim"))


def time_left(seconds: float) -> str:
    """Say how much time is left, in minutes and seconds."""
    left = max(0, round(seconds))
    return f"{left // 60}:{left % 60:02} left"


def _rows(parts: list[str], width: int) -> str:
    lines = (parts[start : start + _A_ROW] for start in range(0, len(parts), _A_ROW))
    return "\n".join("".join(part.ljust(width) for part in line).rstrip() for line in lines)


def _has_blocks() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")
