"""Devices and servers that run: a session, a transport, a clock and the application's handlers, tied together."""

from .base import Agent, Outcome, Refusal
from .device import Device
from .reader import CommandReader
from .server import PendingJoin, Server, UpdateOrder
from .syndication import AwayNetwork, SyndicationDevice, SyndicationServer
from .turn import Handling
from .vitals import Vitals

__all__ = [
    "Agent",
    "AwayNetwork",
    "CommandReader",
    "Device",
    "Handling",
    "Outcome",
    "PendingJoin",
    "Refusal",
    "Server",
    "SyndicationDevice",
    "SyndicationServer",
    "UpdateOrder",
    "Vitals",
]
