"""The legitimate parties: a device or server that runs, dies and starts anew, and what its owner keeps meanwhile.

What outlives a process is what the documentation tells an owner to store: keys, the version floor, whom to join. In a
durable world a ``store`` keeps everything else.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..agent import Agent, Device, PendingJoin, Server
from ..agent.base import Outcome, Refusal
from ..agent.turn import Handling
from ..errors import PolicyError, StoreError
from ..joinvalue import JoinValue
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..records import Changes
from ..store import MemoryStore
from ..transport import MemoryTransport
from ..wire import Status
from .simulator import Clock

if TYPE_CHECKING:
    from .ledger import Order
    from .world import World

__all__ = ["ACTIONS", "Crash", "DeviceParty", "Party", "ServerParty"]

ACTIONS: Final = 256
"""Each order to a partner has an action id of its own, so there cannot be more between two."""

START_TIME: Final = 0.001
"""How many seconds a process takes to start anew."""

_Result = TypeVar("_Result")


class Crash(BaseException):
    """A process dies in the middle of something. No fence catches it."""


class Wire(MemoryTransport):
    """A party's link: everything that it sends is noted, and it may die before or after it has been sent."""

    def __init__(self, party: "Party") -> None:
        super().__init__(party.world.network, party.name)
        self._party = party

    def publish(self, topic: str, payload: bytes, on_settled: Callable[[], object] | None = None) -> None:
        """See :meth:`MemoryTransport.publish`."""
        self._party.may_die()
        self._party.world.sent(self._party, topic, payload)
        super().publish(topic, payload, on_settled)
        self._party.may_die()


class Disk(MemoryStore):
    """A party's store: it outlives its processes, which may die before or after something has been written to it.

    ``full`` is how many of the next turns are not written.
    """

    def __init__(self, party: "Party") -> None:
        super().__init__()
        self._party = party
        self.full = 0

    def commit(self, changes: Changes) -> None:
        """See :meth:`MemoryStore.commit`."""
        if not changes:
            return
        if self._party.stepping:
            self._party.may_die()
            if self.full > 0:
                self.full -= 1
                raise StoreError("the disk is full")
        super().commit(changes)
        if self._party.stepping and not changes.keys and not changes.barred:
            self._party.recorded(changes)
            self._party.may_die()


class Party:
    """Whoever has an identity and a key. ``life`` counts its processes; ``agent`` is the one that runs if it is ``up``.

    ``fuse`` is after how many more messages, effects and commits it dies; None for not at all.
    """

    agent: Agent

    def __init__(self, world: "World", identity: int, skew: float) -> None:
        self.world = world
        self.identity = identity
        self.name = f"{identity:x}"
        self.clock = Clock(ahead_of=world.clock, skew=skew)
        self.generation = 0
        self.key = world.key(self.name, 0)
        self.next_key: PrivateKey | None = None
        self.life = 0
        self.up = False
        self.fuse: int | None = None
        self.cut = False
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

    @property
    def durable(self) -> bool:
        """Whether what it knows outlives its process."""
        return self.store is not None

    def boot(self) -> None:
        """Start a process."""
        self.life += 1
        self.fuse = None
        if self.life > 1:
            self.world.advance(self.world.clock.now + START_TIME)
        self.world.note(f"{self.name} starts, life {self.life}")
        self.agent = self.make(Wire(self))
        self.agent.on_refused(self._refused)
        self.agent.on_outcome(self._outcome)
        self.agent.start(threads=False)
        self.up = True

    def make(self, wire: Wire) -> Agent:
        """Return the agent of a new process, with its handlers."""
        raise NotImplementedError

    def options(self, wire: Wire) -> dict[str, Any]:
        """Return the arguments that both kinds of agents have."""
        options: dict[str, Any] = {
            "broker": wire,
            "policy": self.world.policy,
            "clock": self.clock,
            "entropy": self.world.entropy(self.name, self.life),
        }
        return options if self.store is None else options | {"store": self.store}

    def die(self) -> None:
        """Let the process end without a word."""
        if self.up:
            self.world.note(f"{self.name} dies")
            self.world.network.kill(self.name)
            self.world.dead.append(self.agent)
            self.up = False
            self.given.clear()
            self.ended.clear()

    def may_die(self) -> None:
        """Die here if it is time."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Crash

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
        """Check that a handler may be called for this; tell whether it may have been called for it before."""
        name = handling.partner, handling.id
        life = self.called.get(name)
        if life is not None and (name not in self.unrecorded or life == self.life or not handling.again):
            self.world.violate("repeated", f"a handler of {self} is called again for {name[0]:x} {name[1]:.40}")
        self.called[name] = self.life
        self.unrecorded.add(name)
        return life is not None

    def given_order(self, order: "Order") -> None:
        """Take note of an order that this party gives: it counts from the next turn that is durable."""
        if self.durable:
            self.given.append((order, 2 if self.agent._unsaved else 1))

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
        self.done(lambda again: None if again and self.durable else self.world.outcome(self, outcome))

    def new_key(self) -> PrivateKey:
        """Make the next key of this party."""
        self.generation += 1
        return self.world.key(self.name, self.generation)

    def _refused(self, refusal: Refusal) -> None:
        self.world.note(f"{self.name} refuses a message on {refusal.topic}: {type(refusal.error).__name__}")
        self.world.counts[type(refusal.error).__name__] += 1

    def __str__(self) -> str:
        return self.name


class ServerParty(Party):
    """A server and its operator, who bars devices, compares values, and may be slow about it.

    ``ring`` are the keys that count, ``folder`` those that the operator has been given: with a store nothing is written
    back to it. ``revoked`` are the fingerprints of those that he has barred. ``banned`` are devices that he has put out
    and does not want back.
    """

    agent: Server

    def __init__(self, world: "World", identity: int, skew: float, admission: str, observers: tuple[int, ...]) -> None:
        super().__init__(world, identity, skew)
        self.admission = admission
        self.observers = observers
        self.ring = KeyRing()
        self.folder: dict[int, PublicKey] = {}
        self._unregistered: set[int] = set()  # what came in while the server was down
        self.banned: set[int] = set()
        self.revoked: frozenset[str] = frozenset()
        self.vouched: set[int] = set()
        self.lenient = False  # refuses and fails nobody by chance

    def make(self, wire: Wire) -> Server:
        """See :meth:`Party.make`."""
        self.vouched.clear()
        agent = Server(
            self.identity,
            self.key,
            devices=self.ring,
            admission=self.admission,  # type: ignore[arg-type]
            observers=self.observers,
            **self.options(wire),
        )
        for action in range(ACTIONS):
            agent.on_action(action)(lambda device, action=action: self._act(device, action))
        agent.on_data("reading", "text")(self._take)
        agent.on_join(self._decide)
        agent.on_moderation(lambda pending: None)  # decide() finds it
        agent.on_joined(self._joined)
        agent.on_left(lambda device: self.done(lambda again: self.world.note(f"{self}: {device:x} has left")))
        agent.on_update(lambda order: self.done(lambda again: self.world.update_told(order)))
        agent.on_key_changed(self._store)
        return agent

    def boot(self) -> None:
        """See :meth:`Party.boot`. A rotation that was under way is begun again (:meth:`Server.rotate_key`)."""
        if self.durable:
            self.ring = KeyRing(self.folder)
        super().boot()
        for identity in sorted(self._unregistered):
            if not self.ring.bars(self.folder[identity]):
                self.ring.replace(identity, self.folder[identity])
        self._unregistered.clear()
        if self.next_key is not None:
            self.rotate(self.next_key)

    def register(self, identity: int, key: PublicKey) -> None:
        """Register a device's key, instead of any that it had."""
        self.folder[identity] = key
        self.world.become_new(self.identity, identity)
        if self.up or not self.durable:
            self.ring.replace(identity, key)
        else:
            self._unregistered.add(identity)

    def keys_of(self, device: int) -> frozenset[str]:
        """Return the fingerprints of what counts for a device."""
        keys = (self.ring.get(device), self.ring.retiring(device, self.clock.now))
        return frozenset(key.fingerprint for key in keys if key is not None) - self.revoked

    def rotate(self, key: PrivateKey) -> "Future[frozenset[int]]":
        """Change the server's key."""
        self.next_key = key
        self.world.offered.add((self.identity, None, key.public_key.fingerprint))
        future = self.agent.rotate_key(key, self.world.ROLLOUT)
        life = self.life

        def changed(done: "Future[frozenset[int]]") -> None:
            if self.life == life and done.exception() is None:
                self.world.note(f"{self} has a new key; {sorted(done.result())} have taken it")
                self.world.check_rollout(self, done.result(), key)
                known = [device.server_keys.get(self.identity) for device in self.world.devices.values()]
                if set(known) <= {None, key.public_key}:  # else somebody still believes the old one
                    self.world.leak(self, self.key, self.world.policy.key_overlap + 60.0)
                self.key, self.next_key = key, None

        future.add_done_callback(changed)
        return future

    def decide(self, pending: PendingJoin, how: str) -> None:
        """Say about a join: "look" (accept if the device shows the same value), "refuse" or "fail"."""
        device = self.world.devices.get(pending.device)
        same = device is not None and device.up and device.shown == pending.value
        decision = {"refuse": pending.refuse, "fail": pending.fail}.get(how, pending.accept if same else pending.refuse)
        if pending.device in self.banned:
            decision = pending.refuse
        with suppress(PolicyError):  # too late
            decision()
            if decision == pending.accept:
                self.vouched.add(pending.device)
            self.world.note(f"{self} about {pending.device:x}: {decision.__name__}")

    def _joined(self, device: int) -> None:
        told_late = self.agent.handling is not None and self.agent.handling.again
        self.done(lambda again: self.world.joined_at(self, device, told_late))

    def _act(self, device: int, action: int) -> bool:
        return self.done(lambda again: self.world.effect(self, "action", device, action, again, self.keys_of(device)))

    def _take(self, device: int, name: str, text: str) -> None:
        self.done(lambda again: self.world.effect(self, "data", device, (name, text), again, self.keys_of(device)))

    def _decide(self, device: int) -> Status:
        if device in self.banned:
            return Status.JOIN_REFUSED
        if not self.lenient and self.world.chance(0.05):
            return Status.JOIN_FAIL
        return Status.JOIN_SUCCESS

    def _store(self, device: int, key: PublicKey) -> None:
        self.may_die()
        self.world.key_changed(self, device, key)


class DeviceParty(Party):
    """A device and its owner. ``server`` is whom to join at the next start; ``wanted`` says whether the owner wants in.

    ``shown`` is what it shows for a join that is being compared, ``active`` the digest of the firmware that runs.
    """

    agent: Device

    def __init__(self, world: "World", identity: int, skew: float, join: str, observer: int | None) -> None:
        super().__init__(world, identity, skew)
        self.join_kind = join
        self.observer = observer
        self.server = self.configured = next(iter(world.servers))
        self.server_keys: dict[int, PublicKey] = {}
        self.commanders: tuple[int, ...] = ()
        self.folder: Path = world.folder / self.name
        self.floor: int | None = None
        self.first_floor: int | None = None  # at the time when it was provisioned
        self.active: str | None = None
        self.wanted = True
        self.out = True  # it was refused or has left, and does not ask again by itself
        self.shown: JoinValue | None = None
        self.offering = False  # whether the answer to the offer of the next key is due
        self.leaving: set[int] = set()  # servers that have not confirmed that it leaves

    def make(self, wire: Wire) -> Device:
        """See :meth:`Party.make`."""
        self.shown, self.offering = None, False
        if not self.durable or self.configured not in self.server_keys:
            self.configured = self.server
        others = {server: key for server, key in self.server_keys.items() if server != self.configured}
        floor = self.first_floor if self.durable else self.floor
        agent = Device(
            self.identity,
            self.key,
            server=self.configured,
            server_key=self.server_keys[self.configured],
            servers=others,
            commanders=[server for server in self.commanders if server in self.server_keys],
            firmware=self.folder,
            fetcher=self.world.host,
            description=f"device {self.name}",
            join=self.join_kind,  # type: ignore[arg-type]
            observer=self.observer,
            version_floor=floor,
            **self.options(wire),
        )
        for action in range(ACTIONS):
            agent.on_action(action)(lambda server, action=action: self._act(server, action))
        agent.on_data("reading", "text")(self._take)
        agent.on_activate(self._activate)
        agent.on_join_value(self._show)
        agent.on_joined(self._joined)
        agent.on_not_joined(self._not_joined)
        agent.on_left(self._left)
        agent.on_key_changed(self._store)
        agent.on_observation(self._observe)
        agent.on_deregistered(self._deregistered)
        return agent

    def boot(self) -> None:
        """See :meth:`Party.boot`. Whoever starts a device wants in."""
        self.wanted = True
        self.out = not self.durable
        super().boot()
        self.server = self.agent.server

    def rotate(self, key: PrivateKey) -> "Future[None]":
        """Change the device's key; the old one is kept until the server has taken the new one."""
        self.next_key = key
        self.offering = True
        self.world.offered.add((self.identity, self.server, key.public_key.fingerprint))
        future = self.agent.rotate_key(key)
        life = self.life

        def changed(done: "Future[None]") -> None:
            if self.life != life:
                return
            self.offering = False
            if done.exception() is None:
                self.world.note(f"{self} has a new key")
                self.world.leak(self, self.key, self.world.policy.key_overlap + 60.0)
                self.key, self.next_key = key, None
                self.world.spread(self)

        future.add_done_callback(changed)
        return future

    def insist(self) -> None:
        """Offer the next key again, which the server may have taken already (:meth:`Device.rotate_key`)."""
        if self.next_key is not None and self.up and self.agent.joined and not self.offering:
            self.rotate(self.next_key)

    def _act(self, server: int, action: int) -> bool:
        return self.done(lambda again: self.world.effect(self, "action", server, action, again))

    def _take(self, server: int, name: str, text: str) -> None:
        self.done(lambda again: self.world.effect(self, "data", server, (name, text), again))

    def _activate(self, path: Path) -> bool:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.done(lambda again: self.world.activated(self, path.name, actual, again))

    def _show(self, value: JoinValue) -> None:
        self.shown = value

    def _joined(self) -> None:
        self.shown = None
        self.out = not self.durable
        self.world.joined(self)
        self.insist()

    def _not_joined(self, status: Status | None) -> None:
        self.shown = None
        self.out = self.out or status is not None
        self.world.note(f"{self} is not let in: {status.name if status else 'no answer'}")

    def _left(self, server: int) -> None:
        self.shown = None
        self.out = True
        told_late = self.agent.handling is not None and self.agent.handling.again
        self.done(lambda again: self.world.left(self, server, told_late))

    def _observe(self, device: int) -> str | None:
        seen = self.world.devices.get(device)
        if seen is None or not seen.up or seen.shown is None:
            return None
        for server in self.world.servers.values():
            if self.identity in server.observers:
                server.vouched.add(device)
        return seen.shown.text

    def _store(self, server: int, key: PublicKey) -> None:
        self.may_die()
        self.world.key_changed(self, server, key)

    def _deregistered(self, server: int) -> None:
        self.world.note(f"{self} and {server:x} part for good")
        self.server_keys.pop(server, None)
