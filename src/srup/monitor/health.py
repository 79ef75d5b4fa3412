"""What is wrong with an agent, read from its vitals.

Two questions, because there are two remedies: who is not alive is to be started anew, who is not ready is to be waited
for, since the broker or the disk will come back and a restart would not help.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple

from ..agent.vitals import STUCK_AFTER, Vitals

__all__ = ["STUCK_AFTER", "Problem", "liveness", "merged", "readiness", "trouble_by_reason"]


class Problem(NamedTuple):
    """Which part is not as it should be, and why: "agent", "thread", "broker" or "store"."""

    part: str
    why: str


def liveness(vitals: Vitals, stuck_after: float = STUCK_AFTER) -> list[Problem]:
    """Return what only a restart mends: the agent's thread has ended, or does not come to the end of a turn.

    An agent that has not started yet, or was told to stop, has nothing that could be stuck. Handlers of the application
    may take their time; they have a thread of their own.
    """
    if not vitals.runs:
        return []
    if not vitals.alive:
        return [Problem("thread", "it has ended")]
    if vitals.turn > stuck_after:
        return [Problem("thread", f"it has been in one turn for {vitals.turn:.0f} seconds")]
    return []


def readiness(vitals: Vitals) -> list[Problem]:
    """Return why the agent cannot serve its partners now: not started, no link to the broker, no store to write to."""
    if not vitals.runs:
        return [Problem("agent", "it was told to stop" if vitals.stopping else "it has not been started")]
    if not vitals.alive:
        return [Problem("agent", "its thread has ended")]
    problems = []
    if not vitals.connected:
        problems.append(Problem("broker", vitals.link))
    if vitals.store_error is not None:
        problems.append(Problem("store", vitals.store_error))
    return problems


_ONE_OF_MANY: Final = re.compile(r"\bpartition [0-9]+\b")


def merged(problems: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each problem once; ``count`` says of how many, if there are several that differ in the partition alone."""
    found: dict[tuple[tuple[str, Any], ...], list[Mapping[str, Any]]] = {}
    for problem in problems:
        general = dict(problem) | {"why": _ONE_OF_MANY.sub("a partition", problem["why"])}
        found.setdefault(tuple(general.items()), []).append(problem)
    return [
        dict(same[0]) if len(same) == 1 else dict(general) | {"count": len(same)} for general, same in found.items()
    ]


def trouble_by_reason(trouble: Mapping[int, str]) -> str | None:
    """Return what a worker's :attr:`~srup.Worker.trouble` comes to, each reason once; None when there is none."""
    found: dict[str, list[int]] = {}
    for partition, why in sorted(trouble.items()):
        found.setdefault(_ONE_OF_MANY.sub("a partition", why), []).append(partition)
    return "; ".join(_of(partitions, trouble, why) for why, partitions in found.items()) or None


def _of(partitions: list[int], trouble: Mapping[int, str], why: str) -> str:
    if len(partitions) == 1 or partitions[0] < 0:  # which stands for what concerns all of them
        return trouble[partitions[0]]
    ends = [first for first, second in pairwise(partitions) if second != first + 1] + partitions[-1:]
    begins = partitions[:1] + [second for first, second in pairwise(partitions) if second != first + 1]
    spans = [f"{begin}-{end}" if end > begin else f"{begin}" for begin, end in zip(begins, ends, strict=True)]
    return f"partitions {', '.join(spans)}: {why}"
