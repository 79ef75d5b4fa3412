"""Private and public keys.

The scheme belongs to the key and never travels in a message (docs/protocol/wire-format.md#w-24).
RSA keys also open and make sealed values. An identity with another scheme has an X25519 key for that purpose beside its
signing key; ``generate`` makes both, and PEM text then holds two blocks, the signing key first.
"""

import os
import re
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any, Final, NamedTuple, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256, Hash

import srup_native

from .errors import InvalidKeyError
from .files import PRIVATE, PUBLIC, write_file

__all__ = ["SCHEMES", "PrivateKey", "PublicKey"]

MINIMUM_RSA_BITS: Final = 2048
MINIMUM_RSA_EXPONENT: Final = 65537
MAXIMUM_RSA_BITS: Final = 16384  # OpenSSL verifies nothing larger
MAXIMUM_RSA_EXPONENT: Final = (1 << 32) - 1  # each further bit makes a verification dearer, and buys nothing


class _Scheme(NamedTuple):
    algorithm: str  # its name in srup_native
    generate: Callable[[], Any]


def _generate_rsa(bits: int) -> Callable[[], rsa.RSAPrivateKey]:
    return lambda: rsa.generate_private_key(MINIMUM_RSA_EXPONENT, bits)


SCHEMES: Final = {
    "rsa2048": _Scheme("rsa", _generate_rsa(2048)),
    "rsa3072": _Scheme("rsa", _generate_rsa(3072)),
    "rsa4096": _Scheme("rsa", _generate_rsa(4096)),
    "p256": _Scheme("ecdsa", lambda: ec.generate_private_key(ec.SECP256R1())),
    "ed25519": _Scheme("ed25519", ed25519.Ed25519PrivateKey.generate),
    "mldsa44": _Scheme("mldsa", mldsa.MLDSA44PrivateKey.generate),
    "mldsa65": _Scheme("mldsa", mldsa.MLDSA65PrivateKey.generate),
}
"""The schemes of signing keys, by name."""

_UNENCRYPTED: Final = serialization.NoEncryption()
_PEM_LINE: Final = re.compile(rb"-----(BEGIN|END) ([^\n-]{0,64})-----")
_X25519: Final = bytes.fromhex("302a300506032b656e032100")  # what stands before an X25519 key in its DER form
_PRIVATE, _PUBLIC = b"PRIVATE KEY", b"PUBLIC KEY"  # how the labels of keys end, whatever stands before it


def _scheme_of(public: object, minimum_rsa_bits: int, minimum_rsa_exponent: int) -> tuple[str, str]:
    """Return scheme and algorithm of a public key object, or raise InvalidKeyError when it is weak or of no use."""
    match public:
        case rsa.RSAPublicKey():
            bits, exponent = public.key_size, public.public_numbers().e
            if not minimum_rsa_bits <= bits <= MAXIMUM_RSA_BITS:
                raise InvalidKeyError(
                    f"RSA key of {bits} bits: {minimum_rsa_bits} to {MAXIMUM_RSA_BITS} are accepted "
                    "(minimum_rsa_bits lowers the bar)"
                )
            if not minimum_rsa_exponent <= exponent <= MAXIMUM_RSA_EXPONENT or exponent % 2 == 0:
                shown = exponent if exponent <= MAXIMUM_RSA_EXPONENT else f"of {exponent.bit_length()} bits"
                raise InvalidKeyError(
                    f"RSA key with exponent {shown}: odd ones from {minimum_rsa_exponent} to {MAXIMUM_RSA_EXPONENT} "
                    "are accepted (minimum_rsa_exponent lowers the bar)"
                )
            return intern(f"rsa{bits}"), "rsa"  # one string for all keys of a fleet
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return "p256", "ecdsa"
        case ed25519.Ed25519PublicKey():
            return "ed25519", "ed25519"
        case mldsa.MLDSA44PublicKey():
            return "mldsa44", "mldsa"
        case mldsa.MLDSA65PublicKey():
            return "mldsa65", "mldsa"
        case _:
            kind = type(public).__name__
            raise InvalidKeyError(f"{kind} is no signing key of a known scheme ({', '.join(SCHEMES)})")


def _blocks(pem: bytes | str, what: str, ending: bytes) -> list[bytes]:
    """Return the one or two blocks of PEM text whose label ends so; the others are of no concern (RFC 7468)."""
    if not isinstance(pem, bytes | str):
        raise TypeError(f"a PEM is bytes or str, not {type(pem).__name__}")
    text = pem.encode(errors="replace") if isinstance(pem, str) else pem
    if not text.strip():
        raise InvalidKeyError(f"{what}: the PEM is empty")
    found = _split(text, what)
    blocks = [block for label, block in found if label.endswith(ending)]
    if not blocks:
        labels = ", ".join(sorted({label.decode("ascii", "backslashreplace") for label, _ in found}))
        raise InvalidKeyError(f"{what}: there is none, only {labels}")
    if len(blocks) > 2:
        raise InvalidKeyError(f"{what}: {len(blocks)} keys, expected a signing key and at most an X25519 key")
    return blocks


def _split(text: bytes, what: str) -> list[tuple[bytes, bytes]]:
    """Return all blocks of PEM text with their labels; InvalidKeyError unless each has its beginning and its end."""
    before, *parts = _PEM_LINE.split(text)
    lines = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))  # BEGIN or END, label, what follows
    if not lines:
        raise InvalidKeyError(f"{what}: not a PEM (no BEGIN and END lines)")
    begins, ends = lines[::2], lines[1::2]
    pairs = [(label, end) for (_, label, _), (_, end, _) in zip(begins, ends, strict=False)]
    outside = [before, *(following for _, _, following in ends)]
    if (
        len(begins) != len(ends)
        or any(kind != b"BEGIN" for kind, _, _ in begins)
        or any(kind != b"END" for kind, _, _ in ends)
        or any(label != end for label, end in pairs)
        or any(b"-----BEGIN " in rest for rest in outside)
    ):
        raise InvalidKeyError(f"{what}: a PEM block is cut off, or its BEGIN and END lines do not match")
    return [(label, b"-----BEGIN %b-----%b-----END %b-----\n" % (label, body, label)) for _, label, body in begins]


def _load(what: str, load: Callable[..., Any], *arguments: Any) -> Any:
    """Call one of ``cryptography``'s loaders; whatever it raises for bad input becomes InvalidKeyError."""
    try:
        return load(*arguments)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidKeyError(f"{what}: {error}") from None


def _secret(password: bytes | str | None) -> bytes | None:
    if isinstance(password, str):
        try:
            return password.encode()
        except UnicodeEncodeError:
            raise InvalidKeyError("the password has a lone surrogate, which is no text") from None
    if password is not None and type(password) is not bytes:
        raise InvalidKeyError(f"a password is bytes or str, not {type(password).__name__}")
    return password


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None


def _unusable(path: str | os.PathLike[str], error: OSError | ValueError) -> InvalidKeyError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return InvalidKeyError(f"{os.fspath(path) or 'an empty path'}: {reason}")


def _named(path: str | os.PathLike[str], error: InvalidKeyError) -> InvalidKeyError:
    return InvalidKeyError(f"{os.fspath(path)}: {error}")


def _pem(der: bytes) -> bytes:
    """Return the PEM text of a public key in DER form, without a look into it."""
    text = b2a_base64(der, newline=False)
    lines = b"\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return b"-----BEGIN PUBLIC KEY-----\n%b\n-----END PUBLIC KEY-----\n" % lines


class PublicKey:
    """A registered public key: the scheme, the verifier and, without RSA, the X25519 key that values are sealed to.

    Equal when the keys are equal. Loading takes longer than verifying: load once and keep it. ``scheme`` is its name
    in SCHEMES, ``verifier`` what checks signatures, prepared at the first use.
    """

    __slots__ = ("__weakref__", "_algorithm", "_der", "_sealing", "scheme", "verifier")
    verifier: srup_native.Verifier

    def __init__(self, public: Any, sealing: x25519.X25519PublicKey | None, scheme: str, algorithm: str) -> None:
        self._der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self._sealing = sealing.public_bytes_raw() if sealing else None
        self._algorithm = algorithm
        self.scheme = scheme

    @classmethod
    def from_pem(
        cls,
        pem: bytes | str,
        minimum_rsa_bits: int = MINIMUM_RSA_BITS,
        minimum_rsa_exponent: int = MINIMUM_RSA_EXPONENT,
    ) -> Self:
        """Load SubjectPublicKeyInfo (or PKCS #1) text, with an X25519 key behind it where there is one.

        Blocks that hold no public key, such as a certificate, may stand in the same text. Raises InvalidKeyError for
        junk, another kind of key and RSA keys that are weaker than the minima (T7) or cost too much to verify with.
        """
        signing, *sealing = _blocks(pem, "public key", _PUBLIC)
        public = _load("public key", serialization.load_pem_public_key, signing)
        scheme, algorithm = _scheme_of(public, minimum_rsa_bits, minimum_rsa_exponent)
        exchange = _load("sealing key", serialization.load_pem_public_key, sealing[0]) if sealing else None
        if exchange is not None and not isinstance(exchange, x25519.X25519PublicKey):
            raise InvalidKeyError("sealing key: the second block must be an X25519 key")
        return cls(public, exchange, scheme, algorithm)

    @classmethod
    def load(cls, path: str | os.PathLike[str], minimum_rsa_bits: int = MINIMUM_RSA_BITS) -> Self:
        """Read a PEM file; errors are InvalidKeyError and name the path."""
        pem = _read(path)
        try:
            return cls.from_pem(pem, minimum_rsa_bits)
        except InvalidKeyError as error:
            raise _named(path, error) from None

    def to_pem(self) -> bytes:
        """Return SubjectPublicKeyInfo text; a second block holds the X25519 key where there is one."""
        return _pem(self._der) + (_pem(_X25519 + self._sealing) if self._sealing is not None else b"")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the PEM file with mode 0644, replacing an old one in one step."""
        _write(path, self.to_pem(), PUBLIC)

    def __getattr__(self, name: str) -> srup_native.Verifier:
        if name != "verifier":
            raise AttributeError(f"a PublicKey has no {name!r}")
        # A filled slot is found without a call, and a key of a large fleet takes a third less memory than with a dict.
        self.verifier = srup_native.verifier(self._algorithm, self._der)
        return self.verifier

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the DER form in hex, for people to compare."""
        digest = Hash(SHA256())
        digest.update(self._der + (self._sealing or b""))
        return digest.finalize().hex()

    @property
    def signing_fingerprint(self) -> str:
        """The same of the signing key alone, whatever X25519 key stands beside it."""
        digest = Hash(SHA256())
        digest.update(self._der)
        return digest.finalize().hex()

    def sealing_key(self) -> rsa.RSAPublicKey | x25519.X25519PublicKey | None:
        """Return the key that values for this identity are sealed to; None when it has none (see srup.seal)."""
        if self._algorithm == "rsa":
            key = serialization.load_der_public_key(self._der)
            assert isinstance(key, rsa.RSAPublicKey)  # noqa: S101 - the algorithm says so
            return key
        return x25519.X25519PublicKey.from_public_bytes(self._sealing) if self._sealing else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PublicKey):
            return NotImplemented
        return (self._der, self._sealing) == (other._der, other._sealing)

    def __hash__(self) -> int:
        return hash((self._der, self._sealing))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.to_pem(),)

    def __repr__(self) -> str:
        return f"<PublicKey {self.scheme} {self.fingerprint[:16]}>"


def _unpickle(pem: bytes) -> PublicKey:
    return PublicKey.from_pem(pem, minimum_rsa_bits=0, minimum_rsa_exponent=0)


class PrivateKey:
    """The key that signs for one identity and opens what was sealed to it. Never shown, never pickled."""

    def __init__(
        self, private: Any, sealing: x25519.X25519PrivateKey | None, minimum_rsa_bits: int, minimum_rsa_exponent: int
    ) -> None:
        public = private.public_key()
        scheme, algorithm = _scheme_of(public, minimum_rsa_bits, minimum_rsa_exponent)
        self._private = private
        self._sealing = sealing
        self._algorithm = algorithm
        self.public_key = PublicKey(public, sealing.public_key() if sealing else None, scheme, algorithm)
        self.scheme = scheme

    @classmethod
    def generate(cls, scheme: str = "rsa2048") -> Self:
        """Make a new key (see SCHEMES); RSA takes 0.1 s and more. Raises InvalidKeyError for an unknown scheme."""
        entry = SCHEMES.get(scheme) if isinstance(scheme, str) else None
        if entry is None:
            raise InvalidKeyError(f"unknown scheme {scheme!r}; there are {', '.join(SCHEMES)}")
        try:
            private = entry.generate()
        except UnsupportedAlgorithm as error:
            raise InvalidKeyError(f"{scheme} is not to be had with this OpenSSL: {error}") from None
        sealing = None if entry.algorithm == "rsa" else x25519.X25519PrivateKey.generate()
        return cls(private, sealing, MINIMUM_RSA_BITS, MINIMUM_RSA_EXPONENT)

    @classmethod
    def from_pem(
        cls,
        pem: bytes | str,
        password: bytes | str | None = None,
        minimum_rsa_bits: int = MINIMUM_RSA_BITS,
        minimum_rsa_exponent: int = MINIMUM_RSA_EXPONENT,
    ) -> Self:
        """Load PKCS #8 or traditional text, with an X25519 key behind it where there is one.

        Blocks that hold no private key, such as parameters and certificates, may stand in the same text. Raises
        InvalidKeyError for junk, a wrong, missing or superfluous password, another kind of key, and RSA keys that are
        weaker than the minima (T7) or cost too much to verify with.
        """
        secret = _secret(password)
        signing, *sealing = _blocks(pem, "private key", _PRIVATE)
        private = _load("private key", serialization.load_pem_private_key, signing, secret)
        exchange = _load("sealing key", serialization.load_pem_private_key, sealing[0], secret) if sealing else None
        if exchange is not None and not isinstance(exchange, x25519.X25519PrivateKey):
            raise InvalidKeyError("sealing key: the second block must be an X25519 key")
        return cls(private, exchange, minimum_rsa_bits, minimum_rsa_exponent)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        password: bytes | str | None = None,
        minimum_rsa_bits: int = MINIMUM_RSA_BITS,
    ) -> Self:
        """Read a PEM file; errors are InvalidKeyError and name the path."""
        pem = _read(path)
        try:
            return cls.from_pem(pem, password, minimum_rsa_bits)
        except InvalidKeyError as error:
            raise _named(path, error) from None

    def to_pem(self, password: bytes | str | None = None) -> bytes:
        """Return PKCS #8 text, encrypted when a password is given; a second block holds the X25519 key if any."""
        secret = _secret(password)
        if secret is not None and not secret:
            raise InvalidKeyError("the password is empty; give None to leave the key unencrypted")
        encryption = _load("password", serialization.BestAvailableEncryption, secret) if secret else _UNENCRYPTED
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        keys = [key for key in (self._private, self._sealing) if key is not None]
        return b"".join([_load("password", key.private_bytes, *form) for key in keys])

    def save(self, path: str | os.PathLike[str], password: bytes | str | None = None) -> None:
        """Write the PEM file with mode 0600, replacing an old one in one step."""
        _write(path, self.to_pem(password), PRIVATE)

    @cached_property
    def _signer(self) -> srup_native.Signer:
        der = self._private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return srup_native.signer(self._algorithm, der)

    def sign(self, signed: bytes) -> bytes:
        """Return the signature over the SHA-256 of ``signed``."""
        return self._signer.sign(signed)

    def sign_many(self, signeds: Sequence[bytes], threads: int = 1, lanes: bool | None = None) -> list[bytes]:
        """Return the signature over the SHA-256 of each of ``signeds``, in order (see :func:`srup.sign_many`)."""
        return srup_native.sign_many(self._signer, signeds, threads, lanes)

    def unsealing_key(self) -> rsa.RSAPrivateKey | x25519.X25519PrivateKey | None:
        """Return the key that opens what was sealed to this identity; None when it has none (see srup.seal)."""
        return self._private if self._algorithm == "rsa" else self._sealing

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a private key is not pickled; use to_pem() with a password")

    def __repr__(self) -> str:
        return f"<PrivateKey {self.scheme} of {self.public_key.fingerprint[:16]}>"


def _write(path: str | os.PathLike[str], content: bytes, mode: int) -> None:
    """Replace a file (see srup.files); a link is followed. InvalidKeyError names the path."""
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_file():
            raise InvalidKeyError(f"{os.fspath(path) or 'an empty path'}: not a file")
        write_file(target, content, mode)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
