"""Durable state: replay windows, sequence ids, exchanges, inbox, outbox, keys, facts and audit rows.

What is in Redis, for several workers, needs the extra ``srup[redis]``.
"""

from typing import TYPE_CHECKING

from ..extras import at_first_use
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

__getattr__ = at_first_use(__name__, _AT_FIRST_USE)

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
