"""A server with an SQLite database that other processes command while it runs: a real broker, real processes."""

import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from srup import Device, Fleet, PolicyError, SqliteStore, Status, StoreError
from srup.fetch import MemoryFetcher
from srup.transport import LocalBroker
from srup.update import UpdateState

from .fleet import DIGEST, FIRMWARE, SERVER, URL, WAIT, key_of, wait_until

pytestmark = pytest.mark.process

DEVICE, NEW = 0xD1, 0xD2
ROOT = Path(__file__).parents[1]


class Site:
    """A broker, a device that notes what it does, and a server in a process of its own that can be killed."""

    def __init__(self, folder, broker):
        self.folder = folder
        self.database = folder / "server.db"
        self.url = broker.url
        self.processes = []
        self.done = []
        (folder / "devices").mkdir()
        key_of(SERVER).save(folder / "server.pem")
        key_of(DEVICE).public_key.save(folder / "devices" / f"{DEVICE:x}.pem")
        self.device = Device(
            DEVICE,
            key_of(DEVICE),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=broker.url,
            firmware=folder / "firmware",
            fetcher=MemoryFetcher({URL: FIRMWARE}),
            description="a lamp",
            store=folder / "device.db",
        )
        for number in range(256):
            self.device.on_action(number)(lambda server, number=number: self.done.append(number))
        self.device.on_activate(lambda path: None)
        self.device.start()

    def server(self, moment="never"):
        command = [sys.executable, "-m", "tests.fleet_server", moment, self.database, self.url, self.folder]
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout.readline() == "running\n"
        return process

    def joined(self):
        self.device.join()
        wait_until(lambda: self.device.joined, "the device has joined")
        return self

    def close(self):
        self.device.stop(0.5)
        for process in self.processes:
            process.kill()
            process.wait(WAIT)
            process.stdout.close()


@pytest.fixture
def site(tmp_path):
    with LocalBroker() as broker:
        site = Site(tmp_path, broker)
        try:
            yield site
        finally:
            site.close()


def test_another_process_commands_a_running_server(site):
    site.server()
    site.joined()
    with Fleet(site.database, SERVER) as fleet:
        assert fleet.action(DEVICE, 3).result(WAIT) is Status.ACTION_SUCCESS
        assert fleet.identify(DEVICE).result(WAIT) == "a lamp"
        order = fleet.update(DEVICE, URL, DIGEST)
        assert order.result(WAIT) is UpdateState.ACTIVATED
        states = [report.state for report in order.reports(WAIT)]
        assert states == ["POSTED", "FETCHING", "READY", "ACTIVATING", "ACTIVATED"]
        assert fleet.register(NEW, key_of(NEW).public_key).result(WAIT) is None
        assert fleet.revoke(NEW).result(WAIT) is None
        assert fleet.waiting() == {}
    assert site.done == [3]


def test_what_is_posted_while_no_server_runs_is_carried_out_at_its_next_start(site):
    process = site.server()
    site.joined()
    process.kill()
    process.wait(WAIT)
    with Fleet(site.database, SERVER) as fleet:
        orders = [fleet.action(DEVICE, number) for number in range(5)]
        assert fleet.waiting() == {0: 5}
        assert [report.state for report in [order.report() for order in orders]] == ["POSTED"] * 5
    site.server()
    with Fleet(site.database, SERVER) as fleet:  # somebody else asks
        results = [fleet.find(order.id).result(WAIT) for order in orders]
    assert results == [Status.ACTION_SUCCESS] * 5
    assert site.done == list(range(5))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_order_is_done_once_when_the_server_is_killed_at_the_commit(site, moment):
    site.server()
    site.joined()
    site.processes[0].kill()
    site.processes[0].wait(WAIT)
    process = site.server(moment)
    with Fleet(site.database, SERVER) as fleet:
        order = fleet.action(DEVICE, 5)
        assert process.wait(WAIT) == -signal.SIGKILL
        assert fleet.waiting() == ({0: 1} if moment == "before" else {})
        site.server()
        assert order.result(WAIT) is Status.ACTION_SUCCESS
        assert fleet.action(DEVICE, 6).result(WAIT) is Status.ACTION_SUCCESS
        assert [report.state for report in order.reports(WAIT)] == ["POSTED", "TAKEN", "DONE"]
    assert site.done == [5, 6]


def test_a_revocation_behind_many_orders_takes_effect_first(site):
    process = site.server()
    site.joined()
    process.kill()
    process.wait(WAIT)
    with Fleet(site.database, SERVER) as fleet:
        behind = [fleet.action(DEVICE, 7) for _ in range(1_500)]
        revoked = fleet.revoke(DEVICE)
        site.server()
        assert revoked.result(WAIT) is None
        for order in (behind[0], behind[-1]):
            with pytest.raises(PolicyError, match="was revoked after this was ordered"):
                order.result(WAIT)
    assert site.done == []


POSTS = """
import sys
from srup import Fleet
fleet = Fleet(sys.argv[1], 0x5E)
print("ready", flush=True)
while True:
    print(fleet.action(0xD1, 9).id, flush=True)
"""


def test_whoever_posts_may_be_killed_at_any_time(site):
    """What was confirmed is carried out once; the server and other posters go on."""
    site.server()
    site.joined()
    posted = []
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", POSTS, str(site.database)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as poster:
            assert poster.stdout.readline() == "ready\n"
            posted += [poster.stdout.readline().strip() for _ in range(5)]
            poster.kill()
            posted += [line.strip() for line in poster.stdout if line.endswith("\n")]
    with Fleet(site.database, SERVER) as fleet:
        for order in posted:
            assert fleet.find(order).result(WAIT) is Status.ACTION_SUCCESS
        wait_until(lambda: fleet.waiting() == {}, "nothing waits")
        assert fleet.action(DEVICE, 8).result(WAIT) is Status.ACTION_SUCCESS
    assert len(posted) <= site.done.count(9) <= len(posted) + 4  # one more of each may be confirmed to nobody


HOLDS = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("holds", flush=True)
sys.stdin.read()
"""


def test_somebody_who_holds_the_database_up_delays_the_server_and_costs_nothing(site):
    site.server()
    site.joined()
    with Fleet(site.database, SERVER) as fleet:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(site.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout.readline() == "holds\n"
            answer = site.device.action(SERVER, 1)
            holder.kill()
        assert answer.result(WAIT) is Status.ACTION_UNKNOWN
        assert fleet.action(DEVICE, 8).result(WAIT) is Status.ACTION_SUCCESS


def test_threads_share_a_fleet(site):
    site.server()
    site.joined()
    results = []
    with Fleet(site.database, SERVER) as fleet:
        threads = [
            threading.Thread(target=lambda number=number: results.append(fleet.action(DEVICE, number).result(WAIT)))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert results == [Status.ACTION_SUCCESS] * 8
    assert sorted(site.done) == list(range(8))


def test_what_is_no_database_of_this_server_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"state\.db is missing: name the database of a server"):
        Fleet(tmp_path / "state.db", SERVER)
    with closing(SqliteStore(tmp_path / "state.db")) as store:
        store.open(0x77)
    with pytest.raises(StoreError, match="belongs to 77, not to 5e"):
        Fleet(tmp_path / "state.db", SERVER)
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Fleet(tmp_path / "text.db", SERVER)
