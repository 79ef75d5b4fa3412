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

__all__ = ["BackendInfo", "Frame", "Header", "backend_info", "decode", "encode", "peek", "verify_many"]


class BackendInfo(NamedTuple):
    """What verifies signatures in this process."""

    backend: str  # "native" or "python"
    rsa_kernel: bool  # whether verify_many has the multi-buffer RSA-2048 kernel
    rsa_kernel_reason: str  # which one, or why not
    openssl: str  # the libcrypto that is asked
    fips: bool | None  # whether that is in FIPS mode; None where it does not say


def backend_info() -> BackendInfo:
    """Tell which backend runs, with which libcrypto, and whether the multi-buffer kernel is active.

    The environment variable ``SRUP_RSA_KERNEL=off`` keeps the kernel off.
    """
    return BackendInfo(srup_native.BACKEND, **srup_native.info())


def encode(message: Message, key: "PrivateKey") -> bytes:
    """Return the signed bytes of ``message``, at most 65,535.

    Raises EncodeError when message and signature together are longer, TypeError when one of the two is something else.
    """
    if not isinstance(message, Message):
        raise TypeError(f"encode() takes a message, not {type(message).__name__}")
    keys = sys.modules.get("srup.keys")  # not imported: then there is no key either
    if keys is None or not isinstance(key, keys.PrivateKey):
        raise TypeError(f"encode() takes a PrivateKey, not {type(key).__name__}")
    signed = srup_native.pack(message)
    return srup_native.splice(signed, key.sign(signed))


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
    middle of one gets a RuntimeError from it. Batches are worth it where :func:`backend_info` says that the
    multi-buffer kernel is active: messages with RSA-2048 keys are then verified eight at a time. ML-DSA is not shared
    by threads.
    """
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be an int of at least 1, not {threads!r}")
    find = getattr(keyring, "find_key", None) or keyring.get
    return srup_native.verify_many(SCHEMA, wires, find, threads, UnknownSenderError)
