"""Devices and servers that run: a session, a transport, a clock and the application's handlers, tied together."""

from .admission import PendingJoin
from .agent import Agent
from .bridge import AwayNetwork, SyndicationDevice
from .device import Device
from .inbound import Refusal
from .listing import KeyChanges
from .reader import CommandReader
from .requests import Outcome
from .server import Server
from .syndication import SyndicationServer
from .transaction import Handling
from .updateorder import UpdateOrder
from .vitals import Vitals

__all__ = [
    "Agent",
    "AwayNetwork",
    "CommandReader",
    "Device",
    "Handling",
    "KeyChanges",
    "Outcome",
    "PendingJoin",
    "Refusal",
    "Server",
    "SyndicationDevice",
    "SyndicationServer",
    "UpdateOrder",
    "Vitals",
]
