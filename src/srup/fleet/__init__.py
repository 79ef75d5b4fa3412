"""What an operator does with the devices of a server, from any process that can reach its store."""

from .audit import AuditRecord, Verdict
from .campaigns import CampaignRunner, Campaigns, CampaignView, check_download, load_document
from .devices import FleetDevice, LastUpdate
from .fleet import Fleet
from .joins import WaitingJoin
from .posted import PostedOrder
from .where import where

__all__ = [
    "AuditRecord",
    "CampaignRunner",
    "CampaignView",
    "Campaigns",
    "Fleet",
    "FleetDevice",
    "LastUpdate",
    "Orders",
    "PostedOrder",
    "Verdict",
    "WaitingJoin",
    "check_download",
    "load_document",
    "where",
]

Orders = Fleet
"""The name that Fleet had when it could only post orders."""
