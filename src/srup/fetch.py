"""Fetching firmware: an ordered URL and SHA-256 in, a checked file on disk out (FLOWS.md, "Update"; THREATS.md, T11).

What may be downloaded is decided by :class:`FetchPolicy` and :func:`verdict`, which do no I/O. :class:`HttpFetcher`
does what they say over urllib3; :class:`MemoryFetcher` is its counterpart for tests and simulations. Both write
through the same locked ``<digest>.part``, so a file named ``<digest>`` appears whole and checked, or not at all.

Every failure is an :class:`~srup.errors.UpdateError`. Its status is the one that the device reports:

====  ======================  ========================================================================================
code  status                  cause
====  ======================  ========================================================================================
0xFC  UPDATE_FAIL_HTTP_ERROR  at once: a status that is no success (4xx, other 3xx, 206 unasked), a refused redirect
                              (another scheme or host, malformed, missing, too many);
                              after the last attempt: 429, 5xx
0xFD  UPDATE_FAIL_SERVER      at once: a URL that is malformed or not allowed, an untrusted certificate, the time cap,
                              :meth:`HttpFetcher.close`;
                              after the last attempt: no connection, a timeout, a cut or garbled answer
0xFE  UPDATE_FAIL_FILE        the folder or a file in it cannot be used, the disk is full, ``ca_file`` cannot be read,
                              the file is larger than ``max_bytes`` (like a full disk, this is the device's own limit)
0xFF  UPDATE_FAIL_DIGEST      the content differs from the digest, or the digest is not 64 hexadecimal digits
====  ======================  ========================================================================================

After 0xFC and 0xFD what has arrived stays in ``<digest>.part`` for the next fetch; after 0xFE and 0xFF it is removed.
"""

import fcntl
import hashlib
import logging
import os
import re
import socket
import ssl
import stat
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urljoin

from srup.errors import UpdateError
from srup.wire import Status

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

__all__ = ["FetchPolicy", "Fetcher", "HttpFetcher", "MemoryFetcher", "check_digest", "file_digest"]

_log = logging.getLogger(__name__)

_CHUNK = 2**16
_LONGEST_PAUSE = 30.0
_LOCK_POLL = 0.1
_PORTS = {"http": 80, "https": 443}

_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_VISIBLE = re.compile(r"[!-~]+")
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?:(?P<name>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*)|\[(?P<ipv6>[0-9a-f:.]+)\])"
    r"(?::(?P<port>[0-9]{0,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_LENGTH = re.compile(r"[0-9]{1,18}")


def _printable(text: str) -> str:
    """Text of a stranger, made safe for a log line or a terminal."""
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text[:160])


# --- decisions: no I/O -------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """Where a URL points, split once: what the policy judged is what is connected to."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    @property
    def target(self) -> str:
        """The request target: path and query."""
        return self.path + self.query

    def __str__(self) -> str:
        # Without the query: presigned URLs carry their credentials there.
        return f"{self.scheme}://{self._netloc}{_printable(self.path)}"

    @property
    def _netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def join(self, location: str) -> "Address":
        """The address that a Location header means here; ValueError as :meth:`parse`."""
        if not _VISIBLE.fullmatch(location):
            raise ValueError("is empty or has characters outside printable ASCII")
        try:
            url = urljoin(f"{self.scheme}://{self._netloc}{self.target}", location)
        except ValueError:
            raise ValueError("is malformed") from None
        return Address.parse(url)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Split an absolute URL; ValueError says what is wrong with it.

        Stricter than RFC 3986, so that no two parsers can disagree about the host: printable ASCII only, no
        ``user:password@``, no trailing dot, no percent-encoding or zone in the host.
        """
        if not _VISIBLE.fullmatch(url):
            raise ValueError("is empty or has characters outside printable ASCII")
        if not (match := _URL.fullmatch(url)):
            raise ValueError("carries credentials or is malformed" if "@" in url else "is malformed")
        scheme = match["scheme"].lower()
        if scheme not in _PORTS:
            raise ValueError("is neither http nor https")
        port = int(match["port"] or _PORTS[scheme])
        if not 0 < port < 2**16:
            raise ValueError("has a port out of range")
        try:
            host = str(IPv6Address(match["ipv6"])) if match["ipv6"] else match["name"].lower()
        except ValueError:
            raise ValueError("has a malformed IPv6 address") from None
        if len(host) > 253:
            raise ValueError("has a host name that is too long")
        return cls(scheme, host, port, match["path"] or "/", match["query"] or "")


def _shown(url: str) -> str:
    """A URL that was refused, for a message. One with an ``@`` may hold a password anywhere, so none of it is shown."""
    return "the URL" if "@" in url else f"the URL '{_printable(re.split('[?#]', url)[0])}'"


class Verdict(Enum):
    """What to do with an answer, by its status line and headers alone."""

    WHOLE = auto()
    """Take the body from byte zero."""
    REST = auto()
    """Append the body to what is there."""
    RESTART = auto()
    """Drop what is there and ask for the whole at once."""
    FOLLOW = auto()
    """Ask the redirect's target, if the policy lets us."""
    RETRY = auto()
    """Ask again after a pause."""
    REFUSE = auto()
    """Give up."""


_VERDICTS = {
    200: Verdict.WHOLE,
    206: Verdict.REST,
    301: Verdict.FOLLOW,
    302: Verdict.FOLLOW,
    303: Verdict.FOLLOW,
    307: Verdict.FOLLOW,
    308: Verdict.FOLLOW,
    416: Verdict.RESTART,
    429: Verdict.RETRY,
}


def verdict(status: int, headers: Mapping[str, str], offset: int, total: int | None = None) -> Verdict:
    """Judge an answer to a request for everything from byte ``offset`` on (RFC 9110, 14.2 and 15).

    ``headers`` has case-insensitive keys; ``total`` is the size of the whole file if an earlier answer told it.
    """
    found = _VERDICTS.get(status, Verdict.RETRY if 500 <= status < 600 else Verdict.REFUSE)
    if found in (Verdict.REST, Verdict.RESTART) and not offset:
        return Verdict.REFUSE  # it answers a Range that was not asked
    if found is Verdict.REST:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if not match or int(match[1]) != offset or int(match[2]) < offset:
            return Verdict.RESTART
        if match[3] != "*" and (int(match[3]) <= int(match[2]) or total not in (None, int(match[3]))):
            return Verdict.RESTART
    return found


def _whole_size(headers: Mapping[str, str], offset: int) -> int | None:
    """The size that the file will have, as far as an accepted answer to a request from ``offset`` on tells."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "")) if offset else None
    if match and match[3] != "*":
        return int(match[3])
    length = headers.get("Content-Length", "")
    return offset + int(length) if _LENGTH.fullmatch(length) else None


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range may name: a strong ETag, else Last-Modified (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """What may be downloaded, from where, and for how long. Sizes in bytes, times in seconds."""

    allow_http: bool = False
    """Also take plain http: the digest still guards the content, but anyone on the path sees and can stall it."""
    allowed_hosts: frozenset[str] | None = None
    """The only hosts that may serve, IPv6 without brackets. None: the ordered URL's host, whichever it is, alone."""
    max_bytes: int = 512 * 2**20
    max_seconds: float = 3600.0
    """For the whole download with all its attempts; ends even a server that drips one byte at a time."""
    timeout: float = 30.0
    """To connect, and for each read."""
    attempts: int = 5
    max_redirects: int = 5
    first_pause: float = 0.5
    """Before the second attempt; doubles each time, up to 30."""
    ca_file: Path | None = None
    """PEM certificates to trust instead of the system's."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_seconds", "timeout", "attempts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")

    def admit(self, url: str) -> Address:
        """The address of an ordered URL, or UpdateError(UPDATE_FAIL_SERVER)."""
        try:
            address = Address.parse(url)
        except ValueError as error:
            raise UpdateError(Status.UPDATE_FAIL_SERVER, f"{_shown(url)} {error}") from None
        if address.scheme == "http" and not self.allow_http:
            raise UpdateError(Status.UPDATE_FAIL_SERVER, f"{address}: plain http is not allowed")
        if self.allowed_hosts is not None and not self._lists(address.host):
            raise UpdateError(Status.UPDATE_FAIL_SERVER, f"{address}: the host is not allowed")
        return address

    def follow(self, origin: Address, location: str | None) -> Address:
        """The address that ``origin`` redirects to, or UpdateError(UPDATE_FAIL_HTTP_ERROR).

        The scheme stays; the host stays or is in ``allowed_hosts``; the port may change.
        """
        refused = f"{origin}: redirect refused: "
        if location is None:
            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, refused + "it has no Location")
        try:
            address = origin.join(location)
        except ValueError as error:
            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{refused}{_shown(location)} {error}") from None
        if address.scheme != origin.scheme:
            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{refused}{address} is another scheme")
        if address.host != origin.host and not self._lists(address.host):
            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{refused}{address} is another host")
        return address

    def check_size(self, size: int) -> None:
        """UpdateError(UPDATE_FAIL_FILE) if ``size`` bytes are too many."""
        if size > self.max_bytes:
            raise UpdateError(Status.UPDATE_FAIL_FILE, f"the file is larger than {self.max_bytes} bytes")

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the failure of ``attempt`` (1, 2, ...)."""
        return min(self.first_pause * 2.0 ** min(attempt - 1, 32), _LONGEST_PAUSE)

    def _lists(self, host: str) -> bool:
        return host in {allowed.lower() for allowed in self.allowed_hosts or ()}


# --- files -------------------------------------------------------------------------------------------------------


def _clean_digest(digest: str) -> str:
    """Lower-case hex. It becomes a file name: nothing but 64 hexadecimal digits gets through."""
    if not _DIGEST.fullmatch(digest):
        raise UpdateError(Status.UPDATE_FAIL_DIGEST, "the ordered digest is not 64 hexadecimal digits")
    return digest.lower()


def file_digest(path: Path | str) -> str:
    """The SHA-256 of a file in lower-case hex, read in pieces; OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path | str, digest: str) -> None:
    """Return if the file has this SHA-256 (hex, either case); for use right before activation (FLOWS.md, "Update").

    UpdateError(UPDATE_FAIL_DIGEST) if it differs, UpdateError(UPDATE_FAIL_FILE) if it cannot be read.
    """
    digest = _clean_digest(digest)
    with _local(path):
        actual = file_digest(path)
    if actual != digest:
        raise _differs(actual, digest)


def _differs(actual: str, digest: str) -> UpdateError:
    return UpdateError(Status.UPDATE_FAIL_DIGEST, f"the content has the digest {actual}, ordered was {digest}")


def _holds(path: Path, digest: str) -> bool:
    """Whether ``path`` is a regular file, not a link to one, with this digest."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and file_digest(path) == digest
    except FileNotFoundError:
        return False


@contextmanager
def _local(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UpdateError(Status.UPDATE_FAIL_FILE, f"{_printable(str(path))}: {_why(error)}") from error


class _Part:
    """An open ``<digest>.part``: its size, its running SHA-256, and what is known of its source."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        with open(fd, "rb", closefd=False) as file:
            self._sha = hashlib.file_digest(file, "sha256")
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.pieced = self.size > 0  # made of more than one answer, which may be of different files
        self.validator: str | None = None
        self.total: int | None = None

    @property
    def digest(self) -> str:
        return self._sha.hexdigest()

    def write(self, data: bytes) -> None:
        self._sha.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def restart(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._sha = hashlib.sha256()
        self.size, self.pieced, self.validator, self.total = 0, False, None, None

    def publish(self, part: Path, target: Path) -> None:
        """The bytes reach the disk before the name does, and the name before we say so."""
        os.fsync(self._fd)
        part.replace(target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _open_locked(path: Path, wait: Callable[[], object]) -> int:
    """Open the .part at ``path`` as its only user, among threads and processes alike; ``wait`` may raise."""
    while True:
        with ExitStack() as stack:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            ours = os.fstat(fd)
            if not stat.S_ISREG(ours.st_mode) or ours.st_nlink > 1:
                raise OSError("it is not a plain file of its own")
            while not _lock(fd):
                wait()
            # Whoever held the lock may have renamed or removed the file: then ours is not the .part any more.
            with suppress(FileNotFoundError):
                if os.path.samestat(ours, path.lstat()):
                    os.fchmod(fd, 0o600)
                    stack.pop_all()
                    return fd


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _deliver(folder: Path, digest: str, wait: Callable[[], object], download: Callable[[_Part], None]) -> Path:
    """``folder/<digest>`` with the right content, which ``download`` puts in a .part unless it is there already.

    Of two fetches of one digest the later waits for the earlier, and then finds the file or goes on with the .part.
    """
    target, part_path = folder / digest, folder / f"{digest}.part"
    with _local(target):
        folder.mkdir(parents=True, exist_ok=True)
        if _holds(target, digest):
            return target
    with _local(part_path), ExitStack() as stack:
        fd = _open_locked(part_path, wait)
        stack.callback(os.close, fd)
        try:
            with _local(part_path):
                if _holds(target, digest):
                    part_path.unlink()
                    return target
                part = _Part(fd)
                if not part.size or part.digest != digest:
                    download(part)
                if part.digest != digest and part.pieced:
                    part.restart()
                    download(part)
                if part.digest != digest:
                    raise _differs(part.digest, digest)
                part.publish(part_path, target)
        except UpdateError as error:
            if error.status in (Status.UPDATE_FAIL_FILE, Status.UPDATE_FAIL_DIGEST) or not os.fstat(fd).st_size:
                with suppress(OSError):
                    part_path.unlink()
            raise
    return target


# --- network -----------------------------------------------------------------------------------------------------


class _PassingError(UpdateError):
    """A failure that the next attempt may not meet."""


def _why(error: BaseException) -> str:
    """What an error says, without the URLs and object addresses that libraries wrap around it."""
    cause = error.__cause__ or error.__context__ or error
    return _printable(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)


class _Leash:
    """One fetch's grip on its time and its socket: ends a call that blocks, in a handshake or header as in the body."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deadline = clock() + seconds
        self._late = f"the download took longer than {seconds:g} s"
        self._ended = ""
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self.end, (self._late,))
        self._timer.daemon = True

    def __enter__(self) -> "_Leash":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = None

    def hold(self, sock: socket.socket) -> socket.socket:
        """Keep a handle of our own: TLS takes the descriptor out of the socket that it wraps."""
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = sock.dup()
            self._cut()
        return sock

    def end(self, reason: str) -> None:
        with self._lock:
            self._ended = self._ended or reason
            self._cut()

    def _cut(self) -> None:
        if self._ended and self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def left(self) -> float:
        return max(self._deadline - self._clock(), 0.0)

    def check(self) -> None:
        """UpdateError(UPDATE_FAIL_SERVER) once the time is up or the fetcher is closed."""
        if reason := self._ended or ("" if self.left() else self._late):
            raise UpdateError(Status.UPDATE_FAIL_SERVER, reason)


class Fetcher(Protocol):
    """What a device fetches firmware with."""

    def fetch(self, url: str, digest: str, folder: Path) -> Path:
        """Return ``folder/<digest>``, whose content has this SHA-256 (64 hex digits), or raise UpdateError."""


class HttpFetcher:
    """Download over https, and over http if the policy allows it. Safe to use from several threads.

    ``clock`` and ``sleep`` are in seconds; without ``sleep``, pauses end when the fetcher is closed.
    ImportError without urllib3.
    """

    def __init__(
        self,
        policy: FetchPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        try:
            import urllib3  # noqa: F401  (fail here rather than in the middle of an update)
        except ImportError as error:
            raise ImportError("downloading needs urllib3: pip install 'srup[mqtt]'") from error
        self.policy = policy or FetchPolicy()
        self._clock = clock
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._lock = threading.Lock()
        self._running: set[_Leash] = set()

    def fetch(self, url: str, digest: str, folder: Path | str) -> Path:
        """Return ``folder/<digest>`` (mode 0600), whose content has this SHA-256; UpdateError as in the module's table.

        ``folder`` is made if missing. A right file that is there already is returned without a request, and a .part
        of an earlier fetch is resumed; if that leads to a wrong digest, all is downloaded once more from byte zero.
        """
        digest = _clean_digest(digest)
        address = self.policy.admit(url)
        tls: dict[str, Any] = {}
        if address.scheme == "https":
            with _local(self.policy.ca_file or "the system's certificates"):
                tls["ssl_context"] = ssl.create_default_context(cafile=self.policy.ca_file)
        with self._leash() as leash:

            def wait() -> None:
                leash.check()
                self._sleep(_LOCK_POLL)

            return _deliver(Path(folder), digest, wait, lambda part: self._download(address, part, leash, tls))

    def close(self) -> None:
        """Make every running fetch, and every later one, fail with UPDATE_FAIL_SERVER; from any thread."""
        with self._lock:
            self._closed.set()
            for leash in self._running:
                leash.end("the fetcher is closed")

    @contextmanager
    def _leash(self) -> Iterator[_Leash]:
        with _Leash(self.policy.max_seconds, self._clock) as leash:
            with self._lock:
                self._running.add(leash)
                if self._closed.is_set():
                    leash.end("the fetcher is closed")
            try:
                yield leash
            finally:
                with self._lock:
                    self._running.discard(leash)

    def _download(self, address: Address, part: _Part, leash: _Leash, tls: dict[str, Any]) -> None:
        attempt = 1
        while True:
            leash.check()
            try:
                return self._attempt(address, part, leash, tls)
            except _PassingError as error:
                if attempt >= self.policy.attempts:
                    raise
                _log.info("%s (attempt %d of %d)", error, attempt, self.policy.attempts)
            self._sleep(min(self.policy.pause(attempt), leash.left()))
            attempt += 1

    def _attempt(self, address: Address, part: _Part, leash: _Leash, tls: dict[str, Any]) -> None:
        """One walk along the redirects to a body, and through it to its end."""
        redirects = 0
        while True:
            headers = {"User-Agent": "srup", "Accept-Encoding": "identity"}
            if part.size:
                headers["Range"] = f"bytes={part.size}-"
                if part.validator:
                    headers["If-Range"] = part.validator
            with self._answer(address, headers, leash, tls) as answer:
                said = f"{address}: HTTP status {answer.status} {_printable(answer.reason or '')}"
                match verdict(answer.status, answer.headers, part.size, part.total):
                    case Verdict.REFUSE:
                        raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, said)
                    case Verdict.RETRY:
                        raise _PassingError(Status.UPDATE_FAIL_HTTP_ERROR, said)
                    case Verdict.FOLLOW:
                        redirects += 1
                        if redirects > self.policy.max_redirects:
                            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{address}: too many redirects")
                        address = self.policy.follow(address, answer.headers.get("Location"))
                    case Verdict.RESTART:
                        part.restart()
                    case Verdict.WHOLE:
                        part.restart()
                        return self._receive(address, answer, part, leash)
                    case Verdict.REST:
                        part.pieced = True
                        return self._receive(address, answer, part, leash)

    def _receive(self, address: Address, answer: "BaseHTTPResponse", part: _Part, leash: _Leash) -> None:
        part.total = part.total or _whole_size(answer.headers, part.size)
        part.validator = part.validator or _validator(answer.headers)
        self.policy.check_size(part.total or 0)
        # read1, not read: a full chunk of dripping bytes could take forever.
        while chunk := answer.read1(_CHUNK):
            leash.check()
            self.policy.check_size(part.size + len(chunk))
            part.write(chunk)
        leash.check()
        if part.total not in (None, part.size):
            raise _PassingError(Status.UPDATE_FAIL_SERVER, f"{address}: cut after {part.size} of {part.total} bytes")

    @contextmanager
    def _answer(
        self, address: Address, headers: dict[str, str], leash: _Leash, tls: dict[str, Any]
    ) -> Iterator["BaseHTTPResponse"]:
        """One GET. The errors of its body, which the caller reads, are translated here too."""
        import urllib3

        kind = urllib3.HTTPSConnectionPool if address.scheme == "https" else urllib3.HTTPConnectionPool
        timeout = urllib3.Timeout(connect=self.policy.timeout, read=self.policy.timeout)
        leash.check()
        try:
            with kind(address.host, address.port, timeout=timeout, **tls) as pool:
                base: Any = pool.ConnectionCls
                held = {"_new_conn": lambda connection: leash.hold(base._new_conn(connection))}
                pool.ConnectionCls = type(base.__name__, (base,), held)
                answer = pool.urlopen(
                    "GET",
                    address.target,
                    headers=headers,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
                with closing(answer):
                    yield answer
        except urllib3.exceptions.HTTPError as error:
            # An answer refused for its header lives on in the traceback, and with it the open socket.
            traceback.clear_frames(error.__traceback__)
            leash.check()
            untrusted = isinstance(error, urllib3.exceptions.SSLError) and isinstance(
                error.args[0], ssl.SSLCertVerificationError
            )
            kind_of_error = UpdateError if untrusted else _PassingError
            raise kind_of_error(Status.UPDATE_FAIL_SERVER, f"{address}: {_why(error)}") from error


# --- memory ------------------------------------------------------------------------------------------------------

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

    def fetch(self, url: str, digest: str, folder: Path | str) -> Path:
        """As :meth:`HttpFetcher.fetch`, without its network errors unless the dict holds them."""

        def download(part: _Part) -> None:
            self.asked.append(url)
            content = self.contents.get(url, UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{_shown(url)} is unknown"))
            if callable(content):
                content = content()
            if isinstance(content, UpdateError):
                raise content
            self.policy.check_size(len(content))
            part.restart()
            part.write(content)

        return _deliver(Path(folder), _clean_digest(digest), lambda: time.sleep(_LOCK_POLL), download)
