"""What is known about partners and about ourselves by name: a description, the firmware that runs."""

from collections.abc import Iterable

from ..records import Fact
from .transaction import Transaction

__all__ = ["CLIENT_ID", "INVENTORY", "LAST_UPDATE", "REPLACED", "TAG", "Facts"]

CLIENT_ID = "client id"
"""The fact about ourselves that names our session at the broker."""

INVENTORY = "inventory"
"""The fact about a device that holds what it reports of itself, as JSON."""

LAST_UPDATE = "update"
"""The fact about a device that says how its newest update goes, as JSON."""

REPLACED = "replaced"
"""The fact that a partner's key was replaced or dropped since what is kept about it was agreed with the former one."""

TAG = "tag "
"""Begins the names of facts about a device that an operator gives."""


class Facts:
    """Facts by identity and name; each change becomes durable with the transaction that it is made in."""

    def __init__(self) -> None:
        self._known: dict[int, dict[str, str]] = {}

    def restore(self, facts: Iterable[Fact]) -> None:
        """Take over what a store has kept."""
        for fact in facts:
            if fact.value is not None:
                self._known.setdefault(fact.identity, {})[fact.name] = fact.value

    def about(self, identity: int) -> dict[str, str]:
        """Return a copy of what is known about an identity."""
        return dict(self._known.get(identity, {}))

    def all(self) -> dict[int, dict[str, str]]:
        """Return a copy of all that is known."""
        return {identity: dict(facts) for identity, facts in self._known.items()}

    def named(self, name: str) -> dict[int, str]:
        """Return the values of one fact by identity."""
        return {identity: facts[name] for identity, facts in self._known.items() if name in facts}

    def set(self, transaction: Transaction, identity: int, name: str, value: str) -> None:
        """Note a fact, if it is news."""
        known = self._known.setdefault(identity, {})
        if known.get(name) != value:
            known[name] = value
            transaction.changes.facts.append(Fact(identity, name, value))

    def drop(self, transaction: Transaction, identity: int, name: str) -> None:
        """Forget a fact, if it is known, here and in the store."""
        if self._known.get(identity, {}).pop(name, None) is not None:
            transaction.changes.facts.append(Fact(identity, name, None))

    def take_all(self, prefix: str) -> list[Fact]:
        """Take out and return the facts whose names begin so; the store keeps them."""
        found = [
            Fact(identity, name, value)
            for identity, facts in self._known.items()
            for name, value in facts.items()
            if name.startswith(prefix)
        ]
        for fact in found:
            del self._known[fact.identity][fact.name]
        return found
