"""One contract, three networks: memory, Mosquitto (MQTT 5), amqtt (MQTT 3.1.1); then what only MQTT has."""

import queue
import re
import resource
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from cryptography import x509

from srup import PrivateKey
from srup.errors import MessageTooLargeError, TransportError
from srup.transport import Deliveries, MemoryNetwork, MemoryTransport, MqttTransport, unsettled
from srup.transport import link as link_module
from srup.transport.stream import Stream

from .certificates import AUTHORITY, certificate_of, host_files, private_of, write_client
from .fleet import key_of, wait_until
from .programs import local_broker, need

ACCEPTED = b"\x20\x03\x00\x00\x00"  # CONNACK of MQTT 5 without a session
PATIENCE = 20  # seconds until a test gives up; nothing waits that long when all is well


class Peer:
    """A transport whose callbacks only enqueue."""

    def __init__(self, transport):
        self.transport = transport
        self.inbox = queue.Queue()
        self.states = queue.Queue()
        self.known = set()

    def start(self):
        self.transport.start(self.inbox.put, lambda *state: self.states.put(state))
        return self

    def wait(self, connected):
        while (state := self.states.get(timeout=PATIENCE))[0] is not connected:
            pass
        return state[1]

    def connect(self):
        self.start().wait(True)
        return self

    def send(self, *payloads, topic="SRUP/1"):
        for payload in payloads:
            self.transport.publish(topic, payload)

    def hear(self, count):
        """The next ``count`` payloads that are new, in the order in which they first came; QoS 1 may repeat some."""
        heard = []
        while len(heard) < count:
            delivery = self.inbox.get(timeout=PATIENCE)
            delivery.ack()
            if delivery.payload not in self.known:
                self.known.add(delivery.payload)
                heard.append(delivery.payload)
        return heard

    def hears_nothing_but(self, marker):
        """Whether ``marker``, sent last, is the very next message."""
        return self.hear(1) == [marker]


class Memory:
    kind = "memory"

    def __init__(self):
        self.network = MemoryNetwork()
        self.ids = []

    def transport(self, client_id, **options):
        self.ids.append(client_id)
        return MemoryTransport(self.network, client_id, **options)

    def break_off(self):
        for client_id in self.ids:
            self.network.cut(client_id)

    def come_back(self):
        for client_id in self.ids:
            self.network.heal(client_id)

    def close(self):
        pass


class Mqtt:
    def __init__(self, kind):
        self.kind = kind
        self.broker = local_broker(kind).start()

    def transport(self, client_id, **options):
        return MqttTransport(self.broker.url, client_id, min_pause=0.01, max_pause=0.1, **options)

    def break_off(self):
        self.broker.kill()

    def come_back(self):
        self.broker.restart()

    def close(self):
        self.broker.stop()


@pytest.fixture(params=["memory", pytest.param("mosquitto", marks=pytest.mark.process), "amqtt"])
def network(request):
    network = Memory() if request.param == "memory" else Mqtt(request.param)
    yield network
    network.close()


@pytest.fixture
def peer(network):
    """Makes peers, and stops them in the end."""
    with ExitStack() as stack:

        def make(client_id, *filters, **options):
            transport = network.transport(client_id, **options)
            stack.callback(transport.stop, 0.0)
            for topic_filter in filters:
                transport.subscribe(topic_filter)
            return Peer(transport)

        yield make


def numbers(count):
    return [b"%d" % number for number in range(count)]


class TestContract:
    def test_messages_arrive_in_order_and_only_where_they_match(self, peer):
        receiver = peer("receiver", "SRUP/1/#").connect()
        sender = peer("sender").connect()
        sender.send(b"elsewhere", topic="SRUP/2")
        sender.send(*numbers(300))
        assert receiver.hear(300) == numbers(300)

    def test_topic_and_payload_are_what_was_sent(self, peer):
        receiver = peer("receiver", "SRUP/servers/51/#").connect()
        payload = bytes(range(256)) * 300
        peer("sender").connect().send(payload, topic="SRUP/servers/51/d0")
        delivery = receiver.inbox.get(timeout=PATIENCE)
        assert (delivery.topic, delivery.payload) == ("SRUP/servers/51/d0", payload)
        assert type(delivery.payload) is bytes

    def test_what_is_published_before_start_is_sent(self, peer):
        receiver = peer("receiver", "SRUP/1").connect()
        sender = peer("sender")
        sender.send(*numbers(10))
        sender.start()
        assert receiver.hear(10) == numbers(10)

    def test_subscriptions_come_and_go_while_connected(self, peer):
        receiver = peer("receiver", "SRUP/1").connect()
        sender = peer("sender", "SRUP/ack").connect()
        receiver.transport.subscribe("SRUP/2")
        receiver.transport.unsubscribe("SRUP/1")
        receiver.transport.unsubscribe("SRUP/never")
        # One's own message comes back only after the broker has read what was said before it.
        receiver.send(b"done", topic="SRUP/ack")
        assert sender.hear(1) == [b"done"]
        sender.send(b"not wanted")
        sender.send(b"wanted", topic="SRUP/2")
        assert receiver.hears_nothing_but(b"wanted")

    def test_a_stopped_client_finds_its_messages_waiting(self, network, peer):
        receiver = peer("receiver", "SRUP/1").connect()
        receiver.transport.stop()
        sender = peer("sender").connect()
        sender.send(*numbers(50))
        if network.kind != "amqtt":  # it drops what it has acknowledged to a client that leaves at once
            sender.transport.stop(PATIENCE)
        heard = peer("receiver").start().hear(50)
        # amqtt acknowledges before it routes, and lets what is still on its way overtake what was queued.
        assert (sorted(heard, key=int) if network.kind == "amqtt" else heard) == numbers(50)

    def test_what_was_not_settled_comes_again(self, network, peer):
        if network.kind == "amqtt":
            pytest.skip("amqtt never delivers again what was not acknowledged")
        first = peer("receiver", "SRUP/1").connect()
        peer("sender").connect().send(*numbers(10))
        deliveries = [first.inbox.get(timeout=PATIENCE) for _ in range(10)]
        for delivery in deliveries[:4]:
            delivery.ack()
        first.transport.stop()
        deliveries[5].ack()  # too late, and harmless
        assert peer("receiver").start().hear(6) == numbers(10)[4:]

    def test_settling_twice_or_too_late_is_harmless(self, peer):
        receiver = peer("receiver", "SRUP/1").connect()
        sender = peer("sender").connect()
        sender.send(b"one")
        delivery = receiver.inbox.get(timeout=PATIENCE)
        threads = [threading.Thread(target=delivery.ack) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sender.send(b"two")
        assert receiver.hear(1) == [b"two"]
        receiver.transport.stop()
        delivery.ack()

    def test_what_is_sent_while_the_broker_is_gone_arrives_in_order(self, network, peer, monkeypatch):
        # A broker that forgot its sessions has nobody to deliver to before the receiver is back.
        receiver_is_back = threading.Event()
        receiver_is_back.set()
        connect = link_module.Link.connect

        def connect_in_turn(link):
            if link._endpoint.client_id == "sender":
                receiver_is_back.wait(PATIENCE)
            connect(link)

        monkeypatch.setattr(link_module.Link, "connect", connect_in_turn)
        receiver = peer("receiver", "SRUP/1").connect()
        sender = peer("sender").connect()
        sender.send(b"before")
        assert receiver.hear(1) == [b"before"]
        receiver_is_back.clear()
        network.break_off()
        receiver.wait(False)
        sender.wait(False)
        sender.send(*numbers(100))
        network.come_back()
        receiver.wait(True)
        receiver_is_back.set()
        assert receiver.hear(100) == numbers(100)

    def test_the_queue_flushes_by_itself_when_the_link_returns(self, network, peer):
        talker = peer("talker").connect()
        network.break_off()
        talker.wait(False)
        talker.send(*numbers(60))
        network.come_back()
        talker.wait(True)
        talker.transport.stop(PATIENCE)
        assert not talker.transport._outbox

    def test_a_filter_added_while_offline_counts_after_reconnecting(self, network, peer):
        receiver = peer("receiver").connect()
        sender = peer("sender").connect()
        network.break_off()
        receiver.wait(False)
        sender.wait(False)
        receiver.transport.subscribe("SRUP/1")
        network.come_back()
        receiver.wait(True)
        sender.wait(True)
        sender.send(b"x")
        assert receiver.hear(1) == [b"x"]

    def test_a_callback_that_raises_does_not_end_the_link(self, network, peer, caplog):
        sender = peer("sender").connect()
        transport = network.transport("receiver")
        transport.subscribe("SRUP/1")
        inbox, up = queue.Queue(), threading.Event()

        def on_delivery(delivery):
            inbox.put(delivery.payload)
            if delivery.payload == b"poison":
                raise ZeroDivisionError

        def on_state(connected, why):
            up.set() if connected else None
            raise RuntimeError("nor does this one")

        transport.start(on_delivery, on_state)
        try:
            assert up.wait(PATIENCE)
            sender.send(b"poison", b"next")
            assert [inbox.get(timeout=PATIENCE) for _ in range(2)] == [b"poison", b"next"]
            assert transport.faults >= 2
            assert any(record.exc_info and "SRUP/1" in record.getMessage() for record in caplog.records)
        finally:
            transport.stop()

    def test_enough_poison_does_not_silence_the_link(self, network, peer):
        if network.kind == "amqtt":
            pytest.skip("amqtt has no window to fill")
        sender = peer("sender").connect()
        transport = network.transport("receiver")
        transport.subscribe("SRUP/1")
        served, up = threading.Event(), threading.Event()

        def on_delivery(delivery):
            if delivery.payload == b"last":
                served.set()
            else:
                raise ZeroDivisionError

        transport.start(on_delivery, lambda connected, why: up.set() if connected else None)
        try:
            assert up.wait(PATIENCE)
            sender.send(*numbers(1500), b"last")
            assert served.wait(PATIENCE)
            assert transport.faults == 1500
        finally:
            transport.stop()

    def test_stopping_ends_it_for_good(self, peer):
        one = peer("one").connect()
        one.transport.stop()
        one.transport.stop()
        assert one.wait(False) == "stopped"
        with pytest.raises(TransportError, match="stopped"):
            one.send(b"x")
        with pytest.raises(TransportError, match="started before"):
            one.start()
        never_started = peer("other").transport
        never_started.stop()

    def test_it_says_once_when_a_message_is_settled(self, peer):
        sender, settled = peer("sender"), queue.Queue()
        for number in range(50):
            sender.transport.publish("SRUP/1", b"", lambda number=number: settled.put(number))
        sender.send(b"and nobody asks for this one")
        assert settled.empty()
        sender.start()
        assert [settled.get(timeout=PATIENCE) for _ in range(50)] == list(range(50))
        sender.transport.stop(PATIENCE)
        assert settled.empty()

    def test_what_was_never_sent_is_never_settled(self, peer):
        sender, settled = peer("sender"), []
        sender.transport.publish("SRUP/1", b"", lambda: settled.append("x"))
        sender.transport.stop()
        assert not settled

    def test_an_on_settled_that_raises_does_not_end_the_link(self, peer):
        sender, settled = peer("sender").connect(), queue.Queue()
        sender.transport.publish("SRUP/1", b"", lambda: 1 // 0)
        sender.transport.publish("SRUP/1", b"", lambda: settled.put("x"))
        assert settled.get(timeout=PATIENCE) == "x"
        assert sender.transport.faults == 1
        assert sender.states.empty()

    def test_starting_twice_is_refused(self, peer):
        one = peer("one").connect()
        with pytest.raises(TransportError, match="started before"):
            one.start()

    def test_the_queue_is_bounded(self, peer):
        one = peer("one", max_queued=3)
        one.send(*numbers(3))
        with pytest.raises(TransportError, match="3 messages"):
            one.send(b"too many")

    def test_stop_sends_what_is_queued_first(self, network, peer):
        if network.kind == "amqtt":
            pytest.skip("amqtt drops what it has acknowledged to a client that leaves at once")
        receiver = peer("receiver", "SRUP/1").connect()
        sender = peer("sender")
        sender.send(*numbers(500))
        sender.start().transport.stop(PATIENCE)
        assert receiver.hear(500) == numbers(500)

    def test_wildcards_are_for_filters(self, peer):
        one = peer("one")
        with pytest.raises(TransportError):
            one.transport.publish("SRUP/#", b"")
        with pytest.raises(TransportError):
            one.transport.subscribe("SRUP/#/x")

    def test_many_threads_share_a_transport(self, peer):
        receiver = peer("receiver", "SRUP/+").connect()
        sender = peer("sender").connect()

        def send(n):
            sender.send(*(b"%d %d" % (n, i) for i in range(50)), topic=f"SRUP/{n}")

        threads = [threading.Thread(target=send, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        heard = receiver.hear(300)
        for n in range(6):
            assert [p for p in heard if p.startswith(b"%d " % n)] == [b"%d %d" % (n, i) for i in range(50)]


class Script:
    """A broker that does what a test says, packet by packet; MQTT 5 unless the test says otherwise."""

    def __init__(self, server):
        self.server = server
        self.url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        server.settimeout(PATIENCE)

    def accept(self, answer=ACCEPTED):
        """Take the next connection, read its CONNECT and answer it."""
        self.connection, _ = self.server.accept()
        self.connection.settimeout(PATIENCE)
        self.connect = self.read()
        assert self.connect[0] == 0x10
        self.connection.sendall(answer)
        return self.connection

    def accept_3(self):
        """Take the next connection that speaks MQTT 3.1.1."""
        while True:
            connection = self.accept(b"")
            if self.connect[8] == 4:
                self.say(b"\x20\x02\x00\x00")
                return connection
            with connection:
                self.say(b"\x20\x02\x00\x01")

    def read(self):
        """The next packet; empty at the end."""
        head = self.connection.recv(2, socket.MSG_WAITALL)
        while head and head[-1] & 0x80:
            head += self.connection.recv(1, socket.MSG_WAITALL)
        size = sum((digit & 0x7F) << 7 * place for place, digit in enumerate(head[1:]))
        return head + (self.connection.recv(size, socket.MSG_WAITALL) if size else b"")

    def say(self, packet):
        self.connection.sendall(packet)


@pytest.fixture
def script():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Script(server)


def accepted(properties):
    """CONNACK of MQTT 5 with properties."""
    return b"\x20" + bytes([3 + len(properties), 0, 0, len(properties)]) + properties


def granted(subscribe, *reasons):
    """SUBACK of MQTT 5."""
    return bytes([0x90, 3 + len(reasons)]) + subscribe[2:4] + bytes([0, *reasons])


def publication(packet_id):
    """PUBLISH on SRUP/1 without a payload, QoS 1."""
    return b"\x32\x0b\x00\x06SRUP/1" + bytes([0, packet_id, 0])


def puback(packet_id):
    return bytes([0x40, 2, 0, packet_id])


class TestAgainstAScript:
    """Moments that no real broker produces on demand. Packets: MQTT 5.0, section 3."""

    def test_what_was_not_acknowledged_is_sent_again_first_and_in_order(self, script):
        one = Peer(MqttTransport(script.url, "one", min_pause=0.01))
        one.send(*numbers(25))
        one.start()
        with script.accept():
            sent = [script.read() for _ in range(20)]  # what may be in flight
            assert [packet[13:] for packet in sent] == numbers(20)
            script.say(puback(sent[0][11]))
            assert script.read()[13:] == b"20"  # so the acknowledgement has been seen
        with script.accept():
            assert [script.read()[13:] for _ in range(20)] == numbers(21)[1:]
        one.transport.stop(0)

    def test_it_is_up_when_the_subscriptions_stand(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.transport.subscribe("SRUP/1")
        one.start()
        with script.accept():
            subscribe = script.read()
            assert subscribe[0] == 0x82
            one.transport.subscribe("SRUP/2")
            second = script.read()
            with pytest.raises(queue.Empty):
                one.states.get(timeout=0.2)
            for packet in (subscribe, second):
                script.say(b"\x90\x04" + packet[2:4] + b"\x00\x01")
            one.wait(True)
        one.transport.stop(0)

    def test_a_delivery_is_acknowledged_once_and_only_where_it_came_from(self, script):
        one = Peer(MqttTransport(script.url, "one", min_pause=0.01))
        one.start()
        with script.accept():
            script.say(publication(7))
            old = one.inbox.get(timeout=PATIENCE)
        with script.accept():
            script.say(publication(7))  # the broker may have given the id to another message
            new = one.inbox.get(timeout=PATIENCE)
            one.wait(True)
            old.ack()
            one.send(b"after the old one")
            assert script.read()[0] == 0x32
            new.ack()
            new.ack()
            one.send(b"after the new one")
            assert sorted(script.read()[0] for _ in range(2)) == [0x32, 0x40]
            one.send(b"and nothing else")
            assert script.read()[0] == 0x32
        one.transport.stop(0)

    def test_what_comes_at_once_and_in_pieces_is_delivered_and_acknowledged_in_order(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept():
            plain = b"\x30\x0a\x00\x06SRUP/1\x00y"  # QoS 0
            dated = b"\x3b\x11\x00\x06SRUP/1\x00\x64\x05\x02\x00\x00\x00\x07x"  # DUP, RETAIN and an expiry
            bad = b"\x32\x0b\x00\x06SRUP/\xff\x00\x65\x00"  # its topic is not UTF-8: settled, not delivered
            whole = publication(1) + plain + dated + bad + publication(2)
            script.say(whole)
            for byte in whole:
                script.say(bytes([byte]))
            got = [one.inbox.get(timeout=PATIENCE) for _ in range(8)]
            assert [each.payload for each in got] == [b"", b"y", b"x", b""] * 2
            for each in got:
                each.ack()
                each.ack()
            acknowledged = [script.read() for _ in range(8)]
            assert sorted(acknowledged) == sorted(2 * [puback(1), puback(100), puback(101), puback(2)])
            assert [each for each in acknowledged if each != puback(101)] == 2 * [puback(1), puback(100), puback(2)]
            one.send(b"and nothing else")
            assert script.read()[0] == 0x32
        one.transport.stop(0)

    def test_what_comes_together_is_handed_on_and_acknowledged_together(self, script):
        came = queue.Queue()
        transport = MqttTransport(script.url, "one")
        transport.hear_together(came.put)
        transport.start(came.put, lambda connected, why: None)
        with script.accept():
            script.say(b"".join(publication(1 + number) for number in range(100)))
            heard = []
            while sum(map(len, heard)) < 100:  # in how many pieces it is received, nobody knows
                heard.append(came.get(timeout=PATIENCE))
            for together in heard:
                assert isinstance(together, Deliveries)
                assert together.topics == ["SRUP/1"] * len(together)
                together.ack()
                together.ack()
            assert [script.read() for _ in range(100)] == [puback(1 + number) for number in range(100)]
            script.say(b"\x30\x0a\x00\x06SRUP/1\x00y" + publication(7))
            assert [came.get(timeout=PATIENCE).payloads for _ in range(2)] == [[b"y"], [b""]]  # a QoS is by itself
            transport.publish("SRUP/2", b"and nothing is acknowledged")
            assert script.read()[0] == 0x32
        transport.stop(0)

    def test_whoever_stands_in_between_hears_each_message_by_itself(self, script):
        came, not_told = queue.Queue(), queue.Queue()
        transport = MqttTransport(script.url, "one")
        transport.hear_together(not_told.put)
        transport.start(lambda delivery: came.put(delivery), lambda connected, why: None)
        with script.accept():
            script.say(publication(1) + publication(2))
            for number in (1, 2):
                came.get(timeout=PATIENCE).ack()
                assert script.read() == puback(number)
        assert not_told.empty()
        transport.stop(0)

    def test_what_comes_together_is_settled_when_it_cannot_be_handed_on(self, script):
        def raise_(deliveries):
            raise RuntimeError("a fault")

        transport = MqttTransport(script.url, "one")
        transport.hear_together(raise_)
        transport.start(raise_, lambda connected, why: None)
        with script.accept():
            script.say(publication(1) + publication(2))
            assert [script.read() for _ in range(2)] == [puback(1), puback(2)]
        assert 1 <= transport.faults <= 2
        transport.stop(0)

    def test_a_broker_that_heeds_no_limit_is_not_read_until_something_is_acknowledged(self, script, monkeypatch):
        monkeypatch.setattr(unsettled, "RECEIVE_MAXIMUM", 20)
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept():
            one.wait(True)
            link = one.transport._link
            long = [b"\x32\x9b\x4e\x00\x06SRUP/1" + bytes([0, n + 1, 0]) + bytes(10_000) for n in range(200)]
            sender = threading.Thread(target=script.say, args=(b"".join(long),))
            sender.start()
            deadline = time.monotonic() + PATIENCE
            while link._watched & selectors.EVENT_READ:
                assert time.monotonic() < deadline
            assert one.inbox.qsize() == 20 + 1
            one.send(b"it goes on sending")
            assert script.read()[0] == 0x32
            for n in range(200):
                delivery = one.inbox.get(timeout=PATIENCE)
                assert one.inbox.qsize() <= 20 + 1
                delivery.ack()
                assert script.read() == puback(n + 1)
            sender.join()
        one.transport.stop(0)

    def test_a_broker_that_declines_version_5_is_asked_in_version_3_at_once(self, script):
        one = Peer(MqttTransport(script.url, "one", min_pause=3600, max_pause=3600))
        one.start()
        with script.accept(b"\x20\x02\x00\x01"):  # MQTT 3.1.1, section 3.2.2.3
            pass
        with script.accept(b"\x20\x02\x00\x00"):
            assert one.states.get(timeout=PATIENCE) == (True, f"connected to {script.url} with MQTT 3.1.1")
        one.transport.stop(0)

    def test_stop_waits_until_the_broker_has_read_everything(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept():
            one.wait(True)
            stopper = threading.Thread(target=one.transport.stop)
            stopper.start()
            assert script.read()[0] == 0xE0  # DISCONNECT
            stopper.join(0.2)
            assert stopper.is_alive()
        stopper.join(PATIENCE)
        assert not stopper.is_alive()

    def test_what_is_sent_again_is_settled_once(self, script):
        settled = queue.Queue()
        one = Peer(MqttTransport(script.url, "one", min_pause=0.01))
        one.transport.publish("SRUP/1", b"x", lambda: settled.put("x"))
        one.start()
        with script.accept():
            script.read()
        assert settled.empty()
        with script.accept():
            packet_id = script.read()[11]
            script.say(puback(packet_id) + puback(packet_id))
            assert settled.get(timeout=PATIENCE) == "x"
            one.send(b"a second acknowledgement has been read before this one's")
            script.say(puback(script.read()[11]))
            one.transport.stop(2)
        assert settled.empty()

    def test_a_message_that_the_broker_refuses_is_logged_and_not_repeated(self, script, caplog):
        one = Peer(MqttTransport(script.url, "one"))
        settled = queue.Queue()
        one.transport.publish("SRUP/1", b"refused", lambda: settled.put("refused"))
        one.send(b"served")
        one.start()
        with script.accept():
            refused = script.read()
            script.say(bytes([0x40, 4, 0, refused[11], 0x87, 0]))  # not authorized
            served = script.read()
            script.say(puback(served[11]))
            one.transport.stop(2)
        assert "refused a message on 'SRUP/1': Not authorized" in caplog.text
        assert settled.get_nowait() == "refused"


def at_most(size):
    """Maximum Packet Size (MQTT 5.0, section 3.2.2.3.6)."""
    return b"\x27" + size.to_bytes(4, "big")


class TestTheBrokersLimit:
    """Messages that are too large for the broker."""

    def test_what_does_not_fit_is_refused_where_it_is_published(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept(accepted(at_most(200))):
            one.wait(True)
            fits = bytes(200 - 3 - 8 - 2 - 1)  # the header, the topic, the packet id, no properties
            with pytest.raises(MessageTooLargeError, match="at most 200 bytes; a message on 'SRUP/1' needs 201"):
                one.send(fits + b"x")
            one.send(fits)
            assert len(script.read()) == 200
        one.transport.stop(0)

    @pytest.mark.parametrize("size", [0, 113, 114, 115, 116, 16_369, 16_370, 16_371, 16_372, 70_000])
    def test_it_knows_how_large_a_packet_is(self, script, size):
        one = Peer(MqttTransport(script.url, "one"))
        one.send(bytes(size))
        expected = one.transport._outbox[0].size
        one.start()
        with script.accept():
            assert len(script.read()) == expected
        one.transport.stop(0)

    def test_what_was_published_before_the_limit_was_known_is_given_up_aloud(self, script, caplog):
        one, said = Peer(MqttTransport(script.url, "one")), queue.Queue()

        def publish(payload):
            settled, refused = (lambda: said.put(("settled", payload))), (lambda error: said.put(("refused", error)))
            one.transport.publish("SRUP/1", payload, settled, refused)

        publish(bytes(300))
        one.send(bytes(301), b"small")
        one.start()
        with script.accept(accepted(at_most(200))):
            assert script.read()[13:] == b"small"
            what, error = said.get(timeout=PATIENCE)
            assert (what, type(error)) == ("refused", MessageTooLargeError)
            assert "needs 315" in caplog.text  # nobody else hears of the other one
            publish(b"next")
            sent = script.read()
            script.say(puback(sent[11]))
            assert said.get(timeout=PATIENCE) == ("settled", b"next")
        one.transport.stop(0)

    def test_a_limit_is_forgotten_with_the_broker_that_had_it(self, script):
        one = Peer(MqttTransport(script.url, "one", min_pause=0.01))
        one.start()
        with script.accept(accepted(at_most(20))):
            one.wait(True)
        with script.accept():
            one.wait(True)
            one.send(bytes(100))
            assert len(script.read()) > 100
        one.transport.stop(0)

    @pytest.mark.parametrize("farewell", [b"", b"\xe0\x02\x95\x00"], ids=["3.1.1", "5, which says why"])
    def test_a_message_that_ends_every_connection_does_not_block_the_others(self, script, farewell):
        one, said = Peer(MqttTransport(script.url, "one", min_pause=0.01, max_pause=PATIENCE)), queue.Queue()
        sizes = [10, 20, 5000, 30, 6000, *range(31, 60)]
        for size in sizes:
            settled = lambda size=size: said.put((size, None))  # noqa: E731
            refused = lambda error, size=size: said.put((size, error))  # noqa: E731
            one.transport.publish("SRUP/1", bytes(size), settled, refused)
        connections = []

        def broker():
            while results.keys() != set(sizes):
                connections.append("another")
                with script.accept() if farewell else script.accept_3():
                    while (packet := script.read()) and packet[0] == 0x32 and len(packet) < 1000:
                        script.say(puback(packet[11]))
                    if packet and packet[0] == 0x32:
                        script.say(farewell)

        results = {}
        served = threading.Thread(target=broker)
        served.start()
        one.start()
        while results.keys() != set(sizes):
            results |= [said.get(timeout=PATIENCE)]
        with pytest.raises(MessageTooLargeError, match="5014"):
            one.send(bytes(5000))  # another of that size is not tried
        one.transport.stop(PATIENCE)
        served.join()
        assert [size for size in sizes if results[size] is not None] == [5000, 6000]
        assert isinstance(results[5000], MessageTooLargeError)
        assert len(connections) <= 8
        reasons = [one.states.get_nowait()[1] for _ in range(one.states.qsize())]
        assert not any("another client" in why for why in reasons)
        if not farewell:
            assert any("may be too large" in why for why in reasons)

    def test_nothing_is_given_up_of_a_size_that_the_broker_takes(self, script):
        """A thief of the session, or a bad network, ends connections whatever is sent."""
        one, refused = Peer(MqttTransport(script.url, "one", min_pause=0.01, max_pause=0.02)), queue.Queue()
        one.start()
        with script.accept():
            one.send(bytes(100))
            script.say(puback(script.read()[11]))
            one.transport.publish("SRUP/1", b"not to be lost", None, refused.put)
            assert script.read()[13:] == b"not to be lost"
        for _ in range(10):
            with script.accept():
                assert script.read()[13:] == b"not to be lost"
        with script.accept():
            script.say(puback(script.read()[11]))
            one.transport.stop(2)
        assert refused.empty()


class TestAHostileBroker:
    """What a broker can make us keep, and what it can do to us."""

    def test_our_own_limit_is_announced(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept():
            assert at_most(131_072) in script.connect
        one.transport.stop(0)

    @pytest.mark.parametrize("version", [4, 5])
    def test_t18_a_packet_over_our_limit_ends_the_connection_before_it_has_come(self, script, version):
        one = Peer(MqttTransport(script.url, "one", min_pause=0.01))
        one.start()
        with script.accept_3() if version == 4 else script.accept():
            one.wait(True)
            script.say(b"\x30\xff\xff\xff\x7f")
            assert script.read() == b""
            assert "a packet of 268435460 bytes, although 131072 is our limit" in one.wait(False)
        with script.accept_3() if version == 4 else script.accept():
            one.wait(True)
        one.transport.stop(0)

    def test_a_broker_at_fault_is_not_taken_for_a_thief(self, script):
        one = Peer(MqttTransport(script.url, "one", min_pause=0.01, max_pause=3600))
        one.start()
        for _ in range(5):
            with script.accept():
                one.wait(True)
                script.say(b"\x34\x06\x00\x01a\x00\x01\x00")
                why = one.wait(False)
        assert why.endswith("a message with QoS 2, which nobody subscribed with")
        one.transport.stop(0)

    def test_the_largest_message_fits(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept():
            topic = b"\x00\x2fSRUP/servers/ffffffffffffffff/ffffffffffffffff"[: 2 + 0x2F]
            topic = (len(topic) - 2).to_bytes(2, "big") + topic[2:]
            body = topic + b"\x00\x07\x00" + bytes(65_535)
            size = len(body)
            script.say(b"\x32" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + body)
            assert len(one.inbox.get(timeout=PATIENCE).payload) == 65_535
        one.transport.stop(0)

    def test_t18_a_message_with_qos_2_ends_the_connection(self, script):
        one = Peer(MqttTransport(script.url, "one", min_pause=0.01))
        one.start()
        with script.accept():
            one.wait(True)
            script.say(b"\x34\x0b\x00\x06SRUP/1\x00\x07\x00")
            assert script.read() == b""
            assert "a message with QoS 2, which nobody subscribed with" in one.wait(False)
        one.transport.stop(0)

    @pytest.mark.parametrize("qos", [0, 1])
    def test_t18_it_is_not_read_while_too_much_of_it_is_unsettled(self, script, monkeypatch, qos):
        monkeypatch.setattr(unsettled, "MAX_OPEN", 100_000)
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept():
            one.wait(True)
            link = one.transport._link
            packets = [
                bytes([0x30 | 2 * qos])
                + (b"\x9b\x4e" if qos else b"\x99\x4e")
                + b"\x00\x06SRUP/1"
                + (bytes([0, n + 1]) if qos else b"")
                + bytes(10_001)
                for n in range(200)
            ]
            sender = threading.Thread(target=script.say, args=(b"".join(packets),))
            sender.start()
            deadline = time.monotonic() + PATIENCE
            while link._watched & selectors.EVENT_READ:
                assert time.monotonic() < deadline
            assert one.inbox.qsize() == 10
            for _ in range(200):
                delivery = one.inbox.get(timeout=PATIENCE)
                assert one.inbox.qsize() <= 10
                if qos:
                    delivery.ack()
                    assert script.read()[0] == 0x40
                del delivery  # with QoS 0 that is enough: it would never come again
            sender.join()
        one.transport.stop(0)

    @pytest.mark.parametrize("version", [4, 5])
    def test_a_refused_subscription_is_no_connection_until_it_is_granted(self, script, monkeypatch, version):
        monkeypatch.setattr(link_module, "_REFUSED_PAUSE", 0.0)
        one = Peer(MqttTransport(script.url, "one", keepalive=8))
        for n in range(3):
            one.transport.subscribe(f"SRUP/{n}")
        one.start()

        def answer(subscribe, *reasons):
            script.say(
                granted(subscribe, *reasons)
                if version == 5
                else b"\x90" + bytes([2 + len(reasons)]) + subscribe[2:4] + bytes(reasons)
            )

        with script.accept_3() if version == 4 else script.accept():
            answer(script.read(), 1, 0x87 if version == 5 else 0x80, 0x80)
            connected, why = one.states.get(timeout=PATIENCE)
            assert not connected
            assert "refuses the subscription to 'SRUP/1' and 1 more: " in why
            assert ("Not authorized" if version == 5 else "Unspecified") in why
            one.send(b"sent all the same")
            again = [script.read(), script.read()]
            [subscribe] = [packet for packet in again if packet[0] == 0x82]
            assert b"SRUP/1" in subscribe
            assert b"SRUP/0" not in subscribe
            answer(subscribe, 1, 1)
            assert one.states.get(timeout=PATIENCE)[0]
        one.transport.stop(0)

    def test_who_gives_a_refused_subscription_up_is_connected(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.transport.subscribe("SRUP/1")
        one.start()
        with script.accept():
            script.say(granted(script.read(), 0x87))
            one.wait(False)
            one.transport.unsubscribe("SRUP/1")
            one.wait(True)
        one.transport.stop(0)

    def test_a_subscription_that_gets_no_answer_of_its_own_is_refused(self, script):
        one = Peer(MqttTransport(script.url, "one"))
        one.transport.subscribe("SRUP/1")
        one.transport.subscribe("SRUP/2")
        one.start()
        with script.accept():
            script.say(granted(script.read(), 1))
            assert "'SRUP/2': no answer" in one.wait(False)
        one.transport.stop(0)

    def test_a_broker_without_qos_1_is_of_no_use(self, script):
        one = Peer(MqttTransport(script.url, "one", max_pause=3600))
        one.send(b"x")
        one.start()
        with script.accept(accepted(b"\x24\x00")):
            assert "QoS 1" in one.wait(False)
            assert script.read() == b""
        one.transport.stop(0)

    def test_a_broker_may_choose_the_keep_alive(self, script):
        one = Peer(MqttTransport(script.url, "one", keepalive=65_535))
        one.start()
        with script.accept(accepted(b"\x13\x00\x01")):  # Server Keep Alive, 1 s (MQTT 5.0, section 3.2.2.3.14)
            for _ in range(2):
                assert script.read() == b"\xc0\x00"  # PINGREQ
                script.say(b"\xd0\x00")
        one.transport.stop(0)

    def test_a_connection_that_is_made_during_a_turn_is_the_only_one(self, script, monkeypatch):
        """Or else the client would take its session over from itself, and what was on its way would be lost."""
        connect, in_a_turn = link_module.Link.connect, threading.Event()

        def connect_during_a_turn(link):
            assert in_a_turn.wait(PATIENCE)
            connect(link)

        def turn():
            if one.transport._connecting and not in_a_turn.is_set():
                in_a_turn.set()
                wait_until(lambda: not one.transport._connecting)

        monkeypatch.setattr(link_module.Link, "connect", connect_during_a_turn)
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        assert one.transport.lend_thread(turn, lambda: float("inf"))
        wait_until(lambda: one.transport._connecting or in_a_turn.is_set())
        one.transport.wake()
        with script.accept():
            one.wait(True)
            one.send(b"1")
            assert script.read()[0] == 0x32
            script.server.setblocking(False)
            with pytest.raises(BlockingIOError):
                script.server.accept()
        one.transport.stop(0)

    def test_t18_it_is_given_up_when_it_takes_nothing_that_is_sent_to_it(self, script, monkeypatch):
        monkeypatch.setattr(link_module, "_MAX_UNSENT", 10_000)
        script.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one = Peer(MqttTransport(script.url, "one", min_pause=60, max_pause=60))
        one.start()
        with script.accept():
            one.wait(True)
            link = one.transport._link
            link._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
            many = b"".join(publication(number % 250 + 1) for number in range(1000))
            sent = 0
            while link.ended is None:
                assert sent < 10_000_000  # bytes, of which a third comes back as acknowledgements
                with suppress(OSError):  # it has hung up
                    script.say(many)
                sent += len(many)
                wait_until(lambda: link.ended is not None or one.inbox.qsize() == 1000)
                while not one.inbox.empty():
                    one.inbox.get(timeout=PATIENCE).ack()
        assert "takes nothing that is sent to it" in one.wait(False)
        one.transport.stop(0)

    @pytest.mark.slow
    @pytest.mark.parametrize("qos", [0, 1])
    def test_t40_whoever_has_no_room_goes_on_asking_and_hears_that_the_connection_is_over(
        self, script, monkeypatch, qos
    ):
        monkeypatch.setattr(unsettled, "RECEIVE_MAXIMUM", 20)
        monkeypatch.setattr(unsettled, "MAX_OPEN", 20 * 300)
        one = Peer(MqttTransport(script.url, "one", min_pause=60, max_pause=60))
        one.start()
        with script.accept(accepted(b"\x13\x00\x01")):  # Server Keep Alive, 1 s
            one.wait(True)
            packets = [publication(number % 250 + 1) if qos else b"\x30\x09\x00\x06SRUP/1\x00" for number in range(300)]
            script.say(b"".join(packets))
            held = [one.inbox.get(timeout=PATIENCE) for _ in range(21)]
            link = one.transport._link
            for _ in range(3):  # nobody reads the answers
                assert script.read() == b"\xc0\x00"  # PINGREQ
                script.say(b"\xd0\x00")
            assert link.unsettled.is_full
        assert "was lost" in one.wait(False)
        assert len(held) == 21
        one.transport.stop(0)

    @pytest.mark.slow
    def test_t40_control_the_connection_outlives_that(self, script, monkeypatch):
        monkeypatch.setattr(unsettled, "RECEIVE_MAXIMUM", 20)
        one = Peer(MqttTransport(script.url, "one"))
        one.start()
        with script.accept(accepted(b"\x13\x00\x01")):
            one.wait(True)
            script.say(b"".join(publication(number + 1) for number in range(21)))
            held = [one.inbox.get(timeout=PATIENCE) for _ in range(21)]
            for _ in range(2):
                assert script.read() == b"\xc0\x00"
            for delivery in held:
                delivery.ack()
            acknowledged = [script.read() for _ in range(21)]
            assert {packet[0] for packet in acknowledged} <= {0x40, 0xC0}
            while script.read() != b"\xc0\x00":
                pass
            script.say(b"\xd0\x00")
            assert script.read() == b"\xc0\x00"
            assert one.states.empty()
        one.transport.stop(0)

    @pytest.mark.slow
    def test_a_broker_that_does_not_answer_is_given_up(self, script):
        one = Peer(MqttTransport(script.url, "one", min_pause=60, max_pause=60))
        one.start()
        with script.accept(accepted(b"\x13\x00\x01")):
            one.wait(True)
            assert script.read() == b"\xc0\x00"
            assert "was lost" in one.wait(False)
        one.transport.stop(0)


@pytest.fixture(scope="module")
def mosquitto():
    with local_broker("mosquitto") as broker:
        yield broker


@pytest.mark.process
class TestMqtt:
    def test_this_paho_reads_from_the_stream(self, mosquitto):
        """If it fails, paho has changed, and MqttTransport connects no more."""
        one = Peer(MqttTransport(mosquitto.url, "one")).connect()
        assert isinstance(one.transport._link._stream, Stream)
        one.transport.stop()

    def test_on_mqtt_5_one_does_not_hear_oneself(self, mosquitto):
        one = Peer(MqttTransport(mosquitto.url, "one"))
        other = Peer(MqttTransport(mosquitto.url, "other"))
        one.transport.subscribe("SRUP/1")
        other.transport.subscribe("SRUP/other")
        with ExitStack() as stack:
            stack.callback(one.transport.stop)
            stack.callback(other.transport.stop)
            assert one.start().wait(True).endswith("MQTT 5")
            other.connect()
            one.send(b"own")
            one.send(b"the broker has it", topic="SRUP/other")
            assert other.hear(1) == [b"the broker has it"]
            other.send(b"other's")
            assert one.hears_nothing_but(b"other's")

    def test_a_thief_of_the_session_is_reported_and_not_fought(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
            one = Peer(MqttTransport(url, "twin", min_pause=0.01, max_pause=3600))
            one.start()
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(ACCEPTED)
                one.wait(True)
                connection.sendall(b"\xe0\x02\x8e\x00")  # MQTT 5.0, section 3.14: session taken over
                assert "'twin' took the session over" in one.wait(False)
            server.settimeout(0.3)
            with pytest.raises(TimeoutError):
                server.accept()
            began = time.monotonic()
            one.transport.stop()  # which ends the long pause
            assert time.monotonic() - began < 4

    def test_the_authority_of_the_documentation_passes_the_strict_check(self, tmp_path):
        need("openssl")
        page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
        [commands] = re.findall(r"^```console\n(\$ openssl req -x509.*?)^```$", page, re.MULTILINE | re.DOTALL)
        script = commands.replace("$ ", "").replace("broker.internal", "localhost")
        subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True, capture_output=True)
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(tmp_path / "broker.crt", tmp_path / "broker.key")
        strict = ssl.create_default_context(cafile=tmp_path / "ca.crt")
        strict.verify_flags |= ssl.VERIFY_X509_STRICT
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            one = Peer(MqttTransport(f"mqtts://localhost:{server.getsockname()[1]}", "one", tls=strict)).start()
            plain, _ = server.accept()
            with theirs.wrap_socket(plain, server_side=True) as connection:
                connection.recv(1000)
                connection.sendall(ACCEPTED)
                one.wait(True)
            one.transport.stop(0)

    def test_the_id_of_a_session_is_told_to_nobody_whole(self, script):
        one = Peer(MqttTransport(script.url, "srup" + "secret" * 3, max_pause=3600))
        one.start()
        with script.accept():
            one.wait(True)
            script.say(b"\xe0\x02\x8e\x00")
            why = one.wait(False)
        assert "'srupsecr...' took the session over" in why
        assert "secretsecret" not in why + repr(one.transport)
        one.transport.stop(0)

    def test_a_silent_thief_is_suspected(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
            one = Peer(MqttTransport(url, "twin", min_pause=0.01, max_pause=3600))
            one.start()
            for _ in range(4):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(ACCEPTED)
                    one.wait(True)
                why = one.wait(False)
            assert "another client may use the id 'twin'" in why
            one.transport.stop()

    def test_a_certificate_each_and_bursts_over_tls(self, tmp_path):
        tls, key = host_files(tmp_path, "localhost"), key_of(0xD1)
        device = AUTHORITY.certify_client(0xD1, key.public_key, time.time(), 3600.0)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls[0])
        context.load_cert_chain(*tls)
        context.verify_mode = ssl.CERT_REQUIRED
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            url = f"mqtts://localhost:{server.getsockname()[1]}"
            cert_file = write_client(tmp_path / "device.pem", device, key)
            one = Peer(MqttTransport(url, "one", ca_file=tls[0], cert_file=cert_file))
            one.start()
            plain, _ = server.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                assert connection.getpeercert()["subject"] == ((("commonName", "d1"),),)
                connection.recv(1000)
                burst = b"".join(b"\x32\x0b\x00\x06SRUP/1" + bytes([0, n, 0]) for n in range(1, 101))
                connection.sendall(ACCEPTED + burst)  # one TLS record, and silence after it
                for _ in range(100):
                    one.inbox.get(timeout=PATIENCE)
            one.transport.stop()

    def test_files_that_have_changed_are_used_at_once_and_bad_ones_are_not(self, tmp_path):
        tls, keys = host_files(tmp_path, "localhost"), {name: key_of(int(name, 16)) for name in ("d1", "d2")}
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls[0])
        context.load_cert_chain(*tls)
        context.verify_mode = ssl.CERT_REQUIRED

        def write(name):
            certificate = AUTHORITY.certify_client(int(name, 16), keys[name].public_key, time.time(), 3600.0)
            return write_client(tmp_path / "device.pem", certificate, keys[name])

        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            url = f"mqtts://localhost:{server.getsockname()[1]}"
            one = Peer(MqttTransport(url, "one", ca_file=tls[0], cert_file=write("d1"), min_pause=0.01)).start()
            with context.wrap_socket(server.accept()[0], server_side=True) as connection:
                assert connection.getpeercert()["subject"] == ((("commonName", "d1"),),)
                connection.recv(1000)
                connection.sendall(ACCEPTED)
                assert not one.transport.reload()
                (tmp_path / "device.pem").write_text("half of a certificate")
                with pytest.raises(TransportError, match="do not load"):
                    one.transport.reload()
                write("d2")
                assert one.transport.reload()
                assert not one.transport.reload()  # it is on its way
                while connection.recv(1000):
                    pass  # it takes its leave
            with context.wrap_socket(server.accept()[0], server_side=True) as connection:
                assert connection.getpeercert()["subject"] == ((("commonName", "d2"),),)
            assert "the certificates have changed" in one.wait(False)
            one.transport.stop()

    def test_without_files_there_is_nothing_to_reload(self):
        assert not MqttTransport("mqtt://localhost", "one").reload()
        assert not MqttTransport("mqtts://localhost", "one", tls=ssl.create_default_context()).reload()

    def test_a_context_of_ones_own_and_alpn(self, tmp_path):
        tls = host_files(tmp_path, "localhost")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*tls)
        context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
        own = ssl.create_default_context(cafile=tls[0])
        own.set_alpn_protocols(["x-amzn-mqtt-ca"])
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            url = f"mqtts://localhost:{server.getsockname()[1]}"
            for options in ({"tls": own}, {"ca_file": tls[0], "alpn": ["x-amzn-mqtt-ca"]}):
                one = Peer(MqttTransport(url, "one", **options))
                one.start()
                plain, _ = server.accept()
                with context.wrap_socket(plain, server_side=True) as connection:
                    assert connection.selected_alpn_protocol() == "x-amzn-mqtt-ca"
                    connection.recv(1000)
                    connection.sendall(ACCEPTED)
                    one.wait(True)
                one.transport.stop(0)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_certificate_that_only_the_strict_check_refuses_is_explained(self, tmp_path):
        key = PrivateKey.generate("p256")  # of both
        private, names = private_of(key), x509.SubjectAlternativeName([x509.DNSName("localhost")])
        authority = certificate_of(private, "ca", extensions=[x509.BasicConstraints(True, None)])
        lax = certificate_of(private, "lax", (authority.subject, private), [x509.BasicConstraints(False, None), names])
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(write_client(tmp_path / "lax.pem", lax, key))
        strict = ssl.create_default_context(cafile=write_client(tmp_path / "ca.pem", authority, key))
        strict.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            one = Peer(MqttTransport(f"mqtts://localhost:{server.getsockname()[1]}", "one", tls=strict))
            one.start()
            plain, _ = server.accept()
            with plain, pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_side=True)
            why = one.wait(False)
            assert "Missing Authority Key Identifier" in why
            assert "`authorityKeyIdentifier = keyid`" in why
            assert "ssl.VERIFY_X509_STRICT" in why
            one.transport.stop(0)

    # paho drops its socket unclosed when a TLS handshake fails.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_broker_without_the_right_certificate_is_not_told_anything(self, tmp_path):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*host_files(tmp_path, "localhost"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            one = Peer(MqttTransport(f"mqtts://localhost:{server.getsockname()[1]}", "one"))
            one.start()
            plain, _ = server.accept()
            with plain, pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_side=True)
            assert "certificate verify failed" in one.wait(False)
            one.transport.stop(0)

    def test_no_more_is_open_than_may_be_even_if_the_broker_sends_more(self, mosquitto, monkeypatch):
        monkeypatch.setattr(unsettled, "RECEIVE_MAXIMUM", 50)
        receiver = Peer(MqttTransport(mosquitto.url, "full", session_expiry=4712))
        receiver.transport.subscribe("SRUP/full")
        receiver.connect()
        sender = Peer(MqttTransport(mosquitto.url, "filler")).connect()
        with ExitStack() as stack:
            stack.callback(receiver.transport.stop)
            stack.callback(sender.transport.stop)
            sender.send(*numbers(2000), topic="SRUP/full")
            waiting, heard, most = [], [], 0
            while len(heard) < 2000:
                waiting.append(receiver.inbox.get(timeout=PATIENCE))
                heard.append(waiting[-1].payload)
                most = max(most, receiver.transport._link.unsettled.count)
                if len(waiting) == 40:  # settled now and then, and never all
                    for delivery in waiting[:30]:
                        delivery.ack()
                    del waiting[:30]
            assert heard == numbers(2000)
            assert most <= 50 + 1
            assert receiver.states.empty()

    def test_stopping_an_idle_transport_is_quick(self, mosquitto):
        for _ in range(5):
            one = Peer(MqttTransport(mosquitto.url, "quick")).connect()
            began = time.monotonic()
            one.transport.stop()
            assert time.monotonic() - began < 0.5

    def test_more_file_descriptors_than_select_can_see(self, mosquitto):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 1400:
            pytest.skip(f"only {hard} file descriptors are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1400), hard))
        with ExitStack() as stack:
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            for _ in range(550):
                for end in socket.socketpair():
                    stack.enter_context(end)
            one = Peer(MqttTransport(mosquitto.url, "far-up"))
            stack.callback(one.transport.stop)
            other = Peer(MqttTransport(mosquitto.url, "far-up-too"))
            stack.callback(other.transport.stop)
            one.transport.subscribe("SRUP/1")
            one.connect()
            assert one.transport._reactor._waker.fileno() > 1100
            other.connect().send(b"x")
            assert one.hear(1) == [b"x"]

    def test_nobody_there_is_reported_and_tried_again(self):
        with socket.socket() as bound:  # and not listening
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            one = Peer(MqttTransport(f"mqtt://127.0.0.1:{port}", "one", min_pause=0.01, max_pause=0.05))
            one.send(b"x")
            assert "refused" in one.start().wait(False)
            bound.listen()
            bound.settimeout(PATIENCE)
            bound.accept()[0].close()
            assert "lost" in one.wait(False)
            began = time.monotonic()
            one.transport.stop(0.2)
            assert time.monotonic() - began < 8

    def test_stop_ends_a_pause_to_send_what_waits(self):
        with socket.socket() as bound:  # and not listening
            bound.bind(("127.0.0.1", 0))
            script = Script(bound)
            one = Peer(MqttTransport(script.url, "one", min_pause=3600, max_pause=3600))
            assert "refused" in one.start().wait(False)
            one.send(b"x")
            bound.listen()
            stopper = threading.Thread(target=one.transport.stop, args=(PATIENCE,))
            stopper.start()
            with script.accept():
                sent = script.read()
                assert sent[13:] == b"x"
                script.say(puback(sent[11]))
            stopper.join(PATIENCE)
            assert not one.transport._outbox

    def test_a_refusal_names_the_reason_and_no_secret(self, caplog):
        caplog.set_level("DEBUG")
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
            one = Peer(MqttTransport(url, "one", username="u", password="hunter2"))
            one.start()
            connection, _ = server.accept()
            with connection:
                assert b"hunter2" in connection.recv(1000)
                connection.sendall(b"\x20\x03\x00\x86\x00")  # MQTT 5.0, section 3.2: bad user name or password
                why = one.wait(False)
            one.transport.stop()
        assert "Bad user name or password" in why
        assert "hunter2" not in why + caplog.text + repr(one.transport)

    def test_a_broker_that_hangs_up_on_version_5_is_asked_in_version_3(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            one = Peer(MqttTransport(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "one", min_pause=0.01))
            one.start()
            versions = []
            for _ in range(3):
                connection, _ = server.accept()
                with connection:
                    versions.append(connection.recv(1000)[8])
            one.transport.stop()
        assert versions == [5, 4, 5]

    def test_nonsense_from_the_broker_is_survived(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(PATIENCE)
            one = Peer(
                MqttTransport(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "one", min_pause=0.01, max_pause=0.02)
            )
            one.start()
            for junk in (
                b"\xff" * 10,
                ACCEPTED + b"\x32\x01\x00",
                ACCEPTED + b"\x00\x00",
                ACCEPTED + b"\x32\x07\x00\x02\xff\xfe\x00\x07\x00",
            ):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(junk)
            connection, _ = server.accept()
            connection.close()
            assert one.transport._reactor._thread.is_alive()
            one.transport.stop()

    def test_the_pauses_grow_and_end_at_the_longest(self):
        transport = MqttTransport("mqtt://127.0.0.1:1", "one", min_pause=1.0, max_pause=30.0)
        now, pauses = 1000.0, []
        for _ in range(9):
            link = transport._make_link()
            link.end("cannot connect")
            transport._rest(link, now)
            pauses.append(transport._resume_at - now)
            assert transport.attend(0, now) == transport._resume_at
            now = transport._resume_at
        for pause, longest in zip(pauses, [1, 2, 4, 8, 16, 30, 30, 30, 30], strict=True):
            assert longest / 2 <= pause <= longest
        assert len(set(pauses[5:9])) > 1

    @pytest.mark.parametrize("zone", ["%lo", "%25lo"])
    def test_the_zone_of_an_ipv6_address_is_written_in_both_ways(self, zone):
        assert "'mqtt://[fe80::1%lo]:1883'" in repr(MqttTransport(f"mqtt://[fe80::1{zone}]", "x"))

    def test_the_log_does_not_tell_the_client_id(self, caplog):
        caplog.set_level("INFO", "srup.transport")
        with socket.create_server(("127.0.0.1", 0)) as server:
            transport = MqttTransport(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "srup" + "secret" * 3)
            transport.start(lambda _: None, lambda *_: None)
            transport.stop(0)
        assert "connecting to" in caplog.text
        assert "secretsecret" not in caplog.text

    @pytest.mark.parametrize(
        ("url", "options", "complaint"),
        [
            ("127.0.0.1:1883", {}, "mqtt://host:port"),
            ("http://host", {}, "mqtt://host:port"),
            ("mqtt://", {}, "host and port"),
            ("mqtt://host:port", {}, "host and port"),
            ("mqtt://host:0", {}, "host and port"),
            ("mqtt://host:65536", {}, "host and port"),
            ("mqtt://[::1", {}, "host and port"),
            ("mqtt://host/path", {}, "has a path"),
            ("mqtt://host?query", {}, "has a query"),
            ("mqtt://host?", {}, "has a query"),
            ("mqtt://host#fragment", {}, "has a fragment"),
            ("mqtt://host/#", {}, "has a fragment"),
            ("mqtt://ho st", {}, "a space or a line break"),
            (" mqtt://host", {}, "a space or a line break"),
            ("mqtt://host ", {}, "a space or a line break"),
            ("mqtt://host\n", {}, "a space or a line break"),
            ("mqtt://ho\nst", {}, "a space or a line break"),
            ("mqtt://ho\tst:1883", {}, "a space or a line break"),
            ("mqtt://host\u2003", {}, "a space or a line break"),
            ("mqtt://ho%20st", {}, "not a host name"),
            ("mqtt://a,b", {}, "not a host name"),
            ("mqtt://host\\x", {}, "not a host name"),
            ("ws://host", {}, "WebSocket is not supported"),
            ("wss://host/mqtt", {}, "WebSocket is not supported"),
            ("mqtt://u:hunter2@host", {}, "are arguments"),
            ("mqtt://" + "a" * 70, {}, "host name"),
            ("mqtt://host", {"alpn": ["mqtt"]}, "mqtts://"),
            ("mqtt://host", {"tls": ssl.create_default_context()}, "mqtts://"),
            ("mqtts://host", {"tls": ssl.create_default_context(), "ca_file": "ca.crt"}, "takes the place"),
            ("mqtts://host", {"alpn": ["x" * 256]}, "alpn"),
            ("mqtt://host", {"client_id": ""}, "client_id"),
            ("mqtt://host", {"client_id": "a\nb"}, "client_id"),
            ("mqtt://host", {"password": "hunter2"}, "username"),
            ("mqtt://host", {"keepalive": 0}, "keepalive"),
            ("mqtt://host", {"session_expiry": 2**32}, "session_expiry"),
            ("mqtt://host", {"min_pause": 2, "max_pause": 1}, "min_pause"),
            ("mqtt://host", {"max_queued": 0}, "max_queued"),
            ("mqtt://host", {"ca_file": "ca.crt"}, "mqtts://"),
            ("mqtts://host", {"ca_file": "/nowhere/ca.crt"}, "ca_file '/nowhere/ca.crt'"),
            ("mqtts://host", {"cert_file": "/nowhere/cert"}, "cert_file"),
            ("mqtts://host", {"key_file": "/nowhere/key"}, "key_file needs cert_file"),
            ("mqtts://host", {"ca_file": __file__}, "holds no certificates"),
            ("mqtts://host", {"cert_file": __file__}, "do not load"),
        ],
    )
    def test_a_wrong_argument_is_named_at_once(self, url, options, complaint):
        with pytest.raises(TransportError, match=complaint) as caught:
            MqttTransport(url, **{"client_id": "one", **options})
        assert "hunter2" not in str(caught.value)

    def test_without_a_client_id_it_does_not_start(self):
        one = Peer(MqttTransport("mqtt://127.0.0.1:1"))
        with pytest.raises(TransportError, match="client_id"):
            one.start()
        with pytest.raises(TransportError, match="control characters"):
            one.transport.client_id = "a\n"

    @pytest.mark.process
    def test_without_paho_it_says_what_to_install(self):
        code = (
            "import sys; sys.modules['paho'] = None\n"
            "from srup.transport import MqttTransport\n"
            "try: MqttTransport('mqtt://host', 'one')\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert run.stdout.strip() == "TransportError MQTT needs paho-mqtt: pip install 'srup[mqtt]'", run.stderr
