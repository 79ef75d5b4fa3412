"""What a store keeps of campaigns; the records are opaque to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .mailbox import CAPACITY, Post

__all__ = ["CampaignStore", "KeptCampaign"]


@dataclass(frozen=True)
class KeptCampaign:
    """A campaign by its name: its document and record, and the records of devices if they were asked for."""

    name: str
    document: bytes
    record: bytes
    devices: Mapping[int, bytes]


class CampaignStore(Protocol):
    """The campaigns of a server. Any thread may call any method; StoreError when the store fails.

    A revision is that of all campaigns: whoever saves says by which one that was decided, so that of two who decide at
    the same time only one has an effect.
    """

    def revision(self) -> int:
        """Return the revision; each save makes it one more."""

    def campaigns(self) -> tuple[int, Sequence[KeptCampaign]]:
        """Return the revision and all campaigns by name, without their devices."""

    def load(self, names: Iterable[str]) -> tuple[int, Sequence[KeptCampaign]]:
        """Return the revision and these campaigns with their devices, of one moment; unknown ones are left out."""

    def save(
        self,
        revision: int,
        name: str,
        record: bytes,
        devices: Mapping[int, bytes],
        posts: Sequence[Post] = (),
        *,
        document: bytes | None = None,
        capacity: int = CAPACITY,
    ) -> bool:
        """Write this and post the orders, all of it or nothing; ``document`` makes a new campaign.

        False, and nothing has changed, if the revision is another one by now or the name of a new campaign is taken,
        or there is no such campaign.
        Orders for which a mailbox has no room wait in front of it, or are a StoreError, and then nothing has changed.
        """

    def flush(self, capacity: int = CAPACITY) -> int:
        """Put orders that wait in front of the mailboxes into these; return how many go on waiting."""

    def news(self, orders: Mapping[bytes, int], since: Any = None) -> tuple[Any, Mapping[bytes, bytes]]:
        """Return the last report on each of these ``orders``, which have their devices beside them, and a mark.

        With ``since``, a mark, orders may be left out of which nothing new has been reported.
        """

    def claim(self) -> bool:
        """Return whether this is who carries campaigns out now: for a while, so it must be asked again and again.

        It saves others the work and decides nothing: saves are told apart by revisions.
        """

    def release(self) -> None:
        """Let somebody else carry campaigns out at once."""

    def await_change(self, patience: float) -> bool:
        """Wait ``patience`` seconds at most; return whether anything in the store has changed since the last call."""

    def close(self) -> None:
        """Let go of the connections, and of who waits."""
