"""An HTTP server that answers ``/metrics``, ``/healthz`` and ``/readyz``, and that its clients cannot hurt.

It is for a network that one trusts, and listens on loopback unless told otherwise: there is no TLS and no password.
Still, a client that is slow, silent or many costs only itself: connections are few, their time is limited, who has not
asked yet gives way to who comes, and the connection is closed after one answer.
"""

import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from socketserver import TCPServer
from typing import Any, Final, NamedTuple, Self

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector

from ..agent import Agent, Vitals
from ..errors import TransportError
from .health import STUCK_AFTER, Problem, liveness, merged, readiness
from .metrics import Collector

__all__ = ["Address", "Monitor"]

log: Final = logging.getLogger("srup.monitor")

Check = Callable[[], str | None]
"""Tells why a part is not as it should be, or None."""

MAX_CLIENTS: Final = 16
"""How many connections there are at most. When one more comes, the oldest that has not asked anything is closed."""

PATIENCE: Final = 10.0
"""How long a connection lasts at most, in seconds, whatever its client does."""

_LOOK: Final = 0.5  # seconds between two looks at who has been here for too long
_ADDRESS: Final = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):)?(?P<port>[0-9]{1,5})", re.ASCII)


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read HOST:PORT, [IPV6]:PORT or PORT, which means 127.0.0.1; ValueError for anything else."""
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise ValueError(f"{text!r} is no address to listen on: HOST:PORT, [IPV6]:PORT, or PORT on 127.0.0.1")
        return cls((found["host"] or "127.0.0.1").strip("[]"), int(found["port"]))

    def after(self, number: int) -> "Address":
        """Return the address of the ``number``-th of several processes; a free port stays one. ValueError if none."""
        if self.port and self.port + number > 65535:
            raise ValueError(f"there are no {number + 1} ports from {self.port} on")
        return Address(self.host, self.port + number if self.port else 0)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Monitor:
    """Shows agents on ``address`` ("HOST:PORT", or "PORT" on loopback; port 0 takes a free one), as a context manager.

    ``collector`` is what reads them, if they shall have labels; its ``watch`` adds further ones.
    ``/healthz`` answers 503 when an agent's thread has been in one turn for more than ``stuck_after`` seconds or has
    ended, ``/readyz`` when one is not connected, cannot store, or has not started, or when none runs. ``healthy`` and
    ``ready`` are asked as well, by name: each of them returns why its part is not so, or None. TransportError when the
    address cannot be listened on, ValueError when it is none; both at once, :meth:`start` only begins to answer.
    """

    def __init__(
        self,
        address: str,
        *agents: Agent,
        collector: Collector | None = None,
        stuck_after: float = STUCK_AFTER,
        healthy: Mapping[str, Check] | None = None,
        ready: Mapping[str, Check] | None = None,
    ) -> None:
        self.collector = collector or Collector()
        for agent in agents:
            self.collector.watch(agent)
        self._stuck_after = stuck_after
        self._healthy, self._ready = dict(healthy or {}), dict(ready or {})
        registry = self._registry = CollectorRegistry()
        registry.register(self.collector)
        ProcessCollector(registry=registry)
        handler = type("Handler", (_Handler,), {"monitor": self, "registry": registry})
        wanted = Address.parse(address)
        try:
            self._server = _Server(wanted, handler)
        except OSError as error:
            raise TransportError(f"cannot listen on {wanted}: {error.strerror or error}") from None
        self.address = Address(wanted.host, self._server.server_address[1])
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """``http://host:port``."""
        return f"http://{self.address}"

    def show(self, collector: Any) -> None:
        """Show the metrics of another collector, too."""
        self._registry.register(collector)

    def start(self) -> Self:
        """Begin to answer, on threads that end with the process."""
        if self._thread is None:
            serve = self._server.serve_forever
            self._thread = threading.Thread(target=serve, args=(_LOOK,), name="srup-monitor", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Answer no more, and free the address. A second call does nothing."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def health(self) -> dict[str, Any]:
        """Return what ``/healthz`` tells: ``ok``, and the ``problems`` by agent and part."""
        return _report(self._problems(lambda vitals: liveness(vitals, self._stuck_after)) + _asked(self._healthy))

    def readiness(self) -> dict[str, Any]:
        """Return what ``/readyz`` tells, in the same form."""
        nobody = all(agent.vitals().stopping for agent in self.collector.agents)
        none = [{"part": "agent", "why": "none runs here"}] if nobody else []
        return _report(none + self._problems(readiness) + _asked(self._ready))

    def _problems(self, judge: Callable[[Vitals], Sequence[Problem]]) -> list[dict[str, str]]:
        return [
            {"agent": f"{type(agent).__name__} {agent.identity:x}", **labels, **problem._asdict()}
            for agent, labels in self.collector.agents.items()
            for vitals in [agent.vitals()]
            if not vitals.stopping  # a partition that goes to another worker is no problem of this one
            for problem in judge(vitals)
        ]


def _asked(checks: Mapping[str, Check]) -> list[dict[str, str]]:
    return [{"part": part, "why": why} for part, check in checks.items() if (why := check()) is not None]


def _report(problems: list[dict[str, str]]) -> dict[str, Any]:
    return {"ok": not problems, "problems": merged(problems)}


class _Server(ThreadingHTTPServer):
    """Few clients at a time, and none for long."""

    daemon_threads = True
    allow_reuse_port = False  # who comes second is to be told
    block_on_close = False
    request_queue_size = 32

    def __init__(self, address: Address, handler: type[BaseHTTPRequestHandler]) -> None:
        self._clients: dict[socket.socket, float] = {}  # since when, the oldest first
        self._silent: set[socket.socket] = set()  # those that have not asked anything yet
        self._lock = threading.Lock()
        family, *_, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__(place[:2], handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Bind, and do not ask the name service who we are, as the base does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take a client, in place of the oldest silent one if there are too many; not if all of them are answered."""
        with self._lock:
            if len(self._clients) >= MAX_CLIENTS:
                oldest = next((client for client in self._clients if client in self._silent), None)
                if oldest is None:
                    return False
                self._forget(oldest)
                _hang_up(oldest)
            self._clients[request] = time.monotonic()
            self._silent.add(request)
        return True

    def asks(self, request: Any) -> None:
        """Note that a client has asked: it gives way to nobody."""
        with self._lock:
            self._silent.discard(request)

    def shutdown_request(self, request: Any) -> None:
        """Let a client go."""
        with self._lock:
            self._forget(request)
        super().shutdown_request(request)

    def _forget(self, client: socket.socket) -> None:
        self._clients.pop(client, None)
        self._silent.discard(client)

    def service_actions(self) -> None:
        """Let those go that have been here for too long: their threads find the connection closed."""
        now = time.monotonic()
        with self._lock:
            for client, since in self._clients.items():
                if now - since > PATIENCE:
                    _hang_up(client)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a client: its hanging up is ordinary."""
        ordinary = isinstance(sys.exception(), OSError)
        log.log(logging.DEBUG if ordinary else logging.ERROR, "a client of the monitor", exc_info=not ordinary)


def _hang_up(client: socket.socket) -> None:
    """End a connection: the thread that reads from it finds it closed."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


class _Handler(MetricsHandler):
    """Answers one request."""

    monitor: Monitor
    server: _Server
    timeout = PATIENCE
    server_version = "srup"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        self.server.asks(self.request)
        path = self.path.partition("?")[0]
        if path == "/metrics":
            super().do_GET()
        elif path == "/healthz":
            self._tell(self.monitor.health())
        elif path == "/readyz":
            self._tell(self.monitor.readiness())
        else:
            self.send_error(404, explain="There are /metrics, /healthz and /readyz.")

    do_HEAD = do_GET

    def end_headers(self) -> None:
        """End the headers; of an answer to HEAD there is no more."""
        super().end_headers()
        if self.command == "HEAD":
            self.wfile = BytesIO()

    def _tell(self, report: Mapping[str, Any]) -> None:
        body = json.dumps(report).encode() + b"\n"
        self.send_response(200 if report["ok"] else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)
