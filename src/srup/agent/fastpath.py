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
from ..messages import Data, Message
from ..records import AuditRow
from ..session.events import DataReceived
from ..session.fastpath import FastPath as SessionFastPath
from ..transport.base import Delivery
from ..transport.topics import device_topic
from .audit import ACCEPTED, AuditQuota
from .dataqueue import Value
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["FastPath"]


class FastPath:
    """Takes ordinary values for an engine; ``on`` False lets everything go the usual way, for tests.

    ``position`` is which message of the batch is in hand.
    """

    def __init__(self, engine: "Engine", quota: AuditQuota) -> None:
        self.on = True
        self.position = 0
        self._engine = engine
        self._quota = quota

    def run(
        self, transaction: Transaction, batch: Sequence[Delivery], opened: Sequence[Message | SrupError], as_of: int
    ) -> None:
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
        batch: Sequence[Delivery],
        opened: Sequence[Message | SrupError],
        session: SessionFastPath,
    ) -> None:
        """Take what comes from members, for handlers, on their own topics; everything is looked up once for all."""
        engine = self._engine
        key_of, now, audits = engine.keys.get, engine.clock(), engine.store is not None
        unix = engine.clock.unix()
        check_sender, check_quota = engine.check_sender, engine.handlers.check_quota
        find, hand_over, wake = engine.serving.find, engine.serving.hand_over, engine.values.wake
        admits, add_row, kind = self._quota.admits, transaction.changes.audit.append, Data.layout.type
        for at in range(self.position, len(batch)):
            message = opened[at]
            if type(message) is not Data:
                return
            sender, token = message.sender_id, message.token
            if batch[at].topic != device_topic(sender):
                return
            value = Value(message.data_id, message.data)
            try:
                check_sender(transaction, sender)
                check_quota(sender)
                job = find(sender, value)
            except SrupError:
                return
            key = key_of(sender)
            if job is None or key is None or not session.take(message, key, now):
                return
            engine.tell_accepted(transaction, sender, unix)
            if audits:
                if admits(sender, now):
                    add_row(AuditRow(unix, sender, message.sequence_id, kind, token, ACCEPTED))
                else:
                    engine.journal.counts["not audited"] += 1
            wake(sender)
            hand_over(transaction, sender, token, value, job)
            self.position += 1
