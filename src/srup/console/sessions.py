"""Who is logged in: a signed cookie that says who, since when, and what the tokens of its forms must be."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from hmac import compare_digest
from secrets import token_urlsafe
from typing import Final

from ..extras import missing_named
from .users import User, Users

with missing_named():
    from itsdangerous import BadSignature, URLSafeSerializer

__all__ = ["Session", "Sessions"]

_REMEMBERED: Final = 10_000  # sessions that were ended before their time
_RENEWED: Final = 60.0  # seconds after which a cookie says anew when its user was last there


@dataclass(frozen=True)
class Session:
    """A session: whose, since when, when its user was last there (Unix times), and the token of its forms."""

    user: User
    id: str
    csrf: str
    since: float
    seen: float

    def accepts(self, token: str) -> bool:
        """Whether a form with this token is one of this session's."""
        return compare_digest(self.csrf.encode(), token.encode("utf-8", "replace"))


class Sessions:
    """Reads and writes the cookies of sessions, which end ``lifetime`` seconds after they began, or when unused.

    One is over as well when its user has logged out, was removed, or has another password. A role that was changed
    counts at once. Threads may share one of these.
    """

    def __init__(self, users: Users, lifetime: float = 12 * 3600.0, unused: float = 2 * 3600.0) -> None:
        self._users = users
        self._lifetime = lifetime
        self._unused = unused
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, user: User, now: float) -> Session:
        """Return a new session."""
        return Session(user, token_urlsafe(12), token_urlsafe(18), now, now)

    def cookie(self, session: Session) -> str:
        """Return the value of its cookie."""
        told = [session.user.name, session.user.mark, session.id, session.csrf, int(session.since), int(session.seen)]
        return self._signer.dumps(told)

    def read(self, cookie: str, now: float) -> Session | None:
        """Return the session that a cookie is about; None when it is over, or none of ours."""
        try:
            name, mark, id_, csrf, since, seen = self._signer.loads(cookie)
            user = self._users.find(name)
        except (BadSignature, ValueError, TypeError):
            return None
        if user is None or not compare_digest(user.mark, mark) or id_ in self._ended:
            return None
        if not (-60.0 <= now - since < self._lifetime and now - seen < self._unused):
            return None
        return Session(user, id_, csrf, since, seen)

    def renewed(self, session: Session, now: float) -> Session | None:
        """Return the session as its cookie should say it now; None when that stands in it already."""
        return None if now - session.seen < _RENEWED else replace(session, seen=now)

    def end(self, session: Session) -> None:
        """End a session."""
        with self._lock:
            self._ended[session.id] = None
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    @property
    def _signer(self) -> URLSafeSerializer:
        return URLSafeSerializer(self._users.secret, salt="session")
