"""How devices stand in campaigns, as parts of a bar."""

from collections.abc import Mapping
from typing import Final

from ...campaign import At
from ..plots import Part
from ..words import shape

__all__ = ["ORDER", "parts"]

ORDER: Final = (
    *(At.HEALTHY, At.ACTIVATED, At.READY, At.ORDERED, At.WAITING),
    *(At.UNANSWERED, At.FAILED, At.CANCELLED, At.SKIPPED),
)
"""The states of devices as they stand in a bar, from the left."""


def parts(counts: Mapping[At, int]) -> list[Part]:
    """Return what a bar shows of so many devices in each state."""
    return [Part(shape(at), str(at), counts[at]) for at in ORDER if counts.get(at)]
