"""What stands on the wire besides the messages: field kinds, limits and status codes (docs/protocol/wire-format.md).

A message class annotates its fields with the kinds below; :mod:`srup.messages` derives the byte layout from them.
"""

from enum import IntEnum
from typing import Annotated

import srup_native

__all__ = [
    "DATA_RECEIPT",
    "IDENTIFICATION_RESPONSE",
    "JOIN_OBSERVER",
    "JOIN_REASON",
    "KEY_ROTATION",
    "MAX_MESSAGE_SIZE",
    "U8",
    "U32",
    "U64",
    "UPDATE_ACTIVATE",
    "UPDATE_CANCEL",
    "UPDATE_REASON",
    "VERSION",
    "Binary",
    "Status",
    "Text",
    "TextZ",
]

VERSION = srup_native.VERSION
"""The only protocol version that is spoken: 5."""

MAX_MESSAGE_SIZE = srup_native.MAX_MESSAGE_SIZE
"""The longest message in bytes, signature included: 65,535."""

IDENTIFICATION_RESPONSE = "IDENTIFICATION_RESPONSE"
"""The ``data_id`` of the Data message that answers an IdRequest (docs/protocol/flows.md#f-57)."""

KEY_ROTATION = "KEY_ROTATION"
"""The ``data_id`` of the Data message by which an old key names its successor (see srup.rotation)."""

DATA_RECEIPT = "DATA_RECEIPT"
"""The ``data_id`` of the Data message that says which values are there for good (docs/extensions.md, "Receipts")."""

JOIN_OBSERVER = "JOIN_OBSERVER"
"""The ``data_id`` of the Data message with which a refused simple join is told of an observer (docs/extensions.md)."""

JOIN_REASON = "JOIN_REASON"
"""The ``data_id`` of the Data message with which a server says why it does not let a device in (docs/extensions.md)."""

UPDATE_REASON = "UPDATE_REASON"
"""The ``data_id`` of the Data message with which a device says why an update failed (docs/extensions.md)."""

UPDATE_CANCEL = "UPDATE_CANCEL"
"""The ``data_id`` of the Data message with which a server takes an update order back (docs/extensions.md)."""

UPDATE_ACTIVATE = "UPDATE_ACTIVATE"
"""The ``data_id`` of the Data message that tells a device to activate firmware until a time (docs/extensions.md)."""

U8 = Annotated[int, srup_native.U8]
"""An integer from 0 to 255 in one byte."""

U32 = Annotated[int, srup_native.U32]
"""An integer from 0 to 2**32 - 1 in four bytes, little-endian."""

U64 = Annotated[int, srup_native.U64]
"""An integer from 0 to 2**64 - 1 in eight bytes, little-endian."""

Binary = Annotated[bytes, srup_native.BINARY]
"""Bytes behind a two-byte big-endian length (LV)."""

Text = Annotated[str, srup_native.TEXT]
"""UTF-8 text behind a two-byte big-endian length (LV)."""

TextZ = Annotated[str, srup_native.TEXTZ]
"""Like Text with a trailing NUL on the wire that the value does not show (LVZ); no NUL inside."""


class Status(IntEnum):
    """The status codes of a Response (docs/protocol/wire-format.md#status-codes); as text, their names."""

    UPDATE_SUCCESS = 0x00
    UPDATE_FAIL_HTTP_ERROR = 0xFC
    UPDATE_FAIL_SERVER = 0xFD
    UPDATE_FAIL_FILE = 0xFE
    UPDATE_FAIL_DIGEST = 0xFF
    ACTIVATE_SUCCESS = 0x10
    ACTIVATE_FAIL = 0x1F
    ACTION_SUCCESS = 0x20
    ACTION_UNKNOWN = 0x2E
    ACTION_FAIL = 0x2F
    DATA_TYPE_UNKNOWN = 0x3F
    JOIN_SUCCESS = 0x50
    JOIN_REFUSED = 0x5E
    JOIN_FAIL = 0x5F
    OBSERVED_JOIN_VALID = 0x60
    OBSERVED_JOIN_INVALID = 0x6E
    OBSERVED_JOIN_FAIL = 0x6F
    RESIGN_SUCCESS = 0x70
    RESIGN_FAIL = 0x7F
    DEREGISTER_SUCCESS = 0x80
    DEREGISTER_FAIL = 0x8F

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        """Return the name; the number where ``spec`` is one of numbers, such as ``02x``."""
        return int.__format__(self, spec) if spec[-1:] in tuple("bcdoxXn") else format(self.name, spec)
