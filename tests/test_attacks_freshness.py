"""Attacks on freshness: what was carried out once is carried out again, or comes when it is too late for it."""

import hashlib

import pytest

from srup import (
    Action,
    Activate,
    Data,
    Initiate,
    JoinRequest,
    Policy,
    PrivateKey,
    Response,
    Status,
    UnansweredError,
    peek,
)
from srup.session import DeviceSession
from srup.session.events import FetchRequested
from srup.simulation import Clock
from srup.tokens import bind
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, key_of
from .hostile import HostileFleet

pytestmark = pytest.mark.backend

DEVICE = 0xD0
TOP = 2**64 - 1


# T19: a key is removed and added again, and old messages are replayed.


def readded(fleet, how):
    """Take the device's key away and register the same one again."""
    ring, server = fleet.ring, fleet.server
    if how == "after a rotation":
        changed = fleet.device.rotate_key(PrivateKey.generate("ed25519"))
        fleet.settle()
        assert changed.result(0) is None
    future = fleet.device.action(SERVER, 1)
    fleet.settle()
    assert future.result(0) is Status.ACTION_SUCCESS
    key = ring[DEVICE]
    if how == "in the list":
        server.reload_keys({DEVICE: key})
        fleet.settle()
        server.reload_keys({})
        fleet.settle()
        assert DEVICE not in ring
        server.reload_keys({DEVICE: key})
    else:
        ring.remove(DEVICE)
        ring.add(DEVICE, key)
    if how == "over a restart":
        fleet.restart_server(devices=ring)
    fleet.settle()
    fleet.device.join()
    fleet.settle()
    assert fleet.server.members == {DEVICE}


WAYS = ["by hand", "in the list", "after a rotation", "over a restart"]


@pytest.mark.parametrize("how", WAYS)
def test_t19_old_messages_of_a_key_that_is_registered_again(tmp_path, how):
    with HostileFleet(tmp_path, durable=how == "over a restart") as fleet:
        fleet.joined()
        readded(fleet, how)
        assert fleet.done == [(SERVER, 1)]
        for replayed in fleet.hand.heard(JoinRequest, DEVICE) + fleet.hand.heard(Action, DEVICE):
            fleet.hand.deliver(replayed)
        assert fleet.done == [(SERVER, 1)]


@pytest.mark.parametrize("how", WAYS)
def test_t19_control_new_messages_of_that_key_are_taken(tmp_path, how):
    with HostileFleet(tmp_path, durable=how == "over a restart") as fleet:
        fleet.joined()
        readded(fleet, how)
        fleet.device.action(SERVER, 1)
        fleet.settle()
        assert fleet.done == [(SERVER, 1)] * 2
        assert fleet.faults() == 0


# T20: a device without a clock, and a retransmission that is held back until its exchange is forgotten.

FORGOTTEN = {
    "in time": lambda fleet: fleet.pass_time(2 * 86400),
    "behind 300 others": lambda fleet: [ordered(fleet, 2) for _ in range(300)],
}


def ordered(fleet, action_id):
    future = fleet.server.action(DEVICE, action_id)
    fleet.settle()
    return future.result(0)


def retransmission_held(fleet, cls=Action):
    """Have action 1 done whose answer gets lost, and keep back that it is asked for again."""
    fleet.hand.hold(Response, by=DEVICE)
    future = fleet.server.action(DEVICE, 1)
    fleet.settle()
    assert fleet.done == [(DEVICE, 1)]
    fleet.hand.hold(cls, by=SERVER)
    before = len(fleet.hand.held)
    fleet.pass_time(6)
    again = fleet.hand.held[before:]
    assert len(again) == 1
    fleet.hand.hold()
    fleet.pass_time(20)  # it is asked for a third time, and answered
    assert future.result(0) is Status.ACTION_SUCCESS
    assert fleet.done == [(DEVICE, 1)]
    return again


@pytest.mark.parametrize("how", FORGOTTEN)
@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
def test_t20_a_retransmission_that_comes_when_its_exchange_is_forgotten(tmp_path, how, durable):
    with HostileFleet(tmp_path, durable=durable, device_policy=Policy(has_clock=False)) as fleet:
        fleet.joined()
        again = retransmission_held(fleet)
        FORGOTTEN[how](fleet)
        fleet.hand.deliver(*again)
        assert fleet.done == [(DEVICE, 1)]


def newest_held(fleet):
    """Have action 1 done whose answer comes late, and keep back what was sent meanwhile, the newest of all."""
    fleet.hand.hold(Response, by=DEVICE)
    future = fleet.server.action(DEVICE, 1)
    fleet.settle()
    [answer] = fleet.hand.held
    fleet.hand.hold(Action, by=SERVER)
    fleet.pass_time(6)
    [_, again] = fleet.hand.held
    fleet.hand.deliver(answer)
    assert future.result(0) is Status.ACTION_SUCCESS
    assert fleet.done == [(DEVICE, 1)]
    return again


@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
def test_t20_a_retransmission_that_is_all_that_comes_in_two_days(tmp_path, durable):
    """So no later sequence id tells that it is old."""
    with HostileFleet(tmp_path, durable=durable, device_policy=Policy(has_clock=False)) as fleet:
        fleet.joined()
        again = newest_held(fleet)
        fleet.network.cut("server")
        fleet.pass_time(2 * 86400)
        fleet.hand.deliver(again)
        assert fleet.done == [(DEVICE, 1)]


@pytest.mark.parametrize("how", FORGOTTEN)
def test_t20_control_what_is_new_is_done_after_all_that(tmp_path, how):
    with HostileFleet(tmp_path, device_policy=Policy(has_clock=False)) as fleet:
        fleet.joined()
        again = retransmission_held(fleet)
        fleet.hand.deliver(*again)
        assert fleet.done == [(DEVICE, 1)]
        FORGOTTEN[how](fleet)
        ordered(fleet, 1)
        assert fleet.done == [(DEVICE, 1)] * 2
        fleet.works()


# T21: the receiver's clock goes ahead and back.


@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
@pytest.mark.parametrize("strides", [0.0, 600.0], ids=["control", "attack"])
def test_t21_the_clock_of_the_receiver_goes_ten_minutes_ahead_and_back(tmp_path, durable, strides):
    with HostileFleet(tmp_path, durable=durable) as fleet:
        fleet.joined()
        again = retransmission_held(fleet)
        clock = fleet.clocks[fleet.device]
        clock.skew = strides
        fleet.settle()
        clock.skew = 0.0
        fleet.settle()
        fleet.hand.deliver(*again)
        assert fleet.done == [(DEVICE, 1)]
        ordered(fleet, 1)
        assert fleet.done == [(DEVICE, 1)] * 2


@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
def test_t21_the_same_with_a_retransmission_that_nothing_newer_has_followed(tmp_path, durable):
    """So no later sequence id tells that it is old: it was on its way when the late answer came."""
    with HostileFleet(tmp_path, durable=durable) as fleet:
        fleet.joined()
        again = newest_held(fleet)
        fleet.clocks[fleet.device].skew = 600.0
        fleet.settle()
        fleet.clocks[fleet.device].skew = 0.0
        fleet.settle()
        fleet.hand.deliver(again)
        assert fleet.done == [(DEVICE, 1)]


def test_t21_the_same_with_a_restart_while_the_clock_is_ahead(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        again = retransmission_held(fleet)
        fleet.device.stop()
        fleet.add(DEVICE, clock=Clock(ahead_of=fleet.clock, skew=600.0)).start(threads=False)
        fleet.settle()
        fleet.clocks[fleet.device].skew = 0.0
        fleet.settle()
        fleet.hand.deliver(*again)
        assert fleet.done == [(DEVICE, 1)]


# T29: the word to activate an older order is held back.

NEW_FIRMWARE = b"the next firmware" * 100
NEW_DIGEST = hashlib.sha256(NEW_FIRMWARE).hexdigest()
NEW_URL = "https://firmware.example/next"


def activated(fleet, hold, between=lambda: None, before_delivery=lambda: None):
    """Order two updates, the second when the first is ready; return what was activated, after all that is held."""
    fleet.fetcher.contents[NEW_URL] = NEW_FIRMWARE
    activated = []
    fleet.device.on_activate(lambda path: activated.append(path.name))
    older = fleet.server.update(DEVICE, URL, DIGEST, hold=True)
    fleet.settle()
    if hold:
        fleet.hand.hold(Activate, by=SERVER)
    older.activate()
    fleet.settle()
    between()
    fleet.hand.hold()
    newer = fleet.server.update(DEVICE, NEW_URL, NEW_DIGEST)
    fleet.settle()
    assert newer.result(0) is UpdateState.ACTIVATED
    if hold:
        assert activated == [NEW_DIGEST]
        before_delivery()
        fleet.hand.deliver()
    return activated


@pytest.mark.parametrize("floor", [None, 1], ids=["without a floor", "with a floor"])
def test_t29_an_activation_of_an_older_order_that_was_held_back(tmp_path, floor):
    with HostileFleet(tmp_path, 0) as fleet:
        fleet.add(DEVICE, version_floor=floor)
        fleet.joined()
        if floor is not None:
            update = fleet.server.update
            versions = {DIGEST: 1, NEW_DIGEST: 2}
            fleet.server.update = lambda device, url, digest, **options: update(
                device, url, digest, version=versions[digest], **options
            )
        assert activated(fleet, hold=True) == [NEW_DIGEST]


def test_t29_the_same_with_a_restart_in_between(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()

        def restart():
            fleet.device.stop()
            fleet.add(DEVICE).on_activate(lambda path: again.append(path.name))
            fleet.device.start(threads=False)
            fleet.settle()

        again = []
        assert activated(fleet, hold=True, before_delivery=restart) == [NEW_DIGEST]
        assert again == []


@pytest.mark.parametrize("again", [False, True], ids=["as it was", "signed by the new key"])
def test_t29_the_same_with_a_new_key_of_the_server_in_between(tmp_path, again):
    def between():
        rotated(fleet, "server")
        if again:
            fleet.hand.held.clear()
            fleet.pass_time(6)
            assert len(fleet.hand.held) == 1

    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        assert activated(fleet, hold=True, between=between) == [NEW_DIGEST]


def test_t29_control_in_time_it_is_activated(tmp_path):
    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        assert activated(fleet, hold=False) == [DIGEST, NEW_DIGEST]


# T30: a retiring key spends all sequence ids.


@pytest.mark.parametrize("whose", ["device", "server"])
def test_t30_a_retiring_key_sends_the_highest_sequence_id(tmp_path, whose):
    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        rotated(fleet, whose)
        sender, recipient = (DEVICE, SERVER) if whose == "device" else (SERVER, DEVICE)
        fleet.hand.write(Action, sender, recipient, sequence_id=TOP, action_id=2)
        fleet.works()


@pytest.mark.parametrize("whose", ["device", "server"])
def test_t30_control_a_retiring_key_is_heard(tmp_path, whose):
    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        rotated(fleet, whose)
        sender, recipient = (DEVICE, SERVER) if whose == "device" else (SERVER, DEVICE)
        fleet.hand.write(Action, sender, recipient, action_id=1)
        assert fleet.done == [(recipient, 1)]
        fleet.works()


def rotated(fleet, whose):
    new = PrivateKey.generate("ed25519")
    future = (fleet.device if whose == "device" else fleet.server).rotate_key(new)
    fleet.settle()
    assert whose == "server" or future.result(0) is None
    fleet.works()


@pytest.mark.parametrize("spent", [False, True], ids=["an ordinary one", "one of the highest"])
def test_t30_firmware_that_a_retiring_key_orders_keeps_none_of_its_successor_away(tmp_path, spent):
    with HostileFleet(tmp_path) as fleet:
        fleet.fetcher.contents[NEW_URL] = NEW_FIRMWARE
        fleet.joined()
        rotated(fleet, "server")
        ids = iter([TOP - 9, TOP - 8]) if spent else iter([fleet.hand.unused_id() for _ in range(2)][::-1])
        token = bind(SERVER, DEVICE, fleet.clock() + 60, bytes(16))
        order = {"token": token, "url": URL, "digest": DIGEST}
        fleet.hand.write(Initiate, SERVER, DEVICE, sequence_id=next(ids), **order)
        fleet.hand.write(Activate, SERVER, DEVICE, sequence_id=next(ids), token=token)
        assert (fleet.tmp_path / f"{DEVICE:x}" / "current").resolve().name == DIGEST
        update = fleet.server.update(DEVICE, NEW_URL, NEW_DIGEST)
        fleet.settle()
        assert update.result(0) is UpdateState.ACTIVATED


@pytest.mark.parametrize("stolen", [True, False], ids=["of a retiring key", "control"])
def test_t30_a_download_that_lasts_keeps_no_order_of_a_successor_away(stolen):
    old, new = (key_of(identity).public_key for identity in (SERVER, DEVICE))
    device = DeviceSession(DEVICE, [SERVER])
    device.known.peers[SERVER] = peer = device.peer(SERVER)
    peer.member = True

    def order(sequence_id, signer):
        token = bind(SERVER, DEVICE, 60, sequence_id.to_bytes(16, "big"))
        message = Initiate(sequence_id=sequence_id, sender_id=SERVER, token=token, url=URL, digest=DIGEST)
        outputs = device.receive(message, 0.0, bytes(16), signer, retiring=signer is old)
        return any(isinstance(each, FetchRequested) for each in outputs)

    assert order(TOP - 9, old if stolen else new)
    assert order(TOP - 10, new) is stolen


@pytest.mark.parametrize("place", [(TOP, TOP), (0, TOP)], ids=["a later stream", "the same stream"])
def test_t30_a_place_that_a_retiring_key_gives_bars_no_value_of_its_successor(tmp_path, place):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        assert said(fleet, b"first") == [(DEVICE, "t", b"first")]
        rotated(fleet, "device")
        last = fleet.server.engine.session.streams.received[DEVICE]
        place = place[0] or last.stream, place[1]
        token = bind(DEVICE, SERVER, fleet.clock() + 60, bytes(16), receipt=True, place=place, after=0)
        fleet.hand.write(Data, DEVICE, SERVER, token=token, data_id="t", data=b"forged")
        assert said(fleet, b"next")[-1] == (DEVICE, "t", b"next")


def said(fleet, value):
    """Have the device send a value that is confirmed; return what the server has heard."""
    sent = fleet.device.send("t", value)
    fleet.pass_time(60)
    assert sent.result(0) is None
    return [each for each in fleet.done if each[0] == DEVICE and len(each) == 3]


def ordered_before_a_restart(fleet, ids):
    """Have a retiring key order firmware, restart the device, and have that activated; then update as its owner."""
    fleet.fetcher.contents[NEW_URL] = NEW_FIRMWARE
    fleet.joined()
    rotated(fleet, "server")
    token = bind(SERVER, DEVICE, fleet.clock() + 60, bytes(16))
    fleet.hand.write(Initiate, SERVER, DEVICE, sequence_id=ids[0], token=token, url=URL, digest=DIGEST)
    fleet.device.stop()
    fleet.add(DEVICE).start(threads=False)
    fleet.settle()
    fleet.hand.write(Activate, SERVER, DEVICE, sequence_id=ids[1], token=token)
    active = (fleet.tmp_path / f"{DEVICE:x}" / "current").resolve().name
    update = fleet.server.update(DEVICE, NEW_URL, NEW_DIGEST)
    fleet.settle()
    return active, update.result(0)


def test_t30_the_same_with_a_restart_between_its_order_and_its_word_to_activate(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        assert ordered_before_a_restart(fleet, [TOP - 9, TOP - 8]) == (DIGEST, UpdateState.ACTIVATED)


def value_replayed_over_a_restart(fleet, when):
    """Replay a value after a change of its sender's key and after a restart of the server, or after that only."""
    fleet.joined()
    fleet.device.send("t", b"open", confirmed=False)
    fleet.settle()
    assert fleet.done == [(DEVICE, "t", b"open")]
    [value] = [heard for heard in fleet.hand.heard(Data, DEVICE) if b"open" in heard[1]]
    changed = fleet.device.rotate_key(PrivateKey.generate("ed25519"))
    fleet.settle()
    assert changed.result(0) is None
    if when == "before and after":
        fleet.hand.deliver(value)
    fleet.server.action(DEVICE, 2)  # so that something is kept of the device, which does not answer
    fleet.network.cut(f"device-{DEVICE:x}")
    fleet.settle()
    fleet.restart_server(devices=fleet.ring)
    fleet.hand.deliver(value)


@pytest.mark.parametrize("when", ["after", "before and after"])
def test_t30_what_a_retiring_key_has_said_is_remembered_over_a_restart(tmp_path, when):
    with HostileFleet(tmp_path, durable=True) as fleet:
        value_replayed_over_a_restart(fleet, when)
        assert fleet.done == [(DEVICE, "t", b"open")]
        assert fleet.server.counts["ReplayError"] == 1


def test_t30_control_a_value_that_a_retiring_key_has_not_said_yet(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        value_replayed_over_a_restart(fleet, "after")
        fleet.hand.write(Data, DEVICE, SERVER, data_id="t", data=b"shut")
        assert fleet.done == [(DEVICE, "t", b"open"), (DEVICE, "t", b"shut")]


# T37: what a former key has asked for is asked for again by its successor.


@pytest.fixture
def small(monkeypatch):
    """Bounds that tests reach soon."""
    monkeypatch.setattr("srup.session.exchange.MAX_REMEMBERED", 16)
    monkeypatch.setattr("srup.session.spent.MAX_SPENT", 64)


ENDS = {"a server's": (SERVER, DEVICE, {}), "a device's without a clock": (DEVICE, SERVER, {"has_clock": False})}


def asked(fleet, asks, of, action_id, lifetime):
    agent = fleet.server if asks == SERVER else fleet.device
    future = agent.action(of, action_id, lifetime=lifetime)
    fleet.settle()
    return future


def unanswered(fleet, asks, of, further):
    """Have action 1 done, let its answer get lost, and have so many others done; return the future of the first."""
    fleet.hand.hold(Response, by=of)
    first = asked(fleet, asks, of, 1, 100.0)
    assert fleet.done == [(of, 1)]
    fleet.hand.hold()
    for number in range(further):
        assert asked(fleet, asks, of, 2 if of == DEVICE else 9, 101.0 + number).done()
    return first


@pytest.mark.parametrize("further", [200, 5], ids=["attack", "control"])
@pytest.mark.parametrize("whose", ENDS)
@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
def test_t37_a_spent_token_that_is_forgotten_and_signed_by_the_next_key(tmp_path, small, whose, further, durable):
    asks, of, options = ENDS[whose]
    with HostileFleet(tmp_path, durable=durable, device_policy=Policy(**options)) as fleet:
        fleet.joined()
        first = unanswered(fleet, asks, of, further)
        rotated(fleet, "server" if asks == SERVER else "device")
        before = len(fleet.hand.heard(Action, asks))
        fleet.pass_time(20)
        again = fleet.hand.heard(Action, asks)[before:]
        assert len(again) >= 1  # signed by the new key
        assert fleet.done == [(of, 1)]
        assert first.done() is (further == 5)  # it is answered again as long as its exchange is remembered
        asked(fleet, asks, of, 1, 100.0)
        assert fleet.done == [(of, 1)] * 2
        fleet.works()


@pytest.mark.parametrize("whose", ENDS)
def test_t37_a_command_that_was_lost_is_done_under_the_next_key(tmp_path, small, whose):
    """Though its token was made under the former one."""
    asks, of, options = ENDS[whose]
    with HostileFleet(tmp_path, device_policy=Policy(**options)) as fleet:
        fleet.joined()
        fleet.hand.hold(Action, by=asks)
        first = asked(fleet, asks, of, 1, 100.0)
        fleet.hand.hold()
        rotated(fleet, "server" if asks == SERVER else "device")
        fleet.pass_time(20)
        assert fleet.done == [(of, 1)]
        assert first.result(0) is Status.ACTION_SUCCESS


# T38: a key in wrong hands has used the future up.

FAR = 10 * 365 * 86400.0


def spend_future(fleet, first_id, until=FAR):
    """Have many commands done that are good for ten years, by the first key of the device."""
    before = len(fleet.done)
    for number in range(200):
        token = bind(DEVICE, SERVER, fleet.clock() + until + number, fleet.randbytes(16))
        fleet.hand.write(Action, DEVICE, SERVER, token=token, sequence_id=first_id + number, action_id=1)
    assert len(fleet.done) - before == 200


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_t38_a_stolen_key_that_has_used_the_future_up_and_is_replaced(tmp_path, small, restarted):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        spend_future(fleet, fleet.hand.newer_id())
        new = PrivateKey.generate("ed25519")
        fleet.ring.remove(DEVICE)
        fleet.ring.add(DEVICE, new.public_key)
        if restarted:
            fleet.restart_server(devices=fleet.ring)
        fleet.device.stop()
        fleet.add(DEVICE, key=new).start(threads=False)
        fleet.settle()
        fleet.device.join()
        fleet.settle()
        assert fleet.all_joined()
        fleet.works()


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1, 8])
def test_t38_a_stolen_key_that_uses_the_future_up_while_it_is_retiring(tmp_path, small, restarts):
    """Again and again, with a restart of the server each time."""
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        rotated(fleet, "device")
        for number in range(restarts or 1):
            spend_future(fleet, fleet.hand.newer_id() + 1000 * number, FAR * (1 + number))
            if restarts:
                fleet.restart_server(devices=fleet.ring)
            for _ in range(30):
                fleet.pass_time(1)
                fleet.works()


def test_t38_control_a_key_that_is_not_replaced_is_locked_out_by_it(tmp_path, small):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        spend_future(fleet, fleet.hand.newer_id())
        asked = fleet.device.action(SERVER, 1)
        fleet.pass_time(600)
        with pytest.raises(UnansweredError):
            asked.result(0)


# T39: the receiver's clock is days ahead for a moment.


@pytest.mark.parametrize("days", [0, 3], ids=["control", "attack"])
@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
def test_t39_a_clock_that_was_days_ahead_for_a_moment_bars_nobody(tmp_path, small, durable, days):
    with HostileFleet(tmp_path, durable=durable) as fleet:
        fleet.joined()
        fleet.pass_time(7200)
        for number in range(40):
            assert asked(fleet, SERVER, DEVICE, 1, 40000.0 + number).result(0) is Status.ACTION_SUCCESS
        clock = fleet.clocks[fleet.device]
        clock.skew = days * 86400.0
        fleet.hand.hold(Response, by=SERVER)
        fleet.device.action(SERVER, 9)  # so that it has something to do when time has passed
        fleet.pass_time(10)
        fleet.hand.hold()
        clock.skew = 0.0
        fleet.settle()
        for _, wire in fleet.hand.heard(Action, SERVER):
            token = peek(wire).token
            fleet.hand.write(Action, SERVER, DEVICE, token=token, action_id=1)
        assert fleet.done == [(DEVICE, 1)] * 40
        fleet.works()
