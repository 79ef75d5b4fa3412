"""The joins that wait for somebody's decision, as they stand in the store for whoever decides in another process.

They are facts about the server itself, and only as long as the joins wait: what the process before has left is taken
away at the start, for its values are lost with it. A fact holds the joins of a sixteenth of all devices, so that a
reader knows which to ask for, and one that comes or goes rewrites little.
"""

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ..errors import StoreError
from ..joinvalue import JoinValue
from ..records import Fact, State
from .duty import Duty
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["BOARD", "JoinBoard", "JoinRecord", "join_id", "load_joins"]

_FACT: Final = "joins "
_SHARES: Final = 16

BOARD: Final = tuple(f"{_FACT}{share:x}" for share in range(_SHARES))
"""The names of the facts."""


def join_id(value: JoinValue) -> str:
    """Return the name of a join, 32 hex digits: another value is another join, and the name tells nothing of it."""
    return sha256(b"srup join " + value.plaintext).hexdigest()[:32]


class JoinRecord(NamedTuple):
    """A join that waits. ``value`` is what the device shows, as it was sealed; empty if a device compares it.

    ``since`` and ``expires`` are Unix times; ``fingerprint`` is that of the key of the device.
    """

    device: int
    id: str
    kind: str
    since: float
    expires: float
    fingerprint: str
    value: str = ""
    observer: int | None = None

    @classmethod
    def load(cls, content: dict[str, object]) -> Self:
        """Return what was written of one; StoreError for anything else."""
        try:
            record = cls(**content)  # type: ignore[arg-type]
        except TypeError as error:
            raise StoreError(f"a join that waits is not readable: {error}") from None
        texts = (record.id, record.kind, record.fingerprint, record.value)
        times = (record.since, record.expires)
        if not (all(isinstance(each, str) for each in texts) and all(isinstance(each, int | float) for each in times)):
            raise StoreError("a join that waits is not readable: its details are of the wrong types")
        return record


def load_joins(fact: str) -> list[JoinRecord]:
    """Return the joins that a fact of :data:`BOARD` holds; StoreError for what is none."""
    try:
        content = json.loads(fact)
        return [JoinRecord.load(each) for each in content]
    except (ValueError, TypeError) as error:
        raise StoreError(f"the joins that wait are not readable: {error}") from None


class JoinBoard(Duty):
    """Keeps the facts while it is ``open``; otherwise it only takes away what a process before has left."""

    def __init__(self, engine: "Engine", *, opened: bool) -> None:
        self._engine = engine
        self._open = opened
        self._joins: dict[tuple[int, bytes], JoinRecord] = {}  # by device and token; they expire in local time
        self._changed: set[str] = set()  # names of facts

    def put(self, token: bytes, record: JoinRecord) -> None:
        """Let a join stand there, which ``expires`` in local time, from the end of this turn on."""
        if self._open:
            self._joins[record.device, token] = record
            self._changed.add(_name(record.device))

    def take(self, device: int, token: bytes) -> None:
        """Let a join stand there no more."""
        if self._joins.pop((device, token), None) is not None:
            self._changed.add(_name(device))

    def peer_replaced(self, transaction: Transaction, peer: int) -> None:
        """See :meth:`Duty.peer_replaced`."""
        for device, token in [key for key in self._joins if key[0] == peer]:
            self.take(device, token)

    def clock_set(self, transaction: Transaction) -> None:
        """See :meth:`Duty.clock_set`: until when they wait is another Unix time now."""
        self._changed.update(_name(device) for device, _ in self._joins)

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`."""
        self._changed.update(fact.name for fact in self._engine.facts.take_all(_FACT))

    def close(self, transaction: Transaction, now: float) -> None:
        """See :meth:`Duty.close`. A server that stops decides about nothing any more."""
        if self._joins and self._engine.stopping.is_set():
            self.clock_set(transaction)
            self._joins.clear()
        if not self._changed:
            return
        shares: dict[str, list[dict[str, object]]] = {name: [] for name in self._changed}
        for record in self._joins.values():
            if (share := shares.get(_name(record.device))) is not None:
                known = record._replace(expires=round(record.expires + self._engine.clock.lead, 3))
                share.append({name: value for name, value in known._asdict().items() if value not in (None, "")})
        for name, share in shares.items():
            fact = Fact(self._engine.identity, name, json.dumps(share) if share else None)
            transaction.changes.facts.append(fact)
        self._changed.clear()


def _name(device: int) -> str:
    return BOARD[device % _SHARES]
