"""The campaigns of a server whose workers share a Redis.

All of it is under the hash tag of the server, so that one script writes the state and the orders that follow from it.
Orders wait there in a stream of their own, for the mailboxes are those of partitions, which a cluster keeps elsewhere;
whoever carries the campaigns out moves them. An order has its id from the campaign, and a mailbox takes an id once: so
one that was moved twice is there once.
"""

import os
import secrets
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..errors import StoreError
from .bounds import check_seconds
from .campaigns import CampaignStore, KeptCampaign
from .keyspace import Keyspace, Script
from .mailbox import CAPACITY, PAGE, Post, check_post
from .partition import partition_of
from .redismail import RedisMailbox, by_key, report_key

__all__ = ["RedisCampaigns"]

_NUMBER: Final = struct.Struct(">Q")
_LOOK: Final = 0.2  # seconds from one look whether anything has changed to the next
_TOO_OLD: Final = 5 * 86400.0  # seconds; reports are kept for seven days at least, and so long an id is taken once

# KEYS: meta, head, records, documents, devices of this campaign, posts. ARGV: store id, the revision that was read,
# what tells this save from any other, name, record, document ("" for a campaign that is there), how many devices,
# device and record of each, and for each post device, id, order, report, and "1" if it is urgent.
# What could fail is looked at before anything is written. A save whose answer was lost is known by its mark.
_SAVE: Final = Script("""
local store = redis.call('HGET', KEYS[1], 'id')
if store ~= ARGV[1] then return {'store', store or ''} end
local head = redis.call('HMGET', KEYS[2], 'store', 'revision', 'mark')
if head[1] and head[1] ~= ARGV[1] then return {'other', head[1]} end
if head[3] == ARGV[3] then return {'ok', ''} end
if (head[2] or '0') ~= ARGV[2] then return {'changed', ''} end
local there = redis.call('HGET', KEYS[3], ARGV[4]) ~= false
if there == (ARGV[6] ~= '') then return {'changed', ''} end
for number, wanted in ipairs({'hash', 'hash', 'hash', 'hash', 'hash', 'stream'}) do
    local found = redis.call('TYPE', KEYS[number]).ok
    if found ~= 'none' and found ~= wanted then return {'type', KEYS[number]} end
end
redis.call('HSET', KEYS[2], 'store', ARGV[1], 'mark', ARGV[3])
redis.call('HINCRBY', KEYS[2], 'revision', 1)
redis.call('HSET', KEYS[3], ARGV[4], ARGV[5])
if not there then redis.call('HSET', KEYS[4], ARGV[4], ARGV[6]) end
local last = 7 + 2 * tonumber(ARGV[7])
for first = 8, last, 4000 do
    redis.call('HSET', KEYS[5], unpack(ARGV, first, math.min(first + 3999, last)))
end
for first = last + 1, #ARGV, 5 do
    redis.call('XADD', KEYS[6], '*', 'device', ARGV[first], 'id', ARGV[first + 1], 'order', ARGV[first + 2],
        'report', ARGV[first + 3], 'urgent', ARGV[first + 4])
end
return {'ok', ''}
""")

# KEYS: lease. ARGV: who asks, for how many milliseconds.
_CLAIM: Final = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")

_TIME: Final = Script("return redis.call('TIME')")

_YIELD: Final = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
""")


class RedisCampaigns(CampaignStore):
    """See :class:`CampaignStore`. A claim lasts ``ttl`` seconds."""

    def __init__(self, keyspace: Keyspace, *, ttl: float = 15.0) -> None:
        check_seconds(ttl, "ttl", 0.1, 86400.0)
        self.keyspace: Final = keyspace
        self._mailbox = RedisMailbox(keyspace)
        self._store, self._partitions = keyspace.describe()
        self._ttl = round(ttl * 1000)
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._seen: Any = None
        self._closed = False

    def revision(self) -> int:
        """See :meth:`CampaignStore.revision`."""
        with self.keyspace.asking():
            head = self.keyspace.client.hmget(self._key("head"), "store", "revision")
        return self._revision(head)

    def campaigns(self) -> tuple[int, Sequence[KeptCampaign]]:
        """See :meth:`CampaignStore.campaigns`."""
        records, documents = self._key("records"), self._key("documents")
        while True:
            before = self.revision()
            with self.keyspace.asking():
                client = self.keyspace.client
                found = dict(client.hscan_iter(records, count=PAGE))
                texts = dict(client.hscan_iter(documents, count=PAGE))
            if self.revision() == before:
                kept = [KeptCampaign(name.decode(), texts[name], record, {}) for name, record in sorted(found.items())]
                return before, kept

    def load(self, names: Iterable[str]) -> tuple[int, Sequence[KeptCampaign]]:
        """See :meth:`CampaignStore.load`: read in pieces, and again if somebody has written meanwhile."""
        wanted = list(names)
        while True:
            before, heads = self.campaigns()
            found = []
            for head in (each for each in heads if each.name in wanted):
                with self.keyspace.asking():
                    rows = self.keyspace.client.hscan_iter(self._devices(head.name), count=1000)
                    devices = {_NUMBER.unpack(device)[0]: record for device, record in rows}
                found.append(KeptCampaign(head.name, head.document, head.record, devices))
            if self.revision() == before:
                return before, found

    def save(
        self,
        revision: int,
        name: str,
        record: bytes,
        devices: Mapping[int, bytes],
        posts: Sequence[Post] = (),
        *,
        document: bytes | None = None,
        capacity: int = CAPACITY,
    ) -> bool:
        """See :meth:`CampaignStore.save`. Orders for which a mailbox has no room wait in front of it."""
        for post in posts:
            check_post(post.id, post.order, capacity)
        keys = [self.keyspace.meta, *map(self._key, ("head", "records", "documents"))]
        keys += [self._devices(name), self._key("posts")]
        arguments: list[Any] = [self._store, revision, secrets.token_bytes(16), name, record, document or b""]
        arguments.append(len(devices))
        for device, each in devices.items():
            arguments += (_NUMBER.pack(device), each)
        for post in posts:
            arguments += (_NUMBER.pack(post.device), post.id, post.order, post.report, int(post.urgent))
        word, told = self.keyspace.run(_SAVE, keys, arguments)
        match word:
            case b"store" if not told:
                raise StoreError(self.keyspace.missing())
            case b"store" | b"other":
                raise self._other(told)
            case b"type":
                raise StoreError(f"{self.keyspace}: {told.decode(errors='replace')} holds what srup has not put there")
        if word == b"ok":
            self.flush(capacity)
        return bool(word == b"ok")

    def flush(self, capacity: int = CAPACITY) -> int:
        """See :meth:`CampaignStore.flush`."""
        place, key = b"0", self._key("posts")
        while True:
            [rows] = self._read([(key, place)])
            if not rows:
                return 0
            now = int(self.keyspace.run(_TIME, [key], [])[0])
            fresh = {place: _post(fields) for place, fields in rows if now - _seconds(place) <= _TOO_OLD}
            there = self._mailbox.post_all(list(fresh.values()), capacity)
            done = [place for place, _ in rows if place not in fresh or fresh[place].id in there]
            if done:
                with self.keyspace.asking():
                    self.keyspace.client.xdel(key, *done)
            if len(done) < len(rows):  # and what comes behind stays behind
                with self.keyspace.asking():
                    return int(self.keyspace.client.xlen(key))
            place = rows[-1][0]

    def news(self, orders: Mapping[bytes, int], since: Any = None) -> tuple[Any, Mapping[bytes, bytes]]:
        """See :meth:`CampaignStore.news`: all are asked for each time."""
        found: dict[bytes, bytes] = {}
        listed = list(orders.items())
        if not listed:
            return None, found
        place = b"0"
        while True:  # first those that wait in front of a mailbox, for they may be in it when that is looked at
            [rows] = self._read([(self._key("posts"), place)])
            found |= {fields[b"id"]: fields[b"report"] for _, fields in rows if fields[b"id"] in orders}
            if len(rows) < PAGE:
                break
            place = rows[-1][0]
        for first in range(0, len(listed), PAGE):
            some = listed[first : first + PAGE]
            keys = [
                self.keyspace.key(partition_of(device, self._partitions), report_key(order)) for order, device in some
            ]
            for (order, _), rows in zip(some, self._read([(key, b"0") for key in keys]), strict=True):
                bodies = [fields[b"report"] for _, fields in rows if b"report" in fields]
                if bodies:
                    found[order] = bodies[-1]
        return None, found

    def claim(self) -> bool:
        """See :meth:`CampaignStore.claim`."""
        return bool(self.keyspace.run(_CLAIM, [self._key("lease")], [self._name, self._ttl]))

    def release(self) -> None:
        """See :meth:`CampaignStore.release`."""
        self.keyspace.run(_YIELD, [self._key("lease")], [self._name])

    def await_change(self, patience: float) -> bool:
        """See :meth:`CampaignStore.await_change`: the numbers of commits tell whether anything has changed."""
        deadline = time.monotonic() + patience
        while not self._closed:
            metas = [self.keyspace.key(number, "meta") for number in range(self._partitions)]
            with self.keyspace.asking():
                pipe = self.keyspace.client.pipeline(transaction=False)
                pipe.hget(self._key("head"), "revision")
                for key in metas:
                    pipe.hget(key, "commit")
                seen = pipe.execute()
            if seen != self._seen:
                self._seen = seen
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(_LOOK, left))
        return False

    def close(self) -> None:
        """See :meth:`CampaignStore.close`."""
        self._closed = True
        self._mailbox.close()

    def _key(self, name: str) -> str:
        return self.keyspace.shared(f"campaigns:{name}")

    def _devices(self, name: str) -> str:
        return self.keyspace.shared(f"campaign:{name}")

    def _read(self, streams: Sequence[tuple[str, bytes]]) -> list[list[tuple[bytes, Any]]]:
        """Return up to a page of the rows of each stream behind a place."""
        with self.keyspace.asking():
            pipe = self.keyspace.client.pipeline(transaction=False)
            for key, place in streams:
                pipe.xread({key: place}, count=PAGE)
            answers = pipe.execute()
        return [by_key(answer).get(key.encode(), []) for (key, _), answer in zip(streams, answers, strict=True)]

    def _revision(self, head: Sequence[bytes | None]) -> int:
        store, revision = head
        if store is not None and store != self._store:
            raise self._other(store)
        return 0 if revision is None else self.keyspace.number(self._key("head"), "revision", revision)

    def _other(self, store: bytes) -> StoreError:
        return StoreError(
            f"{self.keyspace}: the campaigns are those of store {store.hex()}, and this is {self._store.hex()}: if the "
            f"state was set up anew, delete the keys that begin with {self.keyspace.shared('campaign')}"
        )

    def __repr__(self) -> str:
        return f"<RedisCampaigns of {self.keyspace}>"


def _post(fields: Mapping[bytes, bytes]) -> Post:
    [device] = _NUMBER.unpack(fields[b"device"])
    return Post(device, fields[b"id"], fields[b"order"], fields[b"report"], fields[b"urgent"] == b"1")


def _seconds(place: bytes) -> float:
    """Return when something was put into a stream, in Unix time."""
    return int(place.partition(b"-")[0]) / 1000
