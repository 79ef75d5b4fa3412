"""Signatures of the key exchange service and its clients: over what, and by which scheme.

An RSA key signs with PSS (MGF1-SHA256, SHA-256, the longest salt; any length is accepted), as deployed clients do.
A key with another scheme signs the same bytes as it signs a message (docs/protocol/wire-format.md#signatures-and-keys).

Beyond what deployed clients sign, an identity or a PEM, a :func:`statement` is signed. It begins with words
that neither of those, nor a message, begins with, so a signature made for one purpose never serves another.
"""

from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from ..keys import PrivateKey, PublicKey

__all__ = ["endorsement", "enrolment", "is_signed", "rotation", "sign", "signing_key", "statement"]

_MGF: Final = padding.MGF1(SHA256())
_LENGTHS: Final = b"\0\0"  # stand where a message has the signature's length


def sign(key: PrivateKey, signed: bytes) -> bytes:
    """Return the signature of ``key`` over ``signed``."""
    private = key.unsealing_key()
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(signed, padding.PSS(_MGF, padding.PSS.MAX_LENGTH), SHA256())
    return key.sign(signed)


def is_signed(public: PublicKey, signed: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` is one of this key over ``signed``."""
    key = public.sealing_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return public.verifier.verify(_LENGTHS + signature + signed, len(_LENGTHS), len(signature))
    try:
        key.verify(signature, signed, padding.PSS(_MGF, padding.PSS.AUTO), SHA256())
    except InvalidSignature:
        return False
    return True


def statement(purpose: str, *parts: str) -> bytes:
    """Return the bytes that say something once and for all; no part has a newline."""
    return "\n".join(("srup-keyex 1", purpose, *parts, "")).encode()


def enrolment(identity: int, token: str) -> bytes:
    """Return what the key that is to be registered signs when it comes with a token."""
    return statement("register", f"{identity:x}", token)


def rotation(identity: int, old: PublicKey, new: PublicKey) -> bytes:
    """Return what the old and the new key of an identity sign when one takes the other's place."""
    return statement("rotate", f"{identity:x}", old.fingerprint, new.fingerprint)


def endorsement(server_key: PublicKey) -> bytes:
    """Return what the service signs for a server: the SHA-256 of its PEM (docs/protocol/flows.md#f-86)."""
    return sha256(server_key.to_pem()).digest()


def signing_key(public: PublicKey) -> bytes:
    """Return the DER of the key that signs, without the X25519 key beside it."""
    loaded = serialization.load_pem_public_key(public.to_pem())  # the first block
    return loaded.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
