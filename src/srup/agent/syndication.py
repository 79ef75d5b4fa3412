"""Syndication that runs: servers that share their devices.

``server.syndicate(device, ...)`` begins on the home server, ``on_syndication_request`` decides on the away server, and
a :class:`SyndicationDevice` (srup.agent.bridge) carries everything between the two (docs/syndication.md;
docs/protocol/flows.md#syndication; T16).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

from ..errors import EncodeError, PolicyError, SealError, SrupError, UnknownSenderError
from ..keys import PrivateKey
from ..messages import DataKind, SyndicatedC2Request, SyndicationInit, decode_data
from ..records import InboxEntry, State
from ..seal import seal
from ..session.events import (
    DevicesMissing,
    DevicesShared,
    Event,
    IdentificationRefused,
    SyndicatedActionRequested,
    SyndicatedC2Requested,
    SyndicatedDataReceived,
    SyndicatedIdentified,
    SyndicatedIdRequested,
    SyndicationAnswered,
    SyndicationEnded,
    SyndicationRequested,
    Unanswered,
)
from ..session.flow import Output
from ..session.syndication import Role, SyndicationServerSession
from ..wire import Status
from .answer import Answer
from .arguments import check_identity
from .dataqueue import Value
from .duty import Duty, Listener
from .handlers import Handler
from .server import Server
from .serving import SYNDICATED_DATA
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["SyndicationServer"]

_IDENTITY_SIZE: Final = 8
"""The bytes of the shared device's identity, big-endian, before its value in an inbox entry."""


class Syndications(Duty):
    """The syndications of a server, as home and as away. ``values`` are the handlers for values of shared devices."""

    def __init__(self, engine: "Engine", session: SyndicationServerSession) -> None:
        self.values: dict[str | None, tuple[DataKind, Callable[..., Any]]] = {}
        self._engine = engine
        self._session = session
        self._shared: dict[int, tuple[int, ...]] = {}
        engine.serving.carried = lambda peer: bool(session.shares(peer))  # what home may know is not refused here

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            SyndicationAnswered: self._syndication_answered,
            SyndicationEnded: self._syndication_ended,
            DevicesShared: self._devices_shared,
            DevicesMissing: self._devices_missing,
            SyndicatedDataReceived: self._syndicated_data_received,
            SyndicatedIdentified: self._syndicated_identified,
            IdentificationRefused: self._identification_refused,
            SyndicationRequested: self._syndication_requested,
            SyndicatedActionRequested: self._syndicated_action_requested,
            SyndicatedIdRequested: self._syndicated_id_requested,
            SyndicatedC2Requested: self._syndicated_c2_requested,
            Unanswered: self._unanswered,
        }

    def shared(self, device: int) -> tuple[int, ...]:
        """Return what is shared with us through a syndication device, empty until all is known. On any thread."""
        return self._shared.get(device, ())

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`."""
        for device in self._session.partners():
            known = self._session.syndication(device)
            if known is not None and known.role is Role.HOME and known.count is not None and not known.missing:
                self._shared[device] = tuple(known.devices[number] for number in sorted(known.devices))

    # Home.

    def end(self, device: int, now: float, nonce: bytes) -> Sequence[Output]:
        """End a syndication as home."""
        outputs = self._session.end_syndication(device, now, nonce)
        self._shared.pop(device, None)
        return outputs

    def _syndication_answered(self, transaction: Transaction, event: SyndicationAnswered) -> None:
        status = event.status.name
        self._engine.journal.log(
            logging.INFO, "%s: syndication by %x: %s", event.peer, status, partner=event.peer, status=status
        )
        refused = PolicyError(f"{event.peer:x} answers {event.status.name}")
        self._engine.requests.settle(transaction, event, None if event.status is Status.JOIN_SUCCESS else refused)

    def _syndication_ended(self, transaction: Transaction, event: SyndicationEnded) -> None:
        self._engine.journal.log(logging.INFO, "%s: the syndication by %x is over", event.peer, partner=event.peer)
        self._shared.pop(event.peer, None)
        self._engine.requests.settle(transaction, event, None)
        self._engine.handlers.notify(transaction, "syndication ended", event.peer, peer=event.peer)

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        if event.request is SyndicationInit:
            self._shared.pop(event.peer, None)

    def _devices_shared(self, transaction: Transaction, event: DevicesShared) -> None:
        self._shared[event.peer] = event.devices
        self._engine.handlers.notify(transaction, "shared", event.peer, event.devices, peer=event.peer)

    def _devices_missing(self, transaction: Transaction, event: DevicesMissing) -> None:
        text, missing = "%s: %d devices of the list by %x are missing", len(event.numbers)
        self._engine.journal.log(logging.WARNING, text, missing, event.peer, partner=event.peer)
        if event.repeats:
            engine = self._engine
            engine.decide(lambda now: self._session.request_list(event.peer, now, engine.entropy(16)))

    def _syndicated_data_received(self, transaction: Transaction, event: SyndicatedDataReceived) -> None:
        if not self._take(transaction, event.peer, event.token, event.source, Value(event.data_id, event.data)):
            self._engine.decide(self._session.refuse_data, event.peer, event.token)

    def redeliver(self, transaction: Transaction, entry: InboxEntry) -> bool:
        """See :meth:`Duty.redeliver`."""
        if entry.kind != SYNDICATED_DATA:
            return False
        source, value = int.from_bytes(entry.body[:_IDENTITY_SIZE]), Value.unpack(entry.body[_IDENTITY_SIZE:])
        return self._take(transaction, entry.partner, entry.token, source, value, entry.number)

    def _take(
        self, transaction: Transaction, device: int, token: bytes, source: int, value: Value, number: int = 0
    ) -> bool:
        """Hand a value of a shared device to its handler, if there is one that can read it; see :meth:`Serving.take`.

        Return whether there is.
        """
        kind, handler = self.values.get(value.data_id) or self.values.get(None) or (None, None)
        if kind is None or handler is None:
            return False
        handlers, data_id = self._engine.handlers, value.data_id
        try:
            read = decode_data(value.data, kind)
        except SrupError as error:
            said, where = ("%s: value %a of %x: %s", data_id, source, error), f"{source:x}"
            self._engine.journal.log(logging.WARNING, *said, partner=device, data_id=data_id, device=where, error=error)
            return False
        kept = source.to_bytes(_IDENTITY_SIZE) + value.pack()
        number = number or handlers.store_inbox(transaction, device, token, SYNDICATED_DATA, kept)
        handlers.call_for(transaction, device, token, lambda: handler(device, source, data_id, read), number)
        return True

    def _syndicated_identified(self, transaction: Transaction, event: SyndicatedIdentified) -> None:
        self._engine.requests.settle(transaction, event, event.text)

    def _identification_refused(self, transaction: Transaction, event: IdentificationRefused) -> None:
        self._engine.requests.settle(transaction, event, PolicyError(f"{event.peer:x} answers {event.status.name}"))

    # Away.

    def _syndication_requested(self, transaction: Transaction, event: SyndicationRequested) -> None:
        handler = self._engine.handlers.named.get("syndication request")

        def job() -> None:
            shared: tuple[int, ...] = ()
            try:
                said: Any = (
                    False if handler is None else handler(event.peer, self._engine.own_keys.unseal(event.sealed))
                )
                status = Status.JOIN_REFUSED if said is False else Status.JOIN_SUCCESS
                shared = () if said is False else tuple(said)
            except SealError as error:
                self._engine.journal.counts["unopened"] += 1
                text, peer = "%s: syndication by %x: %s", event.peer
                self._engine.journal.log(logging.WARNING, text, peer, error, partner=peer, error=error)
                status = Status.JOIN_FAIL
            except (Exception, SystemExit):  # noqa: BLE001 - the device gets an answer whatever happens
                self._engine.journal.counts["faults"] += 1
                self._engine.journal.log(logging.ERROR, "%s: a handler raised", partner=event.peer, exc_info=True)
                status = Status.JOIN_FAIL

            def decide(now: float) -> Sequence[Output]:
                answer = status
                if answer is Status.JOIN_SUCCESS:
                    try:
                        nonce = self._engine.entropy(16)
                        return self._session.accept_syndication(event.peer, event.token, shared, now, nonce)
                    except EncodeError as error:
                        self._engine.journal.counts["faults"] += 1
                        text = "%s: a handler returned devices that cannot be shared: %s"
                        self._engine.journal.log(logging.ERROR, text, error, partner=event.peer, error=error)
                        answer = Status.JOIN_FAIL
                return self._session.refuse_syndication(event.peer, event.token, now, answer)

            self._engine.decide(decide)

        self._engine.handlers.call_for(transaction, event.peer, event.token, job)

    def _syndicated_action_requested(self, transaction: Transaction, event: SyndicatedActionRequested) -> None:
        self._moderate(transaction, "syndicated action", event.peer, event.token, event.target, event.action_id)

    def _syndicated_id_requested(self, transaction: Transaction, event: SyndicatedIdRequested) -> None:
        self._moderate(transaction, "syndicated identify", event.peer, event.token, event.target)

    def _syndicated_c2_requested(self, transaction: Transaction, event: SyndicatedC2Requested) -> None:
        self._moderate(transaction, "syndicated request", event.peer, event.token, event.req_id, event.data)

    def _moderate(self, transaction: Transaction, name: str, device: int, token: bytes, *arguments: object) -> None:
        handler = self._engine.handlers.named.get(name)

        def job() -> None:
            status = Status.ACTION_FAIL
            if handler is not None:
                possible = {"failure": Status.ACTION_FAIL, "success": Status.ACTION_SUCCESS}
                status = self._engine.handlers.ask(handler, device, *arguments, **possible)

            def decide(now: float) -> Sequence[Output]:
                if status is Status.ACTION_SUCCESS:
                    return self._session.allow(device, token, now, self._engine.entropy(16))
                return self._session.refuse(device, token, now, status)

            self._engine.decide(decide)

        self._engine.handlers.call_for(transaction, device, token, job)


class SyndicationServer(Server):
    """A server that takes part in syndications: as home, as away, or both. What :class:`Server` takes, it takes too.

    ``syndication_devices`` are the identities that are registered as such and may therefore ask for a syndication with
    this server; :meth:`admit` adds others later.
    """

    session_type = SyndicationServerSession

    def __init__(
        self, identity: int, key: PrivateKey, *, syndication_devices: Collection[int] = (), **options: Any
    ) -> None:
        super().__init__(identity, key, **options)
        self._syndication = self.engine.session_of(SyndicationServerSession)
        self._syndications = self.engine.add(Syndications(self.engine, self._syndication))
        for device in syndication_devices:
            self.admit(device)

    # Home.

    def syndicate(self, device: int, url: str, value: bytes, lifetime: float | None = None) -> Answer[None]:
        """Have a syndication device of ours join the server whose key service is at ``url``; done when it is in.

        ``value`` is what that server's owner recognises us by; deployed peers need 32 bytes. It travels sealed, first
        to the device, then to the other server. PolicyError when they refuse, UnansweredError when it took more than
        ``lifetime`` seconds (default: the policy's ``update_lifetime``).
        """

        def begin(transaction: Transaction, now: float, nonce: bytes) -> Sequence[Output]:
            key = self.devices.get(device)
            if key is None:
                raise UnknownSenderError(device)
            return self._syndication.begin_syndication(device, url, seal(value, key), now, nonce, lifetime)

        return self.engine.requests.ask(begin)

    def shared_devices(self, device: int) -> tuple[int, ...]:
        """Return the identities that are shared with us through a syndication device; empty until all are known."""
        return self._syndications.shared(device)

    def syndicated_action(
        self, device: int, target: int, action_id: int, lifetime: float | None = None
    ) -> Answer[Status]:
        """Ask for an action of the shared device ``target``; the result is its answer.

        ACTION_FAIL when the other owner refuses, ACTION_UNKNOWN when it is not shared, UnansweredError when no answer
        came: then it is not known whether it was done.
        """
        session = self._syndication
        return self.engine.requests.ask(
            lambda _, now, nonce: session.syndicated_action(device, target, action_id, now, nonce, lifetime)
        )

    def syndicated_identify(self, device: int, target: int) -> Answer[str]:
        """Ask what the shared device ``target`` is; the result is its description. PolicyError when it is not told."""
        session = self._syndication
        return self.engine.requests.ask(lambda _, now, nonce: session.syndicated_identify(device, target, now, nonce))

    def syndicated_request(
        self, device: int, req_id: int, data: bytes | str | int | float, kind: DataKind | None = None
    ) -> Answer[Status]:
        """Make a request of the other server (C2 request) whose meaning the owners agreed; the result is its answer."""
        encoded = SyndicatedC2Request.encode_value(data, kind)
        session = self._syndication
        return self.engine.requests.ask(
            lambda _, now, nonce: session.syndicated_request(device, req_id, encoded, now, nonce)
        )

    def end_syndication(self, device: int) -> Answer[None]:
        """End a syndication as home; done when the other server confirms.

        UnansweredError when it does not: it is over all the same.
        """

        return self.engine.requests.ask(lambda transaction, now, nonce: self._syndications.end(device, now, nonce))

    def on_shared(self, handler: Handler) -> Handler:
        """Register a handler called with a syndication device and the tuple of all devices shared through it."""
        return self.engine.handlers.register("shared", handler, 2)

    def on_syndicated_data(self, data_id: str | None = None, kind: DataKind = "bytes") -> Callable[[Handler], Handler]:
        """Register a handler for values of shared devices, as :meth:`on_data` does for one's own.

        It is called with the syndication device, the shared device, the ``data_id`` and the value.
        """
        if kind not in get_args(DataKind):
            raise ValueError(f"{kind!r} is no kind of data; the kinds are {', '.join(get_args(DataKind))}")
        values = self._syndications.values
        return self.engine.handlers.register_in(values, data_id, 4, lambda handler: (kind, handler))

    # Away.

    def admit(self, device: int) -> None:
        """Register an identity as a syndication device: it may ask for a syndication."""
        check_identity(device, "a syndication device")
        self._syndication.syndication_devices.add(device)

    def share(self, device: int, devices: Iterable[int]) -> Answer[None]:
        """Share these devices with a home server, and no others; done when the list is handed to the transport."""
        shared = tuple(devices)
        session = self._syndication
        return self.engine.requests.ask(lambda _, now, nonce: session.share(device, shared, now, nonce), answered=False)

    def terminate_syndication(self, device: int) -> Answer[None]:
        """End a syndication as away; done when the message is handed to the transport. The device remains joined."""
        session = self._syndication
        return self.engine.requests.ask(
            lambda _, now, nonce: session.terminate_syndication(device, now, nonce), answered=False
        )

    def on_syndication_request(self, handler: Handler) -> Handler:
        """Register a handler that decides about syndications, called with the syndication device and home's value.

        It returns the identities to share, or False to refuse. Without a handler every request is refused. Deployed
        peers pad a value with NULs to 32 bytes.
        """
        return self.engine.handlers.register("syndication request", handler, 2)

    def on_syndicated_action(self, handler: Handler) -> Handler:
        """Register a handler that moderates actions, called with the syndication device, the target and the action id.

        If it returns False or a Status other than ACTION_SUCCESS, or raises, that is answered; otherwise the target is
        asked and its answer goes back. Without a handler everything is refused.
        """
        return self.engine.handlers.register("syndicated action", handler, 3)

    def on_syndicated_identify(self, handler: Handler) -> Handler:
        """Register a handler that moderates identifications: called with the syndication device and the target."""
        return self.engine.handlers.register("syndicated identify", handler, 2)

    def on_syndicated_request(self, handler: Handler) -> Handler:
        """Register a handler for home's requests, called with the syndication device, the ``req_id`` and the bytes.

        What it returns is answered as that of :meth:`on_action`. Without a handler everything is refused.
        """
        return self.engine.handlers.register("syndicated request", handler, 3)

    # Both.

    def on_syndication_ended(self, handler: Handler) -> Handler:
        """Register a handler called with the syndication device when a syndication is over."""
        return self.engine.handlers.register("syndication ended", handler, 1)
