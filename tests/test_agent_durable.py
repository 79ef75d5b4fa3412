"""Agents with a store: what a crash at any moment leaves, and what it does not."""

import hashlib

import pytest

from srup import (
    Data,
    Device,
    EncodeError,
    KeyRing,
    PolicyError,
    PrivateKey,
    Server,
    Status,
    StoreError,
    SyndicationDevice,
    TransportError,
    UnansweredError,
)
from srup.agent.joining import Joining
from srup.records import AuditRow, Changes, ExchangeRecord
from srup.session.streams import StreamPosition
from srup.simulation import Clock
from srup.store import MemoryStore
from srup.transport import MemoryTransport
from srup.update import UpdateState
from srup.wire import DATA_RECEIPT

from .fleet import DIGEST, SERVER, URL, Fleet, key_of
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, VALUE, Federation

pytestmark = pytest.mark.backend

DAY = 86400.0


class DurableFleet(Fleet):
    """A fleet whose ends all have stores, and crash: what was in memory is gone, the session at the broker stays."""

    def __init__(self, tmp_path, size=1, seed=0, **options):
        self.stores = {}
        self.server_options = {"store": self.store(SERVER)} | options.pop("server_options", {})
        self.handlers = {}
        super().__init__(tmp_path, size, seed, server_options=self.server_options, **options)

    def store(self, identity):
        return self.stores.setdefault(identity, MemoryStore())

    def add(self, identity, **options):
        return super().add(identity, **({"store": self.store(identity)} | options))

    def crash_server(self, **options):
        """A new process: same identity, key, store, and session at the broker."""
        self.server = Server(
            SERVER,
            key_of(SERVER, self.scheme),
            **{
                "devices": KeyRing(),
                "broker": MemoryTransport(self.network, "server"),
                "clock": self.clock,
                "entropy": self.randbytes,
            }
            | self.server_options
            | options,
        )
        self.server.on_refused(lambda refusal: self.refusals.append((self.server, refusal)))
        return self.server

    def crash_device(self, **options):
        identity = self.device.identity
        return self.add(identity, **options)


@pytest.fixture
def fleet(tmp_path):
    return DurableFleet(tmp_path)


def test_a_server_knows_its_members_and_their_keys_after_a_crash(fleet):
    fleet.joined()
    device = fleet.device.identity
    server = fleet.crash_server().start(threads=False)
    assert server.members == {device}
    assert server.devices[device] == key_of(device).public_key
    answer = server.action(device, 1)
    fleet.settle()
    assert answer.result(0) is Status.ACTION_UNKNOWN
    assert fleet.faults() == 0


def test_a_device_is_a_member_after_a_crash_before_the_server_says_so(fleet):
    fleet.joined()
    fleet.network.cut("server")
    device = fleet.crash_device().start(threads=False)
    assert device.joined
    fleet.network.heal("server")
    fleet.settle()
    assert fleet.all_joined()


def test_t2_a_message_from_before_a_crash_is_a_replay(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    fleet.device.send("n", 1, "uint8")
    fleet.settle()
    captured = [entry for entry in fleet.network.log if entry[0] == f"SRUP/{fleet.device.identity:x}"]
    server = fleet.crash_server()
    server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    server.start(threads=False)
    fleet.settle()
    fleet.errors()
    for topic, wire in captured:
        fleet.network.inject(topic, wire)
    fleet.settle()
    assert heard == [1]
    assert "ReplayError" in fleet.errors(server)


def test_t2_without_a_store_the_same_replay_gets_in(tmp_path):
    """The control: it is the store that refuses it."""
    heard = []
    fleet = Fleet(tmp_path)
    fleet.joined()
    fleet.device.send("n", 1, "uint8")
    fleet.settle()
    captured = [entry for entry in fleet.network.log if entry[0] == f"SRUP/{fleet.device.identity:x}"]
    joins = [entry for entry in fleet.network.log if "servers" in entry[0]]
    server = Server(
        SERVER,
        key_of(SERVER),
        devices=fleet.ring,
        broker=MemoryTransport(fleet.network, "server"),
        clock=fleet.clock,
        entropy=fleet.randbytes,
    )
    server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.server = server
    server.start(threads=False)
    fleet.settle()
    for topic, wire in joins + captured:
        fleet.network.inject(topic, wire)
        fleet.settle()
    assert heard == [1]


def test_no_sequence_id_is_used_twice_by_either_end(fleet):
    fleet.joined()
    clock = fleet.clock.now
    for _ in range(5):
        fleet.device.action(SERVER, 9)
        fleet.server.action(fleet.device.identity, 9)
        fleet.settle()
        fleet.clock.now = clock - 3600.0  # a clock that was set back must not matter
        fleet.crash_server().start(threads=False)
        fleet.crash_device().start(threads=False)
        fleet.settle()
        fleet.clock.now = clock
    sent = [(wire[10:18], wire[2:10]) for _, wire in fleet.network.log]
    assert len(sent) == len(set(sent))


def test_what_a_handler_had_not_finished_is_handed_over_again_with_the_same_id(fleet):
    told = []

    def handler(agent, fatal=False):
        def take(device, name, value):
            told.append((value, agent.handling.id, agent.handling.again))
            if fatal:
                raise KeyboardInterrupt  # the process ends here

        return take

    fleet.server.on_data("n", "uint8")(handler(fleet.server, fatal=True))
    fleet.joined()
    fleet.device.send("n", 1, "uint8")
    fleet.device.send("n", 2, "uint8")
    fleet.device.step()
    with pytest.raises(KeyboardInterrupt):
        fleet.server.step()
    server = fleet.crash_server()
    server.on_data("n", "uint8")(handler(server))
    server.start(threads=False)
    fleet.settle()
    assert [(value, again) for value, _, again in told] == [(1, False), (1, True), (2, True)]
    assert told[0][1] == told[1][1] != told[2][1]
    fleet.crash_server()
    fleet.server.on_data("n", "uint8")(handler(fleet.server))
    fleet.server.start(threads=False)
    fleet.settle()
    assert len(told) == 3
    assert not list(fleet.stores[SERVER].open(SERVER).inbox)


def test_nothing_is_acknowledged_published_or_handed_over_before_it_is_durable(fleet):
    told = []
    fleet.server.on_action(1)(told.append)
    fleet.joined()
    fleet.stores[SERVER].failures = 3
    asked = fleet.device.action(SERVER, 1)
    fleet.device.step()
    published = len(fleet.network.log)
    for attempt in range(3):
        fleet.server.step()
        assert (told, len(fleet.network.log), asked.done()) == ([], published, False), attempt
        assert fleet.server.counts["not stored"] == attempt + 1
    # The broker still owes it: a crash now loses nothing.
    server = fleet.crash_server()
    server.on_action(1)(told.append)
    server.start(threads=False)
    fleet.settle()
    assert told == [fleet.device.identity]
    assert asked.result(0) is Status.ACTION_SUCCESS


def test_an_agent_goes_on_when_its_store_works_again(fleet):
    fleet.joined()
    fleet.stores[SERVER].failures = 2
    asked = fleet.device.action(SERVER, 1)
    for _ in range(4):
        fleet.settle()
    assert asked.result(0) is Status.ACTION_UNKNOWN
    assert fleet.server.counts["not stored"] == 2
    assert fleet.faults() == 0


@pytest.mark.parametrize("crash", ["before it is handed over", "while it is done", "before the answer is there"])
def test_an_action_is_done_once_whenever_the_device_crashes(fleet, crash):
    done = []
    fleet.joined()
    fleet.device.on_action(1)(done.append)
    identity = fleet.device.identity
    asked = fleet.server.action(identity, 1)
    fleet.server.step()
    if crash == "before it is handed over":
        fleet.device.engine.handlers.submit = lambda calls: None
        fleet.device.step()
    elif crash == "while it is done":

        def fatal(partner):
            done.append(partner)
            raise KeyboardInterrupt

        fleet.device.on_action(1)(fatal)
        with pytest.raises(KeyboardInterrupt):
            fleet.device.step()
    else:
        fleet.network.cut(f"device-{identity:x}")
        fleet.device.engine.inbox.wake()
        fleet.network.heal(f"device-{identity:x}")
        fleet.device.debug.transport.publish = lambda *_: None
        fleet.device.step()
    device = fleet.crash_device()
    again = []
    device.on_action(1)(lambda partner: (done.append(partner), again.append(device.handling.again)))
    device.start(threads=False)
    fleet.run(asked.done, DAY)
    assert asked.result(0) is Status.ACTION_SUCCESS
    assert done == [SERVER] * (2 if crash == "while it is done" else 1)
    assert again == ([] if crash == "before the answer is there" else [True])


def test_a_command_for_a_device_that_is_away_waits_and_survives_the_server(fleet):
    outcomes, done = [], []
    fleet.joined()
    identity = fleet.device.identity
    fleet.network.cut(f"device-{identity:x}")
    fleet.server.action(identity, 7, lifetime=7 * DAY)
    fleet.settle()
    server = fleet.crash_server()
    server.on_outcome(outcomes.append)
    server.start(threads=False)
    fleet.clock.now += DAY
    fleet.settle()
    device = fleet.crash_device()
    device.on_action(7)(done.append)
    fleet.network.heal(f"device-{identity:x}")
    device.start(threads=False)
    fleet.run(lambda: outcomes, 60.0)  # at once when it is there, not when the next retry is due
    assert done == [SERVER]
    [outcome] = outcomes
    assert (outcome.partner, outcome.request.action_id, outcome.result) == (identity, 7, Status.ACTION_SUCCESS)


def test_a_device_that_joins_again_and_again_is_not_sent_everything_each_time(fleet):
    fleet.joined()
    identity = fleet.device.identity
    fleet.network.cut(f"device-{identity:x}")
    for _ in range(100):
        fleet.server.action(identity, 7)
    fleet.settle()
    fleet.clock.now += 60.0
    sent = []
    session, now = fleet.server.debug.session, fleet.clock.now
    for _ in range(10):
        sent.append(len(session.repeat_unanswered(identity, now)))
    assert sum(sent) == 100
    assert sent[-1] == 0


def test_a_command_that_expires_is_reported_after_a_crash(fleet):
    outcomes = []
    fleet.joined()
    identity = fleet.device.identity
    fleet.network.cut(f"device-{identity:x}")
    fleet.server.action(identity, 7, lifetime=3600.0)
    fleet.settle()
    server = fleet.crash_server()
    server.on_outcome(outcomes.append)
    server.start(threads=False)
    fleet.run(lambda: outcomes, 3700.0)
    assert isinstance(outcomes[0].result, UnansweredError)
    assert outcomes[0].request.action_id == 7


@pytest.mark.parametrize("crash", ["server", "device", "both"])
@pytest.mark.parametrize("moment", range(8))
def test_an_update_comes_to_its_end_whoever_crashes_when(tmp_path, crash, moment):
    fleet = DurableFleet(tmp_path)
    activated, changes = [], []
    fleet.device.on_activate(lambda path: activated.append(hashlib.sha256(path.read_bytes()).hexdigest()))
    fleet.joined()
    fleet.server.update(fleet.device.identity, URL, DIGEST)
    for step in range(moment):
        [fleet.server, fleet.device][step % 2].step()
    if crash in ("server", "both"):
        fleet.crash_server().on_update(lambda order: changes.append(order.state))
        fleet.server.start(threads=False)
    if crash in ("device", "both"):
        fleet.crash_device().on_activate(lambda path: activated.append(hashlib.sha256(path.read_bytes()).hexdigest()))
        fleet.device.start(threads=False)
    ended = [UpdateState.ACTIVATED]
    if moment == 0 and crash != "device":  # it was not made durable, and the caller knows
        fleet.settle()
        assert fleet.server.orders == []
        return
    fleet.run(lambda: not fleet.server.orders and activated, 2 * DAY)
    assert activated == [DIGEST]
    assert fleet.server.facts(fleet.device.identity)["firmware"] == DIGEST
    if crash != "device" and changes:
        assert changes[-1:] == ended
    assert fleet.faults() == 0


def test_an_activation_that_restarts_the_device_is_handed_over_again_and_says_so(fleet):
    again = []

    def reboot(path):
        again.append(fleet.device.handling.again)
        raise KeyboardInterrupt

    fleet.device.on_activate(reboot)
    fleet.joined()
    order = fleet.server.update(fleet.device.identity, URL, DIGEST)
    with pytest.raises(KeyboardInterrupt):
        fleet.settle()
    device = fleet.crash_device()
    device.on_activate(lambda path: again.append(device.handling.again))
    device.start(threads=False)
    fleet.run(lambda: order.done, DAY)
    assert again == [False, True]
    assert order.result(0) is UpdateState.ACTIVATED


def test_a_value_waits_for_the_server_and_survives_the_device(fleet):
    heard = []
    fleet.joined()
    identity = fleet.device.identity
    fleet.network.cut(f"device-{identity:x}")
    for value in range(300):  # more than can wait for receipts at a time
        fleet.device.send("n", value, "uint32")
    fleet.device.step()
    fleet.crash_device().start(threads=False)
    fleet.server.on_data("n", "uint32")(lambda device, name, value: heard.append(value))
    fleet.network.heal(f"device-{identity:x}")
    fleet.run(lambda: len(heard) >= 300, DAY)
    assert sorted(heard) == list(range(300))
    unconfirmed = fleet.device.debug.session.exchanges
    fleet.run(lambda: not fleet.device.debug.values and not any(each.mine for each in unconfirmed()), 2 * DAY)
    assert not list(fleet.stores[identity].open(identity).outbox)


def test_a_value_is_done_when_the_server_has_it_for_good_and_not_before(fleet):
    fleet.joined()
    fleet.server.on_data("n", "uint8")(lambda *_: None)
    sent = fleet.device.send("n", 1, "uint8")
    fleet.device.step()
    assert not sent.done()
    fleet.stores[SERVER].failures = 1
    fleet.server.step()
    fleet.device.step()
    assert not sent.done()
    fleet.run(sent.done, 5.0)
    assert sent.result(0) is None


def test_a_value_that_got_lost_behind_the_brokers_acknowledgement_comes_again(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    lost = MemoryTransport._flush
    sent = fleet.device.send("n", 1, "uint8")
    fleet.device.debug.transport._flush = lambda: (
        fleet.device.debug.transport._outbox.clear()
    )  # a broker that dies with it
    fleet.device.step()
    fleet.device.debug.transport._flush = lost.__get__(fleet.device.debug.transport)
    assert (heard, sent.done()) == ([], False)
    fleet.run(sent.done, 60.0)
    assert heard == [1]


def test_a_value_whose_receipt_got_lost_is_confirmed_again_and_not_taken_again(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    sent = fleet.device.send("n", 1, "uint8")
    fleet.device.step()
    fleet.network.cut(f"device-{fleet.device.identity:x}")
    fleet.server.step()
    fleet.network._sessions[f"device-{fleet.device.identity:x}"].backlog.clear()  # the receipt
    fleet.network.heal(f"device-{fleet.device.identity:x}")
    fleet.settle()
    assert not sent.done()
    fleet.run(sent.done, 60.0)
    assert (heard, sent.result(0)) == ([1], None)


@pytest.mark.parametrize("lost", [{0}, {1}, {0, 2}, set(range(5))], ids=repr)
def test_values_are_taken_in_order_and_once_whatever_gets_lost(fleet, lost):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    transport = fleet.device.debug.transport
    publish = transport.publish
    sends = [fleet.device.send("n", value, "uint8") for value in range(5)]
    places = iter(range(100))
    transport.publish = lambda *message: None if next(places) in lost else publish(*message)
    fleet.run(lambda: all(sent.done() for sent in sends), DAY)
    assert heard == list(range(5))
    assert fleet.faults() == 0


def test_values_that_expire_do_not_hold_up_those_behind_them(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    fleet.network.cut("server")
    first = fleet.device.send("n", 1, "uint8", lifetime=60.0)
    fleet.device.step()
    fleet.network._sessions["server"].backlog.clear()
    fleet.run(first.done, 120.0)
    assert isinstance(first.exception(0), UnansweredError)
    second = fleet.device.send("n", 2, "uint8")
    fleet.device.step()
    fleet.network.heal("server")
    fleet.run(second.done, DAY)
    assert heard[-1:] == [2]
    assert heard in ([2], [1, 2])


def test_values_come_in_order_when_a_device_crashes_with_many_under_way(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    fleet.network.cut("server")
    for value in range(100):
        fleet.device.send("n", value, "uint8")
    fleet.device.step()
    fleet.network._sessions["server"].backlog.clear()
    store = fleet.stores[fleet.device.identity]
    opened = store.open
    store.open = lambda owner: opened(owner)._replace(exchanges=list(opened(owner).exchanges)[::-1])
    fleet.crash_device().start(threads=False)
    fleet.network.heal("server")
    fleet.run(lambda: len(heard) == 100, 600.0)
    assert heard == list(range(100))
    assert fleet.server.counts["repeated"] <= 100


def test_a_sender_that_has_forgotten_its_stream_begins_a_later_one(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    fleet.run(fleet.device.send("n", 1, "uint8").done, 60.0)
    fleet.stores[fleet.device.identity] = MemoryStore()
    places = fleet.server.debug.session.streams.received
    there = places[fleet.device.identity]
    places[fleet.device.identity] = StreamPosition(there.stream * 2, 7)  # its clock has gone back
    again = fleet.crash_device().start(threads=False)
    sends = [again.send("n", 2, "uint8"), again.send("n", 3, "uint8")]
    fleet.run(lambda: all(sent.done() for sent in sends), 120.0)
    assert heard == [1, 2, 3]


def test_values_go_on_when_the_server_was_restored_from_a_backup(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    backup = fleet.stores[SERVER].copy()
    backup.adopt()
    fleet.run(fleet.device.send("n", 1, "uint8").done, 60.0)
    server = fleet.crash_server(store=backup)
    server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    server.start(threads=False)
    sends = [fleet.device.send("n", 2, "uint8"), fleet.device.send("n", 3, "uint8")]
    fleet.run(lambda: all(sent.done() for sent in sends), DAY)
    assert heard == [1, 2, 3]


@pytest.mark.parametrize("known", [0, 1, 2])
def test_values_of_a_server_that_was_restored_from_a_backup_are_not_confirmed_untaken(fleet, known):
    """The backup knows ``known`` of two values that it sent; the device has both, under places that come again."""
    heard = []
    fleet.device.on_data("n", "uint8")(lambda server, name, value: heard.append(value))
    fleet.joined()
    identity = fleet.device.identity
    fleet.run(fleet.server.send_data(identity, "n", 0, "uint8").done, 60.0)
    backups = [fleet.stores[SERVER].copy()]
    for value in (1, 2):
        sent = fleet.server.send_data(identity, "n", value, "uint8")
        fleet.server.step()
        backups.append(fleet.stores[SERVER].copy())  # not confirmed yet
        fleet.run(sent.done, 60.0)
    backups[known].adopt()
    server = fleet.crash_server(store=backups[known])
    server.start(threads=False)
    sends = [server.send_data(identity, "n", value, "uint8") for value in (3, 4)]
    fleet.run(lambda: all(sent.done() for sent in sends), DAY)
    assert heard == [0, 1, 2, 3, 4]


def test_a_restored_server_sends_what_it_had_not_sent_before_what_is_new(fleet):
    heard = []
    fleet.device.on_data("n", "uint8")(lambda server, name, value: heard.append(value))
    fleet.joined()
    identity = fleet.device.identity
    fleet.run(fleet.server.send_data(identity, "n", 0, "uint8").done, 60.0)
    fleet.network.cut(f"device-{identity:x}")
    fleet.server.send_data(identity, "n", 1, "uint8")
    fleet.server.step()
    backup = fleet.stores[SERVER].copy()
    backup.adopt()
    fleet.network._sessions[f"device-{identity:x}"].backlog.clear()  # it got lost
    server = fleet.crash_server(store=backup).start(threads=False)
    sent = server.send_data(identity, "n", 2, "uint8")
    fleet.network.heal(f"device-{identity:x}")
    fleet.run(sent.done, DAY)
    assert heard == [0, 1, 2]


def test_a_receipt_of_an_old_place_leaves_the_stream_and_its_places_as_they_are(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    session, identity = fleet.device.debug.session, fleet.device.identity
    fleet.run(fleet.device.send("n", 1, "uint8").done, 60.0)
    fleet.run(fleet.device.send("n", 2, "uint8").done, 60.0)
    places = fleet.server.debug.session.streams.received
    places[identity] = places[identity]._replace(number=1)  # the server was restored from a backup
    place = session.streams.sent[SERVER]
    fleet.clock.now += 2.0
    sent = fleet.device.send("n", 3, "uint8")
    fleet.device.step()
    fleet.server.step()
    fleet.device.step()
    assert session.streams.sent[SERVER] == place._replace(number=3)
    while fleet.server.engine.inbox.get(0.0) is not None:
        pass  # what the device said is under way for a while
    fleet.clock.now += 2.0
    fleet.server.debug.session.streams.owed[identity] = None
    fleet.server.step()
    fleet.device.step()
    assert session.streams.sent[SERVER] == place._replace(number=3)
    fleet.run(sent.done, 60.0)
    assert heard == [1, 2, 3]


def test_a_clock_that_is_set_back_holds_nothing_back(tmp_path):
    heard, clocks, ahead = [], [Clock()], [0.0]
    fleet = DurableFleet(tmp_path, server_options={"clock": lambda: clocks[-1].now + ahead[0]})
    clocks.append(fleet.clock)
    fleet.device.on_data("n", "uint8")(lambda server, name, value: heard.append(value))
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    ahead[0] = DAY
    fleet.run(fleet.device.send("n", 1, "uint8", lifetime=7 * DAY).done, 60.0)
    fleet.network.cut(f"device-{fleet.device.identity:x}")
    down = fleet.server.send_data(fleet.device.identity, "n", 2, "uint8")
    fleet.server.step()
    fleet.network._sessions[f"device-{fleet.device.identity:x}"].backlog.clear()  # it got lost
    ahead[0] = 0.0
    fleet.network.heal(f"device-{fleet.device.identity:x}")
    up = fleet.device.send("n", 3, "uint8")
    fleet.run(lambda: up.done() and down.done(), 60.0)
    assert sorted(heard) == [1, 2, 3]


def test_what_a_handler_asks_for_is_kept_before_its_end_is(fleet):
    """The handler ends after the inbox was emptied, and before the turn is put together."""
    heard = []
    fleet.device.on_data("n", "uint8")(lambda server, name, value: heard.append(value))
    fleet.joined()
    server, identity = fleet.server, fleet.device.identity
    waiting = []
    server.engine.handlers.submit = waiting.extend

    @server.on_data("n", "uint8")
    def forward(device, name, value):
        server.send_data(identity, "n", value + 1, "uint8")

    fleet.device.send("n", 1, "uint8")
    fleet.device.step()
    server.step()
    collect = server.engine.handlers.collect_finished

    def handle_then_collect(transaction, done):
        server.engine.handlers.run_calls(waiting)
        collect(transaction, done)

    server.engine.handlers.collect_finished = handle_then_collect
    server.engine.turn()  # one turn; then the process ends
    fleet.crash_server().on_data("n", "uint8")(
        lambda device, name, value: fleet.server.send_data(identity, "n", value + 1, "uint8")
    )
    fleet.server.start(threads=False)
    fleet.run(lambda: heard, 60.0)
    assert heard == [2]


def test_what_a_handler_asks_for_while_the_server_stops_is_done_after_the_next_start(fleet):
    heard, done = [], []
    fleet.device.on_data("n", "uint8")(lambda server, name, value: heard.append(value))
    fleet.device.on_action(3)(done.append)
    fleet.joined()
    server, identity = fleet.server, fleet.device.identity
    waiting = []
    server.engine.handlers.submit = waiting.extend

    @server.on_data("n", "uint8")
    def forward(device, name, value):
        server.engine.stopping.set()  # stop() is called, and waits for this handler
        server.send_data(identity, "n", value + 1, "uint8")
        server.action(identity, 3)
        server.update(identity, URL, DIGEST)

    fleet.device.send("n", 1, "uint8")
    fleet.device.step()
    server.step()
    fleet.network.cut("server")
    server.engine.handlers.run_calls(waiting)
    server.engine.turn()
    server.engine.stopping.clear()
    server.stop(0.0)
    fleet.network.heal("server")
    fleet.crash_server().start(threads=False)
    activated = fleet.tmp_path / f"{identity:x}" / "current"
    fleet.run(lambda: heard and done and activated.exists(), DAY)
    assert (heard, done) == ([2], [SERVER])


def test_an_old_receipt_does_not_begin_a_new_stream(fleet):
    """Of two receipts that change places the later one counts."""
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    session = fleet.device.debug.session
    fleet.run(fleet.device.send("n", 1, "uint8").done, 60.0)
    [[old_topic, old]] = [entry for entry in fleet.network.log if b"DATA_RECEIPT" in entry[1]][-1:]
    del old_topic
    fleet.run(fleet.device.send("n", 2, "uint8").done, 60.0)
    stream = session.streams.sent[SERVER].stream
    fleet.network.cut("server")
    fleet.device.send("n", 3, "uint8")
    fleet.device.step()
    session.known.peers[SERVER].window.seen = 1  # as if it had been held back, and is heard now
    fleet.network.inject(f"SRUP/{fleet.device.identity:x}", old)
    fleet.device.step()
    assert session.streams.sent[SERVER] == (stream, 3)
    fleet.network.heal("server")
    fleet.run(lambda: len(heard) == 3, DAY)
    assert heard == [1, 2, 3]


def test_a_value_that_nobody_knows_is_refused_and_not_confirmed(fleet):
    fleet.joined()
    sent = fleet.device.send("unknown", 1, "uint8")
    fleet.settle()
    with pytest.raises(PolicyError, match="does not know"):
        sent.result(0)


def test_revoked_stays_revoked(fleet):
    fleet.joined()
    identity = fleet.device.identity
    fleet.server.revoke(identity)
    fleet.settle()
    ring = KeyRing({identity: key_of(identity).public_key})  # the folder still has it
    server = fleet.crash_server(devices=ring).start(threads=False)
    fleet.device.join()
    fleet.settle()
    assert server.members == frozenset()
    assert identity not in server.devices
    with pytest.raises(PolicyError, match="revoked"):
        server.devices.add(identity, key_of(identity).public_key)


def test_a_rotated_key_stays_rotated(fleet):
    fleet.joined()
    identity = fleet.device.identity
    new = PrivateKey.generate("ed25519")
    fleet.server.on_key_changed(lambda device, key: True)
    changed = fleet.device.rotate_key(new)
    fleet.settle()
    assert changed.result(0) is None
    ring = KeyRing({identity: key_of(identity).public_key})
    server = fleet.crash_server(devices=ring).start(threads=False)
    assert server.devices[identity] == new.public_key
    assert server.members == {identity}
    asked = fleet.device.action(SERVER, 1)
    fleet.settle()
    assert asked.result(0) is Status.ACTION_UNKNOWN


def test_a_device_whose_key_the_application_has_replaced_is_a_new_one(fleet):
    fleet.joined()
    identity = fleet.device.identity
    ring = KeyRing({identity: PrivateKey.generate("ed25519").public_key})
    server = fleet.crash_server(devices=ring).start(threads=False)
    assert server.members == frozenset()
    server.step()
    assert [record.identity for record in fleet.stores[SERVER].open(SERVER).partners] == []


def test_an_adopted_state_takes_nothing_signed_before_and_finds_its_devices(fleet):
    heard = []
    fleet.server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    fleet.joined()
    backup = fleet.stores[SERVER].copy()
    backup.adopt()
    sent = fleet.device.send("n", 1, "uint8")
    fleet.run(sent.done, 5.0)
    captured = [entry for entry in fleet.network.log if entry[0] == f"SRUP/{fleet.device.identity:x}"]
    fleet.clock.now += 10.0
    server = fleet.crash_server(store=backup)
    server.on_data("n", "uint8")(lambda device, name, value: heard.append(value))
    server.start(threads=False)
    for topic, wire in captured:
        fleet.network.inject(topic, wire)
    fleet.settle()
    assert heard == [1]  # by the server that is gone
    fleet.device.send("n", 2, "uint8")
    fleet.run(lambda: heard == [1, 2], 60.0)
    asked = server.action(fleet.device.identity, 1)
    fleet.settle()
    assert asked.result(0) is Status.ACTION_UNKNOWN


def test_the_version_floor_and_the_server_one_was_sent_to_survive(tmp_path):
    fleet = DurableFleet(tmp_path, size=0)
    identity, other = 0xD0, 0x5F
    servers = {other: key_of(other).public_key}
    device = fleet.add(identity, version_floor=3, servers=servers)
    fleet.joined()
    order = fleet.server.update(identity, URL, DIGEST, version=9)
    fleet.settle()
    assert order.result(0) is UpdateState.ACTIVATED
    fleet.server.command_join(identity, other)
    fleet.settle()
    assert device.server == other
    again = fleet.add(identity, version_floor=3, servers=servers).start(threads=False)
    assert (again.version_floor, again.server) == (9, other)


def test_a_device_that_was_sent_away_and_back_is_at_its_first_server_after_a_crash(tmp_path):
    fleet = DurableFleet(tmp_path)
    other = 0x5F
    device = fleet.add(fleet.device.identity, servers={other: key_of(other).public_key})
    fleet.joined()
    for server in (other, SERVER):
        device.engine.part(Joining).server = server  # what a JoinCommand does
        device.engine.inbox.wake()
        device.step()
        again = fleet.crash_device(servers={other: key_of(other).public_key}).start(threads=False)
        assert again.server == server
        device = again


def test_a_device_has_joined_when_that_is_durable(fleet):
    fleet.start()
    fleet.device.step()
    fleet.server.step()
    fleet.stores[fleet.device.identity].failures = 1
    fleet.device.step()
    assert fleet.device.counts["not stored"] == 1
    with pytest.raises(TimeoutError):
        fleet.device.wait_joined(0)
    fleet.settle()
    fleet.device.wait_joined(0)


def test_audit_rows_tell_what_was_accepted(fleet):
    fleet.joined()
    fleet.device.action(SERVER, 1)
    fleet.settle()
    fleet.network.inject(*fleet.network.log[-2])
    fleet.settle()
    rows = [row for row in fleet.stores[SERVER].audit() if not row.sent]
    assert [(row.partner, row.type, row.outcome) for row in rows] == [
        (fleet.device.identity, 0x09, "accepted"),
        (fleet.device.identity, 0x04, "accepted"),
    ]
    assert rows[0].sequence_id < rows[1].sequence_id


@pytest.mark.parametrize("crash", [False, True], ids=["going on", "after a crash"])
def test_sequence_ids_sent_to_a_revoked_device_are_not_sent_to_its_successor(fleet, crash):
    fleet.joined()
    identity = fleet.device.identity
    for _ in range(5):
        fleet.server.action(identity, 1)
    fleet.settle()
    fleet.server.revoke(identity)
    fleet.settle()
    if crash:
        fleet.clock.now -= 3600.0  # its clock was set back
        fleet.crash_server()
        fleet.server.start(threads=False)
        fleet.clock.now += 3600.0
    new = PrivateKey.generate("ed25519")
    fleet.server.devices.add(identity, new.public_key)
    fleet.stores[identity] = MemoryStore()
    device = Device(
        identity,
        new,
        server=SERVER,
        server_key=key_of(SERVER).public_key,
        broker=MemoryTransport(fleet.network, f"device-{identity:x}"),
        clock=fleet.clock,
        entropy=fleet.randbytes,
        store=fleet.stores[identity],
    )
    fleet.devices[identity] = device.start(threads=False)
    fleet.settle()
    assert device.joined
    mine = [wire[2:10] for _, wire in fleet.network.log if int.from_bytes(wire[10:18], "little") == SERVER]
    assert len(mine) == len(set(mine))


def test_a_stopped_agent_keeps_what_it_could_not_write(fleet):
    fleet.joined()
    fleet.stores[SERVER].failures = 10**6
    update = fleet.server.update(fleet.device.identity, URL, DIGEST)
    told = fleet.server.terminate(fleet.device.identity)
    fleet.server.step()
    fleet.server.stop(0.1)
    for ended in (update._done, told):
        assert ended.exception(0) is not None
    fleet.stores[SERVER].failures = 0
    assert fleet.crash_server().start(threads=False).members == {fleet.device.identity}


def test_a_store_of_somebody_else_is_refused(fleet):
    fleet.joined()
    with pytest.raises(StoreError, match="belongs to"):
        Device(
            0xD9,
            key_of(0xD9),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MemoryTransport(fleet.network, "x"),
            store=fleet.stores[SERVER],
        ).start(threads=False)


def test_with_a_path_the_store_is_a_database(tmp_path):
    path = tmp_path / "server.db"
    fleet = DurableFleet(tmp_path, server_options={"store": path})
    fleet.joined()
    fleet.server.stop()
    fleet.crash_server(store=path).start(threads=False)
    assert fleet.server.members == {fleet.device.identity}
    with pytest.raises(TypeError, match="store must be"):
        fleet.crash_server(store=7)
    fleet.server.stop()


def test_deployed_partners_get_what_was_not_sent_before_a_crash_byte_for_byte(tmp_path):
    """They ask for nothing twice, so what they are owed is kept until the broker has it."""
    fleet = DurableFleet(tmp_path)
    fleet.joined()
    identity = fleet.device.identity
    fleet.server.debug.session.known.peers[identity].binds = False  # as with a deployed peer
    fleet.server.debug.transport.publish = lambda *_: None  # the process ends before the transport has it
    fleet.server.action(identity, 7)
    fleet.server.step()
    [owed] = fleet.stores[SERVER].open(SERVER).outbox
    fleet.crash_server().start(threads=False)
    fleet.settle()
    assert (owed.topic, owed.body) in fleet.network.log
    fleet.settle()
    fleet.server.engine.inbox.wake()
    fleet.server.step()
    assert not list(fleet.stores[SERVER].open(SERVER).outbox)


def test_changes_are_empty_when_nothing_changed():
    assert not Changes()


def test_a_syndication_survives_its_servers(tmp_path):
    stores = {HOME: MemoryStore(), AWAY: MemoryStore()}
    with Federation(tmp_path, scheme="ed25519", stores=stores) as world:
        world.syndicated()
        for name, identity in (("home", HOME), ("away", AWAY)):
            before = getattr(world, name)
            admitted = {"syndication_devices": [AWAY_ID]} if name == "away" else {}
            server = world.server(identity, name, store=stores[identity], **admitted)
            world.agents[world.agents.index(before)] = server
            setattr(world, name, server)
        world.away.on_syndicated_action(world.moderate)
        for server in (world.home, world.away):
            server.start(threads=False)
        assert world.home.shared_devices(HOME_ID) == tuple(world.shared)
        asked = world.home.syndicated_action(HOME_ID, world.shared[0], 1)
        assert world.answered(asked) is Status.ACTION_SUCCESS
        assert world.done == [(world.shared[0], 1)]
        heard = []
        world.home.on_syndicated_data("n", "uint8")(lambda *arguments: heard.append(arguments))
        world.lamps[world.shared[1]].send("n", 7, "uint8")
        world.settle()
        assert [arguments[-1] for arguments in heard] == [7]
        ended = world.home.end_syndication(HOME_ID)
        world.answered(ended)
        assert not [fact for fact in stores[HOME].open(HOME).facts if fact.name == "syndication"]
        assert world.faults() == 0


def held(agent, effect):
    """Keep the jobs of one kind of event from running, as if their handlers took their time; return them."""
    handlers = agent.engine.handlers
    jobs, call_for = [], handlers.call_for

    def hold(transaction, peer, token, job, number=0):
        if effect in job.__qualname__:
            jobs.append(job)
        else:
            call_for(transaction, peer, token, job, number)

    handlers.call_for = hold
    return jobs


@pytest.mark.parametrize("effect", ["_syndication_requested", "_moderate"])
def test_the_away_owner_is_asked_again_after_a_restart(tmp_path, effect):
    store = MemoryStore()
    with Federation(tmp_path, scheme="ed25519", stores={AWAY: store}) as world:
        jobs = held(world.away, effect)
        world.start()
        future = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.settle()
        if effect == "_moderate":
            assert future.result(0) is None
            future = world.home.syndicated_action(HOME_ID, LAMPS[0], 1)
            world.settle()
        assert (len(jobs), future.done()) == (1, False)
        server = world.server(AWAY, "away", store=store, syndication_devices=[AWAY_ID])
        world.agents[world.agents.index(world.away)] = server
        world.away = server
        server.on_syndication_request(world.request)
        server.on_syndicated_action(world.moderate)
        server.start(threads=False)
        assert world.answered(future) is (Status.ACTION_SUCCESS if effect == "_moderate" else None)
        assert world.done == ([(LAMPS[0], 1)] if effect == "_moderate" else [])
        assert world.faults() == 0


def test_the_owner_of_a_syndication_device_is_asked_again_after_a_restart(tmp_path):
    store = MemoryStore()
    with Federation(tmp_path, scheme="ed25519", stores={HOME_ID: store}) as world:
        jobs = held(world.bridge, "_offered")
        world.start()
        future = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.settle()
        assert (len(jobs), future.done()) == (1, False)
        bridge = SyndicationDevice(HOME_ID, world.key(HOME_ID), **world.options(HOME_ID, HOME, "home"))
        world.agents[world.agents.index(world.bridge)] = bridge
        world.bridge = bridge
        bridge.on_syndication_init(world.enter)
        bridge.start(threads=False)
        assert world.answered(future) is None
        assert bridge.syndicated
        assert world.faults() == 0


# --- audit rows


def audited_before(fleet, *times):
    """Let the server's store have rows of an earlier run."""
    store = fleet.store(SERVER)
    store.open(SERVER)
    store.commit(Changes(audit=[AuditRow(at, 7, 7, 5, b"token", "accepted") for at in times]))
    store.close()


def audited(fleet):
    return [row.at for row in fleet.store(SERVER).audit()]


def test_audit_rows_end_after_their_time(tmp_path):
    """At the latest an hour later, and nobody has to do anything for it."""
    fleet = DurableFleet(tmp_path, server_options={"audit_kept": 2 * DAY})
    began = fleet.clock.now
    fleet.joined()
    assert audited(fleet)
    fleet.clock.now += DAY
    fleet.device.send("n", 1, "uint8")
    fleet.settle()
    assert min(audited(fleet)) == began
    fleet.run(lambda: fleet.clock.now >= began + 2 * DAY + 3600, 3 * DAY)
    assert audited(fleet)
    assert min(audited(fleet)) >= began + DAY


def test_a_server_that_was_down_prunes_at_its_start_in_pieces_and_serves_meanwhile(fleet):
    audited_before(fleet, *(1.0 + number for number in range(20_000)))
    pieces = []
    prune = fleet.store(SERVER).prune
    fleet.store(SERVER).prune = lambda before, limit: pieces.append(prune(before, limit)) or pieces[-1]
    fleet.joined()
    assert pieces == [4000]
    answer = fleet.server.action(fleet.device.identity, 1)
    fleet.settle()
    assert answer.result(0) is Status.ACTION_UNKNOWN
    assert pieces == [4000]
    fleet.run(lambda: len(pieces) == 6, 60.0)
    assert pieces == [4000] * 5 + [0]
    assert min(audited(fleet)) >= fleet.clock.now - 60.0
    fleet.run(lambda: len(pieces) == 7, 3600.0)


def test_audit_rows_that_are_kept_for_good_stay(tmp_path):
    fleet = DurableFleet(tmp_path, server_options={"audit_kept": None})
    audited_before(fleet, 1.0)
    fleet.joined()
    fleet.clock.now += 1000 * DAY
    fleet.server.step()
    assert min(audited(fleet)) == 1.0


@pytest.mark.parametrize("error", [StoreError("no"), TypeError("prune() takes 2 arguments")], ids=repr)
def test_a_store_that_does_not_prune_is_asked_again_later(fleet, error):
    asked = []

    def refuse(before, limit):
        asked.append(fleet.clock.now)
        raise error

    fleet.store(SERVER).prune = refuse
    fleet.joined()
    answer = fleet.server.action(fleet.device.identity, 1)
    fleet.settle()
    assert answer.result(0) is Status.ACTION_UNKNOWN
    fleet.run(lambda: len(asked) == 2, 2 * 3600.0)
    assert asked[1] - asked[0] >= 3600.0


@pytest.mark.parametrize("kept", [0, -1, "x", float("nan")])
def test_a_time_that_is_none_is_refused(tmp_path, kept):
    with pytest.raises(ValueError, match="audit_kept"):
        DurableFleet(tmp_path, server_options={"audit_kept": kept})


# What a hostile tester found.


def pass_time(fleet, seconds):
    with pytest.raises(TimeoutError):
        fleet.run(lambda: False, seconds)


def collected(agent):
    taken = []
    agent.on_data("n", "uint8")(lambda partner, name, value: taken.append(value))
    return taken


@pytest.mark.parametrize("lifetime", [10.0, DAY])
def test_t2_a_receipt_that_a_broker_held_back_makes_no_value_count_twice(fleet, lifetime):
    taken = collected(fleet.server)
    fleet.joined()
    pass_time(fleet, 3)
    identity = fleet.device.identity
    fleet.device.send("n", 1, "uint8", lifetime=lifetime)
    fleet.device.send("n", 2, "uint8")
    fleet.device.step()
    # It says that nothing has come, which is true when it is made, and is heard when it is not.
    fleet.perform(fleet.server, fleet.server.debug.session.receipt(identity, fleet.clock.now, fleet.randbytes(16)))
    fleet.network.cut(f"device-{identity:x}")
    fleet.server.step()
    pass_time(fleet, 20)
    fleet.network.heal(f"device-{identity:x}")
    pass_time(fleet, 100)
    assert taken == [1, 2]
    sent = fleet.device.send("n", 3, "uint8")
    fleet.run(sent.done, 60)
    assert taken == [1, 2, 3]


def test_values_of_a_sender_that_goes_on_from_a_backup_are_not_taken_for_repetitions(fleet):
    taken = collected(fleet.device)
    fleet.joined()
    identity = fleet.device.identity
    for value in (1, 2):
        fleet.run(fleet.server.send_data(identity, "n", value, "uint8").done, 60)
    backup = fleet.stores[SERVER].copy()
    for value in (3, 4, 5):
        fleet.run(fleet.server.send_data(identity, "n", value, "uint8").done, 60)
    backup.adopt()
    server = fleet.crash_server(store=backup).start(threads=False)
    futures = [server.send_data(identity, "n", value, "uint8") for value in (6, 7)]
    fleet.run(lambda: all(future.done() for future in futures), DAY)
    assert taken == [1, 2, 3, 4, 5, 6, 7]


def test_a_partner_cannot_name_a_stream_that_leaves_none(fleet):
    fleet.joined()
    identity = fleet.device.identity
    fleet.device.engine.inbound.deliver = lambda transaction, batch, more=False: None
    future = fleet.server.send_data(identity, "n", 1, "uint8", lifetime=60.0)
    fleet.settle()
    data = ((1 << 64) - 1).to_bytes(8, "little") + bytes(8)
    sends = fleet.device.debug.session.data(SERVER, DATA_RECEIPT, data, fleet.clock.now, fleet.randbytes(16))
    fleet.perform(fleet.device, sends)
    fleet.run(future.done, 120)
    assert isinstance(future.exception(0), UnansweredError)
    assert fleet.errors(fleet.server) == ["PolicyError"]
    assert fleet.faults() == 0


def test_values_go_on_when_other_requests_have_made_room(fleet):
    taken = collected(fleet.device)
    fleet.joined()
    for _ in range(256):
        fleet.server.action(fleet.device.identity, 1)
    sent = fleet.server.send_data(fleet.device.identity, "n", 1, "uint8")
    fleet.run(sent.done, 10)
    assert taken == [1]


def test_a_value_that_no_message_can_hold_is_refused_and_holds_up_no_other(fleet):
    taken = collected(fleet.server)
    fleet.joined()
    refused = fleet.device.send("n", bytes(70_000))
    sent = fleet.device.send("n", 1, "uint8")
    fleet.run(sent.done, 10)
    assert isinstance(refused.exception(0), EncodeError)
    assert taken == [1]
    assert fleet.faults() == 0


def test_a_value_that_waits_ends_when_its_sender_stops_and_is_sent_after_the_restart(fleet):
    fleet.server.start(threads=False)
    waiting = fleet.server.send_data(fleet.device.identity, "n", 1, "uint8")
    fleet.server.step()
    fleet.server.stop()
    assert isinstance(waiting.exception(0), TransportError)
    taken = collected(fleet.device)
    fleet.crash_server()
    fleet.joined()
    fleet.settle()
    assert taken == [1]


def test_a_value_for_a_device_that_is_revoked_ends_and_never_reaches_its_successor(fleet):
    taken = collected(fleet.device)
    fleet.server.start(threads=False)
    identity = fleet.device.identity
    waiting = fleet.server.send_data(identity, "n", 1, "uint8")
    fleet.server.step()
    fleet.server.revoke(identity)
    fleet.server.step()
    assert isinstance(waiting.exception(0), PolicyError)
    assert not list(fleet.stores[SERVER].open(SERVER).outbox)
    fleet.device.engine.own_keys.current = PrivateKey.generate("ed25519")
    fleet.server.devices.add(identity, fleet.device.debug.key.public_key)
    fleet.device.start(threads=False)
    fleet.settle()
    assert fleet.all_joined()
    assert taken == []


@pytest.mark.parametrize("kind", ["transport", "state"])
def test_a_start_that_fails_half_way_lets_go_of_the_store(fleet, tmp_path, kind):
    path = tmp_path / "device.db"

    class Failing(MemoryTransport):
        def start(self, *arguments):
            raise TransportError("the certificate cannot be read")

    fleet.add(0xD1, store=str(path))
    fleet.devices[0xD1].start(threads=False)
    fleet.devices[0xD1].stop()
    broker = Failing(fleet.network, "failing") if kind == "transport" else MemoryTransport(fleet.network, "new")
    device = fleet.add(0xD1, store=str(path), broker=broker)
    if kind == "state":
        device.debug.session.restore = lambda *_: (_ for _ in ()).throw(StoreError("of a newer version"))
    with pytest.raises((TransportError, StoreError), match=r"certificate|newer"):
        device.start(threads=False)
    with pytest.raises(TransportError, match="make a new one"):
        device.start(threads=False)
    fleet.add(0xD1, store=str(path)).start(threads=False).stop()


def test_outcomes_are_told_of_what_was_asked_before_the_start_and_by_the_application(fleet):
    told = []
    fleet.device.on_outcome(told.append)
    fleet.server.on_outcome(told.append)
    fleet.device.start(threads=False)
    pass_time(fleet, 1000)  # joins that nobody answers
    fleet.server.start(threads=False)
    fleet.run(fleet.all_joined, DAY)
    fleet.server.terminate(fleet.device.identity)
    fleet.settle()
    assert not fleet.device.joined
    assert told == []


def test_what_changes_in_a_ring_is_kept_by_all_servers_that_share_it(fleet):
    fleet.joined()
    other = Server(
        0x77,
        key_of(0x77),
        devices=fleet.ring,
        broker=MemoryTransport(fleet.network, "other"),
        clock=fleet.clock,
        entropy=fleet.randbytes,
        store=MemoryStore(),
    )
    other.start(threads=False)
    fleet.server.revoke(fleet.device.identity)
    fleet.settle()
    other.stop()
    fleet.ring.add(0xDD, key_of(0xDD).public_key)
    server = fleet.crash_server().start(threads=False)
    assert set(server.devices) == {0xDD}
    assert server.devices.barred == {key_of(fleet.device.identity).public_key.signing_fingerprint}


@pytest.mark.parametrize("failures", range(3))
def test_a_deregistration_happens_with_its_answer_whatever_the_store_does(fleet, failures):
    gone = []
    fleet.server.on_deregistered(gone.append)
    fleet.joined()
    identity = fleet.device.identity
    done = fleet.device.deregister()
    fleet.device.step()
    fleet.stores[SERVER].failures = failures
    for _ in range(failures + 2):
        fleet.settle()
    assert done.exception(0) is None
    assert gone == [identity]
    assert identity not in fleet.crash_server(devices=KeyRing()).start(threads=False).devices
    assert fleet.faults() == 0


def test_a_deregistration_that_was_not_made_durable_has_not_happened(fleet):
    gone = []
    fleet.joined()
    fleet.device.deregister()
    fleet.device.step()
    fleet.stores[SERVER].failures = 99
    fleet.server.step()
    fleet.stores[SERVER].failures = 0
    identity = fleet.device.identity
    fleet.crash_server().on_deregistered(gone.append)
    fleet.server.start(threads=False)
    assert identity in fleet.server.devices
    fleet.settle()
    assert gone == [identity]
    assert identity not in fleet.server.devices


@pytest.mark.parametrize(
    "body",
    [
        '{"d":{"state":"ActionState.ASKED","colour":3}}',
        '{"d":{"state":{"t":["a"]}}}',
        '{"d":{"state":"ActionState.DREAMING"}}',
        '"x"',
        "[]",
        "3",
        "{}",
    ],
)
def test_an_exchange_that_this_version_cannot_have_written_is_refused_at_the_start(fleet, body):
    fleet.joined()
    record = ExchangeRecord(fleet.device.identity, b"token", 1e12, body)
    fleet.stores[SERVER].commit(Changes(exchanges=[record]))
    with pytest.raises(StoreError, match="exchange"):
        fleet.crash_server().start(threads=False)


# Found by the simulator.


def test_an_action_with_the_number_zero_is_done_after_a_crash(fleet):
    done = []
    fleet.joined()
    fleet.device.on_action(0)(done.append)
    asked = fleet.server.action(fleet.device.identity, 0)
    fleet.server.step()
    fleet.device.engine.handlers.submit = lambda calls: None  # the process ends before the handler is called
    fleet.device.step()
    fleet.crash_device().on_action(0)(done.append)
    fleet.device.start(threads=False)
    fleet.run(asked.done, DAY)
    assert (asked.result(0), done) == (Status.ACTION_SUCCESS, [SERVER])


def test_a_receipt_from_before_a_stream_began_does_not_begin_another(fleet):
    """Values and a receipt that says "nothing yet" cross: the values are not sent, and taken, a second time."""
    heard = []
    fleet.joined()
    fleet.device.on_data("n", "uint8")(lambda server, name, value: heard.append(value))
    fleet.device.debug.session.streams.owed[SERVER] = None
    sent = [fleet.server.send_data(fleet.device.identity, "n", number, "uint8") for number in range(3)]
    fleet.device.engine.inbox.wake()
    fleet.device.step()  # the receipt is on its way
    fleet.run(lambda: all(each.done() for each in sent), DAY)
    fleet.pass_time(300.0)
    assert heard == [0, 1, 2]
    tokens = {wire.split(b":r")[1].split(b".")[0] for _, wire in fleet.network.log if b":r1" in wire}
    assert len(tokens) == 1


@pytest.mark.parametrize("crash", [False, True])
def test_what_was_asked_of_a_former_key_ends_when_another_one_is_registered(fleet, crash):
    """Nothing that was meant for the former device reaches the new one, and whoever asked is told."""
    outcomes, orders = [], []
    fleet.joined()
    identity = fleet.device.identity
    fleet.network.cut(f"device-{identity:x}")
    fleet.server.action(identity, 7, lifetime=DAY)
    fleet.server.send_data(identity, "n", b"sent")
    fleet.server.update(identity, URL, DIGEST)
    fleet.settle()
    server = fleet.crash_server()
    server.on_outcome(outcomes.append)
    server.on_update(orders.append)
    server.start(threads=False)
    fleet.settle()
    fleet.server.devices.replace(identity, key_of(0xFF).public_key)
    if crash:
        server = fleet.crash_server(devices=KeyRing({identity: key_of(0xFF).public_key}))
        server.on_outcome(outcomes.append)
        server.on_update(orders.append)
        server.start(threads=False)
    else:
        other = Device(
            identity,
            key_of(0xFF),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MemoryTransport(fleet.network, f"device-{identity:x}"),
            firmware=fleet.tmp_path / "other",
            clock=fleet.clock,
            entropy=fleet.randbytes,
        )
        fleet.devices[identity] = other.start(threads=False)
        fleet.network.heal(f"device-{identity:x}")
    fleet.settle()
    assert sorted(type(outcome.request).__name__ for outcome in outcomes) == ["Action", "Data"]
    assert all(isinstance(outcome.result, PolicyError) for outcome in outcomes)
    [order] = [order for order in orders if order.done]
    with pytest.raises(PolicyError):
        order.result(0)
    assert not list(fleet.stores[SERVER].open(SERVER).outbox)


def test_what_a_former_key_has_sent_is_not_handed_over_to_the_next(fleet):
    heard = []
    fleet.joined()
    fleet.server.on_data("n", "uint8")(lambda *value: heard.append(value))
    fleet.device.send("n", 1, "uint8")
    fleet.device.step()
    fleet.server.engine.handlers.submit = lambda calls: None  # the process ends before the handler is called
    fleet.server.step()
    server = fleet.crash_server(devices=KeyRing({fleet.device.identity: key_of(0xFF).public_key}))
    server.on_data("n", "uint8")(lambda *value: heard.append(value))
    server.start(threads=False)
    fleet.settle()
    assert heard == []
    assert not list(fleet.stores[SERVER].open(SERVER).inbox)


def test_a_device_parts_for_good_while_its_disk_is_full(fleet):
    """The key that goes is durable with the turn that drops it: a store that refuses is no fault, and loses nothing."""
    fleet.joined()
    told = []
    fleet.device.on_deregistered(told.append)
    fleet.server.deregister(fleet.device.identity)
    fleet.server.step()
    store = fleet.stores[fleet.device.identity]
    store.failures = 1
    fleet.device.step()
    assert (told, fleet.device.counts["not stored"], store.open(fleet.device.identity).keys[0].key) != ([], 1, None)
    fleet.settle()
    assert told == [SERVER]
    assert fleet.faults() == 0
    assert store.open(fleet.device.identity).keys[0].key is None


def test_an_answer_that_was_durable_and_not_told_before_a_crash_is_told_after_it(fleet):
    outcomes, orders = [], []
    fleet.joined()
    identity = fleet.device.identity
    for server in (fleet.server, None):
        server = server or fleet.crash_server()
        server.on_outcome(outcomes.append)
        server.on_update(lambda order: orders.append((order.done, order.state)))
        if server.engine.started:
            asked, order = server.action(identity, 7), server.update(identity, URL, DIGEST, hold=True)
            fleet.settle()
            assert asked.done()
            orders.clear()
            asked = server.action(identity, 7)
            order.activate()
            server.step()
            fleet.device.step()
            server.engine.finish = lambda transaction, error: False  # the process ends just after the commit
            server.engine.turn()
        else:
            server.start(threads=False)
            fleet.settle()
    assert not asked.done()
    assert [outcome.result for outcome in outcomes] == [Status.ACTION_UNKNOWN]
    assert (True, UpdateState.ACTIVATED) in orders


def test_a_value_that_was_refused_or_never_sent_is_told_after_a_crash(fleet):
    outcomes = []
    fleet.joined()
    fleet.network.cut("server")
    fleet.device.send("nobody", b"knows this")
    fleet.device.send_data(0x77, "late", b"never sent", lifetime=60.0)
    fleet.settle()
    device = fleet.crash_device()
    device.on_outcome(outcomes.append)
    device.start(threads=False)
    fleet.settle()
    fleet.pass_time(120.0)
    fleet.network.heal("server")
    fleet.pass_time(120.0)
    told = {outcome.request.data_id: outcome for outcome in outcomes if isinstance(outcome.request, Data)}
    assert isinstance(told["late"].result, UnansweredError)
    assert (told["late"].request.sequence_id, told["late"].request.data) == (0, b"never sent")
    assert isinstance(told["nobody"].result, PolicyError)


def test_a_leaving_from_before_a_restart_does_not_end_a_later_membership(fleet):
    """Each side goes by the newest word of the other about being joined, and a store knows which that was."""
    fleet.joined()
    identity = fleet.device.identity
    fleet.device.resign()
    fleet.device.step()
    late = [entry for entry in fleet.network.log if entry[0] == f"SRUP/{identity:x}"][-1]
    fleet.settle()
    decided = fleet.server.debug.session.known.peers[identity].horizon.membership_sequence_id
    fleet.device.join()
    fleet.settle()
    assert fleet.all_joined()
    assert fleet.server.debug.session.known.peers[identity].horizon.membership_sequence_id > decided
    after = fleet.server.debug.session.known.peers[identity].horizon.membership_sequence_id
    server = fleet.crash_server().start(threads=False)
    assert server.debug.session.known.peers[identity].horizon.membership_sequence_id == after
    fleet.network.inject(*late)
    fleet.settle()
    assert server.members == {identity}


# Joining and leaving, with and without a store.


def test_a_device_that_has_used_up_its_sequence_ids_is_no_fault_of_the_server(tmp_path):
    fleet = Fleet(tmp_path).joined()
    identity = fleet.device.identity
    fleet.server.debug.session.known.peers[identity].last_sent = (1 << 64) - 1
    fleet.server.terminate(identity)
    fleet.device.action(SERVER, 1)
    fleet.device.send("n", b"value")
    fleet.settle()
    fleet.pass_time(2000.0)
    assert fleet.faults() == 0


def test_joining_again_at_once_after_resigning(fleet):
    """The wish to be in again outlives the answer to the leaving, and who leaves is told so once."""
    left = []
    fleet.joined()
    fleet.device.on_left(left.append)
    fleet.device.resign()
    fleet.device.join()
    fleet.settle()
    fleet.pass_time(60.0)
    assert fleet.all_joined()
    assert fleet.device.debug.part(Joining).wants_in
    assert left == [SERVER]
