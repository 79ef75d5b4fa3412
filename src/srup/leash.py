"""An HTTP exchange that ends in time: over urllib3, on a connection that can be cut from another thread.

urllib3 bounds each step, and whoever drips passes every step; and a name with many addresses has a step for each.
"""

import os
import select
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

from .printable import why

if TYPE_CHECKING:
    from urllib3 import HTTPConnectionPool
    from urllib3.response import BaseHTTPResponse

__all__ = ["Leash"]

_CONNECT_POLL: Final = 0.1


class Leash:
    """One job's grip on its time and its connection: ends a call that blocks, in a handshake or header as in a body.

    ``job`` is what takes no longer than ``seconds``, on this ``clock``; ``failure`` makes the error of a reason.
    """

    def __init__(
        self,
        job: str,
        seconds: float,
        failure: Callable[[str], Exception],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failure = failure
        self._clock = clock
        self._deadline = clock() + seconds
        self._late = f"{job} took longer than {seconds:g} s"
        self._ended = ""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self.end, (self._late,))
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = None

    @contextmanager
    def request(
        self,
        pool: "HTTPConnectionPool",
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout: float,
        tls: ssl.SSLContext | None = None,
    ) -> "Iterator[BaseHTTPResponse]":
        """Ask once, following nothing, and let go of ``pool``; the answer's body is still to be read, as it came.

        ``timeout`` in seconds is for each step. With ``tls`` the connections of a plain pool are wrapped in it, and
        nothing but it decides whom to trust. What fails, in the block too, is an HTTPError of urllib3.
        """
        import urllib3

        def connect(connection: Any) -> socket.socket:
            try:
                sock = self._connect(connection.host, connection.port, timeout)
                return sock if tls is None else tls.wrap_socket(sock, server_hostname=connection.host)
            except OSError as error:
                raise urllib3.exceptions.NewConnectionError(connection, why(error)) from error

        self.check()
        try:
            with pool:
                base: Any = pool.ConnectionCls
                pool.ConnectionCls = type(base.__name__, (base,), {"_new_conn": connect})
                answer = pool.urlopen(
                    method,
                    target,
                    body,
                    headers,
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    timeout=urllib3.Timeout(timeout),
                    preload_content=False,
                    decode_content=False,
                )
                with closing(answer):
                    yield answer
        except urllib3.exceptions.HTTPError as error:
            # An answer refused for its header lives on in the traceback, and with it the open socket.
            traceback.clear_frames(error.__traceback__)
            self.check()
            raise

    def _connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """Return a connection to the first address of ``host`` that takes it, or raise OSError; once ended, at once.

        What resolves the name cannot be interrupted.
        """
        error = OSError("the name has no address")
        for family, kind, proto, _, where in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            sock = socket.socket(family, kind, proto)
            try:
                self._connect_to(sock, where, timeout)
            except OSError as refused:
                sock.close()
                error = refused
                if self._over.is_set():
                    break
            except BaseException:
                sock.close()
                raise
            else:
                return self._hold(sock)
        raise error

    def _connect_to(self, sock: socket.socket, where: Any, timeout: float) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        deadline = time.monotonic() + timeout
        with suppress(BlockingIOError):
            sock.connect(where)
        ready = select.poll()
        ready.register(sock, select.POLLOUT)
        while not ready.poll(1000 * _CONNECT_POLL):  # a socket that is not connected yet cannot be shut down
            if self._over.is_set():
                raise OSError(self._ended)
            if time.monotonic() >= deadline:
                raise TimeoutError("timed out")
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        sock.settimeout(timeout)

    def _hold(self, sock: socket.socket) -> socket.socket:
        """Keep a handle of our own: TLS takes the descriptor out of the socket that it wraps."""
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = sock.dup()
            self._cut()
        return sock

    def end(self, reason: str) -> None:
        """Fail from now on, with this reason if it is the first; from any thread."""
        with self._lock:
            self._ended = self._ended or reason
            self._over.set()
            self._cut()

    def _cut(self) -> None:
        if self._ended and self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float) -> object:
        """Pause, until it is ended at most."""
        return self._over.wait(seconds)

    def left(self) -> float:
        """The seconds until its time is up."""
        return max(self._deadline - self._clock(), 0.0)

    def check(self) -> None:
        """Raise the failure once the time is up or it was ended."""
        if reason := self._ended or ("" if self.left() else self._late):
            raise self._failure(reason)
