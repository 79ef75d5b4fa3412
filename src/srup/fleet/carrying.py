"""Carries campaigns out: looks at what has changed, decides, and posts what follows.

What is known of a campaign is kept from one look to the next, so that a look costs what has changed since: a fleet of
100,000 devices is read when a campaign begins, and after that device by device as their turn comes. Who reads all of it
again, for devices that join late, rests for many times as long as that took.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ..agent.facts import INVENTORY, TAG
from ..campaign import Candidate, Course, Decision, Document, Facts, Outcome, State
from ..campaign.document import OF_DEVICE
from ..campaign.eligibility import targeted
from ..campaign.state import ENDED, At, Member
from ..errors import PolicyError, SrupError, StoreError
from ..store.campaigns import CampaignStore, KeptCampaign
from ..store.mailbox import CAPACITY
from .campaignview import candidate, dumped, is_busy, is_settled, outcome_of, post_of, taking_part, view_of
from .where import where

if TYPE_CHECKING:
    from .fleet import Fleet

__all__ = ["Carrier", "candidates"]

log: Final = logging.getLogger("srup.fleet")

_LOOK: Final = 5.0  # seconds after which campaigns are looked at again though nothing seems to have changed
_TROUBLE: Final = (SrupError, ValueError, LookupError)  # of a store, or what one unreadable campaign brings about
_STANDBY: Final = 1.0  # seconds until it is looked again whether somebody else carries campaigns out
_RENEWED: Final = 0.3  # seconds after which a claim is made again: the shortest lasts for a second
_SHORTEST: Final = 0.2  # seconds between two looks, and
_SPARING: Final = 4.0  # times as long as the last one took
_REST: Final = 20.0  # times as long as it took to read all devices, until that is done again
_ZONES: Final = 60.0  # seconds after which the time zones of devices are read again, at least
_FACTS: Final = (INVENTORY, TAG + "type", TAG + "zone", "firmware", "version")


def candidates(fleet: "Fleet", document: Document, now: float) -> Iterator[Candidate]:
    """Return all devices of a fleet as a campaign sees them."""
    holds = None if document.target.where is None else where(document.target.where)
    return (candidate(device, holds is None or holds(device, now)) for device in fleet.devices())


class Carrier:
    """Carries the campaigns of a fleet out. One thread calls it."""

    def __init__(self, fleet: "Fleet", store: CampaignStore, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._trouble: str | None = None
        self._revision: int | None = None  # of what is known of the campaigns; None: nothing
        self._carried: dict[str, _Carried] = {}
        self._unreadable: dict[str, tuple[Exception, frozenset[int]]] = {}

    def step(self) -> float | None:
        """Decide about all campaigns, once, and post what follows; see :meth:`Campaigns.step`."""
        deadlines, troubles = [], []
        for name in self._names():
            try:
                while (found := self._step(name)) is False:
                    pass  # somebody else was quicker
                deadlines.append(found)
            except _TROUBLE as trouble:
                self._forget()
                troubles.append(trouble)
        if troubles:
            raise troubles[0]
        return min((at for at in deadlines if at), default=None)

    def run(self, until: threading.Event) -> None:
        """Carry campaigns out until ``until`` is set; trouble with the store is logged, and tried again."""
        due: float | None = 0.0
        while not until.is_set():
            began = time.monotonic()
            try:
                if self._store.claim():
                    due = self.step()
                else:  # somebody else does, and what is known here gets old
                    self._forget()
                    until.wait(_STANDBY)
                    continue
                self._trouble = None
            except _TROUBLE as error:
                if str(error) != self._trouble:
                    ours = isinstance(error, SrupError)
                    log.error("campaigns cannot be carried out now: %s", error, exc_info=None if ours else error)
                self._trouble = str(error)
                due = self._clock() + 1.0
            self._rest(until, max(_SHORTEST, _SPARING * (time.monotonic() - began)))
            left = _LOOK if due is None else min(_LOOK, due - self._clock())
            self._await(until, left)
        try:
            self._store.release()
        except StoreError as error:
            log.info("somebody else goes on with the campaigns only after a while: %s", error)

    def _rest(self, until: threading.Event, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not until.wait(min(left, _RENEWED)):
            with suppress(StoreError):
                self._store.claim()

    def _await(self, until: threading.Event, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not until.is_set() and (left := deadline - time.monotonic()) > 0:
            try:
                if self._store.await_change(min(left, _RENEWED)):
                    return
                self._store.claim()  # so that nobody else begins while there is nothing to do
            except StoreError:
                until.wait(_SHORTEST)

    def _forget(self) -> None:
        self._revision = None
        self._carried.clear()
        self._unreadable.clear()

    def _names(self) -> list[str]:
        """Return the campaigns that go on, which are read again if anybody else has changed one."""
        if self._revision is None or self._store.revision() != self._revision:
            self._forget()
            while True:
                known, heads = self._store.campaigns()
                names = [each.name for each in heads if not is_settled(each)]
                revision, kept = self._store.load(names)
                if known == revision:
                    break
            for each in kept:
                try:
                    self._carried[each.name] = _Carried(each)
                except _TROUBLE as error:
                    self._unreadable[each.name] = error, frozenset(taking_part(each))
            self._revision = revision
        return sorted([*self._carried, *self._unreadable])

    def _step(self, name: str) -> float | bool | None:
        """Decide about a campaign; return its deadline, or False when somebody has changed one meanwhile."""
        self._names()
        if name in self._unreadable:
            raise self._unreadable[name][0]
        if (carried := self._carried.get(name)) is None:
            return None
        waiting = self._store.flush()
        now = self._clock()
        look_again = carried.is_to_look_again
        if not (carried.hear(self._store, now) or look_again or carried.is_due(now)):
            return carried.due
        waiting += sum(self._fleet.waiting().values())
        document, course = carried.document, carried.course
        devices = _Devices(self._fleet, document, now)
        look = _Look(devices, carried)
        if look_again:
            look.read()
        busy = _Busy(self._carried, self._unreadable, name)
        looked = look if look_again or not course.campaign.admitted else ()
        facts = Facts(devices, carried.outcomes, busy, max(0, CAPACITY - waiting), looked, carried.zones)
        before = course.campaign
        decision = course.decide(facts, now)
        if decision.campaign != before or decision.changed or decision.postings:
            posts = [post_of(document, each, now) for each in decision.postings]
            revision = self._revision or 0
            try:
                saved = self._store.save(revision, name, decision.campaign.dump(), dumped(decision.changed), posts)
            except _TROUBLE:
                self._forget()  # what was decided is not what is kept
                raise
            if not saved:
                self._forget()
                return False
            self._revision = revision + 1
            _tell(name, decision)
        carried.take(decision)
        if decision.campaign.settled:
            del self._carried[name]
        return decision.deadline


class _Carried:
    """A campaign that is carried out: its course, what is known of its orders, and when to look at it again."""

    def __init__(self, kept: KeptCampaign) -> None:
        view = view_of(kept)
        self.document = view.document
        self.course = Course(view.document, view.campaign, view.members)
        self.outcomes: dict[bytes, Outcome] = {}
        self.zones: dict[int, str] | None = None
        self.due: float | None = 0.0  # when to decide again
        self._mark: Any = None  # up to where reports were read
        self._order_of: dict[int, bytes] = {}
        self._device_of: dict[bytes, int] = {}
        self._look_at = 0.0  # when to read all devices again, by the clock that is never set
        self._follow(view.members)

    def is_due(self, now: float) -> bool:
        """Return whether it is time to decide again though nothing was reported."""
        return self.due is not None and now >= self.due

    @property
    def is_to_look_again(self) -> bool:
        """Whether it is time to read all devices again: for those that come late, and for the zones of all."""
        campaign = self.course.campaign
        again = self.document.target.late or self.document.window.zone == OF_DEVICE
        return again and campaign.admitted and campaign.state is State.RUNNING and time.monotonic() >= self._look_at

    def looked(self, took: float) -> None:
        """Note how long it took to read all devices."""
        least = 0.0 if self.document.target.late else _ZONES
        self._look_at = time.monotonic() + max(least, _REST * took)

    def hear(self, store: CampaignStore, now: float) -> bool:
        """Take in what was reported about its orders; return whether that was anything."""
        first = self._mark is None
        self._mark, news = store.news(self._device_of, self._mark)
        asked: Mapping[bytes, object] = self._device_of if first else news
        heard = False
        for order in asked:
            report = news.get(order)
            if report is None and order in self.outcomes:
                continue
            outcome = outcome_of(self._device_of[order], report, now)
            if self.outcomes.get(order) != outcome:
                self.outcomes[order] = outcome
                heard = True
        return heard

    def take(self, decision: Decision) -> None:
        """Go on from what was decided, and is kept."""
        self.due = decision.deadline
        self._follow(decision.changed)

    def _follow(self, changed: Mapping[int, Member]) -> None:
        """Follow the newest order of each of these devices, if it is to be followed."""
        for device, member in changed.items():
            if (before := self._order_of.pop(device, None)) is not None:
                del self._device_of[before]
            if member.follows:
                order = self.course.campaign.order_id(device, member.orders)
                self._order_of[device], self._device_of[order] = order, device
            if before is not None and before not in self._device_of:
                self.outcomes.pop(before, None)

    def has(self, device: int) -> bool:
        """Return whether a device takes part."""
        member = self.course.members.get(device)
        return member is not None and is_busy(self.course.campaign.state, member)

    def may_take(self, device: int) -> bool:
        """Return whether a device that matches could still be let in."""
        member = self.course.members.get(device)
        return member is None or (member.at is At.SKIPPED and not member.orders)


class _Devices(Mapping[int, Candidate]):
    """The devices of a fleet, read when they are asked for."""

    def __init__(self, fleet: "Fleet", document: Document, now: float) -> None:
        self._fleet = fleet
        self._document = document
        self._now = now
        self._found: dict[int, Candidate | None] = {}

    def all(self) -> Iterator[Candidate]:
        """Read all of them."""
        return candidates(self._fleet, self._document, self._now)

    def note(self, known: Candidate) -> None:
        """Take a device as it was just read."""
        self._found[known.identity] = known

    def __getitem__(self, device: int) -> Candidate:
        if device not in self._found:
            try:
                found = candidate(self._fleet.find_device(device, _FACTS))
            except PolicyError:
                self._found[device] = None
            else:
                self._found[device] = found
        if (known := self._found[device]) is None:
            raise KeyError(device)
        return known

    def __iter__(self) -> Iterator[int]:
        return (device.identity for device in self._fleet.devices())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Look:
    """Those of all devices that may be let in now, read when they are asked for, once."""

    def __init__(self, devices: _Devices, carried: _Carried) -> None:
        self._devices = devices
        self._carried = carried
        self._found: list[Candidate] | None = None

    def read(self) -> list[Candidate]:
        """Read all devices, and note the zones of those that have one."""
        began, carried = time.monotonic(), self._carried
        self._found, zones = [], {}
        for each in self._devices.all():
            if "zone" in each.tags:
                zones[each.identity] = each.tags["zone"]
            if carried.may_take(each.identity) and targeted(carried.document, each):
                self._found.append(each)
                self._devices.note(each)
        carried.zones = zones if carried.document.window.zone == OF_DEVICE else None
        carried.looked(time.monotonic() - began)
        return self._found

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.read() if self._found is None else self._found)


class _Busy(Mapping[int, str]):
    """Who takes part in which other campaign; who is in one that cannot be read may take part there."""

    def __init__(
        self, carried: Mapping[str, _Carried], unreadable: Mapping[str, tuple[Exception, frozenset[int]]], name: str
    ) -> None:
        self._others: dict[str, Callable[[int], bool]] = {
            each: course.has for each, course in carried.items() if each != name
        }
        self._others |= {each: devices.__contains__ for each, (_, devices) in unreadable.items()}
        self._carried = carried

    def __getitem__(self, device: int) -> str:
        for name, has in self._others.items():
            if has(device):
                return name
        raise KeyError(device)

    def __iter__(self) -> Iterator[int]:
        return iter({device for each in self._carried.values() for device in each.course.members if device in self})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _tell(name: str, decision: Decision) -> None:
    """Log what has happened to a campaign; a stop is an error, for somebody must hear of it."""
    stopped = decision.campaign.state is State.STOPPED
    for event in decision.events:
        log.log(logging.ERROR if stopped else logging.INFO, "campaign %s: %s", name, event)
    for device, member in decision.changed.items():
        if member.at in ENDED:
            log.info("campaign %s: %x is %s%s", name, device, member.at, f": {member.reason}" if member.reason else "")
