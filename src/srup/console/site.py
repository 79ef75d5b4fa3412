"""What the pages of a console share: the fleet, its users and sessions, what is remembered between requests."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from secrets import token_urlsafe

from ..fleet import Fleet
from .attempts import Attempts
from .batches import Batches
from .census import Census
from .notices import Notices
from .once import Once
from .sessions import Sessions
from .users import Role, User, Users

__all__ = ["Invitation", "Site"]


class Invitation:
    """The one-time link with which the first user makes an account; its ``token`` is None when there are users."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self.token: str | None = None if users.all() else token_urlsafe(24)

    def matches(self, token: str) -> bool:
        """Whether this is the token of the link, which was not used yet."""
        return self.token is not None and compare_digest(self.token.encode(), token.encode("utf-8", "replace"))

    def accept(self, name: str, password: str) -> User:
        """Make the first administrator; ValueError as :meth:`Users.add`."""
        user = self._users.add(name, Role.ADMINISTRATOR, password, first=True)
        self.token = None
        return user


@dataclass(frozen=True)
class Site:
    """A console. ``secure``: it is served with TLS; ``names`` are the host names under which it may be asked for."""

    fleet: Fleet
    users: Users
    names: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    secure: bool = False
    clock: Callable[[], float] = time.time
    firmware: Path | None = None
    """The folder whose files campaigns may name; without it they name a digest."""
    fetch_ca: Path | None = None
    """The certificates to trust where firmware is fetched before a campaign begins; by default the system's."""
    census: Census = field(init=False)
    sessions: Sessions = field(init=False)
    invitation: Invitation = field(init=False)
    once: Once = field(default_factory=Once)
    notices: Notices = field(default_factory=Notices)
    batches: Batches = field(default_factory=Batches)
    attempts: Attempts = field(default_factory=Attempts)
    """How often somebody may try to log in: by name and address, and"""
    all_attempts: Attempts = field(default_factory=lambda: Attempts(0.5, 20.0))
    """all together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "census", Census(self.fleet, self.clock))
        object.__setattr__(self, "sessions", Sessions(self.users))
        object.__setattr__(self, "invitation", Invitation(self.users))

    @property
    def cookie(self) -> str:
        """The name of the cookie of a session; consoles of several servers on one machine have one each."""
        return f"{'__Host-' if self.secure else ''}srup-{self.fleet.identity:x}"
