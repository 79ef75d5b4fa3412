"""The oracle of a fleet: what must hold, judged from nothing but what was observed.

It knows no agent, no network and no party: whatever it judges is an argument, or was told it before. What it finds it
enters into the ledger.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .. import tokens
from ..agent import Outcome
from ..codec import Frame
from ..errors import PolicyError, SrupError, UnansweredError, UpdateError
from ..keys import PublicKey
from ..messages import (
    SCHEMA,
    Action,
    Data,
    DeregisterRequest,
    HumanJoinRequest,
    IdRequest,
    JoinCommand,
    JoinRequest,
    ObservedJoinRequest,
    ResignRequest,
    Response,
)
from ..session import Policy
from ..transport import parse_topic
from ..update import UpdateState
from ..wire import Status
from .ledger import Ledger, Order
from .numbering import Numbering

__all__ = ["DeviceView", "Oracle", "ServerView"]

_JOINS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)
_LEAVES: Final = (ResignRequest, DeregisterRequest)

_OUTCOMES: Final[dict[Any, tuple[tuple[str, ...], Callable[[Any], object] | None]]] = {
    Action: (("action",), lambda request: request.action_id),
    Data: (("data",), lambda request: (request.data_id, request.data.decode(errors="replace"))),
    IdRequest: (("identify",), None),
    JoinCommand: (("command join", "send away"), lambda request: request.device_id),
    ResignRequest: (("resign",), None),
    DeregisterRequest: (("deregister",), None),
}
"""Which orders an :class:`Outcome` may be about, by the type of its request, and what they have in common with it."""

_TOLD: Final = ("action", "identify", "update", "command join", "send away")
"""Orders whose end is told to whoever has started anew since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView:
    """What can be seen of a server in the end: its members, the devices that it knows, and those it does not want."""

    identity: int
    key: PublicKey
    members: Collection[int]
    registered: Collection[int]
    banned: Collection[int]
    admission: str

    def __str__(self) -> str:
        return f"{self.identity:x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """What can be seen of a device in the end: whether it runs, where it is, and where its owner wants it.

    ``joined`` is where it believes to be a member, ``server`` whom it is to join if it is ``wanted`` there at all.
    """

    identity: int
    up: bool
    joined: int | None
    server: int
    wanted: bool
    join: str
    server_keys: Mapping[int, PublicKey]

    def __str__(self) -> str:
        return f"{self.identity:x}"


class Oracle:
    """Judges a fleet of ``servers``. ``clock`` is the world's; ``mole`` is a device that may order what it likes."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float],
        policy: Policy,
        servers: Collection[int],
        mole: int,
        durable: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._policy = policy
        self._servers = frozenset(servers)
        self._mole = mole
        self._durable = durable
        self._numbering = Numbering(ledger)
        self._lives: dict[int, int] = {}  # the last process of each party
        self._offered: set[tuple[int, int | None, str]] = set()  # who offers whom (None: all) which key
        self._asked: dict[tuple[int, int], tuple[float, str]] = {}  # (device, server): until, by which key
        self._said: set[tuple[int, int, int]] = set()  # (server, device, status)
        self._leaving: dict[tuple[int, int], list[bytes]] = {}  # (device, server): why it leaves
        self._dismissals: dict[tuple[int, int], list[tuple[float, set[int]]]] = {}  # (server, device): until, lives
        self._sent_away: dict[tuple[int, int, int], float] = {}  # (server, device, to which server): until
        self._updates: dict[str, tuple[Order, int | None]] = {}  # by digest, with the version

    @property
    def images(self) -> Collection[str]:
        """The digests of all firmware that was ever ordered."""
        return self._updates.keys()

    # What people have decided.

    def offers_key(self, owner: int, to: int | None, fingerprint: str) -> None:
        """The owner of an identity offers a new key; None: to everybody."""
        self._offered.add((owner, to, fingerprint))

    def dismisses(self, server: int, device: int, until: float) -> None:
        """A server puts a device out; the last word of it counts until then on the device's clock."""
        self._dismissals.setdefault((server, device), []).append((until, set()))

    def still_dismissed(self, device: int, local: float) -> bool:
        """Return whether a word that puts a device out may still reach it."""
        sent = [until for (_, whom), words in self._dismissals.items() if whom == device for until, _ in words]
        return any(local <= until + self._policy.clock_skew for until in sent)

    def sends_away(self, order: Order, to: int) -> None:
        """A server sends a device to a server, for which it leaves this one."""
        self._sent_away[order.issuer, order.target, to] = order.until
        if to != order.issuer:
            self._leaves(order.target, order.issuer, b"sent away")

    def ordered_update(self, order: Order, digest: str, version: int | None) -> None:
        """A server orders firmware."""
        self._updates[digest] = order, version

    def become_new(self, one: int, other: int) -> None:
        """Two know nothing more of each other: a key was replaced, or dropped."""
        self._numbering.become_new(one, other)
        for order in self._ledger.orders:
            # What one of them had taken and not told its owner yet is gone.
            order.excused = order.excused or (order.kind == "data" and {order.issuer, order.target} == {one, other})

    def provisioned(self, device: int) -> None:
        """A device is set up anew, and has forgotten everything."""
        for order in self._ledger.orders:
            order.excused = order.excused or device == order.issuer

    def _leaves(self, device: int, server: int, why: bytes) -> None:
        reasons = self._leaving.setdefault((device, server), [])
        if why not in reasons:
            reasons.append(why)

    # What was observed.

    def started(self, identity: int, life: int) -> None:
        """A party has a new process."""
        self._lives[identity] = life

    def sent(self, sender: int, fingerprint: str, topic: str, frame: Frame, wire: bytes) -> None:
        """A legitimate party has sent a message, signed by the key with this fingerprint."""
        cls, bound = SCHEMA[frame.type], tokens.parse(frame.token)
        if bound is not None and self._durable:
            self._numbering.sent(sender, frozenset(bound[:2]), frame.sequence_id, wire)
        if bound is not None and cls in _JOINS:
            until = bound.expiry + self._policy.clock_skew + 2.0
            self._asked[sender, bound.recipient] = until, fingerprint
        elif bound is not None and cls in _LEAVES:
            self._leaves(sender, bound.recipient, frame.token)
        elif cls is Response:
            self._said.add((sender, parse_topic(topic).device, wire[-1]))  # the last byte is the status

    def effect(
        self,
        kind: str,
        issuer: int,
        target: int,
        what: Any,
        *,
        local: float,
        again: bool,
        good: bool,
        valid: frozenset[str] | None = None,
    ) -> None:
        """A party does what ``issuer`` is said to have ordered; ``again``: it may have happened before."""
        if kind == "data" and self._durable:
            valid = None  # it is signed when the two are joined, perhaps by a key that its sender has had since
        if issuer == self._mole and target in self._servers:
            return
        order = self._enter(kind, issuer, target, what, local, again, good, valid)
        if order is not None and kind == "data" and self._durable:
            self._numbering.taken(order, again)

    def _enter(
        self,
        kind: str,
        issuer: int,
        target: int,
        what: Any,
        local: float,
        again: bool,
        good: bool,
        valid: frozenset[str] | None,
    ) -> Order | None:
        life = self._lives[target]
        return self._ledger.effect(
            *(kind, issuer, target, what), local=local, life=life, durable=not again, valid=valid, good=good
        )

    def activated(
        self, device: int, digest: str, actual: str, floor: int | None, *, local: float, again: bool, good: bool
    ) -> int | None:
        """A device activates the file ``digest`` whose digest is ``actual``; return its version."""
        if actual != digest:
            self._violate("tampered", f"{device:x} activates a file whose digest is {actual[:8]}, not {digest[:8]}")
        order, version = self._updates.get(digest, (None, None))
        issuer = 0 if order is None else order.issuer
        self._enter("update", issuer, device, digest, local, again, good, None)
        if floor is not None and (version is None or version < floor):
            self._violate("rolled back", f"{device:x} activates version {version}, below {floor}")
        return version

    def let_in(
        self, server: int, device: int, *, local: float, valid: frozenset[str], banned: bool, vouched: bool
    ) -> None:
        """A server has let a device in; ``valid`` are the device's keys that count there."""
        until, signer = self._asked.get((device, server), (0.0, ""))
        if device != self._mole:
            if local > until:
                elsewhere = any(whom == device and good > local for (whom, _), (good, _) in self._asked.items())
                name = "redirected" if elsewhere else "forged"
                self._violate(name, f"{server:x} lets {device:x} in, which does not ask for that")
            elif signer not in valid:
                self._violate("revoked", f"{server:x} lets {device:x} in by a key that does not count any more")
        if banned:
            self._violate("unwanted", f"{server:x} lets {device:x} in, which its operator has put out")
        if not vouched:
            self._violate("unwanted", f"{server:x} lets {device:x} in, and nobody has vouched for it")

    def joined(self, device: int, server: int, *, local: float, wanted: bool) -> None:
        """A device believes that it is in; ``wanted``: so does its owner."""
        if (server, device, Status.JOIN_SUCCESS) not in self._said:
            self._violate("forged", f"{device:x} believes that {server:x} has let it in")
        if not wanted:
            commanded = self._sent_away.get((server, device, server), 0.0)
            if local > commanded + self._policy.lifetime:
                self._violate("unwanted", f"{device:x} is in again at {server:x}, although its owner wants out")

    def left(self, device: int, server: int, *, local: float) -> None:
        """A device believes that its membership is over."""
        if reasons := self._leaving.get((device, server)):
            reasons.pop(0)
            return
        life = self._lives[device]
        for until, lives in self._dismissals.get((server, device), []):
            repeatable = not self._durable and life not in lives
            if local <= until and (not lives or repeatable):
                lives.add(life)
                return
        self._violate("forged", f"{device:x} has left {server:x}, although neither wanted that")

    def turned(self, device: int, before: int, server: int, *, local: float) -> None:
        """A device has turned from one server to another."""
        known = [self._sent_away.get((by, device, server), 0.0) for by in (before, server)]
        if local > max(known):
            self._violate("forged", f"{device:x} turns to {server:x}, and nobody who may has sent it there")

    def key_changed(self, at: int, partner: int, fingerprint: str) -> None:
        """A party takes a new key of a partner."""
        wanted = {(partner, None, fingerprint), (partner, at, fingerprint)}
        if partner != self._mole and not wanted & self._offered:
            self._violate("forged", f"{at:x} takes a key for one of {partner:x}")

    def key_spread(self, server: int, key: PublicKey, believed: Mapping[int, PublicKey | None]) -> None:
        """A server believes that these devices have its new key; ``believed`` is what they have."""
        for identity, known in believed.items():
            if known != key:
                self._violate("untrue", f"{server:x} believes that {identity:x} has its new key")

    # Answers.

    def open_order(self, issuer: int, outcome: Outcome) -> Order | None:
        """Return the order of an earlier life that an outcome may be about."""
        kinds, what = _OUTCOMES.get(type(outcome.request), ((), None))
        content = None if what is None else what(outcome.request)
        for order in self._ledger.orders:
            same = order.kind in kinds and (order.issuer, order.target) == (issuer, outcome.partner)
            before = order.life < self._lives[issuer] and not order.ended
            if same and before and content in (None, order.what, order.target):
                return order
        return None

    def open_update(self, digest: str) -> Order | None:
        """Return the order of this firmware whose end was not told after a restart."""
        order, _ = self._updates.get(digest, (None, None))
        return None if order is None or order.told else order

    def answered(self, order: Order, said: object) -> None:
        """Somebody was told what has become of an order: check that it is true."""
        error = said if isinstance(said, BaseException) else None
        if error is not None and not isinstance(error, (UnansweredError, PolicyError, UpdateError)):
            self._violate("fault", f"{order}: {type(error).__name__}: {error}")
        elif not self._is_true(order, said):
            shown = said.name if isinstance(said, (Status, UpdateState)) else f"{said}"
            self._violate("untrue", f"{order} is answered {shown}; {len(order.effects)} times something was done")

    def _is_true(self, order: Order, said: object) -> bool:
        match order.kind:
            case "action" if isinstance(said, Status):
                return any(effect.good is (said is Status.ACTION_SUCCESS) for effect in order.effects)
            case "identify":
                return isinstance(said, SrupError) or said == f"device {order.target:x}"
            case "update" if said is UpdateState.ACTIVATED:
                return order.done
            case "update" if isinstance(said, UpdateError):
                # A device that has started anew does not know that it has activated.
                forgotten = not self._durable and self._lives[order.target] not in order.lives()
                return not order.done or len(order.effects) > 1 or forgotten
            case "update":
                return isinstance(said, SrupError)
        return True

    # The end.

    def check_orders(self) -> None:
        """See :meth:`Ledger.check_ended`."""
        self._ledger.check_ended(self._lives, _TOLD)

    def check_agreement(
        self, servers: Collection[ServerView], devices: Mapping[int, DeviceView], observer: int
    ) -> None:
        """Check that each device and each server believe the same, and that those who both want it are joined."""
        for device in devices.values():
            for server in servers:
                self._check_membership(device, server, devices[observer])

    def _check_membership(self, device: DeviceView, server: ServerView, observer: DeviceView) -> None:
        inside = device.identity in server.members
        known = device.identity in server.registered
        mine = server.identity == device.joined
        if inside and not mine and not self._may_be_stale(device, server):
            self._violate("disagreement", f"{server} believes that {device} is joined to it")
        if mine and not inside and known:
            self._violate("disagreement", f"{device} believes that it is joined to {server}")
        expected = device.up and device.wanted and device.server == server.identity and known
        alone = device.join == "human" or server.admission == device.join == "simple"
        vouched = alone or observer.joined == server.identity
        welcome = device.identity not in server.banned and vouched
        if expected and welcome and device.server in device.server_keys and not inside:
            self._violate("disagreement", f"{device} is not joined to {server}, although both want it")

    @staticmethod
    def _may_be_stale(device: DeviceView, server: ServerView) -> bool:
        """Return whether the documentation excuses that a server believes a device to be joined that is not.

        It may if the device is not there, or has parted from it for good and was not heard, or does not understand it
        any more because it has missed the change of its key.
        """
        return not device.up or device.server_keys.get(server.identity) != server.key

    def check_ended(self, hanging: Iterable[str]) -> None:
        """Enter what has not come to an end although it is time."""
        for what in hanging:
            self._violate("hanging", what)

    def check_understanding(self, orders: Iterable[Order]) -> None:
        """Check that orders between those who are joined have been carried out and answered."""
        for order in orders:
            answered = order.answer is not None and order.answer.done() and order.answer.exception() is None
            if not answered or (order.kind in ("action", "data") and not order.effects):
                self._violate("disagreement", f"{order} has no effect, although nothing is in its way")

    def _violate(self, name: str, what: str) -> None:
        self._ledger.violate(name, what)
