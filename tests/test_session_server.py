"""The server's end: letting devices in and out, identification; and deployed devices as partners."""

import pytest

from srup import messages as m
from srup.errors import EncodeError, PolicyError
from srup.session import DeviceSession, Policy, ServerSession
from srup.session.events import (
    ActionRequested,
    DataReceived,
    Identified,
    JoinAnswered,
    JoinRequested,
    JoinWithdrawn,
    Left,
    Unanswered,
    Unexpected,
    UpdateChanged,
)
from srup.update import UpdateState
from srup.wire import IDENTIFICATION_RESPONSE, Status

from .session_link import (
    DEVICE,
    DIGEST,
    OTHER,
    SERVER,
    T0,
    URL,
    OldDevice,
    Pair,
    bound,
    converse,
    events,
    make,
    nonce,
    sends,
    snapshot,
)

JOIN_RESULTS = (Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL)


def incoming(server, cls, token=None, sender=DEVICE, **fields):
    """A genuine new message of a device."""
    side = server.known.peers.get(sender)
    sequence_id = 1 + (side.window.highest if side else 0)
    return make(cls, sequence_id, sender, token or bound(SERVER), **fields)


def test_a_repeated_join_asks_the_application_once_and_is_answered_again():
    server = ServerSession(SERVER)
    token = bound(SERVER)
    assert server.receive(incoming(server, m.JoinRequest, token), T0, nonce()) == [JoinRequested(DEVICE, token)]
    assert server.receive(incoming(server, m.JoinRequest, token), T0, nonce()) == []
    server.answer_join(DEVICE, token, Status.JOIN_REFUSED, T0)
    outputs = server.receive(incoming(server, m.JoinRequest, token), T0, nonce())
    assert events(outputs) == []
    assert [(answer.token, answer.status) for answer in sends(outputs)] == [(token, Status.JOIN_REFUSED)]


def test_a_join_is_decided_once():
    pair = Pair()
    token = pair.join(Status.JOIN_REFUSED)[0].token
    with pytest.raises(PolicyError, match="ANSWERED"):
        pair.server.answer_join(DEVICE, token, Status.JOIN_SUCCESS, T0)
    assert not pair.server.is_member(DEVICE)


def test_a_simple_join_takes_the_place_of_one_that_is_being_compared():
    """Or else the end of that one's time would put the device out again."""
    server = ServerSession(SERVER)
    compared, simple = bound(SERVER, T0 + 900), bound(SERVER)
    server.receive(incoming(server, m.HumanJoinRequest, compared), T0, nonce())
    server.show_value(DEVICE, compared, b"sealed", T0)
    told = server.receive(incoming(server, m.JoinRequest, simple), T0, nonce())
    assert told == [JoinWithdrawn(DEVICE, compared), JoinRequested(DEVICE, simple)]
    server.answer_join(DEVICE, simple, Status.JOIN_SUCCESS, T0)
    assert events(server.tick(T0 + 1000)) == []
    assert server.is_member(DEVICE)


def test_a_join_that_nobody_decides_is_forgotten():
    server = ServerSession(SERVER)
    token = bound(SERVER)
    server.receive(incoming(server, m.JoinRequest, token), T0, nonce())
    assert server.tick(T0 + 400) == []
    with pytest.raises(PolicyError, match="not known"):
        server.answer_join(DEVICE, token, Status.JOIN_SUCCESS, T0 + 400)
    assert not server.is_member(DEVICE)


@pytest.mark.parametrize("status", [s for s in Status if s not in JOIN_RESULTS] + [0x50, None])
def test_a_join_is_answered_with_a_result_of_a_join(status):
    server = ServerSession(SERVER)
    token = bound(SERVER)
    server.receive(incoming(server, m.JoinRequest, token), T0, nonce())
    before = snapshot(server)
    with pytest.raises(EncodeError, match="status"):
        server.answer_join(DEVICE, token, status, T0)
    assert snapshot(server) == before


def test_a_device_that_was_put_out_is_not_told_again_that_it_is_in():
    server = ServerSession(SERVER)
    token = bound(SERVER)
    server.receive(incoming(server, m.JoinRequest, token), T0, nonce())
    server.answer_join(DEVICE, token, Status.JOIN_SUCCESS, T0)
    server.terminate(DEVICE, T0, nonce())
    outputs = server.receive(incoming(server, m.JoinRequest, token), T0, nonce())
    assert [answer.status for answer in sends(outputs)] == [Status.JOIN_REFUSED]
    assert not server.is_member(DEVICE)


def test_a_rebooted_device_joins_again_with_its_membership_still_there():
    pair = Pair().joined()
    pair.device = DeviceSession(DEVICE, [SERVER], first_sequence_id=1000)
    pair.join()
    assert pair.device.is_member(SERVER)
    assert pair.server.is_member(DEVICE)
    assert pair.action().action_id == 7
    # While the application thinks about it, the old membership holds.
    pair.deliver(pair.device.join(SERVER, T0, nonce()))
    assert pair.server.is_member(DEVICE)


def test_a_terminated_device_is_not_heard():
    pair = Pair().joined()
    pair.server.terminate(DEVICE, T0, nonce())
    for cls in (m.Action, m.Data):
        message = incoming(pair.server, cls)
        before = snapshot(pair.server, window=False)
        unexpected = Unexpected(DEVICE, message.token, cls, "d1 is not joined")
        assert pair.server.receive(message, T0, nonce()) == [unexpected]
        assert snapshot(pair.server, window=False) == before
    with pytest.raises(PolicyError, match="not joined"):
        pair.server.terminate(DEVICE, T0, nonce())


def test_a_resignation_of_a_device_that_is_out_is_answered_all_the_same():
    pair = Pair().joined()
    pair.server.terminate(DEVICE, T0, nonce())
    outputs = pair.server.receive(incoming(pair.server, m.ResignRequest), T0, nonce())
    assert [answer.status for answer in sends(outputs)] == [Status.RESIGN_SUCCESS]
    assert events(outputs) == []
    assert not pair.server.is_member(DEVICE)


def test_a_device_takes_back_that_it_wants_in():
    """The owner thinks about a moderated join, and the device does not want it any more."""
    pair = Pair()
    [requested] = pair.deliver(pair.device.join_human(SERVER, T0, nonce()))
    told = pair.deliver(pair.device.resign(SERVER, T0, nonce()))
    assert [type(event) for event in told] == [JoinWithdrawn, Left]
    with pytest.raises(PolicyError, match="does not fit"):
        pair.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0)
    with pytest.raises(PolicyError, match="not joined"):
        pair.device.resign(SERVER, T0, nonce())


def test_a_repeated_resignation_is_answered_again():
    pair = Pair().joined()
    token = bound(SERVER)
    for expected in ([Left(DEVICE, token)], []):
        outputs = pair.server.receive(incoming(pair.server, m.ResignRequest, token), T0, nonce())
        assert [answer.status for answer in sends(outputs)] == [Status.RESIGN_SUCCESS]
        assert events(outputs) == expected


def test_a_termination_is_not_sent_again():
    pair = Pair().joined()
    pair.server.terminate(DEVICE, T0, nonce())
    assert pair.server.tick(T0 + 10**6) == []


def test_devices_are_kept_apart():
    server = ServerSession(SERVER)
    first = Pair(server=server).joined()
    second = Pair(server=server, identity=OTHER).joined()
    [send] = server.action(DEVICE, 1, T0, nonce())
    stolen = incoming(server, m.Response, send.message.token, OTHER, status=Status.ACTION_SUCCESS)
    with pytest.raises(PolicyError):
        server.receive(stolen, T0, nonce())
    second.deliver(second.device.resign(SERVER, T0, nonce()))
    assert (server.is_member(DEVICE), server.is_member(OTHER)) == (True, False)
    assert type(first.deliver([send])[0]) is ActionRequested


# Identification.


def test_identification_ends_the_question():
    pair = Pair().joined()
    [send] = pair.server.identify(DEVICE, T0, nonce())
    assert pair.deliver([send]) == [Identified(DEVICE, send.message.token, "a lamp")]
    times = []
    while pair.server.deadline() is not None:
        times += sends(pair.server.tick(pair.server.deadline()))
    assert times == []


def test_identification_is_asked_for_until_it_comes():
    pair = Pair().joined()
    [send] = pair.server.identify(DEVICE, T0, nonce())
    assert [type(message) for message in sends(pair.server.tick(T0 + 5))] == [m.IdRequest]
    assert events(pair.server.tick(T0 + 300)) == [Unanswered(DEVICE, send.message.token, m.IdRequest)]


def test_one_answer_serves_all_who_asked():
    pair = Pair().joined()
    asked = [pair.server.identify(DEVICE, T0, nonce())[0].message.token for _ in range(2)]
    answer = incoming(pair.server, m.Data, data_id=IDENTIFICATION_RESPONSE, data=b"caf\xe9")
    told = pair.server.receive(answer, T0, nonce())
    assert told == [Identified(DEVICE, token, "caf�") for token in asked]
    again = incoming(pair.server, m.Data, data_id=IDENTIFICATION_RESPONSE, data=b"x")
    assert [type(event) for event in pair.server.receive(again, T0, nonce())] == [DataReceived]


def test_another_value_is_no_identification():
    pair = Pair().joined()
    [send] = pair.server.identify(DEVICE, T0, nonce())
    value = incoming(pair.server, m.Data, data_id="temperature", data=b"x")
    assert [type(event) for event in pair.server.receive(value, T0, nonce())] == [DataReceived]
    before = snapshot(pair.server)
    with pytest.raises(PolicyError, match="does not say"):
        pair.server.receive(incoming(pair.server, m.Data, send.message.token, data_id="temperature"), T0, nonce())
    assert snapshot(pair.server) == before


# Deployed devices: uuid tokens, one counter, no answer to actions and activations.


@pytest.fixture
def old():
    return OldDevice(DEVICE, SERVER)


@pytest.fixture
def server(old):
    session = ServerSession(SERVER)
    [requested] = converse(session, old, session.receive(old.send(m.JoinRequest), T0, nonce()))
    told = converse(session, old, session.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0))
    assert told == [JoinAnswered(DEVICE, requested.token, Status.JOIN_SUCCESS)]
    assert old.joined
    return session


def test_an_old_device_hears_every_command(server, old):
    for _ in range(3):
        converse(server, old, server.action(DEVICE, 3, T0, nonce()))
        assert converse(server, old, server.receive(old.send(m.Data), T0, nonce()))
    [requested] = server.receive(old.send(m.Action, action_id=4), T0, nonce())
    converse(server, old, server.answer_action(DEVICE, requested.token, Status.ACTION_SUCCESS, T0))
    [identified] = converse(server, old, server.identify(DEVICE, T0, nonce()))
    assert identified.text == "an old lamp"
    # Its silence about actions becomes Unanswered, and nothing was sent to it twice.
    outputs = server.tick(T0 + 1000)
    assert sends(outputs) == []
    assert [event.request for event in events(outputs, Unanswered)] == [m.Action] * 3
    converse(server, old, server.terminate(DEVICE, T0, nonce()))
    assert old.dropped == []
    assert not old.joined
    assert len({message.token for message in old.heard if type(message) is m.Action}) == 3


def test_an_update_of_an_old_device_ends_without_its_confirmation(server, old):
    told = converse(server, old, server.update(DEVICE, URL, DIGEST, T0, nonce()))
    token = told[0].token
    assert told == [
        UpdateChanged(DEVICE, token, UpdateState.READY, Status.UPDATE_SUCCESS),
        UpdateChanged(DEVICE, token, UpdateState.ACTIVATING, None),
    ]
    assert [type(message) for message in old.heard[-2:]] == [m.Initiate, m.Activate]
    assert not server.confirms(DEVICE)
    assert server.requests() == []
    assert server.tick(T0 + 86400) == []


def test_an_old_device_reports_an_http_error_with_the_code_of_a_file_error(server, old):
    old.fetch_status = Status.UPDATE_FAIL_FILE
    [told] = converse(server, old, server.update(DEVICE, URL, DIGEST, T0, nonce()))
    assert (told.state, told.status) == (UpdateState.FAILED, Status.UPDATE_FAIL_FILE)


def test_a_server_that_requires_binding_is_not_for_old_devices(old):
    session = ServerSession(SERVER, Policy(require_bound_tokens=True))
    with pytest.raises(PolicyError, match="not bound"):
        session.receive(old.send(m.JoinRequest), T0, nonce())


def test_a_device_that_binds_confirms():
    assert Pair().joined().server.confirms(DEVICE)
    assert not ServerSession(SERVER).confirms(DEVICE)
