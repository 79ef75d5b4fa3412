"""Questions that a whole message may answer: what was asked is remembered with its answer, for repetitions."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from .. import tokens
from ..errors import PolicyError
from ..messages import Message, Response
from ..wire import Status
from .base import Exchange, Now, Output, Policy, Session
from .body import kept

__all__ = ["Asked", "Content", "Replying", "good_until"]

_HEADER: Final = ("sequence_id", "sender_id", "token")


@kept
class Content(NamedTuple):
    """A message without its header: what is the same on both hops of a relay, and in every repetition."""

    cls: type[Message]
    fields: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, message: Message) -> Self:
        """Return the content of a message."""
        return cls(type(message), tuple((name, value) for name, value in message if name not in _HEADER))

    @classmethod
    def status(cls, status: Status) -> Self:
        """Return the content of a Response."""
        return cls(Response, (("status", status),))


@kept
@dataclass(slots=True, eq=False)
class Asked:
    """What a partner asked under a token, until when it counts, and what it was answered."""

    request: Content
    expiry: float
    reply: Content | None = None


def good_until(token: bytes, policy: Policy, now: float) -> float:
    """Return until when a request counts: its token says so, or else it is the policy's ``lifetime`` (T4)."""
    bound = tokens.parse(token) if policy.has_clock else None
    return bound.expiry if bound else now + policy.lifetime


class Replying(Session):
    """Effects of exchanges whose detail is an :class:`Asked`."""

    def same_request(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The same request again; a token is good for one (T11)."""
        if not isinstance(exchange.detail, Asked) or exchange.detail.request != Content.of(cause):
            raise PolicyError("the token belongs to another request")
        return []

    def reply(self, exchange: Exchange, cause: Content, now: Now) -> list[Output]:
        """Answer with this content."""
        send = self._send(exchange, cause.cls, **dict(cause.fields))
        exchange.detail.reply = cause
        return [send]

    def reply_again(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The same request again, which has been answered."""
        self.same_request(exchange, cause, now)
        return self.reply(exchange, exchange.detail.reply, now)

    def _asked(self, exchange: Exchange, cause: Message, now: Now) -> Asked:
        """Note what a partner asks."""
        asked = exchange.detail = Asked(Content.of(cause), good_until(exchange.token, self.policy, now.time))
        return asked
