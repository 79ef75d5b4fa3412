"""What survives a restart: an agent resumes where the previous process stopped."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from ..records import InboxEntry, OutboxEntry, State
from ..session import persistence
from ..session.events import Event
from .dataqueue import Value
from .duty import Duty
from .facts import CLIENT_ID, REPLACED
from .serving import DATA, SYNDICATED_DATA
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Restart"]


class Restart:
    """Takes over what a store has kept."""

    def __init__(self, engine: "Engine", duties: Sequence[Duty]) -> None:
        self._engine = engine
        self._duties = duties

    def take_over(self, transaction: Transaction, state: State) -> None:
        """Restore the state; StoreError that names the store when it says something that nobody has written."""
        engine = self._engine
        try:
            for duty in self._duties:
                state = duty.amend(state)
            self._restore(transaction, state)
            for duty in self._duties:
                duty.restored(transaction, state)
        except Exception as error:
            if isinstance(error, StoreError) and str(engine.store) in str(error):
                raise
            reason = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            raise StoreError(
                f"{engine.store}: a record is damaged ({reason}); restore a backup, and open it with adopt=True"
            ) from error

    def _restore(self, transaction: Transaction, state: State) -> None:
        """Go on where the process before this one ended. What was handed to handlers and not finished is so again."""
        engine = self._engine
        now = engine.clock()
        again = engine.session.restore(state, now)
        latest = now + engine.session.policy.key_overlap  # whatever the clock said when a key was changed
        known = (record._replace(until=min(record.until, latest)) for record in state.keys)
        others = set(engine.keys.keep(known, state.barred, engine.save_keys))
        others |= {fact.identity for fact in state.facts if fact.name == REPLACED}
        others |= {partner for partner in engine.session.partners() if partner not in engine.keys}
        engine.requests.inherit()
        asked = {partner: engine.session.asked_of(partner) for partner in others}
        for partner in others:
            engine.session.revoke(partner, now)
        again = [event for event in again if isinstance(event, Event) and event.peer not in others]
        hidden = {REPLACED, CLIENT_ID, *engine.session.facts}
        engine.facts.restore(fact for fact in state.facts if fact.name not in hidden)
        engine.handlers.again = True
        with engine.in_turn():
            for duty in self._duties:
                duty.restore(transaction, state)
            engine.perform(transaction, again)
            for entry in state.inbox:
                if entry.kind in (DATA, SYNDICATED_DATA) and entry.partner in others:
                    transaction.changes.finished.append((entry.partner, entry.number))  # the other one has sent it
                else:
                    engine.journal.log_exceptions(partial(self.resume_handler, transaction, entry))
            for unsent in state.outbox:
                if unsent.topic and unsent.partner in others:
                    transaction.changes.settled.append((unsent.partner, unsent.number))
                else:
                    engine.journal.log_exceptions(partial(self.resume_sending, transaction, unsent, now))
            for partner in sorted(others):
                engine.end_peer(transaction, partner, asked[partner], "has another key now, or none")
        engine.handlers.again = False

    def resume_handler(self, transaction: Transaction, entry: InboxEntry) -> None:
        """Hand over again what a handler had not finished."""
        engine = self._engine
        engine.numbers.note(entry.number)
        if entry.kind == DATA:
            value = Value.unpack(entry.body)
            told = engine.serving.take(transaction, entry.partner, entry.token, value, entry.number)
        elif told := entry.kind in engine.handlers.named:
            arguments: Sequence[Any] = persistence.load(entry.body.decode(), lambda partner, token: None)
            for duty in self._duties:
                arguments = duty.revive(entry.kind, arguments)
            engine.handlers.call_stored(transaction, entry.kind, entry.partner, arguments, entry.number)
        else:
            told = any(duty.redeliver(transaction, entry) for duty in self._duties)
        if not told:
            text = "%s: no handler takes what was accepted before: %a of %x"
            engine.journal.log(logging.WARNING, text, entry.kind, entry.partner, partner=entry.partner)

    def resume_sending(self, transaction: Transaction, entry: OutboxEntry, now: float) -> None:
        """Send what was to be sent before the restart."""
        engine = self._engine
        engine.numbers.note(entry.number)
        if entry.topic:
            engine.outbound.resend(transaction, entry, now)
        else:
            reported = (duty.reported(entry) for duty in self._duties)
            engine.values.resume(entry, now, next((future for future in reported if future is not None), None))
