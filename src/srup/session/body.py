"""What an exchange has to remember, as JSON text and back: for a store that keeps it over a restart.

Beside what JSON knows, an exchange may hold bytes, tuples, statuses, messages and their classes, the records that are
registered with :func:`kept`, and other exchanges, which are written as partner and token.
"""

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Final, TypeVar

from ..errors import StoreError
from ..messages import SCHEMA, Message
from ..wire import Status

__all__ = ["dump", "kept", "load"]

_MESSAGES: Final[dict[str, Any]] = {cls.__name__: cls for cls in SCHEMA[:]}
_RECORDS: Final[dict[str, type[Any]]] = {}
_PLAIN: Final = (str, int, float, type(None))

Kept = TypeVar("Kept", bound=type[Any])


def kept(cls: Kept) -> Kept:
    """Register a NamedTuple or a dataclass, which exchanges may then hold; its name is part of what is stored."""
    _RECORDS[cls.__name__] = cls
    return cls


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
    if _RECORDS.get(kind.__name__) is kind:
        parts = [getattr(value, each.name) for each in fields(value)] if is_dataclass(value) else list(value)
        return {"r": kind.__name__, "v": [_plain(each, name) for each in parts]}
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
