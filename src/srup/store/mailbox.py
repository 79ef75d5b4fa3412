"""Orders for the devices of a server that other processes post, and what became of them.

Whoever can reach the store may post: the order is there for good when ``post`` returns, as far as a commit would be.
Nobody but who serves the device takes it out, and does so in the commit that makes what it led to durable: so it is
carried out once, whenever who crashes. In the same commits it reports what becomes of the order.

What is urgent stands there twice, under one place: among all orders, and among the urgent ones, which are read first.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from .bounds import check_int

__all__ = [
    "BEGINNING",
    "CAPACITY",
    "MAX_KEPT",
    "MAX_ORDER_SIZE",
    "ORDER_ID",
    "PAGE",
    "Entry",
    "Mailbox",
    "Position",
    "Post",
    "check_post",
    "rank_of",
]

CAPACITY: Final = 10_000
"""How many orders wait in a mailbox at most."""

MAX_ORDER_SIZE: Final = 1 << 17
"""The most bytes that an order may have: a value of the longest message in base64, and what goes with it."""

MAX_KEPT: Final = 2e10
"""The longest time in seconds that a report may be kept: Redis counts milliseconds, and in 64 bits."""

PAGE: Final = 256
"""How many orders, or reports, are read at a time at most."""

ORDER_ID: Final = 16
"""How many bytes the id of an order has."""

_MOST: Final = 1_000_000_000  # orders that a mailbox may be told to hold


class Entry(NamedTuple):
    """What stands in a mailbox: its place, when it was posted by the clock there (Unix time), the order and its id.

    An ``id`` that is empty is none: somebody else than :meth:`Mailbox.post` has written this. What is ``urgent`` stands
    there twice, under one place.
    """

    place: bytes
    posted: float
    id: bytes
    order: bytes
    urgent: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """What orders the entries of a mailbox by when they were posted."""
        return rank_of(self.place)


def rank_of(place: bytes) -> tuple[int, int]:
    """Return what orders places by when what stands there was posted."""
    first, _, second = place.partition(b"-")
    return int(first), int(second or 0)


BEGINNING: Final = b"0"
"""The place before all others."""


class Post(NamedTuple):
    """An order to put into a mailbox, with the first report on it; see :meth:`Mailbox.post`."""

    device: int
    id: bytes
    order: bytes
    report: bytes
    urgent: bool = False


class Position(NamedTuple):
    """Up to which places a mailbox was read; None for ``orders`` leaves all out but the urgent ones."""

    orders: bytes | None = BEGINNING
    urgent: bytes = BEGINNING


class Mailbox(Protocol):
    """The mailboxes of all partitions of a server. Any thread may call any method; StoreError when the store fails."""

    partitions: int

    def post(
        self,
        device: int,
        order_id: bytes,
        order: bytes,
        report: bytes,
        capacity: int = CAPACITY,
        *,
        urgent: bool = False,
    ) -> None:
        """Put an order into the mailbox of a device's partition, with the first report on it; at most once per id.

        StoreError when ``capacity`` orders wait there already; an ``urgent`` one waits only for others of that kind.
        ValueError for an id or an order that is none.
        """

    def waiting(self) -> dict[int, int]:
        """Return how many orders wait in each partition that has any."""

    def read(self, after: Mapping[int, Position], patience: float = 1.0) -> list[tuple[int, Entry]]:
        """Return what stands in these partitions' mailboxes behind a position, and leave it there.

        Waits up to ``patience`` seconds, and no longer than the store lets us, until there is anything.
        """

    def reports(self, device: int, order_id: bytes, after: bytes, patience: float) -> list[tuple[bytes, bytes]]:
        """Return the reports on an order behind a place, each with its place.

        Waits up to ``patience`` seconds, or less, until there is one. An order that nobody knows (any more) has none.
        """

    def close(self) -> None:
        """Let go of the connections, and of who waits."""


def check_post(order_id: bytes, order: bytes, capacity: int) -> None:
    """Raise ValueError for an order, an id or a capacity that is none."""
    check_int(capacity, "capacity", 1, _MOST)
    check_int(len(order_id), "the length of an order's id", ORDER_ID, ORDER_ID)
    check_int(len(order), "the length of an order", 1, MAX_ORDER_SIZE)
