"""The command that serves firmware files to the devices of a small site."""

import io
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from ..files import complaint
from .apps import App
from .endings import told_to_end
from .logs import say
from .options import LogFormat, log_as
from .terminal import explained, tell

__all__ = ["app"]

app = App(help="Serve firmware files to devices.")


@app.callback()
def _options() -> None:
    """Keep ``serve`` a command of its own, though it is the only one."""


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with the firmware files.")] = Path(
        "firmware"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8444,
    cert: Annotated[Path | None, typer.Option(help="Certificate chain of this host, PEM.")] = None,
    cert_key: Annotated[Path | None, typer.Option(help="Private key of --cert, PEM, not encrypted.")] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Serve without TLS; loopback only, behind a proxy or for tests.")
    ] = False,
    listing: Annotated[bool, typer.Option("--listing", help="Show the names of all files at /.")] = False,
    log_format: LogFormat = None,
) -> None:
    """Serve the files of a folder until Ctrl-C, so that interrupted downloads can go on."""
    from ..firmwarehost import FirmwareHost

    logged = log_as(log_format)
    with explained():
        if (cert is None) != (cert_key is None):
            raise ValueError("--cert and --cert-key go together")
        if cert is None and not allow_http:
            raise ValueError("--cert and --cert-key are needed for TLS; or --allow-http, on loopback only")
        if cert is None and not _is_loopback(host):
            raise ValueError(f"--allow-http without a certificate is only for loopback, not for {host}")
        try:
            serving = FirmwareHost(folder, host, port, cert, cert_key, listing=listing)
        except OSError as error:
            raise ValueError(f"cannot listen on {host}, port {port}: {complaint(error)}") from None
    if cert is None:
        (say if logged else tell)("without TLS: whoever is in between sees the firmware; devices need --allow-http", "")
    with told_to_end(serving.end):
        print(f"firmware of {folder} at {serving.url}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.flush()
        serving.run()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
