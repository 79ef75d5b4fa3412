"""A web console over the fleet of a server: what an operator sees and does in a browser.

The pages are made on the server, of what the store says; small scripts keep them up to date. Whatever is changed goes
through :class:`srup.fleet.Fleet`, like a command.
"""

from .application import application
from .site import Site
from .users import Role, Users

__all__ = ["Role", "Site", "Users", "application"]
