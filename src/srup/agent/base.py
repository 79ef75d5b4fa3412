"""What devices and servers have in common: three threads and who does what on them.

The transport's thread only enqueues. The agent's own thread takes what is there, in order: it verifies messages in
batches as large as what has arrived, never waiting for more, steps the session, signs and publishes. A message is
settled with the broker after it has been handled, so the broker's limit of unsettled messages (MQTT 5: receive maximum)
bounds the queue. The application's handlers run on a third thread, one at a time and in order, so that a
slow one delays neither the protocol nor the link; those that wait for a person or a camera have another one to
themselves. Whatever raises on any of them is counted and logged, and the next message is served (T8).
"""

import logging
import queue
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from itertools import count
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeVar, get_args

from .. import rotation
from ..codec import decode, encode, verify_many
from ..errors import (
    PolicyError,
    ReplayError,
    SealError,
    SignatureError,
    SrupError,
    TransportError,
    UnansweredError,
    UnknownSenderError,
)
from ..keyring import KeyRing
from ..keys import PrivateKey, PublicKey
from ..messages import Data, DataKind, HumanJoinRequest, JoinRequest, Message, ObservedJoinRequest, decode_data
from ..seal import unseal
from ..session.base import Output, Send, Session
from ..session.events import (
    ActionAnswered,
    ActionRequested,
    DataReceived,
    DataRefused,
    Event,
    KeyOffered,
    Unanswered,
    Unexpected,
)
from ..transport.base import Delivery, Transport
from ..transport.mqtt import MqttTransport
from ..transport.topics import Address, device_topic, join_topic, parse_topic
from ..wire import IDENTIFICATION_RESPONSE, Status

__all__ = ["Agent", "Refusal"]

log: Final = logging.getLogger("srup.agent")

Result = TypeVar("Result")
Handler = TypeVar("Handler", bound=Callable[..., Any])

_JOIN_REQUESTS: Final = (JoinRequest, HumanJoinRequest, ObservedJoinRequest)
_IDLE: Final = 3600.0  # the longest sleep when no deadline is near, in seconds
_BATCH: Final = 256  # messages that are verified together at most
_MAX_WAITING: Final = 10_000  # messages and handlers that wait at most; a broker keeps what does not get in
_MAX_REFUSALS: Final = 256  # handlers that wait at most when one more refusal is told


def _nothing() -> None:
    """Wake the agent's thread, or stand for an empty inbox."""


@contextmanager
def _terminable() -> Iterator[None]:
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
    nothing should.
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
    ) -> None:
        check_type(key, PrivateKey, "key")
        if type(threads) is not int or threads < 1:
            raise ValueError(f"threads must be an int of at least 1, not {threads!r}")
        self.identity = session.identity
        self.counts: Counter[str] = Counter()
        self.connected = False
        self._link = "not started"  # what the transport said last
        self._session = session
        self._key = key
        self._retired: tuple[PrivateKey, float] | None = None  # what was sealed to it opens until then
        self._keys = keys  # of the partners
        self._signer: PublicKey | None = None  # which of them has signed the message in hand
        self._threads = threads
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._inbox: queue.SimpleQueue[Delivery | Callable[[], None]] = queue.SimpleQueue()
        self._pending: dict[tuple[int, bytes], Future[Any]] = {}
        self._actions: dict[int, Callable[..., Any]] = {}
        self._data: dict[str | None, tuple[DataKind, Callable[..., Any]]] = {}
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._application: Executor = Inline()
        self._aside: Executor = Inline()  # for handlers that wait for a person or a camera
        self._withheld: tuple[int, list[Callable[[], object]]] | None = None  # by which thread, and what
        self._submitting = threading.Lock()
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
        """
        if self._started or self._stopping.is_set():
            raise TransportError(f"{self!r} was started before; make a new one")
        self._subscribe()
        self._transport.start(
            self._arrived,
            lambda connected, why: self._inbox.put(lambda: self._set_connected(connected, why)),
        )
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

        Requests without an answer end with TransportError, and so do all later ones. A second call does nothing.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._dismiss()
        self._inbox.put(_nothing)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        self._transport.stop(timeout if self.connected else 0.0)  # what waits for a link that is down, waits in vain
        self._stopped.set()
        self._drain()
        while self._pending:
            _, future = self._pending.popitem()
            future.set_exception(TransportError("stopped before the answer came"))

    def _dismiss(self) -> None:
        """Let the threads of the application end."""
        self._application.shutdown(wait=False, cancel_futures=True)
        self._aside.shutdown(wait=False, cancel_futures=True)

    def _drain(self, limit: int | None = None, patience: float = 0.0) -> None:
        """Do what is in the inbox, or so many things of it; deliveries that stand together are one batch.

        Waits up to ``patience`` seconds for the first thing and for nothing else.
        """
        batch: list[Delivery] = []
        for _ in count() if limit is None else range(limit):
            try:
                work = self._inbox.get(patience > 0, patience)
            except queue.Empty:
                if not batch:
                    return
                work = _nothing
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

    def run(self) -> None:
        """Start, unless that was done, and stay until :meth:`stop` is called, Ctrl-C is pressed or SIGTERM arrives."""
        if not self._started:
            self.start()
        try:
            with _terminable():
                while not self._stopped.wait(1.0):  # a bounded wait, so that Ctrl-C gets through everywhere
                    pass
        except KeyboardInterrupt:
            log.info("%r is interrupted", self)
        finally:
            self.stop()

    def __enter__(self) -> Self:
        return self if self._started else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def step(self) -> None:
        """Do everything that has arrived or is due now (the body of the agent's thread, for simulations)."""
        self._drain()
        self._tick()

    def deadline(self) -> float | None:
        """Return when :meth:`step` has something to do next even if nothing arrives; None for never."""
        return self._session.deadline()

    # What the application does.

    def action(self, partner: int, action_id: int, lifetime: float | None = None) -> "Future[Status]":
        """Ask a partner to do an action; the result is its answer: ACTION_SUCCESS, ACTION_UNKNOWN or ACTION_FAIL.

        After ``lifetime`` seconds (default: the policy's) the request expires: UnansweredError. PolicyError when the
        two are not joined.
        """
        return self._request(lambda now, nonce: self._session.action(partner, action_id, now, nonce, lifetime))

    def send_data(
        self, partner: int, data_id: str, value: bytes | str | int | float, kind: DataKind | None = None
    ) -> "Future[None]":
        """Send a value (see :meth:`Data.encode_value`); done when it is handed to the transport, there is no answer.

        It survives what MQTT's QoS 1 and a persistent session survive; a broker that forgets sessions loses it.
        """
        data = Data.encode_value(value, kind)
        return self._request(lambda now, nonce: self._session.data(partner, data_id, data, now, nonce), answered=False)

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

    def on_refused(self, handler: Handler) -> Handler:
        """Decorate what is called with a :class:`Refusal` for every message that is refused."""
        return self._register(self._handlers, "refused")(handler)

    def on_link(self, handler: Handler) -> Handler:
        """Decorate what is called when the link to the broker comes or goes: with whether it is there, and why."""
        return self._register(self._handlers, "link")(handler)

    # What the roles add.

    events: ClassVar[Mapping[type[Event], str]] = {
        ActionRequested: "_action_requested",
        ActionAnswered: "_answered",
        DataReceived: "_data_received",
        DataRefused: "_data_refused",
        KeyOffered: "_key_offered",
        Unanswered: "_unanswered",
        Unexpected: "_unexpected",
    }
    """Which method takes which event."""

    def _subscribe(self) -> None:
        raise NotImplementedError

    def _begin(self) -> None:
        """Do what is to be done at the start."""

    def _check_address(self, address: Address, sender: int) -> None:
        """Raise PolicyError unless this sender's messages belong on this topic."""
        raise NotImplementedError

    # The agent's thread.

    def _loop(self) -> None:
        while not self._stopping.is_set():
            deadline = self.deadline()
            pause = _IDLE if deadline is None else min(_IDLE, max(0.0, deadline - self._clock()))
            self._drain(_BATCH, pause)
            self._tick()

    def _tick(self) -> None:
        self._fenced(lambda: self._perform(self._session.tick(self._clock())))
        if self._retired is not None and self._clock() >= self._retired[1]:
            self._retired = None

    def _fenced(self, job: Callable[[], Result]) -> Result | None:
        try:
            return job()
        except (Exception, SystemExit):  # a handler must not end the thread either
            self.counts["faults"] += 1
            log.exception("%r: a fault", self)
            return None

    def _set_connected(self, connected: bool, why: str) -> None:
        self.connected, self._link = connected, why
        level = logging.INFO if connected or self._stopping.is_set() else logging.WARNING
        log.log(level, "%r is %s: %s", self, "connected" if connected else "not connected", ascii(why))
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
            delivery.ack()

    def _handle(self, delivery: Delivery, opened: Message | SrupError, as_of: int) -> None:
        """Let a message take effect, or say why not."""
        if isinstance(opened, UnknownSenderError) and opened.sender_id == self.identity:
            return  # our own: both ends share a device's topic (FLOWS.md, "Identities, topics, transport")
        try:
            # Whoever takes a key away does so before this message has its effect, or after it.
            with self._withholding(), self._keys.lock:
                message, self._signer = self._genuine(delivery.payload, opened, as_of)
                self._recognise(message.sender_id)
                self.counts["verified"] += 1
                self._check_address(parse_topic(delivery.topic), message.sender_id)
                self._perform(self._session.receive(message, self._clock(), self._entropy(16)))
        except SrupError as error:
            self._refuse(Refusal(delivery.topic, delivery.payload, error))

    @contextmanager
    def _withholding(self) -> Iterator[None]:
        """Give the application nothing before the block is left: what it does then may wait for a lock held here."""
        waiting: list[Callable[[], object]] = []
        self._withheld = threading.get_ident(), waiting
        try:
            yield
        finally:
            self._withheld = None
            for give in waiting:
                self._fenced(give)

    def _give(self, give: Callable[[], object]) -> None:
        """Give the application a result, or a job for its threads: now, or when this thread withholds nothing more."""
        withheld = self._withheld
        if withheld is None or withheld[0] != threading.get_ident():
            give()
        else:
            withheld[1].append(give)

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
        log.log(level, "%r refused a message on %a: %s: %a", self, refusal.topic, type(error).__name__, str(error))
        if self._backlog() < _MAX_REFUSALS:  # junk costs its sender nothing, and must not fill the memory here (T9)
            self._tell("refused", refusal)
        else:
            self.counts["refusals not told"] += 1

    def _perform(self, outputs: Sequence[Output]) -> SrupError | None:
        """Send what is to be sent and tell what is to be told, each on its own; return why something was not sent."""
        trouble = None
        for output in outputs:
            if isinstance(output, Send):
                trouble = self._fenced(lambda send=output: self._publish(send)) or trouble  # type: ignore[misc]
            elif (method := self.events.get(type(output))) is not None:
                self._fenced(lambda event=output, method=method: getattr(self, method)(event))  # type: ignore[misc]
        return trouble

    def _publish(self, send: Send) -> SrupError | None:
        """Sign and send; return what is in the way. The session sends again what waits for an answer."""
        try:
            self._transport.publish(self._topic(send), encode(send.message, self._key_for(send.to)))
        except SrupError as error:
            self.counts["unsent"] += 1
            log.warning("%r could not send %s: %s", self, type(send.message).__name__, error)
            return error
        self.counts["sent"] += 1
        return None

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

        def job() -> None:
            try:
                if self._stopping.is_set():
                    raise TransportError(f"{self!r} is stopped")
                outputs = make(self._clock(), self._entropy(16))
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)
                return
            tokens = [(output.to, output.message.token) for output in outputs if isinstance(output, Send)]
            if answered:
                self._pending.update(dict.fromkeys(tokens, future))
            trouble = self._perform(outputs)
            if trouble is not None and not (answered and isinstance(trouble, TransportError)):
                for token in tokens:
                    self._pending.pop(token, None)
                future.set_exception(trouble)
            elif not answered:
                future.set_result(None)

        future.set_running_or_notify_cancel()
        self._inbox.put(job)
        if self._stopped.is_set():
            self._drain()  # nobody else would
        return future

    def _settle(self, event: Event, result: object) -> None:
        """End the request that this event answers, with a result or an exception."""
        future = self._pending.pop((event.peer, event.token), None)
        if future is not None:
            self._resolve(future, result)

    def _resolve(self, future: "Future[Any]", result: object) -> None:
        """End a future with a result or an exception."""
        if isinstance(result, Exception):
            self._give(lambda: future.set_exception(result))
        else:
            self._give(lambda: future.set_result(result))

    def _drive(self, method: Callable[..., Sequence[Output]], *arguments: Any) -> None:
        """Carry a decision of the application into the session, on the agent's thread."""

        def job() -> None:
            try:
                outputs = method(*arguments, self._clock())
            except SrupError as error:
                log.warning("%r: %s", self, error)  # it came too late
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

    def _apply(self, job: Callable[[], None], executor: Executor | None = None) -> None:
        """Run a job on the application's thread, or another one."""

        def counted() -> None:
            self._started_jobs += 1  # on the application's thread alone
            job()

        def submit() -> None:
            try:
                if executor is not None:
                    executor.submit(self._fenced, job)
                else:
                    with self._submitting:
                        self._submitted_jobs += 1
                    self._application.submit(self._fenced, counted)
            except RuntimeError:
                log.info("%r is stopped; a handler was not called", self)

        self._give(submit)

    def _backlog(self) -> int:
        """Return how many handlers wait for their turn."""
        return self._submitted_jobs - self._started_jobs

    def _apply_for(self, peer: int, job: Callable[[], None]) -> None:
        """Run a job for a partner on the application's thread, unless its key is taken away before the turn comes."""
        pin = self._keys.pin(peer)

        def due() -> None:
            if pin is not None and self._keys.pin(peer) is pin:
                job()
            else:
                self.counts["not done"] += 1
                log.warning("%r: %x lost its key; what it asked for is not done", self, peer)

        self._apply(due)

    def _tell(self, name: str, *arguments: object) -> None:
        """Call a handler that has nothing to answer, if there is one."""
        handler = self._handlers.get(name)
        if handler is not None:
            self._apply(lambda: handler(*arguments))

    def _ask(self, handler: Callable[..., Any], *arguments: object, failure: Status, success: Status) -> Status:
        """Call a handler and translate what it returns or raises; on the application's thread."""
        try:
            result = handler(*arguments)
        except (Exception, SystemExit):
            self.counts["faults"] += 1
            log.exception("%r: a handler raised", self)
            return failure
        if isawaitable(result):
            self.counts["faults"] += 1
            log.error("%r: %r returned something to await; a handler is a plain function", self, handler)
            if iscoroutine(result):
                result.close()
            return failure
        if isinstance(result, Status):
            if result >> 4 == success >> 4:  # codes of one family share their high digit
                return result
            self.counts["faults"] += 1
            log.error("%r: a handler returned %s, which answers something else", self, result.name)
            return failure
        return failure if result is False else success

    def _is_over(self, event: Event) -> bool:
        """Tell, when the turn of an order has come, that nobody waits for it any more: then it is not done."""
        if self._session.awaits(event.peer, event.token):
            return False
        self.counts["not done"] += 1
        log.warning("%r does not do what %x wanted: it has expired, or we are not joined any more", self, event.peer)
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

        self._apply_for(event.peer, job)

    def _answered(self, event: ActionAnswered) -> None:
        self._settle(event, event.status)

    def _data_received(self, event: DataReceived) -> None:
        kind, handler = self._data.get(event.data_id) or self._data.get(None) or (None, None)
        value = None
        if kind is not None:
            try:
                value = decode_data(event.data, kind)
            except SrupError as error:
                log.warning("%r: value %a of %x: %s", self, event.data_id, event.peer, error)
                handler = None
        if handler is not None:
            self._apply_for(event.peer, lambda: handler(event.peer, event.data_id, value))
        elif event.data_id != IDENTIFICATION_RESPONSE:
            self._drive(self._session.refuse_data, event.peer, event.token)

    def _data_refused(self, event: DataRefused) -> None:
        self.counts["data refused"] += 1
        log.warning("%r: %x does not know a value that we sent", self, event.peer)

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
                log.warning("%r: nobody stores the new key of %x (see on_key_changed)", self, event.peer)
            else:
                status = self._ask(handler, event.peer, key, failure=Status.ACTION_FAIL, success=Status.ACTION_SUCCESS)
            self._drive(self._decide_key, event, signer, key, status)

        self._apply_for(event.peer, job)

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
            outputs = self._session.answer_key(event.peer, event.token, status, now)
            self._keys.rotate(event.peer, key, now + self._session.policy.key_overlap)
        log.info("%r takes the new key of %x: %r", self, event.peer, key)
        return outputs

    def _refuse_key(self, event: KeyOffered, why: str, now: float) -> Sequence[Output]:
        self.counts["key refused"] += 1
        log.warning("%r does not take the new key of %x: %s", self, event.peer, why)
        return self._session.answer_key(event.peer, event.token, Status.ACTION_FAIL, now)

    def _unanswered(self, event: Unanswered) -> None:
        self.counts["unanswered"] += 1
        log.warning("%r: %x did not answer %s", self, event.peer, event.request.__name__)
        self._settle(event, UnansweredError(f"{event.peer:x} did not answer {event.request.__name__}"))

    def _unexpected(self, event: Unexpected) -> None:
        self.counts["unexpected"] += 1
        log.warning("%r: unexpected %s of %x: %s", self, event.message.__name__, event.peer, event.why)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity:x}>"
