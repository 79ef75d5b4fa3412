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
from srup.transport import LocalBroker

from .pseudoterminal import Program

README = (Path(__file__).parents[1] / "README.md").read_text()
SERVER, DEVICE, PARTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
IMAGE = bytes(range(256)) * 400


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.kill()
        process.communicate()


def test_device_and_server_in_ten_lines_each(tmp_path: Path, processes: list["subprocess.Popen[str]"]) -> None:
    keygen = re.search(r"```console\n(\$ srup keygen.*?)```", README, re.DOTALL)
    assert keygen is not None
    for line in keygen[1].replace("$ srup", f"{sys.executable} -m srup").replace("$ ", "").splitlines():
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)
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
    keygen = re.search(r"```console\n(\$ srup keygen.*?)```", README, re.DOTALL)
    assert keygen is not None
    for line in keygen[1].replace("$ srup", f"{sys.executable} -m srup").replace("$ ", "").splitlines():
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)
    commands = re.findall(r"^\$ srup ((?:server|device) .*)$", README, re.MULTILINE)
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
