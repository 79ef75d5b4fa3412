"""Which devices an order is for: those that are typed, or those for which conditions hold."""

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Final

import typer

import srup

from ..fleet.where import where
from .options import identity
from .terminal import errors, fail

__all__ = ["Devices", "Where", "Yes", "select"]

Devices = Annotated[
    list[int] | None,
    typer.Argument(parser=identity, metavar="IDENTITY", help="Which devices: 1 to 16 hexadecimal digits each."),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where", metavar="CONDITIONS", help="All devices such as: tag.site=berlin and last_contact<1h (srup devices)."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether so many devices are meant.")]

_NAMED: Final = 8
"""How many devices are named before the rest is only counted."""


def select(
    fleet: "srup.Fleet", what: str, devices: Sequence[int], conditions: str | None, *, confirmed: bool
) -> list[int]:
    """Return the devices that are meant, each once. Where it was not typed that it is this one alone, ask.

    The command ends when none is meant, or nobody says that they are.
    """
    if bool(devices) == (conditions is not None):
        fail("which devices? name them, or say which by --where CONDITIONS")
    if conditions is None:
        found = list(dict.fromkeys(devices))
        if len(found) == 1:
            return found
    else:
        now, holds = time.time(), where(conditions)
        found = [device.identity for device in fleet.devices() if holds(device, now)]
        if not found:
            fail(f"there is no device for which {conditions} holds: nothing is ordered")
    if not confirmed:
        _confirm(what, found)
    return found


def _confirm(what: str, devices: Sequence[int]) -> None:
    named = ", ".join(f"{device:x}" for device in devices[:_NAMED])
    more = f" and {len(devices) - _NAMED} more" if len(devices) > _NAMED else ""
    meant = f"{what} for {len(devices)} {'device' if len(devices) == 1 else 'devices'}: {named}{more}"
    if not (sys.stdin.isatty() and errors.is_terminal):
        fail(f"this would order {meant}; if that is meant, add --yes")
    errors.print(f"This orders {meant}.", markup=False, highlight=False, soft_wrap=True)
    errors.print("Is that meant? [y/N] ", end="", markup=False, highlight=False)
    if input().strip().lower() not in ("y", "yes"):
        fail("nothing is ordered")
