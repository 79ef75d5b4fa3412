"""State diagrams, which the repository shows as Mermaid draws them, as tables: the site runs no program of others."""

import re
from typing import Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_ARROW: Final = re.compile(r"^ *(\w+) --> (\w+): (.+)$", re.MULTILINE)
HEADINGS: Final = ("state", "what comes", "effect", "next state")


def rows(diagram: str) -> list[tuple[str, ...]]:
    """Return the arrows of a diagram: state, what comes, effect, next state."""
    return [
        (before, *label.rsplit(" / ", 1), after)
        for before, after, labels in _ARROW.findall(diagram)
        for label in labels.split("<br/>")
    ]


class Diagram(SphinxDirective):
    """A table of the arrows of a Mermaid state diagram."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in HEADINGS), cols=len(HEADINGS))
        group += nodes.thead("", _row(HEADINGS))
        group += nodes.tbody("", *map(_row, rows("\n".join(self.content))))
        return [nodes.table("", group)]


def _row(cells: tuple[str, ...]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell.replace("*", ""))) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    """Make a directive of the fences ``mermaid``."""
    app.add_directive("mermaid", Diagram)
    return {"parallel_read_safe": True}
