"""Key rotation: the old key names the new one, which proves that the same owner has it (docs/extensions.md; T15).

Version 5 has no message for it, so an offer is a Data message named KEY_ROTATION, which the old key signs like every
message of its owner. Its data are::

    proof length (2 bytes, big-endian) | proof | the new public key as PublicKey.to_pem() writes it

The proof is the new key's signature over this text, identities in lower-case hex without leading zeros::

    SRUP-v5 key rotation\\n<owner>\\n<partner>\\n<fingerprint of the old key>\\n<fingerprint of the new key>\\n

No message has such signed bytes, for those begin with the version, 5. A Response with the token of the offer says
ACTION_SUCCESS when the new key has been taken, and ACTION_FAIL when the old one goes on counting alone.
"""

from typing import Final

from .errors import InvalidKeyError, PolicyError
from .keyring import KeyRing
from .keys import SCHEMES, PrivateKey, PublicKey

__all__ = ["check", "check_succession", "check_usable", "offer"]

_TEXT: Final = "SRUP-v5 key rotation\n{:x}\n{:x}\n{}\n{}\n"


def offer(identity: int, partner: int, old: PublicKey, new: PrivateKey) -> bytes:
    """Return the data by which ``identity`` offers ``partner`` the successor of its key ``old``.

    Raises InvalidKeyError and PolicyError for a key that :func:`check` would not take.
    """
    key = new.public_key
    check_usable(key, old)
    proof = new.sign(_text(identity, partner, old, key))
    return len(proof).to_bytes(2, "big") + proof + key.to_pem()


def check(data: bytes, identity: int, partner: int, old: PublicKey) -> PublicKey:
    """Return the new key that ``identity`` offers us, ``partner``, in a message that its key ``old`` has signed.

    Raises InvalidKeyError for junk and for keys that are not accepted anywhere (srup.keys), PolicyError when the
    proof is not the new key's, or one for other keys or identities, or there is nothing new.
    """
    size = 2 + int.from_bytes(data[:2], "big")
    proof, pem = data[:size], data[size:]
    if not pem:
        raise PolicyError(f"the offer of a key is cut off: {len(data)} bytes, and the proof alone takes {size}")
    key = PublicKey.from_pem(pem)
    if key.to_pem() != pem:
        raise InvalidKeyError("the new key is not written as to_pem() writes it")
    check_usable(key, old)
    if not key.verifier.verify(proof + _text(identity, partner, old, key), 2, size - 2):
        raise PolicyError(f"the proof is not one of the new key for {identity:x} and {partner:x}, or for this old key")
    return key


def check_usable(key: PublicKey, old: PublicKey) -> None:
    """Raise InvalidKeyError for a key that is none of SCHEMES, PolicyError when it is ``old``."""
    if key.scheme not in SCHEMES:
        raise InvalidKeyError(f"{key.scheme} is no scheme to change to; here there are {', '.join(SCHEMES)}")
    if key == old:
        raise PolicyError("the new key is the old one")


def check_succession(ring: KeyRing, identity: int, signer: PublicKey, key: PublicKey, now: float) -> None:
    """Raise PolicyError unless ``key``, offered by a message that ``signer`` signed, may count for ``identity``.

    Only the key that counts can name a successor. A retiring key may go on offering the one that has taken its place,
    because its owner may have missed the answer; were it to name another one, whoever has stolen an old key could take
    the identity with it.
    """
    counting = ring.get(identity)
    if ring.bars(key):
        raise PolicyError(f"the key {key.signing_fingerprint[:16]} was revoked; {identity:x} needs another one")
    if signer != counting and not (key == counting and signer == ring.retiring(identity, now)):
        raise PolicyError(f"the key of {identity:x} that signed this does not count any more: it names no successor")


def _text(identity: int, partner: int, old: PublicKey, new: PublicKey) -> bytes:
    return _TEXT.format(identity, partner, old.fingerprint, new.fingerprint).encode()
