"""What the key exchange service must not forget, in SQLite: durable when a transaction ends (WAL, synchronous FULL).

A folder's commands and its service share the file; every change is one transaction that takes the write lock first, so
what a decision has read still holds when it is written.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import KeyServiceError

__all__ = ["VERSION", "Candidate", "Invitation", "Issued", "Registration", "Rotation", "Store"]

VERSION: Final = 1
"""Of the schema; it stands in the file as ``user_version``."""

_APPLICATION: Final = 0x5352_4B58  # "SRKX", in the file as application_id
_PATIENCE: Final = 10.0  # seconds to wait for another process that writes

# Identities are unsigned 64-bit numbers, which SQLite has not: they are hexadecimal text.
_SCHEMA: Final = """
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
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Registration(NamedTuple):
    """An identity and its key. ``since`` and ``revoked`` are Unix times; ``revoked`` is None while it is good."""

    identity: int
    key: str  # PEM
    type: str
    server: bool
    since: float
    revoked: float | None


class Candidate(NamedTuple):
    """A key that somebody asked to register for an identity; the operator decides."""

    identity: int
    fingerprint: str
    key: str
    type: str
    asked: float


class Invitation(NamedTuple):
    """A one-time enrolment token, of which only the SHA-256 is kept."""

    digest: bytes
    identity: int
    server: bool
    expires: float


class Issued(NamedTuple):
    """A client's certificate; ``key`` is the SHA-256 of the registered signing key for which it was issued."""

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


class Store:
    """The service's database at ``path``, made if it is missing. Safe to use from many threads.

    KeyServiceError says why a file cannot be used: it is corrupt, of a newer version, or something else altogether;
    later, that the disk is full or another process holds it too long.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            path.touch(0o600)
            with self._guarded():
                self._db = sqlite3.connect(path, _PATIENCE, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise KeyServiceError(0, "", f"{path}: {error.strerror}") from None
        try:
            with self._guarded():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        said = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if said != "ok":
            raise KeyServiceError(0, "", f"{self._path} is corrupt ({said}); restore it from a backup")
        with self.writing():
            application, version = (
                self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if application == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for command in _SCHEMA.split(";"):
                    self._db.execute(command)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            elif application != _APPLICATION:
                raise KeyServiceError(0, "", f"{self._path} is not the database of a key exchange service")
            elif version != VERSION:
                raise KeyServiceError(
                    0, "", f"{self._path} has version {version}, and this srup knows {VERSION}: use a newer srup"
                )

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._db.close()

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
    def writing(self) -> Iterator[None]:
        """Make what is done inside one transaction: all of it happens, or nothing if anything is raised."""
        with self._lock:
            with self._guarded():
                self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                with self._guarded():
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock, self._guarded(), closing(self._db.execute(query, values)) as cursor:
            return cursor.fetchall()

    def _do(self, command: str, *values: Any) -> int:
        """Return how many rows it has changed."""
        with self._lock, self._guarded(), closing(self._db.execute(command, values)) as cursor:
            return cursor.rowcount

    # Registrations.

    def registration(self, identity: int) -> Registration | None:
        """Return the registration of an identity, revoked or not."""
        rows = self._rows("SELECT * FROM registrations WHERE identity = ?", f"{identity:x}")
        return _registration(rows[0]) if rows else None

    def registrations(self) -> list[Registration]:
        """Return all of them, the oldest first."""
        return [_registration(row) for row in self._rows("SELECT * FROM registrations ORDER BY since, identity")]

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
        """Note that an identity is not to be trusted any more."""
        self._do("UPDATE registrations SET revoked = ? WHERE identity = ?", now, f"{identity:x}")

    def rotate(self, identity: int, rotation: Rotation, digest: bytes) -> None:
        """Put another key in the place of the registered one."""
        self._do("UPDATE registrations SET key = ? WHERE identity = ?", rotation.key, f"{identity:x}")
        self._do("INSERT INTO keys VALUES(?, ?)", digest, f"{identity:x}")
        number = len(self.rotations(identity))
        self._do("INSERT INTO rotations VALUES(?, ?, ?, ?, ?)", f"{identity:x}", number, *rotation)

    def rotations(self, identity: int) -> list[Rotation]:
        """Return how the key of an identity has changed, the oldest first."""
        query = "SELECT key, old_signature, new_signature FROM rotations WHERE identity = ? ORDER BY number"
        return [Rotation(*row) for row in self._rows(query, f"{identity:x}")]

    # Candidates.

    def candidates(self, identity: int | None = None) -> list[Candidate]:
        """Return who waits for the operator, the oldest first."""
        query = "SELECT identity, fingerprint, key, type, asked FROM candidates"
        if identity is None:
            rows = self._rows(f"{query} ORDER BY number")
        else:
            rows = self._rows(f"{query} WHERE identity = ? ORDER BY number", f"{identity:x}")
        return [Candidate(int(row[0], 16), *row[1:]) for row in rows]

    def propose(self, candidate: Candidate, per_identity: int, altogether: int) -> None:
        """Add a candidate unless it waits already; the oldest make room where there are too many."""
        identity, *rest = candidate
        name = f"{identity:x}"
        self._do(
            "INSERT OR IGNORE INTO candidates(identity, fingerprint, key, type, asked) VALUES(?, ?, ?, ?, ?)",
            name,
            *rest,
        )
        self._do(
            "DELETE FROM candidates WHERE number IN"
            " (SELECT number FROM candidates WHERE identity = ? ORDER BY number DESC LIMIT -1 OFFSET ?)",
            name,
            per_identity,
        )
        self._do(
            "DELETE FROM candidates WHERE number IN"
            " (SELECT number FROM candidates ORDER BY number DESC LIMIT -1 OFFSET ?)",
            altogether,
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

    def disinvite(self, identity: int) -> None:
        """Make the token of an identity void."""
        self._do("DELETE FROM invitations WHERE identity = ?", f"{identity:x}")

    # Certificates.

    def issued(self, identity: int | None = None) -> list[Issued]:
        """Return the certificates of an identity, or all, the latest first."""
        if identity is None:
            rows = self._rows("SELECT * FROM certificates ORDER BY issued DESC, serial")
        else:
            rows = self._rows("SELECT * FROM certificates WHERE identity = ? ORDER BY issued DESC", f"{identity:x}")
        return [Issued(int(row[0], 16), int(row[1], 16), *row[2:]) for row in rows]

    def issue(self, issued: Issued) -> None:
        """Note a certificate, before anybody gets it."""
        serial, identity, *rest = issued
        self._do("INSERT INTO certificates VALUES(?, ?, ?, ?, ?, ?)", f"{serial:x}", f"{identity:x}", *rest)

    # The rest.

    def expire(self, now: float, asked_before: float) -> None:
        """Forget tokens and certificates that have expired at ``now``, and candidates from before ``asked_before``.

        Certificates are kept a day longer: until then a broker whose clock is behind must still find them revoked.
        """
        self._do("DELETE FROM invitations WHERE expires <= ?", now)
        self._do("DELETE FROM certificates WHERE expires <= ?", now - 86400.0)
        self._do("DELETE FROM candidates WHERE asked <= ?", asked_before)

    def setting(self, name: str) -> str | None:
        """Return a value that was set, None if it never was."""
        rows = self._rows("SELECT value FROM settings WHERE name = ?", name)
        return rows[0][0] if rows else None

    def set(self, name: str, value: str) -> None:
        """Set a value."""
        self._do("INSERT OR REPLACE INTO settings VALUES(?, ?)", name, value)


def _registration(row: Any) -> Registration:
    return Registration(int(row[0], 16), row[1], row[2], bool(row[3]), row[4], row[5])


def _invitation(row: Any) -> Invitation:
    return Invitation(row[0], int(row[1], 16), bool(row[2]), row[3])
