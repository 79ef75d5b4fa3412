"""Somebody else's count: ``mosquitto_sub`` hears everything that the broker carries, and knows nothing of srup."""

import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ..transport.topics import EVERYTHING
from .processes import BenchError, Process

__all__ = ["Witness", "find_witness"]

_TYPE: Final = slice(2, 4)  # of a message in hex: the second byte (WIRE.md)


def find_witness() -> str:
    """The path of mosquitto_sub; BenchError if it is not installed."""
    path = shutil.which("mosquitto_sub")
    if path is None:
        raise BenchError("mosquitto_sub, the independent counter, is not installed (apt install mosquitto-clients)")
    return path


class Witness(Process):
    """One mosquitto_sub on everything; ``counts`` has the messages by type, the two hex digits of WIRE.md."""

    def __init__(self, broker: str, folder: Path) -> None:
        port = urlsplit(broker).port
        command = [find_witness(), "-p", str(port), "-i", "witness", "-q", "1", "-t", EVERYTHING, "-F", "%x"]
        super().__init__("mosquitto_sub", command, folder)
        self.counts: Counter[str] = Counter()
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        try:
            while True:
                self.counts[self.hear()[_TYPE]] += 1
        except (BenchError, ValueError):  # it has ended; ValueError: and its pipe is closed
            pass
