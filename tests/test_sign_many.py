"""sign_many: the bytes of ``encode`` wherever a scheme is deterministic, and good signatures, whoever makes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import srup
import srup_native
from srup_native import _verify_py

from .lanes import ACCEPTS, HONEST, NATIVE, NONSENSE, REFUSES, Faulty, compiled, need

pytestmark = pytest.mark.backend
DETERMINISTIC = ("rsa2048", "rsa3072", "rsa4096", "ed25519")
SIGN = "sign rsa2048"


def messages(count):
    return [srup.Action(sequence_id=number, sender_id=7, token=b"token", action_id=3) for number in range(count)]


@pytest.fixture(params=[False, True], ids=["OpenSSL", "lanes"])
def lanes(request):
    if request.param:
        need(SIGN)
    return request.param


@pytest.fixture(autouse=True)
def restored():
    yield
    if NATIVE:
        from srup_native import _verify

        _verify.open_library()
        for kind in _verify_py.LANES:
            _verify.use_lanes(kind, True)


@pytest.fixture
def faulty(tmp_path):
    need(SIGN)
    library = Faulty(compiled(tmp_path))
    library.open()
    return library


# --- What comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 10, 11, 15, 16, 17, 33, 100])
def test_every_size(scheme_keys, lanes, count, threads):
    key, several = scheme_keys["rsa2048"], messages(count)
    expected = [srup.encode(message, key) for message in several]
    assert srup.sign_many(several, key, threads, lanes) == expected
    assert srup.backend_info().signatures_remade == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_every_scheme(scheme_keys, lanes, threads):
    several = messages(35)
    for scheme, key in scheme_keys.items():
        wires = srup.sign_many(several, key, threads, lanes)
        assert srup.verify_many(wires, {7: key.public_key}) == several, scheme
        if scheme in DETERMINISTIC:
            assert wires == [srup.encode(message, key) for message in several], scheme


def test_weak_and_odd_keys(vector_keys, lanes):
    several = messages(17)
    for name, key in vector_keys.items():
        wires = srup.sign_many(several, key, 1, lanes)
        assert [srup.decode(wire).verify(key.public_key) for wire in wires] == several, name


def test_messages_of_any_length(scheme_keys, lanes):
    key = scheme_keys["rsa2048"]
    several = [
        srup.Data(sequence_id=size, sender_id=7, token=b"t" * (1 + size % 90), data_id="x", data=b"d" * size)
        for size in (0, 1, 54, 55, 56, 63, 64, 65, 1000, 65_000)
    ]
    assert srup.sign_many(several, key, 1, lanes) == [srup.encode(message, key) for message in several]


@pytest.mark.slow
def test_both_backends(twins, scheme_keys):
    signeds = [srup_native.pack(message) for message in messages(20)]
    for scheme in DETERMINISTIC:
        made = [twin.verify.sign_many(twin.signer(scheme_keys[scheme]), signeds, 2, None) for twin in twins]
        assert made[0] == made[1]


def test_any_sequence(scheme_keys):
    several = messages(5)
    wires = [srup.encode(message, scheme_keys["ed25519"]) for message in several]
    assert srup.sign_many(tuple(several), scheme_keys["ed25519"]) == wires
    assert srup.sign_many([], scheme_keys["ed25519"]) == []


# --- Misuse -----------------------------------------------------------------------------------------------------------


def test_what_is_no_message_or_no_key(scheme_keys):
    key = scheme_keys["ed25519"]
    with pytest.raises(TypeError, match=r"sign_many\(\) takes a message, not bytes"):
        srup.sign_many([*messages(3), b"wire"], key)
    with pytest.raises(TypeError, match=r"sign_many\(\) takes a PrivateKey, not PublicKey"):
        srup.sign_many(messages(3), key.public_key)
    for threads in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="threads must be an int of at least 1"):
            srup.sign_many(messages(3), key, threads)


def test_a_message_that_is_too_long_with_its_signature(scheme_keys, lanes):
    fits = srup.Data(sequence_id=1, sender_id=7, token=b"t", data_id="x", data=b"d" * 65_400)
    with pytest.raises(srup.EncodeError):
        srup.sign_many([*messages(3), fits], scheme_keys["rsa2048"], 1, lanes)


def test_anything_but_bytes_below(twins, scheme_keys):
    for twin in twins:
        with pytest.raises(TypeError):
            twin.verify.sign_many(twin.signer(scheme_keys["rsa2048"]), [b"x", "y"], 1, None)


# --- Lanes that fail --------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize(("how", "remade"), [(HONEST, 0), (ACCEPTS, 5), (REFUSES, 37), (NONSENSE, 37)])
def test_a_bad_signature_never_leaves(scheme_keys, faulty, how, remade):
    """37 messages are four full passes and one of five: a fault in lane 2 spoils one signature of each."""
    key, several = scheme_keys["rsa2048"], messages(37)
    expected = [srup.encode(message, key) for message in several]
    before, passes = srup.backend_info().signatures_remade, faulty.passes
    faulty.set(signing=how)
    for threads in (1, 2):
        assert srup.sign_many(several, key, threads, lanes=True) == expected
    assert srup.backend_info().signatures_remade - before == 2 * remade
    assert faulty.passes - passes == 10


@pytest.mark.process
def test_lanes_sign_nothing_unless_they_are_asked_to(scheme_keys, faulty):
    passes = faulty.passes
    srup.sign_many(messages(16), scheme_keys["rsa2048"])
    srup.sign_many(messages(16), scheme_keys["rsa2048"], lanes=False)
    srup.sign_many(messages(16), scheme_keys["rsa3072"], lanes=True)
    srup.sign_many(messages(16), scheme_keys["p256"], lanes=True)
    srup.sign_many(messages(2), scheme_keys["rsa2048"], lanes=True)  # not worth a pass
    assert faulty.passes == passes
    srup.sign_many(messages(16), scheme_keys["rsa2048"], lanes=True)
    assert faulty.passes == passes + 2


@pytest.mark.process
def test_without_the_lanes_that_check_nothing_is_signed_in_lanes(scheme_keys, faulty):
    from srup_native import _verify

    _verify.use_lanes("rsa2048", False)
    passes = faulty.passes
    srup.sign_many(messages(16), scheme_keys["rsa2048"], lanes=True)
    assert faulty.passes == passes


# --- The policy -------------------------------------------------------------------------------------------------------

POLICY = """if True:
    import srup
    key = srup.PrivateKey.generate()
    several = [srup.Action(sequence_id=1, sender_id=7, token=b"t", action_id=3)] * 16
    mapped = lambda: "libcrypto_mb" in open("/proc/self/maps").read()
    used = []
    for lanes in (False, None, True):
        assert srup.sign_many(several, key, lanes=lanes) == [srup.encode(message, key) for message in several]
        used.append(mapped())
    print(*used, *srup.backend_info().lanes["sign rsa2048"], sep="|")
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "False|False|True|False|ready: SRUP_RSA_SIGNING=lanes or sign_many(..., lanes=True) makes use of it"),
        ("lanes", "False|True|True|True|crypto_mb, 8 lanes"),
        ("off", "False|False|False|False|switched off"),
    ],
)
def test_the_environment_has_a_say(value, expected):
    need(SIGN)
    environment = {**os.environ, "SRUP_RSA_SIGNING": value}
    done = subprocess.run([sys.executable, "-c", POLICY], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(scheme_keys, lanes):
    key, several = scheme_keys["rsa2048"], messages(40)
    expected = srup.sign_many(several, key, 2, lanes)
    child = os.fork()
    if not child:
        os._exit(0 if srup.sign_many(several, key, 2, lanes) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not NATIVE, reason="the pure backend copies no key")
def test_the_numbers_of_the_key_do_not_stay_in_memory(scheme_keys):
    """They do stay where OpenSSL keeps the key: as often after a batch in lanes as before it."""
    need(SIGN)
    key = scheme_keys["rsa2048"]
    prime = key.unsealing_key().private_numbers().q.to_bytes(128, "little")  # not at the edge of what is freed
    srup.sign_many(messages(16), key, lanes=False)
    before = copies(prime)
    srup.sign_many(messages(64), key, lanes=True)
    assert copies(prime) <= before


def copies(secret):
    """How often a secret stands in this process's memory."""
    found = 0
    half = len(secret) // 2
    with Path("/proc/self/maps").open() as maps, Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if not rights.startswith("rw") or "[v" in line:
                continue
            first, last = (int(end, 16) for end in place.split("-"))
            if last - first > 1 << 30:  # a sanitizer's
                continue
            memory.seek(first)
            try:
                content = memory.read(last - first)
            except OSError:
                continue
            start = 0
            while (start := content.find(secret[:half], start)) >= 0:
                found += content[start + half : start + 2 * half] == secret[half:]
                start += 1
    return found
