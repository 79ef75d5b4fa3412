"""The device command: shows the value of its join, and reads what another device shows if it is an observer."""

import shlex
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Final, Literal, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.text import Text

import srup

from ..extras import require
from ..printable import printable
from .apps import App
from .downloads import (
    AllowHttp,
    FetchCa,
    FetchHost,
    FetchMaxSize,
    FetchMaxTime,
    FetchProxy,
    FetchTimeout,
    KeepImages,
    fetch_policy,
)
from .enrolled import Enrolled, OurIdentity, party, server_of
from .hooks import Facts, Hooks, HookTimeout, OnAction, OnActivate, OnUpdate, OnValue, Reports, facts_of
from .joins import VALUE_FORMS, ValueBoard
from .options import (
    AuditDays,
    AuditValues,
    Broker,
    BrokerUser,
    CaFile,
    CertFile,
    CertKeyFile,
    HasPassword,
    JoinTimeout,
    KeyFile,
    LogFormat,
    Metrics,
    RefusalLines,
    audit_kept,
    identity,
    log_as,
    monitoring,
    policy,
    reload_files,
)
from .systemd import Notifier, works
from .terminal import Scene, Terminal, explained

__all__ = ["app", "device"]

app = App()


@app.command()
def device(
    identity: OurIdentity = None,
    key: KeyFile = None,
    server: Annotated[
        int | None,
        typer.Option(
            parser=identity, metavar="HEX", help="The server to join; default: the one that --enrolled names."
        ),
    ] = None,
    server_key: Annotated[Path | None, typer.Option(help="The server's public key.")] = None,
    broker: Broker = None,
    enrolled: Enrolled = None,
    join: Annotated[Literal["simple", "human", "observed"], typer.Option(help="How to join.")] = "simple",
    observer: Annotated[
        int | None,
        typer.Option(parser=identity, metavar="HEX", help="The device that observes our join (--join observed)."),
    ] = None,
    observe: Annotated[
        bool, typer.Option("--observe", help="Observe other devices' joins: type here what they show.")
    ] = False,
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="Program that reads what other devices show, and prints it (run without a shell)."
        ),
    ] = None,
    firmware: Annotated[Path, typer.Option(file_okay=False, help="Folder for firmware images.")] = Path("firmware"),
    keep_images: KeepImages = 2,
    allow_http: AllowHttp = False,
    fetch_ca: FetchCa = None,
    fetch_host: FetchHost = None,
    fetch_max_size: FetchMaxSize = 512 * 2**20,
    fetch_max_time: FetchMaxTime = 3600.0,
    fetch_timeout: FetchTimeout = 30.0,
    fetch_proxy: FetchProxy = None,
    on_activate: OnActivate = None,
    on_action: OnAction = None,
    on_value: OnValue = None,
    on_update: OnUpdate = None,
    report: Reports = None,
    hook_timeout: HookTimeout = 300.0,
    description: Annotated[str, typer.Option(help="Description that the device reports to the server.")] = "",
    fact: Facts = None,
    store: Annotated[Path | None, typer.Option(metavar="PATH", help="SQLite file to keep state in.")] = None,
    adopt: Annotated[bool, typer.Option("--adopt", help="Accept a store that may be an old copy.")] = False,
    audit_days: AuditDays = 30.0,
    audit_values: AuditValues = False,
    join_timeout: JoinTimeout = None,
    password: HasPassword = False,
    broker_user: BrokerUser = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    metrics: Metrics = None,
    log_format: LogFormat = None,
) -> None:
    """Run a device until Ctrl-C: join, show the value to be compared if there is one, and take updates."""
    terminal = Terminal(log_as(log_format), lambda: reload_files([link], terminal.say))
    with explained():
        if join != "simple" or observe or reader is not None:
            require(*VALUE_FORMS)
        rules = policy(join_timeout)
        files: dict[str, Any] = {"password": password, "broker_user": broker_user}
        ours = party(enrolled, identity, key, broker, **files, ca=ca, cert=cert, cert_key=cert_key)
        link = ours.link()
        target = server_of(ours.enrolment, server, server_key)
        running = srup.Device(
            ours.identity,
            ours.key,
            server=target.identity,
            server_key=target.key,
            broker=link,
            firmware=firmware,
            keep_images=keep_images,
            fetch=fetch_policy(
                allow_http, fetch_ca, fetch_host, fetch_max_size, fetch_max_time, fetch_timeout, fetch_proxy
            ),
            description=description,
            inventory=facts_of(fact or ()),
            policy=rules,
            join=join,
            observer=observer,
            store=None if store is None else srup.SqliteStore(store, adopt=adopt),
            audit_kept=audit_kept(audit_days),
            audit_values=audit_values,
        )
        command = None if reader is None else srup.CommandReader(shlex.split(reader), rules.join_lifetime)
        if join != "simple" and not terminal.shows:
            raise ValueError(f"--join {join} shows a value to compare, and standard output is not a terminal")
        if observe and command is None and not terminal.asks:
            raise ValueError("--observe needs a terminal to type in; without one, use --reader COMMAND")
        monitor = monitoring(metrics, running)
        panel = Panel(running, terminal, join, rules.join_lifetime)
        programs: dict[str, Any] = {
            "on_activate": on_activate,
            "on_action": on_action or (),
            "on_value": on_value or (),
        }
        programs |= {"on_update": on_update, "reports": report or (), "timeout": hook_timeout}
        hooks = Hooks(running, terminal.say, **programs)
        panel.step = hooks.updated
    if command is not None:
        running.on_observation(command)
    elif observe:
        running.on_observation(panel.read, attempts=_ATTEMPTS, on_mistake=panel.mistaken)
    with ExitStack() as stack:
        stack.enter_context(terminal)
        if command is not None:
            stack.callback(command.close)
        stack.callback(panel.close)
        if monitor is not None:
            stack.enter_context(monitor)
            terminal.say(f"metrics at {monitor.url}/metrics")
        stack.callback(hooks.close)  # before the device ends, which waits for them
        with explained():
            stack.enter_context(running)
        panel.announce()
        stack.enter_context(hooks)
        stack.enter_context(Notifier(lambda: works(running.vitals())))
        terminal.run(panel.look, panel.again)
    raise typer.Exit(terminal.status)


_ATTEMPTS: Final = 3
"""How often an operator may type what another device shows until it counts as another value."""


class _Reading(NamedTuple):
    """Another device that shows something, which somebody is to type here; ``mistake`` is about the line before."""

    device: int
    typed: "Future[str | None]"
    mistake: str


class Panel:
    """What the operator of a device sees: news, the value while it is valid, and what is to be read from others."""

    def __init__(self, device: srup.Device, terminal: Terminal, join: str, patience: float) -> None:
        self._device = device
        device.on_fault(lambda fault: terminal.end(1))
        self._terminal = terminal
        self._join = join
        self._patience = patience
        self._board: ValueBoard | None = None
        self._reading: _Reading | None = None
        self._mistake = ""
        self.step: Callable[[str, srup.Status, str], object] = lambda digest, status, why: None  # of an update
        self._in = self._closed = self._announced = False
        self._announcing = Lock()
        self._refusals = refusals = RefusalLines(terminal)
        say = terminal.say
        device.on_link(self._linked)
        if terminal.shows:
            device.on_join_value(self._show)
        device.on_joined(self._joined)
        device.on_join_unanswered(lambda text: say(text, "yellow"))
        device.on_not_joined(self._not_joined)
        device.on_left(self._left)
        device.on_deregistered(self._deregistered)
        device.on_update(self._updated)
        device.on_update_failed(self._update_failed)
        device.on_data()(
            lambda server, data_id, value: say(
                f"{server:x} sends {printable(data_id, 100)}: {printable(repr(value), 300, words=True)}"
            )
        )
        device.on_refused(refusals)
        for action_id in range(256):
            device.on_action(action_id)(partial(self._act, action_id))

    def announce(self) -> None:
        """Say whom we ask, once the device has started: before all that comes of it, and not if it could not start."""
        with self._announcing:
            if not self._announced:
                ours, server = self._device.identity, self._device.server
                enter = "; press Enter to ask again" if self._terminal.asks else ""
                self._terminal.say(f"device {ours:x}: asking server {server:x} to join ({self._join} join){enter}")
            self._announced = True

    def _linked(self, connected: bool, why: str) -> None:
        self.announce()
        self._terminal.say(why if connected else f"not connected: {why}", "dim")

    def look(self) -> Scene | None:
        """Return what is to be read from another device, else the value that is to be shown."""
        reading, board = self._reading, self._board
        if reading is not None:
            return Scene(reading, partial(_asked, reading), "It shows:", partial(self._typed, reading))
        if board is not None:
            heading = f"{self._device.identity:x} shows this to join {self._device.server:x}"
            return Scene(board, partial(board.body, heading))
        return None

    def read(self, device: int) -> str | None:
        """Let the operator type what a device shows; None when nothing was typed in time."""
        reading = _Reading(device, Future(), self._mistake)
        self._reading, self._mistake = reading, ""
        if self._closed:
            return None
        self._terminal.wake()
        try:
            return reading.typed.result(self._patience)
        except TimeoutError:
            self._terminal.say(f"nothing was typed for {device:x} in time", "yellow")
            return None
        finally:
            self._reading = None
            self._terminal.wake()

    def mistaken(self, device: int, left: int) -> None:
        """Say, where it is asked for again, that what was typed is not what the device was to show."""
        times = "once more" if left == 1 else f"{left} more times"
        self._mistake = f"That is not the value of this join. It may be typed {times}: check what {device:x} shows."

    def again(self) -> None:
        """Ask the server again, if we are out: a request for a compared join that was lost does not come again."""
        if not self._in:
            self._terminal.say(f"asking server {self._device.server:x} again")
            self._device.join()

    def close(self) -> None:
        """Wait for the operator no more."""
        self._closed = True
        self._refusals.close()
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
            self._terminal.say(f"server {self._device.server:x} did not answer in time", "yellow")
        else:
            why = f": {self._device.refusal}" if self._device.refusal else ""
            hint = "; see --join" if self._join == "simple" and status is srup.Status.JOIN_REFUSED else ""
            self._stay_out(f"server {self._device.server:x} refused the join: {status.name}{why}{hint}")

    def _left(self, server: int) -> None:
        self._stay_out(f"server {server:x} has ended our membership")

    def _updated(self, digest: str, status: srup.Status) -> None:
        if status in (srup.Status.UPDATE_SUCCESS, srup.Status.ACTIVATE_SUCCESS):  # why it failed comes separately
            self._terminal.say(f"firmware {digest}: {status.name}")
            self.step(digest, status, "")

    def _update_failed(self, digest: str, status: srup.Status, why: str) -> None:
        self._terminal.say(f"firmware {digest}: {status.name}: {why}", "yellow")
        self.step(digest, status, why)

    def _stay_out(self, why: str) -> None:
        self._in = False
        self._terminal.say(why, "yellow")
        if not self._terminal.asks:
            self._terminal.end(1)

    def _deregistered(self, server: int) -> None:
        self._terminal.say(f"deregistered at server {server:x}: both keys are deleted")
        self._terminal.end()

    def _act(self, action_id: int, server: int) -> srup.Status:
        self._terminal.say(f"{server:x} ordered action {action_id}, which this device does not know")
        return srup.Status.ACTION_UNKNOWN


def _asked(reading: _Reading, columns: int, rows: int) -> RenderableType:
    """Return what is asked of an observer."""
    return Group(
        Text(f"{reading.device:x} wants to join: what does it show?", "bold cyan"),
        Text("Type the words, the numbers or the text of the QR code; press Enter alone if it cannot be read."),
        Text(reading.mistake, "yellow"),
    )
