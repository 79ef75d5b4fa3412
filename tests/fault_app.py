"""The application of the servers in the tests of faults: what its handlers are called for goes to a file, line by line.

The file outlives a SIGKILL of the process: a line is written in one go, before the handler returns. Run as a program it
is a server of one process whose clock jumps (``main``).
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import srup

LEDGER = "SRUP_FAULT_LEDGER"
"""The environment variable that names the folder of the ledger; a file in it for each process."""

URL = "https://firmware.example/image"
FIRMWARE = b"the firmware" * 100
DIGEST = hashlib.sha256(FIRMWARE).hexdigest()
ORDER_PERIOD = 0.5  # seconds between two values and an action for each member
HANDLING = 0.002  # seconds that a handler works: so that crashes happen inside of one, too
DAY = 86400.0


class Ledger:
    """Appends to this process' file of the ledger; :func:`read` is the other end."""

    def __init__(self):
        path = Path(os.environ[LEDGER]) / f"{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what, device, **more):
        line = {"what": what, "device": device, "at": time.monotonic(), "pid": os.getpid()} | more
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(folder):
    """All lines of a ledger, in the order in which they were written."""
    lines = []
    for path in Path(folder).glob("*.jsonl"):
        whole, _, _ = path.read_bytes().rpartition(b"\n")  # the last one may be in the making
        lines += [json.loads(line) for line in whole.splitlines()]
    return sorted(lines, key=lambda line: line["at"])


class Orders:
    """A thread that goes on ordering: a numbered value and an action for each device that is a member here."""

    def __init__(self, ledger):
        self._ledger = ledger
        self._servers = []
        self._number = 0
        threading.Thread(target=self._run, daemon=True).start()

    def of(self, server):
        self._servers.append(server)

    def _run(self):
        while True:
            time.sleep(ORDER_PERIOD)
            for server in list(self._servers):
                for device in server.members:
                    self._number += 1
                    self._order(server, device, f"{os.getpid()}-{self._number}")

    def _order(self, server, device, name):
        def confirmed(future):
            if (error := future.exception()) is None:
                self._ledger.write("order confirmed", device, name=name)
            elif isinstance(error, srup.TransportError) and server in self._servers:
                self._servers.remove(server)  # it is stopped: another one serves its devices

        def answered(future):
            if future.exception() is None:
                self._ledger.write("action answered", device, name=name, status=future.result().name)

        self._ledger.write("order", device, name=name)
        server.send_data(device, "order", name).add_done_callback(confirmed)
        server.action(device, 1).add_done_callback(answered)


_shared = []


def setup(server):
    """Register the handlers of a server, or of one of a worker's."""
    if not _shared:
        ledger = Ledger()
        _shared[:] = ledger, Orders(ledger)
    ledger, orders = _shared
    lease = getattr(server, "lease", None)
    epoch = None if lease is None else lease.epoch

    @server.on_data("n", "uint32")
    def number(device, data_id, value):
        told = {"number": value, "id": server.handling.id, "again": server.handling.again, "epoch": epoch}
        ledger.write("begin", device, **told)
        time.sleep(HANDLING)
        ledger.write("end", device, **told)

    @server.on_joined
    def joined(device):
        ledger.write("joined", device, id=server.handling.id, again=server.handling.again)
        ordered = any(order.device == device for order in server.orders)
        if not ordered and server.facts(device).get("firmware") != DIGEST:
            server.update(device, URL, DIGEST)

    @server.on_outcome
    def outcome(told):
        # A process before this one has asked for it; what it may have been told already does not count twice.
        if told.result is srup.Status.ACTION_SUCCESS and not server.handling.again:
            ledger.write("action answered", told.partner, name="", status=told.result.name)

    @server.on_refused
    def refused(refusal):
        with suppress(srup.SrupError):
            device = int(refusal.topic.rpartition("/")[2], 16)
            ledger.write("refused", device, error=type(refusal.error).__name__)

    orders.of(server)


class JumpingClock:
    """Unix time and a number of days: one more at each SIGUSR1, one less at each SIGUSR2."""

    def __init__(self):
        self.offset = 0.0
        signal.signal(signal.SIGUSR1, lambda *_: self._jump(DAY))
        signal.signal(signal.SIGUSR2, lambda *_: self._jump(-DAY))

    def _jump(self, seconds):
        self.offset += seconds

    def __call__(self):
        return time.time() + self.offset

    def monotonic(self):
        return time.monotonic()


def main(identity, key, devices, broker, store):
    """Run a server with a clock that jumps until SIGTERM."""
    server = srup.Server(
        int(identity, 16),
        srup.PrivateKey.load(key),
        devices=srup.KeyRing.load(devices),
        broker=broker,
        store=store,
        clock=JumpingClock(),
    )
    setup(server)
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
