"""Many messages of many devices: ``verify_many`` beside loops in Python, over 1,000 different RSA-2048 keys.

``cryptography`` is what a careful user writes: split the message, look the loaded key up, verify. ``cryptography,
verify alone`` gets signature and signed bytes ready-made, and does nothing else. With 10,000 keys in the ring each of
the 1,000 stands there ten times, as a key of its own in memory. ``srup, pure Python`` is a loop over ``srup.decode``
and ``frame.verify`` on the pure backend. All figures are per message.
"""

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

import srup
from srup import KeyRing, verify_many

from .conftest import PURE, Aim, load_pure
from .material import public_key, rsa_keys, signed_wires

MESSAGES = 1024
KEYS = (1, 1000, 10_000)  # how many stand in the ring; a short run does without the last
DIFFERENT = {False: 1000, True: 64}
AIMS = [
    Aim("1,000 keys, batches of 256", "verify_many", "cryptography", 5.5),
    Aim("1,000 keys, batches of 256", "kernel off", "cryptography", 1.15),
    Aim("1,000 keys, batches of 1,024", "2 threads", "verify_many", 1.8),
    Aim("1,000 keys, batches of 256", PURE, "cryptography, verify alone", 1.25, at_most=True),
]

pytestmark = pytest.mark.table("many RSA-2048 messages", "µs", "cryptography")


def case_of(keys: int, batch: int) -> str:
    """Return the name of a case."""
    return f"{keys:,} {'key' if keys == 1 else 'keys'}, batches of {batch:,}"


class Crowd:
    """So many senders, and messages of them that touch as many keys as they can, in no order."""

    def __init__(self, size: int, different: int) -> None:
        keys = rsa_keys(min(size, different))
        senders = [1 + (place * 7919) % size for place in range(MESSAGES)]
        self.wires = signed_wires(senders, keys)
        self.ring = KeyRing({sender: public_key(keys[sender % len(keys)]) for sender in range(1, size + 1)})
        self.publics = {sender: keys[sender % len(keys)].public_key() for sender in range(1, size + 1)}

    def batches(self, size: int) -> list[list[bytes]]:
        """Return the messages in batches."""
        return [self.wires[start : start + size] for start in range(0, MESSAGES, size)]


crowd = cache(Crowd)


@pytest.fixture
def everyone(which: int, short: bool) -> Crowd:
    """Give the crowd of this case."""
    if short and which == 2:
        pytest.skip("not in a short run")
    return crowd(KEYS[which], DIFFERENT[short])


@pytest.fixture
def native() -> Iterator[Any]:
    """Give the extension's verifier, and leave its kernel as it was."""
    if srup.BACKEND != "native":
        pytest.skip("srup runs without its extension")
    from srup_native import _verify

    was = _verify.info()["rsa_kernel"]
    yield _verify
    _verify.use_kernel(was)


def verify_batches(batches: list[list[bytes]], ring: KeyRing, threads: int = 1) -> list[Any]:
    """Verify one batch after the other."""
    results = []
    for batch in batches:
        results += verify_many(batch, ring, threads)
    return results


def split(wire: bytes) -> tuple[int, bytes, bytes]:
    """Return sender, signature and signed bytes."""
    sender, size = struct.unpack_from("<Q", wire, 10)[0], wire[18] << 8 | wire[19]
    cut = 20 + size
    end = cut + 2 + (wire[cut] << 8 | wire[cut + 1])
    return sender, wire[cut + 2 : end], wire[:cut] + wire[end:]


def loop(wires: list[bytes], publics: Any) -> list[bool]:
    """Verify with ``cryptography`` as one writes it."""
    padding, digest = PKCS1v15(), SHA256()
    results = []
    for wire in wires:
        sender, signature, signed = split(wire)
        try:
            publics[sender].verify(signature, signed, padding, digest)
        except InvalidSignature:
            results.append(False)
        else:
            results.append(True)
    return results


def verify_alone(prepared: list[tuple[Any, bytes, bytes]]) -> None:
    """Verify and do nothing else."""
    padding, digest = PKCS1v15(), SHA256()
    for verify, signature, signed in prepared:
        verify(signature, signed, padding, digest)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_cryptography(everyone: Crowd, measure: Any) -> None:
    """A careful loop."""
    case = case_of(len(everyone.ring), 256)
    assert all(measure(case, "cryptography", loop, everyone.wires, everyone.publics, calls=1, items=MESSAGES))


@pytest.mark.parametrize("which", [1])
def test_cryptography_alone(everyone: Crowd, measure: Any) -> None:
    """The bare operation."""
    prepared = [(everyone.publics[sender].verify, *rest) for sender, *rest in map(split, everyone.wires)]
    case = case_of(len(everyone.ring), 256)
    measure(case, "cryptography, verify alone", verify_alone, prepared, calls=1, items=MESSAGES)


@pytest.mark.parametrize("which", [1])
def test_pure(everyone: Crowd, measure: Any) -> None:
    """``decode`` and ``verify`` of the pure backend."""
    if srup.BACKEND == "python":
        pytest.skip("srup runs without its extension; verify_many stands for it")
    pure = load_pure()
    keys = {id(key): pure.PublicKey.from_pem(key.to_pem()) for key in everyone.ring.values()}
    ring = pure.KeyRing({sender: keys[id(key)] for sender, key in everyone.ring.items()})

    def run(wires: list[bytes]) -> list[Any]:
        frames = map(pure.decode, wires)
        return [frame.verify(ring[frame.sender_id]) for frame in frames]

    case = case_of(len(everyone.ring), 256)
    assert len(measure(case, PURE, run, everyone.wires, calls=1, items=MESSAGES)) == MESSAGES


@pytest.mark.parametrize("kernel", ["verify_many", "kernel off"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_verify_many(everyone: Crowd, native: Any, kernel: str, measure: Any) -> None:
    """One thread; with the kernel, where it can run, and without."""
    native.use_kernel(kernel == "verify_many")
    case = case_of(len(everyone.ring), 256)
    results = measure(case, kernel, verify_batches, everyone.batches(256), everyone.ring, calls=1, items=MESSAGES)
    assert all(type(result) is srup.Data for result in results)


@pytest.mark.parametrize("size", [1, 8, 64, 1024])
@pytest.mark.parametrize("which", [1])
def test_batches(everyone: Crowd, native: Any, size: int, measure: Any) -> None:
    """Smaller and larger batches."""
    case = case_of(len(everyone.ring), size)
    results = measure(
        case, "verify_many", verify_batches, everyone.batches(size), everyone.ring, calls=1, items=MESSAGES
    )
    assert all(type(result) is srup.Data for result in results)


@pytest.mark.parametrize("kernel", ["2 threads", "2 threads, kernel off"])
@pytest.mark.parametrize("which", [1])
def test_two_threads(everyone: Crowd, native: Any, kernel: str, measure: Any) -> None:
    """Two threads on batches of 1,024."""
    native.use_kernel(kernel == "2 threads")
    case = case_of(len(everyone.ring), MESSAGES)
    results = measure(
        case, kernel, verify_batches, everyone.batches(MESSAGES), everyone.ring, 2, calls=1, items=MESSAGES
    )
    assert all(type(result) is srup.Data for result in results)
