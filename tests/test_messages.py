"""The message classes: what they take, what they refuse and which field they blame."""

import math
import struct
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

import srup
from srup.errors import DecodeError, EncodeError
from srup.messages import SCHEMA, DataKind
from srup.wire import Status

pytestmark = pytest.mark.backend

TABLE = {
    0x01: "Initiate(url, digest)",
    0x02: "Response(status)",
    0x03: "Activate()",
    0x04: "Action(action_id)",
    0x05: "Data(data_id, data)",
    0x06: "IdRequest()",
    0x09: "JoinRequest()",
    0x0A: "JoinCommand(device_id)",
    0x0B: "HumanJoinRequest()",
    0x0C: "HumanJoinResponse(sealed)",
    0x0D: "ObservedJoinRequest(observer_id)",
    0x0E: "ObservedJoinResponse(sealed)",
    0x0F: "ObservationRequest(joining_device_id, sealed)",
    0x10: "ResignRequest()",
    0x11: "TerminateCommand()",
    0x12: "DeregisterRequest()",
    0x13: "DeregisterCommand()",
    0x21: "SyndicationInit(url, sealed)",
    0x24: "SyndicatedAction(action_id, target_id)",
    0x25: "SyndicatedData(data_id, data, source_id)",
    0x26: "SyndicatedIdRequest(target_id)",
    0x27: "SyndicatedDeviceCount(count)",
    0x28: "SyndicatedDeviceList(device_sequence, device_id)",
    0x29: "SyndicationRequest(sealed)",
    0x2C: "SyndicatedC2Request(data, req_id)",
    0x2E: "SyndicatedEndRequest()",
    0x2F: "SyndicatedTerminate()",
}
"""docs/protocol/wire-format.md#types, written out by hand."""

MAXIMUM = {0: 2**8 - 1, 1: 2**32 - 1, 2: 2**64 - 1}
SAMPLES = {0: 1, 1: 1, 2: 1, 3: b"x", 4: "x", 5: "x"}
FIELDS = [(message, name, kind) for message in SCHEMA[:] for name, kind in message.layout.fields]
INTEGERS = [entry for entry in FIELDS if entry[2] <= 2]
BYTES = [entry for entry in FIELDS if entry[2] == 3]
TEXTS = [entry for entry in FIELDS if entry[2] >= 4]


def ids(entries):
    return [f"{message.__name__}.{name}" for message, name, _ in entries]


def every(entries):
    return pytest.mark.parametrize(("message", "name", "kind"), entries, ids=ids(entries))


def make(message, **fields):
    return message(**{**{name: SAMPLES[kind] for name, kind in message.layout.fields}, **fields})


def refusal(message, name, value):
    with pytest.raises(EncodeError) as caught:
        make(message, **{name: value})
    assert caught.value.field == name
    assert str(caught.value) == f"{name}: {caught.value.reason}"
    return caught.value.reason


def test_the_table_is_that_of_the_protocol():
    written = {
        message.layout.type: f"{message.__name__}({', '.join(name for name, _ in message.layout.body)})"
        for message in SCHEMA[:]
    }
    assert written == TABLE
    assert {message.layout.padding for message in SCHEMA[:] if message is not srup.SyndicatedC2Request} == {0}
    assert srup.SyndicatedC2Request.layout.padding == 2


@pytest.mark.parametrize("message", SCHEMA[:], ids=lambda message: message.__name__)
def test_every_message_is_public_and_documented(message):
    assert getattr(srup, message.__name__) is message
    assert issubclass(message, srup.Message)
    assert message.__doc__
    assert SCHEMA[message.layout.type] is message


@every(INTEGERS)
def test_integer_ranges(message, name, kind):
    top = MAXIMUM[kind]
    for value in (0, 1, top):
        assert getattr(make(message, **{name: value}), name) == value
    for value in (-1, top + 1, 10**30):
        assert refusal(message, name, value) == f"{value} is outside 0..2**{top.bit_length()}-1"


@every(INTEGERS)
def test_integers_of_any_length_are_refused_with_a_text(message, name, kind):
    """Python refuses to write out an int of 5,000 digits; the refusal must be ours all the same."""
    bits = MAXIMUM[kind].bit_length()
    for value in (10**5000, -(10**5000)):
        assert refusal(message, name, value) == f"an int of 16610 bits is outside 0..2**{bits}-1"


@every(INTEGERS)
@pytest.mark.parametrize("value", [True, False, 1.0, "1", b"1", None, 1j], ids=repr)
def test_only_ints_are_integers(message, name, kind, value):
    assert refusal(message, name, value) == f"expected an int, not {type(value).__name__}"


@every(BYTES)
@pytest.mark.parametrize(
    "value", ["x", bytearray(b"x"), memoryview(b"x"), None, 1, [1]], ids=lambda value: type(value).__name__
)
def test_only_bytes_are_bytes(message, name, kind, value):
    assert refusal(message, name, value) == f"expected bytes, not {type(value).__name__}"


@every(TEXTS)
@pytest.mark.parametrize("value", [b"x", None, 1, ["x"]], ids=repr)
def test_only_str_is_text(message, name, kind, value):
    assert refusal(message, name, value) == f"expected a str, not {type(value).__name__}"


@every(BYTES)
def test_the_longest_bytes(message, name, kind):
    assert len(getattr(make(message, **{name: bytes(65535)}), name)) == 65535
    assert refusal(message, name, bytes(65536)) == "65536 bytes are more than the 65535 that its length can say"


@every(TEXTS)
def test_the_longest_text(message, name, kind):
    """In bytes of UTF-8, with the trailing NUL where there is one."""
    room = 65535 - (kind == 5)
    for text in ("x" * room, "é" * (room // 2)):
        assert getattr(make(message, **{name: text}), name) == text
    assert refusal(message, name, "x" * (room + 1)).startswith("65536 bytes are more")
    assert refusal(message, name, "é" * 32768).startswith(f"{65536 + (kind == 5)} bytes are more")


@every(TEXTS)
def test_surrogates_and_nuls(message, name, kind):
    assert refusal(message, name, "a\ud800") == "a lone surrogate cannot be written as UTF-8"
    if kind == 5:
        for text in ("\0", "a\0", "a\0b"):
            assert refusal(message, name, text) == "a NUL cannot stand inside this text"
    else:
        assert getattr(make(message, **{name: "a\0b"}), name) == "a\0b"


def test_an_empty_token_is_refused():
    assert refusal(srup.Activate, "token", b"") == "is empty"


def test_the_first_wrong_field_is_named():
    with pytest.raises(EncodeError, match=r"^sender_id: "):
        srup.Action(sequence_id=1, sender_id=-1, token="text", action_id=300)


@pytest.mark.parametrize("message", SCHEMA[:], ids=lambda message: message.__name__)
def test_names_are_all_given_and_no_others(message):
    fields = dict(make(message))
    for name in fields:
        with pytest.raises(TypeError, match=rf"^{message.__name__}: missing \['{name}'\], unknown \[\]$"):
            message(**{other: value for other, value in fields.items() if other != name})
    with pytest.raises(TypeError, match=rf"^{message.__name__}: missing \[\], unknown \['self'\]$"):
        message(**fields, self=1)
    with pytest.raises(TypeError):
        message(*fields.values())


def test_a_wrong_name_comes_before_a_wrong_value():
    with pytest.raises(TypeError, match=r"^Action: missing \['action_id'\], unknown \['action'\]$"):
        srup.Action(sequence_id="wrong", sender_id=1, token=b"t", action=1)


def test_a_status_is_accepted_and_compares_equal():
    response = make(srup.Response, status=Status.JOIN_REFUSED)
    assert type(response.status) is int
    assert response.status == Status.JOIN_REFUSED == 0x5E
    assert Status(response.status) is Status.JOIN_REFUSED


def test_a_status_is_shown_by_its_name():
    status = Status.JOIN_REFUSED
    assert (str(status), f"{status}", f"{status:>13}", f"{status!s}") == (
        "JOIN_REFUSED",
        "JOIN_REFUSED",
        " JOIN_REFUSED",
        "JOIN_REFUSED",
    )
    assert (f"{status:02X}", f"{status:d}", f"{int(status)}") == ("5E", "94", "94")


def test_status_codes():
    """docs/protocol/wire-format.md#status-codes."""
    assert sorted(Status) == [
        *(0x00, 0x10, 0x1F, 0x20, 0x2E, 0x2F, 0x3F, 0x50, 0x5E, 0x5F, 0x60, 0x6E, 0x6F, 0x70, 0x7F, 0x80, 0x8F),
        *(0xFC, 0xFD, 0xFE, 0xFF),
    ]


def test_a_message_type_needs_a_free_byte():
    with pytest.raises(ValueError, match=r"^type 0x04 is taken$"):
        type("Again", (srup.Message,), {"__annotations__": {}}, type=0x04)
    assert SCHEMA[4] is srup.Action


# --- typed data

RANGES = {f"{sign}int{bits}": (bits, sign == "") for bits in (8, 16, 32, 64) for sign in ("", "u")}


def data_of(value, kind=None, message=srup.Data):
    return make(message, data=message.encode_value(value, kind))


@pytest.mark.parametrize("kind", RANGES)
def test_integer_kinds_at_their_limits(kind):
    bits, signed = RANGES[kind]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    for value in (low, high, 1):
        message = data_of(value, kind)
        assert message.data == value.to_bytes(bits // 8, "little", signed=signed)
        assert message.decode_value(kind) == value
    for value in (low - 1, high + 1, 10**5000):
        with pytest.raises(EncodeError, match=rf"^data: the value does not fit {kind}$"):
            srup.Data.encode_value(value, kind)


@given(st.floats())
def test_doubles(value):
    decoded = data_of(value).decode_value("double")
    assert struct.pack("<d", decoded) == struct.pack("<d", value) or (math.isnan(decoded) and math.isnan(value))


@given(st.floats(width=32, allow_nan=False))
def test_floats(value):
    assert data_of(value, "float").decode_value("float") == value


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary())
def test_text_and_bytes(text, content):
    assert data_of(text).decode_value("text") == text
    assert data_of(content).decode_value("bytes") == content


@pytest.mark.parametrize("kind", ["float", "double"])
def test_numbers_that_are_too_large_for_floats(kind):
    for value in (10**400, 10**5000, *([1e300] if kind == "float" else [])):
        with pytest.raises(EncodeError, match=rf"^data: the value does not fit {kind}$"):
            srup.Data.encode_value(value, kind)
    assert data_of(3, kind).decode_value(kind) == 3.0


class Flavour(IntEnum):
    SWEET = 5


@pytest.mark.parametrize(
    ("value", "data", "c2"),
    [
        (-2, b"\xfe\xff\xff\xff", b"\xfe\xff"),
        (Flavour.SWEET, b"\5\0\0\0", b"\5\0"),
        (1.5, struct.pack("<d", 1.5), struct.pack("<d", 1.5)),
        ("ü", "ü".encode(), "ü".encode()),
        (b"\0\xff", b"\0\xff", b"\0\xff"),
    ],
    ids=repr,
)
def test_without_a_kind_as_peers_send(value, data, c2):
    assert srup.Data.encode_value(value) == srup.SyndicatedData.encode_value(value) == data
    assert srup.SyndicatedC2Request.encode_value(value) == c2


@pytest.mark.parametrize("value", [True, None, [], bytearray(b"x"), 1j], ids=repr)
def test_values_without_a_form(value):
    with pytest.raises(EncodeError, match=r"^data: "):
        srup.Data.encode_value(value)


@pytest.mark.parametrize("kind", DataKind.__args__)
def test_values_of_another_kind(kind):
    wrong = {"bytes": "x", "text": b"x", "float": "1", "double": b"1"}.get(kind, 1.0)
    for value in (wrong, True, None):
        with pytest.raises(EncodeError, match=rf"^data: {type(value).__name__} cannot be sent as {kind}$"):
            srup.Data.encode_value(value, kind)


@pytest.mark.parametrize("kind", sorted(set(DataKind.__args__) - {"bytes", "text"}))
def test_data_of_another_size_is_refused(kind):
    size = len(srup.Data.encode_value(0, kind))
    for wrong in {0, size - 1, size + 1, 16} - {size}:
        with pytest.raises(DecodeError, match=rf"^data at offset 0: {kind} takes {size} bytes, not {wrong}$"):
            make(srup.Data, data=bytes(wrong)).decode_value(kind)


def test_text_that_is_none():
    with pytest.raises(DecodeError, match=r"^data at offset 2: not UTF-8$"):
        make(srup.Data, data=b"ab\xff").decode_value("text")
    with pytest.raises(EncodeError, match=r"surrogate"):
        srup.Data.encode_value("\ud800")


@pytest.mark.parametrize("kind", ["int", "", "str", "INT8"])
def test_kinds_that_are_none(kind):
    with pytest.raises(EncodeError, match=rf"^data: '{kind}' is no kind of data; the kinds are bytes, text, int8, "):
        srup.Data.encode_value(1, kind)
    with pytest.raises(EncodeError, match=rf"^data: '{kind}' is no kind of data"):
        make(srup.Data).decode_value(kind)
