"""Which devices of a fleet: conditions such as ``tag.site=berlin and version<42 and last_contact<1h``."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..versions import parse_version
from .devices import FleetDevice

__all__ = ["FIELDS", "where"]

_CONDITION: Final = re.compile(r"\s*([a-z_]+(?:\.[^\s=<>!]+)?)\s*(!=|<=|>=|=|<|>)\s*(\"[^\"]*\"|\S+)\s*")
_AGES: Final = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_COMPARED: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": lambda mine, wanted: bool(mine == wanted),
    "!=": lambda mine, wanted: bool(mine != wanted),
    "<": lambda mine, wanted: mine is not None and bool(mine < wanted),
    "<=": lambda mine, wanted: mine is not None and bool(mine <= wanted),
    ">": lambda mine, wanted: mine is not None and bool(mine > wanted),
    ">=": lambda mine, wanted: mine is not None and bool(mine >= wanted),
}


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text)
    if match is None:
        raise ValueError(f"{text!r} is no time: a number and s, min, h or d, as in 90min")
    return float(match[1]) * _AGES[match[2]]


def _identity(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise ValueError(f"{text!r} is no identity, which has hexadecimal digits") from None


def _truth(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is neither yes nor no")
    return text == "yes"


def _since(at: float | None, now: float) -> float | None:
    return None if at is None else now - at


FIELDS: Final[Mapping[str, tuple[Callable[[str], Any], Callable[[FleetDevice, float], Any]]]] = {
    "identity": (_identity, lambda device, now: device.identity),
    "member": (_truth, lambda device, now: device.member),
    "firmware": (str, lambda device, now: device.firmware),
    "version": (parse_version, lambda device, now: device.version),
    "firmware.version": (parse_version, lambda device, now: device.version),
    "last_contact": (_age, lambda device, now: _since(device.last_contact, now)),
    "update": (str.upper, lambda device, now: None if device.update is None else device.update.state),
    "fingerprint": (str, lambda device, now: device.fingerprint),
    "type": (str, lambda device, now: device.type),
    "name": (str, lambda device, now: device.name),
    "description": (str, lambda device, now: device.facts.get("description")),
}
"""What can be compared, how the value is read, and what it is compared with; ``tag.NAME`` and ``fact.NAME`` as well."""


def where(text: str) -> Callable[[FleetDevice, float], bool]:
    """Return what tells of a device, at a Unix time, whether all conditions hold that ``text`` joins by "and".

    A value with blanks stands in quotation marks. ``last_contact`` is compared with how long ago it was. What is not
    known is equal to nothing, and neither more nor less. ValueError that names what cannot be read.
    """
    conditions = [_condition(part) for part in re.split(r"\s+and\s+", text.strip())]
    return lambda device, now: all(holds(device, now) for holds in conditions)


def _condition(text: str) -> Callable[[FleetDevice, float], bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no condition: FIELD, one of = != < <= > >=, VALUE, as in last_contact<1h")
    name, sign, value = match[1], match[2], match[3].strip('"')
    compared = _COMPARED[sign]
    if name.startswith("tag."):
        return lambda device, now: compared(device.tags.get(name[4:]), value)
    if name.startswith("fact."):
        return lambda device, now: compared(device.facts.get(name[5:]), value)
    if name not in FIELDS:
        raise ValueError(f"{name} cannot be compared; what can is {', '.join(FIELDS)}, tag.NAME and fact.NAME")
    read, of = FIELDS[name]
    try:
        wanted = read(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return lambda device, now: compared(of(device, now), wanted)
