"""The update tables, row by row, and what an update's two ends make of every other message."""

import pytest

from srup import messages as m
from srup.errors import EncodeError, PolicyError
from srup.session import DeviceSession, Send, ServerSession
from srup.session.events import ActivationRequested, FetchCancelled, FetchRequested, Unexpected, UpdateChanged
from srup.session.flows.update import DeviceUpdates, ServerUpdates
from srup.update import (
    FETCH_FAILURES,
    MAX_REASON,
    UpdateState,
    check_order,
    is_digest,
)
from srup.wire import UPDATE_CANCEL, UPDATE_REASON, Status

from .session_link import (
    DEVICE,
    DIGEST,
    SERVER,
    T0,
    URL,
    OldDevice,
    OldServer,
    Pair,
    bound,
    converse,
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
FETCHING FETCH_FAILED -> FAILED report_failure
FETCHING SUPERSEDE -> FAILED give_way
NEW Data -> FAILED cancelled
FETCHING Data -> FAILED cancelled
READY Data -> FAILED cancelled
ACTIVATING Data -> ACTIVATING cancelled_too_late
ACTIVATED Data -> ACTIVATED cancelled_too_late
FAILED Data -> FAILED cancelled_too_late
FETCHING LEAVE -> FAILED give_order_up
FETCHING RESTART -> FETCHING fetch_again
ACTIVATING RESTART -> ACTIVATING activation_again
READY LEAVE -> FAILED give_order_up
ACTIVATING LEAVE -> FAILED give_activation_up
FETCHING EXPIRE -> UNANSWERED fetch_expired
READY Initiate -> READY answer_same_order
READY Activate -> ACTIVATING begin_activation
READY EXPIRE -> UNANSWERED
ACTIVATING Initiate -> ACTIVATING same_order
ACTIVATING Activate -> ACTIVATING
ACTIVATING ACTIVATED -> ACTIVATED answer
ACTIVATING ACTIVATION_FAILED -> FAILED report_failure
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
FETCHING SUPERSEDE -> FAILED update_withdrawn
FETCHING CANCEL -> FAILED cancel_update
READY CANCEL -> FAILED cancel_update
FETCHING Data -> FETCHING reason_received
READY Data -> READY reason_received
ACTIVATING Data -> ACTIVATING reason_received
FAILED Data -> FAILED late_reason_received
READY ACTIVATE -> ACTIVATING send_activate
ACTIVATING ACTIVATE -> ACTIVATING send_activate_again
READY UPDATE_SUCCESS -> READY
READY EXPIRE -> UNANSWERED update_changed
ACTIVATING UPDATE_SUCCESS -> ACTIVATING
ACTIVATING ACTIVATE_SUCCESS -> ACTIVATED update_changed
ACTIVATING ACTIVATE_FAIL -> FAILED update_changed
ACTIVATING EXPIRE -> UNANSWERED update_changed
ACTIVATING TOLD -> UNCONFIRMED
UNCONFIRMED UPDATE_SUCCESS -> UNCONFIRMED
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


@pytest.mark.parametrize(("table", "rows"), [(DeviceUpdates.table, DEVICE_ROWS), (ServerUpdates.table, SERVER_ROWS)])
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
    window = receiver.known.peers[sender].window
    return receiver.receive(make(cls, window.highest + 1, sender, token, **fields), pair.now, nonce())


def said(outputs):
    """What is sent about an order: the reasons, and the statuses."""
    return [
        message.data.decode() if isinstance(message, m.Data) and message.data_id == UPDATE_REASON else message.status
        for message in sends(outputs)
    ]


def sends_only(outputs):
    return [output for output in outputs if isinstance(output, Send)]


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
        assert said(outputs) == ["nothing was fetched for it", Status.ACTIVATE_FAIL]
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
    assert said(outputs) == ["nothing was fetched for it", Status.ACTIVATE_FAIL]
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
    cancelled = [FetchCancelled(SERVER, token, DIGEST, None, "the order has expired")]
    assert pair.device.tick(T0 + 1032) == (cancelled if stage is S.FETCHING else [])
    with pytest.raises(PolicyError, match="not known"):
        pair.device.fetched(SERVER, token, T0 + 1032)
    with pytest.raises(PolicyError, match="not known"):
        pair.server.activate(DEVICE, token, T0 + 1000)


def test_two_updates_at_once_do_not_mix(pair):
    first, _ = ready(pair, hold=True)
    [second] = pair.deliver(pair.server.update(DEVICE, URL + "2", "f" * 64, pair.now, nonce()))
    told = pair.deliver(pair.device.fetched(SERVER, second.token, pair.now))
    assert told[-1] == ActivationRequested(SERVER, second.token, "f" * 64)
    told = pair.deliver(pair.server.activate(DEVICE, first, pair.now))  # the older one, which would undo the newer
    assert told[1:] == [UpdateChanged(DEVICE, first, S.FAILED, Status.ACTIVATE_FAIL, "a newer order has come")]
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
    [unexpected, *answer, _] = resend(pair, m.Activate, token)  # and that it has left
    assert (unexpected.why, said(answer)) == (
        "nothing was fetched for it",
        ["the device has left", Status.ACTIVATE_FAIL],
    )


def test_a_file_that_is_ready_after_the_device_was_put_out_is_not_activated(pair):
    token = order(pair)
    pair.server.terminate(DEVICE, pair.now, nonce())
    [unexpected] = resend(pair, m.Response, token, DEVICE, status=Status.UPDATE_SUCCESS)
    assert isinstance(unexpected, Unexpected)


# What no device can take is not ordered.


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("", "url"),
        ("firmware.bin", "url"),
        ("ftp://updates.example/x", "url"),
        ("https://updates.example/a b", "url"),
        ("https://user:s3cret@updates.example/x", "url"),
        ("https://updates.example:99999/", "url"),
        ("https://updates.example/\u00e9", "url"),
        ("https://updates.example/" + "x" * 8200, "url"),
        ("https://updates.example/\0", "url"),
        (5, "url"),
    ],
)
def test_a_url_that_no_device_can_take_is_not_ordered(pair, url, field):
    before = snapshot(pair.server)
    for give in (lambda: check_order(url, DIGEST), lambda: pair.server.update(DEVICE, url, DIGEST, pair.now, nonce())):
        with pytest.raises(EncodeError) as caught:
            give()
        assert caught.value.field == field
        assert "s3cret" not in str(caught.value)
    assert snapshot(pair.server) == before


@pytest.mark.parametrize("digest", ["", DIGEST[:-1], DIGEST.upper(), DIGEST + "0", None])
def test_a_digest_that_is_none_is_not_ordered(digest):
    with pytest.raises(EncodeError) as caught:
        check_order(URL, digest)
    assert caught.value.field == "digest"


@pytest.mark.parametrize("version", [-1, 10**18, True, 1.0, "1"], ids=repr)
def test_a_version_that_no_token_can_name_is_not_ordered(version):
    with pytest.raises(ValueError, match=r"^version must be an int from 0 to 9{18}, not "):
        check_order(URL, DIGEST, version)
    check_order(URL, DIGEST, 0)
    check_order(URL, DIGEST, 10**18 - 1)


# Why an update failed.


def test_the_reason_of_a_failed_download_gets_to_the_server(pair):
    token = order(pair)
    outputs = pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_FILE, pair.now, "No space left on device")
    assert said(outputs) == ["No space left on device", Status.UPDATE_FAIL_FILE]
    assert {message.token for message in sends(outputs)} == {token}
    failed = UpdateChanged(DEVICE, token, S.FAILED, Status.UPDATE_FAIL_FILE, "No space left on device")
    assert pair.deliver(outputs) == [failed]


def test_the_reason_of_a_failed_activation_gets_to_the_server(pair):
    token, _ = ready(pair)
    outputs = pair.device.activation_failed(SERVER, token, pair.now, "the flash is worn out")
    failed = UpdateChanged(DEVICE, token, S.FAILED, Status.ACTIVATE_FAIL, "the flash is worn out")
    assert pair.deliver(outputs) == [failed]
    again = resend(pair, m.Activate, token)  # the answer got lost
    assert said(again) == ["the flash is worn out", Status.ACTIVATE_FAIL]


def test_a_failure_without_a_reason_is_a_status_alone(pair):
    token = order(pair)
    assert said(pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_FILE, pair.now)) == [Status.UPDATE_FAIL_FILE]


def test_the_device_s_own_refusals_say_why(pair):
    pair.device.version_floor = 5
    told = pair.deliver(pair.server.update(DEVICE, URL, DIGEST, pair.now, nonce(), version=4))
    changed = [event for event in told if isinstance(event, UpdateChanged)]
    assert changed[0].reason == "the firmware is of version 4, and the floor is 5"


def test_the_first_bound_message_of_a_server_tells_that_it_understands_a_reason():
    pair = Pair()
    pair.join()
    pair.device.version_floor = 5
    [initiate] = sends(pair.server.update(DEVICE, URL, DIGEST, pair.now, nonce()))
    assert said(pair.device.receive(initiate, pair.now, nonce())) == [
        "the firmware names no version, and the floor is 5",
        Status.UPDATE_FAIL_FILE,
    ]


def test_a_repeated_order_is_answered_with_the_reason_again(pair):
    """Both were lost, and the server asks once more."""
    token = order(pair)
    pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_SERVER, pair.now, "no route to host")
    [again] = pair.server.tick(pair.now + 5)
    assert said(pair.device.receive(again.message, pair.now + 5, nonce())) == [
        "no route to host",
        Status.UPDATE_FAIL_SERVER,
    ]


def test_a_lost_reason_leaves_the_status(pair):
    token = order(pair)
    _, status = sends(pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_SERVER, pair.now, "no route"))
    [changed] = pair.server.receive(status, pair.now, nonce())
    assert changed == UpdateChanged(DEVICE, token, S.FAILED, Status.UPDATE_FAIL_SERVER, "")


def test_a_reason_that_is_overtaken_by_its_status_is_told_once(pair):
    token = order(pair)
    text, status = sends(pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_SERVER, pair.now, "no route"))
    pair.server.receive(status, pair.now, nonce())
    [late] = pair.server.receive(text, pair.now, nonce())
    assert late == UpdateChanged(DEVICE, token, S.FAILED, Status.UPDATE_FAIL_SERVER, "no route")
    assert resend(pair, m.Data, token, DEVICE, data_id=UPDATE_REASON, data=b"something else") == []
    assert exchange_of(pair.server, DEVICE, token).detail.reason == "no route"


def test_a_reason_is_not_that_of_another_order(pair):
    held, _ = ready(pair, hold=True)
    token = order(pair)
    pair.deliver(pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_SERVER, pair.now, "no route"))
    pair.deliver(pair.server.activate(DEVICE, held, pair.now))
    told = pair.deliver(pair.device.activation_failed(SERVER, held, pair.now))
    assert told == [UpdateChanged(DEVICE, held, S.FAILED, Status.ACTIVATE_FAIL, "")]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b[2J\r\nINFO all is well", "\\x1b[2J\\r\\nINFO all is well"),
        (b"\xff\xfe", "\\ufffd\\ufffd"),
        ("\u202e\u00fc".encode(), "\\u202e\\xfc"),
        (b"x" * 60_000, "x" * (MAX_REASON - 3) + "..."),
        (b"", ""),
    ],
    ids=["steering", "no text", "bidi", "long", "empty"],
)
def test_a_reason_is_bounded_and_cannot_steer_a_terminal(pair, data, shown):
    token = order(pair)
    assert resend(pair, m.Data, token, DEVICE, data_id=UPDATE_REASON, data=data) == []
    [changed] = resend(pair, m.Response, token, DEVICE, status=Status.UPDATE_FAIL_FILE)
    assert changed.reason == shown


def test_a_long_reason_is_cut_by_the_device(pair):
    token = order(pair)
    text, _ = sends(pair.device.fetch_failed(SERVER, token, Status.UPDATE_FAIL_FILE, pair.now, "\u00e9" * 10_000))
    assert len(text.data) < 10 * MAX_REASON
    assert text.data.isascii()


@pytest.mark.parametrize("data_id", ["", "temperature", UPDATE_CANCEL])
def test_only_a_reason_belongs_to_an_order_at_the_server(pair, data_id):
    token = order(pair)
    before = snapshot(pair.server)
    with pytest.raises(PolicyError, match="does not belong to an update"):
        resend(pair, m.Data, token, DEVICE, data_id=data_id, data=b"x")
    assert snapshot(pair.server) == before


def test_a_deployed_server_gets_no_reason():
    """It would end its network thread (docs/protocol/deployed-peers.md)."""
    device, old = DeviceSession(DEVICE, [SERVER]), OldServer(SERVER, DEVICE)
    converse(device, old, device.join(SERVER, T0, nonce()))
    [requested] = converse(device, old, [Send(DEVICE, old.send(m.Initiate, url=URL, digest=DIGEST))])
    converse(device, old, device.fetch_failed(SERVER, requested.token, Status.UPDATE_FAIL_FILE, T0, "disk full"))
    assert [type(message) for message in old.heard] == [m.JoinRequest, m.Response]


# A newer order, and one that is taken back.


def test_a_newer_order_ends_the_download_of_an_older_one(pair):
    older = order(pair)
    outputs = pair.server.update(DEVICE, URL + "2", "f" * 64, pair.now, nonce())
    [withdrawn] = events(outputs)
    assert withdrawn == UpdateChanged(DEVICE, older, S.FAILED, None, "a newer order has taken its place")
    newer = sends(outputs)[0].token
    told = pair.deliver(sends_only(outputs))
    assert told == [
        FetchCancelled(SERVER, older, DIGEST, Status.UPDATE_FAIL_FILE, "a newer order has come"),
        FetchRequested(SERVER, newer, URL + "2", "f" * 64),
    ]
    assert state(pair.server, DEVICE, older) is state(pair.device, SERVER, older) is S.FAILED
    told = pair.deliver(pair.device.fetched(SERVER, newer, pair.now))
    assert told[-1] == ActivationRequested(SERVER, newer, "f" * 64)
    assert [send for send in pair.server.tick(pair.now + 100) if send.message.token == older] == []


def test_an_order_that_is_overtaken_by_a_newer_one_does_not_end_that(pair):
    [late] = sends(pair.server.update(DEVICE, URL, DIGEST, pair.now, nonce()))
    newer = pair.deliver(pair.server.update(DEVICE, URL, DIGEST, pair.now, nonce()))[-1].token
    outputs = pair.device.receive(late, pair.now, nonce())
    assert said(outputs) == ["a newer order has come", Status.UPDATE_FAIL_FILE]
    assert events(outputs) == []
    assert pair.device.awaits(SERVER, newer)


def test_a_newer_order_leaves_what_is_fetched_alone(pair):
    held, _ = ready(pair, hold=True)
    order(pair)
    assert state(pair.server, DEVICE, held) is state(pair.device, SERVER, held) is S.READY


def test_an_order_that_the_device_refuses_ends_no_download(pair):
    first = order(pair, version=7)
    pair.device.version_floor = 5
    [initiate] = sends(pair.server.update(DEVICE, URL, "f" * 64, pair.now, nonce(), version=4))
    assert events(pair.device.receive(initiate, pair.now, nonce()), FetchCancelled) == []
    assert pair.device.awaits(SERVER, first)


def test_a_deployed_server_s_newer_order_counts_too():
    device, old = DeviceSession(DEVICE, [SERVER]), OldServer(SERVER, DEVICE)
    converse(device, old, device.join(SERVER, T0, nonce()))
    first, second = (old.send(m.Initiate, url=URL, digest=digest) for digest in (DIGEST, "f" * 64))
    device.receive(first, T0, nonce())
    outputs = device.receive(second, T0, nonce())
    assert [type(event) for event in events(outputs)] == [FetchCancelled, FetchRequested]
    assert [message.status for message in sends(outputs)] == [Status.UPDATE_FAIL_FILE]


@pytest.mark.parametrize("stage", [S.FETCHING, S.READY])
def test_an_order_is_taken_back(pair, stage):
    token = order(pair, hold=True)
    if stage is S.READY:
        pair.deliver(pair.device.fetched(SERVER, token, pair.now))
    outputs = pair.server.cancel_order(DEVICE, token, pair.now)
    [message] = sends(outputs)
    assert (type(message), message.token, message.data_id, message.data) == (m.Data, token, UPDATE_CANCEL, b"")
    assert pair.deliver(outputs) == [
        UpdateChanged(DEVICE, token, S.FAILED, None, "the order was taken back"),
        FetchCancelled(SERVER, token, DIGEST, Status.UPDATE_FAIL_FILE, "the server took the order back"),
    ]
    assert not pair.device.awaits(SERVER, token)
    assert resend(pair, m.Data, token, data_id=UPDATE_CANCEL, data=b"") == []
    with pytest.raises(PolicyError):
        pair.server.cancel_order(DEVICE, token, pair.now)


def test_an_order_that_was_taken_back_before_it_came_is_not_carried_out(pair):
    [initiate] = sends(pair.server.update(DEVICE, URL, DIGEST, pair.now, nonce()))
    pair.deliver(pair.server.cancel_order(DEVICE, initiate.token, pair.now))
    with pytest.raises(PolicyError, match="another update order"):
        pair.device.receive(initiate, pair.now, nonce())
    assert pair.device.ordered() == set()


@pytest.mark.parametrize("stage", [S.ACTIVATING, S.ACTIVATED])
def test_what_is_being_activated_is_not_taken_back(pair, stage):
    token, _ = ready(pair)
    if stage is S.ACTIVATED:
        pair.deliver(pair.device.activated(SERVER, token, pair.now))
    with pytest.raises(PolicyError, match=f"state {stage.name}"):
        pair.server.cancel_order(DEVICE, token, pair.now)
    assert resend(pair, m.Data, token, data_id=UPDATE_CANCEL, data=b"") == []
    assert state(pair.device, SERVER, token) is stage


@pytest.mark.parametrize("data_id", ["", "temperature", UPDATE_REASON])
def test_only_a_cancellation_belongs_to_an_order_at_the_device(pair, data_id):
    token = order(pair)
    before = snapshot(pair.device)
    with pytest.raises(PolicyError, match="does not belong to an update"):
        resend(pair, m.Data, token, data_id=data_id, data=b"")
    assert snapshot(pair.device) == before


def test_a_deployed_device_is_not_told_that_an_order_was_taken_back():
    server, old = ServerSession(SERVER), OldDevice(DEVICE, SERVER)
    [requested] = converse(server, old, [Send(SERVER, old.send(m.JoinRequest))])
    converse(server, old, server.answer_join(DEVICE, requested.token, Status.JOIN_SUCCESS, T0))
    [ready_] = converse(server, old, server.update(DEVICE, URL, DIGEST, T0, nonce(), hold=True))
    heard = len(old.heard)
    assert [type(event) for event in converse(server, old, server.cancel_order(DEVICE, ready_.token, T0))] == [
        UpdateChanged
    ]
    assert len(old.heard) == heard


def test_what_is_ordered_is_known(pair):
    assert pair.device.ordered() == set()
    token = order(pair)
    assert pair.device.ordered() == {DIGEST}
    pair.deliver(pair.device.fetched(SERVER, token, pair.now))
    assert pair.device.ordered() == {DIGEST}
    pair.deliver(pair.device.activated(SERVER, token, pair.now))
    assert pair.device.ordered() == set()
