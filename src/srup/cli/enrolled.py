"""Who we are at the broker: from files that options name, or from the folder of an enrolment."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer

import srup

from ..agent.enrolment import broker_transport, load_or_enroll
from ..keyex import Enrolment
from ..transport import MqttTransport
from .options import identity, key_of, transport_of

__all__ = ["Enrolled", "OurIdentity", "Party", "Target", "party", "required", "server_of"]

Value = TypeVar("Value")

Enrolled = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder written by srup keyex enroll: identity, key, certificate (renewed in time) and broker.",
    ),
]
OurIdentity = Annotated[int | None, typer.Option("--identity", parser=identity, metavar="HEX", help="Our identity.")]


class Party(NamedTuple):
    """Who we are, and how to get to the broker: ``link`` takes a reactor. Maybe we are enrolled."""

    identity: int
    key: srup.PrivateKey
    link: Callable[..., MqttTransport]
    enrolment: Enrolment | None


def required(value: Value | None, option: str) -> Value:
    """Return what an option was given. ValueError when it was not."""
    if value is None:
        raise ValueError(f"{option} is missing; give it, or use --enrolled FOLDER")
    return value


def party(
    enrolled: Path | None,
    identity: int | None,
    key: Path | None,
    broker: str | None,
    *,
    password: bool,
    broker_user: str | None,
    ca: Path | None,
    cert: Path | None,
    cert_key: Path | None,
) -> Party:
    """Return who the options say that we are. ValueError when one is missing, or would be there twice."""
    if enrolled is None:
        ours = required(identity, "--identity")
        way = partial(transport_of, required(broker, "--broker"), broker_user, ca, cert, cert_key)
        return Party(ours, key_of(required(key, "--key"), password), way, None)
    twice = {"--identity": identity, "--key": key, "--password": password or None, "--broker-user": broker_user}
    exclude(twice | {"--ca": ca, "--cert": cert, "--cert-key": cert_key})
    enrolment = load_or_enroll(enrolled)
    return Party(
        enrolment.identity, enrolment.key, partial(broker_transport, enrolled, enrolment, broker=broker), enrolment
    )


class Target(NamedTuple):
    """The server that a device joins."""

    identity: int
    key: srup.PublicKey


def server_of(enrolment: Enrolment | None, server: int | None, server_key: Path | None) -> Target:
    """Return whom to join: the options' server, else the enrolment's. ValueError when there is none."""
    if enrolment is None or server is not None or server_key is not None:
        return Target(required(server, "--server"), srup.PublicKey.load(required(server_key, "--server-key")))
    if enrolment.server is None or enrolment.server_key is None:
        raise ValueError("the key exchange service names no server to join; register one there, or give --server")
    return Target(enrolment.server, enrolment.server_key)


def exclude(options: Mapping[str, object]) -> None:
    """ValueError for an option that --enrolled stands for."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option} cannot be used with --enrolled, whose folder has it")
