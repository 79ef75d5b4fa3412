"""Joins that cross with leaving, with other joins, and with the end of their time: what the simulator found."""

import pytest

from srup import messages as m
from srup.errors import PolicyError
from srup.session import Policy
from srup.session.events import (
    ActionRequested,
    HumanJoinRequested,
    JoinAnswered,
    JoinRequested,
    JoinWithdrawn,
    Left,
    Unanswered,
    Unexpected,
)
from srup.wire import Status

from .session_link import DEVICE, SERVER, T0, Pair, events, nonce, sends


def hear(pair, end, outputs):
    return [output for message in sends(outputs) for output in end.receive(message, pair.now, nonce())]


def test_a_join_that_was_to_be_decided_when_the_device_left_lets_nobody_in():
    """A member that asks again needs nobody's word; it must not get in by that after it has left."""
    pair = Pair().joined()
    [requested] = hear(pair, pair.server, pair.device.join(SERVER, T0, nonce()))
    told = hear(pair, pair.server, pair.device.resign(SERVER, T0, nonce()))
    assert [type(event) for event in events(told)] == [JoinWithdrawn, Left]
    with pytest.raises(PolicyError, match="does not fit"):
        pair.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0)
    assert not pair.server.is_member(DEVICE)


def test_a_join_that_is_overtaken_by_the_leaving_is_refused():
    pair = Pair().joined()
    join = pair.device.join(SERVER, T0, nonce())
    hear(pair, pair.server, pair.device.resign(SERVER, T0, nonce()))
    with pytest.raises(PolicyError, match="asked anew or left"):
        hear(pair, pair.server, join)
    assert events(hear(pair, pair.server, pair.device.join(SERVER, T0, nonce())), JoinRequested)


def test_a_leaving_that_is_overtaken_by_the_next_join_ends_nothing():
    pair = Pair().joined()
    resign = pair.device.resign(SERVER, T0, nonce())
    join = pair.device.join(SERVER, T0, nonce())
    [requested] = hear(pair, pair.server, join)
    answer = pair.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0)
    hear(pair, pair.device, answer)
    late = hear(pair, pair.server, resign)
    assert [message.status for message in sends(late)] == [Status.RESIGN_SUCCESS]
    assert events(late) == []
    assert pair.server.is_member(DEVICE)
    assert pair.device.is_member(SERVER)


@pytest.mark.parametrize("leave", ["resign", "deregister"])
def test_a_join_is_not_sent_again_once_the_device_wants_out(leave):
    """A member that asks again has not been answered yet: sent again this would come after the leaving, and undo it."""
    pair = Pair().joined()
    pair.device.join(SERVER, T0, nonce())
    asked = sends(getattr(pair.device, leave)(SERVER, T0, nonce()))
    assert {type(message) for message in sends(pair.device.tick(T0 + 60))} == {type(asked[0])}


def test_an_answer_that_crosses_with_the_leaving_lets_nobody_in():
    """The server lets a member in once more that has asked to leave since: it has still to hear that."""
    pair = Pair().joined()
    [requested] = hear(pair, pair.server, pair.device.join(SERVER, T0, nonce()))
    resign = pair.device.resign(SERVER, T0, nonce())
    answer = pair.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0)
    assert hear(pair, pair.device, answer) == []
    assert not pair.device.is_member(SERVER)
    left = events(hear(pair, pair.device, hear(pair, pair.server, resign)))
    assert [type(event) for event in left] == [Left]
    assert pair.device.is_member(SERVER) is pair.server.is_member(DEVICE) is False


def test_a_leaving_is_not_sent_again_once_the_device_wants_in_again():
    pair = Pair().joined()
    pair.device.resign(SERVER, T0, nonce())
    pair.device.join(SERVER, T0, nonce())
    assert {type(message) for message in sends(pair.device.tick(T0 + 60))} == {m.JoinRequest}


def test_the_newest_answer_counts_in_whatever_order_they_come():
    pair = Pair()
    first = pair.device.join(SERVER, T0, nonce())
    second = pair.device.join(SERVER, T0, nonce())
    [one], [two] = (hear(pair, pair.server, join) for join in (first, second))
    yes = pair.server.answer_join(DEVICE, one.token, Status.JOIN_SUCCESS, T0)
    no = pair.server.answer_join(DEVICE, two.token, Status.JOIN_REFUSED, T0)
    assert [event.status for event in events(hear(pair, pair.device, no), JoinAnswered)] == [Status.JOIN_REFUSED]
    assert hear(pair, pair.device, yes) == []
    assert pair.device.is_member(SERVER) is pair.server.is_member(DEVICE) is False


def test_a_join_takes_the_place_of_the_one_before_it():
    """Otherwise each unanswered one is followed by another, and they grow without end."""
    pair = Pair()
    for _ in range(5):
        pair.device.join(SERVER, T0, nonce())
    assert len(sends(pair.device.tick(T0 + 5))) == 1
    assert len(events(pair.device.tick(T0 + 1000), Unanswered)) == 1


def test_who_leaves_does_not_report_its_joins_as_unanswered():
    pair = Pair().joined()
    pair.device.join(SERVER, T0, nonce())
    told = hear(pair, pair.device, pair.server.terminate(DEVICE, T0, nonce()))
    assert [type(event) for event in events(told)] == [Left]
    assert events(pair.device.tick(T0 + 1000), Unanswered) == []


def test_a_moderated_join_that_timed_out_is_answered_again_to_the_device_that_asks_again():
    pair = Pair(server_policy=Policy(join_lifetime=60.0))
    [asked] = sends(pair.device.join_human(SERVER, T0, nonce()))
    [requested] = pair.server.receive(asked, T0, nonce())
    assert isinstance(requested, HumanJoinRequested)
    pair.server.show_value(DEVICE, asked.token, b"sealed", T0)
    timed_out = pair.server.tick(T0 + 61)
    assert [event.status for event in events(timed_out, JoinAnswered)] == [Status.JOIN_FAIL]
    again = m.HumanJoinRequest(sequence_id=10**6, sender_id=DEVICE, token=asked.token)
    [answer] = pair.server.receive(again, T0 + 100, nonce())
    assert answer.message.status == Status.JOIN_FAIL
    pair.server.receipt(DEVICE, T0 + 100, nonce())  # the join has asked for one
    pair.server.tick(T0 + 2000)
    assert pair.server.deadline() is None


def test_a_server_that_has_not_heard_that_a_device_left_hears_it_when_it_asks_for_something():
    pair = Pair().joined()
    pair.device.resign(SERVER, T0, nonce())  # and nobody hears it
    pair.device.tick(T0 + 1000)
    pair.now = T0 + 1000
    outputs = hear(pair, pair.device, pair.server.action(DEVICE, 7, pair.now, nonce()))
    assert events(outputs, ActionRequested) == []
    assert [type(event) for event in events(outputs)] == [Unexpected]
    assert [type(event) for event in events(pair.deliver(outputs), Left)] == [Left]
    assert not pair.server.is_member(DEVICE)
    # One message tells it; a deployed server, which does not bind its tokens, hears nothing of the kind.
    assert sends(pair.device.tick(T0 + 5000)) == []
