"""What can be seen of a running agent from outside, at any moment and from any thread."""

from typing import Final, NamedTuple

__all__ = ["STUCK_AFTER", "Vitals"]

STUCK_AFTER: Final = 60.0
"""How long a turn may last, in seconds. The longest that is in order is 1,024 messages and one commit."""


class Vitals(NamedTuple):
    """The state of an agent at a moment; see :meth:`Agent.vitals`. Times are in seconds, 0 where there is nothing.

    Of ``started``, ``stopping`` (it was told to stop) and ``stopped`` (it has) none becomes False again. ``alive`` is
    False when its thread has ended although nobody said so: a fault in a turn does that (:meth:`Agent.on_fault`).
    ``link`` is what the transport said last, ``store_error`` why the store refuses to write. ``turn`` is how long the
    agent's thread has been at what it is doing now, ``handler`` the same for the application's thread. ``inbox`` counts
    what waits for the first of them, ``handlers`` what waits for the second. ``values`` wait to be sent, ``requests``
    of ours have no answer yet; ``oldest_value`` and ``oldest_request`` are the ages of the longest of them.
    """

    started: bool
    stopping: bool
    stopped: bool
    alive: bool
    connected: bool
    link: str
    store_error: str | None
    turn: float
    handler: float
    inbox: int
    handlers: int
    values: int
    oldest_value: float
    requests: int
    oldest_request: float
    members: int

    @property
    def runs(self) -> bool:
        """Whether it has been started, and not been told to stop."""
        return self.started and not self.stopping
