"""T26: one member has the application's handlers called faster than they end, by whatever calls them."""

import pytest

from srup import Data, JoinRequest, SyndicatedData, SyndicatedDeviceCount
from srup.agent import backlog
from srup.session.engine import Session
from srup.wire import DATA_RECEIPT, IDENTIFICATION_RESPONSE, JOIN_OBSERVER, JOIN_REASON, UPDATE_CANCEL, UPDATE_REASON

from .fleet import SERVER
from .hostile import Broker, HostileFleet
from .syndication_fleet import HOME, HOME_ID, LAMPS, Federation
from .test_agent_fairness import Slow

pytestmark = pytest.mark.backend

DEVICE, OTHER = 0xD0, 0xD1
FLOOD = 360
HELD_FROM, MAX_REFUSALS = 320, 20
"""From so many waiting calls on nothing is acknowledged here, so that a flood of few messages shows what many do."""

SHARE = (HELD_FROM - MAX_REFUSALS) // 2
"""How many calls one partner has waiting at most."""


@pytest.fixture(autouse=True)
def small_backlog(monkeypatch):
    monkeypatch.setattr(backlog, "HELD_FROM", HELD_FROM)
    monkeypatch.setattr(backlog, "MAX_REFUSALS", MAX_REFUSALS)


def inject(world, hand, network, topic, cls, sender, recipient, **fields):
    """Put a flood of such messages on the network, all genuine, a few at a time."""
    for number in range(FLOOD):
        network.inject(topic, hand.signed(cls, sender, recipient, sequence_id=hand.newer_id(), **fields))
        if number % 40 == 39:
            world.settle()


def flood_of_values(tmp_path, data_id):
    """Return how many calls wait after a flood of values of one member, and how many messages are not acknowledged."""
    with HostileFleet(tmp_path, 2) as fleet:
        fleet.server.on_data()(lambda *_: None)
        fleet.joined()
        fleet.server.engine.handlers.application = slow = Slow()
        topic, fields = f"SRUP/{DEVICE:x}", {"data_id": data_id, "data": bytes(16)}
        inject(fleet, fleet.hand, fleet.network, topic, Data, DEVICE, SERVER, **fields)
        waiting, unsettled = fleet.server.debug.handlers, fleet.network._sessions["server"].unsettled
        fleet.devices[OTHER].send("t", b"1", confirmed=False)
        fleet.settle()
        held = len(unsettled)
        slow.catch_up()
        return waiting, held


VALUES = [IDENTIFICATION_RESPONSE, JOIN_OBSERVER, JOIN_REASON, UPDATE_CANCEL, UPDATE_REASON, "t"]


@pytest.mark.parametrize("data_id", VALUES)
def test_t26_a_flood_of_values_under_a_name_of_the_protocols_own(tmp_path, data_id):
    waiting, held = flood_of_values(tmp_path, data_id)
    assert 0 < waiting <= SHARE + MAX_REFUSALS
    assert held == 0


def test_t26_control_without_the_quota_nobody_is_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(backlog.Backlog, "check_quota", lambda *_: None)
    waiting, held = flood_of_values(tmp_path, "t")
    assert waiting == FLOOD
    assert held > 0


def test_t26_receipts_are_heard_however_many_handlers_wait(tmp_path):
    waiting, held = flood_of_values(tmp_path, DATA_RECEIPT)
    assert (waiting, held) == (0, 0)


def flood_of_joins(tmp_path, durable):
    """Return how many calls wait after a flood of joins that a server refuses without asking anybody."""
    options = {"admission": "human"}
    with HostileFleet(tmp_path, 2, durable=durable, server_options=options) as fleet:
        fleet.server.on_not_joined(lambda *_: None)
        fleet.start().settle()
        fleet.server.engine.handlers.application = slow = Slow()
        topic = f"SRUP/servers/{SERVER:x}/{DEVICE:x}"
        inject(fleet, fleet.hand, fleet.network, topic, JoinRequest, DEVICE, SERVER)
        waiting = fleet.server.debug.handlers
        slow.catch_up()
        return waiting


@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
def test_t26_a_flood_of_joins_that_are_refused(tmp_path, durable):
    assert 0 < flood_of_joins(tmp_path, durable) <= SHARE + MAX_REFUSALS


def test_t26_control_without_the_quota_each_of_these_joins_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "calls_handler", lambda *_: False)
    assert flood_of_joins(tmp_path, False) >= FLOOD


WORDS = {
    "values": (SyndicatedData, {"data_id": "temperature", "data": b"1", "source_id": LAMPS[0]}),
    "lists": (SyndicatedDeviceCount, {"count": 0}),
}


def flood_of_a_syndication(tmp_path, what):
    """Return how many calls wait at a home server after a flood by way of its syndication device."""
    with Federation(tmp_path, scheme="ed25519") as world:
        world.home.on_syndicated_data()(lambda *_: None)
        world.home.on_shared(lambda *_: None)
        world.syndicated()
        hand = Broker(world, world.networks["home"])
        world.home.engine.handlers.application = slow = Slow()
        cls, fields = WORDS[what]
        inject(world, hand, world.networks["home"], f"SRUP/{HOME_ID:x}", cls, HOME_ID, HOME, **fields)
        waiting = world.home.debug.handlers
        slow.catch_up()
        return waiting


@pytest.mark.parametrize("what", WORDS)
def test_t26_a_flood_by_way_of_a_syndication(tmp_path, what):
    assert 0 < flood_of_a_syndication(tmp_path, what) <= SHARE + MAX_REFUSALS


@pytest.mark.parametrize("what", WORDS)
def test_t26_control_without_the_quota_all_of_a_syndication_waits(tmp_path, monkeypatch, what):
    monkeypatch.setattr(Session, "calls_handler", lambda *_: False)
    assert flood_of_a_syndication(tmp_path, what) == FLOOD
