"""The server command: who is let in is decided here, by a person who compares what a device shows."""

import os
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

import srup

from ..transport import Transport
from . import logs
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
    monitors,
    policy,
    tell_refusal,
    transport_of,
)
from .store import is_redis
from .terminal import Scene, Terminal, fail, tell
from .workers import Supervisor, application, end_with_supervisor

if TYPE_CHECKING:
    from ..monitor import Monitor

__all__ = ["server"]


def server(
    identity: Identity,
    key: KeyFile,
    devices: Annotated[Path, typer.Option(help="A folder with the devices' public keys, <identity in hex>.pem.")],
    broker: Broker,
    admission: Annotated[
        Literal["simple", "human", "observed"], typer.Option(help="What a device must go through to get in.")
    ] = "simple",
    observer: Annotated[
        list[int] | None,
        typer.Option(parser=identity, metavar="HEX", help="A device whose word counts; may be given several times."),
    ] = None,
    join_timeout: JoinTimeout = None,
    store: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Where state survives: an SQLite database, or redis://...")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="So many worker processes share the devices; needs Redis.")
    ] = None,
    lease: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="How long a worker's lease lasts.")] = 15.0,
    app: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Called with the server (of each partition): adds its handlers."),
    ] = None,
    audit_days: AuditDays = 30.0,
    adopt: Annotated[bool, typer.Option("--adopt", help="Take over a store that may be an old copy.")] = False,
    witness: Annotated[
        Path | None,
        typer.Option(help="A folder of this machine's own, not in its backups, by which an old copy of Redis is told."),
    ] = None,
    password: HasPassword = False,
    broker_user: BrokerUser = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    metrics: Metrics = None,
    log_format: LogFormat = None,
) -> None:
    """Run a server until Ctrl-C; where a person has to compare the value of a join, it asks here."""
    logged = log_as(log_format)
    with explained():
        setup = application(app) if app is not None else None
        keys = srup.KeyRing.load(devices)
        options: dict[str, Any] = {"devices": keys, "policy": policy(join_timeout), "admission": admission}
        options["audit_kept"] = audit_kept(audit_days)
        link = partial(transport_of, broker, identity, broker_user, ca, cert, cert_key)
        if is_redis(store):
            if admission != "simple" and setup is None:
                fail("workers have no terminal to compare values in: --app must moderate the joins")
            private, say = key_of(key, password), logs.say if logged else tell
            if (number := os.environ.get(_WORKER)) is None:
                if metrics is not None:
                    monitors().Address.parse(metrics).after((workers or 1) - 1)
                raise typer.Exit(_supervise(identity, store, workers or 1, say))
            ours = metrics and str(monitors().Address.parse(metrics).after(int(number)))
            raise typer.Exit(_share(identity, private, link, store, lease, adopt, witness, setup, options, ours, say))
        if workers is not None:
            fail("workers share their state in a Redis: --store redis://host:port/db")
        if witness is not None:
            fail("a database has its witness beside it: --witness is for --store redis://host:port/db")
        running = srup.Server(
            identity,
            key_of(key, password),
            broker=link(),
            observers=observer or (),
            store=None if store is None else srup.SqliteStore(store, adopt=adopt),
            **options,
        )
        monitor = monitoring(metrics, running)
    with ExitStack() as stack:
        terminal = stack.enter_context(Terminal(logged))
        moderation = Moderation(running, terminal)
        if setup is not None:
            with explained():
                setup(running)  # what it handles, the terminal does not tell
        terminal.say(f"server {identity:x}: {len(keys)} {'device' if len(keys) == 1 else 'devices'} in {devices}")
        if not terminal.asks:
            terminal.say("this is no terminal: nobody can compare values here, and human-moderated joins are refused")
        if monitor is not None:
            stack.enter_context(monitor)
            terminal.say(f"metrics at {monitor.url}/metrics")
        with explained():
            stack.enter_context(running)
        terminal.run(moderation.look)
    raise typer.Exit(terminal.status)


_WORKER: Final = "SRUP_WORKER"
"""The environment variable by which a worker process knows that it is one, and which, from 0."""

_RUN: Final = "SRUP_RUN"
"""The environment variable that names a run of the command to its workers."""


def _supervise(identity: int, store: str | None, workers: int, say: Callable[[str, str], object]) -> int:
    """Run workers in processes of their own, which are this command again."""
    srup.Worker.check(store, identity)
    os.environ[_RUN] = secrets.token_hex(8)
    return Supervisor([sys.executable, "-m", "srup", *sys.argv[1:]], workers, say, _WORKER).run()


def _share(
    identity: int,
    key: srup.PrivateKey,
    link: Callable[..., Transport],
    store: str | None,
    lease: float,
    adopt: bool,
    witness: Path | None,
    setup: Callable[[Any], object] | None,
    options: dict[str, Any],
    metrics: str | None,
    say: Callable[[str], object],
) -> int:
    """Serve a share of the devices until SIGTERM."""

    def hear(server: srup.Server) -> None:
        if monitor is not None:
            monitor.collector.watch(server)
        if setup is not None:
            setup(server)

    worker = srup.Worker(
        identity,
        key,
        broker=lambda client_id, reactor: link(client_id=client_id, reactor=reactor),
        store=store,
        setup=hear,
        ttl=lease,
        adopt=os.environ[_RUN] if adopt else False,  # who takes over adopts nothing again
        witness=witness,
        **options,
    )
    monitor = None if metrics is None else _worker_monitor(metrics, worker)
    end_with_supervisor()
    with nullcontext() if monitor is None else monitor:
        if monitor is not None:
            say(f"metrics at {monitor.url}/metrics")
        worker.run()
    return 0


def _worker_monitor(address: str, worker: srup.Worker) -> "Monitor":
    """Return what shows the servers of a worker, added up, and its leases."""
    monitor: Monitor = monitors().Monitor(
        address,
        collector=monitors().Collector(leases=lambda: {one.partition: one.remaining() for one in worker.leases}),
        healthy={"worker": lambda: None if worker.alive else "one of its threads has ended"},
        ready={"leases": lambda: "; ".join(worker.trouble.copy().values()) or None},
    )
    return monitor


_ANSWERS: Final[dict[str, tuple[str, Callable[[srup.PendingJoin], None]]]] = {
    "a": ("accept", lambda join: join.accept()),
    "r": ("refuse", lambda join: join.refuse()),
    "f": ("fail (could not be compared)", lambda join: join.fail()),
}
_PROMPT: Final = ", ".join(f"{letter} {what}" for letter, (what, _) in _ANSWERS.items()) + ", then Enter:"


class Moderation:
    """What the operator of a server sees: news, and the joins that wait, one at a time and the oldest first."""

    def __init__(self, server: srup.Server, terminal: Terminal) -> None:
        self._server = server
        self._terminal = terminal
        self._shown: tuple[srup.PendingJoin, ValueBoard] | None = None
        self._answered: srup.PendingJoin | None = None
        say = terminal.say
        server.on_link(lambda connected, why: say(why if connected else f"not connected: {why}", "dim"))
        server.on_moderation(self._moderate)
        server.on_joined(self._joined)
        server.on_not_joined(lambda device, status: say(f"{device:x} is not let in: {status.name}", "yellow"))
        server.on_left(lambda device: say(f"{device:x} has left"))
        server.on_deregistered(lambda device: say(f"{device:x} has left for good; its key is dropped"))
        server.on_data()(lambda device, data_id, value: say(f"{device:x} sends {data_id}: {value!r}"))
        server.on_refused(partial(tell_refusal, terminal))

    def look(self) -> Scene | None:
        """Return the join that the operator is to decide about."""
        waiting = [join for join in self._server.pending_joins if join is not self._answered]
        if self._shown is not None and self._shown[0] not in waiting:
            self._gone(self._shown[0])
            self._shown = None
        if not waiting or not self._terminal.asks:
            return None
        if self._shown is None:
            self._shown = waiting[0], ValueBoard(waiting[0].value)
        join, board = self._shown
        left = max(0, round(join.expires - time.time()))
        more = f"; {len(waiting) - 1} more behind it" if len(waiting) > 1 else ""
        heading = f"Is this what {join.device:x} shows? {left // 60}:{left % 60:02} left{more}"
        return Scene(join, partial(board.body, heading), _PROMPT, partial(self._answer, join))

    def _answer(self, join: srup.PendingJoin, line: str) -> str | None:
        if line.lower() not in _ANSWERS:
            return "type a, r or f"
        try:
            _ANSWERS[line.lower()][1](join)
        except srup.PolicyError as error:
            return str(error)  # if it has just ended, that is told next
        self._answered = join
        return None

    def _gone(self, join: srup.PendingJoin) -> None:
        if join is self._answered:
            return
        late = time.time() >= join.expires
        self._terminal.say(
            f"the join of {join.device:x} is over: {'nobody answered in time' if late else 'it was withdrawn'}",
            "yellow",
        )

    def _moderate(self, join: srup.PendingJoin) -> None:
        if self._terminal.asks:
            self._terminal.wake()
        else:
            self._terminal.say(f"{join.device:x} wants to be compared; refused, this is no terminal", "yellow")
            join.refuse()

    def _joined(self, device: int) -> None:
        self._terminal.say(f"{device:x} has joined", "green")

        def identified(answer: "Future[str]") -> None:
            if answer.exception() is None and answer.result():
                self._terminal.say(f"{device:x} says it is: {answer.result()}")

        self._server.identify(device).add_done_callback(identified)
