"""Joins, for both ends: how a device gets in, and what proves that it is the thing in one's hand (FLOWS.md, "Flows").

A simple join asks and is answered. In a human-moderated and in a machine-observed one the server sends the device a
sealed value; a person, or another device that can read what the first one shows, compares it with the server's. The
value is opaque here: its owner makes, seals and opens it.
"""

from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple

from ..errors import EncodeError, PolicyError
from ..messages import (
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
from ..update import Step, Table, Word
from ..wire import JOIN_OBSERVER, Status
from .base import Exchange, Now, Opening, Output, Partner, Send, Session, check_status
from .body import kept
from .events import (
    Event,
    HumanJoinRequested,
    JoinAnswered,
    JoinCommandAnswered,
    JoinCommanded,
    JoinRequested,
    JoinValueReceived,
    JoinWithdrawn,
    ObservationRequested,
    Observed,
    ObservedJoinRequested,
    ObserverNamed,
    Unexpected,
)

__all__ = ["DEVICE_JOINS", "SERVER_JOINS", "WAITING", "DeviceJoins", "JoinState", "Moderated", "ServerJoins"]

MAX_MODERATED: Final = 1024
"""How many joins may wait for a person or an observer at a time; the oldest gives way to a new one (T9)."""

OBSERVER_SIZE: Final = 8
"""The bytes of an identity in a Data message named JOIN_OBSERVER."""


@kept
class Moderated(NamedTuple):
    """A join that waits for somebody's word: what carries the value, the value, the observer, and the last moment."""

    response: type[Message]
    sealed: bytes = b""
    observer: int | None = None
    until: float = 0.0  # how long the device may ask for it


class JoinState(Enum):
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
_JOIN_RESULTS: Final = (Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL)
_OBSERVATIONS: Final = (Status.OBSERVED_JOIN_VALID, Status.OBSERVED_JOIN_INVALID, Status.OBSERVED_JOIN_FAIL)
_REQUESTS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)
_MODERATED: Final[Mapping[type[Message], type[Message]]] = {
    HumanJoinRequest: HumanJoinResponse,
    ObservedJoinRequest: ObservedJoinResponse,
}
"""What carries the value, by what asks for it."""

WAITING: Final = (_S.ASKED, _S.HUMAN_ASKED, _S.OBSERVED_ASKED, _S.SHOWING)
"""States in which a device waits to be let in."""

_PENDING: Final = (_S.DECIDING, _S.PREPARING, _S.COMPARING)

DEVICE_JOINS: Final[Table] = {
    **{(state, status): Step(_S.ANSWERED, "join_answered") for state in WAITING for status in _JOIN_RESULTS},
    **{(state, Word.EXPIRE): Step(_S.UNANSWERED, "unanswered") for state in WAITING},
    **{(state, Word.WITHDRAW): Step(_S.WITHDRAWN) for state in WAITING},
    **{(_S.WITHDRAWN, status): Step(_S.ANSWERED, "withdrawn_join_answered") for status in _JOIN_RESULTS},
    **{(_S.WITHDRAWN, answer): Step(_S.WITHDRAWN) for answer in (*_MODERATED.values(), Data)},
    **{(_S.ANSWERED, status): Step(_S.ANSWERED) for status in _JOIN_RESULTS},
    **{(state, Data): Step(state, "observer_named") for state in (_S.ASKED, _S.ANSWERED)},
    (_S.HUMAN_ASKED, HumanJoinResponse): Step(_S.SHOWING, "value_received"),
    (_S.OBSERVED_ASKED, ObservedJoinResponse): Step(_S.SHOWING, "value_received"),
    **{(_S.SHOWING, answer): Step(_S.SHOWING, "value_changed") for answer in _MODERATED.values()},
    **{(_S.ANSWERED, answer): Step(_S.ANSWERED) for answer in _MODERATED.values()},
    # Deployed servers send the value under a token of their own.
    (_S.NEW, HumanJoinResponse): Step(_S.ANSWERED, "value_under_new_token"),
    (_S.NEW, ObservedJoinResponse): Step(_S.ANSWERED, "value_under_new_token"),
    (_S.NEW, JoinCommand): Step(_S.ANSWERED, "join_commanded"),
    (_S.ANSWERED, JoinCommand): Step(_S.ANSWERED, "join_commanded_again"),
    (_S.NEW, ObservationRequest): Step(_S.OBSERVING, "observation_requested"),
    (_S.OBSERVING, ObservationRequest): Step(_S.OBSERVING),
    (_S.OBSERVING, Word.ANSWER): Step(_S.ANSWERED, "answer"),
    (_S.OBSERVING, Word.LEAVE): Step(_S.UNANSWERED),
    (_S.OBSERVING, Word.EXPIRE): Step(_S.UNANSWERED),
    (_S.ANSWERED, ObservationRequest): Step(_S.ANSWERED, "repeat_answer"),
}
"""The device's side, as one that joins and as an observer."""

SERVER_JOINS: Final[Table] = {
    (_S.NEW, JoinRequest): Step(_S.DECIDING, "join_requested"),
    (_S.NEW, HumanJoinRequest): Step(_S.PREPARING, "human_join_requested"),
    (_S.NEW, ObservedJoinRequest): Step(_S.PREPARING, "observed_join_requested"),
    **{(state, request): Step(state) for state in (_S.DECIDING, _S.PREPARING) for request in _REQUESTS},
    (_S.PREPARING, Word.SHOW): Step(_S.COMPARING, "send_value"),
    **{(_S.COMPARING, request): Step(_S.COMPARING, "repeat_value") for request in _MODERATED},
    **{(state, Word.ANSWER): Step(_S.ANSWERED, "answer_to_join") for state in _PENDING},
    (_S.DECIDING, Word.EXPIRE): Step(_S.UNANSWERED),
    **{(state, Word.EXPIRE): Step(_S.ANSWERED, "join_timed_out") for state in (_S.PREPARING, _S.COMPARING)},
    **{(state, Word.WITHDRAW): Step(_S.UNANSWERED, "join_withdrawn") for state in _PENDING},
    **{(_S.ANSWERED, request): Step(_S.ANSWERED, "repeat_join_answer") for request in _REQUESTS},
    (_S.COMMANDED, Word.OBEYED): Step(_S.ANSWERED, "command_answered"),
    (_S.COMMANDED, Status.JOIN_REFUSED): Step(_S.ANSWERED, "command_answered"),
    (_S.ANSWERED, Status.JOIN_REFUSED): Step(_S.ANSWERED),
    (_S.COMMANDED, Word.EXPIRE): Step(_S.UNANSWERED, "unanswered"),
    **{(_S.OBSERVING, status): Step(_S.ANSWERED, "observed") for status in _OBSERVATIONS},
    **{(_S.ANSWERED, status): Step(_S.ANSWERED) for status in _OBSERVATIONS},
    (_S.OBSERVING, Word.WITHDRAW): Step(_S.UNANSWERED, "observed"),  # the observer is gone
    (_S.OBSERVING, Word.EXPIRE): Step(_S.UNANSWERED, "observed"),
}
"""The server's side."""


class DeviceJoins(Session):
    """How a device joins, obeys join commands, and observes others.

    ``servers`` are the identities that it obeys, ``commanders`` those of them whose JoinCommand it follows without
    being joined to them (T10).
    """

    openings = {
        **Session.openings,
        HumanJoinResponse: Opening(_S.NEW, members_only=False, remembered=False),
        ObservedJoinResponse: Opening(_S.NEW, members_only=False, remembered=False),
        JoinCommand: Opening(_S.NEW, members_only=False),
        ObservationRequest: Opening(_S.NEW),
    }
    for_strangers: ClassVar[frozenset[type[Message]]] = frozenset(_REQUESTS)
    repeatable = frozenset({JoinRequest})
    volatile = Session.volatile | {
        *WAITING,
        _S.WITHDRAWN,
        _S.OBSERVING,
    }  # a new start asks anew, and so does the server
    servers: frozenset[int]
    commanders: frozenset[int]

    def join(self, server: int, now: float, nonce: bytes) -> list[Send]:
        """Ask to be let in; JoinAnswered or Unanswered follows. PolicyError for a server that is not trusted."""
        return self._join(server, _S.ASKED, JoinRequest, now, nonce, None)

    def join_human(self, server: int, now: float, nonce: bytes) -> list[Send]:
        """Ask for a join that a person moderates; JoinValueReceived comes first, with the value to show."""
        return self._join(server, _S.HUMAN_ASKED, HumanJoinRequest, now, nonce, self.policy.join_lifetime)

    def join_observed(self, server: int, observer: int, now: float, nonce: bytes) -> list[Send]:
        """Ask for a join that the device ``observer`` observes; JoinValueReceived comes first."""
        lifetime = self.policy.join_lifetime
        return self._join(server, _S.OBSERVED_ASKED, ObservedJoinRequest, now, nonce, lifetime, observer_id=observer)

    def answer_observation(self, server: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer an ObservationRequested with OBSERVED_JOIN_VALID, OBSERVED_JOIN_INVALID or OBSERVED_JOIN_FAIL."""
        check_status(status, _OBSERVATIONS)
        return self._drive(server, token, Word.ANSWER, status, now)

    # Effects.

    def join_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server answered the join."""
        status, partner = Status(cause.status), exchange.partner
        if cause.sequence_id < partner.decided:
            return []  # the server has said something else since, which got here first
        partner.decided = cause.sequence_id
        partner.member = status is Status.JOIN_SUCCESS
        dropped = [] if partner.member else self._drop_orders(partner, now.time)
        return [JoinAnswered(partner.identity, exchange.token, status), *dropped]

    def withdrawn_join_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server answered a join that we ask for no more: that counts for it, but a refusal changes nothing."""
        before = exchange.partner.member
        outputs = self.join_answered(exchange, cause, now)
        return outputs if before or exchange.partner.member else []

    def observer_named(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The server names an observer whose word would let us in."""
        if cause.data_id != JOIN_OBSERVER or len(cause.data) != OBSERVER_SIZE:
            raise PolicyError(f"{cause.data_id[:80]!r} does not name an observer for a join")
        return [ObserverNamed(exchange.partner.identity, exchange.token, int.from_bytes(cause.data, "little"))]

    def value_received(
        self, exchange: Exchange, cause: HumanJoinResponse | ObservedJoinResponse, now: Now
    ) -> list[Output]:
        """The server sent the value to show. It is asked again, more and more slowly, so that its answer gets here."""
        if exchange.request is not None:
            self._expect(exchange, exchange.request, resend=True)
        exchange.detail = cause.sealed
        return [JoinValueReceived(exchange.partner.identity, exchange.token, cause.sealed)]

    def value_changed(
        self, exchange: Exchange, cause: HumanJoinResponse | ObservedJoinResponse, now: Now
    ) -> list[Output]:
        """The same value once more; or another one, of a server that has forgotten the first, as after a restart."""
        return [] if cause.sealed == exchange.detail else self.value_received(exchange, cause, now)

    def value_under_new_token(
        self, exchange: Exchange, cause: HumanJoinResponse | ObservedJoinResponse, now: Now
    ) -> list[Output]:
        """The same from a deployed server: the join goes on under the token of its message (FLOWS.md, "Tokens")."""
        partner = exchange.partner
        waiting = [mine for mine in partner.exchanges.values() if mine.mine and mine.state in WAITING]
        asked = next((mine for mine in waiting if _MODERATED.get(type(mine.request)) is type(cause)), None)  # type: ignore[arg-type]
        if asked is None or self._binds(partner):
            raise PolicyError(f"{partner.identity:x} sends a value that no join of ours asked for")
        del partner.exchanges[asked.token]
        self._stir(asked)
        asked.token, asked.state = cause.token, _S.SHOWING
        partner.exchanges[asked.token] = asked
        self._stir(asked)
        return self.value_received(asked, cause, now)

    def join_commanded(self, exchange: Exchange, cause: JoinCommand, now: Now) -> list[Output]:
        """A server wants us: itself, or our present one for another that we know (T10)."""
        partner = exchange.partner
        target = partner.identity if cause.device_id == self.identity else cause.device_id
        if target in self.servers and (partner.member or (target == partner.identity and target in self.commanders)):
            return [JoinCommanded(partner.identity, exchange.token, target)]
        why = f"{partner.identity:x} has no right to send us to {target:x}"
        unexpected = Unexpected(partner.identity, exchange.token, JoinCommand, why)
        return [unexpected, *self.answer(exchange, Status.JOIN_REFUSED, now)]

    def join_commanded_again(self, exchange: Exchange, cause: JoinCommand, now: Now) -> list[Output]:
        """The same command again: what came of it stands."""
        return [] if exchange.status is None else self.repeat_answer(exchange, cause, now)

    def observation_requested(self, exchange: Exchange, cause: ObservationRequest, now: Now) -> list[Output]:
        """The server wants to know what another device shows."""
        if cause.joining_device_id == self.identity:
            raise PolicyError("nobody observes himself")
        return [ObservationRequested(exchange.partner.identity, exchange.token, cause.joining_device_id, cause.sealed)]

    # Mechanism.

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
        if server not in self.servers:
            raise PolicyError(f"{server:x} is none of this device's servers")
        # Whoever has values to be confirmed needs to know whether this server gives receipts.
        receipt = self._kept and not self.binds(server)
        sends = self._ask(server, state, request, now, nonce, lifetime, receipt=receipt, **fields)
        self._stop_joining(self._partners[server], now, sends[0].message.sequence_id)
        return sends

    def _stop_joining(self, server: Partner, now: float, before: int | None = None) -> None:
        """Ask no more for what was asked for, or what was asked for before this sequence id.

        The latest join counts, and leaving ends those before it, which would bring us back in.
        """
        for join in list(server.exchanges.values()):
            asked = join.request.sequence_id if join.request is not None else 0
            if join.mine and join.state in WAITING and (before is None or asked < before):
                self._take(join, self.table[join.state, Word.WITHDRAW], None, Now(now, b""))
                self._schedule(join, now)


class ServerJoins(Session):
    """How a server lets devices in."""

    openings = {
        **Session.openings,
        **{request: Opening(_S.NEW, members_only=False) for request in _REQUESTS},
    }
    for_strangers: ClassVar[frozenset[type[Message]]] = frozenset({JoinCommand})
    repeatable = frozenset({JoinCommand})
    resumed = {
        **Session.resumed,
        _S.DECIDING: "join_again",
        _S.PREPARING: "moderated_again",
        _S.COMPARING: "moderated_again",
    }
    volatile = Session.volatile | {_S.OBSERVING}  # the observer is asked anew, with a new value
    _moderated: dict[Exchange, None]

    def answer_join(
        self, device: int, token: bytes, status: Status, now: float, observer: int | None = None
    ) -> list[Output]:
        """Answer a join with JOIN_SUCCESS, JOIN_REFUSED or JOIN_FAIL.

        With a refusal of a simple join ``observer`` names a device whose word would let this one in.
        """
        check_status(status, _JOIN_RESULTS)
        if observer is not None and status is not Status.JOIN_REFUSED:
            raise EncodeError("status", "an observer is named with JOIN_REFUSED only")
        return self._drive(device, token, Word.ANSWER, (status, observer), now)

    def show_value(self, device: int, token: bytes, sealed: bytes, now: float) -> list[Output]:
        """Send the value, sealed to the device, that it is to show (HumanJoinRequested, ObservedJoinRequested)."""
        return self._drive(device, token, Word.SHOW, sealed, now)

    def observe(self, observer: int, device: int, token: bytes, sealed: bytes, now: float, nonce: bytes) -> list[Send]:
        """Ask ``observer`` to compare what ``device`` shows with this value, sealed to it; Observed follows.

        PolicyError when the observer is not joined or is the device itself, or when the join is not at this point.
        """
        side = self._partners.get(device)
        join = side.exchanges.get(token) if side else None
        if observer == device:
            raise PolicyError(f"{device:x} cannot observe itself")
        if join is None or join.state is not _S.COMPARING:
            raise PolicyError(f"{device:x} shows no value under this token")
        left = join.expiry - now
        if left <= 0:
            raise PolicyError(f"the time of the join of {device:x} is up")
        about, state = (device, token), _S.OBSERVING
        return self._ask(
            observer, state, ObservationRequest, now, nonce, left, detail=about, joining_device_id=device, sealed=sealed
        )

    def command_join(self, device: int, now: float, nonce: bytes, server: int | None = None) -> list[Send]:
        """Tell a device to join us, or ``server`` instead, which only a member does; JoinCommandAnswered follows.

        Unanswered follows when nothing came of it. ``server`` is an extension: deployed devices take the number for
        their own identity.
        """
        if server == device:
            raise PolicyError(f"{device:x} cannot be sent to itself")
        if server == self.identity:
            server = None
        if server is not None and not self.is_member(device):
            raise PolicyError(f"{device:x} is not joined: it would not go to another server at our word")
        target = device if server is None else server
        return self._ask(device, _S.COMMANDED, JoinCommand, now, nonce, None, detail=server, device_id=target)

    # Effects.

    def join_requested(self, exchange: Exchange, cause: JoinRequest, now: Now) -> list[Output]:
        """A device wants in."""
        self._note_wish(exchange.partner, cause)
        return [JoinRequested(exchange.partner.identity, exchange.token)]

    def human_join_requested(self, exchange: Exchange, cause: HumanJoinRequest, now: Now) -> list[Output]:
        """A device wants in, and a person is to compare what it shows."""
        self._note_wish(exchange.partner, cause)
        made_room = self._moderate(exchange, Moderated(HumanJoinResponse), now)
        return [*made_room, HumanJoinRequested(exchange.partner.identity, exchange.token, exchange.expiry)]

    def observed_join_requested(self, exchange: Exchange, cause: ObservedJoinRequest, now: Now) -> list[Output]:
        """A device wants in, and another one is to compare what it shows."""
        self._note_wish(exchange.partner, cause)
        made_room = self._moderate(exchange, Moderated(ObservedJoinResponse, observer=cause.observer_id), now)
        return [*made_room, ObservedJoinRequested(exchange.partner.identity, exchange.token, cause.observer_id)]

    def join_again(self, exchange: Exchange) -> list[Event]:
        """A join was to be decided when the process ended."""
        return [JoinRequested(exchange.partner.identity, exchange.token)]

    def moderated_again(self, exchange: Exchange) -> list[Event]:
        """Values were being compared when the process ended, and are lost with it: the device gets another one."""
        exchange.state = _S.PREPARING
        self._moderated[exchange] = None
        if exchange.detail.observer is not None:
            return [ObservedJoinRequested(exchange.partner.identity, exchange.token, exchange.detail.observer)]
        return [HumanJoinRequested(exchange.partner.identity, exchange.token, exchange.expiry)]

    def send_value(self, exchange: Exchange, cause: bytes, now: Now) -> list[Output]:
        """The value is there."""
        send = self._send(exchange, exchange.detail.response, sealed=cause)
        exchange.detail = exchange.detail._replace(sealed=cause)
        return [send]

    def repeat_value(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The device asks again: it may have missed the value."""
        return [self._send(exchange, exchange.detail.response, sealed=exchange.detail.sealed)]

    def answer_to_join(self, exchange: Exchange, cause: tuple[Status, int | None], now: Now) -> list[Output]:
        """It is decided."""
        status, observer = cause
        partner = exchange.partner
        outputs: list[Output] = []
        if observer is not None:
            named = observer.to_bytes(OBSERVER_SIZE, "little")
            outputs = [self._send(exchange, Data, data_id=JOIN_OBSERVER, data=named)]
        outputs += [JoinAnswered(partner.identity, exchange.token, status), *self.answer(exchange, status, now)]
        self._moderated.pop(exchange, None)
        partner.member = status is Status.JOIN_SUCCESS
        if partner.member:
            outputs += [*self._obeyed(partner, now, handed_over=False), *self.hurry(partner.identity, now.time)]
        return outputs

    def repeat_join_answer(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Answer as before, unless the device has been put out since: it may have missed both."""
        if exchange.status is Status.JOIN_SUCCESS and not exchange.partner.member:
            return self.answer(exchange, Status.JOIN_REFUSED, now)
        return self.repeat_answer(exchange, cause, now)

    def join_timed_out(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """Nobody compared the values in time. As long as the device can ask for this join it is answered the same."""
        self._moderated.pop(exchange, None)
        exchange.partner.member = False  # the device will think so when it gets the answer
        outputs: list[Output] = [JoinAnswered(exchange.partner.identity, exchange.token, Status.JOIN_FAIL)]
        with suppress(PolicyError):  # no sequence id is left, which is this device's trouble and not that of the others
            outputs += self.answer(exchange, Status.JOIN_FAIL, now)
        exchange.expiry = exchange.detail.until
        if exchange.expiry > now.time:
            self._remember(exchange, now.time)
        return outputs

    def join_withdrawn(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """The device began another join, which counts instead, or is no longer to be let in."""
        self._moderated.pop(exchange, None)
        return [JoinWithdrawn(exchange.partner.identity, exchange.token)]

    def command_answered(self, exchange: Exchange, cause: Response | None, now: Now) -> list[Output]:
        """The device came, or it refused."""
        status = Status.JOIN_SUCCESS if cause is None else Status(cause.status)
        return [JoinCommandAnswered(exchange.partner.identity, exchange.token, status)]

    def observed(self, exchange: Exchange, cause: Response | None, now: Now) -> list[Output]:
        """The observer said what it saw, or did not in time."""
        device, token = exchange.detail
        status = Status.OBSERVED_JOIN_FAIL
        if cause is not None and exchange.partner.member:  # the word of one that was put out counts no more
            status = Status(cause.status)
        return [Observed(exchange.partner.identity, exchange.token, device, token, status)]

    # Mechanism.

    def _moderate(self, exchange: Exchange, moderated: Moderated, now: Now) -> list[Output]:
        """Let a join wait for somebody's word: for so long, and with no more than so many others."""
        outputs = self._withdraw_joins(exchange.partner, now)  # a device has one under way: the latest
        exchange.detail = moderated._replace(until=exchange.expiry)
        exchange.expiry = min(exchange.expiry, now.time + self.policy.join_lifetime)
        if len(self._moderated) >= MAX_MODERATED:
            oldest = next(iter(self._moderated))
            self._forget(oldest)
            outputs += self._take(oldest, self.table[oldest.state, Word.EXPIRE], None, now)
        self._moderated[exchange] = None
        return outputs

    def _note_wish(self, device: Partner, cause: Message) -> None:
        """Take note that a device wants in; PolicyError if it has asked anew or left since it sent this."""
        if cause.sequence_id < device.decided:
            raise PolicyError(f"{device.identity:x} has asked anew or left since it asked for this join")
        device.decided = cause.sequence_id

    def _withdraw_joins(self, device: Partner, now: Now) -> list[Output]:
        """End the joins of a device that are not decided, without an answer."""
        outputs: list[Output] = []
        for join in list(device.exchanges.values()):
            if not join.mine and join.state in _PENDING:
                outputs += self._take(join, self.table[join.state, Word.WITHDRAW], None, now)
        return outputs

    def _obeyed(self, device: Partner, now: Now, handed_over: bool) -> list[Output]:
        """The device has come to us, or has gone to where we sent it."""
        outputs: list[Output] = []
        for command in list(device.exchanges.values()):
            if command.state is _S.COMMANDED and (command.detail is not None) is handed_over:
                outputs += self._take(command, self.table[command.state, Word.OBEYED], None, now)
        return outputs
