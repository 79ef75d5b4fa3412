"""Attacks on the codec layer by the rows of docs/protocol/threats.md: refused, and shown to work without the guard."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature

import srup
from srup.errors import DecodeError, InvalidKeyError, ReplayError, SignatureError
from srup.keys import SCHEMES
from srup.replay import ReplayWindow

pytestmark = pytest.mark.backend

MESSAGE = srup.Action(sequence_id=7, sender_id=0x51, token=b"a-token", action_id=3)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
GUARD_OFF = SimpleNamespace(verifier=SimpleNamespace(verify=lambda wire, offset, size: True))


def parts(wire):
    """Split a message into head (header and token), signature and body."""
    cut = 20 + int.from_bytes(wire[18:20], "big")
    end = cut + 2 + int.from_bytes(wire[cut : cut + 2], "big")
    return wire[:cut], wire[cut + 2 : end], wire[end:]


def with_signature(wire, signature):
    head, _, body = parts(wire)
    return head + len(signature).to_bytes(2, "big") + signature + body


def digest(data):
    context = hashes.Hash(hashes.SHA256())
    context.update(data)
    return context.finalize()


@pytest.fixture(scope="module")
def signed():
    """The bytes that the signature of MESSAGE covers."""
    return b"\5\4" + (7).to_bytes(8, "little") + (0x51).to_bytes(8, "little") + b"\0\7a-token" + b"\3"


@pytest.fixture
def public_key(twin, key):
    """The public half of ``key`` on the twin in turn."""
    return twin.public_key(key)


# --- T1


def test_t1_fast_forward_is_refused_before_it_changes_anything(vector_keys):
    """A forged message with the last sequence id must not lock out the real sender."""
    real, thief = vector_keys["A2048"], vector_keys["B2048"]
    forged = srup.encode(srup.Action(**{**dict(MESSAGE), "sequence_id": 2**64 - 1}), thief)
    window = ReplayWindow()

    def receive(wire, key):
        message = srup.decode(wire).verify(key)
        window.accept(message.sequence_id)
        return message

    with pytest.raises(SignatureError):
        receive(forged, real.public_key)
    assert (window.highest, window.seen) == (0, 1)
    assert receive(srup.encode(MESSAGE, real), real.public_key) == MESSAGE

    receive(forged, GUARD_OFF)  # without the signature's verdict the same message locks the sender out
    with pytest.raises(ReplayError, match=r"too old"):
        receive(srup.encode(srup.Action(**{**dict(MESSAGE), "sequence_id": 8}), real), real.public_key)


# --- T5


def test_t5_truncation_is_refused_at_every_byte(twin, key):
    schema, wire = twin.schema(), srup.encode(MESSAGE, key)
    for size in range(len(wire)):
        with pytest.raises(DecodeError):
            schema.decode(wire[:size])
    assert dict(schema.decode(wire).verify(GUARD_OFF)) == dict(MESSAGE)


def test_t5_lengths_that_reach_outside_are_refused(twin, key):
    schema, wire = twin.schema(), srup.encode(MESSAGE, key)
    head, signature, _ = parts(wire)
    for at, size in ((18, 7), (len(head), len(signature))):
        for claimed in {size - 1, size + 1, size + 2, 0x7FFF, 0x8000, 0xFFFF}:
            with pytest.raises((DecodeError, SignatureError)):
                schema.decode(wire[:at] + claimed.to_bytes(2, "big") + wire[at + 2 :]).verify(twin.public_key(key))


def test_t5_a_verifier_reads_inside_the_message_only(public_key):
    wire = bytes(100)
    for offset, size in (
        (0, 1),
        (1, 1),
        (2, 99),
        (101, 0),
        (100, 1),
        (50, -1),
        (-1, 1),
        (2**62, 2**62),
        (2, 2**63 - 1),
    ):
        with pytest.raises(ValueError, match=r"^the signature must lie inside the message$"):
            public_key.verifier.verify(wire, offset, size)
    for offset, size in ((2, 98), (100, 0), (2, 0)):
        assert public_key.verifier.verify(wire, offset, size) is False


# --- T6


def test_t6_every_bit_of_a_signature_counts(twin, key, public_key):
    wire = srup.encode(MESSAGE, key)
    schema = twin.schema()
    head, signature, _ = parts(wire)
    assert dict(schema.decode(wire).verify(public_key)) == dict(MESSAGE)
    step = max(1, len(signature) // 64)
    for at in range(0, len(signature), step):
        changed = bytearray(wire)
        changed[len(head) + 2 + at] ^= 1 << at % 8
        with pytest.raises(SignatureError):
            schema.decode(bytes(changed)).verify(public_key)


def test_t6_signatures_of_another_length(twin, key, public_key):
    wire = srup.encode(MESSAGE, key)
    schema = twin.schema()
    _, signature, _ = parts(wire)
    forms = [
        b"",
        b"\0",
        signature[:-1],
        signature[1:],
        signature + b"\0",
        b"\0" + signature,
        signature * 2,
        bytes(9000),
    ]
    for form in [*forms, bytes(len(signature)), b"\xff" * len(signature)]:
        with pytest.raises(SignatureError):
            schema.decode(with_signature(wire, form)).verify(public_key)


def test_t6_rsa_signature_plus_modulus(twin, vector_keys, signed):
    """s + n is the same number modulo n: a reader that only computes takes it."""
    key = vector_keys["A2048"]
    numbers = key.public_key.sealing_key().public_numbers()
    shifted = []
    for sequence_id in range(1, 60):
        wire = srup.encode(srup.Action(**{**dict(MESSAGE), "sequence_id": sequence_id}), key)
        number = int.from_bytes(parts(wire)[1], "big") + numbers.n
        if number < 1 << 2048:
            shifted.append((wire, number.to_bytes(256, "big")))
    assert shifted
    schema, public_key = twin.schema(), twin.public_key(key)
    for wire, signature in shifted:
        assert pow(int.from_bytes(signature, "big"), numbers.e, numbers.n) == pow(
            int.from_bytes(parts(wire)[1], "big"), numbers.e, numbers.n
        )
        with pytest.raises(SignatureError):
            schema.decode(with_signature(wire, signature)).verify(public_key)


def rsa_forms(private, signed):
    """What an RSA key can make of the same bytes that is not PKCS #1 v1.5 with SHA-256, by name."""
    numbers = private.private_numbers()
    modulus, size = numbers.public_numbers.n, private.key_size // 8
    prefix = bytes.fromhex("3031300d060960864801650304020105000420")
    short = bytes.fromhex("302f300b0609608648016503040201 0420".replace(" ", ""))
    block = prefix + digest(signed)
    fill = size - 3

    def raw(encoded):
        return pow(int.from_bytes(encoded.rjust(size, b"\0"), "big"), numbers.d, modulus).to_bytes(size, "big")

    yield "PSS", private.sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    yield "SHA-512", private.sign(signed, padding.PKCS1v15(), hashes.SHA512())
    yield "SHA-1", private.sign(signed, padding.PKCS1v15(), hashes.SHA1())
    yield "hashed twice", private.sign(digest(signed), padding.PKCS1v15(), hashes.SHA256())
    bare = digest(signed)
    yield "no DigestInfo", raw(b"\0\1" + b"\xff" * (fill - len(bare)) + b"\0" + bare)
    yield "DigestInfo without NULL", raw(b"\0\1" + b"\xff" * (fill - len(short) - 32) + b"\0" + short + bare)
    yield "block type 2", raw(b"\0\2" + b"\xff" * (fill - len(block)) + b"\0" + block)
    yield "padding of zeros", raw(b"\0\1" + b"\0" * (fill - len(block)) + b"\0" + block)
    yield "short padding, junk behind", raw(b"\0\1" + b"\xff" * 8 + b"\0" + block + bytes(size - 11 - len(block)))
    yield "no separator", raw(b"\0\1" + b"\xff" * (fill + 1 - len(block)) + block)
    yield "right", raw(b"\0\1" + b"\xff" * (fill - len(block)) + b"\0" + block)


def test_t6_other_padding_schemes(twin, vector_keys, signed):
    """The last form is the right one: it shows that the others fail for their form and not for their arithmetic."""
    key = vector_keys["A2048"]
    wire, schema, public_key = srup.encode(MESSAGE, key), twin.schema(), twin.public_key(key)
    reference = key.public_key.sealing_key()
    taken = []
    for name, signature in rsa_forms(key.unsealing_key(), signed):
        try:
            schema.decode(with_signature(wire, signature)).verify(public_key)
        except SignatureError:
            with pytest.raises(InvalidSignature):
                reference.verify(signature, digest(signed), padding.PKCS1v15(), Prehashed(hashes.SHA256()))
        else:
            taken.append(name)
    assert taken == ["right"]


def test_t6_ecdsa_encodings(twin, scheme_keys):
    """DER in one form only; that n - s verifies like s is the nature of ECDSA, and the replay window's business."""
    key = scheme_keys["p256"]
    schema, public_key = twin.schema(), twin.public_key(key)
    s = 0
    while not s >> 255:  # so that its DER has a zero in front, without which it is negative
        wire = srup.encode(MESSAGE, key)
        _, signature, _ = parts(wire)
        r, s = decode_dss_signature(signature)
    body = signature[2:]
    negative = body[: 2 + body[1]] + b"\2\x20" + s.to_bytes(32, "big")
    refused = {
        "raw": r.to_bytes(32, "big") + s.to_bytes(32, "big"),
        "long length": b"\x30\x81" + bytes([len(body)]) + body,
        "indefinite length": b"\x30\x80" + body + b"\0\0",
        "another tag": b"\x31" + signature[1:],
        "junk behind": signature + b"\0",
        "junk inside": bytes([0x30, len(body) + 2]) + body + b"\5\0",
        "padded r": bytes([0x30, len(body) + 1, 2, body[1] + 1, 0]) + body[2:],
        "s + n": encode_dss_signature(r, s + ORDER),
        "r + n": encode_dss_signature(r + ORDER, s),
        "s = 0": encode_dss_signature(r, 0),
        "r = s = 0": encode_dss_signature(0, 0),
        "r = n": encode_dss_signature(ORDER, s),
        "negative s": b"\x30" + bytes([len(negative)]) + negative,
    }
    taken = []
    for name, form in refused.items():
        with suppress(SignatureError):
            schema.decode(with_signature(wire, form)).verify(public_key)
            taken.append(name)
    assert not taken
    mirrored = schema.decode(with_signature(wire, encode_dss_signature(r, ORDER - s))).verify(public_key)
    window = ReplayWindow()
    window.accept(MESSAGE.sequence_id)
    with pytest.raises(ReplayError):
        window.accept(mirrored.sequence_id)


def test_t6_ed25519_with_s_beyond_its_order(twin, scheme_keys):
    """S + L is the same scalar; RFC 8032 wants it refused."""
    key = scheme_keys["ed25519"]
    wire, schema, public_key = srup.encode(MESSAGE, key), twin.schema(), twin.public_key(key)
    _, signature, _ = parts(wire)
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(SignatureError):
        schema.decode(with_signature(wire, signature[:32] + scalar.to_bytes(32, "little"))).verify(public_key)
    assert dict(schema.decode(wire).verify(public_key)) == dict(MESSAGE)


def test_t6_the_signature_covers_everything_else(twin, key, public_key):
    wire, schema = srup.encode(MESSAGE, key), twin.schema()
    head, signature, _ = parts(wire)
    body = len(head) + 2 + len(signature)
    for at in [*range(2, 18), *range(20, len(head)), *range(body, len(wire))]:
        changed = bytearray(wire)
        changed[at] ^= 0x10
        frame = schema.decode(bytes(changed))
        with pytest.raises(SignatureError):
            frame.verify(public_key)
        assert dict(frame.verify(GUARD_OFF)) != dict(MESSAGE)  # which is what a reader without the guard would act on


def test_t6_a_signature_does_not_move_to_another_type(twin, key, public_key):
    """The body of a Response has the form of an Action's: only the signed type byte tells them apart."""
    wire = srup.encode(MESSAGE, key)
    frame = twin.schema().decode(wire[:1] + b"\2" + wire[2:])
    with pytest.raises(SignatureError):
        frame.verify(public_key)
    assert frame.verify(GUARD_OFF).status == MESSAGE.action_id


# --- T7


@pytest.mark.parametrize("other", list(SCHEMES))
def test_t7_a_signature_of_another_scheme(twin, key, public_key, scheme_keys, other):
    """Every scheme's signature presented for every key: the registered key decides, the message has no say."""
    wire, schema = srup.encode(MESSAGE, scheme_keys[other]), twin.schema()
    if other == key.scheme:
        assert dict(schema.decode(wire).verify(public_key)) == dict(MESSAGE)
    else:
        with pytest.raises(SignatureError):
            schema.decode(wire).verify(public_key)


def test_t7_a_key_cannot_be_prepared_for_another_algorithm(twin, key):
    """``verifier`` itself refuses: a key that is taken for another kind would verify by the wrong rules."""
    from cryptography.hazmat.primitives import serialization as s

    der = s.load_pem_public_key(key.public_key.to_pem()).public_bytes(
        s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo
    )
    own = SCHEMES[key.scheme].algorithm
    for algorithm in {"rsa", "ecdsa", "ed25519", "mldsa"} - {own}:
        with pytest.raises(ValueError, match=r"^this is no key of the algorithm$"):
            twin.verify.verifier(algorithm, der)
    assert twin.verify.verifier(own, der)


def test_t7_weak_rsa_is_refused_where_keys_are_registered(vectors, vector_keys):
    """Lowered by hand, the same key works: it is the bar that keeps it out."""
    pem = vectors["keys"]["C1024"]["public_pem"]
    with pytest.raises(InvalidKeyError):
        srup.PublicKey.from_pem(pem)
    lowered = srup.PublicKey.from_pem(pem, minimum_rsa_bits=1024)
    assert srup.decode(srup.encode(MESSAGE, vector_keys["C1024"])).verify(lowered) == MESSAGE
