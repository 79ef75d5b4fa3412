"""Joins that wait for a person: what the device shows, large enough to be compared across a room."""

import io
from typing import Any, Final

from ...agent.verbs import DecideJoin
from ...extras import missing_named
from ...fleet import WaitingJoin
from ...identity import parse_identity
from ..once import Done
from ..users import Power
from ..visit import Action, Page, Shown, Visit

with missing_named():
    import segno
    from markupsafe import Markup

__all__ = ["ACTIONS", "PAGES"]

_SHOWN: Final = 20
_DECISIONS: Final = {"accept": "Accept", "refuse": "Refuse", "fail": "Cannot compare"}


def _show(visit: Visit) -> Shown:
    waiting = visit.site.fleet.joins()
    may = visit.user.may(Power.JOIN)
    content: dict[str, Any] = {
        "joins": [(join, _forms(join) if may else None) for join in waiting[:_SHOWN]],
        "more": max(0, len(waiting) - _SHOWN),
        "decisions": _DECISIONS,
    }
    return Shown("joins.html", content)


def _forms(join: WaitingJoin) -> dict[str, Any] | None:
    """Return what is compared: words, numbers and the QR code; None if a device compares."""
    if join.qr is None:
        return None
    out = io.BytesIO()
    segno.make(join.qr, error="m", micro=False).save(
        out, kind="svg", border=1, xmldecl=False, svgns=False, nl=False, omitsize=True, svgclass=None, lineclass=None
    )
    return {
        "words": (join.words or "").split(),
        "numbers": (join.number or "").split(),
        "qr": Markup(out.getvalue().decode()),  # noqa: S704 - made by segno, of hex digits
    }


def _decide(visit: Visit) -> Done:
    device = parse_identity(visit.path["device"])
    decision, join = visit.path["decision"], visit.form.get("join")
    if decision not in _DECISIONS:
        raise ValueError(f"{decision:.40} is no decision")
    name = visit.user.name
    order = DecideJoin(device, join, decision, name, posted_by=name)  # type: ignore[arg-type]
    posted = visit.site.fleet.post(order)
    said = {"accept": "accepted", "refuse": "refused", "fail": "told that nobody could compare"}[decision]
    return Done("/joins", f"{device:x} is {said}; its order is {posted.id}.")


PAGES: Final = (Page("/joins", _show),)
ACTIONS: Final = (Action("/joins/{device}/{decision}", _decide, Power.JOIN, _show),)
