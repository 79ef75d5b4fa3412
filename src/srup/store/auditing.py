"""Reading the audit of a server while it goes on: which rows, in which order, and the keys that have signed them."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ..records import AuditRow
from .bounds import check_int, check_time

__all__ = ["AuditReader", "Span", "span_of"]

_LARGEST = (1 << 64) - 1


class Span(NamedTuple):
    """Rows from the time ``since`` on and before ``until``, both Unix time, of one partner or of all."""

    since: float = 0.0
    until: float = float("inf")
    partner: int | None = None
    newest_first: bool = False


def span_of(since: float, partner: int | None, until: float | None, newest_first: bool) -> Span:
    """Return a span; ValueError for what is no time or no identity."""
    since = max(check_time(since, "since"), 0.0)
    if until is not None:
        until = max(check_time(until, "until"), 0.0)
    if partner is not None:
        check_int(partner, "partner", 0, _LARGEST)
    return Span(since, float("inf") if until is None else until, partner, newest_first)


class AuditReader(Protocol):
    """Reads what is durable, changes nothing and keeps nobody waiting. Any thread may call any method.

    StoreError when the store fails.
    """

    def rows(self, span: Span) -> Iterator[AuditRow]:
        """Return the rows of a span, read in pages; what is written meanwhile may be among them."""

    def key(self, fingerprint: bytes, partner: int) -> bytes | None:
        """Return the key that has signed a row about this partner, by its fingerprint, as PEM; None if not kept."""

    def close(self) -> None:
        """Let go of the connections."""
