"""The device's end: joins a server, takes its commands and updates, sends values (FLOWS.md, "Flows")."""

from collections.abc import Collection
from enum import Enum
from typing import Any, ClassVar, Final

from .. import tokens
from ..errors import PolicyError
from ..messages import (
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
from ..update import DEVICE_TABLE, FETCH_FAILURES, Step, Table, UpdateState, Word, is_digest
from ..wire import IDENTIFICATION_RESPONSE, Status
from .base import COMMON_TABLE, Exchange, Now, Opening, Output, Partner, Policy, Send, check_number, check_status
from .events import ActivationRequested, Deregistered, Event, FetchRequested, Left, Unexpected
from .join import DEVICE_JOINS, WAITING, DeviceJoins

__all__ = ["TABLE", "DeviceSession", "DeviceState"]


class DeviceState(Enum):
    """Exchanges that only a device sees from this side."""

    LEAVING = "the server is to confirm that we leave"
    DEREGISTERING = "the server is to confirm that it forgets us"
    LEFT = "we are out"
    NEW = "nothing happened yet"
    ANSWERED = "the answer is on its way"


_S = DeviceState
_RESIGN_RESULTS: Final = (Status.RESIGN_SUCCESS, Status.RESIGN_FAIL)
_FOR_MEMBERS: Final = (Action, Data, IdRequest, Initiate, Activate, ObservationRequest)
_DISCLAIMED: Final = "we were out already"
_DEREGISTER_RESULTS: Final = (Status.DEREGISTER_SUCCESS, Status.DEREGISTER_FAIL)

TABLE: Final[Table] = {
    **COMMON_TABLE,
    **DEVICE_TABLE,
    **DEVICE_JOINS,
    **{(_S.LEAVING, status): Step(_S.LEFT, "resign_answered") for status in _RESIGN_RESULTS},
    **{(_S.DEREGISTERING, status): Step(_S.LEFT, "deregister_answered") for status in _DEREGISTER_RESULTS},
    **{(_S.LEFT, status): Step(_S.LEFT) for status in (*_RESIGN_RESULTS, *_DEREGISTER_RESULTS)},
    **{(state, Word.EXPIRE): Step(_S.LEFT, "leaving_unanswered") for state in (_S.LEAVING, _S.DEREGISTERING)},
    (_S.NEW, TerminateCommand): Step(_S.LEFT, "terminated"),
    (_S.LEFT, TerminateCommand): Step(_S.LEFT),
    (_S.NEW, DeregisterCommand): Step(_S.LEFT, "deregistered"),
    (_S.NEW, IdRequest): Step(_S.ANSWERED, "identify"),
    (_S.ANSWERED, IdRequest): Step(_S.ANSWERED, "identify"),
}


class DeviceSession(DeviceJoins):
    """A device: ``servers`` are the identities that it obeys; ``description`` is what it says it is.

    ``commanders`` are those of the servers whose JoinCommand it follows although it is not joined to them (T10). With a
    ``version_floor`` only firmware is taken whose order names a version that is not below it; what gets activated
    becomes the new floor (T12).
    """

    table: ClassVar[Table] = TABLE
    openings = {
        **DeviceJoins.openings,
        Initiate: Opening(UpdateState.NEW),
        Activate: Opening(UpdateState.NEW),
        IdRequest: Opening(_S.NEW),
        TerminateCommand: Opening(_S.NEW),
        DeregisterCommand: Opening(_S.NEW, members_only=False, remembered=False),
    }
    resumed = {
        **DeviceJoins.resumed,
        UpdateState.FETCHING: "fetch_again",
        UpdateState.ACTIVATING: "activation_again",
    }
    for_strangers = DeviceJoins.for_strangers | {DeregisterRequest, ResignRequest}

    def __init__(
        self,
        identity: int,
        servers: Collection[int],
        policy: Policy | None = None,
        first_sequence_id: int = 1,
        description: str = "",
        commanders: Collection[int] = (),
        version_floor: int | None = None,
    ) -> None:
        super().__init__(identity, policy, first_sequence_id)
        if version_floor is not None:
            check_number(version_floor, "version_floor", 0, tokens.MAX_VERSION)
        self.version_floor = version_floor
        self._activating: dict[bytes, int] = {}  # the versions that may be active soon, by the token of their order
        self.servers = frozenset(servers)
        self.commanders = frozenset(commanders)
        self.description = description

    def receive(self, message: Message, now: float, nonce: bytes) -> list[Output]:
        """See :meth:`Session.receive`; a sender that is none of the device's servers is a PolicyError (T10)."""
        if message.sender_id not in self.servers:
            raise PolicyError(f"{message.sender_id:x} is none of this device's servers")
        outputs = super().receive(message, now, nonce)
        if isinstance(message, _FOR_MEMBERS) and any(isinstance(output, Unexpected) for output in outputs):
            outputs += self._disclaim(message, now, nonce)
        return outputs

    def resign(self, server: int, now: float, nonce: bytes) -> list[Output]:
        """Leave the server: we are out from now on, and what it has ordered or orders still is not done.

        Left follows when it confirms, Unanswered when it does not.
        """
        if not self.is_member(server):
            raise PolicyError(f"{server:x} is not joined: it would not take ResignRequest")
        sends = self._ask(server, _S.LEAVING, ResignRequest, now, nonce, None)
        return [*sends, *self._end_membership(self._partner(server), now)]

    def deregister(self, server: int, now: float, nonce: bytes) -> list[Output]:
        """Leave the server, as with :meth:`resign`, and let it drop our key.

        Left and Deregistered follow when it confirms, else Unanswered.
        """
        sends = self._ask(server, _S.DEREGISTERING, DeregisterRequest, now, nonce, None)
        return [*sends, *self._end_membership(self._partner(server), now)]

    def forget(self, server: int) -> None:
        """Obey this server no more, from now on."""
        self.servers -= {server}
        self.commanders -= {server}

    def fetched(self, server: int, token: bytes, now: float) -> list[Output]:
        """Report that the firmware is here and its digest is right."""
        return self._drive(server, token, Word.FETCHED, Status.UPDATE_SUCCESS, now)

    def fetch_failed(self, server: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Report why the firmware is not here: one of the UPDATE_FAIL codes."""
        check_status(status, FETCH_FAILURES)
        return self._drive(server, token, Word.FETCH_FAILED, status, now)

    # The owner says what became of each ActivationRequested, even if the order is over by then.

    def activated(self, server: int, token: bytes, now: float) -> list[Output]:
        """Report that the firmware is active: nothing older is taken any more."""
        version = self._activating.pop(token, None)
        if self.version_floor is not None and version is not None:
            self.version_floor = max(self.version_floor, version)
        return self._drive(server, token, Word.ACTIVATED, Status.ACTIVATE_SUCCESS, now)

    def activation_failed(self, server: int, token: bytes, now: float) -> list[Output]:
        """Report that the firmware is not active."""
        self._activating.pop(token, None)
        return self._drive(server, token, Word.ACTIVATION_FAILED, Status.ACTIVATE_FAIL, now)

    # Effects.

    def resign_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server confirmed that we leave, or failed to; either way we are out, unless it has let us in since."""
        if exchange.detail == _DISCLAIMED:
            return []
        if cause.sequence_id < exchange.partner.decided:
            return [Left(exchange.partner.identity, exchange.token)]
        return self._leave(exchange, cause, now.time)

    def deregister_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The server has dropped our key, or failed to; either way we are out."""
        outputs = self._leave(exchange, cause, now.time)
        if cause.status != Status.DEREGISTER_SUCCESS:
            return outputs
        return [*outputs, self._part_for_good(exchange.partner, exchange.token)]

    def leaving_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The server did not confirm that we leave; we are out all the same, unless it has let us in since."""
        if exchange.detail == _DISCLAIMED:
            return []
        since = exchange.request is not None and exchange.partner.decided > exchange.request.sequence_id
        ended = [] if since else self._end_membership(exchange.partner, now.time)
        return [*ended, *self.unanswered(exchange, cause, now)]

    def terminated(self, exchange: Exchange, cause: TerminateCommand, now: Now) -> list[Output]:
        """The server put us out."""
        return self._leave(exchange, cause, now.time)

    def deregistered(self, exchange: Exchange, cause: DeregisterCommand, now: Now) -> list[Output]:
        """The server has dropped our key."""
        outputs = self._leave(exchange, cause, now.time)
        return [*outputs, self._part_for_good(exchange.partner, exchange.token)]

    def identify(self, exchange: Exchange, cause: IdRequest, now: Now) -> list[Output]:
        """Say what we are: a Data message with a token of its own (FLOWS.md, "Tokens")."""
        partner = exchange.partner
        token = tokens.bind(
            self.identity, partner.identity, self._token_expiry(now.time + self.policy.lifetime), now.nonce
        )
        fields = {"data_id": IDENTIFICATION_RESPONSE, "data": self.description.encode()}
        return [self._send(Exchange(partner, token, _S.ANSWERED, now.time, mine=True), Data, **fields)]

    def begin_fetch(self, exchange: Exchange, cause: Initiate, now: Now) -> list[Output]:
        """A new order."""
        if not is_digest(cause.digest):
            raise PolicyError(f"the digest {cause.digest[:80]!r} is no SHA-256 in lower-case hex")
        exchange.detail = cause.url, cause.digest
        version = self._version(exchange)
        if self.version_floor is not None and (version is None or version < self.version_floor):
            exchange.state = UpdateState.FAILED
            named = "names no version" if version is None else f"is of version {version}"
            why = f"the firmware {named}, and the floor is {self.version_floor}"
            unexpected = Unexpected(exchange.partner.identity, exchange.token, Initiate, why)
            return [unexpected, *self.answer(exchange, Status.UPDATE_FAIL_FILE, now)]
        return [FetchRequested(exchange.partner.identity, exchange.token, cause.url, cause.digest)]

    def fetch_again(self, exchange: Exchange) -> list[Event]:
        """A download was under way when the process ended."""
        return [FetchRequested(exchange.partner.identity, exchange.token, *exchange.detail)]

    def activation_again(self, exchange: Exchange) -> list[Event]:
        """An activation was under way when the process ended, or has ended it: it may have started the device anew."""
        return [self._activation(exchange)]

    def same_order(self, exchange: Exchange, cause: Initiate, now: Now) -> list[Output]:
        """The same order again; a token is good for one (T11)."""
        if exchange.detail != (cause.url, cause.digest):
            raise PolicyError("the token belongs to another update order")
        return []

    def answer_same_order(self, exchange: Exchange, cause: Initiate, now: Now) -> list[Output]:
        """The same order again, which has been answered."""
        return self.same_order(exchange, cause, now) + self.repeat_answer(exchange, cause, now)

    def begin_activation(self, exchange: Exchange, cause: Activate, now: Now) -> list[Output]:
        """The server wants what was fetched to be activated."""
        if not exchange.partner.member:
            raise PolicyError(f"{exchange.partner.identity:x} is not our server any more")
        version, floor = self._version(exchange), self._activation_floor()
        if floor is not None and (version is None or version < floor):
            exchange.state = UpdateState.FAILED
            why = f"the firmware is of version {version}, and by now the floor is {floor}"
            unexpected = Unexpected(exchange.partner.identity, exchange.token, Activate, why)
            return [unexpected, *self.answer(exchange, Status.ACTIVATE_FAIL, now)]
        return [self._activation(exchange)]

    def give_order_up(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """We leave before the firmware is active; a repetition of the order is answered with a failure."""
        exchange.status = Status.UPDATE_FAIL_FILE
        return []

    def refuse_activation(self, exchange: Exchange, cause: Activate, now: Now) -> list[Output]:
        """There is nothing to activate under this token."""
        unexpected = Unexpected(exchange.partner.identity, exchange.token, Activate, "nothing was fetched for it")
        return [unexpected, *self.answer(exchange, Status.ACTIVATE_FAIL, now)]

    # Mechanism.

    def _disclaim(self, message: Message, now: float, nonce: bytes) -> list[Send]:
        """Tell a server that takes us for a member that we are none: it may not have heard that we have left."""
        server = self._partner(message.sender_id)
        under_way = any(mine.state in (_S.LEAVING, _S.DEREGISTERING, *WAITING) for mine in server.exchanges.values())
        knows = message.sequence_id < server.decided  # it has let us out since
        if server.member or under_way or knows or not self._binds(server):
            return []
        return self._ask(server.identity, _S.LEAVING, ResignRequest, now, nonce, None, detail=_DISCLAIMED)

    def _activation(self, order: Exchange) -> Event:
        """Have firmware activated; until the owner says what became of it, nothing older is."""
        version = self._version(order)
        if version is not None:
            self._activating[order.token] = version
        return ActivationRequested(order.partner.identity, order.token, order.detail[1])

    def _activation_floor(self) -> int | None:
        """Return the lowest version that may be activated now: not below what is just being activated (T12)."""
        return None if self.version_floor is None else max(self.version_floor, *self._activating.values(), 0)

    @staticmethod
    def _version(order: Exchange) -> int | None:
        bound = tokens.parse(order.token)
        return None if bound is None else bound.version

    def _join(self, server: int, *arguments: Any, **fields: Any) -> list[Send]:
        sends = super()._join(server, *arguments, **fields)
        for leaving in self._partners[server].exchanges.values():
            if leaving.state is _S.LEAVING:  # sent again it would come after the join, and undo it
                leaving.retry = 0.0
        return sends

    def _leave(self, exchange: Exchange, cause: Message, now: float) -> list[Output]:
        partner, ours = exchange.partner, exchange.request
        partner.decided = max(partner.decided, cause.sequence_id)
        self._stop_joining(partner, now, None if ours is None else ours.sequence_id)
        return [*self._end_membership(partner, now), Left(partner.identity, exchange.token)]

    def _end_membership(self, partner: Partner, now: float) -> list[Output]:
        partner.member = False
        return self._drop_orders(partner, now)

    def _part_for_good(self, partner: Partner, token: bytes) -> Output:
        self.forget(partner.identity)
        return Deregistered(partner.identity, token)
