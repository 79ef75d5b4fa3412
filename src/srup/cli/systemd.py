"""What a service tells systemd: that it has started, that it still works, that it stops (sd_notify(3))."""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from ..agent.vitals import STUCK_AFTER, Vitals

__all__ = ["Notifier", "works"]

_SHORTEST: Final = 0.1  # seconds between two signs of life


def works(vitals: Vitals) -> bool:
    """Return whether an agent takes its turns, or has none to take: what ``/healthz`` says without an HTTP server."""
    return not vitals.runs or (vitals.alive and vitals.turn <= STUCK_AFTER)


class Notifier:
    """Tells systemd of this service while the block lasts; nothing where systemd has not asked for it.

    READY is sent when the block begins, STOPPING at its end. Where the unit has a WatchdogSec, WATCHDOG is sent twice
    in that time so long as ``works`` returns True; when it does not any more, systemd restarts the service.
    """

    def __init__(self, works: Callable[[], bool]) -> None:
        self._works = works
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        watched = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = os.environ.get("WATCHDOG_USEC", "") if watched else ""
        self._period = max(_SHORTEST, int(period) / 2e6) if period.isascii() and period.isdigit() else 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="systemd", daemon=True)

    def __enter__(self) -> Self:
        self._tell("READY=1")
        if self._address and self._period:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._tell("STOPPING=1")

    def _watch(self) -> None:
        while not self._ended.wait(self._period):
            if self._works():
                self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if self._address:
            address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.sendto(state.encode(), address)
