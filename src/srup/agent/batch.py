"""Messages that are verified together and acknowledged together."""

from collections.abc import Callable

from ..transport.base import Deliveries, Delivery

__all__ = ["Batch"]


class Batch:
    """The ``topics`` and ``wires`` of messages, in order, and the ``acks`` that settle them, which may be fewer."""

    __slots__ = ("acks", "topics", "wires")

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.wires: list[bytes] = []
        self.acks: list[Callable[[], None]] = []

    def add(self, item: Delivery | Deliveries) -> int:
        """Append what has arrived; return how many messages there are now."""
        if isinstance(item, Deliveries):
            self.topics += item.topics
            self.wires += item.payloads
        else:
            self.topics.append(item.topic)
            self.wires.append(item.payload)
        self.acks.append(item.ack)
        return len(self.wires)
