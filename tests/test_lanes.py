"""Lanes of crypto_mb: they accept what OpenSSL accepts and nothing else, and whatever is wrong with them is found out.

Without the extra ``multibuffer``, or on a CPU without AVX512-IFMA, what needs the real library is skipped.
"""

import ctypes
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

import srup
import srup_native
from srup_native import _multibuffer, _verify_py

from .fuzz_verify import (
    ED25519_ORDER,
    ED25519_PRIME,
    P256_ORDER,
    SMALL_ORDER,
    cases,
    der,
    disagreements,
    other_keys,
)
from .lanes import ACCEPTS, FROM_LIBRARY, HONEST, NATIVE, NONSENSE, REFUSES, Faulty, compiled, need, reasons, switch
from .test_wycheproof import COUNTED, FOLDER

pytestmark = [pytest.mark.backend]
native = pytest.mark.skipif(not NATIVE, reason="the pure backend has no lanes")


def lying(test):
    """A test with a library that is compiled for it."""
    return pytest.mark.process(native(test))


SCHEMES = ("ed25519", "p256")
MIXED = (*SCHEMES, "rsa2048", "mldsa44")
KEYS = 10  # of each scheme: more than lanes


@pytest.fixture(scope="module")
def private():
    """Private keys by sender: scheme after scheme."""
    return {
        sender: srup.PrivateKey.generate(MIXED[sender // KEYS]) for sender in range(KEYS * len(MIXED)) if sender < 32
    }


@pytest.fixture(scope="module")
def ring(private):
    return {sender: key.public_key for sender, key in private.items()}


@pytest.fixture(scope="module")
def good(private):
    """A genuine message of each sender."""
    return {
        sender: srup.encode(srup.Data(sequence_id=1, sender_id=sender, token=b"token", data_id="x", data=b"y"), key)
        for sender, key in private.items()
    }


@pytest.fixture(autouse=True)
def restored():
    """Whatever a test does to the lanes, the next one has those of this machine."""
    yield
    if NATIVE:
        from srup_native import _verify

        _verify.open_library()
        for kind in _verify_py.LANES:
            _verify.use_lanes(kind, True)


@pytest.fixture
def faulty(tmp_path):
    return Faulty(compiled(tmp_path))


def senders(scheme):
    first = MIXED.index(scheme) * KEYS
    return range(first, first + KEYS)


def changed(wire):
    """The same message with another signature of the same form."""
    end = 27 + int.from_bytes(wire[25:27], "big")
    return wire[: end - 8] + bytes([wire[end - 8] ^ 1]) + wire[end - 7 :]


def verdicts(wires, ring, threads=1):
    return [type(one) for one in srup.verify_many(wires, ring, threads)]


# --- Batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 15, 16, 17])
def test_one_bad_message_at_each_place(good, ring, scheme, size):
    need(scheme)
    wires = [good[senders(scheme)[place % KEYS]] for place in range(size)]
    assert verdicts(wires, ring) == [srup.Data] * size
    for bad in range(size):
        batch = [changed(wire) if place == bad else wire for place, wire in enumerate(wires)]
        expected = [srup.SignatureError if place == bad else srup.Data for place in range(size)]
        assert verdicts(batch, ring) == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_mixed_batches_stay_in_order(good, ring, threads):
    draw = random.Random(threads)
    for size in (1, 2, 9, 47, 48, 49, 64, 250, 1100, 1500):
        chosen = draw.choices(list(good), k=size)
        wrong = [draw.random() < 0.2 for _ in chosen]
        stranger = draw.randrange(size)
        wires = [changed(good[sender]) if bad else good[sender] for sender, bad in zip(chosen, wrong, strict=True)]
        wires[stranger] = b"junk"
        results = srup.verify_many(wires, ring, threads)
        for place, (sender, bad, one) in enumerate(zip(chosen, wrong, results, strict=True)):
            if place == stranger:
                assert isinstance(one, srup.DecodeError)
            elif bad:
                assert isinstance(one, srup.SignatureError)
            else:
                assert one.sender_id == sender


@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_messages_of_one_key(good, ring, scheme):
    need(scheme)
    sender = senders(scheme)[0]
    assert set(verdicts([good[sender]] * 20_000, ring, 2)) == {srup.Data}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_pattern_of_eight_lanes(good, ring, scheme):
    need(scheme)
    wires = [good[sender] for sender in senders(scheme)[:8]]
    for pattern in range(256):
        batch = [changed(wire) if pattern >> lane & 1 else wire for lane, wire in enumerate(wires)]
        expected = [srup.SignatureError if pattern >> lane & 1 else srup.Data for lane in range(8)]
        assert verdicts(batch, ring) == expected


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_fork(good, ring, threads):
    wires = [*good.values(), *map(changed, good.values())] * 20
    expected = verdicts(wires, ring, threads)
    child = os.fork()
    if not child:
        os._exit(0 if verdicts(wires, ring, threads) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert verdicts(wires, ring, threads) == expected


# --- The lanes are used, and only for what they may be asked ----------------------------------------------------------


def in_message(signature, sender):
    signed = srup_native.pack(srup.Action(sequence_id=1, sender_id=sender, token=b"t", action_id=3))
    return srup_native.splice(signed, signature)


def hostile_ed25519(signature):
    """Signatures that must not be shown to the lanes, made of one that may."""
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    numbers = {"L": ED25519_ORDER, "s + L": s + ED25519_ORDER, "s + 8L": s + 8 * ED25519_ORDER, "ones": 2**256 - 1}
    for name, number in numbers.items():
        yield name, r + number.to_bytes(32, "little")
    for y in (ED25519_PRIME, ED25519_PRIME + 1, ED25519_PRIME + 2, ED25519_PRIME + 18):
        for sign in (0, 1):
            yield f"R of {y:x}, {sign}", (y | sign << 255).to_bytes(32, "little") + signature[32:]
    for point in SMALL_ORDER:
        yield f"small {point.hex()}", point + signature[32:]
        yield f"small, negative {point.hex()}", point[:31] + bytes([point[31] ^ 0x80]) + signature[32:]
    yield from (("short", signature[:63]), ("long", signature + b"\0"), ("empty", b""), ("double", signature * 2))


def integer(number, size):
    return b"\2" + bytes([size]) + number.to_bytes(size, "big")


def hostile_p256(signature):
    r, s = decode_dss_signature(signature)
    pairs = [(0, s), (r, 0), (P256_ORDER, s), (r, P256_ORDER), (r + P256_ORDER, s), (r, s + P256_ORDER), (2**256, s)]
    yield from ((f"r = {r:x}, s = {s:x}", encode_dss_signature(r, s)) for r, s in pairs)
    yield "r = -1", der(0x30, b"\2\1\xff" + integer(s, 33))
    yield "s = -1", der(0x30, integer(r, 33) + b"\2\1\xff")
    yield "a zero too many", der(0x30, integer(r, 34) + integer(s, 33))
    yield "the other number too long", der(0x30, integer(r, 33) + integer(s, 35))
    yield "a length in two bytes", b"\x30\x81" + signature[1:]
    yield "an inner length in two bytes", der(0x30, b"\2\x81\x21" + r.to_bytes(33, "big") + integer(s, 33))
    yield "indefinite", b"\x30\x80" + signature[2:] + b"\0\0"
    yield "a set", b"\x31" + signature[1:]
    yield "another type", signature[:2] + b"\3" + signature[3:]
    yield "behind", signature + b"\0"
    yield "behind, inside", der(0x30, signature[2:] + b"\5\0")
    yield "one number", der(0x30, integer(r, 33))
    yield "outer length too small", b"\x30" + bytes([signature[1] - 1]) + signature[2:]
    yield "plain", r.to_bytes(32, "big") + s.to_bytes(32, "big")
    yield "negative by its first bit", der(0x30, integer(r | 1 << 255, 32) + integer(s, 33))
    yield from (("cut", signature[:-1]), ("empty", b""), ("a sequence of nothing", b"\x30\0"), ("zeros", bytes(71)))
    for size in range(9):
        yield f"first {size}", signature[:size]


HOSTILE = {"ed25519": hostile_ed25519, "p256": hostile_p256}


@lying
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_may_not_be_shown_to_the_lanes_is_not(good, private, ring, faulty, scheme):
    """The lanes here say yes to all they are shown, once their self-test is over."""
    need(scheme)
    faulty.open()
    faulty.set(verifying=ACCEPTS)
    sender = senders(scheme)[0]
    signed = srup_native.pack(srup.Action(sequence_id=1, sender_id=sender, token=b"t", action_id=3))
    genuine = private[sender].sign(signed)
    forged = in_message(private[sender].sign(b"something else"), sender)
    assert verdicts([forged] * 8, ring) == [srup.Action] * 8  # they are asked, and believed
    passes = faulty.passes
    assert passes > 0
    bad = dict(HOSTILE[scheme](genuine))
    assert len(bad) > 25
    for name, signature in bad.items():
        assert verdicts([in_message(signature, sender)] * 8, ring) == [srup.SignatureError] * 8, name
    assert faulty.passes == passes


@lying
@pytest.mark.parametrize("place", range(24))
def test_only_proper_keys_are_shown_to_the_lanes(faulty, place):
    need("ed25519")
    faulty.open()
    keys = [point[:31] + bytes([point[31] ^ sign]) for point in SMALL_ORDER for sign in (0, 0x80)]
    keys += [number.to_bytes(32, "little") for number in range(ED25519_PRIME + 2, ED25519_PRIME + 10)]
    spki = bytes.fromhex("302a300506032b6570032100") + keys[place]
    ring = {1: type("Key", (), {"verifier": srup_native.verifier("ed25519", spki)})()}
    passes = faulty.passes
    srup.verify_many([in_message(bytes(63) + b"\1", 1)] * 8, ring)
    assert faulty.passes == passes


@lying
def test_only_keys_of_p256_are_shown_to_the_lanes(faulty):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    need("p256")
    faulty.open()
    passes = faulty.passes
    signed = srup_native.pack(srup.Action(sequence_id=1, sender_id=1, token=b"t", action_id=3))
    for curve in (ec.SECP256K1(), ec.SECP384R1(), ec.BrainpoolP256R1()):
        key = ec.generate_private_key(curve)
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        signature = key.sign(sha256(signed).digest(), ec.ECDSA(Prehashed(SHA256())))
        ring = {1: type("Key", (), {"verifier": srup_native.verifier("ecdsa", spki)})()}
        assert verdicts([srup_native.splice(signed, signature)] * 8, ring) == [srup.Action] * 8
    assert faulty.passes == passes


@lying
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_lanes_are_full(good, ring, faulty, scheme):
    """Eighty messages are ten passes; lanes that refuse them all cost time and nothing else."""
    need(scheme)
    faulty.open()
    before = faulty.passes
    wires = [good[sender] for sender in senders(scheme)] * 8  # 80: ten passes
    assert verdicts(wires, ring) == [srup.Data] * 80
    assert faulty.passes == before + 10
    faulty.set(verifying=REFUSES)
    assert verdicts(wires, ring) == [srup.Data] * 80  # a lane that only refuses costs time
    assert faulty.passes == before + 20


@lying
def test_mixed_batches_fill_the_lanes(good, ring, faulty):
    for scheme in SCHEMES:
        need(scheme)
    faulty.open()
    before = faulty.passes
    several = [good[sender] for scheme in (*SCHEMES, "rsa2048") for sender in senders(scheme)[:8]] * 8
    random.Random(3).shuffle(several)
    assert set(verdicts(several, ring)) == {srup.Data}
    assert faulty.passes == before + 16  # 64 messages of each scheme


@pytest.mark.process
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_a_bounded_number_of_fuzzed_cases(algorithm):
    """``make fuzz-verify ALGORITHM=... WITH_LANES=1`` runs many more."""
    rng = random.Random(21)
    for size in (1, 2, 7, 8, 9, 64, 65, 500, 1300):
        assert disagreements(list(cases(rng, size, algorithm=algorithm)), threads=1 + size % 2) == []


def test_keys_of_mixed_order():
    """A judge with the cofactor accepts all of these, one without it an eighth."""
    rng = random.Random(22)
    mixed = [(sender, key) for sender, key in enumerate(other_keys()) if key.name.endswith(" T")]
    assert len(mixed) == 4
    ring = {sender: key.public for sender, key in mixed}
    signed = [
        (key, srup_native.pack(srup.Action(sequence_id=number, sender_id=sender, token=b"t", action_id=1)))
        for number in range(64)
        for sender, key in mixed
    ]
    wires = [srup_native.splice(content, key.sign(content, rng)) for key, content in signed]
    alone = [key.oracle.verify(wire, 23, 64) for (key, _), wire in zip(signed, wires, strict=True)]
    assert {True, False} == set(alone)
    assert [one is srup.Action for one in verdicts(wires, ring)] == alone


# --- Wycheproof, by the lanes themselves ------------------------------------------------------------------------------


class Alone:
    """crypto_mb.c on its own, with the real library."""

    def __init__(self, folder: Path) -> None:
        sources = Path(__file__).parent.parent / "src" / "srup_native"
        path = folder / "crypto_mb.so"
        command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", str(sources / "crypto_mb.c"), "-o", str(path)]
        subprocess.run([*command, "-lcrypto", "-ldl"], check=True)
        self.library = ctypes.CDLL(str(path))
        self.library.crypto_mb_open.restype = ctypes.c_char_p
        paths = [os.fsencode(path) for path in _multibuffer.multibuffer_paths()]
        assert self.library.crypto_mb_open((ctypes.c_char_p * len(paths))(*paths), len(paths)) is None
        self.real = ctypes.CDLL(os.fsdecode(paths[-1]))

    def one(self, scheme, key, signature, digest):
        """Show a signature to all eight lanes; return their verdict."""
        job: ctypes.Array = (ctypes.c_void_p * 32)()
        for lane in range(8):
            values = key, signature, len(signature), digest
            for place, value in enumerate(values):
                is_size = place == 2
                job[4 * lane + place] = value if is_size else ctypes.cast(value, ctypes.c_void_p).value
        if not getattr(self.library, f"crypto_mb_{scheme}_fits")(job):
            return False
        mask = getattr(self.library, f"crypto_mb_{scheme}_accept")(job)
        assert mask in (0, 0xFF)
        return mask == 0xFF

    def ed25519_of(self, key, signature, message):
        """The same for messages of any length, behind the very checks of Ed25519."""
        job = (ctypes.c_void_p * 4)(None, ctypes.cast(signature, ctypes.c_void_p).value, len(signature), None)
        if not (self.library.crypto_mb_ed25519_takes(key) and self.library.crypto_mb_ed25519_fits(job)):
            return False
        eight = [ctypes.c_char_p * 8] * 2
        r, s = (kind(*[part] * 8) for kind, part in zip(eight, (signature[:32], signature[32:]), strict=True))
        sizes = (ctypes.c_uint32 * 8)(*[len(message)] * 8)
        messages, keys = (ctypes.c_char_p * 8)(*[message] * 8), (ctypes.c_char_p * 8)(*[key] * 8)
        return self.real.mbx_ed25519_verify_mb8(r, s, messages, sizes, keys) == 0


def accepts(key, signature, message, *more):
    """OpenSSL's verdict."""
    try:
        key.verify(signature, message, *more)
    except InvalidSignature:
        return False
    return True


def wycheproof(name) -> Iterator[tuple[bytes, dict]]:
    for group in json.loads((FOLDER / name).read_text())["testGroups"]:
        for test in group["tests"]:
            yield bytes.fromhex(group["publicKeyDer"]), test


@pytest.mark.process
def test_wycheproof_p256(tmp_path):
    need("p256")
    alone, verdicts = Alone(tmp_path), Counter()
    for spki, test in wycheproof("ecdsa_secp256r1_sha256_test.json"):
        key, signature = load_der_public_key(spki), bytes.fromhex(test["sig"])
        message, numbers = bytes.fromhex(test["msg"]), key.public_numbers()
        point = numbers.x.to_bytes(32, "little") + numbers.y.to_bytes(32, "little")
        accepted = alone.one("p256", point, signature, sha256(message).digest())
        verdicts[accepted, accepts(key, signature, message, ECDSA(SHA256()))] += 1
    assert verdicts.total() == COUNTED["ecdsa_secp256r1_sha256_test.json"]
    assert verdicts[True, False] == 0
    assert verdicts[True, True] > 150
    assert verdicts[False, True] <= 2  # such as a hash that is special: OpenSSL decides


@pytest.mark.process
def test_wycheproof_ed25519(tmp_path):
    need("ed25519")
    alone, verdicts = Alone(tmp_path), Counter()
    for spki, test in wycheproof("ed25519_test.json"):
        signature, message = bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])
        accepted = alone.ed25519_of(spki[-32:], signature, message)
        verdicts[accepted, accepts(load_der_public_key(spki), signature, message)] += 1
    assert verdicts.total() == COUNTED["ed25519_test.json"]
    assert verdicts[True, False] == 0
    assert verdicts[True, True] > 80
    assert verdicts[False, True] <= 20  # keys and points of small order: OpenSSL decides


# --- Libraries that are not as they should be -------------------------------------------------------------------------


@native
def test_without_the_packages_everything_works_by_openssl(good, ring, monkeypatch):
    from srup_native import _verify

    monkeypatch.setattr(_multibuffer, "_LIBRARIES", {"no-such-package": ("libnone.so",)})
    said = "no-such-package is not installed: pip install 'srup[multibuffer]'"
    assert _verify.open_library() == said
    assert switch(True) == []
    assert set(reasons().values()) == {said}
    assert set(verdicts(list(good.values()), ring)) == {srup.Data}
    assert set(verdicts(list(map(changed, good.values())), ring)) == {srup.SignatureError}


@native
def test_a_package_without_its_library(monkeypatch):
    from srup_native import _verify

    monkeypatch.setattr(_multibuffer, "_LIBRARIES", {"pytest": ("libcrypto_mb.so.13",)})
    assert _verify.open_library() == (
        "the installed pytest has no libcrypto_mb.so.13: pip install -U 'srup[multibuffer]'"
    )
    assert switch(True) == []


@native
@pytest.mark.parametrize("content", [b"", b"no library\n", b"\x7fELF" + bytes(100), None])
def test_a_broken_library(good, ring, tmp_path, content):
    from srup_native import _verify

    path = tmp_path / "libcrypto_mb.so.13"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in _verify.open_library([path])
    assert switch(True) == []
    assert set(verdicts(list(good.values()), ring)) == {srup.Data}


@native
def test_a_library_that_is_cut_off(tmp_path, monkeypatch):
    """The loader would die of it."""
    from srup_native import _verify

    record = tmp_path / "cut-1.dist-info" / "RECORD"
    record.parent.mkdir()
    (record.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: cut\nVersion: 1\n")
    record.write_text("libcrypto_mb.so.13,,2270680\ncut-1.dist-info/METADATA,,\ncut-1.dist-info/RECORD,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_multibuffer, "_LIBRARIES", {"cut": ("libcrypto_mb.so.13",)})
    assert _verify.open_library() == ("the installed cut has no libcrypto_mb.so.13: pip install -U 'srup[multibuffer]'")
    path = tmp_path / "libcrypto_mb.so.13"
    path.write_bytes(b"\x7fELF" + bytes(1000))
    assert _verify.open_library() == f"{path} is damaged: pip install --force-reinstall cut"
    assert switch(True) == []


@lying
def test_an_older_library(tmp_path):
    from srup_native import _verify

    said = "this crypto_mb has no mbx_ed25519_verify_mb8: install another version"
    assert _verify.open_library([compiled(tmp_path, "-DOLD")]) == said
    assert switch(True) == []
    assert set(reasons().values()) == {said}


@lying
def test_a_cpu_without_the_instructions(faulty):
    from srup_native import _verify

    faulty.set(applicable=0)
    assert _verify.open_library([faulty.path]) == "this CPU lacks the instructions that crypto_mb needs"
    assert switch(True) == []


@lying
@pytest.mark.parametrize("lie", [ACCEPTS, REFUSES, NONSENSE])
def test_a_library_that_lies_fails_its_self_test(good, ring, faulty, lie):
    faulty.set(verifying=lie, signing=NONSENSE)
    outcome = faulty.open()
    assert (outcome["p256"], outcome["ed25519"]) == ("the self-test failed", "the self-test failed")
    assert outcome["sign rsa2048"] in (
        "the self-test failed",
        "the lanes of rsa2048, which check each signature, are off",
    )
    assert set(verdicts(list(good.values()), ring)) == {srup.Data}
    assert set(verdicts(list(map(changed, good.values())), ring)) == {srup.SignatureError}


@lying
@pytest.mark.parametrize("lie", [REFUSES, HONEST])
def test_a_library_that_refuses_later_is_overruled(good, ring, faulty, lie):
    need("ed25519")
    faulty.open()
    faulty.set(verifying=lie)
    wires = list(good.values()) * 5
    assert set(verdicts(wires, ring, 2)) == {srup.Data}


# --- Switches ---------------------------------------------------------------------------------------------------------

SWITCHES = {"p256": "SRUP_P256_LANES", "ed25519": "SRUP_ED25519_LANES", "rsa2048": "SRUP_RSA_KERNEL"}


@pytest.mark.process
@pytest.mark.parametrize("kind", SWITCHES)
def test_each_kind_has_a_switch(kind):
    code = f"import srup; print(*srup.backend_info().lanes[{kind!r}], sep='|')"
    environment = {**os.environ, SWITCHES[kind]: "off"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert done == ("False|switched off" if NATIVE else "False|the pure backend has none")


@pytest.mark.process
def test_the_library_is_loaded_when_there_is_a_use_for_it():
    """Neither the import nor a key nor a single message needs it; a batch does."""
    code = """if True:
        import srup
        mapped = lambda: "libcrypto_mb" in open("/proc/self/maps").read()
        key = srup.PrivateKey.generate("ed25519")
        wires = [srup.encode(srup.Action(sequence_id=1, sender_id=1, token=b"t", action_id=1), key)] * 8
        srup.verify_many(wires[:1], {1: key.public_key})
        before = mapped()
        srup.verify_many(wires, {1: key.public_key})
        print(before, mapped() == srup.backend_info().lanes["ed25519"].active)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def test_what_is_said_about_each_kind():
    lanes = srup.backend_info().lanes
    assert tuple(lanes) == _verify_py.LANES
    assert set(FROM_LIBRARY) < set(lanes)
    for kind, (active, reason) in lanes.items():
        assert type(active) is bool
        assert reason, kind
