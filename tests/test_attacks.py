"""Attacks from end to end (docs/protocol/threats.md): real devices and servers, and an attacker who owns the broker.

Every test shows three things: the attack is refused, nothing has changed by it, and what is refused would have worked
without the guard, because the same thing unmodified, or with the guard off, does.

Where to look for an attack of the table (docs/security.md says what must happen):

T1   fast-forward                    here; test_attacks_codec.py, test_attacks_session.py
T2   replay                          here; test_attacks_session.py, test_session_streams.py, test_agent_durable.py
T3   cross-device replay             here; test_attacks_session.py, test_interop_syndication.py
T4   delayed delivery                here; test_attacks_session.py, test_interop_syndication.py
T5   truncation and over-read        here; test_attacks_codec.py
T6   malleability                    here; test_attacks_codec.py
T7   algorithm confusion             here; test_attacks_codec.py
T8   thread killer                   here
T9   memory exhaustion               here; test_attacks_floods.py, test_agent.py, test_agent_fairness.py,
                                     test_cli_logs.py, test_cli_terminal.py, test_fleet_audit.py,
                                     test_fleet_joins.py, test_agent_inventory.py, test_keyex_attacks.py,
                                     test_keyex_limits.py, test_keyex_service.py
T10  hijack by join command          here
T11  update substitution             here; test_attacks_session.py
T12  rollback                        here
T13  envelope abuse                  here
T14  registration squatting          test_keyex_attacks.py
T15  key service impersonation       test_attacks_rotation.py, test_keyex_attacks.py
T16  syndication abuse               test_attacks_syndication.py
T17  log injection, secrets in logs  here; test_agent.py, test_cli_logs.py, test_cli_terminal.py,
                                     test_keyex_service.py
T18  broker impersonation            here; test_agent_clientid.py, test_keyex_authority.py, test_keyex_broker.py,
                                     test_keyex_limits.py, test_transport_mqtt.py
T19  the same key again              test_attacks_freshness.py, test_attacks_orders.py
T20  forgotten token                 test_attacks_freshness.py
T21  clock there and back            test_attacks_freshness.py
T22  old words about a membership    test_attacks_membership.py
T23  endless expiries                test_attacks_bounds.py
T24  full audit                      test_attacks_bounds.py, test_fleet_audit.py
T25  amplification                   test_attacks_bounds.py
T26  flood of a member               test_attacks_bounds.py, test_attacks_handlers.py
T27  flood of observations           test_attacks_bounds.py
T28  memory of one, room of others   test_attacks_bounds.py
T29  late activation                 test_attacks_freshness.py
T30  spent sequence ids              test_attacks_freshness.py, test_attacks_membership.py, test_session_syndication.py
T31  false source                    test_attacks_membership.py
T32  raising                         test_attacks_bounds.py, test_attacks_last_ids.py
T33  lost rotation                   test_attacks_membership.py
T34  over the end                    test_attacks_membership.py, test_session_syndication.py
T35  late revocation                 test_attacks_orders.py, test_attacks_workers.py
T36  closed envelope                 test_attacks_bounds.py
T37  next key                        test_attacks_freshness.py
T38  future used up                  test_attacks_freshness.py
T39  clock far ahead                 test_attacks_freshness.py
T40  dead link, full                 test_transport_mqtt.py
T41  activation by day               test_attacks_orders.py
"""

import re
import time
from base64 import encodebytes
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from srup import (
    Action,
    Activate,
    Data,
    EncodeError,
    FetchPolicy,
    Initiate,
    InvalidKeyError,
    JoinCommand,
    JoinRequest,
    KeyRing,
    ObservationRequest,
    Policy,
    PrivateKey,
    PublicKey,
    Response,
    Server,
    Status,
    UpdateError,
    decode,
    encode,
    seal,
)
from srup.agent.members import Members
from srup.fetch import HttpFetcher
from srup.simulation import START
from srup.tokens import bind, parse
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .certificates import host_files
from .fleet import DIGEST, FIRMWARE, SERVER, URL, FirmwareHost, Fleet, key_of
from .hostile import Broker

pytestmark = pytest.mark.backend

TOP = 2**64 - 1
CURVE_ORDER = 2**252 + 27742317777372353535851937790883648493  # of Ed25519 (RFC 8032, section 5.1)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
TYPES = {Action: 0x04, Activate: 0x03, Data: 0x05, Initiate: 0x01, JoinRequest: 0x09, Response: 0x02}


class Field:
    """A fleet that has joined, whose devices list the actions that they do, and an attacker who hears everything."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.used = 0
        self.done = {identity: [] for identity in fleet.devices}
        for identity, device in fleet.devices.items():
            for action_id in (1, 2):
                device.on_action(action_id)(lambda _, i=identity, a=action_id: self.done[i].append(a))
        fleet.joined()
        self.target = fleet.device.identity
        self.topic = f"SRUP/{self.target:x}"

    def heard(self, cls):
        """The bytes of the last message of a type that the broker has seen."""
        return [wire for _, wire in self.fleet.network.log if wire[1] == TYPES[cls]][-1]

    def inject(self, *wires, topic=None):
        for wire in wires:
            self.fleet.network.inject(topic or self.topic, wire)
        self.fleet.settle()

    def unused_id(self):
        """A sequence id that nobody uses: below the first one of this fleet, and inside the window."""
        self.used += 1
        return int(START * 1e6) - self.used

    def signed(self, cls=Action, *, token=None, key=None, sequence_id=None, **fields):
        """A message of the server that the server did not send; by default the target's action 1."""
        if cls is Action:
            fields = {"action_id": 1} | fields
        message = cls(
            sequence_id=sequence_id or self.unused_id(),
            sender_id=SERVER,
            token=token or bind(SERVER, self.target, self.fleet.clock() + 60, self.fleet.randbytes(16)),
            **fields,
        )
        return encode(message, key or key_of(SERVER, self.fleet.scheme))

    def refused(self, *errors, by=None):
        """Assert that the target, or ``by``, told these errors since the last call, did nothing, and goes on."""
        assert self.fleet.errors(by or self.fleet.device) == list(errors)
        assert all(1 not in done for done in self.done.values())
        self.works()

    def works(self):
        device, server = self.fleet.device, self.fleet.server
        self.fleet.refusals.clear()
        before = len(self.done[self.target])
        future, text = server.action(self.target, 2), server.identify(self.target)
        self.fleet.settle()
        assert future.result(0) is Status.ACTION_SUCCESS
        assert text.result(0) == f"device {self.target:x}"
        assert self.done[self.target][before:] == [2]
        assert device.joined
        assert self.fleet.errors() == []
        assert self.fleet.faults() == 0

    def accepted(self, wire):
        """The control: this one does take effect."""
        self.done[self.target].clear()
        self.inject(wire)
        assert self.done[self.target] == [1]
        assert self.fleet.errors(self.fleet.device) == []  # the server does not know what the answer is to
        self.done[self.target].clear()


@pytest.fixture
def field(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        yield Field(fleet)


def scheme_field(tmp_path, scheme):
    return Field(Fleet(tmp_path, 1, scheme=scheme))


def span(wire):
    """Where the signature of a message lies: start and end (docs/protocol/wire-format.md#every-message)."""
    start = 22 + int.from_bytes(wire[18:20], "big")
    return start, start + int.from_bytes(wire[start - 2 : start], "big")


def signature_of(wire):
    start, end = span(wire)
    return wire[start:end]


def with_signature(wire, signature):
    start, end = span(wire)
    return wire[: start - 2] + len(signature).to_bytes(2, "big") + signature + wire[end:]


def signed_bytes(wire):
    start, end = span(wire)
    return wire[: start - 2] + wire[end:]


def plain(key):
    """The private key as the ``cryptography`` package has it."""
    return serialization.load_pem_private_key(key.to_pem().split(b"-----\n-----BEGIN")[0] + b"-----\n", None)


# T1: fast-forward.


@pytest.mark.parametrize("sequence_id", [TOP, TOP - 1, 2**63])
def test_t1_a_forged_message_of_the_highest_number_does_not_lock_the_server_out(field, sequence_id):
    forger = PrivateKey.generate("ed25519")
    field.inject(field.signed(sequence_id=sequence_id, key=forger))
    field.refused("SignatureError")
    field.accepted(field.signed())
    # The control: were the number believed, as it is when the server itself signs it, the server would be locked out.
    field.inject(field.signed(sequence_id=TOP))
    assert field.done[field.target] == [1]
    future = field.fleet.server.action(field.target, 2)
    field.fleet.settle()
    assert not future.done()
    assert field.fleet.errors(field.fleet.device) == ["ReplayError"]


def test_t1_nor_a_device_at_its_server(field):
    device = field.fleet.device
    forger = PrivateKey.generate("ed25519")
    token = bind(device.identity, SERVER, field.fleet.clock() + 60, bytes(16))
    fields = {"sequence_id": TOP, "sender_id": device.identity, "token": token}
    heard = []
    field.fleet.server.on_data("t")(lambda *arguments: heard.append(arguments[2]))
    wires = [encode(JoinRequest(**fields), forger), encode(Data(**fields, data_id="t", data=b"1"), forger)]
    field.inject(wires[0], topic=f"SRUP/servers/{SERVER:x}/{device.identity:x}")
    field.inject(wires[1])
    # The device hears the second one too, as its own voice, and takes no notice.
    field.refused("SignatureError", "SignatureError", by=field.fleet.server)
    device.send("t", b"2")
    field.fleet.settle()
    assert heard == [b"2"]
    field.inject(encode(Data(**fields, data_id="t", data=b"3"), key_of(device.identity)))
    device.send("t", b"4")
    field.fleet.settle()
    assert heard == [b"2", b"3"]  # the control: with a good signature the number counts, and no higher one is left


# T2: replay.


@pytest.mark.parametrize("how", ["at once", "after others", "after a restart"])
def test_t2_a_replayed_command(field, how):
    fleet = field.fleet
    future = fleet.server.action(field.target, 1)
    fleet.settle()
    captured = field.heard(Action)
    assert (future.result(0), field.done[field.target]) == (Status.ACTION_SUCCESS, [1])
    field.done[field.target].clear()
    if how == "after others":
        for _ in range(5):
            fleet.server.action(field.target, 2)
            fleet.settle()
    if how == "after a restart":  # the window is in memory for now: what refuses it then is the token's expiry
        fleet.device.stop()
        fleet.clock.now += 400
        device = fleet.add(field.target)
        for action_id in (1, 2):
            device.on_action(action_id)(lambda _, a=action_id: field.done[field.target].append(a))
        device.start(threads=False)
        fleet.settle()
        assert device.joined
    field.inject(captured)
    field.refused("PolicyError" if how == "after a restart" else "ReplayError")
    # The control: the same command under a number that has not been seen, and a token that has not been used.
    field.accepted(field.signed(sequence_id=int(START * 1e6) + 10**12))


# T4: delayed delivery.


def test_t4_a_command_that_the_broker_held_back_for_a_day(field):
    held = [field.signed(), field.signed()]
    field.accepted(held[0])  # the control: in time it works
    field.fleet.clock.now += 86400
    field.inject(held[1])
    assert field.fleet.errors(field.fleet.device) == ["PolicyError"]
    assert field.done[field.target] == []


def test_t4_a_device_without_a_clock_says_so(tmp_path):
    with Fleet(tmp_path, 1, device_policy=Policy(has_clock=False)) as fleet:
        field = Field(fleet)
        held = field.signed()
        fleet.clock.now += 86400
        field.accepted(held)  # the control: nothing but the clock refuses it


# T3: cross-device replay.


def test_t3_a_command_for_one_device_delivered_to_another(field):
    fleet = field.fleet
    other = list(fleet.devices)[1]
    future = fleet.server.action(other, 1)
    fleet.settle()
    assert (future.result(0), field.done[other]) == (Status.ACTION_SUCCESS, [1])  # the control: there it works
    field.done[other].clear()
    captured = field.heard(Action)
    assert parse(decode(captured).token).recipient == other
    field.inject(captured)
    field.refused("PolicyError")


def test_t3_works_where_tokens_are_not_bound_and_the_policy_forbids_it(tmp_path):
    """Deployed peers sign no recipient: the control of the test above, and what ``require_bound_tokens`` is for.

    The broker keeps the receipts back that show that this server is no deployed one.
    """
    for policy, expected in ((None, [1]), (Policy(require_bound_tokens=True), [])):
        with Fleet(tmp_path, 2, device_policy=policy) as fleet:
            Broker(fleet, fleet.network).hold(Data, by=SERVER)
            field = Field(fleet)
            here, there = fleet.devices
            captured = field.signed(token=b"0c4c5d5e-6ab0-4f5f-8a10-6d5d29c7c1f6")
            field.inject(captured, topic=f"SRUP/{there:x}")
            field.inject(captured, topic=f"SRUP/{here:x}")
            assert field.done == {here: expected, there: expected}
            assert fleet.errors(fleet.device) == ["PolicyError"] * (1 - len(expected))
            field.works()


def test_t3_a_partner_that_binds_its_tokens_cannot_be_talked_back(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        Broker(fleet, fleet.network).hold(Data, by=SERVER)
        field = Field(fleet)
        field.accepted(field.signed(token=b"opaque-1"))  # the control: before the device has heard a bound one
        field.works()  # and these are bound
        field.inject(field.signed(token=b"opaque-2"))
        field.refused("PolicyError")


def test_t3_a_server_of_ours_cannot_be_talked_back_once_it_has_let_a_device_in(field):
    field.inject(field.signed(token=b"opaque-1"))
    field.refused("PolicyError")


def test_t3_an_update_order_for_one_device_delivered_to_another(field):
    fleet = field.fleet
    here, other = fleet.devices
    order = fleet.server.update(other, URL, DIGEST)
    fleet.settle()
    assert order.result(0) is UpdateState.ACTIVATED  # the control
    fleet.fetcher.asked.clear()
    field.inject(field.heard(Initiate), field.heard(Activate))
    field.refused("PolicyError", "PolicyError")
    assert fleet.fetcher.asked == []
    assert not (fleet.tmp_path / f"{here:x}").exists()


def test_t3_a_message_on_a_topic_that_is_not_its_sender_s(field):
    fleet = field.fleet
    one, other = fleet.devices
    heard = []
    fleet.server.on_data("t")(lambda *arguments: heard.append(arguments[0]))
    token = bind(one, SERVER, fleet.clock() + 60, bytes(16))
    wire = encode(Data(sequence_id=field.unused_id(), sender_id=one, token=token, data_id="t", data=b""), key_of(one))
    # The other device hears it too; whoever wrote it is none of its servers.
    field.inject(wire, topic=f"SRUP/{other:x}")
    assert sorted(fleet.errors()) == ["PolicyError", "UnknownSenderError"]
    field.inject(wire, topic=f"SRUP/servers/{SERVER:x}/{other:x}")
    assert fleet.errors() == ["PolicyError"]
    assert heard == []
    field.inject(wire)
    assert heard == [one]  # the control
    field.works()


# T5: truncation and over-read.


def test_t5_every_prefix_of_a_genuine_message(field):
    wire = field.signed()
    field.inject(*(wire[:end] for end in range(len(wire))))
    field.refused(*["DecodeError"] * len(wire))
    field.accepted(field.signed())


def test_t5_every_wrong_length_field_and_every_type(field):
    wire = field.signed()
    start, _ = span(wire)
    attacks = [
        wire[:at] + length.to_bytes(2, "big") + wire[at + 2 :]
        for at in (18, start - 2)
        for length in (*range(200), 0x7FFF, 0x8000, 0xFFFF)
        if length != int.from_bytes(wire[at : at + 2], "big")
    ]
    attacks += [wire[:1] + bytes([kind]) + wire[2:] for kind in range(256) if kind != wire[1]]
    attacks += [bytes([version]) + wire[1:] for version in range(256) if version != 5]
    field.inject(*attacks)
    errors = field.fleet.errors(field.fleet.device)
    assert len(errors) == len(attacks)
    # A changed type or a shifted length may still be well-formed; then the signature does not fit.
    assert set(errors) == {"DecodeError", "SignatureError"}
    field.refused()
    field.accepted(field.signed())


@pytest.mark.parametrize(
    "junk",
    [bytes(65536), b"\xff" * 65536, b"\x05\x04" + b"\xff" * 65534, b"\x05" + bytes(70_000), bytes(1), b""],
    ids=["zeros", "ones", "lengths", "too-long", "one", "none"],
)
def test_t5_junk(field, junk):
    field.inject(junk)
    field.inject(junk, topic=f"SRUP/servers/{SERVER:x}/{field.target:x}")
    assert field.fleet.server.counts["DecodeError"] == 2  # on a device's topic both ends hear it
    field.refused("DecodeError")
    field.accepted(field.signed())


# T6: malleability.


def rsa_attacks(wire, key):
    """Signatures that a careless verifier takes for that of ``wire``."""
    private = plain(key)
    numbers = private.public_key().public_numbers()
    signature = signature_of(wire)
    value = int.from_bytes(signature, "big")
    assert pow(value + numbers.n, numbers.e, numbers.n) == pow(value, numbers.e, numbers.n)  # so it would have worked
    content = signed_bytes(wire)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
    attacks = {
        "a longer s + n": (value + numbers.n).to_bytes(257, "big"),
        "a zero in front": b"\0" + signature,
        "a zero behind": signature + b"\0",
        "a byte less": signature[:-1],
        "nothing": b"",
        "zero": bytes(256),
        "n": numbers.n.to_bytes(256, "big"),
        "PSS": private.sign(content, pss, hashes.SHA256()),
        "another digest": private.sign(content, padding.PKCS1v15(), hashes.SHA512()),
    }
    digest_info = bytes.fromhex("3031300d060960864801650304020105000420")
    digest = hashes.Hash(hashes.SHA256())
    digest.update(content)
    tail = digest_info + digest.finalize()
    blocks = {
        "rubbish behind": b"\0\1" + b"\xff" * 8 + b"\0" + tail + bytes(256 - 11 - len(tail)),
        "short padding": b"\0\1\xff\xff\0" + tail.rjust(251, b"\0"),
        "padding type 2": b"\0\2" + b"\xff" * (253 - len(tail)) + b"\0" + tail,
        "no NULL in the algorithm": b"\0\1"
        + b"\xff" * (255 - len(tail))
        + b"\0"
        + bytes.fromhex("302f300b0609608648016503040201" + "0420")
        + tail[-32:],
    }
    exponent = private.private_numbers().d
    for name, block in blocks.items():
        assert len(block) == 256, name
        attacks[name] = pow(int.from_bytes(block, "big"), exponent, numbers.n).to_bytes(256, "big")
    if value + numbers.n < 1 << 2048:
        attacks["s + n"] = (value + numbers.n).to_bytes(256, "big")
    return attacks


def test_t6_rsa_signatures_in_disguise(tmp_path):
    field = scheme_field(tmp_path, "rsa2048")
    with field.fleet:
        key = key_of(SERVER, "rsa2048")
        modulus = plain(key).public_key().public_numbers().n
        for _ in range(500):  # until s + n fits its bytes, if it ever does with this key
            wire = field.signed()
            if int.from_bytes(signature_of(wire), "big") + modulus < 1 << 2048:
                break
        attacks = rsa_attacks(wire, key)
        field.inject(*(with_signature(wire, signature) for signature in attacks.values()))
        field.inject(wire + b"\0", wire + signature_of(wire))
        field.refused(*["SignatureError"] * len(attacks), "DecodeError", "DecodeError")
        field.accepted(field.signed())
        # The control: a message with this token and a signature as it should be is taken.
        control = scheme_field(tmp_path / "control", "rsa2048")
        with control.fleet:
            control.accepted(control.signed(token=decode(wire).token))


def test_t6_ed25519_signatures_in_disguise(field):
    wire = field.signed()
    signature = signature_of(wire)
    s = int.from_bytes(signature[32:], "little")
    attacks = [
        signature[:32] + (s + CURVE_ORDER).to_bytes(32, "little"),
        signature + b"\0",
        signature[:-1],
        b"",
        bytes(64),
        (1).to_bytes(32, "little") + bytes(32),  # the neutral element as R, and s = 0
    ]
    assert (s + CURVE_ORDER) % CURVE_ORDER == s  # so a verifier that reduces would have taken it
    field.inject(*(with_signature(wire, attack) for attack in attacks), wire + b"\0")
    field.refused(*["SignatureError"] * len(attacks), "DecodeError")
    field.accepted(field.signed())


def test_t6_ecdsa_signatures_in_disguise(tmp_path):
    field = scheme_field(tmp_path, "p256")
    with field.fleet:
        wire = field.signed()
        r, s = decode_dss_signature(signature_of(wire))
        good = encode_dss_signature(r, s)
        assert good == signature_of(wire)
        attacks = [
            good + b"\0",
            good[:-1],
            b"\x30\x81" + good[1:],  # the same DER with a length that is not minimal
            encode_dss_signature(r + P256_ORDER, s),
            encode_dss_signature(r, s + P256_ORDER),
            encode_dss_signature(0, 0),
            r.to_bytes(32, "big") + s.to_bytes(32, "big"),  # the raw form
            b"",
        ]
        field.inject(*(with_signature(wire, attack) for attack in attacks))
        field.refused(*["SignatureError"] * len(attacks))
        # (r, n - s) is as good a signature as (r, s), here and for the reference: it must not make a second message.
        wire = field.signed()
        field.accepted(wire)
        r2, s2 = decode_dss_signature(signature_of(wire))
        twin = with_signature(wire, encode_dss_signature(r2, P256_ORDER - s2))
        field.inject(twin)
        field.refused("ReplayError")


# T7: algorithm confusion.


@pytest.mark.parametrize("scheme", ["rsa2048", "p256", "ed25519"])
def test_t7_the_scheme_is_that_of_the_registered_key(tmp_path, scheme):
    field = scheme_field(tmp_path, scheme)
    with field.fleet:
        others = [key_of(SERVER, other) for other in ("rsa2048", "p256", "ed25519") if other != scheme]
        wires = [field.signed(key=key) for key in others]
        for key, wire in zip(others, wires, strict=True):
            decode(wire).verify(key.public_key)  # the control: good signatures, where that key is registered
        field.inject(*wires)
        field.refused("SignatureError", "SignatureError")
        field.accepted(field.signed())


def weak_rsa(bits=2048, exponent=65537):
    key = rsa.generate_private_key(public_exponent=exponent, key_size=bits)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(("bits", "exponent"), [(1024, 65537), (2048, 3)])
def test_t7_a_weak_key_is_refused_when_it_is_registered(tmp_path, bits, exponent):
    pem = weak_rsa(bits, exponent)
    with pytest.raises(InvalidKeyError):
        PrivateKey.from_pem(pem)
    key = PrivateKey.from_pem(pem, minimum_rsa_bits=bits, minimum_rsa_exponent=exponent)
    public = key.public_key.to_pem()
    with pytest.raises(InvalidKeyError):
        PublicKey.from_pem(public)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / f"{0xD0:x}.pem").write_bytes(public)
    with pytest.raises(InvalidKeyError):
        KeyRing.load(tmp_path / "keys")
    with Fleet(tmp_path, 0) as fleet:  # the control: who lowers the bar has a device that joins
        fleet.ring.add(0xD0, PublicKey.from_pem(public, minimum_rsa_bits=bits, minimum_rsa_exponent=exponent))
        fleet.add(0xD0).engine.own_keys.current = key
        fleet.joined()


def test_t7_an_exponent_of_one_is_no_key_at_all():
    modulus = plain(key_of(SERVER, "rsa2048")).public_key().public_numbers().n

    def der(tag, content):
        size = len(content).to_bytes(2, "big")
        return bytes([tag, 0x82]) + size + content

    def pem(exponent):
        numbers = der(0x02, b"\0" + modulus.to_bytes(256, "big")) + bytes([0x02, len(exponent)]) + exponent
        body = der(0x30, bytes.fromhex("300d06092a864886f70d0101010500") + der(0x03, b"\0" + der(0x30, numbers)))
        return b"-----BEGIN PUBLIC KEY-----\n" + encodebytes(body) + b"-----END PUBLIC KEY-----\n"

    assert PublicKey.from_pem(pem(b"\1\0\1")) == PublicKey.from_pem(key_of(SERVER, "rsa2048").public_key.to_pem())
    for exponent in (b"\1", b"\3", b"\1\0\0"):
        with pytest.raises(InvalidKeyError):
            PublicKey.from_pem(pem(exponent))
    for curve in (ec.SECP384R1(), ec.SECP256K1()):
        other = ec.generate_private_key(curve).public_key()
        text = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(InvalidKeyError):
            PublicKey.from_pem(text)


# T8: thread killer.


class Poison(Exception):
    pass


def poison(*_, **__):
    raise Poison


@pytest.mark.parametrize("fatal", [Poison, SystemExit, RecursionError], ids=lambda error: error.__name__)
def test_t8_a_message_whose_handling_raises_in_the_application(field, fatal):
    fleet = field.fleet

    def raises(*_):
        raise fatal

    with pytest.raises(fatal):
        raises()  # the control: unfenced, this ends the thread that calls it
    fleet.device.on_action(3)(raises)
    fleet.server.on_data()(raises)
    future = fleet.server.action(field.target, 3)
    fleet.device.send("t", b"")
    fleet.settle()
    assert future.result(0) is Status.ACTION_FAIL
    assert (fleet.device.counts["faults"], fleet.server.counts["faults"]) == (1, 1)
    for agent in fleet.agents:
        agent.counts["faults"] = 0
    field.works()


def test_t8_a_message_whose_handling_raises_in_the_session(field, monkeypatch, caplog):
    """No such message is known; should one be found, it costs itself and nothing else."""
    device, session = field.fleet.device, field.fleet.device.debug.session
    receive = session.receive
    monkeypatch.setattr(
        session,
        "receive",
        lambda message, *rest, **how: (poison if len(message.token) > 99 else receive)(message, *rest, **how),
    )
    token = bind(SERVER, field.target, field.fleet.clock() + 60, bytes(16))
    field.inject(field.signed(token=token + b":" + b"x" * 99))
    assert device.counts["faults"] == 1
    assert "Poison" in caplog.text
    assert field.fleet.network._sessions[f"device-{field.target:x}"].unsettled == {}  # or it would come again
    device.counts["faults"] = 0
    field.refused()
    with monkeypatch.context() as unfenced:  # the control: without the fence the thread of the agent ends
        unfenced.setattr(device.engine.journal, "log_exceptions", lambda job, *arguments: job(*arguments))
        with pytest.raises(Poison):
            field.inject(field.signed(token=token + b":" + b"y" * 99))
    monkeypatch.undo()
    field.accepted(field.signed(token=token + b":" + b"x" * 99))  # the control: there was nothing wrong with it


def test_t8_refused_messages_whose_callback_raises(field):
    fleet = field.fleet
    fleet.device.on_refused(poison)
    field.inject(b"junk", b"junk", field.signed(key=PrivateKey.generate("ed25519")))
    assert fleet.device.counts["faults"] == 3
    assert fleet.device.counts["DecodeError"] == 2
    fleet.device.counts["faults"] = 0
    fleet.refusals.clear()
    field.works()


# T9: memory exhaustion. The floods, with their figures, are in test_attacks_floods.py.


def test_t9_strangers_and_forgers_leave_nothing_behind(field):
    """A stranger's join requests, and those that somebody else signs in the name of a device."""
    fleet, session = field.fleet, field.fleet.server.debug.session
    forger = PrivateKey.generate("ed25519")
    known = set(session.known.peers)

    def request(sender):
        token = bind(sender, SERVER, fleet.clock() + 60, fleet.randbytes(16))
        fields = {"sequence_id": field.unused_id(), "sender_id": sender, "token": token}
        return f"SRUP/servers/{SERVER:x}/{sender:x}", encode(JoinRequest(**fields), forger)

    for sender in [*range(0x1000, 0x1100), *[field.target] * 20]:
        topic, wire = request(sender)
        fleet.network.inject(topic, wire)
    fleet.settle()
    assert fleet.errors(fleet.server) == ["UnknownSenderError"] * 0x100 + ["SignatureError"] * 20
    assert set(session.known.peers) == known == set(fleet.server.debug.part(Members).known)
    assert [
        exchange for partner in session.known.peers.values() for exchange in partner.exchanges.values() if exchange.mine
    ] == []
    field.works()
    # The control: whoever is registered is remembered.
    fleet.ring.add(0x1000, forger.public_key)
    topic, wire = request(0x1000)
    field.inject(wire, topic=topic)
    assert set(session.known.peers) == known | {0x1000}


# T11: update substitution.


def hold(field, url=URL, digest=DIGEST):
    """An order whose file the target has fetched and is to activate."""
    order = field.fleet.server.update(field.target, url, digest, hold=True)
    field.fleet.settle()
    assert order.state is UpdateState.READY
    return order, field.fleet.tmp_path / f"{field.target:x}" / digest


@pytest.mark.parametrize("how", ["rewritten", "replaced", "linked", "gone"])
def test_t11_the_file_is_swapped_between_fetch_and_activation(field, how, tmp_path):
    fleet, activated = field.fleet, []
    fleet.device.on_activate(activated.append)
    order, path = hold(field)
    evil = tmp_path / "evil"
    evil.write_bytes(b"evil")
    match how:
        case "rewritten":
            path.write_bytes(b"evil")
        case "replaced":
            evil.replace(path)
        case "linked":
            path.unlink()
            path.symlink_to(evil)
        case "gone":
            path.unlink()
    order.activate()
    fleet.settle()
    with pytest.raises(UpdateError) as caught:
        order.result(0)
    assert caught.value.status == Status.ACTIVATE_FAIL
    assert activated == []
    fleet.device.counts["faults"] = 0
    field.works()
    order, path = hold(field)  # the control: left alone it is activated, and the swapped one was fetched anew
    order.activate()
    fleet.settle()
    assert order.result(0) is UpdateState.ACTIVATED
    assert activated == [path]
    assert path.read_bytes() == FIRMWARE


def test_t11_a_token_is_good_for_one_order(field):
    fleet = field.fleet
    activated = []
    fleet.device.on_activate(activated.append)
    other = URL + "/other"
    fleet.fetcher.contents = {URL: FIRMWARE, other: FIRMWARE}
    order, path = hold(field)
    token = decode(field.heard(Initiate)).token
    # Signed by the server even, as one that can be made to sign by an accomplice.
    field.inject(field.signed(Initiate, token=token, url=other, digest=DIGEST))
    assert fleet.errors(fleet.device) == ["PolicyError"]
    field.inject(field.signed(Initiate, token=token, url=URL, digest="0" * 64))
    field.refused("PolicyError")
    assert fleet.fetcher.asked == [URL]
    order.activate()
    fleet.settle()
    field.inject(field.heard(Activate))
    assert fleet.errors(fleet.device) == ["ReplayError"]
    field.inject(field.signed(Activate, token=token), field.signed(Activate, token=token, sequence_id=TOP - 9))
    assert activated == [path]  # once
    path.unlink()
    field.inject(field.signed(Initiate, sequence_id=TOP - 5, url=other, digest=DIGEST))
    assert fleet.fetcher.asked == [URL, other]  # the control: under a token of its own the other order is taken


def test_t11_an_activation_of_what_was_never_ordered(field):
    fleet, activated = field.fleet, []
    fleet.device.on_activate(activated.append)
    (fleet.tmp_path / f"{field.target:x}").mkdir()
    (fleet.tmp_path / f"{field.target:x}" / DIGEST).write_bytes(FIRMWARE)
    field.inject(field.signed(Activate))
    assert activated == []
    field.refused()
    assert fleet.device.counts["unexpected"] == 1
    order, _ = hold(field)
    order.activate()
    fleet.settle()
    assert len(activated) == 1  # the control


def drip(handler):
    """An answer that never ends: a byte now and then, until the client hangs up."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.001)


def flood(handler):
    """An answer that never ends, as fast as the client takes it."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(65536))


def boast(handler):
    """An answer that says how huge it will be."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**40))
    handler.end_headers()
    handler.wfile.write(bytes(1000))


def redirect(location):
    def page(handler):
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return page


def fetching_field(tmp_path, policy):
    fleet = Fleet(tmp_path, 0)
    fleet.fetcher = HttpFetcher(policy)
    fleet.add(0xD0)
    return Field(fleet)


def status_of(tmp_path, url, policy):
    """Order an update from a real host and return what the device answers."""
    field = fetching_field(tmp_path, policy)
    with field.fleet as fleet:
        order = fleet.server.update(field.target, url, DIGEST)
        fleet.settle()
        try:
            assert order.result(0) is UpdateState.ACTIVATED
        except UpdateError as error:
            assert not (tmp_path / f"{field.target:x}" / DIGEST).exists()
            field.works()
            return error.status
        assert (tmp_path / f"{field.target:x}" / "current").read_bytes() == FIRMWARE
        return Status.UPDATE_SUCCESS


OPEN = {"allow_http": True, "attempts": 1, "max_seconds": 20.0}


@pytest.mark.parametrize(
    ("page", "limits", "status"),
    [
        (flood, {"max_bytes": 2**20}, Status.UPDATE_FAIL_FILE),
        (boast, {"max_bytes": 2**30}, Status.UPDATE_FAIL_FILE),
        (drip, {"max_seconds": 0.2}, Status.UPDATE_FAIL_SERVER),
        (b"something else", {}, Status.UPDATE_FAIL_DIGEST),
        (FIRMWARE, {"max_bytes": len(FIRMWARE) - 1}, Status.UPDATE_FAIL_FILE),
    ],
    ids=["flood", "boast", "drip", "substitute", "a byte too long"],
)
def test_t11_downloads_that_are_endless_huge_or_wrong(tmp_path, page, limits, status):
    with FirmwareHost({"/attack": page, "/image": FIRMWARE}).running() as host:
        policy = FetchPolicy(**OPEN | limits)
        assert status_of(tmp_path / "a", f"{host.url}/attack", policy) is status
        # The control: the same device with the same host and the right file; the cap itself is taken back for the last.
        limits = (
            {"max_bytes": len(FIRMWARE)} if page is FIRMWARE else {k: v for k, v in limits.items() if k == "max_bytes"}
        )
        assert status_of(tmp_path / "b", f"{host.url}/image", FetchPolicy(**OPEN | limits)) is Status.UPDATE_SUCCESS


def test_t11_redirects_to_files_and_to_internal_hosts(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(FIRMWARE)  # with the right digest even
    pages = {"/image": FIRMWARE}
    with FirmwareHost(pages).running() as host, FirmwareHost(dict(pages)).running() as inner:
        internal = inner.url.replace("127.0.0.1", "localhost") + "/image"
        pages |= {
            "/file": redirect(secret.as_uri()),
            "/internal": redirect(internal),
            "/loop": redirect("/loop"),
            "/moved": redirect("/image"),
        }
        strict = FetchPolicy(**OPEN)
        listed = FetchPolicy(**OPEN, allowed_hosts=frozenset({"127.0.0.1", "localhost"}))
        for number, name in enumerate(("file", "internal", "loop")):
            assert status_of(tmp_path / f"{number}", f"{host.url}/{name}", strict) is Status.UPDATE_FAIL_HTTP_ERROR
        assert inner.asked == []
        assert status_of(tmp_path / "same", f"{host.url}/moved", strict) is Status.UPDATE_SUCCESS
        assert status_of(tmp_path / "listed", f"{host.url}/internal", listed) is Status.UPDATE_SUCCESS
        assert inner.asked == ["/image"]


def test_t11_orders_that_name_files_plain_http_or_other_hosts(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(FIRMWARE)
    with FirmwareHost({"/image": FIRMWARE}).running() as host:
        url = f"{host.url}/image"
        elsewhere = FetchPolicy(**OPEN, allowed_hosts=frozenset({"firmware.example"}))
        with pytest.raises(EncodeError, match="malformed"):  # no server of ours gives such an order
            status_of(tmp_path / "a", secret.as_uri(), FetchPolicy(**OPEN))
        field = fetching_field(tmp_path / "e", FetchPolicy(**OPEN))
        with field.fleet:
            field.inject(field.signed(Initiate, url=secret.as_uri(), digest=DIGEST))
            answer = decode(field.heard(Response)).verify(key_of(field.target).public_key)
            assert answer.status == Status.UPDATE_FAIL_SERVER
        assert status_of(tmp_path / "b", url, FetchPolicy()) is Status.UPDATE_FAIL_SERVER
        assert status_of(tmp_path / "c", url, elsewhere) is Status.UPDATE_FAIL_SERVER
        assert host.asked == []
        assert status_of(tmp_path / "d", url, FetchPolicy(**OPEN)) is Status.UPDATE_SUCCESS


def test_t11_a_host_whose_certificate_is_not_trusted(tmp_path):
    cert_file, key_file = host_files(tmp_path)
    with FirmwareHost({"/image": FIRMWARE}, (cert_file, key_file)).running() as host:
        url = f"{host.url}/image"
        assert status_of(tmp_path / "a", url, FetchPolicy(attempts=1)) is Status.UPDATE_FAIL_SERVER
        assert host.asked == []
        assert status_of(tmp_path / "b", url, FetchPolicy(ca_file=cert_file)) is Status.UPDATE_SUCCESS


# T10: hijack by join command.

RIVAL = 0x5F


@pytest.fixture
def rival(field):
    """Another server, whose key the target knows."""
    fleet = field.fleet
    server = Server(
        RIVAL,
        key_of(RIVAL),
        devices=fleet.ring,
        broker=MemoryTransport(fleet.network, "rival"),
        clock=fleet.clock,
        entropy=fleet.randbytes,
    )
    fleet.device.engine.keys.add(RIVAL, key_of(RIVAL).public_key)
    fleet.device.debug.session.servers |= {RIVAL}
    server.start(threads=False)
    yield server
    server.stop()


def run(fleet, *others):
    """Let everything happen, the other agents included."""
    for _ in range(20):
        fleet.settle()
        for agent in others:
            agent.step()


def test_t10_a_join_command_of_a_server_that_is_no_commander(field, rival):
    fleet, device = field.fleet, field.fleet.device
    answer = rival.command_join(field.target)
    run(fleet, rival)
    assert answer.result(0) is Status.JOIN_REFUSED
    assert (device.server, rival.members, field.target in fleet.server.members) == (SERVER, frozenset(), True)
    # The control: the same command takes the device when its policy names the sender.
    device.debug.session.commanders = frozenset([RIVAL])
    answer = rival.command_join(field.target)
    run(fleet, rival)
    assert answer.result(0) is Status.JOIN_SUCCESS
    assert (device.server, rival.members, field.target in fleet.server.members) == (RIVAL, {field.target}, False)


def test_t10_a_join_command_of_another_device(field):
    """A registered identity that is none of the device's servers is not even heard."""
    other = list(field.fleet.devices)[1]
    token = bind(other, field.target, field.fleet.clock() + 60, bytes(16))
    fields = {"sequence_id": 1, "sender_id": other, "token": token, "device_id": field.target}
    field.inject(encode(JoinCommand(**fields), key_of(other)))
    field.refused("UnknownSenderError")
    # The control: it takes the device when that is told that this one is a server and may command it.
    device = field.fleet.device
    device.engine.keys.add(other, key_of(other).public_key)
    device.debug.session.servers |= {other}
    device.debug.session.commanders = frozenset([other])
    field.inject(encode(JoinCommand(**fields), key_of(other)))
    assert device.server == other


# T12: rollback.


def test_t12_an_old_and_correctly_signed_order_brings_no_old_firmware_back(field):
    fleet, device = field.fleet, field.fleet.device
    device.debug.session.version_floor = 7
    for version in (None, 0, 6):
        order = fleet.server.update(field.target, URL, DIGEST, version=version)
        fleet.settle()
        with pytest.raises(UpdateError, match="UPDATE_FAIL_FILE"):
            order.result(0)
    assert not (device.firmware / DIGEST).exists()
    order = fleet.server.update(field.target, URL, DIGEST, version=9)  # the control
    fleet.settle()
    assert order.result(0) is UpdateState.ACTIVATED
    assert device.version_floor == 9  # what is active is the new floor
    order = fleet.server.update(field.target, URL, DIGEST, version=8)
    fleet.settle()
    with pytest.raises(UpdateError, match="UPDATE_FAIL_FILE"):
        order.result(0)
    field.works()


def test_t12_an_activation_that_was_held_back_brings_no_old_firmware_back(field):
    """Two orders are ready; the newer is activated, and then comes the word to activate the older."""
    fleet, device = field.fleet, field.fleet.device
    device.debug.session.version_floor = 1
    activated = []
    device.on_activate(activated.append)
    older = fleet.server.update(field.target, URL, DIGEST, version=2, hold=True)
    fleet.settle()
    newer = fleet.server.update(field.target, URL, DIGEST, version=9, hold=True)
    fleet.settle()
    newer.activate()
    fleet.settle()
    assert (newer.result(0), device.version_floor, len(activated)) == (UpdateState.ACTIVATED, 9, 1)
    older.activate()
    fleet.settle()
    with pytest.raises(UpdateError, match="ACTIVATE_FAIL"):
        older.result(0)
    assert (device.version_floor, len(activated)) == (9, 1)
    # The control: without the newer one it would have been activated.
    device.debug.session.version_floor = 1
    older = fleet.server.update(field.target, URL, DIGEST, version=2)
    fleet.settle()
    assert (older.result(0), len(activated)) == (UpdateState.ACTIVATED, 2)


def test_t12_a_version_cannot_be_written_into_a_signed_token(field):
    field.fleet.device.debug.session.version_floor = 7
    token = bind(SERVER, field.target, field.fleet.clock() + 60, bytes(16), 6)
    order = field.signed(Initiate, token=token, url=URL, digest=DIGEST)
    raised = order.replace(b":v6", b":v8")
    assert raised != order
    field.inject(raised)
    field.refused("SignatureError")


# T13: envelope abuse.


def observing(tmp_path, scheme="rsa2048"):
    """A device that has joined and that tells which values it was asked to compare, and with what."""
    field = scheme_field(tmp_path, scheme)
    read = []
    field.fleet.device.on_observation(lambda identity: read.append(identity))
    return field, read


@pytest.mark.parametrize("scheme", ["rsa2048", "ed25519"])
def test_t13_malformed_sealed_values(tmp_path, scheme):
    """Nothing is opened that is not signed, and what does not open gives one answer, whatever is wrong with it."""
    field, read = observing(tmp_path, scheme)
    with field.fleet:
        public = key_of(field.target, scheme).public_key
        good = seal(b"0123456789abcdef" * 2, public)
        field.inject(field.signed(ObservationRequest, joining_device_id=3, sealed=good))
        assert read == [3]  # the control: this one opens
        read.clear()
        other = PrivateKey.generate(scheme).public_key
        bad = [
            *(good[:size] for size in (0, 1, 4, 20, len(good) - 1)),
            *(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :] for place in range(8)),
            good + b"\0",
            b"\xff" * len(good),
            b"\xff\xff\xff\x7f" + good[4:],
            seal(b"0123456789abcdef" * 2, other),
            seal(b"", public),
        ]
        answers = set()
        for sealed in bad:
            token = bind(SERVER, field.target, field.fleet.clock() + 60, field.fleet.randbytes(16))
            field.inject(field.signed(ObservationRequest, token=token, joining_device_id=3, sealed=sealed))
            answers.add(decode(field.heard(Response)).verify(key_of(field.target, scheme).public_key).status)
        assert (read, answers) == ([], {Status.OBSERVED_JOIN_FAIL})
        forger = PrivateKey.generate(scheme)
        field.fleet.errors()
        before = len(field.fleet.network.log)
        field.inject(field.signed(ObservationRequest, key=forger, joining_device_id=3, sealed=bad[0]))
        assert field.fleet.errors(field.fleet.device) == ["SignatureError"]
        assert len(field.fleet.network.log) == before + 1  # no answer


# T17: log injection and secrets in logs.

EVIL = "x\r\n\x1b]0;pwned\x07CRITICAL root: all is well\u202e\u2028"


def test_t17_what_comes_from_the_network_cannot_write_log_lines(field, caplog):
    caplog.set_level("DEBUG")
    fleet = field.fleet
    secret = seal(b"0123456789abcdef" * 2, key_of(field.target).public_key)
    fleet.device.send(EVIL, b"value")  # nobody takes it
    fleet.server.on_data(EVIL[:9], kind="int32")(lambda *_: None)
    fleet.device.send(EVIL[:9], EVIL)  # not a number
    field.inject(field.signed(Initiate, url=f"https://{EVIL}/", digest=EVIL))
    field.inject(field.signed(ObservationRequest, joining_device_id=3, sealed=secret))
    field.inject(field.signed(token=EVIL.encode()))
    fleet.network.inject(f"SRUP/{EVIL}", field.signed())

    def host_says(*_):
        raise UpdateError(Status.UPDATE_FAIL_HTTP_ERROR, EVIL)

    fleet.fetcher.fetch = host_says
    order = fleet.server.update(field.target, "https://nowhere.example/", DIGEST)
    fleet.settle()
    with pytest.raises(UpdateError) as caught:
        order.result(0)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(caplog.records) > 5
    for line in (record.getMessage() for record in caplog.records):
        assert line.isascii()
        assert line.isprintable()
        assert secret.hex() not in line
        assert "0123456789abcdef0123456789abcdef" not in line
    # The control: the same records without what escapes their texts would be more than one line.
    unguarded = [str(record.msg).replace("%a", "%s") % record.args for record in caplog.records]
    assert sum(len(text.splitlines()) > 1 for text in unguarded) == 2  # the name of the value, and the host's word


def test_t17_keys_and_join_values_have_no_printable_form(caplog, tmp_path):
    caplog.set_level("DEBUG")
    fleet = Fleet(tmp_path, 0, server_options={"admission": "human"})
    device = fleet.add(0xD0, join="human")
    shown, pending = [], []
    device.on_join_value(shown.append)
    fleet.server.on_moderation(pending.append)
    with fleet.start():
        fleet.settle()
        pending[0].accept()
        fleet.settle()
        key = key_of(0xD0)
        texts = [repr(one) for one in (key, shown[0], pending[0], device, fleet.server)]
        texts += [str(one) for one in (key, shown[0], pending[0])]
        texts += [record.getMessage() for record in caplog.records]
        secrets = [shown[0].text, shown[0].groups, shown[0].words, key.to_pem().decode().splitlines()[1]]
        assert fleet.all_joined()
        assert not [text for text in texts for secret in secrets if secret in text]


# T18: broker impersonation and topic theft. What the broker itself forbids is in test_keyex_broker.py.


def test_t18_a_broker_of_the_attacker_s_gets_nothing_done_by_what_it_has_heard(field):
    """Everything that was ever said goes to everybody once more, on every topic."""
    fleet = field.fleet
    for identity, device in fleet.devices.items():
        futures = [fleet.server.action(identity, 1), device.send("t", b"1")]
        order = fleet.server.update(identity, URL, DIGEST)
        fleet.settle()
        assert futures[0].result(0) is Status.ACTION_SUCCESS
        assert order.result(0) is UpdateState.ACTIVATED
    assert list(field.done.values()) == [[1], [1]]  # the control: each in its own place, it worked
    for done in field.done.values():
        done.clear()
    fleet.fetcher.asked.clear()
    heard = []
    fleet.server.on_data("t")(lambda *arguments: heard.append(arguments))
    members = fleet.server.members
    wires = [wire for _, wire in fleet.network.log]
    topics = [f"SRUP/{one:x}" for one in fleet.devices] + [f"SRUP/servers/{SERVER:x}/{one:x}" for one in fleet.devices]
    for topic in topics:
        for wire in wires:
            fleet.network.inject(topic, wire)
    fleet.settle()
    assert set(fleet.errors()) == {"ReplayError", "PolicyError", "UnknownSenderError"}
    assert list(field.done.values()) == [[], []]
    assert (fleet.fetcher.asked, heard, fleet.server.members) == ([], [], members)
    field.works()


def test_t18_a_device_on_the_topic_of_another_is_neither_that_device_nor_the_server(field):
    """The broker lets it write anywhere; its key is its own."""
    fleet = field.fleet
    victim, thief = fleet.devices
    own = key_of(thief)
    fleet.server.on_data("t")(lambda *arguments: field.done[victim].append(1))

    def wires(sender, key):
        token = bind(sender, SERVER, fleet.clock() + 60, fleet.randbytes(16))
        header = {"sequence_id": field.unused_id(), "sender_id": sender, "token": token}
        return encode(Data(**header, data_id="t", data=b"1"), key)

    field.inject(field.signed(key=own))  # as the server
    field.refused("SignatureError")
    field.inject(wires(victim, own))  # as the victim
    field.refused("SignatureError", by=fleet.server)
    field.inject(wires(thief, own))  # as itself, in the victim's place
    field.refused("PolicyError", by=fleet.server)
    field.inject(wires(victim, key_of(victim)))  # the control: there the victim is heard
    assert field.done[victim][-1] == 1


def test_every_attack_of_the_table_is_where_the_list_above_says():
    """T1 to T41, each in the files that are named, and each of those files is named."""
    folder = Path(__file__).parent
    named = {}
    for line in re.sub(r"\n {9,}", " ", __doc__).splitlines():
        if found := re.match(r"T(\d+) ", line):
            files = re.findall(r"test_\w+\.py", line)
            named[int(found[1])] = {*files, *(["test_attacks.py"] if " here" in line else [])}
    assert list(named) == list(range(1, 42))
    for number, files in named.items():
        written = {path.name for path in folder.glob("test_*.py") if f"def test_t{number}_" in path.read_text()}
        written -= {"test_interop.py"}  # which shows what still works against deployed peers
        assert written == files, f"T{number}: the list at the top of this file is to name {sorted(written)}"
