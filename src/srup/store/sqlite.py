"""The embedded store: one SQLite database, durable when a commit returns (WAL, synchronous FULL).

A commit is a single statement. Python's sqlite3 gives up the GIL and takes it back for every row of ``executemany``,
which beside a busy thread costs more than the rows; so all rows of a table are joined into one blob, a JSON array says
where each begins and how long it is, and a temporary trigger takes them apart inside SQLite. A statement is a
transaction of its own: it happens or it does not.

Numbers that are keys are 8 bytes, the most significant first: SQLite's integers are signed, and these sort as they
should. Times of audit rows are IEEE doubles in the same order, which sort too as long as they are not negative. What
SQLite needs no look into stands packed in the column ``record``.
"""

import ctypes
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, starmap
from operator import add
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from ..errors import StoreError
from ..records import AuditRow, Changes, ExchangeRecord, Fact, InboxEntry, KeyRecord, OutboxEntry, PartnerRecord, State
from .witness import Position, Witness

__all__ = ["SqliteStore"]

_APPLICATION: Final = 0x5352_5550  # "SRUP", in the file as application_id
_PAGE: Final = 1000  # audit rows that are read, and
_PRUNED: Final = 10_000  # deleted, at a time: between them commits get their turn
_WAL_PAGES: Final = 1000  # the log begins anew when it has so many and is copied back: 4 MB and one commit
_CACHE: Final = -16_384  # KiB of memory for pages, taken as needed

# What leads from each version of the schema to the next; a new file starts at version 0.
_MIGRATIONS: Final = (
    """
    CREATE TABLE store(id BLOB NOT NULL, owner BLOB, commits INTEGER NOT NULL);
    INSERT INTO store VALUES(randomblob(16), NULL, 0);
    CREATE TABLE partners(identity BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE exchanges(partner BLOB, token BLOB, record BLOB NOT NULL, PRIMARY KEY(partner, token)) WITHOUT ROWID;
    CREATE TABLE inbox(number BLOB, partner BLOB, record BLOB NOT NULL, PRIMARY KEY(number, partner)) WITHOUT ROWID;
    CREATE TABLE outbox(number BLOB, partner BLOB, record BLOB NOT NULL, PRIMARY KEY(number, partner)) WITHOUT ROWID;
    CREATE TABLE keys(identity BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE barred(fingerprint BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE facts(identity BLOB, name BLOB, record BLOB NOT NULL, PRIMARY KEY(identity, name)) WITHOUT ROWID;
    CREATE TABLE audit(at BLOB, number INTEGER, partner BLOB NOT NULL, record BLOB NOT NULL, PRIMARY KEY(at, number))
        WITHOUT ROWID;
    """,
    "ALTER TABLE store ADD COLUMN adopted INTEGER NOT NULL DEFAULT 0;",
)

_REMEDIES: Final = {
    sqlite3.SQLITE_FULL: "make room; the next commit is tried as if this one had not been",
    sqlite3.SQLITE_IOERR: "look at the disk and its limits",
    sqlite3.SQLITE_BUSY: "another process uses it; only one may",
    sqlite3.SQLITE_LOCKED: "another process uses it; only one may",
    sqlite3.SQLITE_READONLY: "the file and its folder must be writable",
    sqlite3.SQLITE_CANTOPEN: "its folder must be there, and both must be writable",
    sqlite3.SQLITE_PERM: "the file and its folder must be writable",
    sqlite3.SQLITE_CORRUPT: "restore it from a backup and open it with adopt=True",
    sqlite3.SQLITE_NOTADB: "it is no database of srup, or damaged; choose another path or restore it",
}


# Records as bytes: first what is a column of its own, then the rest.

_LENGTH: Final = 31  # bits
_FULL: Final = (1 << 1024) - 1
_NUMBER: Final = struct.Struct(">Q")
_PAIR: Final = struct.Struct(">QQ")
_TIME: Final = struct.Struct(">d")
_PARTNER: Final = struct.Struct(">QBQQ")
_INBOX: Final = struct.Struct(">QQHH")
_OUTBOX: Final = struct.Struct(">QQdH")
_KEY: Final = struct.Struct(">QdBII")
_AUDIT: Final = struct.Struct(">dQQBH")

Row = Sequence[Any]


def _counted(name: bytes) -> bytes:
    if len(name) > 99_999:
        raise ValueError(f"a name has {len(name)} bytes, and may have 99999")
    return b"%05d%b" % (len(name), name)


def _named(identity: int, name: bytes, record: bytes = b"") -> bytes:
    return _NUMBER.pack(identity) + _counted(name) + record


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
    return _named(partner, token, _TIME.pack(expiry) + body.encode())


def _unpack_exchange(row: Row) -> ExchangeRecord:
    (expiry,) = _TIME.unpack(row[2][:8])
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


def _pack_audit(at: float, partner: int, sequence_id: int, kind: int, token: bytes, outcome: str) -> bytes:
    return _AUDIT.pack(at, partner, sequence_id, kind, len(token)) + token + outcome.encode()


def _unpack_audit(row: Row) -> AuditRow:
    at, _, partner, record = row
    at, partner, sequence_id, kind, token = _AUDIT.unpack_from(at + partner + record)
    rest = record[_AUDIT.size - 16 :]
    return AuditRow(at, partner, sequence_id, kind, rest[:token], rest[token:].decode())


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
        _NUMBER.pack,
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
        _pack_audit,
        "at:8, (SELECT commits FROM store) << 24 | key, partner:8, record:*",
        ("INSERT INTO audit(at, number, partner, record) {rows}",),
    ),
    _List("ended", _named, "partner:8, token:n", _remove("exchanges", "partner, token")),
    _List("finished", _PAIR.pack, "partner:8, number:8", _remove("inbox", "partner, number")),
    _List("settled", _PAIR.pack, "partner:8, number:8", _remove("outbox", "partner, number")),
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
    """A Store in the SQLite file at ``path``, with mode 0600, which one process at a time may use.

    ``create``: make the file if it is missing. ``adopt``: take over a database that is, or may be, older than what was
    done since: restored from a backup, or without its witness. State.adopted then says so until the first commit.

    Beside it stand ``<path>-wal``, SQLite's log, which holds commits and must be moved and copied with the file, and
    ``<path>-witness`` (:class:`srup.store.witness.Witness`), which should stay out of backups: it is there to tell a
    restored one. A missing witness is made for a database without a commit, and refused for any other.

    SQLite's own lock keeps other processes out; it dies with the process. After a fork the store belongs to the parent.
    Every method may raise StoreError, which names the file and what to do; nothing has changed then.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True, adopt: bool = False) -> None:
        self.path = Path(path).absolute()
        self._create = create
        self._adopt = adopt
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._witness = Witness(self.path.with_name(f"{self.path.name}-witness"))
        self._fresh = False
        self._forked = False
        self._commits = 0

    def open(self, owner: int) -> State:
        """Return what is kept for ``owner``; a new database becomes that identity's."""
        with self._lock, self._translated():
            if self._connection is not None:
                self._check_owner(owner)
                return self._state()
            try:
                self._connect()
                self._check_owner(owner)
                self._check_witness()
                self._db.execute("UPDATE store SET owner = ? WHERE owner IS NULL", (_NUMBER.pack(owner),))
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
            self._db.execute(_COMMIT, parameters)
            self._commits += 1
            self._witness.note(self._commits)

    def audit(self, since: float = 0.0, partner: int | None = None) -> Iterator[AuditRow]:
        """Return the audit rows from ``since`` on, the oldest first; of one partner or of all."""
        at, number = _TIME.pack(max(since, 0.0)), -1
        of = b"" if partner is None else _NUMBER.pack(partner)
        while True:
            with self._lock, self._translated():
                rows = self._db.execute(
                    "SELECT * FROM audit WHERE (at, number) > (?, ?) AND (?3 = x'' OR partner = ?3)"
                    " ORDER BY at, number LIMIT ?",
                    (at, number, of, _PAGE),
                ).fetchall()
                found = [*map(_unpack_audit, rows)]
            yield from found
            if len(rows) < _PAGE:
                return
            at, number = rows[-1][:2]

    def prune(self, before: float, limit: int | None = None) -> int:
        """Delete the audit rows that are older than that, the oldest first, ``limit`` at most; return how many."""
        pruned = 0
        while True:
            most = _PRUNED if limit is None else min(_PRUNED, limit - pruned)
            with self._lock, self._translated():
                deleted = self._db.execute(
                    "DELETE FROM audit WHERE (at, number) IN"
                    " (SELECT at, number FROM audit WHERE at < ? ORDER BY at, number LIMIT ?)",
                    (_TIME.pack(max(before, 0.0)), most),
                ).rowcount
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
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Let go of the files. A second call does nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._witness.close()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path} is not open" + ": after a fork it is the parent's" * self._forked)
        return self._connection

    def _abandon(self) -> None:
        """In a forked child: leave everything to the parent.

        Closing the connection would copy the log back and delete it below the parent's hands, so it is never closed,
        not even when the interpreter ends.
        """
        if self._connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None
            self._forked = True
        self._lock = threading.RLock()  # a thread of the parent's may have held the other one
        self._witness.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Say what SQLite says with the file's name and what to do; leave no transaction behind."""
        try:
            yield
        except sqlite3.Error as error:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.rollback()
            remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "nothing has changed")
            raise StoreError(f"{self.path}: {error}: {remedy}") from None
        except (struct.error, UnicodeDecodeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, reason: object) -> StoreError:
        return StoreError(f"{self.path} is damaged ({reason}): {_REMEDIES[sqlite3.SQLITE_CORRUPT]}")

    def _connect(self) -> None:
        try:
            self._fresh = not self.path.exists() or self.path.stat().st_size == 0
            if self._fresh and not self._create:
                raise StoreError(f"{self.path} is missing; create=True makes a new database")
            if self._fresh and not self._adopt and self._witness.read() is not None:
                raise StoreError(
                    f"{self.path} is missing, and {self._witness.path} knows it: restore it, or open it with adopt=True"
                )
            self.path.touch(0o600)
        except OSError as error:
            remedy = _REMEDIES[sqlite3.SQLITE_CANTOPEN]
            raise StoreError(f"{self.path}: {error.strerror}: {remedy}") from None
        _OPENED.add(self)
        db = self._connection = sqlite3.connect(self.path, 0.0, isolation_level=None, check_same_thread=False)
        # Before the log is first looked at: then there is no shared memory, and no reader that could keep it from
        # beginning anew.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        empty = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if application != _APPLICATION and not (application == version == 0 and empty):
            raise StoreError(f"{self.path} is the database of another program; choose another path")
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"{self.path} has version {version}, and this srup knows {len(_MIGRATIONS)}: use a newer srup"
            )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * 4096}")
        db.execute("PRAGMA cache_size = 0")  # the contents are read once, in order: see open()
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA secure_delete = FAST")
        said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if said != "ok":
            raise self._damaged(" ".join(said.split()))
        for number in range(version, len(_MIGRATIONS)):
            db.executescript(
                f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA application_id = {_APPLICATION};"
                f" PRAGMA user_version = {number + 1}; COMMIT;"
            )
        db.executescript(_STEP)

    def _check_owner(self, owner: int) -> None:
        present = self._db.execute("SELECT owner FROM store").fetchone()[0]
        if present not in (None, _NUMBER.pack(owner)):
            raise StoreError(f"{self.path} belongs to {_integer(present):x}, not to {owner:x}; choose another path")

    def _check_witness(self) -> None:
        """Refuse an old database; one that is to be adopted becomes another one, with a witness of its own."""
        database, self._commits = self._db.execute("SELECT id, commits FROM store").fetchone()
        known = None
        if self._adopt:
            if not self._fresh or self._witness.path.exists():
                database = os.urandom(16)
                self._db.execute("UPDATE store SET id = ?, adopted = 1", (database,))
        elif (known := self._witness.read()) is None:
            if self._commits:
                raise StoreError(
                    f"{self._witness.path} is missing: {self.path} may be an old backup; open it with adopt=True"
                )
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

    def _state(self) -> State:
        def rows(query: str) -> sqlite3.Cursor:
            return self._db.execute(f"SELECT {query}")

        return State(
            [*map(_unpack_partner, rows("* FROM partners"))],
            [*map(_unpack_exchange, rows("* FROM exchanges"))],
            [*map(_unpack_inbox, rows("* FROM inbox ORDER BY number, partner"))],
            [*map(_unpack_outbox, rows("* FROM outbox ORDER BY number, partner"))],
            [*map(_unpack_key, rows("* FROM keys"))],
            [fingerprint.decode() for (fingerprint,) in rows("* FROM barred")],
            [Fact(_integer(row[0]), row[1].decode(), row[2].decode()) for row in rows("* FROM facts")],
            bool(rows("adopted FROM store").fetchone()[0]),
        )


_OPENED: Final[WeakSet[SqliteStore]] = WeakSet()


def _abandon_all() -> None:
    for store in list(_OPENED):
        store._abandon()


os.register_at_fork(after_in_child=_abandon_all)
