"""The server's end: lets devices in, commands and updates them (FLOWS.md, "Flows")."""

from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple

from ..errors import EncodeError, PolicyError
from ..messages import (
    Activate,
    Data,
    DeregisterCommand,
    DeregisterRequest,
    IdRequest,
    Initiate,
    Message,
    ResignRequest,
    Response,
    TerminateCommand,
)
from ..update import SERVER_TABLE, Step, Table, UpdateState, Word, is_digest
from ..wire import IDENTIFICATION_RESPONSE, Status
from .base import COMMON_TABLE, Exchange, Now, Opening, Output, Partner, Policy, Send
from .body import kept
from .events import Deregistered, Identified, Left, UpdateChanged
from .join import SERVER_JOINS, ServerJoins

__all__ = ["TABLE", "Order", "ServerSession", "ServerState"]


@kept
class Order(NamedTuple):
    """An update order; with ``hold`` it is activated when the owner says so."""

    url: str
    digest: str
    hold: bool


class ServerState(Enum):
    """Exchanges that only a server sees from this side."""

    NEW = "nothing happened yet"
    ANSWERED = "the device has its answer"
    IDENTIFYING = "the device is to say what it is"
    UNANSWERED = "the time is over"


_S = ServerState
TABLE: Final[Table] = {
    **COMMON_TABLE,
    **SERVER_TABLE,
    **SERVER_JOINS,
    (_S.NEW, ResignRequest): Step(_S.ANSWERED, "resigned"),
    (_S.ANSWERED, ResignRequest): Step(_S.ANSWERED, "repeat_answer"),
    (_S.NEW, DeregisterRequest): Step(_S.ANSWERED, "deregistered"),
    (_S.ANSWERED, DeregisterRequest): Step(_S.ANSWERED, "repeat_answer"),
    (_S.IDENTIFYING, Data): Step(_S.ANSWERED, "identified"),
    (_S.IDENTIFYING, Word.EXPIRE): Step(_S.UNANSWERED, "unanswered"),
}


class ServerSession(ServerJoins):
    """A server for any number of devices; the arguments are those of :class:`Session`."""

    table: ClassVar[Table] = TABLE
    openings = {
        **ServerJoins.openings,
        ResignRequest: Opening(_S.NEW),
        DeregisterRequest: Opening(_S.NEW, members_only=False),
    }
    for_strangers = ServerJoins.for_strangers | {DeregisterCommand}

    def __init__(self, identity: int, policy: Policy | None = None, first_sequence_id: int = 1) -> None:
        super().__init__(identity, policy, first_sequence_id)
        self._moderated = {}

    def identify(self, device: int, now: float, nonce: bytes) -> list[Send]:
        """Ask a device what it is; Identified or Unanswered follows."""
        return self._ask(device, _S.IDENTIFYING, IdRequest, now, nonce, None)

    def terminate(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """Put a device out. It does not answer; its messages are refused from now on."""
        sends = self._order_out(device, TerminateCommand, now, nonce)
        return [*sends, *self._part(self._partner(device), sends[0].message.token if sends else b"", now)]

    def deregister(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """Put a device out for good, joined or not; Deregistered says that its key is to be dropped."""
        sends = self._order_out(device, DeregisterCommand, now, nonce)
        return [*sends, *self._part_for_good(self._partner(device), sends[0].message.token if sends else b"", now)]

    def update(
        self,
        device: int,
        url: str,
        digest: str,
        now: float,
        nonce: bytes,
        lifetime: float | None = None,
        hold: bool = False,
        version: int | None = None,
    ) -> list[Send]:
        """Order new firmware; UpdateChanged follows at each step.

        The device is told to activate as soon as it has the file, or, with ``hold``, when :meth:`activate` is called.
        ``digest`` is the file's SHA-256 as 64 lower-case hex digits; anything else is an EncodeError. ``version``, a
        number below 10**18, lets a device with a version floor tell an old firmware from a new one (T12).
        """
        if not is_digest(digest):
            raise EncodeError("digest", "expected a SHA-256 as 64 lower-case hex digits")
        if lifetime is None:
            lifetime = self.policy.update_lifetime
        state = UpdateState.FETCHING
        fields: dict[str, Any] = {"url": url, "digest": digest}
        order = Order(url, digest, hold)
        return self._ask(device, state, Initiate, now, nonce, lifetime, detail=order, version=version, **fields)

    def activate(self, device: int, token: bytes, now: float) -> list[Output]:
        """Let a device activate what it has fetched under this token; PolicyError if it has nothing."""
        return self._drive(device, token, Word.ACTIVATE, None, now)

    def confirms(self, device: int) -> bool:
        """Tell whether this device will answer an Activate; deployed peers, which do not bind tokens, never do."""
        return self._binds(self._partner(device))

    # Effects.

    def resigned(self, exchange: Exchange, cause: ResignRequest, now: Now) -> list[Output]:
        """A device leaves."""
        outputs = self.answer(exchange, Status.RESIGN_SUCCESS, now)
        if cause.sequence_id < exchange.partner.decided:
            return outputs  # it has asked to be let in since, and that got here first
        exchange.partner.decided = cause.sequence_id
        outputs += self._obeyed(exchange.partner, now, handed_over=True)
        return [*outputs, *self._part(exchange.partner, exchange.token, now.time)]

    def deregistered(self, exchange: Exchange, cause: DeregisterRequest, now: Now) -> list[Output]:
        """A device leaves for good."""
        outputs = self.answer(exchange, Status.DEREGISTER_SUCCESS, now)
        exchange.partner.decided = max(exchange.partner.decided, cause.sequence_id)
        return [*outputs, *self._part_for_good(exchange.partner, exchange.token, now.time)]

    def data_received(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A value, or the answer to an IdRequest, which has a token of its own (FLOWS.md, "Tokens")."""
        waiting = [other for other in exchange.partner.exchanges.values() if other.state is _S.IDENTIFYING]
        if cause.data_id != IDENTIFICATION_RESPONSE or not waiting:
            return super().data_received(exchange, cause, now)
        step = self.table[_S.IDENTIFYING, Data]
        return [output for other in waiting for output in self._take(other, step, cause, now)]

    def identified(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A device said what it is."""
        if cause.data_id != IDENTIFICATION_RESPONSE:
            raise PolicyError(f"{cause.data_id[:80]!r} does not say what {exchange.partner.identity:x} is")
        return [Identified(exchange.partner.identity, exchange.token, cause.data.decode(errors="replace"))]

    def update_ready(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The device has the file."""
        ready = UpdateChanged(exchange.partner.identity, exchange.token, UpdateState.READY, Status(cause.status))
        if exchange.detail.hold:
            return [ready]
        return [ready, *self._take(exchange, self.table[UpdateState.READY, Word.ACTIVATE], None, now)]

    def send_activate(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The device is to activate the file."""
        if not exchange.partner.member:
            raise PolicyError(f"{exchange.partner.identity:x} is not joined: it would not take Activate")
        send = self._send(exchange, Activate)
        self._expect(exchange, send.message, resend=True)
        return [send, UpdateChanged(exchange.partner.identity, exchange.token, UpdateState.ACTIVATING, None)]

    def update_changed(self, exchange: Exchange, cause: Message | None, now: Now) -> list[Output]:
        """The update came to its end: activated, failed, or the time is over."""
        status = Status(cause.status) if isinstance(cause, Response) else None
        assert isinstance(exchange.state, UpdateState)  # noqa: S101 - only rows of SERVER_TABLE lead here
        return [UpdateChanged(exchange.partner.identity, exchange.token, exchange.state, status)]

    # Mechanism.

    def _order_out(self, device: int, command: type[Message], now: float, nonce: bytes) -> list[Send]:
        """Tell a device that it is out. It is out also if it cannot be told: it may have used up the sequence ids."""
        try:
            return self._ask(device, _S.ANSWERED, command, now, nonce, None, resend=False)
        except PolicyError:
            if not self.is_member(device) and command not in self.for_strangers:
                raise
            return []

    def _part(self, device: Partner, token: bytes, now: float) -> list[Output]:
        """End the membership, and what was still asked of the device: no answer to that will be taken any more."""
        device.member = False
        asked = [exchange for exchange in device.exchanges.values() if exchange.mine and self._is_open(exchange)]
        withdrawn = self._withdraw_joins(device, Now(now, b""))
        dropped = [*self._abandon(asked, now), *self._drop_orders(device, now)]
        return [*withdrawn, Left(device.identity, token), *dropped]

    def _part_for_good(self, device: Partner, token: bytes, now: float) -> list[Output]:
        left = self._part(device, token, now) if device.member else self._withdraw_joins(device, Now(now, b""))
        return [*left, Deregistered(device.identity, token)]
