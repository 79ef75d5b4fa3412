"""Reads the mailbox of a server that is one process, and hands over what stands there."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ..errors import StoreError
from ..store.mailbox import Mailbox
from .duty import Duty
from .ordered import MailOrders
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["AHEAD", "MailReader"]

AHEAD: Final = 1024
"""How many orders are read and not carried out yet, at most, give or take a page: the rest stays in the mailbox."""

LOOK: Final = 1.0
"""Seconds until a mailbox is asked again in which there was nothing, and
"""
PAUSE: Final = 0.2
"""until orders are read again that there was no room for."""


class MailReader(Duty):
    """Reads in a thread of its own, or without one before each turn. ``mailbox`` opens it: the store comes first."""

    def __init__(self, engine: "Engine", orders: MailOrders, mailbox: Callable[[], Mailbox]) -> None:
        self._engine = engine
        self._orders = orders
        self._open = mailbox
        self._mailbox: Mailbox | None = None
        self._thread: threading.Thread | None = None
        self._trouble: str | None = None

    def prepare(self) -> None:
        """See :meth:`Duty.prepare`: what is urgent comes before every message; StoreError if it cannot be read."""
        self._mailbox = self._open()
        while self._take(self._mailbox, 0.0, urgent_only=True):
            pass

    def employ(self, name: str) -> None:
        """See :meth:`Duty.employ`."""
        self._thread = threading.Thread(target=self._read, name=f"{name}-orders", daemon=True)
        self._thread.start()

    def precede(self, transaction: Transaction) -> bool:
        """See :meth:`Duty.precede`."""
        if self._thread is not None or self._mailbox is None:
            return False
        return self._take(self._mailbox, 0.0)

    def dismiss(self) -> None:
        """See :meth:`Duty.dismiss`."""
        if self._mailbox is not None:
            self._mailbox.close()

    def stopped(self) -> None:
        """See :meth:`Duty.stopped`."""
        self.dismiss()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LOOK)

    def _read(self) -> None:
        assert self._mailbox is not None  # noqa: S101 - prepare() has opened it
        while not self._engine.stopping.is_set():
            patience = PAUSE if self._orders.behind >= AHEAD else LOOK
            took = self._engine.journal.log_exceptions(partial(self._take, self._mailbox, patience))
            if took is None or (not took and self._trouble is not None):
                self._engine.stopping.wait(LOOK)

    def _take(self, mailbox: Mailbox, patience: float, *, urgent_only: bool = False) -> bool:
        """Hand over what stands there; return whether there was anything."""
        orders = self._orders
        position = orders.position
        if urgent_only or orders.behind >= AHEAD:
            position = position._replace(orders=None)
        try:
            found = mailbox.read({0: position}, patience)
        except StoreError as error:
            if urgent_only:
                raise
            if str(error) != self._trouble and not self._engine.stopping.is_set():
                self._trouble = str(error)
                self._engine.journal.log(logging.ERROR, "%s cannot read what is ordered: %a", str(error), error=error)
            return False
        self._trouble = None
        for _, entry in found:
            orders.take(entry)
        return bool(found)
