"""A broker of one's own for demonstrations and tests: Mosquitto where it is installed, else amqtt inside the process.

It listens on the loopback interface only and lets everyone in. What the two can do differs: Mosquitto speaks MQTT 5,
keeps sessions over :meth:`LocalBroker.restart` and delivers again what was not acknowledged; amqtt speaks 3.1.1,
forgets everything when it ends, and gives a message up that is not acknowledged within five seconds.
"""

import asyncio
import errno
import importlib
import importlib.metadata
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self

from srup.errors import TransportError
from srup.extras import require

__all__ = ["LocalBroker"]

_START_TIMEOUT: Final = 10.0  # seconds; Mosquitto takes 0.01, amqtt 0.2
_STOP_TIMEOUT: Final = 5.0
_ATTEMPTS: Final = 5  # another program may take a port between our finding it free and the broker binding it

# CONNECT with MQTT 3.1.1, clean session, keep-alive 5 s, client id "probe"; and two CONNACKs (MQTT 3.1.1, section 3.2).
_CONNECT: Final = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x05\x00\x05probe"
_ACCEPTED: Final = b"\x20\x02\x00\x00"
_UNKNOWN_VERSION: Final = b"\x20\x02\x00\x01"

_MOSQUITTO_CONF: Final = """\
listener {port} 127.0.0.1
allow_anonymous true
# Without it bursts wait for the peer's delayed acknowledgements.
set_tcp_nodelay true
# The defaults drop what a slow subscriber has not fetched, after the publisher was told that it is safe.
max_queued_messages 100000
max_inflight_messages 1000
persistence true
persistence_location {directory}/
log_dest stderr
log_type error
log_type warning
"""

# Kills a process when our end of its standard input closes, as it does whatever we die of.
_WATCHER: Final = 'read -r _; kill -KILL "$1"'


class LocalBroker:
    """A broker on a loopback port, as a context manager; see the module for what the two kinds can do.

    ``kind`` forces one of them; None takes the better one that can be had. TransportError if there is none. It takes
    the ``port``, or without one a port that is free.
    """

    def __init__(self, kind: Literal["mosquitto", "amqtt"] | None = None, port: int | None = None) -> None:
        engine, self.description = _choose(kind)
        self._engine = engine
        self._wanted = port
        self._port: int | None = None

    @property
    def kind(self) -> str:
        """``mosquitto`` or ``amqtt``."""
        return self._engine.kind

    @property
    def pid(self) -> int | None:
        """The process that Mosquitto runs in; None while it does not run, and for amqtt."""
        return self._engine.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._engine.running

    @property
    def url(self) -> str:
        """``mqtt://127.0.0.1:<port>``; TransportError before the first :meth:`start`."""
        if self._port is None:
            raise TransportError("the broker has not been started")
        return f"mqtt://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Return when the broker accepts connections; nothing happens if it runs. TransportError if it does not start.

        The port is chosen by the first start and kept from then on.
        """
        if self._engine.running:
            return self
        if self._port is None and self._wanted is not None:
            _check_free(self._wanted)
            self._port = self._wanted
        if self._port is not None:
            self._engine.start(self._port)
            return self
        for attempts_left in reversed(range(_ATTEMPTS)):
            port = free_port()
            try:
                self._engine.start(port)
            except TransportError:
                if not attempts_left:
                    self._engine.forget()
                    raise
            else:
                self._port = port
                break
        return self

    def stop(self) -> None:
        """End the broker in good order and forget its sessions; nothing happens if it does not run."""
        self._engine.stop()
        self._engine.forget()

    def restart(self) -> None:
        """End it in good order if it runs, and start it again on the same port; Mosquitto keeps its sessions."""
        self._engine.stop()
        self.start()

    def kill(self) -> None:
        """End it without warning; :meth:`restart` brings back what Mosquitto had written by then, which may be little.

        An amqtt lives in this process and cannot be killed: its connections break off and its memory is gone.
        """
        self._engine.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<LocalBroker {self.description}>"


class _Engine(Protocol):
    kind: str

    @property
    def pid(self) -> int | None: ...
    @property
    def running(self) -> bool: ...
    def start(self, port: int) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def forget(self) -> None: ...


def _choose(kind: str | None) -> tuple[_Engine, str]:
    """The broker to run, and one line that says which it is and why."""
    if kind not in (None, "mosquitto", "amqtt"):
        raise TransportError(f"there is no broker of the kind {kind!a}; use mosquitto or amqtt")
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if kind == "mosquitto" and path is None:
        raise TransportError("mosquitto is not installed (apt install mosquitto, brew install mosquitto)")
    if path is not None and kind != "amqtt":
        why = "asked for" if kind else "found on this machine"
        return _Mosquitto(path), f"{_mosquitto_version(path)} ({why}: {path})"
    if kind == "amqtt":
        require("amqtt")
    try:
        version = importlib.metadata.version("amqtt")
    except importlib.metadata.PackageNotFoundError:
        raise TransportError(
            "no broker: install mosquitto (apt install mosquitto), or amqtt (pip install 'srup[demo]')"
        ) from None
    why = "asked for" if kind else "mosquitto is not installed"
    return _Amqtt(), f"amqtt version {version} inside this process ({why})"


def _mosquitto_version(path: str) -> str:
    usage = subprocess.run([path, "-h"], capture_output=True, text=True, check=False, timeout=_START_TIMEOUT)  # noqa: S603
    return (usage.stdout or usage.stderr).partition("\n")[0].strip()


def _check_free(port: int) -> None:
    """Raise TransportError unless we can listen here; another broker would answer in the place of ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            hint = "; another broker may be running there" if error.errno == errno.EADDRINUSE else ""
            raise TransportError(f"port {port} cannot be used: {error.strerror}{hint}") from None


def free_port() -> int:
    """Return a port of the loopback interface that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Mosquitto:
    """Mosquitto as a child process, with its configuration and its memory in a temporary directory."""

    kind = "mosquitto"

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._kill: Callable[[], object] = lambda: None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, port: int) -> None:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="srup-broker-", ignore_cleanup_errors=True)
        directory = Path(self._directory.name)
        conf, journal = directory / "mosquitto.conf", directory / "mosquitto.log"
        text = _MOSQUITTO_CONF.format(port=port, directory=directory)
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            text += "user root\n"  # else it becomes user mosquitto, who cannot enter our directory
        conf.write_text(text)
        with journal.open("wb") as stderr:
            self._process = process = subprocess.Popen(  # noqa: S603
                [self._path, "-c", str(conf)],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # the terminal's Ctrl-C is for us, and we may have messages left to send
            )
        watcher = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHER, "sh", str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._kill = weakref.finalize(self, _kill, watcher, process)  # also when the interpreter ends
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                break
            if _answers(port) and process.poll() is None:
                return
        self.kill()
        said = ascii(journal.read_text(errors="replace").strip()[-300:])
        raise TransportError(f"mosquitto did not start on port {port}: {said}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        self._kill()
        self._process = None

    def forget(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


def _kill(*processes: "subprocess.Popen[bytes]") -> None:
    for process in processes:
        process.kill()  # does nothing to a process that has ended
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _answers(port: int) -> bool:
    """Whether a broker accepts a client: a port may be open before anybody reads from it."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as probe:
        probe.sendall(_CONNECT)
        return probe.recv(len(_ACCEPTED)) == _ACCEPTED
    return False


class _Amqtt:
    """amqtt on an event loop of its own, in a thread of its own."""

    kind = "amqtt"
    pid = None

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, port: int) -> None:
        for name in ("amqtt", "transitions"):  # both log every packet and every state at INFO and below
            logger = logging.getLogger(name)
            if logger.level == logging.NOTSET:
                logger.setLevel(logging.WARNING)
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(port, ready), name="srup-amqtt", daemon=True)
        self._thread.start()
        try:
            ready.result(_START_TIMEOUT)
        except TimeoutError:
            raise TransportError(f"amqtt did not start on port {port} within {_START_TIMEOUT:.0f} s") from None

    def stop(self) -> None:
        if self._thread is not None and self._loop is not None and self._done is not None:
            with suppress(RuntimeError):  # the loop has closed by itself
                self._loop.call_soon_threadsafe(self._done.set)
            self._thread.join(2 * _STOP_TIMEOUT)
        self._thread = None

    def kill(self) -> None:
        self.stop()

    def forget(self) -> None:
        """There is nothing left to forget: its sessions live in memory and ended with it."""

    def _main(self, port: int, ready: "Future[None]") -> None:
        try:
            asyncio.run(self._serve(port, ready))
        except Exception as error:  # the thread's last act; start() raises it if it still can
            if ready.done():
                logging.getLogger("srup.transport").exception("amqtt ended unexpectedly")
            else:
                ready.set_exception(TransportError(f"amqtt did not start on port {port}: {error}"))

    async def _serve(self, port: int, ready: "Future[None]") -> None:
        amqtt = importlib.import_module("amqtt.broker")
        broker = amqtt.Broker(
            {"listeners": {"default": {"type": "external"}}, "plugins": {f"{__name__}.KeepSessions": {}}}
        )
        await broker.start()
        writers: set[asyncio.StreamWriter] = set()

        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                with suppress(OSError, asyncio.IncompleteReadError):
                    await _welcome(broker, reader, writer)
            finally:
                writers.discard(writer)
                writer.close()

        server = await asyncio.start_server(welcome, "127.0.0.1", port)
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        ready.set_result(None)
        await self._done.wait()
        server.close()
        for writer in tuple(writers):
            writer.transport.abort()
        with suppress(TimeoutError):
            await asyncio.wait_for(broker.shutdown(), _STOP_TIMEOUT)


async def _welcome(broker: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass a client on to amqtt, unless it speaks MQTT 5.

    amqtt takes the properties of a version 5 CONNECT for the client id and waits for the rest of it for ever; the
    answer that MQTT 3.1.1 has for unknown versions (section 3.1.2.2) tells the client at once.
    """
    head = await reader.readexactly(2)
    while head[-1] & 0x80 and len(head) < 5:  # the packet's length: up to four bytes, seven bits in each
        head += await reader.readexactly(1)
    head += await reader.readexactly(7)  # the protocol's name, as a string, and its version
    if head[-1] != 4:
        writer.write(_UNKNOWN_VERSION)
        await writer.drain()
        return
    adapters = importlib.import_module("amqtt.adapters")
    await broker.external_connected(_Replay(head, reader), adapters.StreamWriterAdapter(writer), "default")


class _Replay:
    """amqtt's reader interface over a stream whose first bytes have been read already."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader) -> None:
        self._head = head
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        if not self._head:
            return await (self._reader.read() if n == -1 else self._reader.readexactly(n))
        head, self._head = (self._head, b"") if n == -1 else (self._head[:n], self._head[n:])
        return head if len(head) == n else head + await self.read(n - len(head) if n != -1 else -1)

    def feed_eof(self) -> None:
        self._reader.feed_eof()


@cache
def _keep_sessions() -> type:
    base: Any = importlib.import_module("amqtt.plugins.base").BaseAuthPlugin

    class KeepSessions(base):  # type: ignore[misc]
        """Lets everyone in by name, so to speak: amqtt keeps and queues nothing for sessions it holds anonymous."""

        async def authenticate(self, *, session: Any) -> bool:
            session.is_anonymous = False
            return True

    return KeepSessions


def __getattr__(name: str) -> type:
    if name == "KeepSessions":  # amqtt finds plugins by dotted name, and is imported only when it is to run
        return _keep_sessions()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
