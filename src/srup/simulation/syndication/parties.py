"""The parties of a syndication world: servers that share, relays between two of them, and devices that are shared."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ...agent import Agent, AwayNetwork, Device, PendingJoin, SyndicationDevice, SyndicationServer
from ...errors import PolicyError
from ...joinvalue import JoinValue
from ...keyring import KeyRing
from ...keys import PublicKey
from ...session.syndication import Role
from ...transport import MemoryNetwork
from ...wire import Status
from ..environment import Link, Wire
from ..party import ACTIONS, Party
from .oracle import Side, number_in

if TYPE_CHECKING:
    from .world import SyndicationWorld

__all__ = ["Lamp", "Relay", "SharingServer"]


FAREWELLS: Final = 3
"""So often a relay must have said that it leaves a network; then nobody can expect more of it."""


class SharingServer(Party):
    """A server and its owner, who wants to see other owners' devices, and shares those of his own.

    By relay: ``offers`` are the devices that he shares with the other owner, None for nothing at all; ``wants`` is
    whether he wants to see devices of theirs. ``banned`` are members that he has put out and does not want back.
    """

    agent: SyndicationServer
    world: "SyndicationWorld"

    def __init__(self, world: "SyndicationWorld", identity: int, skew: float, network: str) -> None:
        self.network = network
        super().__init__(world, identity, skew, [Link(world.networks[network], f"{identity:x}", f"{identity:x}")])
        self.keys: dict[int, PublicKey] = {}
        self.ring = KeyRing()
        self.admitted: list[int] = []
        self.offers: dict[int, tuple[int, ...] | None] = {}
        self.wants: dict[int, bool] = {}
        self.lenient = False  # refuses and fails nothing by chance
        self._marks: dict[int, int] = {}  # by relay: what tells the syndication that it has from others

    def register(self, identity: int, key: PublicKey) -> None:
        """Register the key of somebody who may join."""
        self.keys[identity] = key
        self.ring.replace(identity, key)

    def make(self, wire: Wire) -> SyndicationServer:
        """See :meth:`Party.make`."""
        self.ring = KeyRing(self.keys)
        agent = SyndicationServer(
            self.identity, self.key, devices=self.ring, syndication_devices=self.admitted, **self.options(wire)
        )
        agent.on_data("reading", "text")(self._take)
        agent.on_joined(lambda device: self.done(lambda again: self.world.note(f"{self} lets {device:x} in")))
        agent.on_left(lambda device: self.done(lambda again: self.world.note(f"{self}: {device:x} has left")))
        agent.on_moderation(lambda pending: None)  # decide() finds it
        agent.on_syndicated_data("reading", "text")(self._take_shared)
        agent.on_shared(lambda relay, devices: self.done(lambda again: self._shared(relay, devices)))
        agent.on_syndication_request(self._decide)
        agent.on_syndicated_action(self._allow_action)
        agent.on_syndicated_identify(self._allow_identification)
        agent.on_syndicated_request(self._carry_out)
        agent.on_syndication_ended(
            lambda device: self.done(lambda again: self.world.note(f"{self}: the syndication by {device:x} is over"))
        )
        return agent

    def boot(self) -> None:
        """See :meth:`Party.boot`."""
        self._marks.clear()
        super().boot()
        self.stepped()

    def stepped(self) -> None:
        """See :meth:`Party.stepped`: notice which syndications have begun and ended."""
        session: Any = self.agent.debug.session
        for relay in self.world.relays.values():
            side = Side.HOME if relay.home is self else Side.AWAY if relay.away is self else None
            if side is None:
                continue
            known = session.syndication(relay.identity if side is Side.HOME else relay.away_id)
            role = Role.HOME if side is Side.HOME else Role.AWAY
            before = self._marks.get(relay.identity)
            if known is None or known.role is not role:
                if before is not None:
                    del self._marks[relay.identity]
                    self.world.oracle.closed(relay.identity, side)
            elif known.began != before:
                self._marks[relay.identity] = known.began
                self.world.oracle.opened(relay.identity, side, known.began)

    # What its application does.

    def _take(self, device: int, name: str, text: str) -> None:
        self.done(lambda again: self.world.effect(self, "data", device, (name, text), again))

    def _take_shared(self, relay: int, source: int, name: str, text: str) -> None:
        def take(again: bool) -> None:
            self.world.note(f"{self} takes {text!r} of {source:x} by {relay:x}")
            self.world.oracle.value_taken(relay, source, name, text, again=again, told_late=told_late)

        told_late = self.told_late
        self.done(take)

    def _shared(self, relay: int, devices: tuple[int, ...]) -> None:
        self.world.note(f"{self} is told that {relay:x} has {[f'{device:x}' for device in devices]}")
        self.world.oracle.list_told(relay, devices)

    def _decide(self, away_id: int, value: bytes) -> tuple[int, ...] | bool:
        self.may_die()
        relay = self.world.relay_at(away_id)
        offered, number = self.offers[relay.identity], number_in(value.decode())
        self.world.note(f"{self} is asked for syndication {number} by {relay}: {offered is not None}")
        if offered is None:
            return False
        self.world.oracle.accepts(relay.identity, number, offered)
        self.may_die()
        return offered

    def _allow_action(self, away_id: int, device: int, action: int) -> bool:
        self.may_die()
        relay, good = self.world.relay_at(away_id), self._agrees()
        self.world.note(f"{self} {'allows' if good else 'refuses'} {relay} action {action} of {device:x}")
        if good:
            self.world.oracle.allows(relay.identity, device, action)
        self.may_die()
        return good

    def _allow_identification(self, away_id: int, device: int) -> bool:
        relay, good = self.world.relay_at(away_id), self._agrees()
        if good:
            self.world.oracle.allows_identification(relay.identity, device)
        return good

    def _carry_out(self, away_id: int, req_id: int, content: bytes) -> bool:
        self.may_die()
        relay, good = self.world.relay_at(away_id), self._agrees()
        self.world.note(f"{self} {'carries' if good else 'does not carry'} {content.decode(errors='replace')!r} out")
        self.world.oracle.moderates_request(relay.identity, content, good)
        self.may_die()
        return good

    def _agrees(self) -> bool:
        return self.lenient or not self.world.chance(0.15)

    def decide(self, pending: PendingJoin, refuse: bool) -> None:
        """Say about a join whether the relay shows the same value, or refuse it anyway; the attacker shows none."""
        shown = [relay.shown for relay in self.world.relays.values() if relay.up and relay.away_id == pending.device]
        accepts = not refuse and pending.value in shown
        with suppress(PolicyError):  # too late
            (pending.accept if accepts else pending.refuse)()
            self.world.note(f"{self} {'accepts' if accepts else 'refuses'} {pending.device:x}")


class Lamp(Party):
    """A device that its owner may share with others. ``wanted`` says whether its owner wants it in at its server."""

    agent: Device
    world: "SyndicationWorld"

    def __init__(self, world: "SyndicationWorld", identity: int, skew: float, server: SharingServer) -> None:
        link = Link(world.networks[server.network], f"{identity:x}", f"{identity:x}")
        super().__init__(world, identity, skew, [link])
        self.server = server
        self.wanted = True
        self.out = False  # it has left, or was refused, and does not ask again by itself

    def make(self, wire: Wire) -> Device:
        """See :meth:`Party.make`."""
        agent = Device(self.identity, self.key, **self.device_options(wire))
        for action in range(ACTIONS):
            agent.on_action(action)(lambda server, action=action: self._act(server, action))
        return self.listening(agent)

    def device_options(self, wire: Wire) -> Mapping[str, Any]:
        """Return the arguments of a device."""
        return {
            "server": self.server.identity,
            "server_key": self.server.key.public_key,
            "firmware": self.world.folder / self.name,
            "fetcher": self.world.host,
            "description": f"device {self.name}",
            **self.options(wire),
        }

    def listening(self, agent: Device) -> Device:
        """Let a device tell what becomes of its membership; return it."""
        agent.on_joined(self._joined)
        agent.on_not_joined(self._not_joined)
        agent.on_left(self._left)
        return agent

    def boot(self) -> None:
        """See :meth:`Party.boot`. Whoever starts a device wants it in."""
        self.wanted, self.out = True, not self.durable
        super().boot()

    def _act(self, server: int, action: int) -> bool:
        return self.done(lambda again: self.world.effect(self, "action", server, action, again))

    def _joined(self) -> None:
        self.out = not self.durable
        self.world.note(f"{self} has joined")

    def _not_joined(self, status: Status | None) -> None:
        self.out = self.out or status is not None
        self.world.note(f"{self} is not let in: {status.name if status else 'no answer'}")

    def _left(self, server: int) -> None:
        self.out = True
        self.done(lambda again: self.world.note(f"{self} has left"))


class Relay(Lamp):
    """A syndication device, which belongs to its ``home`` server; ``away_id`` is its identity at the ``away`` server.

    ``shown`` is what it shows of a join that is compared. ``stranded`` is whether its last process has ended while it
    was on the other network, and so without a word; ``farewells`` is how often it has said that it leaves that network.
    """

    agent: SyndicationDevice

    def __init__(
        self,
        world: "SyndicationWorld",
        identity: int,
        away_id: int,
        skew: float,
        home: SharingServer,
        away: SharingServer,
        join: str,
    ) -> None:
        super().__init__(world, identity, skew, home)
        self.home, self.away, self.away_id, self.join_kind = home, away, away_id, join
        away_network: MemoryNetwork = world.networks[away.network]
        self.links = [*self.links, Link(away_network, f"{away_id:x}", f"{away_id:x}")]
        self.away_key = world.key(f"{away_id:x}", 0)
        self.shown: JoinValue | None = None
        self.aways: list[Device] = []  # all that this process has had on the other network
        self.stranded = False
        self.farewells = 0
        self._sent_by = 0  # in which life of home

    def make(self, wire: Wire) -> SyndicationDevice:
        """See :meth:`Party.make`."""
        self.shown, self.aways = None, []
        agent = SyndicationDevice(self.identity, self.key, **self.device_options(wire))
        for action in range(ACTIONS):
            agent.on_action(action)(lambda server, action=action: self._act(server, action))
        agent.on_syndication_init(self._enter)
        agent.on_join_value(self._show)
        agent.on_syndication_ended(lambda: self.world.note(f"{self}: its syndication is over"))
        self.listening(agent)
        return agent

    def stepped(self) -> None:
        """See :meth:`Party.stepped`: remember who it is on the other network."""
        away = self.agent.away
        if away is not None and away not in self.aways:
            self.aways.append(away)

    def die(self) -> None:
        """See :meth:`Party.die`."""
        self.stranded = self.stranded or (self.up and any(not away.stopped for away in self.aways))
        super().die()

    @property
    def unheard(self) -> bool:
        """Whether the away server may not know that it has left, through no fault of its own."""
        return self.stranded or self.farewells >= FAREWELLS

    @property
    def forgotten(self) -> bool:
        """Whether home has no store, and has been started anew since it sent the relay to the other network."""
        return self.agent.away is not None and not self.durable and self._sent_by < self.home.life

    def processes(self) -> list[Agent]:
        """See :meth:`Party.processes`."""
        return [self.agent, *self.aways]

    def _left(self, server: int) -> None:
        self.world.oracle.ends(self.identity)
        super()._left(server)

    def _show(self, value: JoinValue) -> None:
        self.shown = value

    def _enter(self, url: str) -> AwayNetwork | bool:
        self.may_die()
        refuses = not self.home.lenient and self.world.chance(0.05)
        self.world.note(f"{self} is asked to enter for syndication {number_in(url)}{', and refuses' * refuses}")
        if refuses:
            return False
        self.stranded, self.farewells, self._sent_by = False, 0, self.home.life
        wire = Wire(self, self.links[1])
        server_key = self.away.key.public_key
        join: Any = self.join_kind
        return AwayNetwork(self.away_id, self.away_key, self.away.identity, server_key, wire, join)
