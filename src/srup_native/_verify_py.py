"""Pure twin of ``_verify.pyx`` and the text of their contract: signatures over SHA-256 (WIRE.md, "Other schemes").

``algorithm`` is one of the keys of :data:`ALGORITHMS`. What is signed is always the SHA-256 of a message's signed
bytes: RSA and ECDSA take that digest as their own hash, Ed25519 and ML-DSA sign its 32 bytes as their message.
Keys come as DER: SubjectPublicKeyInfo for a verifier, unencrypted PKCS #8 for a signer. Whoever loads them
(:mod:`srup.keys`) has checked type and strength.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

from .errors import SrupError

if TYPE_CHECKING:
    from ._codec_py import HasVerifier, Schema

try:
    from cryptography.hazmat.primitives.asymmetric import mldsa
except ImportError:  # before cryptography 47
    _MLDSA_KEYS: tuple[type, ...] = ()
else:
    _MLDSA_KEYS = (mldsa.MLDSA44PublicKey, mldsa.MLDSA44PrivateKey, mldsa.MLDSA65PublicKey, mldsa.MLDSA65PrivateKey)

_CONTEXT: Final = b"SRUP-v5"
_PKCS1: Final = PKCS1v15()
_SHA256: Final = Prehashed(SHA256())
_ECDSA: Final = ECDSA(_SHA256)


class _Algorithm(NamedTuple):
    keys: tuple[type, ...]  # the classes of its public and private keys
    verify: Callable[[Any, bytes, bytes], None]  # (key, signature, digest); raises InvalidSignature
    sign: Callable[[Any, bytes], bytes]  # (key, digest)


ALGORITHMS: Final = {
    "rsa": _Algorithm(
        (RSAPublicKey, RSAPrivateKey),
        lambda key, signature, digest: key.verify(signature, digest, _PKCS1, _SHA256),
        lambda key, digest: key.sign(digest, _PKCS1, _SHA256),
    ),
    "ecdsa": _Algorithm(
        (EllipticCurvePublicKey, EllipticCurvePrivateKey),
        lambda key, signature, digest: key.verify(signature, digest, _ECDSA),
        lambda key, digest: key.sign(digest, _ECDSA),
    ),
    "ed25519": _Algorithm(
        (Ed25519PublicKey, Ed25519PrivateKey),
        lambda key, signature, digest: key.verify(signature, digest),
        lambda key, digest: key.sign(digest),
    ),
    "mldsa": _Algorithm(
        _MLDSA_KEYS,
        lambda key, signature, digest: key.verify(signature, digest, _CONTEXT),
        lambda key, digest: key.sign(digest, _CONTEXT),
    ),
}


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


def _loaded(load: Callable[[bytes], Any], der: bytes, classes: tuple[type, ...]) -> Any:
    if type(der) is not bytes:
        raise TypeError(f"a key comes as bytes, not {type(der).__name__}")
    try:
        key = load(der)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: encrypted
        raise ValueError("this is no key of the algorithm") from None
    if not isinstance(key, classes):
        raise ValueError("this is no key of the algorithm")
    return key


class _Verifier:
    __slots__ = ("_key", "_verify")

    def __init__(self, algorithm: str, public_der: bytes) -> None:
        self._verify = ALGORITHMS[algorithm].verify
        self._key = _loaded(load_der_public_key, public_der, ALGORITHMS[algorithm].keys)

    def verify(self, wire: bytes, offset: int, size: int) -> bool:
        if type(wire) is not bytes:
            raise TypeError(f"verify() takes bytes, not {type(wire).__name__}")
        if offset < 2 or size < 0 or offset + size > len(wire):
            raise ValueError("the signature must lie inside the message")
        digest = sha256(wire[: offset - 2] + wire[offset + size :]).digest()
        try:
            self._verify(self._key, wire[offset : offset + size], digest)
        except InvalidSignature:
            return False
        return True


class _Signer:
    __slots__ = ("_key", "_sign")

    def __init__(self, algorithm: str, private_der: bytes) -> None:
        self._sign = ALGORITHMS[algorithm].sign
        self._key = _loaded(partial(load_der_private_key, password=None), private_der, ALGORITHMS[algorithm].keys)

    def sign(self, signed: bytes) -> bytes:
        if type(signed) is not bytes:
            raise TypeError(f"sign() takes bytes, not {type(signed).__name__}")
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
        with suppress(RuntimeError), ThreadPoolExecutor(threads) as pool:  # no thread is to be had: it goes without
            return list(pool.map(verified, batch))
    return [verified(one) for one in batch]


def info() -> dict[str, Any]:
    """Return what verifies: ``rsa_kernel`` (bool), ``rsa_kernel_reason`` and the version of ``openssl``."""
    return {
        "rsa_kernel": False,
        "rsa_kernel_reason": "the pure backend has none",
        "openssl": backend.openssl_version_text(),
    }
