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

from .endings import has_terminal, told_to_end

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
        raise ValueError(f"--app must be module:function, not {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ValueError(f"--app {name!r} cannot be imported: {error}") from None
    except AttributeError:
        raise ValueError(f"--app {name!r}: {module} has no {function}") from None
    if not callable(found):
        raise ValueError(f"--app {name!r} is not callable")
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

    ``variable`` is the environment variable in which each finds its number, from 0. At SIGHUP ``reload`` is called, and
    if it returns True the processes get SIGHUP, too.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        say: Callable[[str, str], object],
        variable: str,
        reload: Callable[[], bool],
    ) -> None:
        self._command = command
        self._variable = variable
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self._deaths = [0] * count
        self._due = [0.0] * count
        self._began = [0.0] * count
        self._say = say
        self._ended = threading.Event()
        self._reload = reload
        self._reload_asked = False
        self._has_terminal = has_terminal()  # when it is gone, nobody can tell

    def run(self) -> int:
        """Run until a signal tells us to end; return the exit status."""
        with told_to_end(self._told):
            try:
                while not self._ended.is_set():
                    if self._reload_asked:
                        self._reload_asked = False
                        if self._reload():
                            self._pass_on(signal.SIGHUP)
                    self._look()
                    self._ended.wait(0.2)
            finally:
                self._end()
        return 0

    def _told(self, ending: signal.Signals) -> None:
        if ending is signal.SIGHUP and not self._has_terminal:
            self._reload_asked = True
        else:
            self._ended.set()

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process is not None:
                process.send_signal(number)

    def _look(self) -> None:
        now = time.monotonic()
        for number, process in enumerate(self._processes):
            if process is not None and process.poll() is not None:
                lasted = now - self._began[number]
                self._deaths[number] = 0 if lasted >= LASTING else self._deaths[number] + 1
                pause = PAUSES[min(self._deaths[number], len(PAUSES) - 1)]
                self._due[number] = now + pause
                how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
                self._say(
                    f"worker {number + 1} ended ({how}) after {lasted:.0f} s; restarting in {pause:.0f} s", "yellow"
                )
                self._processes[number] = process = None
            if process is None and now >= self._due[number]:
                self._began[number] = now
                # Ctrl-C at the terminal is for us; we tell the workers. SIGHUP waits until a worker can take it.
                environment = os.environ | {self._variable: str(number)}
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
                self._processes[number] = subprocess.Popen(  # noqa: S603
                    self._command, env=environment, stdin=subprocess.PIPE, start_new_session=True
                )
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
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
