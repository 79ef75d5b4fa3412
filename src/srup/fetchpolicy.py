"""What may be downloaded, and what to do with an answer: decisions without I/O, but for the environment's proxies."""

import base64
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

from .errors import UpdateError
from .urls import Address, shown
from .wire import Status

__all__ = [
    "FetchPolicy",
    "Proxy",
    "Verdict",
    "encoding",
    "is_framed",
    "retry_after",
    "validator",
    "verdict",
    "whole_size",
]

_LONGEST_PAUSE: Final = 30.0
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_SECONDS: Final = re.compile(r"[0-9]{1,9}")


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
    408: Verdict.RETRY,
    416: Verdict.RESTART,
    425: Verdict.RETRY,
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


def whole_size(headers: Mapping[str, str], offset: int) -> int | None:
    """The size that the file will have, as far as an accepted answer to a request from ``offset`` on tells."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "")) if offset else None
    if match and match[3] != "*":
        return int(match[3])
    length = headers.get("Content-Length", "")
    return offset + int(length) if _LENGTH.fullmatch(length) else None


def validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range may name: a strong ETag, else Last-Modified (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def is_framed(headers: Mapping[str, str]) -> bool:
    """Whether a body says where it ends; otherwise it ends with the connection, which may be a cut."""
    chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
    return chunked or _LENGTH.fullmatch(headers.get("Content-Length", "")) is not None


def encoding(headers: Mapping[str, str]) -> str:
    """The encodings of the content, and of its way here, which nobody asked for; "" for none."""
    named = f"{headers.get('Content-Encoding', '')},{headers.get('Transfer-Encoding', '')}".lower().split(",")
    return ", ".join(each.strip() for each in named if each.strip() not in ("", "identity", "chunked"))


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """The seconds for which a server asks to be left alone (RFC 9110, 10.2.3); 0 for none, or in no known form.

    A date is compared with the server's own clock if it tells that, for a device may have none, else with ``now``.
    """
    asked = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(asked):
        return float(asked)
    until, present = _date(asked), _date(headers.get("Date", ""))
    return 0.0 if until is None else max(0.0, until - (now if present is None else present))


def _date(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


class Proxy(NamedTuple):
    """A proxy, and what it wants to know of us."""

    address: Address
    authorization: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Proxy":
        """Read ``http://[user:password@]host[:port]``, or the same without ``http://``; ValueError, without secrets."""
        scheme, mark, rest = text.rpartition("://") if "://" in text else ("http", "://", text)
        user, at, host = rest.rpartition("@")
        try:
            address = Address.parse(scheme + mark + host)
        except ValueError as error:
            raise ValueError(f"the URL of the proxy {error}") from None
        if address.scheme != "http" or address.target != "/":
            raise ValueError("a proxy is http://host:port, with user:password@ before the host if it wants that")
        secret = base64.b64encode(unquote(user).encode()).decode()
        return cls(address, f"Basic {secret}" if at else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """What may be downloaded, from where, and for how long. Sizes in bytes, times in seconds."""

    allow_http: bool = False
    """Also take plain http: the digest still guards the content, but anyone on the path sees and can stall it."""
    allowed_hosts: frozenset[str] | None = None
    """The only hosts that may serve, without ports. None: the ordered URL's host, whichever it is, alone."""
    max_bytes: int = 512 * 2**20
    max_seconds: float = 3600.0
    """For the whole download with all its attempts; ends even a server that drips one byte at a time."""
    timeout: float = 30.0
    """To connect, and for each read."""
    attempts: int = 5
    """How many may fail in a row without getting further than any before."""
    max_redirects: int = 5
    first_pause: float = 0.5
    """Before the second attempt; doubles each time, up to 30."""
    max_pause: float = 300.0
    """The longest that a server may ask to be left alone (Retry-After); it is asked again then."""
    ca_file: Path | None = None
    """PEM certificates to trust instead of the system's."""
    proxy: str | None = None
    """``http://[user:password@]host:port``, for every download; "" for none. None: what HTTPS_PROXY, HTTP_PROXY and
    NO_PROXY in the environment say, in small letters too."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_seconds", "timeout", "attempts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")
        for name in ("max_redirects", "first_pause", "max_pause"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")
        if self.timeout > threading.TIMEOUT_MAX:
            raise ValueError(f"timeout is at most {threading.TIMEOUT_MAX:.0f} seconds")
        if self.allowed_hosts is not None:
            object.__setattr__(self, "allowed_hosts", _hosts(self.allowed_hosts))
        if self.proxy:
            Proxy.parse(self.proxy)

    def admit(self, url: str) -> Address:
        """The address of an ordered URL, or UpdateError(UPDATE_FAIL_SERVER)."""
        try:
            address = Address.parse(url)
        except ValueError as error:
            raise UpdateError(Status.UPDATE_FAIL_SERVER, f"{shown(url)} {error}") from None
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
            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{refused}{shown(location)} {error}") from None
        if address.scheme != origin.scheme:
            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{refused}{address} is another scheme")
        if address.host != origin.host and not self._lists(address.host):
            raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, f"{refused}{address} is another host")
        return address

    def check_size(self, size: int) -> None:
        """UpdateError(UPDATE_FAIL_FILE) if ``size`` bytes are too many."""
        if size > self.max_bytes:
            raise UpdateError(Status.UPDATE_FAIL_FILE, f"the file is larger than {self.max_bytes} bytes")

    def pause(self, attempt: int, asked: float = 0.0) -> float:
        """Seconds to wait after the failure of ``attempt`` (1, 2, ...), and after one that ``asked`` for some."""
        own = min(self.first_pause * 2.0 ** min(attempt - 1, 32), _LONGEST_PAUSE)
        return max(own, min(asked, self.max_pause))

    def proxy_for(self, address: Address) -> Proxy | None:
        """The proxy by way of which an address is asked, or None; UpdateError(UPDATE_FAIL_SERVER) for a bad one."""
        named = self.proxy
        if named is None and not proxy_bypass(f"{address.host}:{address.port}"):
            named = getproxies().get(address.scheme)
        try:
            return Proxy.parse(named) if named else None
        except ValueError as error:
            raise UpdateError(Status.UPDATE_FAIL_SERVER, f"{address}: {error}") from None

    def _lists(self, host: str) -> bool:
        return host in (self.allowed_hosts or ())


def _hosts(names: Collection[str]) -> frozenset[str]:
    """Hosts as an :class:`Address` spells them; ValueError for what is none: it would never match."""
    if isinstance(names, str):
        raise TypeError("allowed_hosts is a set of hosts, not one text")
    return frozenset(map(_host, names))


def _host(name: str) -> str:
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") and ":" in name else name
    try:
        address = Address.parse(f"https://[{bare}]" if ":" in bare else f"https://{bare}")
    except ValueError:
        address = None
    if address is None or set(bare) & set("/?#"):
        raise ValueError(f"allowed host {name[:80]!a} is no host: give a name or an address, without https:// and port")
    return address.host
