"""The gateway: a device of home that is a member of the away network, too. Only contents cross, never signatures.

FOLDER has its two keys, one for each network, and the public keys of both servers.
"""

import os
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("FOLDER", "."))

gateway = srup.SyndicationDevice(
    0xB1,
    srup.PrivateKey.load(FOLDER / "gateway.pem"),
    server=0xA1,
    server_key=srup.PublicKey.load(FOLDER / "home.pem.pub"),
    broker=os.environ.get("HOME_BROKER", "mqtt://localhost:1883"),
    store=FOLDER / "gateway.db",
    firmware=FOLDER / "firmware",
)


@gateway.on_syndication_init
def enter(url: str) -> srup.AwayNetwork:
    """Say how to get into the away network, whose owner has registered this gateway as B2."""
    key = srup.PrivateKey.load(FOLDER / "gateway-away.pem")
    server_key = srup.PublicKey.load(FOLDER / "away.pem.pub")
    broker = os.environ.get("AWAY_BROKER", "mqtt://localhost:1884")
    return srup.AwayNetwork(0xB2, key, 0xA2, server_key, broker, "simple")


gateway.run()
