"""The broker configuration that is shipped, with a real Mosquitto: who gets in, and who may use which topic (T18)."""

import os
import queue
import signal
import socket
import ssl
import threading
from contextlib import ExitStack, suppress

import pytest
from cryptography import x509

from srup import TransportError
from srup.keyex import Enrolment, enroll
from srup.transport import MqttTransport
from srup.transport.broker import free_port

from .certificates import certificate_of, private_of, write_client
from .fleet import WAIT, key_of, wait_until
from .keyex_site import DEVICE, OTHER, SERVER, Site, mosquitto
from .programs import need

pytestmark = pytest.mark.process

SECOND_SERVER = 0x5F


class Broker:
    """Mosquitto as ``srup keyex mosquitto`` sets it up, and everybody's enrolment."""

    def __init__(self, path):
        self.path = path
        self.port = free_port()
        self.site = Site(path / "keyex", broker=f"mqtts://127.0.0.1:{self.port}")
        for server in (SERVER, SECOND_SERVER):
            self.site.authority.add(server, key_of(server).public_key, "server", server=True)
        user = "root" if os.geteuid() == 0 else ""  # pytest's folders are for their owner alone
        self.conf = self.site.folder.write_broker(
            self.site.authority, ["127.0.0.1"], self.site.clock(), port=self.port, address="127.0.0.1", user=user
        )
        with self.site.serving() as url:
            ca = self.site.authority.certificates.pem
            for identity in (DEVICE, OTHER, SERVER, SECOND_SERVER):
                if identity in (DEVICE, OTHER):
                    self.site.authority.add(identity, key_of(identity).public_key)
                kind = "server" if identity in (SERVER, SECOND_SERVER) else "device"
                enroll(url, identity, key_of(identity), ca=ca, kind=kind, server=SERVER).save(self.folder(identity))

    def folder(self, identity):
        return self.path / f"{identity:x}"


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    need("mosquitto")
    broker = Broker(tmp_path_factory.mktemp("broker"))
    with mosquitto(broker.conf, broker.port) as process:
        broker.process = process
        yield broker
    broker.site.authority.close()


class Peer:
    """A client of the broker: what it hears, and what the link says."""

    def __init__(self, broker, who, name=None, port=None, **files):
        folder = broker.folder(who)
        options = {"ca_file": folder / "ca.pem", "cert_file": folder / "client.pem"} | files
        url = f"mqtts://127.0.0.1:{port or broker.port}"
        name = name or f"{who:x}-{os.urandom(3).hex()}"
        self.transport = MqttTransport(url, name, min_pause=0.01, max_pause=0.05, session_expiry=0, **options)
        self.heard = queue.SimpleQueue()
        self.states = queue.SimpleQueue()

    def start(self, *filters):
        for each in filters:
            self.transport.subscribe(each)
        self.transport.start(self.heard.put, lambda connected, why: self.states.put((connected, why)))
        return self

    def connected(self):
        while not self.states.get(timeout=WAIT)[0]:
            pass
        return self

    def refused(self):
        """Why it did not get in."""
        connected, why = self.states.get(timeout=WAIT)
        assert not connected, why
        return why

    def publish(self, *topics):
        for topic in topics:
            self.transport.publish(topic, topic.encode())

    def settle(self):
        """End when all that was published is acknowledged; what was delivered before that has been heard by then."""
        self.transport.stop(WAIT)
        return self

    def topics(self):
        """The topics of what has arrived and was not asked for yet."""
        found = set()
        while not self.heard.empty():
            found.add(self.heard.get().topic)
        return found

    def hears(self, *expected):
        """Whether these, and nothing before or between them, arrive."""
        for topic in expected:
            delivery = self.heard.get(timeout=WAIT)
            delivery.ack()
            assert (delivery.topic, delivery.payload) == (topic, topic.encode())


@pytest.fixture
def peer(broker):
    with ExitStack() as stack:

        def make(who, *filters, **options):
            made = Peer(broker, who, **options)
            stack.callback(made.transport.stop, 1.0)
            return made.start(*filters)

        yield make


# --- topics


def test_devices_and_servers_use_their_topics(peer):
    server = peer(SERVER, f"SRUP/servers/{SERVER:x}/#", f"SRUP/{DEVICE:x}/#").connected()
    device = peer(DEVICE, f"SRUP/{DEVICE:x}").connected()
    device.publish(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", f"SRUP/{DEVICE:x}")
    server.hears(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", f"SRUP/{DEVICE:x}")
    server.publish(f"SRUP/{DEVICE:x}")
    device.hears(f"SRUP/{DEVICE:x}")


def test_t18_a_device_writes_on_no_topic_of_another(peer, caplog):
    """The control is the server, whose certificate is all that differs: the same topics carry what it writes."""
    target = peer(OTHER, f"SRUP/{OTHER:x}").connected()
    server = peer(SERVER, f"SRUP/servers/{SERVER:x}/#", "SRUP/+").connected()
    thief = peer(DEVICE).connected()
    stolen = [
        f"SRUP/{OTHER:x}",
        f"SRUP/servers/{SERVER:x}/{OTHER:x}",
        f"SRUP/servers/{SERVER:x}",
        f"SRUP/servers/{SERVER:x}/{DEVICE:x}/{OTHER:x}",
        f"SRUP/{DEVICE:x}/{OTHER:x}",
        f"SRUP/{DEVICE:X}",
        f"SRUP/0{DEVICE:x}",
        "SRUP/servers",
        f"srup/{DEVICE:x}",
        "elsewhere",
        "$SYS/broker/version",
    ]
    thief.publish(*stolen, f"SRUP/servers/{SERVER:x}/{DEVICE:x}")
    server.hears(f"SRUP/servers/{SERVER:x}/{DEVICE:x}")
    peer(SECOND_SERVER).connected().publish(f"SRUP/{OTHER:x}")  # the control
    target.hears(f"SRUP/{OTHER:x}")
    server.hears(f"SRUP/{OTHER:x}")
    assert server.heard.empty()


def test_t18_a_device_reads_no_topic_of_another(peer):
    filters = ["SRUP/#", "SRUP/+", f"SRUP/{OTHER:x}", f"SRUP/servers/{SERVER:x}/#", "#", "$SYS/#"]
    spy = peer(DEVICE, *filters).connected()
    victim = peer(OTHER, f"SRUP/{OTHER:x}").connected()
    server = peer(SERVER, f"SRUP/servers/{SERVER:x}/#").connected()
    server.publish(f"SRUP/{OTHER:x}")
    victim.hears(f"SRUP/{OTHER:x}")  # the control: it was delivered to whom it is for
    victim.publish(f"SRUP/servers/{SERVER:x}/{OTHER:x}")
    server.hears(f"SRUP/servers/{SERVER:x}/{OTHER:x}")
    server.publish(f"SRUP/{DEVICE:x}")
    spy.hears(f"SRUP/{DEVICE:x}")
    assert spy.settle().topics() <= {f"SRUP/{DEVICE:x}"}  # once for each filter that matches


def test_t18_a_server_reads_no_joins_of_another(peer):
    spy = peer(SECOND_SERVER, "SRUP/servers/#", f"SRUP/servers/{SERVER:x}/#").connected()
    server = peer(SERVER, f"SRUP/servers/{SERVER:x}/#").connected()
    device = peer(DEVICE).connected()
    device.publish(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", f"SRUP/servers/{SECOND_SERVER:x}/{DEVICE:x}")
    server.hears(f"SRUP/servers/{SERVER:x}/{DEVICE:x}")
    spy.hears(f"SRUP/servers/{SECOND_SERVER:x}/{DEVICE:x}")


def test_t18_control_without_the_access_list_every_topic_is_everybody_s(broker, tmp_path):
    """The same broker with the same certificates: what the three tests above see refused works here."""
    port = free_port()
    own = ("acl_file", "plugin", "persistence")  # the lists; the other is a folder that the other broker has open
    lines = [line for line in broker.conf.read_text().splitlines() if not line.startswith(own)]
    conf = tmp_path / "open.conf"
    conf.write_text("\n".join(lines).replace(f"listener {broker.port}", f"listener {port}") + "\n")
    with mosquitto(conf, port), ExitStack() as stack:

        def peer(who, *filters):
            made = Peer(broker, who, port=port)
            stack.callback(made.transport.stop, 1.0)
            return made.start(*filters).connected()

        target, spy = peer(OTHER, f"SRUP/{OTHER:x}"), peer(SECOND_SERVER, f"SRUP/servers/{SERVER:x}/#")
        thief = peer(DEVICE, "SRUP/+")
        thief.publish(f"SRUP/{OTHER:x}", f"SRUP/servers/{SERVER:x}/{OTHER:x}")
        target.hears(f"SRUP/{OTHER:x}")
        spy.hears(f"SRUP/servers/{SERVER:x}/{OTHER:x}")
        peer(SERVER).publish(f"SRUP/{OTHER:x}")
        thief.hears(f"SRUP/{OTHER:x}")


# --- certificates


def test_t18_nobody_gets_in_without_a_certificate_of_this_authority(broker, peer, tmp_path):
    now = broker.site.clock()
    stranger = Site(tmp_path / "stranger")
    key = key_of(DEVICE)
    forged = stranger.authority.certificates.certify_client(DEVICE, key.public_key, now, 86400.0)
    host = broker.site.authority.certificates.certify_host(["d1"], key_of(9, "p256"), now)
    expired = broker.site.authority.certificates.certify_client(DEVICE, key.public_key, now - 90000.0, 86400.0)
    stranger.authority.close()
    attempts = [
        None,
        write_client(tmp_path / "forged.pem", forged, key),
        write_client(tmp_path / "host.pem", host, key_of(9, "p256")),
        write_client(tmp_path / "expired.pem", expired, key),
    ]
    for cert_file in attempts:
        peer(DEVICE, cert_file=cert_file).refused()
    genuine = broker.site.authority.certificates.certify_client(DEVICE, key.public_key, now, 86400.0)
    peer(DEVICE, cert_file=write_client(tmp_path / "genuine.pem", genuine, key)).connected()  # the control


def test_t18_a_user_name_does_not_stand_in_for_a_certificate(broker, peer):
    """Mosquitto takes the name from the certificate, whatever CONNECT says."""
    liar = peer(DEVICE, username=f"{SERVER:x}", password="x").connected()
    target = peer(OTHER, f"SRUP/{OTHER:x}").connected()
    liar.publish(f"SRUP/{OTHER:x}")
    liar.settle()
    peer(SERVER).connected().publish(f"SRUP/{OTHER:x}")
    target.hears(f"SRUP/{OTHER:x}")
    assert target.settle().heard.empty()


def test_t18_a_wildcard_for_a_name_opens_nothing(broker, peer, tmp_path):
    """The service signs no such name; if it did, Mosquitto would not let the name widen a pattern either."""
    certificates = broker.site.authority.certificates
    key = key_of(DEVICE)
    for number, name in enumerate(("+", "#", "+/#", f"{OTHER:x}/+")):
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
        issuer = certificates.certificate.subject, certificates._key
        made = certificate_of(private_of(key), name, issuer, [usage])
        path = write_client(tmp_path / f"{number}.pem", made, key)
        thief = peer(DEVICE, "SRUP/#", cert_file=path, name=f"wild-{number}").connected()
        target = peer(OTHER, f"SRUP/{OTHER:x}").connected()
        peer(SERVER).connected().publish(f"SRUP/{OTHER:x}")
        target.hears(f"SRUP/{OTHER:x}")
        thief.publish(f"SRUP/{OTHER:x}")
        thief.settle()
        target.publish(f"SRUP/{OTHER:x}/x")
        target.settle()
        assert target.heard.empty()
        assert thief.heard.empty()


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")  # paho's, after a failed handshake
def test_t18_nobody_else_passes_for_the_broker(broker):
    """A device's certificate is of the same authority, and still no server's; the broker's own is the control."""

    def said_to(cert_file, key_file):
        """What a client says about a listener with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_file, key_file)
        folder, states = broker.folder(DEVICE), queue.SimpleQueue()

        def serve():
            connection, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True):
                pass  # and hang up

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=serve)
            thread.start()
            transport = MqttTransport(
                f"mqtts://127.0.0.1:{listener.getsockname()[1]}",
                "x",
                ca_file=folder / "ca.pem",
                cert_file=folder / "client.pem",
            )
            transport.start(lambda delivery: None, lambda connected, why: states.put(why))
            why = states.get(timeout=WAIT)
            transport.stop(0.0)
            thread.join()
        return why

    thief, own = broker.folder(OTHER) / "client.pem", broker.conf.parent
    assert "certificate verify failed" in said_to(thief, thief)
    assert "certificate verify failed" not in said_to(own / "server.pem", own / "server.key")


# --- revocation, in the end, for it lasts


def test_t18_a_revoked_certificate_is_refused_and_a_standing_connection_is_deaf_and_mute(broker, peer):
    topic = f"SRUP/{OTHER:x}"
    server = peer(SERVER, topic).connected()
    thief = peer(OTHER, topic).connected()
    thief.publish(topic)
    server.hears(topic)  # the control
    broker.site.authority.revoke(OTHER)
    broker.site.folder.publish(broker.site.authority)
    log = broker.conf.with_name("mosquitto.log")
    before = log.read_text().count("Reloading config")
    broker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: log.read_text().count("Reloading config") > before)
    peer(OTHER, name="revoked").refused()
    device = peer(DEVICE, f"SRUP/{DEVICE:x}").connected()
    server.publish(topic, f"SRUP/{DEVICE:x}")
    device.hears(f"SRUP/{DEVICE:x}")
    thief.publish(topic)
    assert thief.settle().heard.empty()
    peer(SECOND_SERVER).connected().publish(topic)
    server.hears(topic)
    assert server.settle().heard.empty()


# --- the files


def test_the_files_are_read_again_before_each_connection(broker, peer, tmp_path):
    """A certificate that was renewed is used without a new transport."""
    folder = tmp_path / "copy"
    Enrolment.load(broker.folder(DEVICE)).save(folder)
    good = (folder / "client.pem").read_bytes()
    called = []
    one = Peer(
        broker,
        DEVICE,
        ca_file=folder / "ca.pem",
        cert_file=folder / "client.pem",
        before_connect=lambda: called.append((folder / "client.pem").write_bytes(b"" if not called else good)),
    )
    try:
        assert "do not load" in one.start().refused()
        one.connected()
        assert len(called) >= 2
    finally:
        one.transport.stop(1.0)


def test_what_before_connect_raises_is_counted_and_the_connection_is_made(broker):
    def fail():
        raise TransportError("no")

    one = Peer(broker, DEVICE, before_connect=fail)
    try:
        one.start().connected()
        assert one.transport.faults == 1
    finally:
        one.transport.stop(1.0)
