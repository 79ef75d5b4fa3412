"""A server asks what a device is (docs/protocol/flows.md#f-57)."""

from typing import TYPE_CHECKING

from ...errors import PolicyError
from ...messages import Data, IdRequest, Message
from ...wire import IDENTIFICATION_RESPONSE
from ..events import DataReceived, Identified
from ..exchange import Exchange, Peer
from ..flow import Flow, Now, Output, Send
from ..table import ExchangeStart, State, Transition, Trigger

if TYPE_CHECKING:
    from ..device import DeviceSession

__all__ = ["DeviceIdentification", "IdentificationState", "ServerIdentification"]


class IdentificationState(State):
    """The question what a device is, seen from either end."""

    NEW = "nothing happened yet"
    IDENTIFYING = "the device is to say what it is"
    ANSWERED = "the answer is on its way, or here"
    UNANSWERED = "the time is over"


_S = IdentificationState


class DeviceIdentification(Flow):
    """The device's end."""

    session: "DeviceSession"
    states = IdentificationState
    table = {
        (_S.NEW, IdRequest): Transition(_S.ANSWERED, "identify"),
        (_S.ANSWERED, IdRequest): Transition(_S.ANSWERED, "identify"),
    }
    starts = {IdRequest: ExchangeStart(_S.NEW)}

    def identify(self, exchange: Exchange, cause: IdRequest, now: Now) -> list[Output]:
        """Say what we are: a Data message with a token of its own (docs/protocol/flows.md#f-57)."""
        answer = self.session.unremembered(exchange.peer.identity, _S.ANSWERED, now.time, now.nonce)
        data = self.session.description.encode()
        return [self.session.send(answer, Data, data_id=IDENTIFICATION_RESPONSE, data=data)]


class ServerIdentification(Flow):
    """The server's end."""

    states = IdentificationState
    table = {
        (_S.IDENTIFYING, Data): Transition(_S.ANSWERED, "identified"),
        (_S.NEW, Data): Transition(_S.ANSWERED, "identified_under_new_token"),
        (_S.IDENTIFYING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
    }
    # The answer has a token of its own (docs/protocol/flows.md#f-58).
    starts_by_data_id = {IDENTIFICATION_RESPONSE: ExchangeStart(_S.NEW, remembered=False)}

    def identify(self, device: int, now: float, nonce: bytes) -> list[Send]:
        """Ask a device what it is; Identified or Unanswered follows."""
        return self.session.ask(device, _S.IDENTIFYING, IdRequest, now, nonce, None)

    def calls_handler(self, peer: Peer, message: Message) -> bool:
        """See :meth:`Flow.calls_handler`: what nobody asked for is a value like any other."""
        return not peer.in_state(_S.IDENTIFYING)

    # Effects.

    def identified_under_new_token(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A device said what it is; that nobody asked for it makes a value of it."""
        waiting = exchange.peer.in_state(_S.IDENTIFYING)
        if not waiting:
            return [DataReceived(exchange.peer.identity, exchange.token, cause.data_id, cause.data)]
        return self.session.step_all(waiting, Data, cause, now)

    def identified(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A device said what it is."""
        if cause.data_id != IDENTIFICATION_RESPONSE:
            raise PolicyError(f"{cause.data_id[:80]!r} does not say what {exchange.peer.identity:x} is")
        told = Identified(exchange.peer.identity, exchange.token, cause.data.decode(errors="replace"))
        return [told, *self.session.answered(exchange, cause, now)]
