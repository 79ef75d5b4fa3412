"""``srup init``: a working installation in an empty folder."""

import json
import os
import pwd
import shlex
import stat
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..keyex.installation import install
from ..printable import printable
from .apps import App
from .options import Json, identity
from .terminal import console, explained

__all__ = ["app"]

app = App()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to set up; it must be empty or missing.")] = Path(),
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or address of this machine for devices; repeatable. Default: this machine only."),
    ] = None,
    identity: Annotated[
        int | None, typer.Option(parser=identity, metavar="HEX", help="Identity of the server; default: a random one.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the broker.")] = 8883,
    keyex_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the key exchange service.")] = 8443,
    user: Annotated[
        str, typer.Option(help="User that the broker runs as when root starts it; default: mosquitto.")
    ] = "",
    systemd: Annotated[bool, typer.Option("--systemd", help="Write systemd units too.")] = False,
    as_json: Json = False,
) -> None:
    """Set up a server with mutual TLS: authority, Mosquitto's configuration, the server's key, srup.toml."""
    with explained():
        made = install(
            folder,
            name or ["localhost", "127.0.0.1"],
            server=identity,
            broker_port=port,
            service_port=keyex_port,
            user=user,
            systemd=systemd,
        )
    files = [str(path) for path in made.made]
    if as_json:
        about = {"server": f"{made.server:x}", "broker": made.broker, "service": made.service, "files": files}
        print(json.dumps(about))
        return
    for path in files:
        console.print(f"created  {printable(path, None)}", soft_wrap=True, markup=False, highlight=False)
    relative = made.made[1].relative_to(folder)
    if folder != Path():
        _then(f"cd {shlex.quote(printable(str(folder), None))}")
    for command, what in (
        (f"mosquitto -c {relative}", "the broker, in a terminal of its own"),
        ("srup keyex serve", "devices enrol there; in another terminal"),
        ("srup server", f"server {made.server:x}; in another terminal"),
        ("srup keyex token d1", "prints a token with which device d1 can enrol"),
        (f"srup keyex enroll {made.service} d1 --folder d1 --token TOKEN", "on the device"),
        ("srup device --enrolled d1 --store d1.db --fetch-ca d1/ca.pem", "on the device"),
        (f"srup firmware serve {made.made[3].name}", "devices fetch updates there; in another terminal"),
    ):
        _then(command, what)
    if (shut := _shut_out(made.made[1].absolute().parent)) is not None:
        user = _name_of((made.made[1].parent / "data").stat().st_uid)
        told = f"{printable(str(shut), None)} is closed to the user {user}, as whom the broker runs when root starts it"
        console.print(Text(f"note     {told}: open it, use another folder, or --user"), soft_wrap=True)


def _shut_out(broker: Path) -> Path | None:
    """Return the first folder on the way to the broker's that the broker's user cannot pass through."""
    owner = (broker / "data").stat()  # it belongs to who the broker runs as
    if os.geteuid() != 0 or owner.st_uid == 0:
        return None
    for folder in (*reversed(broker.parents), broker):
        found = folder.stat()
        group = stat.S_IXGRP if found.st_gid == owner.st_gid else stat.S_IXOTH
        if not found.st_mode & (stat.S_IXUSR if found.st_uid == owner.st_uid else group):
            return folder
    return None


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except LookupError:
        return str(uid)


def _then(command: str, what: str = "") -> None:
    """Show a command whole in one line, however narrow the terminal is: it is there to be copied."""
    console.print(Text.assemble("then     ", (command, "bold"), f"  # {what}" if what else ""), soft_wrap=True)
