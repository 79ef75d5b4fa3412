"""The environment: networks, links, disks, flash and processes, which fail when they are told to.

Each method that lets something fail or recover returns whether there was anything to do.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import StoreError, TransportError
from ..records import Changes
from ..store import MemoryStore
from ..transport import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from .base import BaseWorld
    from .parties import DeviceParty
    from .party import Party

__all__ = ["CALM", "WEATHER", "Crash", "Disk", "Environment", "Faults", "Link", "Wire"]


class Crash(BaseException):
    """A process dies in the middle of something. No handler catches it."""


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
"""What a network may be like."""


HELD_BACK: Final = Faults(0.9, 0.0, (0.01, 1.0), 0.0)
"""A broker that holds back almost everything; its owner plays it when he likes."""


class Link:
    """A party's way to a broker: under which client id, and how it is called in the trace."""

    def __init__(self, network: MemoryNetwork, client_id: str, name: str) -> None:
        self.network = network
        self.client_id = client_id
        self.name = name
        self.cut = False


class Wire(MemoryTransport):
    """A process's end of a link: everything that it sends is noted, and it may die before or after it has been sent."""

    def __init__(self, party: "Party", link: Link) -> None:
        super().__init__(link.network, link.client_id)
        self._party = party
        self._link = link

    def publish(
        self,
        topic: str,
        payload: bytes,
        on_settled: Callable[[], object] | None = None,
        on_refused: Callable[[TransportError], object] | None = None,
    ) -> None:
        """See :meth:`MemoryTransport.publish`."""
        self._party.may_die()
        self._party.world.sent(self._party, self._link.name, topic, payload)
        super().publish(topic, payload, on_settled, on_refused)
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


class Environment:
    """What surrounds the parties of a ``world``, on these ``networks`` by name."""

    def __init__(self, world: "BaseWorld", networks: Mapping[str, MemoryNetwork]) -> None:
        self._world = world
        self._networks = networks

    def weather(self, kind: int, name: str = "") -> bool:
        """Change what a network is like."""
        self._disturb(name, WEATHER[kind % len(WEATHER)])
        return True

    def hold_back(self, name: str = "") -> bool:
        """Let a network hold back almost everything."""
        self._disturb(name, HELD_BACK)
        return True

    def _disturb(self, name: str, faults: Faults) -> None:
        self._networks[name].disturb(**faults._asdict())
        self._world.note(f"the network{name and f' {name}'}: {faults}")

    def cut(self, party: "Party", which: int = 0) -> bool:
        """Take a link of a party away."""
        link = party.links[which % len(party.links)]
        if link.cut:
            return False
        self._world.note(f"the link of {link.name} is cut")
        link.cut = True
        link.network.cut(link.client_id)
        return True

    def heal(self, party: "Party") -> bool:
        """Give a party its links back."""
        lost = [link for link in party.links if link.cut]
        for link in lost:
            self._world.note(f"the link of {link.name} is back")
            link.cut = False
            link.network.heal(link.client_id)
        return bool(lost)

    def fill(self, party: "Party", turns: int) -> bool:
        """Let a party's disk be full, and for so many attempts to write to it."""
        if party.store is None or party.store.full:
            return False
        self._world.note(f"the disk of {party} is full")
        party.store.full = turns
        return True

    def corrupt(self, device: "DeviceParty") -> bool:
        """Alter every image in a device's flash that is not active (T11)."""
        images = [path for path in sorted(device.folder.glob("*")) if path.name in device.world.oracle.images]
        images = [path for path in images if path.name != device.active]
        for path in images:
            path.write_bytes(b"altered")
            self._world.note(f"the file {path.name[:8]} of {device} is altered")
        return bool(images)

    def crash(self, party: "Party", fuse: int | None = None) -> bool:
        """Let a party die, at once or after so many messages, effects and commits."""
        if not party.up:
            return False
        if fuse is None:
            party.die()
        else:
            party.fuse = fuse
        return True

    def restart(self, party: "Party") -> bool:
        """Start a party again that is dead."""
        if party.up or not party.can_start():
            return False
        party.boot()
        return True

    def end_faults(self) -> None:
        """End all faults, and start what is dead."""
        self._world.note("all faults end")
        for network in self._networks.values():
            network.disturb(**CALM._asdict())
        for party in self._world.parties:
            party.fuse = None
            if party.store is not None:
                party.store.full = 0
            self.heal(party)
            self.restart(party)
