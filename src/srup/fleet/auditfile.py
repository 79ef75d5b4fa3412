"""An audit in a file: JSON, one object a line, with the signed bytes and the keys, so that nothing else is needed.

The first line names the form and the server. A key stands before the first record that it has signed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from .audit import AuditRecord, Verdict, judge

__all__ = ["FORM", "export_lines", "fields_of", "read_export"]

FORM: Final = 1
"""Of the file; a reader refuses any other."""

_LONGEST: Final = 1 << 20  # characters of a line: a message has 65,535 bytes at most, in hex
_TEXTS: Final = ("direction", "message", "token", "outcome")
_MORE: Final = ("posted_by", "order", "fingerprint")


def fields_of(record: AuditRecord) -> dict[str, Any]:
    """Return a record as JSON has it: identities and bytes in hex, the time in ISO 8601."""
    return {
        "at": datetime.fromtimestamp(record.at, UTC).isoformat(),
        "direction": record.direction,
        "peer": f"{record.peer:x}",
        "message": record.message,
        "sequence_id": record.sequence_id,
        "token": record.token,
        "outcome": record.outcome,
        "posted_by": record.posted_by,
        "order": record.order,
        "fingerprint": record.fingerprint,
        "wire": None if record.wire is None else record.wire.hex(),
    }


def export_lines(
    server: int, records: Iterable[AuditRecord], key_of: Callable[[AuditRecord], bytes | None]
) -> Iterator[str]:
    """Return the lines of a file with these records of a server and the keys that have signed them."""
    yield json.dumps({"srup_audit": FORM, "server": f"{server:x}"})
    told: set[str] = set()
    for record in records:
        if record.wire is not None and record.fingerprint is not None and record.fingerprint not in told:
            told.add(record.fingerprint)
            if (pem := key_of(record)) is not None:
                yield json.dumps({"key": record.fingerprint, "pem": pem.decode()})
        yield json.dumps(fields_of(record))


def read_export(lines: Iterable[str]) -> Iterator[tuple[AuditRecord, Verdict, str]]:
    """Return each record of a file, with what its signature is worth by the keys in the file, and why.

    ValueError names the line that is none of such a file; what stood before it counts.
    """
    keys: dict[str, bytes] = {}
    server: int | None = None
    for number, line in enumerate(lines, 1):
        try:
            if len(line) > _LONGEST:
                raise ValueError("it is too long")
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            if server is None:
                server = _server(content)
            elif "key" in content:
                keys[_text(content, "key")] = _text(content, "pem").encode()
            else:
                record = _record(content, server)
                yield record, *judge(record, keys.get(record.fingerprint or ""))
        except ValueError as error:
            raise ValueError(f"line {number} is no line of an audit: {error}") from None
    if server is None:
        raise ValueError("the file is empty: it is no audit")


def _server(content: Mapping[str, Any]) -> int:
    if content.get("srup_audit") != FORM:
        raise ValueError(f'it must begin with "srup_audit": {FORM}')
    return int(_text(content, "server"), 16)


def _record(content: Mapping[str, Any], server: int) -> AuditRecord:
    number = content.get("sequence_id")
    if type(number) is not int:
        raise ValueError("sequence_id is no number")
    wire = content.get("wire")
    more: dict[str, Any] = {name: None if content.get(name) is None else _text(content, name) for name in _MORE}
    return AuditRecord(
        server=server,
        at=datetime.fromisoformat(_text(content, "at")).timestamp(),
        peer=int(_text(content, "peer"), 16),
        sequence_id=number,
        wire=None if wire is None else bytes.fromhex(_text(content, "wire")),
        **{name: _text(content, name) for name in _TEXTS},
        **more,
    )


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value
