"""Values that are sent with a receipt: they wait for their partner, and survive restarts."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from ..errors import PolicyError, SrupError, TransportError, UnansweredError
from ..messages import Data
from ..records import OutboxEntry
from ..session.flow import Send
from .dataqueue import DataQueue, Value, Waiting
from .duty import Duty
from .requests import end_future
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["HANDED_OVER", "Values"]

HANDED_OVER: Final = "HANDED_OVER"
"""What has become of a value for a partner that gives no receipts: the broker has it, and nobody knows more."""

SENT_AT_ONCE: Final = 256
"""How many values are sent in one turn, so that others have theirs (T25)."""

_UNSENT: Final = b"unsent"
"""The token of a value that was never sent, in the Outcome about it."""


class Values(Duty):
    """The queue of values that wait to be sent."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._queue = DataQueue()
        self._goes_on = False  # with sending, in the next turn

    def __len__(self) -> int:
        return len(self._queue)

    def oldest(self) -> int | None:
        """Return the lowest number of those that wait, None if nothing does; any thread may ask."""
        return self._queue.oldest()

    def add(
        self, transaction: Transaction, partner: int, value: Value, expiry: float, future: "Future[Any] | None"
    ) -> int:
        """Have a value wait for its partner until ``expiry``; return its number. PolicyError when too many wait."""
        waiting = Waiting(self._engine.numbers.next(), partner, value, expiry, future)
        self._queue.add(waiting)
        self._store(transaction, waiting)
        return waiting.number

    def clock_set(self, transaction: Transaction) -> None:
        """See :meth:`Duty.clock_set`: a store has the expiries in Unix time."""
        for waiting in self._queue.all():
            self._store(transaction, waiting)

    def resume(self, entry: OutboxEntry, now: float, future: "Future[Any] | None" = None) -> None:
        """Have a value wait again that waited before a restart: from now on no longer than it was to wait in all.

        Its number says when it was given to us, and a clock may be behind that now.
        """
        expiry, lasts = entry.expiry, entry.expiry - (began := entry.number / 1e6)
        if began > now and lasts > 0:
            expiry = min(expiry, now + lasts)
        self._queue.put(Waiting(entry.number, entry.partner, Value.unpack(entry.body), expiry, future))

    def wait_for(self, partner: int) -> bool:
        """Return whether any wait for this partner."""
        return self._queue.first(partner) is not None

    def wake(self, partner: int) -> None:
        """Take note that this partner may be able to take something."""
        self._queue.wake(partner)

    def hold(self, partner: int, until: float) -> None:
        """Send a partner nothing before that time, unless it shows earlier that it gives receipts."""
        self._queue.hold(partner, until)

    def end_all(self, transaction: Transaction, partner: int, error: SrupError) -> None:
        """End all that waits for a partner."""
        for waiting in self._queue.drop(partner):
            self._end(transaction, waiting, error)

    def take_back(self, transaction: Transaction, partner: int, number: int, error: SrupError) -> bool:
        """End a value that waits for its partner; return False if it does not wait any more."""
        waiting = self._queue.take_back(partner, number)
        if waiting is not None:
            self._end(transaction, waiting, error)
        return waiting is not None

    def tick(self, transaction: Transaction, now: float) -> None:
        """See :meth:`Duty.tick`."""
        for waiting in self._queue.expire(now):
            self._end(transaction, waiting, UnansweredError(f"{waiting.partner:x} was not there in time"))

    def close(self, transaction: Transaction, now: float) -> None:
        """See :meth:`Duty.close`: send what can be sent now."""
        if self._queue.is_quiet and not self._goes_on:
            return
        for partner in self._queue.held():
            if self._engine.session.binds(partner):
                self._queue.release(partner)
        left, waiting = SENT_AT_ONCE, self._queue.awake(now)
        while left and waiting:
            partner = waiting.pop(0)
            left -= self._engine.journal.log_exceptions(self._work_off, transaction, partner, now, left) or 0
            if not left:
                waiting.append(partner)  # it may have more, and its turn comes behind the others
        for partner in waiting:
            self._queue.wake(partner)
        self._goes_on = not left

    def due(self) -> float | None:
        """See :meth:`Duty.due`."""
        return 0.0 if self._goes_on else self._queue.deadline()

    def stopped(self) -> None:
        """See :meth:`Duty.stopped`."""
        for waiting in self._queue.drop():
            if waiting.future is not None:
                end_future(waiting.future, TransportError("stopped before the value was confirmed"))

    def _store(self, transaction: Transaction, waiting: Waiting) -> None:
        number, partner, value, expiry, _ = waiting
        kept = OutboxEntry(number, partner, "", value.pack(), expiry + self._engine.session.lead)
        transaction.changes.outbox.append(kept)

    def _work_off(self, transaction: Transaction, partner: int, now: float, limit: int) -> int:
        """Send a partner the values that wait for it, as many as it can take and up to ``limit``; return how many."""
        engine = self._engine
        session, requests = engine.session, engine.requests
        done = 0
        while done < limit and (waiting := self._queue.first(partner)) is not None and session.is_member(partner):
            binds = session.binds(partner)
            sends: Sequence[Send]
            left = waiting.expiry - now
            if binds:
                if not session.may_send_confirmed(partner):
                    break  # a receipt will wake the queue
                if left <= 0:  # since the queue was looked at: it is taken out at once
                    self._queue.wake(partner)
                    break
            self._queue.drop_first(partner)
            done += 1
            try:
                if binds:
                    sends = session.confirmed_data(partner, *waiting.value, now, engine.entropy(16), left)
                else:
                    sends = session.data(partner, *waiting.value, now, engine.entropy(16))
            except PolicyError as error:  # the partner has used up the sequence ids
                self._end(transaction, waiting, error)
                continue
            if binds:
                requests.watch(transaction, partner, sends[0].message.token, waiting.future)
            transaction.changes.settled.append((partner, waiting.number))
            dispatches = engine.perform(transaction, sends)
            if waiting.future is not None and not binds:
                requests.end_when_sent(transaction, waiting.future, dispatches, HANDED_OVER)
        return done

    def _end(self, transaction: Transaction, waiting: Waiting, error: SrupError) -> None:
        """End a value that will not be sent."""
        transaction.changes.settled.append((waiting.partner, waiting.number))
        unsent = Data(sequence_id=0, sender_id=self._engine.identity, token=_UNSENT, **waiting.value._asdict())
        self._engine.requests.tell_outcome(transaction, waiting.future, waiting.partner, unsent, error)
