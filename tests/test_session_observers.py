"""Observers that die, lie or leave while a join waits for their word."""

from contextlib import suppress

import pytest

from srup import messages as m
from srup.errors import PolicyError
from srup.session import DeviceSession, Policy, Send, ServerSession
from srup.session import events as e
from srup.wire import Status

from .session_link import DEVICE, OTHER, SERVER, STRANGER, T0, bound, events, make, nonce, sends, snapshot

OBSERVER = OTHER
VALID, INVALID, FAIL = Status.OBSERVED_JOIN_VALID, Status.OBSERVED_JOIN_INVALID, Status.OBSERVED_JOIN_FAIL


class Site:
    """A server, its observer, and devices that ask for observed joins; whoever is told something is noted."""

    def __init__(self, policy=None):
        self.server = ServerSession(SERVER, policy)
        self.ends = {SERVER: self.server}
        self.told = []
        self.heard = 500  # sequence ids that no session uses here
        for identity in (OBSERVER, DEVICE, STRANGER):
            self.ends[identity] = DeviceSession(identity, [SERVER], policy)
        self.perform(OBSERVER, self.ends[OBSERVER].join(SERVER, T0, nonce()))
        self.decide(self.last(e.JoinRequested), Status.JOIN_SUCCESS)

    def perform(self, me, outputs):
        for output in outputs:
            if isinstance(output, Send):
                self.perform(output.to, self.ends[output.to].receive(output.message, T0, nonce()))
            else:
                self.told.append((me, output))

    def last(self, kind, me=SERVER):
        return [event for who, event in self.told if who == me and isinstance(event, kind)][-1]

    def all(self, kind, me=SERVER):
        return [event for who, event in self.told if who == me and isinstance(event, kind)]

    def decide(self, event, status):
        self.perform(SERVER, self.server.answer_join(event.peer, event.token, status, T0))

    def ask(self, device=DEVICE):
        """Let a device ask for a join, and the server ask the observer; return the request at both."""
        self.perform(device, self.ends[device].join_observed(SERVER, OBSERVER, T0, nonce()))
        join = self.last(e.ObservedJoinRequested)
        self.perform(SERVER, self.server.show_value(device, join.token, b"value", T0))
        self.perform(SERVER, self.server.observe(OBSERVER, device, join.token, b"value", T0, nonce()))
        return join, self.last(e.ObservationRequested, OBSERVER)

    def say(self, observation, status):
        observer = self.ends[OBSERVER]
        self.perform(OBSERVER, observer.answer_observation(SERVER, observation.token, status, T0))

    def hear(self, cls, sender, token, **fields):
        """Let the server hear a genuine message that the sender's session would not send."""
        self.heard += 1
        message = make(cls, self.heard, sender, token, **fields)
        outputs = self.server.receive(message, T0, nonce())
        self.told += [(SERVER, event) for event in events(outputs)]
        return outputs


ENDS = {
    "revoked": lambda site: site.perform(SERVER, site.server.revoke(OBSERVER, T0)),
    "terminated": lambda site: site.perform(SERVER, site.server.terminate(OBSERVER, T0, nonce())),
    "deregistered": lambda site: site.perform(SERVER, site.server.deregister(OBSERVER, T0, nonce())),
    "resigns": lambda site: site.perform(OBSERVER, site.ends[OBSERVER].resign(SERVER, T0, nonce())),
    "deregisters": lambda site: site.perform(OBSERVER, site.ends[OBSERVER].deregister(SERVER, T0, nonce())),
}


@pytest.mark.parametrize("way", ENDS)
def test_a_join_does_not_wait_for_an_observer_that_is_gone(way):
    site = Site()
    first, observation = site.ask()
    second, _ = site.ask(STRANGER)
    ENDS[way](site)
    lost = [(event.device, event.join_token, event.status) for event in site.all(e.Observed)]
    assert lost == [(DEVICE, first.token, FAIL), (STRANGER, second.token, FAIL)]
    for join in (first, second):
        site.decide(join, Status.JOIN_FAIL)
        assert site.last(e.JoinAnswered, join.peer).status is Status.JOIN_FAIL
    if way != "revoked":  # then it has heard, and what is still being looked at is over for it
        assert not site.ends[OBSERVER].awaits(SERVER, observation.token)


def test_the_word_of_an_observer_that_was_refused_meanwhile_does_not_count():
    """It asked again and the owner did not want it any more."""
    site = Site()
    join, observation = site.ask()
    site.perform(OBSERVER, site.ends[OBSERVER].join(SERVER, T0, nonce()))
    site.server.answer_join(OBSERVER, site.last(e.JoinRequested).token, Status.JOIN_REFUSED, T0)  # it does not hear it
    site.say(observation, VALID)
    [seen] = site.all(e.Observed)
    assert (seen.device, seen.join_token, seen.status) == (DEVICE, join.token, FAIL)


def test_an_observer_that_never_answers():
    site = Site()
    join, _ = site.ask()
    outputs = site.server.tick(T0 + Policy().join_lifetime)
    assert [(event.device, event.status) for event in events(outputs, e.Observed)] == [(DEVICE, FAIL)]
    assert not [event for event in events(outputs, e.JoinAnswered) if event.status is Status.JOIN_SUCCESS]
    assert join.peer == DEVICE


@pytest.mark.parametrize("second", [VALID, INVALID, FAIL])
@pytest.mark.parametrize("first", [VALID, INVALID, FAIL])
def test_an_observer_that_answers_twice_has_said_the_first_thing(first, second):
    site = Site()
    join, observation = site.ask()
    site.say(observation, first)
    assert site.hear(m.Response, OBSERVER, observation.token, status=second) == []
    assert [event.status for event in site.all(e.Observed)] == [first]
    assert join.peer == DEVICE


def test_an_observer_cannot_vouch_for_a_join_that_it_was_not_asked_about():
    """Under the join's token, under a token of its own, under one of an earlier observation that is over."""
    site = Site()
    over, observation = site.ask()
    site.say(observation, INVALID)
    site.decide(over, Status.JOIN_REFUSED)
    join, now = site.ask(STRANGER)
    for token in (observation.token, join.token, bound(SERVER, sender=OBSERVER), b"any"):
        told = len(site.told)
        with suppress(PolicyError):
            site.hear(m.Response, OBSERVER, token, status=VALID)
        assert not any(isinstance(event, e.Observed) for _, event in site.told[told:])
    assert not site.server.is_member(STRANGER)
    site.say(now, VALID)  # control
    seen = site.last(e.Observed)
    assert (seen.device, seen.join_token, seen.status) == (STRANGER, join.token, VALID)


@pytest.mark.parametrize("who", [DEVICE, STRANGER])
def test_nobody_else_answers_for_the_observer(who):
    """Not the device that wants in, not another one that has seen the token."""
    site = Site()
    _, observation = site.ask()
    with pytest.raises(PolicyError, match=f"the message is for {OBSERVER:x}"):
        site.hear(m.Response, who, observation.token, status=VALID)
    assert site.all(e.Observed) == []
    site.say(observation, VALID)  # control
    assert len(site.all(e.Observed)) == 1


def test_an_answer_to_a_join_that_is_over_lets_nobody_in():
    site = Site()
    join, observation = site.ask()
    site.decide(join, Status.JOIN_REFUSED)
    site.say(observation, VALID)
    assert site.all(e.Observed) == []  # nobody waits for it any more
    before = snapshot(site.server)
    with pytest.raises(PolicyError, match="does not fit: the exchange with"):
        site.server.answer_join(DEVICE, join.token, Status.JOIN_SUCCESS, T0)
    assert snapshot(site.server) == before
    assert not site.server.is_member(DEVICE)


def test_nobody_is_asked_about_a_join_whose_time_is_up():
    site = Site()
    site.perform(DEVICE, site.ends[DEVICE].join_observed(SERVER, OBSERVER, T0, nonce()))
    join = site.last(e.ObservedJoinRequested)
    site.perform(SERVER, site.server.show_value(DEVICE, join.token, b"value", T0))
    before = snapshot(site.server)
    with pytest.raises(PolicyError, match="is up"):
        site.server.observe(OBSERVER, DEVICE, join.token, b"value", T0 + 10_000, nonce())
    assert snapshot(site.server) == before
    assert sends(site.server.observe(OBSERVER, DEVICE, join.token, b"value", T0, nonce()))
