"""Each program in examples/ is run for real, with the keys that their README makes."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pexpect
import pytest
import yaml

from srup.transport import LocalBroker
from srup.transport.broker import free_port

from .command import PATIENCE, Command
from .programs import need
from .redis_server import redis_server

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.rglob("*.py"))
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

pytestmark = [pytest.mark.process, pytest.mark.backend]


@pytest.fixture
def stage():
    with ExitStack() as stage:
        yield stage


@pytest.fixture
def folder(tmp_path):
    """A folder with the keys of README."""
    blocks = re.findall(r"^```console\n(.*?)^```", (EXAMPLES / "README.md").read_text(), re.M | re.S)
    script = "\n".join(line.removeprefix("$ ") for block in blocks for line in block.splitlines())
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": PATH}, check=True)
    return tmp_path


def start(stage, folder, program, **environment):
    command = Command(EXAMPLES / program, program=(sys.executable,), folder=folder, environment=environment)
    return stage.enter_context(command)


def ended(*commands):
    for command in commands:
        assert command.end() == 0, command.text
        assert "Traceback" not in command.text


def test_the_temperature_sensor(stage, folder):
    broker = stage.enter_context(LocalBroker()).url
    server = start(stage, folder, "temperature_server.py", BROKER=broker, LIMIT="-300")
    device = start(stage, folder, "temperature_sensor.py", BROKER=broker, PERIOD="0.1")
    server.heard("d1: ", "degrees")
    device.heard("blinking")
    ended(device, server)


def test_the_door(stage, folder):
    broker = stage.enter_context(LocalBroker()).url
    server = pexpect.spawn(
        sys.executable,
        [str(EXAMPLES / "door_server.py")],
        cwd=folder,
        env=os.environ | {"BROKER": broker},
        encoding="utf-8",
        timeout=PATIENCE,
    )
    stage.callback(server.close, force=True)
    lock = start(stage, folder, "door_lock.py", BROKER=broker)
    words = lock.heard("words: ").removeprefix("words: ").strip()
    server.expect_exact(f"The lock must show: {words}")
    server.expect_exact("yes or no: ")
    server.sendline("yes")
    lock.heard("joined")
    for word, state in (("open", "open\n"), ("close", "closed\n")):
        server.expect_exact("nothing to end: ")
        server.sendline(word)
        server.expect_exact("ACTION_SUCCESS")
        assert (folder / "door").read_text() == state
    server.expect_exact("nothing to end: ")
    server.sendline("")
    server.expect(pexpect.EOF)
    ended(lock)


def test_the_gateway(stage, folder):
    home, away = (stage.enter_context(LocalBroker()).url for _ in range(2))
    names = ("away", "lamp", "gateway", "home")
    programs = {name: start(stage, folder, f"gateway/{name}.py", HOME_BROKER=home, AWAY_BROKER=away) for name in names}
    programs["home"].heard("shared: c1")
    programs["lamp"].heard("the lamp is on")
    programs["home"].heard("lamp c1: ACTION_SUCCESS")
    ended(*programs.values())


def test_the_web_server(stage, folder):
    broker, port = stage.enter_context(LocalBroker()).url, free_port()
    uvicorn = (sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", str(port))
    server = stage.enter_context(
        Command("fastapi_server:app", program=uvicorn, folder=folder, environment={"BROKER": broker})
    )
    server.heard("Uvicorn running")
    url = f"http://127.0.0.1:{port}/devices"
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{url}/d1/actions/3")
    assert refused.value.code == 409
    refused.value.close()
    device = start(stage, folder, "temperature_sensor.py", BROKER=broker, PERIOD="0.1")
    device.heard("joined")
    assert post(f"{url}/d1/actions/3") == {"status": "ACTION_SUCCESS"}
    assert list(fetch(url)) == ["d1"]
    ended(device, server)


def fetch(request):
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def post(url):
    return fetch(urllib.request.Request(url, method="POST"))


def test_the_fleet(stage, tmp_path):
    """What the compose file runs, on this machine: its commands with the addresses of a broker and a Redis here."""
    mosquitto = need("mosquitto")
    services = yaml.safe_load((EXAMPLES / "compose" / "compose.yaml").read_text())["services"]
    assert set(services) == {"broker", "redis", "create", "server", "d1", "d2", "d3"}
    place = tmp_path / "fleet"
    place.mkdir()
    for name in ("make-keys", "fleet.py", "mosquitto.conf"):
        (place / name).write_bytes((EXAMPLES / "compose" / name).read_bytes())
    (place / "make-keys").chmod(0o755)
    (place / "state").mkdir()
    subprocess.run(["./make-keys"], cwd=place, env=os.environ | {"PATH": PATH}, check=True)
    port = free_port()
    configuration = (place / "mosquitto.conf").read_text()
    (place / "mosquitto.conf").write_text(configuration.replace("listener 1883", f"listener {port} 127.0.0.1"))
    redis = stage.enter_context(redis_server(tmp_path / "redis"))
    for setting in re.findall(r"--(\S+ \S+)", services["redis"]["command"]):
        redis.client.config_set(*setting.split())

    def run(service):
        command = services[service]["command"].replace("redis://redis:6379/0", redis.url)
        command = command.replace("mqtt://broker:1883", f"mqtt://localhost:{port}").replace("@60s", "@1s")
        command = command.replace("/etc/fleet/", "").replace("mosquitto ", f"{mosquitto} ", 1)
        environment = {"PATH": PATH, "PYTHONPATH": str(place)}
        program = ("sh", "-c", f"exec {command}")
        return stage.enter_context(Command(program=program, folder=place, environment=environment))

    run("broker").heard("running")
    assert run("create").wait() == 0
    again = run("create")
    assert again.wait() == 0, again.text
    server = run("server")
    sensors = [run(name) for name in ("d1", "d2", "d3")]
    for name, value in (("d1", "21.5"), ("d2", "22.5"), ("d3", "23.5")):
        server.heard(f"{name}: {value} degrees")
    ended(*sensors, server)


def test_every_program_is_run():
    text = Path(__file__).read_text()
    for program in PROGRAMS:
        assert program.stem in text, program
