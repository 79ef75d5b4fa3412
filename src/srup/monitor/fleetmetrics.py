"""Metrics of a fleet: its devices by state and last contact, and its campaigns, read from the store now and then."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Self

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from ..campaign import At, State
from ..campaign.state import OVER
from ..errors import SrupError
from ..fleet import Fleet
from ..update import UpdateState

__all__ = ["CONTACTS", "FLEET_GAUGES", "FleetCollector"]

log: Final = logging.getLogger("srup.monitor")

FLEET_GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "srup_devices": ("Devices that the store knows, by whether they are members", ("member",)),
    "srup_devices_updated": ("Devices by the state of their newest update", ("state",)),
    "srup_devices_heard": ("Devices whose newest verified message is not older than that", ("within",)),
    "srup_campaigns": ("Campaigns by state", ("state",)),
    "srup_campaign_devices": ("Devices by state, of the 20 newest campaigns that are not over", ("campaign", "state")),
    "srup_fleet_age_seconds": ("How old the figures of the fleet and its campaigns are", ()),
}
"""What is shown, and by which labels; but for the names of campaigns the values of labels are a fixed few."""

CONTACTS: Final = {"1min": 60.0, "1h": 3600.0, "1d": 86400.0, "7d": 604800.0, "30d": 2592000.0}
"""The ages of last contacts that are counted, in seconds."""

_CAMPAIGNS: Final = 20
_REST: Final = 20.0  # times as long as it took to read all, until that is done again
_UPDATES: Final = ("none", *(state.name.lower() for state in UpdateState))


class _Figures(NamedTuple):
    """What was counted at a time of the monotonic clock: by metric, and by the values of its labels."""

    at: float
    counts: Mapping[str, Mapping[tuple[str, ...], float]]


class FleetCollector:
    """Shows the devices and campaigns of a fleet: within a block they are counted ``every`` so many seconds.

    Where counting takes long it is done seldom: it takes a twentieth of a CPU at most. So a scrape costs nothing, and
    how old the figures are is one of them. Of several workers one should have this, for each would show all devices.
    """

    def __init__(self, fleet: Fleet, every: float = 60.0) -> None:
        self._fleet = fleet
        self._every = every
        self._figures: _Figures | None = None
        self._until = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="srup-fleet-metrics", daemon=True)

    def count(self) -> None:
        """Count now; SrupError when the store cannot be read."""
        now, counts = time.time(), {name: Counter[tuple[str, ...]]() for name in FLEET_GAUGES}
        for device in self._fleet.devices():
            if self._until.is_set():
                return
            counts["srup_devices"]["yes" if device.member else "no",] += 1
            state = "none" if device.update is None else device.update.state.lower()
            counts["srup_devices_updated"][state if state in _UPDATES else "none",] += 1
            for within, seconds in CONTACTS.items():
                heard = device.last_contact is not None and now - device.last_contact <= seconds
                counts["srup_devices_heard"][within,] += heard
        heads = self._fleet.campaigns.heads()
        for campaign in heads.values():
            counts["srup_campaigns"][campaign.state,] += 1
        going_on = [name for name, campaign in heads.items() if campaign.state not in OVER]
        for name in sorted(going_on, key=lambda name: -heads[name].created)[:_CAMPAIGNS]:
            found = self._fleet.campaigns.view(name).counts()
            counts["srup_campaign_devices"].update({(name, at): found.get(at, 0) for at in At})
        self._figures = _Figures(time.monotonic(), counts)

    def describe(self) -> Iterator[Metric]:
        """Return the metrics by name, for a registry."""
        for name, (meaning, labels) in FLEET_GAUGES.items():
            yield GaugeMetricFamily(name, meaning, labels=labels)

    def collect(self) -> Iterator[Metric]:
        """Return what was counted last; nothing before the first time."""
        if (figures := self._figures) is None:
            return
        known: dict[str, tuple[str, ...]] = {
            "srup_devices": ("yes", "no"),
            "srup_devices_updated": _UPDATES,
            "srup_devices_heard": tuple(CONTACTS),
            "srup_campaigns": tuple(State),
        }
        for name, (meaning, labels) in FLEET_GAUGES.items():
            family = GaugeMetricFamily(name, meaning, labels=labels)
            if not labels:
                family.add_metric([], time.monotonic() - figures.at)
            values = {(each,): 0.0 for each in known.get(name, ())} | dict(figures.counts[name])
            for each, count in values.items():
                family.add_metric([str(value) for value in each], float(count))
            yield family

    def _go_on(self) -> None:
        trouble = None
        while True:
            began = time.monotonic()
            try:
                self.count()
                trouble = None
            except SrupError as error:
                if str(error) != trouble:
                    log.error("the devices cannot be counted: %a", str(error))
                trouble = str(error)
            if self._until.wait(max(self._every, _REST * (time.monotonic() - began))):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._until.set()
        self._thread.join()
