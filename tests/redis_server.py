"""A redis-server for tests."""

from contextlib import closing, contextmanager

import redis

from srup.bench import redisserver

from .programs import need


class RedisServer(redisserver.RedisServer):
    """With a client that looks behind the back of those that are tested."""

    def __init__(self, folder, **settings):
        need("redis-server")
        super().__init__(folder, **settings)
        self.client = redis.Redis(port=self.port)


@contextmanager
def redis_server(folder, **settings):
    """A server in ``folder``, which is made; stopped in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, **settings)
    with closing(server.client), server:
        yield server
