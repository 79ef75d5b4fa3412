"""A server that prints the temperatures of its devices, and makes a device blink that is too warm.

Set SERVER_FOLDER to a folder with server.pem and the folder devices/, and BROKER to the broker's URL.
"""

import os
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("SERVER_FOLDER", "."))
LIMIT = float(os.environ.get("LIMIT", "60"))  # degrees Celsius

server = srup.Server(
    0x5E,
    srup.PrivateKey.load(FOLDER / "server.pem"),
    devices=srup.KeyRing.load(FOLDER / "devices"),
    broker=os.environ.get("BROKER", "mqtt://localhost:1883"),
    store=FOLDER / "server.db",
)


@server.on_data("temperature", "double")
def heard(device: int, name: str, value: float) -> None:
    """Print a value; a handler must not wait for the device's answer, and does not."""
    print(f"{device:x}: {value:.1f} degrees", flush=True)
    if value > LIMIT:
        server.action(device, 3, lifetime=60)


server.run()
