"""The audit: every exchange that was signed, searched, verified, and taken away as a file."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode

from ...fleet import AuditRecord
from ...fleet.auditfile import export_lines
from ...identity import parse_identity
from ..exchanges import exchange, is_refused
from ..visit import Page, Shown, Values, Visit

__all__ = ["PAGES", "export", "search"]

ROWS: Final = 100
_LOOKED: Final = 20_000  # records that one page looks through at most
_DIRECTIONS: Final = ("received", "sent", "ordered")
_FIELDS: Final = ("device", "since", "until", "direction", "refused")


def moment(text: str, name: str) -> float | None:
    """Return a time that was typed, in UTC unless it says otherwise, or None for none; ValueError names the field."""
    if not text:
        return None
    try:
        if text.replace(".", "", 1).isdecimal() and len(text) > 8:
            return float(text)
        read = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name}: {text[:40]!r} is no time, such as 2026-12-01 or 2026-12-01 14:30") from None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def search(visit: Visit, query: Values) -> Iterator[AuditRecord]:
    """Return what is asked for, the newest first; ValueError for what makes no sense."""
    device = parse_identity(query.get("device")) if query.get("device") else None
    direction, refused = query.get("direction"), bool(query.get("refused"))
    found = visit.site.fleet.audit(device, moment(query.get("since"), "since"), moment(query.get("until"), "until"))
    return (
        record
        for record in found
        if (not direction or record.direction == direction) and (not refused or is_refused(record))
    )


def _show(visit: Visit) -> Shown:
    query, wrong = visit.query, ""
    page: list[AuditRecord] = []
    rest: Iterator[AuditRecord] = iter(())
    try:
        rest = search(visit, query)
        page = list(islice(rest, ROWS))
    except ValueError as error:
        wrong = str(error)
    more = ""
    if len(page) == ROWS:
        for record in islice(rest, ROWS):  # those of the same moment belong to the page: the next one begins before it
            if record.at != page[-1].at:
                more = _link({**_asked(query), "until": f"{page[-1].at!r}"})
                break
            page.append(record)
    content: dict[str, Any] = {
        "rows": [exchange(visit.site.fleet, record) for record in page],
        "wrong": wrong,
        "query": query,
        "directions": _DIRECTIONS,
        "more": more,
        "export": _link(_asked(query), "/audit/export"),
        "asked": bool(_asked(query)),
    }
    return Shown("audit.html", content, status=400 if wrong else 200)


def _asked(query: Values) -> dict[str, str]:
    return {name: query.get(name) for name in _FIELDS if query.get(name)}


def _link(asked: dict[str, str], path: str = "/audit") -> str:
    return f"{path}?{urlencode(asked)}" if asked else path


def export(visit: Visit) -> Iterator[str]:
    """Return what is asked for in the form that srup audit verify reads; ValueError as :func:`search`."""
    fleet = visit.site.fleet
    lines = export_lines(fleet.identity, search(visit, visit.query), fleet.signer_key)
    return (f"{line}\n" for line in lines)


PAGES: Final = (Page("/audit", _show),)
