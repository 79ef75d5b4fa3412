"""Pages that change while they are looked at: server-sent events with whatever has become of them."""

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from ..extras import missing_named

with missing_named():
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response, StreamingResponse

__all__ = ["Streams"]

_PACE: Final = 1.0  # seconds between two looks, and
_SPARING: Final = 10.0  # times as long as the last one took
_ALIVE: Final = 15.0  # seconds after which something is sent though nothing has changed
_TICK: Final = 0.25  # seconds in which the end is noticed
_OF_ONE: Final = 8  # streams of one session, and
_OF_ALL: Final = 100  # of all


class Streams:
    """The streams that are open."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self.closing = threading.Event()

    def open(self, session: str, part: Callable[[], str | None], gone: Callable[[], Awaitable[bool]]) -> Response:
        """Return the stream of a page, whose changing ``part`` is made on a thread; None ends it, for good."""
        if self._open[session] >= _OF_ONE or self._open.total() >= _OF_ALL:
            return Response(status_code=503, headers={"retry-after": "30"})
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._events(session, part, gone), 200, headers, "text/event-stream")

    async def _events(
        self, session: str, part: Callable[[], str | None], gone: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[str]:
        self._open[session] += 1
        known, said = b"", time.monotonic()
        try:
            yield "retry: 3000\n\n"
            while not await gone() and not self.closing.is_set():
                began = time.monotonic()
                text = await run_in_threadpool(part)
                if text is None:
                    yield "event: over\ndata:\n\n"
                    return
                digest = hashlib.blake2b(text.encode()).digest()
                if digest != known:
                    yield f"data: {json.dumps(text)}\n\n"  # the first too: it may be newer than the page
                    known, said = digest, time.monotonic()
                elif time.monotonic() - said > _ALIVE:
                    yield ": alive\n\n"
                    said = time.monotonic()
                await self._pause(max(_PACE, _SPARING * (time.monotonic() - began)))
        finally:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session]

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.closing.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(_TICK, left))
