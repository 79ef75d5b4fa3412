"""What 10 to 1,000,000 devices cost the server: time per verified message, and memory per key.

Every size has a process of its own. Messages come from senders all over the ring, as many different ones as there are,
up to some thousands; before every pass the CPU's caches are filled with something else, so that keys come from
main memory. ``cold`` is a key that has not verified anything yet, ``used`` one that has. All keys are objects with
memory of their own; where there are more than 1,000 of them, their values repeat.

The second table is about a whole server: a ``srup.Server`` with an SQLite store whose registered devices are all
members, restarted, connected to a Mosquitto of our own and subscribed. ``loaded`` is its memory then, ``heard`` after
each device has sent a value that was made durable and handled; both less what a server with one device takes after
as many values.

The third is what a small device waits for: the time and memory of ``import srup``, and of srup with its first key, each
beside ``cryptography`` alone with what one kind of key needs. The best of many new processes.
"""

import gc
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from srup import KeyRing, PrivateKey, PublicKey, Server, TransportError, backend_info, verify_many
from srup.records import Changes, PartnerRecord
from srup.store import SqliteStore
from srup.transport import LocalBroker, MemoryNetwork, MemoryTransport, MqttTransport

from .durable import FIRST, SERVER, publish
from .material import public_key, rsa_keys, signed_wires
from .report import Report, apart, main, memory

BATCH: Final = 256
MIXER: Final = 7_368_787  # a prime: multiples of it run through all senders, in no order
FLUSH: Final = 64 << 20
IMPORTS: Final = {
    "cryptography's rsa": "from cryptography.hazmat.primitives.asymmetric import rsa",
    "import srup": "import srup",
    "srup and its keys": "import srup; srup.PrivateKey",
}
IMPORTING: Final = """
import time
began = time.perf_counter()
{}
seconds = time.perf_counter() - began
import psutil
print(seconds, psutil.Process().memory_info().rss)
"""
TIMEOUT: Final = 600.0


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


def ring_of(size: int, pems: Sequence[bytes]) -> KeyRing:
    """Return the keys of devices from FIRST on, as if each had been read from its file."""
    return KeyRing({FIRST + n: PublicKey.from_pem(pems[(FIRST + n) % len(pems)]) for n in range(size)})


def register(path: Path, size: int, pems: Sequence[bytes]) -> None:
    """Make the store of a server that had so many members when it ended."""
    store = SqliteStore(path)
    store.open(SERVER)
    store.commit(Changes(partners=[PartnerRecord(FIRST + n, True, True, 0, 0, 1) for n in range(size)]))
    store.close()
    broker = MemoryTransport(MemoryNetwork(), "server")
    with Server(SERVER, PrivateKey.generate("ed25519"), devices=ring_of(size, pems), broker=broker, store=path):
        pass


def serve(path: Path, url: str, size: int, values: int, pems: Sequence[bytes]) -> tuple[int, int]:
    """Return the memory that a server adds to this process, loaded and after so many values of all its devices."""
    before = memory()
    transport = MqttTransport(url, "receiver")
    ring = ring_of(size, pems)
    server = Server(SERVER, PrivateKey.generate("ed25519"), devices=ring, broker=transport, store=path)
    connected, heard, numbers = threading.Event(), threading.Event(), itertools.count(1)
    server.on_link(lambda is_connected, why: connected.set() if is_connected else None)
    server.on_data("temperature", "double")(lambda *_: heard.set() if next(numbers) == values else None)
    with server:
        if not connected.wait(TIMEOUT):
            raise TimeoutError("the subscriptions do not stand")
        gc.collect()
        loaded = memory()
        apart(publish, url, size, values, len(pems))
        if not heard.wait(TIMEOUT):
            raise TimeoutError(f"{next(numbers) - 1} of {values} values were handled")
        gc.collect()
        return loaded - before, memory() - before


def whole(size: int, values: int, different: int) -> tuple[int, int]:
    """Measure a server in a process of its own, with a broker and a store of its own."""
    pems = [public_key(key).to_pem() for key in rsa_keys(different)]
    with tempfile.TemporaryDirectory() as folder, LocalBroker("mosquitto") as broker:
        apart(register, Path(folder) / "server.db", size, pems)
        loaded, heard = apart(serve, Path(folder) / "server.db", broker.url, size, values, pems)
        return loaded, heard


def report_servers(report: Report, sizes: Sequence[int], different: int) -> None:
    """Add what a whole server takes for each device."""
    try:
        LocalBroker("mosquitto")
        import paho.mqtt.client  # noqa: F401
    except (TransportError, ImportError) as error:
        report.note(f"servers are not measured: {error}")
        return
    rows: list[list[object]] = []
    for size in sizes:
        totals, alone = whole(size, size, different), whole(1, size, different)
        loaded, heard = ((total - base) / size for total, base in zip(totals, alone, strict=True))
        rows.append([size, round(loaded), round(heard)])
        report.ratio(f"memory per device of a server with {size:,}, heard / 2 KiB", heard / 2048, 1.0, at_most=True)
    report.table(
        "memory of a server with an SQLite store", ["registered devices", "bytes each, loaded", "bytes, heard"], rows
    )


def report_imports(report: Report, rounds: int) -> None:
    """Add what an import takes."""
    best: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, code in {"nothing": "pass", **IMPORTS}.items():
            command = [sys.executable, "-c", IMPORTING.format(code)]
            told = [float(part) for part in subprocess.check_output(command, text=True).split()]
            best[name] = [min(pair) for pair in zip(told, best.get(name, told), strict=True)]
    rows = [[name, best[name][0] * 1e3, (best[name][1] - best["nothing"][1]) / 2**20] for name in IMPORTS]
    report.table("imports", ["what", "ms", "MiB"], rows)
    (_, *base), *ours = rows
    for name, *figures in ours:
        for what, value, against in zip(("time", "memory"), figures, base, strict=True):
            aim = 1.05 if name == "import srup" else None
            report.ratio(f"{what} of {name} / of cryptography's rsa alone", value / against, aim, at_most=True)


def run(short: bool) -> Report:
    """Measure every size."""
    sizes = (10, 1000) if short else (10, 100, 1000, 10_000, 100_000, 1_000_000)
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
    report_imports(report, 5 if short else 30)
    report_servers(report, (1000,) if short else (10_000, 100_000), different)
    report.note("below 1,000 keys the memory per key is lost in the pages of the process")
    if not backend_info().rsa_kernel:
        report.note(f"without the RSA kernel: {backend_info().rsa_kernel_reason}")
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
