"""The file of an SQLite database of srup, as all see it who open it: its schema, its log, its errors and its lock.

One process has the store; others may post orders and read meanwhile, each with a connection of its own.
"""

import ctypes
import fcntl
import os
import sqlite3
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol
from weakref import WeakSet

from ..errors import StoreError

__all__ = [
    "ADOPT",
    "APPLICATION",
    "MIGRATIONS",
    "NUMBER",
    "REMEDIES",
    "TIME",
    "LogKeeper",
    "Visitor",
    "check_log",
    "connect",
    "damaged",
    "forget_at_fork",
    "migrate",
    "never_close",
    "read_head",
    "translated",
]

ADOPT: Final = "open it with adopt=True: SqliteStore(path, adopt=True), or --adopt"
APPLICATION: Final = 0x5352_5550
"""In the file as application_id: "SRUP"."""

NUMBER: Final = struct.Struct(">Q")
TIME: Final = struct.Struct(">d")

MIGRATIONS: Final = (
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
    # What tells a log that is not of this file, since SQLite applies any: which file this is, for a copy made anew has
    # other pages, and a commit that is in the file itself since before the present log began.
    "ALTER TABLE store ADD COLUMN file BLOB; ALTER TABLE store ADD COLUMN base INTEGER NOT NULL DEFAULT 0;",
    # The mailbox: orders that wait, what became of orders, and until when one may ask.
    """
    CREATE TABLE orders(place INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, posted REAL NOT NULL,
        urgent INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE INDEX urgent_orders ON orders(place) WHERE urgent;
    CREATE TABLE reports(number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL, body BLOB NOT NULL);
    CREATE INDEX reports_of ON reports(id);
    CREATE TABLE told(id BLOB PRIMARY KEY, until BLOB NOT NULL) WITHOUT ROWID;
    CREATE INDEX told_until ON told(until);
    """,
    # Campaigns, how often each was saved, and what is known of each device in one.
    """
    CREATE TABLE campaigns(name TEXT PRIMARY KEY, saves INTEGER NOT NULL, document BLOB NOT NULL, record BLOB NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE campaign_devices(campaign TEXT NOT NULL, device BLOB NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY(campaign, device)) WITHOUT ROWID;
    """,
    # The audit of both directions: rows have another form (those from before keep theirs), and keys that signed them.
    """
    ALTER TABLE audit ADD COLUMN form INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX audit_of ON audit(partner, at, number);
    CREATE TABLE signers(fingerprint BLOB PRIMARY KEY, used BLOB NOT NULL, key BLOB NOT NULL) WITHOUT ROWID;
    CREATE INDEX signers_used ON signers(used);
    """,
)
"""What leads from each version of the schema to the next; a new file starts at version 0."""

REMEDIES: Final = {
    sqlite3.SQLITE_FULL: "make room; the next commit is tried as if this one had not been",
    sqlite3.SQLITE_IOERR: "look at the disk and its limits; the file and its folder must be writable",
    sqlite3.SQLITE_BUSY: "another process is writing to it for too long, or has it to itself: an older srup does",
    sqlite3.SQLITE_LOCKED: "another process uses it; only one may",
    sqlite3.SQLITE_READONLY: "the file and its folder must be writable",
    sqlite3.SQLITE_CANTOPEN: "its folder must be there, and both must be writable",
    sqlite3.SQLITE_PERM: "the file and its folder must be writable",
    sqlite3.SQLITE_CORRUPT: "restore it from a backup and open it with adopt=True",
    sqlite3.SQLITE_NOTADB: "it is no database of srup, or damaged; choose another path or restore it",
}


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring the schema from a version to the present one."""
    for number in range(version, len(MIGRATIONS)):
        db.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA application_id = {APPLICATION};"
            f" PRAGMA user_version = {number + 1}; COMMIT;"
        )


def damaged(path: Path, reason: object) -> StoreError:
    """Return the error for a database that holds what nobody has written."""
    return StoreError(f"{path} is damaged ({reason}): {REMEDIES[sqlite3.SQLITE_CORRUPT]}")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Say what SQLite says with the file's name and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        remedy = REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "nothing has changed")
        raise StoreError(f"{path}: {error}: {remedy}") from None
    except (struct.error, ValueError, TypeError, AttributeError) as error:  # of a record that is read
        raise damaged(path, error) from None


def read_head(path: Path, how: str) -> tuple[bytes | None, int, int] | None:
    """Return which file it is, its commits, and its base; ``immutable=1`` reads it without its log.

    None if it cannot be read: it is of an older version, or the power failed while the log was copied back.
    """
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, isolation_level=None)) as db:
            row: tuple[bytes | None, int, int] = db.execute("SELECT file, commits, base FROM store").fetchone()
            return row
    except sqlite3.Error:
        return None


def check_log(path: Path) -> None:
    """Refuse a log that is not of this file, before SQLite takes it for the rest of it and writes it back."""
    log = path.with_name(f"{path.name}-wal")
    if not (log.exists() and log.stat().st_size):
        return
    alone, together = read_head(path, "immutable=1"), read_head(path, "mode=ro")
    if alone is None or together is None:
        return
    if alone[0] != together[0] or not together[2] <= alone[1] <= together[1]:
        raise StoreError(
            f"{path} and {log} do not belong together: if the database was restored from a backup, move "
            f"{log.name} away and {ADOPT}; else put back the database that was there"
        )


def connect(path: Path, owner: int | None, patience: float, *, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to the database of ``owner``, beside that of its server, which may run or not.

    None stands for whoever owns it.

    It waits for others that write for ``patience`` seconds. StoreError when there is none, or when it is of another
    server or version; nothing is made or changed.
    """
    if not path.exists() or not path.stat().st_size:
        raise StoreError(f"{path} is missing: name the database of a server that was started once")
    mode = "ro" if read_only else "rw"
    db = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=patience, isolation_level=None, check_same_thread=False
    )
    try:
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            raise StoreError(f"{path} is the database of another program; name that of a server")
        if version != len(MIGRATIONS):
            older = version < len(MIGRATIONS)
            remedy = "start its server with this srup once" if older else "use a newer srup"
            raise StoreError(f"{path} has version {version}, and this srup uses {len(MIGRATIONS)}: {remedy}")
        (present,) = db.execute("SELECT owner FROM store").fetchone()
        if present is None or (owner is not None and present != NUMBER.pack(owner)):
            whose = "nobody yet" if present is None else f"{int.from_bytes(present, 'big'):x}"
            wanted = "" if owner is None else f", not to {owner:x}"
            raise StoreError(f"{path} belongs to {whose}{wanted}")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")  # the server does that, or whoever closes it last
    except BaseException:
        db.close()
        raise
    return db


class LogKeeper:
    """Keeps other processes from taking themselves for the last that use a database: that one deletes its log.

    SQLite's own lock says that somebody uses it; it goes when anything in this process opens and closes the file. This
    one stays, where the system has locks of open files.
    """

    _SHARED = 0x4000_0002, 510  # the bytes by which SQLite says that somebody reads the file

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._lock(fcntl.F_RDLCK)

    def _lock(self, kind: int) -> None:
        command = getattr(fcntl, "F_OFD_SETLK", None)
        begin, length = self._SHARED
        if command is not None:
            with suppress(OSError):  # not every file system has them
                fcntl.fcntl(self._file, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, begin, length, 0))

    def release(self) -> None:
        """Let the log be deleted, before the connection is closed."""
        self._lock(fcntl.F_UNLCK)

    def close(self) -> None:
        """Let go of the file, after the connection was closed."""
        os.close(self._file)


# A fork: everything is the parent's.


class Forgotten(Protocol):
    """Something with a connection that a forked child must leave alone."""

    def abandon(self) -> None:
        """Leave everything to the parent."""


_OPENED: Final[WeakSet[Any]] = WeakSet()


def forget_at_fork(each: Forgotten) -> None:
    """Have something abandoned in every child that is forked from now on."""
    _OPENED.add(each)


def never_close(db: sqlite3.Connection) -> None:
    """Keep a connection from ever being closed in this process, not even when the interpreter ends.

    That would copy the log back and delete it below the parent's hands.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def _abandon_all() -> None:
    for each in list(_OPENED):
        each.abandon()


os.register_at_fork(after_in_child=_abandon_all)


class Visitor:
    """A connection to the database of ``owner`` beside its server, used by one thread at a time, for ``what`` is in it.

    It waits for others that write for ``patience`` seconds. StoreError as from :func:`connect`, and once it is closed.
    """

    def __init__(self, path: str | os.PathLike[str], owner: int, what: str, patience: float) -> None:
        self.path: Final = Path(os.path.realpath(path))
        self.closed: Final = threading.Event()
        self._what = what
        self._lock = threading.Lock()
        with translated(self.path):
            check_log(self.path)
            self._db: sqlite3.Connection | None = connect(self.path, owner, patience)
        forget_at_fork(self)

    @contextmanager
    def __call__(self) -> Iterator[sqlite3.Connection]:
        """Give the connection within a block."""
        with self._lock, translated(self.path):
            if self._db is None:
                raise StoreError(f"the {self._what} of {self.path} is not open")
            yield self._db

    @contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Give the connection within a transaction, which an error takes back."""
        with self() as db:
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection, and let whoever waits for ``closed`` go on."""
        self.closed.set()
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def abandon(self) -> None:
        """In a forked child: leave the connection to the parent."""
        self._lock = threading.Lock()
        if self._db is not None:
            never_close(self._db)
            self._db = None
