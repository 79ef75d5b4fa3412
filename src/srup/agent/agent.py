"""What devices and servers have in common for the application: its handlers, requests, life and vitals."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import ClassVar, Self, get_args

from ..errors import SrupError, TransportError
from ..keyring import KeyRing
from ..keys import PrivateKey
from ..logs import shown
from ..messages import Data, DataKind
from ..session.common import CommonSession as Session
from ..session.policy import check_seconds
from ..store import Store
from ..transport.base import Transport
from ..wire import Status
from .answer import Answer
from .arguments import check_identity, check_type, checked_identity, store_at
from .audit import KEPT
from .dataqueue import Value
from .debug import DebugView
from .engine import TURN, Engine
from .handlers import Handler
from .threads import Threads, stay, terminable
from .transaction import Handling, Transaction
from .vitals import Vitals

__all__ = ["Agent"]


class Agent:
    """The base of Device and Server. Public methods may be called from any thread.

    ``run``, ``start`` and ``stop`` are for real life; a simulation calls ``start(threads=False)`` and :meth:`step`.
    ``counts`` tells how many messages were ``received``, ``verified``, ``sent``, refused (by the error's name), how
    many orders were ``not done`` because all was over when their turn came, and ``faults``, things that raised where
    nothing should. ``store_error`` is None while the store writes. :meth:`vitals` tells how it goes,
    :meth:`on_measured` how large its batches are and how long its commits take (docs/observability.md). ``engine`` is
    for shells that drive it; ``debug`` shows what it is made of.
    """

    noun: ClassVar[str] = "agent"
    """What log lines call it."""
    partner_noun: ClassVar[str] = "partner"
    """What errors call the one that it talks to."""

    def __init__(
        self,
        session: Session,
        key: PrivateKey,
        keys: KeyRing,
        transport: Transport,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        device_of: Callable[[int], int],
        threads: int = 1,
        store: Store | str | os.PathLike[str] | None = None,
        audit_kept: float | None = KEPT,
        audit_values: bool = False,
    ) -> None:
        check_type(key, PrivateKey, "key")
        if audit_kept is not None:
            check_seconds(audit_kept, "audit_kept")
        check_type(audit_values, bool, "audit_values")
        if type(threads) is not int or threads < 1:
            raise ValueError(f"threads must be an int of at least 1, not {threads!r}")
        self.identity = session.identity
        self.engine = Engine(
            *(
                self.noun,
                session,
                key,
                keys,
                transport,
                clock,
                entropy,
                threads,
                store_at(store),
                audit_kept,
                audit_values,
            ),
            device_of=device_of,
        )
        self.counts = self.engine.journal.counts
        self._shell = Threads(self.engine)

    # Life.

    def start(self, threads: bool = True) -> Self:
        """Begin: connect in the background and go on until :meth:`stop`. An agent is started once.

        Without ``threads`` nothing happens by itself: call :meth:`step` when something may have arrived or be due.
        StoreError if the store cannot be used. If anything fails once it is open, the agent has ended and has let go
        of the store.
        """
        if self.engine.started or self.engine.stopping.is_set():
            raise TransportError(f"{self!r} was started before; make a new one")
        try:
            self.engine.start()
        except BaseException:
            if self.engine.opened:  # half of it is taken over: a new agent can try again, and the store is free for it
                self._shell.stop(0.0)
            raise
        if threads:
            self.engine.employ(f"srup-{self.identity:x}")  # before a turn, which would do what these threads do
            self._shell.start()
        self.engine.begin()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """End: send what can be sent within ``timeout`` seconds, disconnect, let the running handler finish.

        Requests without an answer end with TransportError, and so do all later ones. With a store the next start goes
        on with the former, and with what the running handler asks for. A second call does nothing, nor does one in a
        process that was forked after the start.
        """
        self._shell.stop(timeout)

    def run(self) -> None:
        """Start, unless that was done, and stay until :meth:`stop` is called, Ctrl-C is pressed or SIGTERM arrives.

        What happens meanwhile is shown on standard error if the application has not set up logging (srup.logs). A
        second Ctrl-C ends the process at once. A fault that has ended the agent (:meth:`on_fault`) is raised here.
        """
        journal = self.engine.journal
        with shown(), terminable(lambda: any(not job.done() for job in self.engine.handlers.running())):
            try:
                if not self.engine.started:
                    self.start()
                journal.log(logging.INFO, "%s: running; Ctrl-C stops it")
                stay(self.engine.stopped.wait)
            except KeyboardInterrupt:
                journal.log(logging.INFO, "%s: interrupted, stopping; Ctrl-C again ends it at once")
                self.stop()  # also when it had not started completely
            finally:
                if self.engine.started:
                    self.stop()
                    journal.log(logging.INFO, "%s: stopped")
        if self.engine.fault is not None:
            raise self.engine.fault

    def __enter__(self) -> Self:
        return self if self.engine.started else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def step(self) -> None:
        """Do everything that has arrived or is due now (the body of the agent's thread, for simulations)."""
        while self.engine.turn(TURN):
            pass

    def deadline(self) -> float | None:
        """Return when :meth:`step` has something to do next even if nothing arrives, in Unix time; None for never."""
        due = self.engine.due()
        return None if due is None else due + self.engine.clock.lead

    # How it goes.

    @property
    def handling(self) -> Handling | None:
        """What a handler is being called for, and whether for the first time; None while none is called."""
        return self.engine.handlers.handling

    @property
    def connected(self) -> bool:
        """Whether there is a link to the broker."""
        return self.engine.connected

    @property
    def store_error(self) -> str | None:
        """Why the store refuses to write, while it does."""
        return self.engine.store_error

    @property
    def stopped(self) -> bool:
        """Whether it has come to its end: :meth:`stop` is over, or the partition is another worker's."""
        return self.engine.stopped.is_set()

    @property
    def debug(self) -> DebugView:
        """What it is made of and how far it is, for debugging, tests and simulations; reading it changes nothing."""
        return DebugView(self.engine, self._shell)

    def vitals(self) -> Vitals:
        """Return how it goes. It may be asked at any time, from any thread, and holds nobody up."""
        engine = self.engine
        ticks, now = time.monotonic(), engine.clock()
        value, asked = engine.values.oldest(), engine.session.asked()
        return Vitals(
            started=engine.started,
            stopping=engine.stopping.is_set() and engine.fault is None,
            stopped=engine.stopped.is_set(),
            alive=engine.fault is None and (self._shell.alive or engine.stopping.is_set()),
            connected=engine.connected,
            link=engine.link,
            store_error=engine.store_error,
            turn=0.0 if (began := engine.turn_began) is None else ticks - began,
            handler=0.0 if (began := engine.handlers.began) is None else ticks - began,
            inbox=len(engine.inbox),
            handlers=max(0, engine.handlers.backlog.size()),
            values=len(engine.values),
            oldest_value=0.0 if value is None else max(0.0, now - value / 1e6),  # numbers come from the clock
            requests=len(asked),
            oldest_request=max(0.0, now - min((at for at in asked if at), default=now)),
            members=engine.members(),
        )

    # What the application asks for.

    def action(self, partner: int, action_id: int, lifetime: float | None = None) -> Answer[Status]:
        """Ask a partner to do an action; the result is its answer: ACTION_SUCCESS, ACTION_UNKNOWN or ACTION_FAIL.

        After ``lifetime`` seconds (default: the policy's) the request expires: UnansweredError. PolicyError when the
        two are not joined.
        """
        session, what = self.engine.session, self.partner_noun
        return self.engine.requests.ask(
            lambda _, now, nonce: session.action(checked_identity(partner, what), action_id, now, nonce, lifetime)
        )

    def send_data(
        self,
        partner: int,
        data_id: str,
        value: bytes | str | int | float,
        kind: DataKind | None = None,
        *,
        confirmed: bool | None = None,
        lifetime: float | None = None,
    ) -> Answer[str | None]:
        """Send a value (see :meth:`Data.encode_value`).

        A ``confirmed`` value waits until the two are joined, is sent again until the partner has it for good, and is
        done then; UnansweredError when that took more than ``lifetime`` seconds (default: the policy's
        ``update_lifetime``). With a store it survives restarts. Any other is done when it is handed to the transport:
        it survives what MQTT's QoS 1 and a persistent session survive. By default values are confirmed where there is
        a store. The result is None, or "HANDED_OVER" where a confirmed value was for a deployed partner, which knows of
        no receipts: the broker has it, and drops it if the partner is away.
        """
        check_identity(partner, self.partner_noun)
        engine = self.engine
        session, value_ = engine.session, Value(data_id, Data.encode_value(value, kind))
        if confirmed is None:
            confirmed = engine.store is not None
        if not confirmed:
            return engine.requests.ask(lambda _, now, nonce: session.data(partner, *value_, now, nonce), answered=False)
        lasts = session.policy.update_lifetime if lifetime is None else lifetime
        check_seconds(lasts, "lifetime")
        future: Answer[str | None] = Answer()

        def job(transaction: Transaction) -> None:
            try:
                engine.check_open()
                session.check_data(*value_)
                engine.values.add(transaction, partner, value_, engine.clock() + lasts, future)
            except SrupError as error:
                engine.requests.resolve(transaction, future, error)

        engine.post(job)
        return future

    def facts(self, partner: int) -> Mapping[str, str]:
        """Return what is known about a partner by name, such as its ``description`` or ``firmware`` (a digest)."""
        return self.engine.facts.about(partner)

    # Handlers.

    def on_action(self, action_id: int, *, inline: bool = False) -> Callable[[Handler], Handler]:
        """Register a handler that does an action. It is called with the partner's identity.

        One that is quick and waits for nothing may run ``inline``: on the thread that takes the turns, as soon as the
        action is durable, with no other thread between the command and its answer. Everything else waits meanwhile,
        and it runs beside a handler that is not inline.

        What it returns is answered: a Status, or False for ACTION_FAIL; anything else is ACTION_SUCCESS. If it raises
        the answer is ACTION_FAIL. Actions without a handler are answered ACTION_UNKNOWN.
        """
        if type(action_id) is not int or not 0 <= action_id < 1 << 8:
            raise ValueError(f"an action_id is a number from 0 to 255, not {action_id!r}")
        if type(inline) is not bool:
            raise TypeError(f"inline must be True or False, not {inline!r}")
        handlers = self.engine.handlers
        if inline and not handlers.plain:
            raise TypeError("a handler that runs in an event loop cannot run inline")
        return handlers.register_in(handlers.actions, action_id, 1, lambda handler: (handler, inline))

    def on_data(self, data_id: str | None = None, kind: DataKind = "bytes") -> Callable[[Handler], Handler]:
        """Register a handler for values named ``data_id``; None takes all that have no handler of their own.

        It is called with the partner's identity, the ``data_id`` and the value read as ``kind``. Values that nobody
        takes, or that do not have that form, are answered DATA_TYPE_UNKNOWN.
        """
        if data_id is not None and not isinstance(data_id, str):
            raise ValueError(f"a data_id is a str, or None for all, not {data_id!r}")
        if kind not in get_args(DataKind):
            raise ValueError(f"{kind!r} is no kind of data; the kinds are {', '.join(get_args(DataKind))}")
        handlers = self.engine.handlers
        return handlers.register_in(handlers.values, data_id, 3, lambda handler: (kind, handler))

    def on_key_changed(self, handler: Handler) -> Handler:
        """Register a handler that stores a partner's new key, called with the partner's identity and the PublicKey.

        The partner's old key has signed the new one, which counts as soon as the handler returns. If it raises or
        returns False the partner is told ACTION_FAIL and goes on with the old one. Without a handler the new key is
        known until the process ends, and no longer.
        """
        return self.engine.handlers.register("key", handler, 2)

    def on_left(self, handler: Handler) -> Handler:
        """Register a handler called with the partner's identity when a membership ends."""
        return self.engine.handlers.register("left", handler, 1)

    def on_outcome(self, handler: Handler) -> Handler:
        """Register a handler called with an :class:`Outcome` when a request ends that was made before a restart.

        It is called as well for one whose end had just become durable when the process ended before its future did.
        """
        return self.engine.handlers.register("outcome", handler, 1)

    def on_refused(self, handler: Handler) -> Handler:
        """Register a handler called with a :class:`Refusal` for every message that is refused."""
        return self.engine.handlers.register("refused", handler, 1)

    def on_fault(self, handler: Handler) -> Handler:
        """Register a handler called with the exception when a fault in a turn has ended the agent.

        It has let go of everything by then, and all futures have ended. With a store nothing of that turn has had any
        effect: a new agent goes on from what is durable. It is called on the thread that has ended.
        """
        return self.engine.handlers.register("fault", handler, 1)

    def on_link(self, handler: Handler) -> Handler:
        """Register a handler called when the link to the broker comes or goes: with whether it is there, and why."""
        return self.engine.handlers.register("link", handler, 2)

    def on_measured(self, listener: Handler) -> Handler:
        """Register a listener called with the name of a measurement and its value.

        "batch" is how many messages were verified together, "commit" how many seconds the store took to make a turn
        durable. It is called at once on the thread that takes the turns, so it has to be quick. Several may listen.
        """
        if not callable(listener):
            raise TypeError(f"a listener is a function, which {listener!r} is not")
        self.engine.measuring += (listener,)
        return listener

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity:x}>"

    def __str__(self) -> str:
        return str(self.engine.journal)
