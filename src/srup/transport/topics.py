"""Topics: where a message travels, and which device and server that names (docs/protocol/flows.md#f-2).

::

    SRUP/<device>                    everything but join requests, in both directions
    SRUP/servers/<server>/<device>   join requests to a server

An identity is a 64-bit number in lower-case hex without leading zeros, so an address has exactly one spelling.
A topic arrives from the network and proves nothing: the caller compares the device with the signed ``sender_id``.
"""

import re
from functools import lru_cache
from typing import Final, NamedTuple

from srup.errors import PolicyError, TransportError
from srup.identity import CANONICAL
from srup.printable import printable

__all__ = [
    "EVERYTHING",
    "Address",
    "check_filter",
    "check_topic",
    "device_filter",
    "device_topic",
    "join_filter",
    "join_topic",
    "matches",
    "parse_topic",
]

EVERYTHING: Final = "SRUP/#"
"""The filter of a listener to all SRUP traffic."""

_TOPIC: Final = re.compile(f"SRUP/(?:servers/(?P<server>{CANONICAL})/)?(?P<device>{CANONICAL})")
_REMEMBERED: Final = 1024  # topics; one is read again for every message on it
_LONGEST: Final = 65535  # bytes of UTF-8: MQTT 5.0, section 1.5.4


class Address(NamedTuple):
    """Whom a topic belongs to: a device, and for a join topic the server it wants to join."""

    server: int | None
    device: int


def device_topic(identity: int) -> str:
    """The topic of a device: ``SRUP/<device>``. ValueError unless 0 <= identity < 2**64."""
    if type(identity) is int and 0 <= identity < 1 << 64:  # as _hex does, without a call for each message
        return f"SRUP/{identity:x}"
    return f"SRUP/{_hex(identity)}"


def device_filter(identity: int) -> str:
    """What a server subscribes to for a device it has accepted: ``SRUP/<device>/#``, the topic itself included."""
    return f"SRUP/{_hex(identity)}/#"


def join_topic(server: int, device: int) -> str:
    """Where a device asks to join a server: ``SRUP/servers/<server>/<device>``."""
    return f"SRUP/servers/{_hex(server)}/{_hex(device)}"


def join_filter(server: int) -> str:
    """What a server subscribes to for joins: ``SRUP/servers/<server>/#``."""
    return f"SRUP/servers/{_hex(server)}/#"


@lru_cache(_REMEMBERED)
def parse_topic(topic: str) -> Address:
    """The one address that a topic spells; PolicyError for everything that this module would not have written."""
    if (match := _TOPIC.fullmatch(topic)) is None:
        raise PolicyError(f"not a topic of this protocol: '{printable(topic, 80)}'")
    server, device = match["server"], match["device"]
    return Address(None if server is None else int(server, 16), int(device, 16))


def check_topic(topic: str) -> None:
    """Return if MQTT lets a client publish to ``topic`` (MQTT 5.0, section 4.7); TransportError otherwise."""
    if not _is_mqtt_text(topic) or "+" in topic or "#" in topic:
        raise TransportError(f"not a topic that can be published to: '{printable(topic, 80)}'")


def check_filter(topic_filter: str) -> None:
    """Return if MQTT lets a client subscribe to ``topic_filter`` (MQTT 5.0, section 4.7); TransportError otherwise."""
    levels = topic_filter.split("/")
    wildcards_alone = all(level in ("+", "#") or not {"+", "#"} & set(level) for level in levels)
    if not _is_mqtt_text(topic_filter) or not wildcards_alone or "#" in levels[:-1]:
        raise TransportError(f"not a topic filter: '{printable(topic_filter, 80)}'")


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a valid filter selects a valid topic: ``+`` is one level, a final ``#`` is the parent and all below it.

    A leading wildcard does not select topics that start with ``$`` (MQTT 5.0, section 4.7.2).
    """
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    if wanted[-1] == "#":
        del wanted[-1]
        del levels[len(wanted) :]
    return len(wanted) == len(levels) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))


def _hex(identity: int) -> str:
    if type(identity) is not int or not 0 <= identity < 1 << 64:
        raise ValueError(f"an identity is a 64-bit unsigned number, not {identity!r}")
    return f"{identity:x}"


def _is_mqtt_text(text: str) -> bool:
    try:
        return 0 < len(text.encode()) <= _LONGEST and "\0" not in text
    except UnicodeEncodeError:  # a lone surrogate
        return False
