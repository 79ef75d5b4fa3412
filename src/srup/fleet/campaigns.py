"""Campaigns of a fleet: what an operator does with them, and what carries them out.

What is decided (:mod:`srup.campaign.decision`) and the orders that follow from it are written in one transaction, and
only if nobody else has changed a campaign meanwhile. So nothing is ordered twice, however many processes carry
campaigns out and whenever one of them is killed.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Self

from ..agent.reports import OrderReport
from ..agent.verbs import LONGEST_NAME, Activate, Cancel, Order, Update
from ..campaign import At, Campaign, Candidate, Decision, Document, Facts, Member, Outcome, Posting, State, decide, read
from ..campaign.state import ENDED, OVER, UNDER_WAY
from ..errors import PolicyError, SrupError, StoreError
from ..fetch import Fetcher, FetchPolicy, HttpFetcher
from ..store.campaigns import CampaignStore, KeptCampaign
from ..store.mailbox import CAPACITY, Post
from .devices import FleetDevice
from .where import where

if TYPE_CHECKING:
    from .fleet import Fleet

__all__ = ["CampaignRunner", "CampaignView", "Campaigns", "check_download", "load_document"]

log: Final = logging.getLogger("srup.fleet")

_LOOK: Final = 5.0  # seconds after which campaigns are looked at again though nothing seems to have changed
_TROUBLE: Final = (SrupError, ValueError, LookupError)  # of a store, or what one unreadable campaign brings about
_SHORTEST: Final = 0.2  # seconds between two looks, and
_SPARING: Final = 4.0  # times as long as the last one took
_CONFLICTS: Final = 50  # times that a change is made again because somebody else was quicker
_RETRIED: Final = frozenset({At.FAILED, At.UNANSWERED, At.CANCELLED, At.SKIPPED})

_Members = Mapping[int, Member]
_Edit = Callable[["CampaignView", float], tuple[Campaign, _Members]]


def load_document(path: str | Path) -> Document:
    """Read a campaign file; CampaignFileError, with line and column, for whatever is wrong, OSError without one."""
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, see byte {error.start}") from None
    return read(text, str(path), path.parent, where)


def check_download(document: Document, fetcher: Fetcher | None = None) -> None:
    """Fetch the firmware as a device would, and compare it; UpdateError when it is not there or another one."""
    firmware = document.firmware
    plain = firmware.url.lower().startswith("http:")
    with TemporaryDirectory(prefix="srup-") as folder:
        (fetcher or HttpFetcher(FetchPolicy(allow_http=plain))).fetch(firmware.url, firmware.digest, Path(folder))


@dataclass(frozen=True)
class CampaignView:
    """A campaign as it stands: its document, its own state, and its devices by identity."""

    document: Document
    campaign: Campaign
    members: _Members

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


class Campaigns:
    """The campaigns of a :class:`Fleet`, as its attribute ``campaigns``.

    PolicyError for what a campaign's state does not allow, or a name that is not known; StoreError as for the fleet.
    """

    def __init__(self, fleet: "Fleet", store: CampaignStore, clock: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._trouble: str | None = None

    # Looking.

    def all(self) -> list[CampaignView]:
        """Return all campaigns by name."""
        _, kept = self._store.campaigns()
        _, found = self._store.load(each.name for each in kept)
        return [_view(each) for each in found]

    def view(self, name: str) -> CampaignView:
        """Return a campaign."""
        return self._load(name)[1]

    # Steering.

    def plan(self, document: Document) -> tuple[CampaignView, Decision]:
        """Return what would be if a campaign began now, or at its start: the first decision. Nothing is changed.

        PolicyError when it would be for nobody.
        """
        now = max(self._clock(), document.window.start or 0.0)
        _, kept = self._store.campaigns()
        _, others = self._store.load(each.name for each in kept if not _campaign(each).settled)
        facts = Facts(self.candidates(document, now), {}, _busy((_view(each) for each in others), document.name))
        began = Campaign("", State.SCHEDULED, now)
        decision = decide(document, began, {}, facts, now)
        view = CampaignView(document, decision.campaign, decision.changed)
        if all(each.at is At.SKIPPED for each in view.members.values()):
            why = "; ".join(f"{count} {reason}" for reason, count in view.reasons([At.SKIPPED]))
            said = why or "no device matches its target"
            raise PolicyError(f"campaign {document.name} would be for nobody: {said}")
        return view, decision

    def apply(self, document: Document, by: str = "") -> CampaignView:
        """Begin a campaign. Whether its firmware can be had is another question: :func:`check_download`."""
        self.plan(document)
        now = self._clock()
        state = State.AWAITING_APPROVAL if document.approval.people else State.SCHEDULED
        campaign = Campaign(token_hex(16), state, now, by, created=now)
        content = {"text": document.text, "digest": document.firmware.digest, "size": document.firmware.size}
        for _ in range(_CONFLICTS):
            revision, kept = self._store.campaigns()
            if any(each.name == document.name for each in kept):
                raise PolicyError(f"there is a campaign {document.name} already; choose another name")
            if self._store.save(revision, document.name, campaign.dump(), {}, document=json.dumps(content).encode()):
                return CampaignView(document, campaign, {})
        raise StoreError(_too_busy(document.name))

    def pause(self, name: str, by: str = "") -> CampaignView:
        """Order nothing more for now. What was ordered goes on; what is held is not activated."""
        return self._enter(name, "paused", State.PAUSED, {State.SCHEDULED, State.RUNNING}, by)

    def resume(self, name: str, by: str = "") -> CampaignView:
        """Go on with a campaign that is paused."""
        return self._enter(name, "resumed", State.SCHEDULED, {State.PAUSED}, by)

    def abort(self, name: str, by: str = "") -> CampaignView:
        """End a campaign for good, and take back what no device was told to activate."""
        return self._enter(name, "aborted", State.ABORTED, set(State) - OVER | {State.STOPPED}, by)

    def approve(self, name: str, who: str) -> CampaignView:
        """Approve a campaign as ``who``, which must not be who has applied it, nor have approved it before."""

        def edit(view: CampaignView, now: float) -> tuple[Campaign, _Members]:
            campaign = view.campaign
            _check_state(view, "approved", {State.AWAITING_APPROVAL})
            if not who.strip():
                raise ValueError("a name is needed for who approves it")
            if who == campaign.by:
                raise PolicyError(f"{who} has applied campaign {name}: somebody else must approve it")
            if who in dict(campaign.approvals):
                raise PolicyError(f"{who} has approved campaign {name} already: somebody else must as well")
            return replace(campaign, approvals=(*campaign.approvals, (who, now))), {}

        return self._change(name, edit)

    def activate(self, name: str) -> CampaignView:
        """Let devices activate what they hold, where the file says that this is done at a command."""

        def edit(view: CampaignView, now: float) -> tuple[Campaign, _Members]:
            _check_state(view, "activated", set(State) - OVER)
            if view.document.activation.when != "command":
                raise PolicyError(f"campaign {name} activates {view.document.activation.when}, not at a command")
            return replace(view.campaign, may_activate=True), {}

        return self._change(name, edit)

    def retry(self, name: str, devices: Iterable[int] | None = None) -> CampaignView:
        """Try again with these devices, or with all that failed, did not answer, were skipped or taken back."""
        wanted = None if devices is None else set(devices)

        def edit(view: CampaignView, now: float) -> tuple[Campaign, _Members]:
            _check_state(view, "retried", {State.RUNNING, State.PAUSED, State.STOPPED, State.FINISHED})
            end = view.document.window.end
            if end is not None and now >= end:
                raise PolicyError(f"the end of campaign {name} has come: apply it under another name")
            again = {
                device: _retried(view, member, now)
                for device, member in view.members.items()
                if member.at in _RETRIED and (wanted is None or device in wanted)
            }
            if missing := sorted((wanted or set()) - again.keys()):
                raise PolicyError(f"{missing[0]:x} is not among those that campaign {name} could try again")
            if not again:
                raise PolicyError(f"campaign {name} has nobody to try again with")
            return replace(view.campaign, state=State.RUNNING, since=now, reason="", settled=False), again

        return self._change(name, edit)

    def _enter(self, name: str, verb: str, state: State, allowed: set[State], by: str) -> CampaignView:
        def edit(view: CampaignView, now: float) -> tuple[Campaign, _Members]:
            _check_state(view, verb, allowed)
            reason = f"{verb} by {by}" if by else ""
            return replace(view.campaign, state=state, since=now, reason=reason), {}

        return self._change(name, edit)

    def _change(self, name: str, edit: _Edit) -> CampaignView:
        for _ in range(_CONFLICTS):
            revision, view = self._load(name)
            campaign, changed = edit(view, self._clock())
            if self._store.save(revision, name, campaign.dump(), _dumped(changed)):
                return CampaignView(view.document, campaign, {**view.members, **changed})
        raise StoreError(_too_busy(name))

    def _load(self, name: str) -> tuple[int, CampaignView]:
        revision, found = self._store.load([name])
        if not found:
            raise PolicyError(f"there is no campaign {name}")
        return revision, _view(found[0])

    # Carrying out.

    def step(self) -> float | None:
        """Decide about all campaigns, once, and post what follows.

        Return when to do so again at the latest, in Unix time; None when there is nothing to wait for. What is wrong
        with one campaign is raised when the others have had their turn.
        """
        deadlines, troubles = [], []
        _, heads = self._store.campaigns()
        for name in (each.name for each in heads if not _campaign(each).settled):
            try:
                while (found := self._step(name)) is False:
                    pass  # somebody else was quicker
                deadlines.append(found)
            except _TROUBLE as trouble:
                troubles.append(trouble)
        if troubles:
            raise troubles[0]
        return min((at for at in deadlines if at), default=None)

    def _step(self, name: str) -> float | bool | None:
        """Decide about a campaign; return its deadline, or False when somebody has changed one meanwhile."""
        known, heads = self._store.campaigns()
        now = self._clock()
        revision, kept = self._store.load(
            each.name for each in heads if each.name == name or not _campaign(each).settled
        )
        if known != revision:
            return False
        views = {each.name: _view(each) for each in kept}
        if (view := views.get(name)) is None:
            return None
        waiting = sum(self._fleet.waiting().values())
        facts = Facts(
            {} if view.campaign.state in OVER else self.candidates(view.document, now),
            self._outcomes(view, now),
            _busy(views.values(), name),
            max(0, CAPACITY - waiting),
        )
        decision = decide(view.document, view.campaign, view.members, facts, now)
        if decision.campaign != view.campaign or decision.changed or decision.postings:
            posts = [_post(view.document, each, now) for each in decision.postings]
            if not self._store.save(revision, name, decision.campaign.dump(), _dumped(decision.changed), posts):
                return False
            _tell(name, decision)
        return decision.deadline

    def run(self, until: threading.Event) -> None:
        """Carry campaigns out until ``until`` is set; trouble with the store is logged, and tried again."""
        due: float | None = 0.0
        while not until.is_set():
            began = time.monotonic()
            try:
                due = self.step()
                self._trouble = None
            except _TROUBLE as error:
                if str(error) != self._trouble:
                    ours = isinstance(error, SrupError)
                    log.error("campaigns cannot be carried out now: %s", error, exc_info=None if ours else error)
                self._trouble = str(error)
                due = self._clock() + 1.0
            until.wait(max(_SHORTEST, _SPARING * (time.monotonic() - began)))
            left = _LOOK if due is None else min(_LOOK, due - self._clock())
            self._await(until, left)

    def _await(self, until: threading.Event, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not until.is_set() and (left := deadline - time.monotonic()) > 0:
            try:
                if self._store.await_change(min(left, 1.0)):
                    return
            except StoreError:
                until.wait(_SHORTEST)

    def candidates(self, document: Document, now: float) -> dict[int, Candidate]:
        """Return all devices of the fleet as a campaign sees them."""
        holds = None if document.target.where is None else where(document.target.where)
        return {
            device.identity: candidate(device, holds is None or holds(device, now)) for device in self._fleet.devices()
        }

    def _outcomes(self, view: CampaignView, now: float) -> dict[bytes, Outcome]:
        followed = {
            view.campaign.order_id(device, each.orders): device for device, each in view.members.items() if each.follows
        }
        reports = self._store.last_reports(followed)
        return {order: _outcome(device, reports.get(order), now) for order, device in followed.items()}

    def close(self) -> None:
        """Let go of the connections."""
        self._store.close()


class CampaignRunner:
    """Carries out the campaigns of a server in a thread, within a block; there may be several, in any processes."""

    def __init__(self, fleet: "Fleet") -> None:
        self._campaigns = fleet.campaigns
        self._until = threading.Event()
        self._thread = threading.Thread(target=self._campaigns.run, args=(self._until,), name="campaigns", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._until.set()
        self._thread.join()


# Between the records of a store and what is decided about.


def candidate(device: FleetDevice, matches: bool = True) -> Candidate:
    """Return what a decision needs to know of a device; its type and its zone are tags, or what it reports."""
    zone = {} if (known := device.label("zone")) is None else {"zone": known}
    tags = {**zone, **device.tags}
    return Candidate(device.identity, device.member, matches, device.type, device.version, device.firmware, tags)


def _campaign(kept: KeptCampaign) -> Campaign:
    return Campaign.load(kept.record)


def _view(kept: KeptCampaign) -> CampaignView:
    try:
        content = json.loads(kept.document)
        document = read(content["text"], kept.name, where=where, known=(content["digest"], content["size"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the document of campaign {kept.name} is not readable: {error}") from None
    return CampaignView(
        document, _campaign(kept), {device: Member.load(record) for device, record in sorted(kept.devices.items())}
    )


def _dumped(members: _Members) -> dict[int, bytes]:
    return {device: member.dump() for device, member in members.items()}


def _busy(views: Iterable[CampaignView], name: str) -> dict[int, str]:
    """Return who takes part in which campaign but the one with this name."""
    return {
        device: view.name
        for view in views
        if view.name != name
        for device, member in view.members.items()
        if member.at in UNDER_WAY or (member.at is At.WAITING and view.campaign.state not in OVER)
    }


def _outcome(device: int, report: bytes | None, now: float) -> Outcome:
    """Return what a report says; who says it stands beside it, so that equal reasons are counted together."""
    if report is None:
        return Outcome(now, "FAILED", True, "lost", "what became of its order is not known any more")
    told = OrderReport.load(report)
    state = told.state if told.value is None or told.error is not None else told.value
    return Outcome(told.at, state, told.over, told.error, (told.text or "").removeprefix(f"device {device:x} reports "))


def _post(document: Document, posting: Posting, now: float) -> Post:
    firmware, device = document.firmware, posting.device
    order: Order
    match posting.verb:
        case "update":
            lifetime = posting.lifetime
            order = Update(device, firmware.url, firmware.digest, document.held, firmware.version, lifetime)
        case "activate":
            order = Activate(device, posting.about.hex())
        case _:
            order = Cancel(device, posting.about.hex())
    report = OrderReport(round(now, 3), order.verb, "POSTED")
    order = replace(order, posted_by=f"campaign {document.name}"[:LONGEST_NAME])
    return Post(device, posting.id, order.checked().dump(), report.dump(), order.urgent)


def _retried(view: CampaignView, member: Member, now: float) -> Member:
    group = member.group if member.group >= 0 else len(view.document.groups) - 1
    not_before = now if member.ordered is None else max(now, member.ordered + 60.0)
    return replace(
        member, group=group, at=At.WAITING, since=now, reason="", tries=0, not_before=not_before, gives_up="", result=""
    )


def _check_state(view: CampaignView, verb: str, allowed: set[State]) -> None:
    state = view.campaign.state
    if state not in allowed:
        raise PolicyError(f"campaign {view.name} is {state}: it cannot be {verb} now")


def _tell(name: str, decision: Decision) -> None:
    """Log what has happened to a campaign; a stop is an error, for somebody must hear of it."""
    stopped = decision.campaign.state is State.STOPPED
    for event in decision.events:
        log.log(logging.ERROR if stopped else logging.INFO, "campaign %s: %s", name, event)
    for device, member in decision.changed.items():
        if member.at in ENDED:
            log.info("campaign %s: %x is %s%s", name, device, member.at, f": {member.reason}" if member.reason else "")


def _too_busy(name: str) -> str:
    return f"campaign {name} is being changed by others all the time: try again"
