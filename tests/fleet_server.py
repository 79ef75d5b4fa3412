"""A server with an SQLite database that is killed at the commit with which it takes an order: just before, or after.

Run as a program: the moment (or "never"), the database, the broker, the folder with its key and those of devices.
"""

import os
import signal
import sys
from pathlib import Path

from srup import KeyRing, PrivateKey, Server, SqliteStore

from .fleet import SERVER


class KilledStore(SqliteStore):
    """The process ends at the first commit that takes an order."""

    moment = "never"

    def commit(self, changes):
        takes = any(report.entry for report in changes.reports)
        if takes and self.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit(changes)
        if takes and self.moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)


def main(moment, database, broker, folder):
    KilledStore.moment = moment
    key = PrivateKey.load(Path(folder) / "server.pem")
    devices = KeyRing.load(Path(folder) / "devices")
    with Server(SERVER, key, devices=devices, broker=broker, store=KilledStore(database)) as server:
        print("running", flush=True)
        server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
