"""Campaigns over the store of a server: real devices and a real server on an in-memory network, in simulated time."""

import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from srup import Fleet, MemoryStore, PolicyError, SqliteStore, StoreError, UpdateError, file_digest
from srup.agent.facts import TAG
from srup.campaign import At, State
from srup.fetch import MemoryFetcher
from srup.fleet import Campaigns, check_download, load_document
from srup.records import Changes, Fact, KeyRecord, PartnerRecord
from srup.store.mailboxes import campaigns_at

from .fleet import FIRMWARE, SERVER, URL, WAIT, key_of
from .fleet import Fleet as World

ROOT = Path(__file__).parents[1]
FILE = """\
name = "{name}"
[firmware]
file = "firmware.bin"
url = "{url}"
version = 42
[target]
{target}
{more}
"""


class Site:
    """A server with a database, three devices and a folder for campaign files."""

    def __init__(self, folder, size=3):
        self.folder = folder
        (folder / "firmware.bin").write_bytes(FIRMWARE)
        self.world = World(folder, size, server_options={"store": SqliteStore(folder / "server.db")})
        self.world.clock.now = time.time()  # by which a mailbox dates what is posted
        self.failing = set()
        for identity, device in self.world.devices.items():
            device.on_activate(lambda path, identity=identity: self.activate(identity))
        self.world.start().settle()
        self.fleet = Fleet(folder / "server.db", SERVER)
        self.campaigns = self.another()

    def another(self):
        """Campaigns as another process would open them."""
        store = campaigns_at(self.folder / "server.db", SERVER)
        return Campaigns(self.fleet, store, lambda: self.world.clock.now)

    def activate(self, identity):
        if identity in self.failing:
            raise RuntimeError("the boot loader is locked")

    def document(self, more="", name="c", target='share = "100%"', url=URL):
        path = self.folder / f"{name}.toml"
        path.write_text(FILE.format(name=name, more=more, target=target, url=url))
        return load_document(path)

    def apply(self, *arguments, **options):
        return self.campaigns.apply(self.document(*arguments, **options), "ann")

    def go_on(self):
        """Let the campaign and the devices do what there is to do now."""
        while True:
            before = self.campaigns.all()
            self.campaigns.step()
            self.world.settle()
            self.campaigns.step()
            if self.campaigns.all() == before:
                return

    def pass_time(self, seconds):
        self.world.clock.now += seconds
        self.go_on()

    def at(self, name="c"):
        return {device: member.at for device, member in self.campaigns.view(name).members.items()}

    def state(self, name="c"):
        return self.campaigns.view(name).campaign.state

    def close(self):
        self.campaigns.close()
        self.fleet.close()
        self.world.server.stop()


@pytest.fixture
def site(tmp_path):
    with closing(Site(tmp_path)) as site:
        yield site


def test_devices_are_updated_and_their_own_words_count(site):
    site.failing = {0xD1}
    view = site.apply()
    assert (view.campaign.state, view.campaign.by, view.members) == (State.SCHEDULED, "ann", {})
    site.go_on()
    assert site.at() == {0xD0: At.HEALTHY, 0xD1: At.FAILED, 0xD2: At.HEALTHY}
    view = site.campaigns.view("c")
    assert (view.campaign.state, view.campaign.settled) == (State.FINISHED, True)
    assert "the boot loader is locked" in view.members[0xD1].reason
    assert view.counts() == {At.HEALTHY: 2, At.FAILED: 1}
    assert [count for _, count in view.reasons([At.FAILED])] == [1]
    assert site.fleet.device(0xD0).version == 42
    assert site.campaigns.step() is None


def test_who_has_failed_is_tried_again_by_the_operator_alone(site):
    site.failing = {0xD1}
    site.apply()
    site.go_on()
    site.failing = set()
    site.campaigns.retry("c", [0xD1])
    site.go_on()
    assert site.at()[0xD1] is At.WAITING  # a minute has not passed since it was told last
    site.pass_time(60)
    assert (site.at()[0xD1], site.state()) == (At.HEALTHY, State.FINISHED)
    with pytest.raises(PolicyError, match="has nobody to try again with"):
        site.campaigns.retry("c")
    with pytest.raises(PolicyError, match="d0 is not among those"):
        site.campaigns.retry("c", [0xD0])


def test_two_phases_pause_and_abort(site):
    site.apply('[activation]\nwhen = "command"')
    site.go_on()
    assert set(site.at().values()) == {At.READY}
    site.campaigns.pause("c", "bob")
    assert site.campaigns.view("c").campaign.reason == "paused by bob"
    site.campaigns.activate("c")
    site.go_on()
    assert set(site.at().values()) == {At.READY}
    site.campaigns.resume("c")
    site.go_on()
    assert set(site.at().values()) == {At.HEALTHY}
    with pytest.raises(PolicyError, match="campaign c is finished: it cannot be aborted now"):
        site.campaigns.abort("c")


def test_abort_takes_back_what_no_device_was_told_to_activate(site):
    site.apply('[activation]\nwhen = "command"\n[pace]\nat_once = 2')
    site.go_on()
    site.campaigns.abort("c", "ann")
    site.go_on()
    assert (set(site.at().values()), site.state()) == ({At.CANCELLED}, State.ABORTED)
    assert site.campaigns.view("c").campaign.settled
    assert [site.fleet.device(device).firmware for device in (0xD0, 0xD1, 0xD2)] == [None] * 3
    with pytest.raises(PolicyError, match="is aborted: it cannot be retried now"):
        site.campaigns.retry("c")


def test_two_people_must_approve_it_who_have_not_applied_it(site):
    site.apply("[approval]\npeople = 2")
    site.go_on()
    assert site.state() is State.AWAITING_APPROVAL
    with pytest.raises(PolicyError, match="ann has applied campaign c: somebody else must approve it"):
        site.campaigns.approve("c", "ann")
    site.campaigns.approve("c", "bob")
    with pytest.raises(PolicyError, match="bob has approved campaign c already"):
        site.campaigns.approve("c", "bob")
    site.go_on()
    assert site.at() == {}
    site.campaigns.approve("c", "eve")
    site.go_on()
    assert set(site.at().values()) == {At.HEALTHY}


def test_two_campaigns_for_one_device(site):
    site.apply('[activation]\nwhen = "command"', target='devices = ["d0"]')
    site.go_on()
    with pytest.raises(PolicyError, match="campaign other would be for nobody: 1 it takes part in campaign c"):
        site.apply(name="other", target='devices = ["d0"]')
    site.apply(name="other")
    site.go_on()
    view = site.campaigns.view("other")
    assert (view.members[0xD0].at, view.members[0xD0].reason) == (At.SKIPPED, "it takes part in campaign c")
    assert view.counts() == {At.HEALTHY: 2, At.SKIPPED: 1}


def test_all_devices_are_read_once_and_no_campaign_again_while_nobody_else_changes_one(site):
    site.apply("[pace]\nat_once = 1")
    read, devices, load = [], site.fleet.devices, site.campaigns._store.load
    site.fleet.devices = lambda *first: read.append("devices") or devices(*first)
    site.campaigns._store.load = lambda names: read.append("campaigns") or load(names)
    for _ in range(4):
        site.campaigns.step()
        site.world.settle()
    assert (site.state(), read[:2]) == (State.FINISHED, ["campaigns", "devices"])
    assert read[2:] == ["campaigns"]  # to look at its state, just now
    assert set(site.at().values()) == {At.HEALTHY}


def test_a_campaign_for_nobody_and_a_name_that_is_taken(site):
    with pytest.raises(PolicyError, match="for nobody: no device matches its target"):
        site.apply(target='where = "tag.site=berlin"')
    site.apply()
    with pytest.raises(PolicyError, match="there is a campaign c already"):
        site.apply()
    site.go_on()
    with pytest.raises(PolicyError, match="for nobody: 3 it has this firmware already"):
        site.apply(name="again")
    with pytest.raises(PolicyError, match="there is no campaign d"):
        site.campaigns.pause("d")


def test_a_plan_changes_nothing_and_is_what_happens(site):
    document = site.document('[[group]]\nsize = 1\n[[group]]\nsize = "100%"')
    planned, decision = site.campaigns.plan(document)
    assert len(decision.postings) == 1
    assert (site.campaigns.all(), site.fleet.waiting()) == ([], {})
    site.campaigns.apply(document)
    site.campaigns.step()
    assert {device: each.group for device, each in site.campaigns.view("c").members.items()} == {
        device: each.group for device, each in planned.members.items()
    }


def test_it_goes_by_conditions_and_tags(site):
    site.fleet.tag(0xD1, "site", "berlin")
    site.fleet.tag(0xD2, "type", "lock")
    site.world.settle()
    for name, target in {"a": 'where = "tag.site=berlin"', "b": 'type = "lock"'}.items():
        site.apply(name=name, target=target)
    site.go_on()
    assert (site.at("a"), site.at("b")) == ({0xD1: At.HEALTHY}, {0xD2: At.HEALTHY})


def test_firmware_that_is_another_one_is_found_before_anything_is_sent(site):
    document = site.document()
    check_download(document, MemoryFetcher({URL: FIRMWARE}))
    with pytest.raises(UpdateError, match="the content has the digest"):
        check_download(document, MemoryFetcher({URL: b"something else"}))
    with pytest.raises(UpdateError, match="is unknown"):
        check_download(document, MemoryFetcher({}))


def test_a_database_that_is_copied_over_the_firmware_file_changes_nothing(site):
    """The digest is that of the moment at which the campaign was applied."""
    digest = file_digest(site.folder / "firmware.bin")
    site.apply()
    (site.folder / "firmware.bin").unlink()
    assert site.campaigns.view("c").document.firmware.digest == digest
    site.go_on()
    assert set(site.at().values()) == {At.HEALTHY}


def test_who_is_slower_decides_again(site):
    """Two processes carry out the same campaign: each order is posted by one of them."""
    site.apply("[pace]\nat_once = 2")
    other = site.another()
    saves = []
    save = other._store.save

    def interrupted(*arguments, **options):
        if not saves:
            saves.append(site.campaigns.step())
        return save(*arguments, **options)

    other._store.save = interrupted
    other.step()
    assert saves
    assert (len(site.campaigns.view("c").members), site.fleet.waiting()) == (3, {0: 2})
    site.go_on()
    assert set(site.at().values()) == {At.HEALTHY}
    other.close()


def test_a_campaign_that_begins_between_two_readings_is_seen(site):
    """Or else both would order updates for the same devices."""
    site.apply()
    late, other, read = [], site.another(), site.campaigns._store.campaigns

    def interrupted():
        found = read()
        if not late:
            other.apply(site.document(name="other"), "bob")
            other._carrier._step("other")
        late.append(found)
        return found

    site.campaigns._store.campaigns = interrupted
    site.campaigns.step()
    orders = [site.at("c").get(device) is At.ORDERED for device in site.world.devices]
    others = [site.at("other").get(device) is At.ORDERED for device in site.world.devices]
    assert [one + another for one, another in zip(orders, others, strict=True)] == [1, 1, 1]
    other.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE campaigns SET document = '{}' WHERE name = 'a'",
        "UPDATE campaigns SET record = '{}' WHERE name = 'a'",
        "UPDATE campaign_devices SET record = '[]' WHERE campaign = 'a'",
    ],
    ids=["document", "record", "device"],
)
def test_a_campaign_that_is_not_readable_keeps_no_other_waiting(site, damage):
    site.apply('[activation]\nwhen = "command"', name="a", target='devices = ["d0"]')
    site.go_on()
    site.apply(name="b")
    with site.campaigns._store._visitor() as db:
        db.execute(damage)
    for _ in range(4):
        with pytest.raises(StoreError, match="not readable"):
            site.campaigns.step()
        site.world.settle()
    assert site.at("b") == {0xD0: At.SKIPPED, 0xD1: At.HEALTHY, 0xD2: At.HEALTHY}


def test_a_mailbox_that_is_full_holds_the_campaign_up(site):
    site.apply()
    room = {"room": 2}
    site.fleet.waiting = lambda: {0: 10_000 - room["room"]}
    site.campaigns.step()
    assert sorted(site.at().values()) == [At.ORDERED, At.ORDERED, At.WAITING]
    del site.fleet.waiting
    site.go_on()
    assert set(site.at().values()) == {At.HEALTHY}


def test_a_runner_ends_when_it_is_told_and_says_what_is_wrong_once(site, caplog):
    site.apply()
    until = threading.Event()
    asked = []

    def gone():
        asked.append(1)
        if len(asked) == 2:
            until.set()
        raise StoreError("the disk is gone")

    with closing(campaigns_at(site.folder / "server.db", SERVER)) as store:
        store.campaigns = gone
        Campaigns(site.fleet, store).run(until)
    assert [record.message for record in caplog.records].count(
        "campaigns cannot be carried out now: the disk is gone"
    ) == 1


def test_other_stores_say_that_they_keep_none():
    with pytest.raises(StoreError, match="not in memory"):
        campaigns_at(MemoryStore(), SERVER)


STEPS = """
import os, signal, sys
from srup import Fleet
from srup.store.sqlitecampaigns import SqliteCampaigns
save, moment, number = SqliteCampaigns.save, sys.argv[2], int(sys.argv[3])
saves = 0
def killed(self, *arguments, **options):
    global saves
    saves += 1
    if saves == number and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    saved = save(self, *arguments, **options)
    if saves == number and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return saved
SqliteCampaigns.save = killed
with Fleet(sys.argv[1], 0x5E) as fleet:
    for _ in range(5):
        fleet.campaigns.step()
"""


@pytest.mark.process
@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_is_ordered_twice_when_a_runner_is_killed(tmp_path, moment):
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)
        devices = range(0x100, 0x120)
        keys = [KeyRecord(each, key_of(0).public_key.to_pem()) for each in devices]
        partners = [PartnerRecord(each, True, True, 64, 5, 31) for each in devices]
        store.commit(Changes(keys=keys, partners=partners, facts=[Fact(0x100, TAG + "site", "x")]))
        (tmp_path / "firmware.bin").write_bytes(FIRMWARE)
        (tmp_path / "c.toml").write_text(
            FILE.format(name="c", url=URL, target='share = "100%"', more="[pace]\nat_once = 9")
        )
        with Fleet(tmp_path / "server.db", SERVER) as fleet:
            fleet.campaigns.apply(load_document(tmp_path / "c.toml"))
            for _ in range(3):
                command = [sys.executable, "-c", STEPS, str(tmp_path / "server.db"), moment, "1"]
                subprocess.run(command, cwd=ROOT, timeout=WAIT, check=False)
            fleet.campaigns.step()
            members = fleet.campaigns.view("c").members.values()
            assert (sum(each.at is At.ORDERED for each in members), fleet.waiting()) == (9, {0: 9})
            assert sum(each.orders for each in members) == 9
