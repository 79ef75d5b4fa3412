"""The reference: each public name stands in it once, in the place of its module, and says what it is."""

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

import srup
from srup.errors import ADVICE

DOCS = Path(__file__).parents[1] / "docs"
PUBLIC = (
    *("srup", "srup.messages", "srup.aio", "srup.fleet", "srup.campaign", "srup.store", "srup.transport"),
    *("srup.monitor", "srup.keyex", "srup.session", "srup.simulation"),
)
"""The modules whose ``__all__`` is public; what is in ``srup`` too is documented there."""

PAGES = {"srup": ("codec", "messages", "keys", "agents", "fleet", "store")}
"""Where the names of a module stand, if not on the page with the name of the module."""

ENTRY = re.compile(r"^\.\. (?:auto|py:)(?:class|function|exception|data):: (\S+)$", re.MULTILINE)


def entries(page):
    return ENTRY.findall(page.read_text())


def public_names():
    """Each public name once, as ``module.name``: that of the first module which has the thing."""
    found = {}
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            thing = getattr(module, name)
            own = getattr(thing, "__qualname__", None) == name  # and no second name, such as Orders
            place = (thing.__module__ if own else module.__name__.partition(".")[0], name)
            found.setdefault(place, (f"{module.__name__}.{name}", thing))
    return dict(found.values())


NAMES = public_names()


def test_each_public_name_is_documented_once():
    documented = Counter(entry for page in DOCS.rglob("*.md") for entry in entries(page))
    assert set(documented) == set(NAMES)
    assert {name for name, count in documented.items() if count > 1} == set()


@pytest.mark.parametrize("module", PUBLIC)
def test_a_name_stands_on_the_page_of_its_module(module):
    short = module.rpartition(".")[2]
    allowed = {DOCS / "api" / f"{page}.md" for page in PAGES.get(module, (short,))} | {DOCS / "errors.md"}
    for page in DOCS.rglob("*.md"):
        for entry in entries(page):
            if entry.rpartition(".")[0] == module:
                assert page in allowed, entry


@pytest.mark.parametrize("name", [name for name, thing in NAMES.items() if callable(thing)])
def test_a_public_name_says_what_it_is(name):
    """A contract in a line, which is a sentence, for the name and for all that is public in a class."""
    thing = NAMES[name]
    if name == "srup.messages.DataKind":
        return  # a Literal, which has no docstring of its own
    said = {name: inspect.getdoc(thing)}
    if inspect.isclass(thing):
        for own, value in vars(thing).items():
            if not own.startswith("_") and (inspect.isfunction(value) or isinstance(value, (property, classmethod))):
                said[f"{name}.{own}"] = inspect.getdoc(value)
    assert not said[name].startswith("See "), name
    for what, text in said.items():
        assert text, what
        assert re.search(r"[.:?)]$", text.split("\n\n")[0].strip()), (what, text)


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_of_the_reference_begins_with_whom_it_is_for(page):
    assert page.read_text().splitlines()[2].startswith("For ")


def test_every_error_has_advice():
    assert set(ADVICE) == {getattr(srup, name) for name in srup.errors.__all__}
    for reason, remedy in ADVICE.values():
        assert reason.endswith(".")
        assert remedy.endswith(".")
