"""Devices and servers that run on enrolment folders: keys come from the service, certificates are renewed."""

import json
import os
from contextlib import ExitStack, contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from srup import Action, Device, KeyRing, KeyServiceError, Server, UnknownSenderError, encode
from srup.agent.enrolment import EnrolledKeys, renew
from srup.cli.app import app
from srup.keyex import Enrolment, KeyService, enroll
from srup.keyex.certificates import DAY, tls_pem
from srup.transport import MemoryNetwork, MemoryTransport, MqttTransport
from srup.transport.broker import free_port

from .command import Command
from .fleet import WAIT, key_of, wait_until
from .keyex_site import DEVICE, OTHER, SERVER, Site, make_site, mosquitto
from .old_peer import Link, OldDevice
from .programs import need

__all__ = ["make_site"]


@pytest.fixture
def site(make_site):
    site = make_site()
    site.authority.add(SERVER, key_of(SERVER).public_key, "c2", server=True)
    return site


@pytest.fixture
def url(site):
    with site.serving() as url:
        yield url


@pytest.fixture
def enrolled(site, url, tmp_path):
    """Enrol an identity; returns its folder."""

    def enrol(identity):
        if identity != SERVER:
            site.authority.add(identity, key_of(identity).public_key)
        folder = tmp_path / f"{identity:x}"
        enroll(url, identity, key_of(identity), ca=site.authority.certificates.pem, kind="c2").save(folder)
        return folder

    return enrol


class Party:
    """A network in memory, and who is on it."""

    def __init__(self):
        self.network = MemoryNetwork()
        self.stack = ExitStack()

    def transport(self, name):
        return MemoryTransport(self.network, name)

    def run(self, agent):
        return self.stack.enter_context(agent)


@pytest.fixture
def party():
    party = Party()
    with party.stack:
        yield party


def test_a_server_learns_the_key_of_an_enrolled_device_when_it_asks_to_join(enrolled, party, tmp_path):
    server = party.run(Server.enroll(enrolled(SERVER), broker=party.transport("server")))
    device = party.run(Device.enroll(enrolled(DEVICE), broker=party.transport("device"), firmware=tmp_path / "f"))
    device.wait_joined(WAIT)
    assert dict(server.devices) == {DEVICE: key_of(DEVICE).public_key}
    assert server.counts["UnknownSenderError"] == 0


def test_a_server_with_a_ring_of_its_own_asks_nobody(enrolled, party, tmp_path):
    """The control: only who is in the ring gets in."""
    refused = []
    server = Server.enroll(enrolled(SERVER), devices=KeyRing(), broker=party.transport("server"))
    server.on_refused(refused.append)
    party.run(server)
    party.run(Device.enroll(enrolled(DEVICE), broker=party.transport("device"), firmware=tmp_path / "f"))
    wait_until(lambda: refused)
    assert isinstance(refused[0].error, UnknownSenderError)
    assert not server.devices


def test_who_is_not_enrolled_is_refused_and_whose_key_was_revoked_too(site, enrolled, party, tmp_path):
    refused = []
    server = Server.enroll(enrolled(SERVER), broker=party.transport("server"))
    server.on_refused(refused.append)
    party.run(server)
    gone = enrolled(DEVICE)
    enrolment = Enrolment.load(gone)
    site.authority.revoke(DEVICE)
    for identity in (DEVICE, OTHER):
        party.run(
            Device(
                *(identity, key_of(identity)),
                server=SERVER,
                server_key=enrolment.server_key,
                broker=party.transport(f"device {identity}"),
                firmware=tmp_path / f"{identity:x}",
            )
        )
    wait_until(lambda: {refusal.error.sender_id for refusal in refused} == {DEVICE, OTHER})
    assert not server.devices


def test_a_message_on_the_topic_of_another_starts_no_look_up(enrolled, party, monkeypatch):
    """Else one device could fill the queue with identities that it makes up."""
    asked, refused = [], []
    real = EnrolledKeys.look_up
    monkeypatch.setattr(EnrolledKeys, "look_up", lambda *arguments: asked.append(arguments[1]) or real(*arguments))
    server = Server.enroll(enrolled(SERVER), broker=party.transport("server"))
    server.on_refused(refused.append)
    party.run(server)
    thief = party.transport("thief")
    thief.start(lambda delivery: None, lambda connected, why: None)
    party.stack.callback(thief.stop)
    forged = encode(Action(sequence_id=7, sender_id=OTHER, token=b"t", action_id=3), key_of(OTHER))
    thief.publish(f"SRUP/servers/{SERVER:x}/{DEVICE:x}", forged)
    wait_until(lambda: refused)
    assert asked == []
    thief.publish(f"SRUP/servers/{SERVER:x}/{OTHER:x}", forged)  # the control
    wait_until(lambda: len(refused) == 2)
    assert set(asked) == {OTHER}


class Paused:
    """A key service that answers when it is let, and counts."""

    url = "https://keyex.example"

    def __init__(self):
        self.asked = []

    def key_of(self, identity):
        self.asked.append(identity)
        return key_of(identity).public_key


def test_look_ups_are_bounded_and_what_is_unknown_is_not_asked_for_all_the_time():
    now = [0.0]
    service, ring, told = Paused(), KeyRing(), []
    keys = EnrolledKeys(service, ring, pause=60.0, clock=lambda: now[0])
    with keys._lock:
        keys._busy = True  # nothing is answered
    assert [keys.look_up(identity, told.append) for identity in range(70)] == [True] * 64 + [False] * 6
    assert not keys.look_up(0, told.append)
    keys._waiting.clear()
    now[0] = 59.0
    assert not keys.look_up(0, told.append)
    now[0] = 61.0
    assert keys.look_up(0, lambda: told.append(0))
    keys._work()
    assert (service.asked, told, set(ring)) == ([0], [0], {0})


# --- the commands

RUNNER = CliRunner()


@contextmanager
def network(tmp_path, scheme, **options):
    """A service, a broker as it is shipped, and a server that is enrolled; yields site, URL and folder."""
    port = free_port()
    site = Site(tmp_path / "keyex", broker=f"mqtts://127.0.0.1:{port}")
    site.authority.add(SERVER, key_of(SERVER, scheme).public_key, "c2", server=True)
    user = "root" if os.geteuid() == 0 else ""
    options |= {"port": port, "address": "127.0.0.1", "user": user}
    conf = site.folder.write_broker(site.authority, ["127.0.0.1"], site.clock(), **options)
    folder = tmp_path / "server"
    with mosquitto(conf, port), site.serving() as url:
        enroll(url, SERVER, key_of(SERVER, scheme), ca=site.authority.certificates.pem).save(folder)
        yield site, url, folder
    site.authority.close()


@pytest.mark.process
def test_a_deployed_device_runs_on_the_files_that_enroll_has_made(tmp_path):
    """A double of one, which reads four files and knows nothing of the service."""
    need("mosquitto")
    with network(tmp_path, "rsa2048") as (site, url, server_folder):
        token = site.authority.invite(DEVICE)
        folder = tmp_path / "device"
        arguments = [url, f"{DEVICE:x}", "--folder", str(folder), "--token", token, "--type", "LED sign"]
        done = RUNNER.invoke(app, ["keyex", "enroll", *arguments])
        assert done.exit_code == 0, done.output
        old = OldDevice(DEVICE, (folder / "key.pem").read_bytes(), SERVER, (folder / "server.pub").read_bytes())
        transport = MqttTransport(
            site.authority.broker, "old", ca_file=folder / "ca.pem", cert_file=folder / "client.pem", session_expiry=0
        )
        joined = []
        server = Server.enroll(server_folder)
        server.on_joined(joined.append)
        with server, Link(old, transport) as link:
            wait_until(lambda: link.connected and server.connected)
            link.do(old.join)
            wait_until(lambda: old.joined)
        assert joined == [DEVICE]


@pytest.mark.process
def test_a_server_and_a_device_need_their_folders_and_nothing_else(tmp_path):
    need("mosquitto")
    with network(tmp_path, "ed25519") as (site, url, server_folder):
        site.authority.add(DEVICE, key_of(DEVICE).public_key)
        folder = tmp_path / "device"
        enroll(url, DEVICE, key_of(DEVICE), ca=site.authority.certificates.pem).save(folder)
        client = folder / "client.pem"
        key = key_of(DEVICE)
        old = site.authority.certificates.certify_client(DEVICE, key.public_key, site.clock() - 5 * DAY, 7 * DAY)
        client.write_bytes(tls_pem(key) + old.public_bytes(serialization.Encoding.PEM))
        with Command("server", "--enrolled", server_folder) as server:
            assert "devices registered at https://127.0.0.1" in server.heard("server 5e")
            server.heard("connected to")
            arguments = ["--enrolled", folder, "--firmware", tmp_path / "firmware"]
            with Command("device", *arguments) as device:
                device.heard("joined server 5e")
            server.heard("d1 has joined")
        renewed = x509.load_pem_x509_certificate(client.read_bytes()[client.read_bytes().index(b"-----BEGIN CERT") :])
        assert renewed.not_valid_after_utc > old.not_valid_after_utc


@pytest.mark.process
def test_workers_share_a_folder_on_their_own_port(tmp_path):
    """Each partition has a connection, which takes the session of no other."""
    from srup.store import RedisStore

    from .redis_server import redis_server

    need("mosquitto")
    port, keys, devices = free_port(), tmp_path / "keys", range(0xD0, 0xD8)
    keys.mkdir()
    with network(tmp_path, "ed25519", workers_port=port) as (site, url, server_folder), redis_server(tmp_path) as redis:
        ca = site.authority.certificates.pem
        for identity in devices:
            site.authority.add(identity, key_of(identity).public_key)
            key_of(identity).public_key.save(keys / f"{identity:x}.pem")
            enroll(url, identity, key_of(identity), ca=ca).save(tmp_path / f"{identity:x}")
        RedisStore.create(redis.url, SERVER, 4)
        arguments = ["--devices", keys, "--broker", f"mqtts://127.0.0.1:{port}", "--store", redis.url, "--workers", 2]
        with Command("server", "--enrolled", server_folder, *arguments), ExitStack() as stack:
            for identity in devices:
                device = Device.enroll(tmp_path / f"{identity:x}", firmware=tmp_path / "firmware")
                stack.enter_context(device).wait_joined(2 * WAIT)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("device",), "--identity is missing; give it, or use --enrolled FOLDER"),
        (("server",), "--identity is missing; give it, or use --enrolled FOLDER"),
        (("device", "--enrolled", "x", "--key", "k"), "--key cannot be used with --enrolled"),
        (("server", "--enrolled", "x", "--identity", "5e"), "--identity cannot be used with --enrolled"),
        (("server", "--enrolled", "x", "--password"), "--password cannot be used with --enrolled"),
        (("server", "--enrolled", "x", "--devices", "d", "--ca", "c"), "--ca cannot be used with --enrolled"),
        (
            ("device", "--enrolled", "nowhere"),
            "nowhere holds no enrolment: srup keyex enroll URL IDENTITY --folder nowhere makes one",
        ),
    ],
)
def test_what_is_missing_or_there_twice_is_named(arguments, text):
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == 2
    assert text in done.stderr.replace("\n", " ")


def test_a_device_is_sent_to_another_server_than_the_one_that_the_folder_names(enrolled):
    folder = str(enrolled(DEVICE))
    done = RUNNER.invoke(app, ["device", "--enrolled", folder, "--server", "5f"])
    assert done.exit_code == 2
    assert "--server-key is missing" in done.stderr.replace("\n", " ")
    assert isinstance(Enrolment.load(folder).key_service(), KeyService)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", None),
        ("url", "x y"),
        ("broker", 5),
        ("broker", ""),
        ("broker", "mqtt://x"),
        ("trust", "junk"),
        ("trust", 5),
    ],
)
def test_a_damaged_enrolment_is_named(enrolled, name, value):
    folder = enrolled(DEVICE)
    document = json.loads((folder / "enrolment.json").read_text())
    (folder / "enrolment.json").write_text(json.dumps(document | {name: value}))
    with pytest.raises(KeyServiceError, match="enrol again"):
        Enrolment.load(folder)


@pytest.mark.parametrize("file", ["client.pem", "ca.pem"])
@pytest.mark.parametrize("damage", [b"", b"\0\xff", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_named(enrolled, file, damage):
    folder = enrolled(DEVICE)
    key, _, _ = (folder / file).read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
    (folder / file).write_bytes(key + damage)
    with pytest.raises(KeyServiceError, match=f"{file} holds no certificate; remove enrolment.json and enrol again"):
        renew(folder)
