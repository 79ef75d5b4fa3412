"""The mailbox of a server whose workers share a Redis: a stream of orders for each partition, and one of urgent ones.

Each order has a stream of its own for what becomes of it, which ends by itself.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis import Redis
from redis.exceptions import ResponseError

from ..errors import StoreError
from .keyspace import Call, Keyspace, Script
from .mailbox import CAPACITY, ORDER_ID, PAGE, Entry, Mailbox, Position, Post, check_post
from .partition import partition_of

__all__ = ["RedisMailbox", "by_key", "report_key"]

log: Final = logging.getLogger("srup.store")

# KEYS: meta, orders, urgent, and the reports of each order. ARGV: store id, how many may wait, and of each order its
# id, itself, the first report, and whether it is urgent ("1"): then it does not wait for room, and only as many urgent
# ones may wait. Answers how many are there now: behind the first that has no room none is put in. And how many wait.
# An order that was posted already is not posted again: the answer to the first try may have been lost.
_POST: Final = Script("""
local store = redis.call('HGET', KEYS[1], 'id')
if store ~= ARGV[1] then return {'store', store or ''} end
local done, waiting = 0, 0
for at = 3, #ARGV, 4 do
    local reports = KEYS[4 + done]
    if redis.call('EXISTS', reports) == 0 then
        local urgent = ARGV[at + 3] == '1'
        waiting = redis.call('XLEN', KEYS[urgent and 3 or 2])
        if waiting >= tonumber(ARGV[2]) then break end
        local place = redis.call('XADD', KEYS[2], '*', 'id', ARGV[at], 'order', ARGV[at + 1])
        if urgent then redis.pcall('XADD', KEYS[3], place, 'id', ARGV[at], 'order', ARGV[at + 1]) end
        redis.call('XADD', reports, '*', 'report', ARGV[at + 2])
    end
    done = done + 1
end
return {'ok', done, waiting}
""")


def report_key(order: bytes) -> str:
    """The part of the key under which the reports of an order are, within its partition."""
    return f"order:{order.hex()}"


class RedisMailbox(Mailbox):
    """The mailboxes of all partitions of a server. Any thread may call any method; StoreError when Redis fails us."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.keyspace: Final = keyspace
        self._store, self.partitions = keyspace.describe()
        self._blocks = isinstance(keyspace.client, Redis)  # a cluster has many nodes to wait for
        self._closed = threading.Event()
        self._told: dict[bytes, str] = {}  # why a mailbox cannot be read
        pool = getattr(keyspace.client, "connection_pool", None)
        limit = getattr(pool, "connection_kwargs", {}).get("socket_timeout")
        self._patience = 1.0 if limit is None else min(1.0, limit / 2)

    def post(
        self,
        device: int,
        order_id: bytes,
        order: bytes,
        report: bytes,
        capacity: int = CAPACITY,
        *,
        urgent: bool = False,
    ) -> None:
        """See :meth:`Mailbox.post`."""
        check_post(order_id, order, capacity)
        partition = partition_of(device, self.partitions)
        post = Post(device, order_id, order, report, urgent)
        [answer] = self.keyspace.run_all([self._call(partition, [post], capacity)])
        done, waiting = self._counted(answer)
        if not done:
            raise StoreError(
                f"{self.keyspace}: the mailbox of partition {partition} is full: {waiting} orders wait for a "
                "worker to take them; start one (srup server --workers), or post again later"
            )

    def post_all(self, posts: Sequence[Post], capacity: int = CAPACITY) -> set[bytes]:
        """Post orders that were checked, in one round trip; return the ids of those that are there now.

        What stands behind an order of its partition that has no room is not posted either.
        """
        shares: dict[int, list[Post]] = {}
        for post in posts:
            shares.setdefault(partition_of(post.device, self.partitions), []).append(post)
        answers = self.keyspace.run_all([self._call(number, share, capacity) for number, share in shares.items()])
        there: set[bytes] = set()
        for share, answer in zip(shares.values(), answers, strict=True):
            there.update(post.id for post in share[: self._counted(answer)[0]])
        return there

    def _call(self, partition: int, posts: Sequence[Post], capacity: int) -> Call:
        keys = [self.keyspace.key(partition, each) for each in ("meta", "orders", "urgent")]
        keys += [self.keyspace.key(partition, report_key(post.id)) for post in posts]
        arguments = [self._store, capacity]
        for post in posts:
            arguments += (post.id, post.order, post.report, int(post.urgent))
        return Call(_POST, keys, arguments)

    def _counted(self, answer: Any) -> tuple[int, int]:
        """Return how many orders were put into a mailbox, and how many wait."""
        if isinstance(answer, StoreError):
            raise answer
        word, *told = answer
        if word == b"ok":
            return int(told[0]), int(told[1])
        if not told[0]:
            raise StoreError(self.keyspace.missing())
        raise StoreError(f"{self.keyspace}: this is store {told[0].hex()}, not {self._store.hex()} as before")

    def waiting(self) -> dict[int, int]:
        """Return how many orders wait in each partition that has any."""
        with self.keyspace.asking():
            pipe = self.keyspace.client.pipeline(transaction=False)
            for partition in range(self.partitions):
                pipe.xlen(self.keyspace.key(partition, "orders"))
            return {number: count for number, count in enumerate(pipe.execute()) if count}

    def read(self, after: Mapping[int, Position], patience: float = 1.0) -> list[tuple[int, Entry]]:
        """Return what stands in these partitions' mailboxes behind a position, and leave it there.

        Waits up to ``patience`` seconds, and no longer than Redis lets us, until there is anything. A mailbox that is
        none (somebody has put something else under its key) delays no other.
        """
        if not after:
            self._closed.wait(patience)
            return []
        keys: dict[bytes, tuple[int, bool]] = {}
        places: dict[bytes, bytes] = {}
        for partition, position in after.items():
            for name, place in zip(("urgent", "orders"), (position.urgent, position.orders), strict=True):
                if place is not None:
                    key = self.keyspace.key(partition, name).encode()
                    keys[key], places[key] = (partition, name == "urgent"), place
        try:
            found = self._read(places, patience)
        except ResponseError:
            found = {key: each for key in places for each in [self._entries(key, places[key])] if each}
            if not found:
                self._closed.wait(min(patience, self._patience))
        return [
            (keys[key][0], _entry(place, fields, keys[key][1])) for key, rows in found.items() for place, fields in rows
        ]

    def reports(self, device: int, order_id: bytes, after: bytes, patience: float) -> list[tuple[bytes, bytes]]:
        """Return the reports on an order behind a place (b"0" for the beginning), each with its place.

        Waits up to ``patience`` seconds, or less, until there is one. An order that nobody knows (any more) has none.
        """
        key = self.keyspace.key(partition_of(device, self.partitions), report_key(order_id)).encode()
        with self.keyspace.asking():
            rows = self._read({key: after}, patience).get(key, [])
        return [(place, fields[b"report"]) for place, fields in rows if b"report" in fields]

    def close(self) -> None:
        """Let go of the connections, and of who waits."""
        self._closed.set()
        self.keyspace.close()

    def _read(self, places: Mapping[bytes, bytes], patience: float) -> dict[bytes, list[tuple[bytes, Any]]]:
        client, patience = self.keyspace.client, min(patience, self._patience)
        if self._blocks and patience > 0:
            with self.keyspace.asking(but=ResponseError):
                return by_key(client.xread(dict(places), count=PAGE, block=max(1, round(patience * 1000))))
        with self.keyspace.asking(but=ResponseError):
            pipe = client.pipeline(transaction=False)
            for key, place in places.items():
                pipe.xread({key: place}, count=PAGE)
            found = {key: rows for answer in pipe.execute() for key, rows in by_key(answer).items()}
        if not found and patience > 0:
            self._closed.wait(patience)
        return found

    def _entries(self, key: bytes, place: bytes) -> list[tuple[bytes, Any]]:
        """Read a single mailbox; one that cannot be read has nothing, which is told."""
        with self.keyspace.asking(but=ResponseError):
            try:
                rows = by_key(self.keyspace.client.xread({key: place}, count=PAGE)).get(key, [])
            except ResponseError as error:
                if self._told.get(key) != str(error):
                    self._told[key] = str(error)
                    log.error("%s: the mailbox %a cannot be read: %a", self.keyspace, key.decode(), str(error))
                return []
        self._told.pop(key, None)
        return rows


def by_key(answer: Any) -> dict[bytes, list[tuple[bytes, Any]]]:
    """Return the rows by stream, of an answer to XREAD in either version of Redis' protocol."""
    if isinstance(answer, dict):
        return {key: [row for rows in pages for row in rows] for key, pages in answer.items()}
    return dict(answer or ())


def _entry(place: bytes, fields: Mapping[bytes, bytes], urgent: bool) -> Entry:
    order_id = fields.get(b"id", b"")
    posted = int(place.partition(b"-")[0]) / 1000
    return Entry(place, posted, order_id if len(order_id) == ORDER_ID else b"", fields.get(b"order", b""), urgent)
