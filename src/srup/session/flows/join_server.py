"""Joins, as a server sees them: it lets devices in, tells them to come, and has observers look at them.

The value of a moderated join is opaque here: its owner makes it, seals it and compares (docs/protocol/flows.md#joins).
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...errors import EncodeError, PolicyError
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
    HumanJoinRequested,
    JoinAnswered,
    JoinCommandAnswered,
    JoinRequested,
    JoinWithdrawn,
    Observed,
    ObservedJoinRequested,
)
from ..exchange import Exchange, Peer
from ..flow import Flow, Now, Output, Send
from ..freshness import key_text
from ..persistence import record
from ..policy import check_status
from ..table import ExchangeStart, Transition, Trigger
from .join import JOIN_RESULTS, MODERATED, OBSERVATIONS, OBSERVER_SIZE, REQUESTS, JoinState

if TYPE_CHECKING:
    from ..engine import Session

__all__ = ["Moderated", "ServerJoins"]

MAX_MODERATED: Final = 1024
"""How many joins may wait for a person or an observer at a time; the oldest gives way to a new one (T9)."""

MAX_OBSERVATIONS: Final = 3
"""How many questions about one device may be withdrawn within ``first_retry`` before no more is asked (T9)."""


@record("Moderated")
class Moderated(NamedTuple):
    """A join that waits for somebody's word: what carries the value, the value, the observer, and the last moment.

    And the beginning of the fingerprint of the key that has signed the request: the device may not know that another
    one counts for it by now.
    """

    response: type[Message]
    sealed: bytes = b""
    observer: int | None = None
    until: float = 0.0  # how long the device may ask for it
    signer: str = ""


_S = JoinState
_PENDING: Final = (_S.DECIDING, _S.PREPARING, _S.COMPARING)


class ServerJoins(Flow):
    """How a server lets devices in."""

    states = JoinState
    table = {
        (_S.NEW, JoinRequest): Transition(_S.DECIDING, "join_requested"),
        (_S.NEW, HumanJoinRequest): Transition(_S.PREPARING, "human_join_requested"),
        (_S.NEW, ObservedJoinRequest): Transition(_S.PREPARING, "observed_join_requested"),
        **{(state, request): Transition(state) for state in (_S.DECIDING, _S.PREPARING) for request in REQUESTS},
        (_S.PREPARING, Trigger.SHOW): Transition(_S.COMPARING, "send_value"),
        **{(_S.COMPARING, request): Transition(_S.COMPARING, "repeat_value") for request in MODERATED},
        **{(state, Trigger.ANSWER): Transition(_S.ANSWERED, "answer_to_join") for state in _PENDING},
        (_S.DECIDING, Trigger.EXPIRE): Transition(_S.UNANSWERED),
        **{
            (state, Trigger.EXPIRE): Transition(_S.ANSWERED, "join_timed_out") for state in (_S.PREPARING, _S.COMPARING)
        },
        **{(state, Trigger.WITHDRAW): Transition(_S.UNANSWERED, "join_withdrawn") for state in _PENDING},
        (_S.DECIDING, Trigger.RESTART): Transition(_S.DECIDING, "join_again"),
        # The values are lost with the process: the device gets another one.
        **{(state, Trigger.RESTART): Transition(_S.PREPARING, "moderated_again") for state in _PENDING[1:]},
        **{(_S.ANSWERED, request): Transition(_S.ANSWERED, "repeat_join_answer") for request in REQUESTS},
        (_S.COMMANDED, Trigger.OBEYED): Transition(_S.ANSWERED, "command_answered"),
        (_S.COMMANDED, Status.JOIN_REFUSED): Transition(_S.ANSWERED, "command_answered"),
        (_S.ANSWERED, Status.JOIN_REFUSED): Transition(_S.ANSWERED),
        (_S.COMMANDED, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
        **{(_S.OBSERVING, status): Transition(_S.ANSWERED, "observed") for status in OBSERVATIONS},
        **{(_S.ANSWERED, status): Transition(_S.ANSWERED) for status in OBSERVATIONS},
        (_S.OBSERVING, Trigger.WITHDRAW): Transition(_S.UNANSWERED, "observed"),  # the observer is gone
        (_S.OBSERVING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "observed"),
    }
    starts = {request: ExchangeStart(_S.NEW, members_only=False) for request in REQUESTS}
    allowed_before_join = frozenset({JoinCommand})
    idempotent = frozenset({JoinCommand})
    volatile = frozenset({_S.OBSERVING})  # the observer is asked anew, with a new value

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self.moderated: dict[Exchange, None] = {}  # joins that wait for a person or an observer, the oldest first
        self.observing: dict[int, Exchange] = {}  # the open question to an observer, by the device that joins
        self.withdrawn_at: dict[int, tuple[float, ...]] = {}  # when the last ones were withdrawn, the latest last

    def answer_join(
        self, device: int, token: bytes, status: Status, now: float, observer: int | None = None, why: str = ""
    ) -> list[Output]:
        """Answer a join with JOIN_SUCCESS, JOIN_REFUSED or JOIN_FAIL; ``why`` says in words why it is not the first.

        With a refusal of a simple join ``observer`` names a device whose word would let this one in.
        """
        check_status(status, JOIN_RESULTS)
        if observer is not None and status is not Status.JOIN_REFUSED:
            raise EncodeError("status", "an observer is named with JOIN_REFUSED only")
        return self.session.decide(device, token, Trigger.ANSWER, (status, observer, why), now)

    def show_value(self, device: int, token: bytes, sealed: bytes, now: float) -> list[Output]:
        """Send the value, sealed to the device, that it is to show (HumanJoinRequested, ObservedJoinRequested)."""
        return self.session.decide(device, token, Trigger.SHOW, sealed, now)

    def observe(self, observer: int, device: int, token: bytes, sealed: bytes, now: float, nonce: bytes) -> list[Send]:
        """Ask ``observer`` to compare what ``device`` shows with this value, sealed to it; Observed follows.

        PolicyError when the observer is not joined or is the device itself, or when the join is not at this point.
        """
        join = self.session.known.find(device, token)
        if observer == device:
            raise PolicyError(f"{device:x} cannot observe itself")
        if join is None or join.state is not _S.COMPARING:
            raise PolicyError(f"{device:x} shows no value under this token")
        left = join.expiry - now
        if left <= 0:
            raise PolicyError(f"the time of the join of {device:x} is up")
        if len(self._lately_withdrawn(device, now)) >= MAX_OBSERVATIONS:
            raise PolicyError(f"{device:x} asks to be observed more often than an observer can look")
        about, state = (device, token), _S.OBSERVING
        fields: dict[str, Any] = {"joining_device_id": device, "sealed": sealed}
        sends = self.session.ask(observer, state, ObservationRequest, now, nonce, left, detail=about, **fields)
        self._stop_observing(device, now)
        self.observing[device] = self.session.peer(observer).exchanges[sends[0].message.token]
        return sends

    def command_join(self, device: int, now: float, nonce: bytes, server: int | None = None) -> list[Send]:
        """Tell a device to join us, or ``server`` instead, which only a member does; JoinCommandAnswered follows.

        Unanswered follows when nothing came of it. ``server`` is an extension: deployed devices take the number for
        their own identity.
        """
        if server == device:
            raise PolicyError(f"{device:x} cannot be sent to itself")
        if server == self.session.identity:
            server = None
        if server is not None and not self.session.is_member(device):
            raise PolicyError(f"{device:x} is not joined: it would not go to another server at our word")
        target = device if server is None else server
        return self.session.ask(device, _S.COMMANDED, JoinCommand, now, nonce, None, detail=server, device_id=target)

    def calls_handler(self, peer: Peer, message: Message) -> bool:
        """See :meth:`Flow.calls_handler`: the application decides, or is told how it was decided."""
        return True

    # Effects.

    def join_requested(self, exchange: Exchange, cause: JoinRequest, now: Now) -> list[Output]:
        """A device wants in."""
        self._note_wish(exchange.peer, cause)
        # What was to be compared is so no more: when its time was over it would put out a device that has got in.
        former = exchange.peer.in_state(_S.PREPARING, _S.COMPARING)
        withdrawn = self.session.step_all(former, Trigger.WITHDRAW, None, now)
        return [*withdrawn, JoinRequested(exchange.peer.identity, exchange.token)]

    def human_join_requested(self, exchange: Exchange, cause: HumanJoinRequest, now: Now) -> list[Output]:
        """A device wants in, and a person is to compare what it shows."""
        self._note_wish(exchange.peer, cause)
        made_room = self._moderate(exchange, Moderated(HumanJoinResponse), now)
        return [*made_room, *self._to_be_compared(exchange)]

    def observed_join_requested(self, exchange: Exchange, cause: ObservedJoinRequest, now: Now) -> list[Output]:
        """A device wants in, and another one is to compare what it shows."""
        self._note_wish(exchange.peer, cause)
        made_room = self._moderate(exchange, Moderated(ObservedJoinResponse, observer=cause.observer_id), now)
        return [*made_room, *self._to_be_compared(exchange)]

    def join_again(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A join was to be decided when the process ended."""
        return [JoinRequested(exchange.peer.identity, exchange.token)]

    def moderated_again(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """Values were being compared when the process ended, and are lost with it: the device gets another one."""
        self.moderated[exchange] = None
        return self._to_be_compared(exchange)

    def send_value(self, exchange: Exchange, cause: bytes, now: Now) -> list[Output]:
        """The value is there."""
        send = self.session.send(exchange, exchange.detail.response, sealed=cause)
        exchange.detail = exchange.detail._replace(sealed=cause)
        return [send]

    def repeat_value(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The device asks again: it may have missed the value."""
        return [self.session.send(exchange, exchange.detail.response, sealed=exchange.detail.sealed)]

    def answer_to_join(self, exchange: Exchange, cause: tuple[Status, int | None, str], now: Now) -> list[Output]:
        """It is decided."""
        status, observer, why = cause
        peer, session = exchange.peer, self.session
        outputs: list[Output] = []
        if observer is not None and session.binds_tokens(peer):  # a deployed device would not survive it
            named = observer.to_bytes(OBSERVER_SIZE, "little")
            outputs = [session.send(exchange, Data, data_id=JOIN_OBSERVER, data=named)]
        outputs += self._explain(exchange, why)
        outputs += [JoinAnswered(peer.identity, exchange.token, status, why), *self.answer(exchange, status, now)]
        self.moderated.pop(exchange, None)
        self._stop_observing(peer.identity, now.time)
        peer.member = status is Status.JOIN_SUCCESS
        if not peer.member:
            return [*outputs, *session.membership_lost(peer, exchange.token, now.time)]
        return [
            *outputs,
            *self.obeyed(peer, now, handed_over=False),
            *session.repeat_unanswered(peer.identity, now.time),
        ]

    def repeat_join_answer(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Answer as before, unless the device has been put out since: it may have missed both."""
        if exchange.status is Status.JOIN_SUCCESS and not exchange.peer.member:
            return self.answer(exchange, Status.JOIN_REFUSED, now)
        return self.repeat_answer(exchange, cause, now)

    def join_timed_out(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """Nobody compared the values in time. As long as the device can ask for this join it is answered the same."""
        self.moderated.pop(exchange, None)
        self._stop_observing(exchange.peer.identity, now.time)
        exchange.peer.member = False  # the device will think so when it gets the answer
        why = "nobody has compared the values in time"
        outputs: list[Output] = [JoinAnswered(exchange.peer.identity, exchange.token, Status.JOIN_FAIL, why)]
        with suppress(PolicyError):  # no sequence id is left, which is this device's trouble and not that of the others
            outputs += self._explain(exchange, why)
            outputs += self.answer(exchange, Status.JOIN_FAIL, now)
        # It was written by a process whose clock may have been another one.
        exchange.expiry = min(exchange.detail.until, now.time + self.session.policy.update_lifetime)
        if exchange.expiry > now.time:
            self.session.remember(exchange, now.time)
        return [*outputs, *self.session.membership_lost(exchange.peer, exchange.token, now.time)]

    def join_withdrawn(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """The device began another join, which counts instead, or is no longer to be let in."""
        self.moderated.pop(exchange, None)
        self._stop_observing(exchange.peer.identity, now.time)
        return [JoinWithdrawn(exchange.peer.identity, exchange.token)]

    def command_answered(self, exchange: Exchange, cause: Response | None, now: Now) -> list[Output]:
        """The device came, or it refused."""
        status = Status.JOIN_SUCCESS if cause is None else Status(cause.status)
        return [JoinCommandAnswered(exchange.peer.identity, exchange.token, status)]

    def observed(self, exchange: Exchange, cause: Response | None, now: Now) -> list[Output]:
        """The observer said what it saw, or did not in time."""
        device, token = exchange.detail
        status = Status.OBSERVED_JOIN_FAIL
        if cause is not None and exchange.peer.member:  # the word of one that was put out counts no more
            status = Status(cause.status)
        return [Observed(exchange.peer.identity, exchange.token, device, token, status)]

    # Mechanism.

    def withdraw(self, device: Peer, now: Now) -> list[Output]:
        """End the joins of a device that are not decided, without an answer."""
        return self.session.step_all(device.in_state(*_PENDING), Trigger.WITHDRAW, None, now)

    def _stop_observing(self, device: int, now: float) -> None:
        """Ask an observer no more about a device: its join is over, or a newer one counts."""
        asked, known = self.observing.pop(device, None), self.session.known
        if asked is None or not (known.holds(asked) and known.is_open(asked)):
            return
        known.forget(asked)
        lately = self._lately_withdrawn(device, now)
        self.withdrawn_at.pop(device, None)
        self.withdrawn_at[device] = (*lately, now)
        while len(self.withdrawn_at) > MAX_MODERATED:
            del self.withdrawn_at[next(iter(self.withdrawn_at))]

    def _lately_withdrawn(self, device: int, now: float) -> tuple[float, ...]:
        pause = self.session.policy.first_retry
        return tuple(at for at in self.withdrawn_at.get(device, ()) if now - at < pause)

    def obeyed(self, device: Peer, now: Now, *, handed_over: bool) -> list[Output]:
        """The device has come to us, or has gone to where we sent it."""
        commands = device.in_state(_S.COMMANDED)
        done = [command for command in commands if (command.detail is not None) is handed_over]
        return self.session.step_all(done, Trigger.OBEYED, None, now)

    @staticmethod
    def _to_be_compared(exchange: Exchange) -> list[Output]:
        peer, moderated = exchange.peer.identity, exchange.detail
        if moderated.observer is not None:
            return [ObservedJoinRequested(peer, exchange.token, moderated.observer, moderated.signer, exchange.expiry)]
        return [HumanJoinRequested(peer, exchange.token, exchange.expiry, moderated.signer)]

    def _moderate(self, exchange: Exchange, moderated: Moderated, now: Now) -> list[Output]:
        """Let a join wait for somebody's word: for so long, and with no more than so many others."""
        outputs = self.withdraw(exchange.peer, now)  # a device has one under way: the latest
        exchange.detail = moderated._replace(until=exchange.expiry, signer=key_text(exchange.peer.heard.key))
        exchange.expiry = min(exchange.expiry, now.time + self.session.policy.join_lifetime)
        if len(self.moderated) >= MAX_MODERATED:
            outputs += self.session.abandon([next(iter(self.moderated))], now.time)
        self.moderated[exchange] = None
        return outputs

    def _explain(self, exchange: Exchange, why: str) -> list[Output]:
        """Say why the answer that comes next is no, unless the device is a deployed one."""
        if not why or not self.session.binds_tokens(exchange.peer):
            return []
        return [self.session.send(exchange, Data, data_id=JOIN_REASON, data=printable(why, MAX_REASON).encode())]

    def _note_wish(self, device: Peer, cause: Message) -> None:
        """Take note that a device wants in; PolicyError if it has asked anew or left since it sent this."""
        if self.session.freshness.overtaken(device, cause):
            raise PolicyError(f"{device.identity:x} has asked anew or left since it asked for this join")
        self.session.set_membership_id(device, cause.sequence_id)
