"""A worker process that is killed at the commit with which it takes an order: just before it, or just after."""

import os
import signal
import sys
from pathlib import Path

from srup import KeyRing, PrivateKey
from srup.agent import worker as module
from srup.agent.worker import Worker

from .fleet import SERVER


def main(moment, redis, broker, ttl, folder):
    commit_many = module.commit_many

    def commit(work):
        takes = any(changes.reports for _, changes in work)
        if takes and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        errors = commit_many(work)
        if takes:
            assert not any(errors)
            os.kill(os.getpid(), signal.SIGKILL)
        return errors

    module.commit_many = commit
    key = PrivateKey.load(Path(folder) / "server.pem")
    devices = KeyRing.load(Path(folder) / "keys")
    Worker(SERVER, key, devices=devices, broker=broker, store=redis, ttl=float(ttl)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
