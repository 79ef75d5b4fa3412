"""What one server keeps in Redis, under which keys, and how Redis is asked: every error of it becomes a StoreError.

=============================  =======  ==================================================================
``{srup:5e}:meta``             hash     version, store id, number of partitions; ``ready`` when all was made
``{srup:5e}:workers``          zset     live workers, by the time (Redis' own clock, ms) when they count as dead
``{srup:5e}:campaigns:head``   hash     store id and number of saves; ``records`` and ``documents`` (hashes by name)
``{srup:5e}:campaigns:posts``  stream   orders of campaigns on their way to the mailboxes
``{srup:5e}:campaigns:lease``  string   who carries campaigns out; ends by itself
``{srup:5e}:campaign:<name>``  hash     the devices of a campaign
``{srup:5e:7}:meta``           hash     partition 7: version, store id, lease epoch, number of the last commit, ...
``{srup:5e:7}:lease``          string   its holder and epoch; ends by itself
``{srup:5e:7}:partners``       hash     windows and sequence ids
``{srup:5e:7}:busy``           set      the partners that have entries
``{srup:5e:7}:entries:<hex>``  hash     exchanges, inbox and outbox of one partner
``{srup:5e:7}:keys``           hash     and ``barred`` (set), ``facts`` (hash), ``audit`` (zset by time)
``{srup:5e:7}:signers``        hash     the keys that have signed what the audit keeps, by fingerprint
``{srup:5e:7}:orders``         stream   what was ordered from outside and not taken yet (srup.store.mailbox)
``{srup:5e:7}:urgent``         stream   those of them that are carried out first, under the same ids
``{srup:5e:7}:order:<id>``     stream   what became of such an order; ends by itself
=============================  =======  ==================================================================

Server 5e is the example. What stands in braces is the hash tag of Redis Cluster: a partition is in one slot, so that
one script can touch all of it.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha1
from typing import Any, Final, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from ..errors import StoreError
from ..files import complaint
from .bounds import check_int
from .partition import MAX_PARTITIONS, PARTITIONS

__all__ = ["VERSION", "Keyspace", "Script", "Settings"]

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


_REMEDIES: Final[dict[type[Exception], str]] = {
    ReadOnlyError: "it is a replica now: the next attempt connects anew, to whoever is behind this address then",
    MovedError: "it is a node of a cluster: give a URL, or a redis.RedisCluster",
    ClusterDownError: "the cluster does not serve all slots: redis-cli --cluster check says why",
    RedisClusterException: "redis-cli --cluster check says what is wrong with the cluster",
    NoPermissionError: "docs/deployment.md has the ACL that is needed",
}

_WRONG_NODE: Final = (ReadOnlyError, MovedError, ClusterDownError)


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


class Settings(NamedTuple):
    """What decides about a Redis server whether it keeps what it has confirmed; None for what it does not tell."""

    eviction: str  # maxmemory-policy
    append: bool  # appendonly
    sync: str | None  # appendfsync

    @property
    def durable(self) -> bool:
        """Whether what was confirmed survives a power loss, by these settings alone."""
        return self.append and self.sync == "always"


class Keyspace:
    """The keys of server ``owner`` in the Redis at a URL (``redis://``, ``rediss://``, ``unix://``), or of a client.

    A URL may name any node of a Redis Cluster; which one it is, is asked when it is first needed.

    A client, also a ``redis.RedisCluster``, must give bytes (``decode_responses=False``). One that is made here waits
    ``timeout`` seconds for an answer and repeats a request once when the connection broke; whatever is asked here can
    be asked again.
    """

    def __init__(self, client_or_url: Any, owner: int, *, timeout: float = 2.0) -> None:
        self.owner: Final = owner
        self._own = isinstance(client_or_url, str)
        if self._own:
            self._url = client_or_url
            self._options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
            try:
                self._single: Any = redis.Redis.from_url(self._url, retry=Retry(NoBackoff(), 1), **self._options)
                self._single.connection_pool.connection_kwargs.get("host", "").encode("idna")  # as sockets will
            except ValueError as error:
                raise StoreError(f"this is no address of a Redis: {error}") from None
        else:
            self._single = client_or_url
            if self._single.get_encoder().decode_responses:
                raise ValueError("the Redis client must return bytes: decode_responses=False")

    @cached_property
    def client(self) -> Any:
        """The client: the one that was given, or one for the server at the URL, or for the cluster that it is of."""
        if not self._own or self._url.startswith("unix:"):
            return self._single
        with self.asking():
            if not self._single.info("cluster").get("cluster_enabled"):
                return self._single
            found = redis.RedisCluster.from_url(self._url, retry=Retry(NoBackoff(), 1), **self._options)
            self._single.close()
            return found

    @property
    def meta(self) -> str:
        """The key of what holds for all partitions."""
        return f"{{srup:{self.owner:x}}}:meta"

    @property
    def workers(self) -> str:
        """The key of the live workers."""
        return f"{{srup:{self.owner:x}}}:workers"

    def shared(self, name: str) -> str:
        """The key of a part that is not one partition's."""
        return f"{{srup:{self.owner:x}}}:{name}"

    def key(self, partition: int, name: str) -> str:
        """The key of a part of a partition."""
        return f"{{srup:{self.owner:x}:{partition}}}:{name}"

    def __str__(self) -> str:
        pool = getattr(self._single, "connection_pool", None)
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
        except (RedisError, RedisClusterException) as error:
            raise self.failed(error) from None

    def failed(self, error: Exception) -> StoreError:
        """Return the StoreError for an error of Redis, or of the link to it.

        Who answers that it is not, or no longer, the one that writes, is not asked again: the connections end, and the
        next ones lead to whoever stands behind the address then.
        """
        if isinstance(error, _WRONG_NODE):
            pool = getattr(self.__dict__.get("client"), "connection_pool", None)
            if pool is not None:
                pool.disconnect(inuse_connections=False)
        remedy = next((f"; {words}" for kind, words in _REMEDIES.items() if isinstance(error, kind)), "")
        return StoreError(f"{self}: {_in_words(error)}{remedy}")

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
        try:
            pipe = self.client.pipeline(transaction=False)
            for call in calls:
                # Not pipe.evalsha: redis-py's client of clusters refuses to pipeline that, even in one slot.
                pipe.execute_command(command, text(call.script), len(call.keys), *call.keys, *call.arguments)
                if call.then:
                    pipe.execute_command(*call.then)
            answers = iter(pipe.execute(raise_on_error=False))
        except (RedisError, RedisClusterException, StoreError) as error:
            return [(error, error) if call.then else error for call in calls]
        return [(next(answers), next(answers)) if call.then else next(answers) for call in calls]

    def _checked(self, answer: Any) -> Any:
        return self.failed(answer) if isinstance(answer, (RedisError, RedisClusterException)) else answer

    def create(self, partitions: int = PARTITIONS, *, volatile: bool = False) -> bytes:
        """Set up this server's state, empty; return the new store's id (16 bytes).

        StoreError when there is one already, or what is left of one, and when this Redis would lose it (see
        :meth:`check_settings`). A creation that was interrupted is completed.
        """
        check_int(self.owner, "owner", 0, (1 << 64) - 1)
        check_int(partitions, "partitions", 1, MAX_PARTITIONS)
        self.check_settings(self.meta, volatile=volatile)
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
        found = self.number(self.meta, "version", version)
        if found != VERSION:
            raise StoreError(f"{self}: the state of server {self.owner:x} is of version {found}, not {VERSION}")
        count = self.number(self.meta, "partitions", partitions)
        if not 1 <= count <= MAX_PARTITIONS:
            raise StoreError(f"{self}: {self.meta} is damaged: it has {count} partitions; restore it")
        return bytes(store), count

    def number(self, key: str, field: str, content: bytes) -> int:
        """Return the number in a field of a hash; StoreError when it is none."""
        try:
            return int(content)
        except ValueError:
            raise StoreError(f"{self}: {key} is damaged: {field} is {content!r:.80}; restore it") from None

    def missing(self) -> str:
        """What to say when the state is not there."""
        return (
            f"{self} holds no state for server {self.owner:x}: either it was never set up (srup store create), or it "
            "has lost its data; then restore it, for an empty store accepts again whatever was captured before"
        )

    def check_settings(self, key: str, *, volatile: bool = False) -> Settings:
        """Return the settings of the server that has ``key``; StoreError if it is one that loses what it has confirmed.

        ``volatile`` lets one pass that has no persistence. What cannot be asked for counts as the worst.
        """
        with self.asking():
            node = self.client
            if isinstance(node, redis.RedisCluster):
                node = node.get_redis_connection(node.get_node_from_key(key))  # type: ignore[no-untyped-call]
            memory, persistence = node.info("memory"), node.info("persistence")
            try:
                sync = next(iter(node.config_get("appendfsync").values()), None)
            except ResponseError:  # not everybody may ask: NOPERM, or a command that was taken away
                sync = None
        settings = Settings(
            str(memory.get("maxmemory_policy", "unknown")),
            bool(persistence.get("aof_enabled", 0)),
            sync.decode() if isinstance(sync, bytes) else sync,
        )
        if settings.eviction != "noeviction":
            raise StoreError(
                f"{self} throws state and leases away when memory is short (maxmemory-policy {settings.eviction}): "
                f"{self._commands(('maxmemory-policy', 'noeviction'))}"
            )
        if not settings.append and not volatile:
            raise StoreError(
                f"{self} keeps nothing on disk that a crash would not lose (appendonly no): "
                f"{self._commands(('appendonly', 'yes'), ('appendfsync', 'always'))}"
            )
        return settings

    def _commands(self, *settings: tuple[str, str]) -> str:
        """What to do: the commands that set this, now and for good."""
        where: dict[str, Any] = getattr(getattr(self._single, "connection_pool", None), "connection_kwargs", {})
        at = f" -s {where['path']}" if "path" in where else ""
        if "host" in where:
            at = f" -h {where['host']} -p {where.get('port', 6379)}"
        commands = [f"redis-cli{at} config set {name} {value}" for name, value in settings]
        return f"run {'; '.join(commands)}; and write the same into its redis.conf"

    def close(self) -> None:
        """Close the connections that were made here."""
        if self._own:
            self._single.close()
            if "client" in self.__dict__:
                self.client.close()


def _first(answer: Any) -> Any:
    return answer[0] if isinstance(answer, tuple) else answer


def _in_words(error: Exception) -> str:
    """Return what an error says; for the link to Redis what the system says, without numbers and the address again."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, redis.ConnectionError) and isinstance(cause, OSError):
        return complaint(cause)
    return str(error) or type(error).__name__
