"""Messages to signed bytes and back (docs/protocol/wire-format.md)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import srup_native
from srup_native import Header

from .errors import SrupError, UnknownSenderError
from .messages import SCHEMA, Message

if TYPE_CHECKING:
    from .keys import PrivateKey, PublicKey

    class Frame(srup_native.Frame):
        """One well-formed message whose signature has not been verified."""

        def verify(self, key: "PublicKey") -> Message:  # type: ignore[override]
            """Return the typed message if ``key`` signed it; raise SignatureError if it did not."""

else:
    from srup_native import Frame

__all__ = [
    "BackendInfo",
    "Frame",
    "Header",
    "Lanes",
    "backend_info",
    "decode",
    "encode",
    "peek",
    "sign_many",
    "verify_many",
]


class Lanes(NamedTuple):
    """Whether a kind of lanes is active, and which they are or why not."""

    active: bool
    reason: str


class BackendInfo(NamedTuple):
    """What verifies signatures in this process, and what makes them."""

    backend: str  # "native" or "python"
    rsa_kernel: bool  # whether verify_many has the multi-buffer RSA-2048 kernel
    rsa_kernel_reason: str  # which one, or why not
    openssl: str  # the libcrypto that is asked
    fips: bool | None  # whether that is in FIPS mode; None where it does not say
    lanes: dict[str, Lanes]  # the kinds of lanes: "rsa2048", "p256", "ed25519", and "sign rsa2048"
    signatures_remade: int  # how many of lanes failed their check and were made again by OpenSSL; not 0: a fault


def backend_info() -> BackendInfo:
    """Return which backend runs, with which libcrypto, and which lanes are active and why the others are not.

    Lanes work on eight signatures at a time (docs/parts.md#lanes). The environment variables ``SRUP_RSA_KERNEL=off``,
    ``SRUP_P256_LANES=off``, ``SRUP_ED25519_LANES=off`` and ``SRUP_RSA_SIGNING=off`` keep each kind off;
    ``SRUP_RSA_SIGNING=lanes`` lets :func:`sign_many` use them.
    """
    info = srup_native.info()
    return BackendInfo(
        srup_native.BACKEND, **info | {"lanes": {kind: Lanes(*state) for kind, state in info["lanes"].items()}}
    )


def encode(message: Message, key: "PrivateKey") -> bytes:
    """Return the signed bytes of ``message``, at most 65,535.

    Raises EncodeError when message and signature together are longer, TypeError when one of the two is something else.
    """
    signed = _packed("encode", message, key)
    return srup_native.splice(signed, key.sign(signed))


def sign_many(
    messages: Sequence[Message], key: "PrivateKey", threads: int = 1, lanes: bool | None = None
) -> list[bytes]:
    """Return the signed bytes of each message, in order; with RSA and Ed25519 they are those of ``encode``.

    Up to ``threads`` (at least 1) threads share batches of more than 16 without the GIL, and they live as long as the
    call; signing that ``cryptography`` does (docs/wheels.md) is not shared. ``lanes=True`` signs eight messages at a
    time where the key is RSA-2048 and :func:`backend_info` says that they are there: by a library other than OpenSSL,
    so it is a matter of policy. Each such signature is verified before it is returned, and one that fails is made again
    by OpenSSL and counted (``backend_info().signatures_remade``). The default is ``SRUP_RSA_SIGNING``, else OpenSSL.

    Raises as ``encode`` does for the first message that cannot be signed; then none is. ValueError for ``threads``.
    """
    _check_threads(threads)
    signeds = [_packed("sign_many", message, key) for message in messages]
    signatures = key.sign_many(signeds, threads, lanes) if signeds else []
    return [srup_native.splice(signed, signature) for signed, signature in zip(signeds, signatures, strict=True)]


def _packed(caller: str, message: Message, key: "PrivateKey") -> bytes:
    """Return the bytes that are signed."""
    if not isinstance(message, Message):
        raise TypeError(f"{caller}() takes a message, not {type(message).__name__}")
    keys = sys.modules.get("srup.keys")  # not imported: then there is no key either
    if keys is None or not isinstance(key, keys.PrivateKey):
        raise TypeError(f"{caller}() takes a PrivateKey, not {type(key).__name__}")
    return srup_native.pack(message)


def _check_threads(threads: int) -> None:
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be an int of at least 1, not {threads!r}")


decode: Final[Callable[[bytes], Frame]] = SCHEMA.decode  # type: ignore[assignment]  # no call of Python code between
"""Return the unverified frame of a message: its header fields, never its body; ``frame.verify(key)`` opens it.

Raises DecodeError for anything that docs/protocol/wire-format.md refuses, and nothing else.
"""


def peek(wire: bytes) -> Header:
    """Return version, type, sequence_id, sender_id and token, without a look at signature and body.

    A Generic message (type 0x00, header and token only) can be peeked at though never decoded. Raises DecodeError.
    """
    return SCHEMA.peek(wire)


def verify_many(
    wires: Sequence[bytes], keyring: Mapping[int, "PublicKey"], threads: int = 1
) -> list[Message | SrupError]:
    """Decode and verify each message with its sender's key; return messages and errors in order.

    A bad message, one that is not bytes included, gives an error object in its place (DecodeError, UnknownSenderError,
    SignatureError), never an exception for the batch. ``keyring`` is asked once per message, so it may change
    meanwhile. Up to ``threads`` (at least 1) threads share batches of 64 and more; all but the calling one do without
    the GIL, and they live as long as the call, so a process may fork between two calls. A child that is forked in the
    middle of one gets a RuntimeError from it. Batches are worth it where :func:`backend_info` says that lanes are
    active: messages with keys of that scheme are then verified eight at a time. ML-DSA is not shared by threads.
    """
    _check_threads(threads)
    find = getattr(keyring, "find_key", None) or keyring.get
    return srup_native.verify_many(SCHEMA, wires, find, threads, UnknownSenderError)
