"""Joins that are decided from another process, of each store: what waits stands there, and an order decides."""

import time
from types import SimpleNamespace

import pytest

from srup import Fleet, MemoryStore, PolicyError, Server, SqliteStore, Status
from srup.agent.joinboard import BOARD, load_joins
from srup.agent.ordered import MailOrders
from srup.errors import StoreError
from srup.records import Changes, Fact
from srup.session.flows import join_server
from srup.simulation import Clock
from srup.store import Leases, RedisStore
from srup.store.mailboxes import directory_at, mailbox_at
from srup.transport import MemoryTransport

from .fleet import SERVER, key_of
from .fleet import Fleet as World
from .redis_server import redis_server

HOME, AWAY = 0xD0, 0xD1
OPTIONS = {"admission": "human", "moderation": "orders"}


def memory(folder):
    store = MemoryStore()
    yield SimpleNamespace(place=store, open=lambda: store)


def sqlite(folder):
    yield SimpleNamespace(place=folder / "server.db", open=lambda: SqliteStore(folder / "server.db"))


def redis(folder):
    with redis_server(folder / "redis") as server:
        RedisStore.create(server.url, SERVER, partitions=1)
        lease = Leases(server.url, SERVER, ttl=3600.0).step().gained[0]
        yield SimpleNamespace(place=server.url, open=lambda: RedisStore(lease))


@pytest.fixture(params=[memory, sqlite, pytest.param(redis, marks=pytest.mark.process)], ids=lambda each: each.__name__)
def site(request, tmp_path):
    made = request.param(tmp_path)
    yield next(made)
    next(made, None)


def world_at(site, tmp_path, size=1, **options):
    """A server whose joins are decided from outside, devices that want in, and what each of them shows."""
    world = World(tmp_path, size=0, server_options=OPTIONS | {"store": site.open()} | options)
    world.clock.now = time.time()
    world.shown = {}
    for identity in range(HOME, HOME + size):
        add(world, identity)
    return world


def restart(world, site, **options):
    """Start the server anew on what the former one has left in the store."""
    former = world.server
    world.server = Server(
        SERVER,
        key_of(SERVER),
        devices=world.ring,
        broker=MemoryTransport(world.network, "server"),
        clock=world.clock,
        entropy=world.randbytes,
        **OPTIONS | {"store": site.open()} | options,
    )
    world.watch(world.server)
    assert former.engine.stopped.is_set()
    world.server.start(threads=False)


def add(world, identity):
    device = world.add(identity, join="human")
    world.shown[identity] = []
    device.on_join_value(world.shown[identity].append)
    return device


def carry_out(world, site, posted):
    """Let the server carry out what was posted, and return or raise what came of it."""
    if getattr(world.server.engine.store, "mailbox", None) is None:  # then a worker reads it, and hands it over
        orders = world.server.engine.part(MailOrders)
        mailbox = mailbox_at(site.place, SERVER)
        for _, entry in mailbox.read({0: orders.position}, 0.0):
            orders.take(entry)
        mailbox.close()
    world.settle()
    world.server.engine.turn()
    world.settle()
    return posted.result(timeout=0.0)


def fleet_at(site):
    return Fleet(site.place, SERVER)


def values_in(world, site):
    """Return the joins that stand in the store, those that are over included."""
    directory = directory_at(site.place, SERVER)
    try:
        return [join for fact in directory.facts(SERVER, BOARD) for join in load_joins(fact)]
    finally:
        if not isinstance(site.place, MemoryStore):
            directory.close()


def test_a_join_that_waits_is_seen_and_accepted(site, tmp_path):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        [join] = fleet.joins()
        [value] = world.shown[HOME]
        assert (join.device, join.kind, join.observer) == (HOME, "human", None)
        assert (join.words, join.number, join.qr) == (value.words, value.groups, value.text)
        assert join.fingerprint == key_of(HOME).public_key.fingerprint
        assert join.expires - join.since == pytest.approx(900.0, abs=1.0)
        assert value.text not in repr(join)
        assert carry_out(world, site, fleet.decide_join(HOME, "accept", join, by="ada")) is None
        assert world.server.members == {HOME}
        assert world.devices[HOME].joined
        assert fleet.joins() == []
        assert values_in(world, site) == []
        assert world.faults() == 0


@pytest.mark.parametrize(("decision", "status"), [("refuse", Status.JOIN_REFUSED), ("fail", Status.JOIN_FAIL)])
def test_a_join_is_not_granted(site, tmp_path, decision, status):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        [join] = fleet.joins()
        carry_out(world, site, fleet.decide_join(HOME, decision, join.id))
        assert (world.server.members, fleet.joins(), values_in(world, site)) == (frozenset(), [], [])
        with pytest.raises(PolicyError, match=status.name):
            world.devices[HOME].wait_joined(0)


def test_a_decision_about_an_older_join_does_not_decide_the_next(site, tmp_path):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        [older] = fleet.joins()
        world.devices[HOME].join()  # somebody else, perhaps, who is about to show another value
        world.settle()
        [newer] = fleet.joins()
        assert (older.device, older.id != newer.id, older.value != newer.value) == (HOME, True, True)
        with pytest.raises(PolicyError, match="no such join of d0 waits"):
            carry_out(world, site, fleet.decide_join(HOME, "accept", older))
        assert world.server.members == frozenset()
        assert fleet.joins() == [newer]
        carry_out(world, site, fleet.decide_join(HOME, "accept", newer))
        assert world.server.members == {HOME}


def test_a_decision_about_the_join_of_another_device_decides_nothing(site, tmp_path):
    with world_at(site, tmp_path, 2).start() as world, fleet_at(site) as fleet:
        world.settle()
        assert [join.device for join in fleet.joins()] == [HOME, AWAY]
        home, _ = fleet.joins()
        with pytest.raises(PolicyError, match="no such join of d1 waits"):
            carry_out(world, site, fleet.decide_join(AWAY, "accept", home))
        assert world.server.members == frozenset()
        assert [join.device for join in fleet.joins()] == [HOME, AWAY]


def test_whoever_decides_first_has_decided(site, tmp_path):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        [join] = fleet.joins()
        first, second = (fleet.decide_join(HOME, each, join) for each in ("refuse", "accept"))
        carry_out(world, site, first)
        with pytest.raises(PolicyError, match="no such join"):
            second.result(timeout=0.0)
        assert world.server.members == frozenset()


def test_a_decision_that_comes_too_late(site, tmp_path, monkeypatch):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        [join] = fleet.joins()
        monkeypatch.setattr(time, "time", lambda: join.expires)  # before the server has said that it is over
        assert fleet.joins() == []
        monkeypatch.undo()
        world.clock.now += 1000.0
        with pytest.raises(PolicyError, match=r"time was up|no such join"):
            carry_out(world, site, fleet.decide_join(HOME, "accept", join))
        assert world.server.members == frozenset()
        assert values_in(world, site) == []


def test_what_the_process_before_has_left_waits_no_more(site, tmp_path):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        [before] = fleet.joins()
        world.server.engine.abandon()  # killed: what stands in the store stays
        assert fleet.joins() == [before]
        restart(world, site)
        world.settle()
        [after] = fleet.joins()
        assert (before.id != after.id, world.shown[HOME][-1]) == (True, after.value)
        with pytest.raises(PolicyError, match="no such join"):
            carry_out(world, site, fleet.decide_join(HOME, "accept", before))
        carry_out(world, site, fleet.decide_join(HOME, "accept", after))
        assert world.server.members == {HOME}


def test_a_server_that_moderates_itself_takes_away_what_stands_there(site, tmp_path):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        assert len(fleet.joins()) == 1
        world.server.engine.abandon()
        restart(world, site, moderation="handler")
        world.settle()
        assert (fleet.joins(), values_in(world, site)) == ([], [])


def test_a_server_that_ends_leaves_no_value_behind(site, tmp_path):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        assert len(fleet.joins()) == 1
        world.server.stop()
        assert fleet.joins() == []


def test_a_device_that_is_put_out_waits_no_more(site, tmp_path):
    with world_at(site, tmp_path).start() as world, fleet_at(site) as fleet:
        world.settle()
        [join] = fleet.joins()
        world.server.revoke(HOME)
        world.settle()
        assert values_in(world, site) == []
        with pytest.raises(PolicyError, match="no such join"):
            carry_out(world, site, fleet.decide_join(HOME, "accept", join))


@pytest.mark.parametrize("skew", [3600.0, -600.0])
def test_a_clock_that_is_set_moves_the_end(site, tmp_path, skew, monkeypatch):
    clock = Clock(ahead_of=Clock(time.time()))
    world = world_at(site, tmp_path, clock=clock)
    with world.start(), fleet_at(site) as fleet:
        world.settle()
        [before] = fleet.joins()
        clock.skew = skew
        monkeypatch.setattr(time, "time", clock)
        world.settle()
        [after] = fleet.joins()
        assert (after.id, after.expires) == (before.id, pytest.approx(before.expires + skew, abs=1.0))


def test_a_handler_and_an_order_may_both_decide(site, tmp_path):
    world = world_at(site, tmp_path)
    pending = []
    world.server.on_moderation(pending.append)
    with world.start(), fleet_at(site) as fleet:
        world.settle()
        [join] = fleet.joins()
        assert (pending[0].id, pending[0].value) == (join.id, join.value)
        pending[0].accept()
        world.settle()
        assert (world.server.members, fleet.joins()) == ({HOME}, [])


def test_an_observed_join_is_seen_without_its_value(site, tmp_path):
    world = world_at(site, tmp_path, 0, admission="observed", observers=[AWAY])
    add(world, AWAY)
    read = []
    world.devices[AWAY].on_observation(lambda device: read.append([*fleet.joins()]))
    with world.start(), fleet_at(site) as fleet:
        world.settle()
        carry_out(world, site, fleet.decide_join(AWAY, "accept", fleet.joins()[0]))
        device = world.add(HOME, join="observed", observer=AWAY)
        device.on_join_value(lambda value: None)
        device.start(threads=False)
        world.settle()
        [[join]] = read
        assert (join.device, join.kind, join.observer, join.value, join.words) == (HOME, "observed", AWAY, None, None)
        assert fleet.joins() == []


def test_t9_no_more_joins_wait_than_a_server_has_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr(join_server, "MAX_MODERATED", 5)
    [site] = [next(memory(tmp_path))]
    with world_at(site, tmp_path, 12).start() as world, fleet_at(site) as fleet:
        for device in world.devices.values():
            for _ in range(3):
                device.join()
        world.settle()
        assert len(fleet.joins()) == 5
        assert len(values_in(world, site)) == 5


def test_a_server_without_a_store_cannot_be_decided_for(tmp_path):
    with pytest.raises(ValueError, match="needs a store"):
        World(tmp_path, server_options=OPTIONS)
    with pytest.raises(ValueError, match="moderation is one of handler, orders"):
        World(tmp_path, server_options={"moderation": "email"})


@pytest.mark.parametrize(
    "damage",
    ["[", "7", "[7]", '[{"device": 1}]', '[{"device":208,"id":1,"kind":"","since":0,"expires":0,"fingerprint":""}]'],
)
def test_what_is_no_join_is_named(damage):
    with pytest.raises(StoreError, match=r"joins? that waits?"):
        load_joins(damage)


def test_a_record_of_a_later_version_with_more_in_it_is_named():
    store = MemoryStore()
    store.open(SERVER)
    store.commit(Changes(facts=[Fact(SERVER, BOARD[0], '[{"device": 208, "more": 1}]')]))
    with Fleet(store, SERVER) as fleet, pytest.raises(StoreError, match="not readable"):
        fleet.joins()


@pytest.mark.parametrize(
    ("details", "said"),
    [
        (("maybe", "0" * 32), "a decision is accept, refuse, fail"),
        (("accept", "d0"), "no id of a join"),
        (("accept", "0" * 32, "a" * 101), "up to 100 characters"),
        (("accept", "0" * 32, "ada\n"), "can be printed"),
    ],
)
def test_a_decision_that_makes_no_sense_is_not_posted(details, said):
    decision, join, *by = details
    with Fleet(MemoryStore(), SERVER) as fleet, pytest.raises(ValueError, match=said):
        fleet.decide_join(HOME, decision, join, by="".join(by))
