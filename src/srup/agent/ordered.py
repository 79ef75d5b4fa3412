"""A server that is ordered about from outside: it carries out what its mailbox has, and reports what comes of it.

An order is carried out in a turn, and the commit of that turn takes it out of the mailbox, makes durable what it has
led to (an exchange, a message in the outbox, a value that waits), and writes the first report. A crash before the
commit leaves the order where it was and nothing outside; after it, all of it is there. A fact about the device names
the order that an exchange belongs to, so that the process after this one reports how it ends.
"""

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from urllib.parse import quote, unquote

from ..errors import PolicyError, StoreError, UnansweredError, UpdateError
from ..records import Changes, Fact, OutboxEntry, ReportRecord, State
from ..session.flow import Output, Send
from ..store.mailbox import MAX_KEPT, Entry, Position, rank_of
from ..store.partition import partition_of
from ..update import UpdateState
from ..wire import Status
from .duty import Duty
from .reports import OrderReport
from .transaction import Cause, Transaction
from .verbs import ByOrder, Order, Parts, Revoke, Turn, load_order

__all__ = ["MailOrders"]

KEPT: Final = 7 * 86400.0
"""How long one may ask what became of an order, in seconds from its end."""

_IN_A_TURN: Final = 256  # orders that are carried out in one turn at most
_RETRY: Final = 0.2  # seconds until an order is tried again for which the store refused something
_FACT: Final = "order "  # begins the name of the fact that says what an order waits for
_REVOKED: Final = "revoked at"  # the fact that names the place of a revocation which has overtaken other orders
_VOID: Final = "void "  # begins the name of the fact that an order, which still waits, was taken back at a place
_ADOPTED: Final = "adopted at"  # the fact about ourselves that says when an older copy of the state was taken over
_LONGEST: Final = 200  # characters of what the audit says about the end of an order
_ORDER: Final = re.compile("[0-9a-f]{32}")


class OrderFuture(ByOrder):
    """Stands where a future of the application would: what ends it is reported to whoever posted the order."""

    def __init__(self, orders: "MailOrders", entry: Entry, kind: str, expiry: float, device: int = 0) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self.order = entry.id
        self.entry = entry.place  # in the mailbox; empty once it is taken out
        self.urgent = False
        self.rank = entry.rank if entry.place else (0, 0)
        self.kind = kind
        self.posted_by = ""
        self.expiry = expiry
        self.device = device
        self.place = ""  # what it waits for: a token, or "#" and the number of a value in the queue
        self.over = False
        self._orders = orders

    @property
    def cause(self) -> Cause:
        """What the audit says of messages that belong to it."""
        return Cause(self.order, self.posted_by)

    def waits_under(self, transaction: Transaction, token: bytes) -> None:
        """See :meth:`ReportedFuture.waits_under`."""
        self._orders.wait_for(transaction, self, token.decode("ascii"))

    def changed(self, transaction: Transaction, state: str) -> None:
        """See :meth:`ReportedFuture.changed`."""
        if not self.over:
            self._orders.report(transaction, self, state)

    def ended(self, transaction: Transaction, result: object) -> None:
        """See :meth:`ReportedFuture.ended`."""
        self._orders.end(transaction, self, result)

    def value_waits(self, transaction: Transaction, number: int) -> None:
        """See :meth:`ByOrder.value_waits`."""
        self._orders.value_waits(transaction, self, number)

    def take_back(self, transaction: Transaction, order: str) -> None:
        """See :meth:`ByOrder.take_back`."""
        self._orders.take_back(transaction, self, order)

    def dropping_key(self) -> AbstractContextManager[None]:
        """See :meth:`ByOrder.dropping_key`."""
        return self._orders.dropping_key(self)


class MailOrders(Duty):
    """Carries out orders, in order, and what is urgent first; ``partition`` tells which of how many partitions this is.

    A revocation overtakes the orders that were posted before it. Those for its device are refused when they are come
    to, or one of them would let the device in again; so where it stood is remembered until they are all done.
    """

    def __init__(self, server: Parts, partition: Callable[[], tuple[int, int]]) -> None:
        self._server = server
        self._engine = server.engine
        self._partition = partition
        self.position = Position()
        self._mail: deque[Entry] = deque()
        self._urgent: deque[Entry] = deque()
        self._revoked: dict[int, tuple[int, int]] = {}  # by device: the rank of the last one that has overtaken others
        self._void: dict[tuple[int, str], tuple[int, int]] = {}  # by device and id: the rank of what took it back
        self._adopted_at = 0.0
        self._overtook: set[tuple[int, int]] = set()  # the ranks of what was carried out before its turn
        self._open: dict[bytes, OrderFuture] = {}  # what has begun and waits for something, by id
        self._mail_due = 0.0  # not before: it could not be done yet
        self._values: dict[int, OrderFuture] = {}  # values in the queue that were ordered, by number
        self._asked: dict[tuple[int, bytes], OrderFuture] = {}  # what waits for an answer, by device and token
        self._engine.amend_key_changes = self._amend_key_changes
        self._sealing: ReportRecord | None = None  # goes with the next change of a key

    def take(self, entry: Entry) -> None:
        """Have an order carried out, after those that were taken before; from one thread."""
        if entry.urgent:
            self._urgent.append(entry)
            self.position = self.position._replace(urgent=entry.place)
        else:
            self._mail.append(entry)
            self.position = self.position._replace(orders=entry.place)
        self._engine.inbox.wake()  # not the order itself: it does not wait behind messages, least of all a revocation

    @property
    def behind(self) -> int:
        """How many orders it was given and has not carried out. On any thread."""
        return len(self._mail)

    def due(self) -> float | None:
        """See :meth:`Duty.due`."""
        return self._mail_due if self._mail or self._urgent else None

    def cause_of(self, peer: int, token: bytes) -> Cause | None:
        """See :meth:`Duty.cause_of`."""
        future = self._asked.get((peer, token))
        return None if future is None else future.cause

    def precede(self, transaction: Transaction) -> bool:
        """See :meth:`Duty.precede`."""
        return bool(self._urgent) and self._work_off(transaction, self._urgent, len(self._urgent))

    def tick(self, transaction: Transaction, now: float) -> None:
        """See :meth:`Duty.tick`."""
        self._work_off(transaction, self._urgent, len(self._urgent))
        if not self._urgent:
            self._work_off(transaction, self._mail, _IN_A_TURN)

    def _work_off(self, transaction: Transaction, mail: deque[Entry], most: int) -> bool:
        """Carry out so many orders; return whether there were any."""
        now = self._engine.clock()
        if now < self._mail_due or self._engine.stopping.is_set():
            return False
        count = min(most, len(mail))
        for _ in range(count):
            try:
                self._carry_out(transaction, mail[0], now)
            except StoreError as error:  # it stays the next one, for what comes behind may depend on it
                text = "%s could not carry out an order yet: %a"
                self._engine.journal.log(logging.WARNING, text, str(error), error=error)
                self._mail_due = now + _RETRY
                break
            mail.popleft()
        return count > 0

    def _carry_out(self, transaction: Transaction, entry: Entry, now: float) -> None:
        """Do what an order says, or report why not; StoreError when it cannot be done yet."""
        unix = self._engine.clock.unix()
        future = OrderFuture(self, entry, "", unix)
        partition, partitions = self._partition()
        try:
            order = load_order(entry.order)
            future.kind, future.device, future.urgent = order.verb, order.device, order.urgent
            future.posted_by = order.posted_by
            transaction.cause = future.cause
            if entry.rank in self._overtook:
                return  # it stands in the mailbox twice, and is done
            if not entry.urgent:
                self._check_overtaken(transaction, order.device, entry)
            if partition_of(order.device, partitions) != partition:
                raise PolicyError(f"{order.device:x} does not belong to partition {partition}")
            future.expiry = self._expiry(order, min(entry.posted, unix))  # a place that was made up may be of any time
            if unix >= future.expiry:
                raise UnansweredError(
                    f"no worker took it within its lifetime; it waited {unix - entry.posted:.0f} seconds"
                )
            turn = Turn(transaction, now, self._engine.entropy(16), future.expiry - unix, future)
            self._begin(transaction, future, order.answered, order.start(self._server, turn))
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it must not keep the others waiting
            text, told = "%s does not carry out an order: %s: %a", (type(error).__name__, str(error))
            self._engine.journal.log(logging.WARNING, text, *told, partner=future.device or None, error=error)
            self.end(transaction, future, error)
        finally:
            transaction.cause = None
        if entry.urgent:
            self._overtook.add(entry.rank)
        if future.urgent and future.kind == Revoke.verb:
            self._revoked[future.device] = entry.rank
            transaction.changes.facts.append(Fact(future.device, _REVOKED, entry.place.decode("ascii")))

    def _check_overtaken(self, transaction: Transaction, device: int, entry: Entry) -> None:
        """Raise PolicyError if something that was posted later has ended this order; forget what ends none any more."""
        if self._overtook:
            self._overtook = {rank for rank in self._overtook if rank > entry.rank}
        for other, rank in list(self._revoked.items()):
            if rank < entry.rank:
                del self._revoked[other]
                transaction.changes.facts.append(Fact(other, _REVOKED, None))
        for (other, order), rank in list(self._void.items()):
            if rank < entry.rank:
                del self._void[other, order]
                transaction.changes.facts.append(Fact(other, _VOID + order, None))
        if entry.posted <= self._adopted_at:
            raise PolicyError(
                "the server has taken over an older copy of its state since this was ordered, and nobody knows whether "
                "it was carried out before; order it again if it shall be"
            )
        if device in self._revoked:
            raise PolicyError(f"{device:x} was revoked after this was ordered; order it again if it shall be")
        if (device, entry.id.hex()) in self._void:
            raise PolicyError(f"this order for {device:x} was taken back")

    def _expiry(self, order: Order, posted: float) -> float:
        """Return until when this may begin. What puts a device out, or lets one in, is never too late."""
        usual = getattr(self._server.session.policy, order.usual_lifetime) if order.usual_lifetime else None
        lifetime = getattr(order, "lifetime", None) or usual
        return float("inf") if lifetime is None else posted + lifetime

    def _begin(self, transaction: Transaction, future: OrderFuture, answered: bool, outputs: Sequence[Output]) -> None:
        dispatches = self._engine.perform(transaction, outputs)
        trouble = next((each.error for each in dispatches if each.error is not None), None)
        if future.over:  # that is in the commit of the key's change
            self._write_down(transaction, future, "DONE")
        elif trouble is not None:
            self.end(transaction, future, trouble)
        elif not answered:
            if not future.place:
                self.end(transaction, future, None)
        else:
            token = next(each.message.token for each in outputs if isinstance(each, Send))
            if future.kind == "update":
                future.waits_under(transaction, token)
                self.report(transaction, future, UpdateState.FETCHING.name)
            else:
                self._engine.requests.watch(transaction, future.device, token, future)
                self.report(transaction, future, "TAKEN")

    @contextmanager
    def dropping_key(self, future: "OrderFuture") -> Iterator[None]:
        """Report in the commit of a key's change that an order is done: once more there would be nothing to drop."""
        self._sealing = self._record(future, OrderReport(self._engine.clock.unix(), future.kind, "DONE", over=True))
        try:
            yield
        finally:
            self._sealing = None
        future.over, future.entry = True, b""

    def value_waits(self, transaction: Transaction, future: "OrderFuture", number: int) -> None:
        """Wait for a value in the queue."""
        self.wait_for(transaction, future, f"#{number}")
        self.report(transaction, future, "TAKEN")

    def _amend_key_changes(self, changes: Changes) -> None:
        """Add the report on an order to the change of the key that it is about."""
        if self._sealing is not None:
            changes.reports.append(self._sealing)

    # What comes of it.

    def take_back(self, transaction: Transaction, by: OrderFuture, order: str) -> None:
        """Take back what waits in the mailbox or for its device; PolicyError when the device was asked already."""
        if not _ORDER.fullmatch(order):
            raise PolicyError(f"there is no update of {by.device:x} under way with this token")
        known = self._open.get(bytes.fromhex(order))
        if known is None:
            self._void[by.device, order] = by.rank
            transaction.changes.facts.append(Fact(by.device, _VOID + order, by.entry.decode("ascii")))
            return
        error = PolicyError(f"this order for {known.device:x} was taken back")
        if known.device != by.device or not known.place.startswith("#"):
            raise PolicyError(f"it is too late: {known.device:x} was asked already")
        if not self._engine.values.take_back(transaction, known.device, int(known.place[1:]), error):
            raise PolicyError(f"it is too late: {known.device:x} was sent the value already")

    def wait_for(self, transaction: Transaction, future: OrderFuture, place: str) -> None:
        """Note, for the process after this one too, what an order waits for."""
        self._open[future.order] = future
        self._forget_place(future)
        self._note_place(future, place)
        name = _FACT + future.order.hex()
        told = f"{future.kind} {future.expiry!r} {place}"
        if future.posted_by:
            told += f" {quote(future.posted_by, safe='')}"
        transaction.changes.facts.append(Fact(future.device, name, told))

    def end(self, transaction: Transaction, future: OrderFuture, result: object) -> None:
        """Report how an order has ended, once."""
        if future.over:
            return
        self._open.pop(future.order, None)
        if future.place:
            self._forget_place(future)
            transaction.changes.facts.append(Fact(future.device, _FACT + future.order.hex(), None))
        told = OrderReport(round(self._engine.clock.unix(), 3), future.kind, "DONE", over=True)
        if isinstance(result, Exception):
            status = Status(result.status).name if isinstance(result, UpdateError) else None
            told = told._replace(state="FAILED", error=type(result).__name__, text=str(result), value=status)
        elif isinstance(result, Status | UpdateState):
            told = told._replace(value=result.name)
        elif isinstance(result, str):
            told = told._replace(value=result)
        if future.kind == "update" and isinstance(result, UpdateState):
            told = told._replace(state=result.name)
        transaction.changes.reports.append(self._record(future, told))
        future.over, future.entry = True, b""
        self._write_down(transaction, future, f"{told.state}: {told.error}" if told.error else told.value or told.state)

    def _write_down(self, transaction: Transaction, future: OrderFuture, outcome: str) -> None:
        clock = self._engine.clock
        what = f"{future.kind or 'order'}: {outcome}"
        self._engine.audit.end(transaction, future.device, what[:_LONGEST], future.cause, clock(), clock.unix())

    def report(self, transaction: Transaction, future: OrderFuture, state: str) -> None:
        """Report which state an order has come to."""
        token = None if future.place.startswith("#") else future.place
        told = OrderReport(round(self._engine.clock.unix(), 3), future.kind, state, token=token)
        transaction.changes.reports.append(self._record(future, told))
        future.entry = b""

    def _record(self, future: OrderFuture, report: OrderReport) -> ReportRecord:
        lasts = 0.0 if report.over else max(0.0, future.expiry - self._engine.clock.unix())
        kept = min(lasts + KEPT, MAX_KEPT)
        return ReportRecord(future.order, future.entry, report.dump(), kept, urgent=future.urgent)

    def _note_place(self, future: OrderFuture, place: str) -> None:
        future.place = place
        if place.startswith("#"):
            self._values[int(place[1:])] = future
        else:
            self._asked[future.device, place.encode()] = future

    def _forget_place(self, future: OrderFuture) -> None:
        if future.place.startswith("#"):
            self._values.pop(int(future.place[1:]), None)
        else:
            self._asked.pop((future.device, future.place.encode()), None)

    # What survives a restart.

    def restore(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restore`: wait again for what orders were waiting for before the restart."""
        if state.adopted:
            self._adopted_at = self._engine.clock.unix()
            own = Fact(self._engine.identity, _ADOPTED, repr(self._adopted_at))
            transaction.changes.facts.append(own)
        for fact in self._engine.facts.take_all(_ADOPTED):
            self._adopted_at = max(self._adopted_at, float(fact.value or 0.0))
        for fact in self._engine.facts.take_all(_REVOKED):
            self._revoked[fact.identity] = rank_of((fact.value or "").encode())
        for fact in self._engine.facts.take_all(_VOID):
            rank = rank_of((fact.value or "").encode())
            self._void[fact.identity, fact.name.removeprefix(_VOID)] = rank
        for fact in self._engine.facts.take_all(_FACT):
            kind, expiry, place, *by = (fact.value or "").split(" ")
            entry = Entry(b"", 0.0, bytes.fromhex(fact.name.removeprefix(_FACT)), b"")
            future = OrderFuture(self, entry, kind, float(expiry), fact.identity)
            future.posted_by = unquote("".join(by))
            self._note_place(future, place)
            self._open[future.order] = future
            self._resume(transaction, future)

    def _resume(self, transaction: Transaction, future: OrderFuture) -> None:
        device, token = future.device, future.place.encode()
        update = self._server.updates.find(device, token)
        asked = self._server.session.request(device, token)
        if future.place.startswith("#"):
            pass  # its entry of the outbox says what becomes of it
        elif update is not None:
            self._server.updates.report_to(update, future)
        elif asked is not None and future.kind != "update":
            self._engine.requests.resume(device, token, future)
        else:
            self.end(transaction, future, PolicyError(f"{device:x} was put out before it was over"))

    def restored(self, transaction: Transaction, state: State) -> None:
        """See :meth:`Duty.restored`."""
        there = {entry.number for entry in state.outbox}
        for future in [future for number, future in self._values.items() if number not in there]:
            self.end(transaction, future, PolicyError(f"{future.device:x} was put out before it was over"))

    def reported(self, entry: OutboxEntry) -> "Future[Any] | None":
        """See :meth:`Duty.reported`."""
        future = self._values.get(entry.number)
        return None if future is None or future.device != entry.partner else future
