"""What an inspection shows of a message: all fields, proven or not, and what the signature is worth."""

from base64 import b64encode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

import srup
from srup.inspection import Verdict, inspect, wires_in
from srup.messages import SCHEMA
from srup.wire import U8, U32, U64, Binary, Text, TextZ

from .fleet import key_of

SENDER, OTHER = 0x5E, 0xD1
KINDS = {
    hint.__metadata__[0]: strategy
    for hint, strategy in {
        U8: st.integers(0, 2**8 - 1),
        U32: st.integers(0, 2**32 - 1),
        U64: st.integers(0, 2**64 - 1),
        Binary: st.binary(max_size=60),
        Text: st.text(max_size=20),
        TextZ: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    }.items()
}


@st.composite
def messages(draw):
    cls = draw(st.sampled_from(SCHEMA[:]))
    fields = {name: draw(KINDS[kind]) for name, kind in cls.layout.fields}
    return cls(**fields | {"token": fields["token"] or b"t"})


@given(messages())
def test_the_fields_are_those_of_the_message(message):
    wire = srup.encode(message, key_of(SENDER))
    found = inspect(wire)
    assert (found.message, found.fields, found.size) == (type(message).__name__, dict(message), len(wire))
    assert (found.verdict, found.key) == (Verdict.NOT_CHECKED, None)
    assert found.signature in wire
    assert list(found.as_json()["fields"]) == list(found.fields)


@given(messages(), st.data())
def test_every_truncation_is_refused_as_by_decode(message, data):
    wire = srup.encode(message, key_of(SENDER))
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]
    with pytest.raises(srup.DecodeError) as refused:
        srup.peek(cut) if cut[1:2] == b"\0" else srup.decode(cut)
    with pytest.raises(srup.DecodeError) as inspected:
        inspect(cut)
    assert str(inspected.value) == str(refused.value)


def action(signer=SENDER):
    return srup.encode(srup.Action(sequence_id=1, sender_id=SENDER, token=b"t", action_id=3), key_of(signer))


@pytest.mark.parametrize(
    ("signed_by", "ring", "tried", "verdict", "by"),
    [
        (SENDER, None, [], Verdict.NOT_CHECKED, None),
        (SENDER, [], [], Verdict.UNKNOWN_SENDER, None),
        (SENDER, [SENDER], [], Verdict.VALID, SENDER),
        (OTHER, [SENDER], [], Verdict.INVALID, SENDER),
        # The key that is registered decides; another one that fits does not help.
        (OTHER, [SENDER], [OTHER], Verdict.INVALID, SENDER),
        (OTHER, [], [SENDER, OTHER], Verdict.VALID, OTHER),
        (OTHER, None, [SENDER], Verdict.INVALID, SENDER),
        (0xD2, None, [SENDER, OTHER], Verdict.INVALID, None),
    ],
)
def test_the_verdict_is_that_of_the_senders_key(signed_by, ring, tried, verdict, by):
    keys = None if ring is None else srup.KeyRing({each: key_of(each).public_key for each in ring})
    found = inspect(action(signed_by), keys, [key_of(each).public_key for each in tried])
    assert found.verdict is verdict
    assert found.key == (None if by is None else key_of(by).public_key.fingerprint)


def test_a_generic_message_has_no_signature():
    found = inspect(b"\x05\x00" + (7).to_bytes(8, "little") + (0x5E).to_bytes(8, "little") + b"\0\x01t")
    assert (found.message, found.verdict) == ("Generic", Verdict.ABSENT)
    assert found.fields == {"sequence_id": 7, "sender_id": 0x5E, "token": b"t"}


def test_messages_are_found_in_bytes_and_in_text():
    one, two = action(), action(OTHER)
    assert wires_in(one) == [one]
    forms = [
        one.hex(),
        two.hex(":").upper(),
        f"0x{one.hex()}",
        b64encode(one).decode(),
        urlsafe_b64encode(two).decode(),
    ]
    text = "# two messages\n\n" + "\n".join(forms) + "\n"
    assert wires_in(text.encode()) == [one, two, one, one, two]
    assert wires_in(b"") == []


@pytest.mark.parametrize(
    ("content", "said"), [(b"0504\nnothing", "line 2"), (b"\xff\xfe", "neither an SRUP message"), (b"word", "line 1")]
)
def test_what_holds_no_messages_is_refused(content, said):
    with pytest.raises(ValueError, match=said):
        wires_in(content)
