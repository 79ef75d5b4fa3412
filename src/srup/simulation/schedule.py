"""Runs: what happens is drawn from the seed, act by act; in the end everything must agree."""

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .ledger import Violation
from .parties import DeviceParty, Party, ServerParty
from .simulator import START
from .world import SERVERS, Options, World

__all__ = ["ACTS", "Report", "act", "run"]

Act = Callable[[World, random.Random], bool]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to. ``digest`` is that of its ``trace``; ``seconds`` are simulated ones."""

    seed: int | str
    options: Options
    violations: tuple[Violation, ...]
    counts: dict[str, int]
    digest: str
    trace: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing happened that must not."""
        return not self.violations


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


def _both_ways(order: Callable[[World, Party, int], bool]) -> Act:
    def act(world: World, chance: random.Random) -> bool:
        server, device = _pair(world, chance)
        if chance.random() < 0.5:
            return order(world, server, device.identity)
        return order(world, device, server.identity)

    return act


def _of_server(order: Callable[[World, ServerParty, int], bool]) -> Act:
    def act(world: World, chance: random.Random) -> bool:
        server, device = _pair(world, chance)
        return order(world, server, device.identity)

    return act


def _update(world: World, chance: random.Random) -> bool:
    server, device = _pair(world, chance)
    host = chance.choices(("good", "lying", "lost", "fickle"), (7, 1, 1, 1))[0]
    age = chance.choice((0, 0, chance.randrange(1, 40)))
    return world.update(server, device.identity, chance.random() < 0.4, age, host)


def _send_away(world: World, chance: random.Random) -> bool:
    server, device = _pair(world, chance)
    other = next(identity for identity in SERVERS if identity != server.identity)
    return device.server == server.identity and world.summon(server, device.identity, other)


def _readmit(world: World, chance: random.Random) -> bool:
    server = _server(world, chance)
    return bool(server.banned) and world.readmit(server, chance.choice(sorted(server.banned)))


def _decide(world: World, chance: random.Random) -> bool:
    how = chance.choice(("look", "look", "look", "look", "refuse", "fail"))
    return world.decide(_server(world, chance), chance.randrange(10), how)


def _crash(world: World, chance: random.Random) -> bool:
    return world.crash(_party(world, chance), chance.choice((None, 0, 1, 2, 3, 5)))


def _restart(world: World, chance: random.Random) -> bool:
    dead = [party for party in world.parties if not party.up]
    return bool(dead) and world.restart(chance.choice(dead))


def _heal(world: World, chance: random.Random) -> bool:
    cut = [party for party in world.parties if party.cut]
    return bool(cut) and world.heal(chance.choice(cut))


def _attack(way: str) -> Act:
    return lambda world, _chance: world.options.attack and world.attacker.attack(way)


ACTS: Final[dict[str, tuple[int, Act]]] = {
    "action": (14, _both_ways(World.action)),
    "data": (10, _both_ways(World.data)),
    "identify": (4, _of_server(World.identify)),
    "update": (20, _update),
    "activate": (9, lambda world, chance: world.activate(chance.randrange(10))),
    "corrupt": (4, lambda world, chance: world.corrupt(_device(world, chance))),
    "terminate": (2, _of_server(lambda world, server, device: world.terminate(server, device, ban=False))),
    "ban": (1, _of_server(lambda world, server, device: world.terminate(server, device, ban=True))),
    "readmit": (3, _readmit),
    "deregister": (1, _of_server(World.deregister)),
    "revoke": (2, _of_server(World.revoke)),
    "provision": (4, lambda world, chance: world.provision(_device(world, chance))),
    "rotate device": (2, lambda world, chance: world.rotate(_device(world, chance))),
    "insist": (3, lambda world, chance: world.insist(_device(world, chance))),
    "rotate server": (1, lambda world, chance: world.rotate(_server(world, chance))),
    "summon": (2, _of_server(World.summon)),
    "send away": (2, _send_away),
    "resign": (3, lambda world, chance: world.resign(_device(world, chance))),
    "leave for good": (1, lambda world, chance: world.resign(_device(world, chance), for_good=True)),
    "rejoin": (10, lambda world, chance: world.rejoin(_device(world, chance))),
    "decide": (16, _decide),
    "weather": (4, lambda world, chance: world.weather(chance.randrange(10))),
    "cut": (2, lambda world, chance: world.cut(_party(world, chance))),
    "heal": (8, _heal),
    "crash": (5, _crash),
    "full disk": (2, lambda world, chance: world.fill(_party(world, chance), chance.choice((1, 2, 5, 20)))),
    "restart": (14, _restart),
    "replay": (10, _attack("replay")),
    "redirect": (16, _attack("redirect")),
    "truncate": (2, _attack("truncate")),
    "flip": (4, _attack("flip")),
    "forge": (6, _attack("forge")),
    "speak": (6, _attack("speak")),
    "stale": (4, _attack("stale")),
}
"""What may happen, how often in relation to the rest, and how it is done."""


def act(world: World, chance: random.Random) -> None:
    """Let one thing happen and then some time pass."""
    name = chance.choices(list(ACTS), [weight for weight, _ in ACTS.values()])[0]
    if ACTS[name][1](world, chance):
        world.counts["acts"] += 1
        world.counts[f"act {name}"] += 1
    pause = chance.choices((0.0, 1.0, 10.0, 60.0), (3, 6, 3, 1))[0]
    world.pass_time(chance.uniform(0.0, pause))


def run(seed: int | str, options: Options | None = None) -> Report:
    """Let a world happen: ``options.steps`` acts, then peace, then agreement. Nothing but the arguments decides how."""
    options = options or Options()
    with tempfile.TemporaryDirectory(prefix="srup-simulation-") as folder:
        world = World(seed, Path(folder), options)
        chance = world.stream("schedule")
        try:
            world.settle()
            for _ in range(options.steps):
                act(world, chance)
                world.check()
                if world.ledger.violations:
                    break
            else:
                world.quiet()
                world.check_agreement()
        except TimeoutError as error:
            world.violate("hanging", str(error))
        world.report()
        return Report(
            seed=seed,
            options=options,
            violations=tuple(world.ledger.violations),
            counts=dict(sorted((world.counts + world.ledger.counts).items())),
            digest=world.digest,
            trace=tuple(world.trace),
            seconds=world.clock.now - START,
        )
