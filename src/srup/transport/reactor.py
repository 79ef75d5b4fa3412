"""One network thread for any number of connections.

The thread waits for all their sockets at once, with :mod:`selectors`, and attends to each connection that has something
to do: bytes that came, room to write, a wake from another thread, a time that is up. What may block, which is to find
and reach a host and to agree on TLS, is done by a few connector threads. They live only as long as there is such work,
and the network thread only as long as the reactor has members, so there is nothing to open or to close.
"""

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final, Protocol

from srup.transport.alarms import Alarms

__all__ = ["Member", "Reactor"]

_CONNECTORS: Final = 16


class Member(Protocol):
    """What a reactor drives: one connection. The methods are called by the network thread only."""

    def attend(self, ready: int, now: float) -> float | None:
        """Do what there is to do, without blocking; ``ready`` are the events of :mod:`selectors` that came.

        Return when to be called again even if nothing happens, on the monotonic clock like ``now``; None to leave.
        """

    def recover(self, now: float) -> float | None:
        """Do and return the same after :meth:`attend` has raised; the exception is being handled."""

    def halt(self, timeout: float) -> float:
        """Begin to stop and return at once, with the seconds that it may take to leave. Called from any thread."""


class Reactor:
    """A network thread that :class:`MqttTransport` objects share: ``MqttTransport(url, client_id, reactor=reactor)``.

    The callbacks of all of them run on this one thread. What one of them raises, and what its broker does, is its own
    affair (T8). At most ``connectors`` of them connect at the same time. Every public method may be called
    from any thread.
    """

    def __init__(self, name: str = "srup-network", *, connectors: int = _CONNECTORS) -> None:
        if connectors < 1:
            raise ValueError(f"connectors is at least 1, not {connectors}")
        self._name = name
        self._most_connectors = connectors
        self._changed = threading.Condition()  # guards the next four; notified when a member has left
        self._members: dict[Member, None] = {}
        self._thread: threading.Thread | None = None
        self._jobs: deque[Callable[[], None]] = deque()
        self._connectors = 0
        self._woken: deque[Member] = deque()
        self._awake = False
        self._waker: socket.socket | None = None  # a byte into it ends the thread's wait
        self._selector: selectors.BaseSelector = selectors.SelectSelector()  # until there is a thread
        self._alarms: Alarms[Member] = Alarms()

    def __len__(self) -> int:
        """How many transports it drives now: those that have been started and have not ended."""
        return len(self._members)

    def stop(self, timeout: float = 5.0) -> None:
        """Stop all members at the same time, as :meth:`Transport.stop` does with one."""
        with self._changed:
            members = list(self._members)
        now = time.monotonic()
        deadlines = [now + member.halt(timeout) for member in members]
        for member, deadline in zip(members, deadlines, strict=True):
            self.wait(member, max(0.0, deadline - time.monotonic()))

    # For members, from any thread.

    def enter(self, member: Member) -> None:
        """Attend to a member from now on, until it leaves."""
        with self._changed:
            self._members[member] = None
            if self._thread is None:
                self._open()
        self.wake(member)

    def wake(self, member: Member) -> None:
        """Have a member attended to soon; nothing happens if it is none."""
        self._woken.append(member)
        if self._awake or self._waker is None:
            return
        self._awake = True
        with suppress(OSError):  # full: it is awake already; closed: it has ended
            self._waker.send(b"\0")

    def wait(self, member: Member, timeout: float) -> None:
        """Wait until a member has left, and the thread with the last one. On the network thread it does nothing."""
        thread = self._thread
        if thread is threading.current_thread():
            return
        with self._changed:
            self._changed.wait_for(lambda: member not in self._members, timeout)
            over = self._thread is not thread
        if over and thread is not None:
            thread.join(timeout)

    # For members, from the network thread.

    def watch(self, descriptor: int, events: int, member: Member) -> None:
        """Attend to a member when its socket is ready; called again, with other events instead."""
        if descriptor in self._selector.get_map():
            self._selector.modify(descriptor, events, member)
        else:
            self._selector.register(descriptor, events, member)

    def forget(self, descriptor: int) -> None:
        """Stop watching. It may have been closed already, not in use again by another member."""
        self._selector.unregister(descriptor)

    def employ(self, job: Callable[[], None]) -> None:
        """Have a connector do what may block. The job must not raise."""
        with self._changed:
            self._jobs.append(job)
            if self._connectors == self._most_connectors:
                return
            self._connectors += 1
        # A daemon: name resolution cannot be interrupted, and must not keep a program from ending.
        threading.Thread(target=self._connect, name=f"{self._name}-connector", daemon=True).start()

    def _connect(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._connectors -= 1
                    return
                job = self._jobs.popleft()
            job()

    # The network thread.

    def _open(self) -> None:
        sleeper, self._waker = socket.socketpair()
        sleeper.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sleeper, selectors.EVENT_READ)
        self._awake = False
        self._thread = threading.Thread(
            target=self._run, args=(self._selector, sleeper, self._waker), name=self._name, daemon=True
        )
        self._thread.start()

    def _run(self, selector: selectors.BaseSelector, sleeper: socket.socket, waker: socket.socket) -> None:
        with selector, sleeper, waker:
            todo = self._due({})
            while True:
                for member, ready in todo.items():
                    self._attend(member, ready)
                with self._changed:
                    if not self._members:
                        self._thread = None
                        return
                todo = {}
                for key, ready in selector.select(self._patience()):
                    if key.data is None:
                        sleeper.recv(4096)
                        self._awake = False  # after reading, before looking: no wake gets lost
                    else:
                        todo[key.data] = ready
                todo = self._due(todo)

    def _due(self, todo: dict[Member, int]) -> dict[Member, int]:
        """Add who was woken and whose time is up."""
        while self._woken:
            todo.setdefault(self._woken.popleft(), 0)
        for member in self._alarms.due(time.monotonic()):
            todo.setdefault(member, 0)
        return todo

    def _patience(self) -> float | None:
        until = self._alarms.next()
        return None if until == inf else max(0.0, until - time.monotonic())

    def _attend(self, member: Member, ready: int) -> None:
        if member not in self._members:
            return
        now = time.monotonic()
        try:
            when = member.attend(ready, now)
        except Exception:  # noqa: BLE001 - the thread outlives whatever a member or a hostile broker does (T8)
            when = member.recover(now)
        if when is None:
            with self._changed:
                del self._members[member]
                self._changed.notify_all()
        else:
            self._alarms.set(member, when)
