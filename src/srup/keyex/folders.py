"""Folders that several users or processes share: whose they are, and who changes them at the moment."""

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["is_own_file", "locked", "take_folder"]


_held: Final = threading.local()  # by this thread: the folders' devices and inodes


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep out other processes and threads that change ``folder`` under this lock, which a thread may take twice.

    Raises OSError.
    """
    mine: set[tuple[int, int]] = vars(_held).setdefault("folders", set())
    with _opened(folder) as descriptor:
        found = os.fstat(descriptor)
        which = found.st_dev, found.st_ino
        if which in mine:
            yield
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        mine.add(which)
        try:
            yield
        finally:
            mine.discard(which)


def take_folder(path: Path, mode: int, uid: int, gid: int) -> None:
    """Make a folder, or take over the one at ``path``, for this owner and with this mode.

    Only root gives a folder to somebody else. Raises OSError, for a link too.
    """
    with suppress(FileExistsError):
        path.mkdir(0o700)
    with _opened(path, os.O_NOFOLLOW) as descriptor:
        if os.geteuid() == 0:
            os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)


def is_own_file(path: Path) -> bool:
    """Whether this is a plain file, ours or of whoever owns the folder, and not a link to one."""
    try:
        found, owners = path.lstat(), {os.geteuid(), path.parent.stat().st_uid}
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid in owners


@contextmanager
def _opened(folder: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
