"""The ledger: what was truly ordered, what took effect, and whether the two agree.

Every effect at an end is looked up under the order that a legitimate party gave. An effect that nobody ordered, at
somebody it was not meant for, once more than it was ordered, or after its time, is a violation; so is an order that
never ends, or ends with an answer that is not true.
"""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Effect", "Ledger", "Order", "Violation"]


class Violation(NamedTuple):
    """What must not happen, and did: ``name`` is one of those in docs/simulation.md; ``at`` is Unix time."""

    at: float
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


class Effect(NamedTuple):
    """Something that was done: in which life of the party that did it, and whether with success."""

    at: float
    life: int
    good: bool


@dataclass(eq=False, slots=True)
class Order:
    """What ``issuer`` asked of ``target``; ``what`` is its content, which no other order of this kind has.

    ``until`` is the last moment, on the clock of whoever carries it out, at which it may take effect. ``signer`` is the
    fingerprint of the key that it was signed with.
    """

    number: int
    kind: str
    issuer: int
    target: int
    what: Hashable
    until: float
    life: int  # of the issuer
    signer: str
    answer: "Future[Any] | None" = None
    effects: list[Effect] = field(default_factory=list)
    accepted: bool = False  # it is in a store: it must come to an end whatever happens
    told: bool = False  # its end was told after a restart
    excused: bool = False  # its end need not be told: one of the two has become another one

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of {self.issuer:x} for {self.target:x}"

    @property
    def done(self) -> bool:
        """Whether it was carried out with success."""
        return any(effect.good for effect in self.effects)

    @property
    def ended(self) -> bool:
        """Whether whoever gave it has been told its end."""
        return self.told or (self.answer is not None and self.answer.done())

    def lives(self) -> set[int]:
        """Return in which lives of its target it was carried out, or tried."""
        return {effect.life for effect in self.effects}


class Ledger:
    """All orders of a run and the ``violations`` found so far; ``counts`` tells how many orders and effects.

    ``clock`` returns what time it is in the world.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.orders: list[Order] = []
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self._by_content: dict[tuple[str, Hashable], list[Order]] = {}

    def order(self, kind: str, issuer: int, target: int, what: Hashable, until: float, life: int, signer: str) -> Order:
        """Enter an order before it is given."""
        order = Order(len(self.orders) + 1, kind, issuer, target, what, until, life, signer)
        self.orders.append(order)
        self._by_content.setdefault((kind, what), []).append(order)
        self.counts[f"ordered {kind}"] += 1
        return order

    def find(self, kind: str, issuer: int, target: int, what: Hashable) -> Order | None:
        """Return the latest order with this content from and for these two; None if there is none."""
        found = self._by_content.get((kind, what), [])
        return next((one for one in reversed(found) if (one.issuer, one.target) == (issuer, target)), None)

    def effect(
        self,
        kind: str,
        issuer: int,
        target: int,
        what: Hashable,
        *,
        local: float,
        life: int,
        durable: bool,
        valid: frozenset[str] | None = None,
        good: bool = True,
    ) -> Order | None:
        """Enter that ``target`` does what it takes for an order of ``issuer``; return that order if it is genuine.

        ``local`` is the time on the target's clock. Without ``durable`` state a later life of the target may do again
        what an earlier one has done, until the order expires. ``valid`` are the keys of the issuer that the target
        must still believe.
        """
        self.counts[f"effect {kind}"] += 1
        order = self.find(kind, issuer, target, what)
        shown = f"{target:x} takes {kind} {what!s:.40} for one of {issuer:x}"
        if order is None:
            others = self._by_content.get((kind, what), [])
            meant = ", ".join(f"{other.target:x}" for other in others if other.issuer == issuer)
            if meant:
                self.violate("redirected", f"{shown}; it was meant for {meant}")
            else:
                self.violate("forged", f"{shown}, who never ordered it")
            return None
        if local > order.until:
            self.violate("late", f"{shown}; it expired {local - order.until:.1f} seconds ago")
        if valid is not None and order.signer not in valid:
            self.violate("revoked", f"{shown}; the key {order.signer[:8]} that signed it does not count any more")
        if order.effects and (durable or life in order.lives()):
            self.violate("repeated", f"{shown}; it has done so before, at {order.effects[-1].at:.3f}")
        order.effects.append(Effect(self._clock(), life, good))
        return order

    def check_ended(self, lives: Mapping[int, int], told: Collection[str]) -> None:
        """Check that orders have come to an end, and that what was made durable was not lost in a crash.

        ``lives`` are the present lives of those who gave the orders, ``told`` the kinds whose end is told after a
        restart.
        """
        for order in self.orders:
            life, answer = lives[order.issuer], order.answer
            if answer is not None and not answer.done() and life == order.life:
                self.violate("lost", f"{order} never ends")
            if not order.accepted or order.excused:
                continue
            failed = answer is not None and answer.done() and answer.exception() is not None
            if order.kind == "data" and not order.effects and not order.told and not failed:
                self.violate("lost", f"{order} was never taken, and nobody was told")
            elif order.kind in told and not order.ended and life > order.life:
                self.violate("lost", f"{order} has come to no end that was told after a restart")

    def violate(self, name: str, what: str) -> None:
        """Enter a violation."""
        self.violations.append(Violation(self._clock(), name, what))
