"""The command that shows the devices of a server, whether it runs or not."""

import json
import time
from itertools import islice
from typing import Annotated, Any, Final

import typer

from ..fleet import FleetDevice, LastUpdate
from ..fleet.auditfile import fields_of
from ..fleet.where import where
from ..printable import printable
from ..versions import shown_version, version_field
from .apps import App
from .audit import GIVE_WAY as AUDIT_GIVES_WAY
from .audit import audit_row
from .fleets import OfServer, StoreOfServer, choose, chosen
from .options import IdentityArgument, Json
from .tables import ago, iso, table

__all__ = ["app"]

app = App(help="Show the devices of a server, whether it runs or not.", no_args_is_help=False)

_USAGE: Final = "srup devices --store PATH|URL --identity HEX"
_GIVE_WAY: Final = ("TAGS", "DESCRIPTION", "UPDATE", "NAME", "TYPE", "FIRMWARE")  # in a narrow window, in this order


@app.callback(invoke_without_command=True)
def _list(
    context: typer.Context,
    store: StoreOfServer = None,
    identity: OfServer = None,
    condition: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="CONDITIONS",
            help="Only devices such as: tag.site=berlin and last_contact<1h.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of devices to show.")] = None,
    as_json: Json = False,
) -> None:
    choose(context, store, identity)
    if context.invoked_subcommand is not None:
        return
    with chosen(context, _USAGE) as fleet:
        now = time.time()
        holds = (lambda device, at: True) if condition is None else where(condition)
        devices = islice((device for device in fleet.devices() if holds(device, now)), limit)
        if as_json:
            for device in devices:
                print(json.dumps(_fields(device)))
            return
        shown = list(devices)
    for line in table([_row(device, now) for device in shown], _GIVE_WAY):
        print(line)
    heard = sum(device.last_contact is not None and now - device.last_contact < 3600.0 for device in shown)
    failed = sum(device.update is not None and device.update.state == "FAILED" for device in shown)
    told = f"{len(shown)} {'device' if len(shown) == 1 else 'devices'}; {heard} heard in the last hour"
    print(told + (f"; {failed} {'update' if failed == 1 else 'updates'} failed" if failed else ""))


@app.command()
def show(
    context: typer.Context,
    device: IdentityArgument,
    exchanges: Annotated[int, typer.Option(min=0, help="Number of the last exchanges to show.")] = 10,
    as_json: Json = False,
) -> None:
    """Show everything that is known about a device, and the last exchanges, the newest first."""
    with chosen(context, _USAGE) as fleet:
        found = fleet.device(device)
        last = [(record, fleet.verify(record)[0]) for record in islice(fleet.audit(device), exchanges)]
    if as_json:
        told = [fields_of(record) | {"signature": str(verdict)} for record, verdict in last]
        print(json.dumps(_fields(found) | {"exchanges": told}))
        return
    now = time.time()
    update = found.update
    known = {
        "identity": f"{found.identity:x}",
        "member": "yes" if found.member else "no",
        "key": found.fingerprint or "none: it was removed or revoked",
        "last contact": ago(found.last_contact, now),
        "firmware": found.firmware or "-",
        "version": "-" if found.version is None else shown_version(found.version),
        "update": "-" if update is None else f"{_state(found)}, {ago(update.at, now)}, to {update.digest}",
        **{f"tag {name}": value for name, value in found.tags.items()},
        **{name: value for name, value in found.facts.items() if name == "description"},
        **{f"fact {name}": value for name, value in found.facts.items() if name != "description"},
    }
    width = max(map(len, known))
    for name, value in known.items():
        print(f"{printable(name, 100, words=True):{width}}  {printable(value, 1000, words=True)}")
    rows = [audit_row(record, verdict) for record, verdict in last]
    if rows:
        print()
    for line in table([{name: row[name] for name in row if name != "PEER"} for row in rows], AUDIT_GIVES_WAY):
        print(line)


def _fields(device: FleetDevice) -> dict[str, Any]:
    update = device.update
    return {
        "identity": f"{device.identity:x}",
        "member": device.member,
        "fingerprint": device.fingerprint,
        "last_contact": iso(device.last_contact),
        "firmware": device.firmware,
        "version": version_field(device.version),
        "update": None if update is None else _update(update),
        "type": device.type,
        "name": device.name,
        "tags": dict(device.tags),
        "description": device.facts.get("description"),
        "facts": {name: value for name, value in device.facts.items() if name != "description"},
    }


def _update(update: LastUpdate) -> dict[str, Any]:
    return update.__dict__ | {"at": iso(update.at), "version": version_field(update.version)}


def _row(device: FleetDevice, now: float) -> dict[str, str]:
    version = "" if device.version is None else f"{shown_version(device.version)} "
    row = {
        "IDENTITY": f"{device.identity:x}",
        "NAME": device.name or "-",
        "TYPE": device.type or "-",
        "MEMBER": "yes" if device.member else "no",
        "FIRMWARE": "-" if device.firmware is None else f"{version}{device.firmware[:8]}",
        "LAST CONTACT": ago(device.last_contact, now),
        "UPDATE": _state(device),
        "DESCRIPTION": device.facts.get("description", "-"),
        "TAGS": " ".join(f"{name}={value}" for name, value in device.tags.items()) or "-",
    }
    return {name: printable(value, 200, words=True) for name, value in row.items()}


def _state(device: FleetDevice) -> str:
    if device.update is None:
        return "-"
    state = device.update.state.lower()
    return f"{state}: {device.update.reason}" if device.update.reason else state
