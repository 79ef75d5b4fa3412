"""When an agent is not alive, and when it is not ready."""

import sys
import threading

import pytest

from srup import KeyRing, Server
from srup.agent import Vitals
from srup.monitor import Monitor, Problem, liveness, readiness, trouble_by_reason
from srup.monitor.health import merged
from srup.store import MemoryStore
from srup.transport import MemoryNetwork, MemoryTransport

from .fleet import WAIT, Fleet, key_of, wait_until

WELL = Vitals(True, False, False, True, True, "connected", None, 0.0, 0.0, 0, 0, 0, 0.0, 0, 0.0, 0)


def test_nothing_is_wrong():
    assert liveness(WELL) == readiness(WELL) == []


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"started": False, "connected": False}, ["agent"]),
        ({"stopping": True, "connected": False}, ["agent"]),
        ({"alive": False, "connected": False}, ["agent"]),
        ({"connected": False, "link": "refused"}, ["broker"]),
        ({"store_error": "disk full"}, ["store"]),
        ({"connected": False, "store_error": "disk full"}, ["broker", "store"]),
        ({"turn": 1e6, "handler": 1e6}, []),
    ],
)
def test_readiness(change, parts):
    found = readiness(WELL._replace(**change))
    assert [problem.part for problem in found] == parts


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"alive": False}, [Problem("thread", "it has ended")]),
        ({"turn": 61.0}, [Problem("thread", "it has been in one turn for 61 seconds")]),
        ({"turn": 60.0}, []),
        ({"started": False, "alive": False, "turn": 61.0}, []),
        ({"stopping": True, "alive": False, "turn": 61.0}, []),
        ({"connected": False, "store_error": "disk full", "handler": 1e6, "inbox": 10_000}, []),
    ],
)
def test_liveness(change, problems):
    assert liveness(WELL._replace(**change)) == problems


@pytest.fixture
def often():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def server_on(network, **options):
    return Server(0x5E, key_of(0x5E), devices=KeyRing(), broker=MemoryTransport(network, "server"), **options)


def test_a_thread_that_is_stuck_is_seen_and_one_that_goes_on_is_well():
    held, release = threading.Event(), threading.Event()
    with server_on(MemoryNetwork()) as server, Monitor("0", server, stuck_after=0.0) as monitor:

        def stick(_transaction):
            held.set()
            release.wait(WAIT)

        server.engine.post(stick)
        assert held.wait(WAIT)
        wait_until(lambda: not monitor.health()["ok"], "it is noticed")
        [problem] = monitor.health()["problems"]
        assert (problem["agent"], problem["part"]) == ("Server 5e", "thread")
        assert server.vitals().turn > 0
        release.set()
        wait_until(lambda: monitor.health()["ok"], "it goes on")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_seen():
    with server_on(MemoryNetwork()) as server:
        assert liveness(server.vitals()) == []

        def end(_transaction):
            raise GeneratorExit  # nothing that a fence catches

        server.engine.post(end)
        server.debug.join(WAIT)
        assert [problem.part for problem in liveness(server.vitals())] == ["thread"]


def test_a_handler_that_takes_long_is_shown_and_is_no_fault(tmp_path):
    held, release = threading.Event(), threading.Event()
    network = MemoryNetwork()
    with server_on(network) as server:

        @server.on_link
        def stay(connected, why):
            held.set()
            release.wait(WAIT)

        server.engine.report_link(True, "again")
        assert held.wait(WAIT)
        wait_until(lambda: server.vitals().handler > 0, "it is shown")
        wait_until(lambda: liveness(server.vitals(), stuck_after=0.0) == [], "the agent's own thread waits")
        release.set()
        wait_until(lambda: server.vitals().handler == 0, "it is over")


def test_a_store_that_refuses_makes_it_unready_and_not_unhealthy(tmp_path):
    store = MemoryStore()
    with Fleet(tmp_path, server_options={"store": store}) as fleet, Monitor("0", fleet.server) as monitor:
        assert [problem["part"] for problem in monitor.readiness()["problems"]] == ["agent"]
        fleet.joined()
        assert monitor.readiness() == {"ok": True, "problems": []}
        store.failures = 2
        fleet.server.action(0xD0, 1)
        fleet.server.step()
        problem = {"agent": "Server 5e", "part": "store", "why": "the store was told to fail"}
        assert monitor.readiness() == {"ok": False, "problems": [problem]}
        assert monitor.health()["ok"]
        assert fleet.server.vitals().turn == 0.0
        fleet.server.step()
        fleet.server.step()
        assert monitor.readiness()["ok"]
    assert [problem["part"] for problem in monitor.readiness()["problems"]] == ["agent"]


REASON = "Redis at h:1: {} of server 5e: the commit is not on the disk"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({}, None),
        ({3: "gone: partition 3"}, "gone: partition 3"),
        ({-1: "refused"}, "refused"),
        ({-1: "refused", 4: "refused", 5: "refused"}, "refused"),
        (dict.fromkeys(range(64), "no disk"), "partitions 0-63: no disk"),
        ({each: REASON.format(f"partition {each}") for each in (9, 7, 8, 2)}, f"partitions 2, 7-9: {REASON}"),
        ({1: "a", 2: "b", 3: "a"}, "partitions 1, 3: a; b"),
    ],
)
def test_a_reason_is_told_once_for_all_partitions(trouble, said):
    assert trouble_by_reason(trouble) == (said and said.format("a partition"))


def test_a_problem_is_told_once_for_all_partitions():
    def problem(part, why):
        return {"agent": "PartitionServer 5e", "part": part, "why": why}

    many = [problem("store", REASON.format(f"partition {each}")) for each in range(64)]
    one = problem("broker", "refused by partition 3")
    assert merged([*many, one]) == [problem("store", REASON.format("a partition")) | {"count": 64}, one]
    assert merged([]) == []


def test_other_parts_can_be_asked_and_nobody_is_nobody():
    said = {"why": "no tables"}
    ask = {"database": lambda: said["why"]}
    monitor = Monitor("0", ready=ask, healthy=ask)
    try:
        assert monitor.readiness()["problems"] == [
            {"part": "agent", "why": "none runs here"},
            {"part": "database", "why": "no tables"},
        ]
        assert monitor.health() == {"ok": False, "problems": [{"part": "database", "why": "no tables"}]}
        said["why"] = None
        assert monitor.health()["ok"]
        assert [problem["part"] for problem in monitor.readiness()["problems"]] == ["agent"]
    finally:
        monitor.stop()


def test_vitals_may_be_asked_while_the_agent_works(often):
    """What is read changes meanwhile; nothing raises."""
    network = MemoryNetwork()
    with server_on(network) as server:
        stop = threading.Event()
        raised = []

        def ask():
            while not stop.is_set():
                try:
                    server.vitals()
                except RuntimeError as error:
                    raised.append(error)
                    return

        thread = threading.Thread(target=ask)
        thread.start()
        for number in range(400):
            server.send_data(number, "x", b"", confirmed=True, lifetime=1000.0)
            server.command_join(number)
        wait_until(lambda: raised or (server.vitals().values, server.vitals().requests) == (400, 400), "all are there")
        stop.set()
        thread.join()
        assert not raised
