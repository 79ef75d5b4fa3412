"""Draw the table of docs/observability.md from the metrics themselves: ``python docs/metrics.py`` (``make pages``)."""

from pathlib import Path
from typing import Final

from srup.monitor import Collector
from srup.monitor.fleetmetrics import FLEET_GAUGES

PAGE: Final = Path(__file__).with_name("observability.md")
BEGIN, END = "<!-- metrics: begin -->\n", "<!-- metrics: end -->\n"


def table() -> str:
    """Return all metrics, as a worker shows them."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for family in Collector(leases=lambda: {0: 0.0}).collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        listed = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {family.type} | {listed} | {family.documentation} |")
    for name, (meaning, of) in FLEET_GAUGES.items():
        lines.append(f"| `{name}` | gauge | {', '.join(f'`{label}`' for label in of)} | {meaning} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the document with the table as it is now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
