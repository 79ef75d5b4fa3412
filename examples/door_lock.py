"""A door lock: it joins when a person has compared twelve words, opens with action 1, and closes with action 2.

Set DEVICE_FOLDER to a folder with device.pem and server.pem.pub, and BROKER to the broker's URL.
"""

import os
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("DEVICE_FOLDER", "."))
STATE = FOLDER / "door"  # in the place of a motor

lock = srup.Device(
    0xD0,
    srup.PrivateKey.load(FOLDER / "device.pem"),
    server=0x5E,
    server_key=srup.PublicKey.load(FOLDER / "server.pem.pub"),
    broker=os.environ.get("BROKER", "mqtt://localhost:1883"),
    store=FOLDER / "device.db",  # an order to open counts once, even over a power cut
    firmware=FOLDER / "firmware",
    join="human",
    description="a door lock",
)


@lock.on_join_value
def show(value: srup.JoinValue) -> None:
    """Show what the person at the server compares."""
    print(f"words: {value.words}", flush=True)


@lock.on_joined
def joined() -> None:
    """Say that the lock may be used."""
    print("joined", flush=True)


@lock.on_action(1)
def unlock(server: int) -> None:
    """Open; an exception here would be answered ACTION_FAIL."""
    STATE.write_text("open\n")


@lock.on_action(2)
def close(server: int) -> None:
    """Close."""
    STATE.write_text("closed\n")


lock.run()
