"""What strangers write, as it is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Küche 21.5 °C", "Küche 21.5 °C"),
        ("a\x1b[2Jb\r\n", r"a\x1b[2Jb\r\n"),
        ("a\u202eb\u2028", r"a\u202eb\u2028"),
        ("a   b", r"a \x20\x20b"),
        ("a\u00a0\u3000b", r"a\xa0\u3000b"),
        ("a\u2800\u3164b", r"a\u2800\u3164b"),
        ("x" * 161, "x" * 157 + "..."),
    ],
)
def test_what_steers_or_imitates_is_escaped(text: str, shown: str) -> None:
    assert printable(text, words=True) == shown


def test_names_are_ascii() -> None:
    assert printable("http://h\xf6st:\u0663/") == r"http://h\xf6st:\u0663/"


def test_how_much_is_shown() -> None:
    assert printable("x" * 300, 100) == "x" * 97 + "..."
    assert printable("x" * 300, None) == "x" * 300


@given(st.text(st.sampled_from(" ab\x1b\n\u2800\\")))
def test_what_was_shown_once_is_shown_as_it_is(text: str) -> None:
    shown = printable(text, None, words=True)
    assert shown.isprintable()
    assert "  " not in shown
    assert printable(shown, None, words=True) == shown
