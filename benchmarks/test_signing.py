"""Signatures: every scheme on both backends, beside ``cryptography`` alone with a loaded key, on the same bytes.

``cryptography`` gets the signed bytes in one piece and hashes and signs, or verifies, them. srup's ``verify`` is
``Frame.verify``: it hashes the message around its signature and makes the typed message as well. ML-DSA is
``cryptography``'s on both backends. How fast the extension signs depends on the libcrypto it is linked to, which need
not be the one inside ``cryptography``.
"""

from collections.abc import Callable
from functools import cache, partial
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from srup.keys import SCHEMES

pytestmark = [
    pytest.mark.table("signing", "µs", "cryptography"),
    pytest.mark.parametrize("contender", ["cryptography", "python", "native"]),
    pytest.mark.parametrize("scheme", list(SCHEMES)),
]

MESSAGE = "open-0122"  # an Initiate with URL and digest
CONTEXT = b"SRUP-v5"  # of ML-DSA


@cache
def load(vectors: Any, scheme: str) -> Any:
    """Return a private key: the tests' own for RSA, where generating takes long, else a new one."""
    if scheme.startswith("rsa"):
        return load_pem_private_key(vectors.private_pem(int(scheme.removeprefix("rsa"))), None)
    try:
        return SCHEMES[scheme].generate()
    except UnsupportedAlgorithm:
        pytest.skip(f"{scheme} is not to be had with this OpenSSL")


@pytest.fixture
def key(vectors: Any, scheme: str) -> Any:
    """Give the private key of this case."""
    return load(vectors, scheme)


@pytest.fixture
def backend(twin: Any, contender: str) -> Any:
    """Give the twin of this case; the pure one makes the bytes for ``cryptography``."""
    return twin("python" if contender == "cryptography" else contender)


@pytest.fixture
def record(backend: Any, vectors: Any) -> Any:
    """Give the message that is signed."""
    code, fields = vectors.message(MESSAGE)
    return backend.schema[code](**fields)


def alone(key: Any, scheme: str) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], None]]:
    """Return sign(signed) and verify(signature, signed) as one writes them with ``cryptography``."""
    public = key.public_key()
    match SCHEMES[scheme].algorithm:
        case "rsa":
            arguments: tuple[Any, ...] = (PKCS1v15(), SHA256())
        case "ecdsa":
            arguments = (ECDSA(SHA256()),)
        case algorithm:
            more = (CONTEXT,) if algorithm == "mldsa" else ()
            return (
                lambda signed: key.sign(sha256(signed).digest(), *more),
                lambda signature, signed: public.verify(signature, sha256(signed).digest(), *more),
            )
    return (
        lambda signed: key.sign(signed, *arguments),
        lambda signature, signed: public.verify(signature, signed, *arguments),
    )


def make_signer(backend: Any, key: Any, scheme: str) -> Any:
    """Return the backend's signer."""
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return backend.verify.signer(SCHEMES[scheme].algorithm, der)


def test_sign(backend: Any, key: Any, record: Any, scheme: str, contender: str, measure: Any) -> None:
    """Signed bytes to a signature."""
    sign, verify = alone(key, scheme)
    if contender != "cryptography":
        sign = make_signer(backend, key, scheme).sign
    signed = backend.codec.pack(record)
    verify(measure(f"sign {scheme}", contender, sign, signed, calls=1), signed)


def test_verify(backend: Any, key: Any, record: Any, scheme: str, contender: str, measure: Any) -> None:
    """A frame to a verified message."""
    signed = backend.codec.pack(record)
    signature = make_signer(backend, key, scheme).sign(signed)
    run = partial(measure, f"verify {scheme}", contender, calls=10)
    if contender == "cryptography":
        run(alone(key, scheme)[1], signature, signed)
        return
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    public = SimpleNamespace(verifier=backend.verify.verifier(SCHEMES[scheme].algorithm, der))
    frame = backend.schema.decode(backend.codec.splice(signed, signature))
    assert run(frame.verify, public) == record
