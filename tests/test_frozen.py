"""A program frozen by PyInstaller keeps the native backend and all of srup, or says what it has lost."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from .programs import need

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not sysconfig.get_config_var("Py_ENABLE_SHARED"),
        reason="PyInstaller needs a Python that was built with its shared library",
    ),
]

PROGRAM = """
import sys
import srup

wire, key = sys.argv[1:]
message = srup.decode(bytes.fromhex(wire)).verify(srup.PublicKey.from_pem(key.encode()))
print(srup.BACKEND, type(message).__name__, message.sequence_id)
print(*(name for name in srup.__all__ if getattr(srup, name, None) is None))
print(srup.Device.__module__, srup.transport.__name__)
"""

NATIVE = importlib.util.find_spec("srup_native._built") is not None


def environment(**changes: str) -> dict[str, str]:
    """The environment without what chooses a backend, and with ``changes``."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SRUP_")} | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen program: a folder with an executable named ``program``."""
    need("objdump")  # which PyInstaller needs
    work = tmp_path_factory.mktemp("frozen")
    (work / "program.py").write_text(PROGRAM)
    build = subprocess.run(
        [sys.executable, "-m", "PyInstaller", "--onedir", "--noupx", "--log-level=WARN", "program.py"],
        cwd=work,
        env=environment(PYINSTALLER_CONFIG_DIR=str(work / "cache")),
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    assert "srup" not in build.stderr
    return work / "dist" / "program"


@pytest.fixture
def arguments(vectors: Any) -> list[str]:
    """What the program verifies: a message and the public key of its sender."""
    vector = vectors["messages"][0]
    return [vector["wire"], vectors["keys"][vector["key"]]["public_pem"]]


def run(folder: Path, arguments: list[str], **changes: str) -> "subprocess.CompletedProcess[str]":
    """Run the program far from any installed srup."""
    command = [str(folder / "program"), *arguments]
    return subprocess.run(command, cwd="/", env=environment(**changes), capture_output=True, text=True)


def test_the_backend_is_the_installed_one_and_every_name_is_there(
    folder: Path, arguments: list[str], vectors: Any
) -> None:
    done = run(folder, arguments)
    assert done.returncode == 0, done.stderr
    vector = vectors["messages"][0]
    backend = "native" if NATIVE else "python"
    verified, missing, lazy = done.stdout.splitlines()
    assert verified == f"{backend} {vector['message']} {vector['fields']['sequence_id']}"
    assert missing == ""
    assert lazy == "srup.agent.device srup.transport"


@pytest.mark.skipif(not NATIVE, reason="srup was installed without its extension")
def test_a_lost_extension_is_an_error_that_says_what_to_do(folder: Path, arguments: list[str], tmp_path: Path) -> None:
    stripped = tmp_path / "program"
    shutil.copytree(folder, stripped, symlinks=True)
    (extension,) = stripped.rglob("_codec.*.so")
    extension.unlink()
    done = run(stripped, arguments)
    assert done.returncode != 0
    assert "ImportError: srup was installed with its native backend, but srup_native._codec is missing" in done.stderr
    assert "SRUP_BACKEND=python" in done.stderr
    accepted = run(stripped, arguments, SRUP_BACKEND="python")
    assert accepted.stdout.startswith("python "), accepted.stderr
