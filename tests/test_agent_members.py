"""Where an application orders what its devices are to have, and what a device that nobody answers says."""

import logging
import threading

import pytest

from srup import PolicyError, UpdateError
from srup.agent.joining import REJOIN, SILENCE
from srup.records import Fact
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, Fleet, key_of
from .hostile import HostileFleet
from .test_agent_durable import DurableFleet

DEVICE = 0xD0


def bring_up_to_date(server, ordered):
    """What README shows."""

    @server.on_member
    def update(device):
        if server.firmware_of(device) != DIGEST:
            ordered.append(server.update(device, URL, DIGEST))


def test_on_member_is_called_when_a_device_joins_and_whenever_it_asks_again(tmp_path):
    with Fleet(tmp_path) as fleet:
        joined, members = [], []
        fleet.server.on_joined(joined.append)
        fleet.server.on_member(members.append)
        fleet.joined()
        assert (joined, members) == ([DEVICE], [DEVICE])
        fleet.device.stop()
        fleet.pass_time(1)
        fleet.add(DEVICE).start(threads=False)  # a device that starts anew
        fleet.settle()
        assert (joined, members) == ([DEVICE], [DEVICE] * 2)
        fleet.run(lambda: len(members) == 3, 2 * REJOIN)
        assert joined == [DEVICE]


def test_on_member_is_not_called_for_a_device_that_is_not_let_in(tmp_path):
    with Fleet(tmp_path) as fleet:
        members = []
        fleet.server.on_join(lambda device: False)
        fleet.server.on_member(members.append)
        fleet.start().settle()
        assert members == []


def test_on_member_is_called_at_the_start_for_those_that_the_store_knows(tmp_path):
    fleet = DurableFleet(tmp_path, 3)
    fleet.joined()
    joined, members = [], []
    server = fleet.crash_server()
    server.on_joined(joined.append)

    @server.on_member
    def member(device):
        members.append(device)
        if device == DEVICE + 1:
            raise ValueError("one that raises does not keep the others from their turn")

    server.start(threads=False)
    fleet.settle()
    assert (joined, members) == ([], [DEVICE, DEVICE + 1, DEVICE + 2])
    assert server.counts["faults"] == 1


@pytest.mark.parametrize("crash", ["server", "device", "both"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "with the update under way"])
def test_a_device_is_updated_once_whoever_starts_anew(tmp_path, crash, late):
    fleet, ordered, activated = DurableFleet(tmp_path), [], []
    bring_up_to_date(fleet.server, ordered)
    fleet.device.on_activate(activated.append)
    if late:
        fleet.start()
        fleet.run(lambda: ordered, 60)
    else:
        fleet.joined()
        assert ordered[0].state is UpdateState.ACTIVATED
    if crash in ("server", "both"):
        bring_up_to_date(fleet.crash_server(), ordered)
        fleet.server.start(threads=False)
    if crash in ("device", "both"):
        fleet.crash_device().on_activate(activated.append)
        fleet.device.start(threads=False)
    fleet.run(lambda: fleet.server.facts(DEVICE).get("firmware") == DIGEST, 3600)
    fleet.pass_time(3 * REJOIN)
    assert len(ordered) == 1
    assert len(activated) == 1
    assert fleet.server.firmware_of(DEVICE) == DIGEST


def test_firmware_of_goes_back_when_an_update_fails(tmp_path):
    with Fleet(tmp_path) as fleet:
        fleet.joined()
        assert fleet.server.firmware_of(DEVICE) is None
        fleet.server.update(DEVICE, URL, DIGEST)
        assert fleet.server.firmware_of(DEVICE) == DIGEST  # at once, so that it is not ordered again
        fleet.settle()
        assert fleet.server.firmware_of(DEVICE) == DIGEST
        other = fleet.server.update(DEVICE, URL, "0" * 64)
        assert fleet.server.firmware_of(DEVICE) == "0" * 64
        fleet.settle()
        with pytest.raises(UpdateError):
            other.result(0)
        assert fleet.server.firmware_of(DEVICE) == DIGEST


def test_firmware_of_a_device_that_is_no_member(tmp_path):
    with Fleet(tmp_path) as fleet:
        fleet.server.start(threads=False)
        order = fleet.server.update(DEVICE, URL, DIGEST)
        fleet.settle()
        with pytest.raises(PolicyError):
            order.result(0)
        assert fleet.server.firmware_of(DEVICE) is None


@pytest.mark.parametrize("restart", [False, True])
def test_a_device_with_another_key_has_not_the_firmware_of_the_former_one(tmp_path, restart):
    fleet = DurableFleet(tmp_path)
    fleet.joined()
    fleet.server.update(DEVICE, URL, DIGEST)
    fleet.settle()
    fleet.server.revoke(DEVICE)
    fleet.settle()
    if restart:
        fleet.crash_server().start(threads=False)
    assert fleet.server.firmware_of(DEVICE) is None
    assert fleet.server.facts(DEVICE) == {}


# --- a device that nobody answers


def warnings(caplog):
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if "has not answered the join" in text]


def test_a_device_that_nobody_answers_says_once_what_may_be_wrong(tmp_path, caplog):
    told = []
    with Fleet(tmp_path) as fleet:
        fleet.device.on_join_unanswered(told.append)
        fleet.device.start(threads=False)  # and no server
        began = fleet.clock.now
        fleet.run(lambda: warnings(caplog), 2 * SILENCE)
        assert fleet.clock.now == began + SILENCE
        fleet.pass_time(60)
        [said] = warnings(caplog)
        assert said.endswith(told[0])
        assert key_of(DEVICE).public_key.fingerprint in said
        assert key_of(SERVER).public_key.fingerprint in said
        fleet.run(lambda: fleet.device.counts["unanswered"], 600)  # its request has expired: it asks anew
        fleet.run(lambda: len(warnings(caplog)) == 2, 2 * SILENCE)


def test_a_device_without_a_link_says_that_alone(tmp_path, caplog):
    with Fleet(tmp_path) as fleet:
        fleet.network.cut(f"device-{DEVICE:x}")
        fleet.device.start(threads=False)
        fleet.pass_time(1000)
        assert warnings(caplog) == []


@pytest.mark.parametrize("answer", [True, False])
def test_a_device_that_was_answered_has_nothing_to_say(tmp_path, caplog, answer):
    with Fleet(tmp_path) as fleet:
        fleet.server.on_join(lambda device: answer)
        fleet.start().settle()
        fleet.pass_time(3 * SILENCE)
        assert warnings(caplog) == []


def test_a_key_that_is_removed_and_added_again_at_once_leaves_the_same_membership_over_a_restart(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        device, ring = fleet.device.identity, fleet.ring
        with ring.lock:
            key = ring[device]
            ring.remove(device)
            ring.add(device, key)
        fleet.settle()
        assert fleet.server.members == {device}
        fleet.restart_server()
        assert fleet.server.members == {device}
        fleet.works()


@pytest.mark.parametrize("how", ["remove", "revoke"])
def test_a_value_for_a_device_that_never_spoke_ends_with_its_key(tmp_path, how):
    with HostileFleet(tmp_path, durable=True) as fleet:
        absent = 0xD9
        fleet.joined()
        fleet.ring.add(absent, key_of(absent).public_key)
        future = fleet.server.send_data(absent, "t", b"1", confirmed=True)
        fleet.settle()
        getattr(fleet.ring, how)(absent)
        fleet.settle()
        with pytest.raises(PolicyError, match="no key here"):
            future.result(0)


def test_a_key_that_the_application_changes_takes_nothing_out_of_the_turn_that_is_under_way(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        device, ring = fleet.device.identity, fleet.ring
        ring.add(0xD9, key_of(0xD9).public_key)

        def fact():
            """The thread of the turn is held up here, between the look at the list and what is appended to it."""
            application = threading.Thread(target=ring.remove, args=[0xD9])
            application.start()
            application.join()
            return Fact(device, "seen", "yes")

        fleet.server.engine.post(lambda transaction: transaction.changes.facts.append(fact()))
        fleet.settle()
        server = fleet.restart_server()
        assert server.facts(device)["seen"] == "yes"
