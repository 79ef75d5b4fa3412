"""A transport over MQTT, on paho-mqtt: version 5 where the broker knows it, 3.1.1 where it does not.

paho's own loop waits with ``select()``, which cannot see file descriptors above 1,023, and hands its queue and its
locks to whoever calls it. Here the thread of a :class:`Reactor` owns the connection, or thousands of them; all other
threads only append to queues and wake it. A connection has a paho client of its own (:class:`_Link`), so nothing of a
dead one lives on, and the queue of unsent messages is ours, bounded and in order. A :class:`Stream` stands between
paho and the socket and spares most of the system calls.

What was sent and not acknowledged when a connection ends is sent again on the next one, as a new message: a receiver
may hear it twice, which QoS 1 allows.
"""

from __future__ import annotations  # they name classes of paho, which may be missing

import os
import secrets
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from srup.errors import TransportError
from srup.transport.base import MAX_QUEUED, Delivery, Fence, log
from srup.transport.reactor import Reactor
from srup.transport.stream import Stream
from srup.transport.topics import check_filter, check_topic

try:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
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
        """A paho client whose socket is a :class:`Stream`, as long as paho makes its socket with this method.

        It belongs to paho; one that makes sockets in another way is served as well, and only slower.
        """

        def _create_socket(self) -> Any:
            return Stream(super()._create_socket(), self.protocol == MQTTProtocolVersion.MQTTv5)  # type: ignore[arg-type]


__all__ = ["MqttTransport"]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_CONNECT_TIMEOUT: Final = 5.0  # seconds for TCP and again for the TLS handshake
_ANSWER_TIMEOUT: Final = 10.0  # seconds until the broker has answered our CONNECT
_FAREWELL_TIMEOUT: Final = 1.0  # seconds until the broker has closed the connection after our DISCONNECT
_TICK: Final = 1.0  # seconds; paho's keep-alive needs to be looked after, the longer it is the more seldom
_IN_FLIGHT: Final = 20  # messages sent and not acknowledged; more than this is slower
_RECEIVE_MAXIMUM: Final = 1000  # deliveries that the broker (version 5) may have open with us
_FILTERS_PER_PACKET: Final = 8  # AWS IoT Core takes no more
_UNSENT: Final = 65_536  # bytes that wait to be sent; no more messages join them
_PUBACK: Final = b"\x40\x02"  # a packet id of two bytes follows (MQTT 5.0, section 3.4)
_MAX_PAYLOAD: Final = 268_435_455 - 65_535 - 8  # the longest packet, less topic and header (MQTT 5.0, section 2.1.4)
_SUSPICIOUS: Final = 4  # connections in a row that did not last
_UNSUPPORTED_VERSION: Final = 0x84  # reason codes: MQTT 5.0, section 2.4
_TAKEN_OVER: Final = 0x8E

_NOBODY: Final = Fence(lambda _delivery: None, lambda _connected, _why: None)  # there before a transport has started
_chance: Final = secrets.SystemRandom()  # a fleet that lost its broker must not return in step


class _Message(NamedTuple):
    topic: str
    payload: bytes
    on_settled: Callable[[], object] | None


class MqttTransport:
    """A :class:`~srup.transport.Transport` to the broker at ``url``: ``mqtt://host:port`` or ``mqtts://host:port``.

    ``client_id`` names the session, which the broker keeps for ``session_expiry`` seconds after a connection (MQTT 5;
    with 3.1.1 the broker decides). Two clients with one id steal the session from each other. ``mqtts`` trusts the
    authorities in ``ca_file``, or the system's; ``cert_file`` and ``key_file`` (PEM, unencrypted; the key may be in
    ``cert_file``) are the client's certificate. ``keepalive`` is in seconds. After a failure the next attempt waits
    ``min_pause`` seconds, then twice as long each time up to ``max_pause``, less a random part of at most half;
    a connection that lasted ``max_pause`` seconds counts as a success. ``before_connect`` is called before each
    connection, on a thread that may block, and may renew the files, which are read again each time. ``reactor`` is the
    network thread, to be shared with other transports; without it there is one for this transport alone.
    TransportError names an argument that is wrong.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        username: str | None = None,
        password: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
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
        scheme, self._host, self._port = _parse_url(url)
        _require(bool(client_id) and client_id.isprintable(), "client_id is empty or has control characters")
        _require(password is None or username is not None, "a password needs a username")
        _require(0 < keepalive < 1 << 16, f"keepalive is 1 to 65535 seconds, not {keepalive}")
        _require(0 <= session_expiry < 1 << 32, f"session_expiry is 0 to 2**32-1 seconds, not {session_expiry}")
        _require(0 < min_pause <= max_pause, f"pauses grow from min_pause to max_pause, not {min_pause} to {max_pause}")
        _require(max_queued > 0, f"max_queued is at least 1, not {max_queued}")
        self._tls: ssl.SSLContext | None = None
        self._tls_files = (ca_file, cert_file, key_file)
        if scheme == "mqtts":
            self._tls = _tls_context(*self._tls_files)
        else:
            _require(not (ca_file or cert_file or key_file), "ca_file, cert_file and key_file need an mqtts:// url")
        self._client_id = client_id
        self._credentials = (username, password)
        self._keepalive = keepalive
        self._session_expiry = session_expiry
        self._min_pause = min_pause
        self._max_pause = max_pause
        self._max_queued = max_queued
        self._before_connect = before_connect

        self._reactor = Reactor(f"srup-mqtt-{client_id}") if reactor is None else reactor
        self._lock = threading.Lock()  # guards the next five; held for a few instructions, never in a callback
        self._outbox: deque[_Message] = deque()
        self._wanted: dict[str, None] = {}
        self._unwanted: dict[str, None] = {}  # unsubscribed, and the broker has not confirmed it yet
        self._news: list[tuple[bool, str]] = []  # (wanted, filter), what the present link does not know yet
        self._started = False

        self._version = MQTTProtocolVersion.MQTTv5
        self._fence = _NOBODY
        self._stopping = False
        self._deadline = inf  # of stopping, on the monotonic clock
        self._awake = False  # the network thread will look at the queues

        self._link: _Link | None = None  # none in the pauses between connections
        self._connecting = False  # the link is in the hands of a connector thread
        self._failures = 0
        self._resume_at = 0.0  # when the pause ends

    @property
    def faults(self) -> int:
        """How often a callback, or the network thread itself, raised; each was logged and the link went on."""
        return self._fence.faults

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """See :meth:`Transport.start`."""
        with self._lock:
            if self._started or self._stopping:
                raise TransportError(f"{self!r} was started before")
            self._started = True
        self._fence = Fence(on_delivery, on_state)
        self._reactor.enter(self)

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

    def publish(self, topic: str, payload: bytes, on_settled: Callable[[], object] | None = None) -> None:
        """See :meth:`Transport.publish`."""
        check_topic(topic)
        _require(len(payload) <= _MAX_PAYLOAD, f"{len(payload)} bytes are more than an MQTT packet holds")
        with self._lock:
            _require(not self._stopping, "the transport is stopped")
            _require(len(self._outbox) < self._max_queued, f"{self._max_queued} messages are queued already")
            self._outbox.append(_Message(topic, payload, on_settled))
        self._wake()

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Transport.stop`; an attempt to connect that is under way may take some seconds longer."""
        patience = self.halt(timeout)
        if self._started:
            self._reactor.wait(self, patience)

    def __repr__(self) -> str:
        return f"MqttTransport({self._where()!r}, {self._client_id!r})"

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
        self._awake = False  # before looking at the queues: no call gets lost
        link = self._link
        if self._connecting:
            return inf
        if link is None:
            if self._finished(now):
                self._say_it_is_over()
                return None
            if now < self._resume_at:
                return min(self._resume_at, self._deadline)
            self._begin()
            return inf
        if link.ended is None:
            link.move(ready)
            link.check_time(now)
            if link.accepted and link.ended is None:
                self._exchange(link)
            link.flush()
            if link.ended is None and not self._finished(now, link):
                link.watch()
                return now if link.goes_on else min(link.due, self._deadline)
            link.take_leave(now)
        if not link.is_gone(now):
            return link.due
        self._link = None
        self._requeue(link)
        self._rest(link, now)
        return now

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
        with self._lock:
            news, self._news = self._news, []
        for wanted_now, topic_filter in news:
            if wanted_now:
                link.subscribe([topic_filter])
            else:
                link.unsubscribe([topic_filter])
        for topic_filter in link.forgotten():
            with self._lock:
                self._unwanted.pop(topic_filter, None)
        link.acknowledge()
        while self._outbox and link.has_room:
            link.publish(self._outbox.popleft())
        if link.hears and link.ended is None:
            self._fence.report(True, f"connected to {self._where()} with MQTT {link.dialect}")

    def _suspicion(self) -> str:
        """MQTT 3.1.1 and some brokers of version 5 let a session be stolen without telling the victim."""
        return f" soon after it was made; another client may use the id {self._client_id!a}"

    def _requeue(self, link: _Link) -> None:
        """Put what a link leaves unacknowledged back to the head of the queue, in order."""
        with self._lock:
            self._outbox.extendleft(reversed(link.in_flight.values()))

    def _rest(self, link: _Link, now: float) -> None:
        """Report why the link is over; decide when the next one is made, and which version it speaks."""
        was_5 = self._version == MQTTProtocolVersion.MQTTv5
        if link.version_refused or link.ignored:
            self._version = MQTTProtocolVersion.MQTTv311 if was_5 else MQTTProtocolVersion.MQTTv5
        if link.version_refused and was_5:
            self._resume_at = now
            return
        self._failures = 0 if link.lasted(self._max_pause) else self._failures + 1
        doubtful = self._failures >= _SUSPICIOUS and link.accepted and not self._stopping
        doublings = min(max(self._failures - 1, 0), 32)
        longest = self._max_pause if link.taken_over else min(self._max_pause, self._min_pause * 2.0**doublings)
        self._resume_at = now + longest * _chance.uniform(0.5, 1.0)
        # Last: whoever hears it may stop the transport, and that ends the pause.
        self._fence.report(False, f"{link.ended}{self._suspicion() if doubtful else ''}")

    def _finished(self, now: float, link: _Link | None = None) -> bool:
        """Whether it may end: it was told to, and has nothing left to send or no time left to send it."""
        if not self._stopping:
            return False
        idle = not self._outbox and (link is None or not (link.in_flight or link.wants_write or link.acks))
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
        "_line",
        "_owner",
        "_reached",
        "_resumed",
        "_stream",
        "_subscribing",
        "_unsubscribing",
        "_watched",
        "_window",
        "accepted",
        "acks",
        "due",
        "ended",
        "greeted",
        "in_flight",
        "open",
        "taken_over",
        "version_refused",
    )

    def __init__(self, owner: MqttTransport) -> None:
        self.ended: str | None = None  # why; None while it lasts
        self.due = 0.0  # when to look after it again, on the monotonic clock
        self.accepted = False
        self.greeted = False
        self.version_refused = False
        self.taken_over = False
        self.in_flight: dict[int, _Message] = {}  # sent and not acknowledged, by packet id, in order
        self.acks: deque[int] = deque()  # packet ids of what may be acknowledged
        self.open = 0  # deliveries that are not settled
        self._owner = owner
        self._fence = owner._fence
        self._stream: Stream | None = None  # none if paho has a socket of its own
        self._full = False  # the stream has more for us, which had to wait
        self._line: socket.socket | None = None  # from our DISCONNECT until the broker has hung up
        self._descriptor = -1  # what the reactor watches, and for which events
        self._watched = 0
        self._resumed = False
        self._answered = False
        self._window = _IN_FLIGHT
        self._reached = 0.0  # when the broker's host was, on the monotonic clock
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
        client.on_message = _on_message
        client.on_publish = _on_publish
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
        return self.ended is None and len(self.in_flight) < self._window and not clogged

    @property
    def hears(self) -> bool:
        """Whether the subscriptions stand: the session had them, or the broker has answered every one."""
        return self._resumed or not self._subscribing

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
            self._stream = sock if isinstance(sock, Stream) else None
            if sock is not None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.flush()
        except (OSError, TransportError) as error:
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
            owner._tls = _tls_context(*owner._tls_files)
            self._client.tls_set_context(owner._tls)

    @property
    def is_full(self) -> bool:
        """Whether the broker has sent more than it may. Mosquitto 2.0 does, once one of the open ones is settled."""
        return self.open > _RECEIVE_MAXIMUM

    @property
    def goes_on(self) -> bool:
        """Whether what has come, and had to wait, can be taken now."""
        return self._full and not self.is_full

    def watch(self) -> None:
        """Have the reactor wait for what the connection waits for; one that is full is not read: TCP holds it back."""
        events = 0 if self.is_full else selectors.EVENT_READ
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
            for publication in self._stream.read():
                if publication is None:
                    self._client.loop_read()
                else:
                    self._deliver(publication.topic.decode, publication.mid, publication.payload)
                self._full = self.is_full
                if self._full or self._client.socket() is None:
                    break
        elif ready & selectors.EVENT_READ:
            self._client.loop_read()
            # What TLS has decrypted already does not make the socket readable again.
            while isinstance(sock := self._client.socket(), ssl.SSLSocket) and sock.pending():
                self._client.loop_read()
        if ready & selectors.EVENT_WRITE and self._client.want_write():
            self._client.loop_write()
        if self._client.socket() is None:
            self.end(f"the connection to {self._owner._where()} was lost")

    def flush(self) -> None:
        """Send what has been gathered, as far as the socket takes it."""
        if self._stream is not None and not self._stream.flush():
            self._client.loop_read()  # which hears that the connection is over

    def _deliver(self, read_topic: Callable[[], str], mid: int, payload: bytes) -> None:
        self.open += mid > 0
        settle = partial(self._settle, [mid] if mid else [])
        try:
            topic = read_topic()
        except UnicodeDecodeError:  # MQTT forbids it, so only a broken or hostile broker sends it
            self._fence.fault("a message arrived whose topic is not UTF-8")
            settle()
        else:
            self._fence.deliver(Delivery(topic, payload, settle))

    def _settle(self, ticket: list[int]) -> None:
        """Have a delivery acknowledged; from any thread. Whoever takes the packet id out of the ticket is the first."""
        with suppress(IndexError):
            self.acks.append(ticket.pop())
            self._owner._wake()

    def check_time(self, now: float) -> None:
        """Keep alive; give up on a broker that does not answer."""
        if now < self.due:
            return
        self.due = now + max(_TICK, self._owner._keepalive / 8)
        if not self.is_full:  # else the answer to a ping is not read either
            self._client.loop_misc()
        if not self._answered:
            self.due = min(self.due, self._reached + _ANSWER_TIMEOUT)
            if now >= self._reached + _ANSWER_TIMEOUT:
                self.end(f"{self._owner._where()} does not answer")

    def subscribe(self, filters: list[str]) -> None:
        """Ask for each filter with QoS 1 and, where the broker can, without one's own messages."""
        for some in _batches(filters):
            if self._is_5:
                _, mid = self._client.subscribe([(each, SubscribeOptions(qos=1, noLocal=True)) for each in some])
            else:
                _, mid = self._client.subscribe([(each, 1) for each in some])
            if mid is not None:
                self._subscribing[mid] = some

    def unsubscribe(self, filters: list[str]) -> None:
        """Ask for nothing more from each filter."""
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
        while self.acks:
            mid = self.acks.popleft()
            self.open -= 1
            if self._stream is None:
                self._client.ack(mid, 1)
            else:
                self._stream.send(_PUBACK + mid.to_bytes(2, "big"))

    def publish(self, message: _Message) -> None:
        """Send a message with QoS 1."""
        info = self._client.publish(message.topic, message.payload, qos=1)
        while info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # 65,535 packet ids later: this one is still in flight
            info = self._client.publish(message.topic, message.payload, qos=1)
        self.in_flight[info.mid] = message

    def end(self, why: str) -> None:
        """Note why the link is over; the first reason counts."""
        if self.ended is None:
            self.ended = why

    def take_leave(self, now: float) -> None:
        """Say good-bye if the broker still listens."""
        if self.ended is not None or (sock := self._client.socket()) is None:
            return
        self.end("stopped")
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


# paho's callbacks, all from within connect, move, check_time, publish and take_leave; the user data is the link. They
# belong to no object, of which a fleet would have thousands. Signatures: its API version 2.


def _on_connect(
    _client: paho.Client, link: _Link, flags: paho.ConnectFlags, reason: ReasonCode, properties: object
) -> None:
    link._answered = True
    if reason.is_failure:
        link.version_refused = reason.value == _UNSUPPORTED_VERSION
        link.end(f"{link._owner._where()} refused the connection: {reason}")
        return
    link.accepted = True
    link._resumed = flags.session_present
    link._window = min(_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _IN_FLIGHT))


def _on_disconnect(
    _client: paho.Client, link: _Link, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
) -> None:
    if not flags.is_disconnect_packet_from_server:
        link.end(f"the connection to {link._owner._where()} was lost")
    elif reason.value == _TAKEN_OVER:
        link.taken_over = True
        link.end(f"another client with the id {link._owner._client_id!a} took the session over")
    else:
        link.end(f"{link._owner._where()} ended the connection: {reason}")


def _on_message(_client: paho.Client, link: _Link, message: paho.MQTTMessage) -> None:
    link._deliver(lambda: message.topic, message.mid if message.qos else 0, bytes(message.payload))


def _on_publish(_client: paho.Client, link: _Link, mid: int, reason: ReasonCode, _properties: object) -> None:
    if (message := link.in_flight.pop(mid, None)) is None:
        return
    if reason.is_failure:
        about = {"topic": message.topic, "reason": str(reason)}
        log.warning("the broker refused a message on %a: %s", message.topic, reason, extra=about)
    if message.on_settled is not None:
        link._fence.settle(message.topic, message.on_settled)


def _on_subscribe(_client: paho.Client, link: _Link, mid: int, reasons: list[ReasonCode], _properties: object) -> None:
    for topic_filter, reason in zip(link._subscribing.pop(mid, ()), reasons, strict=False):
        if reason.is_failure:
            about = {"topic": topic_filter, "reason": str(reason)}
            log.warning("the broker refused to subscribe to %a: %s", topic_filter, reason, extra=about)


def _on_unsubscribe(
    _client: paho.Client, link: _Link, mid: int, _reasons: list[ReasonCode], _properties: object
) -> None:
    link._forgotten += link._unsubscribing.pop(mid, ())


@cache
def _connect_properties(session_expiry: int) -> Properties:
    """What a CONNECT says; one object for all, for each is as large as a connection."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = session_expiry
    properties.ReceiveMaximum = _RECEIVE_MAXIMUM
    return properties


def _batches(filters: list[str]) -> Iterable[list[str]]:
    return (filters[start : start + _FILTERS_PER_PACKET] for start in range(0, len(filters), _FILTERS_PER_PACKET))


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise TransportError(complaint)


def _parse_url(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. The messages never repeat the url: somebody may have put a password into it."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        raise TransportError("the broker's url has no valid host and port") from error
    _require(scheme in _PORTS, "the broker's url is mqtt://host:port or mqtts://host:port")
    _require("@" not in parts.netloc, "username and password are arguments, not part of the broker's url")
    _require(parts.path in ("", "/") and not (parts.query or parts.fragment), "the broker's url ends with the port")
    if not host or port == 0:
        raise TransportError("the broker's url has no valid host and port")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise TransportError(f"{host!a} is not a host name") from error
    return scheme, host, port or _PORTS[scheme]


def _tls_context(ca: str | Path | None, cert: str | Path | None, key: str | Path | None) -> ssl.SSLContext:
    _require(cert is not None or key is None, "key_file needs cert_file")
    for name, path in (("ca_file", ca), ("cert_file", cert), ("key_file", key)):
        _require(path is None or Path(path).is_file(), f"{name} {str(path)!a} does not exist")
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise TransportError(f"ca_file {str(ca)!a} holds no certificates: {error}") from error
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password=lambda: b"")  # without it OpenSSL would ask at the terminal
        except OSError as error:
            raise TransportError(f"cert_file {str(cert)!a} and its key do not load: {error}") from error
    return context
