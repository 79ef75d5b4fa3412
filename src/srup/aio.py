"""Devices and servers for asyncio: the names of :class:`srup.Device` and :class:`srup.Server`, as coroutines.

Handlers may be coroutine functions. They run in the event loop, one at a time and in order as always; turns and the
store have threads of their own, so that neither holds up the loop. The futures of all agents can be awaited. ::

    async with AsyncDevice(0xD1, key, server=0x5E, server_key=server_key, broker=url) as device:
        await device.wait_joined(30)
        await device.send("temperature", 21.5)

A handler that is cancelled from outside, as all are when ``asyncio.run`` ends, or whose event loop is closed, has done
nothing: an action has no answer, and with a store a value is handed over again after the next start.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from functools import wraps
from inspect import isawaitable
from typing import Any, Final, Self

from .agent import Agent, Device, Server
from .agent.handlers import Interrupted
from .agent.joining import Joining

__all__ = ["AsyncDevice", "AsyncServer"]

_LOOK: Final = 0.5  # seconds until a thread that waits for a handler looks whether the event loop is closed


class _Shell(Agent):
    """The shell for asyncio: an agent with threads, whose life and handlers are those of the running event loop."""

    _loop: asyncio.AbstractEventLoop

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.engine.handlers.adapt = self._adapt

    async def start(self) -> Self:  # type: ignore[override]
        """See :meth:`Agent.start`; handlers run in the event loop that runs now. If it is cancelled, it has stopped."""
        self._loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(asyncio.to_thread(super().start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])  # a thread goes on, and nobody would stop what it has started
            if starting.exception() is None:
                await self.stop()
            raise
        return self

    async def stop(self, timeout: float = 5.0) -> None:  # type: ignore[override]
        """See :meth:`Agent.stop`. A handler that awaits this waits for itself, until ``timeout`` is over."""
        await asyncio.to_thread(super().stop, timeout)

    async def run(self) -> None:  # type: ignore[override]
        """Start, unless that was done, and stay until :meth:`stop` is called or the task is cancelled.

        A fault that has ended the agent (:meth:`Agent.on_fault`) is raised here.
        """
        async with self:
            await asyncio.to_thread(self.engine.stopped.wait)
        if self.engine.fault is not None:
            raise self.engine.fault

    async def __aenter__(self) -> Self:
        return self if self.engine.started else await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        raise TypeError(f"{self!r} belongs to asyncio: use async with")

    def _adapt(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return what the application's thread calls for a handler: it waits until the event loop has run that."""
        if not callable(handler):
            raise TypeError(f"a handler is a function, which {handler!r} is not")

        async def run(arguments: tuple[Any, ...]) -> Any:
            try:
                result = handler(*arguments)
                return await result if isawaitable(result) else result
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # somebody has cancelled the handler: asyncio.run does when it ends
                raise RuntimeError("the handler has waited for something that was cancelled") from None

        @wraps(handler)
        def call(*arguments: Any) -> Any:
            return _result(run(arguments), self._loop)

        return call


def _result(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Have a loop run a coroutine; Interrupted if the loop is closed before its end, or it is cancelled."""
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        raise Interrupted from None
    while not wait([future], _LOOK).done:
        if loop.is_closed() and not future.done():  # which forgets what waits in it
            raise Interrupted
    if future.cancelled():
        raise Interrupted
    return future.result()


class AsyncDevice(_Shell, Device):  # type: ignore[misc]
    """A device for asyncio: the arguments, methods and errors of :class:`srup.Device`.

    ``start``, ``stop``, ``run`` and ``wait_joined`` are coroutines, ``async with`` starts and stops it, and the results
    of requests can be awaited. Start it in the event loop in which its handlers are to run.
    """

    async def wait_joined(self, timeout: float | None = None) -> None:  # type: ignore[override]
        """See :meth:`Device.wait_joined`."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self.engine.part(Joining).answer), timeout)
        except TimeoutError:
            Device.wait_joined(self, 0.0)  # says why it has not joined, unless it has just now


class AsyncServer(_Shell, Server):
    """A server for asyncio: the arguments, methods and errors of :class:`srup.Server`.

    ``start``, ``stop`` and ``run`` are coroutines, ``async with`` starts and stops it, and the results of requests can
    be awaited. Start it in the event loop in which its handlers are to run.
    """
