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
)
from srup.tokens import parse
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
    assert pair.device.is_member(SERVER)
    assert pair.deliver(outputs) == [Left(DEVICE, token), Left(SERVER, token)]
    assert not pair.device.is_member(SERVER)
    assert not pair.server.is_member(DEVICE)
    with pytest.raises(PolicyError, match="not joined"):
        pair.device.resign(SERVER, T0, nonce())


def test_resigning_without_an_answer_ends_the_membership_all_the_same():
    pair = Pair().joined()
    [send] = pair.device.resign(SERVER, T0, nonce())
    assert events(pair.device.tick(T0 + 299)) == []
    assert pair.device.is_member(SERVER)
    assert pair.device.tick(T0 + 300) == [Unanswered(SERVER, send.message.token, m.ResignRequest)]
    assert not pair.device.is_member(SERVER)


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
