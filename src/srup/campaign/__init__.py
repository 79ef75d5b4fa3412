"""Campaigns: one firmware for many devices, in groups, at a pace, within windows. All here is decided without I/O.

:mod:`srup.fleet.campaigns` keeps their state in the store of a server and posts what is decided.
"""

from .decision import Course, decide
from .document import CampaignFileError, Document, read
from .eligibility import Candidate
from .facts import Decision, Facts, Outcome, Posting
from .state import At, Campaign, Member, State

__all__ = [
    "At",
    "Campaign",
    "CampaignFileError",
    "Candidate",
    "Course",
    "Decision",
    "Document",
    "Facts",
    "Member",
    "Outcome",
    "Posting",
    "State",
    "decide",
    "read",
]
