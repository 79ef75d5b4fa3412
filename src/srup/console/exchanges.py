"""What was heard and signed, as tables show it."""

from typing import Any, Final

from ..errors import SrupError
from ..fleet import AuditRecord, Fleet, Verdict

__all__ = ["GOOD", "exchange", "is_refused"]

GOOD: Final = frozenset({"accepted", "sent", "repeated"})
"""The outcomes that say nothing against a message."""


def exchange(fleet: Fleet, record: AuditRecord) -> dict[str, Any]:
    """Return a row: the record, and what its signature is worth, and why."""
    try:
        verdict, why = fleet.verify(record)
    except SrupError as error:
        verdict, why = Verdict.UNKNOWN, str(error)
    return {"record": record, "verdict": str(verdict), "why": why, "refused": is_refused(record)}


def is_refused(record: AuditRecord) -> bool:
    """Whether a message had no effect, or says that something failed."""
    outcome = record.outcome
    if outcome in GOOD or outcome.startswith("PENDING"):
        return False
    told = outcome.upper()
    return outcome.startswith("unexpected") or any(word in told for word in ("FAIL", "REFUSE", "UNKNOWN", "ERROR"))
