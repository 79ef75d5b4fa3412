"""The options that the commands share, and what they mean."""

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

import srup

from ..transport import MqttTransport, Reactor
from . import logs
from .terminal import Terminal, fail

if TYPE_CHECKING:
    from ..agent import Agent, Refusal
    from ..monitor import Monitor

__all__ = [
    "BROKER_PASSWORD",
    "AuditDays",
    "Broker",
    "BrokerUser",
    "CaFile",
    "CertFile",
    "CertKeyFile",
    "HasPassword",
    "Identity",
    "JoinTimeout",
    "KeyFile",
    "LogFormat",
    "Metrics",
    "audit_kept",
    "explained",
    "identity",
    "key_of",
    "log_as",
    "monitoring",
    "monitors",
    "policy",
    "tell_refusal",
    "transport_of",
]

BROKER_PASSWORD: Final = "SRUP_BROKER_PASSWORD"  # noqa: S105 - the name of a variable
"""The environment variable with the password of ``--broker-user``."""

KEY_PASSWORD: Final = "SRUP_KEY_PASSWORD"  # noqa: S105 - the name of a variable
"""The environment variable with the password of our key."""

_EXTRA: Final = ("paho", "mnemonic", "segno", "urllib3")


def identity(text: str) -> int:
    """Read an identity in hex, as topics and key files spell it."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise typer.BadParameter(f"{text!r} is no identity: a number of at most 16 hexadecimal digits")
    return number


Identity = Annotated[int, typer.Option(parser=identity, metavar="HEX", help="Who we are.")]
KeyFile = Annotated[Path, typer.Option(help="Our private key (see keygen).")]
HasPassword = Annotated[bool, typer.Option("--password", help="Ask for the password of our key.")]
Broker = Annotated[str, typer.Option(metavar="URL", help="mqtt://host:port or mqtts://host:port.")]
BrokerUser = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"A user of the broker; the password is asked for, or ${BROKER_PASSWORD}."),
]
CaFile = Annotated[Path | None, typer.Option("--ca", help="Who vouches for the broker; else the system's.")]
CertFile = Annotated[Path | None, typer.Option("--cert", help="Our certificate at the broker.")]
CertKeyFile = Annotated[Path | None, typer.Option("--cert-key", help="Its key, if that is another file.")]
AuditDays = Annotated[
    float, typer.Option(min=0.0, metavar="DAYS", help="So long a store keeps what was accepted; 0 for good.")
]
JoinTimeout = Annotated[
    float | None, typer.Option(min=1.0, metavar="SECONDS", help="How long a compared join may take (default: 900).")
]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="[HOST:]PORT", help="Answer /metrics, /healthz and /readyz here, by HTTP; PORT on loopback."),
]
LogFormat = Annotated[
    Literal["text", "json"] | None, typer.Option(help="Log on standard error in this form, one entry a line.")
]


@contextmanager
def explained() -> Iterator[None]:
    """Let a mistake end the command with one line, a missing extra included."""
    missing = next((name for name in _EXTRA if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        fail(f"this command needs {missing}: pip install 'srup[cli]'")
    try:
        yield
    except (srup.SrupError, OSError, ValueError) as error:
        fail(str(error))


def key_of(path: Path, has_password: bool) -> srup.PrivateKey:
    """Load our key."""
    password = (os.environ.get(KEY_PASSWORD) or _asked(f"Password of {path}", KEY_PASSWORD)) if has_password else None
    return srup.PrivateKey.load(path, password)


def _asked(question: str, variable: str) -> str:
    """Ask for a password once; the processes that this one starts find it where it is looked for."""
    password: str = typer.prompt(question, hide_input=True)
    os.environ[variable] = password
    return password


def audit_kept(days: float) -> float | None:
    """Return for how many seconds audit rows are kept; None for good."""
    return days * 86400.0 if days else None


def policy(join_timeout: float | None) -> srup.Policy:
    """Return what we insist on."""
    return srup.Policy() if join_timeout is None else srup.Policy(join_lifetime=join_timeout)


def transport_of(
    url: str,
    ours: int,
    user: str | None,
    ca: Path | None,
    cert: Path | None,
    cert_key: Path | None,
    client_id: str | None = None,
    reactor: Reactor | None = None,
) -> MqttTransport:
    """Return the way to the broker."""
    password = None
    if user is not None:
        password = os.environ.get(BROKER_PASSWORD) or _asked(f"Password of {user} at the broker", BROKER_PASSWORD)
    return MqttTransport(
        url,
        client_id or f"srup-{ours:x}",
        username=user,
        password=password,
        ca_file=ca,
        cert_file=cert,
        key_file=cert_key,
        reactor=reactor,
    )


def tell_refusal(terminal: Terminal, refusal: "Refusal") -> None:
    """Tell the operator of a message that had no effect."""
    if not isinstance(refusal.error, srup.ReplayError):  # brokers deliver twice
        what = f"a message on {refusal.topic} is refused: {type(refusal.error).__name__}: {refusal.error}"
        terminal.say(what, "yellow")


def log_as(form: Literal["text", "json"] | None) -> bool:
    """Begin to log in this form, if there is one; tell whether there is."""
    if form is not None:
        try:
            logs.show(logging.INFO, form)
        except ModuleNotFoundError as error:
            fail(f"--log-format {form} needs {error.name}: pip install 'srup[cli]'")
    return form is not None


def monitoring(address: str | None, *agents: "Agent") -> "Monitor | None":
    """Return what shows agents, listening already; None without an address."""
    return None if address is None else monitors().Monitor(address, *agents)


def monitors() -> ModuleType:
    """Return srup.monitor, which needs more than other commands do."""
    try:
        return importlib.import_module("srup.monitor")
    except ModuleNotFoundError as error:
        fail(f"--metrics needs {error.name}: pip install 'srup[metrics]'")
