"""What an end insists on, and the checks of numbers that its callers give."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ..errors import EncodeError
from ..wire import Status

__all__ = ["MAX_SEQUENCE_ID", "NO_EXPIRY", "Policy", "check_number", "check_seconds", "check_status"]

MAX_SEQUENCE_ID: Final = (1 << 64) - 1

NO_EXPIRY: Final = 10**18 - 1
"""The latest expiry that a token can name: what an end without a clock writes into its own."""


def check_seconds(value: object, what: str, *, zero: bool = False) -> None:
    """Raise ValueError, which says ``what`` is wrong, unless it is a time: above 0, or 0 where that means something."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= NO_EXPIRY and (value or zero):
        return
    least = "0 or more" if zero else "more than 0"
    raise ValueError(f"{what} must be a number of seconds, {least} and below 10**18, not {value!r}")


def check_number(value: object, what: str, least: int, most: int) -> None:
    """Raise ValueError, which says ``what`` is wrong, unless this is an int in these bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} must be an int from {least} to {most}, not {value!r}")


def check_status(status: Status, possible: Collection[Status]) -> None:
    """Raise EncodeError for a status that does not answer this; nothing has changed then."""
    if not isinstance(status, Status) or status not in possible:
        raise EncodeError("status", f"expected {' or '.join(result.name for result in possible)}, not {status!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an end insists on. Times are in seconds; ValueError names the one that makes no sense.

    ``require_bound_tokens`` refuses deployed peers, which do not bind tokens (T3); a partner that has bound one must go
    on doing so in any case. A device without a clock says ``has_clock=False``: then expiry is not checked (T4).
    ``lifetime`` is how long a request is good for, ``update_lifetime`` the same for an update, ``join_lifetime`` for a
    join that waits for a person or an observer. Unanswered requests are
    sent again after ``first_retry``, then after twice that time and so on up to ``max_retry``; partners that do not
    bind tokens may take a retransmission for a new command, so they get none. When a partner changes its key by a
    signed rotation, the old one goes on counting for ``key_overlap``: longer than an offer is good for, which is
    ``lifetime``, or else the answer that gets lost could not be had again; or 0, not at all.
    """

    require_bound_tokens: bool = False
    has_clock: bool = True
    clock_skew: float = 30.0
    lifetime: float = 300.0
    update_lifetime: float = 86400.0
    join_lifetime: float = 900.0
    first_retry: float = 5.0
    max_retry: float = 900.0
    key_overlap: float = 86400.0

    def __post_init__(self) -> None:
        for name in ("require_bound_tokens", "has_clock"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("lifetime", "update_lifetime", "join_lifetime", "first_retry", "max_retry"):
            check_seconds(getattr(self, name), name)
        for name in ("clock_skew", "key_overlap"):
            check_seconds(getattr(self, name), name, zero=True)
        if self.max_retry < self.first_retry:
            raise ValueError(f"max_retry, {self.max_retry}, must not be below first_retry, {self.first_retry}")
        if 0 < self.key_overlap <= self.lifetime:
            raise ValueError(f"key_overlap, {self.key_overlap}, must be longer than lifetime, {self.lifetime}, or 0")
