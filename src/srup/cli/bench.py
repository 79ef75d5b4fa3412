"""The measurements: what they are asked to do, and how their results look."""

import json
import math
import signal
from typing import Annotated, Literal

import typer
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import srup

from ..bench.fleetbench import FleetBench, Load, Report
from ..bench.processes import BenchError
from ..bench.servers import SERVERS
from ..keys import SCHEMES
from .apps import App
from .endings import interrupt
from .terminal import console, errors, explained, fail

__all__ = ["app"]

app = App(help="Measure a whole installation on this machine.")

_PER_PROCESS = 5000  # devices, if nobody says otherwise
_NOTICEABLE = 50.0  # ms that the fleet may be behind its plan without a word


@app.callback()
def _measure() -> None:
    """Measure a whole installation on this machine."""


@app.command()
def fleet(
    devices: Annotated[int, typer.Option(help="Number of devices, each with a live connection.")] = 1000,
    rate: Annotated[
        float, typer.Option(help="Values sent per second by all devices together, without waiting for answers.")
    ] = 500.0,
    seconds: Annotated[float, typer.Option(help="Duration of the load.")] = 10.0,
    workers: Annotated[
        str | None, typer.Option(metavar="N,...", help="Numbers of server workers, such as 1,2,4; one run for each.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server-kind",
            help=f"Kind of server: {', '.join(SERVERS)}; by default workers with --workers, else plain.",
        ),
    ] = None,
    scheme: Annotated[str, typer.Option(help=f"Key scheme of all parties: {', '.join(SCHEMES)}.")] = "rsa2048",
    keys: Annotated[int, typer.Option(help="Number of different keys that the devices share.")] = 64,
    presigned: Annotated[bool, typer.Option("--presigned", help="Sign the values before the load starts.")] = False,
    arrivals: Annotated[
        Literal["poisson", "fixed"], typer.Option(help="Send values at random times or at equal intervals.")
    ] = "poisson",
    processes: Annotated[
        int | None,
        typer.Option(
            help=f"Number of processes that run the devices; default: {_PER_PROCESS} devices each by default."
        ),
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds without progress after which values count as lost.")] = 15.0,
    seed: Annotated[int, typer.Option(help="Seed for the random send times.")] = 2026,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Join a fleet of real devices through a real Mosquitto, have it send values at a fixed rate, and update it.

    mosquitto_sub counts along. The exit code is 1 when anything was lost, repeated, out of order or not done.
    """
    signal.signal(signal.SIGINT, interrupt)  # like the others: what was started ends with us, and once
    numbers = [1] if workers is None else _numbers(workers)
    kind = server or ("plain" if workers is None else "workers")
    if scheme not in SCHEMES:
        fail(f"there is no scheme {scheme!r}; there are {', '.join(SCHEMES)}")
    with explained():
        load = Load(
            devices=devices,
            rate=rate,
            seconds=seconds,
            poisson=arrivals == "poisson",
            scheme=scheme,
            pool=min(keys, max(devices, 1)),
            processes=processes if processes is not None else max(1, math.ceil(devices / _PER_PROCESS)),
            presigned=presigned,
            patience=patience,
            seed=seed,
        )
        try:
            reports = _run(load, kind, numbers)
        except BenchError as error:
            fail(str(error))
    if as_json:
        last = reports[-1].as_dict()
        print(json.dumps(last if len(reports) == 1 else {**last, "runs": [report.as_dict() for report in reports]}))
    else:
        console.print(_shown(reports), highlight=False)
    raise typer.Exit(1 if any(report.complaints for report in reports) else 0)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        fail(f"--workers takes numbers of at least 1 with commas between them, such as 1,2,4, not {text!r}")
    return numbers


def _run(load: Load, server: str, numbers: list[int]) -> list[Report]:
    """Run the load with each number of workers, and show how far it is on standard error."""
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bars = Progress(*columns, console=errors, transient=True)
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    bench = FleetBench(load, server, progress)
    for number in numbers:
        bench.check(number)
    reports = []
    with bars, bench:
        for number in numbers:
            if len(numbers) > 1:
                bars.console.print(f"{number} {'worker' if number == 1 else 'workers'}:", highlight=False)
            reports.append(bench.run(number))
            for task in tasks.values():
                bars.remove_task(task)
            tasks.clear()
    return reports


def _shown(reports: list[Report]) -> Group:
    """What a person wants to see."""
    load = reports[0].load
    signing = "signed before the load" if load.presigned else "signed live"
    times = "at random times" if load.poisson else "at equal distances"
    first = f"({srup.BACKEND} backend), {reports[0].broker}, the {reports[0].server} server"
    told: list[RenderableType] = [
        f"[bold]srup {srup.__version__}[/] {first}",
        f"{load.devices:,} devices with live connections and a published pool of {load.pool} {load.scheme} keys",
        f"values {signing}, {times}, for {load.seconds:g} seconds",
        _served(reports),
    ]
    for report in reports:
        told += [_taken(report), _lives(report)]
    complaints = [complaint for report in reports for complaint in report.complaints]
    if complaints:
        told.append("[bold red]Something went wrong:[/] " + "; ".join(complaints))
    else:
        told.append("[bold green]Nothing was lost, repeated or out of order.[/]")
    return Group(*told)


def _served(reports: list[Report]) -> Table:
    table = Table(title="What was served")
    for heading in (
        *("workers", "offered\nper s", "served\nper s", "p50\nms", "p95\nms", "p99\nms"),
        *("lost", "twice", "out of\norder"),
    ):
        table.add_column(heading, justify="right")
    for report in reports:
        found = report.verdict
        table.add_row(
            str(report.workers),
            f"{report.offered:,.0f}",
            f"{report.served:,.0f}",
            *(f"{delay:,.{1 if delay < 100 else 0}f}" for delay in (found.p50_ms, found.p95_ms, found.p99_ms)),
            *(
                f"[bold red]{count}[/]" if count else "0"
                for count in (found.lost, found.executed_twice, found.reordered)
            ),
        )
    return table


def _taken(report: Report) -> Table:
    several = f"{report.workers} workers" if report.workers > 1 else "1 worker"
    table = Table(title=f"What it took, {several}")
    table.add_column("part", no_wrap=True)
    for heading in ("processes", "CPU under load", "CPU in all", "most memory"):
        table.add_column(heading, justify="right")
    for part in report.parts:
        table.add_row(
            part.part,
            str(part.processes),
            f"{part.cpu_percent:.0f} %",
            f"{part.cpu_seconds:.1f} s",
            f"{part.peak_mib:,.0f} MiB",
        )
    return table


def _lives(report: Report) -> str:
    load = report.load
    lines = [
        f"joined: {report.joined:,} in {report.join_seconds:.1f} s; "
        f"updated: {report.ordered:,} ordered, {report.activated:,} activated in {report.update_seconds:.1f} s, "
        f"{report.activated_twice} twice",
        f"sent: {report.sent:,}; executed: {report.verdict.executed:,}; mosquitto_sub counted: {report.carried:,}",
    ]
    if report.behind_ms > _NOTICEABLE:
        remedy = "" if load.presigned else ", or --presigned"
        lines.append(
            f"[yellow]The fleet was up to {report.behind_ms:,.0f} ms behind its own plan, which the delays contain: "
            f"take a lower --rate than {load.rate:g} or more --processes than {load.processes}{remedy}.[/]"
        )
    return "\n".join(lines)
