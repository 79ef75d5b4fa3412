"""What every benchmark hands in: tables, ratios, and what they depend on; printed, and kept as JSON.

The files in ``results/`` have one shape: ``benchmark``, ``question``, ``about``, ``run`` (date, commit, modified,
command), ``company`` (the part of the CPU time that other programs took meanwhile), ``short``, ``versions``,
``parameters``, ``tables`` (title, columns, rows), ``ratios`` (what, value, aim, at_most) and ``notes``. ``plot.py`` and
``figures.py`` take from them and from nothing else.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cryptography
import psutil
from cryptography.hazmat.backends.openssl import backend as cryptography_backend

import srup
from srup.transport import LocalBroker

from .runs import Company, Run

_COMPANY = Company()  # from the beginning of the process: a report may be made when all is measured


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)`` from a fresh process: nothing that ran before has a share in it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def memory() -> int:
    """Return the bytes of this process that are in main memory."""
    return psutil.Process().memory_info().rss


def describe(*libraries: str) -> dict[str, str]:
    """Return what the figures depend on: srup, Python, the crypto libraries, the CPU, and ``libraries`` by name.

    ``mosquitto`` among them is the broker.
    """
    import cpuinfo

    try:
        native = import_module("srup_native._verify").info()
        extension = f"{native['openssl']}; RSA kernel: {native['rsa_kernel_reason'] if native['rsa_kernel'] else 'off'}"
    except ModuleNotFoundError:
        extension = "not built"
    found = {
        "srup": f"{srup.__version__}, {srup.BACKEND} backend",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "cryptography": f"{cryptography.__version__} with {cryptography_backend.openssl_version_text()}",
        "extension": extension,
        "CPU": f"{cpuinfo.get_cpu_info().get('brand_raw', platform.machine())}, {os.cpu_count()} cores",
    }
    for library in libraries:
        try:
            found[library] = _mosquitto() if library == "mosquitto" else version(library)
        except (PackageNotFoundError, srup.TransportError):
            found[library] = "not installed"
    return found


def _mosquitto() -> str:
    """Return the broker's version."""
    return LocalBroker("mosquitto").description.partition(" (")[0].rpartition(" ")[2]


def number(value: object) -> str:
    """Return a figure with three significant digits, anything else as it is."""
    if not isinstance(value, float):
        return "-" if value is None else f"{value:,}" if type(value) is int else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Report:
    """The outcome of one benchmark."""

    def __init__(self, benchmark: str, question: str, libraries: Sequence[str] = (), **parameters: Any) -> None:
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "question": question,
            "about": "",
            "run": None,
            "company": None,
            "short": False,
            "versions": describe(*libraries),
            "parameters": parameters,
            "tables": [],
            "ratios": [],
            "notes": [],
        }

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table; the first column says what a row is about."""
        self.content["tables"].append({"title": title, "columns": [*columns], "rows": [[*row] for row in rows]})

    def ratio(self, what: str, value: float, aim: float | None = None, at_most: bool = False) -> None:
        """Add a ratio; ``aim`` is what it should be at least, or ``at_most``. Nothing fails when it is not."""
        self.content["ratios"].append({"what": what, "value": value, "aim": aim, "at_most": at_most})

    def note(self, text: str) -> None:
        """Add a remark: what was left out, or what the reader has to know."""
        self.content["notes"].append(text)

    def finish(self, about: str | None, command: str, short: bool) -> None:
        """Say what was measured, by which command, and whether only roughly."""
        self.content["about"] = (about or "").strip()
        self.content["run"] = Run.current(command)._asdict()
        self.content["company"] = _COMPANY.share()
        self.content["short"] = short

    def lines(self) -> list[str]:
        """Return the report as text."""
        content, run = self.content, self.content["run"]
        lines = ["", f"== {content['benchmark']}: {content['question']}"]
        lines += [f"{'run':<13} {run['command']}, {run['date']}, commit {run['commit'][:7]}"]
        lines[-1] += " with changes" if run["modified"] else ""
        lines += [f"{'company':<13} other programs took {content['company']:.0%} of the CPU time meanwhile"]
        lines += [f"{name:<13} {value}" for name, value in content["versions"].items()]
        lines += [f"{name:<13} {number(value)}" for name, value in content["parameters"].items()]
        for table in content["tables"]:
            lines += ["", *_grid(table)]
        if content["ratios"]:
            width = max(len(ratio["what"]) for ratio in content["ratios"])
            lines += [""]
            for ratio in content["ratios"]:
                aim = "" if ratio["aim"] is None else f"  (at {'most' if ratio['at_most'] else 'least'} {ratio['aim']})"
                lines.append(f"{ratio['what']:<{width}}  {ratio['value']:>6.2f} x{aim}")
        return [*lines, *content["notes"], *["a short run: rough figures"] * content["short"]]

    def save(self, path: Path) -> None:
        """Write the JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rounded = json.loads(json.dumps(self.content), parse_float=lambda text: float(f"{float(text):.4g}"))
        path.write_text(json.dumps(rounded, indent=1, ensure_ascii=False) + "\n")


def _grid(table: dict[str, Any]) -> list[str]:
    cells = [[number(cell) for cell in row] for row in table["rows"]]
    widths = [max(map(len, column)) for column in zip(table["columns"], *cells, strict=True)]
    left = [not any(isinstance(cell, int | float) for cell in column) for column in zip(*table["rows"], strict=True)]
    left[0] = True
    lines = [table["title"]]
    for row in [table["columns"], *cells]:
        padded = [f"{c:<{w}}" if is_left else f"{c:>{w}}" for c, w, is_left in zip(row, widths, left, strict=True)]
        lines.append(f"  {'  '.join(padded)}".rstrip())
    return lines


def main(run: Callable[[bool], Report | None], description: str | None) -> None:
    """Run a benchmark as a program: ``--short`` for a rough idea in seconds, ``--json FILE`` to keep the figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="smaller and rougher, within seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    arguments = parser.parse_args()
    report = run(arguments.short)
    if report is None:
        return
    program = Path(sys.argv[0]).stem
    report.finish(description, f"python -m benchmarks.{program}{' --short' * arguments.short}", arguments.short)
    print("\n".join(report.lines()), flush=True)
    if arguments.json:
        report.save(arguments.json)
