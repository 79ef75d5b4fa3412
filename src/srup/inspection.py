"""What a message says, field by field, for people and for programs that look at traffic.

An inspection shows fields whether or not anybody has verified them, which :func:`srup.decode` never does. So it is for
display only: ``verdict`` says what is known of the signature, and nothing may be decided from the rest.
"""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from srup_native import BINARY, TEXTZ, U8, U32, U64

from .codec import decode, peek
from .errors import SignatureError
from .keys import PublicKey
from .messages import SCHEMA
from .wire import VERSION

__all__ = ["Inspection", "Verdict", "inspect", "wires_in"]

_WIDTH: Final = {U8: 1, U32: 4, U64: 8}
_HEADER: Final = 2  # version and type
_GENERIC: Final = 0x00


class Verdict(StrEnum):
    """What is known of a signature."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN_SENDER = "no key of the sender"
    NOT_CHECKED = "not checked"
    ABSENT = "absent"


class Inspection(NamedTuple):
    """One well-formed message. ``fields`` has the header's and then the body's, by name and in wire order.

    ``key`` is the fingerprint of the key that the signature was checked with, None when there was none.
    """

    message: str
    type: int
    size: int
    fields: dict[str, Any]
    signature: bytes
    verdict: Verdict
    key: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the same for JSON: integers stay integers, text stays text, bytes become hexadecimal digits."""
        fields = {name: value.hex() if isinstance(value, bytes) else value for name, value in self.fields.items()}
        signature = {"bytes": self.signature.hex(), "verdict": self.verdict.value, "key": self.key}
        return {"message": self.message, "fields": fields, "signature": signature}


def inspect(wire: bytes, keys: Mapping[int, PublicKey] | None = None, tried: Iterable[PublicKey] = ()) -> Inspection:
    """Return what the bytes of one message say.

    ``keys`` are known public keys by identity; the sender's one decides the verdict. Where it has none, the keys
    ``tried`` are, in turn: any of them may have signed. Raises DecodeError for bytes that are no SRUP message.
    """
    if wire[1:_HEADER] == bytes((_GENERIC,)):  # header and token, and no signature
        header = peek(wire)
        fields = {"sequence_id": header.sequence_id, "sender_id": header.sender_id, "token": header.token}
        return Inspection("Generic", _GENERIC, len(wire), fields, b"", Verdict.ABSENT, None)
    frame = decode(wire)
    layout = SCHEMA[frame.type].layout
    fields, signature = _read(wire, layout.fields)
    sender_key = (keys or {}).get(frame.sender_id)
    candidates = [sender_key] if sender_key is not None else list(tried)
    verdict, fingerprint = _verdict(frame, candidates, asked=keys is not None)
    return Inspection(layout.name, frame.type, len(wire), fields, signature, verdict, fingerprint)


def _verdict(frame: Any, candidates: list[PublicKey], *, asked: bool) -> tuple[Verdict, str | None]:
    for key in candidates:
        try:
            frame.verify(key)
        except SignatureError:
            continue
        return Verdict.VALID, key.fingerprint
    if candidates:
        return Verdict.INVALID, candidates[0].fingerprint if len(candidates) == 1 else None
    return (Verdict.UNKNOWN_SENDER if asked else Verdict.NOT_CHECKED), None


def _read(wire: bytes, fields: Iterable[tuple[str, int]]) -> tuple[dict[str, Any], bytes]:
    """Read the fields of a message whose form decode() has checked, and the signature that follows the token."""
    at = _HEADER
    found: dict[str, Any] = {}
    signature = b""

    def block() -> bytes:
        nonlocal at
        begin = at + 2
        at = begin + int.from_bytes(wire[at:begin], "big")
        return wire[begin:at]

    for name, kind in fields:
        if kind in _WIDTH:
            found[name] = int.from_bytes(wire[at : at + _WIDTH[kind]], "little")
            at += _WIDTH[kind]
        elif kind == BINARY:
            found[name] = block()
        else:
            found[name] = block().decode().removesuffix("\0" if kind == TEXTZ else "")
        if name == "token":
            signature = block()
    return found, signature


def wires_in(content: bytes) -> list[bytes]:
    """Return the messages that a file, a pipe or an argument holds.

    That is one message as it is, or text with one message a line, in hexadecimal digits (colons, spaces and a leading
    ``0x`` are left out) or in base64; empty lines and those that begin with ``#`` are skipped. ValueError names the
    line that is neither.
    """
    if content[:1] == bytes((VERSION,)):
        return [content]
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError("neither an SRUP message, nor hexadecimal digits or base64, nor a packet capture") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [_bytes_of(line, number) for number, line in lines if line and not line.startswith("#")]


def _bytes_of(line: str, number: int) -> bytes:
    digits = line.removeprefix("0x").replace(":", "").replace(" ", "")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        pass
    try:
        decoded = b64decode(line.translate(str.maketrans("-_", "+/")) + "=" * (-len(line) % 4), validate=True)
    except (Base64Error, ValueError):
        decoded = b""
    if decoded[:1] != bytes((VERSION,)):  # a word is base64 too
        raise ValueError(f"line {number} is not a message in hexadecimal digits or base64: {line[:40]!a}")
    return decoded
