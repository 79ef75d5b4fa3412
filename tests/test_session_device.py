"""The device's end: joining, leaving, saying what it is; and a deployed server as its partner."""

import pytest

from srup import messages as m
from srup.errors import PolicyError
from srup.session import DeviceSession, Policy
from srup.session.events import (
    ActionRequested,
    ActivationRequested,
    DataRefused,
    FetchRequested,
    Identified,
    JoinAnswered,
    JoinRequested,
    Left,
    Unanswered,
    Unexpected,
    UpdateChanged,
)
from srup.tokens import parse
from srup.update import UpdateState
from srup.wire import IDENTIFICATION_RESPONSE, Status

from .session_link import (
    DEVICE,
    DIGEST,
    OTHER,
    SERVER,
    T0,
    URL,
    OldServer,
    Pair,
    bound,
    converse,
    events,
    make,
    nonce,
    sends,
    snapshot,
)


def test_a_join():
    pair = Pair()
    outputs = pair.device.join(SERVER, T0, nonce())
    [message] = sends(outputs)
    assert (type(message), message.sequence_id, message.sender_id) == (m.JoinRequest, 1, DEVICE)
    assert parse(message.token)[:3] == (DEVICE, SERVER, T0 + 300)
    assert pair.deliver(outputs) == [JoinRequested(DEVICE, message.token)]
    assert not pair.device.is_member(SERVER)
    told = pair.deliver(pair.server.answer_join(DEVICE, message.token, Status.JOIN_SUCCESS, T0))
    answered = Status.JOIN_SUCCESS
    assert told == [JoinAnswered(DEVICE, message.token, answered), JoinAnswered(SERVER, message.token, answered)]
    assert pair.device.is_member(SERVER)
    assert pair.server.is_member(DEVICE)


@pytest.mark.parametrize("status", [Status.JOIN_REFUSED, Status.JOIN_FAIL])
def test_a_join_that_is_not_granted(status):
    pair = Pair()
    assert [event.status for event in pair.join(status)] == [status, status]
    assert not pair.device.is_member(SERVER)
    assert not pair.server.is_member(DEVICE)
    with pytest.raises(PolicyError, match="not joined"):
        pair.device.data(SERVER, "x", b"", T0, nonce())


@pytest.mark.parametrize("status", [Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL])
def test_the_answer_to_another_join_decides_about_the_membership(status):
    pair = Pair().joined()
    pair.join(status)
    assert pair.device.is_member(SERVER) is pair.server.is_member(DEVICE) is (status is Status.JOIN_SUCCESS)


def test_a_join_that_nobody_answers():
    device = DeviceSession(DEVICE, [SERVER])
    [send] = device.join(SERVER, T0, nonce())
    assert events(device.tick(T0 + 299)) == []
    assert device.tick(T0 + 300) == [Unanswered(SERVER, send.message.token, m.JoinRequest)]
    late = make(m.Response, 9, SERVER, send.message.token, status=Status.JOIN_SUCCESS)
    [unexpected] = device.receive(late, T0 + 301, nonce())
    assert unexpected.why == "it answers nothing that is known"
    assert not device.is_member(SERVER)


def test_repeated_answers_to_a_join_do_not_bring_a_device_back():
    pair = Pair()
    token = pair.join()[0].token
    pair.deliver(pair.device.resign(SERVER, T0, nonce()))
    again = make(m.Response, 100, SERVER, token, status=Status.JOIN_SUCCESS)
    assert pair.device.receive(again, T0, nonce()) == []
    assert not pair.device.is_member(SERVER)


def test_resigning():
    pair = Pair().joined()
    outputs = pair.device.resign(SERVER, T0, nonce())
    token = outputs[0].message.token
    assert not pair.device.is_member(SERVER)
    assert pair.deliver(outputs) == [Left(DEVICE, token), Left(SERVER, token)]
    assert not pair.server.is_member(DEVICE)
    with pytest.raises(PolicyError, match="not joined"):
        pair.device.resign(SERVER, T0, nonce())


def test_it_is_leaving_until_all_that_it_asked_for_that_is_answered():
    """Sent away twice it asks twice, and its owner is told of the end once."""
    pair = Pair().joined()
    asked = [pair.device.leave(SERVER, T0, nonce()), pair.device.leave(SERVER, T0, nonce())]
    for outputs in asked:
        assert pair.device.is_leaving(SERVER)
        pair.deliver(outputs)
    assert not pair.device.is_leaving(SERVER)


def test_resigning_without_an_answer_ends_the_membership_all_the_same():
    pair = Pair().joined()
    [send] = pair.device.resign(SERVER, T0, nonce())
    assert events(pair.device.tick(T0 + 299)) == []
    assert pair.device.tick(T0 + 300) == [Unanswered(SERVER, send.message.token, m.ResignRequest)]
    assert not pair.device.is_member(SERVER)


# What was ordered before a membership ends, and what is ordered after it.

LEAVING = {
    "resign": lambda pair: pair.device.resign(SERVER, T0, nonce()),
    "deregister": lambda pair: pair.device.deregister(SERVER, T0, nonce()),
    "terminated": lambda pair: pair.deliver(pair.server.terminate(DEVICE, T0, nonce())),
    "deregistered": lambda pair: pair.deliver(pair.server.deregister(DEVICE, T0, nonce())),
}


@pytest.mark.parametrize("way", LEAVING)
def test_what_waits_when_a_membership_ends_is_over(way):
    pair = Pair().joined()
    action, ready = pair.action(), pair.update(hold=True)
    pair.deliver(pair.device.fetched(SERVER, ready.token, T0))
    activating = pair.update()
    pair.deliver(pair.device.fetched(SERVER, activating.token, T0))
    fetching = pair.update()
    waiting = action, fetching, activating
    assert all(pair.device.awaits(SERVER, event.token) for event in waiting)
    LEAVING[way](pair)
    assert not any(pair.device.awaits(SERVER, event.token) for event in waiting)
    decisions = [
        lambda: pair.device.answer_action(SERVER, action.token, Status.ACTION_SUCCESS, T0),
        lambda: pair.device.fetched(SERVER, fetching.token, T0),
        lambda: pair.device.activated(SERVER, activating.token, T0),
    ]
    for decision in decisions:
        with pytest.raises(PolicyError, match="does not fit: the exchange with"):
            decision()


@pytest.mark.parametrize("way", ["resign", "deregister"])
@pytest.mark.parametrize("answered", [True, False], ids=["confirmed", "not confirmed"])
def test_orders_that_arrive_after_we_left_are_not_taken(way, answered):
    pair = Pair().joined()
    sends = [
        *pair.server.action(DEVICE, 7, T0, nonce()),
        *pair.server.update(DEVICE, URL, DIGEST, T0, nonce()),
        *pair.server.identify(DEVICE, T0, nonce()),
        *pair.server.data(DEVICE, "n", b"1", T0, nonce()),
    ]
    outputs = LEAVING[way](pair)
    if answered and way == "resign":
        pair.deliver(outputs)
    for send in sends:
        [unexpected] = pair.device.receive(send.message, T0, nonce())
        assert (type(unexpected), unexpected.why) == (Unexpected, f"{SERVER:x} is not joined")


def test_a_repeated_order_is_answered_with_a_failure_when_we_come_back():
    """The server may not have heard that we left; it must not wait for what will not be done."""
    pair = Pair().joined()
    [initiate] = sends(pair.server.update(DEVICE, URL, DIGEST, T0, nonce()))
    pair.device.receive(initiate, T0, nonce())
    pair.device.resign(SERVER, T0, nonce())  # which gets lost
    pair.now += 10.0  # what was just sent is not sent again
    [changed] = events(pair.join(), UpdateChanged)  # the order comes again as soon as we are back
    assert (changed.state, changed.status) == (UpdateState.FAILED, Status.UPDATE_FAIL_FILE)


def test_a_repeated_action_is_not_done_when_we_come_back():
    pair = Pair().joined()
    [action] = sends(pair.server.action(DEVICE, 7, T0, nonce()))
    pair.device.receive(action, T0, nonce())
    pair.device.resign(SERVER, T0, nonce())  # which gets lost
    pair.now += 10.0
    with pytest.raises(PolicyError, match="no answer to repeat"):
        pair.join()  # it comes again as soon as we are back
    assert pair.device.is_member(SERVER)


def test_firmware_that_became_active_after_we_left_is_the_floor_all_the_same():
    """T12: a handler that was running when the membership ended, or the order expired, has replaced the old one."""
    for late in (False, True):
        pair = Pair().joined()
        pair.device.version_floor = 1
        first = pair.update(version=2, hold=True)
        pair.deliver(pair.device.fetched(SERVER, first.token, T0))
        second = pair.update(version=3)
        told = pair.deliver(pair.device.fetched(SERVER, second.token, T0))
        assert told[-1] == ActivationRequested(SERVER, second.token, DIGEST)
        now = T0
        if late:
            now = T0 + 90_000
            pair.device.tick(now)
        else:
            pair.device.resign(SERVER, T0, nonce())
        with pytest.raises(PolicyError, match="ACTIVATED does not fit"):
            pair.device.activated(SERVER, second.token, now)
        assert pair.device.version_floor == 3


def test_while_newer_firmware_is_being_activated_nothing_older_is_even_after_we_left():
    pair = Pair().joined()
    pair.device.version_floor = 1
    newer = pair.update(version=3)
    pair.deliver(pair.device.fetched(SERVER, newer.token, T0))
    pair.device.resign(SERVER, T0, nonce())
    pair.join()
    older = pair.update(version=2)
    told = pair.deliver(pair.device.fetched(SERVER, older.token, T0))
    assert [event.why for event in events(told, Unexpected)] == [
        "the firmware is of version 2, and by now the floor is 3"
    ]
    with pytest.raises(PolicyError):
        pair.device.activation_failed(SERVER, newer.token, T0)
    another = pair.update(version=2)  # control: the newer one was not activated after all
    told = pair.deliver(pair.device.fetched(SERVER, another.token, T0))
    assert ActivationRequested(SERVER, another.token, DIGEST) in told


def test_a_join_that_fails_to_be_renewed_for_want_of_an_answer_leaves_the_membership():
    pair = Pair().joined()
    pair.device.join(SERVER, T0, nonce())
    assert events(pair.device.tick(T0 + 300), Unanswered)
    assert pair.device.is_member(SERVER)


def test_being_terminated():
    pair = Pair().joined()
    outputs = pair.server.terminate(DEVICE, T0, nonce())
    token = outputs[0].message.token
    assert pair.deliver(outputs) == [Left(DEVICE, token), Left(SERVER, token)]
    assert pair.device.receive(make(m.TerminateCommand, 90, SERVER, token), T0, nonce()) == []
    for cls in (m.Action, m.Data, m.IdRequest, m.Initiate, m.Activate, m.TerminateCommand):
        token = bound(DEVICE)
        unexpected, *_ = pair.device.receive(make(cls, 91 + cls.layout.type, SERVER, token), T0, nonce())
        assert unexpected == Unexpected(SERVER, token, cls, "a5 is not joined")
    with pytest.raises(PolicyError, match="not joined"):
        pair.device.data(SERVER, "x", b"", T0, nonce())
    pair.join()
    assert pair.action().action_id == 7


def test_saying_what_it_is():
    pair = Pair()
    pair.join()
    [send] = pair.server.identify(DEVICE, T0, nonce())
    first, again = (
        sends(pair.device.receive(make(m.IdRequest, sequence_id, SERVER, send.message.token), T0, nonce()))[0]
        for sequence_id in (10, 11)
    )
    assert (first.data_id, first.data) == (IDENTIFICATION_RESPONSE, b"a lamp")
    assert parse(first.token)[:3] == (DEVICE, SERVER, T0 + 300)
    assert len({send.message.token, first.token, again.token}) == 3
    assert pair.server.receive(first, T0, nonce()) == [Identified(DEVICE, send.message.token, "a lamp")]


@pytest.mark.parametrize("cls", m.SCHEMA[:])
def test_only_the_devices_servers_are_heard(cls):
    device = DeviceSession(DEVICE, [SERVER])
    before = snapshot(device)
    with pytest.raises(PolicyError, match="none of this device's servers"):
        device.receive(make(cls, 1, OTHER, bound(DEVICE)), T0, nonce())
    with pytest.raises(PolicyError, match="none of this device's servers"):
        device.join(OTHER, T0, nonce())
    assert snapshot(device) == before


def test_two_servers_are_kept_apart():
    device = DeviceSession(DEVICE, [SERVER, OTHER])
    [send] = device.join(SERVER, T0, nonce())
    answer = make(m.Response, 1, OTHER, send.message.token, status=Status.JOIN_SUCCESS)
    with pytest.raises(PolicyError):
        device.receive(answer, T0, nonce())
    assert not device.is_member(SERVER)
    assert not device.is_member(OTHER)


# A deployed server: uuid tokens, one counter.


@pytest.fixture
def old():
    return OldServer(SERVER, DEVICE)


@pytest.fixture
def device(old):
    session = DeviceSession(DEVICE, [SERVER], description="a lamp")
    assert [event.status for event in converse(session, old, session.join(SERVER, T0, nonce()))] == [0x50]
    assert old.joined
    return session


def test_an_old_server_lets_a_device_in_and_hears_all_that_follows(device, old):
    converse(device, old, device.data(SERVER, "x", b"1", T0, nonce()))
    [requested] = device.receive(old.send(m.Action, action_id=3), T0, nonce())
    assert type(requested) is ActionRequested
    converse(device, old, device.answer_action(SERVER, requested.token, Status.ACTION_SUCCESS, T0))
    converse(device, old, device.data(SERVER, "x", b"2", T0, nonce()))
    converse(device, old, device.action(SERVER, 5, T0, nonce()))
    converse(device, old, device.receive(old.send(m.IdRequest), T0, nonce()))
    kinds = [type(message) for message in old.heard]
    assert kinds == [m.JoinRequest, m.Data, m.Response, m.Data, m.Action, m.Data]
    assert old.dropped == []
    # It never answers an action.
    assert [type(event) for event in events(device.tick(T0 + 10**6))] == [Unanswered]


def test_an_update_by_an_old_server(device, old):
    [requested] = device.receive(old.send(m.Initiate, url=URL, digest=DIGEST), T0, nonce())
    assert requested == FetchRequested(SERVER, requested.token, URL, DIGEST)
    told = converse(device, old, device.fetched(SERVER, requested.token, T0))
    assert told == [ActivationRequested(SERVER, requested.token, DIGEST)]
    converse(device, old, device.activated(SERVER, requested.token, T0))
    assert old.heard[-1].status == Status.ACTIVATE_SUCCESS


def test_values_that_an_old_server_refuses(device, old):
    [send] = device.data(SERVER, "x", b"1", T0, nonce())
    converse(device, old, [send])
    refusal = old.send(m.Response, send.message.token, status=Status.DATA_TYPE_UNKNOWN)
    assert device.receive(refusal, T0, nonce()) == [DataRefused(SERVER, send.message.token)]


def test_leaving_an_old_server(device, old):
    told = converse(device, old, device.resign(SERVER, T0, nonce()))
    assert [type(event) for event in told] == [Left]
    assert not old.joined
    assert not device.is_member(SERVER)


def test_a_device_that_requires_binding_is_not_for_old_servers(old):
    session = DeviceSession(DEVICE, [SERVER], Policy(require_bound_tokens=True))
    # The answer to the join repeats the device's own token, so that much works; no command does.
    assert [type(event) for event in converse(session, old, session.join(SERVER, T0, nonce()))] == [JoinAnswered]
    with pytest.raises(PolicyError, match="not bound"):
        session.receive(old.send(m.Action), T0, nonce())


def test_what_has_expired_is_not_awaited_any_more():
    pair = Pair().joined()
    action, update = pair.action(), pair.update()
    pair.device.tick(T0 + 330)
    assert pair.device.awaits(SERVER, action.token)
    pair.device.tick(T0 + 331)
    assert not pair.device.awaits(SERVER, action.token)
    assert pair.device.awaits(SERVER, update.token)
    assert not pair.device.awaits(SERVER, b"unknown")
    assert not pair.device.awaits(OTHER, update.token)
    [send] = pair.device.action(SERVER, 1, T0, nonce())
    assert not pair.device.awaits(SERVER, send.message.token)  # the server is to do it
