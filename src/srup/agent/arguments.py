"""What arguments of public methods must be, and what they mean."""

import os
from collections.abc import Callable

from ..store import Store
from ..transport.base import Transport
from ..transport.mqtt import MqttTransport

__all__ = ["check_identity", "check_type", "checked_identity", "sequence_origin", "store_at", "transport_to"]


def store_at(store: Store | str | os.PathLike[str] | None) -> Store | None:
    """Return what a ``store`` argument means: a store as it is, or the SQLite database at a path."""
    if isinstance(store, str | os.PathLike):
        from ..store.sqlite import SqliteStore  # sqlite3 takes a while to import, and few devices need it

        return SqliteStore(store)
    if store is not None and not hasattr(store, "commit"):
        raise TypeError(f"store must be a path or a Store, not {type(store).__name__}")
    return store


def sequence_origin(clock: Callable[[], float]) -> int:
    """Return a first sequence id that lies above all that were sent before this start, without having stored them.

    It counts microseconds of Unix time; nobody sends a million messages a second for long. A clock that was set back
    between two starts makes partners refuse messages until it is right or has caught up.
    """
    return max(1, int(clock() * 1e6))


def check_identity(identity: object, what: str = "identity") -> None:
    """Raise ValueError unless this is an identity."""
    if type(identity) is not int or not 0 <= identity < 1 << 64:
        raise ValueError(f"{what} must be an int in 0..2**64-1, not {identity!r}")


def checked_identity(identity: int, what: str) -> int:
    """Return an identity; ValueError if it is none."""
    check_identity(identity, what)
    return identity


def check_type(value: object, wanted: type | tuple[type, ...], what: str) -> None:
    """Raise TypeError unless ``value`` is one of these."""
    if not isinstance(value, wanted):
        names = " or ".join(cls.__name__ for cls in (wanted if isinstance(wanted, tuple) else (wanted,)))
        raise TypeError(f"{what} must be a {names}, not {type(value).__name__}")


def transport_to(broker: str | Transport) -> Transport:
    """Return what a ``broker`` argument means: a transport as it is, or one to a URL."""
    if isinstance(broker, str):
        return MqttTransport(broker)
    if not hasattr(broker, "publish"):
        raise TypeError(f"broker must be a URL or a Transport, not {type(broker).__name__}")
    return broker
