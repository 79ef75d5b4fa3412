"""A connection's bytes in few system calls: whatever has come is received at once, and what goes out is sent at once.

paho reads each packet in four pieces and sends each one by itself. Every system call gives up the GIL, which a busy
thread does not give back for milliseconds. So a :class:`Stream` stands between paho and its socket. It also opens and
makes the packets that are nearly all there are, PUBLISH and PUBACK, of which paho would make a dozen objects each;
every other packet is paho's. And it bounds what a hostile broker can make us keep: no packet is longer than ``limit``,
and none begins an exchange of QoS 2, which nobody subscribes with and for which paho would store the message.
"""

import socket
import ssl
from collections.abc import Iterator
from typing import Final, NamedTuple

from srup_native import cut

__all__ = ["ACKNOWLEDGEMENT", "Run", "Stream"]

_CHUNK: Final = 65536  # bytes that are received at a time
_PUBLISH_QOS_1: Final = b"\x32"  # MQTT 5.0, section 3.3.1
_PUBACK: Final = b"\x40"  # a packet id of two bytes follows, with MQTT 5 perhaps a reason code; MQTT 5.0, section 3.4

ACKNOWLEDGEMENT: Final = 4
"""The bytes of a PUBACK packet (MQTT 5.0, section 3.4)."""


class Run(NamedTuple):
    """PUBLISH packets that came one behind the other. A topic that is not UTF-8 is bytes, and alone.

    ``acknowledgements`` are the packets that settle them, of :data:`ACKNOWLEDGEMENT` bytes each; none with QoS 0.
    """

    topics: list[str | bytes]
    payloads: list[bytes]
    acknowledgements: bytes


class Stream:
    """A socket for paho, which may call the methods up to ``setsockopt``; ``sock`` is connected, TLS included.

    ``is_5`` says that MQTT 5 is spoken, else 3.1.1. ``limit`` is how many bytes a packet may have. ``fault`` says what
    the broker has sent that it must not; nothing is read after that. ``heard`` becomes true when something has come. A
    stream is used by one thread at a time.
    """

    __slots__ = (
        "_drained",
        "_for_paho",
        "_is_5",
        "_limit",
        "_outgoing",
        "_over",
        "_received",
        "_sock",
        "fault",
        "heard",
    )

    def __init__(self, sock: socket.socket, is_5: bool, limit: int) -> None:
        self.fault: str | None = None
        self.heard = False
        self._sock = sock
        self._is_5 = is_5
        self._limit = limit
        self._received = bytearray()  # and no whole packet yet
        self._for_paho = b""
        self._outgoing = bytearray()
        self._over = False  # nothing more will come
        self._drained = True  # read() has given every whole packet that was received; as long as it has not, it gives
        # those before it receives anything, so that what is kept here stays bounded however seldom it is called

    def recv(self, size: int) -> bytes:
        """Return what is left of a packet that is paho's to read, b"" at the end, or raise BlockingIOError."""
        if not (self._for_paho or self._over):
            raise BlockingIOError
        piece, self._for_paho = self._for_paho[:size], self._for_paho[size:]
        return piece

    def send(self, data: bytes | bytearray) -> int:
        """Take all of this; :meth:`flush` sends it."""
        self._outgoing += data
        return len(data)

    def publish(self, topic: bytes, mid: int, payload: bytes) -> None:
        """Take a message that is to be sent with QoS 1 and without properties."""
        head = b"%b%b%b" % (len(topic).to_bytes(2, "big"), topic, mid.to_bytes(2, "big"))
        if self._is_5:
            head += b"\0"
        self._outgoing += b"%b%b%b%b" % (_PUBLISH_QOS_1, _to_variable(len(head) + len(payload)), head, payload)

    def take_puback(self) -> tuple[int, int] | None:
        """Take the next packet from paho if it is a PUBACK: the packet id and the reason code; None if it is none."""
        packet = self._for_paho
        if not packet.startswith(_PUBACK):
            return None
        size, body = _variable(packet, 1)
        if size < 2 or (size > 2 and not self._is_5):
            return None
        self._for_paho = packet[body + size :]
        return int.from_bytes(packet[body : body + 2], "big"), packet[body + 2] if size > 2 else 0

    def close(self) -> None:
        """Send what can be sent without waiting, and close the socket."""
        self.flush()
        self._sock.close()

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Pass this on to the socket."""
        self._sock.setblocking(flag)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Pass this on to the socket."""
        self._sock.setsockopt(level, option, value)

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""
        return len(self._outgoing)

    def flush(self) -> bool:
        """Send as much as the socket takes now; tell whether the connection is still there."""
        try:
            if self._outgoing and not self._over:
                del self._outgoing[: self._sock.send(self._outgoing)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._over = True
        return not self._over

    def read(self, most: int) -> Iterator[Run | None]:
        """Receive what has come; give its packets in order, in runs of up to ``most``, or None: paho is to read one.

        The end of the connection is paho's to hear, too; a ``fault`` is the caller's to look at.
        """
        has_received = self._drained  # in this call
        if has_received:
            self._receive()
        self._drained = False
        received, begin = bytes(self._received), 0  # slices of it are what goes on, without another copy
        try:
            while self.fault is None:
                end, topics, payloads, acknowledgements = cut(received, begin, self._is_5, self._limit, most)
                if end == begin:
                    if has_received:
                        self._drained = True
                        break
                    has_received = True
                    del self._received[:begin]
                    self._receive()
                    received, begin = bytes(self._received), 0
                    continue
                packet, begin = begin, end
                if topics:
                    yield Run(topics, payloads, acknowledgements)
                else:
                    self._for_paho += received[packet:end]
                    yield None
        except ValueError as error:
            self.fault, begin = str(error), len(received)
        finally:
            del self._received[:begin]
        if self._over and self.fault is None:
            yield None

    def _receive(self) -> None:
        try:
            while not self._over:
                chunk = self._sock.recv(_CHUNK)
                self._received += chunk
                self._over = not chunk
                self.heard = True
                # What TLS has decrypted already does not make the socket readable again.
                if not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
                    return
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._over = True


def _to_variable(value: int) -> bytes:
    """Write a variable byte integer (MQTT 5.0, section 1.5.5)."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _variable(buffer: bytes, at: int) -> tuple[int, int]:
    """Read a variable byte integer (MQTT 5.0, section 1.5.5): value and end, which is 0 if it does not end there."""
    value = shift = 0
    for byte in buffer[at : at + 4]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, 0
