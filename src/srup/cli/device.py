"""The device command: shows the value of its join, and reads what another device shows if it is an observer."""

import shlex
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.text import Text

import srup

from .joins import ValueBoard
from .options import (
    AuditDays,
    Broker,
    BrokerUser,
    CaFile,
    CertFile,
    CertKeyFile,
    HasPassword,
    Identity,
    JoinTimeout,
    KeyFile,
    LogFormat,
    Metrics,
    audit_kept,
    explained,
    identity,
    key_of,
    log_as,
    monitoring,
    policy,
    tell_refusal,
    transport_of,
)
from .terminal import Scene, Terminal

__all__ = ["device"]


def device(
    identity: Identity,
    key: KeyFile,
    server: Annotated[int, typer.Option(parser=identity, metavar="HEX", help="The server to join.")],
    server_key: Annotated[Path, typer.Option(help="Its public key.")],
    broker: Broker,
    join: Annotated[Literal["simple", "human", "observed"], typer.Option(help="How to get in.")] = "simple",
    observer: Annotated[
        int | None, typer.Option(parser=identity, metavar="HEX", help="Who observes an observed join.")
    ] = None,
    observe: Annotated[bool, typer.Option("--observe", help="Type here what other devices show that join.")] = False,
    reader: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="What reads it instead, and prints it (no shell).")
    ] = None,
    firmware: Annotated[Path, typer.Option(help="The folder for firmware.")] = Path("firmware"),
    description: Annotated[str, typer.Option(help="What the device says it is.")] = "",
    store: Annotated[Path | None, typer.Option(help="An SQLite database: where state survives.")] = None,
    audit_days: AuditDays = 30.0,
    join_timeout: JoinTimeout = None,
    password: HasPassword = False,
    broker_user: BrokerUser = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    metrics: Metrics = None,
    log_format: LogFormat = None,
) -> None:
    """Run a device until Ctrl-C: it joins, shows the value to be compared if there is one, and takes updates."""
    terminal = Terminal(log_as(log_format))
    with explained():
        rules = policy(join_timeout)
        running = srup.Device(
            identity,
            key_of(key, password),
            server=server,
            server_key=srup.PublicKey.load(server_key),
            broker=transport_of(broker, identity, broker_user, ca, cert, cert_key),
            firmware=firmware,
            description=description,
            policy=rules,
            join=join,
            observer=observer,
            store=store,
            audit_kept=audit_kept(audit_days),
        )
        command = None if reader is None else srup.CommandReader(shlex.split(reader), rules.join_lifetime)
        if join != "simple" and not terminal.shows:
            raise ValueError(f"the value of a join of the kind {join} has to be shown, and this is no terminal")
        if observe and command is None and not terminal.asks:
            raise ValueError("nobody can type here what others show; --reader COMMAND reads it without a terminal")
        monitor = monitoring(metrics, running)
    panel = Panel(running, terminal, join, rules.join_lifetime)
    if command is not None:
        running.on_observation(command)
    elif observe:
        running.on_observation(panel.read)
    with ExitStack() as stack:
        stack.enter_context(terminal)
        if command is not None:
            stack.callback(command.close)
        stack.callback(panel.close)
        enter = "; Enter asks again" if terminal.asks else ""
        terminal.say(f"device {identity:x}: asks server {server:x} to let it in ({join} join){enter}")
        if monitor is not None:
            stack.enter_context(monitor)
            terminal.say(f"metrics at {monitor.url}/metrics")
        with explained():
            stack.enter_context(running)
        terminal.run(panel.look, panel.again)
    raise typer.Exit(terminal.status)


class _Reading(NamedTuple):
    """Another device that shows something, which somebody is to type here."""

    device: int
    typed: "Future[str | None]"


class Panel:
    """What the operator of a device sees: news, the value while it is valid, and what is to be read from others."""

    def __init__(self, device: srup.Device, terminal: Terminal, join: str, patience: float) -> None:
        self._device = device
        self._terminal = terminal
        self._join = join
        self._patience = patience
        self._board: ValueBoard | None = None
        self._reading: _Reading | None = None
        self._in = self._closed = False
        say = terminal.say
        device.on_link(lambda connected, why: say(why if connected else f"not connected: {why}", "dim"))
        if terminal.shows:
            device.on_join_value(self._show)
        device.on_joined(self._joined)
        device.on_not_joined(self._not_joined)
        device.on_left(self._left)
        device.on_deregistered(self._deregistered)
        device.on_update(lambda digest, status: say(f"firmware {digest}: {status.name}"))
        device.on_data()(lambda server, data_id, value: say(f"{server:x} sends {data_id}: {value!r}"))
        device.on_refused(partial(tell_refusal, terminal))
        for action_id in range(256):
            device.on_action(action_id)(partial(self._act, action_id))

    def look(self) -> Scene | None:
        """Return what is to be read from another device, else the value that is to be shown."""
        reading, board = self._reading, self._board
        if reading is not None:
            return Scene(reading, partial(_asked, reading.device), "It shows:", partial(self._typed, reading))
        if board is not None:
            heading = f"{self._device.identity:x} shows this to join {self._device.server:x}"
            return Scene(board, partial(board.body, heading))
        return None

    def read(self, device: int) -> str | None:
        """Let the operator type what a device shows; None when nothing was typed in time."""
        reading = _Reading(device, Future())
        self._reading = reading
        if self._closed:
            return None
        self._terminal.wake()
        try:
            return reading.typed.result(self._patience)
        except TimeoutError:
            self._terminal.say(f"nothing was typed about {device:x} in time", "yellow")
            return None
        finally:
            self._reading = None
            self._terminal.wake()

    def again(self) -> None:
        """Ask the server again, if we are out: a request for a compared join that was lost does not come again."""
        if not self._in:
            self._terminal.say(f"asks server {self._device.server:x} again")
            self._device.join()

    def close(self) -> None:
        """Wait for the operator no more."""
        self._closed = True
        if self._reading is not None and not self._reading.typed.done():
            self._reading.typed.set_result(None)

    def _typed(self, reading: _Reading, line: str) -> str | None:
        if not reading.typed.done():
            reading.typed.set_result(line or None)
        return None

    def _show(self, value: srup.JoinValue) -> None:
        self._board = ValueBoard(value)
        self._terminal.wake()

    def _joined(self) -> None:
        if not self._in:  # a member asks again now and then
            self._terminal.say(f"joined server {self._device.server:x}", "green")
        self._in, self._board = True, None
        self._terminal.wake()

    def _not_joined(self, status: srup.Status | None) -> None:
        self._board = None
        if status is None:
            self._terminal.say(f"server {self._device.server:x} has not answered in time", "yellow")
        else:
            hint = "; it may want --join human" if self._join == "simple" and status is srup.Status.JOIN_REFUSED else ""
            self._stay_out(f"server {self._device.server:x} does not let us in: {status.name}{hint}")

    def _left(self, server: int) -> None:
        self._stay_out(f"server {server:x} has put us out")

    def _stay_out(self, why: str) -> None:
        self._in = False
        self._terminal.say(why, "yellow")
        if not self._terminal.asks:
            self._terminal.end(1)

    def _deregistered(self, server: int) -> None:
        self._terminal.say(f"server {server:x} has dropped our key, and we its key")
        self._terminal.end()

    def _act(self, action_id: int, server: int) -> srup.Status:
        self._terminal.say(f"{server:x} asks for action {action_id}, which this device does not have")
        return srup.Status.ACTION_UNKNOWN


def _asked(device: int, columns: int, rows: int) -> RenderableType:
    """Return what is asked of an observer."""
    return Group(
        Text(f"{device:x} wants to join, and we are to say what it shows", "bold cyan"),
        Text("Type the words, the numbers, or the text of the QR code; nothing, if it cannot be read."),
    )
