"""The commands about durable state: set up the Redis of a server, read what was accepted."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

import srup

from .options import Identity, explained
from .terminal import console, errors, printable

__all__ = ["app", "is_redis"]

app = typer.Typer(help="Durable state of servers and devices.", no_args_is_help=True)


def is_redis(store: str | None) -> bool:
    """Tell whether a ``--store`` option names a Redis; otherwise it is the path of an SQLite database."""
    return store is not None and store.partition("://")[0] in ("redis", "rediss", "unix")


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="redis://host:port/db of an empty Redis.")],
    identity: Identity,
    partitions: Annotated[
        int, typer.Option(min=1, max=65536, help="How many parts the devices are split into, for good.")
    ] = 64,
) -> None:
    """Set up a Redis for the workers of a server. Nothing else ever begins an empty state."""
    with explained():
        srup.RedisStore.create(url, identity, partitions)
    console.print(f"set up for server {identity:x}: {partitions} partitions", highlight=False)


@app.command()
def audit(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The SQLite database of a server that is not running.")],
    identity: Identity,
    since: Annotated[float, typer.Option(help="Unix time of the first row.")] = 0.0,
    partner: Annotated[str | None, typer.Option(metavar="HEX", help="Only what came from this one.")] = None,
) -> None:
    """Print the messages that were accepted, one JSON object a line, the oldest first."""
    with explained():
        store = srup.SqliteStore(path, create=False)
        store.open(identity)
        try:
            for row in store.audit(since, None if partner is None else int(partner, 16)):
                shown = {
                    "at": datetime.fromtimestamp(row.at, UTC).isoformat(),
                    "partner": f"{row.partner:x}",
                    "sequence_id": row.sequence_id,
                    "type": row.type,
                    "token": printable(row.token.decode("ascii", "backslashreplace")),
                    "outcome": row.outcome,
                }
                print(json.dumps(shown))
        except BrokenPipeError:
            errors.quiet = True
        finally:
            store.close()
