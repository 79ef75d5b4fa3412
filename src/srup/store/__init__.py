"""Durable state: replay windows, sequence ids, exchanges, inbox, outbox, keys, facts and audit rows.

What is in Redis, for several workers, needs the extra ``srup[redis]``.
"""

from typing import TYPE_CHECKING, Any

from .base import Store
from .memory import MemoryStore
from .partition import PARTITIONS, partition_of

if TYPE_CHECKING:
    from .lease import Lease, Leases, Step
    from .redis import RedisStore, commit_many
    from .sqlite import SqliteStore

_AT_FIRST_USE = {
    "Lease": "lease",
    "Leases": "lease",
    "RedisStore": "redis",
    "SqliteStore": "sqlite",
    "Step": "lease",
    "commit_many": "redis",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    module = _AT_FIRST_USE.get(name)
    if module is None:
        raise AttributeError(f"module 'srup.store' has no attribute {name!r}")
    return getattr(import_module(f"srup.store.{module}"), name)


__all__ = [
    "PARTITIONS",
    "Lease",
    "Leases",
    "MemoryStore",
    "RedisStore",
    "SqliteStore",
    "Step",
    "Store",
    "commit_many",
    "partition_of",
]
