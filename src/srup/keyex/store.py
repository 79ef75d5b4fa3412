"""What the key exchange service must not forget, in SQLite: durable when a transaction ends (WAL, synchronous FULL).

A folder's commands and its service share the file; every change is one transaction that takes the write lock first, so
what a decision has read still holds when it is written. Reads outside a transaction use connections of their own and
wait for no writer, whether it is in this process or another.

SQLite's own lock on the file does not last: it goes when anything else in a process closes the file, after copying it
for example. Another process that closes the database believes then that it is alone, and deletes the log into which the
first one goes on writing. So whoever has it open shares a lock on a file of its own (``-lock``), which nothing else
opens, and only who has that alone closes the database in SQLite's way.
"""

import ctypes
import fcntl
import os
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import KeyServiceError

__all__ = ["VERSION", "Candidate", "Invitation", "Issued", "Registration", "Rotation", "Store"]

_APPLICATION: Final = 0x5352_4B58  # "SRKX", in the file as application_id
_PATIENCE: Final = 10.0  # seconds to wait for another process that writes, and for another thread
_KEPT: Final = 32  # certificates of an identity, good or not; it can have 16 good ones

# Identities are unsigned 64-bit numbers, which SQLite has not: they are hexadecimal text.
_UPGRADES: Final = (
    # to version 1
    """
CREATE TABLE registrations(identity TEXT PRIMARY KEY, key TEXT NOT NULL, type TEXT NOT NULL, server INTEGER NOT NULL,
    since REAL NOT NULL, revoked REAL);
CREATE TABLE keys(digest BLOB PRIMARY KEY, identity TEXT NOT NULL);
CREATE TABLE rotations(identity TEXT NOT NULL, number INTEGER NOT NULL, key TEXT NOT NULL, old_signature BLOB NOT NULL,
    new_signature BLOB NOT NULL, PRIMARY KEY(identity, number));
CREATE TABLE candidates(number INTEGER PRIMARY KEY, identity TEXT NOT NULL, fingerprint TEXT NOT NULL,
    key TEXT NOT NULL, type TEXT NOT NULL, asked REAL NOT NULL, UNIQUE(identity, fingerprint));
CREATE TABLE invitations(digest BLOB PRIMARY KEY, identity TEXT NOT NULL UNIQUE, server INTEGER NOT NULL,
    expires REAL NOT NULL);
CREATE TABLE certificates(serial TEXT PRIMARY KEY, identity TEXT NOT NULL, key BLOB NOT NULL, issued REAL NOT NULL,
    expires REAL NOT NULL, pem BLOB NOT NULL);
CREATE INDEX certificates_of ON certificates(identity);
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL)
""",
    # to version 2: where a candidate came from; which certificates are revoked, and which registrations are special,
    # without reading all of them
    """
ALTER TABLE candidates ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN revoked INTEGER NOT NULL DEFAULT 0;
CREATE INDEX keys_of ON keys(identity);
UPDATE certificates SET revoked = 1 WHERE
    identity IN (SELECT identity FROM registrations WHERE revoked IS NOT NULL)
    OR key IS NOT (SELECT digest FROM keys WHERE identity = certificates.identity ORDER BY keys.rowid DESC LIMIT 1);
DROP INDEX keys_of;
CREATE INDEX certificates_revoked ON certificates(serial) WHERE revoked;
CREATE INDEX certificates_expiry ON certificates(expires);
CREATE INDEX servers ON registrations(since, identity) WHERE server AND revoked IS NULL;
CREATE INDEX revoked ON registrations(identity) WHERE revoked IS NOT NULL
""",
    # to version 3: nothing is looked up by its expiry any more
    "DROP INDEX certificates_expiry",
)

VERSION: Final = len(_UPGRADES)
"""Of the schema; it stands in the file as ``user_version``. Older files are upgraded when they are opened."""


class Registration(NamedTuple):
    """An identity and its key. ``since`` and ``revoked`` are Unix times; ``revoked`` is None while it is good."""

    identity: int
    key: str  # PEM
    type: str
    server: bool
    since: float
    revoked: float | None


class Candidate(NamedTuple):
    """A key that somebody asked to register for an identity; the operator decides. ``origin`` is where it came from."""

    identity: int
    fingerprint: str
    key: str
    type: str
    asked: float
    origin: str = ""


class Invitation(NamedTuple):
    """A one-time enrolment token, of which only the SHA-256 is kept."""

    digest: bytes
    identity: int
    server: bool
    expires: float


class Issued(NamedTuple):
    """A client's certificate; ``key`` is the SHA-256 of the registered signing key for which it was issued.

    ``pem`` is empty when it had expired as another one was issued.
    """

    serial: int
    identity: int
    key: bytes
    issued: float
    expires: float
    pem: bytes


class Rotation(NamedTuple):
    """A new key in the place of the one before, signed by both."""

    key: str
    old_signature: bytes
    new_signature: bytes


_open_here: Final[Counter[tuple[int, int]]] = Counter()  # stores of this process, by device and inode
_counting: Final = threading.Lock()


class Store:
    """The service's database at ``path``, made if it is missing. Safe to use from many threads.

    KeyServiceError says why a file cannot be used: it is corrupt, of a newer version, or something else altogether;
    later, that the disk is full or another process holds it too long.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path = Path(path)
        place = Path(os.path.realpath(path))  # beside it SQLite has its log, wherever a link is
        self._log = place.with_name(f"{place.name}-wal")
        self._log_number = 0  # its inode
        self._lock = threading.RLock()
        self._writer = 0  # the thread in a transaction
        self._readers: deque[sqlite3.Connection] = deque()  # that nobody uses at the moment
        self._closed = False
        try:
            path.touch(0o600)
            self._claim = _share(place)
        except OSError as error:
            raise KeyServiceError(0, "", f"{error.filename or path}: {error.strerror}") from None
        try:
            self._db = self._connect()
            _keep(self._db)
            found = path.stat()
            self._file = found.st_dev, found.st_ino
            with _counting:
                _open_here[self._file] += 1
        except BaseException:
            os.close(self._claim)
            raise
        try:
            with self._guarded():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        with self._guarded():
            return sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        said = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        self._log_number = self._present_log()
        if said != "ok":
            raise KeyServiceError(0, "", f"{self._path} is corrupt ({said}); restore it from a backup")
        application, version = self._marks()
        if (application, version) != (_APPLICATION, VERSION):
            with self.writing():
                application, version = self._marks()  # another process may have come first
                self._upgrade(application, version)

    def _marks(self) -> tuple[int, int]:
        application, version = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        return application, version

    def _upgrade(self, application: int, version: int) -> None:
        empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if application != _APPLICATION and not (application == 0 and empty):
            raise KeyServiceError(0, "", f"{self._path} is not the database of a key exchange service")
        if version > VERSION:
            raise KeyServiceError(
                0, "", f"{self._path} has version {version}, and this srup knows {VERSION}: use a newer srup"
            )
        for script in _UPGRADES[version:]:
            for command in script.split(";"):
                self._db.execute(command)
        self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
        self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            while self._readers:
                self._readers.pop().close()
            if not self._closed:
                self._closed = True
                with _counting:
                    if _open_here[self._file] > 1 or self._is_alone():  # SQLite knows of others in this process
                        _open_here[self._file] -= 1
                        self._db.close()
                        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._db))
                os.close(self._claim)

    def _is_alone(self) -> bool:
        """Whether no other process has the database open, and the log that is deleted when it is closed is ours."""
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._log_number in (0, self._present_log())

    def _present_log(self) -> int:
        try:
            return self._log.stat().st_ino
        except FileNotFoundError:
            return 0

    def _check_log(self) -> None:
        """Refuse what would be lost, or is old: nobody else uses a log that is not in its place any more."""
        if self._log_number != self._present_log():
            raise KeyServiceError(
                0,
                "",
                f"{self._log} was deleted or replaced while {self._path} was in use: let no other program open it, and "
                "start again",
            )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Translate what the disk, or another process, does to us; a broken constraint is a fault of ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise KeyServiceError(0, "", f"{self._path}: {error}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads of this process from writing."""
        if not self._lock.acquire(timeout=_PATIENCE):
            raise KeyServiceError(0, "", f"{self._path}: another thread has written for {_PATIENCE:g} s")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make what is done inside one transaction: all of it happens, or nothing if anything is raised."""
        with self._locked():
            with self._guarded():
                self._db.execute("BEGIN IMMEDIATE")
            self._writer = threading.get_ident()
            try:
                yield
                with self._guarded():
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._writer = 0

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection that sees what this thread's transaction has done, else one that nobody waits for."""
        if self._writer == threading.get_ident():
            yield self._db
            return
        if self._closed:
            raise KeyServiceError(0, "", f"{self._path} is closed")
        self._check_log()
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._connect()
        try:
            yield reader
        finally:
            self._readers.append(reader)
            while self._closed and self._readers:
                _keep(self._readers.pop())

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._reading() as db, self._guarded(), closing(db.execute(query, values)) as cursor:
            return cursor.fetchall()

    def _do(self, command: str, *values: Any) -> int:
        """Return how many rows it has changed."""
        with self._locked(), self._guarded():
            self._check_log()
            with closing(self._db.execute(command, values)) as cursor:
                return cursor.rowcount

    # Registrations.

    def registration(self, identity: int) -> Registration | None:
        """Return the registration of an identity, revoked or not."""
        rows = self._rows("SELECT * FROM registrations WHERE identity = ?", f"{identity:x}")
        return _registration(rows[0]) if rows else None

    def registrations(self) -> list[Registration]:
        """Return all of them, the oldest first."""
        return [_registration(row) for row in self._rows("SELECT * FROM registrations ORDER BY since, identity")]

    def servers(self) -> list[int]:
        """Return the servers that are registered and not revoked, the oldest first."""
        query = "SELECT identity FROM registrations WHERE server AND revoked IS NULL ORDER BY since, identity"
        return [int(row[0], 16) for row in self._rows(query)]

    def devices(self) -> list[int]:
        """Return those who are registered, no servers, and not revoked."""
        query = "SELECT identity FROM registrations WHERE NOT server AND revoked IS NULL"
        return [int(row[0], 16) for row in self._rows(query)]

    def revoked(self) -> list[int]:
        """Return the identities that are revoked."""
        query = "SELECT identity FROM registrations WHERE revoked IS NOT NULL ORDER BY identity"
        return [int(row[0], 16) for row in self._rows(query)]

    def owner_of(self, digest: bytes) -> int | None:
        """Return the identity for which the signing key with this SHA-256 is, or was ever, registered."""
        rows = self._rows("SELECT identity FROM keys WHERE digest = ?", digest)
        return int(rows[0][0], 16) if rows else None

    def register(self, registration: Registration, digest: bytes) -> None:
        """Add a registration whose signing key has this SHA-256."""
        identity, *rest = registration
        self._do("INSERT INTO registrations VALUES(?, ?, ?, ?, ?, ?)", f"{identity:x}", *rest)
        self._do("INSERT INTO keys VALUES(?, ?)", digest, f"{identity:x}")

    def revoke(self, identity: int, now: float) -> None:
        """Note that an identity, and all its certificates, are not to be trusted any more."""
        self._do("UPDATE registrations SET revoked = ? WHERE identity = ?", now, f"{identity:x}")
        self._revoke_certificates(identity)

    def rotate(self, identity: int, rotation: Rotation, digest: bytes) -> None:
        """Put another key in the place of the registered one, whose certificates are revoked."""
        self._do("UPDATE registrations SET key = ? WHERE identity = ?", rotation.key, f"{identity:x}")
        self._do("INSERT INTO keys VALUES(?, ?)", digest, f"{identity:x}")
        number = len(self.rotations(identity))
        self._do("INSERT INTO rotations VALUES(?, ?, ?, ?, ?)", f"{identity:x}", number, *rotation)
        self._revoke_certificates(identity)

    def _revoke_certificates(self, identity: int) -> None:
        if self._do("UPDATE certificates SET revoked = 1 WHERE identity = ? AND NOT revoked", f"{identity:x}"):
            self.set("revocations", str(self.revocations + 1))

    @property
    def revocations(self) -> int:
        """A number that grows whenever certificates are revoked."""
        return int(self.setting("revocations") or 0)

    def revoked_serials(self) -> list[int]:
        """Return the serial numbers of the certificates that are revoked."""
        return [int(row[0], 16) for row in self._rows("SELECT serial FROM certificates WHERE revoked ORDER BY serial")]

    def rotations(self, identity: int) -> list[Rotation]:
        """Return how the key of an identity has changed, the oldest first."""
        query = "SELECT key, old_signature, new_signature FROM rotations WHERE identity = ? ORDER BY number"
        return [Rotation(*row) for row in self._rows(query, f"{identity:x}")]

    # Candidates.

    def candidates(self, identity: int | None = None) -> list[Candidate]:
        """Return who waits for the operator, the oldest first."""
        query = "SELECT identity, fingerprint, key, type, asked, origin FROM candidates"
        if identity is None:
            rows = self._rows(f"{query} ORDER BY number")
        else:
            rows = self._rows(f"{query} WHERE identity = ? ORDER BY number", f"{identity:x}")
        return [Candidate(int(row[0], 16), *row[1:]) for row in rows]

    def propose(self, candidate: Candidate, per_identity: int, altogether: int) -> None:
        """Add a candidate unless it waits already.

        Where there are too many, the oldest from the origin with the most makes room, so nobody displaces the others
        from one place.
        """
        identity, *rest = candidate
        name = f"{identity:x}"
        self._do(
            "INSERT OR IGNORE INTO candidates(identity, fingerprint, key, type, asked, origin)"
            " VALUES(?, ?, ?, ?, ?, ?)",
            name,
            *rest,
        )
        self._make_room(per_identity, name)
        self._make_room(altogether, None)

    def _make_room(self, most: int, identity: str | None) -> None:
        query = "SELECT count(*) FROM candidates WHERE ?1 IS NULL OR identity = ?1"
        for _ in range(most, self._rows(query, identity)[0][0]):
            self._do(
                "DELETE FROM candidates WHERE number = (SELECT min(number) FROM candidates"
                " WHERE ?1 IS NULL OR identity = ?1 GROUP BY origin ORDER BY count(*) DESC, min(number) LIMIT 1)",
                identity,
            )

    def dismiss(self, identity: int, fingerprint: str | None = None) -> int:
        """Drop one candidate for an identity, or all; return how many there were."""
        if fingerprint is None:
            return self._do("DELETE FROM candidates WHERE identity = ?", f"{identity:x}")
        return self._do("DELETE FROM candidates WHERE identity = ? AND fingerprint = ?", f"{identity:x}", fingerprint)

    # Invitations.

    def invitation(self, identity: int) -> Invitation | None:
        """Return the token that is out for an identity."""
        rows = self._rows("SELECT * FROM invitations WHERE identity = ?", f"{identity:x}")
        return _invitation(rows[0]) if rows else None

    def invitations(self) -> list[Invitation]:
        """Return all tokens that are out, the first to expire first."""
        return [_invitation(row) for row in self._rows("SELECT * FROM invitations ORDER BY expires")]

    def invite(self, invitation: Invitation) -> None:
        """Add a token; an earlier one for the same identity is void."""
        digest, identity, server, expires = invitation
        self.disinvite(identity)
        self._do("INSERT INTO invitations VALUES(?, ?, ?, ?)", digest, f"{identity:x}", server, expires)

    def disinvite(self, identity: int) -> int:
        """Make the token of an identity void; return how many there were."""
        return self._do("DELETE FROM invitations WHERE identity = ?", f"{identity:x}")

    # Certificates.

    def issued(self, identity: int | None = None) -> list[Issued]:
        """Return the certificates of an identity, or all, the latest first."""
        query = "SELECT serial, identity, key, issued, expires, pem FROM certificates"
        if identity is None:
            rows = self._rows(f"{query} ORDER BY issued DESC, serial")
        else:
            rows = self._rows(f"{query} WHERE identity = ? ORDER BY issued DESC", f"{identity:x}")
        return [Issued(int(row[0], 16), int(row[1], 16), *row[2:]) for row in rows]

    def issue(self, issued: Issued) -> None:
        """Note a certificate, before anybody gets it.

        Which ones have expired only the clock says, and it may be wrong; so a serial number that is revoked, or may
        have to be, does not depend on it: kept for ever are those that are revoked, and of the others of an identity
        the latest and those that are good.
        """
        serial, identity, *rest = issued
        name = f"{identity:x}"
        self._do("INSERT INTO certificates VALUES(?, ?, ?, ?, ?, ?, 0)", f"{serial:x}", name, *rest)
        self._do(
            "DELETE FROM certificates WHERE identity = ?1 AND NOT revoked AND expires <= ?2 AND rowid NOT IN"
            " (SELECT rowid FROM certificates WHERE identity = ?1 ORDER BY rowid DESC LIMIT ?3)",
            *(name, issued.issued, _KEPT),
        )
        self._do("UPDATE certificates SET pem = x'' WHERE identity = ? AND expires <= ?", name, issued.issued)

    # The rest.

    def expire(self, now: float, asked_before: float) -> None:
        """Forget tokens that have expired at ``now``, and candidates from before ``asked_before``."""
        self._do("DELETE FROM invitations WHERE expires <= ?", now)
        self._do("DELETE FROM candidates WHERE asked <= ?", asked_before)

    def setting(self, name: str) -> str | None:
        """Return a value that was set, None if it never was."""
        rows = self._rows("SELECT value FROM settings WHERE name = ?", name)
        return rows[0][0] if rows else None

    def set(self, name: str, value: str) -> None:
        """Set a value."""
        self._do("INSERT OR REPLACE INTO settings VALUES(?, ?)", name, value)


def _keep(db: sqlite3.Connection) -> None:
    """Do not let Python close it, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def _share(path: Path) -> int:
    """Share the lock file of a database, made for its owner if it is missing; return the descriptor. Raises OSError."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    claim = os.open(path.with_name(f"{path.name}-lock"), flags, 0o600)
    try:
        if os.geteuid() == 0:
            owner = path.stat()
            os.fchown(claim, owner.st_uid, owner.st_gid)
        fcntl.flock(claim, fcntl.LOCK_SH)  # whoever has it alone is about to let go of it
    except BaseException:
        os.close(claim)
        raise
    return claim


def _registration(row: Any) -> Registration:
    return Registration(int(row[0], 16), row[1], row[2], bool(row[3]), row[4], row[5])


def _invitation(row: Any) -> Invitation:
    return Invitation(row[0], int(row[1], 16), bool(row[2]), row[3])
