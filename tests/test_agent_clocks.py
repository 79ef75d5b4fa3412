"""Clocks that are wrong for a while, as after a reboot without a battery: what a device and a server make of it."""

import pytest

from srup import Action, Policy, Status, UnansweredError
from srup.agent.joining import REJOIN, SILENCE
from srup.simulation import START, Clock
from srup.tokens import bind

from .fleet import DIGEST, SERVER, URL, key_of
from .hostile import HostileFleet

pytestmark = pytest.mark.backend

DEVICE = 0xD0
DAY = 86400.0
USUAL = 1.25 * REJOIN + 60.0
"""Seconds in which a device asks its server again, whatever happens."""


@pytest.fixture
def fleet(tmp_path):
    with HostileFleet(tmp_path) as fleet:
        yield fleet.joined()


def rebooted(fleet, skew):
    """Start the device anew, without a store, with a clock that is wrong by so much for ten minutes, then right."""
    fleet.device.stop()
    device = fleet.add(DEVICE, clock=Clock(ahead_of=fleet.clock, skew=skew))
    fleet.told = []
    device.on_join_unanswered(fleet.told.append)
    device.start(threads=False)
    fleet.pass_time(600)
    fleet.clocks[device].skew = 0.0
    fleet.settle()


@pytest.mark.parametrize("skew", [-DAY, 1000.0 - START], ids=["yesterday", "in 1970"])
def test_a_device_whose_clock_went_back_over_a_reboot_joins_when_it_is_right(fleet, skew):
    rebooted(fleet, skew)
    fleet.run(lambda: fleet.device.joined, USUAL)
    fleet.works()


def test_control_a_device_whose_clock_was_right_all_the_time(fleet):
    rebooted(fleet, 0.0)
    fleet.run(lambda: fleet.device.joined, USUAL)
    fleet.works()


def test_a_device_that_nobody_answers_says_what_may_be_wrong_and_its_key(fleet):
    rebooted(fleet, -DAY)
    fleet.pass_time(SILENCE + 1)
    assert fleet.told
    assert f"as that of {DEVICE:x}" in fleet.told[0]
    assert key_of(DEVICE).public_key.fingerprint in fleet.told[0]


def test_whoever_waits_for_such_a_device_is_told_the_same(fleet):
    rebooted(fleet, -DAY)
    with pytest.raises(TimeoutError) as caught:
        fleet.device.wait_joined(0)
    assert key_of(DEVICE).public_key.fingerprint in str(caught.value)


@pytest.mark.parametrize(
    "skew",
    [
        pytest.param(0.0, id="control"),
        pytest.param(DAY, id="a day ahead"),
    ],
)
def test_a_device_whose_clock_was_a_day_ahead_asks_again_in_its_normal_time(fleet, skew):
    rebooted(fleet, skew)
    assert fleet.device.joined
    server = fleet.restart_server(devices=fleet.ring)  # it has forgotten its devices
    assert server.members == frozenset()
    fleet.run(lambda: server.members == {DEVICE}, USUAL)
    fleet.works()


# What is waited for here ends after so many seconds, not at a time of day.


def asks_while(fleet, skew):
    """Ask the server for something while it is away and the clock is wrong; set the clock right."""
    clock = fleet.clocks[fleet.device]
    clock.skew = max(skew, 0.0)
    fleet.network.cut("server")
    future = fleet.device.action(SERVER, 1)
    fleet.settle()
    clock.skew = max(-skew, 0.0)
    fleet.settle()
    return future


AHEAD = pytest.param(DAY, id="the clock goes back")
BACK = pytest.param(-DAY, id="the clock goes ahead")
RIGHT = pytest.param(0.0, id="control")


@pytest.mark.parametrize("skew", [RIGHT, AHEAD])
def test_a_request_that_nobody_answers_ends_after_its_lifetime(fleet, skew):
    future = asks_while(fleet, skew)
    fleet.run(future.done, 330)
    assert isinstance(future.exception(), UnansweredError)


@pytest.mark.parametrize("skew", [RIGHT, BACK])
def test_a_request_is_not_over_before_its_lifetime(fleet, skew):
    future = asks_while(fleet, skew)
    fleet.pass_time(30)
    fleet.network.heal("server")
    fleet.run(future.done, 60)
    assert future.result(0) is Status.ACTION_SUCCESS


@pytest.mark.parametrize("skew", [RIGHT, AHEAD])
def test_a_value_that_cannot_be_confirmed_ends_after_its_lifetime(fleet, skew):
    fleet.works()
    clock = fleet.clocks[fleet.device]
    fleet.network.cut("server")
    clock.skew = skew
    future = fleet.device.send("t", b"1", confirmed=True, lifetime=300)
    fleet.settle()
    clock.skew = 0.0
    fleet.run(future.done, 330)
    assert isinstance(future.exception(), UnansweredError)


# The same of a server, and of what else waits.


def server_with_a_clock(fleet, **options):
    """Start the server anew with a clock of its own; return the clock."""
    clock = Clock(ahead_of=fleet.clock)
    server = fleet.restart_server(clock=clock, devices=fleet.ring, **options)
    fleet.clocks[server] = clock
    return clock


@pytest.mark.parametrize("skew", [0.0, DAY, -DAY], ids=["control", "the clock goes back", "the clock goes ahead"])
def test_an_update_that_nobody_answers_ends_after_its_lifetime(fleet, skew):
    clock = server_with_a_clock(fleet)
    fleet.run(lambda: fleet.server.members, USUAL)
    clock.skew = max(skew, 0.0)
    fleet.network.cut(f"device-{DEVICE:x}")
    order = fleet.server.update(DEVICE, URL, DIGEST, lifetime=600)
    fleet.settle()
    clock.skew = max(-skew, 0.0)
    fleet.pass_time(590)
    assert not order.done
    fleet.pass_time(20)
    assert isinstance(order.exception(0), UnansweredError)


@pytest.mark.parametrize("skew", [0.0, 3600.0, -3600.0])
def test_a_join_that_waits_for_a_person_can_be_decided_in_its_time(fleet, skew):
    clock = server_with_a_clock(fleet, admission="human")
    pending, shown = [], []
    fleet.server.on_moderation(pending.append)
    device = fleet.add(0xD7, join="human")
    device.on_join_value(shown.append)
    device.start(threads=False)
    fleet.settle()
    [join] = pending
    left = join.expires - clock()
    clock.skew = skew
    fleet.settle()
    assert join.expires - clock() == pytest.approx(left)
    fleet.pass_time(left - 60)
    join.accept()
    fleet.settle()
    assert device.joined


@pytest.mark.parametrize("skew", [0.0, 3600.0, -3600.0])
def test_a_key_that_is_retiring_does_so_for_its_time(tmp_path, skew):
    policy = Policy(key_overlap=1000.0)
    with HostileFleet(tmp_path, server_policy=policy) as fleet:
        fleet.joined()
        clock = server_with_a_clock(fleet, policy=policy)
        fleet.run(lambda: fleet.server.members, USUAL)
        done = fleet.device.rotate_key(key_of(0x111))
        fleet.settle()
        assert done.result(0) is None
        clock.skew = skew
        for seconds, taken in ((990, 1), (20, 1)):
            fleet.pass_time(seconds)
            token = bind(DEVICE, SERVER, max(clock(), fleet.clock()) + 60, fleet.randbytes(16))
            fleet.hand.write(Action, DEVICE, SERVER, key=key_of(DEVICE), token=token, action_id=1)
            assert len(fleet.done) == taken


@pytest.mark.parametrize("skew", [0.0, -DAY], ids=["control", "yesterday"])
def test_a_value_of_a_clock_that_was_behind_arrives_when_it_is_right(fleet, skew):
    """Its token has expired before it was made; whatever is behind it in the stream must not wait for a day."""
    fleet.works()
    clock = fleet.clocks[fleet.device]
    clock.skew = skew
    first = fleet.device.send("t", b"1", confirmed=True)
    fleet.settle()
    clock.skew = 0.0
    second = fleet.device.send("t", b"2", confirmed=True)
    fleet.run(second.done, 60)
    assert (first.result(0), second.result(0)) == (None, None)
    assert fleet.done == [(DEVICE, "t", b"1"), (DEVICE, "t", b"2")]
    assert fleet.faults() == 0


@pytest.fixture
def durable(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        yield fleet.joined()


def restarted(fleet, skew, *, behind=0.0):
    """End the process of the device and start the next one, with a clock that is wrong by so much and then right."""
    fleet.device.stop()
    fleet.pass_time(behind)
    device = fleet.crash_device(clock=Clock(ahead_of=fleet.clock, skew=skew))
    fleet.told = []
    device.on_outcome(fleet.told.append)
    device.start(threads=False)
    fleet.settle()
    return device


def test_a_value_that_was_stored_in_1970_is_not_lost_by_a_restart(durable):
    restarted(durable, 1000.0 - START)
    durable.network.cut("server")
    for _ in range(300):  # more than are sent at a time: some are under way, some wait
        durable.device.send("t", b"v", confirmed=True)
    durable.settle()
    durable.clocks[durable.device].skew = 0.0
    durable.settle()
    restarted(durable, 0.0)
    durable.network.heal("server")
    durable.pass_time(60)
    assert durable.done == [(DEVICE, "t", b"v")] * 300
    assert durable.told == []


@pytest.mark.parametrize("skew", [0.0, DAY, 1000 * DAY])
def test_a_request_that_was_stored_by_a_clock_that_was_ahead_ends_after_its_lifetime(durable, skew):
    restarted(durable, skew)
    durable.network.cut("server")
    durable.device.action(SERVER, 1)
    durable.settle()
    device = restarted(durable, 0.0, behind=10)
    assert len(device.debug.session.requests()) >= 1
    durable.run(lambda: durable.told, 310)
    [outcome] = durable.told
    assert isinstance(outcome.result, UnansweredError)


@pytest.mark.parametrize("skew", [0.0, -DAY, 1000.0 - START], ids=["control", "yesterday", "in 1970"])
def test_a_value_that_waits_ends_after_its_lifetime_if_the_clock_is_behind_at_a_restart(durable, skew):
    """The clock of the server goes back over a reboot, and is set right at once."""
    absent = 0xD9
    durable.ring.add(absent, key_of(absent).public_key)
    durable.server.send_data(absent, "t", b"late", confirmed=True, lifetime=60.0)
    durable.settle()
    clock, told = Clock(ahead_of=durable.clock, skew=skew), []
    durable.server.stop()
    server = durable.crash_server(clock=clock)
    durable.clocks[server] = clock
    server.on_outcome(told.append)
    server.start(threads=False)
    durable.settle()
    clock.skew = 0.0
    durable.settle()
    durable.run(lambda: told, 70)
    [outcome] = told
    assert isinstance(outcome.result, UnansweredError)
    assert len(server.engine.values) == 0
