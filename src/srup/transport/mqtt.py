"""A transport over MQTT, on paho-mqtt: version 5 where the broker knows it, 3.1.1 where it does not.

paho's own loop waits with ``select()``, which cannot see file descriptors above 1,023, and hands its queue and its
locks to whoever calls it. Here one thread owns each connection and waits with :mod:`selectors`; all other threads only
append to queues and wake it. A connection has a paho client of its own (:class:`_Link`), so nothing of a dead one
lives on, and the queue of unsent messages is ours, bounded and in order.

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
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from srup.errors import TransportError
from srup.transport.base import MAX_QUEUED, Delivery, Fence, log
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

__all__ = ["MqttTransport"]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_CONNECT_TIMEOUT: Final = 5.0  # seconds for TCP and again for the TLS handshake
_ANSWER_TIMEOUT: Final = 10.0  # seconds until the broker has answered our CONNECT
_FAREWELL_TIMEOUT: Final = 1.0  # seconds until the broker has closed the connection after our DISCONNECT
_TICK: Final = 1.0  # seconds; paho's keep-alive needs to be looked after
_IN_FLIGHT: Final = 20  # messages sent and not acknowledged; more than this is slower
_RECEIVE_MAXIMUM: Final = 1000  # deliveries that the broker (version 5) may have open with us
_FILTERS_PER_PACKET: Final = 8  # AWS IoT Core takes no more
_MAX_PAYLOAD: Final = 268_435_455 - 65_535 - 8  # the longest packet, less topic and header (MQTT 5.0, section 2.1.4)
_SUSPICIOUS: Final = 4  # connections in a row that did not last
_UNSUPPORTED_VERSION: Final = 0x84  # reason codes: MQTT 5.0, section 2.4
_TAKEN_OVER: Final = 0x8E

_chance: Final = secrets.SystemRandom()  # a fleet that lost its broker must not return in step


class MqttTransport:
    """A :class:`~srup.transport.Transport` to the broker at ``url``: ``mqtt://host:port`` or ``mqtts://host:port``.

    ``client_id`` names the session, which the broker keeps for ``session_expiry`` seconds after a connection (MQTT 5;
    with 3.1.1 the broker decides). Two clients with one id steal the session from each other. ``mqtts`` trusts the
    authorities in ``ca_file``, or the system's; ``cert_file`` and ``key_file`` (PEM, unencrypted; the key may be in
    ``cert_file``) are the client's certificate. ``keepalive`` is in seconds. After a failure the next attempt waits
    ``min_pause`` seconds, then twice as long each time up to ``max_pause``, less a random part of at most half;
    a connection that lasted ``max_pause`` seconds counts as a success. ``before_connect`` is called on the network
    thread before each connection and may renew the files, which are read again each time. TransportError names an
    argument that is wrong.
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

        self._lock = threading.Lock()  # guards the next five; held for a few instructions, never in a callback
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._wanted: dict[str, None] = {}
        self._unwanted: dict[str, None] = {}  # unsubscribed, and the broker has not confirmed it yet
        self._news: deque[tuple[bool, str]] = deque()  # (wanted, filter), what the present link does not know yet
        self._started = False

        self._acks: deque[tuple[_Link, int]] = deque()
        self._version = MQTTProtocolVersion.MQTTv5
        self._fence: Fence | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._deadline = 0.0  # of stopping, on the monotonic clock
        self._waker: socket.socket | None = None  # a byte into it ends the thread's wait
        self._awake = False

    @property
    def faults(self) -> int:
        """How often a callback, or the network thread itself, raised; each was logged and the link went on."""
        return self._fence.faults if self._fence is not None else 0

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """See :meth:`Transport.start`."""
        with self._lock:
            if self._started or self._stopping.is_set():
                raise TransportError(f"{self!r} was started before")
            self._started = True
        self._fence = Fence(on_delivery, on_state)
        sleeper, self._waker = socket.socketpair()
        sleeper.setblocking(False)
        self._waker.setblocking(False)
        # A daemon: name resolution cannot be interrupted, and must not keep a program from ending.
        self._thread = threading.Thread(
            target=self._run, args=(self._fence, sleeper, self._waker), name=f"srup-mqtt-{self._client_id}", daemon=True
        )
        self._thread.start()

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

    def publish(self, topic: str, payload: bytes) -> None:
        """See :meth:`Transport.publish`."""
        check_topic(topic)
        _require(len(payload) <= _MAX_PAYLOAD, f"{len(payload)} bytes are more than an MQTT packet holds")
        with self._lock:
            _require(not self._stopping.is_set(), "the transport is stopped")
            _require(len(self._outbox) < self._max_queued, f"{self._max_queued} messages are queued already")
            self._outbox.append((topic, payload))
        self._wake()

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Transport.stop`; an attempt to connect that is under way may take some seconds longer."""
        with self._lock:
            if not self._stopping.is_set():
                self._deadline = time.monotonic() + timeout
                self._stopping.set()
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout + 2 * _CONNECT_TIMEOUT)

    def __repr__(self) -> str:
        return f"MqttTransport({self._where()!r}, {self._client_id!r})"

    def _where(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'mqtts' if self._tls else 'mqtt'}://{host}:{self._port}"

    def _wake(self) -> None:
        if self._awake or self._waker is None:
            return
        self._awake = True
        with suppress(OSError):  # full: it is awake already; closed: it has ended
            self._waker.send(b"\0")

    # The network thread.

    def _run(self, fence: Fence, sleeper: socket.socket, waker: socket.socket) -> None:
        failures = 0
        try:
            while not self._finished():
                link = _Link(self, fence)
                try:
                    self._serve(link, fence, sleeper)
                except Exception:  # noqa: BLE001 - the thread outlives whatever paho or a hostile broker throws (T8)
                    fence.fault("the connection to %s failed unexpectedly", self._where())
                    link.end("internal error")
                finally:
                    link.close()
                self._requeue(link)
                if link.version_refused and self._version == MQTTProtocolVersion.MQTTv5:
                    self._version = MQTTProtocolVersion.MQTTv311
                    continue
                failures = 0 if link.lasted(self._max_pause) else failures + 1
                doubtful = failures >= _SUSPICIOUS and link.accepted and not self._stopping.is_set()
                suspicion = self._suspicion() if doubtful else ""
                fence.report(False, f"{link.ended or 'stopped'}{suspicion}")
                self._pause(link, failures)
        finally:
            fence.report(False, "stopped")
            sleeper.close()
            waker.close()
            if self._outbox:
                log.warning("%r stopped with %d messages unsent", self, len(self._outbox))

    def _serve(self, link: _Link, fence: Fence, sleeper: socket.socket) -> None:
        """Connect and exchange messages until the link ends or the transport is done."""
        link.connect()
        with selectors.DefaultSelector() as selector:
            selector.register(sleeper, selectors.EVENT_READ)
            watched = 0
            while True:
                if link.accepted:
                    self._exchange(link, fence)
                sock = link.socket
                if sock is None or self._finished(link):
                    return
                if watched != (events := link.interest):
                    if watched:
                        selector.modify(sock, events)
                    else:
                        selector.register(sock, events)
                    watched = events
                for key, ready in selector.select(self._patience()):
                    if key.fileobj is sleeper:
                        sleeper.recv(4096)
                        self._awake = False  # after reading, before looking at the queues: no call gets lost
                    else:
                        link.move(ready)
                link.check_time()

    def _exchange(self, link: _Link, fence: Fence) -> None:
        """Hand the link what other threads left for it, as far as it takes it."""
        if not link.greeted:
            link.greeted = True
            with self._lock:
                wanted, unwanted = list(self._wanted), list(self._unwanted)
                self._news.clear()
            # All of them, session or not: a broker that came back from an older state has the session, not the filter.
            link.subscribe(wanted)
            link.unsubscribe(unwanted)
        while self._news:
            wanted_now, topic_filter = self._news.popleft()
            if wanted_now:
                link.subscribe([topic_filter])
            else:
                link.unsubscribe([topic_filter])
        for topic_filter in link.forgotten():
            with self._lock:
                self._unwanted.pop(topic_filter, None)
        while self._acks:
            origin, mid = self._acks.popleft()
            if origin is link:  # a packet id of an earlier connection may mean another message by now
                link.acknowledge(mid)
        while self._outbox and link.has_room:
            link.publish(self._outbox.popleft())
        if link.hears and link.ended is None:
            fence.report(True, f"connected to {self._where()} with MQTT {link.dialect}")

    def _suspicion(self) -> str:
        """MQTT 3.1.1 and some brokers of version 5 let a session be stolen without telling the victim."""
        return f" soon after it was made; another client may use the id {self._client_id!a}"

    def _requeue(self, link: _Link) -> None:
        """Put what a link leaves unacknowledged back to the head of the queue, in order."""
        self._acks.clear()
        with self._lock:
            self._outbox.extendleft(reversed(link.in_flight.values()))

    def _pause(self, link: _Link, failures: int) -> None:
        """Wait before the next connection, and decide which version it speaks."""
        if link.version_refused or link.ignored:
            was_5 = self._version == MQTTProtocolVersion.MQTTv5
            self._version = MQTTProtocolVersion.MQTTv311 if was_5 else MQTTProtocolVersion.MQTTv5
        doublings = min(max(failures - 1, 0), 32)
        longest = self._max_pause if link.taken_over else min(self._max_pause, self._min_pause * 2.0**doublings)
        seconds = longest * _chance.uniform(0.5, 1.0)
        if not self._stopping.is_set():
            self._stopping.wait(seconds)
        elif not self._finished():
            time.sleep(max(0.0, min(seconds, self._deadline - time.monotonic())))

    def _patience(self) -> float:
        """How long the thread may wait for the network, in seconds."""
        return max(0.0, min(_TICK, self._deadline - time.monotonic())) if self._stopping.is_set() else _TICK

    def _finished(self, link: _Link | None = None) -> bool:
        """Whether the thread may end: it was told to, and has nothing left to send or no time left to send it."""
        if not self._stopping.is_set():
            return False
        idle = not self._outbox and (link is None or not (link.in_flight or link.wants_write or self._acks))
        return idle or time.monotonic() >= self._deadline


class _Link:
    """One connection with its paho client, used by the network thread only and thrown away when it ends.

    paho calls back from within :meth:`move`; the callbacks note what happened, and the network thread acts on it.
    """

    def __init__(self, owner: MqttTransport, fence: Fence) -> None:
        self.ended: str | None = None  # why; None while it lasts
        self.accepted = False
        self.greeted = False
        self.version_refused = False
        self.taken_over = False
        self.in_flight: dict[int, tuple[str, bytes]] = {}  # sent and not acknowledged, by packet id, in order
        self._owner = owner
        self._fence = fence
        self._resumed = False
        self._answered = False
        self._window = _IN_FLIGHT
        self._reached = 0.0  # when the broker's host was, on the monotonic clock
        self._subscribing: dict[int, list[str]] = {}
        self._unsubscribing: dict[int, list[str]] = {}
        self._forgotten: list[str] = []
        self._is_5 = owner._version == MQTTProtocolVersion.MQTTv5
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            owner._client_id,
            clean_session=None if self._is_5 else False,
            protocol=owner._version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT_TIMEOUT
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        if owner._credentials[0] is not None:
            client.username_pw_set(*owner._credentials)

    @property
    def dialect(self) -> str:
        """The version of MQTT it speaks."""
        return "5" if self._is_5 else "3.1.1"

    @property
    def socket(self) -> Any:
        """What to wait for; None when the link is over."""
        return self._client.socket() if self.ended is None else None

    @property
    def interest(self) -> int:
        """The events to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return self._client.want_write()

    @property
    def has_room(self) -> bool:
        """Whether one more message may be sent now."""
        return self.ended is None and len(self.in_flight) < self._window and not self._client.want_write()

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
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = owner._session_expiry
            properties.ReceiveMaximum = _RECEIVE_MAXIMUM
            arguments = {"clean_start": False, "properties": properties}
        try:
            self._prepare()
            self._client.connect(owner._host, owner._port, owner._keepalive, **arguments)
            if (sock := self._client.socket()) is not None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[attr-defined]
        except (OSError, TransportError) as error:
            self.end(f"cannot connect to {owner._where()}: {error}")
        else:
            self._reached = time.monotonic()

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

    def move(self, ready: int) -> None:
        """Read and write what the socket has and takes."""
        if ready & selectors.EVENT_READ:
            self._client.loop_read()
            # What TLS has decrypted already does not make the socket readable again.
            while isinstance(sock := self._client.socket(), ssl.SSLSocket) and sock.pending():
                self._client.loop_read()
        if ready & selectors.EVENT_WRITE:
            self._client.loop_write()

    def check_time(self) -> None:
        """Keep alive; give up on a broker that does not answer."""
        self._client.loop_misc()
        if not self._answered and time.monotonic() - self._reached >= _ANSWER_TIMEOUT:
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

    def acknowledge(self, mid: int) -> None:
        """Settle a delivery of this connection."""
        self._client.ack(mid, 1)

    def publish(self, message: tuple[str, bytes]) -> None:
        """Send a message with QoS 1."""
        info = self._client.publish(*message, qos=1)
        while info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # 65,535 packet ids later: this one is still in flight
            info = self._client.publish(*message, qos=1)
        self.in_flight[info.mid] = message

    def end(self, why: str) -> None:
        """Note why the link is over; the first reason counts."""
        if self.ended is None:
            self.ended = why

    def close(self) -> None:
        """Say good-bye if the broker still listens, and give the socket back."""
        if (sock := self._client.socket()) is None:
            return
        if self.ended is None:
            self.end("stopped")
            with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as line:
                self._client.disconnect()
                # A broker drops what it has not read when the next client takes the session, so let it hang up first.
                line.settimeout(_FAREWELL_TIMEOUT)
                while line.recv(4096):
                    pass
        sock.close()

    # paho's callbacks, all from within connect, move, check_time, publish and close. Signatures: its API version 2.

    def _on_connect(
        self, _client: paho.Client, _data: object, flags: paho.ConnectFlags, reason: ReasonCode, properties: object
    ) -> None:
        self._answered = True
        if reason.is_failure:
            self.version_refused = reason.value == _UNSUPPORTED_VERSION
            self.end(f"{self._owner._where()} refused the connection: {reason}")
            return
        self.accepted = True
        self._resumed = flags.session_present
        self._window = min(_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _IN_FLIGHT))

    def _on_disconnect(
        self, _client: paho.Client, _data: object, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if not flags.is_disconnect_packet_from_server:
            self.end(f"the connection to {self._owner._where()} was lost")
        elif reason.value == _TAKEN_OVER:
            self.taken_over = True
            self.end(f"another client with the id {self._owner._client_id!a} took the session over")
        else:
            self.end(f"{self._owner._where()} ended the connection: {reason}")

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # MQTT forbids it, so only a broken or hostile broker sends it
            self._fence.fault("a message arrived whose topic is not UTF-8")
            self.acknowledge(message.mid)
            return
        ticket = [message.mid] if message.qos else []  # taken out by whoever acknowledges first

        def ack() -> None:
            with suppress(IndexError):
                self._owner._acks.append((self, ticket.pop()))
                self._owner._wake()

        self._fence.deliver(Delivery(topic, bytes(message.payload), ack))

    def _on_publish(
        self, _client: paho.Client, _data: object, mid: int, reason: ReasonCode, _properties: object
    ) -> None:
        message = self.in_flight.pop(mid, None)
        if message is not None and reason.is_failure:
            log.warning("the broker refused a message on %a: %s", message[0], reason)

    def _on_subscribe(
        self, _client: paho.Client, _data: object, mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        for topic_filter, reason in zip(self._subscribing.pop(mid, ()), reasons, strict=False):
            if reason.is_failure:
                log.warning("the broker refused to subscribe to %a: %s", topic_filter, reason)

    def _on_unsubscribe(
        self, _client: paho.Client, _data: object, mid: int, _reasons: list[ReasonCode], _properties: object
    ) -> None:
        self._forgotten += self._unsubscribing.pop(mid, ())


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
