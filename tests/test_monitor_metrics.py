"""What agents are read for, and how several of them are shown."""

import ast
import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from srup import KeyRing, PrivateKey, Server
from srup.monitor import Collector
from srup.monitor.metrics import COUNTERS, GAUGES, HISTOGRAMS
from srup.store import MemoryStore

from .fleet import Fleet, key_of

ROOT = Path(__file__).parents[1]


def samples(collector):
    """What a scrape shows, by name and labels, as an independent parser reads it."""
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path, 2, server_options={"store": MemoryStore()}) as fleet:
        yield fleet


def test_every_message_is_counted_once(fleet):
    shown = Collector(fleet.server)
    fleet.joined()
    before = samples(shown)
    fleet.network.inject("SRUP/d0", b"junk")
    for _ in range(3):
        fleet.device.action(0x5E, 1)
    fleet.settle()
    after = samples(shown)
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown[("srup_messages_refused_total", "DecodeError")] == 1
    assert grown[("srup_messages_verified_total",)] == 3
    assert grown[("srup_messages_sent_total",)] == 3
    assert ("srup_faults_total",) not in grown
    assert after[("srup_members",)] == 2


def test_a_replay_is_a_duplicate_and_no_refusal(fleet):
    fleet.joined()
    shown = Collector(fleet.server)
    topic, wire = next((topic, wire) for topic, wire in fleet.network.log if topic.startswith("SRUP/servers/"))
    fleet.network.inject(topic, wire)
    fleet.settle()
    found = samples(shown)
    assert found[("srup_messages_duplicate_total",)] == 1
    assert not [name for name in found if "ReplayError" in name]


def test_what_waits_has_an_age(fleet):
    fleet.joined()
    shown = Collector(fleet.server)
    assert samples(shown)[("srup_requests_open",)] == 0
    fleet.server.action(0xD0, 1)
    fleet.server.send_data(0xDD, "number", 7)  # nobody has this identity: it waits for a join
    fleet.server.step()
    fleet.clock.now += 40.0
    found = samples(shown)
    assert (found[("srup_requests_open",)], found[("srup_values_waiting",)]) == (1, 1)
    assert found[("srup_request_oldest_seconds",)] == pytest.approx(40.0)
    assert found[("srup_value_oldest_seconds",)] == pytest.approx(40.0, abs=1e-3)
    fleet.settle()
    assert samples(shown)[("srup_requests_open",)] == 0


def test_the_age_of_a_request_survives_a_restart(tmp_path):
    store = MemoryStore()
    with Fleet(tmp_path, server_options={"store": store}) as fleet:
        fleet.joined()
        fleet.server.action(0xD0, 1)
        fleet.server.step()
        ring = fleet.ring
        clock = fleet.clock
        clock.now += 100.0
        again = Server(0x5E, key_of(0x5E), devices=ring, broker=_Silent(), clock=clock, store=store.copy())
        again.start(threads=False)
        assert (again.vitals().requests, again.vitals().oldest_request) == (1, pytest.approx(100.0))


class _Silent:
    """A broker that nobody reaches."""

    faults = 0

    def start(self, *_): ...
    def subscribe(self, *_): ...
    def unsubscribe(self, *_): ...
    def publish(self, *_): ...
    def stop(self, *_): ...


def test_batches_and_commits_are_measured(fleet):
    shown = Collector(fleet.server)
    told = []
    fleet.server.on_measured(lambda name, value: told.append((name, value)))
    fleet.joined()
    found = samples(shown)
    batches, commits = ([value for each, value in told if each == name] for name in ("batch", "commit"))
    assert batches
    assert commits
    assert found[("srup_batch_messages_count",)] == len(batches)
    assert found[("srup_batch_messages_sum",)] == sum(batches) == found[("srup_messages_received_total",)]
    assert found[("srup_commit_seconds_count",)] == len(commits)
    assert found[("srup_commit_seconds_sum",)] == pytest.approx(sum(commits))


def test_a_listener_that_raises_stops_nothing(fleet):
    def raises(name, value):
        raise RuntimeError(name)

    fleet.server.on_measured(raises)
    fleet.joined()
    assert fleet.server.counts["faults"] > 0
    with pytest.raises(TypeError, match="is a function"):
        fleet.server.on_measured("commit")


def test_agents_of_one_set_of_labels_are_added_up(fleet):
    fleet.joined()
    one, two = fleet.devices.values()
    together, apart = Collector(one, two), Collector(labels=["device"])
    apart.watch(one, "one")
    apart.watch(two, "two")
    counts = Counter(one.counts) + Counter(two.counts)
    assert samples(together)[("srup_messages_sent_total",)] == counts["sent"] > one.counts["sent"]
    assert samples(together)[("srup_agents",)] == samples(together)[("srup_members",)] == 2
    assert samples(apart)[("srup_messages_sent_total", "two")] == two.counts["sent"]
    assert samples(apart)[("srup_agents_connected", "one")] == 1


def test_what_was_counted_stays_when_an_agent_goes(fleet):
    fleet.joined()
    one, two = fleet.devices.values()
    shown = Collector(one, two)
    before = samples(shown)
    one.stop()
    after = samples(shown)
    assert list(shown.agents) == [two]
    assert after[("srup_messages_sent_total",)] == before[("srup_messages_sent_total",)]
    assert (before[("srup_agents",)], after[("srup_agents",)]) == (2, 1)


def test_labels_and_agents_that_do_not_fit():
    server = Server(1, PrivateKey.generate("ed25519"), devices=KeyRing(), broker=_Silent())
    with pytest.raises(ValueError, match="has values for 0"):
        Collector(server, labels=["partition"])
    shown = Collector(server)
    with pytest.raises(ValueError, match="is shown already"):
        shown.watch(server)


def test_leases_are_shown_where_there_are_any():
    found = samples(Collector(leases=lambda: {3: 4.5, 7: 9.0}))
    assert found[("srup_leases_held",)] == 2
    assert found[("srup_lease_remaining_seconds", "7")] == 9.0
    assert ("srup_leases_held",) not in samples(Collector())


def test_everything_that_agents_count_has_a_metric():
    """A name that no table has would be shown as the reason of a refusal."""
    names = set()
    for path in (ROOT / "src/srup/agent").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "counts"
            ):
                names |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    assert {"received", "faults", "leases lost"} <= names
    assert names <= COUNTERS.keys()


def test_everything_that_agents_measure_has_a_metric():
    calls = "".join(path.read_text() for path in (ROOT / "src/srup/agent").glob("*.py"))
    assert set(re.findall(r'\.measure\("(\w+)"', calls)) == HISTOGRAMS.keys()


def test_names_are_as_prometheus_wants_them():
    """https://prometheus.io/docs/practices/naming/: a prefix, base units in the plural, no _total but on counters."""
    names = [*(name for name, _ in COUNTERS.values()), *GAUGES, *(name for name, *_ in HISTOGRAMS.values())]
    assert len(names) == len(set(names))
    for name in names:
        assert re.fullmatch(r"srup(_[a-z]+)+", name)
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_ms"))


def test_the_document_has_the_metrics_that_there_are():
    spec = importlib.util.spec_from_file_location("metrics_document", ROOT / "docs" / "metrics.py")
    document = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(document)
    assert document.PAGE.read_text() == document.page(), "make pages"
    for name in re.findall(r"\bsrup_[a-z_]+", document.PAGE.read_text().partition(document.END)[2]):
        assert f"| `{name}` |" in document.table(), name
