"""The signature schemes of the pure twin, made of ``cryptography``'s: imported when the first key is loaded."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA44PrivateKey,
    MLDSA44PublicKey,
    MLDSA65PrivateKey,
    MLDSA65PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

__all__ = ["ALGORITHMS", "InvalidSignature", "load_private", "load_public", "openssl"]

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
        (MLDSA44PublicKey, MLDSA44PrivateKey, MLDSA65PublicKey, MLDSA65PrivateKey),
        lambda key, signature, digest: key.verify(signature, digest, _CONTEXT),
        lambda key, digest: key.sign(digest, _CONTEXT),
    ),
}
"""The algorithms by name; ``verify`` raises InvalidSignature."""


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


def load_public(der: bytes, algorithm: str) -> Any:
    """Load a SubjectPublicKeyInfo; ValueError for what is no key of the algorithm."""
    return _loaded(load_der_public_key, der, ALGORITHMS[algorithm].keys)


def load_private(der: bytes, algorithm: str) -> Any:
    """Load an unencrypted PKCS #8; ValueError for what is no key of the algorithm."""
    return _loaded(partial(load_der_private_key, password=None), der, ALGORITHMS[algorithm].keys)


def openssl() -> str:
    """Return the version of ``cryptography``'s own libcrypto."""
    return backend.openssl_version_text()
