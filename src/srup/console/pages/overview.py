"""The first page: how the fleet stands, what is under way, and what waits for a person."""

from collections import Counter
from typing import Any, Final

from ...campaign import State
from ...errors import StoreError
from ...fleet import CampaignView
from ..census import Snapshot
from ..plots import Part, bar, columns
from ..visit import Page, Shown, Visit
from ..words import shape
from .progress import parts
from .refusals import refused_since

__all__ = ["PAGES"]

_HOURS: Final = 24
_WAITING: Final = (State.AWAITING_APPROVAL, State.PAUSED, State.STOPPED)


def _summary(snapshot: Snapshot, now: float) -> dict[str, Any]:
    updates: Counter[str] = Counter()
    heard = [0] * _HOURS
    members = lately = 0
    for device in snapshot.devices:
        updates["never updated" if device.update is None else device.update.state.lower()] += 1
        members += device.member
        if device.last_contact is not None and 0 <= (past := now - device.last_contact) < _HOURS * 3600:
            heard[_HOURS - 1 - int(past // 3600)] += 1
            lately += past < 3600
    labels = [f"{_HOURS - index} h ago" if index < _HOURS - 1 else "last hour" for index in range(_HOURS)]
    return {
        "devices": len(snapshot.devices),
        "members": members,
        "lately": lately,
        "updates": updates.most_common(),
        "update_bar": bar(Part(shape(word), word, number) for word, number in updates.most_common()),
        "heard": columns(heard, labels, f"Devices by the hour in which they were last heard: {lately} in the last one"),
    }


def campaigns_of(visit: Visit) -> tuple[list[CampaignView], str]:
    """Return all campaigns, or why there are none to be had."""
    try:
        return visit.site.fleet.campaigns.all(), ""
    except StoreError as error:
        return [], str(error)


def _show(visit: Visit) -> Shown:
    snapshot = visit.site.census.snapshot()
    views, trouble = campaigns_of(visit)
    running = [view for view in views if view.campaign.state in (State.RUNNING, State.SCHEDULED, State.PAUSED)]
    content = {
        **snapshot.kept("summary", lambda: _summary(snapshot, visit.now)),
        "running": [(view, bar(parts(view.counts()))) for view in running],
        "waiting": [view for view in views if view.campaign.state in _WAITING],
        "joins": visit.site.fleet.joins(),
        "refused": Counter(each.outcome for each in refused_since(visit, visit.now - 3600.0)).most_common(5),
        "trouble": trouble,
        "posted": sum(visit.site.fleet.waiting().values()),
    }
    return Shown("overview.html", content)


PAGES: Final = (Page("/", _show),)
