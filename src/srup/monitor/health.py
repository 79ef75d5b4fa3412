"""What is wrong with an agent, read from its vitals.

Two questions, because there are two remedies: who is not alive is to be started anew, who is not ready is to be waited
for, since the broker or the disk will come back and a restart would not help.
"""

from typing import Final, NamedTuple

from ..agent import Vitals

__all__ = ["STUCK_AFTER", "Problem", "liveness", "readiness"]

STUCK_AFTER: Final = 60.0
"""How long a turn may last, in seconds. The longest that is in order is 1,024 messages and one commit."""


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
    problems = []
    if not vitals.connected:
        problems.append(Problem("broker", vitals.link))
    if vitals.store_error is not None:
        problems.append(Problem("store", vitals.store_error))
    return problems
