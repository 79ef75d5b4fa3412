"""A redis-server of one's own: started on a free port of the loopback interface, stopped, killed and started again."""

import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from ..transport.broker import free_port
from .processes import BenchError, Process

__all__ = ["RedisServer", "find_redis"]

_START: Final = 30.0  # seconds


def find_redis() -> str:
    """The path of redis-server; BenchError if it is not installed."""
    path = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/sbin:/usr/local/bin")
    if path is None:
        raise BenchError("redis-server is not installed (apt install redis-server)")
    return path


class RedisServer:
    """Has its files in ``folder``, and writes before it answers; ``settings`` are Redis' own.

    BenchError if it is not installed.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self._program = find_redis()
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(folder), "daemonize": "no"}
        self.settings |= {"appendonly": "yes", "appendfsync": "always", "save": "", "shutdown-timeout": "0"}
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}

    def start(self) -> Self:
        """Start it, and wait until it has read its files and answers; BenchError if it does not."""
        words = [word for name, value in self.settings.items() for word in (f"--{name}", value)]
        self.process = Process("redis-server", [self._program, *words], self.folder, talks=False)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + _START
        while not self._answers():
            self.process.check()
            if time.monotonic() > deadline:
                raise self.process.failure("does not answer")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return not (connection.recv(100) or b"-LOADING").startswith(b"-LOADING")
        return False

    def stop(self) -> None:
        """In order; a second call does nothing."""
        self.process.signal(signal.SIGCONT)
        self.process.end()

    def kill(self) -> None:
        """As a crash does: SIGKILL."""
        self.process.signal(signal.SIGKILL)
        self.process.end()

    def restart(self) -> Self:
        """Stop it in order and start it again, on the same port and files."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
