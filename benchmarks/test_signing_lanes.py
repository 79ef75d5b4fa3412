"""Batches of other schemes than RSA-2048, and batches that are signed: in lanes of crypto_mb (extra ``multibuffer``).

``verify`` goes over messages of 256 devices, each with a key of its own; a mixed batch has equal parts of RSA-2048,
P-256 and Ed25519 in no order. ``cryptography`` is a loop as in the table above, and makes no message. ``sign`` is one
key: ``encode`` is a loop over ``srup.encode``, and in lanes each signature is verified as well. All figures are per
message.
"""

import random
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

import srup
from srup import KeyRing, PrivateKey, sign_many, verify_many

from .conftest import Aim
from .material import rsa_keys
from .test_signing_many import split

MESSAGES = 256
BATCH = 64  # that is signed
MIXED = ("rsa2048", "p256", "ed25519")
KINDS = ("p256", "ed25519", "mixed")
AIMS = [
    Aim("verify p256, batches of 256", "verify_many", "cryptography", 3.2),
    Aim("verify ed25519, batches of 256", "verify_many", "cryptography", 8),
    Aim("verify mixed, batches of 256", "verify_many", "cryptography", 6),
    Aim("sign rsa2048, batches of 64", "sign_many in lanes", "encode", 2.8),
]

pytestmark = pytest.mark.table("many messages of other schemes, and signing many", "µs", "cryptography")


def verifying(public: Any, scheme: str) -> Callable[[bytes, bytes], None]:
    """Return verify(signature, signed) as one writes it with ``cryptography``."""
    if scheme == "ed25519":
        return lambda signature, signed: public.verify(signature, sha256(signed).digest())
    arguments = (PKCS1v15(), SHA256()) if scheme == "rsa2048" else (ECDSA(SHA256()),)
    return lambda signature, signed: public.verify(signature, signed, *arguments)


class Crowd:
    """As many senders as messages, each with a key of its own."""

    def __init__(self, kind: str) -> None:
        schemes = [MIXED[number % 3] if kind == "mixed" else kind for number in range(MESSAGES)]
        of_rsa = iter(rsa_keys(schemes.count("rsa2048")))
        keys: dict[int, PrivateKey] = {}
        for sender, scheme in enumerate(schemes):
            rsa = scheme == "rsa2048"
            keys[sender] = PrivateKey(next(of_rsa), None, 2048, 65537) if rsa else PrivateKey.generate(scheme)
        self.ring = KeyRing({sender: key.public_key for sender, key in keys.items()})
        self.wires = [srup.encode(message(sender), key) for sender, key in keys.items()]
        random.Random(1).shuffle(self.wires)
        self.publics = {
            sender: verifying(load_pem_public_key(key.public_key.to_pem()), key.scheme)  # the first block
            for sender, key in keys.items()
        }

    def loop(self) -> None:
        """Verify with ``cryptography``."""
        publics = self.publics
        for wire in self.wires:
            sender, signature, signed = split(wire)
            publics[sender](signature, signed)


def message(number: int) -> srup.Data:
    """Return a message such as devices send."""
    return srup.Data(sequence_id=1 + number, sender_id=number, token=b"t" * 46, data_id="temperature", data=b"20.0")


crowd = cache(Crowd)


def need(*kinds: str) -> None:
    """Skip unless these lanes can be used."""
    for kind in kinds:
        lanes = srup.backend_info().lanes[kind]
        if not (lanes.active or lanes.reason.startswith("ready")):
            pytest.skip(f"no lanes for {kind}: {lanes.reason}")


@pytest.mark.parametrize("kind", KINDS)
def test_cryptography(kind: str, measure: Any) -> None:
    """A careful loop."""
    measure(f"verify {kind}, batches of 256", "cryptography", crowd(kind).loop, calls=1, items=MESSAGES)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_many(kind: str, measure: Any) -> None:
    """One thread."""
    need(*(MIXED if kind == "mixed" else (kind,)))
    all_of_them = crowd(kind)
    case = f"verify {kind}, batches of 256"
    results = measure(case, "verify_many", verify_many, all_of_them.wires, all_of_them.ring, calls=1, items=MESSAGES)
    assert {type(result) for result in results} == {srup.Data}


@pytest.mark.parametrize("kind", KINDS)
def test_without_lanes(kind: str, measure: Any) -> None:
    """The same by OpenSSL alone."""
    need(*(MIXED if kind == "mixed" else (kind,)))
    from srup_native import _verify

    all_of_them = crowd(kind)
    try:
        for lanes in MIXED:
            _verify.use_lanes(lanes, False)
        case = f"verify {kind}, batches of 256"
        measure(case, "lanes off", verify_many, all_of_them.wires, all_of_them.ring, calls=1, items=MESSAGES)
    finally:
        for lanes in MIXED:
            _verify.use_lanes(lanes, True)


SIGNING = {
    "encode": lambda messages, key: [srup.encode(one, key) for one in messages],
    "sign_many": lambda messages, key: sign_many(messages, key, lanes=False),
    "sign_many, 2 threads": lambda messages, key: sign_many(messages, key, 2, lanes=False),
    "sign_many in lanes": lambda messages, key: sign_many(messages, key, lanes=True),
    "sign_many in lanes, 2 threads": lambda messages, key: sign_many(messages, key, 2, lanes=True),
}


@pytest.mark.parametrize("contender", ["cryptography", *SIGNING])
def test_sign(contender: str, vectors: Any, measure: Any) -> None:
    """One key signs for many."""
    if "lanes" in contender:
        need("sign rsa2048")
    pem = vectors.private_pem(2048)
    key = PrivateKey.from_pem(pem)
    messages = [message(number) for number in range(BATCH)]
    case = f"sign rsa2048, batches of {BATCH}"
    if contender == "cryptography":
        private: Any = load_pem_private_key(pem, None)
        signeds = [split(wire)[2] for wire in sign_many(messages, key)]
        sign = lambda: [private.sign(signed, PKCS1v15(), SHA256()) for signed in signeds]  # noqa: E731
        measure(case, contender, sign, calls=1, items=BATCH)
        return
    wires = measure(case, contender, SIGNING[contender], messages, key, calls=1, items=BATCH)
    assert wires == [srup.encode(one, key) for one in messages]
