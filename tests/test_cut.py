"""Cutting PUBLISH packets out of what was received: each twin by itself, and both side by side."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import load_twin
from .test_transport_stream import packet, publish, variable

pytestmark = pytest.mark.backend

LIMIT = 1000
FIRST = publish(b"SRUP/1", 7, b"first", properties=b"")
SECOND = publish("SRUP/ü".encode(), 0x0102, b"", properties=b"\x01\x01")


@pytest.fixture(params=["native", "python"])
def cut(request):
    return load_twin(request.param).cut.cut


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other twin must raise the same
        return type(error), str(error)


def test_a_run_has_topics_payloads_and_acknowledgements(cut):
    wire = b"junk" + FIRST + SECOND
    expected = ["SRUP/1", "SRUP/ü"], [b"first", b""], b"\x40\x02\0\x07\x40\x02\x01\x02"
    assert cut(wire, 4, True, LIMIT, 10) == (len(wire), *expected)
    assert cut(publish(b"a", 1, b"3"), 0, False, LIMIT, 10) == (8, ["a"], [b"3"], b"\x40\x02\0\x01")
    assert cut(publish(b"a", 0, b"30"), 0, False, LIMIT, 10) == (7, ["a"], [b"30"], b"")


@pytest.mark.parametrize("most", [1, 2, 3, 700, 1000])
def test_a_run_is_as_long_as_it_may_be(cut, most):
    packets = [publish(b"t", 1 + number, b"%d" % number, properties=b"") for number in range(700)]
    end, topics, payloads, acknowledgements = cut(b"".join(packets), 0, True, LIMIT, most)
    taken = min(most, 700)
    assert end == sum(map(len, packets[:taken]))
    assert topics == ["t"] * taken
    assert payloads == [b"%d" % number for number in range(taken)]
    assert acknowledgements == b"".join(struct.pack("!HH", 0x4002, 1 + number) for number in range(taken))


OTHERS = {
    "another QoS": publish(b"SRUP/1", 0, b"x", properties=b""),
    "another type": b"\xd0\x00",
    "not whole": FIRST[:-1],
    "no header": FIRST[:1],
    "nothing": b"",
    "damaged": packet(0x32, b""),
    "QoS 2": packet(0x34, b"\0\x01t\0\x01\0"),
    "no length": b"\x32\xff\xff\xff\xff",
    "too long": b"\x32" + variable(LIMIT),
    "no UTF-8": publish(b"\xff", 8, b"x", properties=b""),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_ends_before_anything_else(cut, name):
    assert cut(FIRST + OTHERS[name], 0, True, LIMIT, 10) == (len(FIRST), ["SRUP/1"], [b"first"], b"\x40\x02\0\x07")


def test_what_is_no_run(cut):
    assert cut(b"\xd0\x00" + FIRST, 0, True, LIMIT, 10) == (2, [], [], b"")
    assert cut(OTHERS["no UTF-8"] + FIRST, 0, True, LIMIT, 10) == (
        len(OTHERS["no UTF-8"]),
        [b"\xff"],
        [b"x"],
        b"\x40\x02\0\x08",
    )
    for name in ("damaged", "QoS 2", "no length", "too long"):
        with pytest.raises(ValueError, match=r"QoS 2|damaged|length|limit"):
            cut(b"x" + OTHERS[name], 1, True, LIMIT, 10)


def test_every_truncation_waits(cut):
    for wire in (FIRST, SECOND, packet(0x90, bytes(300))):
        for size in range(len(wire)):
            assert cut(wire[:size], 0, True, LIMIT, 10) == (0, [], [], b"")


@pytest.mark.parametrize("begin", [-1, len(FIRST) + 1, 1 << 62])
def test_no_byte_outside_is_read(cut, begin):
    with pytest.raises(IndexError, match=str(begin)):
        cut(FIRST, begin, True, LIMIT, 10)


@pytest.mark.parametrize("received", [None, bytearray(FIRST), "text"])
def test_only_bytes_are_cut(cut, received):
    with pytest.raises(TypeError, match="bytes"):
        cut(received, 0, True, LIMIT, 10)


def test_a_packet_may_be_as_long_as_the_limit(cut):
    wire = publish(b"t", 1, bytes(300), properties=b"")
    assert cut(wire, 0, True, len(wire), 1)[0] == len(wire)
    with pytest.raises(ValueError, match=f"a packet of {len(wire)} bytes, although {len(wire) - 1} is our limit"):
        cut(wire, 0, True, len(wire) - 1, 1)


good = st.builds(
    publish,
    st.sampled_from([b"SRUP/1", b"SRUP/2", "ü".encode(), b"\xff", b"\xed\xa0\x80", b"t\0"]),
    st.integers(0, 65535),
    st.binary(max_size=40),
    flags=st.sampled_from([0, 1, 8]),
    properties=st.binary(max_size=5),
)
loose = st.builds(
    packet, st.sampled_from([0x30, 0x32, 0x33, 0x34, 0x36, 0x3A, 0x3F, 0xD0, 0x20]), st.binary(max_size=20)
)
pieces = st.one_of(good, good, loose, st.binary(max_size=6))


@given(st.lists(pieces, max_size=8), st.booleans(), st.integers(1, 9), st.integers(0, 80), st.data())
def test_both_twins_cut_alike(drawn, is_5, most, limit, data):
    native, pure = load_twin("native").cut.cut, load_twin("python").cut.cut
    wire = bytearray(b"".join(drawn))
    for _ in range(data.draw(st.integers(0, 2)) if wire else 0):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    begin, received = data.draw(st.integers(0, len(wire))), bytes(wire)
    for at in (0, begin):
        told = outcome(pure, received, at, is_5, limit, most)
        assert outcome(native, received, at, is_5, limit, most) == told


@given(st.lists(good, min_size=1, max_size=4), st.booleans())
def test_both_twins_cut_every_truncation_alike(drawn, is_5):
    native, pure = load_twin("native").cut.cut, load_twin("python").cut.cut
    wire = b"".join(drawn)
    for size in range(len(wire)):
        told = outcome(pure, wire[:size], 0, is_5, LIMIT, 9)
        assert outcome(native, wire[:size], 0, is_5, LIMIT, 9) == told
