"""Values with receipts through a broker that holds back, reorders, doubles and loses whatever it likes (T2)."""

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srup.errors import PolicyError, ReplayError
from srup.session import Send
from srup.session.events import DataConfirmed, DataReceived, DataRefused, TokenChanged, Unanswered
from srup.session.exchange import MAX_EXCHANGES
from srup.session.policy import MAX_SEQUENCE_ID
from srup.session.streams import REFUSED_IN, StreamPosition, Streams, read_receipt

from .session_link import DEVICE, SERVER, T0, Pair, nonce


def is_unknown(value):
    """Whether the receiver has no use for this value."""
    return value % 5 == 4


class Stream:
    """The server sends values to the device; both directions pass a broker that has its own mind."""

    def __init__(self, seed):
        self.random = Random(seed)
        pair = Pair().joined()
        self.sender, self.receiver = pair.server, pair.device
        self.now = T0 + 10
        self.held = []  # what the broker has: (the end that it is for, message)
        self.values = 0
        self.tokens = {}  # of the values under way
        self.taken, self.confirmed, self.refused, self.unanswered = [], [], [], []

    def perform(self, outputs):
        for output in outputs:
            match output:
                case Send():
                    self.held.append((self.receiver if output.to == DEVICE else self.sender, output.message))
                case DataReceived():
                    self.taken.append(value := int.from_bytes(output.data))
                    if is_unknown(value):
                        self.perform(self.receiver.refuse_data(SERVER, output.token, self.now))
                case TokenChanged():
                    self.tokens[output.token] = self.tokens.pop(output.former)
                case DataConfirmed():
                    self.confirmed.append(self.tokens.pop(output.token))
                case DataRefused():
                    self.refused.append(self.tokens.pop(output.token))
                case Unanswered():
                    self.unanswered.append(self.tokens.pop(output.token))

    def send(self, lifetime):
        self.values += 1
        value = self.values.to_bytes(4)
        outputs = self.sender.confirmed_data(DEVICE, "n", value, self.now, nonce(), lifetime)
        self.tokens[outputs[0].message.token] = self.values
        self.perform(outputs)

    def deliver(self, index):
        end, message = self.held.pop(index)
        if self.random.random() < 0.2:
            self.held.append((end, message))  # once more later: a replay
        with suppress(ReplayError, PolicyError):
            self.perform(end.receive(message, self.now, nonce()))

    def pass_time(self, seconds):
        self.now += seconds
        for end in (self.sender, self.receiver):
            self.perform(end.tick(self.now))

    def say_receipts(self):
        for partner in self.receiver.receipts_due(self.now):
            self.perform(self.receiver.receipt(partner, self.now, nonce()))

    def settle(self):
        """A broker that behaves from now on, and whatever it still has comes first."""
        for _ in range(200):
            while self.held:
                self.deliver(0)
            self.say_receipts()
            self.pass_time(5.0)
            if not self.tokens and not self.held:
                return
        raise AssertionError("values are still under way")


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1 << 32))
def test_t2_values_are_taken_in_order_and_once_and_none_is_confirmed_that_was_not(seed):
    stream = Stream(seed)
    random = stream.random
    for _ in range(120):
        match random.choice(["send", "deliver", "deliver", "lose", "receipt", "receipt", "time", "old receipt"]):
            case "send":
                stream.send(random.choice([3.0, 20.0, 1000.0]))
            case "deliver" if stream.held:
                stream.deliver(random.randrange(len(stream.held)))
            case "lose" if stream.held:
                stream.held.pop(random.randrange(len(stream.held)))
            case "receipt":
                stream.say_receipts()
            case "old receipt":  # as after a join that asks for one
                stream.perform(stream.receiver.receipt(SERVER, stream.now, nonce()))
            case "time":
                stream.pass_time(random.choice([0.5, 4.0, 15.0]))
    stream.settle()
    assert stream.taken == sorted(set(stream.taken))
    assert set(stream.confirmed) <= {value for value in stream.taken if not is_unknown(value)}
    assert set(stream.refused) <= {value for value in stream.taken if is_unknown(value)}
    assert sorted(stream.confirmed + stream.refused + stream.unanswered) == [*range(1, stream.values + 1)]


def test_t2_a_receipt_says_for_long_what_was_refused():
    """The oldest of all that can wait is refused, and so are others; no refusal gets to the sender."""
    stream = Stream(1)
    stream.random.random = lambda: 1.0
    for _ in range(MAX_EXCHANGES):
        stream.send(1000.0)
    while any(end is stream.receiver for end, _ in stream.held):
        stream.deliver(0)
    stream.held.clear()  # all refusals
    stream.perform(stream.receiver.receipt(SERVER, stream.now, nonce()))
    stream.deliver(0)
    assert stream.refused == [value for value in range(1, MAX_EXCHANGES + 1) if is_unknown(value)]
    assert sorted(stream.confirmed + stream.refused) == [*range(1, MAX_EXCHANGES + 1)]


def test_what_was_refused_takes_little_memory_and_is_forgotten():
    facts = {}
    streams = Streams(lambda partner, name, value: facts.update({name: value}))
    for number in (1, 2, 3, MAX_EXCHANGES, 1 << 40, (1 << 64) - 2):
        streams.set_received(SERVER, StreamPosition(7, number))
        streams.refuse(SERVER, StreamPosition(7, number))
        assert len(facts[REFUSED_IN]) < 1000
        position, refused = read_receipt(streams.give_receipt(SERVER, 0.0))
        assert position.number == number
        assert refused.has(StreamPosition(7, number))
        assert refused.has(StreamPosition(7, 1)) is (number <= MAX_EXCHANGES)
        assert not refused.has(StreamPosition(8, number))
        again = Streams(lambda *_: None)
        again.restore(SERVER, REFUSED_IN, facts[REFUSED_IN])
        assert again.refused == streams.refused
    streams.refuse(SERVER, StreamPosition(6, 1))  # of a stream that is over
    assert streams.refused[SERVER].stream == 7
    streams.set_received(SERVER, StreamPosition(9, 1))
    assert len(streams.give_receipt(SERVER, 0.0)) == 16
    assert not streams.refused
    assert facts[REFUSED_IN] is None


@pytest.mark.parametrize("size", [0, 15, 145])
def test_what_is_no_receipt_is_refused(size):
    with pytest.raises(PolicyError):
        read_receipt(bytes(size))


@pytest.mark.parametrize("taken", [0, 2])
def test_what_waits_behind_expired_values_says_whom_it_may_follow(taken):
    stream = Stream(1)
    stream.random.random = lambda: 1.0
    for lifetime in (3.0, 3.0, 1000.0):
        stream.send(lifetime)
    for _ in range(taken):
        stream.deliver(0)
    stream.held.clear()
    stream.pass_time(4.0)
    assert stream.unanswered == [1, 2]
    stream.held.clear()
    stream.perform(stream.receiver.receipt(SERVER, stream.now, nonce()))
    stream.deliver(0)
    assert len(stream.held) == (taken == 0)
    if not taken:
        assert stream.held[0][1].token.endswith(b".3.0")
    stream.settle()
    assert stream.taken == [*range(1, taken + 1), 3]


def test_a_later_stream_is_not_followed_by_an_earlier_one():
    assert StreamPosition(5, 3).reached(4) is None
    assert StreamPosition(5, 3).reached(5) == 3
    assert StreamPosition(5, 3).reached(6) == 0
    assert StreamPosition().reached(MAX_SEQUENCE_ID) == 0
