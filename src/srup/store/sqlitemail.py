"""The mailbox of a server with an SQLite database: tables in it, which any process may write to that can open the file.

The server goes on with the database meanwhile, and is kept waiting for no longer than one post takes.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ..errors import StoreError
from .mailbox import CAPACITY, PAGE, Entry, Mailbox, Position, Post, check_post
from .sqlitefile import TIME, Visitor

__all__ = ["SqliteMailbox", "insert_order"]

_LOOK: Final = 0.025  # seconds from one look whether anything has changed to the next
_PATIENCE: Final = 5.0  # seconds that a post waits for a commit of the server, or another post
_CLEARED: Final = 20  # orders whose reports have been kept long enough and are deleted with each post


def insert_order(db: sqlite3.Connection, path: Path, now: float, post: Post, capacity: int) -> None:
    """Put an order into the mailbox, in a transaction that is under way; see :meth:`Mailbox.post`."""
    if db.execute("SELECT 1 FROM reports WHERE id = ?", (post.id,)).fetchone() is not None:
        return
    (waiting,) = db.execute("SELECT count(*) FROM orders WHERE urgent OR NOT ?", (post.urgent,)).fetchone()
    if waiting >= capacity:
        raise StoreError(
            f"{path}: the mailbox is full: {waiting} orders wait for the server to take "
            "them; start it (srup server), or post again later"
        )
    row = post.id, now, post.urgent, post.order
    db.execute("INSERT INTO orders(id, posted, urgent, body) VALUES(?, ?, ?, ?)", row)
    db.execute("INSERT INTO reports(id, body) VALUES(?, ?)", (post.id, post.report))


class SqliteMailbox(Mailbox):
    """See :class:`Mailbox`; all devices are in one partition. The database must be that of server ``identity``."""

    partitions = 1

    def __init__(self, path: str | os.PathLike[str], identity: int) -> None:
        self._visitor = Visitor(path, identity, "mailbox", _PATIENCE)
        self.path: Final = self._visitor.path

    def post(
        self,
        device: int,
        order_id: bytes,
        order: bytes,
        report: bytes,
        capacity: int = CAPACITY,
        *,
        urgent: bool = False,
    ) -> None:
        """See :meth:`Mailbox.post`."""
        check_post(order_id, order, capacity)
        now = time.time()
        with self._visitor.transaction("BEGIN IMMEDIATE") as db:
            insert_order(db, self.path, now, Post(device, order_id, order, report, urgent), capacity)
            old = "SELECT id FROM told WHERE until < ? LIMIT ?"
            for (gone,) in db.execute(old, (TIME.pack(now), _CLEARED)).fetchall():
                db.execute("DELETE FROM reports WHERE id = ?", (gone,))
                db.execute("DELETE FROM told WHERE id = ?", (gone,))

    def waiting(self) -> dict[int, int]:
        """See :meth:`Mailbox.waiting`."""
        [(count,)] = self._rows("SELECT count(*) FROM orders")
        return {0: count} if count else {}

    def read(self, after: Mapping[int, Position], patience: float = 1.0) -> list[tuple[int, Entry]]:
        """See :meth:`Mailbox.read`."""
        position = after.get(0, Position(orders=None))
        return self._await(lambda: self._entries(position), patience)

    def _entries(self, position: Position) -> list[tuple[int, Entry]]:
        columns = "SELECT place, posted, id, body FROM orders WHERE"
        found = [
            (row, True)
            for row in self._rows(f"{columns} urgent AND place > ? ORDER BY place LIMIT ?", int(position.urgent), PAGE)
        ]
        if position.orders is not None:
            rows = self._rows(f"{columns} place > ? ORDER BY place LIMIT ?", int(position.orders), PAGE)
            found += [(row, False) for row in rows]
        return [(0, _entry(row, urgent)) for row, urgent in found]

    def reports(self, device: int, order_id: bytes, after: bytes, patience: float) -> list[tuple[bytes, bytes]]:
        """See :meth:`Mailbox.reports`."""

        def found() -> list[tuple[bytes, bytes]]:
            rows = self._rows(
                "SELECT number, body FROM reports WHERE id = ?1 AND number > ?2"
                " AND NOT EXISTS (SELECT 1 FROM told WHERE id = ?1 AND until < ?3) ORDER BY number LIMIT ?4",
                *(order_id, int(after), TIME.pack(time.time()), PAGE),
            )
            return [(b"%d" % number, body) for number, body in rows]

        return self._await(found, patience)

    def close(self) -> None:
        """See :meth:`Mailbox.close`."""
        self._visitor.close()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._visitor() as db:
            return db.execute(query, values).fetchall()

    def _own_changes(self) -> int:
        with self._visitor() as db:
            return db.total_changes

    def _await(self, look: Callable[[], list[Any]], patience: float) -> list[Any]:
        """Return what there is, waiting for it; nothing is read while nothing has changed."""
        deadline = time.monotonic() + patience
        version: tuple[list[Any], int] | None = None
        while True:
            now = self._rows("PRAGMA data_version"), self._own_changes()  # the first tells of others' changes alone
            if now != version and (found := look()):
                return found
            version = now
            left = deadline - time.monotonic()
            if left <= 0 or self._visitor.closed.wait(min(_LOOK, left)):
                return []

    def __repr__(self) -> str:
        return f"<SqliteMailbox {self.path}>"


def _entry(row: tuple[int, float, bytes, bytes], urgent: bool) -> Entry:
    place, posted, order_id, order = row
    return Entry(b"%d" % place, posted, order_id, order, urgent)
