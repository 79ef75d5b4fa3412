"""From bytes at the broker to what is durable: a Server with an SQLite store, through a Mosquitto of our own.

A publisher in a process of its own sends signed values of many devices with QoS 1; they wait at the broker, or come
live. ``plain`` is a paho client that acknowledges each message and does nothing else. ``durable`` is a whole
``srup.Server``: signature, token, window, audit row and inbox entry in one commit with the messages that came
together, then the acknowledgement, then the application's handler, whose end is recorded. ``one by one`` is the same
server without group commit and with ``cryptography`` for each message (the pure backend), as a careful user would write
it today.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from srup import KeyRing, PrivateKey, Server, TransportError
from srup.agent import engine, threads
from srup.records import Changes, PartnerRecord
from srup.store import SqliteStore
from srup.transport import LocalBroker, MqttTransport, unsettled

from .material import public_key, rsa_keys, signed_wires
from .receive import Watch, broker_with_session, receive_plain, send, through
from .report import Report, apart, main

SERVER: Final = 0x5E
FIRST: Final = 1000


def topic_of(device: int) -> str:
    """Return a device's topic."""
    return f"SRUP/{device:x}"


def publish(url: str, fleet: int, count: int, keys: int) -> None:
    """Send all messages, each on its device's topic."""
    devices = [FIRST + number % fleet for number in range(count)]
    send(url, zip(map(topic_of, devices), signed_wires(devices, rsa_keys(keys)), strict=True))


def receive_durable(url: str, keys: int, count: int, grouped: bool = True) -> tuple[float, float, float | None]:
    """Serve with a store, until all is durable, acknowledged and handled."""
    pool = rsa_keys(keys)
    ring = KeyRing({device: public_key(pool[device % keys]) for device in range(FIRST, FIRST + keys)})
    for key in ring.values():
        _ = key.verifier
    watch = Watch(count)
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "server.db")
        store.open(SERVER)
        store.commit(Changes(partners=[PartnerRecord(device, True, True, 0, 0, 1) for device in ring]))
        store.close()
        server = Server(
            SERVER, PrivateKey.generate("ed25519"), devices=ring, broker=MqttTransport(url, "receiver"), store=store
        )
        arrived = server.engine.inbound.arrived

        def on_delivery(delivery: Any) -> None:
            if not watch.began:
                watch.start()
            arrived(delivery)

        server.engine.inbound.arrived = on_delivery  # type: ignore[method-assign]
        server.on_data("temperature", "double")(lambda device, data_id, value: watch.add(1))
        if not grouped:
            engine.BATCH = unsettled.TOGETHER = 1  # type: ignore[misc]
            threads.TURN = 1  # type: ignore[misc]
        server.start()
        try:
            return watch.result(None)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {server.vitals().link}; {dict(server.counts)}") from None
        finally:
            server.stop()


RECEIVERS: Final[dict[str, Callable[..., tuple[float, float, float | None]]]] = {
    "plain": receive_plain,
    "durable": receive_durable,
    "one by one": lambda url, keys, count: receive_durable(url, keys, count, grouped=False),
}


def receive(name: str, url: str, keys: int, count: int) -> tuple[float, float, float | None]:
    """Receive in a fresh process."""
    return RECEIVERS[name](url, keys, count)


def measure(way: str, name: str, keys: int, count: int) -> tuple[float, float, float | None]:
    """Publish and receive."""
    pure = {"SRUP_BACKEND": "python"} if name == "one by one" else {}
    filters = [f"{topic_of(FIRST + number)}/#" for number in range(keys)]
    # A spawned process reads the environment before it imports srup; it changes only while there is none.
    with patch.dict(os.environ, pure), broker_with_session(*filters) as url:
        return through(
            way, partial(apart, publish, url, keys, count, keys), partial(apart, receive, name, url, keys, count)
        )


def run(short: bool) -> Report:
    """Measure everything."""
    keys, count, rounds = (64, 2000, 1) if short else (1000, 20_000, 5)
    report = Report(
        "durable",
        "how many messages per second are durable before they are acknowledged?",
        ["paho-mqtt", "mosquitto"],
        scheme=f"rsa2048, {keys:,} different keys",
        store="SQLite, WAL, synchronous=FULL",
    )
    try:
        description = LocalBroker("mosquitto").description.partition(" (")[0]
        import paho.mqtt.client  # noqa: F401
    except (TransportError, ImportError) as error:
        report.note(f"not measured: {error}")
        return report
    rows: list[list[object]] = []
    for way in ("backlog", "live"):
        tries: dict[str, list[tuple[float, float, float | None]]] = {receiver: [] for receiver in RECEIVERS}
        for _ in range(rounds):  # in turn: what disturbs one disturbs the others
            for receiver, results in tries.items():
                results.append(measure(way, receiver, keys, count // 4 if receiver == "one by one" else count))
        for receiver, results in tries.items():
            rate, cpu, _ = max(results)
            middle = statistics.median(result[0] for result in results)
            rows.append([f"{way}, {receiver}", rate, middle, cpu * 1e6])
        best = {receiver: max(results)[0] for receiver, results in tries.items()}
        medians = {receiver: statistics.median(rate for rate, *_ in results) for receiver, results in tries.items()}
        for what, rates, aims in (("best", best, (0.75, 5.0)), ("medians", medians, (None, None))):
            report.ratio(
                f"{way}: durable / plain paho that only acks, {what}", rates["durable"] / rates["plain"], aims[0]
            )
            ratio = rates["durable"] / rates["one by one"]
            report.ratio(f"{way}: durable / one by one, without group commit, {what}", ratio, aims[1])
    columns = ["path", "messages/s, best", "median", "CPU µs each, receiver"]
    report.table(f"through {description}, QoS 1, {count:,} messages", columns, rows)
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
