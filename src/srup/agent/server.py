"""A server that runs."""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ClassVar, Final, Self, get_args

from ..errors import PolicyError, UnknownSenderError
from ..keyex import KeyService
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..session import Policy, ServerSession
from ..session.flow import Output
from ..session.policy import check_seconds
from ..store import Store
from ..transport.base import Delivery, Transport
from ..transport.topics import parse_topic
from ..update import UpdateState
from ..wire import Status
from .admission import Admission, AdmissionKind, ModerationKind, PendingJoin
from .agent import Agent
from .answer import Answer
from .arguments import check_identity, check_type, sequence_origin, transport_to
from .audit import KEPT
from .contacts import Contacts
from .duty import Duty
from .engine import Engine
from .enrolment import EnrolledKeys, broker_transport, load_or_enroll
from .facts import INVENTORY
from .handlers import Handler
from .inbound import Refusal
from .inventory import Inventory, is_fact, read_inventory
from .listing import KeyChanges, KeyList
from .mailreader import MailReader
from .members import Members
from .ordered import MailOrders
from .rollout import ServerKey
from .transaction import Transaction
from .updateorder import UpdateOrder, Updates
from .verbs import CommandJoin, Deregister, Identify, Order, Parts, Terminate, Turn, Update

__all__ = ["Server"]


class _Strangers(Duty):
    """Learns the keys of strangers that send something from the key exchange service, and hears them again then."""

    def __init__(self, engine: Engine, service: KeyService) -> None:
        self._engine = engine
        self._keys = EnrolledKeys(service, engine.keys)

    def excuses(self, refusal: Refusal) -> bool:
        """See :meth:`Duty.excuses`."""
        error = refusal.error
        if not isinstance(error, UnknownSenderError):
            return False
        again, own = Delivery(refusal.topic, refusal.wire, lambda: None), False
        # Only on a topic of its own, on which the broker lets nobody else write: one device cannot ask for many.
        with suppress(PolicyError):
            own = parse_topic(refusal.topic).device == error.sender_id
        return own and self._keys.look_up(error.sender_id, lambda: self._engine.inbound.arrived(again))


class Server(Agent):
    """A server: lets devices in, commands and updates them.

    ``devices`` holds the keys of all devices that may ever join; it can grow while the server runs. ``broker`` is a
    URL, ``mqtt://host:port`` or ``mqtts://host:port``, or a transport of one's own making. ``policy`` is about tokens,
    clocks and retries. ``threads`` share the verification of large batches. ``first_sequence_id`` lies
    above all ids that this server has ever used; without it, it comes from the clock.

    ``admission`` says what a device that is not a member must go through: a "simple" join, one that a "human" moderates
    (:meth:`on_moderation`), or one that is "observed" by one of the devices ``observers``. A stricter join than that is
    always possible, if there is somebody to moderate it. With ``moderation`` by "orders" people may compare in any
    process that can reach the ``store``, which is needed then and holds the values as long as the joins wait
    (:meth:`srup.Fleet.joins`, :meth:`srup.Fleet.decide_join`); whoever decides first, there or in a handler, has
    decided.

    With a ``store``, the path of an SQLite database or a :class:`srup.store.Store`, the server goes on after a restart
    where it ended, a crash included: members, keys, replay windows, orders and requests under way, and what handlers
    had not finished (see :attr:`handling`); :attr:`orders` and :meth:`on_outcome` tell of what was ordered before.
    Audit rows are deleted when they are older than ``audit_kept`` seconds; None keeps them for good. They have the
    signed bytes of all messages but ordinary values, and of these too with ``audit_values``.

    With a ``key_service`` the keys that ``devices`` lacks are learned from it when their owners ask to join: whoever is
    registered there may, as ``admission`` says.
    """

    noun: ClassVar[str] = "server"
    partner_noun: ClassVar[str] = "device"
    session_type: ClassVar[type[ServerSession]] = ServerSession
    partition, partitions = 0, 1

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
        admission: AdmissionKind = "simple",
        observers: Collection[int] = (),
        moderation: ModerationKind = "handler",
        store: Store | str | os.PathLike[str] | None = None,
        audit_kept: float | None = KEPT,
        audit_values: bool = False,
        key_service: KeyService | None = None,
    ) -> None:
        check_identity(identity)
        if admission not in get_args(AdmissionKind):
            raise ValueError(f"admission is one of {', '.join(get_args(AdmissionKind))}, not {admission!r}")
        if moderation not in get_args(ModerationKind):
            raise ValueError(f"moderation is one of {', '.join(get_args(ModerationKind))}, not {moderation!r}")
        if moderation == "orders" and store is None:
            raise ValueError("moderation by orders needs a store, where joins wait and decisions are posted")
        for observer in observers:
            check_identity(observer, "an observer")
        check_type(devices, KeyRing, "devices")
        check_type(policy, (Policy, type(None)), "policy")
        transport = transport_to(broker)
        first = sequence_origin(clock) if first_sequence_id is None else first_sequence_id
        session = self.session_type(identity, policy, first)
        super().__init__(
            *(session, key, devices, transport, clock, entropy, lambda device: device, threads, store, audit_kept),
            audit_values=audit_values,
        )
        engine = self.engine
        self.devices = devices
        self._session = session
        self._members = engine.add(Members(engine, session))
        engine.add(Contacts(engine))
        self._admission = engine.add(Admission(engine, session, self._members, admission, observers, moderation))
        self._updates = engine.add(Updates(engine, session))
        self._inventory = engine.add(Inventory(engine))
        engine.serving.is_noted, engine.serving.noted = is_fact, self._inventory.take
        self._key = engine.add(ServerKey(engine))
        self._key_list = engine.add(KeyList(engine, self._members))
        self.parts: Final = Parts(engine, session, self._members, self._updates, self._admission)
        mail = MailOrders(self.parts, lambda: (self.partition, self.partitions))
        opens = getattr(engine.store, "mailbox", None)  # that of a worker is read by the worker
        if opens is not None:
            engine.add(MailReader(engine, mail, lambda: opens(identity)))
        engine.add(mail)
        if key_service is not None:
            engine.add(_Strangers(engine, key_service))

    @classmethod
    def enroll(
        cls,
        folder: str | os.PathLike[str],
        url: str | None = None,
        identity: int | None = None,
        *,
        devices: KeyRing | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        scheme: str = "rsa2048",
        **options: Any,
    ) -> Self:
        """Return a server with the key and the certificate that the key exchange service at ``url`` gives.

        See :meth:`Device.enroll`; the ``token`` is one that was made for a server. Without ``devices`` the keys of
        devices come from the service too: whoever is enrolled there may join, as ``admission`` says.
        """
        enrolment = load_or_enroll(folder, url, identity, token=token, ca_file=ca_file, scheme=scheme, kind="server")
        options = {"broker": broker_transport(folder, enrolment)} | options
        if devices is None:
            options = {"key_service": enrolment.key_service()} | options
        return cls(enrolment.identity, enrolment.key, devices=KeyRing() if devices is None else devices, **options)

    # Members.

    @property
    def members(self) -> frozenset[int]:
        """The identities of the devices that are joined now."""
        return frozenset(self._members.identities)

    @property
    def pending_joins(self) -> list[PendingJoin]:
        """The joins that wait for a person now, the oldest first."""
        return self._admission.pending

    def refusal_of(self, device: int) -> str:
        """Return why the latest join of a device was not granted, in words; empty if it was, or after a restart."""
        return self._admission.refusal_of(device)

    def identify(self, device: int) -> Answer[str]:
        """Ask a device what it is; the result is its description."""
        return self._order(Identify(device))

    def command_join(self, device: int, server: int | None = None) -> Answer[Status]:
        """Tell a device to join, or a member to go to ``server``; the result is JOIN_SUCCESS or JOIN_REFUSED.

        The device comes only if its policy names us, and goes only to a server that it knows. UnansweredError when
        nothing came of it.
        """
        return self._order(CommandJoin(device, server))

    def terminate(self, device: int) -> Answer[None]:
        """Put a device out; done when the command is handed to the transport."""
        return self._order(Terminate(device))

    def deregister(self, device: int) -> Answer[None]:
        """Put a device out for good and drop its key; done when the command is handed to the transport."""
        return self._order(Deregister(device))

    def revoke(self, device: int) -> Answer[None]:
        """Put a device out for good: its key is barred, and when this method returns nothing it signed has any effect.

        That holds for what is already in the queue and for what waits for a handler; a handler that is running goes on.
        Done when the membership is over and every request and order for it has ended with PolicyError. The device is
        not told. PolicyError when there is nothing to revoke. The identity can be registered again with another key;
        to bar the keys in the next process too, store ``devices.barred`` and give it to ``devices.bar()``.
        """
        check_identity(device, "device")
        known = self.devices.revoke(device)

        def shut_out(transaction: Transaction, now: float, nonce: bytes) -> Sequence[Output]:
            return self._members.shut_out(transaction, device, known, "revoke", now)

        return self.engine.requests.ask(shut_out, answered=False)

    def _order(self, order: Order) -> Answer[Any]:
        """Do what a verb says, in a turn."""
        order.check()

        def make(transaction: Transaction, now: float, nonce: bytes) -> Sequence[Output]:
            return order.checked().start(self.parts, Turn(transaction, now, nonce))

        return self.engine.requests.ask(make, order.answered)

    def inventory(self, device: int) -> Mapping[str, str]:
        """Return the facts that a device reports of itself, by name (:meth:`Device.report_fact`).

        The firmware that it runs is not among them: see :meth:`facts`.
        """
        return read_inventory(self.facts(device).get(INVENTORY))

    # Updates.

    @property
    def orders(self) -> list[UpdateOrder]:
        """The updates under way, those from before a restart included."""
        return self._updates.under_way

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

        What no device can take is refused at once: EncodeError for a URL that is not one of http or https, without
        user and password and in ASCII, and for a digest that is none; ValueError for the rest. An earlier order that
        this device has not fetched yet does not stand any more.

        It is activated as soon as the device has it, or with ``hold`` when ``order.activate()`` is called. The order
        expires after ``lifetime`` seconds (default: the policy's ``update_lifetime``). A device with a version floor
        wants to know the ``version``, a number that grows.
        """
        Update(device, url, digest, hold, version, lifetime).checked()
        return self._updates.order(device, url, digest, hold, lifetime, version)

    def firmware_of(self, device: int) -> str | None:
        """Return the digest of the firmware that a device is being updated to, else of the one that it last activated.

        None when neither is known. A server without a store knows what it has ordered since its start.
        """
        order = self._updates.newest(device)
        ended = (UpdateState.ACTIVATED, UpdateState.ACTIVATING)
        if order is not None and (not order.done or order.state in ended):
            return order.digest
        return self.facts(device).get("firmware")

    # Keys.

    def reload_keys(self, listed: Mapping[int, PublicKey]) -> Answer[KeyChanges]:
        """Let the devices whose keys an operator lists be those of ``listed``; done when that has taken effect.

        Only what differs from the list before counts, be it from before a restart: a device that is new in it may join,
        one that is gone is put out and its key is dropped, one that has another key is a new device. Keys that were
        registered in another way stay, and so do rotated and dropped ones whose listed key is as it was. A key that was
        revoked is refused. Before the start it takes effect when the server starts, ahead of any message.
        """
        return self._key_list.reload(listed)

    def rotate_key(self, new_key: PrivateKey, overlap: float | None = None) -> Answer[frozenset[int]]:
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
        done: Answer[frozenset[int]] = Answer()

        def begin(transaction: Transaction, now: float, nonce: bytes) -> Sequence[Output]:
            self._key.rotate(new_key, now + lasts, done, self._members.identities)
            transaction.due = True  # the first are asked in this turn
            return ()

        def begun(future: "Future[None]") -> None:
            error = future.exception()
            if error is not None:
                done.set_exception(error)

        self.engine.requests.ask(begin, answered=False).add_done_callback(begun)
        return done

    # Handlers.

    def on_join(self, handler: Handler) -> Handler:
        """Register a handler that decides about joins. It is called with the device's identity.

        What it returns is answered: a Status, or False for JOIN_REFUSED; anything else lets the device in. If it raises
        the answer is JOIN_FAIL. Without a handler every device whose key is registered may join.
        """
        return self.engine.handlers.register("join", handler, 1)

    def on_moderation(self, handler: Handler) -> Handler:
        """Register a handler that shows a :class:`PendingJoin` to a person; it may wait for the answer or not.

        It is called for one join at a time, on a thread of its own, and not for those that are over by then. Without a
        handler human-moderated joins are refused, unless ``moderation`` is by "orders".
        """
        return self.engine.handlers.register("moderation", handler, 1)

    def on_deregistered(self, handler: Handler) -> Handler:
        """Register a handler called with a device's identity when its key has been dropped."""
        return self.engine.handlers.register("deregistered", handler, 1)

    def on_joined(self, handler: Handler) -> Handler:
        """Register a handler for new members: it is called with the identity of a device that has joined.

        It is not called again for a member that asks again or starts anew: see :meth:`on_member`.
        """
        return self.engine.handlers.register("joined", handler, 1)

    def on_member(self, handler: Handler) -> Handler:
        """Register a handler for every member, new or not: the place to order what a device is to have.

        It is called with the device's identity when the device joins, whenever a member asks again (a device does so
        when it starts, when its link comes back and every quarter of an hour), and when the server starts, for each
        member that its store knows. So it is called often: compare with what is there (:meth:`firmware_of`,
        :meth:`facts`) before ordering anything.
        """
        return self.engine.handlers.register("member", handler, 1)

    def on_not_joined(self, handler: Handler) -> Handler:
        """Register a handler called with a device's identity and the Status when a join was refused or has failed.

        :meth:`refusal_of` says why.
        """
        return self.engine.handlers.register("not_joined", handler, 2)

    def on_update(self, handler: Handler) -> Handler:
        """Register a handler called with an :class:`UpdateOrder` whenever its state has changed."""
        return self.engine.handlers.register("update", handler, 1)
