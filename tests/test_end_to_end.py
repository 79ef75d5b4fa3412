"""Everything real: brokers, TLS, HTTP, keys, threads and processes, and what happens when one of them is killed."""

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
from contextlib import ExitStack

import pytest

from srup import Device, FetchPolicy, KeyRing, Policy, Server, Status, UpdateError
from srup.agent.firmware import Firmware
from srup.keys import SCHEMES
from srup.transport import MqttTransport
from srup.update import UpdateState

from .certificates import host_files
from .command import Command
from .fleet import SERVER, WAIT, FirmwareHost, key_of, wait_until
from .programs import local_broker

pytestmark = [pytest.mark.process, pytest.mark.backend]

DEVICE = 0xD0
FIRMWARE = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(FIRMWARE).hexdigest()
EAGER = Policy(first_retry=0.2, max_retry=1.0)


@pytest.fixture(scope="module", params=["mosquitto", "amqtt"])
def broker(request):
    with local_broker(request.param) as broker:
        yield broker


@pytest.fixture
def mosquitto():
    with local_broker("mosquitto") as broker:
        yield broker


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return host_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def host(tls):
    with FirmwareHost({"/image": FIRMWARE}, tls).running() as host:
        yield host


class Site:
    """A server and a device in threads."""

    def __init__(self, stack, broker, tmp_path, tls, *, scheme="ed25519", identity=DEVICE, fetch=None):
        self.stack = stack
        self.url = broker.url
        self.done = []
        ring = KeyRing({identity: key_of(identity, scheme).public_key})
        self.server = Server(SERVER, key_of(SERVER, scheme), devices=ring, broker=self.link("server"), policy=EAGER)
        self.device = Device(
            identity,
            key_of(identity, scheme),
            server=SERVER,
            server_key=key_of(SERVER, scheme).public_key,
            broker=self.link("device"),
            firmware=tmp_path / "firmware",
            fetch=FetchPolicy(ca_file=tls[0], timeout=10.0, **fetch or {}),
            policy=EAGER,
            description="a device",
        )
        self.device.on_action(1)(lambda partner: self.done.append(partner))

    def link(self, name):
        return MqttTransport(self.url, f"srup-{name}-{os.urandom(4).hex()}", min_pause=0.02, max_pause=0.2)

    def start(self):
        self.stack.enter_context(self.server)
        self.stack.enter_context(self.device)
        return self

    def joined(self):
        self.start().device.wait_joined(WAIT)
        return self

    def update(self, url, **options):
        return self.server.update(self.device.identity, url, DIGEST, **options)

    def works(self):
        before = len(self.done)
        assert self.server.action(self.device.identity, 1).result(WAIT) is Status.ACTION_SUCCESS
        assert len(self.done) == before + 1
        assert self.server.counts["faults"] == self.device.counts["faults"] == 0


@pytest.fixture
def site(tmp_path, tls):
    """Makes a site; what it has started is stopped in the end."""
    with ExitStack() as stack:
        yield lambda broker, **options: Site(stack, broker, tmp_path, tls, **options)


@pytest.mark.parametrize("scheme", ["rsa2048", "p256", "ed25519", "mldsa44"])
def test_join_data_action_update_and_leaving(broker, site, host, tmp_path, scheme):
    if scheme not in SCHEMES:
        pytest.skip(f"this installation has no {scheme}")
    here = site(broker, scheme=scheme)
    values, values_arrived = [], threading.Event()

    @here.server.on_data("temperature", "double")
    def take(device, data_id, value):
        values.append((device, data_id, value))
        values_arrived.set()

    here.joined()
    here.device.send("temperature", 21.5).result(WAIT)
    assert values_arrived.wait(WAIT)
    assert values == [(DEVICE, "temperature", 21.5)]
    here.works()
    assert here.server.identify(DEVICE).result(WAIT) == "a device"
    assert here.update(f"{host.url}/image").result(WAIT) is UpdateState.ACTIVATED
    assert (tmp_path / "firmware" / "current").read_bytes() == FIRMWARE
    assert host.asked == ["/image"]
    here.device.resign().result(WAIT)
    assert not here.device.joined
    wait_until(lambda: not here.server.members)
    here.device.join()
    here.device.wait_joined(WAIT)
    here.works()


def test_a_failed_update_tells_why_and_the_device_lives_on(broker, site, host, tmp_path):
    here = site(broker, fetch={"attempts": 1}).joined()
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = f"https://127.0.0.1:{gone.getsockname()[1]}/image"

    def status_of(url):
        with pytest.raises(UpdateError) as caught:
            here.update(url).result(WAIT)
        here.works()
        return caught.value.status

    assert status_of(dead) == Status.UPDATE_FAIL_SERVER == 0xFD
    assert status_of(f"{host.url}/missing") == Status.UPDATE_FAIL_HTTP_ERROR == 0xFC
    host.pages["/other"] = b"something else"
    assert status_of(f"{host.url}/other") == Status.UPDATE_FAIL_DIGEST == 0xFF
    folder = tmp_path / "firmware"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("a file where the folder should be")  # which not even root can write into
    assert status_of(f"{host.url}/image") == Status.UPDATE_FAIL_FILE == 0xFE
    folder.unlink()
    assert here.update(f"{host.url}/image").result(WAIT) is UpdateState.ACTIVATED


def test_a_broker_that_is_not_there_at_the_start(mosquitto, site):
    url = mosquitto.url
    mosquitto.stop()
    here = site(mosquitto).start()
    with pytest.raises(TimeoutError):
        here.device.wait_joined(0.1)
    assert not here.device.connected
    mosquitto.start()
    assert mosquitto.url == url
    here.device.wait_joined(WAIT)
    here.works()


def gate(host, path="/slow"):
    """A page whose first answer waits in the middle until it is let go on; returns (asked, go on)."""
    asked, go_on = threading.Event(), threading.Event()

    def page(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(FIRMWARE)))
        handler.end_headers()
        handler.wfile.write(FIRMWARE[:1000])
        handler.wfile.flush()
        asked.set()
        go_on.wait(WAIT)
        handler.wfile.write(FIRMWARE[1000:])

    host.pages[path] = page
    return asked, go_on


def test_the_broker_is_killed_in_the_middle_of_an_update(mosquitto, site, host):
    here = site(mosquitto).joined()
    asked, go_on = gate(host)
    fetched = []
    fetch = here.device.engine.part(Firmware).fetcher.fetch
    here.device.engine.part(Firmware).fetcher.fetch = lambda *arguments: fetched.append(fetch(*arguments)) or fetched[0]
    activated = []
    here.device.on_activate(activated.append)
    order = here.update(f"{host.url}/slow")
    assert asked.wait(WAIT)
    mosquitto.kill()
    wait_until(lambda: not here.device.connected and not here.server.connected)
    go_on.set()
    wait_until(lambda: fetched)
    assert not order.done
    mosquitto.restart()
    assert order.result(WAIT) is UpdateState.ACTIVATED
    assert activated == fetched
    assert host.asked == ["/slow"]
    here.works()


def test_the_broker_comes_back_without_its_memory_and_pending_actions_are_answered(mosquitto, site):
    here = site(mosquitto).joined()
    mosquitto.kill()
    wait_until(lambda: not here.device.connected and not here.server.connected)
    futures = [here.server.action(DEVICE, 1) for _ in range(5)]
    mosquitto.restart()
    assert [future.result(WAIT) for future in futures] == [Status.ACTION_SUCCESS] * 5
    assert len(here.done) == 5
    here.works()


DEVICE_PROGRAM = """
import json, sys
from srup import Device, FetchPolicy, Policy, PrivateKey, PublicKey
from srup.transport import MqttTransport
c = json.loads(sys.argv[1])
device = Device(c["device"], PrivateKey.load(c["device_key"]), server=c["server"],
    server_key=PublicKey.load(c["server_public"]), firmware=c["firmware"], fetch=FetchPolicy(ca_file=c["ca"]),
    broker=MqttTransport(c["broker"], "device", min_pause=0.02, max_pause=0.2),
    policy=Policy(first_retry=0.2, max_retry=1.0))
device.on_joined(lambda: print("joined", flush=True))
device.on_action(1)(lambda partner: print("action", flush=True))
device.on_action(9)(lambda partner: device.stop())
device.run()
print("ended", flush=True)
"""

SERVER_PROGRAM = """
import json, sys
from srup import KeyRing, Policy, PrivateKey, PublicKey, Server
from srup.transport import MqttTransport
c = json.loads(sys.argv[1])
ring = KeyRing({c["device"]: PublicKey.load(c["device_public"])})
server = Server(c["server"], PrivateKey.load(c["server_key"]), devices=ring,
    broker=MqttTransport(c["broker"], "server", min_pause=0.02, max_pause=0.2),
    policy=Policy(first_retry=0.2, max_retry=1.0))

@server.on_joined
def joined(device):
    print("action", server.action(device, 1).result(30).name, flush=True)
    print("update", server.update(device, c["url"], c["digest"]).result(30).name, flush=True)
    server.stop()

server.run()
print("ended", flush=True)
"""


class Program(Command):
    """A Python program in a process of its own."""

    def __init__(self, source, config):
        super().__init__(json.dumps(config), program=(sys.executable, "-c", source))

    def wait_for(self, line):
        wait_until(lambda: f"{line}\n" in self.said, line)

    def ends(self):
        """Its exit status, what it has said, and what it has complained of."""
        return self.wait(), "".join(self.said).splitlines(), [line for line in self.complaints if " INFO " not in line]


@pytest.fixture
def config(tmp_path, mosquitto, host, tls):
    device, server = key_of(DEVICE), key_of(SERVER)
    for name, key in (("device", device), ("server", server)):
        key.save(tmp_path / f"{name}.pem")
        key.public_key.save(tmp_path / f"{name}.pub.pem")
    return {
        "device": DEVICE,
        "server": SERVER,
        "device_key": str(tmp_path / "device.pem"),
        "server_key": str(tmp_path / "server.pem"),
        "device_public": str(tmp_path / "device.pub.pem"),
        "server_public": str(tmp_path / "server.pub.pem"),
        "firmware": str(tmp_path / "firmware"),
        "ca": str(tls[0]),
        "broker": mosquitto.url,
        "url": f"{host.url}/image",
        "digest": DIGEST,
    }


def test_server_and_device_in_two_processes(config, tmp_path):
    with Program(DEVICE_PROGRAM, config) as device, Program(SERVER_PROGRAM, config) as server:
        device.wait_for("joined")
        assert server.ends() == (0, ["action ACTION_SUCCESS", "update ACTIVATED", "ended"], [])
        assert (tmp_path / "firmware" / "current").read_bytes() == FIRMWARE
        device.wait_for("action")
        device.send_signal(signal.SIGINT)
        assert device.ends() == (0, ["joined", "action", "ended"], [])


def test_a_device_process_is_killed_in_the_middle_of_an_update(config, site, mosquitto, host, tmp_path):
    here = site(mosquitto)
    server = here.server
    here.stack.enter_context(server)
    asked, go_on = gate(host)
    with Program(DEVICE_PROGRAM, config) as device:
        device.wait_for("joined")
        order = server.update(DEVICE, f"{host.url}/slow", DIGEST)
        assert asked.wait(WAIT)
        assert device.end(signal.SIGKILL) == -signal.SIGKILL
    go_on.set()
    assert not order.done
    with Program(DEVICE_PROGRAM, config) as device:
        device.wait_for("joined")
        assert order.result(WAIT) is UpdateState.ACTIVATED
        assert (tmp_path / "firmware" / "current").read_bytes() == FIRMWARE
        assert server.action(DEVICE, 1).result(WAIT) is Status.ACTION_SUCCESS
        device.wait_for("action")
        server.action(DEVICE, 9)  # it stops itself in its handler
        assert device.ends()[:2] == (0, ["joined", "action", "ended"])


def test_a_device_that_is_stopped_in_the_middle_of_an_update_goes_on_after_its_next_start(mosquitto, site, host):
    here = site(mosquitto)
    here.stack.enter_context(here.server)
    asked, go_on = gate(host)
    here.device.start().wait_joined(WAIT)
    order = here.update(f"{host.url}/slow")
    assert asked.wait(WAIT)
    here.device.stop()
    go_on.set()
    wait_until(lambda: not any(thread.name.endswith("-download") for thread in threading.enumerate()))
    again = Device(
        DEVICE,
        key_of(DEVICE),
        server=SERVER,
        server_key=key_of(SERVER).public_key,
        broker=here.link("device"),
        firmware=here.device.firmware,
        fetch=here.device.engine.part(Firmware).fetcher.policy,
        policy=EAGER,
    )
    with again:
        assert order.result(WAIT) is UpdateState.ACTIVATED
        assert order.status is Status.ACTIVATE_SUCCESS
