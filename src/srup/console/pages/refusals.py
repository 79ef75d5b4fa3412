"""What was refused, and why: by reason and by device."""

from collections import Counter
from typing import Any, Final

from ..visit import Page, Shown, Visit

__all__ = ["PAGES"]

_ROWS: Final = 200


def _show(visit: Visit) -> Shown:
    snapshot = visit.site.census.snapshot()
    failed = [each for each in snapshot.devices if each.update is not None and each.update.state == "FAILED"]
    failed.sort(key=lambda each: -each.update.at if each.update else 0.0)
    reasons = Counter(each.update.reason or "no reason was given" for each in failed if each.update)
    content: dict[str, Any] = {
        "reasons": reasons.most_common(50),
        "failed": failed[:_ROWS],
        "found": len(failed),
    }
    return Shown("refusals.html", content)


PAGES: Final = (Page("/refusals", _show),)
