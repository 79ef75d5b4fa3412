"""The routes of the key exchange service (FLOWS.md, "Key exchange service"), as a starlette application.

A request is read within bounds of size and time, becomes checked values (:mod:`srup.keyex.forms`), and is decided by
the authority on a thread. A refusal is answered ``{"error": ..., "field": ...}`` with its status.
"""

import asyncio
import logging
import socket
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..errors import KeyServiceError
from ..keys import PublicKey
from .authority import Authority
from .client import BASE
from .forms import FORMS, MAX_BODY, parse_identity, read

__all__ = ["ROUTES", "Limiter", "application", "listen"]

log: Final = logging.getLogger("srup.keyex")

_BODY_TIMEOUT: Final = 10.0  # seconds until a request has arrived
_HOUSEKEEPING: Final = 3600.0  # seconds between two rounds


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
    """Return a key as FLOWS.md has it: PEM without header, footer and newlines; a full PEM if there are two blocks."""
    lines = key.to_pem().decode().splitlines()
    inner = [line for line in lines if not line.startswith("-----")]
    return "".join(inner) if len(lines) - len(inner) == 2 else "\n".join(lines)


def _text(content: bytes) -> str:
    return b64encode(content).decode()


def _register(authority: Authority, values: dict[str, Any]) -> Response:
    told = authority.register(values["identity"], values["key"], values["type"], values["token"], values["proof"])
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
    return PlainTextResponse(authority.revocation_list())


class _Entry(NamedTuple):
    method: str
    path: str
    answer: Callable[[Authority, Any], Response]
    form: str = ""  # its name in FORMS; "" for what is asked by its path


ROUTES: Final = (
    _Entry("GET", "/status", _status),
    _Entry("POST", "/register", _register, "register"),
    _Entry("POST", "/validate", _validate, "validate"),
    _Entry("POST", "/access", _access, "access"),
    _Entry("GET", "/get_key/{identity}", _get_key),
    _Entry("GET", "/get_type/{identity}", _get_type),
    _Entry("GET", "/c2_check/{identity}", _c2_check),
    _Entry("POST", "/c2", _c2, "c2"),
    # Beyond FLOWS.md:
    _Entry("POST", "/rotate", _rotate, "rotate"),
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


def _endpoint(authority: Authority, entry: _Entry, limiter: Limiter) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        address = request.client.host if request.client else ""
        try:
            if entry.form:
                asked: Any = read(FORMS[entry.form], await _body(request))
                stranger = entry.form == "register" and asked["token"] is None
                if stranger and not limiter.allows(address, asyncio.get_running_loop().time()):
                    raise KeyServiceError(429, "", "too many registrations from your address; wait a minute")
            else:
                asked = request.path_params.get("identity")
            return await run_in_threadpool(entry.answer, authority, asked)
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
    """Return the application. ``housekeeping`` is called on a thread before the first request and every hour.

    ``limiter`` bounds registrations without a token for each address (default: 10 at once, then 6 a minute).
    """
    limiter = limiter or Limiter(0.1, 10.0)
    routes = [
        Route(f"{BASE}{entry.path}{slash}", _endpoint(authority, entry, limiter), methods=[entry.method])
        for entry in ROUTES
        for slash in ("", "/")
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await _keep_house(authority, housekeeping)
        task = asyncio.create_task(_go_on(authority, housekeeping))
        yield
        task.cancel()

    return Starlette(routes=routes, lifespan=lifespan)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket for a server of the application to accept from; port 0 takes a free one. Raises OSError."""
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio does it only for sockets whose protocol number says TCP; without it each answer takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _keep_house(authority: Authority, housekeeping: Callable[[], object] | None) -> None:
    for work in (authority.expire, housekeeping):
        if work is None:
            continue
        try:
            await run_in_threadpool(work)
        except (KeyServiceError, OSError):
            log.exception("housekeeping failed; it is tried again in an hour")


async def _go_on(authority: Authority, housekeeping: Callable[[], object] | None) -> None:
    while True:
        await asyncio.sleep(_HOUSEKEEPING)
        await _keep_house(authority, housekeeping)
