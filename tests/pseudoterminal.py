"""Commands on terminals of their own: what they write is read, and keys are pressed."""

import os
import re
import signal
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pexpect

PATIENCE = 60.0  # seconds until a test gives up; nothing is measured by it
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_UNFINISHED = re.compile(r"(\r(\n ?)?)?(\x1b[^A-Za-z]*)?\Z")


class Program(pexpect.spawn):
    """A command of srup whose terminal is ``columns`` wide and ``rows`` high; it runs in ``folder``.

    ``raw`` is all that was read, ``text`` the same without the control sequences, and with lines whole that do not fit
    into a row: in this, patterns are searched. Whom nobody can type into is ``deaf``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        columns: int = 40,
        rows: int = 24,
        deaf: bool = False,
        folder: Path | None = None,
    ) -> None:
        drop = ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE")
        environment = {name: value for name, value in os.environ.items() if name not in drop}
        super().__init__(
            "/bin/sh",
            ["-c", 'exec "$@" </dev/null' if deaf else 'exec "$@"', "sh", sys.executable, "-m", "srup", *arguments],
            timeout=PATIENCE,
            maxread=65536,
            cwd=folder,
            env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
            codec_errors="replace",
            dimensions=(rows, columns),
        )
        self.delaybeforesend = None
        self.modes = termios.tcgetattr(self.child_fd)
        self.raw = self.text = ""

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> str:
        self.raw += super().read_nonblocking(size, timeout)
        text = _UNFINISHED.sub("", CONTROLS.sub("", self.raw)).replace("\r\n  ", " ")
        self.text, new = text, text[len(self.text) :]
        return new

    def expect(self, pattern: str) -> "re.Match[str]":
        """Wait for ``pattern`` after what was found the last time."""
        super().expect(re.compile(pattern))
        return self.match

    def end(self, keys: str = "\x03") -> int | None:
        """Press Ctrl-C and read until the end; return the exit status."""
        self.send(keys)
        return self.wait()

    def wait(self) -> int | None:
        """Read until the end; return the exit status."""
        super().expect(pexpect.EOF)
        return super().wait()

    def close(self, force: bool = True) -> None:
        self.kill(signal.SIGKILL)
        super().close(force)
