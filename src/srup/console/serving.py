"""The console on a port: on loopback as it is, elsewhere with TLS only."""

import logging
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from ..extras import missing_named
from ..files import complaint
from .application import application
from .live import Streams
from .site import Site

with missing_named():
    import uvicorn

__all__ = ["Serving"]

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECTIONS: Final = 512


class Serving:
    """A port that is listened on, within a block: what is asked there under ``names`` is answered by a site."""

    def __init__(self, listener: socket.socket, names: frozenset[str], tls: tuple[Path, Path] | None, url: str) -> None:
        self._listener = listener
        self._tls = tls
        self._server: uvicorn.Server | None = None
        self._streams = Streams()
        self.names: Final = names
        self.secure: Final = tls is not None
        self.url: Final = url

    @classmethod
    def at(cls, host: str, port: int, names: frozenset[str], cert: Path | None, key: Path | None) -> Self:
        """Listen on an address; ValueError when that would not be safe, or cannot be done."""
        if (cert is None) != (key is None):
            raise ValueError("--tls-cert and --tls-key go together")
        loopback = _is_loopback(host)
        if not loopback and cert is None:
            raise ValueError(
                f"--host {host}: anyone in between could read passwords; give --tls-cert and --tls-key, "
                "or listen on 127.0.0.1 and come by SSH (ssh -L)"
            )
        known = {name.lower() for name in names} | (set(_LOOPBACK) if loopback else set())
        if host not in ("0.0.0.0", "::", ""):  # noqa: S104 - these are no names
            known.add(host.lower())
        elif not names:
            raise ValueError(f"--host {host} needs --name: the host name under which browsers ask for the console")
        if cert is not None and key is not None:
            _check_pair(cert, key)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ValueError(f"cannot listen on {host}, port {port}: {complaint(error)}") from None
        shown = sorted(names)[0] if names else host
        where = f"[{shown}]" if ":" in shown else shown
        scheme = "http" if cert is None else "https"
        tls = (cert, key) if cert is not None and key is not None else None
        return cls(listener, frozenset(known), tls, f"{scheme}://{where}:{listener.getsockname()[1]}")

    def run(self, site: Site) -> None:
        """Answer until :meth:`end`."""
        cert, key = self._tls or (None, None)
        config = uvicorn.Config(
            application(site, self._streams),
            ssl_certfile=cert,
            ssl_keyfile=key,
            proxy_headers=False,
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=32768,
            http="h11",
            ws="none",
            lifespan="off",
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._server = uvicorn.Server(config)
        self._server.handle_exit = lambda *_: self.end()  # type: ignore[method-assign]  # its own breaks off at the second
        self._server.should_exit = self._streams.closing.is_set()  # it was told to end before it began
        self._server.run(sockets=[self._listener])

    def end(self) -> None:
        """Have :meth:`run` return, when what is being answered is answered."""
        self._streams.closing.set()
        if self._server is not None:
            self._server.should_exit = True

    def close(self) -> None:
        """Let go of the port."""
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_pair(cert: Path, key: Path) -> None:
    """ValueError unless these files are a certificate and its key, not encrypted."""
    try:
        # Without a password of ours OpenSSL would ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except OSError as error:
        raise ValueError(f"--tls-cert {cert} and --tls-key {key} do not load: {complaint(error)}") from None
