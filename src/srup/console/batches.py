"""Orders that were posted together, so that a page can show what becomes of them."""

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

__all__ = ["Batch", "Batches"]

_REMEMBERED: Final = 200


class Batch(NamedTuple):
    """Orders that ``by`` has posted ``at`` a Unix time, by their ids; ``what`` says what was ordered.

    ``failed`` has those devices for which nothing was posted, and why.
    """

    what: str
    by: str
    at: float
    orders: tuple[str, ...]
    failed: tuple[tuple[int, str], ...] = ()


class Batches:
    """The newest of them, by number; a console that is started again knows none. Threads may share one of these."""

    def __init__(self) -> None:
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()

    def add(self, batch: Batch) -> int:
        """Keep one; return its number."""
        with self._lock:
            self._count += 1
            self._batches[self._count] = batch
            while len(self._batches) > _REMEMBERED:
                self._batches.popitem(last=False)
            return self._count

    def find(self, number: int) -> Batch | None:
        """Return the one with this number, if it is remembered."""
        return self._batches.get(number)

    def of_device(self, device: int, most: int = 20) -> list[tuple[str, Batch]]:
        """Return the newest orders for a device, with what they belong to."""
        prefix = f"{device:x}."
        found: list[tuple[str, Batch]] = []
        with self._lock:
            batches = list(reversed(self._batches.values()))
        for batch in batches:
            found += [(order, batch) for order in batch.orders if order.startswith(prefix)]
            if len(found) >= most:
                break
        return found[:most]
