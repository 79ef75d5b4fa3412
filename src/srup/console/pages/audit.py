"""The audit."""

from typing import Final

from ..visit import Page, Shown, Visit

__all__ = ["PAGES"]


def _show(visit: Visit) -> Shown:
    return Shown("audit.html", {})


PAGES: Final = (Page("/audit", _show),)
