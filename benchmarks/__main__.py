"""Run every benchmark: ``python -m benchmarks`` is one run, whose results, plots and figures replace those before it.

A run is kept as a whole or not at all. ``--short`` measures roughly, within two minutes, shows that the figures can be
had from its results, and keeps nothing. ``--results FOLDER`` keeps results and plots there and leaves all else alone.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from srup import TransportError
from srup.transport import LocalBroker

from . import figures, plot
from .runs import ROOT, Run

PROGRAMS: Final = [name for name in figures.REPORTS if name not in ("codec", "signing")]  # those are pytest's
PYTEST: Final = ("pytest", "benchmarks", "-q", "--timeout=0", "--benchmark-only", "-p", "no:cacheprovider")


def measure(folder: Path, short: bool) -> None:
    """Run all benchmarks, each in processes of its own, and leave their results in a folder."""
    option = ["--short"] if short else []
    commands = [[*PYTEST, f"--results={folder}", *option]]
    commands += [[f"benchmarks.{name}", "--json", str(folder / f"{name}.json"), *option] for name in PROGRAMS]
    for command in commands:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
        print(f"\n-- {command[0]} took {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Run them, and keep what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="rough figures, within two minutes; nothing is kept")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="keep results and plots there, nowhere else")
    arguments = parser.parse_args()
    Run.begin("make bench-short" if arguments.short else "make bench").tell()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            measure(folder, arguments.short)
        except subprocess.CalledProcessError as error:
            sys.exit(f"nothing is kept: {error.cmd[2]} failed with exit code {error.returncode}")
        print(f"-- all took {time.monotonic() - began:.0f} s", flush=True)
        plot.draw_all(folder)
        if arguments.results:
            shutil.copytree(folder, arguments.results, dirs_exist_ok=True)
        try:
            LocalBroker("mosquitto")
        except TransportError as error:
            print(f"no figures, because what goes through Mosquitto was not measured: {error}")
            return
        try:
            figures.blocks(folder)
        except figures.FiguresError as error:
            sys.exit(f"no figures: {error}")
        if arguments.short or arguments.results:
            return
        shutil.rmtree(ROOT / figures.RESULTS, ignore_errors=True)
        shutil.copytree(folder, ROOT / figures.RESULTS)
    figures.write()


if __name__ == "__main__":
    main()
