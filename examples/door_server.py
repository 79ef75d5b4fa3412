"""The server of a door: a person compares words before a lock may join; `open` and `close` are typed.

Set SERVER_FOLDER to a folder with server.pem and the folder devices/, and BROKER to the broker's URL.
"""

import os
import queue
from pathlib import Path

import srup

FOLDER = Path(os.environ.get("SERVER_FOLDER", "."))
DOOR = 0xD0
COMMANDS = {"open": 1, "close": 2}
waiting: queue.SimpleQueue[srup.PendingJoin] = queue.SimpleQueue()

server = srup.Server(
    0x5E,
    srup.PrivateKey.load(FOLDER / "server.pem"),
    devices=srup.KeyRing.load(FOLDER / "devices"),
    broker=os.environ.get("BROKER", "mqtt://localhost:1883"),
    store=FOLDER / "server.db",
    admission="human",
)
server.on_moderation(waiting.put)  # a handler must not wait for a person, so the join waits in a queue

with server:
    try:
        if DOOR not in server.members:
            join = waiting.get()
            print(f"The lock must show: {join.value.words}", flush=True)
            if input("Does it? yes or no: ") == "yes":
                join.accept()
            else:
                join.refuse()
        while command := input("open, close, or nothing to end: "):
            if command in COMMANDS:
                try:
                    print(server.action(DOOR, COMMANDS[command], lifetime=10).result().name, flush=True)
                except srup.SrupError as error:
                    print(f"not done: {error}", flush=True)
    except (KeyboardInterrupt, EOFError):
        pass
