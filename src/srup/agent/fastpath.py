"""The fast path of an agent: runs of ordinary values, nearly all that a server hears.

It does in one go what :class:`~srup.agent.inbound.Inbound` and the engine do step by step: verified messages, one after
the other, are checked against what is known of their senders, and become rows of the transaction and calls of handlers,
with one lock and one look at the clock for all. The first message that is not ordinary ends the run and goes the usual
way, which also says what is wrong with it; the next run begins behind it. So everything happens in the order in which
it came, and is the same on both ways.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import SrupError
from ..messages import Data, Message, decode_data
from ..records import AuditRow, InboxEntry
from ..session.events import DataReceived
from ..session.fastpath import FastPath as SessionFastPath
from ..transport.topics import device_topic
from .audit import ACCEPTED, PLAIN
from .batch import Batch
from .dataqueue import pack_name
from .serving import DATA
from .transaction import Call, Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["FastPath"]


class FastPath:
    """Takes ordinary values for an engine; ``on`` False lets everything go the usual way, for tests.

    ``position`` is which message of the batch is in hand.
    """

    def __init__(self, engine: "Engine") -> None:
        self.on = True
        self.position = 0
        self._engine = engine

    def run(self, transaction: Transaction, batch: Batch, opened: Sequence[Message | SrupError], as_of: int) -> None:
        """Take messages from ``position`` on, up to the first that is not ordinary; they verified ``as_of`` then.

        That is how often a key had been withdrawn (:attr:`KeyRing.withdrawn`).
        """
        engine = self._engine
        session, keys = engine.session.fast_path, engine.keys
        if not self.on or session is None or len(engine.listeners(DataReceived)) > 1:  # those would not be told
            return
        begin = self.position
        with keys.lock:  # whoever takes a key away does so before the run has its effect, or after it
            if keys.withdrawn != as_of:
                return
            try:
                self._run(transaction, batch, opened, session)
            finally:
                engine.journal.counts["verified"] += self.position - begin

    def _run(
        self,
        transaction: Transaction,
        batch: Batch,
        opened: Sequence[Message | SrupError],
        session: SessionFastPath,
    ) -> None:
        """Take what comes from members, for handlers, on their own topics; everything is looked up once for all."""
        engine = self._engine
        handlers, now, unix, durable = engine.handlers, engine.clock(), engine.clock.unix(), engine.store is not None
        handler_of, backlog, again = handlers.values.get, handlers.backlog, handlers.again
        is_noted = engine.serving.is_noted
        for_all = handler_of(None)
        check_sender, tell_accepted = engine.overriding("sender_verified"), engine.overriding("accepted")
        key_of, pin_of, take = engine.keys.find_key, engine.keys.pin, session.take
        topics, wires, changes, note = batch.topics, batch.wires, transaction.changes, engine.audit.signers.note
        keeps = engine.audit.keeps_values
        admits, wake, next_number = engine.audit.quota.admits, engine.values.wake, engine.numbers.next
        lead, kind_of_message = engine.session.lead, Data.layout.type
        signers, add_row, add_entry = changes.signers, changes.audit.append, changes.inbox.append
        add_call, names = transaction.calls.append, dict[str, bytes]()
        number = 0
        for at in range(self.position, len(opened)):
            message = opened[at]
            if type(message) is not Data:
                return
            sender, token, data_id, data = message.sender_id, message.token, message.data_id, message.data
            entry, key = handler_of(data_id) or for_all, key_of(sender)
            if entry is None or key is None or is_noted(data_id) or topics[at] != device_topic(sender):
                return
            kind, handler = entry
            try:
                for check in check_sender:
                    check(transaction, sender)
                backlog.check_quota(sender)
                value = decode_data(data, kind)
            except SrupError:
                return
            if not take(message, key, now + lead):
                return
            for tell in tell_accepted:
                tell(transaction, sender, unix)
            wake(sender)
            if durable:
                about = unix, sender, message.sequence_id, kind_of_message, token, ACCEPTED, False
                if keeps and admits(sender, now, len(wires[at]), PLAIN):
                    add_row(AuditRow(*about, wires[at], note(signers, sender, key, unix)))
                elif admits(sender, now, 0, PLAIN):
                    add_row(AuditRow(*about))
                else:
                    engine.journal.counts["not audited"] += 1
                if data_id not in names:
                    names[data_id] = pack_name(data_id)
                number = next_number(now)
                add_entry(InboxEntry(number, sender, token, DATA, names[data_id] + data))
            # By name the fields would take three times as long.
            given = sender, data_id, value
            add_call(Call(handler, sender, number, token, True, pin_of(sender), again, False, None, given))
            backlog.collect(sender)
            self.position = at + 1
