"""Commands on terminals of their own: what they write is read, and keys are pressed."""

import codecs
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

PATIENCE = 60.0  # seconds until a test gives up; nothing is measured by it
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_START = """
import fcntl, runpy, sys, termios
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
runpy.run_module("srup", run_name="__main__", alter_sys=True)
"""


class Program:
    """A command of srup whose terminal is ``columns`` wide and ``rows`` high.

    ``stdin`` may be another file; the command runs in ``folder``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        columns: int = 40,
        rows: int = 24,
        stdin: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.fd, inner = os.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.modes = termios.tcgetattr(inner)
        drop = ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE")
        environment = {name: value for name, value in os.environ.items() if name not in drop}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *arguments],
            env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            stdin=inner if stdin is None else stdin,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            cwd=folder,
        )
        os.close(inner)
        self.raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    @property
    def text(self) -> str:
        """All that was written, without the control sequences."""
        return CONTROLS.sub("", self.raw)

    def expect(self, pattern: str) -> "re.Match[str]":
        """Wait for ``pattern`` after what was found the last time."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = re.compile(pattern).search(self.text, self._seen)
            if found:
                self._seen = found.end()
                return found
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self._rest()}"
            assert self._read(), f"ended without {pattern!r}: {self._rest()}"

    def _rest(self) -> str:
        return repr(self.text[self._seen :][-2000:])

    def _read(self) -> bool:
        if not select.select([self.fd], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # nobody has the other end any more
            return False
        self.raw += self._decoder.decode(data)
        return bool(data)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, keys: str = "\x03") -> int:
        """Press Ctrl-C and read until the end; return the exit status."""
        self.type(keys)
        return self.wait()

    def wait(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)
