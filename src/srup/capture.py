"""The SRUP messages in a packet capture (pcap or pcapng), as they went over MQTT without TLS.

Each direction of a TCP connection is put in order and cut into MQTT packets. A capture may begin in the middle of a
connection; what comes before the first packet that makes sense is skipped then.
"""

import io
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from .codec import peek
from .errors import DecodeError
from .extras import missing_named

__all__ = ["Captured", "is_capture", "messages_in"]

_MAGICS: Final = frozenset(
    bytes.fromhex(magic) for magic in ("a1b2c3d4", "d4c3b2a1", "a1b23c4d", "4d3cb2a1", "0a0d0d0a")
)
_PUBLISH: Final = 3
_ROOT: Final = b"SRUP/"
_LONGEST: Final = 65535 + 65535 + 16  # bytes of an MQTT packet with a message of ours: topic, message, and the rest
_AHEAD: Final = 1024  # segments of a direction that wait for one that is missing, at most
_LINKS: Final = {0: "loopback.Loopback", 1: "ethernet.Ethernet", 113: "sll.SLL", 276: "sll2.SLL2"}


class Captured(NamedTuple):
    """A message in a capture: when it was seen (Unix time), between which addresses, its topic and its bytes."""

    at: float
    source: str
    destination: str
    topic: str
    wire: bytes


def is_capture(content: bytes) -> bool:
    """Return whether a file with this content is a packet capture."""
    return content[:4] in _MAGICS


def messages_in(content: bytes) -> Iterator[Captured]:
    """Give the messages of a capture in the order in which their last bytes were seen.

    ValueError for a capture that is damaged or has another link layer than Ethernet, loopback, Linux cooked or raw IP;
    ModuleNotFoundError, naming the extra, without dpkt.
    """
    with missing_named():
        import dpkt  # type: ignore[import-untyped]
    directions: dict[tuple[bytes, int, bytes, int], _Direction] = {}
    try:
        reader = dpkt.pcap.UniversalReader(io.BytesIO(content))
        link = _link_layer(dpkt, reader.datalink())
        for at, frame in reader:
            try:
                packet = link(frame)
            except (dpkt.UnpackError, struct.error, IndexError):
                continue  # another protocol, or cut short by whoever has captured it
            network: Any = packet if isinstance(packet, dpkt.ip.IP | dpkt.ip6.IP6) else getattr(packet, "data", None)
            segment = getattr(network, "data", None)
            if isinstance(segment, dpkt.tcp.TCP):
                ends = network.src, segment.sport, network.dst, segment.dport
                if segment.flags & dpkt.tcp.TH_SYN or ends not in directions:
                    begin = segment.seq + (1 if segment.flags & dpkt.tcp.TH_SYN else 0)
                    directions[ends] = _Direction(begin)
                for topic, wire in directions[ends].take(segment.seq, bytes(segment.data)):
                    yield Captured(at, _address(*ends[:2]), _address(*ends[2:]), topic, wire)
    except (ValueError, dpkt.Error, struct.error) as error:
        raise ValueError(f"a packet capture that cannot be read: {error}") from None


def _link_layer(dpkt: Any, number: int) -> Any:
    if number in _LINKS:
        module, _, name = _LINKS[number].partition(".")
        return getattr(getattr(dpkt, module), name)
    if number in (12, 101, 228, 229):  # raw IP

        def raw(frame: bytes) -> Any:
            return (dpkt.ip6.IP6 if frame[0] >> 4 == 6 else dpkt.ip.IP)(frame)

        return raw
    raise ValueError(f"link layer {number} is not supported; capture with tcpdump on Ethernet or loopback")


def _address(host: bytes, port: int) -> str:
    text = str(ip_address(host))
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


class _Direction:
    """What one end of a TCP connection sends."""

    def __init__(self, begin: int) -> None:
        self._next = begin & 0xFFFFFFFF
        self._early: dict[int, bytes] = {}
        self._received = bytearray()

    def take(self, number: int, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Take a segment; give the messages that are whole with it."""
        if data and len(self._early) < _AHEAD:
            self._early[number] = max(data, self._early.get(number, b""), key=len)
        while (found := self._following()) is not None:
            self._next = (self._next + len(found)) & 0xFFFFFFFF
            yield from self._cut(found)

    def _following(self) -> bytes | None:
        """Return what follows, of the first segment that reaches beyond what is there; a repetition does not."""
        for number in sorted(self._early, key=lambda number: (number - self._next + 0x80000000) & 0xFFFFFFFF):
            known = (self._next - number) & 0xFFFFFFFF
            if known >= 0x80000000:  # it begins later: something is missing
                if len(self._early) < _AHEAD:
                    return None
                self._next, known = number, 0  # the capture lacks it
                self._received.clear()
            data = self._early.pop(number)
            if known < len(data):
                return data[known:]
        return None

    def _cut(self, more: bytes) -> Iterator[tuple[str, bytes]]:
        received = self._received
        received += more
        begin = 0
        while (header := _length(received, begin + 1)) is not None:
            size, body = header
            if not received[begin] >> 4 or size > _LONGEST:  # no MQTT, or not from its beginning
                begin = len(received)
                break
            if body + size > len(received):
                break
            if received[begin] >> 4 == _PUBLISH:
                yield from _opened(received[begin], bytes(received[body : body + size]))
            begin = body + size
        else:
            if len(received) - begin >= 5:
                begin = len(received)
        del received[:begin]


def _length(buffer: bytearray, at: int) -> tuple[int, int] | None:
    """Read a variable byte integer (MQTT 5.0, section 1.5.5): its value and where it ends; None if it does not."""
    value = 0
    for place, byte in enumerate(buffer[at : at + 4]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return None


def _opened(first: int, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Give the topic and the payload of a PUBLISH (MQTT 5.0, section 3.3) if it is a message of ours."""
    end = 2 + int.from_bytes(body[:2], "big")
    topic = body[2:end]
    if not topic.startswith(_ROOT):
        return
    payload = end + (2 if first & 0x06 else 0)
    properties = _length(bytearray(body), payload)
    places = [payload] if properties is None else [payload, sum(properties)]  # MQTT 3.1.1 has no properties
    for place in places:
        try:
            peek(body[place:])
        except DecodeError:
            continue
        yield topic.decode("utf-8", "replace"), body[place:]
        return
    yield topic.decode("utf-8", "replace"), body[places[-1] :]
