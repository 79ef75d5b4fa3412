"""URLs of firmware, split once and strictly: what a server may order, and what a device connects to."""

import re
from ipaddress import IPv6Address
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin

from .printable import printable

__all__ = ["LONGEST", "Address", "shown"]

LONGEST: Final = 8192
"""The most characters that a URL may have; HTTP servers refuse longer ones."""

_PORTS: Final = {"http": 80, "https": 443}
_ASCII: Final = "".join(map(chr, range(128)))
_VISIBLE: Final = re.compile(r"[!-~]+")
_URL: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?:(?P<name>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*)|\[(?P<ipv6>[0-9a-f:.]+)\])"
    r"(?::(?P<port>[0-9]{0,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE,
)


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
        return self.origin + printable(self.path)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self._netloc}"

    @property
    def _netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def join(self, location: str) -> "Address":
        """The address that a Location header means here; ValueError as :meth:`parse`.

        ``location`` is the header as http.client reads it: in Latin-1. Bytes above 127, of UTF-8 that was not escaped,
        are escaped here as they came (RFC 3987, 3.1).
        """
        try:
            location = quote(location.encode("latin-1"), safe=_ASCII)
        except UnicodeEncodeError:
            raise ValueError("has characters that no header has") from None
        if not _VISIBLE.fullmatch(location):
            raise ValueError("is empty or has characters outside printable ASCII")
        try:
            url = urljoin(self.origin + self.target, location)
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
        if len(url) > LONGEST:
            raise ValueError(f"has {len(url)} characters, and {LONGEST} are possible")
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


def shown(url: str) -> str:
    """A URL that was refused, for a message. One with an ``@`` may hold a password anywhere, so none of it is shown."""
    return "the URL" if "@" in url else f"the URL '{printable(re.split('[?#]', url)[0])}'"
