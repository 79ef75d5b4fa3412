"""``srup simulate``: fleets in simulated time, seed after seed, until something happens that must not."""

import secrets
from typing import Annotated

import typer
from rich.markup import escape

from ..simulation import Options, Report, run
from ..simulation.keychain import SCHEMES
from .terminal import console, fail, printable

__all__ = ["replay_command", "simulate"]

_TAIL = 40
"""How many lines of the trace are shown of a run that failed."""


def simulate(
    seed: Annotated[
        int | None, typer.Option(min=0, help="The first seed, or the only one; default: by chance.")
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="How many seeds. [default: 1 with --seed, else 20]")] = None,
    devices: Annotated[int, typer.Option(min=1, max=64, help="How many devices there are.")] = 4,
    steps: Annotated[int, typer.Option(min=0, help="How many things happen in a run.")] = 150,
    scheme: Annotated[str, typer.Option(help=f"The scheme of all keys: {' or '.join(SCHEMES)}.")] = SCHEMES[0],
    trace: Annotated[bool, typer.Option("--trace", help="Show everything that happens.")] = False,
) -> None:
    """Let fleets live through faults, crashes and attacks in simulated time, and check everything that they do.

    Exit status 1 when something happened that must not; then the command that shows it again is printed.
    """
    if scheme not in SCHEMES:
        fail(f"{scheme!r} is no scheme for simulations; they are {', '.join(SCHEMES)}")
    options = Options(devices=devices, steps=steps, scheme=scheme)
    first = secrets.randbelow(1 << 32) if seed is None else seed
    failed = 0
    for number in range(first, first + (runs or (20 if seed is None else 1))):
        report = run(number, options)
        _show(report, trace)
        failed += not report.passed
    if failed:
        raise typer.Exit(1)


def replay_command(report: Report) -> str:
    """Return the command that makes the same run once more."""
    options = report.options
    return (
        f"srup simulate --seed {report.seed} --devices {options.devices} --steps {options.steps} "
        f"--scheme {options.scheme}"
    )


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
    console.print(escape(printable(line)), highlight=False, soft_wrap=True)
