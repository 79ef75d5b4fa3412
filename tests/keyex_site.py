"""What the tests of the key exchange service share: a service in a folder, served over real HTTP, and its callers."""

import json
import os
import socket
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from contextlib import closing, contextmanager

import pytest
import urllib3
import uvicorn

from srup.keyex import ServiceFolder
from srup.keyex.forms import Identity
from srup.keyex.service import application, configuration, listen
from srup.simulation import Clock

from .fleet import WAIT, key_of
from .programs import need

SERVICE = 0x5E41CE
DEVICE = 0xD1
OTHER = 0xD2
SERVER = 0x5E
BASE = "/KeyEx/register"
BROKER = "mqtts://broker.example:8883"


def named(number: int) -> Identity:
    return Identity(number, f"{number:x}")


def text(content: bytes) -> str:
    return b64encode(content).decode()


def bare(pem: bytes) -> str:
    """A PEM as deployed clients send it: without header, footer and newlines."""
    return "".join(line for line in pem.decode().splitlines() if not line.startswith("-----"))


class Site:
    """A service whose clock stands still unless a test moves it."""

    def __init__(self, path, **options):
        self.clock = Clock(float(int(time.time())))
        self.folder = ServiceFolder.create(path, SERVICE, self.clock, key_of(SERVICE, "rsa2048"))
        self.authority = self.open(**options)

    def open(self, **options):
        return self.folder.open(clock=self.clock, entropy=os.urandom, **({"broker": BROKER} | options))

    def state(self):
        """All that the database holds."""
        return list(self.authority._store._db.iterdump())

    @contextmanager
    def unchanged(self):
        before = self.state()
        yield
        assert self.state() == before

    @contextmanager
    def serving(self, *, tls=True, names=("127.0.0.1",), connections=None, proxies=(), **options):
        """Serve on a free port of the loopback interface; yields the URL."""
        files = self.folder.https(names, self.clock()) if tls else (None, None)
        config = configuration(application(self.authority, **options), *files, proxies)
        config.timeout_graceful_shutdown = 1
        server = uvicorn.Server(config)
        with listen("127.0.0.1", 0, connections) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()


@pytest.fixture
def make_site(tmp_path):
    """Makes a service; its database is closed in the end."""
    sites = []

    def make(**options):
        sites.append(Site(tmp_path / f"keyex{len(sites)}", **options))
        return sites[-1]

    yield make
    for site in sites:
        site.authority.close()


class Caller:
    """Whoever asks over HTTP, with nothing but urllib3."""

    def __init__(self, url, ca):
        self.url = url
        options = {"ca_certs": str(ca)} if url.startswith("https") else {}
        self.pool = urllib3.PoolManager(retries=False, timeout=WAIT, **options)

    def get(self, path):
        return self.pool.request("GET", f"{self.url}{BASE}/{path}")

    def post(self, path, body, **options):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return self.pool.request("POST", f"{self.url}{BASE}/{path}", body=content, headers=headers, **options)

    def refused(self, status, field, path, body):
        """Post something that is refused; returns what is said about it."""
        answer = self.post(path, body)
        said = answer.json()
        assert (answer.status, said["field"]) == (status, field), said
        assert said["error"]
        return said["error"]


@contextmanager
def calling(url, ca):
    caller = Caller(url, ca)
    with closing(caller.pool.connection_from_url(url)):
        assert caller.get("status").status == 200  # the service has begun, and put its house in order
        yield caller
        caller.pool.clear()


@contextmanager
def mosquitto(conf, port):
    """Mosquitto with a configuration that was written by srup; yields the process."""
    log = conf.with_name("mosquitto.log")
    with log.open("wb") as stderr:
        process = subprocess.Popen([need("mosquitto"), "-c", str(conf)], stdout=stderr, stderr=stderr)
    try:
        deadline = time.monotonic() + WAIT
        while True:
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait()


def decoded(answer, name):
    return b64decode(answer.json()[name], validate=True)
