"""The keep-alive: when it asks for a sign of life, and when it gives up."""

from srup.transport.keepalive import KeepAlive, Verdict

ASK, WAIT, GIVE_UP = Verdict.ASK, Verdict.WAIT, Verdict.GIVE_UP


def verdicts(*looks):
    """What is decided at these times, 10 s being the pause: (time, heard, listens)."""
    alive = KeepAlive(10.0, 0.0)
    return [alive.check(now, heard=heard, listens=listens) for now, heard, listens in looks]


def test_it_asks_in_every_pause_and_is_content_with_anything_that_comes():
    assert verdicts((9, False, True), (10, False, True), (12, True, True), (20, False, True), (30, True, True)) == [
        WAIT,
        ASK,
        WAIT,
        ASK,
        ASK,
    ]


def test_it_gives_a_silent_broker_up_after_one_more_pause():
    assert verdicts((10, True, True), (19, False, True), (20, False, True)) == [ASK, WAIT, GIVE_UP]


def test_whoever_does_not_read_goes_on_asking():
    assert verdicts(*((10 * n, False, False) for n in range(1, 5))) == [ASK] * 4


def test_whoever_reads_again_gives_the_answer_a_whole_pause():
    looks = (10, False, True), (15, False, False), (20, False, True), (29, False, True), (30, False, True)
    assert verdicts(*looks) == [ASK, WAIT, ASK, WAIT, GIVE_UP]
