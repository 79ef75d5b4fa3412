"""The errors that both backends raise.

They live below everything else so that the native and the pure twin raise the very same classes. Users import them
from :mod:`srup`; the whole tree is drawn in :mod:`srup.errors`.
"""

__all__ = ["DecodeError", "EncodeError", "SignatureError", "SrupError"]


class SrupError(Exception):
    """The base of every error of srup. Who catches it, and refuses what has failed, is on the safe side."""


class DecodeError(SrupError):
    """The bytes are not an SRUP version 5 message (docs/protocol/wire-format.md#strict-reading).

    ``field`` names the part that is wrong, ``offset`` is its position in the input in bytes.
    """

    def __init__(self, field: str, offset: int, reason: str) -> None:
        super().__init__(field, offset, reason)
        self.field = field
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field} at offset {self.offset}: {self.reason}"


class EncodeError(SrupError):
    """A value cannot stand in its message field; ``field`` names it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class SignatureError(SrupError):
    """The signature is not one of this key over these bytes."""
