"""A store for tests and simulations: it survives the agent that uses it, not the process."""

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ..errors import StoreError
from ..records import (
    SIGNER_PRECISION,
    AuditRow,
    Changes,
    ExchangeRecord,
    Fact,
    InboxEntry,
    KeyRecord,
    OutboxEntry,
    PartnerRecord,
    SignerRecord,
    State,
)
from .auditing import Span, span_of
from .bounds import MAX_TIME, check_int, check_time
from .directory import KnownDevice
from .memorymail import MemoryMail, MemoryMailbox

__all__ = ["MemoryStore"]

_UNSIGNED: Final = 1 << 64
_WINDOW: Final = 1 << 1024


class MemoryStore:
    """A Store in the memory of this process. A crash is a new agent on the same object.

    ``failures`` is how many of the next commits raise StoreError and change nothing; it counts down and may be set at
    any time.
    """

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self._lock = threading.Condition()
        self._owner: int | None = None
        self._adopted = False
        self._contents = _Contents()

    def open(self, owner: int) -> State:
        """Return what is kept for ``owner``."""
        check_int(owner, "owner", 0, _UNSIGNED - 1)
        with self._lock:
            if self._owner not in (None, owner):
                raise StoreError(f"the store belongs to {self._owner:x}, not to {owner:x}")
            self._owner = owner
            return self._contents.state(self._adopted)

    def commit(self, changes: Changes) -> None:
        """Keep all of this or nothing."""
        if not changes:
            return
        with self._lock:
            if self._owner is None:
                raise StoreError("the store is not open")
            if self.failures > 0:
                self.failures -= 1
                raise StoreError("the store was told to fail")
            try:
                _check(changes)
            except (TypeError, ValueError) as error:
                raise StoreError(f"a record cannot be kept: {error}") from None
            self._contents.apply(changes)
            self._adopted = False
            self._lock.notify_all()

    def audit(
        self,
        since: float = 0.0,
        partner: int | None = None,
        until: float | None = None,
        *,
        newest_first: bool = False,
    ) -> Iterator[AuditRow]:
        """See :meth:`Store.audit`."""
        return self.rows(span_of(since, partner, until, newest_first))

    def rows(self, span: Span) -> Iterator[AuditRow]:
        """See :meth:`srup.store.auditing.AuditReader.rows`."""
        with self._lock:
            rows = [
                row
                for row in self._contents.audit
                if span.since <= row.at < span.until and span.partner in (None, row.partner)
            ]
        rows.sort(key=lambda row: row.at)
        return reversed(rows) if span.newest_first else iter(rows)

    def signer(self, fingerprint: bytes) -> bytes | None:
        """See :meth:`Store.signer`."""
        with self._lock:
            record = self._contents.signers.get(fingerprint)
        return None if record is None else record.key

    def key(self, fingerprint: bytes, partner: int) -> bytes | None:
        """See :meth:`srup.store.auditing.AuditReader.key`."""
        return self.signer(fingerprint)

    def prune(self, before: float, limit: int | None = None) -> int:
        """Delete the audit rows that are older, the oldest first, ``limit`` at most; return how many."""
        before = check_time(before, "before")
        if limit is not None:
            check_int(limit, "limit", 0, _UNSIGNED - 1)
        with self._lock:
            rows = self._contents.audit
            old = sorted((place for place, row in enumerate(rows) if row.at < before), key=lambda place: rows[place].at)
            gone = set(old[:limit])
            self._contents.audit = [row for place, row in enumerate(rows) if place not in gone]
            if limit is None or len(gone) < limit:
                signers = self._contents.signers
                for record in [each for each in signers.values() if each.used < before - SIGNER_PRECISION]:
                    del signers[record.fingerprint]
        return len(gone)

    def mailbox(self, owner: int, clock: Callable[[], float] = time.time) -> MemoryMailbox:
        """Return the mailbox of ``owner``, which posts at the time of ``clock``."""
        if self._owner not in (None, owner):
            raise StoreError(f"the store belongs to {self._owner:x}, not to {owner:x}")
        return MemoryMailbox(lambda: self._contents.mail, self._lock, clock)

    def page(self, first: int, limit: int) -> list[KnownDevice]:
        """See :meth:`srup.store.directory.Directory.page`."""
        with self._lock:
            contents = self._contents
            identities = sorted(each for each in contents.keys.keys() | contents.partners.keys() if each >= first)[
                :limit
            ]
            facts: dict[int, dict[str, str]] = {each: {} for each in identities}
            for fact in contents.facts.values():
                if fact.identity in facts and fact.value is not None:
                    facts[fact.identity][fact.name] = fact.value
            return [
                KnownDevice(each, contents.keys.get(each), contents.partners.get(each), facts[each])
                for each in identities
            ]

    def one(self, identity: int, names: Sequence[str] | None = None) -> KnownDevice | None:
        """See :meth:`srup.store.directory.Directory.one`."""
        return next((known for known in self.page(identity, 1) if known.identity == identity), None)

    def facts(self, identity: int, names: Sequence[str]) -> list[str]:
        """See :meth:`srup.store.directory.Directory.facts`."""
        with self._lock:
            found = [self._contents.facts.get((identity, name)) for name in names]
        return [fact.value for fact in found if fact is not None and fact.value is not None]

    def close(self) -> None:
        """Do nothing: what is kept stays, for the next agent."""

    def __repr__(self) -> str:
        return "<MemoryStore>"

    def copy(self) -> "MemoryStore":
        """Return a store with the present contents, which goes its own way: a backup.

        Nothing tells it from the original: opening it later is what a restored backup is without a witness.
        """
        with self._lock:
            other = MemoryStore()
            other._owner = self._owner
            other._contents = copy.deepcopy(self._contents)
            return other

    def adopt(self) -> None:
        """Say at the next openings, until there has been a commit, that the contents may be old."""
        with self._lock:
            self._adopted = True


class _Contents:
    def __init__(self) -> None:
        self.partners: dict[int, PartnerRecord] = {}
        self.exchanges: dict[tuple[int, bytes], ExchangeRecord] = {}
        self.inbox: dict[tuple[int, int], InboxEntry] = {}
        self.outbox: dict[tuple[int, int], OutboxEntry] = {}
        self.keys: dict[int, KeyRecord] = {}
        self.barred: dict[str, None] = {}
        self.facts: dict[tuple[int, str], Fact] = {}
        self.audit: list[AuditRow] = []
        self.signers: dict[bytes, SignerRecord] = {}
        self.mail = MemoryMail()

    def apply(self, changes: Changes) -> None:
        for identity in changes.forgotten:
            self.partners.pop(identity, None)
        if gone := set(changes.forgotten):
            tables: tuple[dict[Any, Any], ...] = (self.exchanges, self.inbox, self.outbox)
            for table in tables:
                for key in [key for key in table if key[0] in gone]:
                    del table[key]
        self.partners.update((record.identity, record) for record in changes.partners)
        self.exchanges.update(((record.partner, record.token), record) for record in changes.exchanges)
        self.inbox.update(((entry.partner, entry.number), entry) for entry in changes.inbox)
        self.outbox.update(((entry.partner, entry.number), entry) for entry in changes.outbox)
        self.keys.update((record.identity, record) for record in changes.keys)
        self.barred.update(dict.fromkeys(changes.barred))
        for fact in changes.facts:
            if fact.value is None:
                self.facts.pop((fact.identity, fact.name), None)
            else:
                self.facts[fact.identity, fact.name] = fact
        self.audit += changes.audit
        self.signers.update((record.fingerprint, record) for record in changes.signers)
        for exchange in changes.ended:
            self.exchanges.pop(exchange, None)
        for entry in changes.finished:
            self.inbox.pop(entry, None)
        for entry in changes.settled:
            self.outbox.pop(entry, None)
        self.mail.apply(changes.reports, time.time())

    def state(self, adopted: bool) -> State:
        return State(
            [*self.partners.values()],
            [*self.exchanges.values()],
            sorted(self.inbox.values()),
            sorted(self.outbox.values()),
            [*self.keys.values()],
            [*self.barred],
            [*self.facts.values()],
            adopted,
        )


_KINDS: Final[dict[str, type[Any]]] = {
    "partners": PartnerRecord,
    "exchanges": ExchangeRecord,
    "inbox": InboxEntry,
    "outbox": OutboxEntry,
    "keys": KeyRecord,
    "facts": Fact,
    "audit": AuditRow,
    "signers": SignerRecord,
    "barred": str,
    "forgotten": int,
    "ended": tuple,
    "finished": tuple,
    "settled": tuple,
}


def _check(changes: Changes) -> None:
    """Refuse what a store that serialises could not write; raise TypeError or ValueError."""
    for name, kind in _KINDS.items():
        for record in getattr(changes, name):
            if not isinstance(record, kind):
                raise TypeError(f"{record!r} in {name} is no {kind.__name__}")
            if kind is AuditRow and not 0 <= record.at <= MAX_TIME:
                raise ValueError(f"{record!r} has no time")
            numbers = [record] if isinstance(record, int) else [value for value in record if isinstance(value, int)]
            if kind is PartnerRecord and not 0 <= numbers.pop() < _WINDOW:
                raise ValueError(f"the window in {record!r} is too long")
            if not all(0 <= number < _UNSIGNED for number in numbers):
                raise ValueError(f"a number in {record!r} has not 64 bits")
