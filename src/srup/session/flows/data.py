"""Values, which go both ways; what says that they have arrived for good is in :mod:`.receipts`."""

from contextlib import suppress
from typing import Final

from ... import tokens
from ...errors import PolicyError
from ...messages import Data, Message, Response
from ...wire import Status
from .. import exchange as limits
from ..events import DataConfirmed, DataReceived, DataRefused
from ..exchange import Exchange, Peer
from ..flow import Flow, Now, Output, Send
from ..streams import StreamPosition
from ..table import ExchangeStart, State, Transition, Trigger

__all__ = ["DataState", "Values"]


class DataState(State):
    """A value: there is no answer to it but a refusal, unless it asks for a receipt."""

    NEW = "nothing happened yet"
    TAKEN = "handed to the owner"
    SENT = "on its way, or taken"
    UNCONFIRMED = "the partner is to say that it has it for good"
    CONFIRMED = "the partner has it for good"
    REFUSED = "the partner does not know its data_id"
    UNANSWERED = "the time is over"


_S = DataState
_UNKNOWN: Final = Status.DATA_TYPE_UNKNOWN


class Values(Flow):
    """A partner sends a value; with a receipt it is sent again until it is confirmed."""

    states = DataState
    table = {
        (_S.NEW, Data): Transition(_S.TAKEN, "data_received"),
        (_S.SENT, _UNKNOWN): Transition(_S.REFUSED, "data_refused"),
        (_S.REFUSED, _UNKNOWN): Transition(_S.REFUSED),
        (_S.UNCONFIRMED, Trigger.CONFIRM): Transition(_S.CONFIRMED, "data_confirmed"),
        (_S.UNCONFIRMED, _UNKNOWN): Transition(_S.REFUSED, "data_refused"),
        (_S.UNCONFIRMED, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
    }
    starts = {Data: ExchangeStart(_S.NEW, remembered=False)}

    def data(self, partner: int, data_id: str, data: bytes, now: float, nonce: bytes) -> list[Send]:
        """Send a value. There is no answer to it, except DataRefused when the partner does not know ``data_id``."""
        asked = partner, _S.SENT, Data, now, nonce, None
        return self.session.ask(*asked, resend=False, remembered=False, data_id=data_id, data=data)

    def check_data(self, data_id: str, data: bytes) -> None:
        """Raise EncodeError unless a message can hold this value."""
        Data(sequence_id=1, sender_id=self.session.identity, token=b"-", data_id=data_id, data=data)

    def confirmed_data(
        self, partner: int, data_id: str, data: bytes, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Send a value, again and again until the partner has it for good: DataConfirmed, DataRefused or Unanswered.

        The partner takes such values in the order of these calls, and each of them once. It is good for ``lifetime``
        seconds (default: the policy's ``update_lifetime``). PolicyError for a partner that does not bind its tokens,
        which cannot know of receipts (docs/extensions.md, "Receipts").
        """
        session = self.session
        if not session.binds(partner):
            raise PolicyError(f"{partner:x} does not bind its tokens, and knows of no receipts")
        lifetime = session.policy.update_lifetime if lifetime is None else lifetime
        place = session.streams.next_sent(partner, session.unix(now))
        asked = partner, _S.UNCONFIRMED, Data, now, nonce, lifetime
        sends = session.ask(*asked, remembered=False, detail=place, place=place, data_id=data_id, data=data)
        session.streams.set_sent(partner, place)
        return sends

    def may_send_confirmed(self, partner: int) -> bool:
        """Return whether one more value may be sent to this partner now.

        Not if it would be one request too many, nor while values of an earlier stream are not confirmed: a partner that
        has taken one of a later stream does not take them any more.
        """
        under_way = self.session.known.open_of(partner)
        stream = self.session.streams.sent.get(partner, StreamPosition()).stream
        earlier = any(each.state is _S.UNCONFIRMED and each.detail.stream < stream for each in under_way)
        return len(under_way) < limits.MAX_EXCHANGES and not earlier

    def refuse_data(self, partner: int, token: bytes, now: float) -> list[Output]:
        """Answer a DataReceived whose ``data_id`` nobody here knows."""
        peer = self.session.known.peers.get(partner)
        if peer is None:
            raise PolicyError(f"{partner:x} has sent nothing")
        bound = tokens.parse(token)
        if bound is not None and bound.place is not None:
            self.session.streams.refuse(partner, StreamPosition(*bound.place))
        unremembered = Exchange(peer, token, _S.TAKEN, now, mine=False)
        with suppress(PolicyError):  # no sequence id is left for that partner, and it has seen to that itself
            return [self.session.send(unremembered, Response, status=_UNKNOWN)]
        return []

    def calls_handler(self, peer: Peer, message: Message) -> bool:
        """See :meth:`Flow.calls_handler`."""
        return True

    # Effects.

    def data_received(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A partner sent a value."""
        told = DataReceived(exchange.peer.identity, exchange.token, cause.data_id, cause.data)
        return [told, *self.session.value_came(exchange.peer, cause, now)]

    def data_confirmed(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A partner has a value of ours for good: there is nothing left to remember."""
        self.session.known.forget(exchange)
        return [DataConfirmed(exchange.peer.identity, exchange.token)]

    def data_refused(self, exchange: Exchange, cause: Response | Data, now: Now) -> list[Output]:
        """A partner does not know a value of ours."""
        return [DataRefused(exchange.peer.identity, exchange.token)]
