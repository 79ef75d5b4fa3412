"""The rule of freshness: is this message for us, new, in time, and not overtaken by a newer word about membership?

That it is genuine, its signature has shown already. Freshness belongs to an identity and the key that signed, not to a
membership: what is known of a key stays known when it is removed, rotated or registered again. In this order:

1. The token is short; if it is bound it names its sender and us (T3), and has not expired (T4). A partner that binds no
   tokens passes on some messages under the token of whoever gave them to it: that one names two others.
2. The sequence id has not been seen under this key, and is not too old (T1, T2).
3. What begins an exchange does not do so under a token that was spent (:mod:`.spent`). Whatever forgets a spent token
   raises a floor below which no token begins anything: an expiry, or a sequence id for tokens that never expire. Each
   key of an identity has floors of its own, and a token must lie above those of all of them, unless it says that it
   was made under the key that has signed: so nothing is done again that comes under a later key, and a key that was
   stolen locks out no token of its successor.
4. A message about being joined or not counts only if its sender has said nothing newer about that.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from .. import tokens
from ..errors import PolicyError, StoreError
from ..messages import Message, Response
from ..replay import WINDOW_SIZE, ReplayWindow
from .policy import NO_EXPIRY, Policy

if TYPE_CHECKING:
    from .exchange import Peer

__all__ = [
    "FIRST_UNDATED",
    "FRESHNESS",
    "Freshness",
    "Horizon",
    "Horizons",
    "Offers",
    "Signer",
    "key_number",
    "key_text",
    "token_expiry",
]


class Signer(Protocol):
    """The public key that a message was signed with."""

    @property
    def signing_fingerprint(self) -> str:
        """What it is known by."""


FIRST_UNDATED: Final = 9 * 10**17
"""The expiry with which an end without a clock begins to count: it writes how many sequence ids it had used."""

FRESHNESS: Final = "freshness"
"""The fact about an identity that says what is known of its keys."""

_KEY_DIGITS: Final = 32  # how much of a fingerprint names a key here: 128 bits

MAX_TOKEN: Final = 256
"""The most bytes of a token that is not ours: it is remembered for long (T9)."""

MAX_KEYS: Final = 64
"""How many former keys of an identity are remembered; what was known of others is a floor for all keys not named."""

_ALL_SEEN: Final = (1 << WINDOW_SIZE) - 1
_MARGIN: Final = 1.0  # a second longer than a token is good for, or its last moment could see it taken twice


def key_number(key: Signer) -> int:
    """Return the number that names a key here: a large fleet keeps one for each device."""
    return int(key.signing_fingerprint[:_KEY_DIGITS], 16)


def key_text(number: int) -> str:
    """Return the beginning of the fingerprint of a key; "" for 0."""
    return f"{number:0{_KEY_DIGITS}x}" if number else ""


def token_expiry(expiry: float, sequence_id: int, policy: Policy) -> float:
    """Return what to write into a token that ``sequence_id`` is the first message of.

    A partner cannot check a time that nobody here knows. What it gets instead is later than every time, and grows from
    one token to the next, so that it can tell which came first.
    """
    if policy.has_clock:
        return min(expiry, FIRST_UNDATED - 1)
    return min(FIRST_UNDATED + sequence_id, NO_EXPIRY)


class Offers(NamedTuple):
    """The sequence ids of the newest words of a home server about its syndication."""

    begun: int = 0
    ended: int = 0

    def newest(self, other: "Offers") -> "Offers":
        """Return the newer word of each kind."""
        return Offers(max(self.begun, other.begun), max(self.ended, other.ended))


@dataclass(slots=True, eq=False)
class Horizon(ReplayWindow):
    """What has been heard from an identity under one key: nothing older is heard again.

    It is the window and the floors in one: a server has one of them for each device.
    """

    key: int = 0  # what :func:`key_number` says; 0 while nobody has said
    highest: int = 0
    seen: int = 1
    membership_sequence_id: int = 0  # of the newest message that was about being joined or not
    dated_floor: int = 0  # no token that expires at or before this time begins an exchange
    undated_floor: int = 0  # nor does one that never expires and was made at or before this sequence id
    activated_sequence_id: int = 0  # of the newest update order whose firmware was activated
    offers: Offers | None = None  # of a home server, if that has said something

    def made(self, bound: tokens.BoundToken) -> bool:
        """Return whether this token says that it was made under this key."""
        return bound.key != "" and bound.key == key_text(self.key)[: tokens.KEY_DIGITS]

    def refuse_below_floor(self, bound: tokens.BoundToken, sequence_id: int) -> None:
        """Raise PolicyError if this token may have been spent and forgotten."""
        dated, number = self._order(bound, sequence_id)
        if number <= (self.dated_floor if dated else self.undated_floor):
            raise PolicyError("the token is spent, or older than one that was forgotten")

    def raise_floor(self, bound: tokens.BoundToken) -> None:
        """Let nothing begin under this token, nor under those before it.

        One that never expires was made at or before the highest sequence id that was heard under its key. So whoever
        has another key of its maker cannot raise this floor beyond that.
        """
        dated, number = self._order(bound, self.highest)
        if dated:
            self.dated_floor = max(self.dated_floor, number)
        else:
            self.undated_floor = max(self.undated_floor, min(number, self.highest))

    @staticmethod
    def _order(bound: tokens.BoundToken, sequence_id: int) -> tuple[bool, int]:
        """Return whether a token expires at all, and the number by which such tokens are ordered."""
        if bound.expiry < FIRST_UNDATED:
            return True, bound.expiry
        return False, bound.expiry - FIRST_UNDATED if bound.expiry < NO_EXPIRY else sequence_id

    def note_activated(self, sequence_id: int) -> None:
        """Let no update order be carried out that is older than the one with this sequence id."""
        self.activated_sequence_id = max(self.activated_sequence_id, sequence_id)

    def close(self, floor: int = 0) -> None:
        """Refuse every message with a sequence id up to the highest that was seen, or ``floor``."""
        self.highest, self.seen = max(floor, self.highest), _ALL_SEEN

    @property
    def height(self) -> int:
        """How much it would refuse of another key, roughly: sequence ids that come from a clock are microseconds."""
        return max(self.highest, self.dated_floor * 1_000_000, self.undated_floor)

    def dump(self) -> list[object]:
        """Return what a store keeps of it besides the window."""
        numbers = self.membership_sequence_id, self.dated_floor, self.undated_floor, self.activated_sequence_id
        return [key_text(self.key), *numbers, *([self.offers] if self.offers else ())]


class Horizons:
    """What is known of the keys that are not the one by which a peer speaks now, by identity and key."""

    def __init__(self) -> None:
        self._former: dict[int, dict[int, Horizon]] = {}

    def of(self, identity: int) -> Collection[Horizon]:
        """Return what is known of all these keys of an identity."""
        return self._former.get(identity, {}).values()

    def knows(self, identity: int, key: int) -> bool:
        """Return whether something is known of this key."""
        former = self._former.get(identity, {})
        return key in former or 0 in former

    def take(self, identity: int, key: int) -> Horizon:
        """Return what is known of a key, which is the one of its peer from now on."""
        former = self._former.get(identity, {})
        known = former.pop(key, None)
        if known is not None:
            return known
        others = former.get(0)
        new = Horizon(key)
        if others is not None:
            new.close(others.highest)
            new.dated_floor, new.undated_floor = others.dated_floor, others.undated_floor
        return new

    def peek(self, identity: int, key: int) -> Horizon:
        """Return what is known of a key that is retiring."""
        former = self._former.setdefault(identity, {})
        if key not in former:
            former[key] = self.take(identity, key)
            self._limit(former)
        return former[key]

    def leave(self, identity: int, key: int) -> None:
        """Forget what is known of a key here: it is the one of its peer."""
        if key and (former := self._former.get(identity)) is not None:
            former.pop(key, None)

    def put(self, identity: int, horizon: Horizon) -> None:
        """Remember what is known of a key by which its peer speaks no more."""
        if horizon.key:
            former = self._former.setdefault(identity, {})
            former.pop(horizon.key, None)
            former[horizon.key] = horizon
            self._limit(former)

    def _limit(self, former: dict[int, Horizon]) -> None:
        """Forget the key that raises the floor of all others least: one in wrong hands may have said anything (T30)."""
        while len(former) > MAX_KEYS:
            named = [key for key in former if key][:-1]  # the last one was put there just now
            gone = former.pop(min(named, key=lambda key: former[key].height))
            others = former.setdefault(0, Horizon())
            others.close(gone.highest)
            others.dated_floor = max(others.dated_floor, gone.dated_floor)
            others.undated_floor = max(others.undated_floor, gone.undated_floor)

    def close(self, floor: int) -> None:
        """Refuse all that any of these keys has signed so far (T2)."""
        for former in self._former.values():
            for horizon in former.values():
                horizon.close(floor)

    def dump(self, identity: int, current: Horizon | None) -> str | None:
        """Return the fact about an identity, None if there is nothing to say."""
        former = [[horizon.highest, *horizon.dump()] for horizon in self._former.get(identity, {}).values()]
        if current is None and not former:
            return None
        return json.dumps([None if current is None else current.dump(), *former], separators=(",", ":"))

    def load(self, identity: int, text: str, current: Horizon | None) -> None:
        """Take over what :meth:`dump` has written; StoreError for anything else."""
        try:
            kept, *former = json.loads(text)
            if current is not None and kept is not None:
                _read(current, kept)
            for highest, *rest in former:
                horizon = Horizon(highest=highest, seen=_ALL_SEEN)
                _read(horizon, rest)
                self._former.setdefault(identity, {})[horizon.key] = horizon
        except (ValueError, TypeError) as error:
            raise StoreError(f"what the store says of the keys of {identity:x} is not readable: {error}") from None


def _read(horizon: Horizon, kept: list[object]) -> None:
    key, membership, dated, undated, activated, *others = kept
    # Texts are tokens of a peer that was revoked, which earlier versions named.
    offers = next((Offers(*each) for each in others if type(each) is list), None)
    for number in (membership, dated, undated, activated, *(offers or ())):
        if type(number) is not int:
            raise ValueError(f"{number!r} is no number")
    horizon.key = int(str(key) or "0", 16)
    horizon.membership_sequence_id, horizon.dated_floor, horizon.undated_floor = membership, dated, undated  # type: ignore[assignment]
    horizon.activated_sequence_id, horizon.offers = activated, offers  # type: ignore[assignment]


class Freshness:
    """The rule, as one end applies it: ``identity`` is its own.

    ``forwarded`` are the messages that deployed partners pass on under a token that somebody else has made.
    """

    def __init__(self, identity: int, policy: Policy, forwarded: Collection[type[Message]] = ()) -> None:
        self._identity = identity
        self._policy = policy
        self._forwarded = frozenset(forwarded)

    def check_token(self, peer: "Peer", message: Message, now: float) -> tokens.BoundToken | None:
        """Return what the token of a message says that answers nothing known; PolicyError if it is not for us (T3, T4).

        None for a token that is not bound, for one that was passed on with its message, and for a late answer to what
        has been forgotten.
        """
        if len(message.token) > MAX_TOKEN:
            raise PolicyError(f"the token has {len(message.token)} bytes, and {MAX_TOKEN} are possible")
        bound = tokens.parse(message.token)
        if bound is None:
            if peer.binds:
                raise PolicyError(f"the token is not bound, although {peer.identity:x} binds its tokens")
            if self._policy.require_bound_tokens:
                raise PolicyError(f"the token of {peer.identity:x} is not bound, and the policy requires that")
            return None
        if isinstance(message, Response) and bound[:2] == (self._identity, peer.identity):
            return None
        if self._is_forwarded(peer, message, bound):
            self._check_expiry(bound, now)
            return None
        if bound.recipient != self._identity:
            raise PolicyError(f"the message is for {bound.recipient:x}, not for {self._identity:x}")
        if bound.sender != peer.identity:
            raise PolicyError(f"the token is one of {bound.sender:x}, not of {peer.identity:x}")
        self._check_expiry(bound, now)
        return bound

    def is_plain(self, sender: int, token: bytes, now: float) -> bool:
        """Return whether a question's token names its sender and us, has not expired, and says nothing more.

        That is what :meth:`check_token` finds of nearly all, at a fraction of the cost.
        """
        expiry = tokens.plain_expiry(token, sender, self._identity)
        return expiry is not None and (now <= expiry + self._policy.clock_skew or not self._policy.has_clock)

    def _is_forwarded(self, peer: "Peer", message: Message, bound: tokens.BoundToken) -> bool:
        """Return whether a deployed partner has passed this token on with its message: then it binds nothing here.

        One that names us is none: the answer to it, which we sign, would pass for the answer to whoever made it (T3).
        Nor is one that its sender has made, for that is not a deployed peer.
        """
        binds = peer.binds or self._policy.require_bound_tokens
        named = self._identity in bound[:2] or bound.sender == peer.identity
        return type(message) in self._forwarded and not binds and not named

    def _check_expiry(self, bound: tokens.BoundToken, now: float) -> None:
        if self._policy.has_clock and now > bound.expiry + self._policy.clock_skew:
            raise PolicyError(f"the message expired {now - bound.expiry:.0f} seconds ago")

    def expired(self, now: float) -> int:
        """Return up to which expiry a token would be refused as expired, for good measure half a second later."""
        return int(now - self._policy.clock_skew - _MARGIN / 2) if self._policy.has_clock else -1

    def remembered_until(self, bound: tokens.BoundToken | None, now: float) -> float:
        """Return until when an exchange is remembered that a message with this token begins."""
        if bound is None or not self._policy.has_clock or bound.expiry >= FIRST_UNDATED:
            return now + self._policy.update_lifetime
        return bound.expiry + self._policy.clock_skew + _MARGIN

    @staticmethod
    def overtaken(peer: "Peer", said: Message | None, asked: Message | None = None) -> bool:
        """Return whether a peer has said something newer about membership than what it has ``said``.

        An answer is as old as what we had ``asked``, however late it was given: both directions share one counter. What
        the key that counts says is compared with what it has said itself, for a retiring one may be in other hands;
        what a retiring key says, with both.
        """
        newest = max(peer.heard.membership_sequence_id, peer.horizon.membership_sequence_id)
        return any(message is not None and message.sequence_id < newest for message in (said, asked))
