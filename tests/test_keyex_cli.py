"""``srup keyex``: what an operator types, and what he is told."""

import os
import signal
import subprocess
import sys
from base64 import b64decode

import pytest
from cryptography import x509
from typer.testing import CliRunner

from srup import KeyServiceError, TransportError
from srup.cli.app import app
from srup.keyex import KeyService, ServiceFolder, enroll
from srup.keyex.proof import endorsement, is_signed
from srup.simulation import Clock

from .fleet import WAIT, certificate, key_of
from .keyex_site import BROKER, DEVICE, OTHER, SERVER, named

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

    return run


def authority(folder):
    return ServiceFolder(folder).open(clock=Clock(), entropy=os.urandom)


def test_a_token_is_alone_on_standard_output_and_the_folder_is_made(srup, folder):
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
    said = srup("add", "5E", tmp_path / "server.pub", "--server", "--type", "c2")
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
    assert "1 waiting keys" in srup("refuse", "d2")
    assert "waits" not in srup("list")


def test_the_revocation_list_is_written(srup, tmp_path):
    text = srup("crl")
    assert not list(x509.load_pem_x509_crl(text.encode()))
    srup("crl", "--output", tmp_path / "crl.pem")
    assert (tmp_path / "crl.pem").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("token", "xyz"), "identity: is not 1 to 16 hexadecimal digits"),
        (("revoke", "d1"), "d1 is not registered"),
        (("add", "d1", "/nowhere/key.pub"), "No such file"),
        (("mosquitto", "--name", "*.example"), "wildcard"),
        (("mosquitto", "--name", "x", "--port", "99999"), "a port is 1 to 65535"),
        (("mosquitto", "--name", "x", "--address", "1 2"), "cannot stand"),
        (("serve", "--broker", "x", "--plain-http", "--host", "0.0.0.0"), "T15"),
        (("serve", "--broker", "x", "--tls-cert", "x"), "go together"),
        (("serve", "--broker", "x", "--server", "x"), "--server: is not"),
        (("serve", "--broker", "x", "--host", "no.such.host.invalid"), "error"),
    ],
)
def test_a_mistake_is_named(srup, arguments, said):
    assert said in srup(*arguments, fails=True)


def test_a_folder_with_something_else_in_it_is_left_alone(srup, folder):
    folder.mkdir()
    (folder / "precious").write_text("x")
    assert "is not the folder of a key exchange service" in srup("token", "d1", fails=True)
    assert [path.name for path in folder.iterdir()] == ["precious"]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
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
        assert process.returncode in (0, -ending, 128 + ending)


def test_serve_with_a_certificate_of_ones_own(folder, tmp_path, srup):
    cert, key = certificate(tmp_path)
    with serving(folder, "--tls-cert", str(cert), "--tls-key", str(key)) as (_, url):
        assert KeyService(url, ca=cert.read_bytes()).status()
        with pytest.raises(TransportError, match="certificate"):
            KeyService(url, ca=(folder / "ca.pem").read_bytes()).status()


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
