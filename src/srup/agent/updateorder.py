"""Updates that a server has ordered, and how they go."""

import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from ..errors import PolicyError, SrupError, TransportError, UnansweredError, UpdateError
from ..records import State
from ..session import Send, ServerSession
from ..session.events import Event, UpdateChanged
from ..session.exchange import Exchange
from ..session.flow import Output
from ..session.server import Order
from ..update import UpdateState
from ..wire import Status
from .answer import Answer, awaited
from .duty import Duty, Listener
from .facts import LAST_UPDATE
from .requests import ReportedFuture, end_future
from .transaction import Transaction

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["UpdateOrder", "Updates"]

_UNDER_WAY: Final = (UpdateState.FETCHING, UpdateState.READY, UpdateState.ACTIVATING)


class UpdateOrder:
    """An update that was ordered for one device, and how it goes. Made by :meth:`Server.update`.

    ``status`` is the last that the device has answered. ``reason`` says in words why it failed, in printable ASCII:
    what the device said, or why the order does not stand any more; "" if nobody said anything. ``version`` is that of
    the firmware, if it was given.
    """

    def __init__(self, updates: "Updates", device: int, url: str, digest: str) -> None:
        self.device = device
        self.url = url
        self.digest = digest
        self.state = UpdateState.NEW
        self.status: Status | None = None
        self.reason = ""
        self.version: int | None = None
        self._updates = updates
        self._token: bytes | None = None  # None until it is under way
        self._done: Future[UpdateState] = Answer()

    @property
    def done(self) -> bool:
        """Whether :meth:`result` would return or raise at once."""
        return self._done.done()

    def result(self, timeout: float | None = None) -> UpdateState:
        """Wait for the end: ACTIVATED, or ACTIVATING when a deployed peer was told to activate (it never confirms).

        Raises UpdateError with the device's ``status`` and its reason when it could not, UnansweredError when it did
        not answer before the order expired, PolicyError when it is not joined, when the order was taken back or a newer
        one took its place, TimeoutError when ``timeout`` seconds are over.
        """
        return self._done.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; return what :meth:`result` would raise, None if it would return."""
        return self._done.exception(timeout)

    def add_done_callback(self, callback: Callable[["UpdateOrder"], object]) -> None:
        """Call ``callback(order)`` when the order has ended, at once if it has; on a thread of the package."""
        self._done.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, UpdateState]:
        """Wait for the end in a coroutine, as :meth:`result` does."""
        return awaited(self._done)

    def activate(self) -> None:
        """Let the device activate what it has fetched, if the order was made with ``hold``.

        PolicyError unless the ``state`` is READY.
        """
        self._updates.activate(self)

    def cancel(self) -> None:
        """Take the order back, so long as the device has not been told to activate the firmware.

        A download that is running ends, if the device knows how to be told. PolicyError when it is too late.
        """
        self._updates.cancel(self)

    def __repr__(self) -> str:
        return f"<UpdateOrder {self.digest[:16]} for {self.device:x}: {self.state.name}>"


class Updates(Duty):
    """The orders under way, and for each device the newest since the start."""

    def __init__(self, engine: "Engine", session: ServerSession) -> None:
        self._engine = engine
        self._session = session
        self._newest: dict[int, UpdateOrder] = {}
        self._orders: dict[tuple[int, bytes], UpdateOrder] = {}

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {UpdateChanged: self._update_changed}

    @property
    def under_way(self) -> list[UpdateOrder]:
        """The orders that have not ended. On any thread."""
        return list(self._orders.values())

    def newest(self, device: int) -> UpdateOrder | None:
        """Return what was ordered last, None if that was before the start. On any thread."""
        return self._newest.get(device)

    # Ordering.

    def order(
        self, device: int, url: str, digest: str, hold: bool, lifetime: float | None, version: int | None
    ) -> UpdateOrder:
        """Order an update that was checked. On any thread."""
        order = self.new_order(device, url, digest)

        def refused(future: "Future[None]") -> None:
            error = future.exception()
            if error is None:
                return
            if order._token is not None:
                if isinstance(error, TransportError):
                    return  # it is sent again
                del self._orders[device, order._token]
            order.state = UpdateState.FAILED
            order._done.set_exception(error)

        self._engine.requests.ask(
            lambda transaction, now, nonce: self.start_order(transaction, order, now, nonce, lifetime, hold, version),
            answered=False,
        ).add_done_callback(refused)
        return order

    def new_order(self, device: int, url: str, digest: str) -> UpdateOrder:
        """Return an order that has not begun: the newest of its device. On any thread."""
        order = self._newest[device] = UpdateOrder(self, device, url, digest)
        return order

    def start_order(
        self,
        transaction: Transaction,
        order: UpdateOrder,
        now: float,
        nonce: bytes,
        lifetime: float | None,
        hold: bool,
        version: int | None,
    ) -> Sequence[Output]:
        """Begin an update; return what is to be sent."""
        device = order.device
        outputs = self._session.update(device, order.url, order.digest, now, nonce, lifetime, hold, version)
        order._token = next(output.message.token for output in outputs if isinstance(output, Send))
        self._orders[device, order._token] = order
        order.state = UpdateState.FETCHING
        text, digest = "%s: update of %x to %s: ordered", order.digest
        journal = self._engine.journal
        journal.log(logging.INFO, text, device, digest[:16], partner=device, digest=digest, state=order.state.name)
        order.version = version
        self._note(transaction, order)
        return outputs

    def report_to(self, order: UpdateOrder, future: ReportedFuture) -> None:
        """Have a future of somebody outside of this process end with an order."""
        order._done = future

    def find(self, device: int, token: bytes) -> UpdateOrder | None:
        """Return the order under way with this token."""
        return self._orders.get((device, token))

    def find_reported(self, device: int, wanted: Callable[["Future[Any]"], bool]) -> UpdateOrder | None:
        """Return the order under way whose future is the one that is wanted."""
        found = (self._orders.get((device, asked.token)) for asked in self._session.asked_of(device))
        return next((order for order in found if order is not None and wanted(order._done)), None)

    def check_activable(self, order: UpdateOrder, *, told: bool = False) -> bytes:
        """Return the token of an order that can be activated; PolicyError for another one.

        With ``told`` the device may have been told before.
        """
        states = {UpdateState.READY, UpdateState.ACTIVATING} if told else {UpdateState.READY}
        if order.state not in states or order._token is None:
            raise PolicyError(f"there is nothing to activate: the order is in state {order.state.name}")
        return order._token

    def check_revocable(self, order: UpdateOrder) -> bytes:
        """Return the token of an order that can be taken back; PolicyError for another one."""
        if order.state not in (UpdateState.FETCHING, UpdateState.READY) or order._token is None:
            raise PolicyError(f"there is nothing to take back: the order is in state {order.state.name}")
        return order._token

    def activate(self, order: UpdateOrder) -> None:
        """See :meth:`UpdateOrder.activate`."""
        self._engine.decide(self._session.activate, order.device, self.check_activable(order))

    def cancel(self, order: UpdateOrder) -> None:
        """See :meth:`UpdateOrder.cancel`."""
        self._engine.decide(self._session.cancel_order, order.device, self.check_revocable(order))

    # What survives a restart.

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`."""
        for exchange in self._session.exchanges():
            if isinstance(exchange.detail, Order) and exchange.state in _UNDER_WAY:
                assert isinstance(exchange.state, UpdateState)  # noqa: S101 - orders have no other states
                device, token = exchange.partner.identity, exchange.token
                order = self._made_before(device, token, exchange.detail, exchange.state)
                self._orders[device, token] = self._newest[device] = order

    def revive(self, name: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """See :meth:`Duty.revive`."""
        if name != "update":
            return arguments
        device, token, ordered, state, status = arguments
        order = self._orders.get((device, token))
        if order is None:  # it ended just before a restart
            order = self._made_before(device, token, ordered, UpdateState[state])
            order.status = status
            outcome = self._outcome(device, order.state, status, order.reason)
            if outcome is not None:
                end_future(order._done, outcome)
        return (order,)

    def end_exchange(self, transaction: Transaction, exchange: Exchange, error: SrupError) -> bool:
        """See :meth:`Duty.end_exchange`."""
        if not isinstance(exchange.detail, Order):
            return False
        device, token = exchange.partner.identity, exchange.token
        order = self._orders.pop((device, token), None)
        order = order or self._made_before(device, token, exchange.detail, UpdateState.NEW)
        order.state = UpdateState.FAILED
        self._engine.requests.resolve(transaction, order._done, error)
        self._announce(transaction, order)
        return True

    def peer_replaced(self, transaction: Transaction, peer: int) -> None:
        """See :meth:`Duty.peer_replaced`."""
        self._newest.pop(peer, None)

    def stopped(self) -> None:
        """See :meth:`Duty.stopped`."""
        while self._orders:
            _, order = self._orders.popitem()
            order._done.set_exception(UnansweredError("the server was stopped before the update came to its end"))

    def _made_before(self, device: int, token: bytes, ordered: Order, state: UpdateState) -> UpdateOrder:
        order = UpdateOrder(self, device, ordered.url, ordered.digest)
        order._token, order.state, order.reason = token, state, ordered.reason
        noted = self._engine.facts.about(device).get(LAST_UPDATE)
        if noted is not None and (last := json.loads(noted)).get("digest") == ordered.digest:
            order.version = last.get("version")
        return order

    def _note(self, transaction: Transaction, order: UpdateOrder) -> None:
        """Keep how the newest update of a device goes, for whoever looks at the store."""
        if self._newest.get(order.device, order) is not order:
            return
        told = {"state": order.state.name, "at": round(self._engine.clock.unix()), "digest": order.digest}
        told |= {} if order.version is None else {"version": order.version}
        told |= {"reason": order.reason} if order.reason else {}
        self._engine.facts.set(transaction, order.device, LAST_UPDATE, json.dumps(told))

    # How they go.

    def _update_changed(self, transaction: Transaction, event: UpdateChanged) -> None:
        journal = self._engine.journal
        order = self._orders.get((event.peer, event.token))
        if order is None:
            if event.reason:  # the text comes behind the status that it belongs to
                text, status = "%s: %x says why its update failed: %s: %s", event.status and event.status.name
                journal.log(logging.WARNING, text, event.peer, status, event.reason, partner=event.peer, status=status)
            return
        order.state, order.reason = event.state, event.reason
        order.status = event.status if event.status is not None else order.status
        state = order.state.name
        outcome = self._outcome(event.peer, event.state, event.status, event.reason)
        failed = isinstance(outcome, SrupError)
        text, told = "%s: update of %x to %s: %s: %s", outcome if failed else order.state.value
        about = event.peer, order.digest[:16], state, told
        level = logging.WARNING if failed else logging.INFO
        said: dict[str, Any] = {"reason": order.reason} if order.reason else {}
        journal.log(level, text, *about, partner=event.peer, digest=order.digest, state=state, **said)
        if outcome is not None:
            del self._orders[event.peer, event.token]
            self._engine.requests.resolve(transaction, order._done, outcome)
        if event.state is UpdateState.ACTIVATED:
            self._engine.facts.set(transaction, event.peer, "firmware", order.digest)
            if order.version is None:
                self._engine.facts.drop(transaction, event.peer, "version")
            else:
                self._engine.facts.set(transaction, event.peer, "version", str(order.version))
        self._announce(transaction, order)

    def _announce(self, transaction: Transaction, order: UpdateOrder) -> None:
        """Tell the application, and whoever ordered it from outside, that the state of an order has changed."""
        self._note(transaction, order)
        ordered = Order(order.url, order.digest, False, order.reason)
        kept = order.device, order._token, ordered, order.state.name, order.status
        self._engine.handlers.notify_durably(transaction, "update", order.device, *kept, live=(order,))
        if isinstance(order._done, ReportedFuture):
            order._done.changed(transaction, order.state.name)

    def _outcome(
        self, device: int, state: UpdateState, status: Status | None, reason: str
    ) -> UpdateState | SrupError | None:
        """Return how an order ended, None while it goes on."""
        match state:
            case UpdateState.ACTIVATED:
                return state
            case UpdateState.ACTIVATING if not self._session.confirms(device):
                return state
            case UpdateState.FAILED:
                if status is None:
                    why = reason or f"{device:x} is no longer the device that the order was for"
                    return PolicyError(f"the update of {device:x} is off: {why}" if reason else why)
                return UpdateError(status, f"device {device:x} reports {status.name}{f': {reason}' if reason else ''}")
            case UpdateState.UNANSWERED:
                return UnansweredError(f"device {device:x} did not answer before the order expired")
            case _:
                return None
