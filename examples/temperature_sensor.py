"""A device that measures the temperature every minute, and blinks when it is told to do action 3.

Set DEVICE_FOLDER to a folder with device.pem and server.pem.pub, and BROKER to the broker's URL.
"""

import logging
import os
import random
import threading
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("DEVICE_FOLDER", "."))
PERIOD = float(os.environ.get("PERIOD", "60"))  # seconds

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
device = srup.Device(
    int(os.environ.get("IDENTITY", "d1"), 16),
    srup.PrivateKey.load(FOLDER / "device.pem"),
    server=0x5E,
    server_key=srup.PublicKey.load(FOLDER / "server.pem.pub"),
    broker=os.environ.get("BROKER", "mqtt://localhost:1883"),
    store=FOLDER / "device.db",  # values wait here while the network is away
    firmware=FOLDER / "firmware",
    description="a temperature sensor",
)


def temperature() -> float:
    """Return degrees Celsius: those of the processor on a Raspberry Pi, or invented ones."""
    sensor = Path("/sys/class/thermal/thermal_zone0/temp")
    return int(sensor.read_text()) / 1000 if sensor.exists() else 20 + random.random()


@device.on_action(3)
def blink(server: int) -> None:
    """Switch a lamp on and off; here, say so."""
    print("blinking", flush=True)


stop = threading.Event()
with device:
    try:
        device.wait_joined()
        while not stop.wait(PERIOD):
            device.send("temperature", temperature())
    except KeyboardInterrupt:
        pass
