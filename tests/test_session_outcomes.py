"""Any message, in any state of any exchange, in any of the five roles, has a defined outcome.

It takes effect as a row of the table says, or it is Unexpected and changes nothing but that it counts as seen, or it is
refused with PolicyError or ReplayError and has changed nothing. Nothing else is ever raised.
"""

from itertools import product

import pytest

from srup import messages as m
from srup.errors import PolicyError, ReplayError
from srup.session import DeviceSession, Policy, Send, ServerSession
from srup.session.events import Event, Unexpected
from srup.session.exchange import Exchange, Peer
from srup.session.flows.relay import TO_AWAY, TO_HOME, RelayState
from srup.session.flows.reply import Asked, Content
from srup.session.flows.syndication_away import AwayState
from srup.session.flows.syndication_home import HomeState
from srup.session.freshness import Horizon
from srup.session.relay import AwaySide, HomeSide
from srup.session.syndication import SyndicationServerSession
from srup.session.syndications import Role, Syndication
from srup.wire import Status

from .session_link import DEVICE, OTHER, SERVER, T0, bound, make, nonce, snapshots
from .test_session_base import KINDS, MESSAGES, put, trigger_message


def server_in(role):
    """A server that has a syndication by its partner, in this role."""
    session = SyndicationServerSession(SERVER, Policy(), syndication_devices=[DEVICE] if role is Role.AWAY else [])
    session.syndications.begin(Syndication(DEVICE, role, b"list", 1, devices={1: OTHER}))
    return session


def away_side():
    side = AwaySide(DEVICE, [SERVER], Policy())
    side.syndicated = True
    return side


ROLES = {
    "device": lambda: DeviceSession(DEVICE, [SERVER], Policy()),
    "server": lambda: ServerSession(SERVER, Policy()),
    "syndication server at home": lambda: server_in(Role.HOME),
    "syndication server away": lambda: server_in(Role.AWAY),
    "syndication server, no syndication": lambda: SyndicationServerSession(SERVER, Policy()),
    "home side": lambda: HomeSide(DEVICE, [SERVER], Policy()),
    "away side": away_side,
    "away side, no syndication": lambda: AwaySide(DEVICE, [SERVER], Policy()),
}
OF_SYNDICATIONS = HomeState, AwayState, RelayState
STATES = [state for kind in (*KINDS.values(), *OF_SYNDICATIONS) for state in kind if state.name != "NEW"]


def partner_of(session):
    return DEVICE if session.identity == SERVER else SERVER


def requests_of(session, state, mine):
    """The requests that an exchange in this state can be about; None where the tests of the base know what."""
    if not isinstance(state, OF_SYNDICATIONS):
        return (None,)
    match session:
        case HomeSide():
            return tuple(TO_HOME) if mine else (*TO_AWAY, m.SyndicationInit)
        case AwaySide() if mine:
            return (
                tuple(TO_AWAY) if state in (RelayState.RELAYED, RelayState.PASSED) else (*TO_AWAY, m.SyndicationRequest)
            )
        case AwaySide():
            return tuple(TO_HOME)
    return (*TO_AWAY, *TO_HOME, m.SyndicationInit, m.SyndicationRequest)


def exchange_in(session, state, mine, about, member):
    """Put an exchange in this state into the session, as it would have come about."""
    partner = partner_of(session)
    session.known.peers[partner] = Peer(
        partner, member=member, horizon=Horizon(membership_sequence_id=10)
    )  # later than the messages below
    if about is None:
        return put(session, partner, state, mine)
    token = bound(partner if mine else session.identity, sender=session.identity if mine else partner)
    request = make(about, 1, session.identity if mine else partner, token)
    exchange = Exchange(session.known.peers[partner], token, state, T0 + 330, mine)
    if mine:
        exchange.request, exchange.detail = request, b"origin"
    else:
        reply = Content.status(Status.ACTION_SUCCESS) if state.name == "ANSWERED" else None
        exchange.detail, exchange.status = Asked(Content.of(request), T0 + 300, reply), Status.ACTION_SUCCESS
    session.remember(exchange, T0)
    return exchange


def outcome(session, message):
    """Let a session hear a message; return what that came to, having checked that it is one of the three."""
    before = snapshots(session)
    try:
        outputs = session.receive(message, T0, nonce())
    except (PolicyError, ReplayError):
        assert snapshots(session) == before
        return "refused"
    assert all(isinstance(output, Send | Event) for output in outputs)
    with pytest.raises((ReplayError, PolicyError)):  # in each case it was genuine, and counts once
        session.receive(message, T0, nonce())
    if any(isinstance(output, Unexpected) for output in outputs) and len(outputs) == 1:
        assert snapshots(session)[0] == before[0]
        return "unexpected"
    return "taken"


QUICK = "device", "server"
"""The roles that every server and device has; the others take a minute longer."""


@pytest.mark.parametrize("member", [True, False], ids=["member", "not joined"])
@pytest.mark.parametrize(
    "role", [role if role in QUICK else pytest.param(role, marks=pytest.mark.slow) for role in ROLES]
)
def test_every_message_in_every_state(role, member):
    tried = {"refused": 0, "unexpected": 0, "taken": 0}
    for state, mine, trigger in product(STATES, (True, False), MESSAGES):
        for about in requests_of(ROLES[role](), state, mine):
            session = ROLES[role]()
            exchange = exchange_in(session, state, mine, about, member)
            message = trigger_message(partner_of(session), exchange.token, trigger)
            what = outcome(session, message)
            row = (state, trigger) in session.table
            assert row or what != "taken", (state, trigger)
            tried[what] += 1
    assert sum(tried.values()) > 5_000
    assert min(tried.values()) > 0, tried


@pytest.mark.parametrize("member", [True, False], ids=["member", "not joined"])
@pytest.mark.parametrize("role", ROLES)
def test_every_message_under_a_token_that_is_new(role, member):
    for trigger in MESSAGES:
        session = ROLES[role]()
        partner = partner_of(session)
        session.known.peers[partner] = Peer(
            partner, member=member, horizon=Horizon(membership_sequence_id=10)
        )  # later than the messages below
        message = trigger_message(partner, bound(session.identity, sender=partner), trigger)
        what = outcome(session, message)
        opening = session.starts.get(trigger) if isinstance(trigger, type) else None
        assert what != "taken" or (opening is not None and (member or not opening.members_only)), trigger


@pytest.mark.parametrize("role", ROLES)
def test_every_row_has_been_tried(role):
    """No state of any table is missing from the states above."""
    assert {state for state, _ in ROLES[role]().table if state.name != "NEW"} <= set(STATES)
