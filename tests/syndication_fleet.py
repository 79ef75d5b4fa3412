"""Two fleets and a syndication device between them, with real keys and bytes, on two networks in memory."""

import random

from srup import AwayNetwork, Device, KeyRing, Policy, SyndicationDevice, SyndicationServer
from srup.fetch import MemoryFetcher
from srup.simulation import Clock, Simulator
from srup.transport import MemoryNetwork, MemoryTransport

from .fleet import key_of

HOME, AWAY = 0xA1, 0xA2
HOME_ID, AWAY_ID = 0xB1, 0xB2
"""The two identities of the syndication device."""

LAMPS = (0xC1, 0xC2, 0xC3)
"""Devices of the away server."""

NEIGHBOUR = 0xD1
"""A device of the home server."""

KEY_SERVICE = "https://away.example/KeyEx/register/"
VALUE = b"0123456789abcdef0123456789abcdef"


class Federation(Simulator):
    """Both networks in simulated time, without threads. ``faults`` are those of MemoryNetwork, for both."""

    def __init__(
        self, tmp_path, *, seed=0, scheme="rsa2048", policy=None, lamps=LAMPS, join="simple", stores=None, **faults
    ):
        clock = Clock()
        super().__init__({name: MemoryNetwork(seed, clock=clock, **faults) for name in ("home", "away")}, clock)
        self.tmp_path = tmp_path
        self.scheme = scheme
        self.join = join
        self.policy = policy or Policy(require_bound_tokens=True)
        self.randbytes = random.Random(seed).randbytes
        self.stores = stores or {}  # by identity
        self.values = []  # what the away server's owner was shown
        self.shared = list(lamps)
        self.allowed = True
        self.moderated = []
        self.rings = {
            "home": KeyRing({who: self.key(who).public_key for who in (HOME_ID, NEIGHBOUR)}),
            "away": KeyRing({who: self.key(who).public_key for who in (AWAY_ID, *lamps)}),
        }
        self.home = self.server(HOME, "home")
        self.away = self.server(AWAY, "away", syndication_devices=[AWAY_ID])
        self.bridge = SyndicationDevice(HOME_ID, self.key(HOME_ID), **self.options(HOME_ID, HOME, "home"))
        self.neighbour = Device(NEIGHBOUR, self.key(NEIGHBOUR), **self.options(NEIGHBOUR, HOME, "home"))
        self.lamps = {lamp: Device(lamp, self.key(lamp), **self.options(lamp, AWAY, "away")) for lamp in lamps}
        self.everybody = [self.home, self.away, self.bridge, self.neighbour, *self.lamps.values()]
        self.done = []  # (lamp, action)
        for lamp, device in self.lamps.items():
            device.on_action(1)(lambda _, lamp=lamp: self.done.append((lamp, 1)))
        for agent in self.agents:
            self.watch(agent)
        self.bridge.on_syndication_init(self.enter)
        self.away.on_syndication_request(self.request)
        self.away.on_syndicated_action(self.moderate)
        self.away.on_syndicated_identify(self.moderate)
        self.away.on_syndicated_request(self.moderate)

    @property
    def agents(self):
        return self.everybody

    def key(self, identity):
        return key_of(identity, self.scheme)

    def server(self, identity, network, **options):
        broker = MemoryTransport(self.networks[network], f"server-{identity:x}")
        common = {"policy": self.policy, "clock": self.clock, "entropy": self.randbytes}
        options = {"store": self.stores.get(identity)} | common | options
        return SyndicationServer(identity, self.key(identity), devices=self.rings[network], broker=broker, **options)

    def options(self, identity, server, network):
        return {
            "server": server,
            "server_key": self.key(server).public_key,
            "broker": MemoryTransport(self.networks[network], f"device-{identity:x}"),
            "firmware": self.tmp_path / f"{identity:x}",
            "description": f"device {identity:x}",
            "policy": self.policy,
            "fetcher": MemoryFetcher({}),
            "clock": self.clock,
            "entropy": self.randbytes,
            "store": self.stores.get(identity),
        }

    # What the owners do.

    def enter(self, url):
        assert url == KEY_SERVICE
        broker = MemoryTransport(self.networks["away"], f"device-{AWAY_ID:x}")
        return AwayNetwork(AWAY_ID, self.key(AWAY_ID), AWAY, self.key(AWAY).public_key, broker, self.join)

    def request(self, device, value):
        assert device == AWAY_ID
        self.values.append(value)
        return self.shared

    def moderate(self, *arguments):
        self.moderated.append(arguments)
        return self.allowed

    # Time.

    def start(self):
        for agent in self.agents:
            agent.start(threads=False)
        self.settle()
        return self

    def syndicated(self):
        """Start, join, and begin a syndication."""
        self.start()
        future = self.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        self.settle()
        assert future.result(0) is None
        assert self.home.shared_devices(HOME_ID) == tuple(self.shared)
        assert self.refusals == []
        return self

    def answered(self, future, seconds=300):
        """Let time pass until this future has a result; return it."""
        self.run(future.done, seconds)
        return future.result(0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for agent in self.agents:
            agent.stop()
