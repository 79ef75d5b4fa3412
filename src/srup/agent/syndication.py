"""Syndication that runs: servers that share their devices, and the device that stands between them.

``server.syndicate(device, ...)`` begins on the home server, ``on_syndication_request`` decides on the away server, and
a :class:`SyndicationDevice` carries everything between the two: two devices in one, each with an identity, a key, a
broker and a thread of its own (docs/syndication.md; FLOWS.md, "Syndication"; T16).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Self, get_args

from ..errors import EncodeError, PolicyError, SealError, SrupError, UnknownSenderError
from ..keys import PrivateKey, PublicKey
from ..messages import DataKind, SyndicatedC2Request, SyndicationInit, SyndicationRequest, decode_data
from ..records import State
from ..seal import seal
from ..session.events import (
    DataReceived,
    DevicesMissing,
    DevicesShared,
    IdentificationRefused,
    JoinAnswered,
    Left,
    RelayFailed,
    SyndicatedActionRequested,
    SyndicatedC2Requested,
    SyndicatedDataReceived,
    SyndicatedIdentified,
    SyndicatedIdRequested,
    SyndicationAnswered,
    SyndicationEnded,
    SyndicationOffered,
    SyndicationRequested,
    Unanswered,
)
from ..session.relay import AwaySide, Crossing, HomeSide, RelayAnswered, Relayed, failure
from ..session.syndication import Role, SyndicationServerSession
from ..transport.base import Transport
from ..wire import Status
from .base import _MAX_WAITING, Handler, check_identity, check_type
from .device import Device, JoinKind
from .server import Server

__all__ = ["AwayNetwork", "SyndicationDevice", "SyndicationServer"]


class SyndicationServer(Server):
    """A server that takes part in syndications: as home, as away, or both. What :class:`Server` takes, it takes too.

    ``syndication_devices`` are the identities that are registered as such and may therefore ask for a syndication with
    this server; :meth:`admit` adds others later.
    """

    _session_type = SyndicationServerSession
    _session: SyndicationServerSession

    def __init__(
        self, identity: int, key: PrivateKey, *, syndication_devices: Collection[int] = (), **options: Any
    ) -> None:
        super().__init__(identity, key, **options)
        self._shared: dict[int, tuple[int, ...]] = {}
        self._syndicated_data: dict[str | None, tuple[DataKind, Callable[..., Any]]] = {}
        for device in syndication_devices:
            self.admit(device)

    def _restore_role(self, state: State) -> None:
        super()._restore_role(state)
        for device in self._session.partners():
            known = self._session.syndication(device)
            if known is not None and known.role is Role.HOME and known.count is not None and not known.missing:
                self._shared[device] = tuple(known.devices[number] for number in sorted(known.devices))

    # Home.

    def syndicate(self, device: int, url: str, value: bytes, lifetime: float | None = None) -> "Future[None]":
        """Have a syndication device of ours join the server whose key service is at ``url``; done when it is in.

        ``value`` is what that server's owner recognises us by; deployed peers need 32 bytes. It travels sealed, first
        to the device, then to the other server. PolicyError when they refuse, UnansweredError when it took more than
        ``lifetime`` seconds (default: the policy's ``update_lifetime``).
        """

        def begin(now: float, nonce: bytes) -> list[Any]:
            key = self.devices.get(device)
            if key is None:
                raise UnknownSenderError(device)
            return [*self._session.begin_syndication(device, url, seal(value, key), now, nonce, lifetime)]

        return self._request(begin)

    def shared_devices(self, device: int) -> tuple[int, ...]:
        """Return the identities that are shared with us through a syndication device; empty until all are known."""
        return self._shared.get(device, ())

    def syndicated_action(
        self, device: int, target: int, action_id: int, lifetime: float | None = None
    ) -> "Future[Status]":
        """Ask for an action of the shared device ``target``; the result is its answer.

        ACTION_FAIL when the other owner refuses, ACTION_UNKNOWN when it is not shared, UnansweredError when no answer
        came: then it is not known whether it was done.
        """
        return self._request(
            lambda now, nonce: self._session.syndicated_action(device, target, action_id, now, nonce, lifetime)
        )

    def syndicated_identify(self, device: int, target: int) -> "Future[str]":
        """Ask what the shared device ``target`` is; the result is its description. PolicyError when it is not told."""
        return self._request(lambda now, nonce: self._session.syndicated_identify(device, target, now, nonce))

    def syndicated_request(
        self, device: int, req_id: int, data: bytes | str | int | float, kind: DataKind | None = None
    ) -> "Future[Status]":
        """Make a request of the other server (C2 request) whose meaning the owners agreed; the result is its answer."""
        encoded = SyndicatedC2Request.encode_value(data, kind)
        return self._request(lambda now, nonce: self._session.syndicated_request(device, req_id, encoded, now, nonce))

    def end_syndication(self, device: int) -> "Future[None]":
        """End a syndication as home; done when the other server confirms.

        UnansweredError when it does not: it is over all the same.
        """

        def end(now: float, nonce: bytes) -> list[Any]:
            outputs = self._session.end_syndication(device, now, nonce)
            self._shared.pop(device, None)
            return outputs

        return self._request(end)

    def on_shared(self, handler: Handler) -> Handler:
        """Decorate what is called with a syndication device and the tuple of all devices shared through it."""
        return self._register(self._handlers, "shared")(handler)

    def on_syndicated_data(self, data_id: str | None = None, kind: DataKind = "bytes") -> Callable[[Handler], Handler]:
        """Decorate what takes values of shared devices, as :meth:`on_data` does for one's own.

        It is called with the syndication device, the shared device, the ``data_id`` and the value.
        """
        if kind not in get_args(DataKind):
            raise ValueError(f"{kind!r} is no kind of data; the kinds are {', '.join(get_args(DataKind))}")
        return self._register(self._syndicated_data, data_id, lambda handler: (kind, handler))

    # Away.

    def admit(self, device: int) -> None:
        """Register an identity as a syndication device: it may ask for a syndication."""
        check_identity(device, "a syndication device")
        self._session.syndication_devices.add(device)

    def share(self, device: int, devices: Iterable[int]) -> "Future[None]":
        """Share these devices with a home server, and no others; done when the list is handed to the transport."""
        shared = tuple(devices)
        return self._request(lambda now, nonce: self._session.share(device, shared, now, nonce), answered=False)

    def terminate_syndication(self, device: int) -> "Future[None]":
        """End a syndication as away; done when the message is handed to the transport. The device remains joined."""
        return self._request(lambda now, nonce: self._session.terminate_syndication(device, now, nonce), answered=False)

    def on_syndication_request(self, handler: Handler) -> Handler:
        """Decorate what decides about syndications. It is called with the syndication device and home's value (bytes).

        It returns the identities to share, or False to refuse. Without a handler every request is refused. Deployed
        peers pad a value with NULs to 32 bytes.
        """
        return self._register(self._handlers, "syndication request")(handler)

    def on_syndicated_action(self, handler: Handler) -> Handler:
        """Decorate what moderates actions for home: called with the syndication device, the target and the action id.

        If it returns False or a Status other than ACTION_SUCCESS, or raises, that is answered; otherwise the target is
        asked and its answer goes back. Without a handler everything is refused.
        """
        return self._register(self._handlers, "syndicated action")(handler)

    def on_syndicated_identify(self, handler: Handler) -> Handler:
        """Decorate what moderates identifications likewise: called with the syndication device and the target."""
        return self._register(self._handlers, "syndicated identify")(handler)

    def on_syndicated_request(self, handler: Handler) -> Handler:
        """Decorate what carries out home's requests: called with the syndication device, the ``req_id`` and the bytes.

        What it returns is answered as that of :meth:`on_action`. Without a handler everything is refused.
        """
        return self._register(self._handlers, "syndicated request")(handler)

    # Both.

    def on_syndication_ended(self, handler: Handler) -> Handler:
        """Decorate what is called with the syndication device when a syndication is over."""
        return self._register(self._handlers, "syndication ended")(handler)

    # Events.

    events = {
        **Server.events,
        SyndicationAnswered: "_syndication_answered",
        SyndicationEnded: "_syndication_ended",
        DevicesShared: "_devices_shared",
        DevicesMissing: "_devices_missing",
        SyndicatedDataReceived: "_syndicated_data_received",
        SyndicatedIdentified: "_syndicated_identified",
        IdentificationRefused: "_identification_refused",
        SyndicationRequested: "_syndication_requested",
        SyndicatedActionRequested: "_syndicated_action_requested",
        SyndicatedIdRequested: "_syndicated_id_requested",
        SyndicatedC2Requested: "_syndicated_c2_requested",
    }

    def _syndication_answered(self, event: SyndicationAnswered) -> None:
        status = event.status.name
        self._log(logging.INFO, "%r: syndication by %x: %s", event.peer, status, partner=event.peer, status=status)
        refused = PolicyError(f"{event.peer:x} answers {event.status.name}")
        self._settle(event, None if event.status is Status.JOIN_SUCCESS else refused)

    def _syndication_ended(self, event: SyndicationEnded) -> None:
        self._log(logging.INFO, "%r: the syndication by %x is over", event.peer, partner=event.peer)
        self._shared.pop(event.peer, None)
        self._settle(event, None)
        self._tell("syndication ended", event.peer)

    def _unanswered(self, event: Unanswered) -> None:
        super()._unanswered(event)
        if event.request is SyndicationInit:
            self._shared.pop(event.peer, None)

    def _devices_shared(self, event: DevicesShared) -> None:
        self._shared[event.peer] = event.devices
        self._tell("shared", event.peer, event.devices)

    def _devices_missing(self, event: DevicesMissing) -> None:
        text, missing = "%r: %d devices of the list by %x are missing", len(event.numbers)
        self._log(logging.WARNING, text, missing, event.peer, partner=event.peer)
        if event.repeats:
            self._perform(self._session.request_list(event.peer, self._clock(), self._entropy(16)))

    def _syndicated_data_received(self, event: SyndicatedDataReceived) -> None:
        kind, handler = self._syndicated_data.get(event.data_id) or self._syndicated_data.get(None) or (None, None)
        try:
            value = None if kind is None else decode_data(event.data, kind)
        except SrupError as error:
            text, peer, data_id, source = "%r: value %a of %x: %s", event.peer, event.data_id, event.source
            said = text, data_id, source, error
            self._log(logging.WARNING, *said, partner=peer, data_id=data_id, device=f"{source:x}", error=error)
            handler = None
        if handler is not None:
            self._apply_for(event.peer, event.token, lambda: handler(event.peer, event.source, event.data_id, value))
        else:
            self._drive(self._session.refuse_data, event.peer, event.token)

    def _syndicated_identified(self, event: SyndicatedIdentified) -> None:
        self._settle(event, event.text)

    def _identification_refused(self, event: IdentificationRefused) -> None:
        self._settle(event, PolicyError(f"{event.peer:x} answers {event.status.name}"))

    def _data_received(self, event: DataReceived) -> None:
        mine = event.data_id in self._data or None in self._data
        if mine or not self._session.shares(event.peer):  # what home may know is not refused here
            super()._data_received(event)

    def _syndication_requested(self, event: SyndicationRequested) -> None:
        handler = self._handlers.get("syndication request")

        def job() -> None:
            shared: tuple[int, ...] = ()
            try:
                said: Any = False if handler is None else handler(event.peer, self._unseal(event.sealed))
                status = Status.JOIN_REFUSED if said is False else Status.JOIN_SUCCESS
                shared = () if said is False else tuple(said)
            except SealError as error:
                text, peer = "%r: syndication by %x: %s", event.peer
                self._log(logging.WARNING, text, peer, error, partner=peer, error=error)
                status = Status.JOIN_FAIL
            except (Exception, SystemExit):  # noqa: BLE001 - the device gets an answer whatever happens
                self.counts["faults"] += 1
                self._log(logging.ERROR, "%r: a handler raised", partner=event.peer, exc_info=True)
                status = Status.JOIN_FAIL

            def decide(now: float) -> list[Any]:
                answer = status
                if answer is Status.JOIN_SUCCESS:
                    try:
                        nonce = self._entropy(16)
                        return self._session.accept_syndication(event.peer, event.token, shared, now, nonce)
                    except EncodeError as error:
                        self.counts["faults"] += 1
                        text = "%r: a handler returned devices that cannot be shared: %s"
                        self._log(logging.ERROR, text, error, partner=event.peer, error=error)
                        answer = Status.JOIN_FAIL
                return self._session.refuse_syndication(event.peer, event.token, now, answer)

            self._drive(decide)

        self._apply_for(event.peer, event.token, job)

    def _syndicated_action_requested(self, event: SyndicatedActionRequested) -> None:
        self._moderate("syndicated action", event.peer, event.token, event.target, event.action_id)

    def _syndicated_id_requested(self, event: SyndicatedIdRequested) -> None:
        self._moderate("syndicated identify", event.peer, event.token, event.target)

    def _syndicated_c2_requested(self, event: SyndicatedC2Requested) -> None:
        self._moderate("syndicated request", event.peer, event.token, event.req_id, event.data)

    def _moderate(self, name: str, device: int, token: bytes, *arguments: object) -> None:
        handler = self._handlers.get(name)

        def job() -> None:
            status = Status.ACTION_FAIL
            if handler is not None:
                possible = {"failure": Status.ACTION_FAIL, "success": Status.ACTION_SUCCESS}
                status = self._ask(handler, device, *arguments, **possible)

            def decide(now: float) -> list[Any]:
                if status is Status.ACTION_SUCCESS:
                    return self._session.allow(device, token, now, self._entropy(16))
                return self._session.refuse(device, token, now, status)

            self._drive(decide)

        self._apply_for(device, token, job)


class AwayNetwork(NamedTuple):
    """How a syndication device gets into the away network: what registering there has given.

    ``join`` is how the device joins there: "human" needs a handler (:meth:`Device.on_join_value`) of the syndication
    device that shows the value. ``options`` are further arguments of :class:`Device`, such as ``first_sequence_id``.
    """

    identity: int
    key: PrivateKey
    server: int
    server_key: PublicKey
    broker: str | Transport
    join: JoinKind = "human"
    options: Mapping[str, Any] = {}


class _Side(Device):
    """What the two sides have in common: they hand over and take what crosses."""

    _session: HomeSide | AwaySide

    def _hand(self, event: Crossing) -> None:
        """Take what the other side hands over, on any thread; bounded, for a network may flood the other."""
        if self._inbox.qsize() >= _MAX_WAITING:
            self.counts["overflow"] += 1
        else:
            self._inbox.put(lambda: self._cross(event))

    def _cross(self, event: Crossing) -> None:
        self._perform(self._session.cross(event, self._clock(), self._entropy(16)))

    def _relay_failed(self, event: RelayFailed) -> None:
        self.counts["not relayed"] += 1
        kind = event.message.__name__
        text = "%r could not pass %s on: %s"
        self._log(logging.WARNING, text, kind, event.why, message_type=kind, reason=event.why)


class SyndicationDevice(_Side):
    """A device of the home server that joins away servers for it. What :class:`Device` takes, it takes too.

    One syndication runs at a time; a new one replaces it. ``away`` is the device on the other network.
    """

    _session_type = HomeSide
    _session: HomeSide

    def __init__(self, identity: int, key: PrivateKey, **options: Any) -> None:
        super().__init__(identity, key, **options)
        self._away: _AwayDevice | None = None
        self._aways: list[_AwayDevice] = []  # that one, or one that is leaving
        self._next: _AwayDevice | None = None  # what comes after it
        self._threaded = True

    @property
    def away(self) -> Device | None:
        """The device on the away network; None when there is no syndication."""
        return self._away

    @property
    def syndicated(self) -> bool:
        """Whether there is a syndication now."""
        away = self._away
        return away is not None and away.syndicated

    def on_syndication_init(self, handler: Handler) -> Handler:
        """Decorate what gets us into an away network. It is called with the URL of the key service that home names.

        It registers there and returns an :class:`AwayNetwork`, or False to refuse. It may take its time. Without a
        handler every syndication is refused.
        """
        return self._register(self._handlers, "syndication init")(handler)

    def on_syndication_ended(self, handler: Handler) -> Handler:
        """Decorate what is called, without arguments, when a syndication is over or did not come about."""
        return self._register(self._handlers, "syndication ended")(handler)

    # Life: the away side lives and dies with this one.

    def start(self, threads: bool = True) -> Self:
        """See :meth:`Agent.start`."""
        self._threaded = threads
        return super().start(threads)

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Device.stop`."""
        super().stop(timeout)
        for away in (*self._aways, *([self._next] if self._next else [])):
            away.stop(timeout)

    def step(self) -> None:
        """See :meth:`Agent.step`."""
        super().step()
        for away in list(self._aways):
            away.step()

    def deadline(self) -> float | None:
        """See :meth:`Agent.deadline`."""
        aways = () if self._threaded else (away.deadline() for away in list(self._aways))
        return min((due for due in (super().deadline(), *aways) if due is not None), default=None)

    # Events of the home side.

    events = {
        **Device.events,
        SyndicationOffered: "_syndication_offered",
        SyndicationEnded: "_offer_expired",
        Relayed: "_relayed",
        RelayAnswered: "_relayed",
        RelayFailed: "_relay_failed",
    }

    def _relayed(self, event: Crossing) -> None:
        if self._away is not None:
            self._away._hand(event)
            return
        for answer in failure(event, self.server):
            assert isinstance(answer, Crossing)  # noqa: S101 - that is all there is
            self._cross(answer)

    def _syndication_offered(self, event: SyndicationOffered) -> None:
        handler = self._handlers.get("syndication init")

        def job() -> None:
            status = Status.JOIN_FAIL
            try:
                value = self._unseal(event.sealed)
                network: Any = False if handler is None else handler(event.url)
                if network is not False:
                    check_type(network, AwayNetwork, "what a handler of on_syndication_init returns")
                    away = _AwayDevice(self, event.token, value, network)
                    self._inbox.put(lambda: self._engage(away))
                    if self._stopped.is_set():
                        self._drain()  # nobody else would
                    return
                status = Status.JOIN_REFUSED
            except SealError as error:
                self._log(logging.WARNING, "%r: syndication refused: %s", error, partner=event.peer, error=error)
            except (Exception, SystemExit):  # noqa: BLE001 - home gets an answer whatever happens
                self.counts["faults"] += 1
                self._log(logging.ERROR, "%r could not enter the away network", exc_info=True)
            self._drive(lambda now: self._session.answer_init(event.token, status, now))

        self._apply_for(event.peer, event.token, job)

    def _offer_expired(self, event: SyndicationEnded) -> None:
        away = self._away
        if away is not None and away.token == event.token and not away.syndicated:
            self._dismiss_away(away)

    def _left(self, event: Left) -> None:
        super()._left(event)
        if self._away is not None:
            self._dismiss_away(self._away)

    # The away side, from this one's thread.

    def _engage(self, away: "_AwayDevice") -> None:
        """Start an away side, but first let another one end: it may have the same identity."""
        waiting, self._next = self._next, None
        if waiting is not None and waiting is not away:
            waiting.stop(0.0)
        if self._stopping.is_set():
            away.stop(0.0)
        elif not self._session.awaits(self.server, away.token):  # home has put us out meanwhile, or its time is up
            away.stop(0.0)
            self._tell("syndication ended")
        elif self._aways:
            self._next = away
            self._dismiss_away(self._aways[0])
        else:
            self._away = away
            self._aways.append(away)
            away.start(self._threaded)

    def _dismiss_away(self, away: "_AwayDevice") -> None:
        """Leave the away network and stop that side."""
        if self._away is not away:
            return
        self._away = None
        self._tell("syndication ended")

        def stop() -> None:
            away.stop()
            self._inbox.put(self._gone)

        away.depart().add_done_callback(lambda _: self._apply(stop))

    def _gone(self) -> None:
        self._aways.clear()
        if self._next is not None:
            self._engage(self._next)

    def _away_answered(self, away: "_AwayDevice", status: Status) -> None:
        """Tell home whether we are in; when it does not wait for that any more, there is no reason to be."""
        try:
            self._perform(self._session.answer_init(away.token, status, self._clock()))
        except PolicyError as error:
            self._log(logging.WARNING, "%r: %s", error, error=error)
            self._dismiss_away(away)
        if status is not Status.JOIN_SUCCESS:
            self._dismiss_away(away)


class _AwayDevice(_Side):
    """The side of a syndication device on the away network."""

    _session_type = AwaySide
    _session: AwaySide

    def __init__(self, home: SyndicationDevice, token: bytes, value: bytes, network: AwayNetwork) -> None:
        options: dict[str, Any] = {
            "clock": home._clock,
            "entropy": home._entropy,
            "firmware": home.firmware,
            "policy": home._session.policy,
            "join": network.join,
        } | dict(network.options)
        super().__init__(
            network.identity,
            network.key,
            server=network.server,
            server_key=network.server_key,
            broker=network.broker,
            **options,
        )
        self.token = token  # of home's SyndicationInit
        self._home = home
        self._value = value
        self._requested = False
        for name in ("refused", "join_value", "key"):
            if name in home._handlers:
                self._handlers[name] = home._handlers[name]
        if self._join_kind != "simple" and "join_value" not in self._handlers:
            raise ValueError(f"a join of the kind {self._join_kind} needs a handler: on_join_value")

    @property
    def syndicated(self) -> bool:
        """Whether the away server has begun the syndication."""
        return self._session.syndicated

    def depart(self) -> "Future[None]":
        """Leave the network; done when that is handed to the transport, or when there is nothing to leave."""
        self._wants_in = False
        return self._request(lambda now, nonce: self._session.resign(self.server, now, nonce), answered=False)

    events = {
        **Device.events,
        SyndicationAnswered: "_syndication_answered",
        SyndicationEnded: "_syndication_ended",
        Relayed: "_relayed",
        RelayAnswered: "_relayed",
        RelayFailed: "_relay_failed",
    }

    def _relayed(self, event: Crossing) -> None:
        self._home._hand(event)

    def _join_answered(self, event: JoinAnswered) -> None:
        super()._join_answered(event)
        if event.status is not Status.JOIN_SUCCESS:
            self._tell_home(event.status)
        elif self._wants_in and not self._requested:
            self._requested = True
            sealed = seal(self._value, self._keys[self.server])
            self._perform(self._session.request_syndication(sealed, self._clock(), self._entropy(16)))

    def _syndication_answered(self, event: SyndicationAnswered) -> None:
        text, status = "%r: server %x answers the syndication with %s", event.status.name
        self._log(logging.INFO, text, event.peer, status, partner=event.peer, status=status)
        self._tell_home(event.status)

    def _unanswered(self, event: Unanswered) -> None:
        super()._unanswered(event)
        if event.request is SyndicationRequest:
            self._tell_home(Status.JOIN_FAIL)

    def _syndication_ended(self, event: SyndicationEnded) -> None:
        self._home._inbox.put(lambda: self._home._dismiss_away(self))

    def _tell_home(self, status: Status) -> None:
        self._home._inbox.put(lambda: self._home._away_answered(self, status))
