"""The engine of an agent: what happens in a turn, without any thread of its own.

A shell drives it: it calls :meth:`Engine.collect`, makes the transaction durable, calls :meth:`Engine.finish` with what
came of that, and does so again when something is in the inbox or :meth:`Engine.due`. In each turn the engine takes what
is in the inbox, in order, and steps the session. Then the store, if there is one, keeps all that has changed, in one
commit; only what is durable takes effect outside: answers and requests are published, messages are acknowledged,
futures end, handlers are called. So a crash at any moment loses nothing that was accepted, and lets nothing in twice
(T2). A store that refuses to write halts the agent where it stands until it writes again. Whatever raises is counted
and logged, and the next message is served (T8).

All that happens in a turn stands in this one module, so that its order can be read; hence its length.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import NoneType
from typing import Any, Final, TypeVar

from ..errors import LeaseLostError, PolicyError, SrupError, StoreError, TransportError
from ..keyring import KeyRing
from ..keys import PrivateKey
from ..messages import Message
from ..printable import printable
from ..records import Changes, Fact, State
from ..session.common import CommonSession as Session
from ..session.events import Event
from ..session.exchange import Exchange
from ..session.flow import Output, Send
from ..store import Store
from ..transport.base import Transport
from ..transport.mqtt import MqttTransport
from ..transport.topics import parse_topic
from .audit import Audit, AuditPruner
from .batch import Batch
from .clientid import SECRET, client_id, spelled
from .duty import Duty, Listener
from .facts import CLIENT_ID, REPLACED, Facts
from .fastpath import FastPath
from .handlers import Handlers
from .host import Host
from .inbound import BATCH, Inbound, Refusal
from .inbox import MESSAGES, Inbox, Work, count
from .journal import Journal
from .localtime import STEP, LocalTime
from .outbound import Outbound
from .ownkeys import OwnKeys
from .requests import Requests, end_future
from .restart import Restart
from .serving import PartnerKeys, Serving
from .transaction import Cause, Dispatch, EntryNumbers, Transaction
from .values import Values

__all__ = ["IDLE", "TURN", "Engine"]

IDLE: Final = 3600.0
"""The longest sleep when no deadline is near, in seconds."""

TURN: Final = 1024
"""How many things are done in one turn, and made durable in one commit, at most."""

_FREQUENT: Final = ("accepted", "cause_of", "check_address", "close", "keep", "precede", "sender_verified", "tick")
"""Hooks that are called for each turn or message, and only of the duties that override them."""

Part = TypeVar("Part", bound=Duty)
Kind = TypeVar("Kind", bound=Session)


class Engine:
    """A session tied to a transport, a store, a clock and the application's handlers.

    ``keys`` are those of the partners, ``own_keys`` ours. ``clock`` returns the local time, which deadlines are in, and
    knows Unix time. ``device_of`` tells from a recipient on whose topic a message for it belongs. ``store_error`` is
    why the store refuses to write, while it does, and ``commit_failed`` whether a transaction waits for it. ``fault``
    is what has ended it in a turn. ``turn_began`` is when this turn began on the monotonic clock, None between turns.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        key: PrivateKey,
        keys: KeyRing,
        transport: Transport,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        threads: int,
        store: Store | None,
        audit_kept: float | None,
        audit_values: bool,
        device_of: Callable[[int], int],
    ) -> None:
        self.identity = session.identity
        self.session = session
        self.keys = keys
        self.own_keys = OwnKeys(key)
        session.signs_with = self.own_keys.fingerprint_for
        self.transport = transport
        self.clock = LocalTime(clock)
        self._lead = 0.0  # what stored times go by
        self.entropy = entropy
        self.store = store
        self.host = Host()
        self.journal = Journal(f"{name} {session.identity:x}", session.identity)
        self.facts = Facts()
        self.numbers = EntryNumbers(self.clock)
        self.inbox = Inbox()
        self._withdrawn: dict[int, None] = {}  # whose keys have been since the last look
        self.stopping = threading.Event()
        self.stopped = threading.Event()
        self.opened = False  # whether the store is ours
        self._process: int | None = None  # in which it was started
        self.started = False
        self.connected = False
        self.link = "not started"  # what the transport said last
        self.store_error: str | None = None
        self.commit_failed = False
        self.fault: BaseException | None = None
        self.turn_began: float | None = None
        self.flush: Callable[[], object] = lambda: None  # sends what was published, on the thread of the turns
        self._due: float | None = None  # when there is something to do next, if that is known
        self._due_known = False
        self._dues: list[Callable[[], float | None]] = [self.own_keys.due]  # who knows of something besides the session
        self.measuring: tuple[Callable[[str, float], object], ...] = ()
        self.amend_key_changes: Callable[[Changes], object] = lambda changes: None  # of a turn, before they are kept
        self.handlers = Handlers(self.journal, keys, self.inbox, self.numbers, store is not None, self._may_call)
        self.audit = Audit(self.identity, self.journal, self._cause_of, session.starts_by_data_id, audit_values)
        self.fast_path = FastPath(self)
        self.inbound = Inbound(
            *(self.identity, self.journal, self.inbox, keys, self.handlers, self.clock, self.stopping, threads),
            fast_path=self.fast_path,
            take=self._take,
            excuses=self._excuses,
        )
        self.inbound.measure = self.measure
        self.outbound = Outbound(
            *(session, self.journal, self.inbox, self.own_keys, transport, self.numbers, self.clock),
            durable=store is not None,
            device_of=device_of,
            undeliverable=self._undeliverable,
            audit=self.audit,
        )
        self._pruner = None if store is None else AuditPruner(self.journal, store, audit_kept)
        if (pruner := self._pruner) is not None:
            self._dues.append(lambda: pruner.due)
        self._duties: list[Duty] = []
        self._overriding: dict[str, list[Duty]] = {hook: [] for hook in _FREQUENT}
        self._listeners: dict[type[Event], list[Listener]] = {}
        self._begin_transaction()
        self._turn_thread: int | None = None
        self.requests = self.add(Requests(self))
        self.values = self.add(Values(self))
        self.serving = self.add(Serving(self))
        self.add(PartnerKeys(self))
        self.restart = Restart(self, self._duties)

    # What it is made of.

    def add(self, duty: Part) -> Part:
        """Add a duty; of those that take the same event the one that was added first does so first."""
        self._duties.append(duty)
        for hook, overriding in self._overriding.items():
            if getattr(type(duty), hook) is not getattr(Duty, hook):
                overriding.append(duty)
        if type(duty).due is not Duty.due:
            self._dues.append(duty.due)
        for event, listener in duty.events().items():
            self.listeners(event).append(listener)
        return duty

    def listeners(self, event: type[Event]) -> list[Listener]:
        """Return who is told of an event, in this order; whoever changes the list changes that."""
        return self._listeners.setdefault(event, [])

    def session_of(self, kind: type[Kind]) -> Kind:
        """Return the session, which is of this kind."""
        assert isinstance(self.session, kind)  # noqa: S101 - whoever asks has made it
        return self.session

    def part(self, kind: type[Part]) -> Part:
        """Return the duty of this kind."""
        return next(duty for duty in self._duties if isinstance(duty, kind))

    def members(self) -> int:
        """Return with how many partners we are joined; any thread may ask."""
        return sum(duty.members() for duty in self._duties)

    # Life.

    def start(self) -> None:
        """Take over what the store has, and connect in the background. StoreError if the store cannot be used."""
        state = None if self.store is None else self.store.open(self.identity)
        self.clock.begin()  # so what a store says in Unix time is in local time
        self.opened = state is not None
        if state is not None:
            assert self._pruner is not None  # noqa: S101 - who has a state has a store
            self.restart.take_over(self._transaction, state)
            self._pruner.begin(self.clock())
        if self.host.partition is None:  # else whoever drives us says what it serves
            self._introduce()
        self._name_session(state)
        for duty in self._duties:
            duty.prepare()
        self.keys.watch(self._key_withdrawn)
        self._process = os.getpid()
        self._due_known = False
        if isinstance(self.transport, MqttTransport):
            self.transport.hear_together(self.inbound.arrived)
        self.transport.start(self.inbound.arrived, self.report_link)
        self.started = True

    def _introduce(self) -> None:
        """Log who we are: fingerprints are what people compare when two ends do not come together."""
        key = self.own_keys.current
        text = "%s: our key is %s, fingerprint %s"
        self.journal.log(logging.INFO, text, key.scheme, key.public_key.fingerprint)
        for duty in self._duties:
            duty.introduce()

    def begin(self) -> None:
        """Do what is to be done once we have started, and somebody takes turns."""
        for duty in self._duties:
            duty.begin()

    def employ(self, name: str) -> None:
        """Start what duties do on threads of their own."""
        for duty in self._duties:
            duty.employ(name)

    def announce_stop(self) -> None:
        """Begin to stop: call no handler any more, and take no message."""
        self.stopping.set()
        for duty in self._duties:
            duty.dismiss()
        self.handlers.dismiss()
        self.inbox.wake()

    def stop(self, deadline: float, turn: bool) -> None:
        """End, after a last ``turn`` if nobody else takes one; ``deadline`` is on the monotonic clock."""
        if turn:
            self.turn()
        # What waits for a link that is down, waits in vain.
        self._end(max(0.0, deadline - time.monotonic()) if self.connected else 0.0)

    def abandon(self) -> None:
        """End at once: what is not durable is another's affair, and whoever waits here is told so. On any thread."""
        self.stopping.set()
        self._end(0.0)

    def break_off(self, fault: BaseException) -> None:
        """End because of a fault in a turn, of which nothing takes effect: what is durable is there for the next start.

        Whoever waits is told so. On the thread that takes the turns.
        """
        self.fault = fault
        self.journal.counts["faults"] += 1
        text = "%s: a fault in its turn has ended it; start it anew, and it goes on from what is durable"
        self.journal.log(logging.CRITICAL, text, exc_info=True)
        self.journal.log_exceptions(self.announce_stop)
        self.journal.log_exceptions(partial(self._end, 0.0))
        self.connected, self.link = False, "a fault has ended the agent"
        self.turn_began = None
        self.stopped.set()
        if (handler := self.handlers.named.get("fault")) is not None:
            self.journal.log_exceptions(partial(handler, fault))

    def _end(self, timeout: float) -> None:
        self.transport.stop(timeout)
        self.stopped.set()
        self._do_late_work()
        for future in self._transaction.futures:
            end_future(future, TransportError("stopped before it could be made durable"))
        for duty in self._duties:
            duty.stopped()
        self.keys.unwatch(self._key_withdrawn)
        if self.store is not None:
            self.keys.release(self.save_keys)
            self.store.close()

    def check_open(self) -> None:
        """Raise TransportError if requests are refused.

        With a store, what a handler asks for that is running while we stop is kept for the next start: the handler is
        not called again.
        """
        if self.stopped.is_set() or (self.store is None and self.stopping.is_set()):
            raise TransportError(
                f"{self.journal} is stopped{'' if self.fault is None else ', by a fault: see its log'}"
            )

    def post(self, work: Work) -> None:
        """Have work done in a turn. On any thread; TransportError in a process that was forked after the start."""
        if self.forked:
            raise TransportError(f"{self.journal} was started before this process was forked; start it afterwards")
        self.inbox.put(work)
        if self.stopped.is_set():
            self._do_late_work()  # nobody else would

    @property
    def forked(self) -> bool:
        """Whether this process was forked after the start: then all that runs, and the store, are its parent's."""
        return self._process not in (None, os.getpid())

    def report_link(self, connected: bool, why: str) -> None:
        """Take note in a turn that the link to the broker has come or gone. On any thread."""
        self.post(partial(self._link_changed, connected, why))

    def decide(self, method: Callable[..., Sequence[Output]], *arguments: Any) -> None:
        """Carry a decision of the application into the session, in a turn; the method gets the time behind the rest.

        That is this turn if an inline handler decides it, and nothing else is to come before.
        """

        def job(transaction: Transaction) -> None:
            try:
                outputs = method(*arguments, self.clock())
            except SrupError as error:
                self.journal.log(logging.WARNING, "%s: %s", error, error=error)  # it came too late
            else:
                self.perform(transaction, outputs)

        if (transaction := self.handlers.deciding) is not None:
            self.journal.log_exceptions(job, transaction)
        else:
            self.inbox.put(job)

    def _do_late_work(self) -> None:
        """Do what is in the inbox of an agent that has stopped: nothing of it becomes durable."""
        transaction = Transaction()
        self._drain(transaction)
        for effect in transaction.effects:
            self.journal.log_exceptions(effect)
        self.handlers.submit(transaction.calls)

    def _name_session(self, state: State | None) -> None:
        """Give a transport its client id, unless it has one: that of the store, where it is drawn once, else the key's.

        With a store a change of the key neither leaves behind what waits in the session nor lets the old key name it.
        """
        if not isinstance(self.transport, MqttTransport) or self.transport.client_id is not None:
            return
        if state is None:
            self.transport.client_id = client_id(self.own_keys.current, self.identity)
            return
        ours = {fact.name: fact.value for fact in state.facts if fact.identity == self.identity}
        self.transport.client_id = known = ours.get(CLIENT_ID) or spelled(self.entropy(SECRET))
        if CLIENT_ID not in ours:
            self._transaction.changes.facts.append(Fact(self.identity, CLIENT_ID, known))

    def _may_call(self) -> bool:
        return not self.stopping.is_set() and self.host.may_call()

    # Turns.

    def turn(self, limit: int | None = None, patience: float = 0.0) -> bool:
        """Take a turn, or go on with one that could not be made durable; return whether there was anything to do."""
        transaction = self.collect(limit, patience)
        return self.finish(transaction, self.commit(transaction)) and transaction.busy

    def collect(self, limit: int | None = None, patience: float = 0.0) -> Transaction:
        """Do what is in the inbox, or so many things of it, and what is due; return what that changes.

        Waits up to ``patience`` seconds for the first thing and for nothing else. While a transaction waits for the
        store it does nothing, and returns that one.
        """
        transaction = self._transaction
        if self.commit_failed:
            self.turn_began = time.monotonic()
            transaction.busy = True
            return transaction
        due = self.due()
        self._due_known = False
        self._turn_thread = threading.get_ident()
        try:
            self.session.lead = self.clock.lead
            for duty in self._overriding["precede"]:
                if duty.precede(transaction):
                    patience = 0.0
            done = self._drain(transaction, limit, patience)
            if not done:
                self.turn_began = time.monotonic()
            elif self.store is None:  # nothing has to become durable first, and somebody waits for it
                self._take_effect(transaction)
                self.journal.log_exceptions(self.flush)
            now = self.clock()
            if abs(self.session.lead - self._lead) > STEP:
                self._heed_clock(transaction, now)
            if transaction.due or (due is not None and now >= due):
                self._tick(transaction, now)
            for duty in self._overriding["close"]:
                duty.close(transaction, now)
            if self.store is not None:
                self._keep(transaction, done)
        finally:
            self._turn_thread = None
        transaction.busy = bool(done or transaction.effects or transaction.calls)
        return transaction

    def commit(self, transaction: Transaction) -> Exception | None:
        """Make a transaction durable; return why that could not be done."""
        if self.store is None or not transaction.changes:
            return None
        began, changes = time.perf_counter(), transaction.changes
        overruled = changes.keys or any(fact.name == REPLACED for fact in changes.facts)  # by save_keys(), perhaps
        try:
            with self.keys.lock if overruled else nullcontext():
                self.store.commit(changes)
        except Exception as error:  # noqa: BLE001 - whatever it is: without the store nothing may be accepted
            return error
        self.measure("commit", time.perf_counter() - began)
        return None

    def finish(self, transaction: Transaction, error: Exception | None) -> bool:
        """Let a transaction take effect outside; if the store refused it nothing happens, and it waits: False."""
        if error is not None:
            self._not_stored(error)
            return False
        if self.store_error is not None:
            self.journal.log(logging.WARNING, "%s: its store works again")
            self.commit_failed, self.store_error = False, None
        self._begin_transaction()
        self._take_effect(transaction)
        if self._pruner is not None:
            self._pruner.prune(self.clock(), self.clock.unix(), self.host.audit_share())
        self.turn_began = None
        return True

    def _not_stored(self, error: Exception) -> None:
        """Keep a transaction that the store refused, unless somebody else serves the partners."""
        if isinstance(error, LeaseLostError):
            self.lose_lease(error)
            return
        if not isinstance(error, StoreError):
            self.journal.counts["faults"] += 1
        self.journal.counts["not stored"] += 1
        if str(error) != self.store_error:
            text = "%s accepts nothing until its store works again: %a"
            self.journal.log(logging.ERROR, text, str(error), error=error)
        self.commit_failed, self.store_error = True, str(error)
        self.turn_began = None

    def _take_effect(self, transaction: Transaction) -> None:
        """Let all take effect outside that the transaction has put off so far."""
        if transaction.effects:
            effects, transaction.effects = transaction.effects, []
            for effect in effects:
                self.journal.log_exceptions(effect)
        self.handlers.run_at_once()
        if transaction.calls:
            self.handlers.submit(transaction.calls)
            transaction.calls.clear()  # in place: the handlers count those that wait in it

    def due(self) -> float | None:
        """Return when a turn has something to do even if nothing arrives; None for never. Only turns change that."""
        if not self._due_known:
            earliest = self.session.deadline()
            for ask in self._dues:
                due = ask()
                if due is not None and (earliest is None or due < earliest):
                    earliest = due
            self._due, self._due_known = earliest, True
        return self._due

    def lose_lease(self, error: LeaseLostError) -> None:
        """Touch nothing any more: somebody else serves these partners now."""
        self.commit_failed, self.store_error = True, str(error)
        self.journal.counts["leases lost"] += 1
        self.host.lease_lost(self, error)

    def _begin_transaction(self) -> None:
        self._transaction = Transaction()
        self.handlers.backlog.begin(self._transaction.calls)

    def _drain(self, transaction: Transaction, limit: int | None = None, patience: float = 0.0) -> int:
        """Do what is in the inbox; messages that stand together are one batch. Return how many things there were."""
        inbox, batch, done = self.inbox, Batch(), 0
        while limit is None or done < limit:
            item = inbox.get(patience)
            if item is not None and not done:
                self.turn_began = time.monotonic()
            if isinstance(item, MESSAGES):
                done, patience = done + count(item), 0.0
                if batch.add(item) < BATCH:
                    continue
            if batch.wires:
                self.inbound.deliver(transaction, batch, more=not isinstance(item, (NoneType, *MESSAGES)))
                batch = Batch()  # and look once more: a handler that is inline has answered, perhaps
            elif item is None:
                break
            if item is not None and not isinstance(item, MESSAGES):
                done, patience = done + 1, 0.0
                self.journal.log_exceptions(item, transaction)
        if batch.wires:
            self.inbound.deliver(transaction, batch)
        return done

    def _heed_clock(self, transaction: Transaction, now: float) -> None:
        """Take note that somebody has set the Unix clock."""
        lead = self.session.lead
        text = "%s: the clock was set by %+.0f seconds"
        self.journal.log(logging.INFO, text, lead - self._lead)
        self._lead = lead
        self.guarded_perform(transaction, lambda: self.session.clock_set(now, self.entropy(16)))
        for duty in self._duties:
            duty.clock_set(transaction)

    def _tick(self, transaction: Transaction, now: float) -> None:
        """Do what is due."""
        if outputs := self.journal.log_exceptions(self.session.tick, now):
            self.perform(transaction, outputs)
        self.own_keys.forget_former(now)
        for duty in self._overriding["tick"]:
            duty.tick(transaction, now)

    def _keep(self, transaction: Transaction, done: int) -> None:
        """Put together what the store is to keep of a turn in which so many things were done."""
        self.handlers.collect_finished(transaction, done)
        for duty in self._overriding["keep"]:
            duty.keep(transaction)
        changes, changed = transaction.changes, self.session.changes()
        changes.partners, changes.forgotten = changed.partners, changed.forgotten
        changes.exchanges, changes.ended = changed.exchanges, changed.ended
        changes.facts += changed.facts
        self.outbound.collect_settled(transaction)

    def measure(self, name: str, value: float) -> None:
        """Tell those who listen, if any do."""
        for listener in self.measuring:
            self.journal.log_exceptions(listener, name, value)

    # What happens in a turn.

    def perform(self, transaction: Transaction, outputs: Sequence[Output]) -> list[Dispatch]:
        """Send what is to be sent and tell what is to be told, each on its own; return what became of the sends."""
        dispatches = []
        guard = self.journal.log_exceptions
        for output in outputs:
            if isinstance(output, Send):
                if (dispatch := guard(self.outbound.publish, transaction, output)) is not None:
                    dispatches.append(dispatch)
            elif listeners := self._listeners.get(type(output)):
                self.values.wake(output.peer)  # a request that has ended makes room
                for listener in listeners:
                    guard(listener, transaction, output)
        return dispatches

    def guarded_perform(self, transaction: Transaction, make: Callable[[], Sequence[Output]]) -> None:
        """Perform what ``make`` returns; what it raises is logged."""
        self.journal.log_exceptions(lambda: self.perform(transaction, make()))

    def is_over(self, event: Event) -> bool:
        """Return, when the turn of an order has come, whether nobody waits for it any more: then it is not done."""
        if self.session.awaits(event.peer, event.token):
            return False
        self.journal.counts["not done"] += 1
        text = "%s does not do what %x wanted: it has expired, or we are not joined any more"
        self.journal.log(logging.WARNING, text, event.peer, partner=event.peer)
        return True

    def end_peer(self, transaction: Transaction, peer: int, asked: Sequence[Exchange], why: str) -> None:
        """End all that was asked of a partner that is another one now; the session has forgotten it already."""
        error = PolicyError(f"{peer:x} {why}")
        if self.store is not None:
            transaction.changes.facts.append(Fact(peer, REPLACED, None))
        for exchange in asked:
            self._end_exchange(transaction, exchange, error)
        self.requests.give_up_all(transaction, peer, error)
        self.values.end_all(transaction, peer, error)
        for duty in self._duties:
            duty.peer_replaced(transaction, peer)

    def _end_exchange(self, transaction: Transaction, exchange: Exchange, error: SrupError) -> None:
        if not any(duty.end_exchange(transaction, exchange, error) for duty in self._duties):
            self.requests.give_up_exchange(transaction, exchange, error)

    def check_sender(self, transaction: Transaction, sender: int) -> None:
        """Let the duties know who has sent a message that verified; a SrupError refuses it."""
        for duty in self._overriding["sender_verified"]:
            duty.sender_verified(transaction, sender)

    def _take(self, transaction: Transaction, topic: str, message: Message, wire: bytes) -> None:
        """Let a genuine message have its effect; a SrupError says why it has none."""
        self.check_sender(transaction, message.sender_id)
        self.journal.counts["verified"] += 1
        address = parse_topic(topic)
        for duty in self._overriding["check_address"]:
            duty.check_address(address, message.sender_id)
        if self.session.calls_handler(message):
            self.handlers.backlog.check_quota(message.sender_id)
        now = self.clock()
        signer = transaction.signer
        assert signer is not None  # noqa: S101 - it is genuine
        retiring = signer is not self.keys.get(message.sender_id)
        asked = self.store is not None and self.session.asks(message.sender_id, message.token)
        outputs = self.session.receive(message, now, self.entropy(16), signer, retiring=retiring)
        unix = self.clock.unix()
        self.tell_accepted(transaction, message.sender_id, unix)
        if self.store is not None:
            self.audit.receive(transaction, message, wire, signer, asked, outputs, now, unix)
        self.perform(transaction, outputs)

    def overriding(self, hook: str) -> list[Callable[..., Any]]:
        """Return one of the hooks that are called for each message, of the duties that override it."""
        return [getattr(duty, hook) for duty in self._overriding[hook]]

    def tell_accepted(self, transaction: Transaction, sender: int, at: float) -> None:
        """Tell the duties of a message that the session has taken at this Unix time."""
        for duty in self._overriding["accepted"]:
            duty.accepted(transaction, sender, at)

    def _cause_of(self, peer: int, token: bytes) -> Cause | None:
        return next((cause for duty in self._overriding["cause_of"] if (cause := duty.cause_of(peer, token))), None)

    def _excuses(self, refusal: Refusal) -> bool:
        return any(duty.excuses(refusal) for duty in self._duties)

    def _undeliverable(self, transaction: Transaction, send: Send, error: SrupError) -> None:
        """End what a message was to ask, for it would not get through the next time either."""
        self.outbound.unsent(send, error)
        asked = [each for each in self.session.asked_of(send.to) if each.token == send.message.token]
        for exchange in asked:
            self._end_exchange(transaction, exchange, error)
            self.perform(transaction, self.session.give_up(exchange, self.clock()))

    def _link_changed(self, connected: bool, why: str, transaction: Transaction) -> None:
        self.connected, self.link = connected, why
        if connected:
            self.journal.log(logging.INFO, "%s: %s", printable(why), connected=True, reason=why)
        elif self.stopping.is_set():
            text = "%s: the link is closed: %s"
            self.journal.log(logging.DEBUG, text, printable(why), connected=False, reason=why)
        else:
            text = "%s: not connected: %s; trying again"
            self.journal.log(logging.WARNING, text, printable(why), connected=False, reason=why)
        self.handlers.notify(transaction, "link", connected, why)
        for duty in self._duties:
            duty.link_changed(transaction, connected)

    def _key_withdrawn(self, identity: int) -> None:
        """Let the duties know in a turn. On any thread: what is asked afterwards comes after it."""
        if not self._withdrawn:  # which the ring's lock guards
            self.inbox.put(self._keys_withdrawn)
        self._withdrawn[identity] = None

    def _keys_withdrawn(self, transaction: Transaction) -> None:
        with self.keys.lock:
            withdrawn, self._withdrawn = self._withdrawn, {}
        for identity in withdrawn:
            for duty in self._duties:
                self.journal.log_exceptions(partial(duty.key_withdrawn, transaction, identity))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let what this thread changes in the key ring become durable with the transaction that is open."""
        self._turn_thread = threading.get_ident()
        try:
            yield
        finally:
            self._turn_thread = None

    def save_keys(self, changes: Changes) -> None:
        """Keep a change of keys, under their lock: what a turn changes becomes durable with it, anything else at once.

        A partner that gets another key is another one, of which nothing must go on that is kept under its identity.
        """
        if self.store is None:
            return
        changes.keys = [
            record if record.retiring is None else record._replace(until=record.until + self.clock.lead)
            for record in changes.keys
        ]
        for record in changes.keys:
            pin = self.keys.pin(record.identity)
            other = record.pin is None and pin is not None and (record.key is None or pin.to_pem() != record.key)
            if other and record.identity in self.session.partners():
                changes.facts.append(Fact(record.identity, REPLACED, "yes"))
        kept = self._transaction.changes  # the ring calls this, whoever changes it, so nobody can pass a transaction
        if self._turn_thread == threading.get_ident():
            self.amend_key_changes(changes)
            kept.keys += changes.keys
            kept.barred += changes.barred
            kept.reports += changes.reports
            kept.facts += changes.facts
        else:
            self.store.commit(changes)
            later = {record.identity for record in changes.keys}
            # In these very lists, which the thread of the turn is appending to, perhaps.
            for record in [record for record in kept.keys if record.identity in later]:
                kept.keys.remove(record)
            for fact in [fact for fact in kept.facts if fact.name == REPLACED and fact.identity in later]:
                kept.facts.remove(fact)
