"""Firmware versions as people write them, and the number by which devices and servers compare them.

On the wire a version is a number below 10**18 that grows. A plain one such as 42 is that number. A dotted one such as
4.2.0 is 5 * 10**17 + 4 * 10**12 + 2 * 10**6 + 0, 500004000002000000: so every dotted version is newer than every plain
one, they compare as versions do, and each number is shown again as it was written.
"""

import re
from typing import Final

__all__ = ["MAX_VERSION", "parse_version", "shown_version", "version_field"]

MAX_VERSION: Final = 10**18 - 1
"""The highest firmware version that a token can name."""

_DOTTED: Final = 5 * 10**17  # from here on
_SCALES: Final = (10**12, 10**6, 1)
_MOST: Final = (499_999, 999_999, 999_999)  # of each part
_PLAIN: Final = re.compile(r"[0-9]{1,18}")
_PARTS: Final = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6}))?")


def parse_version(text: str) -> int:
    """Return the number of a version: "42" is 42, "4.2" and "4.2.0" are one dotted version.

    ValueError for anything else: more parts, letters, or a part above 999,999 (the first: 499,999).
    """
    if _PLAIN.fullmatch(text) and int(text) < _DOTTED:
        return int(text)
    match = _PARTS.fullmatch(text)
    parts = [int(part or 0) for part in match.groups()] if match else []
    if not parts or any(part > most for part, most in zip(parts, _MOST, strict=True)):
        raise ValueError(f"{text!r:.60} is no version: a number such as 42, or two or three with dots, such as 4.2.0")
    return _DOTTED + sum(part * scale for part, scale in zip(parts, _SCALES, strict=True))


def shown_version(number: int) -> str:
    """Return a version as a person writes it; see :func:`parse_version`."""
    if number < _DOTTED:
        return str(number)
    left, parts = number - _DOTTED, []
    for scale in _SCALES:
        part, left = divmod(left, scale)
        parts.append(str(part))
    return ".".join(parts)


def version_field(number: int | None) -> int | str | None:
    """Return a version for JSON: a plain one as a number, a dotted one as text, None for none."""
    return number if number is None or number < _DOTTED else shown_version(number)
