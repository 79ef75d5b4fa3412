"""SRUP messages are found in packet captures, whatever TCP has done to them."""

import contextlib
import io
import itertools
import socket

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import srup
from srup.capture import is_capture, messages_in

from .fleet import key_of

CLIENT, BROKER = (socket.inet_aton("10.0.0.2"), 40000), (socket.inet_aton("10.0.0.1"), 1883)
WIRES = [
    srup.encode(srup.Action(sequence_id=n, sender_id=0x5E, token=b"t" * 40 * n, action_id=n), key_of(0x5E))
    for n in range(1, 5)
]
START = 0xFFFFFF00  # the sequence numbers wrap


def length(size):
    out = bytearray()
    while True:
        size, byte = divmod(size, 128)
        out.append(byte | (0x80 if size else 0))
        if not size:
            return bytes(out)


def packet(first, body):
    return bytes((first,)) + length(len(body)) + body


def publish(wire, topic=b"SRUP/d1", qos=1, properties=b""):
    body = len(topic).to_bytes(2, "big") + topic + (b"\0\x07" if qos else b"") + properties + wire
    return packet(0x30 | qos << 1, body)


SESSION = (
    packet(0x10, b"\0\x04MQTT\x05\x02\0\x3c\0\0\x01c")
    + publish(WIRES[0])
    + packet(0xC0, b"")
    + publish(WIRES[1], qos=0, properties=b"\0")
    + publish(b"an elephant", topic=b"zoo")
    + publish(WIRES[2], properties=b"\x03\x23\0\x01")
    + publish(WIRES[3])
)


def frame(number, data, ends=(CLIENT, BROKER), flags=dpkt.tcp.TH_ACK):
    (source, sport), (destination, dport) = ends
    tcp = dpkt.tcp.TCP(sport=sport, dport=dport, seq=number & 0xFFFFFFFF, flags=flags, data=data)
    ip = dpkt.ip.IP(src=source, dst=destination, p=dpkt.ip.IP_PROTO_TCP, data=tcp)
    ip.len = len(ip)
    return ip


def capture(packets, link=1, writer=dpkt.pcap.Writer):
    file = io.BytesIO()
    out = writer(file, linktype=link)
    for at, ip in enumerate(packets, 1):
        out.writepkt(bytes(dpkt.ethernet.Ethernet(data=ip) if link == 1 else ip), ts=float(at))
    return file.getvalue()


def found(content):
    assert is_capture(content)
    return [message.wire for message in messages_in(content)]


def segments(cuts, data=SESSION):
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [(START + begin, data[begin:end]) for begin, end in itertools.pairwise(edges)]


@given(st.lists(st.integers(0, 2000), max_size=12), st.data())
def test_segments_may_be_cut_repeated_and_out_of_order(cuts, data):
    parts = segments(cuts)
    sent = [parts[0], *data.draw(st.permutations(parts[1:])), *data.draw(st.lists(st.sampled_from(parts), max_size=4))]
    syn = frame(START - 1, b"", flags=dpkt.tcp.TH_SYN)
    assert found(capture([syn, *(frame(*part) for part in sent)])) == WIRES


@pytest.mark.parametrize(("link", "writer"), [(1, dpkt.pcap.Writer), (101, dpkt.pcap.Writer), (1, dpkt.pcapng.Writer)])
def test_forms_of_captures(link, writer):
    content = capture([frame(*part) for part in segments([100, 900])], link, writer)
    [first, *_] = messages_in(content)
    assert (first.topic, first.source, first.destination) == ("SRUP/d1", "10.0.0.2:40000", "10.0.0.1:1883")
    assert found(content) == WIRES


def test_a_capture_may_begin_in_the_middle():
    begin = SESSION.index(publish(WIRES[1], qos=0, properties=b"\0"))
    assert found(capture([frame(START, SESSION[begin:])])) == WIRES[1:]


def test_both_directions_are_told_apart():
    there, back = publish(WIRES[0]), publish(WIRES[1])
    packets = [
        frame(9, there[:50]),
        frame(9, back[:50], (BROKER, CLIENT)),
        frame(59, there[50:]),
        frame(59, back[50:], (BROKER, CLIENT)),
    ]
    assert found(capture(packets)) == WIRES[:2]


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=5))
def test_other_traffic_is_no_trouble(data, cuts):
    for wire in found(capture([frame(*part) for part in segments(cuts, data)] if data else [])):
        assert isinstance(wire, bytes)


def test_a_damaged_capture_is_a_value_error():
    content = capture([frame(START, SESSION)])
    assert found(content) == WIRES
    for cut in range(len(content)):
        if is_capture(content[:cut]):
            with contextlib.suppress(ValueError):
                left = found(content[:cut])
                assert left == WIRES[: len(left)]
    with pytest.raises(ValueError, match="a packet capture that cannot be read"):
        list(messages_in(content[:10]))
    with pytest.raises(ValueError, match="link layer 105"):
        list(messages_in(capture([], link=105)))
