"""What was refused, and why: by reason and by device."""

from collections import Counter
from itertools import islice
from typing import Any, Final

from ...fleet import AuditRecord
from ..exchanges import is_refused
from ..visit import Page, Shown, Visit

__all__ = ["PAGES", "refused_since"]

_ROWS: Final = 200
_LOOKED: Final = 10_000  # records of the audit, at most


def refused_since(visit: Visit, since: float) -> list[AuditRecord]:
    """Return the verified messages since a Unix time that had no effect, or say that something failed."""
    found = islice(visit.site.fleet.audit(since=since), _LOOKED)
    return [record for record in found if record.direction == "received" and is_refused(record)]


def _show(visit: Visit) -> Shown:
    snapshot = visit.site.census.snapshot()
    failed = [each for each in snapshot.devices if each.update is not None and each.update.state == "FAILED"]
    failed.sort(key=lambda each: -each.update.at if each.update else 0.0)
    updates = Counter(each.update.reason or "no reason was given" for each in failed if each.update)
    messages = refused_since(visit, visit.now - 86400.0)
    content: dict[str, Any] = {
        "updates": updates.most_common(50),
        "failed": failed[:_ROWS],
        "found": len(failed),
        "messages": messages[:_ROWS],
        "reasons": Counter((each.message, each.outcome) for each in messages).most_common(50),
        "peers": Counter(each.peer for each in messages).most_common(20),
    }
    return Shown("refusals.html", content)


PAGES: Final = (Page("/refusals", _show),)
