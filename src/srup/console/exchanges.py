"""What was heard and signed, as tables show it."""

import json
from typing import Any, Final

from ..errors import SrupError
from ..fleet import AuditRecord, Fleet, Verdict
from .words import iso

__all__ = ["GOOD", "exchange", "exported", "is_refused"]

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


def exported(fleet: Fleet, record: AuditRecord) -> str:
    """Return a record as a line of JSON, with its signed bytes in hex and the key that has signed them as PEM."""
    key = fleet.signer_key(record)
    told = {
        "at": iso(record.at, exact=True),
        "direction": record.direction,
        "server": f"{record.server:x}",
        "peer": f"{record.peer:x}",
        "message": record.message,
        "sequence_id": record.sequence_id,
        "token": record.token,
        "outcome": record.outcome,
        "order": record.order,
        "posted_by": record.posted_by,
        "wire": None if record.wire is None else record.wire.hex(),
        "fingerprint": record.fingerprint,
        "key": None if key is None else key.decode("ascii", "replace"),
    }
    return json.dumps(told) + "\n"
