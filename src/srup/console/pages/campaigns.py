"""All campaigns, and how a new one is made of a file."""

import tomllib
from pathlib import Path
from typing import Any, Final

from ...campaign import Document, read
from ...campaign.tomlfile import SourceFile
from ...fetch import HttpFetcher
from ...fetchpolicy import FetchPolicy
from ...fleet import check_download, where
from ..once import Done
from ..plots import bar
from ..users import Power
from ..visit import Action, Page, Question, Shown, Visit
from .overview import campaigns_of
from .progress import parts

__all__ = ["ACTIONS", "PAGES"]

_NAME: Final = "campaign"

_EXAMPLE: Final = """\
name = "locks-42"

[firmware]
digest = "0000000000000000000000000000000000000000000000000000000000000000"
url = "https://updates.example/firmware.bin"
version = 42

[target]
where = "tag.site=berlin"

[[group]]
size = 5
hold = "24h"

[[group]]
size = "100%"

[gate]
success = "95%"
stop = { failures = 3, share = "5%" }

[pace]
at_once = 20
timeout = "2h"

[approval]
people = 1
"""


def _show(visit: Visit) -> Shown:
    views, trouble = campaigns_of(visit)
    views.sort(key=lambda view: -view.campaign.created)
    rows = [(view, bar(parts(view.counts()))) for view in views]
    return Shown("campaigns.html", {"rows": rows, "trouble": trouble})


def _ask(visit: Visit) -> Shown:
    text = visit.typed.raw("document") or _EXAMPLE
    content = {"document": text, "folder": visit.site.firmware, "planned": None, "first": 0, "bar": None}
    return Shown("campaign_new.html", content, live=False)


def _document(visit: Visit) -> Document:
    """Read what was typed. A file is named by its name alone, within the folder that the console was given."""
    text = visit.form.raw("document")
    folder = visit.site.firmware
    try:
        named = tomllib.loads(text).get("firmware", {}).get("file", "")
    except (tomllib.TOMLDecodeError, AttributeError):
        named = ""  # read() says what is wrong with it
    place = ("firmware", "file")
    if named and folder is None:
        SourceFile(_NAME, text).fail(
            place, "file: the console knows no folder with firmware (--images FOLDER); give its digest instead"
        )
    if isinstance(named, str) and named and Path(named).name != named:
        SourceFile(_NAME, text).fail(place, "file: name a file in the console's folder of firmware, without a path")
    return read(text, _NAME, folder, where)


def _plan(visit: Visit) -> Shown:
    document = _document(visit)
    planned, decision = visit.site.fleet.campaigns.plan(document)
    content: dict[str, Any] = {
        "document": visit.form.raw("document"),
        "folder": visit.site.firmware,
        "planned": planned,
        "first": sum(posting.verb == "update" for posting in decision.postings),
        "bar": lambda number: bar(parts(planned.counts(number))),
    }
    return Shown("campaign_new.html", content, live=False)


def _begin(visit: Visit) -> Done:
    document = _document(visit)
    campaigns = visit.site.fleet.campaigns
    campaigns.plan(document)
    if not visit.form.get("unfetched"):
        plain = document.firmware.url.lower().startswith("http:")
        check_download(document, HttpFetcher(FetchPolicy(allow_http=plain, ca_file=visit.site.fetch_ca, attempts=1)))
    view = campaigns.apply(document, visit.user.name)
    return Done(f"/campaigns/{view.name}", f"Campaign {view.name} is {view.campaign.state}.")


PAGES: Final = (Page("/campaigns", _show), Page("/campaign/new", _ask, Power.STEER))
ACTIONS: Final = (
    Question("/campaign/plan", _plan, Power.STEER, _ask),
    Action("/campaign/begin", _begin, Power.STEER, _ask),
)
