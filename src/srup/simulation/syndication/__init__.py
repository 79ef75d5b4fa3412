"""Worlds in which owners share devices with each other (docs/simulation.md, docs/syndication.md)."""

from .acts import ACTS
from .world import SyndicationWorld

__all__ = ["ACTS", "SyndicationWorld"]
