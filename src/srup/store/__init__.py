"""Durable state: replay windows, sequence ids, exchanges, inbox, outbox, keys, facts and audit rows."""

from typing import TYPE_CHECKING, Any

from .base import Store
from .memory import MemoryStore

if TYPE_CHECKING:
    from .sqlite import SqliteStore

_AT_FIRST_USE = {"SqliteStore": "sqlite"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    module = _AT_FIRST_USE.get(name)
    if module is None:
        raise AttributeError(f"module 'srup.store' has no attribute {name!r}")
    return getattr(import_module(f"srup.store.{module}"), name)


__all__ = ["MemoryStore", "SqliteStore", "Store"]
