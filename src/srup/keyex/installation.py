"""A new installation in an empty folder: a key exchange service, an enrolled server, and the broker's configuration."""

import os
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import KeyServiceError
from ..files import PUBLIC, complaint, write_file
from ..keys import PrivateKey
from .certificates import check_host_names, request_certificate
from .enrolment import Enrolment
from .folder import ServiceFolder, account_of
from .forms import Identity
from .proof import enrolment as what_a_token_needs
from .proof import sign

__all__ = ["Installation", "install"]

_SETTINGS: Final = "srup.toml"
_FIRMWARE: Final = "firmware"
_FIRMWARE_PORT: Final = 8444
_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - devices come from other machines


class Installation(NamedTuple):
    """What was made: the identity of the server, the broker's URL, and the files, in order."""

    server: int
    broker: str
    service: str
    made: tuple[Path, ...]


def install(
    folder: Path,
    names: Sequence[str],
    *,
    server: int | None = None,
    broker_port: int = 8883,
    service_port: int = 8443,
    user: str = "",
    systemd: bool = False,
) -> Installation:
    """Make everything that a server with devices needs, in ``folder``, which must be empty or missing.

    ``names`` are the host names or addresses of this machine, under which devices reach the broker and the service, the
    best one first; where all of them mean this machine itself, nobody else can connect. ``server`` is the server's
    identity (default: a random one), ``user`` who the broker runs as when root starts it (default: mosquitto);
    ``systemd`` adds units. KeyServiceError names what is in the way; ValueError is for a bad name or port.
    Neither leaves anything in the folder if an argument is wrong.
    """
    if not names:
        raise ValueError("at least one name is needed under which devices reach this machine")
    check_host_names(names)
    if broker_port == service_port:
        raise ValueError(f"the broker and the key exchange service cannot both have port {broker_port}")
    if user:
        account_of(user)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if present := sorted(path.name for path in folder.iterdir()):
            raise KeyServiceError(0, "", f"{folder} is not empty ({present[0]}); srup init needs a folder of its own")
    except OSError as error:
        raise KeyServiceError(0, "", complaint(error, folder)) from None
    identity = int.from_bytes(os.urandom(8), "big") if server is None else server
    host = f"[{names[0]}]" if ":" in names[0] else names[0]
    broker, url = f"mqtts://{host}:{broker_port}", f"https://{host}:{service_port}"
    address = "127.0.0.1" if all(_is_loopback(name) for name in names) else ""
    place = ServiceFolder.create(folder / "authority", int.from_bytes(os.urandom(8), "big"), time.time)
    authority = place.open(clock=time.time, entropy=os.urandom, broker=broker, default_server=identity)
    try:
        place.https(names, time.time())
        key = PrivateKey.generate()
        secret = authority.invite(identity, server=True).partition(".")[0]
        named = Identity(identity, f"{identity:x}")
        proof = sign(key, what_a_token_needs(identity, secret))
        authority.register(named, key.public_key, "server", secret, proof)
        request = request_certificate(identity, key)
        access = authority.access(named, request, sign(key, request))
        Enrolment(
            url=url,
            identity=identity,
            type="server",
            key=key,
            tls_key=key,
            broker=broker,
            service=authority.identity,
            service_key=authority.key.public_key,
            server=None,
            server_key=None,
            certificate=access.certificate,
            authority=access.authority,
            trust=authority.certificates.pem,
        ).save(folder / "server")
        configuration = place.write_broker(authority, names, time.time(), port=broker_port, address=address, user=user)
    finally:
        authority.close()
    made = [place.path, configuration, folder / "server", folder / _FIRMWARE, folder / _SETTINGS]
    try:
        (folder / _FIRMWARE).mkdir()
        settings = _settings(identity, names, broker, address, broker_port, service_port)
        write_file(folder / _SETTINGS, settings, PUBLIC)
        if systemd:
            made += _write_units(folder.absolute(), configuration.absolute())
    except OSError as error:
        raise KeyServiceError(0, "", complaint(error, folder)) from None
    return Installation(identity, broker, url, tuple(made))


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _settings(
    identity: int, names: Sequence[str], broker: str, address: str, broker_port: int, service_port: int
) -> str:
    listed = ", ".join(f'"{name}"' for name in names)
    return f'''# Settings of the srup commands in this folder (docs/configuration.md). Paths are relative to this file.

[server]                    # srup server: identity {identity:x}
enrolled = "server"         # its identity, key, certificate and broker
store = "server.db"         # members, replay protection and orders survive restarts
# admission = "human"       # a person compares a value before a device may join; here: "simple"
# metrics = "9464"          # /metrics, /healthz and /readyz over HTTP, on loopback
# log-format = "json"

[devices]                   # srup devices: who is there, and what is known of them
store = "server.db"
identity = "{identity:x}"

[order]                     # srup order action d1 3
store = "server.db"
identity = "{identity:x}"

[campaign]                  # srup campaign apply FILE
store = "server.db"
identity = "{identity:x}"

[firmware.serve]            # srup firmware serve: devices fetch firmware there, with --fetch-ca and the ca.pem they got
cert = "authority/https.pem"
cert_key = "authority/https.key"
host = "{address or _EVERYWHERE}"
port = {_FIRMWARE_PORT}

[keyex.serve]               # srup keyex serve: devices enrol there, and certificates are renewed
folder = "authority"
broker = "{broker}"
name = [{listed}]
host = "{address or _EVERYWHERE}"
port = {service_port}

[keyex.token]               # srup keyex token d1: lets a device enrol
folder = "authority"

[keyex.list]
folder = "authority"

[keyex.approve]
folder = "authority"

[keyex.refuse]
folder = "authority"

[keyex.revoke]
folder = "authority"

[keyex.mosquitto]           # srup keyex mosquitto: writes the broker's configuration again
folder = "authority"
name = [{listed}]
host = "{address}"
port = {broker_port}
'''


_UNIT = """[Unit]
Description={description}
After=network-online.target
Wants=network-online.target

[Service]
{service}
WorkingDirectory={folder}
Restart=always
RestartSec=5
NoNewPrivileges=yes
ProtectSystem=full
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def _write_units(folder: Path, configuration: Path) -> list[Path]:
    """Write systemd units that run the broker, the key exchange service and the server in this folder."""
    srup = f"ExecStart={sys.executable} -m srup"
    units = {
        "srup-broker": (
            "Mosquitto for SRUP",
            f"ExecStart=/usr/sbin/mosquitto -c {configuration}\nExecReload=kill -HUP $MAINPID",
        ),
        "srup-keyex": ("SRUP key exchange service", f"{srup} keyex serve"),
        "srup-firmware": ("Firmware for SRUP devices", f"{srup} firmware serve {_FIRMWARE}"),
        "srup-server": (
            "SRUP server",
            f"Type=notify\n{srup} server\nExecReload=kill -HUP $MAINPID\nWatchdogSec=120",
        ),
    }
    target = folder / "systemd"
    target.mkdir()
    made = []
    for name, (description, service) in units.items():
        path = target / f"{name}.service"
        write_file(path, _UNIT.format(description=description, service=service, folder=folder), PUBLIC)
        made.append(path)
    return made
