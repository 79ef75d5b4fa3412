"""What a campaign does next: a pure function of the document, what is remembered, what is known, and the time.

Run again with the same facts it wants nothing more; in whichever order the facts come, it wants the same.
"""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from .document import OF_DEVICE, Document
from .eligibility import ineligible, rank, targeted
from .facts import Decision, Facts, Outcome, Posting
from .schedule import iso
from .state import OVER, UNDER_WAY, At, Campaign, Member, State

__all__ = ["Course", "decide"]

_MINUTE: Final = 60.0
_HELD: Final = 30 * 86400.0  # seconds for which firmware may wait for its activation when a campaign has no end
_TOLERANCE: Final = 1e-9
_FULL: Final = 1.0  # seconds until a mailbox without room is looked at again


def decide(document: Document, campaign: Campaign, members: Mapping[int, Member], facts: Facts, now: float) -> Decision:
    """Decide what a campaign does at this Unix time."""
    return Course(document, campaign, members).decide(facts, now)


class Course:
    """A campaign that is decided about again and again: what :func:`decide` does, going on from the last decision.

    Devices are counted by group and state, so that a large fleet is gone through once.
    """

    def __init__(self, document: Document, campaign: Campaign, members: Mapping[int, Member]) -> None:
        self.document, self.campaign = document, campaign
        self.members = dict(members)
        self.facts, self.now = Facts(), 0.0
        self.postings: list[Posting] = []
        self.events: list[str] = []
        self._before: dict[int, Member | None] = {}  # those that have changed in this decision
        self._counts: Counter[tuple[int, At]] = Counter()
        self._failing = 0
        self._follows: set[int] = set()
        self._at: dict[At, set[int]] = {At.WAITING: set(), At.ORDERED: set(), At.READY: set()}
        self._again: set[int] = set()  # those that wait for another try
        self._queue: list[tuple[int, int, float, int]] = []  # who waits, in the order in which they are served
        self._openings: dict[str, tuple[float, float]] = {}
        self._ordered = [each.ordered for each in self.members.values() if each.ordered is not None]
        for device, member in self.members.items():
            self._count(device, member)

    def decide(self, facts: Facts, now: float) -> Decision:
        """Decide what the campaign does at this Unix time."""
        self.facts, self.now = facts, now
        self.postings, self.events, self._before, self._openings = [], [], {}, {}
        self._take_outcomes()
        self._begin()
        if self.campaign.state is State.RUNNING:
            self._admit()
            self._stop_if_failing()
        self._end_if_late()
        while self._open_groups() and self._order():
            self._admit()  # who cannot be updated any more counts in no group and takes no place: look again
        if self.campaign.state is State.RUNNING:
            self._activate()
            self._finish()
        if self.campaign.state in OVER - {State.FINISHED}:
            self._take_back()
        self._settle()
        changed = {
            device: self.members[device]
            for device, before in sorted(self._before.items(), key=lambda each: each[0])
            if self.members[device] != before
        }
        return Decision(tuple(self.postings), self.campaign, changed, self._deadline(), tuple(self.events))

    def number(self, *states: At, group: int | None = None) -> int:
        """Return how many devices are in these states, of one group or of all."""
        return sum(count for (of, at), count in self._counts.items() if at in states and group in (None, of))

    def _count(self, device: int, member: Member) -> None:
        self._counts[member.group, member.at] += 1
        self._failing += member.failing
        if member.follows:
            self._follows.add(device)
        if (having := self._at.get(member.at)) is not None:
            having.add(device)
            if member.not_before:
                self._again.add(device)
        if member.at is At.WAITING:
            heapq.heappush(self._queue, (member.group, member.tries, rank(self.document.name, device), device))

    def _set(self, device: int, member: Member) -> None:
        """Let a device have another state."""
        before = self.members.get(device)
        if before == member:
            return
        if before is not None:
            self._counts[before.group, before.at] -= 1
            self._failing -= before.failing
            self._follows.discard(device)
            self._again.discard(device)
            if (having := self._at.get(before.at)) is not None:
                having.discard(device)
        self._before.setdefault(device, before)
        self.members[device] = member
        self._count(device, member)

    @property
    def _all_ended(self) -> bool:
        return not any(self._at.values())

    # How orders went.

    def _take_outcomes(self) -> None:
        """Take in what devices have answered, and what they have not answered in time."""
        for device in sorted(self._follows):
            member = self.members[device]
            outcome = self.facts.outcomes.get(self.campaign.order_id(device, member.orders))
            if outcome is not None:
                self._set(device, member := self._told(member, outcome))
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
        if not self.document.held or (too_late := self._too_late(member)) is None:
            return
        if self.now < too_late or not self._mailbox_has_room:
            return
        if member.at is At.ORDERED:
            self._cancel(device, member, At.UNANSWERED, member.reason)
        else:  # it was told, and that cannot be taken back; should it answer yet, that counts
            said = "it was told to activate and fell silent"
            self._set(device, self._ended(member, At.UNANSWERED, said, too_late))

    def _too_late(self, member: Member) -> float | None:
        """Return when a device has taken too long over what it was told last; None for what is being taken back."""
        fetching = None if member.gives_up else member.ordered
        since = {At.ORDERED: fetching, At.READY: member.activated}.get(member.at)
        too_late = None if since is None else since + self.document.pace.timeout
        until = member.activates_until if member.at is At.READY else None
        return too_late if too_late is None or until is None or too_late < until else None  # it will be told again

    @property
    def _mailbox_has_room(self) -> bool:
        return len(self.postings) < self.facts.room

    def _cancel(self, device: int, member: Member, then: At, reason: str) -> None:
        about = self.campaign.order_id(device, member.orders)
        self.postings.append(Posting("cancel", device, self.campaign.order_id(device, member.orders, "cancel"), about))
        self._set(device, replace(member, gives_up=str(then), reason=reason))

    # The campaign as a whole.

    def _enter(self, state: State, reason: str = "") -> None:
        self.campaign = replace(self.campaign, state=state, since=self.now, reason=reason)
        self.events.append(f"{state}: {reason}" if reason else str(state))

    def _begin(self) -> None:
        """Begin once it is approved, and its time has come."""
        people = self.document.approval.people
        if self.campaign.state is State.AWAITING_APPROVAL and len(self.campaign.approvals) >= people:
            self._enter(State.SCHEDULED)
        if self.campaign.state is State.SCHEDULED and self.now >= (self.document.window.start or 0.0):
            self._enter(State.RUNNING)

    def _admit(self) -> None:
        """Decide who takes part, once, and again for devices that may come late; each has its place by lot."""
        if self.campaign.admitted and not self.document.target.late:
            return
        fresh = []
        looked = self.facts.devices.values() if self.facts.look is None else self.facts.look
        for known in sorted(looked, key=lambda each: each.identity):
            device = known.identity
            member = self.members.get(device)
            if member is not None and (member.at is not At.SKIPPED or member.orders):
                continue
            if not targeted(self.document, known):
                continue
            if reason := ineligible(self.document, known, self.facts.busy):
                if member is None or member.reason != reason:
                    self._set(device, Member(-1, At.SKIPPED, self.now, reason))
            else:
                fresh.append(device)
        self._place(sorted(fresh, key=lambda device: rank(self.document.name, device)))
        self.campaign = replace(self.campaign, admitted=True)

    def _place(self, fresh: list[int]) -> None:
        """Give devices a group: the first that has room and is not closed behind us."""
        groups = range(len(self.document.groups))
        taken = [self.number(*set(At) - {At.SKIPPED}, group=number) for number in groups]
        total = sum(taken) + len(fresh)
        room = [each.size.of(total) - taken[number] for number, each in enumerate(self.document.groups)]
        for device in fresh:
            group = next((number for number in groups[self.campaign.group :] if room[number] > 0), None)
            if group is not None:
                room[group] -= 1
                self._set(device, Member(group, At.WAITING, self.now))
            elif device not in self.members:
                self._set(device, Member(-1, At.SKIPPED, self.now, "no group has room for it"))

    def _stop_if_failing(self) -> None:
        """Stop when too many devices have failed."""
        stop = self.document.gate.stop
        failing, good = self._failing, self.number(At.HEALTHY, At.ACTIVATED)
        if failing >= stop.failures and failing > stop.share * (failing + good) + _TOLERANCE:
            self._enter(State.STOPPED, f"{failing} of {failing + good} devices that have ended have failed")

    def _end_if_late(self) -> None:
        """End when the time of the campaign is over."""
        end = self.document.window.end
        if end is None or self.now < end or self.campaign.state in OVER:
            return
        left = not self._all_ended or not self.campaign.admitted
        self._enter(*((State.EXPIRED, f"its end, {iso(end)}, has come") if left else (State.FINISHED, "")))

    def _take_back(self) -> None:
        """Take back what a campaign that is over has ordered, unless the device was told to activate it.

        When it has just stopped, those that wait go on to do so, for the operator may go on with them.
        """
        state = self.campaign.state
        reason = f"the campaign is {state}" + (f": {self.campaign.reason}" if self.campaign.reason else "")
        finishes = state is State.EXPIRED and self.document.window.then == "stop ordering" and not self.document.held
        for device in sorted(set().union(*self._at.values())):
            member = self.members[device]
            if member.at is At.WAITING and state is not State.STOPPED:
                self._set(device, replace(member, at=At.CANCELLED, since=self.now, reason=reason))
            elif (
                member.at in UNDER_WAY
                and self._mailbox_has_room
                and not (member.gives_up or finishes or self._is_told(device, member))
            ):
                self._cancel(device, member, At.CANCELLED, reason)

    def _is_told(self, device: int, member: Member) -> bool:
        """Return whether the server has told a device to activate: our order to do so may be waiting for the server."""
        outcome = self.facts.outcomes.get(self.campaign.order_id(device, member.orders))
        return outcome is not None and outcome.state == "ACTIVATING"

    def _settle(self) -> None:
        """Note whether there is anything left to follow."""
        settled = self.campaign.state in OVER and not self._follows
        self.campaign = replace(self.campaign, settled=settled)

    # Groups.

    def _size(self, group: int) -> int:
        """Return how many devices of a group count: not those that were left out or taken back."""
        return self.number(*set(At) - {At.SKIPPED, At.CANCELLED}, group=group)

    def _good(self, group: int) -> int:
        reached = (At.HEALTHY,) if self.document.activation.confirm else (At.HEALTHY, At.ACTIVATED)
        return self.number(*reached, group=group)

    def _open_groups(self) -> bool:
        """Let the next group in if enough of the present one have succeeded for as long as is to be waited.

        Return whether the campaign is running still.
        """
        while self.campaign.state is State.RUNNING and self.campaign.group < len(self.document.groups) - 1:
            number = self.campaign.group
            size, good = self._size(number), self._good(number)
            if good < self.document.gate.success * size - _TOLERANCE:
                self.campaign = replace(self.campaign, passed=None)
                going_on = self.number(At.WAITING, At.ORDERED, At.READY, group=number)
                if not self._all_ended and not going_on:
                    needed = f"{self.document.gate.success * 100:g} %"
                    said = f"group {number + 1} has ended, {good} of {size} succeeded, and {needed} are needed"
                    self._enter(State.PAUSED, said)
                break
            if self.campaign.passed is None:
                self.campaign = replace(self.campaign, passed=self.now)
            if size and self.now < self._opens():
                break
            self.campaign = replace(self.campaign, group=number + 1, passed=None)
            self.events.append(f"group {number + 2} opens: {_devices(self._size(number + 1))}")
        return self.campaign.state is State.RUNNING

    def _opens(self) -> float:
        """Return when the next group opens if all stays well."""
        return (self.campaign.passed or 0.0) + self.document.groups[self.campaign.group].hold

    # Orders.

    def _opening(self, device: int) -> float:
        """Return when the daily window of a device opens; now or before if it is open, or there is none."""
        return self._hours(device)[0]

    def _hours(self, device: int) -> tuple[float, float]:
        """Return from when to when the daily window of a device is open, now or the next time."""
        daily = self.document.window.daily
        if daily is None:
            return self.now, float("inf")
        of = self._zone(device) if self.document.window.zone == OF_DEVICE else ""
        if of not in self._openings:
            try:
                self._openings[of] = daily.opening(self.now, self.document.zone_of({"zone": of}))
            except ValueError:
                self._openings[of] = float("inf"), float("inf")
        return self._openings[of]

    def _zone(self, device: int) -> str:
        if self.facts.zones is not None:
            return self.facts.zones.get(device, "")
        known = self.facts.devices.get(device)
        return "" if known is None else known.tags.get("zone", "")

    def _is_open(self, device: int) -> bool:
        return self.members[device].group <= self.campaign.group

    def _may_order_at(self, device: int, member: Member) -> float:
        """Return when a device that waits may be told to update, as far as that is a matter of its own time."""
        fetches_any_time = self.document.activation.when != "at once"
        return max(member.not_before, self.now if fetches_any_time else self._opening(device))

    def _room(self) -> int:
        """Return how many devices may be told to update now."""
        pace, most = self.document.pace, self.facts.room - len(self.postings)
        if pace.at_once is not None:
            most = min(most, pace.at_once - self.number(*UNDER_WAY))
        if pace.per_minute is not None:
            most = min(most, pace.per_minute - len(self._recent()))
        return most

    def _recent(self) -> list[float]:
        """Return when devices were told to update within the last minute, the earliest first."""
        # What lies ahead was ordered before the clock was set back, and must not hold the campaign up until then.
        self._ordered = sorted(at for at in self._ordered if abs(self.now - at) < _MINUTE)
        return self._ordered if self.document.pace.per_minute is not None else []

    def _order(self) -> bool:
        """Order updates, within all limits; return whether somebody was left out who cannot be updated any more."""
        room, left_out, later = self._room(), False, []
        while room > 0 and self._queue:
            entry = heapq.heappop(self._queue)
            group, tries, _, device = entry
            member = self.members[device]
            if member.at is not At.WAITING or (member.group, member.tries) != (group, tries):
                continue  # it has gone on since
            if group > self.campaign.group:
                later.append(entry)
                break
            if self._may_order_at(device, member) > self.now:
                later.append(entry)
                continue
            if reason := ineligible(self.document, self.facts.devices.get(device), self.facts.busy):
                self._set(device, replace(member, at=At.SKIPPED, since=self.now, reason=reason))
                left_out = True
                continue
            room -= 1
            self._order_of(device, member)
        for entry in later:
            heapq.heappush(self._queue, entry)
        return left_out

    def _order_of(self, device: int, member: Member) -> None:
        orders, tries, now = member.orders + 1, member.tries + 1, self.now
        fresh = Member(
            *(member.group, At.ORDERED, now, member.reason), orders=orders, tries=tries, ordered=now, follows=True
        )
        self._set(device, fresh)
        self._ordered.append(self.now)
        identity = self.campaign.order_id(device, fresh.orders)
        self.postings.append(Posting("update", device, identity, lifetime=self._lifetime()))

    def _lifetime(self) -> float:
        timeout, end = self.document.pace.timeout, self.document.window.end
        if not self.document.held:
            return timeout
        return 2 * timeout + (_HELD if end is None else end - self.now)

    def _activate(self) -> None:
        """Have devices activate what they have fetched, if it is time for that."""
        activation = self.document.activation
        if not self.document.held or (activation.when == "command" and not self.campaign.may_activate):
            return
        for device in sorted(self._at[At.READY]):
            member = self.members[device]
            if not self._mailbox_has_room:
                return
            opens, closes = self._hours(device)
            if not self._holds(member) or opens > self.now:
                continue
            about = self.campaign.order_id(device, member.orders)
            verb = "activate" + (f" {member.told + 1}" if member.told else "")
            until = None if closes == float("inf") else closes
            lifetime = None if until is None else until - self.now
            identity = self.campaign.order_id(device, member.orders, verb)
            self.postings.append(Posting("activate", device, identity, about, lifetime))
            self._set(device, replace(member, activated=self.now, activates_until=until, told=member.told + 1))

    def _holds(self, member: Member) -> bool:
        """Return whether a device has firmware that it is not told to activate, or not in time any more."""
        told = member.activated is not None and (member.activates_until is None or self.now < member.activates_until)
        return member.at is At.READY and not told and not member.gives_up

    def _finish(self) -> None:
        """End when nothing more can happen: nobody is left, and nobody can come late."""
        if not self.document.target.late and self._all_ended:
            self._enter(State.FINISHED)

    # Time.

    def _deadline(self) -> float | None:
        """Return when to decide again though nobody has answered; None if only an answer can change anything."""
        window, state = self.document.window, self.campaign.state
        times: list[float | None] = [] if self._mailbox_has_room or self.campaign.settled else [self.now + _FULL]
        if state not in OVER:
            times += [window.start if state is State.SCHEDULED else None, window.end]
        if self.document.held:
            followed = (self.members[device] for device in self._follows)
            times += [self._too_late(each) for each in followed]
        if state is State.RUNNING:
            times += [self._opens() if self.campaign.passed is not None else None]
            every = self.document.window.daily is not None and self.document.activation.when == "at once"
            waiting = self._at[At.WAITING] if every else self._again & self._at[At.WAITING]
            times += [self._may_order_at(device, self.members[device]) for device in waiting if self._is_open(device)]
            times += [self._opening(device) for device in self._at[At.READY] if self._holds(self.members[device])]
            times += [self.members[device].activates_until for device in self._at[At.READY]]
            times += [at + _MINUTE for at in (self._recent()[:1] if self._at[At.WAITING] else [])]
        return min((at for at in times if at is not None and self.now < at < float("inf")), default=None)


def _devices(number: int) -> str:
    return f"{number} device" + ("" if number == 1 else "s")
