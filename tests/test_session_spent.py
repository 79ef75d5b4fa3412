"""Spent tokens: what is remembered of exchanges that are over, how much of it, and what is refused beyond that."""

import sys
from collections import Counter
from contextlib import closing
from hashlib import sha256

import pytest

from srup import messages as m
from srup.errors import PolicyError, StoreError
from srup.records import Changes, ExchangeRecord
from srup.session import DeviceSession, Policy, ServerSession
from srup.session.events import ActionRequested
from srup.session.exchange import MAX_REMEMBERED
from srup.session.freshness import FIRST_UNDATED, key_number
from srup.session.policy import NO_EXPIRY
from srup.session.spent import BELIEVED_AFTER, MAX_SPENT
from srup.store import MemoryStore, SqliteStore
from srup.wire import Status

from .session_link import DEVICE, OTHER, SERVER, T0, Pair, bound, make, nonce, sends

LONG, ORDINARY = 3600.0, 300.0
MANY = 3000


class Key:
    """A public key, as far as a session looks at it."""

    def __init__(self, name):
        self.signing_fingerprint = sha256(name.encode()).hexdigest()


OLD, NEW = Key("old"), Key("new")


class Receiver:
    """One end that is given orders by the other one, with a store."""

    def __init__(self, identity, policy, store=None):
        self.identity, self.policy = identity, policy
        self.partner = SERVER if identity == DEVICE else DEVICE
        self.store = store or MemoryStore()
        self.now = T0
        self.sequence_id = 0
        self.start()
        self.join(self.partner)

    def start(self):
        server = self.identity == SERVER
        self.session = ServerSession(SERVER, self.policy) if server else DeviceSession(DEVICE, [SERVER], self.policy)
        self.session.restore(self.store.open(self.identity), self.now)

    def restart(self):
        self.commit()
        self.start()

    def commit(self):
        self.store.commit(self.session.changes())

    def kept(self):
        """What the store has of exchanges, over or not."""
        self.commit()
        return list(self.store.open(self.identity).exchanges)

    def join(self, partner):
        session = self.session
        session.known.peers[partner] = peer = session.peer(partner)
        peer.member = peer.binds = True
        session.known.mark_peer(peer)

    def order(self, expiry, partner=None, key=None):
        """An order of the partner that nobody has seen yet; its token says that it was made under this key."""
        self.sequence_id += 1
        partner = partner or self.partner
        return make(
            m.Action,
            self.sequence_id,
            partner,
            bound(self.identity, expiry, sender=partner, key=key.signing_fingerprint[:16] if key else ""),
        )

    def again(self, message):
        """A retransmission that nobody has seen yet."""
        self.sequence_id += 1
        return type(message)(**dict(message) | {"sequence_id": self.sequence_id})

    def obey(self, message, key=None, **options):
        """Take an order and answer it; PolicyError if it is refused."""
        told = self.session.receive(message, self.now, nonce(), key, **options)
        assert [type(each) for each in told] == [ActionRequested]
        partner, token = message.sender_id, message.token
        [answer] = self.session.answer_action(partner, token, Status.ACTION_SUCCESS, self.now)
        assert answer.message.status == Status.ACTION_SUCCESS

    def obey_many(self, count, lifetime, **options):
        """Take so many orders, ten in a second; return them."""
        orders = []
        for _ in range(count):
            orders.append(self.order(self.now + lifetime))
            self.obey(orders[-1], **options)
            self.now += 0.1
        return orders

    def refuses(self, messages, match="spent", **options):
        for message in messages:
            with pytest.raises(PolicyError, match=match):
                self.session.receive(self.again(message), self.now, nonce(), **options)

    @property
    def spent(self):
        return self.session.spent.of(self.partner)


@pytest.fixture(params=[DEVICE, SERVER], ids=["device", "server"])
def identity(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["clock", "no clock"])
def receiver(request, identity):
    return Receiver(identity, Policy(has_clock=request.param))


@pytest.fixture
def device():
    return Receiver(DEVICE, Policy())


@pytest.fixture
def small(monkeypatch):
    """Bounds that tests reach soon."""
    monkeypatch.setattr("srup.session.exchange.MAX_REMEMBERED", 16)
    monkeypatch.setattr("srup.session.spent.MAX_SPENT", 64)


# Whoever commands often, with long lifetimes, is not locked out.


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_many_long_lived_commands_bar_no_ordinary_one(receiver, restarted):
    orders = receiver.obey_many(MANY, LONG)
    if restarted:
        receiver.restart()
    receiver.obey(receiver.order(receiver.now + ORDINARY))
    receiver.refuses(orders[: MANY - MAX_REMEMBERED - 1])
    assert receiver.spent == MANY + 1 - MAX_REMEMBERED


@pytest.mark.parametrize("clocks", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_nor_do_those_of_a_real_partner(clocks):
    server_clock, device_clock = clocks
    pair = Pair(Policy(has_clock=server_clock), Policy(has_clock=device_clock)).joined()
    for lifetime in [LONG] * MANY + [ORDINARY]:
        for asks, answers in ((pair.server, pair.device), (pair.device, pair.server)):
            [told] = pair.deliver(asks.action(answers.identity, 7, pair.now, nonce(), lifetime))
            assert type(told) is ActionRequested
            pair.deliver(answers.answer_action(asks.identity, told.token, Status.ACTION_SUCCESS, pair.now))
        pair.now += 0.1


def test_one_very_long_command_bars_no_ordinary_one_on_a_device_without_a_clock():
    """It forgets the exchange a day later, and cannot know that the token is good for a week."""
    device = Receiver(DEVICE, Policy(has_clock=False))
    order = device.order(T0 + 7 * 86400)
    device.obey(order)
    device.now += 2 * 86400
    device.session.tick(device.now)
    assert not device.session.known.peers[SERVER].exchanges
    device.obey(device.order(device.now + ORDINARY))
    device.refuses([order])


def test_the_latest_answers_are_repeated(device):
    orders = device.obey_many(MANY, LONG)
    for order in orders[-MAX_REMEMBERED:]:
        [again] = sends(device.session.receive(device.again(order), device.now, nonce()))
        assert (again.status, again.token) == (Status.ACTION_SUCCESS, order.token)


def test_the_latest_answers_are_those_that_were_given_last(device, small):
    """However long the tokens are good for, and after a restart too, as far as expiries say."""
    early = device.obey_many(16, LONG)
    late = device.obey_many(16, ORDINARY)
    device.refuses(early)
    for order in late:
        assert sends(device.session.receive(device.again(order), device.now, nonce()))


# Beyond the bound.


def test_beyond_the_bound_what_must_be_refused_is_refused_and_the_rest_is_done(receiver, small):
    orders = receiver.obey_many(200, LONG)
    assert receiver.spent == 64
    receiver.refuses(orders[:180])
    floor = receiver.session.known.peers[receiver.partner].horizon.dated_floor
    forgotten = orders[200 - 16 - 64 - 1]
    assert floor == int(forgotten.token.split(b":")[3])
    receiver.refuses([receiver.order(floor)])
    receiver.obey(receiver.order(floor + 1))
    receiver.obey(receiver.order(receiver.now + LONG))


def test_ordinary_commands_are_done_although_long_lived_ones_have_taken_all_places(receiver, small):
    """What expires first gives way, which is then an ordinary one: it bars none that is made later."""
    long_lived = receiver.obey_many(60, LONG)
    ordinary = receiver.obey_many(200, ORDINARY)
    receiver.refuses([*long_lived, *ordinary[:180]])
    assert receiver.spent == 64


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_the_floor_outlasts_a_restart(receiver, small, restarted):
    orders = receiver.obey_many(200, LONG)
    if restarted:
        receiver.restart()
    receiver.refuses(orders[:180])
    receiver.refuses([receiver.order(receiver.now + ORDINARY)], match="older than one that was forgotten")
    receiver.obey(receiver.order(receiver.now + LONG))


def test_other_partners_feel_nothing(small):
    server = Receiver(SERVER, Policy())
    server.join(OTHER)
    others = [server.order(T0 + ORDINARY, OTHER) for _ in range(20)]
    for order in others:
        server.obey(order)
    server.obey_many(500, LONG)
    server.refuses([server.order(server.now + ORDINARY)])
    server.obey(server.order(server.now + 10, OTHER))
    server.refuses(others[:4])
    assert (server.session.spent.of(OTHER), server.spent) == (5, 64)


def test_a_retiring_key_in_wrong_hands_crowds_out_none_of_its_successor(device, small):
    device.obey(device.order(T0 + LONG), key=OLD)
    known = device.obey_many(40, ORDINARY, key=NEW)
    for number in range(300):
        device.obey(device.order(T0 + 10 * LONG + number), key=OLD, retiring=True)
    horizon = device.session.known.peers[SERVER].horizon
    assert (horizon.key, horizon.dated_floor) == (key_number(NEW), 0)
    assert device.spent == 40 + 64
    device.refuses(known, signer=NEW)
    device.obey(device.order(device.now + ORDINARY, key=NEW), key=NEW)
    device.refuses([device.order(device.now + ORDINARY), device.order(device.now + ORDINARY, key=OLD)], signer=NEW)


def test_many_keys_of_one_identity_have_room_for_two(device, small):
    orders = {key: device.obey_many(40, LONG, key=key) for key in (Key(f"key {number}") for number in range(10))}
    assert device.spent == 2 * 64
    for key, of_key in list(orders.items())[:-1]:
        device.refuses(of_key, signer=key)


# Each token once, whatever happens meanwhile.


def test_a_token_is_spent_for_all_keys_of_its_maker(device, small):
    """A retransmission is signed by the key that its maker has by then."""
    orders = device.obey_many(40, LONG, key=OLD)
    device.refuses(orders[:24], signer=NEW)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_key_that_comes_back_finds_its_tokens_spent_and_is_served(receiver, restarted):
    orders = receiver.obey_many(MANY, LONG, key=OLD)
    receiver.commit()
    receiver.session.revoke(receiver.partner, receiver.now)
    assert receiver.spent == MANY
    if restarted:
        receiver.restart()
        assert receiver.spent == MANY
    receiver.session.horizon_of(receiver.session.peer(receiver.partner), OLD, retiring=False)
    receiver.join(receiver.partner)
    receiver.refuses(orders, signer=OLD)
    receiver.obey(receiver.order(receiver.now + ORDINARY), key=OLD)


def test_a_clock_that_goes_ahead_and_back(device, small):
    orders = device.obey_many(40, ORDINARY)
    device.session.lead = 600.0  # so that all have expired
    device.session.tick(device.now)
    device.session.lead = 0.0
    device.session.tick(device.now)
    device.refuses(orders[:24])
    device.obey(device.order(device.now + 60))


@pytest.mark.parametrize("set_by", [0.0, 60.0, 600.0])
def test_unix_time_that_was_set_is_believed_when_it_has_gone_on_without_a_jump(device, small, set_by):
    orders = device.obey_many(40, ORDINARY)
    device.session.tick(device.now)
    device.now += BELIEVED_AFTER
    device.session.lead = set_by
    device.session.tick(device.now)
    assert device.spent == (0 if set_by == 0.0 else 40)
    device.now += BELIEVED_AFTER
    device.session.tick(device.now)
    assert device.spent == 0
    device.refuses(orders[:24], match="expired")


def test_a_clock_that_was_ahead_all_the_time(device):
    """What was forgotten as expired, and has not, is remembered as spent: it raises no floor over what is new."""
    device.session.lead = 600.0
    order = device.order(T0 + 900)
    device.obey(order)
    device.session.lead = 0.0
    device.session.tick(T0 + 340)
    assert device.spent == 1
    device.obey(device.order(T0 + 640))
    device.refuses([order])


# What it costs.


def test_memory_and_store_are_bounded_and_empty_in_the_end(device):
    device.session.tick(device.now)
    device.obey_many(MAX_SPENT + 3 * MAX_REMEMBERED, LONG)
    assert device.spent == MAX_SPENT
    kept = device.kept()
    assert len(kept) == MAX_SPENT + MAX_REMEMBERED
    spent = [each for each in kept if len(each.token) == 22]
    assert len(spent) == MAX_SPENT
    assert max(len(each.token) + len(each.body) for each in spent) <= 22 + 32
    numbers = [number for keys in device.session.spent._numbers.values() for each in keys.values() for number in each]
    containers = [each for keys in device.session.spent._numbers.values() for each in keys.values()]
    size = sum(map(sys.getsizeof, [*numbers, *containers])) / MAX_SPENT
    assert size <= 60, f"{size} bytes for each token"
    device.now += LONG + 60
    for _ in range(MAX_SPENT // 256 + MAX_REMEMBERED // 256 + 2):
        device.session.tick(device.now)
    assert device.spent == len(device.session.spent) == 0
    assert device.kept() == []
    assert not device.session.spent._numbers
    device.obey(device.order(device.now + ORDINARY))


def test_one_sweep_drops_a_bounded_number(device):
    device.session.tick(device.now)
    device.obey_many(MANY, LONG)
    device.now += LONG + 60
    before = device.spent
    device.session.spent.sweep(int(device.now), device.now, 0.0)
    assert before - device.spent == 256


def test_each_command_costs_as_much_work_as_the_first(device):
    """Counted are calls of functions, those of C too."""

    def work():
        calls = Counter()
        orders = [device.order(device.now + LONG) for _ in range(20)]
        sys.setprofile(lambda frame, event, argument: calls.update([event]))
        try:
            for order in orders:
                told = device.session.receive(order, device.now, nonce())
                device.session.answer_action(SERVER, told[0].token, Status.ACTION_SUCCESS, device.now)
        finally:
            sys.setprofile(None)
        device.now += 2
        return calls["call"] + calls["c_call"]

    device.obey_many(MAX_REMEMBERED + 10, LONG)  # from here on each command forgets another
    few = work()
    device.obey_many(MAX_SPENT - 500, LONG)
    many = work()
    device.obey_many(1000, LONG)
    full = work()
    assert abs(many - few) <= 0.02 * few
    assert full <= 1.2 * few  # one gives way to each besides


# What a store holds.


def test_an_sqlite_store_keeps_what_is_spent_beyond_a_revocation(tmp_path):
    with closing(SqliteStore(tmp_path / "device.db")) as store:
        device = Receiver(DEVICE, Policy(), store)
        orders = device.obey_many(MANY, LONG, key=OLD)
        device.commit()
        assert len(store.open(DEVICE).exchanges) == MANY
        device.session.revoke(SERVER, device.now)
        device.commit()
        assert not list(store.open(DEVICE).partners)
    size = (tmp_path / "device.db").stat().st_size
    assert size < 160 * MANY, f"{size / MANY} bytes of the file for each"
    with closing(SqliteStore(tmp_path / "device.db")) as device.store:
        device.start()
        assert device.spent == MANY
        device.join(SERVER)
        device.refuses(orders, signer=OLD)
        device.obey(device.order(device.now + ORDINARY), key=OLD)


def test_a_spent_token_is_no_token_that_a_partner_could_name(device, small):
    device.obey_many(20, LONG)
    [name, *_] = [each.token for each in device.kept() if len(each.token) == 22]
    device.session.known.peers[SERVER].binds = False
    with pytest.raises(PolicyError, match="malformed"):
        device.session.receive(make(m.Action, 1000, SERVER, name), device.now, nonce())


def test_more_than_the_bound_in_a_store_raises_the_floor(device, small, monkeypatch):
    orders = device.obey_many(80, LONG)
    device.commit()
    monkeypatch.setattr("srup.session.spent.MAX_SPENT", 8)
    device.start()
    assert device.spent == 8
    device.refuses(orders[:64])


def test_what_an_earlier_version_has_named_is_read(device):
    """Tokens of a partner that was revoked stood in the fact about its keys."""
    device.session.restore_fact(DEVICE, "freshness", '[["0123456789abcdef",1,2,3,4,"0123456789abcdef"]]')


def test_a_record_that_nobody_has_written_is_refused(device):
    with pytest.raises(StoreError, match="names no key"):
        device.session.spent.restore(ExchangeRecord(SERVER, b"srup5:" + bytes(16), 0.0, "a key"))


def test_spent_tokens_of_somebody_who_is_no_partner_are_kept_and_dropped(device):
    store = MemoryStore()
    store.open(DEVICE)
    spent = [ExchangeRecord(OTHER, b"srup5:" + bytes([0] * 7 + [9, *[0] * 7, n]), 9.0, "7e") for n in range(3)]
    store.commit(Changes(exchanges=spent))
    session = DeviceSession(DEVICE, [SERVER])
    session.restore(store.open(DEVICE), T0)
    assert session.spent.of(OTHER) == 3
    session.tick(T0)
    assert session.spent.of(OTHER) == 3
    session.tick(T0 + BELIEVED_AFTER)
    assert session.spent.of(OTHER) == 0
    store.commit(session.changes())
    state = store.open(DEVICE)
    assert state.exchanges == []
    assert [fact.identity for fact in state.facts] == [OTHER]


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_retiring_key_in_wrong_hands_bars_no_token_of_its_successor(restarted):
    """Though nobody knows after a restart by which key an exchange was begun."""
    receiver = Receiver(SERVER, Policy())

    def obey(expiry, key, **options):
        receiver.obey(receiver.order(expiry), key, **options)

    receiver.sequence_id = int(T0 * 1e6)
    obey(FIRST_UNDATED + receiver.sequence_id, OLD)
    obey(FIRST_UNDATED + receiver.sequence_id, NEW)
    obey(NO_EXPIRY - 1, OLD, retiring=True)
    if restarted:
        receiver.restart()
    receiver.now += 1.1 * 86400.0
    receiver.session.tick(receiver.now)
    receiver.sequence_id += 10
    obey(FIRST_UNDATED + receiver.sequence_id, NEW)
