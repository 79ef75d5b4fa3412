"""Lines of the terminal: what strangers put into them, and how many."""

import io

import pytest
from rich.console import Console

from srup import PolicyError, ReplayError
from srup.agent import Refusal
from srup.cli.options import RefusalLines
from srup.cli.terminal import show


def shown(text, width, **options):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    show(text, to=console, **options)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("filler", [" ", "x", "\u2800", "\u3000", "世"])
def test_t17_no_row_looks_like_a_line_of_its_own(width, filler):
    first, *more = shown(f"d1 sends name: {filler * width}d2 has joined" * 5, width)
    assert more
    assert first.startswith("d1 sends")
    assert all(row.startswith("  ") for row in more)
    assert all(len(row) <= width for row in [first, *more])


def test_what_fits_and_what_no_person_reads_is_one_line():
    assert shown("short", 40) == ["short"]
    console = Console(file=io.StringIO(), width=40)
    show("x " * 100, to=console)
    assert console.file.getvalue() == "x " * 100 + "\n"


def test_markup_is_text():
    assert shown("[red]is[/] not", 40, before=("error: ", "red")) == ["error: [red]is[/] not"]


class Said(list):
    def say(self, line, style):
        self.append(line)


def test_t9_a_flood_of_refusals_is_counted():
    said = Said()
    lines = RefusalLines(said)
    for _ in range(322):
        lines(Refusal("SRUP/d1", b"junk", PolicyError("junk")))
    lines(Refusal("SRUP/d1", b"junk", ReplayError(7, "seen before")))
    assert len(said) == 10
    assert said[0] == "a message on SRUP/d1 is refused: PolicyError: junk"
    assert said[-1].endswith("junk (more like it are left out for 60 seconds)")
    lines.close()
    assert said[10:] == ["312 more messages were refused"]
