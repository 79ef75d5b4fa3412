"""Orders from outside: a real Redis, a real broker, workers in this process and in others."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

from srup import (
    Device,
    EncodeError,
    PolicyError,
    Status,
    StoreError,
    UnansweredError,
    UpdateError,
)
from srup.agent.members import Members
from srup.fetch import MemoryFetcher
from srup.fleet import Orders, PostedOrder
from srup.store.keyspace import Keyspace
from srup.store.partition import partition_of
from srup.store.redismail import RedisMailbox
from srup.transport import LocalBroker, MqttTransport
from srup.transport.broker import free_port
from srup.update import UpdateState

from .fleet import DIGEST, FIRMWARE, SERVER, URL, WAIT, key_of, wait_until
from .redis_server import redis_server
from .test_agent_worker import DEVICES, PARTITIONS, TTL, Site

pytestmark = pytest.mark.process

DEVICE = DEVICES[0]
NAN, INF = float("nan"), float("inf")
NEW = 0xE01  # a device whose key nobody has registered


class OrderedSite(Site):
    """A site whose devices count what they do, and somebody who orders them about."""

    def __init__(self, folder, broker, redis):
        self.folder = folder
        self.done = defaultdict(list)  # the ids of the actions that each device has done
        super().__init__(folder, broker, redis)
        self.orders = Orders(redis.url, SERVER)

    def device(self, identity, folder, **options):
        device = Device(
            identity,
            key_of(identity),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MqttTransport(self.url, f"srup-{identity:x}", reactor=self.reactor),
            firmware=folder / f"firmware-{identity:x}",
            fetcher=MemoryFetcher({URL: FIRMWARE}),
            description=f"device {identity:x}",
            **options,
        )
        for action in range(256):
            device.on_action(action)(lambda server, action=action: self.done[identity].append(action))
        device.on_activate(lambda path: None)
        return device

    def again(self, identity):
        """A device that was away is there again."""
        self.devices[identity] = device = self.device(identity, self.folder)
        return device.start()

    def served_by(self, *workers):
        wait_until(lambda: self.served(*workers), "everything is served")

    def joined(self, *identities):
        for identity in identities:
            self.devices[identity].start()
        wait_until(lambda: all(self.devices[identity].joined for identity in identities), "they have joined")
        return self

    def mailbox(self, device):
        return Keyspace(self.redis.url, SERVER).key(partition_of(device, PARTITIONS), "orders")

    def left(self):
        """How many orders nobody has taken."""
        return sum(self.orders.waiting().values())

    def process(self, moment):
        """A worker process that kills itself."""
        keys = self.folder / "keys"
        keys.mkdir()
        key_of(SERVER).save(self.folder / "server.pem")
        for device in DEVICES:
            key_of(device).public_key.save(keys / f"{device:x}.pem")
        command = [sys.executable, "-m", "tests.order_worker", moment, self.redis.url, self.url, str(TTL)]
        return subprocess.Popen([*command, str(self.folder)], cwd=Path(__file__).parents[1])

    def close(self):
        self.orders.close()
        super().close()


@pytest.fixture
def site(tmp_path):
    with LocalBroker() as broker, redis_server(tmp_path / "redis") as redis:
        site = OrderedSite(tmp_path, broker, redis)
        try:
            yield site
        finally:
            site.close()


def rights(user):
    """The line of docs/deployment.md that makes a user of Redis, as the arguments of a command."""
    page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    return re.search(rf"ACL SETUSER {user} .*?(?=\n *```)", page, re.DOTALL)[0].split()


@pytest.mark.parametrize("kind", ["single", "cluster"])
def test_users_with_the_documented_rights_can_do_all_of_it(tmp_path, kind):
    settings = {"cluster_enabled": "yes", "cluster_port": str(free_port())} if kind == "cluster" else {}
    with LocalBroker() as broker, redis_server(tmp_path / "redis", **settings) as redis:
        if settings:
            redis.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: b"cluster_state:ok" in redis.client.execute_command("CLUSTER", "INFO"))
        for user in ("srup-5e", "orders-5e"):
            redis.client.execute_command(*rights(user))
        anybody = redis.url
        redis.url = anybody.replace("//", "//srup-5e:PASSWORD@")
        site = OrderedSite(tmp_path, broker, redis)
        site.orders.close()
        site.orders = Orders(anybody.replace("//", "//orders-5e:PASSWORD@"), SERVER)
        try:
            worker = site.worker()
            site.joined(DEVICE)
            assert site.orders.action(DEVICE, 1).result(WAIT) is Status.ACTION_SUCCESS
            assert site.orders.update(DEVICE, URL, DIGEST).result(WAIT) is UpdateState.ACTIVATED
            site.orders.revoke(DEVICE).result(WAIT)
            waits = site.orders.send_data(DEVICES[1], "n", b"value")
            wait_until(lambda: site.left() == 0)
            store = worker.server_of(DEVICE).debug.store
            assert [*store.audit()]
            assert store.prune(time.time() + 60.0)
            worker.stop()
            worker = site.worker()
            site.devices[DEVICES[1]].on_data("n")(lambda server, name, value: None)
            site.joined(DEVICES[1])
            waits.result(WAIT)
            assert worker.trouble == {}
        finally:
            site.close()
        assert {entry["object"] for entry in redis.client.acl_log()} <= {"client|setinfo", "client|maint_notifications"}


# --- what can be ordered


def test_any_device_can_be_ordered_whichever_worker_serves_it(site):
    first, second = site.worker(), site.worker()
    site.served_by(first, second)
    site.joined(*DEVICES)
    posted = [site.orders.action(device, 7) for device in DEVICES]
    assert [order.result(WAIT) for order in posted] == [Status.ACTION_SUCCESS] * len(DEVICES)
    assert site.done == {device: [7] for device in DEVICES}
    assert {partition_of(device, PARTITIONS) for device in DEVICES} == set(range(PARTITIONS))
    assert site.left() == 0


def test_what_a_device_says_reaches_who_asked(site):
    site.worker()
    site.joined(DEVICE)
    assert site.orders.identify(DEVICE).result(WAIT) == f"device {DEVICE:x}"
    site.devices[DEVICE].engine.handlers.actions.pop(9)
    order = site.orders.action(DEVICE, 9)
    assert order.result(WAIT) is Status.ACTION_UNKNOWN
    assert [report.state for report in order.reports(WAIT)] == ["POSTED", "TAKEN", "DONE"]


def test_an_update_tells_each_of_its_states(site):
    site.worker()
    site.joined(DEVICE)
    order = site.orders.update(DEVICE, URL, DIGEST, version=3)
    assert order.result(WAIT) is UpdateState.ACTIVATED
    states = [report.state for report in order.reports(WAIT)]
    assert states == ["POSTED", "FETCHING", "READY", "ACTIVATING", "ACTIVATED"]
    assert site.orders.find(order.id).report().state == "ACTIVATED"


def test_an_update_that_fails_tells_the_status_of_the_device(site):
    site.worker()
    site.joined(DEVICE)
    order = site.orders.update(DEVICE, URL, "0" * 64)
    with pytest.raises(UpdateError, match="UPDATE_FAIL_DIGEST") as failure:
        order.result(WAIT)
    assert failure.value.status is Status.UPDATE_FAIL_DIGEST


@pytest.mark.parametrize("name", ["order", "id", "token"])
def test_an_update_that_is_held_is_activated_by_its_name(site, name):
    site.worker()
    site.joined(DEVICE)
    order = site.orders.update(DEVICE, URL, DIGEST, hold=True)
    with pytest.raises(PolicyError, match="no update"):
        site.orders.activate(f"{DEVICE:x}.{'0' * 32}").result(WAIT)
    wait_until(lambda: order.report().state == "READY", "the device has the file")
    named = {"order": order, "id": order.id, "token": order.report().token}[name]
    assert site.orders.activate(named).result(WAIT) is None
    assert order.result(WAIT) is UpdateState.ACTIVATED
    with pytest.raises(PolicyError, match="no update"):
        site.orders.activate(named).result(WAIT)


def test_a_value_is_done_when_the_device_has_it(site):
    got = []
    site.devices[DEVICE].on_data("n", "uint32")(lambda server, name, value: got.append(value))
    site.worker()
    site.joined(DEVICE)
    orders = [site.orders.send_data(DEVICE, "n", number, "uint32") for number in range(5)]
    assert [order.result(WAIT) for order in orders] == [None] * 5
    assert got == list(range(5))
    with pytest.raises(PolicyError, match="does not know this value"):
        site.orders.send_data(DEVICE, "unknown", b"x").result(WAIT)


def test_devices_are_put_out_and_sent_elsewhere(site):
    site.worker()
    site.joined(DEVICE)
    assert site.orders.terminate(DEVICE).result(WAIT) is None
    wait_until(lambda: not site.devices[DEVICE].joined, "it is out")
    with pytest.raises(PolicyError, match="not joined"):
        site.orders.action(DEVICE, 1).result(WAIT)
    site.devices[DEVICE].join()
    wait_until(lambda: site.devices[DEVICE].joined, "it is back")
    assert site.orders.command_join(DEVICE, 0x99).result(WAIT) is Status.JOIN_REFUSED
    assert site.orders.deregister(DEVICE).result(WAIT) is None
    wait_until(lambda: not site.devices[DEVICE].joined, "it is out for good")
    with pytest.raises(PolicyError, match="no key is registered"):
        site.orders.remove(DEVICE).result(WAIT)


def test_a_revoked_device_is_cut_off_and_stays_so(site):
    worker = site.worker()
    site.joined(DEVICE)
    under_way = site.orders.update(DEVICE, URL, DIGEST, hold=True)
    wait_until(lambda: under_way.report().state == "READY")
    assert site.orders.revoke(DEVICE).result(WAIT) is None
    with pytest.raises(PolicyError, match="was revoked"):
        under_way.result(WAIT)
    server = worker.server_of(DEVICE)
    assert DEVICE not in server.members
    before = server.counts["UnknownSenderError"]
    site.devices[DEVICE].join()
    wait_until(lambda: server.counts["UnknownSenderError"] > before, "it is a stranger")
    assert site.heard[DEVICE] == []
    with pytest.raises(PolicyError, match="nothing to revoke"):
        site.orders.revoke(DEVICE).result(WAIT)
    with pytest.raises(PolicyError, match="was revoked"):
        site.orders.register(DEVICE, key_of(DEVICE).public_key).result(WAIT)
    worker.stop()
    other = site.worker()
    site.served_by(other)
    assert DEVICE not in other.server_of(DEVICE).devices


def test_a_revoked_device_with_a_new_key_is_known_to_the_next_worker_too(site):
    """Its old key still stands in the folder of keys, from which every worker starts."""
    worker = site.worker()
    assert site.orders.revoke(DEVICE).result(WAIT) is None
    new = key_of(DEVICE, "p256").public_key
    assert site.orders.register(DEVICE, new).result(WAIT) is None
    worker.stop()
    other = site.worker()
    site.served_by(other)
    assert other.server_of(DEVICE).devices[DEVICE] == new


def test_a_device_that_was_registered_from_outside_joins(site):
    site.worker()
    site.devices[NEW] = site.device(NEW, site.folder)
    assert site.orders.register(NEW, key_of(NEW).public_key).result(WAIT) is None
    assert site.orders.register(NEW, key_of(NEW).public_key).result(WAIT) is None
    with pytest.raises(PolicyError, match="another key is registered"):
        site.orders.register(NEW, key_of(DEVICE).public_key).result(WAIT)
    site.joined(NEW)
    assert site.orders.action(NEW, 1).result(WAIT) is Status.ACTION_SUCCESS
    assert site.orders.remove(NEW).result(WAIT) is None
    with pytest.raises(PolicyError, match="not joined"):
        site.orders.action(NEW, 1).result(WAIT)


# --- nothing is lost, nothing is done twice


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_order_is_done_once_when_its_worker_is_killed_at_the_commit(site, moment):
    worker = site.worker()
    site.joined(DEVICE)
    worker.stop()
    process = site.process(moment)
    order = site.orders.action(DEVICE, 5)
    assert process.wait(WAIT) == -signal.SIGKILL
    assert site.left() == (1 if moment == "before" else 0)
    assert site.done[DEVICE] == []
    site.worker()
    assert order.result(WAIT) is Status.ACTION_SUCCESS
    assert site.orders.action(DEVICE, 6).result(WAIT) is Status.ACTION_SUCCESS
    assert site.done[DEVICE] == [5, 6]
    assert [report.state for report in order.reports(WAIT)] == ["POSTED", "TAKEN", "DONE"]


def test_a_revocation_that_is_interrupted_is_done_and_says_so(site, monkeypatch):
    """The key goes in a commit of its own; what becomes of the membership would have come after."""
    worker = site.worker()
    site.joined(DEVICE)
    server = worker.server_of(DEVICE)
    monkeypatch.setattr(worker, "_abandon", lambda _: None)  # or the store may be closed before the commit
    monkeypatch.setattr(server.engine.part(Members), "shut_out", lambda *_: worker.forget(server) or 1 / 0)
    monkeypatch.setattr(server.engine, "finish", lambda transaction, error: None)
    order = site.orders.revoke(DEVICE)
    assert order.result(WAIT) is None
    worker.stop()
    other = site.worker()
    site.served_by(other)
    assert DEVICE not in other.server_of(DEVICE).members
    assert site.left() == 0


def test_what_is_under_way_is_reported_by_the_next_worker(site):
    got = []
    worker = site.worker()
    site.joined(DEVICE)
    site.devices[DEVICE].stop(0.5)
    action, update = site.orders.action(DEVICE, 3), site.orders.update(DEVICE, URL, DIGEST)
    value = site.orders.send_data(DEVICE, "n", 4, "uint32")
    for order, state in ((action, "TAKEN"), (update, "FETCHING"), (value, "TAKEN")):
        wait_until(lambda order=order, state=state: order.report().state == state, state)
    worker.stop()
    site.worker()
    site.devices[DEVICE] = device = site.device(DEVICE, site.folder)
    device.on_data("n", "uint32")(lambda server, name, value: got.append(value))
    device.start()
    assert action.result(WAIT) is Status.ACTION_SUCCESS
    assert update.result(WAIT) is UpdateState.ACTIVATED
    assert value.result(WAIT) is None
    assert site.done[DEVICE] == [3]
    wait_until(lambda: got == [4], "the value is handled")  # a device without a store confirms before that


def test_a_value_waits_for_a_device_that_has_not_joined_yet_over_a_restart(site):
    got = []
    worker = site.worker()
    value = site.orders.send_data(DEVICE, "n", 4, "uint32")
    wait_until(lambda: value.report().state == "TAKEN")
    worker.stop()
    other = site.worker()
    site.served_by(other)
    site.devices[DEVICE].on_data("n", "uint32")(lambda server, name, value: got.append(value))
    site.joined(DEVICE)
    assert value.result(WAIT) is None
    wait_until(lambda: got == [4], "the value is handled")  # a device without a store confirms before that


def test_a_value_that_waits_for_a_device_is_given_up_when_that_is_revoked(site):
    site.worker()
    site.joined(DEVICE)
    site.orders.terminate(DEVICE).result(WAIT)
    value = site.orders.send_data(DEVICE, "n", 4, "uint32")
    wait_until(lambda: value.report().state == "TAKEN")
    site.orders.revoke(DEVICE).result(WAIT)
    with pytest.raises(PolicyError, match="was revoked"):
        value.result(WAIT)


def test_an_order_for_a_device_that_is_away_is_done_when_it_comes(site):
    site.worker()
    site.joined(DEVICE)
    site.devices[DEVICE].stop(0.5)
    order = site.orders.action(DEVICE, 8)
    with pytest.raises(TimeoutError, match="it stands"):
        order.result(0.5)
    site.again(DEVICE)
    assert order.result(WAIT) is Status.ACTION_SUCCESS
    assert site.done[DEVICE] == [8]


def test_an_order_waits_for_a_worker_but_not_longer_than_it_lasts(site):
    worker = site.worker()
    site.joined(DEVICE)
    worker.stop()
    late, good = site.orders.action(DEVICE, 1, lifetime=0.001), site.orders.action(DEVICE, 2)
    assert (late.report().state, site.left()) == ("POSTED", 2)
    site.worker()
    assert good.result(WAIT) is Status.ACTION_SUCCESS
    with pytest.raises(UnansweredError, match="no worker took it"):
        late.result(WAIT)
    assert site.done[DEVICE] == [2]


def test_orders_flow_in_order_while_workers_come_and_go(site):
    first = site.worker()
    site.joined(*DEVICES)
    posted = defaultdict(list)
    over = threading.Event()

    def post():
        with Orders(site.redis.url, SERVER) as orders:
            for action in range(256):
                for device in DEVICES[:6]:
                    posted[device].append(orders.action(device, action))
                if over.is_set():
                    return

    poster = threading.Thread(target=post)
    poster.start()
    second = site.worker()
    site.served_by(first, second)
    third = site.worker()
    first.stop()
    site.served_by(second, third)
    over.set()
    poster.join()
    for device, orders in posted.items():
        assert {order.result(WAIT) for order in orders} == {Status.ACTION_SUCCESS}
        assert site.done[device] == list(range(len(orders)))
    assert len(posted[DEVICE]) > 1
    assert site.left() == 0


def test_two_posters_do_not_mix(site):
    site.worker()
    site.joined(*DEVICES[:2])
    with Orders(site.redis.url, SERVER) as other:
        mine = [site.orders.action(DEVICES[0], number) for number in range(50)]
        theirs = [other.action(DEVICES[number % 2], 100 + number) for number in range(50)]
        assert {order.result(WAIT) for order in [*mine, *theirs]} == {Status.ACTION_SUCCESS}
        assert other.find(mine[0].id).result(WAIT) is Status.ACTION_SUCCESS
    assert [each for each in site.done[DEVICES[0]] if each < 100] == list(range(50))
    assert sorted([*site.done[DEVICES[0]], *site.done[DEVICES[1]]]) == [*range(50), *range(100, 150)]


def test_a_post_that_is_repeated_is_one_order(site):
    """The client repeats a request whose answer was lost."""
    site.worker()
    site.joined(DEVICE)
    posts = []
    post = RedisMailbox.post
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedisMailbox, "post", lambda *a, **k: posts.append((a, k)) or post(*a, **k) or post(*a, **k))
        assert site.orders.action(DEVICE, 1).result(WAIT) is Status.ACTION_SUCCESS
    post(*posts[0][0], **posts[0][1])
    assert site.orders.action(DEVICE, 2).result(WAIT) is Status.ACTION_SUCCESS
    assert site.done[DEVICE] == [1, 2]


# --- what is refused


def test_what_makes_no_sense_never_gets_in(site):
    public = key_of(DEVICE).public_key
    bad = [
        (EncodeError, "action_id", lambda: site.orders.action(DEVICE, 256)),
        *(
            (ValueError, "lifetime", lambda lifetime=lifetime: site.orders.action(DEVICE, 1, lifetime=lifetime))
            for lifetime in (0, -1, 1e10 + 2, 10**16, 1 << 53, 1 << 63, (1 << 64) - 1, 10**400, NAN, INF, True)
        ),
        *((ValueError, "lifetime", lambda: site.orders.update(DEVICE, URL, DIGEST, lifetime=10**16)),),
        *((ValueError, "lifetime", lambda: site.orders.send_data(DEVICE, "n", 1, lifetime=10**16)),),
        (EncodeError, "digest", lambda: site.orders.update(DEVICE, URL, "ABC")),
        (EncodeError, "url", lambda: site.orders.update(DEVICE, 5, DIGEST)),
        (ValueError, "version", lambda: site.orders.update(DEVICE, URL, DIGEST, version=-1)),
        (TypeError, "hold", lambda: site.orders.update(DEVICE, URL, DIGEST, hold="yes")),
        (ValueError, "device", lambda: site.orders.identify(1 << 64)),
        (ValueError, "server", lambda: site.orders.command_join(DEVICE, -1)),
        (EncodeError, "data", lambda: site.orders.send_data(DEVICE, "n", 300, "uint8")),
        (EncodeError, "data", lambda: site.orders.send_data(DEVICE, "n", b"x" * 70_000)),
        (TypeError, "key", lambda: site.orders.register(DEVICE, public.to_pem())),
        (ValueError, "names no update", lambda: site.orders.activate("nonsense")),
        (ValueError, "no id", lambda: site.orders.find("nonsense")),
    ]
    for kind, what, post in bad:
        with pytest.raises(kind, match=what):
            post()
    assert site.left() == 0


def test_a_full_mailbox_says_so(site):
    with Orders(site.redis.url, SERVER, capacity=3) as orders:
        kept = [orders.identify(DEVICE) for _ in range(3)]
        with pytest.raises(StoreError, match=f"partition {partition_of(DEVICE, PARTITIONS)} is full: 3 orders wait"):
            orders.identify(DEVICE)
        other = next(
            device for device in DEVICES if partition_of(device, PARTITIONS) != partition_of(DEVICE, PARTITIONS)
        )
        orders.identify(other)
        assert sum(orders.waiting().values()) == 4
        for capacity in (0, -1, 1.0, NAN, 1 << 63, None):
            with (
                Orders(site.redis.url, SERVER, capacity=capacity) as bad,
                pytest.raises(ValueError, match="capacity must be an int"),
            ):
                bad.identify(DEVICE)
        site.worker()
        site.joined(DEVICE)
        for order in kept:
            with suppress(PolicyError):  # it may have been taken before the device was there
                order.result(WAIT)
        wait_until(lambda: site.left() == 0)
        assert orders.identify(DEVICE).result(WAIT) == f"device {DEVICE:x}"


MALFORMED = [
    {"junk": "1"},
    {"id": "short", "order": "{}"},
    {"id": b"i" * 16, "order": "no json"},
    {"id": b"j" * 16, "order": "[" * 50_000},
    {"id": b"k" * 16, "order": '{"order": "explode", "device": "d00"}'},
    {"id": b"l" * 16, "order": '{"order": "action", "device": "d00", "action_id": 300}'},
    {"id": b"m" * 16, "order": '{"order": "action", "device": "d00", "action_id": 3, "more": 1}'},
    {"id": b"n" * 16, "order": '{"order": "action", "device": "zz", "action_id": 3}'},
    {"id": b"o" * 16, "order": '{"order": ["x"], "device": 5}'},
    {"id": b"p" * 16, "order": '{"order": "send_data", "device": "d00", "data_id": "x", "data": "?"}'},
    {"id": b"q" * 16, "order": b"\xff\xfe"},
    {"id": b"r" * 16, "order": '{"order": "action", "device": "d00", "action_id": 1, "lifetime": NaN}'},
    {"id": b"R" * 16, "order": '{"order": "action", "device": "d00", "action_id": 1, "lifetime": 1e16}'},
    {"id": b"S" * 16, "order": '{"order": "identify", "device": "d00", "lifetime": 5}'},
    {
        "id": b"T" * 16,
        "order": '{"order": "send_data", "device": "d00", "data_id": "x", "data": "", "lifetime": 1e999}',
    },
    {"id": b"U" * 16, "order": '{"order": "action", "device": "' + "d" * 200_000 + '", "action_id": 1}'},
    {"id": b"V" * 16, "order": '{"order": "action", "device": "d00", "action_id": 1' + "0" * 5000 + "}"},
    {"id": b"s" * 16, "order": '{"order": "register", "device": "d00", "key": "no key"}'},
    {"id": b"t" * 16},
]


def test_what_somebody_has_written_by_hand_delays_no_order(site):
    elsewhere = next(each for each in DEVICES if partition_of(each, PARTITIONS) != partition_of(DEVICE, PARTITIONS))
    misplaced = f'{{"order": "action", "device": "{elsewhere:x}", "action_id": 1}}'
    for fields in [*MALFORMED, {"id": b"u" * 16, "order": misplaced}]:
        site.redis.client.xadd(site.mailbox(DEVICE), fields)
    worker = site.worker()
    site.joined(DEVICE, elsewhere)
    assert site.orders.action(DEVICE, 1).result(WAIT) is Status.ACTION_SUCCESS
    assert site.left() == 0
    with pytest.raises(EncodeError, match="action_id"):
        site.orders.find(f"{DEVICE:x}.{(b'l' * 16).hex()}").result(WAIT)
    with pytest.raises(PolicyError, match="does not belong to partition"):
        site.orders.find(f"{DEVICE:x}.{(b'u' * 16).hex()}").result(WAIT)
    assert site.done == {DEVICE: [1]}
    assert worker.server_of(DEVICE).counts["faults"] == 0


def test_an_order_whose_place_somebody_has_made_up_stops_nobody(site):
    """A place has the time in it: in 500 million years, to which a report was to be kept."""
    site.redis.client.xadd(
        site.mailbox(DEVICE),
        {"id": b"i" * 16, "order": json.dumps({"order": "action", "device": f"{DEVICE:x}", "action_id": 1})},
        id=f"{(1 << 64) - 2}-1",
    )
    worker = site.worker()
    site.joined(DEVICE)
    by_hand = site.orders.find(f"{DEVICE:x}.{(b'i' * 16).hex()}")
    with suppress(PolicyError):  # it may have been taken before the device was there
        by_hand.result(WAIT)
    assert site.orders.action(DEVICE, 2).result(WAIT) is Status.ACTION_SUCCESS
    assert site.left() == 0
    assert worker.server_of(DEVICE).store_error is None


def test_a_mailbox_that_is_none_delays_no_other(site):
    site.redis.client.set(site.mailbox(DEVICE), "junk")
    other = next(device for device in DEVICES if partition_of(device, PARTITIONS) != partition_of(DEVICE, PARTITIONS))
    site.worker()
    site.joined(other)
    assert site.orders.action(other, 1).result(WAIT) is Status.ACTION_SUCCESS
    with pytest.raises(StoreError, match="WRONGTYPE"):
        site.orders.action(DEVICE, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"[]",
        b"[" * 50_000,
        b'{"at": 1, "kind": "action"}',
        b'{"at": "x", "kind": "action", "state": "DONE"}',
        b'{"at": NaN, "kind": "action", "state": "DONE"}',
        b'{"at": 1, "kind": "action", "state": "DONE", "over": 1}',
        b'{"at": 1, "kind": "action", "state": "DONE", "over": true, "value": "?"}',
        b'{"at": 1, "kind": "update", "state": "DONE", "over": true}',
        b'{"at": 1, "kind": "update", "state": "FAILED", "over": true, "error": "UpdateError", "value": "?"}',
        b'{"at": 1, "kind": "action", "state": "FAILED", "over": true, "error": []}',
    ],
    ids=lambda each: f"{each!r:.80}",
)
def test_a_report_that_is_none_names_its_order(content):
    class Reports:
        def reports(self, *_):
            return [(b"1-1", content)]

    order = PostedOrder(Reports(), DEVICE, b"i" * 16)
    with pytest.raises(StoreError, match=rf"order {re.escape(order.id)}: a report on an order is not readable"):
        order.result(WAIT)


def test_another_server_has_no_mailbox_here(site):
    with pytest.raises(StoreError, match="no state for server 77"):
        Orders(site.redis.url, 0x77)


def test_a_redis_that_was_set_up_anew_takes_no_orders_of_before(site):
    site.redis.client.hset(Keyspace(site.redis.url, SERVER).key(partition_of(DEVICE, PARTITIONS), "meta"), "id", b"x")
    with pytest.raises(StoreError, match="this is store 78"):
        site.orders.identify(DEVICE)


def test_an_order_that_nobody_posted_is_not_known(site):
    with pytest.raises(PolicyError, match="there is no order"):
        site.orders.find(f"{DEVICE:x}.{'0' * 32}").result(WAIT)


def test_results_end_by_themselves(site):
    site.worker()
    site.joined(DEVICE)
    order = site.orders.identify(DEVICE)
    order.result(WAIT)
    [key] = site.redis.client.keys("*:order:*")
    assert 6 * 86400 < site.redis.client.ttl(key) <= 7 * 86400
