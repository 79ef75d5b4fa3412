"""A change of key as the sessions see it: sent until it is answered, carried out once, answered again."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup import messages as m
from srup.errors import EncodeError, PolicyError, ReplayError
from srup.session import Policy, Send
from srup.session.events import DataReceived, JoinWithdrawn, KeyAnswered, KeyOffered, Left, Unanswered
from srup.session.flows.key_rotation import KeyState
from srup.wire import KEY_ROTATION, Status

from .session_link import (
    DEVICE,
    SERVER,
    T0,
    Link,
    OldDevice,
    Pair,
    bound,
    converse,
    events,
    exchange_of,
    exchanges,
    make,
    nonce,
    sends,
    snapshot,
)

OFFER = b"a key"
ENDS = {"device": (DEVICE, SERVER), "server": (SERVER, DEVICE)}


@pytest.fixture(params=ENDS)
def role(request):
    """Who changes its key, and who is told."""
    return ENDS[request.param]


@pytest.fixture
def pair():
    return Pair().joined()


def offered(pair, role, data=OFFER, **options):
    """Let one end offer a key; return the message and what the other end says to it."""
    owner, partner = role
    [send] = pair.end(owner).rotate(partner, data, pair.now, nonce(), **options)
    return send.message, pair.end(partner).receive(send.message, pair.now, nonce())


@pytest.mark.parametrize("status", [Status.ACTION_SUCCESS, Status.ACTION_FAIL])
def test_an_offer_and_its_answer(pair, role, status):
    owner, partner = role
    message, told = offered(pair, role)
    assert (type(message), message.data_id, message.data) == (m.Data, KEY_ROTATION, OFFER)
    assert told == [KeyOffered(owner, message.token, OFFER)]
    answer = pair.end(partner).answer_key(owner, message.token, status, pair.now)
    assert [(send.message.token, send.message.status) for send in answer] == [(message.token, status)]
    assert pair.deliver(answer) == [KeyAnswered(partner, message.token, status)]
    assert pair.end(owner).tick(T0 + 299) == []  # answered, so it is not sent again


def test_who_does_not_know_of_rotations_refuses_them(pair, role):
    owner, partner = role
    message, _ = offered(pair, role)
    response = make(m.Response, 10**6, partner, message.token, status=Status.DATA_TYPE_UNKNOWN)
    assert pair.end(owner).receive(response, T0, nonce()) == [
        KeyAnswered(partner, message.token, Status.DATA_TYPE_UNKNOWN)
    ]


def test_an_offer_is_sent_again_and_answered_again_but_told_once(pair, role):
    owner, partner = role
    message, told = offered(pair, role)
    assert events(told, KeyOffered)
    [again] = sends(pair.end(owner).tick(T0 + 5))
    assert (again.token, again.data) == (message.token, OFFER)
    assert again.sequence_id > message.sequence_id
    assert pair.end(partner).receive(again, T0 + 5, nonce()) == []  # the owner is still thinking
    pair.end(partner).answer_key(owner, message.token, Status.ACTION_SUCCESS, T0 + 6)  # and this is lost
    [again] = sends(pair.end(owner).tick(T0 + 15))
    [answer] = pair.end(partner).receive(again, T0 + 15, nonce())
    assert (answer.message.token, answer.message.status) == (message.token, Status.ACTION_SUCCESS)
    assert events(pair.deliver([answer])) == [KeyAnswered(partner, message.token, Status.ACTION_SUCCESS)]


def test_an_offer_that_nobody_answers_expires(pair, role):
    owner, partner = role
    [send] = pair.end(owner).rotate(partner, OFFER, T0, nonce(), lifetime=60)
    told = []
    for second in range(61):
        told += events(pair.end(owner).tick(T0 + second))
    assert told == [Unanswered(partner, send.message.token, m.Data)]
    assert exchanges(pair.end(owner), partner).get(send.message.token) is None


def test_a_token_is_good_for_one_offer(pair, role):
    """A retransmission with another key in it is refused, before and after the answer; so is any other value."""
    owner, partner = role
    message, _ = offered(pair, role)
    for number, answered in enumerate((False, True)):
        if answered:
            pair.end(partner).answer_key(owner, message.token, Status.ACTION_SUCCESS, T0)
        for data_id, data in ((KEY_ROTATION, b"another key"), ("temperature", OFFER)):
            other = make(m.Data, 10**6 + number, owner, message.token, data_id=data_id, data=data)
            before = snapshot(pair.end(partner))
            with pytest.raises(PolicyError, match=r"^the token belongs to the offer of another key$"):
                pair.end(partner).receive(other, T0, nonce())
            assert snapshot(pair.end(partner)) == before
        same = make(m.Data, 10**6 + number, owner, message.token, data_id=KEY_ROTATION, data=OFFER)  # control
        assert len(pair.end(partner).receive(same, T0, nonce())) == answered


def test_a_replayed_offer_is_refused(pair, role):
    owner, partner = role
    message, _ = offered(pair, role)
    pair.end(partner).answer_key(owner, message.token, Status.ACTION_SUCCESS, T0)
    with pytest.raises(ReplayError):
        pair.end(partner).receive(message, T0, nonce())
    pair.end(partner).known.peers[
        owner
    ].window.seen = 0  # control: without the window it is answered, and not told again
    assert [type(output) for output in pair.end(partner).receive(message, T0, nonce())] == [Send]
    pair.end(partner).known.peers[owner].window.seen = 0
    exchanges(pair.end(partner), owner).clear()  # and without the memory of tokens it would be
    assert events(pair.end(partner).receive(message, T0, nonce()), KeyOffered)


def test_a_key_is_offered_without_a_membership(role):
    """The answer to an offer may have got lost with the membership."""
    pair = Pair().joined()
    pair.deliver(pair.server.terminate(DEVICE, T0, nonce()))
    _, told = offered(pair, role)
    assert [type(event) for event in told] == [KeyOffered]


def test_a_key_is_answered_with_one_of_two(pair, role):
    owner, partner = role
    message, _ = offered(pair, role)
    for status in (Status.ACTION_UNKNOWN, Status.DATA_TYPE_UNKNOWN, Status.JOIN_SUCCESS, 0x20):
        with pytest.raises(EncodeError):
            pair.end(partner).answer_key(owner, message.token, status, T0)
    assert exchange_of(pair.end(partner), owner, message.token).state is KeyState.DECIDING


def test_a_deployed_device_gets_no_offer():
    """It would not survive one."""
    server = Pair().server
    old = OldDevice(DEVICE, SERVER)
    [requested] = converse(server, old, [Send(SERVER, old.send(m.JoinRequest))])
    converse(server, old, server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0))
    with pytest.raises(PolicyError, match="does not bind its tokens"):
        server.rotate(DEVICE, OFFER, T0, nonce())
    assert [type(message) for message in old.heard] == [m.Response]


def test_a_value_of_that_name_is_never_a_value(pair, role):
    _, told = offered(pair, role)
    assert events(told, DataReceived) == []


@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.3, 0.6]),
    delay=st.sampled_from([0.0, 2.0, 40.0]),
    both=st.booleans(),
)
def test_whatever_the_link_does_both_ends_agree_and_nobody_is_asked_twice(seed, loss, delay, both):
    policy = Policy(lifetime=20_000, max_retry=60, require_bound_tokens=True)
    pair = Pair(policy, policy).joined()
    random = Random(seed)
    link = Link(random, T0, loss=loss, duplicate=0.3, replay=0.3, delay=delay)
    verdict = {DEVICE: random.choice([Status.ACTION_SUCCESS, Status.ACTION_FAIL]), SERVER: Status.ACTION_SUCCESS}
    asked, answered, now = [], {}, T0

    def perform(me, outputs):
        for output in outputs:
            match output:
                case Send():
                    link.send(output.message, now)
                case KeyOffered():
                    asked.append((me, output.peer))
                    perform(me, pair.end(me).answer_key(output.peer, output.token, verdict[output.peer], now))
                case KeyAnswered():
                    assert me not in answered
                    answered[me] = output.status

    owners = [DEVICE, SERVER] if both else [DEVICE]
    for owner in owners:
        perform(owner, pair.end(owner).rotate(DEVICE + SERVER - owner, OFFER, now, nonce()))
    while len(answered) < len(owners):
        dues = (link.due(), pair.server.deadline(), pair.device.deadline())
        now = max(now, min(due for due in dues if due is not None))
        assert now < T0 + 15_000
        while (due := link.due()) is not None and due <= now:
            message = link.take()
            me = DEVICE if message.sender_id == SERVER else SERVER
            try:
                perform(me, pair.end(me).receive(message, now, nonce()))
            except ReplayError:
                continue
        for end in ENDS.values():
            perform(end[0], pair.end(end[0]).tick(now))
    assert answered == {owner: verdict[owner] for owner in owners}
    assert sorted(asked) == sorted((DEVICE + SERVER - owner, owner) for owner in owners)


# Revocation.


def test_a_revoked_device_is_forgotten_with_all_that_is_under_way(pair):
    server = pair.server
    server.action(DEVICE, 1, T0, nonce())
    server.update(DEVICE, "https://updates.example/f", "0" * 64, T0, nonce())
    asked = make(m.JoinRequest, 10**6, DEVICE, bound(SERVER))
    server.receive(asked, T0, nonce())
    assert server.revoke(DEVICE, T0) == [JoinWithdrawn(DEVICE, asked.token), Left(DEVICE, b"")]
    assert not server.is_member(DEVICE)
    assert (server.known.peers, server.known.size, server.tick(T0 + 10**6), server.deadline()) == ({}, 0, [], None)
    assert server.revoke(DEVICE, T0) == []
    with pytest.raises(PolicyError, match="is not joined"):
        server.action(DEVICE, 1, T0, nonce())


def test_who_was_no_member_leaves_without_a_word():
    pair = Pair()
    [join] = sends(pair.device.join(SERVER, T0, nonce()))
    [requested] = pair.server.receive(join, T0, nonce())
    assert pair.server.revoke(DEVICE, T0) == [JoinWithdrawn(DEVICE, join.token)]
    with pytest.raises(PolicyError, match="does not fit"):
        pair.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0)
