"""srup init: from an empty folder to a device that has joined over mutual TLS."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from srup.cli.app import app
from srup.cli.config import Settings
from srup.keyex import Enrolment
from srup.transport.broker import free_port

from .command import Command
from .fleet import wait_until
from .programs import need

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def init(*arguments):
    return RUNNER.invoke(app, ["init", *map(str, arguments)])


@pytest.mark.process
def test_from_an_empty_folder_to_a_device(tmp_path):
    need("mosquitto")
    place = tmp_path / "site"
    port, service = free_port(), free_port()
    user = ("--user", "root") if os.geteuid() == 0 else ()  # pytest's folders are for their owner alone
    done = init(place, "--identity", "5e", "--port", port, "--keyex-port", service, *user)
    assert done.exit_code == 0, done.output
    assert f"https://localhost:{service} d1" in done.output
    broker = Command("-c", "authority/broker/mosquitto.conf", program=("mosquitto",), folder=place)
    with (
        broker,
        Command("keyex", "serve", folder=place) as keyex,
        Command("server", folder=place) as server,
        Command("keyex", "token", "d1", folder=place) as token,
    ):
        keyex.heard(f"https://127.0.0.1:{service}")
        assert token.wait() == 0
        [secret] = token.said
        url = f"https://localhost:{service}"
        with Command(
            "keyex", "enroll", url, "d1", "--folder", "d1", "--token", secret.strip(), folder=tmp_path
        ) as enroll:
            assert enroll.wait() == 0, enroll.text
        server.heard("connected to")
        trust = ("--fetch-ca", "d1/ca.pem")
        with Command("device", "--enrolled", "d1", "--store", "d1.db", *trust, folder=tmp_path) as device:
            device.heard("joined server 5e")
            server.heard("d1 has joined")
            with Command("devices", "--json", folder=place) as devices:
                assert devices.wait() == 0, devices.text
            assert json.loads(devices.said[0])["identity"] == "d1"
            with Command("order", "identify", "d1", "--wait", folder=place) as order:
                assert order.wait() == 0, order.text
            (place / "firmware" / "lock.bin").write_bytes(b"lock 4.2.0")
            with Command("firmware", "serve", "--port", "0", folder=place) as host:
                at = host.heard("firmware of firmware at https://127.0.0.1:").split()[-1]
                told = ("--file", "firmware/lock.bin", "--url", f"{at}/lock.bin", "--version", "4.2.0", "--wait")
                with Command("order", "update", "d1", *told, folder=place) as order:
                    assert order.wait() == 0, order.text
                assert host.end() == 0
            with Command("devices", "--where", "firmware.version=4.2.0", folder=place) as devices:
                devices.heard("d1", "4.2.0 ")
            assert device.end() == 0
        assert (server.end(), keyex.end()) == (0, 0)
    wait_until(lambda: (place / "server.db").exists(), "the state is where srup.toml says")


def test_commands_can_be_copied_from_a_narrow_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner(env={"COLUMNS": "40", "NO_COLOR": "1"}).invoke(app, ["init", "a site"])
    lines = done.output.splitlines()
    assert "created  a site/authority/broker/mosquitto.conf" in lines
    assert "then     cd 'a site'" in lines
    for command in (
        "mosquitto -c authority/broker/mosquitto.conf",
        "srup keyex enroll https://localhost:8443 d1 --folder d1 --token TOKEN",
    ):
        assert any(line.startswith(f"then     {command}  # ") for line in lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a broker that runs as somebody else")
def test_a_folder_that_the_broker_cannot_reach_is_named(tmp_path):
    (tmp_path / "private").mkdir(mode=0o700)
    done = init(tmp_path / "private" / "new", "--user", "nobody")
    assert done.exit_code == 0, done.output
    assert "is closed to the user nobody, as whom the broker runs" in done.output
    assert "is closed to" not in init(tmp_path / "private" / "own", "--user", "root").output


def test_what_is_made(tmp_path):
    done = init(tmp_path / "new", "--json", "--name", "broker.example", "--name", "192.0.2.1", "--systemd")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert (made["broker"], made["service"]) == ("mqtts://broker.example:8883", "https://broker.example:8443")
    assert all(Path(path).exists() for path in made["files"])
    enrolment = Enrolment.load(tmp_path / "new" / "server")
    assert (f"{enrolment.identity:x}", enrolment.broker, enrolment.server) == (made["server"], made["broker"], None)
    settings = Settings.load(tmp_path / "new" / "srup.toml")
    assert settings.of("server").find("store").value == str(tmp_path / "new" / "server.db")
    assert tomllib.loads((tmp_path / "new" / "srup.toml").read_text())["keyex"]["serve"]["host"] == "0.0.0.0"
    assert "listener 8883\n" in (tmp_path / "new" / "authority" / "broker" / "mosquitto.conf").read_text()
    units = [path.name for path in (tmp_path / "new" / "systemd").iterdir()]
    assert sorted(units) == [f"srup-{name}.service" for name in ("broker", "firmware", "keyex", "server")]


def test_without_a_name_nobody_else_can_connect(tmp_path):
    assert init(tmp_path / "new").exit_code == 0
    assert "listener 8883 127.0.0.1\n" in (tmp_path / "new" / "authority" / "broker" / "mosquitto.conf").read_text()
    assert tomllib.loads((tmp_path / "new" / "srup.toml").read_text())["keyex"]["serve"]["host"] == "127.0.0.1"


def test_every_setting_that_is_made_is_known(tmp_path):
    init(tmp_path / "new")
    config = ("--config", str(tmp_path / "new" / "srup.toml"))
    for command in (
        "server",
        "order",
        "devices",
        "campaign",
        "firmware serve",
        "keyex serve",
        "keyex token",
        "keyex list",
        "keyex approve",
        "keyex mosquitto",
    ):
        done = RUNNER.invoke(app, [*config, *command.split(), "--help"])
        assert done.exit_code == 0, done.output
    assert RUNNER.invoke(app, [*config, "keyex", "list"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["full"], "is not empty (file); srup init needs a folder of its own"),
        (["full/file"], "full/file"),
        (["new", "--name", "no/host"], "no/host"),
        (["new", "--name", ""], "is no host name"),
        (["new", "--user", "no-such-user"], "this machine has no user"),
        (["new", "--port", "8443"], "cannot both have port 8443"),
        (["new", "--identity", "0x5e"], "leave out the 0x"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = init(*arguments)
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert not (tmp_path / "new").exists()  # so that the next attempt finds it empty
