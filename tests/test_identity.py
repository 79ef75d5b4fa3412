"""Identities as text: one way to read them, for every command, file and request."""

import json

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from srup.agent.verbs import load_order
from srup.cli.options import identity
from srup.errors import KeyServiceError, PolicyError
from srup.identity import parse_identity
from srup.keyex import forms
from srup.transport.topics import device_topic, parse_topic

JUNK = [
    "",
    "0x1",
    "0X1",
    "d_1",
    "+d1",
    "-1",
    " d1",
    "d1 ",
    "d1\n",
    "\u0663",
    "\uff11",
    "g",
    "1" * 17,
    "1.0",
    "\0",
]


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("d1", 0xD1), ("00D1", 0xD1), ("f" * 16, 2**64 - 1)])
def test_an_identity(text, number):
    assert parse_identity(text) == identity(text) == forms.parse_identity(text).number == number


@pytest.mark.parametrize("text", JUNK, ids=ascii)
def test_what_is_none_is_none_everywhere(text):
    with pytest.raises(ValueError, match="is not an identity: 1 to 16 hexadecimal digits"):
        parse_identity(text)
    with pytest.raises(typer.BadParameter, match="is not an identity"):
        identity(text)
    with pytest.raises(KeyServiceError, match="identity: is not 1 to 16 hexadecimal digits"):
        forms.parse_identity(text)
    with pytest.raises(ValueError, match="is not an identity"):
        load_order(json.dumps({"order": "identify", "device": text}).encode())
    with pytest.raises(PolicyError):
        parse_topic(f"SRUP/{text}")


def test_the_hint_about_a_prefix():
    with pytest.raises(
        ValueError, match=r"^'0xd1' is not an identity: 1 to 16 hexadecimal digits \(leave out the 0x\)$"
    ):
        parse_identity("0xd1")


@pytest.mark.parametrize("value", [None, 5, b"d1"], ids=repr)
def test_an_identity_is_read_from_text(value):
    with pytest.raises(ValueError, match="is not an identity"):
        parse_identity(value)


@given(st.integers(0, 2**64 - 1))
def test_topics_have_one_spelling_and_it_is_read_everywhere(number):
    text = device_topic(number).removeprefix("SRUP/")
    assert parse_identity(text) == parse_topic(f"SRUP/{text}").device == number
    for other in (text.upper(), f"0{text}"):
        if other != text:
            with pytest.raises(PolicyError):
                parse_topic(f"SRUP/{other}")
