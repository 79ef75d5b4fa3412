"""How a server decides about joins: by itself, by its application, by a person, or by the word of an observer."""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal

from ..errors import PolicyError, SealError, SrupError
from ..joinvalue import SIZE as JOIN_VALUE_SIZE
from ..joinvalue import JoinValue
from ..keys import PublicKey
from ..seal import seal
from ..session import ServerSession
from ..session.events import (
    Event,
    HumanJoinRequested,
    JoinAnswered,
    JoinRequested,
    JoinWithdrawn,
    Observed,
    ObservedJoinRequested,
)
from ..session.flow import Output
from ..wire import Status
from .duty import Duty, Listener
from .joinboard import JoinBoard, JoinRecord, join_id
from .members import Members
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["DECISIONS", "Admission", "AdmissionKind", "Decision", "ModerationKind", "PendingJoin"]

AdmissionKind = Literal["simple", "human", "observed"]
ModerationKind = Literal["handler", "orders"]
Decision = Literal["accept", "refuse", "fail"]

DECISIONS: Final[Mapping[str, tuple[Status, str]]] = {
    "accept": (Status.JOIN_SUCCESS, ""),
    "refuse": (Status.JOIN_REFUSED, "whoever compared the values has refused it"),
    "fail": (Status.JOIN_FAIL, "the values could not be compared"),
}
"""What a person can decide about a join: the answer, and what the device is told besides."""


class PendingJoin:
    """A join that waits for a person: compare :attr:`value` with what the ``device`` shows, then say what you saw.

    ``status`` is None as long as it waits. ``id`` is the name of this join, which stands for its value.
    """

    def __init__(self, admission: "Admission", device: int, token: bytes, value: JoinValue, until: float) -> None:
        self.device = device
        self.value = value
        self.id = join_id(value)
        self._until = until  # in local time
        self.status: Status | None = None
        self._admission = admission
        self._token = token
        self._pin = admission.pin(device)
        self._decision = Lock()  # taken once, by whoever decides first

    @property
    def expires(self) -> float:
        """The Unix time at which it fails by itself; it changes when the clock is set."""
        return self._until + self._admission.lead

    def accept(self) -> None:
        """The values are the same: let the device in. PolicyError when the join is over."""
        self.decide("accept")

    def refuse(self) -> None:
        """They are not, or it is not wanted. PolicyError when the join is over."""
        self.decide("refuse")

    def fail(self) -> None:
        """They could not be compared. PolicyError when the join is over."""
        self.decide("fail")

    def decide(self, decision: Decision) -> None:
        """Do one of these, by its name; PolicyError when the join is over."""
        self._admission.answer_asker(self.device, self.claim(), *DECISIONS[decision])

    def claim(self) -> bytes:
        """Be the one who decides; return the token under which the device has asked. PolicyError if it is too late."""
        if self.status is not None:
            raise PolicyError(f"the join of {self.device:x} is over: {self.status.name}")
        self._admission.check_open(self.device, self._until)
        if self._admission.pin(self.device) != self._pin:
            raise PolicyError(f"{self.device:x} has another key than the device that was compared")
        if not self._decision.acquire(blocking=False):
            raise PolicyError(f"the join of {self.device:x} has been decided")
        return self._token

    def __repr__(self) -> str:
        return f"<PendingJoin of {self.device:x}: {self.status.name if self.status else 'waits'}>"


_OF_THE_APPLICATION: Final = {
    Status.JOIN_REFUSED: "the application has refused it (on_join)",
    Status.JOIN_FAIL: "the application could not decide (on_join)",
}
"""Why a join is not granted that had all that it needs."""


class Admission(Duty):
    """Lets devices in that have gone through what ``kind`` says; the word of ``observers`` counts.

    People decide in ``moderation``: in a handler of the application, or by orders from any process, too.
    """

    def __init__(
        self,
        engine: "Engine",
        session: ServerSession,
        members: Members,
        kind: AdmissionKind,
        observers: Collection[int],
        moderation: ModerationKind = "handler",
    ) -> None:
        self._engine = engine
        self._session = session
        self._members = members
        self.kind = kind
        self._observers = tuple(observers)
        self._by_orders = moderation == "orders"
        self._board = engine.add(JoinBoard(engine, opened=self._by_orders))
        self._joins: dict[tuple[int, bytes], PendingJoin] = {}
        self._unshown: dict[tuple[int, bytes], None] = {}  # of these, those for which the moderator was not called
        self._moderation_due = False
        self._refusals: dict[int, str] = {}  # why those were not let in that asked last

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            JoinRequested: self._join_requested,
            HumanJoinRequested: self._human_join_requested,
            ObservedJoinRequested: self._observed_join_requested,
            Observed: self._observed,
            JoinWithdrawn: self._join_withdrawn,
            JoinAnswered: self._join_answered,
        }

    # What a person may do meanwhile, on any thread.

    @property
    def pending(self) -> list[PendingJoin]:
        """The joins that wait for a person now, the oldest first."""
        return list(self._joins.values())

    def refusal_of(self, device: int) -> str:
        """Return why the latest join of a device was not granted; empty if it was."""
        return self._refusals.get(device, "")

    def peer_replaced(self, transaction: Transaction, peer: int) -> None:
        """See :meth:`Duty.peer_replaced`."""
        self._refusals.pop(peer, None)

    def pin(self, device: int) -> object:
        """Return what the identity of a device stands for: another key is another device."""
        return self._engine.keys.pin(device)

    @property
    def lead(self) -> float:
        """How far Unix time is ahead of local time. On any thread."""
        return self._engine.clock.lead

    def check_open(self, device: int, until: float) -> None:
        """Raise PolicyError unless a join can be decided now, which it can ``until`` then in local time."""
        if self._engine.stopping.is_set():
            raise PolicyError(f"the join of {device:x} cannot be decided: the server was stopped")
        if self._engine.clock() >= until:
            raise PolicyError(f"the join of {device:x} is over: its time was up")

    def answer_asker(self, device: int, token: bytes, status: Status, why: str, *, as_member: bool = False) -> None:
        """Answer a join in a turn, unless the device has got another key since it asked: that one has not asked."""

        def job(transaction: Transaction) -> None:
            said, reason = status, why
            if as_member and said is Status.JOIN_SUCCESS and device not in self._members.identities:
                said, reason = Status.JOIN_REFUSED, self._too_simple()  # it was put out meanwhile
            try:
                outputs = self._answer_asker(transaction, device, token, said, reason)
            except SrupError as error:
                self._engine.journal.log(logging.WARNING, "%s: %s", error, error=error)  # it came too late
            else:
                self._engine.perform(transaction, outputs)

        self._engine.inbox.put(job)

    def _answer_asker(
        self, transaction: Transaction, device: int, token: bytes, status: Status, why: str
    ) -> Sequence[Output]:
        with self._engine.keys.lock:
            self._members.detect_replaced_key(transaction, device)
            return self._session.answer_join(device, token, status, self._engine.clock(), why=why)

    def _answer(self, device: int, token: bytes, status: Status, why: str, observer: int | None = None) -> None:
        """Answer a join without asking anybody; it may be too late, or no sequence id may be left for the device."""
        self._engine.decide(lambda now: self._session.answer_join(device, token, status, now, observer, why))

    def decide(
        self, transaction: Transaction, device: int, join: str, decision: Decision, by: str = ""
    ) -> Sequence[Output]:
        """Decide about the join with this id, in a turn; PolicyError if it is none that waits for a person now."""
        pending = next((one for one in self._joins.values() if (one.device, one.id) == (device, join)), None)
        if pending is None:
            raise PolicyError(f"no such join of {device:x} waits: it is over, or the device shows another value by now")
        token = pending.claim()
        said = "%s: %s: %s the join of %x", by or "somebody", decision, device
        self._engine.journal.log(logging.INFO, *said, partner=device, decision=decision, by=by)
        return self._answer_asker(transaction, device, token, *DECISIONS[decision])

    # Simple joins, and the last step of all others.

    def _join_requested(self, transaction: Transaction, event: JoinRequested) -> None:
        members = self._members.identities
        if self.kind == "simple" or event.peer in members:
            self._consult(transaction, event.peer, event.token, as_member=self.kind != "simple")
            return
        observer = None
        if self.kind == "observed":
            observer = next((one for one in self._observers if one in members and one != event.peer), None)
        self._answer(event.peer, event.token, Status.JOIN_REFUSED, self._too_simple(), observer)

    def _too_simple(self) -> str:
        return f"a simple join is not enough, this server wants one that is {self.kind}"

    def _consult(self, transaction: Transaction, device: int, token: bytes, *, as_member: bool = False) -> None:
        """Let the application say whether a device may join that has proved what it had to.

        One that may ask in a simple way ``as_member`` must still be a member when that is answered.
        """
        handlers = self._engine.handlers

        def job() -> None:
            status = Status.JOIN_SUCCESS
            handler = handlers.named.get("join")
            if handler is not None:
                # Refusing is an opinion and failing is a fault: they have different codes.
                status = handlers.ask(
                    lambda: Status.JOIN_REFUSED if (said := handler(device)) is False else said,
                    failure=Status.JOIN_FAIL,
                    success=Status.JOIN_SUCCESS,
                )
            self.answer_asker(device, token, status, _OF_THE_APPLICATION.get(status, ""), as_member=as_member)

        handlers.call_for(transaction, device, token, job)

    def _join_answered(self, transaction: Transaction, event: JoinAnswered) -> None:
        engine, device, status = self._engine, event.peer, event.status.name
        success = event.status is Status.JOIN_SUCCESS
        how = f"was not let in: {status}{f': {event.reason}' if event.reason else ''}"
        if success:
            how = "has asked again and is still a member" if device in self._members.identities else "has joined"
        engine.journal.log(logging.INFO, "%s: %x %s", device, how, partner=device, status=status)
        self._end_pending(device, event.token, event.status)
        if success:
            self._refusals.pop(device, None)
            self._members.enter(transaction, device)
        else:
            self._members.leave(device)
            self._members.stop_listening(device)
            self._refusals[device] = event.reason
            engine.handlers.notify_durably(transaction, "not_joined", device, device, event.status)

    # Joins that a person moderates.

    def _human_join_requested(self, transaction: Transaction, event: HumanJoinRequested) -> None:
        engine, key = self._engine, (event.peer, event.token)
        self._members.listen(event.peer)  # it may take its join back before anybody has decided
        has_handler = "moderation" in engine.handlers.named
        if not has_handler and not self._by_orders:
            why = "nobody compares values at this server: on_moderation has no handler"
            self._answer(event.peer, event.token, Status.JOIN_REFUSED, why)
            return
        value = JoinValue.new(engine.entropy(JOIN_VALUE_SIZE))
        shown_by = self._show(transaction, event, value)
        if shown_by is None:
            return
        self._joins[key] = pending = PendingJoin(self, event.peer, event.token, value, event.expires)
        times = engine.clock.unix(), event.expires
        record = JoinRecord(event.peer, pending.id, "human", *times, shown_by.fingerprint, value.plaintext.decode())
        self._board.put(event.token, record)
        if self._by_orders:
            engine.journal.log(logging.INFO, "%s: %x waits to be compared", event.peer, partner=event.peer)
        if has_handler:
            self._unshown[key] = None
            if not self._moderation_due:  # while one call waits for its turn another one would find nothing to do (T9)
                self._moderation_due = True
                engine.handlers.run(transaction, engine.handlers.aside, self._moderate)

    def _moderate(self) -> None:
        """Call the moderator for each join that still waits for it, the oldest first; on a thread of its own."""
        self._moderation_due = False
        handlers, journal = self._engine.handlers, self._engine.journal
        handler = handlers.named["moderation"]
        while (key := next(iter(list(self._unshown)), None)) is not None:
            self._unshown.pop(key, None)
            if (pending := self._joins.get(key)) is not None:
                journal.log_exceptions(partial(handler, pending))

    def _join_withdrawn(self, transaction: Transaction, event: JoinWithdrawn) -> None:
        self._end_pending(event.peer, event.token, Status.JOIN_FAIL)
        self._members.stop_listening(event.peer)

    def _end_pending(self, device: int, token: bytes, status: Status) -> None:
        self._board.take(device, token)
        self._unshown.pop((device, token), None)
        pending = self._joins.pop((device, token), None)
        if pending is not None:
            pending.status = status

    # Joins that another device observes.

    def _observed_join_requested(self, transaction: Transaction, event: ObservedJoinRequested) -> None:
        engine, members = self._engine, self._members.identities
        device, token, observer = event.peer, event.token, event.observer
        value = JoinValue.new(engine.entropy(JOIN_VALUE_SIZE))
        self._members.listen(device)
        key = engine.keys.get(observer)
        if observer not in self._observers or observer not in members or observer == device or key is None:
            why = f"the observer {observer:x} has not joined"
            if observer not in self._observers or observer == device:
                why = f"{observer:x} is none of this server's observers, whose word counts for {device:x}"
            self._answer(device, token, Status.JOIN_REFUSED, why)
        elif (shown_by := self._show(transaction, event, value)) is not None:
            try:
                sealed = seal(value.plaintext, key)
                sends = self._session.observe(observer, device, token, sealed, engine.clock(), engine.entropy(16))
            except SrupError as error:
                said = "%s cannot ask %x about %x: %s", observer, device, error
                engine.journal.log(logging.WARNING, *said, partner=observer, device=f"{device:x}", error=error)
                self._answer(device, token, Status.JOIN_FAIL, f"the observer {observer:x} cannot be asked")
            else:
                times = engine.clock.unix(), event.expires
                known = device, join_id(value), "observed", *times, shown_by.fingerprint
                self._board.put(token, JoinRecord(*known, observer=observer))
                engine.perform(transaction, sends)

    def _show(
        self, transaction: Transaction, event: HumanJoinRequested | ObservedJoinRequested, value: JoinValue
    ) -> PublicKey | None:
        """Send a device the value that it is to show; return the key that it is sealed to.

        If nothing can be sealed or sent to it the join fails: None.
        """
        engine, device, token = self._engine, event.peer, event.token
        try:
            key = self._key_of(device, event.signer)
            if key is None:
                raise SealError("its key has just been dropped")
            outputs = self._session.show_value(device, token, seal(value.plaintext, key), engine.clock())
        except (SealError, PolicyError) as error:
            text = "%s: no value for %x: %s"
            engine.journal.log(logging.WARNING, text, device, error, partner=device, error=error)
            self._answer(device, token, Status.JOIN_FAIL, "no value can be sealed to its key")
            return None
        engine.perform(transaction, outputs)
        return key

    def _key_of(self, device: int, signer: str) -> PublicKey | None:
        """Return the key of a device that has signed, or else the one that counts.

        A device whose new key was taken, and that has not heard so, signs with the old one, and has perhaps no other.
        """
        keys = self._engine.keys
        counting, retiring = keys.get(device), keys.retiring(device, self._engine.clock())
        signed = retiring is not None and signer and retiring.signing_fingerprint.startswith(signer)
        return retiring if signed else counting

    def _observed(self, transaction: Transaction, event: Observed) -> None:
        text, peer, device, said = "%s: %x says about %x: %s", event.peer, event.device, event.status.name
        journal = self._engine.journal
        journal.log(logging.INFO, text, peer, device, said, partner=peer, device=f"{device:x}", status=said)
        if event.status is Status.OBSERVED_JOIN_VALID:
            self._consult(transaction, event.device, event.join_token)
        else:
            invalid = event.status is Status.OBSERVED_JOIN_INVALID
            status = Status.JOIN_REFUSED if invalid else Status.JOIN_FAIL
            read = "has read another value" if invalid else "could not read the value"
            self._answer(event.device, event.join_token, status, f"the observer {event.peer:x} {read}")
