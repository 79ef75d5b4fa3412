"""What may happen to a fleet, and how often in relation to the rest."""

import random
from collections.abc import Callable
from typing import Final

from .operators import Operators
from .parties import DeviceParty, ServerParty
from .party import Party
from .schedule import crash, fill, heal, restart
from .world import SERVERS, World

__all__ = ["ACTS"]

Act = Callable[[World, random.Random], bool]


def _device(world: World, chance: random.Random) -> DeviceParty:
    return chance.choice(list(world.devices.values()))


def _party(world: World, chance: random.Random) -> Party:
    return chance.choice(world.parties)


def _server(world: World, chance: random.Random) -> ServerParty:
    return world.servers[SERVERS[0]] if chance.random() < 0.7 else world.servers[SERVERS[1]]


def _pair(world: World, chance: random.Random) -> tuple[ServerParty, DeviceParty]:
    """A device, mostly one that is joined, and mostly its own server."""
    joined = [device for device in world.devices.values() if device.up and device.agent.joined]
    device = chance.choice(joined) if joined and chance.random() < 0.8 else _device(world, chance)
    return (world.servers[device.server] if chance.random() < 0.9 else _server(world, chance)), device


def _both_ways(order: Callable[[Operators, Party, int], bool]) -> Act:
    def act(world: World, chance: random.Random) -> bool:
        server, device = _pair(world, chance)
        if chance.random() < 0.5:
            return order(world.operators, server, device.identity)
        return order(world.operators, device, server.identity)

    return act


def _of_server(order: Callable[[Operators, ServerParty, int], bool]) -> Act:
    def act(world: World, chance: random.Random) -> bool:
        server, device = _pair(world, chance)
        return order(world.operators, server, device.identity)

    return act


def _of_owner(order: Callable[[Operators, DeviceParty], bool]) -> Act:
    return lambda world, chance: order(world.operators, _device(world, chance))


def _update(world: World, chance: random.Random) -> bool:
    server, device = _pair(world, chance)
    host = chance.choices(("good", "lying", "lost", "fickle"), (7, 1, 1, 1))[0]
    age = chance.choice((0, 0, chance.randrange(1, 40)))
    return world.operators.update(server, device.identity, chance.random() < 0.4, age, host)


def _send_away(world: World, chance: random.Random) -> bool:
    server, device = _pair(world, chance)
    other = next(identity for identity in SERVERS if identity != server.identity)
    return device.server == server.identity and world.operators.command_join(server, device.identity, other)


def _readmit(world: World, chance: random.Random) -> bool:
    server = _server(world, chance)
    return bool(server.banned) and world.operators.readmit(server, chance.choice(sorted(server.banned)))


def _decide(world: World, chance: random.Random) -> bool:
    how = chance.choice(("look", "look", "look", "look", "refuse", "fail"))
    return world.operators.decide(_server(world, chance), chance.randrange(10), how)


def _attack(kind: str) -> Act:
    return lambda world, _chance: world.options.attack and world.attacker.attack(kind)


ACTS: Final[dict[str, tuple[int, Act]]] = {
    "action": (14, _both_ways(Operators.action)),
    "data": (10, _both_ways(Operators.data)),
    "identify": (4, _of_server(Operators.identify)),
    "update": (20, _update),
    "activate": (9, lambda world, chance: world.operators.activate(chance.randrange(10))),
    "corrupt": (4, lambda world, chance: world.environment.corrupt(_device(world, chance))),
    "terminate": (2, _of_server(lambda operators, server, device: operators.terminate(server, device, ban=False))),
    "ban": (1, _of_server(lambda operators, server, device: operators.terminate(server, device, ban=True))),
    "readmit": (3, _readmit),
    "deregister": (1, _of_server(Operators.deregister)),
    "revoke": (2, _of_server(Operators.revoke)),
    "provision": (4, _of_owner(Operators.provision)),
    "rotate device": (2, _of_owner(Operators.rotate)),
    "offer again": (3, _of_owner(Operators.offer_again)),
    "rotate server": (1, lambda world, chance: world.operators.rotate(_server(world, chance))),
    "command join": (2, _of_server(Operators.command_join)),
    "send away": (2, _send_away),
    "resign": (3, _of_owner(Operators.resign)),
    "leave for good": (1, _of_owner(lambda operators, device: operators.resign(device, for_good=True))),
    "rejoin": (10, _of_owner(Operators.rejoin)),
    "decide": (16, _decide),
    "weather": (4, lambda world, chance: world.environment.weather(chance.randrange(10))),
    "cut": (2, lambda world, chance: world.environment.cut(_party(world, chance))),
    "heal": (8, heal),
    "crash": (5, crash),
    "full disk": (2, fill),
    "restart": (14, restart),
    "replay": (10, _attack("replay")),
    "redirect": (16, _attack("redirect")),
    "truncate": (2, _attack("truncate")),
    "flip": (4, _attack("flip")),
    "forge": (6, _attack("forge")),
    "speak": (6, _attack("speak")),
    "stale": (4, _attack("stale")),
}
"""What may happen, how often in relation to the rest, and how it is done."""
