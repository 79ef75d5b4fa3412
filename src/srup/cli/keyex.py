"""``srup keyex``: run a key exchange service, decide who gets in, and enrol with one."""

import io
import os
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..agent.enrolment import enter
from ..errors import SrupError
from ..keyex import Authority, ServiceFolder
from ..keyex.forms import parse_identity, parse_key

__all__ = ["app"]

app = typer.Typer(
    help="The key exchange service: who is who, and who may use the broker (docs/keyex.md).", no_args_is_help=True
)
console = Console()
errors = Console(stderr=True)

_RELOAD: Final = "now let the broker read it: kill -HUP $(cat {folder}/mosquitto.pid), or systemctl reload mosquitto"

Folder = Annotated[Path, typer.Option(help="Where the service keeps its keys and its database.")]
IdentityText = Annotated[str, typer.Argument(metavar="IDENTITY", help="1 to 16 hexadecimal digits.")]
AsServer = Annotated[bool, typer.Option("--server", help="It may act as a server.")]
Names = Annotated[list[str] | None, typer.Option("--name", help="A host name or address that clients use; repeatable.")]


@contextmanager
def _told() -> Iterator[None]:
    """Show what is wrong and end with status 2."""
    try:
        yield
    except (SrupError, OSError, ValueError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def _say(message: str) -> None:
    console.print(escape(message), highlight=False, soft_wrap=True)


def _open(folder: Path, **options: Any) -> Authority:
    """Open the service in a folder; a new one is made where there is nothing."""
    place = ServiceFolder(folder)
    if not place.exists and (not folder.exists() or not any(folder.iterdir())):
        identity = int.from_bytes(os.urandom(8), "big")
        if folder.exists():
            folder.rmdir()
        ServiceFolder.create(folder, identity, time.time)
        errors.print(escape(f"{folder}: a new key exchange service, identity {identity:x}"), highlight=False)
    return place.open(clock=time.time, entropy=os.urandom, **options)


@contextmanager
def _authority(folder: Path) -> Iterator[Authority]:
    with _told():
        authority = _open(folder)
        try:
            yield authority
        finally:
            authority.close()


def _publish(folder: Path, authority: Authority) -> None:
    place = ServiceFolder(folder)
    if place.publish(authority):
        _say(f"{place.broker}: access list and revocation list written; {_RELOAD.format(folder=place.broker)}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


@app.command()
def serve(
    broker: Annotated[str, typer.Option(help="What clients connect to: mqtts://host:port, or a host for old clients.")],
    folder: Folder = Path("keyex"),
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8443,
    name: Names = None,
    server: Annotated[str, typer.Option(help="The identity that clients are told to join.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate chain instead of one of our own.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM, not encrypted.")] = None,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="No TLS; only on loopback, for tests.")] = False,
) -> None:
    """Serve the HTTP routes, by default with TLS and a certificate of the service's own authority."""
    try:
        import uvicorn

        from ..keyex.service import application, listen
    except ModuleNotFoundError as error:
        _fail(f"srup keyex serve needs {error.name}: pip install 'srup[keyex]'")
    with _told():
        if (tls_cert is None) != (tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together")
        if plain_http and not host.startswith("127.") and host not in ("localhost", "::1"):
            raise ValueError("--plain-http is only for 127.0.0.1, localhost and ::1: anyone on the way could lie (T15)")
        default = parse_identity(server, "--server").number if server else None
        authority = _open(folder, broker=broker, default_server=default)
        place = ServiceFolder(folder)
        names = name or [host]
        files = (tls_cert, tls_key) if tls_cert else place.https(names, time.time())
        cert, key = (None, None) if plain_http else files
        listener = listen(host, port)

    config = uvicorn.Config(
        app=application(authority, lambda: _keep_house(place, authority, names, config, own=tls_cert is None)),
        ssl_certfile=cert,
        ssl_keyfile=key,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=512,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16384,
        lifespan="on",
    )
    where = f"[{host}]" if ":" in host else host
    scheme = "http" if plain_http else "https"
    with listener:
        _say(f"Key exchange service {authority.identity:x} at {scheme}://{where}:{listener.getsockname()[1]}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.flush()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        finally:
            authority.close()


def _keep_house(place: ServiceFolder, authority: Authority, names: list[str], config: Any, *, own: bool) -> None:
    """Write what the broker reads as it is now, and renew our own certificate in time."""
    place.publish(authority)
    if own and config.ssl is not None:
        cert, key = place.https(names, time.time())
        config.ssl.load_cert_chain(cert, key)  # for the connections that come


@app.command()
def token(identity: IdentityText, folder: Folder = Path("keyex"), server: AsServer = False) -> None:
    """Make a one-time enrolment token for IDENTITY, good for a day. Whoever has it can become that identity."""
    with _authority(folder) as authority:
        made = authority.invite(parse_identity(identity).number, server)
        print(made)  # alone on standard output, to be piped
        if server:
            place = ServiceFolder(folder)
            if place.publish(authority):
                errors.print(escape(_RELOAD.format(folder=place.broker)), highlight=False, soft_wrap=True)


@app.command()
def add(
    identity: IdentityText,
    key: Annotated[Path, typer.Argument(help="The public key, PEM.")],
    folder: Folder = Path("keyex"),
    server: AsServer = False,
    kind: Annotated[str, typer.Option("--type", help="What it registers as.")] = "device",
) -> None:
    """Register a key that you know to be IDENTITY's: the client finds itself registered."""
    with _authority(folder) as authority:
        number, public = parse_identity(identity).number, parse_key(key.read_text(errors="replace"))
        authority.add(number, public, kind, server)
        _say(f"{number:x} is registered: {public.scheme}, fingerprint {public.fingerprint}")
        if server:
            _say(f"signature for POST c2 (FLOWS.md): {b64encode(authority.endorse(public)).decode()}")
        _publish(folder, authority)


@app.command("list")
def show(folder: Folder = Path("keyex")) -> None:
    """Show who is registered, who waits for you, and which tokens are out."""
    with _authority(folder) as authority:
        table = Table("identity", "state", "type", "since or until", "fingerprint of the key")
        for each in authority.registrations():
            state = "[red]revoked[/]" if each.revoked else "[green]server[/]" if each.server else "[green]registered[/]"
            table.add_row(
                f"{each.identity:x}",
                state,
                escape(each.type),
                _when(each.revoked or each.since),
                parse_key(each.key).fingerprint,
            )
        for waiting in authority.candidates():
            row = f"{waiting.identity:x}", "[yellow]waits[/]", escape(waiting.type), _when(waiting.asked)
            table.add_row(*row, waiting.fingerprint)
        for out in authority.invitations():
            table.add_row(f"{out.identity:x}", "token", "server" if out.server else "", _when(out.expires), "")
        wide = Console(width=max(console.width, 140)) if not console.is_terminal else console
        wide.print(table)


@app.command()
def approve(
    identity: IdentityText,
    fingerprint: Annotated[str, typer.Argument(help="Of its key, at least 32 digits; compare it with the device's.")],
    folder: Folder = Path("keyex"),
    server: AsServer = False,
) -> None:
    """Let a key in that waits."""
    with _authority(folder) as authority:
        number = parse_identity(identity).number
        authority.approve(number, fingerprint, server)
        _say(f"{number:x} is registered")
        _publish(folder, authority)


@app.command()
def refuse(
    identity: IdentityText,
    fingerprint: Annotated[str | None, typer.Argument(help="Of one key; without it, of all that wait.")] = None,
    folder: Folder = Path("keyex"),
) -> None:
    """Send away what waits for IDENTITY, and make its token void. It may ask again."""
    with _authority(folder) as authority:
        number = parse_identity(identity).number
        gone = authority.refuse(number, fingerprint)
        _say(f"{gone} waiting keys of {number:x} sent away, and its token, if there was one, is void")


@app.command()
def revoke(identity: IdentityText, folder: Folder = Path("keyex")) -> None:
    """End the trust in IDENTITY, for ever."""
    with _authority(folder) as authority:
        number = parse_identity(identity).number
        authority.revoke(number)
        _say(f"{number:x} is revoked")
        _publish(folder, authority)


@app.command()
def crl(
    folder: Folder = Path("keyex"),
    output: Annotated[Path | None, typer.Option(help="A file to write; default: standard output.")] = None,
) -> None:
    """Write the list of revoked certificates, PEM."""
    with _authority(folder) as authority:
        text = authority.revocation_list().decode()
        if output is None:
            print(text, end="")
        else:
            output.write_text(text)
        ServiceFolder(folder).publish(authority)


@app.command()
def mosquitto(
    name: Annotated[list[str], typer.Option("--name", help="A host name or address of the broker; repeatable.")],
    folder: Folder = Path("keyex"),
    port: Annotated[int, typer.Option(help="The port of the broker.")] = 8883,
    address: Annotated[str, typer.Option(help="The address it listens on; default: all.")] = "",
    user: Annotated[str, typer.Option(help="Who it runs as when root starts it; default: mosquitto.")] = "",
) -> None:
    """Write Mosquitto's configuration: mutual TLS, one access list entry for each server, a pattern for all devices."""
    with _authority(folder) as authority:
        place = ServiceFolder(folder)
        made = place.write_broker(authority, name, time.time(), port=port, address=address, user=user)
        _say(f"{made} is written; start it with: mosquitto -c {made}")


@app.command("enroll")
def enrol(
    url: Annotated[str, typer.Argument(help="https://host:port of the service.")],
    identity: IdentityText,
    folder: Annotated[Path, typer.Option(help="Where the enrolment goes.")],
    token: Annotated[str | None, typer.Option(help="What srup keyex token has printed.", envvar="SRUP_TOKEN")] = None,
    ca: Annotated[Path | None, typer.Option(help="Whom to believe, PEM; default: whom the token names.")] = None,
    scheme: Annotated[str, typer.Option(help="Of the key, if there is no key.pem in the folder.")] = "rsa2048",
    kind: Annotated[str, typer.Option("--type", help="What to register as.")] = "device",
) -> None:
    """Enrol an identity: register its key and put key, certificate and addresses into a folder."""
    with _told():
        number = parse_identity(identity).number
        made = enter(folder, url, number, token=token, ca_file=ca, scheme=scheme, kind=kind)
        _say(f"{number:x} is enrolled in {folder}: broker {made.broker}, certificate until {_when(made.expires)}")
