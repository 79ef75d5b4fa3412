"""What a session keeps of a member that is idle: a server has many of them. Counted are objects, not bytes."""

import gc
from collections import Counter

import pytest

from srup import messages as m
from srup.records import PartnerRecord, State
from srup.session import ServerSession
from srup.session.spent import BELIEVED_AFTER
from srup.wire import Status

from .session_link import DEVICE, SERVER, T0, bound, make, nonce

IDLE = {"Peer": 1, "Horizon": 1}


class Key:
    """A public key, as far as a session looks at it; the key ring has it anyway."""

    signing_fingerprint = "0a" * 32


KEY = Key()


@pytest.fixture
def server():
    """A server that was started again and had a member."""
    session = ServerSession(SERVER)
    session.restore(State(partners=[PartnerRecord(DEVICE, True, True, 0, 0, 1)]), T0)
    return session


def kept(session):
    """How many objects of each kind there are of a member alone, numbers aside."""
    shared = {id(session.known.peers), id(KEY)}
    waiting, seen = [session.known.peers[DEVICE]], {}
    while waiting:
        each = waiting.pop()
        if id(each) not in seen and id(each) not in shared and not isinstance(each, type | int | float | None):
            seen[id(each)] = each
            waiting += gc.get_referents(each)
    other = gc.get_referents(ServerSession(SERVER).peer(DEVICE))
    common = {id(each) for each in other}  # what all peers share, such as the mapping of those without exchanges
    return Counter(type(each).__name__ for each in seen.values() if id(each) not in common and each != {})


def test_a_member_that_was_never_heard(server):
    assert kept(server) == IDLE


def test_a_member_that_sends_values(server):
    for number in range(1, 100):
        server.receive(make(m.Data, number, DEVICE, bound(SERVER)), T0, nonce(), KEY)
    assert kept(server) == IDLE


def test_a_member_whose_exchanges_are_over(server):
    [ask] = server.action(DEVICE, 7, T0, nonce())
    server.receive(make(m.Response, 1, DEVICE, ask.message.token, status=Status.ACTION_SUCCESS), T0, nonce(), KEY)
    told = server.receive(make(m.Action, 2, DEVICE, bound(SERVER)), T0, nonce(), KEY)
    assert kept(server)["Exchange"] == 2  # control
    server.answer_action(DEVICE, told[0].token, Status.ACTION_SUCCESS, T0)
    server.tick(T0 + 1000)
    assert kept(server) == IDLE
    server.tick(T0 + 1000 + BELIEVED_AFTER)
    assert len(server.spent) == 0
    assert (server.known.size, server.known.timers) == (0, [])
