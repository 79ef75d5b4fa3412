"""The site of the documents: it is built without a warning, everything in it can be reached, every link leads on."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import srup

from .test_reference import public_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def load(name):
    """A module of docs/, which is no package."""
    spec = spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_site, site_diagrams, site_links, site_reference = map(
    load, ("check_site", "site_diagrams", "site_links", "site_reference")
)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_is_built_and_whole(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    command += ["-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_site.problems(tmp_path / "site") == []
    anchors = set().union(*(check_site.Page(page).anchors for page in (tmp_path / "site").rglob("*.html")))
    assert set(public_names()) <= anchors


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_begins_with_whom_it_is_for(page):
    if "project" in page.parts or page.stem in ("index", *site_links.others()):
        return  # of the root; not yet in its list
    title, first, _ = page.read_text().split("\n\n", 2)
    assert title.startswith("# ")
    assert first.startswith("For "), first


@pytest.mark.parametrize("name", ["commands", "errors"])
def test_a_page_that_is_written_from_the_code_is_up_to_date(name):
    """``make pages`` after a change; states and metrics have tests of their own."""
    writer = load(name)
    assert writer.PAGE.read_text() == writer.page()


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ('<a href="nowhere.html">', "index.html: nothing is at nowhere.html"),
        ('<a href="other.html#b">', "index.html: no such anchor: other.html#b"),
        ('<a href="#b">', "index.html: no such anchor: #b"),
        ('<img src="https://else.example/a.png">', "index.html: another host is asked: https://else.example/a.png"),
        ('<script src="//else.example/a.js">', "index.html: another host is asked: //else.example/a.js"),
    ],
)
def test_what_is_wrong_with_a_site_is_found(tmp_path, link, problem):
    (tmp_path / "index.html").write_text(f'<a href="other.html#a">{link}')
    (tmp_path / "other.html").write_text('<p id="a"><a href="https://else.example/">')
    assert check_site.problems(tmp_path) == [problem]


def test_a_page_that_no_link_leads_to_is_found(tmp_path):
    (tmp_path / "index.html").write_text("")
    (tmp_path / "other.html").write_text('<a href="index.html">')
    assert check_site.problems(tmp_path) == ["other.html: no link leads there"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[a](../README.md)", "[a](project/readme.md)"),
        ("[a](../README.md#figures)", "[a](project/readme.md#figures)"),
        ("[a](init.md#b) [c](#d) [e](https://f.example/g)", "[a](init.md#b) [c](#d) [e](https://f.example/g)"),
        ("[a](../tests/test_site.py)", "[a](../tests/test_site.py)"),
        ('| <a id="t1"></a>T1 |', "| []{#t1}T1 |"),
        (
            "```text\n[a](../README.md)\n```\n[a](../README.md)",
            "```text\n[a](../README.md)\n```\n[a](project/readme.md)",
        ),
    ],
)
def test_links_are_made_for_the_site(text, shown):
    page = DOCS / "quickstart.md"
    assert site_links.for_site(text, page, page) == shown


def test_links_of_the_root_are_made_for_the_site():
    shown = site_links.for_site("[a](docs/init.md) [b](LICENSE)", ROOT / "README.md", DOCS / "project" / "readme.md")
    assert shown == "[a](../init.md) [b](../../LICENSE)"


def test_every_page_of_the_root_that_is_shown_has_its_place():
    assert {str(path.relative_to(ROOT)) for path in site_links.SHOWN} == {path.name for path in ROOT.glob("*.md")}
    for page in site_links.SHOWN.values():
        assert (DOCS / f"{page}.md").exists()


def test_a_diagram_is_shown_as_a_table():
    diagram = "stateDiagram-v2\n    A: A<br/>waits\n    A --> B: Action, *expire* / done<br/>Data / -"
    assert site_diagrams.rows(diagram) == [("A", "Action, *expire*", "done", "B"), ("A", "Data", "-", "B")]


def test_docstrings_lead_to_the_pages_that_they_cite():
    text = 'see docs/protocol/flows.md#f-1 and docs/extensions.md, "Bound tokens"'
    shown = site_reference.linked(text, "api/codec")
    assert shown == (
        "see `flows <../protocol/flows.html#f-1>`__ and `Bound tokens <../extensions.html#bound-tokens>`__"
    )


def test_the_fields_of_a_message_are_shown():
    assert site_reference.call(srup.Data) == (
        "Data(sequence_id: U64, sender_id: U64, token: Binary, data_id: Text, data: Binary)"
    )
