"""A web server whose devices are commanded and read over HTTP: `uvicorn fastapi_server:app`.

Set SERVER_FOLDER to a folder with server.pem and the folder devices/, and BROKER to the broker's URL. Whoever reaches
this server commands the devices: keep it on loopback, or add your own login.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException

import srup
from srup.aio import AsyncServer

FOLDER = Path(os.environ.get("SERVER_FOLDER", "."))
temperatures: dict[int, float] = {}

server = AsyncServer(
    0x5E,
    srup.PrivateKey.load(FOLDER / "server.pem"),
    devices=srup.KeyRing.load(FOLDER / "devices"),
    broker=os.environ.get("BROKER", "mqtt://localhost:1883"),
    store=FOLDER / "server.db",
)


@server.on_data("temperature", "double")
async def heard(device: int, name: str, value: float) -> None:
    """Keep the newest value of each device."""
    temperatures[device] = value


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Let the server live as long as the web server."""
    async with server:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/devices")
async def devices() -> dict[str, float | None]:
    """Return the members by identity, each with its newest temperature."""
    return {f"{device:x}": temperatures.get(device) for device in server.members}


@app.post("/devices/{identity}/actions/{number}")
async def act(identity: str, number: int) -> dict[str, str]:
    """Let a device do an action, and return what it answers."""
    try:
        status = await server.action(int(identity, 16), number, lifetime=10)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    except srup.UnansweredError as error:
        raise HTTPException(504, str(error)) from None
    except srup.SrupError as error:
        raise HTTPException(409, str(error)) from None
    return {"status": status.name}
