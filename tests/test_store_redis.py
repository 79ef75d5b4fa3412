"""State in Redis, with real servers: what a commit refuses, what survives, and what is noticed when it did not."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from itertools import count
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

import srup.store.keyspace as keyspace_module
import srup.store.lease as lease_module
import srup.store.redis as redis_module
import srup.store.redismail as mailbox_module
from srup import KeyRing, LeaseLostError, PrivateKey, StoreError, Worker
from srup.demo.host import FirmwareHost
from srup.records import (
    AuditRow,
    Changes,
    ExchangeRecord,
    Fact,
    InboxEntry,
    KeyRecord,
    OutboxEntry,
    PartnerRecord,
    ReportRecord,
    SignerRecord,
)
from srup.store import Leases, RedisStore, commit_many
from srup.store.keyspace import Keyspace, Script
from srup.store.lease import Lease, RedisArbiter
from srup.store.mailbox import Position
from srup.store.redismail import RedisMailbox
from srup.transport.broker import free_port

from .fleet import WAIT, wait_until
from .redis_server import RedisServer, redis_server

pytestmark = pytest.mark.process

TOP = (1 << 64) - 1
BROKER = "mqtt://127.0.0.1:1"
owners = count(0x5E)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that confirms what is on the disk, for tests that leave it as it was."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path):
    """A server that a test may kill, empty and fill with old files."""
    with redis_server(tmp_path / "redis") as server:
        yield server


class Site:
    """A server's state, set up, and a worker that holds all of it."""

    def __init__(self, server, partitions=2, **options):
        self.server = server
        self.owner = next(owners)
        self.partitions = partitions
        RedisStore.create(server.url, self.owner, partitions, volatile=server.settings["appendonly"] == "no")
        self.leases = self.worker(**options)
        self.held = sorted(self.leases.step().gained, key=lambda lease: lease.partition)

    def worker(self, **options):
        return Leases(options.pop("url", self.server.url), self.owner, **({"ttl": 600.0} | options))

    def store(self, number=0, **options):
        store = RedisStore(self.held[number], **options)
        store.open(self.owner)
        return store

    def key(self, name, partition=0):
        return f"{{srup:{self.owner:x}:{partition}}}:{name}"

    def content(self, number=0):
        """What a new store finds."""
        return RedisStore(self.held[number]).open(self.owner)


@pytest.fixture
def site(server):
    site = Site(server)
    yield site
    site.leases.close()


def window(identity, highest, reserved=0, seen=1):
    return PartnerRecord(identity, True, False, reserved, highest, seen)


def row(number, at=1.0):
    return AuditRow(at, 0xD1, number, 1, b"t", "accepted")


def ids(rows):
    return [each.sequence_id for each in rows]


# --- set up, or not


def test_nothing_begins_by_itself(server):
    with pytest.raises(StoreError, match=r"holds no state for server abc: either it was never set up .* lost its data"):
        Leases(server.url, 0xABC)
    assert not server.client.keys("*srup:abc*")


def test_set_up_once(server):
    owner = next(owners)
    RedisStore.create(server.url, owner, 3)
    with pytest.raises(StoreError, match=f"holds the state of server {owner:x} already"):
        RedisStore.create(server.url, owner, 3)
    leases = Leases(server.url, owner)
    assert leases.partitions == 3
    leases.close()


def test_an_interrupted_creation_is_nothing_yet_and_can_be_completed(server):
    owner = next(owners)
    RedisStore.create(server.url, owner, 2)
    server.client.hdel(f"{{srup:{owner:x}}}:meta", "ready")
    server.client.delete(f"{{srup:{owner:x}:1}}:meta")
    with pytest.raises(StoreError, match="holds no state"):
        Leases(server.url, owner)
    RedisStore.create(server.url, owner, 2)
    leases = Leases(server.url, owner)
    assert len(leases.step().gained) == 2
    leases.close()


def test_what_is_left_of_another_store_is_not_built_upon(server):
    owner = next(owners)
    RedisStore.create(server.url, owner, 2)
    server.client.delete(f"{{srup:{owner:x}}}:meta")
    with pytest.raises(StoreError, match="what is left of another store"):
        RedisStore.create(server.url, owner, 2)


@pytest.mark.parametrize("partitions", [0, -1, 1 << 16, "64"])
def test_a_number_of_partitions_that_is_none(server, partitions):
    with pytest.raises(ValueError, match="partitions must be an int from 1 to 65535"):
        RedisStore.create(server.url, next(owners), partitions)


def test_a_newer_version(site):
    site.server.client.hset(f"{{srup:{site.owner:x}}}:meta", "version", 2)
    with pytest.raises(StoreError, match="is of version 2, not 1"):
        site.worker()
    site.server.client.hset(site.key("meta"), "version", 2)
    with pytest.raises(StoreError, match="is of version 2, not 1"):
        site.store()


def test_another_server_s_lease(site):
    with pytest.raises(StoreError, match="not to abc"):
        RedisStore(site.held[0]).open(0xABC)


@pytest.mark.parametrize("url", ["http://localhost", "redis://localhost:99999", "redis://a\udcffb"])
def test_no_address_of_a_redis(url):
    with pytest.raises(StoreError, match="no address of a Redis"):
        Leases(url, 0x5E)


def test_nobody_at_the_address_is_told_in_words():
    with pytest.raises(StoreError, match=r"^Redis at 127\.0\.0\.1:1: Connection refused$"):
        Leases("redis://127.0.0.1:1", 0x5E)


def test_a_client_that_decodes_is_of_no_use(server):
    with redis.Redis(port=server.port, decode_responses=True) as client, pytest.raises(ValueError, match="bytes"):
        Leases(client, 0x5E)


# --- what is written is read: tests/test_store_contract.py; and what only Redis could get wrong

u64 = st.integers(0, TOP) | st.sampled_from([0, 1, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, 1 << 63, TOP])


def test_a_great_many_changes_at_once(site):
    """More than Redis hands out at a time, and than Lua can spread over a command's arguments."""
    many = 9001
    store = site.store()
    changes = Changes(
        partners=[window(each, each) for each in range(many)],
        exchanges=[ExchangeRecord(1, b"%d" % each, 1.0, "{}") for each in range(many)],
        inbox=[InboxEntry(each, each % 1500, b"", "data", b"") for each in range(many)],
        barred=[f"{each:x}" for each in range(many)],
        facts=[Fact(each, "name", "value") for each in range(many)],
        audit=[row(each) for each in range(many)],
    )
    store.commit(changes)
    state = site.content()
    assert sorted(state.partners) == changes.partners
    assert sorted(state.exchanges) == sorted(changes.exchanges)
    assert state.inbox == changes.inbox
    assert sorted(state.facts) == changes.facts
    assert set(state.barred) == set(changes.barred)
    assert ids(store.audit()) == list(range(many))
    store.commit(Changes(forgotten=list(range(many))))
    state = site.content()
    assert not state.partners
    assert not state.exchanges
    assert not state.inbox
    assert not site.server.client.keys(site.key("entries:*"))
    assert not site.server.client.exists(site.key("busy"), site.key("partners"))


def test_partitions_are_apart(site):
    one, two = site.store(0), site.store(1)
    one.commit(Changes(partners=[window(1, 5)]))
    two.commit(Changes(partners=[window(1, 3)]))
    assert list(site.content(0).partners) == [window(1, 5)]
    assert list(site.content(1).partners) == [window(1, 3)]


def test_a_device_takes_at_most_250_bytes(site):
    """Hash entry and all; windows in which one id in twenty is missing, which no encoding makes short."""
    store = site.store()
    seen = sum(1 << each for each in range(1024) if each % 20)
    many = 4000
    store.commit(Changes(partners=[window(each, 1 << 62, 1 << 61, seen) for each in range(many)]))
    assert site.server.client.memory_usage(site.key("partners"), samples=0) < 250 * many


# --- nothing goes back


@settings(max_examples=60)
@given(before=u64, after=u64)
@example(before=(1 << 53) + 1, after=1 << 53)
@example(before=1 << 32, after=(1 << 32) - 1)
@example(before=0x80, after=0x7F)
@example(before=0xE9 << 56, after=0x7A << 56)
def test_no_window_and_no_reserved_id_goes_back(server, before, after):
    site = Site(server, partitions=1)
    store = site.store()
    store.commit(Changes(partners=[window(1, before, 7), window(2, 7, before)]))
    for bad in (window(1, after, 7), window(2, 7, after)):
        # A good one beside it must not be written either.
        changes = Changes(partners=[window(3, 1), bad], inbox=[InboxEntry(1, 3, b"", "data", b"")])
        if after < before:
            with pytest.raises(StoreError, match=f"{bad.identity:x} would go back"):
                store.commit(changes)
        else:
            store.commit(changes)
    state = site.content()
    assert state.partners[0].highest == max(before, after)
    assert state.partners[1].reserved == max(before, after)
    assert bool(state.inbox) == (len(state.partners) == 3) == (after >= before)
    site.leases.close()


def test_who_is_forgotten_may_begin_anew(site):
    store = site.store()
    store.commit(Changes(partners=[window(1, TOP, TOP)], inbox=[InboxEntry(1, 1, b"", "data", b"")]))
    store.commit(Changes(forgotten=[1], partners=[window(1, 1)]))
    assert list(site.content().partners) == [window(1, 1)]
    assert not site.content().inbox


# --- nothing is written in part

NUMBERS = [0, -1, 1 << 53, 1 << 63, TOP, TOP + 1, 10**16, 10**400]
EXTREME = [*map(str, NUMBERS), "1e300", "nan", "inf", "-inf", "", "x", b"\xff", "9" * 100_000]


def dump(server):
    """All that Redis holds, but for what ends by itself."""
    names = sorted(server.client.keys("*"))
    return {name: server.client.dump(name) for name in names if not name.endswith(b":workers")}


SCRIPTS = {
    "register": (lease_module._REGISTER, ["workers"], ["w", 1000]),
    "renew": (lease_module._RENEW, ["lease"], ["w:1", 1000]),
    "acquire": (lease_module._ACQUIRE, ["meta", "free"], ["ID", "w", 1000]),
    "release": (lease_module._RELEASE, ["lease"], ["w:1"]),
    "look": (redis_module._LOOK, ["meta", "lease", "partners"], ["ID", "w:1"]),
    "prune": (redis_module._PRUNE, ["meta", "lease", "audit"], ["ID", "w:1", "5.0", 10]),
    "post": (mailbox_module._POST, ["meta", "orders", "order:1", "urgent"], ["ID", 10, b"i" * 16, b"{}", b"{}", "1"]),
    "create": (Script(keyspace_module._CREATE), ["other"], ["ID", 1]),
}


class Partition:
    """The keys of a script, with what it expects under them, or with junk under one of them."""

    def __init__(self, server, script, parts):
        self.server, self.script = server, script
        self.keyspace = Keyspace(server.url, 0x5E)
        self.keys = [self.keyspace.key(0, part) for part in parts]

    def begin(self, junk=None):
        client = self.server.client
        client.flushall()
        client.hset(self.keyspace.key(0, "meta"), mapping={"id": "ID", "epoch": 1, "commit": 1, "partners": 0})
        client.set(self.keyspace.key(0, "lease"), "w:1")
        if junk is not None:
            client.delete(junk)
            client.lpush(junk, "junk")

    def run(self, arguments):
        """Run the script; if it fails, everything is as before."""
        before = dump(self.server)
        try:
            self.keyspace.run(self.script, self.keys, arguments)
        except StoreError:
            assert dump(self.server) == before, arguments


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_fails_has_written_nothing(server, name):
    """Whatever its arguments are, and whatever stands under its keys."""
    script, parts, arguments = SCRIPTS[name]
    partition = Partition(server, script, parts)
    for place in range(len(arguments)):
        for value in EXTREME:
            partition.begin()
            partition.run([*arguments[:place], value, *arguments[place + 1 :]])
    for key in partition.keys:
        partition.begin(junk=key)
        partition.run(arguments)
    partition.keyspace.close()


WHOLE = Changes(
    partners=[window(1, 5), window(2, 5)],
    forgotten=[2],
    exchanges=[ExchangeRecord(1, b"token", 1.0, "{}")],
    ended=[(1, b"other")],
    inbox=[InboxEntry(1, 1, b"", "data", b"")],
    finished=[(1, 2)],
    outbox=[OutboxEntry(1, 1, "topic", b"", 1.0)],
    settled=[(1, 3)],
    keys=[KeyRecord(1, b"pem", b"old", 1.0, b"pin")],
    barred=["aa"],
    facts=[Fact(1, "name", "value"), Fact(1, "gone", None)],
    audit=[row(1)],
    signers=[SignerRecord(bytes(32), b"pem", 1.0)],
    reports=[ReportRecord(b"o" * 16, b"1-1", b"{}", 60.0, urgent=True)],
)


VALUES = [*NUMBERS, 10.0**16, 1e300, float("nan"), float("inf"), -float("inf"), None, True]
VALUES += ["", b"", "x", b"x", "\ud800", "x" * 300_000, b"x" * 300_000]


def spoilt(record):
    """The record with each of its parts replaced by each value."""
    if not isinstance(record, tuple):
        yield from VALUES
        return
    for place in range(len(record)):
        for value in VALUES:
            parts = [*record[:place], value, *record[place + 1 :]]
            yield type(record)(*parts) if hasattr(record, "_fields") else tuple(parts)


@pytest.mark.parametrize("name", [field.name for field in fields(Changes)])
def test_a_commit_with_extreme_values_is_written_or_not(site, name):
    """All of it, or nothing; and the next one is as if it had not been."""
    store = site.store()
    store.commit(Changes(partners=[window(9, 1)]))
    records = getattr(WHOLE, name)
    for bad in spoilt(records[-1]):
        before = dump(site.server)
        try:
            store.commit(replace(WHOLE, **{name: [*records, bad]}))
        except StoreError:
            assert dump(site.server) == before, bad
        else:
            store.commit(Changes(forgotten=[1, 2], partners=[window(9, 1)]))
            site.server.client.delete(*site.server.client.keys(site.key("order:*")), "none")
    store.commit(Changes(partners=[window(9, 2)]))
    assert window(9, 2) in site.content().partners


@pytest.mark.parametrize("name", [*redis_module._WHOLE, "entries:1", f"order:{(b'o' * 16).hex()}"])
@pytest.mark.parametrize("kind", ["string", "list"])
def test_what_stands_under_a_key_and_is_not_ours_is_named_and_nothing_is_written(site, name, kind):
    store = site.store()
    key = site.key(name)
    (site.server.client.set if kind == "string" else site.server.client.lpush)(key, "junk")
    before = dump(site.server)
    with pytest.raises(StoreError, match=f"{re.escape(key)} holds what srup has not put there|WRONGTYPE"):
        store.commit(WHOLE)
    assert dump(site.server) == before
    site.server.client.delete(key)
    store.commit(WHOLE)
    assert site.content().partners == [window(1, 5), window(2, 5)]


def test_a_report_that_has_no_place_stops_no_commit(site):
    """Somebody has written the last one that there can be."""
    store = site.store()
    key = site.key(f"order:{(b'o' * 16).hex()}")
    site.server.client.xadd(key, {"a": "b"}, id=f"{TOP}-{TOP}")
    store.commit(WHOLE)
    assert site.content().inbox == WHOLE.inbox


BAD_SECONDS = [0, -1, 10**16, 1 << 63, 10**400, float("nan"), float("inf"), None, "1", True]


@pytest.mark.parametrize("value", BAD_SECONDS)
def test_times_that_are_none(site, value):
    with pytest.raises(ValueError, match="ttl must be a number of seconds"):
        site.worker(ttl=value)
    with pytest.raises(ValueError, match="patience must be a number of seconds"):
        RedisStore(site.held[0], patience=value)


@pytest.mark.parametrize("value", [-1, 1 << 64, 10**400, 1.0, None, "1", True])
def test_numbers_that_are_none(site, value):
    with pytest.raises(ValueError, match="replicas must be an int"):
        RedisStore(site.held[0], replicas=value)
    with pytest.raises(ValueError, match="partitions must be an int"):
        RedisStore.create(site.server.url, next(owners), value)
    with pytest.raises(ValueError, match="owner must be an int"):
        RedisStore.create(site.server.url, value)
    with pytest.raises(ValueError, match="owner must be an int"):
        Leases(site.server.url, value)


# --- leases: one writer


def test_without_a_lease_nothing_is_written(site):
    store = site.store()
    site.server.client.delete(site.key("lease"))
    with pytest.raises(LeaseLostError, match="nobody holds it"):
        store.commit(Changes(audit=[row(1)]))
    assert not site.held[0].valid()
    with pytest.raises(LeaseLostError, match="is over"):
        store.commit(Changes(audit=[row(1)]))
    with pytest.raises(LeaseLostError):
        RedisStore(site.held[0]).open(site.owner)


def test_an_older_epoch_is_refused_and_the_next_holder_is_not_disturbed(site):
    store = site.store()
    store.commit(Changes(partners=[window(1, 5)]))
    site.server.client.delete(site.key("lease"))
    other = site.worker(worker="other")
    (taken,) = [lease for lease in other.step().gained if lease.partition == 0] or [None]
    assert taken.epoch == 2
    theirs = RedisStore(taken)
    assert list(theirs.open(site.owner).partners) == [window(1, 5)]
    with pytest.raises(LeaseLostError, match="held by other-"):
        store.commit(Changes(partners=[window(1, 9)]))
    theirs.commit(Changes(partners=[window(1, 6)]))
    with pytest.raises(LeaseLostError):
        store.commit(Changes(partners=[window(1, 10)]))
    assert list(theirs.open(site.owner).partners) == [window(1, 6)]
    assert site.held[0] in site.leases.step().lost
    other.close()


def test_a_lease_that_was_lost_prunes_nothing(site):
    store = site.store()
    store.commit(Changes(audit=[row(1)]))
    site.server.client.delete(site.key("lease"))
    with pytest.raises(LeaseLostError):
        store.prune(5.0)
    assert site.server.client.zcard(site.key("audit")) == 1


def test_of_two_who_see_a_free_partition_one_gets_it(site):
    arbiter = RedisArbiter(Keyspace(site.server.url, site.owner))
    site.server.client.delete(site.key("lease", 1))
    assert arbiter.acquire([0, 1], "other", 60.0) == [0, 2]
    assert site.server.client.get(site.key("lease", 1)) == b"other:2"
    assert arbiter.acquire([0, 1], "third", 60.0) == [0, 0]
    assert site.server.client.get(site.key("lease", 1)) == b"other:2"
    arbiter.keyspace.close()


def test_two_workers_share_and_hand_over(server):
    site = Site(server, partitions=8)
    other = site.worker()
    assert other.step().gained == ()
    step = site.leases.step()
    assert len(step.release) == 4
    for lease in step.release:
        site.leases.release(lease)
        assert not lease.valid()
    gained = other.step().gained
    assert {lease.partition for lease in gained} == {lease.partition for lease in step.release}
    assert {lease.epoch for lease in gained} == {2}
    other.close()
    assert len(site.leases.step().gained) == 4
    site.leases.close()


def test_a_lease_ends_by_the_clock_of_redis(server):
    """Its holder is gone without a word; who comes next takes over, but not before."""
    site = Site(server, partitions=2, ttl=0.5)
    heir = site.worker(ttl=0.5)
    deadline = time.monotonic() + WAIT
    gained = []
    while len(gained) < 2:
        assert time.monotonic() < deadline
        step = heir.step()
        assert step.error is None
        gained += step.gained
        if step.gained:
            assert not any(lease.valid() for lease in site.held)
        time.sleep(heir.period / 4)
    assert {lease.epoch for lease in gained} == {2}
    heir.close()


WORKER = """
import sys
from srup import LeaseLostError, StoreError
from srup.demo.host import FirmwareHost
from srup.records import Changes, PartnerRecord
from srup.store import Leases, RedisStore

url, owner, clock = sys.argv[1], int(sys.argv[2]), sys.argv[3]
options = {"clock": lambda: 0.0} if clock == "stands still" else {}
leases = Leases(url, owner, ttl=1.0, **options)
(lease,) = leases.step().gained
store = RedisStore(lease)
store.open(owner)
store.commit(Changes(partners=[PartnerRecord(1, True, False, 0, 5, 1)]))
print("held", flush=True)
sys.stdin.readline()
try:
    store.commit(Changes(partners=[PartnerRecord(1, True, False, 0, 9, 1)]))
    print("written", flush=True)
except LeaseLostError as error:
    print("lost:", error, flush=True)
"""


@pytest.mark.parametrize(("clock", "words"), [("goes on", "is over"), ("stands still", "held by heir-")])
def test_a_worker_that_was_stopped_past_its_lease(server, clock, words):
    """By its own clock it knows before it asks; and if its clock were wrong, the epoch refuses it."""
    site = Site(server, partitions=1)
    site.leases.close()
    command = [sys.executable, "-c", WORKER, server.url, str(site.owner), clock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            process.send_signal(signal.SIGSTOP)
            heir = site.worker(worker="heir", ttl=600.0)
            gained = ()
            deadline = time.monotonic() + WAIT
            while not gained:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                gained = heir.step().gained
            store = RedisStore(gained[0])
            assert list(store.open(site.owner).partners) == [window(1, 5)]
            process.send_signal(signal.SIGCONT)
            answer, _ = process.communicate("\n", timeout=WAIT)
        finally:
            process.kill()
    assert answer.startswith("lost:")
    assert words in answer
    assert list(store.open(site.owner).partners) == [window(1, 5)]
    heir.close()


# --- crashes, old copies, lost data

WRITER = """
import sys
from srup import StoreError
from srup.records import AuditRow, Changes, PartnerRecord
from srup.store import Leases, RedisStore

url, owner = sys.argv[1], int(sys.argv[2])
leases = Leases(url, owner, ttl=600.0)
(lease,) = leases.step().gained
store = RedisStore(lease)
store.open(owner)
number = 0
try:
    while True:
        number += 1
        record = PartnerRecord(1, True, False, number, number, 1)
        store.commit(Changes(partners=[record], audit=[AuditRow(float(number), 1, number, 1, b"", "accepted")]))
        print(number, flush=True)
except StoreError:
    pass
"""


def test_kill_9_of_redis_loses_nothing_that_was_confirmed(own_server):
    """And nothing is there twice, nor in part."""
    site = Site(own_server, partitions=1)
    site.leases.close()
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, own_server.url, str(site.owner)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                for _ in range(200):
                    confirmed = int(process.stdout.readline())
                own_server.kill()
                confirmed = max([confirmed, *map(int, process.stdout)])
            finally:
                process.kill()
        own_server.start()
        own_server.client.delete(site.key("lease"), f"{{srup:{site.owner:x}}}:workers")  # its holder is dead
        leases = site.worker()
        store = RedisStore(leases.step().gained[0])
        (partner,) = store.open(site.owner).partners
        assert partner.highest - confirmed in (0, 1)  # the last one may be written and not confirmed
        assert ids(store.audit()) == list(range(1, partner.highest + 1))
        store.commit(Changes(forgotten=[1]))
        store.prune(float("inf"))
        leases.close()


def test_everything_is_flushed_while_it_runs(own_server):
    site = Site(own_server)
    store = site.store()
    store.commit(Changes(partners=[window(1, 5)]))
    own_server.client.flushall()
    with pytest.raises(StoreError, match="lost its data"):
        store.commit(Changes(partners=[window(1, 6)]))
    step = site.leases.step()
    assert len(step.lost) == 2
    assert "lost its data" in str(step.error)
    assert not [key for key in own_server.client.keys("*") if not key.endswith(b":workers")]
    with pytest.raises(StoreError, match="lost its data"):
        site.worker()


def test_another_store_in_its_place_while_it_runs(own_server, tmp_path):
    site = Site(own_server)
    (tmp_path / "witness").mkdir()
    site.store(witness=tmp_path / "witness").commit(Changes(partners=[window(1, 5)]))
    store = site.store()
    own_server.client.flushall()
    RedisStore.create(own_server.url, site.owner, 2)
    with pytest.raises(StoreError, match=r"this is store .* as before"):
        store.commit(Changes(partners=[window(1, 6)]))
    assert len(site.leases.step().lost) == 2
    site.leases.close()
    # At the next start the witness knows.
    leases = site.worker()
    first = next(lease for lease in leases.step().gained if lease.partition == 0)
    with pytest.raises(StoreError, match=r"this is store .*witness knows"):
        RedisStore(first, witness=tmp_path / "witness").open(site.owner)
    leases.close()


@pytest.fixture(params=["appendonly", "rdb"])
def copied(request, tmp_path):
    """A server, and functions that take and restore a copy of its files."""
    options = {} if request.param == "appendonly" else {"appendonly": "no", "dbfilename": "dump.rdb"}
    folder, copy = tmp_path / "redis", tmp_path / "copy"
    with redis_server(folder, **options) as server:

        def take():
            if request.param == "rdb":
                server.client.save()
            shutil.copytree(folder, copy)

        def restore():
            server.kill()
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)
            server.start()

        yield server, take, restore, {"volatile": request.param == "rdb"}


def test_an_old_copy_while_it_runs(copied):
    server, take, restore, options = copied
    site = Site(server)
    store = site.store(**options)
    store.commit(Changes(partners=[window(1, 5)]))
    take()
    store.commit(Changes(partners=[window(1, 6)]))
    restore()
    with pytest.raises(StoreError, match="is at commit 1, and 2 was confirmed"):
        store.commit(Changes(partners=[window(1, 7)]))
    assert list(RedisStore(site.held[0], **options).open(site.owner).partners) == [window(1, 5)]


def test_an_old_copy_at_the_next_start_and_its_adoption(copied, tmp_path):
    server, take, restore, options = copied
    folder = tmp_path / "witness"
    folder.mkdir()
    site = Site(server)
    store = site.store(witness=folder, **options)
    store.commit(Changes(partners=[window(1, 5)]))
    take()
    store.commit(Changes(partners=[window(1, 6)]))
    store.close()
    assert site.store(witness=folder, **options)
    restore()
    with pytest.raises(StoreError, match=r"is at commit 1, and .* has seen 2.*adopt=True"):
        RedisStore(site.held[0], witness=folder, **options).open(site.owner)
    # Adopted, it says so until there has been a commit; the witness believes it only then.
    for _ in range(2):
        adopted = RedisStore(site.held[0], witness=folder, adopt=True, **options)
        state = adopted.open(site.owner)
        assert state.adopted
        assert list(state.partners) == [window(1, 5)]
    with pytest.raises(StoreError, match="has seen 2"):
        RedisStore(site.held[0], witness=folder, **options).open(site.owner)
    adopted.commit(Changes(partners=[window(1, TOP)]))
    assert not adopted.open(site.owner).adopted
    adopted.close()
    again = RedisStore(site.held[0], witness=folder, **options)
    assert not again.open(site.owner).adopted
    again.close()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda client, key: client.delete(key("partners")), "has not the 2 partners"),
        (lambda client, key: client.hdel(key("partners"), b"\0\0\0\0\0\0\0\1"), "has not the 2 partners"),
        (lambda client, key: client.hset(key("partners"), b"\0\0\0\0\0\0\0\1", b"junk"), "is damaged"),
        (lambda client, key: client.delete(key("entries:1")), "entries of partner 1 are gone"),
        (lambda client, key: client.hset(key("entries:1"), b"i\0", b"junk"), "is damaged"),
        (lambda client, key: client.hset(key("entries:1"), b"x", b""), "is damaged"),
        (lambda client, key: client.set(key("keys"), b"x"), "WRONGTYPE"),
        (lambda client, key: client.hset(key("facts"), b"x", b""), "is damaged"),
        (lambda client, key: client.delete(key("meta")), "lost its data"),
    ],
)
def test_damage_is_noticed_at_the_opening(site, harm, words):
    store = site.store()
    inbox = [InboxEntry(1, 1, b"", "data", b"")]
    store.commit(Changes(partners=[window(1, 1), window(2, 1)], inbox=inbox))
    harm(site.server.client, site.key)
    with pytest.raises(StoreError, match=words):
        site.content()


def test_a_partition_that_changes_while_it_is_read(site, monkeypatch):
    store = RedisStore(site.held[0])
    load = store._load

    def meddle():
        site.server.client.hincrby(site.key("meta"), "commit", 1)
        return load()

    monkeypatch.setattr(store, "_load", meddle)
    with pytest.raises(StoreError, match="has written while it was read"):
        store.open(site.owner)


def test_lost_windows_are_noticed_by_the_next_commit(site):
    store = site.store()
    store.commit(Changes(partners=[window(1, 1), window(2, 1)]))
    site.server.client.delete(site.key("partners"))
    with pytest.raises(StoreError, match="has not the 2 partners"):
        store.commit(Changes(partners=[window(1, 1)]))
    assert not site.server.client.exists(site.key("partners"))


# --- errors of Redis, and answers that never came


class Proxy:
    """Between a client and Redis. ``cut = n``: the next n connections end when Redis answers a script."""

    def __init__(self, port):
        self.port = port
        self.cut = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with client, socket.create_connection(("127.0.0.1", self.port)) as redis:
            while request := client.recv(1 << 20):
                redis.sendall(request)
                answer = redis.recv(1 << 20)
                if self.cut and (b"EVAL" in request.upper()):
                    self.cut -= 1
                    return  # it was done, and nobody hears of it
                client.sendall(answer)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # accept ends
        self.listener.close()


@contextmanager
def cut_off(site, **options):
    """A store of the site's second worker behind a proxy."""
    proxy = Proxy(site.server.port)
    site.leases.close()
    leases = site.worker(url=proxy.url, **options)
    store = RedisStore(next(lease for lease in leases.step().gained if lease.partition == 0))
    store.open(site.owner)
    try:
        yield proxy, store
    finally:
        proxy.close()
        leases.close()


def test_an_answer_that_was_lost_is_asked_for_again(site):
    with cut_off(site) as (proxy, store):
        proxy.cut = 1
        store.commit(Changes(partners=[window(1, 5)], audit=[row(1)]))
        assert proxy.cut == 0
        store.commit(Changes(partners=[window(1, 6)], audit=[row(2)]))
        assert ids(store.audit()) == [1, 2]


@pytest.mark.parametrize("failures", [1, 3, 40])
def test_a_commit_that_is_retried_by_its_caller_is_written_once(site, failures):
    with cut_off(site) as (proxy, store):
        store.commit(Changes(partners=[window(1, 4)]))
        changes = Changes(partners=[window(1, 5)], audit=[row(1)])
        for _ in range(failures):
            proxy.cut = 2
            with pytest.raises(StoreError):
                store.commit(changes)
        assert ids(store.audit()) == [1]
        store.commit(changes)
        assert ids(store.audit()) == [1]
        store.commit(changes)  # and this is another one
        assert ids(store.audit()) == [1, 1]


@pytest.mark.parametrize("failures", [1, 3, 40])
def test_more_changes_after_an_answer_that_was_lost_come_on_top(site, failures):
    with cut_off(site) as (proxy, store):
        for number in range(failures):
            proxy.cut = 2
            with pytest.raises(StoreError):
                store.commit(Changes(partners=[window(1, 5 + number)]))
            assert len(store._unconfirmed) <= 16
        store.commit(Changes(partners=[window(1, 100)]))
        store.commit(Changes(partners=[window(2, 1)]))
        assert list(store.open(store.keyspace.owner).partners) == [window(1, 100), window(2, 1)]


def test_a_commit_that_was_written_before_the_lease_was_lost_is_one(site):
    with cut_off(site) as (proxy, store):
        store.commit(Changes(partners=[window(1, 4)]))  # Redis has the script, whichever test comes first
        changes = Changes(partners=[window(1, 5)])
        proxy.cut = 2
        with pytest.raises(StoreError):
            store.commit(changes)
        site.server.client.delete(site.key("lease"))
        store.commit(changes)
        with pytest.raises(LeaseLostError):
            store.commit(Changes(partners=[window(1, 6)]))


def test_redis_does_not_answer_in_time(own_server):
    """It was stopped, and does what it was asked when it goes on; the retry is recognised."""
    site = Site(own_server)
    site.leases.close()
    client = redis.Redis(port=own_server.port, socket_timeout=0.1, retry=Retry(NoBackoff(), 0))
    site.held = sorted(site.worker(url=client).step().gained, key=lambda lease: lease.partition)
    store = site.store()
    changes = Changes(partners=[window(1, 5)], audit=[row(1)])
    own_server.process.signal(signal.SIGSTOP)
    with pytest.raises(StoreError, match=f"{own_server.port}.*[Tt]imeout"):
        store.commit(changes)
    own_server.process.signal(signal.SIGCONT)
    assert own_server.client.ping()
    store.commit(changes)
    assert ids(store.audit()) == [1]
    client.close()


def test_redis_goes_and_comes_back(own_server):
    site = Site(own_server)
    store = site.store()
    store.commit(Changes(partners=[window(1, 5)]))
    own_server.stop()
    with pytest.raises(StoreError, match=f"127.0.0.1:{own_server.port}.*refused"):
        store.commit(Changes(partners=[window(1, 6)]))
    with pytest.raises(StoreError, match="refused"):
        list(store.audit())
    with pytest.raises(StoreError, match="refused"):
        RedisStore(site.held[0]).open(site.owner)
    assert "refused" in str(site.leases.step().error)
    own_server.start()
    store.commit(Changes(partners=[window(1, 6)]))
    assert list(site.content().partners) == [window(1, 6)]
    assert site.leases.step().error is None


def test_an_adoption_that_has_a_name_is_gone_through_once(own_server):
    site = Site(own_server)
    for name, due in (("first", True), ("first", False), ("second", True), ("second", False)):
        store = RedisStore(site.held[0], adopt=name)
        assert store.open(site.owner).adopted is due
        store.commit(Changes(partners=[window(1, 5)]))


def test_memory_is_full(own_server):
    site = Site(own_server)
    store = site.store()
    store.commit(Changes(partners=[window(1, 5)]))
    own_server.client.config_set("maxmemory", "1")
    with pytest.raises(StoreError, match=r"OOM|maxmemory"):
        store.commit(Changes(partners=[window(1, 6)], audit=[row(1)]))
    own_server.client.config_set("maxmemory", "0")
    assert list(site.content().partners) == [window(1, 5)]
    store.commit(Changes(partners=[window(1, 6)]))


def test_redis_has_become_a_replica(own_server):
    site = Site(own_server)
    store = site.store()
    own_server.client.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreError, match=r"READONLY|read only"):
        store.commit(Changes(partners=[window(1, 6)]))
    own_server.client.replicaof("no", "one")
    store.commit(Changes(partners=[window(1, 6)]))


def test_after_a_failover_the_new_master_is_asked(own_server, tmp_path):
    """Behind one address: the connection to the former master stands, and answers READONLY for good."""
    own_server.client.config_set("repl-diskless-sync-delay", "0")
    with (
        redis_server(tmp_path / "heir", appendonly="no", replicaof=f"127.0.0.1 {own_server.port}") as heir,
        closing(Proxy(own_server.port)) as proxy,
    ):
        site = Site(own_server)
        site.leases.close()
        site.leases = site.worker(url=proxy.url)
        site.held = site.leases.step().gained
        store = site.store()
        store.commit(Changes(partners=[window(1, 5)]))
        own_server.client.set("mark", 1)  # WAIT is for what this connection has written
        assert own_server.client.wait(1, int(WAIT * 1000)) == 1
        heir.client.replicaof("no", "one")
        own_server.client.replicaof("127.0.0.1", str(heir.port))
        proxy.port = heir.port
        with pytest.raises(StoreError, match=r"it is a replica now: the next attempt connects anew"):
            store.commit(Changes(partners=[window(1, 6)]))
        store.commit(Changes(partners=[window(1, 6)]))
        assert int(heir.client.hget(site.key("meta"), "commit")) > 1
        assert site.leases.step().error is None
        site.leases.close()


def test_scripts_that_redis_has_forgotten(site):
    store = site.store()
    site.server.client.script_flush()
    store.commit(Changes(partners=[window(1, 6)]))
    site.server.client.script_flush()
    assert site.leases.step().error is None
    assert store.prune(0.0) == 0


def test_a_store_that_is_closed(site, tmp_path):
    store = site.store(witness=tmp_path)
    store.close()
    store.close()
    for call in (lambda: store.commit(Changes(barred=["x"])), store.audit, lambda: store.prune(1.0)):
        with pytest.raises(StoreError, match="is not open"):
            call()


# --- durability


@contextmanager
def set_to(server, **settings):
    """Other settings for a while."""
    before = {name: server.client.config_get(name)[name] for name in settings}
    try:
        for name, value in settings.items():
            server.client.config_set(name, value)
        yield
    finally:
        for name, value in before.items():
            server.client.config_set(name, value)


def test_what_is_confirmed_and_what_that_means(site, caplog):
    assert site.store().durable
    with set_to(site.server, appendfsync="everysec"):
        caplog.set_level("INFO", "srup.store")
        assert not site.store().durable
        assert "power loss may lose the last second" in caplog.text


def test_a_redis_that_keeps_nothing(tmp_path, caplog):
    with redis_server(tmp_path, appendonly="no") as server:
        command = f"redis-cli -h 127.0.0.1 -p {server.port} config set"
        said = (
            rf"\(appendonly no\): run {command} appendonly yes; {command} appendfsync always; and write the same into"
        )
        with pytest.raises(StoreError, match=said):
            RedisStore.create(server.url, 0x5E)
        assert not server.client.keys("*")
        site = Site(server)
        with pytest.raises(StoreError, match=said):
            site.store()
        with pytest.raises(StoreError, match=said):
            Worker(
                site.owner,
                PrivateKey.generate("ed25519"),
                devices=KeyRing({}),
                broker="mqtt://127.0.0.1:1",
                store=server.url,
            )
        store = site.store(volatile=True)
        assert not store.durable
        assert "are lost when Redis ends" in caplog.text
        site.leases.close()


POLICIES = ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl", "volatile-random"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("config", ["+config", "-config"])
def test_a_redis_that_throws_state_away(site, policy, config):
    """Leases and reports have an end, and would be the first to go. INFO tells where CONFIG may not be asked."""
    site.server.client.acl_setuser(
        "worker", enabled=True, nopass=True, categories=["+@all"], keys=["*"], commands=[config]
    )
    url = site.server.url.replace("//", "//worker:any@")
    site.leases.close()
    site.held = site.worker(url=url).step().gained
    with set_to(site.server, **{"maxmemory-policy": policy}):
        said = rf"throws state and leases away .*\(maxmemory-policy {policy}\): run .* maxmemory-policy noeviction"
        with pytest.raises(StoreError, match=said):
            site.store()
        with pytest.raises(StoreError, match=said):
            RedisStore.create(url, next(owners))
    site.store()
    site.server.client.acl_deluser("worker")


def test_a_redis_that_does_not_tell_its_settings(site, server):
    server.client.acl_setuser(
        "worker", enabled=True, nopass=True, categories=["+@all"], keys=["*"], commands=["-config"]
    )
    url = server.url.replace("//", "//worker:any@")
    site.leases.close()
    leases = site.worker(url=url)
    store = RedisStore(leases.step().gained[0])
    store.open(site.owner)
    assert not store.durable  # nobody knows
    store.commit(Changes(partners=[window(1, 1)]))
    leases.close()
    server.client.acl_deluser("worker")


def test_waiting_for_the_disk_where_redis_can(site):
    version = tuple(map(int, site.server.client.info("server")["redis_version"].split(".")[:2]))
    with set_to(site.server, appendfsync="everysec"):
        if version < (7, 2):
            with pytest.raises(StoreError, match="has no WAITAOF"):
                site.store(fsync=True)
        else:
            store = site.store(fsync=True, patience=WAIT)
            assert store.durable
            store.commit(Changes(partners=[window(1, 1)]))


def test_waiting_for_a_replica(own_server, tmp_path):
    own_server.client.config_set("repl-diskless-sync-delay", "0")
    site = Site(own_server)
    store = site.store(replicas=1, patience=0.05)
    changes = Changes(partners=[window(1, 1)], audit=[row(1)])
    with pytest.raises(StoreError, match="0 of 1 replicas have the commit"):
        store.commit(changes)
    with pytest.raises(StoreError, match="0 of 1 replicas have the commit"):
        store.commit(changes)
    with pytest.raises(StoreError, match="0 of 1 replicas have the commit"):
        store.commit(Changes(partners=[window(1, 1)]))  # other changes come on top
    # Without files of its own: a server that is writing its first ones does not end when it is told to.
    with redis_server(tmp_path / "replica", appendonly="no", replicaof=f"127.0.0.1 {own_server.port}") as replica:
        patient = site.store(replicas=1, patience=WAIT)
        patient.commit(Changes(partners=[window(1, 2)]))
        assert int(replica.client.hget(site.key("meta"), "commit")) >= 2
    assert ids(patient.audit()) == [1]


# --- damaged contents

JUNK = [b"", b"x", b"\xff\xfe", b"-1", b"0", b"9" * 30, b"9" * 5000, b"1.5", b"nan"]
DAMAGED = {
    "meta": ["version", "commit", "partners", "id", "epoch", "digest"],
    "partners": [b"\0" * 7 + b"\1", b"name"],
    "entries:1": [b"e" + b"token", b"i" + b"\0" * 7 + b"\1", b"o" + b"\0" * 7 + b"\1", b"i", b"", b"?"],
    "keys": [b"\0" * 7 + b"\1", b"name"],
    "facts": [b"\0" * 7 + b"\1" + b"name", b"\xff", b"\0" * 8 + b"\xff"],
}


@pytest.mark.parametrize(("part", "field"), [(part, each) for part, many in DAMAGED.items() for each in many])
def test_a_damaged_field_is_a_store_error(site, part, field):
    store = site.store()
    store.commit(replace(WHOLE, facts=[Fact(1, "name", "value")]))
    key, client = site.key(part), site.server.client
    before = client.hget(key, field)
    for junk in JUNK:
        client.hset(key, field, junk)
        for use in (site.content, lambda: store.commit(WHOLE), lambda: [*store.audit()], site.leases.step):
            with suppress(StoreError):
                use()
        try:
            site.content()
        except StoreError as error:
            assert f"{site.owner:x}" in str(error)  # noqa: PT017
        client.delete(key) if before is None else client.hset(key, field, before)


def test_a_damaged_record_is_named_by_its_key(site):
    store = site.store()
    store.commit(WHOLE)
    for part, field in (
        ("partners", b"name"),
        ("entries:1", b"?"),
        ("keys", b"x"),
        ("facts", b"\xff"),
        ("meta", "commit"),
    ):
        before = site.server.client.dump(site.key(part))
        site.server.client.hset(site.key(part), field, b"junk")
        with pytest.raises(StoreError, match=re.escape(site.key(part)) + "|not the"):
            site.content()
        site.server.client.restore(site.key(part), 0, before, replace=True)
    site.server.client.zadd(site.key("audit"), {b"junk": 1.0})
    with pytest.raises(StoreError, match=re.escape(site.key("audit"))):
        list(store.audit())
    site.server.client.sadd(site.key("barred"), b"\xff")
    with pytest.raises(StoreError, match=re.escape(site.key("barred"))):
        site.content()


@pytest.mark.parametrize("field", ["version", "partitions"])
@pytest.mark.parametrize("junk", [*JUNK, b"65536", b"1000000000000"])
def test_what_holds_for_all_partitions_is_damaged(site, field, junk):
    site.server.client.hset(f"{{srup:{site.owner:x}}}:meta", field, junk)
    with pytest.raises(StoreError, match=rf"srup:{site.owner:x}.*:meta is damaged|is of version|holds no state"):
        site.worker()


def test_workers_and_holders_that_nobody_is_do_no_harm(site):
    site.server.client.zadd(f"{{srup:{site.owner:x}}}:workers", {b"\xff": 2.0**52, b"": 2.0**52, b"a:b": 2.0**52})
    site.server.client.set(site.key("lease", 1), b"\xff")
    assert site.leases.step().error is None
    with pytest.raises(LeaseLostError, match="is over"):
        RedisStore(site.held[1]).open(site.owner)


# --- several partitions at once


def test_many_commits_in_one_round_trip(server):
    site = Site(server, partitions=4)
    stores = [site.store(number) for number in range(4)]
    server.client.delete(site.key("lease", 1))
    stores[2].commit(Changes(partners=[window(1, 9)]))
    server.client.script_flush()
    results = commit_many((store, Changes(partners=[window(1, 5)])) for store in stores)
    assert [type(each) for each in results] == [type(None), LeaseLostError, StoreError, type(None)]
    assert "would go back" in str(results[2])
    assert list(site.content(0).partners) == [window(1, 5)]
    assert list(site.content(2).partners) == [window(1, 9)]
    assert commit_many([(stores[0], Changes()), (stores[1], Changes())])[0] is None
    assert commit_many([]) == []
    site.leases.close()


def test_many_commits_that_cannot_be_one_round_trip(site, server):
    store = site.store()
    with pytest.raises(ValueError, match="stands twice"):
        commit_many([(store, Changes()), (store, Changes())])
    other = Site(server)
    with pytest.raises(ValueError, match="not of one Redis connection"):
        commit_many([(store, Changes()), (other.store(), Changes())])
    other.leases.close()


def test_redis_goes_in_a_commit_of_many(own_server):
    site = Site(own_server)
    stores = [site.store(number) for number in range(2)]
    own_server.stop()
    results = commit_many((store, Changes(partners=[window(1, 5)])) for store in stores)
    assert all("refused" in str(error) for error in results)
    own_server.start()
    assert commit_many((store, Changes(partners=[window(1, 5)])) for store in stores) == [None, None]


def test_threads_of_one_worker(server):
    """Any thread may commit: each commit is there, whoever made it."""
    site = Site(server, partitions=2)
    stores = [site.store(number) for number in range(2)]
    failures = []

    def work(first):
        for number in range(first, first + 50):
            pairs = [(store, Changes(audit=[row(number)])) for store in stores]
            failures.extend(filter(None, commit_many(pairs if first % 100 else reversed(pairs))))

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 50, 100, 150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for store in stores:
        assert sorted(ids(store.audit())) == list(range(200))
    site.leases.close()


# --- what its user may do

NEEDED = ["hset", "hdel", "sadd", "srem", "zadd", "xadd", "xdel", "del", "pexpire", "hlen", "hmget", "exists", "type"]


@pytest.mark.parametrize("command", [*NEEDED, "info", "evalsha"])
def test_a_user_who_may_not_do_all_of_it_begins_nothing(site, command):
    """A command that is denied in the middle of a commit would leave half of it."""
    site.server.client.acl_setuser("w", enabled=True, nopass=True, categories=["+@all"], keys=["*"])
    url = site.server.url.replace("//", "//w:any@")
    site.leases.close()
    site.held = site.worker(url=url).step().gained
    site.store()
    site.server.client.acl_setuser("w", commands=[f"-{command}"])
    with pytest.raises(StoreError, match=r"docs/deployment\.md has the ACL that is needed"):
        site.store()
    site.server.client.acl_deluser("w")


# --- Redis Cluster


@contextmanager
def cluster_of_two(folder):
    """Two masters, each with half of the slots."""
    with ExitStack() as stack:
        ports = [str(free_port()) for _ in range(2)]
        nodes = [
            stack.enter_context(redis_server(folder / port, cluster_enabled="yes", cluster_port=port)) for port in ports
        ]
        for node, first, last in zip(nodes, (0, 8000), (7999, 16383), strict=True):
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        nodes[0].client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, ports[1])
        whole = [b"cluster_state:ok", b"cluster_known_nodes:2", b"cluster_slots_ok:16384"]
        for node in nodes:
            wait_until(lambda node=node: set(whole) <= set(node.client.execute_command("CLUSTER", "INFO").split()))
        yield nodes


def test_the_url_of_a_node_is_one_of_its_cluster(tmp_path):
    with cluster_of_two(tmp_path) as nodes:
        site = Site(nodes[0], partitions=8)
        assert len(site.held) == 8
        assert all(node.client.keys("*") for node in nodes)
        stores = [site.store(number) for number in range(8)]
        assert commit_many((store, WHOLE) for store in stores) == [None] * 8
        other = RedisMailbox(Keyspace(nodes[1].url, site.owner))
        for device in range(8):
            other.post(device, bytes([device]) * 16, b"{}", b"{}")
        assert sum(other.waiting().values()) == 8
        assert len(other.read(dict.fromkeys(range(8), Position()))) == 8
        other.close()
        with set_to(nodes[1], **{"maxmemory-policy": "volatile-lru"}):
            there = {number for number in range(8) if nodes[1].client.keys(stores[number]._keys["meta"])}
            assert 0 < len(there) < 8
            for number in range(8):
                with pytest.raises(StoreError, match="throws state") if number in there else nullcontext():
                    site.store(number)
        site.leases.close()


def test_a_cluster_that_serves_no_slots_says_so(tmp_path):
    with redis_server(tmp_path, cluster_enabled="yes", cluster_port=str(free_port())) as server:
        with pytest.raises(StoreError, match=r"slots .*redis-cli --cluster check"):
            RedisStore.create(server.url, 0x5E)
        with pytest.raises(StoreError, match=r"the cluster does not serve all slots: redis-cli --cluster check"):
            RedisStore.create(redis.Redis(port=server.port), 0x5E)


def test_a_client_of_a_single_node_of_a_cluster_is_told_of_it(tmp_path):
    with cluster_of_two(tmp_path) as nodes:
        for node in nodes:
            with pytest.raises(StoreError, match=r"it is a node of a cluster: give a URL, or a redis\.RedisCluster"):
                RedisStore.create(node.client, 0x5E, partitions=64)


@pytest.mark.parametrize("kind", ["of one node", "of the cluster"])
def test_redis_cluster(tmp_path, kind):
    """One node with all slots: it refuses a command or script whose keys are not of one slot."""
    with redis_server(tmp_path, cluster_enabled="yes", cluster_port=str(free_port())) as server:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO"), "its cluster")
        site = Site(server, partitions=4)
        if kind == "of the cluster":
            site.leases.close()
            client = redis.RedisCluster(host="127.0.0.1", port=server.port)
            site.leases = site.worker(url=client)
            site.held = sorted(site.leases.step().gained, key=lambda lease: lease.partition)
            with pytest.raises(ValueError, match="need a client of one server"):
                site.store(replicas=1)
        assert len(site.held) == 4
        stores = [site.store(number) for number in range(4)]
        changes = Changes(
            partners=[window(1, 5), window(2, 5)],
            forgotten=[2],
            inbox=[InboxEntry(1, 1, b"", "data", b"")],
            audit=[row(1)],
        )
        assert commit_many((store, changes) for store in stores) == [None] * 4
        assert list(site.content(3).partners) == changes.partners
        assert stores[0].prune(5.0) == 1
        assert site.leases.step().error is None
        site.leases.close()


def test_a_lease_of_no_redis():
    with pytest.raises(ValueError, match="not one of Redis"):
        RedisStore(Lease(None, 0, "w", 1, 1.0, lambda: 0.0))


def test_the_server_of_the_tests_is_ended(tmp_path):
    with redis_server(tmp_path) as server:
        assert isinstance(server, RedisServer)
        process = server.process
    assert not process.running


def test_the_name_of_a_redis_with_tls_is_checked(tmp_path):
    """A certificate that is trusted, and good for 127.0.0.1 alone."""
    with FirmwareHost(b"", tmp_path) as host:
        port = urlsplit(host.url(0)).port
        with pytest.raises(StoreError, match="Hostname mismatch"):
            RedisStore.create(f"rediss://localhost:{port}?ssl_ca_certs={host.certificate}", 0x5E)
        with pytest.raises(StoreError) as refused:  # it is no Redis
            RedisStore.create(f"rediss://127.0.0.1:{port}?ssl_ca_certs={host.certificate}", 0x5E)
        assert "certificate" not in str(refused.value)
