"""A fleet of real devices against real servers through a real Mosquitto: what is served, and what is lost."""

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..extras import require
from ..keys import PrivateKey
from ..transport import LocalBroker
from .ledger import Kind, Reading, Verdict, judge
from .processes import Consumption, Process, allow_connections, consumption
from .servers import SERVERS, Running
from .site import FIRST_DEVICE, Site
from .witness import Witness, find_witness

__all__ = ["FleetBench", "Load", "Report", "Usage"]

_START: Final = 60.0  # seconds until the servers are connected
_CALM: Final = 1.0  # seconds without another connection until workers have shared everything
_HEAD_START: Final = (
    0.3  # seconds from the order to send until the first value is due, so that all fleets begin together
)
_LOOK: Final = 0.1  # seconds between two looks at what has been done
_FIRMWARE_SIZE: Final = 4096
_FLASH_SIZE: Final = 16384  # bytes of memory for each device, firmware and folders
_MEMORY: Final = Path("/dev/shm")  # noqa: S108

Progress = Callable[[str, int, int], None]
"""Told what is going on, how many are done, and of how many."""


@dataclass(frozen=True)
class Load:
    """What is asked of the servers. ValueError names the number that makes no sense.

    ``rate`` values per second are offered for ``seconds`` by random ones of ``devices`` devices, at random times
    (``poisson``) or equal distances. The devices share ``pool`` keys of a ``scheme``, and live in ``processes``
    processes. ``presigned`` values are signed before the load begins. Whatever nothing comes of for ``patience``
    seconds is given up. ``drop_every`` is the site's.
    """

    devices: int = 1000
    rate: float = 500.0
    seconds: float = 10.0
    poisson: bool = True
    scheme: str = "rsa2048"
    pool: int = 64
    processes: int = 1
    presigned: bool = False
    seed: int = 2026
    patience: float = 15.0
    drop_every: int = 0

    def __post_init__(self) -> None:
        for name in ("devices", "rate", "seconds", "pool", "processes", "patience"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be more than 0 and finite, not {getattr(self, name)}")
        if self.processes > self.devices:
            raise ValueError(f"{self.devices} devices do not fill {self.processes} processes")


class Usage(NamedTuple):
    """What a part of the installation took: CPU in percent of one core while the load lasted, and in seconds in all;
    the most memory of its processes, in MiB."""

    part: str
    processes: int
    cpu_percent: float
    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Report:
    """What came of one load on one installation."""

    load: Load
    server: str
    workers: int
    broker: str
    joined: int
    join_seconds: float
    sent: int
    behind_ms: float
    """How far the fleet was behind its own plan at the worst; delays count from the plan, and contain it."""
    verdict: Verdict
    carried: int
    """The values that mosquitto_sub has counted."""
    ordered: int
    activated: int
    activated_twice: int
    update_seconds: float
    parts: tuple[Usage, ...]

    @property
    def offered(self) -> float:
        """Values per second that the fleet has sent."""
        return self.sent / self.load.seconds

    @property
    def served(self) -> float:
        """Values per second that the servers' application was handed while the load lasted."""
        return self.verdict.in_time / self.load.seconds

    @property
    def complaints(self) -> list[str]:
        """What did not happen as it should."""
        found, devices = self.verdict, self.load.devices
        complaints = {
            f"{devices - self.joined} devices have not joined": devices - self.joined,
            f"{found.lost} values are lost": found.lost,
            f"{found.executed_twice} values were executed twice": found.executed_twice,
            f"{found.reordered} values came out of order": found.reordered,
            f"mosquitto_sub counted {self.carried} values, and {self.sent} were sent": self.carried - self.sent,
            f"{devices - self.activated} devices have not activated the update": devices - self.activated,
            f"{self.activated_twice} updates were activated twice": self.activated_twice,
        }
        return [complaint for complaint, count in complaints.items() if count]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        load, found = self.load, self.verdict
        return {
            "devices": load.devices,
            "server": self.server,
            "workers": self.workers,
            "scheme": load.scheme,
            "keys": f"a published pool of {load.pool}, shared by the devices",
            "signing": "before the load" if load.presigned else "live",
            "arrivals": "poisson" if load.poisson else "fixed",
            "seed": load.seed,
            "seconds": load.seconds,
            "rate": load.rate,
            "offered": round(self.offered, 1),
            "served": round(self.served, 1),
            "sent": self.sent,
            "executed": found.executed,
            "carried": self.carried,
            "lost": found.lost,
            "executed_twice": found.executed_twice,
            "reordered": found.reordered,
            "p50_ms": found.p50_ms,
            "p95_ms": found.p95_ms,
            "p99_ms": found.p99_ms,
            "max_ms": found.max_ms,
            "behind_ms": round(self.behind_ms, 3),
            "joined": self.joined,
            "join_seconds": round(self.join_seconds, 2),
            "ordered": self.ordered,
            "activated": self.activated,
            "activated_twice": self.activated_twice,
            "update_seconds": round(self.update_seconds, 2),
            "broker": self.broker,
            "cores": os.cpu_count(),
            "parts": [part._asdict() for part in self.parts],
            "passed": not self.complaints,
            "complaints": self.complaints,
        }


class FleetBench:
    """Runs one load on installations with different servers. A context manager: what it has made goes with it.

    The keys are made once. ``server`` is one of SERVERS. BenchError or ModuleNotFoundError says what is missing.
    """

    def __init__(self, load: Load, server: str = "plain", progress: Progress = lambda what, done, total: None) -> None:
        if server not in SERVERS:
            raise ValueError(f"there is no server {server!a}; there are {', '.join(SERVERS)}")
        require("paho", "urllib3")
        self._servers = SERVERS[server]
        find_witness()
        LocalBroker("mosquitto")
        allow_connections(load.devices)
        self._load = load
        self._server = server
        self._progress = progress
        self._stack = ExitStack()

    def __enter__(self) -> "FleetBench":
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="srup-bench-")))
            flash = tempfile.TemporaryDirectory(prefix="srup-flash-", dir=_flash(self._load.devices))
            self._flash = Path(stack.enter_context(flash))
            self._host = stack.enter_context(_host(self._folder / "www"))
            self._make_keys()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, workers: int) -> None:
        """ValueError unless the server can have so many workers; BenchError or ModuleNotFoundError: what is missing."""
        self._servers.check(workers)

    def run(self, workers: int = 1) -> Report:
        """Build an installation, put the load on it, and take it down."""
        load = self._load
        site = Site(self._folder, self._flash, "", *self._host, load.pool, load.drop_every)
        for folder in (site.ledgers, site.state, site.flash):
            shutil.rmtree(folder)
            folder.mkdir()
        with ExitStack() as stack:
            crew = stack.enter_context(ThreadPoolExecutor(load.processes))  # left last: processes that ended free it
            broker = stack.enter_context(LocalBroker("mosquitto"))
            path = replace(site, broker=broker.url).save()
            witness = stack.enter_context(Witness(broker.url, self._folder))
            servers = stack.enter_context(self._servers.run(path, workers))
            fleets = [
                stack.enter_context(Process(f"fleet {number}", command, self._folder))
                for number, command in enumerate(_fleets(path, load), 1)
            ]
            parts = {
                "mosquitto": [broker.pid or 0],
                **{part: [process.pid for process in processes] for part, processes in servers.parts.items()},
                "fleet": [fleet.pid for fleet in fleets],
                "mosquitto_sub": [witness.pid],
            }
            stage = _Stage(load, crew, servers, fleets, witness, Reading(site.ledgers), self._progress)
            stage.build(workers)
            join_seconds, joined = stage.join()
            if load.presigned:
                stage.sign()
            before = _consumed(parts)
            stage.offer()
            during = _consumed(parts)
            verdict, sent = stage.settle()
            update_seconds, updates = stage.update()
            after = _consumed(parts)
            return Report(
                load=load,
                server=self._server,
                workers=workers,
                broker=broker.description.partition(" (")[0],
                joined=sum(answer["joined"] for answer in joined),
                join_seconds=join_seconds,
                sent=sent,
                behind_ms=stage.behind_ms,
                verdict=verdict,
                carried=witness.values,
                ordered=sum(answer["ordered"] for answer in updates),
                activated=sum(answer["activated"] for answer in updates),
                activated_twice=sum(answer["activated_twice"] for answer in updates),
                update_seconds=update_seconds,
                parts=tuple(
                    Usage(
                        part,
                        after[part].processes,
                        round((during[part].cpu - before[part].cpu) / load.seconds * 100, 1),
                        round(after[part].cpu, 2),
                        round(after[part].memory / 2**20, 1),
                    )
                    for part in after
                ),
            )

    def _make_keys(self) -> None:
        """Make the pool and the server's key, and register the pool's keys for all devices."""
        load = self._load
        site = Site(self._folder, self._flash, "", "", "", load.pool)
        for folder in (site.ledgers, site.state, site.devices, site.device_key(0).parent):
            folder.mkdir()
        server = PrivateKey.generate(load.scheme)
        server.save(site.server_key)
        server.public_key.save(f"{site.server_key}.pub")
        public = []
        for number in range(load.pool):
            key = PrivateKey.generate(load.scheme)
            key.save(site.device_key(number))
            public.append(key.public_key.to_pem())
            self._progress(f"making {load.scheme} keys", number + 1, load.pool)
        for device in range(FIRST_DEVICE, FIRST_DEVICE + load.devices):
            (site.devices / f"{device:x}.pem").write_bytes(public[device % load.pool])


class _Stage:
    """The phases of a load, on an installation that runs."""

    def __init__(
        self,
        load: Load,
        crew: ThreadPoolExecutor,
        servers: Running,
        fleets: Sequence[Process],
        witness: Witness,
        reading: Reading,
        progress: Progress,
    ) -> None:
        self._load = load
        self._crew = crew
        self._servers = servers
        self._fleets = fleets
        self._witness = witness
        self._reading = reading
        self._progress = progress
        self._sent: dict[int, int] = {}
        self._began = 0
        self.behind_ms = 0.0

    def build(self, workers: int) -> None:
        """Have the devices made and the servers connected."""
        self._all("build", "making devices", [{}] * len(self._fleets))
        deadline = time.monotonic() + _START
        reading, since, before = self._reading, time.monotonic(), -1
        while True:
            connections = reading.update().counts[Kind.READY]
            if connections > before:
                before, since = connections, time.monotonic()
            there = connections >= self._servers.connections and len(reading.connected) >= workers
            if there and time.monotonic() - since > _CALM:
                return
            if time.monotonic() > deadline:
                raise self._servers.parts["servers"][0].failure(f"is not connected after {_START:.0f} seconds")
            self._wait()

    def join(self) -> tuple[float, list[dict[str, Any]]]:
        """Have all devices join; how long it took, and the fleets' answers."""
        began = time.monotonic()
        answers = self._all("join", "joining", [{}] * len(self._fleets))
        return time.monotonic() - began, answers

    def sign(self) -> None:
        """Have the values signed that will be offered."""
        self._all("sign", "signing", self._plans(), round(self._load.rate * self._load.seconds))

    def offer(self) -> None:
        """Have them offered."""
        self._began = time.monotonic_ns() + int(_HEAD_START * 1e9)
        orders = [plan | {"start": self._began} for plan in self._plans()]
        answers = self._all("offer", "sending", orders, round(self._load.rate * self._load.seconds))
        self._sent = {int(device): count for answer in answers for device, count in answer["sent"].items()}
        self.behind_ms = max(answer["behind_ms"] for answer in answers)

    def settle(self) -> tuple[Verdict, int]:
        """Wait for what is still under way; what became of the values, and how many were sent."""
        total = sum(self._sent.values())
        best, since = -1, time.monotonic()
        while min(executed := len(self._reading.update().values), self._witness.values) < total:
            if (seen := executed + self._witness.values) > best:
                best, since = seen, time.monotonic()
            elif time.monotonic() - since > self._load.patience:
                break
            self._progress("serving", executed, total)
            self._wait()
        ended = self._began + int(self._load.seconds * 1e9)
        return judge(self._reading.values, self._sent, self._began, ended), total

    def update(self) -> tuple[float, list[dict[str, Any]]]:
        """Have all devices updated; how long it took, and the fleets' answers."""
        began = time.monotonic()
        answers = self._all("update", "updating", [{}] * len(self._fleets))
        return time.monotonic() - began, answers

    def _plans(self) -> list[dict[str, Any]]:
        """Each fleet's part of the load."""
        load = self._load
        return [
            {
                "rate": load.rate / load.processes,
                "seconds": load.seconds,
                "poisson": load.poisson,
                "seed": load.seed + number,
            }
            for number in range(load.processes)
        ]

    def _all(
        self, what: str, phase: str, orders: Sequence[dict[str, Any]], total: int | None = None
    ) -> list[dict[str, Any]]:
        """Have every fleet do something; their answers."""
        done = [0] * len(orders)

        def ask(number: int) -> dict[str, Any]:
            def tell(_phase: str, count: int) -> None:
                done[number] = count

            return self._fleets[number].ask(tell, do=what, **orders[number])

        asked: list[Future[dict[str, Any]]] = [self._crew.submit(ask, number) for number in range(len(orders))]
        whole = self._load.devices if total is None else total
        while not all(future.done() for future in asked):
            self._progress(phase, sum(done), whole)
            self._wait()
        answers = [future.result() for future in asked]
        self._progress(phase, whole, whole)
        return answers

    def _wait(self) -> None:
        """Let time pass; BenchError if a part of the installation has ended meanwhile."""
        time.sleep(_LOOK)
        for process in (*chain.from_iterable(self._servers.parts.values()), *self._fleets, self._witness):
            process.check()


def _flash(devices: int) -> Path | None:
    """Where so many devices may keep firmware: in memory, for real ones do not wait for each other's disk."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * devices * _FLASH_SIZE
    return _MEMORY if roomy and os.access(_MEMORY, os.W_OK) else None


def _fleets(site: Path, load: Load) -> Iterator[list[str]]:
    """The command lines of the processes that the devices live in, each with its share."""
    first = FIRST_DEVICE
    for number in range(load.processes):
        count = load.devices // load.processes + (number < load.devices % load.processes)
        yield [sys.executable, "-m", "srup.bench", "fleet", str(site), str(first), str(count), str(load.patience)]
        first += count


def _consumed(parts: dict[str, list[int]]) -> dict[str, Consumption]:
    own = {"this program": consumption([os.getpid()], descendants=False)}
    return {part: consumption(roots) for part, roots in parts.items()} | own


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Host(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


@contextmanager
def _host(folder: Path) -> Iterator[tuple[str, str]]:
    """Serve a firmware file on loopback; its url and its digest."""
    folder.mkdir()
    image = os.urandom(_FIRMWARE_SIZE)
    (folder / "firmware.bin").write_bytes(image)
    with _Host(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, name="firmware-host", daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/firmware.bin", hashlib.sha256(image).hexdigest()
        finally:
            server.shutdown()
