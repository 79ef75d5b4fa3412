"""Text of strangers and of libraries, made safe for a log line, a message or a terminal (T17)."""

import re
import ssl
from typing import Final

from .certificates import explain

__all__ = ["printable", "why"]

_LONGEST_WHY: Final = 300  # characters of what is wrong with a certificate, and the remedy

_BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Signs that count as visible and are not."""


def printable(text: str, most: int | None = 160, *, words: bool = False) -> str:
    """Return at most ``most`` characters of ``text``, with everything escaped that is no visible sign or single space.

    Visible is ASCII, as in names, topics and URLs; with ``words``, for what people write, the signs of all scripts.
    What steers a terminal does not come through, nor what would let the end of one line pass for another line.
    """
    cut = text if most is None or len(text) <= most else f"{text[: most - 3]}..."
    visible = _is_visible if words else _is_ascii
    signs = (sign if visible(sign) else sign.encode("unicode_escape").decode() for sign in cut)
    return re.sub("(?<= ) ", r"\\x20", "".join(signs))


def _is_ascii(sign: str) -> bool:
    return " " <= sign <= "~"


def _is_visible(sign: str) -> bool:
    return sign.isprintable() and sign not in _BLANK


def why(error: BaseException) -> str:
    """What an error says, without the URLs and object addresses that libraries wrap around it."""
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return printable(explain(cause), _LONGEST_WHY)
    return printable(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
