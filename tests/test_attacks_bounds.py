"""Attacks on bounds: a registered peer takes memory, disk, turns or the patience of others, and service must go on.

Memory is measured in bytes and work in messages, not in time.
"""

import gc
import struct
import threading
import tracemalloc

import pytest

from srup import (
    Action,
    Data,
    IdRequest,
    JoinCommand,
    JoinRequest,
    ObservationRequest,
    ObservedJoinRequest,
    Policy,
    ResignRequest,
    Response,
    Status,
    StoreError,
    SyndicatedC2Request,
    SyndicatedDeviceCount,
    SyndicatedDeviceList,
    decode,
    peek,
    seal,
)
from srup.agent import outbound
from srup.agent.values import SENT_AT_ONCE
from srup.messages import (
    DeregisterRequest,
    HumanJoinRequest,
    Initiate,
    SyndicatedData,
    SyndicationInit,
    SyndicationRequest,
)
from srup.session.engine import AT_ONCE, MAX_DUE
from srup.session.flows.reply import MAX_LONG_REPLIES, Asked
from srup.session.syndications import LIST_TURN
from srup.simulation import START
from srup.store import MemoryStore
from srup.tokens import bind, parse
from srup.wire import DATA_RECEIPT, KEY_ROTATION

from .fleet import DIGEST, SERVER, URL, key_of, wait_until
from .hostile import Broker, HostileFleet
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, LAMPS, Federation

pytestmark = pytest.mark.backend

DEVICE, OTHER, THIRD = 0xD0, 0xD1, 0xD2
TOP = 2**64 - 1


# T32: genuine messages that make the library raise.


def token(sender, recipient, more=b""):
    return bind(sender, recipient, START + 60, bytes(16)) + more


TO_SERVER = {
    "a value that nobody takes": (Data, {"data_id": "unknown", "data": b"1"}),
    "a value that cannot be read": (Data, {"data_id": "number", "data": b"1"}),
    "a value to be confirmed": (Data, {"data_id": "unknown", "data": b"1", "token": token(DEVICE, SERVER, b":r1.1")}),
    "a place at the end of all": (
        Data,
        {"data_id": "unknown", "data": b"1", "token": token(DEVICE, SERVER, b":r%d.%d.0" % (TOP, TOP))},
    ),
    "junk for a key": (Data, {"data_id": KEY_ROTATION, "data": b"junk"}),
    "junk for a receipt": (Data, {"data_id": DATA_RECEIPT, "data": b"junk"}),
    "the last stream": (Data, {"data_id": DATA_RECEIPT, "data": struct.pack("<QQ", TOP, TOP)}),
    "an action": (Action, {"action_id": 77}),
    "a join": (JoinRequest, {}),
    "a moderated join": (HumanJoinRequest, {}),
    "an observed join": (ObservedJoinRequest, {"observer_id": OTHER}),
    "a resignation": (ResignRequest, {}),
    "a deregistration": (DeregisterRequest, {}),
    "a message of syndications": (SyndicatedData, {"data_id": "x", "data": b"", "source_id": 1}),
}
TO_DEVICE = {
    "a value that nobody takes": (Data, {"data_id": "unknown", "data": b"1"}),
    "a value to be confirmed": (Data, {"data_id": "unknown", "data": b"1", "token": token(SERVER, DEVICE, b":r1.1")}),
    "junk for a key": (Data, {"data_id": KEY_ROTATION, "data": b"junk"}),
    "an action": (Action, {"action_id": 77}),
    "a question": (IdRequest, {}),
    "an order": (Initiate, {"url": URL, "digest": DIGEST}),
    "an order for nothing": (Initiate, {"url": "nothing", "digest": "nothing"}),
    "a join command": (JoinCommand, {"device_id": DEVICE}),
    "a join command that leads elsewhere": (JoinCommand, {"device_id": 0x5F}),
    "an observation": (ObservationRequest, {"joining_device_id": 3, "sealed": b"junk"}),
}


@pytest.fixture
def pair(tmp_path):
    with HostileFleet(tmp_path, 0) as fleet:
        fleet.add(DEVICE, servers={0x5F: key_of(0x5F).public_key})
        fleet.server.on_data("number", kind="int32")(lambda *_: None)
        yield fleet.joined()


@pytest.mark.parametrize("name", TO_SERVER)
def test_t32_a_last_message_of_a_device_makes_nothing_raise(pair, name, caplog):
    cls, fields = TO_SERVER[name]
    pair.hand.write(cls, DEVICE, SERVER, sequence_id=TOP, **fields)
    pair.hand.write(cls, DEVICE, SERVER, sequence_id=TOP, topic=f"SRUP/servers/{SERVER:x}/{DEVICE:x}", **fields)
    assert pair.server.counts["verified"] > 1
    assert pair.faults() == 0
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("name", TO_DEVICE)
def test_t32_a_last_message_of_a_server_makes_nothing_raise(pair, name, caplog):
    cls, fields = TO_DEVICE[name]
    pair.hand.write(cls, SERVER, DEVICE, sequence_id=TOP, **fields)
    assert pair.device.counts["verified"] > 1
    assert pair.faults() == 0
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("name", TO_SERVER)
def test_t32_control_with_an_ordinary_sequence_id(pair, name):
    cls, fields = TO_SERVER[name]
    pair.hand.write(cls, DEVICE, SERVER, **fields)
    assert pair.faults() == 0


def test_t32_a_list_that_stays_incomplete_after_a_last_message(tmp_path):
    """Home would ask for what is missing, and has no sequence id left to ask with."""
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        hand = Broker(world, world.networks["home"])
        topic = f"SRUP/{HOME_ID:x}"
        hand.write(SyndicatedDeviceCount, HOME_ID, HOME, topic=topic, sequence_id=hand.newer_id(), count=5)
        hand.write(Data, HOME_ID, HOME, topic=topic, sequence_id=TOP, data_id="unknown", data=b"")
        assert world.home.counts["verified"]
        faults = world.home.counts["faults"]
        world.pass_time(60)
        assert world.home.counts["faults"] == faults


# T23: a device without a clock asks again and again to be let in.


def flaps(fleet, times):
    """Let the link of the device come and go; it asks to be let in each time."""
    for _ in range(times):
        fleet.network.cut(f"device-{DEVICE:x}")
        fleet.network.heal(f"device-{DEVICE:x}")
        fleet.settle()
        fleet.network.log.clear()


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(has_clock=False),
    ],
    ids=["control: a device with a clock", "a device without a clock"],
)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_t23_a_link_that_comes_and_goes_4_096_times(tmp_path, policy):
    with HostileFleet(tmp_path, device_policy=policy) as fleet:
        fleet.joined()
        for _ in range(4_200 // 100):
            flaps(fleet, 100)
            fleet.pass_time(60)
        fleet.works()
        fleet.device.stop()
        fleet.add(DEVICE).start(threads=False)
        fleet.settle()
        assert fleet.device.joined
        fleet.works()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_t23_a_device_without_a_clock_runs_for_two_months(tmp_path):
    """It asks its server every quarter of an hour, as every member does."""
    with HostileFleet(tmp_path, device_policy=Policy(has_clock=False)) as fleet:
        fleet.joined()
        for _ in range(52):
            fleet.pass_time(86400)
            fleet.network.log.clear()
        fleet.works()


# T24: a terminated device fills the audit.

DISK = 16 << 20
"""Bytes that a store may hold in these tests."""

MOST_ROWS = 4_096
"""How many rows of the audit one peer may take; a generous bound."""


class SmallStore(MemoryStore):
    """A store on a disk that is full when the audit has as many bytes as it has."""

    def __init__(self):
        super().__init__()
        self.used = 0

    def commit(self, changes):
        size = sum(len(row.token) + len(row.outcome) + 64 for row in changes.audit)
        if self.used + size > DISK:
            raise StoreError("the disk is full")
        super().commit(changes)
        self.used += size


def put_out(fleet):
    fleet.joined()
    fleet.server.terminate(DEVICE)
    fleet.settle()
    assert fleet.server.members == {OTHER}


def floods(fleet, count, size):
    """Have the device that was put out send so many genuine messages, whose tokens have so many bytes."""
    topic = f"SRUP/servers/{SERVER:x}/{DEVICE:x}"
    for number in range(1, count + 1):
        wire = fleet.hand.signed(
            Action,
            DEVICE,
            SERVER,
            token=bind(DEVICE, SERVER, fleet.clock() + 300, number.to_bytes(16, "big")) + b":" + b"x" * size,
            sequence_id=fleet.hand.newer_id(),
            action_id=1,
        )
        fleet.network.inject(topic, wire)
        if number % 100 == 0:
            fleet.server.step()
            fleet.network.log.clear()
    fleet.settle()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(10, id="control: short tokens"),
        pytest.param(65_000, id="long tokens"),
    ],
)
def test_t24_the_audit_gives_way_before_service_does(tmp_path, size):
    with HostileFleet(tmp_path, 2, durable=True, server_options={"store": SmallStore()}) as fleet:
        put_out(fleet)
        floods(fleet, 300, size)
        future = fleet.server.action(OTHER, 1)
        fleet.settle()
        assert fleet.server.store_error is None
        assert future.result(0) is Status.ACTION_SUCCESS


def test_t24_one_peer_takes_no_more_of_the_audit_than_its_share(tmp_path):
    with HostileFleet(tmp_path, 2, durable=True) as fleet:
        put_out(fleet)
        floods(fleet, MOST_ROWS + 1_000, 10)
        rows = list(fleet.store(SERVER).audit(partner=DEVICE))
        assert rows
        assert len(rows) <= MOST_ROWS


def test_t24_the_log_is_not_filled_either(tmp_path, caplog):
    with HostileFleet(tmp_path, 2) as fleet:
        put_out(fleet)
        floods(fleet, 200, 10)
        assert fleet.server.counts["unexpected"] == 200
        lines = [each.message for each in caplog.records if ": unexpected Action" in each.message]
        assert len(lines) == 30
        assert lines[-1].endswith("(more like it are left out for 60 seconds)")


def test_t24_the_length_of_a_token_is_limited(tmp_path):
    with HostileFleet(tmp_path, 2) as fleet:
        fleet.joined()
        long = bind(DEVICE, SERVER, fleet.clock() + 300, bytes(16)) + b":" + b"x" * 60_000
        fleet.hand.write(Action, DEVICE, SERVER, token=long, action_id=1)
        assert fleet.done == []
        assert len(fleet.errors(fleet.server)) == 1
        fleet.works()


# T25: one request, and much is sent again.


@pytest.fixture
def waiting(tmp_path):
    """A device that is to confirm 100 values, and has heard none of them."""
    with HostileFleet(tmp_path, 2) as fleet:
        fleet.joined()
        fleet.works()
        fleet.network.cut(f"device-{DEVICE:x}")
        fleet.values = [fleet.server.send_data(DEVICE, "t", b"%d" % n, confirmed=True) for n in range(100)]
        fleet.settle()
        yield fleet


def forgets(fleet, times):
    """Say, in the device's name, that it knows of a later stream than the server's; return what that makes it send."""
    before = fleet.server.counts["sent"]
    for number in range(1, times + 1):
        place = struct.pack("<QQ", int(START * 1e6) * 2 + 10 * number, 0)
        wire = fleet.hand.signed(Data, DEVICE, SERVER, data_id=DATA_RECEIPT, data=place)
        fleet.network.inject(f"SRUP/{DEVICE:x}", wire)
    fleet.settle()
    return fleet.server.counts["sent"] - before


def test_t25_receipts_that_name_ever_later_streams(waiting):
    assert forgets(waiting, 40) <= 2 * len(waiting.values)


def test_t25_control_one_of_them_has_all_values_sent_again(waiting):
    taken = []
    waiting.device.on_data("t")(lambda _server, _name, value: taken.append(int(value)))
    assert forgets(waiting, 1) <= 2 * len(waiting.values)
    waiting.network.heal(f"device-{DEVICE:x}")
    waiting.pass_time(60)
    assert set(taken) == set(range(100))
    assert all(value.done() for value in waiting.values)


@pytest.fixture
def shared(tmp_path):
    """An away server that shares more devices than there are, so that the list takes a while."""
    with Federation(tmp_path, scheme="ed25519") as world:
        world.shared = [*LAMPS, *range(0x10000, 0x10000 + 2_000)]
        yield world.syndicated()


def asks_for_the_list(world, times, more=()):
    """Ask in the syndication device's name, and put ``more`` behind that; return what the away server sends."""
    hand = Broker(world, world.networks["away"])
    request = {"req_id": 255, "data": b""}
    wires = [
        hand.signed(SyndicatedC2Request, AWAY_ID, AWAY, sequence_id=hand.newer_id(), **request) for _ in range(times)
    ]
    world.networks["away"].log.clear()
    for wire in wires:
        world.networks["away"].inject(f"SRUP/{AWAY_ID:x}", wire)
    for lamp in more:
        lamp.action(AWAY, 9)
        lamp.step()
    world.away.step()
    return [peek(wire) for _, wire in world.networks["away"].log if peek(wire).sender_id == AWAY]


def test_t25_requests_for_the_list_that_are_repeated(shared):
    assert len(asks_for_the_list(shared, 10)) <= 2 * len(shared.shared)


def test_t25_control_one_of_them_has_the_list_sent(shared):
    sent = asks_for_the_list(shared, 1)
    shared.settle()
    assert len(shared.shared) < len(sent) < 2 * len(shared.shared)


def changes_the_list(world, bound):
    """Have the syndication device change the first entry of home's list 20 times; return how often home is told."""
    told = []
    world.home.on_shared(lambda device, devices: told.append(devices))
    hand = Broker(world, world.networks["home"])
    token = world.home.engine.session.syndication(HOME_ID).token
    for number in range(20):
        if not bound:
            world.home.debug.session.known.peers[HOME_ID].binds = False
        entry = {"device_sequence": 1, "device_id": (LAMPS[0], 0xEE)[number % 2], "sequence_id": hand.newer_id()}
        entry |= {"token": token if bound else b"%036d" % number, "topic": f"SRUP/{HOME_ID:x}"}
        hand.write(SyndicatedDeviceList, HOME_ID, HOME, **entry)
    return len(told)


def test_t25_entries_of_a_list_that_change_without_end(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        assert changes_the_list(world, bound=True) == 0
        assert world.home.shared_devices(HOME_ID) == LAMPS


def test_t25_control_a_deployed_device_changes_its_list(tmp_path):
    with Federation(tmp_path, scheme="ed25519", policy=Policy()) as world:
        world.syndicated()
        assert changes_the_list(world, bound=False) == 19


def test_t25_somebody_else_is_answered_before_the_list_is_sent(shared):
    sent = asks_for_the_list(shared, 1, more=[shared.lamps[LAMPS[0]]])
    [answer] = [place for place, header in enumerate(sent) if parse(header.token).sender == LAMPS[0]]
    assert answer < len(shared.shared) / 2


def turns(agent):
    """Let an agent take its turns; return how many messages each of them has sent."""
    sent = []
    while True:
        before = agent.counts["sent"]
        if not agent.engine.turn(1024):
            return sent
        sent.append(agent.counts["sent"] - before)


def test_t25_a_list_is_sent_over_many_turns(shared):
    hand = Broker(shared, shared.networks["away"])
    request = {"req_id": 255, "data": b"", "sequence_id": hand.newer_id()}
    shared.networks["away"].inject(f"SRUP/{AWAY_ID:x}", hand.signed(SyndicatedC2Request, AWAY_ID, AWAY, **request))
    sent = turns(shared.away)
    assert sum(sent) == len(shared.shared) + 2  # the count, and the answer
    assert max(sent) <= 2 * LIST_TURN + 2


def test_t25_a_list_goes_on_after_a_restart(tmp_path):
    """Home has to ask for nothing, as deployed ones cannot."""
    store = MemoryStore()
    with Federation(tmp_path, scheme="ed25519", stores={AWAY: store}) as world:
        world.syndicated()
        world.shared = [*LAMPS, *range(0x10000, 0x10000 + 500)]
        world.away.share(AWAY_ID, world.shared)
        world.away.engine.turn(1024)
        assert world.home.shared_devices(HOME_ID) == LAMPS
        world.away.stop()
        world.everybody.remove(world.away)
        world.away = world.server(AWAY, "away", syndication_devices=[AWAY_ID])
        world.everybody.append(world.away)
        world.away.start(threads=False)
        world.settle()
        assert world.home.shared_devices(HOME_ID) == tuple(world.shared)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a join", "a receipt for a later stream"])
def test_t25_what_was_not_answered_is_sent_again_over_turns(tmp_path, what):
    """Three devices come back, or say that they do, for which much waits."""
    with HostileFleet(tmp_path, 3) as fleet:
        fleet.joined()
        asked = []
        for identity, device in fleet.devices.items():
            device.on_data("t")(lambda *_: None)
            fleet.network.cut(f"device-{identity:x}")
            asked += [fleet.server.send_data(identity, "t", b"1", confirmed=True) for _ in range(200)]
        fleet.settle()
        fleet.pass_time(3600)
        for identity in fleet.devices:
            if what == "a join":
                topic, cls, fields = f"SRUP/servers/{SERVER:x}/{identity:x}", JoinRequest, {}
            else:
                place = struct.pack("<QQ", int(START * 1e6) * 4, 0)
                topic, cls, fields = f"SRUP/{identity:x}", Data, {"data_id": DATA_RECEIPT, "data": place}
            fleet.network.inject(
                topic, fleet.hand.signed(cls, identity, SERVER, sequence_id=fleet.hand.newer_id(), **fields)
            )
        sent = turns(fleet.server)
        assert len(asked) <= sum(sent) <= len(asked) + 10
        assert max(sent) <= MAX_DUE + 3 * (AT_ONCE + 1)
        for identity in fleet.devices:
            fleet.network.heal(f"device-{identity:x}")
        fleet.run(lambda: all(value.done() for value in asked), 3600)
        assert [value.exception(0) for value in asked] == [None] * len(asked)


def test_t25_values_that_wait_for_many_are_sent_over_turns(tmp_path):
    with HostileFleet(tmp_path, 8) as fleet:
        fleet.joined()
        fleet.works()
        for identity in fleet.devices:
            for _ in range(100):
                fleet.server.send_data(identity, "t", b"1", confirmed=True)
        assert max(turns(fleet.server)) <= SENT_AT_ONCE
        fleet.settle()
        assert fleet.faults() == 0


# T26: a member floods values, and its handler is slow.

FLOOD = 1_000
TURN = 100
"""So many values of the flood are handled before the handler stands still; the others must have had their turn."""

PATIENCE = 5.0
"""Seconds until something is taken not to happen; it only takes that long when it does not."""


@pytest.fixture
def busy(tmp_path):
    """Two devices at a server with threads, whose handler of values named "flood" waits for a ticket each time."""
    with HostileFleet(tmp_path, 2) as fleet:
        fleet.tickets, fleet.entered = threading.Semaphore(0), 0

        @fleet.server.on_data("flood")
        def handle(*_):
            fleet.entered += 1
            fleet.tickets.acquire()

        for agent in fleet.agents:
            agent.start()
        wait_until(fleet.all_joined)
        yield fleet
        fleet.tickets.release(100_000)


def flooded(fleet, count):
    """Have the first device send so many values."""
    seen = lambda: fleet.server.counts["verified"] + fleet.server.counts["overflow"]  # noqa: E731
    before = seen()
    for _ in range(count):
        wire = fleet.hand.signed(
            Data, DEVICE, SERVER, sequence_id=fleet.hand.newer_id(), data_id="flood", data=bytes(4)
        )
        fleet.network.inject(f"SRUP/{DEVICE:x}", wire)
    wait_until(lambda: seen() >= before + count)
    wait_until(lambda: fleet.server.debug.inbox == 0)


BUSINESS = {
    "an action": lambda fleet: fleet.devices[OTHER].action(SERVER, 1),
    "a value": lambda fleet: fleet.devices[OTHER].send("t", b"1"),
    "an answer": lambda fleet: fleet.server.action(OTHER, 1),
}
HANDLED = {"an action": (SERVER, 1), "a value": (OTHER, "t", b"1"), "an answer": (OTHER, 1)}


@pytest.mark.parametrize("what", BUSINESS)
def test_t26_a_flood_of_values_leaves_others_their_turn(busy, what):
    flooded(busy, FLOOD)
    wait_until(lambda: busy.server.debug.handlers == FLOOD - 1)  # one of them has begun
    future = BUSINESS[what](busy)
    if what == "an answer":
        future.result(PATIENCE)  # no handler has to end before
    else:
        wait_until(lambda: busy.server.debug.handlers == FLOOD)
    busy.tickets.release(TURN)
    wait_until(lambda: busy.entered > TURN)
    future.result(PATIENCE)
    assert HANDLED[what] in busy.done


def test_t26_a_device_joins_during_a_flood_of_values(busy):
    flooded(busy, FLOOD)
    wait_until(lambda: busy.server.debug.handlers == FLOOD - 1)  # one of them has begun
    busy.add(THIRD).start()
    wait_until(lambda: busy.server.debug.handlers >= FLOOD)
    busy.tickets.release(TURN)
    wait_until(lambda: busy.entered > TURN)  # the flood waits again, and what has been handled is answered in a turn
    wait_until(lambda: THIRD in busy.server.members)


@pytest.mark.slow
def test_t26_answers_are_heard_however_many_handlers_wait(busy):
    flooded(busy, 10_500)
    assert busy.server.action(OTHER, 1).result(PATIENCE) is Status.ACTION_SUCCESS


@pytest.mark.parametrize("what", BUSINESS)
def test_t26_control_without_a_flood(busy, what):
    BUSINESS[what](busy).result(PATIENCE)
    wait_until(lambda: HANDLED[what] in busy.done)


# T27: a device that is not joined asks for observed joins.


@pytest.fixture
def observed(tmp_path):
    """A server that wants joins to be observed by OTHER, who is a member; DEVICE and THIRD are none."""
    options = {"admission": "observed", "observers": [OTHER]}
    with HostileFleet(tmp_path, 0, server_options=options) as fleet:
        fleet.shown, fleet.read = {}, []
        fleet.server.on_moderation(lambda pending: pending.accept())
        third = fleet.add(THIRD, join="observed", observer=OTHER)  # it has its turn before the observer does
        third.on_join_value(lambda value: fleet.shown.update({THIRD: value}))
        observer = fleet.add(OTHER, join="human")
        observer.on_join_value(lambda value: None)
        fleet.server.start(threads=False)
        observer.start(threads=False)
        fleet.settle()
        assert observer.joined

        @observer.on_observation
        def look(identity):
            fleet.read.append(identity)
            return fleet.shown.get(identity)

        fleet.ring.add(DEVICE, key_of(DEVICE).public_key)
        yield fleet


def asks_to_be_observed(fleet, times):
    for _ in range(times):
        wire = fleet.hand.signed(ObservedJoinRequest, DEVICE, SERVER, observer_id=OTHER)
        fleet.network.inject(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", wire)
    fleet.settle()


def observer_works(fleet):
    future = fleet.server.action(OTHER, 1)
    fleet.devices[THIRD].start(threads=False)
    fleet.settle()
    assert future.result(0) is Status.ACTION_SUCCESS
    assert fleet.devices[THIRD].joined
    assert fleet.faults() == 0


def test_t27_an_observer_is_not_asked_again_and_again(observed):
    asked = [observed.hand.signed(ObservedJoinRequest, DEVICE, SERVER, observer_id=OTHER) for _ in range(300)]
    for wire in reversed(asked):
        observed.network.inject(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", wire)
    observed.settle()
    assert len(observed.read) <= 3
    observer_works(observed)


def test_t27_an_observer_that_is_away_keeps_its_room_for_others(observed):
    asked = [observed.hand.signed(ObservedJoinRequest, DEVICE, SERVER, observer_id=OTHER) for _ in range(300)]
    observed.network.cut(f"device-{OTHER:x}")
    for wire in reversed(asked):
        observed.network.inject(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", wire)
    observed.settle()
    future = observed.server.action(OTHER, 1)
    observed.settle()
    assert not future.done()  # it waits for the observer, who is away
    observed.network.heal(f"device-{OTHER:x}")
    observed.settle()
    assert future.result(0) is Status.ACTION_SUCCESS
    observer_works(observed)


def test_t27_control_one_such_request(observed):
    asks_to_be_observed(observed, 1)
    assert observed.read == [DEVICE]
    observer_works(observed)


# T28: memory, and limits for one that refuse another.


def grown(world, act):
    """By how many bytes the memory grows, that of the broker aside, which keeps messages for who is away."""
    gc.collect()
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        act()
        world.network.log.clear()
        for session in world.network._sessions.values():
            session.backlog.clear()
        world.refusals.clear()
        gc.collect()
        end, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return end - start


def asks(fleet, count, size):
    """Have a member ask for so many actions under tokens of so many bytes."""
    for number in range(1, count + 1):
        long = bind(DEVICE, SERVER, fleet.clock() + 300, number.to_bytes(16, "big")) + b":" + b"x" * size
        number = fleet.hand.newer_id()
        wire = fleet.hand.signed(Action, DEVICE, SERVER, token=long, sequence_id=number, action_id=77)
        fleet.network.inject(f"SRUP/{DEVICE:x}", wire)
        if number % 50 == 0:
            fleet.settle()
            fleet.network.log.clear()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(10, id="control: short tokens"),
        pytest.param(
            60_000,
            id="long tokens",
        ),
    ],
)
def test_t28_requests_with_long_tokens(tmp_path, size):
    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        fleet.device.stop()
        assert grown(fleet, lambda: asks(fleet, 500, size)) < 4 << 20
        assert fleet.faults() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_t28_as_many_requests_as_are_remembered(tmp_path):
    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        fleet.device.stop()
        assert grown(fleet, lambda: asks(fleet, 10_000, 100)) < 2 << 20
        assert fleet.faults() == 0


def test_t28_long_offers_of_keys(tmp_path):
    """Each is refused and remembered, so that it is not looked at again."""

    def junk(fleet):
        for number in range(300):
            offer = {"data_id": KEY_ROTATION, "data": number.to_bytes(2) + bytes(50_000)}
            wire = fleet.hand.signed(Data, DEVICE, SERVER, sequence_id=fleet.hand.newer_id(), **offer)
            fleet.network.inject(f"SRUP/{DEVICE:x}", wire)
            fleet.settle()
            fleet.network.log.clear()
            for session in fleet.network._sessions.values():
                session.backlog.clear()

    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        fleet.device.stop()
        assert grown(fleet, lambda: junk(fleet)) < 1 << 20
        assert fleet.server.counts["key refused"] == 300
        assert fleet.faults() == 0


@pytest.mark.parametrize("where", ["home asks at length", "a shared device answers at length"])
def test_t28_long_requests_and_answers_of_a_syndication(tmp_path, where):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        world.network = world.networks["home"]
        if where == "home asks at length":
            ask = lambda: world.home.syndicated_request(HOME_ID, 1, bytes(50_000))  # noqa: E731
        else:
            world.lamps[LAMPS[0]].engine.session.description = "x" * 50_000
            ask = lambda: world.home.syndicated_identify(HOME_ID, LAMPS[0])  # noqa: E731

        def act():
            for _ in range(200):
                future = ask()
                world.settle()
                assert future.exception(0) is None
                for network in world.networks.values():
                    network.log.clear()

        known = lambda session: [  # noqa: E731
            each.detail for each in session.exchanges() if isinstance(each.detail, Asked)
        ]
        act()
        for agent in (world.away, world.bridge):
            details = known(agent.engine.session)
            assert len(details) >= 200
            requests = sum(each.request.size for each in details)
            replies = sum(each.reply.size for each in details if each.reply)
            assert requests < 100 * len(details)
            assert replies < 50_100 * MAX_LONG_REPLIES + 100 * len(details)


def answered(tmp_path, monkeypatch, confirms):
    """Have a server answer 50 values of one that binds no tokens; return how many answers are kept over a restart."""
    monkeypatch.setattr(outbound, "MAX_KEPT", 40)
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.joined()
        if not confirms:
            publish = fleet.server.debug.transport.publish
            fleet.server.debug.transport.publish = lambda topic, wire, *_: publish(topic, wire)
        fleet.server.debug.session.known.peers[DEVICE].binds = False  # as with a deployed peer
        for number in range(50):
            token, nobodys = b"%036d" % number, {"data_id": "nobody's", "data": b"1"}
            fleet.hand.write(Data, DEVICE, SERVER, token=token, sequence_id=fleet.hand.newer_id(), **nobodys)
        assert sum(peek(wire).type == Response.layout.type for _, wire in fleet.network.log) > 50
        fleet.server.engine.inbox.wake()
        fleet.settle()
        fleet.server.stop()
        return len([entry for entry in fleet.stores[SERVER].open(SERVER).outbox if entry.topic])


def test_t28_what_a_broker_never_confirms_is_kept_up_to_a_bound(tmp_path, monkeypatch):
    assert 10 <= answered(tmp_path, monkeypatch, confirms=False) <= 20


def test_t28_control_what_a_broker_confirms_is_kept_no_longer(tmp_path, monkeypatch):
    assert answered(tmp_path, monkeypatch, confirms=True) == 0


def test_t28_a_device_that_confirms_nothing_refuses_nobody_else(tmp_path):
    with HostileFleet(tmp_path, 2) as fleet:
        fleet.joined()
        fleet.works()
        fleet.network.cut(f"device-{DEVICE:x}")
        for _ in range(11_000):
            fleet.server.send_data(DEVICE, "t", b"1", confirmed=True)
        fleet.settle()
        confirmed(fleet)


def test_t28_control_a_device_that_confirms(tmp_path):
    with HostileFleet(tmp_path, 2) as fleet:
        fleet.joined()
        fleet.works()
        confirmed(fleet)


def confirmed(fleet):
    fleet.devices[OTHER].on_data("t")(lambda *_: None)
    future = fleet.server.send_data(OTHER, "t", b"1", confirmed=True)
    fleet.run(future.done, 30)
    assert future.result(0) is None


# T36: a sealed value that does not open, at an observer.


@pytest.mark.parametrize(
    "sealed",
    [
        pytest.param(seal(b"0123456789abcdef" * 2, key_of(DEVICE).public_key), id="control"),
        *(
            pytest.param(junk, id=name)
            for name, junk in (("junk", b"junk"), ("for another", seal(b"x" * 32, key_of(OTHER).public_key)))
        ),
    ],
)
def test_t36_a_value_that_does_not_open_at_an_observer(tmp_path, sealed, caplog):
    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        fleet.device.on_observation(lambda identity: None)
        fleet.hand.write(ObservationRequest, SERVER, DEVICE, joining_device_id=3, sealed=sealed)
        wire = fleet.hand.heard(Response, DEVICE)[-1][1]
        assert decode(wire).verify(key_of(DEVICE).public_key).status == Status.OBSERVED_JOIN_FAIL
        assert fleet.faults() == 0
        assert "Traceback" not in caplog.text
        fleet.works()


CLOSED = {
    "home's value at the syndication device": ("home", SyndicationInit, HOME, HOME_ID, {"url": "https://x/"}),
    "the same at the away server": ("away", SyndicationRequest, AWAY_ID, AWAY, {}),
}


@pytest.mark.parametrize("where", CLOSED)
def test_t36_a_value_that_does_not_open_in_a_syndication(tmp_path, where, caplog):
    network, cls, sender, recipient, fields = CLOSED[where]
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        hand = Broker(world, world.networks[network])
        device = HOME_ID if network == "home" else AWAY_ID
        wire = hand.signed(cls, sender, recipient, sequence_id=hand.newer_id(), sealed=b"junk", **fields)
        hand.network.inject(f"SRUP/{device:x}", wire)
        world.settle()
        victim = world.bridge if network == "home" else world.away
        assert victim.counts["unopened"] == 1
        answer = decode(hand.heard(Response, recipient)[-1][1]).verify(key_of(recipient).public_key)
        assert answer.status == Status.JOIN_FAIL
        assert world.faults() == 0
        assert "Traceback" not in caplog.text
