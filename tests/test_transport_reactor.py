"""Many transports on one network thread: what happens to one of them is no concern of the others."""

import queue
import resource
import socket
import threading
from contextlib import ExitStack

import pytest

from srup.transport import MqttTransport, Reactor
from srup.transport import link as link_module

from .programs import local_broker
from .test_transport_mqtt import ACCEPTED, PATIENCE, Peer, numbers


@pytest.fixture(scope="module")
def shared_broker():
    with local_broker("mosquitto") as broker:
        yield broker


@pytest.fixture
def own_broker():
    with local_broker("mosquitto") as broker:
        yield broker


@pytest.fixture
def reactor():
    reactor = Reactor("test-network")
    yield reactor
    reactor.stop(0.0)
    assert len(reactor) == 0
    for thread in network_threads():  # it may have been the last member's callback that stopped the reactor
        thread.join(PATIENCE)
    assert not network_threads()


def network_threads():
    return [thread for thread in threading.enumerate() if thread.name == "test-network"]


def member(reactor, url, client_id, *filters, **options):
    options = {"min_pause": 0.01, "max_pause": 0.1} | options
    transport = MqttTransport(url, client_id, reactor=reactor, **options)
    for topic_filter in filters:
        transport.subscribe(topic_filter)
    return Peer(transport)


def fleet(reactor, broker, prefix, count):
    """So many peers, each of which hears its own topic; connected at the same time."""
    peers = [
        member(reactor, broker.url, f"{prefix}{number}", f"SRUP/{prefix}/{number}").start() for number in range(count)
    ]
    for peer in peers:
        peer.wait(True)
    return peers


def all_are_served(peers, prefix):
    """Whether everybody hears what the next one says."""
    for number, peer in enumerate(peers):
        peer.send(b"to %d" % ((number + 1) % len(peers)), topic=f"SRUP/{prefix}/{(number + 1) % len(peers)}")
    heard = [peer.hear(1) for peer in peers]
    for peer in peers:
        peer.known.clear()
    return heard == [[b"to %d" % number] for number in range(len(peers))]


@pytest.mark.process
def test_many_share_one_thread(reactor, shared_broker):
    peers = fleet(reactor, shared_broker, "many", 300)
    assert len(reactor) == 300
    assert len(network_threads()) == 1
    assert all_are_served(peers, "many")


@pytest.mark.process
def test_a_broker_that_comes_back_gets_everybody_back(reactor, own_broker):
    peers = fleet(reactor, own_broker, "cut", 50)
    own_broker.kill()
    for peer in peers:
        peer.wait(False)
    own_broker.restart()
    for peer in peers:
        peer.wait(True)
    assert all_are_served(peers, "cut")


@pytest.mark.process
def test_what_was_sent_while_it_was_gone_keeps_its_order(reactor, own_broker):
    receiver = member(Reactor(), own_broker.url, "receiver", "SRUP/#").connect()
    senders = [member(reactor, own_broker.url, f"sender{n}").connect() for n in range(20)]
    receiver.transport.stop(PATIENCE)  # its session waits for it
    own_broker.restart()
    for n, sender in enumerate(senders):
        sender.send(*(b"%d %d" % (n, i) for i in range(30)), topic=f"SRUP/{n}")
    for sender in senders:
        sender.transport.stop(PATIENCE)
    receiver = member(Reactor(), own_broker.url, "receiver").start()
    heard = receiver.hear(600)
    receiver.transport.stop()
    for n in range(20):
        assert [p for p in heard if p.startswith(b"%d " % n)] == [b"%d %d" % (n, i) for i in range(30)]


@pytest.mark.process
def test_a_stolen_session_is_the_victims_affair(reactor, shared_broker):
    peers = fleet(reactor, shared_broker, "theft", 10)
    victim = member(reactor, shared_broker.url, "twin", min_pause=3600, max_pause=3600).connect()
    thief = member(reactor, shared_broker.url, "twin", "SRUP/theft/thief").connect()
    victim.wait(False)  # Mosquitto does not say why
    assert all_are_served(peers, "theft")
    peers[0].send(b"for the thief", topic="SRUP/theft/thief")
    assert thief.hear(1) == [b"for the thief"]
    victim.transport.stop()


@pytest.mark.process
def test_stopping_one_stops_no_other(reactor, shared_broker):
    peers = fleet(reactor, shared_broker, "stop", 12)
    for peer in peers[:6]:
        peer.transport.stop()
        assert peer.wait(False) == "stopped"
    assert len(reactor) == 6
    for number, peer in enumerate(peers[6:], 6):
        peer.send(b"still there", topic=f"SRUP/stop/{6 + (number + 1) % 6}")
    for peer in peers[6:]:
        assert peer.hear(1) == [b"still there"]
    assert all(peer.states.empty() for peer in peers[6:])


@pytest.mark.process
def test_the_thread_ends_with_the_last_and_begins_again_with_the_next(reactor, shared_broker):
    for _ in range(3):
        peers = fleet(reactor, shared_broker, "again", 3)
        assert len(network_threads()) == 1
        for peer in peers:
            peer.transport.stop()
        assert len(reactor) == 0
        assert not network_threads()


@pytest.mark.process
def test_stopping_the_reactor_sends_what_everybody_has_queued(reactor, shared_broker):
    receiver = member(Reactor(), shared_broker.url, "collector", "SRUP/collect/#").connect()
    for n in range(40):
        sender = member(reactor, shared_broker.url, f"collect{n}").start()
        sender.send(*(b"%d %d" % (n, i) for i in range(5)), topic=f"SRUP/collect/{n}")
    reactor.stop(PATIENCE)
    assert len(reactor) == 0
    assert sorted(receiver.hear(200)) == sorted(b"%d %d" % (n, i) for n in range(40) for i in range(5))
    receiver.transport.stop()


@pytest.mark.process
def test_one_whose_callbacks_raise_does_not_hurt_the_others(reactor, shared_broker):
    peers = fleet(reactor, shared_broker, "fence", 10)
    sick = MqttTransport(shared_broker.url, "sick", reactor=reactor)
    sick.subscribe("SRUP/fence/sick")
    up, heard = threading.Event(), queue.Queue()

    def on_delivery(delivery):
        heard.put(delivery.payload)
        raise ZeroDivisionError

    def on_state(connected, why):
        up.set()
        raise RuntimeError

    def on_settled():
        heard.put("settled")
        raise OSError

    sick.start(on_delivery, on_state)
    assert up.wait(PATIENCE)
    peers[0].send(*numbers(20), topic="SRUP/fence/sick")
    assert [heard.get(timeout=PATIENCE) for _ in range(20)] == numbers(20)
    sick.publish("SRUP/fence/nobody", b"", on_settled)
    assert heard.get(timeout=PATIENCE) == "settled"
    assert all_are_served(peers, "fence")
    assert sick.faults == 22
    assert not any(peer.transport.faults for peer in peers)
    assert all(peer.states.empty() for peer in peers)


@pytest.mark.process
def test_a_connection_that_bursts_does_not_hurt_the_others(reactor, shared_broker, monkeypatch):
    """Whatever paho raises: the connection is given up and made again, and the thread goes on."""
    peers = fleet(reactor, shared_broker, "burst", 10)
    move, bursts = link_module.Link.move, []

    def burst(link, ready):
        if link._member is peers[3].transport and len(bursts) < 3:
            bursts.append(link)
            raise ZeroDivisionError
        move(link, ready)

    monkeypatch.setattr(link_module.Link, "move", burst)
    peers[3].send(b"", topic="SRUP/burst/nobody")
    assert "internal error" in peers[3].wait(False)
    peers[3].wait(True)
    assert all_are_served(peers, "burst")
    assert peers[3].transport.faults == 3
    assert len(set(map(id, bursts))) == 3  # each time another connection
    assert all(peer.states.empty() for peer in peers if peer is not peers[3])


@pytest.mark.process
def test_a_hostile_broker_hurts_only_its_own_clients(reactor, shared_broker):
    peers = fleet(reactor, shared_broker, "hostile", 10)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        victim = member(reactor, f"mqtt://127.0.0.1:{server.getsockname()[1]}", "victim").start()
        for junk in (b"\xff" * 10, ACCEPTED + b"\x32\x01\x00", ACCEPTED + b"\x00\x00", b""):
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(junk)
            assert all_are_served(peers, "hostile")
        victim.transport.stop(0)
    assert all(peer.states.empty() for peer in peers)


@pytest.mark.process
def test_a_host_that_cannot_be_reached_keeps_nobody_waiting(reactor, shared_broker, monkeypatch):
    connect, release = link_module.Link.connect, threading.Event()

    def stuck(link):
        if link._endpoint.client_id.startswith("stuck"):
            assert release.wait(PATIENCE)
        connect(link)

    monkeypatch.setattr(link_module.Link, "connect", stuck)
    late = [member(reactor, shared_broker.url, f"stuck{n}").start() for n in range(3)]
    peers = fleet(reactor, shared_broker, "quick", 50)
    assert all_are_served(peers, "quick")
    assert all(peer.states.empty() for peer in late)
    release.set()
    for peer in late:
        peer.wait(True)


@pytest.mark.process
def test_no_more_than_the_connectors_connect_at_once(shared_broker, monkeypatch):
    connect, most, now, lock = link_module.Link.connect, [0], [0], threading.Lock()

    def counted(link):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        connect(link)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(link_module.Link, "connect", counted)
    reactor = Reactor("test-network", connectors=2)
    fleet(reactor, shared_broker, "slow", 40)
    reactor.stop()
    assert most[0] <= 2
    with pytest.raises(ValueError, match="connectors is at least 1, not 0"):
        Reactor(connectors=0)


@pytest.mark.process
def test_a_pause_of_one_is_no_pause_of_the_others(reactor, shared_broker):
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{bound.getsockname()[1]}"
        waiting = [member(reactor, url, f"wait{n}", min_pause=3600, max_pause=3600).start() for n in range(5)]
        for peer in waiting:
            assert "refused" in peer.wait(False)
        peers = fleet(reactor, shared_broker, "active", 5)
        assert all_are_served(peers, "active")
        waiting[0].transport.stop()  # ends the pause of an hour
        waiting[1].send(b"has something to send, in vain")
        waiting[1].transport.stop(0.1)
        assert len(reactor) == 8
        assert all_are_served(peers, "active")


@pytest.mark.process
def test_a_callback_may_stop_any_transport(reactor, shared_broker):
    one = member(reactor, shared_broker.url, "executioner", "SRUP/stopper")
    other = member(reactor, shared_broker.url, "condemned").connect()
    done = threading.Event()

    def on_delivery(delivery):
        other.transport.stop()
        one.transport.stop()
        reactor.stop()
        done.set()

    one.transport.start(on_delivery, lambda *state: one.states.put(state))
    one.wait(True)
    other.send(b"", topic="SRUP/stopper")
    assert done.wait(PATIENCE)
    assert other.wait(False) == one.wait(False) == "stopped"


@pytest.mark.process
def test_more_connections_than_select_can_see(reactor, shared_broker):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip(f"only {hard} file descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(500):
            for end in socket.socketpair():
                stack.enter_context(end)
        peers = fleet(reactor, shared_broker, "far", 100)
        stack.callback(reactor.stop)
        assert max(peer.transport._link._descriptor for peer in peers) > 1023
        assert all_are_served(peers, "far")
