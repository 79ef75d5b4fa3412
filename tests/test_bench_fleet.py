"""The benchmark of a fleet: it counts what it says, sees what goes wrong, and leaves nothing behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup.bench.fleet import arrivals
from srup.bench.fleetbench import FleetBench, Load
from srup.bench.ledger import Entry, Kind, Ledger, Reading, Value, judge
from srup.bench.processes import BenchError, Process, allow_connections, consumption

from .fleet import wait_until
from .programs import need

pytestmark = pytest.mark.process

MS = 1_000_000
PATIENCE = 30  # seconds until a test gives up; nothing waits that long when all is well
LOAD = Load(devices=50, rate=150, seconds=2, scheme="ed25519", pool=4, patience=5)


@pytest.fixture(scope="module", autouse=True)
def mosquitto():
    need("mosquitto")
    need("mosquitto_sub")


def srup(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "srup", "bench", "fleet", *arguments],
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "80"} | options.pop("environment", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


SMALL = ("--devices", "50", "--rate", "150", "--seconds", "2", "--scheme", "ed25519", "--keys", "4")


# --- the command


def test_the_command_measures_a_fleet():
    with srup(*SMALL, "--json") as process:
        said, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    found = json.loads(said)
    assert found["devices"] == found["joined"] == found["ordered"] == found["activated"] == 50
    assert found["lost"] == found["executed_twice"] == found["reordered"] == found["activated_twice"] == 0
    assert found["sent"] == found["executed"] == found["carried"] > 100
    assert found["offered"] == found["sent"] / 2
    assert 0 < found["served"] <= found["offered"]
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert [part["part"] for part in found["parts"]] == [
        "mosquitto",
        "servers",
        "fleet",
        "mosquitto_sub",
        "this program",
    ]
    assert all(part["peak_mib"] > 1 and part["processes"] == 1 for part in found["parts"])
    assert found["keys"] == "a published pool of 4, shared by the devices"
    assert (found["passed"], found["complaints"]) == (True, [])


def test_a_person_gets_tables_that_fit():
    with srup(*SMALL, "--presigned", "--arrivals", "fixed") as process:
        said, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    words = " ".join(said.split())
    assert "a published pool of 4 ed25519 keys" in words
    assert "signed before the load" in words
    assert "mosquitto_sub counted: 299" in words
    assert "Nothing was lost, repeated or out of order." in words
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said


def test_several_runs_are_one_object():
    with srup(
        *SMALL[:4], "--seconds", "1", *SMALL[6:], "--server-kind", "plain", "--workers", "1,1", "--json"
    ) as process:
        said, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    found = json.loads(said)
    assert len(found["runs"]) == 2
    assert found["runs"][1] == {name: value for name, value in found.items() if name != "runs"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--devices", "0"), "devices must be more than 0 and finite, not 0"),
        (("--rate", "-1"), "rate must be more than 0 and finite, not -1.0"),
        (("--rate", "nan"), "rate must be more than 0 and finite, not nan"),
        (("--seconds", "inf"), "seconds must be more than 0 and finite, not inf"),
        (("--keys", "0"), "pool must be more than 0 and finite, not 0"),
        (("--scheme", "rot13"), "no scheme 'rot13'"),
        (("--server-kind", "none"), "no server 'none'; there are plain"),
        (("--workers", "1,two"), "--workers takes numbers of at least 1 with commas between them, such as 1,2,4"),
        (("--workers", "0"), "--workers takes numbers"),
        (("--workers", "2", "--server-kind", "plain"), "this server is one process; it cannot have 2 workers"),
        (("--devices", "5", "--processes", "6"), "5 devices do not fill 6 processes"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, complaint):
    with srup("--scheme", "ed25519", *arguments) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said == ""
    assert complaint in errors
    assert errors.count("\n") == 1


def test_it_says_what_is_not_installed(monkeypatch):
    with srup(environment={"PATH": "/nowhere"}) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "mosquitto_sub, the independent counter, is not installed (apt install mosquitto-clients)" in errors


def test_it_says_which_limit_to_raise():
    with srup(
        "--devices", "1000", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))
    ) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "1000 connections need 1200 file descriptors" in errors
    assert "ulimit -Hn 1200" in errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_everything(number, code, tmp_path):
    with srup(*SMALL[:4], "--seconds", "600", *SMALL[6:], environment={"TMPDIR": str(tmp_path)}) as process:
        started = psutil.Process(process.pid)
        wait_until(
            lambda: any(tmp_path.glob("*/ledgers/*.ledger")) and len(started.children(True)) >= 4, "it runs", PATIENCE
        )
        children = started.children(True)
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert not [child for child in children if child.is_running()]
    assert not list(tmp_path.iterdir())


# --- the mechanism


def test_an_application_that_loses_values_is_seen():
    with FleetBench(replace(LOAD, drop_every=100, patience=1)) as bench:
        report = bench.run()
    assert report.verdict.lost == report.sent // 100 > 0
    assert report.verdict.executed == report.sent - report.verdict.lost
    assert report.carried == report.sent
    assert report.complaints == [f"{report.verdict.lost} values are lost"]
    assert report.as_dict()["passed"] is False


def test_several_processes_share_the_load_and_one_bench_runs_it_twice():
    heard = []
    load = replace(LOAD, processes=2, presigned=True)
    with FleetBench(load, progress=lambda *words: heard.append(words)) as bench:
        reports = [bench.run(), bench.run()]
        folder = bench._folder
    for report in reports:
        assert report.complaints == []
        assert (report.joined, report.activated) == (50, 50)
        assert next(part for part in report.parts if part.part == "fleet").processes == 2
    assert reports[0].sent == reports[1].sent
    assert {(what, total) for what, done, total in heard if done == total} >= {
        ("making ed25519 keys", 4),
        ("joining", 50),
        ("signing", 300),
        ("updating", 50),
    }
    assert not folder.exists()


def test_a_server_with_a_store():
    with FleetBench(LOAD, "sqlite") as bench:
        for report in (bench.run(), bench.run()):
            assert report.complaints == []
            assert report.as_dict()["server"] == "sqlite"


def test_workers_on_a_redis():
    need("redis-server")
    with FleetBench(replace(LOAD, devices=100), "workers") as bench:
        for workers in (1, 2):
            report = bench.run(workers)
            assert report.complaints == []
            assert report.workers == workers
            parts = {part.part: part for part in report.parts}
            assert parts["servers"].processes == 1 + workers  # and who looks after them
            assert parts["redis"].processes == 1


def test_a_server_that_dies_ends_the_run():
    killed = []

    def kill(what, done, total):
        if what == "joining" and not killed:
            killed.append(next(each for each in psutil.Process().children() if "server" in each.cmdline()))
            killed[0].kill()

    with FleetBench(LOAD, progress=kill) as bench, pytest.raises(BenchError, match="the server has ended"):
        bench.run()
    assert killed


def test_arrivals():
    fixed = list(arrivals(10.0, 2.0, poisson=False, seed=1))
    assert len(fixed) == 19
    assert all(abs(at - (number + 1) * 1e8) < 2 for number, at in enumerate(fixed))
    chance = list(arrivals(1000.0, 20.0, poisson=True, seed=1))
    assert chance == sorted(chance) == list(arrivals(1000.0, 20.0, poisson=True, seed=1))
    assert abs(len(chance) - 20_000) < 5 * 20_000**0.5
    assert chance[-1] < 20e9


def test_limits_of_this_machine():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_connections(1)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    with pytest.raises(BenchError, match="take fewer devices"):
        allow_connections(10_000_000)


def test_consumption_counts_descendants(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(1, flush=True); input()'])"
    with Process("nest", [sys.executable, "-c", code], tmp_path) as process:
        process.hear()
        whole, alone = consumption([process.pid]), consumption([process.pid], descendants=False)
    assert (whole.processes, alone.processes) == (2, 1)
    assert whole.memory > alone.memory > 1 << 20
    assert consumption([process.pid]).processes == 0


# --- the verdict


def entries(*values):
    """Entries of (device, number, done in ms)."""
    return [Entry(Kind.VALUE, device, number, 0, done * MS) for device, number, done in values]


def test_a_good_run():
    verdict = judge(entries((1, 1, 10), (2, 1, 20), (1, 2, 30)), {1: 2, 2: 1}, 0, 25 * MS)
    assert (verdict.executed, verdict.in_time, verdict.lost) == (3, 2, 0)
    assert (verdict.executed_twice, verdict.reordered) == (0, 0)
    assert (verdict.p50_ms, verdict.p99_ms, verdict.max_ms) == (20, 30, 30)


def test_delays_count_from_when_a_value_was_due():
    verdict = judge([Entry(Kind.VALUE, 1, 1, 5 * MS, 112 * MS)], {1: 1}, 100 * MS, 200 * MS)
    assert verdict.p50_ms == 7


def test_nothing_was_executed():
    verdict = judge([], {1: 3}, 0, 1)
    assert (verdict.executed, verdict.lost, verdict.p50_ms) == (0, 3, 0)


def test_what_nobody_sent_is_an_error():
    for device, number in ((1, 3), (2, 1), (1, 0)):
        with pytest.raises(ValueError, match="was executed and never sent"):
            judge(entries((device, number, 1)), {1: 2}, 0, 1)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), max_size=30))
def test_the_verdict_says_what_a_slow_count_says(executed):
    sent = {1: 6, 2: 6, 3: 6}
    verdict = judge(entries(*((device, number, at) for at, (device, number) in enumerate(executed))), sent, 0, 1)
    assert verdict.lost == 18 - len(set(executed))
    assert verdict.executed_twice == sum(times - 1 for times in Counter(executed).values())
    firsts = list(dict.fromkeys(executed))
    assert verdict.reordered == sum(
        any(other[0] == value[0] and other[1] > value[1] for other in firsts[:place])
        for place, value in enumerate(firsts)
    )


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1))
def test_a_value_comes_back(device, number, due):
    assert Value.unpack(Value(device, number, due).pack()) == (device, number, due)


def test_what_is_no_value_is_an_error():
    with pytest.raises(ValueError, match="24 bytes, not 3"):
        Value.unpack(b"abc")


def test_a_ledger_is_read_as_it_grows(tmp_path):
    ledger, reading = Ledger(tmp_path), Reading(tmp_path)
    assert reading.update().values == []
    ledger.write(Kind.READY)
    ledger.write(Kind.VALUE, 1, 2, 3)
    before = time.monotonic_ns()
    assert reading.update().counts == {Kind.READY: 1, Kind.VALUE: 1}
    [path] = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b"half of an entry")
    assert reading.update().counts == {Kind.READY: 1, Kind.VALUE: 1}
    assert [entry[:4] for entry in reading.values] == [(Kind.VALUE, 1, 2, 3)]
    assert reading.values[0].done <= before
