"""Which clock deadlines go by."""

import time

import pytest

from srup.agent.localtime import LocalTime
from srup.simulation import Clock

pytestmark = pytest.mark.backend

HOUR = 3600.0


class Set:
    """A clock that somebody sets, without a monotonic one beside it."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


def test_the_time_of_the_system_comes_with_its_monotonic_clock(monkeypatch):
    local = LocalTime(time.time)
    assert abs(local() - time.time()) < HOUR
    before = local()
    monkeypatch.setattr(local, "unix", lambda: time.time() - 2 * HOUR)  # as if it was set back
    assert local() >= before
    assert -3 * HOUR < local.lead < -HOUR


def test_a_clock_with_a_monotonic_one_may_be_set_ahead_and_back():
    world = Clock()
    clock = Clock(ahead_of=world, skew=5.0)
    local = LocalTime(clock)
    assert (local(), local.lead) == (clock(), 0.0)
    for skew in (HOUR, -HOUR, 5.0):
        clock.skew = skew
        world.now += 10.0
        assert local() == world() + 5.0
        assert local.lead == skew - 5.0


def test_a_process_that_was_held_up_between_two_looks_does_not_take_the_clock_for_set():
    world = Clock()
    pauses = [HOUR, 0.0]

    class Slow:
        def __call__(self):
            now = world()
            world.now += pauses.pop(0) if pauses else 0.0
            return now

        def monotonic(self):
            return world.monotonic()

    pauses.insert(0, 0.0)  # as it begins
    assert LocalTime(Slow()).lead == 0.0


def test_it_begins_with_unix_time():
    world = Clock()
    clock = Clock(ahead_of=world)
    local = LocalTime(clock)
    clock.skew = HOUR
    local.begin()
    assert (local(), local.lead) == (clock(), 0.0)
    clock.skew = 0.0
    assert local.lead == -HOUR


def test_a_clock_alone_is_followed_and_goes_on_when_it_is_set_back():
    clock = Set()
    local = LocalTime(clock)
    clock.now += 10.0
    assert (local(), local.lead) == (1_010.0, 0.0)
    clock.now -= HOUR
    assert (local(), local.lead) == (1_010.0, -HOUR)
    clock.now += 10.0
    assert (local(), local.lead) == (1_020.0, -HOUR)


def test_the_clock_of_a_world_goes_on_when_it_is_set_back():
    clock = Clock()
    before = clock.monotonic()
    clock.now -= HOUR
    assert clock.monotonic() == before
    clock.now += 1.0
    assert clock.monotonic() == before + 1.0
