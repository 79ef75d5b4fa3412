"""What all benchmarks share: both twins side by side, the data of the tests, and one table after the run.

``pytest benchmarks --benchmark-only`` measures everything; ``--short --benchmark-max-time=0.1`` makes it short, and
``--results DIR`` keeps the reports. Nothing is asserted about time. A module says by the marker ``table(title, unit,
reference)`` where its figures go and what they are compared with, and by ``AIMS`` which ratios matter; its name says
which report it belongs to. pytest-benchmark's own table is left out unless one of its display options asks for it.
"""

import importlib
import json
from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import srup_native
from srup.messages import SCHEMA

from .report import Report, describe

VECTORS: Final = Path(__file__).parent.parent / "tests" / "vectors" / "wire-v5.json"
UNITS: Final = {"ns": 1e9, "µs": 1e6, "ms": 1e3}
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

    ``case`` is a case of the table, or how a case begins.
    """

    case: str
    contender: str
    beside: str
    aim: float
    at_most: bool = False


AIMS: Final = pytest.StashKey[dict[str, list[Aim]]]()
FIGURES: Final = pytest.StashKey[list[Figure]]()


class Twin:
    """One backend's modules, with record classes of its own derived from the message table of ``srup``."""

    def __init__(self, name: str, suffix: str) -> None:
        self.name = name
        self.codec: Any = importlib.import_module(f"srup_native._codec{suffix}")
        self.verify: Any = importlib.import_module(f"srup_native._verify{suffix}")
        self.schema = self.codec.Schema()
        for message in SCHEMA[:]:
            layout = message.layout
            slots = {"__slots__": ()} if "__slots__" in vars(message) else {}
            cls: Any = type(layout.name, (self.codec.Record,), slots)
            cls.bind(self.codec.Layout(layout.type, layout.name, layout.body, layout.padding))
            self.schema.add(cls)


@cache
def load_twin(name: str) -> Twin | None:
    """Return the twin of that name, None when the extension was not built; one that does not load is an error."""
    try:
        return Twin(name, "" if name == "native" else "_py")
    except ModuleNotFoundError as error:
        if error.name not in ("srup_native._codec", "srup_native._verify"):
            raise
        return None


@pytest.fixture(scope="session")
def twin() -> Callable[[str], Twin]:
    """Give a function from "python" or "native" to its Twin; it skips the test when that one was not built."""

    def find(name: str) -> Twin:
        found = load_twin(name)
        if found is None:
            pytest.skip("srup was built without its extension")
        return found

    return find


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
    config.option.benchmark_disable_gc = True
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
            if not (case == aim.case or case.startswith(f"{aim.case} ")) or new is None or old is None:
                continue
            times = new / old if aim.at_most else old / new
            if aim.case.startswith("decode") and case.startswith("decode and"):
                report.ratio(f"{case}: {aim.contender} against {aim.beside}", times)
            else:
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
        if config.getoption("short"):
            report.note("a short run: rough figures")
        terminalreporter.write_line("\n".join(report.lines()))
        if folder is not None:
            report.save(folder / f"{name}.json")
