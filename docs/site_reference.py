"""What the reference takes from the code besides docstrings: the fields of messages, and pages that docstrings cite."""

import os
import re
from pathlib import Path
from typing import Any, Final

from sphinx.application import Sphinx

from srup import Message, wire

_CITED: Final = re.compile(r"docs/(?P<page>[\w/-]+)\.md(?P<anchor>#[\w-]+)?(?:, \"(?P<title>[^\"]+)\")?")
_KINDS: Final = {getattr(wire, name): name for name in ("U8", "U32", "U64", "Binary", "Text", "TextZ")}


def call(message: type[Message]) -> str:
    """Return how a message is made: its fields in the order of the wire, with their kinds."""
    fields = Message.__annotations__ | message.__annotations__
    return f"{message.__name__}({', '.join(f'{name}: {_KINDS[kind]}' for name, kind in fields.items())})"


def linked(text: str, page: str) -> str:
    """Return a line of a docstring for ``page`` of the site, with links to the pages that it cites."""

    def link(cited: re.Match[str]) -> str:
        target = os.path.relpath(f"{cited['page']}.html", Path(page).parent)
        title = cited["title"]
        anchor = f"#{title.lower().replace(' ', '-')}" if title else cited["anchor"] or ""
        return f"`{title or Path(cited['page']).name} <{target}{anchor}>`__"

    return _CITED.sub(link, text)


def _complete(app: Sphinx, _what: str, _name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    if isinstance(thing, type) and issubclass(thing, Message) and thing is not Message:
        lines[:0] = [f"``{call(thing)}``", ""]
    lines[:] = [linked(line, app.env.docname) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Let autodoc show both."""
    app.connect("autodoc-process-docstring", _complete)
    return {"parallel_read_safe": True}
