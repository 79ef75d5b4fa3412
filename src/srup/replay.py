"""The replay window: which sequence ids of one sender have been seen (docs/protocol/flows.md#f-14; T1, T2)."""

from typing import Final

from .errors import ReplayError

__all__ = ["WINDOW_SIZE", "ReplayWindow"]

WINDOW_SIZE: Final = 1024
"""How far behind the highest accepted sequence id a message may arrive and still be accepted."""


_ALL: Final = (1 << WINDOW_SIZE) - 1


class ReplayWindow:
    """A sliding window over sequence ids, after RFC 6479: each id at most once, none that fell behind, never 0.

    ``highest`` is the largest id accepted so far, 0 in the beginning; bit k of ``seen`` says whether ``highest - k``
    was accepted. Nothing may be recorded before the signature of a message has been verified.
    """

    __slots__ = ("highest", "seen")

    def __init__(self, highest: int = 0, seen: int = 1) -> None:
        self.highest = highest
        self.seen = seen

    def check(self, sequence_id: int) -> None:
        """Raise ReplayError when this id would not be accepted; change nothing."""
        if sequence_id == 0:
            raise ReplayError(sequence_id, "is never accepted")
        behind = self.highest - sequence_id
        if behind >= WINDOW_SIZE:
            raise ReplayError(sequence_id, f"is too old: {behind} behind the newest")
        if behind >= 0 and self.seen >> behind & 1:
            raise ReplayError(sequence_id, "was accepted before")

    def accept(self, sequence_id: int) -> None:
        """Record an id, or raise ReplayError and change nothing."""
        self.check(sequence_id)
        self.record(sequence_id)

    def record(self, sequence_id: int) -> None:
        """Record an id that has just been checked."""
        ahead = sequence_id - self.highest
        if ahead <= 0:
            self.seen |= 1 << -ahead
        else:
            # A jump past the whole window must not shift by it: the id comes from 64 bits.
            self.seen = (self.seen << ahead & _ALL | 1) if ahead < WINDOW_SIZE else 1
            self.highest = sequence_id

    def __repr__(self) -> str:
        return f"<ReplayWindow up to {self.highest}>"
