"""What a service tells systemd, received as systemd does: on a datagram socket."""

import os
import socket
from contextlib import closing

import pytest

from srup.agent.vitals import STUCK_AFTER, Vitals
from srup.cli.systemd import Notifier, works
from srup.monitor.health import liveness


@pytest.fixture(params=["/", "@"], ids=["in a folder", "abstract"])
def heard(request, tmp_path, monkeypatch):
    name = f"{tmp_path}/notify" if request.param == "/" else f"@srup-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.bind(name if request.param == "/" else f"\0{name[1:]}")
        receiver.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield lambda: receiver.recv(100)


def test_the_beginning_and_the_end(heard):
    with Notifier(lambda: True):
        assert heard() == b"READY=1"
    assert heard() == b"STOPPING=1"


def test_signs_of_life_while_it_works(heard, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    works = [True]
    with Notifier(lambda: works[0]):
        assert [heard(), heard(), heard()] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        works[0] = False
    last = heard()
    while last == b"WATCHDOG=1":  # one may have been on its way
        last = heard()
    assert last == b"STOPPING=1"


def test_the_watchdog_of_another_process(heard, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with Notifier(lambda: True):
        assert heard() == b"READY=1"
    assert heard() == b"STOPPING=1"


def test_without_systemd_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    with Notifier(lambda: True):
        pass


def test_a_socket_that_is_gone_is_no_trouble(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with Notifier(lambda: True):
        pass


RUNNING = Vitals(
    *(True, False, False, True, True, "connected", None),
    *(0.0, 0.0, 0, 0, 0, 0.0, 0, 0.0, 0),
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"started": False}, True),
        ({"stopping": True, "alive": False}, True),
        ({"connected": False, "store_error": "the disk is full"}, True),  # a restart would not help
        ({"alive": False}, False),
        ({"turn": STUCK_AFTER}, True),
        ({"turn": STUCK_AFTER + 1}, False),
    ],
)
def test_an_agent_works_as_healthz_says(change, expected):
    vitals = RUNNING._replace(**change)
    assert works(vitals) is expected
    assert (not liveness(vitals)) is expected
