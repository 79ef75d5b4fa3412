"""Files that are whole, or absent, or the old ones."""

import os
import tempfile
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write a file in one step, with its mode from the first moment. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            os.fchmod(file.fileno(), mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
