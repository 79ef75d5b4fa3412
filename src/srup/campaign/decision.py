"""What a campaign does next: a pure function of the document, what is remembered, what is known, and the time.

Run again with the same facts it wants nothing more; in whichever order the facts come, it wants the same.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from .document import Document
from .schedule import iso
from .state import ENDED, OVER, UNDER_WAY, At, Campaign, Member, State

__all__ = ["Candidate", "Decision", "Facts", "Outcome", "Posting", "decide", "ineligible"]

_MINUTE: Final = 60.0
_HELD: Final = 30 * 86400.0  # seconds for which firmware may wait for its activation when a campaign has no end
_TOLERANCE: Final = 1e-9


class Candidate(NamedTuple):
    """A device as the fleet knows it; ``matches`` is the condition ``where`` of the target, looked at now."""

    identity: int
    member: bool = True
    matches: bool = True
    type: str | None = None
    version: int | None = None
    digest: str | None = None
    tags: Mapping[str, str] = {}


class Outcome(NamedTuple):
    """What an order has come to ``at`` a Unix time: a state of updates, and an ``error`` with its ``text`` when over.

    The errors are names, as in a report on an order; "lost" means that nobody knows of the order any more.
    """

    at: float
    state: str
    over: bool = False
    error: str | None = None
    text: str = ""


class Facts(NamedTuple):
    """What is known: all devices of the fleet, what became of orders, by id, and who is in which other campaign.

    ``room`` is how many orders the mailbox takes now.
    """

    devices: Mapping[int, Candidate] = {}
    outcomes: Mapping[bytes, Outcome] = {}
    busy: Mapping[int, str] = {}
    room: int = 10**9


class Posting(NamedTuple):
    """An order to post: "update", "activate" or "cancel"; the latter two are ``about`` the update with that id."""

    verb: str
    device: int
    id: bytes
    about: bytes = b""
    lifetime: float | None = None


class Decision(NamedTuple):
    """What to post, the campaign's new state, the devices that have changed, and when to decide again at the latest.

    ``events`` say in words what has happened to the campaign as a whole.
    """

    postings: tuple[Posting, ...]
    campaign: Campaign
    changed: Mapping[int, Member]
    deadline: float | None
    events: tuple[str, ...]


def rank(name: str, device: int) -> float:
    """Return where a device stands in the campaign with this name, from 0 to 1: by lot, and the same each time."""
    return int.from_bytes(blake2b(f"{name}/{device:x}".encode(), digest_size=8).digest()) / 2.0**64


def targeted(document: Document, device: Candidate) -> bool:
    """Return whether a device is one of those that the campaign is for."""
    target = document.target
    return (
        device.matches
        and (target.devices is None or device.identity in target.devices)
        and all(device.tags.get(name) == value for name, value in target.tags)
        and target.type in (None, device.type)
        and (target.share >= 1.0 or rank(document.name, device.identity) < target.share)
    )


def ineligible(document: Document, device: Candidate | None, busy: Mapping[int, str]) -> str:
    """Return why a device cannot be updated now, "" if it can."""
    firmware = document.firmware
    if device is None:
        return "nothing is known about it any more"
    if not device.member:
        return "it is not joined"
    if firmware.types and device.type is None:
        return "its type is not known, and the firmware is for certain types"
    if firmware.types and device.type not in firmware.types:
        return f"the firmware is not for its type, {device.type}"
    if device.digest == firmware.digest:
        return "it has this firmware already"
    if firmware.version is not None and device.version is not None and device.version >= firmware.version:
        return f"it has version {device.version}"
    if (other := busy.get(device.identity)) is not None:
        return f"it takes part in campaign {other}"
    if document.window.daily is not None:
        try:
            document.zone_of(device.tags)
        except ValueError:
            return "its time zone is not known: give it a tag zone, such as Europe/Berlin"
    return ""


def succeeded(document: Document, member: Member) -> bool:
    """Return whether a device counts as a success."""
    return member.at is At.HEALTHY or (member.at is At.ACTIVATED and not document.activation.confirm)


def decide(document: Document, campaign: Campaign, members: Mapping[int, Member], facts: Facts, now: float) -> Decision:
    """Decide what a campaign does at this Unix time."""
    step = _Step(document, campaign, dict(members), facts, now)
    step.take_outcomes()
    step.begin()
    if step.campaign.state is State.RUNNING:
        step.admit()
        step.stop_if_failing()
    step.end_if_late()
    while step.open_groups() and step.order():
        step.admit()  # who cannot be updated any more counts in no group and takes no place: look again
    if step.campaign.state is State.RUNNING:
        step.activate()
        step.finish()
    if step.campaign.state in OVER - {State.FINISHED}:
        step.take_back()
    step.settle()
    changed = {device: each for device, each in step.members.items() if members.get(device) != each}
    return Decision(tuple(step.postings), step.campaign, changed, step.deadline(), tuple(step.events))


@dataclass
class _Step:
    """A decision while it is being made: ``campaign`` and ``members`` are what they will be."""

    document: Document
    campaign: Campaign
    members: dict[int, Member]
    facts: Facts
    now: float

    def __post_init__(self) -> None:
        self.postings: list[Posting] = []
        self.events: list[str] = []

    # How orders went.

    def take_outcomes(self) -> None:
        """Take in what devices have answered, and what they have not answered in time."""
        for device, member in sorted(self.members.items()):
            if not member.follows:
                continue
            outcome = self.facts.outcomes.get(self.campaign.order_id(device, member.orders))
            if outcome is not None:
                self.members[device] = member = self._told(member, outcome)
            if member.follows:
                self._take_time(device, member)

    def _told(self, member: Member, outcome: Outcome) -> Member:
        at, given_up = outcome.at, member.at not in UNDER_WAY
        if not outcome.over:
            return member if given_up else self._under_way(member, outcome)
        member = replace(member, follows=False)
        if outcome.error is None:
            reached = At.HEALTHY if outcome.state == "ACTIVATED" else At.ACTIVATED
            return replace(member, at=reached, since=at, reason="", gives_up="", result="", fetched=True)
        if given_up:
            return member
        text = outcome.text
        if outcome.error in ("UnansweredError", "lost"):
            return self._ended(member, At.UNANSWERED, text, at)
        if outcome.error != "PolicyError":
            return self._ended(member, At.FAILED, text, at)
        if member.gives_up == At.UNANSWERED:
            return self._ended(member, At.UNANSWERED, "it did not fetch the firmware in time", at)
        if member.gives_up:
            return replace(member, at=At.CANCELLED, since=at)
        return replace(member, at=At.SKIPPED, since=at, reason=text)

    def _under_way(self, member: Member, outcome: Outcome) -> Member:
        if outcome.state in ("READY", "ACTIVATING") and member.at is At.ORDERED:
            member = replace(member, at=At.READY, since=outcome.at, fetched=True)
        if outcome.state == "ACTIVATING" and member.activated is None:
            member = replace(member, activated=outcome.at)
        return member

    def _ended(self, member: Member, result: At, reason: str, at: float) -> Member:
        """Return a device whose try came to nothing: it waits for the next one, or has had the last."""
        pace, over = self.document.pace, self.campaign.state in OVER
        member = replace(member, since=at, reason=reason, gives_up="", result=str(result))
        if over or member.tries >= pace.tries:
            return replace(member, at=result)
        return replace(member, at=At.WAITING, not_before=at + pace.pause * 2.0 ** (member.tries - 1))

    def _take_time(self, device: int, member: Member) -> None:
        """Give up what takes too long; without ``hold`` the lifetime of the order does that."""
        if not self.document.held or member.gives_up or (too_late := self._too_late(member)) is None:
            return
        if self.now < too_late:
            return
        if member.at is At.ORDERED:
            self._cancel(device, member, At.UNANSWERED, member.reason)
        else:  # it was told, and that cannot be taken back; should it answer yet, that counts
            self.members[device] = self._ended(
                member, At.UNANSWERED, "it was told to activate and fell silent", too_late
            )

    def _too_late(self, member: Member) -> float | None:
        """Return when a device has taken too long over what it was told last."""
        since = {At.ORDERED: member.ordered, At.READY: member.activated}.get(member.at)
        return None if since is None else since + self.document.pace.timeout

    def _cancel(self, device: int, member: Member, then: At, reason: str) -> None:
        about = self.campaign.order_id(device, member.orders)
        self.postings.append(Posting("cancel", device, self.campaign.order_id(device, member.orders, "cancel"), about))
        self.members[device] = replace(member, gives_up=str(then), reason=reason)

    # The campaign as a whole.

    def _enter(self, state: State, reason: str = "") -> None:
        self.campaign = replace(self.campaign, state=state, since=self.now, reason=reason)
        self.events.append(f"{state}: {reason}" if reason else str(state))

    def begin(self) -> None:
        """Begin once it is approved, and its time has come."""
        people = self.document.approval.people
        if self.campaign.state is State.AWAITING_APPROVAL and len(self.campaign.approvals) >= people:
            self._enter(State.SCHEDULED)
        if self.campaign.state is State.SCHEDULED and self.now >= (self.document.window.start or 0.0):
            self._enter(State.RUNNING)

    def admit(self) -> None:
        """Decide who takes part, once, and again for devices that may come late; each has its place by lot."""
        if self.campaign.admitted and not self.document.target.late:
            return
        fresh = []
        for device, known in sorted(self.facts.devices.items()):
            member = self.members.get(device)
            if member is not None and (member.at is not At.SKIPPED or member.orders):
                continue
            if not targeted(self.document, known):
                continue
            if reason := ineligible(self.document, known, self.facts.busy):
                if member is None or member.reason != reason:
                    self.members[device] = Member(-1, At.SKIPPED, self.now, reason)
            else:
                fresh.append(device)
        self._place(sorted(fresh, key=lambda device: rank(self.document.name, device)))
        self.campaign = replace(self.campaign, admitted=True)

    def _place(self, fresh: list[int]) -> None:
        """Give devices a group: the first that has room and is not closed behind us."""
        taken = Counter(each.group for each in self.members.values() if each.at is not At.SKIPPED)
        total = taken.total() + len(fresh)
        room = [each.size.of(total) - taken[number] for number, each in enumerate(self.document.groups)]
        for device in fresh:
            groups = range(self.campaign.group, len(room))
            group = next((number for number in groups if room[number] > 0), None)
            if group is not None:
                room[group] -= 1
                self.members[device] = Member(group, At.WAITING, self.now)
            elif device not in self.members:
                self.members[device] = Member(-1, At.SKIPPED, self.now, "no group has room for it")

    def stop_if_failing(self) -> None:
        """Stop when too many devices have failed."""
        stop = self.document.gate.stop
        failing = sum(each.failing for each in self.members.values())
        good = sum(each.at in (At.HEALTHY, At.ACTIVATED) for each in self.members.values())
        if failing >= stop.failures and failing > stop.share * (failing + good) + _TOLERANCE:
            self._enter(State.STOPPED, f"{failing} of {failing + good} devices that have ended have failed")

    def end_if_late(self) -> None:
        """End when the time of the campaign is over."""
        end = self.document.window.end
        if end is None or self.now < end or self.campaign.state in OVER:
            return
        left = any(each.at not in ENDED for each in self.members.values()) or not self.campaign.admitted
        self._enter(*((State.EXPIRED, f"its end, {iso(end)}, has come") if left else (State.FINISHED, "")))

    def take_back(self) -> None:
        """Take back what a campaign that is over has ordered, unless the device was told to activate it.

        When it has just stopped, those that wait go on to do so, for the operator may go on with them.
        """
        state = self.campaign.state
        reason = f"the campaign is {state}" + (f": {self.campaign.reason}" if self.campaign.reason else "")
        finishes = state is State.EXPIRED and self.document.window.then == "stop ordering" and not self.document.held
        for device, member in sorted(self.members.items()):
            if member.at is At.WAITING and state is not State.STOPPED:
                self.members[device] = replace(member, at=At.CANCELLED, since=self.now, reason=reason)
            elif member.at in UNDER_WAY and not member.gives_up and member.activated is None and not finishes:
                self._cancel(device, member, At.CANCELLED, reason)

    def settle(self) -> None:
        """Note whether there is anything left to follow."""
        settled = self.campaign.state in OVER and not any(each.follows for each in self.members.values())
        self.campaign = replace(self.campaign, settled=settled)

    # Groups.

    def _of_group(self, group: int) -> list[Member]:
        left_out = (At.SKIPPED, At.CANCELLED)
        return [each for each in self.members.values() if each.group == group and each.at not in left_out]

    def open_groups(self) -> bool:
        """Let the next group in if enough of the present one have succeeded for as long as is to be waited.

        Return whether the campaign is running still.
        """
        while self.campaign.state is State.RUNNING and self.campaign.group < len(self.document.groups) - 1:
            number = self.campaign.group
            group = self._of_group(number)
            good = sum(succeeded(self.document, each) for each in group)
            if good < self.document.gate.success * len(group) - _TOLERANCE:
                self.campaign = replace(self.campaign, passed=None)
                others = any(each.at not in ENDED for each in self.members.values())
                if others and all(each.at in ENDED for each in group):
                    needed = f"{self.document.gate.success * 100:g} %"
                    said = f"group {number + 1} has ended, {good} of {len(group)} succeeded, and {needed} are needed"
                    self._enter(State.PAUSED, said)
                break
            if self.campaign.passed is None:
                self.campaign = replace(self.campaign, passed=self.now)
            if group and self.now < self._opens():
                break
            self.campaign = replace(self.campaign, group=number + 1, passed=None)
            self.events.append(f"group {number + 2} opens: {_devices(len(self._of_group(number + 1)))}")
        return self.campaign.state is State.RUNNING

    def _opens(self) -> float:
        """Return when the next group opens if all stays well."""
        return (self.campaign.passed or 0.0) + self.document.groups[self.campaign.group].hold

    # Orders.

    def _opening(self, device: int) -> float:
        """Return when the daily window of a device opens; now or before if it is open, or there is none."""
        daily = self.document.window.daily
        if daily is None:
            return self.now
        known = self.facts.devices.get(device)
        try:
            return daily.opening(self.now, self.document.zone_of({} if known is None else known.tags))[0]
        except ValueError:
            return float("inf")

    def _waiting(self) -> Iterator[tuple[int, Member]]:
        """Return those that wait and whose group is open, in the order in which they are served."""
        found = [
            (member.group, member.tries, rank(self.document.name, device), device, member)
            for device, member in self.members.items()
            if member.at is At.WAITING and member.group <= self.campaign.group
        ]
        yield from ((device, member) for *_, device, member in sorted(found, key=lambda each: each[:4]))

    def _may_order_at(self, device: int, member: Member) -> float:
        """Return when a device that waits may be told to update, as far as that is a matter of its own time."""
        fetches_any_time = self.document.activation.when != "at once"
        return max(member.not_before, self.now if fetches_any_time else self._opening(device))

    def _room(self) -> int:
        """Return how many devices may be told to update now."""
        pace, most = self.document.pace, self.facts.room - len(self.postings)
        if pace.at_once is not None:
            most = min(most, pace.at_once - sum(each.at in UNDER_WAY for each in self.members.values()))
        if pace.per_minute is not None:
            most = min(most, pace.per_minute - len(self._recent()))
        return most

    def _recent(self) -> list[float]:
        """Return when devices were told to update within the last minute."""
        since = self.now - _MINUTE
        return sorted(
            each.ordered for each in self.members.values() if each.ordered is not None and each.ordered > since
        )

    def order(self) -> bool:
        """Order updates, within all limits; return whether somebody was left out who cannot be updated any more."""
        room, left_out = self._room(), False
        for device, member in self._waiting():
            if room <= 0:
                break
            if self._may_order_at(device, member) > self.now:
                continue
            if reason := ineligible(self.document, self.facts.devices.get(device), self.facts.busy):
                self.members[device] = replace(member, at=At.SKIPPED, since=self.now, reason=reason)
                left_out = True
                continue
            room -= 1
            ordered: dict[str, Any] = {"orders": member.orders + 1, "tries": member.tries + 1, "ordered": self.now}
            fresh = Member(member.group, At.ORDERED, self.now, follows=True, **ordered)
            self.members[device] = fresh
            identity = self.campaign.order_id(device, fresh.orders)
            self.postings.append(Posting("update", device, identity, lifetime=self._lifetime()))
        return left_out

    def _lifetime(self) -> float:
        timeout, end = self.document.pace.timeout, self.document.window.end
        if not self.document.held:
            return timeout
        return 2 * timeout + (_HELD if end is None else end - self.now)

    def activate(self) -> None:
        """Have devices activate what they have fetched, if it is time for that."""
        activation = self.document.activation
        if not self.document.held or (activation.when == "command" and not self.campaign.may_activate):
            return
        for device, member in sorted(self.members.items()):
            if len(self.postings) >= self.facts.room:
                return
            if not self._holds(member) or self._opening(device) > self.now:
                continue
            about = self.campaign.order_id(device, member.orders)
            identity = self.campaign.order_id(device, member.orders, "activate")
            self.postings.append(Posting("activate", device, identity, about))
            self.members[device] = replace(member, activated=self.now)

    @staticmethod
    def _holds(member: Member) -> bool:
        return member.at is At.READY and member.activated is None and not member.gives_up

    def finish(self) -> None:
        """End when nothing more can happen: nobody is left, and nobody can come late."""
        if not self.document.target.late and all(each.at in ENDED for each in self.members.values()):
            self._enter(State.FINISHED)

    # Time.

    def deadline(self) -> float | None:
        """Return when to decide again though nobody has answered; None if only an answer can change anything."""
        window, state = self.document.window, self.campaign.state
        times: list[float | None] = []
        if state not in OVER:
            times += [window.start if state is State.SCHEDULED else None, window.end]
        if self.document.held:
            times += [self._too_late(each) for each in self.members.values() if each.follows and not each.gives_up]
        if state is State.RUNNING:
            times += [self._opens() if self.campaign.passed is not None else None]
            times += [self._may_order_at(device, member) for device, member in self._waiting()]
            times += [self._opening(device) for device, member in self.members.items() if self._holds(member)]
            times += [at + _MINUTE for at in self._recent()[:1] if self.document.pace.per_minute is not None]
        return min((at for at in times if at is not None and self.now < at < float("inf")), default=None)


def _devices(number: int) -> str:
    return f"{number} device" + ("" if number == 1 else "s")
