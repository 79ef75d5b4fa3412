"""Deployed peers as they really are: silent where version 5 expects a word, and dead for good after some messages.

docs/protocol/deployed-peers.md says what they do (D-16, D-19 to D-24, D-27), and the doubles of old_peer.py do so.
"""

from itertools import count

import pytest

from srup import (
    Action,
    Data,
    IdRequest,
    JoinCommand,
    JoinRequest,
    Policy,
    PrivateKey,
    Response,
    Status,
    SyndicatedAction,
    SyndicationInit,
    SyndicationRequest,
    UnansweredError,
    decode,
    seal,
)
from srup.store import MemoryStore
from srup.tokens import bind
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, FIRMWARE, SERVER, URL, key_of
from .hostile import Broker
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, VALUE, Federation
from .test_interop import OLD, RSA, UnderOldServer, WithOldDevices

pytestmark = pytest.mark.backend

DAY = 86400.0
LAMP = LAMPS[1]


@pytest.fixture
def under(tmp_path):
    with UnderOldServer(tmp_path) as under:
        yield under.joined()


# What version 5 does not have is not sent to them, for it would be the end of them.


def test_an_old_device_is_told_of_no_observer(tmp_path):
    options = {"admission": "observed", "observers": [0xE0]}
    with WithOldDevices(tmp_path, server_options=options) as site:
        site.server.on_moderation(lambda pending: pending.accept())
        site.ring.add(0xE0, key_of(0xE0, RSA).public_key)
        observer = site.add(0xE0, join="human")
        observer.on_join_value(lambda value: None)
        observer.start(threads=False)
        site.settle()
        assert observer.joined
        site.do(site.old.join)
        site.quiet()
        assert site.old.join_status == Status.JOIN_REFUSED
        assert not site.old.dead


def test_an_old_device_is_offered_no_key(tmp_path):
    with WithOldDevices(tmp_path) as site:
        site.joined()
        site.server.rotate_key(PrivateKey.generate(RSA))
        site.quiet()
        assert not site.old.dead
        site.server.action(OLD, 1)
        site.quiet()
        assert site.old.of("Action")


def test_an_old_server_gets_no_refusal_of_a_join_command(tmp_path):
    other = 0x5F
    with UnderOldServer(tmp_path) as under:
        under.add(0xD0, servers={other: key_of(other, RSA).public_key})
        under.joined()
        hand = Broker(under, under.network)
        hand.write(JoinCommand, other, 0xD0, key=key_of(other, RSA), token=b"a uuid", device_id=0xD0)
        assert len(hand.heard(JoinCommand, other)) == 1
        assert [wire for _, wire in hand.heard(Response, 0xD0)] == []


# They do not answer, and what was asked ends all the same.


def test_a_device_that_resigns_from_a_silent_server_is_out(under):
    future = under.device.resign()
    under.settle()
    assert not under.device.joined
    under.run(future.done, 600)
    assert isinstance(future.exception(), UnansweredError)
    under.device.join()
    under.settle()
    assert under.device.joined


def test_a_device_that_deregisters_at_a_silent_server_drops_its_key(under):
    dropped = []
    under.device.on_deregistered(dropped.append)
    future = under.device.deregister()
    under.run(future.done, 600)
    under.settle()
    assert dropped == [SERVER]


def test_a_silent_device_that_is_sent_for_and_never_comes(tmp_path):
    with WithOldDevices(tmp_path) as site:
        future = site.server.command_join(OLD)
        site.run(future.done, 600)
        assert isinstance(future.exception(), UnansweredError)
        assert site.faults() == 0


def test_a_silent_device_that_is_deregistered(tmp_path):
    with WithOldDevices(tmp_path) as site:
        dropped = []
        site.server.on_deregistered(dropped.append)
        site.joined()
        site.server.deregister(OLD)
        site.quiet()
        assert dropped == [OLD]
        assert OLD not in site.ring


def test_an_update_that_is_never_confirmed_does_not_come_back_after_a_restart(tmp_path):
    store = MemoryStore()
    with WithOldDevices(tmp_path, server_options={"store": store}) as site:
        site.joined()
        site.old.download = lambda url: FIRMWARE
        order = site.server.update(OLD, URL, DIGEST)
        site.quiet()
        assert site.old.activated == [FIRMWARE]
        assert order.result(0) is UpdateState.ACTIVATING
        site.server.stop()
        ended = []
        again = type(site.server)(
            SERVER,
            key_of(SERVER, RSA),
            devices=site.ring,
            broker=MemoryTransport(site.network, "server"),
            clock=site.clock,
            store=store,
        )
        again.on_update(ended.append)
        again.start(threads=False)
        site.server = again
        site.settle()
        assert again.orders == []
        site.pass_time(2 * DAY)
        assert ended == []


def test_rejoins_do_not_pile_up_at_an_old_server(under):
    under.pass_time(DAY)
    assert under.device.joined
    assert len(under.old.entries) <= 2


# Syndication with old ends: tokens go through an old relay unchanged.


@pytest.fixture
def mixed(tmp_path):
    with Federation(tmp_path, scheme="ed25519", policy=Policy()) as world:
        yield world


NUMBERS = count()


def unbound():
    return b"a uuid %d" % next(NUMBERS)


def by_an_old_relay(world):
    """Let an old syndication device begin a syndication at our away server; return the hand that plays it."""
    hand = Broker(world, world.networks["away"])
    world.away.start(threads=False)
    for lamp in world.lamps.values():
        lamp.start(threads=False)
    world.settle()
    joins = f"SRUP/servers/{AWAY:x}/{AWAY_ID:x}"
    topic = f"SRUP/{AWAY_ID:x}"
    hand.write(JoinRequest, AWAY_ID, AWAY, topic=joins, token=unbound(), sequence_id=hand.newer_id())
    sealed = seal(VALUE, world.key(AWAY).public_key)
    number = hand.newer_id()
    hand.write(SyndicationRequest, AWAY_ID, AWAY, topic=topic, token=unbound(), sequence_id=number, sealed=sealed)
    assert world.values == [VALUE]
    return hand


RELAYED = {
    "an old home": unbound(),
    "our home": None,
}


@pytest.mark.parametrize("home", RELAYED)
def test_an_old_relay_passes_an_action_of_home_on_to_our_away_server(mixed, home):
    hand = by_an_old_relay(mixed)
    token = RELAYED[home] or bind(HOME, HOME_ID, mixed.clock() + 60, bytes(16))
    fields = {"action_id": 1, "target_id": LAMP}
    topic = f"SRUP/{AWAY_ID:x}"
    number = hand.newer_id()
    hand.write(SyndicatedAction, AWAY_ID, AWAY, topic=topic, token=token, sequence_id=number, **fields)
    assert mixed.done == [(LAMP, 1)]


@pytest.mark.parametrize("relay", ["an old relay", "our relay"])
@pytest.mark.parametrize("cls", [Action, IdRequest])
def test_an_old_away_server_passes_a_request_of_home_on_to_our_lamp(mixed, relay, cls):
    hand, lamp = Broker(mixed, mixed.networks["away"]), mixed.lamps[LAMP]
    lamp.start(threads=False)
    lamp.step()
    [(_, join)] = hand.heard(JoinRequest, LAMP)
    hand.write(Response, AWAY, LAMP, token=decode(join).token, status=Status.JOIN_SUCCESS)
    assert lamp.joined
    token = unbound() if relay == "an old relay" else bind(AWAY_ID, AWAY, mixed.clock() + 60, bytes(16))
    hand.write(cls, AWAY, LAMP, token=token, **({"action_id": 1} if cls is Action else {}))
    assert len(hand.heard(Response if cls is Action else Data, LAMP)) == 1
    assert mixed.done == ([(LAMP, 1)] if cls is Action else [])


def test_an_old_home_server_gets_no_answer_to_its_offer(mixed):
    hand, bridge = Broker(mixed, mixed.networks["home"]), mixed.bridge
    bridge.start(threads=False)
    mixed.away.start(threads=False)
    mixed.settle()
    [(_, join)] = hand.heard(JoinRequest, HOME_ID)
    hand.write(Response, HOME, HOME_ID, token=decode(join).token, status=Status.JOIN_SUCCESS)
    assert bridge.joined
    sealed = seal(VALUE, mixed.key(HOME_ID).public_key)
    hand.write(SyndicationInit, HOME, HOME_ID, token=unbound(), url=KEY_SERVICE, sealed=sealed)
    mixed.pass_time(1)
    assert bridge.syndicated
    assert hand.heard(Response, HOME_ID) == []
