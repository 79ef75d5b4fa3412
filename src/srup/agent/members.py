"""The members of a server: who is one, on whose topics it listens, and what ends a membership."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import PolicyError
from ..keys import PublicKey
from ..messages import JoinCommand
from ..records import Fact, State
from ..session import Send, ServerSession
from ..session.events import Deregistered, Event, Identified, JoinCommandAnswered, Left, Unanswered
from ..session.flow import Output
from ..transport.topics import Address, device_filter, join_filter, join_topic
from .duty import Duty, Listener
from .facts import INVENTORY, LAST_UPDATE, REPLACED
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Members"]


class Members(Duty):
    """``identities`` are those of the devices that are joined now."""

    def __init__(self, engine: "Engine", session: ServerSession) -> None:
        self.identities: set[int] = set()
        self._engine = engine
        self._session = session
        self._pins: dict[int, PublicKey | None] = {}  # the keys by which devices are known, signed rotations aside

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            Left: self._left,
            Deregistered: self._deregistered,
            Identified: self._identified,
            JoinCommandAnswered: self._join_command_answered,
            Unanswered: self._unanswered,
        }

    @property
    def known(self) -> frozenset[int]:
        """The identities whose keys were noted, because they have sent something that verified."""
        return frozenset(self._pins)

    def members(self) -> int:
        """See :meth:`Duty.members`."""
        return len(self.identities)

    # Life.

    def introduce(self) -> None:
        """See :meth:`Duty.introduce`."""
        journal = self._engine.journal
        text = "%s: public keys of devices that may join: %d"
        journal.log(logging.INFO, text, len(self._engine.keys))
        if self.identities:
            journal.log(logging.INFO, "%s: members from before: %d", len(self.identities))

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`."""
        engine = self._engine
        self._pins = {device: engine.keys.pin(device) for device in self._session.partners()}
        for device in self._session.members:
            self.identities.add(device)
            self.listen(device)
            if state.adopted:  # so that it learns which sequence ids we listen to now
                engine.decide(lambda now, device=device: self._session.identify(device, now, engine.entropy(16)))

    def prepare(self) -> None:
        """See :meth:`Duty.prepare`: a partition hears the joins of its own devices only."""
        if self._engine.host.partition is None:
            self._engine.transport.subscribe(join_filter(self._engine.identity))
        else:
            for device in self._engine.keys:
                self.hear(device)

    def begin(self) -> None:
        """See :meth:`Duty.begin`."""
        if self.identities and "member" in self._engine.handlers.named:
            self._engine.handlers.notify_all("member", sorted(self.identities))

    def expect(self, device: int) -> None:
        """Hear the joins of a device whose key is new here, unless those of all devices are heard anyhow."""
        if self._engine.host.partition is not None:
            self.hear(device)

    def hear(self, device: int) -> None:
        """Hear the joins of one device."""
        self._engine.transport.subscribe(join_topic(self._engine.identity, device))

    # Who is one.

    def enter(self, transaction: Transaction, device: int) -> None:
        """Let a device in; the application is told if it was not in."""
        if device not in self.identities:
            self.identities.add(device)
            self.listen(device)
            self._engine.handlers.notify_durably(transaction, "joined", device, device)
        self._engine.handlers.notify(transaction, "member", device, peer=device)

    def leave(self, device: int) -> None:
        """Take note that a device is no member, if it was one."""
        if device in self.identities:
            self.identities.discard(device)
            self._engine.transport.unsubscribe(device_filter(device))

    def shut_out(self, transaction: Transaction, device: int, known: bool, verb: str, now: float) -> Sequence[Output]:
        """End the membership of a device whose key is gone, and all that is under way with it.

        PolicyError if there was neither a key (``known``) nor anything else.
        """
        engine = self._engine
        asked = self._session.asked_of(device)
        outputs = self._session.revoke(device, now)
        if not known and not outputs:
            raise PolicyError(f"there is nothing to {verb}: no key is registered for {device:x}")
        self._note_pin(device, engine.keys.pin(device))
        done = f"was {verb.removesuffix('e')}ed"
        engine.journal.log(logging.WARNING, "%s: %x %s", device, done, partner=device)
        self.stop_listening(device)
        engine.end_peer(transaction, device, asked, done)
        return outputs

    def command_join(self, device: int, server: int | None, now: float, nonce: bytes) -> list[Send]:
        """Tell a device to join."""
        sends = self._session.command_join(device, now, nonce, server)
        self.listen(device)  # where it answers, member or not
        return sends

    def detect_replaced_key(self, transaction: Transaction, device: int) -> None:
        """An identity whose key the application has replaced is a new partner: it inherits nothing."""
        engine = self._engine
        pin = engine.keys.pin(device)
        before = self._pins.setdefault(device, pin)
        if before is not pin and before != pin:
            self._end_former(transaction, device, pin, "has another key now")

    def key_withdrawn(self, transaction: Transaction, identity: int) -> None:
        """See :meth:`Duty.key_withdrawn`: a device that has no key any more, or another one, is no member."""
        before, pin = self._pins.get(identity), self._engine.keys.pin(identity)
        never_spoke = before is None  # it may have been told to join, or a value waits for it
        concerned = self._session.asked_of(identity) or self._engine.values.wait_for(identity)
        if never_spoke and (pin is not None or not concerned):
            return
        if before == pin and not never_spoke:  # the same one was added again before this turn
            if self._engine.store is not None:
                transaction.changes.facts.append(Fact(identity, REPLACED, None))  # or the next start would end it
            return
        if pin is not None:
            why = "has another key now"
        else:
            why = "was revoked" if before is not None and self._engine.keys.bars(before) else "has no key here any more"
        self._end_former(transaction, identity, pin, why)

    def _end_former(self, transaction: Transaction, device: int, pin: PublicKey | None, why: str) -> None:
        """End all that is under way with whoever had the identity before."""
        engine = self._engine
        self._note_pin(device, pin)
        asked, member = self._session.asked_of(device), self._session.is_member(device)
        if asked or member:
            engine.journal.log(logging.WARNING, f"%s: %x {why}", device, partner=device)
        engine.perform(transaction, self._session.revoke(device, engine.clock()))
        self.stop_listening(device)
        engine.end_peer(transaction, device, asked, why)

    def _note_pin(self, device: int, pin: PublicKey | None) -> None:
        """Take note of the key of a device of which nothing is known under another one any more."""
        if pin is None:
            self._pins.pop(device, None)
        else:
            self._pins[device] = pin

    def sender_verified(self, transaction: Transaction, sender: int) -> None:
        """See :meth:`Duty.sender_verified`."""
        self.detect_replaced_key(transaction, sender)

    def check_address(self, address: Address, sender: int) -> None:
        """See :meth:`Duty.check_address`."""
        if address.device != sender or address.server not in (None, self._engine.identity):
            raise PolicyError(f"sender {sender:x} does not publish on this topic")

    def peer_replaced(self, transaction: Transaction, peer: int) -> None:
        """See :meth:`Duty.peer_replaced`."""
        for name in ("description", "firmware", "version", LAST_UPDATE, INVENTORY):  # of the former one
            self._engine.facts.drop(transaction, peer, name)

    def listen(self, device: int) -> None:
        """Hear what a device says besides that it wants in."""
        self._engine.transport.subscribe(device_filter(device))

    def stop_listening(self, device: int) -> None:
        """Hear a device no more, unless it is a member."""
        if device not in self.identities:
            self._engine.transport.unsubscribe(device_filter(device))

    # Events.

    def _left(self, transaction: Transaction, event: Left) -> None:
        self._engine.journal.log(logging.INFO, "%s: %x has left", event.peer, partner=event.peer)
        self.leave(event.peer)
        self._engine.handlers.notify_durably(transaction, "left", event.peer, event.peer)

    def _deregistered(self, transaction: Transaction, event: Deregistered) -> None:
        engine = self._engine
        engine.journal.log(logging.INFO, "%s drops the key of %x", event.peer, partner=event.peer)
        engine.keys.remove(event.peer)
        self.stop_listening(event.peer)
        engine.handlers.notify_durably(transaction, "deregistered", event.peer, event.peer)

    def _identified(self, transaction: Transaction, event: Identified) -> None:
        self._engine.facts.set(transaction, event.peer, "description", event.text)
        self._engine.requests.settle(transaction, event, event.text)

    def _join_command_answered(self, transaction: Transaction, event: JoinCommandAnswered) -> None:
        self._engine.requests.settle(transaction, event, event.status)
        self.stop_listening(event.peer)

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        if event.request is JoinCommand:
            self.stop_listening(event.peer)
