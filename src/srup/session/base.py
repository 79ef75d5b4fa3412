"""What both ends have in common: partners, freshness, exchanges, retransmission."""

import heapq
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any, ClassVar, Final, NamedTuple

from .. import tokens
from ..errors import EncodeError, PolicyError, SrupError
from ..messages import Action, Data, Message, Response
from ..replay import ReplayWindow
from ..update import Step, Table, Trigger, Word
from ..wire import KEY_ROTATION, Status
from .events import (
    ActionAnswered,
    ActionRequested,
    DataReceived,
    DataRefused,
    Event,
    KeyAnswered,
    KeyOffered,
    Unanswered,
    Unexpected,
)

__all__ = ["Exchange", "Now", "Opening", "Output", "Partner", "Policy", "Send", "Session", "check_status"]

MAX_EXCHANGES: Final = 256
"""How many exchanges each side may have open with the other at a time (T9)."""

MAX_SPENT: Final = 4096
"""How many finished exchanges of a partner are remembered because their tokens are still good (T9, T11)."""

MAX_SEQUENCE_ID: Final = (1 << 64) - 1
NO_EXPIRY: Final = 10**18 - 1
"""The latest expiry that a token can name: what an end without a clock writes into its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an end insists on. Times are in seconds.

    ``require_bound_tokens`` refuses deployed peers, which do not bind tokens (T3); a partner that has bound one must go
    on doing so in any case. A device without a clock says ``has_clock=False``: then expiry is not checked (T4).
    ``lifetime`` is how long a request is good for, ``update_lifetime`` the same for an update, ``join_lifetime`` for a
    join that waits for a person or an observer. Unanswered requests are
    sent again after ``first_retry``, then after twice that time and so on up to ``max_retry``; partners that do not
    bind tokens may take a retransmission for a new command, so they get none. When a partner changes its key by a
    signed rotation, the old one goes on counting for ``key_overlap``; it must be longer than an offer is good for.
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


class Send(NamedTuple):
    """A message to sign and publish for partner ``to``."""

    to: int
    message: Message


Output = Send | Event


class Now(NamedTuple):
    """The arguments of one step: Unix time in seconds and 16 fresh random bytes."""

    time: float
    nonce: bytes


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
    detail: Any = None  # what the role needs to know besides: what was ordered, and how


@dataclass(slots=True, eq=False)
class Partner:
    """The other side, once a message of it has verified or we have something to say to it."""

    identity: int
    member: bool = False
    binds: bool = False  # has sent a bound token: from then on it must (T3)
    last_sent: int = 0
    decided: int = 0  # the sequence id of the newest message of theirs that was about being joined or not
    window: ReplayWindow = field(default_factory=ReplayWindow)
    exchanges: dict[bytes, Exchange] = field(default_factory=dict)


class ActionState(Enum):
    """An action, seen from either end."""

    NEW = "nothing happened yet"
    ASKED = "the partner is to do it"
    RUNNING = "it is being done here"
    ANSWERED = "done or refused"
    UNANSWERED = "the time is over"


class DataState(Enum):
    """A value: there is no answer to it but a refusal."""

    NEW = "nothing happened yet"
    TAKEN = "handed to the owner"
    SENT = "on its way, or taken"
    REFUSED = "the partner does not know its data_id"


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
    (_A.RUNNING, Word.EXPIRE): Step(_A.ANSWERED),
    (_D.NEW, Data): Step(_D.TAKEN, "data_received"),
    (_D.SENT, Status.DATA_TYPE_UNKNOWN): Step(_D.REFUSED, "data_refused"),
    (_D.REFUSED, Status.DATA_TYPE_UNKNOWN): Step(_D.REFUSED),
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
    store that remembers them, something that grows with time without one.
    """

    table: ClassVar[Table] = COMMON_TABLE
    openings: ClassVar[Mapping[type[Message], Opening]] = {
        Action: Opening(_A.NEW),
        Data: Opening(_D.NEW, remembered=False),
    }
    values: ClassVar[Mapping[str, Opening]] = {KEY_ROTATION: Opening(_K.NEW)}
    """Values that begin an exchange of their own kind, by their ``data_id``."""
    for_strangers: ClassVar[frozenset[type[Message]]] = frozenset()
    """Requests of ours that do not need a membership."""
    repeatable: ClassVar[frozenset[type[Message]]] = frozenset()
    """Requests of ours that do no harm when a deployed peer takes a retransmission for a new one."""

    def __init__(self, identity: int, policy: Policy | None = None, first_sequence_id: int = 1) -> None:
        self.identity = identity
        self.policy = policy or Policy()
        self._first_sequence_id = first_sequence_id
        self._partners: dict[int, Partner] = {}
        self._timers: list[tuple[float, int, Exchange]] = []
        self._order = count()
        self._open = 0

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
        outputs: list[Output]
        if exchange is None or step is None:
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
        # A Response only repeats a token, which a deployed peer may have from anyone.
        partner.binds = partner.binds or (bound is not None and not isinstance(message, Response))
        self._partners[partner.identity] = partner
        return outputs

    def tick(self, now: float) -> list[Output]:
        """Do what time demands: send again, give up, forget."""
        outputs: list[Output] = []
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
        """Return when :meth:`tick` has something to do next, None for never."""
        return self._timers[0][0] if self._timers else None

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

    def is_member(self, partner: int) -> bool:
        """Tell whether this partner and we are joined."""
        known = self._partners.get(partner)
        return known is not None and known.member

    # Effects: methods that the tables name. The exchange is in its new state; PolicyError takes it back.

    def begin_action(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A partner asks for an action."""
        return [ActionRequested(exchange.partner.identity, exchange.token, cause.action_id)]

    def action_answered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A partner answered an action of ours."""
        return [ActionAnswered(exchange.partner.identity, exchange.token, Status(cause.status))]

    def data_received(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A partner sent a value."""
        return [DataReceived(exchange.partner.identity, exchange.token, cause.data_id, cause.data)]

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
        return [Unanswered(exchange.partner.identity, exchange.token, request)]

    # Mechanism.

    def _partner(self, identity: int) -> Partner:
        """Return the partner of this identity; a new one is kept only once something has come of it."""
        partner = self._partners.get(identity)
        return partner or Partner(identity, last_sent=self._first_sequence_id - 1)

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
        exchange.partner.last_sent = message.sequence_id
        return Send(exchange.partner.identity, message)

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
        **fields: Any,
    ) -> list[Send]:
        """Begin an exchange of our own and send its request."""
        side = self._partner(partner)
        if not side.member and cls not in self.for_strangers:
            raise PolicyError(f"{partner:x} is not joined: it would not take {cls.__name__}")
        expiry = now + (self.policy.lifetime if lifetime is None else lifetime)
        token = tokens.bind(self.identity, partner, self._token_expiry(expiry), nonce, version)
        exchange = Exchange(side, token, state, expiry, mine=True, detail=detail)
        self._check_room(exchange)
        send = self._send(exchange, cls, **fields)
        self._expect(exchange, send.message, resend)
        self._remember(exchange, now)
        self._partners[partner] = side
        return [send]

    def _token_expiry(self, expiry: float) -> float:
        """Return what to write into a token: a partner cannot check a time that nobody here knows."""
        return expiry if self.policy.has_clock else NO_EXPIRY

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
