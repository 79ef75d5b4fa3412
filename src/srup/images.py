"""The folder in which a device keeps its firmware.

======================  ==============================================================================================
name                    what it is
======================  ==============================================================================================
``<digest>``            an image, named by its SHA-256 in lower-case hex; it appears whole and checked, or not at all
``<digest>.part``       what a download has so far; whoever writes it holds a lock on it, among processes too
``current``             a link to the active image, for devices without an activation handler
``.activated``          a file with the digest of the image that was activated last
``.activating``         the same for one whose activation has begun and not ended
======================  ==============================================================================================

An image that one of these names, or any link of the owner's own, is never pruned. Other files are left alone.
"""

import fcntl
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from .errors import UpdateError
from .files import sync_folder, write_file
from .printable import printable, why
from .wire import Status

__all__ = [
    "ACTIVATED",
    "ACTIVATING",
    "CURRENT",
    "Part",
    "check_digest",
    "clean_digest",
    "deliver",
    "file_digest",
    "local_errors",
    "mark",
    "point",
    "prune",
]

ACTIVATED: Final = ".activated"
ACTIVATING: Final = ".activating"
CURRENT: Final = "current"

_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")
_NAME: Final = re.compile(r"(?P<digest>[0-9a-f]{64})(?P<part>\.part)?")
_log = logging.getLogger(__name__)


def clean_digest(digest: str) -> str:
    """Lower-case hex. It becomes a file name: nothing but 64 hexadecimal digits gets through."""
    if not _DIGEST.fullmatch(digest):
        raise UpdateError(Status.UPDATE_FAIL_DIGEST, "the ordered digest is not 64 hexadecimal digits")
    return digest.lower()


def file_digest(path: Path | str) -> str:
    """The SHA-256 of a file in lower-case hex, read in pieces; OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path | str, digest: str) -> None:
    """Return if the file has this SHA-256 (hex, either case); for use right before activation.

    UpdateError(UPDATE_FAIL_DIGEST) if it differs, UpdateError(UPDATE_FAIL_FILE) if it cannot be read
    (docs/protocol/flows.md#f-65).
    """
    digest = clean_digest(digest)
    with local_errors(path):
        actual = file_digest(path)
    if actual != digest:
        raise _differs(actual, digest)


def _differs(actual: str, digest: str) -> UpdateError:
    return UpdateError(Status.UPDATE_FAIL_DIGEST, f"the content has the digest {actual}, ordered was {digest}")


def _holds(path: Path, digest: str) -> bool:
    """Whether ``path`` is a regular file, not a link to one, with this digest."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and file_digest(path) == digest
    except FileNotFoundError:
        return False


@contextmanager
def local_errors(path: Path | str) -> Iterator[None]:
    """Make an UpdateError(UPDATE_FAIL_FILE) about ``path`` of an OSError."""
    try:
        yield
    except OSError as error:
        raise UpdateError(Status.UPDATE_FAIL_FILE, f"{printable(str(path))}: {why(error)}") from error


class Part:
    """An open ``<digest>.part``: its size, its running SHA-256, and what is known of its source."""

    def __init__(self, fd: int, wanted: str) -> None:
        self._fd = fd
        self._wanted = wanted
        with open(fd, "rb", closefd=False) as file:
            self._sha = hashlib.file_digest(file, "sha256")
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.pieced = self.size > 0  # made of more than one answer, which may be of different files
        self.validator: str | None = None
        self.total: int | None = None

    @property
    def right(self) -> bool:
        """Whether it has the digest that was ordered."""
        return self.digest == self._wanted

    @property
    def digest(self) -> str:
        """The SHA-256 of what is there."""
        return self._sha.hexdigest()

    def write(self, data: bytes) -> None:
        """Append; OSError, as from the rest."""
        self._sha.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def restart(self) -> None:
        """Drop what is there."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._sha = hashlib.sha256()
        self.size, self.pieced, self.validator, self.total = 0, False, None, None

    def publish(self, part: Path, target: Path) -> None:
        """The bytes reach the disk before the name does, and the name before we say so."""
        os.fsync(self._fd)
        part.replace(target)
        sync_folder(target.parent)


def _open_locked(path: Path, wait: Callable[[], object]) -> int:
    """Open the .part at ``path`` as its only user, among threads and processes alike; ``wait`` may raise."""
    while True:
        with ExitStack() as stack:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            ours = os.fstat(fd)
            if not stat.S_ISREG(ours.st_mode) or ours.st_nlink > 1:
                raise OSError("it is not a plain file of its own")
            while not _lock(fd):
                wait()
            # Whoever held the lock may have renamed or removed the file: then ours is not the .part any more.
            with suppress(FileNotFoundError):
                if os.path.samestat(ours, path.lstat()):
                    os.fchmod(fd, 0o600)
                    stack.pop_all()
                    return fd


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def deliver(folder: Path, digest: str, wait: Callable[[], object], download: Callable[[Part], None]) -> Path:
    """``folder/<digest>`` with the right content, which ``download`` puts in a .part unless it is there already.

    Of two fetches of one digest the later waits for the earlier, and then finds the file or goes on with the .part.
    """
    target, part_path = folder / digest, folder / f"{digest}.part"
    with local_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        if _holds(target, digest):
            return target
    with local_errors(part_path), ExitStack() as stack:
        fd = _open_locked(part_path, wait)
        stack.callback(os.close, fd)
        try:
            with local_errors(part_path):
                if _holds(target, digest):
                    part_path.unlink()
                    return target
                part = Part(fd, digest)
                if not part.size or not part.right:
                    download(part)
                if part.pieced and not part.right:
                    part.restart()
                    download(part)
                if not part.right:
                    raise _differs(part.digest, digest)
                part.publish(part_path, target)
        except UpdateError as error:
            if error.status in (Status.UPDATE_FAIL_FILE, Status.UPDATE_FAIL_DIGEST) or not os.fstat(fd).st_size:
                with suppress(OSError):
                    part_path.unlink()
            raise
    return target


def point(folder: Path, link: str, digest: str) -> None:
    """Let a link name an image, in one step, and on durable storage on return. Raises OSError."""
    fresh = folder / f".{link}.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(digest)
    fresh.replace(folder / link)
    sync_folder(folder)


def mark(folder: Path, name: str, digest: str | None) -> None:
    """Write an image's digest into ``.activated`` or ``.activating``, or remove that file. Raises OSError."""
    if digest is None:
        (folder / name).unlink(missing_ok=True)
    else:
        write_file(folder / name, f"{digest}\n")


def _marked(folder: Path) -> Iterator[str]:
    for name in (ACTIVATED, ACTIVATING):
        with suppress(OSError, UnicodeDecodeError):
            yield (folder / name).read_text().strip()


def prune(folder: Path, keep: int, wanted: Collection[str] = ()) -> None:
    """Remove the oldest images until ``keep`` are left, and every .part that nobody writes.

    The images in ``wanted``, digests that need not be there yet, and those that a link or a mark names stay in any
    case, and count. What cannot be removed is left there, and logged.
    """
    links, parts = {*wanted, *_marked(folder)}, []
    images: list[tuple[int, str]] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if entry.is_symlink():
                links.add(Path(entry.path).readlink().name)
            elif name and name["part"] and name["digest"] not in wanted:
                parts.append(entry.name)
            elif name and not name["part"] and entry.is_file():
                images.append((entry.stat().st_mtime_ns, entry.name))
    spare = [name for _, name in sorted(images, reverse=True) if name not in links]
    named = {name for name in links if _NAME.fullmatch(name)}
    for image in spare[max(0, keep - len(named)) :]:
        _remove(folder / image)
    for part in parts:
        with suppress(OSError), ExitStack() as stack:
            descriptor = os.open(folder / part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, descriptor)
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and _lock(descriptor):
                _remove(folder / part)


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        _log.warning("%s is not removed: %s", printable(str(path)), why(error))
    else:
        _log.info("%s is removed: no order and no link names it any more", printable(str(path)))
