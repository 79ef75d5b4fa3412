"""What a server knows of its syndications, by the syndication device of each (docs/protocol/flows.md#syndication)."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Final

from ..errors import PolicyError, StoreError
from ..wire import Status
from .exchange import Peer

__all__ = [
    "ACTION_RESULTS",
    "END_RESULTS",
    "JOIN_RESULTS",
    "LISTING",
    "LIST_TURN",
    "MAX_RESEND",
    "MAX_SHARED",
    "RESEND",
    "SYNDICATION",
    "Role",
    "Syndication",
    "Syndications",
]

RESEND: Final = 0xFF
"""The ``req_id`` of a SyndicatedC2Request that asks for the list of devices again (docs/extensions.md)."""

MAX_SHARED: Final = 10_000
"""How many devices one syndication shares at most (T9)."""

LIST_TURN: Final = 64
"""How many entries of lists are sent in one turn, so that others have theirs (T25)."""

MAX_RESEND: Final = 4096
"""How many missing numbers one request names at most."""

JOIN_RESULTS: Final = (Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL)
ACTION_RESULTS: Final = (Status.ACTION_SUCCESS, Status.ACTION_UNKNOWN, Status.ACTION_FAIL)
END_RESULTS: Final = (Status.RESIGN_SUCCESS, Status.RESIGN_FAIL)

SYNDICATION: Final = "syndication"
"""The fact about a syndication device that says how its syndication stands."""

LISTING: Final = "listing"
"""The fact about a syndication device that says from which number on the list is still to be sent."""

_NOT_STORED: Final = frozenset({"device", "unsent", "_times"})


class Role(Enum):
    """Which server of a syndication we are."""

    HOME = "we command devices of the other server"
    AWAY = "the other server commands devices of ours"


@dataclass(slots=True, eq=False)
class Syndication:
    """A syndication, as one of its servers knows it."""

    device: int  # the syndication device
    role: Role
    token: bytes = b""  # of the list that counts
    count: int | None = None  # how many devices are shared; None before the away server said so
    counted: int = 0  # home: the sequence id that said so
    expiry: float = 0.0  # away: until when the token of the list is good, in Unix time
    devices: dict[int, int] = field(default_factory=dict)  # identities by number
    unsent: dict[int, None] = field(default_factory=dict)  # away: the numbers that are to be sent, in order
    resent: float = 0.0  # away: when entries were last sent again
    began: int = 0  # the sequence id of the device's message that began it: what it said before belongs to another one
    pause: float = 0.0  # home: how long to wait before missing numbers are told the next time
    due: float | None = None  # home: when that is
    _times: Counter[int] = field(default_factory=Counter, repr=False)  # how often each device has a number

    def __post_init__(self) -> None:
        self._times.update(self.devices.values())

    def shares(self, device: int) -> bool:
        """Return whether a device is one of those that are shared."""
        return device in self._times

    def list_anew(self, devices: dict[int, int]) -> None:
        """Let these devices be shared, by number, and no others."""
        self.devices, self._times, self.unsent = devices, Counter(devices.values()), {}

    def take_unsent(self, limit: int) -> list[int]:
        """Return so many of the numbers that are to be sent; they are no more."""
        taken = [number for _, number in zip(range(limit), self.unsent, strict=False)]
        for number in taken:
            del self.unsent[number]
        return taken

    def add(self, number: int, device: int) -> None:
        """Let one more device be shared, or another one under this number."""
        before = self.devices.get(number)
        if before is not None:
            self._times[before] -= 1
            if not self._times[before]:
                del self._times[before]
        self.devices[number] = device
        self._times[device] += 1

    def dump(self) -> str:
        """Return it as JSON, without its device."""
        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NOT_STORED}
        return json.dumps(kept | {"role": self.role.name, "token": self.token.hex()})

    @classmethod
    def load(cls, device: int, text: str) -> "Syndication":
        """Return what :meth:`dump` has written; StoreError if it is anything else."""
        try:
            kept = json.loads(text)
            kept["devices"] = {int(number): identity for number, identity in kept["devices"].items()}
            # The clock may have been another one: what is missing is told at once, what is asked for is sent at once.
            kept |= {"due": None if kept["due"] is None else 0.0, "resent": 0.0}
            return cls(device, **kept | {"role": Role[kept["role"]], "token": bytes.fromhex(kept["token"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"the syndication by {device:x} in the store is not readable: {error}") from None

    def contradicts(self, number: int) -> bool:
        """Return whether a list that counts from 1 or from 0, whichever it does, cannot have this number too."""
        if self.count is None:
            return False
        first = 1 if self.count in self.devices or not self.count else 0
        last = self.count - (0 in self.devices)
        return not first <= number <= last

    @property
    def complete(self) -> bool:
        """Whether the list has all its entries."""
        return self.count is not None and len(self.devices) >= self.count

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the list that have not come: it counts from 1, or from 0 if it has that number.

        srup counts from 1; a syndication device passes a 0 on only from deployed servers.
        """
        if self.count is None or self.complete:
            return ()
        first = 0 if 0 in self.devices else 1
        return tuple(number for number in range(first, first + self.count) if number not in self.devices)


class Syndications:
    """The syndications of a server, as home and as away: one with each syndication device at most."""

    def __init__(self) -> None:
        self.by_device: dict[int, Syndication] = {}
        self._through: dict[int, dict[Syndication, None]] = {}  # as away: by shared device
        self._waiting: dict[int, None] = {}  # as home: syndication devices whose lists may be incomplete
        self._sending: dict[int, None] = {}  # as away: syndication devices whose lists are to be sent further
        self._changed: dict[int, None] = {}

    def required(self, peer: Peer, role: Role) -> Syndication:
        """Return the syndication that this partner serves us in; PolicyError if there is none (T16)."""
        syndication = self.by_device.get(peer.identity)
        if syndication is None or syndication.role is not role or not peer.member:
            raise PolicyError(f"{peer.identity:x} is not the syndication device of a syndication of ours")
        return syndication

    def begin(self, syndication: Syndication, devices: dict[int, int] | None = None) -> None:
        """Note a syndication that begins; what it shares of ours is found by :meth:`through`."""
        self.by_device[syndication.device] = syndication
        self.share(syndication, syndication.devices if devices is None else devices)

    def share(self, syndication: Syndication, devices: dict[int, int]) -> None:
        """Let a syndication share these devices, by number, and no others."""
        self._forget_devices(syndication)
        syndication.list_anew(devices)
        if syndication.role is Role.AWAY:
            for device in devices.values():
                self._through.setdefault(device, {})[syndication] = None
        self.mark(syndication)

    def through(self, device: int) -> list[Syndication]:
        """Return the syndications that share a device of ours."""
        return [each for each in self._through.get(device, ()) if self.by_device.get(each.device) is each]

    def drop(self, device: int) -> Syndication | None:
        """Forget a syndication; return what was known of it."""
        dropped = self.by_device.pop(device, None)
        if dropped is not None:
            self._forget_devices(dropped)
            self.mark(dropped)
        return dropped

    def expect_list(self, syndication: Syndication, now: float, pause: float) -> None:
        """Let :meth:`incomplete` tell of a list after this pause, unless it is complete by then."""
        syndication.pause, syndication.due = pause, now + pause
        self._waiting[syndication.device] = None
        self.mark(syndication)

    def incomplete(self) -> list[Syndication]:
        """Return those whose lists are to be asked for when they are ``due``."""
        waiting = [self.by_device.get(device) for device in self._waiting]
        found = [each for each in waiting if each is not None and each.due is not None]
        if len(found) < len(self._waiting):
            self._waiting = dict.fromkeys(each.device for each in found)
        return found

    def to_send(self, syndication: Syndication, numbers: Iterable[int]) -> None:
        """Note that these numbers of a list are to be sent."""
        syndication.unsent |= dict.fromkeys(numbers)
        self._sending[syndication.device] = None

    def unsent(self) -> list[Syndication]:
        """Return those whose lists are to be sent further."""
        sending = [self.by_device.get(device) for device in self._sending]
        found = [each for each in sending if each is not None and each.unsent]
        if len(found) < len(self._sending):
            self._sending = dict.fromkeys(each.device for each in found)
        return found

    def _forget_devices(self, syndication: Syndication) -> None:
        if syndication.role is Role.AWAY:
            for device in syndication.devices.values():
                through = self._through.get(device, {})
                through.pop(syndication, None)
                if not through:
                    self._through.pop(device, None)

    # For a store.

    def mark(self, syndication: Syndication) -> None:
        """Note that more or something else is to be kept of a syndication."""
        self._changed[syndication.device] = None

    def take_changed(self) -> list[tuple[int, str | None]]:
        """Return what is to be kept of each syndication that has changed since the last call, None for nothing."""
        taken, self._changed = self._changed, {}
        return [(device, each.dump() if (each := self.by_device.get(device)) else None) for device in taken]

    def restore(self, device: int, text: str) -> None:
        """Take over what was kept of a syndication."""
        syndication = Syndication.load(device, text)
        self.begin(syndication)
        if syndication.due is not None:
            self._waiting[device] = None
        self._changed.pop(device, None)
