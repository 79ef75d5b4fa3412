"""What partners may ask of every agent: to do an action, to take a value, to take their new key."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from .. import rotation
from ..errors import PolicyError, SrupError
from ..keys import PublicKey
from ..messages import decode_data
from ..session.events import (
    ActionRequested,
    DataReceived,
    DataRepeated,
    Event,
    KeyOffered,
    Unexpected,
)
from ..session.flow import Output
from ..wire import IDENTIFICATION_RESPONSE, Status
from .dataqueue import Value
from .duty import Duty, Listener
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["DATA", "SYNDICATED_DATA", "PartnerKeys", "Serving"]

DATA: Final = "data"
"""The kind of an inbox entry that holds a value."""

SYNDICATED_DATA: Final = "syndicated data"
"""The kind of one that holds a value of a device that another server shares with us."""


class Serving(Duty):
    """Hands actions and values to their handlers, and answers.

    ``carried`` tells of which partners a value without a handler is not refused: somebody else takes it. ``noted`` is
    given each value under a name that ``is_noted``, takes note of it, and tells whether it has.
    """

    def __init__(self, engine: "Engine") -> None:
        self.carried: Callable[[int], bool] = lambda peer: False
        self.is_noted: Callable[[str], bool] = lambda data_id: False
        self.noted: Callable[[Transaction, int, Value], bool] = lambda transaction, peer, value: False
        self._engine = engine
        self._unknown: deque[tuple[int, bytes]] = deque()  # values of this turn that nobody takes

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            ActionRequested: self._action_requested,
            DataReceived: self._data_received,
            DataRepeated: self._data_repeated,
            Unexpected: self._unexpected,
        }

    def close(self, transaction: Transaction, now: float) -> None:
        """See :meth:`Duty.close`: refuse values that nobody takes, and say which ones we have for good."""
        engine = self._engine
        # Here: a deployed peer hears only what lies above all that it has sent meanwhile. And before the receipts.
        while self._unknown:
            peer, token = self._unknown.popleft()
            engine.guarded_perform(
                transaction,
                lambda peer=peer, token=token: engine.session.refuse_data(peer, token, now),  # type: ignore[misc]
            )
        for peer in engine.session.receipts_due(now):
            engine.guarded_perform(
                transaction,
                lambda peer=peer: engine.session.receipt(peer, now, engine.entropy(16)),  # type: ignore[misc]
            )

    def take(self, transaction: Transaction, peer: int, token: bytes, value: Value, number: int = 0) -> bool:
        """Hand a value to its handler, if there is one that can read it; ``number`` is its inbox entry, if it has one.

        Return whether there is.
        """
        try:
            job = self.find(peer, value)
        except SrupError as error:
            text, data_id, journal = "%s: value %a of %x: %s", value.data_id, self._engine.journal
            journal.log(logging.WARNING, text, data_id, peer, error, partner=peer, data_id=data_id, error=error)
            return False
        if job is not None:
            self.hand_over(transaction, peer, token, value, job, number)
        return job is not None

    def find(self, peer: int, value: Value) -> Callable[[], object] | None:
        """Return what calls the handler of a value, None if there is none; DecodeError if that cannot read it."""
        values = self._engine.handlers.values
        entry = values.get(value.data_id) or values.get(None)
        if entry is None:
            return None
        kind, handler = entry
        return partial(handler, peer, value.data_id, decode_data(value.data, kind))

    def hand_over(
        self,
        transaction: Transaction,
        peer: int,
        token: bytes,
        value: Value,
        job: Callable[[], object],
        number: int = 0,
    ) -> None:
        """Have a handler called for a value that is durable then, if it has no inbox entry (``number``) yet."""
        handlers = self._engine.handlers
        number = number or handlers.store_inbox(transaction, peer, token, DATA, value.pack())
        handlers.call_for(transaction, peer, token, job, number)

    def _action_requested(self, transaction: Transaction, event: ActionRequested) -> None:
        engine = self._engine
        handler, inline = engine.handlers.actions.get(event.action_id, (None, True))

        def job() -> None:
            if engine.is_over(event):
                return
            status = Status.ACTION_UNKNOWN
            if handler is not None:
                possible = {"failure": Status.ACTION_FAIL, "success": Status.ACTION_SUCCESS}
                status = engine.handlers.ask(handler, event.peer, **possible)
            engine.decide(engine.session.answer_action, event.peer, event.token, status)

        engine.handlers.call_for(transaction, event.peer, event.token, job, inline=inline)

    def _data_received(self, transaction: Transaction, event: DataReceived) -> None:
        value = Value(event.data_id, event.data)
        noted = self.is_noted(event.data_id) and self.noted(transaction, event.peer, value)
        if self.take(transaction, event.peer, event.token, value) or noted:
            return
        values = self._engine.handlers.values
        handled = event.data_id in values or None in values
        if event.data_id != IDENTIFICATION_RESPONSE and (handled or not self.carried(event.peer)):
            self._unknown.append((event.peer, event.token))

    def _data_repeated(self, transaction: Transaction, event: DataRepeated) -> None:
        self._engine.journal.counts["repeated"] += 1

    def _unexpected(self, transaction: Transaction, event: Unexpected) -> None:
        journal = self._engine.journal
        journal.counts["unexpected"] += 1
        text, peer, kind, why = "%s: unexpected %s of %x: %s", event.peer, event.message.__name__, event.why
        journal.log(logging.WARNING, text, kind, peer, why, partner=peer, message_type=kind, reason=why)


class PartnerKeys(Duty):
    """Takes the new keys that partners offer, signed by their old ones."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {KeyOffered: self._key_offered}

    def _key_offered(self, transaction: Transaction, event: KeyOffered) -> None:
        engine = self._engine
        assert transaction.signer is not None  # noqa: S101 - an offer comes in a message
        signer, now = transaction.signer, engine.clock()
        try:
            key = rotation.check(event.data, event.peer, engine.identity, signer)
            rotation.check_succession(engine.keys, event.peer, signer, key, now)
        except SrupError as error:
            engine.decide(self._refuse, event, str(error))
            return
        handler = engine.handlers.named.get("key")

        def job() -> None:
            status = Status.ACTION_SUCCESS
            if handler is None:
                text = "%s: nobody stores the new key of %x (see on_key_changed)"
                engine.journal.log(logging.WARNING, text, event.peer, partner=event.peer)
            else:
                possible = {"failure": Status.ACTION_FAIL, "success": Status.ACTION_SUCCESS}
                status = engine.handlers.ask(handler, event.peer, key, **possible)
            engine.decide(self.take, event, signer, key, status)

        engine.handlers.call_for(transaction, event.peer, event.token, job)

    def take(
        self, event: KeyOffered, signer: PublicKey, key: PublicKey, status: Status, now: float
    ) -> Sequence[Output]:
        """Take a key that has been stored, unless something else has been decided about it meanwhile."""
        engine = self._engine
        if status is not Status.ACTION_SUCCESS:
            return self._refuse(event, "it could not be stored", now)
        with engine.keys.lock:
            try:
                rotation.check_succession(engine.keys, event.peer, signer, key, now)
            except PolicyError as error:
                return self._refuse(event, str(error), now)
            outputs = engine.session.answer_key(event.peer, event.token, status, now)  # first: it may be too late
            engine.keys.rotate(event.peer, key, now + engine.session.policy.key_overlap)
        engine.journal.log(logging.INFO, "%s takes the new key of %x: %r", event.peer, key, partner=event.peer)
        return outputs

    def _refuse(self, event: KeyOffered, why: str, now: float) -> Sequence[Output]:
        journal = self._engine.journal
        journal.counts["key refused"] += 1
        text = "%s does not take the new key of %x: %s"
        journal.log(logging.WARNING, text, event.peer, why, partner=event.peer, reason=why)
        return self._engine.session.answer_key(event.peer, event.token, Status.ACTION_FAIL, now)
