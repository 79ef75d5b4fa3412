"""The audit in Redis: rows as bytes, read in pages from one partition or from all, and the keys that have signed them.

A row is a member of the sorted set ``audit`` of its partition, with its time as the score; a key is a field of the hash
``signers``, by its fingerprint. Rows of an earlier version have a token and an outcome alone.
"""

import heapq
import struct
from collections.abc import Iterator
from typing import Any, Final

from ..errors import StoreError
from ..records import AuditRow, SignerRecord
from .auditing import AuditReader, Span
from .bounds import MAX_TIME
from .keyspace import Keyspace
from .partition import partition_of

__all__ = ["RedisAudit", "at_of", "audit_value", "partition_key", "partition_rows", "parts", "signer_value", "split"]

_FIRST: Final = 12  # bytes of a member that tell it from others: the commit, and its place in it
_HEAD: Final = struct.Struct(">QQQ")
_USED: Final = struct.Struct(">d")
_NONE: Final = 0xFFFF_FFFF
_SENT: Final = b"s"
_SHARE: Final = 100  # rows that are read at a time from each of many partitions


def parts(*parts: bytes | None) -> bytes:
    """Parts of any length, or None, one behind the other."""
    return b"".join(struct.pack(">I", _NONE) if part is None else struct.pack(">I", len(part)) + part for part in parts)


def split(content: bytes, start: int = 0) -> list[bytes | None]:
    """Return what :func:`parts` has put together; ValueError when it ends too early."""
    found: list[bytes | None] = []
    while start < len(content):
        (length,) = struct.unpack_from(">I", content, start)
        start += 4
        if length == _NONE:
            found.append(None)
            continue
        if start + length > len(content):
            raise ValueError("a value ends too early")
        found.append(content[start : start + length])
        start += length
    return found


def at_of(row: AuditRow) -> float:
    """Return the score of a row; ValueError for a time that is none."""
    if not 0 <= row.at <= MAX_TIME:
        raise ValueError(f"{row.at!r} is no time of an audit row")
    return float(row.at)


def audit_value(row: AuditRow) -> bytes:
    """Return a row as bytes, without its time."""
    told = row.token, row.outcome.encode(), row.wire, row.signer, row.order, row.posted_by.encode()
    return _HEAD.pack(row.partner, row.sequence_id, row.type) + parts(*told, _SENT if row.sent else b"")


def _row(at: float, member: bytes) -> AuditRow:
    partner, sequence_id, kind = _HEAD.unpack_from(member, _FIRST)
    told = split(member, _FIRST + _HEAD.size)
    first = AuditRow(at, partner, sequence_id, kind, told[0] or b"", (told[1] or b"").decode())
    if len(told) == 2:
        return first
    _, _, wire, signer, order, posted_by, sent = told
    return first._replace(
        sent=sent == _SENT, wire=wire, signer=signer or b"", order=order or b"", posted_by=(posted_by or b"").decode()
    )


def signer_value(record: SignerRecord) -> bytes:
    """Return the record of a key as bytes, without its fingerprint; ValueError or TypeError for what is none."""
    if len(record.fingerprint) != 32:
        raise ValueError(f"{record.fingerprint!r:.80} is no fingerprint")
    if not 0 <= record.used <= MAX_TIME:
        raise ValueError(f"{record.used!r} is no time at which a key was used")
    return _USED.pack(record.used) + record.key


def partition_rows(keyspace: Keyspace, partition: int, span: Span, page: int) -> Iterator[AuditRow]:
    """Return the rows of a partition, so many read at a time."""
    key = keyspace.key(partition, "audit")
    begin, end = _bound(span.since), f"({_bound(span.until)}"
    last: tuple[float, bytes] | None = None
    skip = 0
    while True:
        with keyspace.asking():
            found = _page(keyspace.client, key, begin, end, skip, page, span.newest_first)
        for member, at in found:
            if last is not None and span.newest_first and at == last[0] and member >= last[1]:
                skip += 1  # something of the same time was added meanwhile, which has moved it
                continue
            skip = skip + 1 if last is not None and at == last[0] else 1
            last = at, member
            try:
                row = _row(at, member)
            except (struct.error, ValueError) as error:
                raise StoreError(f"{keyspace} is damaged: {key}: {error}; restore it") from None
            if span.partner in (None, row.partner):
                yield row
        if len(found) < page:
            return
        if last is not None and span.newest_first:
            end = _bound(last[0])
        elif last is not None:
            begin = _bound(last[0])


def _bound(at: float) -> str:
    return "+inf" if at == float("inf") else repr(at)


def _page(client: Any, key: str, begin: str, end: str, skip: int, page: int, newest_first: bool) -> Any:
    more = {"start": skip, "num": page, "withscores": True}
    if newest_first:
        return client.zrevrangebyscore(key, end, begin, **more)
    return client.zrangebyscore(key, begin, end, **more)


def partition_key(keyspace: Keyspace, partition: int, fingerprint: bytes) -> bytes | None:
    """Return the key with this fingerprint that has signed something in a partition, as PEM; None if not kept."""
    with keyspace.asking():
        value = keyspace.client.hget(keyspace.key(partition, "signers"), fingerprint)
    return None if value is None else bytes(value[_USED.size :])


class RedisAudit(AuditReader):
    """See :class:`AuditReader`: the rows of all partitions, in the order of their times."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._partitions = keyspace.describe()[1]

    def rows(self, span: Span) -> Iterator[AuditRow]:
        """See :meth:`AuditReader.rows`. A device's are all in one partition; other rows there are passed over."""
        if span.partner is not None:
            yield from partition_rows(self._keyspace, partition_of(span.partner, self._partitions), span, 10 * _SHARE)
            return
        each = [partition_rows(self._keyspace, number, span, _SHARE) for number in range(self._partitions)]
        yield from heapq.merge(*each, key=lambda row: row.at, reverse=span.newest_first)

    def key(self, fingerprint: bytes, partner: int) -> bytes | None:
        """See :meth:`AuditReader.key`."""
        return partition_key(self._keyspace, partition_of(partner, self._partitions), fingerprint)

    def close(self) -> None:
        """See :meth:`AuditReader.close`."""
        self._keyspace.close()
