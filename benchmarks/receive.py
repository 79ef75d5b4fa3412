"""From bytes to verified messages: in memory, and through a Mosquitto of our own.

In memory, one thread verifies: batches of a fixed size, and whatever a second thread has put into a queue meanwhile.

Through Mosquitto, a publisher in a process of its own sends signed messages of many devices with QoS 1, and a receiver
in another one takes them. ``plain`` is a paho client whose callback acknowledges each message and does nothing else.
``srup`` is MqttTransport, whose callback enqueues; a worker takes whatever is there, calls ``verify_many`` and
acknowledges in order. ``backlog``: all messages wait at the broker before the receiver comes, so that nothing but the
receiver and the broker runs. ``live``: the publisher sends at the same time, on the same cores.
"""

import queue
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from srup import Data, KeyRing, TransportError, backend_info, verify_many
from srup.transport import Delivery, LocalBroker, MqttTransport

from .material import public_key, rsa_keys, signed_wires
from .report import Report, apart, main

TOPIC: Final = "SRUP/benchmark"
LARGEST: Final = 1024
TIMEOUT: Final = 60.0
WINDOW: Final = 1000  # unacknowledged messages that the broker may have open, for both receivers
IN_FLIGHT: Final = 400  # the same for the publisher

Result = TypeVar("Result")


def make_ring(keys: int) -> KeyRing:
    """Return a ring of senders 0, 1, ..."""
    return KeyRing({sender: public_key(key) for sender, key in enumerate(rsa_keys(keys))})


def make_wires(keys: int, count: int) -> list[bytes]:
    """Return messages of all senders in turn."""
    return signed_wires((number % keys for number in range(count)), rsa_keys(keys))


# In memory.


def in_batches(wires: list[bytes], ring: KeyRing, size: int, rounds: int) -> float:
    """Return the seconds per message of the best round."""
    batches = [wires[start : start + size] for start in range(0, len(wires), size)]
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for batch in batches:
            verify_many(batch, ring)
        best = min(best, time.perf_counter() - began)
    return best / len(wires)


def take(inbox: "queue.SimpleQueue[Any]", most: int = LARGEST) -> list[Any]:
    """Wait for one, then take whatever is there."""
    batch = [inbox.get(timeout=TIMEOUT)]
    while len(batch) < most:
        try:
            batch.append(inbox.get_nowait())
        except queue.Empty:
            break
    return batch


def through_queue(wires: list[bytes], ring: KeyRing, rounds: int) -> tuple[float, float]:
    """Return the seconds per message of the best round, and how many messages its batches had on average."""
    best = (float("inf"), 0.0)
    for _ in range(rounds):
        inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        feeder = threading.Thread(target=lambda inbox=inbox: [inbox.put(wire) for wire in wires])
        left, batches = len(wires), 0
        began = time.perf_counter()
        feeder.start()
        while left:
            left -= len(verify_many(take(inbox), ring))
            batches += 1
        best = min(best, (time.perf_counter() - began, len(wires) / batches))
        feeder.join()
    return best[0] / len(wires), best[1]


# Through Mosquitto.


def connect(url: str, on_message: Callable[..., None]) -> Any:
    """Return a paho client with the session and the properties of MqttTransport."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    version = MQTTProtocolVersion.MQTTv5
    client = paho.Client(CallbackAPIVersion.VERSION2, "receiver", protocol=version, manual_ack=True)
    client.on_message = on_message
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 86400
    properties.ReceiveMaximum = WINDOW
    address = urlsplit(url)
    client.connect(address.hostname or "", address.port or 1883, clean_start=False, properties=properties)
    if (line := client.socket()) is not None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[attr-defined]
    return client


def publish(url: str, keys: int, count: int) -> None:
    """Send all messages and return when the broker has acknowledged the last."""
    send(url, ((TOPIC, wire) for wire in make_wires(keys, count)))


def send(url: str, messages: Iterable[tuple[str, bytes]]) -> None:
    """Send messages, each to its topic, and return when the broker has acknowledged the last.

    Packets of MQTT 3.1.1 (sections 3.1 to 3.4), made before the first is sent: a client library would take the CPU
    time that the receiver needs, and all receivers would be measured waiting for it.
    """
    packets = []
    for number, (topic, wire) in enumerate(messages):
        name = topic.encode()
        body = struct.pack(f"!H{len(name)}sH", len(name), name, 1 + number % 0xFFFF) + wire
        packets.append(bytes([0x32, len(body) & 0x7F | 0x80, len(body) >> 7]) + body)
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 1883), timeout=TIMEOUT) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(b"\x10\x15\x00\x04MQTT\x04\x02\x00\x00\x00\x09publisher")
        if line.recv(4) != b"\x20\x02\x00\x00":
            raise RuntimeError("the broker refused the publisher")
        settled = sent = 0
        while settled < 4 * len(packets):  # bytes of PUBACK
            room = min(len(packets), settled // 4 + IN_FLIGHT) - sent
            if room >= IN_FLIGHT // 4 or sent + room == len(packets):
                line.sendall(b"".join(packets[sent : sent + room]))
                sent += room
            if not (receipts := line.recv(1 << 16)):
                raise RuntimeError(
                    f"the broker hung up on the publisher after {settled // 4} of {len(packets)} messages"
                )
            settled += len(receipts)


class Watch:
    """Counts messages; wall and CPU time run from the first to the last."""

    def __init__(self, count: int) -> None:
        self.left = self.count = count
        self.done = threading.Event()
        self.began = self.cpu = 0.0

    def add(self, count: int) -> None:
        """Count some."""
        self.left -= count
        if self.left <= 0:
            self.seconds, self.cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
            self.done.set()

    def start(self) -> None:
        """Start the time."""
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def result(self, batch: float | None) -> tuple[float, float, float | None]:
        """Return messages per second, CPU seconds per message and the mean batch."""
        if not self.done.wait(TIMEOUT):
            raise TimeoutError(f"{self.left} of {self.count} messages did not arrive")
        return self.count / self.seconds, self.cpu / self.count, batch


def receive_plain(url: str, keys: int, count: int) -> tuple[float, float, float | None]:
    """Acknowledge, with paho and nothing else."""
    watch = Watch(count)

    def on_message(client: Any, _: object, message: Any) -> None:
        if not watch.began:
            watch.start()
        client.ack(message.mid, message.qos)
        watch.add(1)

    client = connect(url, on_message)
    client.loop_start()
    result = watch.result(None)
    time.sleep(0.2)  # for the last acknowledgements
    client.disconnect()
    client.loop_stop()
    return result


def receive_srup(url: str, keys: int, count: int) -> tuple[float, float, float | None]:
    """Verify, then acknowledge in order."""
    ring = make_ring(keys)
    for key in ring.values():
        _ = key.verifier
    inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    watch, sizes = Watch(count), []
    transport = MqttTransport(url, "receiver")
    transport.subscribe(TOPIC)

    def on_delivery(delivery: Delivery) -> None:
        if not watch.began:
            watch.start()
        inbox.put(delivery)

    transport.start(on_delivery, lambda connected, why: None)
    verified = 0
    while watch.left > 0:
        batch = take(inbox)
        verified += sum(type(result) is Data for result in verify_many([one.payload for one in batch], ring))
        for delivery in batch:
            delivery.ack()
        sizes.append(len(batch))
        watch.add(len(batch))
    if verified != count:
        raise RuntimeError(f"{verified} of {count} messages were genuine")
    result = watch.result(statistics.mean(sizes))
    transport.stop()
    return result


RECEIVERS: Final[dict[str, Callable[..., tuple[float, float, float | None]]]] = {
    "plain": receive_plain,
    "srup": receive_srup,
}


def make_session(url: str, filters: Iterable[str]) -> None:
    """Subscribe as the receiver and go, so that the broker keeps what comes."""
    transport = MqttTransport(url, "receiver")
    for topic_filter in filters:
        transport.subscribe(topic_filter)
    connected = threading.Event()
    transport.start(lambda delivery: None, lambda is_connected, why: connected.set() if is_connected else None)
    stands = connected.wait(TIMEOUT)
    transport.stop()
    if not stands:
        raise TimeoutError("the receiver's subscriptions do not stand")


@contextmanager
def broker_with_session(*filters: str) -> Iterator[str]:
    """Give the URL of a fresh Mosquitto that keeps messages for the receiver."""
    with LocalBroker("mosquitto") as broker:
        apart(make_session, broker.url, filters)
        yield broker.url


def through(way: str, publishing: Callable[[], object], receiving: Callable[[], Result]) -> Result:
    """Publish everything and then receive (backlog), or both at the same time (live); return what receiving does.

    If publishing fails its error is raised: the receiver only knows that nothing comes.
    """
    with ThreadPoolExecutor(1) as pool:
        published = pool.submit(publishing)
        if way == "backlog":
            published.result()
        try:
            return receiving()
        finally:
            published.result()


def measure(way: str, receiver: str, keys: int, count: int) -> tuple[float, float, float | None]:
    """Publish and receive."""
    with broker_with_session(TOPIC) as url:
        return through(
            way, partial(apart, publish, url, keys, count), partial(apart, RECEIVERS[receiver], url, keys, count)
        )


def run(short: bool) -> Report:
    """Measure everything."""
    keys, count, rounds = (64, 2000, 1) if short else (1000, 20_000, 5)
    libraries = ["paho-mqtt", "mosquitto"]
    report = Report(
        "receive",
        "how many signed messages per second become verified ones?",
        libraries,
        scheme=f"rsa2048, {keys:,} different keys",
        message=f"{len(make_wires(keys, 1)[0])} bytes, Data",
    )
    wires, ring = make_wires(keys, 4096 if not short else 1024), make_ring(keys)
    rows: list[list[object]] = []
    for size in (1, 8, 64, 256, 1024):
        seconds = in_batches(wires, ring, size, 5)
        rows.append([f"batches of {size:,}", 1 / seconds, seconds * 1e6, size])
    seconds, size = through_queue(wires, ring, 5)
    rows.append(["a queue, batches as they come", 1 / seconds, seconds * 1e6, size])
    report.table("in memory", ["path", "verified messages/s", "µs each", "mean batch"], rows)
    try:
        LocalBroker("mosquitto")
        import paho.mqtt.client  # noqa: F401
    except (TransportError, ImportError) as error:
        report.note(f"not measured through Mosquitto: {error}")
        return report
    rows = []
    for name in ("backlog", "live"):
        best: dict[str, tuple[float, float, float | None]] = {}
        tries: dict[str, list[float]] = {receiver: [] for receiver in RECEIVERS}
        for _ in range(rounds):  # in turn: what disturbs one disturbs the other
            for receiver in RECEIVERS:
                result = measure(name, receiver, keys, count)
                tries[receiver].append(result[0])
                best[receiver] = max(best.get(receiver, result), result)
        for receiver, (rate, cpu, batch) in best.items():
            rows.append([f"{name}, {receiver}", rate, statistics.median(tries[receiver]), cpu * 1e6, batch])
        middle = {receiver: statistics.median(rates) for receiver, rates in tries.items()}
        what = "verified messages/s / plain paho's acknowledged messages/s"
        report.ratio(f"{name}: {what}, best of {rounds}", best["srup"][0] / best["plain"][0], 0.9)
        report.ratio(f"{name}: the same, medians", middle["srup"] / middle["plain"])
    columns = ["path", "messages/s, best", "median", "CPU µs each, receiver", "mean batch"]
    report.table(
        f"through {LocalBroker('mosquitto').description.partition(' (')[0]}, QoS 1, {count:,} messages", columns, rows
    )
    if not backend_info().rsa_kernel:
        report.note(f"without the RSA kernel: {backend_info().rsa_kernel_reason}")
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
