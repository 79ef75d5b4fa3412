"""Which devices a campaign is for, which of them can be updated now, and in which order they come."""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from ..versions import shown_version
from .document import Document

__all__ = ["Candidate", "ineligible", "rank", "targeted"]


class Candidate(NamedTuple):
    """A device as the fleet knows it; ``matches`` is the condition ``where`` of the target, looked at now."""

    identity: int
    member: bool = True
    matches: bool = True
    type: str | None = None
    version: int | None = None
    digest: str | None = None
    tags: Mapping[str, str] = {}


@lru_cache(maxsize=1 << 17)
def rank(name: str, device: int) -> float:
    """Return where a device stands in the campaign with this name, from 0 to 1: by lot, and the same each time."""
    return int.from_bytes(blake2b(f"{name}/{device:x}".encode(), digest_size=8).digest()) / 2.0**64


def targeted(document: Document, device: Candidate) -> bool:
    """Return whether a device is one of those that the campaign is for."""
    target = document.target
    return (
        device.matches
        and (target.devices is None or device.identity in target.devices)
        and all(device.tags.get(name) == value for name, value in target.tags)
        and target.type in (None, device.type)
        and (target.share >= 1.0 or rank(document.name, device.identity) < target.share)
    )


def ineligible(document: Document, device: Candidate | None, busy: Mapping[int, str]) -> str:
    """Return why a device cannot be updated now, "" if it can."""
    firmware = document.firmware
    if device is None:
        return "nothing is known about it any more"
    if not device.member:
        return "it is not joined"
    if firmware.types and device.type is None:
        return "its type is not known, and the firmware is for certain types"
    if firmware.types and device.type not in firmware.types:
        return f"the firmware is not for its type, {device.type}"
    if device.digest == firmware.digest:
        return "it has this firmware already"
    if firmware.version is not None and device.version is not None and device.version >= firmware.version:
        return f"it has version {shown_version(device.version)}"
    if (other := busy.get(device.identity)) is not None:
        return f"it takes part in campaign {other}"
    if document.window.daily is not None:
        try:
            document.zone_of(device.tags)
        except ValueError:
            return "its time zone is not known: give it a tag zone, such as Europe/Berlin"
    return ""
