"""One campaign: its document, its groups, its course, and what can be done with it."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ...campaign import At, Member, State
from ...campaign.schedule import shown_duration
from ...campaign.state import OVER
from ...errors import PolicyError
from ...fleet import Campaigns, CampaignView
from ..once import Done
from ..plots import Line, Step, bar, steps
from ..users import Power
from ..visit import Action, Missing, Page, Shown, Visit
from .progress import ORDER, parts

__all__ = ["ACTIONS", "PAGES", "course"]

ROWS: Final = 100
_SUCCESS: Final = (At.HEALTHY, At.ACTIVATED)
_TROUBLE: Final = (At.FAILED, At.UNANSWERED, At.SKIPPED, At.CANCELLED)
_RANKED: Final = (At.FAILED, At.UNANSWERED, *(at for at in ORDER if at not in (At.FAILED, At.UNANSWERED)))


class Verb(NamedTuple):
    """What can be done with a campaign: in which states, what it means, and how."""

    title: str
    help: str
    power: Power
    states: frozenset[State]
    do: Callable[[Campaigns, str, str], CampaignView]


VERBS: Final[Mapping[str, Verb]] = {
    "approve": Verb(
        "Approve",
        "Somebody other than who has applied it must agree.",
        Power.APPROVE,
        frozenset({State.AWAITING_APPROVAL}),
        lambda campaigns, name, by: campaigns.approve(name, by),
    ),
    "pause": Verb(
        "Pause",
        "Order nothing more for now; what was ordered goes on.",
        Power.STEER,
        frozenset({State.SCHEDULED, State.RUNNING}),
        lambda campaigns, name, by: campaigns.pause(name, by),
    ),
    "resume": Verb(
        "Resume",
        "Go on.",
        Power.STEER,
        frozenset({State.PAUSED}),
        lambda campaigns, name, by: campaigns.resume(name, by),
    ),
    "activate": Verb(
        "Activate",
        "Let devices activate what they hold.",
        Power.STEER,
        frozenset(State) - OVER,
        lambda campaigns, name, by: campaigns.activate(name),
    ),
    "retry": Verb(
        "Retry",
        "Try again with the devices that did not succeed.",
        Power.STEER,
        frozenset({State.RUNNING, State.PAUSED, State.STOPPED, State.FINISHED}),
        lambda campaigns, name, by: campaigns.retry(name),
    ),
    "abort": Verb(
        "Abort",
        "End it for good, and take back what no device was told to activate.",
        Power.STEER,
        frozenset(State) - OVER | {State.STOPPED},
        lambda campaigns, name, by: campaigns.abort(name, by),
    ),
}


def _view(visit: Visit) -> CampaignView:
    try:
        return visit.site.fleet.campaigns.view(visit.path["name"])
    except PolicyError:
        raise Missing(f"There is no campaign {visit.path['name'][:100]}.") from None


def _show(visit: Visit) -> Shown:
    view = _view(visit)
    document, campaign = view.document, view.campaign
    wanted = visit.query.get("state")
    members = [each for each in view.members.items() if not wanted or each[1].at == wanted]
    members.sort(key=lambda each: (_RANKED.index(each[1].at), each[0]))
    start = int(visit.query.get("from", "0")) if visit.query.get("from", "0").isdecimal() else 0
    opens = None
    if campaign.state is State.RUNNING and campaign.passed is not None:
        opens = campaign.passed + document.groups[campaign.group].hold
    content: dict[str, Any] = {
        "view": view,
        "facts": _facts(view),
        "groups": _groups(view),
        "counts": [(at, number) for at, number in view.counts().items()],
        "reasons": view.reasons((*_TROUBLE, At.WAITING)),
        "plot": course(view, visit.now),
        "rows": members[start : start + ROWS],
        "found": len(members),
        "start": start,
        "page_size": ROWS,
        "wanted": wanted,
        "opens": opens,
        "verbs": [(name, verb) for name, verb in VERBS.items() if _offered(name, verb, view)],
    }
    return Shown("campaign.html", content)


def _offered(name: str, verb: Verb, view: CampaignView) -> bool:
    if name == "activate" and (view.document.activation.when != "command" or view.campaign.may_activate):
        return False
    if name == "retry" and not any(member.at in _TROUBLE for member in view.members.values()):
        return False
    return view.campaign.state in verb.states


def _groups(view: CampaignView) -> list[dict[str, Any]]:
    numbers = [*range(len(view.document.groups)), *([-1] if view.counts(-1) else [])]
    rows = []
    for number in numbers:
        counts = view.counts(number)
        group = view.document.groups[number] if number >= 0 else None
        rows.append(
            {
                "name": "none" if group is None else str(number + 1),
                "size": "" if group is None else str(group.size),
                "devices": sum(counts.values()),
                "closed": group is not None and number > view.campaign.group,
                "bar": bar(parts(counts)),
                "words": ", ".join(f"{part.number} {part.word}" for part in parts(counts)),
            }
        )
    return rows


def _facts(view: CampaignView) -> list[tuple[str, str]]:
    firmware, gate, pace, window = (
        view.document.firmware,
        view.document.gate,
        view.document.pace,
        view.document.window,
    )
    limits = [
        *([f"{pace.at_once} at once"] if pace.at_once else []),
        *([f"{pace.per_minute} a minute"] if pace.per_minute else []),
        f"{shown_duration(pace.timeout)} for a try",
        f"{pace.tries} {'try' if pace.tries == 1 else 'tries'}",
    ]
    approved = ", ".join(who for who, _ in view.campaign.approvals) or "nobody yet"
    return [
        ("Version", "not said" if firmware.version is None else str(firmware.version)),
        ("Firmware", firmware.url),
        ("Digest", firmware.digest),
        ("Pace", ", ".join(limits)),
        ("Gate", f"{gate.success * 100:g} % of a group must succeed"),
        ("Stops", f"at {gate.stop.failures} failures that are more than {gate.stop.share * 100:g} %"),
        *([("Window", f"daily {window.daily} ({window.zone})")] if window.daily else []),
        ("Activation", view.document.activation.when),
        *(
            [("Approved by", f"{approved}; {view.document.approval.people} needed")]
            if view.document.approval.people
            else []
        ),
    ]


def course(view: CampaignView, now: float) -> Any:
    """Return the plot of how many devices have succeeded and failed over time; None before any has ended."""
    ended = [each for each in view.members.values() if each.at in (*_SUCCESS, At.FAILED, At.UNANSWERED)]
    if not ended:
        return None
    campaign, gate = view.campaign, view.document.gate
    begin = min(campaign.created or campaign.since, *(each.since for each in ended))
    over = campaign.state in OVER
    end = max(campaign.since if over else now, *(each.since for each in ended), begin + 60.0)
    good = _climb([each for each in ended if each.at in _SUCCESS], begin)
    bad = _climb([each for each in ended if each.at not in _SUCCESS], begin)
    opened = sum(0 <= each.group <= campaign.group for each in view.members.values())
    stop = max(gate.stop.failures, int(gate.stop.share * len(ended)) + 1)
    lines = [Step("good", "succeeded", good), Step("bad", "failed or unanswered", bad)]
    across = [
        Line("accent", f"gate: {gate.success * 100:g} %", gate.success * opened),
        Line("bad", f"stops: {stop}", stop),
    ]
    ticks = [(begin, _moment(begin)), (end, _moment(end))]
    failed = len(ended) - len(good) + 1
    title = f"{len(good) - 1} devices have succeeded and {failed} failed or not answered, of {opened} in open groups"
    return steps(lines, across, begin, end, ticks, title)


def _climb(members: list[Member], begin: float) -> list[tuple[float, float]]:
    moments = sorted(each.since for each in members)
    return [(begin, 0.0), *((at, float(number)) for number, at in enumerate(moments, 1))]


def _moment(at: float) -> str:
    return time.strftime("%d %b %H:%M UTC", time.gmtime(at))


def _steer(visit: Visit) -> Done:
    verb = VERBS.get(visit.path["verb"])
    if verb is None:
        raise Missing("There is no such thing to do with a campaign.")
    if not visit.user.may(verb.power):
        raise PolicyError(f"{visit.user.name} is {visit.user.role} and may not {verb.power}")
    view = _view(visit)
    after = verb.do(visit.site.fleet.campaigns, view.name, visit.user.name)
    said = f"{verb.title}: the campaign is {after.campaign.state} now."
    if verb.power is Power.APPROVE:
        said = f"You have approved it: {len(after.campaign.approvals)} of {after.document.approval.people}."
    return Done(f"/campaigns/{view.name}", said)


PAGES: Final = (Page("/campaigns/{name}", _show),)
ACTIONS: Final = (Action("/campaigns/{name}/{verb}", _steer, Power.LOOK, _show),)
