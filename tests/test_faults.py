"""Faults under load: nothing is lost, nothing is executed twice, no replay gets in, each device's order is kept.

Real processes: Mosquitto, Redis, the ``srup server`` command. A few of these tests, each with one fault, are part of
``make test``; ``make faults`` runs all of them, with ``REPEAT`` faults in each.
"""

import os
import random
import signal
import time

import pytest

pytest.importorskip("redis")

from .fault_site import PARTITIONS, partition_of, redis_site, sqlite_site, wait_until

pytestmark = pytest.mark.timeout(900)
REPEAT = int(os.environ.get("REPEAT", "2"))
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
        assert max(site.notes["take-over in leases"]) < 2.0
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
