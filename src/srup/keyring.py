"""The public keys that are known, by identity."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from threading import RLock
from typing import Any, Final, Self

from .errors import InvalidKeyError, PolicyError
from .identity import parse_identity
from .keys import PublicKey
from .records import Changes, KeyRecord

__all__ = ["KeyRing"]

_log: Final = logging.getLogger(__name__)

_SUFFIXES: Final = (".pem", ".pem.pub")
_CHUNK: Final = 1_000  # keys that are written to a store at a time
_FINGERPRINT: Final = re.compile("[0-9a-f]{64}")


class KeyRing(Mapping[int, PublicKey]):
    """A mapping of identities (0 to 2**64 - 1) to public keys that never changes a key by accident.

    ``add`` pins a key: adding another one for the same identity is a PolicyError (T15); ``replace`` and ``remove`` say
    what they do. ``rotate`` is for a change that the old key has signed (see srup.rotation), ``revoke`` for a key that
    must never count again. With a store (:meth:`keep`) a change is durable before it counts. Threads may change the
    ring while others read it; whoever holds ``lock``, as an agent does while a message takes effect, keeps it as it is.
    """

    def __init__(self, keys: Mapping[int, PublicKey] | None = None) -> None:
        self.lock = RLock()
        self._keys: dict[int, PublicKey] = {}
        self._retiring: dict[int, tuple[PublicKey, float]] = {}
        self._pins: dict[int, PublicKey] = {}  # of those that were rotated
        self._barred: set[str] = set()
        self._withdrawn = 0
        self._saves: tuple[Callable[[Changes], object], ...] = ()  # one of each agent that has a store
        self._watchers: tuple[Callable[[int], object], ...] = ()
        for identity, key in (keys or {}).items():
            self.add(identity, key)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], skipped: Callable[[Path, str], object] | None = None) -> Self:
        """Read the keys of a folder: ``<identity in hex>.pem``, or ``.pem.pub`` as ``srup keygen`` names them.

        Whatever else lies there is left alone, and ``skipped`` is called with its path and why, or else a warning is
        logged. A file with such a name that holds no good public key is an InvalidKeyError that names it, and so are
        two keys for one identity: a device that is missing by mistake must not go unnoticed.
        """
        ring = cls()
        try:
            paths = sorted(Path(folder).iterdir())
        except OSError as error:
            raise InvalidKeyError(f"{os.fspath(folder)}: {error.strerror}") from None
        for path in paths:
            try:
                identity = _identity_of(path.name)
            except ValueError as error:
                (skipped or _warn)(path, str(error))
                continue
            key = PublicKey.load(path)
            try:
                ring.add(identity, key)
            except PolicyError as error:
                raise InvalidKeyError(f"{path}: {error}") from None
        return ring

    def add(self, identity: int, key: PublicKey) -> None:
        """Register a key; adding the same one again changes nothing, another or a barred one raises PolicyError."""
        with self.lock:
            known = self._keys.get(self._admitted(identity, key))
            if known is not None and known != key:
                raise PolicyError(f"another key is registered for {identity:x}; replace() changes it")
            if known is None:
                self._make_durable(KeyRecord(identity, key.to_pem()) if self._saves else None)
            self._keys.setdefault(identity, key)

    def replace(self, identity: int, key: PublicKey) -> None:
        """Register a key in the place of whatever was registered. PolicyError for a barred one."""
        with self.lock:
            identity = self._admitted(identity, key)
            self._make_durable(KeyRecord(identity, key.to_pem()) if self._saves else None)
            self._withdraw(identity, key)

    def remove(self, identity: int) -> None:
        """Drop the key of an identity, if there is one: its messages are those of a stranger from now on."""
        with self.lock:
            self._make_durable(KeyRecord(identity, None))
            self._withdraw(identity)

    def rotate(self, identity: int, key: PublicKey, until: float) -> None:
        """Let ``key`` count from now on, and the one before it be retiring until the time ``until``, of
        the clock that :meth:`retiring` is asked with.

        The same key again changes nothing. PolicyError when no key is registered for this identity or ``key`` is
        barred.
        """
        with self.lock:
            before = self._keys.get(self._admitted(identity, key))
            if before is None:
                raise PolicyError(f"no key is registered for {identity:x} that could have a successor; add() it")
            if before != key:
                if self._saves:
                    pin = self._pins.get(identity, before)
                    self._make_durable(KeyRecord(identity, key.to_pem(), before.to_pem(), until, pin.to_pem()))
                self._pins.setdefault(identity, before)
                self._retiring[identity] = before, until
                self._keys[identity] = key
                self._withdrawn += 1

    def retiring(self, identity: int, now: float) -> PublicKey | None:
        """Return the key that counted before the last rotation while what it has signed is still taken, or None."""
        key, until = self._retiring.get(identity, (None, 0.0))
        return key if now < until else None

    def revoke(self, identity: int) -> bool:
        """Drop the keys of an identity and bar them; tell whether there were any.

        No identity can have them any more. One that already shares such a key keeps it: revoke that one too.
        """
        with self.lock:
            retiring, _ = self._retiring.get(identity, (None, 0.0))
            keys = [key for key in (self._keys.get(identity), retiring) if key is not None]
            barred = [key.signing_fingerprint for key in keys]
            self._make_durable(KeyRecord(identity, None), barred)
            self._barred.update(barred)
            self._withdraw(identity)
            return bool(keys)

    def bar(self, fingerprint: str) -> None:
        """Keep a key from being registered from now on, named by its ``signing_fingerprint``: 64 lower-case hex digits.

        What was revoked before a restart is barred again in this way. InvalidKeyError for anything else.
        """
        if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
            raise InvalidKeyError(f"a fingerprint is 64 lower-case hex digits, not {fingerprint!r:.80}")
        with self.lock:
            self._make_durable(None, [fingerprint])
            self._barred.add(fingerprint)

    def bars(self, key: PublicKey) -> bool:
        """Return whether this key was revoked, under any identity."""
        return bool(self._barred) and key.signing_fingerprint in self._barred

    @property
    def barred(self) -> frozenset[str]:
        """The ``signing_fingerprint`` of every key that must not be registered again. It grows by revocations only."""
        with self.lock:
            return frozenset(self._barred)

    def pin(self, identity: int) -> PublicKey | None:
        """Return the key that was registered for an identity, from which signed rotations may have led on; or None.

        It stays the same object until the key is replaced, removed or revoked.
        """
        # Without the lock, so in this order: whoever rotates a key notes the pin before the key.
        key = self._keys.get(identity)
        return self._pins.get(identity, key)

    @property
    def withdrawn(self) -> int:
        """How many times a key has ceased to count: what was verified at the same number would be so again."""
        return self._withdrawn

    def keep(
        self, records: Iterable[KeyRecord], barred: Iterable[str], save: Callable[[Changes], object]
    ) -> frozenset[int]:
        """Take over what a store has kept, and from now on ``save`` each change before it counts.

        What was rotated, removed or revoked stays so, whatever the ring says that was read from a folder. Returns the
        identities for which the ring has another key than the store had: the application has replaced it.
        """
        with self.lock:
            self._barred.update(barred)
            for identity in [identity for identity, key in self._keys.items() if self.bars(key)]:
                self._withdraw(identity)  # or it would pass for the successor of what the store has
            stored: set[int] = set()
            replaced: set[int] = set()
            for record in records:
                (replaced if self._recall(record) else stored).add(record.identity)
            new = [identity for identity in self._keys if identity not in stored]
            for start in range(0, len(new), _CHUNK):
                chunk = new[start : start + _CHUNK]
                save(Changes(keys=[KeyRecord(each, self._keys[each].to_pem()) for each in chunk]))
            self._saves += (save,)
            return frozenset(replaced)

    def release(self, save: Callable[[Changes], object]) -> None:
        """Call ``save`` no more; what it has saved stays. What :meth:`keep` was not given is no error."""
        with self.lock:
            self._saves = tuple(other for other in self._saves if other != save)

    def watch(self, withdrawn: Callable[[int], object]) -> None:
        """Call ``withdrawn`` with each identity whose key is removed, replaced or revoked from now on.

        It is called on the thread that does so, under the lock, before that returns: it must neither wait nor raise.
        """
        with self.lock:
            self._watchers += (withdrawn,)

    def unwatch(self, withdrawn: Callable[[int], object]) -> None:
        """Call ``withdrawn`` no more. What :meth:`watch` was not given is no error."""
        with self.lock:
            self._watchers = tuple(other for other in self._watchers if other != withdrawn)

    def _recall(self, record: KeyRecord) -> bool:
        """Take over one record; tell whether the ring has a key that did not come from that one."""
        identity, mine = record.identity, self._keys.get(record.identity)
        if record.key is None:
            if mine is not None:
                self._withdraw(identity)
            return False
        if mine is not None:
            known = mine.to_pem()
            if known not in (record.pin, record.key):
                return True
            if known == record.key and record.retiring is None:
                return False
        pin, key = (PublicKey.from_pem(pem) if pem is not None else None for pem in (record.pin, record.key))
        if pin is not None and record.retiring is not None:
            self._pins[identity] = pin
            self._retiring[identity] = PublicKey.from_pem(record.retiring), record.until
            self._withdrawn += 1
        if key is not None:
            self._keys[identity] = key
        return False

    def _make_durable(self, record: KeyRecord | None, barred: Iterable[str] = ()) -> None:
        for save in self._saves:
            save(Changes(keys=[] if record is None else [record], barred=list(barred)))

    def _admitted(self, identity: int, key: PublicKey) -> int:
        """Return the identity; raise InvalidKeyError or PolicyError when this cannot be its key."""
        _checked(identity, key)
        if self.bars(key):
            raise PolicyError(f"the key {key.signing_fingerprint[:16]} was revoked; {identity:x} needs another one")
        return identity

    def _withdraw(self, identity: int, successor: PublicKey | None = None) -> None:
        """End all keys of an identity. Readers do not wait for the lock: never show them none where there is one."""
        self._retiring.pop(identity, None)
        self._pins.pop(identity, None)
        if successor is None:
            self._keys.pop(identity, None)
        else:
            self._keys[identity] = successor
        self._withdrawn += 1  # last, so that whoever read the number before it may have used the old key
        for watcher in self._watchers:
            watcher(identity)

    def __getitem__(self, identity: int) -> PublicKey:
        return self._keys[identity]

    def get(self, identity: int, default: PublicKey | None = None) -> PublicKey | None:  # type: ignore[override]
        """Return the key of an identity or ``default``."""
        return self._keys.get(identity, default)

    @property
    def find_key(self) -> Callable[[int], PublicKey | None]:
        """The same as :meth:`get` for a loop over many messages: a look-up without a call of Python code."""
        return self._keys.get if type(self).get is KeyRing.get else self.get

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._keys))

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        with self.lock:
            return {name: value for name, value in vars(self).items() if name != "lock"} | {
                "_saves": (),
                "_watchers": (),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=RLock())

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self)}>"


def _identity_of(name: str) -> int:
    """Return whose key the file of this name holds; ValueError says why it holds nobody's."""
    suffix = next((each for each in _SUFFIXES if name.lower().endswith(each)), None)
    if suffix is None:
        raise ValueError(f"its name does not end in {' or '.join(_SUFFIXES)}")
    try:
        return parse_identity(name[: -len(suffix)])
    except ValueError as error:
        raise ValueError(f"its name says nobody's identity: {error}") from None


def _warn(path: Path, why: str) -> None:
    _log.warning("%a is not taken for a key: %s", str(path), why)


def _checked(identity: int, key: PublicKey) -> None:
    if type(identity) is not int or not 0 <= identity < 1 << 64:
        shown = f"{identity:#x}" if isinstance(identity, int) else repr(identity)
        raise InvalidKeyError(f"an identity is an int in 0..2**64-1, not {shown}")
    if not isinstance(key, PublicKey):
        raise InvalidKeyError(f"the key of {identity:x} must be a PublicKey, not {type(key).__name__}")
