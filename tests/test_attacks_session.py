"""Attacks on a session (docs/protocol/threats.md), each with a control: with the guard off it would have worked."""

import pytest

from srup import messages as m
from srup.errors import PolicyError, ReplayError
from srup.session import Policy
from srup.session.events import (
    ActionRequested,
    ActivationRequested,
    DataReceived,
    FetchRequested,
    JoinAnswered,
    JoinRequested,
    Left,
)
from srup.update import UpdateState
from srup.wire import Status

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
    events,
    exchange_of,
    make,
    nonce,
    sends,
    snapshot,
)

pytestmark = pytest.mark.backend

HIGH = 2**64 - 1


def refused(session, error, message, now=T0):
    before = snapshot(session)
    with pytest.raises(error):
        session.receive(message, now, nonce())
    assert snapshot(session) == before


@pytest.fixture
def pair():
    return Pair().joined()


@pytest.fixture
def victim():
    """Device B, which the same server commands."""
    return Pair(identity=OTHER).joined().device


# T1: fast-forward, with a genuine message that is for somebody else.


def test_t1_a_message_for_another_device_does_not_move_the_window(victim):
    message = make(m.Action, HIGH, SERVER, bound(DEVICE))
    refused(victim, PolicyError, message)
    honest = make(m.Action, 100, SERVER, bound(OTHER))
    assert events(victim.receive(honest, T0, nonce()), ActionRequested)


def test_t1_control_an_unbound_token_locks_the_server_out():
    victim = Pair(identity=OTHER)
    victim.join()  # the server has not bound a token of its own yet
    victim.device.receive(make(m.Response, HIGH, SERVER, b"of another device", status=0), T0, nonce())
    refused(victim.device, ReplayError, make(m.Action, 100, SERVER, b"honest"))


# T2: replay.

REPLAYED = {
    m.Action: ActionRequested,
    m.Data: DataReceived,
    m.Initiate: FetchRequested,
    m.TerminateCommand: Left,
}


@pytest.mark.parametrize("cls", REPLAYED)
def test_t2_replay(pair, cls):
    message = make(cls, 100, SERVER, bound(DEVICE))
    assert events(pair.device.receive(message, T0, nonce()), REPLAYED[cls])
    refused(pair.device, ReplayError, message)
    # Control: without the window a value would be taken twice and a termination undo the next join; the other
    # commands have their token besides, which test_t11_* takes away.
    pair.join()
    pair.device.known.peers[SERVER].window.seen = 0
    outputs = pair.device.receive(message, T0, nonce())
    if cls is m.Data:
        assert events(outputs, DataReceived)
    else:
        assert events(outputs) == []


def test_t2_replay_of_an_unbound_command_after_it_was_forgotten():
    pair = Pair()
    pair.join()
    message = make(m.Action, 100, SERVER, b"a uuid")
    assert events(pair.device.receive(message, T0, nonce()), ActionRequested)
    pair.device.tick(T0 + 10**6)
    refused(pair.device, ReplayError, message, T0 + 10**6)
    pair.device.known.peers[SERVER].window.seen = 0  # control
    assert events(pair.device.receive(message, T0 + 10**6, nonce()), ActionRequested)


def test_t2_replay_of_a_join_does_not_undo_a_termination(pair):
    message = make(m.JoinRequest, 100, DEVICE, bound(SERVER))
    [requested] = pair.server.receive(message, T0, nonce())
    pair.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0)
    pair.server.terminate(DEVICE, T0, nonce())
    refused(pair.server, ReplayError, message)
    # Control: without the window and the memory of tokens the application would be asked again.
    pair.server.known.peers[DEVICE].window.seen = 0
    pair.server.known.peers[DEVICE].exchanges.clear()
    assert type(pair.server.receive(message, T0, nonce())[0]) is JoinRequested


# T3: redirect to another device.


@pytest.mark.parametrize("cls", [m.Action, m.Data, m.Initiate, m.TerminateCommand, m.IdRequest, m.Activate])
def test_t3_a_command_for_another_device_is_refused(pair, victim, cls):
    message = make(cls, 100, SERVER, bound(DEVICE))
    refused(victim, PolicyError, message)
    # Control: the one it is for takes it.
    assert pair.device.receive(message, T0, nonce())


@pytest.mark.parametrize("cls", [m.Action, m.Data, m.Initiate, m.TerminateCommand])
def test_t3_control_an_unbound_command_is_taken_by_whoever_gets_it(cls):
    pair, other = Pair(), Pair(identity=OTHER)
    message = make(cls, 100, SERVER, b"a uuid")
    for end in (pair, other):
        end.join()
        assert events(end.device.receive(message, T0, nonce()), REPLAYED[cls])


def test_t3_once_the_server_binds_an_unbound_command_is_refused(victim):
    refused(victim, PolicyError, make(m.Action, 100, SERVER, b"a uuid"))
    victim.known.peers[SERVER].binds = False  # control
    assert events(victim.receive(make(m.Action, 100, SERVER, b"a uuid"), T0, nonce()), ActionRequested)


def test_t3_an_old_server_cannot_be_made_to_look_as_if_it_bound_tokens():
    """An owned device sends it a token bound to the victim; it repeats that, and the broker redirects it."""
    old, victim = OldServer(SERVER, DEVICE), Pair(identity=OTHER)
    victim.join()
    [answer] = old.hear(make(m.JoinRequest, 50, DEVICE, bound(OTHER)))
    victim.device.receive(answer, T0, nonce())
    assert events(victim.device.receive(old.send(m.Action), T0, nonce()), ActionRequested)


def test_t3_an_answer_to_another_device_is_not_taken():
    """An owned device asks under the victim's token; the server's answer to it is redirected to the victim."""
    pair, victim = Pair().joined(), Pair(identity=OTHER)
    [join] = sends(victim.device.join(SERVER, T0, nonce()))
    stolen = make(m.Action, 100, DEVICE, join.token)
    try:
        [requested] = pair.server.receive(stolen, T0, nonce())
    except PolicyError:
        return
    [send] = pair.server.answer_action(DEVICE, requested.token, Status.ACTION_SUCCESS, T0)
    refused(victim.device, PolicyError, send.message)


def test_t3_a_join_of_another_device_is_not_taken_for_ones_own():
    owned, victim = Pair().joined(), Pair(identity=OTHER)
    [join] = sends(victim.device.join(SERVER, T0, nonce()))
    try:
        [requested] = owned.server.receive(make(m.JoinRequest, 100, DEVICE, join.token), T0, nonce())
    except PolicyError:
        return
    outputs = owned.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0)
    told = victim.device.receive(sends(outputs)[0], T0, nonce())
    assert events(told, JoinAnswered) == []


# T4: delayed delivery.


@pytest.mark.parametrize("cls", [m.Action, m.Initiate, m.TerminateCommand, m.Data])
def test_t4_a_command_that_was_held_back_is_refused(pair, cls):
    message = make(cls, 100, SERVER, bound(DEVICE, T0 + 300))
    refused(pair.device, PolicyError, message, T0 + 86_400)
    clockless = Pair(device_policy=Policy(has_clock=False)).joined()  # control
    assert events(clockless.device.receive(message, T0 + 86_400, nonce()), REPLAYED[cls])


def test_t4_an_activation_that_was_held_back_is_refused(pair):
    token = pair.update(lifetime=300, hold=True).token
    pair.deliver(pair.device.fetched(SERVER, token, T0))
    [activate] = sends(pair.server.activate(DEVICE, token, T0))
    refused(pair.device, PolicyError, activate, T0 + 86_400)
    # Control: in time it is taken.
    assert events(pair.device.receive(activate, T0 + 299, nonce()), ActivationRequested)


def test_t4_a_retransmission_that_was_held_back_does_not_come_back_to_life(pair):
    """The token is forgotten some time after it expired and never before."""
    requested = pair.action()
    again = make(m.Action, 100, SERVER, requested.token)
    for now in (T0 + 329.9, T0 + 330, T0 + 330.1, T0 + 331, T0 + 332):
        pair.device.tick(now)
        try:
            outputs = pair.device.receive(again, now, nonce())
        except (PolicyError, ReplayError):
            continue
        assert events(outputs, ActionRequested) == []


# T11: a token is good for one order and one activation.


def activated(pair):
    token = pair.update().token
    pair.deliver(pair.device.fetched(SERVER, token, T0))
    pair.deliver(pair.device.activated(SERVER, token, T0))
    assert exchange_of(pair.device, SERVER, token).state is UpdateState.ACTIVATED
    return token


def test_t11_a_token_activates_once(pair):
    token = activated(pair)
    for sequence_id in (100, 101):
        outputs = pair.device.receive(make(m.Activate, sequence_id, SERVER, token), T0, nonce())
        assert events(outputs) == []
    exchange_of(pair.device, SERVER, token).state = UpdateState.READY  # control
    outputs = pair.device.receive(make(m.Activate, 102, SERVER, token), T0, nonce())
    assert events(outputs, ActivationRequested)


def test_t11_a_used_token_brings_no_other_file(pair):
    token = activated(pair)
    other = make(m.Initiate, 100, SERVER, token, url=URL + "?evil", digest="e" * 64)
    refused(pair.device, PolicyError, other)
    del pair.device.known.peers[SERVER].exchanges[token]  # control
    assert events(pair.device.receive(other, T0, nonce()), FetchRequested)


def test_t11_the_digest_to_activate_is_the_one_that_was_ordered(pair):
    token = pair.update().token
    refused(pair.device, PolicyError, make(m.Initiate, 100, SERVER, token, url=URL, digest="e" * 64))
    told = pair.deliver(pair.device.fetched(SERVER, token, T0))
    assert told[-1] == ActivationRequested(SERVER, token, DIGEST)


def test_t11_a_flood_of_values_does_not_make_a_token_new(pair):
    token = activated(pair)
    for _ in range(600):
        pair.device.data(SERVER, "x", b"", T0, nonce())
        pair.deliver(pair.server.data(DEVICE, "x", b"", T0, nonce()))
    highest = pair.device.known.peers[SERVER].window.highest
    again = make(m.Initiate, highest + 1, SERVER, token, url=URL, digest=DIGEST)
    assert events(pair.device.receive(again, T0, nonce())) == []


def test_t11_a_flood_of_commands_does_not_make_a_token_new(pair):
    """A retransmission that the broker has held back meets a device that did much else in the meantime."""
    token = pair.action().token
    pair.deliver(pair.device.answer_action(SERVER, token, Status.ACTION_SUCCESS, T0))
    for _ in range(300):
        requested = pair.action()
        pair.deliver(pair.device.answer_action(SERVER, requested.token, Status.ACTION_SUCCESS, T0))
    highest = pair.device.known.peers[SERVER].window.highest
    try:
        outputs = pair.device.receive(make(m.Action, highest + 1, SERVER, token), T0, nonce())
    except PolicyError:
        return
    assert events(outputs, ActionRequested) == []
