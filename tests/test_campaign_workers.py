"""A campaign over workers that share a Redis: the one that carries it out is killed, and another one goes on."""

import json
import os
import signal
import subprocess
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from srup import Device
from srup.campaign import At, State
from srup.fetch import MemoryFetcher
from srup.transport import LocalBroker

from .command import SRUP
from .fleet import FIRMWARE, SERVER, URL, WAIT, key_of, wait_until
from .redis_server import redis_server

LEASE = f"{{srup:{SERVER:x}}}:campaigns:lease"
FILE = f"""\
name = "locks"
[firmware]
file = "firmware.bin"
url = "{URL}"
version = "4.2.0"
[target]
where = "tag.site=berlin"
[activation]
when = "command"
"""


def srup(*arguments):
    return subprocess.run([*SRUP, *arguments], capture_output=True, text=True, timeout=WAIT, check=False)


pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def site(tmp_path):
    folder = tmp_path
    (folder / "devices").mkdir()
    (folder / "firmware.bin").write_bytes(FIRMWARE)
    (folder / "c.toml").write_text(FILE)
    key_of(SERVER).save(folder / "server.pem")
    devices = [0xD1, 0xD2, 0xD3]
    with ExitStack() as stack:
        broker = stack.enter_context(LocalBroker())
        redis = stack.enter_context(redis_server(folder / "redis"))
        assert srup("store", "create", redis.url, "--identity", f"{SERVER:x}", "--partitions", "4").returncode == 0
        for device in devices:
            key_of(device).public_key.save(folder / "devices" / f"{device:x}.pem")
        command = ["server", "--identity", f"{SERVER:x}", "--key", "server.pem", "--devices", "devices"]
        command += ["--broker", broker.url, "--store", redis.url, "--workers", "2", "--lease", "1"]
        workers = stack.enter_context(subprocess.Popen([*SRUP, *command], cwd=folder, stderr=subprocess.DEVNULL))
        stack.callback(workers.terminate)
        activated = {device: [] for device in devices}

        def start(device):
            made = Device(
                device,
                key_of(device),
                server=SERVER,
                server_key=key_of(SERVER).public_key,
                broker=broker.url,
                firmware=folder / f"{device:x}",
                fetcher=MemoryFetcher({URL: FIRMWARE}),
            )
            made.on_activate(activated[device].append)
            stack.callback(made.stop, 0.5)
            return made.start()

        started = [start(device) for device in devices]
        wait_until(lambda: all(device.joined for device in started), "the devices have joined")
        to = ["--store", redis.url, "--identity", f"{SERVER:x}"]
        for device in devices:
            assert srup("order", *to, "tag", f"{device:x}", "site", "berlin", "--wait").returncode == 0

        def campaign(*arguments):
            done = srup("campaign", *to, *map(str, arguments))
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout

        yield SimpleNamespace(folder=folder, redis=redis, campaign=campaign, activated=activated)


def test_another_worker_goes_on_when_the_one_that_carries_it_out_is_killed(site):
    def told():
        return json.loads(site.campaign("status", "locks", "--json"))

    def kill_carrier():
        held = []
        wait_until(lambda: held.append(site.redis.client.get(LEASE)) or held[-1], "somebody carries campaigns out")
        os.kill(int(held[-1].split(b"-")[-2]), signal.SIGKILL)

    site.campaign("apply", site.folder / "c.toml", "--no-download")
    kill_carrier()
    wait_until(lambda: told()["counts"] == {At.READY: 3}, "all devices hold the firmware", WAIT)
    kill_carrier()
    site.campaign("activate", "locks")
    wait_until(lambda: told()["state"] == State.FINISHED, "the campaign is over", WAIT)
    assert told()["counts"] == {At.HEALTHY: 3}
    assert {each["tries"] for each in told()["devices"]} == {1}
    assert [len(paths) for paths in site.activated.values()] == [1, 1, 1]
    assert "version 4.2.0" in site.campaign("status", "locks")
    assert told()["document"]["firmware"]["version"] == "4.2.0"
