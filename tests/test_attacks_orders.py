"""Attacks on a server that is ordered from outside: what an operator takes away must not wait behind other orders."""

import pytest

from srup import Action, Activate, Data, JoinRequest, PolicyError, Server
from srup.agent.verbs import VERBS
from srup.store import MemoryStore
from srup.transport import MemoryTransport

from .fleet import DIGEST, SERVER, URL, key_of
from .hostile import Broker
from .test_agent_ordered import OrderedFleet

pytestmark = pytest.mark.backend

DEVICE = 0xD0


@pytest.fixture
def fleet(tmp_path):
    fleet = OrderedFleet(tmp_path)
    fleet.hand = Broker(fleet, fleet.network)
    listen(fleet)
    fleet.start().settle()
    assert fleet.all_joined()
    return fleet


def listen(fleet):
    fleet.heard = []
    fleet.server.on_action(1)(fleet.heard.append)
    fleet.server.on_data("t")(lambda device, _name, _value: fleet.heard.append(device))


# T19: a key is removed and added again, here by orders.


def registered_again(fleet):
    future = fleet.device.action(SERVER, 1)
    fleet.settle()
    assert future.done()
    for kind, details in (("remove", {}), ("register", {"key": key_of(DEVICE).public_key})):
        reports = fleet.order(kind, **details)
        fleet.settle()
        assert reports[-1].state == "DONE"
    fleet.device.join()
    fleet.settle()
    assert fleet.server.members == {DEVICE}


def test_t19_old_messages_of_a_key_that_is_ordered_away_and_back(fleet):
    registered_again(fleet)
    for replayed in fleet.hand.heard(JoinRequest, DEVICE) + fleet.hand.heard(Action, DEVICE):
        fleet.hand.deliver(replayed)
    assert fleet.heard == [DEVICE]


def test_t19_control_new_messages_of_that_key_are_taken(fleet):
    registered_again(fleet)
    fleet.device.action(SERVER, 1)
    fleet.settle()
    assert fleet.heard == [DEVICE] * 2


# T35: a revocation behind many orders, as the partition of the device gets another worker.


def handed_over(fleet, kind, behind=10_000):
    """Stop the server; let the device say something and orders pile up, this one the last; let another go on."""
    fleet.server.stop()
    fleet.device.send("t", b"1")
    fleet.device.step()
    for _ in range(behind):
        post(fleet, "action", action_id=7)
    reports = post(fleet, kind)
    fleet.ordered_server()
    listen(fleet)
    fleet.server.start(threads=False)
    fleet.settle()
    return reports


def post(fleet, kind, **details):
    return fleet.store(SERVER).post(fleet.clock.now, VERBS[kind](DEVICE, **details))


@pytest.mark.slow
def test_t35_a_revocation_behind_10_000_orders_takes_effect_first(fleet):
    reports = handed_over(fleet, "revoke")
    assert reports[-1].state == "DONE"
    assert DEVICE not in fleet.server.devices
    assert (fleet.heard, fleet.done) == ([], [])


def test_t35_an_older_registration_lets_nobody_in_again(fleet):
    """It was ordered before the revocation: after that it must not count, over a crash either."""
    fleet.server.stop()
    other = key_of(0xD9)
    older = post(fleet, "register", key=other.public_key)
    revoked = post(fleet, "revoke")
    newer = post(fleet, "register", key=other.public_key)
    store = fleet.store(SERVER)
    store.crash = (store.commits + 1, "after")
    fleet.crash_server()
    fleet.settle()
    assert fleet.crashes == 1
    assert [report.state for report in revoked] == ["DONE"]
    with pytest.raises(PolicyError, match="was revoked after this was ordered"):
        older[-1].result()
    assert newer[-1].result() is None
    assert fleet.server.devices[DEVICE] == other.public_key


def test_t35_control_an_identification_waits_for_its_turn(fleet):
    handed_over(fleet, "identify", behind=500)
    assert fleet.heard == [DEVICE]
    assert fleet.done
    assert set(fleet.done) == {"action"}


# Without an attacker: the store refuses something, and then the clock is set back.


def registered_after_an_error(fleet, back):
    """Order a key to be registered, which a store refuses at first; set the clock back; return what is reported."""
    beside = MemoryStore()  # of another server that knows the same devices, and keeps what becomes of their keys
    other = Server(
        0x5F,
        key_of(0x5F),
        devices=fleet.server.devices,
        broker=MemoryTransport(fleet.network, "beside"),
        clock=fleet.clock,
        store=beside,
    )
    other.start(threads=False)
    beside.failures = 1
    key = key_of(0xE0).public_key
    reports = fleet.store(SERVER).post(fleet.clock.now, VERBS["register"](0xE0, key))
    fleet.server.step()
    assert reports == []
    fleet.clock.now -= back
    for _ in range(10):
        fleet.clock.now += 1
        fleet.server.step()
    other.stop()
    return [report.state for report in reports]


def test_a_clock_that_is_set_back_does_not_stall_the_mailbox(fleet):
    assert registered_after_an_error(fleet, 86400.0) == ["DONE"]


def test_control_the_mailbox_after_an_error(fleet):
    assert registered_after_an_error(fleet, 0.0) == ["DONE"]


# T41: the word to activate, which is good until the daily hours end, is held back until they are over.


def held_update(fleet):
    """Order an update and have it fetched; return the reports on it and what the device activates."""
    activated = []
    fleet.device.on_activate(lambda path: activated.append(path.name))
    reports = fleet.order("update", url=URL, digest=DIGEST, hold=True)
    fleet.settle()
    assert reports[-1].state == "READY"
    return reports, activated


@pytest.mark.parametrize("late", [False, True], ids=["control", "attack"])
def test_t41_the_word_to_activate_is_held_until_the_hours_are_over(fleet, late):
    reports, activated = held_update(fleet)
    fleet.hand.hold(Data, Activate, by=SERVER)
    fleet.order("activate", update=reports[-1].token, lifetime=600.0)
    fleet.pass_time(500)
    told = list(fleet.hand.held)
    assert len(told) > 1
    if late:
        fleet.pass_time(100 + 31)
    fleet.hand.deliver(*told)
    assert activated == ([] if late else [DIGEST])
    fleet.order("activate", update=reports[-1].token, lifetime=600.0)  # in the next hours
    fleet.settle()
    assert activated == [DIGEST]
    assert (reports[-1].state, reports[-1].value) == ("ACTIVATED", "ACTIVATED")


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_t41_nothing_is_sent_again_after_the_hours(fleet, restarted):
    reports, activated = held_update(fleet)
    fleet.network.cut("device-d0")
    fleet.order("activate", update=reports[-1].token, lifetime=600.0)
    fleet.pass_time(700)
    if restarted:
        fleet.server.stop()
        fleet.crash_server()
    sent = len(fleet.hand.heard(Data, SERVER))
    fleet.pass_time(5000)
    assert len(fleet.hand.heard(Data, SERVER)) == sent
    fleet.network.heal("device-d0")
    fleet.settle()
    assert activated == []
    fleet.order("activate", update=reports[-1].token, lifetime=600.0)
    fleet.settle()
    assert activated == [DIGEST]


def test_t41_control_without_a_lifetime_it_is_activated_whenever_it_comes(fleet):
    reports, activated = held_update(fleet)
    fleet.hand.hold(Activate, by=SERVER)
    fleet.order("activate", update=reports[-1].token)
    fleet.settle()
    [told] = fleet.hand.held
    fleet.pass_time(5000)
    fleet.hand.deliver(told)
    assert activated == [DIGEST]
