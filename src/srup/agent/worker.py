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
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, Final, NamedTuple, Self

from ..errors import LeaseLostError, PolicyError, StoreError, TransportError
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..logs import shown
from ..store.keyspace import Keyspace
from ..store.lease import Lease, Leases, RedisArbiter
from ..store.partition import partition_of
from ..store.redis import RedisStore, commit_many
from ..store.redismail import RedisMailbox
from ..transport.base import Transport
from ..transport.mqtt import MqttTransport
from ..transport.reactor import Reactor
from .arguments import check_identity, check_type
from .clientid import client_id
from .engine import IDLE, TURN, Engine
from .host import Host
from .listing import KeyChanges
from .mailreader import AHEAD
from .members import Members
from .ordered import MailOrders
from .server import Server
from .threads import stay, terminable
from .transaction import Transaction

__all__ = ["PartitionServer", "Worker"]

log: Final = logging.getLogger("srup.agent")

_RETRY: Final = 0.2  # seconds until a turn that the store refused is tried again
_LOOK: Final = 1.0  # seconds until a partition that is new here has its orders read, at most


class PartitionServer(Server):
    """The server of one partition: it hears the joins of its own devices only, and its worker takes its turns."""

    lease: Lease
    listing: "_Listing | None" = None  # the list of keys that it has been given last

    @property
    def mail(self) -> MailOrders:
        """What carries out what stands in its mailbox, which the worker reads."""
        return self.engine.part(MailOrders)

    def register(self, device: int, key: PublicKey) -> None:
        """Register the key of a device of this partition, and hear it from now on."""
        self.devices.add(device, key)
        self.engine.part(Members).hear(device)


class _Tenancy(Host):
    """A partition's engine among others in a worker, which drives it so long as it holds the lease."""

    def __init__(self, worker: "Worker", server: PartitionServer, lease: Lease) -> None:
        self.partition = lease.partition
        self._worker = worker
        self._server = server
        self._lease = lease

    def may_call(self) -> bool:
        """See :meth:`Host.may_call`."""
        # The thread of the turns may not have seen yet that the lease is over: the process was stopped, perhaps.
        return self._lease.valid()

    def audit_share(self) -> float:
        """See :meth:`Host.audit_share`."""
        return super().audit_share() / max(1, len(self._worker.servers))

    def lease_lost(self, engine: Engine, error: LeaseLostError) -> None:
        """See :meth:`Host.lease_lost`."""
        text = "%s, partition %d, stops: %a"
        engine.journal.log(logging.ERROR, text, self.partition, str(error), partition=self.partition, error=error)
        engine.stopping.set()
        self._worker.forget(self._server)


class Worker:
    """Serves a share of the devices of server ``identity``; any number of workers, on any machines, serve the rest.

    ``store`` is the URL of a Redis that was set up for this server (``RedisStore.create``, ``srup store create``), or a
    client. ``devices`` holds the keys of all devices, also those that other workers serve. ``broker`` is a URL, or is
    called with a client id and a :class:`~srup.transport.Reactor` for a transport. ``setup`` is called with the server
    of each partition that begins to be served here, one at a time, and registers its handlers; these run on one thread.
    ``options`` are more of :class:`Server`'s. ``ttl`` is how long a lease lasts in seconds: so long the devices of a
    worker that crashes wait at most, twice that if it only hangs. ``witness`` is a folder of this machine's own (see
    :class:`RedisStore`, for ``adopt`` too: workers that share a text adopt each partition once).

    ``servers`` has the servers by partition, ``trouble`` why something is not served now, by partition; under -1 stands
    what concerns all of it. StoreError if Redis does not answer, was not set up, or would lose what it has confirmed.
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
        self._devices: Mapping[int, PublicKey] = devices  # which may be added to
        self._listing: _Listing | None = None
        self._broker = broker
        self._setup = setup
        self._witness, self._adopt = witness, adopt
        self._options = options
        self.check(store, identity)
        self._leases = Leases(store, identity, worker=name, ttl=ttl)
        self._mailbox = RedisMailbox(Keyspace(store, identity, timeout=5.0))
        self._reactor = Reactor(f"srup-{identity:x}-network")
        self._wakes: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._dues: dict[PartitionServer, float] = {}
        self._scheduled: set[PartitionServer] = set()  # those that wait for their turn
        self._application = ThreadPoolExecutor(1, f"srup-{identity:x}-application")
        self._aside = ThreadPoolExecutor(1, f"srup-{identity:x}-aside")
        self._partition_pool = ThreadPoolExecutor(4, f"srup-{identity:x}-partitions")  # open and close them
        self._setting_up = threading.Lock()  # an application may share between its servers what it makes at the first
        self._leaving: dict[int, Future[None]] = {}
        self._given_up: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._process: int | None = None  # in which it was started
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._leases_due = threading.Event()  # the next look at the leases is due
        self._threads = [
            threading.Thread(target=self._take_turns, name=f"srup-{identity:x}-turns", daemon=True),
            threading.Thread(target=self._keep_leases, name=f"srup-{identity:x}-leases", daemon=True),
        ]
        self._reader = threading.Thread(target=self._read_orders, name=f"srup-{identity:x}-orders", daemon=True)

    @staticmethod
    def check(store: Any, identity: int) -> None:
        """Raise StoreError unless this Redis answers, was set up for this server, and keeps what it has confirmed."""
        keyspace = Keyspace(store, identity)
        try:
            RedisArbiter(keyspace)
            keyspace.check_settings(keyspace.meta)
        finally:
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

    def reload_keys(
        self, listed: Mapping[int, PublicKey], changed: Callable[[KeyChanges], object] = lambda changes: None
    ) -> None:
        """Let the devices whose keys an operator lists be those of ``listed``, as :meth:`Server.reload_keys` does.

        It counts for the partitions that are served here, and for those that will be; all workers must get the same
        list. ``changed`` is called, on a thread of the worker's, with what has changed in a partition.
        """
        self._devices = dict(listed)
        self._listing = _Listing(self._devices, changed)
        for server in list(self.servers.values()):
            self._relist(server)

    def _relist(self, server: PartitionServer) -> None:
        """Give a server its share of the list, unless it has it."""
        listing = self._listing
        if listing is None or server.listing is listing:
            return
        server.listing = listing

        def told(done: "Future[KeyChanges]") -> None:
            if not done.cancelled() and done.exception() is None and any(done.result()):
                listing.changed(done.result())

        share = {device: key for device, key in listing.keys.items() if self._partition(device) == server.partition}
        server.reload_keys(share).add_done_callback(told)

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
        self._process = os.getpid()
        for thread in [*self._threads, self._reader]:
            thread.start()
        return self

    def stop(self, timeout: float = 10.0) -> None:
        """End: finish what is under way, let running handlers end, and give the partitions to others at once.

        In a process that was forked after the start it does nothing: the leases are its parent's.
        """
        if self._stopping.is_set() or self._process not in (None, os.getpid()):
            return
        deadline = time.monotonic() + timeout
        self._stopping.set()
        self._leases_due.set()
        self._wakes.put(lambda: None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        closing = [
            self._partition_pool.submit(server.stop, max(0.1, deadline - time.monotonic()))
            for server in list(self.servers.values())
        ]
        wait(closing, max(0.0, deadline - time.monotonic()))
        for pool in (self._application, self._aside, self._partition_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        try:
            self._leases.close()
        except StoreError as error:
            log.warning("%r could not give its leases back, they end by themselves: %s", self, error)
        self._reactor.stop(max(0.0, deadline - time.monotonic()))
        self._stopped.set()

    def run(self) -> None:
        """Start, unless that was done, and stay until :meth:`stop` is called, Ctrl-C is pressed or SIGTERM arrives.

        What happens meanwhile is shown on standard error if the application has not set up logging (srup.logs).
        """
        with shown(), terminable():
            try:
                if self._threads[0].ident is None:
                    self.start()
                stay(self._stopped.wait)
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
            patience = max(0.0, min(self._dues.values(), default=now + IDLE) - now)
            try:
                job: Callable[[], object] | None = self._wakes.get(True, min(patience, IDLE))
            except queue.Empty:
                job = None
            turns: dict[PartitionServer, None] = {}
            while job is not None:
                if isinstance(job, _TurnDue):
                    turns[job.server] = None
                else:
                    job()
                job = None if self._wakes.empty() else self._wakes.get()
            now = time.monotonic()
            turns |= dict.fromkeys(server for server, due in self._dues.items() if due <= now)
            self._turn(list(turns))

    def _turn(self, servers: list[PartitionServer]) -> None:
        """Let servers take a turn each, and make all of it durable together."""
        collected: list[tuple[PartitionServer, Transaction]] = []
        for server in servers:
            self._scheduled.discard(server)
            if server not in self._dues:
                continue  # it is served here no more
            if not server.lease.valid():
                self._lose(server.lease)
                continue
            try:
                transaction = server.engine.collect(TURN)
            except Exception:  # the other partitions' turns must go on
                log.exception("%r, partition %d: a fault in its turn", server, server.lease.partition)
                self._begin_anew(server)
            else:
                collected.append((server, transaction))
        for (server, transaction), error in zip(collected, self._commit(collected), strict=True):
            server.engine.finish(transaction, error)
            if server in self._dues:
                pause, due = IDLE, server.engine.due()
                if server.store_error is not None:
                    pause = _RETRY
                elif due is not None:
                    pause = due - server.engine.clock()
                self._dues[server] = time.monotonic() + pause  # the other clock may be set meanwhile
                if len(server.engine.inbox):
                    self._schedule(server)

    @staticmethod
    def _commit(collected: list[tuple[PartitionServer, Transaction]]) -> list[Exception | None]:
        """Make transactions durable together; return for each why it is not, None if it is."""
        changing = [(server, transaction) for server, transaction in collected if transaction.changes]
        began = time.perf_counter()
        errors: list[Exception | None] = []
        if changing:
            with ExitStack() as stack:
                for server, transaction in changing:
                    if transaction.changes.keys:
                        stack.enter_context(server.devices.lock)
                try:
                    errors = [*commit_many([(_store(server), transaction.changes) for server, transaction in changing])]
                except Exception as error:  # noqa: BLE001 - whatever it is: without the store nothing may be accepted
                    errors = [error] * len(changing)
        took = time.perf_counter() - began
        by_server = dict(zip((server for server, _ in changing), errors, strict=True))
        for server, failed in by_server.items():
            if failed is None:
                server.engine.measure("commit", took)
        return [by_server.get(server) for server, _ in collected]

    def _schedule(self, server: PartitionServer) -> None:
        """Have a server take a turn soon. On any thread."""
        if server not in self._scheduled:
            self._scheduled.add(server)
            self._wakes.put(_TurnDue(server))

    def forget(self, server: PartitionServer) -> None:
        """Serve a partition no more, whose lease is over. On the thread of the turns."""
        self._dues.pop(server, None)
        if self.servers.get(server.lease.partition) is server:
            del self.servers[server.lease.partition]
        self._partition_pool.submit(self._abandon, server)

    def _begin_anew(self, server: PartitionServer) -> None:
        """Give a partition up whose state may be half changed: whoever gets it goes on from what is durable."""
        server.engine.stopping.set()
        self._dues.pop(server, None)
        self.servers.pop(server.lease.partition, None)
        self.trouble[server.lease.partition] = "a fault in its turn, see the log"
        self._partition_pool.submit(self._close_faulty, server)

    def _close_faulty(self, server: PartitionServer) -> None:
        self._abandon(server)
        wait(server.engine.handlers.running())  # never two at once: the lease is kept until the handler has ended
        self._given_up.put(server.lease)
        self._leases_due.set()

    @staticmethod
    def _abandon(server: PartitionServer) -> None:
        server.engine.abandon()

    # The thread that reads what is ordered from outside (srup.agent.orders); stop() does not wait for it.

    def _read_orders(self) -> None:
        trouble = None
        while not self._stopping.is_set():
            servers = dict(self.servers)
            after = {partition: server.mail.position for partition, server in servers.items()}
            for partition, server in servers.items():
                if server.mail.behind >= AHEAD:  # what a server does not get to, stays in its mailbox
                    after[partition] = after[partition]._replace(orders=None)
            try:
                patience = _RETRY if any(position.orders is None for position in after.values()) else _LOOK
                found = self._mailbox.read(after, patience)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread must not end
                if str(error) != trouble and not self._stopping.is_set():
                    trouble = str(error)
                    log.error("%r cannot read what is ordered: %a", self, trouble)
                self._stopping.wait(_LOOK)
                continue
            trouble = None
            for partition, entry in found:
                servers[partition].mail.take(entry)
        self._mailbox.close()

    # The thread that keeps the leases.

    def _keep_leases(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look_at_leases()
            except Exception:  # the thread must not end
                log.exception("%r: a fault with its leases", self)
            self._leases_due.wait(self._leases.period)
            self._leases_due.clear()

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
            self._wakes.put(lambda lease=lease: self._lose(lease))  # type: ignore[misc]
        for lease in step.gained:
            self._partition_pool.submit(self._open, lease)
        for lease in step.release:
            if lease.partition not in self._leaving:
                self._leaving[lease.partition] = Future()
                self._wakes.put(lambda lease=lease: self._hand_over(lease))  # type: ignore[misc]

    def _lose(self, lease: Lease) -> None:
        server = self.servers.get(lease.partition)
        if server is not None and server.lease is lease:
            server.engine.lose_lease(LeaseLostError(f"the lease of partition {lease.partition} is over"))

    def _open(self, lease: Lease) -> None:
        """Begin to serve a partition. On a thread of its own: there may be much to load."""
        partition = lease.partition
        try:
            server = self._server(lease)
            server.start(threads=False)
            self._read_urgent(server)
        except Exception as error:  # noqa: BLE001 - told below; another worker may have more luck
            if self.trouble.get(partition) != str(error):
                about = {"partition": partition, "error": type(error).__name__, "reason": str(error)}
                log.error("%r cannot serve partition %d: %a", self, partition, str(error), extra=about)
            self.trouble[partition] = str(error)
            self._given_up.put(lease)
            return
        self.trouble.pop(partition, None)
        self._wakes.put(lambda: self._serve(server))

    def _read_urgent(self, server: PartitionServer) -> None:
        """Give a server what it must carry out before its first message; StoreError if that cannot be read."""
        partition = server.lease.partition
        while found := self._mailbox.read({partition: server.mail.position._replace(orders=None)}, 0.0):
            for _, entry in found:
                server.mail.take(entry)

    def _server(self, lease: Lease) -> PartitionServer:
        partition = lease.partition
        keys = {device: key for device, key in self._devices.items() if self._partition(device) == partition}
        if isinstance(self._broker, str):
            transport: Transport = MqttTransport(self._broker, reactor=self._reactor)
        else:
            transport = self._broker(client_id(self._key, self.identity, partition), self._reactor)
        store = RedisStore(lease, witness=self._witness, adopt=self._adopt)
        server = PartitionServer(
            self.identity, self._key, devices=KeyRing(keys), broker=transport, store=store, **self._options
        )
        server.lease = lease
        server.partition, server.partitions = partition, self.partitions
        server.engine.host = _Tenancy(self, server, lease)
        server.engine.inbox.listen(lambda: self._schedule(server))
        server.engine.handlers.borrow(self._application, self._aside)
        self._relist(server)
        with self._setting_up:
            self._setup(server)
        return server

    def _partition(self, device: int) -> int:
        return partition_of(device, self.partitions)

    def _serve(self, server: PartitionServer) -> None:
        if not server.lease.valid() or self._stopping.is_set():
            self._partition_pool.submit(self._abandon, server)
            return
        self.servers[server.lease.partition] = server
        self._dues[server] = 0.0
        self._relist(server)  # there may be another list since it was made
        partition = server.lease.partition
        about = {"partition": partition}
        log.info("%r serves partition %d: %d devices", self, partition, len(server.devices), extra=about)

    def _hand_over(self, lease: Lease) -> None:
        """Give a partition to another worker, when nothing is under way any more."""
        server = self.servers.pop(lease.partition, None)
        if server is not None:
            del self._dues[server]
        self._partition_pool.submit(self._close, lease, server)

    def _close(self, lease: Lease, server: PartitionServer | None) -> None:
        if server is not None:
            server.stop(self._leases.ttl)
            wait(server.engine.handlers.running())  # never two at once: the lease is kept until the handler has ended
        self._given_up.put(lease)
        self._leaving.pop(lease.partition, None)
        self._leases_due.set()

    def __repr__(self) -> str:
        return f"<Worker {self.name} of {self.identity:x}>"


def _store(server: PartitionServer) -> RedisStore:
    assert isinstance(server.engine.store, RedisStore)  # noqa: S101 - this worker has made it
    return server.engine.store


class _Listing(NamedTuple):
    """The keys that an operator lists, of all partitions, and who is told what that has changed."""

    keys: Mapping[int, PublicKey]
    changed: Callable[[KeyChanges], object]


class _TurnDue:
    """A server wants a turn."""

    __slots__ = ("server",)

    def __init__(self, server: PartitionServer) -> None:
        self.server = server

    def __call__(self) -> None:
        """Nothing more to do."""
