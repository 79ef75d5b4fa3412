"""What README shows works as it stands there: real processes, a real broker, a real firmware file."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import srup
from srup.demo.host import FirmwareHost
from srup.transport import LocalBroker, MemoryNetwork, MemoryTransport

from .fleet import WAIT, wait_until
from .pseudoterminal import Program

README = (Path(__file__).parents[1] / "README.md").read_text()
SERVER, DEVICE, PARTS, DURABLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^\$ srup (.*)$", README.replace("\\\n", ""), re.MULTILINE)
APPLICATION = """
def setup(server):
    server.on_joined(lambda device: print(f"{device:x} has joined", flush=True))
"""
IMAGE = bytes(range(256)) * 400


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.kill()
        process.communicate()


def test_device_and_server_in_ten_lines_each(tmp_path: Path, processes: list["subprocess.Popen[str]"]) -> None:
    make_keys(tmp_path)
    (tmp_path / "firmware.bin").write_bytes(IMAGE)
    digest = srup.file_digest(tmp_path / "firmware.bin")
    with LocalBroker() as broker, FirmwareHost(IMAGE, tmp_path) as host:
        environment = os.environ | {"SSL_CERT_FILE": str(host.certificate), "PYTHONUNBUFFERED": "1"}
        for code in (SERVER, DEVICE):
            code = code.replace("mqtt://localhost:1883", broker.url)
            code = code.replace("https://updates.example/firmware.bin", host.url(0xD1))
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
                )
            )
        device = processes[1]
        assert device.stdout is not None
        assert device.stdout.readline() == f"now running firmware/{digest}\n"
    assert (tmp_path / "firmware" / digest).read_bytes() == IMAGE


def test_a_device_is_joined_by_hand(tmp_path: Path) -> None:
    make_keys(tmp_path)
    commands = [command for command in COMMANDS if re.match("(server|device) .*--(admission|join) human", command)]
    with LocalBroker() as broker:
        ours, theirs = (command.replace("mqtt://localhost:1883", broker.url).split() for command in commands)
        with Program(ours, folder=tmp_path) as server:
            server.expect("connected to")
            with Program(theirs, folder=tmp_path) as device:
                value = r"Words([a-z\s]+Numbers[\d\s]+)\(a larger"
                shown = [program.expect(value)[1].split() for program in (server, device)]
                assert shown[0] == shown[1]
                server.type("a\r")
                device.expect("joined server 5e")
                assert (server.end(), device.end()) == (0, 0)


def make_keys(folder: Path) -> None:
    keygen = re.search(r"```console\n(\$ srup keygen.*?)```", README, re.DOTALL)
    assert keygen is not None
    for line in keygen[1].replace("$ srup", f"{sys.executable} -m srup").replace("$ ", "").splitlines():
        subprocess.run(line, shell=True, cwd=folder, check=True, capture_output=True)


def test_a_server_with_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = srup.PrivateKey.generate("ed25519")
    names = {"srup": srup, "key": key, "ring": srup.KeyRing(), "url": MemoryTransport(MemoryNetwork(), "server")}
    monkeypatch.chdir(tmp_path)
    exec(DURABLE, names)
    server = names["server"]
    assert isinstance(server, srup.Server)
    server.start()
    server.stop()
    assert (tmp_path / "server.db").exists()


def test_workers_share_the_devices(tmp_path: Path, processes: list["subprocess.Popen[str]"]) -> None:
    pytest.importorskip("redis")
    from .redis_server import redis_server

    make_keys(tmp_path)
    (tmp_path / "myapp.py").write_text(APPLICATION)
    create, serve = (command for command in COMMANDS if "redis://" in command)
    with LocalBroker() as broker, redis_server(tmp_path / "redis") as redis:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        run = {"cwd": tmp_path, "env": environment, "text": True}
        for command in (create, serve):
            command = command.replace("mqtt://localhost:1883", broker.url).replace(
                "redis://localhost:6379/0", redis.url
            )
            line = [sys.executable, "-m", "srup", *command.split()]
            if command.startswith("store"):
                subprocess.run(line, check=True, capture_output=True, **run)  # type: ignore[call-overload]
            else:
                processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, **run))  # type: ignore[call-overload]
        device = srup.Device(
            0xD1,
            srup.PrivateKey.load(tmp_path / "device.pem"),
            server=0x5E,
            server_key=srup.PublicKey.load(tmp_path / "server.pem.pub"),
            broker=broker.url,
            firmware=tmp_path / "firmware",
        )
        with device:
            device.wait_joined(WAIT)
            [workers] = processes
            assert workers.stdout is not None
            assert workers.stdout.readline() == "d1 has joined\n"
        children = Path(f"/proc/{workers.pid}/task/{workers.pid}/children").read_text().split()
        assert len(children) == 4
        workers.kill()  # what it has started does not outlive it
        wait_until(lambda: not any(runs(child) for child in children))


def runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""  # of one that has ended it is empty
    except OSError:
        return False


def test_both_are_about_ten_lines() -> None:
    for code in (SERVER, DEVICE):
        assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_the_parts_on_their_own() -> None:
    names: dict[str, object] = {"srup": srup}
    exec(PARTS, names)
    assert names["message"] == srup.Action(sequence_id=7, sender_id=0x51, token=b"a-token", action_id=3)


def test_the_attack_table_names_tests_that_exist():
    """Every row of the threat model, T1 to T18, has a test in every file that its row names."""
    docs = Path(__file__).parents[1] / "docs"
    rows = [line for line in (docs / "security.md").read_text().splitlines() if line.startswith("| T")]
    assert [line.split("|")[1].strip() for line in rows] == [f"T{number}" for number in range(1, 19)]
    for number, row in enumerate(rows, start=1):
        files = re.findall(r"\]\((\.\./tests/[a-z_]+\.py)\)", row)
        assert f"`test_t{number}_*`" in row
        assert files
        for file in files:
            assert f"def test_t{number}_" in (docs / file).read_text(), (number, file)
