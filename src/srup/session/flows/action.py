"""Actions, which go both ways (docs/protocol/flows.md#actions-data-identification)."""

from typing import Any, Final

from ...messages import Action, Message, Response
from ...wire import Status
from ..events import ActionAnswered, ActionRequested
from ..exchange import Exchange, Peer
from ..flow import Flow, Now, Output, Send
from ..policy import check_status
from ..table import ExchangeStart, State, Transition, Trigger

__all__ = ["ActionState", "Actions"]


class ActionState(State):
    """An action, seen from either end."""

    NEW = "nothing happened yet"
    ASKED = "the partner is to do it"
    RUNNING = "it is being done here"
    ANSWERED = "done or refused"
    UNANSWERED = "the time is over"


_S = ActionState
_RESULTS: Final = (Status.ACTION_SUCCESS, Status.ACTION_UNKNOWN, Status.ACTION_FAIL)


class Actions(Flow):
    """A partner is asked to do something, and says what came of it."""

    states = ActionState
    table = {
        (_S.NEW, Action): Transition(_S.RUNNING, "begin_action"),
        (_S.RUNNING, Action): Transition(_S.RUNNING),
        (_S.RUNNING, Trigger.ANSWER): Transition(_S.ANSWERED, "answer"),
        (_S.RUNNING, Trigger.RESTART): Transition(_S.RUNNING, "action_again"),
        (_S.ANSWERED, Action): Transition(_S.ANSWERED, "repeat_answer"),
        **{(_S.ASKED, status): Transition(_S.ANSWERED, "action_answered") for status in _RESULTS},
        **{(_S.ANSWERED, status): Transition(_S.ANSWERED) for status in _RESULTS},
        (_S.ASKED, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
        (_S.RUNNING, Trigger.LEAVE): Transition(_S.ANSWERED),
        (_S.RUNNING, Trigger.EXPIRE): Transition(_S.ANSWERED),
    }
    starts = {Action: ExchangeStart(_S.NEW)}

    def action(
        self, partner: int, action_id: int, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Ask the partner to do an action; ActionAnswered or Unanswered follows."""
        return self.session.ask(partner, _S.ASKED, Action, now, nonce, lifetime, action_id=action_id)

    def answer_action(self, partner: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer an ActionRequested with ACTION_SUCCESS, ACTION_UNKNOWN or ACTION_FAIL."""
        check_status(status, _RESULTS)
        return self.session.decide(partner, token, Trigger.ANSWER, status, now)

    def calls_handler(self, peer: Peer, message: Message) -> bool:
        """See :meth:`Flow.calls_handler`."""
        return True

    # Effects.

    def begin_action(self, exchange: Exchange, cause: Action, now: Now) -> list[Output]:
        """A partner asks for an action."""
        exchange.detail = cause.action_id
        return [ActionRequested(exchange.peer.identity, exchange.token, cause.action_id)]

    def action_again(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """An action was being done when the process ended."""
        return [ActionRequested(exchange.peer.identity, exchange.token, exchange.detail)]

    def action_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """A partner answered an action of ours."""
        told = ActionAnswered(exchange.peer.identity, exchange.token, Status(cause.status))
        return [told, *self.session.answered(exchange, cause, now)]
