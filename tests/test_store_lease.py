"""Leases without Redis: who should hold what, and a fleet of workers on a clock that the test moves."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup import LeaseLostError, StoreError
from srup.store.lease import Leases, share
from srup.store.partition import PARTITIONS, partition_of

TTL = 15.0

# --- partitions


def test_a_device_stays_in_its_partition():
    """Stored state depends on these numbers: SplitMix64's finalizer, modulo 64."""
    assert [partition_of(each) for each in (0, 1, 2, 3, 0xD1, (1 << 64) - 1)] == [0, 37, 10, 48, 50, 59]


@pytest.mark.parametrize("step", [1, 2, 64, 1 << 32])
@pytest.mark.parametrize("partitions", [7, 64])
def test_ids_that_follow_one_another_are_spread_evenly(step, partitions):
    counts = Counter(partition_of(0xD000 + step * each, partitions) for each in range(1000 * partitions))
    assert len(counts) == partitions
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


# --- the decision

names = st.sets(st.sampled_from("abcdefgh"), min_size=1)


@given(data=st.data(), workers=names, partitions=st.integers(1, 40))
def test_one_plan_for_all_that_ends(data, workers, partitions):
    """From any view: no two take the same, nobody takes what is held, and carried out twice it is fair and rests."""
    holder = st.one_of(st.none(), st.sampled_from([*sorted(workers), "dead"]))
    found = data.draw(st.lists(holder, min_size=partitions, max_size=partitions))
    holders = {number: each for number, each in enumerate(found) if each is not None}
    for _ in range(2):
        plans = {each: share(each, workers, holders, partitions) for each in workers}
        taken = [number for plan in plans.values() for number in plan.acquire]
        assert len(taken) == len(set(taken))
        assert not set(taken) & holders.keys()
        for each, plan in plans.items():
            assert all(holders[number] == each for number in plan.release)
        # What the dead held ends meanwhile.
        holders = {number: each for number, each in holders.items() if each != "dead"}
        for each, plan in plans.items():
            for number in plan.release:
                del holders[number]
            holders.update(dict.fromkeys(plan.acquire, each))
    plans = {each: share(each, workers, holders, partitions) for each in workers}
    for each, plan in plans.items():
        holders.update(dict.fromkeys(plan.acquire, each))
    assert holders.keys() == set(range(partitions))
    counts = Counter(holders.values())
    assert {counts[each] for each in workers} <= {partitions // len(workers), -(-partitions // len(workers))}
    assert all(share(each, workers, holders, partitions) == (set(), set()) for each in workers)


def test_nobody_gives_up_more_than_the_newcomer_needs():
    holders = {number: "ab"[number % 2] for number in range(PARTITIONS)}
    plans = {each: share(each, "abc", holders, PARTITIONS) for each in "abc"}
    assert sorted(len(plan.release) for plan in plans.values()) == [0, 10, 11]


def test_the_odd_ones_stay_where_they_are():
    holders = dict(enumerate("c" * 22 + "a" * 21 + "b" * 21))
    assert all(share(each, "abc", holders, PARTITIONS) == (set(), set()) for each in "abc")


# --- a fleet, its clock and an arbiter in memory


class Shelf:
    """What Redis does for leases, on the clock of the test."""

    def __init__(self, clock, partitions):
        self.clock = clock
        self.partitions = partitions
        self.workers = {}
        self.leases = {}  # partition: (token, when it ends)
        self.epochs = Counter()
        self.away = None

    def _ask(self):
        if self.away:
            raise StoreError(self.away)
        self.workers = {each: end for each, end in self.workers.items() if end > self.clock()}
        self.leases = {each: (token, end) for each, (token, end) in self.leases.items() if end > self.clock()}

    def register(self, worker, ttl):
        self._ask()
        self.workers[worker] = self.clock() + ttl
        return list(self.workers)

    def renew(self, leases, ttl):
        self._ask()
        for partition, token in leases.items():
            if self.leases.get(partition, ("", 0))[0] == token:
                self.leases[partition] = token, self.clock() + ttl
        return [self.leases.get(each, (None, 0))[0] for each in range(self.partitions)]

    def acquire(self, wanted, worker, ttl):
        self._ask()
        epochs = []
        for partition in wanted:
            if partition in self.leases:
                epochs.append(0)
            else:
                self.epochs[partition] += 1
                epochs.append(self.epochs[partition])
                self.leases[partition] = f"{worker}:{self.epochs[partition]}", self.clock() + ttl
        return epochs

    def release(self, leases):
        self._ask()
        for partition, token in leases:
            if self.leases.get(partition, ("", 0))[0] == token:
                del self.leases[partition]

    def retire(self, worker):
        self._ask()
        self.workers.pop(worker, None)


class Worker:
    """Steps every third of a lease, serves what it holds, hands over what it is asked to."""

    def __init__(self, fleet, number):
        self.leases = Leases(None, 0x5E, worker=f"w{number}", ttl=TTL, arbiter=fleet.shelf, clock=fleet.clock)
        self.due = fleet.now
        self.stopped = False

    def step(self, now):
        self.due = now + self.leases.period
        step = self.leases.step()
        for lease in step.release:
            self.leases.release(lease)
        return step


class Fleet:
    def __init__(self, partitions=16):
        self.now = 1000.0
        self.shelf = Shelf(self.clock, partitions)
        self.workers = []
        self.made = 0

    def clock(self):
        return self.now

    def join(self):
        self.workers.append(Worker(self, self.made))
        self.made += 1
        return self.workers[-1]

    def pass_time(self, seconds):
        """Let time go by, step by step; at every moment nobody may hold what another one holds."""
        end = self.now + seconds
        while True:
            due = [each for each in self.workers if not each.stopped and each.due <= end]
            if not due:
                break
            first = min(due, key=lambda each: each.due)
            self.now = max(self.now, first.due)
            first.step(self.now)
            self.check()
        self.now = end
        self.check()

    def held(self):
        return Counter(lease.partition for worker in self.workers for lease in worker.leases.held)

    def check(self):
        assert all(count == 1 for count in self.held().values())


EVENTS = ["join", "leave", "crash", "stop", "go on"]


@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 7), st.floats(0, 2 * TTL)), max_size=25))
def test_any_history_ends_with_one_live_holder_each(events):
    """Two lease periods after the last event; and nobody ever held what another one held."""
    fleet = Fleet()
    gone = []
    for event, which, pause in events:
        fleet.check()
        if event == "join":
            fleet.join()
        elif fleet.workers:
            worker = fleet.workers[which % len(fleet.workers)]
            if event == "leave":
                worker.leases.close()
            if event in ("leave", "crash"):
                gone.append(worker)
                fleet.workers.remove(worker)
            if event in ("stop", "go on"):
                worker.stopped = event == "stop"
        fleet.pass_time(pause)
    for worker in fleet.workers:
        worker.stopped = False
    if not fleet.workers:
        fleet.join()
    fleet.pass_time(2 * TTL)
    assert fleet.held() == dict.fromkeys(range(16), 1)
    sizes = {len(worker.leases.held) for worker in fleet.workers}
    assert max(sizes) - min(sizes) <= 1
    before = [worker.leases.held for worker in fleet.workers]
    fleet.pass_time(4 * TTL)
    assert [worker.leases.held for worker in fleet.workers] == before  # and nothing moves any more
    assert not any(worker.leases.held for worker in gone)


# --- one worker's leases


def test_a_worker_that_slept_too_long_knows_before_it_does_anything():
    fleet = Fleet()
    worker = fleet.join()
    lease = worker.step(fleet.now).gained[0]
    fleet.now += TTL - worker.leases.margin - 0.001
    lease.check()
    fleet.now += 0.001
    assert not lease.valid()
    with pytest.raises(LeaseLostError, match=f"partition {lease.partition} .epoch 1. is over"):
        lease.check()
    assert worker.leases.held == ()
    step = worker.leases.step()  # Redis would still renew it
    assert len(step.lost) == 16
    assert not lease.valid()
    assert len(worker.leases.step().gained) == 16
    assert not lease.valid()  # the new one is another


def test_the_time_counts_from_before_the_request():
    fleet = Fleet()
    worker = fleet.join()
    acquire = fleet.shelf.acquire

    def slow(*arguments):
        epochs = acquire(*arguments)
        fleet.now += 10.0  # the answer takes its time
        return epochs

    fleet.shelf.acquire = slow
    lease = worker.step(fleet.now).gained[0]
    assert lease.valid()
    fleet.now += 2.0
    assert not lease.valid()


@pytest.mark.parametrize("late", [0.2, TTL])
def test_a_renewal_that_comes_too_late_revives_nothing(late):
    fleet = Fleet()
    worker = fleet.join()
    lease = worker.step(fleet.now).gained[0]
    fleet.now += TTL - worker.leases.margin - 0.1
    renew = fleet.shelf.renew

    def slow(*arguments):
        found = renew(*arguments)
        fleet.now += late
        return found

    fleet.shelf.renew = slow
    assert lease in worker.leases.step().lost
    assert not lease.valid()


def test_redis_is_away_for_a_while():
    """Leases go on until their end, and are then told as lost although nobody can be asked."""
    fleet = Fleet()
    worker = fleet.join()
    worker.step(fleet.now)
    fleet.shelf.away = "no answer"
    fleet.now += worker.leases.period
    step = worker.leases.step()
    assert str(step.error) == "no answer"
    assert not step.lost
    assert len(worker.leases.held) == 16
    fleet.now += TTL
    step = worker.leases.step()
    assert step.error is not None
    assert len(step.lost) == 16
    fleet.shelf.away = None
    assert len(worker.leases.step().gained) == 16


def test_an_acquisition_whose_answer_was_lost_does_not_stay():
    fleet = Fleet()
    worker = fleet.join()
    acquire = fleet.shelf.acquire

    def cut(*arguments):
        return [StoreError("the link broke") for _ in acquire(*arguments)]

    fleet.shelf.acquire = cut
    step = worker.leases.step()
    assert str(step.error) == "the link broke"
    assert not step.gained
    fleet.shelf.acquire = acquire
    worker.leases.step()  # gives back what it does not know
    assert len(worker.leases.step().gained) == 16


@pytest.mark.parametrize("margin", [0.0, -1.0, 7.5, 20.0])
def test_a_margin_that_is_none(margin):
    with pytest.raises(ValueError, match="margin"):
        Leases(None, 0x5E, ttl=TTL, margin=margin, arbiter=Shelf(lambda: 0.0, 1))
