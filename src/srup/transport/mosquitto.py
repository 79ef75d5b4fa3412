"""Mosquitto's configuration for a broker that trusts certificates alone: who may use which topic (T18).

Everybody's certificate says who he is, and Mosquitto takes its common name, the identity in lower-case hex, for the
user's name. ``%u`` in a pattern stands for that name; Mosquitto itself refuses names with ``+``, ``#`` and ``/`` where
a pattern would be widened by them, and the key exchange service signs no such name.

Mosquitto's access lists refuse messages and no filters: who subscribes without end fills the memory. Its dynamic
security plugin refuses filters, and is used for nothing else.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from srup.transport.topics import EVERYTHING, device_filter, device_topic, join_topic
from srup.wire import MAX_MESSAGE_SIZE

__all__ = ["MAX_PACKET", "access_list", "broker_configuration", "filter_list", "find_plugin"]

_TOP: Final = (1 << 64) - 1
_PROPERTIES: Final = 512  # bytes of MQTT 5 properties that a packet may have
MAX_PACKET: Final = 5 + 2 + len(join_topic(_TOP, _TOP)) + 2 + _PROPERTIES + MAX_MESSAGE_SIZE
"""The longest MQTT packet in bytes: header, topic, packet id, properties, and the longest message."""

_PORTS: Final = range(1, 1 << 16)

_PLUGIN: Final = "mosquitto_dynamic_security.so"
_LIBRARIES: Final = ("lib/*", "lib", "lib64")  # where systems have it, below each of these:
_PREFIXES: Final = ("/usr", "/usr/local", "/opt/homebrew")

_DECISIONS: Final = ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe")
_REST: Final = "nothing else"  # the role of all devices; a "#" of the plugin's stands for filters with $ in front, too

_CONFIGURATION: Final = """\
# Written by srup. TLS with a certificate on both sides, nobody without.
per_listener_settings true
persistence true
persistence_location {data}/
# Without it bursts wait for the peer's delayed acknowledgements.
set_tcp_nodelay true
# Nothing is retained in SRUP, and who retains messages fills the memory.
retain_available false
max_packet_size {packet}
# What waits for one session. More is dropped although the publisher was told that it is safe; SRUP sends again.
max_inflight_messages 1000
max_inflight_bytes 4194304
max_queued_messages 10000
max_queued_bytes 16777216
# As long as a certificate is good; a device that comes back later has lost what waited for it.
persistent_client_expiration 7d
# Whoever needs more than that is disconnected.
memory_limit {memory}
"""

_LISTENER: Final = """\

listener {port}{address}
cafile {folder}/ca.pem
certfile {folder}/server.pem
keyfile {folder}/server.key
crlfile {folder}/crl.pem
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
allow_anonymous false
"""

_ONE_SESSION: Final = """\
# A session belongs to a certificate, whatever id a client gives: nobody takes another's, or has two.
use_username_as_clientid true
acl_file {folder}/acl
"""

_FILTERS: Final = """\
# Devices subscribe to their own topic and to nothing else. It is read when Mosquitto starts. It goes with one listener
# only: with two, Mosquitto crashes when it ends.
plugin {plugin}
plugin_opt_config_file {folder}/filters.json
"""

_SERVERS: Final = """\
# For servers with several connections, each with a session of its own. Devices may do nothing here.
acl_file {folder}/acl.servers
"""


def broker_configuration(
    folder: str | os.PathLike[str],
    port: int = 8883,
    address: str = "",
    user: str = "",
    data: str = "",
    *,
    workers_port: int | None = None,
    memory: int = 1024,
    plugin: str | os.PathLike[str] = "",
) -> str:
    """Return the text of ``mosquitto.conf`` for a folder that holds the other files.

    ``address`` is what to listen on (default: everything), ``user`` whom a Mosquitto that root has started becomes
    (default: ``mosquitto``), ``data`` where it keeps its sessions (default: ``data`` in the folder). On ``port`` each
    certificate has one session; ``workers_port`` is another one, for servers whose workers share a certificate.
    ``memory`` is how many MiB it may have for what it keeps. ``plugin`` is the file of the dynamic security plugin (see
    :func:`find_plugin`), without which a device may subscribe to any number of filters on ``port``, as it always may on
    ``workers_port``. ValueError names a value that cannot stand in the file.
    """
    for number in (port, port if workers_port is None else workers_port):
        if number not in _PORTS:
            raise ValueError(f"a port is 1 to 65535, not {number!r}")
    if port == workers_port:
        raise ValueError(f"workers_port must be another port than {port}")
    if not 16 <= memory <= 1 << 20:
        raise ValueError(f"memory is 16 to 1048576 MiB, not {memory!r}")
    where, library = str(Path(folder).resolve()), os.fspath(plugin)
    values = (("folder", where), ("address", address), ("user", user), ("data", data), ("plugin", library))
    for name, value in values:
        if not value.isprintable() or value != value.strip() or (name in ("address", "user") and " " in value):
            raise ValueError(f"{name} {value!a} cannot stand in Mosquitto's configuration")
    text = _CONFIGURATION.format(data=data or f"{where}/data", packet=MAX_PACKET, memory=memory << 20)
    text += f"user {user}\n" if user else ""
    devices = _ONE_SESSION + (_FILTERS if library else "")
    for each, rest in ((port, devices), (workers_port, _SERVERS)):
        if each is not None:
            listens = {"port": each, "address": f" {address}" if address else "", "folder": where, "plugin": library}
            text += (_LISTENER + rest).format(**listens)
    return text


def find_plugin() -> Path | None:
    """Return Mosquitto's dynamic security plugin on this machine, None if it is in none of the usual places."""
    places = (f"{library}/{_PLUGIN}" for library in _LIBRARIES)
    patterns = [(Path(prefix), place) for place in places for prefix in _PREFIXES]
    return next((found for prefix, place in patterns for found in sorted(prefix.glob(place))), None)


def filter_list(devices: Iterable[int]) -> str:
    """Return the JSON for Mosquitto's dynamic security plugin that lets each device subscribe to its own topic alone.

    What it does not decide goes to the access list: all messages, and whoever is not in it.
    """
    # The plugin walks from the first name on to the place of each one, so the last comes first.
    names = sorted((f"{identity:x}" for identity in devices), reverse=True)
    rest = {"rolename": _REST, "acls": [{"acltype": "subscribePattern", "topic": "#", "allow": False}]}
    content = {
        "defaultACLAccess": dict.fromkeys(_DECISIONS, False),
        "clients": [{"username": n, "roles": [{"rolename": n, "priority": 1}, {"rolename": _REST}]} for n in names],
        "groups": [],
        "roles": [rest, *({"rolename": n, "acls": [*map(_subscribed, _filters(n))]} for n in names)],
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def _filters(name: str) -> tuple[str, str]:
    return device_topic(int(name, 16)), device_filter(int(name, 16))


def _subscribed(topic: str) -> dict[str, object]:
    return {"acltype": "subscribeLiteral", "topic": topic, "allow": True}


def access_list(servers: Iterable[int], revoked: Iterable[int] = (), *, devices: bool = True) -> str:
    """Return the text of Mosquitto's access list (docs/protocol/flows.md#f-2).

    A device uses its own topic and may ask every server to join, unless ``devices`` is False. A server uses the topics
    of all devices and reads who asks it to join. Who is in ``revoked`` may do nothing, on a connection that stands as
    on a new one.
    """
    lines = ["pattern readwrite SRUP/%u", "pattern write SRUP/servers/+/%u"] if devices else []
    refused = set(revoked)
    for identity in sorted(set(servers) - refused):
        lines += ["", f"user {identity:x}", "topic readwrite SRUP/+", f"topic read SRUP/servers/{identity:x}/+"]
    for identity in sorted(refused):
        lines += ["", f"user {identity:x}", f"topic deny {EVERYTHING}"]
    return "\n".join(lines) + "\n"
