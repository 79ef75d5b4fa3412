"""The update tables, row by row, and what an update's two ends make of every other message."""

import pytest

from srup import messages as m
from srup.errors import EncodeError, PolicyError
from srup.session.events import ActivationRequested, FetchRequested, Unexpected, UpdateChanged
from srup.update import DEVICE_TABLE, FETCH_FAILURES, SERVER_TABLE, UpdateState, is_digest
from srup.wire import Status

from .session_link import (
    DEVICE,
    DIGEST,
    SERVER,
    T0,
    URL,
    Pair,
    bound,
    events,
    exchange_of,
    make,
    nonce,
    sends,
    snapshot,
)

S = UpdateState

DEVICE_ROWS = """
NEW Initiate -> FETCHING begin_fetch
NEW Activate -> FAILED refuse_activation
FETCHING Initiate -> FETCHING same_order
FETCHING FETCHED -> READY answer
FETCHING FETCH_FAILED -> FAILED answer
FETCHING LEAVE -> FAILED give_order_up
READY LEAVE -> FAILED give_order_up
ACTIVATING LEAVE -> FAILED
FETCHING EXPIRE -> UNANSWERED
READY Initiate -> READY answer_same_order
READY Activate -> ACTIVATING begin_activation
READY EXPIRE -> UNANSWERED
ACTIVATING Initiate -> ACTIVATING same_order
ACTIVATING Activate -> ACTIVATING
ACTIVATING ACTIVATED -> ACTIVATED answer
ACTIVATING ACTIVATION_FAILED -> FAILED answer
ACTIVATING EXPIRE -> UNANSWERED
ACTIVATED Initiate -> ACTIVATED answer_same_order
ACTIVATED Activate -> ACTIVATED repeat_answer
FAILED Initiate -> FAILED answer_same_order
FAILED Activate -> FAILED refuse_activation
"""

SERVER_ROWS = """
FETCHING UPDATE_SUCCESS -> READY update_ready
FETCHING UPDATE_FAIL_HTTP_ERROR -> FAILED update_changed
FETCHING UPDATE_FAIL_SERVER -> FAILED update_changed
FETCHING UPDATE_FAIL_FILE -> FAILED update_changed
FETCHING UPDATE_FAIL_DIGEST -> FAILED update_changed
ACTIVATED UPDATE_SUCCESS -> ACTIVATED
FAILED UPDATE_SUCCESS -> FAILED
FETCHING EXPIRE -> UNANSWERED update_changed
READY ACTIVATE -> ACTIVATING send_activate
READY UPDATE_SUCCESS -> READY
READY EXPIRE -> UNANSWERED update_changed
ACTIVATING UPDATE_SUCCESS -> ACTIVATING
ACTIVATING ACTIVATE_SUCCESS -> ACTIVATED update_changed
ACTIVATING ACTIVATE_FAIL -> FAILED update_changed
ACTIVATING EXPIRE -> UNANSWERED update_changed
ACTIVATED ACTIVATE_SUCCESS -> ACTIVATED
FAILED ACTIVATE_FAIL -> FAILED
FAILED UPDATE_FAIL_HTTP_ERROR -> FAILED
FAILED UPDATE_FAIL_SERVER -> FAILED
FAILED UPDATE_FAIL_FILE -> FAILED
FAILED UPDATE_FAIL_DIGEST -> FAILED
"""


def written(table):
    rows = []
    for (state, trigger), step in table.items():
        name = trigger.__name__ if isinstance(trigger, type) else trigger.name
        rows.append(f"{state.name} {name} -> {step.state.name} {step.effect}".rstrip())
    return sorted(rows)


@pytest.mark.parametrize(("table", "rows"), [(DEVICE_TABLE, DEVICE_ROWS), (SERVER_TABLE, SERVER_ROWS)])
def test_the_tables_say_what_the_protocol_says(table, rows):
    assert written(table) == sorted(rows.split("\n")[1:-1])


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (DIGEST, True),
        (DIGEST.upper(), False),
        (DIGEST[:-1], False),
        (DIGEST + "0", False),
        (DIGEST + "\n", False),
        (DIGEST[:-1] + "٣", False),
        (DIGEST[:-1] + "g", False),
        ("", False),
    ],
)
def test_a_digest_is_64_lower_case_hex_digits(text, good):
    assert is_digest(text) is good


@pytest.fixture
def pair():
    return Pair().joined()


def order(pair, **options):
    """An order that has arrived; return its token."""
    return pair.update(**options).token


def ready(pair, **options):
    token = order(pair, **options)
    told = pair.deliver(pair.device.fetched(SERVER, token, pair.now))
    return token, told


def resend(pair, cls, token, sender=SERVER, **fields):
    """Give an end a genuine message once more, under a sequence id of its own."""
    receiver = pair.device if sender == SERVER else pair.server
    window = receiver._partners[sender].window
    return receiver.receive(make(cls, window.highest + 1, sender, token, **fields), pair.now, nonce())


def state(session, partner, token):
    return exchange_of(session, partner, token).state


def test_an_update_goes_through_without_the_operator(pair):
    token, told = ready(pair)
    assert told == [
        UpdateChanged(DEVICE, token, S.READY, Status.UPDATE_SUCCESS),
        UpdateChanged(DEVICE, token, S.ACTIVATING, None),
        ActivationRequested(SERVER, token, DIGEST),
    ]
    told = pair.deliver(pair.device.activated(SERVER, token, pair.now))
    assert told == [UpdateChanged(DEVICE, token, S.ACTIVATED, Status.ACTIVATE_SUCCESS)]
    assert state(pair.server, DEVICE, token) is state(pair.device, SERVER, token) is S.ACTIVATED


def test_the_order_names_the_file(pair):
    outputs = pair.server.update(DEVICE, URL, DIGEST, pair.now, nonce())
    [message] = sends(outputs)
    assert (type(message), message.url, message.digest) == (m.Initiate, URL, DIGEST)
    assert pair.deliver(outputs) == [FetchRequested(SERVER, message.token, URL, DIGEST)]


def test_a_held_update_waits_for_the_operator(pair):
    token, told = ready(pair, hold=True)
    assert told == [UpdateChanged(DEVICE, token, S.READY, Status.UPDATE_SUCCESS)]
    told = pair.deliver(pair.server.activate(DEVICE, token, pair.now))
    assert told == [
        UpdateChanged(DEVICE, token, S.ACTIVATING, None),
        ActivationRequested(SERVER, token, DIGEST),
    ]
    with pytest.raises(PolicyError):
        pair.server.activate(DEVICE, token, pair.now)


@pytest.mark.parametrize("status", FETCH_FAILURES)
def test_a_failed_download_ends_the_update(pair, status):
    token = order(pair)
    told = pair.deliver(pair.device.fetch_failed(SERVER, token, status, pair.now))
    assert told == [UpdateChanged(DEVICE, token, S.FAILED, status)]
    assert resend(pair, m.Response, token, DEVICE, status=status) == []
    with pytest.raises(PolicyError):
        pair.server.activate(DEVICE, token, pair.now)


def test_a_failed_activation_ends_the_update(pair):
    token, _ = ready(pair)
    told = pair.deliver(pair.device.activation_failed(SERVER, token, pair.now))
    assert told == [UpdateChanged(DEVICE, token, S.FAILED, Status.ACTIVATE_FAIL)]
    assert resend(pair, m.Response, token, DEVICE, status=Status.ACTIVATE_FAIL) == []


@pytest.mark.parametrize("status", [s for s in Status if s not in FETCH_FAILURES] + [0xFF, 0x99])
def test_a_download_fails_only_with_a_failure(pair, status):
    token = order(pair)
    before = snapshot(pair.device)
    with pytest.raises(EncodeError, match="status"):
        pair.device.fetch_failed(SERVER, token, status, pair.now)
    assert snapshot(pair.device) == before


def test_a_repeated_order_is_answered_again_and_not_carried_out_again(pair):
    token = order(pair)
    again = {"url": URL, "digest": DIGEST}
    assert resend(pair, m.Initiate, token, **again) == []
    pair.device.fetched(SERVER, token, pair.now)
    expected = [
        (lambda: None, Status.UPDATE_SUCCESS),
        (lambda: resend(pair, m.Activate, token), None),
        (lambda: pair.device.activated(SERVER, token, pair.now), Status.ACTIVATE_SUCCESS),
    ]
    for advance, status in expected:
        advance()
        outputs = resend(pair, m.Initiate, token, **again)
        assert [answer.status for answer in sends(outputs)] == ([] if status is None else [status])
        assert events(outputs) == []


@pytest.mark.parametrize("other", [{"url": URL + "2", "digest": DIGEST}, {"url": URL, "digest": "f" * 64}])
@pytest.mark.parametrize("stage", ["FETCHING", "READY", "ACTIVATING", "ACTIVATED", "FAILED"])
def test_a_token_is_good_for_one_order(pair, stage, other):
    token = order(pair)
    device = pair.device
    if stage == "FAILED":
        device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_DIGEST, pair.now)
    if stage in ("READY", "ACTIVATING", "ACTIVATED"):
        device.fetched(SERVER, token, pair.now)
    if stage in ("ACTIVATING", "ACTIVATED"):
        resend(pair, m.Activate, token)
    if stage == "ACTIVATED":
        device.activated(SERVER, token, pair.now)
    assert state(device, SERVER, token).name == stage
    before = snapshot(device)
    with pytest.raises(PolicyError, match="another update order"):
        resend(pair, m.Initiate, token, **other)
    assert snapshot(device) == before


def test_an_order_without_a_digest_is_refused(pair):
    before = snapshot(pair.device)
    with pytest.raises(PolicyError, match="digest"):
        resend(pair, m.Initiate, bound(DEVICE), url=URL, digest=DIGEST.upper())
    assert snapshot(pair.device) == before
    server = snapshot(pair.server)
    with pytest.raises(EncodeError, match="digest"):
        pair.server.update(DEVICE, URL, DIGEST.upper(), pair.now, nonce())
    assert snapshot(pair.server) == server


def test_activation_of_nothing_is_refused_with_an_answer(pair):
    token = bound(DEVICE)
    for _ in range(2):
        outputs = resend(pair, m.Activate, token)
        assert [answer.status for answer in sends(outputs)] == [Status.ACTIVATE_FAIL]
        assert [type(event) for event in events(outputs)] == [Unexpected]
    # The token is used up: an order under it does not begin.
    with pytest.raises(PolicyError):
        resend(pair, m.Initiate, token, url=URL, digest=DIGEST)


def test_activation_before_the_file_is_there_does_nothing(pair):
    token = order(pair)
    before = snapshot(pair.device, window=False)
    outputs = resend(pair, m.Activate, token)
    assert outputs == [Unexpected(SERVER, token, m.Activate, "the exchange is in state FETCHING")]
    assert snapshot(pair.device, window=False) == before


def test_activation_after_a_failure_is_refused(pair):
    token = order(pair)
    pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_DIGEST, pair.now)
    outputs = resend(pair, m.Activate, token)
    assert [answer.status for answer in sends(outputs)] == [Status.ACTIVATE_FAIL]
    assert events(outputs, ActivationRequested) == []


def test_an_activation_that_comes_twice_happens_once(pair):
    token, told = ready(pair)
    assert len([event for event in told if isinstance(event, ActivationRequested)]) == 1
    assert resend(pair, m.Activate, token) == []
    pair.device.activated(SERVER, token, pair.now)
    outputs = resend(pair, m.Activate, token)
    assert [answer.status for answer in sends(outputs)] == [Status.ACTIVATE_SUCCESS]
    assert events(outputs) == []


def test_repeated_answers_change_nothing_at_the_server(pair):
    token, _ = ready(pair, hold=True)
    assert resend(pair, m.Response, token, DEVICE, status=Status.UPDATE_SUCCESS) == []
    pair.deliver(pair.server.activate(DEVICE, token, pair.now))
    assert resend(pair, m.Response, token, DEVICE, status=Status.UPDATE_SUCCESS) == []
    pair.deliver(pair.device.activated(SERVER, token, pair.now))
    assert resend(pair, m.Response, token, DEVICE, status=Status.ACTIVATE_SUCCESS) == []


@pytest.mark.parametrize("stage", [S.FETCHING, S.READY, S.ACTIVATING])
def test_an_order_that_expires_is_unanswered_at_the_server_and_forgotten_by_the_device(pair, stage):
    token = order(pair, lifetime=1000, hold=True)
    if stage is not S.FETCHING:
        pair.deliver(pair.device.fetched(SERVER, token, pair.now))
    if stage is S.ACTIVATING:
        pair.deliver(pair.server.activate(DEVICE, token, pair.now))
    assert state(pair.server, DEVICE, token) is state(pair.device, SERVER, token) is stage
    assert events(pair.server.tick(T0 + 999.9), UpdateChanged) == []
    assert events(pair.server.tick(T0 + 1000)) == [UpdateChanged(DEVICE, token, S.UNANSWERED, None)]
    pair.device.tick(T0 + 1029)
    assert state(pair.device, SERVER, token) is stage
    assert pair.device.tick(T0 + 1032) == []
    with pytest.raises(PolicyError, match="not known"):
        pair.device.fetched(SERVER, token, T0 + 1032)
    with pytest.raises(PolicyError, match="not known"):
        pair.server.activate(DEVICE, token, T0 + 1000)


def test_two_updates_at_once_do_not_mix(pair):
    first = pair.deliver(pair.server.update(DEVICE, URL, DIGEST, pair.now, nonce()))[0]
    second = pair.deliver(pair.server.update(DEVICE, URL + "2", "f" * 64, pair.now, nonce()))[0]
    told = pair.deliver(pair.device.fetched(SERVER, second.token, pair.now))
    assert told[-1] == ActivationRequested(SERVER, second.token, "f" * 64)
    told = pair.deliver(pair.device.fetch_failed(SERVER, first.token, Status.UPDATE_FAIL_DIGEST, pair.now))
    assert told == [UpdateChanged(DEVICE, first.token, S.FAILED, Status.UPDATE_FAIL_DIGEST)]
    told = pair.deliver(pair.device.activated(SERVER, second.token, pair.now))
    assert told == [UpdateChanged(DEVICE, second.token, S.ACTIVATED, Status.ACTIVATE_SUCCESS)]


def test_who_is_out_neither_activates_nor_is_activated(pair):
    token, _ = ready(pair, hold=True)
    [terminate, _, changed] = pair.server.terminate(DEVICE, pair.now, nonce())
    assert changed == UpdateChanged(DEVICE, token, S.UNANSWERED, None)
    before = snapshot(pair.server)
    with pytest.raises(PolicyError, match="not known"):
        pair.server.activate(DEVICE, token, pair.now)
    assert snapshot(pair.server) == before
    pair.deliver([terminate])
    assert not pair.device.awaits(SERVER, token)
    [unexpected, answer, _] = resend(pair, m.Activate, token)  # and that it has left
    assert (unexpected.why, answer.message.status) == ("nothing was fetched for it", Status.ACTIVATE_FAIL)


def test_a_file_that_is_ready_after_the_device_was_put_out_is_not_activated(pair):
    token = order(pair)
    pair.server.terminate(DEVICE, pair.now, nonce())
    [unexpected] = resend(pair, m.Response, token, DEVICE, status=Status.UPDATE_SUCCESS)
    assert isinstance(unexpected, Unexpected)
