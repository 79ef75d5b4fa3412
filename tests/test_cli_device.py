"""What ``srup device`` may download, how, and what it says when that fails; with a real broker and host."""

import hashlib
import re
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from srup import Device, FetchPolicy, KeyRing, Server, Status, UpdateError
from srup.cli.downloads import fetch_policy
from srup.cli.hooks import Hooks, facts_of
from srup.transport import MemoryNetwork, MemoryTransport
from srup.update import UpdateState

from .certificates import host_files
from .command import Command
from .fleet import DIGEST, FIRMWARE, SERVER, WAIT, FirmwareHost, key_of, wait_until
from .programs import local_broker

DEVICE = 0xD1
DEFAULTS = {
    "allow_http": False,
    "ca": None,
    "hosts": None,
    "max_size": 512 * 2**20,
    "max_time": 3600.0,
    "timeout": 30.0,
    "proxy": None,
}


def test_the_defaults_are_those_of_the_library():
    assert fetch_policy(**DEFAULTS) == FetchPolicy()


def test_the_options_are_what_the_library_calls_them(tmp_path):
    given = fetch_policy(True, tmp_path, ["A", "b"], 5, 6.0, 7.0, "none")
    assert given == FetchPolicy(
        allow_http=True,
        ca_file=tmp_path,
        allowed_hosts=frozenset({"A", "b"}),
        max_bytes=5,
        max_seconds=6.0,
        timeout=7.0,
        proxy="",
    )


def test_a_proxy_that_makes_no_sense():
    with pytest.raises(ValueError, match="proxy"):
        fetch_policy(**DEFAULTS | {"proxy": "socks5://h"})


@pytest.fixture
def site(tmp_path):
    key_of(DEVICE).save(tmp_path / "device.pem")
    key_of(SERVER).public_key.save(tmp_path / "server.pub")
    with (
        ExitStack() as running,
        local_broker("mosquitto") as broker,
        Server(
            SERVER, key_of(SERVER), devices=KeyRing({DEVICE: key_of(DEVICE).public_key}), broker=broker.url
        ) as server,
    ):

        def device(*options):
            who = ["device", "--identity", f"{DEVICE:x}", "--key", "device.pem", "--server", f"{SERVER:x}"]
            command = Command(*who, "--server-key", "server.pub", "--broker", broker.url, *options, folder=tmp_path)
            running.enter_context(command).heard("joined server")
            return command

        yield SimpleNamespace(server=server, device=device, folder=tmp_path)


@pytest.mark.process
def test_plain_http_by_option_and_the_reason_of_a_failure(site):
    with FirmwareHost({"/image": FIRMWARE}).running() as host:
        device = site.device("--allow-http", "--fetch-proxy", "none")
        assert site.server.update(DEVICE, f"{host.url}/image", DIGEST).result(WAIT) is UpdateState.ACTIVATED
        order = site.server.update(DEVICE, f"{host.url}/gone", hashlib.sha256(b"").hexdigest())
        with pytest.raises(UpdateError, match=r"reports UPDATE_FAIL_HTTP_ERROR: http://127\.0\.0\.1.*HTTP status 404"):
            order.result(WAIT)
        told = device.heard(f"firmware {order.digest}")
        assert told == f"firmware {order.digest}: UPDATE_FAIL_HTTP_ERROR: {order.reason}\n"


@pytest.mark.process
def test_a_ca_of_ones_own_hosts_and_sizes_by_option(site):
    cert_file, key_file = host_files(site.folder)
    with FirmwareHost({"/image": FIRMWARE, "/large": FIRMWARE * 100}, (cert_file, key_file)).running() as host:
        site.device(
            *("--fetch-ca", str(cert_file), "--fetch-host", "127.0.0.1", "--fetch-max-size", str(len(FIRMWARE))),
            *("--fetch-proxy", "none", "--keep-images", "1"),
        )
        assert site.server.update(DEVICE, f"{host.url}/image", DIGEST).result(WAIT) is UpdateState.ACTIVATED
        for url, reason in (
            (f"{host.url}/large", f"the file is larger than {len(FIRMWARE)} bytes"),
            ("https://localhost/image", "the host is not allowed"),
            ("http://127.0.0.1/image", "plain http is not allowed"),
        ):
            with pytest.raises(UpdateError, match=reason):
                site.server.update(DEVICE, url, hashlib.sha256(url.encode()).hexdigest()).result(WAIT)


def test_options_for_programs_that_make_no_sense():
    for options, said in {
        ("--on-action", "three=true"): "a number from 0 to 255",
        ("--on-action", "3"): "'=' and a command are expected",
        ("--on-activate", ""): "a command is the path of a program",
        ("--on-activate", "'"): "No closing quotation",
        ("--on-action", "3=./missing --fast"): "there is no program './missing' that may be run",
        ("--report", "temp=./missing@5s"): "there is no program './missing' that may be run",
        ("--report", "temp=cat"): r"NAME[:KIND]=COMMAND@TIME",
        ("--report", "temp:bytes=cat@5s"): "'bytes' is not a kind of value",
        ("--report", "temp=cat@0.5s"): "at most once a second",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            hooks_of(*options)
        assert options[0] in str(caught.value)


@pytest.mark.parametrize(
    ("option", "texts"), [("--on-action", ["3=true", "03=false"]), ("--on-value", ["lamp=true", "lamp=false"])]
)
def test_two_programs_for_one_thing_are_a_mistake(option, texts):
    with pytest.raises(ValueError, match=f"{option} '{texts[1]}'.* has a program already"):
        hooks_of(option, *texts)


def hooks_of(option, *texts):
    name = {"--report": "reports"}.get(option, option[2:].replace("-", "_"))
    broker = MemoryTransport(MemoryNetwork(), "d1")
    device = Device(DEVICE, key_of(DEVICE), server=SERVER, server_key=key_of(SERVER).public_key, broker=broker)
    return Hooks(device, lambda line, style: None, **{name: texts[0] if option == "--on-activate" else texts})


def script(folder, name, *lines):
    path = folder / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o700)
    return path


@pytest.mark.process
def test_programs_do_actions_take_values_and_report(site):
    script(site.folder, "blink", 'echo "$@" > blinked')
    script(site.folder, "fail", 'echo "the lamp is broken" >&2; exit 3')
    missing = script(site.folder, "missing")
    script(site.folder, "take", 'cat > "$1"; mv "$1" taken')
    script(site.folder, "temp", "echo 21.5")
    reported = []
    heard = threading.Event()

    @site.server.on_data("temp", "double")
    def temp(device, name, value):
        reported.append(value)
        heard.set()

    actions = ("--on-action", "3=./blink", "--on-action", "4=./fail", "--on-action", "5=./missing")
    device = site.device(*actions, "--on-value", "text=./take", "--report", "temp:double=./temp@1s")
    assert site.server.action(DEVICE, 3).result(WAIT) is Status.ACTION_SUCCESS
    assert (site.folder / "blinked").read_text() == f"3 {SERVER:x}\n"
    assert site.server.action(DEVICE, 4).result(WAIT) is Status.ACTION_FAIL
    device.heard("action 4 of", "failed: exit status 3: the lamp is broken")
    missing.unlink()
    assert site.server.action(DEVICE, 5).result(WAIT) is Status.ACTION_FAIL
    device.heard("./missing cannot be run: No such file or directory")
    assert site.server.action(DEVICE, 6).result(WAIT) is Status.ACTION_UNKNOWN
    site.server.send_data(DEVICE, "text", b"\x00hello").result(WAIT)
    wait_until(lambda: (site.folder / "taken").exists(), "the value is taken")
    assert (site.folder / "taken").read_bytes() == b"\x00hello"
    assert heard.wait(WAIT)
    assert set(reported) == {21.5}
    assert device.end() == 0


@pytest.mark.process
def test_a_program_activates_and_each_step_is_told(site):
    script(site.folder, "activate", 'echo "$@ $SRUP_AGAIN" >> activated', "exec test -f works")
    script(site.folder, "step", 'echo "$2 $3" >> steps')
    with FirmwareHost({"/image": FIRMWARE}).running() as host:
        options = ("--allow-http", "--fetch-proxy", "none", "--on-activate", "./activate", "--on-update", "./step")
        site.device(*options)
        order = site.server.update(DEVICE, f"{host.url}/image", DIGEST, version=7)
        with pytest.raises(UpdateError, match="exit status 1"):
            order.result(WAIT)
        (site.folder / "works").touch()
        assert site.server.update(DEVICE, f"{host.url}/image", DIGEST).result(WAIT) is UpdateState.ACTIVATED
        path = f"firmware/{DIGEST}"
        assert (site.folder / "activated").read_text() == f"{path} {DIGEST} 7 0\n{path} {DIGEST}  0\n"
        steps = site.folder / "steps"
        wait_until(lambda: steps.read_text().count("\n") == 4, "four steps are told")
        assert steps.read_text().splitlines() == [
            "UPDATE_SUCCESS ",
            "ACTIVATE_FAIL exit status 1",
            "UPDATE_SUCCESS ",
            "ACTIVATE_SUCCESS ",
        ]


@pytest.mark.process
def test_firmware_that_runs_after_a_restart_is_answered_then(site):
    """The program says 75; the machine restarts; it is asked again, and says that the firmware works."""
    script(site.folder, "activate", 'echo "$SRUP_AGAIN" >> activated', 'test "$SRUP_AGAIN" = 1 && exit 0', "exit 75")
    with FirmwareHost({"/image": FIRMWARE}).running() as host:
        options = ("--allow-http", "--fetch-proxy", "none", "--on-activate", "./activate", "--store", "device.db")
        device = site.device(*options)
        order = site.server.update(DEVICE, f"{host.url}/image", DIGEST)
        device.heard(DIGEST, "runs after a restart")
        device.process.kill()  # as a restart does
        device.wait()
        assert not order.done
        site.device(*options)
        assert order.result(WAIT) is UpdateState.ACTIVATED
        assert (site.folder / "activated").read_text() == "0\n1\n"


@pytest.mark.parametrize(
    ("texts", "said"),
    [(["type"], "a name, '=' and a value"), (["type=lock", "type=lamp"], "'type' has a value already")],
)
def test_a_fact_that_makes_no_sense(texts, said):
    with pytest.raises(ValueError, match=said):
        facts_of(texts)


def test_facts_by_option():
    assert facts_of(["type=lock", "name=a=b"]) == {"type": "lock", "name": "a=b"}


@pytest.mark.process
def test_a_device_whose_store_cannot_be_opened_asks_nobody(tmp_path):
    key_of(DEVICE).save(tmp_path / "device.pem")
    key_of(SERVER).public_key.save(tmp_path / "server.pub")
    (tmp_path / "device.db").write_text("this is no database, and long enough to be read as one")
    who = ["device", "--identity", f"{DEVICE:x}", "--key", "device.pem", "--server", f"{SERVER:x}"]
    where = ["--server-key", "server.pub", "--broker", "mqtt://127.0.0.1:1", "--store", "device.db"]
    with Command(*who, *where, folder=tmp_path) as command:
        assert command.wait() == 2
        assert ("device.db" in command.text, "asking" in command.text) == (True, False)
