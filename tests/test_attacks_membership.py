"""Attacks on memberships: old words about them come late, strangers speak in them, what belongs to one outlives it.

Every word that opens or ends a membership has a place among the others of its sender: an older one, however late it
comes, does not undo a newer one.
"""

import pytest

from srup import (
    Action,
    Data,
    DeregisterCommand,
    DeregisterRequest,
    PrivateKey,
    Response,
    Status,
    SyndicatedAction,
    SyndicatedData,
    SyndicatedEndRequest,
    SyndicationDevice,
    SyndicationInit,
    TerminateCommand,
    rotation,
)
from srup.seal import seal
from srup.session.flows.key_rotation import MAX_OFFERS
from srup.store import MemoryStore
from srup.wire import KEY_ROTATION

from .fleet import SERVER, key_of
from .hostile import Broker, HostileFleet
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, NEIGHBOUR, VALUE, Federation

pytestmark = pytest.mark.backend

DEVICE = 0xD0
LAMP = LAMPS[1]


# T22: a word about a membership is held until after a newer join.


def terminated(fleet):
    fleet.server.terminate(DEVICE)


def dropped(fleet):
    """By the server; its operator registers the key again."""
    fleet.server.deregister(DEVICE)
    fleet.settle()
    fleet.ring.add(DEVICE, key_of(DEVICE).public_key)


def resigned(fleet):
    fleet.device.resign()


def deregistered(fleet):
    fleet.device.deregister()


def deregistered_and_registered(fleet):
    fleet.device.deregister()
    fleet.settle()
    fleet.ring.add(DEVICE, key_of(DEVICE).public_key)


WORDS = {
    "TerminateCommand": (terminated, TerminateCommand, SERVER),
    "DeregisterCommand": (dropped, DeregisterCommand, SERVER),
    "DeregisterRequest": (deregistered, DeregisterRequest, DEVICE),
    "the answer to ResignRequest": (resigned, Response, SERVER),
    "the answer to DeregisterRequest": (deregistered_and_registered, Response, SERVER),
}


def ended_and_joined(fleet, word):
    """End the membership, keep the word for that back, and let the device join again."""
    end, cls, by = WORDS[word]
    fleet.joined()
    fleet.works()
    fleet.hand.hold(cls, by=by)
    end(fleet)
    fleet.settle()
    assert fleet.hand.held
    fleet.hand.hold()
    fleet.device.join()
    fleet.settle()
    assert fleet.all_joined()
    fleet.works()


@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
@pytest.mark.parametrize("word", WORDS)
def test_t22_an_old_word_comes_after_a_newer_join(tmp_path, word, durable):
    with HostileFleet(tmp_path, durable=durable) as fleet:
        ended_and_joined(fleet, word)
        fleet.hand.deliver()
        assert fleet.all_joined()
        assert DEVICE in fleet.ring
        fleet.works()
        fleet.pass_time(3600)
        assert fleet.all_joined()
        fleet.works()


@pytest.mark.parametrize("word", WORDS)
def test_t22_control_in_time_it_ends_the_membership(tmp_path, word):
    end, cls, by = WORDS[word]
    with HostileFleet(tmp_path) as fleet:
        fleet.joined()
        fleet.hand.hold(cls, by=by)
        end(fleet)
        fleet.settle()
        fleet.hand.deliver()
        assert not fleet.device.joined
        assert fleet.server.members == frozenset()


def test_t22_a_device_that_joins_again_asks_no_more_to_be_deregistered(tmp_path):
    """The control of the one above: nobody delivers anything late here, the first request got lost."""
    with HostileFleet(tmp_path) as fleet:
        ended_and_joined(fleet, "DeregisterRequest")
        fleet.pass_time(600)
        assert fleet.all_joined()
        assert DEVICE in fleet.ring


# T33: the answer to the offer of a key is dropped, and then the membership ends.


def offered_and_put_out(fleet, answered):
    """Let a device offer its next key, and put it out; return the two keys."""
    fleet.start().settle()
    [pending] = fleet.server.pending_joins
    pending.accept()
    fleet.settle()
    assert fleet.all_joined()
    new = PrivateKey.generate("ed25519")
    if not answered:
        fleet.hand.hold(Response, by=SERVER)
    future = fleet.device.rotate_key(new)
    fleet.settle()
    assert fleet.ring[DEVICE] == new.public_key
    if not answered:
        fleet.run(future.done, 600)
    assert (future.exception(0) is None) is answered
    fleet.hand.hold()
    fleet.server.terminate(DEVICE)
    fleet.settle()
    assert not fleet.device.joined
    return new


@pytest.fixture
def compared(tmp_path):
    """A fleet whose devices join by a compared value; ``shown`` is what the device has shown."""
    with HostileFleet(tmp_path, 0, server_options={"admission": "human"}) as fleet:
        device = fleet.add(DEVICE, join="human")
        fleet.shown = []
        device.on_join_value(fleet.shown.append)
        fleet.server.on_moderation(lambda pending: None)
        yield fleet


def joins_by_its_value(fleet):
    fleet.shown.clear()
    fleet.device.join()
    fleet.settle()
    [pending] = fleet.server.pending_joins
    assert fleet.shown == [pending.value]
    pending.accept()
    fleet.settle()
    assert fleet.all_joined()
    fleet.works()


def test_t33_a_device_whose_new_key_was_taken_unheard_joins_by_a_value(compared):
    offered_and_put_out(compared, answered=False)
    joins_by_its_value(compared)


def test_t33_it_offers_its_key_again_without_a_membership(compared):
    new = offered_and_put_out(compared, answered=False)
    future = compared.device.rotate_key(new)
    compared.settle()
    assert future.result(0) is None


def anew(fleet, identity=DEVICE, **options):
    """A new process of a device, which has nothing but its old key."""
    fleet.devices[identity].stop()
    device = fleet.add(identity, **options)
    if "join" in options:
        device.on_join_value(fleet.shown.append)
    device.start(threads=False)
    fleet.settle()
    return device


def test_t33_nor_does_it_need_the_new_key_for_that(compared):
    offered_and_put_out(compared, answered=False)
    anew(compared, join="human")
    joins_by_its_value(compared)


def test_t33_a_server_that_starts_again_seals_to_the_same_key(tmp_path):
    """The value is lost with the process, and what the device gets instead must open as well."""
    options = {"admission": "human", "store": MemoryStore()}
    with HostileFleet(tmp_path, 0, durable=True, server_options=options) as fleet:
        fleet.shown = []
        fleet.add(DEVICE, join="human").on_join_value(fleet.shown.append)
        fleet.server.on_moderation(lambda pending: None)
        offered_and_put_out(fleet, answered=False)
        anew(fleet, join="human", store=MemoryStore())
        fleet.server.stop()
        fleet.crash_server().on_moderation(lambda pending: None)
        fleet.server.start(threads=False)
        fleet.pass_time(30)
        [pending] = fleet.server.pending_joins
        assert fleet.shown[-1] == pending.value
        assert fleet.device.counts["unopened"] == 0


OTHER = 0xD1


@pytest.fixture
def observed(tmp_path):
    """A server whose device OTHER observes the joins of DEVICE; both are members."""
    with HostileFleet(tmp_path, 0, server_options={"admission": "observed", "observers": [OTHER]}) as fleet:
        fleet.shown = []
        fleet.server.on_moderation(lambda pending: pending.accept())
        # The one that shows has its turn before the one that looks.
        for identity, options in ((DEVICE, {"join": "observed", "observer": OTHER}), (OTHER, {"join": "human"})):
            fleet.add(identity, **options).on_join_value(fleet.shown.append)
        fleet.devices[OTHER].on_observation(lambda identity: fleet.shown[-1])
        for agent in (fleet.server, fleet.devices[OTHER], fleet.devices[DEVICE]):
            agent.start(threads=False)
            fleet.settle()
        assert fleet.all_joined()
        yield fleet


@pytest.mark.parametrize("who", [DEVICE, OTHER], ids=["the device", "its observer"])
def test_t33_a_join_that_is_observed_after_a_key_was_taken_unheard(observed, who):
    observed.hand.hold(Response, by=SERVER)
    future = observed.devices[who].rotate_key(PrivateKey.generate("ed25519"))
    observed.settle()
    observed.run(future.done, 600)
    assert future.exception(0) is not None
    observed.hand.hold()
    observed.server.terminate(DEVICE)
    observed.settle()
    observed.devices[DEVICE].join()
    observed.settle()
    assert observed.devices[DEVICE].joined
    assert observed.faults() == 0


def offers(fleet, key, count=1, *, signer=None, data=None):
    """Offer a key so often in the device's name where its server hears those that are no members."""
    signer = signer or key_of(DEVICE)
    for _ in range(count):
        offer = rotation.offer(DEVICE, SERVER, key_of(DEVICE).public_key, key) if data is None else data
        wire = fleet.hand.signed(
            *(Data, DEVICE, SERVER),
            key=signer,
            sequence_id=fleet.hand.newer_id(),
            data_id=KEY_ROTATION,
            data=offer,
        )
        fleet.network.inject(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", wire)


@pytest.fixture
def put_out(tmp_path):
    """A device that was put out, beside another one that is a member."""
    with HostileFleet(tmp_path, 2) as fleet:
        fleet.joined()
        fleet.server.terminate(DEVICE)
        fleet.settle()
        yield fleet
        future = fleet.server.action(OTHER, 1)
        fleet.settle()
        assert future.result(0) is Status.ACTION_SUCCESS
        assert fleet.faults() == 0


def test_t33_without_a_membership_a_key_is_offered_by_its_owner_only(put_out):
    new = PrivateKey.generate("ed25519")
    offers(put_out, new, signer=new)
    offers(put_out, new, signer=key_of(OTHER))
    put_out.settle()
    assert put_out.errors(put_out.server) == ["SignatureError"] * 2
    assert put_out.ring[DEVICE] == key_of(DEVICE).public_key
    offers(put_out, new)
    put_out.settle()
    assert put_out.ring[DEVICE] == new.public_key  # control
    offers(put_out, PrivateKey.generate("ed25519"))  # the old key is retiring: it names no other successor
    put_out.settle()
    assert put_out.ring[DEVICE] == new.public_key
    assert put_out.server.counts["key refused"] == 1


def test_t33_nothing_but_a_key_is_taken_there(put_out):
    for cls, fields in ((Data, {"data_id": "t", "data": b"1"}), (Action, {"action_id": 1})):
        wire = put_out.hand.signed(cls, DEVICE, SERVER, sequence_id=put_out.hand.newer_id(), **fields)
        put_out.network.inject(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", wire)
    put_out.settle()
    assert put_out.server.counts["unexpected"] == 2
    assert put_out.done == []


def test_t33_a_flood_of_offers_keeps_no_owner_busy(put_out):
    """Each is genuine, and names another key; whoever stores keys takes his time."""
    waiting = []
    put_out.server.on_key_changed(lambda identity, key: None)
    put_out.server.engine.handlers.submit = waiting.extend
    keys = [PrivateKey.generate("ed25519") for _ in range(50)]
    for key in keys:
        offers(put_out, key)
    put_out.settle()
    assert sum(call.peer == DEVICE for call in waiting) == MAX_OFFERS
    assert put_out.server.counts["PolicyError"] == len(keys) - MAX_OFFERS
    del put_out.server.engine.handlers.submit
    put_out.server.engine.handlers.submit(waiting)
    put_out.settle()
    assert put_out.ring[DEVICE] == keys[0].public_key


def test_t33_control_an_answer_that_arrives_leaves_nothing_to_guess(compared):
    offered_and_put_out(compared, answered=True)
    joins_by_its_value(compared)


# T31: the away server speaks as a device that it does not share.


@pytest.fixture
def world(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.heard = []
        world.home.on_syndicated_data()(lambda *arguments: world.heard.append(arguments))
        yield world.syndicated()


def says(world, source):
    """Have the away server say a value of this device."""
    hand = Broker(world, world.networks["away"])
    fields = {"data_id": "temperature", "data": b"99", "source_id": source}
    hand.write(SyndicatedData, AWAY, AWAY_ID, sequence_id=hand.newer_id(), **fields)
    return world.heard


@pytest.mark.parametrize("source", [NEIGHBOUR, HOME, 0xEE], ids=["one of home's own", "home itself", "a stranger"])
def test_t31_the_away_server_speaks_as_a_device_that_it_does_not_share(world, source):
    assert says(world, source) == []


def test_t31_nor_as_one_that_it_shares_no_more(world):
    world.away.share(AWAY_ID, [LAMPS[0]])
    world.settle()
    assert world.home.shared_devices(HOME_ID) == (LAMPS[0],)
    assert says(world, LAMP) == []


def test_t31_control_as_one_that_it_shares(world):
    assert says(world, LAMP) == [(HOME_ID, LAMP, "temperature", b"99")]


# T34: what home has asked is held over the end of the syndication.


def ended_and_begun(world):
    ended = world.home.end_syndication(HOME_ID)
    world.pass_time(1)
    assert ended.result(0) is None
    begun = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
    world.pass_time(1)
    assert begun.result(0) is None
    assert world.home.shared_devices(HOME_ID) == tuple(world.shared)


HOPS = {"home": HOME, "away": AWAY_ID}


@pytest.mark.parametrize("network", HOPS)
def test_t34_an_action_is_held_over_the_end_of_its_syndication(world, network):
    hand = Broker(world, world.networks[network])
    hand.hold(SyndicatedAction, by=HOPS[network])
    world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    assert len(hand.held) == 1
    hand.hold()
    ended_and_begun(world)
    hand.deliver()
    assert (world.moderated, world.done) == ([], [])


@pytest.mark.parametrize("network", HOPS)
def test_t34_control_within_its_syndication_it_is_done(world, network):
    hand = Broker(world, world.networks[network])
    hand.hold(SyndicatedAction, by=HOPS[network])
    future = world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    hand.deliver()
    assert world.done == [(LAMP, 1)]
    assert future.result(0) is Status.ACTION_SUCCESS


# What home asked the device for is held over the end of it, and over a restart of the device.


def offer_held(tmp_path, between):
    """Hold home's offer while ``between`` happens to home, have the device start again, deliver the offer."""
    with Federation(tmp_path, stores={HOME_ID: MemoryStore()}) as world:
        hand = Broker(world, world.networks["home"])
        world.start()
        hand.hold(SyndicationInit, by=HOME)
        world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.settle()
        assert len(hand.held) == 1
        hand.hold()
        between(world)
        world.settle()
        world.bridge.stop()
        world.everybody.remove(world.bridge)
        world.bridge = SyndicationDevice(HOME_ID, key_of(HOME_ID, world.scheme), **world.options(HOME_ID, HOME, "home"))
        world.bridge.on_syndication_init(world.enter)
        world.everybody.append(world.bridge)
        world.bridge.start(threads=False)
        world.settle()
        hand.deliver()
        world.settle()
        return len(world.values)


def test_t34_an_offer_is_held_over_its_end_and_a_restart_of_the_device(tmp_path):
    assert offer_held(tmp_path, lambda world: world.home.end_syndication(HOME_ID)) == 0


def test_t34_control_an_offer_that_counts_is_taken_after_a_restart(tmp_path):
    assert offer_held(tmp_path, lambda world: None) == 1


@pytest.mark.parametrize("cls", [SyndicationInit, SyndicatedEndRequest])
def test_t30_what_a_retiring_key_says_of_a_syndication_keeps_none_of_its_successor_away(tmp_path, cls):
    with Federation(tmp_path) as world:
        world.start()
        world.home.rotate_key(PrivateKey.generate("ed25519"))
        world.settle()
        hand = Broker(world, world.networks["home"])
        fields = {"url": KEY_SERVICE, "sealed": seal(VALUE, world.key(HOME_ID).public_key)}
        signed = hand.signed(
            *(cls, HOME, HOME_ID),
            key=world.key(HOME),
            sequence_id=2**64 - 9,
            **{name: fields[name] for name in fields if cls is SyndicationInit},
        )
        hand.deliver((f"SRUP/{HOME_ID:x}", signed))
        assert len(world.values) == (cls is SyndicationInit)
        begun = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.pass_time(1)
        assert begun.result(0) is None


def allowed_and_ended(world, end):
    """Have an action allowed that does not get to the lamp, end the syndication, and let the away server try again."""
    hand = Broker(world, world.networks["away"])
    hand.hold(Action, by=AWAY)
    future = world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    assert world.moderated == [(AWAY_ID, LAMP, 1)]
    hand.hold()
    if end:
        world.home.end_syndication(HOME_ID)
        world.settle()
    world.pass_time(60)
    return future


def test_t34_an_action_that_was_allowed_before_the_end_is_not_carried_out_after_it(world):
    allowed_and_ended(world, end=True)
    assert world.done == []


def test_t34_control_before_the_end_it_is_asked_for_again_and_done(world):
    future = allowed_and_ended(world, end=False)
    assert world.done == [(LAMP, 1)]
    assert future.result(0) is Status.ACTION_SUCCESS


def test_t34_an_action_that_is_decided_after_the_end_is_not_carried_out(world):
    """The owner thinks about it while the syndication ends."""

    def moderate(*arguments):
        world.home.end_syndication(HOME_ID)
        world.home.step()
        world.bridge.step()
        return True

    world.away.on_syndicated_action(moderate)
    world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    assert world.done == []
