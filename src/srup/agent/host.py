"""What an engine asks of whoever drives it."""

import logging
from typing import TYPE_CHECKING

from ..errors import LeaseLostError

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Host"]


class Host:
    """A process that has one engine only; a worker, which has many, overrides this."""

    partition: int | None = None
    """Which partition of the identity this is, if it has any."""

    def may_call(self) -> bool:
        """Return whether handlers may be called now."""
        return True

    def audit_share(self) -> float:
        """Return which part of the time of the thread that takes the turns may go into pruning."""
        return 0.1

    def lease_lost(self, engine: "Engine", error: LeaseLostError) -> None:
        """Somebody else serves these partners now, with all that was not made durable here."""
        engine.journal.log(logging.ERROR, "%s stops: %a", str(error), error=error)
        engine.abandon()
