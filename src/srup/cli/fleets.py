"""Which server a command is about that works through its store: the options, and the fleet that they name."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

import srup

from ..agent.verbs import LONGEST_NAME
from ..printable import printable
from .options import identity
from .terminal import explained, fail

__all__ = ["OfServer", "StoreOfServer", "choose", "chosen", "login_name"]

StoreOfServer = Annotated[
    str | None,
    typer.Option("--store", metavar="PATH|URL", help="Required: SQLite file of the server, or its Redis, redis://..."),
]
OfServer = Annotated[
    int | None,
    typer.Option("--identity", parser=identity, metavar="HEX", help="Required: identity of the server."),
]


def choose(context: typer.Context, store: str | None, identity: int | None) -> None:
    """Remember the options for the command that follows; the help of a command must not ask for them."""
    context.obj = store, identity


@contextmanager
def chosen(context: typer.Context, usage: str) -> "Iterator[srup.Fleet]":
    """Open the fleet of the server that was chosen; without one the command ends and shows its ``usage``."""
    store, server = context.obj
    if store is None or server is None:
        fail(f"which server? {usage}")
    with explained(), srup.Fleet(store, server, posted_by=login_name()) as fleet:
        yield fleet


def login_name() -> str:
    """Return the user of this machine, by whom orders are posted; "" where nobody can tell."""
    try:
        return printable(getpass.getuser(), LONGEST_NAME, words=True)[:LONGEST_NAME]
    except (OSError, KeyError):  # neither the environment nor the system knows
        return ""
