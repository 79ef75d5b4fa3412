"""The log of a command, on standard error: one entry a line, as text or as JSON, with nothing that steers a terminal.

The library speaks to ``logging`` and gives what a line is about beside it (docs/observability.md); structlog makes JSON
of that. What came from the network is escaped here whatever the line's author did (T17).
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal

from srup.logs import LONGEST, TextFormatter, traceback_lines
from srup.printable import printable

__all__ = ["say", "show"]

_LINES: Final = ("exception",)  # fields of several lines: JSON escapes their ends, and who reads them wants them


def show(level: int, form: Literal["text", "json"] = "text") -> None:
    """Log what is as urgent as ``level``, in this form from now on; ModuleNotFoundError without structlog, for JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter("%(levelname)s %(name)s %(message)s") if form == "text" else _json())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def say(line: str, style: str = "") -> None:
    """Log what a command has to tell and would show on a terminal."""
    logging.getLogger("srup.cli").log(logging.WARNING if style == "yellow" else logging.INFO, "%s", line)


def _json() -> logging.Formatter:
    """Return what makes one JSON object of a record: time, level, logger, event, and what the line is about."""
    import structlog

    before: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    after: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,  # not dict_tracebacks: it shows variables, keys among them
        _escape,
        structlog.processors.JSONRenderer(),
    ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=after)


def _escape(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape once more than JSON does: who decodes a field may print it."""
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = "\n".join(traceback_lines(value)) if name in _LINES else printable(value, LONGEST, words=True)
    return entry
