"""What the site does with links that are made for readers of the repository.

A page of the root, such as README.md, stands in the site under ``project/``. Files outside the documents are copied
into the site. Anchors of tables, which are HTML in the repository, become anchors of the site. Pages that no list names
stand at the end of the list which has the line ``(others)``.
"""

import os
import re
from pathlib import Path
from typing import Final

from sphinx.application import Sphinx

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
SHOWN: Final = {
    ROOT / "README.md": "project/readme",
    ROOT / "CHANGELOG.md": "project/changelog",
    ROOT / "CONTRIBUTING.md": "project/contributing",
    ROOT / "SECURITY.md": "project/security-policy",
}
"""The pages of the root that the site shows, and where."""

_LINK: Final = re.compile(r"(?<=\]\()([^()#\s:]+)(?=[#)])")
_ANCHOR: Final = re.compile(r'<a id="([^"]+)"></a>')
_OTHERS: Final = "\n(others)\n"
_LISTS: Final = re.compile(r"^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCE: Final = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def for_site(text: str, origin: Path, page: Path) -> str:
    """Return the Markdown of the file ``origin`` for the site, where it stands as ``page``."""

    def moved(link: re.Match[str]) -> str:
        target = (origin.parent / link[1]).resolve()
        if target in SHOWN:
            target = DOCS / f"{SHOWN[target]}.md"
        return os.path.relpath(target, page.parent)

    def prose(text: str) -> str:
        return _ANCHOR.sub(r"[]{#\1}", _LINK.sub(moved, text))

    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [prose(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, prose(text[end:])])


def others() -> list[str]:
    """Return the pages of this folder that no list of any page names."""
    lists = [listed for page in DOCS.glob("*.md") for listed in _LISTS.findall(page.read_text())]
    named = {"index", *(name for listed in lists for name in listed.split())}
    return sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in named)


def _read(_app: Sphinx, name: str, source: list[str]) -> None:
    page = DOCS / f"{name}.md"
    origin = next((file for file, shown in SHOWN.items() if shown == name), page)
    text = origin.read_text()
    if _OTHERS in text:
        text = text.replace(_OTHERS, "\n".join(["", *others(), ""]))
    source[0] = for_site(text, origin, page)


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx read each page through :func:`for_site`."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
