"""The rule of freshness by itself: horizons of keys, floors, and what a store keeps of them."""

from hashlib import sha256

import pytest

from srup import messages as m
from srup.errors import PolicyError, ReplayError, StoreError
from srup.records import State
from srup.session import DeviceSession, Policy, ServerSession
from srup.session.events import ActionRequested, JoinRequested
from srup.session.exchange import MAX_EXCHANGES, MAX_REMEMBERED
from srup.session.freshness import FIRST_UNDATED, MAX_KEYS, Horizon, Horizons
from srup.tokens import parse
from srup.wire import Status

from .session_link import DEVICE, SERVER, T0, Pair, bound, make, nonce

DAY = 86400.0


class Key:
    """A public key, as far as a session looks at it."""

    def __init__(self, name):
        self.signing_fingerprint = sha256(name.encode()).hexdigest()


OLD, NEW = Key("old"), Key("new")


def join(sequence_id, token=None):
    return make(m.JoinRequest, sequence_id, DEVICE, token or bound(SERVER))


def carried_over(session):
    """A session that goes on with what a store has of this one."""
    session.known.durable = True
    for peer in session.known.peers.values():
        session.known.mark_peer(peer)
        session.known.mark_freshness(peer.identity)
    changes = session.changes()
    again = ServerSession(SERVER)
    again.restore(State(changes.partners, facts=changes.facts), T0)
    return again


@pytest.mark.parametrize("stored", [False, True], ids=["running", "after a restart"])
def test_a_key_that_comes_back_is_known(stored):
    server = ServerSession(SERVER)
    server.known.durable = True
    first = join(5)
    server.receive(first, T0, nonce(), OLD)
    server.revoke(DEVICE, T0)
    if stored:
        changes = server.changes()
        server = ServerSession(SERVER)
        server.restore(State(facts=changes.facts, exchanges=changes.exchanges), T0)
    with pytest.raises(ReplayError):
        server.receive(first, T0, nonce(), OLD)
    with pytest.raises(PolicyError, match="spent"):  # a retransmission of it, which nobody has seen
        server.receive(join(6, first.token), T0, nonce(), OLD)
    [told] = server.receive(join(7), T0, nonce(), OLD)
    assert type(told) is JoinRequested


def test_control_another_key_begins_anew():
    server = ServerSession(SERVER)
    server.receive(join(500), T0, nonce(), OLD)
    server.revoke(DEVICE, T0)
    assert server.receive(join(1), T0, nonce(), NEW)


def test_a_refused_message_does_not_make_a_key_forgotten():
    server = ServerSession(SERVER)
    server.receive(join(5), T0, nonce(), OLD)
    server.revoke(DEVICE, T0)
    for _ in range(2):
        with pytest.raises(ReplayError):
            server.receive(join(5), T0, nonce(), OLD)


@pytest.mark.parametrize("heard", [False, True], ids=["not heard yet", "heard"])
def test_a_retiring_key_has_a_window_of_its_own(heard):
    server = ServerSession(SERVER, Policy(require_bound_tokens=True))
    server.receive(join(5), T0, nonce(), OLD)
    if heard:
        server.receive(make(m.Data, 6, DEVICE, bound(SERVER)), T0, nonce(), NEW)
    server.receive(make(m.Data, 2**64 - 1, DEVICE, bound(SERVER)), T0, nonce(), OLD, retiring=True)
    with pytest.raises(ReplayError):
        server.receive(make(m.Data, 2**64 - 1, DEVICE, bound(SERVER)), T0, nonce(), OLD, retiring=True)
    again = carried_over(server)
    for session in (server, again):
        assert session.receive(make(m.Data, 7, DEVICE, bound(SERVER)), T0, nonce(), NEW)
        assert session.command_join(DEVICE, T0, nonce())[0].message.sequence_id < 100
        with pytest.raises(ReplayError):
            session.receive(make(m.Data, 2**64 - 1, DEVICE, bound(SERVER)), T0, nonce(), OLD, retiring=True)


def test_what_a_retiring_key_says_of_a_membership_undoes_nothing_newer_and_bars_nothing():
    server = ServerSession(SERVER)
    server.receive(join(5), T0, nonce(), OLD)
    [told] = server.receive(join(7), T0, nonce(), NEW)
    assert type(told) is JoinRequested
    with pytest.raises(PolicyError, match="since"):
        server.receive(make(m.DeregisterRequest, 6, DEVICE, bound(SERVER)), T0, nonce(), OLD, retiring=True)
    assert server.receive(make(m.DeregisterRequest, 2**64 - 2, DEVICE, bound(SERVER)), T0, nonce(), OLD, retiring=True)
    [told] = server.receive(join(8), T0, nonce(), NEW)
    assert type(told) is JoinRequested


def test_former_keys_that_are_too_many_leave_a_floor():
    horizons = Horizons()
    for number in range(MAX_KEYS + 10):
        horizon = Horizon(1 + number)
        horizon.close(100 + number)
        horizons.put(DEVICE, horizon)
    assert len(horizons._former[DEVICE]) <= MAX_KEYS + 1
    with pytest.raises(ReplayError):
        horizons.take(DEVICE, 1).check(100)
    horizons.take(DEVICE, 1).check(200)


@pytest.mark.parametrize("floor", ["window", "dated_floor", "undated_floor"])
def test_a_former_key_in_wrong_hands_is_no_floor_for_those_that_come_long_after(floor):
    horizons = Horizons()
    for number in range(3 * MAX_KEYS):
        horizon = horizons.take(DEVICE, 1 + number)
        horizon.check(100 + number)
        horizon.close(100 + number)
        if number == 1:
            if floor == "window":
                horizon.close(2**64 - 1)
            else:
                setattr(horizon, floor, FIRST_UNDATED - 1)
        horizons.put(DEVICE, horizon)
    assert len(horizons._former[DEVICE]) <= MAX_KEYS + 1
    horizons.take(DEVICE, 10**6).check(500)
    assert horizons.take(DEVICE, 10**6).dated_floor == horizons.take(DEVICE, 10**6).undated_floor == 0


@pytest.mark.parametrize("text", ["", "{}", "[", "[1]", "[[]]", '[null,["x"]]', '[["k","a",0,0,0]]', "[null,[0]]"])
def test_what_nobody_has_written_is_refused(text):
    with pytest.raises(StoreError, match="is not readable"):
        Horizons().load(DEVICE, text, Horizon())


def test_tokens_of_an_end_without_a_clock_are_in_order():
    pair = Pair(device_policy=Policy(has_clock=False)).joined()
    sent = [pair.device.action(SERVER, 1, 50.0, nonce())[0].message for _ in range(3)]
    expiries = [parse(message.token).expiry for message in sent]
    assert expiries == [FIRST_UNDATED + message.sequence_id for message in sent]
    for message in sent:
        pair.server.receive(message, T0, nonce())
    pair.server.tick(T0 + DAY + 1)
    for message in sent:
        late = make(m.Action, message.sequence_id + 100, DEVICE, message.token)
        with pytest.raises(PolicyError, match="spent"):
            pair.server.receive(late, T0 + DAY + 1, nonce())
    [send] = pair.device.action(SERVER, 1, 50.0, nonce())
    assert [type(told) for told in pair.server.receive(send.message, T0 + DAY + 1, nonce())] == [ActionRequested]


def test_an_order_that_expires_late_does_not_wait_for_those_that_expired_early():
    """Only what expires before a forgotten token is refused."""
    device = DeviceSession(DEVICE, [SERVER])
    device.known.peers[SERVER] = peer = device.peer(SERVER)
    peer.member = True
    device.receive(make(m.Action, 9, SERVER, bound(DEVICE, T0 + 300)), T0, nonce())
    device.tick(T0 + 400)
    long_lived = make(m.Action, 8, SERVER, bound(DEVICE, T0 + DAY))
    assert device.receive(long_lived, T0 + 400, nonce())


def test_many_commands_in_one_second_do_not_bar_each_other():
    """Their tokens expire together, so that none of them may be dropped for the next one."""
    pair = Pair().joined()
    for _ in range(2 * MAX_REMEMBERED):
        requested = pair.action()
        pair.deliver(pair.device.answer_action(SERVER, requested.token, Status.ACTION_SUCCESS, pair.now))
    pair.now += 1
    for _ in range(MAX_EXCHANGES):
        requested = pair.action()
        pair.deliver(pair.device.answer_action(SERVER, requested.token, Status.ACTION_SUCCESS, pair.now))
    remembered = [each for each in pair.device.known.peers[SERVER].exchanges.values() if not each.mine]
    assert len(remembered) == MAX_REMEMBERED
    assert pair.device.spent.of(SERVER) >= MAX_REMEMBERED + MAX_EXCHANGES
