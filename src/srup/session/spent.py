"""Tokens that are good still and begin nothing any more, though the exchanges that they held together are forgotten.

Whoever forgets an exchange that a partner has begun leaves its token here: as a number, its expiry above a digest. It
is dropped when the token has expired, or when there are too many. Whatever is dropped raises the floor of the key that
it was spent under, so that it begins nothing from then on either, whatever key signs it (docs/protocol/flows.md#f-31).
A token that never expires, for its maker has no clock, raises the floor at once: such tokens say which came first.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from .. import tokens
from ..errors import PolicyError, StoreError
from ..records import ExchangeRecord
from .freshness import FIRST_UNDATED, Horizon, Horizons

if TYPE_CHECKING:
    from .exchange import Exchange, ExchangeTable, Peer

__all__ = ["MAX_SPENT", "SpentTokens"]

MAX_SPENT: Final = 8192
"""How many tokens that were spent under one key are remembered, 56 bytes each; for an identity twice as many (T28)."""

SWEPT: Final = 8
"""How many identities are looked at in one sweep,"""

DROPPED: Final = 256
"""and how many tokens under one key are dropped in it."""

BELIEVED_AFTER: Final = 3600.0
"""Seconds for which Unix time must have gone on without a jump before a token counts as expired for good."""

_JUMP: Final = 1.0  # seconds: Unix time that has gained or lost more from one sweep to the next was set

_DIGEST_BITS: Final = 64
_MARK: Final = b"srup5:"  # no token is named so: it would be malformed
_NAME_SIZE: Final = len(_MARK) + 16


class SpentTokens:
    """The spent tokens of all identities; the floors are those of ``horizons`` and of the peers in ``known``."""

    def __init__(self, known: "ExchangeTable", horizons: Horizons) -> None:
        self._known = known
        self._horizons = horizons
        self._expired = -1  # what expires up to then has expired; with no clock nothing is known to have
        self._lead = 0.0  # how far Unix time was ahead of local time at the last sweep,
        self._steady_since: float | None = None  # and since when, in local time, it has been about that
        self._believed: float | None = None  # the last lead that had been so long enough
        self._numbers: OrderedDict[int, dict[int, list[int]]] = OrderedDict()  # by identity and key, in order
        self._changed: dict[tuple[int, int], None] = {}

    def __len__(self) -> int:
        return sum(len(numbers) for keys in self._numbers.values() for numbers in keys.values())

    def of(self, identity: int) -> int:
        """Return how many tokens of an identity are remembered."""
        return sum(map(len, self._numbers.get(identity, {}).values()))

    def refuse(self, peer: "Peer", horizon: Horizon, token: tokens.BoundToken, text: bytes, sequence_id: int) -> None:
        """Raise PolicyError if a token, in full ``text``, was spent under any key of its maker, or may have been.

        ``horizon`` is that of the key which has signed the message with this ``sequence_id``.
        """
        horizon.refuse_below_floor(token, sequence_id)
        if not horizon.made(token):  # it may have been spent under any other key
            for other in (peer.horizon, *self._horizons.of(peer.identity)):
                other.refuse_below_floor(token, sequence_id)
        keys = self._numbers.get(peer.identity)
        if keys and self._key_of(peer.identity, _number(token, text)) is not None:
            raise PolicyError("the token is spent")

    def spend(self, exchange: "Exchange") -> None:
        """Let nothing begin under the token of an exchange that is being forgotten."""
        if exchange.mine or (token := _bound(exchange.token)) is None:
            return
        peer = exchange.peer
        horizon = exchange.horizon or peer.horizon
        if token.expiry >= FIRST_UNDATED or token.expiry <= self._expired:
            horizon.raise_floor(token)
            self._known.mark_freshness(peer.identity)
        elif token.expiry > horizon.dated_floor:
            self._add(peer.identity, horizon.key, _number(token, exchange.token))

    def sweep(self, expired: int, now: float, lead: float) -> None:
        """Drop some of the tokens that expire at or before this Unix time, for they would be refused as expired.

        ``lead`` is how far Unix time is ahead of local time, which is ``now``. Unix time that was set is not believed
        at first: while it is wrong nothing would be lost, but the floor would stay where it was raised to.
        """
        self._expired = expired = self._expired_for_good(expired, now, lead)
        for _ in range(min(SWEPT, len(self._numbers))):
            identity, keys = next(iter(self._numbers.items()))
            self._numbers.move_to_end(identity)
            for key, numbers in list(keys.items()):
                count = bisect_left(numbers, expired + 1 << _DIGEST_BITS, hi=min(DROPPED, len(numbers)))
                self._drop(identity, key, count)

    def _expired_for_good(self, expired: int, now: float, lead: float) -> int:
        if self._steady_since is None or abs(lead - self._lead) > _JUMP:
            self._steady_since = now
        self._lead = lead
        if now - self._steady_since >= BELIEVED_AFTER:
            self._believed = lead
        if self._believed is None:
            return -1
        return int(expired - max(0.0, lead - self._believed))

    def _add(self, identity: int, key: int, number: int) -> None:
        keys = self._numbers.setdefault(identity, {})
        numbers = keys.setdefault(key, [])
        insort(numbers, number)
        self._mark(identity, number)
        if len(numbers) > MAX_SPENT:  # a retiring key in wrong hands must not crowd out what its successor has spent
            self._drop(identity, key, 1)
        elif self.of(identity) > 2 * MAX_SPENT:
            self._drop(identity, max(keys, key=lambda each: len(keys[each])), 1)

    def _drop(self, identity: int, key: int, count: int) -> None:
        """Drop the first tokens that were spent under a key, and raise its floor over them."""
        if not count:
            return
        keys = self._numbers[identity]
        dropped = keys[key][:count]
        del keys[key][:count]
        if not keys[key]:
            del keys[key]
        if not keys:
            del self._numbers[identity]
        for number in dropped:
            self._mark(identity, number)
        horizon = self._horizon(identity, key)
        if horizon is not None:
            horizon.dated_floor = max(horizon.dated_floor, dropped[-1] >> _DIGEST_BITS)
            self._known.mark_freshness(identity)

    def _horizon(self, identity: int, key: int) -> Horizon | None:
        """Return what is known of a key; None for one that nobody has named, of somebody who is forgotten."""
        peer = self._known.peers.get(identity)
        if peer is not None and key in (0, peer.horizon.key):
            return peer.horizon
        return self._horizons.peek(identity, key) if key else None

    def _key_of(self, identity: int, number: int) -> int | None:
        """Return the key under which a token was spent, None if it is not remembered."""
        for key, numbers in self._numbers.get(identity, {}).items():
            place = bisect_left(numbers, number)
            if place < len(numbers) and numbers[place] == number:
                return key
        return None

    # What survives a restart: each token as the record of an exchange that has nothing but an end.

    def _mark(self, identity: int, number: int) -> None:
        if self._known.durable:
            self._changed[identity, number] = None

    def mark_all(self, identity: int) -> None:
        """Have a store told all tokens of an identity again, whose exchanges it is told to forget."""
        for numbers in self._numbers.get(identity, {}).values():
            for number in numbers:
                self._mark(identity, number)

    def take_changed(self) -> tuple[list[ExchangeRecord], list[tuple[int, bytes]]]:
        """Return what was spent and what was dropped since the last call."""
        changed, self._changed = self._changed, {}
        spent, dropped = [], []
        for identity, number in changed:
            name, key = _MARK + number.to_bytes(16, "big"), self._key_of(identity, number)
            if key is None:
                dropped.append((identity, name))
            else:
                spent.append(ExchangeRecord(identity, name, float(number >> _DIGEST_BITS), f"{key:x}"))
        return spent, dropped

    def restore(self, kept: ExchangeRecord) -> bool:
        """Take over a record of a spent token; return whether it is one. StoreError for one that nobody has written."""
        spent = len(kept.token) == _NAME_SIZE and kept.token.startswith(_MARK)
        if not spent:
            return False
        try:
            key = int(kept.body, 16)
        except ValueError:
            raise StoreError(f"a spent token of {kept.partner:x} names no key: {kept.body[:80]!r}") from None
        self._add(kept.partner, key, int.from_bytes(kept.token[len(_MARK) :], "big"))
        return True


def _bound(text: bytes) -> tokens.BoundToken | None:
    try:
        return tokens.parse(text)
    except PolicyError:
        return None


def _number(token: tokens.BoundToken, text: bytes) -> int:
    digest = int.from_bytes(sha256(text).digest()[: _DIGEST_BITS // 8], "big")
    return token.expiry << _DIGEST_BITS | digest
