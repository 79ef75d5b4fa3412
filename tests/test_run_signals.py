"""``run()`` in a program of one's own: how it ends when somebody is impatient."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .fleet import WAIT, key_of
from .server_process import DEVICE

pytestmark = pytest.mark.process

PROGRAM = """
import threading
import srup

key = srup.PrivateKey.load("key.pem")
{agent}
ends = threading.Event()

@agent.on_link
def hang(connected, why):
    print("the handler runs", flush=True)
    ends.wait()

agent.run()
print("run is over", flush=True)
"""
AGENTS = {
    "server": 'agent = srup.Server(0x5E, key, devices=srup.KeyRing(), broker="mqtt://127.0.0.1:1")',
    "device": (
        f'agent = srup.Device({DEVICE}, key, server=0x5E, server_key=key.public_key, broker="mqtt://127.0.0.1:1")'
    ),
}


@pytest.mark.parametrize("until", ["interrupted, stopping", "run is over"])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_second_ctrl_c_ends_the_process_without_a_traceback(tmp_path: Path, agent: str, until: str) -> None:
    """While it waits for a handler, and when Python waits for the handler's thread at its end."""
    key_of(DEVICE).save(tmp_path / "key.pem")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(agent=AGENTS[agent])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            for wanted in ("the handler runs", until):
                while wanted not in said:
                    line = process.stdout.readline()
                    assert line, said
                    said += line
                process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=WAIT)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in said + rest
