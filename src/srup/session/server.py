"""The server's end: lets devices in, commands and updates them (FLOWS.md, "Flows")."""

from enum import Enum
from typing import Any, ClassVar, Final

from ..errors import EncodeError, PolicyError
from ..messages import (
    Activate,
    Data,
    IdRequest,
    Initiate,
    JoinRequest,
    Message,
    ResignRequest,
    Response,
    TerminateCommand,
)
from ..update import SERVER_TABLE, Step, Table, UpdateState, Word, is_digest
from ..wire import IDENTIFICATION_RESPONSE, Status
from .base import COMMON_TABLE, Exchange, Now, Opening, Output, Partner, Send, Session, check_status
from .events import Identified, JoinAnswered, JoinRequested, Left, UpdateChanged

__all__ = ["TABLE", "ServerSession", "ServerState"]


class ServerState(Enum):
    """Exchanges that only a server sees from this side."""

    NEW = "nothing happened yet"
    DECIDING = "the application is to say whether the device may join"
    ANSWERED = "the device has its answer"
    IDENTIFYING = "the device is to say what it is"
    UNANSWERED = "the time is over"


_S = ServerState
_JOIN_RESULTS: Final = (Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL)

TABLE: Final[Table] = {
    **COMMON_TABLE,
    **SERVER_TABLE,
    (_S.NEW, JoinRequest): Step(_S.DECIDING, "join_requested"),
    (_S.DECIDING, JoinRequest): Step(_S.DECIDING),
    (_S.DECIDING, Word.ANSWER): Step(_S.ANSWERED, "answer_to_join"),
    (_S.DECIDING, Word.EXPIRE): Step(_S.UNANSWERED),
    (_S.ANSWERED, JoinRequest): Step(_S.ANSWERED, "repeat_join_answer"),
    (_S.NEW, ResignRequest): Step(_S.ANSWERED, "resigned"),
    (_S.ANSWERED, ResignRequest): Step(_S.ANSWERED, "repeat_answer"),
    (_S.IDENTIFYING, Data): Step(_S.ANSWERED, "identified"),
    (_S.IDENTIFYING, Word.EXPIRE): Step(_S.UNANSWERED, "unanswered"),
}


class ServerSession(Session):
    """A server for any number of devices; ``first_sequence_id`` is as in :class:`Session`."""

    table: ClassVar[Table] = TABLE
    openings = {
        **Session.openings,
        JoinRequest: Opening(_S.NEW, members_only=False),
        ResignRequest: Opening(_S.NEW),
    }

    def answer_join(self, device: int, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer a JoinRequested with JOIN_SUCCESS, JOIN_REFUSED or JOIN_FAIL."""
        check_status(status, _JOIN_RESULTS)
        return self._drive(device, token, Word.ANSWER, status, now)

    def identify(self, device: int, now: float, nonce: bytes) -> list[Send]:
        """Ask a device what it is; Identified or Unanswered follows."""
        return self._ask(device, _S.IDENTIFYING, IdRequest, now, nonce, None)

    def terminate(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """Put a device out. It does not answer; its messages are refused from now on."""
        [send] = self._ask(device, _S.ANSWERED, TerminateCommand, now, nonce, None, resend=False)
        return [send, *self._part(self._partner(device), send.message.token, now)]

    def revoke(self, device: int) -> list[Output]:
        """Forget a device whose key counts no longer, with all that is under way; nothing is sent.

        Left follows if it was a member. Should the identity come back with another key, it is a new partner.
        """
        side = self._partners.pop(device, None)
        if side is None:
            return []
        for exchange in list(side.exchanges.values()):
            self._forget(exchange)
        return [Left(device, b"")] if side.member else []

    def update(
        self,
        device: int,
        url: str,
        digest: str,
        now: float,
        nonce: bytes,
        lifetime: float | None = None,
        hold: bool = False,
    ) -> list[Send]:
        """Order new firmware; UpdateChanged follows at each step.

        The device is told to activate as soon as it has the file, or, with ``hold``, when :meth:`activate` is called.
        ``digest`` is the file's SHA-256 as 64 lower-case hex digits; anything else is an EncodeError.
        """
        if not is_digest(digest):
            raise EncodeError("digest", "expected a SHA-256 as 64 lower-case hex digits")
        if lifetime is None:
            lifetime = self.policy.update_lifetime
        state = UpdateState.FETCHING
        return self._ask(device, state, Initiate, now, nonce, lifetime, detail=hold, url=url, digest=digest)

    def activate(self, device: int, token: bytes, now: float) -> list[Output]:
        """Let a device activate what it has fetched under this token; PolicyError if it has nothing."""
        return self._drive(device, token, Word.ACTIVATE, None, now)

    def confirms(self, device: int) -> bool:
        """Tell whether this device will answer an Activate; deployed peers, which do not bind tokens, never do."""
        return self._binds(self._partner(device))

    # Effects.

    def join_requested(self, exchange: Exchange, cause: JoinRequest, now: Now) -> list[Output]:
        """A device wants in."""
        return [JoinRequested(exchange.partner.identity, exchange.token)]

    def answer_to_join(self, exchange: Exchange, cause: Status, now: Now) -> list[Output]:
        """The application has decided."""
        event = JoinAnswered(exchange.partner.identity, exchange.token, cause)
        outputs = [event, *self.answer(exchange, cause, now)]
        exchange.partner.member = cause is Status.JOIN_SUCCESS
        return outputs

    def repeat_join_answer(self, exchange: Exchange, cause: JoinRequest, now: Now) -> list[Output]:
        """Answer as before, unless the device has been put out since: it may have missed both."""
        if exchange.status is Status.JOIN_SUCCESS and not exchange.partner.member:
            return self.answer(exchange, Status.JOIN_REFUSED, now)
        return self.repeat_answer(exchange, cause, now)

    def resigned(self, exchange: Exchange, cause: ResignRequest, now: Now) -> list[Output]:
        """A device leaves."""
        outputs = self.answer(exchange, Status.RESIGN_SUCCESS, now)
        return [*outputs, *self._part(exchange.partner, exchange.token, now.time)]

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
        if exchange.detail:
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

    def _part(self, device: Partner, token: bytes, now: float) -> list[Output]:
        """End the membership, and what was still asked of the device: no answer to that will be taken any more."""
        device.member = False
        asked = [exchange for exchange in device.exchanges.values() if exchange.mine and self._is_open(exchange)]
        return [Left(device.identity, token), *self._abandon(asked, now)]
