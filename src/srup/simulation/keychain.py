"""Keys that are the same in every run and every process, as far as their scheme allows."""

import hashlib
from functools import cache
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

from ..keys import PrivateKey

__all__ = ["SCHEMES", "key_of"]

SCHEMES: Final = ("ed25519", "rsa2048")
"""Signatures of these schemes have one size, so that a run does not depend on what they are."""


@cache
def key_of(owner: str, generation: int = 0, scheme: str = "ed25519") -> PrivateKey:
    """Return a key by its owner's name: always the same one for ed25519, the same in this process for rsa2048.

    Whoever knows the name knows the key: it is good for simulations only.
    """
    if scheme != "ed25519":
        return PrivateKey.generate(scheme)
    return PrivateKey.from_pem(
        b"".join(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            for key in (
                ed25519.Ed25519PrivateKey.from_private_bytes(_secret(owner, generation, "sign")),
                x25519.X25519PrivateKey.from_private_bytes(_secret(owner, generation, "seal")),
            )
        )
    )


def _secret(owner: str, generation: int, purpose: str) -> bytes:
    return hashlib.sha256(f"srup simulation: {owner} {generation} {purpose}".encode()).digest()
