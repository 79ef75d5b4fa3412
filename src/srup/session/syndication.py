"""A server that takes part in syndications (docs/protocol/flows.md#syndication; T16)."""

from collections.abc import Collection

from ..messages import (
    SyndicatedAction,
    SyndicatedC2Request,
    SyndicatedData,
    SyndicatedDeviceCount,
    SyndicatedDeviceList,
    SyndicatedEndRequest,
    SyndicatedIdRequest,
    SyndicatedTerminate,
    SyndicationRequest,
)
from ..records import Changes, Fact, State
from .engine import Session, command
from .flow import Output
from .flows.syndication_away import AwaySyndications
from .flows.syndication_home import HomeSyndications
from .policy import Policy
from .server import ServerSession
from .syndications import LISTING, SYNDICATION, Role, Syndication, Syndications

__all__ = ["Role", "SyndicationServerSession"]


class SyndicationServerSession(ServerSession):
    """A server that takes part in syndications, as home, as away, or both.

    ``syndication_devices`` are the identities that are registered as such (docs/protocol/flows.md#f-77) and may
    therefore ask for a syndication with us; change it at any time.
    """

    flow_types = (*ServerSession.flow_types, HomeSyndications, AwaySyndications)
    forwarded = frozenset(
        {
            *(SyndicatedDeviceCount, SyndicatedDeviceList, SyndicatedData, SyndicatedTerminate),
            *(SyndicationRequest, SyndicatedAction, SyndicatedIdRequest, SyndicatedC2Request, SyndicatedEndRequest),
        }
    )
    facts = Session.facts | {SYNDICATION, LISTING}

    def __init__(
        self,
        identity: int,
        policy: Policy | None = None,
        first_sequence_id: int = 1,
        syndication_devices: Collection[int] = (),
    ) -> None:
        super().__init__(identity, policy, first_sequence_id)
        self.syndications = Syndications()
        self.syndication_devices = set(syndication_devices)
        self._stored: dict[int, str] = {}  # what a store has of the syndications
        self._listing: dict[int, int] = {}  # lists that were not sent to their end before a restart

    def changes(self) -> Changes:
        """See :meth:`Session.changes`."""
        changes = super().changes()
        for device, text in self.syndications.take_changed():
            if text != self._stored.get(device):
                changes.facts.append(Fact(device, SYNDICATION, text))
                if text is None:
                    del self._stored[device]
                else:
                    self._stored[device] = text
        return changes

    def restore_fact(self, peer_id: int, name: str, value: str) -> None:
        """See :meth:`Session.restore_fact`."""
        if name == LISTING:
            self._listing[peer_id] = int(value)
        elif name != SYNDICATION:
            super().restore_fact(peer_id, name, value)
        elif peer_id in self.known.peers:
            self._stored[peer_id] = value
            self.syndications.restore(peer_id, value)

    def restore(self, state: State, now: float) -> list[Output]:
        """See :meth:`Session.restore`."""
        outputs = super().restore(state, now)
        for device, number in self._listing.items():
            self.flow(AwaySyndications).resume_list(device, number)
        self._listing.clear()
        return outputs

    def tick(self, now: float) -> list[Output]:
        """See :meth:`Session.tick`; sends more of our lists besides, and tells what has not come of others."""
        outputs = super().tick(now)
        return [*outputs, *self.flow(AwaySyndications).tick(now), *self.flow(HomeSyndications).tick(now)]

    def deadline(self) -> float | None:
        """See :meth:`Session.deadline`."""
        lists = (*self.flow(AwaySyndications).deadlines(), *self.flow(HomeSyndications).deadlines())
        dues = (super().deadline(), *lists)
        return min((due for due in dues if due is not None), default=None)

    def syndication(self, device: int) -> Syndication | None:
        """Return the syndication with this device, None if there is none; to be looked at only."""
        return self.syndications.by_device.get(device)

    begin_syndication = command(HomeSyndications, HomeSyndications.begin_syndication)
    request_list = command(HomeSyndications, HomeSyndications.request_list)
    syndicated_action = command(HomeSyndications, HomeSyndications.syndicated_action)
    syndicated_identify = command(HomeSyndications, HomeSyndications.syndicated_identify)
    syndicated_request = command(HomeSyndications, HomeSyndications.syndicated_request)
    end_syndication = command(HomeSyndications, HomeSyndications.end_syndication)
    shares = command(AwaySyndications, AwaySyndications.shares)
    accept_syndication = command(AwaySyndications, AwaySyndications.accept_syndication)
    refuse_syndication = command(AwaySyndications, AwaySyndications.refuse_syndication)
    share = command(AwaySyndications, AwaySyndications.share)
    allow = command(AwaySyndications, AwaySyndications.allow)
    refuse = command(AwaySyndications, AwaySyndications.refuse)
    terminate_syndication = command(AwaySyndications, AwaySyndications.terminate_syndication)
