"""A program that an operator names: run without a shell, ended in time, and with everything that it has started."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

__all__ = ["Outcome", "Program"]

LONGEST: Final = 65536
"""How much of what a program prints is kept, in bytes: the end of it."""


class Outcome(NamedTuple):
    """How a program ended: its exit status (minus the signal that killed it) and what it printed.

    ``status`` is None if it could not be run, was ended because it took too long, or was closed; ``why`` says which.
    """

    status: int | None
    output: bytes
    why: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, for people: the last line that it printed, or how it ended; empty if it has not failed."""
        if self.status == 0:
            return ""
        lines = self.output.decode("utf-8", "replace").strip().splitlines()
        ended = f"exit status {self.status}" if self.status is None or self.status > 0 else f"signal {-self.status}"
        how = self.why or ended
        return f"{how}: {lines[-1].strip()}" if lines else how


class Program:
    """Runs ``command``, one at a time, for at most ``timeout`` seconds each; ValueError for an empty command.

    ``complains`` keeps what it prints on standard error as well; otherwise that goes to our own standard error.
    """

    def __init__(self, command: Sequence[str], timeout: float = 300.0, *, complains: bool = False) -> None:
        if not command or isinstance(command, str | bytes):
            raise ValueError("a command is the path of a program, and its arguments")
        self._command = tuple(command)
        self._timeout = timeout
        self._errors = subprocess.STDOUT if complains else None
        self._turn = threading.Lock()  # held while it runs
        self._lock = threading.Lock()  # guards what follows
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """The program, without its arguments."""
        return self._command[0]

    def run(self, *arguments: str, given: bytes = b"", environment: Mapping[str, str] | None = None) -> Outcome:
        """Run it with more arguments, what it reads on standard input, and more variables."""
        with self._turn:
            with self._lock:
                if self._closed:
                    return Outcome(None, b"", "closed")
                try:
                    running = self._running = subprocess.Popen(  # noqa: S603 - the operator's own command
                        [*self._command, *arguments],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=self._errors,
                        env=None if environment is None else os.environ | environment,
                        start_new_session=True,
                    )
                except (OSError, ValueError) as error:
                    return Outcome(None, b"", f"{self.name} cannot be run: {getattr(error, 'strerror', None) or error}")
            try:
                output, _ = running.communicate(given, timeout=self._timeout)
            except subprocess.TimeoutExpired:
                self._kill(running)
                output, _ = running.communicate()
                return Outcome(None, output[-LONGEST:], f"took longer than {self._timeout:g} s")
            with self._lock:
                closed = self._closed
            status = None if closed and running.returncode < 0 else running.returncode
            return Outcome(status, output[-LONGEST:], "closed" if status is None else "")

    def close(self) -> None:
        """End the program if it runs, and run it no more."""
        with self._lock:
            self._closed = True
            if self._running is not None:
                self._kill(self._running)

    @staticmethod
    def _kill(process: "subprocess.Popen[bytes]") -> None:
        """End the program and whatever it has started, which would keep its output open."""
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
