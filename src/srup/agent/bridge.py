"""The device that stands between two servers: two devices in one, each with an identity, a key, a broker and a thread.

The home side is an ordinary device of the home server. The away side lives as long as a syndication, on the network of
the away server. What one side hears and the other is to send crosses between their engines
(docs/syndication.md; docs/protocol/flows.md#syndication; T16).
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..errors import PolicyError, SealError
from ..keys import PrivateKey, PublicKey
from ..messages import DeregisterRequest, ResignRequest, SyndicationRequest
from ..seal import seal
from ..session.events import (
    Event,
    JoinAnswered,
    Left,
    RelayFailed,
    SyndicationAnswered,
    SyndicationEnded,
    SyndicationOffered,
    Unanswered,
)
from ..session.relay import AwaySide, Crossing, HomeSide, RelayAnswered, Relayed, failure
from ..transport.base import Transport
from ..wire import Status
from .arguments import check_type
from .device import Device
from .duty import Duty, Listener
from .handlers import Handler
from .inbound import MAX_WAITING
from .joining import Joining, JoinKind
from .transaction import Call, Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["AwayNetwork", "SyndicationDevice"]


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


class Crossings(Duty):
    """One side's door: ``across`` is called with what this side hands over to the other one."""

    def __init__(
        self, engine: "Engine", session: HomeSide | AwaySide, across: Callable[[Transaction, Crossing], object]
    ) -> None:
        self._engine = engine
        self._session = session
        self._across = across

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {Relayed: self._across, RelayAnswered: self._across, RelayFailed: self._relay_failed}

    def take(self, event: Crossing, counts: Callable[[], bool] = lambda: True) -> None:
        """Take what the other side hands over, on any thread, if it still ``counts`` when its turn comes.

        Bounded, for a network may flood the other.
        """

        def job(transaction: Transaction) -> None:
            if counts():
                self.cross(transaction, event)

        if len(self._engine.inbox) >= MAX_WAITING:
            self._engine.journal.counts["overflow"] += 1
        else:
            self._engine.inbox.put(job)

    def cross(self, transaction: Transaction, event: Crossing) -> None:
        """Let something have its effect on this side."""
        engine = self._engine
        engine.perform(transaction, self._session.cross(event, engine.clock(), engine.entropy(16)))

    def _relay_failed(self, transaction: Transaction, event: RelayFailed) -> None:
        journal = self._engine.journal
        journal.counts["not relayed"] += 1
        text, kind = "%s could not pass %s on: %s", event.message.__name__
        journal.log(logging.WARNING, text, kind, event.why, message_type=kind, reason=event.why)


class Bridge(Duty):
    """The home side of syndications: engages away sides, one at a time, and dismisses them.

    An away side that is dismissed goes on until its server has confirmed that it leaves, or its time is over: a lost
    resignation would leave a member there that nobody is any more. Nothing of it crosses to home.
    """

    def __init__(self, device: "SyndicationDevice", session: HomeSide) -> None:
        self.away: _AwayDevice | None = None
        self.threaded = True
        self._device = device
        self._engine = device.engine
        self._session = session
        self._crossings = self._engine.add(Crossings(self._engine, session, self._across))
        self._aways: list[_AwayDevice] = []  # that one, and those that are leaving
        self._next: _AwayDevice | None = None  # what comes after it

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            SyndicationOffered: self._offered,
            SyndicationEnded: self._offer_expired,
            Left: self._left,
            Unanswered: self._unanswered,
        }

    @property
    def aways(self) -> list["_AwayDevice"]:
        """The away sides that run: the one that is engaged, and those that are leaving."""
        return list(self._aways)

    def stop(self, timeout: float) -> None:
        """Stop the away sides. On any thread."""
        for away in (*self._aways, *([self._next] if self._next else [])):
            away.stop(timeout)

    def take(self, away: "_AwayDevice", event: Crossing) -> None:
        """Take what an away side hands over, unless it is dismissed by then. On any thread."""
        self._crossings.take(event, lambda: self.away is away)

    def _across(self, transaction: Transaction, event: Crossing) -> None:
        if self.away is not None:
            self.away.crossings.take(event)
            return
        for answer in failure(event, self._device.server):
            assert isinstance(answer, Crossing)  # noqa: S101 - that is all there is
            self._crossings.cross(transaction, answer)

    # Events.

    def _offered(self, transaction: Transaction, event: SyndicationOffered) -> None:
        engine = self._engine
        handler = engine.handlers.named.get("syndication init")

        def job() -> None:
            status = Status.JOIN_FAIL
            try:
                value = engine.own_keys.unseal(event.sealed)
                network: Any = False if handler is None else handler(event.url)
                if network is not False:
                    check_type(network, AwayNetwork, "what a handler of on_syndication_init returns")
                    away = _AwayDevice(self, self._device, event.token, value, network)
                    engine.post(lambda transaction: self._engage(transaction, away))
                    return
                status = Status.JOIN_REFUSED
            except SealError as error:
                engine.journal.counts["unopened"] += 1
                text = "%s: syndication refused: %s"
                engine.journal.log(logging.WARNING, text, error, partner=event.peer, error=error)
            except (Exception, SystemExit):  # noqa: BLE001 - home gets an answer whatever happens
                engine.journal.counts["faults"] += 1
                engine.journal.log(logging.ERROR, "%s could not enter the away network", exc_info=True)
            engine.decide(lambda now: self._session.answer_init(event.token, status, now))

        engine.handlers.call_for(transaction, event.peer, event.token, job)

    def _offer_expired(self, transaction: Transaction, event: SyndicationEnded) -> None:
        away = self.away
        if away is not None and away.token == event.token and not away.syndicated:
            self.dismiss_away(transaction, away)

    def _left(self, transaction: Transaction, event: Left) -> None:
        if self.away is not None:
            self.dismiss_away(transaction, self.away)

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        """Home has not heard that we leave, or deployed, does not say so: we are out, unless it has let us in since."""
        left = event.request in (ResignRequest, DeregisterRequest) and not self._session.is_member(event.peer)
        if left and self.away is not None:
            self.dismiss_away(transaction, self.away)

    # The away side, from this one's thread.

    def _engage(self, transaction: Transaction, away: "_AwayDevice") -> None:
        """Start an away side in the place of the one before; one that cannot run beside it ends first."""
        waiting, self._next = self._next, None
        if waiting is not None and waiting is not away:
            waiting.stop(0.0)
        if self._engine.stopping.is_set():
            away.stop(0.0)
            return
        if not self._session.awaits(self._device.server, away.token):  # home has put us out, or its time is up
            away.stop(0.0)
            self._engine.handlers.notify(transaction, "syndication ended")
            return
        if self.away is not None:
            self.dismiss_away(transaction, self.away)
        rivals = [each for each in self._aways if each.is_rival(away)]
        if rivals:
            self._next = away
            for rival in rivals:  # what it has asked for is sent; its place is taken by one that asks anew
                rival.flush().add_done_callback(lambda _, rival=rival: self._end(rival))  # type: ignore[misc]
        else:
            self.away = away
            self._aways.append(away)
            away.start(self.threaded)

    def dismiss_away(self, transaction: Transaction, away: "_AwayDevice") -> None:
        """Have an away side leave its network, and stop it then."""
        if self.away is not away:
            return
        self.away = None
        self._engine.handlers.notify(transaction, "syndication ended")
        away.depart().add_done_callback(lambda _: self._end(away))

    def _end(self, away: "_AwayDevice") -> None:
        """Stop an away side, on the application's thread. On any thread, and as often as one likes."""

        def stop() -> None:
            if not away.ended:
                away.ended = True
                away.stop()
                self._engine.inbox.put(partial(self._gone, away))

        self._engine.handlers.call(None, Call(stop))

    def _gone(self, away: "_AwayDevice", transaction: Transaction) -> None:
        self._aways.remove(away)
        if self._next is not None:
            self._engage(transaction, self._next)

    def away_answered(self, transaction: Transaction, away: "_AwayDevice", status: Status) -> None:
        """Tell home whether we are in; when it does not wait for that any more, there is no reason to be."""
        engine = self._engine
        try:
            engine.perform(transaction, self._session.answer_init(away.token, status, engine.clock()))
        except PolicyError as error:
            engine.journal.log(logging.WARNING, "%s: %s", error, error=error)
            self.dismiss_away(transaction, away)
        if status is not Status.JOIN_SUCCESS:
            self.dismiss_away(transaction, away)


class SyndicationDevice(Device):
    """A device of the home server that joins away servers for it. What :class:`Device` takes, it takes too.

    One syndication runs at a time; a new one replaces it. ``away`` is the device on the other network.
    """

    session_type = HomeSide

    def __init__(self, identity: int, key: PrivateKey, **options: Any) -> None:
        super().__init__(identity, key, **options)
        self._bridge = self.engine.add(Bridge(self, self.engine.session_of(HomeSide)))

    @property
    def away(self) -> Device | None:
        """The device on the away network; None when there is no syndication."""
        return self._bridge.away

    @property
    def syndicated(self) -> bool:
        """Whether there is a syndication now."""
        away = self._bridge.away
        return away is not None and away.syndicated

    def on_syndication_init(self, handler: Handler) -> Handler:
        """Register a handler that gets us into an away network, called with the URL of the key service that home names.

        It registers there and returns an :class:`AwayNetwork`, or False to refuse. It may take its time. Without a
        handler every syndication is refused.
        """
        return self.engine.handlers.register("syndication init", handler, 1)

    def on_syndication_ended(self, handler: Handler) -> Handler:
        """Register a handler called, without arguments, when a syndication is over or did not come about."""
        return self.engine.handlers.register("syndication ended", handler, 0)

    # Life: the away side lives and dies with this one.

    def start(self, threads: bool = True) -> Self:
        """See :meth:`Agent.start`."""
        self._bridge.threaded = threads
        return super().start(threads)

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Device.stop`."""
        super().stop(timeout)
        self._bridge.stop(timeout)

    def step(self) -> None:
        """See :meth:`Agent.step`."""
        super().step()
        for away in self._bridge.aways:
            away.step()

    def deadline(self) -> float | None:
        """See :meth:`Agent.deadline`."""
        aways = () if self._bridge.threaded else (away.deadline() for away in self._bridge.aways)
        return min((due for due in (super().deadline(), *aways) if due is not None), default=None)


class _AwayDevice(Device):
    """The side of a syndication device on the away network. ``token`` is that of home's SyndicationInit."""

    session_type = AwaySide

    def __init__(
        self, bridge: Bridge, home: SyndicationDevice, token: bytes, value: bytes, network: AwayNetwork
    ) -> None:
        options: dict[str, Any] = {
            "clock": home.engine.clock.unix,
            "entropy": home.engine.entropy,
            "firmware": home.firmware,
            "policy": home.engine.session.policy,
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
        self.token = token
        self.ended = False
        self._store = options.get("store")
        self._side = self.engine.session_of(AwaySide)
        self.crossings = self.engine.add(
            Crossings(self.engine, self._side, lambda transaction, event: bridge.take(self, event))
        )
        self._entry = self.engine.add(_Entry(self, self._side, bridge, home.engine, value))
        named = home.engine.handlers.named
        handlers = self.engine.handlers.named
        handlers.update({name: named[name] for name in ("refused", "join_value", "key") if name in named})
        if self.engine.part(Joining).kind != "simple" and "join_value" not in handlers:
            kind = self.engine.part(Joining).kind
            raise ValueError(f"a join of the kind {kind} needs a handler: on_join_value")

    @property
    def syndicated(self) -> bool:
        """Whether the away server has begun the syndication."""
        return self._side.syndicated

    def is_rival(self, other: "_AwayDevice") -> bool:
        """Return whether this one and the other cannot run at the same time."""
        return self.identity == other.identity or (self._store is not None and self._store == other._store)

    def depart(self) -> "Future[None]":
        """Leave the network, or take back the join; done when the server confirms, or has not in time."""
        self.engine.part(Joining).wants_in = False
        return self.engine.requests.ask(lambda transaction, now, nonce: self._side.resign(self.server, now, nonce))

    def flush(self) -> "Future[None]":
        """Return what is done when all that was asked for so far is handed to the transport."""
        return self.engine.requests.ask(lambda transaction, now, nonce: [], answered=False)


class _Entry(Duty):
    """Asks the away server for the syndication once it has let us in, and tells home what comes of it."""

    def __init__(self, away: _AwayDevice, session: AwaySide, bridge: Bridge, home: "Engine", value: bytes) -> None:
        self._away = away
        self._session = session
        self._bridge = bridge
        self._home = home
        self._value = value
        self._requested = False

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            JoinAnswered: self._join_answered,
            SyndicationAnswered: self._syndication_answered,
            SyndicationEnded: self._syndication_ended,
            Unanswered: self._unanswered,
        }

    def _join_answered(self, transaction: Transaction, event: JoinAnswered) -> None:
        engine = self._away.engine
        if event.status is not Status.JOIN_SUCCESS:
            self._tell_home(event.status)
        elif engine.part(Joining).wants_in and not self._requested:
            self._requested = True
            sealed = seal(self._value, engine.keys[self._away.server])
            try:
                outputs = self._session.request_syndication(sealed, engine.clock(), engine.entropy(16))
            except PolicyError as error:  # the away server has used up the sequence ids
                text, server = "%s cannot ask server %x for the syndication: %s", self._away.server
                engine.journal.log(logging.WARNING, text, server, error, partner=server, error=error)
                self._tell_home(Status.JOIN_FAIL)
            else:
                engine.perform(transaction, outputs)

    def _syndication_answered(self, transaction: Transaction, event: SyndicationAnswered) -> None:
        text, status = "%s: server %x answers the syndication with %s", event.status.name
        journal = self._away.engine.journal
        journal.log(logging.INFO, text, event.peer, status, partner=event.peer, status=status)
        self._tell_home(event.status)

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        if event.request is SyndicationRequest:
            self._tell_home(Status.JOIN_FAIL)

    def _syndication_ended(self, transaction: Transaction, event: SyndicationEnded) -> None:
        self._home.inbox.put(lambda homes: self._bridge.dismiss_away(homes, self._away))

    def _tell_home(self, status: Status) -> None:
        self._home.inbox.put(lambda homes: self._bridge.away_answered(homes, self._away, status))
