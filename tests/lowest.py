"""Print pip constraints that pin what srup needs, to be built and with all extras, to the lowest versions in pyproject.

Usage: ``python tests/lowest.py > lowest.txt``, and then
``pip install --constraint lowest.txt --build-constraint lowest.txt '.[all]'`` (pip 25.3 or newer).
"""

import re
import tomllib
from itertools import chain
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)>=(?P<floor>[\d.]+)(; (?P<where>.+))?")


def lowest() -> list[str]:
    """Return ``name==version``, and the marker, for every dependency; ValueError when one has not just a floor."""
    extras = PROJECT["optional-dependencies"].values()
    lines = set(chain(PYPROJECT["build-system"]["requires"], PROJECT["dependencies"], *extras))
    pins = []
    for line in sorted(lines):
        if line.startswith(f"{PROJECT['name']}["):
            continue  # one of our own extras
        if (found := REQUIREMENT.fullmatch(line)) is None:
            raise ValueError(f"pyproject.toml: {line!r} is not of the form name>=version")
        pins.append(f"{found['name']}=={found['floor']}" + (f"; {found['where']}" if found["where"] else ""))
    return pins


if __name__ == "__main__":
    print(*lowest(), sep="\n")
