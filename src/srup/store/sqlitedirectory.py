"""The devices in an SQLite database, read beside its server, which writes on meanwhile."""

import os
from collections.abc import Sequence
from typing import Final

from .directory import Directory, KnownDevice
from .sqlite import facts_named, known_devices
from .sqlitefile import Visitor

__all__ = ["SqliteDirectory"]

_PATIENCE: Final = 5.0  # seconds that it waits where the database is being recovered


class SqliteDirectory(Directory):
    """See :class:`Directory`. The database must be that of server ``identity``."""

    def __init__(self, path: str | os.PathLike[str], identity: int) -> None:
        self._visitor = Visitor(path, identity, "directory", _PATIENCE)
        self.path: Final = self._visitor.path
        with self._visitor() as db:
            db.execute("PRAGMA query_only = TRUE")

    def page(self, first: int, limit: int) -> Sequence[KnownDevice]:
        """See :meth:`Directory.page`. One snapshot, which ends before this returns: it keeps no log from its end."""
        with self._visitor() as db:
            db.execute("BEGIN")
            try:
                return known_devices(db, first, limit)
            finally:
                db.execute("COMMIT")

    def facts(self, identity: int, names: Sequence[str]) -> Sequence[str]:
        """See :meth:`Directory.facts`."""
        with self._visitor() as db:
            return facts_named(db, identity, names)

    def close(self) -> None:
        """See :meth:`Directory.close`."""
        self._visitor.close()

    def __repr__(self) -> str:
        return f"<SqliteDirectory {self.path}>"
