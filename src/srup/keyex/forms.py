"""What requests must look like (docs/protocol/flows.md#f-82): a JSON object in, checked values out, or a 400.

====================  ==================================================================================================
field                 form
====================  ==================================================================================================
identity              1 to 16 hexadecimal digits; leading zeros and capitals are another spelling of the same identity
key, new_key          a PEM public key, with or without header, footer and newlines
type                  1 to 32 characters: letters, digits, ``_``, ``-``, ``.``, and single spaces between them
csr                   a PEM certificate signing request in base64
signature, ...        base64
token                 what ``srup keyex token`` has printed, or its first part
====================  ==================================================================================================

Fields that a form does not name are ignored, for deployed clients may send them.
"""

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ..errors import InvalidKeyError, KeyServiceError
from ..identity import parse_identity as number_of
from ..keys import PublicKey

__all__ = ["FORMS", "MAX_BODY", "Form", "Identity", "parse_identity", "parse_key", "parse_type", "read", "whole_token"]

MAX_BODY: Final = 32768
"""The longest request in bytes; the largest that is of use has about half of that."""

_TYPE: Final = re.compile(r"(?=.{1,32}\Z)[A-Za-z0-9_.-]+(?: [A-Za-z0-9_.-]+)*")
_WHOLE_TOKEN: Final = 76
_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]{32})(?:\.[A-Za-z0-9_-]{43})?")


class Identity(NamedTuple):
    """An identity and how the request spelled it; signatures are over that spelling."""

    number: int
    text: str


def _bad(field: str, reason: str) -> KeyServiceError:
    return KeyServiceError(400, field, reason)


def parse_identity(text: str, field: str = "identity") -> Identity:
    """Read an identity. Raises KeyServiceError naming ``field``."""
    try:
        return Identity(number_of(text), text)
    except ValueError:
        raise _bad(field, "is not 1 to 16 hexadecimal digits") from None


def parse_key(text: str, field: str = "key") -> PublicKey:
    """Read a public key with or without its PEM lines. Raises KeyServiceError naming ``field``, for weak keys too."""
    if "-----" not in text:
        body = "".join(text.split())
        text = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"
    try:
        return PublicKey.from_pem(text)
    except InvalidKeyError as error:
        raise _bad(field, str(error)) from None


def parse_type(text: str, field: str = "type") -> str:
    """Read what an identity registers as. Raises KeyServiceError naming ``field``."""
    if not _TYPE.fullmatch(text):
        raise _bad(field, "is not 1 to 32 letters, digits, '_', '-' and '.', with single spaces between them")
    return text


def _parse_base64(text: str, field: str) -> bytes:
    try:
        content = b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _bad(field, "is not base64") from None
    if not content:
        raise _bad(field, "is empty")
    return content


def whole_token(text: str) -> str:
    """Return an enrolment token without the blanks around it; KeyServiceError when a part of it is missing."""
    token = "".join(text.split())
    if _TOKEN.fullmatch(token) is None:
        length = f"it has {len(token)} characters, a whole one {_WHOLE_TOKEN}"
        if len(token) == _WHOLE_TOKEN:
            length = "there is a character in it that no token has"
        raise KeyServiceError(0, "token", f"is damaged: {length}; copy it again as srup keyex token has printed it")
    return token


def _parse_token(text: str, field: str) -> str:
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise _bad(field, "is not an enrolment token")
    return match[1]


FIELDS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "identity": parse_identity,
    "key": parse_key,
    "new_key": parse_key,
    "type": parse_type,
    "csr": _parse_base64,
    "signature": _parse_base64,
    "new_signature": _parse_base64,
    "proof": _parse_base64,
    "token": _parse_token,
}
"""How each field is read."""


class Form(NamedTuple):
    """The fields that a request must and may have."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


FORMS: Final = {
    "register": Form(("identity", "key", "type"), ("token", "proof")),
    "validate": Form(("identity", "signature")),
    "access": Form(("identity", "csr", "signature")),
    "c2": Form(("identity", "key", "signature")),
    "rotate": Form(("identity", "new_key", "signature", "new_signature")),
}
"""The form of each route that takes a request."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise _bad("", "a field of the JSON object is there twice")
    return dict(pairs)


def read(form: Form, body: bytes) -> dict[str, Any]:
    """Return the values of a request's fields; optional ones that are missing are None.

    Raises KeyServiceError (400) that names the field.
    """
    try:
        document = json.loads(body.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _bad("", "the request is not JSON in UTF-8") from None
    if not isinstance(document, dict):
        raise _bad("", "the request is not a JSON object")
    values: dict[str, Any] = dict.fromkeys(form.optional)
    for name in (*form.required, *form.optional):
        text = document.get(name)
        if text is None:
            if name in form.required:
                raise _bad(name, "is missing")
            continue
        if not isinstance(text, str):
            raise _bad(name, "is not a string")
        values[name] = FIELDS[name](text, name)
    return values
