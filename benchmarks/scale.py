"""What 10 to 1,000,000 devices cost the server: time per verified message, and memory per key.

Every size has a process of its own. Messages come from senders all over the ring, as many different ones as there are,
up to some thousands; before every pass the CPU's caches are filled with something else, so that keys come from
main memory. ``cold`` is a key that has not verified anything yet, ``used`` one that has. All keys are objects with
memory of their own; where there are more than 1,000 of them, their values repeat.
"""

import gc
import sys
import time
from collections.abc import Sequence
from typing import Final

from srup import KeyRing, backend_info, verify_many

from .material import public_key, rsa_keys, signed_wires
from .report import Report, apart, main, memory

BATCH: Final = 256
MIXER: Final = 7_368_787  # a prime: multiples of it run through all senders, in no order
FLUSH: Final = 64 << 20


def flush() -> int:
    """Push everything out of the caches."""
    return sum(memoryview(bytearray(FLUSH))[:: 64 * 16]) + len(bytes(FLUSH))


def verify(wires: Sequence[bytes], ring: KeyRing) -> float:
    """Return the seconds per message of one pass."""
    batches = [wires[start : start + BATCH] for start in range(0, len(wires), BATCH)]
    flush()
    good = 0
    began = time.perf_counter()
    for batch in batches:
        good += sum(1 for result in verify_many(batch, ring) if not isinstance(result, Exception))
    seconds = time.perf_counter() - began
    if good != len(wires):
        raise RuntimeError(f"{good} of {len(wires)} messages were genuine")
    return seconds / len(wires)


def measure(size: int, different: int, messages: int, rounds: int) -> list[float]:
    """Return µs per message, first and used, and bytes per key, cold and used."""
    keys = rsa_keys(min(size, different))
    for key in keys:
        public_key(key)
    wires = signed_wires([number * MIXER % size for number in range(messages)], keys)
    gc.collect()
    gc.disable()
    before = memory()
    ring = KeyRing()
    for sender in range(size):
        ring.add(sender, public_key(keys[sender % len(keys)]))
    cold = memory()
    touched = min(size, messages)
    first = verify(wires[:touched], ring)
    for sender in range(size):
        _ = ring[sender].verifier
    used = memory()
    passes = [verify(wires, ring) for _ in range(rounds)]
    return [first * 1e6, min(passes) * 1e6, (cold - before) / size, (used - before) / size]


def run(short: bool) -> Report:
    """Measure every size."""
    sizes = (10, 1000, 10_000) if short else (10, 100, 1000, 10_000, 100_000, 1_000_000)
    different, messages, rounds = (32, 1024, 3) if short else (1000, 8192, 7)
    report = Report(
        "scale",
        "what does a message cost, and a key, with many keys in the ring?",
        scheme="rsa2048",
        different=f"{different:,} key values; every key is an object of its own",
        messages=f"{messages:,}, batches of {BATCH}, one thread, caches flushed before each pass",
    )
    results = {size: apart(measure, size, different, messages, rounds) for size in sizes}
    rows = []
    for size, (first, used, cold_bytes, used_bytes) in results.items():
        in_memory = [round(cold_bytes), round(used_bytes)] if size >= 1000 else [None, None]
        rows.append([size, used, first, *in_memory])
    columns = ["keys in the ring", "µs per message", "µs, a key's first message", "bytes per key, cold", "bytes, used"]
    report.table("cost by number of keys", columns, rows)
    largest, smallest = sizes[-1], sizes[0]
    times = results[largest][1] / results[smallest][1]
    report.ratio(f"time per message with {largest:,} keys / with {smallest}", times)
    report.ratio(f"bytes per used key of {largest:,} / 1.5 KiB", results[largest][3] / 1536, 1.0, at_most=True)
    report.note("below 1,000 keys the memory per key is lost in the pages of the process")
    if not backend_info().rsa_kernel:
        report.note(f"without the RSA kernel: {backend_info().rsa_kernel_reason}")
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
