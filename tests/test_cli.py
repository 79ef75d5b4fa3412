"""The srup command, as its own process."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import srup


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
        (("demo", "--broker", "pigeon"), "pigeon"),
    ],
)
def test_a_mistake_is_named(arguments: tuple[str, ...], said: str) -> None:
    done = _srup(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_shows_what_happened(tmp_path: Path) -> None:
    done = _srup("demo", "--scheme", "ed25519", "--broker", "amqtt", DEVICES="3")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("PolicyError: the message is for d100", "ReplayError", "SignatureError", "UPDATE_FAIL_DIGEST (FF)"):
        assert line in done.stdout
    assert "Everything happened as it should" in done.stdout
    assert "✗" not in done.stdout


def _brokers() -> set[str]:
    """The processes that have a configuration of the broker helper on their command line."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"srup-broker" in path.read_bytes():
                found.add(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_demo_ends_cleanly_when_it_is_told_to(tmp_path: Path, ending: signal.Signals) -> None:
    before = _brokers()
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
    assert _brokers() <= before
    assert list(tmp_path.glob("srup-*")) == []


def test_a_narrow_terminal_still_shows_what_matters() -> None:
    done = _srup("demo", "--scheme", "ed25519", "--broker", "amqtt", DEVICES="3", COLUMNS="40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused (FF)" in done.stdout
    assert "d102" in done.stdout
