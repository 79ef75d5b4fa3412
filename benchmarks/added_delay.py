"""What SRUP adds to a command over MQTT: delay, CPU time and bytes of one round trip on loopback.

A server asks, a device answers, one question at a time; each in a process of its own, through a broker of our own.
``unsigned`` is what one writes without SRUP: the number of the question and of the action, 9 bytes, answered with the
number and a status, over the same MqttTransport, in its callbacks. ``signatures`` is the same with the messages of
SRUP, which are signed and verified in the callbacks, and nothing else. ``srup`` is ``Server.action`` and an
``on_action`` handler: two signatures, two verifications, bound tokens, replay windows, and the threads of both agents;
``inline`` with a handler that runs on the thread that takes the turns.
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
from srup.messages import Message
from srup.tokens import bind
from srup.transport import Delivery, LocalBroker, MqttTransport

from .report import Report, apart, main

TIMEOUT: Final = 30.0
SERVER: Final = 0x5E
DEVICE: Final = 0xD1
ACTION: Final = 3
DOWN, UP = "benchmark/down", "benchmark/up"
WARM_UP: Final = 30


def bare_device(url: str, pipe: Any, private: bytes | None = None, server: bytes | None = None) -> None:
    """Answer every question in the callback; with keys, verify it and sign the answer."""
    transport = MqttTransport(url, "device")
    transport.subscribe(DOWN)
    key = None if private is None else PrivateKey.from_pem(private)
    server_key = None if server is None else PublicKey.from_pem(server)

    def on_delivery(delivery: Delivery) -> None:
        if key is None or server_key is None:
            transport.publish(UP, delivery.payload[:8] + b"\x00")
        else:
            asked = decode(delivery.payload).verify(server_key)
            transport.publish(UP, _signed(Response, asked.sequence_id, DEVICE, asked.token, key, status=0))
        delivery.ack()

    transport.start(on_delivery, lambda connected, why: pipe.send("ready") if connected else None)
    _serve(pipe)
    transport.stop()


def bare_server(
    url: str, key: PrivateKey | None = None, device_key: PublicKey | None = None
) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Return what asks and waits for the answer, and what ends it; with keys, sign questions and verify answers."""
    transport = MqttTransport(url, "server")
    transport.subscribe(UP)
    answers: dict[bytes, Future[None]] = {}
    connected: Future[None] = Future()

    def on_delivery(delivery: Delivery) -> None:
        if device_key is None:
            name = delivery.payload[:8]
        else:
            name = decode(delivery.payload).verify(device_key).sequence_id.to_bytes(8, "big")
        answers.pop(name).set_result(None)
        delivery.ack()

    transport.start(on_delivery, lambda is_connected, why: connected.set_result(None) if is_connected else None)
    connected.result(TIMEOUT)

    def ask(number: int) -> None:
        name, answer = (number if key is None else number + 1).to_bytes(8, "big"), Future()
        answers[name] = answer
        if key is None:
            transport.publish(DOWN, name + bytes([ACTION]))
        else:
            token = bind(SERVER, DEVICE, time.time() + 300, os.urandom(16))
            transport.publish(DOWN, _signed(Action, number + 1, SERVER, token, key, action_id=ACTION))
        answer.result(TIMEOUT)

    return ask, transport.stop


def _signed(cls: type[Message], sequence_id: int, sender: int, token: bytes, key: PrivateKey, **fields: Any) -> bytes:
    return encode(cls(sequence_id=sequence_id, sender_id=sender, token=token, **fields), key)


def srup_device(url: str, pipe: Any, private: bytes, server: bytes, inline: bool) -> None:
    """Do every action."""
    device = Device(
        DEVICE, PrivateKey.from_pem(private), server=SERVER, server_key=PublicKey.from_pem(server), broker=url
    )
    device.on_action(ACTION, inline=inline)(lambda partner: None)
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


def measure(url: str, way: str, scheme: str | None, count: int) -> dict[str, Any]:
    """Measure one way of asking; ``scheme`` None is the unsigned one."""
    context = get_context("spawn")
    pipe, far = context.Pipe()
    keys: list[bytes] = []
    if scheme is not None:
        key, device_key = PrivateKey.generate(scheme), PrivateKey.generate(scheme)
        keys = [device_key.to_pem(), key.public_key.to_pem()]
    bare = scheme is None or way == "signatures"
    if not bare:
        server = Server(SERVER, key, devices=KeyRing({DEVICE: device_key.public_key}), broker=url).start()
    arguments = (url, far, *keys) if bare else (url, far, *keys, way == "inline")
    process = context.Process(target=bare_device if bare else srup_device, args=arguments)
    process.start()
    far.close()
    pipe.recv()
    if bare:
        ask, end = bare_server(url, key, device_key.public_key) if scheme else bare_server(url)
    else:

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
    ways: dict[str, tuple[str, str | None]] = {
        "unsigned": ("unsigned", None),
        "srup rsa2048": ("srup", "rsa2048"),
        "signatures only, ed25519": ("signatures", "ed25519"),
        "srup ed25519": ("srup", "ed25519"),
        "srup ed25519, inline": ("inline", "ed25519"),
    }
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
            for name, (way, scheme) in ways.items():
                found[name].append(apart(measure, broker.url, way, scheme, count))
    rows, bare = [], 9 + 9
    medians, cpus = {}, {}
    for way, (_, scheme) in ways.items():
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
    for way in ("srup ed25519", "srup ed25519, inline"):
        more = (medians[way] - medians["signatures only, ed25519"]) * 1e3
        report.ratio(f"ms that {way} takes beyond signatures only", more)
    report.note("crypto: two encodes and two decode-and-verify calls alone, best times of the same run")
    report.note("bytes: both payloads, without MQTT's own headers and topics")
    report.note("for context: the 2021 performance paper reports 42.92 to 51.60 ms added on Raspberry Pi class devices")
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
