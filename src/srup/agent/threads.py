"""The shell of real life: the threads of one agent. A simulation does without and calls the engine itself."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any, Final

from ..transport.mqtt import MqttTransport
from .engine import IDLE, TURN, Engine

__all__ = ["Threads", "stay", "terminable"]

STORE_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to write to a store that refuses."""

_LOOK: Final = 0.05  # seconds until the transport's thread looks again whether somebody has the turn in order to stop


@contextmanager
def terminable(lingers: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, and a second Ctrl-C the process, at once and without a traceback.

    That holds until the block is left, and longer if something ``lingers`` then that would hold the process up. A
    handler that the application has for SIGINT stays. On another thread than the main one it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(_signal: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager may tell a whole group of processes
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.default_int_handler
    for each in before:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        if interrupted and lingers():
            before.pop(signal.SIGINT, None)
        for each, handler in before.items():
            signal.signal(each, handler)


def stay(stopped: Callable[[float], bool]) -> None:
    """Wait until ``stopped`` returns True; it waits itself, up to so many seconds, so that Ctrl-C gets through."""
    while not stopped(1.0):
        pass


class Threads:
    """Takes the turns of an engine on a thread of its own, and lets handlers run on others.

    Without a store no turn waits for a disk. Then the network thread of the transport takes them, where it has one for
    itself: no message waits for another thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._name = f"srup-{engine.identity:x}"
        self._thread: threading.Thread | None = None
        self._lent = False  # whether the transport lends its thread
        self._until = 0.0  # when the next turn was due when somebody asked last
        self._turn = threading.RLock()  # whoever takes a turn on that thread, or the last one, holds it

    @property
    def alive(self) -> bool:
        """Whether the thread that takes the turns goes on, or there is none."""
        return self._thread is None or self._thread.is_alive()

    @property
    def employed(self) -> bool:
        """Whether there is a thread that takes the turns."""
        return self._thread is not None or self._lent

    def start(self) -> None:
        """Start the threads, that of the turns last."""
        engine, transport = self._engine, self._engine.transport
        engine.handlers.employ(self._name)
        if engine.store is None and isinstance(transport, MqttTransport):
            engine.inbox.listen(transport.wake)
            self._lent = transport.lend_thread(self._take_turn, self._due)
            if self._lent:
                engine.flush = transport.flush  # which other threads must not call
        if not self._lent:
            engine.inbox.listen(None)
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until the last turn is over."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        elif self._lent and self._turn.acquire(timeout=max(0.0, timeout)):
            self._turn.release()

    def stop(self, timeout: float) -> None:
        """End within ``timeout`` seconds, if possible. The first call does it, others wait for the last turn.

        In a process that was forked after the start there is nothing to end: all that runs is its parent's.
        """
        engine = self._engine
        if engine.forked:
            return
        if engine.stopping.is_set():
            self.join(timeout)
            return
        engine.announce_stop()
        deadline = time.monotonic() + timeout
        self.join(timeout)
        running = engine.handlers.running()
        if not threading.current_thread().name.startswith(f"{self._name}-application"):
            wait(running, max(0.0, deadline - time.monotonic()))  # what they have done shall not be done again
        free = self._turn.acquire(timeout=max(0.0, deadline - time.monotonic()))
        engine.flush = lambda: None  # the last turn is not on the transport's thread
        try:
            if self._lent:  # a handler that is inline may have called this in the middle of a turn
                last = free and engine.turn_began is None
            else:
                last = self._thread is None or not self._thread.is_alive()
            engine.stop(deadline, turn=last)
        finally:
            if free:
                self._turn.release()

    # On the transport's thread, which others need whatever happens in a turn.

    def _take_turn(self) -> None:
        """Take a turn, if there is something to do and nobody takes the last one."""
        if not len(self._engine.inbox) and time.monotonic() < self._until:
            return
        while not self._turn.acquire(timeout=_LOOK):
            if self._engine.stopping.is_set():
                return  # whoever stops us has it, and waits for this thread
        try:
            if not self._engine.stopping.is_set():
                self._engine.turn(TURN)
        except BaseException as fault:  # noqa: BLE001 - as in _loop
            self._engine.break_off(fault)
        finally:
            self._turn.release()

    def _due(self) -> float:
        """Return when the next turn is to be taken, on the monotonic clock: only turns change that, and the inbox."""
        engine = self._engine
        if engine.stopping.is_set():
            return math.inf
        if len(engine.inbox):
            return 0.0
        try:
            due = engine.due()
        except BaseException as fault:  # noqa: BLE001 - as in _loop
            engine.break_off(fault)
            return math.inf
        pause = IDLE if due is None else due - engine.clock()
        self._until = time.monotonic() + min(IDLE, max(0.0, pause))
        return self._until

    # On a thread of our own.

    def _loop(self) -> None:
        try:
            self._take_turns()
        except BaseException as fault:  # noqa: BLE001 - whatever it is: nobody must wait for a thread that has ended
            self._engine.break_off(fault)

    def _take_turns(self) -> None:
        engine = self._engine
        refusals = 0
        while not engine.stopping.is_set():
            if engine.commit_failed:
                engine.stopping.wait(STORE_PAUSES[min(refusals, len(STORE_PAUSES) - 1)])
                refusals += 1
                engine.turn()
                continue
            refusals = 0
            due = engine.due()
            pause = IDLE if due is None else min(IDLE, max(0.0, due - engine.clock()))
            engine.turn(TURN, pause)
