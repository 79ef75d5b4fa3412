"""What both ends have in common: partners, freshness, exchanges, retransmission."""

import heapq
import struct
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from itertools import count
from typing import Any, ClassVar, Final, NamedTuple

from .. import tokens
from ..errors import EncodeError, PolicyError, SrupError, StoreError
from ..messages import Action, Data, Message, Response
from ..records import Changes, ExchangeRecord, Fact, PartnerRecord, State
from ..replay import WINDOW_SIZE, ReplayWindow
from ..update import Step, Table, Trigger, Word
from ..wire import DATA_RECEIPT, KEY_ROTATION, Status
from . import body
from .events import (
    ActionAnswered,
    ActionRequested,
    DataConfirmed,
    DataReceived,
    DataRefused,
    DataRepeated,
    Event,
    KeyAnswered,
    KeyOffered,
    Left,
    TokenChanged,
    Unanswered,
    Unexpected,
)

__all__ = [
    "Exchange",
    "Now",
    "Opening",
    "Output",
    "Partner",
    "Policy",
    "Send",
    "Session",
    "check_number",
    "check_seconds",
    "check_status",
]

MAX_EXCHANGES: Final = 256
"""How many exchanges each side may have open with the other at a time (T9)."""

MAX_SPENT: Final = 4096
"""How many finished exchanges of a partner are remembered because their tokens are still good (T9, T11)."""

MAX_SEQUENCE_ID: Final = (1 << 64) - 1

_SANE: Final = 1 << 52
"""How far above the first one a sequence id may lie that was come by honestly."""

ID_BLOCK: Final = 64
"""How many sequence ids of ours are reserved at a time, so that not every message needs a write (OPERATIONS.md)."""

RECEIPT_PAUSE: Final = 1.0
"""In seconds: a partner gets no more than one receipt in that time; it covers all that has come meanwhile."""

STREAM_OUT: Final = "stream out"
"""The fact about a partner that says which place the last value has that we have sent it with a receipt."""

STREAM_IN: Final = "stream in"
"""The fact about a partner that says which place the last value has that we have taken from it for good."""

SPENT: Final = "spent"
"""The fact about an identity that had another key: the last sequence id that was sent to it then."""

DECIDED: Final = "decided"
"""The fact about a partner that says which sequence id its newest message has that was about being joined or not."""

_RECEIPT: Final = struct.Struct("<QQ")
NO_EXPIRY: Final = 10**18 - 1
"""The latest expiry that a token can name: what an end without a clock writes into its own."""


def check_seconds(value: object, what: str, *, zero: bool = False) -> None:
    """Raise ValueError, which says ``what`` is wrong, unless it is a time: above 0, or 0 where that means something."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= NO_EXPIRY and (value or zero):
        return
    least = "0 or more" if zero else "more than 0"
    raise ValueError(f"{what} must be a number of seconds, {least} and below 10**18, not {value!r}")


def check_number(value: object, what: str, least: int, most: int) -> None:
    """Raise ValueError, which says ``what`` is wrong, unless this is an int in these bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} must be an int from {least} to {most}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an end insists on. Times are in seconds; ValueError names the one that makes no sense.

    ``require_bound_tokens`` refuses deployed peers, which do not bind tokens (T3); a partner that has bound one must go
    on doing so in any case. A device without a clock says ``has_clock=False``: then expiry is not checked (T4).
    ``lifetime`` is how long a request is good for, ``update_lifetime`` the same for an update, ``join_lifetime`` for a
    join that waits for a person or an observer. Unanswered requests are
    sent again after ``first_retry``, then after twice that time and so on up to ``max_retry``; partners that do not
    bind tokens may take a retransmission for a new command, so they get none. When a partner changes its key by a
    signed rotation, the old one goes on counting for ``key_overlap``: longer than an offer is good for, which is
    ``lifetime``, or else the answer that gets lost could not be had again; or 0, not at all.
    """

    require_bound_tokens: bool = False
    has_clock: bool = True
    clock_skew: float = 30.0
    lifetime: float = 300.0
    update_lifetime: float = 86400.0
    join_lifetime: float = 900.0
    first_retry: float = 5.0
    max_retry: float = 900.0
    key_overlap: float = 86400.0

    def __post_init__(self) -> None:
        for name in ("require_bound_tokens", "has_clock"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("lifetime", "update_lifetime", "join_lifetime", "first_retry", "max_retry"):
            check_seconds(getattr(self, name), name)
        for name in ("clock_skew", "key_overlap"):
            check_seconds(getattr(self, name), name, zero=True)
        if self.max_retry < self.first_retry:
            raise ValueError(f"max_retry, {self.max_retry}, must not be below first_retry, {self.first_retry}")
        if 0 < self.key_overlap <= self.lifetime:
            raise ValueError(f"key_overlap, {self.key_overlap}, must be longer than lifetime, {self.lifetime}, or 0")


class Send(NamedTuple):
    """A message to sign and publish for partner ``to``."""

    to: int
    message: Message


Output = Send | Event


class Now(NamedTuple):
    """The arguments of one step: Unix time in seconds and 16 fresh random bytes."""

    time: float
    nonce: bytes


@body.kept
class Place(NamedTuple):
    """Where a value stands among those that a partner must take in order: the number counts from 1 in each stream.

    A stream begins when its sender knows of none; a later one has a greater name.
    """

    stream: int = 0
    number: int = 0

    def reached(self, stream: int) -> int | None:
        """Return how far a stream has come for whom this place is the last: 0 for a later one, None for an earlier."""
        return self.number if stream == self.stream else 0 if stream > self.stream else None


class Opening(NamedTuple):
    """A message that begins an exchange: its first state, whether only members may send it, whether it is remembered.

    What is not remembered has no answers and costs no memory; a retransmission of it would be taken for a new one.
    """

    state: Enum
    members_only: bool = True
    remembered: bool = True


@dataclass(slots=True, eq=False)
class Exchange:
    """A question and its answers, held together by a token."""

    partner: "Partner"
    token: bytes
    state: Enum
    expiry: float
    mine: bool  # I asked
    request: Message | None = None  # what was asked; sent again while it has a retry
    status: Status | None = None  # the last answer
    retry: float = 0.0  # pause before the next retransmission; 0 for none
    due: float = 0.0  # when time changes something
    spends: bool = False  # its token is good until the expiry, and must not work twice (T11)
    began: float = 0.0  # when I asked, for whoever watches
    detail: Any = None  # what the role needs to know besides: what was ordered, and how


@dataclass(slots=True, eq=False)
class Partner:
    """The other side, once a message of it has verified or we have something to say to it."""

    identity: int
    member: bool = False
    binds: bool = False  # has sent a bound token: from then on it must (T3)
    last_sent: int = 0
    reserved: int = 0  # after a restart, ids of ours begin above this one
    decided: int = 0  # the sequence id of the newest message of theirs that was about being joined or not
    window: ReplayWindow = field(default_factory=ReplayWindow)
    exchanges: dict[bytes, Exchange] = field(default_factory=dict)
    decided_kept: int = 0  # what a store knows of ``decided``


class ActionState(Enum):
    """An action, seen from either end."""

    NEW = "nothing happened yet"
    ASKED = "the partner is to do it"
    RUNNING = "it is being done here"
    ANSWERED = "done or refused"
    UNANSWERED = "the time is over"


class DataState(Enum):
    """A value: there is no answer to it but a refusal, unless it asks for a receipt."""

    NEW = "nothing happened yet"
    TAKEN = "handed to the owner"
    SENT = "on its way, or taken"
    UNCONFIRMED = "the partner is to say that it has it for good"
    CONFIRMED = "the partner has it for good"
    REFUSED = "the partner does not know its data_id"
    UNANSWERED = "the time is over"


class ReceiptState(Enum):
    """A receipt, which names the values that a partner has for good (docs/extensions.md, "Receipts")."""

    NEW = "nothing happened yet"
    TAKEN = "noted"


class KeyState(Enum):
    """A change of key, seen from either end (docs/extensions.md, "Key rotation")."""

    NEW = "nothing happened yet"
    DECIDING = "the owner is to say whether the partner's new key counts"
    ANSWERED = "the partner has its answer"
    OFFERED = "the partner is to take our new key"
    TAKEN = "our new key counts"
    REFUSED = "our old key goes on counting"
    UNANSWERED = "the time is over"


_A = ActionState
_D = DataState
_K = KeyState
_R = ReceiptState
_ACTION_RESULTS: Final = (Status.ACTION_SUCCESS, Status.ACTION_UNKNOWN, Status.ACTION_FAIL)
_KEY_RESULTS: Final = (Status.ACTION_SUCCESS, Status.ACTION_FAIL)
_KEY_REFUSALS: Final = (Status.ACTION_FAIL, Status.DATA_TYPE_UNKNOWN)  # the second by who does not know of rotations

COMMON_TABLE: Final[Table] = {
    (_A.NEW, Action): Step(_A.RUNNING, "begin_action"),
    (_A.RUNNING, Action): Step(_A.RUNNING),
    (_A.RUNNING, Word.ANSWER): Step(_A.ANSWERED, "answer"),
    (_A.ANSWERED, Action): Step(_A.ANSWERED, "repeat_answer"),
    **{(_A.ASKED, status): Step(_A.ANSWERED, "action_answered") for status in _ACTION_RESULTS},
    **{(_A.ANSWERED, status): Step(_A.ANSWERED) for status in _ACTION_RESULTS},
    (_A.ASKED, Word.EXPIRE): Step(_A.UNANSWERED, "unanswered"),
    (_A.RUNNING, Word.LEAVE): Step(_A.ANSWERED),
    (_A.RUNNING, Word.EXPIRE): Step(_A.ANSWERED),
    (_D.NEW, Data): Step(_D.TAKEN, "data_received"),
    (_D.SENT, Status.DATA_TYPE_UNKNOWN): Step(_D.REFUSED, "data_refused"),
    (_D.REFUSED, Status.DATA_TYPE_UNKNOWN): Step(_D.REFUSED),
    (_D.UNCONFIRMED, Word.CONFIRM): Step(_D.CONFIRMED, "data_confirmed"),
    (_D.UNCONFIRMED, Status.DATA_TYPE_UNKNOWN): Step(_D.REFUSED, "data_refused"),
    (_D.UNCONFIRMED, Word.EXPIRE): Step(_D.UNANSWERED, "unanswered"),
    (_R.NEW, Data): Step(_R.TAKEN, "receipt_received"),
    (_K.NEW, Data): Step(_K.DECIDING, "key_offered"),
    (_K.DECIDING, Data): Step(_K.DECIDING, "same_key"),
    (_K.DECIDING, Word.ANSWER): Step(_K.ANSWERED, "answer"),
    (_K.DECIDING, Word.EXPIRE): Step(_K.ANSWERED),
    (_K.ANSWERED, Data): Step(_K.ANSWERED, "answer_same_key"),
    (_K.OFFERED, Status.ACTION_SUCCESS): Step(_K.TAKEN, "key_answered"),
    (_K.TAKEN, Status.ACTION_SUCCESS): Step(_K.TAKEN),
    **{(_K.OFFERED, status): Step(_K.REFUSED, "key_answered") for status in _KEY_REFUSALS},
    **{(_K.REFUSED, status): Step(_K.REFUSED) for status in _KEY_REFUSALS},
    (_K.OFFERED, Word.EXPIRE): Step(_K.UNANSWERED, "unanswered"),
}
"""Actions, values and keys, which go both ways."""


def check_status(status: Status, possible: Collection[Status]) -> None:
    """Raise EncodeError for a status that does not answer this; nothing has changed then."""
    if not isinstance(status, Status) or status not in possible:
        raise EncodeError("status", f"expected {' or '.join(result.name for result in possible)}, not {status!r}")


class Session:
    """One end of the protocol. Methods return what is to be sent and what is to be told, in order.

    ``identity`` is one's own. ``first_sequence_id`` lies above every sequence id that this end has ever sent: 1 with a
    store that remembers them, something that grows with time without one. A ``lifetime`` is in seconds; ValueError for
    one that makes no sense.
    """

    table: ClassVar[Table] = COMMON_TABLE
    openings: ClassVar[Mapping[type[Message], Opening]] = {
        Action: Opening(_A.NEW),
        Data: Opening(_D.NEW, remembered=False),
    }
    values: ClassVar[Mapping[str, Opening]] = {
        KEY_ROTATION: Opening(_K.NEW),
        DATA_RECEIPT: Opening(_R.NEW, members_only=False, remembered=False),
    }
    """Values that begin an exchange of their own kind, by their ``data_id``."""
    resumed: ClassVar[Mapping[Enum, str]] = {_A.RUNNING: "action_again"}
    """What the owner is told again after a restart, because it was to decide: methods that make the event, by state."""
    volatile: ClassVar[frozenset[Enum]] = frozenset({_K.DECIDING})
    """States that do not outlast the process: whoever waits asks again."""
    facts: ClassVar[frozenset[str]] = frozenset({STREAM_IN, STREAM_OUT, DECIDED, SPENT})
    """The names of the facts about partners in which a session keeps what it knows besides."""
    for_strangers: ClassVar[frozenset[type[Message]]] = frozenset()
    """Requests of ours that do not need a membership."""
    repeatable: ClassVar[frozenset[type[Message]]] = frozenset()
    """Requests of ours that do no harm when a deployed peer takes a retransmission for a new one."""

    def __init__(self, identity: int, policy: Policy | None = None, first_sequence_id: int = 1) -> None:
        check_number(first_sequence_id, "first_sequence_id", 1, MAX_SEQUENCE_ID)
        self.identity = identity
        self.policy = policy or Policy()
        self._first_sequence_id = first_sequence_id
        self._partners: dict[int, Partner] = {}
        self._timers: list[tuple[float, int, Exchange]] = []
        self._order = count()
        self._latest = 0.0  # the time of the last tick
        self._open = 0
        self._kept = False  # whether somebody asks for changes()
        self._touched: dict[int, Partner] = {}  # what has changed since the last changes()
        self._stirred: dict[tuple[int, bytes], None] = {}
        self._dropped: list[int] = []
        self._places_in: dict[int, Place] = {}  # the last that was taken, by partner
        self._places_out: dict[int, Place] = {}  # the last that was given out, by partner
        self._facts_changed: dict[tuple[int, str], str | None] = {}
        self._spent: dict[int, int] = {}  # the last id that was sent to an identity when it had another key
        self._receipts: dict[int, None] = {}  # who is owed a receipt
        self._receipt_due: dict[int, float] = {}  # when a partner that had one may have the next

    # What survives a restart.

    def changes(self) -> Changes:
        """Return what has changed since the last call, or since :meth:`restore`, for a store."""
        changes = Changes(forgotten=self._dropped)
        for partner in self._touched.values():
            window = partner.window
            if partner.decided != partner.decided_kept:
                partner.decided_kept = partner.decided
                self._facts_changed[partner.identity, DECIDED] = str(partner.decided)
            changes.partners.append(
                PartnerRecord(
                    partner.identity, partner.member, partner.binds, partner.reserved, window.highest, window.seen
                )
            )
        for partner_id, token in self._stirred:
            side = self._partners.get(partner_id)
            exchange = side.exchanges.get(token) if side else None
            if exchange is None or exchange.state in self.volatile:
                changes.ended.append((partner_id, token))
            else:
                changes.exchanges.append(ExchangeRecord(partner_id, token, exchange.expiry, self._dump(exchange)))
        changes.facts = [Fact(partner_id, name, value) for (partner_id, name), value in self._facts_changed.items()]
        self._touched, self._stirred, self._dropped, self._facts_changed = {}, {}, [], {}
        return changes

    def repeats(self, send: Send) -> bool:
        """Tell whether this message, if it gets lost, is sent again, or asked for again by its recipient.

        Deployed peers ask for nothing twice and get nothing twice, and a value comes again only if it wants a receipt.
        """
        side = self._partner(send.to)
        exchange = side.exchanges.get(send.message.token)
        if exchange is not None and exchange.mine:
            return exchange.retry > 0.0
        return self._binds(side)

    def request(self, partner: int, token: bytes) -> Message | None:
        """Return what we asked a partner under this token, if it is remembered."""
        side = self._partners.get(partner)
        exchange = side.exchanges.get(token) if side else None
        return exchange.request if exchange is not None and exchange.mine else None

    def restore(self, state: State, now: float) -> list[Output]:
        """Go on where a session ended whose changes a store has kept; return what its owner has to be told again.

        Requests that are sent again are due once ``first_retry`` is over. If the state was ``adopted`` it may be older
        than what this end did last: all that was signed before now is refused then, and sequence ids begin anew above
        the first one (T2).
        """
        self._kept = True
        for record in state.partners:
            window = ReplayWindow(record.highest, record.seen)
            # As long as no fact says more: what was sent before does not bring anybody back in.
            decided = 0 if record.member else record.highest
            self._partners[record.identity] = Partner(
                record.identity, record.member, record.binds, record.reserved, record.reserved, decided, window
            )
        for fact in state.facts:
            places = {STREAM_IN: self._places_in, STREAM_OUT: self._places_out}.get(fact.name)
            if places is not None and fact.value is not None:
                places[fact.identity] = Place(*map(int, fact.value.split()))
            if fact.name == SPENT and fact.value is not None:
                self._spent[fact.identity] = int(fact.value)
            if fact.name == DECIDED and fact.value is not None and (partner := self._partners.get(fact.identity)):
                partner.decided = partner.decided_kept = int(fact.value)
        known: dict[tuple[int, bytes], Exchange] = {}
        bodies = []
        for kept in state.exchanges:
            if (partner := self._partners.get(kept.partner)) is not None:
                known[kept.partner, kept.token] = exchange = Exchange(
                    partner, kept.token, _A.NEW, kept.expiry, mine=False
                )
                bodies.append((exchange, kept.body))
        for exchange, text in bodies:
            self._load(exchange, text, known)
        for exchange in sorted(known.values(), key=_sent):  # what is sent again is so in its order
            exchange.partner.exchanges[exchange.token] = exchange
            self._open += 1
            exchange.retry = min(exchange.retry, self.policy.first_retry)
            self._schedule(exchange, now)
        if state.adopted:
            for partner in self._partners.values():
                self._lift(partner)
                self._leave_stream(partner.identity, now)
        again = [(each, self.resumed[each.state]) for each in known.values() if each.state in self.resumed]
        return [event for exchange, method in again for event in getattr(self, method)(exchange)]

    def _lift(self, partner: Partner) -> None:
        """Refuse all that a partner has signed so far, and send with ids that it cannot have seen."""
        floor = max(self._first_sequence_id - 1, partner.window.highest, partner.last_sent)
        partner.window = ReplayWindow(floor, (1 << WINDOW_SIZE) - 1)
        partner.last_sent = partner.reserved = floor
        self._touch(partner)

    def _leave_stream(self, partner: int, now: float) -> None:
        """Let what is new be in a later stream: places after the last that we know of may have been given out before.

        A partner that has taken those would confirm what we send now without taking it.
        """
        last = self._places_out.get(partner)
        if last is not None:
            self._set_place(STREAM_OUT, self._places_out, partner, Place(max(last.stream + 1, int(now * 1e6)), 0))

    def _dump(self, exchange: Exchange) -> str:
        kept = {
            "state": f"{type(exchange.state).__name__}.{exchange.state.name}",
            "mine": exchange.mine,
            "request": exchange.request,
            "status": exchange.status,
            "retry": exchange.retry,
            "spends": exchange.spends,
            "began": exchange.began,
            "detail": exchange.detail,
        }
        # An action may have the number 0.
        kept = {name: value for name, value in kept.items() if value not in (None, False, 0.0) or type(value) is int}
        return body.dump(kept, _named)

    def _load(self, exchange: Exchange, text: str, known: Mapping[tuple[int, bytes], Exchange]) -> None:
        kept = body.load(text, lambda partner, token: known.get((partner, token)))
        state = self._states().get(str(kept.pop("state", ""))) if type(kept) is dict else None
        if state is None or not kept.keys() <= _KEPT:
            raise StoreError(
                f"an exchange of {exchange.partner.identity:x} is in a state that this version does not know"
            )
        exchange.state = state
        for name, value in kept.items():
            setattr(exchange, name, value)

    @classmethod
    def _states(cls) -> Mapping[str, Enum]:
        states = {state for state, _ in cls.table} | {step.state for step in cls.table.values()}
        return {f"{type(state).__name__}.{state.name}": state for state in states}

    def _touch(self, partner: Partner) -> None:
        """Note that a partner has changed, or the exchange :meth:`_stir` names, if there is a store to be told."""
        if self._kept:
            self._touched[partner.identity] = partner

    def _stir(self, exchange: Exchange) -> None:
        if self._kept:
            self._stirred[exchange.partner.identity, exchange.token] = None

    # What comes in.

    def receive(self, message: Message, now: float, nonce: bytes) -> list[Output]:
        """Take a message whose signature has verified.

        Raises ReplayError or PolicyError when it must not take effect; then nothing has changed. Anything else is
        recorded as seen, whether or not a row of the table expects it.
        """
        partner = self._partner(message.sender_id)
        exchange = partner.exchanges.get(message.token)
        bound = None
        if exchange is None or not exchange.mine:
            bound = self._bound_token(partner, message, now)
        partner.window.check(message.sequence_id)
        known = exchange is not None
        opening = self.openings.get(type(message))
        if isinstance(message, Data):
            opening = self.values.get(message.data_id, opening)
        trigger: Trigger = type(message)
        if isinstance(message, Response):
            try:
                trigger = Status(message.status)
            except ValueError:
                opening = None
        if exchange is None and opening is not None and (partner.member or not opening.members_only):
            dated = bound is not None and self.policy.has_clock
            # A second longer than the token is good for, or its last moment could see it taken twice.
            expiry = bound.expiry + self.policy.clock_skew + 1 if bound and dated else now + self.policy.update_lifetime
            exchange = Exchange(partner, message.token, opening.state, expiry, mine=False, spends=dated)
        step = None if exchange is None else self.table.get((exchange.state, trigger))
        asks_receipt = bound is not None and bound.receipt
        if asks_receipt and exchange is None:
            # Seen, and not taken: a repetition of it would be confirmed.
            raise PolicyError(f"{partner.identity:x} is not joined, and wants {type(message).__name__} taken for good")
        outputs: list[Output]
        place = Place(*bound.place) if bound is not None and bound.place is not None else None
        repeated = bound is not None and place is not None and not self._is_next(partner, place, bound.after)
        if repeated:
            partner.window.accept(message.sequence_id)
            outputs = [DataRepeated(partner.identity, message.token)]
        elif exchange is None or step is None:
            partner.window.accept(message.sequence_id)
            outputs = [
                Unexpected(partner.identity, message.token, type(message), self._why(partner, exchange, message))
            ]
        else:
            # Deployed peers hear only what lies above their own message: it counts before the answer to it is made.
            before = partner.window.highest, partner.window.seen
            partner.window.accept(message.sequence_id)
            try:
                outputs = self._take(exchange, step, message, Now(now, nonce))
                if known or opening is None or opening.remembered:
                    self._remember(exchange, now)
            except SrupError:
                partner.window.highest, partner.window.seen = before
                raise
        if place is not None and not repeated:
            self._set_place(STREAM_IN, self._places_in, partner.identity, place)
        if asks_receipt:
            self._receipts[partner.identity] = None
        # A Response only repeats a token, which a deployed peer may have from anyone.
        partner.binds = partner.binds or (bound is not None and not isinstance(message, Response))
        self._partners[partner.identity] = partner
        self._touch(partner)
        return outputs

    def tick(self, now: float) -> list[Output]:
        """Do what time demands: send again, give up, forget."""
        outputs: list[Output] = []
        if now < self._latest - self.policy.first_retry:  # the clock was set back: nothing waits until it has caught up
            for exchange in self.exchanges():
                self._schedule(exchange, now)
        self._latest = now
        while self._timers and self._timers[0][0] <= now:
            due, _, exchange = heapq.heappop(self._timers)
            if not self._is_current(due, exchange):
                continue
            if now >= exchange.expiry:
                self._forget(exchange)
                step = self.table.get((exchange.state, Word.EXPIRE))
                if step is not None:
                    with suppress(SrupError):  # the trouble of one partner must not cost the others their turn
                        outputs += self._take(exchange, step, None, Now(now, b""))
            else:
                outputs += self._send_again(exchange)
                self._schedule(exchange, now)
        return outputs

    def deadline(self) -> float | None:
        """Return when :meth:`tick` or :meth:`receipts_due` has something to do next, None for never."""
        timers = [self._timers[0][0]] if self._timers else []
        receipts = [self._receipt_due.get(partner, 0.0) for partner in self._receipts]
        return min(timers + receipts, default=None)

    # What both ends can be told to do.

    def action(
        self, partner: int, action_id: int, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Ask the partner to do an action; ActionAnswered or Unanswered follows."""
        return self._ask(partner, _A.ASKED, Action, now, nonce, lifetime, action_id=action_id)

    def answer_action(self, partner: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer an ActionRequested with ACTION_SUCCESS, ACTION_UNKNOWN or ACTION_FAIL."""
        check_status(status, _ACTION_RESULTS)
        return self._drive(partner, token, Word.ANSWER, status, now)

    def data(self, partner: int, data_id: str, data: bytes, now: float, nonce: bytes) -> list[Send]:
        """Send a value. There is no answer to it, except DataRefused when the partner does not know ``data_id``."""
        return self._ask(partner, _D.SENT, Data, now, nonce, None, resend=False, data_id=data_id, data=data)

    def check_data(self, data_id: str, data: bytes) -> None:
        """Raise EncodeError unless a message can hold this value."""
        Data(sequence_id=1, sender_id=self.identity, token=b"-", data_id=data_id, data=data)

    def confirmed_data(
        self, partner: int, data_id: str, data: bytes, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Send a value, again and again until the partner has it for good: DataConfirmed, DataRefused or Unanswered.

        The partner takes such values in the order of these calls, and each of them once. It is good for ``lifetime``
        seconds (default: the policy's ``update_lifetime``). PolicyError for a partner that does not bind its tokens,
        which cannot know of receipts (docs/extensions.md, "Receipts").
        """
        if not self.binds(partner):
            raise PolicyError(f"{partner:x} does not bind its tokens, and knows of no receipts")
        lifetime = self.policy.update_lifetime if lifetime is None else lifetime
        place = self._next_place(partner, now)
        sends = self._ask(
            partner, _D.UNCONFIRMED, Data, now, nonce, lifetime, detail=place, place=place, data_id=data_id, data=data
        )
        self._set_place(STREAM_OUT, self._places_out, partner, place)
        return sends

    def receipts_due(self, now: float) -> list[int]:
        """Return the partners that are to get a receipt now; say :meth:`receipt` for each."""
        # A time that is further off comes from before the clock was set back.
        pauses = ((partner, self._receipt_due.get(partner, 0.0) - now) for partner in self._receipts)
        return [partner for partner, pause in pauses if not 0.0 < pause <= RECEIPT_PAUSE]

    def receipt(self, partner: int, now: float, nonce: bytes) -> list[Send]:
        """Tell a partner up to which place its values are here for good."""
        side = self._partner(partner)
        self._receipts.pop(partner, None)
        dues = self._receipt_due
        dues.pop(partner, None)
        while dues and not 0.0 < dues[first := next(iter(dues))] - now <= RECEIPT_PAUSE:
            del dues[first]
        dues[partner] = now + RECEIPT_PAUSE  # the latest comes last
        token = tokens.bind(self.identity, partner, self._token_expiry(now + self.policy.lifetime), nonce)
        place = _RECEIPT.pack(*self._places_in.get(partner, Place()))
        return [self._send(Exchange(side, token, _R.TAKEN, now, mine=True), Data, data_id=DATA_RECEIPT, data=place)]

    def binds(self, partner: int) -> bool:
        """Tell whether a partner binds its tokens, and so is no deployed peer."""
        return self._binds(self._partner(partner))

    def has_room(self, partner: int) -> bool:
        """Tell whether one more value may be sent to this partner now.

        Not if it would be one request too many, nor while values of an earlier stream are not confirmed: a partner that
        has taken one of a later stream does not take them any more.
        """
        side = self._partners.get(partner)
        open_ = [each for each in side.exchanges.values() if each.mine and self._is_open(each)] if side else []
        stream = self._places_out.get(partner, Place()).stream
        earlier = any(each.state is _D.UNCONFIRMED and each.detail.stream < stream for each in open_)
        return len(open_) < MAX_EXCHANGES and not earlier

    def hurry(self, partner: int, now: float) -> list[Output]:
        """Send again what this partner has not answered, for it is here now; not what was just sent (T9)."""
        side = self._partners.get(partner)
        outputs: list[Output] = []
        for exchange in list(side.exchanges.values()) if side else ():
            sent = exchange.due - exchange.retry
            if exchange.mine and exchange.retry and now >= sent + self.policy.first_retry:
                exchange.retry = self.policy.first_retry
                outputs += self._send_again(exchange)
                self._schedule(exchange, now)
        return outputs

    @property
    def members(self) -> frozenset[int]:
        """The partners that are joined with us."""
        return frozenset(partner.identity for partner in self._partners.values() if partner.member)

    def partners(self) -> list[int]:
        """Return the identities of all that are known, members or not."""
        return list(self._partners)

    def revoke(self, partner: int, now: float) -> list[Output]:
        """Forget a partner whose key counts no longer, with all that is under way; nothing is sent.

        Left follows if it was a member. Should the identity come back with another key, it is a new partner.
        """
        side = self._partners.pop(partner, None)
        if side is None:
            return []
        outputs: list[Output] = []
        for exchange in list(side.exchanges.values()):
            self._forget(exchange)
            withdrawal = self.table.get((exchange.state, Word.WITHDRAW))
            if withdrawal is not None:  # a person is still to decide about it, or a join waits for its word
                outputs += self._take(exchange, withdrawal, None, Now(now, b""))
        if side.last_sent >= self._first_sequence_id:
            self._spent[partner] = side.last_sent
            if self._kept:
                self._facts_changed[partner, SPENT] = str(side.last_sent)
        self._receipts.pop(partner, None)
        for name, places in ((STREAM_IN, self._places_in), (STREAM_OUT, self._places_out)):
            if places.pop(partner, None) is not None and self._kept:
                self._facts_changed[partner, name] = None
        if self._kept:
            if side.decided_kept:
                self._facts_changed[partner, DECIDED] = None
            self._dropped.append(partner)
            self._touched.pop(partner, None)
        return [*outputs, Left(partner, b"")] if side.member else outputs

    def exchanges(self) -> list[Exchange]:
        """Return all that is under way or remembered, to be looked at only; any thread may ask."""
        return [each for partner in list(self._partners.values()) for each in list(partner.exchanges.values())]

    def requests(self) -> list[Exchange]:
        """Return those of ours that have no answer yet, in no order, to be looked at only; any thread may ask."""
        return [each for each in self.exchanges() if each.mine and self._is_open(each)]

    def asked(self) -> list[float]:
        """Return when each request of ours was made that has no answer yet, in no order; any thread may ask."""
        return [each.began for each in self.requests()]

    def asked_of(self, partner: int) -> list[Exchange]:
        """Return our requests to a partner that have no answer yet, to be looked at only."""
        side = self._partners.get(partner)
        return [each for each in side.exchanges.values() if each.mine and self._is_open(each)] if side else []

    def refuse_data(self, partner: int, token: bytes, now: float) -> list[Output]:
        """Answer a DataReceived whose ``data_id`` nobody here knows."""
        side = self._partners.get(partner)
        if side is None:
            raise PolicyError(f"{partner:x} has sent nothing")
        unremembered = Exchange(side, token, _D.TAKEN, now, mine=False)
        return [self._send(unremembered, Response, status=Status.DATA_TYPE_UNKNOWN)]

    def rotate(self, partner: int, data: bytes, now: float, nonce: bytes, lifetime: float | None = None) -> list[Send]:
        """Offer the partner a new key of ours; KeyAnswered or Unanswered follows. srup.rotation makes ``data``."""
        return self._ask(partner, _K.OFFERED, Data, now, nonce, lifetime, data_id=KEY_ROTATION, data=data)

    def answer_key(self, partner: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer a KeyOffered: ACTION_SUCCESS when the new key counts from now on, or ACTION_FAIL."""
        check_status(status, _KEY_RESULTS)
        return self._drive(partner, token, Word.ANSWER, status, now)

    def awaits(self, partner: int, token: bytes) -> bool:
        """Tell whether what a partner asked for is still to be done: not when it expired or the membership ended.

        Any thread may ask, just before it does it.
        """
        side = self._partners.get(partner)
        exchange = side.exchanges.get(token) if side else None
        return exchange is not None and not exchange.mine and self._is_open(exchange)

    def is_member(self, partner: int) -> bool:
        """Tell whether this partner and we are joined."""
        known = self._partners.get(partner)
        return known is not None and known.member

    # Effects: methods that the tables name. The exchange is in its new state; PolicyError takes it back.

    def begin_action(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A partner asks for an action."""
        exchange.detail = cause.action_id
        return [ActionRequested(exchange.partner.identity, exchange.token, cause.action_id)]

    def action_answered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A partner answered an action of ours."""
        return [ActionAnswered(exchange.partner.identity, exchange.token, Status(cause.status))]

    def data_received(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A partner sent a value."""
        return [DataReceived(exchange.partner.identity, exchange.token, cause.data_id, cause.data)]

    def receipt_received(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A partner has the values of ours up to this place for good."""
        if len(cause.data) != _RECEIPT.size:
            raise PolicyError(f"a {DATA_RECEIPT} holds a place in {_RECEIPT.size} bytes, not in {len(cause.data)}")
        partner, there = exchange.partner, Place(*_RECEIPT.unpack(cause.data))
        waiting = [mine for mine in partner.exchanges.values() if mine.mine and mine.state is _D.UNCONFIRMED]
        here = self._places_out.get(partner.identity, Place())
        if waiting and there.stream > here.stream:
            if there.stream + 1 > MAX_SEQUENCE_ID:
                raise PolicyError(f"no stream is left after the one that {partner.identity:x} names")
            return self._begin_stream(partner, waiting, there.stream + 1, now)
        step = self.table[_D.UNCONFIRMED, Word.CONFIRM]
        arrived = [mine for mine in waiting if mine.detail <= there]
        outputs = [output for mine in arrived for output in self._take(mine, step, cause, now)]
        first = min((mine for mine in waiting if mine.detail > there), key=lambda mine: mine.detail, default=None)
        return outputs if first is None else [*outputs, *self._bridge(first, there, now)]

    def data_confirmed(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A partner has a value of ours for good: there is nothing left to remember."""
        self._forget(exchange)
        return [DataConfirmed(exchange.partner.identity, exchange.token)]

    def action_again(self, exchange: Exchange) -> list[Event]:
        """An action was being done when the process ended."""
        return [ActionRequested(exchange.partner.identity, exchange.token, exchange.detail)]

    def data_refused(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A partner does not know a value of ours."""
        return [DataRefused(exchange.partner.identity, exchange.token)]

    def key_offered(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A partner wants another key to count for it."""
        exchange.detail = cause.data
        return [KeyOffered(exchange.partner.identity, exchange.token, cause.data)]

    def same_key(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The same offer again; a token is good for one."""
        if (cause.data_id, cause.data) != (KEY_ROTATION, exchange.detail):
            raise PolicyError("the token belongs to the offer of another key")
        return []

    def answer_same_key(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The same offer again, which has been answered."""
        return self.same_key(exchange, cause, now) + self.repeat_answer(exchange, cause, now)

    def key_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """A partner answered the offer of a key of ours."""
        return [KeyAnswered(exchange.partner.identity, exchange.token, Status(cause.status))]

    def answer(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """Answer with the status that the owner gave."""
        send = self._send(exchange, Response, status=cause)
        exchange.status = cause
        return [send]

    def repeat_answer(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """Answer as before."""
        if exchange.status is None:
            raise PolicyError("there is no answer to repeat")
        return [self._send(exchange, Response, status=exchange.status)]

    def unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A request of ours expired."""
        request = type(exchange.request) if exchange.request is not None else Message
        return [Unanswered(exchange.partner.identity, exchange.token, request, exchange.request)]

    # Mechanism.

    def _partner(self, identity: int) -> Partner:
        """Return the partner of this identity; a new one is kept only once something has come of it."""
        partner = self._partners.get(identity)
        if partner is None:
            spent = self._spent.get(identity, 0)  # unless somebody has driven it to the end of all ids (T1)
            beginning = self._first_sequence_id - 1
            partner = Partner(identity, last_sent=spent if beginning < spent < beginning + _SANE else beginning)
        return partner

    def _bound_token(self, partner: Partner, message: Message, now: float) -> tokens.BoundToken | None:
        """Check the token of a message that answers nothing known: is it from him, for us, and still good (T3, T4)."""
        bound = tokens.parse(message.token)
        if bound is None:
            if partner.binds:
                raise PolicyError(f"the token is not bound, although {partner.identity:x} binds its tokens")
            if self.policy.require_bound_tokens:
                raise PolicyError(f"the token of {partner.identity:x} is not bound, and the policy requires that")
            return None
        if isinstance(message, Response) and bound[:2] == (self.identity, partner.identity):
            return None  # a late answer to what has been forgotten
        if bound.recipient != self.identity:
            raise PolicyError(f"the message is for {bound.recipient:x}, not for {self.identity:x}")
        if bound.sender != partner.identity:
            raise PolicyError(f"the token is one of {bound.sender:x}, not of {partner.identity:x}")
        if self.policy.has_clock and now > bound.expiry + self.policy.clock_skew:
            raise PolicyError(f"the message expired {now - bound.expiry:.0f} seconds ago")
        return bound

    def _next_sequence_id(self, partner: Partner) -> int:
        """One counter for both directions, as deployed peers expect (FLOWS.md, "Sequence ids")."""
        following = max(partner.last_sent, partner.window.highest) + 1
        if following > MAX_SEQUENCE_ID:
            raise PolicyError(f"no sequence id is left for {partner.identity:x}")
        return following

    def _send(self, exchange: Exchange, cls: type[Message], **fields: Any) -> Send:
        message = cls(
            sequence_id=self._next_sequence_id(exchange.partner),
            sender_id=self.identity,
            token=exchange.token,
            **fields,
        )
        self._use(exchange.partner, message.sequence_id)
        return Send(exchange.partner.identity, message)

    def _use(self, partner: Partner, sequence_id: int) -> None:
        """Note the latest sequence id of ours; reserve a block of them where that one is not reserved yet."""
        partner.last_sent = sequence_id
        if sequence_id > partner.reserved:
            partner.reserved = min(sequence_id + ID_BLOCK - 1, MAX_SEQUENCE_ID)
            self._touch(partner)

    def _next_place(self, partner: int, now: float) -> Place:
        last = self._places_out.get(partner) or Place(max(1, int(now * 1e6)))
        return Place(last.stream, last.number + 1)

    def _is_next(self, partner: Partner, place: Place, after: int) -> bool:
        """Tell whether a value may follow the last one that was taken: each number of a stream is taken once."""
        reached = self._places_in.get(partner.identity, Place()).reached(place.stream)
        return reached is not None and after <= reached < place.number

    def _set_place(self, name: str, places: dict[int, Place], partner: int, place: Place) -> None:
        places[partner] = place
        if self._kept:
            self._facts_changed[partner, name] = f"{place.stream} {place.number}"

    def _begin_stream(self, partner: Partner, waiting: list[Exchange], stream: int, now: Now) -> list[Output]:
        """Send what waits as a new stream: we have forgotten the last one, and the partner takes no earlier one."""
        outputs: list[Output] = []
        for number, mine in enumerate(sorted(waiting, key=lambda each: each.detail), 1):
            nonce = sha256(now.nonce + number.to_bytes(8, "big")).digest()[: tokens.NONCE_SIZE]
            outputs += self._place_anew(mine, Place(stream, number), number - 1, nonce)
            self._set_place(STREAM_OUT, self._places_out, partner.identity, mine.detail)
        return outputs

    def _bridge(self, first: Exchange, there: Place, now: Now) -> list[Output]:
        """Let the first value that waits follow the last one that is there, if it would wait for one that never comes.

        What lay between has expired, or the partner has forgotten it. A receipt that is old by now does no harm: the
        value keeps its number, and a partner that has taken it does not take it again.
        """
        place: Place = first.detail
        reached, bound = there.reached(place.stream), tokens.parse(first.token)
        if reached is None or bound is None or reached >= bound.after:
            return []
        return self._place_anew(first, place, reached, now.nonce)

    def _place_anew(self, mine: Exchange, place: Place, after: int, nonce: bytes) -> list[Output]:
        """Send a value with another place in its token."""
        partner = mine.partner
        expiry = self._token_expiry(mine.expiry)
        token = tokens.bind(self.identity, partner.identity, expiry, nonce, place=place, after=after)
        self._forget(mine)
        former, mine.token, mine.detail = mine.token, token, place
        partner.exchanges[token] = mine
        self._open += 1
        self._stir(mine)
        return [TokenChanged(partner.identity, token, former), *self._send_again(mine)]

    def _send_again(self, exchange: Exchange) -> list[Send]:
        if exchange.request is None or not exchange.retry:
            return []
        fields = {name: value for name, value in exchange.request if name not in ("sequence_id", "sender_id", "token")}
        try:
            send = self._send(exchange, type(exchange.request), **fields)
        except PolicyError:  # no sequence id is left, which is this partner's trouble and not that of the others
            exchange.retry = 0.0
            return []
        exchange.retry = min(2 * exchange.retry, self.policy.max_retry)
        return [send]

    def _ask(
        self,
        partner: int,
        state: Enum,
        cls: type[Message],
        now: float,
        nonce: bytes,
        lifetime: float | None,
        *,
        resend: bool = True,
        detail: Any = None,
        version: int | None = None,
        receipt: bool = False,
        place: Place | None = None,
        **fields: Any,
    ) -> list[Send]:
        """Begin an exchange of our own and send its request."""
        if lifetime is not None:
            check_seconds(lifetime, "lifetime")
        side = self._partner(partner)
        if not side.member and cls not in self.for_strangers:
            raise PolicyError(f"{partner:x} is not joined: it would not take {cls.__name__}")
        expiry = now + (self.policy.lifetime if lifetime is None else lifetime)
        token = tokens.bind(self.identity, partner, self._token_expiry(expiry), nonce, version, receipt, place)
        exchange = Exchange(side, token, state, expiry, mine=True, began=now, detail=detail)
        self._check_room(exchange)
        send = self._send(exchange, cls, **fields)
        self._expect(exchange, send.message, resend)
        self._partners[partner] = side
        self._touch(side)
        self._remember(exchange, now)
        return [send]

    def _token_expiry(self, expiry: float) -> float:
        """Return what to write into a token: a partner cannot check a time that nobody here knows."""
        return min(expiry, NO_EXPIRY) if self.policy.has_clock else NO_EXPIRY

    def _binds(self, partner: Partner) -> bool:
        """Tell whether a partner binds its tokens, or would not be heard if it did not: then it is no deployed peer."""
        return partner.binds or self.policy.require_bound_tokens

    def _expect(self, exchange: Exchange, request: Message, resend: bool) -> None:
        """Wait for the answer to ``request``; send it again until then if that is wanted and cannot do harm."""
        exchange.request = request
        safe = self._binds(exchange.partner) or type(request) in self.repeatable
        exchange.retry = self.policy.first_retry if resend and safe else 0.0

    def _drive(
        self, partner: int, token: bytes, word: Word, argument: Any, now: float, nonce: bytes = b""
    ) -> list[Output]:
        """Carry a decision of the owner into an exchange; PolicyError if none is in a fitting state."""
        side = self._partners.get(partner)
        exchange = side.exchanges.get(token) if side else None
        step = self.table.get((exchange.state, word)) if exchange else None
        if exchange is None or step is None:
            state = f"is in state {exchange.state.name}" if exchange else "is not known (any more)"
            raise PolicyError(f"{word.name} does not fit: the exchange with {partner:x} {state}")
        outputs = self._take(exchange, step, argument, Now(now, nonce))
        self._remember(exchange, now)
        return outputs

    def _take(self, exchange: Exchange, step: Step, cause: Any, now: Now) -> list[Output]:
        before = exchange.state, exchange.retry
        if step.state is not exchange.state:
            exchange.retry = 0.0  # answered, unless the effect asks on
        exchange.state = step.state
        try:
            outputs: list[Output] = getattr(self, step.effect)(exchange, cause, now) if step.effect else []
        except SrupError:
            exchange.state, exchange.retry = before
            raise
        partner = exchange.partner
        self._touch(partner)
        if exchange.token in partner.exchanges:
            self._stir(exchange)
        return outputs

    def _remember(self, exchange: Exchange, now: float) -> None:
        known = exchange.partner.exchanges
        if exchange.token not in known:
            oldest = self._check_room(exchange)
            if oldest is exchange:
                return
            if oldest is not None:
                self._forget(oldest)
            known[exchange.token] = exchange
            self._open += 1
        self._stir(exchange)
        self._schedule(exchange, now)

    def _is_open(self, exchange: Exchange) -> bool:
        return (exchange.state, Word.EXPIRE) in self.table

    def _check_room(self, new: Exchange) -> Exchange | None:
        """Return which exchange is to be forgotten for a new one: None, an old one, or the new one itself.

        Each side has its own room: what one of them opens must not crowd out what the other is doing. What is finished
        goes first, unless its token could then be used again. Where that does not help, an exchange that is finished
        at once (a termination, a value) goes unremembered; any other is refused with PolicyError.
        """
        known = new.partner.exchanges
        if len(known) < MAX_EXCHANGES:
            return None
        same = [exchange for exchange in known.values() if exchange.mine is new.mine]
        spent = sum(exchange.spends and not self._is_open(exchange) for exchange in same)
        if len(same) - spent < MAX_EXCHANGES and spent < MAX_SPENT:
            return None
        oldest = next((old for old in same if not old.spends and not self._is_open(old)), None)
        if oldest is None and self._is_open(new):
            raise PolicyError(f"there are too many exchanges with {new.partner.identity:x}: {len(same)}")
        return oldest or new

    def _abandon(self, exchanges: Iterable[Exchange], now: float) -> list[Output]:
        """End exchanges of ours as if their time were over."""
        outputs: list[Output] = []
        for exchange in exchanges:
            self._forget(exchange)
            outputs += self._take(exchange, self.table[exchange.state, Word.EXPIRE], None, Now(now, b""))
        return outputs

    def _drop_orders(self, partner: Partner, now: float) -> list[Output]:
        """End what a partner has asked for, now that the membership ends; nothing more of it is done or answered."""
        outputs: list[Output] = []
        for exchange in partner.exchanges.values():
            step = self.table.get((exchange.state, Word.LEAVE))
            if step is not None:
                outputs += self._take(exchange, step, None, Now(now, b""))
        return outputs

    def _schedule(self, exchange: Exchange, now: float) -> None:
        due = min(exchange.expiry, now + exchange.retry) if exchange.retry else exchange.expiry
        if due != exchange.due:
            exchange.due = due
            heapq.heappush(self._timers, (due, next(self._order), exchange))
        if len(self._timers) > 64 + 4 * self._open:  # entries of what was forgotten or rescheduled
            self._timers = [entry for entry in self._timers if self._is_current(entry[0], entry[2])]
            heapq.heapify(self._timers)

    def _forget(self, exchange: Exchange) -> None:
        del exchange.partner.exchanges[exchange.token]
        self._open -= 1
        self._stir(exchange)

    @staticmethod
    def _is_current(due: float, exchange: Exchange) -> bool:
        return due == exchange.due and exchange.partner.exchanges.get(exchange.token) is exchange

    @staticmethod
    def _why(partner: Partner, exchange: Exchange | None, message: Message) -> str:
        if exchange is not None:
            return f"the exchange is in state {exchange.state.name}"
        if isinstance(message, Response):
            return "it answers nothing that is known"
        return "it begins nothing here" if partner.member else f"{partner.identity:x} is not joined"


_KEPT: Final = frozenset({"mine", "request", "status", "retry", "spends", "began", "detail"})
"""What is kept of an exchange besides its state."""


def _sent(exchange: Exchange) -> int:
    return 0 if exchange.request is None else exchange.request.sequence_id


def _named(value: object) -> tuple[int, bytes] | None:
    return (value.partner.identity, value.token) if isinstance(value, Exchange) else None
