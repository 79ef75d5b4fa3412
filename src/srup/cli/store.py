"""The commands about durable state: set up the Redis of a server, read what was accepted."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

import srup

from ..messages import SCHEMA
from ..printable import printable
from ..store.partition import MAX_PARTITIONS
from .apps import App
from .options import Identity, identity
from .terminal import console, explained, fail, tell

__all__ = ["app", "is_redis"]

app = App(help="Durable state of servers and devices.")


def is_redis(store: str | None) -> bool:
    """Return whether a ``--store`` option names a Redis; otherwise it is the path of an SQLite database."""
    return store is not None and store.partition("://")[0] in ("redis", "rediss", "unix")


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="redis://host:port/db of an empty Redis.")],
    identity: Identity,
    partitions: Annotated[
        int, typer.Option(min=1, max=MAX_PARTITIONS, help="Number of partitions; it cannot be changed later.")
    ] = 64,
) -> None:
    """Set up a Redis for the workers of a server. Nothing else ever begins an empty state."""
    with explained():
        srup.RedisStore.create(url, identity, partitions)
    console.print(f"set up for server {identity:x}: {partitions} partitions", highlight=False)


@app.command()
def backup(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The SQLite database of a server or device.")],
    target: Annotated[Path, typer.Argument(metavar="DEST", help="The file to write, which must not exist.")],
) -> None:
    """Copy the database of a server that runs, or of one that does not, as it is at one moment."""
    if is_redis(source):
        fail("a Redis is backed up with its own means, see docs/durability.md: BGSAVE, or a replica")
    with explained():
        from ..store.sqlitebackup import back_up

        copied = back_up(source, target)
    shown = printable(str(target))
    tell(
        f"{shown} has the state of {copied.owner:x} after {copied.commits} commits; to use it: --store {shown} --adopt"
    )


@app.command()
def audit(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An SQLite database that is not in use, or a copy.")],
    identity: Annotated[
        int | None,
        typer.Option(parser=identity, metavar="HEX", help="Identity that it must belong to; default: any."),
    ] = None,
    since: Annotated[float, typer.Option(metavar="TIME", help="Unix time of the first row.")] = 0.0,
    partner: Annotated[
        int | None, typer.Option(parser=identity, metavar="HEX", help="Only messages from this peer.")
    ] = None,
) -> None:
    """Print the rows of a database that is not in use, one JSON object a line; srup audit shows more."""
    names = {cls.layout.type: cls.__name__ for cls in SCHEMA[:]}
    with explained():
        store = srup.SqliteStore(path, read_only=True)
        store.open(identity)
        try:
            for row in store.audit(since, partner):
                shown = {
                    "at": datetime.fromtimestamp(row.at, UTC).isoformat(),
                    "partner": f"{row.partner:x}",
                    "sequence_id": row.sequence_id,
                    "type": names.get(row.type, row.type),
                    "token": printable(row.token.decode("ascii", "backslashreplace")),
                    "outcome": row.outcome,
                    "direction": "sent" if row.sent else "received",
                }
                print(json.dumps(shown))
        finally:
            store.close()
