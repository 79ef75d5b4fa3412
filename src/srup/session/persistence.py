"""What survives a restart, and how it is written: peers, exchanges and facts as records, and back.

An exchange is written as JSON text. Beside what JSON knows, it may hold bytes, tuples, statuses, messages and their
classes, the records that are registered with :func:`record`, and other exchanges, which are written as partner and
token. What does not survive stands in the flows (``volatile``).
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Final, TypeVar

from ..errors import StoreError
from ..messages import SCHEMA, Message
from ..records import Changes, ExchangeRecord, Fact, PartnerRecord
from ..wire import Status
from .exchange import Exchange, ExchangeTable, Peer
from .freshness import Horizon, key_text

__all__ = [
    "LAST_SENT_ID",
    "MEMBERSHIP",
    "collect",
    "dump",
    "load",
    "read_exchange",
    "read_peer",
    "record",
    "write_exchange",
    "write_peer",
]

LAST_SENT_ID: Final = "spent"
"""The fact about an identity that had another key: the last sequence id that was sent to it then."""

MEMBERSHIP: Final = "decided"
"""The fact in which earlier versions kept the sequence id of the newest message about being joined or not."""

_MESSAGES: Final[dict[str, Any]] = {cls.__name__: cls for cls in SCHEMA[:]}
_RECORDS: Final[dict[str, type[Any]]] = {}
_NAMES: Final[dict[type[Any], str]] = {}
_PLAIN: Final = (str, int, float, type(None))

Record = TypeVar("Record", bound=type[Any])


def record(name: str) -> Callable[[Record], Record]:
    """Register a NamedTuple or a dataclass under a name that never changes; exchanges may then hold it."""

    def register(cls: Record) -> Record:
        _RECORDS[name], _NAMES[cls] = cls, name
        return cls

    return register


def dump(value: object, name: Callable[[Any], tuple[int, bytes] | None]) -> str:
    """Return the JSON of a value; ``name`` gives partner and token of an exchange, and None for anything else."""
    return json.dumps(_plain(value, name), separators=(",", ":"))


def load(text: str, find: Callable[[int, bytes], Any]) -> Any:
    """Return the value that :func:`dump` has written; ``find`` gives the exchange of a partner and a token.

    StoreError for a text that this version cannot have written.
    """
    try:
        return _rich(json.loads(text), find)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"an exchange in the store is not readable ({error}); was a newer version here?") from None


def _plain(value: Any, name: Callable[[Any], tuple[int, bytes] | None]) -> Any:
    kind = type(value)
    if kind in _PLAIN or kind is bool:
        return value
    if kind is bytes:
        return {"b": value.hex()}
    if kind is Status:
        return {"s": int(value)}
    if kind is dict:
        return {"d": {key: _plain(each, name) for key, each in value.items()}}
    if isinstance(value, Message):
        return {"m": kind.__name__, "f": {key: _plain(each, name) for key, each in value}}
    if isinstance(value, type) and issubclass(value, Message):
        return {"c": value.__name__}
    if (known := _NAMES.get(kind)) is not None:
        parts = [getattr(value, each.name) for each in fields(value)] if is_dataclass(value) else list(value)
        return {"r": known, "v": [_plain(each, name) for each in parts]}
    if kind is tuple:
        return {"t": [_plain(each, name) for each in value]}
    if (named := name(value)) is not None:
        return {"x": [named[0], named[1].hex()]}
    raise TypeError(f"{kind.__name__} cannot be kept in a store")


def _rich(value: Any, find: Callable[[int, bytes], Any]) -> Any:
    match value:
        case {"b": text}:
            return bytes.fromhex(text)
        case {"s": number}:
            return Status(number)
        case {"d": entries}:
            return {key: _rich(each, find) for key, each in entries.items()}
        case {"m": cls, "f": entries}:
            return _MESSAGES[cls](**{key: _rich(each, find) for key, each in entries.items()})
        case {"c": cls}:
            return _MESSAGES[cls]
        case {"r": cls, "v": parts}:
            return _RECORDS[cls](*(_rich(each, find) for each in parts))
        case {"t": parts}:
            return tuple(_rich(each, find) for each in parts)
        case {"x": [partner, token]}:
            return find(partner, bytes.fromhex(token))
        case dict() | list():
            raise ValueError("unknown form")
    return value


# Exchanges: each attribute with its name in the text.

_STORED: Final[Mapping[str, str]] = {
    "mine": "mine",
    "request": "request",
    "status": "status",
    "retry": "retry",
    "single_use": "spends",
    "began": "began",
    "detail": "detail",
}
_KEY: Final = "key"  # that the exchange was begun under, if it is not the one that counts
_ATTRIBUTES: Final = {stored: name for name, stored in _STORED.items()}

_RENAMED: Final[Mapping[str, str]] = {
    "DeviceState.ANSWERED": "IdentificationState.ANSWERED",
    "DeviceState": "LeavingState",
    "ServerState.IDENTIFYING": "IdentificationState.IDENTIFYING",
    "ServerState.UNANSWERED": "IdentificationState.UNANSWERED",
    "ServerState": "LeavingState",
    **{
        f"SyndicationState.{name}": f"HomeState.{name}"
        for name in ("STARTING", "STARTED", "LISTED", "IDENTIFYING", "ENDING")
    },
    "SyndicationState": "AwayState",
}
"""States that earlier versions wrote under another name, by the whole name or that of their kind."""


def write_exchange(exchange: Exchange, lead: float = 0.0) -> ExchangeRecord:
    """Return what a store keeps of an exchange; Unix time is ``lead`` seconds ahead of the times in it."""
    text: dict[str, Any] = {"state": _state_name(exchange.state)}
    text |= {stored: getattr(exchange, name) for name, stored in _STORED.items()}
    if exchange.began:
        text["began"] += lead
    if exchange.horizon not in (None, exchange.peer.horizon) and exchange.horizon.key:
        text[_KEY] = key_text(exchange.horizon.key)
    # An action may have the number 0.
    text = {name: value for name, value in text.items() if value not in (None, False, 0.0) or type(value) is int}
    return ExchangeRecord(exchange.peer.identity, exchange.token, exchange.expiry + lead, dump(text, _named))


def read_exchange(
    exchange: Exchange,
    text: str,
    known: Mapping[tuple[int, bytes], Exchange],
    states: Collection[Enum],
    horizon_of: Callable[[Peer, int], Horizon],
) -> None:
    """Give an exchange what is written about it; ``known`` are those that it may name, ``states`` all that exist here.

    ``horizon_of`` tells what is known of a key of its peer. StoreError for a text that this version cannot have
    written.
    """
    kept = load(text, lambda partner, token: known.get((partner, token)))
    name = str(kept.pop("state", "")) if type(kept) is dict else ""
    kind, _, which = name.partition(".")
    name = _RENAMED.get(name) or f"{_RENAMED.get(kind, kind)}.{which}"
    state = next((each for each in states if _state_name(each) == name), None)
    key = kept.pop(_KEY, "0") if state is not None else ""
    if state is None or not kept.keys() <= _ATTRIBUTES.keys():
        raise StoreError(f"an exchange of {exchange.peer.identity:x} is in a state that this version does not know")
    exchange.state = state
    exchange.horizon = horizon_of(exchange.peer, int(key, 16))
    for stored, value in kept.items():
        setattr(exchange, _ATTRIBUTES[stored], value)


def _state_name(state: Enum) -> str:
    return f"{type(state).__name__}.{state.name}"


def _named(value: object) -> tuple[int, bytes] | None:
    return (value.peer.identity, value.token) if isinstance(value, Exchange) else None


# Peers.


def write_peer(peer: Peer) -> PartnerRecord:
    """Return what a store keeps of a peer besides facts."""
    window = peer.window
    return PartnerRecord(peer.identity, peer.member, peer.binds, peer.reserved, window.highest, window.seen)


def read_peer(kept: PartnerRecord) -> Peer:
    """Return the peer that :func:`write_peer` has written."""
    # As long as no fact says more: what was sent before does not bring anybody back in.
    decided = 0 if kept.member else kept.highest
    horizon = Horizon(highest=kept.highest, seen=kept.seen, membership_sequence_id=decided)
    return Peer(kept.identity, kept.member, kept.binds, kept.reserved, kept.reserved, horizon)


def collect(
    known: ExchangeTable, volatile: Collection[Enum], facts: Mapping[tuple[int, str], str | None], lead: float = 0.0
) -> Changes:
    """Return all that has changed since the last call; exchanges in a ``volatile`` state are not kept.

    Unix time is ``lead`` seconds ahead of the times in them.
    """
    peers, exchanges, dropped = known.take_changed()
    changes = Changes(partners=[write_peer(peer) for peer in peers], forgotten=dropped)
    for peer_id, token in exchanges:
        exchange = known.find(peer_id, token)
        if exchange is None or exchange.state in volatile:
            changes.ended.append((peer_id, token))
        else:
            changes.exchanges.append(write_exchange(exchange, lead))
    changes.facts = [Fact(peer_id, name, value) for (peer_id, name), value in facts.items()]
    return changes
