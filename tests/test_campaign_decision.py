"""What a campaign decides: limits that hold, gates that stay shut, nobody twice, whatever devices do and whenever."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srup.campaign import At, Campaign, Candidate, Facts, Member, Outcome, State, decide
from srup.campaign.document import Activation, Approval, Document, Firmware, Gate, Group, Pace, Stop, Target, Window
from srup.campaign.eligibility import rank
from srup.campaign.schedule import Daily, Size
from srup.campaign.state import ENDED, OVER, UNDER_WAY
from srup.versions import shown_version

NEW, OLD = "1" * 64, "0" * 64
BEGIN = datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp()  # a day before the clocks change in Europe
NO_STOP = Gate(1.0, Stop(10**6, 1.0))


def document(**parts):
    return Document(
        **{"name": "c", "firmware": Firmware(NEW, "https://a.example/f", 8, 42), "target": Target()} | parts
    )


class World:
    """Devices that answer as they are told, and a campaign that decides about them; each step is checked.

    Reports go by the id of an order; an order that is posted twice is a fault here.
    """

    def __init__(self, document, size=10, state=State.SCHEDULED, tags=None):
        self.document, self.now = document, BEGIN
        self.campaign = Campaign("key", state, self.now, created=self.now)
        self.members, self.outcomes, self.busy = {}, {}, {}
        self.devices = {each: Candidate(each, version=41, digest=OLD, tags=tags or {}) for each in range(1, size + 1)}
        self.posted, self.events = [], []
        self.orders = {}

    def decide(self):
        before = self.members
        facts = Facts(self.devices, self.outcomes, self.busy)
        decision = decide(self.document, self.campaign, before, facts, self.now)
        backwards = Facts(*(dict(reversed(each.items())) for each in facts[:3]))
        shuffled = dict(reversed(before.items()))
        assert decide(self.document, self.campaign, shuffled, backwards, self.now) == decision
        self.members = before | decision.changed
        self.campaign = decision.campaign
        again = decide(self.document, self.campaign, self.members, facts, self.now)
        assert (again.postings, again.changed, again.campaign, again.events) == ((), {}, self.campaign, ())
        assert decision.deadline is None or decision.deadline > self.now
        for posting in decision.postings:
            assert posting.id not in {other.id for _, other in self.posted}
            self.posted.append((self.now, posting))
            if posting.verb == "update":
                self.orders[posting.device] = posting.id
        self.events += decision.events
        return decision

    def updates(self):
        return [posting.device for _, posting in self.posted if posting.verb == "update"]

    def verbs(self):
        return Counter(posting.verb for _, posting in self.posted)

    def tell(self, device, state, error=None, text="", over=None):
        over = (state in ("ACTIVATED", "FAILED") or error is not None) if over is None else over
        self.outcomes[self.orders[device]] = Outcome(self.now, state, over, error, text)

    def all_do(self, state, devices=None, **more):
        for device in devices or [each for each, member in self.members.items() if member.at in UNDER_WAY]:
            self.tell(device, state, **more)
        return self.decide()

    def pass_time(self, seconds):
        self.now += seconds
        return self.decide()

    def at(self, state):
        return {device for device, member in self.members.items() if member.at is state}


def test_all_at_once_and_finished_when_all_have_said_so():
    world = World(document())
    assert world.decide().deadline is None
    assert (len(world.updates()), world.campaign.state) == (10, State.RUNNING)
    world.all_do("READY")
    assert len(world.at(At.READY)) == 10
    world.all_do("ACTIVATED")
    assert (len(world.at(At.HEALTHY)), world.campaign.state) == (10, State.FINISHED)


def test_a_deployed_device_that_never_confirms_is_a_success_only_if_that_is_enough():
    for confirm, state in ((True, State.PAUSED), (False, State.RUNNING)):
        world = World(document(groups=(Group(Size(2)), Group()), activation=Activation(confirm=confirm)))
        world.decide()
        world.all_do("ACTIVATING", over=True)
        assert (len(world.at(At.ACTIVATED)), world.campaign.state) == (2, state)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(), {1, 2, 3}),
        (Target(devices=frozenset({2, 9})), {2}),
        (Target(tags=(("site", "berlin"),)), {1, 3}),
        (Target(type="lock"), {3}),
        (Target(where="..."), {1, 2, 3}),
        (Target(tags=(("site", "berlin"),), type="lock"), {3}),
    ],
)
def test_who_is_meant(target, expected):
    world = World(document(target=target), 0)
    for device in (1, 2, 3, 4):
        tags = {"site": "berlin" if device % 2 else "paris"}
        kind = "lock" if device > 2 else "lamp"
        world.devices[device] = Candidate(device, True, device != 4, kind, 1, OLD, tags)
    world.decide()
    assert set(world.members) == expected


def test_a_share_is_the_same_devices_each_time():
    world = World(document(target=Target(share=0.3)), 1000)
    world.decide()
    assert 250 < len(world.members) < 350
    assert set(world.members) == {device for device in world.devices if rank("c", device) < 0.3}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"member": False}, "it is not joined"),
        ({"digest": NEW}, "it has this firmware already"),
        ({"version": 43}, "it has version 43"),
        ({"type": "lamp"}, "the firmware is not for its type, lamp"),
        ({"type": None}, "its type is not known, and the firmware is for certain types"),
    ],
)
def test_why_a_device_is_skipped(change, told):
    firmware = Firmware(NEW, "https://a.example/f", 8, 42, ("lock",))
    world = World(document(firmware=firmware), 0)
    world.devices = {1: Candidate(1, type="lock"), 2: Candidate(2, type="lock")._replace(**change)}
    world.decide()
    assert (world.updates(), world.members[2].at, world.members[2].reason) == ([1], At.SKIPPED, told)


def test_a_device_of_another_campaign_is_skipped_and_comes_late_when_that_is_over():
    for late in (False, True):
        world = World(document(target=Target(late=late)), 2)
        world.busy = {2: "other"}
        world.decide()
        assert (world.members[2].at, world.members[2].reason) == (At.SKIPPED, "it takes part in campaign other")
        world.busy = {}
        world.pass_time(60)
        assert world.updates() == ([1, 2] if late else [1])


def test_who_joins_late_takes_part_only_if_that_was_said():
    for late in (False, True):
        world = World(document(target=Target(late=late), window=Window(end=BEGIN + 1000)), 2)
        world.decide()
        world.all_do("ACTIVATED")
        assert world.campaign.state is (State.RUNNING if late else State.FINISHED)
        world.devices[3] = Candidate(3)
        world.pass_time(10)
        assert (3 in world.members) is late
        if late:
            world.all_do("ACTIVATED")
            world.pass_time(1000)
            assert world.campaign.state is State.FINISHED


def test_groups_open_one_after_another_when_enough_succeed_and_time_has_passed():
    groups = (Group(Size(2), 3600.0), Group(Size(share=0.5)), Group())
    world = World(document(groups=groups))
    world.decide()
    assert [sum(member.group == each for member in world.members.values()) for each in range(3)] == [2, 5, 3]
    assert len(world.updates()) == 2
    decision = world.all_do("ACTIVATED")
    assert decision.deadline == world.now + 3600.0
    world.pass_time(3599)
    assert len(world.updates()) == 2
    world.pass_time(1)
    assert (len(world.updates()), world.campaign.group) == (7, 1)
    world.all_do("ACTIVATED")
    assert len(world.updates()) == 10
    assert world.events == ["running", "group 2 opens: 5 devices", "group 3 opens: 3 devices"]


def test_a_gate_that_cannot_open_any_more_pauses_the_campaign_and_a_second_try_opens_it():
    world = World(document(groups=(Group(Size(2)), Group())))
    world.decide()
    bad, good = world.updates()
    world.tell(good, "ACTIVATED")
    world.all_do("FAILED", [bad], error="UpdateError", text="device says no")
    assert world.campaign.state is State.PAUSED
    assert world.campaign.reason == "group 1 has ended, 1 of 2 succeeded, and 100 % are needed"
    world.members[bad] = replace(world.members[bad], at=At.WAITING, tries=0, result="")
    world.campaign = replace(world.campaign, state=State.RUNNING)
    world.decide()
    world.all_do("ACTIVATED", [bad])
    assert len(world.updates()) == 11


def test_groups_that_do_not_take_all_leave_the_rest_alone():
    world = World(document(groups=(Group(Size(2)), Group(Size(3)))))
    world.decide()
    skipped = [member for member in world.members.values() if member.at is At.SKIPPED]
    assert {member.reason for member in skipped} == {"no group has room for it"}
    assert len(skipped) == 5


def test_it_stops_at_the_threshold_and_takes_back_what_is_not_activated():
    world = World(document(gate=Gate(1.0, Stop(3, 0.05)), pace=Pace(at_once=5)))
    world.decide()
    working = world.updates()
    world.tell(working[0], "ACTIVATING")
    for device in working[2:4]:
        world.tell(device, "FAILED", "UpdateError", "boom")
    world.decide()
    assert world.campaign.state is State.RUNNING
    orders = len(world.updates())
    world.tell(working[4], "FAILED", "UpdateError", "boom")
    world.decide()
    assert world.campaign.state is State.STOPPED
    assert world.campaign.reason == "3 of 3 devices that have ended have failed"
    assert len(world.updates()) == orders
    taken_back = {posting.device for _, posting in world.posted if posting.verb == "cancel"}
    assert taken_back == {device for device, each in world.members.items() if each.at in UNDER_WAY} - {working[0]}
    for device in taken_back:
        world.tell(device, "FAILED", "PolicyError", "the order was taken back")
    world.all_do("ACTIVATED", [working[0]])
    assert (world.at(At.HEALTHY), world.at(At.CANCELLED)) == ({working[0]}, taken_back)
    world.pass_time(10**6)
    assert len(world.updates()) == orders


def test_an_order_to_activate_that_waits_for_the_server_is_taken_back_as_well():
    world = World(document(activation=Activation("command")), 3)
    world.decide()
    world.all_do("READY")
    world.campaign = replace(world.campaign, may_activate=True)
    world.decide()
    assert world.verbs() == {"update": 3, "activate": 3}
    world.tell(1, "ACTIVATING")  # it was told; the others' orders wait
    world.campaign = replace(world.campaign, state=State.ABORTED)
    world.decide()
    assert {posting.device for _, posting in world.posted if posting.verb == "cancel"} == {2, 3}
    world.tell(2, "FAILED", "PolicyError", "the order was taken back")
    world.tell(3, "ACTIVATED")  # that came first
    world.decide()
    assert (world.at(At.CANCELLED), world.at(At.HEALTHY)) == ({2}, {3})
    world.pass_time(10**5)
    assert world.at(At.UNANSWERED) == {1}


def test_what_is_taken_back_waits_for_room_in_the_mailbox():
    world = World(document(), 10)
    world.decide()
    world.campaign, taken_back = replace(world.campaign, state=State.ABORTED), set()
    for _ in range(3):
        decision = decide(
            *(world.document, world.campaign, world.members), Facts(world.devices, world.outcomes, room=4), world.now
        )
        assert len(decision.postings) <= 4
        taken_back |= {posting.device for posting in decision.postings}
        world.members = world.members | decision.changed
    assert taken_back == set(world.devices)


def test_devices_that_sleep_do_not_stop_it_and_those_that_fall_silent_on_activation_do():
    for activating, state in ((False, State.FINISHED), (True, State.STOPPED)):
        world = World(document(gate=Gate(1.0, Stop(3, 0.05))), 4)
        world.decide()
        if activating:
            world.all_do("ACTIVATING")
        world.all_do("UNANSWERED", error="UnansweredError")
        assert (world.campaign.state, len(world.at(At.UNANSWERED))) == (state, 4)


def test_tries_with_growing_pauses():
    world = World(document(gate=NO_STOP, pace=Pace(tries=3, pause=600.0)), 1)
    world.decide()
    assert world.all_do("FAILED", error="UpdateError", text="no space").deadline == world.now + 600
    assert (world.members[1].at, world.members[1].reason) == (At.WAITING, "no space")
    world.pass_time(600)
    assert world.all_do("UNANSWERED", error="UnansweredError").deadline == world.now + 1200
    world.pass_time(1199)
    assert len(world.updates()) == 2
    world.pass_time(1)
    world.all_do("FAILED", error="UpdateError", text="no space")
    assert (world.members[1].at, len(world.updates()), world.campaign.state) == (At.FAILED, 3, State.FINISHED)


def test_an_order_that_could_not_be_given_skips_the_device_and_a_lost_one_is_unanswered():
    world = World(document(), 2)
    world.decide()
    world.tell(1, "FAILED", "PolicyError", "1 is not joined")
    world.tell(2, "FAILED", "lost", "its result is not kept any more")
    world.decide()
    assert (world.members[1].at, world.members[1].reason) == (At.SKIPPED, "1 is not joined")
    assert world.members[2].at is At.UNANSWERED


def test_a_rate_and_a_number_at_once():
    world = World(document(pace=Pace(per_minute=3, at_once=5)))
    assert (world.decide().deadline, len(world.updates())) == (BEGIN + 60, 3)
    world.pass_time(60)
    assert len(world.updates()) == 5
    world.all_do("ACTIVATED", world.updates()[:1])
    assert len(world.updates()) == 6
    world.pass_time(59)
    world.all_do("ACTIVATED")
    assert len(world.updates()) == 6
    world.pass_time(1)
    assert len(world.updates()) == 9


def test_a_clock_that_is_set_in_a_window_neither_stops_it_nor_orders_twice():
    window = Window(daily=Daily.read("12:00-14:00"), zone="UTC")
    world = World(document(pace=Pace(per_minute=3), window=window), 12)
    world.decide()
    assert len(world.updates()) == 3
    world.pass_time(-1800)  # before the window, and before what was ordered
    assert len(world.updates()) == 3
    world.pass_time(1800)
    assert len(world.updates()) == 3  # the same minute again
    world.pass_time(3600)
    assert len(world.updates()) == 6
    world.pass_time(-1800)  # within the window: the orders of the future are none of this minute
    assert len(world.updates()) == 9
    world.pass_time(86400)
    assert len(world.updates()) == len(set(world.updates())) == 12


@pytest.mark.parametrize("lie", [10**18 - 1, 43])
def test_a_device_that_claims_a_newer_version_is_left_out_and_named_and_harms_nobody_else(lie):
    world = World(document(target=Target(late=True), window=Window(end=BEGIN + 10**6)), 3)
    world.devices[2] = world.devices[2]._replace(version=lie)
    world.decide()
    assert (sorted(world.updates()), world.members[2].at) == ([1, 3], At.SKIPPED)
    assert world.members[2].reason == f"it has version {shown_version(lie)}"
    world.all_do("ACTIVATED")
    assert world.at(At.HEALTHY) == {1, 3}
    world.devices[2] = world.devices[2]._replace(version=41)
    world.pass_time(10)
    assert world.updates()[2:] == [2]


def test_a_device_that_says_it_has_activated_what_it_was_not_told_to_counts_by_its_own_word_alone():
    world = World(document(activation=Activation("command")), 2)
    world.decide()
    world.all_do("READY", [1])
    world.tell(2, "ACTIVATED")
    world.decide()
    assert (world.at(At.HEALTHY), world.at(At.READY)) == ({2}, {1})
    assert world.verbs() == {"update": 2}


def test_it_begins_when_it_is_approved_and_its_time_has_come():
    world = World(document(approval=Approval(2), window=Window(start=BEGIN + 100)), state=State.AWAITING_APPROVAL)
    world.decide()
    world.campaign = replace(world.campaign, approvals=(("ann", BEGIN),))
    world.decide()
    assert world.campaign.state is State.AWAITING_APPROVAL
    world.campaign = replace(world.campaign, approvals=(("ann", BEGIN), ("bob", BEGIN)))
    assert world.decide().deadline == BEGIN + 100
    assert (world.campaign.state, world.updates()) == (State.SCHEDULED, [])
    world.pass_time(100)
    assert len(world.updates()) == 10


@pytest.mark.parametrize("then", ["stop ordering", "cancel"])
def test_at_its_end_nothing_more_is_ordered(then):
    world = World(document(pace=Pace(at_once=2), window=Window(end=BEGIN + 100, then=then)))
    world.decide()
    world.pass_time(100)
    assert world.campaign.state is State.EXPIRED
    assert world.campaign.reason == "its end, 2026-03-28T12:01:40+00:00, has come"
    assert len(world.at(At.CANCELLED)) == 8
    assert world.verbs() == {"update": 2} | ({"cancel": 2} if then == "cancel" else {})
    world.all_do("ACTIVATED")
    assert len(world.at(At.HEALTHY)) == 2  # what it says counts, whatever was wanted


def test_firmware_is_fetched_at_any_time_and_activated_in_the_window_of_each_device():
    window = Window(daily=Daily.read("02:00-05:00"), zone="device")
    world = World(document(window=window, activation=Activation("window")), 0)
    for device, place in ((1, "Europe/Berlin"), (2, "America/New_York"), (3, "Nowhere/Nowhere")):
        world.devices[device] = Candidate(device, tags={"zone": place})
    world.decide()
    assert (sorted(world.updates()), world.members[3].at) == ([1, 2], At.SKIPPED)
    assert "time zone is not known" in world.members[3].reason
    berlin = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()  # 03:00: 02:00 is left out this night
    assert world.all_do("READY").deadline == berlin
    world.pass_time(berlin - world.now - 1)
    assert world.verbs() == {"update": 2}
    world.pass_time(1)
    assert [posting.device for _, posting in world.posted if posting.verb == "activate"] == [1]
    new_york = datetime(2026, 3, 29, 6, tzinfo=UTC).timestamp()
    world.all_do("ACTIVATED", [1])
    world.pass_time(new_york - world.now)
    assert world.verbs() == {"update": 2, "activate": 2}


def test_without_two_phases_all_happens_in_the_window_and_what_is_late_waits_for_the_next():
    window = Window(daily=Daily.read("02:00-05:00"), zone="UTC")
    world = World(document(window=window, pace=Pace(timeout=7200.0)), 2)
    assert world.decide().deadline == BEGIN + 14 * 3600
    world.pass_time(14 * 3600)
    world.pass_time(2 * 3600)
    assert world.verbs() == {"update": 2, "cancel": 2}  # nobody has fetched it in time
    for device in (1, 2):
        world.tell(device, "FAILED", "PolicyError", "the order was taken back")
    world.decide()
    assert len(world.at(At.UNANSWERED)) == 2
    world = World(document(window=window, pace=Pace(timeout=7200.0)), 1)
    world.pass_time(16.5 * 3600)
    world.now += 3600
    assert world.all_do("READY").deadline == BEGIN + 38 * 3600
    assert world.verbs() == {"update": 1}
    world.pass_time(20.5 * 3600)
    assert world.verbs() == {"update": 1, "activate": 1}
    assert world.pass_time(7200).changed[1].reason == "it was told to activate and fell silent"
    world.all_do("ACTIVATED", [1])
    assert world.at(At.HEALTHY) == {1}  # late, and true


def test_the_word_to_activate_ends_with_the_window_and_is_given_again_in_the_next():
    world = World(document(window=Window(daily=Daily.read("12:00-12:10"), zone="UTC"), pace=Pace(timeout=900.0)), 1)
    world.decide()
    world.now += 60.0
    decision = world.all_do("READY")
    [first] = decision.postings
    assert (first.verb, first.lifetime) == ("activate", 540.0)
    world.tell(1, "ACTIVATING")
    assert world.decide().deadline == BEGIN + 600.0
    assert world.pass_time(540.0).postings == ()
    assert world.decide().deadline == BEGIN + 86400.0
    world.pass_time(3600.0)  # longer than a device may take, but it was not to do anything
    assert world.at(At.READY) == {1}
    world.now = BEGIN + 86400.0
    [second] = world.decide().postings
    assert (second.verb, second.about, second.lifetime) == ("activate", first.about, 600.0)
    assert second.id != first.id
    world.all_do("ACTIVATED")
    assert (world.at(At.HEALTHY), world.campaign.state) == ({1}, State.FINISHED)


def test_who_falls_silent_while_the_window_is_open_is_given_up():
    world = World(document(window=Window(daily=Daily.read("12:00-14:00"), zone="UTC"), pace=Pace(timeout=900.0)), 1)
    world.decide()
    world.all_do("READY")
    world.all_do("ACTIVATING")
    world.pass_time(900.0)
    assert world.at(At.UNANSWERED) == {1}


def test_activation_at_a_command():
    world = World(document(activation=Activation("command")), 2)
    world.decide()
    world.all_do("READY")
    world.pass_time(10**5)
    assert world.verbs() == {"update": 2}
    world.campaign = replace(world.campaign, may_activate=True)
    world.decide()
    assert world.verbs() == {"update": 2, "activate": 2}


def test_a_device_that_is_gone_or_has_it_by_now_is_skipped_when_its_turn_comes():
    world = World(document(pace=Pace(at_once=1)), 3)
    world.decide()
    [first] = world.updates()
    gone, newer = (device for device in world.devices if device != first)
    del world.devices[gone]
    world.devices[newer] = world.devices[newer]._replace(version=42)
    world.all_do("ACTIVATED")
    assert {world.members[gone].reason, world.members[newer].reason} == {
        "nothing is known about it any more",
        "it has version 42",
    }
    assert world.campaign.state is State.FINISHED


def test_what_is_kept_is_read_again():
    member = Member(1, At.READY, 5.0, "x", 2, 1, 1.0, 2.0, 3.0, True, True, "cancelled", "failed")
    assert Member.load(member.dump()) == member
    assert Member.load(Member(0).dump()) == Member(0)
    campaign = Campaign("k", State.PAUSED, 1.0, "ann", "why", 0.5, (("bob", 2.0),), True, 1, 3.0, True)
    assert Campaign.load(campaign.dump()) == campaign


# --- whatever happens


SIZES = st.one_of(
    st.integers(1, 4).map(Size), st.sampled_from([0.1, 0.25, 0.5, 1.0]).map(lambda share: Size(share=share))
)
HOLDS = st.sampled_from([0.0, 30.0, 600.0])


@st.composite
def documents(draw):
    when = draw(st.sampled_from(["at once", "window", "command"]))
    daily = Daily.read("14:00-15:30") if when == "window" or draw(st.booleans()) else None
    return document(
        target=Target(late=draw(st.booleans()), share=draw(st.sampled_from([1.0, 0.7]))),
        groups=tuple(draw(st.lists(st.builds(Group, SIZES, HOLDS), min_size=1, max_size=3))),
        gate=Gate(
            draw(st.sampled_from([0.5, 0.8, 1.0])),
            Stop(draw(st.integers(1, 4)), draw(st.sampled_from([0.0, 0.2, 0.5]))),
        ),
        pace=Pace(
            draw(st.none() | st.integers(1, 4)),
            draw(st.none() | st.integers(1, 4)),
            draw(st.sampled_from([600.0, 7200.0])),
            draw(st.integers(1, 3)),
            60.0,
        ),
        window=Window(
            draw(st.none() | st.sampled_from([BEGIN + 300])),
            draw(st.none() | st.sampled_from([BEGIN + 20_000])),
            draw(st.sampled_from(["stop ordering", "cancel"])),
            daily,
            "UTC" if daily else "",
        ),
        activation=Activation(when, draw(st.booleans())),
    )


ANSWERS = ["READY", "ACTIVATING", "ACTIVATED", "FAILED", "UnansweredError", "PolicyError", "told", "lost"]
ACTS = st.one_of(
    st.tuples(st.just("time"), st.sampled_from([1.0, 30.0, 59.0, 60.0, 600.0, 3000.0, 7200.0])),
    st.tuples(st.just("deadline"), st.none()),
    st.tuples(st.just("answer"), st.tuples(st.integers(0, 11), st.sampled_from(ANSWERS))),
    st.tuples(st.just("answers"), st.sampled_from(["READY", "ACTIVATED"])),
    st.tuples(st.just("state"), st.sampled_from([State.PAUSED, State.RUNNING, State.ABORTED])),
    st.tuples(st.just("join"), st.integers(20, 24)),
    st.tuples(st.just("leave"), st.integers(1, 12)),
    st.tuples(st.just("busy"), st.integers(1, 12)),
    st.tuples(st.just("activate"), st.none()),
)


def answer(world, device, word):
    match word:
        case "READY" | "ACTIVATING":
            world.tell(device, word)
        case "ACTIVATED":
            world.tell(device, word)
        case "told":
            world.tell(device, "ACTIVATING", over=True)
        case "FAILED":
            world.tell(device, word, "UpdateError", "boom")
        case _:
            world.tell(device, "FAILED", word, word)


def succeeded(world, group):
    reached = {At.HEALTHY} if world.document.activation.confirm else {At.HEALTHY, At.ACTIVATED}
    inside = [each for each in world.members.values() if each.group == group]
    inside = [each for each in inside if each.at not in (At.SKIPPED, At.CANCELLED)]
    return SimpleNamespace(good=sum(each.at in reached for each in inside), all=len(inside))


@settings(deadline=None, max_examples=300)
@given(documents(), st.integers(1, 12), st.lists(ACTS, max_size=40))
def test_whatever_happens_the_limits_hold(document, size, acts):
    world = World(document, size)
    decision = world.decide()
    over = {}  # orders that have ended, which say nothing else any more
    for act, value in acts:
        before, state, open_before = dict(world.members), world.campaign.state, world.campaign.group
        posted_before = len(world.posted)
        followed = [device for device, each in world.members.items() if each.follows]
        match act:
            case "time":
                world.now += value
            case "deadline" if decision.deadline is not None:
                world.now = decision.deadline
            case "answer" if followed:
                device = followed[value[0] % len(followed)]
                if world.orders[device] not in over:
                    answer(world, device, value[1])
            case "answers":
                for device in followed:
                    if world.orders[device] not in over:
                        answer(world, device, value)
            case "state" if state not in OVER and state is not State.SCHEDULED:
                world.campaign = replace(world.campaign, state=value)
            case "join":
                world.devices[value] = Candidate(value)
            case "leave":
                world.devices.pop(value, None)
            case "busy":
                world.busy[value] = "other"
            case "activate":
                world.campaign = replace(world.campaign, may_activate=True)
        over |= {identity: told for identity, told in world.outcomes.items() if told.over}
        acted = world.campaign.state
        decision = world.decide()
        new = [posting for _, posting in world.posted[posted_before:]]
        check_limits(world, before, new)
        check_gates(world, open_before)
        if acted is State.PAUSED or acted in OVER:
            assert not [each for each in new if each.verb != "cancel"]
        if state in OVER:
            assert world.campaign.state is state
        for device, member in before.items():
            if member.at in (At.HEALTHY, At.ACTIVATED):
                assert world.members[device].at is member.at


def check_limits(world, before, new):
    pace = world.document.pace
    updates = [posting.device for posting in new if posting.verb == "update"]
    assert len(set(updates)) == len(updates)
    for device in updates:
        assert device not in before or before[device].at not in UNDER_WAY | ENDED or before[device].at is At.SKIPPED
        assert device in world.devices
        assert device not in world.busy
        assert world.members[device].group <= world.campaign.group
    if pace.at_once is not None:
        assert sum(each.at in UNDER_WAY for each in world.members.values()) <= pace.at_once
    times = [at for at, posting in world.posted if posting.verb == "update"]
    if pace.per_minute is not None:
        assert all(sum(at - 60.0 < other <= at for other in times) <= pace.per_minute for at in times)
    tries = Counter(posting.device for _, posting in world.posted if posting.verb == "update")
    assert all(number <= pace.tries for number in tries.values())
    window, now = world.document.window, world.now
    for posting in new:
        held = posting.verb == "activate" or world.document.activation.when == "at once"
        if posting.verb != "cancel" and held and window.daily is not None:
            assert 14.0 <= now % 86400.0 / 3600.0 < 15.5
        if posting.verb != "cancel":
            assert (window.start or 0.0) <= now < (window.end or float("inf"))
        if posting.verb == "activate" and world.document.activation.when == "command":
            assert world.campaign.may_activate


def check_gates(world, open_before):
    """Who came in after a group had opened may change its share, but not what was open."""
    for group in range(open_before, world.campaign.group):
        share = succeeded(world, group)
        assert share.good >= world.document.gate.success * share.all - 1e-9
