"""The stream between paho and its socket: every packet arrives whole, in order, at the one of the two that reads it."""

import socket
import struct
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup.transport.stream import Run, Stream


def variable(number):
    """A variable byte integer (MQTT 5.0, section 1.5.5)."""
    digits = []
    while True:
        number, digit = divmod(number, 128)
        digits.append(digit | 128 * (number > 0))
        if not number:
            return bytes(digits)


def packet(first, body):
    return bytes([first]) + variable(len(body)) + body


def publish(topic, mid, payload, *, flags=0, properties=None):
    """PUBLISH with QoS 1 if there is a packet id; properties, of whatever content, only in MQTT 5."""
    identifier = struct.pack("!H", mid) if mid else b""
    known = b"" if properties is None else variable(len(properties)) + properties
    name = struct.pack("!H", len(topic)) + topic
    return packet(0x30 | flags | 2 * (mid > 0), name + identifier + known + payload)


LIMIT = 100_000  # bytes of a packet


class Publication(NamedTuple):
    """One packet of a run."""

    topic: bytes
    mid: int
    payload: bytes


def opened(run: Run) -> list[Publication]:
    """The packets of a run."""
    topics = [topic if isinstance(topic, bytes) else topic.encode() for topic in run.topics]
    acknowledged = [struct.unpack("!HH", each) for each in batched(run.acknowledgements, 4)]
    assert all(first == 0x4002 for first, _ in acknowledged)
    mids = [mid for _, mid in acknowledged] or [0] * len(topics)
    return [Publication(*each) for each in zip(topics, mids, run.payloads, strict=True)]


def batched(wire: bytes, size: int) -> list[bytes]:
    return [wire[at : at + size] for at in range(0, len(wire), size)]


class Ends:
    """A stream, and the broker's end of its connection."""

    def __init__(self, is_5=True, most=3):
        self.most = most
        ours, self.broker = socket.socketpair()
        self.stream = Stream(ours, is_5, LIMIT)
        self.stream.setblocking(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.broker.close()

    def heard(self):
        """What is opened, or the bytes that paho can read instead."""
        heard = [[self.for_paho()] if run is None else opened(run) for run in self.stream.read(self.most)]
        return [each for run in heard for each in run]

    def for_paho(self):
        """What paho reads, in its manner: byte by byte until nothing is there."""
        read = b""
        with suppress(BlockingIOError):
            while byte := self.stream.recv(1):
                read += byte
        return read


names = st.binary(min_size=1, max_size=40)
payloads = st.binary(max_size=300) | st.integers(0, 40_000).map(bytes)


@st.composite
def packets(draw, is_5):
    """A packet and what is to be heard of it."""
    kind = draw(st.sampled_from(["publish", "publish", "other"]))
    if kind == "other":
        first = draw(st.integers(0, 255).filter(lambda byte: byte >> 4 != 3))
        wire = packet(first, draw(payloads))
        return wire, wire
    topic, payload, mid = draw(names), draw(payloads), draw(st.integers(0, 65535))
    properties = draw(st.binary(max_size=200)) if is_5 else None
    flags = draw(st.sampled_from([0, 1, 8, 9]))
    return publish(topic, mid, payload, flags=flags, properties=properties), Publication(topic, mid, payload)


@pytest.mark.slow
@given(st.data(), st.booleans())
def test_whatever_the_pieces_every_packet_is_heard_once_and_in_order(data, is_5):
    drawn = data.draw(st.lists(packets(is_5), max_size=8))
    wire = b"".join(each for each, _ in drawn)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    heard = []
    with Ends(is_5, data.draw(st.integers(1, 5))) as ends:
        for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
            ends.broker.sendall(wire[begin:end])
            for _ in range(1 + (end - begin) // 65536):
                heard += ends.heard()
    assert heard == [expected for _, expected in drawn]


def test_every_prefix_waits_for_the_rest():
    wire = publish(b"SRUP/1", 7, bytes(200), properties=b"\x01\x01")
    for size in range(len(wire)):
        with Ends() as ends:
            ends.broker.sendall(wire[:size])
            assert ends.heard() == []
            ends.broker.sendall(wire[size:])
            assert ends.heard() == [Publication(b"SRUP/1", 7, bytes(200))]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"\0\x06SRUP/",  # a topic that is longer than the packet
        b"\0\x06SRUP/1",  # no packet id
        b"\0\x06SRUP/1\0",
        b"\0\x06SRUP/1\0\x07",  # no length of properties
        b"\0\x06SRUP/1\0\x07\x80",
        b"\0\x06SRUP/1\0\x07\x80\x80\x80\x80\x01",
        b"\0\x06SRUP/1\0\x07\x02\x01",  # properties that are longer than the packet
        b"\0\x06SRUP/1\0\0\0",  # packet id 0
        b"\0\0\0\x07\0",  # no topic
    ],
)
def test_a_damaged_publication_ends_the_reading(body):
    with Ends() as ends:
        ends.broker.sendall(packet(0x32, body) + publish(b"SRUP/1", 8, b"x", properties=b""))
        assert ends.heard() == []
        assert ends.stream.fault == "a damaged message"
        assert ends.heard() == []


@pytest.mark.parametrize("flags", [4, 6])
def test_nothing_is_kept_of_a_message_with_qos_2(flags):
    with Ends() as ends:
        ends.broker.sendall(publish(b"SRUP/1", 0, b"\0\x07" + bytes(1000), flags=flags, properties=b""))
        assert ends.heard() == []
        assert "QoS 2" in ends.stream.fault


def test_a_length_that_is_none_ends_the_reading():
    with Ends() as ends:
        ends.broker.sendall(b"\x30\xff\xff\xff")
        assert ends.heard() == []
        assert ends.stream.fault is None
        ends.broker.sendall(b"\xff")  # four digits: MQTT has no fifth
        assert ends.heard() == []
        assert "length" in ends.stream.fault


@pytest.mark.parametrize("first", [0x30, 0x32, 0x90, 0xE0])
def test_a_packet_over_the_limit_is_refused_by_its_header(first):
    size = LIMIT - 4  # without the type and three digits
    with Ends() as ends:
        ends.broker.sendall(publish(b"SRUP/1", 7, b"x", properties=b"") + bytes([first]) + variable(size + 1))
        assert ends.heard() == [Publication(b"SRUP/1", 7, b"x")]
        assert str(LIMIT + 1) in ends.stream.fault
        assert str(LIMIT) in ends.stream.fault
    with Ends() as ends:
        ends.broker.sendall(bytes([first]) + variable(size))
        assert ends.heard() == []
        assert ends.stream.fault is None


def test_paho_hears_the_end_once_everything_has_been_read():
    with Ends() as ends:
        ends.broker.sendall(publish(b"SRUP/1", 7, b"x", properties=b"") + b"\xd0\x00" + b"\x32\x7f")
        ends.broker.close()
        assert ends.heard() == [Publication(b"SRUP/1", 7, b"x"), b"\xd0\x00"]
        assert ends.heard() == [b""]
        assert ends.stream.recv(1) == b""


def test_what_is_sent_is_gathered_and_goes_out_as_far_as_the_socket_takes_it():
    with Ends() as ends:
        pieces = [bytes([n % 251]) * 1000 for n in range(2000)]
        for piece in pieces:
            assert ends.stream.send(piece) == len(piece)
        ends.broker.setblocking(False)
        with pytest.raises(BlockingIOError):
            ends.broker.recv(1)
        assert ends.stream.flush()
        assert 0 < ends.stream.unsent < 2_000_000
        ends.broker.setblocking(True)
        came = b""
        while ends.stream.unsent:
            came += ends.broker.recv(1 << 20)
            assert ends.stream.flush()
        ends.stream.close()
        while piece := ends.broker.recv(1 << 20):
            came += piece
        assert came == b"".join(pieces)


def test_closing_sends_what_was_gathered():
    with Ends() as ends:
        ends.stream.send(b"\xe0\x00")
        ends.stream.close()
        assert ends.broker.recv(10) == b"\xe0\x00"


def test_a_connection_that_breaks_while_sending_is_over():
    with Ends() as ends:
        ends.broker.close()
        ends.stream.send(b"x")
        assert not ends.stream.flush()
        assert ends.stream.recv(1) == b""
        assert ends.heard() == [b""]


@given(names, st.integers(1, 65535), payloads, st.booleans())
def test_a_message_is_sent_as_mqtt_says(topic, mid, payload, is_5):
    with Ends(is_5) as ends:
        ends.stream.publish(topic, mid, payload)
        assert ends.stream.flush()
        sent = publish(topic, mid, payload, properties=b"" if is_5 else None)
        assert ends.broker.recv(len(sent) + 1) == sent


@pytest.mark.parametrize(
    ("wire", "is_5", "expected"),
    [
        (packet(0x40, b"\x12\x34"), True, (0x1234, 0)),
        (packet(0x40, b"\x12\x34"), False, (0x1234, 0)),
        (packet(0x40, b"\x12\x34\x87"), True, (0x1234, 0x87)),
        (packet(0x40, b"\x12\x34\x10\x03\x1f\x00\x00"), True, (0x1234, 0x10)),
        (packet(0x40, b"\x12\x34\x87"), False, None),  # which MQTT 3.1.1 does not know
        (packet(0x40, b"\x12"), True, None),
        (packet(0x40, b""), True, None),
        (packet(0x90, b"\x12\x34\x00\x01"), True, None),
    ],
)
def test_a_puback_is_taken_from_paho_and_nothing_else_is(wire, is_5, expected):
    with Ends(is_5) as ends:
        ends.broker.sendall(wire)
        assert list(ends.stream.read(1)) == [None]
        assert ends.stream.take_puback() == expected
        assert ends.for_paho() == (wire if expected is None else b"")


@pytest.mark.parametrize("is_5", [True, False])
def test_no_more_is_received_while_whole_packets_wait(is_5):
    """However many small ones a broker sends to somebody who takes few at a time."""
    wire = publish(b"t", 1, b"", properties=b"" if is_5 else None)
    with Ends(is_5) as ends:
        ends.broker.setblocking(False)
        sent = heard = 0
        for _ in range(200):
            with suppress(BlockingIOError):
                while True:
                    sent += ends.broker.send((wire * 10_000)[sent % len(wire) :])
            for run in ends.stream.read(100):
                heard += len(run.topics)
                break  # as a link does that is full
            assert len(ends.stream._received) < 2 * 65536
        while heard < sent // len(wire):
            heard += sum(len(run.topics) for run in ends.stream.read(100))
        assert heard == sent // len(wire)
