"""T32 for whole conversations: whichever message has the last sequence id there is, nothing raises, and others go on.

A message with that id is taken, and whoever took it has no id left to answer with, or to ask with, for this partner.
"""

from contextlib import suppress

import pytest

from srup import Data, PrivateKey, SignatureError, Status, decode, encode, peek

from .fleet import DIGEST, SERVER, URL, key_of
from .hostile import HostileFleet
from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, VALUE, Federation

pytestmark = pytest.mark.backend

TOP = 2**64 - 1
DEVICE, OTHER = 0xD0, 0xD1
LAMP = LAMPS[0]


class Last:
    """Gives the message of this number that ``by`` sends on a device's topic the last sequence id.

    It is signed by the same one of its ``keys``.
    """

    def __init__(self, network, by, device, number, keys):
        self.by, self.device, self.number, self.keys = by, device, number, keys
        self.seen = 0
        self.kind = None
        self._pass = network._publish
        network._publish = self._take

    def _take(self, topic, wire):
        if peek(wire).sender_id == self.by and topic.endswith(f"/{self.device:x}"):
            if self.seen == self.number:
                wire = self._rewritten(wire)
            self.seen += 1
        self._pass(topic, wire)

    def _rewritten(self, wire):
        for key in self.keys:
            with suppress(SignatureError):
                message = decode(wire).verify(key.public_key)
                self.kind = type(message).__name__
                return encode(type(message)(**dict(message) | {"sequence_id": TOP}), key)
        raise AssertionError("none of these keys has signed it")


def conversation(fleet, new):
    """What one device and its server may have to say to each other."""
    device, server = fleet.device, fleet.server
    device.on_data("t")(lambda *_: None)
    acts = [
        lambda: fleet.start(),
        lambda: server.action(DEVICE, 1),
        lambda: device.action(SERVER, 1),
        lambda: server.send_data(DEVICE, "t", b"1", confirmed=True),
        lambda: device.send("t", b"1", confirmed=True),
        lambda: server.send_data(DEVICE, "unknown", b"1"),
        lambda: device.send("unknown", b"1"),
        lambda: server.identify(DEVICE),
        lambda: fleet.pass_time(10),
        lambda: server.update(DEVICE, URL, DIGEST),
        lambda: fleet.pass_time(10),
        lambda: device.rotate_key(new),
        lambda: server.command_join(DEVICE),
        lambda: fleet.pass_time(10),
        lambda: device.resign(),
        lambda: device.join(),
        lambda: fleet.pass_time(10),
        lambda: server.terminate(DEVICE),
        lambda: device.join(),
        lambda: fleet.pass_time(10),
        lambda: device.deregister(),
        lambda: fleet.pass_time(400),
    ]
    for act in acts:
        act()
        fleet.settle()


def goes_on(fleet):
    """Whether the other device and the server do what they should."""
    future = fleet.server.action(OTHER, 1)
    fleet.settle()
    return future.done() and future.result(0) is Status.ACTION_SUCCESS


@pytest.mark.parametrize("durable", [False, True], ids=["without a store", "with a store"])
@pytest.mark.parametrize("by", [DEVICE, SERVER], ids=["the device", "the server"])
def test_t32_whichever_message_of_a_membership_is_the_last(tmp_path, by, durable, caplog):
    number, raised, hindered = 0, [], []
    while True:
        new = PrivateKey.generate("ed25519")
        with HostileFleet(tmp_path / f"{number}", 2, durable=durable) as fleet:
            last = Last(fleet.network, by, DEVICE, number, [key_of(by), new])
            conversation(fleet, new)
            if fleet.faults() or "Traceback" in caplog.text:
                raised.append((number, last.kind))
            if not goes_on(fleet):
                hindered.append((number, last.kind))
            caplog.clear()
            if last.kind is None:
                break
        number += 1
    assert number > 10
    assert (raised, hindered) == ([], [])


@pytest.mark.parametrize("top", [True, False], ids=["a device has used up its ids", "control"])
def test_t32_a_server_starts_from_a_backup_whatever_its_devices_have_sent(tmp_path, top):
    """It asks each member who it is, and can ask one that has used up the sequence ids no more."""
    with HostileFleet(tmp_path, 2, durable=True) as fleet:
        fleet.joined()
        if top:
            fleet.hand.write(Data, DEVICE, SERVER, sequence_id=TOP, data_id="t", data=b"1")
        backup = fleet.stores[SERVER].copy()
        backup.adopt()
        fleet.server.stop()
        fleet.clock.now += 10.0
        fleet.crash_server(store=backup).start(threads=False)
        fleet.settle()
        assert fleet.server.members == {DEVICE, OTHER}
        assert goes_on(fleet)
        assert fleet.faults() == 0


def syndication(world):
    """What the parties of a syndication may have to say to each other."""
    acts = [
        lambda: world.start(),
        lambda: world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE),
        lambda: world.pass_time(20),
        lambda: world.home.syndicated_action(HOME_ID, LAMP, 1),
        lambda: world.home.syndicated_identify(HOME_ID, LAMP),
        lambda: world.home.syndicated_request(HOME_ID, 7, b"1"),
        lambda: world.lamps[LAMP].send("temperature", b"1"),
        lambda: world.pass_time(20),
        lambda: world.away.share(AWAY_ID, LAMPS[:2]),
        lambda: world.pass_time(20),
        lambda: world.home.end_syndication(HOME_ID),
        lambda: world.pass_time(400),
        lambda: world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE),
        lambda: world.pass_time(20),
        lambda: world.away.terminate_syndication(AWAY_ID),
        lambda: world.pass_time(400),
    ]
    for act in acts:
        act()
        world.settle()


PARTIES = {
    "home": ("home", HOME, HOME_ID),
    "the syndication device at home": ("home", HOME_ID, HOME_ID),
    "the syndication device away": ("away", AWAY_ID, AWAY_ID),
    "away": ("away", AWAY, AWAY_ID),
    "a shared device": ("away", LAMP, LAMP),
    "away to a shared device": ("away", AWAY, LAMP),
}
"""On which network, who, on whose topic."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("party", PARTIES)
def test_t32_whichever_message_of_a_syndication_is_the_last(tmp_path, party, caplog):
    network, by, device = PARTIES[party]
    number, raised, hindered = 0, [], []
    while True:
        with Federation(tmp_path / f"{number}", scheme="ed25519") as world:
            last = Last(world.networks[network], by, device, number, [key_of(by)])
            syndication(world)
            if world.faults() or "Traceback" in caplog.text:
                raised.append((number, last.kind))
            asked = world.away.action(LAMPS[2], 1)
            world.settle()
            if not asked.done() or asked.exception(0) is not None:
                hindered.append((number, last.kind))
            caplog.clear()
            if last.kind is None:
                break
        number += 1
    assert number > 2
    assert (raised, hindered) == ([], [])
