"""The campaigns in the SQLite database of a server, which goes on with it meanwhile."""

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .campaigns import CampaignStore, KeptCampaign
from .mailbox import CAPACITY, Post, check_post
from .sqlitefile import NUMBER, Visitor
from .sqlitemail import insert_order

__all__ = ["SqliteCampaigns"]

_LOOK: Final = 0.1  # seconds from one look whether anything has changed to the next
_PATIENCE: Final = 5.0  # seconds that a save waits for a commit of the server


class SqliteCampaigns(CampaignStore):
    """See :class:`CampaignStore`. The database must be that of server ``identity``."""

    def __init__(self, path: str | os.PathLike[str], identity: int) -> None:
        self._visitor = Visitor(path, identity, "campaigns", _PATIENCE)
        self.path: Final = self._visitor.path
        self._version: Any = None

    def revision(self) -> int:
        """See :meth:`CampaignStore.revision`."""
        with self._visitor.transaction("BEGIN") as db:
            return _revision(db)

    def campaigns(self) -> tuple[int, Sequence[KeptCampaign]]:
        """See :meth:`CampaignStore.campaigns`."""
        with self._visitor.transaction("BEGIN") as db:
            rows = db.execute("SELECT name, document, record FROM campaigns ORDER BY name").fetchall()
            return _revision(db), [KeptCampaign(name, document, record, {}) for name, document, record in rows]

    def load(self, names: Iterable[str]) -> tuple[int, Sequence[KeptCampaign]]:
        """See :meth:`CampaignStore.load`."""
        found = []
        with self._visitor.transaction("BEGIN") as db:
            for name in names:
                row = db.execute("SELECT document, record FROM campaigns WHERE name = ?", (name,)).fetchone()
                if row is not None:
                    rows = db.execute("SELECT device, record FROM campaign_devices WHERE campaign = ?", (name,))
                    devices = {_number(device): record for device, record in rows}
                    found.append(KeptCampaign(name, document=row[0], record=row[1], devices=devices))
            return _revision(db), found

    def save(
        self,
        revision: int,
        name: str,
        record: bytes,
        devices: Mapping[int, bytes],
        posts: Sequence[Post] = (),
        *,
        document: bytes | None = None,
        capacity: int = CAPACITY,
    ) -> bool:
        """See :meth:`CampaignStore.save`."""
        for post in posts:
            check_post(post.id, post.order, capacity)
        now = time.time()
        with self._visitor.transaction("BEGIN IMMEDIATE") as db:
            if _revision(db) != revision:
                return False
            if document is not None:
                if db.execute("SELECT 1 FROM campaigns WHERE name = ?", (name,)).fetchone() is not None:
                    return False
                db.execute("INSERT INTO campaigns VALUES(?, 1, ?, ?)", (name, document, record))
            else:
                update = "UPDATE campaigns SET saves = saves + 1, record = ? WHERE name = ?"
                if not db.execute(update, (record, name)).rowcount:
                    return False
            rows = [(name, NUMBER.pack(device), each) for device, each in devices.items()]
            db.executemany("INSERT OR REPLACE INTO campaign_devices VALUES(?, ?, ?)", rows)
            for post in posts:
                insert_order(db, self.path, now, post, capacity)
            return True

    def flush(self, capacity: int = CAPACITY) -> int:
        """See :meth:`CampaignStore.flush`: none wait, for a save has put them into the mailbox."""
        return 0

    def news(self, orders: Mapping[bytes, int], since: Any = None) -> tuple[Any, Mapping[bytes, bytes]]:
        """See :meth:`CampaignStore.news`: what was reported since then is read, whatever it is about."""
        with self._visitor.transaction("BEGIN") as db:
            (mark,) = db.execute("SELECT coalesce(max(number), 0) FROM reports").fetchone()
            if since is not None:
                rows = db.execute("SELECT id, body FROM reports WHERE number > ? ORDER BY number", (since,))
                return mark, {order: body for order, body in rows if order in orders}
            query = "SELECT body FROM reports WHERE id = ? ORDER BY number DESC LIMIT 1"
            found = {order: db.execute(query, (order,)).fetchone() for order in orders}
        return mark, {order: row[0] for order, row in found.items() if row is not None}

    def claim(self) -> bool:
        """See :meth:`CampaignStore.claim`: it is one machine, whoever is quicker does it."""
        return True

    def release(self) -> None:
        """See :meth:`CampaignStore.release`."""

    def await_change(self, patience: float) -> bool:
        """See :meth:`CampaignStore.await_change`: nothing is read while no other connection has written."""
        deadline = time.monotonic() + patience
        while True:
            with self._visitor() as db:
                version = db.execute("PRAGMA data_version").fetchone(), db.total_changes
            if version != self._version:
                self._version = version
                return True
            left = deadline - time.monotonic()
            if left <= 0 or self._visitor.closed.wait(min(_LOOK, left)):
                return False

    def close(self) -> None:
        """See :meth:`CampaignStore.close`."""
        self._visitor.close()

    def __repr__(self) -> str:
        return f"<SqliteCampaigns {self.path}>"


def _revision(db: sqlite3.Connection) -> int:
    (saves,) = db.execute("SELECT coalesce(sum(saves), 0) FROM campaigns").fetchone()
    return int(saves)


def _number(key: bytes) -> int:
    (number,) = NUMBER.unpack(key)
    return int(number)
