"""How a device comes to be a member of its server, stays one, and leaves."""

import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from ..errors import PolicyError, SealError, TransportError
from ..joinvalue import JoinValue
from ..messages import DeregisterRequest, HumanJoinRequest, JoinRequest, ObservedJoinRequest, ResignRequest
from ..records import State
from ..session import DeviceSession, Send
from ..session.events import (
    Deregistered,
    Event,
    JoinAnswered,
    JoinCommanded,
    JoinExplained,
    JoinValueReceived,
    Left,
    ObservationRequested,
    ObserverNamed,
    Unanswered,
)
from ..transport.topics import Address, device_topic
from ..wire import Status
from .answer import Answer
from .arguments import sequence_origin
from .duty import Duty, Listener
from .keychange import KeyChange
from .requests import end_future
from .transaction import Transaction, after_commit

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["JoinKind", "Joining"]

SILENCE: Final = 10.0
"""After how many seconds without any answer to a join the log says what may be wrong."""

REJOIN: Final = 900.0
"""After how many seconds, a random part more, a member asks its server again."""

REJOIN_DEPLOYED: Final = 86400.0
"""The same where the server binds no tokens: a deployed one lists the device once more for each join."""

_LATEST: Final = 253402300799.0  # the last Unix time that has a date

_SERVER: Final = "server"
"""A fact about ourselves: the server that we were configured with, and the one that we were sent to."""

_JOINS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)
_LEAVES: Final = (ResignRequest, DeregisterRequest)

JoinKind = Literal["simple", "human", "observed"]


class Joining(Duty):
    """Asks ``server`` to let us in, so long as the device ``wants_in``.

    With ``ids_from_clock`` the first sequence id comes from the clock: if nobody answers it may have been wrong then.
    """

    def __init__(
        self,
        engine: "Engine",
        session: DeviceSession,
        server: int,
        kind: JoinKind,
        observer: int | None,
        ids_from_clock: bool = False,
    ) -> None:
        self.server = server
        self.kind = kind
        self.wants_in = True
        self._engine = engine
        self._session = session
        self._observer = observer
        self._named_observer: int | None = None  # by the server, when it refuses a simple join
        self._advised = False  # the join under way is the one that the server has advised
        self._joined: Answer[None] = Answer()
        self._is_in = False
        self._configured_server = server
        self._connected = False
        self._was_connected = False
        self._asked_at = math.inf
        self._spread = 1.0  # a fleet that lost its server together must not come back in step
        self._wonder_at = math.inf  # why nobody answers the join
        self._ids_from_clock = ids_from_clock
        self._unheard = False  # nobody has answered anything since we began to ask
        self._ask_anew_at = math.inf  # for the clock was set
        self._may_have_misread = False  # what the server said, because the clock was wrong
        self._refusal = b"", ""  # what the server has said about the join with this token
        self._attempts = 1  # at reading what another device shows
        self._on_mistake: Callable[[int, int], object] = lambda device, left: None

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            JoinAnswered: self._join_answered,
            JoinValueReceived: self._join_value_received,
            JoinCommanded: self._join_commanded,
            ObserverNamed: self._observer_named,
            JoinExplained: self._join_explained,
            ObservationRequested: self._observation_requested,
            Left: self._left,
            Deregistered: self._deregistered,
            Unanswered: self._unanswered,
        }

    @property
    def joined(self) -> bool:
        """Whether we are a member now. On any thread."""
        return self._session.is_member(self.server)

    @property
    def refusal(self) -> str:
        """Why the server has not let us in, in its words; empty if it has, or has not said. On any thread."""
        return self._refusal[1]

    @property
    def answer(self) -> Answer[None]:
        """What ends with the next answer to a join. On any thread."""
        return self._joined

    def members(self) -> int:
        """See :meth:`Duty.members`."""
        return int(self.joined)

    # Life.

    def introduce(self) -> None:
        """See :meth:`Duty.introduce`."""
        journal = self._engine.journal
        text, key = "%s: its server is %x, whose key has the fingerprint %s", self._engine.keys.get(self.server)
        shown = "none" if key is None else key.fingerprint
        journal.log(logging.INFO, text, self.server, shown, partner=self.server)

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`."""
        engine = self._engine
        for server in self._session.servers:
            if server not in engine.keys:
                text = "%s and server %x have parted for good; another store lets it begin anew"
                engine.journal.log(logging.WARNING, text, server, partner=server)
                self._session.forget(server)
        sent_from, _, sent_to = engine.facts.about(engine.identity).get(_SERVER, "").partition(" ")
        if sent_from == f"{self._configured_server:x}" and (sent := int(sent_to, 16)) in engine.keys:
            self.server = sent
        self._is_in = self.joined

    def prepare(self) -> None:
        """See :meth:`Duty.prepare`."""
        self._engine.transport.subscribe(device_topic(self._engine.identity))
        self._session.about_to_join = self.server  # what waits at the broker may be heard before we ask

    def begin(self) -> None:
        """See :meth:`Duty.begin`."""
        self._engine.inbox.put(self.ask)

    def stopped(self) -> None:
        """See :meth:`Duty.stopped`."""
        if not self._joined.done():
            self._joined.set_exception(TransportError("stopped before the server answered the join"))

    def tick(self, transaction: Transaction, now: float) -> None:
        """See :meth:`Duty.tick`."""
        engine = self._engine
        if now >= self._join_again_at:
            # The server may have forgotten us; it answers a member without further ado.
            engine.journal.log_exceptions(lambda: self.ask(transaction))
        if now >= self._ask_anew_at:
            self._ask_anew_at = math.inf
            if self._unheard and self.wants_in:
                engine.journal.log_exceptions(lambda: self.ask(transaction))
        if now >= self._wonder_at:
            self._wonder(transaction)

    def keep(self, transaction: Transaction) -> None:
        """See :meth:`Duty.keep`."""
        engine = self._engine
        known = _SERVER in engine.facts.about(engine.identity)
        if self.server != self._configured_server or known:
            there = f"{self._configured_server:x} {self.server:x}"
            engine.facts.set(transaction, engine.identity, _SERVER, there)

    def due(self) -> float | None:
        """See :meth:`Duty.due`."""
        due = min(self._join_again_at, self._wonder_at, self._ask_anew_at)
        return None if due == math.inf else due

    @property
    def _join_again_at(self) -> float:
        """When we ask although we are a member."""
        if not (self.joined and self.wants_in):
            return math.inf
        pause = REJOIN if self._session.binds(self.server) or self._may_have_misread else REJOIN_DEPLOYED
        return self._asked_at + pause * self._spread

    def clock_set(self, transaction: Transaction) -> None:
        """See :meth:`Duty.clock_set`.

        What a wrong clock has written into a join may be why nobody answers it. And by a wrong clock we may have
        refused what shows that the server binds its tokens.
        """
        self._may_have_misread = True
        if self._unheard:
            self._ask_anew_at = self._engine.clock() + self._session.policy.first_retry

    def check_address(self, address: Address, sender: int) -> None:
        """See :meth:`Duty.check_address`."""
        if address != Address(None, self._engine.identity):
            raise PolicyError("the topic is not this device's")

    def link_changed(self, transaction: Transaction, connected: bool) -> None:
        """See :meth:`Duty.link_changed`."""
        back = connected and not self._connected and self._was_connected
        self._connected = connected
        self._was_connected = self._was_connected or connected
        if back and self.joined and self.wants_in:
            self.ask(transaction)
        if connected and not self._joined.done():
            self._wonder_at = self._engine.clock() + SILENCE

    def observe_with(self, attempts: int, on_mistake: Callable[[int, int], object]) -> None:
        """Let the handler that observes read again when the value is another one. On any thread."""
        self._attempts, self._on_mistake = attempts, on_mistake

    # Asking.

    def begin_anew(self) -> None:
        """Ask again, after a refusal or after leaving. On any thread."""
        self._expect_answer()  # now, so that whoever waits does so for the new one
        self.wants_in = True
        self._engine.inbox.put(self.ask)

    def ask(self, transaction: Transaction, observer: int | None = None) -> None:
        """Ask the server, in the way that is due, or by way of the ``observer`` that it has named."""
        engine = self._engine
        self._advised = observer is not None
        self._named_observer = None
        self._session.about_to_join = None
        now = engine.clock()
        if self.joined:
            self._may_have_misread = False
        else:
            self._expect_answer()
            self._wonder_at = now + SILENCE
            if self._unheard and self._ids_from_clock:
                self._session.skip_sequence_ids(self.server, sequence_origin(engine.clock.unix))
            self._unheard = True
            kind = self.kind if observer is None else "observed"
            text = "%s: asks server %x to let it in (%s join)"
            engine.journal.log(logging.INFO, text, self.server, kind, partner=self.server)
        self._asked_at, self._spread = now, 1 + int.from_bytes(engine.entropy(2)) / 0x10000 / 4
        try:
            sends = self._request(now, engine.entropy(16), self._observer if observer is None else observer)
        except PolicyError as error:  # we have parted from this server for good, or too much is under way
            text = "%s cannot ask server %x: %s"
            engine.journal.log(logging.WARNING, text, self.server, error, partner=self.server, error=error)
            if not self._joined.done():
                self._joined.set_exception(error)
        else:
            engine.perform(transaction, sends)

    def _request(self, now: float, nonce: bytes, observer: int | None) -> list[Send]:
        """Begin a join of the kind that is due; a member only asks again."""
        if self.kind == "human" and not self.joined:
            return self._session.join_human(self.server, now, nonce)
        if observer is not None and not self.joined:
            return self._session.join_observed(self.server, observer, now, nonce)
        return self._session.join(self.server, now, nonce)

    def _expect_answer(self) -> None:
        """Let whoever waits do so for the next answer to a join."""
        if self._joined.done():
            self._joined = Answer()

    def _wonder(self, transaction: Transaction) -> None:
        """Log what may be wrong when nobody answers the join; once for each time that we begin to ask."""
        engine = self._engine
        self._wonder_at = math.inf
        if not engine.connected or self._joined.done():
            return
        text = f"server {self.server:x} has not answered the join; asking again. {self.doubts()}"
        engine.journal.log(logging.WARNING, "%s: %s", text, partner=self.server)
        engine.handlers.notify(transaction, "join_unanswered", text)

    def doubts(self) -> str:
        """Return what may be wrong when nobody answers the join, for people. On any thread."""
        engine, its = self._engine, self._engine.keys.get(self.server)
        ours, known = engine.own_keys.current.public_key.fingerprint, "none" if its is None else its.fingerprint
        clock = datetime.fromtimestamp(min(max(0.0, engine.clock.unix()), _LATEST), UTC)
        return (
            f"Is it running, at this broker? Does it know our key as that of {engine.identity:x} (fingerprint {ours})? "
            f"Is its key the one we know (fingerprint {known})? Is our clock right ({clock:%Y-%m-%d %H:%M:%S} UTC)? "
            "Its log says what it refuses"
        )

    # Events.

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        if event.request in _LEAVES:
            self._note_left(transaction, event.peer)
        if event.request in _JOINS and event.peer == self.server:
            if not self.joined:
                self._engine.handlers.notify(transaction, "not_joined", None)
            if self.wants_in:
                self.ask(transaction)

    def _join_answered(self, transaction: Transaction, event: JoinAnswered) -> None:
        engine, status = self._engine, event.status.name
        token, reason = self._refusal
        how = f"has not let us in: {status}{f': {reason}' if reason and token == event.token else ''}"
        if event.status is Status.JOIN_SUCCESS:
            how = "says that we are still a member" if self._is_in else "has let us in: joined"
        engine.journal.log(logging.INFO, "%s: server %x %s", event.peer, how, partner=event.peer, status=status)
        if event.peer == self.server:
            self._wonder_at, self._unheard = math.inf, False
        if event.peer != self.server or not self.wants_in:
            if event.status is Status.JOIN_SUCCESS:  # we have left meanwhile, and the server does not know it
                self._leave(transaction, event.peer)
            return
        was_in, self._is_in = self._is_in, event.status is Status.JOIN_SUCCESS
        if was_in and event.status is Status.JOIN_REFUSED and self.kind != "simple":
            self.ask(transaction)  # the server has forgotten that somebody vouched for us
            return
        self._expect_answer()
        if token != event.token or self._is_in:
            self._refusal = event.token, ""
        if self._is_in:
            after_commit(transaction, partial(end_future, self._joined, None))
            engine.handlers.notify(transaction, "joined")
            if not self._session.binds(event.peer):
                engine.values.hold(event.peer, engine.clock() + 2 * self._session.policy.first_retry)
            engine.perform(transaction, self._session.repeat_unanswered(event.peer, engine.clock()))
        elif not self._join_observed_instead(transaction):
            why = f": {self.refusal}" if self.refusal else ""
            self._joined.set_exception(PolicyError(f"server {event.peer:x} answers {event.status.name}{why}"))
            engine.handlers.notify(transaction, "not_joined", event.status)

    def _join_explained(self, transaction: Transaction, event: JoinExplained) -> None:
        if event.peer != self.server or not self.wants_in:
            return
        if self._refusal[0] == event.token:  # its status got here first
            text, peer, why = "%s: server %x says why it has not let us in: %s", event.peer, event.reason
            self._engine.journal.log(logging.INFO, text, peer, why, partner=peer, reason=why)
        self._refusal = event.token, event.reason

    def _observer_named(self, transaction: Transaction, event: ObserverNamed) -> None:
        if event.peer == self.server:
            self._named_observer = event.observer
            if self._joined.done() and not self._is_in:  # the refusal got here first
                self._join_observed_instead(transaction)

    def _join_observed_instead(self, transaction: Transaction) -> bool:
        """Follow the server's advice, once it has refused a simple join and named an observer.

        Return whether the device goes on in that way. It does so once: the next join is a simple one again, for which
        the server may name another observer.
        """
        follows = self.kind == "simple" and not self._advised and self.wants_in
        if self._named_observer is None or not follows:
            return False
        if "join_value" not in self._engine.handlers.named:
            text = "%s: %x would vouch for us, but on_join_value has no handler"
            self._engine.journal.log(logging.WARNING, text, self._named_observer, partner=self.server)
            return False
        self.ask(transaction, self._named_observer)
        return True

    def _join_value_received(self, transaction: Transaction, event: JoinValueReceived) -> None:
        engine = self._engine
        if event.peer != self.server:
            return  # a join that we have turned away from
        self._wonder_at, self._unheard = math.inf, False
        value = self._opened(event)
        if value is not None:
            engine.handlers.notify(transaction, "join_value", value)

    def _opened(self, event: JoinValueReceived | ObservationRequested) -> JoinValue | None:
        """Return the join value that the server has sealed to us; None, counted and logged, if it does not open."""
        journal, peer = self._engine.journal, event.peer
        try:
            return JoinValue(self._engine.own_keys.unseal(event.sealed))
        except SealError as error:
            journal.counts["unopened"] += 1
            journal.log(logging.WARNING, "%s: the join value of %x: %s", peer, error, partner=peer, error=error)
            return None

    def _join_commanded(self, transaction: Transaction, event: JoinCommanded) -> None:
        text, server = "%s: %x sends us to server %x", event.server
        journal = self._engine.journal
        journal.log(logging.INFO, text, event.peer, server, partner=event.peer, server=f"{server:x}")
        self.wants_in = True
        if event.server != self.server:
            if self.joined:
                self._leave(transaction, self.server)
            self._engine.part(KeyChange).give_up(transaction, event.server)
            self.server, self._is_in = event.server, False
        self.ask(transaction)  # a member only asks again, and by that answers the command

    def _leave(self, transaction: Transaction, server: int) -> None:
        engine = self._engine
        engine.perform(transaction, self._session.leave(server, engine.clock(), engine.entropy(16)))

    def _observation_requested(self, transaction: Transaction, event: ObservationRequested) -> None:
        engine = self._engine

        def observe() -> Status:
            handler = engine.handlers.named.get("observation")
            if handler is None:
                text, device = "%s cannot observe %x: on_observation has no handler", event.device
                engine.journal.log(logging.WARNING, text, device, partner=event.peer, device=f"{device:x}")
                return Status.OBSERVED_JOIN_FAIL
            value = self._opened(event)
            if value is None:
                return Status.OBSERVED_JOIN_FAIL
            for left in reversed(range(self._attempts)):
                read = handler(event.device)
                if isinstance(read, JoinValue):
                    read = read.text
                if not isinstance(read, str | bytes):
                    return Status.OBSERVED_JOIN_FAIL
                if value.matches(read):
                    return Status.OBSERVED_JOIN_VALID
                if left:
                    self._on_mistake(event.device, left)
            return Status.OBSERVED_JOIN_INVALID

        def job() -> None:
            status = engine.journal.log_exceptions(observe) or Status.OBSERVED_JOIN_FAIL
            engine.decide(self._session.answer_observation, event.peer, event.token, status)

        engine.handlers.run(transaction, engine.handlers.aside, job)

    def _left(self, transaction: Transaction, event: Left) -> None:
        engine = self._engine
        text = "%s: no longer a member of server %x"
        engine.journal.log(logging.INFO, text, event.peer, partner=event.peer)
        wanted = self._session.request(event.peer, event.token) is not None  # be it before a restart; and join() since
        if event.peer == self.server and not wanted:
            self.wants_in = False
        engine.requests.settle(transaction, event, None)
        self._note_left(transaction, event.peer)

    def _note_left(self, transaction: Transaction, server: int) -> None:
        """Tell the application that a membership has ended, once."""
        news = server != self.server and not self._session.is_leaving(server)
        if server == self.server and not self.joined:
            news, self._is_in = self._is_in, False
            self._expect_answer()
        if news:
            self._engine.handlers.notify_durably(transaction, "left", server, server)

    def _deregistered(self, transaction: Transaction, event: Deregistered) -> None:
        engine = self._engine
        text = "%s and server %x have dropped each other's key"
        engine.journal.log(logging.INFO, text, event.peer, partner=event.peer)
        engine.keys.remove(event.peer)
        engine.handlers.notify_durably(transaction, "deregistered", event.peer, event.peer)
