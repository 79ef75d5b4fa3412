"""When a client asks its broker for a sign of life, and when it takes the connection for dead."""

from enum import Enum

__all__ = ["PING", "KeepAlive", "Verdict"]

PING = b"\xc0\0"
"""The bytes of a PINGREQ packet (MQTT 5.0, section 3.12)."""


class Verdict(Enum):
    """What is to be done now."""

    WAIT = "nothing"
    ASK = "send a PINGREQ"
    GIVE_UP = "the broker is silent"


class KeepAlive:
    """Of one connection, which began ``now`` and is to be asked about every so many ``seconds``.

    Whoever has no room for what comes does not read, and hears no answer: he goes on asking, so that the broker keeps
    the connection and the system notices when nobody takes what is sent.
    """

    __slots__ = ("_asked", "_listened", "_waiting", "seconds")

    def __init__(self, seconds: float, now: float) -> None:
        self.seconds = seconds
        self._asked = now
        self._waiting = False  # nothing has come since we asked
        self._listened = True  # all the time since then

    def check(self, now: float, *, heard: bool, listens: bool) -> Verdict:
        """Decide what to do: ``heard`` whether anything has come since the last call, ``listens`` if it would be read.

        Times are in seconds, on any clock that only goes forward.
        """
        self._waiting = self._waiting and not heard
        self._listened = self._listened and listens
        if now - self._asked < self.seconds:
            return Verdict.WAIT
        if self._waiting and self._listened:
            return Verdict.GIVE_UP
        self._asked, self._waiting, self._listened = now, True, listens
        return Verdict.ASK
