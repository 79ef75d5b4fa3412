"""verify_many: the same verdicts as one message at a time, whatever is beside them, and whatever comes in."""

import ctypes
import os
import random
import subprocess
import sys
import threading
from collections.abc import Mapping
from hashlib import sha256
from types import SimpleNamespace

import psutil
import pytest

import srup
import srup_native

from .conftest import VECTORS
from .fuzz_verify import RsaKey, cases, disagreements, encode, kernel_alone, malformed, rsa_keys, special_numbers

pytestmark = pytest.mark.backend

NATIVE = srup_native.BACKEND == "native"
SENDERS = 12  # with RSA-2048 keys; more than lanes, so that groups differ
STRANGER = 999


@pytest.fixture(params=["kernel", "no kernel"] if NATIVE else ["no kernel"])
def kernel(request):
    """Both ways to verify a batch; the pure backend has but one."""
    wanted = request.param == "kernel"
    if not NATIVE:
        yield False
        return
    from srup_native import _verify

    before = srup.backend_info().rsa_kernel
    is_on = _verify.use_kernel(wanted)
    if is_on != wanted:
        pytest.skip("no kernel here")
    yield is_on
    _verify.use_kernel(before)


@pytest.fixture(scope="module")
def rsa():
    """Private keys of RSA-2048 by sender."""
    return dict(enumerate((srup.PrivateKey.generate() for _ in range(SENDERS)), start=1))


@pytest.fixture(scope="module")
def private(rsa, scheme_keys, vector_keys):
    """Private keys of every scheme by sender, weak ones included."""
    others = [*scheme_keys.values(), vector_keys["C1024"]]
    return {**rsa, **dict(enumerate(others, start=100))}


@pytest.fixture(scope="module")
def ring(private):
    return srup.KeyRing({sender: key.public_key for sender, key in private.items()})


def made(sender, key, number=1, size=9):
    return srup.encode(
        srup.Data(sequence_id=number, sender_id=sender, token=b"token", data_id="x", data=b"d" * size), key
    )


def broken(wire):
    """The same message with another signature, which lies behind header and token of 5 bytes."""
    return wire[:27] + bytes([wire[27] ^ 1]) + wire[28:]


@pytest.fixture(scope="module")
def good(private):
    """One good message of every sender."""
    return {sender: made(sender, key, sender) for sender, key in private.items()}


@pytest.fixture(scope="module")
def mixture(private, good):
    """Everything that a server may find in its queue."""
    stranger = made(STRANGER, private[1])
    impostor = made(2, private[1])
    junk = [
        None,
        "text",
        bytearray(good[1]),
        memoryview(good[1]),
        b"",
        b"\5",
        bytes(70_000),
        7,
        [],
        object(),
        good[1][:-1],
    ]
    short = srup_native.splice(srup_native.pack(srup.Action(sequence_id=1, sender_id=1, token=b"t", action_id=1)), b"")
    changed = [wire[:-1] + b"\1" for wire in good.values()]
    wires = [*good.values(), *(broken(wire) for wire in good.values()), *changed, stranger, impostor, short, *junk]
    random.Random(1).shuffle(wires)
    return wires


def shown(outcome):
    """A result in a form that can be compared."""
    if isinstance(outcome, srup.SrupError):
        return type(outcome), outcome.args, str(outcome)
    assert isinstance(outcome, srup.Message)
    return type(outcome), repr(outcome), outcome


def alone(wire, keyring):
    """What one message at a time comes to."""
    try:
        frame = srup.decode(wire)
        key = keyring.get(frame.sender_id)
        if key is None:
            return srup.UnknownSenderError(frame.sender_id)
        return frame.verify(key)
    except srup.SrupError as error:
        return error


def compare(wires, keyring, threads=1):
    results = srup.verify_many(wires, keyring, threads)
    assert [shown(one) for one in results] == [shown(alone(wire, keyring)) for wire in wires]
    return results


# --- The batch and the single message ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_batch_size(kernel, mixture, ring, threads):
    draw = random.Random(threads)
    for size in [*range(18), 31, 32, 33, 34, 63, 64, 65, 96, 97, 1023, 1024, 1025, 2049]:
        compare(draw.choices(mixture, k=size), ring, threads)


def test_every_position_in_every_size(kernel, good, ring):
    for size in range(1, 18):
        wires = [good[1 + place % SENDERS] for place in range(size)]
        for place in range(size):
            results = compare([*wires[:place], broken(wires[place]), *wires[place + 1 :]], ring)
            assert [isinstance(one, srup.SignatureError) for one in results] == [here == place for here in range(size)]


def test_every_pattern_of_eight_lanes(kernel, good, ring):
    wires = [good[sender] for sender in range(1, 9)]
    for pattern in range(256):
        bad = [bool(pattern >> lane & 1) for lane in range(8)]
        batch = [broken(wire) if wrong else wire for wire, wrong in zip(wires, bad, strict=True)]
        results = srup.verify_many(batch, ring)
        assert [isinstance(one, srup.SignatureError) for one in results] == bad
        assert [one.sender_id for one, wrong in zip(results, bad, strict=True) if not wrong] == [
            lane + 1 for lane in range(8) if not bad[lane]
        ]


def test_every_mixture_of_kinds(kernel, mixture, ring):
    for seed in range(10):
        wires = mixture[:]
        random.Random(seed).shuffle(wires)
        compare(wires, ring, 1 + seed % 3)


def test_signatures_of_neighbours(kernel, rsa, good, ring):
    """Each message with the signature of the next: right numbers in wrong lanes."""
    signatures = [wire[27:283] for wire in (good[sender] for sender in rsa)]
    wires = [
        good[sender][:27] + signature + good[sender][283:]
        for sender, signature in zip(rsa, signatures[1:] + signatures[:1], strict=True)
    ]
    assert all(isinstance(one, srup.SignatureError) for one in compare(wires, ring))


def test_both_backends(twins, mixture, ring):
    """The twins, each with keys of its own, whatever backend this process runs."""
    outcomes = []
    for twin in twins:
        keyring = {
            sender: SimpleNamespace(verifier=twin.verify.verifier(key._algorithm, key._der))
            for sender, key in ring.items()
        }
        results = twin.verify.verify_many(twin.schema(), mixture, keyring.get, 2, srup.UnknownSenderError)
        outcomes.append(
            [
                (type(one), one.args, str(one)) if isinstance(one, srup.SrupError) else (repr(one), list(one))
                for one in results
            ]
        )
    assert outcomes[0] == outcomes[1]


# --- Hostile numbers --------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_bounded_number_of_fuzzed_cases():
    """``make fuzz-verify`` runs many more, with another seed each time."""
    rng = random.Random(20)
    for size in (1, 2, 7, 8, 9, 64, 65, 500, 1300):
        assert disagreements(list(cases(rng, size)), threads=1 + size % 2) == []


def of_kernel(bits=2048):
    """Those of the fuzzer's keys that the kernel takes."""
    return [key for key in rsa_keys(0, False) if key.n.bit_length() == bits and key.e == 65537]


def test_every_bit_of_the_encoded_message_counts(kernel):
    keyring, wires = {}, []
    for sender, key in enumerate(of_kernel()[-4:]):
        keyring[sender] = key.public
        signed = srup_native.pack(srup.Action(sequence_id=1, sender_id=sender, token=b"t", action_id=1))
        digest = sha256(signed).digest()
        encoded = int.from_bytes(encode(digest, 256), "big")
        for bit in range(sender, 2047, 4):
            wires.append(srup_native.splice(signed, key.root(encoded ^ 1 << bit).to_bytes(256, "big")))
        wires.append(srup_native.splice(signed, key.sign(encode(digest, 256))))
    results = srup.verify_many(wires, keyring)
    assert sum(isinstance(one, srup.SignatureError) for one in results) == 2047
    assert sum(isinstance(one, srup.Action) for one in results) == 4


@pytest.mark.parametrize("key", rsa_keys(0, False)[-15:], ids=lambda key: key.name)
def test_malformed_encodings_and_hostile_numbers(kernel, key):
    rng = random.Random(key.n)
    signed = srup_native.pack(srup.Action(sequence_id=1, sender_id=1, token=b"t", action_id=1))
    digest = sha256(signed).digest()
    genuine = key.sign(encode(digest, key.size))
    number = int.from_bytes(genuine, "big")
    bad = {name: key.sign(encoded) for name, encoded in malformed(digest, key.size, rng).items()}
    for name, value in [*special_numbers(key.n, rng), ("s + n", number + key.n), ("n - s", key.n - number)]:
        bad[name] = value.to_bytes(max(key.size, (value.bit_length() + 7) // 8), "big")
    if key.e != 65537:  # what the kernel would take for good if it were asked about this key
        bad["another exponent"] = RsaKey(key.n, 65537, key.primes).sign(encode(digest, key.size))
    bad |= {"longer": b"\0" + genuine, "cut": genuine[1:], "empty": b"", "double": genuine * 2}
    wires = [srup_native.splice(signed, signature) for signature in [genuine, *bad.values(), genuine]]
    first, *results, last = srup.verify_many(wires, {1: key.public})
    assert isinstance(first, srup.Action)
    assert isinstance(last, srup.Action)
    assert [name for name, one in zip(bad, results, strict=True) if not isinstance(one, srup.SignatureError)] == []


def test_every_bit_of_a_modulus_counts():
    """A key that is wrong in one bit: the messages of the right key are not its own."""
    key = of_kernel()[0]
    signed = [
        srup_native.pack(srup.Action(sequence_id=1, sender_id=bit, token=b"t", action_id=1)) for bit in range(2048)
    ]
    wires = [srup_native.splice(one, key.sign(encode(sha256(one).digest(), 256))) for one in signed[::16]]
    keyring = {}
    for bit in range(0, 2048, 16):
        try:
            keyring[bit] = RsaKey(key.n ^ 1 << bit, key.e).public
        except ValueError:  # an even modulus is no key for cryptography
            keyring[bit] = RsaKey(key.n ^ 4, key.e).public
    assert all(isinstance(one, srup.SignatureError) for one in srup.verify_many(wires, keyring))


@pytest.mark.process
def test_the_kernel_alone_accepts_what_is_genuine_and_nothing_else():
    """verify_many cannot show that the kernel accepts: OpenSSL would, in its place."""
    alone = kernel_alone()
    if alone is None:
        pytest.skip("no compiler or no CPU for the kernel")
    rng = random.Random(3)
    keys = of_kernel()
    jobs, expected = [], []
    for _ in range(400):
        key, digest = rng.choice(keys), rng.randbytes(32)
        encoded = encode(digest, 256)
        number = key.root(int.from_bytes(encoded, "big"))
        jobs.append((key.n, number.to_bytes(256, "big"), digest))
        expected.append(True)
        for wrong in (number ^ 1 << rng.randrange(2048), number + key.n, key.n - number, 0, 1, key.n, key.n - 1):
            if wrong < 2**2048:
                jobs.append((key.n, wrong.to_bytes(256, "big"), digest))
                expected.append(False)
    order = list(range(len(jobs)))
    rng.shuffle(order)
    assert alone.accept([jobs[place] for place in order]) == [expected[place] for place in order]


@pytest.mark.process
@pytest.mark.parametrize("n", [2**2047, 2**2047 - 1, 2**2048 - 2, 1, 0])
def test_the_kernel_refuses_moduli_that_are_not_its_own(n):
    alone = kernel_alone()
    if alone is None:
        pytest.skip("no compiler or no CPU for the kernel")
    constants = ctypes.create_string_buffer(alone.KEY_SIZE)
    assert alone.library.rsa_mb_prepare(constants, n.to_bytes(256, "big")) == 0


# --- What comes in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_any_sequence_of_messages(kernel, good, ring, threads):
    expected = [srup.decode(good[sender]).verify(ring[sender]) for sender in (1, 2, 3)]
    wires = [good[sender] for sender in (1, 2, 3)]
    for given in (wires, tuple(wires), iter(wires), (wire for wire in wires), dict.fromkeys(wires)):
        assert srup.verify_many(given, ring, threads) == expected
    for nothing in ([], (), b"", "", iter([])):
        assert srup.verify_many(nothing, ring, threads) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_one_message_instead_of_several(kernel, good, ring, threads):
    """Each byte, an int, is judged as a message would be."""
    for given in (good[1], "text"):
        results = srup.verify_many(given, ring, threads)
        assert len(results) == len(given)
        assert all(isinstance(one, srup.DecodeError) for one in results)
    for given in (None, 7):
        with pytest.raises(TypeError):
            srup.verify_many(given, ring, threads)


def test_the_list_is_not_changed_and_may_change(good, ring):
    wires = [good[1], None, good[2]]

    class Emptying(dict):
        def get(self, sender, default=None):
            wires.clear()
            return ring.get(sender)

    results = srup.verify_many(wires, Emptying())
    assert [type(one) for one in results] == [srup.Data, srup.DecodeError, srup.Data]


@pytest.mark.parametrize("threads", [0, -1, True, 1.0, "2", None])
def test_threads_must_be_a_number(good, ring, threads):
    with pytest.raises(ValueError, match="threads must be an int of at least 1"):
        srup.verify_many([good[1]], ring, threads)


def test_more_threads_than_work(good, ring):
    assert len(srup.verify_many([good[1]] * 200, ring, 64)) == 200
    assert len(srup.verify_many([good[1]], ring, 2**100)) == 1


class Faulty(Mapping):
    """A keyring whose ``get`` fails."""

    def __init__(self, answer):
        self.answer = answer

    def get(self, sender, default=None):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def __getitem__(self, sender):
        raise KeyError(sender)

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError("database is gone"), KeyError(3), KeyboardInterrupt()])
def test_a_keyring_that_fails(kernel, good, threads, error):
    """That is not a message's fault: it is the batch that cannot be verified."""
    with pytest.raises(type(error)) as caught:
        srup.verify_many([good[1]] * 300, Faulty(error), threads)
    assert caught.value is error


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_keyring_that_fails_while_helpers_work(kernel, mixture, ring, threads):
    lookups = []

    class Failing(srup.KeyRing):
        def get(self, sender):
            lookups.append(sender)
            if len(lookups) == 1500:
                raise LookupError("database is gone")
            return ring.get(sender)

    with pytest.raises(LookupError, match="database is gone"):
        srup.verify_many(mixture * 100, Failing(), threads)
    compare(mixture, ring, threads)


def test_a_keyring_that_refuses_with_an_error_of_ours(kernel, good):
    refusal = srup.PolicyError("not today")
    assert srup.verify_many([good[1], b""], Faulty(refusal))[0] is refusal


@pytest.mark.parametrize("junk", ["key", 5, b"", object()])
def test_a_keyring_that_returns_no_key(kernel, good, junk):
    with pytest.raises(TypeError, match=r"^verify\(\) takes a PublicKey, not (str|int|bytes|object)$"):
        srup.verify_many([good[1], good[2]], Faulty(junk))


def test_keyrings(kernel, mixture, ring):
    class Ring(Mapping):
        def __getitem__(self, sender):
            return ring[sender]

        def __iter__(self):
            return iter(ring)

        def __len__(self):
            return len(ring)

    expected = [shown(one) for one in srup.verify_many(mixture, ring)]
    for keyring in (dict(ring), Ring()):
        assert [shown(one) for one in srup.verify_many(mixture, keyring)] == expected
    assert all(isinstance(one, srup.UnknownSenderError | srup.DecodeError) for one in srup.verify_many(mixture, {}))
    for nothing in (None, 5, []):
        with pytest.raises(AttributeError):
            srup.verify_many(mixture, nothing)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_keyring_that_changes_meanwhile(kernel, private, good, threads):
    """Each message is judged by a key that was registered at some time during the batch, or by none."""
    changing = srup.KeyRing({sender: private[sender].public_key for sender in (1, 2)})
    stop = threading.Event()

    def change():
        while not stop.is_set():
            changing.replace(1, private[3].public_key)
            changing.remove(2)
            changing.replace(1, private[1].public_key)
            changing.add(2, private[2].public_key)
            fresh = srup.PublicKey.from_pem(private[1].public_key.to_pem())
            changing.replace(1, fresh)  # and the old one is freed
            del fresh

    other = threading.Thread(target=change)
    other.start()
    try:
        for _ in range(20):
            results = srup.verify_many([good[1], good[2]] * 200, changing, threads)
            assert all(type(one) in (srup.Data, srup.SignatureError) for one in results[::2])
            assert all(type(one) in (srup.Data, srup.UnknownSenderError) for one in results[1::2])
    finally:
        stop.set()
        other.join()
    assert [type(one) for one in srup.verify_many([good[1], good[2]], changing)] == [srup.Data, srup.Data]


def test_batches_of_several_threads_at_once(kernel, mixture, ring):
    expected = [shown(one) for one in srup.verify_many(mixture, ring)]
    failures = []

    def work():
        for _ in range(5):
            if [shown(one) for one in srup.verify_many(mixture, ring, 2)] != expected:
                failures.append("another result")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_between_two_batches(kernel, mixture, ring):
    expected = [shown(one) for one in srup.verify_many(mixture, ring, 2)]
    child = os.fork()
    if child == 0:
        same = [shown(one) for one in srup.verify_many(mixture, ring, 2)] == expected
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [shown(one) for one in srup.verify_many(mixture, ring, 2)] == expected


INTERRUPTED = """
import signal, srup, srup_native
from srup.messages import SCHEMA

key = srup.PrivateKey.generate("ed25519")
wires = [srup.encode(srup.Action(sequence_id=1, sender_id=n, token=b"t", action_id=1), key) for n in (1, 2)]
strangers = []
signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    srup_native.verify_many(SCHEMA, [wires[0]] * 100_000 + [wires[1]], {1: key.public_key}.get, 1, strangers.append)
except KeyboardInterrupt:
    print("interrupted", "in the end" if strangers else "on the way")
"""


@pytest.mark.process
def test_ctrl_c_ends_a_batch():
    """In a process of its own: what runs here at a collection of garbage could swallow the interrupt."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted on the way\n"


# --- Memory -----------------------------------------------------------------------------------------------------------


def resident():
    """This process's memory in bytes."""
    return psutil.Process().memory_info().rss


def test_a_great_many_copies_of_one_message(kernel, good, ring):
    count = 100_000 if NATIVE else 20_000
    before = resident()
    results = srup.verify_many([good[1]] * count, ring, 2)
    assert len(results) == count
    assert resident() - before < (1200 if NATIVE else 6000) * count  # the messages that come out
    assert all(type(one) is srup.Data for one in results)


def test_batches_leave_nothing_behind(kernel, mixture, ring):
    for _ in range(20):
        srup.verify_many(mixture, ring, 2)
    before = resident()
    for _ in range(200):
        srup.verify_many(mixture, ring, 2)
    assert resident() - before < 4 << 20  # 200 times 1 KiB per message would be 10 MiB


def test_keys_leave_nothing_behind(kernel, private, good):
    pem = private[1].public_key.to_pem()

    def use(times):
        for _ in range(times):
            keyring = {1: srup.PublicKey.from_pem(pem)}
            srup.verify_many([good[1], good[1], broken(good[1])], keyring)

    use(200)
    before = resident()
    use(1500)
    assert resident() - before < 3 << 20


# --- The kernel's switch ----------------------------------------------------------------------------------------------


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.process
def test_the_environment_switches_the_kernel_off():
    code = "import srup; print(*srup.backend_info()[:3], sep='|')"
    assert run(code, SRUP_RSA_KERNEL="off", SRUP_BACKEND="python") == "python|False|the pure backend has none"
    if NATIVE:
        assert run(code, SRUP_RSA_KERNEL="off") == "native|False|switched off"


FIPS_DEMANDED = """openssl_conf = start
[start]
alg_section = algorithms
[algorithms]
default_properties = fips=yes
"""


@pytest.mark.process
@pytest.mark.skipif(not NATIVE, reason="the pure backend asks another libcrypto")
def test_a_configured_fips_provider_is_not_bypassed(tmp_path):
    """Debian's OpenSSL has none to load: then nothing is hashed, not even by a function that needs no provider."""
    (tmp_path / "openssl.cnf").write_text(FIPS_DEMANDED)
    environment = {**os.environ, "OPENSSL_CONF": str(tmp_path / "openssl.cnf")}
    code = "import srup_native._verify as verify; print(verify.info())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode == 0:  # an OpenSSL that has one
        assert "'rsa_kernel': False, 'rsa_kernel_reason': 'libcrypto is in FIPS mode'" in done.stdout
        assert "'fips': True" in done.stdout
    else:
        assert "gives no SHA-256: a configuration that demands fips=yes needs a FIPS provider" in done.stderr


@pytest.mark.skipif(not NATIVE, reason="the pure backend asks another libcrypto")
def test_a_system_in_fips_mode_with_another_libcrypto_is_warned_about(tmp_path, recwarn):
    from srup_native import _verify

    flag = tmp_path / "fips_enabled"
    _verify.warn_unless_fips(str(flag))
    flag.write_text("0\n")
    _verify.warn_unless_fips(str(flag))
    assert not recwarn
    flag.write_text("1\n")
    with pytest.warns(RuntimeWarning, match=r"this system is in FIPS mode, but OpenSSL 3"):
        _verify.warn_unless_fips(str(flag))


def test_backend_info(kernel):
    info = srup.backend_info()
    assert info.backend == srup_native.BACKEND
    assert info.rsa_kernel is kernel
    assert info.rsa_kernel_reason == (
        "AVX512-IFMA, 8 lanes" if kernel else "switched off" if NATIVE else "the pure backend has none"
    )
    assert info.openssl.startswith("OpenSSL ")
    assert info.fips is (False if NATIVE else None)


@pytest.mark.skipif(not NATIVE, reason="the pure backend has no kernel")
def test_a_failed_self_test_switches_the_kernel_off(good, ring):
    from srup_native import _verify

    before = srup.backend_info().rsa_kernel
    der, known = _verify._KNOWN["rsa2048"]
    try:
        _verify._KNOWN["rsa2048"] = der, known[:-1] + bytes([known[-1] ^ 1])
        assert not _verify.use_kernel(True)
        if before:
            assert srup.backend_info()[1:3] == (False, "the self-test failed")
        assert all(isinstance(one, srup.Data) for one in srup.verify_many(list(good.values()), ring))
    finally:
        _verify._KNOWN["rsa2048"] = der, known
        _verify.use_kernel(before)
    assert srup.backend_info().rsa_kernel == before


def test_the_vectors(kernel, vector_keys, unhex):
    """The published messages in one batch."""
    keyring, wires = {}, []
    for entry in VECTORS["messages"]:
        wire = unhex(entry["wire"])
        key = vector_keys.get(entry.get("key"))
        if key is not None:
            keyring.setdefault(srup.peek(wire).sender_id, key.public_key)
            wires.append(wire)
    assert len(wires) > 20
    compare(wires * 3, keyring)


# --- What a fresh reader found ----------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_batch(good, ring, threads):
    """The child has no helpers: its batch ends with an error, never with a wait for them. The parent's goes on."""
    parent = os.getpid()
    children = []

    class Forking(srup.KeyRing):
        def get(self, sender, default=None):
            if os.getpid() == parent and len(children) < 3:
                child = os.fork()
                if child:
                    children.append(child)
            return ring.get(sender, default)

    try:
        results = srup.verify_many([good[1]] * 400, Forking(), threads)
    except RuntimeError as error:
        os._exit(0 if "forked" in str(error) else 1)
    if os.getpid() != parent:
        os._exit(0 if len(results) == 400 else 1)
    assert [type(one) for one in results] == [srup.Data] * 400
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3


def test_errors_keep_nothing_alive(kernel, mixture, ring):
    for error in srup.verify_many([*mixture, b"", 7, b"\x05\x07"], ring):
        if isinstance(error, srup.SrupError):
            assert error.__traceback__ is None
            assert error.__context__ is None


def test_the_collector_does_not_look_at_verified_messages(good, ring):
    import gc

    [message] = srup.verify_many([good[1]], ring)
    assert gc.is_tracked(message) is not NATIVE


@pytest.mark.slow
def test_forgeries_fill_no_memory(rsa, good):
    """The OpenSSL contexts of keys that have the kernel too are bounded; keys without one verify all the same."""
    if not srup.backend_info().rsa_kernel:
        pytest.skip("no kernel here")
    from srup_native import _verify

    senders = range(1, 16_500)
    pem = rsa[1].public_key.to_pem()
    many = srup.KeyRing({sender: srup.PublicKey.from_pem(pem) for sender in senders})
    forged = [good[1][:10] + sender.to_bytes(8, "little") + good[1][18:] for sender in senders]
    results = srup.verify_many(forged, many, 2)
    assert type(results[0]) is srup.Data  # sender 1 is genuine
    assert {type(result) for result in results[1:]} == {srup.SignatureError}
    assert len(_verify._loaded) == 16_384
    assert [type(one) for one in srup.verify_many([good[1], forged[1], good[1]], many)] == [
        srup.Data,
        srup.SignatureError,
        srup.Data,
    ]
