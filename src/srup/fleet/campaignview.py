"""A campaign as it stands, and what lies between the records of a store and what is decided about."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..agent.reports import OrderReport
from ..agent.verbs import LONGEST_NAME, Activate, Cancel, Order, Update
from ..campaign import At, Campaign, Candidate, Document, Member, Outcome, Posting, State, read
from ..campaign.state import OVER, UNDER_WAY
from ..errors import StoreError
from ..store.campaigns import KeptCampaign
from ..store.mailbox import Post
from .devices import FleetDevice
from .where import where

__all__ = [
    "CampaignView",
    "busy_devices",
    "candidate",
    "dumped",
    "is_busy",
    "is_settled",
    "kept_campaign",
    "outcome_of",
    "post_of",
    "taking_part",
    "view_of",
]


@dataclass(frozen=True)
class CampaignView:
    """A campaign as it stands: its document, its own state, and its devices by identity."""

    document: Document
    campaign: Campaign
    members: Mapping[int, Member]

    @property
    def name(self) -> str:
        """By which it is asked for."""
        return self.document.name

    def counts(self, group: int | None = None) -> dict[At, int]:
        """Return how many devices are in each state that any is in, of one group or of all."""
        counted = Counter(each.at for each in self.members.values() if group in (None, each.group))
        return {at: counted[at] for at in At if counted[at]}

    def reasons(self, states: Iterable[At]) -> list[tuple[str, int]]:
        """Return why devices are in these states, and how many for each reason, the commonest first."""
        wanted = set(states)
        counted = Counter(each.reason for each in self.members.values() if each.at in wanted and each.reason)
        return sorted(counted.items(), key=lambda each: (-each[1], each[0]))


def candidate(device: FleetDevice, matches: bool = True) -> Candidate:
    """Return what a decision needs to know of a device; its type and its zone are tags, or what it reports."""
    zone = {} if (known := device.label("zone")) is None else {"zone": known}
    tags = {**zone, **device.tags}
    return Candidate(device.identity, device.member, matches, device.type, device.version, device.firmware, tags)


def kept_campaign(kept: KeptCampaign) -> Campaign:
    """Return a campaign's own state."""
    return Campaign.load(kept.record)


def view_of(kept: KeptCampaign) -> CampaignView:
    """Return a campaign; StoreError for what is not readable."""
    try:
        content = json.loads(kept.document)
        document = read(content["text"], kept.name, where=where, known=(content["digest"], content["size"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the document of campaign {kept.name} is not readable: {error}") from None
    return CampaignView(
        document, kept_campaign(kept), {device: Member.load(record) for device, record in sorted(kept.devices.items())}
    )


def dumped(members: Mapping[int, Member]) -> dict[int, bytes]:
    """Return devices as they are kept."""
    return {device: member.dump() for device, member in members.items()}


def busy_devices(kept: Iterable[KeptCampaign], name: str) -> dict[int, str]:
    """Return who takes part in which campaign but the one with this name; whoever is not readable may."""
    return {device: each.name for each in kept if each.name != name for device in taking_part(each)}


def taking_part(kept: KeptCampaign) -> Iterator[int]:
    """Give the devices that a campaign is at work with, or will be; its document is of no account."""
    try:
        state = kept_campaign(kept).state
    except StoreError:
        state = State.RUNNING
    for device, record in kept.devices.items():
        try:
            busy = is_busy(state, Member.load(record))
        except StoreError:
            busy = True
        if busy:
            yield device


def is_busy(state: State, member: Member) -> bool:
    """Return whether a device takes part in a campaign that is in this state."""
    return member.at in UNDER_WAY or (member.at is At.WAITING and state not in OVER)


def is_settled(kept: KeptCampaign) -> bool:
    """Return whether nothing is left to do about a campaign; not if its record says nothing that can be read."""
    try:
        return kept_campaign(kept).settled
    except StoreError:
        return False


def outcome_of(device: int, report: bytes | None, now: float) -> Outcome:
    """Return what a report says; who says it stands beside it, so that equal reasons are counted together."""
    if report is None:
        return Outcome(now, "FAILED", True, "lost", "what became of its order is not known any more")
    told = OrderReport.load(report)
    state = told.state if told.value is None or told.error is not None else told.value
    return Outcome(told.at, state, told.over, told.error, (told.text or "").removeprefix(f"device {device:x} reports "))


def post_of(document: Document, posting: Posting, now: float) -> Post:
    """Return the order that was decided, as it is posted."""
    firmware, device = document.firmware, posting.device
    order: Order
    match posting.verb:
        case "update":
            lifetime = posting.lifetime
            order = Update(device, firmware.url, firmware.digest, document.held, firmware.version, lifetime)
        case "activate":
            order = Activate(device, posting.about.hex(), posting.lifetime)
        case _:
            order = Cancel(device, posting.about.hex())
    report = OrderReport(round(now, 3), order.verb, "POSTED")
    order = replace(order, posted_by=f"campaign {document.name}"[:LONGEST_NAME])
    return Post(device, posting.id, order.checked().dump(), report.dump(), order.urgent)
