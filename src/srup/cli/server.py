"""The server command: who is let in is decided here, by a person who compares what a device shows."""

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from weakref import WeakSet

import typer

import srup

from ..errors import SrupError
from ..extras import require
from ..fleet import CampaignRunner
from ..printable import printable
from . import logs
from .apps import App
from .enrolled import Enrolled, OurIdentity, Party, party, required
from .joins import ANSWERS, ASKED, VALUE_FORMS, ValueBoard, time_left
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
from .store import is_redis
from .systemd import Notifier, works
from .terminal import Scene, Terminal, explained, fail, tell
from .workers import Supervisor, application, end_with_supervisor

if TYPE_CHECKING:
    from ..monitor import FleetCollector, Monitor
    from ..transport import MqttTransport, Reactor

__all__ = ["app", "server"]

app = App()


@app.command()
def server(
    identity: OurIdentity = None,
    key: KeyFile = None,
    devices: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the devices' public keys, <identity in hex>.pem or .pem.pub; not needed with --enrolled."
        ),
    ] = None,
    broker: Broker = None,
    enrolled: Enrolled = None,
    admission: Annotated[
        Literal["simple", "human", "observed"], typer.Option(help="How devices are admitted.")
    ] = "simple",
    observer: Annotated[
        list[int] | None,
        typer.Option(parser=identity, metavar="HEX", help="A device trusted to observe joins; repeatable."),
    ] = None,
    moderation: Annotated[
        Literal["terminal", "orders"],
        typer.Option(help="Where people compare values: on this terminal, or elsewhere (srup join); needs --store."),
    ] = "terminal",
    join_timeout: JoinTimeout = None,
    store: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Where to keep state: an SQLite file, or redis://...")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Number of worker processes that share the devices; needs Redis."),
    ] = None,
    lease: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Duration of a worker's lease.")] = 15.0,
    app: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Function that registers handlers; called with the server, or with the server of each partition.",
        ),
    ] = None,
    audit_days: AuditDays = 30.0,
    audit_values: AuditValues = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Accept a store that may be an old copy.")] = False,
    witness: Annotated[
        Path | None,
        typer.Option(help="Local folder, not backed up, used to detect a restored Redis."),
    ] = None,
    password: HasPassword = False,
    broker_user: BrokerUser = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    metrics: Metrics = None,
    log_format: LogFormat = None,
) -> None:
    """Run a server until Ctrl-C. Joins that a person must compare are shown here."""
    logged = log_as(log_format)
    with explained():
        if admission == "observed" and not observer:
            raise ValueError("--admission observed needs --observer HEX: a device trusted to observe joins")
        setup = application(app) if app is not None else None
        files: dict[str, Any] = {"password": password, "broker_user": broker_user}
        ours = party(enrolled, identity, key, broker, **files, ca=ca, cert=cert, cert_key=cert_key)
        service = ours.enrolment.key_service() if ours.enrolment is not None and devices is None else None
        skipped = None if _WORKER in os.environ else partial(_tell_skipped, logs.say if logged else tell)
        keys = srup.KeyRing.load(required(devices, "--devices"), skipped) if service is None else srup.KeyRing()
        options: dict[str, Any] = {"devices": keys, "policy": policy(join_timeout), "admission": admission}
        options |= {"audit_kept": audit_kept(audit_days), "audit_values": audit_values}
        if moderation == "orders":
            if store is None:
                raise ValueError("--moderation orders needs --store: there joins wait, and decisions are posted")
            options["moderation"] = "orders"
        if is_redis(store):
            if admission != "simple" and setup is None and moderation == "terminal":
                fail("workers have no terminal for comparing values: --moderation orders, or --app must do it")
            if service is not None:
                fail("--workers needs --devices; further devices are registered with srup order register")
            say = logs.say if logged else tell
            if (number := os.environ.get(_WORKER)) is None:
                if metrics is not None:
                    _metrics_address(metrics, (workers or 1) - 1)
                folder = ListedKeys(required(devices, "--devices"), say)
                raise typer.Exit(_supervise(ours.identity, store, workers or 1, say, folder))
            at = metrics and _metrics_address(metrics, int(number))
            folder = ListedKeys(required(devices, "--devices"), say)
            raise typer.Exit(_share(ours, store, lease, adopt, witness, setup, options, at, say, folder))
        if workers is not None:
            fail("--workers needs a shared store: --store redis://host:port/db")
        if witness is not None:
            fail("--witness is only for --store redis://host:port/db; an SQLite store has its witness beside it")
        link = ours.link()
        running = srup.Server(
            ours.identity,
            ours.key,
            broker=link,
            key_service=service,
            observers=observer or (),
            store=None if store is None else srup.SqliteStore(store, adopt=adopt),
            **options,
        )
        changes = None if devices is None else running.reload_keys(keys)  # before it starts
        monitor = monitoring(metrics, running)

    def reload() -> None:
        if devices is not None:
            listed.reload(running)
        reload_files([link], terminal.say)

    terminal = Terminal(logged, reload)
    running.on_fault(lambda fault: terminal.end(1))
    listed = ListedKeys(devices or Path(), terminal.say)
    if terminal.asks and moderation == "terminal":
        require(*VALUE_FORMS)
    with ExitStack() as stack:
        stack.enter_context(terminal)
        panel = Panel(running, terminal, moderates=moderation == "terminal")
        stack.callback(panel.close)
        if setup is not None:
            with explained():
                setup(running)  # what it handles, the terminal does not tell
        known = f"{_devices(len(keys))} in {devices}"
        terminal.say(
            f"server {ours.identity:x}: {known if service is None else f'devices registered at {service.url}'}"
        )
        if moderation == "orders":
            terminal.say("joins that people compare wait for a decision from elsewhere: srup join")
        elif not terminal.asks:
            terminal.say("not a terminal: nobody can compare values here, so human-moderated joins are refused")
        if monitor is not None:
            stack.enter_context(monitor)
            terminal.say(f"metrics at {monitor.url}/metrics")
        with explained():
            stack.enter_context(running)
        if store is not None:
            fleet = stack.enter_context(srup.Fleet(store, ours.identity))
            stack.enter_context(CampaignRunner(fleet))
            if monitor is not None:
                monitor.show(stack.enter_context(_fleet_metrics(fleet)))
        if changes is not None:
            changes.add_done_callback(lambda done: listed.tell(done.result()))
        stack.enter_context(Notifier(lambda: works(running.vitals())))
        terminal.run(panel.look)
    raise typer.Exit(terminal.status)


def _tell_skipped(say: Callable[[str, str], object], path: Path, why: str) -> None:
    """Tell the operator of a file in the folder of keys that is none."""
    say(f"{path} is skipped: {why}", "yellow")


class ListedKeys:
    """The keys of devices that a folder lists: what is changed there takes effect at the start and at SIGHUP."""

    def __init__(self, folder: Path, say: Callable[[str, str], object]) -> None:
        self._folder = folder
        self._say = say

    def load(self, skipped: Callable[[Path, str], object] = lambda path, why: None) -> srup.KeyRing | None:
        """Read the folder again; None if anything is wrong there, which is told: then all stays as it is."""
        try:
            return srup.KeyRing.load(self._folder, skipped)
        except SrupError as error:
            self._say(f"the keys are not reloaded: {error}", "yellow")
            return None

    def read(self) -> srup.KeyRing | None:
        """Read the folder again as :meth:`load` does, and tell what is in it."""
        keys = self.load(partial(_tell_skipped, self._say))
        if keys is not None:
            self._say(f"{_devices(len(keys))} in {self._folder}", "")
        return keys

    def reload(self, server: srup.Server) -> None:
        """Let what the folder lists now take effect, and tell what has changed when it has."""
        if (keys := self.read()) is not None:
            server.reload_keys(keys).add_done_callback(lambda done: self.tell(done.result()))

    def tell(self, changes: "srup.agent.KeyChanges") -> None:
        """Say what has changed."""
        where = f"{self._folder}/"
        for device in changes.added:
            self._say(f"{device:x} may join: {where} has a key for it now", "")
        for device in changes.replaced:
            self._say(f"{device:x} has another key in {where} and is treated as a new device", "yellow")
        for device in changes.removed:
            self._say(f"{device:x} is no longer a member: its key was removed from {where}", "yellow")
        for device, why in changes.refused.items():
            self._say(f"{device:x} may not join: {why}", "yellow")


def _devices(number: int) -> str:
    return f"{number} {'device' if number == 1 else 'devices'}"


_WORKER: Final = "SRUP_WORKER"
"""The environment variable by which a worker process knows that it is one, and which, from 0."""

_RUN: Final = "SRUP_RUN"
"""The environment variable that names a run of the command to its workers."""


def _supervise(
    identity: int, store: str | None, workers: int, say: Callable[[str, str], object], folder: ListedKeys
) -> int:
    """Run workers in processes of their own, which are this command again."""
    srup.Worker.check(store, identity)
    os.environ[_RUN] = secrets.token_hex(8)

    def reload() -> bool:
        return folder.read() is not None

    with Notifier(lambda: True):
        return Supervisor([sys.executable, "-m", "srup", *sys.argv[1:]], workers, say, _WORKER, reload).run()


def _share(
    ours: Party,
    store: str | None,
    lease: float,
    adopt: bool,
    witness: Path | None,
    setup: Callable[[Any], object] | None,
    options: dict[str, Any],
    metrics: str | None,
    say: Callable[[str, str], object],
    folder: ListedKeys,
) -> int:
    """Serve a share of the devices until SIGTERM; at SIGHUP, which the supervisor passes on, read the keys again."""

    def hear(server: srup.Server) -> None:
        if monitor is not None:
            monitor.collector.watch(server)
        if setup is not None:
            setup(server)

    links: WeakSet[MqttTransport] = WeakSet()
    adding = threading.Lock()

    def connect(_client_id: str, reactor: "Reactor") -> "MqttTransport":
        link = ours.link(reactor=reactor)
        with adding:  # on a thread of the worker's, while the main thread reloads
            links.add(link)
        return link

    worker = srup.Worker(
        ours.identity,
        ours.key,
        broker=connect,
        store=store,
        setup=hear,
        ttl=lease,
        adopt=os.environ[_RUN] if adopt else False,  # who takes over adopts nothing again
        witness=witness,
        **options,
    )
    monitor = None if metrics is None else _worker_monitor(metrics, worker)
    worker.reload_keys(options["devices"], folder.tell)

    def reload(_signal: int, _frame: object) -> None:
        if (keys := folder.load()) is not None:
            worker.reload_keys(keys, folder.tell)
        with adding:
            present = list(links)
        reload_files(present, say)

    signal.signal(signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the supervisor has let it wait until now
    end_with_supervisor()
    with nullcontext() if monitor is None else monitor:
        if monitor is not None:
            say(f"metrics at {monitor.url}/metrics", "")
        with ExitStack() as stack:
            fleet = stack.enter_context(srup.Fleet(store, ours.identity, lease=lease))
            stack.enter_context(CampaignRunner(fleet))
            if monitor is not None and os.environ[_WORKER] == "0":  # once for all workers
                monitor.show(stack.enter_context(_fleet_metrics(fleet)))
            worker.run()
    return 0


def _fleet_metrics(fleet: srup.Fleet) -> "FleetCollector":
    from ..monitor import FleetCollector

    return FleetCollector(fleet)


def _metrics_address(first: str, number: int) -> str:
    """Return where worker ``number`` shows its metrics, if worker 0 does at ``first``."""
    from ..monitor import Address

    return str(Address.parse(first).after(number))


def _worker_monitor(address: str, worker: "srup.Worker") -> "Monitor":
    """Return what shows the servers of a worker, added up, and its leases."""
    from ..monitor import Collector, Monitor, trouble_by_reason

    return Monitor(
        address,
        collector=Collector(leases=lambda: {one.partition: one.remaining() for one in worker.leases}),
        healthy={"worker": lambda: None if worker.alive else "one of its threads has ended"},
        ready={"leases": lambda: trouble_by_reason(worker.trouble.copy())},
    )


class Panel:
    """What the operator of a server sees: news, and the joins that wait, one at a time and the oldest first."""

    def __init__(self, server: srup.Server, terminal: Terminal, *, moderates: bool) -> None:
        self._server = server
        self._terminal = terminal
        self._moderates = moderates
        self.close = (refusals := RefusalLines(terminal)).close
        self._shown: tuple[srup.PendingJoin, ValueBoard] | None = None
        self._answered: srup.PendingJoin | None = None
        say = terminal.say
        server.on_link(lambda connected, why: say(why if connected else f"not connected: {why}", "dim"))
        server.on_moderation(self._moderate)
        server.on_joined(self._joined)
        server.on_not_joined(self._not_joined)
        server.on_left(lambda device: say(f"{device:x} has left"))
        server.on_deregistered(lambda device: say(f"{device:x} has deregistered; its key is deleted"))
        server.on_data()(
            lambda device, data_id, value: say(
                f"{device:x} sends {printable(data_id, 100)}: {printable(repr(value), 300, words=True)}"
            )
        )
        server.on_refused(refusals)

    def look(self) -> Scene | None:
        """Return the join that the operator is to decide about."""
        waiting = [join for join in self._server.pending_joins if join is not self._answered]
        if self._shown is not None and self._shown[0] not in waiting:
            self._gone(self._shown[0])
            self._shown = None
        if not waiting or not self._terminal.asks or not self._moderates:
            return None
        if self._shown is None:
            self._shown = waiting[0], ValueBoard(waiting[0].value)
        join, board = self._shown
        more = f"; {len(waiting) - 1} more waiting" if len(waiting) > 1 else ""
        heading = f"Is this what {join.device:x} shows? {time_left(join.expires - time.time())}{more}"
        return Scene(join, partial(board.body, heading), ASKED, partial(self._answer, join))

    def _answer(self, join: srup.PendingJoin, line: str) -> str | None:
        decision = ANSWERS.get(line.lower())
        if decision is None:
            return "type a, r or f"
        try:
            join.decide(decision)
        except srup.PolicyError as error:
            return str(error)  # if it has just ended, that is told next
        self._answered = join
        return None

    def _gone(self, join: srup.PendingJoin) -> None:
        if join is self._answered:
            return
        late = time.time() >= join.expires
        self._terminal.say(
            f"the join of {join.device:x} ended: {'nobody decided in time' if late else 'it was withdrawn'}",
            "yellow",
        )

    def _moderate(self, join: srup.PendingJoin) -> None:
        if not self._moderates:
            self._terminal.say(f"{join.device:x} waits to be compared: srup join")
        elif self._terminal.asks:
            self._terminal.wake()
        else:
            self._terminal.say(
                f"{join.device:x} wants a compared join: refused, because this is not a terminal", "yellow"
            )
            join.refuse()

    def _not_joined(self, device: int, status: srup.Status) -> None:
        why = self._server.refusal_of(device)
        self._terminal.say(f"{device:x} was not admitted: {status.name}{f': {why}' if why else ''}", "yellow")

    def _joined(self, device: int) -> None:
        self._terminal.say(f"{device:x} has joined", "green")

        def identified(answer: "Future[str]") -> None:
            if answer.exception() is None and answer.result():
                self._terminal.say(f"{device:x} describes itself as: {answer.result()}")

        self._server.identify(device).add_done_callback(identified)
