"""What has arrived over a connection and is not settled yet: handed on, counted, bounded, and acknowledged in the end.

Messages that came together are settled together, with all acknowledgements in one piece; nothing is done for each.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, cast

from srup.transport.base import Deliveries, Delivery, Fence
from srup.transport.stream import ACKNOWLEDGEMENT, Run

__all__ = ["RECEIVE_MAXIMUM", "TOGETHER", "Unsettled"]

RECEIVE_MAXIMUM: Final = 1000
"""How many deliveries the broker (version 5) may have open with us."""

TOGETHER: Final = 256
"""How many messages are handed on together at most."""

MAX_OPEN: Final = 16_777_216
"""Bytes of deliveries that are not settled; from then on nothing is read."""

_OVERHEAD: Final = 256  # bytes that a delivery takes besides its payload, about


class Unsettled:
    """The deliveries of one connection, for ``fence``. ``wake`` is called when one was settled, on any thread.

    Everything but what settles a delivery is used by one thread at a time.
    """

    __slots__ = ("_fence", "_settled", "_wake", "bytes", "count")

    def __init__(self, fence: Fence, wake: Callable[[], object]) -> None:
        self.count = 0  # those with a packet id
        self.bytes = 0  # of all
        self._fence = fence
        self._wake = wake
        self._settled: deque[_Ticket] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the broker has sent more than it may (Mosquitto 2.0 does, once one is settled), or than we keep."""
        return self.count > RECEIVE_MAXIMUM or self.bytes > MAX_OPEN

    @property
    def waits(self) -> bool:
        """Whether something was settled and is not acknowledged."""
        return bool(self._settled)

    def deliver(self, run: Run) -> None:
        """Hand messages on."""
        topics, payloads, acknowledgements = run
        size = sum(map(len, payloads)) + _OVERHEAD * len(payloads)
        self.count += len(acknowledgements) // ACKNOWLEDGEMENT
        self.bytes += size
        ticket = (_Ticket if acknowledgements else _PassingTicket)(self, acknowledgements, size)
        if isinstance(topics[0], bytes):  # and alone: MQTT forbids it, so only a broken or hostile broker sends it
            self._fence.fault("a message arrived whose topic is not UTF-8")
            ticket()
        elif self._fence.together:
            self._fence.deliver_together(Deliveries(cast("list[str]", topics), payloads, ticket))
        else:
            for topic, payload in zip(cast("list[str]", topics), payloads, strict=True):
                self._fence.deliver(Delivery(topic, payload, ticket))

    def acknowledgements(self) -> bytes:
        """Return the packets to send for what was settled since the last call, in that order."""
        packets = []
        while self._settled:
            ticket = self._settled.popleft()
            if not ticket.settled:
                ticket.settled = True
                self.bytes -= ticket.size
                self.count -= len(ticket.acknowledgements) // ACKNOWLEDGEMENT
                packets.append(ticket.acknowledgements)
        return b"".join(packets)

    def settle(self, ticket: "_Ticket") -> None:
        """Take note that a delivery is settled. On any thread."""
        self._settled.append(ticket)
        self._wake()


class _Ticket:
    """Settles what came together when it is called, from any thread; once, as the network thread sees to."""

    __slots__ = ("_unsettled", "acknowledgements", "settled", "size")

    def __init__(self, unsettled: Unsettled, acknowledgements: bytes, size: int) -> None:
        self._unsettled = unsettled
        self.acknowledgements = acknowledgements
        self.size = size
        self.settled = False

    def __call__(self) -> None:
        self._unsettled.settle(self)


class _PassingTicket(_Ticket):
    """One for QoS 0, which cannot come again: it counts as settled as well when nobody holds it any more."""

    __slots__ = ()

    def __del__(self) -> None:
        if not self.settled:
            self()
