"""The simulator: it finds nothing as things are, the same every time, and finds each guard that is taken away."""

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
from typer.testing import CliRunner

import srup
from srup import tokens
from srup.agent import firmware, inbound
from srup.agent.engine import Engine
from srup.agent.restart import Restart
from srup.cli.app import app
from srup.cli.simulate import replay_command
from srup.codec import decode, verify_many
from srup.errors import PolicyError, SignatureError
from srup.keyring import KeyRing
from srup.replay import ReplayWindow
from srup.session import DeviceSession, engine
from srup.session.engine import Session
from srup.session.flows.action import Actions, ActionState
from srup.session.flows.update import DeviceUpdates
from srup.session.freshness import Freshness
from srup.session.streams import Streams
from srup.session.table import Transition
from srup.simulation import Clock, Ledger, Options, World, run
from srup.simulation.acts import ACTS
from srup.simulation.keychain import key_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEEDS = range(20)
BOUND = 50
"""Within how many seeds each missing guard is found."""


@cache
def ran(seed, durable):
    return run(seed, Options(durable=durable))


@pytest.mark.parametrize("durable", [False, True], ids=["volatile", "durable"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_happens_that_must_not(seed, durable):
    report = ran(seed, durable)
    assert report.passed, "\n".join([*report.trace[-40:], *map(str, report.violations), replay_command(report)])


@pytest.mark.parametrize(
    "options",
    [
        Options(scheme="rsa2048"),
        Options(devices=12, steps=300),
        Options(attack=False),
        Options(devices=12, steps=300, durable=True),
    ],
)
def test_nor_in_other_worlds(options):
    report = run("another", options)
    assert report.passed, report.violations


def test_the_runs_are_not_idle():
    """What the runs above are about does happen in them."""
    counts = Counter()
    acts = " ".join(line for seed in SEEDS for durable in (False, True) for line in tally(ran(seed, durable), counts))
    for kind in ("action", "data", "update"):
        assert counts[f"effect {kind}"] >= 20
    for error in ("ReplayError", "PolicyError", "SignatureError", "UnknownSenderError", "DecodeError"):
        assert counts[error] >= 10
    assert [name for name in ACTS if not counts[f"act {name}"]] == []
    for what in (
        "dies",
        "turns from",
        "stores a new key",
        "is cut",
        "part for good",
        "revokes",
        "about",
        "altered",
        "is full",
    ):
        assert what in acts


def tally(report, counts):
    counts.update(report.counts)
    return report.trace


# The same seed gives the same run.


@pytest.mark.process
def test_another_process_comes_to_the_same_digest():
    code = "from srup.simulation import run; print(run(3).digest)"
    for hash_seed in ("0", "12345"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == run(3).digest
    assert run(4).digest != run(3).digest


def test_a_run_does_not_depend_on_the_one_before():
    run(1)
    assert run(2).trace == run(2).trace


# Each guard that is taken away is missed.


def tokens_checked_but_for(*words):
    genuine = Freshness.check_token

    def check(freshness, peer, message, now):
        try:
            return genuine(freshness, peer, message, now)
        except PolicyError as error:
            if any(word in str(error) for word in words):
                return tokens.parse(message.token)
            raise

    return Freshness, "check_token", check


def verified_by_anybody(wires, keys, threads=1):
    opened = verify_many(wires, keys, threads)
    for number, wire in enumerate(wires):
        for key in (key_of("stranger"), key_of("mole")):
            if isinstance(opened[number], SignatureError):
                with contextlib.suppress(SignatureError):
                    opened[number] = decode(wire).verify(key.public_key)
    return opened


def without_memory():
    table = dict(DeviceSession.table)
    table[ActionState.ANSWERED, srup.Action] = Transition(ActionState.RUNNING, "begin_action")
    return DeviceSession, "table", table


GUARDS = {
    "the replay window": ("repeated", (ReplayWindow, "check", lambda window, sequence_id: None)),
    "the memory of tokens": ("repeated", without_memory()),
    "the recipient of a token": ("redirected", tokens_checked_but_for("the message is for")),
    "the expiry of a token": ("late", tokens_checked_but_for("expired")),
    "the signature": ("forged", (inbound, "verify_many", verified_by_anybody)),
    "the digest at activation": ("tampered", (firmware, "check_digest", lambda path, digest: None)),
    "the version floor": ("rolled back", (DeviceUpdates, "_version", staticmethod(lambda order: 10**9))),
    "the revocation": ("revoked", (KeyRing, "revoke", lambda ring, identity: identity in ring)),
    "the passing of time": ("hanging", (Session, "tick", lambda session, now: [])),
}


FLEETS = {
    "redirected": Options(devices=8, steps=200),  # the more devices there are, the more can be mistaken for another
    "late": Options(steps=300),
    "tampered": Options(devices=8, steps=300),  # and the more hold firmware that can be altered
}
"""Where what is to be found happens too seldom in a run of the usual size."""

DURABLE_GUARDS = {
    "the ids that are reserved": ("reused", (engine, "ID_BLOCK", 0)),
    "the place in the stream": ("repeated", (Streams, "is_next", lambda *_: True)),
    "the inbox": ("lost", (Restart, "resume_handler", lambda restart, transaction, entry: None)),
    "the outbox": ("lost", (Restart, "resume_sending", lambda restart, transaction, entry, now: None)),
    "the end of what a former key asked": ("lost", (Engine, "end_peer", lambda *_: None)),
}


@pytest.mark.parametrize(("name", "patch"), GUARDS.values(), ids=GUARDS)
def test_without_a_guard_the_violation_is_found(monkeypatch, name, patch):
    monkeypatch.setattr(*patch)
    found = Counter()
    for seed in range(BOUND):
        report = run(seed, FLEETS.get(name))
        found.update(violation.name for violation in report.violations)
        if found[name]:
            return
    pytest.fail(f"{name} was not found within {BOUND} seeds, but {found}")


@pytest.mark.parametrize(("name", "patch"), DURABLE_GUARDS.values(), ids=DURABLE_GUARDS)
def test_without_a_guard_of_the_durable_the_violation_is_found(monkeypatch, name, patch):
    monkeypatch.setattr(*patch)
    found = Counter()
    for seed in range(BOUND):
        found.update(violation.name for violation in run(seed, Options(durable=True)).violations)
        if found[name]:
            return
    pytest.fail(f"{name} was not found within {BOUND} seeds, but {found}")


def test_a_lie_about_an_action_is_found(monkeypatch):
    """A device that answers before it has done anything."""
    table = dict(DeviceSession.table)
    table[ActionState.NEW, srup.Action] = Transition(ActionState.ANSWERED, "lie")
    monkeypatch.setattr(DeviceSession, "table", table)

    def lie(flow, exchange, cause, now):
        return flow.answer(exchange, srup.Status.ACTION_SUCCESS, now)

    monkeypatch.setattr(Actions, "lie", lie, raising=False)
    assert any(violation.name == "untrue" for seed in range(5) for violation in run(seed).violations)


# The command.


def command(*arguments):
    done = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, ["simulate", *arguments])
    return done.exit_code, done.stdout


def test_what_is_simulated_is_not_logged_as_if_it_were_real(caplog):
    caplog.set_level("INFO")
    run(4220724187, Options(durable=True))
    assert any("the disk is full" in line for line in caplog.messages)
    assert [line for line in caplog.messages if not line.startswith("simulated: ")] == []
    caplog.clear()
    logging.getLogger("srup.agent").error("this is real")
    assert caplog.messages == ["this is real"]


def test_the_command_tells_of_each_run():
    status, text = command("--seed", "7", "--runs", "2", "--steps", "40")
    assert status == 0
    assert re.findall(r"^seed (\d+): passed; \d+ simulated seconds, \d+ messages", text, re.M) == ["7", "8"]


def test_the_command_shows_how_to_see_a_failure_again(monkeypatch):
    monkeypatch.setattr(*GUARDS["the signature"][1])
    report = next(report for report in map(run, range(BOUND)) if not report.passed)
    status, text = command("--seed", str(report.seed), "--steps", "150", "--volatile")
    assert status == 1
    assert f"again: srup simulate --seed {report.seed} --devices 4 --steps 150 --scheme ed25519 --volatile" in text
    assert f"  {report.violations[0]}" in text
    assert "VIOLATION" in text
    assert report.digest[:16] in text
    again = text[text.index("again: srup ") :].split()[2:]
    assert command(*again[1:]) == (status, text)


def test_a_mistake_in_the_command_is_told():
    status, _ = command("--scheme", "p256")
    assert status == 2


# The parts.


def entered(**changes):
    ledger = Ledger(lambda: 50.0)
    ledger.order("action", 1, 2, 7, until=100.0, life=1, signer="key")
    given = {"issuer": 1, "target": 2, "local": 50.0, "life": 1, "durable": False} | changes
    lives = given.pop("lives", [given["life"]])
    for life in lives:
        ledger.effect("action", what=7, **(given | {"life": life}))
    return [violation.name for violation in ledger.violations]


def test_what_the_ledger_finds():
    assert entered() == []
    assert entered(issuer=3) == ["forged"]
    assert entered(target=3) == ["redirected"]
    assert entered(local=100.5) == ["late"]
    assert entered(valid=frozenset({"key"})) == []
    assert entered(valid=frozenset({"another"})) == ["revoked"]
    assert entered(lives=[1, 1]) == ["repeated"]
    assert entered(lives=[1, 2]) == []
    assert entered(lives=[1, 2], durable=True) == ["repeated"]
    assert entered(lives=[1, 2, 1]) == ["repeated"]


def test_a_clock_that_follows_another():
    world = Clock(10.0)
    fast = Clock(ahead_of=world, skew=2.0)
    world.now = 20.0
    assert (world(), fast()) == (20.0, 22.0)
    with pytest.raises(AttributeError, match="follows"):
        fast.now = 1.0


def test_a_store_is_given_to_every_life_of_an_identity(tmp_path):
    world = World("store", tmp_path, Options(durable=True))
    party = world.devices[0xD0]
    before = party.store
    world.environment.crash(party)
    world.environment.restart(party)
    assert party.agent.debug.store is before
    assert world.operators.provision(party)  # whoever begins anew does not go on where another key has ended
    assert party.agent.debug.store is not before
    assert World("store", tmp_path, Options()).devices[0xD0].agent.debug.store is None
