"""The application's handlers: their registry, the threads that they run on, and what is kept until one has ended.

Handlers run on a thread of their own, one at a time and in order, so that a slow one delays neither the protocol nor
the link; those that wait for a person or a camera, and downloads, have other threads.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from inspect import isawaitable, iscoroutine, iscoroutinefunction, signature
from typing import Any, TypeVar

from ..keyring import KeyRing
from ..messages import DataKind
from ..records import InboxEntry
from ..session import persistence
from ..wire import Status
from . import backlog
from .backlog import Backlog
from .fairline import FairLine
from .inbox import Inbox
from .journal import Journal
from .transaction import Call, EntryNumbers, Handling, Transaction, after_commit

__all__ = ["Handler", "Handlers", "Inline"]

Result = TypeVar("Result")
Handler = TypeVar("Handler", bound=Callable[..., Any])


class Inline(Executor):
    """An executor that runs things at once, for simulations."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """Call ``fn`` now."""
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            future.set_exception(error)
        return future


class Interrupted(BaseException):
    """Raised in the place of a handler that was not let come to its end: what it was called for is not done."""


def check_plain(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler; TypeError for what is no plain function."""
    if not callable(handler) or iscoroutinefunction(handler):
        raise TypeError(f"a handler is a plain function, which {handler!r} is not")
    return handler


def check_arguments(handler: Callable[..., Any], count: int) -> None:
    """Raise TypeError for a handler that cannot be called with so many arguments."""
    try:
        signature(handler).bind(*[None] * count)
    except ValueError:
        pass  # some that are built in do not say what they take
    except TypeError:
        arguments = f"{count} argument{'' if count == 1 else 's'}"
        raise TypeError(f"this handler is called with {arguments}, which {handler!r} does not take") from None


class Handlers:
    """``named`` are the handlers by name, ``actions`` by action id with whether they run inline, ``values``
    by data id with the kind that they take.

    ``began`` says since when one runs, on the monotonic clock.
    """

    def __init__(
        self,
        journal: Journal,
        keys: KeyRing,
        inbox: Inbox,
        numbers: EntryNumbers,
        durable: bool,
        may_call: Callable[[], bool],
    ) -> None:
        self.named: dict[str, Callable[..., Any]] = {}
        self.actions: dict[int, tuple[Callable[..., Any], bool]] = {}
        self.values: dict[str | None, tuple[DataKind, Callable[..., Any]]] = {}
        self.application: Executor = Inline()
        self.aside: Executor = Inline()  # for handlers that wait for a person or a camera
        self.downloads: Executor = Inline()
        self.began: float | None = None
        self.again = False  # what is being told was told before, perhaps, by the process before this one
        self.backlog = Backlog(keys)  # the calls that wait
        self._at_once: list[Call] = []  # inline ones that wait for no commit, but for whoever holds a lock
        self.decides_now = True  # False lets what inline handlers decide go through the inbox always, for tests
        self.adapt: Callable[[Callable[..., Any]], Callable[..., Any]] = check_plain  # makes a plain function of it
        self.progress: Callable[[], object] = lambda: None  # is called whenever a handler has ended
        self._journal = journal
        self._keys = keys
        self._inbox = inbox
        self._numbers = numbers
        self._durable = durable
        self._may_call = may_call
        self._running: Call | None = None
        self._inline: int | None = None  # the thread that makes inline calls now
        self._running_inline: Call | None = None
        self._open: Transaction | None = None  # that of the turn that makes them
        self._lent = False  # whether the threads are somebody else's
        self._jobs: set[Future[Any]] = set()
        self._line = FairLine()
        self._finished: deque[tuple[int, int]] = deque()  # inbox entries whose handlers have ended
        self._finishable = (0, 0)  # so many of them are finished once so many things more of the inbox are done

    def register(self, name: str, handler: Handler, count: int) -> Handler:
        """Put a handler into the registry by name, and return it.

        TypeError for what cannot be one, or cannot be called with ``count`` arguments.
        """
        return self.register_in(self.named, name, count)(handler)

    def register_in(
        self, table: dict[Any, Any], name: object, count: int, entry: Callable[[Any], Any] = lambda handler: handler
    ) -> Callable[[Handler], Handler]:
        """Return a decorator that puts a handler into a table under a name; see :meth:`register`."""

        def decorate(handler: Handler) -> Handler:
            adapted = self.adapt(handler)
            check_arguments(handler, count)
            table[name] = entry(adapted)
            return handler

        return decorate

    @property
    def plain(self) -> bool:
        """Whether handlers are called as they are, on whatever thread calls them."""
        return self.adapt is check_plain

    # Threads.

    def employ(self, name: str) -> None:
        """Make the threads on which handlers run; they start when they are needed."""
        self.application = ThreadPoolExecutor(1, f"{name}-application")
        self.aside = ThreadPoolExecutor(1, f"{name}-aside")
        self.downloads = ThreadPoolExecutor(1, f"{name}-download")

    def borrow(self, application: Executor, aside: Executor) -> None:
        """Use the threads of whoever runs several agents; they are left alone when this one stops."""
        self.application, self.aside, self._lent = application, aside, True

    def dismiss(self) -> None:
        """Let the threads end: what runs goes on to its end, what waits is not called."""
        if not self._lent:
            for executor in (self.application, self.aside, self.downloads):
                executor.shutdown(wait=False, cancel_futures=True)

    @property
    def handling(self) -> Handling | None:
        """What the handler that runs now is called for, if one does."""
        call = self._running_inline if self._inline == threading.get_ident() else self._running
        return None if call is None else call.handling

    def running(self) -> list["Future[Any]"]:
        """Return the jobs that were started and have not ended."""
        return [job for job in self._jobs.copy() if not job.cancelled()]

    # Calls.

    def call(self, transaction: Transaction | None, call: Call) -> None:
        """Call a handler when the transaction is durable, on the application's thread if it is not inline."""
        if transaction is None:
            self.submit([call])
        elif call.inline and not self._durable:
            self._at_once.append(call)
        else:
            transaction.calls.append(call)
            if call.peer is not None:
                self.backlog.collect(call.peer)

    def call_for(
        self,
        transaction: Transaction | None,
        peer: int,
        token: bytes,
        job: Callable[[], object],
        number: int = 0,
        lost: Callable[[], object] | None = None,
        *,
        inline: bool = False,
    ) -> None:
        """Call a handler for a partner; if its key is taken away before the turn comes, call ``lost`` instead."""
        self.call(transaction, Call(job, peer, number, token, True, self._keys.pin(peer), self.again, inline, lost))

    def run(self, transaction: Transaction | None, executor: Executor, job: Callable[[], object]) -> None:
        """Run a job on one of the other threads, when the transaction is durable."""
        guarded = partial(self._journal.log_exceptions, job)
        after_commit(transaction, lambda: self._start_job(executor, guarded))

    def submit(self, calls: Sequence[Call]) -> None:
        """Hand calls over to the application's thread, and make those that are inline."""
        if not calls:
            return
        inline = [call for call in calls if call.inline]
        others = [call for call in calls if not call.inline] if inline else calls
        if others:
            self.backlog.submit(others)
            self._line.put(others)
            self._start_job(self.application, partial(self._run_line, len(others)))
        self._run_inline(inline)

    def run_at_once(self, transaction: Transaction | None = None) -> None:
        """Make the calls that wait for no commit; not under a lock that the application may be waiting for.

        What they decide belongs to the ``transaction``, if they are the last thing to do now (:attr:`deciding`).
        """
        if self._at_once:
            calls, self._at_once = self._at_once, []
            self._open = transaction
            self._run_inline(calls)
            self._open = None

    @property
    def deciding(self) -> Transaction | None:
        """What an inline handler that runs on this thread decides in; None if there is none, or more to do before."""
        here = self.decides_now and self._inline == threading.get_ident()
        return self._open if here and not len(self._inbox) else None

    def submit_refusal(self, call: Call | None) -> bool:
        """Hand a call about a refused message over, if any; not if many wait: junk must not fill the memory (T9)."""
        if self.backlog.handed_over() >= backlog.MAX_REFUSALS:
            return False
        if call is not None:
            self.submit([call])
        return True

    def _start_job(self, executor: Executor, job: Callable[[], object]) -> None:
        try:
            future = executor.submit(job)
        except RuntimeError:
            self._journal.log(logging.INFO, "%s is stopped; a handler was not called")
            return
        if not future.done():
            self._jobs.add(future)
            future.add_done_callback(self._jobs.discard)

    def _run_inline(self, calls: Sequence[Call]) -> None:
        if not calls:
            return
        self._inline = threading.get_ident()
        for call in calls:
            if not self._may_call():
                break
            self._running_inline = call
            self._journal.log_exceptions(self._make, call)
        self._inline = self._running_inline = None

    def run_calls(self, calls: Iterable[Call]) -> None:
        """Call handlers, one after the other; a call that is not made now is made after a restart if it is kept."""
        for call in calls:
            if not self._may_call():
                return
            self._run_call(call)

    def _run_call(self, call: Call) -> None:
        self.backlog.start(call)
        self._running, self.began = call, time.monotonic()
        try:
            self._journal.log_exceptions(self._make, call)
        except Interrupted:
            self._journal.log(logging.WARNING, "%s: a handler was interrupted; what it was called for is not done")
            return
        finally:
            self._running = self.began = None
            self.progress()
        if call.number and call.peer is not None:
            self.finished(call.peer, call.number)

    def _make(self, call: Call) -> None:
        peer = call.peer
        if not call.pinned or peer is None or (call.pin is not None and self._keys.pin(peer) is call.pin):
            call.job(*call.arguments)
        else:
            self._journal.counts["not done"] += 1
            text = "%s: %x lost its key; what it asked for is not done"
            self._journal.log(logging.WARNING, text, peer, partner=peer)
            if call.lost is not None:
                call.lost()

    def _run_line(self, count: int) -> None:
        """Call so many handlers, whose turn it is."""
        for _ in range(count):
            if (call := self._line.take()) is not None and self._may_call():
                self._run_call(call)

    def ask(self, handler: Callable[..., Any], *arguments: object, failure: Status, success: Status) -> Status:
        """Call a handler and translate what it returns or raises; on the application's thread."""
        try:
            result = handler(*arguments)
        except (Exception, SystemExit):  # noqa: BLE001 - it is logged, and answered
            self._journal.counts["faults"] += 1
            self._journal.log(logging.ERROR, "%s: a handler raised", exc_info=True)
            return failure
        if result is None:
            return success
        if isawaitable(result):
            self._journal.counts["faults"] += 1
            text = "%s: %r returned something to await; a handler is a plain function"
            self._journal.log(logging.ERROR, text, handler)
            if iscoroutine(result):
                result.close()
            return failure
        if isinstance(result, Status):
            if result >> 4 == success >> 4:  # codes of one family share their high digit
                return result
            self._journal.counts["faults"] += 1
            text = "%s: a handler returned %s, which answers something else"
            self._journal.log(logging.ERROR, text, result.name, status=result.name)
            return failure
        return failure if result is False else success

    # Notices: handlers that have nothing to answer.

    def notify(self, transaction: Transaction | None, name: str, *arguments: object, peer: int | None = None) -> None:
        """Call the handler of this name, if there is one, in the turn of the ``peer`` who caused it, if one did."""
        handler = self.named.get(name)
        if handler is not None:
            self.call(transaction, Call(lambda: handler(*arguments), peer))

    def notify_all(self, name: str, peers: Sequence[int]) -> None:
        """Call the handler of this name for each of many partners; one job, so that their number fills no queue."""

        def job() -> None:
            for peer in peers:
                if not self._may_call():
                    return
                self._journal.log_exceptions(partial(self.named[name], peer))

        self.call(None, Call(job))

    def notify_durably(
        self, transaction: Transaction, name: str, peer: int, *arguments: Any, live: Sequence[Any] | None = None
    ) -> None:
        """Call the handler of this name, if there is one; after a crash before its end, once more.

        ``arguments`` can be kept; the handler gets them, or ``live`` ones, which :meth:`Duty.revive` makes of them
        later.
        """
        if name in self.named:
            number = self.store_inbox(
                transaction, peer, b"", name, persistence.dump(arguments, lambda _: None).encode()
            )
            self.call_stored(transaction, name, peer, arguments if live is None else live, number)

    def call_stored(
        self, transaction: Transaction, name: str, peer: int, arguments: Sequence[Any], number: int
    ) -> None:
        """Call the handler of this name for the inbox entry ``number``, or for none (0)."""
        self.call(transaction, Call(partial(self.named[name], *arguments), peer, number, again=self.again))

    # The durable inbox.

    def store_inbox(self, transaction: Transaction, peer: int, token: bytes, kind: str, content: bytes) -> int:
        """Keep something that the application is to be told until it has been told; return its number, 0 for none."""
        if not self._durable:
            return 0
        number = self._numbers.next()
        transaction.changes.inbox.append(InboxEntry(number, peer, token, kind, content))
        return number

    def finished(self, peer: int, number: int) -> None:
        """Have a later turn forget an inbox entry: the application knows. On any thread."""
        idle = not self._finished
        self._finished.append((peer, number))
        if idle:
            self._inbox.wake()

    def collect_finished(self, transaction: Transaction, done: int) -> None:
        """Finish inbox entries whose handlers have ended, after so many things of the inbox were done.

        What a handler has asked for may stand in the inbox still, and a crash must not find the entry finished and the
        request gone. So an entry waits until all is done that was in the inbox at its end.
        """
        count, ahead = self._finishable
        if not count and not self._finished:
            self._finishable = 0, 0
            return
        ahead -= done
        if ahead <= 0:
            self._finish(transaction, count)
            count = len(self._finished)  # before the inbox is looked at: what a handler asks for comes before its end
            ahead = len(self._inbox)
            if not ahead:
                self._finish(transaction, count)
                count = 0
        self._finishable = count, ahead
        if self._finished and not len(self._inbox):
            self._inbox.wake()  # another turn

    def _finish(self, transaction: Transaction, count: int) -> None:
        transaction.changes.finished += [self._finished.popleft() for _ in range(count)]
