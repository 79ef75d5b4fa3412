"""Deployed peers: what they send, take, drop and get wrong, by docs/protocol/deployed-peers.md.

Nothing of the package is used: bytes are packed with struct, signed and sealed with the cryptography library, so that a
peer checks the codec too. It is a state with steps: every step returns the messages to publish, as pairs of a topic and
bytes, and ``filters`` says what the peer wants to hear. :class:`Link` puts a peer on any transport.

A peer is as unkind as the real one: it calls ``handlers`` that its application has not set, and is dead for good then.
"""

import hashlib
import os
import struct
import threading
import urllib.error
import urllib.request
from typing import NamedTuple
from uuid import uuid4

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

# Bytes (docs/protocol/wire-format.md).

NUMBERS = {"u8": "<B", "u32": "<I", "u64": "<Q"}
TYPES = {
    "Initiate": (0x01, {"url": "textz", "digest": "textz"}),
    "Response": (0x02, {"status": "u8"}),
    "Activate": (0x03, {}),
    "Action": (0x04, {"action_id": "u8"}),
    "Data": (0x05, {"data_id": "text", "data": "bytes"}),
    "IdRequest": (0x06, {}),
    "JoinRequest": (0x09, {}),
    "JoinCommand": (0x0A, {"device_id": "u64"}),
    "HumanJoinRequest": (0x0B, {}),
    "HumanJoinResponse": (0x0C, {"sealed": "bytes"}),
    "ObservedJoinRequest": (0x0D, {"observer_id": "u64"}),
    "ObservedJoinResponse": (0x0E, {"sealed": "bytes"}),
    "ObservationRequest": (0x0F, {"joining_device_id": "u64", "sealed": "bytes"}),
    "ResignRequest": (0x10, {}),
    "TerminateCommand": (0x11, {}),
    "DeregisterRequest": (0x12, {}),
    "DeregisterCommand": (0x13, {}),
    "SyndicationInit": (0x21, {"url": "textz", "sealed": "bytes"}),
    "SyndicatedAction": (0x24, {"action_id": "u8", "target_id": "u64"}),
    "SyndicatedData": (0x25, {"data_id": "text", "data": "bytes", "source_id": "u64"}),
    "SyndicatedIdRequest": (0x26, {"target_id": "u64"}),
    "SyndicatedDeviceCount": (0x27, {"count": "u32"}),
    "SyndicatedDeviceList": (0x28, {"device_sequence": "u32", "device_id": "u64"}),
    "SyndicationRequest": (0x29, {"sealed": "bytes"}),
    "SyndicatedEndRequest": (0x2E, {}),
    "SyndicatedTerminate": (0x2F, {}),
}
NAMES = {number: name for name, (number, _) in TYPES.items()}
FORMS = {
    **dict(zip(("int8", "int16", "int32", "int64"), ("<b", "<h", "<i", "<q"), strict=True)),
    **dict(zip(("uint8", "uint16", "uint32", "uint64"), ("<B", "<H", "<I", "<Q"), strict=True)),
    "float": "<f",
    "double": "<d",
}
VALUE_SIZE = 32
"""What a peer reads from an envelope, always."""


class Frame(NamedTuple):
    """A message as it stands on the wire, taken apart; nothing is checked."""

    name: str
    sequence_id: int
    sender: int
    token: bytes
    signature: bytes
    signed: bytes
    body: bytes


class Heard(NamedTuple):
    """A message that a peer took."""

    name: str
    sequence_id: int
    sender: int
    token: str
    fields: dict


def lv(content):
    return struct.pack(">H", len(content)) + content


def take_lv(data, at):
    """The LV at this place, and where it ends."""
    (size,) = struct.unpack_from(">H", data, at)
    return data[at + 2 : at + 2 + size], at + 2 + size


def pack(key, name, sequence_id, sender, token, **fields):
    """A signed message; ``token`` is bytes."""
    number, layout = TYPES[name]
    assert fields.keys() == layout.keys()
    body = b""
    for field, kind in layout.items():
        value = fields[field]
        if kind in NUMBERS:
            body += struct.pack(NUMBERS[kind], value)
        else:
            body += lv(value if kind == "bytes" else value.encode() + b"\0" * (kind == "textz"))
    head = struct.pack("<BBQQ", 5, number, sequence_id, sender) + lv(token)
    return head + lv(key.sign(head + body, PKCS1v15(), SHA256())) + body


def split(wire):
    """The :class:`Frame` of a message."""
    version, number, sequence_id, sender = struct.unpack_from("<BBQQ", wire)
    assert version == 5
    token, end = take_lv(wire, 18)
    signature, body = take_lv(wire, end)
    return Frame(NAMES[number], sequence_id, sender, token, signature, wire[:end] + wire[body:], wire[body:])


def read(frame):
    """The :class:`Heard` of a frame; UnicodeDecodeError where a peer wants text and there is none.

    What follows the last field is ignored.
    """
    fields, at = {}, 0
    for field, kind in TYPES[frame.name][1].items():
        if kind in NUMBERS:
            (fields[field],) = struct.unpack_from(NUMBERS[kind], frame.body, at)
            at += struct.calcsize(NUMBERS[kind])
        else:
            value, at = take_lv(frame.body, at)
            fields[field] = value if kind == "bytes" else value.decode().removesuffix("\0" * (kind == "textz"))
    return Heard(frame.name, frame.sequence_id, frame.sender, frame.token.decode(), fields)


def to_data(value, form=None):
    """A value as the bytes of a Data message; without a form as peers written in Python do it.

    They cannot send bytes, nor integers beyond int32: TypeError, OverflowError.
    """
    if isinstance(value, bytes):
        raise TypeError("bytes cannot be sent")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise OverflowError("an int is an int32")
    form = form or {str: "text", int: "int32", float: "double"}[type(value)]
    return value.encode() if form == "text" else struct.pack(FORMS[form], value)


def from_data(data, form):
    return {"bytes": bytes, "text": bytes.decode}[form](data) if form not in FORMS else _only(FORMS[form], data)


def _only(layout, data):
    (value,) = struct.unpack(layout, data)
    return value


def seal(key, plaintext):
    """An OpenSSL seal envelope."""
    secret, iv = os.urandom(32), os.urandom(16)
    padder, encryptor = PKCS7(128).padder(), Cipher(AES(secret), CBC(iv)).encryptor()
    ciphertext = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    wrapped = key.encrypt(secret, PKCS1v15())
    sizes = struct.pack("<ii", len(ciphertext), len(plaintext))
    return struct.pack("<i", len(wrapped)) + wrapped + iv + sizes + ciphertext


def unseal(key, sealed):
    """The first 32 bytes of what an envelope holds: a peer reads so many, whether or not they are there."""
    wrapped_size = _only("<i", sealed[:4])
    wrapped, rest = sealed[4 : 4 + wrapped_size], sealed[4 + wrapped_size :]
    iv, (size, plain_size), ciphertext = rest[:16], struct.unpack_from("<ii", rest, 16), rest[24:]
    assert len(ciphertext) == size
    decryptor, unpadder = Cipher(AES(key.decrypt(wrapped, PKCS1v15())), CBC(iv)).decryptor(), PKCS7(128).unpadder()
    plaintext = unpadder.update(decryptor.update(ciphertext) + decryptor.finalize()) + unpadder.finalize()
    assert len(plaintext) == plain_size
    assert plain_size >= VALUE_SIZE, f"a peer would read {VALUE_SIZE - plain_size} bytes beyond the value"
    return plaintext[:VALUE_SIZE].decode()


def download(url):
    """What is at a URL, or the status that a peer answers: a peer says FE for an HTTP error."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as reply:
            return reply.read()
    except urllib.error.HTTPError as error:
        error.close()
        return 0xFE
    except OSError:
        return 0xFD


# Peers (docs/protocol/flows.md).


class OldPeer:
    """What old devices and servers have in common. ``key`` is PEM, ``keys`` the PEM of every known partner.

    ``heard`` is what it took, ``dropped`` pairs of a frame and the reason why it did not. ``handlers`` are those that
    its application has set. When one that it has not set is called, or an empty message comes, the network thread ends:
    then the peer is ``dead``, hears nothing and sends nothing.
    """

    takes = {}
    """Which method takes which message."""
    calls = {"Action": "on_action", "Data": "on_data"}
    """Which handler of the application a message is given to."""
    handlers = frozenset({"on_action"})

    def __init__(self, identity, key, keys):
        self.identity = identity
        self.key = load_pem_private_key(key, None)
        self.keys = {partner: load_pem_public_key(pem) for partner, pem in keys.items()}
        self.filters = set()
        self.last = {}  # by partner, one counter for both directions
        self.heard = []
        self.dropped = []
        self.dead = False

    def names(self):
        return [message.name for message in self.heard]

    def of(self, name):
        """The messages of this name that were taken."""
        return [message for message in self.heard if message.name == name]

    def hear(self, topic, wire):
        """Take a message, or drop it; return the answers."""
        self.dead = self.dead or not wire
        if self.dead:
            return []
        frame = split(wire)
        if frame.sender == self.identity:
            return []  # shared topics: one hears oneself
        if frame.sender not in self.keys:
            self.dropped.append((frame, "unknown sender"))
            return []
        if frame.sequence_id <= self.last.get(frame.sender, 0):
            self.dropped.append((frame, "sequence id"))
            return []
        self.last[frame.sender] = frame.sequence_id  # before the signature is looked at: T1
        try:
            self.keys[frame.sender].verify(frame.signature, frame.signed, PKCS1v15(), SHA256())
        except InvalidSignature:
            self.dropped.append((frame, "signature"))
            return []
        message = read(frame)
        self.heard.append(message)
        called = self.called_for(message)
        if called is not None and called not in self.handlers:
            self.dead = True
            return []
        return getattr(self, self.takes.get(message.name, "ignore"))(message)

    def called_for(self, message):
        """The handler of the application that is called for a message, None if none is."""
        return self.calls.get(message.name)

    def ignore(self, message):
        return []

    def reconnected(self):
        """The link is back: MQTT sessions are clean, so what was sent meanwhile is lost."""

    def send(self, partner, name, token=None, **fields):
        """A message to a partner; without a token that of a new exchange. OverflowError when no number is left."""
        if self.last.get(partner, 0) == 2**64 - 1:
            raise OverflowError("the sequence id is too big")
        self.last[partner] = self.last.get(partner, 0) + 1
        token = str(uuid4()) if token is None else token
        wire = pack(self.key, name, self.last[partner], self.identity, token.encode(), **fields)
        return [(self.topic(partner, name), wire)]

    def topic(self, partner, name):
        raise NotImplementedError


class OldDevice(OldPeer):
    """An old device. It obeys its server, joined or not; ``see`` gives the value that a joining device shows."""

    takes = {
        "Response": "answered",
        "HumanJoinResponse": "show",
        "ObservedJoinResponse": "show",
        "ObservationRequest": "observe",
        "JoinCommand": "come",
        "Initiate": "fetch",
        "Activate": "activate",
        "IdRequest": "identify",
        "TerminateCommand": "leave",
        "DeregisterCommand": "deregistered",
    }
    joins = ("JoinRequest", "HumanJoinRequest", "ObservedJoinRequest")

    def __init__(self, identity, key, server, server_key, *, download=download, see=None, text="an old device"):
        super().__init__(identity, key, {server: server_key})
        self.filters = {f"SRUP/{identity:x}"}
        self.server = server
        self.download = download
        self.see = see
        self.text = text
        self.joined = False
        self.join_status = None
        self.shown = None
        self.fetched = {}  # contents by token
        self.activated = []
        self._asked = {}  # tokens of open requests

    def topic(self, partner, name):
        return f"SRUP/servers/{partner:x}/{self.identity:x}" if name in self.joins else f"SRUP/{self.identity:x}"

    # What it is told to do.

    def join(self, name="JoinRequest", **fields):
        return self._ask(name, "join_answered", **fields)

    def human_join(self):
        return self.join("HumanJoinRequest")

    def observed_join(self, observer):
        return self.join("ObservedJoinRequest", observer_id=observer)

    def resign(self):
        return self._ask("ResignRequest", "resign_answered")

    def deregister(self):
        return self._ask("DeregisterRequest", "deregister_answered")

    def action(self, action_id):
        return self.send(self.server, "Action", action_id=action_id)

    def data(self, data_id, value, form=None):
        return self.send(self.server, "Data", data_id=data_id, data=to_data(value, form))

    def _ask(self, name, answered, **fields):
        token = str(uuid4())
        self._asked[token] = answered
        return self.send(self.server, name, token, **fields)

    # What it takes.

    def answered(self, message):
        answered = self._asked.pop(message.token, None)
        if answered is not None:
            getattr(self, answered)(message.fields["status"])
        return []

    def join_answered(self, status):
        self.join_status, self.joined = status, status == 0x50

    def resign_answered(self, status):
        self.joined = self.joined and status != 0x70

    def deregister_answered(self, status):
        if status == 0x80:
            self.deregistered(None)

    def show(self, message):
        """The value to show; the answer to the join comes under this message's token."""
        self.shown = unseal(self.key, message.fields["sealed"])
        self._asked[message.token] = "join_answered"
        return []

    def observe(self, message):
        if not self.obeys(message):
            return []
        try:
            same = self.see(message.fields["joining_device_id"]) == unseal(self.key, message.fields["sealed"])
            status = 0x60 if same else 0x6E
        except OSError:
            status = 0x6F
        return self.send(message.sender, "Response", message.token, status=status)

    def obeys(self, message):
        return message.sender == self.server

    def come(self, message):
        """Take whoever says so for the server (T10); an application that has a handler may join."""
        self.server = message.sender
        return self.join() if "on_join_command" in self.handlers else []

    def fetch(self, message):
        if not self.obeys(message):
            return []
        content = self.download(message.fields["url"])
        if isinstance(content, bytes):
            right = hashlib.sha256(content).hexdigest() == message.fields["digest"]
            status = 0x00 if right else 0xFF
            if right:
                self.fetched[message.token] = content
        else:
            status = content
        return self.send(message.sender, "Response", message.token, status=status)

    def activate(self, message):
        """Activate what was fetched under this token; no answer."""
        if self.obeys(message) and message.token in self.fetched:
            self.activated.append(self.fetched.pop(message.token))
        return []

    def identify(self, message):
        if not self.obeys(message):
            return []
        return self.send(message.sender, "Data", data_id="IDENTIFICATION_RESPONSE", data=self.text.encode())

    def leave(self, message):
        self.joined = False
        return []

    def deregistered(self, message):
        """The key goes too: whoever wants this device must register anew."""
        self.joined = False
        self.keys.clear()
        return []


class OldServer(OldPeer):
    """An old server. It lets everybody in, or answers ``join_status``, and activates as soon as it may.

    ``entries`` is its list of devices, one for each join. It hears who wants to leave, and does nothing.
    """

    takes = {
        "JoinRequest": "simple_join",
        "HumanJoinRequest": "moderated_join",
        "ObservedJoinRequest": "moderated_join",
        "Response": "answered",
    }
    dies_of = {0x50: "on_join_succeed", 0x5E: "on_join_refused", 0x5F: "on_join_failed"}
    """Answers to joins, for which only devices have handlers."""

    def __init__(self, identity, key, device_keys):
        super().__init__(identity, key, device_keys)
        self.filters = {f"SRUP/servers/{identity:x}/#"}
        self.join_status = 0x50
        self.entries = []
        self.values = {}  # token and value of each moderated join, by device
        self._updates = set()

    @property
    def members(self):
        return set(self.entries)

    def topic(self, partner, name):
        return f"SRUP/{partner:x}"

    def called_for(self, message):
        if message.name == "Response" and message.fields["status"] in self.dies_of:
            return self.dies_of[message.fields["status"]]
        return super().called_for(message)

    def reconnected(self):
        """It hears of a device again at its next join."""
        self.filters = {f"SRUP/servers/{self.identity:x}/#"}

    # What it is told to do.

    def action(self, device, action_id):
        return self.send(device, "Action", action_id=action_id)

    def data(self, device, data_id, value, form=None):
        return self.send(device, "Data", data_id=data_id, data=to_data(value, form))

    def identify(self, device):
        return self.send(device, "IdRequest")

    def update(self, device, url, digest):
        token = str(uuid4())
        self._updates.add(token)
        return self.send(device, "Initiate", token, url=url, digest=digest)

    def deregister(self, device):
        self.entries = [entry for entry in self.entries if entry != device]
        self.filters.discard(f"SRUP/{device:x}/#")
        sends = self.send(device, "DeregisterCommand")
        del self.keys[device]
        return sends

    def command_join(self, device):
        """Send for a device; not for one that is listed more than once."""
        return self.send(device, "JoinCommand", device_id=device) if self.entries.count(device) < 2 else []

    def decide(self, device, status):
        """The operator has compared, or gave up."""
        token, _ = self.values.pop(device)
        return self._answer_join(device, token, status)

    # What it takes.

    def simple_join(self, message):
        return self._answer_join(message.sender, message.token, self.join_status)

    def moderated_join(self, message):
        """Seal a fresh value to the device; the observer of an observed join is never asked."""
        value, token = uuid4().hex, str(uuid4())
        self.values[message.sender] = token, value
        name = message.name.replace("Request", "Response")
        return self.send(message.sender, name, token, sealed=seal(self.keys[message.sender], value.encode()))

    def answered(self, message):
        """An update is ready to be activated; other answers change nothing."""
        if message.fields["status"] == 0x00 and message.token in self._updates:
            self._updates.remove(message.token)
            return self.send(message.sender, "Activate", message.token)
        return []

    def _answer_join(self, device, token, status):
        if status == 0x50:
            self.entries.append(device)
            self.filters.add(f"SRUP/{device:x}/#")
        return self.send(device, "Response", token, status=status)


class Link:
    """A peer on a transport: carries bytes, keeps the subscriptions, lets one thread at a time at the peer."""

    def __init__(self, peer, transport):
        self.peer = peer
        self.transport = transport
        self.connected = False
        self._subscribed = set()
        self._was_away = False
        self._lock = threading.RLock()

    def __enter__(self):
        self._subscribe()
        self.transport.start(self._arrived, self._changed)
        return self

    def __exit__(self, *_):
        self.transport.stop()

    def do(self, step, *arguments, **options):
        """Let the peer take a step, and publish what comes of it."""
        with self._lock:
            sends = step(*arguments, **options)
            if self.peer.dead:
                return
            self._subscribe()
            for topic, wire in sends:
                self.transport.publish(topic, wire)

    def _arrived(self, delivery):
        self.do(self.peer.hear, delivery.topic, delivery.payload)
        delivery.ack()

    def _changed(self, connected, why):
        """A clean session: the broker keeps no subscription and no message of one that is away."""
        with self._lock:
            if connected and self._was_away:
                self.peer.reconnected()
                self._subscribe()
            elif not connected and self.connected:
                self._was_away = True
                for topic_filter in self._subscribed:
                    self.transport.unsubscribe(topic_filter)
                self._subscribed = set()
        self.connected = connected

    def _subscribe(self):
        for topic_filter in self.peer.filters - self._subscribed:
            self.transport.subscribe(topic_filter)
        for topic_filter in self._subscribed - self.peer.filters:
            self.transport.unsubscribe(topic_filter)
        self._subscribed = set(self.peer.filters)
