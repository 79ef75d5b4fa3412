"""Sealed values: what only one identity can read (docs/protocol/wire-format.md#sealed-values).

A value for an RSA key is an OpenSSL seal envelope, as peers send; for every other key it is HPKE (RFC 9180). Neither
tells who sealed it: the signature of the message does, so open a sealed value only after that has been verified (T13).
"""

import os
from typing import TYPE_CHECKING, Any, Final

from .errors import SealError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

    from .keys import PrivateKey, PublicKey

__all__ = ["MAX_PLAINTEXT", "seal", "unseal"]

MAX_PLAINTEXT: Final = 4111
"""The longest plaintext in bytes; a longer one overflows a buffer in deployed peers."""

_INFO: Final = b"SRUP-v5 seal"
_KEY: Final = 32
_IV: Final = 16
_BLOCK: Final = 16


# ``cryptography`` is imported where it is used: ``import srup`` shall not wait for it.


def _suite() -> Any:
    from cryptography.hazmat.primitives import hpke

    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _cipher(secret: bytes, iv: bytes) -> tuple[Any, Any]:
    """Return AES-256-CBC and its padding."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CBC
    from cryptography.hazmat.primitives.padding import PKCS7

    return Cipher(AES(secret), CBC(iv)), PKCS7(8 * _BLOCK)


def seal(plaintext: bytes, public_key: "PublicKey") -> bytes:
    """Return ``plaintext`` (at most 4,111 bytes) so that only the owner of ``public_key`` can read it.

    Deployed peers pad what they seal with NULs to 32 bytes and read exactly 32: seal 32 bytes for them. Raises
    SealError for a longer plaintext or a key that nothing can be sealed to.
    """
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    from .keys import PublicKey

    if not isinstance(public_key, PublicKey):
        raise TypeError(f"seal() takes a PublicKey, not {type(public_key).__name__}")
    if type(plaintext) is not bytes:
        raise SealError(f"the plaintext must be bytes, not {type(plaintext).__name__}")
    if len(plaintext) > MAX_PLAINTEXT:
        raise SealError(f"the plaintext has {len(plaintext)} bytes; {MAX_PLAINTEXT} are possible")
    key = public_key.sealing_key()
    if key is None:
        raise SealError(f"no X25519 key is registered beside this {public_key.scheme} key")
    if not isinstance(key, rsa.RSAPublicKey):
        return bytes(_suite().encrypt(plaintext, key, _INFO))
    secret, iv = os.urandom(_KEY), os.urandom(_IV)
    cipher, pkcs7 = _cipher(secret, iv)
    padder, encryptor = pkcs7.padder(), cipher.encryptor()
    ciphertext = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    wrapped = key.encrypt(secret, padding.PKCS1v15())
    return b"".join((_i32(len(wrapped)), wrapped, iv, _i32(len(ciphertext)), _i32(len(plaintext)), ciphertext))


def unseal(sealed: bytes, private_key: "PrivateKey") -> bytes:
    """Return the plaintext of a sealed value; raise SealError, always the same one, when it does not open."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    from .keys import PrivateKey

    if not isinstance(private_key, PrivateKey):
        raise TypeError(f"unseal() takes a PrivateKey, not {type(private_key).__name__}")
    key = private_key.unsealing_key()
    try:
        if isinstance(key, rsa.RSAPrivateKey):
            return _open_envelope(sealed, key)
        if key is not None:
            return bytes(_suite().decrypt(sealed, key, _INFO))
    except Exception:  # noqa: BLE001, S110 - InvalidTag, ValueError, InternalError ...: telling them apart is the oracle
        pass
    raise SealError("the sealed value does not open")


def _i32(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


def _open_envelope(sealed: bytes, key: "rsa.RSAPrivateKey") -> bytes:
    """Open ``klen | wrapped key | IV | clen | plen | ciphertext``; raise ValueError or worse when it does not fit."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    size = key.key_size + 7 >> 3
    head = 4 + size + _IV
    ciphertext = sealed[head + 8 :]
    plain_size = int.from_bytes(sealed[head + 4 : head + 8], "little", signed=True)
    if (
        sealed[:4] != _i32(size)
        or sealed[head : head + 4] != _i32(len(ciphertext))
        or len(ciphertext) != _BLOCK * (plain_size // _BLOCK + 1)
    ):
        raise ValueError
    secret = key.decrypt(sealed[4 : 4 + size], PKCS1v15())
    if len(secret) != _KEY:
        # What OpenSSL from 3.2 on gives for a wrapped key that does not open is random bytes: take the same way.
        secret = os.urandom(_KEY)
    cipher, pkcs7 = _cipher(secret, sealed[head - _IV : head])
    decryptor, unpadder = cipher.decryptor(), pkcs7.unpadder()
    plaintext = unpadder.update(decryptor.update(ciphertext) + decryptor.finalize()) + unpadder.finalize()
    if len(plaintext) != plain_size:
        raise ValueError
    return bytes(plaintext)
