"""``srup demo``: the demonstration, and how it looks in a terminal."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import BACKEND, __version__
from .. import demo as demonstration
from ..demo import Report, Scenario
from ..extras import require
from .apps import App
from .options import BrokerKind
from .terminal import console, explained

__all__ = ["app", "show"]

app = App()


@app.command()
def demo(
    devices: Annotated[int, typer.Option(envvar="DEVICES", help="Number of devices.")] = 25,
    scheme: Annotated[str, typer.Option(help="Key scheme of all parties (see srup keygen).")] = "rsa2048",
    kind: BrokerKind = "auto",
) -> None:
    """Join and update a fleet on this machine while an attacker interferes. Nothing leaves loopback."""
    require("paho", "urllib3", *(["amqtt"] if kind == "amqtt" else []))
    with explained():
        passed = show(console, devices, scheme, None if kind == "auto" else kind)
    raise typer.Exit(0 if passed else 1)


def show(console: Console, devices: int, scheme: str, broker: demonstration.BrokerKind | None) -> bool:
    """Run the demonstration and show it; return whether everything happened as expected."""
    console.print(f"[bold]srup {__version__}[/] demo: 1 server, {devices} devices, {BACKEND} backend", highlight=False)
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done)

        scenario = Scenario(
            devices,
            scheme,
            broker=broker,
            progress=progress,
            announce=lambda line: bars.console.print(line, highlight=False),
        )
        report = scenario.run()
    console.print(_devices(report, wide=console.width >= 70))
    console.print(_checks(report))
    console.print(
        f"{report.messages} messages from the server and its devices, {report.attacks} from the attacker; "
        f"{report.verified} signatures verified, {report.refused} messages refused; {report.seconds:.1f} seconds",
        highlight=False,
    )
    good, bad = "[bold green]Everything happened as expected.[/]", "[bold red]Something went wrong: see ✗ above.[/]"
    console.print(good if report.passed else bad)
    return report.passed


def _devices(report: Report, wide: bool) -> Table:
    """Return the table of devices; where it is narrow, only what matters most."""
    table = Table(title="Devices")
    table.add_column("device", no_wrap=True)
    table.add_column("joined", no_wrap=True)
    table.add_column("update", no_wrap=True)
    if wide:
        table.add_column("firmware", no_wrap=True)
        table.add_column("attacked by")
        table.add_column("verified", justify="right")
        table.add_column("refused", justify="right")
    for row in report.rows:
        cells = [
            f"{row.device:x}",
            "[green]yes[/]" if row.joined else "[red]no[/]",
            escape(row.update) if row.update == "activated" else f"[yellow]{escape(row.update)}[/]",
            row.active or "[dim]none[/]",
            row.role,
            str(row.verified),
            str(row.refused) if row.refused else "[dim]0[/]",
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def _checks(report: Report) -> Table:
    table = Table(title="Expected and observed")
    table.add_column("")
    table.add_column("expected")
    table.add_column("seen", overflow="fold")
    for check in report.checks:
        mark = "[green]✓[/]" if check.passed else "[bold red]✗[/]"
        table.add_row(mark, check.what, escape(check.seen))
    return table
