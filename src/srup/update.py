"""A firmware update as two tables, one for each end (FLOWS.md, "Update").

Rows read: in this state, when this comes, go to that state and do this. What comes is a message class, the status of a
Response, or one of the words in :class:`Word`; what is done is the name of a method of the session.
"""

import re
from enum import Enum
from typing import Final, NamedTuple

from .messages import Activate, Initiate, Message
from .wire import Status

__all__ = ["DEVICE_TABLE", "SERVER_TABLE", "Step", "Table", "Trigger", "UpdateState", "Word", "is_digest"]


class Word(Enum):
    """What drives an exchange besides messages: its owner's decisions, and time."""

    ANSWER = "the owner answers"
    ALLOW = "the owner lets it happen"
    SHOW = "the value that the device is to show is made"
    WITHDRAW = "the device began another join, or is gone"
    OBEYED = "the device did as it was told"
    CONFIRM = "the partner has it for good"
    FETCHED = "the file is there and its digest is right"
    FETCH_FAILED = "the file is not to be had"
    ACTIVATE = "the operator says so"
    ACTIVATED = "the firmware is active"
    ACTIVATION_FAILED = "the firmware is not active"
    LEAVE = "the membership ends"
    EXPIRE = "the time is over"


Trigger = type[Message] | Status | Word


class Step(NamedTuple):
    """A row's outcome: the next state and the name of the method that makes the outputs ("" for none)."""

    state: Enum
    effect: str = ""


Table = dict[tuple[Enum, Trigger], Step]


class UpdateState(Enum):
    """Where an update stands; the device and the server see the same names."""

    NEW = "nothing happened yet"
    FETCHING = "the device is to fetch the file"
    READY = "the device has the file and has checked it"
    ACTIVATING = "the device is to activate it"
    ACTIVATED = "the firmware is active"
    FAILED = "the device reported why not"
    UNANSWERED = "the time is over"


_S = UpdateState

FETCH_FAILURES: Final = (
    Status.UPDATE_FAIL_HTTP_ERROR,
    Status.UPDATE_FAIL_SERVER,
    Status.UPDATE_FAIL_FILE,
    Status.UPDATE_FAIL_DIGEST,
)

DEVICE_TABLE: Final[Table] = {
    (_S.NEW, Initiate): Step(_S.FETCHING, "begin_fetch"),
    (_S.NEW, Activate): Step(_S.FAILED, "refuse_activation"),  # for instance after a restart of the device
    (_S.FETCHING, Initiate): Step(_S.FETCHING, "same_order"),
    (_S.FETCHING, Word.FETCHED): Step(_S.READY, "answer"),
    (_S.FETCHING, Word.FETCH_FAILED): Step(_S.FAILED, "answer"),
    (_S.READY, Initiate): Step(_S.READY, "answer_same_order"),
    (_S.READY, Activate): Step(_S.ACTIVATING, "begin_activation"),
    (_S.ACTIVATING, Initiate): Step(_S.ACTIVATING, "same_order"),
    (_S.ACTIVATING, Activate): Step(_S.ACTIVATING),
    (_S.ACTIVATING, Word.ACTIVATED): Step(_S.ACTIVATED, "answer"),
    (_S.ACTIVATING, Word.ACTIVATION_FAILED): Step(_S.FAILED, "answer"),
    (_S.ACTIVATED, Initiate): Step(_S.ACTIVATED, "answer_same_order"),
    (_S.ACTIVATED, Activate): Step(_S.ACTIVATED, "repeat_answer"),  # a token activates once
    (_S.FAILED, Initiate): Step(_S.FAILED, "answer_same_order"),
    (_S.FAILED, Activate): Step(_S.FAILED, "refuse_activation"),
    (_S.FETCHING, Word.LEAVE): Step(_S.FAILED, "give_order_up"),
    (_S.READY, Word.LEAVE): Step(_S.FAILED, "give_order_up"),
    (_S.ACTIVATING, Word.LEAVE): Step(_S.FAILED),
    (_S.FETCHING, Word.EXPIRE): Step(_S.UNANSWERED),
    (_S.READY, Word.EXPIRE): Step(_S.UNANSWERED),
    (_S.ACTIVATING, Word.EXPIRE): Step(_S.UNANSWERED),
}
"""The device's side. A repeated order is a retransmission: it is answered again and never carried out again."""

SERVER_TABLE: Final[Table] = {
    (_S.FETCHING, Status.UPDATE_SUCCESS): Step(_S.READY, "update_ready"),
    **{(_S.FETCHING, status): Step(_S.FAILED, "update_changed") for status in FETCH_FAILURES},
    (_S.READY, Word.ACTIVATE): Step(_S.ACTIVATING, "send_activate"),
    (_S.READY, Status.UPDATE_SUCCESS): Step(_S.READY),
    (_S.ACTIVATING, Status.UPDATE_SUCCESS): Step(_S.ACTIVATING),
    (_S.ACTIVATING, Status.ACTIVATE_SUCCESS): Step(_S.ACTIVATED, "update_changed"),
    (_S.ACTIVATING, Status.ACTIVATE_FAIL): Step(_S.FAILED, "update_changed"),
    (_S.ACTIVATED, Status.ACTIVATE_SUCCESS): Step(_S.ACTIVATED),
    (_S.ACTIVATED, Status.UPDATE_SUCCESS): Step(_S.ACTIVATED),
    (_S.FAILED, Status.UPDATE_SUCCESS): Step(_S.FAILED),
    (_S.FAILED, Status.ACTIVATE_FAIL): Step(_S.FAILED),
    **{(_S.FAILED, status): Step(_S.FAILED) for status in FETCH_FAILURES},
    (_S.FETCHING, Word.EXPIRE): Step(_S.UNANSWERED, "update_changed"),
    (_S.READY, Word.EXPIRE): Step(_S.UNANSWERED, "update_changed"),
    (_S.ACTIVATING, Word.EXPIRE): Step(_S.UNANSWERED, "update_changed"),
}
"""The server's side. Deployed peers never answer an Activate: then ACTIVATING ends as UNANSWERED."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Tell whether this is a SHA-256 as Initiate carries it: 64 lower-case hex digits (WIRE.md, "Types")."""
    return _DIGEST.fullmatch(text) is not None
