"""What every request and answer is held to, before and after any page: host names, sizes, and what a browser may do."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from ..extras import missing_named
from .visit import Values

with missing_named():
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import PlainTextResponse

__all__ = ["FormError", "Guard", "host_of", "is_own_form", "read_form"]

MAX_FORM: Final = 1 << 19
"""Bytes that a form has at most."""

MAX_FIELDS: Final = 2_000
"""Fields that a form has at most."""

_PATIENCE: Final = 10.0  # seconds until a form has arrived

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class FormError(ValueError):
    """A form that cannot be read; ``status`` is that of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def host_of(header: str) -> str:
    """Return the name in a Host header, without its port, in small letters."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name


class Guard:
    """Lets only requests for one of ``names`` through, and gives every answer the headers that bind a browser.

    A page of somebody else whose name was made to point here (DNS rebinding) has another name.
    """

    def __init__(self, app: App, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [each for each in message.get("headers", ()) if each[0].lower() != b"server"]
                known = {name.lower() for name, _ in headers}
                if b"cache-control" not in known:
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = [*headers, *_HEADERS]
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or host_of(hosts[0]) not in self._names:
            answer = PlainTextResponse("The console is not known under this name.", 421)
            await answer(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)


def is_own_form(request: Request) -> bool:
    """Whether the browser says that a form comes from a page of ours, or says nothing about it."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()


async def read_form(request: Request) -> Values:
    """Return what a form says; FormError for one that is too long, too slow, or none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormError(415, "this is no form")
    content = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE):
            async for piece in request.stream():
                content += piece
                if len(content) > MAX_FORM:
                    raise FormError(413, f"a form has at most {MAX_FORM >> 10} kB")
    except (TimeoutError, ClientDisconnect):
        raise FormError(408, "the form did not arrive in time") from None
    try:
        pairs = parse_qsl(bytes(content).decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise FormError(400, f"the form cannot be read, or has more than {MAX_FIELDS} fields") from None
    return Values([(name, text.replace("\r\n", "\n")) for name, text in pairs])
