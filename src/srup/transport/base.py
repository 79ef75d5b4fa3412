"""What every transport promises: bytes to topics and back, at least once, over a link that comes and goes.

The network is not trusted and the link is not reliable. So a transport may deliver a message twice or never, it may
hand one's own messages back, and a message counts as delivered when the partner *answers* it, not when it was sent.
"""

import logging
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from srup.errors import TransportError

__all__ = ["MAX_QUEUED", "Deliveries", "Delivery", "Fence", "Transport"]

MAX_QUEUED: Final = 100_000

log: Final = logging.getLogger("srup.transport")


class Delivery(NamedTuple):
    """A message that arrived, still owed to the broker.

    ``ack()`` settles it: from any thread, at any later time, best in the order of arrival (MQTT 5.0, section 4.6). A
    second call does nothing, a call after the connection went away neither. What is not settled comes again with the
    next connection, if the broker can.
    """

    topic: str
    payload: bytes
    ack: Callable[[], None]


class Deliveries:
    """Messages that arrived together, in order: their ``topics`` and ``payloads``. ``ack()`` settles all of them."""

    __slots__ = ("ack", "payloads", "topics")

    def __init__(self, topics: list[str], payloads: list[bytes], ack: Callable[[], None]) -> None:
        self.topics = topics
        self.payloads = payloads
        self.ack = ack

    def __len__(self) -> int:
        return len(self.payloads)


class Transport(Protocol):
    """A client of one broker with a session that outlives connections. Every method may be called from any thread."""

    @property
    def faults(self) -> int:
        """How often a callback raised; each was logged and went no further (T8)."""

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """Connect in the background, again and again; return at once. TransportError if it was started before.

        The callbacks run on the transport's thread and only enqueue. ``on_state(connected, why)`` reports changes;
        once it says True, the subscriptions made so far hear, and while the broker refuses one of them it says False. A
        message whose ``on_delivery`` raises is settled: it would raise again, and enough of them would fill the
        broker's window and silence the link.
        """

    def subscribe(self, topic_filter: str) -> None:
        """Hear what matches; remembered, also before :meth:`start` and offline. TransportError if it is no filter."""

    def unsubscribe(self, topic_filter: str) -> None:
        """Stop hearing what matches; remembered in the same way. Nothing happens if it was not subscribed."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        on_settled: Callable[[], object] | None = None,
        on_refused: Callable[[TransportError], object] | None = None,
    ) -> None:
        """Send with QoS 1, not retained; never blocks. Queued while offline, and sent in the order of the calls.

        ``on_settled()`` is called once, on the transport's thread, when the broker has acknowledged the message (with
        MQTT 5 perhaps by refusing it) and it is not sent again; never if the transport stops before. ``on_refused`` is
        called instead, with the reason, when the message is given up because the broker takes none of this size.
        TransportError when stopped, when the queue is full, or if the topic cannot be published to;
        MessageTooLargeError when it is known already that the broker will not take it.
        """

    def stop(self, timeout: float = 5.0) -> None:
        """Send what can be sent within ``timeout`` seconds, disconnect and end the thread; the session remains.

        A second call does nothing. What could not be sent is dropped, and the log says how much that was.
        """


class Fence:
    """The callbacks given to a transport, which may raise without harm to the link (T8)."""

    def __init__(
        self,
        on_delivery: Callable[[Delivery], None],
        on_state: Callable[[bool, str], None],
        on_deliveries: Callable[[Deliveries], None] | None = None,
    ) -> None:
        self.faults = 0
        self._on_delivery = on_delivery
        self._on_deliveries = on_deliveries
        self._on_state = on_state
        self._state = (False, "")

    def deliver(self, delivery: Delivery) -> None:
        """Hand a delivery over; settle it if it could not be."""
        try:
            self._on_delivery(delivery)
        except Exception:  # noqa: BLE001 - whatever a message provokes in the application, the link stays up
            self.fault("on_delivery raised for a message on %a", delivery.topic)
            delivery.ack()

    @property
    def together(self) -> bool:
        """Whether what comes together is to be handed over together."""
        return self._on_deliveries is not None

    def deliver_together(self, deliveries: Deliveries) -> None:
        """Do the same with what came together; settle all of it if it could not be."""
        assert self._on_deliveries is not None  # noqa: S101 - whoever calls has asked
        try:
            self._on_deliveries(deliveries)
        except Exception:  # noqa: BLE001 - as above
            self.fault("on_deliveries raised for %d messages, the first on %a", len(deliveries), deliveries.topics[0])
            deliveries.ack()

    def settle(self, topic: str, on_settled: Callable[[], object]) -> None:
        """Call what is to be called when a message has been acknowledged, or refused."""
        try:
            on_settled()
        except Exception:  # noqa: BLE001 - as above
            self.fault("on_settled or on_refused raised for a message on %a", topic)

    def report(self, connected: bool, why: str) -> None:
        """Report a state, unless it is the one reported last."""
        if (connected, why) == self._state:
            return
        self._state = (connected, why)
        try:
            self._on_state(connected, why)
        except Exception:  # noqa: BLE001 - as above
            self.fault("on_state raised")

    def fault(self, message: str, *arguments: object) -> None:
        """Count and log the exception that is being handled."""
        self.faults += 1
        log.exception(message, *arguments)

    @property
    def connected(self) -> bool:
        """What was reported last."""
        return self._state[0]
