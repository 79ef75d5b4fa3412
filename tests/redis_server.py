"""A redis-server of one's own, on a free port of the loopback interface: start, stop, kill, restart."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import closing, contextmanager

import pytest
import redis

from .fleet import WAIT
from .keyex_site import free_port

REDIS_SERVER = shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/bin")


def need_redis():
    if REDIS_SERVER is None:
        if os.environ.get("CI"):
            pytest.fail("CI must test with Redis, and redis-server is not installed")
        pytest.skip("redis-server is not installed")


class RedisServer:
    """The process, and a client that looks behind the back of those that are tested. ``settings`` are Redis' own."""

    def __init__(self, folder, **settings):
        need_redis()
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.settings = {"appendonly": "yes", "appendfsync": "always", "save": "", "shutdown-timeout": "0"} | settings
        self.process = None
        self.client = redis.Redis(port=self.port)

    def start(self):
        """Start it, and wait until it has read its files and answers."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--daemonize", "no"]
        for name, value in self.settings.items():
            arguments += [f"--{name.replace('_', '-')}", value]
        log = self.folder / "redis.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen([REDIS_SERVER, *arguments], stdout=out, stderr=out)
        deadline = time.monotonic() + WAIT
        while True:
            try:
                if self.client.ping():
                    return self
            except redis.RedisError:
                assert self.process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)

    def kill(self):
        """As a crash does: SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """In order; a second call does nothing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(WAIT)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def restart(self):
        self.stop()
        return self.start()


@contextmanager
def redis_server(folder, **settings):
    """A server in ``folder``, which is made; stopped in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, **settings)
    with closing(server.client):
        server.start()
        try:
            yield server
        finally:
            server.stop()
