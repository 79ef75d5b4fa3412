"""A transport over MQTT, on paho-mqtt: version 5 where the broker knows it, 3.1.1 where it does not.

paho's own loop waits with ``select()``, which cannot see file descriptors above 1,023, and hands its queue and its
locks to whoever calls it. Here the thread of a :class:`Reactor` owns the connection, or thousands of them; all other
threads only append to queues and wake it. A connection has a paho client of its own (:class:`_Link`), so nothing of a
dead one lives on, and the queue of unsent messages is ours, bounded and in order. A :class:`Stream` stands between
paho and the socket, spares most of the system calls, and bounds what a broker can make us keep.

What was sent and not acknowledged when a connection ends is sent again on the next one, as a new message: a receiver
may hear it twice, which QoS 1 allows. A message that the broker takes no connection for is given up, see
:meth:`MqttTransport._blame`.
"""

from __future__ import annotations  # they name classes of paho, which may be missing

import os
import re
import secrets
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from srup.certificates import explain
from srup.errors import MessageTooLargeError, TransportError
from srup.transport import unsettled
from srup.transport.base import MAX_QUEUED, Deliveries, Delivery, Fence, log
from srup.transport.reactor import Reactor
from srup.transport.stream import Stream
from srup.transport.tlsfiles import TlsFiles
from srup.transport.topics import check_filter, check_topic
from srup.transport.unsettled import Unsettled

try:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
    from paho.mqtt.subscribeoptions import SubscribeOptions
except ModuleNotFoundError as _missing:
    if _missing.name is None or _missing.name.partition(".")[0] != "paho":
        raise
    _HAS_PAHO = False  # told by the constructor, so that whoever does not use MQTT can import everything
else:
    _HAS_PAHO = True

    class _Client(paho.Client):
        """A paho client whose socket is a :class:`Stream`. The method is paho's; a test says if that has changed."""

        def _create_socket(self) -> Any:
            is_5 = self.protocol == MQTTProtocolVersion.MQTTv5
            return Stream(super()._create_socket(), is_5, _MAX_PACKET)  # type: ignore[arg-type]


__all__ = ["MqttTransport", "parse_url"]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_HOST: Final = re.compile(r"[\w.-]+")
_CONNECT_TIMEOUT: Final = 5.0  # seconds for TCP and again for the TLS handshake
_ANSWER_TIMEOUT: Final = 10.0  # seconds until the broker has answered our CONNECT
_FAREWELL_TIMEOUT: Final = 1.0  # seconds until the broker has closed the connection after our DISCONNECT
_TICK: Final = 1.0  # seconds; paho's keep-alive needs to be looked after, the longer it is the more seldom
_SHOWN: Final = 8  # characters of a client id that others may see
_NEVER: Final = 65_535  # seconds: the longest keep-alive, for a broker that wants none
_IN_FLIGHT: Final = 20  # messages sent and not acknowledged; more than this is slower
_MAX_PACKET: Final = 131_072  # bytes; the longest message is half as long, the rest is for topic and properties
_FILTERS_PER_PACKET: Final = 8  # AWS IoT Core takes no more
_UNSENT: Final = 65_536  # bytes that wait to be sent; no more messages join them
_MAX_UNSENT: Final = 4_194_304  # answers to the broker join them; one that takes none of so many is given up
_LONGEST: Final = 268_435_460  # bytes of a packet (MQTT 5.0, section 2.1.4)
_SUSPICIOUS: Final = 4  # connections in a row that did not last
_STRIKES: Final = 3  # connections in a row that ended of one and the same message, which is given up then
_REFUSED_PAUSE: Final = 30.0  # seconds until a subscription is tried again that the broker has refused
_FAILURES: Final = 0x80  # reason codes from this one on: MQTT 5.0, section 2.4
_UNSUPPORTED_VERSION: Final = 0x84
_KEEP_ALIVE_TIMEOUT: Final = 0x8D
_TAKEN_OVER: Final = 0x8E
_TOO_LARGE: Final = 0x95

_NOBODY: Final = Fence(lambda _delivery: None, lambda _connected, _why: None)  # there before a transport has started
_chance: Final = secrets.SystemRandom()  # a fleet that lost its broker must not return in step


class _Message(NamedTuple):
    topic: str
    payload: bytes
    on_settled: Callable[[], object] | None
    on_refused: Callable[[TransportError], object] | None
    size: int  # of its packet


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
        if not _HAS_PAHO:
            raise TransportError("MQTT needs paho-mqtt: pip install 'srup[mqtt]'")
        scheme, self._host, self._port = parse_url(url)
        if client_id is not None:
            _check_client_id(client_id)
        _require(password is None or username is not None, "a password needs a username")
        _require(0 < keepalive < 1 << 16, f"keepalive is 1 to 65535 seconds, not {keepalive}")
        _require(0 <= session_expiry < 1 << 32, f"session_expiry is 0 to 2**32-1 seconds, not {session_expiry}")
        _require(0 < min_pause <= max_pause, f"pauses grow from min_pause to max_pause, not {min_pause} to {max_pause}")
        _require(max_queued > 0, f"max_queued is at least 1, not {max_queued}")
        of_tls = ca_file or cert_file or key_file or alpn
        _require(not (tls and of_tls), "tls takes the place of ca_file, cert_file, key_file and alpn")
        if scheme != "mqtts":
            _require(not (tls or of_tls), "tls, ca_file, cert_file, key_file and alpn need an mqtts:// url")
        self._tls_files = TlsFiles(ca_file, cert_file, key_file, alpn) if scheme == "mqtts" and tls is None else None
        self._tls = tls if self._tls_files is None else self._tls_files.context()
        self._renewing = False  # this connection is to end, for the files have changed
        self._client_id = client_id
        self._credentials = (username, password)
        self._keepalive = keepalive
        self._session_expiry = session_expiry
        self._min_pause = min_pause
        self._max_pause = max_pause
        self._max_queued = max_queued
        self._before_connect = before_connect

        self._reactor = Reactor("srup-mqtt") if reactor is None else reactor
        self._shared = reactor is not None
        self._turn: Callable[[], object] = lambda: None  # what else the network thread does, see lend_thread
        self._turn_due: Callable[[], float] = lambda: inf
        self._lock = threading.Lock()  # guards the next five; held for a few instructions, never in a callback
        self._outbox: deque[_Message] = deque()
        self._wanted: dict[str, None] = {}
        self._unwanted: dict[str, None] = {}  # unsubscribed, and the broker has not confirmed it yet
        self._news: list[tuple[bool, str]] = []  # (wanted, filter), what the present link does not know yet
        self._started = False

        self._version = MQTTProtocolVersion.MQTTv5
        self._fence = _NOBODY
        self._on_deliveries: Callable[[Delivery | Deliveries], None] | None = None
        self._stopping = False
        self._deadline = inf  # of stopping, on the monotonic clock
        self._awake = False  # the network thread will look at the queues

        self._link: _Link | None = None  # none in the pauses between connections
        self._connecting = False  # the link is in the hands of a connector thread
        self._failures = 0
        self._resume_at = 0.0  # when the pause ends

        self._announced: float = _LONGEST  # bytes of a packet that the broker takes, as far as it has said
        self._hung_up_on = inf  # bytes of the smallest packet that it hangs up on, as far as we have found out
        self._largest_allowed: float = _LONGEST  # bytes of a packet that is worth sending
        self._one_by_one = 0  # so many messages are sent one at a time, for one of them may end the connection
        self._suspect: _Message | None = None  # which one connections have ended of
        self._strikes = 0  # and how many of them
        self._largest = 0  # bytes of the largest packet that the broker has taken

    @property
    def faults(self) -> int:
        """How often a callback, or the network thread itself, raised; each was logged and the link went on."""
        return self._fence.faults

    @property
    def client_id(self) -> str | None:
        """What names the session at the broker; None if whoever uses the transport is to say so before it starts."""
        return self._client_id

    @client_id.setter
    def client_id(self, client_id: str) -> None:
        _check_client_id(client_id)
        _require(not self._started, f"{self!r} was started before")
        self._client_id = client_id

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """See :meth:`Transport.start`."""
        _require(self._client_id is not None, f"{self!r} has no client_id, which names its session at the broker")
        with self._lock:
            if self._started or self._stopping:
                raise TransportError(f"{self!r} was started before")
            self._started = True
        between = on_delivery != self._on_deliveries  # somebody has put another one there
        self._fence = Fence(on_delivery, on_state, None if between else self._on_deliveries)
        log.info("connecting to %s as %s", self._where(), self._shown_id())
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
        message = _Message(topic, payload, on_settled, on_refused, _packet_size(topic, payload))
        if message.size > self._largest_allowed:
            raise self._too_large(message)
        with self._lock:
            _require(not self._stopping, "the transport is stopped")
            _require(len(self._outbox) < self._max_queued, f"{self._max_queued} messages are queued already")
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
        if self._tls_files is None or not self._tls_files.changed:
            return False
        self._tls_files.context()
        self._renewing = True
        self._wake()
        return True

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Transport.stop`; an attempt to connect that is under way may take some seconds longer."""
        patience = self.halt(timeout)
        if self._started:
            self._reactor.wait(self, patience)

    def __repr__(self) -> str:
        return f"MqttTransport({self._where()!r}, {self._shown_id()})"

    def _shown_id(self) -> str:
        """The client id for logs and ``/readyz``, where it must not be read: whoever knows it can take the session."""
        client_id = self._client_id or ""
        return ascii(client_id if len(client_id) <= _SHOWN else f"{client_id[:_SHOWN]}...")

    def _where(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'mqtts' if self._tls else 'mqtt'}://{host}:{self._port}"

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
        return timeout + 2 * _CONNECT_TIMEOUT

    def attend(self, ready: int, now: float) -> float | None:
        """Take the next steps from pause to connection to farewell."""
        link = None if self._connecting else self._link
        if link is None or link.ended is not None:
            self._awake = True
            self._take_turn()
            due = self._fall_asleep()
        if self._connecting:
            return due
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

    def _fall_asleep(self, link: _Link | None = None) -> float:
        """Have whoever leaves something wake us from now on; return when there is something to do even so."""
        self._awake = False  # before looking at the queues: no call gets lost
        works = link is not None and link.accepted and link.ended is None
        if link is not None and works and (self._news or link.unsettled.waits or (self._outbox and link.has_room)):
            return 0.0
        return self._turn_due()

    def recover(self, now: float) -> float:
        """Give the connection up after whatever paho or a hostile broker threw (T8)."""
        self._fault(self._link)
        return now

    def _fault(self, link: _Link | None) -> None:
        self._fence.fault("the connection to %s failed unexpectedly", self._where())
        if link is not None:
            link.end("internal error")

    def _begin(self) -> None:
        """Have a connector make the next connection."""
        self._renewing = False  # it reads the files as they are then
        self._link = link = _Link(self)
        self._connecting = True
        self._reactor.employ(partial(self._connect, link))

    def _connect(self, link: _Link) -> None:
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

    def _exchange(self, link: _Link) -> None:
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
        while self._outbox and link.has_room:
            message = self._outbox.popleft()
            if message.size > self._largest_allowed:
                self._refuse(message, self._too_large(message))
            else:
                link.publish(message)
        if link.changed:
            link.changed = False
            self._heed_subscriptions(link)

    def _heed_subscriptions(self, link: _Link) -> None:
        """Take note of what the broker has said about subscriptions, and report whether they stand."""
        for topic_filter in link.forgotten():
            with self._lock:
                self._unwanted.pop(topic_filter, None)
        if link.ended is None and link.complaint:
            self._fence.report(False, link.complaint)
        elif link.ended is None and link.hears:
            self._fence.report(True, f"connected to {self._where()} with MQTT {link.dialect}")

    def _allow(self, *, announced: float | None = None, hung_up_on: float | None = None) -> None:
        """Take note of what is known about the sizes that the broker takes."""
        self._announced = self._announced if announced is None else announced
        self._hung_up_on = self._hung_up_on if hung_up_on is None else hung_up_on
        self._largest_allowed = min(self._announced, self._hung_up_on - 1)

    def _too_large(self, message: _Message) -> MessageTooLargeError:
        """Return why a message cannot be sent."""
        if message.size > self._announced:
            why = f"takes packets of at most {self._announced} bytes"
        else:
            why = f"ends the connection when it gets a message of {self._hung_up_on} bytes, and may take none so large"
        return MessageTooLargeError(f"{self._where()} {why}; a message on {message.topic!a} needs {message.size}")

    def _refuse(self, message: _Message, error: MessageTooLargeError) -> None:
        """Give a message up."""
        if message.on_refused is None:
            log.error("a message is given up: %s", error, extra={"topic": message.topic})
        else:
            self._fence.settle(message.topic, partial(message.on_refused, error))

    def _settled(self, message: _Message) -> None:
        """The broker has taken a message."""
        self._largest = max(self._largest, message.size)
        self._one_by_one = max(0, self._one_by_one - 1)
        if message is self._suspect:
            self._suspect = None
        if message.on_settled is not None:
            self._fence.settle(message.topic, message.on_settled)

    def _blame(self, link: _Link) -> None:
        """Give a message up that one connection after the other ends of, so that the others get through.

        In MQTT 3.1.1 a broker that does not take a message, because it is too large, can only hang up. So from the
        second connection that does not last, what was in flight is sent one by one, and a message that alone was in
        flight is suspected. None of a size that the broker has taken before is, for then something else is wrong. Nor
        is any other message of that size tried until a connection has lasted.
        """
        if not (link.accepted and link.in_flight and (link.cut or link.too_large)) or self._failures < 2:
            return
        mid, message = next(iter(link.in_flight.items()))
        if len(link.in_flight) > 1 or not self._one_by_one:
            self._one_by_one = len(link.in_flight)
            return
        if message.size <= self._largest:
            return
        self._strikes = self._strikes + 1 if message is self._suspect else 1
        self._suspect = message
        if self._strikes == _STRIKES or link.too_large:
            self._suspect, self._one_by_one, self._failures = None, 0, 0
            self._allow(hung_up_on=message.size)
            self._refuse(link.in_flight.pop(mid), self._too_large(message))

    def _suspicion(self) -> str:
        """MQTT 3.1.1 and some brokers of version 5 let a session be stolen without telling the victim."""
        if self._suspect is not None:
            return f" as a message of {self._suspect.size} bytes was sent, which may be too large for the broker"
        return f" soon after it was made; another client may use the id {self._shown_id()}"

    def _rest(self, link: _Link, now: float) -> None:
        """Report why the link is over; decide when the next one is made, and which version it speaks."""
        was_5 = self._version == MQTTProtocolVersion.MQTTv5
        if link.version_refused or link.ignored:
            self._version = MQTTProtocolVersion.MQTTv311 if was_5 else MQTTProtocolVersion.MQTTv5
        if link.version_refused and was_5:
            self._resume_at = now
            return
        self._failures = self._failures + 1
        if link.lasted(self._max_pause):
            self._failures = 0
            self._allow(hung_up_on=inf)  # the broker may have been set up in another way
        self._blame(link)
        with self._lock:  # what is left unacknowledged comes first, in order
            self._outbox.extendleft(reversed(link.in_flight.values()))
        doubtful = self._failures >= _SUSPICIOUS and link.accepted and link.cut and not self._stopping
        doublings = min(max(self._failures - 1, 0), 32)
        longest = self._max_pause if link.taken_over else min(self._max_pause, self._min_pause * 2.0**doublings)
        self._resume_at = now + longest * _chance.uniform(0.5, 1.0)
        # Last: whoever hears it may stop the transport, and that ends the pause.
        self._fence.report(False, f"{link.ended}{self._suspicion() if doubtful else ''}")

    def _finished(self, now: float, link: _Link | None = None) -> bool:
        """Whether it may end: it was told to, and has nothing left to send or no time left to send it."""
        if not self._stopping:
            return False
        idle = not self._outbox and (link is None or not (link.in_flight or link.wants_write or link.unsettled.waits))
        return idle or now >= self._deadline


class _Link:
    """One connection with its paho client, used by one thread at a time and thrown away when it ends.

    A connector runs :meth:`connect`, and the network thread everything after that. paho calls back from within
    :meth:`move`; the callbacks note what happened, and the network thread acts on it.
    """

    __slots__ = (
        "_answered",
        "_client",
        "_descriptor",
        "_fence",
        "_forgotten",
        "_full",
        "_is_5",
        "_keepalive",
        "_line",
        "_owner",
        "_reached",
        "_refused",
        "_resumed",
        "_stream",
        "_subscribe_at",
        "_subscribing",
        "_unsubscribing",
        "_watched",
        "_window",
        "accepted",
        "changed",
        "cut",
        "due",
        "ended",
        "greeted",
        "in_flight",
        "taken_over",
        "too_large",
        "unsettled",
        "version_refused",
    )

    def __init__(self, owner: MqttTransport) -> None:
        self.ended: str | None = None  # why; None while it lasts
        self.due = 0.0  # when to look after it again, on the monotonic clock
        self.accepted = False
        self.greeted = False
        self.version_refused = False
        self.taken_over = False
        self.too_large = False  # the broker has said that a packet of ours was
        self.cut = False  # it has ended without a word
        self.in_flight: dict[int, _Message] = {}  # sent and not acknowledged, by packet id, in order
        self.changed = True  # the broker has said something about subscriptions, or we have asked for some
        self.unsettled = Unsettled(owner._fence, owner._wake)
        self._owner = owner
        self._fence = owner._fence
        self._stream: Stream | None = None  # none before it is connected
        self._full = False  # the stream has more for us, which had to wait
        self._line: socket.socket | None = None  # from our DISCONNECT until the broker has hung up
        self._descriptor = -1  # what the reactor watches, and for which events
        self._watched = 0
        self._resumed = False
        self._answered = False
        self._window = _IN_FLIGHT
        self._keepalive = owner._keepalive
        self._reached = 0.0  # when the broker's host was, on the monotonic clock
        self._refused: dict[str, str] = {}  # subscriptions that the broker has refused, and why
        self._subscribe_at = inf  # when they are tried again
        self._subscribing: dict[int, list[str]] = {}
        self._unsubscribing: dict[int, list[str]] = {}
        self._forgotten: list[str] = []
        self._is_5 = owner._version == MQTTProtocolVersion.MQTTv5
        self._client = client = _Client(
            CallbackAPIVersion.VERSION2,
            owner._client_id,
            clean_session=None if self._is_5 else False,
            userdata=self,
            protocol=owner._version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT_TIMEOUT
        client.on_connect = _on_connect
        client.on_disconnect = _on_disconnect
        client.on_subscribe = _on_subscribe
        client.on_unsubscribe = _on_unsubscribe
        if owner._credentials[0] is not None:
            client.username_pw_set(*owner._credentials)

    @property
    def dialect(self) -> str:
        """The version of MQTT it speaks."""
        return "5" if self._is_5 else "3.1.1"

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return self._client.want_write() or (self._stream is not None and self._stream.unsent > 0)

    @property
    def has_room(self) -> bool:
        """Whether one more message may be sent now."""
        clogged = self._client.want_write() or (self._stream is not None and self._stream.unsent > _UNSENT)
        window = 1 if self._owner._one_by_one else self._window
        return self.ended is None and len(self.in_flight) < window and not clogged

    @property
    def hears(self) -> bool:
        """Whether the subscriptions stand: the session had them, or the broker has answered every one."""
        return not self._refused and (self._resumed or not self._subscribing)

    @property
    def complaint(self) -> str:
        """Which subscription the broker refuses; empty if none, or while it has not answered all of them."""
        if self._subscribing or not self._refused:
            return ""
        topic_filter, reason = next(iter(self._refused.items()))
        others = f" and {len(self._refused) - 1} more" if len(self._refused) > 1 else ""
        return f"{self._owner._where()} refuses the subscription to {topic_filter!a}{others}: {reason}"

    @property
    def ignored(self) -> bool:
        """Whether the host was there and answered nothing; a broker may treat a version that it does not know so."""
        return self._reached > 0.0 and not self._answered

    def lasted(self, seconds: float) -> bool:
        """Whether the broker accepted it, and that long ago."""
        return self.accepted and time.monotonic() - self._reached >= seconds

    def connect(self) -> None:
        """Reach the host, agree on TLS and send CONNECT; blocks for as long as the timeouts at the top say."""
        owner = self._owner
        arguments: dict[str, Any] = {}
        if self._is_5:
            arguments = {"clean_start": False, "properties": _connect_properties(owner._session_expiry)}
        try:
            self._prepare()
            self._client.connect(owner._host, owner._port, owner._keepalive, **arguments)
            sock: Any = self._client.socket()
            if sock is not None:
                _require(isinstance(sock, Stream), "this version of paho-mqtt is not known; install paho-mqtt 2.2")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._stream = sock
            self.flush()
        except OSError as error:
            self.end(f"cannot connect to {owner._where()}: {explain(error, own_context=True)}")
        except TransportError as error:
            self.end(f"cannot connect to {owner._where()}: {error}")
        else:
            self._reached = self.due = time.monotonic()

    def _prepare(self) -> None:
        """Read the certificates as they are now."""
        owner = self._owner
        if owner._before_connect is not None:
            try:
                owner._before_connect()
            except Exception:  # noqa: BLE001 - what the old certificates are still good for, they shall serve
                self._fence.fault("before_connect raised")
        if owner._tls is not None:
            if owner._tls_files is not None:
                owner._tls = owner._tls_files.context()
            self._client.tls_set_context(owner._tls)

    @property
    def goes_on(self) -> bool:
        """Whether what has come, and had to wait, can be taken now."""
        return self._full and not self.unsettled.is_full

    def watch(self) -> None:
        """Have the reactor wait for what the connection waits for; one that is full is not read: TCP holds it back."""
        events = 0 if self.unsettled.is_full else selectors.EVENT_READ
        if self.wants_write:
            events |= selectors.EVENT_WRITE
        if not events:
            self._let_go()
        elif events != self._watched and (sock := self._client.socket()) is not None:
            self._descriptor, self._watched = sock.fileno(), events
            self._owner._reactor.watch(self._descriptor, events, self._owner)

    def move(self, ready: int) -> None:
        """Read and write what the socket has and takes."""
        if self._stream is not None and (ready & selectors.EVENT_READ or self.goes_on):
            self._full = False
            for run in self._stream.read(unsettled.TOGETHER if self._fence.together else 1):
                if run is None:
                    if (puback := self._stream.take_puback()) is None:
                        self._client.loop_read()
                    else:
                        self._confirm(*puback)
                else:
                    self.unsettled.deliver(run)
                self._full = self.unsettled.is_full
                if self._full or self._client.socket() is None:
                    break
            if self._stream.fault is not None:
                self.end(f"{self._owner._where()} sent {self._stream.fault}")
        if ready & selectors.EVENT_WRITE and self._client.want_write():
            self._client.loop_write()
        if self._client.socket() is None:
            self.end(f"the connection to {self._owner._where()} was lost")

    def flush(self) -> None:
        """Send what has been gathered, as far as the socket takes it."""
        if self._stream is None:
            return
        if not self._stream.flush():
            self._client.loop_read()  # which hears that the connection is over
        elif self._stream.unsent > _MAX_UNSENT:
            self.end(f"{self._owner._where()} takes nothing that is sent to it")

    def check_time(self, now: float) -> None:
        """Keep alive; give up on a broker that does not answer."""
        if now < self.due:
            return
        self.due = now + (max(_TICK, self._keepalive / 8) if self._keepalive > 4 else _TICK / 4)
        if not self.unsettled.is_full:  # else the answer to a ping is not read either
            self._client.loop_misc()
        if now >= self._subscribe_at:
            self._subscribe_at = inf
            self.subscribe(list(self._refused))
        if not self._answered:
            self.due = min(self.due, self._reached + _ANSWER_TIMEOUT)
            if now >= self._reached + _ANSWER_TIMEOUT:
                self.end(f"{self._owner._where()} does not answer")

    def subscribe(self, filters: list[str]) -> None:
        """Ask for each filter with QoS 1 and, where the broker can, without one's own messages."""
        self.changed = True
        for some in _batches(filters):
            if self._is_5:
                _, mid = self._client.subscribe([(each, SubscribeOptions(qos=1, noLocal=True)) for each in some])
            else:
                _, mid = self._client.subscribe([(each, 1) for each in some])
            if mid is not None:
                self._subscribing[mid] = some

    def unsubscribe(self, filters: list[str]) -> None:
        """Ask for nothing more from each filter."""
        for topic_filter in filters:
            self._refused.pop(topic_filter, None)
        self.changed = True
        for some in _batches(filters):
            _, mid = self._client.unsubscribe(some)
            if mid is not None:
                self._unsubscribing[mid] = some

    def forgotten(self) -> list[str]:
        """The filters that the broker has confirmed to have dropped since the last call."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def acknowledge(self) -> None:
        """Send the acknowledgements of what was settled since the last call."""
        if self.unsettled.waits and self._stream is not None:
            self._stream.send(self.unsettled.acknowledgements())

    def publish(self, message: _Message) -> None:
        """Send a message with QoS 1."""
        assert self._stream is not None  # noqa: S101 - the broker has accepted the connection
        mid = self._client._mid_generate()  # which paho has for its own packets as well; a test says if that changes
        while mid in self.in_flight or mid in self._subscribing or mid in self._unsubscribing:
            mid = self._client._mid_generate()  # 65,535 of them later
        self.in_flight[mid] = message
        self._stream.publish(message.topic.encode(), mid, message.payload)

    def _confirm(self, mid: int, reason: int) -> None:
        """The broker has taken a message, or says why it refuses it."""
        if (message := self.in_flight.pop(mid, None)) is None:
            return
        if reason >= _FAILURES:
            about = {"topic": message.topic, "reason": _name_of(reason)}
            log.warning("the broker refused a message on %a: %s", message.topic, about["reason"], extra=about)
        self._owner._settled(message)

    def end(self, why: str) -> None:
        """Note why the link is over; the first reason counts."""
        if self.ended is None:
            self.ended = why

    def take_leave(self, now: float, why: str) -> None:
        """Say good-bye if the broker still listens."""
        if self.ended is not None or (sock := self._client.socket()) is None:
            return
        self.end(why)
        # A broker drops what it has not read when the next client takes the session, so let it hang up first.
        with suppress(OSError):
            self._line = socket.socket(fileno=os.dup(sock.fileno()))
            self._let_go()
            self._client.disconnect()
            self.due = now + _FAREWELL_TIMEOUT
            self._line.setblocking(False)
            self._descriptor, self._watched = self._line.fileno(), selectors.EVENT_READ
            self._owner._reactor.watch(self._descriptor, self._watched, self._owner)

    def is_gone(self, now: float) -> bool:
        """Whether a link that has ended needs no more attention; its socket is given back then."""
        if self._line is not None and now < self.due:
            try:
                while self._line.recv(4096):
                    pass
            except BlockingIOError:
                return False
            except OSError:
                pass  # it has hung up less politely
        self._let_go()
        for sock in (self._line, self._client.socket()):
            if sock is not None:
                sock.close()
        return True

    def _let_go(self) -> None:
        """Have the reactor watch no longer."""
        if self._watched:
            self._owner._reactor.forget(self._descriptor)
            self._watched = 0


# paho's callbacks, all from within connect, move, check_time and take_leave; the user data is the link. They
# belong to no object, of which a fleet would have thousands. Signatures: its API version 2.


def _on_connect(
    _client: paho.Client, link: _Link, flags: paho.ConnectFlags, reason: ReasonCode, properties: object
) -> None:
    link._answered = True
    if reason.is_failure:
        link.version_refused = reason.value == _UNSUPPORTED_VERSION
        link.end(f"{link._owner._where()} refused the connection: {reason}")
        return
    if getattr(properties, "MaximumQoS", 1) < 1:
        link.end(f"{link._owner._where()} takes no messages with QoS 1")
        return
    link.accepted = True
    link._resumed = flags.session_present
    link._window = min(_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _IN_FLIGHT))
    link._keepalive = getattr(properties, "ServerKeepAlive", link._keepalive) or _NEVER
    link.due = 0.0
    link._owner._allow(announced=getattr(properties, "MaximumPacketSize", 0) or _LONGEST)


def _on_disconnect(
    _client: paho.Client, link: _Link, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
) -> None:
    link.too_large = reason.value == _TOO_LARGE
    if not flags.is_disconnect_packet_from_server:
        link.cut = reason.value != _KEEP_ALIVE_TIMEOUT
        link.end(f"the connection to {link._owner._where()} was lost")
    elif reason.value == _TAKEN_OVER:
        link.taken_over = True
        link.end(f"another client with the id {link._owner._shown_id()} took the session over")
    else:
        link.end(f"{link._owner._where()} ended the connection: {reason}")


def _on_subscribe(_client: paho.Client, link: _Link, mid: int, reasons: list[ReasonCode], _properties: object) -> None:
    filters = link._subscribing.pop(mid, [])
    link.changed = True
    for topic_filter, reason in zip_longest(filters, reasons[: len(filters)]):
        if (reason is None or reason.is_failure) and topic_filter in link._owner._wanted:
            link._refused[topic_filter] = "no answer" if reason is None else str(reason)
            link._subscribe_at = time.monotonic() + _REFUSED_PAUSE
        else:
            link._refused.pop(topic_filter, None)


def _on_unsubscribe(
    _client: paho.Client, link: _Link, mid: int, _reasons: list[ReasonCode], _properties: object
) -> None:
    link._forgotten += link._unsubscribing.pop(mid, ())
    link.changed = True


@cache
def _connect_properties(session_expiry: int) -> Properties:
    """What a CONNECT says; one object for all, for each is as large as a connection."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = session_expiry
    properties.ReceiveMaximum = unsettled.RECEIVE_MAXIMUM
    properties.MaximumPacketSize = _MAX_PACKET
    return properties


def _name_of(reason: int) -> str:
    """Return what the reason code of a PUBACK means."""
    try:
        return str(ReasonCode(PacketTypes.PUBACK, identifier=reason))
    except (KeyError, ValueError):
        return f"reason code 0x{reason:02x}"


def _packet_size(topic: str, payload: bytes) -> int:
    """Return the bytes of a PUBLISH packet without properties in MQTT 5 (section 3.3); one less in 3.1.1."""
    rest = 2 + len(topic.encode()) + 2 + 1 + len(payload)
    return 1 + (1 if rest < 1 << 7 else 2 if rest < 1 << 14 else 3 if rest < 1 << 21 else 4) + rest


def _batches(filters: list[str]) -> Iterable[list[str]]:
    return (filters[start : start + _FILTERS_PER_PACKET] for start in range(0, len(filters), _FILTERS_PER_PACKET))


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise TransportError(complaint)


def _check_client_id(client_id: str) -> None:
    _require(bool(client_id) and client_id.isprintable(), "client_id is empty or has control characters")


def parse_url(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a broker's URL, or raise TransportError.

    The messages never repeat the URL: somebody may have put a password into it.
    """
    _require(url.isprintable() and not any(map(str.isspace, url)), "the broker's url has a space or a line break in it")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        raise TransportError("the broker's url has no valid host and port") from error
    _require(scheme not in ("ws", "wss"), "MQTT over WebSocket is not supported: use mqtts://, on port 443 with alpn")
    _require(scheme in _PORTS, "the broker's url is mqtt://host:port or mqtts://host:port")
    _require("@" not in parts.netloc, "username and password are arguments, not part of the broker's url")
    for part, is_there in (("path", parts.path not in ("", "/")), ("query", "?" in url), ("fragment", "#" in url)):
        _require(not is_there, f"the broker's url ends with the port, and has a {part}")
    if not host or port == 0:
        raise TransportError("the broker's url has no valid host and port")
    if ":" in host:  # an address of IPv6, which has been checked
        host = host.replace("%25", "%", 1)  # before its zone (RFC 6874)
    else:
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise TransportError(f"{host!a} is not a host name") from error
        _require(_HOST.fullmatch(host) is not None, f"{host!a} is not a host name")
    return scheme, host, port or _PORTS[scheme]
