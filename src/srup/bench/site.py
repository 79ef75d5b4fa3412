"""What the processes of a benchmark know about each other: a folder with one JSON file, keys, firmware and ledgers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

__all__ = ["FIRST_DEVICE", "SERVER", "Site"]

SERVER: Final = 0x5E
FIRST_DEVICE: Final = 0x10000
_FILE: Final = "site.json"


@dataclass(frozen=True)
class Site:
    """One installation. ``url`` and ``digest`` are the firmware's; ``pool`` is how many keys the devices share."""

    folder: Path
    flash: Path
    """Where the devices keep what they fetch, each in a folder of its own."""
    broker: str
    url: str
    digest: str
    pool: int
    drop_every: int = 0
    """The server's application loses one value in so many: to see whether the benchmark sees it. 0 is none."""

    @property
    def server_key(self) -> Path:
        """The server's private key; its public one has ``.pub`` behind it."""
        return self.folder / "server.pem"

    @property
    def devices(self) -> Path:
        """The folder with the public keys of all devices, as ``srup server --devices`` takes it."""
        return self.folder / "devices"

    @property
    def ledgers(self) -> Path:
        """Where each server process writes down what it has done."""
        return self.folder / "ledgers"

    @property
    def state(self) -> Path:
        """A folder for what a server stores; it is empty when a run begins."""
        return self.folder / "state"

    def device_key(self, device: int) -> Path:
        """The private key of a device, which it shares with others."""
        return self.folder / "pool" / f"{device % self.pool}.pem"

    def firmware(self, device: int) -> Path:
        """The folder for what a device fetches."""
        return self.flash / f"{device:x}"

    def save(self) -> Path:
        """Write the file that :meth:`load` reads."""
        path = self.folder / _FILE
        path.write_text(json.dumps(asdict(self), default=str))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` has written."""
        values = json.loads(Path(path).read_text())
        return cls(**{**values, "folder": Path(values["folder"]), "flash": Path(values["flash"])})
