"""Hypothesis drives a small world act by act, and shrinks what it finds (model-based)."""

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from srup.simulation import Options, World
from srup.simulation.acts import ACTS

pytestmark = pytest.mark.slow


class SmallWorld(RuleBasedStateMachine):
    """Two servers, two devices, and whatever happens to them."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="srup-simulation-")
        self.world = None

    @initialize(seed=st.integers(0, 1000), durable=st.booleans())
    def begin(self, seed, durable):
        self.world = World(seed, Path(self.folder.name), Options(devices=2, durable=durable))
        self.world.settle()

    @rule(name=st.sampled_from(sorted(ACTS)), choice=st.integers(0, 7))
    def happens(self, name, choice):
        _, act = ACTS[name]
        act(self.world, Random(choice))

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 5.0, 65.0]))
    def time_passes(self, seconds):
        self.world.pass_time(seconds)

    @invariant()
    def nothing_happens_that_must_not(self):
        if self.world is not None:
            self.world.check()
            self.verdict()

    def verdict(self):
        self.world.report()
        assert self.world.ledger.violations == [], "\n".join(self.world.trace[-40:])

    def teardown(self):
        try:
            if self.world is not None and not self.world.ledger.violations:
                self.world.converge()
                self.world.check_agreement()
                self.verdict()
        finally:
            self.folder.cleanup()


TestSmallWorld = SmallWorld.TestCase
TestSmallWorld.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
