"""The log of a command: as text and as JSON, whatever is said in it."""

import io
import json
import logging
import re
import signal
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup.cli import logs
from srup.logs import LONGEST
from srup.printable import printable
from srup.transport import LocalBroker

from .fleet import WAIT, Fleet, key_of, wait_until
from .server_process import DEVICE, SERVER, Publisher, ServerProcess, keys_in, lamp

pytestmark = pytest.mark.process

EVIL = 'x\r\n{"event": "forged"}\n\x1b]0;pwned\x07CRITICAL root: all is well\u202e\u2028\x85\x9b2J'
TEXT, JSON = logs.TextFormatter("%(message)s"), logs._json()
FORGED = re.compile(r'^\s*(\{"event": "forged"|CRITICAL)', re.MULTILINE)


@pytest.fixture
def root():
    """The root logger, as it was before once the test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers, root.level = handlers, level


def written(form, say, root, monkeypatch):
    """What stands on standard error when ``say`` uses a logger."""
    stream = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        logs.show(logging.INFO, form)
    try:
        say(logging.getLogger("srup.agent"))
    finally:
        root.handlers = []
    return stream.getvalue()


def raising(log):
    secret = "hunter2-a-local-variable"  # noqa: F841 - a formatter that shows variables would show it
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("it raised %s", EVIL, extra={"partner": EVIL, "agent": "5e"})


def test_an_entry_in_json(root, monkeypatch):
    def say(log):
        log.warning("%r: %x has left", "me", 0xD1, extra={"agent": "5e", "partner": "d1", "status": 7})
        log.debug("not this")

    [line] = written("json", say, root, monkeypatch).splitlines()
    entry = json.loads(line)
    at = datetime.fromisoformat(entry.pop("time"))
    assert at.tzinfo == UTC
    assert abs((datetime.now(UTC) - at).total_seconds()) < WAIT
    assert entry == {
        "level": "warning",
        "logger": "srup.agent",
        "event": "'me': d1 has left",
        "agent": "5e",
        "partner": "d1",
        "status": 7,
    }


def test_t17_an_exception_in_json_shows_no_variables_and_steers_nothing(root, monkeypatch):
    text = written("json", raising, root, monkeypatch)
    assert text.isascii()
    [line] = text.splitlines()
    entry = json.loads(line)
    assert "Traceback" in entry["exception"]
    assert "hunter2" not in line
    for name, value in entry.items():
        assert value.replace("\n", "" if name == "exception" else "\n").isprintable(), name
    assert json.loads(line)["level"] == "error"


def test_t17_an_exception_as_text_looks_like_no_other_entry(root, monkeypatch):
    text = written("text", raising, root, monkeypatch)
    first, *more = text.split("\n")
    assert first.startswith("ERROR srup.agent it raised x\\r\\n")
    assert more.pop() == ""
    assert more
    for line in (first, *more):
        assert line.isprintable()
    assert all(line.startswith("  | ") for line in more)
    assert not FORGED.search(text)


@given(st.text(), st.text())
def test_t17_a_line_is_a_line(event, field):
    record = logging.LogRecord("srup.agent", logging.INFO, "", 0, "%s", (event,), None)
    record.topic = field
    text, entry = TEXT.format(record), JSON.format(record)
    assert text.isprintable()
    assert entry.isascii()
    assert entry.isprintable()
    assert json.loads(entry)["event"] == printable(event, LONGEST, words=True)
    assert json.loads(entry)["topic"].isprintable()


@pytest.mark.parametrize("form", ["text", "json"])
def test_t9_a_field_is_cut(form, root, monkeypatch):
    def say(log):
        log.warning("refused a message on %s", "\u200b" * 65_000, extra={"topic": "\u200b" * 65_000})

    assert len(written(form, say, root, monkeypatch)) < 20_000


@pytest.mark.parametrize("form", ["text", "json"])
def test_t17_what_comes_from_the_network_cannot_write_the_log_of_a_server(tmp_path, form):
    """Through the real path: a device that is let in and lies, and a stranger."""
    with LocalBroker() as broker:
        options = ("--log-format", form)
        with ServerProcess(keys_in(tmp_path), broker.url, *options) as server, Publisher(broker.url) as publisher:
            with lamp(tmp_path, broker.url, EVIL) as device:
                server.heard("describes itself as: x\\")
                device.send_data(SERVER, EVIL, EVIL.encode()).result(WAIT)
                server.heard("d1 sends x\\")
                publisher.publish(f"SRUP/{DEVICE:x}", b"junk" + EVIL.encode())
                publisher.publish(f"SRUP/servers/{SERVER:x}/x\u202e", EVIL.encode())
                wait_until(lambda: sum("DecodeError" in line for line in list(server.lines)) >= 2, "both are refused")
            assert server.end(signal.SIGTERM) == 0
            assert server.said == []
        for line in server.lines:
            assert line.rstrip("\n").isprintable()
            assert not FORGED.search(line)
            if form == "json":
                assert {"time", "level", "logger", "event"} <= json.loads(line).keys()
        if form == "json":
            entries = [json.loads(line) for line in server.lines]
            refused = next(entry for entry in entries if entry.get("error") == "DecodeError")
            assert (refused["agent"], refused["topic"], refused["level"]) == ("5e", "SRUP/d1", "warning")
            assert [entry["status"] for entry in entries if entry.get("partner") == "d1" and "status" in entry]


def test_t17_no_secret_is_in_an_entry_or_its_fields(tmp_path, root, monkeypatch):
    def say(_log):
        root.setLevel(logging.DEBUG)
        with Fleet(tmp_path, 0, server_options={"admission": "human"}) as fleet:
            device = fleet.add(0xD0, join="human")
            device.on_join_value(shown.append)
            fleet.server.on_moderation(pending.append)
            fleet.start().settle()
            pending[0].accept()
            fleet.settle()
            assert fleet.all_joined()
            sealed.extend(payload for _, payload in fleet.network.log)

    shown, pending, sealed = [], [], []
    text = written("json", say, root, monkeypatch)
    assert len(text.splitlines()) > 3
    value = shown[0]
    pems = [line for key in (0xD0, SERVER) for line in key_of(key).to_pem().decode().splitlines() if "---" not in line]
    secrets = [value.text, value.groups, value.words, value.text.lower(), *pems, *(wire.hex() for wire in sealed)]
    assert not [secret for secret in secrets if secret in text]


def test_verbose_is_as_it_was(tmp_path):
    """Lines of the terminal on standard output, those of the log on standard error, and without it none of these."""
    for first, logged in (((), False), (("-v",), True)):
        folder = tmp_path / str(logged)
        folder.mkdir()
        with ServerProcess(keys_in(folder), "mqtt://127.0.0.1:1", first=first) as server:
            for said in ("server 5e: 1 device in", "not a terminal", "not connected"):
                server.heard(said)
            if logged:
                server.heard("WARNING srup.agent server 5e: not connected: ")
            assert server.end(signal.SIGTERM) == 0
        assert bool(server.complaints) == logged


def test_a_form_that_there_is_not(tmp_path):
    with ServerProcess(keys_in(tmp_path), "mqtt://127.0.0.1:1", "--log-format", "xml") as server:
        assert server.wait() == 2
        server.heard("xml")
