"""``srup keyex``: run a key exchange service, decide who gets in, and enrol with one."""

import io
import json
import os
import ssl
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..agent.enrolment import load_or_enroll
from ..agent.enrolment import renew as renew_in_time
from ..files import complaint
from ..keyex import Authority, Enrolment, ServiceFolder
from ..keyex.enrolment import broker_url
from ..keyex.forms import parse_key, parse_type
from ..keys import PublicKey
from ..printable import printable
from ..transport import find_plugin
from .apps import App
from .endings import told_to_end
from .options import IdentityArgument, Json
from .options import identity as parse
from .terminal import console, explained, show, tell

__all__ = ["app"]

app = App(help="Key exchange service: register identities and control access to the broker (docs/keyex.md).")

_RELOAD: Final = "now reload the broker: systemctl reload mosquitto, or pkill -HUP -x mosquitto -u {user}"

Folder = Annotated[Path, typer.Option(help="Folder of the service: its keys and its database.")]
AsServer = Annotated[bool, typer.Option("--as-server", help="Allow this identity to act as a server.")]
Names = Annotated[list[str] | None, typer.Option("--name", help="A host name or address that clients use; repeatable.")]


def _say(message: str) -> None:
    show(message, most=None)


def _open(folder: Path, **options: Any) -> Authority:
    return ServiceFolder(folder).open(clock=time.time, entropy=os.urandom, **options)


@contextmanager
def _authority(folder: Path) -> Iterator[Authority]:
    with explained():
        authority = _open(folder)
        try:
            yield authority
        finally:
            authority.close()


def _publish(folder: Path, authority: Authority) -> None:
    place = ServiceFolder(folder)
    if place.publish(authority):
        _say(f"{place.broker}: access list and revocation list written; {_RELOAD.format(user=place.broker_user)}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


@app.command()
def create(folder: Folder = Path("keyex")) -> None:
    """Create a key exchange service: identity, key, certificate authority and database."""
    with explained():
        identity = int.from_bytes(os.urandom(8), "big")
        ServiceFolder.create(folder, identity, time.time)
        _say(f"{folder}: a new key exchange service, identity {identity:x}")


@app.command()
def serve(
    broker: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Broker address given to clients: mqtts://host:port, or a host name for old clients."
        ),
    ],
    folder: Folder = Path("keyex"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8443,
    name: Names = None,
    server: Annotated[
        int | None, typer.Option(parser=parse, metavar="HEX", help="The server that clients should join.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate chain to use instead of our own, PEM.")] = None,
    cert_key: Annotated[Path | None, typer.Option(help="Private key of --cert, PEM, not encrypted.")] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Serve without TLS; loopback only, behind a proxy or for tests.")
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS", help="Address of a reverse proxy whose X-Forwarded-For is trusted; repeatable."
        ),
    ] = None,
) -> None:
    """Run the service, by default with TLS and a certificate from its own authority."""
    import uvicorn

    from ..keyex.service import Connections, application, configuration, listen

    with explained(), ExitStack() as undo:
        if (cert is None) != (cert_key is None):
            raise ValueError("--cert and --cert-key go together")
        if plain_http and not host.startswith("127.") and host not in ("localhost", "::1"):
            raise ValueError(
                "--plain-http is only for 127.0.0.1, localhost and ::1: anyone in between could forge answers (T15)"
            )
        broker_url(broker)  # what no client takes is refused here
        proxies = [_address(proxy) for proxy in trusted_proxy or ()]
        authority = _open(folder, broker=broker, default_server=server)
        undo.callback(authority.close)
        place = ServiceFolder(folder)
        names = name or [host]
        files = (cert, cert_key) if cert else place.https(names, time.time())
        if cert and cert_key:
            _check_pair(cert, cert_key)
        shown_cert, shown_key = (None, None) if plain_http else files
        try:
            listener = listen(host, port, Connections(proxies))
        except OSError as error:
            raise ValueError(f"cannot listen on {host}, port {port}: {complaint(error)}") from None
        undo.pop_all()

    app = application(authority, lambda: _keep_house(place, authority, names, config, own=cert is None))
    config = configuration(app, shown_cert, shown_key, proxies)
    where = f"[{host}]" if ":" in host else host
    scheme = "http" if plain_http else "https"
    running = uvicorn.Server(config)

    def end(*_: object) -> None:
        running.should_exit = True

    running.handle_exit = end  # type: ignore[assignment]  # its own breaks the end off at a second Ctrl-C
    with listener, closing(authority), told_to_end(end):
        _say(f"Key exchange service {authority.identity:x} at {scheme}://{where}:{listener.getsockname()[1]}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.flush()
        running.run(sockets=[listener])


def _check_pair(cert: Path, key: Path) -> None:
    """ValueError unless these files are a certificate and its key, not encrypted."""
    try:
        # Without a password of ours OpenSSL would ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except OSError as error:
        raise ValueError(f"--cert {cert} and --cert-key {key} do not load: {complaint(error)}") from None


def _address(text: str) -> str:
    try:
        network = ip_network(text)
        return str(network if network.num_addresses > 1 else network.network_address)
    except ValueError as error:
        raise ValueError(f"--trusted-proxy: {error}") from None


def _keep_house(place: ServiceFolder, authority: Authority, names: list[str], config: Any, *, own: bool) -> None:
    """Write what the broker reads as it is now, and renew our own certificate in time."""
    try:
        place.publish(authority)
    finally:  # the one does not depend on the other
        if own and config.ssl is not None:
            cert, key = place.https(names, time.time())
            config.ssl.load_cert_chain(cert, key)  # for the connections that come


@app.command()
def token(identity: IdentityArgument, folder: Folder = Path("keyex"), server: AsServer = False) -> None:
    """Make a one-time enrolment token for IDENTITY, valid for a day. Whoever holds it can enrol as that identity."""
    with _authority(folder) as authority:
        made = authority.invite(identity, server)
        print(made)  # alone on standard output, to be piped
        if server:
            place = ServiceFolder(folder)
            if place.publish(authority):
                tell(_RELOAD.format(user=place.broker_user))


@app.command()
def add(
    identity: IdentityArgument,
    key: Annotated[Path, typer.Argument(help="The public key, PEM.")],
    folder: Folder = Path("keyex"),
    server: AsServer = False,
    kind: Annotated[str, typer.Option("--type", help="Type to register it as.")] = "device",
) -> None:
    """Register a key that you know belongs to IDENTITY."""
    with _authority(folder) as authority:
        public = PublicKey.load(key)
        authority.add(identity, public, parse_type(kind), server)
        _say(f"{identity:x} is registered: {public.scheme}, fingerprint {public.fingerprint}")
        if server:
            _say(f"signature for POST c2 (docs/keyex.md): {b64encode(authority.endorse(public)).decode()}")
        _publish(folder, authority)


class Row(NamedTuple):
    """Somebody whom the service knows. ``at`` is since when that holds, or for a token until when."""

    identity: int
    state: Literal["registered", "server", "revoked", "waiting", "token"]
    type: str
    at: float
    fingerprint: str


_STYLES: Final = {"registered": "green", "server": "green", "revoked": "red", "waiting": "yellow", "token": ""}


def _rows(authority: Authority) -> Iterator[Row]:
    for each in authority.registrations():
        state: Any = "revoked" if each.revoked else "server" if each.server else "registered"
        fingerprint = parse_key(each.key).fingerprint
        yield Row(each.identity, state, each.type, each.revoked or each.since, fingerprint)
    for waiting in authority.candidates():
        yield Row(waiting.identity, "waiting", waiting.type, waiting.asked, waiting.fingerprint)
    for out in authority.invitations():
        yield Row(out.identity, "token", "server" if out.server else "", out.expires, "")


@app.command("list")
def list_all(folder: Folder = Path("keyex"), as_json: Json = False) -> None:
    """List registered identities, keys that wait for approval, and unused tokens."""
    with _authority(folder) as authority:
        if as_json:
            for row in _rows(authority):
                at = datetime.fromtimestamp(row.at, UTC).isoformat()
                print(json.dumps(row._asdict() | {"identity": f"{row.identity:x}", "at": at}))
            return
        table = Table()
        for name in ("identity", "state", "type", "since or until", "fingerprint of the key"):
            table.add_column(name, overflow="fold")  # nothing is left out on a narrow terminal
        for row in _rows(authority):
            state = Text(row.state, _STYLES[row.state])
            table.add_row(f"{row.identity:x}", state, Text(printable(row.type)), _when(row.at), row.fingerprint)
        wide = Console(width=max(console.width, 140)) if not console.is_terminal else console
        wide.print(table)


@app.command()
def approve(
    identity: IdentityArgument,
    fingerprint: Annotated[
        str,
        typer.Argument(
            help="Fingerprint of the waiting key, at least its first 32 digits; compare it with the device's."
        ),
    ],
    folder: Folder = Path("keyex"),
    server: AsServer = False,
) -> None:
    """Approve a waiting key."""
    with _authority(folder) as authority:
        authority.approve(identity, fingerprint, server)
        _say(f"{identity:x} is registered")
        _publish(folder, authority)


@app.command()
def refuse(
    identity: IdentityArgument,
    fingerprint: Annotated[
        str | None, typer.Argument(help="Fingerprint of one key, as for approve; default: all waiting keys.")
    ] = None,
    folder: Folder = Path("keyex"),
) -> None:
    """Refuse a key that waits for IDENTITY, or all of them and cancel its token. The client may ask again."""
    with _authority(folder) as authority:
        gone = authority.refuse(identity, fingerprint)
        void = "; its token, if any, is cancelled" if fingerprint is None else ""
        _say(f"{gone} waiting {'key' if gone == 1 else 'keys'} of {identity:x} refused{void}")


@app.command()
def revoke(identity: IdentityArgument, folder: Folder = Path("keyex")) -> None:
    """Revoke IDENTITY for good."""
    with _authority(folder) as authority:
        authority.revoke(identity)
        _say(f"{identity:x} is revoked")
        _publish(folder, authority)


@app.command()
def crl(
    folder: Folder = Path("keyex"),
    output: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
) -> None:
    """Write the certificate revocation list, PEM."""
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
    port: Annotated[int, typer.Option(help="Port that the broker listens on.")] = 8883,
    host: Annotated[str, typer.Option(help="Address that the broker listens on; default: all.")] = "",
    user: Annotated[
        str, typer.Option(help="User that the broker runs as when root starts it; default: mosquitto.")
    ] = "",
    workers_port: Annotated[
        int | None, typer.Option(help="A second port, for servers whose workers share a certificate.")
    ] = None,
    memory: Annotated[
        int, typer.Option(metavar="MIB", help="Memory limit for everything the broker keeps for its clients.")
    ] = 1024,
    plugin: Annotated[
        Path | None, typer.Option(help="Mosquitto's dynamic security plugin; default: searched in the usual folders.")
    ] = None,
) -> None:
    """Write a configuration for Mosquitto: mutual TLS and an access list for servers and devices."""
    with _authority(folder) as authority:
        place = ServiceFolder(folder)
        options: dict[str, Any] = {"port": port, "address": host, "user": user}
        options |= {"workers_port": workers_port, "memory": memory, "plugin": plugin}
        made = place.write_broker(authority, name, time.time(), **options)
        if plugin is None and find_plugin() is None:
            tell(
                "mosquitto_dynamic_security.so was not found: name it with --plugin, otherwise a device can fill "
                "the broker's memory with subscriptions (docs/keyex.md)"
            )
        _say(f"{made} written; start the broker with: mosquitto -c {made}")


@app.command("enroll")
def enrol(
    url: Annotated[str, typer.Argument(help="https://host:port of the service.")],
    identity: IdentityArgument,
    folder: Annotated[Path, typer.Option(help="Folder to write the enrolment to.")],
    token: Annotated[str | None, typer.Option(help="Token printed by srup keyex token.", envvar="SRUP_TOKEN")] = None,
    ca: Annotated[Path | None, typer.Option(help="CA to trust, PEM; default: the one that the token names.")] = None,
    scheme: Annotated[str, typer.Option(help="Scheme of the new key, if the folder has no key.pem.")] = "rsa2048",
    kind: Annotated[str, typer.Option("--type", help="Type to register as.")] = "device",
    as_json: Json = False,
) -> None:
    """Enrol an identity: register its key and write key, certificate and addresses to a folder."""
    with explained():
        made = load_or_enroll(folder, url, identity, token=token, ca_file=ca, scheme=scheme, kind=kind)
        if not as_json:
            _say(f"{identity:x} is enrolled in {folder}: broker {made.broker}, certificate until {_when(made.expires)}")
        else:
            _print_enrolment(made)


@app.command()
def renew(
    folder: Annotated[Path, typer.Argument(help="Folder written by srup keyex enroll.")],
    as_json: Json = False,
) -> None:
    """Renew the certificate of an enrolment folder if half of its lifetime has passed."""
    with explained():
        made = renew_in_time(folder)
        if not as_json:
            _say(f"{made.identity:x}: certificate until {_when(made.expires)}")
        else:
            _print_enrolment(made)


def _print_enrolment(made: Enrolment) -> None:
    """Print whose enrolment it is, and until when its certificate is good, as JSON."""
    expires = datetime.fromtimestamp(made.expires, UTC).isoformat()
    print(json.dumps({"identity": f"{made.identity:x}", "broker": made.broker, "expires": expires}))
