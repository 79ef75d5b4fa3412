"""``srup inspect``: show what messages say, and who signed them."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.text import Text

import srup

from ..capture import Captured, is_capture, messages_in
from ..errors import DecodeError, PolicyError
from ..inspection import Inspection, Verdict, inspect, wires_in
from ..printable import printable
from ..tokens import parse
from .apps import App
from .options import Json
from .terminal import console, explained, fail

__all__ = ["app"]

app = App()

_STDIN: Final = "-"
_SHOWN: Final = 160  # characters of a field
_STYLES: Final = {
    Verdict.VALID: "bold green",
    Verdict.INVALID: "bold red",
    Verdict.UNKNOWN_SENDER: "yellow",
    Verdict.NOT_CHECKED: "yellow",
    Verdict.ABSENT: "yellow",
}
_REMARKS: Final = {
    Verdict.NOT_CHECKED: "give --devices or --key to check it",
    Verdict.UNKNOWN_SENDER: "so nothing of this is proven",
    Verdict.INVALID: "nothing of this may be believed",
    Verdict.ABSENT: "this type of message has none",
}


_LARGEST: Final = 64 << 20
"""Bytes of a file of messages; a packet capture may have more."""


class _Found(NamedTuple):
    """A message, and where it was seen if it comes from a capture."""

    wire: bytes
    captured: Captured | None = None


@app.command("inspect")
def inspect_command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="A message in hex or base64, a file of messages, a packet capture, or - for standard input (default).",
        ),
    ] = None,
    devices: Annotated[
        Path | None, typer.Option(help="Folder with the senders' public keys, <identity in hex>.pem or .pem.pub.")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option(help="A public key to try for senders that --devices lacks; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show messages field by field, and check their signatures with the keys that you give.

    Exit status 1 if something is not an SRUP message, or a signature is invalid.
    """
    show = _print_json if as_json else _print_text
    with explained():
        ring = None if devices is None else srup.KeyRing.load(devices)
        tried = [srup.PublicKey.load(path) for path in key or ()]
        good, count = True, 0
        for source in sources or [_STDIN]:
            for found in _messages(source):
                count += 1
                try:
                    result: Inspection | DecodeError = inspect(found.wire, ring, tried)
                except DecodeError as error:
                    result = error
                good &= isinstance(result, Inspection) and result.verdict is not Verdict.INVALID
                show(found, result)
    if not count:
        fail("no SRUP message found")
    raise typer.Exit(0 if good else 1)


def _messages(source: str) -> Iterator[_Found]:
    if source == _STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            fail("give a message, a file or a packet capture; see srup inspect --help")
        content = sys.stdin.buffer.read()
    elif _is_file(source):
        content = _content(Path(source))
    else:
        content = source.encode("utf-8", "surrogateescape")
    if is_capture(content):
        for captured in messages_in(content):
            yield _Found(captured.wire, captured)
        return
    try:
        wires = wires_in(content)
    except ValueError as error:
        if source == _STDIN or _is_file(source):
            raise ValueError(f"{source}: {error}") from None
        if _is_folder(source):
            raise ValueError(f"{source[:60]!a} is a folder; name a file in it") from None
        raise ValueError(f"{source[:60]!a} is neither a file nor a message in hexadecimal digits or base64") from None
    for wire in wires:
        yield _Found(wire)


def _content(path: Path) -> bytes:
    """Read a file; ValueError, before it fills the memory, for one that is too large to be a file of messages."""
    with path.open("rb") as file:
        start = file.read(4)
        if not is_capture(start) and path.stat().st_size > _LARGEST:
            raise ValueError(f"{path}: more than {_LARGEST >> 20} MiB, and no packet capture")
        return start + file.read()


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _is_folder(source: str) -> bool:
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):
        return False


def _print_json(found: _Found, result: Inspection | DecodeError) -> None:
    where: dict[str, Any] = {}
    if (seen := found.captured) is not None:
        at = datetime.fromtimestamp(seen.at, UTC).isoformat()
        where = {"at": at, "source": seen.source, "destination": seen.destination, "topic": printable(seen.topic)}
    if isinstance(result, DecodeError):
        print(json.dumps(where | {"error": str(result), "bytes": found.wire.hex()}))
    else:
        print(json.dumps(where | result.as_json()))


def _print_text(found: _Found, result: Inspection | DecodeError) -> None:
    if (seen := found.captured) is not None:
        at = datetime.fromtimestamp(seen.at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        _line((f"{at} UTC  {seen.source} to {seen.destination}  ", "dim"), (printable(seen.topic), "cyan"))
    if isinstance(result, DecodeError):
        _line(("not an SRUP message: ", "bold red"), (printable(str(result), 300), ""))
        _line()
        return
    _line((result.message, "bold"), (f", {result.size} bytes", "dim"))
    widest = max(map(len, [*result.fields, "signature"]))
    for name, value in result.fields.items():
        text, note = _shown(name, value)
        _line((f"  {name:<{widest}}  ", "cyan"), (text, ""), (f"  {note}" if note else "", "dim"))
    told = _REMARKS.get(result.verdict) or f"by key {result.key}"
    size = f" ({len(result.signature)} bytes)" if result.signature else ""
    label = (f"  {'signature':<{widest}}  ", "cyan")
    _line(label, (result.verdict.value, _STYLES[result.verdict]), (f"  {told}{size}", "dim"))
    _line()


def _line(*parts: tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), soft_wrap=True)


def _shown(name: str, value: Any) -> tuple[str, str]:
    """Return a field as text, and what a reader may want to know besides."""
    if (explain := _NOTES.get(name)) is not None:
        return explain(value)
    if isinstance(value, bytes):
        return _bytes(value)
    return (printable(value, _SHOWN, words=True) if isinstance(value, str) else str(value)), ""


def _bytes(value: bytes) -> tuple[str, str]:
    size = f"{len(value)} {'byte' if len(value) == 1 else 'bytes'}"
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and text:
        return printable(text, _SHOWN), size
    digits = value.hex()
    return (digits if len(digits) <= _SHOWN else f"{digits[: _SHOWN - 3]}..."), f"{size}, hex" if value else size


def _status(value: int) -> tuple[str, str]:
    try:
        return srup.Status(value).name, f"0x{value:02X}"
    except ValueError:
        return f"0x{value:02X}", "not a status of this protocol"


def _token(value: bytes) -> tuple[str, str]:
    text, size = _bytes(value)
    try:
        bound = parse(value)
    except PolicyError:
        return text, "malformed bound token"
    if bound is None:
        return text, size
    until = _time(bound.expiry)
    version = "" if bound.version is None else f", firmware version {bound.version}"
    return text, f"from {bound.sender:x} for {bound.recipient:x}, valid until {until}{version}"


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"second {seconds}"


_NOTES: Final[dict[str, Callable[[Any], tuple[str, str]]]] = {
    "token": _token,
    "status": _status,
    "sealed": lambda value: (_bytes(value)[0], f"{len(value)} bytes, sealed to the recipient"),
    **dict.fromkeys(
        ("sender_id", "target_id", "device_id", "source_id", "joining_device_id", "observer_id"),
        lambda value: (f"{value:x}", ""),
    ),
}
