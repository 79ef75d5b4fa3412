"""Device and Server as an application meets them: handlers, futures, errors, and the ways to begin and to end."""

import errno
import hashlib
import logging
import os
import queue
import signal
import threading
import time
from contextlib import ExitStack

import pytest

from srup import (
    Action,
    Device,
    EncodeError,
    Initiate,
    JoinRequest,
    KeyRing,
    Policy,
    PolicyError,
    PrivateKey,
    Server,
    Status,
    TransportError,
    UnansweredError,
    UpdateError,
    decode,
    encode,
    tokens,
)
from srup.agent.firmware import Firmware
from srup.fetch import Cancellation, FetchPolicy, HttpFetcher, MemoryFetcher
from srup.images import prune
from srup.transport import Delivery, MemoryNetwork, MemoryTransport, MqttTransport
from srup.transport.topics import device_topic
from srup.update import UpdateState

from .fleet import DIGEST, FIRMWARE, SERVER, URL, WAIT, FirmwareHost, Fleet, key_of, wait_until
from .programs import local_broker

pytestmark = pytest.mark.backend

DEVICE = 0xD0


class Pair:
    """A server and a device in threads, on a network that delivers at once."""

    def __init__(self, tmp_path, **options):
        self.network = MemoryNetwork()
        self.ring = KeyRing({DEVICE: key_of(DEVICE).public_key})
        self.fetcher = MemoryFetcher({URL: FIRMWARE})
        policy = Policy(first_retry=0.05, max_retry=0.1)
        broker = MemoryTransport(self.network, "server")
        self.server = Server(SERVER, key_of(SERVER), devices=self.ring, broker=broker, policy=policy)
        self.device = Device(
            DEVICE,
            key_of(DEVICE),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MemoryTransport(self.network, "device"),
            firmware=tmp_path,
            policy=policy,
            **({"fetcher": self.fetcher} | options),
        )

    def action(self, action_id=1, **options):
        return self.server.action(DEVICE, action_id, **options)

    def update(self, **options):
        return self.server.update(DEVICE, URL, DIGEST, **options)

    def __enter__(self):
        self.server.start()
        self.device.start()
        return self

    def __exit__(self, *_):
        self.device.stop()
        self.server.stop()


@pytest.fixture
def pair(tmp_path):
    """Started and joined."""
    with Pair(tmp_path) as pair:
        pair.device.wait_joined(WAIT)
        yield pair


@pytest.fixture
def fleet(tmp_path):
    """One device, joined, in simulated time."""
    with Fleet(tmp_path) as fleet:
        yield fleet.joined()


# What handlers return.


@pytest.mark.parametrize(
    ("result", "status", "faults"),
    [
        (None, Status.ACTION_SUCCESS, 0),
        (True, Status.ACTION_SUCCESS, 0),
        (0, Status.ACTION_SUCCESS, 0),
        ("", Status.ACTION_SUCCESS, 0),
        (0x2F, Status.ACTION_SUCCESS, 0),  # a number is not a Status
        (False, Status.ACTION_FAIL, 0),
        (Status.ACTION_SUCCESS, Status.ACTION_SUCCESS, 0),
        (Status.ACTION_UNKNOWN, Status.ACTION_UNKNOWN, 0),
        (Status.ACTION_FAIL, Status.ACTION_FAIL, 0),
        (Status.JOIN_SUCCESS, Status.ACTION_FAIL, 1),
        (Status.UPDATE_SUCCESS, Status.ACTION_FAIL, 1),
    ],
)
def test_what_an_action_handler_returns_is_answered(fleet, result, status, faults):
    fleet.device.on_action(1)(lambda partner: result)
    future = fleet.server.action(fleet.device.identity, 1)
    fleet.settle()
    assert future.result(0) is status
    assert fleet.device.counts["faults"] == faults


def test_an_action_goes_the_other_way_too(fleet):
    asked = []
    fleet.server.on_action(255)(asked.append)
    future = fleet.device.action(SERVER, 255)
    fleet.settle()
    assert future.result(0) is Status.ACTION_SUCCESS
    assert asked == [fleet.device.identity]


def test_an_action_without_a_handler_is_unknown(fleet):
    fleet.device.on_action(2)(lambda partner: None)
    future = fleet.server.action(fleet.device.identity, 1)
    fleet.settle()
    assert future.result(0) is Status.ACTION_UNKNOWN


def test_handlers_that_could_never_be_called_are_refused(fleet):
    for wrong in (256, -1, "1", True, lambda partner: None):
        with pytest.raises(ValueError, match="0 to 255"):
            fleet.device.on_action(wrong)
    with pytest.raises(ValueError, match="data_id is a str"):
        fleet.device.on_data(lambda *arguments: None)
    with pytest.raises(ValueError, match="no kind of data"):
        fleet.device.on_data("x", "string")


@pytest.mark.parametrize(
    ("decide", "error"),
    [
        (lambda device: True, None),
        (lambda device: None, None),
        (lambda device: Status.JOIN_SUCCESS, None),
        (lambda device: False, "JOIN_REFUSED"),
        (lambda device: Status.JOIN_REFUSED, "JOIN_REFUSED"),
        (lambda device: Status.JOIN_FAIL, "JOIN_FAIL"),
        (lambda device: Status.ACTION_SUCCESS, "JOIN_FAIL"),
        (lambda device: 1 // 0, "JOIN_FAIL"),
    ],
)
def test_what_a_join_handler_returns_decides(tmp_path, decide, error):
    with Fleet(tmp_path) as fleet:
        asked, joined = [], []
        fleet.server.on_join(lambda device: (asked.append(device), decide(device))[1])
        fleet.server.on_joined(joined.append)
        fleet.device.on_joined(lambda: joined.append("here"))
        fleet.start().settle()
        assert asked == [fleet.device.identity]
        if error is None:
            fleet.device.wait_joined(0)
            assert joined == [fleet.device.identity, "here"] or joined == ["here", fleet.device.identity]
            assert fleet.server.members == {fleet.device.identity}
        else:
            with pytest.raises(PolicyError, match=error):
                fleet.device.wait_joined(0)
            assert joined == []
            assert fleet.server.members == frozenset()
        assert fleet.device.joined is (error is None)


def test_after_a_refusal_a_device_asks_again_when_it_is_told_to(tmp_path):
    with Fleet(tmp_path) as fleet:
        answers = iter([False, True])
        fleet.server.on_join(lambda device: next(answers))
        fleet.start().settle()
        with pytest.raises(PolicyError):
            fleet.device.wait_joined(0)
        fleet.device.join()
        with pytest.raises(TimeoutError):  # and not with the refusal that is over
            fleet.device.wait_joined(0)
        fleet.settle()
        fleet.device.wait_joined(0)


def test_a_stranger_is_not_let_in(tmp_path):
    with Fleet(tmp_path) as fleet:
        fleet.ring.remove(fleet.device.identity)
        fleet.start().settle()
        assert fleet.errors() == ["UnknownSenderError"]
        assert not fleet.device.joined
        fleet.ring.add(fleet.device.identity, key_of(fleet.device.identity).public_key)
        fleet.run(lambda: fleet.device.joined, 10.0)  # the keys may come while the server runs


# Values.


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (b"\0\xff", None, "bytes"),
        ("tür", None, "text"),
        (-5, None, "int32"),
        (2.5, None, "double"),
        (7, "uint8", "uint8"),
    ],
)
def test_values_arrive_as_what_they_are(fleet, value, kind, wanted):
    heard = []
    fleet.server.on_data("v", wanted)(lambda *arguments: heard.append(arguments))
    future = fleet.device.send("v", value, kind)
    fleet.settle()
    assert future.result(0) is None
    assert heard == [(fleet.device.identity, "v", value)]


def test_values_that_nobody_takes_are_refused(fleet):
    heard = []
    fleet.server.on_data("number", "int32")(lambda *arguments: heard.append(arguments))
    for data_id, value in (("other", b""), ("number", b"12345"), ("number", "no number")):
        fleet.device.send(data_id, value)
    fleet.settle()
    assert heard == []
    assert fleet.device.counts["data refused"] == 3
    fleet.server.on_data()(lambda *arguments: heard.append(arguments))
    fleet.device.send("other", b"1")
    fleet.settle()
    assert heard == [(fleet.device.identity, "other", b"1")]
    assert fleet.device.counts["data refused"] == 3


def test_a_handler_that_cannot_be_called_is_refused_when_it_is_registered(fleet):
    for register in (
        fleet.device.on_joined,  # without arguments
        fleet.device.on_action(1),  # with one
        fleet.server.on_data("n"),  # with three
    ):
        with pytest.raises(TypeError, match=r"^this handler is called with \d arguments?, which .* does not take$"):
            register(lambda one, two: None)
    with pytest.raises(TypeError, match="with 0 arguments"):
        fleet.device.on_joined(lambda server: None)
    assert fleet.server.on_left(print) is print
    heard = []
    assert fleet.server.on_data("n")(lambda *arguments: heard.append(arguments))
    fleet.server.on_joined(heard.append)


def test_what_cannot_be_sent_is_told_to_the_caller(fleet):
    with pytest.raises(EncodeError):
        fleet.device.send("v", object())
    too_long = fleet.device.send("v", bytes(65_500))  # a field of this size is possible, the whole message is not
    wrong = [
        fleet.server.action(fleet.device.identity, 256),
        fleet.server.action(fleet.device.identity, 1, lifetime=float("inf")),
        fleet.server.action("a device", 1),
        fleet.server.identify(None),
    ]
    fleet.settle()
    assert isinstance(too_long.exception(0), EncodeError)
    for future in wrong:
        assert future.exception(0) is not None
    for future in wrong[2:]:
        with pytest.raises(ValueError, match=r"^device must be an int in 0\.\.2\*\*64-1, not "):
            future.result(0)
    assert fleet.server.debug.pending == []
    assert fleet.server.orders == []
    assert fleet.faults() == 0
    ok = fleet.server.action(fleet.device.identity, 1)
    fleet.settle()
    assert ok.done()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((URL, "no digest"), {}),
        ((URL, DIGEST[:-1]), {}),
        ((URL, None), {}),
        (("x" * 65_400, DIGEST), {}),
        (("ftp://firmware.example/image", DIGEST), {}),
        (("https://user:pass@firmware.example/image", DIGEST), {}),
        ((URL, DIGEST), {"version": -1}),
        ((URL, DIGEST), {"version": 10**18}),
        ((URL, DIGEST), {"lifetime": -1}),
        ((URL, DIGEST), {"hold": "yes"}),
    ],
)
def test_an_order_that_no_device_can_take_is_refused_where_it_is_given(fleet, arguments, options):
    with pytest.raises((EncodeError, ValueError, TypeError)):
        fleet.server.update(fleet.device.identity, *arguments, **options)
    with pytest.raises(ValueError, match="device"):
        fleet.server.update("a device", URL, DIGEST)
    fleet.settle()
    assert fleet.server.orders == []
    assert fleet.fetcher.asked == []


def test_a_full_queue_is_told_where_nothing_is_sent_again(tmp_path):
    with Fleet(tmp_path) as fleet:
        fleet.add(0xD0, broker=MemoryTransport(fleet.network, "device-d0", max_queued=1))
        fleet.joined()
        fleet.server.identify(fleet.device.identity)  # shows that the server knows what a retransmission is
        fleet.settle()
        fleet.network.cut("device-d0")
        first, second = fleet.device.send("v", b"1"), fleet.device.send("v", b"2")
        fleet.settle()
        assert first.result(0) is None
        assert isinstance(second.exception(0), TransportError)
        resigned = fleet.device.resign()  # cannot be queued either, and is sent again later
        fleet.settle()
        assert not resigned.done()
        fleet.network.heal("device-d0")
        fleet.run(resigned.done, 60.0)
        assert resigned.result(0) is None


# Membership.


def test_whoever_is_not_joined_is_refused_at_once(tmp_path):
    with Fleet(tmp_path) as fleet:
        fleet.ring.remove(fleet.device.identity)
        device, server = fleet.device, fleet.server
        early = [device.send("v", b""), device.resign(), server.action(device.identity, 1), server.identify(1234)]
        early += [server.terminate(device.identity)]
        order = server.update(device.identity, URL, DIGEST)
        fleet.start().settle()
        for future in early:
            assert isinstance(future.exception(0), PolicyError)
        with pytest.raises(PolicyError):
            order.result(0)
        assert order.state is UpdateState.FAILED


def test_a_termination_is_told_on_both_sides(fleet):
    left = []
    fleet.device.on_left(lambda server: left.append(("device", server)))
    fleet.server.on_left(lambda device: left.append(("server", device)))
    future = fleet.server.terminate(fleet.device.identity)
    fleet.settle()
    assert future.result(0) is None
    assert sorted(left) == [("device", SERVER), ("server", fleet.device.identity)]
    assert not fleet.device.joined
    with pytest.raises(TimeoutError):
        fleet.device.wait_joined(0)


def test_a_resignation_that_nobody_confirms_is_one_all_the_same(fleet):
    fleet.network.cut("server")
    future = fleet.device.resign()
    fleet.run(future.done, 400.0)
    assert isinstance(future.exception(0), UnansweredError)
    assert not fleet.device.joined


def test_what_a_device_is(tmp_path):
    with Fleet(tmp_path, 0) as fleet:
        device = fleet.add(0xD0, description="Türöffner 3")
        fleet.joined()
        future = fleet.server.identify(device.identity)
        fleet.settle()
        assert future.result(0) == "Türöffner 3"
    for wrong in ("\ud800", b"bytes", "x" * 40_000):
        with pytest.raises((ValueError, EncodeError)):
            fleet.add(0xD1, description=wrong)
    with pytest.raises(ValueError, match="cannot both be"):
        fleet.add(SERVER)


# Updates.


def test_an_update_that_is_held_waits_for_the_operator(fleet):
    states = []
    fleet.server.on_update(lambda order: states.append(order.state))
    order = fleet.server.update(fleet.device.identity, URL, DIGEST, hold=True)
    with pytest.raises(PolicyError, match="NEW"):
        order.activate()
    fleet.settle()
    assert (order.state, order.done, order.status) == (UpdateState.READY, False, Status.UPDATE_SUCCESS)
    assert not (fleet.device.firmware / "current").exists()
    order.activate()
    fleet.settle()
    assert order.result(0) is UpdateState.ACTIVATED
    assert states[0] is UpdateState.READY
    assert states[-1] is UpdateState.ACTIVATED
    assert (fleet.device.firmware / "current").read_bytes() == FIRMWARE
    with pytest.raises(PolicyError, match="ACTIVATED"):
        order.activate()


def test_an_order_that_is_not_activated_in_time_expires_on_both_sides(fleet):
    order = fleet.server.update(fleet.device.identity, URL, DIGEST, hold=True, lifetime=600.0)
    ended = []
    order.add_done_callback(ended.append)
    fleet.run(lambda: order.done, 601.0)
    with pytest.raises(UnansweredError):
        order.result(0)
    assert ended == [order]
    with pytest.raises(PolicyError):
        order.activate()
    assert not (fleet.device.firmware / "current").exists()


@pytest.mark.parametrize("result", [False, Status.ACTIVATE_FAIL, Status.ACTION_SUCCESS, "raise"])
def test_an_activation_that_fails_is_told(fleet, result):
    fleet.device.on_activate(lambda path: 1 // 0 if result == "raise" else result)
    order = fleet.server.update(fleet.device.identity, URL, DIGEST)
    fleet.settle()
    with pytest.raises(UpdateError) as caught:
        order.result(0)
    assert caught.value.status == Status.ACTIVATE_FAIL
    assert str(order) == f"<UpdateOrder {DIGEST[:16]} for d0: FAILED>"


@pytest.mark.parametrize("odd", [0x77, Status.UPDATE_SUCCESS, Status.ACTION_FAIL, ZeroDivisionError])
def test_whatever_a_fetcher_raises_the_server_gets_an_answer(fleet, odd):
    def content():
        raise UpdateError(odd, "odd") if isinstance(odd, int) else odd

    fleet.fetcher.contents = {URL: content}
    order = fleet.server.update(fleet.device.identity, URL, DIGEST)
    fleet.settle()
    with pytest.raises(UpdateError) as caught:
        order.result(0)
    assert caught.value.status == Status.UPDATE_FAIL_FILE


def test_a_device_is_updated_again_and_again(fleet):
    fleet.fetcher.contents = {URL: FIRMWARE, URL + "2": b"more"}
    other = "187897ce0afcf20b50ba2b37dca84a951b7046f29ed5ab94f010619f69d6e189"
    for url, digest in ((URL, DIGEST), (URL + "2", other), (URL, DIGEST)):
        order = fleet.server.update(fleet.device.identity, url, digest)
        fleet.settle()
        assert order.result(0) is UpdateState.ACTIVATED
        assert (fleet.device.firmware / "current").readlink().name == digest
    assert fleet.fetcher.asked == [URL, URL + "2"]  # what is there already is not fetched again


def release(fleet, number):
    """Order a new version; return the order and the digest."""
    content = b"version %d" % number
    digest, url = hashlib.sha256(content).hexdigest(), f"{URL}/{number}"
    fleet.fetcher.contents = {**fleet.fetcher.contents, url: content}
    order = fleet.server.update(fleet.device.identity, url, digest)
    fleet.settle()
    return order, digest


def images(fleet):
    return {path.name for path in fleet.device.firmware.iterdir() if len(path.name) == 64}


@pytest.mark.parametrize("handler", [True, False], ids=["handler", "link"])
def test_old_images_are_removed(fleet, handler):
    """A small flash holds two of them: the one that runs and the next."""
    most, digests, fetch = [], [], fleet.fetcher.fetch
    fleet.fetcher.fetch = lambda *what: (most.append(len(images(fleet)) if what[2].exists() else 0), fetch(*what))[1]
    if handler:
        fleet.device.on_activate(lambda path: None)
    for number in range(4):
        order, digest = release(fleet, number)
        assert order.result(0) is UpdateState.ACTIVATED
        digests.append(digest)
    assert images(fleet) == set(digests[-2:])
    assert max(most) == 1  # when the next one is to be fetched


def test_the_image_that_runs_is_never_removed(fleet):
    fleet.device.on_activate(lambda path: path.name == running)
    running = hashlib.sha256(b"version 0").hexdigest()
    assert release(fleet, 0)[0].result(0) is UpdateState.ACTIVATED
    for number in range(1, 5):
        order, digest = release(fleet, number)
        with pytest.raises(UpdateError, match="the device did not activate it"):
            order.result(0)
        assert running in images(fleet)
        assert len(images(fleet)) <= 2
    assert digest in images(fleet)


def test_an_image_whose_activation_did_not_return_is_kept(tmp_path):
    """The handler has started the device anew, without a store."""

    class Reboot(BaseException):
        pass

    def reboot(path):
        raise Reboot

    with Fleet(tmp_path) as fleet:
        fleet.device.on_activate(reboot)
        fleet.joined()
        with pytest.raises(Reboot):
            release(fleet, 0)
        started = hashlib.sha256(b"version 0").hexdigest()
        for number in (1, 2, 3):
            path = fleet.device.firmware / hashlib.sha256(b"version %d" % number).hexdigest()
            fleet.fetcher.contents = {URL: b"version %d" % number}
            fleet.fetcher.fetch(URL, path.name, path.parent)
            prune(path.parent, 2, {path.name})
        assert images(fleet) == {started, path.name}


def test_images_are_kept_when_nobody_can_note_which_one_runs(fleet, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("srup.images.write_file", full)
    for number in range(4):
        assert release(fleet, number)[0].result(0) is UpdateState.ACTIVATED
    assert len(images(fleet)) == 4
    assert "removes no images any more" in caplog.text


@pytest.mark.parametrize("keep", [0, -1, 1.5, "2", True])
def test_how_many_images_are_kept_is_a_number(fleet, keep):
    with pytest.raises(ValueError, match="keep_images must be an int from 1"):
        fleet.add(0xE0, keep_images=keep)


def test_all_images_are_kept(tmp_path):
    with Fleet(tmp_path) as fleet:
        fleet.add(0xD0, keep_images=None)
        fleet.joined()
        for number in range(4):
            release(fleet, number)
        assert len(images(fleet)) == 4


def test_the_reason_of_a_failure_gets_to_whoever_ordered(fleet, caplog):
    told, failed = [], []
    fleet.server.on_update(lambda order: told.append((order.state, order.status, order.reason)))
    fleet.device.on_update_failed(lambda *what: failed.append(what))
    fleet.server.identify(fleet.device.identity)
    fleet.settle()
    fleet.fetcher.contents = {URL: UpdateError(Status.UPDATE_FAIL_FILE, "No space left on device")}
    order = fleet.server.update(fleet.device.identity, URL, DIGEST)
    fleet.settle()
    with pytest.raises(UpdateError, match=r"^device d0 reports UPDATE_FAIL_FILE: No space left on device$"):
        order.result(0)
    assert order.reason == "No space left on device"
    assert told[-1] == (UpdateState.FAILED, Status.UPDATE_FAIL_FILE, "No space left on device")
    assert failed == [(DIGEST, Status.UPDATE_FAIL_FILE, "No space left on device")]
    assert "FAILED: device d0 reports UPDATE_FAIL_FILE: No space left on device" in caplog.text
    assert fleet.faults() == 0


def test_the_reason_of_a_failed_activation_gets_to_whoever_ordered(fleet):
    def activate(path):
        raise RuntimeError("\x1b[2Jthe flash is worn out")

    fleet.device.on_activate(activate)
    fleet.server.identify(fleet.device.identity)
    fleet.settle()
    order = fleet.server.update(fleet.device.identity, URL, DIGEST)
    fleet.settle()
    said = r"the activation raised RuntimeError: \\x1b\[2Jthe flash is worn out$"
    with pytest.raises(UpdateError, match=rf"^device d0 reports ACTIVATE_FAIL: {said}"):
        order.result(0)


# What is counted and logged.


def test_what_is_counted(fleet):
    server, device = fleet.server, fleet.device
    device.on_action(1)(lambda partner: None)
    server.action(device.identity, 1)
    fleet.settle()
    # The server hears the join request, two of its own messages (the receipt goes out before it listens there) and the
    # answer; the device hears all but the first.
    assert server.counts == {"received": 4, "verified": 2, "sent": 3}
    assert device.counts == {"received": 4, "verified": 3, "sent": 2}
    fleet.network.inject(f"SRUP/{device.identity:x}", b"junk")
    fleet.settle()
    assert (server.counts["DecodeError"], device.counts["DecodeError"]) == (1, 1)


def test_a_refused_message_is_handed_over_with_its_error(fleet):
    refused = []
    fleet.device.on_refused(refused.append)
    wire = encode(Action(sequence_id=1, sender_id=SERVER, token=b"t", action_id=1), PrivateKey.generate("ed25519"))
    fleet.network.inject("SRUP/d0", wire)
    fleet.settle()
    assert [(r.topic, r.wire, type(r.error).__name__) for r in refused] == [("SRUP/d0", wire, "SignatureError")]
    [refusal] = refused
    known = f"the key we have for it: fingerprint {key_of(SERVER).public_key.fingerprint}"
    assert str(refusal) == f"a message on SRUP/d0 is refused: SignatureError: {refusal.error} ({known})"
    assert repr(refusal) == f"<Refusal of {len(wire)} bytes on 'SRUP/d0': SignatureError>"


def test_t9_a_flood_of_refusals_does_not_fill_the_log(fleet, caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("srup.agent.inbound.time.monotonic", lambda: now[0])

    def flood(number):
        for _ in range(number):
            fleet.network.inject("SRUP/d0", b"junk" * 10_000)
        fleet.settle()
        return [line for line in caplog.messages if "server 5e refused a message" in line]

    lines = flood(342)
    assert len(lines) == 30
    assert lines[-1].endswith(" (more like it are left out for 60 seconds)")
    now[0] += 60.0
    assert flood(1)[-1].endswith(" (and 312 more like it before)")
    assert fleet.server.counts["DecodeError"] == 343
    assert max(map(len, lines)) < 1000


EVIL = "\r\n\x1b[2J\x00\u202e2026 INFO all is well"


def test_t17_control_characters_do_not_reach_the_log(fleet, caplog):
    caplog.set_level(logging.DEBUG)
    formatter = logging.Formatter("%(message)s")
    server, device = fleet.server, fleet.device
    server.on_data(None, "int32")(lambda *arguments: None)
    for data_id in (EVIL.replace("\0", ""), "number"):
        device.send(data_id, EVIL)
    order = Initiate(
        sequence_id=device.debug.session.known.peers[SERVER].window.highest + 1,
        sender_id=SERVER,
        token=tokens.bind(SERVER, device.identity, fleet.clock() + 300, bytes(16)),
        url=URL + "/" + EVIL.replace("\0", ""),  # no server of ours gives such an order
        digest=DIGEST,
    )
    fleet.network.inject("SRUP/d0", encode(order, key_of(SERVER)))
    fleet.settle()
    for topic in ("SRUP/d0", "SRUP/servers/5e/d0", f"SRUP/servers/5e/{EVIL.replace(chr(0), '')}"):
        fleet.network.inject(topic, EVIL.encode())
    token = b"srup5:" + EVIL.encode()
    action = Action(sequence_id=5, sender_id=SERVER, token=token, action_id=1)
    fleet.network.inject("SRUP/d0", encode(action, key_of(SERVER)))
    fleet.settle()
    messages = [formatter.format(record) for record in caplog.records]
    assert len(fleet.errors()) >= 4
    assert any("all is well" in message for message in messages)  # it is told, and cannot do anything
    for message in messages:
        assert message.isascii(), ascii(message)
        assert message.isprintable(), ascii(message)


def test_t17_no_keys_in_the_log(fleet, caplog):
    caplog.set_level(logging.DEBUG)
    fleet.device.on_action(1)(lambda partner: 1 // 0)
    fleet.server.action(fleet.device.identity, 1)
    fleet.server.update(fleet.device.identity, URL, DIGEST)
    fleet.network.inject("SRUP/d0", b"junk")
    fleet.settle()
    assert caplog.records
    text = caplog.text + repr(vars(fleet.server)) + repr(vars(fleet.device))
    for identity in (SERVER, DEVICE):
        private = key_of(identity)._private
        assert "PRIVATE KEY" not in text
        assert private.private_bytes_raw().hex() not in text
        assert repr(private.private_bytes_raw())[2:-1] not in text
    for topic, wire in fleet.network.log:
        assert repr(wire)[2:40] not in text, topic


# Threads.


def test_with_threads_everything_happens_by_itself(pair):
    threads = {}

    @pair.device.on_action(1)
    def act(partner):
        threads["handler"] = threading.current_thread().name
        return partner == SERVER

    assert pair.action().result(WAIT) is Status.ACTION_SUCCESS
    assert pair.update().result(WAIT) is UpdateState.ACTIVATED
    assert pair.server.identify(DEVICE).result(WAIT) == ""
    assert threads["handler"].startswith("srup-d0-application")
    assert pair.device.connected
    assert pair.server.connected


def test_a_slow_handler_delays_neither_the_protocol_nor_the_rest(pair):
    begun, go_on = threading.Event(), threading.Event()

    @pair.device.on_action(1)
    def slow(partner):
        begun.set()
        assert go_on.wait(WAIT)

    slow_one = pair.action()
    assert begun.wait(WAIT)
    assert pair.server.identify(DEVICE).result(WAIT) == ""  # the protocol goes on
    next_one = pair.action(2)
    assert not slow_one.done()
    assert not next_one.done()  # one handler at a time
    go_on.set()
    assert slow_one.result(WAIT) is Status.ACTION_SUCCESS
    assert next_one.result(WAIT) is Status.ACTION_UNKNOWN


def test_a_slow_download_delays_no_action(pair):
    begun, go_on = threading.Event(), threading.Event()

    def content():
        begun.set()
        assert go_on.wait(WAIT)
        return FIRMWARE

    pair.fetcher.contents = {URL: content}
    order = pair.update()
    assert begun.wait(WAIT)
    assert pair.action().result(WAIT) is Status.ACTION_UNKNOWN
    assert not order.done
    go_on.set()
    assert order.result(WAIT) is UpdateState.ACTIVATED


def test_a_handler_may_wait_for_what_the_other_side_does(pair):
    pair.server.on_action(2)(lambda partner: None)
    pair.device.on_action(1)(lambda partner: pair.device.action(partner, 2).result(WAIT))
    assert pair.action().result(WAIT) is Status.ACTION_SUCCESS


def test_handlers_that_raise_do_not_end_their_thread(pair):
    def fails(*_):
        raise SystemExit("a handler that wants out")

    pair.device.on_action(1)(fails)
    pair.device.on_refused(fails)
    for _ in range(3):
        assert pair.action().result(WAIT) is Status.ACTION_FAIL
        pair.network.inject("SRUP/d0", b"junk")
    pair.device.on_action(2)(lambda partner: None)
    assert pair.action(2).result(WAIT) is Status.ACTION_SUCCESS
    wait_until(lambda: pair.device.counts["faults"] == 6)


def test_a_callback_that_raises_does_not_end_the_thread(pair, caplog):
    future = pair.action()
    future.add_done_callback(lambda _: 1 // 0)
    future.result(WAIT)
    assert pair.action().result(WAIT) is Status.ACTION_UNKNOWN


# The end.


@pytest.mark.slow
def test_stop_ends_everything_that_is_under_way(pair):
    begun, go_on = threading.Event(), threading.Event()
    pair.device.on_action(1)(lambda partner: (begun.set(), go_on.wait(WAIT)))
    pair.fetcher.contents = {URL: lambda: (go_on.wait(WAIT), FIRMWARE)[1]}
    future, order = pair.action(), pair.update()
    wait_until(lambda: order.state is UpdateState.FETCHING)
    assert begun.wait(WAIT)
    pair.server.stop()
    assert isinstance(future.exception(0), TransportError)
    with pytest.raises((UnansweredError, TransportError)):
        order.result(0)
    pair.device.stop()
    go_on.set()


def test_stop_twice_and_from_many_threads(pair):
    threads = [threading.Thread(target=pair.device.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    pair.device.stop()
    assert not pair.device.debug.alive


def test_after_stop_requests_end_at_once(pair):
    pair.server.stop()
    pair.device.stop()
    late = [pair.action(), pair.server.identify(DEVICE), pair.device.send("v", b""), pair.device.resign()]
    order = pair.update()
    for future in late:
        assert isinstance(future.exception(WAIT), TransportError)
    with pytest.raises(TransportError):
        order.result(WAIT)
    pair.device.join()  # does nothing


def test_requests_before_a_stop_without_a_start_end_too(tmp_path):
    pair = Pair(tmp_path)
    future, order = pair.action(), pair.update()
    pair.server.stop()
    assert isinstance(future.exception(0), TransportError)
    with pytest.raises(TransportError):
        order.result(0)


def test_a_download_that_the_stop_breaks_off_is_not_reported_as_a_failure(fleet):
    def content():
        fleet.device.stop()
        raise UpdateError(Status.UPDATE_FAIL_SERVER, "the fetcher is closed")

    fleet.fetcher.contents = {URL: content}
    order = fleet.server.update(fleet.device.identity, URL, DIGEST)
    fleet.settle()
    assert fleet.fetcher.asked == [URL]
    assert fleet.device.counts["unsent"] == 0  # it did not even try
    assert order.state is UpdateState.FETCHING


def test_requests_race_with_stop_and_all_of_them_end(tmp_path):
    with Pair(tmp_path) as pair:
        pair.device.wait_joined(WAIT)
        futures = []
        begun = threading.Event()

        def ask():
            while len(futures) < 2000:
                futures.append(pair.server.identify(DEVICE))
                begun.set()

        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(WAIT)
        pair.server.stop()
        thread.join(WAIT)
        for future in futures:
            assert future.exception(WAIT) is None or isinstance(future.exception(), TransportError | PolicyError)


def test_whoever_waits_to_join_is_told_that_the_device_stops(tmp_path):
    with ExitStack() as stack:
        device = Pair(tmp_path).device.start()
        stack.callback(device.stop)
        with pytest.raises(TimeoutError):
            device.wait_joined(0)
        told = []

        def wait():
            with pytest.raises(TransportError):
                device.wait_joined(WAIT)
            told.append(True)

        thread = threading.Thread(target=wait)
        thread.start()
        device.stop()
        thread.join(WAIT)
        assert told == [True]


def test_stop_in_a_handler_and_in_a_callback(pair):
    stopped = threading.Event()
    pair.device.on_action(1)(lambda partner: (pair.device.stop(), stopped.set()))
    pair.action()
    assert stopped.wait(WAIT)
    pair.device.debug.join(WAIT)
    assert not pair.device.debug.alive
    future = pair.server.terminate(DEVICE)
    ended = threading.Event()
    future.add_done_callback(lambda _: (pair.server.stop(), ended.set()))
    assert ended.wait(WAIT)
    pair.server.debug.join(WAIT)
    assert not pair.server.debug.alive


def test_an_agent_is_started_once(tmp_path):
    pair = Pair(tmp_path)
    with pair:
        downloads = pair.device.engine.handlers.downloads
        for threads in (True, False):
            with pytest.raises(TransportError, match="started before"):
                pair.device.start(threads)
        assert pair.device.engine.handlers.downloads is downloads
        pair.device.wait_joined(WAIT)
    with pytest.raises(TransportError):
        pair.device.start()
    never = Pair(tmp_path).device
    never.stop()
    with pytest.raises(TransportError):
        never.start()


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_forks_after_the_start_is_told_so(tmp_path):
    with Pair(tmp_path) as pair:
        pair.device.wait_joined(WAIT)
        child = os.fork()
        if child == 0:  # which has none of the threads
            try:
                pair.server.action(DEVICE, 1)
            except TransportError as error:
                os._exit(0 if "forked" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pair.server.action(DEVICE, 1).result(WAIT) is Status.ACTION_UNKNOWN


def test_a_transport_that_does_not_start_leaves_no_thread_behind(tmp_path):
    with Pair(tmp_path) as pair:
        before = set(threading.enumerate())
        server = Server(1, key_of(1), devices=pair.ring, broker=pair.server.debug.transport)
        with pytest.raises(TransportError):
            server.start()
        assert set(threading.enumerate()) <= before


def test_context_managers_start_what_is_not_started(tmp_path):
    pair = Pair(tmp_path)
    with pair.server as server, pair.device.start() as device:
        assert (server, device) == (pair.server, pair.device)
        device.wait_joined(WAIT)
    assert not server.debug.alive
    assert not device.debug.alive
    with Pair(tmp_path).device.start(threads=False) as device:
        assert not device.debug.threaded


def test_run_stays_until_stop(tmp_path):
    with Pair(tmp_path) as pair:
        other = Pair(tmp_path).device
        thread = threading.Thread(target=other.run)
        thread.start()
        wait_until(lambda: other.connected)
        assert thread.is_alive()
        other.stop()
        thread.join(WAIT)
        assert not thread.is_alive()
        pair.device.wait_joined(WAIT)


def test_run_ends_on_ctrl_c(tmp_path):
    device = Pair(tmp_path).device

    @device.on_refused
    def interrupt(refusal):
        os.kill(os.getpid(), signal.SIGINT)

    device.start()
    device.debug.transport._network.inject("SRUP/d0", b"junk")
    device.run()
    assert not device.debug.alive
    device.run()  # it is over: nothing happens


def test_what_is_no_key_is_refused_when_the_agent_is_made(tmp_path):
    pem = key_of(DEVICE).to_pem()
    with pytest.raises(TypeError, match="PrivateKey"):
        Server(1, pem, devices=KeyRing(), broker=MemoryTransport(MemoryNetwork(), "s"))
    with pytest.raises(TypeError, match="PublicKey"):
        Device(1, key_of(1), server=2, server_key=pem, broker=MemoryTransport(MemoryNetwork(), "d"))
    with pytest.raises(TransportError):
        Server(1, key_of(1), devices=KeyRing(), broker="http://example")


# What constructors do not take.


@pytest.mark.parametrize(
    "wrong",
    [
        {"identity": "d1"},
        {"identity": None},
        {"identity": -1},
        {"identity": 1 << 64},
        {"identity": True},
        {"server": "5e"},
        {"server": 1 << 64},
        {"server_key": "pem"},
        {"key": "pem"},
        {"broker": None},
        {"broker": 7},
        {"policy": {}},
        {"fetch": {"allow_http": True}},
        {"fetcher": 5},
    ],
    ids=repr,
)
def test_a_device_says_which_argument_is_wrong(tmp_path, wrong):
    arguments = {
        "identity": DEVICE,
        "key": key_of(DEVICE, "ed25519"),
        "server": SERVER,
        "server_key": key_of(SERVER, "ed25519").public_key,
        "broker": MemoryTransport(MemoryNetwork(), "d"),
        "firmware": tmp_path,
    }
    Device(**arguments)
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        Device(**(arguments | wrong))


@pytest.mark.parametrize(
    "wrong", [{"identity": "5e"}, {"devices": "devices"}, {"devices": None}, {"policy": "x"}], ids=repr
)
def test_a_server_says_which_argument_is_wrong(wrong):
    arguments = {
        "identity": SERVER,
        "key": key_of(SERVER, "ed25519"),
        "devices": KeyRing(),
        "broker": MemoryTransport(MemoryNetwork(), "s"),
    }
    Server(**arguments)
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        Server(**(arguments | wrong))


def test_a_handler_is_a_plain_function(fleet):
    async def later(server):
        return True

    with pytest.raises(TypeError, match="plain function"):
        fleet.device.on_action(1)(later)
    fleet.device.on_action(2)(lambda server: later(server))
    future = fleet.server.action(fleet.device.identity, 2)
    fleet.settle()
    assert future.result(0) is Status.ACTION_FAIL
    assert fleet.device.counts["faults"] == 1


def test_a_timeout_says_how_the_link_is(tmp_path):
    device = Fleet(tmp_path).device
    with pytest.raises(TimeoutError, match=r"has not answered the join; the device is not connected \('not started'\)"):
        device.wait_joined(0)


def test_t9_junk_does_not_fill_the_queue_of_a_slow_handler(pair):
    """What strangers send is told to on_refused as long as it keeps up; the rest is counted."""
    begun, go_on = threading.Event(), threading.Event()
    told = []

    def slow(refusal):
        begun.set()
        go_on.wait(WAIT)
        told.append(refusal)

    pair.server.on_refused(slow)
    for number in range(1000):
        pair.network.inject(f"SRUP/{DEVICE:x}", b"junk %d" % number)
    assert begun.wait(WAIT)
    wait_until(lambda: pair.server.counts["DecodeError"] == 1000)
    assert pair.server.debug.handlers <= 256
    assert pair.server.counts["refusals not told"] >= 1000 - 257
    go_on.set()
    wait_until(lambda: len(told) + pair.server.counts["refusals not told"] == 1000)
    assert pair.server.action(DEVICE, 1).result(WAIT)


def test_what_the_application_asks_for_leaves_messages_their_room(tmp_path, monkeypatch):
    """However much it asks for at once: what is not taken would stay unacknowledged while the link lasts."""
    monkeypatch.setattr("srup.agent.inbound.MAX_WAITING", 50)
    with Fleet(tmp_path, size=1) as fleet:
        heard = []
        fleet.server.on_data("n", "int32")(lambda device, name, value: heard.append(value))
        fleet.joined()
        for number in range(49):
            fleet.device.send("n", number, "int32")
        fleet.device.step()
        for _ in range(1000):
            fleet.server.engine.post(lambda transaction: None)
        fleet.settle()
        assert heard == list(range(49))
        assert fleet.server.counts["overflow"] == 0


def test_t9_messages_wait_at_the_broker_while_the_application_is_behind(pair, monkeypatch):
    monkeypatch.setattr("srup.agent.inbound.MAX_WAITING", 50)
    go_on = threading.Event()
    taken = []
    pair.server.on_data("n", "int32")(lambda peer, data_id, value: (go_on.wait(WAIT), taken.append(value)))
    for number in range(1000):
        pair.device.send("n", number)
    wait_until(lambda: pair.server.counts["overflow"] > 0)
    assert pair.server.debug.handlers <= 50 + 256  # and one batch, which was on its way
    go_on.set()


@pytest.mark.process
def test_t9_nothing_is_lost_while_the_application_is_behind(monkeypatch):
    """A broker that may have so many messages open with us sends the rest when the handlers have caught up."""
    monkeypatch.setattr("srup.transport.unsettled.RECEIVE_MAXIMUM", 50)
    monkeypatch.setattr("srup.agent.backlog.HELD_FROM", 100)
    monkeypatch.setattr("srup.agent.inbound.MAX_WAITING", 300)
    go_on, taken = threading.Event(), []
    ring = KeyRing({DEVICE: key_of(DEVICE).public_key})
    with local_broker("mosquitto") as broker:
        server = Server(
            SERVER,
            key_of(SERVER),
            devices=ring,
            broker=MqttTransport(broker.url, "server", session_expiry=4711),
        )
        sender = Device(
            DEVICE,
            key_of(DEVICE),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MqttTransport(broker.url, "device"),
        )
        server.on_data("n", "int32")(lambda peer, data_id, value: (go_on.wait(WAIT), taken.append(value)))
        with server, sender:
            sender.wait_joined(WAIT)
            for number in range(1000):
                sender.send("n", number).result(WAIT)
            wait_until(
                lambda: server.debug.unacknowledged >= 50
            )  # one more if the broker, as Mosquitto 2.0 does, sends on
            go_on.set()
            wait_until(lambda: len(taken) == 1000)
    assert taken == list(range(1000))
    assert server.counts["overflow"] == 0


# What the application does with what it is given.


@pytest.mark.parametrize("kind", ["action", "identify", "update", "another key"])
def test_who_is_given_a_result_may_wait_for_another_thread_that_needs_the_key_ring(fleet, kind):
    """A result that was given while the ring was locked would stop both of them."""
    identity = fleet.device.identity
    fleet.device.on_action(1)(lambda server: None)
    finished = []

    def use_the_ring(_):
        thread = threading.Thread(target=fleet.ring.remove, args=(0x77,), daemon=True)
        thread.start()
        thread.join(WAIT)
        finished.append(not thread.is_alive())

    if kind == "update":
        fleet.server.update(identity, URL, DIGEST).add_done_callback(use_the_ring)
    elif kind == "identify":
        fleet.server.identify(identity).add_done_callback(use_the_ring)
    elif kind == "another key":
        fleet.network.cut(f"device-{identity:x}")
        for future in (fleet.server.action(identity, 1), fleet.server.update(identity, URL, DIGEST)):
            future.add_done_callback(use_the_ring)
        fleet.settle()
        fleet.ring.replace(identity, key_of(0x77).public_key)
        wire = Action(sequence_id=2**60, sender_id=identity, token=b"another", action_id=1)
        fleet.network.inject(f"SRUP/{identity:x}", encode(wire, key_of(0x77)))
    else:
        fleet.server.action(identity, 1).add_done_callback(use_the_ring)
    fleet.settle()
    assert finished == [True] * (2 if kind == "another key" else 1)


def test_an_order_that_has_ended_is_done_when_the_handler_hears_of_it(pair):
    heard = []
    pair.server.on_update(lambda order: heard.append((order.state, order.done)))
    assert pair.update().result(WAIT) is UpdateState.ACTIVATED
    wait_until(lambda: heard and heard[-1][0] is UpdateState.ACTIVATED)
    assert heard[-1] == (UpdateState.ACTIVATED, True)


def test_a_moderator_who_waits_delays_only_joins_that_wait_for_him(tmp_path):
    """Each is shown once, in order; what is over by then is not shown; and no queue grows meanwhile."""
    answers = threading.Semaphore(0)
    shown = []

    def compare(join):
        shown.append(join)
        assert answers.acquire(timeout=WAIT)
        join.accept()

    fleet = Pair(tmp_path, join="human")
    fleet.ring.add(0xD2, key_of(0xD2).public_key)
    values = []
    fleet.device.on_join_value(values.append)
    fleet.server.on_moderation(compare)
    fleet.server.on_action(1)(lambda device: None)
    broker = MemoryTransport(fleet.network, "another device")
    options = {"server": SERVER, "server_key": key_of(SERVER).public_key, "firmware": tmp_path}
    other = Device(0xD2, key_of(0xD2), broker=broker, **options)
    with fleet:
        wait_until(lambda: len(shown) == 1)
        with other:
            other.wait_joined(WAIT)  # which takes the thread of the handlers
            assert other.action(SERVER, 1).result(WAIT) is Status.ACTION_SUCCESS
        for number in range(50):  # the later joins of a device end the earlier ones
            fleet.device.join()
            wait_until(lambda n=number: len(values) == n + 2)
        assert fleet.server.engine.handlers.aside._work_queue.qsize() <= 1
        answers.release(2)
        fleet.device.wait_joined(WAIT)
        assert len(shown) == 2
        assert [join.status for join in shown] == [Status.JOIN_FAIL, Status.JOIN_SUCCESS]
        wait_until(lambda: fleet.server.counts["faults"] == 1)  # the moderator accepted what was over


def test_an_observer_that_looks_for_a_while_goes_on_doing_actions(tmp_path):
    looking, seen = threading.Event(), threading.Event()
    pair = Pair(tmp_path)
    pair.server = Server(
        SERVER,
        key_of(SERVER),
        devices=pair.ring,
        broker=MemoryTransport(pair.network, "server"),
        admission="simple",
        observers=[DEVICE],
    )
    pair.ring.add(0xD2, key_of(0xD2).public_key)
    options = {"server": SERVER, "server_key": key_of(SERVER).public_key, "firmware": tmp_path}
    broker = MemoryTransport(pair.network, "another device")
    other = Device(0xD2, key_of(0xD2), broker=broker, join="observed", observer=DEVICE, **options)
    values = queue.SimpleQueue()  # the observer may be told before the other device has its value
    other.on_join_value(values.put)

    def observe(identity):
        looking.set()
        assert seen.wait(WAIT)
        return values.get(timeout=WAIT)

    pair.device.on_observation(observe)
    pair.device.on_action(1)(lambda server: None)
    with pair:
        pair.device.wait_joined(WAIT)
        with other:
            assert looking.wait(WAIT)
            assert pair.action().result(WAIT) is Status.ACTION_SUCCESS
            assert not other.joined
            seen.set()
            other.wait_joined(WAIT)


class Slow(MemoryFetcher):
    """URLs that end in "slow" are fetched for ever, until somebody cancels that."""

    def __init__(self, contents):
        super().__init__(contents)
        self.fetching = threading.Event()
        self.ended = []

    def fetch(self, url, digest, folder, cancellation):
        try:
            if url.endswith("slow"):
                over = threading.Event()
                with cancellation.heard_by(lambda reason: over.set()):
                    self.fetching.set()
                    assert over.wait(WAIT)
            return super().fetch(url, digest, folder, cancellation)
        finally:
            self.ended.append(url)


OTHER_DIGEST = hashlib.sha256(b"other firmware").hexdigest()


def test_a_newer_order_takes_the_place_of_a_download_that_runs(tmp_path):
    pair, told, failed = Pair(tmp_path), [], []
    pair.device.engine.part(Firmware).fetcher = slow = Slow({URL: FIRMWARE})
    pair.device.on_update(lambda digest, status: told.append((digest, status)))
    pair.device.on_update_failed(lambda *what: failed.append(what))
    with pair:
        pair.device.wait_joined(WAIT)
        pair.server.identify(DEVICE).result(WAIT)
        older = pair.server.update(DEVICE, URL + "slow", OTHER_DIGEST)
        assert slow.fetching.wait(WAIT)
        newer = pair.server.update(DEVICE, URL, DIGEST)
        assert newer.result(WAIT) is UpdateState.ACTIVATED
        with pytest.raises(PolicyError, match=r"^the update of d0 is off: a newer order has taken its place$"):
            older.result(WAIT)
        assert (older.state, older.reason) == (UpdateState.FAILED, "a newer order has taken its place")
        wait_until(lambda: len(told) == 3)
    assert slow.ended == [URL + "slow", URL]
    assert failed == [(OTHER_DIGEST, Status.UPDATE_FAIL_FILE, "a newer order has come")]
    assert told == [
        (OTHER_DIGEST, Status.UPDATE_FAIL_FILE),
        (DIGEST, Status.UPDATE_SUCCESS),
        (DIGEST, Status.ACTIVATE_SUCCESS),
    ]
    assert pair.device.counts["faults"] == pair.server.counts["faults"] == 0


def test_an_order_is_taken_back_while_its_download_runs(tmp_path):
    pair = Pair(tmp_path)
    pair.device.engine.part(Firmware).fetcher = slow = Slow({})
    with pair:
        pair.device.wait_joined(WAIT)
        pair.server.identify(DEVICE).result(WAIT)
        order = pair.server.update(DEVICE, URL + "slow", DIGEST)
        assert slow.fetching.wait(WAIT)
        order.cancel()
        with pytest.raises(PolicyError, match=r"^the update of d0 is off: the order was taken back$"):
            order.result(WAIT)
        wait_until(lambda: slow.ended == [URL + "slow"])
        with pytest.raises(PolicyError, match="there is nothing to take back: the order is in state FAILED"):
            order.cancel()


class Deaf(Slow):
    """And it hears too late that it was cancelled: the firmware is here by then."""

    def fetch(self, url, digest, folder, cancellation):
        over = threading.Event()
        with cancellation.heard_by(lambda reason: over.set()):
            self.fetching.set()
            assert over.wait(WAIT)
        try:
            return super().fetch(url, digest, folder, Cancellation())
        finally:
            self.ended.append(url)


def test_what_was_taken_back_is_not_told_as_a_success(tmp_path):
    pair, told = Pair(tmp_path), []
    pair.device.engine.part(Firmware).fetcher = deaf = Deaf({URL: FIRMWARE})
    pair.device.on_update(lambda *what: told.append(what))
    with pair:
        pair.device.wait_joined(WAIT)
        pair.server.identify(DEVICE).result(WAIT)
        order = pair.server.update(DEVICE, URL, DIGEST)
        assert deaf.fetching.wait(WAIT)
        order.cancel()
        wait_until(lambda: deaf.ended and told)
    assert told == [(DIGEST, Status.UPDATE_FAIL_FILE)]


def test_a_device_that_is_stopped_ends_its_download(tmp_path):
    """And tells nobody that it failed: it goes on at the next start."""
    pair, told = Pair(tmp_path), []
    pair.device.engine.part(Firmware).fetcher = slow = Slow({})
    pair.device.on_update(lambda *what: told.append(what))
    with pair:
        pair.device.wait_joined(WAIT)
        pair.server.identify(DEVICE).result(WAIT)
        order = pair.server.update(DEVICE, URL + "slow", DIGEST)
        assert slow.fetching.wait(WAIT)
        pair.device.stop(WAIT)
        assert slow.ended == [URL + "slow"]
        assert order.state is UpdateState.FETCHING
    assert told == []


def test_a_download_that_runs_over_http_is_superseded(tmp_path):
    """A server that sends a byte now and then: without an end, the time cap of an hour would be its end."""
    asked, over = threading.Event(), threading.Event()

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        asked.set()
        while not over.wait(0.01):
            handler.wfile.write(b"x")

    pair = Pair(tmp_path, fetcher=HttpFetcher(FetchPolicy(allow_http=True, proxy="")))
    with FirmwareHost({"/slow": drip, "/good": FIRMWARE}).running() as host:
        try:
            with pair:
                pair.device.wait_joined(WAIT)
                pair.server.identify(DEVICE).result(WAIT)
                pair.server.update(DEVICE, f"{host.url}/slow", OTHER_DIGEST)
                assert asked.wait(WAIT)
                assert pair.server.update(DEVICE, f"{host.url}/good", DIGEST).result(WAIT) is UpdateState.ACTIVATED
        finally:
            over.set()


# What waits for its turn when a membership ends.


@pytest.mark.parametrize("way", ["resign", "deregister", "terminated", "deregistered"])
def test_an_order_whose_turn_comes_when_it_is_over_is_not_done(tmp_path, way):
    """The handler of action 1 is busy; an action and an activation wait behind it, a download runs, and all is over."""
    done, busy, go_on = [], threading.Event(), threading.Event()
    pair = Pair(tmp_path)
    pair.device.engine.part(Firmware).fetcher = slow = Slow({URL: FIRMWARE, URL + "slow": FIRMWARE})
    pair.device.on_action(1)(lambda server: (busy.set(), go_on.wait(WAIT)))
    pair.device.on_action(2)(lambda server: done.append(2))
    pair.device.on_activate(done.append)
    left = []
    pair.device.on_left(left.append)
    with pair:
        pair.device.wait_joined(WAIT)
        pair.server.identify(DEVICE).result(WAIT)
        pair.action(1)
        assert busy.wait(WAIT)
        action = pair.action(2)
        activation = pair.server.update(DEVICE, URL, DIGEST)
        wait_until(lambda: activation.state is UpdateState.ACTIVATING)
        pair.server.update(DEVICE, URL + "slow", OTHER_DIGEST)
        assert slow.fetching.wait(WAIT)
        session = pair.device.debug.session
        wait_until(lambda: sum(session.known.is_open(e) for e in session.known.peers[SERVER].exchanges.values()) >= 4)
        match way:
            case "resign":
                pair.device.resign().result(WAIT)
            case "deregister":
                pair.device.deregister().result(WAIT)
            case "terminated":
                pair.server.terminate(DEVICE).result(WAIT)
                wait_until(lambda: not pair.device.joined)
            case "deregistered":
                pair.server.deregister(DEVICE).result(WAIT)
                wait_until(lambda: not pair.device.joined)
        wait_until(lambda: slow.ended == [URL, URL + "slow"])  # nobody lets it go on
        go_on.set()
        with pytest.raises(UnansweredError):
            action.result(WAIT)
        wait_until(lambda: pair.device.counts["not done"] == 2)
        assert done == []
        assert pair.device.debug.part(Firmware).fetching == 0
        assert pair.device.counts["faults"] == 0
        assert left == [SERVER]


def test_an_activation_of_a_server_whose_key_is_dropped_meanwhile_is_not_done(tmp_path):
    done, busy, go_on = [], threading.Event(), threading.Event()
    pair = Pair(tmp_path)
    pair.device.on_action(1)(lambda server: (busy.set(), go_on.wait(WAIT)))
    pair.device.on_activate(done.append)
    with pair:
        pair.device.wait_joined(WAIT)
        pair.server.identify(DEVICE).result(WAIT)
        pair.action(1)
        assert busy.wait(WAIT)
        order = pair.update()
        wait_until(lambda: order.state is UpdateState.ACTIVATING)
        wait_until(lambda: pair.device.debug.handlers == 1)
        pair.device.engine.keys.revoke(SERVER)
        go_on.set()
        wait_until(lambda: pair.device.debug.handlers == 0)
        pair.device.send("n", 1).result(WAIT)  # whatever was in the queue has been done
        assert done == []


def test_ctrl_c_while_it_starts_ends_run_in_order():
    class Interrupted(MemoryTransport):
        stopped = False

        def start(self, *arguments):
            super().start(*arguments)
            raise KeyboardInterrupt

        def stop(self, timeout=5.0):
            self.stopped = True
            super().stop(timeout)

    transport = Interrupted(MemoryNetwork(), "server")
    Server(SERVER, key_of(SERVER), devices=KeyRing(), broker=transport).run()
    assert transport.stopped


def test_a_device_asks_to_be_let_in_before_it_hears_what_waits_at_the_broker():
    """Without a store it does not know that it is a member, and must not resign because of what it is asked."""
    network, now = MemoryNetwork(), time.time()

    class Waiting(MemoryTransport):
        sent = []

        def start(self, on_message, on_link):
            token = tokens.bind(SERVER, DEVICE, int(now) + 600, bytes(16))
            action = Action(sequence_id=int(now * 1e6), sender_id=SERVER, token=token, action_id=3)
            on_message(Delivery(device_topic(DEVICE), encode(action, key_of(SERVER)), lambda: None))
            super().start(on_message, on_link)

        def publish(self, topic, payload, *options):
            self.sent.append(type(decode(payload).verify(key_of(DEVICE).public_key)))
            super().publish(topic, payload, *options)

    device = Device(
        DEVICE,
        key_of(DEVICE),
        server=SERVER,
        server_key=key_of(SERVER).public_key,
        broker=Waiting(network, "device"),
    )
    device.start(threads=False)
    device.step()
    device.stop()
    assert Waiting.sent == [JoinRequest]


def test_a_transport_that_fails_to_send_at_once_ends_no_turn(tmp_path):
    """What was settled and published goes out when its thread comes to it."""

    def fail():
        raise OSError("the socket is gone")

    with Fleet(tmp_path) as fleet:
        fleet.joined()
        fleet.device.on_action(1)(lambda _: None)
        fleet.device.engine.flush = fail
        future = fleet.server.action(fleet.device.identity, 1)
        fleet.settle()
        assert future.result(0) is Status.ACTION_SUCCESS
        assert fleet.device.counts["faults"] > 0
