"""Bound tokens: who a message is for and until when (docs/protocol/wire-format.md#bound-tokens; T3, T4).

A version 5 message does not say who it is for. A bound token does, and the signature covers it::

    srup5:<sender>:<recipient>:<expiry>:<nonce>

``sender`` is who begins the exchange and ``recipient`` whom the question is for: identities in lower-case hex without
leading zeros. Without the sender, somebody else could ask under a token that he has overheard, and the signed answer to
him would pass for the answer to its maker. ``expiry`` is the last second at which the message may take effect, in
decimal Unix time, ``nonce`` 22 characters of base64url (128 random bits). More fields may follow, each after a colon.
In an update order ``v<number>`` is the version of the firmware in decimal (T12). ``r`` asks for a receipt, and in a
value ``r<stream>.<number>`` says besides which place it has among those of its sender; a third number, ``.<after>``,
that it may follow any from that one on (docs/extensions.md, "Receipts"). As the first field ``k<digits>`` says under
which key of its maker a token was made: 16 hex digits, with which the key's fingerprint begins. A reader ignores fields
that it does not know. The whole is ASCII without spaces, so a deployed peer takes it for an opaque text and repeats it
in its answer. A token that begins with ``srup5:`` and does not have this form is malformed: it is refused, not taken
for opaque.
"""

import re
from base64 import urlsafe_b64encode
from typing import Final, NamedTuple

from .errors import PolicyError
from .identity import CANONICAL
from .versions import MAX_VERSION

__all__ = ["KEY_DIGITS", "NONCE_SIZE", "BoundToken", "bind", "parse", "plain_expiry"]

NONCE_SIZE: Final = 16
"""How many random bytes a token takes."""

KEY_DIGITS: Final = 16
"""How many hex digits of a key's fingerprint a token names."""

_NEVER: Final = 10**18  # the first expiry that has too many digits
_PREFIX: Final = b"srup5:"
_VERSION: Final = re.compile(rb":v(0|[1-9][0-9]{0,17})(?=:|\Z)")
_RECEIPT: Final = re.compile(rb":r(?:([1-9][0-9]{0,19})\.([1-9][0-9]{0,19})(?:\.(0|[1-9][0-9]{0,19}))?)?(?=:|\Z)")
_FORM: Final = re.compile(
    rf"srup5:({CANONICAL}):({CANONICAL}):(0|[1-9][0-9]{{0,17}}):([A-Za-z0-9_-]{{22}})"
    rf"(?::k([0-9a-f]{{{KEY_DIGITS}}})(?=:|\Z))?(?::[!-9;-~]*)*".encode()
)
_KEY: Final = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
_EXPIRY_AND_NONCE: Final = re.compile(rb"(0|[1-9][0-9]{0,17}):[A-Za-z0-9_-]{22}")


class BoundToken(NamedTuple):
    """What a bound token says; ``expiry`` in seconds of Unix time, ``version`` that of the firmware of an order.

    ``receipt`` says that the sender wants to know what is there for good; ``place`` is the stream and the number in it
    of a value that must neither get lost nor change places with others. It follows the numbers from ``after`` on, which
    is the one before its own if the token does not say otherwise. ``key`` is how the fingerprint of the key begins that
    the token was made under, "" if the token does not say.
    """

    sender: int
    recipient: int
    expiry: int
    nonce: bytes
    version: int | None = None
    receipt: bool = False
    place: tuple[int, int] | None = None
    after: int = 0
    key: str = ""


def bind(
    sender: int,
    recipient: int,
    expiry: float,
    nonce: bytes,
    version: int | None = None,
    receipt: bool = False,
    place: tuple[int, int] | None = None,
    after: int | None = None,
    key: str = "",
) -> bytes:
    """Return a new token of ``sender`` for ``recipient``, good until ``expiry`` (Unix seconds, rounded down).

    ``nonce`` is 16 bytes that are used once and nobody can guess, ``version`` a number below 10**18, ``key`` the first
    16 hex digits of the fingerprint of the key that signs. Raises ValueError for what :func:`parse` would refuse.
    """
    if not (0 <= sender < 1 << 64 and 0 <= recipient < 1 << 64):
        raise ValueError("sender and recipient are identities in 0..2**64-1")
    if not expiry < _NEVER:
        raise ValueError(f"an expiry is Unix time below {_NEVER}, not {expiry}")
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    if version is not None and (type(version) is not int or not 0 <= version <= MAX_VERSION):
        raise ValueError(f"a firmware version is a number in 0..10**18-1, not {version!r}")
    if key and _KEY.fullmatch(key) is None:
        raise ValueError(f"a key is named by {KEY_DIGITS} lower-case hex digits, not {key!r}")
    text = urlsafe_b64encode(nonce).rstrip(b"=")
    named = b":k%b" % key.encode() if key else b""
    named += b"" if version is None else b":v%d" % version
    if place is not None:
        named += b":r%d.%d" % place
        if after is not None and after != place[1] - 1:
            named += b".%d" % after
    elif receipt:
        named += b":r"
    return b"%s%x:%x:%d:%s%s" % (_PREFIX, sender, recipient, max(0, int(expiry)), text, named)


def plain_expiry(token: bytes, sender: int, recipient: int) -> int | None:
    """Return the expiry of a bound token of ``sender`` for ``recipient`` that says nothing more; None for any other."""
    names = f"srup5:{sender:x}:{recipient:x}:".encode()
    form = _EXPIRY_AND_NONCE.fullmatch(token, len(names)) if token.startswith(names) else None
    return None if form is None else int(form[1])


def parse(token: bytes) -> BoundToken | None:
    """Return what a bound token says, None for any other token; raise PolicyError for a malformed bound one."""
    if not token.startswith(_PREFIX):
        return None
    form = _FORM.fullmatch(token)
    if form is None:
        raise PolicyError(f"malformed bound token {token[:80]!r}")
    sender, recipient, expiry, nonce, name = form.groups(b"")
    key = name.decode()
    if form.end(5 if key else 4) == len(token):
        return BoundToken(int(sender, 16), int(recipient, 16), int(expiry), nonce, key=key)
    versions = _VERSION.findall(token)
    if len(versions) > 1:
        raise PolicyError(f"a bound token with several versions {token[:80]!r}")
    version = int(versions[0]) if versions else None
    receipts = _RECEIPT.findall(token, form.end(4))
    numbers = [int(number or 0) for place in receipts for number in place]
    backwards = bool(receipts) and receipts[0][2] != b"" and numbers[2] >= numbers[1]
    if len(receipts) > 1 or any(number >= 1 << 64 for number in numbers) or backwards:
        raise PolicyError(f"a bound token that asks for several receipts, or for none that there is {token[:80]!r}")
    place, after = None, 0
    if receipts and receipts[0][0]:
        place = numbers[0], numbers[1]
        after = numbers[2] if receipts[0][2] else numbers[1] - 1
    who = int(sender, 16), int(recipient, 16)
    return BoundToken(*who, int(expiry), nonce, version, bool(receipts), place, after, key)
