"""Futures of what was asked, which coroutines can await as well."""

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Answer", "awaited"]

Result = TypeVar("Result")


def awaited(future: "Future[Result]") -> Generator[Any, None, Result]:
    """Wait in a coroutine for a future that is under way; whoever stops waiting does not end what was asked."""
    import asyncio  # it takes a while to import, and few programs need it

    return asyncio.wrap_future(future).__await__()


class Answer(Future[Result]):
    """A future that is under way when it is made, so that it cannot be cancelled. Coroutines can await it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()

    def __await__(self) -> Generator[Any, None, Result]:
        return awaited(self)
