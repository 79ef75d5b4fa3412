"""Which sizes of packets a broker takes: what it says, and what is found out by what it hangs up on."""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from srup.errors import MessageTooLargeError, TransportError

__all__ = ["Message", "PacketSizes", "packet_size"]

_LONGEST: Final = 268_435_460  # bytes of a packet (MQTT 5.0, section 2.1.4)
_STRIKES: Final = 3  # connections in a row that ended of one and the same message, which is given up then


class Message(NamedTuple):
    """One that is to be sent with QoS 1: ``on_settled`` is called when the broker has it, or ``on_refused``."""

    topic: str
    payload: bytes
    on_settled: Callable[[], object] | None
    on_refused: Callable[[TransportError], object] | None
    size: int  # of its packet


def packet_size(topic: str, payload: bytes) -> int:
    """Return the bytes of a PUBLISH packet without properties in MQTT 5 (section 3.3); one less in 3.1.1."""
    rest = 2 + len(topic.encode()) + 2 + 1 + len(payload)
    return 1 + (1 if rest < 1 << 7 else 2 if rest < 1 << 14 else 3 if rest < 1 << 21 else 4) + rest


class PacketSizes:
    """What is known of one broker. In MQTT 3.1.1 one that does not take a message, because it is too large, hangs up.

    So from the second connection that does not last, what was in flight is sent one by one, and a message that alone
    was in flight is suspected. None of a size that the broker has taken before is, for then something else is wrong.
    Nor is any other message of that size tried until a connection has lasted.
    """

    __slots__ = ("_announced", "_hung_up_on", "_largest", "_strikes", "largest_allowed", "one_by_one", "suspect")

    def __init__(self) -> None:
        self.largest_allowed: float = _LONGEST
        """Bytes of a packet that is worth sending."""
        self.one_by_one = 0
        """So many messages are sent one at a time, for one of them may end the connection."""
        self.suspect: Message | None = None
        """Which one connections have ended of."""
        self._announced: float = _LONGEST  # as far as it has said
        self._hung_up_on = float("inf")  # the smallest packet that it hangs up on, as far as we have found out
        self._strikes = 0  # how many connections have ended of the suspect
        self._largest = 0  # the largest packet that the broker has taken

    def announce(self, most: int) -> None:
        """Take note of what the broker says that it takes; 0 for anything."""
        self._announced = most or _LONGEST
        self._limit()

    def forget_hang_ups(self) -> None:
        """Try all sizes again: the broker may have been set up in another way."""
        self._hung_up_on = float("inf")
        self._limit()

    def _limit(self) -> None:
        self.largest_allowed = min(self._announced, self._hung_up_on - 1)

    def too_large(self, message: Message, where: str) -> MessageTooLargeError:
        """Return why a message cannot be sent to the broker there."""
        if message.size > self._announced:
            why = f"takes packets of at most {self._announced} bytes"
        else:
            why = f"ends the connection when it gets a message of {self._hung_up_on} bytes, and may take none so large"
        return MessageTooLargeError(f"{where} {why}; a message on {message.topic!a} needs {message.size}")

    def taken(self, message: Message) -> None:
        """Take note that the broker has taken a message."""
        self._largest = max(self._largest, message.size)
        self.one_by_one = max(0, self.one_by_one - 1)
        if message is self.suspect:
            self.suspect = None

    def culprit(self, in_flight: Iterable[Message], *, said_so: bool) -> Message | None:
        """Return which of these, as they were in flight when the connection was cut, is to be given up, if any is.

        ``said_so``: the broker has said that a packet was too large.
        """
        message, *others = in_flight
        if others or not self.one_by_one:
            self.one_by_one = 1 + len(others)
            return None
        if message.size <= self._largest:
            return None
        self._strikes = self._strikes + 1 if message is self.suspect else 1
        self.suspect = message
        if self._strikes < _STRIKES and not said_so:
            return None
        self.suspect, self.one_by_one, self._hung_up_on = None, 0, message.size
        self._limit()
        return message
