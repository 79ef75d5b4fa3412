"""A syndication device: two devices in one, on two networks that never meet (docs/protocol/flows.md#f-70; T16).

Each side is a session of its own; what goes across stands in :mod:`.flows.relay`.
"""

from collections.abc import Collection

from ..messages import Activate, Initiate, JoinCommand, ObservationRequest
from .device import DeviceSession
from .engine import command
from .flows.relay import TO_HOME, AwayRelay, Crossing, HomeRelay, RelayAnswered, Relayed, RelayFlow, failure
from .policy import Policy

__all__ = ["AwaySide", "Crossing", "HomeSide", "RelayAnswered", "Relayed", "Side", "failure"]


class Side(DeviceSession):
    """One side of a syndication device; ``server`` is the only one that it knows."""

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
        super().__init__(identity, servers, policy, first_sequence_id, description, commanders, version_floor)
        if len(self.servers) != 1:
            raise ValueError(f"a side of a syndication device has one server, not {len(self.servers)}")
        [self.server] = self.servers

    cross = command(RelayFlow, RelayFlow.cross)


class HomeSide(Side):
    """The side of the home server. It is a device like any other besides."""

    flow_types = (*DeviceSession.flow_types, HomeRelay)

    answer_init = command(HomeRelay, HomeRelay.answer_init)


class AwaySide(Side):
    """The side of the away server, which may neither update this device nor send it elsewhere."""

    flow_types = (*DeviceSession.flow_types, AwayRelay)
    refused_starts = frozenset({Activate, Initiate, JoinCommand, ObservationRequest})
    forwarded = DeviceSession.forwarded | TO_HOME.keys()

    @property
    def syndicated(self) -> bool:
        """Whether there is a syndication."""
        return self.flow(AwayRelay).syndicated

    @syndicated.setter
    def syndicated(self, value: bool) -> None:
        self.flow(AwayRelay).syndicated = value

    request_syndication = command(AwayRelay, AwayRelay.request_syndication)
