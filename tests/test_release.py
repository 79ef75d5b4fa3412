"""What stands in the way of a release is found, and what describes the project agrees with it."""

import re
from pathlib import Path

import pytest
import yaml

import srup

from .release_check import ROOT, Facts, facts, problems

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n\n### Added\n\n- Something.\n"
GOOD = Facts("1.2.3", CHANGELOG, "title: srup\nversion: 1.2.3\n", ("v1.2.3",), ())


def test_a_release_that_is_ready():
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"uncommitted": (" M README.md",)}, "not committed:  M README.md"),
        ({"tags": ()}, "this commit has no tag: git tag --annotate v1.2.3"),
        ({"tags": ("v1.2.2",)}, "this commit has v1.2.2: git tag --annotate v1.2.3"),
        (
            {"changelog": CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n")},
            "CHANGELOG.md: move what stands under [Unreleased] under [1.2.3] and the date",
        ),
        (
            {"changelog": CHANGELOG.replace("Unreleased", "2.0.0")},
            "CHANGELOG.md: the first section is not [Unreleased]",
        ),
        (
            {"changelog": CHANGELOG.replace(" - 2026-12-01", "")},
            "CHANGELOG.md: the second section is not [1.2.3] - YYYY-MM-DD",
        ),
        ({"citation": "version: 1.2.30\n"}, "CITATION.cff: version is not 1.2.3"),
    ],
)
def test_what_stands_in_the_way_is_named(changes, found):
    assert problems(GOOD._replace(**changes)) == [found]


def test_a_version_has_three_numbers():
    [first, *_] = problems(GOOD._replace(version="1.2"))
    assert first == "src/srup/__init__.py: 1.2 is no version of the form 1.2.3 or 1.2.3rc1"


@pytest.mark.process
def test_the_facts_are_read():
    found = facts()
    assert found.version == srup.__version__
    assert "## [Unreleased]" in found.changelog


def test_the_citation_is_of_this_version():
    """Its form is Citation File Format 1.2.0."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == srup.__version__
    assert {"message", "title", "authors"} <= citation.keys()
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year"} <= paper.keys()
        assert "doi" in paper or paper["url"].startswith("https://")


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_whole(path: Path):
    template = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert template == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= template.keys()
    ids = [part["id"] for part in template["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z]+", each) for each in ids)
