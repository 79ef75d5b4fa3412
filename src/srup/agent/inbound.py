"""The way in: a bounded queue, verification in batches, acknowledgement with back-pressure, and refusals.

The transport's thread only appends to the inbox. The thread that takes the turns verifies messages in batches as large
as what has arrived, never waiting for more. A message is acknowledged after the commit of its turn, whatever came of
it; so the broker's limit of unacknowledged messages (MQTT 5: receive maximum) bounds the queue.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event, RLock
from typing import Final, NamedTuple

from ..codec import decode, peek, verify_many
from ..errors import ReplayError, SignatureError, SrupError, UnknownSenderError
from ..keyring import KeyRing
from ..keys import PublicKey
from ..logs import Limiter
from ..messages import Data, Message
from ..printable import printable
from ..transport.base import Deliveries, Delivery
from ..transport.topics import parse_topic
from .batch import Batch
from .fastpath import FastPath
from .handlers import Handlers
from .inbox import Inbox, count
from .journal import Journal
from .transaction import Call, Transaction

__all__ = ["Inbound", "Refusal"]

BATCH: Final = 256
"""From so many messages on that came in one piece or one after the other, they are verified together."""

MAX_WAITING: Final = 10_000
"""How many messages and handlers wait at most; a broker keeps what does not get in."""


class Refusal(NamedTuple):
    """A message that had no effect: where it came in, the bytes, and why it was refused.

    ``hint`` has the fingerprint to compare when it may be about a wrong key.
    """

    topic: str
    wire: bytes
    error: SrupError
    hint: str = ""

    def __str__(self) -> str:
        why = f"{type(self.error).__name__}: {printable(str(self.error), 300)}{self.hint}"
        return f"a message on {printable(self.topic, 100)} is refused: {why}"

    def __repr__(self) -> str:
        return f"<Refusal of {len(self.wire)} bytes on {self.topic!r}: {type(self.error).__name__}>"


class Inbound:
    """Takes messages in: runs of ordinary ones by the ``fast_path``, any other by ``take``, which raises what is wrong.

    ``excuses`` is asked whether a message that would be refused is seen to in another way.
    """

    def __init__(
        self,
        identity: int,
        journal: Journal,
        inbox: Inbox,
        keys: KeyRing,
        handlers: Handlers,
        clock: Callable[[], float],
        stopping: Event,
        threads: int,
        fast_path: FastPath,
        take: Callable[[Transaction, str, Message, bytes], object],
        excuses: Callable[[Refusal], bool],
    ) -> None:
        self.measure: Callable[[str, float], object] = lambda name, value: None
        self._identity = identity
        self._journal = journal
        self._inbox = inbox
        self._keys = keys
        self._handlers = handlers
        self._clock = clock
        self._stopping = stopping
        self._threads = threads
        self._fast_path = fast_path
        self._take = take
        self._excuses = excuses
        # Until the handlers have caught up: so many messages, and what acknowledges them.
        self._unacknowledged: deque[tuple[int, Sequence[Callable[[], None]]]] = deque()
        self._acknowledging = RLock()
        self._refusal_lines = Limiter()
        handlers.progress = self._catch_up

    def arrived(self, delivery: Delivery | Deliveries) -> None:
        """Take messages from the transport, on its thread."""
        if self._inbox.messages + self._handlers.backlog.size() >= MAX_WAITING:
            # Unacknowledged: a broker without a limit sends it again later.
            self._journal.counts["overflow"] += count(delivery)
        else:
            self._inbox.put(delivery)

    def deliver(self, transaction: Transaction, batch: Batch, *, more: bool = False) -> None:
        """Verify messages together, then let each have its effect; each is acknowledged whatever came of it.

        ``more`` says that something is to be done behind them that is not in the inbox any more.
        """
        if self._stopping.is_set():
            return  # unacknowledged: the broker keeps them for the next start
        number = len(batch.wires)
        self._journal.counts["received"] += number
        as_of = self._keys.withdrawn
        opened = self._journal.log_exceptions(verify_many, batch.wires, self._keys, self._threads)
        if opened is None:  # the keys are not to be had: unacknowledged, the broker sends it again later
            self._journal.counts["not verified"] += number
            return
        fast, guard = self._fast_path, self._journal.log_exceptions
        fast.position = 0
        while fast.position < number:
            if type(opened[fast.position]) is Data:
                guard(fast.run, transaction, batch, opened, as_of)
            if (at := fast.position) < number:
                guard(self._handle, transaction, batch.topics[at], batch.wires[at], opened[at], as_of)
                # Without the lock of the keys. A deployed peer hears an answer only if it lies above all that it sent.
                self._handlers.run_at_once(transaction if at + 1 == number and not more else None)
                fast.position += 1
        transaction.effects.append(partial(self._acknowledge, number, batch.acks))
        self.measure("batch", number)

    def _handle(
        self, transaction: Transaction, topic: str, wire: bytes, opened: Message | SrupError, as_of: int
    ) -> None:
        """Let a message take effect, or say why not."""
        if isinstance(opened, UnknownSenderError) and opened.sender_id == self._identity:
            return  # our own: both ends share a device's topic (docs/protocol/flows.md#f-6)
        try:
            # Whoever takes a key away does so before this message has its effect, or after it.
            with self._keys.lock:
                message, transaction.signer = self._genuine(wire, opened, as_of)
                self._take(transaction, topic, message, wire)
        except SrupError as error:
            self.refuse(Refusal(topic, wire, error))
        finally:
            transaction.signer = None

    def _genuine(self, wire: bytes, opened: Message | SrupError, as_of: int) -> tuple[Message, PublicKey]:
        """Return what its sender's key has signed, or the one that is retiring, and that key; raise why nothing has."""
        if isinstance(opened, Message) and self._keys.withdrawn != as_of:
            [opened] = verify_many([wire], self._keys)  # a key has been taken away since, and it may be this one
        if isinstance(opened, SignatureError):
            frame = decode(wire)
            retiring = self._keys.retiring(frame.sender_id, self._clock())
            if retiring is not None:
                return frame.verify(retiring), retiring
        if isinstance(opened, SrupError):
            raise opened
        return opened, self._keys[opened.sender_id]

    # Acknowledgement.

    def unacknowledged(self) -> int:
        """Return how many messages were taken and are not acknowledged yet because the handlers are far behind."""
        return sum(messages for messages, _ in self._unacknowledged.copy())

    def _acknowledge(self, messages: int, acks: Sequence[Callable[[], None]]) -> None:
        self._unacknowledged.append((messages, acks))
        self._catch_up()

    def _catch_up(self) -> None:
        """Acknowledge what is due, unless the handlers are far behind: then the broker has to wait.

        A message that is merely not taken would be lost to us until the next connection.
        """
        if not self._unacknowledged or self._handlers.backlog.is_long():
            return
        with self._acknowledging:  # the application's thread does this as well, and brokers want it in order
            while self._unacknowledged:
                for ack in self._unacknowledged.popleft()[1]:
                    ack()

    # Refusals.

    def refuse(self, refusal: Refusal) -> None:
        """Count, log and tell that a message had no effect."""
        if self._excuses(refusal):
            return
        error = refusal.error
        self._journal.counts[type(error).__name__] += 1
        # A replay is ordinary, except of a join request: a device whose ids have gone back is locked out.
        ordinary = isinstance(error, ReplayError) and parse_topic(refusal.topic).server is None
        level = logging.INFO if ordinary else logging.WARNING
        text, topic = "%s refused a message on %s: %s: %s%s%s", refusal.topic
        if self._journal.shows(level):  # junk costs its sender nothing, and no more here than it must (T9)
            line = self._refusal_lines.admit(type(error).__name__, time.monotonic())
            if line.shown:
                said = printable(topic), type(error).__name__, printable(str(error), 300), self._key_hint(refusal)
                self._journal.log(level, text, *said, line.note(), topic=topic, error=error)
        handler = self._handlers.named.get("refused")
        # At once: nothing has changed that would have to be durable first.
        call = None if handler is None else Call(lambda: handler(refusal._replace(hint=self._key_hint(refusal))))
        if not self._handlers.submit_refusal(call):
            self._journal.counts["refusals not told"] += 1

    def _key_hint(self, refusal: Refusal) -> str:
        """Return what somebody needs who looks for the wrong key, if a refusal is about one."""
        if not isinstance(refusal.error, SignatureError):
            return ""
        key = self._keys.get(peek(refusal.wire).sender_id)
        return "" if key is None else f" (the key we have for it: fingerprint {key.fingerprint})"
