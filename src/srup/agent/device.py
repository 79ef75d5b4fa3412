"""A device that runs."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self, get_args

from ..errors import KeyServiceError
from ..fetch import Fetcher, FetchPolicy, HttpFetcher
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..messages import Data, DataKind
from ..session import DeviceSession, Policy
from ..session.policy import check_number
from ..store import Store
from ..transport.base import Transport
from .agent import Agent
from .answer import Answer
from .arguments import check_identity, check_type, sequence_origin, transport_to
from .audit import KEPT
from .enrolment import broker_transport, load_or_enroll
from .firmware import Firmware
from .handlers import Handler
from .inventory import MAX_FACTS, FactReports, check_fact
from .joining import Joining, JoinKind
from .keychange import KeyChange

__all__ = ["Device"]

MAX_IMAGES: Final = 1_000_000

LONGEST_DESCRIPTION: Final = 32768
"""In bytes of UTF-8; it has to fit a message with any signature."""


class Device(Agent):
    """A device: joins its server, does what it is told, fetches and activates firmware.

    ``identity`` is a number from 0 to 2**64 - 1, ``server`` and ``server_key`` are whom it obeys. ``broker`` is a URL,
    ``mqtt://host:port`` or ``mqtts://host:port``, or a transport of one's own making. Firmware goes to the folder
    ``firmware``, which is this device's alone, named by its digest; ``fetch`` says what may be downloaded (https only,
    unless it allows more). Of the images there ``keep_images`` are kept, the newest; None keeps all. What runs, what is
    ordered and what a link in the folder names is never removed. A newer order ends a download that is running.
    ``description`` is what the device says it is, ``inventory`` what else the server is to know of it by name, such as
    ``{"type": "lock"}`` (:meth:`report_fact`). ``policy`` is about tokens, clocks and retries. Sequence ids begin at
    ``first_sequence_id``, above all that were ever used, or else where the clock says: a device without a store whose
    clock went back between two starts is refused until the clock is right. ``clock`` returns Unix time; deadlines go by
    its method ``monotonic``, if it has one, and by the system's monotonic clock if it is time.time.

    It joins when it is started and, until it is refused or leaves, again whenever the server stays silent, after every
    loss of the link, and every quarter of an hour, so that a server that has forgotten its devices finds them again;
    a deployed one once a day, for it lists the device each time.
    ``join`` says how: "simple"; "human", compared by a person; or "observed" by the device ``observer``. The last two
    need a handler (:meth:`on_join_value`) that shows the value. A member that only asks again does so simply.

    ``servers`` are the keys of other servers that the device may come to obey: when its present one sends it there, or,
    those named by ``commanders``, when they send a JoinCommand themselves. With a ``version_floor`` it takes only
    firmware whose order names a version, and none below; what it activates becomes the floor.

    With a ``store``, the path of an SQLite database or a :class:`srup.store.Store`, the device goes on after a restart
    where it ended, a crash included: membership, replay window, orders under way, answers and values that the server
    does not have yet, the version floor. An activation that started the device anew is handed over again, and
    :attr:`handling` says so: look whether the firmware runs. Audit rows are deleted when they are older than
    ``audit_kept`` seconds; None keeps them for good; ``audit_values`` keeps the signed bytes of ordinary values too.
    """

    noun: ClassVar[str] = "device"
    partner_noun: ClassVar[str] = "server"
    session_type: ClassVar[type[DeviceSession]] = DeviceSession

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
        inventory: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        fetch: FetchPolicy | None = None,
        fetcher: Fetcher | None = None,
        keep_images: int | None = 2,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
        first_sequence_id: int | None = None,
        join: JoinKind = "simple",
        observer: int | None = None,
        servers: Mapping[int, PublicKey] | None = None,
        commanders: Collection[int] = (),
        version_floor: int | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        audit_kept: float | None = KEPT,
        audit_values: bool = False,
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
        if keep_images is not None:
            check_number(keep_images, "keep_images", 1, MAX_IMAGES)
        if identity == server:
            raise ValueError(f"device and server cannot both be {identity:x}")
        if len(Data.encode_value(description, "text")) > LONGEST_DESCRIPTION:
            raise ValueError(f"a description has at most {LONGEST_DESCRIPTION} bytes")
        for name, value in (inventory or {}).items():
            check_fact(name, value)
        if len(inventory or {}) > MAX_FACTS:
            raise ValueError(f"a device reports at most {MAX_FACTS} facts")
        transport = transport_to(broker)
        first = sequence_origin(clock) if first_sequence_id is None else first_sequence_id
        keys = KeyRing({**(servers or {}), server: server_key})
        if identity in keys or not set(commanders) <= set(keys):
            raise ValueError("servers are others than the device, and commanders are among them")
        session = self.session_type(identity, keys, policy, first, description, commanders, version_floor)
        super().__init__(
            session,
            key,
            keys,
            transport,
            clock,
            entropy,
            lambda _: identity,
            store=store,
            audit_kept=audit_kept,
            audit_values=audit_values,
        )
        self.firmware = Path(firmware)
        self._session = session
        by_clock = first_sequence_id is None
        self._joining = self.engine.add(Joining(self.engine, session, server, join, observer, by_clock))
        self._facts = self.engine.add(FactReports(self.engine, self._joining, inventory or {}))
        self._key_change = self.engine.add(KeyChange(self.engine))
        fetcher = HttpFetcher(fetch) if fetcher is None else fetcher
        self.engine.add(Firmware(self.engine, session, self.firmware, fetcher, keep_images))

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
        enrolment = load_or_enroll(folder, url, identity, token=token, ca_file=ca_file, scheme=scheme)
        if enrolment.server is None or enrolment.server_key is None:
            raise KeyServiceError(0, "", "the key exchange service names no server to join; register one first")
        options = {"broker": broker_transport(folder, enrolment)} | options
        server, server_key = enrolment.server, enrolment.server_key
        return cls(enrolment.identity, enrolment.key, server=server, server_key=server_key, **options)

    # Handlers.

    def on_activate(self, handler: Handler) -> Handler:
        """Register a handler that activates firmware, called with the file's path; its digest was checked just before.

        If it raises or returns False the server is told ACTIVATE_FAIL; the reason of an UpdateError is told as well.
        RestartPending leaves the answer to the call that comes after a restart. Without a handler the link ``current``
        in the firmware folder is pointed at the file.
        """
        return self.engine.handlers.register("activate", handler, 1)

    def on_joined(self, handler: Handler) -> Handler:
        """Register a handler called without arguments when the server has let the device in, each time it has asked."""
        return self.engine.handlers.register("joined", handler, 0)

    def on_join_unanswered(self, handler: Handler) -> Handler:
        """Register a handler for a join that the server has not answered for ten seconds.

        It gets a text for people: what may be wrong, with the fingerprints to compare. The device goes on asking.
        """
        return self.engine.handlers.register("join_unanswered", handler, 1)

    def on_not_joined(self, handler: Handler) -> Handler:
        """Register a handler called when a join has ended otherwise: with the Status JOIN_REFUSED or JOIN_FAIL.

        It is None when the server did not answer in time: then the device asks again by itself. Whatever value was
        shown is void now. :attr:`refusal` says why, if the server does.
        """
        return self.engine.handlers.register("not_joined", handler, 1)

    def on_join_value(self, handler: Handler) -> Handler:
        """Register a handler that shows the :class:`JoinValue` of a human-moderated or observed join.

        It is shown until ``on_joined``, ``on_not_joined`` or ``on_left`` is called, or this with another one.
        """
        return self.engine.handlers.register("join_value", handler, 1)

    def on_update(self, handler: Handler) -> Handler:
        """Register a handler called with a digest and the Status that the server is told about an update.

        UPDATE_SUCCESS says that the firmware is here, ACTIVATE_SUCCESS that it is active; the others are failures.
        """
        return self.engine.handlers.register("update", handler, 2)

    def on_update_failed(self, handler: Handler) -> Handler:
        """Register a handler for failed updates: it gets a digest, a Status and the reason in words.

        It is called after that of :meth:`on_update`. Servers that bind their tokens are told the same reason
        (docs/extensions.md).
        """
        return self.engine.handlers.register("update_failed", handler, 3)

    def on_observation(
        self,
        handler: Handler,
        *,
        attempts: int = 1,
        on_mistake: Callable[[int, int], object] = lambda device, left: None,
    ) -> Handler:
        """Register a handler that reads the value that another device shows. It is called with that device's identity.

        It may take a while, on a thread of its own: the other device gets the value at the same time, and has to show
        it first. What it returns is compared with the value that the server sent (see :meth:`JoinValue.matches`). None,
        and whatever it raises, says that nothing could be read. Where people mistype, it is asked up to ``attempts``
        times; before it is asked again ``on_mistake`` is called with the identity and how many attempts are left.
        """
        if attempts < 1:
            raise ValueError(f"attempts is at least 1, not {attempts}")
        self._joining.observe_with(attempts, on_mistake)
        return self.engine.handlers.register("observation", handler, 1)

    def on_deregistered(self, handler: Handler) -> Handler:
        """Register a handler called with a server's identity when it has dropped our key, and we its key."""
        return self.engine.handlers.register("deregistered", handler, 1)

    # Membership.

    @property
    def server(self) -> int:
        """The server that the device obeys now."""
        return self._joining.server

    @property
    def joined(self) -> bool:
        """Whether the device is a member now."""
        return self._joining.joined

    @property
    def refusal(self) -> str:
        """Why the server has not let us in, in its words (printable ASCII); empty if it has, or has not said."""
        return self._joining.refusal

    @property
    def version_floor(self) -> int | None:
        """The lowest firmware version that is taken; keep it, and give it again at the next start."""
        return self._session.version_floor

    def wait_joined(self, timeout: float | None = None) -> None:
        """Wait until the server has let the device in.

        Raises PolicyError when it refuses, TimeoutError when ``timeout`` seconds are over (the device goes on trying):
        it says what may be wrong, with the fingerprints to compare. TransportError when the device is stopped.
        """
        try:
            self._joining.answer.result(timeout)
        except TimeoutError:
            link = "connected" if self.connected else f"not connected ({self.engine.link!a})"
            text = f"server {self.server:x} has not answered the join; the device is {link}. {self._joining.doubts()}"
            raise TimeoutError(text) from None

    def start(self, threads: bool = True) -> Self:
        """See :meth:`Agent.start`. ValueError if the join needs an ``on_join_value`` handler and there is none."""
        if self._joining.kind != "simple" and "join_value" not in self.engine.handlers.named:
            raise ValueError(f"a join of the kind {self._joining.kind} needs a handler: on_join_value")
        return super().start(threads)

    def stop(self, timeout: float = 5.0) -> None:
        """See :meth:`Agent.stop`; a running download is broken off, and goes on when the order comes again."""
        super().stop(timeout)

    def join(self) -> None:
        """Ask the server again, after a refusal or after leaving. Not needed otherwise: the device does it itself."""
        self._joining.begin_anew()

    def resign(self) -> Answer[None]:
        """Leave the server; done when it confirms, UnansweredError when it does not: we are out at once.

        What it has ordered is not done any more, unless a handler or a download is at it.
        """
        self._joining.wants_in = False
        return self.engine.requests.ask(lambda _, now, nonce: self._session.resign(self.server, now, nonce))

    def deregister(self) -> Answer[None]:
        """Leave the server for good, as with :meth:`resign`: it drops our key and we drop its, when it confirms.

        Deployed servers confirm nothing: after UnansweredError we have dropped the key of such a server
        (:meth:`on_deregistered`), and it has not dropped ours. Any other one may be asked again.
        """
        self._joining.wants_in = False
        return self.engine.requests.ask(lambda _, now, nonce: self._session.deregister(self.server, now, nonce))

    # Values and keys.

    def report_fact(self, name: str, value: str) -> None:
        """Let the server know a fact about this device, now or when it has joined; an empty value takes it away.

        A name has up to 40 characters of a-z, 0-9, ".", "_" and "-", a value up to 200 that can be printed; a device
        has up to 32 facts. The server keeps the latest of each (``srup devices``), and is told only what is news.
        ``type`` is the kind of hardware, ``name`` what people call it, ``zone`` its time zone (Europe/Berlin);
        ``firmware`` (a SHA-256) and ``version`` (a number) say what it runs. To a deployed server it is a value named
        ``fact.`` and the name. ValueError for anything else.
        """
        self._facts.report(name, value)

    def send(
        self,
        data_id: str,
        value: bytes | str | int | float,
        kind: DataKind | None = None,
        *,
        confirmed: bool | None = None,
        lifetime: float | None = None,
    ) -> Answer[str | None]:
        """Send a value to the server (see :meth:`send_data`)."""
        return self.send_data(self.server, data_id, value, kind, confirmed=confirmed, lifetime=lifetime)

    def rotate_key(self, new_key: PrivateKey, lifetime: float | None = None) -> Answer[None]:
        """Change the device's key: the old one signs the new one, and signs everything until the server has taken it.

        Store ``new_key`` before. A membership is not needed. Raises PolicyError when the server refuses it or when the
        answer to another new key is due; then the old key stays. UnansweredError after ``lifetime`` seconds
        (default: the policy's) means that the server may have taken it: the old key still signs, and is good for the
        server's ``key_overlap``; offer the same key again before that is over, after a restart too. It comes at once
        when the device is sent to another server meanwhile, which knows the old key: offer the new one there.
        """
        check_type(new_key, PrivateKey, "new_key")
        return self.engine.requests.ask(
            lambda _, now, nonce: self._key_change.offer(self.server, new_key, lifetime, now, nonce)
        )
