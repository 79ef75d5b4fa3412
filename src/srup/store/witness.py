"""A small file beside a database that knows which database it is and how far it had come: it tells an old backup."""

import contextlib
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import StoreError
from ..files import write_file

__all__ = ["Position", "Witness"]

_CONTENT: Final = struct.Struct(">16sQ")


class Position(NamedTuple):
    """What a witness says: the database's random id, and a commit that this database has made durable."""

    database: bytes  # 16 bytes
    commits: int


class Witness:
    """The file at ``path``. It may lag behind its database by any number of commits, and is never ahead of it.

    A commit is told to the witness only after it is on durable storage, so whatever of these writes survives a crash
    or a power cut names a commit that survived too. They are not synced one by one: what the system has not written
    when the power fails is missing, and a witness that lags still lets its database in. A database that is behind its
    witness has therefore lost commits: it was restored from a backup, or its storage lies about what is durable.

    A backup that holds the witness too, made of both at one time, is not told from the present state; keep it out of
    backups.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def read(self) -> Position | None:
        """Return what the file says, None if there is none. StoreError when it says nothing sensible."""
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}: it must be readable and writable") from None
        if len(content) != _CONTENT.size:
            raise StoreError(f"{self.path} is damaged; open the store with adopt=True to make a new one")
        return Position(*_CONTENT.unpack(content))

    def replace_by(self, position: Position) -> None:
        """Replace the file in one step, on durable storage when it returns."""
        try:
            write_file(self.path, _CONTENT.pack(*position))
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}: its folder must be writable") from None

    def open(self) -> None:
        """Open the file, to note commits."""
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}: it must be writable") from None

    def note(self, commits: int) -> None:
        """Write down a commit that is on durable storage. The commit stands, so an error here is none: we lag."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, commits.to_bytes(8, "big"), 16)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
