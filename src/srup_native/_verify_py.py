"""Pure twin of ``_verify.pyx`` and the text of their contract: signatures (docs/protocol/wire-format.md#w-3).

``algorithm`` is one of the keys of :data:`._schemes_py.ALGORITHMS`. What is signed is always the SHA-256 of a
message's signed bytes: RSA and ECDSA take that digest as their own hash, Ed25519 and ML-DSA sign its 32 bytes as their
message. Keys come as DER: SubjectPublicKeyInfo for a verifier, unencrypted PKCS #8 for a signer. Whoever loads them
(:mod:`srup.keys`) has checked type and strength.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from .errors import SrupError

if TYPE_CHECKING:
    from ._codec_py import HasVerifier, Schema


LANES: Final = ("rsa2048", "p256", "ed25519", "sign rsa2048")
"""The kinds of lanes, which work on eight signatures at a time."""


class Verifier(Protocol):
    """Checks signatures of one public key. Safe to use from many threads at once."""

    def verify(self, wire: bytes, offset: int, size: int) -> bool:
        """Tell whether ``wire[offset:offset+size]`` is a signature over the rest of ``wire``.

        The two length bytes before the signature are left out as well. Raises ValueError when the range, with its
        length bytes, does not lie inside ``wire``, TypeError when that is not bytes.
        """
        ...


class Signer(Protocol):
    """Signs with one private key. Safe to use from many threads at once."""

    def sign(self, signed: bytes) -> bytes:
        """Return the signature over ``signed``, the bytes that ``pack`` makes. TypeError for anything but bytes."""
        ...


class _Verifier:
    __slots__ = ("_key", "_schemes", "_verify")

    def __init__(self, algorithm: str, public_der: bytes) -> None:
        from . import _schemes_py as schemes

        self._schemes = schemes
        self._verify = schemes.ALGORITHMS[algorithm].verify
        self._key = schemes.load_public(public_der, algorithm)

    def verify(self, wire: bytes, offset: int, size: int) -> bool:
        if type(wire) is not bytes:
            raise TypeError(f"verify() takes bytes, not {type(wire).__name__}")
        if offset < 2 or size < 0 or offset + size > len(wire):
            raise ValueError("the signature must lie inside the message")
        from hashlib import sha256

        digest = sha256(wire[: offset - 2] + wire[offset + size :]).digest()
        try:
            self._verify(self._key, wire[offset : offset + size], digest)
        except self._schemes.InvalidSignature:
            return False
        return True


class _Signer:
    __slots__ = ("_key", "_sign")

    def __init__(self, algorithm: str, private_der: bytes) -> None:
        from . import _schemes_py as schemes

        self._sign = schemes.ALGORITHMS[algorithm].sign
        self._key = schemes.load_private(private_der, algorithm)

    def sign(self, signed: bytes) -> bytes:
        if type(signed) is not bytes:
            raise TypeError(f"sign() takes bytes, not {type(signed).__name__}")
        from hashlib import sha256

        return self._sign(self._key, sha256(signed).digest())


def verifier(algorithm: str, public_der: bytes) -> Verifier:
    """Return a verifier; KeyError for an unknown algorithm, ValueError for what is no key of it."""
    return _Verifier(algorithm, public_der)


def signer(algorithm: str, private_der: bytes) -> Signer:
    """Return a signer; KeyError for an unknown algorithm, ValueError for what is no key of it."""
    return _Signer(algorithm, private_der)


def verify_many(
    schema: "Schema",
    wires: Sequence[bytes],
    find: Callable[[int], "HasVerifier | None"],
    threads: int,
    unknown: Callable[[int], SrupError],
) -> list[Any]:
    """Decode and verify each message with the key that ``find(sender_id)`` returns.

    Returns, in order, the record, or the error that it deserves: DecodeError, what ``unknown(sender_id)`` makes, or
    SignatureError. Up to ``threads`` threads share the work where that can gain something.
    """

    def opened(wire: bytes) -> Any:
        try:
            frame = schema.decode(wire)
            key = find(frame.sender_id)
            return unknown(frame.sender_id) if key is None else (frame, key)
        except SrupError as error:
            return bare(error)

    def verified(one: Any) -> Any:
        if isinstance(one, SrupError):
            return one
        frame, key = one
        try:
            return frame.verify(key)
        except SrupError as error:
            return bare(error)

    def bare(error: SrupError) -> SrupError:
        """Without the frames of this batch, which it would keep alive."""
        error.__traceback__ = error.__context__ = None
        return error

    # The keys are looked up here, so that whatever the owner of ``find`` does there it does on the calling thread.
    batch = [opened(wire) for wire in list(wires)]
    if threads > 1 and len(batch) > 1:
        from concurrent.futures import ThreadPoolExecutor
        from contextlib import suppress

        with suppress(RuntimeError), ThreadPoolExecutor(threads) as pool:  # no thread is to be had: it goes without
            return list(pool.map(verified, batch))
    return [verified(one) for one in batch]


def sign_many(signer: Signer, signeds: Sequence[bytes], threads: int, lanes: bool | None) -> list[bytes]:
    """Return the signature over each of ``signeds``, in order; errors as of ``Signer.sign``.

    Up to ``threads`` threads share the work where that can gain something. ``lanes`` says whether RSA-2048 signatures
    may be made eight at a time where that is possible; None leaves it to ``SRUP_RSA_SIGNING`` in the environment.
    """
    return [signer.sign(signed) for signed in signeds]


def info() -> dict[str, Any]:
    """Return what verifies and signs.

    ``lanes`` has (bool, text) for each kind of lanes, LANES: whether they are active, and which they are or why not;
    ``rsa_kernel`` and ``rsa_kernel_reason`` are the same for RSA-2048. ``signatures_remade`` counts those of lanes that
    failed their check and were made again. ``openssl`` is the version; ``fips`` whether that libcrypto is in FIPS mode,
    None where it does not say.
    """
    from ._schemes_py import openssl

    none = False, "the pure backend has none"
    return {
        "rsa_kernel": none[0],
        "rsa_kernel_reason": none[1],
        "openssl": openssl(),
        "fips": None,
        "lanes": dict.fromkeys(LANES, none),
        "signatures_remade": 0,
    }
