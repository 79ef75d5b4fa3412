"""Handlers of actions that run inline, and turns on the thread of the transport."""

import sys
import threading
import time

import pytest

from srup import Device, KeyRing, PrivateKey, Server, Status, TransportError
from srup.agent.duty import Duty
from srup.aio import AsyncDevice
from srup.store import MemoryStore
from srup.transport import LocalBroker, MemoryNetwork, MemoryTransport

from .fleet import wait_until

pytestmark = pytest.mark.backend

SERVER, DEVICE = 0x5E, 0xD1


class Pair:
    """A server and a device without threads, joined."""

    def __init__(self, store=None):
        self.network = MemoryNetwork()
        self.now = 1_800_000_000.0
        keys = [PrivateKey.generate("ed25519") for _ in range(2)]
        named = {"clock": lambda: self.now}
        self.server = Server(
            *(SERVER, keys[0]),
            devices=KeyRing({DEVICE: keys[1].public_key}),
            broker=MemoryTransport(self.network, "server"),
            **named,
        )
        self.device = Device(
            *(DEVICE, keys[1]),
            server=SERVER,
            server_key=keys[0].public_key,
            broker=MemoryTransport(self.network, "device"),
            store=store,
            **named,
        )
        for agent in (self.server, self.device):
            agent.start(threads=False)
        self.settle()
        assert self.device.joined

    def settle(self):
        for _ in range(10):
            self.network.advance(self.now)
            self.server.step()
            self.device.step()


@pytest.mark.parametrize("store", [None, MemoryStore], ids=["without a store", "with a store"])
def test_an_inline_handler_may_take_a_lock_under_which_the_application_changes_keys(store):
    pair = Pair(None if store is None else store())
    lock, inside, holds, got = threading.Lock(), threading.Event(), threading.Event(), []

    def changes_keys():
        inside.wait(10)
        with lock:
            holds.set()
            pair.device.engine.keys.remove(0x99)

    def handler(_server):
        inside.set()
        holds.wait(10)
        got.append(lock.acquire(timeout=2))

    pair.device.on_action(3, inline=True)(handler)
    application = threading.Thread(target=changes_keys)
    application.start()
    pair.server.action(DEVICE, 3)
    pair.settle()
    application.join()
    assert got == [True]


def test_an_inline_action_is_done_and_answered_in_the_turn_that_hears_it():
    pair, done = Pair(), []
    pair.device.on_action(3, inline=True)(lambda server: done.append(pair.device.handling.partner))
    answer = pair.server.action(DEVICE, 3)
    pair.server.step()
    pair.network.advance(pair.now)
    pair.device.engine.turn()  # one
    pair.network.advance(pair.now)
    pair.server.step()
    assert answer.result(0) is Status.ACTION_SUCCESS
    assert done == [SERVER]
    assert pair.device.handling is None
    assert pair.device.debug.handlers == 0


@pytest.mark.parametrize(
    ("result", "answer"),
    [(False, Status.ACTION_FAIL), (ValueError("no"), Status.ACTION_FAIL), (None, Status.ACTION_SUCCESS)],
)
def test_what_an_inline_handler_returns_or_raises_is_answered(result, answer):
    pair = Pair()

    @pair.device.on_action(3, inline=True)
    def do(server):
        if isinstance(result, Exception):
            raise result
        return result

    asked = pair.server.action(DEVICE, 3)
    pair.settle()
    assert asked.result(0) is answer


def test_with_a_store_an_action_is_durable_before_its_inline_handler_runs():
    store = MemoryStore()
    pair, kept = Pair(store), []
    pair.device.on_action(3, inline=True)(lambda server: kept.extend(store.copy().open(DEVICE).exchanges))
    asked = pair.server.action(DEVICE, 3)
    pair.server.step()
    pair.network.advance(pair.now)
    store.failures = 1
    pair.device.engine.turn()
    assert kept == []  # refused: nothing has happened yet
    pair.settle()
    assert any("RUNNING" in record.body for record in kept)
    assert asked.result(0) is Status.ACTION_SUCCESS


def test_handlers_of_an_event_loop_cannot_run_inline():
    key = PrivateKey.generate("ed25519")
    transport = MemoryTransport(MemoryNetwork(), "device")
    device = AsyncDevice(DEVICE, key, server=SERVER, server_key=key.public_key, broker=transport)
    with pytest.raises(TypeError, match="event loop"):
        device.on_action(3, inline=True)


def test_inline_is_a_bool():
    with pytest.raises(TypeError, match="inline"):
        Pair().device.on_action(3, inline=1)


@pytest.mark.process
@pytest.mark.parametrize("inline", [False, True])
def test_over_mqtt_without_a_store_the_transports_thread_takes_the_turns(inline):
    keys = [PrivateKey.generate("ed25519") for _ in range(2)]
    ran = []
    with LocalBroker() as broker:
        server = Server(SERVER, keys[0], devices=KeyRing({DEVICE: keys[1].public_key}), broker=broker.url)
        device = Device(DEVICE, keys[1], server=SERVER, server_key=keys[0].public_key, broker=broker.url)
        device.on_action(3, inline=inline)(lambda partner: ran.append(threading.current_thread().name))
        with server, device:
            device.wait_joined(30)
            for _ in range(50):
                assert server.action(DEVICE, 3).result(30) is Status.ACTION_SUCCESS
            assert {name == "srup-mqtt" for name in ran} == {inline}
            threads = {thread.name for thread in threading.enumerate()}
            assert not threads & {f"srup-{SERVER:x}", f"srup-{DEVICE:x}"}
            assert device.debug.alive


@pytest.mark.process
def test_an_inline_handler_may_stop_its_agent():
    keys = [PrivateKey.generate("ed25519") for _ in range(2)]
    with LocalBroker() as broker:
        server = Server(SERVER, keys[0], devices=KeyRing({DEVICE: keys[1].public_key}), broker=broker.url)
        device = Device(DEVICE, keys[1], server=SERVER, server_key=keys[0].public_key, broker=broker.url)
        device.on_action(3, inline=True)(lambda partner: device.stop())
        with server, device:
            device.wait_joined(30)
            server.action(DEVICE, 3)
            assert device.engine.stopped.wait(30)


@pytest.mark.process
def test_a_fault_in_a_turn_on_the_transports_thread_ends_the_agent():
    def broken(now):
        raise TypeError("nobody has foreseen this")

    with LocalBroker() as broker:
        server = Server(SERVER, PrivateKey.generate("ed25519"), devices=KeyRing(), broker=broker.url)
        told, raised = [], []
        server.on_fault(told.append)

        def run():
            try:
                server.run()
            except TypeError as error:
                raised.append(error)

        running = threading.Thread(target=run)
        running.start()
        wait_until(lambda: server.connected)
        server.engine.session.deadline = server.engine.session.changes = lambda: broken(0.0)
        server.action(DEVICE, 1)  # which takes a turn
        running.join(30)
        assert told == raised == [server.engine.fault]
        assert server.stopped
        with pytest.raises(TransportError, match="by a fault"):
            server.action(DEVICE, 1).result(30)


@pytest.mark.process
@pytest.mark.parametrize("where", ["outside", "in a handler"])
def test_an_agent_whose_turns_the_transports_thread_takes_stops_at_once(where):
    keys, took = [PrivateKey.generate("ed25519") for _ in range(2)], []
    with LocalBroker() as broker:
        server = Server(SERVER, keys[0], devices=KeyRing({DEVICE: keys[1].public_key}), broker=broker.url)
        device = Device(DEVICE, keys[1], server=SERVER, server_key=keys[0].public_key, broker=broker.url)

        def stop(agent):
            began = time.monotonic()
            agent.stop()
            took.append(time.monotonic() - began)

        server.on_action(1)(lambda _: stop(server))
        server.start()
        device.start()
        device.wait_joined(10)
        if where == "in a handler":
            device.action(SERVER, 1)
        else:
            stop(server)
        wait_until(lambda: took)
        stop(device)
    assert max(took) < 2.0


def calls_of(job):
    """Return how many functions a job calls: how much work it is, on any machine."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        job()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.slow
def test_the_4000th_command_to_one_device_is_no_more_work_than_the_first():
    """What is remembered of a partner is counted, not scanned."""
    pair = Pair()
    pair.device.on_action(3, inline=True)(lambda server: None)

    def round_trip():
        future = pair.server.action(DEVICE, 3)
        for agent in (pair.server, pair.device, pair.server):
            agent.step()
            pair.network.advance(pair.now)
        pair.server.step()
        pair.now += 0.02
        assert future.result(0) is Status.ACTION_SUCCESS

    def round_trips():
        for _ in range(50):
            round_trip()

    round_trips()
    first = calls_of(round_trips)
    for _ in range(4_000):
        round_trip()
    assert calls_of(round_trips) <= 1.1 * first


class Bookkeeping(Duty):
    """Notes when a turn comes to its end."""

    def __init__(self, noted):
        self._noted = noted

    def close(self, transaction, now):
        self._noted.append("close")


@pytest.mark.parametrize(("store", "expected"), [(None, [("flush", 1), "close"]), (MemoryStore, ["close"])])
def test_an_answer_is_sent_before_the_rest_of_its_turn_if_nothing_has_to_be_durable_first(store, expected):
    pair = Pair(None if store is None else store())
    pair.device.on_action(3, inline=True)(lambda server: None)
    engine, noted = pair.device.engine, []
    engine.add(Bookkeeping(noted))
    sent = pair.device.counts["sent"]
    engine.flush = lambda: noted.append(("flush", pair.device.counts["sent"] - sent))
    future = pair.server.action(DEVICE, 3)
    pair.server.step()
    pair.network.advance(pair.now)
    engine.turn()
    assert noted == expected
    pair.settle()
    assert future.result(0) is Status.ACTION_SUCCESS
