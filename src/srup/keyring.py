"""The public keys that are known, by identity."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from .errors import InvalidKeyError, PolicyError
from .keys import PublicKey

__all__ = ["KeyRing"]

_IDENTITY: Final = re.compile("[0-9a-fA-F]{1,16}")


class KeyRing(Mapping[int, PublicKey]):
    """A mapping of identities (0 to 2**64 - 1) to public keys that never changes a key by accident.

    ``add`` pins a key: adding another one for the same identity is a PolicyError (T15); ``replace`` and ``remove`` say
    what they do. One thread may change the ring while others read it.
    """

    def __init__(self, keys: Mapping[int, PublicKey] | None = None) -> None:
        self._keys: dict[int, PublicKey] = {}
        for identity, key in (keys or {}).items():
            self.add(identity, key)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read every ``<identity in hex>.pem`` of a folder. Raises InvalidKeyError naming the file that is wrong."""
        ring = cls()
        try:
            paths = sorted(path for path in Path(folder).iterdir() if path.suffix == ".pem")
        except OSError as error:
            raise InvalidKeyError(f"{os.fspath(folder)}: {error.strerror}") from None
        for path in paths:
            if not _IDENTITY.fullmatch(path.stem):
                raise InvalidKeyError(f"{path}: the name must be the identity in hex, at most 16 digits")
            key = PublicKey.load(path)
            try:
                ring.add(int(path.stem, 16), key)
            except PolicyError as error:
                raise InvalidKeyError(f"{path}: {error}") from None
        return ring

    def add(self, identity: int, key: PublicKey) -> None:
        """Register a key; adding the same one again changes nothing, another one raises PolicyError."""
        known = self._keys.get(_checked(identity, key))
        if known is not None and known != key:
            raise PolicyError(f"another key is registered for {identity:x}; replace() changes it")
        self._keys.setdefault(identity, key)

    def replace(self, identity: int, key: PublicKey) -> None:
        """Register a key in the place of whatever was registered."""
        self._keys[_checked(identity, key)] = key

    def remove(self, identity: int) -> None:
        """Drop the key of an identity, if there is one: its messages are those of a stranger from now on."""
        self._keys.pop(identity, None)

    def __getitem__(self, identity: int) -> PublicKey:
        return self._keys[identity]

    def get(self, identity: int, default: PublicKey | None = None) -> PublicKey | None:  # type: ignore[override]
        """Return the key of an identity or ``default``."""
        return self._keys.get(identity, default)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._keys))

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self)}>"


def _checked(identity: int, key: PublicKey) -> int:
    if type(identity) is not int or not 0 <= identity < 1 << 64:
        shown = f"{identity:#x}" if isinstance(identity, int) else repr(identity)
        raise InvalidKeyError(f"an identity is an int in 0..2**64-1, not {shown}")
    if not isinstance(key, PublicKey):
        raise InvalidKeyError(f"the key of {identity:x} must be a PublicKey, not {type(key).__name__}")
    return identity
