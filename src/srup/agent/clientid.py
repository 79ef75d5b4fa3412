"""The client id of an identity, which names its session at the broker.

Whoever knows the id of another client can connect with it, and the broker ends the other's connection and, if asked to,
drops what waits in its session. So it is a secret. With a store it is drawn once and kept there: it is the same after a
restart, on every machine that a partition moves to, and after a change of the key, and who has learned an old key has
learned nothing about it. Without a store it is made from the present key, which is all that a restart leaves.
"""

import base64
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..keys import PrivateKey

__all__ = ["SECRET", "client_id", "spelled"]

_PREFIX: Final = "srup"
_LENGTH: Final = 23  # letters and digits, which every broker takes (MQTT 3.1.1, section 3.1.3.1); 95 bits are secret
SECRET: Final = 20
"""Bytes of which an id is made."""


def client_id(key: PrivateKey, identity: int, partition: int | None = None) -> str:
    """Return the client id of ``identity``, or of one partition of it: 23 letters and digits that ``key`` decides."""
    context = b"srup client id %x" % identity + (b"" if partition is None else b" partition %d" % partition)
    return spelled(HKDF(SHA256(), SECRET, None, context).derive(key.to_pem()))


def spelled(secret: bytes) -> str:
    """Return the client id that these secret bytes make."""
    return (_PREFIX + base64.b32encode(secret).decode().lower())[:_LENGTH]
