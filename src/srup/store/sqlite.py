"""The embedded store: one SQLite database, durable when a commit returns (WAL, synchronous FULL).

A commit is a single statement. Python's sqlite3 gives up the GIL and takes it back for every row of ``executemany``,
which beside a busy thread costs more than the rows; so all rows of a table are joined into one blob, a JSON array says
where each begins and how long it is, and a temporary trigger takes them apart inside SQLite. A statement is a
transaction of its own: it happens or it does not.

Numbers that are keys are 8 bytes, the most significant first: SQLite's integers are signed, and these sort as they
should. Times of audit rows are IEEE doubles in the same order, which sort too as long as they are not negative. What
SQLite needs no look into stands packed in the column ``record``.
"""

import errno
import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, starmap
from operator import add
from pathlib import Path
from typing import Any, Final

from ..errors import StoreError
from ..files import sync_folder
from ..records import AuditRow, Changes, ExchangeRecord, Fact, InboxEntry, KeyRecord, OutboxEntry, PartnerRecord, State
from .auditing import Span, span_of
from .bounds import check_int, check_time
from .directory import KnownDevice
from .mailbox import ORDER_ID
from .sqliteaudit import (
    PAGE,
    pack_audit,
    pack_signer,
    prune_rows,
    prune_signers,
    read_page,
    read_signer,
    unpack_page,
)
from .sqlitefile import (
    ADOPT,
    APPLICATION,
    MIGRATIONS,
    NUMBER,
    REMEDIES,
    TIME,
    LogKeeper,
    check_log,
    damaged,
    forget_at_fork,
    migrate,
    never_close,
    read_head,
    translated,
)
from .sqlitemail import SqliteMailbox
from .witness import Position, Witness

__all__ = ["SqliteStore", "facts_named", "known_devices"]

_PRUNED: Final = 10_000  # audit rows that are deleted at a time: between them commits get their turn
_WAL_PAGES: Final = 1000  # the log begins anew when it has so many and is copied back: 4 MB and one commit
_PATIENCE: Final = 2.0  # seconds that a commit waits while an order is being posted
_CACHE: Final = -16_384  # KiB of memory for pages, taken as needed


# Records as bytes: first what is a column of its own, then the rest.

_LENGTH: Final = 31  # bits
_LARGEST: Final = (1 << 64) - 1
_FULL: Final = (1 << 1024) - 1
_PAIR: Final = struct.Struct(">QQ")
_PARTNER: Final = struct.Struct(">QBQQ")
_INBOX: Final = struct.Struct(">QQHH")
_OUTBOX: Final = struct.Struct(">QQdH")
_KEY: Final = struct.Struct(">QdBII")

Row = Sequence[Any]


def _counted(name: bytes) -> bytes:
    if len(name) > 99_999:
        raise ValueError(f"a name has {len(name)} bytes, and may have 99999")
    return b"%05d%b" % (len(name), name)


def _named(identity: int, name: bytes, record: bytes = b"") -> bytes:
    return NUMBER.pack(identity) + _counted(name) + record


# A window has mostly ones or mostly zeros: the few are kept, so that many devices share a page that is written.
def _pack_partner(identity: int, member: bool, binds: bool, reserved: int, highest: int, seen: int) -> bytes:
    if seen > _FULL:
        raise ValueError(f"the window of {identity:x} has more than 1024 bits")
    bits = seen ^ _FULL
    if inverted := bits < seen:
        seen = bits
    flags = member | binds << 1 | inverted << 2
    return _PARTNER.pack(identity, flags, reserved, highest) + seen.to_bytes((seen.bit_length() + 7) // 8, "big")


def _unpack_partner(row: Row) -> PartnerRecord:
    identity, flags, reserved, highest = _PARTNER.unpack_from(row[0] + row[1])
    seen = int.from_bytes(row[1][_PARTNER.size - 8 :], "big") ^ (_FULL if flags & 4 else 0)
    return PartnerRecord(identity, bool(flags & 1), bool(flags & 2), reserved, highest, seen)


def _pack_exchange(partner: int, token: bytes, expiry: float, body: str) -> bytes:
    return _named(partner, token, TIME.pack(expiry) + body.encode())


def _unpack_exchange(row: Row) -> ExchangeRecord:
    (expiry,) = TIME.unpack(row[2][:8])
    return ExchangeRecord(_integer(row[0]), row[1], expiry, row[2][8:].decode())


def _pack_inbox(number: int, partner: int, token: bytes, kind: str, body: bytes) -> bytes:
    name = kind.encode()
    return _INBOX.pack(number, partner, len(token), len(name)) + token + name + body


def _unpack_inbox(row: Row) -> InboxEntry:
    number, partner, token, kind = _INBOX.unpack_from(b"".join(row))
    rest = row[2][4:]
    return InboxEntry(number, partner, rest[:token], rest[token : token + kind].decode(), rest[token + kind :])


def _pack_outbox(number: int, partner: int, topic: str, body: bytes, expiry: float) -> bytes:
    name = topic.encode()
    return _OUTBOX.pack(number, partner, expiry, len(name)) + name + body


def _unpack_outbox(row: Row) -> OutboxEntry:
    number, partner, expiry, topic = _OUTBOX.unpack_from(b"".join(row))
    rest = row[2][10:]
    return OutboxEntry(number, partner, rest[:topic].decode(), rest[topic:], expiry)


def _pack_key(identity: int, key: bytes | None, retiring: bytes | None, until: float, pin: bytes | None) -> bytes:
    present = (key is not None) | (retiring is not None) << 1 | (pin is not None) << 2
    first, second = key or b"", retiring or b""
    return _KEY.pack(identity, until, present, len(first), len(second)) + first + second + (pin or b"")


def _unpack_key(row: Row) -> KeyRecord:
    identity, until, present, first, second = _KEY.unpack_from(b"".join(row))
    rest = row[1][_KEY.size - 8 :]
    key, retiring, pin = rest[:first], rest[first : first + second], rest[first + second :]
    return KeyRecord(
        identity,
        key if present & 1 else None,
        retiring if present & 2 else None,
        until,
        pin if present & 4 else None,
    )


def _pack_barred(fingerprint: str) -> bytes:
    return _counted(fingerprint.encode())


def _pack_fact(identity: int, name: str, value: str | None) -> bytes:
    return _named(identity, name.encode(), (value or "").encode())


def known_devices(db: sqlite3.Connection, first: int, limit: int) -> list[KnownDevice]:
    """Return what a database knows of devices from an identity on; in a transaction, for it takes several queries."""
    of_each = "SELECT identity FROM (SELECT identity FROM {} WHERE identity >= ?1 ORDER BY identity LIMIT ?2)"
    either = " UNION ".join(of_each.format(table) for table in ("keys", "partners"))
    found = db.execute(f"{either} ORDER BY identity LIMIT ?2", (NUMBER.pack(first), limit)).fetchall()
    if not found:
        return []
    between = found[0][0], found[-1][0]

    def rows(table: str) -> sqlite3.Cursor:
        return db.execute(f"SELECT * FROM {table} WHERE identity BETWEEN ? AND ?", between)  # noqa: S608

    keys = {row[0]: _unpack_key(row) for row in rows("keys")}
    partners = {row[0]: _unpack_partner(row) for row in rows("partners")}
    facts: dict[bytes, dict[str, str]] = {}
    for identity, name, value in rows("facts"):
        facts.setdefault(identity, {})[name.decode()] = value.decode()
    return [KnownDevice(_integer(each), keys.get(each), partners.get(each), facts.get(each, {})) for (each,) in found]


def facts_named(db: sqlite3.Connection, identity: int, names: Sequence[str]) -> list[str]:
    """Return what a database has of facts with these names about an identity."""
    places = ", ".join("?" * len(names))
    query = f"SELECT record FROM facts WHERE identity = ? AND name IN ({places})"  # noqa: S608
    wanted = NUMBER.pack(identity), *(name.encode() for name in names)
    return [record.decode() for (record,) in db.execute(query, wanted)]


def _pack_report(order: bytes, body: bytes) -> bytes:
    if len(order) != ORDER_ID:
        raise ValueError(f"{order!r} is no id of an order")
    return order + body


def _pack_told(order: bytes, until: float) -> bytes:
    return order + TIME.pack(until)


def _integer(column: bytes) -> int:
    return int.from_bytes(column, "big")


# The statement of a commit.


@dataclass(frozen=True)
class _List:
    """A list of Changes: how its records become bytes, and what the trigger does with them.

    In ``commands`` ``{rows}`` is a SELECT of ``columns`` from the list: ``name:8`` has 8 bytes, ``name:n`` five digits
    before it that say how many, ``name:*`` is what remains; anything else stands for itself.
    """

    name: str
    pack: Callable[..., bytes]
    columns: str
    commands: tuple[str, ...]

    @cached_property
    def width(self) -> int:
        """Of a row in bytes, if all have one, else 0."""
        widths = [column.partition(":")[2] for column in self.columns.split(", ")]
        return sum(map(int, widths)) if all(map(str.isdecimal, widths)) else 0

    def trigger(self) -> str:
        begin, end, columns = "(value >> 31)", "(value & 0x7fffffff)", []
        if self.width:
            begin = f"(key * {self.width} + 1)"
        offset, taken = 0, ""  # of known width, and what a name has taken
        for column in self.columns.split(", "):
            name, _, width = column.partition(":")
            at = f"{begin} + {offset}{taken}"
            if width == "n":
                taken = f" + substr(new.{self.name}, {at}, 5)"
                offset += 5
                columns.append(f"substr(new.{self.name}, {begin} + {offset}, {taken[3:]})")
            elif width == "*":
                columns.append(f"substr(new.{self.name}, {at}, {end} - {offset}{taken.replace('+', '-', 1)})")
            elif width:
                columns.append(f"substr(new.{self.name}, {at}, {width})")
                offset += int(width)
            else:
                columns.append(name)
        rows = f"SELECT {', '.join(columns)} FROM json_each(new.{self.name}_at)"  # noqa: S608
        return "".join(f"{command.format(rows=rows)};\n" for command in self.commands)


def _put(table: str) -> tuple[str]:
    return (f"INSERT OR REPLACE INTO {table} {{rows}}",)


def _remove(table: str, key: str) -> tuple[str]:
    return (f"DELETE FROM {table} WHERE ({key}) IN ({{rows}})",)  # noqa: S608


# In this order. A number of an audit row tells it from others of the same time: the commit's, then its own in it.
_LISTS: Final = (
    _List(
        "forgotten",
        NUMBER.pack,
        "identity:8",
        (
            *_remove("partners", "identity"),
            *_remove("exchanges", "partner"),
            *_remove("inbox", "partner"),
            *_remove("outbox", "partner"),
        ),
    ),
    _List("partners", _pack_partner, "identity:8, record:*", _put("partners")),
    _List("exchanges", _pack_exchange, "partner:8, token:n, record:*", _put("exchanges")),
    _List("inbox", _pack_inbox, "number:8, partner:8, record:*", _put("inbox")),
    _List("outbox", _pack_outbox, "number:8, partner:8, record:*", _put("outbox")),
    _List("keys", _pack_key, "identity:8, record:*", _put("keys")),
    _List("barred", _pack_barred, "fingerprint:n", _put("barred")),
    _List("facts", _pack_fact, "identity:8, name:n, record:*", _put("facts")),
    _List("unknown", _pack_fact, "identity:8, name:n", _remove("facts", "identity, name")),
    _List(
        "audit",
        pack_audit,
        "at:8, (SELECT commits FROM store) << 24 | key, partner:8, form:1, record:*",
        ("INSERT INTO audit(at, number, partner, form, record) {rows}",),
    ),
    _List("signers", pack_signer, "fingerprint:32, used:8, key:*", _put("signers")),
    _List("ended", _named, "partner:8, token:n", _remove("exchanges", "partner, token")),
    _List("finished", _PAIR.pack, "partner:8, number:8", _remove("inbox", "partner, number")),
    _List("settled", _PAIR.pack, "partner:8, number:8", _remove("outbox", "partner, number")),
    _List("taken", bytes, "id:16", _remove("orders", "id")),
    _List("reports", _pack_report, "id:16, body:*", ("INSERT INTO reports(id, body) {rows}",)),
    _List("told", _pack_told, "id:16, until:8", _put("told")),
)

_PARAMETERS: Final = [parameter for each in _LISTS for parameter in (each.name, f"{each.name}_at")]
_COMMIT: Final = f"INSERT INTO step VALUES({', '.join('?' * len(_PARAMETERS))})"
_STEP: Final = f"""
    CREATE TEMP VIEW step AS SELECT {", ".join(f"NULL AS {name}" for name in _PARAMETERS)};
    CREATE TEMP TRIGGER steps INSTEAD OF INSERT ON step BEGIN
        {"".join(each.trigger() for each in _LISTS)}
        UPDATE store SET commits = commits + 1, adopted = 0;
    END;
"""  # noqa: S608


def _parameters(changes: Changes) -> list[bytes | str]:
    """Return for each list its rows in one, and where each is, as JSON: begin, counted from 1, above length.

    Rows that all have one width need no places, only their number.
    """
    lists: dict[str, Iterable[Any]] = {each.name: getattr(changes, each.name, ()) for each in _LISTS}
    lists["forgotten"] = [*zip(changes.forgotten, strict=True)]
    lists["barred"] = [*zip(changes.barred, strict=True)]
    if changes.facts:
        facts = {fact[:2]: fact for fact in changes.facts}.values()
        lists["facts"] = [fact for fact in facts if fact.value is not None]
        lists["unknown"] = [fact for fact in facts if fact.value is None]
    if changes.inbox and changes.finished:
        finished = set(changes.finished)
        lists["inbox"] = [entry for entry in changes.inbox if (entry.partner, entry.number) not in finished]
    if changes.reports:
        now = time.time()
        lists["taken"] = [(report.order,) for report in changes.reports if report.entry]
        lists["reports"] = [(report.order, report.body) for report in changes.reports]
        lists["told"] = [(report.order, now + report.kept) for report in changes.reports]
    parameters: list[bytes | str] = []
    for each in _LISTS:
        if records := lists[each.name]:
            rows = [*starmap(each.pack, records)]
            places = [0] * len(rows)
            if not each.width:
                lengths = [*map(len, rows)]
                begins = accumulate(map((1 << _LENGTH).__mul__, lengths), initial=1 << _LENGTH)
                places = [*map(add, begins, lengths)]
            parameters += [b"".join(rows), str(places)]
        else:
            parameters += [b"", "[]"]
    return parameters


class SqliteStore:
    """A Store in the SQLite file at ``path``, with mode 0600, which one process at a time may open as its store.

    Others may post orders to it and read meanwhile (:class:`srup.fleet.Fleet`).

    ``create``: make the file if it is missing. ``adopt``: take over a database that is, or may be, older than what was
    done since: restored from a backup, or without its witness. State.adopted then says so until the first commit.
    ``read_only``: read what is there, be it a copy without a witness, and change nothing; commits raise StoreError.

    Beside it (where a symbolic link leads to) stand ``<path>-wal``, SQLite's log, which holds commits and must be moved
    and copied with the file; ``<path>-witness`` (:class:`srup.store.witness.Witness`), which should stay out of
    backups: it is there to tell a restored one, and a database that was opened once is refused without it; and
    ``<path>-lock``, which is locked while a process uses the store. SQLite's own lock does not last: it goes when
    anything else in this process closes the database file. After a fork the store belongs to the parent.
    Every method may raise StoreError, which names the file and what to do; nothing has changed then.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = True, adopt: bool = False, read_only: bool = False
    ) -> None:
        try:
            self.path = Path(os.path.realpath(path))
            os.fsencode(self.path)
        except ValueError as error:
            raise StoreError(f"{os.fspath(path)!a:.200} is no path of a database: {error}") from None
        self._create = create and not read_only
        self._adopt = adopt and not read_only
        self._read_only = read_only
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._claim = -1  # the file descriptor of the lock file
        self._log = self.path.with_name(f"{self.path.name}-wal")
        self._log_number = 0  # its inode
        self._keeper: LogKeeper | None = None
        self._witness = Witness(self.path.with_name(f"{self.path.name}-witness"))
        self._base = 0  # a commit that is in the file itself, and
        self._copied_back = 0  # when the file was changed last, as it was known
        self._fresh = False
        self._owned = False  # whether it has been opened before
        self._forked = False
        self._commits = 0

    def open(self, owner: int | None) -> State:
        """Return what is kept for ``owner``; a new database becomes that identity's.

        With ``read_only`` None stands for whoever owns the database.
        """
        if owner is not None or not self._read_only:
            check_int(owner, "owner", 0, _LARGEST)
        with self._lock, self._translated():
            if self._connection is not None:
                self._check_owner(owner)
                return self._state()
            if self.path.is_dir():
                raise StoreError(f"{self.path} is a folder, and no database; name a file in it")
            try:
                self._claim_file()
                self._find()
                check_log(self.path)
                self._connect()
                self._log_number = self._copied_back = 0  # what is known is of an earlier opening
                self._check_owner(owner)
                if not self._read_only and owner is not None:
                    self._check_witness()
                    self._own(owner)
                state = self._state()
                self._db.execute(f"PRAGMA cache_size = {_CACHE}")
                return state
            except BaseException:
                self.close()
                raise

    def commit(self, changes: Changes) -> None:
        """Write all of this or nothing; when it returns, it is on durable storage."""
        if not changes:
            return
        try:
            parameters = _parameters(changes)
        except (struct.error, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreError(f"{self.path}: a record cannot be kept: {error}") from None
        with self._lock, self._translated():
            self._check_writable()
            self._note_base()
            self._db.execute(_COMMIT, parameters)
            self._commits += 1
            self._witness.note(self._commits)

    def audit(
        self,
        since: float = 0.0,
        partner: int | None = None,
        until: float | None = None,
        *,
        newest_first: bool = False,
    ) -> Iterator[AuditRow]:
        """See :meth:`Store.audit`."""
        return self._rows(span_of(since, partner, until, newest_first))

    def _rows(self, span: Span) -> Iterator[AuditRow]:
        after: tuple[bytes, int] | None = None
        while True:
            with self._lock, self._translated():
                page = read_page(self._db, span, after)
                found = unpack_page(page)
            yield from found
            if len(page) < PAGE:
                return
            after = page[-1][0], page[-1][1]

    def signer(self, fingerprint: bytes) -> bytes | None:
        """See :meth:`Store.signer`."""
        with self._lock, self._translated():
            return read_signer(self._db, fingerprint)

    def prune(self, before: float, limit: int | None = None) -> int:
        """See :meth:`Store.prune`."""
        before = check_time(before, "before")
        if limit is not None:
            check_int(limit, "limit", 0, _LARGEST)
        pruned = 0
        while True:
            most = _PRUNED if limit is None else min(_PRUNED, limit - pruned)
            with self._lock, self._translated():
                self._check_writable()
                deleted = prune_rows(self._db, before, most)
                if deleted < most:
                    prune_signers(self._db, before, most)
            pruned += deleted
            if deleted < most or pruned == limit:
                return pruned

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Write a copy of the present contents to ``path``, which must not exist; commits wait meanwhile.

        It has no witness: to use it, open it with ``adopt=True``.
        """
        target = Path(path).absolute()
        try:
            target.touch(0o600, exist_ok=False)
        except OSError as error:
            raise StoreError(f"{target}: {error.strerror}: name a new file in a folder that is writable") from None
        try:
            with self._lock, self._translated():
                self._db.execute("VACUUM INTO ?", (str(target),))
                with closing(sqlite3.connect(target, isolation_level=None)) as copy:
                    copy.execute("UPDATE store SET file = randomblob(16)")
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def mailbox(self, owner: int) -> SqliteMailbox:
        """Return the mailbox in this database, which ``owner`` has opened once."""
        return SqliteMailbox(self.path, owner)

    def close(self) -> None:
        """Let go of the files. A second call does nothing."""
        with self._lock:
            if self._keeper is not None:
                self._keeper.release()
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._keeper is not None:
                self._keeper.close()
                self._keeper = None
            self._witness.close()
            self._release_claim()

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<SqliteStore {self.path}>"

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path} is not open" + ": after a fork it is the parent's" * self._forked)
        return self._connection

    def abandon(self) -> None:
        """In a forked child: leave everything to the parent."""
        if self._connection is not None:
            never_close(self._connection)
            self._connection = None
            self._forked = True
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        self._lock = threading.RLock()  # a thread of the parent's may have held the other one
        self._witness.close()
        self._release_claim()  # which the parent goes on holding

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Say what SQLite says with the file's name and what to do; leave no transaction behind."""
        with translated(self.path):
            try:
                yield
            except sqlite3.Error:
                if self._connection is not None and self._connection.in_transaction:
                    self._connection.rollback()
                raise

    # --- Opening, one step after the other.

    def _claim_file(self) -> None:
        """Lock the lock file, as long as this is open. Nothing else opens it, so nothing else in here can unlock it."""
        flags = os.O_RDONLY if self._read_only else os.O_RDWR | os.O_CREAT
        try:
            self._claim = os.open(self.path.with_name(f"{self.path.name}-lock"), flags | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if self._read_only and error.errno in (errno.ENOENT, errno.ENOTDIR):
                return  # no process uses it that would have made one
            if error.errno == errno.EWOULDBLOCK:
                raise StoreError(
                    f"{self.path} is in use: one process at a time may use it, and one store object in it; end that "
                    "one, or choose another path"
                ) from None
            raise self._unusable(error) from None

    def _release_claim(self) -> None:
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def _find(self) -> None:
        """Make the database if there is none and there should be none."""
        try:
            self._fresh = not self.path.exists() or self.path.stat().st_size == 0
            if not self._fresh:
                return
            if self._log.exists() and self._log.stat().st_size:
                raise StoreError(
                    f"{self.path} is missing, and {self._log} is there and may hold commits of it: put the database "
                    "back, or move that file away"
                )
            if not self._create:
                remedy = "name the database of a server or device" if self._read_only else "create=True makes a new one"
                raise StoreError(f"{self.path} is missing; {remedy}")
            if not self._adopt and self._witness.read() is not None:
                raise StoreError(f"{self.path} is missing, and {self._witness.path} knows it: restore it, or {ADOPT}")
            self._make()
        except OSError as error:
            raise self._unusable(error) from None

    def _make(self) -> None:
        """Make a database beside its place and move it there: what stands there is never half of one.

        It has no log yet: a copy of the file alone must not look like a new database.
        """
        new = self.path.with_name(f".{self.path.name}-new")
        leftovers = [new, new.with_name(f"{new.name}-journal")]
        try:
            for each in leftovers:
                each.unlink(missing_ok=True)
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(new, isolation_level=None)) as db:
                migrate(db, 0)
            new.replace(self.path)
            sync_folder(self.path.parent)
        finally:
            for each in leftovers:
                each.unlink(missing_ok=True)

    def _note_base(self) -> None:
        """When the log was copied back write down first what the file has since then: the next log begins there."""
        db = self._db
        if self._changed() == self._copied_back:
            return
        _, frames, copied = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()  # what is not durable yet
        changed = self._changed()
        alone = read_head(self.path, "immutable=1")
        if frames == copied and alone is not None:
            if alone[1] > self._base:
                db.execute("UPDATE store SET base = ?", (alone[1],))
                self._base = alone[1]
            self._copied_back = changed

    def _changed(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError as error:
            raise self._unusable(error) from None

    def _connect(self) -> None:
        forget_at_fork(self)
        place: str | Path = f"{self.path.as_uri()}?mode=ro" if self._read_only else self.path
        db = self._connection = sqlite3.connect(
            place, timeout=_PATIENCE, isolation_level=None, check_same_thread=False, uri=self._read_only
        )
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            if application == version == 0 and self._nothing_in(db):
                raise StoreError(
                    f"{self.path} has nothing in it: it is a copy that was made without its log ({self._log.name}), or "
                    "of another program; restore a whole one, or choose another path"
                )
            raise StoreError(f"{self.path} is the database of another program; choose another path")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} has version {version}, and this srup knows {len(MIGRATIONS)}: use a newer srup"
            )
        if self._read_only and version < len(MIGRATIONS):
            raise StoreError(f"{self.path} has version {version}, of an older srup: start its owner with this one once")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * 4096}")
        db.execute("PRAGMA cache_size = 0")  # the contents are read once, in order: see open()
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA secure_delete = FAST")
        said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if said != "ok":
            raise damaged(self.path, " ".join(said.split()))
        if not self._read_only:
            migrate(db, version)
            db.executescript(_STEP)

    @staticmethod
    def _nothing_in(db: sqlite3.Connection) -> bool:
        return bool(db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0)

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(f"{self.path}: {error.strerror}: {REMEDIES[sqlite3.SQLITE_CANTOPEN]}")

    def _own(self, owner: int) -> None:
        """Write down whose it is, when it has a witness, and only then begin a log: the file itself must know it."""
        if not self._owned:
            self._db.execute("UPDATE store SET owner = ?", (NUMBER.pack(owner),))
        self._db.execute("PRAGMA journal_mode = WAL")
        self._keeper = LogKeeper(self.path)

    def _check_writable(self) -> None:
        """Refuse what would be lost: nobody finds a commit in a log that is not in its place any more."""
        if self._read_only:
            raise StoreError(f"{self.path} was opened with read_only=True")
        try:
            number = self._log.stat().st_ino
        except FileNotFoundError:
            number = 0
        if self._log_number not in (0, number):
            raise StoreError(
                f"{self._log} was deleted or replaced while {self.path} was in use: let no other program open it, and "
                "start again"
            )
        self._log_number = number

    def _check_owner(self, owner: int | None) -> None:
        present, self._commits, self._base = self._db.execute("SELECT owner, commits, base FROM store").fetchone()
        self._owned = present is not None
        if owner is not None and present not in (None, NUMBER.pack(owner)):
            raise StoreError(f"{self.path} belongs to {_integer(present):x}, not to {owner:x}; choose another path")

    def _check_witness(self) -> None:
        """Refuse an old database; one that is to be adopted becomes another one, with a witness of its own."""
        (database,) = self._db.execute("SELECT id FROM store").fetchone()
        known = None
        if self._adopt:
            if not self._fresh or self._witness.path.exists():
                database = os.urandom(16)
                self._db.execute("UPDATE store SET id = ?, adopted = 1", (database,))
        elif (known := self._witness.read()) is None:
            if self._owned or self._commits:
                raise StoreError(f"{self._witness.path} is missing: {self.path} may be an old copy; {ADOPT}")
        elif known.database != database:
            raise StoreError(
                f"{self._witness.path} is of another database than {self.path}: if this one was restored from a backup,"
                " open it with adopt=True"
            )
        elif known.commits > self._commits:
            raise StoreError(
                f"{self.path} has {self._commits} commits, and had {known.commits}: it is an old backup; open it with"
                " adopt=True"
            )
        if known is None:
            self._witness.replace_by(Position(database, self._commits))
        self._witness.open()
        self._adopt = False

    def _keys(self) -> Iterator[KeyRecord]:
        """Give the keys one at a time, for those of a large fleet are most of what it has, and fill no cache."""
        with self._translated():
            self._db.execute("PRAGMA cache_size = 0")
            yield from map(_unpack_key, self._db.execute("SELECT * FROM keys"))
            self._db.execute(f"PRAGMA cache_size = {_CACHE}")

    def _state(self) -> State:
        def rows(query: str) -> sqlite3.Cursor:
            return self._db.execute(f"SELECT {query}")

        return State(
            [*map(_unpack_partner, rows("* FROM partners"))],
            [*map(_unpack_exchange, rows("* FROM exchanges"))],
            [*map(_unpack_inbox, rows("* FROM inbox ORDER BY number, partner"))],
            [*map(_unpack_outbox, rows("* FROM outbox ORDER BY number, partner"))],
            self._keys(),
            [fingerprint.decode() for (fingerprint,) in rows("* FROM barred")],
            [Fact(_integer(row[0]), row[1].decode(), row[2].decode()) for row in rows("* FROM facts")],
            bool(rows("adopted FROM store").fetchone()[0]),
        )
