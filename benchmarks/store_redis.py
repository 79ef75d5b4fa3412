"""What commits to Redis cost: one partition after the other, or all of a worker's in one round trip.

A redis-server of one's own on the loopback interface, with ``appendfsync always`` (confirmed is on the disk) and
``everysec``. ``windows`` changes nothing but partner records; ``messages`` brings for each of them an inbox entry, an
audit row and the end of an earlier entry, too.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import redis

from srup.bench.redisserver import RedisServer
from srup.records import AuditRow, Changes, InboxEntry, PartnerRecord
from srup.store import Leases, RedisStore, commit_many

from .report import Report, apart, main

OWNER: Final = 0x5E
PARTITIONS: Final = 16
DEVICES: Final = 1200  # in a partition
FULL: Final = (1 << 1024) - 1
GAPS: Final = sum(1 << each for each in range(1024) if each % 20)  # one id in twenty is missing


@contextmanager
def server(sync: str) -> Iterator[redis.Redis]:
    """Yield a client of a redis-server that is ended afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder), appendfsync=sync) as running,
        closing(redis.Redis(port=running.port)) as client,
    ):
        yield client


def changes(kind: str, size: int, count: int, first: int) -> list[Changes]:
    """Return ``count`` steps of ``size`` devices each."""
    draw = random.Random(first)
    made: list[Changes] = []
    before: list[InboxEntry] = []
    for number in range(first, first + size * count, size):
        senders = draw.sample(range(DEVICES), size)
        step = Changes(partners=[PartnerRecord(each, True, True, 64, number, FULL) for each in senders])
        if kind == "messages":
            token = draw.randbytes(40)
            step.inbox = [InboxEntry(number, each, token, "data", draw.randbytes(60)) for each in senders]
            step.audit = [AuditRow(1.7e9 + number, each, number, 3, token, "accepted") for each in senders]
            step.finished = [(entry.partner, entry.number) for entry in before]
            before = step.inbox
        made.append(step)
    return made


def measure(sync: str, kind: str, together: bool, size: int, count: int) -> float:
    """Return the devices' changes a second."""
    with server(sync) as client:
        RedisStore.create(client, OWNER, PARTITIONS)
        leases = Leases(client, OWNER, ttl=600.0)
        stores = [RedisStore(lease) for lease in leases.step().gained]
        for store in stores:
            store.open(OWNER)
            store.commit(Changes(partners=[PartnerRecord(each, True, True, 64, 1, FULL) for each in range(DEVICES)]))
        work = [
            list(zip(stores, step, strict=True))
            for step in zip(*(changes(kind, size, count, 2 + number) for number in range(PARTITIONS)), strict=True)
        ]
        began = time.perf_counter()
        for pairs in work:
            if together:
                failed = [error for error in commit_many(pairs) if error]
                if failed:
                    raise failed[0]
            else:
                for store, step in pairs:
                    store.commit(step)
        return size * count * PARTITIONS / (time.perf_counter() - began)


def footprint(seen: int) -> float:
    """Return the bytes of a device in Redis' memory."""
    many = 10_000
    with server("no") as client:
        RedisStore.create(client, OWNER, 1)
        store = RedisStore(Leases(client, OWNER).step().gained[0])
        store.open(OWNER)
        draw = random.Random(5)
        records = [PartnerRecord(draw.getrandbits(64), True, True, 64, 1 << 60, seen) for _ in range(many)]
        store.commit(Changes(partners=records))
        return float(client.memory_usage(f"{{srup:{OWNER:x}:0}}:partners", samples=0)) / many


def run(short: bool) -> Report:
    """Measure all sizes, both ways."""
    with server("no") as client:
        version = client.info("server")["redis_version"]
    report = Report(
        "store_redis", "what does a commit to Redis cost?", Redis=version, partitions=PARTITIONS, devices=DEVICES
    )
    budget = 2_000 if short else 20_000
    rates = {}
    for kind in ("windows", "messages"):
        rows: list[list[object]] = []
        for size in (1, 16, 256):
            row: list[object] = [size]
            for sync in ("always", "everysec"):
                for together in (False, True):
                    count = max(2, budget // size // PARTITIONS)
                    rates[kind, size, sync, together] = apart(measure, sync, kind, together, size, count)
                    row.append(rates[kind, size, sync, together])
            rows.append(row)
        columns = ["devices a commit", "always, one by one", "in one trip", "everysec, one by one", "in one trip"]
        report.table(f"{kind}: changes a second; one trip is {PARTITIONS} partitions", columns, rows)
    report.table(
        "bytes of a device in memory",
        ["window", "bytes"],
        [
            ["no gaps", apart(footprint, FULL)],
            ["one id in twenty missing", apart(footprint, GAPS)],
        ],
    )
    pair = rates["windows", 1, "everysec", True], rates["windows", 1, "everysec", False]
    report.ratio("16 commits in one trip / one by one", pair[0] / pair[1])
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
