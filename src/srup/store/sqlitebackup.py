"""A copy of an SQLite database while its server runs: of one moment, whole, or none at all."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import StoreError
from ..files import sync_folder
from .sqlitefile import check_log, connect, damaged, translated

__all__ = ["Copied", "back_up"]

_PATIENCE: Final = 5.0  # seconds that it waits where the database is being recovered


class Copied(NamedTuple):
    """Of which server a copy is, and of how many commits."""

    owner: int
    commits: int


def back_up(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Copied:
    """Write a copy of the database at ``source`` to ``target``, which must not exist; its server may run.

    The copy is of one moment, in one file without a log, with mode 0600 and no witness: it is opened with adopt=True.
    Commits do not wait, but the log grows meanwhile. StoreError when it cannot be made; then there is no ``target``.
    """
    path, copy = Path(os.path.realpath(source)), Path(target).absolute()
    beside = copy.with_name(f".{copy.name}-new")
    try:
        beside.unlink(missing_ok=True)  # of an attempt that was killed
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with translated(path):
                check_log(path)
                copied = _copy(path, beside)
            os.link(beside, copy)  # which replaces nothing
            sync_folder(copy.parent)
        finally:
            for each in (beside, beside.with_name(f"{beside.name}-journal")):
                each.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{copy}: {error.strerror}: name a new file in a folder that is writable") from None
    return copied


def _copy(path: Path, target: Path) -> Copied:
    with (
        closing(connect(path, None, _PATIENCE)) as db,
        closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        db.backup(copy)  # all pages in one step: of one snapshot, whatever is committed meanwhile
        copy.execute("PRAGMA journal_mode = DELETE")
        [said] = copy.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise damaged(path, said)
        copy.execute("UPDATE store SET file = randomblob(16)")
        owner, commits = copy.execute("SELECT owner, commits FROM store").fetchone()
    return Copied(int.from_bytes(owner, "big"), commits)
