"""The home server: its owner sees and commands lamps of another owner, through the gateway.

It begins a syndication, shows which lamps are shared, and switches the first of them on. FOLDER has the keys.
"""

import os
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("FOLDER", "."))
GATEWAY = 0xB1
AGREED = b"0123456789abcdef0123456789abcdef"  # the owners have agreed on it; away's recognises home's by it

home = srup.SyndicationServer(
    0xA1,
    srup.PrivateKey.load(FOLDER / "home.pem"),
    devices=srup.KeyRing({GATEWAY: srup.PublicKey.load(FOLDER / "gateway.pem.pub")}),
    broker=os.environ.get("HOME_BROKER", "mqtt://localhost:1883"),
    store=FOLDER / "home.db",
)


@home.on_member
def begin(device: int) -> None:
    """Begin when the gateway is there; the result comes later, so this does not wait for it."""
    if not home.shared_devices(device):
        home.syndicate(device, "https://away.example/KeyEx/register/", AGREED)


@home.on_shared
def shared(device: int, lamps: tuple[int, ...]) -> None:
    """Switch the first lamp on when the list is complete."""
    print("shared:", *(f"{lamp:x}" for lamp in lamps), flush=True)
    answer = home.syndicated_action(device, lamps[0], 1)
    answer.add_done_callback(lambda done: print(f"lamp {lamps[0]:x}:", done.exception() or done.result(), flush=True))


home.run()
