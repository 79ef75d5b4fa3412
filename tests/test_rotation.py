"""The offer of a new key: its exact bytes, who may make it, and the refusal of everything that only looks like it."""

import hashlib
from dataclasses import dataclass
from math import gcd

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from srup.errors import InvalidKeyError, PolicyError
from srup.keyring import KeyRing
from srup.keys import PrivateKey, PublicKey
from srup.rotation import check, check_succession, offer

OWNER, PARTNER = 0xD1, 0xA5
NOW = 1_800_000_000.0


@dataclass
class Keys:
    """An old key, its successor and somebody else's."""

    old: PrivateKey
    new: PrivateKey
    other: PrivateKey

    def offer(self, identity=OWNER, partner=PARTNER):
        return offer(identity, partner, self.old.public_key, self.new)

    def check(self, data, identity=OWNER, partner=PARTNER):
        return check(data, identity, partner, self.old.public_key)


@pytest.fixture(scope="module")
def keys():
    return Keys(*(PrivateKey.generate("ed25519") for _ in range(3)))


def proof_over(text, key):
    proof = key.sign(text)
    return len(proof).to_bytes(2, "big") + proof


def public(key):
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def der(key):
    """What a fingerprint is taken of: SubjectPublicKeyInfo, and behind it the 32 bytes of the X25519 key, if any."""
    end = b"-----END PUBLIC KEY-----\n"
    blocks = [serialization.load_pem_public_key(block + end) for block in key.public_key.to_pem().split(end)[:-1]]
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return blocks[0].public_bytes(*form) + b"".join(key.public_bytes_raw() for key in blocks[1:])


def test_the_written_form(scheme_keys):
    """Part of the wire contract, so it is put together by hand here."""
    old, new = scheme_keys["ed25519"], scheme_keys["rsa2048"]  # the signatures of RSA are always the same
    prints = [hashlib.sha256(der(key)).hexdigest() for key in (old, new)]
    text = "\n".join(["SRUP-v5 key rotation", "d1", "a5", *prints, ""]).encode()
    assert offer(OWNER, PARTNER, old.public_key, new) == proof_over(text, new) + new.public_key.to_pem()
    assert offer(OWNER, PARTNER, old.public_key, new)[:2] == b"\1\0"


def test_every_scheme_follows_every_other(scheme_keys):
    for old in scheme_keys.values():
        for new in scheme_keys.values():
            if new is old:
                continue
            data = offer(0, 2**64 - 1, old.public_key, new)
            assert check(data, 0, 2**64 - 1, old.public_key) == new.public_key
            assert len(data) < 8000  # it fits a message with any signature


def test_an_offer_is_for_one_owner_one_partner_and_one_old_key(keys):
    data = keys.offer()
    assert keys.check(data) == keys.new.public_key
    for wrong in ((PARTNER, OWNER), (OWNER, PARTNER + 1), (OWNER + 1, PARTNER)):
        with pytest.raises(PolicyError, match=r"^the proof is not one of the new key for "):
            keys.check(data, *wrong)
    with pytest.raises(PolicyError, match="or for this old key"):
        check(data, OWNER, PARTNER, keys.other.public_key)


def test_a_key_that_the_offerer_does_not_have_is_refused(keys):
    data = keys.offer()
    proof, pem = data[:66], data[66:]
    assert pem == keys.new.public_key.to_pem()
    stolen = proof + keys.other.public_key.to_pem()
    with pytest.raises(PolicyError, match=r"^the proof is not"):
        keys.check(stolen)
    text = f"SRUP-v5 key rotation\nd1\na5\n{keys.old.public_key.fingerprint}\n{keys.new.public_key.fingerprint}\n"
    with pytest.raises(PolicyError, match=r"^the proof is not"):
        keys.check(proof_over(text.encode(), keys.old) + pem)  # the old key alone is not enough
    assert keys.check(proof_over(text.encode(), keys.new) + pem) == keys.new.public_key  # control


def test_the_proof_covers_the_x25519_key(keys):
    data = keys.offer()
    signing = data[66:].split(b"-----END PUBLIC KEY-----\n")[0] + b"-----END PUBLIC KEY-----\n"
    with pytest.raises(PolicyError, match=r"^the proof is not"):
        keys.check(data[:66] + signing + public(x25519.X25519PrivateKey.generate().public_key()))
    with pytest.raises(PolicyError, match=r"^the proof is not"):
        keys.check(data[:66] + signing)


def test_nothing_new_is_refused(keys):
    with pytest.raises(PolicyError, match=r"^the new key is the old one$"):
        offer(OWNER, PARTNER, keys.new.public_key, keys.new)
    with pytest.raises(PolicyError, match=r"^the new key is the old one$"):
        check(keys.offer(), OWNER, PARTNER, keys.new.public_key)


def test_every_prefix_is_refused(keys):
    data = keys.offer()
    for end in range(len(data)):
        with pytest.raises((PolicyError, InvalidKeyError)):
            keys.check(data[:end])


@given(st.data())
def test_every_change_is_refused(keys, draw):
    data = bytearray(keys.offer())
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))
    with pytest.raises((PolicyError, InvalidKeyError)):
        keys.check(bytes(data))


@given(st.binary(max_size=300))
def test_junk_is_refused(keys, junk):
    for data in (junk, junk + keys.new.public_key.to_pem(), keys.offer() + junk[:1] + b"\n", b"\0\0" + junk):
        with pytest.raises((PolicyError, InvalidKeyError)):
            keys.check(data)


def test_weak_and_costly_keys_are_refused(keys, vectors):
    """T7; and whoever owns a device must not be able to make its messages cost much (T9)."""
    weak = vectors["keys"]["C1024"]["public_pem"].encode()
    odd = rsa.generate_private_key(65537, 2056)
    for pem, reason in (
        (weak, "RSA key of 1024 bits"),
        (public(odd.public_key()), "rsa2056 is no scheme to change to"),
        (public(rsa.generate_private_key(3, 2048).public_key()), "RSA key with exponent 3"),
    ):
        with pytest.raises(InvalidKeyError, match=reason):
            keys.check(b"\0\1x" + pem)
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    costly = rsa.RSAPublicNumbers(numbers.n - 2, numbers.n).public_key()
    for load in (PublicKey.from_pem, lambda pem: keys.check(b"\0\1x" + pem)):  # nobody else may register it either
        with pytest.raises(InvalidKeyError, match="exponent of 2048 bits"):
            load(public(costly))


def test_what_may_be_registered_may_follow_a_key(keys):
    """One rule for exponents, wherever a key is loaded."""
    large = PrivateKey.from_pem(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    numbers = serialization.load_pem_private_key(large.to_pem(), None).private_numbers()
    phi = (numbers.p - 1) * (numbers.q - 1)
    exponent = next(e for e in range(65539, 1 << 17, 2) if gcd(e, phi) == 1)
    d = pow(exponent, -1, phi)
    other = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, d, d % (numbers.p - 1), d % (numbers.q - 1), numbers.iqmp,
        rsa.RSAPublicNumbers(exponent, numbers.public_numbers.n),
    ).private_key()  # fmt: skip
    new = PrivateKey.from_pem(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    data = offer(OWNER, PARTNER, keys.old.public_key, new)
    assert keys.check(data) == new.public_key


def test_a_weak_key_is_not_offered_either(keys, vectors):
    weak = PrivateKey.from_pem(vectors["keys"]["C1024"]["private_pem"], minimum_rsa_bits=1024)
    with pytest.raises(InvalidKeyError, match=r"^rsa1024 is no scheme to change to"):
        offer(OWNER, PARTNER, keys.old.public_key, weak)


def test_a_key_is_written_in_one_way(keys):
    data = keys.offer()
    for other in (data.replace(b"\n", b"\r\n"), data + b"\n", data[:66] + b"a comment\n" + data[66:]):
        with pytest.raises(InvalidKeyError):
            keys.check(other)


# Who may name a successor.


def test_only_the_key_that_counts_names_a_successor(keys):
    old, new, other = (key.public_key for key in (keys.old, keys.new, keys.other))
    ring = KeyRing({OWNER: old})
    check_succession(ring, OWNER, old, new, NOW)
    for signer in (new, other):
        with pytest.raises(PolicyError, match=r"^the key of d1 that signed this does not count any more"):
            check_succession(ring, OWNER, signer, other, NOW)
    ring.rotate(OWNER, new, NOW + 10)
    check_succession(ring, OWNER, new, other, NOW)
    check_succession(ring, OWNER, old, new, NOW + 9.9)  # its owner has missed the answer
    for signer, key, now in ((old, other, NOW), (old, new, NOW + 10), (other, new, NOW)):
        with pytest.raises(PolicyError, match="names no successor"):
            check_succession(ring, OWNER, signer, key, now)
    ring.remove(OWNER)
    with pytest.raises(PolicyError, match="names no successor"):
        check_succession(ring, OWNER, new, other, NOW)


def test_a_revoked_key_succeeds_nobody(keys):
    old, new = keys.old.public_key, keys.new.public_key
    ring = KeyRing({OWNER: old, 7: new})
    check_succession(ring, OWNER, old, new, NOW)  # control
    ring.revoke(7)
    with pytest.raises(PolicyError, match=r"was revoked; d1 needs another one$"):
        check_succession(ring, OWNER, old, new, NOW)
