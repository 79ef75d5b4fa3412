"""What an agent says about itself: log lines, counts, and exceptions that nobody else has caught."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..logs import Limiter

__all__ = ["Journal"]

log: Final = logging.getLogger("srup.agent")

Result = TypeVar("Result")


class Journal:
    """The log lines of one agent, which ``name`` is what they call it, and its ``counts``."""

    def __init__(self, name: str, identity: int) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self._identity = identity
        self._lines = Limiter()

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def shows(level: int) -> bool:
        """Return whether a line of this level would be seen."""
        return log.isEnabledFor(level)

    def log(
        self,
        level: int,
        text: str,
        *arguments: object,
        partner: int | None = None,
        error: Exception | None = None,
        exc_info: bool = False,
        **fields: Any,
    ) -> None:
        """Log a line about this agent, which ``text`` names first (%s), and ``fields`` for formatters that show them.

        The fields are as they came, from the network perhaps: whoever shows them escapes them (T17). Of lines about one
        ``partner`` that are alike some are left out if there are many: it fills no disk with them (T24).
        """
        if log.isEnabledFor(level):
            about = {"agent": f"{self._identity:x}"}
            if partner is not None:
                line = self._lines.admit(f"{partner:x} {text}", time.monotonic())
                if not line.shown:
                    return
                about["partner"], text = f"{partner:x}", text + line.note()
            if error is not None:
                about |= {"error": type(error).__name__, "reason": str(error)}
            log.log(level, text, self.name, *arguments, exc_info=exc_info, stacklevel=2, extra=about | fields)

    def log_exceptions(self, job: Callable[..., Result], *arguments: Any) -> Result | None:
        """Do a job; return None if it raises, which is counted and logged."""
        try:
            return job(*arguments)
        except (Exception, SystemExit):  # noqa: BLE001 - a handler must not end the thread either
            self.counts["faults"] += 1
            self.log(logging.ERROR, "%s: a fault", exc_info=True)
            return None
