"""The audit: one row for each message that verified, and the slow deletion of rows that are too old."""

import logging
import time
from collections.abc import Sequence
from typing import Final

from ..messages import Message
from ..records import AuditRow
from ..session.events import DataRepeated, Unexpected
from ..session.flow import Output
from ..store import Store
from .journal import Journal

__all__ = ["ACCEPTED", "KEPT", "AuditPruner", "AuditQuota", "audit_row"]

ACCEPTED: Final = "accepted"
"""The outcome of a message that had an effect."""

KEPT: Final = 30 * 86400.0
"""How long audit rows are kept in seconds, if nobody says otherwise."""

BURST: Final = 1_000
"""How many rows one partner may cause at once."""

RATE: Final = 1.0
"""How many rows a second one partner may cause in the long run."""

SHARE: Final = 1_000
"""How many times that all partners together may cause, at once and in the long run."""

_ROW_LASTS: Final = 1 / RATE  # seconds until it is used up
_BURST_LASTS: Final = BURST / RATE
_LOOK: Final = 3600.0  # seconds until it is looked again which rows are too old
_PIECE: Final = 4000  # rows that are deleted between two turns, at most
_PAUSE: Final = 0.1  # seconds from one piece to the next, at least


def audit_row(message: Message, outputs: Sequence[Output], now: float) -> AuditRow:
    """Return the row for a message that has led to these outputs."""
    outcome = next((said for output in outputs if (said := _outcome(output))), ACCEPTED)
    return AuditRow(now, message.sender_id, message.sequence_id, message.layout.type, message.token, outcome)


def _outcome(output: Output) -> str:
    """Return what an output says against a message, "" if nothing."""
    if isinstance(output, Unexpected):
        return f"unexpected: {output.why}"
    return "repeated" if isinstance(output, DataRepeated) else ""


class AuditQuota:
    """Bounds how many rows are written, for each partner and in all: the audit gives way before service does (T9).

    For each it remembers when the rows that were written would be used up at the long-term rate.
    """

    def __init__(self) -> None:
        self._used_up: dict[int, float] = {}  # by partner, of those that were heard lately
        self._all_used_up = 0.0
        self._look_from = SHARE  # so many partners, to forget those that were not heard lately

    @property
    def remembered(self) -> int:
        """How many partners it remembers."""
        return len(self._used_up)

    def admits(self, partner: int, now: float) -> bool:
        """Return whether a row may be written for a partner, and count it if so."""
        latest = now + _BURST_LASTS
        of_partner, of_all = self._used_up.get(partner, now), self._all_used_up
        if not now <= of_partner <= latest + 1.0:  # that late only if the clock was set back
            of_partner = now
        if not now <= of_all <= latest + 1.0:
            of_all = now
        of_partner += _ROW_LASTS
        of_all += _ROW_LASTS / SHARE
        if of_partner > latest or of_all > latest:
            return False
        self._used_up[partner] = of_partner
        self._all_used_up = of_all
        if len(self._used_up) > self._look_from:
            self._used_up = {each: until for each, until in self._used_up.items() if until > now}
            self._look_from = max(SHARE, 2 * len(self._used_up))  # or a large fleet would be gone through each time
        return True


class AuditPruner:
    """Deletes rows older than ``kept`` seconds, so few at a time that the next turn hardly waits. None keeps all."""

    def __init__(self, journal: Journal, store: Store, kept: float | None) -> None:
        self.due: float | None = None  # when rows may be too old; None for never
        self._journal = journal
        self._store = store
        self._kept = kept

    def begin(self, now: float) -> None:
        """Begin to look which rows are too old."""
        self.due = None if self._kept is None else now

    def prune(self, now: float, unix: float, share: float) -> None:
        """Delete some of the rows that are too old, if that is due; ``share`` of the time may go into that.

        ``now`` is the time that :attr:`due` is in, ``unix`` that of the rows.
        """
        if self.due is None or self._kept is None or now < self.due:
            return
        began = time.perf_counter()
        try:
            pruned = self._store.prune(unix - self._kept, _PIECE)
        except Exception as error:  # noqa: BLE001 - whatever it is: what is too old does no harm
            self.due = now + _LOOK
            self._journal.log(logging.WARNING, "%s could not prune its audit rows: %a", str(error), error=error)
            return
        took = time.perf_counter() - began
        self.due = now + (max(_PAUSE, took / share) if pruned == _PIECE else _LOOK)
