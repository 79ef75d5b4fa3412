"""What the tests of running devices and servers share: keys, simulated time, a fleet in memory, a firmware host."""

import hashlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from srup import Device, KeyRing, Policy, PrivateKey, Server
from srup.fetch import MemoryFetcher
from srup.simulation import Clock, Simulator
from srup.transport import MemoryNetwork, MemoryTransport

SERVER = 0x5E
URL = "https://firmware.example/image"
FIRMWARE = b"the firmware" * 100
DIGEST = hashlib.sha256(FIRMWARE).hexdigest()
WAIT = 30.0
"""How long a test waits for what must happen; it only takes that long when it fails."""


def key_of(identity: int, scheme: str = "ed25519") -> PrivateKey:
    """The key of an identity, the same in all tests of a run."""
    return _key_of(identity, scheme)


@cache
def _key_of(_: int, scheme: str) -> PrivateKey:
    return PrivateKey.generate(scheme)


def wait_until(condition: Callable[[], object], what: str = "the condition", patience: float = WAIT) -> None:
    """Poll where there is nothing to wait on: for what another process or thread does of itself."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.005)


class Fleet(Simulator):
    """A server and devices on one in-memory network, in simulated time, without threads.

    ``faults`` are those of MemoryNetwork; without any, one :meth:`settle` does all that there is to do.
    """

    def __init__(
        self,
        tmp_path,
        size=1,
        seed=0,
        *,
        scheme="ed25519",
        device_policy=None,
        server_policy=None,
        server_options=None,
        server_transport=MemoryTransport,
        **faults,
    ):
        clock = Clock()
        self.network = MemoryNetwork(seed, clock=clock, **faults)
        super().__init__({"": self.network}, clock)
        self.randbytes = random.Random(seed).randbytes
        self.tmp_path = tmp_path
        self.scheme = scheme
        self.device_policy = device_policy
        self.fetcher = MemoryFetcher({URL: FIRMWARE})
        self.ring = KeyRing()
        self.server = Server(
            SERVER,
            key_of(SERVER, scheme),
            devices=self.ring,
            broker=server_transport(self.network, "server"),
            policy=server_policy or Policy(),
            **{"clock": self.clock, "entropy": self.randbytes} | (server_options or {}),
        )
        self.watch(self.server)
        self.devices = {}
        for identity in range(0xD0, 0xD0 + size):
            self.add(identity)

    @property
    def device(self):
        return next(iter(self.devices.values()))

    @property
    def agents(self):
        return [self.server, *self.devices.values()]

    def add(self, identity, **options):
        """Make a device, not started; one that has this identity already is replaced."""
        if identity not in self.ring:
            self.ring.add(identity, key_of(identity, self.scheme).public_key)
        options = {
            "server": SERVER,
            "server_key": key_of(SERVER, self.scheme).public_key,
            "broker": MemoryTransport(self.network, f"device-{identity:x}"),
            "firmware": self.tmp_path / f"{identity:x}",
            "description": f"device {identity:x}",
            "policy": self.device_policy,
            "fetcher": self.fetcher,
            "clock": self.clock,
            "entropy": self.randbytes,
        } | options
        device = self.devices[identity] = Device(
            identity, options.pop("key", None) or key_of(identity, self.scheme), **options
        )
        self.watch(device)
        return device

    def start(self):
        for agent in self.agents:
            agent.start(threads=False)
        return self

    def perform(self, agent, outputs):
        """Let an agent send and tell what its session has returned, in a turn of its own."""
        agent.engine.post(lambda transaction: agent.engine.perform(transaction, outputs))
        agent.engine.turn()

    def all_joined(self):
        """Whether both ends say that all devices are members."""
        return self.server.members == self.devices.keys() and all(device.joined for device in self.devices.values())

    def joined(self):
        """Start, and let all devices join at once."""
        self.start().settle()
        assert self.all_joined()
        return self

    def stop(self):
        for agent in self.agents:
            agent.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


@contextmanager
def full_queue():
    """A port of the loopback interface that answers nobody: whoever does not get into its queue waits for ever."""
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]


class FirmwareHost(ThreadingHTTPServer):
    """A real HTTP(S) server on the loopback interface; ``pages`` maps paths to bytes or to ``page(handler)``."""

    daemon_threads = True

    def __init__(self, pages, tls=None):
        self.pages = pages
        self.asked = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tls = None
        if tls is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(*tls)

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.server_address[1]}"

    def finish_request(self, request, client_address):
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
        elif callable(page):
            page(self)
        else:
            self.answer(200, page)

    do_POST = do_GET

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
