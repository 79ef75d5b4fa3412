"""The commands of the web console: serve it, and say who may use it."""

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

import srup

from ..extras import require
from .apps import App
from .downloads import FetchCa
from .endings import told_to_end
from .fleets import OfServer, StoreOfServer
from .options import Json
from .terminal import explained, fail, secret, show

__all__ = ["app"]

app = App(help="Serve a web console for the devices of a server, and say who may use it.", no_args_is_help=False)
user = App(help="Say who may use the console, and what for.")
app.add_typer(user, name="user")

_USAGE: Final = "srup console --store PATH|URL --identity HEX"
_NEEDED: Final = ("jinja2", "itsdangerous", "starlette", "uvicorn", "segno", "mnemonic")

UsersFile = Annotated[
    Path, typer.Option("--users", metavar="FILE", help="The file that says who may use the console, and for what.")
]
_FILE: Final = Path("console-users.json")
_RoleOption = Annotated[
    str, typer.Option("--role", metavar="ROLE", help="viewer, operator, approver or administrator.")
]


@app.callback(invoke_without_command=True)
def _serve(
    context: typer.Context,
    store: StoreOfServer = None,
    identity: OfServer = None,
    users: UsersFile = _FILE,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs --tls-cert.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8470,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A host name or address that browsers use; repeatable.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of --tls-cert, PEM, not encrypted.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder with firmware whose files a campaign may name.")
    ] = None,
    fetch_ca: FetchCa = None,
) -> None:
    if context.invoked_subcommand is not None:
        return
    require(*_NEEDED)
    if store is None or identity is None:
        fail(f"which server? {_USAGE}")
    from ..console.serving import Serving
    from ..console.site import Site
    from ..console.users import Users

    with explained():
        serving = Serving.at(host, port, frozenset(name or ()), tls_cert, tls_key)
    try:
        with explained():
            fleet = srup.Fleet(store, identity)
    except BaseException:
        serving.close()
        raise
    with serving, fleet, explained():
        site = Site(fleet, Users(users), serving.names, serving.secure, firmware=images, fetch_ca=fetch_ca)
        with told_to_end(lambda _signal: serving.end()):
            _say(f"console of server {identity:x} at {serving.url}")
            if (token := site.invitation.token) is not None:
                _say(f"nobody has an account yet; make the first one here: {serving.url}/first?token={token}")
            serving.run(site)


def _say(text: str) -> None:
    show(text, most=None)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()


@user.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 letters, digits, '.', '_', '@' or '-'.")],
    role: _RoleOption,
    users: UsersFile = _FILE,
) -> None:
    """Add a user; the password is asked for, or read from a pipe."""
    require(*_NEEDED)
    from ..console.users import Role, Users

    with explained():
        if role not in list(Role):
            raise ValueError(f"--role {role} is none of {', '.join(Role)}")
        known = Users(users)
        if known.find(name) is not None:
            raise ValueError(f"there is a user {name} already; srup console user remove {name} removes it")
        known.add(name, Role(role), _password(f"Password of {name}"))
        show(f"{users}: {name} is {role}")


def _password(question: str) -> str:
    if sys.stdin is not None and not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    return secret(question, confirm=True)


@user.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is.")],
    users: UsersFile = _FILE,
) -> None:
    """Remove a user, whose sessions end at once."""
    require(*_NEEDED)
    from ..console.users import Users

    with explained():
        Users(users).remove(name)
        show(f"{users}: {name} is removed")


@user.command("list")
def list_(users: UsersFile = _FILE, as_json: Json = False) -> None:
    """Show who may use the console."""
    require(*_NEEDED)
    from ..console.users import Users

    with explained():
        found = Users(users).all()
    for each in found:
        print(json.dumps({"name": each.name, "role": str(each.role)}) if as_json else f"{each.name} {each.role}")
    if not found and not as_json:
        print("nobody; srup console user add NAME --role administrator adds the first one")
