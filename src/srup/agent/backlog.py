"""Which calls of handlers wait: how many in all, how many for each partner, and when one more is too many.

A call waits from the moment in which a turn collects it, or somebody submits it, until it starts. Those that are
collected belong to the turn that is open; only the thread that takes the turns counts them.
"""

import threading
from collections.abc import Sequence
from typing import Final

from ..errors import PolicyError
from ..keyring import KeyRing
from .transaction import Call

__all__ = ["HELD_FROM", "MAX_REFUSALS", "Backlog"]

HELD_FROM: Final = 5_000
"""From so many calls that wait nothing is acknowledged, so that the broker sends no more."""

MAX_REFUSALS: Final = 256
"""How many handlers wait at most when one more refusal is told."""


class Backlog:
    """Counts calls. ``keys`` are those of the partners."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._collected: Sequence[Call] = ()
        self._collected_of: dict[int, int] = {}
        self._lock = threading.Lock()  # guards the next three
        self._submitted = 0
        self._started = 0
        self._submitted_of: dict[int, int] = {}  # not started

    def size(self) -> int:
        """Return how many calls wait."""
        return self.handed_over() + len(self._collected)

    def handed_over(self) -> int:
        """Return how many calls are submitted and not started."""
        return self._submitted - self._started

    def is_long(self) -> bool:
        """Return whether so many calls wait that the broker has to."""
        return self.size() >= HELD_FROM

    def begin(self, calls: Sequence[Call]) -> None:
        """Count the calls of a new turn, which grow; those of the turn before are submitted, or none any more."""
        self._collected, self._collected_of = calls, {}

    def collect(self, peer: int) -> None:
        """Count one more call for a partner in the turn that is open."""
        self._collected_of[peer] = self._collected_of.get(peer, 0) + 1

    def submit(self, calls: Sequence[Call]) -> None:
        """Count calls as submitted. On any thread."""
        with self._lock:
            self._submitted += len(calls)
            of_peer = self._submitted_of
            for call in calls:
                if (peer := call.peer) is not None:
                    of_peer[peer] = of_peer.get(peer, 0) + 1

    def start(self, call: Call) -> None:
        """Count a call as started. On any thread."""
        with self._lock:
            self._started += 1
            if (peer := call.peer) is not None:
                if (left := self._submitted_of.get(peer, 0) - 1) > 0:
                    self._submitted_of[peer] = left
                else:
                    self._submitted_of.pop(peer, None)

    def check_quota(self, peer: int) -> None:
        """Raise PolicyError if a partner has more calls waiting than half of what is still free for all of them.

        So however many flood us, there is room for one more (T9). A partner that is the only one keeps nobody waiting:
        the broker keeps what it sends until the handlers have caught up (:class:`Inbound`).
        """
        waiting = self._collected_of.get(peer, 0) + self._submitted_of.get(peer, 0)
        if not waiting:
            return
        free = HELD_FROM - MAX_REFUSALS - self.size()
        if waiting >= max(1, free // 2) and len(self._keys) > 1:
            raise PolicyError(
                f"{waiting} handler calls pending for {peer:x}: its messages are refused until some have ended"
            )
