"""A server that runs."""

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any, ClassVar, Final, Literal, Self, get_args

from .. import rotation
from ..errors import PolicyError, SealError, SrupError, TransportError, UnansweredError, UpdateError
from ..joinvalue import SIZE as JOIN_VALUE_SIZE
from ..joinvalue import JoinValue
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..messages import Data, JoinCommand
from ..records import State
from ..seal import seal
from ..session import Policy, Send, ServerSession
from ..session.base import Exchange, Output, check_seconds
from ..session.events import (
    Deregistered,
    HumanJoinRequested,
    Identified,
    JoinAnswered,
    JoinCommandAnswered,
    JoinRequested,
    JoinWithdrawn,
    KeyAnswered,
    Left,
    Observed,
    ObservedJoinRequested,
    Unanswered,
    UpdateChanged,
)
from ..session.server import Order
from ..store import Store
from ..transport.base import Transport
from ..transport.topics import Address, device_filter, join_filter
from ..update import UpdateState
from ..wire import Status
from .base import Agent, Handler, check_identity, check_type, end_future, sequence_origin, transport_to
from .enrolment import enter, link
from .rollout import Rollout

__all__ = ["PendingJoin", "Server", "UpdateOrder"]

Admission = Literal["simple", "human", "observed"]


class PendingJoin:
    """A join that waits for a person: compare :attr:`value` with what the ``device`` shows, then say what you saw.

    ``status`` is None as long as it waits; ``expires`` is the Unix time at which it fails by itself.
    """

    def __init__(self, server: "Server", device: int, token: bytes, value: JoinValue, expires: float) -> None:
        self.device = device
        self.value = value
        self.expires = expires
        self.status: Status | None = None
        self._server = server
        self._token = token
        self._shown = False  # the moderator has been called
        self._pin = server.devices.pin(device)
        self._decision = Lock()  # taken once, by whoever decides first

    def accept(self) -> None:
        """The values are the same: let the device in. PolicyError when the join is over."""
        self._answer(Status.JOIN_SUCCESS)

    def refuse(self) -> None:
        """They are not, or it is not wanted. PolicyError when the join is over."""
        self._answer(Status.JOIN_REFUSED)

    def fail(self) -> None:
        """They could not be compared. PolicyError when the join is over."""
        self._answer(Status.JOIN_FAIL)

    def _answer(self, status: Status) -> None:
        if self.status is not None:
            raise PolicyError(f"the join of {self.device:x} is over: {self.status.name}")
        if self._server._stopping.is_set():
            raise PolicyError(f"the join of {self.device:x} cannot be decided: the server was stopped")
        if self._server._clock() >= self.expires:
            raise PolicyError(f"the join of {self.device:x} is over: its time was up")
        if self._server.devices.pin(self.device) != self._pin:
            raise PolicyError(f"{self.device:x} has another key than the device that was compared")
        if not self._decision.acquire(blocking=False):
            raise PolicyError(f"the join of {self.device:x} has been decided")
        self._server._drive(self._server._answer_asker, self.device, self._token, status)

    def __repr__(self) -> str:
        return f"<PendingJoin of {self.device:x}: {self.status.name if self.status else 'waits'}>"


_UNDER_WAY: Final = (UpdateState.FETCHING, UpdateState.READY, UpdateState.ACTIVATING)

_OFFERS: Final = 16
"""To how many devices a new key is offered in a row; each offer takes two signatures."""


class UpdateOrder:
    """An update that was ordered for one device, and how it goes. Made by :meth:`Server.update`."""

    def __init__(self, server: "Server", device: int, url: str, digest: str) -> None:
        self.device = device
        self.url = url
        self.digest = digest
        self.state = UpdateState.NEW
        self.status: Status | None = None
        self._server = server
        self._token: Future[bytes] = Future()
        self._done: Future[UpdateState] = Future()

    @property
    def done(self) -> bool:
        """Whether :meth:`result` would return or raise at once."""
        return self._done.done()

    def result(self, timeout: float | None = None) -> UpdateState:
        """Wait for the end: ACTIVATED, or ACTIVATING when a deployed peer was told to activate (it never confirms).

        Raises UpdateError with the device's ``status`` when it could not, UnansweredError when it did not answer before
        the order expired, PolicyError when it is not joined, TimeoutError when ``timeout`` seconds are over.
        """
        return self._done.result(timeout)

    def add_done_callback(self, callback: Callable[["UpdateOrder"], object]) -> None:
        """Call ``callback(order)`` when the order has ended, at once if it has; on a thread of the package."""
        self._done.add_done_callback(lambda _: callback(self))

    def activate(self) -> None:
        """Let the device activate what it has fetched, if the order was made with ``hold``.

        PolicyError unless the ``state`` is READY.
        """
        self._server._drive_order(self)

    def __repr__(self) -> str:
        return f"<UpdateOrder {self.digest[:16]} for {self.device:x}: {self.state.name}>"


class Server(Agent):
    """A server: lets devices in, commands and updates them.

    ``devices`` holds the keys of all devices that may ever join; it can grow while the server runs. ``broker`` is a
    URL, ``mqtt://host:port`` or ``mqtts://host:port``, or a transport of one's own making. ``policy`` is about tokens,
    clocks and retries. ``threads`` share the verification of large batches. ``first_sequence_id`` lies
    above all ids that this server has ever used; without it, it comes from the clock.

    ``admission`` says what a device that is not a member must go through: a "simple" join, one that a "human" moderates
    (:meth:`on_moderation`), or one that is "observed" by one of the devices ``observers``. A stricter join than that is
    always possible, if there is somebody to moderate it.

    With a ``store``, the path of an SQLite database or a :class:`srup.store.Store`, the server goes on after a restart
    where it ended, a crash included: members, keys, replay windows, orders and requests under way, and what handlers
    had not finished (see :attr:`handling`); :attr:`orders` and :meth:`on_outcome` tell of what was ordered before.
    Audit rows are deleted when they are older than ``audit_kept`` seconds; None keeps them for good.
    """

    _session_type: ClassVar[type[ServerSession]] = ServerSession

    def __init__(
        self,
        identity: int,
        key: PrivateKey,
        *,
        devices: KeyRing,
        broker: str | Transport,
        policy: Policy | None = None,
        threads: int = 1,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
        first_sequence_id: int | None = None,
        admission: Admission = "simple",
        observers: Collection[int] = (),
        store: Store | str | os.PathLike[str] | None = None,
        audit_kept: float | None = 30 * 86400.0,
    ) -> None:
        check_identity(identity)
        if admission not in get_args(Admission):
            raise ValueError(f"admission is one of {', '.join(get_args(Admission))}, not {admission!r}")
        for observer in observers:
            check_identity(observer, "an observer")
        check_type(devices, KeyRing, "devices")
        check_type(policy, (Policy, type(None)), "policy")
        transport = transport_to(broker, identity)
        first = sequence_origin(clock) if first_sequence_id is None else first_sequence_id
        session = self._session_type(identity, policy, first)
        super().__init__(session, key, devices, transport, clock, entropy, threads, store, audit_kept)
        self.devices = devices
        self._session: ServerSession = session
        self._members: set[int] = set()
        self._orders: dict[tuple[int, bytes], UpdateOrder] = {}
        self._rollout: Rollout | None = None
        self._admission = admission
        self._observers = tuple(observers)
        self._joins: dict[tuple[int, bytes], PendingJoin] = {}
        self._moderation_due = False
        self._pins: dict[int, PublicKey | None] = {}  # the keys by which devices are known, signed rotations aside

    @classmethod
    def enroll(
        cls,
        folder: str | os.PathLike[str],
        url: str | None = None,
        identity: int | None = None,
        *,
        devices: KeyRing,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        scheme: str = "rsa2048",
        **options: Any,
    ) -> Self:
        """Return a server with the key and the certificate that the key exchange service at ``url`` gives.

        See :meth:`Device.enroll`; the ``token`` is one that was made for a server.
        """
        enrolment = enter(folder, url, identity, token=token, ca_file=ca_file, scheme=scheme, kind="server")
        options = {"broker": link(folder, enrolment)} | options
        return cls(enrolment.identity, enrolment.key, devices=devices, **options)

    @property
    def orders(self) -> list[UpdateOrder]:
        """The updates under way, those from before a restart included."""
        return list(self._orders.values())

    @property
    def members(self) -> frozenset[int]:
        """The identities of the devices that are joined now."""
        return frozenset(self._members)

    def on_join(self, handler: Handler) -> Handler:
        """Decorate what decides about joins. It is called with the device's identity.

        What it returns is answered: a Status, or False for JOIN_REFUSED; anything else lets the device in. If it raises
        the answer is JOIN_FAIL. Without a handler every device whose key is registered may join.
        """
        return self._register(self._handlers, "join")(handler)

    def on_moderation(self, handler: Handler) -> Handler:
        """Decorate what shows a :class:`PendingJoin` to a person. It may wait for the answer or return before.

        It is called for one join at a time, on a thread of its own, and not for those that are over by then. Without a
        handler human-moderated joins are refused.
        """
        return self._register(self._handlers, "moderation")(handler)

    @property
    def pending_joins(self) -> list[PendingJoin]:
        """The joins that wait for a person now, the oldest first."""
        return list(self._joins.values())

    def on_deregistered(self, handler: Handler) -> Handler:
        """Decorate what is called with a device's identity when its key has been dropped."""
        return self._register(self._handlers, "deregistered")(handler)

    def on_joined(self, handler: Handler) -> Handler:
        """Decorate what is called with a device's identity when it has joined; not when a member merely asks again."""
        return self._register(self._handlers, "joined")(handler)

    def on_not_joined(self, handler: Handler) -> Handler:
        """Decorate what is called with a device's identity and the Status when a join was refused or has failed."""
        return self._register(self._handlers, "not_joined")(handler)

    def on_update(self, handler: Handler) -> Handler:
        """Decorate what is called with an :class:`UpdateOrder` whenever its state has changed."""
        return self._register(self._handlers, "update")(handler)

    def update(
        self,
        device: int,
        url: str,
        digest: str,
        *,
        hold: bool = False,
        lifetime: float | None = None,
        version: int | None = None,
    ) -> UpdateOrder:
        """Order a device to take the firmware at ``url`` whose SHA-256 is ``digest`` (lower-case hex; see file_digest).

        It is activated as soon as the device has it, or with ``hold`` when ``order.activate()`` is called. The order
        expires after ``lifetime`` seconds (default: the policy's ``update_lifetime``). A device with a version floor
        wants to know the ``version``, a number that grows.
        """
        order = UpdateOrder(self, device, url, digest)

        def begin(now: float, nonce: bytes) -> list[Send]:
            return self._begin_update(order, now, nonce, lifetime, hold, version)

        def refused(future: "Future[None]") -> None:
            error = future.exception()
            if error is None:
                return
            if order._token.done():
                if isinstance(error, TransportError):
                    return  # it is sent again
                del self._orders[device, order._token.result()]
            order.state = UpdateState.FAILED
            order._done.set_exception(error)

        self._request(begin, answered=False).add_done_callback(refused)
        return order

    def _begin_update(
        self, order: UpdateOrder, now: float, nonce: bytes, lifetime: float | None, hold: bool, version: int | None
    ) -> list[Send]:
        device = order.device
        sends = self._session.update(device, order.url, order.digest, now, nonce, lifetime, hold, version)
        token = sends[0].message.token
        self._orders[device, token] = order
        order.state = UpdateState.FETCHING
        order._token.set_result(token)
        return sends

    def identify(self, device: int) -> "Future[str]":
        """Ask a device what it is; the result is its description."""
        return self._request(lambda now, nonce: self._session.identify(device, now, nonce))

    def terminate(self, device: int) -> "Future[None]":
        """Put a device out; done when the command is handed to the transport."""
        return self._request(lambda now, nonce: self._session.terminate(device, now, nonce), answered=False)

    def revoke(self, device: int) -> "Future[None]":
        """Put a device out for good: its key is barred, and when this method returns nothing it signed has any effect.

        That holds for what is already in the queue and for what waits for a handler; a handler that is running goes on.
        Done when the membership is over and every request and order for it has ended with PolicyError. The device is
        not told. PolicyError when there is nothing to revoke. The identity can be registered again with another key;
        to bar the keys in the next process too, store ``devices.barred`` and give it to ``devices.bar()``.
        """
        check_identity(device, "device")
        known = self.devices.revoke(device)

        return self._request(lambda now, nonce: self._shut_out(device, known, "revoke", now), answered=False)

    def _shut_out(self, device: int, known: bool, verb: str, now: float) -> list[Output]:
        """End the membership of a device whose key is gone, and all that is under way with it."""
        asked = self._session.asked_of(device)
        outputs = self._session.revoke(device, now)
        if not known and not outputs:
            raise PolicyError(f"there is nothing to {verb}: no key is registered for {device:x}")
        done = f"was {verb.removesuffix('e')}ed"
        self._log(logging.WARNING, "%r: %x %s", device, done, partner=device)
        self._stop_listening(device)
        self._end_partner(device, asked, done)
        return outputs

    def rotate_key(self, new_key: PrivateKey, overlap: float | None = None) -> "Future[frozenset[int]]":
        """Change the server's key: the old one signs the new one for each device.

        Store both keys before. For ``overlap`` seconds (default: the policy's ``key_overlap``) every member, and every
        device that joins, is offered the new key, which signs for those that have taken it; the old one signs for the
        others. Then the old key is dropped: done, and the result tells who has taken the new one. The others do not
        understand the server any more. PolicyError while another rotation lasts. A server that starts anew meanwhile
        starts with the old key and rotates again.
        """
        check_type(new_key, PrivateKey, "new_key")
        lasts = self._session.policy.key_overlap if overlap is None else overlap
        check_seconds(lasts, "overlap")
        done: Future[frozenset[int]] = Future()
        done.set_running_or_notify_cancel()

        def begin(now: float, nonce: bytes) -> list[Output]:
            if self._rollout is not None:
                raise PolicyError("another rotation of the server's key is not over")
            rotation.check_usable(new_key.public_key, self._key.public_key)
            self._rollout = Rollout(new_key, now + lasts, self.devices, done)
            for device in self._members:
                self._rollout.invite(device)
            return []

        def begun(future: "Future[None]") -> None:
            error = future.exception()
            if error is not None:
                done.set_exception(error)

        self._request(begin, answered=False).add_done_callback(begun)
        return done

    def deregister(self, device: int) -> "Future[None]":
        """Put a device out for good and drop its key; done when the command is handed to the transport."""
        return self._request(lambda now, nonce: self._session.deregister(device, now, nonce), answered=False)

    def command_join(self, device: int, server: int | None = None) -> "Future[Status]":
        """Tell a device to join, or a member to go to ``server``; the result is JOIN_SUCCESS or JOIN_REFUSED.

        The device comes only if its policy names us, and goes only to a server that it knows. UnansweredError when
        nothing came of it.
        """

        return self._request(lambda now, nonce: self._begin_join_command(device, server, now, nonce))

    def _begin_join_command(self, device: int, server: int | None, now: float, nonce: bytes) -> list[Send]:
        sends = self._session.command_join(device, now, nonce, server)
        self._transport.subscribe(device_filter(device))  # where it answers, member or not
        return sends

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Agent.stop`."""
        super().stop(timeout)
        rollout, self._rollout = self._rollout, None
        if rollout is not None:
            rollout.done.set_exception(TransportError("stopped before the overlap of the keys was over"))
        while self._orders:
            _, order = self._orders.popitem()
            order._done.set_exception(UnansweredError("the server was stopped before the update came to its end"))

    # What the base asks for.

    events = {
        **Agent.events,
        JoinRequested: "_join_requested",
        HumanJoinRequested: "_human_join_requested",
        ObservedJoinRequested: "_observed_join_requested",
        Observed: "_observed",
        JoinWithdrawn: "_join_withdrawn",
        JoinAnswered: "_join_answered",
        KeyAnswered: "_key_answered",
        JoinCommandAnswered: "_join_command_answered",
        Deregistered: "_deregistered",
        Left: "_left",
        Identified: "_identified",
        UpdateChanged: "_update_changed",
    }

    def _restore_role(self, state: State) -> None:
        self._pins = {device: self.devices.pin(device) for device in self._session.partners()}
        for device in self._session.members:
            self._members.add(device)
            self._transport.subscribe(device_filter(device))
            if state.adopted:  # so that it learns which sequence ids we listen to now
                self._perform(self._session.identify(device, self._clock(), self._entropy(16)))
        for exchange in self._session.exchanges():
            if isinstance(exchange.detail, Order) and exchange.state in _UNDER_WAY:
                assert isinstance(exchange.state, UpdateState)  # noqa: S101 - orders have no other states
                device, token = exchange.partner.identity, exchange.token
                self._orders[device, token] = self._order(device, token, exchange.detail, exchange.state)

    def _order(self, device: int, token: bytes, ordered: Order, state: UpdateState) -> UpdateOrder:
        order = UpdateOrder(self, device, ordered.url, ordered.digest)
        order._token.set_result(token)
        order.state = state
        return order

    def _announce_order(self, order: UpdateOrder) -> None:
        token, ordered = order._token.result(), Order(order.url, order.digest, False)
        kept = order.device, token, ordered, order.state.name, order.status
        self._announce("update", order.device, *kept, live=(order,))

    def _revive(self, name: str, arguments: Sequence[Any]) -> Sequence[Any]:
        if name != "update":
            return super()._revive(name, arguments)
        device, token, ordered, state, status = arguments
        order = self._orders.get((device, token))
        if order is None:  # it ended just before a restart
            order = self._order(device, token, ordered, UpdateState[state])
            order.status = status
            outcome = self._outcome(device, order.state, status)
            if outcome is not None:
                end_future(order._done, outcome)
        return (order,)

    def _membership(self) -> int:
        return len(self._members)

    def _subscribe(self) -> None:
        self._transport.subscribe(join_filter(self.identity))

    def _check_address(self, address: Address, sender: int) -> None:
        if address.device != sender or address.server not in (None, self.identity):
            raise PolicyError(f"sender {sender:x} does not publish on this topic")

    def _device_of(self, send: Send) -> int:
        return send.to

    # Our key.

    def deadline(self) -> float | None:
        """See :meth:`Agent.deadline`."""
        session = super().deadline()
        if self._rollout is None:
            return session
        due = self._clock() if self._rollout.waiting else self._rollout.until
        return due if session is None else min(session, due)

    def _tick(self) -> None:
        super()._tick()
        if self._rollout is not None:
            self._fenced(lambda rollout=self._rollout: self._go_on(rollout))  # type: ignore[misc]

    def _go_on(self, rollout: Rollout) -> None:
        """Offer the new key to some of those that wait for it, or drop the old one when its time is over."""
        now = self._clock()
        if now >= rollout.until:
            self._key, self._rollout = rollout.new, None
            rollout.done.set_result(rollout.result())
            return
        for device in rollout.next(_OFFERS):
            data = rotation.offer(self.identity, device, self._key.public_key, rollout.new)
            try:
                sends = self._session.rotate(device, data, now, self._entropy(16))
            except PolicyError as error:
                self._log(logging.WARNING, "%r could not offer its new key: %s", error, partner=device, error=error)
                rollout.again(device)
            else:
                self._perform(sends)

    def _key_for(self, partner: int) -> PrivateKey:
        return self._rollout.new if self._rollout is not None and self._rollout.has(partner) else self._key

    def _own_keys(self) -> list[PrivateKey]:
        return [*super()._own_keys(), *([] if self._rollout is None else [self._rollout.new])]

    def _key_answered(self, event: KeyAnswered) -> None:
        level = logging.INFO if event.status is Status.ACTION_SUCCESS else logging.WARNING
        text, status = "%r: %x answers the offer of a new key with %s", event.status.name
        self._log(level, text, event.peer, status, partner=event.peer, status=status)
        if self._rollout is not None and event.status is Status.ACTION_SUCCESS:
            self._rollout.take(event.peer)

    # Events.

    def _join_requested(self, event: JoinRequested) -> None:
        if self._admission == "simple" or event.peer in self._members:
            self._decide(event.peer, event.token)
            return
        observer = None
        if self._admission == "observed":
            observer = next((one for one in self._observers if one in self._members and one != event.peer), None)
        self._log(logging.INFO, "%r: %x is to join by way of %s", event.peer, self._admission, partner=event.peer)
        self._answer_join(event.peer, event.token, Status.JOIN_REFUSED, observer)

    def _answer_join(self, device: int, token: bytes, status: Status, observer: int | None = None) -> None:
        """Answer a join without asking anybody; it may be too late, or no sequence id may be left for the device."""
        self._drive(lambda now: self._session.answer_join(device, token, status, now, observer))

    def _answer_asker(self, device: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer a join; PolicyError when the device has got another key since it asked: that one has not asked."""
        with self._keys.lock:
            self._recognise(device)
            return self._session.answer_join(device, token, status, now)

    def _decide(self, device: int, token: bytes) -> None:
        """Let the application say whether a device may join that has proved what it had to."""

        def job() -> None:
            status = Status.JOIN_SUCCESS
            handler = self._handlers.get("join")
            if handler is not None:
                # Refusing is an opinion and failing is a fault: they have different codes.
                status = self._ask(
                    lambda: Status.JOIN_REFUSED if (said := handler(device)) is False else said,
                    failure=Status.JOIN_FAIL,
                    success=Status.JOIN_SUCCESS,
                )
            self._drive(self._answer_asker, device, token, status)

        self._apply_for(device, token, job)

    def _human_join_requested(self, event: HumanJoinRequested) -> None:
        if "moderation" not in self._handlers:
            text = "%r: nobody moderates the join of %x: on_moderation has no handler"
            self._log(logging.WARNING, text, event.peer, partner=event.peer)
            self._answer_join(event.peer, event.token, Status.JOIN_REFUSED)
            return
        value = JoinValue.new(self._entropy(JOIN_VALUE_SIZE))
        if self._show(event.peer, event.token, value):
            pending = PendingJoin(self, event.peer, event.token, value, event.expires)
            self._joins[event.peer, event.token] = pending
            if not self._moderation_due:  # while one call waits for its turn another one would find nothing to do (T9)
                self._moderation_due = True
                self._apply(self._moderate_joins, self._aside)

    def _moderate_joins(self) -> None:
        """Call the moderator for each join that still waits for it, the oldest first; on a thread of its own."""
        self._moderation_due = False
        handler = self._handlers["moderation"]
        while (pending := next((join for join in self.pending_joins if not join._shown), None)) is not None:
            pending._shown = True
            self._fenced(lambda join=pending: handler(join))  # type: ignore[misc]

    def _observed_join_requested(self, event: ObservedJoinRequested) -> None:
        device, token, observer = event.peer, event.token, event.observer
        value = JoinValue.new(self._entropy(JOIN_VALUE_SIZE))
        key = self._keys.get(observer)
        if observer not in self._observers or observer not in self._members or observer == device or key is None:
            text = "%r: %x names %x, whose word does not count here or who is not joined"
            self._log(logging.WARNING, text, device, observer, partner=device, observer=f"{observer:x}")
            self._answer_join(device, token, Status.JOIN_REFUSED)
        elif self._show(device, token, value):
            try:
                sealed = seal(value.plaintext, key)
                sends = self._session.observe(observer, device, token, sealed, self._clock(), self._entropy(16))
            except SrupError as error:
                said = "%r cannot ask %x about %x: %s", observer, device, error
                self._log(logging.WARNING, *said, partner=observer, device=f"{device:x}", error=error)
                self._answer_join(device, token, Status.JOIN_FAIL)
            else:
                self._perform(sends)

    def _show(self, device: int, token: bytes, value: JoinValue) -> bool:
        """Send a device the value that it is to show; if nothing can be sealed or sent to it the join fails: False."""
        try:
            key = self._keys.get(device)
            if key is None:
                raise SealError("its key has just been dropped")
            outputs = self._session.show_value(device, token, seal(value.plaintext, key), self._clock())
        except (SealError, PolicyError) as error:
            self._log(logging.WARNING, "%r: no value for %x: %s", device, error, partner=device, error=error)
            self._answer_join(device, token, Status.JOIN_FAIL)
            return False
        self._perform(outputs)
        return True

    def _observed(self, event: Observed) -> None:
        text, peer, device, said = "%r: %x says about %x: %s", event.peer, event.device, event.status.name
        self._log(logging.INFO, text, peer, device, said, partner=peer, device=f"{device:x}", status=said)
        if event.status is Status.OBSERVED_JOIN_VALID:
            self._decide(event.device, event.join_token)
        else:
            invalid = event.status is Status.OBSERVED_JOIN_INVALID
            status = Status.JOIN_REFUSED if invalid else Status.JOIN_FAIL
            self._drive(self._session.answer_join, event.device, event.join_token, status)

    def _join_withdrawn(self, event: JoinWithdrawn) -> None:
        pending = self._joins.pop((event.peer, event.token), None)
        if pending is not None:
            pending.status = Status.JOIN_FAIL

    def _join_answered(self, event: JoinAnswered) -> None:
        status = event.status.name
        self._log(logging.INFO, "%r: join of %x: %s", event.peer, status, partner=event.peer, status=status)
        if event.status is Status.JOIN_SUCCESS and self._rollout is not None:
            self._rollout.invite(event.peer)
        pending = self._joins.pop((event.peer, event.token), None)
        if pending is not None:
            pending.status = event.status
        if event.status is Status.JOIN_SUCCESS and event.peer not in self._members:
            self._members.add(event.peer)
            self._transport.subscribe(device_filter(event.peer))
            self._announce("joined", event.peer, event.peer)
        elif event.status is not Status.JOIN_SUCCESS:
            self._leave(event.peer)
            self._announce("not_joined", event.peer, event.peer, event.status)

    def _join_command_answered(self, event: JoinCommandAnswered) -> None:
        self._settle(event, event.status)
        self._stop_listening(event.peer)

    def _unanswered(self, event: Unanswered) -> None:
        super()._unanswered(event)
        if event.request is JoinCommand:
            self._stop_listening(event.peer)
        if event.request is Data and self._rollout is not None:
            self._rollout.again(event.peer)

    def _recognise(self, sender: int) -> None:
        """An identity whose key the application has replaced is a new partner: it inherits nothing."""
        pin = self.devices.pin(sender)
        before = self._pins.setdefault(sender, pin)
        if before is not pin and before != pin:
            self._pins[sender] = pin
            self._log(logging.WARNING, "%r: %x has another key than before", sender, partner=sender)
            asked = self._session.asked_of(sender)
            self._perform(self._session.revoke(sender, self._clock()))
            self._stop_listening(sender)
            self._end_partner(sender, asked, "has another key now")

    def _end_exchange(self, exchange: Exchange, error: SrupError) -> None:
        if not isinstance(exchange.detail, Order):
            super()._end_exchange(exchange, error)
            return
        device, token = exchange.partner.identity, exchange.token
        order = self._orders.pop((device, token), None) or self._order(device, token, exchange.detail, UpdateState.NEW)
        order.state = UpdateState.FAILED
        self._resolve(order._done, error)
        self._announce_order(order)

    def _stop_listening(self, device: int) -> None:
        if device not in self._members:
            self._transport.unsubscribe(device_filter(device))

    def _deregistered(self, event: Deregistered) -> None:
        self._log(logging.INFO, "%r drops the key of %x", event.peer, partner=event.peer)
        self.devices.remove(event.peer)
        self._stop_listening(event.peer)
        self._announce("deregistered", event.peer, event.peer)

    def _left(self, event: Left) -> None:
        self._log(logging.INFO, "%r: %x has left", event.peer, partner=event.peer)
        self._leave(event.peer)
        self._announce("left", event.peer, event.peer)

    def _leave(self, device: int) -> None:
        if device in self._members:
            self._members.discard(device)
            self._transport.unsubscribe(device_filter(device))

    def _identified(self, event: Identified) -> None:
        self._know(event.peer, "description", event.text)
        self._settle(event, event.text)

    def _update_changed(self, event: UpdateChanged) -> None:
        order = self._orders.get((event.peer, event.token))
        if order is None:
            return
        order.state = event.state
        order.status = event.status if event.status is not None else order.status
        state = order.state.name
        self._log(logging.INFO, "%r: %r", order, partner=event.peer, digest=order.digest, state=state)
        outcome = self._outcome(event.peer, event.state, event.status)
        if outcome is not None:
            del self._orders[event.peer, event.token]
            self._resolve(order._done, outcome)
        if event.state is UpdateState.ACTIVATED:
            self._know(event.peer, "firmware", order.digest)
        self._announce_order(order)

    def _outcome(self, device: int, state: UpdateState, status: Status | None) -> UpdateState | SrupError | None:
        """Return how an order ended, None while it goes on."""
        match state:
            case UpdateState.ACTIVATED:
                return state
            case UpdateState.ACTIVATING if not self._session.confirms(device):
                return state
            case UpdateState.FAILED:
                if status is None:
                    return PolicyError(f"{device:x} is no longer the device that the order was for")
                return UpdateError(status, f"device {device:x} reports {status.name}")
            case UpdateState.UNANSWERED:
                return UnansweredError(f"device {device:x} did not answer before the order expired")
            case _:
                return None

    def _drive_order(self, order: UpdateOrder) -> None:
        if order.state is not UpdateState.READY:
            raise PolicyError(f"there is nothing to activate: the order is in state {order.state.name}")
        self._drive(self._session.activate, order.device, order._token.result())
