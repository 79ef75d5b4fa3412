"""What devices and servers alike can do: actions, values, receipts and changes of keys go both ways."""

from typing import Final

from .engine import Session, command
from .fastpath import FastPath
from .flow import Flow
from .flows.action import Actions
from .flows.data import Values
from .flows.key_rotation import KeyRotations
from .flows.receipts import Receipts

__all__ = ["COMMON_FLOWS", "CommonSession"]

COMMON_FLOWS: Final[tuple[type[Flow], ...]] = (Actions, Values, Receipts, KeyRotations)


class CommonSession(Session):
    """A session with the flows of both ends."""

    flow_types = COMMON_FLOWS
    fast_path: FastPath | None = None
    """Takes ordinary values, in roles that hear many."""

    action = command(Actions, Actions.action)
    answer_action = command(Actions, Actions.answer_action)
    data = command(Values, Values.data)
    check_data = command(Values, Values.check_data)
    confirmed_data = command(Values, Values.confirmed_data)
    may_send_confirmed = command(Values, Values.may_send_confirmed)
    refuse_data = command(Values, Values.refuse_data)
    receipts_due = command(Receipts, Receipts.receipts_due)
    receipt = command(Receipts, Receipts.receipt)
    rotate = command(KeyRotations, KeyRotations.rotate)
    answer_key = command(KeyRotations, KeyRotations.answer_key)
