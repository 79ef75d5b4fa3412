"""All devices at a moment, for pages that sort, filter and count: read anew when they are wanted, and not too often.

Rows that are shown are read from the store for themselves; this says which, in what order, and how many.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..errors import StoreError
from ..fleet import Fleet, FleetDevice, where

__all__ = ["SORTS", "Census", "Snapshot"]

_SHORTEST: Final = 1.0  # seconds between two readings, and
_SPARING: Final = 8.0  # times as long as the last one took
_PATIENCE: Final = 0.1  # seconds that a page waits for a newer one
_FEW: Final = 5000  # devices that are read so fast that each change is worth it
_VIEWS: Final = 32  # selections that are remembered

SORTS: Final[Mapping[str, Callable[[FleetDevice], Any]]] = {
    "identity": lambda device: device.identity,
    "name": lambda device: device.name or device.facts.get("description"),
    "type": lambda device: device.type,
    "member": lambda device: device.member,
    "firmware": lambda device: (device.version, device.firmware or "") if device.version is not None else None,
    "last_contact": lambda device: device.last_contact,
    "update": lambda device: None if device.update is None else device.update.state,
}
"""By what devices can be sorted; what is not known comes last."""


class Snapshot:
    """The devices by identity as they were ``at`` a Unix time."""

    def __init__(self, devices: Sequence[FleetDevice], at: float) -> None:
        self.devices: Final = devices
        self.at: Final = at
        self._views: OrderedDict[tuple[str, str, bool], Sequence[FleetDevice]] = OrderedDict()
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def select(self, condition: str = "", sort: str = "identity", down: bool = False) -> Sequence[FleetDevice]:
        """Return those for which a condition holds (see :func:`srup.fleet.where`), sorted; ValueError for none."""
        key = (condition, sort, down)
        with self._lock:
            if key in self._views:
                self._views.move_to_end(key)
                return self._views[key]
        found: Sequence[FleetDevice] = self.devices
        if condition:
            holds = where(condition)
            found = [device for device in found if holds(device, self.at)]
        found = self._sorted(found, sort, down)
        with self._lock:
            self._views[key] = found
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        return found

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what was made of these devices under this name, or make it."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _sorted(self, devices: Sequence[FleetDevice], sort: str, down: bool) -> Sequence[FleetDevice]:
        if sort == "identity":
            return devices[::-1] if down else devices
        of = SORTS[sort]
        known = sorted((device for device in devices if of(device) is not None), key=of, reverse=down)
        return [*known, *(device for device in devices if of(device) is None)]


class Census:
    """Reads the devices of a fleet, in a thread of its own, when somebody wants them."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: Snapshot | None = None
        self._reading: threading.Event | None = None
        self._due = 0.0  # when to read again, by the monotonic clock
        self._trouble: StoreError | None = None

    def snapshot(self) -> Snapshot:
        """Return the devices, of now if they are few; StoreError as :meth:`Fleet.devices`."""
        with self._lock:
            if self._reading is None and time.monotonic() >= self._due:
                self._reading = threading.Event()
                threading.Thread(target=self._read, args=(self._reading,), name="census", daemon=True).start()
            reading, known = self._reading, self._latest
        if reading is not None:
            reading.wait(None if known is None else _PATIENCE)
        with self._lock:
            if self._trouble is not None:
                raise StoreError(str(self._trouble))
            if self._latest is None:
                raise StoreError("the devices have not been read yet")
            return self._latest

    def outdated(self) -> None:
        """Have the devices read when they are next wanted: something was done to one of them."""
        with self._lock:
            if self._latest is None or len(self._latest.devices) <= _FEW:
                self._due = 0.0

    def _read(self, reading: threading.Event) -> None:
        began = time.monotonic()
        found: Snapshot | None = None
        trouble: StoreError | None = StoreError("the devices cannot be read; the log of the console says why")
        try:
            found, trouble = Snapshot(list(self._fleet.devices()), self._clock()), None
        except StoreError as error:
            trouble = error
        finally:
            with self._lock:
                self._latest, self._trouble = found or self._latest, trouble
                ended = time.monotonic()
                self._due = ended + max(_SHORTEST, _SPARING * (ended - began))
                self._reading = None
            reading.set()
