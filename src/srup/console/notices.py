"""Sentences about what was done, which wait for the next page of a session."""

import threading
from collections import OrderedDict
from secrets import token_urlsafe
from typing import Final

__all__ = ["Notices"]

_REMEMBERED: Final = 1000


class Notices:
    """Each is shown once. Threads may share one of these."""

    def __init__(self) -> None:
        self._notices: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    def leave(self, session: str, text: str) -> str:
        """Keep a sentence for a session; return the name under which it waits."""
        name = token_urlsafe(9)
        with self._lock:
            self._notices[name, session] = text
            while len(self._notices) > _REMEMBERED:
                self._notices.popitem(last=False)
        return name

    def take(self, name: str, session: str) -> str:
        """Return what waits for a session under this name; "" for nothing."""
        with self._lock:
            return self._notices.pop((name, session), "")
