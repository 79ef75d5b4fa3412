"""The way out: choose key and topic, sign, keep in the outbox what nobody sends again, and publish after the commit."""

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from ..codec import encode
from ..errors import MessageTooLargeError, SrupError, TransportError
from ..messages import Data, HumanJoinRequest, JoinRequest, ObservedJoinRequest
from ..records import OutboxEntry
from ..session.common import CommonSession as Session
from ..session.flow import Send
from ..transport.base import Transport
from ..transport.topics import device_topic, join_topic
from ..wire import KEY_ROTATION
from .audit import Audit
from .inbox import Inbox
from .journal import Journal
from .localtime import LocalTime
from .ownkeys import OwnKeys
from .transaction import Dispatch, EntryNumbers, Transaction, after_commit

__all__ = ["JOIN_REQUESTS", "Outbound"]

JOIN_REQUESTS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)

MAX_KEPT: Final = 20_000
"""How many messages that the broker has not confirmed are kept over a restart. One partner has half of what is free."""


class Outbound:
    """Sends messages. ``undeliverable`` is called, in a turn, with what the broker takes in no case, and why.

    ``device_of`` tells from the recipient's identity on whose topic a message belongs: both ends of a link share the
    device's.
    """

    def __init__(
        self,
        session: Session,
        journal: Journal,
        inbox: Inbox,
        keys: OwnKeys,
        transport: Transport,
        numbers: EntryNumbers,
        clock: LocalTime,
        durable: bool,
        device_of: Callable[[int], int],
        undeliverable: Callable[[Transaction, Send, SrupError], object],
        audit: Audit,
    ) -> None:
        self._session = session
        self._journal = journal
        self._inbox = inbox
        self._keys = keys
        self._transport = transport
        self._numbers = numbers
        self._clock = clock
        self._durable = durable
        self._device_of = device_of
        self._undeliverable = undeliverable
        self._audit = audit
        self._handed_over: deque[tuple[int, int]] = deque()  # outbox entries that the broker has
        self._kept: Counter[int] = Counter()  # how many it does not have, by partner,
        self._all_kept = 0  # and in all

    def publish(self, transaction: Transaction, send: Send) -> Dispatch:
        """Sign, and send when the transaction is durable. The session sends again what waits for an answer."""
        topic, key = self._topic(send), self._keys.signing_for(send.to)
        try:
            dispatch = Dispatch(topic, encode(send.message, key))
        except SrupError as error:
            self.unsent(send, error)
            return Dispatch(topic, b"", error)
        if self._durable:
            about = key.public_key, self._session.asks(send.to, send.message.token)
            self._audit.send(transaction, send, dispatch.wire, *about, self._clock(), self._clock.unix())
        number = 0
        if self._durable and not self._session.repeats(send) and self._may_keep(send.to):
            number, expiry = self._numbers.next(), self._clock.unix() + self._session.policy.update_lifetime
            self._keep(send.to, 1)
            transaction.changes.outbox.append(OutboxEntry(number, send.to, topic, dispatch.wire, expiry))
        after_commit(transaction, lambda: self._transmit(send, dispatch, number))
        return dispatch

    def resend(self, transaction: Transaction, entry: OutboxEntry, now: float) -> None:
        """Send what was to be sent before a restart, unless its time is over."""
        if now >= entry.expiry:
            transaction.changes.settled.append((entry.partner, entry.number))
            return
        number, partner, topic, wire, _ = entry
        self._keep(partner, 1)

        def refused(error: TransportError) -> None:
            self._journal.counts["unsent"] += 1
            text = "%s could not send what was to be sent before the restart: %s"
            self._journal.log(logging.WARNING, text, error, error=error)

        after_commit(transaction, lambda: self._hand_over(partner, number, topic, wire, refused))

    def collect_settled(self, transaction: Transaction) -> None:
        """Forget the outbox entries that the broker has."""
        while self._handed_over:
            partner, number = self._handed_over.popleft()
            transaction.changes.settled.append((partner, number))
            self._keep(partner, -1)

    def _may_keep(self, partner: int) -> bool:
        """Return whether one more message to a partner may be kept; a broker may never confirm any (T9)."""
        may = self._kept[partner] < (MAX_KEPT - self._all_kept) // 2
        self._journal.counts["not kept"] += not may
        return may

    def _keep(self, partner: int, more: int) -> None:
        self._all_kept += more
        self._kept[partner] += more
        if not self._kept[partner]:
            del self._kept[partner]

    def unsent(self, send: Send, error: SrupError) -> None:
        """Count and log that a message could not be sent."""
        self._journal.counts["unsent"] += 1
        kind = type(send.message).__name__
        text = "%s could not send %s: %s"
        self._journal.log(logging.WARNING, text, kind, error, partner=send.to, message_type=kind, error=error)

    def _topic(self, send: Send) -> str:
        device, message = self._device_of(send.to), send.message
        joins = isinstance(message, JOIN_REQUESTS)
        if isinstance(message, Data) and message.data_id == KEY_ROTATION:
            # A server hears nobody's own topic but those of its members.
            joins = device == self._session.identity and not self._session.is_member(send.to)
        return join_topic(send.to, device) if joins else device_topic(device)

    def _transmit(self, send: Send, dispatch: Dispatch, number: int) -> None:
        def refused(error: TransportError) -> None:
            dispatch.error = error
            self._inbox.put(lambda transaction: self._undeliverable(transaction, send, error))

        try:
            self._hand_over(send.to, number, dispatch.topic, dispatch.wire, refused)
        except SrupError as error:
            dispatch.error = error
            self.unsent(send, error)
        else:
            if dispatch.error is None:
                self._journal.counts["sent"] += 1

    def _hand_over(
        self, partner: int, number: int, topic: str, wire: bytes, refused: Callable[[TransportError], object]
    ) -> None:
        """Publish; forget the outbox entry of this number when the broker has the message, or takes none so large."""
        settle, refuse = None, refused
        if number:

            def settle() -> None:
                self._handed_over.append((partner, number))

            def refuse(error: TransportError) -> None:
                settle()
                refused(error)

        try:
            self._transport.publish(topic, wire, settle, refuse)
        except MessageTooLargeError as error:
            refuse(error)
