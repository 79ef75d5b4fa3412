"""Worker processes of a server on this machine: started together, started again when one dies, ended together."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["Supervisor", "application", "end_with_supervisor"]

PAUSES: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a worker that died is started again: at once at first, then more and more slowly."""

LASTING: Final = 60.0
"""Who ran for so many seconds has recovered: the next time it is started at once again."""

FAREWELL: Final = 30.0
"""Seconds that workers have to finish what is under way; then they are killed."""


def application(name: str) -> Callable[[Any], object]:
    """Import ``module:function``, from this folder too. ValueError says what is wrong with the name."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"an application is module:function, not {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ValueError(f"the application {name!r} cannot be imported: {error}") from None
    except AttributeError:
        raise ValueError(f"the application {name!r}: {module} has no {function}") from None
    if not callable(found):
        raise ValueError(f"the application {name!r} cannot be called with a server")
    return found  # type: ignore[no-any-return]


def end_with_supervisor() -> None:
    """Let this worker finish as at SIGTERM when its supervisor is gone, whose end of our standard input closes then."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


class Supervisor:
    """``count`` processes of ``command``. What they print goes to our own output; each is told by its number.

    ``variable`` is the environment variable in which each finds its number, from 0.
    """

    def __init__(self, command: Sequence[str], count: int, say: Callable[[str, str], object], variable: str) -> None:
        self._command = command
        self._variable = variable
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self._deaths = [0] * count
        self._due = [0.0] * count
        self._began = [0.0] * count
        self._say = say
        self._ended = threading.Event()

    def run(self) -> int:
        """Run until SIGINT, SIGTERM or SIGHUP; return the exit status of a command that was ended by it."""
        ending: list[int] = []

        def end(number: int, _frame: object) -> None:
            ending.append(number)
            self._ended.set()

        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, end)
        try:
            while not self._ended.is_set():
                self._look()
                self._ended.wait(0.2)
        finally:
            self._end()
        return 128 + ending[0] if ending and ending[0] != signal.SIGINT else 0

    def _look(self) -> None:
        now = time.monotonic()
        for number, process in enumerate(self._processes):
            if process is not None and process.poll() is not None:
                lasted = now - self._began[number]
                self._deaths[number] = 0 if lasted >= LASTING else self._deaths[number] + 1
                pause = PAUSES[min(self._deaths[number], len(PAUSES) - 1)]
                self._due[number] = now + pause
                how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
                self._say(f"worker {number + 1} ended ({how}) after {lasted:.0f} s; again in {pause:.0f} s", "yellow")
                self._processes[number] = process = None
            if process is None and now >= self._due[number]:
                self._began[number] = now
                # Ctrl-C at the terminal is for us; we tell the workers.
                environment = os.environ | {self._variable: str(number)}
                self._processes[number] = subprocess.Popen(  # noqa: S603
                    self._command, env=environment, stdin=subprocess.PIPE, start_new_session=True
                )
                self._say(f"worker {number + 1} of {len(self._processes)}: process {self._processes[number].pid}", "")  # type: ignore[union-attr]

    def _end(self) -> None:
        running = [process for process in self._processes if process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + FAREWELL
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
