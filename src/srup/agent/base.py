"""What devices and servers have in common: three threads and who does what on them.

The transport's thread only enqueues. The agent's own thread takes turns. In each one it takes what is there, in order:
it verifies messages in batches as large as what has arrived, never waiting for more, and steps the session. Then the
store, if there is one, keeps all that has changed, in one commit; only what is durable takes effect outside: answers
and requests are published, messages are settled with the broker, futures end, handlers are called. So a crash at any
moment loses nothing that was accepted, and lets nothing in twice (T2). A store that refuses to write halts the agent
where it stands until it writes again. The broker's limit of unsettled messages (MQTT 5: receive maximum) bounds the
queue. The application's handlers run on a third thread, one at a time and in order, so that a
slow one delays neither the protocol nor the link; those that wait for a person or a camera have another one to
themselves. Whatever raises on any of them is counted and logged, and the next message is served (T8).
"""

import logging
import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeVar, get_args

from .. import rotation
from ..codec import decode, encode, verify_many
from ..errors import (
    LeaseLostError,
    PolicyError,
    ReplayError,
    SealError,
    SignatureError,
    SrupError,
    StoreError,
    TransportError,
    UnansweredError,
    UnknownSenderError,
)
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..messages import Data, DataKind, HumanJoinRequest, JoinRequest, Message, ObservedJoinRequest, decode_data
from ..records import AuditRow, Changes, Fact, InboxEntry, OutboxEntry, State
from ..seal import unseal
from ..session import body
from ..session.base import Exchange, Output, Send, Session, check_seconds
from ..session.events import (
    ActionAnswered,
    ActionRequested,
    DataConfirmed,
    DataReceived,
    DataRefused,
    DataRepeated,
    Event,
    KeyOffered,
    TokenChanged,
    Unanswered,
    Unexpected,
)
from ..store import Store
from ..transport.base import Delivery, Transport
from ..transport.mqtt import MqttTransport
from ..transport.topics import Address, device_topic, join_topic, parse_topic
from ..wire import IDENTIFICATION_RESPONSE, Status
from .dataqueue import DataQueue, Value, Waiting
from .turn import Call, Dispatch, Handling, Turn
from .vitals import Vitals

__all__ = ["Agent", "Outcome", "Refusal"]

log: Final = logging.getLogger("srup.agent")

Result = TypeVar("Result")
Handler = TypeVar("Handler", bound=Callable[..., Any])

_JOIN_REQUESTS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)
_IDLE: Final = 3600.0  # the longest sleep when no deadline is near, in seconds
_BATCH: Final = 256  # messages that are verified together at most
_TURN: Final = 1024  # things that are done in one turn, and made durable in one commit, at most
_AUDIT_KEPT: Final = 30 * 86400.0  # how long audit rows are kept in seconds, if nobody says otherwise
_AUDIT_LOOK: Final = 3600.0  # seconds until it is looked again which rows are too old
_AUDIT_PIECE: Final = 4000  # rows that are deleted between two turns, at most
_AUDIT_PAUSE: Final = 0.1  # seconds from one piece to the next, at least
_AUDIT_SHARE: Final = 0.1  # of an agent's time may go into that
_STORE_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to write to a store that refuses
_MAX_WAITING: Final = 10_000  # messages and handlers that wait at most; a broker keeps what does not get in
_HELD_FROM: Final = 5_000  # handlers that wait: from then on nothing is settled, so that the broker sends no more
_MAX_REFUSALS: Final = 256  # handlers that wait at most when one more refusal is told


def _nothing() -> None:
    """Wake the agent's thread, or stand for an empty inbox."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Refusal(NamedTuple):
    """A message that had no effect: where it came in, the bytes, and why it was refused."""

    topic: str
    wire: bytes
    error: SrupError


class Outcome(NamedTuple):
    """How a request ended that was made before this start: ``result`` is what its future would have given or raised.

    ``request`` is what was sent; a value that had not been sent has the ``sequence_id`` 0.
    """

    partner: int
    request: Message | None
    result: object


def store_at(store: "Store | str | os.PathLike[str] | None") -> Store | None:
    """Return what a ``store`` argument means: a store as it is, or the SQLite database at a path."""
    if isinstance(store, str | os.PathLike):
        from ..store.sqlite import SqliteStore  # sqlite3 takes a while to import, and few devices need it

        return SqliteStore(store)
    if store is not None and not hasattr(store, "commit"):
        raise TypeError(f"store must be a path or a Store, not {type(store).__name__}")
    return store


def sequence_origin(clock: Callable[[], float]) -> int:
    """Return a first sequence id that lies above all that were sent before this start, without having stored them.

    It counts microseconds of Unix time; nobody sends a million messages a second for long. A clock that was set back
    between two starts makes partners refuse messages until it has caught up.
    """
    return max(1, int(clock() * 1e6))


def check_identity(identity: object, what: str = "identity") -> None:
    """Raise ValueError unless this is an identity."""
    if type(identity) is not int or not 0 <= identity < 1 << 64:
        raise ValueError(f"{what} must be an int in 0..2**64-1, not {identity!r}")


def check_type(value: object, wanted: type | tuple[type, ...], what: str) -> None:
    """Raise TypeError unless ``value`` is one of these."""
    if not isinstance(value, wanted):
        names = " or ".join(cls.__name__ for cls in (wanted if isinstance(wanted, tuple) else (wanted,)))
        raise TypeError(f"{what} must be a {names}, not {type(value).__name__}")


def transport_to(broker: "str | Transport", identity: int) -> Transport:
    """Return what a ``broker`` argument means: a transport as it is, or one to a URL."""
    if isinstance(broker, str):
        return MqttTransport(broker, f"srup-{identity:x}")
    if not hasattr(broker, "publish"):
        raise TypeError(f"broker must be a URL or a Transport, not {type(broker).__name__}")
    return broker


class Inline(Executor):
    """An executor that runs things at once, for simulations."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """Call ``fn`` now."""
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            future.set_exception(error)
        return future


class Agent:
    """The base of Device and Server. Public methods may be called from any thread.

    ``run``, ``start`` and ``stop`` are for real life; a simulation calls ``start(threads=False)`` and :meth:`step`.
    ``counts`` tells how many messages were ``received``, ``verified``, ``sent``, refused (by the error's name), how
    many orders were ``not done`` because all was over when their turn came, and ``faults``, things that raised where
    nothing should. ``handling`` says to a handler what it is called for, and whether for the first time
    (:class:`Handling`). ``store_error`` is None while the store writes. :meth:`vitals` tells how it goes,
    :meth:`on_measured` how large its batches are and how long its commits take (docs/observability.md).
    """

    def __init__(
        self,
        session: Session,
        key: PrivateKey,
        keys: KeyRing,
        transport: Transport,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        threads: int = 1,
        store: Store | str | os.PathLike[str] | None = None,
        audit_kept: float | None = _AUDIT_KEPT,
    ) -> None:
        check_type(key, PrivateKey, "key")
        if audit_kept is not None:
            check_seconds(audit_kept, "audit_kept")
        if type(threads) is not int or threads < 1:
            raise ValueError(f"threads must be an int of at least 1, not {threads!r}")
        self.identity = session.identity
        self.counts: Counter[str] = Counter()
        self.connected = False
        self._link = "not started"  # what the transport said last
        self._session = session
        self._measuring: tuple[Callable[[str, float], object], ...] = ()
        self._turn_began: float | None = None  # on the monotonic clock; None while the thread waits
        self._handler_began: float | None = None
        self._key = key
        self._retired: tuple[PrivateKey, float] | None = None  # what was sealed to it opens until then
        self._keys = keys  # of the partners
        self._signer: PublicKey | None = None  # which of them has signed the message in hand
        self._threads = threads
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._inbox: queue.SimpleQueue[Delivery | Callable[[], None]] = queue.SimpleQueue()
        self._store = store_at(store)
        self._turn = Turn()
        self._taking: int | None = None  # the thread that is taking a turn now
        self._unsaved = False  # the turn is over, and the store has not taken it yet
        self._audit_kept = audit_kept
        self._audit_due: float | None = None  # when rows may be too old; None for never
        self.store_error: str | None = None  # why the store refuses to write, while it does
        self._number = 0  # of the last inbox or outbox entry
        self._finished: deque[tuple[int, int]] = deque()  # inbox entries whose handlers have ended
        self._ripe = (0, 0)  # so many of them are finished once so many things more of the inbox are done
        self._handed_over: deque[tuple[int, int]] = deque()  # outbox entries that the broker has
        self._queue = DataQueue()
        self._facts: dict[int, dict[str, str]] = {}
        self._unknown: deque[tuple[int, bytes]] = deque()  # values of this turn that nobody takes
        self._again = False  # what is being told was told before, perhaps, by the process before this one
        self.handling: Handling | None = None
        self._pending: dict[tuple[int, bytes], Future[Any]] = {}
        self._inherited: set[tuple[int, bytes]] = set()  # requests that were made before this start
        self._actions: dict[int, Callable[..., Any]] = {}
        self._data: dict[str | None, tuple[DataKind, Callable[..., Any]]] = {}
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._application: Executor = Inline()
        self._aside: Executor = Inline()  # for handlers that wait for a person or a camera
        self._jobs: set[Future[Any]] = set()  # of the application's thread
        self._submitting = threading.Lock()
        self._owed: deque[Callable[[], None]] = deque()  # settles what is settled when the handlers have caught up
        self._submitted_jobs = 0
        self._started_jobs = 0
        self._thread: threading.Thread | None = None
        self._started = False
        self._stopping = threading.Event()
        self._stopped = threading.Event()

    # Life.

    def start(self, threads: bool = True) -> Self:
        """Begin: connect in the background and go on until :meth:`stop`. An agent is started once.

        Without ``threads`` nothing happens by itself: call :meth:`step` when something may have arrived or be due.
        StoreError if the store cannot be used. If anything fails once it is open, the agent has ended and has let go
        of the store.
        """
        if self._started or self._stopping.is_set():
            raise TransportError(f"{self!r} was started before; make a new one")
        state = None if self._store is None else self._store.open(self.identity)
        try:
            if state is not None:
                self._restore(state)
            self._subscribe()
            self._transport.start(
                self._arrived,
                lambda connected, why: self._inbox.put(lambda: self._set_connected(connected, why)),
            )
        except BaseException:
            if state is not None:  # half of it is taken over: a new agent can try again, and the store is free for it
                self.stop(0.0)
            raise
        self._started = True
        if threads:
            self._employ(f"srup-{self.identity:x}")
        self._begin()
        return self

    def _employ(self, name: str) -> None:
        """Start the threads, the agent's own last."""
        self._application = ThreadPoolExecutor(1, f"{name}-application")
        self._aside = ThreadPoolExecutor(1, f"{name}-aside")
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End: send what can be sent within ``timeout`` seconds, disconnect, let the running handler finish.

        Requests without an answer end with TransportError, and so do all later ones. With a store the next start goes
        on with the former, and with what the running handler asks for. A second call does nothing.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._dismiss()
        self._inbox.put(_nothing)
        deadline = time.monotonic() + timeout
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        running = [job for job in self._jobs if not job.cancelled()]
        if not threading.current_thread().name.startswith(f"srup-{self.identity:x}-application"):
            wait(running, max(0.0, deadline - time.monotonic()))  # what they have done shall not be done again
        if self._thread is None or not self._thread.is_alive():
            self._advance()
        # What waits for a link that is down, waits in vain.
        self._transport.stop(max(0.0, deadline - time.monotonic()) if self.connected else 0.0)
        self._stopped.set()
        self._drain()
        for future in self._turn.futures:
            end_future(future, TransportError("stopped before it could be made durable"))
        for waiting in self._queue.drop():
            if waiting.future is not None:
                end_future(waiting.future, TransportError("stopped before the value was confirmed"))
        while self._pending:
            _, future = self._pending.popitem()
            future.set_exception(TransportError("stopped before the answer came"))
        if self._store is not None:
            self._keys.release(self._save_keys)
            self._store.close()

    def _dismiss(self) -> None:
        """Let the threads of the application end."""
        self._application.shutdown(wait=False, cancel_futures=True)
        self._aside.shutdown(wait=False, cancel_futures=True)

    def _drain(self, limit: int | None = None, patience: float = 0.0) -> int:
        """Do what is in the inbox, or so many things of it; deliveries that stand together are one batch.

        Waits up to ``patience`` seconds for the first thing and for nothing else. Tells how many things there were.
        """
        batch: list[Delivery] = []
        done = 0
        while limit is None or done < limit:
            try:
                work = self._inbox.get(patience > 0, patience)
            except queue.Empty:
                break
            if not done:
                self._turn_began = time.monotonic()
            done += 1
            patience = 0.0
            if isinstance(work, Delivery):
                batch.append(work)
                if len(batch) < _BATCH:
                    continue
            self._deliver(batch)
            batch = []
            if not isinstance(work, Delivery):
                self._fenced(work)
        self._deliver(batch)
        return done

    def run(self) -> None:
        """Start, unless that was done, and stay until :meth:`stop` is called, Ctrl-C is pressed or SIGTERM arrives."""
        if not self._started:
            self.start()
        try:
            with terminable():
                while not self._stopped.wait(1.0):  # a bounded wait, so that Ctrl-C gets through everywhere
                    pass
        except KeyboardInterrupt:
            self._log(logging.INFO, "%r is interrupted")
        finally:
            self.stop()

    def __enter__(self) -> Self:
        return self if self._started else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def step(self) -> None:
        """Do everything that has arrived or is due now (the body of the agent's thread, for simulations)."""
        while self._advance(_TURN):
            pass

    def deadline(self) -> float | None:
        """Return when :meth:`step` has something to do next even if nothing arrives; None for never."""
        dues = (self._session.deadline(), self._queue.deadline(), self._audit_due)
        return min((due for due in dues if due is not None), default=None)

    @property
    def stopped(self) -> bool:
        """Whether it has come to its end: :meth:`stop` is over, or the partition is another worker's."""
        return self._stopped.is_set()

    def vitals(self) -> Vitals:
        """Return how it goes. It may be asked at any time, from any thread, and holds nobody up."""
        ticks, now = time.monotonic(), self._clock()
        value, asked = self._queue.oldest(), self._session.asked()
        return Vitals(
            started=self._started,
            stopping=self._stopping.is_set(),
            stopped=self._stopped.is_set(),
            alive=self._thread is None or self._thread.is_alive() or self._stopping.is_set(),
            connected=self.connected,
            link=self._link,
            store_error=self.store_error,
            turn=0.0 if (began := self._turn_began) is None else ticks - began,
            handler=0.0 if (began := self._handler_began) is None else ticks - began,
            inbox=self._inbox.qsize(),
            handlers=max(0, self._backlog()),
            values=len(self._queue),
            oldest_value=0.0 if value is None else max(0.0, now - value / 1e6),  # numbers come from the clock
            requests=len(asked),
            oldest_request=max(0.0, now - min((at for at in asked if at), default=now)),
            members=self._membership(),
        )

    # What the application does.

    def action(self, partner: int, action_id: int, lifetime: float | None = None) -> "Future[Status]":
        """Ask a partner to do an action; the result is its answer: ACTION_SUCCESS, ACTION_UNKNOWN or ACTION_FAIL.

        After ``lifetime`` seconds (default: the policy's) the request expires: UnansweredError. PolicyError when the
        two are not joined.
        """
        return self._request(lambda now, nonce: self._session.action(partner, action_id, now, nonce, lifetime))

    def send_data(
        self,
        partner: int,
        data_id: str,
        value: bytes | str | int | float,
        kind: DataKind | None = None,
        *,
        confirmed: bool | None = None,
        lifetime: float | None = None,
    ) -> "Future[None]":
        """Send a value (see :meth:`Data.encode_value`).

        A ``confirmed`` value waits until the two are joined, is sent again until the partner has it for good, and is
        done then; UnansweredError when that took more than ``lifetime`` seconds (default: the policy's
        ``update_lifetime``). With a store it survives restarts. Any other is done when it is handed to the transport:
        it survives what MQTT's QoS 1 and a persistent session survive. By default values are confirmed where there is
        a store. Deployed partners know of no receipts, so a value for them is done when it has been handed over.
        """
        value_ = Value(data_id, Data.encode_value(value, kind))
        if confirmed is None:
            confirmed = self._store is not None
        if not confirmed:
            return self._request(lambda now, nonce: self._session.data(partner, *value_, now, nonce), answered=False)
        lasts = self._session.policy.update_lifetime if lifetime is None else lifetime
        check_seconds(lasts, "lifetime")
        check_identity(partner, "partner")
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()

        def job() -> None:
            try:
                if self._refuses_requests():
                    raise TransportError(f"{self!r} is stopped")
                self._session.check_data(*value_)
                self._let_wait(partner, value_, self._clock() + lasts, future)
            except SrupError as error:
                self._resolve(future, error)

        self._post(job)
        return future

    def _let_wait(self, partner: int, value: Value, expiry: float, future: "Future[None]") -> int:
        """Put a value into the queue of those that are confirmed; return its number."""
        number = self._next_number()
        self._queue.add(Waiting(number, partner, value, expiry, future))
        self._turn.changes.outbox.append(OutboxEntry(number, partner, "", value.pack(), expiry))
        return number

    def on_action(self, action_id: int) -> Callable[[Handler], Handler]:
        """Decorate what does an action. It is called with the partner's identity.

        What it returns is answered: a Status, or False for ACTION_FAIL; anything else is ACTION_SUCCESS. If it raises
        the answer is ACTION_FAIL. Actions without a handler are answered ACTION_UNKNOWN.
        """
        if type(action_id) is not int or not 0 <= action_id < 1 << 8:
            raise ValueError(f"an action_id is a number from 0 to 255, not {action_id!r}")
        return self._register(self._actions, action_id)

    def on_data(self, data_id: str | None = None, kind: DataKind = "bytes") -> Callable[[Handler], Handler]:
        """Decorate what takes values named ``data_id``; None takes all that have no handler of their own.

        It is called with the partner's identity, the ``data_id`` and the value read as ``kind``. Values that nobody
        takes, or that do not have that form, are answered DATA_TYPE_UNKNOWN.
        """
        if data_id is not None and not isinstance(data_id, str):
            raise ValueError(f"a data_id is a str, or None for all, not {data_id!r}")
        if kind not in get_args(DataKind):
            raise ValueError(f"{kind!r} is no kind of data; the kinds are {', '.join(get_args(DataKind))}")
        return self._register(self._data, data_id, lambda handler: (kind, handler))

    def on_key_changed(self, handler: Handler) -> Handler:
        """Decorate what stores a partner's new key: it is called with the partner's identity and the PublicKey.

        The partner's old key has signed the new one, which counts as soon as the handler returns. If it raises or
        returns False the partner is told ACTION_FAIL and goes on with the old one. Without a handler the new key is
        known until the process ends, and no longer.
        """
        return self._register(self._handlers, "key")(handler)

    def on_left(self, handler: Handler) -> Handler:
        """Decorate what is called with the partner's identity when a membership ends."""
        return self._register(self._handlers, "left")(handler)

    def on_outcome(self, handler: Handler) -> Handler:
        """Decorate what is called with an :class:`Outcome` when a request ends that was made before a restart.

        It is called as well for one whose end had just become durable when the process ended before its future did.
        """
        return self._register(self._handlers, "outcome")(handler)

    def facts(self, partner: int) -> Mapping[str, str]:
        """Return what is known about a partner by name, such as its ``description`` or ``firmware`` (a digest)."""
        return dict(self._facts.get(partner, {}))

    def on_refused(self, handler: Handler) -> Handler:
        """Decorate what is called with a :class:`Refusal` for every message that is refused."""
        return self._register(self._handlers, "refused")(handler)

    def on_link(self, handler: Handler) -> Handler:
        """Decorate what is called when the link to the broker comes or goes: with whether it is there, and why."""
        return self._register(self._handlers, "link")(handler)

    def on_measured(self, listener: Handler) -> Handler:
        """Decorate what is called with the name of a measurement and its value.

        "batch" is how many messages were verified together, "commit" how many seconds the store took to make a turn
        durable. It is called at once on the thread that takes the turns, so it has to be quick. Several may listen.
        """
        if not callable(listener):
            raise TypeError(f"what listens is a function, which {listener!r} is not")
        self._measuring += (listener,)
        return listener

    def _observe(self, name: str, value: float) -> None:
        """Tell those who listen, if any do."""
        for listener in self._measuring:
            self._fenced(partial(listener, name, value))

    def _log(
        self,
        level: int,
        text: str,
        *arguments: object,
        partner: int | None = None,
        error: Exception | None = None,
        exc_info: bool = False,
        **fields: Any,
    ) -> None:
        """Log a line about this agent, which ``text`` names first (%r), and ``fields`` for formatters that show them.

        The fields are as they came, from the network perhaps: whoever shows them escapes them (T17).
        """
        if log.isEnabledFor(level):
            about = {"agent": f"{self.identity:x}"}
            if partner is not None:
                about["partner"] = f"{partner:x}"
            if error is not None:
                about |= {"error": type(error).__name__, "reason": str(error)}
            log.log(level, text, self, *arguments, exc_info=exc_info, stacklevel=2, extra=about | fields)

    # What the roles add.

    events: ClassVar[Mapping[type[Event], str]] = {
        ActionRequested: "_action_requested",
        ActionAnswered: "_answered",
        DataConfirmed: "_data_confirmed",
        DataReceived: "_data_received",
        DataRefused: "_data_refused",
        DataRepeated: "_data_repeated",
        KeyOffered: "_key_offered",
        TokenChanged: "_token_changed",
        Unanswered: "_unanswered",
        Unexpected: "_unexpected",
    }
    """Which method takes which event."""

    def _subscribe(self) -> None:
        raise NotImplementedError

    def _begin(self) -> None:
        """Do what is to be done at the start."""

    def _membership(self) -> int:
        """Return with how many partners we are joined; any thread may ask."""
        raise NotImplementedError

    def _check_address(self, address: Address, sender: int) -> None:
        """Raise PolicyError unless this sender's messages belong on this topic."""
        raise NotImplementedError

    # The agent's thread.

    def _loop(self) -> None:
        refusals = 0
        while not self._stopping.is_set():
            if self._unsaved:
                self._stopping.wait(_STORE_PAUSES[min(refusals, len(_STORE_PAUSES) - 1)])
                refusals += 1
                self._advance()
                continue
            refusals = 0
            deadline = self.deadline()
            pause = _IDLE if deadline is None else min(_IDLE, max(0.0, deadline - self._clock()))
            self._advance(_TURN, pause)

    def _advance(self, limit: int | None = None, patience: float = 0.0) -> bool:
        """Take a turn, or go on with one that could not be made durable; tell whether there was anything to do."""
        busy = self._gather(limit, patience)
        error: Exception | None = None
        if self._store is not None and self._turn.changes:
            began = time.perf_counter()
            try:
                with self._keys.lock if self._turn.changes.keys else nullcontext():
                    self._store.commit(self._turn.changes)
            except Exception as refused:  # noqa: BLE001 - whatever it is: without the store nothing may be accepted
                error = refused
            else:
                self._observe("commit", time.perf_counter() - began)
        return self._conclude(error) and busy

    def _gather(self, limit: int | None = None, patience: float = 0.0) -> bool:
        """Do what is in the inbox or due, unless a turn waits to be made durable; tell whether there was anything."""
        if self._unsaved:
            self._turn_began = time.monotonic()
            return True
        self._taking = threading.get_ident()
        try:
            done = self._drain(limit, patience)
            if not done:
                self._turn_began = time.monotonic()
            self._settle_handled(done)
            self._tick()
            self._close_turn()
        finally:
            self._taking = None
        return done > 0 or bool(self._turn.effects or self._turn.calls)

    def _settle_handled(self, done: int) -> None:
        """Finish inbox entries whose handlers have ended, after so many things of the inbox were done.

        What a handler has asked for may stand in the inbox still, and a crash must not find the entry finished and the
        request gone. So an entry waits until all is done that was in the inbox at its end.
        """
        count, ahead = self._ripe
        ahead -= done
        if ahead <= 0:
            self._finish(count)
            count = len(self._finished)  # before the inbox is looked at: what a handler asks for comes before its end
            ahead = self._inbox.qsize()
            if not ahead:
                self._finish(count)
                count = 0
        self._ripe = count, ahead
        if self._finished and self._inbox.empty():
            self._inbox.put(_nothing)  # another turn

    def _finish(self, count: int) -> None:
        self._turn.changes.finished += [self._finished.popleft() for _ in range(count)]

    def _conclude(self, error: Exception | None) -> bool:
        """Let the turn take effect outside; if the store refused it nothing happens, and the turn waits: False."""
        if isinstance(error, LeaseLostError):
            self._give_up(error)
            return False
        if error is not None:
            if not isinstance(error, StoreError):
                self.counts["faults"] += 1
            self.counts["not stored"] += 1
            if str(error) != self.store_error:
                text = "%r accepts nothing until its store works again: %a"
                self._log(logging.ERROR, text, str(error), error=error)
            self._unsaved, self.store_error = True, str(error)
            self._turn_began = None
            return False
        if self.store_error is not None:
            self._log(logging.WARNING, "%r: its store works again")
        self._unsaved, self.store_error = False, None
        turn, self._turn = self._turn, Turn()
        for effect in turn.effects:
            self._fenced(effect)
        self._submit(turn.calls)
        self._prune_audit()
        self._turn_began = None
        return True

    def _prune_audit(self) -> None:
        """Delete some of the audit rows that are too old, if that is due: so few that the next turn hardly waits."""
        now = self._clock()
        if self._audit_due is None or self._audit_kept is None or self._store is None or now < self._audit_due:
            return
        began = time.perf_counter()
        try:
            pruned = self._store.prune(now - self._audit_kept, _AUDIT_PIECE)
        except Exception as error:  # noqa: BLE001 - whatever it is: what is too old does no harm
            self._audit_due = now + _AUDIT_LOOK
            self._log(logging.WARNING, "%r could not prune its audit rows: %a", str(error), error=error)
            return
        took = time.perf_counter() - began
        more = pruned == _AUDIT_PIECE
        self._audit_due = now + (max(_AUDIT_PAUSE, took / self._audit_share()) if more else _AUDIT_LOOK)

    def _audit_share(self) -> float:
        """Return which part of its time the thread that takes our turns may spend on pruning for us."""
        return _AUDIT_SHARE

    def _tick(self) -> None:
        now = self._clock()
        self._fenced(lambda: self._perform(self._session.tick(now)))
        if self._retired is not None and now >= self._retired[1]:
            self._retired = None
        for waiting in self._queue.expire(now):
            self._end_waiting(waiting, UnansweredError(f"{waiting.partner:x} was not there in time"))

    def _close_turn(self) -> None:
        """Send what can be sent now, and put together what the store is to keep."""
        now = self._clock()
        for partner in [partner for partner in self._queue.held() if self._session.binds(partner)]:
            self._queue.release(partner)
        for device in self._queue.awake(now):
            self._fenced(lambda device=device: self._work_off(device, now))  # type: ignore[misc]
        # Here: a deployed peer hears only what lies above all that it has sent meanwhile. And before the receipts.
        while self._unknown:
            peer, token = self._unknown.popleft()
            self._fenced(lambda peer=peer, token=token: self._perform(self._session.refuse_data(peer, token, now)))  # type: ignore[misc]
        for device in self._session.receipts_due(now):
            self._fenced(lambda device=device: self._perform(self._session.receipt(device, now, self._entropy(16))))  # type: ignore[misc]
        if self._store is None:
            return
        changes, changed = self._turn.changes, self._session.changes()
        changes.partners, changes.forgotten = changed.partners, changed.forgotten
        changes.exchanges, changes.ended = changed.exchanges, changed.ended
        changes.facts += changed.facts
        while self._handed_over:
            changes.settled.append(self._handed_over.popleft())

    def _work_off(self, partner: int, now: float) -> None:
        """Send a partner the values that wait for it, as many as it can take."""
        while (waiting := self._queue.first(partner)) is not None and self._session.is_member(partner):
            if self._session.binds(partner):
                if not self._session.has_room(partner):
                    return  # a receipt will wake the queue
                if (left := waiting.expiry - now) <= 0:  # since the queue was looked at: it is taken out at once
                    self._queue.wake(partner)
                    return
                sends = self._session.confirmed_data(partner, *waiting.value, now, self._entropy(16), left)
                if waiting.future is not None:
                    self._pending[partner, sends[0].message.token] = waiting.future
                else:
                    self._inherited.add((partner, sends[0].message.token))
            else:
                sends = self._session.data(partner, *waiting.value, now, self._entropy(16))
                if waiting.future is not None:
                    self._resolve(waiting.future, None)
            self._queue.drop_first(partner)
            self._turn.changes.settled.append((partner, waiting.number))
            self._perform(sends)

    def _end_waiting(self, waiting: Waiting, error: SrupError) -> None:
        """End a value that will not be sent."""
        self._turn.changes.settled.append((waiting.partner, waiting.number))
        unsent = Data(sequence_id=0, sender_id=self.identity, token=_UNSENT, **waiting.value._asdict())
        self._tell_outcome(waiting.future, waiting.partner, unsent, error)

    def _give_up(self, error: LeaseLostError) -> None:
        """Touch nothing any more: somebody else serves these partners now, with all that was not made durable here."""
        self._log(logging.ERROR, "%r stops: %a", str(error), error=error)
        self._unsaved, self.store_error = True, str(error)
        self.counts["leases lost"] += 1
        self._stopping.set()
        self._transport.stop(0.0)
        self._stopped.set()

    def _know(self, identity: int, name: str, value: str) -> None:
        """Note a fact, if it is news."""
        known = self._facts.setdefault(identity, {})
        if known.get(name) != value:
            known[name] = value
            self._turn.changes.facts.append(Fact(identity, name, value))

    def _next_number(self) -> int:
        """Return the number of a new inbox or outbox entry: above all earlier ones, those before a restart included."""
        self._number = max(self._number + 1, int(self._clock() * 1e6))
        return self._number

    def _fenced(self, job: Callable[[], Result]) -> Result | None:
        try:
            return job()
        except (Exception, SystemExit):  # noqa: BLE001 - a handler must not end the thread either
            self.counts["faults"] += 1
            self._log(logging.ERROR, "%r: a fault", exc_info=True)
            return None

    def _set_connected(self, connected: bool, why: str) -> None:
        self.connected, self._link = connected, why
        level = logging.INFO if connected or self._stopping.is_set() else logging.WARNING
        how = "connected" if connected else "not connected"
        self._log(level, "%r is %s: %s", how, ascii(why), connected=connected, reason=why)
        self._tell("link", connected, why)

    def _arrived(self, delivery: Delivery) -> None:
        """Take a delivery on the transport's thread."""
        if self._inbox.qsize() + self._backlog() >= _MAX_WAITING:
            self.counts["overflow"] += 1  # not settled: a broker without a limit of its own sends it again later
        else:
            self._inbox.put(delivery)

    def _deliver(self, batch: list[Delivery]) -> None:
        """Verify messages together, then step the session with each; settle each whatever came of it."""
        if self._stopping.is_set() or not batch:
            return  # not settled: the broker keeps them for the next start
        self.counts["received"] += len(batch)
        wires = [delivery.payload for delivery in batch]
        as_of = self._keys.withdrawn
        opened = self._fenced(lambda: verify_many(wires, self._keys, self._threads))
        if opened is None:  # the keys are not to be had: unsettled, the broker sends it again later
            self.counts["not verified"] += len(batch)
            return
        for delivery, message in zip(batch, opened, strict=True):
            self._fenced(lambda d=delivery, m=message: self._handle(d, m, as_of))  # type: ignore[misc]
            self._turn.effects.append(partial(self._settle_delivery, delivery.ack))
        self._observe("batch", len(batch))

    def _settle_delivery(self, ack: Callable[[], None] | None = None) -> None:
        """Settle one more message, and what is owed, unless the handlers are far behind: then the broker has to wait.

        A message that is merely not taken would be lost to us until the next connection.
        """
        if ack is not None:
            self._owed.append(ack)
        with suppress(IndexError):  # the application's thread settles as well
            while self._owed and self._backlog() < _HELD_FROM:
                self._owed.popleft()()

    def _handle(self, delivery: Delivery, opened: Message | SrupError, as_of: int) -> None:
        """Let a message take effect, or say why not."""
        if isinstance(opened, UnknownSenderError) and opened.sender_id == self.identity:
            return  # our own: both ends share a device's topic (FLOWS.md, "Identities, topics, transport")
        try:
            # Whoever takes a key away does so before this message has its effect, or after it.
            with self._keys.lock:
                message, self._signer = self._genuine(delivery.payload, opened, as_of)
                self._recognise(message.sender_id)
                self.counts["verified"] += 1
                self._check_address(parse_topic(delivery.topic), message.sender_id)
                now = self._clock()
                outputs = self._session.receive(message, now, self._entropy(16))
                if self._store is not None:
                    self._turn.changes.audit.append(_audit_row(message, outputs, now))
                self._perform(outputs)
        except SrupError as error:
            self._refuse(Refusal(delivery.topic, delivery.payload, error))

    def _give(self, give: Callable[[], object]) -> None:
        """Give the world outside a message, a result or a subscription: when the turn, if one is taken, is durable."""
        if self._taking == threading.get_ident():
            self._turn.effects.append(give)
        else:
            give()

    def _genuine(self, wire: bytes, opened: Message | SrupError, as_of: int) -> tuple[Message, PublicKey]:
        """Return what its sender's key has signed, or the one that is retiring, and that key; raise why nothing has."""
        if isinstance(opened, Message) and self._keys.withdrawn != as_of:
            [opened] = verify_many([wire], self._keys)  # a key has been taken away since, and it may be this one
        if isinstance(opened, SignatureError):
            frame = decode(wire)
            retiring = self._keys.retiring(frame.sender_id, self._clock())
            if retiring is not None:
                return frame.verify(retiring), retiring
        if isinstance(opened, SrupError):
            raise opened
        return opened, self._keys[opened.sender_id]

    def _recognise(self, sender: int) -> None:
        """Take note of whose message has verified, before it has any effect."""

    def _refuse(self, refusal: Refusal) -> None:
        error = refusal.error
        self.counts[type(error).__name__] += 1
        # A replay is ordinary, except of a join request: a device whose ids have gone back is locked out.
        ordinary = isinstance(error, ReplayError) and parse_topic(refusal.topic).server is None
        level = logging.INFO if ordinary else logging.WARNING
        text, topic = "%r refused a message on %a: %s: %a", refusal.topic
        self._log(level, text, topic, type(error).__name__, str(error), topic=topic, error=error)
        if (
            self._submitted_jobs - self._started_jobs < _MAX_REFUSALS
        ):  # junk costs its sender nothing, and must not fill the memory here (T9)
            handler = self._handlers.get("refused")
            if handler is not None:  # at once: nothing has changed that would have to be durable first
                self._submit([Call(lambda: handler(refusal))])
        else:
            self.counts["refusals not told"] += 1

    def _perform(self, outputs: Sequence[Output]) -> list[Dispatch]:
        """Send what is to be sent and tell what is to be told, each on its own; return what became of the sends."""
        dispatches = []
        for output in outputs:
            if isinstance(output, Send):
                if (dispatch := self._fenced(lambda send=output: self._publish(send))) is not None:  # type: ignore[misc]
                    dispatches.append(dispatch)
            elif (method := self.events.get(type(output))) is not None:
                self._queue.wake(output.peer)  # a request that has ended makes room
                self._fenced(lambda event=output, method=method: getattr(self, method)(event))  # type: ignore[misc]
        return dispatches

    def _publish(self, send: Send) -> Dispatch:
        """Sign, and send when the turn is durable. The session sends again what waits for an answer."""
        topic = self._topic(send)
        try:
            dispatch = Dispatch(topic, encode(send.message, self._key_for(send.to)))
        except SrupError as error:
            self._unsent(send, error)
            return Dispatch(topic, b"", error)
        number = 0
        if self._store is not None and not self._session.repeats(send):
            number, now = self._next_number(), self._clock()
            expiry = now + self._session.policy.update_lifetime
            self._turn.changes.outbox.append(OutboxEntry(number, send.to, topic, dispatch.wire, expiry))
        self._give(lambda: self._transmit(send, dispatch, number))
        return dispatch

    def _transmit(self, send: Send, dispatch: Dispatch, number: int) -> None:
        try:
            self._to_broker(send.to, number, dispatch.topic, dispatch.wire)
        except SrupError as error:
            dispatch.error = error
            self._unsent(send, error)
        else:
            self.counts["sent"] += 1

    def _to_broker(self, partner: int, number: int, topic: str, wire: bytes) -> None:
        """Publish; forget the outbox entry of this number when the broker has the message."""
        if number:
            self._transport.publish(topic, wire, lambda: self._handed_over.append((partner, number)))
        else:
            self._transport.publish(topic, wire)

    def _unsent(self, send: Send, error: SrupError) -> None:
        self.counts["unsent"] += 1
        kind = type(send.message).__name__
        text = "%r could not send %s: %s"
        self._log(logging.WARNING, text, kind, error, partner=send.to, message_type=kind, error=error)

    def _key_for(self, _partner: int) -> PrivateKey:
        """Return what signs for this partner."""
        return self._key

    def _own_keys(self) -> list[PrivateKey]:
        """Return every key that something may be sealed to, the likeliest first."""
        return [self._key] if self._retired is None else [self._key, self._retired[0]]

    def _unseal(self, sealed: bytes) -> bytes:
        """Open a value that was sealed to us, before or after a change of our key; SealError if it does not open."""
        for key in self._own_keys():
            with suppress(SealError):
                return unseal(sealed, key)
        raise SealError("the sealed value does not open")

    def _topic(self, send: Send) -> str:
        if isinstance(send.message, _JOIN_REQUESTS):
            return join_topic(send.to, self.identity)
        return device_topic(self._device_of(send))

    def _device_of(self, send: Send) -> int:
        """Return whose topic a message belongs on; both ends of a link share the device's."""
        raise NotImplementedError

    # Requests and their answers.

    def _request(self, make: Callable[[float, bytes], Sequence[Output]], answered: bool = True) -> "Future[Any]":
        """Make a request on the agent's thread; the future ends with its answer, or at once if there is none.

        Whatever prevents it ends the future too; only a request that has an answer survives a TransportError, because
        it is sent again.
        """
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def job() -> None:
            try:
                if self._refuses_requests():
                    raise TransportError(f"{self!r} is stopped")
                outputs = make(self._clock(), self._entropy(16))
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                self._resolve(future, error)
                return
            tokens = [(output.to, output.message.token) for output in outputs if isinstance(output, Send)]
            if answered:
                self._pending.update(dict.fromkeys(tokens, future))
            dispatches = self._perform(outputs)
            trouble = next((each.error for each in dispatches if each.error is not None), None)
            if trouble is not None:
                for token in tokens:
                    self._pending.pop(token, None)
                self._resolve(future, trouble)
            elif not answered:
                self._turn.futures.append(future)
                self._give(lambda: end_future(future, next((each.error for each in dispatches if each.error), None)))

        self._post(job)
        return future

    def _refuses_requests(self) -> bool:
        """Tell whether requests are refused.

        With a store, what a handler asks for that is running while we stop is kept for the next start: the handler is
        not called again.
        """
        return self._stopped.is_set() or (self._store is None and self._stopping.is_set())

    def _post(self, job: Callable[[], None]) -> None:
        """Have a job done on the agent's thread."""
        self._inbox.put(job)
        if self._stopped.is_set():
            self._drain()  # nobody else would

    def _settle(self, event: Event, result: object) -> None:
        """End the request that this event answers, with a result or an exception."""
        future = self._pending.pop((event.peer, event.token), None)
        self._end_request(future, event, self._session.request(event.peer, event.token), result)

    def _end_request(self, future: "Future[Any] | None", event: Event, request: Message | None, result: object) -> None:
        """End a request; whoever made it before a restart has no future, and is told in another way."""
        inherited = (event.peer, event.token) in self._inherited
        self._inherited.discard((event.peer, event.token))
        if future is not None or inherited:
            self._tell_outcome(future, event.peer, request, result)

    def _tell_outcome(
        self, future: "Future[Any] | None", partner: int, request: Message | None, result: object
    ) -> None:
        """Tell how a request ended, by its future or, after a restart, by a handler.

        So is whoever has a future if the process ends before that does.
        """
        number = 0
        if self._store is not None and "outcome" in self._handlers:
            error = isinstance(result, Exception)
            told = (type(result).__name__, str(result)) if error else result
            kept = body.dump((partner, request, error, told), lambda _: None)
            number = self._keep(partner, b"", "outcome", kept.encode())
        if future is not None:
            self._resolve(future, result)
            if number:
                self._give(lambda: self._acknowledge(partner, number))
        elif number:
            self._call_announced("outcome", partner, (Outcome(partner, request, result),), number)

    def _end_partner(self, partner: int, asked: Sequence[Exchange], why: str) -> None:
        """End all that was asked of a partner that is another one now; the session has forgotten it already."""
        error = PolicyError(f"{partner:x} {why}")
        if self._store is not None:
            self._turn.changes.facts.append(Fact(partner, _REPLACED, None))
        for exchange in asked:
            self._end_exchange(exchange, error)
        for peer, token in [request for request in self._pending if request[0] == partner]:
            self._resolve(self._pending.pop((peer, token)), error)
        for waiting in self._queue.drop(partner):
            self._end_waiting(waiting, error)

    def _end_exchange(self, exchange: Exchange, error: SrupError) -> None:
        """End one of our requests, made before a restart or not."""
        partner = exchange.partner.identity
        future = self._pending.pop((partner, exchange.token), None)
        self._end_request(future, Event(partner, exchange.token), exchange.request, error)

    def _resolve(self, future: "Future[Any]", result: object) -> None:
        """End a future with a result or an exception, when the turn is durable."""
        if self._taking == threading.get_ident():
            self._turn.futures.append(future)
        self._give(lambda: end_future(future, result))

    def _drive(self, method: Callable[..., Sequence[Output]], *arguments: Any) -> None:
        """Carry a decision of the application into the session, on the agent's thread."""

        def job() -> None:
            try:
                outputs = method(*arguments, self._clock())
            except SrupError as error:
                self._log(logging.WARNING, "%r: %s", error, error=error)  # it came too late
            else:
                self._perform(outputs)

        self._inbox.put(job)

    # Handlers of the application.

    @staticmethod
    def _register(
        table: dict[Any, Any], name: object, entry: Callable[[Any], Any] = lambda handler: handler
    ) -> Callable[[Handler], Handler]:
        def decorate(handler: Handler) -> Handler:
            if not callable(handler) or iscoroutinefunction(handler):
                raise TypeError(f"a handler is a plain function, which {handler!r} is not")
            table[name] = entry(handler)
            return handler

        return decorate

    def _apply(self, job: Callable[[], object], executor: Executor | None = None) -> None:
        """Run a job on the application's thread, or another one, when the turn is durable."""
        if executor is not None:
            self._give(lambda: self._start_job(executor, partial(self._fenced, job)))
        else:
            self._call(Call(job))

    def _call(self, call: Call) -> None:
        if self._taking == threading.get_ident():
            self._turn.calls.append(call)
        else:
            self._submit([call])

    def _submit(self, calls: Sequence[Call]) -> None:
        if not calls:
            return
        with self._submitting:
            self._submitted_jobs += len(calls)
        self._start_job(self._application, partial(self._run_calls, calls))

    def _start_job(self, executor: Executor, job: Callable[[], object]) -> None:
        try:
            future = executor.submit(job)
        except RuntimeError:
            self._log(logging.INFO, "%r is stopped; a handler was not called")
            return
        if not future.done():
            self._jobs.add(future)
            future.add_done_callback(self._jobs.discard)

    def _may_call(self) -> bool:
        """Tell whether handlers may be called now."""
        return not self._stopping.is_set()

    def _run_calls(self, calls: Sequence[Call]) -> None:
        """Call handlers, one after the other; a call that is not made now is made after a restart if it is kept."""
        for job, handling, number in calls:
            if not self._may_call():
                return
            self._started_jobs += 1  # on the application's thread alone
            self.handling, self._handler_began = handling, time.monotonic()
            self._fenced(job)
            self.handling = self._handler_began = None
            if self._owed:
                self._settle_delivery()
            if number and handling is not None:
                self._acknowledge(handling.partner, number)

    def _acknowledge(self, partner: int, number: int) -> None:
        """Have the next turn forget an inbox entry: the application knows."""
        idle = not self._finished
        self._finished.append((partner, number))
        if idle:
            self._inbox.put(_nothing)

    def _backlog(self) -> int:
        """Return how many handlers wait to be called."""
        return self._submitted_jobs - self._started_jobs + len(self._turn.calls)

    def _apply_for(self, peer: int, token: bytes, job: Callable[[], object], number: int = 0) -> None:
        """Run a job for a partner on the application's thread, unless its key is taken away before the turn comes."""
        pin = self._keys.pin(peer)

        def due() -> None:
            if pin is not None and self._keys.pin(peer) is pin:
                job()
            else:
                self.counts["not done"] += 1
                self._log(logging.WARNING, "%r: %x lost its key; what it asked for is not done", peer, partner=peer)

        name = f"{peer:x}/{number}" if number else token.hex()
        self._call(Call(due, Handling(peer, name, self._again), number))

    def _keep(self, peer: int, token: bytes, kind: str, body: bytes) -> int:
        """Keep something that the application is to be told until it has been told; return its number."""
        if self._store is None:
            return 0
        number = self._next_number()
        self._turn.changes.inbox.append(InboxEntry(number, peer, token, kind, body))
        return number

    def _tell(self, name: str, *arguments: object) -> None:
        """Call a handler that has nothing to answer, if there is one."""
        handler = self._handlers.get(name)
        if handler is not None:
            self._call(Call(lambda: handler(*arguments)))

    def _announce(self, name: str, peer: int, *arguments: Any, live: Sequence[Any] | None = None) -> None:
        """Call a handler that has nothing to answer, if there is one; after a crash before its end, once more.

        ``arguments`` can be kept; the handler gets them, or ``live`` ones, which :meth:`_revive` makes of them later.
        """
        if name in self._handlers:
            number = self._keep(peer, b"", name, body.dump(arguments, lambda _: None).encode())
            self._call_announced(name, peer, arguments if live is None else live, number)

    def _call_announced(self, name: str, peer: int, values: Sequence[Any], number: int) -> None:
        handler = self._handlers[name]
        handling = Handling(peer, f"{peer:x}/{number}", self._again) if number else None
        self._call(Call(lambda: handler(*values), handling, number))

    def _revive(self, name: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """Return the arguments of a handler from what is kept of them."""
        if name != "outcome":
            return arguments
        partner, request, error, told = arguments
        kinds: dict[str, type[SrupError]] = {kind.__name__: kind for kind in (PolicyError, UnansweredError)}
        return (Outcome(partner, request, kinds.get(told[0], SrupError)(told[1]) if error else told),)

    def _ask(self, handler: Callable[..., Any], *arguments: object, failure: Status, success: Status) -> Status:
        """Call a handler and translate what it returns or raises; on the application's thread."""
        try:
            result = handler(*arguments)
        except (Exception, SystemExit):  # noqa: BLE001 - it is logged, and answered
            self.counts["faults"] += 1
            self._log(logging.ERROR, "%r: a handler raised", exc_info=True)
            return failure
        if isawaitable(result):
            self.counts["faults"] += 1
            text = "%r: %r returned something to await; a handler is a plain function"
            self._log(logging.ERROR, text, handler)
            if iscoroutine(result):
                result.close()
            return failure
        if isinstance(result, Status):
            if result >> 4 == success >> 4:  # codes of one family share their high digit
                return result
            self.counts["faults"] += 1
            text = "%r: a handler returned %s, which answers something else"
            self._log(logging.ERROR, text, result.name, status=result.name)
            return failure
        return failure if result is False else success

    def _is_over(self, event: Event) -> bool:
        """Tell, when the turn of an order has come, that nobody waits for it any more: then it is not done."""
        if self._session.awaits(event.peer, event.token):
            return False
        self.counts["not done"] += 1
        text = "%r does not do what %x wanted: it has expired, or we are not joined any more"
        self._log(logging.WARNING, text, event.peer, partner=event.peer)
        return True

    # Events.

    def _action_requested(self, event: ActionRequested) -> None:
        handler = self._actions.get(event.action_id)

        def job() -> None:
            if self._is_over(event):
                return
            status = Status.ACTION_UNKNOWN
            if handler is not None:
                status = self._ask(handler, event.peer, failure=Status.ACTION_FAIL, success=Status.ACTION_SUCCESS)
            self._drive(self._session.answer_action, event.peer, event.token, status)

        self._apply_for(event.peer, event.token, job)

    def _answered(self, event: ActionAnswered) -> None:
        self._settle(event, event.status)

    def _data_received(self, event: DataReceived) -> None:
        taken = self._take_data(event.peer, event.token, Value(event.data_id, event.data))
        if not taken and event.data_id != IDENTIFICATION_RESPONSE:
            self._unknown.append((event.peer, event.token))

    def _take_data(self, peer: int, token: bytes, value: Value, number: int = 0) -> bool:
        """Hand a value to its handler, if there is one that can read it."""
        kind, handler = self._data.get(value.data_id) or self._data.get(None) or (None, None)
        if kind is None or handler is None:
            return False
        try:
            read = decode_data(value.data, kind)
        except SrupError as error:
            text, data_id = "%r: value %a of %x: %s", value.data_id
            self._log(logging.WARNING, text, data_id, peer, error, partner=peer, data_id=data_id, error=error)
            return False
        number = number or self._keep(peer, token, _DATA, value.pack())
        self._apply_for(peer, token, lambda: handler(peer, value.data_id, read), number)
        return True

    def _data_repeated(self, event: DataRepeated) -> None:
        self.counts["repeated"] += 1

    def _token_changed(self, event: TokenChanged) -> None:
        future = self._pending.pop((event.peer, event.former), None)
        if future is not None:
            self._pending[event.peer, event.token] = future
        if (event.peer, event.former) in self._inherited:
            self._inherited.discard((event.peer, event.former))
            self._inherited.add((event.peer, event.token))

    def _data_confirmed(self, event: DataConfirmed) -> None:
        self._inherited.discard((event.peer, event.token))
        future = self._pending.pop((event.peer, event.token), None)
        if future is not None:
            self._resolve(future, None)

    def _data_refused(self, event: DataRefused) -> None:
        self.counts["data refused"] += 1
        self._log(logging.WARNING, "%r: %x does not know a value that we sent", event.peer, partner=event.peer)
        future = self._pending.pop((event.peer, event.token), None)
        request = self._session.request(event.peer, event.token)
        self._end_request(future, event, request, PolicyError(f"{event.peer:x} does not know this value"))

    def _key_offered(self, event: KeyOffered) -> None:
        assert self._signer is not None  # noqa: S101 - an offer comes in a message
        signer, now = self._signer, self._clock()
        try:
            key = rotation.check(event.data, event.peer, self.identity, signer)
            rotation.check_succession(self._keys, event.peer, signer, key, now)
        except SrupError as error:
            self._perform(self._refuse_key(event, str(error), now))
            return
        handler = self._handlers.get("key")

        def job() -> None:
            status = Status.ACTION_SUCCESS
            if handler is None:
                text = "%r: nobody stores the new key of %x (see on_key_changed)"
                self._log(logging.WARNING, text, event.peer, partner=event.peer)
            else:
                status = self._ask(handler, event.peer, key, failure=Status.ACTION_FAIL, success=Status.ACTION_SUCCESS)
            self._drive(self._decide_key, event, signer, key, status)

        self._apply_for(event.peer, event.token, job)

    def _decide_key(
        self, event: KeyOffered, signer: PublicKey, key: PublicKey, status: Status, now: float
    ) -> Sequence[Output]:
        """Take a key that has been stored, unless something else has been decided about it meanwhile."""
        if status is not Status.ACTION_SUCCESS:
            return self._refuse_key(event, "it could not be stored", now)
        with self._keys.lock:
            try:
                rotation.check_succession(self._keys, event.peer, signer, key, now)
            except PolicyError as error:
                return self._refuse_key(event, str(error), now)
            self._keys.rotate(event.peer, key, now + self._session.policy.key_overlap)
            outputs = self._session.answer_key(event.peer, event.token, status, now)
        self._log(logging.INFO, "%r takes the new key of %x: %r", event.peer, key, partner=event.peer)
        return outputs

    def _refuse_key(self, event: KeyOffered, why: str, now: float) -> Sequence[Output]:
        self.counts["key refused"] += 1
        text = "%r does not take the new key of %x: %s"
        self._log(logging.WARNING, text, event.peer, why, partner=event.peer, reason=why)
        return self._session.answer_key(event.peer, event.token, Status.ACTION_FAIL, now)

    def _unanswered(self, event: Unanswered) -> None:
        self.counts["unanswered"] += 1
        kind = event.request.__name__
        self._log(logging.WARNING, "%r: %x did not answer %s", event.peer, kind, partner=event.peer, message_type=kind)
        error = UnansweredError(f"{event.peer:x} did not answer {event.request.__name__}")
        self._end_request(self._pending.pop((event.peer, event.token), None), event, event.message, error)

    def _unexpected(self, event: Unexpected) -> None:
        self.counts["unexpected"] += 1
        text, peer, kind, why = "%r: unexpected %s of %x: %s", event.peer, event.message.__name__, event.why
        self._log(logging.WARNING, text, kind, peer, why, partner=peer, message_type=kind, reason=why)

    # What survives a restart.

    def _restore(self, state: State) -> None:
        """Go on where the process before this one ended. What was handed to handlers and not finished is so again."""
        assert self._store is not None  # noqa: S101 - who else has kept the state
        now = self._clock()
        again = self._session.restore(state, now)
        others = set(self._keys.keep(list(state.keys), state.barred, self._save_keys))
        others |= {fact.identity for fact in state.facts if fact.name == _REPLACED}
        others |= {partner for partner in self._session.partners() if partner not in self._keys}
        self._inherited = {
            (each.partner.identity, each.token)
            for each in self._session.requests()
            if not isinstance(each.request, _JOIN_REQUESTS)
        }
        asked = {partner: self._session.asked_of(partner) for partner in others}
        for partner in others:
            self._session.revoke(partner, now)
        again = [event for event in again if isinstance(event, Event) and event.peer not in others]
        for fact in state.facts:
            if fact.value is not None and fact.name != _REPLACED and fact.name not in self._session.facts:
                self._facts.setdefault(fact.identity, {})[fact.name] = fact.value
        self._audit_due = None if self._audit_kept is None else now
        self._taking, self._again = threading.get_ident(), True
        try:
            self._restore_role(state)
            self._perform(again)
            for entry in state.inbox:
                if entry.kind == _DATA and entry.partner in others:
                    self._turn.changes.finished.append((entry.partner, entry.number))  # the other one has sent it
                else:
                    self._fenced(lambda entry=entry: self._resume_entry(entry))  # type: ignore[misc]
            for unsent in state.outbox:
                if unsent.topic and unsent.partner in others:
                    self._turn.changes.settled.append((unsent.partner, unsent.number))
                else:
                    self._fenced(lambda unsent=unsent: self._resend_entry(unsent, now))  # type: ignore[misc]
            for partner in sorted(others):
                self._end_partner(partner, asked[partner], "has another key now, or none")
        finally:
            self._taking, self._again = None, False

    def _save_keys(self, changes: Changes) -> None:
        """Keep a change of keys, under their lock: what a turn changes becomes durable with it, anything else at once.

        A partner that gets another key is another one, of which nothing must go on that is kept under its identity.
        """
        if self._store is None:
            return
        for record in changes.keys:
            pin = self._keys.pin(record.identity)
            other = record.pin is None and pin is not None and (record.key is None or pin.to_pem() != record.key)
            if other and record.identity in self._session.partners():
                changes.facts.append(Fact(record.identity, _REPLACED, "yes"))
        kept = self._turn.changes
        if self._taking == threading.get_ident():
            kept.keys += changes.keys
            kept.barred += changes.barred
            kept.reports += changes.reports
            kept.facts += changes.facts
        else:
            self._store.commit(changes)
            later = {record.identity for record in changes.keys}
            kept.keys = [record for record in kept.keys if record.identity not in later]
            kept.facts = [fact for fact in kept.facts if fact.name != _REPLACED or fact.identity not in later]

    def _restore_role(self, state: State) -> None:
        """Take over what the role knows besides the session."""

    def _resume_entry(self, entry: InboxEntry) -> None:
        self._number = max(self._number, entry.number)
        if entry.kind == _DATA:
            told = self._take_data(entry.partner, entry.token, Value.unpack(entry.body), entry.number)
        elif told := entry.kind in self._handlers:
            arguments = body.load(entry.body.decode(), lambda partner, token: None)
            self._call_announced(entry.kind, entry.partner, self._revive(entry.kind, arguments), entry.number)
        if not told:
            text = "%r: no handler takes what was accepted before: %a of %x"
            self._log(logging.WARNING, text, entry.kind, entry.partner, partner=entry.partner)

    def _resend_entry(self, entry: OutboxEntry, now: float) -> None:
        self._number = max(self._number, entry.number)
        if entry.topic == "":
            self._queue.add(Waiting(entry.number, entry.partner, Value.unpack(entry.body), entry.expiry))
        elif now < entry.expiry:
            self._give(lambda: self._to_broker(entry.partner, entry.number, entry.topic, entry.body))
        else:
            self._turn.changes.settled.append((entry.partner, entry.number))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity:x}>"


_UNSENT: Final = b"unsent"
"""The token of a value that was never sent, in the Outcome about it."""

_REPLACED: Final = "replaced"
"""The fact that a partner's key was replaced or dropped since what is kept about it was agreed with the former one."""

_DATA: Final = "data"
"""The kind of an inbox entry that holds a value."""


def _audit_row(message: Message, outputs: Sequence[Output], now: float) -> AuditRow:
    unexpected = next((output.why for output in outputs if isinstance(output, Unexpected)), None)
    outcome = "accepted" if unexpected is None else f"unexpected: {unexpected}"
    return AuditRow(now, message.sender_id, message.sequence_id, message.layout.type, message.token, outcome)


def end_future(future: "Future[Any]", result: object) -> None:
    """End a future, unless something else has ended it."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
