"""Which mailbox, which directory of devices, which audit, and which campaigns belong to a store."""

import os
from typing import Any

from ..errors import StoreError
from ..extras import missing_named
from .auditing import AuditReader
from .campaigns import CampaignStore
from .directory import Directory
from .mailbox import Mailbox
from .memory import MemoryStore

__all__ = ["audit_at", "campaigns_at", "directory_at", "mailbox_at"]


def _is_path(store: Any) -> bool:
    return isinstance(store, str | os.PathLike) and "://" not in os.fspath(store)


def mailbox_at(store: Any, identity: int) -> Mailbox:
    """Return the mailbox of server ``identity`` in a store.

    A store is the path of an SQLite database, the URL of a Redis or a client of one, or a MemoryStore. StoreError when
    it holds no state of that server.
    """
    if isinstance(store, MemoryStore):
        return store.mailbox(identity)
    if _is_path(store):
        from .sqlitemail import SqliteMailbox  # sqlite3 takes a while to import

        return SqliteMailbox(store, identity)
    with missing_named():
        from .keyspace import Keyspace
        from .redismail import RedisMailbox
    return RedisMailbox(Keyspace(store, identity, timeout=5.0))


def directory_at(store: Any, identity: int) -> Directory:
    """Return what reads the devices of server ``identity`` in a store, named as for :func:`mailbox_at`."""
    if isinstance(store, MemoryStore):
        return store
    if _is_path(store):
        from .sqlitedirectory import SqliteDirectory

        return SqliteDirectory(store, identity)
    with missing_named():
        from .keyspace import Keyspace
        from .redis import RedisDirectory
    return RedisDirectory(Keyspace(store, identity, timeout=5.0))


def audit_at(store: Any, identity: int) -> AuditReader:
    """Return what reads the audit of server ``identity`` in a store, named as for :func:`mailbox_at`."""
    if isinstance(store, MemoryStore):
        return store
    if _is_path(store):
        from .sqliteaudit import SqliteAudit

        return SqliteAudit(store, identity)
    with missing_named():
        from .keyspace import Keyspace
        from .redisaudit import RedisAudit
    return RedisAudit(Keyspace(store, identity, timeout=5.0))


def campaigns_at(store: Any, identity: int, ttl: float = 15.0) -> CampaignStore:
    """Return the campaigns of server ``identity`` in a store, named as for :func:`mailbox_at`.

    A claim on carrying them out lasts ``ttl`` seconds. StoreError for a MemoryStore, which keeps none.
    """
    if isinstance(store, MemoryStore):
        raise StoreError("campaigns are kept in the SQLite database of a server or in a Redis, not in memory")
    if _is_path(store):
        from .sqlitecampaigns import SqliteCampaigns

        return SqliteCampaigns(store, identity)
    with missing_named():
        from .keyspace import Keyspace
        from .rediscampaigns import RedisCampaigns
    return RedisCampaigns(Keyspace(store, identity, timeout=5.0), ttl=ttl)
