"""What one server keeps in Redis, under which keys, and how Redis is asked: every error of it becomes a StoreError.

=============================  =======  ==================================================================
``{srup:5e}:meta``             hash     version, store id, number of partitions; ``ready`` when all was made
``{srup:5e}:workers``          zset     live workers, by the time (Redis' own clock, ms) when they count as dead
``{srup:5e:7}:meta``           hash     partition 7: version, store id, lease epoch, number of the last commit, ...
``{srup:5e:7}:lease``          string   its holder and epoch; ends by itself
``{srup:5e:7}:partners``       hash     windows and sequence ids
``{srup:5e:7}:busy``           set      the partners that have entries
``{srup:5e:7}:entries:<hex>``  hash     exchanges, inbox and outbox of one partner
``{srup:5e:7}:keys``           hash     and ``barred`` (set), ``facts`` (hash), ``audit`` (zset by time)
``{srup:5e:7}:orders``         stream   what was ordered from outside and not taken yet (srup.store.mailbox)
``{srup:5e:7}:order:<id>``     stream   what became of such an order; ends by itself
=============================  =======  ==================================================================

Server 5e is the example. What stands in braces is the hash tag of Redis Cluster: a partition is in one slot, so that
one script can touch all of it.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from typing import Any, Final, NamedTuple

from ..errors import StoreError
from .partition import PARTITIONS

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, RedisError, ResponseError
    from redis.retry import Retry
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(f"{missing}: state in Redis needs the extra srup[redis]", name=missing.name) from None

__all__ = ["VERSION", "Keyspace", "Script"]

VERSION: Final = 1
"""Of the layout of keys and values."""

_CREATE: Final = """
local id = redis.call('HGET', KEYS[1], 'id')
if not id then
    redis.call('HSET', KEYS[1], 'version', ARGV[2], 'id', ARGV[1], 'epoch', 0, 'commit', 0, 'digest', '', 'partners', 0)
    id = ARGV[1]
end
return id
"""


class Script:
    """A Lua script: atomic, and known to Redis by its digest once it ran there."""

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self.sha: Final = sha1(text.encode(), usedforsecurity=False).hexdigest()


class Call(NamedTuple):
    """One run of a script, with a command that is to follow it on the same connection, or none."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Any]
    then: Sequence[str | int] = ()


class Keyspace:
    """The keys of server ``owner`` in the Redis at a URL (``redis://``, ``rediss://``, ``unix://``), or of a client.

    A client, also a ``redis.RedisCluster``, must give bytes (``decode_responses=False``). One that is made here waits
    ``timeout`` seconds for an answer and repeats a request once when the connection broke; whatever is asked here can
    be asked again.
    """

    def __init__(self, client_or_url: Any, owner: int, *, timeout: float = 2.0) -> None:
        self.owner: Final = owner
        self._own = isinstance(client_or_url, str)
        if self._own:
            try:
                self.client: Any = redis.Redis.from_url(
                    client_or_url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 1)
                )
            except ValueError as error:
                raise StoreError(f"this is no address of a Redis: {error}") from None
        else:
            self.client = client_or_url
            if self.client.get_encoder().decode_responses:
                raise ValueError("the Redis client must return bytes: decode_responses=False")

    @property
    def meta(self) -> str:
        """The key of what holds for all partitions."""
        return f"{{srup:{self.owner:x}}}:meta"

    @property
    def workers(self) -> str:
        """The key of the live workers."""
        return f"{{srup:{self.owner:x}}}:workers"

    def key(self, partition: int, name: str) -> str:
        """The key of a part of a partition."""
        return f"{{srup:{self.owner:x}:{partition}}}:{name}"

    def __str__(self) -> str:
        pool = getattr(self.client, "connection_pool", None)
        where = getattr(pool, "connection_kwargs", {})
        if "path" in where:
            return f"Redis at {where['path']}"
        return f"Redis at {where['host']}:{where.get('port', 6379)}" if "host" in where else "Redis"

    @contextmanager
    def asking(self, *, but: type[RedisError] | tuple[()] = ()) -> Iterator[None]:
        """Turn what Redis and the link to it raise into StoreError; ``but`` one kind of error, for who can use it."""
        try:
            yield
        except but:
            raise
        except RedisError as error:
            raise self.error(error) from None

    def error(self, error: RedisError) -> StoreError:
        """The StoreError for an error of Redis, or of the link to it."""
        return StoreError(f"{self}: {str(error) or type(error).__name__}")

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script and return its answer."""
        with self.asking():
            try:
                return self.client.evalsha(script.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return self.client.eval(script.text, len(keys), *keys, *arguments)

    def run_all(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts in one round trip; the answer of each, or its StoreError; with ``then``, a pair of answers."""
        answers = self._pipelined(calls, "EVALSHA", lambda script: script.sha)
        unknown = [number for number, answer in enumerate(answers) if isinstance(_first(answer), NoScriptError)]
        if unknown:
            again = self._pipelined([calls[number] for number in unknown], "EVAL", lambda script: script.text)
            for number, answer in zip(unknown, again, strict=True):
                answers[number] = answer
        return [
            tuple(self._checked(each) for each in answer) if isinstance(answer, tuple) else self._checked(answer)
            for answer in answers
        ]

    def _pipelined(self, calls: Sequence[Call], command: str, text: Callable[[Script], str]) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for call in calls:
            # Not pipe.evalsha: redis-py's client of clusters refuses to pipeline that, though a script is in one slot.
            pipe.execute_command(command, text(call.script), len(call.keys), *call.keys, *call.arguments)
            if call.then:
                pipe.execute_command(*call.then)
        try:
            answers = iter(pipe.execute(raise_on_error=False))
        except RedisError as error:
            return [(error, error) if call.then else error for call in calls]
        return [(next(answers), next(answers)) if call.then else next(answers) for call in calls]

    def _checked(self, answer: Any) -> Any:
        return self.error(answer) if isinstance(answer, RedisError) else answer

    def create(self, partitions: int = PARTITIONS) -> bytes:
        """Set up this server's state, empty; return the new store's id (16 bytes).

        StoreError when there is one already, or what is left of one. A creation that was interrupted is completed.
        """
        if partitions not in range(1, 1 << 16):
            raise ValueError(f"partitions are 1 to 65535, not {partitions!r}")
        with self.asking():
            self.client.hsetnx(self.meta, "id", secrets.token_bytes(16))
            store, ready = self.client.hmget(self.meta, "id", "ready")
            if ready:
                raise StoreError(f"{self} holds the state of server {self.owner:x} already")
            self.client.hset(self.meta, mapping={"version": VERSION, "partitions": partitions})
        for partition in range(partitions):
            found = self.run(Script(_CREATE), [self.key(partition, "meta")], [store, VERSION])
            if found != store:
                raise StoreError(
                    f"{self} holds what is left of another store of server {self.owner:x}: partition {partition}, "
                    f"store {found.hex()}; restore the rest of it, or delete all keys that begin with "
                    f"{{srup:{self.owner:x}"
                )
        with self.asking():
            self.client.hset(self.meta, "ready", 1)
        return bytes(store)

    def describe(self) -> tuple[bytes, int]:
        """Return the store's id and its number of partitions; StoreError when there is none, or a newer one."""
        with self.asking():
            version, store, partitions, ready = self.client.hmget(self.meta, "version", "id", "partitions", "ready")
        if not (version and store and partitions and ready):
            raise StoreError(self.missing())
        if int(version) != VERSION:
            raise StoreError(f"{self}: the state of server {self.owner:x} is of version {int(version)}, not {VERSION}")
        return bytes(store), int(partitions)

    def missing(self) -> str:
        """What to say when the state is not there."""
        return (
            f"{self} holds no state for server {self.owner:x}: either it was never set up (srup store create), or it "
            "has lost its data; then restore it, for an empty store accepts again whatever was captured before"
        )

    def setting(self, name: str) -> str | None:
        """A setting of the Redis server; None when it does not tell."""
        with self.asking():
            try:
                found: dict[Any, Any] = self.client.config_get(name)
            except ResponseError:  # not everybody may ask: NOPERM, or a command that was taken away
                return None
        values = [value for key, value in found.items() if key in (name, name.encode())]
        return None if not values else values[0].decode() if isinstance(values[0], bytes) else str(values[0])

    def close(self) -> None:
        """Close the connections that were made here."""
        if self._own:
            self.client.close()


def _first(answer: Any) -> Any:
    return answer[0] if isinstance(answer, tuple) else answer
