"""Changes of keys, which go both ways (docs/extensions.md, "Key rotation")."""

from hashlib import sha256
from typing import Any, Final

from ...errors import PolicyError
from ...messages import Data, Response
from ...wire import KEY_ROTATION, Status
from ..events import KeyAnswered, KeyOffered
from ..exchange import Exchange
from ..flow import Flow, Now, Output, Send
from ..policy import check_status
from ..table import ExchangeStart, State, Transition, Trigger

__all__ = ["KeyRotations", "KeyState"]


class KeyState(State):
    """A change of key, seen from either end."""

    NEW = "nothing happened yet"
    DECIDING = "the owner is to say whether the partner's new key counts"
    ANSWERED = "the partner has its answer"
    OFFERED = "the partner is to take our new key"
    TAKEN = "our new key counts"
    REFUSED = "our old key goes on counting"
    UNANSWERED = "the time is over"


_S = KeyState

MAX_OFFERS: Final = 4
"""How many offers of a partner wait for the owner's word at a time (T9)."""

_RESULTS: Final = (Status.ACTION_SUCCESS, Status.ACTION_FAIL)
_REFUSALS: Final = (Status.ACTION_FAIL, Status.DATA_TYPE_UNKNOWN)  # the second by who does not know of rotations


class KeyRotations(Flow):
    """A partner offers its new key, signed by the old one, and learns whether it counts."""

    states = KeyState
    table = {
        (_S.NEW, Data): Transition(_S.DECIDING, "key_offered"),
        (_S.DECIDING, Data): Transition(_S.DECIDING, "same_key"),
        (_S.DECIDING, Trigger.ANSWER): Transition(_S.ANSWERED, "answer"),
        (_S.DECIDING, Trigger.EXPIRE): Transition(_S.ANSWERED),
        (_S.ANSWERED, Data): Transition(_S.ANSWERED, "answer_same_key"),
        (_S.OFFERED, Status.ACTION_SUCCESS): Transition(_S.TAKEN, "key_answered"),
        (_S.TAKEN, Status.ACTION_SUCCESS): Transition(_S.TAKEN),
        **{(_S.OFFERED, status): Transition(_S.REFUSED, "key_answered") for status in _REFUSALS},
        **{(_S.REFUSED, status): Transition(_S.REFUSED) for status in _REFUSALS},
        (_S.OFFERED, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
    }
    starts_by_data_id = {KEY_ROTATION: ExchangeStart(_S.NEW, members_only=False)}
    volatile = frozenset({_S.DECIDING})

    def rotate(self, partner: int, data: bytes, now: float, nonce: bytes, lifetime: float | None = None) -> list[Send]:
        """Offer the partner a new key of ours; KeyAnswered or Unanswered follows. srup.rotation makes ``data``.

        A membership is not needed: one that has ended must not keep an end from learning what became of its offer.
        """
        fields: dict[str, Any] = {"data_id": KEY_ROTATION, "data": data}
        return self.session.ask(partner, _S.OFFERED, Data, now, nonce, lifetime, before_join=True, **fields)

    def answer_key(self, partner: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer a KeyOffered: ACTION_SUCCESS when the new key counts from now on, or ACTION_FAIL."""
        check_status(status, _RESULTS)
        return self.session.decide(partner, token, Trigger.ANSWER, status, now)

    # Effects.

    def key_offered(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A partner wants another key to count for it."""
        if len(exchange.peer.in_state(_S.DECIDING)) >= MAX_OFFERS:
            raise PolicyError(f"{MAX_OFFERS} other keys of {exchange.peer.identity:x} wait already to be taken")
        exchange.detail = _digest(cause)
        return [KeyOffered(exchange.peer.identity, exchange.token, cause.data)]

    def same_key(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The same offer again; a token is good for one."""
        former = cause.data  # what earlier versions have kept of it
        if cause.data_id != KEY_ROTATION or exchange.detail not in (_digest(cause), former):
            raise PolicyError("the token belongs to the offer of another key")
        return []

    def answer_same_key(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The same offer again, which has been answered."""
        return self.same_key(exchange, cause, now) + self.repeat_answer(exchange, cause, now)

    def key_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """A partner answered the offer of a key of ours."""
        return [KeyAnswered(exchange.peer.identity, exchange.token, Status(cause.status))]


def _digest(offer: Data) -> bytes:
    """Return what is remembered of an offer, which may be as long as a message."""
    return sha256(offer.data).digest()
