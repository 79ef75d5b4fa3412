"""What the repository cites, a reader of the repository can open: documents, their sections, requirements and threats.

A citation in code or text is a path from the root of the repository, with or without an anchor
(``docs/protocol/flows.md#f-1``) or the title of a section behind it (``docs/extensions.md, "Receipts"``). Threats, and
requirements where the page is clear, are also cited by their ids alone. Links of a page are relative to it.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = ROOT / "docs" / "protocol"
PAGES = {"W": "wire-format.md", "F": "flows.md", "D": "deployed-peers.md", "T": "threats.md"}
FOLDERS = ("src", "tests", "benchmarks", "docs")
SUFFIXES = {".py", ".pyx", ".pxd", ".pxi", ".c", ".h", ".md"}
SOURCES = sorted(
    [
        *(path for pattern in ("*.md", "*.toml", "CMakeLists.txt", "Makefile") for path in ROOT.glob(pattern)),
        *(path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in SUFFIXES),
    ]
)

LINK = re.compile(r"\]\(([^()\s]+)\)")
# In quotes a bare name is part of a path that code puts together.
DOCUMENT = re.compile(r"(?<![\w/.'\"-])((?:[\w.-]+/)*[\w.-]+\.md)\b(?:#([\w-]+)|, \"([^\"]+)\")?")
DESIGN = re.compile(r"\b[A-Z][A-Z_-]{2,}\.md\b|\.{2}/shared\b")
ID = re.compile(r"\b(?:[WFD]-|T)[1-9][0-9]*\b(?!-)")
ROW = re.compile(r"^\| <a id=\"([a-z0-9-]+)\"></a>(\S+) \| (.*) \|$", re.MULTILINE)


def slug(title):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", LINK.sub("", title).strip().lower()).replace(" ", "-")


@cache
def titles(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


@cache
def anchors(page):
    seen = Counter()
    found = set(re.findall(r"<a id=\"([^\"]+)\">", page.read_text()))
    for name in map(slug, titles(page)):
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


@cache
def ids():
    return {row[1] for name in PAGES.values() for row in ROW.findall((PROTOCOL / name).read_text())}


def is_missing(path, anchor, title=None):
    if not path.exists():
        return True
    return bool(anchor and anchor not in anchors(path)) or bool(title and title not in titles(path))


def unresolved(text, path):
    """What the text of this file cites that is not there."""
    wrong = [cited for cited in DESIGN.findall(text) if not (ROOT / cited).is_file()]
    for target in LINK.findall(text) if path.suffix == ".md" else ():
        name, _, anchor = target.partition("#")
        if ":" not in name and is_missing(path.parent / name if name else path, anchor):
            wrong.append(target)
    text = re.sub(r"\s*\n[\s#]*", " ", LINK.sub("]", text))
    wrong += [match[0] for match in DOCUMENT.finditer(text) if is_missing(ROOT / match[1], match[2], match[3])]
    return {*wrong, *(cited for cited in ID.findall(text) if cited not in ids())}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_citation_resolves(path):
    assert not unresolved(path.read_text(), path)


@pytest.mark.parametrize(("prefix", "name"), PAGES.items())
def test_ids_have_no_gaps_and_are_their_anchors(prefix, name):
    """An id is for ever: a new requirement takes the next number, wherever on the page it stands."""
    rows = ROW.findall((PROTOCOL / name).read_text())
    dash = "" if prefix == "T" else "-"
    assert Counter(row[1] for row in rows) == Counter(f"{prefix}{dash}{number}" for number in range(1, len(rows) + 1))
    assert [row[0] for row in rows] == [row[1].lower() for row in rows]
    assert len(rows) >= 18


@pytest.mark.parametrize("prefix", ["W", "F"])
def test_a_requirement_is_one_sentence_and_names_tests(prefix):
    """Where a test proves it; that the files are there is checked with all other links."""
    for _, name, rest in ROW.findall((PROTOCOL / PAGES[prefix]).read_text()):
        sentence, tests = rest.rsplit("|", 1)
        assert "MUST" in sentence or "asks for" in sentence, name
        assert sentence.strip().endswith("."), name
        assert re.fullmatch(r"( \[\w+\]\(\.\./\.\./tests/test_\w+\.py\),?)*\s*", tests), name


@pytest.mark.parametrize(
    "text",
    [
        "see docs/nowhere{md}",
        "see docs/protocol/flows{md}#f-0",
        "see docs/protocol/flows{md}#no-such-section",
        'see docs/extensions{md}, "No such section"',
        'see docs/extensions{md},\n    "No such section"',
        "see WIRE{md}",
        '"OPERATIONS{md}"',
        "see {up}/shared/protocol",
        "see {f}-999",
        "see {t}99",
    ],
)
def test_what_does_not_resolve_is_found(text):
    broken = text.format(md=".md", up="..", f="F", t="T")
    assert len(unresolved(broken, ROOT / "a.py")) == 1


@pytest.mark.parametrize("target", ["nowhere{md}", "security{md}#nothing", "../docs/nothing.py", "#nothing"])
def test_links_that_lead_nowhere_are_found(target):
    assert len(unresolved(f"[here]({target.format(md='.md')})", ROOT / "docs" / "interop.md")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "docs/protocol/flows.md#f-1",
        "(docs/protocol/wire-format.md#types; T1, T18)",
        'docs/extensions.md, "Receipts"',
        "P-256, README.md",
        'docs / "security.md"',
    ],
)
def test_what_resolves_is_let_be(text):
    assert not unresolved(text, ROOT / "a.py")
