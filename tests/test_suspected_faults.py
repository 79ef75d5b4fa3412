"""Faults that a reader of the code suspected: what should happen, shown on running agents."""

import os
import threading
from concurrent.futures import Executor, Future
from contextlib import suppress
from enum import IntEnum
from functools import partial

import pytest

from srup import (
    Activate,
    Data,
    DeregisterCommand,
    Initiate,
    KeyRing,
    PolicyError,
    PrivateKey,
    ResignRequest,
    Response,
    Server,
    SrupError,
    Status,
    SyndicatedEndRequest,
    SyndicatedTerminate,
    TerminateCommand,
    TransportError,
    decode,
    peek,
)
from srup.monitor import liveness, readiness
from srup.store import MemoryStore
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, key_of, wait_until
from .hostile import Broker, HostileFleet
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, VALUE, Federation

pytestmark = pytest.mark.backend

DEVICE, OTHER = 0xD0, 0xD1
RIVAL = 0x5F
LAMP = LAMPS[1]


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def fleet(tmp_path):
    with HostileFleet(tmp_path, 2) as fleet:
        yield fleet.joined()


@pytest.fixture
def durable(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        yield fleet.joined()


# Values, receipts and refusals.


def test_a_refusal_that_gets_lost_is_not_followed_by_a_receipt(fleet):
    fleet.works()
    fleet.hand.hold(Response, by=DEVICE)
    future = fleet.server.send_data(DEVICE, "nobody takes this", b"1", confirmed=True, lifetime=600)
    fleet.settle()
    fleet.hand.hold()
    fleet.run(future.done, 700)
    assert isinstance(future.exception(0), PolicyError)


def test_a_refusal_that_gets_lost_is_known_after_a_restart(durable):
    durable.works()
    durable.hand.hold(Response, Data, by=SERVER)
    future = durable.device.send("nobody takes this", b"1", confirmed=True, lifetime=600)
    durable.settle()
    durable.hand.hold()
    durable.restart_server()
    durable.run(future.done, 700)
    assert isinstance(future.exception(0), PolicyError)


def test_control_a_refusal_that_arrives(fleet):
    fleet.works()
    future = fleet.server.send_data(DEVICE, "nobody takes this", b"1", confirmed=True, lifetime=600)
    fleet.settle()
    assert isinstance(future.exception(0), PolicyError)


def test_the_audit_does_not_call_a_repeated_value_accepted(durable):
    durable.works()
    durable.hand.hold(Data, by=SERVER)
    future = durable.device.send("t", b"1", confirmed=True)
    durable.pass_time(30)
    durable.hand.hold()
    durable.run(future.done, 60)
    assert durable.done == [(DEVICE, "t", b"1")]
    rows = [row for row in durable.store(SERVER).audit(partner=DEVICE) if row.type == Data.layout.type]
    assert len(rows) > 1
    assert [row.outcome for row in rows].count("accepted") == 1


def test_a_syndicated_value_is_told_again_after_a_crash(tmp_path):
    assert told_after_a_crash(tmp_path, lambda world: world.lamps[LAMP], syndicated=True) == [b"1", b"1"]


def test_control_a_value_of_ones_own_device_is_told_again_after_a_crash(tmp_path):
    assert told_after_a_crash(tmp_path, lambda world: world.neighbour, syndicated=False) == [b"1", b"1"]


class DurableFederation(Federation):
    """The same with a store at home."""

    home_store = None

    def server(self, identity, network, **options):
        if identity == HOME:
            self.home_store = self.home_store or MemoryStore()
            options["store"] = self.home_store
        return super().server(identity, network, **options)


def told_after_a_crash(tmp_path, source, syndicated):
    """Let home crash while a handler is told a value; return what it was told, before and after."""
    told = []

    def listen(home):
        def handle(*arguments):
            told.append(arguments[-1])
            if len(told) == 1:
                raise Crash

        (home.on_syndicated_data if syndicated else home.on_data)("t")(handle)

    with DurableFederation(tmp_path, scheme="ed25519") as world:
        listen(world.home)
        world.syndicated()
        source(world).send("t", b"1")
        with pytest.raises(Crash):
            world.pass_time(1)
        world.networks["home"].kill(f"server-{HOME:x}")
        crashed = world.home
        world.everybody[0] = world.home = world.server(HOME, "home")
        listen(world.home)
        world.home.start(threads=False)
        world.pass_time(5)
        crashed.stop(0.0)
    return told


def test_a_value_that_expires_does_not_count_as_an_offer_of_a_key(fleet):
    assert taken_by(fleet, value=True) == {DEVICE, OTHER}


def test_control_who_has_taken_a_key_without_any_value(fleet):
    assert taken_by(fleet, value=False) == {DEVICE, OTHER}


def taken_by(fleet, value):
    """Rotate the server's key while a value to the first device expires; return who has taken it."""
    fleet.works()
    fleet.hand.hold(Response, Data, by=DEVICE)
    if value:
        future = fleet.server.send_data(DEVICE, "t", b"1", confirmed=True, lifetime=60)
    rotated = fleet.server.rotate_key(PrivateKey.generate("ed25519"), overlap=300.0)
    fleet.settle()
    fleet.pass_time(90)
    assert not value or future.exception(0) is not None
    fleet.hand.deliver(*(held for held in fleet.hand.held if held[1][1] == Response.layout.type))
    fleet.run(rotated.done, 400)
    return rotated.result(0)


def test_a_late_answer_does_not_count_for_the_key_that_is_offered_now(fleet):
    """A device has taken one key, and says so when it is being asked about the next."""
    fleet.works()
    fleet.hand.hold(Response, by=DEVICE)
    first = fleet.server.rotate_key(PrivateKey.generate("ed25519"), overlap=5.0)
    fleet.run(first.done, 60)
    assert first.result(0) == {OTHER}
    fleet.hand.hold(Response, Data)
    second = fleet.server.rotate_key(PrivateKey.generate("ed25519"), overlap=30.0)
    fleet.settle()
    [late, *_] = (held for held in fleet.hand.held if peek(held[1]).type == Response.layout.type)
    fleet.hand.deliver(late)
    fleet.hand.hold(Response, Data)
    fleet.run(second.done, 60)
    assert second.result(0) == frozenset()


# Updates.


class TwoServers(HostileFleet):
    """A device with a version floor, and another server that may send for it."""

    def __init__(self, tmp_path):
        self.rival = None
        super().__init__(tmp_path, 0)
        self.add(DEVICE, version_floor=1, servers={RIVAL: key_of(RIVAL).public_key}, commanders=[RIVAL])
        self.rival = Server(
            RIVAL,
            key_of(RIVAL),
            devices=KeyRing({DEVICE: key_of(DEVICE).public_key}),
            broker=MemoryTransport(self.network, "rival"),
            clock=self.clock,
            entropy=self.randbytes,
        )

    @property
    def agents(self):
        return [*super().agents, *([self.rival] if self.rival else [])]


def activated_elsewhere(tmp_path, together):
    """Be told to activate version 9 and dropped, in one batch or not; return how version 5 of another server ends."""
    with TwoServers(tmp_path) as fleet:
        fleet.start().settle()
        activated = []
        fleet.device.on_activate(lambda path: activated.append(path.name))
        order = fleet.server.update(DEVICE, URL, DIGEST, version=9, hold=True)
        fleet.settle()
        assert order.state is UpdateState.READY
        if together:
            fleet.hand.hold(Activate, DeregisterCommand, by=SERVER)
            order.activate()
            fleet.server.step()
        fleet.server.deregister(DEVICE)
        fleet.server.step()
        fleet.hand.deliver()
        assert activated == []
        fleet.rival.command_join(DEVICE)
        fleet.settle()
        assert fleet.rival.members == {DEVICE}
        order = fleet.rival.update(DEVICE, URL, DIGEST, version=5)
        fleet.settle()
        return order.state


def test_the_floor_is_not_raised_by_an_activation_that_never_was(tmp_path):
    assert activated_elsewhere(tmp_path, together=True) is UpdateState.ACTIVATED


def test_control_the_floor_without_such_an_activation(tmp_path):
    assert activated_elsewhere(tmp_path, together=False) is UpdateState.ACTIVATED


def test_an_order_that_ended_with_the_membership_is_no_success(fleet):
    """Activate and TerminateCommand come in one batch, then the device is back and the order is repeated."""
    order = fleet.server.update(DEVICE, URL, DIGEST, hold=True)
    fleet.settle()
    [(_, initiate)] = fleet.hand.heard(Initiate, SERVER)
    fleet.hand.hold(Activate, TerminateCommand, by=SERVER)
    order.activate()
    fleet.server.step()
    fleet.server.terminate(DEVICE)
    fleet.server.step()
    fleet.hand.deliver()
    assert not (fleet.device.firmware / "current").exists()
    fleet.device.join()
    fleet.settle()
    before = len(fleet.hand.heard(Response, DEVICE))
    fleet.hand.write(Initiate, SERVER, DEVICE, token=decode(initiate).token, url=URL, digest=DIGEST)
    [(_, answer)] = fleet.hand.heard(Response, DEVICE)[before:]
    assert decode(answer).verify(key_of(DEVICE).public_key).status == Status.UPDATE_FAIL_FILE


# Memberships and commits.


def test_wait_joined_waits_for_the_commit(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        fleet.start()
        fleet.device.step()
        fleet.server.step()
        fleet.store(DEVICE).failures = 1
        fleet.device.step()
        assert fleet.device.store_error is not None
        with pytest.raises(TimeoutError):
            fleet.device.wait_joined(0)
        fleet.settle()
        fleet.device.wait_joined(0)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_member_whose_key_is_gone_is_not_commanded(fleet, how):
    if how == "removed":
        fleet.ring.remove(DEVICE)
    else:
        fleet.ring.replace(DEVICE, PrivateKey.generate("ed25519").public_key)
    future = fleet.server.action(DEVICE, 1)
    fleet.settle()
    assert fleet.done == []
    assert isinstance(future.exception(0), PolicyError)
    assert fleet.server.members == {OTHER}


@pytest.mark.parametrize("how", ["removed", "replaced", "revoked"])
def test_a_member_whose_key_is_gone_is_none_although_nobody_asks(fleet, how):
    left = []
    fleet.server.on_left(left.append)
    waiting = fleet.server.send_data(DEVICE, "t", b"1", confirmed=True, lifetime=600)
    fleet.network.cut(f"device-{DEVICE:x}")
    asked = fleet.server.identify(DEVICE)
    fleet.settle()
    if how == "removed":
        fleet.ring.remove(DEVICE)
    elif how == "replaced":
        fleet.ring.replace(DEVICE, PrivateKey.generate("ed25519").public_key)
    else:
        fleet.ring.revoke(DEVICE)
    fleet.settle()
    assert fleet.server.members == {OTHER}
    assert left == [DEVICE]
    for future in (asked, waiting):
        assert isinstance(future.exception(0), PolicyError)
    before = len(fleet.network.log)
    fleet.pass_time(100)
    assert not [topic for topic, _ in fleet.network.log[before:] if topic == f"SRUP/{DEVICE:x}"]


def test_a_device_that_is_registered_again_can_be_told_to_join(fleet):
    key = fleet.ring[DEVICE]
    fleet.ring.remove(DEVICE)
    fleet.settle()
    fleet.ring.add(DEVICE, key)
    future = fleet.server.command_join(DEVICE)
    fleet.settle()
    assert future.result(0) is Status.JOIN_SUCCESS
    assert fleet.server.members == {DEVICE, OTHER}


def test_whoever_was_told_to_join_and_lost_its_key_is_told_no_more(fleet):
    stranger = 0xD7
    fleet.ring.add(stranger, PrivateKey.generate("ed25519").public_key)
    future = fleet.server.command_join(stranger)
    fleet.settle()
    fleet.ring.remove(stranger)
    fleet.settle()
    assert isinstance(future.exception(0), PolicyError)


def test_a_ring_does_not_keep_servers_that_have_stopped(fleet):
    ring = fleet.ring
    fleet.server.stop()
    ring.remove(DEVICE)
    assert not len(fleet.server.engine.inbox)


def resigned_and_started(tmp_path, durable):
    """Let a device resign and start anew before its server has heard of that; return the fleet when all is said."""
    fleet = HostileFleet(tmp_path, durable=durable)
    fleet.joined()
    fleet.network.cut("server")
    fleet.device.resign()
    fleet.device.step()
    fleet.network.kill(f"device-{DEVICE:x}")
    fleet.pass_time(1)
    fleet.add(DEVICE).start(threads=False)  # whoever starts a device wants it in
    fleet.device.step()
    fleet.network.heal("server")
    fleet.pass_time(120)
    return fleet


def test_a_device_that_has_resigned_joins_when_it_is_started_again(tmp_path):
    """This is the way of seed 405 with 12 devices, 500 steps and stores."""
    with resigned_and_started(tmp_path, durable=True) as fleet:
        assert fleet.all_joined()


def test_control_a_device_that_has_forgotten_its_resignation(tmp_path):
    with resigned_and_started(tmp_path, durable=False) as fleet:
        assert fleet.all_joined()


# Syndications.


@pytest.fixture
def world(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        yield world.syndicated()


def begun_again(world):
    begun = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
    world.pass_time(1)
    assert begun.result(0) is None
    assert world.home.shared_devices(HOME_ID) == tuple(world.shared)


def goes_on(world):
    world.pass_time(60)
    assert world.home.shared_devices(HOME_ID) == tuple(world.shared)
    future = world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.pass_time(1)
    assert future.result(0) is Status.ACTION_SUCCESS


ENDS = {
    "home's, on its own network": ("home", SyndicatedEndRequest, HOME),
    "home's, on the other network": ("away", SyndicatedEndRequest, AWAY_ID),
    "away's, on its own network": ("away", SyndicatedTerminate, AWAY),
    "away's, on the other network": ("home", SyndicatedTerminate, HOME_ID),
}


def end_held(world, which):
    """End the syndication, keep that back, and begin another one; return the hand that has it."""
    network, cls, by = ENDS[which]
    hand = Broker(world, world.networks[network])
    hand.hold(cls, by=by)
    if cls is SyndicatedTerminate:
        world.away.terminate_syndication(AWAY_ID)
        world.pass_time(1)
    world.home.end_syndication(HOME_ID)
    world.pass_time(1)
    assert hand.held
    hand.hold()
    begun_again(world)
    return hand


@pytest.mark.parametrize("which", ENDS)
def test_an_end_that_comes_late_does_not_end_a_newer_syndication(world, which):
    hand = end_held(world, which)
    hand.deliver()
    goes_on(world)


@pytest.mark.parametrize("which", ENDS)
def test_control_an_end_that_got_lost(world, which):
    end_held(world, which)
    goes_on(world)


def test_no_ghost_of_a_syndication_device_that_has_not_waited_for_its_join(tmp_path):
    """The owner of the away server compares for a while, and home does not want it any more meanwhile."""
    with Federation(tmp_path, scheme="ed25519", join="human") as world:
        pending = []
        world.away.on_moderation(pending.append)
        world.bridge.on_join_value(lambda value: None)
        world.start()
        world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.pass_time(1)
        [join] = pending
        world.home.end_syndication(HOME_ID)
        world.pass_time(1)
        assert world.bridge.away is None
        with suppress(PolicyError):  # it may have been withdrawn
            join.accept()
        world.pass_time(600)
        assert AWAY_ID not in world.away.members


def test_no_ghost_of_a_syndication_device_whose_resignation_got_lost(world):
    hand = Broker(world, world.networks["away"])
    hand.hold(ResignRequest, by=AWAY_ID)
    world.home.end_syndication(HOME_ID)
    world.pass_time(1)
    hand.hold()
    world.pass_time(600)
    assert AWAY_ID not in world.away.members


def test_control_a_resignation_that_arrives(world):
    world.home.end_syndication(HOME_ID)
    world.pass_time(1)
    assert AWAY_ID not in world.away.members


# Threads and processes.


class NumberedTransport(MemoryTransport):
    """Notes in which order messages are settled; ``slow`` is called by the first one that settles out of turn."""

    def __init__(self, network, client_id):
        super().__init__(network, client_id)
        self.arrived = 0
        self.settled = []
        self.slow = None

    def start(self, on_delivery, on_state):
        def deliver(delivery):
            self.arrived += 1
            on_delivery(delivery._replace(ack=partial(self.settle, self.arrived, delivery.ack)))

        super().start(deliver, on_state)

    def settle(self, number, ack):
        if self.slow is not None and threading.current_thread().name.endswith("application_0"):
            slow, self.slow = self.slow, None
            slow()
        self.settled.append(number)
        ack()


@pytest.mark.slow
def test_messages_are_settled_in_the_order_of_their_arrival(tmp_path):
    """Handlers have fallen behind; one that catches up settles messages, and meanwhile another one comes in."""
    with HostileFleet(tmp_path) as fleet:
        fleet.joined().server.stop()
        transport, gate = NumberedTransport(fleet.network, "server"), threading.Event()
        fleet.server = server = fleet.crash_server(broker=transport, devices=fleet.ring, store=None)
        server.on_data("t")(lambda *_: gate.wait(30))
        server.start()
        fleet.device.join()
        fleet.device.step()
        wait_until(lambda: server.members)

        def say():
            wire = fleet.hand.signed(Data, DEVICE, SERVER, sequence_id=fleet.hand.newer_id(), data_id="t", data=b"1")
            fleet.network.inject(f"SRUP/{DEVICE:x}", wire)

        for _ in range(7_500):
            say()
        wait_until(lambda: server.counts["verified"] > 7_500)

        def slow():
            """Another message comes in while this one is being settled; where nobody waits, it is settled first."""
            before = len(transport.settled)
            say()
            settled = threading.Event()
            for _ in range(50):
                if len(transport.settled) > before or settled.wait(0.01):
                    return

        transport.slow = slow
        gate.set()
        wait_until(lambda: len(transport.settled) == transport.arrived)
        assert transport.slow is None
        assert transport.settled == sorted(transport.settled)


class Command(IntEnum):
    """How an application may well write its actions."""

    OPEN = 1


class Url(str):
    """A URL of an application's own type."""

    __slots__ = ()


class Known(IntEnum):
    """How an application may well write its identities."""

    LAMP = DEVICE
    RIVAL = RIVAL


ODD = {
    "an action of an IntEnum": lambda server: server.action(DEVICE, Command.OPEN),
    "a device of an IntEnum": lambda server: server.action(Known.LAMP, 1),
    "a url of a type of one's own": lambda server: server.update(DEVICE, Url(URL), DIGEST),
    "a server of an IntEnum": lambda server: server.command_join(DEVICE, Known.RIVAL),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_store_cannot_keep_does_not_end_the_thread(tmp_path, what):
    with HostileFleet(tmp_path, durable=True) as fleet:
        for agent in fleet.agents:
            agent.start()
        wait_until(fleet.all_joined)
        with suppress(TypeError, ValueError, SrupError):  # that is as good
            ODD[what](fleet.server)
        assert fleet.server.action(DEVICE, 2).result(5.0) is Status.ACTION_SUCCESS
        assert fleet.server.vitals().alive


def with_threads(fleet):
    for agent in fleet.agents:
        agent.start()
    wait_until(fleet.all_joined)
    return fleet


def break_turns(server):
    """Let the next turn of a server find something that nobody has foreseen."""

    def broken():
        raise TypeError("nobody has foreseen this")

    server.engine.session.deadline = server.engine.session.changes = broken


def test_a_fault_in_a_turn_ends_the_agent_and_everybody_is_told(tmp_path, caplog):
    with HostileFleet(tmp_path, durable=True) as fleet:
        server, told = with_threads(fleet).server, []
        server.on_fault(told.append)
        waiting = server.send_data(0xD9, "t", b"1")
        running, raised = threading.Thread(target=lambda: raised.append(fault_of(server.run))), []
        running.start()
        break_turns(server)
        asked = server.action(DEVICE, 1)
        for future in (asked, waiting):
            assert isinstance(future.exception(30), TransportError)
        running.join(30)
        assert told == raised
        assert str(raised[0]) == "nobody has foreseen this"
        assert server.stopped
        assert "a fault in its turn has ended it" in caplog.text
        vitals = server.vitals()
        assert [problem.part for problem in (*liveness(vitals), *readiness(vitals))] == ["thread", "agent"]
        with pytest.raises(TransportError, match="by a fault"):
            server.action(DEVICE, 1).result(30)
        server.stop()
        assert (DEVICE, 1) not in fleet.done
        again = fleet.crash_server()
        fleet.listen(again)
        again.start()
        fleet.server = again
        assert fleet.server.action(DEVICE, 1).result(30) is Status.ACTION_SUCCESS


def test_control_a_server_that_is_stopped(tmp_path):
    with HostileFleet(tmp_path) as fleet:
        server, told = with_threads(fleet).server, []
        server.on_fault(told.append)
        server.stop()
        assert fault_of(server.run) is None
        assert told == liveness(server.vitals()) == []


def fault_of(run):
    try:
        run()
    except TypeError as error:
        return error
    return None


def test_jobs_that_end_while_they_are_looked_at_do_no_harm(fleet):
    """One that is asked whether it was cancelled ends another one, as its thread may just then."""
    handlers, jobs = fleet.server.engine.handlers, []

    class Rushing(Future):
        def cancelled(self):
            for job in jobs:
                if job is not self and not job.done():
                    job.set_result(None)
            return super().cancelled()

    class Rush(Executor):
        def submit(self, fn, /, *args, **kwargs):
            jobs.append(Rushing())
            return jobs[-1]

    for _ in range(8):
        handlers.run(None, Rush(), lambda: None)
    assert len(handlers.running()) == 8
    assert len(handlers.running()) < 8
    fleet.server.stop()


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_forks_after_the_start_is_told_so(tmp_path):
    with HostileFleet(tmp_path) as fleet:
        for agent in fleet.agents:
            agent.start()
        wait_until(fleet.all_joined)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                fleet.server.action(DEVICE, 1).result(3.0)
            except TimeoutError:
                status = 2
            except Exception:  # noqa: BLE001 - whatever it says, it says something
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_that_leaves_the_block_stops_nothing_of_its_parent(tmp_path):
    with HostileFleet(tmp_path, durable=True) as fleet:
        for agent in fleet.agents:
            agent.start()
        wait_until(fleet.all_joined)
        child = os.fork()
        if child == 0:
            try:
                for agent in fleet.agents:
                    agent.stop()
            finally:
                os._exit(sum(agent.engine.stopping.is_set() for agent in fleet.agents))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


# What an application gets wrong.


@pytest.mark.parametrize("name", ["on_data", "on_action", "on_joined", "on_member", "on_left", "on_join"])
def test_a_handler_with_the_wrong_parameters_is_refused_when_it_is_registered(fleet, name):
    register = getattr(fleet.server, name)
    decorate = register(1) if name == "on_action" else register("t") if name == "on_data" else register
    with pytest.raises(TypeError):
        decorate(lambda: None)


MISTAKES = {
    "action": lambda server: server.action("d1", 3),
    "identify": lambda server: server.identify("d1"),
    "terminate": lambda server: server.terminate("d1"),
    "deregister": lambda server: server.deregister("d1"),
    "command_join": lambda server: server.command_join("d1"),
    "send_data": lambda server: server.send_data("d1", "t", b"1"),
    "revoke": lambda server: server.revoke("d1"),
    "update": lambda server: server.update("d1", URL, DIGEST),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_device_that_is_no_number_is_named(fleet, name):
    def mistake():
        future = MISTAKES[name](fleet.server)
        fleet.settle()
        future.result(0)

    with pytest.raises((TypeError, ValueError), match="device"):
        mistake()
