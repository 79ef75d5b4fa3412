"""Identities as text: 64-bit numbers in hexadecimal, read in one way wherever a person, a file or a request names one.

What machines write to each other is stricter: topics and bound tokens spell an identity in lower-case digits without
leading zeros and take no other spelling (:data:`CANONICAL`).
"""

import re
from typing import Final

__all__ = ["CANONICAL", "parse_identity"]

CANONICAL: Final = "(?:0|[1-9a-f][0-9a-f]{0,15})"
"""A regular expression for the one spelling that topics, tokens and names of orders have: ``f"{identity:x}"``."""

_HEX: Final = re.compile("[0-9A-Fa-f]{1,16}")


def parse_identity(text: str) -> int:
    """Return the identity that ``text`` names: 1 to 16 hexadecimal digits, nothing else.

    Capitals and leading zeros make another spelling of the same identity. ValueError for everything else that int()
    would take: signs, underscores, spaces, a leading ``0x``, digits of other scripts.
    """
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        hint = " (leave out the 0x)" if isinstance(text, str) and text[:2].lower() == "0x" else ""
        raise ValueError(f"{text!r:.80} is not an identity: 1 to 16 hexadecimal digits{hint}")
    return int(text, 16)
