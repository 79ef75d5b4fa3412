"""One device: what is known about it, what was exchanged with it, and what can be ordered."""

from itertools import islice
from typing import Any, Final

from ...errors import PolicyError, SrupError
from ...fleet import AuditRecord, FleetDevice
from ...identity import parse_identity
from ..batches import Batch
from ..exchanges import exchange
from ..once import Done
from ..users import Power
from ..verbforms import verb_forms
from ..visit import Action, Missing, Page, Shown, Visit
from .devices import firmware_of
from .orders import told

__all__ = ["ACTIONS", "PAGES"]

_LOOKED: Final = 200  # records of the audit
_EXCHANGES: Final = 50
_ORDERS: Final = 20


def _device(visit: Visit) -> FleetDevice:
    try:
        return visit.site.fleet.device(parse_identity(visit.path["device"]))
    except (ValueError, PolicyError):
        raise Missing(
            f"Nothing is known about a device {visit.path['device'][:40]}: no key was ever registered for it."
        ) from None


def _show(visit: Visit) -> Shown:
    device = _device(visit)
    try:
        fingerprint = device.fingerprint
    except SrupError:
        fingerprint = "what is registered is no key"
    records = list(islice(visit.site.fleet.audit(device.identity), _LOOKED))
    content: dict[str, Any] = {
        "device": device,
        "name": f"{device.identity:x}",
        "fingerprint": fingerprint,
        "firmware": firmware_of(device),
        "orders": _orders(visit, device.identity, records),
        "exchanges": [exchange(visit.site.fleet, record) for record in records[:_EXCHANGES]],
        "forms": [form for form in verb_forms().values() if form.name != "register" or device.key is None],
        "open": visit.path.get("verb", ""),
    }
    return Shown("device.html", content)


def _orders(visit: Visit, device: int, records: list[AuditRecord]) -> list[dict[str, Any]]:
    """Return the newest orders for a device: those of this console, and those that the audit knows of."""
    found: dict[str, tuple[str, str]] = {
        order: (batch.what, batch.by) for order, batch in visit.site.batches.of_device(device)
    }
    for record in records:
        if record.order is not None:
            found.setdefault(record.order, ("", record.posted_by or ""))
    rows = [told(visit, order) | {"id": order, "what": what, "by": by} for order, (what, by) in found.items()]
    for row in rows:
        row["what"] = row["what"] or str(row["kind"]).replace("_", " ").capitalize()
    rows.sort(key=lambda row: -(row["at"] or 0.0))
    return rows[:_ORDERS]


def _order(visit: Visit) -> Done:
    device = _device(visit)
    name = f"{device.identity:x}"
    form = verb_forms().get(visit.path["verb"])
    if form is None:
        raise Missing("There is no such order.")
    if form.dangerous and visit.form.get("typed").lower().removeprefix("0x") != name:
        raise ValueError(f"type {name} to say that it is this device that you mean")
    posted = visit.site.fleet.post(form.check(device.identity, visit.form, visit.user.name))
    batch = Batch(f"{form.title} {name}", visit.user.name, visit.now, (posted.id,))
    visit.site.batches.add(batch)
    return Done(f"/devices/{name}", f"{form.title} was ordered: {posted.id}")


PAGES: Final = (Page("/devices/{device}", _show),)
ACTIONS: Final = (Action("/devices/{device}/order/{verb}", _order, Power.ORDER, _show),)
