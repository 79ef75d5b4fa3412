"""Faults under load: nothing is lost, nothing is executed twice, no replay gets in, each device's order is kept.

Real processes: Mosquitto, Redis, the ``srup server`` command. A few of these tests, each with one fault, are part of
``make test``; ``make faults`` runs all of them, with ``REPEAT`` faults in each.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from .fault_site import (
    PARTITIONS,
    fill,
    jumping_site,
    redis_site,
    slow_disk,
    small_disk,
    sqlite_site,
    wait_until,
)

pytestmark = [pytest.mark.faults, pytest.mark.process, pytest.mark.timeout(1800)]
REPEAT = int(os.environ.get("REPEAT", "1"))
chance = random.Random()


def moment():
    """Some of the load goes by; when exactly the fault comes is left to chance."""
    time.sleep(chance.uniform(0.0, 0.7))


def test_sigkill_of_the_server(tmp_path):
    with sqlite_site(tmp_path) as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            site.command.kill()
            site.command.start()
            site.progress()
        site.account()


def test_sigkill_of_a_worker(tmp_path):
    with redis_site(tmp_path) as site:
        site.begin()
        for _ in range(REPEAT):
            wait_until(lambda: len(site.holders()) == 2, "two workers share the partitions")
            moment()
            site.take_over(signal.SIGKILL)
            site.progress()
        site.account()


def test_sigkill_of_mosquitto(tmp_path):
    with sqlite_site(tmp_path) as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            site.broker.kill()
            site.broker.restart()
            site.progress()
        site.account()


@pytest.mark.soak
def test_sigkill_of_mosquitto_with_workers(tmp_path):
    with redis_site(tmp_path) as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            site.broker.kill()
            site.broker.restart()
            site.progress()
        site.account()


def test_sigkill_of_redis(tmp_path):
    with redis_site(tmp_path) as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            site.redis.kill()
            moment()
            site.redis.start()
            site.progress()
        site.account()


def test_sigstop_of_a_worker_past_its_lease(tmp_path):
    with redis_site(tmp_path) as site:
        site.begin()
        for _ in range(REPEAT):
            wait_until(lambda: len(site.holders()) == 2, "two workers share the partitions")
            moment()
            stopped = site.take_over(signal.SIGSTOP)
            os.kill(stopped, signal.SIGCONT)
            wait_until(lambda pid=stopped: pid in site.holders(), "it takes its share again")
            site.progress()
        site.account()


@pytest.mark.soak
def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk, sqlite_site(tmp_path, database=disk / "server.db") as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            filler = fill(disk)
            site.says("accepts nothing until its store works again")
            site.settled()
            count = site.fleet.count
            moment()
            assert site.fleet.count == count
            filler.unlink()
            site.says("its store works again")
            site.progress()
        site.drain()
        site.account()


@pytest.mark.soak
def test_a_redis_without_memory(tmp_path):
    with redis_site(tmp_path) as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            site.redis.client.config_set("maxmemory", 1)
            site.says("used memory > 'maxmemory'")
            moment()
            site.redis.client.config_set("maxmemory", 0)
            site.progress()
        site.account()


@pytest.mark.soak
def test_a_slow_disk(tmp_path):
    slow = slow_disk(tmp_path)
    with sqlite_site(tmp_path, **slow) as site:
        site.begin()
        for _ in range(REPEAT):
            site.progress()
        syncs = Path(slow["SLOW_DISK_COUNT"]).stat().st_size
        assert syncs > 0
        site.notes["syncs"] = syncs
        site.account()


@pytest.mark.soak
def test_a_network_cut_between_server_and_broker(tmp_path):
    with sqlite_site(tmp_path, proxied=True) as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            site.proxy.stall()
            moment()
            site.proxy.heal()
            site.progress()
            site.proxy.cut()
            moment()
            site.proxy.heal()
            site.progress()
            bitten = site.proxy.bitten
            site.proxy.cut_after_request(2)
            wait_until(lambda before=bitten: site.proxy.bitten == before + 2, "two connections are cut")
            site.progress()
        site.account()


@pytest.mark.soak
def test_a_network_cut_between_workers_and_redis(tmp_path):
    with redis_site(tmp_path, proxied=True) as site:
        site.begin()
        for _ in range(REPEAT):
            moment()
            site.proxy.stall()
            wait_until(lambda: not site.holders(), "all leases are over")
            site.proxy.heal()
            site.progress()
            site.proxy.cut()
            moment()
            site.proxy.heal()
            site.progress()
            bitten = site.proxy.bitten
            site.proxy.cut_after_request(10)
            wait_until(lambda before=bitten: site.proxy.bitten == before + 10, "ten connections are cut")
            site.progress()
        site.account()


@pytest.mark.soak
def test_a_clock_that_jumps(tmp_path):
    with jumping_site(tmp_path) as site:
        site.begin()
        site.updated()
        for _ in range(REPEAT):
            moment()
            refused = site.refused("PolicyError")
            site.command.process.send_signal(signal.SIGUSR1)  # a day ahead: what devices send has expired
            wait_until(lambda before=refused: site.refused("PolicyError") > before, "it refuses what has expired")
            site.command.process.send_signal(signal.SIGUSR2)
            site.progress()
            moment()
            before = site.fleet.refused("PolicyError")
            site.command.process.send_signal(signal.SIGUSR2)  # a day behind: what the server sends has expired
            wait_until(
                lambda before=before: site.fleet.refused("PolicyError") > before, "the devices refuse what has expired"
            )
            site.command.process.send_signal(signal.SIGUSR1)
            site.progress()
        site.account()


def test_an_old_backup_of_a_database(tmp_path):
    with sqlite_site(tmp_path) as site:
        site.begin()
        site.updated()
        site.command.stop()
        backup = {path: path.read_bytes() for path in tmp_path.glob("server.db*") if "witness" not in path.name}
        site.command.start()
        site.progress()
        site.command.kill()
        for path in tmp_path.glob("server.db-[ws][ah][lm]"):
            path.unlink()
        for path, content in backup.items():
            path.write_bytes(content)
        site.command.start()
        assert site.command.process.wait() != 0
        site.says("it is an old backup")
        adopted = time.monotonic()
        site.command.start("--adopt")
        site.all_back(adopted)
        site.account(adopted)


@pytest.mark.soak
def test_an_old_copy_of_redis(tmp_path):
    with redis_site(tmp_path, "--witness", str(tmp_path)) as site:
        site.begin()
        site.updated()
        site.redis.stop()
        shutil.copytree(tmp_path / "redis", tmp_path / "backup")
        site.redis.start()
        site.progress()
        site.command.stop()
        site.redis.stop()
        shutil.rmtree(tmp_path / "redis")
        shutil.copytree(tmp_path / "backup", tmp_path / "redis")
        site.redis.start()
        site.command.start()
        for partition in range(PARTITIONS):
            site.says(f"cannot serve partition {partition}", again=True)
        site.command.stop()
        adopted = time.monotonic()
        site.command.start("--adopt")
        site.all_back(adopted)
        wait_until(lambda: len(site.holders()) == 2, "two workers share the partitions")
        site.take_over(signal.SIGKILL)  # whoever takes over does not adopt again
        site.progress()
        site.account(adopted)
