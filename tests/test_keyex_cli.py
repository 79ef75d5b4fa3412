"""``srup keyex``: what an operator types, and what he is told."""

import json
import os
import signal
import socket
import subprocess
import sys
from base64 import b64decode
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from srup import KeyServiceError, PrivateKey, TransportError
from srup.cli.app import app
from srup.cli.keyex import _keep_house
from srup.cli.keyex import app as keyex
from srup.keyex import Enrolment, KeyService, ServiceFolder, enroll
from srup.keyex.certificates import DAY
from srup.keyex.proof import endorsement, is_signed
from srup.simulation import Clock
from srup.transport import mosquitto

from .certificates import host_files
from .fleet import WAIT, key_of
from .keyex_site import BROKER, DEVICE, OTHER, SERVER, Site, named

RUNNER = CliRunner()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "keyex"


@pytest.fixture
def srup(folder):
    """Run ``srup keyex`` on the folder; returns what it prints."""

    def run(command, *arguments, fails=False):
        done = RUNNER.invoke(app, ["keyex", command, *map(str, arguments), "--folder", str(folder)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == (2 if fails else 0), done.output
        return done.stderr if fails else done.stdout

    run("create")
    return run


def authority(folder):
    return ServiceFolder(folder).open(clock=Clock(), entropy=os.urandom)


def test_a_token_is_alone_on_standard_output(srup, folder):
    token = srup("token", "d1").strip()
    assert len(token) == 76
    assert {"keyex.db", "ca.key", "ca.pem", "service.key"} <= {path.name for path in folder.iterdir()}
    assert srup("token", "d1").strip() != token
    listed = srup("list")
    assert "d1" in listed
    assert "token" in listed


def test_the_operator_adds_lists_and_revokes(srup, folder, tmp_path):
    public = key_of(SERVER).public_key
    public.save(tmp_path / "server.pub")
    said = srup("add", "5E", tmp_path / "server.pub", "--as-server", "--type", "c2")
    signature = b64decode(said.splitlines()[-1].split()[-1])
    opened = authority(folder)
    assert is_signed(opened.key.public_key, endorsement(public), signature)
    opened.close()
    listed = srup("list")
    assert public.fingerprint in listed
    assert "server" in listed
    srup("mosquitto", "--name", "127.0.0.1")
    assert "user 5e\ntopic readwrite" in (folder / "broker" / "acl").read_text()
    assert "kill -HUP" in srup("revoke", "5e")
    assert "revoked" in srup("list")
    assert "user 5e\ntopic deny" in (folder / "broker" / "acl").read_text()
    assert "never gets another" in srup("token", "5e", fails=True)


def test_the_operator_approves_and_refuses(srup, folder):
    srup("list")
    opened = authority(folder)
    for number in (DEVICE, OTHER):
        with pytest.raises(KeyServiceError):
            opened.register(named(number), key_of(number).public_key, "device")
    opened.close()
    fingerprint = key_of(DEVICE).public_key.fingerprint
    assert fingerprint in srup("list")
    assert "at least its first 32 digits" in srup("approve", "d1", fingerprint[:8], fails=True)
    assert "no key with it waits" in srup("approve", "d1", "0" * 64, fails=True)
    assert "d1 is registered" in srup("approve", "d1", fingerprint)
    assert "at least its first 32 digits" in srup("refuse", "d2", key_of(OTHER).public_key.fingerprint[:8], fails=True)
    assert "1 waiting key of d2 refused" in srup("refuse", "d2")
    assert "no key waits for d2" in srup("refuse", "d2", fails=True)
    assert "waiting" not in srup("list")


def test_the_revocation_list_is_written(srup, tmp_path):
    text = srup("crl")
    assert not list(x509.load_pem_x509_crl(text.encode()))
    srup("crl", "--output", tmp_path / "crl.pem")
    assert (tmp_path / "crl.pem").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("token", "xyz"), "is not an identity"),
        (("revoke", "d1"), "d1 is not registered"),
        (("add", "d1", "/nowhere/key.pub"), "No such file"),
        (("mosquitto", "--name", "*.example"), "wildcard"),
        (("mosquitto", "--name", "x", "--port", "99999"), "a port is 1 to 65535"),
        (("mosquitto", "--name", "x", "--host", "1 2"), "cannot stand"),
        (("mosquitto", "--name", "x", "--plugin", "none.so"), "none.so is no file"),
        (("serve", "--broker", "x", "--plain-http", "--host", "0.0.0.0"), "T15"),
        (("serve", "--broker", "x", "--cert", "x"), "go together"),
        (("serve", "--broker", "x", "--server", "x"), "is not an identity"),
        (("serve", "--broker", "x", "--trusted-proxy", "proxy"), "--trusted-proxy: 'proxy' does not appear"),
        (("serve", "--broker", "x", "--host", "no.such.host.invalid"), "error"),
        (("serve", "--broker", "x", "--host", "0.0.0.0"), "give --name"),
        (("serve", "--broker", "x", "--cert", "nowhere.pem", "--cert-key", "nowhere.key"), "do not load"),
        (("serve", "--broker", ""), "no broker is named"),
        (("serve", "--broker", "x:99999"), "no broker is named"),
        (("serve", "--broker", "mqtts://a b"), "no broker is named"),
        (("serve", "--broker", "mqtts://u:p@x"), "no broker is named"),
        (("serve", "--broker", "mqtt://x"), "without TLS"),
        (("mosquitto", "--name", "https://x"), "is no host name"),
        (("mosquitto", "--name", "x:8883"), "is no host name"),
        (("mosquitto", "--name", "a b"), "is no host name"),
        (("mosquitto", "--name", "x\nuser root"), "is no host name"),
        (("mosquitto", "--name", "::"), "every address"),
        (("add", "d1", "/"), "/: Is a directory"),
        (("add", "d1", __file__), f"{__file__}: public key"),
        (("crl", "--output", "/"), "/: Is a directory"),
        (("crl", "--output", "/nowhere/crl.pem"), "/nowhere/crl.pem: No such file or directory"),
        (("serve", "--broker", "x", "--cert", "/", "--cert-key", "/"), "do not load: Is a directory"),
        (
            ("serve", "--broker", "x", "--host", "192.0.2.1"),
            "cannot listen on 192.0.2.1, port 8443: this machine does not",
        ),
        (("create",), "is there already"),
    ],
)
def test_a_mistake_is_named(srup, arguments, said):
    told = srup(*arguments, fails=True)
    assert said in told
    assert "Errno" not in told


def test_a_port_that_is_taken_is_named(srup):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = srup("serve", "--broker", "x", "--port", str(port), fails=True)
    assert f"cannot listen on 127.0.0.1, port {port}: another program has this port" in told


COMMANDS = [
    *(("token", "d1"), ("add", "d1", "x"), ("list",), ("approve", "d1", "f" * 32), ("refuse", "d1"), ("revoke", "d1")),
    *(("crl",), ("mosquitto", "--name", "x"), ("serve", "--broker", "x")),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("kind", ["typo", "empty", "other"])
def test_no_command_but_create_makes_a_service(srup, tmp_path, arguments, kind):
    """A name that is mistyped would get an authority of its own, and the real one stay as it was."""
    assert {command.name or command.callback.__name__ for command in keyex.registered_commands} == {
        *(command for command, *_ in COMMANDS),
        *("create", "enroll", "renew"),
    }
    folder = tmp_path / kind
    if kind != "typo":
        folder.mkdir()
    if kind == "other":
        (folder / "precious").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    done = RUNNER.invoke(app, ["keyex", *arguments, "--folder", str(folder)])
    assert done.exit_code == 2
    assert f"{folder} holds no key exchange service; srup keyex create --folder {folder} makes one" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_where_the_plugin_for_filters_is_not_found_the_operator_is_told(srup, folder, tmp_path, monkeypatch):
    conf, own = folder / "broker" / "mosquitto.conf", tmp_path / "own.so"
    own.touch()
    monkeypatch.setattr(mosquitto, "_PREFIXES", (str(tmp_path),))
    monkeypatch.setattr(mosquitto, "_LIBRARIES", ("lib/*", "lib"))
    done = RUNNER.invoke(app, ["keyex", "mosquitto", "--name", "x", "--folder", str(folder)])
    assert "--plugin" in done.stderr
    assert "plugin_opt_config_file" not in conf.read_text()
    found = tmp_path / "lib" / "any-linux" / "mosquitto_dynamic_security.so"
    found.parent.mkdir(parents=True)
    found.touch()
    for options, expected in (((), found), (("--plugin", own), own)):
        srup("mosquitto", "--name", "x", *options)
        assert f"\nplugin {expected}\n" in conf.read_text()
    srup("token", "d1")
    key_of(0xD2).public_key.save(tmp_path / "d2.pub")
    srup("add", "d2", tmp_path / "d2.pub")
    listed = json.loads((conf.parent / "filters.json").read_text())["clients"]
    assert {each["username"] for each in listed} == {"d1", "d2"}


@pytest.mark.parametrize("kind", ["x\x1b[31m", "", "two  spaces", "x" * 33])
def test_a_type_that_no_client_could_have_is_refused(srup, tmp_path, kind):
    key_of(DEVICE).public_key.save(tmp_path / "d1.pub")
    assert "type: is not 1 to 32" in srup("add", "d1", tmp_path / "d1.pub", "--type", kind, fails=True)
    srup("add", "d1", tmp_path / "d1.pub", "--type", "LED sign")


def test_a_key_that_is_encrypted_or_anothers_is_named(srup, tmp_path):
    cert, key = host_files(tmp_path)
    (tmp_path / "other.key").write_bytes(key_of(DEVICE).to_pem())
    (tmp_path / "locked.key").write_bytes(PrivateKey.from_pem(key.read_bytes()).to_pem("secret"))
    for wrong in ("other.key", "locked.key"):
        options = ("--cert", cert, "--cert-key", tmp_path / wrong)
        assert wrong in srup("serve", "--broker", "x", *options, fails=True)


def test_the_servers_certificate_is_renewed_although_the_brokers_folder_is_no_good(srup, folder, monkeypatch):
    srup("mosquitto", "--name", "x")
    opened = authority(folder)
    place = ServiceFolder(folder)
    renewed = []
    monkeypatch.setattr(place, "publish", lambda _: (_ for _ in ()).throw(KeyServiceError(0, "", "links")))
    config = SimpleNamespace(ssl=SimpleNamespace(load_cert_chain=lambda *files: renewed.append(files)))
    with pytest.raises(KeyServiceError, match="links"):
        _keep_house(place, opened, ["x"], config, own=True)
    assert renewed == [(folder / "https.pem", folder / "https.key")]
    opened.close()


def test_a_service_is_made_once_and_nothing_is_overwritten(srup, folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert f"{folder} is there already" in srup("create", fails=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    done = RUNNER.invoke(app, ["keyex", "create", "--folder", str(tmp_path / "other")])
    assert done.exit_code == 2
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["precious"]


@pytest.mark.process
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_ends_when_it_is_told_to_and_enroll_writes_the_folder(srup, folder, tmp_path, ending):
    token = srup("token", "d1").strip()
    with serving(folder) as (process, url):
        done = RUNNER.invoke(
            app,
            ["keyex", "enroll", url, "d1", "--scheme", "ed25519", "--folder", str(tmp_path / "d")],
            env={"SRUP_TOKEN": token},
        )
        assert done.exit_code == 0, done.output
        assert f"d1 is enrolled in {tmp_path / 'd'}" in done.stdout
        again = RUNNER.invoke(app, ["keyex", "enroll", url, "d2", "--folder", str(tmp_path / "e"), "--token", token])
        assert again.exit_code == 2
        assert "not good for this identity" in again.stderr
        process.send_signal(ending)
        process.communicate(timeout=WAIT)
        assert process.returncode == 0


def test_a_certificate_is_renewed_by_command_when_half_its_time_is_over(tmp_path):
    site = Site(tmp_path / "service")
    site.authority.add(DEVICE, key_of(DEVICE).public_key)
    with site.serving() as url:
        made = enroll(url, DEVICE, key_of(DEVICE), ca=site.authority.certificates.pem)
        made.save(tmp_path / "d")
        for age, renewed in ((0, False), (3, False), (4, True)):
            old = site.authority.certificates.certify_client(
                DEVICE, key_of(DEVICE).public_key, site.clock() - age * DAY, 7 * DAY
            )
            replace(made, certificate=old.public_bytes(Encoding.PEM)).save(tmp_path / "d")
            done = RUNNER.invoke(app, ["keyex", "renew", str(tmp_path / "d")])
            assert done.exit_code == 0, done.output
            present = Enrolment.load(tmp_path / "d")
            assert (present.expires > old.not_valid_after_utc.timestamp()) == renewed
            assert f"{datetime.fromtimestamp(present.expires, UTC):%Y-%m-%d %H:%M}" in done.stdout
    done = RUNNER.invoke(app, ["keyex", "renew", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "none" in done.stderr
    site.authority.close()


@pytest.mark.process
def test_serve_with_a_certificate_of_ones_own(folder, tmp_path, srup):
    cert, key = host_files(tmp_path)
    with serving(folder, "--cert", str(cert), "--cert-key", str(key)) as (_, url):
        assert KeyService(url, ca=cert.read_bytes()).status()
        with pytest.raises(TransportError, match="certificate"):
            KeyService(url, ca=(folder / "ca.pem").read_bytes()).status()


@pytest.mark.process
def test_plain_http_on_loopback(folder, srup):
    with serving(folder, "--plain-http") as (_, url):
        assert url.startswith("http://127.0.0.1:")
        opened = authority(folder)
        opened.add(DEVICE, key_of(DEVICE).public_key)
        opened.close()
        assert enroll(url, DEVICE, key_of(DEVICE), allow_http=True).identity == DEVICE


class serving:
    """``srup keyex serve`` in a process of its own, as a context manager: (process, URL)."""

    def __init__(self, folder, *options):
        path = os.pathsep.join(entry for entry in sys.path if entry)
        arguments = ["keyex", "serve", "--folder", str(folder), "--port", "0", "--broker", BROKER, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "srup", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    def __enter__(self):
        line = self.process.stdout.readline()
        assert line.startswith("Key exchange service"), self.process.stderr.read()
        return self.process, line.split()[-1]

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=WAIT)
