"""The table of devices: filtered, sorted and linked to, some at a time."""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from ...errors import PolicyError
from ...fleet import FleetDevice
from ...fleet.where import FIELDS
from ...identity import parse_identity
from ..batches import Batch
from ..census import SORTS
from ..once import Done
from ..users import Power
from ..verbforms import verb_forms
from ..visit import Action, Page, Shown, Visit

__all__ = ["ACTIONS", "PAGES", "firmware_of"]

ROWS: Final = 50

_COLUMNS: Final = (
    ("identity", "Identity"),
    ("name", "Name"),
    ("type", "Type"),
    ("member", "Joined"),
    ("firmware", "Firmware"),
    ("last_contact", "Last contact"),
    ("update", "Update"),
)


def firmware_of(device: FleetDevice) -> str:
    """Return the version and the digest of what a device has activated last."""
    if device.firmware is None:
        return ""
    return f"{'' if device.version is None else f'{device.version} '}{device.firmware[:8]}"


def _show(visit: Visit) -> Shown:
    query = visit.query
    condition, sort = query.get("where"), query.get("sort", "identity")
    sort = sort if sort in SORTS else "identity"
    down = "down" in query
    snapshot = visit.site.census.snapshot()
    wrong, found = "", snapshot.devices
    try:
        found = snapshot.select(condition, sort, down)
    except ValueError as error:
        wrong, found = str(error), ()
    start = _start(found, query.get("from"))
    page = found[start : start + ROWS]
    content: dict[str, Any] = {
        "condition": condition,
        "wrong": wrong,
        "total": len(snapshot.devices),
        "found": len(found),
        "first": start + 1 if page else 0,
        "last": start + len(page),
        "rows": [fresh for device in page if (fresh := _fresh(visit, device.identity)) is not None],
        "columns": [(name, title, _sorting(name, sort, down)) for name, title in _COLUMNS],
        "link": lambda **changes: _link(condition, sort, down, changes),
        "before": f"{found[max(0, start - ROWS)].identity:x}" if start else "",
        "after": f"{found[start + ROWS].identity:x}" if start + ROWS < len(found) else "",
        "fields": ", ".join(FIELDS),
        "firmware_of": firmware_of,
    }
    return Shown("devices.html", content, status=400 if wrong else 200)


def _start(found: Sequence[FleetDevice], text: str) -> int:
    """Return where the device with this identity stands, which begins the page."""
    try:
        first = parse_identity(text)
    except ValueError:
        return 0
    return next((index for index, device in enumerate(found) if device.identity == first), 0)


def _fresh(visit: Visit, identity: int) -> FleetDevice | None:
    try:
        return visit.site.fleet.device(identity)
    except PolicyError:
        return None


def _sorting(name: str, sort: str, down: bool) -> str:
    """Return how a column is sorted, as ``aria-sort`` says it."""
    return ("descending" if down else "ascending") if name == sort else "none"


def _link(condition: str, sort: str, down: bool, changes: dict[str, Any]) -> str:
    known: dict[str, Any] = {
        "where": condition,
        "sort": sort if sort != "identity" else "",
        "down": "1" if down else "",
    }
    told = {name: value for name, value in (known | changes).items() if value}
    return f"/devices?{urlencode(told)}" if told else "/devices"


def _ask(visit: Visit) -> Shown:
    return Shown("device_new.html", {"form": verb_forms()["register"]}, live=False)


def _register(visit: Visit) -> Done:
    identity = parse_identity(visit.form.get("identity"))
    posted = visit.site.fleet.post(verb_forms()["register"].check(identity, visit.form, visit.user.name))
    said = f"Register {identity:x}"
    number = visit.site.batches.add(Batch(said, visit.user.name, visit.now, (posted.id,)))
    return Done(f"/orders/{number}", f"{said} was ordered.")


PAGES: Final = (Page("/devices", _show), Page("/devices/new", _ask, Power.ORDER))
ACTIONS: Final = (Action("/devices/new/register", _register, Power.ORDER, _ask),)
