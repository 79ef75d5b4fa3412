"""The devices in an SQLite database, read beside its server, which writes on meanwhile."""

import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import StoreError
from .directory import Directory, KnownDevice
from .sqlite import facts_named, known_devices
from .sqlitefile import check_log, connect, forget_at_fork, never_close, translated

__all__ = ["SqliteDirectory"]

_PATIENCE: Final = 5.0  # seconds that it waits where the database is being recovered


class SqliteDirectory(Directory):
    """See :class:`Directory`. The database must be that of server ``identity``."""

    def __init__(self, path: str | os.PathLike[str], identity: int) -> None:
        self.path: Final = Path(os.path.realpath(path))
        self._lock = threading.Lock()
        with translated(self.path):
            check_log(self.path)
            self._db: sqlite3.Connection | None = connect(self.path, identity, _PATIENCE)
            self._db.execute("PRAGMA query_only = TRUE")
        forget_at_fork(self)

    def page(self, first: int, limit: int) -> Sequence[KnownDevice]:
        """See :meth:`Directory.page`. One snapshot, which ends before this returns: it keeps no log from its end."""
        with self._lock, translated(self.path):
            if self._db is None:
                raise StoreError(f"the directory of {self.path} is not open")
            self._db.execute("BEGIN")
            try:
                return known_devices(self._db, first, limit)
            finally:
                self._db.execute("COMMIT")

    def facts(self, identity: int, names: Sequence[str]) -> Sequence[str]:
        """See :meth:`Directory.facts`."""
        with self._lock, translated(self.path):
            if self._db is None:
                raise StoreError(f"the directory of {self.path} is not open")
            return facts_named(self._db, identity, names)

    def close(self) -> None:
        """See :meth:`Directory.close`."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def abandon(self) -> None:
        """In a forked child: leave the connection to the parent."""
        self._lock = threading.Lock()
        if self._db is not None:
            never_close(self._db)
            self._db = None

    def __repr__(self) -> str:
        return f"<SqliteDirectory {self.path}>"
