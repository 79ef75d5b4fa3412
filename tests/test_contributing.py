"""What CONTRIBUTING and SECURITY name is there."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", GUIDE)))


@pytest.mark.parametrize("path", PATHS)
def test_the_guide_names_real_files(path):
    assert (ROOT / path).exists()


def test_the_guide_names_every_marker():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    for marker in options["markers"]:
        assert f"`{marker.partition(':')[0]}`" in GUIDE


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^):#]+)\)", (ROOT / document).read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
