"""What the tests of the sessions share: two ends, a deployed peer's double, a link with faults, snapshots."""

import heapq
from copy import copy
from itertools import count

from srup import messages as m
from srup import tokens
from srup.session import DeviceSession, Policy, Send, ServerSession
from srup.session.exchange import Exchange
from srup.wire import IDENTIFICATION_RESPONSE, Status

SERVER, DEVICE, OTHER, STRANGER = 0xA5, 0xD1, 0xD2, 0xE7
T0 = 1_800_000_000.0
URL = "https://updates.example/firmware.bin"
DIGEST = "0123456789abcdef" * 4

_nonces = count(1)

FIELDS = {
    "url": URL,
    "digest": DIGEST,
    "status": 0x99,
    "action_id": 7,
    "data_id": "temperature",
    "data": b"21",
    "sealed": b"sealed",
}
"""Something for every field; what is not here is an integer."""


def nonce():
    return next(_nonces).to_bytes(16, "big")


def bound(recipient, expiry=T0 + 300, sender=None, key=""):
    """A bound token; without a sender of the one that talks to this recipient."""
    if sender is None:
        sender = DEVICE if recipient == SERVER else SERVER
    return tokens.bind(sender, recipient, expiry, nonce(), key=key)


def make(cls, sequence_id, sender_id, token, **fields):
    """A message of any class; fields that do not matter are filled in."""
    names = [name for name in cls.layout.names if name not in ("sequence_id", "sender_id", "token")]
    filled = {name: FIELDS.get(name, 1) for name in names} | fields
    return cls(sequence_id=sequence_id, sender_id=sender_id, token=token, **filled)


def sends(outputs):
    return [output.message for output in outputs if isinstance(output, Send)]


def events(outputs, kind=object):
    return [output for output in outputs if not isinstance(output, Send) and isinstance(output, kind)]


def _exchange(exchange):
    return tuple(getattr(exchange, name) for name in Exchange.__slots__ if name != "peer")


CONTAINERS = (dict, set, list)
VALUES = (*CONTAINERS, type(None), int, float, str, frozenset, tuple, bytes)


def _knowledge(part):
    """What a part of a session knows, but for other parts, and callables."""
    return {
        name: copy(value) if isinstance(value, CONTAINERS) else value
        for name, value in vars(part).items()
        if isinstance(value, VALUES) and name != "flows"
    }


def snapshot(session, window=True):
    """Everything that a session knows, as a value; without ``window`` less what it notes of any genuine message."""
    return snapshots(session) if window else snapshots(session)[0]


def snapshots(session):
    """Everything that a session knows, as two values: the second is what it notes of any genuine message."""
    partners, noted = {}, {}
    for identity, partner in session.known.peers.items():
        known = [_exchange(exchange) for exchange in partner.exchanges.values()]
        partners[identity] = (partner.member, partner.last_sent, known)
        noted[identity] = (partner.binds, partner.window.highest, partner.window.seen)
    timers = [(due, order, _exchange(exchange)) for due, order, exchange in session.known.timers]
    rest = [_knowledge(part) for part in (session, session.streams, *session.flows)]
    return (partners, timers, rest), noted


def exchanges(session, partner):
    return session.known.peers[partner].exchanges


def exchange_of(session, partner, token):
    return exchanges(session, partner)[token]


class Pair:
    """A server and a device with nothing but the order of delivery between them."""

    def __init__(self, server_policy=None, device_policy=None, identity=DEVICE, server=None):
        self.now = T0
        self.identity = identity
        self.server = server or ServerSession(SERVER, server_policy or Policy())
        self.device = DeviceSession(identity, [SERVER], device_policy or Policy(), description="a lamp")

    def end(self, identity):
        return self.server if identity == SERVER else self.device

    def deliver(self, outputs):
        """Deliver these messages and all that follow from them; return the events of both ends, in order."""
        told = events(outputs)
        queue = sends(outputs)
        while queue:
            message = queue.pop(0)
            receiver = self.device if message.sender_id == SERVER else self.server
            more = receiver.receive(message, self.now, nonce())
            told += events(more)
            queue += sends(more)
        return told

    def join(self, status=Status.JOIN_SUCCESS):
        [requested] = self.deliver(self.device.join(SERVER, self.now, nonce()))
        return self.deliver(self.server.answer_join(self.identity, requested.token, status, self.now))

    def joined(self):
        """Join, and let either end know that the other binds its tokens."""
        self.join()
        self.deliver(self.server.identify(self.identity, self.now, nonce()))
        for partner in self.server.receipts_due(self.now):  # a join asks for one
            self.deliver(self.server.receipt(partner, self.now, nonce()))
        return self

    def action(self):
        """Let the server order an action; return the device's event."""
        [requested] = self.deliver(self.server.action(self.identity, 7, self.now, nonce()))
        return requested

    def update(self, **options):
        """Let the server order an update; return the device's event."""
        [requested] = self.deliver(self.server.update(self.identity, URL, DIGEST, self.now, nonce(), **options))
        return requested


class OldPeer:
    """A deployed peer: one counter for both directions, uuid tokens, no answers to actions and activations."""

    def __init__(self, identity, partner):
        self.identity = identity
        self.partner = partner
        self.last = 0
        self.dropped = []
        self.heard = []
        self.joined = False
        self._uuids = count()

    def new_token(self):
        return b"%08x-5b6c-4f3e-9a2d-%012x" % (self.identity, next(self._uuids))

    def send(self, cls, token=None, **fields):
        self.last += 1
        return make(cls, self.last, self.identity, token or self.new_token(), **fields)

    def hear(self, message):
        """Take a message if its sequence id lies above all that was sent and received; return the answers."""
        if message.sequence_id <= self.last:
            self.dropped.append(message)
            return []
        self.last = message.sequence_id
        self.heard.append(message)
        return self.answers(message)

    def answers(self, message):
        raise NotImplementedError


class OldDevice(OldPeer):
    """A device that obeys everything."""

    fetch_status = Status.UPDATE_SUCCESS

    def answers(self, message):
        match message:
            case m.Response():
                self.joined = message.status == Status.JOIN_SUCCESS
            case m.Initiate():
                return [self.send(m.Response, message.token, status=self.fetch_status)]
            case m.IdRequest():
                return [self.send(m.Data, data_id=IDENTIFICATION_RESPONSE, data=b"an old lamp")]
            case m.TerminateCommand():
                self.joined = False
        return []


class OldServer(OldPeer):
    """A server that accepts everyone and activates as soon as it may."""

    def answers(self, message):
        match message:
            case m.JoinRequest():
                self.joined = True
                return [self.send(m.Response, message.token, status=Status.JOIN_SUCCESS)]
            case m.ResignRequest():
                self.joined = False
                return [self.send(m.Response, message.token, status=Status.RESIGN_SUCCESS)]
            case m.Response() if message.status == Status.UPDATE_SUCCESS:
                return [self.send(m.Activate, message.token)]
        return []


def converse(session, peer, outputs, now=T0):
    """Carry messages between a session and an old peer until both are silent; return the session's events."""
    told = events(outputs)
    queue = sends(outputs)
    while queue:
        message = queue.pop(0)
        if message.sender_id == peer.identity:
            more = session.receive(message, now, nonce())
            told += events(more)
            queue += sends(more)
        else:
            queue += peer.hear(message)
    return told


class Link:
    """Carries messages in simulated time and loses, doubles, delays (so reorders) and replays them."""

    def __init__(self, random, now, loss=0.0, duplicate=0.0, replay=0.0, delay=0.0):
        self.random = random
        self.loss, self.duplicate, self.replay, self.delay = loss, duplicate, replay, delay
        self._order = count()
        self._under_way = []
        self._recorded = []

    def heal(self):
        """From now on nothing is lost, doubled or late."""
        self.loss = self.duplicate = self.replay = self.delay = 0.0

    def send(self, message, now):
        self._recorded.append(message)
        copies = 1 + (self.random.random() < self.duplicate)
        for _ in range(copies):
            if self.random.random() >= self.loss:
                self._put(message, now)
        if self.random.random() < self.replay:
            self._put(self.random.choice(self._recorded), now)

    def _put(self, message, now):
        due = now + self.delay * self.random.random()
        heapq.heappush(self._under_way, (due, next(self._order), message))

    def due(self):
        return self._under_way[0][0] if self._under_way else None

    def take(self):
        return heapq.heappop(self._under_way)[2]
