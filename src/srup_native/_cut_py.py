"""Pure twin of ``_cut.pyx`` and the text of their contract: PUBLISH packets of MQTT, cut from what was received."""

from typing import Final

__all__ = ["cut"]

_LONGEST_HEADER: Final = 5  # bytes: the type, then the remaining length; MQTT 5.0, section 2.1
_PUBLISH: Final = 3  # the upper half of the first byte; MQTT 5.0, section 3.3.1
_QOS: Final = 0x06
_QOS_1: Final = 0x02
_PUBACK: Final = b"\x40\x02"  # the packet id follows (MQTT 5.0, section 3.4)

Run = tuple[int, list[str | bytes], list[bytes], bytes]


def cut(received: bytes, begin: int, is_5: bool, limit: int, most: int) -> Run:
    """Return what stands at ``begin``: its end, and of a run of PUBLISH packets topics, payloads and acknowledgements.

    A run ends before anything else, a packet of another QoS, one that is not whole or must not come, and after ``most``
    packets (at least 1). Acknowledgements are the PUBACK packets, one after the other; none with QoS 0. A topic that is
    not UTF-8 comes as bytes, in a run of its own. Without topics there is no run: from ``begin`` to the end stands one
    packet of another type, or nothing if none is whole.

    ``is_5`` says that the packets are of MQTT 5, else 3.1.1. ``limit`` is how many bytes each may have. ValueError for
    a packet at ``begin`` that must not come, IndexError if ``begin`` lies outside of ``received``, TypeError if that is
    not bytes.
    """
    if type(received) is not bytes:
        raise TypeError(f"what was received is bytes, not {type(received).__name__}")
    if not 0 <= begin <= len(received):
        raise IndexError(f"{begin} lies outside of the {len(received)} bytes that were received")
    topics: list[str | bytes] = []
    payloads: list[bytes] = []
    acknowledgements = bytearray()
    first, end = -1, begin
    while len(topics) < most:
        try:
            packet_end = _end(received, end, limit)
            if packet_end == end or (first >= 0 and (received[end] ^ first) & (0xF0 | _QOS)):
                break
            if received[end] >> 4 != _PUBLISH:
                return packet_end, [], [], b""
            topic, mid, payload = _open(received, end, packet_end, is_5)
        except ValueError:
            if topics:
                break
            raise
        if type(topic) is bytes and topics:
            break
        first, end = received[end], packet_end
        topics.append(topic)
        payloads.append(payload)
        if first & _QOS:
            acknowledgements += _PUBACK + mid
        if type(topic) is bytes:
            break
    return end, topics, payloads, bytes(acknowledgements)


def _end(received: bytes, begin: int, limit: int) -> int:
    """Return where the packet at ``begin`` ends, ``begin`` if it is not whole; ValueError if it must not come."""
    size, body = _variable(received, begin + 1, len(received))
    if body == 0:
        if len(received) - begin >= _LONGEST_HEADER:
            raise ValueError("a packet without a valid length")
        return begin
    end = body + size
    if end - begin > limit:
        raise ValueError(f"a packet of {end - begin} bytes, although {limit} is our limit")
    return end if end <= len(received) else begin


def _open(received: bytes, begin: int, end: int, is_5: bool) -> tuple[str | bytes, bytes, bytes]:
    """Return topic, packet id and payload of a PUBLISH packet (MQTT 5.0, section 3.3); ValueError for a bad one."""
    quality = received[begin] & _QOS
    if quality not in (0, _QOS_1):
        raise ValueError("a message with QoS 2, which nobody subscribed with")
    _, body = _variable(received, begin + 1, end)
    topic = body + 2
    payload = topic_end = topic + int.from_bytes(received[body:topic], "big")
    if quality:
        payload += 2
    mid = received[topic_end:payload]
    good = topic_end > topic and payload <= end and (not quality or mid != b"\0\0")
    if good and is_5:
        properties, payload = _variable(received, payload, end)
        good = payload > 0
        payload += properties  # no property means anything to us
    if not good or payload > end:
        raise ValueError("a damaged message")
    name = received[topic:topic_end]
    try:
        return name.decode(), mid, received[payload:end]
    except UnicodeDecodeError:
        return name, mid, received[payload:end]


def _variable(buffer: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a variable byte integer (MQTT 5.0, section 1.5.5): value and end, which is 0 if it does not end there."""
    value = shift = 0
    for byte in buffer[at : min(at + 4, end)]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, 0
