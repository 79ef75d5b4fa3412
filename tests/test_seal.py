"""Sealed values: who can open them, their form, and one error for everything that does not open."""

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from hypothesis import given
from hypothesis import strategies as st

from srup import PrivateKey, PublicKey, seal, unseal
from srup.errors import SealError
from srup.keys import SCHEMES
from srup.seal import MAX_PLAINTEXT

pytestmark = pytest.mark.backend

REFUSAL = "the sealed value does not open"
VALUE = b"6fb9e8d6c0f84d0f9b1a5f0f4a6f0c11"  # what peers send: uuid4().hex
NOT_RSA = [scheme for scheme in SCHEMES if not scheme.startswith("rsa")]


def refuse(sealed, key):
    """The value must not open, and the error must not tell why."""
    with pytest.raises(SealError) as caught:
        unseal(sealed, key)
    assert caught.value.args == (REFUSAL,)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def i32(value):
    return value.to_bytes(4, "little", signed=True)


def envelope(key, plaintext=VALUE, secret=bytes(32), padding=None):
    """An envelope made by hand, so that each part can be wrong."""
    padding = 16 - len(plaintext) % 16 if padding is None else padding
    encryptor = Cipher(
        AES(secret if len(secret) in (16, 24) else secret[:32].ljust(32, b"\0")), CBC(bytes(16))
    ).encryptor()
    content = encryptor.update(plaintext + bytes([padding]) * (16 - len(plaintext) % 16)) + encryptor.finalize()
    wrapped = key.public_key.sealing_key().encrypt(secret, PKCS1v15())
    return [i32(len(wrapped)), wrapped, bytes(16), i32(len(content)), i32(len(plaintext)), content]


@pytest.fixture(scope="session")
def rsa_key(scheme_keys):
    return scheme_keys["rsa2048"]


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 100, 4096, MAX_PLAINTEXT])
def test_round_trip(key, size):
    plaintext = bytes(index % 251 + 1 for index in range(size))
    sealed = seal(plaintext, key.public_key)
    assert type(sealed) is bytes
    assert unseal(sealed, key) == plaintext
    assert plaintext == b"" or plaintext not in sealed or size < 4
    assert seal(plaintext, key.public_key) != sealed


def test_the_form_of_an_envelope(rsa_key):
    """docs/protocol/wire-format.md#w-31: klen | wrapped key | IV | clen | plen | ciphertext."""
    for size in (0, 15, 16, 31, 32, 33, 48):
        sealed = seal(b"x" * size, rsa_key.public_key)
        clen = 16 * (size // 16 + 1)
        assert sealed[:4] == i32(256)
        assert sealed[276:280] == i32(clen)
        assert sealed[280:284] == i32(size)
        assert len(sealed) == 284 + clen


def test_the_limit_is_that_of_deployed_peers(key):
    assert MAX_PLAINTEXT == 4111
    with pytest.raises(SealError, match=r"^the plaintext has 4112 bytes; 4111 are possible$"):
        seal(bytes(4112), key.public_key)


@pytest.mark.parametrize("plaintext", ["text", None, bytearray(b"x"), 5], ids=repr)
def test_only_bytes_are_sealed(key, plaintext):
    with pytest.raises(SealError, match=rf"^the plaintext must be bytes, not {type(plaintext).__name__}$"):
        seal(plaintext, key.public_key)


def test_no_other_key_opens(scheme_keys, vector_keys):
    keys = {**scheme_keys, "another rsa2048": vector_keys["B2048"], "another p256": PrivateKey.generate("p256")}
    for name, key in keys.items():
        sealed = seal(VALUE, key.public_key)
        for other in keys:
            if other != name:
                refuse(sealed, keys[other])
        assert unseal(sealed, key) == VALUE


@pytest.mark.parametrize("scheme", NOT_RSA)
def test_every_change_of_an_hpke_value_is_refused(scheme, scheme_keys):
    key = scheme_keys[scheme]
    sealed = seal(VALUE, key.public_key)
    for at in range(len(sealed)):
        refuse(sealed[:at], key)
        if at != 31:  # the top bit of an X25519 share is ignored (RFC 7748), the other bits are changed below
            refuse(sealed[:at] + bytes([sealed[at] ^ 0x80]) + sealed[at + 1 :], key)
        refuse(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], key)
    refuse(sealed + b"\0", key)


def test_every_cut_and_wrong_length_of_an_envelope_is_refused(rsa_key):
    parts = envelope(rsa_key)
    sealed = b"".join(parts)
    assert unseal(sealed, rsa_key) == VALUE  # made by hand, it is a good one
    for size in range(len(sealed)):
        refuse(sealed[:size], rsa_key)
    refuse(sealed + b"\0", rsa_key)
    refuse(sealed + bytes(16), rsa_key)
    for part in (0, 3, 4):
        for value in (-1, 0, 1, 15, 16, 31, 33, 255, 257, 2**31 - 1, -(2**31)):
            refuse(b"".join([*parts[:part], i32(value), *parts[part + 1 :]]), rsa_key)


@pytest.mark.parametrize("padding", [0, 15, 17, 255])
def test_bad_padding_is_refused(rsa_key, padding):
    refuse(b"".join(envelope(rsa_key, padding=padding)), rsa_key)


@pytest.mark.parametrize("size", [0, 1, 16, 24, 31, 33, 64])
def test_wrapped_keys_of_another_length_are_refused(rsa_key, size):
    refuse(b"".join(envelope(rsa_key, secret=bytes(size))), rsa_key)


def test_a_plaintext_of_another_length_than_it_says_is_refused(rsa_key):
    parts = envelope(rsa_key, VALUE + b"x")
    assert unseal(b"".join(parts), rsa_key) == VALUE + b"x"
    for size in (32, 34, 47):
        refuse(b"".join([*parts[:4], i32(size), parts[5]]), rsa_key)


@given(junk=st.one_of(st.binary(max_size=600), st.sampled_from([None, "text", 5, [], bytearray(3)])))
def test_junk_is_refused(scheme_keys, junk):
    for scheme in ("rsa2048", "p256"):
        refuse(junk, scheme_keys[scheme])


def test_a_key_that_nothing_can_be_sealed_to(scheme_keys):
    signing_only = scheme_keys["p256"].public_key.to_pem().split(b"-----END PUBLIC KEY-----\n")[0]
    public = PublicKey.from_pem(signing_only + b"-----END PUBLIC KEY-----\n")
    with pytest.raises(SealError, match=r"^no X25519 key is registered beside this p256 key$"):
        seal(VALUE, public)
    private = scheme_keys["p256"].to_pem().split(b"-----END PRIVATE KEY-----\n")[0] + b"-----END PRIVATE KEY-----\n"
    refuse(seal(VALUE, scheme_keys["p256"].public_key), PrivateKey.from_pem(private))


def test_hpke_is_the_suite_of_the_protocol(scheme_keys):
    """docs/protocol/wire-format.md#w-32: RFC 9180 base mode, X25519, HKDF-SHA256, AES-256-GCM; step by step."""
    key = scheme_keys["ed25519"]
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    sealed = seal(VALUE, key.public_key)
    assert len(sealed) == 32 + len(VALUE) + 16
    assert suite.decrypt(sealed, key.unsealing_key(), b"SRUP-v5 seal") == VALUE
    assert unseal(suite.encrypt(VALUE, key.public_key.sealing_key(), b"SRUP-v5 seal"), key) == VALUE
    refuse(suite.encrypt(VALUE, key.public_key.sealing_key(), b"SRUP-v5"), key)
