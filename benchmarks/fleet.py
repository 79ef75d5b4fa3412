"""Thousands of devices and one server: what it serves of what is offered, how long that takes, and the memory.

Device and Server agents run without threads on a MemoryNetwork with a seed. Time is simulated, with one exception:
the server is one busy CPU core, so its simulated time passes as its real CPU time does. A value that a device sends
waits for the network (10 to 50 ms, drawn by the seed), then until the server has done what came before; ``served`` is
what it finished in a time as long as values were offered for. The devices' own CPU time costs nothing here: there are
thousands of CPUs. Ed25519 keys come from a small pool; everything is signed and verified live.
"""

import gc
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from srup import Device, KeyRing, PrivateKey, Server
from srup.fetch import MemoryFetcher
from srup.transport import Delivery, MemoryNetwork, MemoryTransport

from .report import Report, apart, main, memory

SEED: Final = 2026
SERVER: Final = 0x5E
START: Final = 1_900_000_000.0
WAY: Final = (0.01, 0.05)
POOL: Final = 64
NEVER: Final = float("inf")


class Clock:
    """Simulated time; while the server works it passes as fast as this process's CPU time."""

    def __init__(self) -> None:
        self.now = START
        self._working_since: float | None = None

    def __call__(self) -> float:
        """Return Unix time in seconds."""
        if self._working_since is None:
            return self.now
        return self.now + time.process_time() - self._working_since

    def work(self, job: Callable[[], None]) -> float:
        """Do a job on the clock and return when it is finished; :attr:`now` stays."""
        self._working_since = time.process_time()
        try:
            job()
            return self()
        finally:
            self._working_since = None


class Network(MemoryNetwork):
    """A MemoryNetwork that finds subscribers by topic, not by asking each of them, and keeps no log.

    Asking takes longer than all of SRUP with thousands of clients. What is sent leaves when it was sent, also by the
    server, which may be ahead of the others. The messages of one device stay in order; those of two may overtake each
    other.
    """

    def __init__(self, seed: int, clock: Clock) -> None:
        super().__init__(seed, delay=WAY, clock=clock)
        self._sent_at = clock
        self._by_device: dict[str, list[Any]] = {}
        self._latest: dict[tuple[str, int], float] = {}
        self.advance(clock())

    def add(self, device: int, *sessions: Any) -> None:
        """Say who hears a device's topic; last comes the server, which alone hears the joins."""
        self._by_device[f"{device:x}"] = [*sessions]

    def _publish(self, topic: str, payload: bytes) -> None:
        now = self._sent_at()
        device = topic.rpartition("/")[2]
        *sessions, server = self._by_device[device]
        for session in [server] if topic.startswith("SRUP/servers/") else [*sessions, server]:
            link = (device, id(session))
            due = self._latest[link] = max(now + self._random.uniform(*WAY), self._latest.get(link, 0.0))
            self._schedule(due, session, (topic, payload))


class Client(MemoryTransport):
    """A MemoryTransport that says who has something to do."""

    def __init__(self, network: Network, name: str, busy: list[str]) -> None:
        super().__init__(network, name)
        self._name, self._busy = name, busy

    def start(self, on_delivery: Callable[[Delivery], None], on_state: Callable[[bool, str], None]) -> None:
        """See MemoryTransport."""

        def deliver(delivery: Delivery) -> None:
            self._busy.append(self._name)
            on_delivery(delivery)

        super().start(deliver, on_state)


class Fleet:
    """The server, the devices, and the loop that makes time pass."""

    def __init__(self, size: int) -> None:
        self.clock = Clock()
        self.network = Network(SEED, self.clock)
        self.random = random.Random(SEED)
        self.busy: list[str] = []
        self.free_at = START
        self.pending = False
        pool = [PrivateKey.generate("ed25519") for _ in range(POOL)]
        ring = KeyRing({device: pool[device % POOL].public_key for device in range(1000, 1000 + size)})
        common: dict[str, Any] = {"clock": self.clock, "entropy": self.random.randbytes}
        key = PrivateKey.generate("ed25519")
        transport = Client(self.network, "server", self.busy)
        self.server = Server(SERVER, key, devices=ring, broker=transport, **common)
        self.devices: dict[str, Device] = {}
        fetcher = MemoryFetcher({})
        for device in ring:
            link = Client(self.network, f"{device:x}", self.busy)
            self.network.add(device, link._session, transport._session)
            self.devices[f"{device:x}"] = Device(
                device,
                pool[device % POOL],
                server=SERVER,
                server_key=key.public_key,
                broker=link,
                firmware=Path("unused"),
                fetcher=fetcher,
                **common,
            )

    def run(self, arrivals: list[tuple[float, Callable[[], None]]], end: float = NEVER) -> None:
        """Let time pass until ``end``, or until nothing happens any more; ``arrivals`` come in order of time."""
        place = 0
        while True:
            arrival = arrivals[place][0] if place < len(arrivals) else NEVER
            due = self.network.next_due() or NEVER
            serve = max(self.free_at, self.clock.now) if self.pending else NEVER
            now = min(arrival, due, serve)
            if now == NEVER or now > end:
                return
            self.clock.now = max(self.clock.now, now)
            if now == serve:
                self.pending = False
                self.free_at = self.clock.work(self.server.step)
            elif now == arrival:
                arrivals[place][1]()
                place += 1
            else:
                self.network.advance(max(now, self.network._now))
            while self.busy:
                name = self.busy.pop()
                if name == "server":
                    self.pending = True
                else:
                    self.devices[name].step()

    def join(self) -> float:
        """Let all devices join at once and return after how many seconds the last one is in."""
        self.server.start(threads=False)
        began = self.clock.now
        for device in self.devices.values():
            device.start(threads=False)
            device.step()
        self.run([], began + 600.0)
        if len(self.server.members) != len(self.devices):
            raise RuntimeError(f"{len(self.server.members)} of {len(self.devices)} devices have joined")
        return self.free_at - began

    def offer(self, rate: float, seconds: float) -> dict[str, Any]:
        """Let devices send values at random times, ``rate`` per second; return what became of them."""
        delays: list[float] = []
        finished: list[float] = []
        sent_at: dict[int, float] = {}

        @self.server.on_data("number", "uint64")
        def received(device: int, data_id: str, value: int) -> None:
            finished.append(self.clock())
            delays.append(finished[-1] - sent_at.pop(value))

        began = at = self.clock.now = max(self.clock.now, self.free_at)
        arrivals = []
        names = list(self.devices)
        number = 0
        while (at := at + self.random.expovariate(rate)) < began + seconds:
            arrivals.append((at, self._sender(self.random.choice(names), number, sent_at)))
            number += 1
        cpu = [0.0, 0]
        step = self.server.step

        def timed() -> None:
            before, was = time.process_time(), len(finished)
            step()
            cpu[0] += time.process_time() - before
            cpu[1] += len(finished) - was

        self.server.step = timed  # type: ignore[method-assign]
        self.run(arrivals)
        self.server.step = step  # type: ignore[method-assign]
        delays.sort()
        opens = began + sum(WAY) / 2
        return {
            "offered": number / seconds,
            "served": sum(opens <= at < opens + seconds for at in finished) / seconds,
            "p50": delays[len(delays) // 2],
            "p99": delays[int(len(delays) * 0.99)],
            "lost": len(sent_at),
            "cpu": cpu[0] / max(1, cpu[1]),
        }

    def _sender(self, name: str, number: int, sent_at: dict[int, float]) -> Callable[[], None]:
        def send() -> None:
            sent_at[number] = self.clock.now
            device = self.devices[name]
            device.send("number", number, "uint64")
            device.step()

        return send


def measure(size: int, rates: list[float], seconds: float) -> dict[str, Any]:
    """Build a fleet, let it join, and offer values at each rate."""
    logging.getLogger("srup").setLevel(logging.ERROR)
    gc.collect()
    before = memory()
    fleet = Fleet(size)
    built = memory()
    cpu = time.process_time()
    joined = fleet.join()
    cpu = time.process_time() - cpu
    fleet.network.log.clear()
    gc.collect()
    after = memory()
    gc.disable()  # whose passes over all agents would be charged to the server
    steps = [fleet.offer(rate, seconds) for rate in rates]
    gc.collect()
    return {
        "joined": joined,
        "cpu": cpu,
        "built": (built - before) / size,
        "memory": (after - before) / size,
        "end": (memory() - before) / size,
        "steps": steps,
        "counts": dict(fleet.server.counts),
    }


def run(short: bool) -> Report:
    """Measure."""
    size, seconds = (500, 0.5) if short else (5000, 2.0)
    rates = [500.0, 4000.0] if short else [1000.0, 2000.0, 4000.0, 6000.0, 8000.0, 10_000.0, 14_000.0]
    report = Report(
        "fleet",
        "how much of what a fleet offers does one server process serve, and when?",
        seed=SEED,
        devices=size,
        scheme=f"ed25519, {POOL} different keys",
        network=f"MemoryNetwork, {WAY[0] * 1e3:.0f} to {WAY[1] * 1e3:.0f} ms each way",
        load=f"values at random times, {seconds} simulated seconds per rate",
    )
    found = apart(measure, size, rates, seconds)
    rows = [
        [round(s["offered"]), round(s["served"]), s["p50"] * 1e3, s["p99"] * 1e3, s["cpu"] * 1e6, s["lost"]]
        for s in found["steps"]
    ]
    columns = ["offered/s", "served/s", "p50, ms", "p99, ms", "server CPU µs each", "lost"]
    report.table("values from devices to the server's handler", columns, rows)
    report.table(
        "the fleet",
        ["what", "value", "unit"],
        [
            ["all join at once: the last is in after", found["joined"], "s, simulated"],
            ["joins served", size / found["joined"], "per second, simulated"],
            ["memory per device, before it joins", found["built"] / 1024, "KiB, device and server together"],
            ["memory per device, joined", found["memory"] / 1024, "KiB, device and server together"],
            ["memory per device, at the end", found["end"] / 1024, "KiB, device and server together"],
        ],
    )
    highest = max(found["steps"], key=lambda step: step["served"])
    report.ratio("served / offered, at the lowest rate", found["steps"][0]["served"] / found["steps"][0]["offered"])
    report.ratio("served / offered, at the highest rate", found["steps"][-1]["served"] / found["steps"][-1]["offered"])
    report.note(f"most served: {highest['served']:,.0f}/s; what the server counted: {found['counts']}")
    return report


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
