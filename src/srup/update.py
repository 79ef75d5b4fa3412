"""What an update order is, and where it stands (docs/protocol/flows.md#updates)."""

import re
from enum import Enum
from typing import Final

from .errors import EncodeError
from .messages import Initiate
from .urls import Address
from .versions import MAX_VERSION
from .wire import Status

__all__ = [
    "FETCH_FAILURES",
    "MAX_REASON",
    "RestartPending",
    "UpdateState",
    "check_order",
    "is_digest",
]

MAX_REASON: Final = 400
"""The most characters of a text that says why an update failed; a longer one is cut."""


class RestartPending(Exception):
    """Raised by a handler of ``on_activate``: the new firmware is in place and runs after a restart, which comes soon.

    The server is told nothing yet. After the restart the handler is called again, with ``handling.again`` set, and its
    result is the answer. The device needs a store for that.
    """


class UpdateState(Enum):
    """Where an update stands; the device and the server see the same names."""

    __hash__ = object.__hash__  # in one step, for every row of a session's table is found so

    NEW = "nothing happened yet"
    FETCHING = "the device is to fetch the file"
    READY = "the device has the file and has checked it"
    ACTIVATING = "the device is to activate it"
    ACTIVATED = "the firmware is active"
    FAILED = "the device reported why not, or the order does not stand any more"
    UNANSWERED = "the time is over"
    UNCONFIRMED = "the device was told to activate it, and does not say what came of it"


FETCH_FAILURES: Final = (
    Status.UPDATE_FAIL_HTTP_ERROR,
    Status.UPDATE_FAIL_SERVER,
    Status.UPDATE_FAIL_FILE,
    Status.UPDATE_FAIL_DIGEST,
)

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Return whether this is a SHA-256 as in Initiate: 64 lower-case hex digits (docs/protocol/flows.md#f-59)."""
    return _DIGEST.fullmatch(text) is not None


def check_order(url: str, digest: str, version: int | None = None) -> None:
    """Raise EncodeError or ValueError for an order that no device can take; both ends look at it in this way.

    The URL must be one of http or https, as :class:`srup.urls.Address` reads it, ``digest`` a SHA-256 as 64 lower-case
    hex digits, ``version`` a number from 0 to 10**18 - 1.
    """
    Initiate(sequence_id=1, sender_id=0, token=b"-", url=url, digest=digest)
    try:
        Address.parse(url)
    except ValueError as error:
        raise EncodeError("url", f"it {error}") from None
    if not is_digest(digest):
        raise EncodeError("digest", "expected a SHA-256 as 64 lower-case hex digits")
    if version is not None and (type(version) is not int or not 0 <= version <= MAX_VERSION):
        raise ValueError(f"version must be an int from 0 to {MAX_VERSION}, not {version!r}")
