"""A broker as somebody names it, and how a client makes itself known there: address, TLS, credentials, client id."""

import re
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from srup.errors import TransportError
from srup.transport.tlsfiles import TlsFiles

__all__ = ["Endpoint", "demand", "parse_url"]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_HOST: Final = re.compile(r"[\w.-]+")
_SHOWN: Final = 8  # characters of a client id that others may see


class Endpoint:
    """What :class:`MqttTransport` is told about its broker; TransportError names an argument that is wrong.

    ``is_5`` says which version of MQTT is spoken to it: 5, or else 3.1.1.
    """

    __slots__ = (
        *("_tls_files", "before_connect", "client_id", "credentials", "host", "is_5", "keepalive", "port"),
        *("session_expiry", "tls"),
    )

    def __init__(
        self,
        url: str,
        client_id: str | None,
        credentials: tuple[str | None, str | None],
        files: tuple[str | Path | None, str | Path | None, str | Path | None],
        alpn: Sequence[str],
        tls: ssl.SSLContext | None,
        keepalive: int,
        session_expiry: int,
        before_connect: Callable[[], object] | None,
    ) -> None:
        scheme, self.host, self.port = parse_url(url)
        self.client_id = client_id
        if client_id is not None:
            self.name_client(client_id)
        username, password = credentials
        demand(password is None or username is not None, "a password needs a username")
        demand(0 < keepalive < 1 << 16, f"keepalive is 1 to 65535 seconds, not {keepalive}")
        demand(0 <= session_expiry < 1 << 32, f"session_expiry is 0 to 2**32-1 seconds, not {session_expiry}")
        of_tls = any(files) or alpn
        demand(not (tls and of_tls), "tls takes the place of ca_file, cert_file, key_file and alpn")
        if scheme != "mqtts":
            demand(not (tls or of_tls), "tls, ca_file, cert_file, key_file and alpn need an mqtts:// url")
        self._tls_files = TlsFiles(*files, alpn) if scheme == "mqtts" and tls is None else None
        self.tls = tls if self._tls_files is None else self._tls_files.context()
        self.credentials = credentials
        self.keepalive = keepalive
        self.session_expiry = session_expiry
        self.before_connect = before_connect
        self.is_5 = True

    def name_client(self, client_id: str) -> None:
        """Let a client id name the session at the broker."""
        demand(bool(client_id) and client_id.isprintable(), "client_id is empty or has control characters")
        self.client_id = client_id

    def renew_tls(self) -> ssl.SSLContext | None:
        """Read the certificates as they are now; return the context with them, None without TLS."""
        if self._tls_files is not None:
            self.tls = self._tls_files.context()
        return self.tls

    def tls_changed(self) -> bool:
        """Return whether the certificates are others than before; TransportError if these are no good."""
        if self._tls_files is None or not self._tls_files.changed:
            return False
        self._tls_files.context()
        return True

    @property
    def where(self) -> str:
        """Its URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @property
    def shown_id(self) -> str:
        """The client id for logs and ``/readyz``, where it must not be read: whoever knows it can take the session."""
        client_id = self.client_id or ""
        return ascii(client_id if len(client_id) <= _SHOWN else f"{client_id[:_SHOWN]}...")


def demand(condition: bool, complaint: str) -> None:
    """Raise TransportError with this complaint unless the condition holds."""
    if not condition:
        raise TransportError(complaint)


def parse_url(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a broker's URL, or raise TransportError.

    The messages never repeat the URL: somebody may have put a password into it.
    """
    demand(url.isprintable() and not any(map(str.isspace, url)), "the broker's url has a space or a line break in it")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        raise TransportError("the broker's url has no valid host and port") from error
    demand(scheme not in ("ws", "wss"), "MQTT over WebSocket is not supported: use mqtts://, on port 443 with alpn")
    demand(scheme in _PORTS, "the broker's url is mqtt://host:port or mqtts://host:port")
    demand("@" not in parts.netloc, "username and password are arguments, not part of the broker's url")
    for part, is_there in (("path", parts.path not in ("", "/")), ("query", "?" in url), ("fragment", "#" in url)):
        demand(not is_there, f"the broker's url ends with the port, and has a {part}")
    if not host or port == 0:
        raise TransportError("the broker's url has no valid host and port")
    if ":" in host:  # an address of IPv6, which has been checked
        host = host.replace("%25", "%", 1)  # before its zone (RFC 6874)
    else:
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise TransportError(f"{host!a} is not a host name") from error
        demand(_HOST.fullmatch(host) is not None, f"{host!a} is not a host name")
    return scheme, host, port or _PORTS[scheme]
