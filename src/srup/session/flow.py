"""What every kind of exchange has: states, rows, what starts it, what survives, and its effects."""

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..errors import PolicyError
from ..messages import Message, Response
from .events import Event, Unanswered
from .exchange import Exchange, Peer
from .table import ExchangeStart, Table

if TYPE_CHECKING:
    from .engine import Session

__all__ = ["Flow", "Now", "Output", "Send"]


class Send(NamedTuple):
    """A message to sign and publish for partner ``to``; ``again`` if it repeats a request of ours under its token."""

    to: int
    message: Message
    again: bool = False


Output = Send | Event


class Now(NamedTuple):
    """The arguments of one step: the time in seconds and 16 fresh random bytes."""

    time: float
    nonce: bytes


class Flow:
    """One kind of exchange at one end of it; a session has one object of each of its flows.

    ``states`` are its own, ``table`` its rows. Effects are methods that rows name: they take the exchange, which is in
    its new state, what has come, and the time; they return what is to be sent and told, and assign no state. If an
    effect raises PolicyError the exchange is as it was before.
    """

    states: ClassVar[type[Enum]]
    table: ClassVar[Table] = {}
    starts: ClassVar[Mapping[type[Message], ExchangeStart]] = {}
    """Messages that begin an exchange."""
    starts_by_data_id: ClassVar[Mapping[str, ExchangeStart]] = {}
    """Values that begin one, by their ``data_id``."""
    causes_by_data_id: ClassVar[Mapping[str, type[Message]]] = {}
    """Values that say the same as a message of another type, and more: they take its rows."""
    volatile: ClassVar[frozenset[Enum]] = frozenset()
    """States that do not outlast the process: whoever waits asks again."""
    allowed_before_join: ClassVar[frozenset[type[Message]]] = frozenset()
    """Requests of ours that do not need a membership."""
    idempotent: ClassVar[frozenset[type[Message]]] = frozenset()
    """Requests of ours that do no harm when a deployed peer takes a retransmission for a new one."""

    def __init__(self, session: "Session") -> None:
        self.session = session

    def calls_handler(self, peer: Peer, message: Message) -> bool:
        """Return whether the application has a handler called for a message that begins an exchange here."""
        return False

    def goes_on_asking(self, exchange: Exchange, unix: float) -> bool:
        """Return whether a request is to be sent again at this Unix time, though it is not answered or expired."""
        return True

    # What other flows let it know. Each returns what follows from it here.

    def on_answer(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Take note that a request of ours is answered, which this flow may have asked for somebody else."""
        return []

    def on_value(self, peer: Peer, value: Any, now: Now) -> list[Output]:
        """Take note of a value that a peer sent."""
        return []

    def on_membership_lost(self, peer: Peer, token: bytes, now: float) -> list[Output]:
        """Take note that a peer and we are not joined any more."""
        return []

    def on_revoked(self, peer: Peer, now: float) -> list[Output]:
        """Take note that a peer is forgotten, for its key counts no longer."""
        return []

    def on_clock_set(self, now: Now) -> list[Output]:
        """Take note that Unix time is another one now: what is in tokens may be wrong."""
        return []

    # Effects that many have.

    def answer(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """Answer with the status that the owner gave."""
        send = self.session.send(exchange, Response, status=cause)
        exchange.status = cause
        return [send]

    def repeat_answer(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """Answer as before."""
        if exchange.status is None:
            raise PolicyError("there is no answer to repeat")
        return [self.session.send(exchange, Response, status=exchange.status)]

    def unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A request of ours expired."""
        request = type(exchange.request) if exchange.request is not None else Message
        return [Unanswered(exchange.peer.identity, exchange.token, request, exchange.request)]
