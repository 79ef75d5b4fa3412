"""The oracle of a syndication world: what must hold between owners who share devices with each other.

Like the oracle of a fleet it judges from nothing but what was observed. Each attempt of a home server to begin a
syndication has a number, which only grows: the owners see it, and so it is known which syndication an end is about.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from ... import tokens
from ...agent import Outcome
from ...codec import Frame
from ...errors import PolicyError, SrupError, UnansweredError
from ...messages import (
    Action,
    Data,
    IdRequest,
    SyndicatedAction,
    SyndicatedC2Request,
    SyndicatedEndRequest,
    SyndicatedIdRequest,
    SyndicationInit,
)
from ...session import Policy
from ...wire import IDENTIFICATION_RESPONSE, Status
from ..ledger import Ledger, Order
from ..numbering import Numbering

__all__ = ["LinkView", "Oracle", "Side", "number_in", "url_of", "value_of"]

_OUTCOMES: Final[dict[Any, tuple[str, Callable[[Any], object] | None]]] = {
    Action: ("action", lambda request: request.action_id),
    Data: ("data", lambda request: (request.data_id, request.data.decode(errors="replace"))),
    IdRequest: ("identify", None),
    SyndicatedAction: ("syndicated action", lambda request: (request.target_id, request.action_id)),
    SyndicatedIdRequest: ("syndicated identify", lambda request: request.target_id),
    SyndicatedC2Request: ("syndicated request", lambda request: request.data),
    SyndicationInit: ("begin", lambda request: request.url),
    SyndicatedEndRequest: ("end", None),
}
"""Which orders an :class:`Outcome` may be about, by the type of its request, and what they have in common with it."""

_TOLD: Final = tuple(kind for kind, _ in _OUTCOMES.values() if kind != "data")
"""Orders whose end is told to whoever has started anew since."""


def url_of(number: int) -> str:
    """Return the URL of the key service that the syndication with this number names."""
    return f"https://away.example/KeyEx/register/{number}"


def value_of(number: int) -> bytes:
    """Return the value by which the away owner recognises the syndication with this number."""
    return f"home's value/{number}".encode()


def number_in(text: str) -> int:
    """Return the number of the syndication that :func:`url_of` or :func:`value_of` has named."""
    return int(text.rpartition("/")[2])


class Side(Enum):
    """The two servers of a syndication."""

    HOME = "home"
    AWAY = "away"


@dataclass(slots=True)
class _History:
    """What is known about the syndications through one relay. ``open`` is the number that either server knows of."""

    home: int
    away: int
    begun: int = 0  # the last one that home has asked for
    open: dict[Side, int | None] = field(default_factory=lambda: dict.fromkeys(Side))
    accepted: int = 0  # the last one that the away owner has agreed to
    undone: set[int] = field(default_factory=set)  # which were ended by somebody who may, or have not come about
    ended: dict[int, float] = field(default_factory=dict)  # when home has ended which
    lists: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)  # what is shared, and since when
    numbers: dict[int, int] = field(default_factory=dict)  # of away's syndications, by what marks them there


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """What can be seen of a syndication in the end, from both owners, both servers and the relay between them.

    ``wanted`` by home, ``offered`` by the away owner (None: nothing at all); ``shared`` and ``sharing`` are the lists
    that home and away believe in, None where no syndication is known; ``inside`` is whether the away server has the
    relay for a member, ``present`` whether the relay has somebody there, ``possible`` whether it is a member at home.
    """

    relay: int
    wanted: bool
    offered: tuple[int, ...] | None
    shared: tuple[int, ...] | None
    sharing: tuple[int, ...] | None
    inside: bool
    present: bool
    possible: bool

    @property
    def agreed(self) -> bool:
        """Whether both owners want it, and the relay can."""
        return self.wanted and self.offered is not None and self.possible


class Oracle:
    """Judges a syndication world. ``relays`` says between which home and which away server each relay stands."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float],
        policy: Policy,
        relays: Mapping[int, tuple[int, int]],
        strangers: Collection[int],
        durable: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._policy = policy
        self._strangers = frozenset(strangers)
        self._durable = durable
        self._numbering = Numbering(ledger)
        self._lives: dict[int, int] = {}  # the last process of each party
        self._relays = {relay: _History(home, away) for relay, (home, away) in relays.items()}
        self._allowed: dict[tuple[int, int, int], int] = {}  # by which relay; by away server, device and action
        self._over: set[tuple[int, int, int]] = set()  # what of it was allowed in a syndication that is over
        self._told: set[tuple[int, int]] = set()  # (relay, device): identifications that were allowed
        self._requests: dict[tuple[int, bytes], bool] = {}  # home's requests by relay and content: what was said
        self._taken: Counter[tuple[int, str]] = Counter()  # values of shared devices, by relay and content
        self._first_lives: dict[int, tuple[int, ...]] = {}  # the lives of those on the way, by the number of an order

    # What people have decided.

    def begins(self, relay: int, number: int) -> None:
        """Home asks for a syndication."""
        self._relays[relay].begun = number

    def ends(self, relay: int, *sides: Side) -> None:
        """Somebody who may has ended what these sides, by default both, have now."""
        history = self._relays[relay]
        for side in sides or tuple(Side):
            number = history.open[side]
            if number is not None:
                history.undone.add(number)

    def home_ends(self, relay: int) -> None:
        """Home ends the syndication that it has."""
        history = self._relays[relay]
        self.ends(relay, Side.HOME)
        if (number := history.open[Side.HOME]) is not None:
            history.ended[number] = self._clock()

    def accepts(self, relay: int, number: int, devices: tuple[int, ...]) -> None:
        """The away owner agrees to a syndication."""
        history = self._relays[relay]
        if number > history.begun:
            self._violate(
                "forged", f"{history.away:x} is asked for the syndication {number} of {relay:x}: there is none"
            )
        ended = self._clock() - history.ended.get(number, self._clock())
        if ended > self._policy.update_lifetime + 2 * self._policy.clock_skew:  # which home's word may have lived
            self._violate(
                "overtaken",
                f"{history.away:x} is asked for the syndication {number} of {relay:x}, ended {ended:.0f} s ago",
            )
        history.accepted = number
        self.shares(relay, devices)

    def shares(self, relay: int, devices: tuple[int, ...]) -> None:
        """The away owner shares these devices from now on."""
        self._relays[relay].lists.append((self._clock(), devices))

    def allows(self, relay: int, device: int, action: int) -> None:
        """The away owner lets home have an action of a device."""
        history = self._relays[relay]
        order = self._asked("syndicated action", relay, (device, action))
        if order is None:
            return
        if device not in self._shared_lately(history):
            self._violate("unshared", f"{history.away:x} is asked for an action of {device:x}, which {relay:x} has not")
        self._allowed[history.away, device, action] = relay
        self._over.discard((history.away, device, action))
        until = order.until + 3 * self._policy.clock_skew  # each hop may be late by that
        life = self._lives[history.away]
        if self._ledger.find("action", history.away, device, action) is None:
            self._ledger.order("action", history.away, device, action, until, life, "")

    def allows_identification(self, relay: int, device: int) -> None:
        """The away owner lets home know what a device is."""
        self._told.add((relay, device))
        if device not in self._shared_lately(self._relays[relay]):
            self._violate("unshared", f"it is asked what {device:x} is, which {relay:x} has not")

    def moderates_request(self, relay: int, content: bytes, good: bool) -> None:
        """The away owner carries a request of home's out, or not."""
        self._asked("syndicated request", relay, content)
        self._requests[relay, content] = good or self._requests.get((relay, content), False)

    # What was observed.

    def started(self, identity: int, life: int) -> None:
        """A party has a new process."""
        self._lives[identity] = life
        for relay, history in self._relays.items():
            if life > 1 and identity == relay:
                self.ends(relay)  # it was in there, and is no more
            for side, server in ((Side.HOME, history.home), (Side.AWAY, history.away)):
                if identity == server and not self._durable:
                    self.ends(relay, side)  # it has forgotten everything
                    history.open[side] = None

    def sent(self, sender: int, fingerprint: str, topic: str, frame: Frame, wire: bytes) -> None:
        """A legitimate party has sent a message, signed by the key with this fingerprint."""
        bound = tokens.parse(frame.token)
        if bound is not None and self._durable:
            self._numbering.sent(sender, frozenset(bound[:2]), frame.sequence_id, wire)

    def sent_action(self, server: int, device: int, action: int) -> None:
        """An away server has sent an action to a device of its own."""
        if (server, device, action) in self._over:
            self._violate(
                "after the end", f"{server:x} asks {device:x} for the action {action}, whose syndication is over"
            )

    def sent_value(self, relay: int, source: int, name: str) -> None:
        """An away server has sent a value of a device to a relay."""
        history = self._relays[relay]
        if name == IDENTIFICATION_RESPONSE:
            if (relay, source) not in self._told:
                self._violate(
                    "untold", f"{history.away:x} tells {relay:x} what {source:x} is, without its owner's leave"
                )
        elif source not in self._shared_lately(history):
            self._violate(
                "unshared", f"{history.away:x} sends {relay:x} a value of {source:x}, which it does not share"
            )

    def effect(self, kind: str, issuer: int, target: int, what: Any, *, local: float, again: bool, good: bool) -> None:
        """A party does what ``issuer`` is said to have ordered; ``again``: it may have happened before."""
        if issuer in self._strangers and kind == "data":
            return
        life = self._lives[target]
        order = self._ledger.effect(*(kind, issuer, target, what), local=local, life=life, durable=not again, good=good)
        if order is not None and kind == "data" and self._durable:
            self._numbering.taken(order, again)

    def value_taken(self, relay: int, source: int, name: str, text: str, *, again: bool, told_late: bool) -> None:
        """A home server takes a value of a device that is shared; ``told_late``: it has come to an earlier process."""
        history = self._relays[relay]
        if history.open[Side.HOME] is None and not told_late:
            self._violate("after the end", f"{history.home:x} takes {text!r} by {relay:x}, and has no syndication")
        if self._ledger.find("data", source, history.away, (name, text)) is None:
            self._violate("forged", f"{history.home:x} takes {text!r} of {source:x}, which has not sent it")
        if self._taken[relay, text] and not again:
            self._violate("repeated", f"{history.home:x} takes {text!r} of {source:x} by {relay:x} once more")
        self._taken[relay, text] += 1
        self._ledger.counts["effect syndicated data"] += 1

    def list_told(self, relay: int, devices: tuple[int, ...]) -> None:
        """A home server is told what is shared with it."""
        history = self._relays[relay]
        self._ledger.counts["lists"] += 1
        if devices not in [shared for _, shared in history.lists]:
            self._violate(
                "untrue", f"{history.home:x} is told that {relay:x} has {devices}, which were never shared so"
            )

    def opened(self, relay: int, side: Side, mark: int) -> None:
        """A server has another syndication than it had, if any; ``mark`` is the away server's mark of it."""
        history = self._relays[relay]
        number = history.begun
        if side is Side.AWAY:
            number = history.numbers.setdefault(mark, history.accepted)
            if history.open[side] not in (None, number):  # not the same one after a restart
                self._end_permissions(relay)
        history.open[side] = number
        self._ledger.counts[f"opened {side.value}"] += 1

    def closed(self, relay: int, side: Side) -> None:
        """A server has no syndication any more."""
        history = self._relays[relay]
        number, history.open[side] = history.open[side], None
        if side is Side.AWAY:
            self._end_permissions(relay)
        self._ledger.counts[f"closed {side.value}"] += 1
        if number is None:
            return
        replaced = side is Side.AWAY and number < history.begun
        if not replaced and number not in history.undone:
            server = history.home if side is Side.HOME else history.away
            self._violate(
                "undone", f"{server:x} has lost the syndication {number} by {relay:x}, which nobody has ended"
            )

    def _end_permissions(self, relay: int) -> None:
        self._over |= {key for key, by in self._allowed.items() if by == relay}

    # Answers.

    def gave(self, order: Order, relay: int) -> None:
        """Home has asked for something by a relay: note who was on the way then."""
        self._first_lives[order.number] = self._on_the_way(relay)

    def _on_the_way(self, relay: int) -> tuple[int, ...]:
        return self._lives[relay], self._lives[self._relays[relay].away]

    def open_order(self, issuer: int, outcome: Outcome) -> Order | None:
        """Return the order of an earlier life that an outcome may be about."""
        kind, what = _OUTCOMES.get(type(outcome.request), ("", None))
        content = None if what is None else what(outcome.request)
        for order in self._ledger.orders:
            same = order.kind == kind and (order.issuer, order.target) == (issuer, outcome.partner)
            before = order.life < self._lives[issuer] and not order.ended
            if same and before and content in (None, order.what):
                return order
        return None

    def answered(self, order: Order, said: object) -> None:
        """Somebody was told what has become of an order: check that it is true."""
        error = said if isinstance(said, BaseException) else None
        if error is not None and not isinstance(error, (UnansweredError, PolicyError)):
            self._violate("fault", f"{order}: {type(error).__name__}: {error}")
        elif order.kind == "begin" and error is not None:
            self._relays[order.target].undone.add(number_in(str(order.what)))
        elif not self._is_true(order, said):
            shown = said.name if isinstance(said, Status) else f"{said}"
            self._violate("untrue", f"{order} is answered {shown}")

    def _is_true(self, order: Order, said: object) -> bool:
        what: Any = order.what
        match order.kind:
            case "action" if isinstance(said, Status):
                return any(effect.good is (said is Status.ACTION_SUCCESS) for effect in order.effects)
            case "identify":
                return isinstance(said, SrupError) or said == f"device {order.target:x}"
            case "syndicated identify":
                allowed = (order.target, what) in self._told
                return isinstance(said, SrupError) or (allowed and said == f"device {what:x}")
            case "syndicated request" if said is Status.ACTION_SUCCESS:
                return self._requests.get((order.target, what), False)
            case "syndicated action" if isinstance(said, Status):
                carried = self._ledger.find("action", self._relays[order.target].away, *what)
                succeeded = carried is not None and carried.done
                failed = carried is not None and not all(each.good for each in carried.effects)  # when done again
                forgotten = not self._durable and self._first_lives[order.number] != self._on_the_way(order.target)
                return succeeded if said is Status.ACTION_SUCCESS else forgotten or failed or not succeeded
        return True

    # The end.

    def check_orders(self) -> None:
        """See :meth:`Ledger.check_ended`."""
        self._ledger.check_ended(self._lives, _TOLD)

    def check_agreement(self, links: Iterable[LinkView]) -> None:
        """Check that both servers of each syndication believe the same, and that it is what both owners want."""
        for link in links:
            if link.agreed:
                self._check_shared(link)
            else:
                self._check_not_shared(link)

    def _check_shared(self, link: LinkView) -> None:
        for who, devices in (("home", link.shared), ("away", link.sharing)):
            if devices is None:
                self._violate("disagreement", f"{who} has no syndication by {link.relay:x}, although both want it")
            elif devices != link.offered:
                self._violate("disagreement", f"{who} believes that {link.relay:x} has {devices}, not {link.offered}")

    def _check_not_shared(self, link: LinkView) -> None:
        for who, devices in (("home", link.shared), ("away", link.sharing)):
            if devices is not None:
                self._violate("disagreement", f"{who} has a syndication by {link.relay:x}, although not both want it")
        if link.inside:
            self._violate("ghost", f"the away server believes that {link.relay:x} is a member, which has left")
        if link.present:
            self._violate("ghost", f"{link.relay:x} is still on the other network")

    def check_ended(self, hanging: Iterable[str]) -> None:
        """Enter what has not come to an end although it is time."""
        for what in hanging:
            self._violate("hanging", what)

    def check_understanding(self, orders: Iterable[Order]) -> None:
        """Check that orders between those who are joined have been carried out and answered."""
        for order in orders:
            if order.answer is None:
                continue  # what an away owner has allowed; home's order says what became of it
            answered = order.answer.done() and order.answer.exception() is None
            carried: Order | None = order
            if order.kind == "syndicated action":
                what: Any = order.what
                carried = self._ledger.find("action", self._relays[order.target].away, *what)
            has_effect = order.kind not in ("action", "data", "syndicated action") or (carried and carried.effects)
            if not answered or not has_effect:
                self._violate("disagreement", f"{order} has no effect, although nothing is in its way")

    def check_values(self, expected: Mapping[int, Collection[str]]) -> None:
        """Check that home has taken these values of shared devices, by relay: nothing was in their way."""
        for relay, texts in expected.items():
            for text in texts:
                if not self._taken[relay, text]:
                    self._violate("disagreement", f"{text!r} has not come to home by {relay:x}")

    # Mechanism.

    def _asked(self, kind: str, relay: int, what: Any) -> Order | None:
        """Return home's order that its away owner is asked about."""
        history = self._relays[relay]
        order = self._ledger.find(kind, history.home, relay, what)
        if order is None:
            self._violate("forged", f"{history.away:x} is asked for {kind} {what} by {relay:x}; home never asked")
        return order

    def _shared_lately(self, history: _History) -> set[int]:
        """Return what is shared, or was less than the lifetime of a message ago."""
        since = self._clock() - self._policy.lifetime
        last = max((number for number, (at, _) in enumerate(history.lists) if at <= since), default=0)
        return {device for _, devices in history.lists[last:] for device in devices}

    def _violate(self, name: str, what: str) -> None:
        self._ledger.violate(name, what)
