"""What was refused, and why: by reason and by device."""

from collections import Counter
from itertools import islice
from typing import Any, Final

from ...fleet import AuditRecord, FleetDevice
from ..census import Snapshot
from ..exchanges import is_refused
from ..visit import Page, Shown, Visit

__all__ = ["PAGES", "refused_since"]

_ROWS: Final = 200
_LOOKED: Final = 10_000  # records of the audit, at most


def refused_since(visit: Visit, since: float) -> list[AuditRecord]:
    """Return the verified messages since a Unix time that had no effect, or say that something failed."""
    found = islice(visit.site.fleet.audit(since=since), _LOOKED)
    return [record for record in found if record.direction == "received" and is_refused(record)]


def _failed(snapshot: Snapshot) -> tuple[list[FleetDevice], list[tuple[str, int]]]:
    """Return the devices whose newest update has failed, the latest first, and the reasons counted."""
    failed = [(each.update, each) for each in snapshot.devices if each.update is not None]
    failed = [(update, each) for update, each in failed if update.state == "FAILED"]
    failed.sort(key=lambda pair: -pair[0].at)
    reasons = Counter(update.reason or "no reason was given" for update, _ in failed)
    return [each for _, each in failed], reasons.most_common(50)


def _show(visit: Visit) -> Shown:
    snapshot = visit.site.census.snapshot()
    failed, updates = snapshot.kept("failed", lambda: _failed(snapshot))
    messages = refused_since(visit, visit.now - 86400.0)
    content: dict[str, Any] = {
        "updates": updates,
        "failed": failed[:_ROWS],
        "found": len(failed),
        "messages": messages[:_ROWS],
        "reasons": Counter((each.message, each.outcome) for each in messages).most_common(50),
        "peers": Counter(each.peer for each in messages).most_common(20),
    }
    return Shown("refusals.html", content)


PAGES: Final = (Page("/refusals", _show),)
