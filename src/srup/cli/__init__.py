"""The ``srup`` command."""

import errno
import os
import sys
import traceback
from typing import Final, NoReturn

from ..extras import what_is_missing
from ..files import complaint
from ..logs import traceback_lines
from .endings import interruptible
from .version import version_line

__all__ = ["main"]

_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What is no fault of ours when standard output is a file."""


def main() -> None:
    """Run the command line. A missing optional package ends it with one line and status 2, wherever it was needed.

    So does an output that takes no more. When nobody reads the output any more it ends with status 1 and says nothing.
    """
    try:
        try:
            _run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where we hear whether that works
    except ModuleNotFoundError as error:
        if (message := what_is_missing(error)) is None:
            raise
        _end(2, f"error: {message}")
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a fault of ours; what it says may come from anywhere
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            _drop_output()
            _end(2, f"error: {complaint(error)}")
        _end(1, *traceback_lines(traceback.format_exc()))


def _run() -> None:
    if sys.argv[1:] in (["--version"], ["version"]):  # answered by every installation, and at once
        print(version_line())
        return
    with interruptible():
        from .app import app

        app()


def _end(status: int, *lines: str) -> NoReturn:
    print(*lines, sep="\n", file=sys.stderr)
    sys.exit(status)


def _drop_output() -> None:
    """Let nothing fail any more that is still to be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
