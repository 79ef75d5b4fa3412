"""Workers that share the devices of a server: a real Redis, a real broker, real leases."""

import os
import threading
from collections import defaultdict

import pytest

from srup import Device, KeyRing, PolicyError, PrivateKey, StoreError, TransportError
from srup.agent.clientid import client_id
from srup.agent.transaction import Call
from srup.agent.worker import Worker
from srup.store import RedisStore
from srup.store.partition import partition_of
from srup.transport import LocalBroker, MqttTransport, Reactor

from .fleet import SERVER, WAIT, key_of, wait_until
from .redis_server import redis_server

pytestmark = pytest.mark.process

PARTITIONS = 8
TTL = 1.5
DEVICES = range(0xD00, 0xD00 + 24)


class Site:
    """A broker, a Redis that was set up, devices on one network thread, and whoever works."""

    def __init__(self, folder, broker, redis):
        self.redis = redis
        self.url = broker.url
        RedisStore.create(self.redis.url, SERVER, PARTITIONS)
        self.ring = KeyRing({device: key_of(device).public_key for device in DEVICES})
        self.reactor = Reactor()
        self.heard = defaultdict(list)
        self.workers = []
        self.devices = {device: self.device(device, folder) for device in DEVICES}

    def device(self, identity, folder):
        return Device(
            identity,
            key_of(identity),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MqttTransport(self.url, f"srup-{identity:x}", reactor=self.reactor),
            firmware=folder / "firmware",
        )

    def worker(self, **options):
        def setup(server):
            server.on_data("n", "uint32")(lambda device, data_id, value: self.heard[device].append(value))

        options = {"store": self.redis.url, "ttl": TTL, "setup": setup, "key": key_of(SERVER)} | options
        worker = Worker(SERVER, devices=self.ring, broker=self.url, **options)
        self.workers.append(worker)
        return worker.start()

    def served(self, *workers):
        """Whether these workers serve all partitions, in fair shares."""
        shares = sorted(len(worker.servers) for worker in workers)
        return sum(shares) == PARTITIONS and shares[-1] - shares[0] <= 1

    def all_joined(self):
        return all(device.joined for device in self.devices.values())

    def send(self, value):
        for device in self.devices.values():
            device.send("n", value, "uint32")

    def has(self, count):
        return all(len(self.heard[device]) >= count for device in self.devices)

    def close(self):
        for device in self.devices.values():
            device.stop(0.5)
        for worker in self.workers:
            worker.stop()
        self.reactor.stop(1.0)


@pytest.fixture
def site(tmp_path):
    with LocalBroker() as broker, redis_server(tmp_path / "redis") as redis:
        site = Site(tmp_path, broker, redis)
        try:
            yield site
        finally:
            site.close()


def test_workers_share_the_devices_join_and_leave_and_nothing_is_lost(site):
    first = site.worker()
    wait_until(lambda: site.served(first), "one worker serves everything")
    for device in site.devices.values():
        device.start()
    wait_until(site.all_joined, "all have joined")
    site.send(0)
    wait_until(lambda: site.has(1), "all values are there")
    second = site.worker()
    wait_until(lambda: site.served(first, second), "two workers share")
    site.send(1)
    wait_until(lambda: site.has(2), "all values are there")
    assert {partition_of(device, PARTITIONS) for device in DEVICES} == set(first.servers) | set(second.servers)
    first.stop()
    wait_until(lambda: site.served(second), "the other serves everything")
    site.send(2)
    wait_until(lambda: site.has(3), "all values are there")
    assert site.heard == {device: [0, 1, 2] for device in DEVICES}


def test_a_device_that_another_worker_serves_is_named(site):
    first, second = site.worker(), site.worker()
    wait_until(lambda: site.served(first, second), "two workers share")
    mine = next(device for device in DEVICES if partition_of(device, PARTITIONS) in first.servers)
    assert first.server_of(mine).identity == SERVER
    with pytest.raises(PolicyError, match="not served by this worker"):
        second.server_of(mine)


@pytest.mark.process
def test_the_sessions_of_partitions_are_secret_and_outlive_workers_and_keys(site):
    def sessions(worker):
        return {partition: server.debug.transport.client_id for partition, server in worker.servers.items()}

    first = site.worker()
    wait_until(lambda: site.served(first), "one worker serves everything")
    before = sessions(first)
    assert len(set(before.values())) == PARTITIONS
    assert not {client_id(key_of(SERVER), SERVER, partition) for partition in before} & set(before.values())
    first.stop()
    second = site.worker(key=PrivateKey.generate("ed25519"))
    wait_until(lambda: site.served(second), "another one serves everything")
    assert sessions(second) == before


def test_a_redis_that_was_not_set_up_is_refused(site):
    with pytest.raises(StoreError, match="never set up"):
        Worker(0x77, key_of(SERVER), devices=KeyRing(), broker=site.url, store=site.redis.url)


def test_observed_joins_are_refused(site):
    with pytest.raises(PolicyError, match="different partitions"):
        site.worker(admission="observed")


def test_one_thread_calls_all_handlers(site):
    threads = set()
    worker = site.worker(setup=lambda server: server.on_data()(lambda *_: threads.add(threading.current_thread().name)))
    wait_until(lambda: site.served(worker), "one worker serves everything")
    for device in site.devices.values():
        device.start()
    wait_until(site.all_joined, "all have joined")
    site.send(0)
    wait_until(lambda: sum(server.counts["verified"] for server in worker.servers.values()) >= 2 * len(DEVICES))
    wait_until(lambda: threads)
    assert len(threads) == 1


def test_one_setup_is_called_at_a_time(site):
    inside = threading.Lock()
    overlap = threading.Event()

    def setup(server):
        if not inside.acquire(blocking=False):
            overlap.set()
            return
        overlap.wait(0.1)  # time for the other partitions' threads to come in
        inside.release()

    worker = site.worker(setup=setup)
    wait_until(lambda: site.served(worker), "one worker serves everything")
    assert not overlap.is_set()


def test_no_handler_is_called_under_a_lease_that_is_over(site):
    """The thread of the turns may not have noticed: the process was stopped, say."""
    worker = site.worker()
    wait_until(lambda: site.served(worker), "one worker serves everything")
    server = next(iter(worker.servers.values()))
    called = []
    server.engine.handlers.run_calls([Call(lambda: called.append(1))])
    server.lease.end()
    server.engine.handlers.run_calls([Call(lambda: called.append(2))])
    assert called == [1]


def test_who_waits_for_an_answer_is_told_when_the_lease_is_lost(site):
    """A handler that waits would hold up those of all other partitions."""
    worker = site.worker()
    wait_until(lambda: site.served(worker), "one worker serves everything")
    server = worker.server_of(DEVICES[0])
    waiting = server.send_data(DEVICES[0], "n", b"value")  # the device is not there
    wait_until(lambda: server.debug.values == 1)
    server.lease.end()
    server.engine.inbox.wake()
    assert isinstance(waiting.exception(WAIT), TransportError)
    with pytest.raises(TransportError):
        server.send_data(DEVICES[0], "n", b"value").result(WAIT)


def test_a_partition_whose_turn_fails_begins_anew_and_the_others_go_on(site):
    worker = site.worker()
    wait_until(lambda: site.served(worker), "one worker serves everything")
    for device in site.devices.values():
        device.start()
    wait_until(site.all_joined, "all have joined")
    partition = partition_of(DEVICES[0], PARTITIONS)
    server = worker.servers[partition]

    def fault(*_):
        raise RuntimeError("half of the turn is done")

    server.engine.serving.close = fault
    site.send(0)
    wait_until(lambda: site.has(1), "all values are there")
    wait_until(lambda: site.served(worker), "everything is served")
    assert worker.alive
    assert worker.servers[partition] is not server
    assert site.heard == {device: [0] for device in DEVICES}


def test_the_listed_keys_of_all_partitions_follow_a_list(site):
    """Who is listed no more is put out, at once and by whoever serves the device next; who is new may join."""
    changes = []
    worker = site.worker()
    wait_until(lambda: site.served(worker), "one worker serves everything")
    worker.reload_keys(site.ring)
    for device in site.devices.values():
        device.start()
    wait_until(site.all_joined, "all have joined")
    gone, others = DEVICES[0], DEVICES[1:]
    keys = {device: site.ring[device] for device in others}
    worker.reload_keys(keys, changes.append)
    wait_until(lambda: changes, "somebody is put out")
    assert [each.removed for each in changes] == [(gone,)]
    server = worker.server_of(gone)
    assert gone not in server.devices
    assert gone not in server.members
    worker.stop()

    changes.clear()
    keys.pop(others[0])
    keys[gone] = site.ring[gone]
    second = Worker(SERVER, key_of(SERVER), devices=KeyRing(keys), broker=site.url, store=site.redis.url, ttl=TTL)
    site.workers.append(second)
    second.reload_keys(keys, changes.append)
    second.start()
    wait_until(lambda: site.served(second), "another one serves everything")
    wait_until(lambda: len(changes) == 2, "it has told what has changed")
    assert sorted((each.added, each.removed) for each in changes) == [((), (others[0],)), ((gone,), ())]
    site.devices[gone].join()
    wait_until(lambda: gone in second.server_of(gone).members, "who is listed again joins")
    assert others[0] not in second.server_of(others[0]).devices


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_gives_back_no_lease_of_its_parent(site):
    worker = site.worker()
    wait_until(lambda: site.served(worker), "one worker serves everything")
    held = {lease.token for lease in worker.leases}
    child = os.fork()
    if child == 0:
        try:
            worker.stop(1.0)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    client = site.redis.client
    keys = list(client.scan_iter("*lease*"))
    assert {client.get(key).decode() for key in keys} == held
