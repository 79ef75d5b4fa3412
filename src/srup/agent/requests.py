"""What we have asked of partners, and how that ends: by a future or, after a restart, by the handler for outcomes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import PolicyError, SrupError, TransportError, UnansweredError
from ..messages import Message
from ..session import persistence
from ..session.events import ActionAnswered, DataConfirmed, DataRefused, Event, TokenChanged, Unanswered
from ..session.exchange import Exchange
from ..session.flow import Output, Send
from .answer import Answer
from .duty import Duty, Listener
from .outbound import JOIN_REQUESTS
from .transaction import Dispatch, Transaction, after_commit

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Outcome", "ReportedFuture", "Requests", "end_future"]

Make = Callable[[Transaction, float, bytes], Sequence[Output]]
"""Makes a request: gets the transaction, the time and 16 random bytes, returns what is to be sent and told."""


class Outcome(NamedTuple):
    """How a request ended that was made before this start: ``result`` is what its future would have given or raised.

    ``request`` is what was sent; a value that had not been sent has the ``sequence_id`` 0.
    """

    partner: int
    request: Message | None
    result: object


class ReportedFuture(Future[Any]):
    """A future of somebody outside of this process, who is told durably what it waits for and how it ends."""

    def waits_under(self, transaction: Transaction, token: bytes) -> None:
        """The answer will come under this token."""
        raise NotImplementedError

    def changed(self, transaction: Transaction, state: str) -> None:
        """What it waits for has come to another state."""
        raise NotImplementedError

    def ended(self, transaction: Transaction, result: object) -> None:
        """It ends with this result or exception when the transaction is durable."""
        raise NotImplementedError


def end_future(future: "Future[Any]", result: object) -> None:
    """End a future, unless something else has ended it."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class Requests(Duty):
    """The futures of what was asked since the start, and the tokens of what was asked before it."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._pending: dict[tuple[int, bytes], Future[Any]] = {}
        self._inherited: set[tuple[int, bytes]] = set()

    def events(self) -> Mapping[type[Event], Listener]:
        """See :meth:`Duty.events`."""
        return {
            ActionAnswered: self._action_answered,
            DataConfirmed: self._data_confirmed,
            DataRefused: self._data_refused,
            TokenChanged: self._token_changed,
            Unanswered: self._unanswered,
        }

    def inherit(self) -> None:
        """Take note of what the session has asked before a restart."""
        self._inherited = {
            (each.partner.identity, each.token)
            for each in self._engine.session.requests()
            if not isinstance(each.request, JOIN_REQUESTS)
        }

    # Asking.

    def ask(self, make: Make, answered: bool = True) -> Answer[Any]:
        """Make a request in a turn; the future ends with its answer, or after the commit if there is none.

        Whatever prevents it ends the future too; only a request that has an answer survives a TransportError, because
        it is sent again.
        """
        future: Answer[Any] = Answer()
        engine = self._engine

        def job(transaction: Transaction) -> None:
            try:
                engine.check_open()
                outputs = make(transaction, engine.clock(), engine.entropy(16))
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                self.resolve(transaction, future, error)
                return
            tokens = [(output.to, output.message.token) for output in outputs if isinstance(output, Send)]
            if answered:
                self._pending.update(dict.fromkeys(tokens, future))
            dispatches = engine.perform(transaction, outputs)
            trouble = next((each.error for each in dispatches if each.error is not None), None)
            if trouble is not None:
                for token in tokens:
                    self._pending.pop(token, None)
                self.resolve(transaction, future, trouble)
            elif not answered:
                self.end_when_sent(transaction, future, dispatches)

        engine.post(job)
        return future

    def watch(self, transaction: Transaction, peer: int, token: bytes, future: "Future[Any] | None") -> None:
        """Wait for the answer of ``peer`` under ``token``, with a future or, None, as for one from before a restart."""
        if future is None:
            self._inherited.add((peer, token))
            return
        self._pending[peer, token] = future
        if isinstance(future, ReportedFuture):
            future.waits_under(transaction, token)

    def resume(self, peer: int, token: bytes, future: ReportedFuture) -> None:
        """Wait again for what an order was waiting for before a restart."""
        self._pending[peer, token] = future

    def pending(self) -> list[tuple[int, bytes]]:
        """Return for whose answers futures wait, and under which tokens."""
        return list(self._pending)

    # Ending.

    def settle(self, transaction: Transaction, event: Event, result: object) -> None:
        """End the request that this event answers, with a result or an exception."""
        future = self._pending.pop((event.peer, event.token), None)
        request = self._engine.session.request(event.peer, event.token)
        self._end(transaction, future, event.peer, event.token, request, result)

    def give_up(self, transaction: Transaction, peer: int, token: bytes, error: SrupError) -> None:
        """End the future that waits for this answer, if there is one; no outcome is told."""
        future = self._pending.pop((peer, token), None)
        if future is not None:
            self.resolve(transaction, future, error)

    def give_up_exchange(self, transaction: Transaction, exchange: Exchange, error: SrupError) -> None:
        """End one of our requests, made before a restart or not."""
        peer = exchange.partner.identity
        future = self._pending.pop((peer, exchange.token), None)
        self._end(transaction, future, peer, exchange.token, exchange.request, error)

    def give_up_all(self, transaction: Transaction, peer: int, error: SrupError) -> None:
        """End every future that waits for an answer of this partner."""
        for _, token in [request for request in self._pending if request[0] == peer]:
            self.give_up(transaction, peer, token, error)

    def tell_outcome(
        self, transaction: Transaction, future: "Future[Any] | None", peer: int, request: Message | None, result: object
    ) -> None:
        """Tell how a request ended, by its future or, after a restart, by a handler.

        The handler is told as well if the process ends before the future does.
        """
        handlers = self._engine.handlers
        number = 0
        if "outcome" in handlers.named:
            error = isinstance(result, Exception)
            told = (type(result).__name__, str(result)) if error else result
            kept = persistence.dump((peer, request, error, told), lambda _: None)
            number = handlers.store_inbox(transaction, peer, b"", "outcome", kept.encode())
        if future is not None:
            self.resolve(transaction, future, result)
            if number:
                after_commit(transaction, lambda: handlers.finished(peer, number))
        elif number:
            handlers.call_stored(transaction, "outcome", peer, (Outcome(peer, request, result),), number)

    def revive(self, name: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """See :meth:`Duty.revive`."""
        if name != "outcome":
            return arguments
        partner, request, error, told = arguments
        kinds: dict[str, type[SrupError]] = {kind.__name__: kind for kind in (PolicyError, UnansweredError)}
        return (Outcome(partner, request, kinds.get(told[0], SrupError)(told[1]) if error else told),)

    def resolve(self, transaction: Transaction, future: "Future[Any]", result: object) -> None:
        """End a future with a result or an exception, when the transaction is durable."""
        if isinstance(future, ReportedFuture):
            future.ended(transaction, result)
        transaction.futures.append(future)
        after_commit(transaction, lambda: end_future(future, result))

    def end_when_sent(
        self,
        transaction: Transaction,
        future: "Future[Any]",
        dispatches: Sequence[Dispatch],
        result: str | None = None,
    ) -> None:
        """End a future when the transport has what was sent, with ``result`` or the reason why it has not."""

        def outcome() -> object:
            return next((each.error for each in dispatches if each.error), result)

        if isinstance(future, ReportedFuture):  # whom it stands for is told in this commit: the outbox has the message
            future.ended(transaction, outcome())
        transaction.futures.append(future)
        after_commit(transaction, lambda: end_future(future, outcome()))

    def stopped(self) -> None:
        """See :meth:`Duty.stopped`."""
        while self._pending:
            _, future = self._pending.popitem()
            end_future(future, TransportError("stopped before the answer came"))

    def _end(
        self,
        transaction: Transaction,
        future: "Future[Any] | None",
        peer: int,
        token: bytes,
        request: Message | None,
        result: object,
    ) -> None:
        """End a request; whoever made it before a restart has no future, and is told in another way."""
        inherited = bool(self._inherited) and (peer, token) in self._inherited
        if inherited:
            self._inherited.discard((peer, token))
        if future is not None or inherited:
            self.tell_outcome(transaction, future, peer, request, result)

    # Events.

    def _action_answered(self, transaction: Transaction, event: ActionAnswered) -> None:
        self.settle(transaction, event, event.status)

    def _token_changed(self, transaction: Transaction, event: TokenChanged) -> None:
        future = self._pending.pop((event.peer, event.former), None)
        if future is not None:
            self.watch(transaction, event.peer, event.token, future)
        if (event.peer, event.former) in self._inherited:
            self._inherited.discard((event.peer, event.former))
            self._inherited.add((event.peer, event.token))

    def _data_confirmed(self, transaction: Transaction, event: DataConfirmed) -> None:
        self._inherited.discard((event.peer, event.token))
        future = self._pending.pop((event.peer, event.token), None)
        if future is not None:
            self.resolve(transaction, future, None)

    def _data_refused(self, transaction: Transaction, event: DataRefused) -> None:
        journal = self._engine.journal
        journal.counts["data refused"] += 1
        text = "%s: %x does not know a value that we sent"
        journal.log(logging.WARNING, text, event.peer, partner=event.peer)
        self.settle(transaction, event, PolicyError(f"{event.peer:x} does not know this value"))

    def _unanswered(self, transaction: Transaction, event: Unanswered) -> None:
        journal, kind = self._engine.journal, event.request.__name__
        journal.counts["unanswered"] += 1
        text = "%s: %x did not answer %s"
        journal.log(logging.WARNING, text, event.peer, kind, partner=event.peer, message_type=kind)
        future = self._pending.pop((event.peer, event.token), None)
        error = UnansweredError(f"{event.peer:x} did not answer {kind}")
        self._end(transaction, future, event.peer, event.token, event.message, error)
