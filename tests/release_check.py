"""Check that what is checked out can be released: ``make release-check``, which also runs all tests, wheels and docs.

Version, tag, changelog and CITATION.cff must agree, and nothing may be uncommitted. What is wrong goes to standard
error, a line each, and the exit status is 1.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Facts(NamedTuple):
    """What a release is judged by: two texts, the tags of this commit, and what git says is not committed."""

    version: str
    changelog: str
    citation: str
    tags: tuple[str, ...]
    uncommitted: tuple[str, ...]


def problems(facts: Facts) -> list[str]:
    """Return what stands in the way of a release."""
    found = [f"not committed: {file}" for file in facts.uncommitted]
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", facts.version):
        found.append(f"src/srup/__init__.py: {facts.version} is no version of the form 1.2.3 or 1.2.3rc1")
    if (wanted := f"v{facts.version}") not in facts.tags:
        there = ", ".join(facts.tags) or "no tag"
        found.append(f"this commit has {there}: git tag --annotate {wanted}")
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", facts.changelog, re.MULTILINE | re.DOTALL)
    headings = [heading for heading, _ in sections]
    if headings[:1] != ["[Unreleased]"]:
        found.append("CHANGELOG.md: the first section is not [Unreleased]")
    elif re.search(r"^- ", sections[0][1], re.MULTILINE):
        found.append(f"CHANGELOG.md: move what stands under [Unreleased] under [{facts.version}] and the date")
    if not any(re.fullmatch(rf"\[{re.escape(facts.version)}\] - \d{{4}}-\d\d-\d\d", each) for each in headings[1:2]):
        found.append(f"CHANGELOG.md: the second section is not [{facts.version}] - YYYY-MM-DD")
    if f"\nversion: {facts.version}\n" not in facts.citation:
        found.append(f"CITATION.cff: version is not {facts.version}")
    return found


def git(*arguments: str) -> tuple[str, ...]:
    """Return the lines that git prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(done.stdout.splitlines())


def facts() -> Facts:
    """Return how things stand."""
    [version] = re.findall(r'^__version__ = "(.+)"$', (ROOT / "src/srup/__init__.py").read_text(), re.MULTILINE)
    return Facts(
        version,
        (ROOT / "CHANGELOG.md").read_text(),
        (ROOT / "CITATION.cff").read_text(),
        git("tag", "--points-at", "HEAD"),
        git("status", "--porcelain"),
    )


if __name__ == "__main__":
    wrong = problems(facts())
    print(*wrong, sep="\n", file=sys.stderr, end="\n" if wrong else "")
    sys.exit(bool(wrong))
