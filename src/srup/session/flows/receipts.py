"""Receipts, which name the values that a partner has for good (docs/extensions.md, "Receipts")."""

import math
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from ... import tokens
from ...errors import PolicyError
from ...messages import Data
from ...wire import DATA_RECEIPT, Status
from ..events import TokenChanged
from ..exchange import Exchange, Peer
from ..flow import Flow, Now, Output, Send
from ..policy import MAX_SEQUENCE_ID
from ..streams import StreamPosition, read_receipt
from ..table import ExchangeStart, State, Transition, Trigger
from .data import DataState

if TYPE_CHECKING:
    from ..engine import Session

__all__ = ["ReceiptState", "Receipts"]


class ReceiptState(State):
    """A receipt."""

    NEW = "nothing happened yet"
    TAKEN = "noted"


_S = ReceiptState
_BEHIND: Final = 1.0  # seconds by which a token expires too early if the clock was behind when it was made


def _nonce(now: Now, number: int) -> bytes:
    """Return one of many nonces of a step."""
    return sha256(now.nonce + number.to_bytes(8, "big")).digest()[: tokens.NONCE_SIZE]


class Receipts(Flow):
    """A partner says up to which position our values are there for good; we say so to it."""

    states = ReceiptState
    table = {(_S.NEW, Data): Transition(_S.TAKEN, "receipt_received")}
    starts_by_data_id = {DATA_RECEIPT: ExchangeStart(_S.NEW, members_only=False, remembered=False)}

    def receipts_due(self, now: float) -> list[int]:
        """Return the partners that are to get a receipt now; call :meth:`receipt` for each."""
        return self.session.streams.due(now)

    def receipt(self, partner: int, now: float, nonce: bytes) -> list[Send]:
        """Tell a partner up to which position its values are here for good."""
        data = self.session.streams.give_receipt(partner, now)
        exchange = self.session.unremembered(partner, _S.TAKEN, now, nonce)
        with suppress(PolicyError):  # no sequence id is left for that partner, and it has seen to that itself
            return [self.session.send(exchange, Data, data_id=DATA_RECEIPT, data=data)]
        return []

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self.begun: dict[int, float] = {}  # when the values for a partner were last sent as a new stream

    # Effects.

    def receipt_received(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """A partner has the values of ours up to this position for good, or has refused them."""
        there, refused = read_receipt(cause.data)
        peer = exchange.peer
        waiting = peer.in_state(DataState.UNCONFIRMED)
        here = self.session.streams.sent.get(peer.identity, StreamPosition())
        if waiting and there.stream > here.stream:
            pause = now.time - self.begun.get(peer.identity, -math.inf)
            if pause < self.session.policy.first_retry:
                return []  # all was sent again just now, and will be once more when this is said again (T9)
            if there.stream + 1 > MAX_SEQUENCE_ID:
                raise PolicyError(f"no stream is left after the one that {peer.identity:x} names")
            return self._begin_stream(peer, waiting, there.stream + 1, now)
        arrived = [mine for mine in waiting if mine.detail <= there]
        outputs: list[Output] = []
        for mine in arrived:
            said = Status.DATA_TYPE_UNKNOWN if refused.has(mine.detail) else Trigger.CONFIRM
            outputs += self.session.step(mine, said, cause, now)
        first = min((mine for mine in waiting if mine.detail > there), key=lambda mine: mine.detail, default=None)
        return outputs if first is None else [*outputs, *self._skip_gap(first, there, now)]

    def on_clock_set(self, now: Now) -> list[Output]:
        """Send values again that a partner takes for expired: our clock was behind when their tokens were made.

        They keep their positions, so a partner that has taken one all the same does not take it again.
        """
        outputs: list[Output] = []
        if not self.session.policy.has_clock:
            return outputs
        for peer in list(self.session.known.peers.values()):
            for mine in peer.in_state(DataState.UNCONFIRMED):
                bound = tokens.parse(mine.token)
                if bound is not None and bound.expiry + _BEHIND < self.session.token_expiry(peer, mine.expiry):
                    outputs += self._reissue(mine, mine.detail, bound.after, _nonce(now, len(outputs)))
        return outputs

    def on_revoked(self, peer: Peer, now: float) -> list[Output]:
        """Forget what was sent to it."""
        self.begun.pop(peer.identity, None)
        return []

    # Mechanism.

    def _begin_stream(self, peer: Peer, waiting: list[Exchange], stream: int, now: Now) -> list[Output]:
        """Send what waits as a new stream: we have forgotten the last one, and the partner takes no earlier one."""
        self.begun[peer.identity] = now.time
        outputs: list[Output] = []
        again = sorted(waiting, key=lambda each: each.detail)
        for number, mine in enumerate(again, 1):
            outputs += self._reissue(mine, StreamPosition(stream, number), number - 1, _nonce(now, number))
            self.session.streams.set_sent(peer.identity, mine.detail)
        return [*outputs, *self.session.send_all_again(again, now.time)]

    def _skip_gap(self, first: Exchange, there: StreamPosition, now: Now) -> list[Output]:
        """Let the first value that waits follow the last one that is there, if it would wait for one that never comes.

        What lay between has expired, or the partner has forgotten it. A receipt that is old by now does no harm: the
        value keeps its number, and a partner that has taken it does not take it again.
        """
        position: StreamPosition = first.detail
        reached, bound = there.reached(position.stream), tokens.parse(first.token)
        if reached is None or bound is None or reached >= bound.after:
            return []
        return [*self._reissue(first, position, reached, now.nonce), *self.session.send_again(first, now.time)]

    def _reissue(self, mine: Exchange, position: StreamPosition, after: int, nonce: bytes) -> list[Output]:
        """Give a value another position in its token; it is to be sent again."""
        peer, session = mine.peer, self.session
        expiry = session.token_expiry(peer, mine.expiry)
        former = mine.token
        token = tokens.bind(session.identity, peer.identity, expiry, nonce, place=position, after=after)
        mine.detail = position
        session.known.rename(mine, token)
        return [TokenChanged(peer.identity, token, former)]
