"""A connection's bytes in few system calls: whatever has come is received at once, and what goes out is sent at once.

paho reads each packet in four pieces and sends each one by itself. Every system call gives up the GIL, which a busy
thread does not give back for milliseconds. So a :class:`Stream` stands between paho and its socket. It also opens the
ordinary PUBLISH packets, which are nearly all that a server receives; every other packet is paho's to read.
"""

import socket
import ssl
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["Publication", "Stream"]

_CHUNK: Final = 65536  # bytes that are received at a time
_LONGEST_HEADER: Final = 5  # bytes: the type, then the remaining length; MQTT 5.0, section 2.1
_PUBLISH: Final = 0x30  # the type byte, less the flags DUP and RETAIN; MQTT 5.0, section 3.3.1
_QOS_1: Final = 0x02
_TYPE_AND_QOS: Final = 0xF6


class Publication(NamedTuple):
    """A PUBLISH packet. ``mid`` is its packet id; 0 with QoS 0, which nobody acknowledges."""

    topic: bytes
    mid: int
    payload: bytes


class Stream:
    """A socket for paho, which may call the methods up to ``setsockopt``; ``sock`` is connected, TLS included.

    ``is_5`` says that MQTT 5 is spoken, else 3.1.1. A stream is used by one thread at a time.
    """

    __slots__ = ("_for_paho", "_is_5", "_outgoing", "_over", "_received", "_sock")

    def __init__(self, sock: socket.socket, is_5: bool) -> None:
        self._sock = sock
        self._is_5 = is_5
        self._received = bytearray()  # and no whole packet yet
        self._for_paho = b""
        self._outgoing = bytearray()
        self._over = False  # nothing more will come

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

    def read(self) -> Iterator[Publication | None]:
        """Receive what has come; give each whole packet in order, opened, or None for one that is paho's to read now.

        The end of the connection is paho's to hear, too.
        """
        self._receive()
        received, begin = self._received, 0
        try:
            while True:
                header = _variable(received, begin + 1)
                if header is None and len(received) - begin > _LONGEST_HEADER:
                    header = 0, begin + _LONGEST_HEADER + 1  # no length has so many bytes, and paho will say so
                if header is None or sum(header) > len(received):
                    break
                size, body = header
                packet, begin = begin, body + size
                opened = self._opened(received[packet], received[body:begin])
                if opened is None:
                    self._for_paho += received[packet:begin]
                yield opened
        finally:
            del received[:begin]
        if self._over:
            yield None

    def _receive(self) -> None:
        try:
            while not self._over:
                chunk = self._sock.recv(_CHUNK)
                self._received += chunk
                self._over = not chunk
                # What TLS has decrypted already does not make the socket readable again.
                if not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
                    return
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._over = True

    def _opened(self, first: int, body: bytearray) -> Publication | None:
        """Open an ordinary PUBLISH packet (MQTT 5.0, section 3.3); None for any other, and for what looks damaged."""
        if first & _TYPE_AND_QOS not in (_PUBLISH, _PUBLISH | _QOS_1):
            return None
        topic_end = at = 2 + int.from_bytes(body[:2], "big")
        mid = 0
        if first & _QOS_1:
            at += 2
            mid = int.from_bytes(body[topic_end:at], "big")
        properties = _variable(body, at) if self._is_5 else (0, at)
        if properties is None or topic_end == 2 or (first & _QOS_1 and not mid):
            return None
        payload = properties[1] + properties[0]  # no property means anything to us
        return Publication(bytes(body[2:topic_end]), mid, bytes(body[payload:])) if payload <= len(body) else None


def _variable(buffer: bytearray, at: int) -> tuple[int, int] | None:
    """Read a variable byte integer (MQTT 5.0, section 1.5.5): value and end; None if it does not end in four bytes."""
    value = shift = 0
    for byte in buffer[at : at + 4]:
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    return None
