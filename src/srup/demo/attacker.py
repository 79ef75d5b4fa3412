"""Somebody who reads everything on the broker and publishes whatever he likes, but has nobody's private key."""

import threading
import time
from typing import Self

from .. import tokens
from ..codec import decode, encode
from ..errors import DecodeError
from ..keys import PrivateKey
from ..messages import Action, JoinRequest
from ..transport import Delivery, MqttTransport, device_topic
from ..transport.topics import EVERYTHING, join_topic

__all__ = ["Attacker"]


class Attacker:
    """Listens to all SRUP traffic at ``broker`` and keeps what it wants."""

    def __init__(self, broker: str) -> None:
        self._key = PrivateKey.generate()
        self._captured: list[tuple[str, bytes]] = []
        self._heard = threading.Condition()
        self._transport = MqttTransport(broker, "attacker")

    def __enter__(self) -> Self:
        self._transport.subscribe(EVERYTHING)
        ready = threading.Event()
        self._transport.start(self._hear, lambda connected, _: ready.set() if connected else None)
        if not ready.wait(30):
            raise TimeoutError("the attacker could not connect to the broker")
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.stop()

    def _hear(self, delivery: Delivery) -> None:
        with self._heard:
            self._captured.append((delivery.topic, delivery.payload))
            self._heard.notify_all()
        delivery.ack()

    def capture_action(self, server: int, device: int, timeout: float = 30.0) -> bytes:
        """Return a genuine Action of the server to this device, as it went over the wire."""

        def found() -> bytes | None:
            for topic, wire in self._captured:
                if topic == device_topic(device):
                    try:
                        frame = decode(wire)
                    except DecodeError:
                        continue
                    if frame.sender_id == server and frame.type == Action.layout.type:
                        return wire
            return None

        with self._heard:
            self._heard.wait_for(lambda: found() is not None, timeout)
            wire = found()
        if wire is None:
            raise TimeoutError("no action was captured")
        return wire

    def forge_action(self, server: int, device: int, action_id: int) -> bytes:
        """Make an Action in the server's name, right in everything but the signature."""
        now = time.time()
        message = Action(
            sequence_id=int(now * 1e6) + 1_000_000,
            sender_id=server,
            token=tokens.bind(server, device, now + 300, bytes(tokens.NONCE_SIZE)),
            action_id=action_id,
        )
        return encode(message, self._key)

    def impersonate(self, device: int, server: int) -> bytes:
        """Ask a server to let us in as this device, which we are not; return what was sent."""
        now = time.time()
        message = JoinRequest(
            sequence_id=int(now * 1e6) + 1_000_000,
            sender_id=device,
            token=tokens.bind(device, server, now + 300, bytes(tokens.NONCE_SIZE)),
        )
        wire = encode(message, self._key)
        self._transport.publish(join_topic(server, device), wire)
        return wire

    def publish(self, device: int, wire: bytes) -> None:
        """Put bytes on a device's topic."""
        self._transport.publish(device_topic(device), wire)
