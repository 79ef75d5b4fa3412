"""The line of handler calls: in order, and fair between partners."""

import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from .transaction import Call

__all__ = ["FairLine"]

WIDTH: Final = 8
"""How many calls of one partner stand in the line at a time; those behind them wait beside it."""


class FairLine:
    """First in, first out, but a partner with many calls gets no more turns than the others. On any thread.

    The calls of one partner keep their order. Whoever has few waits for at most :data:`WIDTH` of each other one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._line: deque[Call] = deque()
        self._standing: dict[int, int] = {}  # by partner
        self._beside: dict[int, deque[Call]] = {}

    def put(self, calls: Iterable[Call]) -> None:
        """Append calls."""
        with self._lock:
            for call in calls:
                peer = call.peer
                if peer is None:
                    self._line.append(call)
                elif peer in self._beside or self._standing.get(peer, 0) >= WIDTH:
                    self._beside.setdefault(peer, deque()).append(call)
                else:
                    self._stand(peer, call)

    def take(self) -> Call | None:
        """Take out the call whose turn it is; None if there is none."""
        with self._lock:
            if not self._line:
                return None
            call = self._line.popleft()
            if (peer := call.peer) is not None:
                if left := self._standing[peer] - 1:
                    self._standing[peer] = left
                else:
                    del self._standing[peer]
                if (beside := self._beside.get(peer)) is not None:
                    self._stand(peer, beside.popleft())
                    if not beside:
                        del self._beside[peer]
            return call

    def _stand(self, peer: int, call: Call) -> None:
        self._standing[peer] = self._standing.get(peer, 0) + 1
        self._line.append(call)
