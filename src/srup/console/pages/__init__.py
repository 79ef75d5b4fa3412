"""The pages of the console, a module for each subject, and what their forms do."""

from typing import Final

from ..visit import Action, Page, Question
from . import audit, campaign, campaigns, device, devices, joins, orders, overview, refusals

__all__ = ["ACTIONS", "PAGES"]

_SUBJECTS: Final = (overview, devices, device, orders, joins, campaigns, campaign, refusals, audit)

PAGES: Final[tuple[Page, ...]] = tuple(page for each in _SUBJECTS for page in each.PAGES)
ACTIONS: Final[tuple[Action | Question, ...]] = tuple(
    action for each in _SUBJECTS for action in getattr(each, "ACTIONS", ())
)
