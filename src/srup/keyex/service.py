"""The routes of the key exchange service (docs/keyex.md, "Routes"), as a starlette application.

A request is read within bounds of size and time, becomes checked values (:mod:`srup.keyex.forms`), and is decided by
the authority on a thread. A refusal is answered ``{"error": ..., "field": ...}`` with its status.
"""

import asyncio
import logging
import re
import socket
import time
from base64 import b64encode
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import KeyServiceError
from ..extras import missing_named
from ..keys import PublicKey
from .authority import Authority
from .client import BASE
from .forms import FORMS, MAX_BODY, parse_identity, read

with missing_named():
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

__all__ = ["ROUTES", "Connections", "Limiter", "application", "configuration", "listen", "origin"]

log: Final = logging.getLogger("srup.keyex")

_CONNECTIONS: Final = 512  # at once, proxies' included
_BODY_TIMEOUT: Final = 10.0  # seconds until a request has arrived
_WITH_PORT: Final = re.compile(r"\[([^\]]+)\](?::[0-9]*)?|([0-9.]+):[0-9]*")
_HOUSEKEEPING: Final = 3600.0  # seconds between two rounds
_LOOKS: Final = 60  # how often it is looked meanwhile whether something was revoked
_FROM_ALL: Final = (2.0, 100.0)  # registrations without a token: so many a second, and at once
_WRITERS: Final = 8  # requests that write, or wait for the database, at once


class Limiter:
    """How often each address may do something: ``burst`` times at once, then ``rate`` times a second.

    Only the ``addresses`` seen last are remembered.
    """

    def __init__(self, rate: float, burst: float, addresses: int = 4096) -> None:
        self._rate = rate
        self._burst = burst
        self._addresses = addresses
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, address: str, now: float) -> bool:
        """Count one more at ``now`` (in seconds, of any clock); tell whether it may be done."""
        left, since = self._left.pop(address, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - since) * self._rate)
        allowed = left >= 1.0
        self._left[address] = (left - 1.0 if allowed else left, now)
        while len(self._left) > self._addresses:
            self._left.popitem(last=False)
        return allowed


def _bare(key: PublicKey) -> str:
    """Return a key in the form of docs/protocol/flows.md#f-83: PEM without header, footer and newlines."""
    lines = key.to_pem().decode().splitlines()
    inner = [line for line in lines if not line.startswith("-----")]
    return "".join(inner) if len(lines) - len(inner) == 2 else "\n".join(lines)


def _text(content: bytes) -> str:
    return b64encode(content).decode()


def _register(authority: Authority, values: dict[str, Any]) -> Response:
    told = authority.register(**values)
    default = "" if told.default_server is None else f"{told.default_server:x}"
    return JSONResponse({"broker": told.broker, "key": _bare(told.key), "default_c2": default}, 201)


def _validate(authority: Authority, values: dict[str, Any]) -> Response:
    signature = authority.validate(values["identity"], values["signature"])
    return JSONResponse({"identity": f"{authority.identity:x}", "signature": _text(signature)})


def _access(authority: Authority, values: dict[str, Any]) -> Response:
    access = authority.access(values["identity"], values["csr"], values["signature"])
    return JSONResponse({"certificate": _text(access.certificate), "CA_certificate": _text(access.authority)})


def _c2(authority: Authority, values: dict[str, Any]) -> Response:
    authority.register_server(values["identity"], values["key"], values["signature"])
    return JSONResponse({}, 201)


def _rotate(authority: Authority, values: dict[str, Any]) -> Response:
    authority.rotate(values["identity"], values["new_key"], values["signature"], values["new_signature"])
    return JSONResponse({})


def _status(authority: Authority, _: Any) -> Response:
    return JSONResponse({"active": True, "identity": f"{authority.identity:x}"})


def _get_key(authority: Authority, name: str) -> Response:
    return PlainTextResponse(_text(authority.key_of(parse_identity(name)).to_pem()))


def _get_type(authority: Authority, name: str) -> Response:
    return PlainTextResponse(authority.type_of(parse_identity(name)))


def _c2_check(authority: Authority, name: str) -> Response:
    identity = parse_identity(name)
    key, signature = authority.server(identity)
    return JSONResponse({"identity": f"{identity.number:x}", "key": _bare(key), "signature": _text(signature)})


def _rotations(authority: Authority, name: str) -> Response:
    return JSONResponse(
        [
            {"key": key, "signature": _text(old), "new_signature": _text(new)}
            for key, old, new in authority.rotations(parse_identity(name))
        ]
    )


def _ca(authority: Authority, _: Any) -> Response:
    return PlainTextResponse(authority.certificates.pem)


def _crl(authority: Authority, _: Any) -> Response:
    return PlainTextResponse(authority.signed_list())


class _Entry(NamedTuple):
    method: str
    path: str
    answer: Callable[[Authority, Any], Response]
    form: str = ""  # its name in FORMS; "" for what is asked by its path
    writes: bool = False  # whether it may wait for the database


ROUTES: Final = (
    _Entry("GET", "/status", _status),
    _Entry("POST", "/register", _register, "register", writes=True),
    _Entry("POST", "/validate", _validate, "validate"),
    _Entry("POST", "/access", _access, "access", writes=True),
    _Entry("GET", "/get_key/{identity}", _get_key),
    _Entry("GET", "/get_type/{identity}", _get_type),
    _Entry("GET", "/c2_check/{identity}", _c2_check),
    _Entry("POST", "/c2", _c2, "c2"),
    # Routes of ours:
    _Entry("POST", "/rotate", _rotate, "rotate", writes=True),
    _Entry("GET", "/rotations/{identity}", _rotations),
    _Entry("GET", "/ca", _ca),
    _Entry("GET", "/crl", _crl),
)
"""Method, path below BASE, and what answers."""


async def _body(request: Request) -> bytes:
    content = b""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY:
                    raise KeyServiceError(413, "", f"the request is longer than {MAX_BODY} bytes")
    except TimeoutError:
        raise KeyServiceError(408, "", f"the request took longer than {_BODY_TIMEOUT:g} s") from None
    except ClientDisconnect:
        raise KeyServiceError(400, "", "the request was cut off") from None
    return content


def origin(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 of an IPv6 one, all of which one host may have."""
    named = _WITH_PORT.fullmatch(host)  # as some proxies write it, and each connection has another one
    try:
        address = ip_address((named[1] or named[2] if named else host).partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))


def _endpoint(
    authority: Authority, entry: _Entry, allows: Callable[[str, float], bool], writers: Executor
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        address = request.client.host if request.client else ""
        try:
            if entry.form:
                asked: Any = read(FORMS[entry.form], await _body(request))
                if entry.form == "register":
                    asked["kind"], asked["origin"] = asked.pop("type"), origin(address)
                    stranger = asked["token"] is None
                    if stranger and not allows(asked["origin"], asyncio.get_running_loop().time()):
                        raise KeyServiceError(
                            429, "", "too many registrations, from your address or from all; wait a minute"
                        )
            else:
                asked = request.path_params.get("identity")
            if not entry.writes:
                return await run_in_threadpool(entry.answer, authority, asked)
            return await asyncio.get_running_loop().run_in_executor(writers, entry.answer, authority, asked)
        except KeyServiceError as error:
            log.info("%s %s from %a: %d %a", entry.method, entry.path, address, error.status, str(error))
            headers = {"Connection": "close"} if error.status in (408, 413) else None
            # Without a status it is our own trouble, which is nobody's business but the log's.
            said = str(error) if error.status else "the service is in trouble; try again later"
            return JSONResponse({"error": said, "field": error.field}, error.status or 503, headers)

    return endpoint


def application(
    authority: Authority, housekeeping: Callable[[], object] | None = None, limiter: Limiter | None = None
) -> Starlette:
    """Return the application.

    ``housekeeping`` is called on a thread before the first request, every hour, and soon after something was revoked.
    ``limiter`` bounds registrations without a token, each of which writes, for each address (default: 10 at once, then
    6 a minute); from all together there are 100 at once, then 2 a second.
    """
    each, everybody = limiter or Limiter(0.1, 10.0), Limiter(*_FROM_ALL)

    def allows(address: str, now: float) -> bool:
        return each.allows(address, now) and everybody.allows("", now)

    # Apart from the threads that read, so that look-ups go on while a writer holds the database.
    writers = ThreadPoolExecutor(_WRITERS, "srup-keyex-writer")
    routes = [
        Route(f"{BASE}{entry.path}{slash}", _endpoint(authority, entry, allows, writers), methods=[entry.method])
        for entry in ROUTES
        for slash in ("", "/")
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await _keep_house(authority, housekeeping)
        task = asyncio.create_task(_go_on(authority, housekeeping))
        yield
        task.cancel()
        writers.shutdown(wait=False, cancel_futures=True)

    return Starlette(routes=routes, lifespan=lifespan)


class Connections:
    """The connections that strangers have open: ``each`` of one address and ``most`` altogether, for ``lifetime`` s.

    Where there are too many, the oldest of the address with the most is ended, so whoever opens connections and says
    nothing displaces nobody but himself. Those of ``proxies``, which carry many clients, are not counted.
    """

    def __init__(
        self, proxies: Sequence[str] = (), each: int = 64, most: int = _CONNECTIONS // 8 * 7, lifetime: float = 60.0
    ) -> None:
        self._proxies = [ip_network(proxy) for proxy in proxies]
        self._each = each
        self._most = most
        self._lifetime = lifetime
        self._open: dict[str, deque[tuple[float, socket.socket]]] = {}  # by address, the oldest first

    def enter(self, connection: socket.socket, host: str, now: float) -> None:
        """Count one more at ``now`` (in seconds, of any clock that does not go back)."""
        address = origin(host)
        if self._is_proxy(host):
            return
        self._forget_closed()
        self._open.setdefault(address, deque()).append((now, connection))
        for name, open_ in self._open.items():
            while open_ and (len(open_) > self._each or open_[0][0] < now - self._lifetime):
                self._end(name)
        while sum(map(len, self._open.values())) > self._most:
            self._end(max(self._open, key=lambda name: len(self._open[name])))

    def _is_proxy(self, host: str) -> bool:
        try:
            return any(ip_address(host) in proxy for proxy in self._proxies)
        except ValueError:
            return False

    def _forget_closed(self) -> None:
        for name, open_ in list(self._open.items()):
            left = deque(entry for entry in open_ if entry[1].fileno() >= 0)
            if left:
                self._open[name] = left
            else:
                del self._open[name]

    def _end(self, address: str) -> None:
        _, connection = self._open[address].popleft()
        with suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)  # its owner, the event loop, finds it ended and closes it


class _Listener(socket.socket):
    connections: Connections

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self.connections.enter(connection, address[0], time.monotonic())
        return connection, address


def listen(host: str, port: int, connections: Connections | None = None) -> socket.socket:
    """Return a socket for a server of the application to accept from; port 0 takes a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = _Listener(fileno=socket.create_server((host, port), family=family).detach())
    listener.connections = connections or Connections()
    # asyncio does it only for sockets whose protocol number says TCP; without it each answer takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def configuration(
    app: Starlette, cert: Path | None = None, key: Path | None = None, proxies: Sequence[str] = ()
) -> uvicorn.Config:
    """Return how uvicorn serves the application: with TLS if there is a certificate.

    ``proxies`` are the addresses whose X-Forwarded-For says where a request came from.
    """
    return uvicorn.Config(
        app,
        ssl_certfile=cert,
        ssl_keyfile=key,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        loop="asyncio",  # another one would not ask our listener
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16384,
        http="h11",
        ws="none",
        lifespan="on",
    )


async def _keep_house(authority: Authority, housekeeping: Callable[[], object] | None) -> None:
    for work in (authority.expire, authority.revocation_list, housekeeping):
        if work is None:
            continue
        try:
            await run_in_threadpool(work)
        except (KeyServiceError, OSError):
            log.exception("housekeeping failed; it is tried again in an hour")


async def _go_on(authority: Authority, housekeeping: Callable[[], object] | None) -> None:
    while True:
        for _ in range(_LOOKS):
            await asyncio.sleep(_HOUSEKEEPING / _LOOKS)
            if not await run_in_threadpool(_is_in_order, authority):
                break
        await _keep_house(authority, housekeeping)


def _is_in_order(authority: Authority) -> bool:
    try:
        return authority.is_list_signed
    except KeyServiceError:
        return True  # housekeeping will tell
