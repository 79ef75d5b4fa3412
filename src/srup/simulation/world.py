"""A world: servers, devices and a hostile broker in simulated time, and what can happen in it.

Everything derives from one seed: the clock, the random bytes of each process, the faults of the network, what the
attacker does, and whether handlers succeed. Each method that makes something happen returns whether it was possible.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from .. import tokens
from ..agent import Agent, UpdateOrder
from ..agent.base import Outcome
from ..agent.device import REJOIN
from ..codec import decode
from ..errors import PolicyError, SrupError, UnansweredError, UpdateError
from ..fetch import MemoryFetcher
from ..keys import PrivateKey, PublicKey
from ..messages import (
    SCHEMA,
    Action,
    Data,
    DeregisterRequest,
    HumanJoinRequest,
    IdRequest,
    JoinCommand,
    JoinRequest,
    ObservedJoinRequest,
    ResignRequest,
    Response,
)
from ..session import Policy
from ..session.base import Session
from ..transport import MemoryNetwork, parse_topic
from ..update import UpdateState, Word
from ..wire import Status
from .attacker import Attacker
from .keychain import key_of
from .ledger import Ledger, Order
from .parties import ACTIONS, Crash, DeviceParty, Party, ServerParty
from .simulator import START, Clock, Simulator

__all__ = ["Options", "World"]

SERVERS: Final = (0x5E, 0x5F)
FIRST_DEVICE: Final = 0xD0
MOLE: Final = 0xBAD
"""A registered device whose key the attacker has."""

_JOINS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)
_LEAVES: Final = (ResignRequest, DeregisterRequest)
_STATUS_AT: Final = -1  # the status is the last byte of a Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is made of besides its seed. In a ``durable`` world everybody has a store."""

    devices: int = 4
    steps: int = 150
    scheme: str = "ed25519"
    attack: bool = True
    durable: bool = False


class Faults(NamedTuple):
    """The faults of a MemoryNetwork for a while."""

    loss: float
    duplicate: float
    delay: tuple[float, float]
    reorder: float


CALM: Final = Faults(0.0, 0.0, (0.01, 0.1), 0.0)
WEATHER: Final = (
    CALM,
    Faults(0.1, 0.1, (0.01, 2.0), 0.1),
    Faults(0.3, 0.3, (0.01, 5.0), 0.3),
    Faults(0.05, 0.5, (1.0, 40.0), 0.5),
)
"""What the network may be like."""


class World(Simulator):
    """Two servers that know each other's devices, ``options.devices`` devices, one of which may observe others.

    ``folder`` is where the devices keep their firmware. ``trace`` says line by line what happened, ``ledger`` what of
    it was not allowed to.
    """

    ROLLOUT: ClassVar[float] = 600.0
    """How long a server's rotation lasts, in seconds."""

    policy: Policy = Policy(
        clock_skew=5.0,
        lifetime=60.0,
        update_lifetime=600.0,
        join_lifetime=90.0,
        first_retry=2.0,
        max_retry=30.0,
        key_overlap=1800.0,
    )

    def __init__(self, seed: int | str, folder: Path, options: Options | None = None) -> None:
        self.seed = seed
        self.folder = folder
        self.options = options or Options()
        if self.options.durable:
            self.policy = replace(
                self.policy, require_bound_tokens=True
            )  # else a value may be taken for a deployed peer's
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.ledger = Ledger()
        self.dead: list[Agent] = []
        self.offered: set[tuple[int, int | None, str]] = set()  # who offers whom (None: all) which key
        self.host = MemoryFetcher({})
        clock = Clock()
        self.network = MemoryNetwork(self.stream("network").getrandbits(63), delay=CALM.delay, clock=clock)
        super().__init__({"": self.network}, clock)
        self._luck = self.stream("luck")
        self._actions: Counter[tuple[int, int]] = Counter()  # how many action ids are used up between two
        self._asked: dict[tuple[int, int], tuple[float, str]] = {}  # (device, server): until, by which key
        self._said: set[tuple[int, int, int]] = set()  # (server, device, status)
        self._dismissals: dict[tuple[int, int], list[tuple[float, set[int]]]] = {}  # (server, device): until, lives
        self._sent_away: dict[tuple[int, int, int], float] = {}  # (server, device, to which server): until
        self._updates: dict[str, tuple[Order, int | None]] = {}  # by digest, with the version
        self._held: list[UpdateOrder] = []
        self._rotated: dict[int, float] = {}  # when an identity last changed its key
        self._epochs: Counter[frozenset[int]] = Counter()  # how often two have become new to each other
        self._used: dict[tuple[int, frozenset[int], int, int], bytes] = {}  # messages by sender, pair, epoch, number
        self._taken: dict[tuple[int, int], int] = {}  # the last value that was taken, by issuer and target
        self._found = 0
        chance = self.stream("cast")
        admission = chance.choice(("simple", "simple", "human", "observed"))
        observers = (FIRST_DEVICE,) if admission == "observed" else ()
        self.servers = {
            SERVERS[0]: ServerParty(self, SERVERS[0], self._skew(chance), admission, observers),
            SERVERS[1]: ServerParty(self, SERVERS[1], self._skew(chance), "simple", observers),
        }
        self.devices: dict[int, DeviceParty] = {}
        for identity in range(FIRST_DEVICE, FIRST_DEVICE + self.options.devices):
            self._add(identity, admission, chance)
        self.attacker = Attacker(self, MOLE, self.key("mole", 0), self.stream("attacker"))
        for server in self.servers.values():
            server.register(MOLE, self.attacker.key.public_key)
        for party in self.parties:
            party.boot()

    @staticmethod
    def _skew(chance: random.Random) -> float:
        return chance.randrange(-8, 9) / 4

    def _add(self, identity: int, admission: str, chance: random.Random) -> None:
        join, observer = admission, None
        if admission == "simple":
            join = chance.choice(("simple", "simple", "simple", "human"))
        elif admission == "observed" and identity == FIRST_DEVICE:
            join = "human"
        elif admission == "observed":
            join, observer = chance.choice((("observed", FIRST_DEVICE), ("simple", None)))
        device = self.devices[identity] = DeviceParty(self, identity, self._skew(chance), join, observer)
        device.floor = device.first_floor = chance.choice((None, 0))
        device.commanders = chance.choice(((), (SERVERS[1],)))
        for server in self.servers.values():
            server.register(identity, device.key.public_key)
            device.server_keys[server.identity] = server.key.public_key

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

    # Time.

    @property
    def parties(self) -> list[Party]:
        """All legitimate parties."""
        return [*self.servers.values(), *self.devices.values()]

    def party(self, identity: int) -> Party:
        """Return the party with this identity."""
        return self.servers[identity] if identity in self.servers else self.devices[identity]

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
        if isinstance(party, DeviceParty):
            self._follow(party)

    def deadline(self, agent: Agent) -> float | None:
        """See :class:`Simulator`."""
        due = agent.deadline()
        return None if due is None else due - self.party(agent.identity).clock.skew

    def settle(self) -> None:
        """See :class:`Simulator`."""
        super().settle()
        self.report()

    def report(self) -> None:
        """Write the violations that were found since the last time into the trace."""
        for violation in self.ledger.violations[self._found :]:
            self.note(f"VIOLATION {violation}")
        self._found = len(self.ledger.violations)

    # What the parties tell.

    def sent(self, party: Party, topic: str, wire: bytes) -> None:
        """Note a message of a legitimate party."""
        frame = decode(wire)
        cls = SCHEMA[frame.type]
        self.counts["messages"] += 1
        status = Status(wire[_STATUS_AT]).name if cls is Response else ""
        shown = f"{cls.__name__} {status}".rstrip()
        self.note(f"{party} > {topic}: {shown} #{frame.sequence_id} {frame.token.decode()} ({len(wire)} bytes)")
        bound = tokens.parse(frame.token)
        if bound is not None and party.durable:
            self._check_number(party, frozenset(bound[:2]), frame.sequence_id, wire)
        if isinstance(party, DeviceParty) and bound is not None:
            if cls in _JOINS:
                until = bound.expiry + self.policy.clock_skew + 2.0
                self._asked[party.identity, bound.recipient] = until, party.key.public_key.fingerprint
            elif cls in _LEAVES:
                party.leaving.add(bound.recipient)
        elif cls is Response:
            self._said.add((party.identity, parse_topic(topic).device, wire[_STATUS_AT]))

    def _check_number(self, party: Party, pair: frozenset[int], number: int, wire: bytes) -> None:
        """Check that a sequence id is used once; what is published again after a crash is the same message."""
        if self._used.setdefault((party.identity, pair, self._epochs[pair], number), wire) != wire:
            self.violate("reused", f"{party} uses the sequence id {number} again")

    def become_new(self, one: int, other: int) -> None:
        """Note that two know nothing more of each other: a key was replaced, or dropped."""
        self._epochs[frozenset((one, other))] += 1
        for order in self.ledger.orders:
            # What one of them had taken and not told its owner yet is gone.
            order.excused = order.excused or (order.kind == "data" and {order.issuer, order.target} == {one, other})

    def effect(
        self, party: Party, kind: str, issuer: int, what: Any, again: bool, valid: frozenset[str] | None = None
    ) -> bool:
        """Enter an effect and decide whether it succeeds; ``again``: it may have happened before."""
        good = kind == "data" or not self.chance(0.1)
        if kind == "data" and party.durable:
            valid = None  # it is signed when the two are joined, perhaps by a key that its sender has had since
        self.note(f"{party} takes {kind} {what} of {issuer:x}{'' if good else ', and fails'}")
        if issuer != MOLE or isinstance(party, DeviceParty):
            order = self._enter(party, kind, issuer, what, again, valid, good)
            if order is not None and kind == "data" and party.durable:
                self._check_order(order, again)
        return good

    def _check_order(self, order: Order, again: bool) -> None:
        """Check that values with a receipt are taken in the order in which they were sent."""
        last = self._taken.get((order.issuer, order.target), 0)
        if order.number < last or (order.number == last and not again):
            self.violate("out of order", f"{order} is taken after the one with number {last}")
        self._taken[order.issuer, order.target] = order.number

    def _enter(
        self, party: Party, kind: str, issuer: int, what: Any, again: bool, valid: frozenset[str] | None, good: bool
    ) -> Order | None:
        return self.ledger.effect(
            kind,
            issuer,
            party.identity,
            what,
            now=self.clock.now,
            local=party.clock.now,
            life=party.life,
            durable=not again,
            valid=valid,
            good=good,
        )

    def activated(self, device: DeviceParty, digest: str, actual: str, again: bool) -> bool:
        """Enter that a device activates a file."""
        good = not self.chance(0.1)
        self.note(f"{device} activates {digest[:8]}{'' if good else ', and fails'}")
        if actual != digest:
            self.violate("tampered", f"{device} activates a file whose digest is {actual[:8]}, not {digest[:8]}")
        order, version = self._updates.get(digest, (None, None))
        issuer = 0 if order is None else order.issuer
        self._enter(device, "update", issuer, digest, again, None, good)
        if device.floor is not None and (version is None or version < device.floor):
            self.violate("rolled back", f"{device} activates version {version}, below {device.floor}")
        if good:
            device.active = digest
            if device.floor is not None and version is not None:
                device.floor = max(device.floor, version)
        return good

    def joined_at(self, server: ServerParty, device: int, again: bool) -> None:
        """Check that a device that a server has let in wants in, and may; ``again``: it was let in before a restart."""
        self.note(f"{server} lets {device:x} in")
        if again:
            return
        until, signer = self._asked.get((device, server.identity), (0.0, ""))
        if device != MOLE:
            if server.clock.now > until:
                elsewhere = any(
                    whom == device and good > server.clock.now for (whom, _), (good, _) in self._asked.items()
                )
                name = "redirected" if elsewhere else "forged"
                self.violate(name, f"{server} lets {device:x} in, which does not ask for that")
            elif signer not in server.keys_of(device):
                self.violate("revoked", f"{server} lets {device:x} in by a key that does not count any more")
        if device in server.banned:
            self.violate("unwanted", f"{server} lets {device:x} in, which its operator has put out")
        if server.admission != "simple" and device not in server.vouched:
            self.violate("unwanted", f"{server} lets {device:x} in, and nobody has vouched for it")
        server.vouched.discard(device)

    def joined(self, device: DeviceParty) -> None:
        """Check that a device that is in has been let in."""
        self.note(f"{device} has joined {device.server:x}")
        if (device.server, device.identity, Status.JOIN_SUCCESS) not in self._said:
            self.violate("forged", f"{device} believes that {device.server:x} has let it in")
        if not device.wanted:
            commanded = self._sent_away.get((device.server, device.identity, device.server), 0.0)
            if device.clock.now > commanded + self.policy.lifetime:
                self.violate("unwanted", f"{device} is in again at {device.server:x}, although its owner wants out")
            device.wanted = True

    def left(self, device: DeviceParty, server: int, again: bool) -> None:
        """Check that somebody who may has ended this membership; ``again``: it ended before a restart."""
        self.note(f"{device} has left {server:x}")
        if again:
            return
        if server in device.leaving:
            device.leaving.discard(server)
            return
        for until, lives in self._dismissals.get((server, device.identity), []):
            repeatable = not device.durable and device.life not in lives
            if device.clock.now <= until and (not lives or repeatable):
                lives.add(device.life)
                return
        self.violate("forged", f"{device} has left {server:x}, although neither wanted that")

    def key_changed(self, party: Party, partner: int, key: PublicKey) -> None:
        """Check that the owner of an identity has made this key, and let it be stored."""
        self.note(f"{party} stores a new key of {partner:x}")
        wanted = {(partner, None, key.fingerprint), (partner, party.identity, key.fingerprint)}
        if partner != MOLE and not wanted & self.offered:
            self.violate("forged", f"{party} takes a key for one of {partner:x}")
        if isinstance(party, DeviceParty):
            party.server_keys[partner] = key

    def check_rollout(self, server: ServerParty, taken: frozenset[int], key: PrivateKey) -> None:
        """Check that those who have the server's new key have it."""
        for identity in sorted(taken & self.devices.keys()):
            if self.devices[identity].server_keys.get(server.identity) != key.public_key:
                self.violate("untrue", f"{server} believes that {identity:x} has its new key")

    def leak(self, party: Party, key: PrivateKey, after: float) -> None:
        """Give the attacker a key of this party, which does not count any more so many seconds from now."""
        self.attacker.steal(key, self.clock.now + after, party.identity)

    def spread(self, device: DeviceParty) -> None:
        """Tell the other servers a device's key, which it has changed by a rotation with its own one."""
        for server in self.servers.values():
            known = server.ring.get(device.identity)
            if server.identity != device.server and known is not None and not server.ring.bars(device.key.public_key):
                server.register(device.identity, device.key.public_key)

    def _follow(self, device: DeviceParty) -> None:
        """Notice when a device has turned to another server, and check that it was sent there."""
        server = device.agent.server
        if server != device.server and not device.agent._unsaved:
            self.note(f"{device} turns from {device.server:x} to {server:x}")
            known = [self._sent_away.get((by, device.identity, server), 0.0) for by in (device.server, server)]
            if device.clock.now > max(known):
                self.violate("forged", f"{device} turns to {server:x}, and nobody who may has sent it there")
            device.server, device.wanted = server, True

    def violate(self, name: str, what: str) -> None:
        """Enter a violation."""
        self.ledger.violate(self.clock.now, name, what)

    # Orders and their answers.

    def _order(self, kind: str, issuer: Party, target: int, what: Any, lifetime: float) -> Order:
        until = issuer.clock.now + lifetime + self.policy.clock_skew
        self.note(f"{issuer} orders {kind} {what!s:.40} of {target:x}")
        fingerprint = issuer.key.public_key.fingerprint
        order = self.ledger.order(kind, issuer.identity, target, what, until, issuer.life, fingerprint)
        issuer.given_order(order)
        return order

    def _expect(self, order: Order, future: "Future[Any]") -> None:
        order.answer = future
        future.add_done_callback(lambda done: self._answered(order, done))

    def _answered(self, order: Order, future: "Future[Any]") -> None:
        """Check that an answer is true."""
        error = future.exception()
        self._check_answer(order, error if error is not None else future.result())

    def outcome(self, party: Party, outcome: Outcome) -> None:
        """Check what is told about a request that was made before a restart."""
        kinds, what = _OUTCOMES.get(type(outcome.request), ((), None))
        content = None if what is None else what(outcome.request)
        for order in self.ledger.orders:
            same = order.kind in kinds and (order.issuer, order.target) == (party.identity, outcome.partner)
            ended = order.told or (order.answer is not None and order.answer.done())
            if same and order.life < party.life and not ended and content in (None, order.what, order.target):
                order.told = True
                self._check_answer(order, outcome.result)
                return

    def update_told(self, order: UpdateOrder) -> None:
        """Check what is told about an update."""
        known, _ = self._updates.get(order.digest, (None, None))
        if known is not None and order.done and not known.told:
            known.told = True
            error = order._done.exception()
            self._check_answer(known, error if error is not None else order.result(0))

    def _check_answer(self, order: Order, said: object) -> None:
        error = said if isinstance(said, BaseException) else None
        shown = said.name if isinstance(said, (Status, UpdateState)) else f"{said}"
        self.note(f"{order}: {shown}")
        if error is not None and not isinstance(error, (UnansweredError, PolicyError, UpdateError)):
            self.violate("fault", f"{order}: {type(error).__name__}: {error}")
        elif order.kind in _TRUTHS and not _TRUTHS[order.kind](self, order, said):
            self.violate("untrue", f"{order} is answered {shown}; {len(order.effects)} times something was done")

    def _true_action(self, order: Order, said: object) -> bool:
        if isinstance(said, Status):
            return any(effect.good is (said is Status.ACTION_SUCCESS) for effect in order.effects)
        return True

    def _true_text(self, order: Order, said: object) -> bool:
        return isinstance(said, SrupError) or said == f"device {order.target:x}"

    def _true_update(self, order: Order, said: object) -> bool:
        if said is UpdateState.ACTIVATED:
            return order.done
        if isinstance(said, UpdateError):  # a device that has started anew does not know that it has activated
            target = self.devices[order.target]
            return not order.done or len(order.effects) > 1 or (not target.durable and target.life not in order.lives())
        return isinstance(said, SrupError)

    # What operators and owners do.

    def action(self, issuer: Party, target: int) -> bool:
        """Order an action of a partner."""
        number = self._actions[issuer.identity, target]
        if not issuer.up or number >= ACTIONS:
            return False
        self._actions[issuer.identity, target] += 1
        order = self._order("action", issuer, target, number, self.policy.lifetime)
        self._expect(order, issuer.agent.action(target, number))
        return True

    def data(self, issuer: Party, target: int) -> bool:
        """Send a value to a partner."""
        if not issuer.up:
            return False
        what = ("reading", f"{self.ledger.counts['ordered data']} by {issuer}")
        lifetime = self.policy.update_lifetime if issuer.durable else self.policy.lifetime  # with receipts, or without
        order = self._order("data", issuer, target, what, lifetime)
        self._expect(order, issuer.agent.send_data(target, *what))
        return True

    def identify(self, server: ServerParty, device: int) -> bool:
        """Ask a device what it is."""
        if not server.up:
            return False
        order = self._order("identify", server, device, len(self.ledger.orders), self.policy.lifetime)
        self._expect(order, server.agent.identify(device))
        return True

    def update(self, server: ServerParty, device: int, hold: bool, age: int, host: str) -> bool:
        """Order firmware: one that is ``age`` versions old, from a host that is "good", "lying", "lost" or "fickle"."""
        if not server.up:
            return False
        number = len(self.ledger.orders)
        content = f"firmware {number}".encode() * 50
        digest = hashlib.sha256(content).hexdigest()
        url = f"https://firmware.example/{number}"
        contents: dict[str, Any] = self.host.contents  # type: ignore[assignment]
        answers = {"good": [content], "lying": [b"something else"], "fickle": [b"cut off", content], "lost": []}[host]
        if answers:
            contents[url] = lambda: answers[0] if len(answers) == 1 else answers.pop(0)
        version = max(1, number - age)
        order = self._order("update", server, device, digest, self.policy.update_lifetime)
        self._updates[digest] = order, version
        update = server.agent.update(device, url, digest, hold=hold, version=version)
        if hold:
            self._held.append(update)
        self._expect(order, update._done)
        return True

    def activate(self, which: int) -> bool:
        """Let one of the orders that were made with ``hold`` go on."""
        ready = [order for order in self._held if order.state is UpdateState.READY]
        if not ready:
            return False
        ready[which % len(ready)].activate()
        return True

    def corrupt(self, device: DeviceParty) -> bool:
        """Alter every file in a device's flash that is not active (T11)."""
        files = [path for path in sorted(device.folder.glob("*")) if path.name in self._updates]
        files = [path for path in files if path.name != device.active]
        for path in files:
            path.write_bytes(b"altered")
            self.note(f"the file {path.name[:8]} of {device} is altered")
        return bool(files)

    def terminate(self, server: ServerParty, device: int, ban: bool) -> bool:
        """Put a device out, and with ``ban`` do not let it in again until :meth:`readmit`."""
        if not server.up or device not in server.agent.members:
            return False
        self._dismiss(server, device)
        if ban:
            server.banned.add(device)
        self._finish(server, "terminate", device, server.agent.terminate(device))
        return True

    def readmit(self, server: ServerParty, device: int) -> bool:
        """Let a device in again that was put out."""
        known = device in server.banned
        server.banned.discard(device)
        return known

    def deregister(self, server: ServerParty, device: int) -> bool:
        """Put a device out for good."""
        if not server.up or device not in server.ring:
            return False
        self._dismiss(server, device)
        self._finish(server, "deregister", device, server.agent.deregister(device))
        return True

    def revoke(self, server: ServerParty, device: int) -> bool:
        """Bar a device's key; the attacker has it from then on."""
        if not server.up or device not in server.ring:
            return False
        self.note(f"{server} revokes {device:x}")
        server.revoked |= server.keys_of(device)
        before = [self.devices[device].key, self.devices[device].next_key]
        server.agent.revoke(device)
        self.become_new(server.identity, device)
        for key in before:
            if key is not None and key.public_key.fingerprint in server.revoked:
                self.attacker.steal(key, self.clock.now, device, server.identity)
        return True

    def provision(self, device: DeviceParty) -> bool:
        """Give a device a new key and everything it needs to know, register it everywhere, and start it.

        Not before the last word to its former self has expired.
        """
        dismissed = [
            until for (_, whom), sent in self._dismissals.items() if whom == device.identity for until, _ in sent
        ]
        if any(device.clock.now <= until + self.policy.clock_skew for until in dismissed):
            return False
        device.die()
        old, device.key, device.next_key = device.key, device.new_key(), None
        device.first_floor = device.floor
        device.renew_store()  # whoever begins anew does not go on where another key has ended
        self.note(f"{device} is provisioned anew")
        for order in self.ledger.orders:
            order.excused = order.excused or device.identity == order.issuer
        for server in self.servers.values():
            server.register(device.identity, device.key.public_key)
            device.server_keys[server.identity] = server.key.public_key
        self.leak(device, old, 0.0)
        device.boot()
        return True

    def rotate(self, party: ServerParty | DeviceParty) -> bool:
        """Change a party's key."""
        now = self.clock.now
        if not party.up or party.next_key is not None or now < self._rotated.get(party.identity, 0.0) + 300.0:
            return False
        if isinstance(party, DeviceParty) and not party.agent.joined:
            return False
        self._rotated[party.identity] = now
        self.note(f"{party} changes its key")
        party.rotate(party.new_key())
        return True

    def summon(self, server: ServerParty, device: int, to: int | None = None) -> bool:
        """Tell a device to join, or to go to another server."""
        if not server.up:
            return False
        target = server.identity if to is None else to
        order = self._order("summon" if to is None else "send", server, device, target, self.policy.lifetime)
        self._sent_away[server.identity, device, target] = order.until
        self._expect(order, server.agent.command_join(device, to))
        return True

    def resign(self, device: DeviceParty, for_good: bool = False) -> bool:
        """Leave the server."""
        if not device.up or not device.agent.joined:
            return False
        device.wanted = False
        order = self._order(
            "deregister" if for_good else "resign", device, device.server, device.life, self.policy.lifetime
        )
        self._expect(order, device.agent.deregister() if for_good else device.agent.resign())
        return True

    def rejoin(self, device: DeviceParty) -> bool:
        """Ask the server again."""
        if not device.up:
            return False
        device.wanted = True
        device.agent.join()
        return True

    def decide(self, server: ServerParty, which: int, how: str) -> bool:
        """Let an operator say something about one of the joins that wait for him."""
        waiting = server.agent.pending_joins if server.up else []
        if waiting:
            server.decide(waiting[which % len(waiting)], how)
        return bool(waiting)

    def _dismiss(self, server: ServerParty, device: int) -> None:
        until = server.clock.now + self.policy.lifetime + self.policy.clock_skew
        self._dismissals.setdefault((server.identity, device), []).append((until, set()))

    def _finish(self, server: ServerParty, kind: str, device: int, future: "Future[None]") -> None:
        self._expect(self._order(kind, server, device, len(self.ledger.orders), self.policy.lifetime), future)

    # What the world does.

    def weather(self, kind: int) -> bool:
        """Change what the network is like."""
        faults = WEATHER[kind % len(WEATHER)]
        self.network.disturb(**faults._asdict())
        self.note(f"the network: {faults}")
        return True

    def cut(self, party: Party) -> bool:
        """Take a party's link away."""
        if party.cut:
            return False
        self.note(f"the link of {party} is cut")
        party.cut = True
        self.network.cut(party.name)
        return True

    def insist(self, device: DeviceParty) -> bool:
        """Offer a key again that has not been answered."""
        possible = device.next_key is not None and not device.offering
        device.insist()
        return possible

    def heal(self, party: Party) -> bool:
        """Give it back."""
        if not party.cut:
            return False
        self.note(f"the link of {party} is back")
        party.cut = False
        self.network.heal(party.name)
        return True

    def fill(self, party: Party, turns: int) -> bool:
        """Let a party's disk be full, and for so many attempts to write to it."""
        if party.store is None or party.store.full:
            return False
        self.note(f"the disk of {party} is full")
        party.store.full = turns
        return True

    def crash(self, party: Party, fuse: int | None = None) -> bool:
        """Let a party die, at once or after so many messages and effects."""
        if not party.up:
            return False
        if fuse is None:
            party.die()
        else:
            party.fuse = fuse
        return True

    def restart(self, party: Party) -> bool:
        """Start a party again that is dead."""
        if party.up or (isinstance(party, DeviceParty) and not self._can_start(party)):
            return False
        party.boot()
        return True

    def _can_start(self, device: DeviceParty) -> bool:
        """Point a device at a server that it knows, if there is one."""
        if device.server not in device.server_keys:
            device.server = next(iter(device.server_keys), device.server)
        return device.server in device.server_keys

    # The end.

    def quiet(self) -> None:
        """End all faults and attacks, start what is dead, and give everybody the time to come to an agreement."""
        self.note("all faults end")
        self.network.disturb(**CALM._asdict())
        for server in self.servers.values():
            server.lenient = True
        for party in self.parties:
            party.fuse = None
            if party.store is not None:
                party.store.full = 0
            self.heal(party)
            self.restart(party)
        observer = self.devices[FIRST_DEVICE]
        if any(observer.identity not in server.ring for server in self.servers.values()):
            self.provision(observer)
        passed = 0.0
        while passed < 2 * self.policy.key_overlap + 2 * REJOIN:
            for server in self.servers.values():
                for pending in server.agent.pending_joins:
                    server.decide(pending, "look")
            for device in self.devices.values():
                self._care(device)
            pause = 20.0 if passed < 2 * self.policy.update_lifetime else 300.0
            self.pass_time(pause)
            passed += pause
        for server in self.servers.values():
            for identity in sorted(server.agent.members & self.devices.keys()):
                self.identify(server, identity)  # who has left without being heard says so now
        for order in list(self._held):
            with suppress(SrupError):
                order.activate()
        self.pass_time(self.policy.lifetime)

    def _care(self, device: DeviceParty) -> None:
        """Do what an owner does who wants a device in that is not."""
        if not device.up or not device.wanted or device.server not in device.server_keys:
            return
        server = self.servers[device.server]
        registered = server.ring.get(device.identity)
        if device.server_keys[device.server] != server.key.public_key and server.next_key is None:
            # It has slept through a rotation of the server's key (Server.rotate_key).
            device.server_keys[device.server] = server.key.public_key
            device.die()
            device.boot()
        elif device.next_key is not None and device.next_key.public_key == registered:
            # The server has taken it, and its answer was lost with what the device knew.
            device.key, device.next_key = device.next_key, None
            self.spread(device)
            device.die()
            device.boot()
        elif registered is not None and not device.agent.joined and device.shown is None and device.out:
            device.agent.join()
        device.insist()

    def check(self) -> None:
        """Enter what must hold at any time and does not."""
        for agent in [*self.agents, *self.dead]:
            if agent.counts["faults"]:
                self.violate("fault", f"{agent!r} has caught {agent.counts['faults']} exceptions where none should be")
                agent.counts["faults"] = 0

    def check_agreement(self) -> None:
        """Enter what must hold after :meth:`quiet` and does not."""
        self.check()
        for order in self.ledger.orders:
            issuer = self.party(order.issuer)
            if order.answer is not None and not order.answer.done() and issuer.life == order.life:
                self.violate("lost", f"{order} never ends")
            self._check_kept(order, issuer)
        for device in self.devices.values():
            self._check_membership(device)
        for party in self.parties:
            if party.up:
                self._check_idle(party)
        self._probe()
        self.settle()

    def _check_kept(self, order: Order, issuer: Party) -> None:
        """Check that what was made durable has not been lost in a crash."""
        if not order.accepted or order.excused:
            return
        answered = order.told or (order.answer is not None and order.answer.done())
        failed = order.told or (answered and order.answer is not None and order.answer.exception() is not None)
        if order.kind == "data" and not order.effects and not failed:
            self.violate("lost", f"{order} was never taken, and nobody was told")
        elif order.kind in _TOLD and not answered and issuer.life > order.life:
            self.violate("lost", f"{order} has come to no end that was told after a restart")

    def _check_membership(self, device: DeviceParty) -> None:
        believed = device.server if device.up and device.agent.joined else None
        for server in self.servers.values():
            inside = device.identity in server.agent.members
            known = server.ring.get(device.identity) is not None
            mine = server.identity == believed
            if inside and not mine and not self._ghost(device, server):
                self.violate("disagreement", f"{server} believes that {device} is joined to it")
            if mine and not inside and known:
                self.violate("disagreement", f"{device} believes that it is joined to {server}")
            expected = device.up and device.wanted and device.server == server.identity and known
            alone = device.join_kind == "human" or server.admission == device.join_kind == "simple"
            observer = self.devices[FIRST_DEVICE]
            vouched = alone or (observer.up and observer.agent.joined and observer.server == server.identity)
            welcome = device.identity not in server.banned and vouched
            if expected and welcome and device.server in device.server_keys and not inside:
                self.violate("disagreement", f"{device} is not joined to {server}, although both want it")

    def _ghost(self, device: DeviceParty, server: ServerParty) -> bool:
        """Tell whether the documentation excuses that a server believes a device to be joined that is not.

        It may if the device is not there, or has parted from it for good and was not heard, or does not understand it
        any more because it has missed the change of its key.
        """
        return not device.up or device.server_keys.get(server.identity) != server.key.public_key

    def _check_idle(self, party: Party) -> None:
        session: Session = party.agent._session
        for partner in session._partners.values():
            for exchange in partner.exchanges.values():
                hangs = (exchange.state, Word.EXPIRE) in session.table and exchange.expiry < party.clock.now - 1.0
                if hangs:
                    self.violate("hanging", f"{party}: an exchange with {partner.identity:x} is {exchange.state}")
        if party.store is not None:
            kept = party.store.open(party.identity)
            for entry in (*kept.inbox, *kept.outbox):
                self.violate("hanging", f"{party}: the store keeps {entry!s:.100}")
        if party.agent._pending:
            self.violate("hanging", f"{party} still waits for {len(party.agent._pending)} answers")

    def _probe(self) -> None:
        """See whether those who are joined still understand each other."""
        self.note("everybody who is joined is asked once more")
        before = len(self.ledger.orders)
        for device in self.devices.values():
            if device.up and device.agent.joined:
                server = self.servers[device.server]
                if server.ring.get(device.identity) is None:
                    continue
                for issuer, target in ((server, device.identity), (device, server.identity)):
                    self.action(issuer, target)
                    self.data(issuer, target)
                self.identify(server, device.identity)
        self.pass_time(self.policy.lifetime * 2)
        for order in self.ledger.orders[before:]:
            answered = order.answer is not None and order.answer.done() and order.answer.exception() is None
            if not answered or (order.kind in ("action", "data") and not order.effects):
                self.violate("disagreement", f"{order} has no effect, although nothing is in its way")


_OUTCOMES: Final[dict[Any, tuple[tuple[str, ...], Callable[[Any], object] | None]]] = {
    Action: (("action",), lambda request: request.action_id),
    Data: (("data",), lambda request: (request.data_id, request.data.decode(errors="replace"))),
    IdRequest: (("identify",), None),
    JoinCommand: (("summon", "send"), lambda request: request.device_id),
    ResignRequest: (("resign",), None),
    DeregisterRequest: (("deregister",), None),
}
"""Which orders an :class:`Outcome` may be about, by the type of its request, and what they have in common with it."""

_TOLD: Final = ("action", "identify", "update", "summon", "send")
"""Orders whose end is told to whoever has started anew since."""

_TRUTHS: Final[dict[str, Callable[[World, Order, object], bool]]] = {
    "action": World._true_action,
    "identify": World._true_text,
    "update": World._true_update,
}
"""Whether what was answered to an order is so."""
