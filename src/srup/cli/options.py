"""The options that the commands share, and what they mean."""

import getpass
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

import srup

from ..errors import TransportError
from ..extras import require
from ..identity import parse_identity
from ..logs import Limiter
from ..transport import MqttTransport
from ..versions import parse_version
from . import logs
from .terminal import Terminal, secret

if TYPE_CHECKING:
    from ..agent import Agent, Refusal
    from ..monitor import Monitor
    from ..transport import Reactor

__all__ = [
    "BROKER_PASSWORD",
    "AuditDays",
    "AuditValues",
    "Broker",
    "BrokerKind",
    "BrokerUser",
    "CaFile",
    "CertFile",
    "CertKeyFile",
    "HasPassword",
    "Identity",
    "IdentityArgument",
    "JoinTimeout",
    "Json",
    "KeyFile",
    "LogFormat",
    "Metrics",
    "RefusalLines",
    "audit_kept",
    "identity",
    "key_of",
    "log_as",
    "monitoring",
    "policy",
    "reload_files",
    "this_user",
    "transport_of",
    "version",
]

BROKER_PASSWORD: Final = "SRUP_BROKER_PASSWORD"  # noqa: S105 - the name of a variable
"""The environment variable with the password of ``--broker-user``."""

KEY_PASSWORD: Final = "SRUP_KEY_PASSWORD"  # noqa: S105 - the name of a variable
"""The environment variable with the password of our key."""


def identity(text: str) -> int:
    """Read an identity in hex, as topics and key files spell it."""
    try:
        return parse_identity(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def version(text: str) -> int:
    """Read a firmware version, plain or dotted."""
    try:
        return parse_version(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Identity = Annotated[int, typer.Option(parser=identity, metavar="HEX", help="Our identity.")]
IdentityArgument = Annotated[
    int, typer.Argument(parser=identity, metavar="IDENTITY", help="1 to 16 hexadecimal digits.")
]
KeyFile = Annotated[Path | None, typer.Option(help="Our private key file (see srup keygen).")]
HasPassword = Annotated[bool, typer.Option("--password", help="Ask for the password of our key.")]
Broker = Annotated[str | None, typer.Option(metavar="URL", help="mqtt://host:port or mqtts://host:port.")]
BrokerKind = Annotated[
    Literal["auto", "mosquitto", "amqtt"],
    typer.Option("--broker-kind", help="Which broker to run; auto means Mosquitto if it is installed."),
]
BrokerUser = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"A user of the broker; the password is asked for, or ${BROKER_PASSWORD}."),
]
CaFile = Annotated[Path | None, typer.Option("--ca", help="CA file for the broker; default: the system's CAs.")]
CertFile = Annotated[Path | None, typer.Option("--cert", help="Our client certificate for the broker.")]
CertKeyFile = Annotated[Path | None, typer.Option("--cert-key", help="The key of --cert, if it is in another file.")]
AuditDays = Annotated[
    float, typer.Option(min=0.0, metavar="DAYS", help="Days to keep audit rows; 0 keeps them forever.")
]
AuditValues = Annotated[
    bool, typer.Option("--audit-values", help="Keep the signed bytes of ordinary values in the audit too.")
]
JoinTimeout = Annotated[
    float | None,
    typer.Option(min=1.0, metavar="SECONDS", help="Time limit for a join that is compared (default: 900)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT", help="Serve /metrics, /healthz and /readyz here over HTTP; PORT alone means loopback."
    ),
]
LogFormat = Annotated[
    Literal["text", "json"] | None, typer.Option(help="Log to standard error in this format, one entry per line.")
]


def key_of(path: Path, has_password: bool) -> srup.PrivateKey:
    """Load our key."""
    password = (os.environ.get(KEY_PASSWORD) or _asked(f"Password of {path}", KEY_PASSWORD)) if has_password else None
    return srup.PrivateKey.load(path, password)


def _asked(question: str, variable: str) -> str:
    """Ask for a password once; the processes that this one starts find it where it is looked for."""
    password = secret(question)
    os.environ[variable] = password
    return password


def this_user() -> str:
    """Return the name of the user who types this; empty where the machine knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in this container
        return ""


def audit_kept(days: float) -> float | None:
    """Return for how many seconds audit rows are kept; None for good."""
    return days * 86400.0 if days else None


def policy(join_timeout: float | None) -> srup.Policy:
    """Return what we insist on."""
    return srup.Policy() if join_timeout is None else srup.Policy(join_lifetime=join_timeout)


def reload_files(links: "Iterable[MqttTransport]", say: Callable[[str, str], object]) -> None:
    """Let connections go by the certificates that the files hold now, and tell the operator; a mistake changes none."""
    try:
        changed = [link.reload() for link in links]
    except TransportError as error:
        say(f"the certificates are not reloaded: {error}", "yellow")
        return
    if any(changed):
        say("the certificates have changed: connecting anew", "")


def transport_of(
    url: str,
    user: str | None,
    ca: Path | None,
    cert: Path | None,
    cert_key: Path | None,
    reactor: "Reactor | None" = None,
) -> MqttTransport:
    """Return the way to the broker; whoever uses it names the session."""
    require("paho")
    password = None
    if user is not None:
        password = os.environ.get(BROKER_PASSWORD) or _asked(f"Password of {user} at the broker", BROKER_PASSWORD)
    return MqttTransport(
        url,
        username=user,
        password=password,
        ca_file=ca,
        cert_file=cert,
        key_file=cert_key,
        reactor=reactor,
    )


class RefusalLines:
    """Tells the operator of messages that had no effect; not of all that a stranger likes to send."""

    def __init__(self, terminal: Terminal) -> None:
        self._say = terminal.say
        self._limiter = Limiter(10)

    def __call__(self, refusal: "Refusal") -> None:
        """Tell of a message, if there were not too many like it."""
        if isinstance(refusal.error, srup.ReplayError):  # brokers deliver twice
            return
        line = self._limiter.admit(type(refusal.error).__name__, time.monotonic())
        if line.shown:
            self._say(f"{refusal}{line.note()}", "yellow")

    def close(self) -> None:
        """Tell how many were left out."""
        if left_out := self._limiter.left_out():
            self._say(f"{left_out} more messages were refused", "yellow")


def log_as(form: Literal["text", "json"] | None) -> bool:
    """Begin to log in this form, if there is one; tell whether there is."""
    if form is not None:
        logs.show(logging.INFO, form)
    return form is not None


def monitoring(address: str | None, *agents: "Agent") -> "Monitor | None":
    """Return what shows agents, listening already; None without an address."""
    if address is None:
        return None
    from ..monitor import Monitor

    return Monitor(address, *agents)
