"""The state of one partition of a server's devices in Redis, for the worker that holds its lease.

A commit is one Lua script: it checks that the store is the one that was opened, that the lease is ours, that no commit
is missing, and that no replay window and no reserved sequence id goes back; then it writes everything. What is
confirmed survives, by the configuration of the Redis server:

====================================  =====================================================================
``appendonly yes``, fsync ``always``  kill -9, power loss of the server (``durable`` is True)
``appendonly yes``, ``everysec``      kill -9 of Redis, not a power loss: up to a second of commits is gone
the same with ``fsync=True``          power loss too (``durable``): each commit waits for WAITAOF (Redis 7.2)
``replicas=n``                        besides: each commit waits until n replicas have it (WAIT, or WAITAOF)
``appendonly no``                     refused, unless ``volatile=True``
====================================  =====================================================================

State that went back, however it came, is noticed: while a store is open by the number of its commits, which it keeps
in memory, at the next start by a witness.
"""

import logging
import marshal
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

from redis import Redis
from redis.exceptions import ResponseError

from ..errors import LeaseLostError, StoreError
from ..records import (
    SIGNER_PRECISION,
    AuditRow,
    Changes,
    ExchangeRecord,
    Fact,
    InboxEntry,
    KeyRecord,
    OutboxEntry,
    PartnerRecord,
    ReportRecord,
    State,
)
from .auditing import span_of
from .bounds import check_int, check_seconds, check_time
from .directory import KnownDevice
from .keyspace import VERSION, Call, Keyspace, Script
from .lease import Lease, RedisArbiter
from .mailbox import MAX_KEPT
from .partition import PARTITIONS, partition_of
from .redisaudit import at_of, audit_value, partition_key, partition_rows, parts, signer_value, split
from .redismail import report_key
from .witness import Position, Witness

__all__ = ["RedisDirectory", "RedisStore", "commit_many"]

log: Final = logging.getLogger("srup.store")

_PAGE: Final = 1000  # entries that Redis hands out, or deletes, at a time
_UNCONFIRMED: Final = 16  # so many commits without an answer are carried along; then it is looked what became of them
_REPLICAS: Final = 1000  # the most that a commit may wait for,
_PATIENCE: Final = 3600.0  # and for how long, in seconds
_LARGEST: Final = (1 << 64) - 1
_SPREAD: Final = 4000  # Lua can spread about 8,000 values over the arguments of a command

# KEYS: meta, lease, partners, busy, others..., reports of orders, and at the end the entries of partners that this
# commit touches.
# ARGV: store id, lease, the confirmed commit, this one, its digest, how many digests of unconfirmed commits, these;
#       how many partners to check, to write, then identity and value of each; how many other commands, each with the
#       number of its key, the number of its arguments, these; and at the end the identities whose entries are touched.
# Nothing is written before everything is checked, for Redis does not take back what a script has done: no command may
# fail after the first one that writes. What could make one fail is a key that holds something of another type, or a
# number that Redis does not take; only a report may stay away, whose stream somebody has written to by hand. Numbers of
# 64 bits are compared as two halves: Lua's numbers are doubles, and its strings are compared by the locale.
_COMMIT: Final = Script("""
local meta = redis.call('HMGET', KEYS[1], 'id', 'commit', 'digest', 'partners')
if meta[1] ~= ARGV[1] then return {'store', meta[1] or ''} end
if meta[3] == ARGV[5] and tonumber(meta[2]) > tonumber(ARGV[3]) then
    redis.call('HSET', KEYS[1], 'digest', ARGV[5])  -- so that WAIT has something to wait for
    return {'done', meta[2]}
end
local lease = redis.call('GET', KEYS[2])
if lease ~= ARGV[2] then return {'lease', lease or ''} end
local at = 7
local known = meta[2] == ARGV[3]
for _ = 1, tonumber(ARGV[6]) do
    known = known or meta[3] == ARGV[at]
    at = at + 1
end
if not known then return {'commit', meta[2]} end
if redis.call('HLEN', KEYS[3]) ~= tonumber(meta[4]) then return {'partners', meta[4]} end

local check, write = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
local first = at + 2
for start = 0, check - 1, 1000 do
    local names = {}
    for number = start, math.min(start + 1000, check) - 1 do names[#names + 1] = ARGV[first + 2 * number] end
    local values = redis.call('HMGET', KEYS[3], unpack(names))
    for number = 1, #names do
        if values[number] then
            local r1, r2, h1, h2 = struct.unpack('>I4I4I4I4', values[number], 2)
            local s1, s2, i1, i2 = struct.unpack('>I4I4I4I4', ARGV[first + 2 * (start + number) - 1], 2)
            if s1 < r1 or (s1 == r1 and s2 < r2) then return {'reserved', names[number]} end
            if i1 < h1 or (i1 == h1 and i2 < h2) then return {'window', names[number]} end
        end
    end
end

at = first + 2 * write
local commands = tonumber(ARGV[at])
local begin = at + 1
local types = {HSET = 'hash', HDEL = 'hash', SADD = 'set', ZADD = 'zset', XADD = 'stream', XDEL = 'stream'}
local busy = redis.call('TYPE', KEYS[4]).ok
if busy ~= 'none' and busy ~= 'set' then return {'type', KEYS[4]} end
at = begin
for _ = 1, commands do
    local name, key, count = ARGV[at], KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
    if types[name] then
        local found = redis.call('TYPE', key).ok
        if found ~= 'none' and found ~= types[name] then return {'type', key} end
    end
    at = at + 3 + count
end

-- Partners that are forgotten stand among the other commands; who is written again comes after.
at = begin
for _ = 1, commands do
    local name, count = ARGV[at], tonumber(ARGV[at + 2])
    local call = name == 'XADD' and redis.pcall or redis.call
    call(name, KEYS[tonumber(ARGV[at + 1])], unpack(ARGV, at + 3, at + 2 + count))
    at = at + 3 + count
end
for start = 0, write - 1, 1000 do
    redis.call('HSET', KEYS[3], unpack(ARGV, first + 2 * start, first + 2 * math.min(start + 1000, write) - 1))
end
local touched = #ARGV - at + 1
for number = 1, touched do
    local name = ARGV[at + number - 1]
    local there = redis.call('EXISTS', KEYS[#KEYS - touched + number]) == 1
    redis.call(there and 'SADD' or 'SREM', KEYS[4], name)
end
redis.call('HSET', KEYS[1], 'commit', ARGV[4], 'digest', ARGV[5], 'partners', redis.call('HLEN', KEYS[3]))
return {'ok', ARGV[4]}
""")

# What a commit may use. A command that the user of the connection may not use would end one in the middle; Redis tells
# from version 7 on. KEYS: meta. Answers the first one that is not allowed.
_MAY: Final = Script("""
for _, name in ipairs(redis.acl_check_cmd and
    {'HSET', 'HDEL', 'SADD', 'SREM', 'ZADD', 'XADD', 'XDEL', 'DEL', 'PEXPIRE', 'HLEN', 'HMGET', 'EXISTS', 'TYPE'} or {}
) do
    local arguments = name == 'XADD' and {'*', 'a', 'b'} or name == 'ZADD' and {'1', 'a'} or {'1', 'a'}
    local single = name == 'DEL' or name == 'EXISTS' or name == 'TYPE' or name == 'HLEN'
    if not redis.acl_check_cmd(name, KEYS[1], unpack(single and {} or arguments)) then return name end
end
return ''
""")

# KEYS: meta, lease, partners. ARGV: store id, lease.
_LOOK: Final = Script("""
local meta = redis.call('HMGET', KEYS[1], 'id', 'version', 'commit', 'partners')
if meta[1] ~= ARGV[1] then return {'store', meta[1] or ''} end
local lease = redis.call('GET', KEYS[2])
if lease ~= ARGV[2] then return {'lease', lease or ''} end
if redis.call('HLEN', KEYS[3]) ~= tonumber(meta[4]) then return {'partners', meta[4]} end
return {'ok', meta[2], meta[3]}
""")

# KEYS: meta, lease, audit. ARGV: store id, lease, time, how many at most.
_PRUNE: Final = Script("""
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return {'store', ''} end
local lease = redis.call('GET', KEYS[2])
if lease ~= ARGV[2] then return {'lease', lease or ''} end
local old = math.min(redis.call('ZCOUNT', KEYS[3], '-inf', '(' .. ARGV[3]), tonumber(ARGV[4]))
if old > 0 then redis.call('ZREMRANGEBYRANK', KEYS[3], 0, old - 1) end
return {'ok', old}
""")

# KEYS: meta, lease, signers. ARGV: store id, lease, time, how many at a time, where to go on.
# The record of a key begins with the time at which it was used, a double.
_PRUNE_SIGNERS: Final = Script("""
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return {'store', ''} end
local lease = redis.call('GET', KEYS[2])
if lease ~= ARGV[2] then return {'lease', lease or ''} end
local found = redis.call('HSCAN', KEYS[3], ARGV[5], 'COUNT', ARGV[4])
for at = 1, #found[2], 2 do
    if struct.unpack('>d', found[2][at + 1]) < tonumber(ARGV[3]) then redis.call('HDEL', KEYS[3], found[2][at]) end
end
return {'ok', found[1]}
""")

# The keys of a partition, in KEYS' order.
_WHOLE: Final = ("partners", "busy", "keys", "barred", "facts", "audit", "orders", "urgent", "signers")


class RedisStore:
    """The store of the partition that ``lease`` is for; the Store protocol.

    ``witness`` is a folder for a file per partition, on this machine, which must not be restored together with Redis; a
    partition that this machine has not served before has none. ``adopt`` accepts whatever is there, though it may be an
    old copy (``State.adopted`` tells); as a text it names an adoption, which each partition goes through once, whoever
    serves it later. ``durable`` says, once it is open,
    whether a confirmed commit survives a power loss; the module's docstring has the rest. Waiting for replicas and
    the disk takes at most ``patience`` seconds, then a commit raises StoreError and may be tried again.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        witness: str | os.PathLike[str] | None = None,
        adopt: bool | str = False,
        replicas: int = 0,
        fsync: bool = False,
        volatile: bool = False,
        patience: float = 1.0,
    ) -> None:
        if not isinstance(lease.arbiter, RedisArbiter):
            raise ValueError("the lease is not one of Redis")
        if (replicas or fsync) and not isinstance(lease.arbiter.keyspace.client, Redis):
            raise ValueError("replicas and fsync need a client of one server: one of a cluster asks any node to wait")
        check_int(replicas, "replicas", 0, _REPLICAS)
        check_seconds(patience, "patience", 0.001, _PATIENCE)
        self.lease: Final = lease
        self.durable = False
        self.keyspace: Final = lease.arbiter.keyspace
        self._store = lease.arbiter.store
        name = f"{self.keyspace.owner:x}-{lease.partition}.witness"
        self._witness = None if witness is None else Witness(Path(witness) / name)
        self._known = False  # whether the witness knows this store
        self._adopt = bool(adopt)
        self._adoption = adopt.encode() if isinstance(adopt, str) else None
        self._replicas = replicas
        self._fsync = fsync
        self._volatile = volatile
        self._patience = round(patience * 1000)
        self._lock = Lock()
        self._opened = False
        self._number = 0  # of the last confirmed commit
        self._unconfirmed: dict[
            bytes, int
        ] = {}  # the commits since then of which nobody knows whether they are written
        self._nonce = secrets.token_bytes(16)
        self._keys = {each: self.keyspace.key(lease.partition, each) for each in ("meta", "lease", *_WHOLE)}

    @staticmethod
    def create(client_or_url: Any, owner: int, partitions: int = PARTITIONS, *, volatile: bool = False) -> None:
        """Set up the state of server ``owner``, empty. Nothing else ever begins one.

        StoreError when there is one, or when this Redis would lose it; ``volatile`` accepts one without persistence.
        """
        keyspace = Keyspace(client_or_url, owner)
        try:
            keyspace.create(partitions, volatile=volatile)
        finally:
            keyspace.close()

    def open(self, owner: int) -> State:
        """See :class:`~srup.store.Store`. Read in pieces, so that Redis serves others meanwhile."""
        check_int(owner, "owner", 0, _LARGEST)
        if owner != self.keyspace.owner:
            raise StoreError(f"{self._place} belongs to {self.keyspace.owner:x}, not to {owner:x}")
        with self._lock, self.keyspace.asking():
            self._look_at_durability()
            self._check_rights()
            number = self._look()
            if self._adoption is not None:
                self._adopt = self.keyspace.client.hget(self._keys["meta"], "adopted") != self._adoption
            state = self._load()
            if self._look() != number:
                raise StoreError(f"{self._place}: somebody else has written while it was read")
            self._check_witness(number)
            self._number = number
            self._unconfirmed.clear()
            self._opened = True
            return state._replace(adopted=self._adopt)

    def commit(self, changes: Changes) -> None:
        """See :class:`~srup.store.Store`.

        An error may also mean that the answer was lost: the same changes again are then recognised and not written
        twice, and other ones come on top.
        """
        error = commit_many([(self, changes)])[0]
        if error is not None:
            raise error

    def audit(
        self,
        since: float = 0.0,
        partner: int | None = None,
        until: float | None = None,
        *,
        newest_first: bool = False,
    ) -> Iterator[AuditRow]:
        """See :class:`~srup.store.Store`."""
        span = span_of(since, partner, until, newest_first)
        self._check_open()
        return partition_rows(self.keyspace, self.lease.partition, span, _PAGE)

    def signer(self, fingerprint: bytes) -> bytes | None:
        """See :class:`~srup.store.Store`."""
        self._check_open()
        return partition_key(self.keyspace, self.lease.partition, fingerprint)

    def prune(self, before: float, limit: int | None = None) -> int:
        """See :class:`~srup.store.Store`."""
        before = check_time(before, "before")
        if limit is not None:
            check_int(limit, "limit", 0, _LARGEST)
        self._check_open()
        pruned = 0
        while True:
            most = _PAGE if limit is None else min(_PAGE, limit - pruned)
            count = int(self._pruned(_PRUNE, "audit", repr(before), most))
            pruned += count
            if count < most:
                self._prune_signers(before - SIGNER_PRECISION)
                return pruned
            if pruned == limit:
                return pruned

    def _prune_signers(self, before: float) -> None:
        cursor: bytes = b"0"
        while (cursor := self._pruned(_PRUNE_SIGNERS, "signers", repr(before), _PAGE, cursor)) != b"0":
            pass

    def _pruned(self, script: Script, key: str, *arguments: Any) -> Any:
        """Run a script that deletes; return what it answers."""
        self.lease.check()
        keys = [self._keys[each] for each in ("meta", "lease", key)]
        word, told = self.keyspace.run(script, keys, [self._store, self.lease.token, *arguments])
        if word != b"ok":
            raise self._refusal(word, told)
        return told

    def close(self) -> None:
        """See :class:`~srup.store.Store`. The lease is not given back: that is for :class:`Leases`."""
        with self._lock:
            self._opened = False
            if self._witness is not None:
                self._witness.close()

    def __str__(self) -> str:
        return self._place

    def __repr__(self) -> str:
        return f"<RedisStore {self._place}>"

    # --- opening

    @property
    def _place(self) -> str:
        return f"{self.keyspace}: partition {self.lease.partition} of server {self.keyspace.owner:x}"

    def _check_open(self) -> None:
        if not self._opened:
            raise StoreError(f"{self._place} is not open")

    def _look_at_durability(self) -> None:
        settings = self.keyspace.check_settings(self._keys["meta"], volatile=self._volatile)
        if not settings.append:
            log.warning("%s: confirmed commits are lost when Redis ends (appendonly no)", self._place)
        if self._fsync:
            try:
                self.keyspace.client.execute_command("WAITAOF", 1, 0, 1)
            except ResponseError as error:
                raise StoreError(
                    f"{self.keyspace} has no WAITAOF, which fsync=True needs (Redis 7.2): {error}"
                ) from None
        self.durable = settings.durable or (settings.append and self._fsync)
        if settings.append and not self.durable:
            known = f"appendfsync {settings.sync}" if settings.sync else "appendfsync is not told"
            log.info("%s: a power loss may lose the last second of confirmed commits (%s)", self._place, known)

    def _check_rights(self) -> None:
        """Refuse to begin as a user of Redis whose commits could end in the middle."""
        denied = self.keyspace.run(_MAY, [self._keys["meta"]], [])
        if denied:
            raise StoreError(
                f"{self._place}: this user of Redis may not use {_shown(denied)}; docs/deployment.md has the ACL that "
                "is needed"
            )

    def _check_witness(self, number: int) -> None:
        """Refuse an old copy. One that is adopted is known to the witness after its first commit."""
        if self._witness is None or self._adopt:
            return
        self._witness.close()
        seen = self._witness.read()
        if seen is None:
            self._replace_witness(self._witness, number)
        elif seen.database != self._store:
            raise StoreError(
                f"{self._place}: this is store {self._store.hex()}, {self._witness.path} knows {seen.database.hex()}: "
                "if the state was lost or set up anew, open it with adopt=True"
            )
        elif seen.commits > number:
            raise StoreError(
                f"{self._place} is at commit {number}, and {self._witness.path} has seen {seen.commits}: it has lost "
                "data, or an old copy was restored; restore the newest, or open it with adopt=True"
            )
        else:
            self._witness.open()
            self._witness.note(number)
            self._known = True

    def _replace_witness(self, witness: Witness, number: int) -> None:
        witness.replace_by(Position(self._store, number))
        witness.open()
        self._known = True

    def _look(self) -> int:
        """The number of the last commit, when the lease is ours and the partition whole."""
        self.lease.check()
        word, *rest = self.keyspace.run(
            _LOOK, [self._keys["meta"], self._keys["lease"], self._keys["partners"]], [self._store, self.lease.token]
        )
        if word != b"ok":
            raise self._refusal(word, rest[0])
        version, number = map(self.keyspace.number, [self._keys["meta"]] * 2, ("version", "commit"), rest)
        if version != VERSION:
            raise StoreError(f"{self._place} is of version {version}, not {VERSION}")
        return number

    def _load(self) -> State:
        client = self.keyspace.client
        partners = dict(client.hscan_iter(self._keys["partners"], count=_PAGE))
        keys, facts = (dict(client.hscan_iter(self._keys[each], count=_PAGE)) for each in ("keys", "facts"))
        busy, barred = (sorted(set(client.sscan_iter(self._keys[each], count=_PAGE))) for each in ("busy", "barred"))
        found: dict[type, list[Any]] = {ExchangeRecord: [], InboxEntry: [], OutboxEntry: []}
        for start in range(0, len(busy), _PAGE):
            pipe = client.pipeline(transaction=False)
            some = busy[start : start + _PAGE]
            for each in some:
                pipe.hgetall(self._entries(self._decoded("busy", _u64, each)))
            for identity, entries in zip(some, pipe.execute(), strict=True):
                if not entries:
                    raise StoreError(f"{self._place} is damaged: the entries of partner {_u64(identity):x} are gone")
                for name, value in entries.items():
                    entry = self._decoded(f"entries:{_u64(identity):x}", _entry, _u64(identity), name, value)
                    found[type(entry)].append(entry)
        return State(
            partners=sorted(self._decoded("partners", _partner, name, value) for name, value in partners.items()),
            exchanges=sorted(found[ExchangeRecord]),
            inbox=sorted(found[InboxEntry]),
            outbox=sorted(found[OutboxEntry]),
            keys=sorted(self._decoded("keys", _key_record, name, value) for name, value in keys.items()),
            barred=sorted(self._decoded("barred", bytes.decode, each) for each in barred),
            facts=sorted(self._decoded("facts", _fact, name, value) for name, value in facts.items()),
        )

    def _decoded(self, part: str, decode: Any, *values: Any) -> Any:
        """Decode something that stands under the key of a part."""
        try:
            return decode(*values)
        except (struct.error, ValueError) as error:
            key = self.keyspace.key(self.lease.partition, part)
            raise StoreError(f"{self._place} is damaged: {key}: {error}; restore it") from None

    def _entries(self, partner: int) -> str:
        return self.keyspace.key(self.lease.partition, f"entries:{partner:x}")

    def _reports(self, order: bytes) -> str:
        return self.keyspace.key(self.lease.partition, report_key(order))

    # --- committing

    def _ready(self) -> None:
        self._check_open()
        self.lease.check()

    def _call(self, changes: Changes) -> tuple[Call, bytes, int]:
        """The script's run that writes this, its digest, and its number."""
        if len(self._unconfirmed) >= _UNCONFIRMED:
            self._resolve()
        try:  # a record that is none, too, must not end a server
            content = _content(changes, self._entries, self._reports)
        except (AttributeError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise StoreError(f"{self._place}: these changes cannot be written: {error}") from None
        mark = content.digest(self._nonce)
        number = max([self._number, *self._unconfirmed.values()]) + 1
        head = [self._store, self.lease.token, self._number, number, mark, len(self._unconfirmed), *self._unconfirmed]
        keys = [self._keys["meta"], self._keys["lease"], *(self._keys[each] for each in _WHOLE), *content.keys]
        then: tuple[str | int, ...] = ()
        if self._fsync:
            then = ("WAITAOF", 1, self._replicas, self._patience)
        elif self._replicas:
            then = ("WAIT", self._replicas, self._patience)
        return Call(_COMMIT, keys, [*head, *content.arguments(number)], then), mark, number

    def _resolve(self) -> None:
        """Find out which of many unconfirmed commits was written last, if any; StoreError while nobody answers."""
        number = self._look()
        if number not in (self._number, *self._unconfirmed.values()):
            raise self._refusal(b"commit", str(number).encode())
        self._number = number
        self._unconfirmed.clear()

    def _settle(self, answer: Any, mark: bytes, number: int) -> StoreError | None:
        """What a commit's answer means."""
        waited: Any = None
        if isinstance(answer, tuple):
            answer, waited = answer
        if isinstance(answer, StoreError):
            self._unconfirmed.setdefault(mark, number)
            return answer
        word, told = answer
        if word not in (b"ok", b"done"):
            return self._refusal(word, told)
        missing = self._missing(waited)
        if missing is not None:
            self._unconfirmed.setdefault(mark, int(told))
            return missing
        self._number = int(told)
        self._unconfirmed.clear()
        if self._witness is not None:
            self._tell_witness(self._witness)
        if self._adopt:  # what was adopted is now what counts
            self._adopt = False
            self._note_adoption()
        return None

    def _note_adoption(self) -> None:
        """If this fails, the next who serves the partition adopts it again, which is safe."""
        if self._adoption is not None:
            try:
                with self.keyspace.asking():
                    self.keyspace.client.hset(self._keys["meta"], "adopted", self._adoption)
            except StoreError as error:
                log.warning("%s: its adoption is not noted: %s", self._place, error)

    def _tell_witness(self, witness: Witness) -> None:
        """What is written is written: an error here is none of the commit's, the witness lags."""
        if not self._known:
            try:
                self._replace_witness(witness, self._number)
            except StoreError as error:
                log.warning("%s: there is no witness: %s", self._place, error)
        else:
            witness.note(self._number)

    def _missing(self, waited: Any) -> StoreError | None:
        """Who has not confirmed in time."""
        if waited is None or isinstance(waited, StoreError):
            return waited
        local, replicas = waited if isinstance(waited, list) else (1, waited)
        if local < 1 and self._fsync:
            return StoreError(f"{self._place}: the commit is not on the disk after {self._patience} ms")
        if replicas < self._replicas:
            return StoreError(f"{self._place}: {replicas} of {self._replicas} replicas have the commit")
        return None

    def _refusal(self, word: bytes, told: bytes) -> StoreError:
        """The error for what a script has refused."""
        match word:
            case b"lease":
                self.lease.end()
                holder = f"it is held by {_shown(told)}" if told else "nobody holds it"
                return LeaseLostError(f"{self._place}: the lease {self.lease.token} is lost; {holder}")
            case b"store" if not told:
                return StoreError(self.keyspace.missing())
            case b"store":
                return StoreError(f"{self._place}: this is store {told.hex()}, not {self._store.hex()} as before")
            case b"commit":
                return StoreError(
                    f"{self._place} is at commit {_shown(told)}, and {self._number} was confirmed: it has lost "
                    "data, or an old copy was restored; restore the newest, or open it with adopt=True"
                )
            case b"partners":
                return StoreError(
                    f"{self._place} is damaged: it has not the {_shown(told)} partners that it should have"
                )
            case b"type":
                return StoreError(
                    f"{self.keyspace}: {_shown(told)} holds what srup has not put there; "
                    "restore it, or delete it if you know why"
                )
            case b"window":
                return StoreError(f"{self._place}: the replay window of {_u64(told):x} would go back (a stale writer)")
            case _:
                return StoreError(f"{self._place}: the reserved ids for {_u64(told):x} would go back (a stale writer)")


def commit_many(pairs: Iterable[tuple[RedisStore, Changes]]) -> list[StoreError | None]:
    """Commit to several partitions of one worker in one round trip; what each came to, None for written.

    The stores must have leases of one :class:`Leases`. Two pairs of one store are committed one after the other only if
    they are in separate calls: ValueError.
    """
    work = list(pairs)
    stores = {id(store): store for store, _ in work}
    if len(stores) < len(work):
        raise ValueError("a store stands twice among those to commit to")
    if len({id(store.keyspace) for store in stores.values()}) > 1:
        raise ValueError("the stores are not of one Redis connection")
    locks = [store._lock for store in sorted(stores.values(), key=lambda store: store.lease.partition)]
    results: list[StoreError | None] = [None] * len(work)
    for lock in locks:
        lock.acquire()
    try:
        runs = []
        for place, (store, changes) in enumerate(work):
            try:
                store._ready()
                if changes:
                    runs.append((place, store, *store._call(changes)))
            except StoreError as error:
                results[place] = error
        answers = work[0][0].keyspace.run_all([call for _, _, call, _, _ in runs]) if runs else []
        for (place, store, _, mark, number), answer in zip(runs, answers, strict=True):
            results[place] = store._settle(answer, mark, number)
    finally:
        for lock in locks:
            lock.release()
    return results


# --- bytes


_BITS: Final = 1024  # of a replay window
_ALL: Final = (1 << _BITS) - 1
_MEMBER, _BINDS, _GAPS = 1, 2, 4  # flags of a partner; _GAPS: what follows are the ids that were not seen


class _Content(NamedTuple):
    """What a commit writes, as the script takes it."""

    keys: list[str]  # the reports of orders, the entries of partners that are touched
    touched: list[bytes]  # their identities
    partners: list[bytes]  # identity, value, identity, ...
    checked: int  # how many of them, the first ones, must not go back
    commands: list[tuple[str, int, list[bytes]]]  # name, number of the key, arguments
    audit: list[tuple[float, bytes]]

    def digest(self, nonce: bytes) -> bytes:
        """Tells this content from any other."""
        # marshal's version 2 writes equal values as equal bytes; later ones refer to objects that stand there twice.
        content = marshal.dumps((self.partners, self.commands, self.audit, self.touched), 2)
        return blake2b(nonce + content, digest_size=16).digest()

    def arguments(self, number: int) -> Iterator[bytes | int | str | float]:
        """The arguments after the script's head. Rows of one time stay in the order in which they came."""
        yield self.checked
        yield len(self.partners) // 2
        yield from self.partners
        rows = [(at, struct.pack(">QI", number, place) + row) for place, (at, row) in enumerate(self.audit)]
        key = _key("audit")
        added = [
            [part for row in rows[start : start + _SPREAD // 2] for part in row]
            for start in range(0, len(rows), _SPREAD // 2)
        ]
        commands: list[tuple[str, int, Sequence[bytes | float]]] = [*self.commands]
        commands += [("ZADD", key, values) for values in added]
        yield len(commands)
        for name, place, values in commands:
            yield name
            yield place
            yield len(values)
            yield from values
        yield from self.touched


class RedisDirectory:
    """See :class:`srup.store.directory.Directory`; what is in Redis has no order, so the first page reads all."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._partitions = keyspace.describe()[1]
        self._rest: list[KnownDevice] = []  # behind the last page

    def page(self, first: int, limit: int) -> list[KnownDevice]:
        """See :meth:`Directory.page`. Reads all partitions, one after the other."""
        found = self._rest
        if not found or found[0].identity < first:
            found = [known for partition in range(self._partitions) for known in self._known(partition, first)]
            found.sort(key=lambda known: known.identity)
        page, self._rest = found[:limit], found[limit:]
        return page

    def one(self, identity: int, names: Sequence[str] | None = None) -> KnownDevice | None:
        """See :meth:`Directory.one`. Without ``names`` the names of all facts of the partition are looked through."""
        partition, name = partition_of(identity, self._partitions), _bytes(identity)
        key = self._keyspace.key(partition, "facts")
        with self._keyspace.asking():
            client = self._keyspace.client
            pipe = client.pipeline(transaction=False)
            pipe.hget(self._keyspace.key(partition, "keys"), name)
            pipe.hget(self._keyspace.key(partition, "partners"), name)
            pipe.hmget(key, [name + each.encode() for each in names or ("",)])
            known, partner, values = pipe.execute()
            told = zip(names or (), values, strict=False)
            found = {name + each.encode(): value for each, value in told if value is not None}
            if names is None:
                pattern = re.sub(rb"([\\*?\[\]^-])", rb"\\\1", name) + b"*"
                found = dict(client.hscan_iter(key, match=pattern, count=_PAGE))
        if known is None and partner is None:
            return None
        try:
            facts = [_fact(each, value) for each, value in found.items()]
            return KnownDevice(
                identity,
                None if known is None else _key_record(name, known),
                None if partner is None else _partner(name, partner),
                {fact.name: fact.value or "" for fact in facts},
            )
        except (struct.error, ValueError, IndexError) as error:
            raise StoreError(f"{self._keyspace}: partition {partition} is damaged: {error}; restore it") from None

    def facts(self, identity: int, names: Sequence[str]) -> list[str]:
        """See :meth:`Directory.facts`."""
        fields = [_bytes(identity) + name.encode() for name in names]
        with self._keyspace.asking():
            pipe = self._keyspace.client.pipeline(transaction=False)
            for partition in range(self._partitions):
                pipe.hmget(self._keyspace.key(partition, "facts"), fields)
            return [value.decode() for values in pipe.execute() for value in values if value is not None]

    def _known(self, partition: int, first: int) -> list[KnownDevice]:
        with self._keyspace.asking():
            pipe = self._keyspace.client.pipeline(transaction=False)
            for name in ("keys", "partners", "facts"):
                pipe.hgetall(self._keyspace.key(partition, name))
            in_keys, in_partners, in_facts = pipe.execute()
        try:
            facts: dict[int, dict[str, str]] = {}
            for fact in (_fact(name, value) for name, value in in_facts.items() if _u64(name[:8]) >= first):
                facts.setdefault(fact.identity, {})[fact.name] = fact.value or ""
            return [
                KnownDevice(
                    _u64(each),
                    _key_record(each, in_keys[each]) if each in in_keys else None,
                    _partner(each, in_partners[each]) if each in in_partners else None,
                    facts.get(_u64(each), {}),
                )
                for each in in_keys.keys() | in_partners.keys()
                if _u64(each) >= first
            ]
        except (struct.error, ValueError, IndexError) as error:
            raise StoreError(f"{self._keyspace}: partition {partition} is damaged: {error}; restore it") from None

    def close(self) -> None:
        """See :meth:`Directory.close`."""
        self._keyspace.close()


def _key(name: str) -> int:
    """The number of a key of the whole partition among the script's keys."""
    return 3 + _WHOLE.index(name)


def _content(changes: Changes, entries: Callable[[int], str], reports: Callable[[bytes], str]) -> _Content:
    forgotten = set(changes.forgotten)
    latest = {each.identity: each for each in changes.partners}
    partners = sorted(latest.values(), key=lambda each: each.identity in forgotten)

    put: dict[int, dict[bytes, bytes]] = {}  # by partner: entries by name
    out: dict[int, list[bytes]] = {}
    for exchange in changes.exchanges:
        value = struct.pack(">d", exchange.expiry) + exchange.body.encode()
        put.setdefault(exchange.partner, {})[b"e" + exchange.token] = value
    for entry in changes.inbox:
        value = parts(entry.token, entry.kind.encode(), entry.body)
        put.setdefault(entry.partner, {})[b"i" + _bytes(entry.number)] = value
    for mail in changes.outbox:
        value = struct.pack(">d", mail.expiry) + parts(mail.topic.encode(), mail.body)
        put.setdefault(mail.partner, {})[b"o" + _bytes(mail.number)] = value
    for partner, token in changes.ended:
        out.setdefault(partner, []).append(b"e" + token)
    for mark, done in ((b"i", changes.finished), (b"o", changes.settled)):
        for partner, number in done:
            out.setdefault(partner, []).append(mark + _bytes(number))

    touched = sorted(forgotten | put.keys() | out.keys())
    orders = list(dict.fromkeys(report.order for report in changes.reports if report.order))
    first = 3 + len(_WHOLE)
    told = {order: first + number for number, order in enumerate(orders)}
    place = {partner: first + len(orders) + number for number, partner in enumerate(touched)}
    facts = {_bytes(fact.identity) + fact.name.encode(): fact.value for fact in changes.facts}
    known = {name: value.encode() for name, value in facts.items() if value is not None}
    keys = {_bytes(key.identity): _key_value(key) for key in changes.keys}
    wanted = [
        ("HDEL", _key("partners"), [_bytes(each) for each in sorted(forgotten)]),
        *(("HSET", place[each], _flat(fields)) for each, fields in put.items()),
        *(("HDEL", place[each], names) for each, names in out.items()),
        ("HSET", _key("keys"), _flat(keys)),
        ("SADD", _key("barred"), [each.encode() for each in changes.barred]),
        ("HSET", _key("facts"), _flat(known)),
        ("HDEL", _key("facts"), [name for name, value in facts.items() if value is None]),
        ("HSET", _key("signers"), _flat({each.fingerprint: signer_value(each) for each in changes.signers})),
    ]
    commands: list[tuple[str, int, list[bytes]]] = [("DEL", place[each], []) for each in sorted(forgotten)]
    for name, key, values in wanted:
        commands += ((name, key, values[start : start + _SPREAD]) for start in range(0, len(values), _SPREAD))
    commands += [command for report in changes.reports for command in _told(report, told)]
    return _Content(
        keys=[*map(reports, orders), *map(entries, touched)],
        touched=[_bytes(each) for each in touched],
        partners=[part for each in partners for part in (_bytes(each.identity), _window(each))],
        checked=len(latest.keys() - forgotten),
        commands=commands,
        audit=[(at_of(row), audit_value(row)) for row in changes.audit],
    )


def _told(report: ReportRecord, place: dict[bytes, int]) -> Iterator[tuple[str, int, list[bytes]]]:
    if not 0 <= report.kept <= MAX_KEPT:
        raise ValueError(f"a report cannot be kept for {report.kept!r} seconds")
    if not isinstance(report.body, bytes):
        raise TypeError(f"a report is bytes, not {type(report.body).__name__}")
    if report.entry:
        if not all(part.isdigit() and int(part) <= _LARGEST for part in report.entry.split(b"-", 1)):
            raise ValueError(f"{report.entry!r:.80} is no place in a mailbox")
        for stream in ("orders", "urgent") if report.urgent else ("orders",):
            yield "XDEL", _key(stream), [report.entry]
    if report.order:
        yield "XADD", place[report.order], [b"*", b"report", report.body]
        yield "PEXPIRE", place[report.order], [b"%d" % max(1, round(report.kept * 1000))]


def _flat(mapping: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in mapping.items() for part in pair]


def _shown(content: bytes) -> str:
    """What Redis said, of which nobody knows who has written it."""
    return ascii(content.decode(errors="backslashreplace"))[1:-1][:200]


def _bytes(number: int) -> bytes:
    return struct.pack(">Q", number)


def _u64(content: bytes) -> int:
    return int(struct.unpack(">Q", content)[0])


def _window(partner: PartnerRecord) -> bytes:
    """Flags, reserved, highest: where the script looks for them; then the window, by what is shorter."""
    if not 0 <= partner.seen <= _ALL:
        raise ValueError(f"the window of {partner.identity:x} has more than {_BITS} bits")
    gaps = _ALL ^ partner.seen
    fewer = gaps < partner.seen
    flags = _MEMBER * partner.member | _BINDS * partner.binds | _GAPS * fewer
    bits = min(gaps, partner.seen)
    return struct.pack(">BQQ", flags, partner.reserved, partner.highest) + bits.to_bytes((bits.bit_length() + 7) // 8)


def _partner(name: bytes, value: bytes) -> PartnerRecord:
    flags, reserved, highest = struct.unpack_from(">BQQ", value)
    bits = int.from_bytes(value[17:])
    seen = _ALL ^ bits if flags & _GAPS else bits
    return PartnerRecord(_u64(name), bool(flags & _MEMBER), bool(flags & _BINDS), reserved, highest, seen)


def _entry(partner: int, name: bytes, value: bytes) -> ExchangeRecord | InboxEntry | OutboxEntry:
    match name[:1]:
        case b"e":
            (expiry,) = struct.unpack_from(">d", value)
            return ExchangeRecord(partner, name[1:], expiry, value[8:].decode())
        case b"i":
            token, kind, body = split(value)
            return InboxEntry(_u64(name[1:]), partner, token or b"", (kind or b"").decode(), body or b"")
        case b"o":
            topic, body = split(value, 8)
            (expiry,) = struct.unpack_from(">d", value)
            return OutboxEntry(_u64(name[1:]), partner, (topic or b"").decode(), body or b"", expiry)
        case _:
            raise ValueError(f"partner {partner:x} has an entry of unknown kind")


def _key_value(key: KeyRecord) -> bytes:
    return struct.pack(">d", key.until) + parts(key.key, key.retiring, key.pin)


def _key_record(name: bytes, value: bytes) -> KeyRecord:
    key, retiring, pin = split(value, 8)
    (until,) = struct.unpack_from(">d", value)
    return KeyRecord(_u64(name), key, retiring, until, pin)


def _fact(name: bytes, value: bytes) -> Fact:
    return Fact(_u64(name[:8]), name[8:].decode(), value.decode())
