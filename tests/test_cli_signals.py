"""How commands end when a signal tells them to, as docs/observability.md has it ("Exit status")."""

import itertools
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from srup.store import RedisStore

from .certificates import host_files
from .command import Command
from .fleet import key_of, wait_until
from .keyex_site import Site
from .redis_server import redis_server
from .server_process import DEVICE, SERVER, keys_in

pytestmark = pytest.mark.process

NOBODY = "mqtt://127.0.0.1:1"
WHO = f"--identity {SERVER:x} --key server.pem --devices devices --broker {NOBODY}"
SERVICES = {
    "server": (f"server {WHO}", "server 5e: 1 device"),
    "device": (
        f"device --identity {DEVICE:x} --key d1.pem --server {SERVER:x} --server-key server.pem.pub --broker {NOBODY}",
        "device d1: asking",
    ),
    "broker": ("broker --broker-kind amqtt --port 0", "broker at"),
    "keyex serve": ("keyex serve --broker mqtts://localhost --port 0", "Key exchange service"),
}
ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def running(folder: Path, arguments: str, until: str) -> Iterator[Command]:
    """A command that has got as far as to say ``until``."""
    with Command(*arguments.split(), folder=folder) as command:
        command.heard(until)
        yield command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys_in(tmp_path)
    key_of(DEVICE).save(tmp_path / "d1.pem")
    key_of(SERVER).public_key.save(tmp_path / "server.pem.pub")
    Site(tmp_path / "keyex").authority.close()
    return tmp_path


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_told_to_end_is_done(folder: Path, service: str, ending: signal.Signals) -> None:
    with running(folder, *SERVICES[service]) as process:
        assert process.end(ending) == 0, process.text
    assert "Traceback" not in process.text


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_told_three_times_is_done_once(folder: Path, service: str) -> None:
    with running(folder, *SERVICES[service]) as process:
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        assert process.end() in (0, -signal.SIGINT), process.text
    assert "Traceback" not in process.text


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_interrupted_is_not_done(folder: Path, ending: signal.Signals) -> None:
    with running(folder, "simulate --runs 1000000 --devices 1 --steps 1", "passed") as process:
        assert process.end(ending) == 128 + ending, process.text
    assert "Traceback" not in process.text


@pytest.mark.parametrize("service", [service for service in SERVICES if service not in ("server", "device")])
def test_a_service_that_has_nothing_to_reload_ends_at_sighup(folder: Path, service: str) -> None:
    with running(folder, *SERVICES[service]) as process:
        assert process.end(signal.SIGHUP) == 0, process.text
    assert "Traceback" not in process.text


def test_a_server_without_a_terminal_reads_its_keys_again_at_sighup(folder: Path) -> None:
    keys = folder / "devices"
    with running(folder, *SERVICES["server"]) as process:
        key_of(0xD2).public_key.save(keys / "d2.pem")
        (keys / "d3.pem").write_text("half of a key")
        process.send_signal(signal.SIGHUP)
        assert "the keys are not reloaded: devices/d3.pem" in process.heard("d3.pem")
        (keys / "d3.pem").unlink()
        (keys / "d1.pem").unlink()
        before = len(process.lines)
        process.send_signal(signal.SIGHUP)
        process.heard("d1 is no longer a member")
        said = "".join(process.lines[before:])
        assert "1 device in devices\n" in said
        assert "d2 may join: devices/ has a key for it now\n" in said
        (keys / "d2.pem").unlink()
        key_of(0xD3).public_key.save(keys / "d2.pem")
        process.send_signal(signal.SIGHUP)
        process.heard("d2 has another key in devices/ and is treated as a new device\n")
        assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("service", ["server", "device"])
def test_certificates_are_read_again_at_sighup(folder: Path, service: str) -> None:
    """Nobody answers at that address: what is looked at are the files."""
    command, _ = SERVICES[service]
    authority, blank_lines = host_files(folder)[0], itertools.count()
    chain = authority.read_bytes()
    secure = f"{command} --broker mqtts://127.0.0.1:1 --ca {authority.name} --log-format text"
    with running(folder, secure, "not connected") as process:
        process.send_signal(signal.SIGHUP)
        authority.write_text("half of a certificate")
        process.send_signal(signal.SIGHUP)
        process.heard("the certificates are not reloaded: ca_file")

        def is_told() -> bool:
            """An attempt to connect that comes between the two has read the file before."""
            authority.write_bytes(chain + b"\n" * next(blank_lines))
            process.send_signal(signal.SIGHUP)
            return "the certificates have changed: connecting anew" in process.text

        wait_until(is_told, "the certificates are read again")
        assert process.end(signal.SIGTERM) == 0, process.text
    assert "Traceback" not in process.text


def test_a_key_that_is_gone_at_the_start_is_told(folder: Path) -> None:
    service, until = SERVICES["server"]
    key_of(0xD2).public_key.save(folder / "devices" / "d2.pem")
    for last in (False, True):
        with running(folder, f"{service} --store server.db", "2 devices" if not last else until) as process:
            if last:
                process.heard("d2 is no longer a member: its key was removed from devices/\n")
            assert process.end(signal.SIGTERM) == 0
        (folder / "devices" / "d2.pem").unlink(missing_ok=True)


def test_a_signal_that_is_ignored_stays_ignored(folder: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(folder, *SERVICES["broker"]) as process:
            process.send_signal(signal.SIGHUP)
            assert process.end(signal.SIGTERM) == 0
        with running(folder, "simulate --runs 1000000 --devices 1 --steps 1", "passed") as process:
            passed = process.text.count("passed")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: process.text.count("passed") > passed + 1, "it goes on")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_all_workers_read_their_keys_again_at_sighup(folder: Path) -> None:
    keys = folder / "devices"
    with redis_server(folder / "redis") as redis:
        RedisStore.create(redis.url, SERVER, 8)
        command = f"server {WHO} --store {redis.url} --workers 2 --lease 1 --log-format text"
        with running(folder, command, "serves partition") as process:
            # At least one of the workers has read the keys when all partitions are served.
            wait_until(lambda: len(set(re.findall(r"serves partition (\d)", process.text))) == 8, "all are served")
            key_of(0xD2).public_key.save(keys / "d2.pem")
            (keys / "d3.pem").write_text("half of a key")
            process.send_signal(signal.SIGHUP)
            process.heard("the keys are not reloaded: devices/d3.pem")
            (keys / "d3.pem").unlink()
            process.send_signal(signal.SIGHUP)
            process.heard("2 devices in devices\n")
            process.heard("d2 may join: devices/ has a key for it now\n")
            (keys / "d1.pem").unlink()
            process.send_signal(signal.SIGHUP)
            process.heard("d1 is no longer a member: its key was removed from devices/\n")
            assert process.end(signal.SIGTERM) == 0
        (keys / "d2.pem").unlink()
        with running(folder, command, "d2 is no longer a member: its key was removed from devices/") as process:
            assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_whoever_presses_ctrl_c_again_and_again_sees_no_traceback(folder: Path, first: signal.Signals) -> None:
    """While the command stops, and when Python waits for a handler that never ends."""
    (folder / "hang.py").write_text(
        "import threading\n"
        "def setup(server):\n"
        "    server.on_link(lambda *about: (print('the handler runs', flush=True), threading.Event().wait()))\n"
    )
    with running(folder, f"{SERVICES['server'][0]} --app hang:setup", "the handler runs") as process:
        process.send_signal(first)
        for _ in range(1000):
            try:
                process.process.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        assert process.wait() in (0, -signal.SIGINT, 128 + signal.SIGINT), process.text
    assert "Traceback" not in process.text


def test_a_fault_of_its_own_ends_a_server_with_a_status_that_says_so(folder: Path) -> None:
    """A service manager starts it anew."""
    (folder / "fault.py").write_text(
        "def setup(server):\n    server.on_link(lambda *about: setattr(server.engine.session, 'deadline', None))\n"
    )
    command = f"{SERVICES['server'][0]} --app fault:setup"
    with running(folder, command, "a fault in its turn has ended it") as process:
        assert process.wait() == 1, process.text
