"""The device's end: joins a server, takes its commands and updates, sends values (docs/protocol/flows.md)."""

from collections.abc import Collection

from ..errors import PolicyError
from ..messages import Action, IdRequest, Message
from ..versions import MAX_VERSION
from .common import COMMON_FLOWS, CommonSession
from .engine import command
from .flow import Output
from .flows.identify import DeviceIdentification
from .flows.join import DeviceJoins
from .flows.leaving import DeviceLeaving
from .flows.update import DeviceUpdates
from .freshness import Signer
from .policy import Policy, check_number

__all__ = ["DeviceSession"]


class DeviceSession(CommonSession):
    """A device: ``servers`` are the identities that it obeys; ``description`` is what it says it is.

    ``commanders`` are those of the servers whose JoinCommand it follows although it is not joined to them (T10). With a
    ``version_floor`` only firmware is taken whose order names a version that is not below it; what gets activated
    becomes the new floor (T12).
    """

    flow_types = (*COMMON_FLOWS, DeviceUpdates, DeviceJoins, DeviceLeaving, DeviceIdentification)
    forwarded = frozenset({Action, IdRequest})  # what the home server of a syndication asks for

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
            check_number(version_floor, "version_floor", 0, MAX_VERSION)
        self.joins = self.flow(DeviceJoins)
        self.leaving = self.flow(DeviceLeaving)
        self.version_floor = version_floor
        self.about_to_join: int | None = None
        """The server that our owner is going to ask to let us in; it is not told that we are no member."""
        self.servers = frozenset(servers)
        self.commanders = frozenset(commanders)
        self.description = description

    def receive(
        self, message: Message, now: float, nonce: bytes, signer: Signer | None = None, *, retiring: bool = False
    ) -> list[Output]:
        """See :meth:`Session.receive`; a sender that is none of the device's servers is a PolicyError (T10)."""
        if message.sender_id not in self.servers:
            raise PolicyError(f"{message.sender_id:x} is none of this device's servers")
        outputs = super().receive(message, now, nonce, signer, retiring=retiring)
        return [*outputs, *self.leaving.disclaim(message, outputs, now, nonce)]

    def is_leaving(self, server: int) -> bool:
        """Return whether this server has yet to answer that we leave."""
        return self.leaving.is_under_way(self.peer(server))

    def forget(self, server: int) -> None:
        """Obey this server no more, from now on."""
        self.servers -= {server}
        self.commanders -= {server}

    join = command(DeviceJoins, DeviceJoins.join)
    join_human = command(DeviceJoins, DeviceJoins.join_human)
    join_observed = command(DeviceJoins, DeviceJoins.join_observed)
    answer_observation = command(DeviceJoins, DeviceJoins.answer_observation)
    resign = command(DeviceLeaving, DeviceLeaving.resign)
    leave = command(DeviceLeaving, DeviceLeaving.leave)
    deregister = command(DeviceLeaving, DeviceLeaving.deregister)
    fetched = command(DeviceUpdates, DeviceUpdates.fetched)
    fetch_failed = command(DeviceUpdates, DeviceUpdates.fetch_failed)
    activated = command(DeviceUpdates, DeviceUpdates.activated)
    activation_failed = command(DeviceUpdates, DeviceUpdates.activation_failed)
    ordered = command(DeviceUpdates, DeviceUpdates.ordered)
