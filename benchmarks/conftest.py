"""What the benchmarks of calls share: srup on both backends, the data of the tests, and one table after the run.

``python -m pytest benchmarks --benchmark-only`` measures them; ``--short`` makes it short, and ``--results DIR`` keeps
the reports. What is measured are public calls, as an application makes them. Nothing is asserted about time. A module
says by the marker ``table(title, unit, reference)`` where its figures go and what they are compared with, and by
``AIMS`` which ratios matter; its name says which report it belongs to. pytest-benchmark's own table is left out unless
one of its display options asks for it.
"""

import importlib
import json
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import pytest

import srup
import srup_native
from srup.messages import SCHEMA

from .report import Report, describe

VECTORS: Final = Path(__file__).parent.parent / "tests" / "vectors" / "wire-v5.json"
UNITS: Final = {"ns": 1e9, "µs": 1e6, "ms": 1e3}
PACKAGES: Final = ("srup", "srup_native")
SRUP, PURE = "srup", "srup, pure Python"  # the backend that runs here, and the pure one beside it
LIBRARIES: Final = ("msgspec", "cbor2", "protobuf")
QUESTIONS: Final = {
    "codec": "how long from bytes to a message and back, without the signature?",
    "signing": "how long does a signature take?",
}
OWN_DISPLAY: Final = ("benchmark_columns", "benchmark_compare", "benchmark_cprofile", "benchmark_verbose")


class Figure(NamedTuple):
    """One measured case: where it stands in the tables and its seconds per call."""

    benchmark: str
    title: str
    unit: str
    reference: str
    case: str
    contender: str
    best: float
    median: float


class Aim(NamedTuple):
    """What is set beside what: how many times as fast ``contender`` should be as ``beside``, or as slow ``at_most``.

    ``case`` is a case of the table, or what stands before the comma of some.
    """

    case: str
    contender: str
    beside: str
    aim: float | None = None
    at_most: bool = False


AIMS: Final = pytest.StashKey[dict[str, list[Aim]]]()
ABOUT: Final = pytest.StashKey[dict[str, dict[str, str]]]()
FIGURES: Final = pytest.StashKey[list[Figure]]()


@cache
def load_pure() -> ModuleType:
    """Return a second srup beside the one that runs the extension: a copy of its own, on the pure backend."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in PACKAGES}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SRUP_BACKEND", "python")
            return importlib.import_module("srup")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        sys.modules.update(ours)


@pytest.fixture
def api(contender: str) -> ModuleType | None:
    """Give the srup that this contender is, None when it is another library."""
    if contender not in (SRUP, PURE):
        return None
    if contender == SRUP:
        return srup
    if srup.BACKEND == "python":
        pytest.skip("srup itself runs without its extension")
    return load_pure()


class Vectors:
    """The messages and keys of the tests."""

    def __init__(self) -> None:
        content = json.loads(VECTORS.read_text())
        self._messages = {message["id"]: message for message in content["messages"]}
        self._keys: dict[int, str] = {}
        for key in content["keys"].values():
            self._keys.setdefault(key["bits"], key["private_pem"])

    def private_pem(self, bits: int) -> bytes:
        """Return an RSA key of this size."""
        return self._keys[bits].encode()

    def message(self, identifier: str) -> tuple[int, dict[str, Any]]:
        """Return type byte and fields of a message."""
        message = self._messages[identifier]
        fields = {}
        for name, kind in SCHEMA[message["type"]].layout.fields:
            value = message["fields"][name]
            if kind >= srup_native.BINARY:
                value = bytes.fromhex(value)
            fields[name] = value if kind <= srup_native.BINARY else value.decode()
        return message["type"], fields


@pytest.fixture(scope="session")
def vectors() -> Vectors:
    """Give the messages and keys of the tests."""
    return Vectors()


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., Any]:
    """Give ``run(case, contender, call, *args, calls, items=1)``: it measures ``call(*args)``, returns its last result.

    ``calls`` of them make one iteration of pytest-benchmark, so that its own cost (about 0.1 µs) is spread over them;
    all figures are per call, or per item where a call works on several.
    """
    title, unit, reference = request.node.get_closest_marker("table").args
    name = request.path.stem.split("_")[1]
    request.config.stash[AIMS][title] = getattr(request.module, "AIMS", [])
    request.config.stash[ABOUT].setdefault(name, {})[request.module.__name__] = request.module.__doc__.strip()

    def run(case: str, contender: str, call: Callable[..., Any], *args: Any, calls: int, items: int = 1) -> Any:
        benchmark.group = f"{title}: {case}"
        benchmark.extra_info.update(case=case, contender=contender, reference=reference)

        def iteration() -> Any:
            for _ in repeat(None, calls):
                result = call(*args)
            return result

        result = benchmark(iteration)
        if benchmark.stats:
            stats = benchmark.stats.stats
            stats.data = [seconds / (calls * items) for seconds in stats.data]
            benchmark.stats.iterations *= calls * items
            figure = Figure(name, title, unit, reference, case, contender, stats.min, stats.median)
            request.config.stash[FIGURES].append(figure)
        return result

    return run


@pytest.fixture(scope="session")
def short(request: pytest.FixtureRequest) -> bool:
    """Tell whether this is a short run."""
    return bool(request.config.getoption("short"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmarks."""
    group = parser.getgroup("srup benchmarks")
    group.addoption("--short", action="store_true", default=False, help="less material, for rough figures")
    group.addoption("--results", type=Path, default=None, metavar="DIR", help="write <benchmark>.json files there")


def pytest_configure(config: pytest.Config) -> None:
    """Set what holds for all benchmarks; pytest-benchmark reads it afterwards."""
    config.addinivalue_line("markers", "table(title, unit, reference): where the figures go, what they are set beside")
    config.stash[FIGURES] = []
    config.stash[AIMS] = {}
    config.stash[ABOUT] = {}
    config.option.benchmark_disable_gc = True
    if config.option.short:
        config.option.benchmark_max_time = Decimal("0.05")
        config.option.benchmark_min_rounds = 3
    if not any(config.getoption(name, None) for name in OWN_DISPLAY):
        config.option.benchmark_quiet = True


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Put the versions into the JSON, and leave the machine's name out of it."""
    machine_info.pop("node", None)
    machine_info["srup"] = describe(*LIBRARIES)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave the single timings out; the statistics over them stay."""
    for bench in output_json["benchmarks"]:
        bench["stats"].pop("data", None)


def _rows(figures: list[Figure]) -> list[list[object]]:
    """Return the rows of one table: the contenders of a case below each other, the reference first."""
    rows: list[list[object]] = []
    for case in dict.fromkeys(figure.case for figure in figures):
        contenders = [figure for figure in figures if figure.case == case]
        contenders.sort(key=lambda figure: figure.contender != figure.reference)
        base = contenders[0] if contenders[0].contender == contenders[0].reference else None
        for figure in contenders:
            scale = UNITS[figure.unit]
            times = base.best / figure.best if base else None
            rows.append([case, figure.contender, figure.best * scale, figure.median * scale, times])
    return rows


def _add_ratios(report: Report, figures: list[Figure], aims: list[Aim]) -> None:
    """Say of every aim how it was met in this run, as far as both of its sides were measured."""
    best = {(figure.case, figure.contender): figure.best for figure in figures}
    for aim in aims:
        for case in dict.fromkeys(figure.case for figure in figures):
            new, old = best.get((case, aim.contender)), best.get((case, aim.beside))
            if not (case == aim.case or case.startswith(f"{aim.case}, ")) or new is None or old is None:
                continue
            times = new / old if aim.at_most else old / new
            report.ratio(f"{case}: {aim.contender} against {aim.beside}", times, aim.aim, aim.at_most)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print tables and ratios with what they depend on, and keep them where ``--results`` says."""
    figures = config.stash[FIGURES]
    folder = config.getoption("results")
    for name in dict.fromkeys(figure.benchmark for figure in figures):
        own = [figure for figure in figures if figure.benchmark == name]
        report = Report(name, QUESTIONS.get(name, name), LIBRARIES if name == "codec" else ())
        for title in dict.fromkeys(figure.title for figure in own):
            some = [figure for figure in own if figure.title == title]
            columns = ["case", "contender", f"best, {some[0].unit}", "median", f"times as fast as {some[0].reference}"]
            report.table(title, columns, _rows(some))
            _add_ratios(report, some, config.stash[AIMS].get(title, []))
        short = config.option.short
        command = f"python -m pytest benchmarks --benchmark-only{' --short' * short}"
        report.finish("\n\n".join(config.stash[ABOUT][name].values()), command, short)
        terminalreporter.write_line("\n".join(report.lines()))
        if folder is not None:
            report.save(folder / f"{name}.json")
