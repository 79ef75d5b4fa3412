"""A program that reads what another device shows."""

import subprocess
import sys
import threading

import pytest

from srup import CommandReader, PolicyError

pytestmark = pytest.mark.process


def python(code):
    return [sys.executable, "-c", code]


def test_what_the_command_prints_is_what_was_read():
    assert CommandReader(python("import sys; print('seen at', sys.argv[1])"))(0xD0) == b"seen at d0\n"


def test_there_is_no_shell(tmp_path):
    reader = CommandReader([*python("import sys; print(sys.argv[1:])"), f"; touch {tmp_path}/broken", "$HOME"])
    assert reader(1) == f"['; touch {tmp_path}/broken', '$HOME', '1']\n".encode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [python("print('half'); raise SystemExit(3)"), ["/nowhere/camera"], ["/"]],
    ids=["fails", "missing", "folder"],
)
def test_a_command_that_cannot_read(command):
    assert CommandReader(command)(1) is None


def test_much_output_is_cut():
    assert CommandReader(python("print('x' * 100_000)"))(1) == b"x" * 4096


# A child of the command keeps its output open, as programs that a script starts do.
ENDLESS = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import signal; signal.pause()'])"


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started():
    assert CommandReader(python(ENDLESS), timeout=0.2)(1) is None


def test_closing_ends_a_command_that_runs(tmp_path):
    started = tmp_path / "started"
    code = f"import os; os.mkfifo({str(started)!r} + '1'); os.rename({str(started)!r} + '1', {str(started)!r}); "
    reader = CommandReader(python(f"{code} open({str(started)!r}, 'w').close(); {ENDLESS}"))
    results = []
    thread = threading.Thread(target=lambda: results.append(reader(1)))
    thread.start()
    subprocess.run(["/bin/sh", "-c", f"until test -p {started}; do :; done; : < {started}"], check=True, timeout=60)
    reader.close()
    thread.join()
    assert results == [None]
    assert reader(1) is None
    reader.close()


@pytest.mark.parametrize("command", ["camera", [], b"camera"])
def test_a_command_is_a_list(command):
    with pytest.raises(PolicyError, match="a reader is a command"):
        CommandReader(command)
