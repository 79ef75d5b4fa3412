"""A campaign as it is written down: the file, and what each of its tables means.

Everything is checked when the file is read, and each complaint names its place. What a campaign does with it stands in
:mod:`srup.campaign.decision`.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

from ..errors import EncodeError
from ..identity import parse_identity
from ..images import file_digest
from ..update import check_order
from ..versions import parse_version, version_field
from .schedule import ALL, Daily, Size, as_share, duration, zone
from .tomlfile import CampaignFileError, SourceFile, Table

__all__ = [
    "OF_DEVICE",
    "Activation",
    "Approval",
    "CampaignFileError",
    "Document",
    "Firmware",
    "Gate",
    "Group",
    "Pace",
    "Stop",
    "Target",
    "Window",
    "read",
]

OF_DEVICE: Final = "device"
"""The time zone that says: that of each device, which its tag ``zone`` names."""

_Then = Literal["stop ordering", "cancel"]
_When = Literal["at once", "window", "command"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Firmware:
    """What is installed. ``types`` are those of the devices that it is for; without any it is for all."""

    digest: str
    url: str
    size: int | None = None
    version: int | None = None
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """Who takes part: all that is said must be true of a device. ``share`` of those is chosen, the same each time.

    With ``late`` a device takes part that comes to match only while the campaign runs.
    """

    where: str | None = None
    devices: frozenset[int] | None = None
    tags: tuple[tuple[str, str], ...] = ()
    type: str | None = None
    share: float = 1.0
    late: bool = False


@dataclass(frozen=True)
class Group:
    """Devices that come together: so many, and for how long the next one waits once the gate would let it in."""

    size: Size = ALL
    hold: float = 0.0


class Stop(NamedTuple):
    """The campaign stops at this many failures, if they are more than this share of the devices that have ended."""

    failures: int
    share: float


_USUAL_STOP: Final = Stop(3, 0.1)


@dataclass(frozen=True)
class Gate:
    """What share of a group must have succeeded before the next one opens, and what stops everything."""

    success: float = 1.0
    stop: Stop = _USUAL_STOP


@dataclass(frozen=True)
class Pace:
    """How fast: orders in any minute, devices at work at once, seconds for a try, tries, the pause after the first.

    Each further pause is twice as long.
    """

    per_minute: int | None = None
    at_once: int | None = None
    timeout: float = 7200.0
    tries: int = 1
    pause: float = 600.0


@dataclass(frozen=True)
class Window:
    """When: from ``start`` to ``end`` (Unix times), and daily. At the end nothing more is ordered, or all is cancelled.

    ``zone`` names the zone of ``daily``: an IANA name, or "device" for that of each device, its tag ``zone``.
    """

    start: float | None = None
    end: float | None = None
    then: _Then = "stop ordering"
    daily: Daily | None = None
    zone: str = ""


@dataclass(frozen=True)
class Activation:
    """When a device activates what it has fetched, and whether only its own word that the firmware runs is a success.

    "window" lets it fetch at any time and activate in the daily window, "command" when an operator says so.
    """

    when: _When = "at once"
    confirm: bool = True


@dataclass(frozen=True)
class Approval:
    """How many people must approve it, not counting who has applied it."""

    people: int = 0


@dataclass(frozen=True)
class Document:
    """A campaign, checked. ``text`` is the file that it was read from."""

    name: str
    firmware: Firmware
    target: Target
    groups: tuple[Group, ...] = (Group(),)
    gate: Gate = Gate()
    pace: Pace = Pace()
    window: Window = Window()
    activation: Activation = Activation()
    approval: Approval = Approval()
    text: str = field(default="", compare=False, repr=False)

    @property
    def held(self) -> bool:
        """Whether a device that has the firmware waits until it is told to activate it.

        With a daily window that is always so: what is fetched too late must wait for the next one.
        """
        return self.activation.when != "at once" or self.window.daily is not None

    def zone_of(self, tags: Mapping[str, str]) -> ZoneInfo:
        """Return the time zone by which the daily window goes for a device with these tags; ValueError without one."""
        return zone(tags.get("zone", "") if self.window.zone == OF_DEVICE else self.window.zone)

    def fields(self) -> dict[str, Any]:
        """Return what JSON can say of it."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "text"}


def _plain(value: Any) -> Any:
    match value:
        case Size():
            return value.number if value.share is None else f"{value.share * 100:g}%"
        case Daily():
            return str(value)
        case Stop():
            return value._asdict()
        case frozenset():
            return [f"{each:x}" for each in sorted(value)]
        case tuple():
            return [_plain(each) for each in value]
        case Firmware():
            told = {each: _plain(getattr(value, each)) for each in asdict(value)}
            return told | {"version": version_field(value.version)}
        case str() | int() | float() | None:
            return value
    return {each: _plain(getattr(value, each)) for each in asdict(value)}


# Reading.


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{value!r:.60} is no text")
    return value


def _yes(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.60} is neither true nor false")
    return value


def _count(least: int, most: int = 10**9) -> Callable[[object], int]:
    def read(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{value!r:.60} is no number from {least} to {most}")
        return value

    return read


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r:.60} is no name: 1 to 100 letters, digits, '.', '_' or '-'")
    return value


def _version(value: object) -> int:
    if isinstance(value, str):
        return parse_version(value)
    if type(value) is not int:
        raise ValueError(f'{value!r:.60} is no version: a number that grows, such as 42, or text such as "4.2.0"')
    return value


def _listed(each: Callable[[object], Any], what: str) -> Callable[[object], tuple[Any, ...]]:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"{value!r:.60} is no list of {what}")
        return tuple(each(one) for one in value)

    return read


def _identity(value: object) -> int:
    return parse_identity(_text(value))


def _tags(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f'{value!r:.60} is no table of tags, such as {{ site = "berlin" }}')
    return tuple(sorted((name, _text(wanted)) for name, wanted in value.items()))


def _moment(value: object) -> float:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"{value!s:.60} is no time with a zone, such as 2026-12-01T00:00:00Z")
    return value.timestamp()


def _one_of(kind: Any) -> Callable[[object], str]:
    known = get_args(kind)

    def read(value: object) -> str:
        if value not in known:
            raise ValueError(f"{value!r:.60} is none of {', '.join(map(repr, known))}")
        return str(value)

    return read


def _above_zero(value: object) -> float:
    seconds = duration(value)
    if not seconds:
        raise ValueError("it must be more than 0 s")
    return seconds


def _pause(value: object) -> float:
    seconds = duration(value)
    if seconds < 60.0:
        raise ValueError("it must be at least a minute")
    return seconds


def _zone(value: object) -> str:
    if value != OF_DEVICE:
        zone(value)
    return str(value)


def read(
    text: str,
    name: str = "campaign",
    folder: Path | None = None,
    where: Callable[[str], object] = lambda text: None,
    *,
    known: tuple[str, int | None] | None = None,
) -> Document:
    """Read a campaign file; ``name`` is its own, ``folder`` that to which the path of the firmware is relative.

    ``where`` raises ValueError for a text that is no condition on devices. With ``known``, the digest and size of the
    firmware, its file is not looked at again. CampaignFileError, with line and column, for whatever is wrong, including
    a firmware file that cannot be read.
    """
    file = SourceFile(name, text)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CampaignFileError(f"{name}: {error}") from None
    whole = Table(file, content, ())
    document = Document(
        name=whole.take("name", _name),
        firmware=_firmware(whole.table("firmware"), folder or Path(), known),
        target=_target(whole.table("target"), where),
        groups=_groups(file, whole.take("group", lambda value: value, [{}])),
        gate=_gate(whole.table("gate")),
        pace=_pace(whole.table("pace")),
        window=_window(whole.table("window")),
        activation=_activation(whole.table("activation")),
        approval=_approval(whole.table("approval")),
        text=text,
    )
    whole.end("name", "firmware", "target", "group", "gate", "pace", "window", "activation", "approval")
    if document.activation.when == "window" and document.window.daily is None:
        file.fail(("activation", "when"), "[activation] when is 'window', and there is no daily in [window]")
    return document


def _firmware(table: Table, folder: Path, known: tuple[str, int | None] | None) -> Firmware:
    path = table.take("file", lambda value: folder / _text(value), None)
    digest = table.take("digest", _text, None)
    url = table.take("url", _text)
    size = None
    if known is not None:
        digest, size = known
    elif path is not None:
        computed = _file_digest(table, path)
        if digest is not None and digest != computed:
            table.file.fail(("firmware", "digest"), f"digest: the file {path.name} has the digest {computed}")
        digest, size = computed, path.stat().st_size
    elif digest is None:
        table.file.fail(table.path, "[firmware] 'file' is missing, or 'digest' in its place")
    version = table.take("version", _version, None)
    for name, arguments in {"url": (url, "0" * 64), "digest": (url, digest), "version": (url, digest, version)}.items():
        try:
            check_order(*arguments)
        except (ValueError, EncodeError) as error:
            table.file.fail(("firmware", name), str(error))
    types = table.take("types", _listed(_text, "types"), ())
    table.end("file", "digest", "url", "version", "types")
    return Firmware(digest, url, size, version, types)


def _file_digest(table: Table, path: Path) -> str:
    """Return the digest of a file that the key ``file`` of a table names."""
    try:
        return file_digest(path)
    except OSError as error:
        table.file.fail((*table.path, "file"), f"file: {path}: {error.strerror}")


def _target(table: Table, where: Callable[[str], object]) -> Target:
    def condition(value: object) -> str:
        where(_text(value))
        return str(value)

    named = table.names - {"late"}
    target = Target(
        where=table.take("where", condition, None),
        devices=table.take("devices", lambda value: frozenset(_listed(_identity, "identities")(value)), None),
        tags=table.take("tags", _tags, ()),
        type=table.take("type", _text, None),
        share=table.take("share", lambda value: Size.read(_text(value)).share, 1.0),
        late=table.take("late", _yes, False),
    )
    table.end("where", "devices", "tags", "type", "share", "late")
    if not named:
        table.file.fail(
            table.path,
            "[target] names nobody: say where, devices, tags or type, or share = '100%' for all devices",
        )
    return target


def _groups(file: SourceFile, content: object) -> tuple[Group, ...]:
    if not isinstance(content, list) or not content:
        file.fail(("group",), "groups are written as [[group]], each with its size")
    groups = []
    for number, each in enumerate(content):
        table = Table(file, each, ("group", number))
        groups.append(Group(table.take("size", Size.read, ALL), table.take("hold", duration, 0.0)))
        table.end("size", "hold")
    return tuple(groups)


def _gate(table: Table) -> Gate:
    inner = table.table("stop")
    stop = Stop(
        inner.take("failures", _count(1), _USUAL_STOP.failures), inner.take("share", as_share, _USUAL_STOP.share)
    )
    inner.end("failures", "share")
    gate = Gate(table.take("success", as_share, 1.0), stop)
    table.end("success", "stop")
    return gate


def _pace(table: Table) -> Pace:
    pace = Pace(
        table.take("per_minute", _count(1), None),
        table.take("at_once", _count(1), None),
        table.take("timeout", _above_zero, Pace.timeout),
        table.take("tries", _count(1, 20), Pace.tries),
        table.take("pause", _pause, Pace.pause),
    )
    table.end(*(each.name for each in fields(Pace)))
    return pace


def _window(table: Table) -> Window:
    window = Window(
        table.take("start", _moment, None),
        table.take("end", _moment, None),
        table.take("then", _one_of(_Then), "stop ordering"),
        table.take("daily", Daily.read, None),
        table.take("zone", _zone, ""),
    )
    table.end(*(each.name for each in fields(Window)))
    if window.start is not None and window.end is not None and window.end <= window.start:
        table.file.fail(("window", "end"), "end: the campaign ends before it starts")
    if (window.daily is None) != (not window.zone):
        table.file.fail(table.path, "[window] daily and zone go together: name both, or neither")
    return window


def _activation(table: Table) -> Activation:
    activation = Activation(table.take("when", _one_of(_When), "at once"), table.take("confirm", _yes, True))
    table.end("when", "confirm")
    return activation


def _approval(table: Table) -> Approval:
    approval = Approval(table.take("people", _count(0, 20), 0))
    table.end("people")
    return approval
