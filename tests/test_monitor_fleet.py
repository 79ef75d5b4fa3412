"""The metrics of a fleet: devices by state and last contact, campaigns, and a bound for what they are labelled with."""

import json
import time
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from srup import Fleet, SqliteStore
from srup.agent.contacts import HEARD
from srup.agent.facts import LAST_UPDATE
from srup.campaign import At, Campaign, Member, State
from srup.fleet import load_document
from srup.monitor import FleetCollector
from srup.monitor.fleetmetrics import FLEET_GAUGES
from srup.records import Changes, Fact, KeyRecord, PartnerRecord
from srup.store.mailboxes import campaigns_at

from .fleet import FIRMWARE, SERVER, URL, key_of, wait_until

FILE = f"""\
name = "c1"
[firmware]
file = "firmware.bin"
url = "{URL}"
[target]
share = "100%"
"""


@pytest.fixture
def place(tmp_path):
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)
        devices, now = range(0xD1, 0xD5), time.time()
        key = key_of(0).public_key.to_pem()
        failed = json.dumps({"state": "FAILED", "at": now, "digest": "0" * 64, "reason": "no room"})
        facts = [
            Fact(0xD1, HEARD, str(int(now))),
            Fact(0xD2, HEARD, str(int(now - 7200))),
            Fact(0xD2, LAST_UPDATE, failed),
        ]
        partners = [PartnerRecord(each, each != 0xD4, True, 64, 5, 31) for each in devices]
        store.commit(Changes(partners, keys=[KeyRecord(each, key) for each in devices], facts=facts))
        (tmp_path / "firmware.bin").write_bytes(FIRMWARE)
        (tmp_path / "c.toml").write_text(FILE)
        yield tmp_path / "server.db"


def samples(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_devices_and_campaigns_are_counted(place):
    with Fleet(place, SERVER) as fleet:
        shown = FleetCollector(fleet)
        assert samples(shown) == {}
        fleet.campaigns.apply(load_document(place.parent / "c.toml"))
        fleet.campaigns.step()
        shown.count()
        found = samples(shown)
    assert (found["srup_devices", "yes"], found["srup_devices", "no"]) == (3, 1)
    assert (found["srup_devices_updated", "failed"], found["srup_devices_updated", "none"]) == (1, 3)
    assert [found["srup_devices_heard", within] for within in ("1min", "1h", "1d")] == [1, 1, 2]
    assert (found["srup_campaigns", "running"], found["srup_campaigns", "stopped"]) == (1, 0)
    assert found["srup_campaign_devices", "c1", "ordered"] == 3
    assert found["srup_campaign_devices", "c1", "skipped"] == 1
    assert found["srup_fleet_age_seconds",] >= 0.0
    assert {name for name, *_ in found} == FLEET_GAUGES.keys()


def test_only_so_many_campaigns_are_named(place):
    with closing(campaigns_at(place, SERVER)) as store:
        document = json.dumps({"text": FILE, "digest": "0" * 64, "size": 1}).encode()
        for number in range(30):
            state = State.RUNNING if number < 25 else State.FINISHED
            campaign = Campaign("k", state, 1.0, created=float(number))
            members = {0xD1: Member(0, At.WAITING).dump()}
            assert store.save(number, f"c{number}", campaign.dump(), members, document=document)
    with Fleet(place, SERVER) as fleet:
        shown = FleetCollector(fleet)
        shown.count()
        found = samples(shown)
    named = {labels[0] for name, *labels in found if name == "srup_campaign_devices"}
    assert named == {f"c{number}" for number in range(5, 25)}
    assert (found["srup_campaigns", "running"], found["srup_campaigns", "finished"]) == (25, 5)


def test_they_are_counted_in_the_background(place, caplog):
    with Fleet(place, SERVER) as fleet, FleetCollector(fleet, every=0.01) as shown:
        wait_until(lambda: samples(shown), "the devices are counted")
        fleet.close()
        wait_until(lambda: caplog.records, "that they cannot be counted is told")
    assert "the devices cannot be counted" in caplog.text
