"""A broker and its clients inside the process: the counterpart of MQTT for tests, simulations and attacks.

Without faults a message is delivered before :meth:`MemoryTransport.publish` returns (or, when another thread is
delivering just then, by that thread, in order), so the network works under real threads. With any fault configured
time is simulated: publishing only schedules, and :meth:`MemoryNetwork.advance` delivers what is due. The same seed
and the same calls then give the same deliveries, byte for byte.

As on MQTT 3.1.1, a client hears its own messages when it is subscribed to where it publishes.
"""

import heapq
import random
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Final

from srup.errors import TransportError
from srup.transport.base import MAX_QUEUED, Delivery, Fence, log
from srup.transport.topics import check_filter, check_topic, matches

__all__ = ["MemoryNetwork", "MemoryTransport"]

_HELD_BACK: Final = 1.0  # seconds that a reordered message waits at most, if no longer delay is configured


class _Session:
    """What the broker keeps for a client id, connected or not (MQTT 5.0, section 4.1)."""

    def __init__(self) -> None:
        self.client: MemoryTransport | None = None
        self.filters: dict[str, None] = {}
        self.backlog: deque[tuple[str, bytes]] = deque()  # arrived while nobody was connected
        self.unsettled: dict[int, tuple[str, bytes]] = {}  # delivered and not acknowledged, by serial number
        self.busy_until = 0.0  # nothing that is not reordered overtakes what is due then


class MemoryNetwork:
    """An in-memory broker whose path to each subscriber may lose, duplicate, delay and reorder.

    ``loss``, ``duplicate`` and ``reorder`` are probabilities, per message and subscriber; ``delay`` is the shortest
    and the longest way in seconds. Messages stay in order unless ``reorder`` picks one to be overtaken. ``clock`` says
    what time it is when a message is published; without one it is the time of the last :meth:`advance`.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay: tuple[float, float] = (0.0, 0.0),
        reorder: float = 0.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.log: list[tuple[str, bytes]] = []
        """Every message that reached the broker, in order, before any fault; clear it in long simulations."""
        self._random = random.Random(seed)  # noqa: S311 - must be repeatable, and guards nothing
        self.disturb(loss=loss, duplicate=duplicate, delay=delay, reorder=reorder)
        self._clock = clock
        self._now = 0.0
        self._serial = 0
        self._sessions: dict[str, _Session] = {}
        self._cut: set[str] = set()
        self._due: list[tuple[float, int, _Session, tuple[str, bytes]]] = []
        self._delivering = False
        self._lock = threading.RLock()  # never held while a callback runs

    def disturb(
        self,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay: tuple[float, float] = (0.0, 0.0),
        reorder: float = 0.0,
    ) -> None:
        """Have these faults from now on, and no others; what is under way keeps its time."""
        if not all(0.0 <= probability <= 1.0 for probability in (loss, duplicate, reorder)):
            raise ValueError("loss, duplicate and reorder are probabilities from 0 to 1")
        if not 0.0 <= delay[0] <= delay[1]:
            raise ValueError(f"delay is (shortest, longest) in seconds, not {delay}")
        self._loss = loss
        self._duplicate = duplicate
        self._delay = delay
        self._reorder = reorder
        self._immediate = not (loss or duplicate or delay[1] or reorder)

    def advance(self, now: float) -> None:
        """Deliver everything due up to ``now`` (seconds, never backwards), in the order of time, then of sending.

        What callbacks publish meanwhile is delivered too if it falls due. Called from a callback, it does nothing.
        """
        self._deliver(now)

    def next_due(self) -> float | None:
        """When the next delivery is due; None when nothing is under way."""
        with self._lock:
            return self._due[0][0] if self._due else None

    def inject(self, topic: str, payload: bytes) -> None:
        """Publish as a stranger: what an attacker does who owns the broker. Subject to the same faults as any other."""
        check_topic(topic)
        self._publish(topic, payload)
        self._settle_down()

    def cut(self, client_id: str) -> None:
        """Take a client's link away, or keep it from connecting if it has not started."""
        with self._lock:
            self._cut.add(client_id)
            client = self._session(client_id).client
        if client is not None:
            client._lost("the link was cut")

    def heal(self, client_id: str) -> None:
        """Give the link back: what is unsettled comes again, then what piled up, and the client's queue goes out."""
        with self._lock:
            self._cut.discard(client_id)
            client = self._session(client_id).client
        if client is not None:
            client._found()

    def kill(self, client_id: str) -> None:
        """Let a client's process die: it is told nothing, and what it had queued is gone; its session remains."""
        with self._lock:
            session = self._session(client_id)
            client, session.client = session.client, None
            if client is not None:
                client._die()

    # What follows is the broker as the transports see it.

    def _session(self, client_id: str) -> _Session:
        return self._sessions.setdefault(client_id, _Session())

    def _publish(self, topic: str, payload: bytes) -> None:
        """Take a message in and schedule its copies; the caller delivers."""
        with self._lock:
            self.log.append((topic, payload))
            if self._clock is not None:
                self._now = max(self._now, self._clock())
            for session in self._sessions.values():
                if any(matches(wanted, topic) for wanted in session.filters):
                    self._route(session, (topic, payload))

    def _route(self, session: _Session, message: tuple[str, bytes]) -> None:
        chance = self._random.random
        if self._loss and chance() < self._loss:
            return
        copies = 2 if self._duplicate and chance() < self._duplicate else 1
        for _ in range(copies):
            due = self._now + self._random.uniform(*self._delay)
            if self._reorder and chance() < self._reorder:
                due += self._random.uniform(0.0, max(_HELD_BACK, self._delay[1]))
            else:
                due = session.busy_until = max(due, session.busy_until)
            self._schedule(due, session, message)

    def _schedule(self, due: float, session: _Session, message: tuple[str, bytes]) -> None:
        self._serial += 1
        heapq.heappush(self._due, (due, self._serial, session, message))

    def _resume(self, session: _Session) -> None:
        """A client is back: all that it is still owed is due now, oldest first."""
        with self._lock:
            arriving = [copy for copy in sorted(self._due, key=itemgetter(0, 1)) if copy[2] is session]
            arriving = [copy for copy in arriving if copy[0] <= self._now]
            if arriving:
                self._due = [copy for copy in self._due if copy not in arriving]
                heapq.heapify(self._due)
            owed = [*session.unsettled.values(), *session.backlog, *(message for *_, message in arriving)]
            session.unsettled.clear()
            session.backlog.clear()
            for message in owed:
                self._schedule(self._now, session, message)

    def _settle_down(self) -> None:
        if self._immediate:
            self._deliver(None)

    def _deliver(self, now: float | None) -> None:
        """Deliver what is due, one thread at a time; a second thread leaves its share to the first."""
        with self._lock:
            if self._delivering:
                return
            until = self._now if now is None else now
            if until < self._now:
                raise ValueError(f"time does not run backwards, from {self._now} to {until}")
            self._delivering = True
        try:
            while (hand_over := self._next(until)) is not None:
                hand_over()
        except BaseException:
            self._delivering = False
            raise

    def _next(self, until: float) -> Callable[[], None] | None:
        """Take the next copy that is due; None, and nobody is delivering any more, when there is none."""
        with self._lock:
            while self._due and self._due[0][0] <= until:
                due, serial, session, message = heapq.heappop(self._due)
                self._now = max(self._now, due)
                client = session.client
                if client is None or not client._online:
                    if len(session.backlog) < MAX_QUEUED:
                        session.backlog.append(message)
                    continue
                session.unsettled[serial] = message
                return partial(client._hear, Delivery(*message, partial(self._settle, client, session, serial)))
            self._now = max(self._now, until)
            self._delivering = False
            return None

    def _settle(self, client: "MemoryTransport", session: _Session, serial: int) -> None:
        with self._lock:
            if client is session.client and client._online:
                session.unsettled.pop(serial, None)


class MemoryTransport:
    """A client of a :class:`MemoryNetwork`. A second one with the same id takes the session over from the first."""

    def __init__(self, network: MemoryNetwork, client_id: str, *, max_queued: int = MAX_QUEUED) -> None:
        self._network = network
        self._client_id = client_id
        self._max_queued = max_queued
        self._outbox: deque[tuple[str, bytes, Callable[[], object] | None]] = deque()
        self._fence: Fence | None = None
        self._online = False
        self._stopped = False
        with network._lock:
            self._session = network._session(client_id)

    @property
    def faults(self) -> int:
        """How often a callback raised."""
        return self._fence.faults if self._fence is not None else 0

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """Connect, unless the network is cut here; see :meth:`Transport.start`."""
        with self._network._lock:
            if self._stopped or self._fence is not None:
                raise TransportError(f"{self!r} was started before")
            self._fence = Fence(on_delivery, on_state)
            other, self._session.client = self._session.client, self
            is_cut = self._client_id in self._network._cut
        if other is not None:
            other._lost("another client with this id took the session over")
        if is_cut:
            self._fence.report(False, "the link was cut")
        else:
            self._found()

    def subscribe(self, topic_filter: str) -> None:
        """See :meth:`Transport.subscribe`."""
        check_filter(topic_filter)
        with self._network._lock:
            self._session.filters[topic_filter] = None

    def unsubscribe(self, topic_filter: str) -> None:
        """See :meth:`Transport.unsubscribe`."""
        with self._network._lock:
            self._session.filters.pop(topic_filter, None)

    def publish(
        self,
        topic: str,
        payload: bytes,
        on_settled: Callable[[], object] | None = None,
        on_refused: Callable[[TransportError], object] | None = None,
    ) -> None:
        """See :meth:`Transport.publish`; deliver at once where there are no faults. No message is too large here."""
        check_topic(topic)
        with self._network._lock:
            if self._stopped:
                raise TransportError("the transport is stopped")
            if len(self._outbox) >= self._max_queued:
                raise TransportError(f"{self._max_queued} messages are queued already")
            self._outbox.append((topic, payload, on_settled))
        self._flush()

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Transport.stop`; nothing here takes time."""
        with self._network._lock:
            if self._stopped:
                return
            self._stopped = True
            if self._session.client is self:
                self._session.client = None
        self._lost("stopped")
        if self._outbox:
            log.warning("%r stopped with %d messages unsent", self, len(self._outbox))

    def _found(self) -> None:
        with self._network._lock:
            if self._fence is None or self._online or self._stopped:
                return
        self._fence.report(True, "connected")
        with self._network._lock:
            self._online = not self._stopped
        self._network._resume(self._session)
        self._flush()

    def _lost(self, why: str) -> None:
        with self._network._lock:
            self._online = False
        if self._fence is not None and self._fence.connected:
            self._fence.report(False, why)

    def _die(self) -> None:
        self._stopped, self._online = True, False
        self._outbox.clear()

    def _flush(self) -> None:
        with self._network._lock:
            if not self._online:
                return
            sent = list(self._outbox)
            self._outbox.clear()
            for topic, payload, _ in sent:
                self._network._publish(topic, payload)
        for topic, _, on_settled in sent:
            if on_settled is not None and self._fence is not None:
                self._fence.settle(topic, on_settled)
        self._network._settle_down()

    def _hear(self, delivery: Delivery) -> None:
        if self._fence is not None:
            self._fence.deliver(delivery)

    def __repr__(self) -> str:
        return f"MemoryTransport({self._client_id!r})"
