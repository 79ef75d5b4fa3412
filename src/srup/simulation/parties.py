"""The parties of a fleet: servers with their operators, and devices with their owners."""

import hashlib
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..agent import Device, PendingJoin, Server
from ..errors import PolicyError
from ..joinvalue import JoinValue
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..wire import Status
from .environment import Link, Wire
from .oracle import DeviceView, ServerView
from .party import ACTIONS, Party

if TYPE_CHECKING:
    from .world import World

__all__ = ["DeviceParty", "ServerParty"]


class ServerParty(Party):
    """A server and its operator, who bars devices, compares values, and may be slow about it.

    ``ring`` are the keys that count, ``folder`` those that the operator has been given: with a store nothing is written
    back to it. ``revoked`` are the fingerprints of those that he has barred. ``banned`` are devices that he has put out
    and does not want back.
    """

    agent: Server

    world: "World"

    def __init__(self, world: "World", identity: int, skew: float, admission: str, observers: tuple[int, ...]) -> None:
        super().__init__(world, identity, skew, [Link(world.network, f"{identity:x}", f"{identity:x}")])
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
        agent.on_update(lambda order: self.done(lambda again: self.world.operators.update_told(order)))
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
        self.world.oracle.become_new(self.identity, identity)
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
        self.world.oracle.offers_key(self.identity, None, key.public_key.fingerprint)
        future = self.agent.rotate_key(key, self.world.ROLLOUT)
        life = self.life

        def changed(done: "Future[frozenset[int]]") -> None:
            if self.life == life and done.exception() is None:
                self.world.note(f"{self} has a new key; {sorted(done.result())} have taken it")
                devices = self.world.devices
                known = {device: party.server_keys.get(self.identity) for device, party in devices.items()}
                believed = {device: known[device] for device in devices if device in done.result()}
                self.world.oracle.key_spread(self.identity, key.public_key, believed)
                if set(known.values()) <= {None, key.public_key}:  # else somebody still believes the old one
                    self.world.attacker.steal_retired(self)
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
        told_late = self.told_late
        self.done(lambda again: self._let_in(device, told_late))

    def _let_in(self, device: int, told_late: bool) -> None:
        self.world.note(f"{self} lets {device:x} in")
        if told_late:
            return
        self.world.oracle.let_in(
            self.identity,
            device,
            local=self.clock.now,
            valid=self.keys_of(device),
            banned=device in self.banned,
            vouched=self.admission == "simple" or device in self.vouched,
        )
        self.vouched.discard(device)

    def _act(self, device: int, action: int) -> bool:
        return self.done(lambda again: self.world.effect(self, "action", device, action, again, self.keys_of(device)))

    def _take(self, device: int, name: str, text: str) -> None:
        self.done(lambda again: self.world.effect(self, "data", device, (name, text), again, self.keys_of(device)))

    def view(self) -> ServerView:
        """Return what can be seen of it in the end."""
        return ServerView(
            identity=self.identity,
            key=self.key.public_key,
            members=self.agent.members,
            registered=[device for device in self.world.devices if self.ring.get(device) is not None],
            banned=self.banned,
            admission=self.admission,
        )

    def _decide(self, device: int) -> Status:
        if device in self.banned:
            return Status.JOIN_REFUSED
        if not self.lenient and self.world.chance(0.05):
            return Status.JOIN_FAIL
        return Status.JOIN_SUCCESS

    def _store(self, device: int, key: PublicKey) -> None:
        self.may_die()
        self.world.note(f"{self} stores a new key of {device:x}")
        self.world.oracle.key_changed(self.identity, device, key.fingerprint)


class DeviceParty(Party):
    """A device and its owner. ``server`` is whom to join at the next start; ``wanted`` says whether the owner wants in.

    ``shown`` is what it shows for a join that is being compared, ``active`` the digest of the firmware that runs.
    """

    agent: Device

    world: "World"

    def __init__(self, world: "World", identity: int, skew: float, join: str, observer: int | None) -> None:
        super().__init__(world, identity, skew, [Link(world.network, f"{identity:x}", f"{identity:x}")])
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

    def can_start(self) -> bool:
        """See :meth:`Party.can_start`; point the device at a server that it knows, if there is one."""
        if self.server not in self.server_keys:
            self.server = next(iter(self.server_keys), self.server)
        return self.server in self.server_keys

    def boot(self) -> None:
        """See :meth:`Party.boot`. Whoever starts a device wants in."""
        self.wanted = True
        self.out = not self.durable
        super().boot()
        self.server = self.agent.server

    def stepped(self) -> None:
        """See :meth:`Party.stepped`: notice when it has turned to another server."""
        before, server = self.server, self.agent.server
        if server != before and not self.agent.debug.commit_failed:
            self.world.note(f"{self} turns from {before:x} to {server:x}")
            self.world.oracle.turned(self.identity, before, server, local=self.clock.now)
            self.server, self.wanted = server, True

    def rotate(self, key: PrivateKey) -> "Future[None]":
        """Change the device's key; the old one is kept until the server has taken the new one."""
        self.next_key = key
        self.offering = True
        self.world.oracle.offers_key(self.identity, self.server, key.public_key.fingerprint)
        future = self.agent.rotate_key(key)
        life = self.life

        def changed(done: "Future[None]") -> None:
            if self.life != life:
                return
            self.offering = False
            if done.exception() is None:
                self.world.note(f"{self} has a new key")
                self.world.attacker.steal_retired(self)
                self.key, self.next_key = key, None
                self.world.operators.spread(self)

        future.add_done_callback(changed)
        return future

    def offer_again(self) -> None:
        """Offer the next key again, which the server may have taken already (:meth:`Device.rotate_key`)."""
        if self.next_key is not None and self.up and self.agent.joined and not self.offering:
            self.rotate(self.next_key)

    def _act(self, server: int, action: int) -> bool:
        return self.done(lambda again: self.world.effect(self, "action", server, action, again))

    def _take(self, server: int, name: str, text: str) -> None:
        self.done(lambda again: self.world.effect(self, "data", server, (name, text), again))

    def _activate(self, path: Path) -> bool:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.done(lambda again: self._activated(path.name, actual, again))

    def _activated(self, digest: str, actual: str, again: bool) -> bool:
        good = not self.world.chance(0.1)
        self.world.note(f"{self} activates {digest[:8]}{'' if good else ', and fails'}")
        version = self.world.oracle.activated(
            *(self.identity, digest, actual, self.floor), local=self.clock.now, again=again, good=good
        )
        if good:
            self.active = digest
            if self.floor is not None and version is not None:
                self.floor = max(self.floor, version)
        return good

    def _show(self, value: JoinValue) -> None:
        self.shown = value

    def _joined(self) -> None:
        self.shown = None
        self.out = not self.durable
        self.world.note(f"{self} has joined {self.server:x}")
        self.world.oracle.joined(self.identity, self.server, local=self.clock.now, wanted=self.wanted)
        self.wanted = True
        self.offer_again()

    def _not_joined(self, status: Status | None) -> None:
        self.shown = None
        self.out = self.out or status is not None
        self.world.note(f"{self} is not let in: {status.name if status else 'no answer'}")

    def _left(self, server: int) -> None:
        self.shown = None
        self.out = True
        told_late = self.told_late
        self.done(lambda again: self._has_left(server, told_late))

    def _has_left(self, server: int, told_late: bool) -> None:
        self.world.note(f"{self} has left {server:x}")
        if not told_late:
            self.world.oracle.left(self.identity, server, local=self.clock.now)

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
        self.world.note(f"{self} stores a new key of {server:x}")
        self.world.oracle.key_changed(self.identity, server, key.fingerprint)
        self.server_keys[server] = key

    def _deregistered(self, server: int) -> None:
        self.world.note(f"{self} and {server:x} part for good")
        self.server_keys.pop(server, None)

    def view(self) -> DeviceView:
        """Return what can be seen of it in the end."""
        return DeviceView(
            identity=self.identity,
            up=self.up,
            joined=self.server if self.up and self.agent.joined else None,
            server=self.server,
            wanted=self.wanted,
            join=self.join_kind,
            server_keys=self.server_keys,
        )
