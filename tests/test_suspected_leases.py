"""Faults that a reader of the code suspected, with workers and leases: a real Redis, a real broker."""

import threading

import pytest

from srup import SrupError, Status, StoreError
from srup.agent import worker as worker_module
from srup.store.partition import partition_of

from .fleet import wait_until
from .test_agent_worker import DEVICES, PARTITIONS
from .test_agent_worker import site as site

pytestmark = pytest.mark.process

PATIENCE = 5.0
"""Seconds until something is taken not to happen; it only takes that long when it does not."""

FIRST = DEVICES[0]
ELSEWHERE = next(device for device in DEVICES if partition_of(device, PARTITIONS) != partition_of(FIRST, PARTITIONS))


def served(site, **options):
    worker = site.worker(**options)
    wait_until(lambda: site.served(worker), "one worker serves everything")
    for device in site.devices.values():
        device.start()
    wait_until(site.all_joined, "all have joined")
    return worker


def lose_lease(server):
    """Let another worker have the partition, as far as this one can tell."""
    server.lease.end()
    server.action(FIRST, 2)  # something to do, so that it looks
    wait_until(lambda: server.stopped, "the worker has given the partition up")


def test_a_lease_that_is_lost_ends_what_was_asked(site):
    worker = served(site)
    site.devices[FIRST].stop()
    server = worker.server_of(FIRST)
    future = server.action(FIRST, 1)
    lose_lease(server)
    assert isinstance(future.exception(PATIENCE), SrupError)


def test_a_handler_that_waits_for_it_holds_nobody_up(site):
    waiting, ended, heard = threading.Event(), threading.Event(), threading.Event()

    def setup(server):
        @server.on_data("wait")
        def wait(device, _name, _value):
            future = server.action(FIRST, 1)
            waiting.set()
            try:
                future.exception(3 * PATIENCE)  # a real one has no limit
            finally:
                ended.set()

        server.on_data("n")(lambda *_: heard.set())

    worker = served(site, setup=setup)
    server = worker.server_of(FIRST)
    site.devices[FIRST].stop()
    beside = next(d for d in DEVICES[1:] if partition_of(d, PARTITIONS) == partition_of(FIRST, PARTITIONS))
    site.devices[beside].send("wait", b"1")
    assert waiting.wait(PATIENCE)
    lose_lease(server)
    site.devices[ELSEWHERE].send("n", b"1")
    try:
        assert heard.wait(PATIENCE)
    finally:
        ended.wait(4 * PATIENCE)


def test_control_a_value_of_another_partition(site):
    heard = threading.Event()
    served(site, setup=lambda server: server.on_data("n")(lambda *_: heard.set()))
    site.devices[ELSEWHERE].send("n", b"1")
    assert heard.wait(PATIENCE)


def test_an_error_of_one_partition_is_not_taken_for_that_of_another(site, monkeypatch):
    """A store refuses one partition, and in the same turn another one has nothing to keep."""
    worker = served(site)
    refused, other = worker.server_of(FIRST), worker.server_of(ELSEWHERE)
    commit_many, turned = worker_module.commit_many, threading.Event()

    def commit(work):
        outcomes = iter(commit_many([each for each in work if each[0] is not refused.engine.store]))
        return [StoreError("refused") if store is refused.engine.store else next(outcomes) for store, _ in work]

    def turn():
        worker._turn([other, refused])
        turned.set()

    monkeypatch.setattr(worker_module, "commit_many", commit)
    waiting = refused.action(FIRST, 1)
    wait_until(lambda: refused.store_error == "refused")
    worker._wakes.put(turn)
    assert turned.wait(PATIENCE)
    assert (refused.store_error, other.store_error) == ("refused", None)
    assert isinstance(other.action(ELSEWHERE, 1).result(PATIENCE), Status)
    monkeypatch.undo()
    assert isinstance(waiting.result(2 * PATIENCE), Status)
    assert refused.store_error is None
