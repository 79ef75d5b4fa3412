"""What reads the value that another device shows, as a program of its own: a camera, a scanner, a person's script."""

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Final

from ..errors import PolicyError

__all__ = ["CommandReader"]

LONGEST: Final = 4096
"""How much of what a command prints is looked at, in bytes."""


class CommandReader:
    """A handler for :meth:`Device.on_observation`: runs ``command``, without a shell, and returns what it printed.

    The identity of the device that joins, in hex, is added as its last argument. A command that fails, cannot be run or
    takes more than ``timeout`` seconds could not read anything: None.
    """

    def __init__(self, command: Sequence[str], timeout: float = 300.0) -> None:
        if not command or isinstance(command, str | bytes):
            raise PolicyError("a reader is a command: the path of a program, and its arguments")
        self._command = tuple(command)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = False

    def __call__(self, identity: int) -> bytes | None:
        """Read what the device ``identity`` shows."""
        with self._lock:
            if self._closed:
                return None
            try:
                self._running = subprocess.Popen(  # noqa: S603 - the operator's own command
                    [*self._command, f"{identity:x}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError:
                return None
        try:
            read, _ = self._running.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            self._kill(self._running)
            self._running.communicate()
            return None
        return read[:LONGEST] if self._running.returncode == 0 else None

    def close(self) -> None:
        """End the command if it runs, and run it no more."""
        with self._lock:
            self._closed = True
            if self._running is not None:
                self._kill(self._running)

    @staticmethod
    def _kill(process: "subprocess.Popen[bytes]") -> None:
        """End the command and whatever it has started, which would keep its output open."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
