"""What may happen to any world, and how a run lets one thing after the other happen to it, drawn from the seed."""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

from .base import BaseWorld
from .party import Party

__all__ = ["act", "crash", "fill", "heal", "restart"]

_World = TypeVar("_World", bound=BaseWorld)


def act(
    world: _World, acts: Mapping[str, tuple[int, Callable[[_World, random.Random], bool]]], chance: random.Random
) -> None:
    """Let one of these things happen, each as often as its number says, and then some time pass."""
    name = chance.choices(list(acts), [weight for weight, _ in acts.values()])[0]
    if acts[name][1](world, chance):
        world.counts["acts"] += 1
        world.counts[f"act {name}"] += 1
    pause = chance.choices((0.0, 1.0, 10.0, 60.0), (3, 6, 3, 1))[0]
    world.pass_time(chance.uniform(0.0, pause))


def _party(world: BaseWorld, chance: random.Random) -> Party:
    return chance.choice(world.parties)


def crash(world: BaseWorld, chance: random.Random) -> bool:
    """Let somebody die, now or soon."""
    return world.environment.crash(_party(world, chance), chance.choice((None, 0, 1, 2, 3, 5)))


def fill(world: BaseWorld, chance: random.Random) -> bool:
    """Let somebody's disk be full for a while."""
    return world.environment.fill(_party(world, chance), chance.choice((1, 2, 5, 20)))


def restart(world: BaseWorld, chance: random.Random) -> bool:
    """Start somebody who is dead."""
    dead = [party for party in world.parties if not party.up]
    return bool(dead) and world.environment.restart(chance.choice(dead))


def heal(world: BaseWorld, chance: random.Random) -> bool:
    """Give somebody his links back."""
    cut = [party for party in world.parties if party.cut]
    return bool(cut) and world.environment.heal(chance.choice(cut))
