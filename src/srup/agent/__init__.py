"""Devices and servers that run: a session, a transport, a clock and the application's handlers, tied together."""

from .base import Agent, Refusal
from .device import Device
from .reader import CommandReader
from .server import PendingJoin, Server, UpdateOrder

__all__ = ["Agent", "CommandReader", "Device", "PendingJoin", "Refusal", "Server", "UpdateOrder"]
