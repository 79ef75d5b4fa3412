"""The programs that some tests run, and what is said where one of them is not installed."""

import os
import shutil
from typing import Literal

import pytest

from srup.transport import LocalBroker

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
PACKAGES = {
    "mosquitto": "mosquitto",
    "mosquitto_sub": "mosquitto-clients",
    "redis-server": "redis-server",
    "cc": "gcc",
    "objdump": "binutils",
    "openssl": "openssl",
    "chromium": "chromium",
}
"""Debian's package of each."""


def need(program: str) -> str:
    """The path of a program; without it the test is skipped, or fails where SRUP_REQUIRE_PROGRAMS is set, as in CI."""
    path = shutil.which(program, path=PATH)
    if path is not None:
        return path
    missing = f"{program} is not installed: apt install {PACKAGES[program]}"
    if os.environ.get("SRUP_REQUIRE_PROGRAMS"):
        pytest.fail(missing)
    pytest.skip(missing)


def local_broker(kind: Literal["mosquitto", "amqtt"]) -> LocalBroker:
    """A broker of this kind that has not been started."""
    if kind == "mosquitto":
        need("mosquitto")
    return LocalBroker(kind)
