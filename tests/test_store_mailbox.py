"""Mailboxes in a real Redis: posted once, taken out by a commit, waited for."""

import threading
import time

import pytest
import redis

from srup import LeaseLostError, StoreError
from srup.records import Changes, ReportRecord
from srup.store.keyspace import Keyspace
from srup.store.mailbox import Position
from srup.store.partition import partition_of
from srup.store.redismail import RedisMailbox
from srup.transport.broker import free_port

from .fleet import WAIT, wait_until
from .redis_server import redis_server
from .test_store_redis import Site

pytestmark = pytest.mark.process
ONE, TWO = b"1" * 16, b"2" * 16
FAR = 0.01  # seconds that a test lets a mailbox wait in which there is nothing


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def single(server):
    return server.url


def resp3(server):
    return redis.Redis(port=server.port, protocol=3)


def resp2(server):
    return redis.Redis(port=server.port, protocol=2)


class Boxes:
    """The mailboxes of a server with two partitions, and the store of each."""

    def __init__(self, server, client):
        self.site = Site(server)
        self.mailbox = RedisMailbox(Keyspace(client(server), self.site.owner))
        self.devices = [next(each for each in range(99) if partition_of(each, 2) == number) for number in range(2)]
        self.stores = [self.site.store(number) for number in range(2)]

    def post(self, number=0, order_id=ONE, order=b"order", **options):
        self.mailbox.post(self.devices[number], order_id, order, b"posted", **options)

    def read(self, after=b"0", patience=FAR):
        return self.mailbox.read(dict.fromkeys(range(2), Position(after)), patience)

    def reports(self, order_id=ONE, after=b"0", patience=0.0):
        return [body for _, body in self.mailbox.reports(self.devices[0], order_id, after, patience)]

    def close(self):
        self.mailbox.close()
        self.site.leases.close()


@pytest.fixture(params=[single, resp2, resp3], ids=lambda each: each.__name__)
def boxes(request, server):
    boxes = Boxes(server, request.param)
    yield boxes
    boxes.close()


def test_an_order_stands_in_the_mailbox_of_its_partition_until_a_commit_takes_it_out(boxes):
    began = time.time()
    assert boxes.read() == []
    boxes.post(0)
    boxes.post(1, TWO, b"another")
    found = dict(boxes.read())
    assert [(found[number].id, found[number].order) for number in range(2)] == [(ONE, b"order"), (TWO, b"another")]
    assert abs(found[0].posted - began) < WAIT
    assert boxes.mailbox.waiting() == {0: 1, 1: 1}
    assert [entry for number, entry in boxes.read(found[0].place) if number == 0] == []
    boxes.stores[0].commit(Changes(reports=[ReportRecord(ONE, found[0].place, b"done", 60.0)]))
    assert boxes.mailbox.waiting() == {1: 1}
    assert boxes.reports() == [b"posted", b"done"]


def test_reports_are_in_order_end_by_themselves_and_survive_the_same_commit_twice(boxes):
    boxes.post()
    [(_, entry)] = boxes.read()
    changes = Changes(reports=[ReportRecord(ONE, entry.place, b"first", 3600.0), ReportRecord(ONE, b"", b"then", 60.0)])
    boxes.stores[0].commit(changes)
    boxes.stores[0]._number -= 1  # as if the answer had been lost
    boxes.stores[0].commit(changes)
    assert boxes.reports() == [b"posted", b"first", b"then"]
    key = boxes.site.key(f"order:{ONE.hex()}")
    assert 0 < boxes.site.server.client.ttl(key) <= 60


def test_many_pages_are_read_one_after_the_other(boxes):
    for number in range(600):
        boxes.post(0, number.to_bytes(16, "big"))
    found = []
    while more := boxes.read(found[-1].place if found else b"0"):
        found += [entry for _, entry in more]
    assert [int.from_bytes(entry.id) for entry in found] == list(range(600))


def test_who_reads_wakes_when_something_is_posted(server):
    boxes = Boxes(server, lambda server: redis.Redis(port=server.port, socket_timeout=None))
    boxes.mailbox._patience = WAIT
    found = []
    reader = threading.Thread(target=lambda: found.extend(boxes.read(patience=WAIT)))
    reader.start()
    wait_until(lambda: server.client.info("clients")["blocked_clients"], "it waits")
    boxes.post()
    reader.join()
    assert [entry.id for _, entry in found] == [ONE]
    boxes.close()


def test_a_commit_that_is_refused_takes_nothing_out_and_reports_nothing(boxes):
    boxes.post()
    [(_, entry)] = boxes.read()
    boxes.site.server.client.set(boxes.site.key("lease"), "somebody:9")
    with pytest.raises(LeaseLostError):
        boxes.stores[0].commit(Changes(reports=[ReportRecord(ONE, entry.place, b"done", 60.0)]))
    assert boxes.mailbox.waiting() == {0: 1}
    assert boxes.reports() == [b"posted"]


def test_an_order_that_nobody_can_ask_for_is_only_taken_out(boxes):
    boxes.site.server.client.xadd(boxes.site.key("orders"), {"junk": "1"})
    [(_, entry)] = boxes.read()
    assert (entry.id, entry.order) == (b"", b"")
    boxes.stores[0].commit(Changes(reports=[ReportRecord(b"", entry.place, b"bad", 60.0)]))
    assert boxes.mailbox.waiting() == {}
    assert boxes.site.server.client.keys(boxes.site.key("order:*").replace("{", "[{]").replace("}", "[}]")) == []


def test_a_mailbox_that_is_none_is_told_of_and_delays_no_other(boxes, caplog):
    boxes.site.server.client.set(boxes.site.key("orders"), "junk")
    boxes.post(1, TWO)
    for _ in range(2):
        assert [(number, entry.id) for number, entry in boxes.read()] == [(1, TWO)]
    told = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(told) == 1
    assert boxes.site.key("orders") in told[0]
    boxes.site.server.client.delete(boxes.site.key("orders"))
    boxes.post()
    assert {entry.id for _, entry in boxes.read()} == {ONE, TWO}


def test_a_post_is_refused_when_as_many_wait_as_may(boxes):
    boxes.post(capacity=1)
    boxes.post(capacity=1)  # the same one again
    with pytest.raises(StoreError, match="partition 0 is full: 1 orders wait"):
        boxes.post(0, TWO, capacity=1)
    assert boxes.reports(TWO) == []
    boxes.post(1, TWO, capacity=1)


def test_a_redis_that_was_set_up_anew_or_emptied_takes_none(boxes):
    client, meta = boxes.site.server.client, boxes.site.key("meta")
    client.hset(meta, "id", b"x")
    with pytest.raises(StoreError, match="this is store 78"):
        boxes.post()
    client.delete(meta)
    with pytest.raises(StoreError, match="has lost its data"):
        boxes.post()


@pytest.mark.parametrize("kind", ["a node's client", "the cluster's client"])
def test_redis_cluster(tmp_path, kind):
    """One script never touches two slots; nobody can wait for streams in several."""
    with redis_server(tmp_path, cluster_enabled="yes", cluster_port=str(free_port())) as server:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO"))

        def client(server):
            if kind == "a node's client":
                return server.url
            return redis.RedisCluster(host="127.0.0.1", port=server.port)

        boxes = Boxes(server, client)
        assert boxes.read() == []
        boxes.post(0)
        boxes.post(1, TWO)
        found = dict(boxes.read())
        assert (found[0].id, found[1].id) == (ONE, TWO)
        boxes.stores[0].commit(Changes(reports=[ReportRecord(ONE, found[0].place, b"done", 60.0)]))
        assert boxes.mailbox.waiting() == {1: 1}
        assert boxes.reports() == [b"posted", b"done"]
        boxes.close()


def test_what_is_urgent_overtakes_and_needs_no_room(boxes):
    boxes.post(0, ONE, capacity=1)
    boxes.post(0, TWO, b"urgent", capacity=1, urgent=True)
    device, full = boxes.devices[0], b"3" * 16
    with pytest.raises(StoreError, match="is full"):
        boxes.mailbox.post(device, full, b"order", b"posted", 1, urgent=True)
    found = boxes.mailbox.read({0: Position(orders=None)}, FAR)
    assert [(entry.id, entry.order, entry.urgent) for _, entry in found] == [(TWO, b"urgent", True)]
    urgent = found[0][1]
    everything = [entry for _, entry in boxes.read()]
    assert [(entry.id, entry.urgent) for entry in everything] == [(TWO, True), (ONE, False), (TWO, False)]
    assert everything[2].place == urgent.place
    assert everything[1].rank < urgent.rank
    boxes.stores[0].commit(Changes(reports=[ReportRecord(TWO, urgent.place, b"done", 60.0, urgent=True)]))
    assert [(entry.id, entry.urgent) for _, entry in boxes.read()] == [(ONE, False)]
    assert boxes.mailbox.read({0: Position(urgent=urgent.place)}, FAR)[0][1].id == ONE
