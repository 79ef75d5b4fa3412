"""What becomes of orders, told as it comes: what each has come to, what is waited for, what goes on without us."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any, Final

from rich.text import Text

import srup

from ..printable import printable
from .terminal import LONGEST_LINE, console, tell

__all__ = ["LATE", "follow", "told"]

LATE: Final = 3
"""The exit status of a command that waits no more for what is not over yet."""

_FAILED: Final = ("ACTION_UNKNOWN", "ACTION_FAIL", "JOIN_REFUSED")  # what an order came to that was answered
_AWAITED: Final = {
    "POSTED": "the server to take it",
    "TAKEN": "{device} to answer",
    "FETCHING": "{device} to download the firmware",
    "READY": "the firmware to be activated",
    "ACTIVATING": "{device} to activate the firmware",
}
"""What is waited for, by the state of an order."""


def told(posted: "srup.PostedOrder", report: "srup.OrderReport", as_json: bool) -> int:
    """Print a report; return the status of a command that ends with it."""
    if as_json:
        print(json.dumps({"id": posted.id} | json.loads(report.dump())), flush=True)
    else:
        came_to = f"{report.error}: {report.text}" if report.error is not None else report.value
        if report.kind == "identify" and report.over and not came_to:
            came_to = "(it has no description)"
        known = [posted.id, report.state, None if came_to == report.state else came_to]
        line = " ".join(printable(each, LONGEST_LINE, words=True) for each in known if each)
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(report.error is not None or report.value in _FAILED)


class _Awaited:
    """The line that says what is waited for, and since when."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._began = time.monotonic()
        self._what = ""

    def see(self, posted: "srup.PostedOrder", report: "srup.OrderReport") -> None:
        device = f"{posted.device:x}"
        self._what = _AWAITED.get(report.state, "the end").format(device=device)
        if report.kind == "send_data" and report.state == "TAKEN":
            self._what = f"{device} to have the value"
        self._left -= report.over

    def __rich__(self) -> Text:
        others = f"; {self._left - 1} more orders" if self._left > 2 else "; one more order" if self._left == 2 else ""
        return Text(f"waiting for {self._what}, {time.monotonic() - self._began:.0f} s{others}")


def follow(orders: Sequence["srup.PostedOrder"], timeout: float | None, as_json: bool) -> int:
    """Tell each report of each order; return 1 when one failed, LATE when one is not over in time, else 0."""
    awaited = _Awaited(len(orders))
    shown: Any = nullcontext()
    if console.is_terminal and not as_json:
        shown = console.status(awaited)
    deadline = None if timeout is None else time.monotonic() + timeout
    status, left = 0, list(orders)
    try:
        with shown:
            for posted in orders:
                patience = None if deadline is None else max(0.0, deadline - time.monotonic())
                with suppress(TimeoutError):
                    for report in posted.reports(patience):
                        awaited.see(posted, report)
                        status = max(status, told(posted, report, as_json))
                    left.remove(posted)
    except srup.StoreError as error:
        tell(f"{error}; {_goes_on(left)}", "yellow")
        return 1
    except KeyboardInterrupt:
        tell(_goes_on(left), "yellow")
        return 130
    if left:
        tell(f"not over after {timeout:g} seconds: {_goes_on(left)}", "yellow")
    return status or (LATE if left else 0)


def _goes_on(orders: Sequence["srup.PostedOrder"]) -> str:
    """Say what happens without us."""
    first = f"srup order result {orders[0].id} --wait"
    if len(orders) == 1:
        return f"the order stands, and the server goes on with it: {first}"
    return f"{len(orders)} orders stand, and the server goes on with them; the first is: {first}"
