"""From nothing to new firmware, with real processes: the service, the broker, a server and a device."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from srup import Device, FetchPolicy
from srup.transport.broker import free_port

from .certificates import host_files
from .fleet import WAIT, FirmwareHost
from .keyex_site import DEVICE, SERVER, mosquitto
from .programs import need

pytestmark = pytest.mark.process

pytestmark = pytest.mark.process

FIRMWARE = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(FIRMWARE).hexdigest()

SERVER_PROGRAM = """
import json, sys
from pathlib import Path
from srup import KeyRing, Server
from srup.keyex import Enrolment
c = json.loads(sys.argv[1])
ring = KeyRing()
server = Server.enroll(c["folder"], c["url"], c["server"], token=c["token"], scheme="ed25519", devices=ring)
print("enrolled", flush=True)
device = int(sys.stdin.readline(), 16)
ring.add(device, Enrolment.load(Path(c["folder"])).key_service().key_of(device))

@server.on_joined
def joined(device):
    print("joined", flush=True)
    print("update", server.update(device, c["firmware"], c["digest"]).result(30).name, flush=True)
    server.stop()

server.run()
"""


def srup(*arguments):
    """Run the command; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "srup", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment():
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"}


def program(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def test_enrolment_certificates_mutual_tls_join_and_update(tmp_path):
    need("mosquitto")
    keyex, port = tmp_path / "keyex", free_port()
    broker = f"mqtts://127.0.0.1:{port}"
    user = ["--user", "root"] if os.geteuid() == 0 else []  # pytest's folders are for their owner alone

    srup("keyex", "create", "--folder", keyex)
    server_token = srup("keyex", "token", f"{SERVER:x}", "--as-server", "--folder", keyex).strip()
    device_token = srup("keyex", "token", f"{DEVICE:x}", "--folder", keyex).strip()
    listening = ["--port", port, "--host", "127.0.0.1", "--name", "127.0.0.1"]
    srup("keyex", "mosquitto", "--folder", keyex, *listening, *user)

    tls = host_files(tmp_path)
    serve = ["-m", "srup", "keyex", "serve", "--folder", keyex, "--port", 0, "--broker", broker]
    with (
        FirmwareHost({"/image": FIRMWARE}, tls).running() as host,
        mosquitto(keyex / "broker" / "mosquitto.conf", port),
        program(*serve) as service,
    ):
        try:
            url = service.stdout.readline().split()[-1]
            assert url.startswith("https://127.0.0.1:")
            config = {
                "folder": str(tmp_path / "server"),
                "url": url,
                "server": SERVER,
                "token": server_token,
                "firmware": f"{host.url}/image",
                "digest": DIGEST,
            }
            with program("-c", SERVER_PROGRAM, json.dumps(config)) as server:
                assert server.stdout.readline() == "enrolled\n", server.stderr.read()
                folder = tmp_path / "device"
                srup("keyex", "enroll", url, f"{DEVICE:x}", "--token", device_token, "--folder", folder)
                assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
                device = Device.enroll(folder, firmware=tmp_path / "firmware", fetch=FetchPolicy(ca_file=tls[0]))
                server.stdin.write(f"{DEVICE:x}\n")
                server.stdin.flush()
                with device:
                    device.wait_joined(WAIT)
                    said, errors = server.communicate(timeout=WAIT)
                assert said == "joined\nupdate ACTIVATED\n"
                assert [line for line in errors.splitlines() if " INFO " not in line] == []
            assert (tmp_path / "firmware" / "current").read_bytes() == FIRMWARE
            listed = srup("keyex", "list", "--folder", keyex)
            assert device.debug.key.public_key.fingerprint in listed
        finally:
            service.send_signal(signal.SIGINT)
            _, errors = service.communicate(timeout=WAIT)
        assert errors == ""
        assert service.returncode == 0
