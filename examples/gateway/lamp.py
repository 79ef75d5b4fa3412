"""A lamp of the away network. It knows nothing of the syndication: its own server commands it.

FOLDER has its key and the public key of the away server.
"""

import os
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("FOLDER", "."))

lamp = srup.Device(
    0xC1,
    srup.PrivateKey.load(FOLDER / "lamp.pem"),
    server=0xA2,
    server_key=srup.PublicKey.load(FOLDER / "away.pem.pub"),
    broker=os.environ.get("AWAY_BROKER", "mqtt://localhost:1884"),
    store=FOLDER / "lamp.db",
    firmware=FOLDER / "firmware",
    description="a lamp",
)


@lamp.on_action(1)
def switch_on(server: int) -> None:
    """Switch on; here, say so."""
    print("the lamp is on", flush=True)


lamp.run()
