"""The mailbox of a MemoryStore: for tests and simulations, it keeps what the other mailboxes promise."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Final

from ..errors import StoreError
from ..records import ReportRecord
from .mailbox import CAPACITY, PAGE, Entry, Mailbox, Position, check_post

__all__ = ["MemoryMail", "MemoryMailbox"]


@dataclass
class MemoryMail:
    """What a MemoryStore keeps of a mailbox: orders by id, reports by order, and until when one may ask for them."""

    orders: dict[bytes, Entry] = field(default_factory=dict)
    reports: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)
    until: dict[bytes, float] = field(default_factory=dict)
    number: int = 0

    def next(self) -> int:
        """Return a new place, behind all others."""
        self.number += 1
        return self.number

    def apply(self, reports: list[ReportRecord], now: float) -> None:
        """Take out the orders that these reports are the first about, and keep the reports."""
        for report in reports:
            if report.entry:
                self.orders.pop(report.order, None)
            self.reports.setdefault(report.order, []).append((self.next(), report.body))
            self.until[report.order] = now + report.kept


class MemoryMailbox(Mailbox):
    """See :class:`Mailbox`; all devices are in one partition. ``changed`` guards the mail and tells of changes."""

    partitions = 1

    def __init__(self, mail: Callable[[], MemoryMail], changed: Condition, clock: Callable[[], float]) -> None:
        self._mail: Final = mail
        self._changed = changed
        self._clock = clock
        self._closed = False

    def post(
        self,
        device: int,
        order_id: bytes,
        order: bytes,
        report: bytes,
        capacity: int = CAPACITY,
        *,
        urgent: bool = False,
    ) -> None:
        """See :meth:`Mailbox.post`."""
        check_post(order_id, order, capacity)
        with self._changed:
            mail = self._mail()
            if order_id in mail.reports:
                return
            waiting = sum(entry.urgent for entry in mail.orders.values()) if urgent else len(mail.orders)
            if waiting >= capacity:
                raise StoreError(f"the mailbox is full: {waiting} orders wait for the server to take them")
            mail.orders[order_id] = Entry(b"%d" % mail.next(), self._clock(), order_id, order, urgent)
            mail.reports[order_id] = [(mail.next(), report)]
            self._changed.notify_all()

    def waiting(self) -> dict[int, int]:
        """See :meth:`Mailbox.waiting`."""
        with self._changed:
            count = len(self._mail().orders)
        return {0: count} if count else {}

    def read(self, after: Mapping[int, Position], patience: float = 1.0) -> list[tuple[int, Entry]]:
        """See :meth:`Mailbox.read`."""
        position = after.get(0, Position(orders=None))
        return self._await(lambda: self._entries(position), patience)

    def _entries(self, position: Position) -> list[tuple[int, Entry]]:
        entries = self._mail().orders.values()
        urgent = [entry for entry in entries if entry.urgent and int(entry.place) > int(position.urgent)]
        last = float("inf") if position.orders is None else int(position.orders)
        orders = [entry._replace(urgent=False) for entry in entries if int(entry.place) > last]
        return [(0, entry) for entry in (*urgent[:PAGE], *orders[:PAGE])]

    def reports(self, device: int, order_id: bytes, after: bytes, patience: float) -> list[tuple[bytes, bytes]]:
        """See :meth:`Mailbox.reports`."""

        def found() -> list[tuple[bytes, bytes]]:
            mail = self._mail()
            if mail.until.get(order_id, float("inf")) < self._clock():
                return []
            rows = mail.reports.get(order_id, ())
            return [(b"%d" % number, body) for number, body in rows if number > int(after)]

        return self._await(found, patience)

    def close(self) -> None:
        """See :meth:`Mailbox.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _await(self, look: Callable[[], list[Any]], patience: float) -> list[Any]:
        deadline = time.monotonic() + patience
        with self._changed:
            while not (found := look()) and not self._closed and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        return found

    def __repr__(self) -> str:
        return "<MemoryMailbox>"
