"""srup order, as an operator types it: worker processes, a real Redis, a real broker, a device."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from srup import Device
from srup.fetch import MemoryFetcher
from srup.transport import LocalBroker

from .fleet import DIGEST, FIRMWARE, SERVER, URL, WAIT, key_of, wait_until
from .pseudoterminal import Program
from .redis_server import redis_server

pytestmark = pytest.mark.process

DEVICE, NEW = 0xD1, 0xD2
SRUP = [sys.executable, "-m", "srup"]


def srup(*arguments):
    return subprocess.run([*SRUP, *arguments], capture_output=True, text=True, timeout=WAIT, check=False)


def device(identity, folder, url):
    made = Device(
        identity,
        key_of(identity),
        server=SERVER,
        server_key=key_of(SERVER).public_key,
        broker=url,
        firmware=folder / f"{identity:x}",
        fetcher=MemoryFetcher({URL: FIRMWARE}),
        description="a lamp\x1b[2J",
    )
    made.on_activate(lambda path: None)
    made.on_action(3)(lambda server: None)
    made.on_action(4)(lambda server: False)
    return made.start()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "devices").mkdir()
    key_of(SERVER).save(folder / "server.pem")
    key_of(DEVICE).public_key.save(folder / "devices" / f"{DEVICE:x}.pem")
    key_of(NEW).public_key.save(folder / "new.pem")
    (folder / "firmware.bin").write_bytes(FIRMWARE)
    with LocalBroker() as broker, redis_server(folder / "redis") as redis:
        assert srup("store", "create", redis.url, "--identity", f"{SERVER:x}", "--partitions", "4").returncode == 0
        command = ["server", "--identity", f"{SERVER:x}", "--key", "server.pem", "--devices", "devices"]
        command += ["--broker", broker.url, "--store", redis.url, "--workers", "2", "--lease", "2", "--audit-days", "1"]
        with subprocess.Popen([*SRUP, *command], cwd=folder, stderr=subprocess.DEVNULL) as workers:
            lamp = device(DEVICE, folder, broker.url)
            try:
                wait_until(lambda: lamp.joined, "the device has joined")
                to = ["order", "--store", redis.url, "--identity", f"{SERVER:x}"]
                yield SimpleNamespace(
                    folder=folder, url=broker.url, redis=redis, lamp=lamp, order=lambda *each: srup(*to, *each)
                )
            finally:
                lamp.stop(0.5)
                workers.terminate()
                workers.wait(WAIT)


def test_what_a_device_is_without_anything_that_steers_a_terminal(site):
    done = site.order("identify", "d1", "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert {order for order, _ in lines} == {lines[0][0]}
    assert [told for _, told in lines] == ["POSTED", "TAKEN", "DONE a lamp\\x1b[2J"]


@pytest.mark.parametrize(("action", "told", "status"), [("3", "ACTION_SUCCESS", 0), ("4", "ACTION_FAIL", 1)])
def test_an_action_ends_with_what_came_of_it(site, action, told, status):
    done = site.order("action", "d1", action, "--wait", "--json")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, reports[-1]["value"], reports[-1]["over"]) == (status, told, True)
    assert {report["id"].partition(".")[0] for report in reports} == {"d1"}


def test_an_update_from_a_file_that_is_held_and_activated(site):
    file = str(site.folder / "firmware.bin")
    posted = site.order("update", "d1", "--url", URL, "--file", file, "--hold", "--json")
    order = json.loads(posted.stdout)
    assert (posted.returncode, order["state"]) == (0, "POSTED")
    wait_until(lambda: " READY" in site.order("result", order["id"]).stdout, "the device has the file")
    assert site.order("activate", order["id"], "--wait").returncode == 0
    done = site.order("result", order["id"], "--wait", "--timeout", str(WAIT))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{order['id']} ACTIVATED")


def test_an_update_that_fails_is_status_1(site):
    done = site.order("update", "d1", "--url", URL, "--digest", "0" * 64, "--wait")
    assert done.returncode == 1
    told = "FAILED UpdateError: device d1 reports UPDATE_FAIL_DIGEST: the content has the digest 9d5c4a1a"
    assert told in done.stdout


def test_an_update_is_taken_back(site):
    order = json.loads(_held(site))["id"]
    wait_until(lambda: " READY" in site.order("result", order).stdout, "the device has the file")
    assert site.order("cancel", order, "--wait").returncode == 0
    done = site.order("result", order)
    assert done.returncode == 1
    assert "FAILED PolicyError: the update of d1 is off: the order was taken back" in done.stdout


def test_a_device_is_registered_and_revoked(site):
    assert site.order("register", "d2", str(site.folder / "new.pem"), "--wait").returncode == 0
    new = device(NEW, site.folder, site.url)
    try:
        wait_until(lambda: new.joined, "the new device has joined")
        assert site.order("revoke", "d2", "--wait").returncode == 0
        done = site.order("action", "d2", "3", "--wait")
        assert (done.returncode, "d2 is not joined" in done.stdout) == (1, True)
    finally:
        new.stop(0.5)


def test_values_and_the_rest(site):
    got = []
    site.lamp.on_data("level", "uint8")(lambda server, name, value: got.append(value))
    assert site.order("send", "d1", "level", "7", "--kind", "uint8", "--wait").returncode == 0
    assert got == [7]
    assert site.order("join", "d1", "--server", "99", "--wait").stdout.endswith("DONE JOIN_REFUSED\n")
    assert site.order("waiting", "--json").stdout == "{}\n"


def test_an_order_that_takes_longer_stands(site):
    done = site.order("result", json.loads(_held(site))["id"], "--wait", "--timeout", "0.1")
    assert (done.returncode, "the order stands" in done.stderr) == (3, True)


def _held(site):
    return site.order("update", "d1", "--url", URL, "--digest", DIGEST, "--hold", "--json").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["action", "d1", "300"], "ACTION"),
        (["update", "d1", "--url", URL, "--digest", "short"], "digest"),
        (["update", "d1", "--url", URL], "--file"),
        (["update", "d1", "--url", URL, "--file", "missing.bin"], "missing.bin"),
        (["register", "d1", "missing.pem"], "missing.pem"),
        (["send", "d1", "level", "much", "--kind", "uint8"], "much"),
        (["result", "nonsense"], "no id of an order"),
        (["result", f"d1.{'0' * 32}"], "there is no order"),
        (["identify", "xyz"], "is not an identity"),
        (["register", "d1", "/"], "/: Is a directory"),
        (["update", "d1", "--url", URL, "--file", "/"], "/: Is a directory"),
        (["send", "d1", "level", "-1", "--kind", "uint8"], "does not fit uint8"),
        (["send", "d1", "level", "zz", "--kind", "bytes"], "zz is no value of the kind bytes"),
        (["send", "d1", "level", "7", "--kind", "int7"], "'--kind'"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_a_mistake_is_status_2_and_one_line(site, arguments, told):
    done = site.order(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Errno" not in done.stderr


def test_a_store_that_is_not_there_is_named(tmp_path):
    done = srup("order", "--store", str(tmp_path / "state.db"), "--identity", "5e", "identify", "d1")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/state.db is missing: name the database of a server" in done.stderr


def test_several_devices_are_ordered_at_once(site):
    assert site.order("tag", "d1", "site", "berlin", "--wait").returncode == 0
    asked = site.order("action", "d1", "d2", "3")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "this would order action for 2 devices: d1, d2; if that is meant, add --yes" in asked.stderr
    done = site.order("action", "d1", "d1", "d2", "3", "--yes", "--wait")
    assert done.returncode == 1  # d2 is no member
    assert "ACTION_SUCCESS" in done.stdout
    assert "d2 is not joined" in done.stdout
    found = site.order("identify", "--where", "tag.site=berlin", "--yes", "--wait")
    assert (found.returncode, found.stdout.count("DONE a lamp")) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("identify",), "which devices?"),
        (("identify", "d1", "--where", "member=yes"), "which devices?"),
        (("identify", "--where", "tag.site=nowhere", "--yes"), "there is no device for which tag.site=nowhere holds"),
        (("identify", "--where", "colour=red", "--yes"), "colour cannot be compared"),
        (("tag", "d1", "d2", "a b", "c"), "'a b' is no name of a tag"),  # before anybody is asked
    ],
)
def test_nobody_is_ordered_by_mistake(site, arguments, said):
    done = site.order(*arguments)
    assert (done.returncode, done.stdout, said in done.stderr) == (2, "", True)


def test_a_terminal_asks_and_says_what_it_waits_for(site):
    options = ["order", "--store", site.redis.url, "--identity", f"{SERVER:x}"]
    asked = Program([*options, "action", "d1", "d2", "3"], columns=100)
    asked.expect("This orders action for 2 devices: d1, d2.")
    asked.expect(r"Is that meant\? \[y/N\]")
    asked.send("n\r")
    asked.expect("nothing is ordered")
    assert asked.wait() == 2
    waits = Program([*options, "update", "d1", "--url", URL, "--digest", DIGEST, "--hold", "--wait"], columns=100)
    waits.expect("waiting for the firmware to be activated, 0 s")
    assert waits.end() == 130
    assert "the order stands, and the server goes on with it: srup order result d1." in waits.text
