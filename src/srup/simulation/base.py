"""What every simulated world has: chance from one seed, a trace, a ledger, and parties that run, die and order things.

Everything derives from the seed: the clock, the random bytes of each process, the faults of the networks, what the
attacker does, and whether handlers succeed.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from ..agent import Agent, Outcome
from ..codec import Frame, decode
from ..keys import PrivateKey
from ..messages import SCHEMA, Response
from ..session import Policy
from ..transport import MemoryNetwork
from ..update import UpdateState
from ..wire import Status
from .environment import CALM, Crash, Environment
from .keychain import key_of
from .ledger import Ledger, Order
from .options import Options
from .party import Party
from .simulator import START, Clock, Simulator

__all__ = ["BaseWorld", "Judge"]


class Judge(Protocol):
    """The oracle of a world, as far as every world needs it."""

    def started(self, identity: int, life: int) -> None:
        """A party has a new process."""

    def sent(self, sender: int, fingerprint: str, topic: str, frame: Frame, wire: bytes) -> None:
        """A legitimate party has sent a message."""

    def answered(self, order: Order, said: object) -> None:
        """Somebody was told what has become of an order."""

    def open_order(self, issuer: int, outcome: Outcome) -> Order | None:
        """Return the order of an earlier life that an outcome may be about."""


class BaseWorld(Simulator):
    """Networks and parties in simulated time; ``trace`` says line by line what happened, ``ledger`` what was wrong."""

    oracle: Judge
    policy: Policy

    def __init__(self, seed: int | str, folder: Path, options: Options, names: Sequence[str]) -> None:
        self.seed = seed
        self.folder = folder
        self.options = options
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.dead: list[Agent] = []
        clock = Clock()
        seeds = {name: self.stream(f"network {name}".strip()).getrandbits(63) for name in names}
        networks = {name: MemoryNetwork(one, delay=CALM.delay, clock=clock) for name, one in seeds.items()}
        super().__init__(networks, clock)
        self.ledger = Ledger(clock)
        self.environment = Environment(self, networks)
        self._luck = self.stream("luck")
        self._found = 0  # how many violations the trace shows
        self._faults: dict[Agent, int] = {}  # how many faults of whom were entered

    # Chance and notes.

    def stream(self, name: str) -> random.Random:
        """Return random numbers that depend on nothing but the seed and this name."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - must be repeatable, and guards nothing

    def entropy(self, name: str, life: int) -> Callable[[int], bytes]:
        """Return the random bytes of one process."""
        return self.stream(f"entropy of {name} in life {life}").randbytes

    def chance(self, probability: float) -> bool:
        """Decide something that is left to chance in the middle of a step."""
        return self._luck.random() < probability

    def key(self, name: str, generation: int) -> PrivateKey:
        """Return the key of somebody."""
        return key_of(name, generation, self.options.scheme)

    def note(self, text: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self.clock.now - START:10.3f}  {text}")

    @property
    def digest(self) -> str:
        """The SHA-256 of the trace: the same for the same seed, options and code.

        What only OpenSSL's own random numbers decide is left out: the bytes of sealed values and of signatures.
        """
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def violate(self, name: str, what: str) -> None:
        """Enter a violation."""
        self.ledger.violate(name, what)

    def report(self) -> None:
        """Write the violations that were found since the last time into the trace."""
        for violation in self.ledger.violations[self._found :]:
            self.note(f"VIOLATION {violation}")
        self._found = len(self.ledger.violations)

    # Parties and time.

    @property
    def everybody(self) -> Mapping[int, Party]:
        """All legitimate parties by identity, in the order in which they are stepped."""
        raise NotImplementedError

    @property
    def parties(self) -> list[Party]:
        """All legitimate parties."""
        return list(self.everybody.values())

    def party(self, identity: int) -> Party:
        """Return the party with this identity."""
        return self.everybody[identity]

    @property
    def agents(self) -> Sequence[Agent]:
        """See :class:`Simulator`."""
        return [party.agent for party in self.parties if party.up]

    def step(self, agent: Agent) -> None:
        """Let an agent do what there is to do; it may die of that."""
        party = self.party(agent.identity)
        if not party.up:
            return
        party.stepping = True
        try:
            agent.step()
        except Crash:
            party.die()
            return
        finally:
            party.stepping = False
        party.stepped()

    def deadline(self, agent: Agent) -> float | None:
        """See :class:`Simulator`."""
        due = agent.deadline()
        return None if due is None else due - self.party(agent.identity).clock.skew

    def settle(self) -> None:
        """See :class:`Simulator`."""
        super().settle()
        self.report()

    # What a run comes to.

    def converge(self) -> None:
        """End all faults and attacks, start what is dead, and give everybody the time to come to an agreement."""
        raise NotImplementedError

    def check_agreement(self) -> None:
        """Let it be checked what must hold after :meth:`converge`."""
        raise NotImplementedError

    def check(self) -> None:
        """Enter what must hold at any time and does not."""
        alive = [agent for party in self.parties if party.up for agent in party.processes()]
        for agent in [*alive, *self.dead]:
            faults = agent.counts["faults"] - self._faults.get(agent, 0)
            if faults:
                self.violate("fault", f"{agent!r} has caught {faults} exceptions where none should be")
                self._faults[agent] = agent.counts["faults"]

    # What the parties tell.

    def sent(self, party: Party, name: str, topic: str, wire: bytes) -> None:
        """Note a message of a legitimate party."""
        frame = decode(wire)
        cls = SCHEMA[frame.type]
        self.counts["messages"] += 1
        status = Status(wire[-1]).name if cls is Response else ""  # the last byte of a Response
        shown = f"{cls.__name__} {status}".rstrip()
        self.note(f"{name} > {topic}: {shown} #{frame.sequence_id} {frame.token.decode()} ({len(wire)} bytes)")
        self.oracle.sent(frame.sender_id, party.key.public_key.fingerprint, topic, frame, wire)

    def outcome(self, party: Party, outcome: Outcome) -> None:
        """Let it be checked what is told about a request that was made before a restart."""
        order = self.oracle.open_order(party.identity, outcome)
        if order is not None:
            order.told = True
            self.answered(order, outcome.result)

    # Orders and their answers.

    def order(self, kind: str, issuer: Party, target: int, what: Any, lifetime: float) -> Order:
        """Enter an order that a party is about to give; it may take effect for ``lifetime`` seconds."""
        until = issuer.clock.now + lifetime + self.policy.clock_skew
        self.note(f"{issuer} orders {kind} {what!s:.40} of {target:x}")
        fingerprint = issuer.key.public_key.fingerprint
        order = self.ledger.order(kind, issuer.identity, target, what, until, issuer.life, fingerprint)
        issuer.given_order(order)
        return order

    def expect(self, order: Order, future: "Future[Any]") -> None:
        """Let the answer to an order be checked when it comes."""
        order.answer = future
        future.add_done_callback(lambda done: self._ended(order, done))

    def _ended(self, order: Order, future: "Future[Any]") -> None:
        error = future.exception()
        self.answered(order, error if error is not None else future.result())

    def answered(self, order: Order, said: object) -> None:
        """Note the answer to an order, and let it be checked."""
        shown = said.name if isinstance(said, (Status, UpdateState)) else f"{said}"
        self.note(f"{order}: {shown}")
        self.oracle.answered(order, said)
