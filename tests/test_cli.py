"""The srup command, as its own process."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import srup
from srup.transport.broker import free_port

from .command import Command

pytestmark = [pytest.mark.process, pytest.mark.backend]


def _srup(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "srup", *arguments],
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_version_names_the_backend() -> None:
    done = _srup("version")
    assert (done.returncode, done.stdout) == (0, f"srup {srup.__version__} ({srup.BACKEND} backend)\n")


@pytest.mark.parametrize("kind", ["auto", "amqtt"])
def test_a_broker_to_try_things_out_with(kind: str) -> None:
    port = free_port()
    with Command("broker", "--port", port, "--broker-kind", kind) as broker:
        broker.heard(f"broker at mqtt://127.0.0.1:{port}: ", "Ctrl-C stops it")
        taken = _srup("broker", "--port", str(port))
        assert taken.returncode == 2
        assert f"port {port} cannot be used" in taken.stderr
        assert broker.end() == 0
    assert len(broker.complaints) == 1


def test_keygen_makes_a_pair_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "device.pem"
    done = _srup("keygen", str(path), "--scheme", "ed25519")
    assert done.returncode == 0, done.stderr
    key = srup.PrivateKey.load(path)
    assert srup.PublicKey.load(tmp_path / "device.pem.pub") == key.public_key
    assert key.public_key.fingerprint in done.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keygen_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "device.pem"
    path.write_text("precious")
    done = _srup("keygen", str(path), "--scheme", "ed25519")
    assert done.returncode == 2
    assert f"{path} exists" in done.stderr
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keygen", "/nowhere/at/all.pem", "--scheme", "ed25519"), "/nowhere/at/all.pem"),
        (("keygen", "x.pem", "--scheme", "rot13"), "unknown scheme 'rot13'"),
        (("demo", "--devices", "2"), "at least 3 devices"),
        (("demo", "--scheme", "rot13"), "unknown scheme 'rot13'"),
        (("demo", "--broker-kind", "pigeon"), "pigeon"),
    ],
)
def test_a_mistake_is_named(arguments: tuple[str, ...], said: str) -> None:
    done = _srup(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_shows_what_happened(tmp_path: Path) -> None:
    done = _srup("demo", "--scheme", "ed25519", "--broker-kind", "amqtt", DEVICES="3")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("PolicyError: the message is for d100", "ReplayError", "SignatureError", "UPDATE_FAIL_DIGEST (FF)"):
        assert line in done.stdout
    assert "Everything happened as expected" in done.stdout
    assert "✗" not in done.stdout


def _brokers(folder: Path) -> list[int]:
    """The processes that have a configuration of the broker helper below this folder on their command line."""
    commands = {process.pid: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    return [pid for pid, command in commands.items() if "srup-broker" in command and str(folder) in command]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_demo_ends_cleanly_when_it_is_told_to(tmp_path: Path, ending: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "srup", "demo", "--devices", "30", "--scheme", "rsa2048"],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("Firmware"):
        assert process.poll() is None
    process.send_signal(ending)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + ending, shown
    assert _brokers(tmp_path) == []
    assert list(tmp_path.glob("srup-*")) == []


def test_a_narrow_terminal_still_shows_what_matters() -> None:
    done = _srup("demo", "--scheme", "ed25519", "--broker-kind", "amqtt", DEVICES="3", COLUMNS="40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused (FF)" in done.stdout
    assert "d102" in done.stdout


WRITERS = [
    "--version",
    "version --json",
    "--help",
    "keygen --help",
    "simulate --seed 1 --steps 0 --runs 3",
    "keyex list",
]


@pytest.mark.parametrize("arguments", [*WRITERS, "keyex crl", "keyex token d1", "keygen new.pem --scheme ed25519"])
@pytest.mark.parametrize("place", ["a closed pipe", "a full disk", "nowhere"])
def test_output_that_nobody_takes_is_no_fault(tmp_path: Path, arguments: str, place: str) -> None:
    if arguments.startswith("keyex"):
        assert _srup("keyex", "create", "--folder", str(tmp_path / "keyex")).returncode == 0
    command = [sys.executable, "-m", "srup", *arguments.split()]
    if place == "nowhere":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            stdout=full if place == "a full disk" else pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert "Traceback" not in done.stderr
    assert done.returncode == {"a closed pipe": 1, "a full disk": 2, "nowhere": 0}[place], done.stderr
    assert ("No space left" in done.stderr) == (place == "a full disk")
