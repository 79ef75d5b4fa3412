"""A deterministic simulator: whole fleets in simulated time, under faults and attacks, with everything they do checked.

``run(seed)`` is one history; the same seed gives the same one, to the byte (docs/simulation.md).
"""

from .ledger import Ledger, Violation
from .options import Options
from .report import Report, run
from .simulator import START, Clock, Simulator
from .syndication import SyndicationWorld
from .world import World

__all__ = [
    "START",
    "Clock",
    "Ledger",
    "Options",
    "Report",
    "Simulator",
    "SyndicationWorld",
    "Violation",
    "World",
    "run",
]
