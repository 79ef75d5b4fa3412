"""The broker command: a broker for trying things out on one machine."""

import threading
from typing import Annotated

import typer

import srup

from .apps import App
from .endings import told_to_end
from .options import BrokerKind
from .terminal import explained, tell

__all__ = ["app", "broker"]

app = App()


@app.command()
def broker(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")] = 1883,
    kind: BrokerKind = "auto",
) -> None:
    """Run an MQTT broker for experiments until Ctrl-C. It listens on loopback only and accepts everybody."""
    ended = threading.Event()
    with told_to_end(lambda _: ended.set()), explained():
        running = srup.transport.LocalBroker(None if kind == "auto" else kind, port or None)
        with running:
            tell(f"broker at {running.url}: {running.description}; Ctrl-C stops it")
            while running.running and not ended.wait(1.0):
                pass
    if not ended.is_set():
        tell("the broker ended unexpectedly", "red")
        raise typer.Exit(1)
