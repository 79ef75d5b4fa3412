"""What must survive a restart, as plain records: sessions write them, stores keep them.

A record is named by its first fields and replaces an older one of that name. The bodies of exchanges and keys are
opaque to a store; numbers are unsigned 64-bit where nothing else is said, times are Unix seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Final, NamedTuple

__all__ = [
    "SIGNER_PRECISION",
    "AuditRow",
    "Changes",
    "ExchangeRecord",
    "Fact",
    "InboxEntry",
    "KeyRecord",
    "OutboxEntry",
    "PartnerRecord",
    "ReportRecord",
    "SignerRecord",
    "State",
]

SIGNER_PRECISION: Final = 6 * 3600.0
"""The record of a signer is written anew when it is used so many seconds after it was written last."""


class PartnerRecord(NamedTuple):
    """Who a partner is to us, which of its sequence ids were seen, and which of ours may have been used."""

    identity: int
    member: bool
    binds: bool  # has sent a bound token: from then on it must (T3)
    reserved: int  # no sequence id of ours up to this one is used again
    highest: int  # the replay window: see srup.replay
    seen: int  # up to 1,024 bits


class ExchangeRecord(NamedTuple):
    """An exchange: a question and its answers, held together by a token."""

    partner: int
    token: bytes
    expiry: float
    body: str  # what the session needs to go on, as JSON


class InboxEntry(NamedTuple):
    """Something accepted that the application has not finished yet. ``number`` is its stable id."""

    number: int
    partner: int
    token: bytes
    kind: str  # what it is: "data", "joined", "left", ...
    body: bytes


class OutboxEntry(NamedTuple):
    """Something to be sent that no exchange sends again by itself."""

    number: int
    partner: int
    topic: str  # where ``body`` is to be published as it is; empty for a value that still needs a sequence id
    body: bytes
    expiry: float


class KeyRecord(NamedTuple):
    """The keys of an identity as PEM: the one that counts, the one that is retiring until ``until``, the first one.

    ``key`` is None for an identity that was removed or revoked; it overrules what a folder of keys says.
    """

    identity: int
    key: bytes | None
    retiring: bytes | None = None
    until: float = 0.0
    pin: bytes | None = None


class Fact(NamedTuple):
    """What is known about a device (or, under our own identity, about ourselves), by name; None takes it away."""

    identity: int
    name: str
    value: str | None


class AuditRow(NamedTuple):
    """A message that verified, or that we have signed, and what came of it. Rows are only added, and pruned by age.

    With the type 0 it is no message but an order from outside that has ended, and ``outcome`` is its verb and its end.
    """

    at: float  # not negative, and below 2**53
    partner: int
    sequence_id: int
    type: int  # one byte (docs/protocol/wire-format.md#types)
    token: bytes
    outcome: str  # "accepted", the name of a status, or why it had no effect
    sent: bool = False  # by us, to the partner
    wire: bytes | None = None  # the signed bytes, if they are kept
    signer: bytes = b""  # the fingerprint of the key that signed it, 32 bytes
    order: bytes = b""  # the order of a mailbox that it belongs to, 16 bytes
    posted_by: str = ""  # who has posted that order


class SignerRecord(NamedTuple):
    """A public key that has signed something of the audit; it is kept as long as rows may need it."""

    fingerprint: bytes  # 32 bytes
    key: bytes  # as PEM
    used: float  # no row that it has signed is more than SIGNER_PRECISION later


class ReportRecord(NamedTuple):
    """What an order of a mailbox has come to; for stores that have one (srup.store.mailbox). ``body`` is opaque.

    Its first report takes an order out of the mailbox. An empty ``order`` only does that: nobody can ask for it.
    """

    order: bytes  # its id, 16 bytes
    entry: bytes  # its place in the mailbox; empty when it is out of it already
    body: bytes
    kept: float  # so many seconds from now somebody may ask
    urgent: bool = False  # whether the mailbox has it twice, because it overtakes others


@dataclass(slots=True)
class Changes:
    """What one step changes; a store takes all of it or nothing."""

    partners: list[PartnerRecord] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)  # partners, with all their exchanges, inbox and outbox entries
    exchanges: list[ExchangeRecord] = field(default_factory=list)
    ended: list[tuple[int, bytes]] = field(default_factory=list)  # exchanges by partner and token
    inbox: list[InboxEntry] = field(default_factory=list)
    finished: list[tuple[int, int]] = field(default_factory=list)  # inbox entries by partner and number
    outbox: list[OutboxEntry] = field(default_factory=list)
    settled: list[tuple[int, int]] = field(default_factory=list)  # outbox entries by partner and number
    keys: list[KeyRecord] = field(default_factory=list)
    barred: list[str] = field(default_factory=list)  # fingerprints of keys that must never count again
    facts: list[Fact] = field(default_factory=list)
    audit: list[AuditRow] = field(default_factory=list)
    reports: list[ReportRecord] = field(default_factory=list)  # what became of orders, of one order in this order
    signers: list[SignerRecord] = field(default_factory=list)  # of rows of the audit

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))


class State(NamedTuple):
    """All that a store holds for one end, but for the audit rows. Entries are in the order of their numbers.

    A part may be one that is read as it is gone through, once and before the next commit.

    ``adopted``: the records may be older than what was done since (an old backup was taken over). Whoever opened the
    store must protect itself - lift every window and every reserved sequence id - in its next commit, and before
    anything else; ``adopted`` comes back at every opening until there has been a commit.
    """

    partners: Iterable[PartnerRecord] = ()
    exchanges: Iterable[ExchangeRecord] = ()
    inbox: Iterable[InboxEntry] = ()
    outbox: Iterable[OutboxEntry] = ()
    keys: Iterable[KeyRecord] = ()
    barred: Iterable[str] = ()
    facts: Iterable[Fact] = ()
    adopted: bool = False  # it may be older than what was done last: nothing signed before now may count
