"""A server's change of its own key while it lasts: who has taken the new key, and who is still to be asked."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from .. import rotation
from ..errors import PolicyError, TransportError
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..session.events import Event, JoinAnswered, KeyAnswered, Unanswered
from ..wire import Status
from .duty import Duty, Listener
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["ServerKey", "ServerKeyRotation"]

OFFERS: Final = 16
"""To how many devices a new key is offered in a row; each offer takes two signatures."""


class ServerKeyRotation:
    """``new`` signs for the devices that have taken it, the old key for all others, up to the time ``until``.

    A device is known by its identity and its key's pin: one that is registered anew begins anew.
    """

    def __init__(self, new: PrivateKey, until: float, devices: KeyRing, done: "Future[frozenset[int]]") -> None:
        self.new = new
        self.until = until
        self.done = done
        self._devices = devices
        self._waiting: dict[int, None] = {}
        self._asked: dict[int, PublicKey] = {}
        self._offers: dict[int, bytes] = {}  # the token of the last one to each device
        self._taken: dict[int, PublicKey] = {}

    def invite(self, device: int) -> None:
        """Put a device on the list of those that are to be asked, unless it has been asked."""
        if not self._same(self._asked, device):
            self._waiting[device] = None

    @property
    def waiting(self) -> bool:
        """Whether somebody is to be asked."""
        return bool(self._waiting)

    def next(self, limit: int) -> Iterator[int]:
        """Take so many devices from the list; each counts as asked."""
        for device in [device for _, device in zip(range(limit), self._waiting, strict=False)]:
            del self._waiting[device]
            pin = self._devices.pin(device)
            if pin is not None:
                self._asked[device] = pin
                yield device

    def offered(self, device: int, token: bytes) -> None:
        """Note the token of the offer to a device: what is said under another one is not about it."""
        self._offers[device] = token

    def take(self, device: int, token: bytes) -> None:
        """Note that a device has taken the key that was offered under this token."""
        if self._offers.get(device) == token and device in self._asked:
            self._taken[device] = self._asked[device]

    def unanswered(self, device: int, token: bytes) -> None:
        """Note that a device may be asked again if this was the offer to it."""
        if self._offers.get(device) == token:
            self.again(device)

    def again(self, device: int) -> None:
        """Note that a device may be asked again: it could not be, or has not answered."""
        self._asked.pop(device, None)
        self._offers.pop(device, None)

    def has(self, device: int) -> bool:
        """Return whether a device has taken the new key."""
        return self._same(self._taken, device)

    def result(self) -> frozenset[int]:
        """Return who has taken the new key."""
        return frozenset(device for device in self._taken if self.has(device))

    def _same(self, noted: dict[int, PublicKey], device: int) -> bool:
        pin = noted.get(device)
        return pin is not None and pin is self._devices.pin(device)


class ServerKey(Duty):
    """Changes the server's key: offers the new one to all members, and drops the old one when its time is over."""

    def __init__(self, engine: "Engine") -> None:
        self.rotation: ServerKeyRotation | None = None  # the one that is under way
        self._engine = engine

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {KeyAnswered: self._key_answered, JoinAnswered: self._join_answered, Unanswered: self._unanswered}

    def rotate(self, new: PrivateKey, until: float, done: "Future[frozenset[int]]", members: Iterable[int]) -> None:
        """Begin to change the key; PolicyError while another change is not over."""
        own = self._engine.own_keys
        if self.rotation is not None:
            raise PolicyError("another rotation of the server's key is not over")
        rotation.check_usable(new.public_key, own.current.public_key)
        self.rotation = ServerKeyRotation(new, until, self._engine.keys, done)
        own.offer(new, self.rotation.has)
        for device in members:
            self.rotation.invite(device)

    def due(self) -> float | None:
        """See :meth:`Duty.due`."""
        if self.rotation is None:
            return None
        return self._engine.clock() if self.rotation.waiting else self.rotation.until

    def tick(self, transaction: Transaction, now: float) -> None:
        """See :meth:`Duty.tick`."""
        if (under_way := self.rotation) is not None:
            self._engine.journal.log_exceptions(lambda: self._go_on(transaction, under_way))

    def stopped(self) -> None:
        """See :meth:`Duty.stopped`."""
        under_way, self.rotation = self.rotation, None
        if under_way is not None:
            under_way.done.set_exception(TransportError("stopped before the overlap of the keys was over"))

    def _go_on(self, transaction: Transaction, under_way: ServerKeyRotation) -> None:
        """Offer the new key to some of those that wait for it, or drop the old one when its time is over."""
        engine = self._engine
        now = engine.clock()
        if now >= under_way.until:
            engine.own_keys.replace(under_way.new)
            self.rotation = None
            under_way.done.set_result(under_way.result())
            return
        for device in under_way.next(OFFERS):
            data = rotation.offer(engine.identity, device, engine.own_keys.current.public_key, under_way.new)
            try:
                sends = engine.session.rotate(device, data, now, engine.entropy(16))
            except PolicyError as error:
                text = "%s could not offer its new key: %s"
                engine.journal.log(logging.WARNING, text, error, partner=device, error=error)
                under_way.again(device)
            else:
                under_way.offered(device, sends[0].message.token)
                engine.perform(transaction, sends)

    def _key_answered(self, transaction: Transaction, event: KeyAnswered) -> None:
        level = logging.INFO if event.status is Status.ACTION_SUCCESS else logging.WARNING
        text, status = "%s: %x answers the offer of a new key with %s", event.status.name
        self._engine.journal.log(level, text, event.peer, status, partner=event.peer, status=status)
        if self.rotation is not None and event.status is Status.ACTION_SUCCESS:
            self.rotation.take(event.peer, event.token)

    def _join_answered(self, transaction: Transaction, event: JoinAnswered) -> None:
        if event.status is Status.JOIN_SUCCESS and self.rotation is not None:
            self.rotation.invite(event.peer)

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        if self.rotation is not None:
            self.rotation.unanswered(event.peer, event.token)
