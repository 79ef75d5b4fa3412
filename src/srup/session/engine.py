"""The session: walks the tables of its flows, and does what all of them need: sequence ids, tokens, retransmission.

It is long because it is the one place where a message, a decision or the time meets a table; what is decided there
stands in the modules that it calls.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from functools import wraps
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, TypeVar, cast

from .. import tokens
from ..errors import PolicyError, SrupError
from ..messages import Data, Message, Response
from ..records import Changes, State
from ..wire import Status
from . import freshness, persistence, retry
from .events import DataRepeated, Left, Unexpected
from .exchange import Exchange, ExchangeTable, Peer
from .flow import Flow, Now, Output, Send
from .freshness import FRESHNESS, Freshness, Horizon, Horizons, Signer, key_number, token_expiry
from .policy import MAX_SEQUENCE_ID, Policy, check_number, check_seconds
from .spent import SpentTokens
from .streams import REFUSED_IN, STREAM_IN, STREAM_OUT, StreamPosition, Streams
from .table import Cause, ExchangeStart, Table, Trigger

__all__ = ["Session", "command"]

_PLAUSIBLE: Final = 1 << 52
"""How far above the first one a sequence id may lie that was come by honestly."""

MAX_DUE: Final = 256
"""How much one tick puts out, more or less, so that others have their turn; the next tick goes on (T25)."""

AT_ONCE: Final = 16
"""How many messages to one partner are sent again at once; the next ticks send the rest (T25)."""

ID_BLOCK: Final = 64
"""How many sequence ids are reserved at a time; so not every message needs a write (docs/protocol/flows.md#f-17)."""

FlowType = TypeVar("FlowType", bound=Flow)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def command(
    kind: type[FlowType], method: Callable[Concatenate[FlowType, Parameters], Result]
) -> "Callable[Concatenate[Session, Parameters], Result]":
    """Return a method of a session that is one of its flow of this ``kind``."""
    name = method.__name__

    @wraps(method)
    def call(session: "Session", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        result: Result = getattr(session._flows_by_type[kind], name)(*args, **kwargs)
        return result

    return call


class Session:
    """One end of the protocol. Methods return what is to be sent and what is to be told, in order.

    ``identity`` is one's own. ``first_sequence_id`` lies above every sequence id that this end has ever sent: 1 with a
    store that remembers them, something that grows with time without one. A ``lifetime`` is in seconds; ValueError for
    one that makes no sense. A role is a subclass that names its ``flow_types``.

    Times, such as ``now``, are of one clock, in seconds, and never go back; Unix time is ``lead`` seconds ahead of
    them. What partners and stores are told is in Unix time.
    """

    flow_types: ClassVar[tuple[type[Flow], ...]] = ()
    table: ClassVar[Table] = {}
    """The rows of all flows."""
    starts: ClassVar[Mapping[type[Message], ExchangeStart]] = {}
    starts_by_data_id: ClassVar[Mapping[str, ExchangeStart]] = {}
    causes_by_data_id: ClassVar[Mapping[str, type[Message]]] = {}
    allowed_before_join: ClassVar[frozenset[type[Message]]] = frozenset()
    idempotent: ClassVar[frozenset[type[Message]]] = frozenset()
    volatile: ClassVar[frozenset[Enum]] = frozenset()
    refused_starts: ClassVar[frozenset[type[Message]]] = frozenset()
    """Messages that would begin an exchange of our flows, and do not in this role."""
    forwarded: ClassVar[frozenset[type[Message]]] = frozenset()
    """Messages that deployed partners pass on to this role under the token of whoever gave them to them."""
    facts: ClassVar[frozenset[str]] = frozenset(
        {STREAM_IN, STREAM_OUT, REFUSED_IN, FRESHNESS, persistence.MEMBERSHIP, persistence.LAST_SENT_ID}
    )
    """The names of the facts about partners in which a session keeps what it knows besides."""

    def __init_subclass__(cls) -> None:
        cls.table = {row: to for flow in cls.flow_types for row, to in flow.table.items()}
        starts = {kind: start for flow in cls.flow_types for kind, start in flow.starts.items()}
        cls.starts = {kind: start for kind, start in starts.items() if kind not in cls.refused_starts}
        cls.allowed_before_join = frozenset().union(*(flow.allowed_before_join for flow in cls.flow_types))
        cls.idempotent = frozenset().union(*(flow.idempotent for flow in cls.flow_types))
        cls.volatile = frozenset().union(*(flow.volatile for flow in cls.flow_types))
        cls.starts_by_data_id = {
            name: start for flow in cls.flow_types for name, start in flow.starts_by_data_id.items()
        }
        cls.causes_by_data_id = {
            name: cause for flow in cls.flow_types for name, cause in flow.causes_by_data_id.items()
        }

    def __init__(self, identity: int, policy: Policy | None = None, first_sequence_id: int = 1) -> None:
        check_number(first_sequence_id, "first_sequence_id", 1, MAX_SEQUENCE_ID)
        self.identity = identity
        self.policy = policy or Policy()
        self.lead = 0.0  # how far Unix time is ahead of the times that our methods get
        self.freshness = Freshness(identity, self.policy, self.forwarded)
        self.horizons = Horizons()
        self.known = ExchangeTable({state for state, cause in self.table if cause is Trigger.EXPIRE})
        self.spent = SpentTokens(self.known, self.horizons)
        self.known.on_forget = self.spent.spend
        self.streams = Streams(self.set_fact)
        self.flows = tuple(kind(self) for kind in self.flow_types)
        self._heeding_answers = [flow for flow in self.flows if type(flow).on_answer is not Flow.on_answer]
        self._flow_of: dict[type[Enum], Flow] = {flow.states: flow for flow in self.flows}
        self._flows_by_type = {kind: flow for flow in self.flows for kind in type(flow).__mro__}
        self._first_sequence_id = first_sequence_id
        self._facts_changed: dict[tuple[int, str], str | None] = {}
        self.signs_with: Callable[[int], str] = lambda partner: ""  # the fingerprint of the key that does, if known
        self._last_sent: dict[int, int] = {}  # the last id that was sent to an identity when it had another key

    def flow(self, kind: type[FlowType]) -> FlowType:
        """Return our flow of this kind; KeyError if this role has none."""
        return cast("FlowType", self._flows_by_type[kind])

    # What survives a restart.

    def changes(self) -> Changes:
        """Return what has changed since the last call, or since :meth:`restore`, for a store."""
        for peer_id in self.known.take_changed_freshness():
            peer = self.known.peers.get(peer_id)
            self.set_fact(peer_id, FRESHNESS, self.horizons.dump(peer_id, None if peer is None else peer.horizon))
        facts, self._facts_changed = self._facts_changed, {}
        changes = persistence.collect(self.known, self.volatile, facts, self.lead)
        spent, dropped = self.spent.take_changed()
        changes.exchanges += spent
        changes.ended += dropped
        return changes

    def unix(self, time: float) -> float:
        """Return what a time is in Unix time."""
        return time + self.lead

    def clock_set(self, now: float, nonce: bytes) -> list[Output]:
        """Take note that Unix time is another one now: a store gets all times again, and flows do what follows."""
        for exchange in self.known:
            self.known.mark(exchange)
        return [output for flow in self.flows for output in flow.on_clock_set(Now(now, nonce))]

    def skip_sequence_ids(self, partner: int, first: int) -> None:
        """Let no message to this partner have a sequence id below ``first`` from now on."""
        first = min(first, MAX_SEQUENCE_ID)
        self._first_sequence_id = max(self._first_sequence_id, first)
        peer = self.known.peers.get(partner)
        if peer is not None and peer.last_sent < first - 1:
            peer.last_sent = first - 1
            self.known.mark_peer(peer)

    def restore(self, state: State, now: float) -> list[Output]:
        """Go on where a session ended whose changes a store has kept; return what its owner has to be told again.

        ``now`` is Unix time, for the times in a store are. No request of ours lasts longer from now than it was to last
        in all, whatever the clock said when it was made. Requests that are sent again are due once ``first_retry`` is
        over. If the state was ``adopted`` it may be older
        than what this end did last: all that was signed before now is refused then, and sequence ids begin anew above
        the first one (T2).
        """
        self.known.durable = True
        for record in state.partners:
            self.known.peers[record.identity] = persistence.read_peer(record)
        for fact in sorted(state.facts, key=lambda fact: fact.name == FRESHNESS):  # overrules what is older
            if fact.value is not None and fact.name in self.facts:
                self.restore_fact(fact.identity, fact.name, fact.value)
        found: dict[tuple[int, bytes], Exchange] = {}
        texts = []
        for kept in state.exchanges:
            if not self.spent.restore(kept) and (peer := self.known.peers.get(kept.partner)) is not None:
                exchange = Exchange(peer, kept.token, _UNREAD, kept.expiry, mine=False)
                found[kept.partner, kept.token] = exchange
                texts.append((exchange, kept.body))
        states = {state for state, _ in self.table} | {to.state for to in self.table.values()}
        for exchange, text in texts:
            persistence.read_exchange(exchange, text, found, states, self._horizon_of_key)
        for exchange in sorted(found.values(), key=_age):  # what is sent again is so in its order
            exchange.retry = retry.resumed_pause(self.policy, exchange.retry)
            if exchange.began > now:
                exchange.began, exchange.expiry = now, now + exchange.expiry - exchange.began
            self.known.add(exchange)
            self.known.schedule(exchange, now)
        restarted = [each for each in found.values() if (each.state, Trigger.RESTART) in self.table]
        outputs = self.step_all(restarted, Trigger.RESTART, None, Now(now, b""))
        self.known.take_changed()
        self.spent.take_changed()
        if state.adopted:
            for peer in self.known.peers.values():
                self._raise_floor(peer)
                self.streams.leave(peer.identity, now)
            self.horizons.close(self._first_sequence_id - 1)
        return outputs

    def restore_fact(self, peer_id: int, name: str, value: str) -> None:
        """Take over one of our ``facts``."""
        peer = self.known.peers.get(peer_id)
        match name:
            case persistence.LAST_SENT_ID:
                self._last_sent[peer_id] = int(value)
            case persistence.MEMBERSHIP:
                if peer is not None:
                    peer.horizon.membership_sequence_id = int(value)
            case freshness.FRESHNESS:
                self.horizons.load(peer_id, value, None if peer is None else peer.horizon)
            case _:
                self.streams.restore(peer_id, name, value)

    def _raise_floor(self, peer: Peer) -> None:
        """Refuse all that a peer has signed so far, and send with ids that it cannot have seen."""
        floor = max(self._first_sequence_id - 1, peer.window.highest, peer.last_sent)
        peer.horizon.close(floor)
        peer.last_sent = peer.reserved = floor
        self.known.mark_peer(peer)

    # What comes in.

    def receive(
        self, message: Message, now: float, nonce: bytes, signer: Signer | None = None, *, retiring: bool = False
    ) -> list[Output]:
        """Take a message whose signature has verified: that of ``signer``, which is the sender's key or ``retiring``.

        Raises ReplayError or PolicyError when it must not take effect; then nothing has changed. Anything else is
        recorded as seen, whether or not a row of the table expects it.
        """
        peer = self.peer(message.sender_id)
        peer.hearing = horizon = self.horizon_of(peer, signer, retiring=retiring)
        try:
            return self._receive(peer, horizon, message, Now(now, nonce))
        finally:
            peer.hearing = None

    def _receive(self, peer: Peer, horizon: Horizon, message: Message, at: Now) -> list[Output]:
        now = at.time
        exchange = peer.exchanges.get(message.token)
        bound = None
        if exchange is None or not exchange.mine:
            bound = self.freshness.check_token(peer, message, self.unix(now))
        horizon.check(message.sequence_id)
        known = exchange is not None
        cause, start = self._cause(message)
        if exchange is None and start is not None and (peer.member or not start.members_only):
            if bound is not None and start.remembered:
                self.spent.refuse(peer, horizon, bound, message.token, message.sequence_id)
            until = self.freshness.remembered_until(bound, self.unix(now)) - self.lead
            exchange = Exchange(peer, message.token, start.state, until, mine=False, horizon=horizon)
            if bound is not None:
                exchange.single_use = True
        asks_receipt = bound is not None and bound.receipt
        if asks_receipt and exchange is None:
            # Seen, and not taken: a repetition of it would be confirmed.
            raise PolicyError(f"{peer.identity:x} is not joined, and wants {type(message).__name__} taken for good")
        # A Response only repeats a token, which a deployed peer may have from anyone.
        binds = peer.binds or (bound is not None and not isinstance(message, Response))
        outputs: list[Output]
        position = repeated = None
        if bound is not None and bound.place is not None:
            if horizon is not peer.horizon and peer.horizon.highest:
                # In other hands it could give a value the last place of all. Its owner sends what it said before anew.
                raise PolicyError(f"{peer.identity:x} has another key, and this one gives values no place any more")
            position = StreamPosition(*bound.place)
            repeated = not self.streams.is_next(peer.identity, position, bound.after)
        if repeated:
            horizon.record(message.sequence_id)
            outputs = [DataRepeated(peer.identity, message.token)]
        elif exchange is None or cause is None or (exchange.state, cause) not in self.table:
            horizon.record(message.sequence_id)
            outputs = [Unexpected(peer.identity, message.token, type(message), _why(peer, exchange, message))]
        else:
            # Deployed peers hear only what lies above their own message: it counts before the answer to it is made.
            before = horizon.highest, horizon.seen
            horizon.record(message.sequence_id)
            bound_before, peer.binds = peer.binds, binds  # so does what is said in the answer
            try:
                outputs = self.step(exchange, cause, message, at)
                if known or start is None or start.remembered:
                    self.remember(exchange, now)
            except SrupError:
                horizon.highest, horizon.seen = before
                peer.binds = bound_before
                raise
        if position is not None and not repeated:
            self.streams.set_received(peer.identity, position)
        if asks_receipt:
            self.streams.owed[peer.identity] = None
        peer.binds = binds
        if horizon is not peer.horizon:
            self.known.mark_freshness(peer.identity)
        self._keep(peer)
        return outputs

    def _horizon_of_key(self, peer: Peer, key: int) -> Horizon:
        """Return what is known of a key that a store names; 0 for the one that counts."""
        return peer.horizon if key in (0, peer.horizon.key) else self.horizons.peek(peer.identity, key)

    def horizon_of(self, peer: Peer, signer: Signer | None, *, retiring: bool) -> Horizon:
        """Return what is known of the key that has signed; the key that counts is the peer's from now on."""
        if signer is None or (signer is peer.signer and not retiring):
            return peer.horizon
        key, horizons = key_number(signer), self.horizons
        current = peer.horizon.key == key
        if retiring:
            if current:  # its successor has not been heard yet
                horizons.put(peer.identity, peer.horizon)
                self._change_horizon(peer, Horizon())
                peer.signer = None
                self._mark_horizon(peer)
            return horizons.peek(peer.identity, key)
        peer.signer = signer
        if current:
            return peer.horizon
        if peer.horizon.key or horizons.knows(peer.identity, key):
            if peer.identity in self.known.peers:
                horizons.put(peer.identity, peer.horizon)
            self._change_horizon(peer, horizons.peek(peer.identity, key))
        peer.horizon.key = key
        self._mark_horizon(peer)
        return peer.horizon

    def _mark_horizon(self, peer: Peer) -> None:
        """Note that another key counts for a peer: a store must not take what one has said for what the other has."""
        self.known.mark_freshness(peer.identity)
        if peer.identity in self.known.peers:
            self.known.mark_peer(peer)

    def _change_horizon(self, peer: Peer, horizon: Horizon) -> None:
        """Have another key count; a store is told which exchanges were begun under the former one."""
        peer.horizon = horizon
        for exchange in peer.exchanges.values():
            if not exchange.mine:
                self.known.mark(exchange)

    def _keep(self, peer: Peer) -> None:
        """Remember a peer, and that it has changed."""
        self.known.peers[peer.identity] = peer
        self.known.mark_peer(peer)
        self.horizons.leave(peer.identity, peer.horizon.key)

    def _cause(self, message: Message) -> tuple[Cause | None, ExchangeStart | None]:
        """Return which rows a message concerns, and which exchange it may begin."""
        if isinstance(message, Response):
            try:
                return Status(message.status), None
            except ValueError:
                return type(message), None
        start = self.starts.get(type(message))
        if isinstance(message, Data):
            start = self.starts_by_data_id.get(message.data_id, start)
            return self.causes_by_data_id.get(message.data_id, Data), start
        return type(message), start

    def tick(self, now: float) -> list[Output]:
        """Do what time demands, or the first part of that: send again, give up, forget."""
        self.spent.sweep(self.freshness.expired(self.unix(now)), now, self.lead)
        outputs: list[Output] = []
        while len(outputs) < MAX_DUE and (exchange := self.known.pop_due(now)) is not None:
            if now >= exchange.expiry:
                self.known.forget(exchange)
                if (exchange.state, Trigger.EXPIRE) in self.table:
                    with suppress(SrupError):  # the trouble of one peer must not cost the others their turn
                        outputs += self.step(exchange, Trigger.EXPIRE, None, Now(now, b""))
            else:
                outputs += self.send_again(exchange, now)
                self.known.schedule(exchange, now)
        return outputs

    def deadline(self) -> float | None:
        """Return when :meth:`tick` or a receipt has something to do next, None for never."""
        timer = self.known.timers[0][0] if self.known.timers else None
        if not self.streams.owed:
            return timer
        return min([*self.streams.deadlines(), *([] if timer is None else [timer])])

    # What an owner may ask about.

    def repeats(self, send: Send) -> bool:
        """Return whether this message, if it gets lost, is sent again, or asked for again by its recipient.

        Deployed peers ask for nothing twice and get nothing twice, and a value comes again only if it wants a receipt.
        """
        exchange = self.known.find(send.to, send.message.token)
        if exchange is not None and exchange.mine:
            return exchange.retry > 0.0
        return self.binds(send.to)

    def request(self, partner: int, token: bytes) -> Message | None:
        """Return what we asked a partner under this token, if it is remembered."""
        exchange = self.known.find(partner, token)
        return exchange.request if exchange is not None and exchange.mine else None

    def binds(self, partner: int) -> bool:
        """Return whether a partner binds its tokens, and so is no deployed peer."""
        return self.binds_tokens(self.peer(partner))

    def repeat_unanswered(self, partner: int, now: float) -> list[Output]:
        """Send again what this partner has not answered, for it is here now; not what was just sent (T9)."""
        peer = self.known.peers.get(partner)
        late: list[Exchange] = []
        for exchange in list(peer.exchanges.values()) if peer else ():
            sent = exchange.due - exchange.retry
            if exchange.mine and exchange.retry and retry.may_repeat(self.policy, sent, now):
                exchange.retry = self.policy.first_retry
                late.append(exchange)
        return self.send_all_again(late, now)

    @property
    def members(self) -> frozenset[int]:
        """The partners that are joined with us."""
        return frozenset(peer.identity for peer in self.known.peers.values() if peer.member)

    def partners(self) -> list[int]:
        """Return the identities of all that are known, members or not."""
        return list(self.known.peers)

    def is_member(self, partner: int) -> bool:
        """Return whether this partner and we are joined."""
        known = self.known.peers.get(partner)
        return known is not None and known.member

    def exchanges(self) -> list[Exchange]:
        """Return all that is under way or remembered, to be looked at only; any thread may ask."""
        return list(self.known)

    def requests(self) -> list[Exchange]:
        """Return those of ours that have no answer yet, in no order, to be looked at only; any thread may ask."""
        return [each for each in self.known if each.mine and self.known.is_open(each)]

    def asked(self) -> list[float]:
        """Return when each request of ours was made that has no answer yet, in no order; any thread may ask."""
        return [each.began for each in self.requests()]

    def asked_of(self, partner: int) -> list[Exchange]:
        """Return our requests to a partner that have no answer yet, to be looked at only."""
        return self.known.open_of(partner)

    def awaits(self, partner: int, token: bytes) -> bool:
        """Return whether what a partner asked for is still to be done: not when it expired or the membership ended.

        Any thread may ask, just before it does it.
        """
        exchange = self.known.find(partner, token)
        return exchange is not None and not exchange.mine and self.known.is_open(exchange)

    def asks(self, partner: int, token: bytes) -> bool:
        """Return whether we have asked a partner something under this token that is still to be answered."""
        exchange = self.known.find(partner, token)
        return exchange is not None and exchange.mine and self.known.is_open(exchange)

    def calls_handler(self, message: Message) -> bool:
        """Return whether a message, if it is taken, has the application called: not an answer, nor a repetition."""
        peer, (_, start) = self.peer(message.sender_id), self._cause(message)
        if start is None or message.token in peer.exchanges:
            return False
        return self._flow_of[type(start.state)].calls_handler(peer, message)

    # What an owner may decide, whatever the flow.

    def give_up(self, exchange: Exchange, now: float) -> list[Output]:
        """End one of the :meth:`requests` as if its time were over: it cannot be sent."""
        return self.abandon([exchange], now)

    def revoke(self, partner: int, now: float) -> list[Output]:
        """Forget a partner whose key counts no longer, with all that is under way; nothing is sent.

        Left follows if it was a member. Should the identity come back with another key, it is a new partner; what it
        has signed with this one is not taken again.
        """
        peer = self.known.peers.get(partner)
        if peer is None:
            return []
        outputs: list[Output] = []
        for exchange in list(peer.exchanges.values()):
            self.known.forget(exchange)
            if (exchange.state, Trigger.WITHDRAW) in self.table:
                # A person is still to decide about it, or a join waits for its word.
                outputs += self.step(exchange, Trigger.WITHDRAW, None, Now(now, b""))
        if peer.last_sent >= self._first_sequence_id:
            self._last_sent[partner] = peer.last_sent
            self.set_fact(partner, persistence.LAST_SENT_ID, str(peer.last_sent))
        self.streams.forget(partner)
        self.horizons.put(partner, peer.horizon)
        self.known.mark_freshness(peer.identity)
        self.known.drop_peer(peer)
        self.spent.mark_all(partner)
        if peer.member:
            outputs.append(Left(partner, b""))
        return [*outputs, *(output for flow in self.flows for output in flow.on_revoked(peer, now))]

    def decide(
        self, partner: int, token: bytes, trigger: Trigger, argument: Any, now: float, nonce: bytes = b""
    ) -> list[Output]:
        """Carry a decision of the owner into an exchange; PolicyError if none is in a fitting state."""
        exchange = self.known.find(partner, token)
        if exchange is None or (exchange.state, trigger) not in self.table:
            state = f"is in state {exchange.state.name}" if exchange else "is not known (any more)"
            raise PolicyError(f"{trigger.name} does not fit: the exchange with {partner:x} {state}")
        outputs = self.step(exchange, trigger, argument, Now(now, nonce))
        self.remember(exchange, now)
        return outputs

    # For the flows.

    def peer(self, identity: int) -> Peer:
        """Return the peer of this identity; a new one is kept only once something has come of it."""
        peer = self.known.peers.get(identity)
        if peer is None:
            last = self._last_sent.get(identity, 0)  # unless somebody has driven it to the end of all ids (T1)
            before = self._first_sequence_id - 1
            peer = Peer(identity, last_sent=last if before < last < before + _PLAUSIBLE else before)
        return peer

    def step(self, exchange: Exchange, cause: Cause, what: Any, now: Now) -> list[Output]:
        """Take the row for ``cause``, which must exist: go to the next state and return what its effect puts out."""
        to = self.table[exchange.state, cause]
        flow = self._flow_of[type(exchange.state)]
        before = exchange.state, exchange.retry
        if to.state is not exchange.state:
            exchange.retry = 0.0  # answered, unless the effect asks on
        self.known.move(exchange, to.state)
        try:
            outputs: list[Output] = getattr(flow, to.effect)(exchange, what, now) if to.effect else []
        except SrupError:
            self.known.move(exchange, before[0])
            exchange.retry = before[1]
            raise
        self.known.mark_peer(exchange.peer)
        if exchange.token in exchange.peer.exchanges:
            self.known.mark(exchange)
        return outputs

    def step_all(self, exchanges: Iterable[Exchange], cause: Cause, what: Any, now: Now) -> list[Output]:
        """Take the row for ``cause`` with each of these exchanges."""
        return [output for exchange in list(exchanges) for output in self.step(exchange, cause, what, now)]

    def remember(self, exchange: Exchange, now: float) -> None:
        """Remember an exchange, if there is room, and what time is to do about it."""
        if self.known.remember(exchange):
            self.known.schedule(exchange, now)

    def send(self, exchange: Exchange, cls: type[Message], **fields: Any) -> Send:
        """Return a message in this exchange, with the next sequence id; PolicyError if none is left."""
        peer = exchange.peer
        sequence_id = self._next_sequence_id(peer)
        message = cls(sequence_id=sequence_id, sender_id=self.identity, token=exchange.token, **fields)
        peer.last_sent = sequence_id
        if sequence_id > peer.reserved:
            peer.reserved = min(sequence_id + ID_BLOCK - 1, MAX_SEQUENCE_ID)
            self.known.mark_peer(peer)
        return Send(peer.identity, message)

    @staticmethod
    def _next_sequence_id(peer: Peer) -> int:
        """One counter for both directions, as deployed peers expect (docs/protocol/flows.md#f-16)."""
        following = max(peer.last_sent, peer.window.highest) + 1
        if following > MAX_SEQUENCE_ID:
            raise PolicyError(f"no sequence id is left for {peer.identity:x}")
        return following

    def can_send(self, peer: Peer) -> bool:
        """Return whether a sequence id is left for a peer."""
        return max(peer.last_sent, peer.window.highest) < MAX_SEQUENCE_ID

    def send_again(self, exchange: Exchange, now: float) -> list[Output]:
        """Return the request of an exchange once more, if it has a retry."""
        if exchange.request is None or not exchange.retry:
            return []
        if not self._flow_of[type(exchange.state)].goes_on_asking(exchange, self.unix(now)):
            exchange.retry = 0.0
            return []
        fields = {name: value for name, value in exchange.request if name not in ("sequence_id", "sender_id", "token")}
        try:
            send = self.send(exchange, type(exchange.request), **fields)
        except PolicyError:  # no sequence id is left, which is this peer's trouble and not that of the others
            exchange.retry = 0.0
            return []
        exchange.retry = retry.next_pause(self.policy, exchange.retry)
        return [send._replace(again=True)]

    def send_all_again(self, exchanges: Iterable[Exchange], now: float) -> list[Output]:
        """Send requests to one partner again: the first few now, the rest in order by the next ticks (T25)."""
        outputs: list[Output] = []
        for number, exchange in enumerate(exchanges):
            if number < AT_ONCE:
                outputs += self.send_again(exchange, now)
                self.known.schedule(exchange, now)
            else:
                self.known.hasten(exchange, now)
        return outputs

    def ask(
        self,
        partner: int,
        state: Enum,
        cls: type[Message],
        now: float,
        nonce: bytes,
        lifetime: float | None,
        *,
        resend: bool = True,
        remembered: bool = True,
        before_join: bool = False,
        detail: Any = None,
        version: int | None = None,
        receipt: bool = False,
        place: StreamPosition | None = None,
        **fields: Any,
    ) -> list[Send]:
        """Begin an exchange of our own and send its request; ``remembered`` says whether the partner remembers it."""
        if lifetime is not None:
            check_seconds(lifetime, "lifetime")
        peer = self.peer(partner)
        if not peer.member and not before_join and cls not in self.allowed_before_join:
            raise PolicyError(f"{partner:x} is not joined: it would not take {cls.__name__}")
        expiry = now + (self.policy.lifetime if lifetime is None else lifetime)
        key = self.signs_with(partner)[: tokens.KEY_DIGITS] if remembered else ""  # for the floors of what is forgotten
        until = self.token_expiry(peer, expiry)
        token = tokens.bind(self.identity, partner, until, nonce, version, receipt, place, key=key)
        exchange = Exchange(peer, token, state, expiry, mine=True, began=now, detail=detail)
        self.known.check_room(exchange)
        send = self.send(exchange, cls, **fields)
        self.expect(exchange, send.message, resend)
        self.known.peers[partner] = peer
        self.known.mark_peer(peer)
        self.remember(exchange, now)
        return [send]

    def unremembered(self, partner: int, state: Enum, now: float, nonce: bytes) -> Exchange:
        """Return an exchange of ours that is not remembered, for a message that has no answer."""
        peer = self.peer(partner)
        token = tokens.bind(self.identity, partner, self.token_expiry(peer, now + self.policy.lifetime), nonce)
        return Exchange(peer, token, state, now, mine=True)

    def token_expiry(self, peer: Peer, expiry: float) -> float:
        """Return what to write into the token of the next message to a peer."""
        return token_expiry(self.unix(expiry), max(peer.last_sent, peer.window.highest) + 1, self.policy)

    def binds_tokens(self, peer: Peer) -> bool:
        """Return whether a peer binds its tokens, or would not be heard if it did not: then it is no deployed peer."""
        return peer.binds or self.policy.require_bound_tokens

    def expect(self, exchange: Exchange, request: Message, resend: bool = True) -> None:
        """Wait for the answer to ``request``; send it again until then if that is wanted and cannot do harm."""
        exchange.request = request
        safe = self.binds_tokens(exchange.peer) or type(request) in self.idempotent
        exchange.retry = retry.first_pause(self.policy, wanted=resend, safe=safe)

    def abandon(self, exchanges: Iterable[Exchange], now: float) -> list[Output]:
        """End exchanges of ours as if their time were over."""
        outputs: list[Output] = []
        for exchange in exchanges:
            self.known.forget(exchange)
            outputs += self.step(exchange, Trigger.EXPIRE, None, Now(now, b""))
        return outputs

    def drop_orders(self, peer: Peer, now: float) -> list[Output]:
        """End what a peer has asked for, now that the membership ends; nothing more of it is done or answered."""
        outputs: list[Output] = []
        for exchange in peer.exchanges.values():
            if (exchange.state, Trigger.LEAVE) in self.table:
                outputs += self.step(exchange, Trigger.LEAVE, None, Now(now, b""))
        return outputs

    def set_membership_id(self, peer: Peer, sequence_id: int) -> None:
        """Note the sequence id of the newest message of a peer that was about being joined or not."""
        peer.heard.membership_sequence_id = sequence_id
        self.known.mark_freshness(peer.identity)

    def set_fact(self, peer_id: int, name: str, value: str | None) -> None:
        """Have a store keep a fact, or forget it; it is one of our ``facts``."""
        if self.known.durable:
            self._facts_changed[peer_id, name] = value

    def answered(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Let all flows know that a request of ours is answered."""
        return [output for flow in self._heeding_answers for output in flow.on_answer(exchange, cause, now)]

    def value_came(self, peer: Peer, value: Data, now: Now) -> list[Output]:
        """Let all flows know that a value came."""
        return [output for flow in self.flows for output in flow.on_value(peer, value, now)]

    def membership_lost(self, peer: Peer, token: bytes, now: float) -> list[Output]:
        """Let all flows know that a peer and we are not joined any more."""
        return [output for flow in self.flows for output in flow.on_membership_lost(peer, token, now)]


class _Unread(Enum):
    """The state of an exchange that is being read."""

    UNREAD = "nobody knows yet"


_UNREAD: Final = _Unread.UNREAD


def _age(exchange: Exchange) -> tuple[int, float]:
    return 0 if exchange.request is None else exchange.request.sequence_id, exchange.expiry


def _why(peer: Peer, exchange: Exchange | None, message: Message) -> str:
    if exchange is not None:
        return f"the exchange is in state {exchange.state.name}"
    if isinstance(message, Response):
        return "it answers nothing that is known"
    return "it begins nothing here" if peer.member else f"{peer.identity:x} is not joined"
