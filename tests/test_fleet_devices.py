"""What a fleet knows about its devices, of each store: read beside the server that goes on writing."""

import threading
from contextlib import closing

import pytest

from srup import Action, Fleet, MemoryStore, PolicyError, SqliteStore, StoreError
from srup.agent.contacts import PRECISION
from srup.fleet import LastUpdate
from srup.records import Changes, Fact, KeyRecord, PartnerRecord
from srup.store import Leases, RedisStore
from srup.store.partition import partition_of

from .fleet import DIGEST, SERVER, URL, key_of
from .fleet import Fleet as World
from .hostile import Broker
from .redis_server import redis_server

DEVICE = 0xD0


@pytest.fixture(params=["memory", "sqlite"])
def world(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "server.db")
    world = World(tmp_path, 3, server_options={"store": store})
    world.fleet = lambda: Fleet(store if request.param == "memory" else tmp_path / "server.db", SERVER)
    for device in world.devices.values():
        device.on_activate(lambda path: None)
    world.start().settle()
    yield world
    world.server.stop()


def test_every_device_that_has_a_key_is_listed(world):
    world.ring.add(0xF0, key_of(0xF0).public_key)  # which has never said anything
    with world.fleet() as fleet:
        found = {device.identity: device for device in fleet.devices()}
        assert list(found) == [0xD0, 0xD1, 0xD2, 0xF0]
        assert [device.member for device in found.values()] == [True, True, True, False]
        assert {identity: device.fingerprint for identity, device in found.items()} == {
            identity: key_of(identity).public_key.fingerprint for identity in found
        }
        assert abs(found[DEVICE].last_contact - world.clock.now) <= PRECISION
        assert found[0xF0].last_contact is None
        assert [device.identity for device in fleet.devices(0xD2)] == [0xD2, 0xF0]
        assert fleet.device(0xD1) == found[0xD1]
        with pytest.raises(PolicyError, match="nothing is known about ee"):
            fleet.device(0xEE)


def test_what_a_device_says_of_itself_and_its_update(world):
    world.server.identify(DEVICE)
    world.server.update(DEVICE, URL, DIGEST, version=42)
    world.settle()
    with world.fleet() as fleet:
        device = fleet.device(DEVICE)
        assert device.facts == {"description": f"device {DEVICE:x}"}
        assert (device.firmware, device.version) == (DIGEST, 42)
        assert device.update == LastUpdate("ACTIVATED", device.update.at, DIGEST, 42)
        world.server.update(DEVICE, URL, "0" * 64)
        world.settle()
        device = fleet.device(DEVICE)
        assert (device.firmware, device.version) == (DIGEST, 42)
        assert (device.update.state, device.update.digest, device.update.version) == ("FAILED", "0" * 64, None)
        assert "digest" in device.update.reason


def test_a_device_that_is_silent_or_put_out(world):
    at = dict.fromkeys(world.devices, world.clock.now)
    world.network.cut("device-d1")
    until = world.clock.now + 3600.0
    world.run(lambda: world.clock.now >= until, 7200.0)
    world.server.revoke(0xD2)
    world.settle()
    with world.fleet() as fleet:
        assert abs(fleet.device(0xD1).last_contact - at[0xD1]) <= PRECISION
        assert fleet.device(DEVICE).last_contact > at[DEVICE] + 1800
        gone = fleet.device(0xD2)
        assert (gone.member, gone.fingerprint) == (False, None)


def test_a_replayed_message_is_no_contact(world):
    hand = Broker(world, world.network)
    world.devices[DEVICE].action(SERVER, 1)
    world.settle()
    [said] = hand.heard(Action, DEVICE)
    with world.fleet() as fleet:
        before = fleet.device(DEVICE).last_contact
        world.network.cut("device-d0")
        world.clock.now += 2 * PRECISION
        hand.deliver(said)
        assert fleet.device(DEVICE).last_contact == before


def records(count):
    pem = key_of(1).public_key.to_pem()
    identities = range(1_000, 1_000 + count)
    return Changes(
        keys=[KeyRecord(identity, pem) for identity in identities],
        partners=[PartnerRecord(identity, identity % 2 == 0, True, 64, 5, 31) for identity in identities],
        facts=[Fact(identity, "heard", "1700000000") for identity in identities],
    )


def test_many_pages_and_a_server_that_is_not_kept_waiting(tmp_path):
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)
        store.commit(records(1_201))
        with Fleet(tmp_path / "server.db", SERVER) as fleet:
            devices = fleet.devices()
            found = [next(devices)]
            store.commit(Changes(facts=[Fact(1_001, "heard", "1700000060")]))  # while somebody is in the middle
            found += devices
        assert [device.identity for device in found] == list(range(1_000, 2_201))
        assert {device.last_contact for device in found} == {1_700_000_000.0}
        results = []
        with Fleet(tmp_path / "server.db", SERVER) as fleet:
            threads = [threading.Thread(target=lambda: results.append(len([*fleet.devices()]))) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert results == [1_201] * 4
    assert fleet.identity == SERVER
    with pytest.raises(StoreError, match="is not open"):
        next(fleet.devices())


@pytest.mark.process
def test_the_devices_of_all_partitions(tmp_path):
    with redis_server(tmp_path / "redis") as server:
        RedisStore.create(server.url, SERVER, partitions=4)
        everything = records(1_201)
        for lease in Leases(server.url, SERVER, ttl=3600.0).step().gained:
            store = RedisStore(lease)
            store.open(SERVER)
            mine = [record for record in everything.keys if partition_of(record.identity, 4) == lease.partition]
            store.commit(Changes(keys=mine, facts=[Fact(record.identity, "heard", "1700000000") for record in mine]))
        with Fleet(server.url, SERVER) as fleet:
            found = [*fleet.devices()]
            assert [device.identity for device in found] == list(range(1_000, 2_201))
            assert {device.last_contact for device in found} == {1_700_000_000.0}
            assert fleet.device(1_077) == found[77]
