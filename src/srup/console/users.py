"""Who may use the console, and what for: a small file, made by ``srup console user add``."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final

from ..files import write_file

__all__ = ["LONGEST_PASSWORD", "SHORTEST_PASSWORD", "Power", "Role", "User", "Users"]

SHORTEST_PASSWORD: Final = 10
"""Characters that a password has at least."""

LONGEST_PASSWORD: Final = 200
"""Characters that are looked at at most."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_COST: Final = (1 << 15, 8, 1)  # scrypt's n, r and p: 32 MB and some 0.1 s
_MEMORY: Final = 1 << 26
_MOST: Final = 1000  # users
_NOBODY: Final = "0" * 64


class Power(StrEnum):
    """What a user may be allowed to do; the text completes "may not ..."."""

    LOOK = "look at the fleet"
    ORDER = "give orders to devices"
    JOIN = "decide about joins"
    STEER = "make and steer campaigns"
    APPROVE = "approve campaigns"


class Role(StrEnum):
    """Which powers a user has: see :attr:`powers`."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMINISTRATOR = "administrator"

    @property
    def powers(self) -> frozenset[Power]:
        """What this role may do."""
        return _POWERS[self]


_POWERS: Final[Mapping[Role, frozenset[Power]]] = {
    Role.VIEWER: frozenset({Power.LOOK}),
    Role.OPERATOR: frozenset(Power) - {Power.APPROVE},
    Role.APPROVER: frozenset({Power.LOOK, Power.APPROVE}),
    Role.ADMINISTRATOR: frozenset(Power),
}


@dataclass(frozen=True)
class User:
    """A user; ``salt`` and ``digest`` are of the password, in hex."""

    name: str
    role: Role
    salt: str
    digest: str

    def may(self, power: Power) -> bool:
        """Whether the user's role allows this."""
        return power in self.role.powers

    @property
    def mark(self) -> str:
        """What changes with the password: a session that was begun with another one is over."""
        return hashlib.sha256(f"{self.name} {self.digest}".encode()).hexdigest()[:16]


class Users:
    """The users in the file at ``path``, for its owner alone, and the secret that signs their sessions.

    The file is read again when it has changed. ValueError for a file that is none, OSError if it cannot be read.
    Threads may share one of these.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = Path(path)
        self._lock = threading.Lock()
        self._read_at: tuple[int, int, int] | None = None
        self._users: dict[str, User] = {}
        self._secret = ""

    def all(self) -> list[User]:
        """Return all users by name."""
        with self._lock:
            self._read()
            return sorted(self._users.values(), key=lambda user: user.name)

    def find(self, name: str) -> User | None:
        """Return a user; None when there is none of this name."""
        with self._lock:
            self._read()
            return self._users.get(name)

    @property
    def secret(self) -> str:
        """What signs sessions; made when it is first asked for."""
        with self._lock:
            self._read()
            if not self._secret:
                self._write(self._users, os.urandom(32).hex())
            return self._secret

    def add(self, name: str, role: Role, password: str, *, first: bool = False) -> User:
        """Add a user. ValueError for a name or a password that is none, or, with ``first``, if there is any user."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r:.80} is no name of a user: 1 to 64 letters, digits, '.', '_', '@' or '-'")
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise ValueError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
        salt = os.urandom(16).hex()
        user = User(name, Role(role), salt, _digest(password, salt))
        with self._lock:
            self._read()
            if first and self._users:
                raise ValueError("there are users already: an administrator must add others")
            if name in self._users:
                raise ValueError(f"there is a user {name} already; srup console user remove {name} removes it")
            if len(self._users) >= _MOST:
                raise ValueError(f"there are {_MOST} users already")
            self._write({**self._users, name: user}, self._secret)
        return user

    def remove(self, name: str) -> None:
        """Remove a user, whose sessions end at once. ValueError when there is none of this name."""
        with self._lock:
            self._read()
            if name not in self._users:
                raise ValueError(f"there is no user {name}")
            self._write({each: user for each, user in self._users.items() if each != name}, self._secret)

    def check(self, name: str, password: str) -> User | None:
        """Return the user whose name and password these are; None otherwise, after the same time."""
        user = self.find(name)
        salt, expected = (user.salt, user.digest) if user else (_NOBODY[:32], _NOBODY)
        same = compare_digest(_digest(password[:LONGEST_PASSWORD], salt), expected)
        return user if same and user is not None else None

    def _read(self) -> None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._read_at, self._users, self._secret = None, {}, ""
            return
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        if mark == self._read_at:
            return
        try:
            told = json.loads(self.path.read_text("utf-8"))
            users = {str(name): _user(str(name), each) for name, each in told["users"].items()}
            secret = bytes.fromhex(told["secret"]).hex()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{self.path} is no file of users of the console: name another one (--users)") from None
        self._read_at, self._users, self._secret = mark, users, secret

    def _write(self, users: Mapping[str, User], secret: str) -> None:
        secret = secret or os.urandom(32).hex()
        told = {
            "secret": secret,
            "users": {
                user.name: {"role": str(user.role), "salt": user.salt, "scrypt": user.digest} for user in users.values()
            },
        }
        write_file(self.path, json.dumps(told, indent=1) + "\n")
        self._read_at, self._users, self._secret = None, dict(users), secret


def _user(name: str, told: Any) -> User:
    return User(name, Role(told["role"]), bytes.fromhex(told["salt"]).hex(), bytes.fromhex(told["scrypt"]).hex())


def _digest(password: str, salt: str) -> str:
    n, r, p = _COST
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=bytes.fromhex(salt), n=n, r=r, p=p, maxmem=_MEMORY, dklen=32
    ).hex()
