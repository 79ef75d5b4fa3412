"""Firmware versions as people write them (srup.versions)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup.versions import MAX_VERSION, parse_version, shown_version, version_field

PART = st.integers(0, 999_999)


@pytest.mark.parametrize(
    ("text", "number", "shown"),
    [
        ("0", 0, "0"),
        ("42", 42, "42"),
        ("20261201", 20261201, "20261201"),
        ("4.2.0", 500_004_000_002_000_000, "4.2.0"),
        ("4.2", 500_004_000_002_000_000, "4.2.0"),
        ("0.0.1", 500_000_000_000_000_001, "0.0.1"),
        ("499999.999999.999999", MAX_VERSION, "499999.999999.999999"),
    ],
)
def test_each_version_has_a_number_and_is_shown_again(text, number, shown):
    assert parse_version(text) == number
    assert shown_version(number) == shown
    assert version_field(number) == (number if "." not in text else shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4.2.0-rc1",
        "4.2.0.1",
        "v4",
        "-1",
        "4.",
        ".4",
        "4..2",
        "500000.0.0",
        "1.1000000",
        "5" + "0" * 17,
        "\uff14.\uff12",
    ],
)
def test_what_is_no_version(text):
    with pytest.raises(ValueError, match="is no version"):
        parse_version(text)


def test_no_version_is_none():
    assert version_field(None) is None


@given(st.tuples(st.integers(0, 499_999), PART, PART), st.tuples(st.integers(0, 499_999), PART, PART))
def test_dotted_versions_compare_by_their_parts_and_are_newer_than_plain_ones(one, two):
    first, second = (parse_version(".".join(map(str, each))) for each in (one, two))
    assert (first < second) == (one < two)
    assert 10**17 < first <= MAX_VERSION
    assert shown_version(first) == ".".join(map(str, one))
