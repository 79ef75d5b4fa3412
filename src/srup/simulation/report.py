"""Runs: acts that are drawn from the seed, then peace, then agreement."""

import logging
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .acts import ACTS
from .base import BaseWorld
from .ledger import Violation
from .options import Options
from .schedule import act
from .simulator import START
from .syndication import ACTS as SYNDICATION_ACTS
from .syndication import SyndicationWorld
from .world import World

__all__ = ["Report", "run"]

_World = TypeVar("_World", bound=BaseWorld)


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


@contextmanager
def _marked_log() -> Iterator[None]:
    """Let what this thread logs begin with ``simulated:`` during this block: no full disk in it is a real one."""
    thread = threading.get_ident()

    def mark(record: logging.LogRecord) -> bool:
        if record.thread == thread:
            record.msg, record.simulated = f"simulated: {record.msg}", True
        return True

    loggers = [logging.getLogger(f"srup.{part}") for part in ("agent", "transport", "store")]
    for logger in loggers:
        logger.addFilter(mark)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(mark)


def run(seed: int | str, options: Options | None = None) -> Report:
    """Let a world happen: ``options.steps`` acts, then peace, then agreement. Nothing but the arguments decides how."""
    options = options or Options()
    with tempfile.TemporaryDirectory(prefix="srup-simulation-") as folder, _marked_log():
        if options.syndication:
            return _live(SyndicationWorld(seed, Path(folder), options), SYNDICATION_ACTS)
        return _live(World(seed, Path(folder), options), ACTS)


def _live(world: _World, acts: Mapping[str, tuple[int, Callable[[_World, random.Random], bool]]]) -> Report:
    chance = world.stream("schedule")
    try:
        world.settle()
        for _ in range(world.options.steps):
            act(world, acts, chance)
            world.check()
            if world.ledger.violations:
                break
        else:
            world.converge()
            world.check_agreement()
    except TimeoutError as error:
        world.violate("hanging", str(error))
    world.report()
    return Report(
        seed=world.seed,
        options=world.options,
        violations=tuple(world.ledger.violations),
        counts=dict(sorted((world.counts + world.ledger.counts).items())),
        digest=world.digest,
        trace=tuple(world.trace),
        seconds=world.clock.now - START,
    )
