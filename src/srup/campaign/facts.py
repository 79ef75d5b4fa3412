"""What goes into a decision about a campaign besides its own state, and what comes out."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .eligibility import Candidate
from .state import Campaign, Member

__all__ = ["Decision", "Facts", "Outcome", "Posting"]


class Outcome(NamedTuple):
    """What an order has come to ``at`` a Unix time: a state of updates, and an ``error`` with its ``text`` when over.

    The errors are names, as in a report on an order; "lost" means that nobody knows of the order any more.
    """

    at: float
    state: str
    over: bool = False
    error: str | None = None
    text: str = ""


class Facts(NamedTuple):
    """What is known: the devices of the fleet, what became of orders, by id, and who is in which other campaign.

    ``room`` is how many orders the mailbox takes now. ``look`` has those devices that may be let in now, None for all
    of them; ``zones`` has the tags ``zone``, None if those of ``devices`` count.
    """

    devices: Mapping[int, Candidate] = {}
    outcomes: Mapping[bytes, Outcome] = {}
    busy: Mapping[int, str] = {}
    room: int = 10**9
    look: Iterable[Candidate] | None = None
    zones: Mapping[int, str] | None = None


class Posting(NamedTuple):
    """An order to post: "update", "activate" or "cancel"; the latter two are ``about`` the update with that id."""

    verb: str
    device: int
    id: bytes
    about: bytes = b""
    lifetime: float | None = None


class Decision(NamedTuple):
    """What to post, the campaign's new state, the devices that have changed, and when to decide again at the latest.

    ``events`` say in words what has happened to the campaign as a whole.
    """

    postings: tuple[Posting, ...]
    campaign: Campaign
    changed: Mapping[int, Member]
    deadline: float | None
    events: tuple[str, ...]
