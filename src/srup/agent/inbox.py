"""What waits for the thread that takes an agent's turns: messages from the transport, and work from other threads."""

import queue
import threading
from collections.abc import Callable
from typing import Final

from ..transport.base import Deliveries, Delivery
from .transaction import Transaction

__all__ = ["MESSAGES", "Inbox", "Item", "Work", "count"]

Work = Callable[[Transaction], object]
Item = Deliveries | Delivery | Work

MESSAGES: Final = (Deliveries, Delivery)
"""The kinds of item that come from the transport."""


def _look(transaction: Transaction) -> None:
    """Wake the thread that takes the turns, and have it look at all that may be due."""
    transaction.due = True


def count(item: Item) -> int:
    """Return how many things stand in for this one: each message is one."""
    return len(item) if type(item) is Deliveries else 1


class Inbox:
    """First in, first out. ``put`` and ``wake`` may be called on any thread. Its length is :func:`count` of all.

    ``messages`` are those of it that came from the transport.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._more = 0  # how many more things there are than the queue says
        self._heard = 0  # messages that were put in, which only the transport does,
        self._taken = 0  # and taken out, which only the thread of the turns does
        self._ring: Callable[[], object] | None = None

    def __len__(self) -> int:
        return self._queue.qsize() + self._more

    @property
    def messages(self) -> int:
        """How many messages wait."""
        return self._heard - self._taken

    def listen(self, ring: Callable[[], object] | None) -> None:
        """Have ``ring`` called after each thing that is put in; for whoever does not wait in :meth:`get`."""
        self._ring = ring

    def put(self, item: Item) -> None:
        """Append messages, or work that is called with the transaction of its turn."""
        number = count(item)
        if number != 1:
            self._note(number - 1)
        if isinstance(item, MESSAGES):
            self._heard += number
        self._queue.put(item)
        if self._ring is not None:
            self._ring()

    def wake(self) -> None:
        """Have a turn taken even if there is nothing else to do."""
        self.put(_look)

    def get(self, patience: float) -> Item | None:
        """Take what is next; None if there is nothing after ``patience`` seconds."""
        if patience <= 0.0 and self._queue.empty():
            return None
        try:
            item = self._queue.get(patience > 0.0, patience)
        except queue.Empty:
            return None
        number = count(item)
        if number != 1:
            self._note(1 - number)
        if isinstance(item, MESSAGES):
            self._taken += number
        return item

    def _note(self, more: int) -> None:
        with self._counting:
            self._more += more
