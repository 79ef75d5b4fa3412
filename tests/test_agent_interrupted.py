"""Commands that are interrupted in any of their states: an end goes away for good, or starts anew without a memory."""

from concurrent.futures import Future

import pytest

from srup import Policy, Server, Status, UnansweredError, UpdateError
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, Fleet, key_of

DAY = 86400.0
BOUND = Policy(require_bound_tokens=True, lifetime=3600.0, update_lifetime=7200.0)


def never(*_):
    """Take a job for an executor that is busy until the process ends."""
    future = Future()
    future.set_result(None)
    return future


class Interrupted(Fleet):
    """A joined device and its server, and an update that is brought to a state of the server's."""

    def __init__(self, tmp_path):
        super().__init__(tmp_path, server_policy=BOUND, device_policy=BOUND)
        self.joined()
        self.identity = self.device.identity
        self.device.on_activate(lambda path: None)
        self.device.on_action(1)(lambda server: None)

    def order(self, state):
        """Order an update and let it come to this state, where it stays while nobody does anything."""
        if state is UpdateState.FETCHING:
            self.device.engine.handlers.downloads.submit = never  # a download that takes its time
        if state is UpdateState.ACTIVATING:
            self.device.engine.handlers.submit = never  # handlers whose turn does not come
        order = self.server.update(self.identity, URL, DIGEST, hold=state is UpdateState.READY)
        self.settle()
        assert order.state is state
        return order

    def restart_device(self):
        self.device.stop()
        device = self.add(self.identity)
        device.on_activate(lambda path: None)
        device.on_action(1)(lambda server: None)
        device.start(threads=False)
        return device

    def restart_server(self):
        self.server.stop()
        self.server = Server(
            SERVER,
            key_of(SERVER, self.scheme),
            devices=self.ring,
            broker=MemoryTransport(self.network, "server"),
            policy=BOUND,
            clock=self.clock,
            entropy=self.randbytes,
        )
        self.server.start(threads=False)

    def works(self):
        """A new command is carried out, whatever became of the old one."""
        order, action = self.server.update(self.identity, URL, DIGEST), self.server.action(self.identity, 1)
        self.run(lambda: order.done and action.done(), 600)
        assert order.result(0) is UpdateState.ACTIVATED
        assert action.result(0) is Status.ACTION_SUCCESS
        assert self.faults() == 0


@pytest.fixture
def fleet(tmp_path):
    with Interrupted(tmp_path) as fleet:
        yield fleet


STATES = [UpdateState.FETCHING, UpdateState.READY, UpdateState.ACTIVATING]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_an_update_of_a_device_that_is_gone_for_good(fleet, state):
    order = fleet.order(state)
    fleet.network.cut(f"device-{fleet.identity:x}")
    fleet.run(lambda: order.done, 7300)
    with pytest.raises(UnansweredError, match="before the order expired"):
        order.result(0)
    assert order.state is UpdateState.UNANSWERED
    assert fleet.faults() == 0


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (UpdateState.FETCHING, UpdateState.ACTIVATED),  # the order comes again, and the device begins anew
        (UpdateState.READY, UpdateState.FAILED),  # the device does not know what it is to activate
        (UpdateState.ACTIVATING, UpdateState.FAILED),
    ],
    ids=lambda state: state.name,
)
def test_an_update_of_a_device_that_starts_anew(fleet, state, end):
    order = fleet.order(state)
    fleet.restart_device()
    fleet.run(fleet.all_joined, 600)
    if state is UpdateState.READY:
        order.activate()
    fleet.run(lambda: order.done, 3600)
    assert order.state is end
    if end is UpdateState.FAILED:
        with pytest.raises(UpdateError, match="ACTIVATE_FAIL"):
            order.result(0)
    fleet.works()


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_an_update_of_a_server_that_starts_anew(fleet, state):
    """It is lost, and says so; the device forgets it when it expires and takes the next one."""
    handlers = fleet.device.engine.handlers
    submit = handlers.downloads.submit, handlers.submit
    order = fleet.order(state)
    fleet.restart_server()
    with pytest.raises(UnansweredError, match="was stopped"):
        order.result(0)
    handlers.downloads.submit, handlers.submit = submit
    fleet.device.join()
    fleet.run(fleet.all_joined, 600)
    fleet.works()
    fleet.clock.now += 3 * 7200
    fleet.settle()
    open_ones = list(fleet.device.debug.session.known.peers[SERVER].exchanges.values())
    assert not [exchange for exchange in open_ones if isinstance(exchange.state, UpdateState)]


@pytest.mark.parametrize("asking", ["server", "device"])
def test_an_action_whose_other_end_is_gone_or_starts_anew(fleet, asking):
    """Gone: it ends unanswered. New: the request comes again and is done once, by the one that came back."""
    done = []
    fleet.server.on_action(2)(lambda device: done.append("server"))
    fleet.device.on_action(2)(lambda server: done.append("device"))
    ends = {"server": (fleet.server, fleet.identity), "device": (fleet.device, SERVER)}
    agent, partner = ends[asking]
    other = "server" if asking == "device" else f"device-{fleet.identity:x}"
    fleet.network.cut(other)
    lost = agent.action(partner, 2, lifetime=100.0)
    fleet.run(lost.done, 200)
    with pytest.raises(UnansweredError):
        lost.result(0)
    assert agent.counts["unanswered"] >= 1
    kept = agent.action(partner, 2)
    fleet.settle()
    if asking == "server":
        device = fleet.restart_device()
        device.on_action(2)(lambda server: done.append("device anew"))
    else:
        fleet.restart_server()
        fleet.server.on_action(2)(lambda device: done.append("server anew"))
    fleet.network.heal(other)
    fleet.run(kept.done, 3700)
    assert kept.result(0) is Status.ACTION_SUCCESS
    assert done == [f"{'device' if asking == 'server' else 'server'} anew"]


def test_an_action_that_is_being_done_when_the_device_starts_anew(fleet):
    """Nobody knows whether it was done: the device does it again, as far as it knows for the first time."""
    fleet.device.engine.handlers.submit = never
    future = fleet.server.action(fleet.identity, 1)
    fleet.settle()
    assert not future.done()
    fleet.restart_device()
    fleet.run(future.done, 3700)
    assert future.result(0) is Status.ACTION_SUCCESS
