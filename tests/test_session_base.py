"""What both ends do alike: tables and what is not in them, sequence ids, retransmission, bounds, refusals."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from srup import messages as m
from srup.errors import EncodeError, PolicyError, ReplayError
from srup.session import DeviceSession, Policy, Send, ServerSession
from srup.session.events import (
    ActionAnswered,
    ActionRequested,
    DataReceived,
    DataRefused,
    Unanswered,
    Unexpected,
)
from srup.session.exchange import MAX_EXCHANGES, Exchange, Peer
from srup.session.flow import Now
from srup.session.flows.action import ActionState
from srup.session.flows.data import DataState
from srup.session.flows.identify import IdentificationState
from srup.session.flows.join import JoinState
from srup.session.flows.join_server import Moderated
from srup.session.flows.key_rotation import KeyState
from srup.session.flows.leaving import LeavingState
from srup.session.flows.receipts import ReceiptState
from srup.session.flows.update import Download, Order
from srup.session.freshness import FIRST_UNDATED
from srup.session.streams import StreamPosition
from srup.session.table import Trigger
from srup.tokens import parse
from srup.update import UpdateState
from srup.wire import (
    DATA_RECEIPT,
    IDENTIFICATION_RESPONSE,
    JOIN_OBSERVER,
    JOIN_REASON,
    KEY_ROTATION,
    UPDATE_CANCEL,
    UPDATE_REASON,
    Status,
)

from .session_link import (
    DEVICE,
    DIGEST,
    OTHER,
    SERVER,
    STRANGER,
    T0,
    URL,
    Pair,
    bound,
    events,
    exchange_of,
    exchanges,
    make,
    nonce,
    sends,
    snapshot,
)

MAX_ID = 2**64 - 1

# The tables, without the update's rows, which test_update.py has. "Kind.STATE trigger -> STATE: what comes out".

COMMON_ROWS = """
Action.NEW Action -> RUNNING: ActionRequested
Action.RUNNING Action -> RUNNING:
Action.RUNNING ANSWER -> ANSWERED: Response
Action.RUNNING LEAVE -> ANSWERED:
Action.RUNNING RESTART -> RUNNING: ActionRequested
Action.RUNNING EXPIRE -> ANSWERED:
Action.ANSWERED Action -> ANSWERED: Response
Action.ASKED ACTION_SUCCESS -> ANSWERED: ActionAnswered
Action.ASKED ACTION_UNKNOWN -> ANSWERED: ActionAnswered
Action.ASKED ACTION_FAIL -> ANSWERED: ActionAnswered
Action.ASKED EXPIRE -> UNANSWERED: Unanswered
Action.ANSWERED ACTION_SUCCESS -> ANSWERED:
Action.ANSWERED ACTION_UNKNOWN -> ANSWERED:
Action.ANSWERED ACTION_FAIL -> ANSWERED:
Data.NEW Data -> TAKEN: DataReceived
Data.SENT DATA_TYPE_UNKNOWN -> REFUSED: DataRefused
Data.REFUSED DATA_TYPE_UNKNOWN -> REFUSED:
Data.UNCONFIRMED CONFIRM -> CONFIRMED: DataConfirmed
Data.UNCONFIRMED DATA_TYPE_UNKNOWN -> REFUSED: DataRefused
Data.UNCONFIRMED EXPIRE -> UNANSWERED: Unanswered
Receipt.NEW Data -> TAKEN:
Key.NEW Data -> DECIDING: KeyOffered
Key.DECIDING Data -> DECIDING:
Key.DECIDING ANSWER -> ANSWERED: Response
Key.DECIDING EXPIRE -> ANSWERED:
Key.ANSWERED Data -> ANSWERED: Response
Key.OFFERED ACTION_SUCCESS -> TAKEN: KeyAnswered
Key.OFFERED ACTION_FAIL -> REFUSED: KeyAnswered
Key.OFFERED DATA_TYPE_UNKNOWN -> REFUSED: KeyAnswered
Key.OFFERED EXPIRE -> UNANSWERED: Unanswered
Key.TAKEN ACTION_SUCCESS -> TAKEN:
Key.REFUSED ACTION_FAIL -> REFUSED:
Key.REFUSED DATA_TYPE_UNKNOWN -> REFUSED:
"""

DEVICE_ROWS = """
Join.ASKED JOIN_SUCCESS -> ANSWERED: JoinAnswered
Join.ASKED JOIN_REFUSED -> ANSWERED: JoinAnswered
Join.ASKED JOIN_FAIL -> ANSWERED: JoinAnswered
Join.ASKED EXPIRE -> UNANSWERED: Unanswered
Join.HUMAN_ASKED JOIN_SUCCESS -> ANSWERED: JoinAnswered
Join.HUMAN_ASKED JOIN_REFUSED -> ANSWERED: JoinAnswered
Join.HUMAN_ASKED JOIN_FAIL -> ANSWERED: JoinAnswered
Join.HUMAN_ASKED EXPIRE -> UNANSWERED: Unanswered
Join.OBSERVED_ASKED JOIN_SUCCESS -> ANSWERED: JoinAnswered
Join.OBSERVED_ASKED JOIN_REFUSED -> ANSWERED: JoinAnswered
Join.OBSERVED_ASKED JOIN_FAIL -> ANSWERED: JoinAnswered
Join.OBSERVED_ASKED EXPIRE -> UNANSWERED: Unanswered
Join.SHOWING JOIN_SUCCESS -> ANSWERED: JoinAnswered
Join.SHOWING JOIN_REFUSED -> ANSWERED: JoinAnswered
Join.SHOWING JOIN_FAIL -> ANSWERED: JoinAnswered
Join.SHOWING EXPIRE -> UNANSWERED: Unanswered
Join.ASKED WITHDRAW -> WITHDRAWN:
Join.HUMAN_ASKED WITHDRAW -> WITHDRAWN:
Join.OBSERVED_ASKED WITHDRAW -> WITHDRAWN:
Join.SHOWING WITHDRAW -> WITHDRAWN:
Join.WITHDRAWN JOIN_SUCCESS -> ANSWERED: JoinAnswered
Join.WITHDRAWN JOIN_REFUSED -> ANSWERED: JoinAnswered
Join.WITHDRAWN JOIN_FAIL -> ANSWERED: JoinAnswered
Join.WITHDRAWN HumanJoinResponse -> WITHDRAWN:
Join.WITHDRAWN ObservedJoinResponse -> WITHDRAWN:
Join.WITHDRAWN Data -> WITHDRAWN:
Join.ANSWERED JOIN_SUCCESS -> ANSWERED:
Join.ANSWERED JOIN_REFUSED -> ANSWERED:
Join.ANSWERED JOIN_FAIL -> ANSWERED:
Join.ASKED Data -> ASKED: ObserverNamed
Join.HUMAN_ASKED Data -> HUMAN_ASKED: JoinExplained
Join.OBSERVED_ASKED Data -> OBSERVED_ASKED: JoinExplained
Join.SHOWING Data -> SHOWING: JoinExplained
Join.ANSWERED Data -> ANSWERED: ObserverNamed
Join.HUMAN_ASKED HumanJoinResponse -> SHOWING: JoinValueReceived
Join.OBSERVED_ASKED ObservedJoinResponse -> SHOWING: JoinValueReceived
Join.SHOWING HumanJoinResponse -> SHOWING: JoinValueReceived
Join.SHOWING ObservedJoinResponse -> SHOWING: JoinValueReceived
Join.ANSWERED HumanJoinResponse -> ANSWERED:
Join.ANSWERED ObservedJoinResponse -> ANSWERED:
Join.NEW HumanJoinResponse -> ANSWERED: PolicyError
Join.NEW ObservedJoinResponse -> ANSWERED: PolicyError
Join.NEW JoinCommand -> ANSWERED: JoinCommanded
Join.ANSWERED JoinCommand -> ANSWERED: Response
Join.NEW ObservationRequest -> OBSERVING: ObservationRequested
Join.OBSERVING ObservationRequest -> OBSERVING:
Join.OBSERVING ANSWER -> ANSWERED: Response
Join.OBSERVING LEAVE -> UNANSWERED:
Join.OBSERVING EXPIRE -> UNANSWERED:
Join.ANSWERED ObservationRequest -> ANSWERED: Response
Leaving.LEAVING RESIGN_SUCCESS -> LEFT: Left
Leaving.LEAVING RESIGN_FAIL -> LEFT: Left
Leaving.LEAVING EXPIRE -> LEFT: Unanswered
Leaving.DEREGISTERING DEREGISTER_SUCCESS -> LEFT: Left Deregistered
Leaving.DEREGISTERING DEREGISTER_FAIL -> LEFT: Left
Leaving.DEREGISTERING EXPIRE -> LEFT: Unanswered
Leaving.LEFT DEREGISTER_SUCCESS -> LEFT:
Leaving.LEFT DEREGISTER_FAIL -> LEFT:
Leaving.LEFT RESIGN_SUCCESS -> LEFT:
Leaving.LEFT RESIGN_FAIL -> LEFT:
Leaving.NEW TerminateCommand -> LEFT: Left
Leaving.LEFT TerminateCommand -> LEFT:
Leaving.NEW DeregisterCommand -> LEFT: Left Deregistered
Identification.NEW IdRequest -> ANSWERED: Data
Identification.ANSWERED IdRequest -> ANSWERED: Data
"""

SERVER_ROWS = """
Join.NEW JoinRequest -> DECIDING: JoinRequested
Join.NEW HumanJoinRequest -> PREPARING: HumanJoinRequested
Join.NEW ObservedJoinRequest -> PREPARING: ObservedJoinRequested
Join.DECIDING JoinRequest -> DECIDING:
Join.DECIDING HumanJoinRequest -> DECIDING:
Join.DECIDING ObservedJoinRequest -> DECIDING:
Join.PREPARING JoinRequest -> PREPARING:
Join.PREPARING HumanJoinRequest -> PREPARING:
Join.PREPARING ObservedJoinRequest -> PREPARING:
Join.PREPARING SHOW -> COMPARING: HumanJoinResponse
Join.COMPARING HumanJoinRequest -> COMPARING: HumanJoinResponse
Join.COMPARING ObservedJoinRequest -> COMPARING: HumanJoinResponse
Join.DECIDING ANSWER -> ANSWERED: JoinAnswered Response
Join.PREPARING ANSWER -> ANSWERED: JoinAnswered Response
Join.DECIDING WITHDRAW -> UNANSWERED: JoinWithdrawn
Join.DECIDING RESTART -> DECIDING: JoinRequested
Join.PREPARING RESTART -> PREPARING: HumanJoinRequested
Join.COMPARING RESTART -> PREPARING: HumanJoinRequested
Join.PREPARING WITHDRAW -> UNANSWERED: JoinWithdrawn
Join.COMPARING ANSWER -> ANSWERED: JoinAnswered Response
Join.COMPARING WITHDRAW -> UNANSWERED: JoinWithdrawn
Join.DECIDING EXPIRE -> UNANSWERED:
Join.PREPARING EXPIRE -> ANSWERED: JoinAnswered Response
Join.COMPARING EXPIRE -> ANSWERED: JoinAnswered Response
Join.ANSWERED JoinRequest -> ANSWERED: Response
Join.ANSWERED HumanJoinRequest -> ANSWERED: Response
Join.ANSWERED ObservedJoinRequest -> ANSWERED: Response
Join.COMMANDED OBEYED -> ANSWERED: JoinCommandAnswered
Join.COMMANDED JOIN_REFUSED -> ANSWERED: JoinCommandAnswered
Join.COMMANDED EXPIRE -> UNANSWERED: Unanswered
Join.ANSWERED JOIN_REFUSED -> ANSWERED:
Join.OBSERVING OBSERVED_JOIN_VALID -> ANSWERED: Observed
Join.ANSWERED OBSERVED_JOIN_VALID -> ANSWERED:
Join.OBSERVING OBSERVED_JOIN_INVALID -> ANSWERED: Observed
Join.ANSWERED OBSERVED_JOIN_INVALID -> ANSWERED:
Join.OBSERVING OBSERVED_JOIN_FAIL -> ANSWERED: Observed
Join.ANSWERED OBSERVED_JOIN_FAIL -> ANSWERED:
Join.OBSERVING WITHDRAW -> UNANSWERED: Observed
Join.OBSERVING EXPIRE -> UNANSWERED: Observed
Leaving.NEW ResignRequest -> ANSWERED: Response Left
Leaving.ANSWERED ResignRequest -> ANSWERED: Response
Leaving.NEW DeregisterRequest -> ANSWERED: Response Left Deregistered
Leaving.ANSWERED DeregisterRequest -> ANSWERED: Response
Identification.IDENTIFYING Data -> ANSWERED: Identified
Identification.IDENTIFYING EXPIRE -> UNANSWERED: Unanswered
Identification.NEW Data -> ANSWERED: DataReceived
"""

DEVICE_UPDATE_ROWS = """
Update.NEW Initiate -> FETCHING: FetchRequested
Update.NEW Activate -> FAILED: Unexpected Data Response
Update.FETCHING Initiate -> FETCHING:
Update.FETCHING FETCHED -> READY: Response
Update.FETCHING FETCH_FAILED -> FAILED: Response
Update.FETCHING SUPERSEDE -> FAILED: FetchCancelled Response
Update.FETCHING LEAVE -> FAILED: FetchCancelled
Update.FETCHING RESTART -> FETCHING: FetchRequested
Update.ACTIVATING RESTART -> ACTIVATING: ActivationRequested
Update.READY LEAVE -> FAILED: FetchCancelled
Update.ACTIVATING LEAVE -> FAILED:
Update.NEW Data -> FAILED: Data Response
Update.FETCHING Data -> FAILED: FetchCancelled Data Response
Update.READY Data -> FAILED: FetchCancelled Data Response
Update.ACTIVATING Data -> ACTIVATING:
Update.ACTIVATED Data -> ACTIVATED:
Update.FAILED Data -> FAILED:
Update.FETCHING EXPIRE -> UNANSWERED: FetchCancelled
Update.READY Initiate -> READY: Response
Update.READY Activate -> ACTIVATING: ActivationRequested
Update.READY EXPIRE -> UNANSWERED:
Update.ACTIVATING Initiate -> ACTIVATING:
Update.ACTIVATING Activate -> ACTIVATING:
Update.ACTIVATING ACTIVATED -> ACTIVATED: Response
Update.ACTIVATING ACTIVATION_FAILED -> FAILED: Response
Update.ACTIVATING EXPIRE -> UNANSWERED:
Update.ACTIVATED Initiate -> ACTIVATED: Response
Update.ACTIVATED Activate -> ACTIVATED: Response
Update.FAILED Initiate -> FAILED: Response
Update.FAILED Activate -> FAILED: Unexpected Data Response
"""

SERVER_UPDATE_ROWS = """
Update.FETCHING UPDATE_SUCCESS -> READY: UpdateChanged
Update.FETCHING UPDATE_FAIL_HTTP_ERROR -> FAILED: UpdateChanged
Update.FETCHING UPDATE_FAIL_SERVER -> FAILED: UpdateChanged
Update.FETCHING UPDATE_FAIL_FILE -> FAILED: UpdateChanged
Update.FETCHING UPDATE_FAIL_DIGEST -> FAILED: UpdateChanged
Update.FETCHING EXPIRE -> UNANSWERED: UpdateChanged
Update.FETCHING SUPERSEDE -> FAILED: UpdateChanged
Update.FETCHING CANCEL -> FAILED: UpdateChanged
Update.READY CANCEL -> FAILED: UpdateChanged
Update.FETCHING Data -> FETCHING:
Update.READY Data -> READY:
Update.ACTIVATING Data -> ACTIVATING:
Update.FAILED Data -> FAILED: UpdateChanged
Update.READY ACTIVATE -> ACTIVATING: Activate UpdateChanged
Update.ACTIVATING ACTIVATE -> ACTIVATING: PolicyError
Update.READY UPDATE_SUCCESS -> READY:
Update.READY EXPIRE -> UNANSWERED: UpdateChanged
Update.ACTIVATING UPDATE_SUCCESS -> ACTIVATING:
Update.ACTIVATING ACTIVATE_SUCCESS -> ACTIVATED: UpdateChanged
Update.ACTIVATING ACTIVATE_FAIL -> FAILED: UpdateChanged
Update.ACTIVATING EXPIRE -> UNANSWERED: UpdateChanged
Update.ACTIVATING TOLD -> UNCONFIRMED:
Update.UNCONFIRMED UPDATE_SUCCESS -> UNCONFIRMED:
Update.ACTIVATED ACTIVATE_SUCCESS -> ACTIVATED:
Update.ACTIVATED UPDATE_SUCCESS -> ACTIVATED:
Update.FAILED UPDATE_SUCCESS -> FAILED:
Update.FAILED ACTIVATE_FAIL -> FAILED:
Update.FAILED UPDATE_FAIL_HTTP_ERROR -> FAILED:
Update.FAILED UPDATE_FAIL_SERVER -> FAILED:
Update.FAILED UPDATE_FAIL_FILE -> FAILED:
Update.FAILED UPDATE_FAIL_DIGEST -> FAILED:
"""

KINDS = {
    "Action": ActionState,
    "Data": DataState,
    "Key": KeyState,
    "Receipt": ReceiptState,
    "Identification": IdentificationState,
    "Join": JoinState,
    "Leaving": LeavingState,
    "Update": UpdateState,
}
TRIGGERS = {cls.__name__: cls for cls in m.SCHEMA[:]} | dict(Status.__members__) | dict(Trigger.__members__)
ROLES = {"device": (DeviceSession.table, DEVICE, SERVER), "server": (ServerSession.table, SERVER, DEVICE)}
OURS = {
    *(
        ActionState.ASKED,
        DataState.SENT,
        DataState.REFUSED,
        DataState.UNCONFIRMED,
        LeavingState.LEAVING,
        LeavingState.DEREGISTERING,
    ),
    *(JoinState.ASKED, JoinState.HUMAN_ASKED, JoinState.OBSERVED_ASKED, JoinState.SHOWING, JoinState.COMMANDED),
    JoinState.WITHDRAWN,
    *(KeyState.OFFERED, KeyState.TAKEN, KeyState.REFUSED, IdentificationState.IDENTIFYING),
}


OFFER = b"a key"
FITTING = {
    (IdentificationState.IDENTIFYING, m.Data): {"data_id": IDENTIFICATION_RESPONSE},
    (IdentificationState.NEW, m.Data): {"data_id": IDENTIFICATION_RESPONSE},
    (JoinState.ASKED, m.Data): {"data_id": JOIN_OBSERVER, "data": bytes(8)},
    (JoinState.ANSWERED, m.Data): {"data_id": JOIN_OBSERVER, "data": bytes(8)},
    **{
        (state, m.Data): {"data_id": JOIN_REASON, "data": b"why"}
        for state in (JoinState.HUMAN_ASKED, JoinState.OBSERVED_ASKED, JoinState.SHOWING)
    },
    (JoinState.NEW, m.JoinCommand): {"device_id": DEVICE},
    **{(state, m.Data): {"data_id": KEY_ROTATION, "data": OFFER} for state in KeyState},
    (ReceiptState.NEW, m.Data): {"data_id": DATA_RECEIPT, "data": bytes(16)},
    **{("device", state, m.Data): {"data_id": UPDATE_CANCEL} for state in UpdateState},
    **{("server", state, m.Data): {"data_id": UPDATE_REASON} for state in UpdateState},
}
"""Fields without which the receiver refuses a message although it is expected."""


def parsed(text):
    rows = {}
    for line in text.split("\n")[1:-1]:
        left, right = line.split(" -> ")
        (kind, state), trigger = left.split()[0].split("."), left.split()[1]
        after, outputs = right.split(":")
        states = KINDS[kind]
        rows[states[state], TRIGGERS[trigger]] = states[after], outputs.split()
    return rows


ROWS = {
    "device": parsed(COMMON_ROWS) | parsed(DEVICE_ROWS) | parsed(DEVICE_UPDATE_ROWS),
    "server": parsed(COMMON_ROWS) | parsed(SERVER_ROWS) | parsed(SERVER_UPDATE_ROWS),
}


def new_session(role, policy=None):
    """A session whose partner is a member; the partner's sequence ids go from 1."""
    _, me, partner = ROLES[role]
    policy = policy or Policy()
    session = DeviceSession(me, [SERVER], policy, 1, "a lamp") if role == "device" else ServerSession(me, policy)
    session.known.peers[partner] = Peer(partner, member=True)
    return session


def put(session, partner, state, mine):
    """Put an exchange in this state into the session; return it."""
    side = session.known.peers[partner]
    token = bound(partner if mine else session.identity)
    request = make(m.Action, 1, session.identity, token) if mine else None
    exchange = Exchange(side, token, state, T0 + 330, mine, request, None if mine else Status.ACTION_SUCCESS)
    if isinstance(state, UpdateState):
        hold = state is UpdateState.FETCHING
        exchange.detail = Order(URL, DIGEST, hold) if session.identity == SERVER else Download(URL, DIGEST)
        if mine and state is UpdateState.FAILED:
            exchange.status = Status.UPDATE_FAIL_FILE
    if isinstance(state, KeyState):
        exchange.detail = OFFER
    if state is DataState.UNCONFIRMED:
        exchange.detail = StreamPosition(1, 1)
        session.streams.sent[partner] = exchange.detail
    if isinstance(state, JoinState):
        exchange.detail = (
            (OTHER, b"join") if state is JoinState.OBSERVING else Moderated(m.HumanJoinResponse, b"sealed")
        )
    if state is JoinState.COMMANDED:
        exchange.detail = None
    session.remember(exchange, T0)
    return exchange


def drive(session, partner, exchange, word):
    """Let time or the owner do what the word says."""
    token = exchange.token
    match word:
        case Trigger.EXPIRE:
            return session.tick(exchange.expiry)
        case Trigger.ANSWER if isinstance(exchange.state, JoinState) and isinstance(session, ServerSession):
            return session.answer_join(partner, token, Status.JOIN_SUCCESS, T0)
        case Trigger.ANSWER if isinstance(exchange.state, KeyState):
            return session.answer_key(partner, token, Status.ACTION_SUCCESS, T0)
        case Trigger.ANSWER if isinstance(exchange.state, JoinState):
            return session.answer_observation(partner, token, Status.OBSERVED_JOIN_VALID, T0)
        case Trigger.LEAVE:
            return session.drop_orders(session.known.peers[partner], T0)
        case Trigger.RESTART | Trigger.TOLD:
            return session.step(exchange, word, None, Now(T0, b""))
        case Trigger.CONFIRM:
            place = (1).to_bytes(8, "little") * 2
            receipt = make(m.Data, 1, partner, bound(session.identity), data_id=DATA_RECEIPT, data=place)
            return session.receive(receipt, T0, nonce())
        case Trigger.SHOW:
            return session.show_value(partner, token, b"sealed", T0)
        case Trigger.OBEYED:
            return session.joins.obeyed(session.known.peers[partner], Now(T0, b""), handed_over=False)
        case Trigger.WITHDRAW if exchange.state is JoinState.OBSERVING:
            return session.revoke(partner, T0)[:-1]  # the last one says that the membership is over
        case Trigger.WITHDRAW:
            if isinstance(session, DeviceSession):
                return session.joins.stop(session.known.peers[partner], T0) or []
            return session.joins.withdraw(session.known.peers[partner], Now(T0, b""))
        case Trigger.ANSWER:
            return session.answer_action(partner, token, Status.ACTION_SUCCESS, T0)
        case Trigger.SUPERSEDE:
            return session.step(exchange, word, "a newer order", Now(T0, b""))
        case Trigger.CANCEL:
            return session.cancel_order(partner, token, T0)
        case Trigger.ACTIVATE:
            return session.activate(partner, token, T0)
        case Trigger.FETCHED:
            return session.fetched(partner, token, T0)
        case Trigger.FETCH_FAILED:
            return session.fetch_failed(partner, token, Status.UPDATE_FAIL_SERVER, T0)
        case Trigger.ACTIVATED:
            return session.activated(partner, token, T0)
        case Trigger.ACTIVATION_FAILED:
            return session.activation_failed(partner, token, T0)


def trigger_message(partner, token, trigger, **fields):
    if isinstance(trigger, int):
        return make(m.Response, 1, partner, token, status=trigger)
    return make(trigger, 1, partner, token, **fields)


@pytest.mark.parametrize("role", ROLES)
def test_every_row_is_written_down_here(role):
    table = ROLES[role][0]
    assert {row: step.state for row, step in table.items()} == {row: after for row, (after, _) in ROWS[role].items()}


def row_id(value):
    return getattr(value, "name", None) or getattr(value, "__name__", None)


@pytest.mark.parametrize(
    ("role", "state", "trigger"), [(role, *row) for role in ROLES for row in ROWS[role]], ids=row_id
)
def test_every_row_does_what_is_written(role, state, trigger):
    after, expected = ROWS[role][state, trigger]
    session = new_session(role)
    partner = ROLES[role][2]
    mine = state in OURS or (isinstance(trigger, Status) or (role == "server" and isinstance(state, UpdateState)))
    if state.name == "NEW":
        token = bound(session.identity)
    else:
        exchange = put(session, partner, state, mine)
        token = exchange.token
    session.known.peers[partner].binds = trigger is Trigger.ACTIVATE  # so it confirms
    if isinstance(trigger, Trigger):
        if expected == ["PolicyError"]:
            with pytest.raises(PolicyError):
                drive(session, partner, exchange, trigger)
            return
        outputs = drive(session, partner, exchange, trigger)
    else:
        fitting = FITTING.get((role, state, trigger)) or FITTING.get((state, trigger), {})
        message = trigger_message(partner, token, trigger, **fitting)
        if expected == ["PolicyError"]:
            with pytest.raises(PolicyError):
                session.receive(message, T0, nonce())
            return
        outputs = session.receive(message, T0, nonce())
    names = [type(output.message if isinstance(output, Send) else output).__name__ for output in outputs]
    assert names == expected
    assert all(output.to == partner if isinstance(output, Send) else output.peer == partner for output in outputs)
    if state not in (DataState.NEW, ReceiptState.NEW):
        if state.name == "NEW":
            if state is not UpdateState.NEW and not session.starts[trigger].remembered:
                return
            exchange = exchange_of(session, partner, token)
        assert exchange.state is after


MESSAGES = [*m.SCHEMA[:], *Status, 0x99]


@pytest.mark.parametrize("mine", [True, False], ids=["mine", "theirs"])
@pytest.mark.parametrize("role", ROLES)
def test_a_message_that_no_row_expects_changes_nothing(role, mine):
    table, _, partner = ROLES[role]
    states = [state for kind in KINDS.values() for state in kind if state.name != "NEW"]
    tried = 0
    for state in states:
        for trigger in MESSAGES:
            if (state, trigger) in table:
                continue
            session = new_session(role)
            exchange = put(session, partner, state, mine)
            before = snapshot(session, window=False)
            message = trigger_message(partner, exchange.token, trigger)
            outputs = session.receive(message, T0, nonce())
            why = f"the exchange is in state {state.name}"
            assert outputs == [Unexpected(partner, exchange.token, type(message), why)], (state, trigger)
            assert snapshot(session, window=False) == before, (state, trigger)
            # It was genuine: it counts as seen.
            with pytest.raises(ReplayError):
                session.receive(message, T0, nonce())
            tried += 1
    assert tried > 1000


@pytest.mark.parametrize("member", [True, False], ids=["member", "stranger"])
@pytest.mark.parametrize("role", ROLES)
def test_what_begins_nothing_changes_nothing(role, member):
    table, me, partner = ROLES[role]
    news = [trigger for state, trigger in table if state.name == "NEW"]
    sessions = {"device": DeviceSession, "server": ServerSession}
    tried = 0
    for trigger in MESSAGES:
        if trigger in news and (member or not sessions[role].starts[trigger].members_only):
            continue
        session = new_session(role)
        session.known.peers[partner].member = member
        session.known.peers[partner].horizon.membership_sequence_id = 10  # newer than the message
        message = trigger_message(partner, bound(me), trigger)
        before = snapshot(session, window=False)
        [unexpected] = session.receive(message, T0, nonce())
        assert (type(unexpected), unexpected.message) == (Unexpected, type(message))
        assert snapshot(session, window=False) == before
        tried += 1
    assert tried > 35


@pytest.mark.parametrize("mine", [True, False], ids=["mine", "theirs"])
@pytest.mark.parametrize("role", ROLES)
def test_a_decision_that_no_row_expects_is_refused(role, mine):
    table, me, partner = ROLES[role]
    words = {
        "device": {Trigger.ANSWER, Trigger.FETCHED, Trigger.FETCH_FAILED, Trigger.ACTIVATED, Trigger.ACTIVATION_FAILED},
        "server": {Trigger.ANSWER, Trigger.ACTIVATE, Trigger.SHOW},
    }[role]
    for state in [state for kind in KINDS.values() for state in kind]:
        for word in words:
            if (state, word) in table:
                continue
            session = new_session(role)
            exchange = put(session, partner, state, mine)
            before = snapshot(session)
            with pytest.raises(PolicyError, match=f"is in state {state.name}"):
                drive(session, partner, exchange, word)
            assert snapshot(session) == before
            exchange.token = bound(me)
            with pytest.raises(PolicyError, match="not known"):
                drive(session, partner, exchange, word)


@pytest.mark.parametrize("role", ROLES)
def test_what_no_row_expires_is_forgotten_without_a_word(role):
    table, _, partner = ROLES[role]
    for state in [state for kind in KINDS.values() for state in kind if (state, Trigger.EXPIRE) not in table]:
        session = new_session(role)
        exchange = put(session, partner, state, False)
        assert session.tick(exchange.expiry - 0.001) == []
        assert exchanges(session, partner) == {exchange.token: exchange}
        assert session.tick(exchange.expiry) == []
        assert exchanges(session, partner) == {}
        assert session.deadline() is None


# Refusals leave no trace.


def refused(session, error, message, now=T0):
    before = snapshot(session)
    with pytest.raises(error):
        session.receive(message, now, nonce())
    assert snapshot(session) == before


MALFORMED = [
    b"srup5:",
    b"srup5:d1:a5",
    b"srup5:d1:A5:1800000300:AAAAAAAAAAAAAAAAAAAAAA",
    b"srup5:d1:0a5:1800000300:AAAAAAAAAAAAAAAAAAAAAA",
    b"srup5:d1:a5:01800000300:AAAAAAAAAAAAAAAAAAAAAA",
    b"srup5:d1:a5:-1:AAAAAAAAAAAAAAAAAAAAAA",
    b"srup5:d1:a5:1800000300:AAAAAAAAAAAAAAAAAAAAA",
    b"srup5:d1:a5:1800000300:AAAAAAAAAAAAAAAAAAAAAA\n",
    b"srup5:d1:a5:1800000300:AAAAAAAAAAAAAAAAAAAAAA:a b",
    b"srup5:d1:10000000000000000:1800000300:AAAAAAAAAAAAAAAAAAAAAA",
    b"srup5:d1:a5:1000000000000000000:AAAAAAAAAAAAAAAAAAAAAA",
]


@pytest.mark.parametrize("token", MALFORMED)
@pytest.mark.parametrize("cls", [m.JoinRequest, m.Action, m.Data, m.Response, m.ResignRequest])
def test_a_malformed_bound_token_is_refused(token, cls):
    refused(new_session("server"), PolicyError, make(cls, 1, DEVICE, token))


def test_more_fields_may_follow_in_a_bound_token():
    token = b"srup5:d1:a5:1800000300:AAAAAAAAAAAAAAAAAAAAAA:v=2:"
    outputs = new_session("server").receive(make(m.Action, 1, DEVICE, token), T0, nonce())
    assert outputs == [ActionRequested(DEVICE, token, 7)]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("cls", [cls for cls in m.SCHEMA[:] if not cls.__name__.endswith("JoinResponse")])
def test_zero_and_seen_sequence_ids_are_refused(role, cls):
    session = new_session(role)
    me, partner = session.identity, ROLES[role][2]
    refused(session, ReplayError, make(cls, 0, partner, bound(me)))
    session.receive(make(m.Data, 5, partner, bound(me)), T0, nonce())
    refused(session, ReplayError, make(cls, 5, partner, bound(me)))
    session.receive(make(m.Data, 2000, partner, bound(me)), T0, nonce())
    refused(session, ReplayError, make(cls, 2000 - 1024, partner, bound(me)))
    session.receive(make(cls, 2000 - 1023, partner, bound(me)), T0, nonce())


def test_refused_strangers_leave_no_trace():
    session = ServerSession(SERVER, Policy(require_bound_tokens=True))
    before = snapshot(session)
    for token, sequence_id in [(b"uuid", 1), (bound(OTHER), 1), (bound(SERVER, T0 - 31), 1), (bound(SERVER), 0)]:
        with pytest.raises((PolicyError, ReplayError)):
            session.receive(make(m.JoinRequest, sequence_id, STRANGER, token), T0, nonce())
    assert snapshot(session) == before


COMMANDS = {
    "action": lambda s: s.action(STRANGER, 1, T0, nonce()),
    "data": lambda s: s.data(STRANGER, "x", b"", T0, nonce()),
    "identify": lambda s: s.identify(STRANGER, T0, nonce()),
    "terminate": lambda s: s.terminate(STRANGER, T0, nonce()),
    "update": lambda s: s.update(STRANGER, URL, DIGEST, T0, nonce()),
    "activate": lambda s: s.activate(STRANGER, b"x", T0),
    "answer_join": lambda s: s.answer_join(STRANGER, b"x", Status.JOIN_SUCCESS, T0),
    "answer_action": lambda s: s.answer_action(STRANGER, b"x", Status.ACTION_FAIL, T0),
    "rotate": lambda s: s.rotate(STRANGER, OFFER, T0, nonce()),
    "answer_key": lambda s: s.answer_key(STRANGER, b"x", Status.ACTION_SUCCESS, T0),
    "refuse_data": lambda s: s.refuse_data(STRANGER, b"x", T0),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_to_who_is_not_joined_are_refused(command):
    session = new_session("server")
    before = snapshot(session)
    with pytest.raises(PolicyError):
        COMMANDS[command](session)
    assert snapshot(session) == before
    assert not session.is_member(STRANGER)


@pytest.mark.parametrize("status", [s for s in Status if "ACTION" not in s.name] + [0x20, 0x99, None])
def test_an_action_is_answered_with_a_result_of_an_action(status):
    session = new_session("device")
    exchange = put(session, SERVER, ActionState.RUNNING, False)
    before = snapshot(session)
    with pytest.raises(EncodeError, match="status"):
        session.answer_action(SERVER, exchange.token, status, T0)
    assert snapshot(session) == before


def test_values_that_do_not_fit_a_message_leave_no_trace():
    session = new_session("server")
    before = snapshot(session)
    for command in (
        lambda: session.action(DEVICE, 256, T0, nonce()),
        lambda: session.data(DEVICE, "x" * 70_000, b"", T0, nonce()),
        lambda: session.update(DEVICE, "a\0b", DIGEST, T0, nonce()),
    ):
        with pytest.raises(EncodeError):
            command()
    assert snapshot(session) == before


# Sequence ids.


@pytest.mark.parametrize("role", ROLES)
def test_a_sequence_id_lies_above_everything_sent_and_accepted(role):
    session = new_session(role)
    me, partner = session.identity, ROLES[role][2]

    def sent():
        [send] = session.data(partner, "x", b"", T0, nonce())
        return send.message.sequence_id

    assert [sent(), sent()] == [1, 2]
    session.receive(make(m.Data, 50, partner, bound(me)), T0, nonce())
    assert [sent(), sent()] == [51, 52]
    session.receive(make(m.Data, 52, partner, bound(me)), T0, nonce())  # crossing messages
    session.receive(make(m.Data, 7, partner, bound(me)), T0, nonce())  # a late one
    assert sent() == 53
    # What was refused does not count.
    refused(session, PolicyError, make(m.Data, 1000, partner, bound(OTHER)))
    assert sent() == 54


def test_every_partner_has_its_own_sequence_ids():
    session = ServerSession(SERVER, first_sequence_id=100)
    for identity, sequence_id in ((DEVICE, 3), (OTHER, 7000)):
        session.receive(make(m.JoinRequest, sequence_id, identity, b"join"), T0, nonce())
    ids = []
    for identity in (DEVICE, OTHER, DEVICE):
        if identity not in ids and not session.is_member(identity):
            ids += [message.sequence_id for message in sends(session.answer_join(identity, b"join", Status(0x50), T0))]
        else:
            ids += [message.sequence_id for message in sends(session.action(identity, 1, T0, nonce()))]
    assert ids == [100, 7001, 101]


def test_the_last_sequence_id_harms_nobody_else():
    session = new_session("server")
    session.known.peers[OTHER] = Peer(OTHER, member=True, binds=True)
    session.known.peers[DEVICE].binds = True
    session.action(DEVICE, 1, T0, nonce())
    session.action(OTHER, 1, T0, nonce())
    running = session.receive(make(m.Action, 2, DEVICE, bound(SERVER)), T0, nonce())[0]
    [unexpected] = session.receive(make(m.Response, MAX_ID, DEVICE, bound(SERVER), status=0x20), T0, nonce())
    assert type(unexpected) is Unexpected
    before = snapshot(session)
    for command in (
        lambda: session.action(DEVICE, 1, T0, nonce()),
        lambda: session.answer_action(DEVICE, running.token, Status.ACTION_SUCCESS, T0),
        lambda: session.receive(make(m.ResignRequest, MAX_ID - 1, DEVICE, bound(SERVER)), T0, nonce()),
    ):
        with pytest.raises(PolicyError, match="no sequence id is left"):
            command()
        assert snapshot(session) == before
    # Its retransmissions stop, those to others go on, and what it did not answer still ends.
    assert [send.to for send in session.tick(T0 + 5)] == [OTHER]
    assert session.deadline() == T0 + 15
    told = session.tick(T0 + 300)
    assert {event.peer for event in events(told, Unanswered)} == {DEVICE, OTHER}
    session.terminate(DEVICE, T0, nonce())  # it cannot be told, and is out all the same
    assert not session.is_member(DEVICE)


# Retransmission and expiry.


def schedule(session, until):
    """Let time go by; return when something was sent, and the messages."""
    times, messages = [], []
    while (due := session.deadline()) is not None and due <= until:
        for message in sends(session.tick(due)):
            times.append(due - T0)
            messages.append(message)
    return times, messages


def binding(role, policy=None):
    session = new_session(role, policy)
    session.known.peers[ROLES[role][2]].binds = True
    return session


@pytest.mark.parametrize("role", ROLES)
def test_an_unanswered_request_is_sent_again_ever_more_rarely(role):
    session = binding(role, Policy(first_retry=5, max_retry=40, lifetime=200))
    partner = ROLES[role][2]
    [first] = session.action(partner, 9, T0, nonce())
    times, again = schedule(session, T0 + 199)
    assert times == [5, 15, 35, 75, 115, 155, 195]
    assert [message.sequence_id for message in again] == list(range(2, 9))
    assert {(message.token, message.action_id) for message in again} == {(first.message.token, 9)}
    assert session.tick(T0 + 200) == [Unanswered(partner, first.message.token, m.Action)]
    assert session.deadline() is None
    assert exchanges(session, partner) == {}


@pytest.mark.parametrize("role", ROLES)
def test_retransmission_stops_at_the_answer(role):
    session = binding(role)
    partner = ROLES[role][2]
    [first] = session.action(partner, 9, T0, nonce())
    session.tick(T0 + 5)
    answer = make(m.Response, 1, partner, first.message.token, status=Status.ACTION_FAIL)
    assert session.receive(answer, T0 + 6, nonce()) == [ActionAnswered(partner, first.message.token, Status(0x2F))]
    assert schedule(session, T0 + 10_000) == ([], [])


def test_an_answer_of_no_use_does_not_stop_retransmission():
    session = binding("server")
    [first] = session.action(DEVICE, 9, T0, nonce())
    for sequence_id, status in enumerate([0x99, *(s for s in Status if "ACTION" not in s.name)], 1):
        answer = make(m.Response, sequence_id, DEVICE, first.message.token, status=status)
        assert [type(event) for event in session.receive(answer, T0, nonce())] == [Unexpected]
    assert schedule(session, T0 + 299)[0] == [5, 15, 35, 75, 155]


@pytest.mark.parametrize("role", ROLES)
def test_a_partner_that_does_not_bind_tokens_gets_nothing_twice(role):
    session = new_session(role)
    partner = ROLES[role][2]
    session.action(partner, 9, T0, nonce())
    if role == "server":
        session.identify(partner, T0, nonce())
        session.update(partner, URL, DIGEST, T0, nonce())
    else:
        session.resign(partner, T0, nonce())
    assert schedule(session, T0 + 100_000) == ([], [])
    assert exchanges(session, partner) == {}


def test_a_policy_that_requires_binding_permits_retransmission():
    session = new_session("server", Policy(require_bound_tokens=True))
    session.action(DEVICE, 9, T0, nonce())
    assert schedule(session, T0 + 20)[0] == [5, 15]


def test_a_join_is_sent_again_whoever_the_server_is():
    session = DeviceSession(DEVICE, [SERVER])
    session.join(SERVER, T0, nonce())
    times, messages = schedule(session, T0 + 299)
    assert times == [5, 15, 35, 75, 155]
    assert {type(message) for message in messages} == {m.JoinRequest}


def test_an_update_is_sent_again_at_both_stages():
    session = binding("server", Policy(update_lifetime=1000, first_retry=10, max_retry=10))
    [first] = session.update(DEVICE, URL, DIGEST, T0, nonce(), hold=True)
    assert schedule(session, T0 + 30)[0] == [10, 20, 30]
    answer = make(m.Response, 1, DEVICE, first.message.token, status=Status.UPDATE_SUCCESS)
    session.receive(answer, T0 + 31, nonce())
    assert schedule(session, T0 + 60) == ([], [])  # the operator has the word
    session.activate(DEVICE, first.message.token, T0 + 60)
    times, messages = schedule(session, T0 + 80)
    assert times == [70, 80]
    assert {type(message) for message in messages} == {m.Activate}


def test_a_value_is_sent_once():
    session = binding("device")
    session.data(SERVER, "x", b"", T0, nonce())
    assert schedule(session, T0 + 10_000) == ([], [])


def test_a_late_tick_sends_one_copy_and_not_one_for_every_pause():
    session = binding("server")
    session.action(DEVICE, 9, T0, nonce())
    assert len(session.tick(T0 + 100)) == 1
    assert session.deadline() == T0 + 110


# Expiry of what comes in.


@pytest.mark.parametrize("skew", [0.0, 30.0])
def test_a_token_is_good_up_to_its_last_second_and_the_skew(skew):
    policy = Policy(clock_skew=skew)
    message = make(m.Action, 1, SERVER, bound(DEVICE, T0 + 10))
    assert events(new_session("device", policy).receive(message, T0 + 10 + skew, nonce()), ActionRequested)
    refused(new_session("device", policy), PolicyError, message, T0 + 10 + skew + 0.001)


@pytest.mark.parametrize("skew", [0.0, 30.0])
def test_a_token_cannot_be_used_again_in_its_last_moment(skew):
    session = new_session("device", Policy(clock_skew=skew))
    token, end = bound(DEVICE, T0 + 10), T0 + 10 + skew
    assert events(session.receive(make(m.Action, 1, SERVER, token), T0, nonce()), ActionRequested)
    session.answer_action(SERVER, token, Status.ACTION_SUCCESS, T0)
    session.tick(end)
    outputs = session.receive(make(m.Action, 2, SERVER, token), end, nonce())
    assert events(outputs) == []
    assert [answer.status for answer in sends(outputs)] == [Status.ACTION_SUCCESS]


def test_an_end_without_a_clock_takes_expired_tokens_and_sends_none():
    session = new_session("device", Policy(has_clock=False))
    message = make(m.Action, 1, SERVER, bound(DEVICE, T0 + 10))
    assert events(session.receive(message, 50.0, nonce()), ActionRequested)
    assert events(session.receive(make(m.IdRequest, 2, SERVER, bound(DEVICE)), T0 * 2, nonce()), Unexpected) == []
    sent = session.action(SERVER, 1, 50.0, nonce()) + session.data(SERVER, "x", b"", 50.0, nonce())
    sent += [
        Send(SERVER, message)
        for message in sends(session.receive(make(m.IdRequest, 3, SERVER, bound(DEVICE)), 50.0, nonce()))
    ]
    assert len(sent) == 3
    expiries = [parse(send.message.token).expiry for send in sent]
    assert expiries == [FIRST_UNDATED + send.message.sequence_id for send in sent]  # later than any time, and in order
    # Its own patience is a matter of intervals.
    assert [type(event) for event in events(session.tick(50.0 + 300))] == [Unanswered]


def test_a_device_without_a_clock_is_let_in_and_commanded():
    pair = Pair(device_policy=Policy(has_clock=False))
    pair.deliver([])
    [requested] = [
        output
        for send in pair.device.join(SERVER, 12.0, nonce())
        for output in pair.server.receive(send.message, T0, nonce())
    ]
    pair.deliver(pair.server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0))
    assert pair.device.is_member(SERVER)
    assert pair.action().action_id == 7


# Binding.


@pytest.mark.parametrize("cls", [m.Action, m.Data, m.JoinRequest, m.ResignRequest, m.Response])
def test_a_policy_can_require_bound_tokens(cls):
    strict = new_session("server", Policy(require_bound_tokens=True))
    refused(strict, PolicyError, make(cls, 1, DEVICE, b"uuid"))
    strict.receive(make(cls, 1, DEVICE, bound(SERVER)), T0, nonce())
    new_session("server").receive(make(cls, 1, DEVICE, b"uuid"), T0, nonce())


def test_who_has_bound_a_token_must_go_on():
    session = new_session("server")
    session.receive(make(m.Data, 1, DEVICE, b"uuid"), T0, nonce())
    session.receive(make(m.Data, 2, DEVICE, bound(SERVER)), T0, nonce())
    for cls in (m.Action, m.Data, m.JoinRequest, m.Response):
        refused(session, PolicyError, make(cls, 3, DEVICE, b"uuid2"))
    session.receive(make(m.Data, 3, DEVICE, bound(SERVER)), T0, nonce())


def test_repeating_a_bound_token_is_not_binding():
    session = new_session("server")
    session.receive(make(m.Response, 1, DEVICE, bound(SERVER), status=0x20), T0, nonce())
    assert events(session.receive(make(m.Action, 2, DEVICE, b"uuid"), T0, nonce()), ActionRequested)


# Actions and values, in either direction.


@pytest.mark.parametrize("status", [Status.ACTION_SUCCESS, Status.ACTION_UNKNOWN, Status.ACTION_FAIL])
@pytest.mark.parametrize("asking", [SERVER, DEVICE])
def test_an_action_and_its_answer(asking, status):
    pair = Pair().joined()
    asked = DEVICE if asking == SERVER else SERVER
    [requested] = pair.deliver(pair.end(asking).action(asked, 200, T0, nonce()))
    assert requested == ActionRequested(asking, requested.token, 200)
    told = pair.deliver(pair.end(asked).answer_action(asking, requested.token, status, T0))
    assert told == [ActionAnswered(asked, requested.token, status)]
    with pytest.raises(PolicyError):
        pair.end(asked).answer_action(asking, requested.token, status, T0)


@pytest.mark.parametrize("sending", [SERVER, DEVICE])
def test_a_value_and_its_refusal(sending):
    pair = Pair().joined()
    taking = DEVICE if sending == SERVER else SERVER
    [received] = pair.deliver(pair.end(sending).data(taking, "humidity", b"\0\xff", T0, nonce()))
    assert received == DataReceived(sending, received.token, "humidity", b"\0\xff")
    assert pair.deliver(pair.end(taking).refuse_data(sending, received.token, T0)) == [
        DataRefused(taking, received.token)
    ]
    assert pair.deliver(pair.end(taking).refuse_data(sending, received.token, T0)) == []


def test_crossing_actions_do_not_meet():
    pair = Pair().joined()
    mine = pair.server.action(DEVICE, 1, T0, nonce())
    theirs = pair.device.action(SERVER, 2, T0, nonce())
    assert mine[0].message.sequence_id == theirs[0].message.sequence_id
    told = pair.deliver(mine) + pair.deliver(theirs)
    assert [(event.peer, event.action_id) for event in told] == [(SERVER, 1), (DEVICE, 2)]


def test_a_response_to_nothing_is_unexpected():
    session = new_session("server")
    for sequence_id, status in enumerate([*Status, 0x99], 1):
        outputs = session.receive(make(m.Response, sequence_id, DEVICE, b"uuid", status=status), T0, nonce())
        assert outputs == [Unexpected(DEVICE, b"uuid", m.Response, "it answers nothing that is known")]


def test_a_request_of_mine_cannot_be_turned_round():
    """An exchange that I began is not one that the partner may continue as its own."""
    pair = Pair().joined()
    [send] = pair.server.action(DEVICE, 1, T0, nonce())
    token = send.message.token
    window = pair.server.known.peers[DEVICE].window
    message = make(m.Action, window.highest + 1, DEVICE, token)
    assert [type(event) for event in pair.server.receive(message, T0, nonce())] == [Unexpected]
    requested = pair.deliver([send])[0]
    pair.deliver(pair.device.answer_action(SERVER, requested.token, Status.ACTION_SUCCESS, T0))
    refused(pair.server, PolicyError, make(m.Action, window.highest + 1, DEVICE, token))


# Bounds.


@pytest.mark.parametrize("sending", [SERVER, DEVICE])
def test_a_flood_of_values_is_let_through_in_bounded_memory(sending):
    pair = Pair().joined()
    sender, taker = pair.end(sending), pair.device if sending == SERVER else pair.server
    taking = taker.identity
    received = 0
    for number in range(10_000):
        now = T0 + number / 1000
        [send] = sender.data(taking, "x", b"", now, nonce())
        received += len(events(taker.receive(send.message, now, nonce()), DataReceived))
    assert received == 10_000
    for session in (sender, taker):
        assert sum(len(partner.exchanges) for partner in session.known.peers.values()) <= MAX_EXCHANGES + 8
        assert len(session.known.timers) <= 64 + 4 * session.known.size


def test_ones_own_values_do_not_crowd_out_what_the_partner_has_ordered():
    pair = Pair().joined()
    requested = pair.action()
    pair.device.answer_action(SERVER, requested.token, Status.ACTION_SUCCESS, T0)
    for _ in range(2 * MAX_EXCHANGES):
        pair.device.data(SERVER, "x", b"", T0, nonce())
    again = make(m.Action, pair.device.known.peers[SERVER].window.highest + 1, SERVER, requested.token)
    outputs = pair.device.receive(again, T0, nonce())
    assert events(outputs) == []
    assert [answer.status for answer in sends(outputs)] == [Status.ACTION_SUCCESS]


@pytest.mark.parametrize("asking", [SERVER, DEVICE])
def test_a_thousand_open_actions(asking):
    """So many are taken and no more; nothing is lost of those, and there is room again when one ends."""
    pair = Pair().joined()
    asked = DEVICE if asking == SERVER else SERVER
    asker, doer = pair.end(asking), pair.end(asked)
    tokens = []
    for number in range(1000):
        if len(tokens) < MAX_EXCHANGES:
            [requested] = pair.deliver(asker.action(asked, number % 256, T0, nonce()))
            tokens.append(requested.token)
        else:
            before = snapshot(asker)
            with pytest.raises(PolicyError, match="too many exchanges"):
                asker.action(asked, 1, T0, nonce())
            if number % 100 == 0:
                assert snapshot(asker) == before
    # The other end holds to the same bound, whatever the partner sends.
    window = doer.known.peers[asking].window
    refused(doer, PolicyError, make(m.Action, window.highest + 1, asking, bound(asked)))
    for token in tokens:
        told = pair.deliver(doer.answer_action(asking, token, Status.ACTION_SUCCESS, T0))
        assert told == [ActionAnswered(asked, token, Status.ACTION_SUCCESS)]
    assert pair.deliver(asker.action(asked, 1, T0, nonce()))[0].action_id == 1


def test_what_a_partner_has_open_does_not_bind_our_hands():
    pair = Pair().joined()
    for _ in range(MAX_EXCHANGES):
        pair.deliver(pair.device.action(SERVER, 1, T0, nonce()))
    with pytest.raises(PolicyError):
        pair.device.action(SERVER, 1, T0, nonce())
    assert pair.action().action_id == 7
    assert pair.deliver(pair.device.data(SERVER, "x", b"", T0, nonce()))
    pair.deliver(pair.server.terminate(DEVICE, T0, nonce()))
    assert not pair.server.is_member(DEVICE)
    assert not pair.device.is_member(SERVER)


def test_a_full_table_does_not_keep_anyone_in():
    pair = Pair().joined()
    for _ in range(MAX_EXCHANGES):
        pair.deliver(pair.server.action(DEVICE, 1, T0, nonce()))
    [send, left, *ended] = pair.server.terminate(DEVICE, T0, nonce())
    assert [type(event) for event in ended] == [Unanswered] * MAX_EXCHANGES
    told = pair.deliver([send])
    assert [event.token for event in told] == [left.token]
    assert not pair.device.is_member(SERVER)
    assert len(exchanges(pair.server, DEVICE)) <= 2 * MAX_EXCHANGES

    pair = Pair().joined()
    for _ in range(MAX_EXCHANGES):
        pair.deliver(pair.device.action(SERVER, 1, T0, nonce()))
    window = pair.server.known.peers[DEVICE].window
    outputs = pair.server.receive(make(m.ResignRequest, window.highest + 1, DEVICE, bound(SERVER)), T0, nonce())
    assert [answer.status for answer in sends(outputs)] == [Status.RESIGN_SUCCESS]
    assert not pair.server.is_member(DEVICE)


def test_timers_do_not_pile_up():
    pair = Pair(Policy(first_retry=1), Policy(first_retry=1)).joined()
    for number in range(5000):
        pair.now += 0.1
        requested = pair.action()
        pair.deliver(pair.device.answer_action(SERVER, requested.token, Status.ACTION_SUCCESS, pair.now))
        if number % 500 == 0:
            pair.server.tick(pair.now)
            pair.device.tick(pair.now)
        for session in (pair.server, pair.device):
            assert len(session.known.timers) <= 64 + 4 * session.known.size
            assert session.known.size == sum(len(partner.exchanges) for partner in session.known.peers.values())
    for session in (pair.server, pair.device):
        session.tick(pair.now + 10**6)
        assert (session.known.size, session.known.timers, session.deadline()) == (0, [], None)


def test_nothing_is_due_in_the_beginning():
    assert ServerSession(SERVER).deadline() is None
    assert ServerSession(SERVER).tick(T0) == []


def test_the_document_shows_the_tables():
    """docs/states.md is drawn from them: ``make pages`` after a change."""
    path = Path(__file__).parent.parent / "docs" / "states.py"
    spec = spec_from_file_location("states", path)
    states = module_from_spec(spec)
    spec.loader.exec_module(states)
    assert states.PAGE.read_text() == states.page()
    drawn = states.page()
    for table in (DeviceSession.table, ServerSession.table):
        assert all(type(state).__name__ in states.SUBJECTS for state, _ in table)
        assert all(step.effect in drawn for step in table.values())


# What makes no sense.

NAN, INF = float("nan"), float("inf")
TIMES = ["clock_skew", "lifetime", "update_lifetime", "join_lifetime", "first_retry", "max_retry", "key_overlap"]


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1, -1e-9, True, False, "60", None, 1j, 10**18, 10**400], ids=repr)
@pytest.mark.parametrize("name", TIMES)
def test_a_policy_names_the_time_that_makes_no_sense(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a number of seconds"):
        Policy(**{name: value})


@pytest.mark.parametrize("name", TIMES)
def test_a_policy_takes_no_time_at_all_where_that_means_something(name):
    if name in ("clock_skew", "key_overlap"):
        assert getattr(Policy(**{name: 0}), name) == 0
    else:
        with pytest.raises(ValueError, match=f"^{name} must be a number of seconds, more than 0"):
            Policy(**{name: 0})


@pytest.mark.parametrize("value", [0, 1, None, "yes"], ids=repr)
@pytest.mark.parametrize("name", ["require_bound_tokens", "has_clock"])
def test_a_policy_is_strict_or_not_and_has_a_clock_or_not(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be True or False"):
        Policy(**{name: value})


def test_a_policy_that_contradicts_itself():
    assert Policy(first_retry=9, max_retry=9, lifetime=9, key_overlap=10)
    with pytest.raises(ValueError, match="max_retry, 9, must not be below first_retry, 10"):
        Policy(first_retry=10, max_retry=9)
    with pytest.raises(ValueError, match="key_overlap, 9, must be longer than lifetime, 9, or 0"):
        Policy(lifetime=9, key_overlap=9)


@pytest.mark.parametrize("value", [NAN, INF, -1, 0, True, "60", 10**18], ids=repr)
@pytest.mark.parametrize("request_of", ["action", "rotate", "update"])
def test_a_lifetime_that_makes_no_sense_changes_nothing(request_of, value):
    pair = Pair().joined()
    ask = {
        "action": lambda: pair.server.action(DEVICE, 1, T0, nonce(), value),
        "rotate": lambda: pair.server.rotate(DEVICE, b"", T0, nonce(), value),
        "update": lambda: pair.server.update(DEVICE, URL, DIGEST, T0, nonce(), value),
    }[request_of]
    [partner] = pair.server.known.peers.values()
    before = partner.last_sent, dict(partner.exchanges)
    with pytest.raises(ValueError, match="lifetime must be a number of seconds, more than 0"):
        ask()
    assert (partner.last_sent, partner.exchanges) == before


@pytest.mark.parametrize("value", [0, -1, 1 << 64, True, 1.0, "1", None], ids=repr)
def test_a_first_sequence_id_that_makes_no_sense(value):
    for new in (lambda: ServerSession(SERVER, None, value), lambda: DeviceSession(DEVICE, [SERVER], None, value)):
        with pytest.raises(ValueError, match="first_sequence_id must be an int from 1 to"):
            new()


@pytest.mark.parametrize("value", [-1, 10**18, True, 1.0, "1", NAN], ids=repr)
def test_a_version_floor_that_makes_no_sense(value):
    with pytest.raises(ValueError, match="version_floor must be an int from 0 to"):
        DeviceSession(DEVICE, [SERVER], version_floor=value)


def test_the_longest_life_fits_a_token():
    pair = Pair().joined()
    [send] = pair.server.action(DEVICE, 1, T0, nonce(), 10**18 - 1)
    assert parse(send.message.token).expiry == FIRST_UNDATED - 1
