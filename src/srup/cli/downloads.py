"""The options of a device that say what it may download, and how."""

from pathlib import Path
from typing import Annotated, Final

import typer

import srup

__all__ = [
    "AllowHttp",
    "FetchCa",
    "FetchHost",
    "FetchMaxSize",
    "FetchMaxTime",
    "FetchProxy",
    "FetchTimeout",
    "KeepImages",
    "fetch_policy",
]

_PANEL: Final = "Downloads"
_DIRECT: Final = "none"

AllowHttp = Annotated[
    bool,
    typer.Option(
        "--allow-http",
        help="Allow downloads over plain http. The digest still protects the content.",
        rich_help_panel=_PANEL,
    ),
]
FetchCa = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="CA file for the firmware hosts; default: the system's CAs.",
        rich_help_panel=_PANEL,
    ),
]
FetchHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="A host that may serve firmware; repeatable. Default: only the host named in the order.",
        rich_help_panel=_PANEL,
    ),
]
FetchMaxSize = Annotated[
    int, typer.Option(min=1, metavar="BYTES", help="The largest file to download.", rich_help_panel=_PANEL)
]
FetchMaxTime = Annotated[
    float,
    typer.Option(
        min=1.0, metavar="SECONDS", help="Time limit for a download, retries included.", rich_help_panel=_PANEL
    ),
]
FetchTimeout = Annotated[
    float,
    typer.Option(
        min=0.1, metavar="SECONDS", help="Time limit for connecting and for each read.", rich_help_panel=_PANEL
    ),
]
FetchProxy = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Proxy for downloads, http://host:port, or none; default: $HTTPS_PROXY, $HTTP_PROXY and $NO_PROXY.",
        rich_help_panel=_PANEL,
    ),
]
KeepImages = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Number of firmware images to keep. The running one is always kept.",
        rich_help_panel=_PANEL,
    ),
]


def fetch_policy(
    allow_http: bool,
    ca: Path | None,
    hosts: list[str] | None,
    max_size: int,
    max_time: float,
    timeout: float,
    proxy: str | None,
) -> "srup.FetchPolicy":
    """Return what these options allow; ValueError for a proxy that makes no sense."""
    return srup.FetchPolicy(
        allow_http=allow_http,
        allowed_hosts=frozenset(hosts) if hosts else None,
        max_bytes=max_size,
        max_seconds=max_time,
        timeout=timeout,
        ca_file=ca,
        proxy="" if proxy == _DIRECT else proxy,
    )
