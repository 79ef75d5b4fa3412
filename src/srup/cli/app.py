"""The commands and their options; what they do is elsewhere."""

import io
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

import srup
from srup.cli.keyex import app as keyex
from srup.keys import SCHEMES

from . import logs
from .bench import app as bench
from .device import device
from .order import app as order
from .server import server
from .simulate import simulate
from .store import app as store
from .terminal import console
from .terminal import fail as _fail

app = typer.Typer(
    help="Secure Remote Update Protocol: signed commands and firmware updates over MQTT.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(keyex, name="keyex")
app.add_typer(bench, name="bench")
app.add_typer(store, name="store")
app.add_typer(order, name="order")
app.command()(server)
app.command()(device)
app.command()(simulate)


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of the library.")] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what this terminal has no sign for is shown as another
    # On a screen trouble is shown elsewhere; a service must say it. Warnings would let strangers fill the disk.
    quiet = logging.CRITICAL if sys.stderr is not None and sys.stderr.isatty() else logging.ERROR
    logs.show(logging.INFO if verbose else quiet)


@app.command()
def version() -> None:
    """Show the version and which backend runs."""
    console.print(f"srup {srup.__version__} ({srup.BACKEND} backend)", highlight=False)


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="Where the private key goes; the public one gets .pub behind it.")],
    scheme: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEMES)}.")] = "rsa2048",
    password: Annotated[bool, typer.Option("--password", help="Ask for a password to encrypt the key.")] = False,
) -> None:
    """Make a key pair: PATH (mode 0600) and PATH.pub."""
    if not path.name:
        _fail("the path is empty or a folder")
    public_path = path.with_name(f"{path.name}.pub")
    for existing in (path, public_path):
        if existing.exists():
            _fail(f"{existing} exists; a key is never overwritten")
    secret = typer.prompt("Password", hide_input=True, confirmation_prompt=True) if password else None
    try:
        key = srup.PrivateKey.generate(scheme)
        key.save(path, secret)
        key.public_key.save(public_path)
    except srup.SrupError as error:
        _fail(str(error))
    made = f"{path} and {public_path}: {key.scheme}, fingerprint {key.public_key.fingerprint}"
    console.print(escape(made), highlight=False, soft_wrap=True)


@app.command()
def demo(
    devices: Annotated[int, typer.Option(envvar="DEVICES", help="How many devices.")] = 25,
    scheme: Annotated[str, typer.Option(help="The scheme of all keys (see keygen).")] = "rsa2048",
    broker: Annotated[
        Literal["auto", "mosquitto", "amqtt"],
        typer.Option(help="auto takes Mosquitto if it is installed."),
    ] = "auto",
) -> None:
    """Join and update a fleet on this machine while somebody attacks it; no server needed, nothing leaves loopback."""
    try:
        from .demo import show
    except ModuleNotFoundError as error:
        _fail(f"the demo needs {error.name}: pip install 'srup[demo]'")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _frame: sys.exit(128 + number))  # so that the broker ends with us
    try:
        passed = show(console, devices, scheme, None if broker == "auto" else broker)
    except (srup.SrupError, OSError, ValueError, ImportError) as error:
        _fail(str(error))
    raise typer.Exit(0 if passed else 1)
