"""A transport over MQTT, on paho-mqtt: version 5 where the broker knows it, 3.1.1 where it does not.

paho's own loop waits with ``select()``, which cannot see file descriptors above 1,023, and hands its queue and its
locks to whoever calls it. Here the thread of a :class:`Reactor` owns the connection, or thousands of them; all other
threads only append to queues and wake it. A connection has a paho client of its own (:class:`Link`), so nothing of a
dead one lives on, and the queue of unsent messages is ours, bounded and in order. A :class:`Stream` stands between
paho and the socket, spares most of the system calls, and bounds what a broker can make us keep.

What was sent and not acknowledged when a connection ends is sent again on the next one, as a new message: a receiver
may hear it twice, which QoS 1 allows. A message that the broker takes no connection for is given up, see
:class:`PacketSizes`.
"""

import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from srup.errors import MessageTooLargeError, TransportError
from srup.transport.base import MAX_QUEUED, Deliveries, Delivery, Fence, log
from srup.transport.endpoint import Endpoint, demand
from srup.transport.link import CONNECT_TIMEOUT, HAS_PAHO, Link
from srup.transport.packetsizes import Message, PacketSizes, packet_size
from srup.transport.reactor import Reactor
from srup.transport.topics import check_filter, check_topic

__all__ = ["MqttTransport"]

_SUSPICIOUS: Final = 4  # connections in a row that did not last

_NOBODY: Final = Fence(lambda _delivery: None, lambda _connected, _why: None)  # there before a transport has started
_chance: Final = secrets.SystemRandom()  # a fleet that lost its broker must not return in step


class MqttTransport:
    """A :class:`~srup.transport.Transport` to the broker at ``url``: ``mqtt://host:port`` or ``mqtts://host:port``.

    ``client_id`` names the session, which the broker keeps for ``session_expiry`` seconds after a connection (MQTT 5;
    with 3.1.1 the broker decides). Two clients with one id steal the session from each other, so nobody else may know
    it; without one a Device or a Server names its session by a secret of its own. ``mqtts`` trusts the authorities in
    ``ca_file``, or the system's; ``cert_file`` and ``key_file`` (PEM, unencrypted; the key may be in ``cert_file``) are
    the client's certificate. ``alpn`` are the protocols to offer in TLS, which tell MQTT from HTTPS on port 443. All of
    these can be replaced by ``tls``, a context of your own. ``keepalive`` is in seconds; a broker of MQTT 5 may choose
    another. After a failure the next attempt waits
    ``min_pause`` seconds, then twice as long each time up to ``max_pause``, less a random part of at most half;
    a connection that lasted ``max_pause`` seconds counts as a success. ``before_connect`` is called before each
    connection, on a thread that may block, and may renew the files, which are read again each time. ``reactor`` is the
    network thread, to be shared with other transports; without it there is one for this transport alone.
    TransportError names an argument that is wrong.
    """

    def __init__(
        self,
        url: str,
        client_id: str | None = None,
        *,
        username: str | None = None,
        password: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        alpn: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
        keepalive: int = 30,
        session_expiry: int = 86400,
        min_pause: float = 0.5,
        max_pause: float = 30.0,
        max_queued: int = MAX_QUEUED,
        before_connect: Callable[[], object] | None = None,
        reactor: Reactor | None = None,
    ) -> None:
        if not HAS_PAHO:
            raise TransportError("MQTT needs paho-mqtt: pip install 'srup[mqtt]'")
        credentials, files = (username, password), (ca_file, cert_file, key_file)
        self._endpoint = Endpoint(
            url, client_id, credentials, files, alpn, tls, keepalive, session_expiry, before_connect
        )
        demand(0 < min_pause <= max_pause, f"pauses grow from min_pause to max_pause, not {min_pause} to {max_pause}")
        demand(max_queued > 0, f"max_queued is at least 1, not {max_queued}")
        self._renewing = False  # this connection is to end, for the certificates have changed
        self._min_pause = min_pause
        self._max_pause = max_pause
        self._max_queued = max_queued

        self._reactor = Reactor("srup-mqtt") if reactor is None else reactor
        self._shared = reactor is not None
        self._turn: Callable[[], object] = lambda: None  # what else the network thread does, see lend_thread
        self._turn_due: Callable[[], float] = lambda: inf
        self._lock = threading.Lock()  # guards the next five; held for a few instructions, never in a callback
        self._outbox: deque[Message] = deque()
        self._wanted: dict[str, None] = {}
        self._unwanted: dict[str, None] = {}  # unsubscribed, and the broker has not confirmed it yet
        self._news: list[tuple[bool, str]] = []  # (wanted, filter), what the present link does not know yet
        self._started = False

        self._sizes = PacketSizes()
        self._fence = _NOBODY
        self._on_deliveries: Callable[[Delivery | Deliveries], None] | None = None
        self._stopping = False
        self._deadline = inf  # of stopping, on the monotonic clock
        self._awake = False  # the network thread will look at the queues

        self._link: Link | None = None  # none in the pauses between connections
        self._connecting = False  # the link is in the hands of a connector thread
        self._failures = 0
        self._resume_at = 0.0  # when the pause ends

    @property
    def faults(self) -> int:
        """How often a callback, or the network thread itself, raised; each was logged and the link went on."""
        return self._fence.faults

    @property
    def client_id(self) -> str | None:
        """What names the session at the broker; None if whoever uses the transport is to say so before it starts."""
        return self._endpoint.client_id

    @client_id.setter
    def client_id(self, client_id: str) -> None:
        demand(not self._started, f"{self!r} was started before")
        self._endpoint.name_client(client_id)

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """See :meth:`Transport.start`."""
        demand(
            self._endpoint.client_id is not None, f"{self!r} has no client_id, which names its session at the broker"
        )
        with self._lock:
            if self._started or self._stopping:
                raise TransportError(f"{self!r} was started before")
            self._started = True
        between = on_delivery != self._on_deliveries  # somebody has put another one there
        self._fence = Fence(on_delivery, on_state, None if between else self._on_deliveries)
        log.info("connecting to %s as %s", self._endpoint.where, self._endpoint.shown_id)
        self._reactor.enter(self)

    def hear_together(self, on_deliveries: Callable[[Delivery | Deliveries], None]) -> None:
        """Before the start: say that this ``on_delivery`` takes what comes together, instead of one by one, too.

        Any other one that :meth:`start` is given, since somebody has put it in between, still gets each by itself.
        """
        self._on_deliveries = on_deliveries

    def subscribe(self, topic_filter: str) -> None:
        """See :meth:`Transport.subscribe`."""
        check_filter(topic_filter)
        with self._lock:
            if topic_filter in self._wanted:
                return
            self._wanted[topic_filter] = None
            self._unwanted.pop(topic_filter, None)
            self._news.append((True, topic_filter))
        self._wake()

    def unsubscribe(self, topic_filter: str) -> None:
        """See :meth:`Transport.unsubscribe`."""
        with self._lock:
            if topic_filter not in self._wanted:
                return
            del self._wanted[topic_filter]
            self._unwanted[topic_filter] = None
            self._news.append((False, topic_filter))
        self._wake()

    def publish(
        self,
        topic: str,
        payload: bytes,
        on_settled: Callable[[], object] | None = None,
        on_refused: Callable[[TransportError], object] | None = None,
    ) -> None:
        """See :meth:`Transport.publish`."""
        check_topic(topic)
        message = Message(topic, payload, on_settled, on_refused, packet_size(topic, payload))
        if message.size > self._sizes.largest_allowed:
            raise self._sizes.too_large(message, self._endpoint.where)
        with self._lock:
            demand(not self._stopping, "the transport is stopped")
            demand(len(self._outbox) < self._max_queued, f"{self._max_queued} messages are queued already")
            self._outbox.append(message)
        self._wake()

    def lend_thread(self, turn: Callable[[], object], due: Callable[[], float]) -> bool:
        """Have the network thread call ``turn`` when something has arrived, after :meth:`wake`, and when it is ``due``.

        What it publishes and settles goes out at once. ``due`` is asked afterwards, and answers on the monotonic clock.
        False, and nothing happens, where other transports share the thread, whom a turn would keep waiting.
        """
        if self._shared:
            return False
        self._turn, self._turn_due = turn, due
        self._wake()
        return True

    def flush(self) -> None:
        """Send at once what was published and settled, as far as it can be sent; in a turn (:meth:`lend_thread`)."""
        link = None if self._connecting else self._link
        if link is not None and link.accepted and link.ended is None:
            self._exchange(link)
            link.flush()

    def wake(self) -> None:
        """Have the network thread look what there is to do. On any thread."""
        self._wake()

    def reload(self) -> bool:
        """Connect anew if ``ca_file``, ``cert_file`` or ``key_file`` has changed; return whether it has. On any thread.

        What waits to be sent is sent on the next connection. TransportError says what is wrong with the new files: then
        this connection goes on.
        """
        if not self._endpoint.tls_changed():
            return False
        self._renewing = True
        self._wake()
        return True

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Transport.stop`; an attempt to connect that is under way may take some seconds longer."""
        patience = self.halt(timeout)
        if self._started:
            self._reactor.wait(self, patience)

    def __repr__(self) -> str:
        return f"MqttTransport({self._endpoint.where!r}, {self._endpoint.shown_id})"

    def _wake(self) -> None:
        if self._started and not self._awake:
            self._awake = True
            self._reactor.wake(self)

    # What the reactor asks for (see Member). The network thread runs everything from here on but _connect.

    def halt(self, timeout: float) -> float:
        """Begin to stop; a connector may have to finish what it does."""
        with self._lock:
            if not self._stopping:
                self._deadline = time.monotonic() + timeout
                self._resume_at = 0.0  # what waits is tried once more, now
                self._stopping = True
        self._wake()
        return timeout + 2 * CONNECT_TIMEOUT

    def attend(self, ready: int, now: float) -> float | None:
        """Take the next steps from pause to connection to farewell."""
        connecting = self._connecting  # the connector may end at any moment: one look decides
        link = None if connecting else self._link
        if link is None or link.ended is not None:
            self._awake = True
            self._take_turn()
            due = self._fall_asleep()
        if connecting:
            return due if self._connecting else now  # its wake was lost if it came before we fell asleep
        if link is None:
            if self._finished(now):
                self._say_it_is_over()
                return None
            if now < self._resume_at:
                return min(self._resume_at, self._deadline, due)
            self._begin()
            return due
        if link.ended is None:
            self._awake = True  # what callbacks leave here is looked at below
            link.move(ready)
            link.check_time(now)
            self._take_turn()
            if link.accepted and link.ended is None:
                self._exchange(link)
            link.flush()
            due = self._fall_asleep(link)
            if link.ended is None and not self._renewing and not self._finished(now, link):
                link.watch()
                return now if link.goes_on else min(link.due, self._deadline, due)
            link.take_leave(now, "connecting anew: the certificates have changed" if self._renewing else "stopped")
        if not link.is_gone(now):
            return min(link.due, due)
        self._link = None
        self._rest(link, now)
        return now

    def _take_turn(self) -> None:
        """Let whoever borrows the thread take a turn."""
        try:
            self._turn()
        except Exception:  # noqa: BLE001 - whatever happens in it, the link stays up
            self._fence.fault("a turn raised")

    def _fall_asleep(self, link: Link | None = None) -> float:
        """Have whoever leaves something wake us from now on; return when there is something to do even so."""
        self._awake = False  # before looking at the queues: no call gets lost
        works = link is not None and link.accepted and link.ended is None
        if link is not None and works and (self._news or link.unsettled.waits or (self._outbox and link.may_publish)):
            return 0.0
        return self._turn_due()

    def recover(self, now: float) -> float:
        """Give the connection up after whatever paho or a hostile broker threw (T8)."""
        self._fault(self._link)
        return now

    def _fault(self, link: Link | None) -> None:
        self._fence.fault("the connection to %s failed unexpectedly", self._endpoint.where)
        if link is not None:
            link.end("internal error")

    def _begin(self) -> None:
        """Have a connector make the next connection."""
        self._renewing = False  # it reads the files as they are then
        self._link = link = self._make_link()
        self._connecting = True
        self._reactor.employ(partial(self._connect, link))

    def _make_link(self) -> Link:
        return Link(self._endpoint, self._sizes, self._wanted, self._fence, self._reactor, self, self._wake)

    def _connect(self, link: Link) -> None:
        """Do what blocks, on a connector thread."""
        try:
            if self._finished(time.monotonic()):
                link.end("stopped")
            else:
                link.connect()
        except Exception:  # noqa: BLE001 - as in recover
            self._fault(link)
        self._connecting = False
        self._wake()

    def _say_it_is_over(self) -> None:
        self._fence.report(False, "stopped")
        if self._outbox:
            log.warning("%r stopped with %d messages unsent", self, len(self._outbox))

    def _exchange(self, link: Link) -> None:
        """Hand the link what other threads left for it, as far as it takes it."""
        if not link.greeted:
            link.greeted = True
            with self._lock:
                wanted, unwanted = list(self._wanted), list(self._unwanted)
                self._news.clear()
            # All of them, session or not: a broker that came back from an older state has the session, not the filter.
            link.subscribe(wanted)
            link.unsubscribe(unwanted)
        if self._news:
            with self._lock:
                news, self._news = self._news, []
            for wanted_now, topic_filter in news:
                if wanted_now:
                    link.subscribe([topic_filter])
                else:
                    link.unsubscribe([topic_filter])
        if link.unsettled.waits:
            link.acknowledge()
        while self._outbox and link.may_publish:
            message = self._outbox.popleft()
            if message.size > self._sizes.largest_allowed:
                self._refuse(message, self._sizes.too_large(message, self._endpoint.where))
            else:
                link.publish(message)
        if link.changed:
            link.changed = False
            self._heed_subscriptions(link)

    def _heed_subscriptions(self, link: Link) -> None:
        """Take note of what the broker has said about subscriptions, and report whether they stand."""
        for topic_filter in link.forgotten():
            with self._lock:
                self._unwanted.pop(topic_filter, None)
        if link.ended is None and link.complaint:
            self._fence.report(False, link.complaint)
        elif link.ended is None and link.hears:
            self._fence.report(True, f"connected to {self._endpoint.where} with MQTT {link.dialect}")

    def _refuse(self, message: Message, error: MessageTooLargeError) -> None:
        """Give a message up."""
        if message.on_refused is None:
            log.error("a message is given up: %s", error, extra={"topic": message.topic})
        else:
            self._fence.settle(message.topic, partial(message.on_refused, error))

    def _blame(self, link: Link) -> None:
        """Give a message up that one connection after the other ends of, so that the others get through."""
        if not (link.accepted and link.in_flight and (link.cut or link.too_large)) or self._failures < 2:
            return
        message = self._sizes.culprit(link.in_flight.values(), said_so=link.too_large)
        if message is not None:
            self._failures = 0
            link.in_flight.clear()
            self._refuse(message, self._sizes.too_large(message, self._endpoint.where))

    def _suspicion(self) -> str:
        """MQTT 3.1.1 and some brokers of version 5 let a session be stolen without telling the victim."""
        if (suspect := self._sizes.suspect) is not None:
            return f" as a message of {suspect.size} bytes was sent, which may be too large for the broker"
        return f" soon after it was made; another client may use the id {self._endpoint.shown_id}"

    def _rest(self, link: Link, now: float) -> None:
        """Report why the link is over; decide when the next one is made, and which version it speaks."""
        was_5 = self._endpoint.is_5
        if link.version_refused or link.ignored:
            self._endpoint.is_5 = not was_5
        if link.version_refused and was_5:
            self._resume_at = now
            return
        self._failures = self._failures + 1
        if link.lasted(self._max_pause):
            self._failures = 0
            self._sizes.forget_hang_ups()
        self._blame(link)
        with self._lock:  # what is left unacknowledged comes first, in order
            self._outbox.extendleft(reversed(link.in_flight.values()))
        doubtful = self._failures >= _SUSPICIOUS and link.accepted and link.cut and not self._stopping
        doublings = min(max(self._failures - 1, 0), 32)
        longest = self._max_pause if link.taken_over else min(self._max_pause, self._min_pause * 2.0**doublings)
        self._resume_at = now + longest * _chance.uniform(0.5, 1.0)
        # Last: whoever hears it may stop the transport, and that ends the pause.
        self._fence.report(False, f"{link.ended}{self._suspicion() if doubtful else ''}")

    def _finished(self, now: float, link: Link | None = None) -> bool:
        """Whether it may end: it was told to, and has nothing left to send or no time left to send it."""
        if not self._stopping:
            return False
        idle = not self._outbox and (link is None or not (link.in_flight or link.wants_write or link.unsettled.waits))
        return idle or now >= self._deadline
