"""A device that runs."""

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, get_args

from .. import rotation
from ..errors import KeyServiceError, PolicyError, SealError, TransportError, UnansweredError, UpdateError
from ..fetch import Fetcher, FetchPolicy, HttpFetcher, check_digest
from ..joinvalue import JoinValue
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..messages import Data, DataKind, HumanJoinRequest, JoinRequest, ObservedJoinRequest
from ..records import State
from ..session import DeviceSession, Policy, Send
from ..session.events import (
    ActivationRequested,
    Deregistered,
    FetchRequested,
    JoinAnswered,
    JoinCommanded,
    JoinValueReceived,
    KeyAnswered,
    Left,
    ObservationRequested,
    ObserverNamed,
    Unanswered,
)
from ..store import Store
from ..transport.base import Transport
from ..transport.topics import Address, device_topic
from ..update import FETCH_FAILURES
from ..wire import Status
from .base import Agent, Handler, Inline, check_identity, check_type, sequence_origin, transport_to
from .enrolment import enter, link

__all__ = ["Device"]

CURRENT: Final = "current"
"""The name of the link to the active firmware, made when the device has no activation handler."""

REJOIN: Final = 900.0
"""After how many seconds, a random part more, a member asks its server again."""

_SERVER: Final = "server"
"""A fact about ourselves: the server that we were configured with, and the one that we were sent to."""

_FLOOR: Final = "version floor"
"""A fact about ourselves."""

JoinKind = Literal["simple", "human", "observed"]

_JOINS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)

LONGEST_DESCRIPTION: Final = 32768
"""In bytes of UTF-8; it has to fit a message with any signature."""


class Device(Agent):
    """A device: joins its server, does what it is told, fetches and activates firmware.

    ``identity`` is a number from 0 to 2**64 - 1, ``server`` and ``server_key`` are whom it obeys. ``broker`` is a URL,
    ``mqtt://host:port`` or ``mqtts://host:port``, or a transport of one's own making. Firmware goes to the folder
    ``firmware``, named by its digest; ``fetch`` says what may be downloaded (https only, unless it allows more).
    ``description`` is what the device says it is. ``policy`` is about tokens, clocks and retries. A device whose clock
    may go back between two starts gives a ``first_sequence_id`` above all that it has ever used; otherwise it comes
    from the clock.

    It joins when it is started and, until it is refused or leaves, again whenever the server stays silent, after every
    loss of the link, and every quarter of an hour, so that a server that has forgotten its devices finds them again.
    ``join`` says how: "simple"; "human", compared by a person; or "observed" by the device ``observer``. The last two
    need a handler (:meth:`on_join_value`) that shows the value. A member that only asks again does so simply.

    ``servers`` are the keys of other servers that the device may come to obey: when its present one sends it there, or,
    those named by ``commanders``, when they send a JoinCommand themselves. With a ``version_floor`` it takes only
    firmware whose order names a version, and none below; what it activates becomes the floor.

    With a ``store``, the path of an SQLite database or a :class:`srup.store.Store`, the device goes on after a restart
    where it ended, a crash included: membership, replay window, orders under way, answers and values that the server
    does not have yet, the version floor. An activation that started the device anew is handed over again, and
    :attr:`handling` says so: look whether the firmware runs. Audit rows are deleted when they are older than
    ``audit_kept`` seconds; None keeps them for good.
    """

    _session_type: ClassVar[type[DeviceSession]] = DeviceSession

    def __init__(
        self,
        identity: int,
        key: PrivateKey,
        *,
        server: int,
        server_key: PublicKey,
        broker: str | Transport,
        firmware: str | os.PathLike[str] = "firmware",
        description: str = "",
        policy: Policy | None = None,
        fetch: FetchPolicy | None = None,
        fetcher: Fetcher | None = None,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
        first_sequence_id: int | None = None,
        join: JoinKind = "simple",
        observer: int | None = None,
        servers: Mapping[int, PublicKey] | None = None,
        commanders: Collection[int] = (),
        version_floor: int | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        audit_kept: float | None = 30 * 86400.0,
    ) -> None:
        check_identity(identity)
        check_identity(server, "server")
        if join not in get_args(JoinKind):
            raise ValueError(f"join is one of {', '.join(get_args(JoinKind))}, not {join!r}")
        if (observer is None) is (join == "observed"):
            raise ValueError("an observed join names its observer, and no other join does")
        if observer is not None:
            check_identity(observer, "observer")
        check_type(server_key, PublicKey, "server_key")
        check_type(policy, (Policy, type(None)), "policy")
        check_type(fetch, (FetchPolicy, type(None)), "fetch")
        if fetcher is not None and not hasattr(fetcher, "fetch"):
            raise TypeError(f"fetcher must have a fetch(), which {fetcher!r} has not")
        if identity == server:
            raise ValueError(f"device and server cannot both be {identity:x}")
        if len(Data.encode_value(description, "text")) > LONGEST_DESCRIPTION:
            raise ValueError(f"a description has at most {LONGEST_DESCRIPTION} bytes")
        transport = transport_to(broker, identity)
        first = sequence_origin(clock) if first_sequence_id is None else first_sequence_id
        keys = KeyRing({**(servers or {}), server: server_key})
        if identity in keys or not set(commanders) <= set(keys):
            raise ValueError("servers are others than the device, and commanders are among them")
        session = self._session_type(identity, keys, policy, first, description, commanders, version_floor)
        super().__init__(session, key, keys, transport, clock, entropy, store=store, audit_kept=audit_kept)
        self.server = server
        self._servers = keys
        self._join_kind, self._observer = join, observer
        self._named_observer: int | None = None  # by the server, when it refuses a simple join
        self._advised = False  # the join under way is the one that the server has advised
        self.firmware = Path(firmware)
        self._session: DeviceSession = session
        self._own_fetcher: HttpFetcher | None = None
        if fetcher is None:
            fetcher = self._own_fetcher = HttpFetcher(fetch)
        self._fetcher = fetcher
        self._offered: PrivateKey | None = None  # our next key, while the server has not answered
        self._offer: tuple[int, bytes] | None = None  # to which server, under which token
        self._downloads: Executor = Inline()
        self._joined: Future[None] = Future()
        self._wants_in = True
        self._is_in = False
        self._configured_server = server
        self._was_connected = False
        self._join_again_at = math.inf

    @classmethod
    def enroll(
        cls,
        folder: str | os.PathLike[str],
        url: str | None = None,
        identity: int | None = None,
        *,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        scheme: str = "rsa2048",
        **options: Any,
    ) -> Self:
        """Return a device with the key, the certificate and the server that the key exchange service at ``url`` gives.

        All is kept in ``folder`` (mode 0600, not encrypted); once it is there the other arguments are not needed.
        Whom to believe is said by ``ca_file``, else by the ``token``, which the service's operator has made (see
        ``srup keyex token``). Without a token the operator approves the key: KeyServiceError (403) tells its
        fingerprint, and a later call goes on. The certificate is renewed by itself. ``options`` are those of the
        constructor.
        """
        enrolment = enter(folder, url, identity, token=token, ca_file=ca_file, scheme=scheme)
        if enrolment.server is None or enrolment.server_key is None:
            raise KeyServiceError(0, "", "the key exchange service names no server to join; register one first")
        options = {"broker": link(folder, enrolment)} | options
        server, server_key = enrolment.server, enrolment.server_key
        return cls(enrolment.identity, enrolment.key, server=server, server_key=server_key, **options)

    def on_activate(self, handler: Handler) -> Handler:
        """Decorate what activates firmware. It is called with the file's path; the digest was checked just before.

        If it raises or returns False the server is told ACTIVATE_FAIL. Without a handler the link ``current`` in the
        firmware folder is pointed at the file.
        """
        return self._register(self._handlers, "activate")(handler)

    def on_joined(self, handler: Handler) -> Handler:
        """Decorate what is called, without arguments, when the server has let the device in, each time it has asked."""
        return self._register(self._handlers, "joined")(handler)

    def on_not_joined(self, handler: Handler) -> Handler:
        """Decorate what is called when a join has ended otherwise, with the server's Status: JOIN_REFUSED or JOIN_FAIL.

        It is None when the server did not answer in time: then the device asks again by itself. Whatever value was
        shown is void now.
        """
        return self._register(self._handlers, "not_joined")(handler)

    def on_join_value(self, handler: Handler) -> Handler:
        """Decorate what shows the :class:`JoinValue` of a human-moderated or observed join.

        It is shown until ``on_joined``, ``on_not_joined`` or ``on_left`` is called, or this with another one.
        """
        return self._register(self._handlers, "join_value")(handler)

    def on_update(self, handler: Handler) -> Handler:
        """Decorate what is called with a digest and the Status that the server is told about an update.

        UPDATE_SUCCESS says that the firmware is here, ACTIVATE_SUCCESS that it is active; the others are failures.
        """
        return self._register(self._handlers, "update")(handler)

    def on_observation(self, handler: Handler) -> Handler:
        """Decorate what reads the value that another device shows. It is called with that device's identity.

        It may take a while, on a thread of its own: the other device gets the value at the same time, and has to show
        it first. What it returns is compared with the value that the server sent (see :meth:`JoinValue.matches`). None,
        and whatever it raises, says that nothing could be read.
        """
        return self._register(self._handlers, "observation")(handler)

    def on_deregistered(self, handler: Handler) -> Handler:
        """Decorate what is called with a server's identity when it has dropped our key, and we its key."""
        return self._register(self._handlers, "deregistered")(handler)

    def wait_joined(self, timeout: float | None = None) -> None:
        """Wait until the server has let the device in.

        Raises PolicyError when it refuses, TimeoutError when ``timeout`` seconds are over (the device goes on trying),
        TransportError when the device is stopped.
        """
        try:
            self._joined.result(timeout)
        except TimeoutError:
            link = "connected" if self.connected else f"not connected ({self._link!a})"
            raise TimeoutError(f"server {self.server:x} has not answered the join; the device is {link}") from None

    @property
    def joined(self) -> bool:
        """Whether the device is a member now."""
        return self._session.is_member(self.server)

    @property
    def version_floor(self) -> int | None:
        """The lowest firmware version that is taken; keep it, and give it again at the next start."""
        return self._session.version_floor

    def send(
        self,
        data_id: str,
        value: bytes | str | int | float,
        kind: DataKind | None = None,
        *,
        confirmed: bool | None = None,
        lifetime: float | None = None,
    ) -> "Future[None]":
        """Send a value to the server (see :meth:`send_data`)."""
        return self.send_data(self.server, data_id, value, kind, confirmed=confirmed, lifetime=lifetime)

    def resign(self) -> "Future[None]":
        """Leave the server; done when it confirms, UnansweredError when it does not: we are out at once.

        What it has ordered is not done any more, unless a handler or a download is at it.
        """
        self._wants_in = False
        return self._request(lambda now, nonce: self._session.resign(self.server, now, nonce))

    def rotate_key(self, new_key: PrivateKey, lifetime: float | None = None) -> "Future[None]":
        """Change the device's key: the old one signs the new one, and signs everything until the server has taken it.

        Store ``new_key`` before. Raises PolicyError when the server refuses it, when the device is not joined or when
        the answer to another new key is due; then the old key stays. UnansweredError after ``lifetime`` seconds
        (default: the policy's) means that the server may have taken it: the old key still signs, and is good for the
        server's ``key_overlap``; offer the same key again before that is over, after a restart too. It comes at once
        when the device is sent to another server meanwhile, which knows the old key: offer the new one there.
        """
        check_type(new_key, PrivateKey, "new_key")

        def begin(now: float, nonce: bytes) -> list[Send]:
            if self._offered is not None:
                raise PolicyError("the server has not yet answered the change to another key")
            data = rotation.offer(self.identity, self.server, self._key.public_key, new_key)
            sends = self._session.rotate(self.server, data, now, nonce, lifetime)
            self._offered, self._offer = new_key, (self.server, sends[0].message.token)
            return sends

        return self._request(begin)

    def deregister(self) -> "Future[None]":
        """Leave the server for good, as with :meth:`resign`: it drops our key and we drop its, when it confirms."""
        self._wants_in = False
        return self._request(lambda now, nonce: self._session.deregister(self.server, now, nonce))

    def join(self) -> None:
        """Ask the server again, after a refusal or after leaving. Not needed otherwise: the device does it itself."""
        self._expect_answer()  # now, so that wait_joined() waits for the new one
        self._wants_in = True
        self._inbox.put(self._join)

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Agent.stop`; a running download is broken off, and goes on when the order comes again."""
        super().stop(timeout)
        if not self._joined.done():
            self._joined.set_exception(TransportError("stopped before the server answered the join"))

    # What the base asks for.

    def _employ(self, name: str) -> None:
        self._downloads = ThreadPoolExecutor(1, f"{name}-download")
        super()._employ(name)

    def _dismiss(self) -> None:
        if self._own_fetcher is not None:
            self._own_fetcher.close()
        self._downloads.shutdown(wait=False, cancel_futures=True)
        super()._dismiss()

    events = {
        **Agent.events,
        JoinAnswered: "_join_answered",
        KeyAnswered: "_key_answered",
        JoinValueReceived: "_join_value_received",
        JoinCommanded: "_join_commanded",
        ObserverNamed: "_observer_named",
        ObservationRequested: "_observation_requested",
        Left: "_left",
        Deregistered: "_deregistered",
        FetchRequested: "_fetch_requested",
        ActivationRequested: "_activation_requested",
    }

    def _restore_role(self, state: State) -> None:
        for server in self._session.servers:
            if server not in self._servers:
                text = "%r and server %x have parted for good; another store lets it begin anew"
                self._log(logging.WARNING, text, server, partner=server)
                self._session.forget(server)
        facts = self._facts.get(self.identity, {})
        sent_from, _, sent_to = facts.get(_SERVER, "").partition(" ")
        if sent_from == f"{self._configured_server:x}" and (sent := int(sent_to, 16)) in self._servers:
            self.server = sent
        if _FLOOR in facts and self._session.version_floor is not None:
            self._session.version_floor = max(self._session.version_floor, int(facts[_FLOOR]))
        self._is_in = self.joined

    def _close_turn(self) -> None:
        if self._store is not None:
            if self.server != self._configured_server or _SERVER in self._facts.get(self.identity, {}):
                self._know(self.identity, _SERVER, f"{self._configured_server:x} {self.server:x}")
            if self._session.version_floor is not None:
                self._know(self.identity, _FLOOR, str(self._session.version_floor))
        super()._close_turn()

    def _membership(self) -> int:
        return int(self.joined)

    def _subscribe(self) -> None:
        self._transport.subscribe(device_topic(self.identity))

    def start(self, threads: bool = True) -> Self:
        """See :meth:`Agent.start`. ValueError if the join needs an ``on_join_value`` handler and there is none."""
        if self._join_kind != "simple" and "join_value" not in self._handlers:
            raise ValueError(f"a join of the kind {self._join_kind} needs a handler: on_join_value")
        return super().start(threads)

    def _begin(self) -> None:
        self._inbox.put(self._join)

    def _check_address(self, address: Address, sender: int) -> None:
        if address != Address(None, self.identity):
            raise PolicyError("the topic is not this device's")

    def _device_of(self, send: Send) -> int:
        return self.identity

    # Our key.

    def _own_keys(self) -> list[PrivateKey]:
        offered = [] if self._offered is None else [self._offered]
        return [*super()._own_keys(), *offered]  # the server may have taken it already

    def _key_answered(self, event: KeyAnswered) -> None:
        if (event.peer, event.token) != self._offer:
            self._settle(event, PolicyError(f"the offer that server {event.peer:x} answers has been given up"))
            return
        new, self._offered, self._offer = self._offered, None, None
        if event.status is Status.ACTION_SUCCESS and new is not None:
            self._retired = self._key, self._clock() + self._session.policy.key_overlap
            self._key = new
            self._log(logging.INFO, "%r: server %x has taken the new key %r", event.peer, new, partner=event.peer)
            self._settle(event, None)
        else:
            self._settle(event, PolicyError(f"server {event.peer:x} answers {event.status.name}"))

    def _give_offer_up(self, successor: int) -> None:
        """End the change of our key: it was to be that server's affair, and the next one knows us by the old key."""
        if self._offer is not None:
            why = f"{self._offer[0]:x} sent us to {successor:x} and has not answered; offer the key to that one"
            future = self._pending.pop(self._offer, None)
            self._offered = self._offer = None
            if future is not None:
                self._resolve(future, UnansweredError(why))

    # Joining and leaving.

    def deadline(self) -> float | None:
        """See :meth:`Agent.deadline`."""
        session = super().deadline()
        if not (self._wants_in and self.joined):
            return session
        return self._join_again_at if session is None else min(session, self._join_again_at)

    def _tick(self) -> None:
        super()._tick()
        if self.joined and self._wants_in and self._clock() >= self._join_again_at:
            self._fenced(self._join)  # the server may have forgotten us; it answers a member without further ado

    def _set_connected(self, connected: bool, why: str) -> None:
        back = connected and not self.connected and self._was_connected
        super()._set_connected(connected, why)
        self._was_connected = self._was_connected or connected
        if back and self.joined and self._wants_in:
            self._join()

    def _join(self, observer: int | None = None) -> None:
        """Ask the server, in the way that is due, or by way of the ``observer`` that it has named."""
        self._advised = observer is not None
        self._named_observer = None
        if not self.joined:
            self._expect_answer()
        now = self._clock()
        # A fleet that lost its server together must not come back in step.
        self._join_again_at = now + REJOIN * (1 + int.from_bytes(self._entropy(2)) / 0x10000 / 4)
        try:
            sends = self._request_join(now, self._entropy(16), self._observer if observer is None else observer)
        except PolicyError as error:  # we have parted from this server for good, or too much is under way
            text = "%r cannot ask server %x: %s"
            self._log(logging.WARNING, text, self.server, error, partner=self.server, error=error)
            if not self._joined.done():
                self._joined.set_exception(error)
        else:
            self._perform(sends)

    def _request_join(self, now: float, nonce: bytes, observer: int | None) -> list[Send]:
        """Begin a join of the kind that is due; a member only asks again."""
        if self._join_kind == "human" and not self.joined:
            return self._session.join_human(self.server, now, nonce)
        if observer is not None and not self.joined:
            return self._session.join_observed(self.server, observer, now, nonce)
        return self._session.join(self.server, now, nonce)

    def _expect_answer(self) -> None:
        """Let wait_joined() wait for the next answer to a join."""
        if self._joined.done():
            self._joined = Future()

    def _unanswered(self, event: Unanswered) -> None:
        super()._unanswered(event)
        if (event.peer, event.token) == self._offer:
            self._offered = self._offer = None
        if event.request in _JOINS and event.peer == self.server:
            if not self.joined:
                self._tell("not_joined", None)
            if self._wants_in:
                self._join()

    def _join_answered(self, event: JoinAnswered) -> None:
        text, status = "%r: server %x answers the join with %s", event.status.name
        self._log(logging.INFO, text, event.peer, status, partner=event.peer, status=status)
        if event.peer != self.server or not self._wants_in:
            if event.status is Status.JOIN_SUCCESS:  # we have left meanwhile, and the server does not know it
                self._perform(self._session.resign(event.peer, self._clock(), self._entropy(16)))
            return
        was_in, self._is_in = self._is_in, event.status is Status.JOIN_SUCCESS
        if was_in and event.status is Status.JOIN_REFUSED and self._join_kind != "simple":
            self._join()  # the server has forgotten that somebody vouched for us
            return
        self._expect_answer()
        if self._is_in:
            self._joined.set_result(None)
            self._tell("joined")
            if self._store is not None and not self._session.binds(event.peer):
                self._queue.hold(event.peer, self._clock() + 2 * self._session.policy.first_retry)
            self._perform(self._session.hurry(event.peer, self._clock()))
        elif not self._join_observed_instead():
            self._joined.set_exception(PolicyError(f"server {event.peer:x} answers {event.status.name}"))
            self._tell("not_joined", event.status)

    def _observer_named(self, event: ObserverNamed) -> None:
        if event.peer == self.server:
            self._named_observer = event.observer
            if self._joined.done() and not self._is_in:  # the refusal got here first
                self._join_observed_instead()

    def _join_observed_instead(self) -> bool:
        """Follow the server's advice, once it has refused a simple join and named an observer.

        Tells whether the device goes on in that way. It does so once: the next join is a simple one again, for which
        the server may name another observer.
        """
        follows = self._join_kind == "simple" and not self._advised and self._wants_in
        if self._named_observer is None or not follows:
            return False
        if "join_value" not in self._handlers:
            text = "%r: %x would vouch for us, but on_join_value has no handler"
            self._log(logging.WARNING, text, self._named_observer, partner=self.server)
            return False
        self._join(self._named_observer)
        return True

    def _join_value_received(self, event: JoinValueReceived) -> None:
        if event.peer != self.server:
            return  # a join that we have turned away from
        try:
            value = JoinValue(self._unseal(event.sealed))
        except SealError as error:
            self.counts["unopened"] += 1
            text, peer = "%r: the join value of %x: %s", event.peer
            self._log(logging.WARNING, text, peer, error, partner=peer, error=error)
        else:
            self._tell("join_value", value)

    def _join_commanded(self, event: JoinCommanded) -> None:
        text = "%r: %x sends us to server %x"
        self._log(logging.INFO, text, event.peer, event.server, partner=event.peer, server=f"{event.server:x}")
        self._wants_in = True
        if event.server != self.server:
            if self.joined:
                self._perform(self._session.resign(self.server, self._clock(), self._entropy(16)))
            self._give_offer_up(event.server)
            self.server, self._is_in = event.server, False
        self._join()  # a member only asks again, and by that answers the command

    def _observation_requested(self, event: ObservationRequested) -> None:
        def observe() -> Status:
            handler = self._handlers.get("observation")
            if handler is None:
                text, device = "%r cannot observe %x: on_observation has no handler", event.device
                self._log(logging.WARNING, text, device, partner=event.peer, device=f"{device:x}")
                return Status.OBSERVED_JOIN_FAIL
            value = JoinValue(self._unseal(event.sealed))
            read = handler(event.device)
            if isinstance(read, JoinValue):
                read = read.text
            if not isinstance(read, str | bytes):
                return Status.OBSERVED_JOIN_FAIL
            return Status.OBSERVED_JOIN_VALID if value.matches(read) else Status.OBSERVED_JOIN_INVALID

        def job() -> None:
            status = self._fenced(observe) or Status.OBSERVED_JOIN_FAIL
            self._drive(self._session.answer_observation, event.peer, event.token, status)

        self._apply(job, self._aside)

    def _left(self, event: Left) -> None:
        self._log(logging.INFO, "%r is no longer a member of server %x", event.peer, partner=event.peer)
        news = event.peer != self.server
        if not news:
            if (event.peer, event.token) not in self._pending:  # else we wanted that, and join() may have come since
                self._wants_in = False
            if not self.joined:
                news, self._is_in = self._is_in, False
                self._expect_answer()
        self._settle(event, None)
        if news:
            self._announce("left", event.peer, event.peer)

    def _deregistered(self, event: Deregistered) -> None:
        self._log(logging.INFO, "%r and server %x have dropped each other's key", event.peer, partner=event.peer)
        self._servers.remove(event.peer)
        self._announce("deregistered", event.peer, event.peer)

    # Updates.

    def _fetch_requested(self, event: FetchRequested) -> None:
        def job() -> None:
            if self._is_over(event):
                return
            try:
                path = self._fetcher.fetch(event.url, event.digest, self.firmware)
            except UpdateError as error:
                if self._stopping.is_set():
                    return  # this is why: the server asks again, and the next start goes on where this one ended
                status = Status(error.status) if error.status in FETCH_FAILURES else Status.UPDATE_FAIL_FILE
                text, peer, said = "%r: update refused: %s: %a", event.peer, status.name
                digest, why = event.digest, error.reason
                self._log(logging.WARNING, text, said, why, partner=peer, digest=digest, status=said, error=error)
                self._drive(self._session.fetch_failed, event.peer, event.token, status)
                self._tell("update", event.digest, status)
            except Exception:  # noqa: BLE001 - the server gets an answer whatever happens, and the fault is told here
                self.counts["faults"] += 1
                self._log(logging.ERROR, "%r: the download raised", partner=event.peer, exc_info=True)
                self._drive(self._session.fetch_failed, event.peer, event.token, Status.UPDATE_FAIL_FILE)
                self._tell("update", event.digest, Status.UPDATE_FAIL_FILE)
            else:
                self._log(logging.INFO, "%r fetched %s", path, partner=event.peer, digest=event.digest)
                self._drive(self._session.fetched, event.peer, event.token)
                self._tell("update", event.digest, Status.UPDATE_SUCCESS)

        self._apply(job, self._downloads)

    def _activation_requested(self, event: ActivationRequested) -> None:
        def activate() -> bool:
            path = self.firmware / event.digest
            try:
                check_digest(path, event.digest)  # again: the file may have been changed since it was fetched (T11)
            except UpdateError as error:
                self.counts["firmware changed"] += 1
                text, peer, digest = "%r does not activate: %a", event.peer, event.digest
                self._log(logging.ERROR, text, error.reason, partner=peer, digest=digest, error=error)
                return False
            handler = self._handlers.get("activate", self._point_current_at)
            status = self._ask(handler, path, failure=Status.ACTIVATE_FAIL, success=Status.ACTIVATE_SUCCESS)
            return status is Status.ACTIVATE_SUCCESS

        pin = self._keys.pin(event.peer)

        def job() -> None:
            if self._is_over(event) or self._keys.pin(event.peer) is not pin:
                self._drive(self._session.activation_failed, event.peer, event.token)
                return
            active = activate()
            decision = self._session.activated if active else self._session.activation_failed
            self._drive(decision, event.peer, event.token)
            self._tell("update", event.digest, Status.ACTIVATE_SUCCESS if active else Status.ACTIVATE_FAIL)

        self._apply_for(event.peer, event.token, job)

    def _point_current_at(self, path: Path) -> None:
        link = path.with_name(CURRENT)
        fresh = path.with_name(f".{CURRENT}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(path.name)
        fresh.replace(link)
