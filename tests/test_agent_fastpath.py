"""The fast path of ordinary values beside the usual way: whatever is mixed in, both must come to the same.

Two servers get the same messages in the same batches; one takes ordinary values by the fast path, the other none.
"""

from concurrent.futures import Future
from contextlib import suppress
from copy import deepcopy
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srup import (
    Action,
    Data,
    JoinRequest,
    KeyRing,
    Policy,
    PrivateKey,
    ResignRequest,
    Response,
    Server,
    Status,
    decode,
    encode,
    wire,
)
from srup.agent import backlog, handlers
from srup.agent.transaction import Transaction
from srup.keys import PublicKey
from srup.records import Changes, PartnerRecord
from srup.session.streams import POSITION
from srup.store import MemoryStore
from srup.tokens import bind
from srup.transport import Delivery, MemoryNetwork, MemoryTransport
from srup.transport.topics import device_topic, join_topic

pytestmark = pytest.mark.backend

SERVER = 0x5E
MEMBERS = (0xD1, 0xD2, 0xD3)
OUTSIDER, DEPLOYED, STRANGER = 0xD4, 0xD5, 0xD6  # registered and not joined, joined and binding no tokens, unknown
DEVICES = (*MEMBERS, OUTSIDER, DEPLOYED)
START = 1_800_000_000.0
VALUE = Data.encode_value(7, "int32")


@cache
def key(identity: int, generation: int = 0) -> PrivateKey:
    return PrivateKey.generate("ed25519")


class Recorded(MemoryStore):
    """A store that remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.commits = []

    def commit(self, changes):
        super().commit(changes)
        self.commits.append(deepcopy(changes))


class Broker(MemoryTransport):
    """A link that nobody listens to: it remembers what is published."""

    def __init__(self):
        super().__init__(MemoryNetwork(), "server")
        self.published = []

    def publish(self, topic, payload, on_settled=None, on_refused=None):
        self.published.append((topic, payload))


class World:
    """A server with an application, and all that can be seen of it."""

    def __init__(self, fast: bool, has_clock: bool, durable: bool = True, inline: bool = False) -> None:
        self.now = START
        self.store, self.broker = Recorded(), Broker()
        self.ring = KeyRing({each: key(each).public_key for each in DEVICES})
        self.store.open(SERVER)
        self.store.commit(
            Changes(partners=[PartnerRecord(each, each != OUTSIDER, each != DEPLOYED, 0, 0, 1) for each in DEVICES])
        )
        self.told = []
        self.server = server = Server(
            SERVER,
            key(SERVER),
            devices=self.ring,
            broker=self.broker,
            store=self.store if durable else None,
            clock=lambda: self.now,
            entropy=lambda size: len(self.broker.published).to_bytes(size, "big"),
            policy=Policy(has_clock=has_clock),
        )
        server.engine.fast_path.on = server.engine.handlers.decides_now = fast
        server.on_data("n", "int32")(self.note("value"))
        server.on_data("text", "text")(self.note("text"))
        server.on_action(1, inline=inline)(self.note("action"))
        server.on_action(2, inline=inline)(self.ask_back)
        server.on_refused(lambda refusal: self.told.append(("refused", str(refusal))))
        server.on_left(lambda device: self.told.append(("left", device)))
        server.on_joined(lambda device: self.told.append(("joined", device)))
        server.start(threads=False)
        self.turn([])

    def note(self, kind):
        def handler(*arguments, **_named):
            self.told.append((kind, arguments, self.server.handling))

        return {
            "action": lambda partner: handler(partner),
            "value": lambda partner, name, value: handler(partner, name, value),
            "text": lambda partner, name, value: handler(partner, name, value),
        }[kind]

    def ask_back(self, partner):
        """Do what an application may do in a handler: its requests come before the answer."""
        self.told.append(("asked back", partner, self.server.handling))
        if len(self.told) % 2:
            self.server.action(partner, 7)
        return (True, False, Status.ACTION_UNKNOWN, "anything")[len(self.told) % 4]

    def join_all(self) -> None:
        """Let all in that a store would say are in."""
        members = [each for each in DEVICES if each != OUTSIDER]
        for each in members:
            token = bind(each, SERVER, START + 300.0, nonces(each)) if each != DEPLOYED else b"free %d" % each
            join = JoinRequest(sequence_id=1, sender_id=each, token=token)
            self.turn([(join_topic(SERVER, each), encode(join, key(each)))])

    def turn(self, things) -> None:
        """Let messages arrive, and what the application does between them happen, in one turn."""
        for thing in things:
            if callable(thing):
                self.server.engine.inbox.put(lambda transaction, thing=thing: thing(self, transaction))
            else:
                self.server.engine.inbound.arrived(
                    Delivery(*thing, lambda thing=thing: self.told.append(("ack", thing)))
                )
        self.server.engine.turn()

    def shown(self):
        """All that must not depend on the way."""
        session = self.server.debug.session
        peers = {
            peer.identity: (
                *(peer.member, peer.binds, peer.last_sent, peer.reserved, sorted(peer.exchanges)),
                *(peer.signer, peer.window.highest, peer.window.seen, peer.horizon.dump()),
            )
            for peer in session.known.peers.values()
        }
        counts = {name: count for name, count in self.server.counts.items() if count}
        state = self.store.open(SERVER)
        return {
            "peers": peers,
            "streams": (session.streams.received, session.streams.sent, session.streams.owed),
            "counts": counts,
            "told": self.told,
            "published": self.broker.published,
            "commits": self.store.commits,
            "state": [sorted(map(repr, part)) for part in state[:7]],
            "audit": list(self.store.audit()),
            "deadline": self.server.deadline(),
            "waiting": (self.server.debug.inbox, self.server.debug.handlers, self.server.debug.unacknowledged),
        }


# --- what is drawn: messages as (topic, bytes), and what the application does between them


def nonces(number: int) -> bytes:
    return number.to_bytes(16, "little")


class Script:
    """Makes messages; each device has a counter, as a real one would."""

    def __init__(self) -> None:
        self.number = 0
        self.ids = dict.fromkeys([*DEVICES, STRANGER], 0)
        self.places = dict.fromkeys([*DEVICES, STRANGER], 0)
        self.sent = []

    def token(self, sender, expiry=START + 300.0, recipient=SERVER, **more):
        self.number += 1
        return bind(sender, recipient, expiry, nonces(self.number), **more)

    def message(self, cls, sender, token=None, ahead=1, signer=None, topic=None, sequence_id=None, **fields):
        if sequence_id is None:
            self.ids[sender] = sequence_id = self.ids[sender] + ahead
        token = self.token(sender) if token is None else token
        made = cls(sequence_id=sequence_id, sender_id=sender, token=token, **fields)
        packet = topic or device_topic(sender), encode(made, signer or key(sender))
        self.sent.append((packet, made))
        return packet

    def value(self, sender, data_id="n", data=VALUE, **more):
        return self.message(Data, sender, data_id=data_id, data=data, **more)

    # Each of these is one kind of thing that can happen; they take which device, and a number to choose by.

    def ordinary(self, sender, choice):
        return self.value(sender, *(("n", VALUE), ("text", b"warm"))[choice % 2])

    def ahead(self, sender, choice):
        return self.value(sender, ahead=(2, 40, 1023, 1024, 3000)[choice % 5])

    def late(self, sender, choice):
        behind = self.ids[sender] - (0, 1, 5, 1022, 1023, 1024)[choice % 6]
        return self.value(sender, sequence_id=max(0, behind))

    def extreme(self, sender, choice):
        return self.value(sender, sequence_id=(0, 2**64 - 1, 2**63)[choice % 3])

    def replayed(self, sender, choice):
        return self.sent[-1 - choice % min(len(self.sent), 8)][0] if self.sent else self.ordinary(sender, 0)

    def same_token(self, sender, choice):
        tokens = [made.token for _, made in self.sent if made.sender_id == sender]
        return self.value(sender, token=tokens[choice % len(tokens)] if tokens else None)

    def expired(self, sender, choice):
        return self.value(sender, token=self.token(sender, START - (29.0, 31.0, 10_000.0)[choice % 3]))

    def unbound(self, sender, choice):
        return self.value(sender, token=(b"free", b"x", b"srup5:", b"x" * 300)[choice % 4])

    def foreign_token(self, sender, choice):
        other = MEMBERS[choice % 3]
        return self.value(sender, token=(self.token(other), self.token(sender, recipient=other))[choice % 2])

    def unknown_value(self, sender, choice):
        return self.value(sender, "nobody takes this")

    def unreadable(self, sender, choice):
        return self.value(sender, "n", b"\x01\x02")

    def protocols_own(self, sender, choice):
        names = sorted(value for name, value in vars(wire).items() if name == value)
        name = names[choice % len(names)]
        return self.value(sender, name, (b"what it is", POSITION.pack(1, choice))[choice // 2 % 2])

    def confirmed(self, sender, choice):
        self.places[sender] += (1, 1, 2, 0)[choice % 4]
        return self.value(sender, token=self.token(sender, place=(9, max(1, self.places[sender]))))

    def for_receipt(self, sender, choice):
        return self.value(sender, token=self.token(sender, receipt=True))

    def with_version(self, sender, choice):
        return self.value(sender, token=self.token(sender, version=choice))

    def forged(self, sender, choice):
        return self.value(sender, signer=key(STRANGER))

    def junk(self, sender, choice):
        return device_topic(sender), (b"", b"junk", b"\x05" + bytes(60))[choice % 3]

    def elsewhere(self, sender, choice):
        topics = device_topic(MEMBERS[choice % 3]), join_topic(SERVER, sender), f"SRUP/{sender:x}/more", "other"
        return self.value(sender, topic=topics[choice % 4])

    def action(self, sender, choice):
        return self.message(Action, sender, action_id=choice % 3)

    def answer(self, sender, choice):
        return self.message(Response, sender, status=choice % 256)

    def resigned(self, sender, choice):
        return self.message(ResignRequest, sender)

    def joined(self, sender, choice):
        return self.message(JoinRequest, sender, topic=join_topic(SERVER, sender))

    def new_key_signs(self, sender, choice):
        return self.value(sender, signer=key(sender, 1))

    def key_replaced(self, sender, choice):
        return lambda world, transaction: world.ring.replace(sender, key(sender, choice % 2).public_key)

    def key_rotated(self, sender, choice):
        def rotate(world, transaction):
            with suppress(Exception):  # it may be gone
                world.ring.rotate(sender, key(sender, choice % 2).public_key, world.now + 100.0)

        return rotate

    def key_removed(self, sender, choice):
        return lambda world, transaction: world.ring.remove(sender)

    def same_key_again(self, sender, choice):
        def renew(world, transaction):
            known = world.ring.get(sender)
            world.ring.remove(sender)
            if known is not None:
                world.ring.add(sender, (known, PublicKey.from_pem(known.to_pem()))[choice % 2])

        return renew

    def commanded(self, sender, choice):
        def act(world, transaction):
            world.server.action(sender, choice % 256)

        return act

    def clock_moved(self, sender, choice):
        def move(world, transaction):
            world.now += (0.5, 31.0, 400.0, -400.0)[choice % 4]

        return move

    def handlers_moved(self, sender, choice):
        return lambda world, transaction: world.server.engine.handlers.values.pop(("n", "text", None)[choice % 3], None)


USUAL = ["ordinary"] * 12 + ["ahead", "same_token"]
UNUSUAL = sorted(
    name
    for name, value in vars(Script).items()
    if callable(value) and name not in ("__init__", "token", "message", "value", "ordinary")
)
thing = st.tuples(
    st.one_of(st.sampled_from(USUAL), st.sampled_from(UNUSUAL)), st.sampled_from(DEVICES), st.integers(0, 11)
)
turns = st.lists(st.lists(thing, max_size=14), min_size=1, max_size=5)


def play(drawn, has_clock=True, durable=True, inline=False):
    """Let both worlds have the same turns; return them."""
    script = Script()
    worlds = World(True, has_clock, durable, inline), World(False, has_clock, durable, inline)
    if not durable:
        for world in worlds:
            world.join_all()
        script.ids = dict.fromkeys(script.ids, 1)
    for kinds in drawn:
        things = [getattr(script, kind)(sender, choice) for kind, sender, choice in kinds]
        for world in worlds:
            world.turn(things)
    for world in worlds:
        world.turn([])
    return worlds


def agree(worlds):
    """Compare all that can be seen of two worlds, part by part."""
    fast, usual = (world.shown() for world in worlds)
    for part, what in usual.items():
        assert fast[part] == what, part


@settings(max_examples=150)
@given(turns, st.booleans())
def test_both_ways_come_to_the_same(drawn, has_clock):
    agree(play(drawn, has_clock))


commands = st.tuples(
    st.one_of(st.just("action"), st.sampled_from([*USUAL, *UNUSUAL])), st.sampled_from(DEVICES), st.integers(0, 11)
)


@settings(max_examples=150)
@given(st.lists(st.lists(commands, max_size=5), min_size=1, max_size=12), st.booleans(), st.booleans(), st.booleans())
def test_what_handlers_decide_comes_to_the_same_at_once_and_through_the_inbox(drawn, has_clock, durable, inline):
    agree(play(drawn, has_clock, durable, inline))


def test_what_was_asked_before_an_action_is_answered_comes_before_the_answer():
    agree(play([[("commanded", MEMBERS[0], 0), ("action", MEMBERS[0], 0)]], has_clock=False, durable=False))


def test_an_action_that_comes_alone_is_answered_at_once_and_repeated_as_it_was():
    lone = [("action", MEMBERS[0], 1)]
    worlds = play([lone, lone, [("replayed", MEMBERS[0], 0)], [("action", MEMBERS[0], 2)]], durable=False, inline=True)
    agree(worlds)
    answers = [decode(wire).verify(key(SERVER).public_key) for _, wire in worlds[0].broker.published]
    assert [type(each) for each in answers].count(Response) >= len(MEMBERS) + 2


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("kind", UNUSUAL)
def test_one_unusual_thing_at_each_place_of_a_run(kind, place):
    ordinary = [("ordinary", MEMBERS[number % 2], number) for number in range(6)]
    agree(play([ordinary, [*ordinary[:place], (kind, MEMBERS[0], place), *ordinary[place:]], ordinary]))


@settings(max_examples=40)
@given(turns)
def test_both_ways_come_to_the_same_when_the_handlers_are_behind(drawn):
    """Quotas are used up, and nothing is acknowledged; now and then the handlers catch up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backlog, "MAX_REFUSALS", 2)
        patch.setattr(backlog, "HELD_FROM", 12)
        script, worlds = Script(), (World(True, True), World(False, True))
        for world in worlds:
            world.server.engine.handlers.application = world.slow = Slow()
        for number, kinds in enumerate(drawn):
            things = [getattr(script, kind)(sender, choice) for kind, sender, choice in kinds]
            for world in worlds:
                world.turn(things)
                if number % 3 == 2:
                    world.slow.catch_up()
        agree(worlds)


class Slow(handlers.Inline):
    """An application's thread that has not come to anything yet."""

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)
        return Future()

    def catch_up(self):
        while self.jobs:
            self.jobs.pop(0)()


def test_ordinary_values_take_the_fast_path_and_no_other_does(monkeypatch):
    world, script = World(True, True), Script()
    first = [script.ordinary(sender, 0) for sender in MEMBERS]
    world.turn([*first, script.unbound(DEPLOYED, 0)])  # by which keys they speak is known from now on
    usual = []
    receive = world.server.debug.session.receive
    monkeypatch.setattr(
        world.server.debug.session,
        "receive",
        lambda message, *rest, **named: usual.append(message) or receive(message, *rest, **named),
    )
    for number in range(100):
        world.turn([*(script.ordinary(sender, number) for sender in MEMBERS), script.unbound(DEPLOYED, 0)])
    assert usual == []
    assert len([told for told in world.told if told[0] in ("value", "text")]) == 404
    world.turn([script.confirmed(MEMBERS[0], 0), script.ordinary(MEMBERS[1], 0), script.action(MEMBERS[2], 1)])
    assert [type(message) for message in usual] == [Data, Action]


def test_a_key_that_is_taken_away_while_a_batch_is_verified_counts_no_more(monkeypatch):
    """What verified before the key went away has no effect after it, on either way."""
    from srup.agent import inbound

    for fast in (True, False):
        world, script = World(fast, True), Script()
        world.turn([script.ordinary(MEMBERS[0], 0)])
        verify = inbound.verify_many

        def verify_and_lose(wires, keys, *rest, verify=verify, world=world):
            opened = verify(wires, keys, *rest)
            if len(wires) > 1:
                world.ring.remove(MEMBERS[0])
            return opened

        with monkeypatch.context() as patch:
            patch.setattr(inbound, "verify_many", verify_and_lose)
            world.turn([script.ordinary(MEMBERS[0], 0), script.ordinary(MEMBERS[1], 0)])
        assert [told[1][0] for told in world.told if told[0] == "value"] == [MEMBERS[0], MEMBERS[1]]


def test_a_fault_on_the_fast_path_costs_no_other_message(monkeypatch):
    world, script = World(True, True), Script()
    world.turn([script.ordinary(sender, 0) for sender in MEMBERS])
    check_quota = world.server.engine.handlers.backlog.check_quota
    faults = iter([False, True, False])

    def fail(peer):
        if next(faults, False):
            raise RuntimeError("a fault")
        check_quota(peer)

    monkeypatch.setattr(world.server.engine.handlers.backlog, "check_quota", fail)
    world.turn([script.ordinary(sender, 0) for sender in MEMBERS])
    assert world.server.counts["faults"] == 1
    assert [told[1][0] for told in world.told if told[0] == "value"] == [*MEMBERS, *MEMBERS]
    assert len([told for told in world.told if told[0] == "ack"]) == 6
    assert isinstance(world.server.engine.collect(), Transaction)
