"""The server's end: lets devices in, commands and updates them (docs/protocol/flows.md)."""

from ..errors import PolicyError
from .common import COMMON_FLOWS, CommonSession
from .engine import command
from .fastpath import FastPath
from .flow import Send
from .flows.identify import ServerIdentification
from .flows.join_server import ServerJoins
from .flows.leaving import ServerLeaving
from .flows.update import Order, ServerUpdates
from .policy import Policy

__all__ = ["Order", "ServerSession"]


class ServerSession(CommonSession):
    """A server for any number of devices; the arguments are those of :class:`Session`."""

    flow_types = (*COMMON_FLOWS, ServerUpdates, ServerJoins, ServerLeaving, ServerIdentification)

    def __init__(self, identity: int, policy: Policy | None = None, first_sequence_id: int = 1) -> None:
        super().__init__(identity, policy, first_sequence_id)
        self.joins = self.flow(ServerJoins)
        self.fast_path = FastPath(self)

    def confirms(self, device: int) -> bool:
        """Return whether this device will answer an Activate; deployed peers, which bind no tokens, never do."""
        return self.binds(device)

    def rotate(self, partner: int, data: bytes, now: float, nonce: bytes, lifetime: float | None = None) -> list[Send]:
        """See :meth:`KeyRotations.rotate`; PolicyError for a device that binds no tokens: it would not survive it."""
        if not self.binds(partner):
            raise PolicyError(f"{partner:x} does not bind its tokens, and knows of no rotations")
        return super().rotate(partner, data, now, nonce, lifetime)

    answer_join = command(ServerJoins, ServerJoins.answer_join)
    show_value = command(ServerJoins, ServerJoins.show_value)
    observe = command(ServerJoins, ServerJoins.observe)
    command_join = command(ServerJoins, ServerJoins.command_join)
    identify = command(ServerIdentification, ServerIdentification.identify)
    terminate = command(ServerLeaving, ServerLeaving.terminate)
    deregister = command(ServerLeaving, ServerLeaving.deregister)
    update = command(ServerUpdates, ServerUpdates.update)
    cancel_order = command(ServerUpdates, ServerUpdates.cancel_order)
    activate = command(ServerUpdates, ServerUpdates.activate)
