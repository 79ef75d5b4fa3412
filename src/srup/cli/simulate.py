"""``srup simulate``: fleets in simulated time, seed after seed, until something happens that must not."""

import json
import secrets
from typing import Annotated, Any

import typer

from ..simulation import Options, Report, run
from ..simulation.keychain import SCHEMES
from .apps import App
from .options import Json
from .terminal import console, fail, show

__all__ = ["app", "replay_command", "simulate"]

app = App()

_TAIL = 40
"""How many lines of the trace are shown of a run that failed."""


@app.command()
def simulate(
    seed: Annotated[int | None, typer.Option(min=0, help="The first (or only) seed; default: random.")] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds; default: 1 with --seed, otherwise 20.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, max=64, help="Number of devices.")] = 4,
    steps: Annotated[int, typer.Option(min=0, help="Number of steps in a run.")] = 150,
    scheme: Annotated[str, typer.Option(help=f"Key scheme of all parties: {' or '.join(SCHEMES)}.")] = SCHEMES[0],
    durable: Annotated[
        bool | None,
        typer.Option("--durable/--volatile", help="With or without stores; default: with, for odd seeds."),
    ] = None,
    syndication: Annotated[
        bool, typer.Option("--syndication", help="Simulate several owners who share devices with each other.")
    ] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show every event.")] = False,
    as_json: Json = False,
) -> None:
    """Let fleets live through faults, crashes and attacks in simulated time, and check everything that they do.

    Exit status 1 when something happened that must not; then the command that shows it again is printed.
    """
    if scheme not in SCHEMES:
        fail(f"{scheme!r} is no scheme for simulations; they are {', '.join(SCHEMES)}")
    first = secrets.randbelow(1 << 32) if seed is None else seed
    failed = 0
    for number in range(first, first + (runs or (20 if seed is None else 1))):
        stores = number % 2 == 1 if durable is None else durable
        options = Options(devices=devices, steps=steps, scheme=scheme, durable=stores, syndication=syndication)
        report = run(number, options)
        if as_json:
            print(json.dumps(_described(report, trace)), flush=True)
        else:
            _show(report, trace)
        failed += not report.passed
    if failed:
        raise typer.Exit(1)


def replay_command(report: Report) -> str:
    """Return the command that makes the same run once more."""
    options = report.options
    return (
        f"srup simulate --seed {report.seed} --devices {options.devices} --steps {options.steps} "
        f"--scheme {options.scheme} {'--durable' if options.durable else '--volatile'}"
        f"{' --syndication' if options.syndication else ''}"
    )


def _described(report: Report, everything: bool) -> dict[str, Any]:
    """Return a report as JSON has it."""
    described: dict[str, Any] = {
        "seed": report.seed,
        "passed": report.passed,
        "seconds": report.seconds,
        "counts": report.counts,
    }
    described |= {"violations": [str(each) for each in report.violations], "digest": report.digest}
    described["again"] = replay_command(report)
    return described | ({"trace": report.trace} if everything else {})


def _show(report: Report, everything: bool) -> None:
    counts = report.counts
    verdict = "[green]passed[/]" if report.passed else "[bold red]FAILED[/]"
    lines = report.trace if everything else report.trace[-_TAIL:] if not report.passed else ()
    for line in lines:
        _print(line)
    console.print(
        f"seed {report.seed}: {verdict}; {report.seconds:.0f} simulated seconds, {counts.get('messages', 0)} messages, "
        f"{counts.get('attacks', 0)} attacks, digest {report.digest[:16]}",
        highlight=False,
        soft_wrap=True,
    )
    for violation in report.violations:
        _print(f"  {violation}")
    if not report.passed:
        _print(f"  again: {replay_command(report)}")


def _print(line: str) -> None:
    content = line.lstrip(" ")
    show(" ".join(content.split()), before=(line[: len(line) - len(content)], ""), most=None)
