"""A fleet's world: two servers, devices and a hostile broker in simulated time.

It puts the parties, their operators, the environment, the attacker and the oracle together and runs their steps.
"""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from ..agent.joining import REJOIN
from ..fetch import MemoryFetcher
from ..session import Policy
from .attacker import Attacker
from .base import BaseWorld
from .operators import Operators
from .options import Options
from .oracle import Oracle
from .parties import DeviceParty, ServerParty
from .party import Party

__all__ = ["SERVERS", "World"]

SERVERS: Final = (0x5E, 0x5F)
FIRST_DEVICE: Final = 0xD0
MOLE: Final = 0xBAD
"""A registered device whose key the attacker has."""


class World(BaseWorld):
    """Two servers that know each other's devices, ``options.devices`` devices, one of which may observe others.

    ``folder`` is where the devices keep their firmware.
    """

    ROLLOUT: ClassVar[float] = 600.0
    """How long a server's rotation lasts, in seconds."""

    policy: Policy = Policy(
        clock_skew=5.0,
        lifetime=60.0,
        update_lifetime=600.0,
        join_lifetime=90.0,
        first_retry=2.0,
        max_retry=30.0,
        key_overlap=1800.0,
    )

    def __init__(self, seed: int | str, folder: Path, options: Options | None = None) -> None:
        super().__init__(seed, folder, options or Options(), [""])
        if self.options.durable:  # else a value may be taken for a deployed peer's
            self.policy = replace(self.policy, require_bound_tokens=True)
        self.network = self.networks[""]
        self.host = MemoryFetcher({})
        self.oracle: Oracle = Oracle(self.ledger, self.clock, self.policy, SERVERS, MOLE, self.options.durable)
        self.operators = Operators(self)
        chance = self.stream("cast")
        admission = chance.choice(("simple", "simple", "human", "observed"))
        observers = (FIRST_DEVICE,) if admission == "observed" else ()
        self.servers: dict[int, ServerParty] = {}
        self.servers[SERVERS[0]] = ServerParty(self, SERVERS[0], self._skew(chance), admission, observers)
        self.servers[SERVERS[1]] = ServerParty(self, SERVERS[1], self._skew(chance), "simple", observers)
        self.devices: dict[int, DeviceParty] = {}
        for identity in range(FIRST_DEVICE, FIRST_DEVICE + self.options.devices):
            self._add(identity, admission, chance)
        self.attacker = Attacker(self, self.network, MOLE, self.stream("attacker"), self.servers, self.devices)
        for server in self.servers.values():
            server.register(MOLE, self.attacker.key.public_key)
        for party in self.parties:
            party.boot()

    @staticmethod
    def _skew(chance: random.Random) -> float:
        return chance.randrange(-8, 9) / 4

    def _add(self, identity: int, admission: str, chance: random.Random) -> None:
        join, observer = admission, None
        if admission == "simple":
            join = chance.choice(("simple", "simple", "simple", "human"))
        elif admission == "observed" and identity == FIRST_DEVICE:
            join = "human"
        elif admission == "observed":
            join, observer = chance.choice((("observed", FIRST_DEVICE), ("simple", None)))
        device = self.devices[identity] = DeviceParty(self, identity, self._skew(chance), join, observer)
        device.floor = device.first_floor = chance.choice((None, 0))
        device.commanders = chance.choice(((), (SERVERS[1],)))
        for server in self.servers.values():
            server.register(identity, device.key.public_key)
            device.server_keys[server.identity] = server.key.public_key

    @property
    def everybody(self) -> Mapping[int, Party]:
        """See :class:`BaseWorld`."""
        return {**self.servers, **self.devices}

    def effect(
        self, party: Party, kind: str, issuer: int, what: Any, again: bool, valid: frozenset[str] | None = None
    ) -> bool:
        """Let an effect be checked and decide whether it succeeds; ``again``: it may have happened before."""
        good = kind == "data" or not self.chance(0.1)
        self.note(f"{party} takes {kind} {what} of {issuer:x}{'' if good else ', and fails'}")
        self.oracle.effect(
            *(kind, issuer, party.identity, what), local=party.clock.now, again=again, good=good, valid=valid
        )
        return good

    # The end.

    def converge(self) -> None:
        """End all faults and attacks, start what is dead, and give everybody the time to come to an agreement."""
        for server in self.servers.values():
            server.lenient = True
        self.environment.end_faults()
        observer = self.devices[FIRST_DEVICE]
        if any(observer.identity not in server.ring for server in self.servers.values()):
            self.operators.provision(observer)
        passed = 0.0
        while passed < 2 * self.policy.key_overlap + 2 * REJOIN:
            for server in self.servers.values():
                for pending in server.agent.pending_joins:
                    server.decide(pending, "look")
            for device in self.devices.values():
                self.operators.bring_in(device)
            pause = 20.0 if passed < 2 * self.policy.update_lifetime else 300.0
            self.pass_time(pause)
            passed += pause
        for server in self.servers.values():
            for identity in sorted(server.agent.members & self.devices.keys()):
                self.operators.identify(server, identity)  # who has left without being heard says so now
        self.operators.activate_all()
        self.pass_time(self.policy.lifetime)

    def check_agreement(self) -> None:
        """Let it be checked what must hold after :meth:`converge`."""
        self.check()
        self.oracle.check_orders()
        servers = [server.view() for server in self.servers.values()]
        devices = {identity: device.view() for identity, device in self.devices.items()}
        self.oracle.check_agreement(servers, devices, FIRST_DEVICE)
        for party in self.parties:
            if party.up:
                self.oracle.check_ended(party.hanging())
        self.oracle.check_understanding(self.operators.probe())
        self.settle()
