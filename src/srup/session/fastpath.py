"""The fast path of a session: ordinary values, nearly all that a server hears, without an exchange for each.

What is ordinary is decided here and, as far as agents know more, in :mod:`srup.agent.fastpath`. Whatever is not, goes
through :meth:`Session.receive`, which also says what is wrong with it. A value has the same effects on both ways.
"""

from typing import TYPE_CHECKING

from ..errors import SrupError
from ..messages import Data
from .flow import Flow
from .flows.data import Values
from .freshness import Signer

if TYPE_CHECKING:
    from .engine import Session

__all__ = ["FastPath"]


class FastPath:
    """Takes ordinary values for one session."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._known = session.known
        self._horizons = session.horizons
        self._freshness = session.freshness
        self._special = session.starts_by_data_id
        plain = session.starts.get(Data) is Values.starts[Data]
        # A flow that takes note of values may answer them.
        self._open = plain and all(type(flow).on_value is Flow.on_value for flow in session.flows)

    def take(self, message: Data, signer: Signer, unix: float) -> bool:
        """Take a value that ``signer`` has signed, whose key counts, as :meth:`Session.receive` would at ``unix`` time.

        An ordinary one comes from a member; it is new, in time, answers nothing, is none of the protocol's own, and
        wants no receipt. False, and nothing has changed but that a member's key is known, for any other.
        """
        sender, token = message.sender_id, message.token
        peer = self._known.peers.get(sender)
        if peer is None or not peer.member or not self._open:
            return False
        if (peer.exchanges and token in peer.exchanges) or message.data_id in self._special:
            return False
        if peer.signer is not signer:
            self._session.horizon_of(peer, signer, retiring=False)
        horizon = peer.horizon
        try:
            if not (binds := self._freshness.is_plain(sender, token, unix)):
                bound = self._freshness.check_token(peer, message, unix)
                if bound is not None and bound.receipt:
                    return False
                binds = peer.binds or bound is not None
            horizon.accept(message.sequence_id)
        except SrupError:
            return False
        peer.binds = binds
        self._horizons.leave(sender, horizon.key)
        self._known.mark_peer(peer)
        return True
