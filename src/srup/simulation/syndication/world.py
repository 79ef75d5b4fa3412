"""A syndication world: several owners, each with a server, devices and a broker, and relays between them.

It puts the parties, their owners, the environment, the attackers and the oracle together and runs their steps.
"""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from ...agent.joining import REJOIN
from ...codec import decode
from ...fetch import MemoryFetcher
from ...messages import SCHEMA, Action, ResignRequest, Response, SyndicatedData
from ...session import Policy
from ...session.syndication import Role
from ...transport import parse_topic
from ...wire import Status
from ..attacker import Attacker
from ..base import BaseWorld
from ..options import Options
from ..party import Party
from .attacker import SYNDICATION
from .operators import Operators
from .oracle import LinkView, Oracle, Side
from .parties import Lamp, Relay, SharingServer

__all__ = ["SyndicationWorld"]

SITES: Final = {"home": 0xA1, "away": 0xA2, "third": 0xA3}
"""The owners' networks, and the identities of their servers."""

TOPOLOGIES: Final = (
    (("home", "away"),),
    (("home", "away"), ("away", "home")),
    (("home", "away"), ("home", "third")),
    (("home", "away"), ("third", "away")),
)
"""Between which home and which away there are relays."""

REVIEWED: Final = 6
"""After how many rounds of the end home's owner looks again whether a syndication works."""

MOLE: Final = 0xBAD
"""A registered device of each network whose key the attacker has."""


class SyndicationWorld(BaseWorld):
    """One to two relays between two or three owners, who have ``options.devices`` devices between them."""

    RELAYS: ClassVar[tuple[tuple[int, int], ...]] = ((0xB1, 0xE1), (0xB2, 0xE2))
    """The identities of the relays, at home and away."""

    policy: Policy = Policy(
        clock_skew=5.0,
        lifetime=60.0,
        update_lifetime=600.0,
        join_lifetime=90.0,
        first_retry=2.0,
        max_retry=30.0,
        key_overlap=1800.0,
        require_bound_tokens=True,
    )

    def __init__(self, seed: int | str, folder: Path, options: Options | None = None) -> None:
        options = options or Options(syndication=True)
        chance = random.Random(f"{seed}/cast")  # noqa: S311 - must be repeatable, and guards nothing
        topology = chance.choice(TOPOLOGIES)
        names = [name for name in SITES if any(name in pair for pair in topology)]
        super().__init__(seed, folder, options, names)
        self.policy = replace(self.policy)
        self.host = MemoryFetcher({})
        self.oracle: Oracle = Oracle(
            *(self.ledger, self.clock, self.policy),
            {
                relay: (SITES[home], SITES[away])
                for (relay, _), (home, away) in zip(self.RELAYS, topology, strict=False)
            },
            [MOLE],
            self.options.durable,
        )
        self.operators = Operators(self)
        self.sites = {name: SharingServer(self, SITES[name], self._skew(chance), name) for name in names}
        self.servers = {server.identity: server for server in self.sites.values()}
        self.relays: dict[int, Relay] = {}
        for (relay, away_id), (home, away) in zip(self.RELAYS, topology, strict=False):
            self._add_relay(relay, away_id, self.sites[home], self.sites[away], chance)
        self.lamps: dict[int, Lamp] = {}
        owners = list(self.sites.values())
        for number in range(self.options.devices):
            server = owners[(number + 1) % len(owners)]
            lamp = self.lamps[0xC0 + number] = Lamp(self, 0xC0 + number, self._skew(chance), server)
            server.register(lamp.identity, lamp.key.public_key)
        for one in self.relays.values():
            one.away.offers[one.identity] = tuple(self.own_lamps(one.away))
        self.attackers = {name: self._attacker(name) for name in names}
        for party in self.parties:
            party.boot()

    @staticmethod
    def _skew(chance: random.Random) -> float:
        return chance.randrange(-8, 9) / 4

    def _add_relay(
        self, identity: int, away_id: int, home: SharingServer, away: SharingServer, chance: random.Random
    ) -> None:
        join = chance.choice(("simple", "simple", "human"))
        relay = self.relays[identity] = Relay(self, identity, away_id, self._skew(chance), home, away, join)
        home.register(identity, relay.key.public_key)
        away.register(away_id, relay.away_key.public_key)
        away.admitted.append(away_id)

    def _attacker(self, name: str) -> Attacker:
        server, network = self.sites[name], self.networks[name]
        devices = [lamp.identity for lamp in self.lamps.values() if lamp.server is server]
        devices += [relay.identity for relay in self.relays.values() if relay.home is server]
        devices += [relay.away_id for relay in self.relays.values() if relay.away is server]
        others = [other for other in self.networks.values() if other is not network]
        chance = self.stream(f"attacker {name}")
        attacker = Attacker(self, network, MOLE, chance, [server.identity], devices, others, SYNDICATION)
        server.register(MOLE, attacker.key.public_key)
        return attacker

    @property
    def everybody(self) -> Mapping[int, Party]:
        """See :class:`BaseWorld`."""
        return {**self.servers, **self.relays, **self.lamps}

    def own_lamps(self, server: SharingServer) -> list[int]:
        """Return the devices of a server that its owner may share."""
        return [lamp.identity for lamp in self.lamps.values() if lamp.server is server]

    def relay_at(self, away_id: int) -> Relay:
        """Return the relay that has this identity at its away server."""
        return next(relay for relay in self.relays.values() if relay.away_id == away_id)

    # What the parties tell.

    def sent(self, party: Party, name: str, topic: str, wire: bytes) -> None:
        """See :meth:`BaseWorld.sent`."""
        super().sent(party, name, topic, wire)
        frame = decode(wire)
        if isinstance(party, Relay) and frame.sender_id == party.away_id and SCHEMA[frame.type] is ResignRequest:
            party.farewells += 1
        if isinstance(party, Relay) and frame.sender_id == party.identity and SCHEMA[frame.type] is Response:
            answer = frame.verify(party.key.public_key)
            if isinstance(answer, Response) and answer.status == Status.JOIN_FAIL:
                self.oracle.ends(party.identity, Side.AWAY)  # it waits no longer for the answer of the away server
        if party.identity not in self.servers or frame.sender_id != party.identity:
            return
        message = frame.verify(party.key.public_key)
        to = parse_topic(topic).device
        if isinstance(message, Action):
            self.oracle.sent_action(party.identity, to, message.action_id)
        elif isinstance(message, SyndicatedData):
            self.oracle.sent_value(self.relay_at(to).identity, message.source_id, message.data_id)

    def effect(self, party: Party, kind: str, issuer: int, what: Any, again: bool) -> bool:
        """Let an effect be checked and decide whether it succeeds; ``again``: it may have happened before."""
        good = kind == "data" or not self.chance(0.1)
        self.note(f"{party} takes {kind} {what} of {issuer:x}{'' if good else ', and fails'}")
        self.oracle.effect(kind, issuer, party.identity, what, local=party.clock.now, again=again, good=good)
        return good

    # The end.

    def converge(self) -> None:
        """End all faults and attacks, start what is dead, and give all owners the time to come to an agreement."""
        for server in self.servers.values():
            server.lenient = True
        self.environment.end_faults()
        passed, rounds = 0.0, 0
        while passed < 4 * REJOIN:
            for server in self.servers.values():
                for pending in server.agent.pending_joins:
                    server.decide(pending, refuse=False)
            for device in (*self.relays.values(), *self.lamps.values()):
                self.operators.bring_in(device)
            for relay in self.relays.values():
                self.operators.tidy(relay)
            pause = 20.0 if passed < 2 * self.policy.update_lifetime else 300.0
            self.pass_time(pause)
            passed, rounds = passed + pause, rounds + 1
            if rounds % REVIEWED == 0:
                for relay in self.relays.values():
                    self.operators.review(relay)
                for lamp in self.lamps.values():  # for whoever forgot a syndication hears of it by what comes
                    self.operators.data(lamp)

    def link_view(self, relay: Relay) -> LinkView:
        """Return what can be seen of the syndication by a relay."""
        at_home: Any = relay.home.agent.debug.session
        at_away: Any = relay.away.agent.debug.session
        home, away = at_home.syndication(relay.identity), at_away.syndication(relay.away_id)
        known = away is not None and away.role is Role.AWAY
        return LinkView(
            relay=relay.identity,
            wanted=relay.home.wants.get(relay.identity, False),
            offered=relay.away.offers[relay.identity],
            shared=None if home is None else relay.home.agent.shared_devices(relay.identity),
            sharing=tuple(device for _, device in sorted(away.devices.items())) if known else None,
            inside=relay.away_id in relay.away.agent.members,
            present=relay.agent.away is not None,
            possible=relay.up and relay.agent.joined,
        )

    def check_agreement(self) -> None:
        """Let it be checked what must hold after :meth:`converge`."""
        self.check()
        self.oracle.check_orders()
        self.oracle.check_agreement([self.link_view(relay) for relay in self.relays.values()])
        for party in self.parties:
            self.oracle.check_ended(party.hanging())
        orders, expected = self.operators.probe()
        self.oracle.check_understanding(orders)
        self.oracle.check_values(expected)
        self.settle()
