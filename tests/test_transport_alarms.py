"""Alarms: everybody is woken no later than asked, and nobody twice for one asking."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from srup.transport.alarms import Alarms


def test_the_earliest_time_counts():
    alarms = Alarms()
    alarms.set("a", 5.0)
    alarms.set("a", 3.0)
    alarms.set("a", 4.0)
    assert alarms.next() == 3.0
    assert alarms.due(2.9) == []
    assert alarms.due(10.0) == ["a"]
    assert alarms.due(10.0) == []


def test_never():
    alarms = Alarms()
    alarms.set("a", inf)
    assert (alarms.next(), alarms.due(1e300)) == (inf, [])


steps = st.lists(st.one_of(st.tuples(st.integers(0, 4), st.integers(0, 20)), st.integers(0, 20)), max_size=40)


@given(steps)
def test_like_a_table_that_is_searched(steps):
    alarms, table = Alarms(), {}
    for step in steps:
        if isinstance(step, tuple):
            sleeper, when = step
            alarms.set(sleeper, float(when))
            table[sleeper] = min(when, table.get(sleeper, inf))
        else:
            woken = alarms.due(float(step))
            assert [table[sleeper] for sleeper in woken] == sorted(table[sleeper] for sleeper in woken)
            assert set(woken) == {sleeper for sleeper, when in table.items() if when <= step}
            for sleeper in woken:
                del table[sleeper]
            assert alarms.next() <= min(table.values(), default=inf)
