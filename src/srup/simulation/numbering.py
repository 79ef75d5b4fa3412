"""Numbers that two parties give what they send each other: used once, and taken in their order.

That holds in a durable world, from when the two have become new to each other to the next time.
"""

from collections import Counter

from .ledger import Ledger, Order

__all__ = ["Numbering"]


class Numbering:
    """Enters into a ledger what breaks the numbering."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._epochs: Counter[frozenset[int]] = Counter()  # how often two have become new to each other
        self._used: dict[tuple[int, frozenset[int], int, int], bytes] = {}  # messages by sender, pair, epoch, number
        self._taken: dict[tuple[int, int], int] = {}  # the last value that was taken, by issuer and target

    def sent(self, sender: int, pair: frozenset[int], number: int, wire: bytes) -> None:
        """Check that a sequence id is used once; what is published again after a crash is the same message."""
        if self._used.setdefault((sender, pair, self._epochs[pair], number), wire) != wire:
            self._ledger.violate("reused", f"{sender:x} uses the sequence id {number} again")

    def taken(self, order: Order, again: bool) -> None:
        """Check that values with a receipt are taken in the order in which they were sent."""
        last = self._taken.get((order.issuer, order.target), 0)
        if order.number < last or (order.number == last and not again):
            self._ledger.violate("out of order", f"{order} is taken after the one with number {last}")
        self._taken[order.issuer, order.target] = order.number

    def become_new(self, one: int, other: int) -> None:
        """Note that two know nothing more of each other: a key was replaced, or dropped."""
        self._epochs[frozenset((one, other))] += 1
