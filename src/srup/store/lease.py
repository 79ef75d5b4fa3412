"""Who serves which partition: a lease for each, with an epoch that every commit checks.

Redis is the arbiter, and its clock ends a lease. A holder does not ask whether it still holds one: it counts the time
of the lease from *before* it asked for it, on a clock that goes on while the machine sleeps, and stops a safety margin
early. So two workers do not hold a partition at once while clocks run evenly; and if they do not, or a process was
stopped between looking at its clock and writing, the epoch refuses whatever the former holder still writes.

How partitions are shared out is a pure function (:func:`share`) of who is alive and who holds what; every worker
computes the same, and nobody leads.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

from ..errors import LeaseLostError, StoreError
from .bounds import check_int, check_seconds
from .keyspace import Call, Keyspace, Script

__all__ = ["Arbiter", "Lease", "Leases", "RedisArbiter", "Share", "Step", "share"]


_LONGEST: Final = 86400.0  # that a lease may last, in seconds


class Share(NamedTuple):
    """What a worker should do now: partitions to hand over, and free ones to take."""

    release: frozenset[int]
    acquire: frozenset[int]


def share(worker: str, workers: Collection[str], holders: Mapping[int, str], partitions: int) -> Share:
    """Decide what ``worker``, one of the live ``workers``, releases and acquires; ``holders`` has who holds what.

    Each gets P // N partitions, and P % N of them, those who hold the most already, one more. Who has too many keeps
    those for which it stands highest in rendezvous order; free ones go in that order to who has too few. The same view
    gives every worker the same plan, and a plan that was carried out gives everybody nothing to do. What a dead worker
    still holds is nobody's until its lease has ended.
    """
    held: dict[str, list[int]] = {each: [] for each in workers}
    free = []
    for partition in range(partitions):
        holder = holders.get(partition)
        if holder is None:
            free.append(partition)
        elif holder in held:
            held[holder].append(partition)
    few, more = divmod(partitions, len(held))
    ranked = sorted(held, key=lambda each: (-len(held[each]), each))
    quota = {each: few + (rank < more) for rank, each in enumerate(ranked)}
    mine = sorted(held[worker], key=lambda partition: _weight(worker, partition), reverse=True)
    room = {each: quota[each] - len(held[each]) for each in held}
    acquire = set()
    for partition in free:
        able = [each for each in room if room[each] > 0]
        if able:
            taker = max(able, key=lambda each: _weight(each, partition))
            room[taker] -= 1
            if taker == worker:
                acquire.add(partition)
    return Share(frozenset(mine[quota[worker] :]), frozenset(acquire))


def _weight(worker: str, partition: int) -> bytes:
    return blake2b(f"{worker}/{partition}".encode(), digest_size=8).digest()


class Arbiter(Protocol):
    """Who decides about leases: Redis. A lease is a text that nobody else uses, "<worker>:<epoch>"."""

    partitions: int

    def register(self, worker: str, ttl: float) -> Sequence[str]:
        """Count ``worker`` as alive for ``ttl`` seconds from now; return all that are."""

    def renew(self, leases: Mapping[int, str], ttl: float) -> Sequence[str | StoreError | None]:
        """Let these leases, by partition, end in ``ttl`` seconds, as far as they stand; return who holds what now."""

    def acquire(self, wanted: Sequence[int], worker: str, ttl: float) -> Sequence[int | StoreError]:
        """Take those that are free; return the epoch of each, higher than any before, or 0 for one that is not free."""

    def release(self, leases: Iterable[tuple[int, str]]) -> None:
        """End these leases, as far as they stand."""

    def retire(self, worker: str) -> None:
        """Count ``worker`` as dead."""


_REGISTER: Final = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZRANGE', KEYS[1], 0, -1)
""")

_RENEW: Final = Script("""
local lease = redis.call('GET', KEYS[1])
if lease and lease == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return lease
""")

_ACQUIRE: Final = Script("""
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return -1 end
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if not (tonumber(ARGV[3]) >= 1 and tonumber(ARGV[3]) < 2^53) then return redis.error_reply('ERR no time of a lease') end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('SET', KEYS[2], ARGV[2] .. ':' .. epoch, 'NX', 'PX', ARGV[3])
return epoch
""")

_RELEASE: Final = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")


class RedisArbiter:
    """Redis as the arbiter, for the store that it holds now: StoreError when it holds none, later, or another one."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.keyspace: Final = keyspace
        self.store, self.partitions = keyspace.describe()

    def register(self, worker: str, ttl: float) -> Sequence[str]:
        """See :class:`Arbiter`."""
        alive = self.keyspace.run(_REGISTER, [self.keyspace.workers], [worker, _milliseconds(ttl)])
        return [_text(each) for each in alive]

    def renew(self, leases: Mapping[int, str], ttl: float) -> Sequence[str | StoreError | None]:
        """See :class:`Arbiter`."""
        arguments = [[leases.get(partition, ""), _milliseconds(ttl)] for partition in range(self.partitions)]
        calls = [Call(_RENEW, [self._lease(number)], arguments[number]) for number in range(self.partitions)]
        return [_text(each) if isinstance(each, bytes) else each for each in self.keyspace.run_all(calls)]

    def acquire(self, wanted: Sequence[int], worker: str, ttl: float) -> Sequence[int | StoreError]:
        """See :class:`Arbiter`."""
        arguments = [self.store, worker, _milliseconds(ttl)]
        calls = [Call(_ACQUIRE, [self.keyspace.key(each, "meta"), self._lease(each)], arguments) for each in wanted]
        answers = self.keyspace.run_all(calls)
        return [StoreError(self.keyspace.missing()) if answer == -1 else answer for answer in answers]

    def release(self, leases: Iterable[tuple[int, str]]) -> None:
        """See :class:`Arbiter`."""
        calls = [Call(_RELEASE, [self._lease(partition)], [lease]) for partition, lease in leases]
        for answer in self.keyspace.run_all(calls):
            if isinstance(answer, StoreError):
                raise answer

    def retire(self, worker: str) -> None:
        """See :class:`Arbiter`."""
        with self.keyspace.asking():
            self.keyspace.client.zrem(self.keyspace.workers, worker)

    def _lease(self, partition: int) -> str:
        return self.keyspace.key(partition, "lease")


def _text(content: bytes) -> str:
    """A name that a worker has given itself; what somebody else has written is nobody's."""
    return content.decode(errors="backslashreplace")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _now() -> float:
    """Seconds that pass also while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
    """The right to serve a partition, for a while. Any thread may ask whether it is still valid."""

    def __init__(
        self, arbiter: Arbiter, partition: int, worker: str, epoch: int, end: float, clock: Callable[[], float]
    ) -> None:
        self.arbiter: Final = arbiter
        self.partition: Final = partition
        self.epoch: Final = epoch
        self.token: Final = f"{worker}:{epoch}"
        self._end = end
        self._clock = clock

    def valid(self) -> bool:
        """Whether it holds for now. What was valid and is not will not be again."""
        return self._clock() < self._end

    def remaining(self) -> float:
        """Return for how many seconds it still holds; 0 when it is over."""
        return max(0.0, self._end - self._clock())

    def check(self) -> None:
        """Raise LeaseLostError when it is over."""
        if not self.valid():
            raise LeaseLostError(f"the lease of partition {self.partition} (epoch {self.epoch}) is over")

    def extend(self, end: float) -> None:
        """Let it hold until ``end`` on the clock, if it has held until now."""
        if self.valid():
            self._end = end

    def end(self) -> None:
        """Let it be over."""
        self._end = float("-inf")

    def __repr__(self) -> str:
        return f"<Lease of partition {self.partition}, epoch {self.epoch}>"


class Step(NamedTuple):
    """What a step found. ``error``: why Redis could not be asked, or only in part; leases go on until their end."""

    gained: tuple[Lease, ...] = ()  # begin to serve
    lost: tuple[Lease, ...] = ()  # over: stop at once, touch nothing
    release: tuple[Lease, ...] = ()  # finish what is under way, close the store, call Leases.release; told at each step
    error: StoreError | None = None


class Leases:
    """The leases of one worker for the devices of server ``owner``; one thread calls it.

    ``step()`` must be called every ``period`` seconds, a third of ``ttl``. A crashed worker's partitions are free after
    ``ttl``. ``margin`` seconds before Redis would end a lease its holder does. ``worker`` is a name for people, made
    unique. StoreError when Redis does not answer or was not set up.
    """

    def __init__(
        self,
        client_or_url: Any,
        owner: int,
        *,
        worker: str | None = None,
        ttl: float = 15.0,
        margin: float | None = None,
        arbiter: Arbiter | None = None,
        clock: Callable[[], float] = _now,
    ) -> None:
        check_int(owner, "owner", 0, (1 << 64) - 1)
        check_seconds(ttl, "ttl", 0.01, _LONGEST)
        self.margin: Final = ttl / 5 if margin is None else margin
        if not 0 < self.margin < ttl / 2:
            raise ValueError(f"the margin {self.margin} is not between 0 and half of the lease of {ttl} seconds")
        self.owner: Final = owner
        self.ttl: Final = ttl
        self.period: Final = ttl / 3
        name = f"{socket.gethostname()}-{os.getpid()}" if worker is None else worker
        self.worker: Final = f"{name}-{secrets.token_hex(4)}"
        self._keyspace = None if arbiter is not None else Keyspace(client_or_url, owner, timeout=min(ttl / 6, 5.0))
        self._arbiter: Final = arbiter or RedisArbiter(self._keyspace)  # type: ignore[arg-type]
        self._clock = clock
        self._held: dict[int, Lease] = {}

    @property
    def partitions(self) -> int:
        """Into how many partitions the devices are split."""
        return self._arbiter.partitions

    @property
    def held(self) -> tuple[Lease, ...]:
        """The leases that are valid now."""
        return tuple(lease for lease in list(self._held.values()) if lease.valid())  # other threads ask, too

    def step(self) -> Step:
        """Renew what is held, take what is free and ours, and tell what else is to be done."""
        lost = self._drop([lease for lease in self._held.values() if not lease.valid()])
        sent = self._clock()
        try:
            workers = self._arbiter.register(self.worker, self.ttl)
            found = self._arbiter.renew({key: lease.token for key, lease in self._held.items()}, self.ttl)
            errors = [each for each in found if isinstance(each, StoreError)]
            if errors:
                raise errors[0]
            tokens = {key: token for key, token in enumerate(found) if isinstance(token, str)}
            gone = [lease for key, lease in self._held.items() if tokens.get(key) != lease.token]
            for lease in self._held.values():
                lease.extend(sent + self.ttl - self.margin)
            lost += self._drop(gone)
            lost += self._drop([lease for lease in self._held.values() if not lease.valid()])
            # Ours, and we do not know it: it was over here before Redis ended it, or the answer to acquire was lost.
            self._arbiter.release(
                (key, token) for key, token in tokens.items() if _worker(token) == self.worker and key not in self._held
            )
            plan = share(self.worker, workers, {key: _worker(each) for key, each in tokens.items()}, self.partitions)
            release = tuple(self._held[key] for key in sorted(plan.release) if key in self._held)
            gained, error = self._acquire(sorted(plan.acquire))
        except StoreError as failure:
            return Step(lost=tuple(lost), error=failure)
        return Step(gained, tuple(lost), release, error)

    def release(self, lease: Lease) -> None:
        """Give a lease back; nothing may be done under it any more, and its store must be closed."""
        if self._held.get(lease.partition) is lease:
            del self._held[lease.partition]
        lease.end()
        self._arbiter.release([(lease.partition, lease.token)])

    def close(self) -> None:
        """Give everything back, so that others need not wait for the end of the leases. A second call does nothing."""
        leases = self._drop(list(self._held.values()))
        try:
            self._arbiter.retire(self.worker)
            self._arbiter.release((lease.partition, lease.token) for lease in leases)
        finally:
            if self._keyspace is not None:
                self._keyspace.close()

    def _acquire(self, wanted: Sequence[int]) -> tuple[tuple[Lease, ...], StoreError | None]:
        gained = []
        error = None
        sent = self._clock()
        for partition, epoch in zip(wanted, self._arbiter.acquire(wanted, self.worker, self.ttl), strict=True):
            if isinstance(epoch, StoreError):
                error = epoch
            elif epoch:
                end = sent + self.ttl - self.margin
                gained.append(Lease(self._arbiter, partition, self.worker, epoch, end, self._clock))
        self._held.update((lease.partition, lease) for lease in gained)
        return tuple(gained), error

    def _drop(self, leases: list[Lease]) -> list[Lease]:
        for lease in leases:
            lease.end()
            del self._held[lease.partition]
        return leases


def _worker(token: str) -> str:
    return token.rpartition(":")[0]
