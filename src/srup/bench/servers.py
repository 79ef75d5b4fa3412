"""The servers that a benchmark drives: what their application does, and how their processes are started."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ..agent import Server
from ..extras import require
from ..keyring import KeyRing
from ..keys import PrivateKey
from ..store import PARTITIONS
from .ledger import Kind, Ledger, Value
from .processes import Process
from .redisserver import RedisServer, find_redis
from .site import SERVER, Site

__all__ = ["SERVERS", "UPDATE", "VALUE", "Running", "Servers", "application", "install", "main"]

VALUE: Final = "value"
"""The data_id of what devices send."""

UPDATE: Final = 1
"""The action by which a device asks to be updated."""

_SITE: Final = "SRUP_BENCH_SITE"  # the environment variable that tells the workers' application where it is

_ledger = cache(Ledger)  # one for all partitions of a process


def install(server: Server, site: Site) -> None:
    """Give a server, or the server of a partition, the application of the benchmark, before it starts."""
    ledger = _ledger(site.ledgers)
    serial = count(1)

    @server.on_link
    def ready(connected: bool, _why: str) -> None:
        if connected:
            ledger.write(Kind.READY)

    @server.on_joined
    def joined(device: int) -> None:
        ledger.write(Kind.JOINED, device)

    @server.on_data(VALUE)
    def execute(device: int, _name: str, data: bytes) -> None:
        value = Value.unpack(data)
        if value.device != device:
            raise ValueError(f"{device:x} sends a value of {value.device:x}")
        if not site.drop_every or next(serial) % site.drop_every:
            ledger.write(Kind.VALUE, device, value.number, value.due)

    @server.on_action(UPDATE)
    def update(device: int) -> None:
        server.update(device, site.url, site.digest)


def application(server: Server) -> None:
    """Do the same in a worker: what ``srup server --app`` calls."""
    install(server, Site.load(os.environ[_SITE]))


def main(path: str, store: str) -> None:
    """Run a server of one process until SIGTERM, or until whoever started it is gone; it keeps its state in a store.

    ``store`` is "memory", which is none, or "sqlite".
    """
    site = Site.load(path)
    key = PrivateKey.load(site.server_key)
    server = Server(
        SERVER,
        key,
        devices=KeyRing.load(site.devices),
        broker=site.broker,
        store=site.state / "server.sqlite" if store == "sqlite" else None,
    )
    install(server, site)

    def end_with_parent() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    server.run()


class Running(NamedTuple):
    """Servers that run: the processes of each part, and how many of them, or of their partitions, connect."""

    parts: Mapping[str, Sequence[Process]]
    connections: int


class Servers(Protocol):
    """A kind of server. Its processes, and what they start, are measured together; they end at SIGTERM."""

    def check(self, workers: int) -> None:
        """ValueError unless it can have so many workers; BenchError or ModuleNotFoundError says what is missing."""

    def run(self, path: Path, workers: int) -> AbstractContextManager[Running]:
        """Start it on the site that ``path`` describes, and end it."""


class Single(Servers):
    """A server of one process; ``store`` as for :func:`main`."""

    def __init__(self, store: str) -> None:
        self._store = store

    def check(self, workers: int) -> None:
        """See Servers."""
        if workers != 1:
            raise ValueError(f"this server is one process; it cannot have {workers} workers")

    @contextmanager
    def run(self, path: Path, workers: int) -> Iterator[Running]:
        """See Servers."""
        command = [sys.executable, "-m", "srup.bench", "server", str(path), self._store]
        with Process("server", command, path.parent, talks=False) as process:
            yield Running({"servers": [process]}, workers)


class Workers(Servers):
    """``srup server --workers`` on a Redis of its own, which writes everything to disk before it answers."""

    def check(self, workers: int) -> None:
        """See Servers."""
        require("redis")
        find_redis()

    @contextmanager
    def run(self, path: Path, workers: int) -> Iterator[Running]:
        """See Servers."""
        from ..store import RedisStore

        site = Site.load(path)
        with RedisServer(site.state) as redis:
            RedisStore.create(redis.url, SERVER)
            options = {
                "identity": f"{SERVER:x}",
                "key": site.server_key,
                "devices": site.devices,
                "broker": site.broker,
                "store": redis.url,
                "workers": workers,
                "app": f"{__name__}:{application.__name__}",
            }
            command = [sys.executable, "-m", "srup", "server"]
            command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
            with Process("server", command, path.parent, talks=False, environment={_SITE: str(path)}) as process:
                yield Running({"servers": [process], "redis": [redis.process]}, PARTITIONS)


SERVERS: Final[dict[str, Servers]] = {"plain": Single("memory"), "sqlite": Single("sqlite"), "workers": Workers()}
"""Every kind of server; here goes another one."""
