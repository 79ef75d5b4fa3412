"""A server that is ordered about from outside: it carries out what its mailbox has, and reports what comes of it.

An order is carried out in a turn, and the commit of that turn takes it out of the mailbox, makes durable what it has
led to (an exchange, a message in the outbox, a value that waits), and writes the first report. A crash before the
commit leaves the order where it was and nothing outside; after it, all of it is there. A fact about the device names
the order that an exchange belongs to, so that the process after this one reports how it ends.
"""

import logging
from base64 import b64decode
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from threading import get_ident
from typing import Any, Final, NamedTuple

from ..errors import PolicyError, StoreError, UnansweredError, UpdateError
from ..keys import PublicKey
from ..messages import Message
from ..records import Changes, Fact, OutboxEntry, ReportRecord, State
from ..session.base import Output, Send
from ..session.events import TokenChanged
from ..store.mailbox import Entry
from ..store.partition import partition_of
from ..transport.topics import join_topic
from ..update import UpdateState
from ..wire import Status
from .base import _nothing
from .dataqueue import Value, Waiting
from .orders import Order, OrderReport
from .server import Server, UpdateOrder

__all__ = ["OrderedServer"]

KEPT: Final = 7 * 86400.0
"""How long one may ask what became of an order, in seconds from its end."""

_IN_A_TURN: Final = 256  # orders that are carried out in one turn at most
_RETRY: Final = 0.2  # seconds until an order is tried again for which the store refused something
_FACT: Final = "order "  # begins the name of the fact that says what an order waits for


class Promise(Future[Any]):
    """Stands where a future of the application would: what ends it is reported to whoever posted the order."""

    def __init__(self, entry: Entry, kind: str, expiry: float, device: int = 0) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self.order = entry.id
        self.entry = entry.place  # in the mailbox; empty once it is taken out
        self.kind = kind
        self.expiry = expiry
        self.device = device
        self.place = ""  # what it waits for: a token, or "#" and the number of a value in the queue
        self.over = False


class Led(NamedTuple):
    """What an order has led to: outputs, and whether an answer to the first message among them ends the order."""

    outputs: Sequence[Output] = ()
    answered: bool = False


class OrderedServer(Server):
    """The server of one of ``partitions`` partitions, with a mailbox. :meth:`take` is given what stands in it."""

    partition = 0
    partitions = 1

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._mail: deque[Entry] = deque()
        self._mail_due = 0.0  # not before: it could not be done yet
        self._values: dict[int, Promise] = {}  # values in the queue that were ordered, by number
        self._sealing: ReportRecord | None = None  # goes with the next change of a key

    def take(self, entry: Entry) -> None:
        """Have an order carried out, after those that were taken before; from one thread."""
        self._mail.append(entry)
        self._inbox.put(_nothing)  # not the order itself: it does not wait behind messages, least of all a revocation

    @property
    def behind(self) -> int:
        """How many orders it was given and has not carried out."""
        return len(self._mail)

    def deadline(self) -> float | None:
        """See :meth:`Agent.deadline`."""
        due = super().deadline()
        if not self._mail:
            return due
        return self._mail_due if due is None else min(due, self._mail_due)

    def _tick(self) -> None:
        super()._tick()
        now = self._clock()
        if now < self._mail_due or self._stopping.is_set():
            return
        for _ in range(min(_IN_A_TURN, len(self._mail))):
            try:
                self._carry_out(self._mail[0], now)
            except StoreError as error:  # it stays the next one, for what comes behind may depend on it
                self._log(logging.WARNING, "%r could not carry out an order yet: %a", str(error), error=error)
                self._mail_due = now + _RETRY
                return
            self._mail.popleft()

    def _carry_out(self, entry: Entry, now: float) -> None:
        """Do what an order says, or report why not; StoreError when it cannot be done yet."""
        promise = Promise(entry, "", now)
        try:
            order = Order.load(entry.order)
            promise.kind, promise.device = order.kind, order.device
            if partition_of(order.device, self.partitions) != self.partition:
                raise PolicyError(f"{order.device:x} does not belong to partition {self.partition}")
            promise.expiry = self._expiry(order, entry.posted)
            if now >= promise.expiry:
                raise UnansweredError(
                    f"no worker took it within its lifetime; it waited {now - entry.posted:.0f} seconds"
                )
            led = getattr(self, f"_order_{order.kind}")(promise, now, **order.details)
            self._begin_order(promise, led)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it must not keep the others waiting
            text, told = "%r does not carry out an order: %s: %a", (type(error).__name__, str(error))
            self._log(logging.WARNING, text, *told, partner=promise.device or None, error=error)
            self._end_order(promise, error)

    def _expiry(self, order: Order, posted: float) -> float:
        """Return until when this may begin. What puts a device out, or lets one in, is never too late."""
        policy = self._session.policy
        usual = {
            "action": policy.lifetime,
            "identify": policy.lifetime,
            "command_join": policy.lifetime,
            "update": policy.update_lifetime,
            "send_data": policy.update_lifetime,
        }
        lifetime = order.details.get("lifetime", usual.get(order.kind))
        return float("inf") if lifetime is None else posted + lifetime

    def _begin_order(self, promise: Promise, led: Led) -> None:
        dispatches = self._perform(led.outputs)
        trouble = next((each.error for each in dispatches if each.error is not None), None)
        if trouble is not None:
            self._end_order(promise, trouble)
        elif not led.answered:
            if not promise.over and not promise.place:
                self._end_order(promise, None)
        else:
            token = next(each.message.token for each in led.outputs if isinstance(each, Send))
            state = "TAKEN"
            if promise.kind == "update":
                state = UpdateState.FETCHING.name
            else:
                self._pending[promise.device, token] = promise
            self._wait_for(promise, token.decode("ascii"))
            self._report(promise, state)

    # What is ordered, one method for each of orders.KINDS.

    def _order_action(self, promise: Promise, now: float, action_id: int, lifetime: float | None = None) -> Led:
        left = promise.expiry - now
        return Led(self._session.action(promise.device, action_id, now, self._entropy(16), left), True)

    def _order_identify(self, promise: Promise, now: float) -> Led:
        return Led(self._session.identify(promise.device, now, self._entropy(16)), True)

    def _order_command_join(self, promise: Promise, now: float, server: int | None = None) -> Led:
        return Led(self._begin_join_command(promise.device, server, now, self._entropy(16)), True)

    def _order_update(
        self,
        promise: Promise,
        now: float,
        url: str,
        digest: str,
        hold: bool = False,
        lifetime: float | None = None,
        version: int | None = None,
    ) -> Led:
        order = UpdateOrder(self, promise.device, url, digest)
        order._done = promise
        left = promise.expiry - now
        return Led(self._begin_update(order, now, self._entropy(16), left, hold, version), True)

    def _order_activate(self, promise: Promise, now: float, update: str) -> Led:
        for (device, token), order in self._orders.items():
            done = order._done
            named = isinstance(done, Promise) and done.order.hex() == update
            if device == promise.device and (named or token == update.encode()):
                if order.state is not UpdateState.READY:
                    raise PolicyError(f"there is nothing to activate: the order is in state {order.state.name}")
                return Led(self._session.activate(device, token, now))
        raise PolicyError(f"there is no update of {promise.device:x} under way with this id or token")

    def _order_send_data(
        self, promise: Promise, now: float, data_id: str, data: str, lifetime: float | None = None
    ) -> Led:
        value = Value(data_id, b64decode(data))
        number = self._let_wait(promise.device, value, promise.expiry, promise)
        self._values[number] = promise
        self._wait_for(promise, f"#{number}")
        self._report(promise, "TAKEN")
        return Led()

    def _order_terminate(self, promise: Promise, now: float) -> Led:
        return Led(self._session.terminate(promise.device, now, self._entropy(16)))

    def _order_deregister(self, promise: Promise, now: float) -> Led:
        self.devices.remove(promise.device)  # first: then nothing else has happened if it cannot be done yet
        return Led(self._session.deregister(promise.device, now, self._entropy(16)))

    def _order_register(self, promise: Promise, now: float, key: str) -> Led:
        self.devices.add(promise.device, PublicKey.from_pem(key.encode()))
        self._give(lambda: self._transport.subscribe(join_topic(self.identity, promise.device)))
        return Led()

    def _order_remove(self, promise: Promise, now: float) -> Led:
        return Led(self._shut_out(promise.device, self._drop_key(promise, self.devices.remove), "remove", now))

    def _order_revoke(self, promise: Promise, now: float) -> Led:
        return Led(self._shut_out(promise.device, self._drop_key(promise, self.devices.revoke), "revoke", now))

    def _drop_key(self, promise: Promise, drop: Any) -> bool:
        """Drop a key, and report in the same commit that it is done: once more there would be nothing to drop."""
        if promise.device not in self.devices:
            return False
        self._sealing = self._record(promise, OrderReport(self._clock(), promise.kind, "DONE", over=True))
        try:
            drop(promise.device)
        finally:
            self._sealing = None
        promise.over, promise.entry = True, b""
        return True

    def _save_keys(self, changes: Changes) -> None:
        if self._sealing is not None and self._taking == get_ident():
            changes.reports.append(self._sealing)
        super()._save_keys(changes)

    # What comes of it.

    def _wait_for(self, promise: Promise, place: str) -> None:
        """Note, for the process after this one too, what an order waits for."""
        promise.place = place
        if not place.startswith("#"):
            self._values = {number: each for number, each in self._values.items() if each is not promise}
        name = _FACT + promise.order.hex()
        self._turn.changes.facts.append(Fact(promise.device, name, f"{promise.kind} {promise.expiry!r} {place}"))

    def _end_order(self, promise: Promise, result: object) -> None:
        if promise.over:
            return
        if promise.place:
            self._wait_for_nothing(promise)
        told = OrderReport(round(self._clock(), 3), promise.kind, "DONE", over=True)
        if isinstance(result, Exception):
            status = Status(result.status).name if isinstance(result, UpdateError) else None
            told = told._replace(state="FAILED", error=type(result).__name__, text=str(result), value=status)
        elif isinstance(result, Status | UpdateState):
            told = told._replace(value=result.name)
        elif isinstance(result, str):
            told = told._replace(value=result)
        if promise.kind == "update" and isinstance(result, UpdateState):
            told = told._replace(state=result.name)
        self._turn.changes.reports.append(self._record(promise, told))
        promise.over, promise.entry = True, b""

    def _wait_for_nothing(self, promise: Promise) -> None:
        self._values = {number: each for number, each in self._values.items() if each is not promise}
        self._turn.changes.facts.append(Fact(promise.device, _FACT + promise.order.hex(), None))

    def _report(self, promise: Promise, state: str) -> None:
        token = None if promise.place.startswith("#") else promise.place
        told = OrderReport(round(self._clock(), 3), promise.kind, state, token=token)
        self._turn.changes.reports.append(self._record(promise, told))
        promise.entry = b""

    def _record(self, promise: Promise, report: OrderReport) -> ReportRecord:
        lasts = 0.0 if report.over else max(0.0, promise.expiry - self._clock())
        return ReportRecord(promise.order, promise.entry, report.dump(), lasts + KEPT)

    def _resolve(self, future: "Future[Any]", result: object) -> None:
        if isinstance(future, Promise):
            self._end_order(future, result)
        super()._resolve(future, result)

    def _announce_order(self, order: UpdateOrder) -> None:
        super()._announce_order(order)
        if isinstance(order._done, Promise) and not order._done.over:
            self._report(order._done, order.state.name)

    def _token_changed(self, event: TokenChanged) -> None:
        super()._token_changed(event)
        promise = self._pending.get((event.peer, event.token))
        if isinstance(promise, Promise):
            self._wait_for(promise, event.token.decode("ascii"))

    def _work_off(self, partner: int, now: float) -> None:
        super()._work_off(partner, now)
        if any(promise.device == partner for promise in self._values.values()):
            for (peer, token), future in list(self._pending.items()):
                if peer == partner and isinstance(future, Promise) and future.place.startswith("#"):
                    self._wait_for(future, token.decode("ascii"))

    # What survives a restart.

    def _restore(self, state: State) -> None:
        super()._restore(state)
        there = {entry.number for entry in state.outbox}
        for promise in [promise for number, promise in self._values.items() if number not in there]:
            self._end_order(promise, PolicyError(f"{promise.device:x} was put out before it was over"))

    def _restore_role(self, state: State) -> None:
        super()._restore_role(state)
        for device, facts in self._facts.items():
            for name in [name for name in facts if name.startswith(_FACT)]:
                kind, expiry, place = facts.pop(name).split(" ")
                entry = Entry(b"", 0.0, bytes.fromhex(name.removeprefix(_FACT)), b"")
                promise = Promise(entry, kind, float(expiry), device)
                promise.place = place
                self._go_on_with(promise)

    def _go_on_with(self, promise: Promise) -> None:
        """Wait again for what an order was waiting for when the process before this one ended."""
        device, token = promise.device, promise.place.encode()
        update = self._orders.get((device, token))
        asked: Message | None = self._session.request(device, token)
        if promise.place.startswith("#"):
            self._values[int(promise.place[1:])] = promise
        elif update is not None:
            update._done = promise
        elif asked is not None and promise.kind != "update":
            self._pending[device, token] = promise
        else:
            self._end_order(promise, PolicyError(f"{device:x} was put out before it was over"))

    def _resend_entry(self, entry: OutboxEntry, now: float) -> None:
        promise = self._values.get(entry.number) if entry.topic == "" else None
        if promise is None or promise.device != entry.partner:
            super()._resend_entry(entry, now)
            return
        self._number = max(self._number, entry.number)
        self._queue.add(Waiting(entry.number, entry.partner, Value.unpack(entry.body), entry.expiry, promise))
