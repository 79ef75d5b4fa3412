"""Durable state: replay windows, sequence ids, exchanges, inbox, outbox, keys, facts and audit rows."""

from .base import Store

__all__ = ["Store"]
