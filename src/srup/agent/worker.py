"""Many workers for one server: each serves the partitions of devices that it holds a lease of (srup.store.lease).

A partition has a server object, a store and an MQTT session of its own; they move together. In one process all its
servers share three threads: the reactor's, one that takes their turns and makes them durable in one round trip, and one
for the handlers of the application. A fourth looks after the leases, a fifth waits for orders from outside. So a
partition is served in order by one worker at a time, and a worker that has lost a lease can do nothing more under it:
what it knows is thrown away, what it writes is refused, and the broker's session is another's.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, Final, Self

from ..errors import LeaseLostError, PolicyError, StoreError, TransportError
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..records import Changes
from ..store.keyspace import Keyspace
from ..store.lease import Lease, Leases, RedisArbiter
from ..store.mailbox import Mailbox
from ..store.partition import partition_of
from ..store.redis import RedisStore, commit_many
from ..transport.base import Transport
from ..transport.mqtt import MqttTransport
from ..transport.reactor import Reactor
from ..transport.topics import join_topic
from .base import _IDLE, _TURN, check_identity, check_type, terminable
from .ordered import OrderedServer
from .server import Server

__all__ = ["PartitionServer", "Worker"]

log: Final = logging.getLogger("srup.agent")

_RETRY: Final = 0.2  # seconds until a turn that the store refused is tried again
_LOOK: Final = 1.0  # seconds until a partition that is new here has its orders read, at most
_AHEAD: Final = 1024  # orders of a partition that are read and not carried out yet, at most, give or take a page


class _Bell(queue.SimpleQueue[Any]):
    """An inbox that says when something comes in."""

    ring: Callable[[], object]

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        self.ring()


class PartitionServer(OrderedServer):
    """The server of one partition: it hears the joins of its own devices only, and its worker takes its turns."""

    lease: Lease
    rung = False  # waits for its turn
    read = b"0"  # up to which place its mailbox was read
    _worker: "Worker"

    def _subscribe(self) -> None:
        for device in self.devices:
            self._transport.subscribe(join_topic(self.identity, device))

    def register(self, device: int, key: PublicKey) -> None:
        """Register the key of a device of this partition, and hear it from now on."""
        self.devices.add(device, key)
        self._transport.subscribe(join_topic(self.identity, device))

    def _dismiss(self) -> None:
        """The threads are the worker's."""

    def _audit_share(self) -> float:
        return super()._audit_share() / max(1, len(self._worker.servers))

    def _may_call(self) -> bool:
        # The thread of the turns may not have seen yet that the lease is over: the process was stopped, perhaps.
        return super()._may_call() and self.lease.valid()

    def _give_up(self, error: LeaseLostError) -> None:
        partition = self.lease.partition
        text = "%r, partition %d, stops: %a"
        self._log(logging.ERROR, text, partition, str(error), partition=partition, error=error)
        self.counts["leases lost"] += 1
        self.store_error = str(error)
        self._stopping.set()
        self._worker._forget(self)


class Worker:
    """Serves a share of the devices of server ``identity``; any number of workers, on any machines, serve the rest.

    ``store`` is the URL of a Redis that was set up for this server (``RedisStore.create``, ``srup store create``), or a
    client. ``devices`` holds the keys of all devices, also those that other workers serve. ``broker`` is a URL, or is
    called with a client id and a :class:`~srup.transport.Reactor` for a transport. ``setup`` is called with the server
    of each partition that begins to be served here, and registers its handlers; they run on one thread, one at a time.
    ``options`` are more of :class:`Server`'s. ``ttl`` is how long a lease lasts in seconds: so long the devices of a
    worker that crashes wait at most, twice that if it only hangs. ``witness`` is a folder of this machine's own (see
    :class:`RedisStore`, for ``adopt`` too: workers that share a text adopt each partition once).

    ``servers`` has the servers by partition, ``trouble`` why something is not served now, by partition; under -1 stands
    what concerns all of it. StoreError if Redis does not answer or was not set up.
    """

    def __init__(
        self,
        identity: int,
        key: PrivateKey,
        *,
        devices: KeyRing,
        broker: str | Callable[[str, Reactor], Transport],
        store: Any,
        setup: Callable[[Server], object] = lambda server: None,
        ttl: float = 15.0,
        name: str | None = None,
        witness: str | os.PathLike[str] | None = None,
        adopt: bool | str = False,
        **options: Any,
    ) -> None:
        check_identity(identity)
        check_type(key, PrivateKey, "key")
        check_type(devices, KeyRing, "devices")
        if options.get("admission", "simple") == "observed":
            raise PolicyError("an observer and the device that it observes may be in different partitions")
        self.identity = identity
        self.servers: dict[int, PartitionServer] = {}
        self.trouble: dict[int, str] = {}
        self._key = key
        self._devices = devices
        self._broker = broker
        self._setup = setup
        self._witness, self._adopt = witness, adopt
        self._options = options
        self._leases = Leases(store, identity, worker=name, ttl=ttl)
        self._mailbox = Mailbox(Keyspace(store, identity, timeout=5.0))
        self._reactor = Reactor(f"srup-{identity:x}-network")
        self._ready: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._dues: dict[PartitionServer, float] = {}
        self._application = ThreadPoolExecutor(1, f"srup-{identity:x}-application")
        self._aside = ThreadPoolExecutor(1, f"srup-{identity:x}-aside")
        self._porters = ThreadPoolExecutor(4, f"srup-{identity:x}-partitions")  # open and close them
        self._leaving: dict[int, Future[None]] = {}
        self._given_up: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._hurry = threading.Event()  # the next look at the leases is due
        self._threads = [
            threading.Thread(target=self._take_turns, name=f"srup-{identity:x}-turns", daemon=True),
            threading.Thread(target=self._keep_leases, name=f"srup-{identity:x}-leases", daemon=True),
        ]
        self._reader = threading.Thread(target=self._read_orders, name=f"srup-{identity:x}-orders", daemon=True)

    @staticmethod
    def check(store: Any, identity: int) -> None:
        """Raise StoreError unless this Redis answers and was set up for this server."""
        RedisArbiter(keyspace := Keyspace(store, identity))
        keyspace.close()

    @property
    def name(self) -> str:
        """Under which name it holds its leases."""
        return self._leases.worker

    @property
    def partitions(self) -> int:
        """Into how many partitions the devices are split."""
        return self._leases.partitions

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases that are valid now."""
        return self._leases.held

    @property
    def alive(self) -> bool:
        """Whether its threads go on, as they must until it is told to stop."""
        return self._stopping.is_set() or all(thread.is_alive() for thread in self._threads if thread.ident is not None)

    def server_of(self, device: int) -> PartitionServer:
        """Return the server of a device's partition; PolicyError when another worker serves it now."""
        partition = partition_of(device, self.partitions)
        server = self.servers.get(partition)
        if server is None:
            raise PolicyError(f"{device:x} belongs to partition {partition}, which is not served by this worker now")
        return server

    def start(self) -> Self:
        """Begin to take partitions, in the background. A worker is started once."""
        if self._stopping.is_set() or self._threads[0].ident is not None:
            raise TransportError(f"{self!r} was started before; make a new one")
        for thread in [*self._threads, self._reader]:
            thread.start()
        return self

    def stop(self, timeout: float = 10.0) -> None:
        """End: finish what is under way, let running handlers end, and give the partitions to others at once."""
        if self._stopping.is_set():
            return
        deadline = time.monotonic() + timeout
        self._stopping.set()
        self._hurry.set()
        self._ready.put(lambda: None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        closing = [
            self._porters.submit(server.stop, max(0.1, deadline - time.monotonic()))
            for server in list(self.servers.values())
        ]
        wait(closing, max(0.0, deadline - time.monotonic()))
        for pool in (self._application, self._aside, self._porters):
            pool.shutdown(wait=False, cancel_futures=True)
        try:
            self._leases.close()
        except StoreError as error:
            log.warning("%r could not give its leases back, they end by themselves: %s", self, error)
        self._reactor.stop(max(0.0, deadline - time.monotonic()))
        self._stopped.set()

    def run(self) -> None:
        """Start, unless that was done, and stay until :meth:`stop` is called, Ctrl-C is pressed or SIGTERM arrives."""
        if self._threads[0].ident is None:
            self.start()
        try:
            with terminable():
                while not self._stopped.wait(1.0):
                    pass
        except KeyboardInterrupt:
            log.info("%r is interrupted", self)
        finally:
            self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The thread that takes the turns.

    def _take_turns(self) -> None:
        while not self._stopping.is_set():
            now = time.monotonic()
            patience = max(0.0, min(self._dues.values(), default=now + _IDLE) - now)
            try:
                job: Callable[[], object] | None = self._ready.get(True, min(patience, _IDLE))
            except queue.Empty:
                job = None
            turns: dict[PartitionServer, None] = {}
            while job is not None:
                if isinstance(job, _Ring):
                    turns[job.server] = None
                else:
                    job()
                job = None if self._ready.empty() else self._ready.get()
            now = time.monotonic()
            turns |= dict.fromkeys(server for server, due in self._dues.items() if due <= now)
            self._turn(list(turns))

    def _turn(self, servers: list[PartitionServer]) -> None:
        """Let servers take a turn each, and make all of it durable together."""
        gathered: list[PartitionServer] = []
        for server in servers:
            server.rung = False
            if server not in self._dues:
                continue  # it is served here no more
            if not server.lease.valid():
                server._give_up(LeaseLostError(f"the lease of partition {server.lease.partition} is over"))
                continue
            try:
                server._gather(_TURN)
            except Exception:  # the other partitions' turns must go on
                log.exception("%r, partition %d: a fault in its turn", server, server.lease.partition)
                self._begin_anew(server)
            else:
                gathered.append(server)
        work: list[tuple[RedisStore, Changes]] = []
        for server in gathered:
            if server._turn.changes:
                assert isinstance(server._store, RedisStore)  # noqa: S101 - this worker has made it
                work.append((server._store, server._turn.changes))
        began = time.perf_counter()
        with ExitStack() as stack:
            for server in gathered:
                if server._turn.changes.keys:
                    stack.enter_context(server._keys.lock)
            errors = iter(self._commit(work))
        took = time.perf_counter() - began
        for server in gathered:
            error = next(errors) if server._turn.changes else None
            if server._turn.changes and error is None:
                server._observe("commit", took)
            server._conclude(error)
            if server in self._dues:
                pause, due = _IDLE, server.deadline()
                if server.store_error is not None:
                    pause = _RETRY
                elif due is not None:
                    pause = due - server._clock()
                self._dues[server] = time.monotonic() + pause  # the other clock may be set meanwhile
                if not server._inbox.empty():
                    self._ring(server)

    @staticmethod
    def _commit(work: list[tuple[RedisStore, Changes]]) -> list[Exception | None]:
        try:
            return [*commit_many(work)] if work else []
        except Exception as error:  # noqa: BLE001 - whatever it is: without the store nothing may be accepted
            return [error] * len(work)

    def _ring(self, server: PartitionServer) -> None:
        if not server.rung:
            server.rung = True
            self._ready.put(_Ring(server))

    def _forget(self, server: PartitionServer) -> None:
        """Serve a partition no more, whose lease is over. On the thread of the turns."""
        self._dues.pop(server, None)
        if self.servers.get(server.lease.partition) is server:
            del self.servers[server.lease.partition]
        self._porters.submit(self._abandon, server)

    def _begin_anew(self, server: PartitionServer) -> None:
        """Give a partition up whose state may be half changed: whoever gets it goes on from what is durable."""
        server._stopping.set()
        self._dues.pop(server, None)
        self.servers.pop(server.lease.partition, None)
        self.trouble[server.lease.partition] = "a fault in its turn, see the log"
        self._porters.submit(self._close_faulty, server)

    def _close_faulty(self, server: PartitionServer) -> None:
        self._abandon(server)
        wait(server._jobs)  # never two at once: the lease is kept until the running handler has ended
        self._given_up.put(server.lease)
        self._hurry.set()

    @staticmethod
    def _abandon(server: PartitionServer) -> None:
        server._transport.stop(0.0)
        server._stopped.set()
        if server._store is not None:
            server.devices.release(server._save_keys)
            server._store.close()

    # The thread that reads what is ordered from outside (srup.agent.orders); stop() does not wait for it.

    def _read_orders(self) -> None:
        trouble = None
        while not self._stopping.is_set():
            # What a server does not get to, stays in its mailbox.
            servers = {key: server for key, server in dict(self.servers).items() if server.behind < _AHEAD}
            try:
                patience = _LOOK if len(servers) == len(self.servers) else _RETRY
                found = self._mailbox.read({key: server.read for key, server in servers.items()}, patience)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread must not end
                if str(error) != trouble and not self._stopping.is_set():
                    trouble = str(error)
                    log.error("%r cannot read what is ordered: %a", self, trouble)
                self._stopping.wait(_LOOK)
                continue
            trouble = None
            for partition, entry in found:
                servers[partition].read = entry.place
                servers[partition].take(entry)
        self._mailbox.close()

    # The thread that keeps the leases.

    def _keep_leases(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look_at_leases()
            except Exception:  # the thread must not end
                log.exception("%r: a fault with its leases", self)
            self._hurry.wait(self._leases.period)
            self._hurry.clear()

    def _look_at_leases(self) -> None:
        while not self._given_up.empty():
            self._leases.release(self._given_up.get())
        step = self._leases.step()
        if step.error is None:
            self.trouble.pop(-1, None)
        elif self.trouble.get(-1) != str(step.error):
            self.trouble[-1] = str(step.error)
            log.error("%r: %a", self, str(step.error))
        for lease in step.lost:
            self._ready.put(lambda lease=lease: self._lose(lease))  # type: ignore[misc]
        for lease in step.gained:
            self._porters.submit(self._open, lease)
        for lease in step.release:
            if lease.partition not in self._leaving:
                self._leaving[lease.partition] = Future()
                self._ready.put(lambda lease=lease: self._hand_over(lease))  # type: ignore[misc]

    def _lose(self, lease: Lease) -> None:
        server = self.servers.get(lease.partition)
        if server is not None and server.lease is lease:
            server._give_up(LeaseLostError(f"the lease of partition {lease.partition} is over"))

    def _open(self, lease: Lease) -> None:
        """Begin to serve a partition. On a thread of its own: there may be much to load."""
        partition = lease.partition
        try:
            server = self._server(lease)
            server.start(threads=False)
        except Exception as error:  # noqa: BLE001 - told below; another worker may have more luck
            if self.trouble.get(partition) != str(error):
                about = {"partition": partition, "error": type(error).__name__, "reason": str(error)}
                log.error("%r cannot serve partition %d: %a", self, partition, str(error), extra=about)
            self.trouble[partition] = str(error)
            self._given_up.put(lease)
            return
        self.trouble.pop(partition, None)
        self._ready.put(lambda: self._serve(server))

    def _server(self, lease: Lease) -> PartitionServer:
        partition = lease.partition
        keys = {device: key for device, key in self._devices.items() if self._partition(device) == partition}
        client_id = f"srup-{self.identity:x}-p{partition}"
        if isinstance(self._broker, str):
            transport: Transport = MqttTransport(self._broker, client_id, reactor=self._reactor)
        else:
            transport = self._broker(client_id, self._reactor)
        store = RedisStore(lease, witness=self._witness, adopt=self._adopt)
        server = PartitionServer(
            self.identity, self._key, devices=KeyRing(keys), broker=transport, store=store, **self._options
        )
        server.lease, server._worker = lease, self
        server.partition, server.partitions = partition, self.partitions
        server._inbox = bell = _Bell()
        bell.ring = lambda: self._ring(server)
        server._application, server._aside = self._application, self._aside
        self._setup(server)
        return server

    def _partition(self, device: int) -> int:
        return partition_of(device, self.partitions)

    def _serve(self, server: PartitionServer) -> None:
        if not server.lease.valid() or self._stopping.is_set():
            self._porters.submit(self._abandon, server)
            return
        self.servers[server.lease.partition] = server
        self._dues[server] = 0.0
        partition = server.lease.partition
        about = {"partition": partition}
        log.info("%r serves partition %d: %d devices", self, partition, len(server.devices), extra=about)

    def _hand_over(self, lease: Lease) -> None:
        """Give a partition to another worker, when nothing is under way any more."""
        server = self.servers.pop(lease.partition, None)
        if server is not None:
            del self._dues[server]
        self._porters.submit(self._close, lease, server)

    def _close(self, lease: Lease, server: PartitionServer | None) -> None:
        if server is not None:
            server.stop(self._leases.ttl)
            wait(server._jobs)  # never two at once: the lease is kept until the running handler has ended
        self._given_up.put(lease)
        self._leaving.pop(lease.partition, None)
        self._hurry.set()

    def __repr__(self) -> str:
        return f"<Worker {self.name} of {self.identity:x}>"


class _Ring:
    """A server wants a turn."""

    __slots__ = ("server",)

    def __init__(self, server: PartitionServer) -> None:
        self.server = server

    def __call__(self) -> None:
        """Nothing more to do."""
