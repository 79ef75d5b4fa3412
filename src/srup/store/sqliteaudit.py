"""The audit in an SQLite database: rows as bytes, read in pages, and the keys that have signed them."""

import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ..records import SIGNER_PRECISION, AuditRow
from .auditing import AuditReader, Span
from .bounds import MAX_TIME
from .sqlitefile import NUMBER, TIME, Visitor

__all__ = [
    "PAGE",
    "SqliteAudit",
    "pack_audit",
    "pack_signer",
    "prune_rows",
    "prune_signers",
    "read_page",
    "read_signer",
    "unpack_page",
]

PAGE: Final = 1000
"""How many rows are read at a time."""

SHORT: Final = b"\0"
"""The form of a row that has no more than a token and an outcome; those of an earlier version have the number 0."""

FULL: Final = b"\1"
"""The form of a row that has its direction, signed bytes, or who has ordered it."""

_SHORT: Final = struct.Struct(">QBH")
_FULL: Final = struct.Struct(">QBBHIBBH")
_SHORT_HEAD: Final = struct.Struct(f">dQc{_SHORT.format[1:]}")
_FULL_HEAD: Final = struct.Struct(f">dQc{_FULL.format[1:]}")
_SIGNER: Final = struct.Struct(">32sd")
_SENT, _KEPT = 1, 2  # flags
_PATIENCE: Final = 5.0  # seconds that a reader waits where the database is being recovered


def pack_audit(
    at: float,
    partner: int,
    sequence_id: int,
    kind: int,
    token: bytes,
    outcome: str,
    sent: bool,
    wire: bytes | None,
    signer: bytes,
    order: bytes,
    posted_by: str,
) -> bytes:
    """Return a row as bytes: its time and its partner, 8 bytes each, its form, and its record."""
    if not 0 <= at <= MAX_TIME:
        raise ValueError(f"{at!r} is no time of an audit row")
    if wire is None and not (sent or signer or order or posted_by):
        head = _SHORT_HEAD.pack(at, partner, SHORT, sequence_id, kind, len(token))
        return head + token + outcome.encode()
    said, name = outcome.encode(), posted_by.encode()
    flags = sent * _SENT | (wire is not None) * _KEPT
    lengths = len(token), len(said), len(signer), len(order), len(name)
    head = _FULL_HEAD.pack(at, partner, FULL, sequence_id, kind, flags, *lengths)
    return b"".join((head, token, said, signer, order, name, wire or b""))


def _unpack(row: Sequence[Any]) -> AuditRow:
    at, _, partner, record, form = row
    (at,), (partner,) = TIME.unpack(at), NUMBER.unpack(partner)
    if form in (0, SHORT):
        sequence_id, kind, token = _SHORT.unpack_from(record)
        rest = record[_SHORT.size :]
        return AuditRow(at, partner, sequence_id, kind, rest[:token], rest[token:].decode())
    if form != FULL:
        raise ValueError(f"an audit row has the form {form!r}")
    sequence_id, kind, flags, *lengths = _FULL.unpack_from(record)
    begin, parts = _FULL.size, []
    for length in lengths:
        parts.append(record[begin : begin + length])
        begin += length
    token, outcome, signer, order, posted_by = parts
    wire = record[begin:] if flags & _KEPT else None
    return AuditRow(
        *(at, partner, sequence_id, kind, token, outcome.decode(), bool(flags & _SENT), wire),
        *(signer, order, posted_by.decode()),
    )


def pack_signer(fingerprint: bytes, key: bytes, used: float) -> bytes:
    """Return the record of a key as bytes: its fingerprint, 32 bytes, when it was used, 8 bytes, and the key."""
    if len(fingerprint) != 32:
        raise ValueError(f"{fingerprint!r:.80} is no fingerprint")
    if not 0 <= used <= MAX_TIME:
        raise ValueError(f"{used!r} is no time at which a key was used")
    return _SIGNER.pack(fingerprint, used) + key


def read_page(db: sqlite3.Connection, span: Span, after: tuple[bytes, int] | None) -> list[Sequence[Any]]:
    """Return rows of a span as they are kept, behind one of them, given by time and number, or from its beginning."""
    since, until = TIME.pack(span.since), TIME.pack(span.until)
    of = "" if span.partner is None else "AND partner = ?4"
    if span.newest_first:
        behind, order = "at >= ?1 AND (at, number) < (?2, ?3)", "at DESC, number DESC"
        until, number = after or (until, -1)
    else:
        behind, order = "at < ?2 AND (at, number) > (?1, ?3)", "at, number"
        since, number = after or (since, -1)
    query = f"SELECT at, number, partner, record, form FROM audit WHERE {behind} {of} ORDER BY {order} LIMIT {PAGE}"  # noqa: S608
    partner = () if span.partner is None else (NUMBER.pack(span.partner),)
    return db.execute(query, (since, until, number, *partner)).fetchall()


def read_signer(db: sqlite3.Connection, fingerprint: bytes) -> bytes | None:
    """Return the key with this fingerprint as PEM, None if it is not kept."""
    row = db.execute("SELECT key FROM signers WHERE fingerprint = ?", (fingerprint,)).fetchone()
    return None if row is None else row[0]


def unpack_page(rows: Sequence[Sequence[Any]]) -> list[AuditRow]:
    """Return rows as they were; ValueError and struct.error for what is none."""
    return [*map(_unpack, rows)]


def prune_rows(db: sqlite3.Connection, before: float, limit: int) -> int:
    """Delete the oldest rows, up to so many, that are older than that; return how many."""
    return db.execute(
        "DELETE FROM audit WHERE (at, number) IN"
        " (SELECT at, number FROM audit WHERE at < ? ORDER BY at, number LIMIT ?)",
        (TIME.pack(max(before, 0.0)), limit),
    ).rowcount


def prune_signers(db: sqlite3.Connection, before: float, limit: int) -> int:
    """Delete keys, up to so many, that no row needs which is not older than that; return how many."""
    return db.execute(
        "DELETE FROM signers WHERE fingerprint IN (SELECT fingerprint FROM signers WHERE used < ? LIMIT ?)",
        (TIME.pack(max(before - SIGNER_PRECISION, 0.0)), limit),
    ).rowcount


class SqliteAudit(AuditReader):
    """See :class:`AuditReader`; it reads beside the server of ``identity``, which writes on meanwhile."""

    def __init__(self, path: str | os.PathLike[str], identity: int) -> None:
        self._visitor = Visitor(path, identity, "audit", _PATIENCE)
        self.path: Final = self._visitor.path
        with self._visitor() as db:
            db.execute("PRAGMA query_only = TRUE")

    def rows(self, span: Span) -> Iterator[AuditRow]:
        """See :meth:`AuditReader.rows`. Each page is a snapshot of its own: it keeps no log from its end."""
        after: tuple[bytes, int] | None = None
        while True:
            with self._visitor() as db:
                page = read_page(db, span, after)
                found = unpack_page(page)
            yield from found
            if len(page) < PAGE:
                return
            after = page[-1][0], page[-1][1]

    def key(self, fingerprint: bytes, partner: int) -> bytes | None:
        """See :meth:`AuditReader.key`."""
        with self._visitor() as db:
            return read_signer(db, fingerprint)

    def close(self) -> None:
        """See :meth:`AuditReader.close`."""
        self._visitor.close()

    def __repr__(self) -> str:
        return f"<SqliteAudit {self.path}>"
