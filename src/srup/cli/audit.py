"""The commands for the audit of a server: what it has heard and signed, whether it runs or not."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import srup

from ..campaign.schedule import duration
from ..fleet import AuditRecord, Verdict
from ..fleet.auditfile import export_lines, fields_of, read_export
from ..printable import printable
from .apps import App
from .fleets import OfServer, StoreOfServer, choose, chosen
from .options import Json, identity
from .tables import iso, table
from .terminal import explained, tell

__all__ = ["GIVE_WAY", "app", "audit_row"]

app = App(help="Show and check what a server has heard and signed, whether it runs or not.", no_args_is_help=False)

_USAGE: Final = "srup audit --store PATH|URL --identity HEX"
GIVE_WAY: Final = ("ORDER", "TOKEN", "POSTED BY", "OUTCOME")
"""The columns that give way in a narrow window, in this order."""

_PAGE: Final = 500  # records that are laid out together
_CONTROL: Final = "audit filter"


def _moment(typed: str) -> float:
    """Return a Unix time from a date, a date and time (UTC unless it says so), or how long ago it was."""
    try:
        return time.time() - duration(typed)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(typed)
    except ValueError:
        raise typer.BadParameter(f"{typed!r:.80} is no time: 2026-10-01, 2026-10-01T12:00, or 24h ago as 24h") from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def _time(help: str) -> Any:
    return typer.Option(parser=_moment, metavar="TIME", help=help)


@app.callback(invoke_without_command=True)
def _list(
    context: typer.Context,
    store: StoreOfServer = None,
    server: OfServer = None,
    device: Annotated[
        int | None, typer.Option(parser=identity, metavar="HEX", help="Only what was exchanged with this device.")
    ] = None,
    since: Annotated[float | None, _time("From then on: 2026-10-01, 2026-10-01T12:00, or 24h for a day ago.")] = None,
    until: Annotated[float | None, _time("Before then, given in the same way.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of records.")] = None,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Begin with the oldest.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check each signature; status 1 if one is wrong.")] = False,
    as_json: Json = False,
) -> None:
    choose(context, store, server)
    context.meta[_CONTROL] = device, since, until, limit, oldest_first
    if context.invoked_subcommand is not None:
        return
    with chosen(context, _USAGE) as fleet:
        found = ((record, *_judged(fleet, record, verify)) for record in _wanted(context, fleet))
        raise typer.Exit(_show(found, as_json, verify))


@app.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, which must not exist.")],
) -> None:
    """Write the records that the options of srup audit choose into a file, with signed bytes and keys."""
    count = 0
    with chosen(context, _USAGE) as fleet, file.open("x", encoding="utf-8") as target:
        for count, line in enumerate(export_lines(fleet.identity, _wanted(context, fleet), fleet.signer_key)):  # noqa: B007
            target.write(line + "\n")
    tell(f"{count} records and keys are in {printable(str(file))}; srup audit verify checks them")


@app.command("verify")
def verify_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that srup audit export has written.")],
    as_json: Json = False,
) -> None:
    """Check each signature in a file, by the keys in it; no store is needed. Status 1 if one is wrong."""
    counted: Counter[Verdict] = Counter()
    with explained(), file.open(encoding="utf-8", errors="replace") as source:
        for record, verdict, why in _counting(read_export(source), counted):
            if as_json:
                print(json.dumps(fields_of(record) | {"signature": str(verdict), "why": why}))
            elif verdict is Verdict.INVALID:
                print(_sentence(record, why))
    tell(_summary(counted))
    raise typer.Exit(1 if counted[Verdict.INVALID] else 0)


def _wanted(context: typer.Context, fleet: "srup.Fleet") -> Iterator[AuditRecord]:
    device, since, until, limit, oldest_first = context.meta[_CONTROL]
    return islice(fleet.audit(device, since, until, not oldest_first), limit)


def _judged(fleet: "srup.Fleet", record: AuditRecord, wanted: bool) -> tuple[Verdict, str]:
    return fleet.verify(record) if wanted else (Verdict.ABSENT, "")


def _counting(
    records: Iterable[tuple[AuditRecord, Verdict, str]], counted: Counter[Verdict]
) -> Iterator[tuple[AuditRecord, Verdict, str]]:
    for each in records:
        counted[each[1]] += 1
        yield each


def _show(records: Iterable[tuple[AuditRecord, Verdict, str]], as_json: bool, verified: bool) -> int:
    """Print records, a page at a time; return the status of a command that ends with them."""
    counted: Counter[Verdict] = Counter()
    rest, first = iter(_counting(records, counted)), True
    while page := list(islice(rest, _PAGE)):
        if as_json:
            for record, verdict, why in page:
                told = {"signature": str(verdict), "why": why} if verified else {}
                print(json.dumps(fields_of(record) | told))
            continue
        rows = [audit_row(record, verdict if verified else None) for record, verdict, _ in page]
        for line in islice(table(rows, GIVE_WAY), 0 if first else 1, None):
            print(line)
        first = False
        for record, verdict, why in page:
            if verdict is Verdict.INVALID:
                sys.stdout.flush()
                tell(_sentence(record, why), "red")
    if not as_json:
        tell(_summary(counted) if verified else f"{counted.total()} records")
    return 1 if counted[Verdict.INVALID] else 0


def audit_row(record: AuditRecord, verdict: Verdict | None) -> dict[str, str]:
    """Return a record as the row of a table, with what its signature is worth if that was looked at."""
    row = {
        "AT": (iso(record.at) or "")[:19] + "Z",
        "DIRECTION": record.direction,
        "PEER": f"{record.peer:x}",
        "MESSAGE": record.message,
        "OUTCOME": record.outcome,
        **({} if verdict is None else {"SIGNATURE": str(verdict)}),
        "POSTED BY": record.posted_by or "-",
        "TOKEN": record.token or "-",
        "ORDER": record.order or "-",
    }
    return {name: printable(value, 200, words=True) for name, value in row.items()}


def _sentence(record: AuditRecord, why: str) -> str:
    which = f"{record.message} {record.sequence_id} {record.direction} at {iso(record.at)}, {record.peer:x}"
    return f"{printable(which, 200, words=True)}: the signature is not valid: {printable(why, 300)}"


def _summary(counted: Counter[Verdict]) -> str:
    parts = ", ".join(f"{counted[verdict]} {verdict}" for verdict in Verdict)
    return f"{counted.total()} records: {parts}"
