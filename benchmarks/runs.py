"""Where results come from: one run, its date and commit, and what else the machine did meanwhile.

``python -m benchmarks`` starts a run and tells it by the environment, so that all its results have it; a benchmark that
is started alone is a run of its own.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Self

import psutil

ROOT: Final = Path(__file__).parent.parent
VARIABLE: Final = "SRUP_BENCHMARK_RUN"
MEASURED: Final = (".", ":!*.md", ":!benchmarks/results")  # what figures depend on


class Run(NamedTuple):
    """What all results of one run have in common; ``modified`` says that the tree was not as committed."""

    date: str
    commit: str
    modified: bool
    command: str

    @classmethod
    def begin(cls, command: str) -> Self:
        """Return a run that begins now, in UTC."""
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(date, _git("rev-parse", "HEAD") or "unknown", bool(_git("status", "--short", *MEASURED)), command)

    @classmethod
    def current(cls, command: str) -> Self:
        """Return the run that this process belongs to, or one of its own that begins now."""
        told = os.environ.get(VARIABLE)
        return cls(**json.loads(told)) if told else cls.begin(command)

    def tell(self) -> None:
        """Let the processes that this one starts belong to the run."""
        os.environ[VARIABLE] = json.dumps(self._asdict())


def _git(*arguments: str) -> str:
    """Return what git says, nothing where it is missing or this is no clone."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Company:
    """What other programs take of the machine's CPUs from now on."""

    def __init__(self) -> None:
        self._before = cpu_seconds()

    def share(self) -> float:
        """Return it as a part of 1."""
        total, busy, own = (after - before for after, before in zip(cpu_seconds(), self._before, strict=True))
        return max(0.0, busy - own) / total if total else 0.0


def cpu_seconds() -> Sequence[float]:
    """Return the CPU seconds that there have been, those that were used, and those that we have used."""
    times = psutil.cpu_times()._asdict()
    total = sum(seconds for kind, seconds in times.items() if not kind.startswith("guest"))  # they are in user, too
    return total, total - times["idle"] - times.get("iowait", 0.0), sum(os.times()[:4])
