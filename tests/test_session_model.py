"""Two ends over a link that loses, doubles, reorders and replays: what must hold whatever happens (model-based)."""

from collections import Counter
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srup.errors import PolicyError, ReplayError
from srup.session import DeviceSession, Policy, Send, ServerSession
from srup.session import events as e
from srup.session.exchange import MAX_EXCHANGES
from srup.update import UpdateState
from srup.wire import Status

from .session_link import DEVICE, DIGEST, SERVER, T0, URL, Link, nonce

PATIENT = Policy(lifetime=20_000, update_lifetime=20_000, max_retry=60, require_bound_tokens=True)
"""Whatever is asked while the link is bad can still be answered once it is good."""

ENDED = {UpdateState.ACTIVATED, UpdateState.FAILED, UpdateState.UNANSWERED}
OPERATIONS = ["join", "server action", "device action", "identify", "update", "hold", "activate", "data"]
LEAVING = ["resign", "terminate"]


class World:
    """Both ends, their owners, the link and the time."""

    def __init__(self, seed, policy=PATIENT, **faults):
        self.random = Random(seed)
        self.now = T0
        self.link = Link(self.random, T0, **faults)
        self.server = ServerSession(SERVER, policy)
        self.device = DeviceSession(DEVICE, [SERVER], policy, description="a lamp")
        self.prompt = False  # owners decide at once
        self.later = []  # what an owner does next: (time, function)
        self.asked = set()  # (end, token) of every command but joins
        self.joins = []  # the same of joins, in order: a later one takes the place of those before it
        self.ended = Counter()  # how often each of them came to an end
        self.outcome = {}
        self.done = Counter()  # what was carried out: (kind, end, token)
        self.held = []
        self.refusals = Counter()

    def end(self, identity):
        return self.server if identity == SERVER else self.device

    def owner(self, function, *arguments):
        """Let an owner decide something soon."""
        pause = 0 if self.prompt else self.random.choice([0, 0.1, 3, 30])
        self.later.append((self.now + pause, function, arguments))

    def perform(self, me, outputs):
        for output in outputs:
            if isinstance(output, Send):
                assert output.to == (DEVICE if me == SERVER else SERVER)
                self.link.send(output.message, self.now)
            else:
                self.told(me, output)
        self.check_bounds()

    def command(self, me, method, *arguments, **options):
        try:
            outputs = method(*arguments, self.now, nonce(), **options)
        except PolicyError:
            self.refusals["command"] += 1
            return
        if method.__name__ == "join":
            self.joins.append((me, outputs[0].message.token))
        elif method.__name__ not in ("data", "terminate"):
            self.asked.add((me, outputs[0].message.token))
        self.perform(me, outputs)

    def decide(self, me, method, *arguments):
        try:
            outputs = method(*arguments, self.now)
        except PolicyError:
            self.refusals["decision"] += 1
            return
        self.perform(me, outputs)

    def told(self, me, event):
        session, peer, token = self.end(me), event.peer, event.token
        match event:
            case e.JoinRequested():
                self.owner(self.decide, me, session.answer_join, peer, token, Status.JOIN_SUCCESS)
            case e.ActionRequested():
                self.done["action", me, token] += 1
                status = self.random.choice([Status.ACTION_SUCCESS, Status.ACTION_FAIL])
                self.owner(self.decide, me, session.answer_action, peer, token, status)
            case e.FetchRequested():
                self.done["fetch", me, token] += 1
                if self.random.random() < 0.8:
                    self.owner(self.decide, me, session.fetched, peer, token)
                else:
                    self.owner(self.decide, me, session.fetch_failed, peer, token, Status.UPDATE_FAIL_DIGEST)
            case e.ActivationRequested():
                self.done["activation", me, token] += 1
                self.owner(self.decide, me, session.activated, peer, token)
            case e.UpdateChanged():
                if event.reason and self.outcome.get((me, token)) is UpdateState.FAILED:
                    self.done["late reason", me, token] += 1  # it is told once more, when the text has been overtaken
                elif event.state in ENDED:
                    self.finish(me, token, event.state)
                elif event.state is UpdateState.READY:
                    self.held.append(token)
            case e.JoinAnswered() if me == DEVICE:
                self.finish(me, token, event.status)
            case e.Left() if (me, token) in self.asked:
                self.finish(me, token, "left")
            case e.ActionAnswered() | e.Identified():
                self.finish(me, token, "answered")
            case e.Unanswered():
                self.finish(me, token, "unanswered")

    def finish(self, me, token, outcome):
        self.ended[me, token] += 1
        self.outcome[me, token] = outcome

    def check_bounds(self):
        for session in (self.server, self.device):
            known = sum(len(partner.exchanges) for partner in session.known.peers.values())
            assert session.known.size == known <= 2 * MAX_EXCHANGES
            assert len(session.known.timers) <= 65 + 4 * known
        assert all(count == 1 for count in self.done.values()), self.done
        assert all(count == 1 for count in self.ended.values()), self.ended

    def run(self, operation):
        server, device = self.server, self.device
        match operation:
            case "join":
                self.command(DEVICE, device.join, SERVER)
            case "server action":
                self.command(SERVER, server.action, DEVICE, 7)
            case "device action":
                self.command(DEVICE, device.action, SERVER, 8)
            case "identify":
                self.command(SERVER, server.identify, DEVICE)
            case "update" | "hold":
                self.command(SERVER, server.update, DEVICE, URL, DIGEST, hold=operation == "hold")
            case "activate" if self.held:
                self.decide(SERVER, server.activate, DEVICE, self.random.choice(self.held))
            case "data":
                self.command(DEVICE, device.data, SERVER, "x", b"1")
                self.command(SERVER, server.data, DEVICE, "x", b"1")
            case "resign":
                self.command(DEVICE, device.resign, SERVER)
            case "terminate":
                self.command(SERVER, server.terminate, DEVICE)

    def next_due(self):
        dues = [self.link.due(), self.server.deadline(), self.device.deadline(), *[due for due, *_ in self.later]]
        return min((due for due in dues if due is not None), default=None)

    def advance(self, until):
        """Let everything happen that is due by then."""
        while (due := self.next_due()) is not None and due <= until:
            self.now = max(self.now, due)
            ready = [entry for entry in self.later if entry[0] <= self.now]
            self.later = [entry for entry in self.later if entry[0] > self.now]
            for _, function, arguments in ready:
                function(*arguments)
            while (due := self.link.due()) is not None and due <= self.now:
                self.hear(self.link.take())
            for me in (SERVER, DEVICE):
                self.perform(me, self.end(me).tick(self.now))
                for partner in self.end(me).receipts_due(self.now):  # a join asks for one
                    self.perform(me, self.end(me).receipt(partner, self.now, nonce()))
        self.now = max(self.now, until)

    def hear(self, message):
        me = DEVICE if message.sender_id == SERVER else SERVER
        try:
            outputs = self.end(me).receive(message, self.now, nonce())
        except (PolicyError, ReplayError) as error:
            self.refusals[type(error).__name__] += 1
        else:
            self.perform(me, outputs)


faults = st.fixed_dictionaries(
    {
        "loss": st.sampled_from([0.0, 0.2, 0.6]),
        "duplicate": st.sampled_from([0.0, 0.3]),
        "replay": st.sampled_from([0.0, 0.3]),
        "delay": st.sampled_from([0.0, 2.0, 40.0]),
    }
)
pauses = st.sampled_from([0.0, 0.5, 5.0, 60.0])


def script(operations):
    return st.lists(st.tuples(st.sampled_from(operations), pauses), max_size=40)


def play(world, steps):
    world.run("join")
    for operation, pause in steps:
        world.advance(world.now + pause)
        world.run(operation)


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32), faults=faults, steps=script(OPERATIONS))
@example(
    seed=1,
    faults={"loss": 0.6, "duplicate": 0.3, "replay": 0.3, "delay": 40.0},
    steps=[(operation, 5.0) for operation in OPERATIONS * 5],
)
@example(  # the answer to the first join is repeated, and overtakes that to the second
    seed=176,
    faults={"loss": 0.2, "duplicate": 0.0, "replay": 0.0, "delay": 40.0},
    steps=[("server action", 5.0), ("join", 5.0), ("server action", 60.0)],
)
def test_every_command_is_answered_once_the_link_has_healed(seed, faults, steps):
    world = World(seed, **faults)
    play(world, steps)
    world.link.heal()
    world.advance(world.now + 600)
    for token in world.held:  # the operator lets go what was held
        world.decide(SERVER, world.server.activate, DEVICE, token)
    world.advance(world.now + 600)
    assert set(world.ended) - set(world.joins) == world.asked
    assert world.joins[-1] in world.ended
    assert "unanswered" not in world.outcome.values()
    assert UpdateState.UNANSWERED not in world.outcome.values()
    for (me, token), outcome in world.outcome.items():
        carried_out = world.done["activation", DEVICE, token]
        assert carried_out == (outcome is UpdateState.ACTIVATED) or me == DEVICE
    assert world.device.is_member(SERVER)
    assert world.server.is_member(DEVICE)
    # With the time everything is forgotten.
    world.advance(world.now + 30_000)
    assert (world.server.known.size, world.device.known.size) == (0, 0)
    assert world.next_due() is None


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    faults=faults,
    steps=script(OPERATIONS + LEAVING),
    bound=st.booleans(),
    lifetime=st.sampled_from([20.0, 300.0]),
)
@example(  # why the update failed arrives after the answer that says so
    seed=2121260,
    faults={"loss": 0.0, "duplicate": 0.0, "replay": 0.0, "delay": 40.0},
    steps=[
        *(("server action", 60.0), ("join", 60.0), ("join", 0.0), ("update", 60.0)),
        *(("join", 0.0), ("resign", 0.0), ("join", 0.0), ("join", 60.0)),
    ],
    bound=False,
    lifetime=300.0,
)
def test_every_command_ends_whoever_leaves(seed, faults, steps, bound, lifetime):
    world = World(seed, Policy(lifetime=lifetime, update_lifetime=3 * lifetime, require_bound_tokens=bound), **faults)
    play(world, steps)
    world.link.heal()
    world.advance(world.now + 1000)
    assert set(world.ended) - set(world.joins) == world.asked
    # A device that is not sure asks again; then both ends agree.
    world.prompt = True
    world.run("join")
    world.advance(world.now + 1000)
    assert world.device.is_member(SERVER)
    assert world.server.is_member(DEVICE)
    assert (world.server.known.size, world.device.known.size) == (0, 0)


@pytest.mark.parametrize("loss", [0.0, 0.5])
def test_the_model_is_not_idle(loss):
    """The scripts above reach what they are about: refusals, activations, losses that retransmission mends."""
    world = World(5, loss=loss, duplicate=0.5, replay=0.5, delay=2.0)
    play(world, [(operation, 5.0) for operation in OPERATIONS * 20])
    world.link.heal()
    world.advance(world.now + 1000)
    assert world.refusals["ReplayError"] > 20
    assert sum(kind == "activation" for kind, *_ in world.done) > 5
    assert sum(kind == "action" for kind, *_ in world.done) > 20
