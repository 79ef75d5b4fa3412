"""Pages as HTML: the templates, and what they are given besides the content of a page."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

from ..extras import missing_named
from . import words
from .visit import Shown, Visit

with missing_named():
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

__all__ = ["StaticFile", "render", "render_plain", "static_files"]

_TYPES: Final = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}

_NAVIGATION: Final = (
    ("/", "Overview", "/ "),
    ("/devices", "Devices", "/devices"),
    ("/joins", "Joins", "/joins"),
    ("/campaigns", "Campaigns", "/campaign"),
    ("/refusals", "Refusals", "/refusals"),
    ("/audit", "Audit", "/audit"),
)
"""The pages that all others lead to: path, title, and how the paths begin of what belongs to them."""


class StaticFile(NamedTuple):
    """A file that browsers keep: its name tells which version it is."""

    content: bytes
    type: str


@cache
def static_files() -> Mapping[str, StaticFile]:
    """Return the style sheet, scripts and icon by the names under which they are served."""
    found = {}
    for each in (files(__package__) / "static").iterdir():
        stem, _, kind = each.name.rpartition(".")
        if kind in _TYPES:
            content = each.read_bytes()
            found[f"{stem}.{hashlib.sha256(content).hexdigest()[:12]}.{kind}"] = StaticFile(content, _TYPES[kind])
    return found


def _static(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return next(
        f"/static/{each}" for each in static_files() if each.startswith(f"{stem}.") and each.endswith(f".{kind}")
    )


def _template(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text("utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_template),
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"static": _static, "navigation": _NAVIGATION, "count": words.count, "Markup": Markup}
    made.filters |= {"shape": words.shape, "iso": words.iso, "short": words.short, "hex": lambda number: f"{number:x}"}
    return made


def render(visit: Visit, shown: Shown, notice: str = "", *, part: bool = False) -> str:
    """Return a page, or with ``part`` only what of it changes while it is looked at."""
    return (
        _environment()
        .get_template(shown.template)
        .render(
            layout="part.html" if part else "layout.html",
            visit=visit,
            notice=notice,
            live=shown.live,
            ago=lambda at: words.ago(at, visit.now),
            left=lambda until: words.left(until, visit.now),
            **shown.content,
        )
    )


def render_plain(template: str, **content: Any) -> str:
    """Return a page for somebody who is not logged in."""
    return _environment().get_template(template).render(layout="bare.html", **content)
