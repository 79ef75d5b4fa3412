"""What a server has written down of what it heard and signed, for whoever wants to look at it, or to check it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from ..codec import decode
from ..errors import InvalidKeyError, SrupError
from ..keys import PublicKey
from ..messages import SCHEMA
from ..records import AuditRow

__all__ = ["AuditRecord", "Verdict", "judge"]

_NAMES: Final = {cls.layout.type: cls.__name__ for cls in SCHEMA[:]}
_ORDER: Final = 0  # the type of a row that is about no message, but about an order


class Verdict(StrEnum):
    """What there is to say about the signature of an exchange."""

    VALID = "valid"
    """The key with this fingerprint has signed these very bytes, and they say what the record says."""
    INVALID = "invalid"
    """It has not, or they say something else."""
    UNKNOWN = "unknown"
    """The key is not kept."""
    ABSENT = "none"
    """There are no signed bytes: they are not kept, or it was no message."""


@dataclass(frozen=True)
class AuditRecord:
    """A message that the server has heard or signed, or an order that has ended.

    ``at`` is the Unix time. ``direction`` is "sent" or "received", seen from the server; "ordered" is an order that has
    ended, whose ``message`` is its verb. ``message`` is the name of the message, or its number where this srup knows
    none. ``outcome`` is "accepted" or "sent", or the name of the status that the message carries, or why it had no
    effect; of an order what it has come to. ``order`` is the id of the order that it belongs to, and ``posted_by`` who
    says to have posted that, both None where there is none. ``wire`` has the signed bytes, None where they are not
    kept, and ``fingerprint`` is that of the key that has signed them.
    """

    server: int
    at: float
    direction: str
    peer: int
    message: str
    sequence_id: int
    token: str
    outcome: str
    posted_by: str | None = None
    order: str | None = None
    wire: bytes | None = None
    fingerprint: str | None = None

    @classmethod
    def of(cls, row: AuditRow, server: int) -> Self:
        """Return what a row of the store of this server says."""
        direction, outcome = "sent" if row.sent else "received", row.outcome
        message = _NAMES.get(row.type, str(row.type))
        if row.type == _ORDER:
            direction = "ordered"
            message, _, outcome = outcome.partition(": ")
        return cls(
            server=server,
            at=row.at,
            direction=direction,
            peer=row.partner,
            message=message,
            sequence_id=row.sequence_id,
            token=row.token.decode("ascii", "backslashreplace"),
            outcome=outcome,
            posted_by=row.posted_by or None,
            order=f"{row.partner:x}.{row.order.hex()}" if row.order else None,
            wire=row.wire,
            fingerprint=row.signer.hex() or None,
        )

    @property
    def signer(self) -> int:
        """The identity that has signed it."""
        return self.server if self.direction == "sent" else self.peer


def judge(record: AuditRecord, pem: bytes | None) -> tuple[Verdict, str]:
    """Return what there is to say about a record and the key that it names, and why; nothing else is asked."""
    if record.wire is None or record.fingerprint is None:
        return Verdict.ABSENT, "it was no message" if record.direction == "ordered" else "its signed bytes are not kept"
    if pem is None:
        return Verdict.UNKNOWN, f"the key with the fingerprint {record.fingerprint[:16]} is not kept"
    try:
        key = PublicKey.from_pem(pem, minimum_rsa_bits=0, minimum_rsa_exponent=0)
        if key.fingerprint != record.fingerprint:
            return Verdict.INVALID, f"the key that is kept for it has another fingerprint, {key.fingerprint[:16]}"
        message = decode(record.wire).verify(key)
    except InvalidKeyError as error:
        return Verdict.INVALID, f"the key that is kept for it is none: {error}"
    except SrupError as error:
        return Verdict.INVALID, str(error)
    said = {
        "sender": (message.sender_id, record.signer),
        "message": (type(message).__name__, record.message),
        "sequence_id": (message.sequence_id, record.sequence_id),
        "token": (message.token.decode("ascii", "backslashreplace"), record.token),
    }
    for name, (signed, told) in said.items():
        if signed != told:
            return Verdict.INVALID, f"the {name} that was signed is another one"
    return Verdict.VALID, ""
