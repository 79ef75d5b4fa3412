"""A device's change of its own key: the offer that the server has not answered yet, and what its answer leads to."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import rotation
from ..errors import PolicyError, UnansweredError
from ..keys import PrivateKey
from ..session import Send
from ..session.events import Event, KeyAnswered, Unanswered
from ..wire import Status
from .duty import Duty, Listener
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["KeyChange"]


class KeyChange(Duty):
    """Offers a server our next key; the old one signs until the server has taken it."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._offer: tuple[int, bytes] | None = None  # to which server, under which token

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {KeyAnswered: self._key_answered, Unanswered: self._unanswered}

    def offer(self, server: int, key: PrivateKey, lifetime: float | None, now: float, nonce: bytes) -> list[Send]:
        """Offer a key; PolicyError while another offer is not answered."""
        engine = self._engine
        if engine.own_keys.offered is not None:
            raise PolicyError("the server has not yet answered the change to another key")
        data = rotation.offer(engine.identity, server, engine.own_keys.current.public_key, key)
        sends = engine.session.rotate(server, data, now, nonce, lifetime)
        engine.own_keys.offer(key)
        self._offer = server, sends[0].message.token
        return sends

    def give_up(self, transaction: Transaction, successor: int) -> None:
        """End the change: it was to be one server's affair, and the next one knows us by the old key."""
        if self._offer is not None:
            server, token = self._offer
            self._withdraw()
            why = f"{server:x} sent us to {successor:x} and has not answered; offer the key to that one"
            self._engine.requests.give_up(transaction, server, token, UnansweredError(why))

    def _withdraw(self) -> None:
        self._offer = None
        self._engine.own_keys.withdraw()

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        if (event.peer, event.token) == self._offer:
            engine, self._offer = self._engine, None
            engine.own_keys.withdraw_unanswered(engine.clock() + engine.session.policy.key_overlap)

    def _key_answered(self, transaction: Transaction, event: KeyAnswered) -> None:
        engine = self._engine
        result: object = None
        new = engine.own_keys.offered
        if (event.peer, event.token) != self._offer or new is None:
            result = PolicyError(f"the offer that server {event.peer:x} answers has been given up")
        elif event.status is Status.ACTION_SUCCESS:
            self._offer = None
            engine.own_keys.replace(new, engine.clock() + engine.session.policy.key_overlap)
            text = "%s: server %x has taken the new key %r"
            engine.journal.log(logging.INFO, text, event.peer, new, partner=event.peer)
        else:
            self._withdraw()
            result = PolicyError(f"server {event.peer:x} answers {event.status.name}")
        engine.requests.settle(transaction, event, result)
