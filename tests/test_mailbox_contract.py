"""What every mailbox promises (srup.store.mailbox), of a server whose devices are all in one partition."""

import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from srup import MemoryStore, SqliteStore, StoreError
from srup.records import Changes, Fact, ReportRecord
from srup.store import Leases, RedisStore
from srup.store.mailbox import CAPACITY, PAGE, Position
from srup.store.mailboxes import mailbox_at

from .fleet import WAIT, wait_until
from .redis_server import redis_server

OWNER, DEVICE = 0x5E, 0xD1
BEGIN = Position()
ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16


def memory(folder):
    store = MemoryStore()
    store.open(OWNER)
    yield SimpleNamespace(store=store, place=store)


def sqlite(folder):
    store = SqliteStore(folder / "server.db")
    store.open(OWNER)
    yield SimpleNamespace(store=store, place=folder / "server.db")
    store.close()


def redis(folder):
    with redis_server(folder / "redis") as server:
        RedisStore.create(server.url, OWNER, partitions=1)
        store = RedisStore(Leases(server.url, OWNER, ttl=3600.0).step().gained[0])
        store.open(OWNER)
        yield SimpleNamespace(store=store, place=server.url)


@pytest.fixture(params=[memory, sqlite, pytest.param(redis, marks=pytest.mark.process)], ids=lambda each: each.__name__)
def box(request, tmp_path):
    """A store that its server has open, and the mailbox as another process opens it."""
    made = request.param(tmp_path)
    site = next(made)
    site.mailbox = mailbox_at(site.place, OWNER)

    def post(order_id=ONE, order=b"order", **options):
        site.mailbox.post(DEVICE, order_id, order, b"posted", **options)

    def read(position=BEGIN, patience=0.0):
        return [entry for _, entry in site.mailbox.read({0: position}, patience)]

    def commit(*reports, **lists):
        site.store.commit(Changes(reports=list(reports), **lists))

    def reports(order_id=ONE, after=b"0", patience=0.0):
        return [body for _, body in site.mailbox.reports(DEVICE, order_id, after, patience)]

    site.post, site.read, site.commit, site.reports = post, read, commit, reports
    yield site
    site.mailbox.close()
    next(made, None)


def test_an_order_stands_there_until_a_commit_takes_it_out(box):
    began = time.time()
    assert (box.read(), box.mailbox.waiting(), box.reports()) == ([], {}, [])
    box.post()
    box.post(TWO, b"another")
    found = box.read()
    assert [(entry.id, entry.order, entry.urgent) for entry in found] == [
        (ONE, b"order", False),
        (TWO, b"another", False),
    ]
    assert all(abs(entry.posted - began) < WAIT for entry in found)
    assert box.mailbox.waiting() == {0: 2}
    assert [entry.id for entry in box.read(Position(found[0].place))] == [TWO]
    box.commit(ReportRecord(ONE, found[0].place, b"taken", 60.0))
    assert [entry.id for entry in box.read()] == [TWO]
    box.commit(ReportRecord(ONE, b"", b"done", 60.0))
    assert box.reports() == [b"posted", b"taken", b"done"]
    assert box.reports(TWO) == [b"posted"]


def test_what_is_urgent_is_read_first_and_stands_where_it_was_posted(box):
    box.post(ONE)
    box.post(TWO, urgent=True)
    box.post(THREE)
    assert [(entry.id, entry.urgent) for entry in box.read()] == [
        (TWO, True),
        (ONE, False),
        (TWO, False),
        (THREE, False),
    ]
    [urgent] = box.read(Position(orders=None))
    assert box.read(Position(None, urgent.place)) == []
    one, two, three = box.read(Position(urgent=urgent.place))
    assert one.rank < urgent.rank == two.rank < three.rank
    box.commit(ReportRecord(TWO, urgent.place, b"done", 60.0, urgent=True))
    assert [entry.id for entry in box.read()] == [ONE, THREE]


def test_an_order_is_posted_once(box):
    box.post()
    box.post()
    [entry] = box.read()
    box.commit(ReportRecord(ONE, entry.place, b"done", 60.0))
    box.post()
    assert box.read() == []
    assert box.reports() == [b"posted", b"done"]


def test_only_so_many_wait_and_what_is_urgent_has_room_of_its_own(box):
    box.post(ONE, capacity=1)
    with pytest.raises(StoreError, match="is full: 1 orders wait"):
        box.post(TWO, capacity=1)
    box.post(TWO, capacity=1, urgent=True)
    with pytest.raises(StoreError, match="is full: 1 orders wait"):
        box.post(THREE, capacity=1, urgent=True)
    assert box.reports(THREE) == []
    for capacity in (0, -1, 1.0, None):
        with pytest.raises(ValueError, match="capacity must be an int"):
            box.post(THREE, capacity=capacity)


@pytest.mark.parametrize(
    ("order_id", "order"), [(b"", b"order"), (b"short", b"order"), (ONE, b""), (ONE, b"x" * (1 << 18))]
)
def test_what_is_no_order_is_refused(box, order_id, order):
    with pytest.raises(ValueError, match="the length of an order"):
        box.post(order_id, order)
    assert box.mailbox.waiting() == {}


def test_many_pages_are_read_one_after_the_other(box):
    count = 2 * PAGE + 10
    for number in range(count):
        box.post(number.to_bytes(16, "big"))
    found = []
    while more := box.read(Position(found[-1].place) if found else Position()):
        assert len(more) <= PAGE
        found += more
    assert [int.from_bytes(entry.id) for entry in found] == list(range(count))
    assert count < CAPACITY


def test_who_reads_wakes_when_something_is_posted(box):
    found = []
    reader = threading.Thread(target=lambda: found.extend(box.read(patience=WAIT)))
    reader.start()
    box.post()
    reader.join(WAIT)
    assert [entry.id for entry in found] == [ONE]


def test_who_waits_for_a_report_wakes_when_it_is_there(box):
    box.post()
    [entry] = box.read()
    [(place, _)] = box.mailbox.reports(DEVICE, ONE, b"0", 0.0)
    found = []

    def wait():
        while not found:
            found.extend(box.reports(ONE, place, 1.0))

    reader = threading.Thread(target=wait)
    reader.start()
    box.commit(facts=[Fact(DEVICE, "name", "front-door")])  # something else
    box.commit(ReportRecord(ONE, entry.place, b"done", 60.0))
    reader.join(WAIT)
    assert found == [b"done"]


def test_a_report_is_kept_for_so_long(box):
    box.post()
    [entry] = box.read()
    box.commit(ReportRecord(ONE, entry.place, b"done", 0.001))
    wait_until(lambda: box.reports() == [])
    for number in range(5):
        box.post(b"%016d" % number)


def test_a_commit_that_fails_takes_nothing_out(box):
    box.post()
    [entry] = box.read()
    with pytest.raises(StoreError):
        box.commit(ReportRecord(ONE, entry.place, b"done", 60.0), facts=[Fact(-1, "name", "value")])
    assert [each.id for each in box.read()] == [ONE]
    assert box.reports() == [b"posted"]


@pytest.mark.parametrize("box", [memory, sqlite], indirect=True)  # Redis answers within a second by itself
def test_nobody_waits_for_a_mailbox_that_is_closed(box):
    def read():
        with suppress(StoreError):  # it may begin too late
            box.read(patience=WAIT)

    reader = threading.Thread(target=read)
    reader.start()
    box.mailbox.close()
    reader.join(WAIT)
    assert not reader.is_alive()


def test_the_mailbox_of_another_server_is_refused(box):
    with pytest.raises(StoreError, match=r"belongs to 5e, not to 77|no state for server 77"):
        mailbox_at(box.place, 0x77)
