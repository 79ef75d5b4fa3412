"""The queue of values that wait for their partners."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srup import PolicyError
from srup.agent.dataqueue import MAX_WAITING, DataQueue, Value, Waiting

VALUE = Value("t", b"1")


class Plain:
    """The same, as simple as can be."""

    def __init__(self):
        self.waiting = []

    def of(self, partner):
        return [each for each in self.waiting if each.partner == partner]

    def expire(self, now):
        expired = [each for each in self.waiting if each.expiry <= now]
        self.waiting = [each for each in self.waiting if each.expiry > now]
        return expired


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1 << 32))
def test_what_expires_is_what_waits_and_is_due(seed):
    random, queue, plain, now = Random(seed), DataQueue(), Plain(), 0.0
    for number in range(300):
        partner = random.randrange(3)
        match random.choice(["add", "add", "first", "time", "drop"]):
            case "add":
                waiting = Waiting(number, partner, VALUE, now + random.choice([1.0, 5.0, 20.0]))
                queue.add(waiting)
                plain.waiting.append(waiting)
            case "first" if plain.of(partner):
                assert queue.first(partner) == plain.of(partner)[0]
                queue.drop_first(partner)
                plain.waiting.remove(plain.of(partner)[0])
            case "drop" if random.random() < 0.1:
                assert queue.drop(partner) == plain.of(partner)
                plain.waiting = [each for each in plain.waiting if each.partner != partner]
            case "time":
                now += random.choice([0.5, 3.0])
                assert sorted(queue.expire(now)) == sorted(plain.expire(now))
        assert len(queue) == len(plain.waiting)
        assert queue.deadline() == min((each.expiry for each in plain.waiting), default=None)
        assert queue.oldest() == min((each.number for each in plain.waiting), default=None)
        assert set(queue.awake(now)) <= {each.partner for each in plain.waiting}


def test_what_was_sent_long_before_it_expires_takes_no_memory():
    queue = DataQueue()
    for number in range(10_000):
        queue.add(Waiting(number, 1, VALUE, 1e9))
        queue.drop_first(1)
    assert len(queue._expiries) < 100
    assert queue.deadline() is None


def test_values_that_expire_one_by_one_do_not_move_the_others():
    """Else each of them costs as much as there are."""
    queue = DataQueue()
    for number in range(100):
        for partner in (1, 2):
            queue.add(Waiting(2 * number + partner, partner, VALUE, float(number)))
    before = {partner: queue._queues[partner] for partner in (1, 2)}
    for number in range(99):
        assert len(queue.expire(float(number))) == 2
        assert all(queue._queues[partner] is deque for partner, deque in before.items())


def test_a_full_queue_refuses_no_other_partner():
    queue = DataQueue()
    for number in range(MAX_WAITING // 3):
        queue.add(Waiting(number, 1, VALUE, 1.0))
    for number in range(MAX_WAITING // 3, MAX_WAITING // 3 + 10):
        with pytest.raises(PolicyError, match="queue full"):
            queue.add(Waiting(number, 1, VALUE, 1.0))
        queue.add(Waiting(number, 2, VALUE, 1.0))
