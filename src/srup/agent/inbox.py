"""What waits for the thread that takes an agent's turns: messages from the transport, and work from other threads."""

import queue
from collections.abc import Callable

from ..transport.base import Delivery
from .transaction import Transaction

__all__ = ["Inbox", "Work"]

Work = Callable[[Transaction], object]


def _look(transaction: Transaction) -> None:
    """Wake the thread that takes the turns, and have it look at all that may be due."""
    transaction.due = True


class Inbox:
    """First in, first out. ``put`` and ``wake`` may be called on any thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Delivery | Work] = queue.SimpleQueue()
        self._ring: Callable[[], object] | None = None

    def __len__(self) -> int:
        return self._queue.qsize()

    def listen(self, ring: Callable[[], object] | None) -> None:
        """Have ``ring`` called after each thing that is put in; for whoever does not wait in :meth:`get`."""
        self._ring = ring

    def put(self, item: Delivery | Work) -> None:
        """Append a message, or work that is called with the transaction of its turn."""
        self._queue.put(item)
        if self._ring is not None:
            self._ring()

    def wake(self) -> None:
        """Have a turn taken even if there is nothing else to do."""
        self.put(_look)

    def get(self, patience: float) -> Delivery | Work | None:
        """Take the next thing; None if there is nothing after ``patience`` seconds."""
        if patience <= 0.0 and not self._queue.qsize():
            return None
        try:
            return self._queue.get(patience > 0.0, patience)
        except queue.Empty:
            return None
