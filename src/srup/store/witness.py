"""A witness beside a store: which store it was and how many commits it had, so that an old backup is noticed.

A copy of a store from yesterday is whole and consistent; that it is old, it cannot tell. A small file that is not part
of the store, and must not be backed up or restored together with it, remembers the number of the last commit: a store
that has fewer has lost some, and every message of that time could be replayed to it (THREATS.md, T2).
"""

import os
import re
from pathlib import Path
from typing import Final

from ..errors import StoreError

__all__ = ["Witness"]

_LINE: Final = re.compile(rb"srup witness 1 ([0-9a-f]{32}) ([0-9]{20})\n")


class Witness:
    """The file at ``path``; it is made at the first check, in a folder that exists. Not for several threads at once.

    It never claims more than the store has confirmed, and is written without waiting for the disk: what it says survives
    the end of the process at once, and a power cut when the system has written it back, some seconds later. A witness
    that lags behind raises no false alarm, it only overlooks the loss of the last commits.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = Path(path)
        self._file: int | None = None
        self._store = b""

    def check(self, store: bytes, number: int, *, adopt: bool = False) -> bool:
        """Compare what is remembered with a store of this id (16 bytes) and ``number`` of commits, and remember that.

        StoreError when it is another store, or has fewer commits than it had, or the file is no witness; with ``adopt``
        the store is believed all the same, and the answer is True when there was something to overlook.
        """
        reason = self._objection(store, number)
        if reason and not adopt:
            raise StoreError(f"{reason}; adopt the store if that is meant to be: what it has forgotten can be replayed")
        self._store = store
        self.record(number)
        return bool(reason)

    def record(self, number: int) -> None:
        """Remember that the store has confirmed commit ``number``; only after a check."""
        line = b"srup witness 1 %s %020d\n" % (self._store.hex().encode(), number)
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, line, 0)  # one line of fixed length within one sector: replaced as a whole
        except OSError as error:
            raise StoreError(f"the witness {self.path} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the file, after what it says is on the disk. A second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            try:
                os.fsync(file)
            except OSError as error:
                raise StoreError(f"the witness {self.path} cannot be written: {error.strerror}") from None
            finally:
                os.close(file)

    def _objection(self, store: bytes, number: int) -> str:
        """Why this cannot be the store that was there last, or nothing."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise StoreError(f"the witness {self.path} cannot be read: {error.strerror}") from None
        known = _LINE.fullmatch(content)
        if known is None:
            return f"{self.path} is no witness of a store"
        if bytes.fromhex(known[1].decode()) != store:
            return f"this is store {store.hex()}, the witness {self.path} knows {known[1].decode()}"
        if number < int(known[2]):
            return f"the store has {number} commits, and had {int(known[2])} by the witness {self.path}: it is an old copy"
        return ""
