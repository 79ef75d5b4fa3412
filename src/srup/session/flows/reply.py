"""Questions that a whole message may answer: what was asked is remembered with its answer, for repetitions."""

from collections import deque
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from ... import tokens
from ...errors import PolicyError
from ...messages import Message, Response
from ...wire import Status
from ..exchange import Exchange
from ..flow import Flow, Now, Output
from ..persistence import record
from ..policy import Policy

if TYPE_CHECKING:
    from ..engine import Session

__all__ = ["Asked", "Content", "Replying", "good_until"]

_OF_MEMBERSHIPS: Final = (0x5, 0x7)
"""The high digits of statuses that deployed peers take for the answer to a join or a resignation."""

_HEADER: Final = ("sequence_id", "sender_id", "token")

LONG_REPLY: Final = 256
"""The most bytes of a reply that is remembered for as long as its request."""

MAX_LONG_REPLIES: Final = 16
"""How many longer ones are remembered for each partner, the latest (T28)."""


@record("Content")
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

    @property
    def digest(self) -> Self:
        """What tells this content from any other, in few bytes."""
        return self._replace(fields=(("digest", sha256(repr(self.fields).encode()).digest()),))

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        return sum(len(value) if isinstance(value, bytes | str) else 8 for _, value in self.fields)


@record("Asked")
@dataclass(slots=True, eq=False)
class Asked:
    """What a partner asked under a token, until when it counts (Unix time), and what it was answered.

    Of a ``request`` that has been answered only the digest is left.
    """

    request: Content
    expiry: float
    reply: Content | None = None


def good_until(token: bytes, policy: Policy, now: float) -> float:
    """Return until when a request counts: its token says so, or else it is the policy's ``lifetime`` (T4).

    Both times are Unix times.
    """
    bound = tokens.parse(token) if policy.has_clock else None
    return bound.expiry if bound else now + policy.lifetime


class Replying(Flow):
    """Effects of exchanges whose detail is an :class:`Asked`.

    A deployed peer is not told how a syndication begins or ends: no handler of its waits for that (D-19), and it would
    take a 70 for its own resignation.
    """

    def answer(self, exchange: Exchange, cause: Status, now: Now) -> list[Output]:
        """See :meth:`Flow.answer`."""
        if self.is_understood(exchange, cause):
            return super().answer(exchange, cause, now)
        exchange.status = cause
        return []

    def repeat_answer(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """See :meth:`Flow.repeat_answer`."""
        said = exchange.status
        return [] if said and not self.is_understood(exchange, said) else super().repeat_answer(exchange, cause, now)

    def is_understood(self, exchange: Exchange, status: Status) -> bool:
        """Return whether the partner takes this status for what it is."""
        return status >> 4 not in _OF_MEMBERSHIPS or self.session.binds_tokens(exchange.peer)

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self._long: dict[int, deque[Exchange]] = {}  # those with long replies that are remembered, by partner

    def same_request(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The same request again; a token is good for one (T11)."""
        asked, content = exchange.detail, Content.of(cause)
        if not isinstance(asked, Asked) or asked.request not in (content, content.digest):
            raise PolicyError("the token belongs to another request")
        return []

    def reply(self, exchange: Exchange, cause: Content, now: Now) -> list[Output]:
        """Answer with this content."""
        fields = dict(cause.fields)
        status = fields.get("status")
        silent = status is not None and not self.is_understood(exchange, status)
        sends = [] if silent else [self.session.send(exchange, cause.cls, **fields)]
        self.note_reply(exchange, cause)
        return [*sends]

    def reply_again(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The same request again, which has been answered."""
        self.same_request(exchange, cause, now)
        if exchange.detail.reply is None:
            raise PolicyError("the answer is not remembered any more: it was long, and others came after it")
        return self.reply(exchange, exchange.detail.reply, now)

    def note_reply(self, exchange: Exchange, reply: Content) -> None:
        """Remember what was answered, and no more of the request than is needed (T28)."""
        again = exchange.detail.reply is reply
        exchange.detail.reply = reply
        self.forget_request(exchange, None, None)
        if reply.size > LONG_REPLY and not again:
            recent = self._long.setdefault(exchange.peer.identity, deque())
            recent.append(exchange)
            if len(recent) > MAX_LONG_REPLIES:
                former = recent.popleft()
                former.detail.reply = None
                if self.session.known.holds(former):
                    self.session.known.mark(former)

    def forget_request(self, exchange: Exchange, cause: Any, now: Now | None) -> list[Output]:
        """Nothing more is done about a request; what is left of it tells a repetition from another one."""
        request = exchange.detail.request
        if request.fields and request.fields[0][0] != "digest":
            exchange.detail.request = request.digest
        return []

    def ask_for(self, exchange: Exchange, cause: Message, now: Now) -> Asked:
        """Note what a partner asks."""
        until = good_until(exchange.token, self.session.policy, self.session.unix(now.time))
        asked = exchange.detail = Asked(Content.of(cause), until)
        return asked
