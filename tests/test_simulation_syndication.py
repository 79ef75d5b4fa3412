"""The simulator's syndication world: it finds nothing as things are, and finds each guard that is taken away."""

import os
from collections import Counter
from functools import cache, partial

import pytest
from typer.testing import CliRunner

from srup import Policy, UnansweredError
from srup.cli.app import app
from srup.cli.simulate import replay_command
from srup.keyring import KeyRing
from srup.replay import ReplayWindow
from srup.session import syndication
from srup.session.syndication import SyndicationServerSession
from srup.simulation import START, Clock, Ledger, Options, run
from srup.simulation.syndication import ACTS
from srup.simulation.syndication.oracle import LinkView, Oracle, Side

from .syndication_fleet import AWAY, AWAY_ID, HOME, HOME_ID, KEY_SERVICE, LAMPS, VALUE, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEEDS = range(11)
BOUND = 30
"""Within how many seeds each missing guard is found."""


@cache
def ran(seed, durable):
    return run(seed, Options(durable=durable, syndication=True))


@pytest.mark.parametrize("durable", [False, True], ids=["volatile", "durable"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_happens_that_must_not(seed, durable):
    report = ran(seed, durable)
    assert report.passed, "\n".join([*report.trace[-40:], *map(str, report.violations), replay_command(report)])


def test_the_runs_are_not_idle():
    """What the runs above are about does happen in them."""
    counts = Counter()
    for seed in SEEDS:
        for durable in (False, True):
            counts.update(ran(seed, durable).counts)
    for kind in ("effect action", "effect data", "effect syndicated data", "lists", "opened away", "closed away"):
        assert counts[kind] >= 10, kind
    for error in ("ReplayError", "PolicyError", "SignatureError", "UnknownSenderError"):
        assert counts[error] >= 10, error
    assert [name for name in ACTS if not counts[f"act {name}"]] == []


def test_a_run_does_not_depend_on_the_one_before():
    options = Options(syndication=True, steps=40)
    run(1, options)
    assert run(2, options).trace == run(2, options).trace
    assert run(1, options).digest != run(2, options).digest


# What it has found.


def test_the_attacker_asks_for_a_join_that_is_compared():
    """Nobody shows a value for it, so its owner refuses."""
    assert ran(72027, durable=True).passed


def test_a_relay_waits_in_vain_for_an_answer_that_is_held_back():
    """It tells home so and resigns; that ends what the away server had agreed to."""
    assert ran(80011, durable=True).passed


def test_a_device_is_not_shared_any_more_when_the_syndication_ends_that_it_was_asked_in():
    """The away server asks it no more for what home wanted, though nothing was shared at the end."""
    assert ran(80084, durable=False).passed


def test_an_action_that_is_done_again_after_a_crash_may_fail():
    assert ran(80089, durable=True).passed


def test_an_end_that_is_ordered_twice_is_told_once_more():
    """The second order is refused, for nothing is left to end; the first one was not heard."""
    assert ran(80104, durable=False).passed


def test_an_away_server_goes_on_after_a_restart_with_what_it_has_allowed():
    assert ran(81095, durable=True).passed


def test_a_home_that_has_put_a_relay_out_unheard_says_that_it_is_over_when_something_comes():
    assert ran(81135, durable=True).passed


def test_a_relay_that_has_not_heard_of_the_end_enters_as_long_as_the_word_to_do_so_is_good():
    assert ran(81145, durable=True).passed


def test_a_relay_that_leaves_home_unheard_leaves_the_other_network_too(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        world.networks["home"].cut(f"server-{HOME:x}")
        resigned = world.bridge.resign()
        world.pass_time(2 * world.policy.lifetime)
        assert isinstance(resigned.exception(0), UnansweredError)
        assert world.bridge.away is None
        assert AWAY_ID not in world.away.members


def test_an_end_that_is_held_with_its_beginning_counts_as_long(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.start()
        world.networks["home"].cut(f"device-{HOME_ID:x}")
        world.home.syndicate(HOME_ID, KEY_SERVICE, VALUE)
        world.settle()
        world.home.end_syndication(HOME_ID)
        world.pass_time(2 * world.policy.lifetime)
        world.networks["home"].heal(f"device-{HOME_ID:x}")
        world.pass_time(5)
        assert world.values == []
        assert world.bridge.away is None


def test_in_the_end_nothing_is_shared_with_a_home_that_has_ended_it(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        world.networks["home"].cut(f"device-{HOME_ID:x}")
        ended = world.home.end_syndication(HOME_ID)
        world.pass_time(2 * world.policy.lifetime)
        assert isinstance(ended.exception(0), UnansweredError)
        world.networks["home"].heal(f"device-{HOME_ID:x}")
        for _ in range(3):
            world.pass_time(1000)
            world.lamps[LAMPS[0]].send("reading", "a word of the away server")
        world.pass_time(5)
        assert world.away.debug.session.syndication(AWAY_ID) is None
        assert world.bridge.away is None


def test_a_home_that_has_forgotten_a_syndication_says_that_it_is_over(tmp_path):
    with Federation(tmp_path, scheme="ed25519") as world:
        world.syndicated()
        world.home.stop()
        world.home = world.everybody[0] = world.server(HOME, "home", first_sequence_id=2**40)
        world.watch(world.home)
        world.home.start(threads=False)
        world.pass_time(1000)
        world.lamps[LAMPS[0]].send("reading", "a word of the away server")
        world.pass_time(5)
        assert world.away.debug.session.syndication(AWAY_ID) is None
        assert world.bridge.away is None


# Each guard that is taken away is missed.


def allowed_whatever_the_owner_says(session, device, token, now, status):
    return session.allow(device, token, now, os.urandom(16))


def flow_with(name):
    """Return the last flow of such servers that has a method of this name itself."""
    return next(flow for flow in reversed(SyndicationServerSession.flow_types) if name in vars(flow))


GUARDS = {
    "the owner's word": ("forged", (SyndicationServerSession, "refuse", allowed_whatever_the_owner_says)),
    "the list of what is shared": ("unshared", (syndication.Syndication, "shares", lambda known, device: True)),
    "the replay window": ("repeated", (ReplayWindow, "check", lambda window, sequence_id: None)),
    "the end of what was allowed": ("after the end", (flow_with("_ask_no_more"), "_ask_no_more", lambda *_: [])),
    "the end of a membership": ("disagreement", (flow_with("on_membership_lost"), "on_membership_lost", lambda *_: [])),
}


@pytest.mark.parametrize(("name", "patch"), GUARDS.values(), ids=GUARDS)
def test_without_a_guard_the_violation_is_found(monkeypatch, name, patch):
    monkeypatch.setattr(*patch)
    found = Counter()
    for seed in range(BOUND):
        for durable in (False, True):
            report = run(seed, Options(syndication=True, durable=durable))
            found.update(violation.name for violation in report.violations)
            if found[name]:
                return
    pytest.fail(f"{name} was not found within {BOUND} seeds, but {found}")


# The command.


def command(*arguments):
    done = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, ["simulate", *arguments])
    return done.exit_code, done.stdout


def test_the_command_shows_how_to_see_a_failure_again(monkeypatch):
    monkeypatch.setattr(KeyRing, "get", lambda ring, identity: None)  # nobody knows anybody
    status, text = command("--seed", "5", "--steps", "30", "--volatile", "--syndication")
    assert status == 1
    assert "again: srup simulate --seed 5 --devices 4 --steps 30 --scheme ed25519 --volatile --syndication" in text
    again = text[text.index("again: srup ") :].split()[2:]
    assert command(*again[1:]) == (status, text)


# The oracle: it judges from what it is told.

RELAY, LAMP = 0xB1, 0xC0


@pytest.fixture
def judged():
    clock = Clock()
    ledger = Ledger(clock)
    oracle = Oracle(ledger, clock, Policy(), {RELAY: (HOME, AWAY)}, [0xBAD], True)
    for identity in (HOME, AWAY, RELAY, LAMP):
        oracle.started(identity, 1)
    return oracle, ledger, clock


def found(ledger):
    names = [violation.name for violation in ledger.violations]
    ledger.violations.clear()
    return names


def ask(oracle, ledger, action=7):
    """Home asks for an action of the lamp."""
    order = ledger.order("syndicated action", HOME, RELAY, (LAMP, action), START + 60.0, 1, "key")
    oracle.gave(order, RELAY)


def act(oracle, action=7):
    oracle.effect("action", AWAY, LAMP, action, local=0.0, again=False, good=True)


def test_an_action_needs_the_word_of_its_owner_who_shares_the_device(judged):
    oracle, ledger, _ = judged
    oracle.begins(RELAY, 1)
    oracle.accepts(RELAY, 1, (LAMP,))
    oracle.opened(RELAY, Side.AWAY, 100)
    ask(oracle, ledger)
    act(oracle)
    assert found(ledger) == ["forged"]
    oracle.allows(RELAY, LAMP, 7)
    act(oracle)
    assert found(ledger) == []
    act(oracle)
    assert found(ledger) == ["repeated"]
    oracle.allows(RELAY, LAMP, 8)
    assert found(ledger) == ["forged"]  # home has not asked for that
    ask(oracle, ledger, 9)
    oracle.effect("action", AWAY, LAMP, 9, local=0.0, again=False, good=True)
    assert found(ledger) == ["forged"]


def test_what_is_not_shared_any_more_is_missed_after_the_lifetime_of_a_message(judged):
    oracle, ledger, clock = judged
    oracle.begins(RELAY, 1)
    oracle.accepts(RELAY, 1, (LAMP,))
    clock.now += 100.0
    oracle.shares(RELAY, ())
    oracle.sent_value(RELAY, LAMP, "reading")
    assert found(ledger) == []
    clock.now += Policy().lifetime + 1.0
    oracle.sent_value(RELAY, LAMP, "reading")
    assert found(ledger) == ["unshared"]
    oracle.sent_value(RELAY, LAMP, "IDENTIFICATION_RESPONSE")
    assert found(ledger) == ["untold"]


def test_nothing_is_asked_in_a_syndication_that_is_over(judged):
    oracle, ledger, _ = judged
    oracle.begins(RELAY, 1)
    oracle.accepts(RELAY, 1, (LAMP,))
    oracle.opened(RELAY, Side.AWAY, 100)
    ask(oracle, ledger)
    oracle.allows(RELAY, LAMP, 7)
    oracle.sent_action(AWAY, LAMP, 7)
    assert found(ledger) == []
    oracle.ends(RELAY, Side.AWAY)
    oracle.closed(RELAY, Side.AWAY)
    oracle.sent_action(AWAY, LAMP, 7)
    assert found(ledger) == ["after the end"]


def test_an_end_counts_for_the_syndication_that_was_ended(judged):
    oracle, ledger, _ = judged
    for number in (1, 2):
        oracle.begins(RELAY, number)
        oracle.opened(RELAY, Side.HOME, 0)
        oracle.accepts(RELAY, number, (LAMP,))
        oracle.opened(RELAY, Side.AWAY, number)
        if number == 1:
            oracle.ends(RELAY, Side.AWAY)
            oracle.closed(RELAY, Side.AWAY)
            oracle.closed(RELAY, Side.HOME)
            assert found(ledger) == []
    oracle.closed(RELAY, Side.HOME)  # the word about the first one has come late
    assert found(ledger) == ["undone"]


def test_a_value_is_taken_once_and_was_sent(judged):
    oracle, ledger, clock = judged
    take = partial(oracle.value_taken, RELAY, LAMP, "reading", again=False, told_late=False)
    oracle.begins(RELAY, 1)
    oracle.opened(RELAY, Side.HOME, 0)
    take("21")
    assert found(ledger) == ["forged"]
    for text in ("22", "23", "24"):
        ledger.order("data", LAMP, AWAY, ("reading", text), clock.now + 60.0, 1, "key")
    take("22")
    assert found(ledger) == []
    take("22")
    assert found(ledger) == ["repeated"]
    oracle.home_ends(RELAY)
    oracle.closed(RELAY, Side.HOME)
    take("23")
    assert found(ledger) == ["after the end"]
    take("24", told_late=True)
    assert found(ledger) == []


def view(**changes):
    seen = {"wanted": True, "offered": (LAMP,), "shared": (LAMP,), "sharing": (LAMP,)}
    return LinkView(relay=RELAY, **(seen | {"inside": True, "present": True, "possible": True} | changes))


NONE = {"shared": None, "sharing": None, "inside": False, "present": False}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"wanted": False} | NONE, []),
        ({"offered": None} | NONE, []),
        ({"shared": None}, ["disagreement"]),
        ({"sharing": ()}, ["disagreement"]),
        ({"wanted": False}, ["disagreement", "disagreement", "ghost", "ghost"]),
        ({"offered": None} | NONE | {"inside": True}, ["ghost"]),
        ({"possible": False} | NONE | {"present": True}, ["ghost"]),
    ],
)
def test_what_both_must_agree_about_in_the_end(judged, changes, names):
    oracle, ledger, _ = judged
    oracle.check_agreement([view(**changes)])
    assert found(ledger) == names
