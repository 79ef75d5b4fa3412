"""The protocol without I/O: a verified message or a command, and the time, go in; messages and events come out.

Nothing here opens a socket, starts a thread, reads a clock or draws random bytes. What may happen in which state stands
in tables (``device.TABLE``, ``server.TABLE``, ``syndication.TABLE``, and ``relay`` has two); a message that no row
expects has no effect but an Unexpected event.
"""

from .base import Policy, Send
from .device import DeviceSession
from .relay import AwaySide, HomeSide
from .server import ServerSession
from .syndication import SyndicationServerSession

__all__ = ["AwaySide", "DeviceSession", "HomeSide", "Policy", "Send", "ServerSession", "SyndicationServerSession"]
