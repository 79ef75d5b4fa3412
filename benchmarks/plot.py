"""Draw ``<benchmark>.png`` beside every ``<benchmark>.json`` of a folder: ``python -m benchmarks.plot FOLDER``.

Bars are labelled with their figures and told apart by hatching and place, lines by markers and dashes, so that no plot
needs its colours. The footer says what was measured with.
"""

import io
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from PIL import Image

from .report import number

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

COLOURS: Final = ["#1f4e79", "#9dc3e6", "#c55a11", "#f8cbad", "#7f7f7f", "#e2f0d9"]
HATCHES: Final = ["", "///", "...", "xx", "\\\\\\", "ooo"]
LINES: Final = [("o", "-"), ("s", "--"), ("^", ":")]
SIZE: Final = (10.0, 4.6)
PURE: Final = "srup, pure Python"

plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6})


def table(content: dict[str, Any], title: str) -> list[dict[str, Any]]:
    """Return the rows of the table whose title begins so, each by column."""
    for found in content["tables"]:
        if found["title"].startswith(title):
            return [dict(enumerate(row)) for row in found["rows"]]
    return []


def grouped(axes: Any, rows: Iterable[tuple[str, str, float]], unit: str) -> None:
    """Draw horizontal bars: the cases below each other, the contenders of each side by side."""
    found = {(case, contender): value for case, contender, value in rows}
    cases = list(dict.fromkeys(case for case, _ in found))
    contenders = list(dict.fromkeys(contender for _, contender in found))
    height = 0.84 / len(contenders)
    for index, contender in enumerate(contenders):
        places = [place + (index - (len(contenders) - 1) / 2) * height for place in range(len(cases))]
        values = [found.get((case, contender), 0.0) for case in cases]
        shown = [(place, value) for place, value in zip(places, values, strict=True) if value]
        bars = axes.barh(
            [place for place, _ in shown],
            [value for _, value in shown],
            height,
            label=contender,
            color=COLOURS[index],
            hatch=HATCHES[index],
            edgecolor="black",
            linewidth=0.5,
        )
        axes.bar_label(bars, [number(float(value)) for _, value in shown], padding=3, fontsize=7.5)
    axes.set_yticks(range(len(cases)), [textwrap.fill(case, 26) for case in cases])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.13)
    if len(contenders) > 1:
        axes.legend(frameon=False, fontsize=8)


def plain_ticks(axis: Any) -> None:
    """Write numbers out."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def lines(axes: Any, x: Sequence[float], series: dict[str, Sequence[float]]) -> None:
    """Draw lines that markers and dashes tell apart, named at their ends."""
    for index, (name, values) in enumerate(series.items()):
        marker, dashes = LINES[index]
        points = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
        axes.plot(*zip(*points, strict=True), marker=marker, linestyle=dashes, color=COLOURS[2 * index % 5], label=name)
    axes.grid(alpha=0.3)
    plain_ticks(axes.yaxis)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)


def draw_codec(figure: Any, content: dict[str, Any]) -> None:
    """Beside the others, for the largest message."""
    rows = [(*row[0].split(", "), row[1], row[2]) for row in table(content, "codec")]
    largest = rows[-1][1]
    some = [(case, contender, value) for case, label, contender, value in rows if label == largest]
    pure = ", ".join(f"{case} {number(value)}" for case, contender, value in some if contender == PURE)
    some = [row for row in some if row[1] != PURE]
    axes = figure.subplots(1, 2)
    for each, cases in zip(axes, (("decode", "decode and open"), ("construct", "encode")), strict=True):
        grouped(each, [row for row in some if row[0] in cases], "ns per message (less is better)")
    axes[0].set_title("bytes to an object", fontsize=9.5)
    axes[1].set_title("values to an object, an object to bytes", fontsize=9.5)
    figure.suptitle(f"{figure.get_suptitle()}\n{largest}; srup in pure Python: {pure}", fontsize=9.5)


def draw_signing(figure: Any, content: dict[str, Any]) -> None:
    """Schemes one by one, and RSA-2048 in batches."""
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    rows = [
        (row[0].partition(" ")[2], row[1], row[2]) for row in table(content, "signing") if row[0].startswith("verify")
    ]
    grouped(left, rows, "µs per message (less is better)")
    left.set_title("one message: verify", fontsize=9.5)
    many = [row for row in table(content, "many RSA-2048") if row[0].startswith("1,000 keys")]
    chosen = {}
    for row in many:
        batch = row[0].rpartition(" ")[2]
        label = row[1] if batch == "256" and row[1] != "verify_many" else f"{row[1]}, batches of {batch}"
        chosen[label] = 1e6 / row[2]
    chosen = dict(sorted(chosen.items(), key=lambda item: item[1]))
    bars = right.barh(list(chosen), list(chosen.values()), color=COLOURS[1], edgecolor="black", linewidth=0.5)
    for bar, name in zip(bars, chosen, strict=True):
        if name.startswith("cryptography"):
            bar.set_hatch("///")
    right.bar_label(bars, [f"{value:,.0f}" for value in chosen.values()], padding=3, fontsize=7.5)
    right.invert_yaxis()
    right.margins(x=0.16)
    right.xaxis.set_major_locator(MaxNLocator(4))
    plain_ticks(right.xaxis)
    right.set_xlabel("verified messages per second (more is better)")
    right.set_title(f"RSA-2048, {many[0][0].partition(' keys')[0]} keys (batches of 256)", fontsize=9.5)


def draw_receive(figure: Any, content: dict[str, Any]) -> None:
    """In memory, and through Mosquitto where it was there."""
    through = table(content, "through")
    axes = figure.subplots(1, 2 if through else 1, squeeze=False)[0]
    rows = [(row[0], "srup", row[1]) for row in table(content, "in memory")]
    grouped(axes[0], rows, "verified messages per second (more is better)")
    axes[0].set_title("in memory, one verifying thread", fontsize=9.5)
    plain_ticks(axes[0].xaxis)
    if through:
        names = {"plain": "paho, acknowledges only", "srup": "srup, verifies and acknowledges"}
        pairs = [(row[0].partition(", "), row[1]) for row in through]
        grouped(axes[1], [(mode, names[who], rate) for (mode, _, who), rate in pairs], "messages per second")
        axes[1].legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        axes[1].set_title("through Mosquitto, QoS 1, one client", fontsize=9.5)
        plain_ticks(axes[1].xaxis)


def draw_added_delay(figure: Any, content: dict[str, Any]) -> None:
    """Delay, CPU time and bytes."""
    rows = table(content, "a command")
    panels = [
        ("delay of a round trip, ms", [("median", 1), ("p99", 2)]),
        ("CPU time of both ends, ms", [("", 5)]),
        ("payload of both messages, bytes", [("", 6)]),
    ]
    for axes, (label, columns) in zip(figure.subplots(1, 3, width_ratios=[1.4, 1, 1]), panels, strict=True):
        grouped(axes, [(row[0], name, float(row[column])) for row in rows for name, column in columns], label)
        if axes.get_subplotspec().colspan.start:
            axes.set_yticklabels([])


def draw_scale(figure: Any, content: dict[str, Any]) -> None:
    """Time and memory over the number of keys."""
    rows = table(content, "cost")
    left, right = figure.subplots(1, 2)
    sizes = [row[0] for row in rows]
    lines(left, sizes, {"time": [row[1] for row in rows]})
    left.set_ylabel("µs per verified message")
    left.set_title("time, keys in use, CPU caches emptied before", fontsize=9.5)
    lines(right, sizes, {"used": [row[4] for row in rows], "cold (nothing verified yet)": [row[3] for row in rows]})
    right.axhline(1536, color="black", linewidth=0.8, linestyle=(0, (6, 4)))
    right.annotate("1.5 KiB, the limit", (1000, 1536), xytext=(0, 4), textcoords="offset points", fontsize=8)
    right.set_ylabel("bytes of memory per key")
    right.set_title("memory", fontsize=9.5)
    for axes in (left, right):
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("RSA-2048 keys in the ring")


def draw_fleet(figure: Any, content: dict[str, Any]) -> None:
    """Offered and served, and the delay."""
    rows = table(content, "values")
    left, right = figure.subplots(1, 2)
    offered = [row[0] for row in rows]
    lines(left, offered, {"served": [row[1] for row in rows], "offered": offered})
    left.set_ylabel("values served per second")
    left.set_ylim(bottom=0)
    lines(right, offered, {"p50": [row[2] for row in rows], "p99": [row[3] for row in rows]})
    right.set_ylabel("from sending to the handler, ms (log scale)")
    right.set_yscale("log")
    right.set_yticks([20, 50, 100, 200, 500], minor=False)
    right.set_yticks([], minor=True)
    plain_ticks(right.yaxis)
    for axes in (left, right):
        axes.set_xlabel("values offered per second")
        plain_ticks(axes.xaxis)
    left.set_title(f"{content['parameters']['devices']:,} devices, one server process", fontsize=9.5)
    right.set_title("delay, simulated network included", fontsize=9.5)


DRAWINGS: Final[dict[str, Callable[[Any, dict[str, Any]], None]]] = {
    "codec": draw_codec,
    "signing": draw_signing,
    "receive": draw_receive,
    "added_delay": draw_added_delay,
    "scale": draw_scale,
    "fleet": draw_fleet,
}


def draw(path: Path) -> None:
    """Draw one report."""
    content = json.loads(path.read_text())
    figure = plt.figure(figsize=SIZE, layout="constrained")
    figure.suptitle(f"{content['benchmark']}: {content['question']}", fontsize=11, fontweight="bold")
    DRAWINGS[content["benchmark"]](figure, content)
    run = content["run"]
    told = [f"{run['date']}, commit {run['commit'][:7]}{' with changes' * run['modified']}"]
    told += ["a short run"] * content["short"]
    told += [f"{name} {value}" for name, value in content["versions"].items()]
    told += [f"{name}: {number(value)}" for name, value in content["parameters"].items()]
    figure.supxlabel(textwrap.fill("  |  ".join(told), 175), fontsize=6.5, color="#404040")
    target = path.with_suffix(".png")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    # A palette instead of true colours: a quarter of the bytes.
    Image.open(drawn).convert("RGB").quantize(64).save(target, optimize=True)
    print(f"drawn: {target}")


def draw_all(folder: Path) -> None:
    """Draw every report of a folder that can be drawn."""
    for report in sorted(folder.glob("*.json")):
        if report.stem in DRAWINGS:
            draw(report)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
