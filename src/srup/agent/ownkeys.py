"""Our own keys: the one that signs, the next one while partners take it, and the former one while it still opens."""

from collections.abc import Callable
from contextlib import suppress

from ..errors import SealError
from ..keys import PrivateKey
from ..seal import unseal

__all__ = ["OwnKeys"]


class OwnKeys:
    """``current`` signs for everybody but those that have ``taken`` the key ``offered``, if there is one."""

    def __init__(self, key: PrivateKey) -> None:
        self.current = key
        self.offered: PrivateKey | None = None
        self.taken: Callable[[int], bool] = lambda peer: False
        self._fingerprints: dict[PrivateKey, str] = {}
        self._former: tuple[PrivateKey, float] | None = None
        self._unanswered: tuple[PrivateKey, float] | None = None

    @property
    def former(self) -> PrivateKey | None:
        """What was sealed to it still opens."""
        return None if self._former is None else self._former[0]

    def offer(self, key: PrivateKey, taken: Callable[[int], bool] = lambda peer: False) -> None:
        """Have a next key, which signs for those of whom ``taken`` is true."""
        self.offered, self.taken = key, taken

    def withdraw(self) -> None:
        """Have no next key."""
        self.offered, self.taken = None, lambda peer: False

    def withdraw_unanswered(self, until: float) -> None:
        """Have no next key. A partner may have taken this one: what was sealed to it opens until that Unix time."""
        if self.offered is not None:
            self._unanswered = self.offered, until
        self.withdraw()

    def replace(self, key: PrivateKey, former_until: float | None = None) -> None:
        """Change to another key; what was sealed to the present one opens until then."""
        self._former = None if former_until is None else (self.current, former_until)
        self.current, self._unanswered = key, None
        self.withdraw()

    def due(self) -> float | None:
        """Return when :meth:`forget_former` has something to do, None for never."""
        if self._former is None and self._unanswered is None:
            return None
        return min(until for _, until in filter(None, (self._former, self._unanswered)))

    def forget_former(self, now: float) -> None:
        """Drop keys that have nothing to open any more: the former one, and one that was offered in vain."""
        if self._former is not None and now >= self._former[1]:
            self._former = None
        if self._unanswered is not None and now >= self._unanswered[1]:
            self._unanswered = None

    def signing_for(self, peer: int) -> PrivateKey:
        """Return the key that signs for a partner."""
        return self.offered if self.offered is not None and self.taken(peer) else self.current

    def fingerprint_for(self, peer: int) -> str:
        """Return the fingerprint of the key that signs for a partner."""
        key = self.signing_for(peer)
        known = self._fingerprints.get(key)
        if known is None:
            known = key.public_key.signing_fingerprint
            self._fingerprints = {key: known} | {k: v for k, v in self._fingerprints.items() if k is self.current}
        return known

    def unseal(self, sealed: bytes) -> bytes:
        """Open a value that was sealed to us, before or after a change of our key; SealError if it does not open."""
        unanswered = None if self._unanswered is None else self._unanswered[0]
        for key in (self.current, self.former, self.offered, unanswered):  # the partner may have taken the next one
            if key is not None:
                with suppress(SealError):
                    return unseal(sealed, key)
        raise SealError("the sealed value does not open")
