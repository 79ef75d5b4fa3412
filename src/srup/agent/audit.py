"""The audit: a row for each message that verified and for each that we signed, and the slow deletion of old rows.

Rows are part of the transaction that they tell of. A request that is repeated under its token has the row of its first
sending alone, and a receipt for values has none: both say nothing new.
"""

import logging
import time
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Final

from ..keys import PublicKey
from ..messages import Data, Message, Response
from ..records import SIGNER_PRECISION, AuditRow, SignerRecord
from ..session.events import DataRepeated, Unexpected
from ..session.flow import Output, Send
from ..store import Store
from ..wire import (
    DATA_RECEIPT,
    IDENTIFICATION_RESPONSE,
    JOIN_OBSERVER,
    JOIN_REASON,
    KEY_ROTATION,
    UPDATE_ACTIVATE,
    UPDATE_CANCEL,
    UPDATE_REASON,
    Status,
)
from .journal import Journal
from .transaction import Cause, Transaction

__all__ = ["ACCEPTED", "KEPT", "OURS", "PLAIN", "SENT", "THEIRS", "Audit", "AuditPruner", "AuditQuota", "Signers"]

ACCEPTED: Final = "accepted"
"""The outcome of a message that had an effect,"""

SENT: Final = "sent"
"""and of one of ours; a status has its name instead of both."""

KEPT: Final = 30 * 86400.0
"""How long audit rows are kept in seconds, if nobody says otherwise."""

BURST: Final = 1_000
"""How many rows one partner may cause at once."""

RATE: Final = 1.0
"""How many rows a second one partner may cause in the long run."""

SHARE: Final = 1_000
"""How many times that all partners together may cause, at once and in the long run."""

ROW_BYTES: Final = 256
"""So many signed bytes that are kept count as much as a row."""

PLAIN, THEIRS, OURS = range(3)
"""What a row is about: an ordinary value, another exchange that the partner has begun, or what we have asked."""

_PARTS: Final = ((0.6, 0.4), (0.8, 0.6), (1.0, 0.95))
"""Up to which part of the quota rows of each kind are written, and their signed bytes: no flood costs an order its row.
"""

_NAMED: Final = frozenset(
    {IDENTIFICATION_RESPONSE, JOIN_OBSERVER, JOIN_REASON, KEY_ROTATION, UPDATE_ACTIVATE, UPDATE_CANCEL, UPDATE_REASON}
)
"""Values that we send which are none of the application's."""

_BURST_LASTS: Final = BURST / RATE  # seconds until it is used up
_LOOK: Final = 3600.0  # seconds until it is looked again which rows are too old
_PIECE: Final = 4000  # rows that are deleted between two turns, at most
_PAUSE: Final = 0.1  # seconds from one piece to the next, at least


class Audit:
    """Writes rows into transactions, as far as the quota goes: signed bytes give way first, then rows of plain values.

    ``identity`` is ours; ``cause_of`` tells by partner and token which order a message belongs to. Ordinary values have
    rows without their signed bytes unless it ``keeps_values``; those that are ``special`` here are none.
    """

    def __init__(
        self,
        identity: int,
        journal: Journal,
        cause_of: Callable[[int, bytes], Cause | None],
        special: Container[str],
        keeps_values: bool = False,
    ) -> None:
        self.keeps_values: Final = keeps_values
        self.quota = AuditQuota()
        self.signers = Signers()
        self._identity = identity
        self._special = special
        self._journal = journal
        self._cause_of = cause_of

    def receive(
        self,
        transaction: Transaction,
        message: Message,
        wire: bytes,
        signer: PublicKey,
        asked: bool,
        outputs: Sequence[Output],
        now: float,
        unix: float,
    ) -> None:
        """Write down a message that has led to these outputs; ``asked`` says that we were waiting for it."""
        outcome = next((said for output in outputs if (said := _outcome(output))), "")
        row = AuditRow(
            *(unix, message.sender_id, message.sequence_id, message.layout.type, message.token),
            outcome or _status(message) or ACCEPTED,
        )
        kind = (
            OURS if asked and outputs and not outcome else _kind(message, self._special)
        )  # or answers could be sent for ever
        cause = self._cause_of(row.partner, row.token)
        self._write(transaction, row, wire, (message.sender_id, signer), kind, cause, now)

    def send(
        self, transaction: Transaction, send: Send, wire: bytes, key: PublicKey, asks: bool, now: float, unix: float
    ) -> None:
        """Write down a message that we have signed, unless it says nothing new; ``asks``: it is a request of ours."""
        message = send.message
        if send.again or (isinstance(message, Data) and message.data_id == DATA_RECEIPT):
            return
        outcome = _status(message) or SENT
        row = AuditRow(unix, send.to, message.sequence_id, message.layout.type, message.token, outcome, sent=True)
        cause = transaction.cause or self._cause_of(row.partner, row.token)
        kind = _kind(message, _NAMED)
        kind = OURS if cause is not None or (asks and kind != PLAIN) else kind
        self._write(transaction, row, wire, ((self._identity, id(key)), key), kind, cause, now)

    def end(self, transaction: Transaction, device: int, outcome: str, cause: Cause, now: float, unix: float) -> None:
        """Write down how an order from outside has ended."""
        row = AuditRow(unix, device, 0, 0, b"", outcome, order=cause.order, posted_by=cause.posted_by)
        self._admit(transaction, row, OURS, now)

    def _write(
        self,
        transaction: Transaction,
        row: AuditRow,
        wire: bytes,
        signer: tuple[Hashable, PublicKey],
        kind: int,
        cause: Cause | None,
        now: float,
    ) -> None:
        if cause is not None:
            row = row._replace(order=cause.order, posted_by=cause.posted_by)
        keeps = kind != PLAIN or self.keeps_values
        if keeps and self.quota.admits(row.partner, now, len(wire), kind):
            fingerprint = self.signers.note(transaction.changes.signers, *signer, row.at)
            transaction.changes.audit.append(row._replace(wire=wire, signer=fingerprint))
        else:
            self._admit(transaction, row, kind, now)

    def _admit(self, transaction: Transaction, row: AuditRow, kind: int, now: float) -> None:
        if self.quota.admits(row.partner, now, 0, kind):
            transaction.changes.audit.append(row)
        else:
            self._journal.counts["not audited"] += 1


def _outcome(output: Output) -> str:
    """Return what an output says against a message, "" if nothing."""
    if isinstance(output, Unexpected):
        return f"unexpected: {output.why}"
    return "repeated" if isinstance(output, DataRepeated) else ""


def _status(message: Message) -> str:
    """Return the name of the status that an answer has, "" for any other message."""
    if not isinstance(message, Response):
        return ""
    try:
        return Status(message.status).name
    except ValueError:
        return f"status {message.status}"


def _kind(message: Message, special: Container[str]) -> int:
    return PLAIN if type(message) is Data and message.data_id not in special else THEIRS


class Signers:
    """The keys that have signed what is kept: their fingerprints, and when their records must be written again."""

    def __init__(self) -> None:
        self._noted: dict[Hashable, tuple[PublicKey, bytes, float]] = {}  # by whose they are
        self._look_from = SHARE  # so many, to forget those that were not used lately

    def __len__(self) -> int:
        return len(self._noted)

    def note(self, records: list[SignerRecord], owner: Hashable, key: PublicKey, unix: float) -> bytes:
        """Return the fingerprint of a key that somebody uses now, and add its record where that is due."""
        noted = self._noted.get(owner)
        if noted is not None and noted[0] is key and noted[2] <= unix < noted[2] + SIGNER_PRECISION:
            return noted[1]
        fingerprint = bytes.fromhex(key.fingerprint)
        records.append(SignerRecord(fingerprint, key.to_pem(), unix))
        self._noted[owner] = key, fingerprint, unix
        if len(self._noted) > self._look_from:
            self._noted = {who: each for who, each in self._noted.items() if unix < each[2] + SIGNER_PRECISION}
            self._look_from = max(SHARE, 2 * len(self._noted))
        return fingerprint


class AuditQuota:
    """Bounds how much is written, for each partner and in all: the audit gives way before service does (T9).

    A row counts one, and besides as its signed bytes do (ROW_BYTES). What partners begin leaves a part of the quota to
    what we ask, and signed bytes a part to rows. For each partner it remembers when what was written would be used up
    at the long-term rate.
    """

    def __init__(self) -> None:
        self._used_up: dict[int, float] = {}  # by partner, of those that were heard lately
        self._all_used_up = 0.0
        self._look_from = SHARE  # so many partners, to forget those that were not heard lately

    @property
    def remembered(self) -> int:
        """How many partners it remembers."""
        return len(self._used_up)

    def admits(self, partner: int, now: float, size: int = 0, kind: int = THEIRS) -> bool:
        """Return whether a row may be written for a partner, and count it if so.

        ``size`` is how many signed bytes it has, ``kind`` what it is about.
        """
        latest, limit = now + _BURST_LASTS, now + _BURST_LASTS * _PARTS[kind][size > 0]
        of_partner, of_all = self._used_up.get(partner, now), self._all_used_up
        if not now <= of_partner <= latest + 1.0:  # that late only if the clock was set back
            of_partner = now
        if not now <= of_all <= latest + 1.0:
            of_all = now
        lasts = (1.0 + size / ROW_BYTES) / RATE
        of_partner += lasts
        of_all += lasts / SHARE
        if of_partner > limit or of_all > limit:
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
