"""Whoever owns the broker: hears everything, and puts on any topic what he likes.

He has the key of one registered device, the mole, keys that nobody knows, and those that do not count any more.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .. import messages, tokens
from ..codec import decode, encode
from ..errors import EncodeError, SrupError
from ..keys import PrivateKey
from ..transport.topics import device_topic, join_topic
from ..wire import IDENTIFICATION_RESPONSE, JOIN_OBSERVER, KEY_ROTATION, Status

if TYPE_CHECKING:
    from .world import World

__all__ = ["Attacker"]

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


class Attacker:
    """``mole`` is the registered identity whose ``key`` he has."""

    def __init__(self, world: "World", mole: int, key: PrivateKey, chance: random.Random) -> None:
        self.mole = mole
        self.key = key
        self._world = world
        self._chance = chance
        self._unknown = world.key("stranger", 0)
        self._stolen: list[tuple[float, PrivateKey, int | None]] = []

    def steal(self, key: PrivateKey, at: float, server: int | None = None) -> None:
        """Get a key that does not count any more from then on; at one ``server``, or nowhere."""
        self._stolen.append((at, key, server))

    def attack(self, way: str) -> bool:
        """Do something in one of :data:`WAYS`; tell whether it was possible."""
        made = getattr(self, f"_{way}")()
        if made is None:
            return False
        topic, wire = made
        self._world.note(f"the attacker ({way}) > {topic}: {len(wire)} bytes")
        self._world.counts["attacks"] += 1
        self._world.network.inject(topic, wire)
        return True

    # The ways.

    def _replay(self) -> tuple[str, bytes] | None:
        """Something that was said before, once more."""
        return self._overheard()

    def _redirect(self) -> tuple[str, bytes] | None:
        """Something that was said before, to somebody else."""
        heard = self._overheard()
        return None if heard is None else (self._topic(), heard[1])

    def _truncate(self) -> tuple[str, bytes] | None:
        heard = self._overheard()
        return None if heard is None else (heard[0], heard[1][: self._chance.randrange(len(heard[1]))])

    def _flip(self) -> tuple[str, bytes] | None:
        """Something that was said before, with one bit changed."""
        heard = self._overheard()
        if heard is None or not heard[1]:
            return None
        topic, wire = heard
        altered = bytearray(wire)
        altered[self._chance.randrange(len(wire))] ^= 1 << self._chance.randrange(8)
        return topic, bytes(altered)

    def _forge(self) -> tuple[str, bytes] | None:
        """Something in another's name, signed by a key that nobody knows, or by the mole's."""
        sender = self._chance.choice(self._victims())
        return self._topic_of(sender), self._message(sender, self._chance.choice((self._unknown, self.key)))

    def _speak(self) -> tuple[str, bytes] | None:
        """Something of the mole's own, wherever he likes."""
        return self._topic(), self._message(self.mole, self.key)

    def _stale(self) -> tuple[str, bytes] | None:
        """Something in the name of whoever has had a key that does not count any more."""
        now = self._world.clock.now
        usable = [(key, server) for at, key, server in self._stolen if at <= now]
        if not usable:
            return None
        key, server = self._chance.choice(usable)
        sender = self._chance.choice(self._victims())
        if server is not None:
            return join_topic(server, sender), self._message(sender, key, server)
        return self._topic_of(sender), self._message(sender, key)

    # How.

    def _victims(self) -> list[int]:
        return [party.identity for party in self._world.parties]

    def _overheard(self) -> tuple[str, bytes] | None:
        """Return a message that went over the wire: mostly a late one, sometimes any."""
        log = self._world.network.log
        if not log:
            return None
        back = (
            int(self._chance.expovariate(1 / 15)) if self._chance.random() < 0.7 else self._chance.randrange(len(log))
        )
        return log[max(0, len(log) - 1 - back)]

    def _topic(self) -> str:
        device = self._chance.choice([*self._world.devices, self.mole])
        if self._chance.random() < 0.3:
            return join_topic(self._chance.choice(list(self._world.servers)), device)
        return device_topic(device)

    def _topic_of(self, sender: int) -> str:
        """Return where a message of this sender is heard."""
        if sender in self._world.servers:
            return device_topic(self._chance.choice(list(self._world.devices)))
        if self._chance.random() < 0.5:
            return join_topic(self._chance.choice(list(self._world.servers)), sender)
        return device_topic(sender)

    def _message(self, sender: int, key: PrivateKey, recipient: int | None = None) -> bytes:
        chance, world = self._chance, self._world
        cls = chance.choice(list(_BODIES))
        heard = self._overheard()
        frame = None
        if heard is not None:
            try:
                frame = decode(heard[1])
            except SrupError:
                frame = None
        if recipient is None:
            recipient = chance.choice(self._victims())
        fresh = tokens.bind(sender, recipient, world.clock.now + world.policy.lifetime, chance.randbytes(16))
        token = chance.choice((fresh, fresh, b"a token", b"srup5:junk", frame.token if frame else fresh))
        now = int(world.clock.now * 1e6)
        sequence_id = chance.choice((now, now + 10**7, (1 << 64) - 1, frame.sequence_id + 1 if frame else now))
        body = _BODIES[cls](chance, chance.choice(list(world.devices)))
        try:
            return encode(cls(sequence_id=sequence_id, sender_id=sender, token=token, **body), key)
        except EncodeError:  # an overheard sequence id was the last one
            return encode(cls(sequence_id=now, sender_id=sender, token=token, **body), key)
