"""An order that was posted, and what it comes to."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ..agent.reports import OrderReport
from ..errors import PolicyError, StoreError
from ..identity import CANONICAL
from ..store.mailbox import BEGINNING, Mailbox
from ..update import UpdateState
from ..wire import Status

__all__ = ["PostedOrder", "parse_id"]

_ID: Final = re.compile(rf"({CANONICAL})\.([0-9a-f]{{32}})")


def parse_id(text: str) -> tuple[int, bytes] | None:
    """Return the device and the number in the id of an order; None for what is none."""
    match = _ID.fullmatch(text)
    return None if match is None else (int(match[1], 16), bytes.fromhex(match[2]))


class PostedOrder:
    """An order that was posted; its ``id`` finds it again (:meth:`Fleet.find`), from whichever process."""

    def __init__(self, mailbox: Mailbox, device: int, number: bytes) -> None:
        self.device = device
        self._mailbox = mailbox
        self.number = number

    @property
    def id(self) -> str:
        """Its name: the device in hex, a dot, and 32 hex digits."""
        return f"{self.device:x}.{self.number.hex()}"

    def reports(self, timeout: float | None = None) -> Iterator[OrderReport]:
        """Tell what it comes to, from the beginning, as it happens, to the end.

        TimeoutError when it is not over after ``timeout`` seconds, PolicyError when nobody knows of such an order (any
        more), StoreError when the store does not answer; asking again does no harm.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        place = BEGINNING
        while True:
            left = 1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic()))
            rows = self._mailbox.reports(self.device, self.number, place, 0.0 if place == BEGINNING else left)
            if not rows and not self._mailbox.reports(self.device, self.number, BEGINNING, 0.0):
                raise PolicyError(
                    f"there is no order {self.id}: its result is not kept any more, or it was never posted"
                )
            for after, content in rows:
                try:
                    report, place = OrderReport.load(content), after
                except StoreError as error:
                    raise StoreError(f"order {self.id}: {error}") from None
                yield report
                if report.over:
                    return
            if not rows and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"order {self.id} is not over after {timeout:g} seconds; it stands")

    def report(self) -> OrderReport:
        """Return what it has come to by now; errors as in :meth:`reports`."""
        known: list[OrderReport] = []
        with suppress(TimeoutError):
            for report in self.reports(0.0):
                known.append(report)
        return known[-1]  # without any it was a PolicyError

    def result(self, timeout: float | None = None) -> Status | UpdateState | str | None:
        """Wait for the end; return or raise what the server's own method would have: see :class:`Server`.

        An order that no worker took before its lifetime was over raises UnansweredError; nothing was sent then. For
        more errors see :meth:`reports`.
        """
        *_, last = self.reports(timeout)
        return last.result()

    def __repr__(self) -> str:
        return f"<PostedOrder {self.id}>"
