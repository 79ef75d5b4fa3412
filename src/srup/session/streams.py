"""Values that must neither get lost nor change places: streams, places in them, and who is owed a receipt."""

import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from ..errors import PolicyError
from ..wire import DATA_RECEIPT
from .persistence import record

__all__ = [
    "POSITION",
    "RECEIPT_PAUSE",
    "REFUSED_IN",
    "STREAM_IN",
    "STREAM_OUT",
    "RefusedNumbers",
    "StreamPosition",
    "Streams",
    "read_receipt",
]

RECEIPT_PAUSE: Final = 1.0
"""In seconds: a partner gets no more than one receipt in that time; it covers all that has come meanwhile."""

STREAM_OUT: Final = "stream out"
"""The fact about a partner that says which position the last value has that we have sent it with a receipt."""

STREAM_IN: Final = "stream in"
"""The fact about a partner that says which position the last value has that we have taken from it for good."""

REFUSED_IN: Final = "stream refused"
"""The fact about a partner that says which of the values up to that position we have refused."""

REFUSED_WINDOW: Final = 1024
"""Of so many numbers, up to the last position, it is known which were refused; a sender waits for far fewer (T9)."""

POSITION: Final = struct.Struct("<QQ")


@record("Place")
class StreamPosition(NamedTuple):
    """Where a value stands among those that a partner must take in order: the number counts from 1 in each stream.

    A stream begins when its sender knows of none; a later one has a greater name.
    """

    stream: int = 0
    number: int = 0

    def reached(self, stream: int) -> int | None:
        """Return how far a stream has come if this is its last position: 0 for a later one, None for an earlier."""
        return self.number if stream == self.stream else 0 if stream > self.stream else None

    def follows(self, last: "StreamPosition", after: int) -> bool:
        """Return whether a value here may follow the one at ``last``: each number of a stream is taken once."""
        reached = last.reached(self.stream)
        return reached is not None and after <= reached < self.number


class RefusedNumbers(NamedTuple):
    """Which numbers of a stream were refused: bit i of ``bits`` stands for ``highest - i``."""

    stream: int = 0
    highest: int = 0
    bits: int = 0

    def up_to(self, highest: int) -> "RefusedNumbers":
        """Return what this says of the numbers up to ``highest``, which is not below the one that it has."""
        further = highest - self.highest
        bits = self.bits << further & _WINDOW if further < REFUSED_WINDOW else 0
        return RefusedNumbers(self.stream, highest, bits)

    def has(self, position: StreamPosition) -> bool:
        """Return whether the value at this position was refused."""
        age = self.highest - position.number
        return position.stream == self.stream and 0 <= age < REFUSED_WINDOW and bool(self.bits >> age & 1)


_WINDOW: Final = (1 << REFUSED_WINDOW) - 1


class Streams:
    """How far the streams from and to each partner have come, and who is owed a receipt.

    ``set_fact`` is called with partner, name and value of each fact that a store is to keep.
    """

    def __init__(self, set_fact: Callable[[int, str, str | None], object]) -> None:
        self.received: dict[int, StreamPosition] = {}  # the last that was taken, by partner
        self.sent: dict[int, StreamPosition] = {}  # the last that was given out, by partner
        self.refused: dict[int, RefusedNumbers] = {}  # of the stream from each partner, if any were
        self.owed: dict[int, None] = {}  # who is owed a receipt
        self.receipt_due: dict[int, float] = {}  # when a partner that had one may have the next
        self._set_fact = set_fact

    def next_sent(self, partner: int, now: float) -> StreamPosition:
        """Return the position of the next value for a partner; ``now`` is Unix time, which names a first stream."""
        last = self.sent.get(partner) or StreamPosition(max(1, int(now * 1e6)))
        return StreamPosition(last.stream, last.number + 1)

    def is_next(self, partner: int, position: StreamPosition, after: int) -> bool:
        """Return whether a value of a partner may be taken now."""
        return position.follows(self.received.get(partner, StreamPosition()), after)

    def set_sent(self, partner: int, position: StreamPosition) -> None:
        """Note the last position that was given out."""
        self.sent[partner] = position
        self._set_fact(partner, STREAM_OUT, f"{position.stream} {position.number}")

    def set_received(self, partner: int, position: StreamPosition) -> None:
        """Note the last position that was taken."""
        self.received[partner] = position
        self._set_fact(partner, STREAM_IN, f"{position.stream} {position.number}")

    def refuse(self, partner: int, position: StreamPosition) -> None:
        """Note that the value at a position was taken, and is of no use here: the receipt that covers it says so."""
        known = self.refused.get(partner, RefusedNumbers())
        if position.stream < known.stream:
            return  # that stream is over
        if position.stream > known.stream:
            known = RefusedNumbers(position.stream, position.number)
        known = known.up_to(max(known.highest, position.number))
        age = known.highest - position.number
        self._set_refused(partner, known._replace(bits=known.bits | 1 << age & _WINDOW))

    def _set_refused(self, partner: int, refused: RefusedNumbers) -> None:
        self.refused[partner] = refused
        self._set_fact(partner, REFUSED_IN, f"{refused.stream} {refused.highest} {refused.bits:x}")

    def leave(self, partner: int, now: float) -> None:
        """Let what is new be in a later stream: positions after the last that we know of may have been given out.

        A partner that has taken those would confirm what we send now without taking it.
        """
        last = self.sent.get(partner)
        if last is not None:
            self.set_sent(partner, StreamPosition(max(last.stream + 1, int(now * 1e6)), 0))

    def forget(self, partner: int) -> None:
        """Forget a partner."""
        self.owed.pop(partner, None)
        if self.refused.pop(partner, None) is not None:
            self._set_fact(partner, REFUSED_IN, None)
        for name, positions in ((STREAM_IN, self.received), (STREAM_OUT, self.sent)):
            if positions.pop(partner, None) is not None:
                self._set_fact(partner, name, None)

    def restore(self, partner: int, name: str, value: str) -> None:
        """Take over a fact."""
        if name == REFUSED_IN:
            stream, highest, bits = value.split()
            self.refused[partner] = RefusedNumbers(int(stream), int(highest), int(bits, 16))
            return
        positions = {STREAM_IN: self.received, STREAM_OUT: self.sent}[name]
        positions[partner] = StreamPosition(*map(int, value.split()))

    def due(self, now: float) -> list[int]:
        """Return the partners that are to get a receipt now."""
        return [partner for partner in self.owed if self.receipt_due.get(partner, 0.0) <= now]

    def give_receipt(self, partner: int, now: float) -> bytes:
        """Note that a partner gets a receipt; return what it says (:func:`read_receipt`)."""
        self.owed.pop(partner, None)
        dues = self.receipt_due
        dues.pop(partner, None)
        while dues and dues[first := next(iter(dues))] <= now:
            del dues[first]
        dues[partner] = now + RECEIPT_PAUSE  # the latest comes last
        last = self.received.get(partner, StreamPosition())
        if (refused := self.refused.get(partner)) is not None:
            bits = refused.up_to(last.number).bits if refused.stream == last.stream else 0
            if bits:
                return POSITION.pack(*last) + bits.to_bytes((bits.bit_length() + 7) // 8, "little")
            del self.refused[partner]
            self._set_fact(partner, REFUSED_IN, None)
        return POSITION.pack(*last)

    def deadlines(self) -> Iterable[float]:
        """Return when receipts may be given next."""
        return [self.receipt_due.get(partner, 0.0) for partner in self.owed]


def read_receipt(data: bytes) -> tuple[StreamPosition, RefusedNumbers]:
    """Return the position that a receipt names, and what it says was refused; PolicyError for what is no receipt."""
    if not 0 <= len(data) - POSITION.size <= REFUSED_WINDOW // 8:
        most = POSITION.size + REFUSED_WINDOW // 8
        raise PolicyError(f"a {DATA_RECEIPT} has {POSITION.size} to {most} bytes, not {len(data)}")
    position = StreamPosition(*POSITION.unpack_from(data))
    return position, RefusedNumbers(*position, int.from_bytes(data[POSITION.size :], "little"))
