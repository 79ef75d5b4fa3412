"""Somebody else's count: ``mosquitto_sub`` hears everything that the broker carries, and knows nothing of srup."""

import shutil
import threading
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ..transport.topics import EVERYTHING
from .processes import BenchError, Process
from .site import SERVER

__all__ = ["Witness", "find_witness"]

# Parts of a message in hex (docs/protocol/wire-format.md#every-message).
_TYPE: Final = slice(2, 4)
_SENDER: Final = slice(20, 36)
_DATA: Final = "05"
_SERVER: Final = SERVER.to_bytes(8, "little").hex()


def find_witness() -> str:
    """The path of mosquitto_sub; BenchError if it is not installed."""
    path = shutil.which("mosquitto_sub")
    if path is None:
        raise BenchError("mosquitto_sub, the independent counter, is not installed (apt install mosquitto-clients)")
    return path


class Witness(Process):
    """One mosquitto_sub on everything; ``values`` is how many Data messages of devices it has heard."""

    def __init__(self, broker: str, folder: Path) -> None:
        port = urlsplit(broker).port
        command = [find_witness(), "-p", str(port), "-i", "witness", "-q", "1", "-t", EVERYTHING, "-F", "%x"]
        super().__init__("mosquitto_sub", command, folder)
        self.values = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        try:
            while True:
                message = self.hear()
                self.values += message[_TYPE] == _DATA and message[_SENDER] != _SERVER
        except (BenchError, ValueError):  # it has ended; ValueError: and its pipe is closed
            pass
