"""Files that are whole, or the old ones, or absent: whatever is replaced on disk is replaced through here."""

import errno
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

__all__ = ["PRIVATE", "PUBLIC", "complaint", "sync_folder", "write_file"]

PRIVATE: Final = 0o600
"""The mode of a file for its owner alone: keys, and what a stranger need not know."""

PUBLIC: Final = 0o644
"""The mode of a file that anyone may read: public keys, certificates, lists for a broker."""

_CLEARER: Final = {
    errno.EADDRINUSE: "another program has this port; end it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have this address",
    errno.EEXIST: "it is there, and is no folder",  # where a folder was to be made
}


def complaint(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """Return what the system complains of, in words: the file, if the error is about one, and why.

    ``path`` is the file where the error names none.
    """
    file = path if error.filename is None else error.filename
    why = _CLEARER.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return why if file is None or isinstance(file, int) else f"{os.fsdecode(file)}: {why}"


def write_file(path: Path, content: bytes | str, mode: int = PRIVATE, group: int = -1) -> None:
    """Replace the file at ``path`` in one step; its content and its name are on durable storage on return.

    It has ``mode`` and ``group`` (default: ours) from its first moment, whatever the umask. A link at ``path`` is
    replaced, never followed. Raises OSError; the old file stands then.
    """
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return when the names in ``folder`` are on durable storage: what was created, replaced or removed. OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
