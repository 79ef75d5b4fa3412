"""What may happen in a syndication world, and how often in relation to the rest."""

import random
from collections.abc import Callable
from typing import Final

from ..party import Party
from ..schedule import crash, fill, heal, restart
from .operators import Operators
from .parties import Lamp, Relay, SharingServer
from .world import SyndicationWorld

__all__ = ["ACTS"]

Act = Callable[[SyndicationWorld, random.Random], bool]


def _relay(world: SyndicationWorld, chance: random.Random) -> Relay:
    return chance.choice(list(world.relays.values()))


def _of_relay(order: Callable[[Operators, Relay], object]) -> Act:
    return lambda world, chance: bool(order(world.operators, _relay(world, chance)))


def _in_use(world: SyndicationWorld, chance: random.Random) -> Relay:
    """Mostly a relay in a syndication, as home sees it."""
    relays = [relay for relay in world.relays.values() if relay.home.up]
    used = [relay for relay in relays if relay.home.agent.shared_devices(relay.identity)]
    return chance.choice(used) if used and chance.random() < 0.9 else _relay(world, chance)


def _lamp(world: SyndicationWorld, chance: random.Random) -> Lamp | None:
    """A device, mostly one that its owner offers to others."""
    lamps = list(world.lamps.values())
    offered = [lamp for lamp in lamps if any(relay.away is lamp.server for relay in world.relays.values())]
    return chance.choice(offered if offered and chance.random() < 0.8 else lamps) if lamps else None


def _of_lamp(order: Callable[[Operators, Lamp], bool]) -> Act:
    def act(world: SyndicationWorld, chance: random.Random) -> bool:
        lamp = _lamp(world, chance)
        return lamp is not None and order(world.operators, lamp)

    return act


def _of_shared(order: Callable[[Operators, Relay, int], bool]) -> Act:
    """Something of a device that is shared, or of any."""

    def act(world: SyndicationWorld, chance: random.Random) -> bool:
        relay = _in_use(world, chance)
        shared = relay.home.agent.shared_devices(relay.identity) if relay.home.up else ()
        device = chance.choice(list(shared) if shared and chance.random() < 0.9 else list(world.lamps or [0xC0]))
        return order(world.operators, relay, device)

    return act


def _some_lamps(world: SyndicationWorld, relay: Relay, chance: random.Random) -> tuple[int, ...]:
    lamps = world.own_lamps(relay.away)
    return tuple(sorted(chance.sample(lamps, chance.randrange(len(lamps) + 1))))


def _share(world: SyndicationWorld, chance: random.Random) -> bool:
    relay = _relay(world, chance)
    return world.operators.share(relay, _some_lamps(world, relay, chance))


def _offer(world: SyndicationWorld, chance: random.Random) -> bool:
    relay = _relay(world, chance)
    return world.operators.offer(relay, _some_lamps(world, relay, chance))


def _terminate(world: SyndicationWorld, chance: random.Random) -> bool:
    return world.operators.terminate(_relay(world, chance), for_good=chance.random() < 0.3)


def _server(world: SyndicationWorld, chance: random.Random) -> SharingServer:
    return chance.choice(list(world.servers.values()))


def _device(world: SyndicationWorld, chance: random.Random) -> Lamp:
    return chance.choice([*world.relays.values(), *world.lamps.values()])


def _party(world: SyndicationWorld, chance: random.Random) -> Party:
    return chance.choice([*world.parties, *world.relays.values()])


def _put_out(world: SyndicationWorld, chance: random.Random) -> bool:
    server = _server(world, chance)
    members = sorted(server.agent.members) if server.up else []
    return bool(members) and world.operators.put_out(server, chance.choice(members))


def _rejoin(world: SyndicationWorld, chance: random.Random) -> bool:
    devices: list[Lamp] = [*world.relays.values(), *world.lamps.values()]
    out = [device for device in devices if device.up and not device.agent.joined]
    return bool(out) and world.operators.rejoin(chance.choice(out))


def _weather(world: SyndicationWorld, chance: random.Random) -> bool:
    return world.environment.weather(chance.randrange(10), chance.choice(list(world.networks)))


def _attack(kind: str) -> Act:
    def act(world: SyndicationWorld, chance: random.Random) -> bool:
        return world.options.attack and chance.choice(list(world.attackers.values())).attack(kind)

    return act


ACTS: Final[dict[str, tuple[int, Act]]] = {
    "begin": (26, _of_relay(Operators.begin)),
    "end": (4, _of_relay(Operators.end)),
    "share": (4, _share),
    "terminate syndication": (3, _terminate),
    "offer again": (6, _offer),
    "syndicated action": (20, _of_shared(Operators.syndicated_action)),
    "syndicated identify": (6, _of_shared(Operators.syndicated_identify)),
    "syndicated request": (6, lambda world, chance: bool(world.operators.syndicated_request(_in_use(world, chance)))),
    "action": (6, _of_lamp(lambda operators, lamp: operators.action(lamp.server, lamp.identity))),
    "identify": (2, _of_lamp(lambda operators, lamp: operators.identify(lamp.server, lamp.identity))),
    "data": (16, _of_lamp(Operators.data)),
    "action of a relay": (2, _of_relay(lambda operators, relay: operators.action(relay.home, relay.identity))),
    "put out": (2, _put_out),
    "resign": (1, lambda world, chance: world.operators.resign(_device(world, chance))),
    "rejoin": (14, _rejoin),
    "decide": (16, lambda world, chance: world.operators.decide(_server(world, chance), 0, chance.random() < 0.1)),
    "weather": (6, _weather),
    "hold back": (3, lambda world, chance: world.environment.hold_back(chance.choice(list(world.networks)))),
    "cut": (3, lambda world, chance: world.environment.cut(_party(world, chance), chance.randrange(2))),
    "heal": (8, heal),
    "crash": (4, crash),
    "full disk": (2, fill),
    "restart": (20, restart),
    "replay": (10, _attack("replay")),
    "recall": (24, _attack("recall")),
    "redirect": (8, _attack("redirect")),
    "smuggle": (8, _attack("smuggle")),
    "truncate": (1, _attack("truncate")),
    "flip": (3, _attack("flip")),
    "forge": (6, _attack("forge")),
    "speak": (6, _attack("speak")),
}
"""What may happen, how often in relation to the rest, and how it is done."""
