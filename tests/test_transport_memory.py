"""The in-memory network: its faults happen, are repeatable, and stay away when nobody asked for them."""

import random
import threading

import pytest

from srup.errors import TransportError
from srup.transport import MemoryNetwork, MemoryTransport


def connect(network, client_id, *filters, settle=True):
    """A started transport, and the list of payloads that it hears."""
    heard = []

    def on_delivery(delivery):
        heard.append(delivery.payload)
        if settle:
            delivery.ack()

    transport = MemoryTransport(network, client_id)
    for topic_filter in filters:
        transport.subscribe(topic_filter)
    transport.start(on_delivery, lambda connected, why: None)
    return transport, heard


def numbers(count):
    return [b"%d" % number for number in range(count)]


def exchange(seed, **faults):
    """What a subscriber hears of a hundred messages, one every tenth of a second, and when it has heard each."""
    network = MemoryNetwork(seed, **faults)
    sender, _ = connect(network, "sender")
    timeline = []
    receiver = MemoryTransport(network, "receiver")
    receiver.subscribe("t")
    receiver.start(
        lambda delivery: (timeline.append((network._now, delivery.payload)), delivery.ack()), lambda *_: None
    )
    for tick, payload in enumerate(numbers(100)):
        network.advance(tick / 10)
        sender.publish("t", payload)
    while (due := network.next_due()) is not None:
        network.advance(due)
    return timeline


FAULTS = {"loss": 0.2, "duplicate": 0.2, "delay": (0.01, 0.5), "reorder": 0.2}


def test_the_same_seed_gives_the_same_deliveries():
    assert exchange(7, **FAULTS) == exchange(7, **FAULTS)
    assert exchange(7, **FAULTS) != exchange(8, **FAULTS)


def test_without_faults_everything_arrives_once_in_order_at_once():
    network = MemoryNetwork()
    sender, _ = connect(network, "sender")
    _, heard = connect(network, "receiver", "t")
    for payload in numbers(100):
        sender.publish("t", payload)
        assert heard[-1] == payload
    assert heard == numbers(100)
    assert network.next_due() is None


def test_loss_loses():
    heard = [payload for _, payload in exchange(1, loss=0.3)]
    assert 50 < len(heard) < 90
    assert heard == sorted(heard, key=int)
    assert exchange(1, loss=1.0) == []


def test_duplicates_come_twice():
    heard = [payload for _, payload in exchange(1, duplicate=0.3)]
    assert 110 < len(heard) < 150
    assert set(heard) == set(numbers(100))


def test_delay_delays_and_keeps_the_order():
    timeline = exchange(1, delay=(1.0, 5.0))
    assert [payload for _, payload in timeline] == numbers(100)
    assert all(when - int(payload) / 10 >= 1.0 for when, payload in timeline)
    assert any(when - int(payload) / 10 > 2.0 for when, payload in timeline)


def test_reorder_changes_the_order_and_loses_nothing():
    heard = [payload for _, payload in exchange(1, reorder=0.3)]
    assert heard != numbers(100)
    assert sorted(heard, key=int) == numbers(100)


def test_simulated_time_only_moves_when_told():
    network = MemoryNetwork(delay=(2.0, 2.0))
    sender, _ = connect(network, "sender")
    _, heard = connect(network, "receiver", "t")
    sender.publish("t", b"x")
    assert (heard, network.next_due()) == ([], 2.0)
    network.advance(1.9)
    assert heard == []
    network.advance(2.0)
    assert heard == [b"x"]
    with pytest.raises(ValueError, match="backwards"):
        network.advance(1.0)
    network.advance(2.0)  # and the refusal has not stuck


def test_a_clock_dates_what_is_published():
    network = MemoryNetwork(delay=(1.0, 1.0), clock=lambda: 41.0)
    sender, _ = connect(network, "sender")
    connect(network, "receiver", "t")
    sender.publish("t", b"x")
    assert network.next_due() == 42.0


def test_a_cut_client_gets_everything_later_and_sends_everything_later():
    network = MemoryNetwork()
    one, heard_by_one = connect(network, "one", "to/one")
    two, heard_by_two = connect(network, "two", "to/two")
    network.cut("two")
    for payload in numbers(3):
        one.publish("to/two", payload)
        two.publish("to/one", payload)
    assert (heard_by_one, heard_by_two) == ([], [])
    network.heal("two")
    assert (heard_by_one, heard_by_two) == (numbers(3), numbers(3))


def test_what_was_on_its_way_stays_behind_what_piled_up():
    network = MemoryNetwork(delay=(1.0, 1.0))
    one, _ = connect(network, "one")
    _, heard = connect(network, "two", "t")
    network.cut("two")
    one.publish("t", b"first")
    network.advance(1.0)
    one.publish("t", b"second")
    network.heal("two")
    network.advance(2.0)
    assert heard == [b"first", b"second"]


def test_what_is_due_but_not_delivered_stays_behind_what_piled_up():
    network = MemoryNetwork(duplicate=1e-12)
    one, _ = connect(network, "one")
    _, heard = connect(network, "two", "t")
    network.cut("two")
    one.publish("t", b"first")
    network.advance(0.0)
    one.publish("t", b"second")
    network.heal("two")
    network.advance(0.0)
    assert heard == [b"first", b"second"]


def test_a_client_cut_before_it_starts_stays_offline():
    network = MemoryNetwork()
    network.cut("one")
    states = []
    transport = MemoryTransport(network, "one")
    transport.start(lambda delivery: None, lambda *state: states.append(state[0]))
    assert not any(states)
    network.heal("one")
    assert states[-1]


def test_an_attacker_reads_and_writes():
    network = MemoryNetwork()
    sender, _ = connect(network, "sender")
    _, heard = connect(network, "receiver", "t")
    sender.publish("t", b"seen")
    network.inject(*network.log[0])
    assert heard == [b"seen", b"seen"]
    with pytest.raises(TransportError):
        network.inject("t/#", b"")


def test_one_hears_oneself_as_on_mqtt_3():
    transport, heard = connect(MemoryNetwork(), "one", "t")
    transport.publish("t", b"echo")
    assert heard == [b"echo"]


def test_the_second_client_with_an_id_takes_the_session_over():
    network = MemoryNetwork()
    states = []
    first = MemoryTransport(network, "one")
    first.subscribe("t")
    first.start(lambda delivery: None, lambda *state: states.append(state))
    _, heard = connect(network, "one")
    assert states[-1] == (False, "another client with this id took the session over")
    network.inject("t", b"x")
    assert heard == [b"x"]


def test_callbacks_may_publish_without_end_of_stack():
    network = MemoryNetwork()
    heard = []
    echo = MemoryTransport(network, "echo")
    echo.subscribe("t")

    def answer(delivery):
        heard.append(delivery.payload)
        delivery.ack()
        if len(heard) < 5000:
            echo.publish("t", b"again")

    echo.start(answer, lambda *_: None)
    echo.publish("t", b"first")
    assert len(heard) == 5000
    assert echo.faults == 0


def test_threads_lose_nothing_and_keep_each_senders_order():
    network = MemoryNetwork()
    _, heard = connect(network, "receiver", "t/+")
    senders = [connect(network, f"sender{n}")[0] for n in range(8)]

    def send(n):
        for i in range(200):
            senders[n].publish(f"t/{n}", b"%d %d" % (n, i))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(heard) == 1600
    for n in range(8):
        assert [p for p in heard if p.startswith(b"%d " % n)] == [b"%d %d" % (n, i) for i in range(200)]


@pytest.mark.parametrize("faults", [{"loss": 1.1}, {"duplicate": -0.1}, {"delay": (2.0, 1.0)}, {"delay": (-1.0, 1.0)}])
def test_impossible_faults_are_refused(faults):
    with pytest.raises(ValueError, match=r"0 to 1|shortest"):
        MemoryNetwork(**faults)


def test_the_global_random_state_is_left_alone():
    random.seed(1)
    before = random.getstate()
    exchange(3, **FAULTS)
    assert random.getstate() == before
