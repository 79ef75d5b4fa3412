"""What a store knows about devices, for whoever wants to look while the server goes on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ..records import KeyRecord, PartnerRecord

__all__ = ["Directory", "KnownDevice"]


class KnownDevice(NamedTuple):
    """The records about one identity: its keys, its window and membership, and facts by name."""

    identity: int
    key: KeyRecord | None
    partner: PartnerRecord | None
    facts: Mapping[str, str]


class Directory(Protocol):
    """Reads what is durable, changes nothing and keeps nobody waiting. Any thread may call any method.

    StoreError when the store fails.
    """

    def page(self, first: int, limit: int) -> Sequence[KnownDevice]:
        """Return up to ``limit`` devices with the identity ``first`` or a higher one, by identity."""

    def one(self, identity: int, names: Sequence[str] | None = None) -> KnownDevice | None:
        """Return a device, None if nothing is known about it; with ``names``, with these facts at least."""
        found = self.page(identity, 1)
        return found[0] if found and found[0].identity == identity else None

    def facts(self, identity: int, names: Sequence[str]) -> Sequence[str]:
        """Return what facts with these names about an identity say; each partition may have its own."""

    def close(self) -> None:
        """Let go of the connections."""
