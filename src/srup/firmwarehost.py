"""A host of firmware for a small site: the files of a folder over HTTPS, as devices fetch them.

The files are those of starlette (StaticFiles): ranges, so that an interrupted download goes on, ETag, 304, HEAD, and
nothing outside the folder, through a link neither. What a file must contain, devices know from their signed orders.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from .extras import missing_named
from .files import complaint
from .keyex.service import Connections, configuration, listen
from .printable import printable

with missing_named():
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

__all__ = ["FirmwareHost"]

log: Final = logging.getLogger("srup.firmware")

_EACH: Final = 256  # connections of one address: a site may be behind one
_MOST: Final = 448  # of all
_LONGEST: Final = 6 * 3600.0  # seconds that a connection lasts at most, once others want it
_LOOKS: Final = 60.0  # seconds between two looks whether there is another certificate
_LISTED: Final = 1000  # files
_SAID: Final = {404: "there is no such file", 405: "files can be read, nothing else"}


class FirmwareHost:
    """Serves the files of a folder on ``host`` and ``port`` (0: a free one), with TLS by ``cert`` and ``cert_key``.

    Files and folders whose names begin with a dot are not there. With ``listing``, "/" names what is. The certificate
    is read again when its file changes. ValueError for a folder or a certificate that is none, OSError when it cannot
    listen.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        port: int,
        cert: Path | None = None,
        cert_key: Path | None = None,
        *,
        listing: bool = False,
    ) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        self._pair = None if cert is None or cert_key is None else (cert, cert_key)
        if self._pair is not None:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._pair)
        files = _Files(folder, listing)
        app = Starlette(routes=[Mount("/", files)], lifespan=self._lifespan)
        self._config = configuration(app, cert, cert_key)
        self._listener = listen(host, port, Connections(each=_EACH, most=_MOST, lifetime=_LONGEST))
        self._server = uvicorn.Server(self._config)
        self._server.handle_exit = self.end  # type: ignore[assignment]  # its own breaks off at a second Ctrl-C
        shown = f"[{host}]" if ":" in host else host
        self.url: Final = f"{'http' if cert is None else 'https'}://{shown}:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        """Serve until :meth:`end` is called."""
        with self._listener:
            self._server.run(sockets=[self._listener])

    def end(self, *_: object) -> None:
        """End: what is under way has five seconds."""
        self._server.should_exit = True

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch())
        yield
        task.cancel()

    async def _watch(self) -> None:
        """Take another certificate when there is one: it is for the connections that come."""
        pair, seen = self._pair, _stamp(self._pair or ())
        while pair is not None:
            await asyncio.sleep(_LOOKS)
            if (now := _stamp(pair)) != seen and self._config.ssl is not None:
                seen = now
                try:
                    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *pair)
                    _load(self._config.ssl, *pair)
                except ValueError as error:
                    log.error("the certificate is not read again: %s", error)
                else:
                    log.info("there is another certificate, which counts from now on")


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Load a certificate and its key; ValueError unless they are one, not encrypted."""
    try:
        # Without a password of ours OpenSSL would ask at the terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except OSError as error:
        raise ValueError(f"the certificate {cert} and its key {key} do not load: {complaint(error)}") from None


def _stamp(files: Iterable[Path]) -> list[tuple[int, int]]:
    stamps = []
    for path in files:
        with suppress(OSError):
            found = path.stat()
            stamps.append((found.st_mtime_ns, found.st_ino))
    return stamps


class _Files(StaticFiles):
    """The files of the folder, and the log of what was asked for."""

    def __init__(self, folder: Path, listing: bool) -> None:
        super().__init__(directory=folder)
        self._folder = folder
        self._listing = listing

    async def get_response(self, path: str, scope: Any) -> Response:
        """Return a file, or raise HTTPException."""
        try:
            if self._listing and path == "." and scope["method"] in ("GET", "HEAD"):
                lines = await asyncio.to_thread(self._listed)
                return PlainTextResponse("".join(f"{line}\n" for line in lines))
            if any(part.startswith(".") for part in Path(path).parts):
                raise HTTPException(404)
            return await super().get_response(path, scope)
        except OSError as error:
            log.error("%s cannot be read: %s", printable(path), complaint(error))
            raise HTTPException(500) from None

    def _listed(self) -> list[str]:
        """Return size and path of each file, of so many at most."""
        lines: list[str] = []
        for folder, folders, files in os.walk(self._folder):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for name in sorted(files):
                path = Path(folder, name)
                if not name.startswith(".") and not path.is_symlink():
                    with suppress(OSError):
                        lines.append(f"{path.stat().st_size:>12}  {path.relative_to(self._folder)}")
            if len(lines) >= _LISTED:
                return [*lines[:_LISTED], "and more"]
        return lines

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, and log what came of it."""
        status, sent = 0, 0
        began = asyncio.get_running_loop().time()

        async def told(message: Any) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            await send(message)
            sent += len(message.get("body", b""))

        try:
            await _answer(super().__call__, scope, receive, told)
        finally:
            took = asyncio.get_running_loop().time() - began
            about = (scope.get("client") or ("?",))[0], scope["method"], printable(scope["path"], 200)
            log.info("%s %s %s: %d, %d bytes in %.1f s", *about, status, sent, took)


async def _answer(app: Callable[..., Any], scope: Any, receive: Any, send: Any) -> None:
    try:
        await app(scope, receive, send)
    except HTTPException as error:
        said = _SAID.get(error.status_code, error.detail)
        headers = {"Allow": "GET, HEAD"} if error.status_code == 405 else None
        await PlainTextResponse(f"{said}\n", error.status_code, headers)(scope, receive, send)
