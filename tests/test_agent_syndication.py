"""Syndication that runs: three parties on two networks, with real keys and bytes, as their owners meet it."""

import threading

import pytest

from srup import (
    AwayNetwork,
    KeyRing,
    Policy,
    PolicyError,
    PrivateKey,
    Status,
    SyndicationDevice,
    SyndicationServer,
    TransportError,
    UnansweredError,
    UnknownSenderError,
    decode,
)
from srup.agent.bridge import Bridge
from srup.session.events import SyndicationRequested
from srup.session.flows.join import JoinState
from srup.transport import LocalBroker, MemoryNetwork, MemoryTransport

from .fleet import WAIT, key_of, wait_until
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, NEIGHBOUR, VALUE, Federation

LAMP = LAMPS[1]
PATIENT = Policy(require_bound_tokens=True, lifetime=3600, max_retry=60)


@pytest.fixture
def world(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        yield world.syndicated()
        assert world.faults() == 0


def begin(world):
    """Start, and ask for a syndication; return the future."""
    world.start()
    future = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
    world.settle()
    return future


# What happens when everybody agrees.


@pytest.mark.parametrize("scheme", ["rsa2048", "ed25519"])
def test_all_of_it(tmp_path, scheme):
    with Federation(tmp_path, scheme=scheme) as world:
        told = []
        world.home.on_shared(lambda *arguments: told.append(arguments))
        world.home.on_syndicated_data("temperature", "double")(lambda *arguments: told.append(arguments))
        world.syndicated()
        assert world.values == [VALUE]
        assert world.bridge.syndicated
        assert world.away.members == {AWAY_ID, *LAMPS}
        action = world.home.syndicated_action(HOME_ID, LAMP, 1)
        text = world.home.syndicated_identify(HOME_ID, LAMP)
        request = world.home.syndicated_request(HOME_ID, 7, 21)
        world.lamps[LAMP].send("temperature", 21.5)
        world.settle()
        assert action.result(0) is Status.ACTION_SUCCESS
        assert world.done == [(LAMP, 1)]
        assert text.result(0) == f"device {LAMP:x}"
        assert request.result(0) is Status.ACTION_SUCCESS
        assert sorted(world.moderated, key=len) == [(AWAY_ID, LAMP), (AWAY_ID, LAMP, 1), (AWAY_ID, 7, b"\x15\0")]
        assert told == [(HOME_ID, LAMPS), (HOME_ID, LAMP, "temperature", 21.5)]
        end = world.home.end_syndication(HOME_ID)
        world.settle()
        assert end.result(0) is None
        assert world.bridge.away is None
        assert world.home.shared_devices(HOME_ID) == ()
        assert world.away.members == set(LAMPS)
        assert world.errors() == []
        assert world.faults() == 0


def test_a_person_moderates_the_join(tmp_path):
    """Who has the device in hand compares what it shows with what the away server's operator sees."""
    with Federation(tmp_path, scheme="ed25519", join="human") as world:
        shown, pending = [], []
        world.bridge.on_join_value(shown.append)
        world.away.on_moderation(pending.append)
        future = begin(world)
        assert not future.done()
        assert world.values == []
        [join] = pending
        assert (join.device, shown) == (AWAY_ID, [join.value])
        join.accept()
        world.settle()
        assert future.result(0) is None
        assert world.values == [VALUE]


def test_a_join_that_is_to_be_moderated_needs_somebody_who_shows_the_value(tmp_path):
    with Federation(tmp_path, scheme="ed25519", join="human") as world:
        with pytest.raises(PolicyError, match="JOIN_FAIL"):
            begin(world).result(0)
        assert world.faults() == 1


def test_a_person_refuses_the_join(tmp_path):
    with Federation(tmp_path, scheme="ed25519", join="human") as world:
        pending = []
        world.bridge.on_join_value(lambda value: None)
        world.away.on_moderation(pending.append)
        future = begin(world)
        pending[0].refuse()
        world.settle()
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            future.result(0)
        assert world.bridge.away is None


def test_a_revoked_syndication_device_has_no_syndication(world):
    ends = ended(world)
    world.away.revoke(AWAY_ID)
    world.settle()
    assert ("away", AWAY_ID) in ends
    world.home.revoke(HOME_ID)
    world.settle()
    assert ("home", HOME_ID) in ends
    assert world.home.shared_devices(HOME_ID) == ()
    assert world.home.debug.session.syndication(HOME_ID) is world.away.debug.session.syndication(AWAY_ID) is None


@pytest.mark.slow
def test_keys_change_under_a_running_syndication(world):
    """Each side of the device, and either server, has its own key, and changes it alone."""
    for agent in (world.bridge, world.bridge.away, world.home, world.away):
        future = agent.rotate_key(PrivateKey.generate("ed25519"))
        world.settle()
        action = world.home.syndicated_action(HOME_ID, LAMP, 1)
        world.settle()
        assert action.result(0) is Status.ACTION_SUCCESS
        world.answered(future, 100_000)
    action = world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    assert action.result(0) is Status.ACTION_SUCCESS


def test_the_networks_see_only_their_own(world):
    """Every message on either network is signed by the key that its sender has there, and the value is on neither."""
    world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    for name, identities in (("home", {HOME, HOME_ID, NEIGHBOUR}), ("away", {AWAY, AWAY_ID, *LAMPS})):
        senders = set()
        for topic, wire in world.networks[name].log:
            frame = decode(wire)
            frame.verify(world.key(frame.sender_id).public_key)
            senders.add(frame.sender_id)
            assert int(topic.split("/")[-1], 16) in identities
            assert VALUE not in wire
        assert senders == identities


def test_home_is_told_what_is_shared_now(world):
    future = world.away.share(AWAY_ID, [LAMP])
    world.settle()
    assert future.result(0) is None
    assert world.home.shared_devices(HOME_ID) == (LAMP,)
    unknown = world.home.syndicated_action(HOME_ID, LAMPS[0], 1)
    world.settle()
    assert unknown.result(0) is Status.ACTION_UNKNOWN
    assert world.done == []


def test_a_syndication_device_is_a_device_besides(world):
    asked = []
    world.bridge.on_action(5)(asked.append)
    future, text = world.home.action(HOME_ID, 5), world.home.identify(HOME_ID)
    world.settle()
    assert (future.result(0), asked) == (Status.ACTION_SUCCESS, [HOME])
    assert text.result(0) == f"device {HOME_ID:x}"


def test_a_syndication_server_is_a_server_besides(world):
    world.neighbour.on_action(1)(lambda server: None)
    future = world.home.action(NEIGHBOUR, 1)
    world.settle()
    assert future.result(0) is Status.ACTION_SUCCESS


# What the owners decide.


@pytest.mark.parametrize(
    ("decide", "status", "faults"),
    [
        (lambda url: False, "JOIN_REFUSED", 0),
        (lambda url: 1 // 0, "JOIN_FAIL", 1),
        (lambda url: None, "JOIN_FAIL", 1),
        (lambda url: AwayNetwork(AWAY_ID, key_of(AWAY_ID), AWAY, None, "mqtt://127.0.0.1"), "JOIN_FAIL", 1),
    ],
)
def test_the_owner_of_the_device_decides_how_it_gets_in(tmp_path, decide, status, faults):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.bridge.on_syndication_init(decide)
        future = begin(world)
        with pytest.raises(PolicyError, match=status):
            future.result(0)
        assert world.faults() == faults
        assert world.bridge.away is None


def test_without_a_handler_the_device_does_not_go_anywhere(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.bridge.engine.handlers.named.clear()
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            begin(world).result(0)


@pytest.mark.parametrize(
    ("decide", "status", "faults"),
    [
        (lambda device, value: False, "JOIN_REFUSED", 0),
        (lambda device, value: 1 // 0, "JOIN_FAIL", 1),
        (lambda device, value: None, "JOIN_FAIL", 1),
    ],
)
def test_the_owner_of_the_away_server_decides_whether_to_begin(tmp_path, decide, status, faults):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.away.on_syndication_request(decide)
        future = begin(world)
        with pytest.raises(PolicyError, match=status):
            future.result(0)
        assert world.faults() == faults
        assert world.bridge.away is None
        assert AWAY_ID not in world.away.members  # it left again
        again = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.away.on_syndication_request(world.request)
        world.settle()
        assert again.result(0) is None


def test_without_a_handler_the_away_server_shares_nothing(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.away.engine.handlers.named.clear()
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            begin(world).result(0)


def test_the_away_server_may_not_let_the_device_in(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.away.on_join(lambda device: device != AWAY_ID)
        with pytest.raises(PolicyError, match="JOIN_REFUSED"):
            begin(world).result(0)
        assert world.bridge.away is None
        assert world.values == []


@pytest.mark.parametrize("shared", [[-1], ["c1"], range(10_001)])
def test_what_cannot_be_shared_is_a_fault_of_the_owner(tmp_path, shared):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.shared = shared
        with pytest.raises(PolicyError, match="JOIN_FAIL"):
            begin(world).result(0)
        assert world.faults() == 1


@pytest.mark.parametrize(
    ("said", "status", "faults"),
    [
        (False, Status.ACTION_FAIL, 0),
        (Status.ACTION_UNKNOWN, Status.ACTION_UNKNOWN, 0),
        (Status.JOIN_SUCCESS, Status.ACTION_FAIL, 1),
        (None, Status.ACTION_SUCCESS, 0),
    ],
)
def test_what_a_moderator_returns_is_done(tmp_path, said, status, faults):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        world.allowed = said
        action = world.home.syndicated_action(HOME_ID, LAMP, 1)
        request = world.home.syndicated_request(HOME_ID, 7, b"")
        text = world.home.syndicated_identify(HOME_ID, LAMP)
        world.settle()
        assert (action.result(0), request.result(0)) == (status, status)
        if status is Status.ACTION_SUCCESS:
            assert text.result(0)
        else:
            assert world.done == []
            with pytest.raises(PolicyError, match=status.name):
                text.result(0)
        assert world.faults() == 3 * faults


def test_without_a_moderator_nothing_is_done(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        world.away.engine.handlers.named.clear()
        action = world.home.syndicated_action(HOME_ID, LAMP, 1)
        request = world.home.syndicated_request(HOME_ID, 7, b"")
        world.settle()
        assert action.result(0) is request.result(0) is Status.ACTION_FAIL
        assert world.done == []


def test_what_home_asks_for_without_a_syndication(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.start()
        futures = [
            world.home.syndicated_action(HOME_ID, LAMP, 1),
            world.home.syndicated_identify(HOME_ID, LAMP),
            world.home.syndicated_request(HOME_ID, 1, b""),
            world.home.end_syndication(HOME_ID),
            world.away.share(AWAY_ID, LAMPS),
            world.away.terminate_syndication(AWAY_ID),
        ]
        stranger = world.home.syndicate(0xFF, KEY_SERVICE, VALUE)
        world.settle()
        for future in futures:
            with pytest.raises(PolicyError, match="syndication"):
                future.result(0)
        with pytest.raises(UnknownSenderError):
            stranger.result(0)


# Values.


def test_values_that_home_does_not_know_are_refused(world):
    world.lamps[LAMP].send("temperature", 21.5)
    world.settle()
    assert world.away.counts["data refused"] == 1
    assert world.lamps[LAMP].counts["data refused"] == 0  # it is home's business


def test_values_in_another_form_are_refused(world):
    heard = []
    world.home.on_syndicated_data("temperature", "int8")(lambda *arguments: heard.append(arguments))
    world.home.on_syndicated_data()(lambda *arguments: heard.append(arguments))
    world.lamps[LAMP].send("temperature", 21.5)
    world.lamps[LAMP].send("humidity", b"5")
    world.settle()
    assert heard == [(HOME_ID, LAMP, "humidity", b"5")]
    assert world.away.counts["data refused"] == 1


def test_the_away_owner_hears_its_devices_as_before(world):
    heard = []
    world.away.on_data("temperature", "double")(lambda *arguments: heard.append(arguments))
    world.lamps[LAMP].send("temperature", 21.5)
    world.settle()
    assert heard == [(LAMP, "temperature", 21.5)]


def test_a_handler_for_values_in_no_form_is_refused(world):
    with pytest.raises(ValueError, match="no kind of data"):
        world.home.on_syndicated_data("x", "string")


# The end, and what goes wrong.


def ended(world):
    """Let everybody note the ends they are told of."""
    ends = []
    world.home.on_syndication_ended(lambda device: ends.append(("home", device)))
    world.away.on_syndication_ended(lambda device: ends.append(("away", device)))
    world.bridge.on_syndication_ended(lambda: ends.append("bridge"))
    return ends


def test_away_ends_it(world):
    ends = ended(world)
    world.away.terminate_syndication(AWAY_ID)
    world.settle()
    assert sorted(ends, key=str) == [("away", AWAY_ID), ("home", HOME_ID), "bridge"]
    assert world.bridge.away is None
    assert world.home.shared_devices(HOME_ID) == ()


def test_away_puts_the_device_out(world):
    ends = ended(world)
    world.away.terminate(AWAY_ID)
    world.settle()
    assert sorted(ends, key=str) == [("away", AWAY_ID), ("home", HOME_ID), "bridge"]
    assert world.bridge.away is None


def test_home_puts_the_device_out(world):
    ends = ended(world)
    world.home.terminate(HOME_ID)
    world.settle()
    assert sorted(ends, key=str) == [("away", AWAY_ID), ("home", HOME_ID), "bridge"]
    assert AWAY_ID not in world.away.members


@pytest.mark.parametrize("how", ["terminate", "deregister", "resign"])
def test_the_membership_at_home_ends_while_the_owner_registers_at_the_away_network(tmp_path, monkeypatch, how):
    """A device that is out at home has no business in the away network."""
    with Federation(tmp_path, scheme="ed25519") as world:
        registering, ends = [], ended(world)
        monkeypatch.setattr(
            world.bridge.engine.handlers, "call_for", lambda *arguments: registering.append(arguments[-1])
        )
        begin(world)
        if how == "resign":
            world.bridge.resign()
        else:
            getattr(world.home, how)(HOME_ID)
        world.settle()
        assert not world.bridge.joined
        registering[0]()
        world.settle()
        assert (world.bridge.away, world.bridge.syndicated, "bridge" in ends) == (None, False, True)
        assert world.away.members == set(LAMPS)
        assert world.values == []
        assert world.faults() == 0


def test_the_membership_at_home_ends_while_the_away_server_lets_the_device_in(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        aways = []

        @world.bridge.on_syndication_init
        def enter(url):
            world.home.terminate(HOME_ID)  # which gets there while the join is under way
            return world.enter(url)

        @world.away.on_join
        def let_in(device):
            aways.extend([world.bridge.away] if device == AWAY_ID else [])

        begin(world)
        assert (world.bridge.joined, world.bridge.away) == (False, None)
        assert world.away.members == set(LAMPS)
        assert [away.counts["faults"] for away in aways] == [0]


@pytest.mark.parametrize("when", ["at once", "while its owner registers", "while it joins", "while away decides"])
def test_home_ends_it_before_it_has_begun(tmp_path, monkeypatch, when):
    """Nobody gets in any more, and nothing is shared with a home that does not want it."""
    with Federation(tmp_path, scheme="ed25519") as world:
        jobs, pending = [], []
        if when == "while its owner registers":
            monkeypatch.setattr(world.bridge.engine.handlers, "call_for", lambda *arguments: jobs.append(arguments[-1]))
        if when == "while it joins":
            world.join = "human"
            world.bridge.on_join_value(lambda value: None)
            world.away.on_moderation(pending.append)
        if when == "while away decides":
            world.away.engine.listeners(SyndicationRequested)[:] = [lambda _, event: pending.append(event)]
        world.start()
        begun = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        if when != "at once":
            world.settle()
            assert len(jobs + pending) == 1
        end = world.home.end_syndication(HOME_ID)
        world.settle()
        for job in jobs:
            job()
        world.settle()
        assert end.result(0) is None
        assert isinstance(begun.exception(0), UnansweredError)
        assert (world.bridge.away, world.bridge.syndicated, world.values) == (None, False, [])
        assert world.away.members == set(LAMPS)
        assert world.away.debug.session.syndication(AWAY_ID) is None
        assert world.faults() == 0


def test_after_the_end_it_can_begin_again(world):
    for _ in range(3):
        world.home.end_syndication(HOME_ID)
        world.settle()
        again = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.settle()
        assert again.result(0) is None
        action = world.home.syndicated_action(HOME_ID, LAMP, 1)
        world.settle()
        assert action.result(0) is Status.ACTION_SUCCESS
    assert world.bridge.debug.part(Bridge).aways == [world.bridge.away]


def test_a_home_server_that_forgot_begins_again(world):
    """The device leaves the syndication that it has for the new one, under the same identity."""
    world.home.debug.session.syndications.by_device.clear()
    again = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
    world.settle()
    assert again.result(0) is None
    action = world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    assert action.result(0) is Status.ACTION_SUCCESS
    assert AWAY_ID in world.away.members


def test_of_two_offers_at_once_the_last_one_counts(world):
    for _ in range(2):
        world.home.debug.session.syndications.by_device.clear()
        again = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.home.step()
    world.settle()
    assert again.result(0) is None
    assert world.bridge.debug.part(Bridge).aways == [world.bridge.away]


def test_a_device_that_is_not_admitted_gets_no_answer_and_gives_up(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.away.debug.session.syndication_devices.clear()
        future = begin(world)
        with pytest.raises(PolicyError, match="JOIN_FAIL"):
            world.answered(future, 400)
        assert set(world.errors()) == {"PolicyError"}
        assert world.bridge.away is None
        assert world.values == []


def test_a_device_that_forgot_answers_that_it_cannot(world):
    world.bridge.away.stop()
    world.bridge.engine.part(Bridge).away = None
    action, end = world.home.syndicated_action(HOME_ID, LAMP, 1), world.home.end_syndication(HOME_ID)
    world.settle()
    with pytest.raises(UnansweredError):
        action.result(0)  # home ended it before the answer came
    assert end.result(0) is None
    assert world.home.shared_devices(HOME_ID) == ()


def test_nobody_lets_the_device_in_and_home_does_not_wait_for_ever(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.networks["away"].cut(f"device-{AWAY_ID:x}")
        world.start()
        future = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE, lifetime=600)
        world.settle()
        assert world.bridge.away is not None
        with pytest.raises(UnansweredError):
            world.answered(future, 700)
        world.run(lambda: world.bridge.away is None, 60)


def test_the_away_network_is_cut_and_comes_back(world):
    world.networks["away"].cut(f"device-{AWAY_ID:x}")
    lost, kept = world.home.syndicated_action(HOME_ID, LAMP, 1), world.home.identify(HOME_ID)
    world.settle()
    assert kept.result(0)  # the other side goes on
    with pytest.raises(UnansweredError):
        world.answered(lost, 400)
    world.networks["away"].heal(f"device-{AWAY_ID:x}")
    world.settle()
    world.errors()  # what waited in the transport has expired
    assert world.done == []
    found = world.home.syndicated_action(HOME_ID, LAMP, 1)
    world.settle()
    assert found.result(0) is Status.ACTION_SUCCESS


@pytest.mark.parametrize("seed", range(3))
def test_bad_links(tmp_path, seed):
    faults = {"loss": 0.2, "duplicate": 0.2, "delay": (0.01, 2.0), "reorder": 0.2}
    with Federation(tmp_path, seed=seed, scheme="ed25519", policy=PATIENT, **faults) as world:
        world.start()
        world.run(lambda: world.home.members == {HOME_ID, NEIGHBOUR} and world.away.members >= set(LAMPS), 3600)
        world.answered(world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE), 3600)
        world.run(lambda: world.home.shared_devices(HOME_ID) == LAMPS, 3600)
        for times in range(1, 4):
            action, text = world.home.syndicated_action(HOME_ID, LAMP, 1), world.home.syndicated_identify(HOME_ID, LAMP)
            assert world.answered(action, 3600) is Status.ACTION_SUCCESS
            assert world.answered(text, 3600) == f"device {LAMP:x}"
            assert len(world.done) == times
        world.answered(world.home.end_syndication(HOME_ID), 3600)
        world.run(lambda: world.bridge.away is None, 3600)
        assert world.faults() == 0


def test_a_flood_from_one_network_does_not_fill_memory(world, monkeypatch):
    monkeypatch.setattr("srup.agent.bridge.MAX_WAITING", 5)
    for _ in range(20):
        world.lamps[LAMP].send("temperature", 21.5)
    for agent in (world.lamps[LAMP], world.away, world.bridge.away):
        agent.step()
    assert world.bridge.counts["overflow"] == 15
    assert world.bridge.debug.inbox <= 6


# One of the three is gone for good.


GONE = {
    "home server": [("home", f"server-{HOME:x}")],
    "away server": [("away", f"server-{AWAY:x}")],
    "syndication device": [("home", f"device-{HOME_ID:x}"), ("away", f"device-{AWAY_ID:x}")],
}


def sessions(world):
    side = world.bridge.away
    return [
        world.home.debug.session,
        world.away.debug.session,
        world.bridge.debug.session,
        *([side.debug.session] if side else []),
    ]


def open_questions(world):
    """What is still waited for at any of the ends, joins aside, which a device asks for again and again."""
    return [
        (session.identity, exchange.state)
        for session in sessions(world)
        for partner in session.known.peers.values()
        for exchange in partner.exchanges.values()
        if session.known.is_open(exchange) and exchange.state is not JoinState.ASKED
    ]


@pytest.mark.slow
@pytest.mark.parametrize("who", GONE)
def test_one_of_the_three_is_gone_for_good(world, who):
    """Every question comes to its end, both owners can end the syndication, and the counts say what got no answer."""
    ended = {HOME: [], AWAY: []}
    world.home.on_syndication_ended(ended[HOME].append)
    world.away.on_syndication_ended(ended[AWAY].append)
    for network, client in GONE[who]:
        world.networks[network].cut(client)
    asked = [
        world.home.syndicated_action(HOME_ID, LAMP, 1),
        world.home.syndicated_identify(HOME_ID, LAMP),
        world.home.syndicated_request(HOME_ID, 7, b""),
    ]
    world.away.share(AWAY_ID, LAMPS[:1])
    for _ in range(300):
        world.lamps[LAMP].send("temperature", 21.5)
    world.run(lambda: all(future.done() for future in asked), 400)
    assert [type(future.exception(0)) for future in asked] == [UnansweredError] * 3
    assert world.home.counts["unanswered"] >= 3
    assert world.done == []
    ends = [world.home.end_syndication(HOME_ID), world.away.terminate_syndication(AWAY_ID)]
    world.run(lambda: all(future.done() for future in ends), 400)
    assert ends[1].exception(0) is None  # it needs no answer
    assert ended[AWAY] == [AWAY_ID]
    assert isinstance(ends[0].exception(0), UnansweredError) or ended[HOME] == [HOME_ID]
    assert world.home.shared_devices(HOME_ID) == ()
    for server, device in ((world.home, HOME_ID), (world.away, AWAY_ID)):
        assert server.debug.session.syndication(device) is None
    world.run(lambda: not open_questions(world), 90_000)  # an order or a list is good for a day
    assert not [future for agent in (world.home, world.away) for future in agent.debug.pending]
    assert world.faults() == 0
    # Everybody else goes on.
    if who != "home server":
        assert world.answered(world.home.identify(NEIGHBOUR)) == f"device {NEIGHBOUR:x}"
    if who != "away server":
        assert world.answered(world.away.action(LAMP, 1)) is Status.ACTION_SUCCESS


# In threads.


class Threads:
    """The same three in real threads; ``brokers`` makes a transport, or the URL of one, from network and identity."""

    def __init__(self, tmp_path, brokers):
        policy = Policy(first_retry=0.05, max_retry=0.1)
        keys = {who: key_of(who) for who in (HOME, AWAY, HOME_ID, AWAY_ID)}
        self.home, self.away = [
            SyndicationServer(
                server,
                keys[server],
                devices=KeyRing({device: keys[device].public_key}),
                broker=brokers(name, server),
                policy=policy,
                syndication_devices=admitted,
            )
            for name, server, device, admitted in (("home", HOME, HOME_ID, []), ("away", AWAY, AWAY_ID, [AWAY_ID]))
        ]
        self.bridge = SyndicationDevice(
            HOME_ID,
            keys[HOME_ID],
            server=HOME,
            server_key=keys[HOME].public_key,
            broker=brokers("home", HOME_ID),
            firmware=tmp_path,
            policy=policy,
        )
        self.away.on_syndication_request(lambda device, value: [0xC1])
        self.away.on_syndicated_request(lambda device, req_id, data: data == b"please")
        self.bridge.on_syndication_init(
            lambda url: AwayNetwork(
                AWAY_ID,
                keys[AWAY_ID],
                AWAY,
                keys[AWAY].public_key,
                brokers("away", AWAY_ID),
                "simple",
            )
        )
        self.agents = [self.home, self.away, self.bridge]

    def __enter__(self):
        for agent in self.agents:
            agent.start()
        self.bridge.wait_joined(WAIT)
        return self

    def __exit__(self, *_):
        for agent in self.agents:
            agent.stop()


@pytest.fixture
def memory():
    networks = {"home": MemoryNetwork(), "away": MemoryNetwork()}
    return lambda network, identity: MemoryTransport(networks[network], f"{identity:x}")


@pytest.fixture(params=["memory", "mqtt"])
def brokers(request):
    if request.param == "memory":
        yield request.getfixturevalue("memory")
        return
    with LocalBroker() as home, LocalBroker() as away:
        yield lambda network, identity: (home if network == "home" else away).url


@pytest.mark.process
def test_in_threads(tmp_path, brokers):
    before = set(threading.enumerate())
    with Threads(tmp_path, brokers) as world:
        world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE).result(WAIT)
        wait_until(lambda: world.home.shared_devices(HOME_ID) == (0xC1,), "the list")
        assert world.home.syndicated_request(HOME_ID, 1, b"please").result(WAIT) is Status.ACTION_SUCCESS
        assert world.home.syndicated_request(HOME_ID, 1, b"now!").result(WAIT) is Status.ACTION_FAIL
        world.home.end_syndication(HOME_ID).result(WAIT)
        wait_until(lambda: world.bridge.away is None, "the end")
        world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE).result(WAIT)
        assert world.home.syndicated_request(HOME_ID, 1, b"please").result(WAIT) is Status.ACTION_SUCCESS
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of all threads")
    with pytest.raises(TransportError):
        world.home.syndicated_request(HOME_ID, 1, b"please").result(WAIT)


@pytest.mark.slow
def test_a_device_is_stopped_while_it_is_getting_in(tmp_path, memory):
    before = set(threading.enumerate())
    with Threads(tmp_path, memory) as world:
        entered, leave = threading.Event(), threading.Event()
        enter = world.bridge.engine.handlers.named["syndication init"]

        def slowly(url):
            entered.set()
            leave.wait(WAIT)
            return enter(url)

        world.bridge.on_syndication_init(slowly)
        world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        assert entered.wait(WAIT)
        world.bridge.stop()
        leave.set()
        world.bridge.engine.handlers.application.shutdown(wait=True)
        assert world.bridge.debug.part(Bridge).aways == []
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of all threads")


# Arguments.


def test_a_syndication_device_is_admitted_by_its_identity(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        for wrong in (-1, 2**64, "b2"):
            with pytest.raises(ValueError, match="a syndication device must be"):
                world.away.admit(wrong)


def test_a_value_that_does_not_open_at_the_device_is_refused(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.start()
        world.rings["home"].rotate(HOME_ID, PrivateKey.generate("ed25519").public_key, world.clock() + 60)
        future = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.home.step()
        world.rings["home"].replace(HOME_ID, world.key(HOME_ID).public_key)
        world.settle()
        with pytest.raises(PolicyError, match="JOIN_FAIL"):
            future.result(0)
        assert world.bridge.away is None
        assert world.faults() == 0


def test_a_value_that_does_not_open_at_the_away_server_is_refused(tmp_path, monkeypatch):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.start()
        future = world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.home.step()
        monkeypatch.setattr("srup.agent.bridge.seal", lambda value, key: b"junk")
        world.settle()
        with pytest.raises(PolicyError, match="JOIN_FAIL"):
            future.result(0)
        assert world.values == []
        assert world.faults() == 0
