"""Check a built site: every link inside it leads somewhere, every page can be reached, and no other host is asked.

``python docs/check_site.py build/site``; what is wrong goes to standard error, and the exit status is 1.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

LOADED: Final = {"link": "href", "script": "src", "img": "src"}
"""What a browser fetches by itself: element and attribute."""

OF_SPHINX: Final = ("genindex.html", "search.html")
"""Pages that Sphinx adds, and that have no link of ours."""


class Page(HTMLParser):
    """One page: its links, its anchors, and what it makes a browser fetch."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take down what the element says."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if LOADED.get(tag) in values and values.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.loaded.append(values[LOADED[tag]])


def problems(site: Path) -> list[str]:
    """Return what is wrong with the site in this folder."""
    site = site.resolve()
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    found = []
    leads_to: dict[Path, set[Path]] = {}
    for file, page in pages.items():
        leads_to[file] = set()
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            leads_to[file].add(target)
            anchor = unquote(parts.fragment)
            if not target.exists():
                found.append(f"{file.relative_to(site)}: nothing is at {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{file.relative_to(site)}: no such anchor: {link}")
        found += [
            f"{file.relative_to(site)}: another host is asked: {source}"
            for source in page.loaded
            if urlsplit(source).netloc
        ]
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        if (file := waiting.pop()) not in reached:
            reached.add(file)
            waiting += leads_to.get(file, ())
    found += [
        f"{file.relative_to(site)}: no link leads there"
        for file in pages
        if file not in reached and file.name not in OF_SPHINX
    ]
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print(*wrong, sep="\n", file=sys.stderr, end="\n" if wrong else "")
    sys.exit(bool(wrong))
