"""Metrics for Prometheus, read from the agents when they are scraped, so that messages do not pay for them.

Only two figures come as they arise, one a batch and one a commit: those of the histograms. The tables below are all
there is; docs/observability.md is drawn from them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Final, NamedTuple

from prometheus_client import Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

import srup_native

from ..agent import Agent, Vitals
from ..errors import DecodeError, PolicyError, ReplayError, SignatureError, UnknownSenderError

__all__ = ["COUNTERS", "GAUGES", "HISTOGRAMS", "LEASES_HELD", "LEASE_REMAINING", "REASONS", "REFUSED", "Collector"]

COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "received": (
        "srup_messages_received",
        "Messages that arrived, whatever they were; our own, too, if they come back",
    ),
    "verified": ("srup_messages_verified", "Messages whose signature is their sender's"),
    "sent": ("srup_messages_sent", "Messages that were handed to the broker's client"),
    "unsent": ("srup_messages_unsent", "Messages that could not be sent; what has an answer is tried again"),
    ReplayError.__name__: ("srup_messages_duplicate", "Messages that were accepted before, or are too old to tell"),
    "unexpected": ("srup_messages_unexpected", "Genuine messages that nothing waits for; they change nothing"),
    "overflow": ("srup_messages_overflow", "Messages left to the broker because too many wait here"),
    "not verified": ("srup_messages_unverifiable", "Messages left to the broker because the keys could not be read"),
    "not relayed": ("srup_messages_unrelayed", "Messages that a syndication device could not pass on"),
    "refusals not told": ("srup_refusals_untold", "Refusals that the application was not told of, they were so many"),
    "repeated": ("srup_values_repeated", "Values that came once more, or before their turn; they had no effect"),
    "not done": ("srup_orders_not_done", "Orders of partners that were over when their turn came"),
    "unanswered": ("srup_requests_unanswered", "Requests of ours whose time was over before the answer came"),
    "data refused": ("srup_values_refused", "Values of ours that the partner does not know"),
    "key refused": ("srup_keys_refused", "New keys of partners that were not taken"),
    "unopened": ("srup_join_values_unopened", "Sealed values of joins and syndications that did not open"),
    "firmware changed": ("srup_firmware_changed", "Firmware that was no longer what had been fetched"),
    "not stored": ("srup_commits_failed", "Attempts to make a turn durable that the store refused"),
    "not audited": ("srup_audit_rows_left_out", "Audit rows that were not written, because a partner caused too many"),
    "not kept": (
        "srup_messages_not_kept",
        "Messages that a restart would lose: many others wait at the broker",
    ),
    "leases lost": ("srup_leases_lost", "Agents that stopped because another worker has their partition"),
    "faults": ("srup_faults", "Things that raised where nothing should; each is in the log"),
}
"""What is counted, by its name in :attr:`Agent.counts`: metric (Prometheus adds _total) and meaning."""

REFUSED: Final = "srup_messages_refused", "Messages that were refused for another reason than being duplicates"
REASONS: Final = tuple(error.__name__ for error in (DecodeError, PolicyError, SignatureError, UnknownSenderError))
"""The errors for which messages are refused; a name in ``Agent.counts`` that no table has is another one."""


class Gauge(NamedTuple):
    """A state: what it means, how it is read, and what becomes of those of several agents."""

    meaning: str
    read: Callable[[Vitals], float]
    together: Callable[[Iterable[float]], float] = sum


GAUGES: Final[Mapping[str, Gauge]] = {
    "srup_agents": Gauge("Agents that run", lambda vitals: vitals.runs and vitals.alive),
    "srup_agents_connected": Gauge("Those with a link to the broker", lambda vitals: vitals.runs and vitals.connected),
    "srup_agents_storing": Gauge(
        "Those whose store writes, or that have none", lambda vitals: vitals.runs and vitals.store_error is None
    ),
    "srup_members": Gauge("Partners that are joined", lambda vitals: vitals.members),
    "srup_inbox_items": Gauge("Messages and jobs that wait for an agent's thread", lambda vitals: vitals.inbox),
    "srup_handlers_waiting": Gauge("Calls of handlers that wait for their turn", lambda vitals: vitals.handlers),
    "srup_values_waiting": Gauge("Values that wait to be sent", lambda vitals: vitals.values),
    "srup_value_oldest_seconds": Gauge("Age of the oldest value that waits", lambda vitals: vitals.oldest_value, max),
    "srup_requests_open": Gauge("Requests of ours that have no answer yet", lambda vitals: vitals.requests),
    "srup_request_oldest_seconds": Gauge("Age of the oldest open request", lambda vitals: vitals.oldest_request, max),
    "srup_turn_seconds": Gauge("How long the turn under way has lasted", lambda vitals: vitals.turn, max),
    "srup_handler_seconds": Gauge("How long the handler under way has lasted", lambda vitals: vitals.handler, max),
}

HISTOGRAMS: Final[Mapping[str, tuple[str, str, Sequence[float]]]] = {
    "batch": ("srup_batch_messages", "Messages that were verified together", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "commit": (
        "srup_commit_seconds",
        "Time that the store took to make a turn durable",
        (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    ),
}
"""What agents measure (:meth:`Agent.on_measured`), by its name there: metric, meaning, upper bounds of the buckets."""

LEASES_HELD: Final = "srup_leases_held", "Partitions that this worker holds"
LEASE_REMAINING: Final = "srup_lease_remaining_seconds", "Time until the lease of a partition is over"
BUILD: Final = "srup_build", "What runs: its version, and the backend that verifies"


class Collector:
    """Reads agents whenever Prometheus asks: ``prometheus_client.REGISTRY.register(Collector(server))``.

    Agents with the same values for ``labels`` are shown as one: their counters and gauges added up, of times the
    longest. Without labels that is one set of figures for the process. An agent that has stopped is let go, and what it
    has counted stays. ``leases`` returns, by partition, for how many seconds a worker's leases still hold.
    """

    def __init__(
        self,
        *agents: Agent,
        labels: Sequence[str] = (),
        leases: Callable[[], Mapping[int, float]] | None = None,
    ) -> None:
        self._labels = tuple(labels)
        self._leases = leases
        self._lock = Lock()
        self._agents: dict[Agent, tuple[str, ...]] = {}
        self._past: dict[tuple[str, ...], Counter[str]] = {} if labels else {(): Counter()}
        self._histograms = {
            name: Histogram(metric, meaning, self._labels, registry=None, buckets=buckets)
            for name, (metric, meaning, buckets) in HISTOGRAMS.items()
        }
        for agent in agents:
            self.watch(agent)

    def watch(self, agent: Agent, *values: str) -> None:
        """Show this agent, too, under these ``values`` of the labels; ValueError when they are not as many."""
        if len(values) != len(self._labels):
            raise ValueError(f"the labels are {self._labels}, and {agent!r} has values for {len(values)}")
        with self._lock:
            self._let_go()
            if agent in self._agents:
                raise ValueError(f"{agent!r} is shown already")
            self._agents[agent] = values
            self._past.setdefault(values, Counter())
        listeners = {
            name: (histogram.labels(*values) if values else histogram).observe
            for name, histogram in self._histograms.items()
        }
        agent.on_measured(partial(_take, listeners))

    def _let_go(self) -> None:
        for agent in [agent for agent in self._agents if agent.stopped]:
            self._past[self._agents.pop(agent)].update(agent.counts.copy())

    @property
    def agents(self) -> dict[Agent, dict[str, str]]:
        """The agents that are shown now, and their labels."""
        with self._lock:
            self._let_go()
            return {agent: dict(zip(self._labels, values, strict=True)) for agent, values in self._agents.items()}

    def describe(self) -> Iterator[Metric]:
        """Return the metrics by name, for a registry."""
        return Collector(labels=self._labels, leases=None if self._leases is None else dict).collect()

    def collect(self) -> Iterator[Metric]:
        """Read the agents; called by a registry, on any thread."""
        with self._lock:
            self._let_go()
            counts = {values: past.copy() for values, past in self._past.items()}
            agents = self._agents.copy()
            for agent, values in agents.items():
                counts[values].update(agent.counts.copy())
        vitals: dict[tuple[str, ...], list[Vitals]] = {values: [] for values in counts}
        for agent, values in agents.items():
            vitals[values].append(agent.vitals())
        yield from self._counters(counts)
        for name, gauge in GAUGES.items():
            family = GaugeMetricFamily(name, gauge.meaning, labels=self._labels)
            for values, each in vitals.items():
                family.add_metric(values, float(gauge.together([gauge.read(one) for one in each] or [0.0])))
            yield family
        for histogram in self._histograms.values():
            yield from histogram.collect()
        if self._leases is not None:
            leases = self._leases()
            yield GaugeMetricFamily(*LEASES_HELD, value=len(leases))
            left = GaugeMetricFamily(*LEASE_REMAINING, labels=["partition"])
            for partition, seconds in sorted(leases.items()):
                left.add_metric([str(partition)], seconds)
            yield left
        from .. import __version__

        yield InfoMetricFamily(*BUILD, value={"version": __version__, "backend": srup_native.BACKEND})

    def _counters(self, counts: Mapping[tuple[str, ...], Counter[str]]) -> Iterator[Metric]:
        for name, (metric, meaning) in COUNTERS.items():
            family = CounterMetricFamily(metric, meaning, labels=self._labels)
            for values, counted in counts.items():
                family.add_metric(values, counted[name])
            yield family
        refused = CounterMetricFamily(*REFUSED, labels=[*self._labels, "reason"])
        for values, counted in counts.items():
            for reason in sorted({*REASONS, *counted} - COUNTERS.keys()):
                refused.add_metric([*values, reason], counted[reason])
        yield refused


def _take(listeners: Mapping[str, Callable[[float], object]], name: str, value: float) -> None:
    if name in listeners:
        listeners[name](value)
