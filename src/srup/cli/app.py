"""The ``srup`` command: what all its commands have in common, and which there are."""

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from typer.completion import completion_init, get_completion_script  # type: ignore[attr-defined] # it has no __all__

from . import logs
from .apps import SETTINGS, App, lazy_group
from .config import FILE, Settings
from .terminal import explained
from .version import installed, version_line

__all__ = ["app"]

COMMANDS: Final = (
    *("init", "keygen", "broker", "server", "device", "devices", "order", "join", "campaign", "firmware", "console"),
    *("audit", "store", "inspect", "keyex", "demo", "simulate", "bench"),
)
"""The commands, each of which is a module of this package."""

_COMPLETE: Final = "_SRUP_COMPLETE"
"""The environment variable by which a shell asks for completions."""

if _COMPLETE in os.environ:
    completion_init()  # the shells that Typer knows

app = App(
    cls=lazy_group(__package__, COMMANDS),
    help="Secure Remote Update Protocol: signed commands and firmware updates over MQTT.",
)


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
) -> None:
    """Show the version and which backend is in use."""
    typer.echo(json.dumps(installed()) if as_json else version_line())


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        typer.echo(get_completion_script(prog_name="srup", complete_var=_COMPLETE, shell=shell))
        raise typer.Exit


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Settings for all commands; default: {FILE}, if there is one here."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
    _completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option(
            "--show-completion",
            callback=_show_completion,
            is_eager=True,
            help="Show the script that completes commands and options in this shell, and exit.",
        ),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what this terminal has no sign for is shown as another
    named = config or (Path(os.environ["SRUP_CONFIG"]) if os.environ.get("SRUP_CONFIG") else None)
    with explained():
        settings = Settings.load(named)
        settings.check(set(), set(COMMANDS) | {"version"})
    context.meta[SETTINGS] = settings
    # On a screen trouble is shown elsewhere; a service must say it. Warnings would let strangers fill the disk.
    quiet = logging.CRITICAL if sys.stderr is not None and sys.stderr.isatty() else logging.ERROR
    logs.show(logging.INFO if verbose else quiet)
