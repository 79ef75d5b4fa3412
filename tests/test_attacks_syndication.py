"""T16, syndication abuse: real servers, devices and bytes, and an attacker who owns the brokers and joined devices.

Every test shows that the attack is refused and changes nothing, and that it would have worked without the guard.
"""

import pytest

from srup import (
    JoinCommand,
    Status,
    SyndicatedAction,
    SyndicatedC2Request,
    SyndicatedData,
    SyndicatedDeviceCount,
    SyndicatedDeviceList,
    SyndicatedEndRequest,
    SyndicatedIdRequest,
    SyndicatedTerminate,
    SyndicationInit,
    SyndicationRequest,
    encode,
    seal,
)
from srup.messages import Initiate
from srup.session.flows.relay import TO_AWAY, TO_HOME, HomeRelay
from srup.session.flows.syndication_away import AwaySyndications
from srup.session.flows.syndication_home import HomeSyndications
from srup.session.relay import AwaySide
from srup.session.syndications import RESEND, Syndications
from srup.simulation import START
from srup.tokens import bind

from .session_link import snapshot
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, NEIGHBOUR, VALUE, Federation

LAMP, OWNED = LAMPS[1], LAMPS[2]


class Field:
    """A syndication that runs, and an attacker with the keys of a device on either network."""

    def __init__(self, world):
        self.world = world.syndicated()
        self.used = 0
        self.heard = []
        world.home.on_syndicated_data()(lambda *arguments: self.heard.append(arguments))

    def signed(self, cls, sender, recipient, token=None, **fields):
        """A message that ``sender``'s key signs, fresh in every respect."""
        self.used += 1
        token = token or bind(sender, recipient, self.world.clock() + 60, self.world.randbytes(16))
        message = cls(sequence_id=int(START * 1e6) + 10**6 + self.used, sender_id=sender, token=token, **fields)
        return encode(message, self.world.key(sender))

    def inject(self, network, device, wire):
        self.world.networks[network].inject(f"SRUP/{device:x}", wire)
        self.world.settle()

    def state(self):
        world = self.world
        sessions = (
            world.home.debug.session,
            world.away.debug.session,
            world.bridge.debug.session,
            world.bridge.away.debug.session,
        )
        return [snapshot(session, window=False) for session in sessions]

    def refused(self, network, device, wire, by, error="PolicyError"):
        """The attack has no effect, and the syndication goes on."""
        before = self.state()
        self.world.errors()
        self.inject(network, device, wire)
        assert self.world.errors(by) == ([error] if error else [])
        assert self.state() == before
        assert self.world.done == []
        self.works()

    def works(self):
        world = self.world
        future, text = world.home.syndicated_action(HOME_ID, LAMP, 1), world.home.syndicated_identify(HOME_ID, LAMP)
        world.settle()
        assert future.result(0) is Status.ACTION_SUCCESS
        assert text.result(0) == f"device {LAMP:x}"
        assert world.done == [(LAMP, 1)]
        assert world.home.shared_devices(HOME_ID) == LAMPS
        assert world.faults() == 0
        world.done.clear()
        world.moderated.clear()


@pytest.fixture
def field(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        yield Field(world)


@pytest.fixture
def without_guard(monkeypatch):
    """Take whoever speaks for the syndication device, as deployed servers do."""

    def take_off():
        def required(known, peer, role):
            return next(iter(known.by_device.values()))

        def drop(flow, peer, now):
            flow.session.syndications.by_device.clear()
            return []

        monkeypatch.setattr(Syndications, "required", required)
        for flow in (HomeSyndications, AwaySyndications):
            monkeypatch.setattr(flow, "_drop", drop)

    return take_off


# A joined device that is not the syndication device speaks to a server.


def test_t16_another_device_ends_a_syndication_at_home(field, without_guard):
    attack = field.signed(SyndicatedTerminate, NEIGHBOUR, HOME)
    field.refused("home", NEIGHBOUR, attack, field.world.home)
    without_guard()
    field.inject("home", NEIGHBOUR, field.signed(SyndicatedTerminate, NEIGHBOUR, HOME))
    assert field.world.home.debug.session.syndication(HOME_ID) is None


def test_t16_another_device_ends_a_syndication_at_the_away_server(field, without_guard):
    attack = field.signed(SyndicatedEndRequest, OWNED, AWAY)
    field.refused("away", OWNED, attack, field.world.away)
    without_guard()
    field.inject("away", OWNED, field.signed(SyndicatedEndRequest, OWNED, AWAY))
    assert field.world.away.debug.session.syndication(AWAY_ID) is None


REPORTS = {
    SyndicatedData: {"data_id": "temperature", "data": b"99", "source_id": LAMP},
    SyndicatedDeviceCount: {"count": 0},
    SyndicatedDeviceList: {"device_sequence": 1, "device_id": OWNED},
}


@pytest.mark.parametrize("cls", REPORTS)
def test_t16_another_device_reports_for_the_away_server(field, without_guard, cls):
    """It is told, once at a time, that there is no such syndication, and nothing else comes of it."""
    syndication = field.world.home.debug.session.syndication(HOME_ID)
    before = syndication.dump()
    log = field.world.networks["home"].log
    for error in (None, "PolicyError"):
        field.inject("home", NEIGHBOUR, field.signed(cls, NEIGHBOUR, HOME, **REPORTS[cls]))
        assert field.world.errors(field.world.home) == ([error] if error else [])
        assert (field.heard, syndication.dump()) == ([], before)
        field.works()
    assert [topic for topic, wire in log if wire[1] == SyndicatedEndRequest.layout.type] == [f"SRUP/{NEIGHBOUR:x}"]
    without_guard()
    token = bind(NEIGHBOUR, HOME, field.world.clock() + 60, bytes(16))
    if cls is SyndicatedDeviceList:  # it needs a count
        field.inject("home", NEIGHBOUR, field.signed(SyndicatedDeviceCount, NEIGHBOUR, HOME, token, count=1))
    field.inject("home", NEIGHBOUR, field.signed(cls, NEIGHBOUR, HOME, token, **REPORTS[cls]))
    if cls is SyndicatedData:
        assert field.heard == [(NEIGHBOUR, LAMP, "temperature", b"99")]
    else:
        expected = (OWNED,) if cls is SyndicatedDeviceList else ()
        assert field.world.home.shared_devices(HOME_ID) == expected


REQUESTS = {
    SyndicatedAction: {"action_id": 1, "target_id": LAMP},
    SyndicatedIdRequest: {"target_id": LAMP},
    SyndicatedC2Request: {"req_id": 7, "data": b""},
}


@pytest.mark.parametrize("cls", REQUESTS)
def test_t16_another_device_asks_for_home(field, without_guard, cls):
    attack = field.signed(cls, OWNED, AWAY, **REQUESTS[cls])
    field.refused("away", OWNED, attack, field.world.away)
    assert field.world.moderated == []
    without_guard()
    field.inject("away", OWNED, field.signed(cls, OWNED, AWAY, **REQUESTS[cls]))
    assert len(field.world.moderated) == 1
    assert field.world.moderated[0][0] == OWNED
    assert field.world.done == ([(LAMP, 1)] if cls is SyndicatedAction else [])


def test_t16_another_device_asks_what_is_shared(field, without_guard):
    def attack():
        return field.signed(SyndicatedC2Request, OWNED, AWAY, req_id=RESEND, data=b"\1\0\0\0")

    def listed():
        return [wire for _, wire in field.world.networks["away"].log if wire[1] == 0x28]

    before = len(listed())
    field.refused("away", OWNED, attack(), field.world.away)
    assert len(listed()) == before
    without_guard()
    field.inject("away", OWNED, attack())
    assert len(listed()) == before + 1


def test_t16_another_device_begins_a_syndication(field):
    def attack():
        sealed = seal(VALUE, field.world.key(AWAY).public_key)
        return field.signed(SyndicationRequest, OWNED, AWAY, sealed=sealed)

    field.refused("away", OWNED, attack(), field.world.away)
    assert field.world.values == [VALUE]  # the owner was not asked another time
    field.world.away.on_syndication_request(lambda device, value: [LAMP])
    field.world.away.admit(OWNED)  # the control
    field.inject("away", OWNED, attack())
    assert field.world.away.debug.session.syndication(OWNED).devices == {1: LAMP}


def test_t16_a_syndication_device_keeps_to_its_role(field, monkeypatch):
    """That of a server's home role asks like one of its away role, and the other way round."""
    for cls, fields in REQUESTS.items():
        attack = field.signed(cls, HOME_ID, HOME, **fields)
        field.refused("home", HOME_ID, attack, field.world.home)
    for cls, fields in REPORTS.items():
        attack = field.signed(cls, AWAY_ID, AWAY, **fields)
        field.refused("away", AWAY_ID, attack, field.world.away)
    required = Syndications.required
    monkeypatch.setattr(
        Syndications,
        "required",
        lambda known, peer, role: required(known, peer, known.by_device[peer.identity].role),
    )
    field.world.home.on_syndicated_request(field.world.moderate)
    attack = field.signed(SyndicatedC2Request, HOME_ID, HOME, **REQUESTS[SyndicatedC2Request])
    field.inject("home", HOME_ID, attack)  # the control: the role alone stands in the way
    assert field.world.moderated == [(HOME_ID, 7, b"")]


# A server misuses the syndication device.

MISUSES = {
    SyndicationInit: {"url": KEY_SERVICE, "sealed": b""},
    Initiate: {"url": "https://away.example/evil", "digest": "e" * 64},
    JoinCommand: {"device_id": AWAY_ID},
    **REQUESTS,
    SyndicatedEndRequest: {},
}


@pytest.mark.parametrize("cls", MISUSES)
def test_t16_the_away_server_commands_the_syndication_device(field, cls):
    """It may be hostile: it sends what only the home server may say, on its own network and with its own key."""
    away = field.world.bridge.away
    before = away.counts["unexpected"]
    field.refused("away", AWAY_ID, field.signed(cls, AWAY, AWAY_ID, **MISUSES[cls]), away, error=None)
    assert away.counts["unexpected"] == before + 1
    assert field.world.bridge.away is away
    if cls is not JoinCommand:  # the control: on its own side the home server may say it
        heard = field.world.bridge.counts["verified"]
        field.inject("home", HOME_ID, field.signed(cls, HOME, HOME_ID, **MISUSES[cls]))
        assert field.world.bridge.counts["verified"] > heard
        assert field.world.bridge.counts["unexpected"] == 0


def test_t16_the_away_server_sends_home_what_only_home_may_ask(field, monkeypatch):
    """Were the directions of the relay not kept apart, the away server could command devices of home's."""
    attack = field.signed(SyndicatedAction, AWAY, AWAY_ID, action_id=1, target_id=NEIGHBOUR)
    seen = len(field.world.networks["home"].log)
    field.inject("away", AWAY_ID, attack)
    assert len(field.world.networks["home"].log) == seen
    rows = {(state, SyndicatedAction): step for (state, cls), step in AwaySide.table.items() if cls is SyndicatedData}
    monkeypatch.setattr(AwaySide, "table", AwaySide.table | rows)
    opening = AwaySide.starts[SyndicatedData]
    monkeypatch.setattr(AwaySide, "starts", AwaySide.starts | {SyndicatedAction: opening})
    attack = field.signed(SyndicatedAction, AWAY, AWAY_ID, action_id=1, target_id=NEIGHBOUR)
    field.inject("away", AWAY_ID, attack)
    assert len(field.world.networks["home"].log) == seen  # the second guard: the home side does not send it
    monkeypatch.setattr(HomeRelay, "outgoing", TO_HOME | TO_AWAY)
    attack = field.signed(SyndicatedAction, AWAY, AWAY_ID, action_id=1, target_id=NEIGHBOUR)
    field.inject("away", AWAY_ID, attack)
    assert field.world.networks["home"].log[seen][1][1] == 0x24  # the control: it arrives at the home server


# The broker mixes the networks.


def test_t16_what_is_heard_on_one_network_is_nothing_on_the_other(field):
    """Every message of either network, delivered to everybody on the other: not one is taken."""
    world = field.world
    field.works()
    recorded = {name: list(network.log) for name, network in world.networks.items()}
    before = field.state()
    for name, other in (("home", "away"), ("away", "home")):
        topics = {topic for topic, _ in recorded[other]}
        for _, wire in recorded[name]:
            for topic in topics:
                world.networks[other].inject(topic, wire)
    world.settle()
    assert set(world.errors()) == {"UnknownSenderError"}
    assert field.state() == before
    assert (world.done, world.moderated) == ([], [])
    # The control: on its own network such a message, not yet heard, is taken.
    attack = field.signed(SyndicatedAction, AWAY_ID, AWAY, action_id=1, target_id=LAMP)
    field.inject("home", HOME_ID, attack)
    assert world.done == []
    field.inject("away", AWAY_ID, attack)
    assert world.done == [(LAMP, 1)]


def test_t16_the_keys_of_the_two_networks_are_not_interchangeable(field):
    """Who has the device's key of one network is nobody on the other."""
    world = field.world

    def attack(sender, key):
        field.used += 1
        token = bind(sender, AWAY, world.clock() + 60, world.randbytes(16))
        message = SyndicatedAction(
            sequence_id=int(START * 1e6) + 10**6 + field.used,
            sender_id=sender,
            token=token,
            **REQUESTS[SyndicatedAction],
        )
        return encode(message, world.key(key))

    field.refused("away", AWAY_ID, attack(AWAY_ID, HOME_ID), world.away, "SignatureError")
    field.refused("away", AWAY_ID, attack(HOME_ID, HOME_ID), world.away, "UnknownSenderError")
    field.inject("away", AWAY_ID, attack(AWAY_ID, AWAY_ID))  # the control
    assert world.done == [(LAMP, 1)]
