"""A campaign in simulated time: the same decisions, with devices that fail, sleep or never answer as one likes.

Nobody is touched. A device is a model here (:class:`Chances`), which knows nothing of the firmware. The same seed gives
the same course.
"""

import heapq
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final, NamedTuple

from .decision import Course
from .document import Document
from .eligibility import Candidate
from .facts import Facts, Outcome, Posting
from .state import ENDED, UNDER_WAY, At, Campaign, Member, State

__all__ = ["Chances", "Moment", "Rehearsal", "Sample", "rehearse", "synthetic"]

_VARIED: Final = 0.35  # how much times vary from device to device, as the sigma of a logarithm
_TICKS: Final = 40  # for how many parts of the time that a try takes something is decided, in a large fleet
_LARGE: Final = 500  # devices; a smaller fleet is decided about whenever anything happens
_TAKEN_BACK: Final = "the order was taken back"


@dataclass(frozen=True)
class Chances:
    """How devices behave: shares from 0 to 1, times in seconds.

    ``fail`` of the devices fail at every try, ``flaky`` of all tries fail by chance, ``silent`` of the devices never
    answer. A device is asleep with the chance ``sleep`` when it is told something, for up to ``nap``. ``fetch`` and
    ``activate`` are how long that takes, about. During ``host_down``, from when to when after the beginning, the host
    of the firmware is away.
    """

    fail: float = 0.0
    flaky: float = 0.0
    silent: float = 0.0
    sleep: float = 0.0
    nap: float = 12 * 3600.0
    fetch: float = 60.0
    activate: float = 60.0
    host_down: tuple[float, float] | None = None
    seed: int = 0


class Moment(NamedTuple):
    """Something that would happen, ``after`` so many seconds."""

    after: float
    event: str


class Sample(NamedTuple):
    """How many devices of each group would have succeeded, and how many would have ended, ``after`` so many seconds."""

    after: float
    good: tuple[int, ...]
    ended: tuple[int, ...]


@dataclass(frozen=True)
class Rehearsal:
    """What would happen: how it ends after ``seconds``, what happens on the way, and the most that happened at once.

    ``orders`` counts the updates that are ordered.
    """

    document: Document
    campaign: Campaign
    members: Mapping[int, Member]
    began: float
    seconds: float
    moments: tuple[Moment, ...]
    samples: tuple[Sample, ...]
    orders: int
    most_at_once: int

    @property
    def sizes(self) -> list[int]:
        """How many devices each group has."""
        sizes = Counter(each.group for each in self.members.values())
        return [sizes[number] for number in range(len(self.document.groups))]

    def span(self, group: int) -> tuple[float, float] | None:
        """Return when, after the beginning, a group opens and its last device has ended; None if nobody is told."""
        told = [each for each in self.members.values() if each.group == group and each.ordered is not None]
        if not told:
            return None
        last = max(each.since for each in told)
        first = next((each.after for each in self.moments if each.event.startswith(f"group {group + 1} opens")), 0.0)
        return first, last - self.began


def rehearse(
    document: Document, devices: Mapping[int, Candidate], chances: Chances, now: float, longest: float = 366 * 86400.0
) -> Rehearsal:
    """Let a campaign happen among these devices, from this Unix time or its start, ``longest`` seconds at most.

    It counts as approved, and the command to activate as given.
    """
    return _World(document, dict(devices), chances, max(now, document.window.start or 0.0)).run(longest)


class _World:
    """The simulated fleet: what is told when, and what has been told by now."""

    def __init__(self, document: Document, devices: dict[int, Candidate], chances: Chances, now: float) -> None:
        self.document, self.devices, self.chances = document, devices, chances
        self.began = self.now = now
        self.course = Course(document, Campaign("rehearsal", State.SCHEDULED, now, may_activate=True), {})
        self.outcomes: dict[bytes, Outcome] = {}
        self.moments: list[Moment] = []
        self.samples: list[Sample] = []
        self.orders = self.most_at_once = 0
        self._coming: list[tuple[float, int, bytes, Outcome]] = []
        self._number = count()
        self._until: dict[bytes, float] = {}  # when an order expires
        self._lots: dict[bytes, random.Random] = {}
        self._failed = False
        expected = chances.fetch + chances.activate
        self._tick = expected / _TICKS if len(devices) > _LARGE else 0.0

    def run(self, longest: float) -> Rehearsal:
        """Go from one moment to the next until nothing comes any more."""
        end = self.began + longest
        while True:
            deadline = self._decide()
            coming = [self._coming[0][0] + self._tick] if self._coming else []
            due = min([*coming, *([] if deadline is None else [deadline])], default=None)
            if due is None or (self.campaign.settled and not self._coming):
                break
            if due > end:
                self.moments.append(Moment(longest, "it is not over by now"))
                self.now = end
                break
            self.now = max(self.now, due)
            while self._coming and self._coming[0][0] <= self.now:
                _, _, order, outcome = heapq.heappop(self._coming)
                if not self._over(order):
                    self.outcomes[order] = outcome
        last = max([self.campaign.since, *(each.since for each in self.members.values())])
        return Rehearsal(
            *(self.document, self.campaign, self.members, self.began, max(0.0, last - self.began)),
            *(tuple(self.moments), tuple(self.samples), self.orders, self.most_at_once),
        )

    def _over(self, order: bytes) -> bool:
        return order in self.outcomes and self.outcomes[order].over

    def _decide(self) -> float | None:
        decision = self.course.decide(Facts(self.devices, self.outcomes), self.now)
        self._note(decision.events, decision.changed)
        for posting in decision.postings:
            self._take(posting)
        if decision.changed:
            self._sample()
        return decision.deadline

    def _note(self, events: tuple[str, ...], changed: Mapping[int, Member]) -> None:
        after = self.now - self.began
        for device, member in changed.items():
            if member.at is At.HEALTHY:
                firmware = self.document.firmware
                self.devices[device] = self.devices[device]._replace(digest=firmware.digest, version=firmware.version)
            if member.result == At.FAILED and not self._failed:
                self._failed = True
                self.moments.append(Moment(after, f"the first device fails: {device:x}, {member.reason}"))
            if not member.follows and (order := self.campaign.order_id(device, member.orders)) in self.outcomes:
                self.outcomes.pop(order)
                self._lots.pop(order, None)
        self.moments += [Moment(after, event) for event in events]

    def _sample(self) -> None:
        groups, number = range(len(self.document.groups)), self.course.number
        good = tuple(number(At.HEALTHY, At.ACTIVATED, group=group) for group in groups)
        ended = tuple(number(*ENDED, group=group) for group in groups)
        self.samples.append(Sample(self.now - self.began, good, ended))
        self.most_at_once = max(self.most_at_once, number(*UNDER_WAY))

    @property
    def campaign(self) -> Campaign:
        """The campaign as it stands."""
        return self.course.campaign

    @property
    def members(self) -> Mapping[int, Member]:
        """The devices as they stand."""
        return self.course.members

    # Devices.

    def _take(self, posting: Posting) -> None:
        match posting.verb:
            case "update":
                self.orders += 1
                self._until[posting.id] = self.now + (posting.lifetime or 0.0)
                self._lots[posting.id] = random.Random(f"{self.chances.seed}/{posting.id.hex()}")  # noqa: S311 - must be repeatable
                self._fetch(posting.device, posting.id)
            case "activate":
                self._activate(posting.device, posting.about, self.now + self._asleep(posting.about))
            case _:
                self._tell(self.now, posting.about, "FAILED", "PolicyError", _TAKEN_BACK)

    def _tell(self, at: float, order: bytes, state: str, error: str | None = None, text: str = "") -> None:
        """Have an order come to this at that time, unless it has expired by then."""
        until = self._until[order]
        if at > until:
            at, state, error, text = until, "UNANSWERED", "UnansweredError", "it did not answer in time"
        over = error is not None or state == "ACTIVATED"
        heapq.heappush(self._coming, (at, next(self._number), order, Outcome(at, state, over, error, text)))

    def _fetch(self, device: int, order: bytes) -> None:
        if self._is(device, "silent", self.chances.silent):
            self._tell(float("inf"), order, "UNANSWERED")
            return
        begin = self.now + self._asleep(order)
        done = begin + self._about(self.chances.fetch, order)
        down = self.chances.host_down
        if down is not None and begin - self.began < down[1] and down[0] < done - self.began:
            self._tell(done, order, "FAILED", "UpdateError", "the host of the firmware does not answer")
            return
        self._tell(done, order, "READY")
        if not self.document.held and done <= self._until[order]:
            self._tell(done, order, "ACTIVATING")
            self._activate(device, order, done)

    def _activate(self, device: int, order: bytes, begin: float) -> None:
        done = begin + self._about(self.chances.activate, order)
        if self._is(device, "fail", self.chances.fail):
            self._tell(done, order, "FAILED", "UpdateError", "it is one of those that always fail")
        elif self._lots[order].random() < self.chances.flaky:
            self._tell(done, order, "FAILED", "UpdateError", "this try failed by chance")
        else:
            self._tell(done, order, "ACTIVATED")

    def _is(self, device: int, what: str, share: float) -> bool:
        """Return whether a device is one of so many that are always so."""
        return random.Random(f"{self.chances.seed}/{what}/{device:x}").random() < share  # noqa: S311 - must be repeatable

    def _asleep(self, order: bytes) -> float:
        lot = self._lots[order]
        return lot.uniform(0.0, self.chances.nap) if lot.random() < self.chances.sleep else 0.0

    def _about(self, seconds: float, order: bytes) -> float:
        return seconds * self._lots[order].lognormvariate(0.0, _VARIED)


def synthetic(number: int, document: Document) -> dict[int, Candidate]:
    """Return so many devices that a campaign is for."""
    target, firmware = document.target, document.firmware
    kind = target.type or (firmware.types[0] if firmware.types else None)
    tags = dict(target.tags) | ({"zone": "UTC"} if document.window.zone == "device" else {})
    identities = sorted(target.devices or ())[:number]
    identities += [each for each in range(1, number + 1) if target.devices is None]
    return {each: Candidate(each, type=kind, tags=tags) for each in identities}
