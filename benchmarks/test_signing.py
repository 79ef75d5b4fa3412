"""Signatures: every scheme on both backends, beside ``cryptography`` alone with a loaded key, on the same bytes.

``cryptography`` gets the signed bytes in one piece and hashes and signs, or verifies, them. For srup, ``sign`` is
``srup.encode(message, key)`` and ``verify`` is ``srup.decode(wire).verify(key)``: from a message to the bytes that are
sent, and from those to the verified, typed message. ML-DSA is ``cryptography``'s on both backends. How fast the
extension signs depends on the libcrypto it is linked to, which need not be the one inside ``cryptography``.
"""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from types import ModuleType
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
    load_pem_private_key,
)

import srup
import srup_native
from srup.keys import SCHEMES

from .conftest import PURE, SRUP

pytestmark = [
    pytest.mark.table("signing", "µs", "cryptography"),
    pytest.mark.parametrize("contender", ["cryptography", SRUP, PURE]),
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
def fields(vectors: Any) -> dict[str, Any]:
    """Give the fields of the message that is signed."""
    return dict(vectors.message(MESSAGE)[1])


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


@cache
def own(api: ModuleType, key: Any) -> Any:
    """Return the key as that srup's."""
    return api.PrivateKey.from_pem(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_sign(api: ModuleType, key: Any, fields: Any, scheme: str, contender: str, measure: Any) -> None:
    """A message to signed bytes."""
    case = f"sign {scheme}"
    if api is None:
        sign, verify = alone(key, scheme)
        signed = srup_native.pack(srup.Initiate(**fields))
        verify(measure(case, contender, sign, signed, calls=1), signed)
        return
    message, private = api.Initiate(**fields), own(api, key)
    wire = measure(case, contender, api.encode, message, private, calls=1)
    assert api.decode(wire).verify(private.public_key) == message


def test_verify(api: ModuleType, key: Any, fields: Any, scheme: str, contender: str, measure: Any) -> None:
    """Received bytes to a verified message."""
    case = f"verify {scheme}"
    if api is None:
        sign, verify = alone(key, scheme)
        signed = srup_native.pack(srup.Initiate(**fields))
        measure(case, contender, verify, sign(signed), signed, calls=10)
        return
    message, private = api.Initiate(**fields), own(api, key)
    decode, public = api.decode, private.public_key
    wire = api.encode(message, private)
    assert measure(case, contender, lambda wire: decode(wire).verify(public), wire, calls=10) == message
