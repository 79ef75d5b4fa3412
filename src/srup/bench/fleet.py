"""A process full of simulated devices: real agents with live connections, all on one network thread.

The agents have no threads of their own. One loop steps those that have received something, that are due, or that are to
send now.
"""

import gc
import json
import os
import queue
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from math import inf
from typing import Any, Final

from ..agent import Device
from ..errors import TransportError
from ..fetch import FetchPolicy, HttpFetcher
from ..keys import PrivateKey, PublicKey
from ..transport import Delivery, MqttTransport, Reactor
from ..transport.alarms import Alarms
from ..wire import Status
from .ledger import Value
from .servers import UPDATE, VALUE
from .site import SERVER, Site

__all__ = ["Fleet", "arrivals", "main"]

_AT_ONCE: Final = 256  # devices that join, or are updated, at the same time; more would only wait, and ask again
_REPORT: Final = 0.25  # seconds between two words about the progress
_KEEPALIVE: Final = 60  # seconds


def arrivals(rate: float, seconds: float, poisson: bool, seed: int) -> Iterator[int]:
    """When values are due, in ns from the beginning: at random (a Poisson process), or at equal distances."""
    chance = random.Random(seed)  # noqa: S311 - must be repeatable, and guards nothing
    at = 0.0
    while (at := at + (chance.expovariate(rate) if poisson else 1 / rate)) < seconds:
        yield int(at * 1e9)


class _Line(MqttTransport):
    """The connection of a device; it says that the device has something to do, and can hold back what is sent."""

    def __init__(self, site: Site, device: int, reactor: Reactor, busy: Callable[[int], None]) -> None:
        super().__init__(
            site.broker, f"srup-{device:x}", reactor=reactor, keepalive=_KEEPALIVE, min_pause=0.1, max_pause=5.0
        )
        self._device = device
        self._busy = busy
        self.held: deque[tuple[str, bytes]] | None = None

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """See Transport."""

        def deliver(delivery: Delivery) -> None:
            on_delivery(delivery)
            self._busy(self._device)

        def tell(connected: bool, why: str) -> None:
            on_state(connected, why)
            self._busy(self._device)

        super().start(deliver, tell)

    def publish(
        self,
        topic: str,
        payload: bytes,
        on_settled: Callable[[], object] | None = None,
        on_refused: Callable[[TransportError], object] | None = None,
    ) -> None:
        """See Transport."""
        if self.held is None:
            super().publish(topic, payload, on_settled, on_refused)
        else:
            self.held.append((topic, payload))

    def release(self) -> None:
        """Send the oldest of what is held back."""
        if self.held:
            super().publish(*self.held.popleft())


class Fleet:
    """The devices ``identities`` of a site. ``tell(what, done)`` hears how far it has come.

    A phase ends when all devices are through, or when for ``patience`` seconds nothing has come of it.
    """

    def __init__(
        self, site: Site, identities: Iterable[int], tell: Callable[[str, int], None], patience: float
    ) -> None:
        self._site = site
        self._tell = tell
        self._told = 0.0
        self._patience = patience
        self._reactor = Reactor("srup-fleet")
        self._ready: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._alarms: Alarms[int] = Alarms()
        self._joined: set[int] = set()
        self._activated: Counter[int] = Counter()
        self._lines: dict[int, _Line] = {}
        self._devices: dict[int, Device] = {}
        server_key = PublicKey.load(f"{site.server_key}.pub")
        fetcher = HttpFetcher(FetchPolicy(allow_http=True))
        keys: dict[int, PrivateKey] = {}
        for identity in identities:
            if identity % site.pool not in keys:
                keys[identity % site.pool] = PrivateKey.load(site.device_key(identity))
            self._lines[identity] = line = _Line(site, identity, self._reactor, self._ready.put)
            self._devices[identity] = device = Device(
                identity,
                keys[identity % site.pool],
                server=SERVER,
                server_key=server_key,
                broker=line,
                firmware=site.firmware(identity),
                fetcher=fetcher,
            )
            device.on_joined(lambda identity=identity: self._joined.add(identity))
            device.on_activate(lambda _path, identity=identity: self._activated.update([identity]))

    def build(self) -> dict[str, Any]:
        """Say that it is built."""
        return {"devices": len(self._devices)}

    def join(self) -> dict[str, Any]:
        """Connect and join everybody."""

        def begin(identity: int) -> None:
            self._devices[identity].start(threads=False)
            self._step(identity)

        self._all("joining", list(self._devices), begin, self._joined)
        gc.freeze()  # a pass over thousands of agents would be charged to the servers
        return {"joined": len(self._joined)}

    def sign(self, rate: float, seconds: float, poisson: bool, seed: int) -> dict[str, Any]:
        """Make the values of a load and hold them back, so that they are signed when it begins."""
        for line in self._lines.values():
            line.held = deque()
        for number, (_, identity, value) in enumerate(self._plan(rate, seconds, poisson, seed), 1):
            self._send(identity, value)
            self._report("signing", number)
        return {"signed": sum(len(line.held or ()) for line in self._lines.values())}

    def offer(self, rate: float, seconds: float, poisson: bool, seed: int, start: int) -> dict[str, Any]:
        """Send values by random devices from ``start`` (ns) on, each when it is due, without waiting for answers.

        What is not sent when the time is over is not sent at all. The result has how many each device has sent, and
        by how many ms the fleet was behind its own plan at the worst.
        """
        signed = any(line.held for line in self._lines.values())
        sent: Counter[int] = Counter()
        behind = 0
        for number, (due, identity, value) in enumerate(self._plan(rate, seconds, poisson, seed), 1):
            while (now := time.monotonic_ns()) < start + due:
                self._turn((start + due - now) / 1e9)
            if now >= start + seconds * 1e9:
                break
            behind = max(behind, now - start - due)
            if signed:
                self._lines[identity].release()
            else:
                self._send(identity, value)
            sent[identity] += 1
            self._report("sending", number)
            if not self._ready.empty():
                self._turn(0.0)
        while (left := start + seconds * 1e9 - time.monotonic_ns()) > 0:
            self._turn(left / 1e9)
        for line in self._lines.values():
            line.held = None
        return {"sent": sent, "behind_ms": behind / 1e6}

    def update(self) -> dict[str, Any]:
        """Have everybody ask for an update, take it and activate it."""
        asked: list[Future[Status]] = []

        def begin(identity: int) -> None:
            asked.append(self._devices[identity].action(SERVER, UPDATE))
            self._step(identity)

        self._all("updating", sorted(self._joined), begin, self._activated)
        granted = sum(future.done() and not future.exception() and bool(future.result()) for future in asked)
        return {
            "ordered": granted,
            "activated": len(self._activated),
            "activated_twice": sum(times - 1 for times in self._activated.values()),
        }

    def idle(self) -> None:
        """Do what comes up, for a moment."""
        self._turn(0.05)

    def _all(self, what: str, todo: list[int], begin: Callable[[int], None], done: "set[int] | Counter[int]") -> None:
        """Begin with one after the other, as long as not too many are under way, until all are done."""
        begun, latest, since = 0, -1, time.monotonic()
        while len(done) < len(todo):
            if begun < len(todo) and begun - len(done) < _AT_ONCE:
                begin(todo[begun])
                begun += 1
            self._turn(0.0 if begun < len(todo) and begun - len(done) < _AT_ONCE else 0.1)
            if len(done) > latest:
                latest, since = len(done), time.monotonic()
            elif time.monotonic() - since > self._patience:
                return
            self._report(what, len(done))

    def _plan(self, rate: float, seconds: float, poisson: bool, seed: int) -> Iterator[tuple[int, int, Value]]:
        """When who sends what; the same every time."""
        chance = random.Random(~seed)  # noqa: S311 - as above
        members = sorted(self._joined)
        numbers: Counter[int] = Counter()
        for due in arrivals(rate, seconds, poisson, seed) if members else ():
            identity = chance.choice(members)
            numbers[identity] += 1
            yield due, identity, Value(identity, numbers[identity], due)

    def _send(self, identity: int, value: Value) -> None:
        self._devices[identity].send(VALUE, value.pack())
        self._step(identity)

    def _turn(self, patience: float) -> None:
        """Step who has something to do; wait so long for the first."""
        patience = max(0.0, min(patience, self._alarms.next() - time.time()))
        busy: dict[int, None] = {}
        try:
            busy[self._ready.get(patience > 0, patience)] = None
            while True:
                busy[self._ready.get_nowait()] = None
        except queue.Empty:
            pass
        busy.update(dict.fromkeys(self._alarms.due(time.time())))
        for identity in busy:
            self._step(identity)

    def _step(self, identity: int) -> None:
        device = self._devices[identity]
        device.step()
        deadline = device.deadline()
        self._alarms.set(identity, inf if deadline is None else deadline)

    def _report(self, what: str, done: int) -> None:
        if (now := time.monotonic()) - self._told >= _REPORT:
            self._told = now
            self._tell(what, done)


def main(path: str, first: str, count: str, patience: str) -> None:
    """Be the fleet of so many devices of a site, from the ``first`` on.

    Does what standard input says, one JSON object a line, answers in the same way, and ends when it ends.
    """
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))
        os._exit(0)  # whoever started us is gone or wants us gone, whatever is under way

    def say(**words: Any) -> None:
        print(json.dumps(words), flush=True)

    threading.Thread(target=listen, daemon=True).start()
    devices = range(int(first), int(first) + int(count))
    fleet = Fleet(Site.load(path), devices, lambda what, done: say(phase=what, done=done), float(patience))
    while True:
        try:
            order = orders.get_nowait()
        except queue.Empty:
            fleet.idle()
        else:
            say(answer=getattr(fleet, order.pop("do"))(**order))
