"""The away server: its owner has lamps, and decides which of them another owner may see, and what he may do.

FOLDER has its key and the public keys of the gateway and of the lamp.
"""

import os
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("FOLDER", "."))
GATEWAY, LAMP = 0xB2, 0xC1
AGREED = b"0123456789abcdef0123456789abcdef"
SWITCH_ON = 1

away = srup.SyndicationServer(
    0xA2,
    srup.PrivateKey.load(FOLDER / "away.pem"),
    devices=srup.KeyRing(
        {
            GATEWAY: srup.PublicKey.load(FOLDER / "gateway-away.pem.pub"),
            LAMP: srup.PublicKey.load(FOLDER / "lamp.pem.pub"),
        }
    ),
    broker=os.environ.get("AWAY_BROKER", "mqtt://localhost:1884"),
    store=FOLDER / "away.db",
    syndication_devices=[GATEWAY],
)


@away.on_syndication_request
def decide(device: int, value: bytes) -> list[int] | bool:
    """Share the lamp with whoever knows the value."""
    return [LAMP] if value == AGREED else False


@away.on_syndicated_action
def moderate(device: int, target: int, action_id: int) -> bool:
    """Let the other owner switch the lamp on, and nothing else."""
    return action_id == SWITCH_ON


away.run()
