"""The protocol without I/O: a verified message or a command, and the time, go in; messages and events come out.

Nothing here opens a socket, starts a thread, reads a clock or draws random bytes. What may happen in which state stands
in tables (``device.TABLE``, ``server.TABLE``); a message that no row expects has no effect but an Unexpected event.
"""

from .base import Policy, Send
from .device import DeviceSession
from .server import ServerSession

__all__ = ["DeviceSession", "Policy", "Send", "ServerSession"]
