"""Discrete events: simulated time, and agents on in-memory networks that are stepped when something is due."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ..agent import Agent, Refusal
from ..transport import MemoryNetwork

__all__ = ["START", "Clock", "Simulator"]

START: Final = 1_800_000_000.0
"""The Unix time at which simulations begin."""

_PATIENCE: Final = 1000  # rounds in which something is due and is not done

_MINIMUM: Final = 0.001  # seconds that pass at least between two rounds: rounding must not stop the time


class Clock:
    """Simulated Unix time: that of the world, or a clock that goes ``skew`` seconds before another one.

    It can be set: the world's by ``now``, another one by its ``skew``.
    """

    def __init__(self, now: float = START, *, ahead_of: "Clock | None" = None, skew: float = 0.0) -> None:
        self._now = now
        self._reference = ahead_of
        self._at_first = skew
        self._set_back = 0.0  # in all
        self.skew = skew

    @property
    def now(self) -> float:
        """What time it is; it can be set for a clock of its own."""
        return self._now if self._reference is None else self._reference.now + self.skew

    @now.setter
    def now(self, value: float) -> None:
        if self._reference is not None:
            raise AttributeError("this clock follows another one")
        self._set_back += max(0.0, self._now - value)
        self._now = value

    def monotonic(self) -> float:
        """Return a time that goes on whatever the clock is set to."""
        if self._reference is None:
            return self._now + self._set_back
        return self._reference.monotonic() + self._at_first

    def __call__(self) -> float:
        """Return what time it is."""
        return self.now


class Simulator:
    """Agents that were started without threads, the ``networks`` between them by name, and the ``clock`` of all."""

    def __init__(self, networks: Mapping[str, MemoryNetwork], clock: Clock) -> None:
        self.clock = clock
        self.networks = networks
        self.refusals: list[tuple[Agent, Refusal]] = []
        for network in networks.values():
            network.advance(clock.now)

    @property
    def agents(self) -> Sequence[Agent]:
        """All that are to be stepped, in their order."""
        raise NotImplementedError

    def step(self, agent: Agent) -> None:
        """Let an agent do what there is to do now."""
        agent.step()

    def deadline(self, agent: Agent) -> float | None:
        """Return when an agent wants to be stepped, in the world's time."""
        return agent.deadline()

    def watch(self, agent: Agent) -> None:
        """Note what this agent refuses; see :meth:`errors`."""
        agent.on_refused(lambda refusal: self.refusals.append((agent, refusal)))

    def settle(self) -> None:
        """Let everything happen that takes no time."""
        while True:
            before = self._heard()
            for agent in self.agents:
                self.step(agent)
            if self._heard() == before:
                return

    def _heard(self) -> list[int]:
        return [len(network.log) for network in self.networks.values()]

    def next_due(self) -> float | None:
        """Return when something happens next; None for never."""
        dues = [network.next_due() for network in self.networks.values()]
        dues += [self.deadline(agent) for agent in self.agents]
        return min((due for due in dues if due is not None), default=None)

    def advance(self, now: float) -> None:
        """Set the clock, never back, and deliver what is due."""
        self.clock.now = max(self.clock.now, now)
        for network in self.networks.values():
            network.advance(self.clock.now)

    def run(self, until: Callable[[], object], seconds: float) -> None:
        """Let time pass until ``until()`` holds; TimeoutError when it does not within ``seconds``, or never will."""
        end = self.clock.now + seconds
        while True:
            self.settle()
            if until():
                return
            due = self.next_due()
            if due is None:
                raise TimeoutError("nothing will ever happen again")
            if due > end:
                raise TimeoutError(f"it did not come true within {seconds:g} simulated seconds")
            self.advance(due)

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass, with all that happens in it; TimeoutError when what is due is never done."""
        end = self.clock.now + seconds
        overdue = 0
        while True:
            self.settle()
            due = self.next_due()
            if due is None or due >= end:
                break
            overdue = overdue + 1 if due <= self.clock.now else 0
            if overdue > _PATIENCE:
                raise TimeoutError("something is due and is never done")
            self.advance(max(due, self.clock.now + _MINIMUM))
        self.advance(end)
        self.settle()

    def errors(self, by: Agent | None = None) -> list[str]:
        """Return the names of the errors for which an agent, or any, refused messages since the last call, in order."""
        names = [type(refusal.error).__name__ for agent, refusal in self.refusals if by in (None, agent)]
        self.refusals.clear()
        return names

    def faults(self) -> int:
        """Return how many things raised where nothing should."""
        return sum(agent.counts["faults"] for agent in self.agents)
