"""Fetching firmware: an ordered URL and SHA-256 in, a checked file on disk out (docs/protocol/flows.md#updates; T11).

What may be downloaded is decided in :mod:`srup.fetchpolicy`. :class:`HttpFetcher` does it over urllib3;
:class:`MemoryFetcher` is its counterpart for tests and simulations. Both deliver into the same folder of images
(:mod:`srup.images`).

Every failure is an :class:`~srup.errors.UpdateError`. Its status is the one that the device reports:

====  ======================  ========================================================================================
code  status                  cause
====  ======================  ========================================================================================
0xFC  UPDATE_FAIL_HTTP_ERROR  at once: a status that is no success (4xx, other 3xx, 206 unasked), a refused redirect
                              (another scheme or host, malformed, missing, too many);
                              after the last attempt: 408, 425, 429, 5xx
0xFD  UPDATE_FAIL_SERVER      at once: a URL that is malformed or not allowed, a proxy that makes no sense, an untrusted
                              certificate, the time cap, a :class:`Cancellation`, :meth:`HttpFetcher.close`;
                              after the last attempt: no connection, a timeout, a cut or garbled answer, a body without
                              a length that ends too early, one that was encoded although nobody asked for that
0xFE  UPDATE_FAIL_FILE        the folder or a file in it cannot be used, the disk is full, ``ca_file`` cannot be read,
                              the file is larger than ``max_bytes`` (like a full disk, this is the device's own limit)
0xFF  UPDATE_FAIL_DIGEST      the content differs from the digest, or the digest is not 64 hexadecimal digits
====  ======================  ========================================================================================

Attempts that get further than any before do not count: over a link that is cut again and again a download finishes all
the same, within the time cap. After 0xFC and 0xFD what has arrived stays in ``<digest>.part`` for the next fetch; after
0xFE and 0xFF it is removed.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from srup.errors import UpdateError
from srup.extras import require
from srup.fetchpolicy import (
    FetchPolicy,
    Proxy,
    Verdict,
    encoding,
    is_framed,
    retry_after,
    validator,
    verdict,
    whole_size,
)
from srup.images import Part, clean_digest, deliver, local_errors
from srup.leash import Leash
from srup.printable import printable, why
from srup.urls import Address, shown
from srup.wire import Status

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

__all__ = ["Cancellation", "FetchPolicy", "Fetcher", "HttpFetcher", "MemoryFetcher"]

_log = logging.getLogger(__name__)

_CHUNK = 2**16
_LOCK_POLL = 0.1


class _PassingError(UpdateError):
    """A failure that the next attempt may not meet; the server ``asked`` for so many seconds of peace."""

    asked = 0.0


def _failure(reason: str) -> UpdateError:
    return UpdateError(Status.UPDATE_FAIL_SERVER, reason)


class Cancellation:
    """Ends a download from another thread, whether it runs or has not begun. ``reason`` is "" until then."""

    def __init__(self) -> None:
        self.reason = ""
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str], object]] = []

    def cancel(self, reason: str) -> None:
        """Let the download fail with UPDATE_FAIL_SERVER and this reason; only the first call counts."""
        with self._lock:
            if self.reason:
                return
            self.reason = reason
            listeners = list(self._listeners)
        for listener in listeners:
            listener(reason)

    @contextmanager
    def heard_by(self, listener: Callable[[str], object]) -> Iterator[None]:
        """Call ``listener`` with the reason, within the block, at once if it is cancelled already."""
        with self._lock:
            self._listeners.append(listener)
            reason = self.reason
        try:
            if reason:
                listener(reason)
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def check(self) -> None:
        """UpdateError(UPDATE_FAIL_SERVER) once it is cancelled."""
        if self.reason:
            raise _failure(self.reason)


class Fetcher(Protocol):
    """What a device fetches firmware with."""

    def fetch(self, url: str, digest: str, folder: Path, cancellation: Cancellation | None = None) -> Path:
        """Return ``folder/<digest>``, whose content has this SHA-256 (64 hex digits), or raise UpdateError.

        It is to end soon, with an UpdateError, when ``cancellation`` is cancelled from another thread.
        """


class HttpFetcher:
    """Download over https, and over http if the policy allows it. Safe to use from several threads.

    ``clock`` and ``sleep`` are in seconds; without ``sleep``, pauses end when the fetch is cancelled.
    ModuleNotFoundError without urllib3.
    """

    def __init__(
        self,
        policy: FetchPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        require("urllib3")
        self.policy = policy or FetchPolicy()
        self._clock = clock
        self._sleep = sleep
        self._closed = False
        self._lock = threading.Lock()
        self._running: set[Leash] = set()

    def fetch(self, url: str, digest: str, folder: Path | str, cancellation: Cancellation | None = None) -> Path:
        """Return ``folder/<digest>`` (mode 0600), whose content has this SHA-256; UpdateError as in the module's table.

        ``folder`` is made if missing. A right file that is there already is returned without a request, and a .part
        of an earlier fetch is resumed; if that leads to a wrong digest, all is downloaded once more from byte zero.
        """
        digest = clean_digest(digest)
        address = self.policy.admit(url)
        tls: dict[str, Any] = {}
        if address.scheme == "https":
            with local_errors(self.policy.ca_file or "the system's certificates"):
                tls["ssl_context"] = ssl.create_default_context(cafile=self.policy.ca_file)
        with self._leash() as leash, (cancellation or Cancellation()).heard_by(leash.end):

            def wait() -> None:
                leash.check()
                self._pause(leash, _LOCK_POLL)

            return deliver(Path(folder), digest, wait, lambda part: self._download(address, part, leash, tls))

    def close(self) -> None:
        """Make every running fetch, and every later one, fail with UPDATE_FAIL_SERVER; from any thread."""
        with self._lock:
            self._closed = True
            for leash in self._running:
                leash.end("the fetcher is closed")

    @contextmanager
    def _leash(self) -> Iterator[Leash]:
        with Leash("the download", self.policy.max_seconds, _failure, self._clock) as leash:
            with self._lock:
                self._running.add(leash)
                if self._closed:
                    leash.end("the fetcher is closed")
            try:
                yield leash
            finally:
                with self._lock:
                    self._running.discard(leash)

    def _pause(self, leash: Leash, seconds: float) -> None:
        (self._sleep or leash.wait)(min(seconds, leash.left()))

    def _download(self, address: Address, part: Part, leash: Leash, tls: dict[str, Any]) -> None:
        furthest, fruitless = part.size, 0
        ended: set[str] = set()  # digests of bodies whose end could have been a cut
        while True:
            leash.check()
            try:
                return self._attempt(address, part, leash, tls, ended)
            except _PassingError as error:
                fruitless = 1 if part.size > furthest else fruitless + 1
                if fruitless >= self.policy.attempts:
                    raise
                furthest = max(furthest, part.size)
                _log.info("%s (failure %d of %d)", error, fruitless, self.policy.attempts)
                pause = self.policy.pause(fruitless, error.asked)
            self._pause(leash, pause)

    def _attempt(self, address: Address, part: Part, leash: Leash, tls: dict[str, Any], ended: set[str]) -> None:
        """One walk along the redirects to a body, and through it to its end."""
        redirects = 0
        while True:
            headers = {"User-Agent": "srup", "Accept-Encoding": "identity"}
            if part.size:
                headers["Range"] = f"bytes={part.size}-"
                if part.validator:
                    headers["If-Range"] = part.validator
            with self._answer(address, headers, leash, tls) as answer:
                said = f"{address}: HTTP status {answer.status} {printable(answer.reason or '')}"
                match verdict(answer.status, answer.headers, part.size, part.total):
                    case Verdict.REFUSE:
                        raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, said)
                    case Verdict.RETRY:
                        passing = _PassingError(Status.UPDATE_FAIL_HTTP_ERROR, said)
                        passing.asked = retry_after(answer.headers, datetime.now(UTC).timestamp())
                        raise passing
                    case Verdict.FOLLOW:
                        redirects += 1
                        if redirects > self.policy.max_redirects:
                            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{address}: too many redirects")
                        address = self.policy.follow(address, answer.headers.get("Location"))
                    case Verdict.RESTART:
                        part.restart()
                    case Verdict.WHOLE:
                        part.restart()
                        return self._receive(address, answer, part, leash, ended)
                    case Verdict.REST:
                        part.pieced = True
                        return self._receive(address, answer, part, leash, ended)

    def _receive(self, address: Address, answer: "BaseHTTPResponse", part: Part, leash: Leash, ended: set[str]) -> None:
        part.total = part.total or whole_size(answer.headers, part.size)
        part.validator = part.validator or validator(answer.headers)
        self.policy.check_size(part.total or 0)
        # read1, not read: a full chunk of dripping bytes could take forever.
        while chunk := answer.read1(_CHUNK):
            leash.check()
            self.policy.check_size(part.size + len(chunk))
            part.write(chunk)
        leash.check()
        if part.total not in (None, part.size):
            raise _PassingError(Status.UPDATE_FAIL_SERVER, f"{address}: cut after {part.size} of {part.total} bytes")
        if part.right:
            return
        if encoded := encoding(answer.headers):
            part.restart()  # nothing can be appended to it
            said = f"{address}: the content is encoded as {printable(encoded, 40)}, which nobody asked for"
            raise _PassingError(Status.UPDATE_FAIL_SERVER, said)
        if part.total is None and not is_framed(answer.headers) and part.digest not in ended:
            ended.add(part.digest)  # if the same comes again, it was no cut
            said = (
                f"{address}: a body without a length ended after {part.size} bytes, and they are not what was ordered"
            )
            raise _PassingError(Status.UPDATE_FAIL_SERVER, said)

    def _pool(self, address: Address, proxy: Proxy | None, tls: dict[str, Any]) -> Any:
        """What connects to an address, or to the proxy on the way to it."""
        import urllib3

        if proxy is not None:
            known = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            manager = urllib3.ProxyManager(proxy.address.origin, proxy_headers=known, **tls)
            return manager.connection_from_host(address.host, address.port, address.scheme)
        kind = urllib3.HTTPSConnectionPool if address.scheme == "https" else urllib3.HTTPConnectionPool
        return kind(address.host, address.port, **tls)

    @contextmanager
    def _answer(
        self, address: Address, headers: dict[str, str], leash: Leash, tls: dict[str, Any]
    ) -> Iterator["BaseHTTPResponse"]:
        """One GET. The errors of its body, which the caller reads, are translated here too."""
        import urllib3

        proxy = self.policy.proxy_for(address)
        target = address.target if proxy is None or tls else address.origin + address.target
        try:
            pool = self._pool(address, proxy, tls)
            with leash.request(pool, "GET", target, headers, timeout=self.policy.timeout) as answer:
                yield answer
        except urllib3.exceptions.HTTPError as error:
            untrusted = isinstance(error, urllib3.exceptions.SSLError) and isinstance(
                error.args[0], ssl.SSLCertVerificationError
            )
            kind_of_error = UpdateError if untrusted else _PassingError
            raise kind_of_error(Status.UPDATE_FAIL_SERVER, f"{address}: {why(error)}") from error


Content = bytes | UpdateError | Callable[[], bytes]
"""What a :class:`MemoryFetcher` has under a URL: the bytes, the error to raise, or a function that does either."""


class MemoryFetcher:
    """Fetch from a dict instead of the network, with the same checks of digest and size and the same files.

    A URL that the dict lacks is a 404; which URLs may be asked is not judged. ``asked`` lists those asked, in order.
    """

    def __init__(self, contents: Mapping[str, Content], policy: FetchPolicy | None = None) -> None:
        self.contents = contents
        self.policy = policy or FetchPolicy()
        self.asked: list[str] = []

    def fetch(self, url: str, digest: str, folder: Path | str, cancellation: Cancellation | None = None) -> Path:
        """As :meth:`HttpFetcher.fetch`, without its network errors unless the dict holds them."""
        over = cancellation or Cancellation()

        def wait() -> None:
            over.check()
            time.sleep(_LOCK_POLL)

        def download(part: Part) -> None:
            over.check()
            self.asked.append(url)
            content = self.contents.get(url, UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{shown(url)} is unknown"))
            if callable(content):
                content = content()
            if isinstance(content, UpdateError):
                raise content
            over.check()
            self.policy.check_size(len(content))
            part.restart()
            part.write(content)

        return deliver(Path(folder), clean_digest(digest), wait, download)
