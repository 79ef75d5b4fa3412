"""One connection to a broker with its paho client: made, looked after, and thrown away when it ends."""

from __future__ import annotations  # they name classes of paho, which may be missing

import os
import selectors
import socket
import time
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from functools import cache
from itertools import zip_longest
from math import inf
from typing import Any, Final

from srup.certificates import explain
from srup.errors import TransportError
from srup.transport import unsettled
from srup.transport.base import Fence, log
from srup.transport.endpoint import Endpoint, demand
from srup.transport.keepalive import PING, KeepAlive, Verdict
from srup.transport.packetsizes import Message, PacketSizes
from srup.transport.reactor import Member, Reactor
from srup.transport.stream import Stream
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
    HAS_PAHO = False  # told by the constructor, so that whoever does not use MQTT can import everything
else:
    HAS_PAHO = True

    class _Client(paho.Client):
        """A paho client whose socket is a :class:`Stream`. The method is paho's; a test says if that has changed."""

        def _create_socket(self) -> Any:
            is_5 = self.protocol == MQTTProtocolVersion.MQTTv5
            return Stream(super()._create_socket(), is_5, _MAX_PACKET)  # type: ignore[arg-type]


__all__ = ["CONNECT_TIMEOUT", "HAS_PAHO", "Link"]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for TCP, and again for the TLS handshake."""

_ANSWER_TIMEOUT: Final = 10.0  # seconds until the broker has answered our CONNECT
_FAREWELL_TIMEOUT: Final = 1.0  # seconds until the broker has closed the connection after our DISCONNECT
_TICK: Final = 1.0  # seconds; the keep-alive needs to be looked after, the longer it is the more seldom
_NEVER: Final = 65_535  # seconds: the longest keep-alive, for a broker that wants none
_IN_FLIGHT: Final = 20  # messages sent and not acknowledged; more than this is slower
_MAX_PACKET: Final = 131_072  # bytes; the longest message is half as long, the rest is for topic and properties
_FILTERS_PER_PACKET: Final = 8  # AWS IoT Core takes no more
_UNSENT: Final = 65_536  # bytes that wait to be sent; no more messages join them
_MAX_UNSENT: Final = 4_194_304  # answers to the broker join them; one that takes none of so many is given up
_REFUSED_PAUSE: Final = 30.0  # seconds until a subscription is tried again that the broker has refused
_FAILURES: Final = 0x80  # reason codes from this one on: MQTT 5.0, section 2.4
_UNSUPPORTED_VERSION: Final = 0x84
_KEEP_ALIVE_TIMEOUT: Final = 0x8D
_TAKEN_OVER: Final = 0x8E
_TOO_LARGE: Final = 0x95


class Link:
    """One connection with its paho client, used by one thread at a time and thrown away when it ends.

    A connector runs :meth:`connect`, and the network thread everything after that. paho calls back from within
    :meth:`move`; the callbacks note what happened, and the network thread acts on it.
    """

    __slots__ = (
        "_answered",
        "_client",
        "_descriptor",
        "_endpoint",
        "_fence",
        "_forgotten",
        "_full",
        "_is_5",
        "_keep_alive",
        "_line",
        "_member",
        "_reached",
        "_reactor",
        "_refused",
        "_resumed",
        "_sizes",
        "_stream",
        "_subscribe_at",
        "_subscribing",
        "_unsubscribing",
        "_wanted",
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

    def __init__(
        self,
        endpoint: Endpoint,
        sizes: PacketSizes,
        wanted: Container[str],
        fence: Fence,
        reactor: Reactor,
        member: Member,
        wake: Callable[[], object],
    ) -> None:
        self.ended: str | None = None  # why; None while it lasts
        self.due = 0.0  # when to look after it again, on the monotonic clock
        self.accepted = False
        self.greeted = False
        self.version_refused = False
        self.taken_over = False
        self.too_large = False  # the broker has said that a packet of ours was
        self.cut = False  # it has ended without a word
        self.in_flight: dict[int, Message] = {}  # sent and not acknowledged, by packet id, in order
        self.changed = True  # the broker has said something about subscriptions, or we have asked for some
        self.unsettled = Unsettled(fence, wake)
        self._endpoint = endpoint
        self._sizes = sizes
        self._wanted = wanted
        self._fence = fence
        self._reactor = reactor
        self._member = member
        self._stream: Stream | None = None  # none before it is connected
        self._full = False  # the stream has more for us, which had to wait
        self._line: socket.socket | None = None  # from our DISCONNECT until the broker has hung up
        self._descriptor = -1  # what the reactor watches, and for which events
        self._watched = 0
        self._resumed = False
        self._answered = False
        self._window = _IN_FLIGHT
        self._keep_alive = KeepAlive(endpoint.keepalive, 0.0)
        self._reached = 0.0  # when the broker's host was, on the monotonic clock
        self._refused: dict[str, str] = {}  # subscriptions that the broker has refused, and why
        self._subscribe_at = inf  # when they are tried again
        self._subscribing: dict[int, list[str]] = {}
        self._unsubscribing: dict[int, list[str]] = {}
        self._forgotten: list[str] = []
        self._is_5 = endpoint.is_5
        self._client = client = _Client(
            CallbackAPIVersion.VERSION2,
            endpoint.client_id,
            clean_session=None if self._is_5 else False,
            userdata=self,
            protocol=MQTTProtocolVersion.MQTTv5 if self._is_5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_TIMEOUT
        client.on_connect = _on_connect
        client.on_disconnect = _on_disconnect
        client.on_subscribe = _on_subscribe
        client.on_unsubscribe = _on_unsubscribe
        username, password = endpoint.credentials
        if username is not None:
            client.username_pw_set(username, password)

    @property
    def dialect(self) -> str:
        """The version of MQTT it speaks."""
        return "5" if self._is_5 else "3.1.1"

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return self._client.want_write() or (self._stream is not None and self._stream.unsent > 0)

    @property
    def may_publish(self) -> bool:
        """Whether one more message may be sent now."""
        clogged = self._client.want_write() or (self._stream is not None and self._stream.unsent > _UNSENT)
        window = 1 if self._sizes.one_by_one else self._window
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
        return f"{self._endpoint.where} refuses the subscription to {topic_filter!a}{others}: {reason}"

    @property
    def ignored(self) -> bool:
        """Whether the host was there and answered nothing; a broker may treat a version that it does not know so."""
        return self._reached > 0.0 and not self._answered

    def lasted(self, seconds: float) -> bool:
        """Whether the broker accepted it, and that long ago."""
        return self.accepted and time.monotonic() - self._reached >= seconds

    def connect(self) -> None:
        """Reach the host, agree on TLS and send CONNECT; blocks for as long as the timeouts at the top say."""
        endpoint = self._endpoint
        arguments: dict[str, Any] = {}
        if self._is_5:
            arguments = {"clean_start": False, "properties": _connect_properties(endpoint.session_expiry)}
        try:
            self._prepare()
            self._client.connect(endpoint.host, endpoint.port, endpoint.keepalive, **arguments)
            sock: Any = self._client.socket()
            if sock is not None:
                demand(isinstance(sock, Stream), "this version of paho-mqtt is not known; install paho-mqtt 2.2")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._stream = sock
            self.flush()
        except OSError as error:
            self.end(f"cannot connect to {endpoint.where}: {explain(error, own_context=True)}")
        except TransportError as error:
            self.end(f"cannot connect to {endpoint.where}: {error}")
        else:
            self._reached = self.due = time.monotonic()
            self.keep_alive(endpoint.keepalive)

    def _prepare(self) -> None:
        """Read the certificates as they are now."""
        endpoint = self._endpoint
        if endpoint.before_connect is not None:
            try:
                endpoint.before_connect()
            except Exception:  # noqa: BLE001 - what the old certificates are still good for, they shall serve
                self._fence.fault("before_connect raised")
        if (tls := endpoint.renew_tls()) is not None:
            self._client.tls_set_context(tls)

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
            self._reactor.watch(self._descriptor, events, self._member)

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
                self.end(f"{self._endpoint.where} sent {self._stream.fault}")
        if ready & selectors.EVENT_WRITE and self._client.want_write():
            self._client.loop_write()
        if self._client.socket() is None:
            self.end(f"the connection to {self._endpoint.where} was lost")

    def flush(self) -> None:
        """Send what has been gathered, as far as the socket takes it."""
        if self._stream is None:
            return
        if not self._stream.flush():
            self._client.loop_read()  # which hears that the connection is over
        elif self._stream.unsent > _MAX_UNSENT:
            self.end(f"{self._endpoint.where} takes nothing that is sent to it")

    def check_time(self, now: float) -> None:
        """Keep alive; give up on a broker that does not answer."""
        if now < self.due:
            return
        seconds = self._keep_alive.seconds
        self.due = now + (max(_TICK, seconds / 8) if seconds > 4 else _TICK / 4)
        if self.accepted and self._stream is not None:
            self._ask_for_life(self._stream, now)
        if now >= self._subscribe_at:
            self._subscribe_at = inf
            self.subscribe(list(self._refused))
        if not self._answered:
            self.due = min(self.due, self._reached + _ANSWER_TIMEOUT)
            if now >= self._reached + _ANSWER_TIMEOUT:
                self.end(f"{self._endpoint.where} does not answer")

    def keep_alive(self, seconds: float) -> None:
        """Ask for a sign of life every so many seconds from now on."""
        self._keep_alive = KeepAlive(seconds, time.monotonic())
        if self._stream is not None and (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
            # While we do not read, only the system sees that nobody confirms what is sent.
            self._stream.setsockopt(socket.IPPROTO_TCP, option, int(2000 * seconds))

    def _ask_for_life(self, stream: Stream, now: float) -> None:
        heard, stream.heard = stream.heard, False
        match self._keep_alive.check(now, heard=heard, listens=not self.unsettled.is_full):
            case Verdict.ASK:
                stream.send(PING)
            case Verdict.GIVE_UP:
                self.end(f"the connection to {self._endpoint.where} was lost")

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

    def publish(self, message: Message) -> None:
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
        self._sizes.taken(message)
        if message.on_settled is not None:
            self._fence.settle(message.topic, message.on_settled)

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
            self._reactor.watch(self._descriptor, self._watched, self._member)

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
            self._reactor.forget(self._descriptor)
            self._watched = 0


# paho's callbacks, all from within connect, move, check_time and take_leave; the user data is the link. They
# belong to no object, of which a fleet would have thousands. Signatures: its API version 2.


def _on_connect(
    _client: paho.Client, link: Link, flags: paho.ConnectFlags, reason: ReasonCode, properties: object
) -> None:
    link._answered = True
    if reason.is_failure:
        link.version_refused = reason.value == _UNSUPPORTED_VERSION
        link.end(f"{link._endpoint.where} refused the connection: {reason}")
        return
    if getattr(properties, "MaximumQoS", 1) < 1:
        link.end(f"{link._endpoint.where} takes no messages with QoS 1")
        return
    link.accepted = True
    link._resumed = flags.session_present
    link._window = min(_IN_FLIGHT, getattr(properties, "ReceiveMaximum", _IN_FLIGHT))
    if (seconds := getattr(properties, "ServerKeepAlive", None)) is not None:
        link.keep_alive(seconds or _NEVER)
    link.due = 0.0
    link._sizes.announce(getattr(properties, "MaximumPacketSize", 0))


def _on_disconnect(
    _client: paho.Client, link: Link, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
) -> None:
    link.too_large = reason.value == _TOO_LARGE
    if not flags.is_disconnect_packet_from_server:
        link.cut = reason.value != _KEEP_ALIVE_TIMEOUT
        link.end(f"the connection to {link._endpoint.where} was lost")
    elif reason.value == _TAKEN_OVER:
        link.taken_over = True
        link.end(f"another client with the id {link._endpoint.shown_id} took the session over")
    else:
        link.end(f"{link._endpoint.where} ended the connection: {reason}")


def _on_subscribe(_client: paho.Client, link: Link, mid: int, reasons: list[ReasonCode], _properties: object) -> None:
    filters = link._subscribing.pop(mid, [])
    link.changed = True
    for topic_filter, reason in zip_longest(filters, reasons[: len(filters)]):
        if (reason is None or reason.is_failure) and topic_filter in link._wanted:
            link._refused[topic_filter] = "no answer" if reason is None else str(reason)
            link._subscribe_at = time.monotonic() + _REFUSED_PAUSE
        else:
            link._refused.pop(topic_filter, None)


def _on_unsubscribe(
    _client: paho.Client, link: Link, mid: int, _reasons: list[ReasonCode], _properties: object
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


def _batches(filters: list[str]) -> Iterable[list[str]]:
    return (filters[start : start + _FILTERS_PER_PACKET] for start in range(0, len(filters), _FILTERS_PER_PACKET))
