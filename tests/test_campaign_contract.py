"""What every store promises of campaigns (srup.store.campaigns), and that nobody is ordered twice whoever is killed."""

import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from srup import Fleet, PolicyError, SqliteStore, StoreError
from srup.agent.reports import OrderReport
from srup.campaign import At, State
from srup.fleet import load_document
from srup.records import Changes, Fact, KeyRecord, PartnerRecord, ReportRecord
from srup.store import Leases, RedisStore
from srup.store.keyspace import Keyspace
from srup.store.mailbox import BEGINNING, Position, Post
from srup.store.mailboxes import campaigns_at, mailbox_at
from srup.store.partition import partition_of
from srup.store.sqlitecampaigns import SqliteCampaigns
from srup.transport.broker import free_port

from .fleet import FIRMWARE, SERVER, URL, key_of, wait_until
from .redis_server import redis_server

PARTITIONS = 3
DEVICES = range(0x100, 0x118)
ONE, TWO = b"1" * 16, b"2" * 16
FILE = f"""\
name = "c"
[firmware]
file = "firmware.bin"
url = "{URL}"
version = "4.2.0"
[target]
share = "100%"
[pace]
at_once = 2
"""


def sqlite(folder, stack):
    store = SqliteStore(folder / "server.db")
    store.open(SERVER)
    stack.callback(store.close)
    return SimpleNamespace(place=folder / "server.db", stores=[store], writes=(SqliteCampaigns, "save"))


def redis(folder, stack, **settings):
    server = stack.enter_context(redis_server(folder / "redis", **settings))
    if settings:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO"))
        server.client.execute_command(*rights("srup-5e"))
        server.url = server.url.replace("//", "//srup-5e:PASSWORD@")
    RedisStore.create(server.url, SERVER, partitions=PARTITIONS)
    leases = Leases(server.url, SERVER, ttl=3600.0)
    stores = [RedisStore(lease) for lease in sorted(leases.step().gained, key=lambda lease: lease.partition)]
    for store in stores:
        store.open(SERVER)
    return SimpleNamespace(place=server.url, stores=stores, writes=(Keyspace, "run"), server=server)


def cluster(folder, stack):
    """A Redis Cluster, where the campaigns and each partition may be anywhere; a user with the documented rights."""
    return redis(folder, stack, cluster_enabled="yes", cluster_port=str(free_port()))


def rights(user):
    """The line of docs/deployment.md that makes a user of Redis, as the arguments of a command."""
    page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    return re.search(rf"ACL SETUSER {user} .*?(?=\n *```)", page, re.DOTALL)[0].split()


STORES = [sqlite, *(pytest.param(each, marks=pytest.mark.process) for each in (redis, cluster))]


@pytest.fixture(params=STORES, ids=lambda each: each.__name__)
def site(request, tmp_path):
    """A store that its server has open, with members, and its campaigns as another process opens them."""
    with ExitStack() as stack:
        site = request.param(tmp_path, stack)
        site.folder = tmp_path
        site.mailbox = mailbox_at(site.place, SERVER)
        stack.callback(site.mailbox.close)
        site.campaigns = campaigns_at(site.place, SERVER)
        stack.callback(site.campaigns.close)
        key = key_of(0).public_key.to_pem()
        for device in DEVICES:
            about = Changes([PartnerRecord(device, True, True, 64, 5, 31)], facts=[Fact(device, "version", "7")])
            about.keys.append(KeyRecord(device, key))
            store_of(site, device).commit(about)
        yield site


def store_of(site, device):
    return site.stores[partition_of(device, len(site.stores))]


def post(device=0x100, order=ONE, urgent=False):
    return Post(device, order, b"order", b"posted", urgent)


def entries(site):
    """All that stands in the mailboxes, with its partition."""
    begin = {number: Position(BEGINNING) for number in range(len(site.stores))}
    return [(number, entry) for number, entry in site.mailbox.read(begin, 0.0) if not entry.urgent]


@pytest.mark.parametrize("name", [b"*[]?\\^-a", b"\0\0\0\0\0\0\x2a\x2a"])
def test_a_device_is_found_by_its_identity_alone(site, name):
    device = int.from_bytes(name)
    facts = [Fact(each, fact, "7") for each in (device, device ^ 1) for fact in ("version", "tag site")]
    for each in (device, device ^ 1):
        of_each = [fact for fact in facts if fact.identity == each]
        store_of(site, each).commit(Changes([PartnerRecord(each, True, True, 64, 5, 31)], facts=of_each))
    with Fleet(site.place, SERVER) as fleet:
        found = fleet.device(device)
        assert (found.identity, found.version, found.tags, found.member) == (device, 7, {"site": "7"}, True)
        assert fleet.find_device(device, ["version"]).version == 7
        assert found in list(fleet.devices())
        with pytest.raises(PolicyError, match="nothing is known"):
            fleet.device(device ^ 2)


def test_a_campaign_is_kept_and_its_name_is_taken(site):
    store = site.campaigns
    assert store.campaigns() == (0, [])
    assert store.save(0, "a", b"record", {}, document=b"document")
    assert store.revision() == 1
    assert not store.save(1, "a", b"other", {}, document=b"another")
    assert store.save(1, "a", b"second", {0x101: b"one", 1 << 63: b"two"})
    revision, [kept] = store.load(["a", "unknown"])
    assert (revision, kept.name, kept.document, kept.record) == (2, "a", b"document", b"second")
    assert kept.devices == {0x101: b"one", 1 << 63: b"two"}
    assert [(each.name, each.devices) for each in store.campaigns()[1]] == [("a", {})]


def test_who_decided_by_an_older_state_changes_nothing(site):
    store = site.campaigns
    assert store.save(0, "a", b"record", {}, document=b"document")
    assert store.save(1, "a", b"first", {1: b"x"}, [post()])
    assert not store.save(1, "a", b"late", {1: b"y"}, [post(order=TWO)])
    assert not store.save(2, "unknown", b"late", {1: b"y"})
    _, [kept] = store.load(["a"])
    assert (kept.record, kept.devices) == (b"first", {1: b"x"})
    assert [entry.id for _, entry in entries(site)] == [ONE]


def test_an_order_is_posted_once_and_what_became_of_it_is_told(site):
    store = site.campaigns
    assert store.save(0, "a", b"record", {}, [post(), post(0x101, TWO, urgent=True)], document=b"document")
    assert store.save(1, "a", b"record", {}, [post()])
    assert sorted(entry.id for _, entry in entries(site)) == [ONE, TWO]
    asked = {ONE: 0x100, TWO: 0x101, b"3" * 16: 0x102}
    mark, found = store.news(asked)
    assert found == {ONE: b"posted", TWO: b"posted"}
    store_of(site, 0x100).commit(Changes(reports=[ReportRecord(entry=b"", order=ONE, body=b"ready", kept=60.0)]))
    _, news = store.news(asked, mark)
    assert news[ONE] == b"ready"
    assert store.news({})[1] == {}
    assert store.flush() == 0


def test_it_is_noticed_that_something_has_changed(site):
    store = site.campaigns
    assert store.await_change(5.0)
    assert not store.await_change(0.0)
    store_of(site, 0x100).commit(Changes(facts=[Fact(0x100, "version", "8")]))
    assert store.await_change(5.0)
    assert not store.await_change(0.0)


def test_a_record_of_what_is_no_order_is_refused(site):
    with pytest.raises(ValueError, match="length of an order's id"):
        site.campaigns.save(0, "a", b"record", {}, [post(order=b"short")], document=b"document")
    assert site.campaigns.campaigns() == (0, [])


@pytest.mark.process
@pytest.mark.parametrize("site", [redis], indirect=True, ids=["redis"])
def test_what_has_no_room_waits_in_front_of_the_mailbox_and_in_order(site):
    store = site.campaigns
    both = [post(0x100, ONE), post(0x100, TWO)]
    assert store.save(0, "a", b"record", {}, both, document=b"document", capacity=1)
    assert [entry.id for _, entry in entries(site)] == [ONE]
    assert store.flush(1) == 1
    assert store.news({TWO: 0x100})[1] == {TWO: b"posted"}  # it is not lost
    assert store.flush() == 0
    assert [entry.id for _, entry in entries(site)] == [ONE, TWO]


@pytest.mark.process
@pytest.mark.parametrize("site", [redis], indirect=True, ids=["redis"])
def test_one_at_a_time_carries_campaigns_out(site):
    other = campaigns_at(site.place, SERVER)
    assert (site.campaigns.claim(), other.claim(), site.campaigns.claim()) == (True, False, True)
    other.release()  # what is not its own
    assert not other.claim()
    site.campaigns.release()
    assert (other.claim(), site.campaigns.claim()) == (True, False)
    other.close()


@pytest.mark.process
@pytest.mark.parametrize("site", [redis], indirect=True, ids=["redis"])
def test_campaigns_of_another_store_are_not_carried_on(site):
    assert site.campaigns.save(0, "a", b"record", {}, document=b"document")
    client = site.server.client
    client.hset(f"{{srup:{SERVER:x}}}:campaigns:head", "store", b"x" * 16)
    with pytest.raises(StoreError, match="the campaigns are those of store 7878"):
        site.campaigns.revision()
    with pytest.raises(StoreError, match="the campaigns are those of store 7878"):
        site.campaigns.save(1, "a", b"record", {})
    client.delete(f"{{srup:{SERVER:x}}}:campaigns:head")
    client.set(f"{{srup:{SERVER:x}}}:campaign:b", b"somebody's")
    with pytest.raises(StoreError, match="holds what srup has not put there"):
        site.campaigns.save(0, "b", b"record", {1: b"x"}, document=b"document")


def carry(site, number=0, moment="before"):
    """Carry the campaign a step on in a process that is killed at its write with this number; whether it was."""
    child = os.fork()
    if not child:
        try:
            kind, name = site.writes
            write, done = getattr(kind, name), []

            def killed(*arguments, **options):
                done.append(1)
                if len(done) == number and moment == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = write(*arguments, **options)
                if len(done) == number and moment == "after":
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(kind, name, killed)
            with Fleet(site.place, SERVER) as fleet:
                fleet.campaigns.step()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


@pytest.mark.process
def test_nobody_is_ordered_twice_whenever_who_carries_it_out_is_killed(site):
    (site.folder / "firmware.bin").write_bytes(FIRMWARE)
    (site.folder / "c.toml").write_text(FILE)
    ordered, kills, step = [], 0, 0
    moments = [(number, moment) for number in range(1, 7) for moment in ("before", "after")]
    with Fleet(site.place, SERVER) as fleet:
        fleet.campaigns.apply(load_document(site.folder / "c.toml"))
        while fleet.campaigns.view("c").campaign.state is not State.FINISHED:
            kills += carry(site, *moments[step % len(moments)])
            assert not carry(site)
            step += 1
            found = entries(site)
            for partition, entry in found:
                ordered.append(entry.id)
                over = OrderReport(1.0, "update", "ACTIVATED", over=True, value="ACTIVATED").dump()
                report = ReportRecord(entry=entry.place, order=entry.id, body=over, kept=60.0)
                site.stores[partition].commit(Changes(reports=[report]))
            assert step < 50
        members = fleet.campaigns.view("c").members
    assert len(ordered) == len(set(ordered)) == len(DEVICES)
    assert {each.at for each in members.values()} == {At.HEALTHY}
    assert {each.orders for each in members.values()} == {1}
    assert kills >= 2
