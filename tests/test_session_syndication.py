"""Syndication as sessions: what each of the three does, on good links and bad ones, with partners that disappear."""

from random import Random
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srup import messages as m
from srup import tokens
from srup.errors import EncodeError, PolicyError, ReplayError, SrupError
from srup.session import AwaySide, HomeSide, Policy, Send, persistence, syndication
from srup.session import events as e
from srup.session.exchange import MAX_EXCHANGES, Exchange, Peer
from srup.session.flows.action import ActionState
from srup.session.flows.relay import TO_AWAY, TO_HOME, Crossing, RelayAnswered, Relayed, RelayState
from srup.session.flows.reply import Content
from srup.session.flows.syndication_away import AwayState
from srup.session.flows.syndication_home import HomeState
from srup.session.syndication import SyndicationServerSession
from srup.session.syndications import LIST_TURN, MAX_SHARED, RESEND, Role, Syndication
from srup.session.table import Trigger
from srup.wire import IDENTIFICATION_RESPONSE, Status

from .session_link import T0, OldPeer, events, make, nonce, sends, snapshot
from .syndication_link import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, NEIGHBOUR, Chain

LAMP = LAMPS[1]
UNKNOWN = 0xFF


@pytest.fixture
def chain():
    return Chain().syndicated()


def next_message(chain, cls, to, sender, token=None, **fields):
    """A genuine message that nobody has sent yet."""
    network = "home" if HOME in (to, sender) else "away"
    side = chain.ends[network][to].known.peers[sender]
    token = token or tokens.bind(sender, to, chain.now + 300, nonce())
    return make(cls, side.window.highest + 1, sender, token, **fields)


def refused(session, message, error=PolicyError, match=None, now=T0):
    before = snapshot(session)
    with pytest.raises(error, match=match):
        session.receive(message, now, nonce())
    assert snapshot(session) == before


# Beginning.


def test_a_syndication_begins_and_all_three_know(chain):
    assert [event.url for event in chain.events(HOME_ID, e.SyndicationOffered)] == [KEY_SERVICE]
    assert [event.sealed for event in chain.events(AWAY, e.SyndicationRequested)] == [b"to away: the value"]
    for who in (HOME, AWAY_ID, AWAY):
        assert [event.status for event in chain.events(who, e.SyndicationAnswered)] == [Status.JOIN_SUCCESS]
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)] == [LAMPS]
    assert chain.home.syndication(HOME_ID).role is Role.HOME
    assert chain.away.syndication(AWAY_ID).role is Role.AWAY
    assert chain.home.syndication(HOME_ID).missing == ()
    assert chain.away_side.syndicated
    assert chain.refused == []


def test_an_init_is_answered_under_its_own_token():
    chain = Chain().joined()
    token = chain.begin()
    assert [event.token for event in chain.events(HOME, e.SyndicationAnswered)] == [token]


def test_every_hop_has_its_own_identities_sequence_ids_and_tokens(chain):
    chain.ask(chain.home.syndicated_action, LAMP, 7)
    for network, to, message in chain.wires:
        assert message.sender_id in chain.ends[network]
        assert to in chain.ends[network]
        bound = tokens.parse(message.token)
        assert {bound.sender, bound.recipient} == {message.sender_id, to}
    for cls in (m.SyndicatedAction, m.SyndicatedDeviceList, m.SyndicatedDeviceCount):
        there, here = [
            [Content.of(message) for net, _, message in chain.wires if net == network and type(message) is cls]
            for network in ("home", "away")
        ]
        assert there == here != []


def test_the_away_owner_may_refuse():
    chain = Chain().joined()
    chain.moderate = False
    chain.begin()
    assert [event.status for event in chain.events(HOME, e.SyndicationAnswered)] == [Status.JOIN_REFUSED]
    assert chain.home.syndication(HOME_ID) is None
    assert chain.away.syndication(AWAY_ID) is None
    assert not chain.away_side.syndicated
    chain.moderate = True
    chain.begin()  # and change its mind
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)] == [LAMPS]


def test_home_begins_one_syndication_with_a_device_and_none_with_that_of_another_server(chain):
    with pytest.raises(PolicyError, match="another syndication"):
        chain.home.begin_syndication(HOME_ID, KEY_SERVICE, b"", T0, nonce())
    chain.home.syndication_devices.add(NEIGHBOUR)
    with pytest.raises(PolicyError, match="another syndication"):
        chain.home.begin_syndication(NEIGHBOUR, KEY_SERVICE, b"", T0, nonce())
    with pytest.raises(PolicyError, match="not joined"):
        chain.home.begin_syndication(UNKNOWN, KEY_SERVICE, b"", T0, nonce())
    assert chain.home.syndication(UNKNOWN) is None


def test_an_init_that_is_never_answered_ends():
    chain = Chain().joined()
    chain.cut.add(HOME_ID)
    token = chain.begin()
    chain.advance(T0 + 90_000)
    assert chain.outcome(token) == [e.Unanswered(HOME_ID, token, m.SyndicationInit)]
    assert chain.home.syndication(HOME_ID) is None


def test_an_offer_that_nobody_decides_expires_at_the_device():
    chain = Chain().joined()
    chain.moderate = None
    chain.perform(chain.home, chain.home.begin_syndication(HOME_ID, KEY_SERVICE, b"", T0, nonce(), lifetime=60))
    chain.advance(T0 + 120)
    assert [event.token for event in chain.events(HOME_ID, e.SyndicationEnded)] == [chain.offer.token]
    with pytest.raises(PolicyError, match="not known"):
        chain.home_side.answer_init(chain.offer.token, Status.JOIN_SUCCESS, chain.now)


@pytest.mark.parametrize("status", [Status.ACTION_SUCCESS, 0x50, None])
def test_answers_must_fit_the_question(status):
    chain = Chain().joined()
    chain.moderate = None
    chain.begin()
    [requested] = chain.events(AWAY, e.SyndicationRequested)
    with pytest.raises(EncodeError, match="status"):
        chain.away.refuse_syndication(AWAY_ID, requested.token, T0, status)
    with pytest.raises(EncodeError, match="status"):
        chain.home_side.answer_init(chain.offer.token, status, T0)


def test_a_refusal_cannot_be_a_success(chain):
    for method in (chain.away.refuse_syndication, chain.away.refuse):
        for status in (Status.JOIN_SUCCESS, Status.ACTION_SUCCESS):
            with pytest.raises(EncodeError, match="status"):
                method(AWAY_ID, b"token", T0, status)


# Requests.


def test_an_allowed_action_is_done_by_the_device_and_answered_to_home(chain):
    token = chain.ask(chain.home.syndicated_action, LAMP, 7)
    assert chain.outcome(token) == [e.ActionAnswered(HOME_ID, token, Status.ACTION_SUCCESS)]
    assert [(action, lamp) for action, lamp, _ in chain.done] == [(7, LAMP)]


def test_a_shared_device_is_identified(chain):
    token = chain.ask(chain.home.syndicated_identify, LAMP)
    assert chain.outcome(token) == [e.SyndicatedIdentified(HOME_ID, token, LAMP, f"lamp {LAMP:x}")]


def test_a_request_of_the_server_is_carried_out_by_its_owner(chain):
    token = chain.ask(chain.home.syndicated_request, 9, b"data")
    [requested] = chain.events(AWAY, e.SyndicatedC2Requested)
    assert (requested.req_id, requested.data) == (9, b"data")
    assert chain.outcome(token) == [e.ActionAnswered(HOME_ID, token, Status.ACTION_SUCCESS)]


ASK = {
    "action": lambda chain, target: chain.ask(chain.home.syndicated_action, target, 7),
    "identify": lambda chain, target: chain.ask(chain.home.syndicated_identify, target),
    "request": lambda chain, target: chain.ask(chain.home.syndicated_request, 9, b""),
}


@pytest.mark.parametrize("kind", ASK)
def test_the_away_owner_refuses_a_request(chain, kind):
    chain.moderate = False
    token = ASK[kind](chain, LAMP)
    [event] = chain.outcome(token)
    assert event.status is Status.ACTION_FAIL
    assert type(event) is (e.IdentificationRefused if kind == "identify" else e.ActionAnswered)
    assert chain.sent("away", LAMP, m.Action) == chain.sent("away", LAMP, m.IdRequest) == []


@pytest.mark.parametrize("kind", ["action", "identify"])
def test_what_is_not_shared_is_unknown_and_nobody_is_asked(chain, kind):
    chain.perform(chain.away, chain.away.share(AWAY_ID, [LAMPS[0]], T0, nonce()))
    [event] = chain.outcome(ASK[kind](chain, LAMP))
    assert event.status is Status.ACTION_UNKNOWN
    assert chain.events(AWAY, e.SyndicatedActionRequested, e.SyndicatedIdRequested) == []
    assert chain.sent("away", LAMP, m.Action) == []


def test_a_shared_device_that_is_not_there_fails(chain):
    chain.perform(chain.away, chain.away.terminate(LAMP, T0, nonce()))
    [event] = chain.outcome(chain.ask(chain.home.syndicated_action, LAMP, 7))
    assert event.status is Status.ACTION_FAIL


def test_a_decision_that_comes_too_late_does_nothing(chain):
    chain.moderate = None
    token = chain.ask(chain.home.syndicated_action, LAMP, 7)
    [requested] = chain.events(AWAY, e.SyndicatedActionRequested)
    before = snapshot(chain.away)
    with pytest.raises(PolicyError, match="too late"):
        chain.away.allow(AWAY_ID, requested.token, T0 + 310, nonce())
    assert snapshot(chain.away) == before
    chain.advance(T0 + 400)
    assert chain.outcome(token) == [e.Unanswered(HOME_ID, token, m.SyndicatedAction)]
    with pytest.raises(PolicyError, match="not known"):
        chain.away.allow(AWAY_ID, requested.token, chain.now, nonce())
    assert not chain.done


def test_nothing_is_allowed_for_a_device_that_is_no_member_any_more(chain):
    chain.moderate = None
    chain.ask(chain.home.syndicated_action, LAMP, 7)
    [requested] = chain.events(AWAY, e.SyndicatedActionRequested)
    chain.away.known.peers[AWAY_ID].member = False  # in whatever way that came about
    with pytest.raises(PolicyError, match="not the syndication device"):
        chain.away.allow(AWAY_ID, requested.token, T0, nonce())
    chain.away.known.peers[AWAY_ID].member = True
    chain.perform(chain.away, chain.away.allow(AWAY_ID, requested.token, T0, nonce()))
    assert sum(chain.done.values()) == 1


def test_a_silent_device_leaves_the_question_open_until_it_expires(chain):
    chain.cut.add(LAMP)
    token = chain.ask(chain.home.syndicated_action, LAMP, 7)
    chain.advance(T0 + 299)
    assert chain.outcome(token) == []
    chain.advance(T0 + 400)
    assert chain.outcome(token) == [e.Unanswered(HOME_ID, token, m.SyndicatedAction)]


def test_the_life_of_a_request_is_not_longer_on_later_hops(chain):
    chain.moderate = None
    chain.ask(chain.home.syndicated_action, LAMP, 7, lifetime=100)
    chain.now = T0 + 50
    [requested] = chain.events(AWAY, e.SyndicatedActionRequested)
    chain.perform(chain.away, chain.away.allow(AWAY_ID, requested.token, chain.now, nonce()))
    hops = [*chain.sent("home", HOME_ID, m.SyndicatedAction), *chain.sent("away", AWAY, m.SyndicatedAction)]
    hops += chain.sent("away", LAMP, m.Action)
    assert [tokens.parse(message.token).expiry for message in hops] == [T0 + 100] * 3


def test_the_resend_number_is_not_for_other_requests(chain):
    with pytest.raises(EncodeError, match="req_id"):
        chain.home.syndicated_request(HOME_ID, RESEND, b"", T0, nonce())


@pytest.mark.parametrize(
    "method", ["syndicated_identify", "syndicated_action", "syndicated_request", "request_list", "end_syndication"]
)
def test_without_a_syndication_home_asks_nothing(method):
    chain = Chain().joined()
    arguments = {"syndicated_identify": (LAMP,), "syndicated_action": (LAMP, 1), "syndicated_request": (1, b"")}
    for device in (HOME_ID, NEIGHBOUR, UNKNOWN):
        with pytest.raises(PolicyError, match="syndication"):
            getattr(chain.home, method)(device, *arguments.get(method, ()), T0, nonce())


@pytest.mark.parametrize("method", ["share", "terminate_syndication"])
def test_without_a_syndication_away_shares_nothing(method):
    chain = Chain().joined()
    with pytest.raises(PolicyError, match="syndication"):
        getattr(chain.away, method)(AWAY_ID, *([[]] if method == "share" else []), T0, nonce())


# Values.


def value(chain, lamp, data_id="temperature", data=b"21"):
    device = chain.lamps[lamp]
    chain.perform(device, device.data(AWAY, data_id, data, chain.now, nonce()))


def test_values_of_shared_devices_reach_home(chain):
    chain.perform(chain.away, chain.away.share(AWAY_ID, [LAMP], T0, nonce()))
    for lamp in LAMPS:
        value(chain, lamp)
    assert len(chain.events(AWAY, e.DataReceived)) == 3
    [told] = chain.events(HOME, e.SyndicatedDataReceived)
    assert (told.peer, told.source, told.data_id, told.data) == (HOME_ID, LAMP, "temperature", b"21")


def test_a_value_that_home_does_not_know_comes_back_as_refused(chain):
    value(chain, LAMP)
    [told] = chain.events(HOME, e.SyndicatedDataReceived)
    chain.perform(chain.home, chain.home.refuse_data(HOME_ID, told.token, T0))
    [sent] = chain.sent("away", AWAY_ID, m.SyndicatedData)
    assert chain.events(AWAY, e.DataRefused) == [e.DataRefused(AWAY_ID, sent.token)]


def test_an_identification_for_the_away_owner_is_not_a_value_for_home(chain):
    chain.perform(chain.away, chain.away.identify(LAMP, T0, nonce()))
    assert len(chain.events(AWAY, e.Identified)) == 1
    assert chain.sent("away", AWAY_ID, m.SyndicatedData) == []


def test_after_the_end_no_value_leaves(chain):
    chain.perform(chain.away, chain.away.terminate_syndication(AWAY_ID, T0, nonce()))
    value(chain, LAMP)
    assert chain.sent("away", AWAY_ID, m.SyndicatedData) == []
    assert chain.away.shares(LAMP) == []


# The list.


def entries(chain):
    return dict(chain.home.syndication(HOME_ID).devices)


def test_the_list_can_change(chain):
    chain.perform(chain.away, chain.away.share(AWAY_ID, [LAMPS[2], LAMPS[0], LAMPS[2]], T0, nonce()))
    chain.perform(chain.away, chain.away.share(AWAY_ID, [], T0, nonce()))
    shared = [event.devices for event in chain.events(HOME, e.DevicesShared)]
    assert shared == [LAMPS, (LAMPS[2], LAMPS[0]), ()]


def lose(chain, network, to, cls, keep=lambda message: False):
    """Lose messages of a class on the way to somebody, except those that are kept; return how to stop that."""
    carry = chain.carry

    def lossy(net, who, message):
        if (net, who) == (network, to) and type(message) is cls and not keep(message):
            return
        carry(net, who, message)

    chain.carry = lossy
    return lambda: setattr(chain, "carry", carry)


@pytest.mark.parametrize(("network", "to"), [("away", AWAY_ID), ("home", HOME)])
def test_missing_entries_are_known_and_asked_for(network, to):
    chain = Chain().joined()
    heal = lose(chain, network, to, m.SyndicatedDeviceList, lambda message: message.device_sequence == 2)
    chain.begin()
    assert chain.home.syndication(HOME_ID).missing == (1, 3)
    assert chain.events(HOME, e.DevicesShared) == []
    heal()
    chain.advance(T0 + 5)
    [missing] = chain.events(HOME, e.DevicesMissing)
    assert (missing.numbers, missing.repeats) == ((1, 3), True)
    [event] = chain.events(HOME, e.DevicesShared)
    assert event.devices == LAMPS
    [request] = chain.sent("away", AWAY, m.SyndicatedC2Request)
    assert (request.req_id, request.data) == (RESEND, pack("<2I", 1, 3))
    assert len(chain.sent("away", AWAY_ID, m.SyndicatedDeviceList)) == 5  # only those two came again
    chain.advance(T0 + 5000)
    assert len(chain.events(HOME, e.DevicesMissing)) == 1
    assert chain.events(AWAY, e.SyndicatedC2Requested) == []


@pytest.mark.parametrize(("network", "to"), [("away", AWAY_ID), ("home", HOME)])
def test_a_lost_count_comes_again(network, to):
    chain = Chain().joined()
    heal = lose(chain, network, to, m.SyndicatedDeviceCount)
    chain.begin()
    assert chain.home.syndication(HOME_ID).count is None
    assert chain.home.syndication(HOME_ID).missing == ()
    heal()
    chain.advance(T0 + 60)
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)][-1] == LAMPS
    assert chain.home.syndication(HOME_ID).missing == ()
    assert chain.home.deadline() is None or chain.home.syndication(HOME_ID).due is None


def test_missing_entries_are_told_at_growing_intervals():
    chain = Chain().joined()
    lose(chain, "home", HOME, m.SyndicatedDeviceList)
    chain.begin()
    times = []
    while chain.now < T0 + 1000:
        before = len(chain.events(HOME, e.DevicesMissing))
        chain.advance(chain.home.deadline())
        times += [chain.now - T0] * (len(chain.events(HOME, e.DevicesMissing)) - before)
    assert times == [5, 15, 35, 75, 155, 315, 635, 1275]


def test_a_list_whose_token_has_expired_is_sent_as_a_new_one(chain):
    first = chain.home.syndication(HOME_ID).token
    chain.advance(T0 + 90_000)
    chain.ask(chain.home.request_list)
    syndication = chain.home.syndication(HOME_ID)
    assert (syndication.token != first, syndication.missing) == (True, ())
    assert len(chain.events(HOME, e.DevicesShared)) == 2


def test_a_flood_of_values_does_not_make_the_list_forgotten():
    chain = Chain().joined()
    heal = lose(chain, "home", HOME, m.SyndicatedDeviceList)
    chain.begin()
    for _ in range(2 * MAX_EXCHANGES):
        value(chain, LAMP)
    heal()
    chain.advance(T0 + 5)
    assert chain.home.syndication(HOME_ID).missing == ()


@pytest.mark.parametrize("data", [b"x", b"12345"])
def test_a_malformed_request_for_the_list_is_answered(chain, data):
    outputs = chain.home.ask(
        HOME_ID,
        ActionState.ASKED,
        m.SyndicatedC2Request,
        T0,
        nonce(),
        None,
        data=data,
        req_id=RESEND,
    )
    chain.perform(chain.home, outputs)
    token = outputs[0].message.token
    assert chain.outcome(token) == [e.ActionAnswered(HOME_ID, token, Status.ACTION_UNKNOWN)]


def test_numbers_that_are_not_in_the_list_are_passed_over(chain):
    data = pack("<4I", 0, 2, 2, 2**32 - 1)
    request = next_message(chain, m.SyndicatedC2Request, AWAY, AWAY_ID, data=data, req_id=RESEND)
    outputs = chain.away.receive(request, T0, nonce())
    assert [type(message) for message in sends(outputs)] == [m.SyndicatedDeviceList, m.Response]


@pytest.mark.parametrize("hop", ["home", "away"])
def test_an_older_count_does_not_bring_the_older_list_back(chain, hop):
    """The first count is late: it is held back on one of the networks while a second list goes through."""
    held = []
    carry = chain.carry
    chain.carry = lambda *args: (
        held.append(args) if type(args[2]) is m.SyndicatedDeviceCount and args[0] == hop and not held else carry(*args)
    )
    chain.perform(chain.away, chain.away.share(AWAY_ID, [LAMPS[0]], T0, nonce()))
    chain.perform(chain.away, chain.away.share(AWAY_ID, [LAMPS[1]], T0, nonce()))
    chain.hear(*held[0])
    chain.advance(T0 + 2000)
    assert entries(chain) == {1: LAMPS[1]}
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)] == [LAMPS, (LAMPS[1],)]


def test_entries_of_another_list_and_numbers_beyond_the_count_are_refused(chain):
    syndication = chain.home.syndication(HOME_ID)
    other = next_message(chain, m.SyndicatedDeviceList, HOME, HOME_ID, device_sequence=1, device_id=UNKNOWN)
    refused(chain.home, other, match="another list")
    for number in (4, 2**32 - 1):
        entry = next_message(chain, m.SyndicatedDeviceList, HOME, HOME_ID, syndication.token, device_sequence=number)
        refused(chain.home, entry, match="no number")
    other = next_message(chain, m.SyndicatedDeviceList, AWAY_ID, AWAY, device_sequence=1)
    refused(chain.away_side, other, match="another list")


def test_a_list_is_bounded(chain):
    count = next_message(chain, m.SyndicatedDeviceCount, HOME, HOME_ID, count=MAX_SHARED + 1)
    refused(chain.home, count, match="too many")
    with pytest.raises(EncodeError, match="10000"):
        chain.away.share(AWAY_ID, range(MAX_SHARED + 1), T0, nonce())
    for wrong in (-1, 2**64, "1", True):
        with pytest.raises(EncodeError, match="identity"):
            chain.away.share(AWAY_ID, [wrong], T0, nonce())
    assert chain.away.syndication(AWAY_ID).devices == dict(enumerate(LAMPS, 1))


def test_a_list_of_the_longest_kind_comes_complete():
    chain = Chain()
    chain.shared = list(range(MAX_SHARED))
    chain.syndicated()
    turns = 1
    while chain.away.deadline() == 0.0:
        outputs = chain.away.tick(T0)
        assert len(outputs) <= LIST_TURN
        chain.perform(chain.away, outputs)
        turns += 1
    assert turns == -(-MAX_SHARED // LIST_TURN)
    assert len(chain.events(HOME, e.DevicesShared)[0].devices) == MAX_SHARED


# The end.


def over(chain):
    return [
        chain.home.syndication(HOME_ID) is None,
        chain.away.syndication(AWAY_ID) is None,
        not chain.away_side.syndicated,
    ]


def test_home_ends_it(chain):
    chain.moderate = None
    asked = chain.ask(chain.home.syndicated_action, LAMP, 7)
    token = chain.ask(chain.home.end_syndication)
    assert chain.outcome(asked) == [e.Unanswered(HOME_ID, asked, m.SyndicatedAction)]
    assert chain.outcome(token) == [e.SyndicationEnded(HOME_ID, token)]
    assert len(chain.events(AWAY, e.SyndicationEnded)) == len(chain.events(AWAY_ID, e.SyndicationEnded)) == 1
    assert all(over(chain))
    [requested] = chain.events(AWAY, e.SyndicatedActionRequested)
    with pytest.raises(PolicyError, match="UNANSWERED"):
        chain.away.allow(AWAY_ID, requested.token, T0, nonce())  # home has gone
    assert not chain.done


@pytest.mark.parametrize("how", ["home ends it", "away ends it", "the device leaves", "another request replaces it"])
def test_what_was_asked_in_one_syndication_is_not_done_in_the_next(chain, how):
    chain.moderate = None
    chain.ask(chain.home.syndicated_action, LAMP, 7)
    [asked] = chain.events(AWAY, e.SyndicatedActionRequested)
    chain.moderate = True
    match how:
        case "home ends it":
            chain.ask(chain.home.end_syndication)
        case "away ends it":
            chain.perform(chain.away, chain.away.terminate_syndication(AWAY_ID, chain.now, nonce()))
        case "the device leaves":
            chain.perform(chain.away_side, chain.away_side.resign(AWAY, chain.now, nonce()))
        case _:
            chain.home.syndications.by_device.clear()
    chain.begin()
    assert chain.away.syndication(AWAY_ID) is not None
    with pytest.raises(PolicyError, match="UNANSWERED"):
        chain.away.allow(AWAY_ID, asked.token, chain.now, nonce())
    assert not chain.done
    chain.ask(chain.home.syndicated_action, LAMP, 7)
    assert sum(chain.done.values()) == 1


def test_a_request_for_a_syndication_ends_with_the_membership(chain):
    chain.ask(chain.home.end_syndication)
    chain.moderate = None
    chain.begin()
    asked = chain.events(AWAY, e.SyndicationRequested)[-1]
    chain.perform(chain.away_side, chain.away_side.resign(AWAY, chain.now, nonce()))
    del chain.offer
    chain.perform(chain.away_side, chain.away_side.join(AWAY, chain.now, nonce()))
    with pytest.raises(PolicyError, match="UNANSWERED"):
        chain.away.accept_syndication(AWAY_ID, asked.token, LAMPS, chain.now, nonce())
    assert chain.away.syndication(AWAY_ID) is None


def test_an_offer_that_its_end_has_overtaken_is_refused(chain):
    chain.ask(chain.home.end_syndication)
    [begin] = chain.home.begin_syndication(HOME_ID, KEY_SERVICE, b"", chain.now, nonce())
    chain.ask(chain.home.end_syndication)
    with pytest.raises(PolicyError, match="ended"):
        chain.home_side.receive(begin.message, chain.now, nonce())
    chain.begin()  # the next one is a new one
    assert chain.away.syndication(AWAY_ID) is not None


def test_an_end_that_got_lost_or_late_does_not_end_the_next_one(chain):
    [end, *_] = chain.home.end_syndication(HOME_ID, chain.now, nonce())  # and nobody hears it
    chain.own = lambda session, event: None
    chain.begin()
    [offer] = chain.events(HOME_ID, e.SyndicationOffered)[-1:]
    chain.advance(T0 + 250)
    assert chain.sent("home", HOME_ID, m.SyndicatedEndRequest) == []
    with pytest.raises(PolicyError, match="before it offered"):
        chain.home_side.receive(end.message, chain.now, nonce())
    assert chain.home_side.awaits(HOME, offer.token)


def test_an_offer_ends_with_the_membership(chain):
    chain.ask(chain.home.end_syndication)
    offers = []
    chain.own = lambda session, event: offers.append(event) if isinstance(event, e.SyndicationOffered) else None
    chain.begin()
    [offer] = offers
    assert chain.home_side.awaits(HOME, offer.token)
    chain.perform(chain.home, chain.home.terminate(HOME_ID, chain.now, nonce()))
    assert not chain.home_side.awaits(HOME, offer.token)
    with pytest.raises(PolicyError, match="UNANSWERED"):
        chain.home_side.answer_init(offer.token, Status.JOIN_SUCCESS, chain.now)


def test_away_ends_it(chain):
    chain.perform(chain.away, chain.away.terminate_syndication(AWAY_ID, T0, nonce()))
    for who in (HOME, AWAY, AWAY_ID):
        assert len(chain.events(who, e.SyndicationEnded)) == 1
    assert all(over(chain))
    assert chain.away.is_member(AWAY_ID)
    chain.advance(T0 + 1000)
    assert len(chain.sent("home", HOME, m.SyndicatedTerminate)) == 1  # answered, so not sent again


def test_a_lost_termination_comes_again(chain):
    heal = lose(chain, "home", HOME, m.SyndicatedTerminate)
    chain.perform(chain.away, chain.away.terminate_syndication(AWAY_ID, T0, nonce()))
    assert over(chain) == [False, True, True]
    heal()
    chain.advance(T0 + 60)
    assert all(over(chain))


@pytest.mark.parametrize("who", ["away puts it out", "it resigns from away", "it resigns unheard"])
def test_home_is_told_when_the_device_is_no_member_of_away_any_more(chain, who):
    if who == "away puts it out":
        chain.perform(chain.away, chain.away.terminate(AWAY_ID, T0, nonce()))
    else:
        if who == "it resigns unheard":
            chain.cut.add(AWAY)
        chain.perform(chain.away_side, chain.away_side.resign(AWAY, T0, nonce()))
        chain.advance(T0 + 400)
    assert len(chain.events(HOME, e.SyndicationEnded)) == 1
    assert over(chain)[0]
    assert over(chain)[2]
    if who != "it resigns unheard":
        assert over(chain)[1]
        assert len(chain.events(AWAY, e.SyndicationEnded)) == 1


@pytest.mark.parametrize("who", ["home puts it out", "it resigns from home", "it is refused another time"])
def test_home_knows_when_the_device_is_no_member_any_more(chain, who):
    if who == "home puts it out":
        chain.perform(chain.home, chain.home.terminate(HOME_ID, T0, nonce()))
    elif who == "it resigns from home":
        chain.perform(chain.home_side, chain.home_side.resign(HOME, T0, nonce()))
    else:
        message = next_message(chain, m.JoinRequest, HOME, HOME_ID)
        chain.home.receive(message, T0, nonce())
        chain.perform(chain.home, chain.home.answer_join(HOME_ID, message.token, Status.JOIN_REFUSED, T0))
    assert len(chain.events(HOME, e.SyndicationEnded)) == 1
    assert chain.home.syndication(HOME_ID) is None
    value(chain, LAMP)
    assert chain.events(HOME, e.SyndicatedDataReceived) == []


def test_a_moderated_join_that_times_out_ends_it(chain):
    """The device is no member then, whatever it was before."""
    message = next_message(chain, m.HumanJoinRequest, AWAY, AWAY_ID)
    chain.away.receive(message, T0, nonce())
    chain.away.show_value(AWAY_ID, message.token, b"sealed", T0)
    assert chain.away.syndication(AWAY_ID) is not None
    chain.advance(T0 + 1000)
    assert chain.away.syndication(AWAY_ID) is None
    assert len(chain.events(AWAY, e.SyndicationEnded)) == 1


@pytest.mark.parametrize("name", ["home", "away"])
def test_a_revoked_device_has_no_syndication(chain, name):
    server, device = getattr(chain, name), {"home": HOME_ID, "away": AWAY_ID}[name]
    outputs = server.revoke(device, T0)
    assert [type(output) for output in outputs][-1] is e.SyndicationEnded
    assert server.syndication(device) is None
    assert not any(isinstance(output, e.SyndicationEnded) for output in server.revoke(device, T0))


def test_the_end_of_what_does_not_exist_at_away_is_still_the_end(chain):
    chain.away_side.syndicated = False  # it has forgotten
    token = chain.ask(chain.home.end_syndication)
    assert chain.outcome(token) == [e.SyndicationEnded(HOME_ID, token)]
    assert [event.message for event in chain.events(AWAY_ID, e.RelayFailed)] == [m.SyndicatedEndRequest]


# The device in between.


@pytest.mark.parametrize("kind", ASK)
def test_what_cannot_be_passed_on_fails_at_once(chain, kind):
    chain.away_side.syndicated = False
    [event] = chain.outcome(ASK[kind](chain, LAMP))
    assert event.status is Status.ACTION_FAIL
    assert len(chain.events(AWAY_ID, e.RelayFailed)) == 1


@pytest.mark.parametrize("kind", ASK)
def test_a_request_that_comes_twice_crosses_once_and_is_answered_twice(chain, kind):
    token = ASK[kind](chain, LAMP)
    crossed = len([1 for network, to, _ in chain.wires if (network, to) == ("away", AWAY)])
    [first] = [message for net, to, message in chain.wires if to == HOME_ID and message.token == token]
    answers = [message for net, to, message in chain.wires if to == HOME and message.token == token]
    fields = {name: field for name, field in first if name not in ("sequence_id", "sender_id", "token")}
    again = next_message(chain, type(first), HOME_ID, HOME, token, **fields)
    [repeated] = sends(chain.home_side.receive(again, T0, nonce()))
    assert Content.of(repeated) == Content.of(answers[0])
    assert crossed == len([1 for network, to, _ in chain.wires if (network, to) == ("away", AWAY)])
    other = next_message(chain, type(first), HOME_ID, HOME, token, **fields | {next(iter(fields)): changed(fields)})
    refused(chain.home_side, other, match="another request")


def changed(fields):
    field = next(iter(fields.values()))
    return field + 1 if isinstance(field, int) else field + b"?"


@pytest.mark.parametrize("kind", ASK)
def test_away_takes_a_token_once(chain, kind):
    chain.moderate = None
    ASK[kind](chain, LAMP)
    [first] = [msg for net, to, msg in chain.wires if (net, to) == ("away", AWAY) and msg.layout.name in SYNDICATED]
    fields = {name: field for name, field in first if name not in ("sequence_id", "sender_id", "token")}
    again = next_message(chain, type(first), AWAY, AWAY_ID, first.token, **fields)
    assert chain.away.receive(again, T0, nonce()) == []
    other = next_message(chain, type(first), AWAY, AWAY_ID, first.token, **{next(iter(fields)): changed(fields)})
    refused(chain.away, other, match="another request")
    [outputs] = [chain.away.refuse(AWAY_ID, first.token, T0)]
    again = next_message(chain, type(first), AWAY, AWAY_ID, first.token, **fields)
    [repeated] = sends(chain.away.receive(again, T0, nonce()))
    assert Content.of(repeated) == Content.of(sends(outputs)[0])


SYNDICATED = {cls.__name__ for cls in TO_AWAY}


def test_requests_go_on_from_hop_to_hop_until_they_are_answered(chain):
    chain.cut.add(AWAY)
    token = chain.ask(chain.home.syndicated_action, LAMP, 7)
    chain.advance(T0 + 100)
    sent = chain.sent("away", AWAY, m.SyndicatedAction)
    assert len(sent) > 3
    assert len({message.token for message in sent}) == 1
    chain.cut.clear()
    chain.advance(T0 + 290)
    assert chain.outcome(token) == [e.ActionAnswered(HOME_ID, token, Status.ACTION_SUCCESS)]
    assert sum(chain.done.values()) == 1


@pytest.mark.parametrize(
    ("kind", "cls", "fields"),
    [
        ("action", m.Response, {"status": Status.RESIGN_SUCCESS}),
        ("action", m.SyndicatedData, {"data_id": IDENTIFICATION_RESPONSE}),
        ("request", m.SyndicatedData, {}),
    ],
)
def test_an_answer_to_another_kind_of_question_does_not_cross(chain, kind, cls, fields):
    chain.moderate = None
    token = ASK[kind](chain, LAMP)
    [sent] = [msg for net, to, msg in chain.wires if (net, to) == ("away", AWAY) and type(msg) in TO_AWAY]
    answer = next_message(chain, cls, AWAY_ID, AWAY, sent.token, **fields)
    refused(chain.away_side, answer, match="does not answer")
    assert chain.outcome(token) == []


def test_a_late_answer_goes_nowhere(chain):
    late = RelayAnswered(AWAY, b"away token", b"forgotten", Content.status(Status.ACTION_SUCCESS))
    before = snapshot(chain.home_side)
    assert chain.home_side.cross(late, T0, nonce()) == []
    assert snapshot(chain.home_side) == before


def test_an_expired_relay_goes_nowhere(chain):
    late = Relayed(HOME, b"home token", Content(m.SyndicatedEndRequest, ()), T0)
    outputs = chain.away_side.cross(late, T0, nonce())
    assert [type(output) for output in outputs] == [e.RelayFailed, RelayAnswered]
    assert outputs[1].content == Content.status(Status.RESIGN_FAIL)


@pytest.mark.parametrize("cls", [*TO_AWAY, *TO_HOME])
def test_only_what_belongs_there_crosses(chain, cls):
    """Each side sends what comes from the other server, and nothing else, whatever it is handed."""
    wrong = chain.home_side if cls in TO_AWAY else chain.away_side
    content = Content.of(make(cls, 1, 1, b"t"))
    outputs = wrong.cross(Relayed(1, b"t", content, T0 + 100), T0, nonce())
    assert sends(outputs) == []
    assert type(outputs[0]) is e.RelayFailed


def test_nothing_crosses_that_is_not_a_message_of_a_syndication():
    for cls in m.SCHEMA[:]:
        assert (cls in TO_AWAY or cls in TO_HOME) == (
            cls.__name__.startswith("Syndicated") and cls.__name__ not in ("SyndicationInit", "SyndicationRequest")
        )


@pytest.mark.parametrize("cls", [m.Initiate, m.Activate, m.JoinCommand, m.SyndicationInit, *TO_AWAY])
def test_the_away_server_cannot_command_the_device(chain, cls):
    message = next_message(chain, cls, AWAY_ID, AWAY)
    before = snapshot(chain.away_side, window=False), snapshot(chain.home_side)
    outputs = chain.away_side.receive(message, T0, nonce())
    assert [type(output) for output in outputs] == [e.Unexpected]
    assert (snapshot(chain.away_side, window=False), snapshot(chain.home_side)) == before


def test_the_home_server_can_command_the_device(chain):
    for cls in (m.Initiate, m.Action, m.IdRequest):
        assert chain.home_side.receive(next_message(chain, cls, HOME_ID, HOME), T0, nonce())


def test_an_identification_of_another_device_is_not_taken_for_the_answer(chain):
    chain.moderate = None
    token = chain.ask(chain.home.syndicated_identify, LAMP)
    for fields in (
        {"data_id": "temperature", "source_id": LAMP},
        {"data_id": IDENTIFICATION_RESPONSE, "source_id": LAMPS[0]},
    ):
        answer = next_message(chain, m.SyndicatedData, HOME, HOME_ID, token, **fields)
        refused(chain.home, answer, match="not what was asked for")
    answer = next_message(chain, m.SyndicatedData, HOME, HOME_ID, token, data=b"x", **fields | {"source_id": LAMP})
    assert chain.home.receive(answer, T0, nonce()) == [e.SyndicatedIdentified(HOME_ID, token, LAMP, "x")]


def test_an_admission_that_is_withdrawn_while_the_owner_thinks():
    chain = Chain().joined()
    chain.moderate = None
    chain.begin()
    [requested] = chain.events(AWAY, e.SyndicationRequested)
    chain.away.syndication_devices.clear()
    before = snapshot(chain.away)
    with pytest.raises(PolicyError, match="not registered"):
        chain.away.accept_syndication(AWAY_ID, requested.token, LAMPS, T0, nonce())
    assert snapshot(chain.away) == before


def test_a_device_without_sequence_ids_left_does_not_keep_values_from_their_owner(chain):
    chain.away.known.peers[AWAY_ID].last_sent = 2**64 - 1
    value(chain, LAMP)
    assert len(chain.events(AWAY, e.DataReceived)) == 1
    assert chain.events(HOME, e.SyndicatedDataReceived) == []


def test_without_a_request_of_ours_the_away_server_is_not_heard():
    chain = Chain().joined()
    chain.perform(chain.away_side, chain.away_side.join(AWAY, T0, nonce()))
    for cls in TO_HOME:
        refused(chain.away_side, next_message(chain, cls, AWAY_ID, AWAY), match="no syndication|another list")


def test_a_request_for_a_syndication_comes_again_until_it_is_answered():
    chain = Chain(Policy()).joined()
    heal = lose(chain, "away", AWAY, m.SyndicationRequest)
    chain.begin()
    heal()
    chain.advance(T0 + 5)
    assert chain.away_side.syndicated


def test_a_request_for_a_syndication_that_nobody_answers_is_told():
    chain = Chain().joined()
    chain.moderate = None
    chain.begin()
    chain.advance(T0 + 400)
    assert [event.request for event in chain.events(AWAY_ID, e.Unanswered)] == [m.SyndicationRequest]


def test_a_side_has_one_server():
    with pytest.raises(ValueError, match="one server"):
        HomeSide(1, [2, 3])
    with pytest.raises(ValueError, match="one server"):
        AwaySide(1, [])


# Partners that disappear, and those that flood.


def size(session):
    return sum(len(partner.exchanges) for partner in session.known.peers.values()), len(session.known.timers)


def test_home_disappears_and_away_floods(chain):
    """Memory is flat, and away is not held up."""
    chain.cut.add(HOME)
    for _ in range(3 * MAX_EXCHANGES):
        value(chain, LAMP)
        chain.wires.clear()
        chain.told.clear()
    for session in (chain.home_side, chain.away_side):
        known, timers = size(session)
        assert known <= 2 * MAX_EXCHANGES
        assert timers <= 65 + 4 * known
    for _ in range(3 * MAX_EXCHANGES):
        chain.perform(chain.away, chain.away.share(AWAY_ID, LAMPS, T0, nonce()))
    assert size(chain.home_side)[0] <= 2 * MAX_EXCHANGES
    chain.advance(T0 + 10**6)
    assert size(chain.home_side)[0] == size(chain.away_side)[0] == 0


def test_away_disappears_and_home_floods(chain):
    chain.cut.add(AWAY)
    asked = [chain.ask(chain.home.syndicated_action, LAMP, 7) for _ in range(MAX_EXCHANGES)]
    with pytest.raises(PolicyError, match="too many"):
        chain.ask(chain.home.syndicated_action, LAMP, 7)
    chain.advance(T0 + 400)
    assert all(chain.outcome(token) == [e.Unanswered(HOME_ID, token, m.SyndicatedAction)] for token in asked)
    assert not chain.done
    chain.cut.clear()
    token = chain.ask(chain.home.syndicated_action, LAMP, 7)
    assert chain.outcome(token) == [e.ActionAnswered(HOME_ID, token, Status.ACTION_SUCCESS)]


def test_more_than_the_device_has_room_for_fails_and_the_rest_is_served(chain):
    chain.cut.add(AWAY)
    for _ in range(MAX_EXCHANGES):
        chain.perform(chain.away_side, chain.away_side.action(AWAY, 1, T0, nonce()))
    [event] = chain.outcome(chain.ask(chain.home.syndicated_action, LAMP, 7))
    assert event.status is Status.ACTION_FAIL


def test_the_device_disappears(chain):
    chain.cut |= {HOME_ID, AWAY_ID}
    tokens_asked = [chain.ask(chain.home.syndicated_action, LAMP, 7), chain.ask(chain.home.end_syndication)]
    chain.advance(T0 + 400)
    kinds = [[type(event) for event in chain.outcome(token)] for token in tokens_asked]
    assert kinds == [[e.Unanswered], [e.Unanswered]]
    assert chain.home.syndication(HOME_ID) is None


# Everything else: a defined outcome, and no effect where none is due.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["home", "away", "home_side", "away_side"])
def test_any_message_under_any_token_has_a_defined_outcome(name):
    """No exception but those of the contract, and whatever is refused leaves no trace."""
    random = Random(name)
    chain = Chain().syndicated()
    for moderate in (True, False, None):
        chain.moderate = moderate
        for kind in ASK.values():
            kind(chain, LAMP)
    value(chain, LAMP)
    session = getattr(chain, name)
    server = name in ("home", "away")
    sender = {"home": HOME_ID, "away": AWAY_ID, "home_side": HOME, "away_side": AWAY}[name]
    partner = session.known.peers[sender]
    known = list(partner.exchanges) + [None] * 5
    for _ in range(3000):
        cls = random.choice(m.SCHEMA[:])
        fields = {"status": random.choice(list(Status))} if cls is m.Response else {}
        if cls in (m.TerminateCommand, m.ResignRequest, m.SyndicatedEndRequest, m.SyndicatedTerminate):
            token = random.choice(known[:-5])  # under a new one it would be the end of the test
        else:
            token = random.choice(known)
        token = token or tokens.bind(sender, session.identity, T0 + 300, nonce())
        message = make(cls, partner.window.highest + 1, sender, token, **fields)
        before = snapshot(session)
        noted = snapshot(session, window=False)
        try:
            outputs = session.receive(message, T0, nonce())
        except (PolicyError, ReplayError):
            assert snapshot(session) == before
            continue
        if [type(output) for output in outputs] == [e.Unexpected]:
            assert snapshot(session, window=False) == noted
        partner.member = True
        if not server:
            session.syndicated = True


def table_of(cls):
    return [(state, trigger, step) for (state, trigger), step in cls.table.items()]


@pytest.mark.parametrize("cls", [syndication.SyndicationServerSession, HomeSide, AwaySide])
def test_the_tables_are_whole(cls):
    """Every effect exists, and every state that waits for somebody has an end."""
    waiting = {"STARTING", "IDENTIFYING", "ENDING", "DECIDING", "SHARING", "MODERATING", "CARRYING", "TERMINATING"}
    waiting |= {"OFFERED", "REQUESTING", "RELAYING", "RELAYED"}
    for state, _, step in table_of(cls):
        assert not step.effect or any(callable(getattr(flow, step.effect, None)) for flow in cls.flow_types)
        assert step.state.name not in waiting or (step.state, Trigger.EXPIRE) in cls.table, step
        assert state.name not in waiting or (state, Trigger.EXPIRE) in cls.table, state
    for opening, how in cls.starts.items():
        assert (how.state, opening) in cls.table


@pytest.mark.parametrize("cls", [syndication.SyndicationServerSession, HomeSide, AwaySide])
def test_an_effect_that_meets_a_foreign_exchange_refuses(cls):
    """Every row that a message can reach is tried on an exchange that knows nothing."""
    chain = Chain().syndicated()
    session = {HomeSide: chain.home_side, AwaySide: chain.away_side}.get(cls, chain.home)
    sender = HOME_ID if session is chain.home else session.server
    partner = session.known.peers[sender]
    for state, trigger, _ in table_of(cls):
        if isinstance(trigger, Trigger) or not isinstance(state, HomeState | AwayState | RelayState):
            continue  # other exchanges have tests of their own
        for mine in (True, False):
            token = tokens.bind(
                *((session.identity, sender) if mine else (sender, session.identity)), T0 + 300, nonce()
            )
            exchange = Exchange(partner, token, state, T0 + 300, mine=mine)
            session.known.add(exchange)
            kind, fields = (trigger, {}) if isinstance(trigger, type) else (m.Response, {"status": trigger})
            message = make(kind, partner.window.highest + 1, sender, token, **fields)
            try:
                outputs = session.receive(message, T0, nonce())
            except SrupError:
                assert exchange.state is state
            else:
                assert all(isinstance(output, Send | e.Event) for output in outputs)
            partner.member = True
            if session.known.holds(exchange):
                session.known.forget(exchange)


# Deployed peers: tokens of their own for everything, kept across relays, and no answers.


class OldServer(OldPeer):
    """Either server, as deployed: no answers but those that the test sends."""

    def answers(self, message):
        match message:
            case m.JoinRequest():
                return [self.send(m.Response, message.token, status=Status.JOIN_SUCCESS)]
        return []


def pass_all(device, old, outputs, told, now=T0):
    """Carry messages between one side and an old server; return what crosses."""
    crossing = []
    queue = list(outputs)
    while queue:
        output = queue.pop(0)
        if isinstance(output, Crossing):
            crossing.append(output)
        elif isinstance(output, Send):
            for answer in old.hear(output.message):
                queue += device.receive(answer, now, nonce())
        else:
            told.append(output)
    return crossing


@pytest.fixture
def old_away():
    """A syndication device of ours between a home server of ours and a deployed away server."""
    chain = Chain(Policy()).joined()
    old = OldServer(AWAY, AWAY_ID)
    side = chain.away_side
    chain.own = lambda *_: None
    chain.perform(chain.home, chain.home.begin_syndication(HOME_ID, KEY_SERVICE, b"v", T0, nonce()))
    pass_all(side, old, side.join(AWAY, T0, nonce()), [])
    pass_all(side, old, side.request_syndication(b"v", T0, nonce()), [])
    assert type(old.heard[-1]) is m.SyndicationRequest

    def say(cls, token=None, **fields):
        told = []
        crossings = pass_all(side, old, side.receive(old.send(cls, token, **fields), T0, nonce()), told)
        if any(isinstance(event, e.SyndicationAnswered) for event in told):
            [offer] = chain.events(HOME_ID, e.SyndicationOffered)
            answer = chain.home_side.answer_init(offer.token, Status.JOIN_SUCCESS, T0)
            chain.perform(chain.home_side, answer)
        for crossing in crossings:
            chain.perform(chain.home_side, chain.home_side.cross(crossing, T0, nonce()))

    chain.carry_home = chain.carry
    return chain, old, say


def test_a_deployed_away_server_is_understood(old_away):
    chain, old, say = old_away
    say(m.SyndicatedDeviceCount, count=2)
    say(m.SyndicatedDeviceList, device_sequence=0, device_id=LAMPS[0])
    assert chain.home.syndication(HOME_ID).missing == (1,)
    say(m.SyndicatedDeviceList, device_sequence=1, device_id=LAMPS[1])
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)] == [LAMPS[:2]]
    say(m.SyndicatedData, source_id=LAMP, data_id="t", data=b"1")
    assert [event.data for event in chain.events(HOME, e.SyndicatedDataReceived)] == [b"1"]
    say(m.SyndicatedTerminate)
    assert chain.home.syndication(HOME_ID) is None
    assert old.dropped == []


def test_a_deployed_away_server_is_not_asked_for_a_list_again(old_away):
    chain, _, say = old_away
    say(m.SyndicatedDeviceCount, count=2)
    chain.perform(chain.home, chain.home.tick(T0 + 5))
    [missing] = chain.events(HOME, e.DevicesMissing)
    assert (missing.numbers, missing.repeats) == ((1, 2), True)
    token = chain.ask(chain.home.request_list)
    assert chain.outcome(token) == [e.ActionAnswered(HOME_ID, token, Status.ACTION_FAIL)]
    assert chain.sent("away", AWAY, m.SyndicatedC2Request) == []
    token = chain.ask(chain.home.syndicated_request, 1, b"")
    assert len(chain.sent("away", AWAY, m.SyndicatedC2Request)) == 1


def test_a_deployed_away_server_identifies_under_a_token_of_its_own(old_away):
    chain, old, say = old_away
    say(m.SyndicatedDeviceCount, count=0)
    chain.carry = lambda *args: chain.carry_home(*args) if args[0] == "home" else old.hear(args[2])
    token = chain.ask(chain.home.syndicated_identify, LAMP)
    assert type(old.heard[-1]) is m.SyndicatedIdRequest
    say(m.SyndicatedData, source_id=LAMPS[0], data_id=IDENTIFICATION_RESPONSE, data=b"another")
    assert chain.outcome(token) == []
    say(m.SyndicatedData, source_id=LAMP, data_id=IDENTIFICATION_RESPONSE, data=b"an old lamp")
    assert chain.outcome(token) == [e.SyndicatedIdentified(HOME_ID, token, LAMP, "an old lamp")]


def test_a_deployed_home_server_is_served():
    chain = Chain(Policy())
    chain.joined()
    old = OldServer(HOME, HOME_ID)
    side = chain.home_side = HomeSide(HOME_ID, [HOME], Policy())
    chain.ends["home"] = {HOME: None, HOME_ID: side}
    pass_all(side, old, side.join(HOME, T0, nonce()), [])
    chain.carry_away = chain.carry
    chain.carry = lambda *args: chain.carry_away(*args) if args[0] == "away" else old.hear(args[2])

    def say(cls, **fields):
        message = old.send(cls, **fields)
        chain.perform(side, side.receive(message, T0, nonce()))
        return message.token

    say(m.SyndicationInit, url=KEY_SERVICE, sealed=b"v")
    assert chain.away_side.syndicated
    listed = [message.device_id for message in old.heard if type(message) is m.SyndicatedDeviceList]
    assert listed == list(LAMPS)
    token = say(m.SyndicatedAction, target_id=LAMP, action_id=7)
    assert sum(chain.done.values()) == 1
    assert (old.heard[-1].token, old.heard[-1].status) == (token, Status.ACTION_SUCCESS)
    say(m.SyndicatedEndRequest)
    assert not chain.away_side.syndicated
    assert chain.away.syndication(AWAY_ID) is None
    assert old.dropped == []


def test_deployed_servers_and_device_on_the_home_side_are_understood():
    """A deployed syndication device keeps the tokens of the away server; ours takes entries before their count then."""
    chain = Chain(Policy()).joined()
    chain.home.known.peers[HOME_ID].binds = False
    chain.cut.add(HOME_ID)
    chain.begin()
    for number, (cls, fields) in enumerate(
        [
            (m.SyndicatedDeviceList, {"device_sequence": 1, "device_id": LAMPS[0]}),
            (m.SyndicatedDeviceCount, {"count": 2}),
            (m.SyndicatedDeviceList, {"device_sequence": 2, "device_id": LAMPS[1]}),
        ]
    ):
        chain.perform(
            chain.home, chain.home.receive(make(cls, 100 + number, HOME_ID, b"%d" % number, **fields), T0, b"")
        )
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)] == [LAMPS[:2]]


# What is said in one syndication has no effect in the next one.


def begun_again(chain):
    """Let home end it and begin again."""
    chain.perform(chain.home, chain.home.end_syndication(HOME_ID, chain.now, nonce()))
    chain.begin()
    assert chain.away_side.syndicated


WORDS = {
    m.SyndicatedDeviceCount: {"count": 0},
    m.SyndicatedDeviceList: {"device_sequence": 1, "device_id": NEIGHBOUR},
    m.SyndicatedData: {"data_id": "t", "data": b"1", "source_id": LAMPS[0]},
    m.SyndicatedTerminate: {},
}
PLACES = {"home": (HOME, HOME_ID), "away side": (AWAY_ID, AWAY)}


@pytest.mark.parametrize("again", [True, False], ids=["in the next one", "control"])
def test_t34_a_request_for_an_earlier_syndication_is_refused(chain, again):
    peer = chain.away.known.peers[AWAY_ID]
    token = tokens.bind(AWAY_ID, AWAY, chain.now + 60, nonce())
    late = make(m.SyndicationRequest, peer.window.highest + 1, AWAY_ID, token, sealed=b"an older value")
    chain.away_side.known.peers[AWAY].last_sent += 1
    if again:
        begun_again(chain)
        with pytest.raises(PolicyError, match="before it joined"):
            chain.away.receive(late, chain.now, nonce())
    else:
        assert events(chain.away.receive(late, chain.now, nonce()), e.SyndicationRequested)


class Stolen:
    """A key that is retiring, and in other hands."""

    signing_fingerprint = "5" * 64


def said_by_a_stolen_key(chain, session, sender, cls, **fields):
    """Have a session hear what a retiring key of a partner says, under one of the highest sequence ids."""
    token = tokens.bind(sender, session.identity, chain.now + 60, nonce())
    message = make(cls, 2**64 - 9, sender, token, **fields)
    chain.perform(session, session.receive(message, chain.now, nonce(), Stolen(), retiring=True))


@pytest.mark.parametrize("place", PLACES)
def test_t30_a_list_of_a_retiring_key_keeps_none_of_its_successor_away(chain, place):
    session, sender = (chain.home, HOME_ID) if place == "home" else (chain.away_side, AWAY)
    said_by_a_stolen_key(chain, session, sender, m.SyndicatedDeviceCount, count=1)
    assert chain.home.syndication(HOME_ID).count == 1
    chain.perform(chain.away, chain.away.share(AWAY_ID, LAMPS[:2], chain.now, nonce()))
    assert tuple(chain.home.syndication(HOME_ID).devices.values()) == LAMPS[:2]


def test_t30_a_syndication_that_a_retiring_key_begins_hears_its_successor(chain):
    said_by_a_stolen_key(chain, chain.away, AWAY_ID, m.SyndicationRequest, sealed=b"v")
    chain.ask(chain.home.syndicated_action, LAMP, 7)
    assert sum(chain.done.values()) == 1


@pytest.mark.parametrize("cls", WORDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_away_said_in_an_earlier_syndication_is_refused(chain, place, cls):
    me, sender = PLACES[place]
    network = "home" if me == HOME else "away"
    session = chain.ends[network][me]
    peer = session.known.peers[sender]
    late = make(cls, peer.window.highest + 1, sender, tokens.bind(sender, me, chain.now + 60, nonce()), **WORDS[cls])
    chain.ends[network][sender].known.peers[me].last_sent += 1  # that number is taken
    begun_again(chain)
    present = chain.home.syndication(HOME_ID)
    before = snapshot(session), present.dump()
    with pytest.raises(PolicyError, match=r"before the present syndication|another list|older than one"):
        session.receive(late, chain.now, nonce())
    assert (snapshot(session), present.dump()) == before


def test_an_end_of_an_earlier_syndication_is_answered_and_ends_nothing(chain):
    peer = chain.away.known.peers[AWAY_ID]
    late = make(
        *(m.SyndicatedEndRequest, peer.window.highest + 1, AWAY_ID),
        tokens.bind(AWAY_ID, AWAY, chain.now + 60, nonce()),
    )
    chain.away_side.known.peers[AWAY].last_sent += 1
    begun_again(chain)
    answers = sends(chain.away.receive(late, chain.now, nonce()))
    assert [answer.status for answer in answers] == [Status.RESIGN_SUCCESS]
    assert chain.away.syndication(AWAY_ID) is not None


def test_before_it_is_answered_an_offer_is_not_taken_for_accepted(chain):
    """Home has begun anew, and the device has not: its count, which a broker has held, is not an answer."""
    chain.perform(chain.home, chain.home.end_syndication(HOME_ID, chain.now, nonce()))
    chain.cut.add(HOME_ID)
    chain.begin()
    number = chain.home.known.peers[HOME_ID].window.highest + 1000
    for cls in WORDS:
        token = tokens.bind(HOME_ID, HOME, chain.now + 60, nonce())
        with pytest.raises(PolicyError, match=r"has not said yet|another list"):
            chain.home.receive(make(cls, number, HOME_ID, token, **WORDS[cls]), chain.now, nonce())
    assert chain.home.syndication(HOME_ID).count is None


def test_an_offer_that_a_newer_one_has_overtaken_is_refused(chain):
    peer = chain.home_side.known.peers[HOME]
    token = tokens.bind(HOME, HOME_ID, chain.now + 60, nonce())
    late = make(m.SyndicationInit, peer.window.highest + 1, HOME, token, url=KEY_SERVICE, sealed=b"v")
    chain.home.known.peers[HOME_ID].last_sent += 1
    chain.home.syndications.drop(HOME_ID)  # a home server that forgot
    chain.begin()
    with pytest.raises(PolicyError, match="another one"):
        chain.home_side.receive(late, chain.now, nonce())


# What a syndication costs does not grow with what it has cost before.


def durable(chain):
    """The servers of a chain as with stores, and how often one of its syndications is written from now on."""
    for server in (chain.home, chain.away):
        server.known.durable = True
        server.changes()

    def written():
        facts = [fact for server in (chain.home, chain.away) for fact in server.changes().facts]
        return sum(fact.name == "syndication" for fact in facts)

    return written


def test_a_value_does_not_cost_the_list(chain, monkeypatch):
    written = durable(chain)
    monkeypatch.setattr("srup.session.syndications.Syndication.dump", None)
    chain.perform(chain.lamps[LAMP], chain.lamps[LAMP].data(AWAY, "t", b"1", T0, nonce()))
    assert len(chain.events(HOME, e.SyndicatedDataReceived)) == 1
    assert written() == 0
    assert chain.home.syndications.incomplete() == []


def test_a_list_that_comes_one_by_one_is_written_when_it_is_complete(chain):
    written = durable(chain)
    peer, token = chain.home.known.peers[HOME_ID], tokens.bind(HOME_ID, HOME, T0 + 60, nonce())
    first, size, count = peer.window.highest + 1, 200, 0
    counted = make(m.SyndicatedDeviceCount, first, HOME_ID, token, count=size)
    chain.perform(chain.home, chain.home.receive(counted, T0, b""))
    for number in range(1, size + 1):
        entry = make(m.SyndicatedDeviceList, first + number, HOME_ID, token, device_sequence=number, device_id=number)
        chain.perform(chain.home, chain.home.receive(entry, T0, b""))
        count += written()
    assert chain.events(HOME, e.DevicesShared)[-1].devices == tuple(range(1, size + 1))
    assert count == 2


def test_of_many_syndications_a_value_concerns_those_that_share_its_device():
    server = SyndicationServerSession(AWAY, Policy())
    syndications = [Syndication(device, Role.AWAY) for device in range(1000)]
    for each in syndications:
        server.syndications.begin(each, {1: LAMPS[0] if each.device % 500 else LAMPS[1]})
    assert server.syndications.through(LAMPS[1]) == [syndications[0], syndications[500]]
    server.syndications.share(syndications[0], {1: LAMPS[2]})
    server.syndications.drop(500)
    assert server.syndications.through(LAMPS[1]) == []
    assert server.syndications.through(LAMPS[2]) == [syndications[0]]


def test_a_device_with_two_numbers_is_shared_until_it_has_none():
    known = Syndication(HOME_ID, Role.HOME, devices={1: LAMP, 2: LAMP})
    known.add(1, NEIGHBOUR)
    assert known.shares(LAMP)
    known.add(2, NEIGHBOUR)
    assert not known.shares(LAMP)


# What earlier versions have kept.


@pytest.mark.parametrize(
    ("written", "state"),
    [
        ("STARTING", HomeState.STARTING),
        ("IDENTIFYING", HomeState.IDENTIFYING),
        ("ENDING", HomeState.ENDING),
        ("SHARING", AwayState.SHARING),
        ("CARRYING", AwayState.CARRYING),
        ("ANSWERED", AwayState.ANSWERED),
    ],
)
def test_states_under_their_former_name_are_read(written, state):
    exchange = Exchange(Peer(HOME_ID), b"token", HomeState.NEW, T0, mine=False)
    states = {state for state, _ in SyndicationServerSession.table}
    persistence.read_exchange(
        exchange, f'{{"d":{{"state":"SyndicationState.{written}"}}}}', {}, states, lambda peer, key: peer.horizon
    )
    assert exchange.state is state


# Bad links: whatever happens, every question has one end, and nothing is done twice.

faults = st.fixed_dictionaries(
    {
        "loss": st.sampled_from([0.0, 0.2, 0.5]),
        "duplicate": st.sampled_from([0.0, 0.3]),
        "replay": st.sampled_from([0.0, 0.3]),
        "delay": st.sampled_from([0.0, 2.0, 20.0]),
    }
)
OPERATIONS = ["action", "identify", "request", "value", "share", "allow", "refuse", "later"]
PATIENT = Policy(lifetime=20_000, update_lifetime=80_000, max_retry=60, require_bound_tokens=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    faults=faults,
    steps=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.sampled_from([0.0, 0.5, 5.0, 60.0])), max_size=25),
)
def test_every_question_has_one_end_and_everything_comes_through_when_the_links_have_healed(seed, faults, steps):
    chain = Chain(PATIENT, seed=seed, **faults)
    random = Random(seed)
    chain.joined()
    chain.advance(T0 + 1000)
    began = chain.begin()
    asked = []
    for operation, pause in steps:
        chain.advance(chain.now + pause)
        match operation:
            case "allow" | "refuse" | "later":
                chain.moderate = {"allow": True, "refuse": False, "later": None}[operation] if began else True
            case "value":
                value(chain, random.choice(LAMPS))
            case "share":
                if chain.away.syndication(AWAY_ID):
                    lamps = random.sample(LAMPS, random.randrange(4))
                    chain.perform(chain.away, chain.away.share(AWAY_ID, lamps, chain.now, nonce()))
            case _ if chain.home.syndication(HOME_ID):
                asked.append(ASK[operation](chain, random.choice(LAMPS)))
    chain.link.heal()
    chain.advance(chain.now + 1000)
    chain.moderate = True
    for event in chain.events(AWAY, e.SyndicationRequested)[-1:]:
        if chain.away.syndication(AWAY_ID) is None and chain.home.syndication(HOME_ID):
            chain.own(chain.away, event)
    for event in chain.events(AWAY, e.SyndicatedActionRequested, e.SyndicatedIdRequested, e.SyndicatedC2Requested):
        try:
            chain.perform(chain.away, chain.away.allow(AWAY_ID, event.token, chain.now, nonce()))
        except PolicyError:
            continue  # it was decided
    chain.advance(chain.now + 3000)
    assert all(len(chain.outcome(token)) == 1 for token in asked)
    assert not any(isinstance(event, e.Unanswered) for token in asked for event in chain.outcome(token))
    assert all(times == 1 for times in chain.done.values())
    if chain.home.syndication(HOME_ID):
        assert entries(chain) == chain.away.syndication(AWAY_ID).devices
        token = chain.ask(chain.home.end_syndication)
        chain.advance(chain.now + 1000)
        assert [type(event) for event in chain.outcome(token)] == [e.SyndicationEnded]
    assert all(over(chain))
    chain.advance(chain.now + 200_000)
    for session in (chain.home, chain.away, chain.home_side, chain.away_side):
        assert session.known.size == 0
        assert session.deadline() is None


@pytest.mark.parametrize("loss", [0.0, 0.4])
def test_the_model_is_not_idle(loss):
    """What the scripts above reach: replays, refusals, losses that retransmission mends, requests for the list."""
    chain = Chain(PATIENT, seed=3, loss=loss, duplicate=0.5, replay=0.5, delay=2.0)
    chain.joined()
    chain.advance(T0 + 1000)
    chain.begin()
    chain.advance(T0 + 2000)
    asked = [ASK[kind](chain, lamp) for kind in ASK for lamp in LAMPS for _ in range(5)]
    for _ in range(5):
        chain.perform(chain.away, chain.away.share(AWAY_ID, LAMPS, chain.now, nonce()))
        chain.advance(chain.now + 300)
    assert all(len(chain.outcome(token)) == 1 for token in asked)
    assert sum(chain.done.values()) == 15
    assert sum(isinstance(error, ReplayError) for _, error in chain.refused) > 20
    assert len(chain.sent("home", HOME_ID, m.SyndicatedC2Request)) > (20 if loss else 14)
    assert chain.home.syndication(HOME_ID).missing == ()


@pytest.mark.parametrize("kind", ASK)
def test_what_a_home_server_without_a_clock_asks_for_crosses(chain, kind):
    """Its tokens do not expire, and neither do those of the next hop."""
    chain.home.policy = Policy(has_clock=False)
    [event] = chain.outcome(ASK[kind](chain, LAMP))
    assert isinstance(event, e.SyndicatedIdentified) or event.status is Status.ACTION_SUCCESS
    assert chain.refused == []


# Numbers of a list: 1 to n of srup, 0 to n - 1 of a deployed server, and nothing in between.


def test_a_list_of_srup_has_no_number_0(chain):
    """With two of three devices and a number 0 the list would be as long as it should be."""
    token = chain.away.syndication(AWAY_ID).token
    entry = next_message(chain, m.SyndicatedDeviceList, AWAY_ID, AWAY, token, device_sequence=0, device_id=UNKNOWN)
    refused(chain.away_side, entry, match="no number 0")
    assert entries(chain) == dict(enumerate(LAMPS, 1))


def test_an_incomplete_list_of_srup_with_a_number_0_is_asked_for_again():
    chain = Chain().joined()
    heal = lose(chain, "away", AWAY_ID, m.SyndicatedDeviceList, lambda message: message.device_sequence != 3)
    chain.begin()
    token = chain.away.syndication(AWAY_ID).token
    entry = next_message(chain, m.SyndicatedDeviceList, AWAY_ID, AWAY, token, device_sequence=0, device_id=UNKNOWN)
    chain.hear("away", AWAY_ID, entry)
    assert chain.events(HOME, e.DevicesShared) == []
    heal()
    chain.advance(T0 + 5)
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)] == [LAMPS]


@pytest.mark.parametrize(
    ("numbers", "shared"),
    [
        ([0, 1], (0, 1)),
        ([1, 0], (0, 1)),
        ([1, 2], (1, 2)),
        ([2, 1], (1, 2)),
        ([0, 2, 1], (0, 1)),  # 2 does not fit a list that has a 0
        ([2, 0, 1], (1, 2)),
        ([0, 2], None),
        ([2, 0], None),
        ([0], None),
        ([2], None),
        ([1], None),
    ],
    ids=str,
)
def test_a_list_of_a_deployed_server_is_complete_when_it_has_all_of_one_kind(old_away, numbers, shared):
    chain, _, say = old_away
    say(m.SyndicatedDeviceCount, count=2)
    for number in numbers:
        say(m.SyndicatedDeviceList, device_sequence=number, device_id=LAMPS[0] + number)
    told = [event.devices for event in chain.events(HOME, e.DevicesShared)]
    assert told[-1:] == ([] if shared is None else [tuple(LAMPS[0] + number for number in shared)])


def test_a_list_of_nobody_has_no_entry(old_away):
    chain, _, say = old_away
    say(m.SyndicatedDeviceCount, count=0)
    say(m.SyndicatedDeviceList, device_sequence=0, device_id=LAMP)
    assert [event.devices for event in chain.events(HOME, e.DevicesShared)] == [()]
    assert entries(chain) == {}
