"""Whoever owns the broker: hears everything, and puts on any topic what he likes.

He has the key of one registered device, the mole, keys that nobody knows, and those that do not count any more.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import messages, tokens
from ..codec import Frame, decode, encode
from ..errors import SrupError
from ..keys import PrivateKey
from ..transport import MemoryNetwork
from ..transport.topics import device_topic, join_topic
from ..wire import IDENTIFICATION_RESPONSE, JOIN_OBSERVER, KEY_ROTATION, Status

if TYPE_CHECKING:
    from .base import BaseWorld
    from .party import Party

__all__ = ["ATTACKS", "REPERTOIRE", "Attacker", "Repertoire"]

_Chance = random.Random

_BODIES: Final[dict[type[messages.Message], Callable[[_Chance, int], dict[str, Any]]]] = {
    messages.Action: lambda chance, _: {"action_id": chance.randrange(256)},
    messages.Data: lambda chance, _: {
        "data_id": chance.choice(("reading", IDENTIFICATION_RESPONSE, KEY_ROTATION, JOIN_OBSERVER)),
        "data": chance.choice((b"forged", bytes(8), b"\0\x40" + bytes(100))),
    },
    messages.Response: lambda chance, _: {"status": chance.choice(list(Status))},
    messages.Initiate: lambda chance, _: {
        "url": "https://evil.example/image",
        "digest": chance.choice(("00" * 32, "no digest")),
    },
    messages.Activate: lambda chance, _: {},
    messages.IdRequest: lambda chance, _: {},
    messages.JoinRequest: lambda chance, _: {},
    messages.HumanJoinRequest: lambda chance, _: {},
    messages.ObservedJoinRequest: lambda chance, device: {"observer_id": device},
    messages.HumanJoinResponse: lambda chance, _: {"sealed": bytes(32)},
    messages.ObservedJoinResponse: lambda chance, _: {"sealed": bytes(32)},
    messages.ObservationRequest: lambda chance, device: {"joining_device_id": device, "sealed": bytes(32)},
    messages.JoinCommand: lambda chance, device: {"device_id": device},
    messages.ResignRequest: lambda chance, _: {},
    messages.DeregisterRequest: lambda chance, _: {},
    messages.TerminateCommand: lambda chance, _: {},
    messages.DeregisterCommand: lambda chance, _: {},
}


_COMMANDS: Final = (
    *(messages.Action, messages.Action, messages.Data, messages.Data, messages.Response, messages.Initiate),
    *(messages.Activate, messages.IdRequest, messages.JoinCommand, messages.TerminateCommand),
    *(messages.DeregisterCommand, messages.HumanJoinResponse, messages.ObservedJoinResponse),
    messages.ObservationRequest,
)
_JOINS: Final = (messages.JoinRequest, messages.HumanJoinRequest, messages.ObservedJoinRequest)
_REQUESTS: Final = (
    *(messages.Action, messages.Action, messages.Data, messages.Data, messages.Response, messages.ResignRequest),
    *(messages.DeregisterRequest, messages.JoinRequest, *_JOINS),
)


class Repertoire(NamedTuple):
    """What an attacker forges in the name of servers and of devices, and with which content."""

    commands: tuple[type[messages.Message], ...]
    requests: tuple[type[messages.Message], ...]
    bodies: Mapping[type[messages.Message], Callable[[_Chance, int], dict[str, Any]]]
    kept: frozenset[type[messages.Message]] = frozenset()
    """What the attacker keeps for later: messages that begin or end something."""


REPERTOIRE: Final = Repertoire(_COMMANDS, _REQUESTS, _BODIES)


class Stolen(NamedTuple):
    """A key that does not count any more from then on: for its ``owner``, at one server or, for None, at all."""

    at: float
    key: PrivateKey
    owner: int
    server: int | None


class Attacker:
    """``mole`` is the registered identity whose ``key`` he has, ``network`` the broker that he owns."""

    def __init__(
        self,
        world: "BaseWorld",
        network: MemoryNetwork,
        mole: int,
        chance: random.Random,
        servers: Collection[int],
        devices: Collection[int],
        elsewhere: Sequence[MemoryNetwork] = (),
        repertoire: Repertoire | None = None,
    ) -> None:
        self.mole = mole
        self.key = world.key("mole", 0)
        self._world = world
        self._network = network
        self._servers = servers
        self._devices = devices
        self._elsewhere = elsewhere
        self._repertoire = repertoire or REPERTOIRE
        self._chance = chance
        self._unknown = world.key("stranger", 0)
        self._stolen: list[Stolen] = []

    def steal(self, key: PrivateKey, at: float, owner: int, server: int | None = None) -> None:
        """Get a key of ``owner`` that does not count any more from then on; at one ``server``, or nowhere."""
        self._stolen.append(Stolen(at, key, owner, server))

    def steal_retired(self, party: "Party") -> None:
        """Get the key that a party changes just now, as soon as it does not count any more."""
        overlap = self._world.policy.key_overlap + 60.0
        self.steal(party.key, self._world.clock.now + overlap, party.identity)

    def attack(self, kind: str) -> bool:
        """Do something of a kind that ``ATTACKS`` names; return whether it was possible."""
        made = ATTACKS[kind](self)
        if made is None:
            return False
        topic, wire = made
        self._world.note(f"the attacker ({kind}) > {topic}: {len(wire)} bytes")
        self._world.counts["attacks"] += 1
        self._network.inject(topic, wire)
        return True

    # The kinds of attacks.

    def replay(self) -> tuple[str, bytes] | None:
        """Something that was said before, once more."""
        return self._overheard()

    def recall(self) -> tuple[str, bytes] | None:
        """Something that begins or ends something and was said before, mostly a late one."""
        kept = [heard for heard in self._network.log[-500:] if self._is_kept(heard[1])]
        if not kept:
            return None
        return kept[max(0, len(kept) - 1 - int(self._chance.expovariate(1 / 5)))]

    def _is_kept(self, wire: bytes) -> bool:
        with suppress(SrupError):
            return messages.SCHEMA[decode(wire).type] in self._repertoire.kept
        return False

    def redirect(self) -> tuple[str, bytes] | None:
        """Something that was just said, to somebody else."""
        log = self._network.log
        if not log:
            return None
        topic, wire = log[-self._chance.randrange(1, min(6, len(log)) + 1)]
        others = [device_topic(device) for device in self._devices if device_topic(device) != topic]
        return self._chance.choice(others) if others and self._chance.random() < 0.8 else self._topic(), wire

    def smuggle(self) -> tuple[str, bytes] | None:
        """Something that was said on another network, to whoever has the topic here, or to somebody else."""
        logs = [network.log for network in self._elsewhere if network.log]
        if not logs:
            return None
        log = self._chance.choice(logs)
        topic, wire = log[-self._chance.randrange(1, min(20, len(log)) + 1)]
        return (topic if self._chance.random() < 0.5 else self._topic()), wire

    def truncate(self) -> tuple[str, bytes] | None:
        """The beginning of something that was said before."""
        heard = self._overheard()
        return None if heard is None else (heard[0], heard[1][: self._chance.randrange(len(heard[1]) or 1)])

    def flip(self) -> tuple[str, bytes] | None:
        """Something that was said before, with one bit changed."""
        heard = self._overheard()
        if heard is None or not heard[1]:
            return None
        topic, wire = heard
        altered = bytearray(wire)
        altered[self._chance.randrange(len(wire))] ^= 1 << self._chance.randrange(8)
        return topic, bytes(altered)

    def forge(self) -> tuple[str, bytes] | None:
        """Something in another's name, signed by a key that nobody knows, or by the mole's."""
        return self._message(self._chance.choice(self._victims()), self._chance.choice((self._unknown, self.key)))

    def speak(self) -> tuple[str, bytes] | None:
        """Something of the mole's own, wherever he likes."""
        topic, wire = self._message(self.mole, self.key)
        return (topic if self._chance.random() < 0.3 else self._topic()), wire

    def stale(self) -> tuple[str, bytes] | None:
        """Something in the name of whoever has had a key that does not count any more."""
        usable = [stolen for stolen in self._stolen if stolen.at <= self._world.clock.now]
        if not usable:
            return None
        stolen = self._chance.choice(usable)
        return self._message(stolen.owner, stolen.key, stolen.server)

    # How.

    def _victims(self) -> list[int]:
        return [*self._servers, *self._devices]

    def _overheard(self) -> tuple[str, bytes] | None:
        """Return a message that went over the wire: mostly a late one, sometimes any."""
        log = self._network.log
        if not log:
            return None
        back = (
            int(self._chance.expovariate(1 / 15)) if self._chance.random() < 0.7 else self._chance.randrange(len(log))
        )
        return log[max(0, len(log) - 1 - back)]

    def _topic(self) -> str:
        device = self._chance.choice([*self._devices, self.mole])
        if self._chance.random() < 0.3:
            return join_topic(self._chance.choice(list(self._servers)), device)
        return device_topic(device)

    def _message(self, sender: int, key: PrivateKey, recipient: int | None = None) -> tuple[str, bytes]:
        """Make a message that is right in everything but its signature, or in almost everything, and say where to."""
        chance, world = self._chance, self._world
        devices = list(self._devices)
        if recipient is None:
            recipient = chance.choice(devices if sender in self._servers else list(self._servers))
        cls = chance.choice(self._repertoire.commands if sender in self._servers else self._repertoire.requests)
        topic = device_topic(recipient if sender in self._servers else sender)
        if cls in _JOINS:
            topic = join_topic(recipient, sender)
        meant = recipient if chance.random() < 0.8 else chance.choice(self._victims())
        token = tokens.bind(sender, meant, world.clock.now + world.policy.lifetime, chance.randbytes(16))
        sequence_id = int(world.clock.now * 1e6) + chance.choice((0, 10**7))
        if chance.random() < 0.3:
            heard = self._frame()
            token = chance.choice((b"a token", b"srup5:junk", heard.token if heard else token))
            sequence_id = chance.choice((1, (1 << 64) - 1, sequence_id))
        body = self._repertoire.bodies[cls](chance, recipient if sender in self._servers else chance.choice(devices))
        return topic, encode(cls(sequence_id=sequence_id, sender_id=sender, token=token, **body), key)

    def _frame(self) -> Frame | None:
        """Return the header of something overheard."""
        heard = self._overheard()
        with suppress(SrupError):
            return None if heard is None else decode(heard[1])
        return None


ATTACKS: Final[dict[str, Callable[[Attacker], tuple[str, bytes] | None]]] = {
    "replay": Attacker.replay,
    "recall": Attacker.recall,
    "redirect": Attacker.redirect,
    "smuggle": Attacker.smuggle,
    "truncate": Attacker.truncate,
    "flip": Attacker.flip,
    "forge": Attacker.forge,
    "speak": Attacker.speak,
    "stale": Attacker.stale,
}
"""What an attacker can do: each returns where to he sends what, or None if it is not possible now."""
