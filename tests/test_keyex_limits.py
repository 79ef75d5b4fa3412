"""The broker configuration that is shipped, with a real Mosquitto, against one certified device that does its worst."""

import os
import pwd
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives import serialization

from srup import KeyServiceError
from srup.keyex import Enrolment, enroll, rotate
from srup.keyex.certificates import tls_pem
from srup.transport import filter_list
from srup.transport.broker import free_port
from srup.transport.mosquitto import MAX_PACKET
from srup.transport.topics import join_topic
from srup.wire import MAX_MESSAGE_SIZE

from .fleet import WAIT, key_of, wait_until
from .keyex_site import DEVICE, OTHER, SERVER, Site, mosquitto
from .programs import need

pytestmark = pytest.mark.process

MIB = 1 << 20
PAYLOAD = bytes(60_000)
QUEUED = 16 * MIB + 4 * MIB  # what the configuration lets one session hold
CONNACK, PUBACK, PINGRESP = 0x20, 0x40, 0xD0
REFUSED = 0x80


def packet(kind, body):
    size, length = len(body), b""
    while True:
        size, digit = divmod(size, 128)
        length += bytes([digit | (128 if size else 0)])
        if not size:
            return bytes([kind]) + length + body


def text(content):
    return struct.pack(">H", len(content)) + content.encode()


class Client:
    """MQTT 3.1.1 with nothing that a decent client does: it need not read, or acknowledge, or end what it began."""

    def __init__(self, port, folder, name="x", clean=True, earlier=None):
        """``earlier`` is a client whose TLS session is to be resumed."""
        self.context = earlier.context if earlier else ssl.create_default_context(cafile=folder / "ca.pem")
        self.context.load_cert_chain(folder / "client.pem")
        session = earlier and earlier.socket.session
        with socket.create_connection(("127.0.0.1", port), WAIT) as raw:  # closed if the handshake fails
            self.socket = self.context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
        flags = bytes([4, 2 if clean else 0])
        try:
            self.send(packet(0x10, text("MQTT") + flags + struct.pack(">H", 60) + text(name)))
            self.receive(CONNACK)
        except OSError:
            self.close()
            raise

    def send(self, content):
        self.socket.sendall(content)

    def receive(self, kind):
        """Read until a packet of this kind has come; return its first byte's flags. OSError when it was cut off."""
        while True:
            head = self._exactly(1)[0]
            size, shift = 0, 0
            while True:
                digit = self._exactly(1)[0]
                size |= (digit & 127) << shift
                shift += 7
                if digit < 128:
                    break
            body = self._exactly(size)
            if head & 0xF0 == kind & 0xF0:
                return body

    def _exactly(self, size):
        content = b""
        while len(content) < size:
            piece = self.socket.recv(size - len(content))
            if not piece:
                raise ConnectionError("cut off")
            content += piece
        return content

    def subscribe(self, topic, qos=1, *more):
        """Return the broker's answer for each filter: the quality of service, or that it is refused."""
        filters = b"".join(text(each) + bytes([qos]) for each in (topic, *more))
        self.send(packet(0x82, b"\0\1" + filters))
        return list(self.receive(0x90)[2:])

    def publish(self, topic, qos=1, retain=False, number=1, payload=PAYLOAD):
        body = text(topic) + (struct.pack(">H", number) if qos else b"") + payload
        self.send(packet(0x30 | qos << 1 | retain, body))

    def is_served(self):
        try:
            self.send(packet(0xC0, b""))
            self.receive(PINGRESP)
        except OSError:
            return False
        return True

    def close(self):
        self.socket.close()


@contextmanager
def reading(client):
    """Read and throw away what comes, as long as it comes."""

    def drain():
        with suppress(OSError, ValueError):
            while client.socket.recv(65536):
                pass

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            client.socket.shutdown(socket.SHUT_RDWR)
        thread.join()


class Broker:
    """A Mosquitto of its own with the shipped configuration, a server and two devices."""

    def __init__(self, path, **options):
        self.path = path
        self.clients = ExitStack()
        self.port = free_port()
        self.site = Site(path / "keyex", broker=f"mqtts://127.0.0.1:{self.port}")
        user = "root" if os.geteuid() == 0 else ""  # pytest's folders are for their owner alone
        options = {"port": self.port, "address": "127.0.0.1", "user": user} | options
        self.site.authority.add(SERVER, key_of(SERVER).public_key, "server", server=True)
        self.conf = self.write(**options)
        with self.site.serving() as url:
            ca = self.site.authority.certificates.pem
            for identity in (DEVICE, OTHER, SERVER):
                if identity != SERVER:
                    self.site.authority.add(identity, key_of(identity).public_key)
                enroll(url, identity, key_of(identity), ca=ca, kind="server" if identity == SERVER else "device").save(
                    self.folder(identity)
                )
        self.site.folder.publish(self.site.authority)

    def write(self, **options):
        return self.site.folder.write_broker(self.site.authority, ["127.0.0.1"], self.site.clock(), **options)

    def folder(self, identity):
        return self.path / f"{identity:x}"

    def client(self, identity, name="x", clean=True, port=None, folder=None, earlier=None):
        made = Client(port or self.port, folder or self.folder(identity), name, clean, earlier)
        self.clients.callback(made.close)
        return made

    def stored(self):
        """The bytes on disk when the broker has ended."""
        return (self.conf.parent / "data" / "mosquitto.db").stat().st_size

    def reload(self, process):
        log = self.conf.with_name("mosquitto.log")
        before = log.read_text().count("Reloading config")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: log.read_text().count("Reloading config") > before)


def resident(process):
    """The memory of a process, in bytes."""
    return psutil.Process(process.pid).memory_info().rss


@pytest.fixture
def make_broker(tmp_path):
    need("mosquitto")
    made = []

    def make(**options):
        made.append(Broker(tmp_path, **options))
        return made[-1]

    yield make
    for broker in made:
        broker.clients.close()
        broker.site.authority.close()


def flood(client, topic, number=1000, qos=1):
    """Send as much as the broker takes."""
    with suppress(OSError):
        for each in range(number):
            client.publish(topic, qos, number=each + 1)
    return client


def check_others(broker):
    """Another device and the server are served as ever."""
    topic = f"SRUP/{OTHER:x}"
    server, device = (broker.client(identity) for identity in (SERVER, OTHER))
    for client in (server, device):
        client.subscribe(topic, 1)
    server.publish(topic, payload=b"genuine")
    for client in (server, device):
        assert client.receive(0x30).endswith(b"genuine")


def test_t9_a_sleeping_session_of_ones_own_holds_so_much_and_there_is_one_of_it(make_broker):
    """However many ids the device gives: without the bound it is 60 MB here, and once more for each id."""
    broker, topic = make_broker(), f"SRUP/{DEVICE:x}"
    with mosquitto(broker.conf, broker.port) as process:
        before = resident(process)
        for number in range(20):
            sleeper = broker.client(DEVICE, f"sleeper-{number}", clean=False)
            sleeper.subscribe(topic, 1)
            sleeper.close()
        client = broker.client(DEVICE, "another", clean=False)
        with reading(client):
            flood(client, topic)
        for number in range(5):
            client = broker.client(DEVICE, f"unread-{number}", clean=False)
            flood(client, topic)
            client.close()
        check_others(broker)
        assert resident(process) - before < 4 * QUEUED
    assert broker.stored() < 1.2 * QUEUED


def test_t9_who_retains_messages_is_cut_off(make_broker):
    broker = make_broker()
    with mosquitto(broker.conf, broker.port):
        client = broker.client(DEVICE)
        assert client.is_served()  # the control
        client.publish(f"SRUP/{DEVICE:x}", retain=True)
        assert not client.is_served()
        check_others(broker)
        late = broker.client(DEVICE)
        late.subscribe(f"SRUP/{DEVICE:x}", 1)
        late.publish(f"SRUP/{DEVICE:x}", payload=b"live")
        assert late.receive(0x30).endswith(b"live")  # and nothing before it


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_t9_who_asks_for_more_than_the_broker_may_keep_is_cut_off_and_nobody_else(make_broker, qos):
    """A device that sends to itself and reads nothing; the memory is free again when it is gone."""
    broker, topic = make_broker(memory=64), f"SRUP/{DEVICE:x}"
    with mosquitto(broker.conf, broker.port) as process:
        before = resident(process)
        server, device = (broker.client(identity, "standing") for identity in (SERVER, OTHER))
        for _ in range(2):
            client = broker.client(DEVICE)
            client.subscribe(topic, qos)
            flood(client, topic, 3000, qos)
            assert resident(process) - before < 100 * MIB
            client.close()
            check_others_standing(server, device)


def check_others_standing(server, device):
    for client in (server, device):
        client.publish(f"SRUP/{OTHER:x}", payload=b"genuine")
        assert client.receive(PUBACK) == b"\0\1"


OTHER_FILTERS = (
    *(f"SRUP/{OTHER:x}", "SRUP/+", "SRUP/#", "#", "+/#", "+", "/", "x/y"),
    *("$SYS/#", "$SYSx", "$x/y", "$share/x/y", f"$share/x/SRUP/{DEVICE:x}"),
)


def fill(client):
    """Subscribe to ever more filters, until one is refused or the client is cut off; return how many were taken."""
    taken = 0
    with suppress(OSError):
        for number in range(2000):
            answers = client.subscribe(f"{number:x}", 1, *(f"{number:x}/{each:x}" for each in range(64)))
            taken += len(answers) - answers.count(REFUSED)
            if REFUSED in answers:
                break
    return taken


def test_t9_a_device_subscribes_to_its_own_topic_and_to_nothing_else(make_broker):
    """Without the list of filters 84,000 fill these 64 MiB, and then the others are cut off, too."""
    broker, topic = make_broker(memory=64), f"SRUP/{DEVICE:x}"
    with mosquitto(broker.conf, broker.port) as process:
        server, device = (broker.client(identity, "standing") for identity in (SERVER, OTHER))
        before = resident(process)
        client = broker.client(DEVICE, clean=False)
        assert client.subscribe(topic, 1, f"{topic}/#") == [1, 1]
        for other in OTHER_FILTERS:
            assert client.subscribe(other) == [REFUSED], other
        assert fill(client) == 0
        assert resident(process) - before < 4 * MIB
        check_others_standing(server, device)
        check_others(broker)
        client.publish(topic, payload=b"genuine")
        assert client.receive(0x30).endswith(b"genuine")  # and all else is as before
    assert process.returncode == 0
    assert broker.stored() < MIB


def test_t9_control_a_device_that_is_not_in_the_list_of_filters_fills_the_memory(make_broker):
    """One that was enrolled since the broker was started; in the list from the next start on."""
    broker = make_broker(memory=64)
    folder = broker.conf.parent
    (folder / "filters.json").write_text(filter_list([OTHER]))
    with mosquitto(broker.conf, broker.port):
        assert fill(broker.client(DEVICE)) > 50_000
    broker.site.folder.publish(broker.site.authority)
    with mosquitto(broker.conf, broker.port):
        assert fill(broker.client(DEVICE)) == 0


def test_the_list_of_filters_serves_a_large_fleet_and_servers_are_not_in_it(make_broker):
    """The plugin takes a minute and more for so many if they are not in its order."""
    broker = make_broker()
    fleet = {0x10000 + number for number in range(50_000)}
    (broker.conf.parent / "filters.json").write_text(filter_list({DEVICE, OTHER} | fleet))
    with mosquitto(broker.conf, broker.port):
        assert fill(broker.client(DEVICE)) == 0
        server = broker.client(SERVER)
        assert REFUSED not in server.subscribe("SRUP/servers/5e/#", 1, *(f"SRUP/{device:x}/#" for device in range(100)))


def test_t18_nobody_takes_the_session_of_another(make_broker):
    broker = make_broker()
    with mosquitto(broker.conf, broker.port):
        server = broker.client(SERVER, "srup-5e")
        thief = broker.client(DEVICE, "srup-5e")
        assert thief.is_served()
        assert server.is_served()
        again = broker.client(SERVER, "anything")
        assert again.is_served()
        assert not server.is_served()  # the control: its own it does take


def test_workers_have_a_port_on_which_one_certificate_has_many_sessions_and_devices_may_do_nothing(make_broker):
    port = free_port()
    broker, topic = make_broker(workers_port=port), f"SRUP/{OTHER:x}"
    with mosquitto(broker.conf, port):  # the later of the two listeners
        workers = [broker.client(SERVER, f"srup-5e-p{number}", port=port) for number in range(3)]
        for worker in workers:
            worker.subscribe(topic, 1)
        spy = broker.client(DEVICE, "spy", port=port)
        spy.subscribe(f"SRUP/{DEVICE:x}", 1)
        spy.publish(f"SRUP/{DEVICE:x}", payload=b"stolen")
        spy.receive(PUBACK)
        broker.client(OTHER, "device").publish(topic, payload=b"genuine")
        for worker in workers:
            assert worker.receive(0x30).endswith(b"genuine")
        workers[0].publish(f"SRUP/{DEVICE:x}", payload=b"for the spy")
        workers[0].receive(PUBACK)
        spy.send(packet(0xC0, b""))
        assert spy.socket.recv(2)[0] == PINGRESP  # nothing else has come


def test_the_largest_message_passes_and_a_larger_packet_does_not(make_broker):
    broker, topic = make_broker(), join_topic(SERVER, DEVICE)
    with mosquitto(broker.conf, broker.port):
        server, device = broker.client(SERVER), broker.client(DEVICE)
        server.subscribe(topic, 1)
        device.publish(topic, payload=bytes(MAX_MESSAGE_SIZE))
        device.receive(PUBACK)
        assert len(server.receive(0x30)) > MAX_MESSAGE_SIZE
        with suppress(OSError):
            device.publish(topic, payload=bytes(MAX_PACKET))
        assert not device.is_served()
    top = 2**64 - 1
    assert MAX_MESSAGE_SIZE + len(join_topic(top, top)) + 9 < MAX_PACKET


# --- after a change of a key


def rotated(broker, process):
    """Change the device's key and let the broker reload; return the folder with the old one and its standing client."""
    old = broker.path / "old"
    shutil.copytree(broker.folder(DEVICE), old)
    standing = broker.client(DEVICE, folder=old)
    assert standing.is_served()
    with broker.site.serving() as url:
        replace_url(broker.folder(DEVICE), Enrolment.load(broker.folder(DEVICE)).url, url)
        rotate(broker.folder(DEVICE), key_of(0x99))
    broker.site.folder.publish(broker.site.authority)
    broker.reload(process)
    return old, standing


def check_refused(broker, folder, *earlier):
    """Neither a handshake nor a TLS ticket lets the old certificate in."""
    for each in (None, *earlier):
        with pytest.raises(OSError, match=r"revoked|cut off|reset|EOF"):
            broker.client(DEVICE, folder=folder, earlier=each)


def test_the_connection_of_a_key_that_was_replaced_ends_when_the_new_one_connects(make_broker):
    broker = make_broker()
    with mosquitto(broker.conf, broker.port) as process:
        control = broker.client(DEVICE)
        assert broker.client(DEVICE, earlier=control).socket.session_reused  # tickets do let in before that
        old, standing = rotated(broker, process)
        check_refused(broker, old, standing)
        assert standing.is_served()  # a reload alone leaves it
        fresh = broker.client(DEVICE, "of another name")
        assert fresh.is_served()
        assert not standing.is_served()
        check_refused(broker, old, standing)
        assert fresh.is_served()


def test_the_connection_of_a_key_that_was_replaced_ends_with_a_restart(make_broker):
    broker = make_broker()
    with mosquitto(broker.conf, broker.port) as process:
        old, standing = rotated(broker, process)
        assert standing.is_served()
    with mosquitto(broker.conf, broker.port):
        assert not standing.is_served()
        check_refused(broker, old, standing)
        assert broker.client(DEVICE).is_served()


def replace_url(folder, old, new):
    path = folder / "enrolment.json"
    path.write_text(path.read_text().replace(old, new))


# --- whose the files are


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")


@pytest.fixture
def folder():
    """A folder that every user of the machine reaches."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def account():
    for name in ("mosquitto", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("there is no user without rights")


@root
def test_t18_the_broker_writes_its_data_and_nothing_else(folder, account):
    need("mosquitto")
    port = free_port()
    site = Site(folder / "keyex")
    conf = site.folder.write_broker(
        site.authority, ["127.0.0.1"], site.clock(), port=port, address="127.0.0.1", user=account.pw_name
    )
    site.authority.close()
    broker = conf.parent
    owners = {path.name: path.stat().st_uid for path in (broker, *broker.iterdir())}
    assert owners.pop("data") == account.pw_uid
    assert set(owners.values()) == {0}
    key = (broker / "server.key").stat()
    assert (stat.S_IMODE(key.st_mode), key.st_gid) == (0o640, account.pw_gid)
    assert site.folder.broker_user == account.pw_name
    with mosquitto(conf, port) as process:
        assert psutil.Process(process.pid).uids().real == account.pw_uid
        wait_until(lambda: " running" in conf.with_name("mosquitto.log").read_text())  # only then it saves at its end
    assert (broker / "data" / "mosquitto.db").stat().st_uid == account.pw_uid
    for target, status in (("data/x", 0), ("x", 1), ("../x", 1)):
        done = subprocess.run(
            ["ln", "-s", "/etc/passwd", broker / target],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            stderr=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == status, target


@root
def test_the_folder_of_the_broker_belongs_to_the_owner_of_the_service(folder, account):
    """Who runs the service publishes there, though root has written the configuration."""
    site = Site(folder / "keyex")
    os.chown(site.folder.path, account.pw_uid, account.pw_gid)
    site.folder.write_broker(site.authority, ["127.0.0.1"], site.clock())
    assert site.folder.broker.stat().st_uid == account.pw_uid
    assert site.folder.publish(site.authority)
    site.authority.close()


def test_t18_a_link_in_the_place_of_the_brokers_folder_is_not_followed(tmp_path):
    """The service's user could lead root astray, who revokes somebody."""
    site = Site(tmp_path / "keyex")
    (tmp_path / "elsewhere").mkdir()
    site.folder.broker.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyServiceError, match="is no folder, or a link to one"):
        site.folder.publish(site.authority)
    with pytest.raises(KeyServiceError, match="broker"):
        site.folder.write_broker(site.authority, ["127.0.0.1"], site.clock())
    assert not list((tmp_path / "elsewhere").iterdir())
    site.authority.close()


@root
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_t18_the_key_of_the_service_does_not_become_the_broker_s(folder, account, link):
    """With a link to it, and its certificate, which everybody is shown, it looks like the broker's own."""
    site = Site(folder / "keyex")
    cert, key = site.folder.https(["127.0.0.1"], site.clock())
    broker = site.folder.broker
    broker.mkdir()
    os.chown(broker, account.pw_uid, account.pw_gid)
    link(broker / "server.key", key)
    shutil.copy(cert, broker / "server.pem")
    before = key.read_bytes(), key.stat().st_mode, key.stat().st_gid
    site.folder.write_broker(site.authority, ["127.0.0.1"], site.clock(), user=account.pw_name)
    assert (key.read_bytes(), key.stat().st_mode, key.stat().st_gid) == before
    assert (broker / "server.key").read_bytes() != before[0]
    site.authority.close()


@root
def test_t18_links_that_a_former_owner_left_are_not_followed(folder, account):
    """As root wrote it before: the whole folder belonged to the broker's user, its sessions in it."""
    site = Site(folder / "keyex")
    secret = folder / "secret"
    broker = site.folder.broker
    broker.mkdir()
    os.chown(broker, account.pw_uid, account.pw_gid)
    with pytest.raises(KeyServiceError, match="srup keyex mosquitto mends it"):
        site.folder.publish(site.authority)
    key_of(7, "p256").save(secret)
    before = secret.stat()
    for name in ("server.key", "server.pem", "ca.pem", "mosquitto.conf", "acl", "crl.pem"):
        (broker / name).symlink_to(secret)
    (broker / "mosquitto.db").write_bytes(b"sessions")
    options = {"user": account.pw_name}

    def write():
        return site.folder.write_broker(site.authority, ["127.0.0.1"], site.clock(), **options)

    (broker / "data").symlink_to(folder)
    with pytest.raises(KeyServiceError, match="data"):
        write()
    assert folder.stat().st_uid == 0
    (broker / "data").unlink()
    write()
    after = secret.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert key_of(7, "p256").to_pem() == secret.read_bytes()
    assert not any(path.is_symlink() for path in broker.iterdir())
    assert (broker / "server.key").read_bytes() != tls_pem(key_of(7, "p256"))
    assert (broker / "data" / "mosquitto.db").read_bytes() == b"sessions"
    hard = broker / "server.key"
    hard.unlink()
    os.link(secret, hard)
    write()
    assert secret.stat().st_mode == before.st_mode
    site.authority.close()


def test_the_key_of_the_broker_is_kept_when_it_serves(tmp_path):
    site = Site(tmp_path / "keyex")
    made = [
        site.folder.write_broker(site.authority, ["127.0.0.1"], site.clock()).with_name("server.key").read_bytes()
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert serialization.load_pem_private_key(made[0], None)
    site.authority.close()
