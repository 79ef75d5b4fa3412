"""The vocabulary of every flow: in this state, when this comes, go to that state and do this.

What comes is a message class, the status of a Response, or a :class:`Trigger`; what is done is the name of a method of
the flow that the row belongs to.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from ..messages import Message
from ..wire import Status

__all__ = ["Cause", "ExchangeStart", "State", "Table", "Transition", "Trigger"]


class State(Enum):
    """The base of states and triggers. Members are hashed in one step, for every row of a table is found so."""

    __hash__ = object.__hash__


class Trigger(State):
    """What drives an exchange besides messages: its owner's decisions, and time."""

    ANSWER = "the owner answers"
    ALLOW = "the owner lets it happen"
    SHOW = "the value that the device is to show is made"
    WITHDRAW = "the device began another join, or is gone"
    OBEYED = "the device did as it was told"
    TOLD = "the device was told, and answers nothing"
    CONFIRM = "the partner has it for good"
    FETCHED = "the file is there and its digest is right"
    FETCH_FAILED = "the file is not to be had"
    ACTIVATE = "the operator says so"
    CANCEL = "the operator takes the order back"
    SUPERSEDE = "a newer order has come"
    ACTIVATED = "the firmware is active"
    ACTIVATION_FAILED = "the firmware is not active"
    LEAVE = "the membership ends"
    RESTART = "the process has started again"
    EXPIRE = "the time is over"


Cause = type[Message] | Status | Trigger
"""What a row waits for."""


class Transition(NamedTuple):
    """A row's outcome: the next state and the name of the effect, which makes the outputs ("" for none)."""

    state: Enum
    effect: str = ""


Table = Mapping[tuple[Enum, Cause], Transition]


class ExchangeStart(NamedTuple):
    """A message that begins an exchange: its first state, whether only members may send it, whether it is remembered.

    What is not remembered has no answers and costs no memory; a retransmission of it would be taken for a new one.
    """

    state: Enum
    members_only: bool = True
    remembered: bool = True
