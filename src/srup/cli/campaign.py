"""The commands for campaigns: one firmware for many devices, in groups, at a pace, within windows."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import srup

from ..campaign import At, Member, State
from ..campaign.rehearsal import Chances, synthetic
from ..campaign.rehearsal import rehearse as simulate
from ..campaign.schedule import as_share, duration, shown_duration
from ..fetch import HttpFetcher
from ..fleet import Campaigns, CampaignView, check_download, load_document
from ..printable import printable
from ..versions import shown_version
from .apps import App
from .downloads import FetchCa
from .endings import told_to_end
from .fleets import OfServer, StoreOfServer, choose, chosen
from .options import Json, identity, this_user
from .rehearsals import lines, report
from .tables import ago, iso, table
from .terminal import explained, show, tell

__all__ = ["app", "bar"]

app = App(help="Update many devices: in groups, at a pace, within windows. srup server carries campaigns out.")

_USAGE: Final = "srup campaign --store PATH|URL --identity HEX, and then the command"
_LETTERS: Final = {
    At.HEALTHY: "#",
    At.ACTIVATED: "+",
    At.READY: ">",
    At.ORDERED: ">",
    At.WAITING: ".",
    At.FAILED: "x",
    At.UNANSWERED: "?",
    At.SKIPPED: "-",
    At.CANCELLED: "-",
}
_BAR: Final = 24  # columns
_SHOWN: Final = 20  # devices that are shown unless all are asked for
_TROUBLE: Final = (At.FAILED, At.UNANSWERED, At.SKIPPED, At.CANCELLED)
_RANKED: Final = (
    *(At.FAILED, At.UNANSWERED, At.WAITING, At.ORDERED, At.READY),
    *(At.CANCELLED, At.SKIPPED, At.ACTIVATED, At.HEALTHY),
)
"""The states of devices, those first that an operator wants to know about."""

File = Annotated[Path, typer.Argument(metavar="FILE", help="The campaign file, see docs/campaigns.md.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that its file gives the campaign.")]
_By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who does this; default: the user of this machine.")
]


def _share(help: str) -> Any:
    return typer.Option(parser=_parsed(as_share), metavar="PERCENT", help=help, show_default=False)


def _time(help: str) -> Any:
    return typer.Option(parser=_parsed(duration), metavar="TIME", help=help, show_default=False)


def _parsed(read: Callable[[str], float]) -> Callable[[Any], float]:
    def parse(typed: Any) -> float:
        if isinstance(typed, float):  # the default
            return typed
        try:
            return read(typed)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def _span(typed: str) -> tuple[float, float]:
    begin, _, end = typed.partition("-")
    span = duration(begin), duration(end)
    if span[0] >= span[1]:
        raise ValueError(f"--host-down {typed} ends before it begins")
    return span


@app.callback()
def _options(context: typer.Context, store: StoreOfServer = None, identity: OfServer = None) -> None:
    choose(context, store, identity)


@app.command()
def apply(
    context: typer.Context,
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who would take part; change nothing.")] = False,
    download: Annotated[
        bool, typer.Option("--download/--no-download", help="Fetch the firmware from its URL first, and compare it.")
    ] = True,
    fetch_ca: FetchCa = None,
    by: _By = None,
    as_json: Json = False,
) -> None:
    """Begin a campaign, after its firmware was fetched and compared."""
    with chosen(context, _USAGE) as fleet:
        document = load_document(file)
        planned, decision = fleet.campaigns.plan(document)
        if download:
            plain = document.firmware.url.lower().startswith("http:")
            check_download(document, HttpFetcher(srup.FetchPolicy(allow_http=plain, ca_file=fetch_ca)))
        view = planned if dry_run else fleet.campaigns.apply(document, by or this_user(), planned=planned)
    if as_json:
        print(json.dumps(fields(planned if dry_run else view, devices=dry_run) | {"dry_run": dry_run}))
        return
    _heading(view, state="would be " + view.campaign.state if dry_run else None)
    for line in _groups(planned):
        print(line)
    first = sum(posting.verb == "update" for posting in decision.postings)
    when = "at once" if document.window.start is None else f"at its start, {iso(document.window.start)}"
    _note(f"{first} {'device' if first == 1 else 'devices'} would be ordered to update {when}")
    _left_out(planned)
    if not dry_run and document.approval.people:
        _note(f"it waits for {document.approval.people} to approve it: srup campaign approve {document.name}")


@app.command()
def rehearse(
    context: typer.Context,
    file: File,
    size: Annotated[
        int | None,
        typer.Option(min=1, metavar="NUMBER", help="So many invented devices, not those of the server."),
    ] = None,
    fail: Annotated[float, _share("Devices that fail at every try.")] = 0.0,
    flaky: Annotated[float, _share("Tries that fail by chance.")] = 0.0,
    silent: Annotated[float, _share("Devices that never answer.")] = 0.0,
    sleep: Annotated[float, _share("Devices that are asleep when they are told something.")] = 0.0,
    nap: Annotated[float, _time("How long they sleep at most (default: 12h).")] = 12 * 3600.0,
    fetch: Annotated[float, _time("How long the download takes, about (default: 1min).")] = 60.0,
    activation: Annotated[float, _time("How long the activation takes, about (default: 1min).")] = 60.0,
    host_down: Annotated[
        str | None,
        typer.Option(metavar="TIME-TIME", help="When the firmware host is away, after the beginning, as in 4h-6h."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another course.")] = 0,
    as_json: Json = False,
) -> None:
    """Run a campaign in simulated time, on no real device."""
    with explained():
        down = None if host_down is None else _span(host_down)
        chances = Chances(fail, flaky, silent, sleep, nap, fetch, activation, down, seed)
        document = load_document(file)
    if size is not None:
        devices = synthetic(size, document)
    else:
        with chosen(context, f"{_USAGE}; or --size for invented devices") as fleet:
            devices = fleet.campaigns.candidates(document, time.time())
    done = simulate(document, devices, chances, time.time())
    if as_json:
        print(json.dumps(report(done)))
        return
    for line in lines(done):
        print(line)


@app.command("list")
def list_(context: typer.Context, as_json: Json = False) -> None:
    """Show all campaigns."""
    with chosen(context, _USAGE) as fleet:
        views = fleet.campaigns.all()
    if as_json:
        for view in views:
            print(json.dumps(fields(view)))
        return
    now = time.time()
    rows = [
        {
            "NAME": view.name,
            "STATE": str(view.campaign.state),
            "SINCE": ago(view.campaign.since, now),
            "GROUP": f"{view.campaign.group + 1} of {len(view.document.groups)}",
            "DEVICES": states(view.counts()) or "-",
            "REASON": _printed(view.campaign.reason) or "-",
        }
        for view in views
    ]
    for line in table(rows, ("REASON", "SINCE", "DEVICES")):
        print(line)
    if not rows:
        print("no campaigns; srup campaign apply FILE begins one")


@app.command()
def status(
    context: typer.Context,
    name: _Name,
    every: Annotated[bool, typer.Option("--all", help="Show every device, not only those in trouble.")] = False,
    as_json: Json = False,
) -> None:
    """Show how a campaign goes, and why devices failed."""
    with chosen(context, _USAGE) as fleet:
        view = fleet.campaigns.view(name)
    _show(view, every, as_json)


def _show(view: CampaignView, every: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(fields(view, devices=True)))
        return
    _heading(view)
    for line in _groups(view):
        print(line)
    shown = {device: each for device, each in view.members.items() if every or each.at in _TROUBLE or each.reason}
    worst = sorted(shown.items(), key=lambda each: (_RANKED.index(each[1].at), each[0]))
    rows = [_row(device, each) for device, each in worst]
    if rows:
        print()
    for line in table(rows if every else rows[:_SHOWN], ("SINCE", "TRIES", "REASON")):
        print(line)
    if not every and len(rows) > _SHOWN:
        print(f"and {len(rows) - _SHOWN} more: --all shows them")


# What changes a campaign.


def _steer(context: typer.Context, as_json: bool, change: Callable[[Campaigns], CampaignView]) -> None:
    with chosen(context, _USAGE) as fleet:
        view = change(fleet.campaigns)
    if as_json:
        print(json.dumps(fields(view)))
    else:
        _note(f"{view.name}: {view.campaign.state}" + (f", {view.campaign.reason}" if view.campaign.reason else ""))


@app.command()
def pause(context: typer.Context, name: _Name, by: _By = None, as_json: Json = False) -> None:
    """Order nothing more for now; what was ordered goes on."""
    _steer(context, as_json, lambda campaigns: campaigns.pause(name, by or this_user()))


@app.command()
def resume(context: typer.Context, name: _Name, by: _By = None, as_json: Json = False) -> None:
    """Go on with a campaign that is paused."""
    _steer(context, as_json, lambda campaigns: campaigns.resume(name, by or this_user()))


@app.command()
def abort(context: typer.Context, name: _Name, by: _By = None, as_json: Json = False) -> None:
    """End a campaign, and cancel what is not being activated."""
    _steer(context, as_json, lambda campaigns: campaigns.abort(name, by or this_user()))


@app.command()
def retry(
    context: typer.Context,
    name: _Name,
    devices: Annotated[
        list[int] | None,
        typer.Argument(parser=identity, metavar="[IDENTITY]...", help="Only these devices; default: all that failed."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try again with the devices that did not succeed."""
    _steer(context, as_json, lambda campaigns: campaigns.retry(name, devices or None))


@app.command()
def approve(context: typer.Context, name: _Name, by: _By = None, as_json: Json = False) -> None:
    """Approve a campaign that somebody else has applied."""
    _steer(context, as_json, lambda campaigns: campaigns.approve(name, by or this_user()))


@app.command()
def activate(context: typer.Context, name: _Name, as_json: Json = False) -> None:
    """Let devices activate what they hold (activation = "command")."""
    _steer(context, as_json, lambda campaigns: campaigns.activate(name))


@app.command()
def run(context: typer.Context) -> None:
    """Carry campaigns out until Ctrl-C. srup server does that itself; a server in Python needs this."""
    until = threading.Event()
    with chosen(context, _USAGE) as fleet, told_to_end(lambda _signal: until.set()):
        tell("carrying campaigns out; Ctrl-C ends this, and they go on when this is started again")
        fleet.campaigns.run(until)
    raise typer.Exit(0)


# How they are shown.


def fields(view: CampaignView, devices: bool = False) -> dict[str, Any]:
    """Return what JSON says of a campaign."""
    campaign = view.campaign
    told: dict[str, Any] = {
        "name": view.name,
        "state": str(campaign.state),
        "reason": campaign.reason or None,
        "since": iso(campaign.since),
        "created": iso(campaign.created) if campaign.created else None,
        "by": campaign.by or None,
        "approvals": [{"by": who, "at": iso(at)} for who, at in campaign.approvals],
        "group": campaign.group + 1,
        "counts": _counted(view.counts()),
        "groups": [
            {"group": number + 1, "size": str(group.size), "counts": _counted(view.counts(number))}
            for number, group in enumerate(view.document.groups)
        ],
        "document": view.document.fields(),
    }
    if devices:
        told["devices"] = [_device(device, each) for device, each in view.members.items()]
    return told


def _counted(counts: Mapping[At, int]) -> dict[str, int]:
    return {str(at): number for at, number in counts.items()}


def _device(device: int, member: Member) -> dict[str, Any]:
    return {
        "identity": f"{device:x}",
        "group": member.group + 1 if member.group >= 0 else None,
        "state": str(member.at),
        "since": iso(member.since),
        "tries": member.tries,
        "reason": member.reason or None,
    }


def _row(device: int, member: Member) -> dict[str, str]:
    return {
        "DEVICE": f"{device:x}",
        "GROUP": str(member.group + 1) if member.group >= 0 else "-",
        "STATE": str(member.at),
        "SINCE": ago(member.since, time.time()),
        "TRIES": str(member.tries),
        "REASON": _printed(member.reason) or "-",
    }


def _heading(view: CampaignView, state: str | None = None) -> None:
    campaign, document = view.campaign, view.document
    firmware, gate, pace, window = document.firmware, document.gate, document.pace, document.window
    by = f", applied by {campaign.by}" if campaign.by else ""
    why = f": {campaign.reason}" if campaign.reason else ""
    _note(f"{view.name} {state or campaign.state}{why}{by}", bold=True)
    version = "" if firmware.version is None else f"version {shown_version(firmware.version)}, "
    size = "" if firmware.size is None else f"{firmware.size:,} bytes, "
    _fact("firmware", f"{version}{size}{firmware.digest[:8]}, {firmware.url}")
    limits = [
        *([f"{pace.at_once} at once"] if pace.at_once else []),
        *([f"{pace.per_minute} a minute"] if pace.per_minute else []),
        f"{shown_duration(pace.timeout)} for a try",
        f"{pace.tries} {'try' if pace.tries == 1 else 'tries'}",
    ]
    _fact("pace", f"{', '.join(limits)}")
    stop = f"stop at {gate.stop.failures} failures and more than {gate.stop.share * 100:g} %"
    _fact("gate", f"{gate.success * 100:g} % of a group must succeed; {stop}")
    times = [f"{word} {iso(at)}" for word, at in (("from", window.start), ("to", window.end)) if at is not None]
    times += [f"daily {window.daily} ({window.zone})"] if window.daily else []
    _fact("time", f"{', '.join(times) or 'any'}; activation {document.activation.when}")
    if campaign.state is State.RUNNING and campaign.passed is not None:
        opens = campaign.passed + document.groups[campaign.group].hold
        left = shown_duration(max(0.0, opens - time.time()))
        _fact("next", f"group {campaign.group + 2} opens in {left}, if the gate says so then")
    if document.approval.people:
        names = ", ".join(who for who, _ in campaign.approvals) or "nobody yet"
        _fact("approved", f"by {names}; {document.approval.people} needed")


def bar(members: Iterable[Member], width: int = _BAR) -> str:
    """Return how devices stand as a bar: a character for each, or for so many of them."""
    order = list(_LETTERS)
    found = sorted((each.at for each in members), key=order.index)
    if len(found) <= width:
        return "".join(_LETTERS[at] for at in found).ljust(width)
    return "".join(_LETTERS[found[(2 * column + 1) * len(found) // (2 * width)]] for column in range(width))


def states(counts: Mapping[At, int]) -> str:
    """Return how many devices are in each state, in words."""
    order = list(_LETTERS)
    return ", ".join(f"{counts[at]} {at}" for at in sorted(counts, key=order.index))


def _groups(view: CampaignView) -> Iterable[str]:
    rows = []
    numbers = [*range(len(view.document.groups)), *([-1] if view.counts(-1) else [])]
    for number in numbers:
        members = [each for each in view.members.values() if each.group == number]
        group = view.document.groups[number] if number >= 0 else None
        closed = group is not None and number > view.campaign.group
        rows.append(
            {
                "GROUP": "-" if group is None else f"{number + 1}",
                "SIZE": "-" if group is None else str(group.size),
                "DEVICES": str(len(members)),
                "PROGRESS": bar(members),
                "STATES": ("closed: " if closed and members else "") + (states(view.counts(number)) or "-"),
            }
        )
    return table(rows, ("STATES", "PROGRESS", "SIZE"))


def _left_out(view: CampaignView) -> None:
    for reason, count in view.reasons([At.SKIPPED]):
        _note(f"{count} skipped: {reason}")


def _printed(text: str) -> str:
    return printable(text, 300, words=True)


def _fact(label: str, text: str) -> None:
    show(text, before=(f"  {label:9} ", ""))


def _note(text: str, *, bold: bool = False) -> None:
    show(text, "bold" if bold else "")
