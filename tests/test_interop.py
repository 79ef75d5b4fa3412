"""Deployed peers and this package on one network, with real bytes: what works, what is lost, and who is refused.

`docs/interop.md` tells users what is shown here.
"""

import random
import socket
from collections import Counter
from contextlib import ExitStack
from typing import get_args

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from srup import (
    Device,
    FetchPolicy,
    KeyRing,
    Policy,
    PolicyError,
    Server,
    Status,
    UnansweredError,
    UpdateError,
    decode,
    encode,
)
from srup import seal as srup_seal
from srup import unseal as srup_unseal
from srup.messages import Data, DataKind, HumanJoinRequest
from srup.session import DeviceSession, Send, ServerSession
from srup.session.events import (
    Deregistered,
    HumanJoinRequested,
    JoinAnswered,
    JoinCommandAnswered,
    JoinCommanded,
    JoinRequested,
    JoinValueReceived,
    Observed,
    ObservedJoinRequested,
    Unanswered,
)
from srup.simulation import START
from srup.store import MemoryStore
from srup.transport import LocalBroker, MemoryTransport, MqttTransport
from srup.update import UpdateState

from .fleet import DIGEST, FIRMWARE, SERVER, WAIT, FirmwareHost, Fleet, key_of, wait_until
from .old_peer import FORMS, NUMBERS, TYPES, Link, OldDevice, OldServer, from_data, pack, read, seal, split, unseal
from .session_link import nonce

pytestmark = pytest.mark.backend

OLD = 0x01D
RSA = "rsa2048"
DAY = 86400.0
HIGHEST = 2**64 - 1
STRICT = Policy(require_bound_tokens=True)
EAGER = Policy(first_retry=1.0, max_retry=5.0)
BEYOND_INT32 = ("int64", "uint32", "uint64")
VALUES = [
    *(("int8", -128), ("int16", -(2**15)), ("int32", -(2**31)), ("int64", -(2**63))),
    *(("uint8", 255), ("uint16", 2**16 - 1), ("uint32", 2**32 - 1), ("uint64", HIGHEST)),
    *(("float", -0.15625), ("double", 1e300), ("text", "grüße, 21 °C"), ("bytes", b"\xff\x00\xfe")),
]
SENDABLE = [(form, value) for form, value in VALUES if form != "bytes" and form not in BEYOND_INT32]
"""What old peers, which are written in Python, can send too."""
USUAL = [(7, "int32"), (0.1, "double"), ("grün", "text")]


def private_pem(identity):
    return key_of(identity, RSA).to_pem()


def public_pem(identity):
    return key_of(identity, RSA).public_key.to_pem()


def old_device(identity=OLD, **options):
    return OldDevice(identity, private_pem(identity), SERVER, public_pem(SERVER), **options)


class WithOldDevices(Fleet):
    """Our server, started, and one old device, or more."""

    def __init__(self, tmp_path, old=1, **options):
        super().__init__(tmp_path, 0, scheme=RSA, **options)
        self.stack = ExitStack()
        self.links = [self.attach(old_device(OLD + number)) for number in range(old)]
        self.got = []
        self.server.on_action(1)(lambda device: self.got.append((device, 1)))
        self.server.on_data("count", "int32")(lambda device, data_id, value: self.got.append((device, value)))
        self.server.start(threads=False)

    @property
    def old(self):
        return self.links[0].peer

    def attach(self, peer):
        if peer.identity not in self.ring:
            self.ring.add(peer.identity, key_of(peer.identity, RSA).public_key)
        return self.stack.enter_context(Link(peer, MemoryTransport(self.network, f"old {peer.identity:x}")))

    def do(self, step, *arguments, **options):
        """Let an old device do something; what is sent may still be under way then."""
        link = next(link for link in self.links if link.peer is step.__self__)
        link.do(step, *arguments, **options)

    def joined(self):
        for link in self.links:
            self.do(link.peer.join)
        self.quiet()
        assert [link.peer.joined for link in self.links] == [True] * len(self.links)
        assert self.server.members == {link.peer.identity for link in self.links}
        return self

    def quiet(self):
        """Let everything arrive that is under way."""
        self.settle()
        while (due := self.network.next_due()) is not None:
            self.clock.now = max(self.clock.now, due)
            self.network.advance(self.clock.now)
            self.settle()

    def sound(self):
        """Assert that nothing raised, and that our end refused nothing but copies."""
        assert self.faults() == 0
        assert [link.transport.faults for link in self.links] == [0] * len(self.links)
        assert set(self.errors()) <= {"ReplayError"}

    def stop(self):
        super().stop()
        self.stack.close()


class UnderOldServer(WithOldDevices):
    """Our devices, started, under an old server; the server of the base class is never started."""

    def __init__(self, tmp_path, size=1, **options):
        Fleet.__init__(self, tmp_path, size, scheme=RSA, **options)
        self.stack = ExitStack()
        keys = {identity: public_pem(identity) for identity in self.devices}
        self.links = [self.attach(OldServer(SERVER, private_pem(SERVER), keys))]
        self.got = []

    @property
    def agents(self):
        return list(self.devices.values())

    def attach(self, peer):
        peer.handlers |= {"on_data"}  # its application has one, for values and for what devices say they are
        return self.stack.enter_context(Link(peer, MemoryTransport(self.network, "old server")))

    def begin(self, device):
        """Start one of ours, with handlers."""
        for action_id in (1, 2):
            device.on_action(action_id)(
                lambda server, action_id=action_id: self.got.append((device.identity, action_id))
            )
        device.on_data("count", "int32")(lambda server, data_id, value: self.got.append((device.identity, value)))
        device.start(threads=False)

    def joined(self):
        for device in self.devices.values():
            self.begin(device)
        self.quiet()
        assert [device.joined for device in self.agents] == [True] * len(self.agents)
        assert self.old.members == self.devices.keys()
        return self


@pytest.fixture
def site(tmp_path):
    """Our server and an old device that has joined."""
    with WithOldDevices(tmp_path) as site:
        yield site.joined()


@pytest.fixture
def under(tmp_path):
    """Our device, joined to an old server."""
    with UnderOldServer(tmp_path) as under:
        yield under.joined()


@pytest.fixture
def host():
    with FirmwareHost({"/image": FIRMWARE}).running() as host:
        yield host


@pytest.fixture
def nowhere():
    """A URL where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else can take it
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/image"


# The double itself.


def test_the_double_reads_writes_and_opens_what_peers_send(vectors, vector_keys, unhex):
    keys = {name: load_pem_private_key(key.to_pem(), None) for name, key in vector_keys.items()}
    checked, opened = set(), 0
    for entry in vectors["messages"]:
        if entry["message"] not in TYPES:
            continue
        wire, given = unhex(entry["wire"]), dict(entry["fields"])
        start, size = entry.get("sealed_at", (0, 0))
        given.setdefault("sealed", wire[start : start + size].hex())
        fields = {}
        for name, kind in TYPES[entry["message"]][1].items():
            value = given[name] if kind in NUMBERS else unhex(given[name])
            fields[name] = value if kind in NUMBERS or kind == "bytes" else value.decode()
        head = given["sequence_id"], given["sender_id"], unhex(given["token"])
        assert pack(keys[entry["key"]], entry["message"], *head, **fields) == wire
        frame = split(wire)
        assert (frame.sequence_id, frame.sender, frame.token) == head
        assert read(frame._replace(token=b"a text")).fields == fields
        checked.add(entry["message"])
        value = unhex(entry.get("plaintext") or "")
        if len(value) >= 32 and value.isascii():
            assert unseal(keys[entry["seal_key"]], fields["sealed"]) == value[:32].decode()
            opened += 1
    assert checked == TYPES.keys()
    assert opened > 10


def test_the_double_cannot_read_a_value_shorter_than_32_bytes():
    peer = old_device()
    for size in (32, 40):
        assert unseal(peer.key, seal(peer.key.public_key(), b"x" * size)) == "x" * 32
    with pytest.raises(AssertionError, match="1 bytes beyond"):
        unseal(peer.key, seal(peer.key.public_key(), b"x" * 31))


def test_the_double_fails_on_a_token_that_is_no_text(site):
    wire = pack(OldServer(SERVER, private_pem(SERVER), {}).key, "Action", HIGHEST // 2, SERVER, b"\xff", action_id=1)
    site.network.inject(f"SRUP/{OLD:x}", wire)
    assert site.links[0].transport.faults == 1
    assert site.old.of("Action") == []


def test_t1_still_works_against_an_old_device_and_nothing_here_can_mend_it(site):
    """One forged message locks it: it hears nothing more, and has no number left for what it sends next."""
    stranger = OldServer(0xBAD, private_pem(0xBAD), {}).key
    forged = pack(stranger, "Action", HIGHEST, SERVER, b"t", action_id=1)
    site.network.inject(f"SRUP/{OLD:x}", forged)
    assert site.old.dropped[-1][1] == "signature"
    site.server.action(OLD, 1)
    site.settle()
    assert site.old.dropped[-1][1] == "sequence id"
    with pytest.raises(OverflowError):
        site.do(site.old.action, 1)
    site.settle()
    assert (site.got, site.errors()) == ([], [])


def test_t1_against_an_old_partner_that_is_heard_once_more_ends_in_a_clear_error(site):
    """Its next message, genuine and with the highest number, leaves none for ours; other devices are not concerned."""
    site.links.append(site.attach(old_device(0x02D)))
    site.do(site.links[1].peer.join)
    stranger = OldServer(0xBAD, private_pem(0xBAD), {}).key
    site.network.inject(f"SRUP/{OLD:x}", pack(stranger, "Action", HIGHEST - 1, SERVER, b"t", action_id=1))
    site.do(site.old.data, "count", 1)
    site.settle()
    assert site.got == [(OLD, 1)]
    refused, taken = site.server.action(OLD, 1), site.server.action(0x02D, 1)
    site.settle()
    with pytest.raises(PolicyError, match="no sequence id is left for 1d"):
        refused.result(0)
    assert not taken.done()
    assert site.links[1].peer.names() == ["Response", "Action"]


# (a) An old device and our server.


@pytest.mark.parametrize("refusal", [Status.JOIN_REFUSED, Status.JOIN_FAIL])
def test_an_old_device_learns_that_it_may_not_join(tmp_path, refusal):
    with WithOldDevices(tmp_path) as site:
        site.server.on_join(lambda device: refusal)
        site.do(site.old.join)
        site.settle()
        assert (site.old.join_status, site.old.joined) == (refusal, False)
        site.server.on_join(lambda device: True)
        site.do(site.old.join)
        site.settle()
        assert (site.old.join_status, site.old.joined) == (Status.JOIN_SUCCESS, True)
        site.sound()


def test_an_old_device_that_joins_on_the_topic_of_another_is_refused(tmp_path):
    with WithOldDevices(tmp_path) as site:
        [(_, wire)] = site.old.join()
        site.network.inject(f"SRUP/servers/{SERVER:x}/beef", wire)
        site.settle()
        assert site.errors() == ["PolicyError"]
        assert not site.old.joined


def test_actions_go_both_ways_and_ours_is_never_answered(site):
    future = site.server.action(OLD, 200)
    site.settle()
    site.do(site.old.action, 1)
    site.do(site.old.action, 99)
    site.settle()
    assert [message.fields for message in site.old.of("Action")] == [{"action_id": 200}]
    assert site.got == [(OLD, 1)]
    answers = {message.token: message.fields["status"] for message in site.old.of("Response")[1:]}
    assert sorted(answers.values()) == [Status.ACTION_SUCCESS, Status.ACTION_UNKNOWN]
    assert not future.done()
    site.run(future.done, 301.0)
    assert isinstance(future.exception(0), UnansweredError)
    site.sound()


@pytest.mark.parametrize(("form", "value"), VALUES)
def test_typed_values_go_to_an_old_device(site, form, value):
    site.old.handlers |= {"on_data"}
    sent = site.server.send_data(OLD, "setting", value, form)
    site.settle()
    assert sent.result(0) is None
    [message] = site.old.of("Data")
    assert message.fields["data_id"] == "setting"
    assert from_data(message.fields["data"], form) == value
    site.sound()


@pytest.mark.parametrize(("form", "value"), SENDABLE)
def test_typed_values_come_from_an_old_device(site, form, value):
    taken = []
    site.server.on_data("reading", form)(lambda device, data_id, value: taken.append((device, data_id, value)))
    site.do(site.old.data, "reading", value, form)
    site.settle()
    assert taken == [(OLD, "reading", value)]
    site.sound()


def test_a_value_is_the_end_of_an_old_device_without_a_handler_for_it(site):
    """It can only be sent to a device of which somebody knows that it takes values."""
    site.server.send_data(OLD, "setting", 1)
    site.settle()
    assert site.old.dead
    site.server.action(OLD, 1)
    site.settle()
    assert site.old.of("Action") == []


@pytest.mark.parametrize("away", [False, True])
def test_a_value_for_an_old_device_says_that_nobody_confirms_it(tmp_path, away):
    """Its session at the broker is clean: while it is away the value is lost, and nobody can tell."""
    with WithOldDevices(tmp_path, server_options={"store": MemoryStore()}) as site:
        site.joined()
        site.old.handlers |= {"on_data"}
        if away:
            site.network.cut(f"old {OLD:x}")
        sent = site.server.send_data(OLD, "setting", 1)
        site.settle()
        assert sent.result(0) == "HANDED_OVER"
        site.network.heal(f"old {OLD:x}")
        site.quiet()
        assert len(site.old.of("Data")) == (0 if away else 1)


@pytest.mark.parametrize(("value", "form"), USUAL)
def test_values_without_a_form_have_that_of_peers_written_in_python(site, value, form):
    taken = []
    site.server.on_data("reading", form)(lambda device, data_id, value: taken.append(value))
    site.old.handlers |= {"on_data"}
    site.do(site.old.data, "reading", value)
    site.server.send_data(OLD, "setting", value)
    site.settle()
    assert taken == [value]
    assert from_data(site.old.of("Data")[0].fields["data"], form) == value


def test_all_forms_are_tried():
    assert {form for form, _ in VALUES} == set(get_args(DataKind)) == {*FORMS, "text", "bytes"}
    assert all(Data.encode_value(value) == Data.encode_value(value, form) for value, form in USUAL)


def test_a_value_that_nobody_knows_is_refused_and_the_old_device_goes_on(site):
    site.do(site.old.data, "nobody knows this", 1)
    site.do(site.old.data, "count", "not a number")
    site.do(site.old.data, "count", 2)
    site.settle()
    statuses = [message.fields["status"] for message in site.old.of("Response")[1:]]
    assert statuses == [Status.DATA_TYPE_UNKNOWN] * 2
    assert site.got == [(OLD, 2)]
    site.sound()


def test_an_old_device_says_what_it_is(site):
    text = site.server.identify(OLD)
    site.settle()
    assert text.result(0) == "an old device"
    asked, answered = (split(wire) for _, wire in site.network.log[-2:])
    assert asked.token != answered.token  # it answers under a token of its own
    site.sound()


def test_an_old_device_is_updated(site, host):
    order = site.server.update(OLD, host.url + "/image", DIGEST)
    site.settle()
    assert order.result(0) is UpdateState.ACTIVATING  # it never says that it has activated
    assert site.old.activated == [FIRMWARE]
    assert site.old.names() == ["Response", "Initiate", "Activate"]
    assert host.asked == ["/image"]
    site.clock.now += 2 * DAY
    site.settle()
    assert order.result(0) is UpdateState.ACTIVATING
    site.sound()


def test_an_old_device_activates_when_the_operator_says_so(site, host):
    order = site.server.update(OLD, host.url + "/image", DIGEST, hold=True)
    site.settle()
    assert (order.state, site.old.activated) == (UpdateState.READY, [])
    order.activate()
    site.settle()
    assert (order.result(0), site.old.activated) == (UpdateState.ACTIVATING, [FIRMWARE])


@pytest.mark.parametrize(
    ("where", "digest", "status"),
    [
        ("/image", "0" * 64, Status.UPDATE_FAIL_DIGEST),
        ("/missing", DIGEST, Status.UPDATE_FAIL_FILE),  # what old devices say for an HTTP error
        (None, DIGEST, Status.UPDATE_FAIL_SERVER),
    ],
)
def test_an_old_device_reports_why_it_could_not_be_updated(site, host, nowhere, where, digest, status):
    order = site.server.update(OLD, host.url + where if where else nowhere, digest)
    site.settle()
    with pytest.raises(UpdateError) as caught:
        order.result(0)
    assert (caught.value.status, order.state, site.old.activated) == (status, UpdateState.FAILED, [])
    again = site.server.update(OLD, host.url + "/image", DIGEST)
    site.settle()
    assert again.result(0) is UpdateState.ACTIVATING
    site.sound()


def test_an_old_device_resigns_and_comes_back(site):
    left = []
    site.server.on_left(left.append)
    site.do(site.old.resign)
    site.settle()
    assert (site.old.joined, site.server.members, left) == (False, frozenset(), [OLD])
    refused = site.server.action(OLD, 1)
    site.settle()
    with pytest.raises(PolicyError, match="not joined"):
        refused.result(0)
    site.joined().sound()


def test_an_old_device_is_terminated_and_comes_back(site):
    site.server.terminate(OLD)
    site.settle()
    assert (site.old.joined, site.server.members) == (False, frozenset())
    assert site.old.names() == ["Response", "TerminateCommand"]
    site.do(site.old.data, "count", 1)  # it may not have heard
    site.settle()
    assert site.got == []
    site.joined().sound()


def test_an_old_device_that_starts_anew_joins_again(site):
    """It remembers its counters, as it must towards an old server too, and nothing else."""
    fresh = old_device()
    fresh.last = dict(site.old.last)
    site.links[0].__exit__()
    site.links[0] = site.attach(fresh)
    site.joined()
    site.do(fresh.data, "count", 1)
    site.settle()
    assert site.got == [(OLD, 1)]
    site.sound()


def test_an_old_device_that_lost_its_counter_is_refused_until_it_is_above_it(site):
    fresh = old_device()
    site.links[0].__exit__()
    site.links[0] = site.attach(fresh)
    site.do(fresh.join)
    site.settle()
    assert (fresh.joined, site.errors()) == (False, ["ReplayError"])
    site.server.action(OLD, 1)  # anything it hears takes its counter up
    site.settle()
    site.joined().sound()


def test_after_a_restart_of_our_server_an_old_device_must_join_again(site):
    site.server.stop()
    site.clock.now += 1
    site.server = Server(
        SERVER,
        key_of(SERVER, RSA),
        devices=site.ring,
        broker=MemoryTransport(site.network, "server"),
        clock=site.clock,
        entropy=site.randbytes,
    )
    site.server.on_data("count", "int32")(lambda device, data_id, value: site.got.append((device, value)))
    site.server.start(threads=False)
    site.do(site.old.data, "count", 1)
    site.settle()
    assert (site.got, site.server.counts["unexpected"]) == ([], 1)  # and not a word to the device: it would not know it
    site.joined()
    site.do(site.old.data, "count", 2)
    site.settle()
    assert site.got == [(OLD, 2)]
    site.sound()


# Both send at once. Messages that cross have the same sequence ids, and an old peer takes none that it has used itself.

CROSSINGS = [(ours, theirs) for ours in range(1, 4) for theirs in range(1, 4)]


@pytest.mark.parametrize(("ours", "theirs"), CROSSINGS)
def test_what_crosses_messages_of_an_old_device_is_lost_there_and_nothing_here(tmp_path, ours, theirs):
    with WithOldDevices(tmp_path, delay=(1.0, 1.0)) as site:
        site.joined()
        for value in range(theirs):
            site.do(site.old.data, "count", value)
        futures = [site.server.action(OLD, 10 + number) for number in range(ours)]
        site.quiet()
        assert site.got == [(OLD, value) for value in range(theirs)]
        lost = min(ours, theirs)
        heard = [message.fields["action_id"] for message in site.old.of("Action")]
        assert heard == list(range(10 + lost, 10 + ours))
        assert [reason for _, reason in site.old.dropped] == ["sequence id"] * lost
        # Nobody is locked out: the next ones arrive.
        site.server.action(OLD, 99)
        site.quiet()
        site.do(site.old.data, "count", 99)
        site.quiet()
        assert site.old.of("Action")[-1].fields["action_id"] == 99
        assert site.got[-1] == (OLD, 99)
        # Lost or done, an action of ours ends in the same way, for an old device answers neither.
        site.run(lambda: all(future.done() for future in futures), 301.0)
        assert {type(future.exception(0)) for future in futures} == {UnansweredError}
        site.sound()


@pytest.mark.parametrize(("ours", "theirs"), CROSSINGS)
def test_what_crosses_messages_of_an_old_server_is_lost_there_and_nothing_here(tmp_path, ours, theirs):
    with UnderOldServer(tmp_path, delay=(1.0, 1.0)) as under:
        under.joined()
        for _ in range(theirs):
            under.do(under.old.data, under.device.identity, "count", 1)
        for number in range(ours):
            under.device.send("reading", number)
        under.quiet()
        assert under.got == [(under.device.identity, 1)] * theirs
        heard = [from_data(message.fields["data"], "int32") for message in under.old.of("Data")]
        assert heard == list(range(min(ours, theirs), ours))
        under.device.send("reading", 99)
        under.quiet()
        under.do(under.old.action, under.device.identity, 2)
        under.quiet()
        assert from_data(under.old.of("Data")[-1].fields["data"], "int32") == 99
        assert under.got[-1] == (under.device.identity, 2)
        under.sound()


def test_an_answer_of_an_old_device_crosses_the_next_command_which_is_lost(tmp_path):
    """The old device's report has the number of the command that was sent meanwhile; the report arrives."""
    with WithOldDevices(tmp_path, delay=(1.0, 1.0)) as site:
        site.joined()
        text = site.server.identify(OLD)
        site.settle()
        site.clock.now += 1.0
        site.network.advance(site.clock.now)  # the request is there, the answer under way
        site.server.action(OLD, 1)
        site.quiet()
        assert text.result(0) == "an old device"
        assert site.old.of("Action") == []


def test_two_questions_at_once_are_one_too_many_for_an_old_device(site, host):
    """Even on a network that delivers at once: it answers the first before it has taken the second."""
    text, order = site.server.identify(OLD), site.server.update(OLD, host.url + "/image", DIGEST, lifetime=600.0)
    site.settle()
    assert (text.result(0), order.state, host.asked) == ("an old device", UpdateState.FETCHING, [])
    assert [frame.name for frame, _ in site.old.dropped] == ["Initiate"]
    again = site.server.update(OLD, host.url + "/image", DIGEST)  # one after the other
    site.settle()
    assert again.result(0) is UpdateState.ACTIVATING


@pytest.mark.parametrize("lost", [1, 3])
def test_what_an_old_device_said_in_vain_costs_as_many_of_our_messages(site, lost):
    """We cannot know its counter until it is heard again; MQTT's QoS 1 is there so that this does not happen."""
    for value in range(lost):
        site.old.data("count", value)  # never published
    for action_id in range(lost + 1):
        site.server.action(OLD, action_id)
    site.settle()
    assert [message.fields["action_id"] for message in site.old.of("Action")] == [lost]
    for value in range(lost):
        site.old.data("count", value)
    site.do(site.old.data, "count", 99)
    site.settle()
    site.server.action(OLD, 99)
    site.settle()
    assert (site.got, site.old.of("Action")[-1].fields["action_id"]) == ([(OLD, 99)], 99)


def test_what_our_device_refuses_does_not_count_so_the_next_of_ours_is_lost(under):
    """Nothing of what is refused is remembered, not even its number (docs/protocol/flows.md#f-10)."""
    under.do(under.old.update, under.device.identity, "http://127.0.0.1/image", "no digest")
    under.settle()
    assert under.errors() == ["PolicyError"]
    for value in (1, 2):
        under.device.send("reading", value)
        under.settle()
    assert [from_data(message.fields["data"], "int32") for message in under.old.of("Data")] == [2]


def test_an_update_order_that_is_lost_in_a_crossing_ends_unanswered_and_can_be_given_again(tmp_path, host):
    with WithOldDevices(tmp_path, delay=(1.0, 1.0)) as site:
        site.joined()
        site.do(site.old.data, "count", 1)
        order = site.server.update(OLD, host.url + "/image", DIGEST, lifetime=600.0)
        site.run(lambda: order.done, 601.0)
        with pytest.raises(UnansweredError):
            order.result(0)
        assert (site.old.activated, host.asked) == ([], [])
        again = site.server.update(OLD, host.url + "/image", DIGEST)
        site.quiet()
        assert (again.result(0), site.old.activated) == (UpdateState.ACTIVATING, [FIRMWARE])
        site.sound()


def test_an_activate_that_is_lost_in_a_crossing_leaves_the_order_as_it_is(tmp_path, host):
    """Nobody can tell: an old device does not say whether it has activated. A new order repeats the whole."""
    with WithOldDevices(tmp_path, delay=(1.0, 1.0)) as site:
        site.joined()
        order = site.server.update(OLD, host.url + "/image", DIGEST, hold=True)
        site.quiet()
        site.do(site.old.data, "count", 1)
        order.activate()
        site.quiet()
        assert (order.result(0), site.old.activated) == (UpdateState.ACTIVATING, [])
        again = site.server.update(OLD, host.url + "/image", DIGEST)
        site.quiet()
        assert (again.result(0), site.old.activated) == (UpdateState.ACTIVATING, [FIRMWARE])


def test_a_termination_that_is_lost_in_a_crossing_holds_at_our_server(tmp_path):
    with WithOldDevices(tmp_path, delay=(1.0, 1.0)) as site:
        site.joined()
        site.do(site.old.data, "count", 1)
        site.server.terminate(OLD)
        site.quiet()
        assert (site.old.joined, site.server.members) == (True, frozenset())
        site.do(site.old.data, "count", 2)
        site.quiet()
        assert (2 in dict(site.got).values(), site.server.counts["unexpected"]) == (False, 1)


# The network changes the order, and repeats.


def test_what_arrives_late_at_an_old_device_is_lost_there(site):
    site.network.cut(f"old {OLD:x}")
    before = len(site.network.log)
    for action_id in (1, 2, 3):
        site.server.action(OLD, action_id)
    site.settle()
    first, second, third = site.network.log[before:]
    for message in (second, first, first, second, third, third):
        site.old.hear(*message)
    assert [message.fields["action_id"] for message in site.old.of("Action")] == [2, 3]


def test_what_arrives_late_or_twice_from_an_old_device_is_taken_once(site):
    sends = [site.old.data("count", value) for value in range(6)]
    for number in (3, 1, 1, 5, 0, 3, 4, 2, 5, 0):
        site.network.inject(*sends[number][0])
    site.settle()
    assert site.got == [(OLD, value) for value in (3, 1, 5, 0, 4, 2)]
    assert site.errors() == ["ReplayError"] * 4


def test_what_arrives_late_or_twice_from_an_old_server_is_taken_once(under):
    sends = [under.old.data(under.device.identity, "count", value) for value in range(6)]
    for number in (3, 1, 1, 5, 0, 3, 4, 2, 5, 0):
        under.network.inject(*sends[number][0])
    under.settle()
    assert under.got == [(under.device.identity, value) for value in (3, 1, 5, 0, 4, 2)]
    assert under.errors() == ["ReplayError"] * 4


FAULTS = {"loss": 0.1, "duplicate": 0.3, "delay": (0.01, 2.0), "reorder": 0.3}


def tokens_sent(network, sender, name):
    """How often each token was sent with a message of this name; the network's copies are not in its log."""
    frames = [split(wire) for _, wire in network.log]
    return Counter(frame.token for frame in frames if (frame.sender, frame.name) == (sender, name))


def chatter(world, seed, pairs):
    """Let both ends of each pair do things at random times; nothing of it may harm anybody later on."""
    dice = random.Random(seed)
    for _ in range(60):
        for ours, theirs in pairs:
            for act in (ours, theirs):
                if dice.random() < 0.4:
                    act()
        world.settle()
        world.clock.now += dice.choice([0.0, 0.01, 0.5, 3.0])
        world.network.advance(world.clock.now)
    world.quiet()


@pytest.mark.parametrize("seed", range(8))
def test_old_devices_on_a_bad_network_are_never_locked_out_and_hear_nothing_twice(tmp_path, seed):
    with WithOldDevices(tmp_path, 3, seed=seed, server_policy=EAGER) as site:
        site.joined()
        site.network._loss, site.network._duplicate, site.network._delay, site.network._reorder = FAULTS.values()
        site.network._immediate = False
        pairs = [
            (
                lambda peer=link.peer: site.server.action(peer.identity, 1),
                lambda peer=link.peer: site.do(peer.data, "count", 5),
            )
            for link in site.links
        ]
        chatter(site, seed, pairs)
        assert site.server.counts["unexpected"] == 0
        assert set(tokens_sent(site.network, SERVER, "Action").values()) == {1}
        for link in site.links:
            assert set(Counter(message.token for message in link.peer.of("Action")).values()) == {1}
        site.network._loss = site.network._duplicate = site.network._reorder = 0.0
        for link in site.links:
            before = len(link.peer.of("Action")), len(site.got)
            site.do(link.peer.data, "count", 6)  # where it stands: what it sent last may have been lost
            site.quiet()
            site.server.action(link.peer.identity, 2)
            site.quiet()
            assert (len(link.peer.of("Action")), len(site.got)) == (before[0] + 1, before[1] + 1)
        site.sound()


@pytest.mark.parametrize("seed", range(8))
def test_our_devices_on_a_bad_network_are_never_locked_out_by_an_old_server(tmp_path, seed):
    with UnderOldServer(tmp_path, 3, seed=seed, device_policy=EAGER) as under:
        under.joined()
        under.network._loss, under.network._duplicate, under.network._delay, under.network._reorder = FAULTS.values()
        under.network._immediate = False
        pairs = [
            (
                lambda device=device: device.action(SERVER, 1),
                lambda device=device: under.do(under.old.action, device.identity, 1),
            )
            for device in under.agents
        ]
        chatter(under, seed, pairs)
        for device in under.agents:
            assert set(tokens_sent(under.network, device.identity, "Action").values()) == {1}
        assert set(Counter(message.token for message in under.old.of("Action")).values()) == {1}
        under.network._loss = under.network._duplicate = under.network._reorder = 0.0
        for device in under.agents:
            before = len(under.old.of("Action")), len(under.got)
            under.do(under.old.action, device.identity, 2)  # where it stands: what it sent last may have been lost
            under.quiet()
            device.action(SERVER, 2)
            under.quiet()
            assert (len(under.old.of("Action")), len(under.got)) == (before[0] + 1, before[1] + 1)
        under.sound()


# (b) Our device and an old server.


@pytest.mark.parametrize("refusal", [0x5E, 0x5F])
def test_our_device_learns_that_it_may_not_join_an_old_server(tmp_path, refusal):
    with UnderOldServer(tmp_path) as under:
        under.old.join_status = refusal
        under.begin(under.device)
        under.settle()
        with pytest.raises(PolicyError, match=Status(refusal).name):
            under.device.wait_joined(0)
        under.old.join_status = 0x50
        under.device.join()
        under.settle()
        under.device.wait_joined(0)
        under.sound()


def test_actions_go_both_ways_under_an_old_server(under):
    future = under.device.action(SERVER, 200)
    under.settle()
    under.do(under.old.action, under.device.identity, 1)
    under.do(under.old.action, under.device.identity, 99)
    under.settle()
    assert [message.fields for message in under.old.of("Action")] == [{"action_id": 200}]
    assert under.got == [(under.device.identity, 1)]
    under.run(future.done, 301.0)
    assert isinstance(future.exception(0), UnansweredError)
    under.sound()


def test_answers_that_an_old_server_does_not_expect_do_no_harm(under):
    under.do(under.old.action, under.device.identity, 1)
    under.settle()
    under.do(under.old.action, under.device.identity, 2)
    under.settle()
    assert under.got == [(under.device.identity, 1), (under.device.identity, 2)]
    assert [message.fields["status"] for message in under.old.of("Response")] == [Status.ACTION_SUCCESS] * 2


@pytest.mark.parametrize(("form", "value"), SENDABLE)
def test_typed_values_come_from_an_old_server(under, form, value):
    taken = []
    under.device.on_data("setting", form)(lambda server, data_id, value: taken.append((server, data_id, value)))
    under.do(under.old.data, under.device.identity, "setting", value, form)
    under.settle()
    assert taken == [(SERVER, "setting", value)]
    under.sound()


@pytest.mark.parametrize(("form", "value"), VALUES)
def test_typed_values_go_to_an_old_server(under, form, value):
    under.device.send("reading", value, form)
    under.settle()
    [message] = under.old.of("Data")
    assert (message.sender, message.fields["data_id"]) == (under.device.identity, "reading")
    assert from_data(message.fields["data"], form) == value
    under.sound()


def test_our_device_says_to_an_old_server_what_it_is(under):
    under.do(under.old.identify, under.device.identity)
    under.settle()
    [message] = under.old.of("Data")
    assert message.fields == {"data_id": "IDENTIFICATION_RESPONSE", "data": b"device d0"}
    under.sound()


@pytest.mark.parametrize(
    ("where", "digest", "statuses"),
    [
        ("/image", DIGEST, [Status.UPDATE_SUCCESS, Status.ACTIVATE_SUCCESS]),
        ("/image", "0" * 64, [Status.UPDATE_FAIL_DIGEST]),
        ("/missing", DIGEST, [Status.UPDATE_FAIL_HTTP_ERROR]),
        (None, DIGEST, [Status.UPDATE_FAIL_SERVER]),
    ],
)
def test_our_device_is_updated_by_an_old_server(tmp_path, host, nowhere, where, digest, statuses):
    with UnderOldServer(tmp_path, 0) as under:
        device = under.add(0xD0, fetcher=None, fetch=FetchPolicy(allow_http=True, attempts=1))
        under.old.keys |= OldServer(1, private_pem(SERVER), {0xD0: public_pem(0xD0)}).keys
        activated = []
        device.on_activate(lambda path: activated.append(path.read_bytes()))
        under.joined()
        under.do(under.old.update, 0xD0, host.url + where if where else nowhere, digest)
        under.settle()
        assert [message.fields["status"] for message in under.old.of("Response")] == statuses
        assert len({message.token for message in under.old.of("Response")}) == 1
        assert activated == [FIRMWARE] * (len(statuses) == 2)
        under.sound()


def test_our_device_resigns_from_an_old_server_and_comes_back(under):
    left = []
    under.device.on_left(left.append)
    resigned = under.device.resign()
    under.settle()
    assert (under.device.joined, under.old.members) == (False, {under.device.identity})
    under.do(under.old.action, under.device.identity, 1)  # the server does not know better
    under.run(resigned.done, 301.0)
    assert isinstance(resigned.exception(0), UnansweredError)
    assert (left, under.got, under.device.counts["unexpected"]) == ([SERVER], [], 1)
    under.device.join()
    under.settle()
    assert (under.device.joined, under.old.entries) == (True, [under.device.identity] * 2)
    under.pass_time(600.0)
    assert (under.device.joined, left) == (True, [SERVER])
    under.sound()


def test_our_device_that_comes_back_before_its_resignation_has_expired_stays(under):
    left = []
    under.device.on_left(left.append)
    resigned = under.device.resign()
    under.settle()
    under.device.join()
    under.settle()
    assert under.device.joined
    under.run(resigned.done, 301.0)
    assert isinstance(resigned.exception(0), UnansweredError)
    assert (under.device.joined, left) == (True, [])
    under.sound()


def test_a_join_request_that_an_old_server_missed_is_sent_again(tmp_path):
    with UnderOldServer(tmp_path, device_policy=EAGER) as under:
        under.network.cut("old server")
        under.begin(under.device)
        under.settle()
        under.network.heal("old server")
        under.run(lambda: under.device.joined, 5.0)
        assert under.old.members == {under.device.identity}
        under.sound()


def test_an_old_server_that_forgot_everything_is_heard_again_after_the_next_join(under):
    identity = under.device.identity
    under.links[0].__exit__()
    under.links[0] = under.attach(OldServer(SERVER, private_pem(SERVER), {identity: public_pem(identity)}))
    under.do(under.old.action, identity, 1)
    under.settle()
    assert (under.got, under.errors()) == ([], ["ReplayError"])
    under.run(lambda: bool(under.old.members), 1.25 * DAY + 1)
    under.quiet()
    under.do(under.old.action, identity, 1)
    under.settle()
    assert under.got == [(identity, 1)]
    under.sound()


def test_our_device_is_heard_by_an_old_server_after_a_restart(under):
    under.device.action(SERVER, 1)
    under.settle()
    under.device.stop()
    under.clock.now += 1.0
    under.add(under.device.identity)
    under.joined()
    under.device.action(SERVER, 2)
    under.settle()
    assert [message.fields["action_id"] for message in under.old.of("Action")] == [1, 2]
    assert under.old.dropped == []


def test_t1_a_forged_message_locks_an_old_device_and_not_ours(under):
    stranger = OldServer(0xBAD, private_pem(0xBAD), {}).key
    forged = pack(stranger, "Action", HIGHEST, SERVER, b"t", action_id=1)
    under.network.inject(f"SRUP/{under.device.identity:x}", forged)
    under.settle()
    assert under.errors() == ["SignatureError"]
    under.do(under.old.action, under.device.identity, 1)
    under.settle()
    assert under.got == [(under.device.identity, 1)]


# Joins that somebody moderates, join commands and deregistering, between sessions and real bytes.

OBSERVER = 0x0B5


class Ours:
    """A session of ours, which speaks in signed bytes; ``told`` is what it told."""

    def __init__(self, session):
        self.session = session
        self.told = []

    def sends(self, outputs):
        self.told += [output for output in outputs if not isinstance(output, Send)]
        key = key_of(self.session.identity, RSA)
        return [("", encode(output.message, key)) for output in outputs if isinstance(output, Send)]

    def hear(self, topic, wire):
        frame = decode(wire)
        message = frame.verify(key_of(frame.sender_id, RSA).public_key)
        return self.sends(self.session.receive(message, START, nonce()))

    def last(self, kind):
        assert isinstance(self.told[-1], kind)
        return self.told[-1]


def converse(ours, old, sends):
    """Carry messages until both are silent."""
    while sends:
        topic, wire = sends[0]
        hearer = old if split(wire).sender == ours.session.identity else ours
        sends = sends[1:] + hearer.hear(topic, wire)


@pytest.fixture
def our_server():
    return Ours(ServerSession(SERVER))


@pytest.fixture
def our_device():
    return Ours(DeviceSession(OLD, [SERVER], commanders=[SERVER]))


@pytest.fixture
def old_server():
    return OldServer(SERVER, private_pem(SERVER), {OLD: public_pem(OLD)})


JOIN_RESULTS = [Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL]
VALUE = "0123456789abcdef" * 2


def sealed_to(identity, value=VALUE):
    return srup_seal(value.encode(), key_of(identity, RSA).public_key)


@pytest.mark.parametrize("status", JOIN_RESULTS)
def test_an_old_device_shows_the_value_of_our_server(our_server, status):
    old, session = old_device(), our_server.session
    converse(our_server, old, old.human_join())
    token = our_server.last(HumanJoinRequested).token
    converse(our_server, old, our_server.sends(session.show_value(OLD, token, sealed_to(OLD), START)))
    assert (old.shown, old.joined) == (VALUE, False)
    converse(our_server, old, our_server.sends(session.answer_join(OLD, token, status, START)))
    joined = status is Status.JOIN_SUCCESS
    assert (old.join_status, old.joined, session.is_member(OLD)) == (status, joined, joined)
    assert old.names() == ["HumanJoinResponse", "Response"]
    assert old.dropped == []


@pytest.mark.parametrize(
    ("shows", "status"),
    [
        (VALUE, Status.OBSERVED_JOIN_VALID),
        (VALUE[::-1], Status.OBSERVED_JOIN_INVALID),
        (None, Status.OBSERVED_JOIN_FAIL),
    ],
)
def test_an_old_device_is_observed_by_an_old_device_for_our_server(our_server, shows, status):
    """Old servers never ask the observer; ours does, and an old observer answers."""

    def see(device):
        if shows is None:
            raise OSError("the camera is broken")
        return shows

    session = our_server.session
    joining, observer = old_device(), old_device(OBSERVER, see=see)
    converse(our_server, observer, observer.join())
    token = our_server.last(JoinRequested).token
    converse(our_server, observer, our_server.sends(session.answer_join(OBSERVER, token, Status.JOIN_SUCCESS, START)))
    converse(our_server, joining, joining.observed_join(OBSERVER))
    requested = our_server.last(ObservedJoinRequested)
    assert requested.observer == OBSERVER
    converse(our_server, joining, our_server.sends(session.show_value(OLD, requested.token, sealed_to(OLD), START)))
    assert joining.shown == VALUE
    asked = session.observe(OBSERVER, OLD, requested.token, sealed_to(OBSERVER), START, nonce())
    converse(our_server, observer, our_server.sends(asked))
    seen = our_server.last(Observed)
    assert (seen.device, seen.join_token, seen.status) == (OLD, requested.token, status)
    answer = Status.JOIN_SUCCESS if status is Status.OBSERVED_JOIN_VALID else Status.JOIN_REFUSED
    converse(our_server, joining, our_server.sends(session.answer_join(OLD, requested.token, answer, START)))
    assert joining.join_status == answer
    assert observer.dropped == joining.dropped == []


@pytest.mark.parametrize("status", JOIN_RESULTS)
@pytest.mark.parametrize("observer", [None, OBSERVER])
def test_our_device_shows_the_value_of_an_old_server(our_device, old_server, observer, status):
    session = our_device.session
    if observer is None:
        converse(our_device, old_server, our_device.sends(session.join_human(SERVER, START, nonce())))
    else:
        converse(our_device, old_server, our_device.sends(session.join_observed(SERVER, observer, START, nonce())))
        assert old_server.of("ObservedJoinRequest")[0].fields == {"observer_id": OBSERVER}
    _, value = old_server.values[OLD]
    shown = our_device.last(JoinValueReceived)
    assert srup_unseal(shown.sealed, key_of(OLD, RSA)) == value.encode()
    converse(our_device, old_server, old_server.decide(OLD, status))
    assert our_device.last(JoinAnswered).status is status
    assert session.is_member(SERVER) is (status is Status.JOIN_SUCCESS)
    assert session.tick(START + 10 * DAY) == []  # nothing is left of it, and nothing was ever sent again


def test_our_device_asks_an_old_server_twice_and_shows_the_latest_value(our_device, old_server):
    for _ in range(2):
        converse(our_device, old_server, our_device.sends(our_device.session.join_human(SERVER, START, nonce())))
    _, value = old_server.values[OLD]
    assert srup_unseal(our_device.last(JoinValueReceived).sealed, key_of(OLD, RSA)) == value.encode()
    converse(our_device, old_server, old_server.decide(OLD, 0x50))
    assert our_device.session.is_member(SERVER)


def test_a_moderated_join_is_not_sent_again_to_an_old_server(our_device, old_server):
    """Each one would show the operator another value."""
    session = our_device.session
    session.join_human(SERVER, START, nonce())  # lost
    converse(our_device, old_server, our_device.sends(session.tick(START + 899)))
    assert old_server.heard == []
    converse(our_device, old_server, our_device.sends(session.tick(START + 901)))
    assert (old_server.heard, our_device.last(Unanswered).request) == ([], HumanJoinRequest)
    converse(our_device, old_server, our_device.sends(session.join_human(SERVER, START, nonce())))
    converse(our_device, old_server, our_device.sends(session.tick(START + 10 * DAY)))
    assert old_server.names() == ["HumanJoinRequest"]


def test_an_old_server_hears_us_again_after_its_own_reconnection_when_we_join_again(under):
    under.network.cut("old server")
    under.network.heal("old server")
    under.device.send("reading", 1)
    under.quiet()
    assert under.old.of("Data") == []
    under.device.join()
    under.quiet()
    under.device.send("reading", 2)
    under.quiet()
    assert len(under.old.of("Data")) == 1
    under.sound()


def test_an_old_server_sends_nobody_a_join_command_who_is_listed_twice(under):
    identity = under.device.identity
    under.do(under.old.command_join, identity)
    under.quiet()
    assert under.old.entries == [identity] * 2
    under.do(under.old.command_join, identity)
    under.quiet()
    assert under.old.entries == [identity] * 2


def test_an_old_device_sends_no_join_request_at_a_join_command_unless_its_application_does(our_server):
    old, session = old_device(), our_server.session
    converse(our_server, old, our_server.sends(session.command_join(OLD, START, nonce())))
    assert (old.names(), our_server.told) == (["JoinCommand"], [])


def test_an_old_device_follows_a_join_command_of_our_server(our_server):
    old, session = old_device(), our_server.session
    old.handlers |= {"on_join_command"}
    converse(our_server, old, our_server.sends(session.command_join(OLD, START, nonce())))
    token = our_server.last(JoinRequested).token
    converse(our_server, old, our_server.sends(session.answer_join(OLD, token, Status.JOIN_SUCCESS, START)))
    assert old.joined
    assert our_server.last(JoinCommandAnswered).status is Status.JOIN_SUCCESS


def test_our_device_is_told_to_join_an_old_server(our_device, old_server):
    converse(our_device, old_server, old_server.command_join(OLD))
    assert our_device.last(JoinCommanded).server == SERVER
    converse(our_device, old_server, our_device.sends(our_device.session.join(SERVER, START, nonce())))
    assert (our_device.session.is_member(SERVER), old_server.members) == (True, {OLD})


def test_an_old_device_deregisters(our_server):
    old, session = old_device(), our_server.session
    converse(our_server, old, old.join())
    token = our_server.last(JoinRequested).token
    converse(our_server, old, our_server.sends(session.answer_join(OLD, token, Status.JOIN_SUCCESS, START)))
    converse(our_server, old, old.deregister())
    assert our_server.last(Deregistered).peer == OLD
    assert (old.joined, old.keys, session.is_member(OLD)) == (False, {}, False)


def test_an_old_device_is_deregistered(our_server):
    old, session = old_device(), our_server.session
    converse(our_server, old, our_server.sends(session.deregister(OLD, START, nonce())))
    assert our_server.last(Deregistered).peer == OLD
    assert (old.names(), old.keys) == (["DeregisterCommand"], {})


def test_our_device_deregisters_at_an_old_server(our_device, old_server):
    session = our_device.session
    converse(our_device, old_server, our_device.sends(session.join(SERVER, START, nonce())))
    converse(our_device, old_server, our_device.sends(session.deregister(SERVER, START, nonce())))
    assert session.servers == {SERVER}
    converse(our_device, old_server, our_device.sends(session.tick(START + 301)))
    assert our_device.last(Deregistered).peer == SERVER
    assert (old_server.keys.keys(), old_server.members, session.servers) == ({OLD}, {OLD}, frozenset())


def test_our_device_is_deregistered_by_an_old_server(our_device, old_server):
    converse(our_device, old_server, our_device.sends(our_device.session.join(SERVER, START, nonce())))
    converse(our_device, old_server, old_server.deregister(OLD))
    assert our_device.last(Deregistered).peer == SERVER
    assert (old_server.keys, our_device.session.servers) == ({}, frozenset())


def test_a_device_that_requires_bound_tokens_shows_no_value_of_an_old_server(old_server):
    ours = Ours(DeviceSession(OLD, [SERVER], STRICT))
    with pytest.raises(PolicyError, match="is not bound, and the policy requires that"):
        converse(ours, old_server, ours.sends(ours.session.join_human(SERVER, START, nonce())))
    assert ours.told == []


# (c) Who insists on bound tokens.


def test_a_server_that_requires_bound_tokens_does_not_let_an_old_device_in(tmp_path):
    with WithOldDevices(tmp_path, server_policy=STRICT) as site:
        told = []
        site.server.on_refused(told.append)
        site.do(site.old.join)
        site.settle()
        [refusal] = told
        assert type(refusal.error) is PolicyError
        assert str(refusal.error) == "the token of 1d is not bound, and the policy requires that"
        assert refusal.topic == f"SRUP/servers/{SERVER:x}/{OLD:x}"
        assert site.server.counts["PolicyError"] == 1
        assert (site.old.heard, site.old.joined, site.server.members) == ([], False, frozenset())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("action", [1]),
        ("data", ["count", 1]),
        ("identify", []),
        ("update", ["http://127.0.0.1/", DIGEST]),
        ("deregister", []),
    ],
)
def test_a_device_that_requires_bound_tokens_takes_no_command_of_an_old_server(tmp_path, name, arguments):
    with UnderOldServer(tmp_path, device_policy=STRICT) as under:
        under.joined()  # the answer to a join repeats our own token, and so says nothing about the server
        told = []
        under.device.on_refused(told.append)
        under.do(getattr(under.old, name), under.device.identity, *arguments)
        under.settle()
        [refusal] = told
        assert str(refusal.error) == f"the token of {SERVER:x} is not bound, and the policy requires that"
        assert (under.got, under.old.heard[1:], under.device.joined) == ([], [], True)


def test_a_device_that_once_bound_its_tokens_must_go_on(tmp_path):
    """Somebody who has its key and old software, or a downgrade that nobody wanted."""
    with WithOldDevices(tmp_path) as site:
        device = site.add(OLD)
        site.links[0].__exit__()
        device.start(threads=False)
        site.settle()
        assert site.server.members == {OLD}
        device.stop()
        old = old_device()
        old.last[SERVER] = HIGHEST // 2
        site.links[0] = site.attach(old)
        for step, arguments in ((old.join, []), (old.action, [1]), (old.data, ["count", 1]), (old.resign, [])):
            site.do(step, *arguments)
            site.settle()
            [(_, refusal)] = site.refusals[-1:]
            assert str(refusal.error) == "the token is not bound, although 1d binds its tokens"
        assert (site.got, old.heard, site.server.members) == ([], [], {OLD})


def test_a_server_that_once_bound_its_tokens_must_go_on(tmp_path):
    with Fleet(tmp_path, scheme=RSA).joined() as fleet:
        fleet.server.identify(fleet.device.identity)
        fleet.settle()
        fleet.server.stop()
        identity = fleet.device.identity
        old = OldServer(SERVER, private_pem(SERVER), {identity: public_pem(identity)})
        old.last[identity] = HIGHEST // 2
        with Link(old, MemoryTransport(fleet.network, "old server")) as link:
            link.do(old.action, identity, 1)
            fleet.settle()
            [(_, refusal)] = fleet.refusals
            assert str(refusal.error) == "the token is not bound, although 5e binds its tokens"
            assert old.heard == []


def test_an_old_device_that_is_upgraded_binds_from_then_on(site):
    site.do(site.old.data, "count", 1)
    site.settle()
    site.links.pop().__exit__()
    site.clock.now += 1.0
    device = site.add(OLD)
    device.on_action(1)(lambda server: None)
    device.start(threads=False)
    done = site.server.action(OLD, 1)
    site.settle()
    assert device.joined
    done = site.server.action(OLD, 1)
    site.settle()
    assert done.result(0) is Status.ACTION_SUCCESS
    assert site.faults() == 0


# (d) What is sent again.


def test_nothing_is_sent_again_to_an_old_device(tmp_path, host):
    """It would be a new command to it."""
    with WithOldDevices(tmp_path, server_policy=EAGER) as site:
        site.joined()
        site.network.cut(f"old {OLD:x}")
        future, text = site.server.action(OLD, 1), site.server.identify(OLD)
        order = site.server.update(OLD, host.url + "/image", DIGEST, lifetime=300.0)
        site.run(lambda: future.done() and text.done() and order.done, 301.0)
        for name in ("Action", "IdRequest", "Initiate"):
            assert list(tokens_sent(site.network, SERVER, name).values()) == [1]
        site.network.heal(f"old {OLD:x}")
        site.settle()
        assert site.old.names() == ["Response"]  # its session is clean: the broker keeps nothing for it
        assert host.asked == []


def test_an_activate_is_not_sent_again_to_an_old_device(site, host):
    order = site.server.update(OLD, host.url + "/image", DIGEST)
    site.settle()
    site.run(lambda: site.server.deadline() is None, 2 * DAY)
    assert order.result(0) is UpdateState.ACTIVATING
    assert list(tokens_sent(site.network, SERVER, "Activate").values()) == [1]


def test_only_join_requests_are_sent_again_to_an_old_server(tmp_path):
    with UnderOldServer(tmp_path, device_policy=EAGER) as under:
        under.network.cut("old server")
        under.begin(under.device)
        under.run(lambda: len(under.network.log) == 4, 60.0)
        under.network.heal("old server")
        under.run(lambda: under.device.joined, 10.0)
        identity = under.device.identity
        assert list(tokens_sent(under.network, identity, "JoinRequest").values()) == [5]
        under.network.cut("old server")
        future, resigned = under.device.action(SERVER, 1), under.device.resign()
        under.run(lambda: future.done() and resigned.done(), 301.0)
        for name in ("Action", "ResignRequest"):
            assert list(tokens_sent(under.network, identity, name).values()) == [1]


# The same over real brokers, with threads.


@pytest.fixture
def broker():
    with LocalBroker() as broker:
        yield broker


def link_to(broker, name):
    return MqttTransport(broker.url, name, min_pause=0.02, max_pause=0.2)


@pytest.mark.process
def test_an_old_device_and_our_server_over_a_broker(broker, host):
    got = []
    ring = KeyRing({OLD: key_of(OLD, RSA).public_key})
    old = old_device()
    with (
        Server(SERVER, key_of(SERVER, RSA), devices=ring, broker=link_to(broker, "server")) as server,
        Link(old, link_to(broker, "old")) as link,
    ):
        server.on_data("count", "int32")(lambda device, data_id, value: got.append(value))
        wait_until(lambda: server.connected, "the connection")
        wait_until(lambda: link.connected, "the connection")
        link.do(old.join)
        wait_until(lambda: old.joined, "the join")
        link.do(old.data, "count", 5)
        wait_until(lambda: got == [5], "the value")
        assert server.identify(OLD).result(WAIT) == "an old device"
        order = server.update(OLD, host.url + "/image", DIGEST)
        assert order.result(WAIT) is UpdateState.ACTIVATING
        wait_until(lambda: old.activated == [FIRMWARE], "the activation")
        link.do(old.resign)
        wait_until(lambda: not old.joined, "the resignation")
        assert (server.counts["faults"], link.transport.faults, old.dropped) == (0, 0, [])


@pytest.mark.process
def test_our_device_and_an_old_server_over_a_broker(broker, host, tmp_path):
    old = OldServer(SERVER, private_pem(SERVER), {OLD: public_pem(OLD)})
    old.handlers |= {"on_data"}
    got = []
    device = Device(
        OLD,
        key_of(OLD, RSA),
        server=SERVER,
        server_key=key_of(SERVER, RSA).public_key,
        broker=link_to(broker, "device"),
        firmware=tmp_path,
        fetch=FetchPolicy(allow_http=True),
        policy=EAGER,
    )
    device.on_action(1)(got.append)
    with Link(old, link_to(broker, "old server")) as link, device:
        device.wait_joined(WAIT)
        link.do(old.action, OLD, 1)
        wait_until(lambda: got == [SERVER], "the action")
        device.send("reading", 5).result(WAIT)
        wait_until(lambda: [message.fields["data"] for message in old.of("Data")] == [b"\5\0\0\0"], "the value")
        link.do(old.update, OLD, host.url + "/image", DIGEST)
        wait_until(lambda: (tmp_path / "current").exists(), "the activation")
        wait_until(lambda: Status.ACTIVATE_SUCCESS in [m.fields["status"] for m in old.of("Response")], "the answer")
        device.resign()
        wait_until(lambda: "ResignRequest" in old.names(), "the resignation")  # which it never answers
        assert (device.joined, device.counts["faults"], link.transport.faults) == (False, 0, 0)


# --- moderated joins and deregistering, between running ends


@pytest.mark.parametrize("status", [Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL])
def test_an_old_device_is_compared_by_a_person(tmp_path, status):
    with WithOldDevices(tmp_path, server_options={"admission": "human"}) as site:
        pending = []
        site.server.on_moderation(pending.append)
        site.do(site.old.join)
        site.quiet()
        assert site.old.join_status == Status.JOIN_REFUSED  # a simple join is not enough here
        site.do(site.old.human_join)
        site.quiet()
        [join] = pending
        assert join.value.matches(site.old.shown)
        {
            Status.JOIN_SUCCESS: join.accept,
            Status.JOIN_REFUSED: join.refuse,
            Status.JOIN_FAIL: join.fail,
        }[status]()
        site.quiet()
        assert (site.old.join_status, site.old.joined) == (status, status is Status.JOIN_SUCCESS)
        assert site.server.members == ({OLD} if site.old.joined else set())
        site.sound()


@pytest.mark.parametrize(("seen", "status"), [(True, Status.JOIN_SUCCESS), (False, Status.JOIN_REFUSED)])
def test_old_devices_observe_each_other(tmp_path, seen, status):
    options = {"admission": "observed", "observers": [OLD + 1]}
    with WithOldDevices(tmp_path, old=2, server_options=options) as site:
        joining, observer = (link.peer for link in site.links)
        site.server.on_moderation(lambda join: join.accept())
        site.do(observer.human_join)
        site.quiet()
        assert observer.joined
        observer.see = lambda identity: joining.shown if seen else b"another value"
        site.do(joining.observed_join, observer.identity)
        site.quiet()
        assert (joining.join_status, joining.joined) == (status, seen)
        site.sound()


def test_an_old_server_sends_our_device_the_value_under_a_token_of_its_own(tmp_path):
    with UnderOldServer(tmp_path, size=0) as under:
        device = under.add(0xD0, join="human")
        under.links.pop().__exit__()
        under.links.append(under.attach(OldServer(SERVER, private_pem(SERVER), {0xD0: public_pem(0xD0)})))
        shown = []
        device.on_join_value(shown.append)
        under.begin(device)
        under.quiet()
        [value] = shown
        _, sent = under.old.values[0xD0]
        assert value.matches(sent)
        assert not device.joined
        under.do(under.old.decide, 0xD0, 0x50)
        under.quiet()
        assert device.joined
        assert under.old.members == {0xD0}
        under.sound()


def test_our_device_deregisters_from_an_old_server(under):
    [device] = under.agents
    dropped, left = [], []
    device.on_deregistered(dropped.append)
    device.on_left(left.append)
    done = device.deregister()
    under.settle()
    assert not device.joined
    under.run(done.done, 301.0)
    assert isinstance(done.exception(0), UnansweredError)
    assert (dropped, left) == ([SERVER], [SERVER])
    assert under.old.members == {device.identity}
    assert SERVER not in device.debug.session.servers
    under.sound()


def test_our_device_that_comes_back_before_its_deregistration_has_expired_keeps_the_key(under):
    done = under.device.deregister()
    under.settle()
    under.device.join()
    under.settle()
    under.run(done.done, 301.0)
    assert isinstance(done.exception(0), UnansweredError)
    assert under.device.joined
    assert SERVER in under.device.debug.session.servers
    under.sound()


def test_an_old_server_deregisters_our_device(under):
    [device] = under.agents
    under.do(under.old.deregister, device.identity)
    under.quiet()
    assert not device.joined
    assert SERVER not in device.debug.session.servers


def test_an_old_device_and_our_server_part_for_good(tmp_path):
    with WithOldDevices(tmp_path, old=2) as site:
        site.joined()
        first, second = (link.peer for link in site.links)
        site.do(first.deregister)
        site.quiet()
        assert (first.joined, site.server.members, set(site.ring)) == (False, {second.identity}, {second.identity})
        site.server.deregister(second.identity)
        site.quiet()
        assert (second.joined, site.server.members, set(site.ring)) == (False, frozenset(), set())
