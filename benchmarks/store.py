"""What it costs to make accepted messages durable, by the number of them in one commit.

Every message brings what a server keeps of it: an inbox entry of about 100 bytes and an audit row; its sender's
partner record, once a commit; and the end of the inbox entry of a message in the commit before. Senders are drawn
from a fleet, so that 256 messages come from about 230 of them.

``executemany`` is the same database written the plain way: readable columns, a list of rows for each table, one
transaction a commit. ``busy`` is beside a thread that counts and never waits; what it does not count in that time is
what the commits have held the GIL for. Another thread's turn is 5 ms, so then most of the wall time is waiting.
"""

import gc
import random
import sqlite3
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from srup import SqliteStore
from srup.records import AuditRow, Changes, InboxEntry, KeyRecord, PartnerRecord

from .report import Report, apart, main, memory

OWNER: Final = 0x5E
FULL: Final = (1 << 1024) - 1
COMMON: Final = 256
SEED: Final = 5
PEM: Final = b"-----BEGIN PUBLIC KEY-----" + b"A" * 398 + b"\n-----END PUBLIC KEY-----\n"  # as long as RSA-2048's

Commit = Callable[[Changes], None]


def fleet(devices: int) -> list[int]:
    """Return their identities."""
    draw = random.Random(SEED)
    return [draw.getrandbits(64) for _ in range(devices)]


def partner(identity: int, highest: int = 1) -> PartnerRecord:
    """Return a device that has sent enough to fill its window."""
    return PartnerRecord(identity, True, True, 64, highest, FULL)


def steps(identities: list[int], size: int, count: int, first: int) -> list[Changes]:
    """Return what ``count`` batches of ``size`` messages change."""
    draw = random.Random(first)
    made: list[Changes] = []
    before: list[InboxEntry] = []
    for number in range(first, first + size * count, size):
        partners, inbox, audit = {}, [], []
        for each in range(number, number + size):
            sender, token = draw.choice(identities), draw.randbytes(40)
            partners[sender] = partner(sender, each)
            inbox.append(InboxEntry(each, sender, token, "data", draw.randbytes(60)))
            audit.append(AuditRow(1.7e9 + each / 16_000, sender, each, 3, token, "accepted"))
        finished = [(entry.partner, entry.number) for entry in before]
        made.append(Changes(partners=[*partners.values()], inbox=inbox, finished=finished, audit=audit))
        before = inbox
    return made


# Two ways to write.


def store(folder: Path, identities: list[int]) -> Iterator[Commit]:
    """Yield what commits to a SqliteStore where all devices are registered."""
    with closing(SqliteStore(folder / "state.db")) as made:
        made.open(OWNER)
        made.commit(Changes(partners=[partner(identity) for identity in identities]))
        yield made.commit


SCHEMA: Final = """
CREATE TABLE partners(identity BLOB PRIMARY KEY, member INTEGER, binds INTEGER, reserved BLOB, highest BLOB, seen BLOB);
CREATE TABLE inbox(partner BLOB, number BLOB, token BLOB, kind TEXT, body BLOB, PRIMARY KEY(partner, number));
CREATE TABLE audit(at REAL, partner BLOB, sequence_id BLOB, type INTEGER, token BLOB, outcome TEXT);
CREATE INDEX audit_at ON audit(at);
"""


def executemany(folder: Path, identities: list[int]) -> Iterator[Commit]:
    """Yield what commits row by row."""
    number = struct.Struct(">Q").pack

    def commit(changes: Changes) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT OR REPLACE INTO partners VALUES(?, ?, ?, ?, ?, ?)",
            [
                (number(each[0]), each[1], each[2], number(each[3]), number(each[4]), each[5].to_bytes(128, "big"))
                for each in changes.partners
            ],
        )
        db.executemany(
            "INSERT OR REPLACE INTO inbox VALUES(?, ?, ?, ?, ?)",
            [(number(each.partner), number(each.number), *each[2:]) for each in changes.inbox],
        )
        db.executemany(
            "DELETE FROM inbox WHERE partner = ? AND number = ?",
            [(number(identity), number(entry)) for identity, entry in changes.finished],
        )
        db.executemany(
            "INSERT INTO audit VALUES(?, ?, ?, ?, ?, ?)",
            [(each.at, number(each.partner), number(each.sequence_id), *each[3:6]) for each in changes.audit],
        )
        db.execute("COMMIT")

    with closing(sqlite3.connect(folder / "plain.db", isolation_level=None, check_same_thread=False)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(SCHEMA)
        commit(Changes(partners=[partner(identity) for identity in identities]))
        yield commit


WAYS: Final = {"store": store, "executemany": executemany}


class Counter(threading.Thread):
    """A thread that never waits."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.over = False

    def run(self) -> None:
        """Count until told to stop."""
        while not self.over:
            for _ in range(1000):
                pass
            self.count += 1


def measure(way: str, devices: int, size: int, count: int, rounds: int) -> tuple[float, float, float]:
    """Return µs per message alone, beside a busy thread, and of those holding the GIL."""
    identities = fleet(devices)
    with tempfile.TemporaryDirectory() as folder:
        for commit in WAYS[way](Path(folder), identities):
            alone = []
            for turn in range(rounds):
                batches = steps(identities, size, count, 1 + turn * size * count)
                began = time.perf_counter()
                for changes in batches:
                    commit(changes)
                alone.append(time.perf_counter() - began)
            batches = steps(identities, size, max(count // 4, 4), 1 + rounds * size * count)
            counter = Counter()
            counter.start()
            began, first = time.perf_counter(), counter.count
            time.sleep(0.5)
            pace = (counter.count - first) / (time.perf_counter() - began)
            began, first = time.perf_counter(), counter.count
            for changes in batches:
                commit(changes)
            busy = time.perf_counter() - began
            held = busy - (counter.count - first) / pace
            counter.over = True
            counter.join()
            messages = len(batches) * size
            return min(alone) / count / size * 1e6, busy / messages * 1e6, held / messages * 1e6
    raise RuntimeError("nothing was measured")


# What a device takes.


def fill(path: str, devices: int, keys: bool) -> int:
    """Register the devices; return the bytes on disk."""
    with closing(SqliteStore(path)) as made:
        made.open(OWNER)
        identities = fleet(devices)
        for start in range(0, devices, 10_000):
            part = identities[start : start + 10_000]
            records = [KeyRecord(identity, PEM) for identity in part] if keys else []
            made.commit(Changes(partners=[partner(identity) for identity in part], keys=records))
    return Path(path).stat().st_size


def resident(path: str) -> tuple[float, int]:
    """Return the seconds that opening takes, and the bytes that the process has grown by when the state is let go."""
    gc.collect()
    before = memory()
    with closing(SqliteStore(path)) as made:
        began = time.perf_counter()
        made.open(OWNER)
        seconds = time.perf_counter() - began
        gc.collect()
        return seconds, max(memory() - before, 0)


def run(short: bool) -> Report:
    """Measure all sizes, both ways."""
    sizes = (1, COMMON) if short else (1, 16, COMMON, 1024)
    devices, rounds = (1200, 1) if short else (1200, 5)
    fleets = (1000,) if short else (1000, 10_000, 100_000)
    report = Report(
        "store",
        "what does it cost to make an accepted message durable?",
        SQLite=sqlite3.sqlite_version,
        devices=devices,
        folder=tempfile.gettempdir(),
        message="its inbox entry, its audit row, its sender's window, and the end of an entry before it",
    )
    found = {
        (way, size): apart(measure, way, devices, size, max(4, (1024 if short else 16_384) // max(size, 16)), rounds)
        for way in WAYS
        for size in sizes
    }
    rows: list[list[object]] = []
    for size in sizes:
        (alone, busy, held), plain = found["store", size], found["executemany", size]
        rows.append([size, 1e6 / alone, alone, plain[0], busy, plain[1], held, plain[2]])
    columns = ["messages a commit", "messages/s", "µs each", "executemany", "busy", "executemany", "GIL", "executemany"]
    report.table(f"cost by size of a commit, {devices:,} devices; µs of a message", columns, rows)
    grown = []
    for many in fleets:
        alone, _, _ = apart(measure, "store", many, COMMON, 16 if short else 64, rounds)
        grown.append([many, alone, found_disk(many, keys=False), found_disk(many, keys=True), *held_by(many)])
    columns = ["devices", f"µs each, {COMMON} a commit", "bytes on disk", "with a key", "bytes in memory", "ms to open"]
    report.table("cost by number of devices; bytes of a device", columns, grown)
    ours, plain = found["store", COMMON], found["executemany", COMMON]
    report.ratio(f"executemany / store, wall time at {COMMON}", plain[0] / ours[0])
    report.ratio(f"executemany / store, wall time at {COMMON} beside a busy thread", plain[1] / ours[1])
    report.ratio(f"executemany a message / store at {COMMON}, wall time", found["executemany", 1][0] / ours[0])
    report.ratio(f"wall time at {COMMON} / 6 µs", ours[0] / 6, 1.0, at_most=True)
    report.note(
        "bytes in memory: of the process that opened the store and let the state go; "
        "with few devices they are mostly what SQLite takes once"
    )
    report.note("GIL: a difference of two long times; it means nothing (and may be negative) while other programs run")
    return report


def found_disk(devices: int, keys: bool) -> int:
    """Return the bytes on disk of one device."""
    with tempfile.TemporaryDirectory() as folder:
        return int(apart(fill, f"{folder}/state.db", devices, keys)) // devices


def held_by(devices: int) -> tuple[int, float]:
    """Return the bytes in memory of one device, and the milliseconds to open."""
    with tempfile.TemporaryDirectory() as folder:
        apart(fill, f"{folder}/state.db", devices, False)
        seconds, held = apart(resident, f"{folder}/state.db")
        return held // devices, seconds * 1000


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
