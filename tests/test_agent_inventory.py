"""The inventory: facts that devices report, what the server keeps of them, and what it does not."""

import json

import pytest

from srup import Fleet, MemoryStore, PolicyError, SqliteStore
from srup.agent.inventory import LONGEST_FACT, MAX_FACTS
from srup.fleet.campaignview import candidate
from srup.fleet.where import where

from .fleet import DIGEST, SERVER, URL
from .fleet import Fleet as World

DEVICE, OTHER = 0xD0, 0xD1


@pytest.fixture(params=["memory", "sqlite", "none"])
def world(request, tmp_path):
    """A server with each kind of store, or none."""
    stores = {"memory": MemoryStore, "sqlite": lambda: SqliteStore(tmp_path / "server.db"), "none": lambda: None}
    with World(tmp_path, size=0, server_options={"store": stores[request.param]()}) as world:
        yield world


def known(world, facts):
    """Wait until the server knows just these; a receipt comes once a second, and then what has changed meanwhile."""
    world.run(lambda: world.server.inventory(DEVICE) == facts, 1000.0)


def values_of(world, name):
    """How often a fact was sent."""
    found = []
    world.server.on_data(f"fact.{name}", "text")(lambda device, data_id, value: found.append(value))
    return found


def test_facts_are_there_when_the_device_has_joined(world):
    world.add(DEVICE, inventory={"type": "lock", "serial": "A-17"})
    world.start().settle()
    assert world.server.inventory(DEVICE) == {"type": "lock", "serial": "A-17"}
    assert world.server.inventory(OTHER) == {}
    assert world.faults() == 0
    assert not world.refusals


def test_what_changes_is_reported_and_what_does_not_is_not(world):
    device = world.add(DEVICE, inventory={"type": "lock"})
    heard = values_of(world, "type")
    world.start().settle()
    device.report_fact("type", "lock")
    world.settle()
    device.report_fact("type", "bolt")
    device.report_fact("mode", "night")
    device.report_fact("mode", "day")
    known(world, {"type": "bolt", "mode": "day"})
    assert heard == ["lock", "bolt"]
    device.report_fact("mode", "")
    known(world, {"type": "bolt"})
    device.report_fact("type", "")
    known(world, {})


def test_what_is_reported_before_it_has_joined_waits(world):
    device = world.add(DEVICE)
    device.report_fact("type", "lock")
    world.start().settle()
    world.network.cut("device-d0")
    device.report_fact("mode", "night")
    device.report_fact("mode", "day")
    world.settle()
    assert world.server.inventory(DEVICE) == {"type": "lock"}
    world.network.heal("device-d0")
    known(world, {"type": "lock", "mode": "day"})


def test_all_is_reported_again_once_a_day_and_not_at_each_join(world):
    device = world.add(DEVICE, inventory={"type": "lock"})
    heard = values_of(world, "type")
    world.start().settle()
    for _ in range(3):
        device.join()
        world.settle()
    assert heard == ["lock"]
    world.run(lambda: len(heard) == 2, 90_000.0)


def test_what_it_runs_stands_where_updates_write_it(tmp_path):
    store = MemoryStore()
    with World(tmp_path, size=0, server_options={"store": store}) as world, Fleet(store, SERVER) as fleet:
        device = world.add(DEVICE, inventory={"version": "41", "firmware": "a" * 64})
        device.on_activate(lambda path: None)
        world.start().settle()
        assert (fleet.device(DEVICE).version, fleet.device(DEVICE).firmware) == (41, "a" * 64)
        world.server.update(DEVICE, URL, DIGEST, version=42)
        world.settle()
        assert (fleet.device(DEVICE).version, fleet.device(DEVICE).firmware) == (42, DIGEST)
        device.report_fact("version", "40")  # it has fallen back to what was there before
        world.run(lambda: fleet.device(DEVICE).version == 40, 10.0)
        assert world.server.inventory(DEVICE) == {}


def test_an_operator_finds_devices_by_it_and_a_tag_counts_more(tmp_path):
    store = MemoryStore()
    with World(tmp_path, size=0, server_options={"store": store}) as world, Fleet(store, SERVER) as fleet:
        world.add(DEVICE, inventory={"type": "lock", "name": "front door", "zone": "Europe/Berlin"})
        world.add(OTHER, inventory={"type": "lamp"})
        world.start().settle()
        order = fleet.tag(OTHER, "type", "lock")
        world.server.engine.turn()
        world.settle()
        order.result(0.0)
        door, other = fleet.devices()
        assert (door.type, door.name, other.type, other.facts["type"]) == ("lock", "front door", "lock", "lamp")
        assert where('type=lock and name="front door"')(door, 0.0)
        assert where("fact.type=lamp and type!=lamp")(other, 0.0)
        assert (candidate(door).type, candidate(door).tags["zone"]) == ("lock", "Europe/Berlin")
        assert "zone" not in candidate(other).tags


def test_another_device_inherits_nothing(world):
    world.add(DEVICE, inventory={"type": "lock"})
    world.start().settle()
    world.server.revoke(DEVICE)
    world.settle()
    assert world.server.inventory(DEVICE) == {}


def test_it_survives_a_restart_of_the_server(tmp_path):
    store = MemoryStore()
    with World(tmp_path, size=0, server_options={"store": store}) as world:
        world.add(DEVICE, inventory={"type": "lock"})
        world.start().settle()
    with World(tmp_path, size=0, server_options={"store": store}) as again:
        again.server.start(threads=False)
        assert again.server.inventory(DEVICE) == {"type": "lock"}


# What a hostile device sends: values under names of facts, made by hand.


def test_t9_no_device_fills_the_memory_of_a_server(world):
    device = world.add(DEVICE)
    world.start().settle()
    for number in range(3 * MAX_FACTS):
        device.send(f"fact.f{number}", "x" * LONGEST_FACT)
    world.settle()
    assert len(world.server.inventory(DEVICE)) == MAX_FACTS
    assert len(json.dumps(world.server.inventory(DEVICE))) < 10_000
    device.send("fact.f0", "changed")  # what is there can change
    world.settle()
    assert world.server.inventory(DEVICE)["f0"] == "changed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fact.", "x"),
        ("fact.Type", "x"),
        ("fact.a b", "x"),
        ("fact." + "a" * 41, "x"),
        ("fact.type", "x" * (LONGEST_FACT + 1)),
        ("fact.type", "line\nbreak"),
        ("fact.type", b"\xff\xfe"),
        ("fact.version", "4.2.0"),
        ("fact.version", "9" * 19),
        ("fact.firmware", "A" * 64),
        ("facts", "x"),
    ],
)
def test_what_is_no_fact_is_refused_as_any_value_that_nobody_takes(world, name, value):
    device = world.add(DEVICE)
    world.start().settle()
    sent = device.send(name, value, confirmed=True)
    world.settle()
    with pytest.raises(PolicyError):
        sent.result(0.0)
    assert world.server.inventory(DEVICE) == {}
    assert not {"version", "firmware"} & world.server.facts(DEVICE).keys()


def test_a_stranger_reports_nothing(world):
    device = world.add(DEVICE, inventory={"type": "lock"})
    world.server.on_join(lambda identity: False)
    world.start().settle()
    assert not device.joined
    device.debug.session.known.peers[SERVER].member = True  # it thinks so
    world.perform(device, device.debug.session.data(SERVER, "fact.type", b"lock", world.clock.now, bytes(16)))
    world.settle()
    assert world.server.inventory(DEVICE) == {}


def test_an_application_that_uses_such_names_goes_on_getting_its_values(world):
    heard = values_of(world, "colour")
    everything = []
    world.server.on_data()(lambda device, data_id, value: everything.append(data_id))
    device = world.add(DEVICE)
    world.start().settle()
    device.send("fact.colour", "red")
    device.send("fact.Not one", "blue")
    world.settle()
    assert (heard, everything, world.server.inventory(DEVICE)) == (["red"], ["fact.Not one"], {"colour": "red"})


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"Type": "lock"}, "no name of a fact"),
        ({"type": "x" * 201}, "up to 200 characters"),
        ({"type": 7}, "is a text"),
        ({"version": "1.2"}, "fact version is a number"),
        ({f"f{number}": "" for number in range(33)}, "at most 32 facts"),
    ],
)
def test_a_device_is_not_made_with_what_no_server_takes(tmp_path, facts, said):
    with World(tmp_path, size=0) as world, pytest.raises(ValueError, match=said):
        world.add(DEVICE, inventory=facts)


def test_a_device_has_room_for_so_many_facts(world):
    device = world.add(DEVICE, inventory={f"f{number}": "x" for number in range(MAX_FACTS)})
    with pytest.raises(ValueError, match="at most 32"):
        device.report_fact("more", "x")
    device.report_fact("f0", "y")
