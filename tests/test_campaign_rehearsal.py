"""A campaign in simulated time: limits, gates and windows as in real life, and a course that a seed repeats."""

import json

import pytest
from typer.testing import CliRunner

from srup.campaign import At, Candidate, State
from srup.campaign.document import Activation, Document, Firmware, Gate, Group, Pace, Stop, Target, Window
from srup.campaign.rehearsal import Chances, rehearse, synthetic
from srup.campaign.schedule import Daily, Size
from srup.cli.app import app
from srup.cli.rehearsals import lines, report

NOW = 1_800_000_000.0
GROUPS = (Group(Size(5), 3600.0), Group(Size(share=1.0)))
LENIENT = Gate(0.5, Stop(1000, 1.0))


def document(**parts):
    firmware = Firmware("1" * 64, "https://a.example/f", 8, 42)
    return Document(**{"name": "c", "firmware": firmware, "target": Target()} | parts)


def run(document, chances=None, size=50):
    return rehearse(document, synthetic(size, document), chances or Chances(), NOW)


def test_all_goes_well_in_the_time_that_the_limits_need():
    done = run(document(groups=GROUPS, pace=Pace(at_once=5)))
    assert (done.campaign.state, done.sizes, done.orders) == (State.FINISHED, [5, 45], 50)
    assert {each.at for each in done.members.values()} == {At.HEALTHY}
    assert done.most_at_once == 5
    assert done.seconds > 3600.0 + 9 * 60.0
    assert [each.event for each in done.moments] == ["running", "group 2 opens: 45 devices", "finished"]
    first, second = done.span(0), done.span(1)
    assert first[0] == 0.0
    assert second[0] >= first[1] + 3600.0 - 1.0
    assert done.samples[-1].good == (5, 45)


def test_the_same_seed_gives_the_same_course_and_another_one_another():
    chances = Chances(fail=0.1, flaky=0.1, sleep=0.3, silent=0.05)
    plan = document(gate=LENIENT, pace=Pace(tries=2, at_once=10))
    assert report(run(plan, chances)) == report(run(plan, chances))
    assert report(run(plan, chances)) != report(run(plan, Chances(**chances.__dict__ | {"seed": 1})))


def test_too_many_failures_stop_it_early():
    done = run(document(groups=GROUPS, gate=Gate(0.1, Stop(3, 0.05))), Chances(fail=0.5))
    assert done.campaign.state is State.STOPPED
    assert any(each.event.startswith("the first device fails: ") for each in done.moments)


def test_a_gate_that_stays_shut_leaves_the_rest_alone():
    done = run(document(groups=GROUPS, gate=Gate(1.0, Stop(1000, 1.0))), Chances(silent=1.0))
    assert (done.campaign.state, done.orders) == (State.PAUSED, 5)
    assert sum(each.at is At.WAITING for each in done.members.values()) == 45


def test_devices_that_sleep_are_late_and_those_that_fall_silent_are_unanswered():
    awake = run(document(gate=LENIENT, pace=Pace(timeout=86400.0)))
    asleep = run(document(gate=LENIENT, pace=Pace(timeout=86400.0)), Chances(sleep=1.0, nap=40_000.0))
    assert asleep.seconds > 10 * awake.seconds
    silent = run(document(gate=LENIENT), Chances(silent=1.0))
    assert {each.at for each in silent.members.values()} == {At.UNANSWERED}
    assert silent.seconds == 7200.0


def test_a_host_that_is_away_costs_a_try():
    plan = document(gate=LENIENT, pace=Pace(tries=2, pause=3600.0))
    done = run(plan, Chances(host_down=(0.0, 1800.0)))
    assert (done.orders, {each.at for each in done.members.values()}) == (100, {At.HEALTHY})


def test_the_window_is_kept():
    window = Window(daily=Daily.read("02:00-03:00"), zone="device")
    done = run(document(window=window, activation=Activation("window")))
    assert done.campaign.state is State.FINISHED
    assert all(2.0 <= (each.activated % 86400.0) / 3600.0 < 3.0 for each in done.members.values())


def test_what_goes_on_for_ever_is_cut():
    done = run(document(target=Target(late=True), window=Window(end=NOW + 10 * 365 * 86400.0)))
    assert done.moments[-1].event == "it is not over by now"


def test_a_fleet_of_its_own_is_not_changed():
    plan = document()
    devices = {each: Candidate(each, each != 3) for each in range(1, 6)}
    done = rehearse(plan, devices, Chances(), NOW)
    assert done.members[3].reason == "it is not joined"
    assert {each.digest for each in devices.values()} == {None}


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_what_is_printed_fits(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = list(lines(run(document(groups=GROUPS, gate=LENIENT), Chances(fail=0.1))))
    assert shown[0].startswith("c would be finished after")
    drawn = [line for line in shown if line.startswith(("GROUP", "1 ", "2 "))]
    assert len(drawn) == 3
    assert max(map(len, drawn)) <= columns


FILE = """\
name = "c"
[firmware]
digest = "{digest}"
url = "https://a.example/f"
[target]
tags = {{ site = "berlin" }}
[gate]
stop = {{ failures = 100, share = "100%" }}
"""


def invoke(tmp_path, *arguments):
    (tmp_path / "c.toml").write_text(FILE.format(digest="1" * 64))
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["campaign", "rehearse", str(tmp_path / "c.toml"), *arguments])


def test_the_command_needs_no_server_for_invented_devices(tmp_path):
    done = invoke(tmp_path, "--size", "100", "--fail", "10%", "--fetch", "5min", "--host-down", "4h-6h", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["state"], told["devices"], told["orders"]) == ("finished", 100, 100)
    assert 1 <= told["counts"]["failed"] <= 25
    assert told["timeline"][0] == {"after": 0.0, "event": "running"}
    assert "would be finished" in invoke(tmp_path, "--size", "3").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "3", "--fail", "8"], "no percentage"),
        (["--size", "3", "--fetch", "soon"], "no time"),
        (["--size", "3", "--host-down", "6h-4h"], "ends before it begins"),
        (["--size", "3", "--host-down", "noon"], "no time"),
        ([], "which server?"),
    ],
)
def test_a_mistake_is_status_2(tmp_path, arguments, told):
    done = invoke(tmp_path, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in " ".join(done.stderr.split())
