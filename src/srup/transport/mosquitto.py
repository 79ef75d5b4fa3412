"""Mosquitto's configuration for a broker that trusts certificates alone: who may use which topic (THREATS.md, T18).

Everybody's certificate says who he is, and Mosquitto takes its common name, the identity in lower-case hex, for the
user's name. ``%u`` in a pattern stands for that name; Mosquitto itself refuses names with ``+``, ``#`` and ``/`` where
a pattern would be widened by them, and the key exchange service signs no such name.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from srup.transport.topics import EVERYTHING

__all__ = ["access_list", "broker_configuration"]

_PORTS: Final = range(1, 1 << 16)

_CONFIGURATION: Final = """\
# Written by srup. One listener, TLS with a certificate on both sides, nobody without.
per_listener_settings false
listener {port}{address}
cafile {folder}/ca.pem
certfile {folder}/server.pem
keyfile {folder}/server.key
crlfile {folder}/crl.pem
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {folder}/acl
# SIGHUP makes it read certificates, revocations and the access list again.
pid_file {folder}/mosquitto.pid
persistence true
persistence_location {data}/
# Without it bursts wait for the peer's delayed acknowledgements.
set_tcp_nodelay true
# The defaults drop what a slow subscriber has not fetched, after the publisher was told that it is safe.
max_queued_messages 100000
max_inflight_messages 1000
max_packet_size 65536
"""


def broker_configuration(folder: Path, port: int = 8883, address: str = "", user: str = "", data: str = "") -> str:
    """Return the text of ``mosquitto.conf`` for a folder that holds the other files.

    ``address`` is what to listen on (default: everything), ``user`` whom a Mosquitto that root has started becomes
    (default: ``mosquitto``), ``data`` where it keeps its sessions (default: ``folder``). ValueError names a value that
    cannot stand in the file.
    """
    if port not in _PORTS:
        raise ValueError(f"a port is 1 to 65535, not {port!r}")
    where = str(folder.resolve())
    for name, value in (("folder", where), ("address", address), ("user", user), ("data", data)):
        if not value.isprintable() or value != value.strip() or (name in ("address", "user") and " " in value):
            raise ValueError(f"{name} {value!a} cannot stand in Mosquitto's configuration")
    text = _CONFIGURATION.format(port=port, address=f" {address}" if address else "", folder=where, data=data or where)
    return text + (f"user {user}\n" if user else "")


def access_list(servers: Iterable[int], revoked: Iterable[int] = ()) -> str:
    """Return the text of Mosquitto's access list (FLOWS.md, "Identities, topics, transport").

    A device uses its own topic and may ask every server to join. A server uses the topics of all devices and reads who
    asks it to join. Who is in ``revoked`` may do nothing, on a connection that stands as on a new one.
    """
    lines = ["pattern readwrite SRUP/%u", "pattern write SRUP/servers/+/%u"]
    refused = set(revoked)
    for identity in sorted(set(servers) - refused):
        lines += ["", f"user {identity:x}", "topic readwrite SRUP/+", f"topic read SRUP/servers/{identity:x}/+"]
    for identity in sorted(refused):
        lines += ["", f"user {identity:x}", f"topic deny {EVERYTHING}"]
    return "\n".join(lines) + "\n"
