"""Campaigns of a fleet: what an operator does with them, and what carries them out.

What is decided (:mod:`srup.campaign.decision`) and the orders that follow from it are written in one transaction, and
only if nobody else has changed a campaign meanwhile. So nothing is ordered twice, however many processes carry
campaigns out and whenever one of them is killed.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Self

from ..campaign import At, Campaign, Candidate, Decision, Document, Facts, Member, State, decide, read
from ..campaign.state import OVER
from ..errors import PolicyError, StoreError
from ..fetch import Fetcher, FetchPolicy, HttpFetcher
from ..store.campaigns import CampaignStore
from .campaignview import CampaignView, busy_devices, dumped, is_settled, kept_campaign, view_of
from .carrying import Carrier, candidates
from .where import where

if TYPE_CHECKING:
    from .fleet import Fleet

__all__ = ["CampaignRunner", "CampaignView", "Campaigns", "check_download", "load_document"]

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


class Campaigns:
    """The campaigns of a :class:`Fleet`, as its attribute ``campaigns``.

    PolicyError for what a campaign's state does not allow, or a name that is not known; StoreError as for the fleet.
    """

    def __init__(self, fleet: "Fleet", store: CampaignStore, clock: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._carrier = Carrier(fleet, store, clock)

    # Looking.

    def all(self) -> list[CampaignView]:
        """Return all campaigns by name."""
        _, kept = self._store.campaigns()
        _, found = self._store.load(each.name for each in kept)
        return [view_of(each) for each in found]

    def heads(self) -> dict[str, Campaign]:
        """Return all campaigns by name, without their devices: what there is to be read at once."""
        return {each.name: kept_campaign(each) for each in self._store.campaigns()[1]}

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
        _, others = self._store.load(each.name for each in kept if not is_settled(each))
        facts = Facts(self.candidates(document, now), {}, busy_devices(others, document.name))
        began = Campaign("", State.SCHEDULED, now)
        decision = decide(document, began, {}, facts, now)
        view = CampaignView(document, decision.campaign, decision.changed)
        if all(each.at is At.SKIPPED for each in view.members.values()):
            why = "; ".join(f"{count} {reason}" for reason, count in view.reasons([At.SKIPPED]))
            said = why or "no device matches its target"
            raise PolicyError(f"campaign {document.name} would be for nobody: {said}")
        return view, decision

    def apply(self, document: Document, by: str = "", *, planned: CampaignView | None = None) -> CampaignView:
        """Begin a campaign. Whether its firmware can be had is another question: :func:`check_download`.

        With what :meth:`plan` has returned for this document as ``planned``, the devices are not read again.
        """
        if planned is None or planned.document is not document:
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
            if self._store.save(revision, name, campaign.dump(), dumped(changed)):
                return CampaignView(view.document, campaign, {**view.members, **changed})
        raise StoreError(_too_busy(name))

    def _load(self, name: str) -> tuple[int, CampaignView]:
        revision, found = self._store.load([name])
        if not found:
            raise PolicyError(f"there is no campaign {name}")
        return revision, view_of(found[0])

    # Carrying out.

    def step(self) -> float | None:
        """Decide about all campaigns, once, and post what follows.

        Return when to do so again at the latest, in Unix time; None when there is nothing to wait for. What is wrong
        with one campaign is raised when the others have had their turn.
        """
        return self._carrier.step()

    def run(self, until: threading.Event) -> None:
        """Carry campaigns out until ``until`` is set; trouble with the store is logged, and tried again.

        Of several processes with one Redis only one does so at a time.
        """
        self._carrier.run(until)

    def candidates(self, document: Document, now: float) -> dict[int, Candidate]:
        """Return all devices of the fleet as a campaign sees them."""
        return {each.identity: each for each in candidates(self._fleet, document, now)}

    def close(self) -> None:
        """Let go of the connections."""
        self._store.close()


class CampaignRunner:
    """Carries out the campaigns of a server in a thread, within a block; there may be several, in any processes.

    With a Redis one of them does, and another one when that is gone.
    """

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


def _too_busy(name: str) -> str:
    return f"campaign {name} is being changed by others all the time: try again"
