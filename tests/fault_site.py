"""A site for the tests of faults: everything is a process or a connection that can be killed, stopped, cut or filled.

A broker, a Redis or an SQLite database, the ``srup server`` command with the application of ``fault_app``, devices that
send numbered values all the time, and an attacker who has recorded all traffic and never ceases to replay it. In the
end :meth:`Site.account` compares what was sent, accepted and executed.
"""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

import srup
from srup import Device, Policy
from srup.fetch import MemoryFetcher
from srup.store.partition import partition_of
from srup.transport import MqttTransport, Reactor

from . import fault_app, fleet
from .fleet import SERVER, key_of
from .programs import local_broker, need
from .redis_server import RedisServer

TESTS = Path(__file__).parent
PATIENCE = 150.0  # seconds until a test gives up on what must happen
DEVICES = range(0xD00, 0xD00 + int(os.environ.get("FAULT_DEVICES", "24")))
RATE = float(os.environ.get("FAULT_RATE", "120"))  # values per second, all devices together
PARTITIONS = 8
DEVICE_POLICY = Policy(first_retry=1.0, max_retry=4.0)
REPLAYS = 100  # per second


wait_until = partial(fleet.wait_until, patience=PATIENCE)


class Proxy:
    """A TCP proxy on a loopback port that passes everything on until it is told otherwise.

    ``stall`` keeps bytes back in both directions, ``cut`` ends all connections and refuses new ones, ``heal`` ends
    both; ``cut_after_request`` cuts a connection as soon as a request has gone through, before its answer comes back.
    """

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._biting = 0
        self.bitten = 0
        self._open = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self):
        self._flowing.clear()

    def cut(self):
        self._refusing = True
        for pair in list(self._open):
            self._end(pair)

    def heal(self):
        self._refusing = False
        self._flowing.set()

    def cut_after_request(self, times):
        """Do so with the next ``times`` requests."""
        self._biting = times

    def close(self):
        self._listener.close()
        self.heal()
        self.cut()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._refusing:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                pair = near, far
                self._open.add(pair)
                for source, sink in (pair, pair[::-1]):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pump, args=(pair, source, sink), daemon=True).start()

    def _pump(self, pair, source, sink):
        try:
            while chunk := source.recv(65536):
                self._flowing.wait()
                if sink is pair[0] and self._biting > 0:  # an answer
                    self._biting -= 1
                    self.bitten += 1
                    break
                sink.sendall(chunk)
        except OSError:
            pass
        self._end(pair)

    def _end(self, pair):
        self._open.discard(pair)
        for each in pair:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Attacker:
    """Hears all traffic on the broker and sends a sample of it again, for ever; the oldest and the newest included."""

    def __init__(self, url):
        self.recorded = []
        self.replayed = 0
        self._ended = threading.Event()
        self._random = random.Random(7)
        self._transport = MqttTransport(url, "attacker", max_pause=1.0)
        self._transport.subscribe("SRUP/#")
        self._transport.start(self._heard, lambda connected, why: None)
        self._thread = threading.Thread(target=self._replay, daemon=True)
        self._thread.start()

    def _heard(self, delivery):
        self.recorded.append((delivery.topic, delivery.payload))
        delivery.ack()

    def _replay(self):
        while not self._ended.wait(1 / REPLAYS):
            if self.recorded:
                recent = self.recorded[-200:]
                topic, wire = self._random.choice(recent if self.replayed % 2 else self.recorded)
                with suppress(srup.TransportError):  # its queue is full while the broker is away
                    self._transport.publish(topic, wire)
                    self.replayed += 1

    def stop(self):
        self._ended.set()
        self._thread.join()
        self._transport.stop(0.5)


@dataclass
class Account:
    """What became of the values, in numbers.

    ``again``: a handler was called once more because the fault came before its end was durable, and was told so.
    ``repeated``: executed before an old state was adopted, which does not know it, and not confirmed by then. ``gone``:
    confirmed and not executed before that.
    """

    sent: int
    accepted: int
    executed: int
    again: int
    orders: int
    actions: int
    replayed: int
    refused: int
    repeated: int
    gone: int


class Fleet:
    """Devices with databases of their own that send numbered values at a steady rate, together ``RATE`` a second."""

    def __init__(self, url, folder, devices=DEVICES):
        self.reactor = Reactor("fault-devices")
        self.confirmed = defaultdict(dict)  # when, by device and number
        self.failed = []
        self.orders = defaultdict(list)  # what the server's values told a device, in order
        self.actions = defaultdict(list)
        self.activated = Counter()
        self._futures = {}
        self._next = dict.fromkeys(devices, 0)
        self._sending = threading.Event()
        self._ended = threading.Event()
        self._url, self._folder = url, folder
        self.devices = {identity: self._device(identity) for identity in devices}
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()

    def _device(self, identity):
        device = Device(
            identity,
            key_of(identity),
            server=SERVER,
            server_key=key_of(SERVER).public_key,
            broker=MqttTransport(self._url, f"srup-{identity:x}", reactor=self.reactor, max_pause=1.0),
            firmware=self._folder / f"{identity:x}",
            fetcher=MemoryFetcher({fault_app.URL: fault_app.FIRMWARE}),
            store=self._folder / f"{identity:x}.db",
            policy=DEVICE_POLICY,
        )
        device.on_data("order", "text")(lambda server, name, value: self.orders[identity].append(value))
        device.on_action(1)(lambda server: self.actions[identity].append(device.handling.id))
        device.on_activate(lambda path: self.activated.update([identity]))
        return device

    def start(self):
        for device in self.devices.values():
            device.start()
        wait_until(lambda: all(device.joined for device in self.devices.values()), "all devices have joined")
        return self

    def go(self):
        self._sending.set()

    def rest(self):
        """Send nothing new from now on."""
        self._sending.clear()

    @property
    def under_way(self):
        """How many values are sent and not confirmed."""
        return len(self._futures)

    @property
    def count(self):
        return sum(len(numbers) for numbers in self.confirmed.values())

    def refused(self, error):
        """How many messages the devices have refused with this error."""
        return sum(device.counts[error] for device in self.devices.values())

    def _load(self):
        order = list(self.devices)
        due = time.monotonic()
        at = 0
        while not self._ended.is_set():
            if not self._sending.wait(0.1):
                due = time.monotonic()
                continue
            due = max(due + 1 / RATE, time.monotonic() - 1.0)
            self._ended.wait(max(0.0, due - time.monotonic()))
            if self._sending.is_set() and len(self._futures) < 5000:
                self._send(order[at % len(order)])
                at += 1

    def _send(self, identity):
        number = self._next[identity]
        self._next[identity] += 1
        future = self.devices[identity].send("n", number, "uint32", lifetime=3600.0)
        self._futures[identity, number] = future

        def ended(future):
            if future.exception() is None:
                self.confirmed[identity][number] = time.monotonic()
            else:
                self.failed.append((identity, number, future.exception()))
            del self._futures[identity, number]

        future.add_done_callback(ended)

    def stop(self):
        self._ended.set()
        self._thread.join()
        for device in self.devices.values():
            device.stop(0.2)
        self.reactor.stop(1.0)


class Command:
    """The server as a process of its own, and those that it has started."""

    def __init__(self, arguments, folder, environment=None):
        self._arguments = arguments
        self._folder = folder
        self._environment = os.environ | {
            fault_app.LEDGER: str(folder / "ledger"),
            "PYTHONPATH": os.pathsep.join([str(Path(srup.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            "COLUMNS": "500",
        }
        self._environment |= environment or {}
        self.process = None

    @property
    def log(self):
        return (self._folder / "server.log").read_text(errors="replace")

    def start(self, *more):
        with (self._folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, *self._arguments, *more],
                cwd=TESTS,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return self

    @property
    def workers(self):
        """The process ids of its worker processes."""
        with suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.process.pid).children()]
        return []

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """In order; return its exit status."""
        if self.process is None:
            return None
        for pid in self.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(40.0)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Site:
    """All of it. Made by :func:`sqlite_site` and :func:`redis_site`; :meth:`begin` sets it going."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "ledger").mkdir(parents=True)
        (folder / "keys").mkdir()
        (folder / "devices").mkdir()
        key_of(SERVER).save(folder / "server.pem")
        for device in DEVICES:
            key_of(device).public_key.save(folder / "keys" / f"{device:x}.pem")
        memory = Path("/dev/shm")  # so that the devices' disks are not what is measured
        self._devices = tempfile.TemporaryDirectory(prefix="srup-faults-", dir=memory if memory.is_dir() else None)
        self.broker = local_broker("mosquitto").start()
        self.proxy = None  # between the server and the broker, or Redis
        self.redis = None
        self.fleet = None
        self.attacker = None
        self.command = None
        self.notes = {}
        self._heard = 0

    # Parts.

    def serve(self, store, *more, broker=None, **environment):
        """Set up the ``srup server`` command."""
        self.command = Command(
            [
                *(
                    "-m",
                    "srup",
                    "--verbose",
                    "server",
                    "--identity",
                    f"{SERVER:x}",
                    "--key",
                    str(self.folder / "server.pem"),
                ),
                *("--devices", str(self.folder / "keys"), "--broker", broker or self.broker.url),
                *("--store", str(store), "--app", "fault_app:setup", *more),
            ],
            self.folder,
            environment,
        )

    def begin(self):
        """Start the server, the devices and the load; return when all of it runs."""
        self.command.start()
        self.fleet = Fleet(self.broker.url, Path(self._devices.name)).start()
        self.attacker = Attacker(self.broker.url)
        self.fleet.go()
        self.progress()
        return self

    def progress(self, values=None):
        """Wait until so many more values were confirmed: the site is well."""
        wanted = self.fleet.count + (3 * len(DEVICES) if values is None else values)
        wait_until(lambda: self.fleet.count >= wanted, f"{wanted} values are confirmed; server.log: {self.tail()}")

    def tail(self):
        return self.command.log[-2000:]

    def says(self, text, again=False):
        """Wait until the server has said something since the last call; ``again``: that one may come back to."""
        wait_until(lambda: text in self.command.log[self._heard :], f"the server says {text!r}: {self.tail()}")
        if not again:
            self._heard = len(self.command.log)

    def all_back(self, since):
        """Wait until a value of every device was executed after that time."""

        def back():
            return {line["device"]: line["at"] for line in reversed(self.lines("begin")) if line["at"] >= since}

        wait_until(lambda: len(back()) == len(DEVICES), f"all devices are back; {len(back())} are")
        self.notes["all devices back after s"] = round(max(back().values()) - since, 1)

    def refused(self, error):
        """How many messages the servers have refused with this error."""
        return sum(line["error"] == error for line in self.lines("refused"))

    def updated(self):
        """Wait until all devices run the firmware."""
        activated = self.fleet.activated
        wait_until(lambda: len(activated) == len(self.fleet.devices), f"all are updated; {len(activated)} are")

    def settled(self):
        """Wait until no more receipts come in: those that were on their way are there."""
        before = None
        while before != (before := self.fleet.count):
            time.sleep(1.2)  # longer than the pause between two receipts

    def lines(self, *what):
        return [line for line in fault_app.read(self.folder / "ledger") if not what or line["what"] in what]

    def close(self):
        with ExitStack() as stack:
            stack.callback(self._devices.cleanup)
            stack.callback(self.broker.stop)
            if self.redis is not None:
                stack.callback(self.redis.stop)
            if self.proxy is not None:
                stack.callback(self.proxy.close)
            if self.command is not None:
                stack.callback(self.command.stop)
            if self.fleet is not None:
                stack.callback(self.fleet.stop)
            if self.attacker is not None:
                stack.callback(self.attacker.stop)

    # Workers.

    def holders(self):
        """Which partitions each worker process holds, by its process id, as Redis says."""
        held = defaultdict(set)
        for partition in range(PARTITIONS):
            if token := self.redis.client.get(f"{{srup:{SERVER:x}:{partition}}}:lease"):
                held[int(token.decode().rsplit("-", 2)[1])].add(partition)
        return held

    def take_over(self, number):
        """Send a worker a signal; wait until a value of each of its partitions was executed by another one."""
        holders = self.holders()
        pid = random.choice(sorted(holders))
        wanted = holders[pid]
        at = time.monotonic()
        os.kill(pid, number)

        def first():
            times = {}
            for line in self.lines("begin"):
                if line["at"] > at and line["pid"] != pid:
                    times.setdefault(partition_of(line["device"], PARTITIONS), line["at"] - at)
            return {partition: took for partition, took in times.items() if partition in wanted}

        wait_until(
            lambda: first().keys() == wanted, f"the partitions {wanted} are taken over; server.log: {self.tail()}"
        )
        took = max(first().values()) / self.lease
        self.notes.setdefault("take-over in leases", []).append(round(took, 2))
        return pid

    # The account.

    def drain(self, adopted=None):
        """Send nothing new, wait until everything is confirmed, and a while of replays longer."""
        self.fleet.rest()
        wait_until(
            lambda: not self.fleet.under_way,
            f"everything is confirmed, {self.fleet.under_way} are not; server.log: {self.tail()}",
        )
        orders = {device: len(names) for device, names in self.fleet.orders.items()}
        wait_until(
            lambda: all(len(names) > orders.get(device, 0) for device, names in self.fleet.orders.items()),
            "every device takes new orders",
        )
        replayed = self.attacker.replayed
        wait_until(lambda: self.attacker.replayed >= replayed + 2 * REPLAYS, "the attacker goes on")
        self.updated()
        wait_until(
            lambda: self.unexecuted() == self.unexecuted(before=adopted), f"all is executed: {len(self.unexecuted())}"
        )

    def unexecuted(self, before=float("inf")):
        """What was confirmed ``before`` that time, None for never, and is not executed."""
        done = {(line["device"], line["number"]) for line in self.lines("end")}
        at = float("-inf") if before is None else before
        confirmed = self.fleet.confirmed.items()
        return {(device, number) for device, all_ in confirmed for number, when in all_.items() if when < at} - done

    def audit(self):
        """What the stores say was accepted; the server is stopped."""
        if self.redis is None:
            store = srup.SqliteStore(self.store, create=False)
            store.open(SERVER)
            with contextlib.closing(store):
                return list(store.audit())
        from srup.store import RedisStore
        from srup.store.lease import Leases

        leases = Leases(self.redis.url, SERVER, ttl=30.0)
        held = []
        wait_until(lambda: len(held) == PARTITIONS or held.extend(leases.step().gained), "all leases are to be had")
        rows = []
        for lease in held:
            store = RedisStore(lease)
            store.open(SERVER)
            rows += store.audit()
        leases.close()
        return rows

    def check_fences(self):
        """Under a lease that is over nothing is begun, but for the one handler that was being called at its end."""
        newest = {}
        late = Counter()
        for line in self.lines("begin"):
            partition = partition_of(line["device"], PARTITIONS)
            if line["epoch"] < newest.get(partition, 0):
                late[line["pid"]] += 1
            newest[partition] = max(newest.get(partition, 0), line["epoch"])
        assert max(late.values(), default=0) <= 1, f"executed under lost leases: {late}"

    def account(self, adopted=None):
        """Stop everything; check what must hold whatever happened, and return the figures.

        When an old state was ``adopted`` (monotonic time), what the newer one had confirmed and not executed is gone
        with it; and what it had executed and not confirmed comes again.
        """
        self.drain(adopted)
        fleet = self.fleet
        self.attacker.stop()
        assert self.command.stop() in (0, 143), self.tail()
        fleet.stop()
        audit = self.audit()
        assert not fleet.failed, fleet.failed[:3]
        if self.redis is not None:
            self.check_fences()
        sent = {(device, number) for device, numbers in fleet.confirmed.items() for number in numbers}
        begun = defaultdict(list)
        for line in self.lines("begin"):
            begun[line["device"], line["number"]].append(line)
        gone = self.unexecuted(before=adopted)
        lost = sent - begun.keys() - gone
        assert not lost, f"{len(lost)} of {len(sent)} values are lost: {sorted(lost)[:10]}"
        repeated = 0
        for (device, number), calls in begun.items():
            late = [call for call in calls if adopted is not None and call["at"] >= adopted]
            if late and late[0]["id"] != calls[0]["id"]:
                assert fleet.confirmed[device][number] >= adopted, f"confirmed, and executed again: {calls}"
                begun[device, number] = late
                repeated += 1
        twice = [calls for calls in begun.values() if sum(not call["again"] for call in calls) > 1]
        assert not twice, f"executed twice: {twice[:3]}"
        for calls in begun.values():
            assert len({call["id"] for call in calls}) == 1, f"accepted twice: {calls}"
        order = defaultdict(list)
        for (device, number), calls in begun.items():
            order[device].append((calls[0]["at"], number))
        for device, calls in order.items():
            numbers = [number for _, number in sorted(calls)]
            wrong = [pair for pair in itertools.pairwise(numbers) if pair[0] > pair[1]]
            assert not wrong, f"{device:x}: out of order: {wrong[:5]}, {len(wrong)} times"

        accepted = Counter((row.partner, row.sequence_id) for row in audit if row.type and not row.sent)
        assert max(accepted.values()) == 1, f"replays were accepted: {accepted.most_common(3)}"
        # What the servers have ordered.
        for device, names in fleet.orders.items():
            last = {}
            for name in names:
                pid, _, number = name.partition("-")
                assert int(number) > last.get(pid, 0), f"{device:x}: orders are out of order: {names}"
                last[pid] = int(number)
        for device in fleet.devices:
            assert len(fleet.actions[device]) == len(set(fleet.actions[device])), f"{device:x} did an action twice"
            assert len(fleet.orders[device]) == len(set(fleet.orders[device])), f"{device:x} took an order twice"
        done = {(device, name) for device, names in fleet.orders.items() for name in names}
        confirmed = {(line["device"], line["name"]) for line in self.lines("order confirmed")}
        assert confirmed <= done, f"orders are lost: {sorted(confirmed - done)[:5]}"
        answered = Counter(
            line["device"] for line in self.lines("action answered") if line["status"] == "ACTION_SUCCESS"
        )
        for device, count in answered.items():
            # An old state asks again, and is answered again.
            assert count <= len(fleet.actions[device]) or adopted, f"{device:x}: an action was answered and not done"
        assert fleet.activated == Counter(list(fleet.devices)), f"not updated once: {fleet.activated}"
        assert not any(device.counts["faults"] for device in fleet.devices.values())
        again = sum(len(calls) - 1 for calls in begun.values())
        refused = Counter(line["error"] for line in self.lines("refused"))
        figures = Account(
            sent=len(sent),
            accepted=len(accepted),
            executed=len(begun),
            again=again,
            orders=len(confirmed),
            actions=sum(answered.values()),
            replayed=self.attacker.replayed,
            refused=refused["ReplayError"],
            repeated=repeated,
            gone=len(gone),
        )
        assert refused["ReplayError"] > 0
        test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0]
        print(f"\n{test}:", ", ".join(f"{count} {name}" for name, count in asdict(figures).items()), self.notes or "")
        return figures


@contextmanager
def sqlite_site(folder, database=None, proxied=False, **environment):
    """A site whose server is one process with a database, which may be elsewhere than in ``folder``.

    ``proxied``: it reaches the broker through :attr:`Site.proxy`. ``environment`` are variables of the process.
    """
    site = Site(folder)
    with contextlib.closing(site):
        site.store = database or folder / "server.db"
        url = site.broker.url
        if proxied:
            site.proxy = Proxy(int(url.rpartition(":")[2]))
            url = f"mqtt://127.0.0.1:{site.proxy.port}"
        site.serve(site.store, broker=url, **environment)
        yield site


@contextmanager
def jumping_site(folder):
    """A site whose server has a clock that jumps (see ``fault_app.main``)."""
    site = Site(folder)
    with contextlib.closing(site):
        site.store = folder / "server.db"
        program = [str(TESTS / "fault_app.py"), f"{SERVER:x}", str(folder / "server.pem"), str(folder / "keys")]
        site.command = Command([*program, site.broker.url, str(site.store)], folder)
        yield site


@contextmanager
def small_disk(folder, size="6m"):
    """Mount a small file system on ``folder``; only root may."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Write a file until the disk is full; return it."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return filler


_SLOW_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int slowly(const char *name, int fd)
{
    const char *count = getenv("SLOW_DISK_COUNT");
    int file = open(count, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file >= 0) {
        if (write(file, ".", 1) != 1) abort();
        close(file);
    }
    usleep(50000 + random() % 150000);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd) { return slowly("fsync", fd); }
int fdatasync(int fd) { return slowly("fdatasync", fd); }
"""


def slow_disk(folder):
    """Environment variables that make each fsync of a process take 50 to 200 ms; it counts them in a file."""
    compiler = need("cc")
    source, library = folder / "slow_disk.c", folder / "slow_disk.so"
    source.write_text(_SLOW_DISK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SLOW_DISK_COUNT": str(folder / "slow_disk.count")}


@contextmanager
def redis_site(folder, *more, workers=2, lease=2.0, proxied=False):
    """A site of several workers that share a Redis; ``proxied``: they reach it through :attr:`Site.proxy`.

    ``more`` are options of the command.
    """
    from srup.store import RedisStore

    site = Site(folder)
    with contextlib.closing(site):
        (folder / "redis").mkdir()
        site.redis = RedisServer(folder / "redis").start()
        RedisStore.create(site.redis.url, SERVER, PARTITIONS)
        url = site.redis.url
        if proxied:
            site.proxy = Proxy(site.redis.port)
            url = f"redis://127.0.0.1:{site.proxy.port}/0"
        site.lease = lease
        site.serve(url, "--workers", str(workers), "--lease", str(lease), *more)
        yield site
