"""A server's change of its own key while it lasts: who has taken the new key, and who is still to be asked."""

from collections.abc import Iterator
from concurrent.futures import Future

from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey

__all__ = ["Rollout"]


class Rollout:
    """``new`` signs for the devices that have taken it, the old key for all others, up to the Unix time ``until``.

    A device is known by its identity and its key's pin: one that is registered anew begins anew.
    """

    def __init__(self, new: PrivateKey, until: float, devices: KeyRing, done: "Future[frozenset[int]]") -> None:
        self.new = new
        self.until = until
        self.done = done
        self._devices = devices
        self._waiting: dict[int, None] = {}
        self._asked: dict[int, PublicKey] = {}
        self._taken: dict[int, PublicKey] = {}

    def invite(self, device: int) -> None:
        """Put a device on the list of those that are to be asked, unless it has been asked."""
        if not self._same(self._asked, device):
            self._waiting[device] = None

    @property
    def waiting(self) -> bool:
        """Whether somebody is to be asked."""
        return bool(self._waiting)

    def next(self, limit: int) -> Iterator[int]:
        """Take so many devices from the list; each counts as asked."""
        for device in [device for _, device in zip(range(limit), self._waiting, strict=False)]:
            del self._waiting[device]
            pin = self._devices.pin(device)
            if pin is not None:
                self._asked[device] = pin
                yield device

    def take(self, device: int) -> None:
        """Note that a device has taken the new key."""
        if device in self._asked:
            self._taken[device] = self._asked[device]

    def again(self, device: int) -> None:
        """Note that a device may be asked again: it could not be, or has not answered."""
        self._asked.pop(device, None)

    def has(self, device: int) -> bool:
        """Tell whether a device has taken the new key."""
        return self._same(self._taken, device)

    def result(self) -> frozenset[int]:
        """Return who has taken the new key."""
        return frozenset(device for device in self._taken if self.has(device))

    def _same(self, noted: dict[int, PublicKey], device: int) -> bool:
        pin = noted.get(device)
        return pin is not None and pin is self._devices.pin(device)
