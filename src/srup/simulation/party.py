"""A legitimate party: an agent that runs, dies and starts anew, and what its owner keeps meanwhile.

What outlives a process is what the documentation tells an owner to store: keys, the version floor, whom to join. In a
durable world a ``store`` keeps everything else.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..agent import Agent, Handling, Outcome, Refusal
from ..keys import PrivateKey
from ..records import Changes
from ..session.table import Trigger
from .environment import Crash, Disk, Link, Wire
from .simulator import Clock

if TYPE_CHECKING:
    from .base import BaseWorld
    from .ledger import Order

__all__ = ["ACTIONS", "Party"]

ACTIONS: Final = 256
"""Each order to a partner has an action id of its own, so there cannot be more between two."""

START_TIME: Final = 0.001
"""How many seconds a process takes to start anew."""

_Result = TypeVar("_Result")


class Party:
    """Whoever has an identity and a key. ``life`` counts its processes; ``agent`` is the one that runs if it is ``up``.

    ``fuse`` is after how many more messages, effects and commits it dies; None for not at all.
    """

    agent: Agent

    def __init__(self, world: "BaseWorld", identity: int, skew: float, links: Sequence[Link]) -> None:
        self.world = world
        self.identity = identity
        self.name = f"{identity:x}"
        self.clock = Clock(ahead_of=world.clock, skew=skew)
        self.links = links
        self.generation = 0
        self.key = world.key(self.name, 0)
        self.next_key: PrivateKey | None = None
        self.life = 0
        self.up = False
        self.fuse: int | None = None
        self.stepping = False
        self.store: Disk | None = None
        self.renew_store()

    def renew_store(self) -> None:
        """Begin with an empty store, if there are any in this world."""
        self.store = Disk(self) if self.world.options.durable else None
        self.given: list[tuple[Order, int]] = []  # orders that are not durable yet, and after how many commits they are
        self.called: dict[tuple[int, str], int] = {}  # what handlers were called for, and in which life the last time
        self.unrecorded: set[tuple[int, str]] = set()  # what of it is not known to have ended
        self.ended: set[tuple[int, str]] = set()  # what of that has ended
        self.told: set[tuple[int, str]] = set()  # the outcomes that were told

    @property
    def durable(self) -> bool:
        """Whether what it knows outlives its process."""
        return self.store is not None

    @property
    def cut(self) -> bool:
        """Whether a link of it is cut."""
        return any(link.cut for link in self.links)

    # Its processes.

    def can_start(self) -> bool:
        """Return whether its owner knows all that a new process needs."""
        return True

    def boot(self) -> None:
        """Start a process."""
        self.life += 1
        self.fuse = None
        if self.life > 1:
            self.world.advance(self.world.clock.now + START_TIME)
        self.world.note(f"{self.name} starts, life {self.life}")
        self.world.oracle.started(self.identity, self.life)
        self.agent = self.make(Wire(self, self.links[0]))
        self.agent.on_refused(self._refused)
        self.agent.on_outcome(self._outcome)
        self.agent.start(threads=False)
        self.up = True

    def make(self, wire: Wire) -> Agent:
        """Return the agent of a new process, with its handlers."""
        raise NotImplementedError

    def options(self, wire: Wire) -> dict[str, Any]:
        """Return the arguments that all agents have."""
        options: dict[str, Any] = {
            "broker": wire,
            "policy": self.world.policy,
            "clock": self.clock,
            "entropy": self.world.entropy(self.name, self.life),
        }
        return options if self.store is None else options | {"store": self.store}

    def stepped(self) -> None:
        """Take note of what a step has changed."""

    def die(self) -> None:
        """Let the process end without a word."""
        if self.up:
            self.world.note(f"{self.name} dies")
            for link in self.links:
                link.network.kill(link.client_id)
            self.world.dead += self.processes()
            self.up = False
            self.given.clear()
            self.ended.clear()

    def processes(self) -> list[Agent]:
        """Return all agents of the process that runs, or ran last."""
        return [self.agent]

    def may_die(self) -> None:
        """Die here if it is time."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Crash

    # What its application does.

    def done(self, effect: Callable[[bool], _Result]) -> _Result:
        """Carry out an effect; it is possible to die just before and just after it.

        It is told whether that may have happened before: not with a store, unless a process ended in the middle of it.
        """
        handling = self.agent.handling
        again = self._begin_handling(handling) if self.durable and handling is not None else not self.durable
        self.may_die()
        result = effect(again)
        self.may_die()
        if handling is not None:
            self.ended.add((handling.partner, handling.id))
        return result

    def _begin_handling(self, handling: Handling) -> bool:
        """Check that a handler may be called for this; return whether it may have been called for it before."""
        name = handling.partner, handling.id
        life = self.called.get(name)
        if life is not None and (name not in self.unrecorded or life == self.life or not handling.again):
            self.world.violate("repeated", f"a handler of {self} is called again for {name[0]:x} {name[1]:.40}")
        self.called[name] = self.life
        self.unrecorded.add(name)
        return life is not None

    @property
    def told_late(self) -> bool:
        """Whether a handler is called for what an earlier process may have been told already."""
        return self.agent.handling is not None and self.agent.handling.again

    def given_order(self, order: "Order") -> None:
        """Take note of an order that this party gives: it counts from the next turn that is durable."""
        if self.durable:
            self.given.append((order, 2 if self.agent.debug.commit_failed else 1))

    def recorded(self, changes: Changes) -> None:
        """Take note that a turn is durable, and which handlers it knows to have ended."""
        known = {(partner, f"{partner:x}/{number}") for partner, number in changes.finished}
        known |= {(partner, token.hex()) for partner, token in changes.ended}
        known |= {(record.partner, record.token.hex()) for record in changes.exchanges}
        self.unrecorded -= self.ended & known
        self.ended -= known
        for order, turns in self.given:
            order.accepted = turns == 1
        self.given = [(order, turns - 1) for order, turns in self.given if turns > 1]

    def _outcome(self, outcome: Outcome) -> None:
        self.done(lambda again: self._outcome_told(outcome))

    def _outcome_told(self, outcome: Outcome) -> None:
        """Take note of an outcome, once: with a store it is told again if the process ended after it was told."""
        handling = self.agent.handling
        if self.durable and handling is not None:
            if (name := (handling.partner, handling.id)) in self.told:
                return
            self.told.add(name)
        self.world.outcome(self, outcome)

    def new_key(self) -> PrivateKey:
        """Make the next key of this party."""
        self.generation += 1
        return self.world.key(self.name, self.generation)

    def _refused(self, refusal: Refusal) -> None:
        self.world.note(f"{self.name} refuses a message on {refusal.topic}: {type(refusal.error).__name__}")
        self.world.counts[type(refusal.error).__name__] += 1

    # What can be seen of it in the end.

    def hanging(self) -> list[str]:
        """Return what its agent has not brought to an end although it is time."""
        view = self.agent.debug
        hanging = [
            f"{self}: an exchange with {exchange.peer.identity:x} is {exchange.state}"
            for exchange in view.session.exchanges()
            if (exchange.state, Trigger.EXPIRE) in view.session.table and exchange.expiry < self.clock.now - 1.0
        ]
        if self.store is not None:
            kept = self.store.open(self.identity)
            hanging += [f"{self}: the store keeps {entry!s:.100}" for entry in (*kept.inbox, *kept.outbox)]
        if view.pending:
            hanging.append(f"{self} still waits for {len(view.pending)} answers")
        return hanging

    def __str__(self) -> str:
        return self.name
