"""What all benchmarks share: both twins side by side, the data of the tests, and one table after the run.

``pytest benchmarks --benchmark-only`` measures everything; ``--benchmark-max-time=0.1`` makes it short, and
``--benchmark-json=PATH`` keeps the statistics. Nothing is asserted about time. A module says by the marker
``table(title, unit, reference)`` where its figures go and what they are compared with. pytest-benchmark's own table
is left out unless one of its display options asks for it.
"""

import ctypes
import importlib
import json
import os
import platform
import shlex
from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

import cpuinfo
import cryptography
import pytest
from cryptography.hazmat.backends.openssl import backend as cryptography_backend

import srup
import srup_native
from srup.messages import SCHEMA

VECTORS: Final = Path(__file__).parent.parent / "tests" / "vectors" / "wire-v5.json"
UNITS: Final = {"ns": 1e9, "µs": 1e6, "ms": 1e3}
OWN_DISPLAY: Final = ("benchmark_columns", "benchmark_compare", "benchmark_cprofile", "benchmark_verbose")


class Figure(NamedTuple):
    """One measured case: where it stands in the tables and its seconds per call."""

    title: str
    unit: str
    reference: str
    case: str
    contender: str
    best: float
    median: float


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
    """Give ``run(case, contender, call, *args, calls)``, which measures ``call(*args)`` and returns its last result.

    ``calls`` of them make one iteration of pytest-benchmark, so that its own cost (about 0.1 µs) is spread over them;
    all figures are per call.
    """
    title, unit, reference = request.node.get_closest_marker("table").args

    def run(case: str, contender: str, call: Callable[..., Any], *args: Any, calls: int) -> Any:
        benchmark.group = f"{title}: {case}"
        benchmark.extra_info.update(case=case, contender=contender, reference=reference)

        def iteration() -> Any:
            for _ in repeat(None, calls):
                result = call(*args)
            return result

        result = benchmark(iteration)
        if benchmark.stats:
            stats = benchmark.stats.stats
            stats.data = [seconds / calls for seconds in stats.data]
            benchmark.stats.iterations *= calls
            figure = Figure(title, unit, reference, case, contender, stats.min, stats.median)
            request.config.stash[FIGURES].append(figure)
        return result

    return run


def pytest_configure(config: pytest.Config) -> None:
    """Set what holds for all benchmarks; pytest-benchmark reads it afterwards."""
    config.addinivalue_line("markers", "table(title, unit, reference): where the figures go, what they are set beside")
    config.stash[FIGURES] = []
    config.option.benchmark_disable_gc = True
    if not any(config.getoption(name, None) for name in OWN_DISPLAY):
        config.option.benchmark_quiet = True


def _linked_openssl() -> str:
    """Return the version of the libcrypto behind the extension, as far as it can be asked."""
    found = load_twin("native")
    if found is None:
        return "none (no extension)"
    try:
        version = ctypes.CDLL(found.verify.__file__).OpenSSL_version
    except (OSError, AttributeError):
        return "unknown"
    version.restype = ctypes.c_char_p
    return str(version(0).decode())


def describe() -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "srup": f"{srup.__version__}, {'native and python' if load_twin('native') else 'python only'}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "cryptography": f"{cryptography.__version__} with {cryptography_backend.openssl_version_text()}",
        "extension": _linked_openssl(),
        "CPU": f"{cpuinfo.get_cpu_info().get('brand_raw', platform.machine())}, {os.cpu_count()} cores",
    }


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Put the versions into the JSON, and leave the machine's name out of it."""
    machine_info.pop("node", None)
    machine_info["srup"] = describe()


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave the single timings out; the statistics over them stay."""
    for bench in output_json["benchmarks"]:
        bench["stats"].pop("data", None)


def _number(seconds: float, unit: str) -> str:
    value = seconds * UNITS[unit]
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _cell(figure: Figure | None, base: Figure | None) -> str:
    if figure is None:
        return f"{'-':>9} {'':>9} {'':>6}"
    times = base.best / figure.best if base and base is not figure else 0
    ratio = f"{times:.{2 if times < 10 else 1}f}" if times else ""
    return f"{_number(figure.best, figure.unit):>9} {_number(figure.median, figure.unit):>9} {ratio:>6}"


def _table(figures: list[Figure]) -> list[str]:
    """Return the lines of one table: a row per case, three columns per contender, the reference first."""
    title, unit, reference = figures[0][:3]
    contenders = sorted({figure.contender for figure in figures}, key=lambda name: (name != reference, name))
    cells = {(figure.case, figure.contender): figure for figure in figures}
    cases = list(dict.fromkeys(figure.case for figure in figures))
    width = max(map(len, [title, *cases]))
    lines = [
        "",
        "  ".join([" " * width, *(f"{name:^26}" for name in contenders)]),
        "  ".join([f"{f'{title}, {unit}':<{width}}", *[f"{'best':>9} {'median':>9} {'ratio':>6}"] * len(contenders)]),
    ]
    for case in cases:
        base = cells.get((case, reference))
        lines.append("  ".join([f"{case:<{width}}", *(_cell(cells.get((case, name)), base) for name in contenders)]))
    return [*lines, f"ratio: how many times as fast as {reference}, by the best rounds"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables, what they depend on, and how to get them again."""
    figures = config.stash[FIGURES]
    if not figures:
        return
    terminalreporter.section("benchmarks: time per call")
    for name, value in describe().items():
        terminalreporter.write_line(f"{name:<13} {value}")
    terminalreporter.write_line(f"{'again with':<13} {shlex.join(['pytest', *config.invocation_params.args])}")
    for title in dict.fromkeys(figure.title for figure in figures):
        for line in _table([figure for figure in figures if figure.title == title]):
            terminalreporter.write_line(line.rstrip())
