"""Joins, as a device sees them: how it gets in, and what proves that it is the thing in one's hand.

A simple join asks and is answered. In a human-moderated and in a machine-observed one the server sends the device a
sealed value; a person, or another device that can read what the first one shows, compares it with the server's. The
value is opaque here: its owner makes, seals and opens it (docs/protocol/flows.md#joins). The server's end
is :mod:`.join_server`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ...errors import PolicyError
from ...messages import (
    Data,
    HumanJoinRequest,
    HumanJoinResponse,
    JoinCommand,
    JoinRequest,
    Message,
    ObservationRequest,
    ObservedJoinRequest,
    ObservedJoinResponse,
    Response,
)
from ...printable import printable
from ...update import MAX_REASON
from ...wire import JOIN_OBSERVER, JOIN_REASON, Status
from ..events import (
    JoinAnswered,
    JoinCommanded,
    JoinExplained,
    JoinValueReceived,
    ObservationRequested,
    ObserverNamed,
    Unexpected,
)
from ..exchange import Exchange, Peer
from ..flow import Flow, Now, Output, Send
from ..policy import check_status
from ..table import ExchangeStart, State, Transition, Trigger

if TYPE_CHECKING:
    from ..device import DeviceSession

__all__ = [
    "JOIN_RESULTS",
    "MODERATED",
    "OBSERVATIONS",
    "OBSERVER_SIZE",
    "REQUESTS",
    "WAITING",
    "DeviceJoins",
    "JoinState",
]

OBSERVER_SIZE: Final = 8
"""The bytes of an identity in a Data message named JOIN_OBSERVER."""


class JoinState(State):
    """Where a join, a join command or an observation stands; both ends see the same names."""

    NEW = "nothing happened yet"
    ASKED = "the server is to let the device in"
    HUMAN_ASKED = "the server is to send the value that a person will compare"
    OBSERVED_ASKED = "the server is to send the value that the observer will compare"
    SHOWING = "the device shows the value; the server is to let it in"
    WITHDRAWN = "the device has asked anew or left; the server may answer all the same"
    DECIDING = "the application is to say whether the device may join"
    PREPARING = "a value is to be made for the device"
    COMPARING = "the value that the device shows is being compared"
    COMMANDED = "the device is to join"
    OBSERVING = "the observer is to say what the other device shows"
    ANSWERED = "it is decided"
    UNANSWERED = "the time is over"


_S = JoinState
JOIN_RESULTS: Final = (Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL)
OBSERVATIONS: Final = (Status.OBSERVED_JOIN_VALID, Status.OBSERVED_JOIN_INVALID, Status.OBSERVED_JOIN_FAIL)
REQUESTS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)
MODERATED: Final[Mapping[type[Message], type[Message]]] = {
    HumanJoinRequest: HumanJoinResponse,
    ObservedJoinRequest: ObservedJoinResponse,
}
"""What carries the value, by what asks for it."""

WAITING: Final = (_S.ASKED, _S.HUMAN_ASKED, _S.OBSERVED_ASKED, _S.SHOWING)
"""States in which a device waits to be let in."""


class DeviceJoins(Flow):
    """How a device joins, obeys join commands, and observes others."""

    session: "DeviceSession"
    states = JoinState
    table = {
        **{(state, status): Transition(_S.ANSWERED, "join_answered") for state in WAITING for status in JOIN_RESULTS},
        **{(state, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered") for state in WAITING},
        **{(state, Trigger.WITHDRAW): Transition(_S.WITHDRAWN) for state in WAITING},
        **{(_S.WITHDRAWN, status): Transition(_S.ANSWERED, "withdrawn_join_answered") for status in JOIN_RESULTS},
        **{(_S.WITHDRAWN, answer): Transition(_S.WITHDRAWN) for answer in (*MODERATED.values(), Data)},
        **{(_S.ANSWERED, status): Transition(_S.ANSWERED) for status in JOIN_RESULTS},
        **{(state, Data): Transition(state, "join_explained") for state in (*WAITING, _S.ANSWERED)},
        (_S.HUMAN_ASKED, HumanJoinResponse): Transition(_S.SHOWING, "value_received"),
        (_S.OBSERVED_ASKED, ObservedJoinResponse): Transition(_S.SHOWING, "value_received"),
        **{(_S.SHOWING, answer): Transition(_S.SHOWING, "value_changed") for answer in MODERATED.values()},
        **{(_S.ANSWERED, answer): Transition(_S.ANSWERED) for answer in MODERATED.values()},
        # Deployed servers send the value under a token of their own.
        (_S.NEW, HumanJoinResponse): Transition(_S.ANSWERED, "value_under_new_token"),
        (_S.NEW, ObservedJoinResponse): Transition(_S.ANSWERED, "value_under_new_token"),
        (_S.NEW, JoinCommand): Transition(_S.ANSWERED, "join_commanded"),
        (_S.ANSWERED, JoinCommand): Transition(_S.ANSWERED, "join_commanded_again"),
        (_S.NEW, ObservationRequest): Transition(_S.OBSERVING, "observation_requested"),
        (_S.OBSERVING, ObservationRequest): Transition(_S.OBSERVING),
        (_S.OBSERVING, Trigger.ANSWER): Transition(_S.ANSWERED, "answer"),
        (_S.OBSERVING, Trigger.LEAVE): Transition(_S.UNANSWERED),
        (_S.OBSERVING, Trigger.EXPIRE): Transition(_S.UNANSWERED),
        (_S.ANSWERED, ObservationRequest): Transition(_S.ANSWERED, "repeat_answer"),
    }
    starts = {
        HumanJoinResponse: ExchangeStart(_S.NEW, members_only=False, remembered=False),
        ObservedJoinResponse: ExchangeStart(_S.NEW, members_only=False, remembered=False),
        JoinCommand: ExchangeStart(_S.NEW, members_only=False),
        ObservationRequest: ExchangeStart(_S.NEW),
    }
    allowed_before_join = frozenset(REQUESTS)
    idempotent = frozenset({JoinRequest})
    # A new start asks anew, and so does the server.
    volatile = frozenset({*WAITING, _S.WITHDRAWN, _S.OBSERVING})

    def join(self, server: int, now: float, nonce: bytes) -> list[Send]:
        """Ask to be let in; JoinAnswered or Unanswered follows. PolicyError for a server that is not trusted."""
        return self._join(server, _S.ASKED, JoinRequest, now, nonce, None)

    def join_human(self, server: int, now: float, nonce: bytes) -> list[Send]:
        """Ask for a join that a person moderates; JoinValueReceived comes first, with the value to show."""
        return self._join(server, _S.HUMAN_ASKED, HumanJoinRequest, now, nonce, self.session.policy.join_lifetime)

    def join_observed(self, server: int, observer: int, now: float, nonce: bytes) -> list[Send]:
        """Ask for a join that the device ``observer`` observes; JoinValueReceived comes first."""
        lifetime = self.session.policy.join_lifetime
        return self._join(server, _S.OBSERVED_ASKED, ObservedJoinRequest, now, nonce, lifetime, observer_id=observer)

    def answer_observation(self, server: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer an ObservationRequested with OBSERVED_JOIN_VALID, OBSERVED_JOIN_INVALID or OBSERVED_JOIN_FAIL."""
        check_status(status, OBSERVATIONS)
        return self.session.decide(server, token, Trigger.ANSWER, status, now)

    # Effects.

    def join_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server answered the join."""
        status, peer = Status(cause.status), exchange.peer
        if self.session.freshness.overtaken(peer, cause):
            # A repetition of an older answer does not contradict a newer one, and the join has ended all the same.
            agrees = peer.member == (status is Status.JOIN_SUCCESS)
            return [JoinAnswered(peer.identity, exchange.token, status)] if agrees else []
        self.session.set_membership_id(peer, cause.sequence_id)
        peer.member = status is Status.JOIN_SUCCESS
        dropped = [] if peer.member else self.session.drop_orders(peer, now.time)
        return [JoinAnswered(peer.identity, exchange.token, status), *dropped]

    def withdrawn_join_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server answered a join that we ask for no more: that counts for it, but a refusal changes nothing.

        Nor does anything if we have asked to leave since: the server has heard that behind this, or will.
        """
        asked = 0 if exchange.request is None else exchange.request.sequence_id
        if self.session.leaving.asked_since(exchange.peer, asked):
            return []
        before = exchange.peer.member
        outputs = self.join_answered(exchange, cause, now)
        return outputs if before or exchange.peer.member else []

    def join_explained(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The server says why it does not let us in, or names an observer whose word would."""
        peer, token = exchange.peer.identity, exchange.token
        if cause.data_id == JOIN_REASON:
            return [JoinExplained(peer, token, printable(cause.data.decode(errors="replace"), MAX_REASON))]
        asked_simply = exchange.state in (_S.ASKED, _S.ANSWERED)
        if cause.data_id == JOIN_OBSERVER and len(cause.data) == OBSERVER_SIZE and asked_simply:
            return [ObserverNamed(peer, token, int.from_bytes(cause.data, "little"))]
        raise PolicyError(f"{cause.data_id[:80]!r} does not belong to a join")

    def value_received(
        self, exchange: Exchange, cause: HumanJoinResponse | ObservedJoinResponse, now: Now
    ) -> list[Output]:
        """The server sent the value to show. It is asked again, more and more slowly, so that its answer gets here."""
        if exchange.request is not None:
            self.session.expect(exchange, exchange.request, resend=True)
        exchange.detail = cause.sealed
        return [JoinValueReceived(exchange.peer.identity, exchange.token, cause.sealed)]

    def value_changed(
        self, exchange: Exchange, cause: HumanJoinResponse | ObservedJoinResponse, now: Now
    ) -> list[Output]:
        """The same value once more; or another one, of a server that has forgotten the first, as after a restart."""
        return [] if cause.sealed == exchange.detail else self.value_received(exchange, cause, now)

    def value_under_new_token(
        self, exchange: Exchange, cause: HumanJoinResponse | ObservedJoinResponse, now: Now
    ) -> list[Output]:
        """The same from a deployed server: the join goes on under this token (docs/protocol/flows.md#f-37)."""
        peer = exchange.peer
        waiting = peer.in_state(*WAITING)
        asked = next((mine for mine in waiting if MODERATED.get(type(mine.request)) is type(cause)), None)  # type: ignore[arg-type]
        if asked is None or self.session.binds_tokens(peer):
            raise PolicyError(f"{peer.identity:x} sends a value that no join of ours asked for")
        self.session.known.rename(asked, cause.token)
        return self.session.step(asked, type(cause), cause, now)

    def join_commanded(self, exchange: Exchange, cause: JoinCommand, now: Now) -> list[Output]:
        """A server wants us: itself, or our present one for another that we know (T10)."""
        peer, session = exchange.peer, self.session
        target = peer.identity if cause.device_id == session.identity else cause.device_id
        allowed = peer.member or (target == peer.identity and target in session.commanders)
        if target in session.servers and allowed:
            if target != peer.identity and not session.can_send(peer):
                raise PolicyError(f"no sequence id is left to leave {peer.identity:x} with")
            return [JoinCommanded(peer.identity, exchange.token, target)]
        why = f"{peer.identity:x} has no right to send us to {target:x}"
        unexpected = Unexpected(peer.identity, exchange.token, JoinCommand, why)
        if not session.binds_tokens(peer):  # a deployed server would not survive the refusal
            return [unexpected]
        return [unexpected, *self.answer(exchange, Status.JOIN_REFUSED, now)]

    def join_commanded_again(self, exchange: Exchange, cause: JoinCommand, now: Now) -> list[Output]:
        """The same command again: what came of it stands."""
        return [] if exchange.status is None else self.repeat_answer(exchange, cause, now)

    def observation_requested(self, exchange: Exchange, cause: ObservationRequest, now: Now) -> list[Output]:
        """The server wants to know what another device shows."""
        if cause.joining_device_id == self.session.identity:
            raise PolicyError("a device cannot observe itself")
        return [ObservationRequested(exchange.peer.identity, exchange.token, cause.joining_device_id, cause.sealed)]

    # Mechanism.

    def stop(self, server: Peer, now: float, before: int | None = None) -> None:
        """Ask no more for what was asked for, or what was asked for before this sequence id.

        The latest join counts, and leaving ends those before it, which would bring us back in.
        """
        for join in server.in_state(*WAITING):
            asked = join.request.sequence_id if join.request is not None else 0
            if before is None or asked < before:
                self.session.step(join, Trigger.WITHDRAW, None, Now(now, b""))
                self.session.known.schedule(join, now)

    def _join(
        self,
        server: int,
        state: JoinState,
        request: type[Message],
        now: float,
        nonce: bytes,
        lifetime: float | None,
        **fields: Any,
    ) -> list[Send]:
        session = self.session
        if server not in session.servers:
            raise PolicyError(f"{server:x} is none of this device's servers")
        # A receipt shows that the server is no deployed one, before anything else depends on that.
        receipt = not session.binds(server)
        sends = session.ask(server, state, request, now, nonce, lifetime, receipt=receipt, **fields)
        peer = session.peer(server)
        self.stop(peer, now, sends[0].message.sequence_id)
        session.leaving.joins_anew(peer)
        return sends
