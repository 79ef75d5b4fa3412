"""The protocol without I/O: a verified message or a command, and the time, go in; messages and events come out.

Nothing here opens a socket, starts a thread, reads a clock or draws random bytes. What may happen in which state stands
in the table of each flow (:mod:`.flows`, drawn in docs/states.md); a message that no row expects has no effect but an
Unexpected event.
"""

from .device import DeviceSession
from .flow import Send
from .policy import Policy
from .relay import AwaySide, HomeSide
from .server import ServerSession
from .syndication import SyndicationServerSession

__all__ = ["AwaySide", "DeviceSession", "HomeSide", "Policy", "Send", "ServerSession", "SyndicationServerSession"]
