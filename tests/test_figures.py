"""The figures in README and docs/benchmarks.md are what the kept results say, and the results are of one run."""

import json
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import figures  # noqa: E402
from benchmarks.report import Report  # noqa: E402
from benchmarks.runs import Run, cpu_seconds  # noqa: E402

sys.path.remove(str(ROOT))

FILES = sorted({figure.pairs[0][0].file for figure in figures.FIGURES})
RUN = Run("2026-11-30 12:00:00 UTC", "0123456789abcdef", False, "make bench")


def add_cells(report: dict[str, Any], cells: dict[figures.Cell, float]) -> None:
    """Add a table for each cell that is of this report."""
    for cell, value in cells.items():
        if cell.file == report["benchmark"]:
            row = [*cell.row, value]
            columns = [*map(str, range(len(cell.row))), cell.column]
            report["tables"].append({"title": cell.table, "columns": columns, "rows": [row]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose documents say what its results say: ours always takes 1, theirs 2."""
    monkeypatch.setattr("benchmarks.report.describe", lambda *_: {"srup": "1.2.3", "CPU": "a CPU, 2 cores"})
    monkeypatch.setenv("SRUP_BENCHMARK_RUN", json.dumps(RUN._asdict()))
    results = tmp_path / figures.RESULTS
    cells: dict[figures.Cell, float] = {}
    for figure in figures.FIGURES:
        for ours, theirs in figure.pairs:
            cells |= {theirs: 2.0}
            cells.setdefault(ours, 1.0)
        if figure.added:
            cells[figure.added] = 0.25
    for name in figures.REPORTS:
        report = Report(name, "how long?", seed=1)
        report.finish("What ``this`` measures.", "alone", short=False)
        report.content["company"] = 0.01
        add_cells(report.content, cells)
        report.save(results / f"{name}.json")
    for document in figures.DOCUMENTS:
        path = tmp_path / document
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"before\n{figures.BEGIN}\n{figures.END}\nafter\n")
    figures.write(tmp_path)
    return tmp_path


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit one result file."""
    path = folder / figures.RESULTS / f"{name}.json"
    report = json.loads(path.read_text())
    edit(report)
    path.write_text(json.dumps(report))


def set_first_number(report: dict[str, Any]) -> None:
    """Make the first number of a report another one."""
    report["tables"][0]["rows"][0][-1] = 1234.0


def test_documents_and_results_of_this_repository_agree() -> None:
    figures.check()


def test_what_was_written_is_in_order(folder: Path) -> None:
    figures.check(folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| 2.0 x as fast |" in text
    for told in ("make bench", "2026-11-30", "`0123456`", "a CPU, 2 cores", "srup 1.2.3"):
        assert told in text
    assert "What `this` measures." in (folder / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_changed_result_is_seen(folder: Path, name: str) -> None:
    change(folder, name, set_first_number)
    with pytest.raises(figures.FiguresError, match=r"README.md does not say what the results say"):
        figures.check(folder)


@pytest.mark.parametrize("document", figures.DOCUMENTS)
def test_a_changed_document_is_seen(folder: Path, document: str) -> None:
    path = folder / document
    path.write_text(path.read_text().replace("commit `0123456`", "commit `89abcde`"))
    with pytest.raises(figures.FiguresError, match=rf"{document} does not say"):
        figures.check(folder)


def test_what_stands_beside_the_figures_is_free(folder: Path) -> None:
    path = folder / "README.md"
    path.write_text(f"new\n{path.read_text()}new\n")
    figures.check(folder)
    path.write_text(path.read_text().replace(figures.END, ""))
    with pytest.raises(figures.FiguresError, match=r"README.md has no lines"):
        figures.check(folder)


@pytest.mark.parametrize("key", RUN._fields)
def test_results_of_two_runs_are_refused(folder: Path, key: str) -> None:
    change(folder, "durable", lambda report: report["run"].update({key: "another"}))
    with pytest.raises(figures.FiguresError, match=r"durable.json and codec.json .* not of one run"):
        figures.check(folder)


def test_results_of_two_environments_are_refused(folder: Path) -> None:
    change(folder, "fleet", lambda report: report["versions"].update(srup="3.2.1"))
    with pytest.raises(figures.FiguresError, match=r"fleet.json was measured with srup 3.2.1"):
        figures.check(folder)


def test_a_missing_result_is_named(folder: Path) -> None:
    (folder / figures.RESULTS / "scale.json").unlink()
    with pytest.raises(figures.FiguresError, match=r"scale.json is missing"):
        figures.check(folder)


def test_results_that_do_not_say_of_which_run_they_are_are_refused(folder: Path) -> None:
    change(folder, "codec", lambda report: report.pop("run"))
    with pytest.raises(figures.FiguresError, match=r"codec.json does not say which run"):
        figures.check(folder)


def test_a_figure_that_was_not_measured_is_named(folder: Path) -> None:
    change(folder, "receive", lambda report: report["tables"].clear())
    with pytest.raises(figures.FiguresError, match=r'receive.json has no "median" of backlog, srup'):
        figures.check(folder)


def test_without_results_there_are_no_figures(folder: Path) -> None:
    for path in (folder / figures.RESULTS).iterdir():
        path.unlink()
    with pytest.raises(figures.FiguresError, match=r"README.md does not say"):
        figures.check(folder)
    figures.write(folder)
    assert figures.NOTHING in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("doubt", "told"),
    [
        ({"short": True}, "a short run"),
        ({"company": 0.4}, "other programs took up to 40% of the CPU time"),
    ],
)
def test_rough_figures_are_called_so(folder: Path, doubt: dict[str, Any], told: str) -> None:
    assert "Rough figures" not in (folder / "README.md").read_text()
    change(folder, "receive", lambda report: report.update(doubt))
    text = " ".join(figures.blocks(folder / figures.RESULTS)["README.md"].split())
    assert f"**Rough figures: {told}" in text


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        ("time", [0.125], "8.0 x as fast"),
        ("time", [2.5], "2.5 x as long"),
        ("time", [1.004], "1.00 x as long"),
        ("time", [0.5, 0.25], "2.0 to 4.0 x as fast"),
        ("rate", [0.961, 1.032], "0.96 to 1.03 x its rate"),
        ("rate", [12.4, 12.3], "12 x its rate"),
    ],
)
def test_ratios_in_words(kind: str, values: list[float], told: str) -> None:
    assert figures.ratio(kind, values) == told


def test_cpu_time_of_all_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(100, 20, 30, 400, 50, 6, 7, 8, 90, 9))
    total, busy, own = cpu_seconds()
    assert (total, busy, own > 0) == (621, 171, True)


def test_checking_as_a_program(folder: Path) -> None:
    figures.main(["--check"], folder)
    change(folder, "codec", set_first_number)
    with pytest.raises(SystemExit, match=r"figures: README.md does not say .* `python -m benchmarks.figures`"):
        figures.main(["--check"], folder)
    figures.main([], folder)
    figures.main(["--check"], folder)
