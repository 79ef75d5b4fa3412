"""The replay window against a naive model: a set of everything that was accepted."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from srup.errors import ReplayError
from srup.replay import WINDOW_SIZE, ReplayWindow

LAST = 2**64 - 1


class Model:
    """Remembers everything, decides in one line."""

    def __init__(self):
        self.seen = set()

    def accepts(self, sequence_id):
        fresh = sequence_id not in self.seen and sequence_id > max(self.seen, default=0) - WINDOW_SIZE
        return sequence_id > 0 and fresh


def run(sequence_ids, window=None, model=None):
    """Feed both, compare every verdict and the whole state; a refused id changes nothing."""
    window, model = window or ReplayWindow(), model or Model()
    for sequence_id in sequence_ids:
        before = (window.highest, window.seen)
        expected = model.accepts(sequence_id)
        for act in (window.check, window.accept):
            try:
                act(sequence_id)
            except ReplayError as error:
                assert not expected, sequence_id
                assert error.sequence_id == sequence_id  # noqa: PT017 - acceptance is an outcome, too
            else:
                assert expected, sequence_id
            if act == window.check or not expected:
                assert (window.highest, window.seen) == before
        if expected:
            model.seen.add(sequence_id)
    assert window.highest == max(model.seen, default=0)
    assert window.seen < 1 << WINDOW_SIZE
    held = {window.highest - k for k in range(WINDOW_SIZE) if window.seen >> k & 1} - {0}
    assert held == {one for one in model.seen if one > window.highest - WINDOW_SIZE}
    return window


edges = st.sampled_from(
    [0, 1, 2, WINDOW_SIZE - 1, WINDOW_SIZE, WINDOW_SIZE + 1, 2 * WINDOW_SIZE, 2**32, LAST - WINDOW_SIZE, LAST - 1, LAST]
)


@given(st.lists(st.integers(0, 12)))
def test_small_ids_in_any_order(sequence_ids):
    run(sequence_ids)


@given(st.lists(st.one_of(edges, st.integers(0, 4 * WINDOW_SIZE), st.integers(0, LAST)), max_size=60))
@example([LAST, LAST, 1, LAST - WINDOW_SIZE, LAST - WINDOW_SIZE + 1])
@example([1, LAST])
def test_any_ids(sequence_ids):
    run(sequence_ids)


@given(st.integers(1, LAST), st.lists(st.integers(-2 * WINDOW_SIZE, 2 * WINDOW_SIZE), max_size=60))
def test_steps_from_any_start(start, steps):
    sequence_ids = [start]
    for step in steps:
        sequence_ids.append(min(LAST, max(0, sequence_ids[-1] + step)))
    run(sequence_ids)


@pytest.mark.parametrize("gap", [1, 2, WINDOW_SIZE - 1, WINDOW_SIZE, WINDOW_SIZE + 1, 2 * WINDOW_SIZE])
def test_every_id_around_a_jump(gap):
    """Everything near both edges of the window, once up and once down, after a jump of every critical width."""
    start = 3 * WINDOW_SIZE
    around = range(start + gap - WINDOW_SIZE - 2, start + gap + 2)
    run([start, start + gap, *around, *reversed(around)])
    run([start, *reversed(range(start - WINDOW_SIZE - 2, start)), start + gap, *around])


def test_the_window_is_1024_wide():
    assert WINDOW_SIZE == 1024
    window = run([5000])
    window.check(5000 - 1023)
    with pytest.raises(ReplayError, match=r"^sequence id 3976 is too old: 1024 behind the newest$"):
        window.check(5000 - 1024)
    with pytest.raises(ReplayError, match=r"^sequence id 5000 was accepted before$"):
        window.check(5000)


def test_zero_is_never_accepted():
    for window in (ReplayWindow(), run([1]), run([LAST])):
        with pytest.raises(ReplayError, match=r"^sequence id 0 is never accepted$"):
            window.accept(0)


def test_a_window_is_restored_from_its_two_numbers():
    window = run([7, 3, 9])
    again = ReplayWindow(window.highest, window.seen)
    for sequence_id in (7, 3, 9):
        with pytest.raises(ReplayError):
            again.accept(sequence_id)
    for sequence_id in (1, 2, 4, 5, 6, 8, 10):
        again.accept(sequence_id)
    assert repr(again) == "<ReplayWindow up to 10>"


def test_the_state_stays_small():
    window = run([1, LAST])
    assert window.seen == 1
    assert run(range(1, 5000)).seen == (1 << WINDOW_SIZE) - 1
