"""How a membership ends, for both ends: resigning, terminating, deregistering (docs/protocol/flows.md#leaving)."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ...errors import PolicyError
from ...messages import (
    Action,
    Activate,
    Data,
    DeregisterCommand,
    DeregisterRequest,
    IdRequest,
    Initiate,
    Message,
    ObservationRequest,
    ResignRequest,
    Response,
    TerminateCommand,
)
from ...wire import Status
from ..events import Deregistered, Left, Unexpected
from ..exchange import Exchange, Peer
from ..flow import Flow, Now, Output, Send
from ..table import ExchangeStart, State, Transition, Trigger
from .join import WAITING

if TYPE_CHECKING:
    from ..device import DeviceSession
    from ..server import ServerSession

__all__ = ["DeviceLeaving", "LeavingState", "ServerLeaving"]


class LeavingState(State):
    """The end of a membership, seen from either end."""

    NEW = "nothing happened yet"
    LEAVING = "the server is to confirm that we leave"
    DEREGISTERING = "the server is to confirm that it forgets us"
    LEFT = "we are out"
    ANSWERED = "the device has its answer, or gives none"


_S = LeavingState
_RESIGN_RESULTS: Final = (Status.RESIGN_SUCCESS, Status.RESIGN_FAIL)
_DEREGISTER_RESULTS: Final = (Status.DEREGISTER_SUCCESS, Status.DEREGISTER_FAIL)
_FOR_MEMBERS: Final = (Action, Data, IdRequest, Initiate, Activate, ObservationRequest)
_DISCLAIMED: Final = "we were out already"


class DeviceLeaving(Flow):
    """The device's end."""

    session: "DeviceSession"
    states = LeavingState
    table = {
        **{(_S.LEAVING, status): Transition(_S.LEFT, "resign_answered") for status in _RESIGN_RESULTS},
        **{(_S.DEREGISTERING, status): Transition(_S.LEFT, "deregister_answered") for status in _DEREGISTER_RESULTS},
        **{(_S.LEFT, status): Transition(_S.LEFT) for status in (*_RESIGN_RESULTS, *_DEREGISTER_RESULTS)},
        **{
            (state, Trigger.EXPIRE): Transition(_S.LEFT, "leaving_unanswered")
            for state in (_S.LEAVING, _S.DEREGISTERING)
        },
        (_S.NEW, TerminateCommand): Transition(_S.LEFT, "terminated"),
        (_S.LEFT, TerminateCommand): Transition(_S.LEFT),
        (_S.NEW, DeregisterCommand): Transition(_S.LEFT, "deregistered"),
    }
    starts = {
        TerminateCommand: ExchangeStart(_S.NEW),
        DeregisterCommand: ExchangeStart(_S.NEW, members_only=False, remembered=False),
    }
    allowed_before_join = frozenset({DeregisterRequest, ResignRequest})

    def resign(self, server: int, now: float, nonce: bytes) -> list[Output]:
        """Leave the server: we are out from now on, and what it has ordered or orders still is not done.

        A join that it has not answered is taken back. Left follows when it confirms, Unanswered when it does not.
        """
        asks = self.session.peer(server).in_state(*WAITING)
        if not self.session.is_member(server) and not asks:
            raise PolicyError(f"{server:x} is not joined: it would not take ResignRequest")
        return self._ask_to_leave(server, _S.LEAVING, ResignRequest, now, nonce)

    def leave(self, server: int, now: float, nonce: bytes) -> list[Output]:
        """Leave the server as with :meth:`resign`, also if it cannot be told: it may have used up the sequence ids."""
        sends: list[Output] = []
        with suppress(PolicyError):
            sends = [*self.session.ask(server, _S.LEAVING, ResignRequest, now, nonce, None)]
        peer = self.session.peer(server)
        ended = self._end_membership(peer, now)
        return [*sends, *ended] if sends else [*ended, *self.session.membership_lost(peer, b"", now)]

    def deregister(self, server: int, now: float, nonce: bytes) -> list[Output]:
        """Leave the server, as with :meth:`resign`, and let it drop our key.

        Left and Deregistered follow when it confirms, else Unanswered; Deregistered comes then too if the server does
        not bind its tokens: deployed ones never answer.
        """
        return self._ask_to_leave(server, _S.DEREGISTERING, DeregisterRequest, now, nonce)

    def is_under_way(self, server: Peer) -> bool:
        """Return whether we have asked this server to let us out, and it has not answered all of that yet."""
        asked = server.in_state(_S.LEAVING, _S.DEREGISTERING)
        return any(exchange.detail != _DISCLAIMED for exchange in asked)

    def asked_since(self, server: Peer, join: int) -> bool:
        """Return whether we go on asking this server to let us out, and began that after a join's sequence id."""
        leaving = [each for each in server.in_state(_S.LEAVING, _S.DEREGISTERING) if each.retry]
        return any(each.request is not None and each.request.sequence_id > join for each in leaving)

    def joins_anew(self, server: Peer) -> None:
        """Ask no more to leave: sent again it would come after the join, and undo it."""
        for leaving in server.in_state(_S.LEAVING, _S.DEREGISTERING):
            leaving.retry = 0.0

    def disclaim(self, message: Message, outputs: Sequence[Output], now: float, nonce: bytes) -> list[Output]:
        """Tell a server that takes us for a member that we are none: it may not have heard that we have left."""
        if not isinstance(message, _FOR_MEMBERS) or not any(isinstance(output, Unexpected) for output in outputs):
            return []
        session, server = self.session, self.session.peer(message.sender_id)
        under_way = server.in_state(_S.LEAVING, _S.DEREGISTERING, *WAITING)
        knows = session.freshness.overtaken(server, message)  # it has let us out since
        asks = under_way or server.identity == session.about_to_join
        if server.member or asks or knows or not session.binds_tokens(server):
            return []
        with suppress(PolicyError):  # no sequence id is left for that server, and it has seen to that itself
            return [*session.ask(server.identity, _S.LEAVING, ResignRequest, now, nonce, None, detail=_DISCLAIMED)]
        return []

    # Effects.

    def resign_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server confirmed that we leave, or failed to; either way we are out, unless it has let us in since."""
        if exchange.detail == _DISCLAIMED:
            return []
        if self.session.freshness.overtaken(exchange.peer, cause, exchange.request):
            return [Left(exchange.peer.identity, exchange.token)]
        return self._leave(exchange, cause, now.time)

    def deregister_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server has dropped our key, or failed to; either way we are out, unless it has let us in since."""
        if self.session.freshness.overtaken(exchange.peer, cause, exchange.request):
            return [Left(exchange.peer.identity, exchange.token)]
        outputs = self._leave(exchange, cause, now.time)
        if cause.status != Status.DEREGISTER_SUCCESS:
            return outputs
        return [*outputs, self._part_for_good(exchange.peer, exchange.token)]

    def leaving_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The server did not confirm that we leave; we are out all the same, unless it has let us in since."""
        outputs: list[Output] = []
        peer, asked = exchange.peer, exchange.request
        if exchange.detail != _DISCLAIMED:
            since = self.session.freshness.overtaken(peer, None, asked)
            ended = [] if since else self._end_membership(peer, now.time)
            outputs = [*ended, *self.unanswered(exchange, cause, now)]
            for_good = isinstance(asked, DeregisterRequest) and not since and not self.session.binds_tokens(peer)
            outputs += [self._part_for_good(peer, exchange.token)] if for_good else []
        return [*outputs, *self.session.membership_lost(peer, exchange.token, now.time)]

    def terminated(self, exchange: Exchange, cause: TerminateCommand, now: Now) -> list[Output]:
        """The server put us out."""
        self._check_newest(exchange.peer, cause)
        return self._leave(exchange, cause, now.time)

    def deregistered(self, exchange: Exchange, cause: DeregisterCommand, now: Now) -> list[Output]:
        """The server has dropped our key."""
        self._check_newest(exchange.peer, cause)
        outputs = self._leave(exchange, cause, now.time)
        return [*outputs, self._part_for_good(exchange.peer, exchange.token)]

    # Mechanism.

    def _ask_to_leave(
        self, server: int, state: State, request: type[Message], now: float, nonce: bytes
    ) -> list[Output]:
        """Ask to be let out, and for no join any more: sent again it would come after this, and undo it."""
        sends = self.session.ask(server, state, request, now, nonce, None)
        peer = self.session.peer(server)
        self.session.joins.stop(peer, now, sends[0].message.sequence_id)
        return [*sends, *self._end_membership(peer, now)]

    def _check_newest(self, peer: Peer, cause: Message) -> None:
        if self.session.freshness.overtaken(peer, cause):
            raise PolicyError(f"{peer.identity:x} has let us in or out since it said this")

    def _leave(self, exchange: Exchange, cause: Message, now: float) -> list[Output]:
        peer, ours = exchange.peer, exchange.request
        self.session.set_membership_id(peer, max(peer.heard.membership_sequence_id, cause.sequence_id))
        self.session.joins.stop(peer, now, None if ours is None else ours.sequence_id)
        told = [*self._end_membership(peer, now), Left(peer.identity, exchange.token)]
        return [*told, *self.session.membership_lost(peer, exchange.token, now)]

    def _end_membership(self, peer: Peer, now: float) -> list[Output]:
        peer.member = False
        return self.session.drop_orders(peer, now)

    def _part_for_good(self, peer: Peer, token: bytes) -> Output:
        self.session.forget(peer.identity)
        return Deregistered(peer.identity, token)


class ServerLeaving(Flow):
    """The server's end."""

    session: "ServerSession"
    states = LeavingState
    table = {
        (_S.NEW, ResignRequest): Transition(_S.ANSWERED, "resigned"),
        (_S.ANSWERED, ResignRequest): Transition(_S.ANSWERED, "repeat_answer"),
        (_S.NEW, DeregisterRequest): Transition(_S.ANSWERED, "deregistered"),
        (_S.ANSWERED, DeregisterRequest): Transition(_S.ANSWERED, "repeat_answer"),
    }
    starts = {
        ResignRequest: ExchangeStart(_S.NEW, members_only=False),
        DeregisterRequest: ExchangeStart(_S.NEW, members_only=False),
    }
    allowed_before_join = frozenset({DeregisterCommand})

    def terminate(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """Put a device out. It does not answer; its messages are refused from now on."""
        if not self.session.is_member(device):
            raise PolicyError(f"{device:x} is not joined: it would not take TerminateCommand")
        sends = self._order_out(device, TerminateCommand, now, nonce)
        return [*sends, *self._part(self.session.peer(device), sends[0].message.token if sends else b"", now)]

    def deregister(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """Put a device out for good, joined or not; Deregistered says that its key is to be dropped."""
        sends = self._order_out(device, DeregisterCommand, now, nonce)
        token = sends[0].message.token if sends else b""
        return [*sends, *self._part_for_good(self.session.peer(device), token, now)]

    # Effects.

    def resigned(self, exchange: Exchange, cause: ResignRequest, now: Now) -> list[Output]:
        """A device leaves, or takes back that it wants in."""
        outputs, peer = self.answer(exchange, Status.RESIGN_SUCCESS, now), exchange.peer
        if self.session.freshness.overtaken(peer, cause):
            return outputs  # it has asked to be let in since, and that got here first
        self.session.set_membership_id(peer, cause.sequence_id)
        if not peer.member:
            return [*outputs, *self.session.joins.withdraw(peer, now)]
        outputs += self.session.joins.obeyed(peer, now, handed_over=True)
        return [*outputs, *self._part(peer, exchange.token, now.time)]

    def deregistered(self, exchange: Exchange, cause: DeregisterRequest, now: Now) -> list[Output]:
        """A device leaves for good."""
        peer = exchange.peer
        if self.session.freshness.overtaken(peer, cause):
            raise PolicyError(f"{peer.identity:x} has asked to be let in since it asked to be forgotten")
        outputs = self.answer(exchange, Status.DEREGISTER_SUCCESS, now)
        self.session.set_membership_id(peer, cause.sequence_id)
        return [*outputs, *self._part_for_good(peer, exchange.token, now.time)]

    # Mechanism.

    def _order_out(self, device: int, command: type[Message], now: float, nonce: bytes) -> list[Send]:
        """Tell a device that it is out. It is out also if it cannot be told: it may have used up the sequence ids."""
        with suppress(PolicyError):
            return self.session.ask(device, _S.ANSWERED, command, now, nonce, None, resend=False)
        return []

    def _part(self, device: Peer, token: bytes, now: float) -> list[Output]:
        """End the membership, and what was still asked of the device: no answer to that will be taken any more."""
        session = self.session
        device.member = False
        asked = session.known.open_of(device.identity)
        withdrawn = session.joins.withdraw(device, Now(now, b""))
        dropped = [*session.abandon(asked, now), *session.drop_orders(device, now)]
        lost = session.membership_lost(device, token, now)
        return [*withdrawn, Left(device.identity, token), *dropped, *lost]

    def _part_for_good(self, device: Peer, token: bytes, now: float) -> list[Output]:
        gone = Deregistered(device.identity, token)
        if device.member:
            return [*self._part(device, token, now), gone]
        return [*self.session.joins.withdraw(device, Now(now, b"")), gone]
