"""The servers that a benchmark drives: what their application does, and how their processes are started."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

from ..agent import Server
from ..keyring import KeyRing
from ..keys import PrivateKey
from .ledger import Kind, Ledger, Value
from .site import SERVER, Site

__all__ = ["SERVERS", "UPDATE", "VALUE", "install", "main"]

VALUE: Final = "value"
"""The data_id of what devices send."""

UPDATE: Final = 1
"""The action by which a device asks to be updated."""


def install(server: Server, site: Site) -> None:
    """Give a server, or a worker of one, the application of the benchmark. Call it before the server starts."""
    ledger = Ledger(site.ledgers)
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


def _single(store: str, site: Path, workers: int) -> list[list[str]]:
    if workers != 1:
        raise ValueError(f"this server is one process; it cannot have {workers} workers")
    return [[sys.executable, "-m", "srup.bench", "server", str(site), store]]


SERVERS: Final[dict[str, Callable[[Path, int], list[list[str]]]]] = {
    "plain": partial(_single, "memory"),
    "sqlite": partial(_single, "sqlite"),
}
"""How to start a server with so many workers on a site: the command lines. ValueError if it cannot have so many.

The processes, and what they start, are measured together; they end at SIGTERM, or when their standard input does.
"""


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
