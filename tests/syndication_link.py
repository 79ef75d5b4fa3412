"""What the tests of syndication share: two servers, a syndication device between them, lamps, links with faults."""

from collections import Counter
from random import Random

from srup.errors import PolicyError, ReplayError
from srup.session import DeviceSession, Policy, Send
from srup.session import events as e
from srup.session.relay import AwaySide, Crossing, HomeSide
from srup.session.syndication import SyndicationServerSession
from srup.wire import Status

from .session_link import T0, Link, nonce

HOME, AWAY = 0xA1, 0xA2
HOME_ID, AWAY_ID = 0xB1, 0xB2
"""The two identities of the syndication device."""

LAMPS = (0xC1, 0xC2, 0xC3)
"""Devices of the away server."""

NEIGHBOUR = 0xD1
"""A device of the home server."""

KEY_SERVICE = "https://away.example/KeyEx/register/"


class Chain:
    """home server - syndication device - away server - lamps; owners decide at once unless they are told not to.

    Without faults, :meth:`deliver` carries everything at once. With faults, time goes on by :meth:`advance`.
    """

    def __init__(self, policy=None, lamps=LAMPS, *, seed=0, away_policy=None, **faults):
        policy = policy or Policy(require_bound_tokens=True)
        self.now = T0
        self.home = SyndicationServerSession(HOME, policy)
        self.away = SyndicationServerSession(AWAY, away_policy or policy, syndication_devices=[AWAY_ID])
        self.home_side = HomeSide(HOME_ID, [HOME], policy)
        self.away_side = AwaySide(AWAY_ID, [AWAY], away_policy or policy)
        self.neighbour = DeviceSession(NEIGHBOUR, [HOME], policy)
        self.lamps = {lamp: DeviceSession(lamp, [AWAY], policy, description=f"lamp {lamp:x}") for lamp in lamps}
        self.ends = {
            "home": {HOME: self.home, HOME_ID: self.home_side, NEIGHBOUR: self.neighbour},
            "away": {AWAY: self.away, AWAY_ID: self.away_side, **self.lamps},
        }
        self.link = Link(Random(seed), T0, **faults)
        self.faulty = bool(faults)
        self.shared = list(lamps)
        self.moderate = True  # what the away owner decides: True, False, or None for later
        self.told = []  # (identity, event) of everybody
        self.wires = []  # (network, to, message) that was sent
        self.refused = []  # (identity, error)
        self.done = Counter()  # (lamp, token) of each action that was carried out
        self.cut = set()  # identities that neither send nor hear

    def where(self, session):
        return next((net, who) for net, ends in self.ends.items() for who, end in ends.items() if end is session)

    def perform(self, session, outputs):
        network, me = self.where(session)
        for output in outputs:
            if isinstance(output, Send):
                self.wires.append((network, output.to, output.message))
                if me not in self.cut and output.to not in self.cut:
                    self.carry(network, output.to, output.message)
            elif isinstance(output, Crossing):
                other = self.away_side if session is self.home_side else self.home_side
                self.perform(other, other.cross(output, self.now, nonce()))
            else:
                self.told.append((me, output))
                self.own(session, output)

    def carry(self, network, to, message):
        if self.faulty:
            self.link.send((network, to, message), self.now)
        else:
            self.hear(network, to, message)

    def hear(self, network, to, message):
        session = self.ends[network][to]
        try:
            outputs = session.receive(message, self.now, nonce())
        except (PolicyError, ReplayError) as error:
            self.refused.append((to, error))
        else:
            self.perform(session, outputs)

    def own(self, session, event):
        """What the owners do."""
        peer, token = event.peer, event.token
        match event:
            case e.JoinRequested():
                self.perform(session, session.answer_join(peer, token, Status.JOIN_SUCCESS, self.now))
            case e.SyndicationOffered():
                self.offer = event
                self.perform(self.away_side, self.away_side.join(AWAY, self.now, nonce()))
            case e.JoinAnswered() if session is self.away_side and hasattr(self, "offer"):
                sealed = b"to away: " + self.offer.sealed
                self.perform(session, session.request_syndication(sealed, self.now, nonce()))
            case e.SyndicationRequested() if self.moderate:
                self.perform(session, session.accept_syndication(peer, token, self.shared, self.now, nonce()))
            case e.SyndicationRequested() if self.moderate is False:
                self.perform(session, session.refuse_syndication(peer, token, self.now))
            case e.SyndicationAnswered() if session is self.away_side:
                self.perform(self.home_side, self.home_side.answer_init(self.offer.token, event.status, self.now))
            case e.SyndicatedActionRequested() | e.SyndicatedIdRequested() | e.SyndicatedC2Requested():
                if self.moderate:
                    self.perform(session, session.allow(peer, token, self.now, nonce()))
                elif self.moderate is False:
                    self.perform(session, session.refuse(peer, token, self.now))
            case e.ActionRequested():
                self.done[event.action_id, session.identity, token] += 1
                self.perform(session, session.answer_action(peer, token, Status.ACTION_SUCCESS, self.now))
            case e.DevicesMissing() if event.repeats:
                self.perform(session, session.request_list(peer, self.now, nonce()))

    # What the tests do.

    def joined(self):
        """Let everybody join but the away side of the syndication device."""
        for session, server in ((self.home_side, HOME), (self.neighbour, HOME)):
            self.perform(session, session.join(server, self.now, nonce()))
        for lamp in self.lamps.values():
            self.perform(lamp, lamp.join(AWAY, self.now, nonce()))
        return self

    def begin(self):
        """Let the home server begin a syndication."""
        outputs = self.home.begin_syndication(HOME_ID, KEY_SERVICE, b"the value", self.now, nonce())
        self.perform(self.home, outputs)
        return outputs[0].message.token

    def syndicated(self):
        self.joined().begin()
        return self

    def ask(self, method, *arguments, **options):
        """Let the home server ask for something; return the token."""
        outputs = method(HOME_ID, *arguments, self.now, nonce(), **options)
        self.perform(self.home, outputs)
        return outputs[0].message.token

    def events(self, identity, *kinds):
        return [event for who, event in self.told if who == identity and isinstance(event, kinds or object)]

    def sent(self, network, to, cls):
        return [message for net, who, message in self.wires if (net, who) == (network, to) and type(message) is cls]

    def outcome(self, token):
        """What the home server was told under a token."""
        return [event for event in self.events(HOME) if event.token == token]

    def advance(self, until):
        """Let time pass: deliver what is due and tick everybody."""
        while True:
            dues = [self.link.due(), *(end.deadline() for ends in self.ends.values() for end in ends.values())]
            due = min((due for due in dues if due is not None), default=None)
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            while (due := self.link.due()) is not None and due <= self.now:
                network, to, message = self.link.take()
                if to not in self.cut:
                    self.hear(network, to, message)
            for ends in self.ends.values():
                for end in ends.values():
                    self.perform(end, end.tick(self.now))
                    for partner in end.receipts_due(self.now):  # a join asks for one
                        self.perform(end, end.receipt(partner, self.now, nonce()))
        self.now = max(self.now, until)
