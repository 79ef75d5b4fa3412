"""Orders for several devices: chosen, confirmed by number and name, posted, and followed."""

from collections.abc import Sequence
from typing import Any, Final

from ...errors import SrupError, StoreError
from ...identity import parse_identity
from ..batches import Batch
from ..once import Done
from ..users import Power
from ..verbforms import VerbForm, verb_forms
from ..visit import Action, Missing, Page, Question, Shown, Values, Visit

__all__ = ["ACTIONS", "PAGES", "told"]

MOST: Final = 2000
"""Devices that one order goes to at most; more are what campaigns are for."""

_LISTED: Final = 500


def told(visit: Visit, order: str) -> dict[str, Any]:
    """Return what an order has come to, for a row of a table."""
    try:
        report = visit.site.fleet.find(order).report()
    except (SrupError, ValueError) as error:
        return {"state": "not known", "text": str(error), "at": None, "kind": "order"}
    row = {"at": report.at, "kind": report.kind, "text": ""}
    if report.error is not None:
        return row | {"state": "failed", "text": f"{report.error}: {report.text}"}
    if report.over and report.kind == "identify":
        return row | {"state": "done", "text": report.value or ""}
    return row | {"state": (report.value if report.over and report.value else report.state).lower()}


def _selected(visit: Visit, values: Values) -> list[int]:
    """Return who is chosen: devices by identity, or all for whom a condition holds; ValueError for nobody."""
    if "where" in values and "all" in values:
        found = [device.identity for device in visit.site.census.snapshot().select(values.get("where"))]
    else:
        texts = [text for each in values.all("device") for text in each.split()]
        found = sorted({parse_identity(text) for text in texts})
    if not found:
        raise ValueError("no device is chosen: tick some in the table, or order for all that match its filter")
    if len(found) > MOST:
        raise ValueError(f"{len(found):,} devices are chosen; one order goes to at most {MOST:,}. Narrow the filter.")
    return found


def _form(values: Values) -> VerbForm | None:
    return verb_forms().get(values.get("verb"))


def _ask(visit: Visit) -> Shown:
    values = visit.typed or visit.query
    devices: Sequence[int] = ()
    wrong = visit.wrong
    if not (visit.typed and values.get("verb") == "register") and values.get("verb") != "register":
        try:
            devices = _selected(visit, values)
        except ValueError as error:
            wrong = wrong or str(error)
    forms = [form for form in verb_forms().values() if not form.about and form.name != "register"]
    content = {"devices": devices, "listed": _LISTED, "forms": forms, "form": _form(values), "wrong": wrong}
    return Shown("order.html", content, live=False)


def _confirm(visit: Visit) -> Shown:
    form = _form(visit.form)
    if form is None:
        raise ValueError("choose what is to be ordered")
    devices = _selected(visit, visit.form)
    for device in devices[:1]:
        form.check(device, visit.form)
    fields = [(name, text) for name, text in visit.form.pairs if name in {each.name for each in form.fields} | {"verb"}]
    details = [
        (each.label, visit.form.get(each.name))
        for each in form.fields
        if visit.form.get(each.name) and each.name != "kind"
    ]
    content = {"devices": devices, "listed": _LISTED, "form": form, "fields": fields, "details": details}
    return Shown("confirm.html", content, live=False)


def _post(visit: Visit) -> Done:
    form = _form(visit.form)
    if form is None:
        raise ValueError("choose what is to be ordered")
    devices = _selected(visit, visit.form)
    wanted = f"{devices[0]:x}" if len(devices) == 1 else str(len(devices))
    if form.dangerous and visit.form.get("typed") != wanted:
        raise ValueError(f"type {wanted} to say that you mean {'this device' if len(devices) == 1 else 'all of them'}")
    orders, failed = [], []
    for device in devices:
        try:
            orders.append(visit.site.fleet.post(form.check(device, visit.form, visit.user.name)).id)
        except (StoreError, ValueError) as error:
            failed.append((device, str(error)))
    if not orders:
        raise ValueError(failed[0][1])
    said = f"{form.title} for {len(orders)} {'device' if len(orders) == 1 else 'devices'}"
    number = visit.site.batches.add(Batch(said, visit.user.name, visit.now, tuple(orders), tuple(failed)))
    return Done(f"/orders/{number}", f"{said} was ordered.")


def _follow(visit: Visit) -> Shown:
    text = visit.path["number"]
    batch = visit.site.batches.find(int(text)) if text.isdecimal() and len(text) < 12 else None
    if batch is None:
        raise Missing(
            "These orders are not remembered here any more. The page of each device says what became of them."
        )
    rows = [(order, order.partition(".")[0], told(visit, order)) for order in batch.orders[:_LISTED]]
    counts: dict[str, int] = {}
    for _, _, row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return Shown("orders.html", {"batch": batch, "rows": rows, "counts": counts, "number": text})


PAGES: Final = (Page("/order", _ask, Power.ORDER), Page("/orders/{number}", _follow))
ACTIONS: Final = (
    Question("/order/confirm", _confirm, Power.ORDER, _ask),
    Action("/order/post", _post, Power.ORDER, _ask),
)
