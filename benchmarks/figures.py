"""The figures in README.md and docs/benchmarks.md: from the result files of one run, and from nothing else.

``python -m benchmarks.figures`` writes them between the lines ``<!-- figures: begin -->`` and ``<!-- figures: end -->``
of each; ``--check`` changes nothing and ends with exit code 1 when something else stands there. FIGURES says which
figures README has, and where in the results they come from.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from .report import number
from .runs import ROOT

RESULTS: Final = "benchmarks/results"
REPORTS: Final = ("codec", "signing", "receive", "durable", "added_delay", "scale", "store", "fleet")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
QUIET: Final = 0.15  # the part of the CPU time that other programs may take before figures count as disturbed
WIDTH: Final = 120
NOTHING: Final = "No results are kept. `make bench` measures everything and writes the figures here."


class FiguresError(ValueError):
    """The files do not give the figures, or a document has no place for them."""


class Cell(NamedTuple):
    """Where a number stands: the file, how the table's title begins, the first cells of the row, and the column."""

    file: str
    table: str
    row: tuple[str, ...]
    column: str


class Figure(NamedTuple):
    """A row of README's table: ours and theirs, in one case or several; ``added`` is a time in ms to tell as well."""

    what: str
    beside: str
    kind: Literal["time", "rate"]
    pairs: tuple[tuple[Cell, Cell], ...]
    added: Cell | None = None


def _codec(case: str) -> tuple[tuple[Cell, Cell]]:
    row = f"{case}, Initiate of 406 bytes"
    return ((Cell("codec", "codec", (row, "srup"), "best, ns"), Cell("codec", "codec", (row, "msgspec"), "best, ns")),)


def _signing(case: str) -> tuple[tuple[Cell, Cell]]:
    ours, theirs = (Cell("signing", "signing", (case, who), "best, µs") for who in ("srup", "cryptography"))
    return ((ours, theirs),)


def _many(batch: str, ours: str, theirs: str) -> tuple[tuple[Cell, Cell]]:
    row = f"1,000 keys, batches of {batch}"
    left, right = (Cell("signing", "many RSA-2048", (row, who), "best, µs") for who in (ours, theirs))
    return ((left, right),)


def _through(file: str, ours: str, theirs: str) -> tuple[tuple[Cell, Cell], ...]:
    ways = ("backlog", "live")
    return tuple(
        (Cell(file, "through", (f"{way}, {ours}",), "median"), Cell(file, "through", (f"{way}, {theirs}",), "median"))
        for way in ways
    )


def _delay(way: str, column: str = "median, ms") -> Cell:
    return Cell("added_delay", "a command", (way,), column)


FIGURES: Final = (
    Figure(
        "`verify_many`, 1,000 RSA-2048 keys, batches of 256, one thread",
        "a Python loop over `cryptography` with loaded keys",
        "time",
        _many("256", "verify_many", "cryptography"),
    ),
    Figure(
        "the same without AVX512-IFMA (`SRUP_RSA_KERNEL=off`)",
        "the same loop",
        "time",
        _many("256", "kernel off", "cryptography"),
    ),
    Figure(
        "`verify_many` with two threads, batches of 1,024",
        "one thread",
        "time",
        _many("1,024", "2 threads", "verify_many"),
    ),
    Figure(
        "`decode(wire).verify(key)`, RSA-2048, bytes to a message",
        "`cryptography` verifying the signature alone",
        "time",
        _signing("verify rsa2048"),
    ),
    Figure(
        "the same in pure Python, 1,000 keys",
        "`cryptography` verifying the signatures alone, 1,000 keys",
        "time",
        _many("256", "srup, pure Python", "cryptography, verify alone"),
    ),
    Figure(
        "`encode(message, key)`, RSA-2048, a message to bytes",
        "`cryptography` making the signature alone",
        "time",
        _signing("sign rsa2048"),
    ),
    Figure("`decode(wire)`: the form checked, no value made", "msgspec, making all values", "time", _codec("decode")),
    Figure(
        "`decode(wire).verify(key)` without the signature's check: all values made",
        "msgspec, making all values",
        "time",
        _codec("decode and open"),
    ),
    Figure("`Initiate(...)`, every value checked", "a msgspec Struct, no value checked", "time", _codec("construct")),
    Figure("`encode(message, key)`, the signature there already", "msgspec encoding", "time", _codec("encode")),
    Figure(
        "messages through Mosquitto, verified before they are acknowledged",
        "paho that only acknowledges",
        "rate",
        _through("receive", "srup", "plain"),
    ),
    Figure(
        "the same with a server and SQLite, durable before they are acknowledged",
        "paho that only acknowledges",
        "rate",
        _through("durable", "durable", "plain"),
    ),
    Figure(
        "the same",
        "the same server without group commit, `cryptography` one by one",
        "rate",
        _through("durable", "durable", "one by one"),
    ),
    Figure(
        "a command and its answer over MQTT, Ed25519",
        "9 bytes and an answer, unsigned, in the client's callbacks",
        "time",
        ((_delay("srup ed25519"), _delay("unsigned")),),
        _delay("srup ed25519", "added, ms"),
    ),
    Figure(
        "the same, RSA-2048",
        "the same",
        "time",
        ((_delay("srup rsa2048"), _delay("unsigned")),),
        _delay("srup rsa2048", "added, ms"),
    ),
)


def load(folder: Path) -> dict[str, Any]:
    """Return the reports of a folder by name, none of an empty one; raise FiguresError unless they are one run's."""
    reports: dict[str, Any] = {}
    if not any(folder.glob("*.json")):
        return reports
    for name in REPORTS:
        try:
            reports[name] = json.loads((folder / f"{name}.json").read_text())
        except FileNotFoundError:
            raise FiguresError(f"{folder / name}.json is missing; `make bench` makes it") from None
    runs = {name: report.get("run") for name, report in reports.items()}
    if (first := runs[REPORTS[0]]) is None:
        raise FiguresError(
            f"{folder / REPORTS[0]}.json does not say which run it is of; `make bench` measures all again"
        )
    for name, run in runs.items():
        if run != first:
            raise FiguresError(
                f"{name}.json and {REPORTS[0]}.json in {folder} are not of one run; `make bench` measures all again"
            )
    return reports


def find(reports: dict[str, Any], cell: Cell) -> float:
    """Return the number that stands there."""
    for table in reports[cell.file]["tables"]:
        if table["title"].startswith(cell.table) and cell.column in table["columns"]:
            for row in table["rows"]:
                if tuple(row[: len(cell.row)]) == cell.row:
                    return float(row[table["columns"].index(cell.column)])
    raise FiguresError(f'{cell.file}.json has no "{cell.column}" of {" / ".join(cell.row)}; FIGURES asks for it')


def ratio(kind: str, values: Sequence[float]) -> str:
    """Return ours / theirs in words: of rates, or of times as so many times as fast, or as long."""
    words = "x its rate"
    if kind == "time":
        faster = max(values) <= 1
        words = "x as fast" if faster else "x as long"
        values = [1 / value for value in values] if faster else values
    ends = dict.fromkeys(_rounded(value) for value in (min(values), max(values)))
    return f"{' to '.join(ends)} {words}"


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value < 2 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def origin(reports: dict[str, Any]) -> str:
    """Return when, of what and with what the figures were measured, and what they are not good for."""
    run = reports[REPORTS[0]]["run"]
    versions: dict[str, str] = {}
    for name, report in reports.items():
        for key, value in report["versions"].items():
            if versions.setdefault(key, value) != value:
                raise FiguresError(f"{name}.json was measured with {key} {value}, another one with {versions[key]}")
    commit = f"commit `{run['commit'][:7]}`{' with changes' * run['modified']}"
    told = f"Ratios of one run of `{run['command']}` on {run['date'][:10]}: {commit}, {versions.pop('CPU')}; "
    told += "; ".join(f"{key} {value}" for key, value in versions.items()) + "."
    disturbed = max(report["company"] or 0.0 for report in reports.values())
    doubts = ["a short run, with fewer keys and rounds"] if any(report["short"] for report in reports.values()) else []
    if disturbed > QUIET:
        doubts.append(f"other programs took up to {disturbed:.0%} of the CPU time meanwhile")
    if doubts:
        told += f" **Rough figures: {'; '.join(doubts)}.**"
    return _filled(told)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _markdown(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [[*columns], *([number(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def overview(reports: dict[str, Any]) -> str:
    """Return README's block."""
    rows = []
    for figure in FIGURES:
        values = [find(reports, ours) / find(reports, theirs) for ours, theirs in figure.pairs]
        added = f" (+{_rounded(find(reports, figure.added))} ms)" if figure.added else ""
        rows.append([figure.what, figure.beside, ratio(figure.kind, values) + added])
    return f"{_markdown(('what', 'compared with', 'ratio'), rows)}\n\n{origin(reports)}"


def whole(reports: dict[str, Any]) -> str:
    """Return the block of docs/benchmarks.md: of every benchmark what it measures, its plot and its tables."""
    parts = [origin(reports)]
    for name, report in reports.items():
        parts += [f"## {name}: {report['question']}", report["about"].replace("``", "`")]
        if report["parameters"]:
            parts.append(_filled("; ".join(f"{key}: {number(value)}" for key, value in report["parameters"].items())))
        parts.append(f"![{name}](../benchmarks/results/{name}.png)" if name not in _UNDRAWN else "")
        for table in report["tables"]:
            parts.append(f"<details><summary>{table['title']}</summary>")
            parts += [_markdown(table["columns"], table["rows"]), "</details>"]
        parts += [f"{note[0].upper()}{note[1:]}." for note in report["notes"]]
    return "\n\n".join(part for part in parts if part)


_UNDRAWN: Final = ("durable", "store")
DOCUMENTS: Final = {"README.md": overview, "docs/benchmarks.md": whole}


def blocks(folder: Path) -> dict[str, str]:
    """Return what stands between the marks, by document."""
    reports = load(folder)
    return {document: make(reports) if reports else NOTHING for document, make in DOCUMENTS.items()}


def compose(text: str, block: str, document: str) -> str:
    """Return a document with this block between its marks."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FiguresError(f"{document} has no lines {BEGIN} and {END}")
    return f"{before}{begin}{block}\n{end}{after}"


def write(root: Path = ROOT) -> None:
    """Bring the documents up to date."""
    for document, block in blocks(root / RESULTS).items():
        path = root / document
        path.write_text(compose(path.read_text(), block, document))


def check(root: Path = ROOT) -> None:
    """Raise FiguresError when a document says something else than the results."""
    for document, block in blocks(root / RESULTS).items():
        text = (root / document).read_text()
        if compose(text, block, document) != text:
            raise FiguresError(
                f"{document} does not say what the results say; `python -m benchmarks.figures` brings it up to date"
            )


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Write the figures, or check them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a document is out of date")
    try:
        (check if parser.parse_args(arguments).check else write)(root)
    except FiguresError as error:
        sys.exit(f"figures: {error}")


if __name__ == "__main__":
    main()
