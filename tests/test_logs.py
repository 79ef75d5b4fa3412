"""What a program that has set up no logging shows while it runs, and that one that has is left alone."""

import io
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from srup import logs
from srup.demo.attacker import Attacker
from srup.transport import LocalBroker

from .command import Command
from .fleet import key_of

SERVER, DEVICE = 0x5E, 0xD1
LOG = logging.getLogger("srup.agent")


@contextmanager
def bare_program() -> Iterator[io.StringIO]:
    """Be a program without any handlers of its own, pytest's included; what it writes to standard error."""
    root, stream = logging.getLogger(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        patched.setattr(root, "handlers", [])
        yield stream
    assert logging.getLogger("srup").handlers == []


def test_info_is_shown_with_its_time_and_level() -> None:
    with bare_program() as stderr, logs.shown():
        LOG.info("%s has joined", "d1")
        LOG.debug("not this")
        logging.getLogger("another").info("nor this")
    LOG.info("nor this, after the block")
    [line] = stderr.getvalue().splitlines()
    assert line[2:3] == line[5:6] == ":"
    assert line[8:] == " INFO    d1 has joined"


def test_an_application_that_logs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = logging.StreamHandler(mine := io.StringIO())
    for logger in (logging.getLogger(), logging.getLogger("srup")):
        with bare_program() as stderr, monkeypatch.context() as patched:
            patched.setattr(logger, "handlers", [own])
            with logs.shown():
                LOG.info("at the level of the application: WARNING")
                LOG.warning("once")
        assert stderr.getvalue() == ""
    assert mine.getvalue() == "once\n" * 2


def test_a_level_that_was_set_counts() -> None:
    logger = logging.getLogger("srup")
    logger.setLevel(logging.ERROR)
    try:
        with bare_program() as stderr, logs.shown():
            LOG.warning("no")
            LOG.error("yes")
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(logging.NOTSET)
    assert [line.split()[-1] for line in stderr.getvalue().splitlines()] == ["yes"]


def test_a_line_stays_one_line() -> None:
    with bare_program() as stderr, logs.shown():
        LOG.info("it says %s", "x\r\n\x1b]0;pwned\x07\u2028CRITICAL")
    [line] = stderr.getvalue().splitlines()
    assert line.isprintable()


def test_the_end_of_a_line_does_not_pass_for_another_line() -> None:
    try:
        raise ValueError("\n".join([" " * 300 + "12:00:00 CRITICAL pwned" + " " * 300 + "x"] * 1000))
    except ValueError:
        with bare_program() as stderr, logs.shown():
            LOG.exception("it says %s", "x" + " " * 100 + "12:00:00 CRITICAL pwned" + "\u2800" * 100)
    first, *more = stderr.getvalue().splitlines()
    assert "  " not in first[17:]
    assert "\u2800" not in first
    assert len(first) < 2000
    assert len(more) == 61
    assert max(map(len, more)) < 4 * 1000 + 20
    assert any(line == "  | ... 943 lines ..." for line in more), more[8:14]
    assert all(not line.lstrip(" |").startswith("12:00:00") or line.startswith("  |         12") for line in more)


def test_a_flood_of_one_kind_is_cut_short_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("srup.logs.time.monotonic", lambda: now[0])
    with bare_program() as stderr, logs.shown():
        for number in range(500):
            LOG.warning("refused %d", number)
        LOG.info("something else")
        now[0] += 60.0
        LOG.warning("refused %d", 500)
    lines = stderr.getvalue().splitlines()
    assert len([line for line in lines if "refused" in line]) == 31
    assert lines[29].endswith("refused 29 (more like it are left out for 60 seconds)")
    assert lines[30].endswith("something else")
    assert lines[31].endswith("refused 500 (and 470 more like it before)")


# --- programs

PROGRAM = """
import logging, srup, sys
from srup.transport import MqttTransport
ours, theirs, url = sys.argv[1:4]
{setup}
if {device}:
    server_key = srup.PublicKey.load(theirs)
    agent = srup.Device(0xD1, srup.PrivateKey.load(ours), server=0x5E, server_key=server_key, broker=url)
else:
    agent = srup.Server(0x5E, srup.PrivateKey.load(ours), devices=srup.KeyRing.load(theirs), broker=url)
agent.run()
print("after run")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, identity in (("server.pem", SERVER), ("device.pem", DEVICE), ("other.pem", 0)):
        key = key_of(identity)
        key.save(tmp_path / name)
        key.public_key.save(tmp_path / f"{name}.pub")
    (tmp_path / "devices").mkdir()
    key_of(DEVICE).public_key.save(tmp_path / "devices" / "d1.pem")
    return tmp_path


class Running(Command):
    def __init__(self, folder: Path, device: bool, url: str, theirs: str = "", setup: str = "") -> None:
        ours, known = ("device.pem", "server.pem.pub") if device else ("server.pem", "devices")
        source = PROGRAM.format(setup=setup, device=device)
        super().__init__(ours, theirs or known, url, program=(sys.executable, "-c", source), folder=folder)

    def end(self, number: int = signal.SIGINT) -> int:
        status = super().end(number)
        assert (status, self.said) == (0, ["after run\n"])
        return status


@pytest.mark.process
def test_run_says_who_and_where_and_what_happens(folder: Path) -> None:
    with LocalBroker() as broker, Running(folder, False, broker.url) as server:
        server.heard("server 5e: our key is ed25519, fingerprint", key_of(SERVER).public_key.fingerprint)
        server.heard("devices that may join: 1")
        server.heard("connected to", broker.url)
        with Running(folder, True, broker.url) as device:
            device.heard("device d1: our key", key_of(DEVICE).public_key.fingerprint)
            device.heard("its server is 5e", key_of(SERVER).public_key.fingerprint)
            device.heard("asks server 5e to let it in")
            device.heard("joined")
            server.heard("d1 has joined")
            with Attacker(broker.url) as attacker:
                attacker.publish(DEVICE, b"junk")
                device.heard("WARNING", "refused a message on SRUP/d1: DecodeError")
            device.end()
        server.end()
    assert any("Ctrl-C stops it" in line for line in server.complaints)
    assert "interrupted, stopping" in server.complaints[-2]
    assert "stopped" in server.complaints[-1]


@pytest.mark.process
def test_run_says_why_it_is_not_connected(folder: Path) -> None:
    with Running(folder, False, "mqtt://127.0.0.1:9") as server:
        server.heard("WARNING", "not connected: cannot connect to mqtt://127.0.0.1:9", "refused; trying again")
        server.end()


@pytest.mark.process
@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ("empty", ("UnknownSenderError: no key is registered for sender d1",)),
        ("wrong", ("SignatureError", f"(the key we have for it: fingerprint {key_of(0).public_key.fingerprint})")),
    ],
)
def test_a_server_says_whose_key_it_does_not_know(folder: Path, theirs: str, says: tuple[str, ...]) -> None:
    (folder / theirs).mkdir()
    if theirs == "wrong":
        key_of(0).public_key.save(folder / theirs / "d1.pem")
    with LocalBroker() as broker, Running(folder, False, broker.url, theirs) as server:
        server.heard("connected to")
        with Running(folder, True, broker.url):
            server.heard("WARNING", *says)


@pytest.mark.process
def test_run_shows_nothing_in_a_program_that_logs(folder: Path) -> None:
    with LocalBroker() as broker:
        setup = "logging.basicConfig(format='mine: %(message)s', level='INFO')"
        with Running(folder, False, broker.url, setup=setup) as server:
            server.heard("connected to")
            server.end()
    assert all(line.startswith("mine: ") for line in server.complaints)
