"""What is known about a device: every word of it was signed by the device, or is the server's own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from ..agent.contacts import HEARD
from ..agent.facts import INVENTORY, LAST_UPDATE, TAG
from ..agent.inventory import read_inventory
from ..keys import PublicKey
from ..store.directory import KnownDevice

__all__ = ["FleetDevice", "LastUpdate"]


@dataclass(frozen=True)
class LastUpdate:
    """The newest update of a device: its ``state`` since ``at`` (Unix time), of which firmware, and why it failed."""

    state: str
    at: float
    digest: str
    version: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class FleetDevice:
    """A device as the store of its server knows it.

    ``key`` is the one that counts, as PEM, None when it has none: it was removed or revoked. ``last_contact`` is when
    the newest message with a valid signature was accepted, in Unix time and to a minute, None for never. ``firmware``
    is the digest, and ``version`` the version, of what it has activated last, or says that it runs. ``tags`` were given
    by an operator, ``facts`` are reported by the device: its ``description``, and its inventory.
    """

    identity: int
    member: bool
    key: bytes | None
    last_contact: float | None
    firmware: str | None
    version: int | None
    update: LastUpdate | None
    tags: Mapping[str, str]
    facts: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of the key, to compare with what the device shows; InvalidKeyError for what is no key."""
        return None if self.key is None else PublicKey.from_pem(self.key).fingerprint

    @property
    def type(self) -> str | None:
        """The kind of hardware: the tag ``type``, or else what the device reports."""
        return self.label("type")

    @property
    def name(self) -> str | None:
        """What people call it: the tag ``name``, or else what the device reports."""
        return self.label("name")

    def label(self, name: str) -> str | None:
        """Return the tag of this name, or else the fact that the device reports; what an operator says counts more."""
        return self.tags.get(name) or self.facts.get(name)

    @classmethod
    def of(cls, known: KnownDevice) -> Self:
        """Return what these records say. A fact that cannot be read is left out: the rest counts all the same."""
        facts = dict(known.facts)
        version = facts.pop("version", "")
        return cls(
            identity=known.identity,
            member=known.partner is not None and known.partner.member,
            key=known.key.key if known.key is not None else None,
            last_contact=_number(facts.pop(HEARD, "")),
            firmware=facts.pop("firmware", None),
            version=int(version) if version.isdecimal() else None,
            update=_last_update(facts.pop(LAST_UPDATE, "")),
            tags={name.removeprefix(TAG): value for name, value in sorted(facts.items()) if name.startswith(TAG)},
            facts=read_inventory(facts.get(INVENTORY))
            | {name: value for name, value in facts.items() if name == "description"},
        )


def _number(text: str) -> float | None:
    return float(text) if text.isdecimal() else None


def _last_update(text: str) -> LastUpdate | None:
    if not text:
        return None
    try:
        told: dict[str, Any] = json.loads(text)
        return LastUpdate(**told)
    except (ValueError, TypeError):
        return None
