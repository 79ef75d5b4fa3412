"""Floods (T9): strangers, forged senders, and registered devices whose joins never finish.

Memory is measured in bytes and in objects, not in time. Real devices join meanwhile, and the counts tell what was
refused.
"""

import gc
import logging
import tracemalloc
from collections import Counter

import pytest

from srup import HumanJoinRequest, JoinRequest, PrivateKey, encode
from srup.agent import PendingJoin
from srup.agent.members import Members
from srup.session.exchange import Exchange, Peer
from srup.session.flows.join_server import MAX_MODERATED
from srup.simulation import START
from srup.tokens import bind

from .fleet import SERVER, Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STRANGERS = 100_000
CROWD = 5_000
BATCH = 250
FIRST = 1 << 40  # the identities of the crowd

SHARED = PrivateKey.generate("ed25519")
"""The key of every identity of the crowd: cheap to make, and as good as one each."""


@pytest.fixture
def fleet(tmp_path, caplog):
    """A server without devices, whose records and refusals nobody keeps."""
    caplog.set_level(logging.CRITICAL, "srup")
    with Fleet(tmp_path, 0) as fleet:
        fleet.server.on_refused(lambda refusal: None)
        fleet.server.start(threads=False)
        yield fleet


def pour(fleet, messages):
    """Put messages, each a topic and its bytes, on the network in batches; step the server after each."""
    for number, (topic, wire) in enumerate(messages, 1):
        fleet.network.inject(topic, wire)
        if number % BATCH == 0:
            fleet.server.step()
            fleet.network.log.clear()
    fleet.server.step()
    fleet.network.log.clear()


def topic_of(identity):
    return f"SRUP/servers/{SERVER:x}/{identity:x}"


def join_of(identity, number=1, cls=JoinRequest, clock=START):
    """A genuine join request of one of the crowd."""
    token = bind(identity, SERVER, clock + 300, number.to_bytes(16, "big"))
    return encode(cls(sequence_id=number, sender_id=identity, token=token), SHARED)


def of_strangers(known=(), first=FIRST):
    """Requests without end, every one of another sender: strangers, and every fifth forged in the name of a device.

    The bytes are those of a genuine request but for sender and sequence id, which the signature covers.
    """
    wires = [join_of(FIRST, number) for number in range(1, 9)]
    number = 0
    while True:
        number += 1
        sender = known[number // 5 % len(known)] if known and number % 5 == 0 else first + number
        wire = wires[number % 8]
        yield topic_of(sender), wire[:2] + number.to_bytes(8, "little") + sender.to_bytes(8, "little") + wire[18:]


def take(iterator, count):
    return (item for _, item in zip(range(count), iterator, strict=False))


def new_device_joins(fleet, identity):
    device = fleet.add(identity)
    device.start(threads=False)
    fleet.settle()
    assert device.joined
    assert identity in fleet.server.members
    fleet.devices.pop(identity).stop()
    return identity


def test_t9_100_000_join_requests_of_strangers_leave_nothing_behind(fleet):
    known = [new_device_joins(fleet, 0xD0 + number) for number in range(5)]
    flood = of_strangers(known)
    pour(fleet, take(flood, STRANGERS // 10))  # whatever is made once is made now
    before = dict(fleet.server.counts)
    gc.collect()
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        for _ in range(9):
            pour(fleet, take(flood, STRANGERS // 10))
        gc.collect()
        end, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert end - start < 100_000  # bytes: not one for each of them
    counts = Counter(fleet.server.counts)
    counts.subtract(before)
    assert (counts["UnknownSenderError"], counts["SignatureError"]) == (72_000, 18_000)
    assert (counts["verified"], counts["faults"]) == (0, 0)
    assert set(fleet.server.debug.session.known.peers) == set(known)
    assert set(fleet.server.debug.part(Members).known) == set(known)
    assert fleet.server.members == set(known)
    new_device_joins(fleet, 0xE0)


def test_t9_devices_join_in_the_middle_of_a_flood_of_strangers(fleet):
    """Their requests stand between those of strangers, and each is served in its turn."""
    flood = of_strangers()
    for number in range(10):
        device = fleet.add(0xD0 + number)
        device.start(threads=False)
        for topic, wire in take(flood, 1_000):
            fleet.network.inject(topic, wire)
        device.step()  # it asks
        for topic, wire in take(flood, 1_000):
            fleet.network.inject(topic, wire)
        fleet.settle()
        fleet.network.log.clear()
        assert device.joined
    assert fleet.server.counts["UnknownSenderError"] == 20_000
    assert (fleet.server.counts["overflow"], fleet.faults()) == (0, 0)


def test_t9_control_who_is_remembered_takes_memory(fleet):
    """The same requests, if a stranger were somebody: what the measurement above would see."""
    for number in range(1, 301):
        fleet.ring.add(FIRST + number, SHARED.public_key)
    gc.collect()
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        pour(fleet, ((topic_of(FIRST + number), join_of(FIRST + number)) for number in range(1, 301)))
        gc.collect()
        end, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert end - start > 300 * 500
    assert len(fleet.server.members) == 300


# Joins that never finish.


def kept():
    """How many objects there are of the kinds that a join leaves behind."""
    gc.collect()
    alive = Counter(type(thing) for thing in gc.get_objects())
    return {kind: alive[kind] for kind in (Exchange, Peer, PendingJoin)}


@pytest.fixture
def crowd(tmp_path, caplog):
    """A server that wants every join to be moderated, and 5,000 registered devices; the moderator never answers."""
    caplog.set_level(logging.CRITICAL, "srup")
    with Fleet(tmp_path, 0, server_options={"admission": "human"}) as fleet:
        fleet.server.on_refused(lambda refusal: None)
        fleet.asked = Counter()
        fleet.server.on_moderation(lambda join: fleet.asked.update([join.device]))
        for number in range(CROWD):
            fleet.ring.add(FIRST + number, SHARED.public_key)
        fleet.server.start(threads=False)
        yield fleet


def ask_all(fleet, number):
    crowd = range(FIRST, FIRST + CROWD)
    pour(fleet, ((topic_of(one), join_of(one, number, HumanJoinRequest, fleet.clock())) for one in crowd))


def test_t9_5_000_devices_whose_joins_never_finish(crowd):
    """The oldest give way and are told so; all is forgotten in time; and a person still lets somebody in."""
    server, session = crowd.server, crowd.server.debug.session
    ask_all(crowd, 1)
    assert len(session.joins.moderated) == len(server.pending_joins) == MAX_MODERATED
    assert set(crowd.asked.values()) == {1}
    assert len(crowd.asked) == CROWD
    assert [join.device - FIRST for join in server.pending_joins] == list(range(CROWD - MAX_MODERATED, CROWD))
    assert server.counts["sent"] == CROWD + 2 * (
        CROWD - MAX_MODERATED
    )  # every value, and every failure with its reason
    ask_all(crowd, 2)
    assert len(session.joins.moderated) == len(server.pending_joins) == MAX_MODERATED
    first = kept()
    assert first[PendingJoin] == MAX_MODERATED
    assert len(session.known.timers) <= 64 + 4 * session.known.size
    crowd.clock.now += 1_000.0  # all these joins are over
    server.step()
    assert (server.pending_joins, session.joins.moderated, session.known.size) == ([], {}, 0)
    ask_all(crowd, 10)
    now = kept()
    assert all(now[kind] <= first[kind] for kind in now), (first, now)
    assert (server.members, server.counts["faults"]) == (frozenset(), 0)
    # A real one in the middle of them.
    device = crowd.add(0xD0, join="human")
    shown = []
    device.on_join_value(shown.append)
    device.start(threads=False)
    crowd.settle()
    [pending] = [join for join in server.pending_joins if join.device == 0xD0]
    assert pending.value == shown[-1]
    pour(crowd, ((topic_of(FIRST + n), join_of(FIRST + n, 30, HumanJoinRequest, crowd.clock())) for n in range(500)))
    pending.accept()
    crowd.settle()
    assert device.joined
    assert server.members == {0xD0}


def test_t9_one_device_that_asks_again_and_again_has_one_join(crowd, monkeypatch):
    """And does not put the joins of others off: it takes its own place only."""
    monkeypatch.setattr("srup.session.exchange.MAX_EXCHANGES", 64)
    monkeypatch.setattr("srup.session.exchange.MAX_REMEMBERED", 128)
    other = FIRST + 1
    pour(crowd, [(topic_of(other), join_of(other, 1, HumanJoinRequest))])
    flood = range(1, 1_000)
    pour(crowd, ((topic_of(FIRST), join_of(FIRST, number, HumanJoinRequest)) for number in flood))
    assert [join.device for join in crowd.server.pending_joins] == [other, FIRST]
    assert len(crowd.server.debug.session.known.peers[FIRST].exchanges) <= 256 + 64
    crowd.server.pending_joins[0].accept()
    crowd.server.step()
    assert crowd.server.members == {other}


def test_t9_control_without_the_bound_every_join_waits(crowd, monkeypatch):
    monkeypatch.setattr("srup.session.flows.join_server.MAX_MODERATED", 10**9)
    ask_all(crowd, 1)
    assert len(crowd.server.pending_joins) == CROWD
    [status] = {join.status for join in crowd.server.pending_joins}
    assert status is None
