"""Syndication with old and new ends: the eight mixes of home server, syndication device and away server.

The devices that are shared are ours, which is the harder case: an old one reads nothing in a token. docs/interop.md
says what works in which mix; what is "old" here is a double that sends real bytes (old_syndication.py).
"""

from contextlib import ExitStack
from itertools import product

import pytest

from srup import Action, JoinRequest, Policy, Status, SyndicatedAction, UnansweredError
from srup.tokens import bind
from srup.transport import MemoryTransport

from .hostile import Broker
from .old_peer import Link
from .old_syndication import TO_AWAY, TO_HOME, OldAway, OldHome, OldSide
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, VALUE, Federation

pytestmark = pytest.mark.backend

LAMP, OTHER = LAMPS[1], LAMPS[2]
MIXES = list(product(("old", "new"), repeat=3))
NAMES = [f"{home} home, {relay} relay, {away} away" for home, relay, away in MIXES]


class Mix(Federation):
    """A federation some of whose three parties are old; those of the base class are never started then."""

    def __init__(self, tmp_path, home, relay, away):
        super().__init__(tmp_path, policy=Policy())
        self.stack = ExitStack()
        self.got = []  # values at home
        self.told = []  # what home was told that its shared devices are
        self.old_home = self.old_away = self.old_sides = None
        self.home.on_syndicated_data("t")(lambda device, source, data_id, data: self.got.append((source, data)))
        old = {"home": home == "old", "relay": relay == "old", "away": away == "old"}
        parties = {"home": self.home, "relay": self.bridge, "away": self.away}
        self.everybody = [*(party for name, party in parties.items() if not old[name]), *self.lamps.values()]
        if old["home"]:
            peer = OldHome(HOME, self.pem(HOME), {HOME_ID: self.public_pem(HOME_ID)})
            self.old_home = self.attach(peer, "home")
        if old["away"]:
            keys = {each: self.public_pem(each) for each in (AWAY_ID, *self.lamps)}
            self.old_away = self.attach(OldAway(AWAY, self.pem(AWAY), keys), "away")
            self.old_away.peer.shared = tuple(self.lamps)
        if old["relay"]:
            sides = [
                self.attach(OldSide(me, self.pem(me), server, self.public_pem(server)), network)
                for me, server, network in ((HOME_ID, HOME, "home"), (AWAY_ID, AWAY, "away"))
            ]
            for side, other, carries in zip(sides, reversed(sides), (TO_AWAY, TO_HOME), strict=True):
                side.peer.across, side.peer.carries = other, carries
            self.old_sides = sides

    def pem(self, identity):
        return self.key(identity).to_pem()

    def public_pem(self, identity):
        return self.key(identity).public_key.to_pem()

    def attach(self, peer, network):
        transport = MemoryTransport(self.networks[network], f"old-{peer.identity:x}")
        return self.stack.enter_context(Link(peer, transport))

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.close()

    # What the owner of the home server does and sees, old or new.

    def at_home(self, verb, *arguments):
        """Have home do this; return its future, None for an old home."""
        future = None
        if self.old_home is None:
            future = getattr(self.home, verb)(HOME_ID, *arguments)
        else:
            self.old_home.do(getattr(self.old_home.peer, verb), HOME_ID, *arguments)
        self.pass_time(1)
        return future

    def begun(self):
        self.start()
        if self.old_sides is not None:
            home_side, _ = self.old_sides
            home_side.do(home_side.peer.join)
        self.pass_time(1)
        self.at_home("syndicate", KEY_SERVICE, VALUE)
        return self

    def listed(self):
        if self.old_home is None:
            return self.home.shared_devices(HOME_ID)
        return tuple(each.fields["device_id"] for each in self.old_home.peer.of("SyndicatedDeviceList"))

    def received(self):
        if self.old_home is None:
            return self.got
        values = [each.fields for each in self.old_home.peer.of("SyndicatedData") if each.fields["data_id"] == "t"]
        return [(each["source_id"], each["data"]) for each in values]

    def descriptions(self):
        heard = [each.fields for each in self.old_home.peer.of("SyndicatedData")]
        return [each["data"].decode() for each in heard if each["data_id"] == "IDENTIFICATION_RESPONSE"]

    def survivors(self):
        """Whether no old party has heard what is its end, or could be."""
        peers = [link.peer for link in (self.old_home, self.old_away, *(self.old_sides or ())) if link is not None]
        return not any(peer.dead or peer.unexpected(*getattr(peer, "asked", ())) for peer in peers)


@pytest.fixture(params=MIXES, ids=NAMES)
def mix(request, tmp_path):
    with Mix(tmp_path, *request.param) as mix:
        mix.ends = request.param
        yield mix.begun()


def test_a_syndication_begins_and_home_has_the_list(mix):
    assert mix.listed() == LAMPS
    assert mix.survivors()
    assert mix.faults() == 0


def test_an_action_is_done_by_the_shared_device(mix):
    future = mix.at_home("syndicated_action", LAMP, 1)
    assert mix.done == [(LAMP, 1)]
    if future is not None:  # an answer comes back if each of those that it passes gives it
        mix.run(future.done, 600)
        if "old" in mix.ends:
            assert isinstance(future.exception(0), UnansweredError)
        else:
            assert future.result(0) is Status.ACTION_SUCCESS
    mix.pass_time(600)
    assert mix.done == [(LAMP, 1)]
    assert mix.survivors()


def test_a_shared_device_says_what_it_is(mix):
    future = mix.at_home("syndicated_identify", LAMP)
    if future is None:
        assert mix.descriptions() == [f"device {LAMP:x}"]
    else:
        assert future.result(0) == f"device {LAMP:x}"


def test_a_value_of_a_shared_device_reaches_home(mix):
    mix.lamps[LAMP].send("t", b"1")
    mix.pass_time(1)
    assert mix.received() == [(LAMP, b"1")]


def test_home_ends_it(mix):
    future = mix.at_home("end_syndication")
    mix.pass_time(600)
    if future is not None:
        confirmed = "old" not in mix.ends
        assert future.exception(0) is None if confirmed else isinstance(future.exception(0), UnansweredError)
    mix.lamps[LAMP].send("t", b"2")
    mix.pass_time(1)
    assert mix.received() == []
    if mix.old_away is None:
        assert mix.away.debug.session.syndication(AWAY_ID) is None
    else:
        assert mix.old_away.peer.relay is None
    assert mix.survivors()


# What is passed on under somebody else's token opens no way for anybody.


@pytest.fixture
def world(tmp_path):
    with Federation(tmp_path, scheme="ed25519", policy=Policy()) as world:
        yield world


def lamp_of_an_old_server(world):
    """A device of ours that has joined an away server which binds no tokens; return the broker's hand."""
    hand, lamp = Broker(world, world.networks["away"]), world.lamps[LAMP]
    lamp.start(threads=False)
    lamp.step()
    world.settle()
    lamp.debug.session.known.peers[AWAY].member = True
    return hand


FOREIGN = {
    "for the server itself": (HOME, AWAY, [(LAMP, 1)]),
    "of the server, for another device": (AWAY, OTHER, []),
    "for this device, and not of its server": (HOME, LAMP, []),
    "of this device": (LAMP, AWAY, []),
}


@pytest.mark.parametrize("whose", FOREIGN)
def test_t3_a_token_that_names_the_receiver_or_is_the_sender_s_own_is_not_passed_on(world, whose):
    hand = lamp_of_an_old_server(world)
    sender, recipient, done = FOREIGN[whose]
    token = bind(sender, recipient, world.clock() + 60, bytes(16))
    hand.write(Action, AWAY, LAMP, token=token, action_id=1)
    assert world.done == done
    assert world.errors() == ([] if done else ["PolicyError"])


def test_t3_nor_is_one_by_a_server_that_binds_its_tokens(world):
    hand = lamp_of_an_old_server(world)
    own = bind(AWAY, LAMP, world.clock() + 60, bytes(16))
    hand.write(Action, AWAY, LAMP, token=own, action_id=2, sequence_id=hand.newer_id())
    token = bind(AWAY_ID, AWAY, world.clock() + 60, bytes(16))
    hand.write(Action, AWAY, LAMP, token=token, action_id=1, sequence_id=hand.newer_id())
    assert world.done == []
    assert world.errors() == ["PolicyError"]


def test_t4_what_is_passed_on_is_refused_when_the_time_of_its_token_is_over(world):
    hand = lamp_of_an_old_server(world)
    token = bind(AWAY_ID, AWAY, world.clock() + 60, bytes(16))
    world.pass_time(120)
    hand.write(Action, AWAY, LAMP, token=token, action_id=1)
    assert world.done == []
    assert world.errors() == ["PolicyError"]


def test_t3_a_device_asks_under_a_token_of_another_device(world):
    """The server's answer, under that token, would pass for the answer to the other device."""
    world.syndicated()
    hand = Broker(world, world.networks["away"])
    world.away.debug.session.known.peers[AWAY_ID].binds = False
    token = bind(OTHER, AWAY, world.clock() + 60, bytes(16))
    fields = {"action_id": 1, "target_id": LAMP}
    number = hand.newer_id()
    hand.write(SyndicatedAction, AWAY_ID, AWAY, topic=f"SRUP/{AWAY_ID:x}", token=token, sequence_id=number, **fields)
    assert (world.moderated, world.done) == ([], [])
    assert world.errors(world.away) == ["PolicyError"]


def test_t3_nothing_else_is_passed_on(world):
    world.syndicated()
    hand = Broker(world, world.networks["away"])
    world.away.debug.session.known.peers[AWAY_ID].binds = False
    token = bind(HOME, HOME_ID, world.clock() + 60, bytes(16))
    joins = f"SRUP/servers/{AWAY:x}/{AWAY_ID:x}"
    hand.write(JoinRequest, AWAY_ID, AWAY, topic=joins, token=token, sequence_id=hand.newer_id())
    assert world.errors(world.away) == ["PolicyError"]
