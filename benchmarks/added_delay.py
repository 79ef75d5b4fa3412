"""What SRUP adds to a command over MQTT: delay, CPU time and bytes of one round trip on loopback.

A server asks, a device answers, one question at a time; each in a process of its own, through a broker of our own.
``unsigned`` is what one writes without SRUP: the number of the question and of the action, 9 bytes, answered with the
number and a status, over the same MqttTransport, in its callbacks. ``srup`` is ``Server.action`` and an ``on_action``
handler: two signatures, two verifications, bound tokens, replay windows, and the threads of both agents.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import get_context
from typing import Any, Final

from srup import Action, Device, KeyRing, PrivateKey, PublicKey, Response, Server, TransportError, decode, encode
from srup.tokens import bind
from srup.transport import Delivery, LocalBroker, MqttTransport

from .report import Report, apart, main

TIMEOUT: Final = 30.0
SERVER: Final = 0x5E
DEVICE: Final = 0xD1
ACTION: Final = 3
DOWN, UP = "benchmark/down", "benchmark/up"
WARM_UP: Final = 30


def unsigned_device(url: str, pipe: Any) -> None:
    """Answer every question in the callback."""
    transport = MqttTransport(url, "device")
    transport.subscribe(DOWN)

    def on_delivery(delivery: Delivery) -> None:
        transport.publish(UP, delivery.payload[:8] + b"\x00")
        delivery.ack()

    transport.start(on_delivery, lambda connected, why: pipe.send("ready") if connected else None)
    _serve(pipe)
    transport.stop()


def unsigned_server(url: str) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Return what asks and waits for the answer, and what ends it."""
    transport = MqttTransport(url, "server")
    transport.subscribe(UP)
    answers: dict[bytes, Future[None]] = {}
    connected: Future[None] = Future()

    def on_delivery(delivery: Delivery) -> None:
        answers.pop(delivery.payload[:8]).set_result(None)
        delivery.ack()

    transport.start(on_delivery, lambda is_connected, why: connected.set_result(None) if is_connected else None)
    connected.result(TIMEOUT)

    def ask(number: int) -> None:
        name, answer = number.to_bytes(8, "big"), Future()
        answers[name] = answer
        transport.publish(DOWN, name + bytes([ACTION]))
        answer.result(TIMEOUT)

    return ask, transport.stop


def srup_device(url: str, pipe: Any, private: bytes, server: bytes) -> None:
    """Do every action."""
    device = Device(
        DEVICE, PrivateKey.from_pem(private), server=SERVER, server_key=PublicKey.from_pem(server), broker=url
    )
    device.on_action(ACTION)(lambda partner: None)
    with device:
        device.wait_joined(TIMEOUT)
        pipe.send("ready")
        _serve(pipe)


def _serve(pipe: Any) -> None:
    """Tell one's CPU time as often as it is asked for, until the other end is closed."""
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(time.process_time())


def _rounds(ask: Callable[[int], None], count: int, pipe: Any) -> dict[str, Any]:
    """Return the delays in seconds, and the CPU seconds per round trip of both ends."""

    def both() -> float:
        pipe.send("time?")
        return time.process_time() + pipe.recv()

    for number in range(WARM_UP):
        ask(number)
    began, delays = both(), []
    for number in range(WARM_UP, WARM_UP + count):
        start = time.perf_counter()
        ask(number)
        delays.append(time.perf_counter() - start)
    return {"delays": delays, "cpu": (both() - began) / count}


def measure(url: str, scheme: str | None, count: int) -> dict[str, Any]:
    """Measure one way of asking; ``scheme`` None is the unsigned one."""
    context = get_context("spawn")
    pipe, far = context.Pipe()
    if scheme is None:
        process = context.Process(target=unsigned_device, args=(url, far))
        process.start()
        far.close()
        pipe.recv()
        ask, end = unsigned_server(url)
    else:
        key, device_key = PrivateKey.generate(scheme), PrivateKey.generate(scheme)
        server = Server(SERVER, key, devices=KeyRing({DEVICE: device_key.public_key}), broker=url).start()
        arguments = (url, far, device_key.to_pem(), key.public_key.to_pem())
        process = context.Process(target=srup_device, args=arguments)
        process.start()
        far.close()
        pipe.recv()

        def ask(number: int) -> None:
            server.action(DEVICE, ACTION).result(TIMEOUT)

        end = server.stop
    try:
        result = _rounds(ask, count, pipe)
    finally:
        pipe.close()
        process.join(TIMEOUT)
        end()
    return result


def operations(scheme: str, count: int) -> dict[str, float]:
    """Return the seconds of one encode and one decode and verify, and the bytes of the two messages."""
    key = PrivateKey.generate(scheme)
    token = bind(SERVER, DEVICE, time.time() + 300, os.urandom(16))
    action = Action(sequence_id=1, sender_id=SERVER, token=token, action_id=ACTION)
    wire = encode(action, key)
    answer = encode(Response(sequence_id=1, sender_id=DEVICE, token=token, status=0), key)
    public, best = key.public_key, [float("inf")] * 2
    decode(wire).verify(public)
    for _ in range(count):
        times = [time.perf_counter()]
        encode(action, key)
        times.append(time.perf_counter())
        decode(wire).verify(public)
        times.append(time.perf_counter())
        best = [min(old, after - before) for old, before, after in zip(best, times, times[1:], strict=False)]
    return {"encode": best[0], "verify": best[1], "bytes": len(wire) + len(answer)}


def run(short: bool) -> Report | None:
    """Measure all, in turn."""
    count, rounds = (100, 1) if short else (500, 5)
    ways: dict[str, str | None] = {"unsigned": None, "srup rsa2048": "rsa2048", "srup ed25519": "ed25519"}
    try:
        broker = LocalBroker()
        import paho.mqtt.client  # noqa: F401
    except (TransportError, ImportError) as error:
        print(f"\n== added_delay: not measured: {error}")
        return None
    report = Report(
        "added_delay",
        "what does SRUP add to a command and its answer over MQTT?",
        ["paho-mqtt"],
        broker=broker.description.partition(" (")[0],
        sample=f"{rounds} x {count} round trips each, one at a time",
    )
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with broker:
        for _ in range(rounds):
            for way, scheme in ways.items():
                found[way].append(apart(measure, broker.url, scheme, count))
    rows, bare = [], 9 + 9
    medians, cpus = {}, {}
    for way, scheme in ways.items():
        # The quietest of the rounds: what other programs did meanwhile is in all figures of a round.
        best = min(found[way], key=lambda result: statistics.median(result["delays"]))
        delays = sorted(best["delays"])
        medians[way], cpus[way] = statistics.median(delays), min(result["cpu"] for result in found[way])
        p99 = delays[int(len(delays) * 0.99)]
        ends = operations(scheme, count) if scheme else {"encode": None, "verify": None, "bytes": bare}
        crypto = None if scheme is None else 2e3 * (ends["encode"] + ends["verify"])
        added = (medians[way] - medians["unsigned"]) * 1e3
        rows.append(
            [way, medians[way] * 1e3, p99 * 1e3, added, crypto, cpus[way] * 1e3, ends["bytes"], ends["bytes"] - bare]
        )
    columns = ["way", "median, ms", "p99, ms", "added, ms", "crypto, ms", "CPU of both, ms", "bytes", "added"]
    report.table("a command and its answer", columns, rows)
    for way in list(ways)[1:]:
        report.ratio(f"delay, {way} / unsigned", medians[way] / medians["unsigned"])
        report.ratio(f"CPU time, {way} / unsigned", cpus[way] / cpus["unsigned"])
    report.note("crypto: two encodes and two decode-and-verify calls alone, best times of the same run")
    report.note("bytes: both payloads, without MQTT's own headers and topics")
    report.note("for context: the 2021 performance paper reports 42.92 to 51.60 ms added on Raspberry Pi class devices")
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
