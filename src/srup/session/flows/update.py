"""Firmware updates, for both ends (docs/protocol/flows.md#updates)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from ... import tokens
from ...errors import PolicyError
from ...messages import Activate, Data, Initiate, Message, Response
from ...printable import printable
from ...update import FETCH_FAILURES, MAX_REASON, UpdateState, check_order, is_digest
from ...versions import shown_version
from ...wire import UPDATE_ACTIVATE, UPDATE_CANCEL, UPDATE_REASON, Status
from ..events import ActivationRequested, Event, FetchCancelled, FetchRequested, Unexpected, UpdateChanged
from ..exchange import Exchange
from ..flow import Flow, Now, Output, Send
from ..freshness import Horizon
from ..persistence import record
from ..policy import check_status
from ..table import ExchangeStart, Transition, Trigger

if TYPE_CHECKING:
    from ..device import DeviceSession
    from ..engine import Session

__all__ = ["DeviceUpdates", "Download", "Failure", "Order", "ServerUpdates"]


@record("Download")
class Download(NamedTuple):
    """What was ordered, with the order's first sequence id, and why it came to nothing."""

    url: str
    digest: str
    sequence_id: int = 0
    why: str = ""


class Activation(NamedTuple):
    """Firmware that is just being activated: whose order it is, its version, and the order's first sequence id."""

    server: int
    version: int | None
    sequence_id: int
    horizon: Horizon  # of the key that signed the order


class Failure(NamedTuple):
    """What a server is told about firmware that is not here, or not active."""

    status: Status
    why: str


@record("Order")
class Order(NamedTuple):
    """An update order; with ``hold`` it is activated when the owner says so. ``reason`` says why it failed.

    ``until`` is the Unix time up to which the device may activate it; 0 for as long as the order is good.
    """

    url: str
    digest: str
    hold: bool
    reason: str = ""
    until: float = 0.0


_S = UpdateState
_DIGITS: Final = 18  # of a Unix time
_OVERTAKEN: Final = "a newer order has come"
_LEFT: Final = "the device has left"


class DeviceUpdates(Flow):
    """The device's end. A repeated order is a retransmission: it is answered again and never carried out again."""

    session: "DeviceSession"
    states = UpdateState
    table = {
        (_S.NEW, Initiate): Transition(_S.FETCHING, "begin_fetch"),
        (_S.NEW, Activate): Transition(_S.FAILED, "refuse_activation"),  # for instance after a restart of the device
        (_S.FETCHING, Initiate): Transition(_S.FETCHING, "same_order"),
        (_S.FETCHING, Trigger.FETCHED): Transition(_S.READY, "answer"),
        (_S.FETCHING, Trigger.FETCH_FAILED): Transition(_S.FAILED, "report_failure"),
        (_S.FETCHING, Trigger.SUPERSEDE): Transition(_S.FAILED, "give_way"),
        (_S.NEW, Data): Transition(_S.FAILED, "cancelled"),
        (_S.FETCHING, Data): Transition(_S.FAILED, "cancelled"),
        (_S.READY, Data): Transition(_S.FAILED, "cancelled"),
        (_S.ACTIVATING, Data): Transition(_S.ACTIVATING, "cancelled_too_late"),
        (_S.ACTIVATED, Data): Transition(_S.ACTIVATED, "cancelled_too_late"),
        (_S.FAILED, Data): Transition(_S.FAILED, "cancelled_too_late"),
        (_S.READY, Initiate): Transition(_S.READY, "answer_same_order"),
        (_S.READY, Activate): Transition(_S.ACTIVATING, "begin_activation"),
        (_S.ACTIVATING, Initiate): Transition(_S.ACTIVATING, "same_order"),
        (_S.ACTIVATING, Activate): Transition(_S.ACTIVATING),
        (_S.ACTIVATING, Trigger.ACTIVATED): Transition(_S.ACTIVATED, "answer"),
        (_S.ACTIVATING, Trigger.ACTIVATION_FAILED): Transition(_S.FAILED, "report_failure"),
        (_S.ACTIVATED, Initiate): Transition(_S.ACTIVATED, "answer_same_order"),
        (_S.ACTIVATED, Activate): Transition(_S.ACTIVATED, "repeat_answer"),  # a token activates once
        (_S.FAILED, Initiate): Transition(_S.FAILED, "answer_same_order"),
        (_S.FAILED, Activate): Transition(_S.FAILED, "refuse_activation"),
        (_S.FETCHING, Trigger.LEAVE): Transition(_S.FAILED, "give_order_up"),
        (_S.READY, Trigger.LEAVE): Transition(_S.FAILED, "give_order_up"),
        (_S.ACTIVATING, Trigger.LEAVE): Transition(_S.FAILED, "give_activation_up"),
        (_S.FETCHING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "fetch_expired"),
        (_S.READY, Trigger.EXPIRE): Transition(_S.UNANSWERED),
        (_S.ACTIVATING, Trigger.EXPIRE): Transition(_S.UNANSWERED),
        (_S.FETCHING, Trigger.RESTART): Transition(_S.FETCHING, "fetch_again"),
        (_S.ACTIVATING, Trigger.RESTART): Transition(_S.ACTIVATING, "activation_again"),
    }
    starts = {Initiate: ExchangeStart(_S.NEW), Activate: ExchangeStart(_S.NEW)}
    starts_by_data_id = {UPDATE_CANCEL: ExchangeStart(_S.NEW), UPDATE_ACTIVATE: ExchangeStart(_S.NEW)}
    causes_by_data_id: ClassVar[Mapping[str, type[Message]]] = {UPDATE_ACTIVATE: Activate}

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self.activating: dict[bytes, Activation] = {}  # what may be active soon, by the token of its order

    def fetched(self, server: int, token: bytes, now: float) -> list[Output]:
        """Report that the firmware is here and its digest is right."""
        return self.session.decide(server, token, Trigger.FETCHED, Status.UPDATE_SUCCESS, now)

    def fetch_failed(self, server: int, token: bytes, status: Status, now: float, why: str = "") -> list[Output]:
        """Report that the firmware is not here: one of the UPDATE_FAIL codes, and ``why`` in words."""
        check_status(status, FETCH_FAILURES)
        return self.session.decide(server, token, Trigger.FETCH_FAILED, Failure(status, why), now)

    # The owner says what became of each ActivationRequested, even if the order is over by then.

    def activated(self, server: int, token: bytes, now: float) -> list[Output]:
        """Report that the firmware is active: nothing older is taken any more."""
        done, floor, peer = self.activating.pop(token, None), self.session.version_floor, self.session.peer(server)
        if done is not None:
            if floor is not None and done.version is not None:
                self.session.version_floor = max(floor, done.version)
            done.horizon.note_activated(done.sequence_id)
            # A key that was replaced since may be in other hands: it is no newer than what its successor has said.
            peer.horizon.note_activated(min(done.sequence_id, peer.horizon.highest))
            self.session.known.mark_freshness(peer.identity)
        return self.session.decide(server, token, Trigger.ACTIVATED, Status.ACTIVATE_SUCCESS, now)

    def activation_failed(self, server: int, token: bytes, now: float, why: str = "") -> list[Output]:
        """Report that the firmware is not active, and ``why`` in words."""
        self.activating.pop(token, None)
        return self.session.decide(server, token, Trigger.ACTIVATION_FAILED, Failure(Status.ACTIVATE_FAIL, why), now)

    # Effects.

    def begin_fetch(self, exchange: Exchange, cause: Initiate, now: Now) -> list[Output]:
        """A new order."""
        if not is_digest(cause.digest):
            raise PolicyError(f"the digest {cause.digest[:80]!r} is no SHA-256 in lower-case hex")
        exchange.detail = Download(cause.url, cause.digest, cause.sequence_id)
        version, floor = self._version(exchange), self.session.version_floor
        if floor is not None and (version is None or version < floor):
            why = f"the firmware {_named(version)}, and the floor is {shown_version(floor)}"
            unexpected = Unexpected(exchange.peer.identity, exchange.token, Initiate, why)
            return [unexpected, *self._fail(exchange, why, now)]
        others = [other for other in exchange.peer.in_state(_S.FETCHING) if other is not exchange]
        newer = any(self._number(other, exchange.horizon) > cause.sequence_id for other in others)
        if newer or self._is_overtaken(exchange):  # it got here first
            return self._fail(exchange, _OVERTAKEN, now)
        ended = self.session.step_all(others, Trigger.SUPERSEDE, _OVERTAKEN, now)
        return [*ended, FetchRequested(exchange.peer.identity, exchange.token, cause.url, cause.digest)]

    def fetch_again(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """A download was under way when the process ended."""
        order: Download = exchange.detail
        return [FetchRequested(exchange.peer.identity, exchange.token, order.url, order.digest)]

    def activation_again(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """An activation was under way when the process ended, or has ended it: it may have started the device anew."""
        return [self._activation(exchange)]

    def same_order(self, exchange: Exchange, cause: Initiate, now: Now) -> list[Output]:
        """The same order again; a token is good for one (T11)."""
        order: Download | None = exchange.detail
        if order is None or order[:2] != (cause.url, cause.digest):
            raise PolicyError("the token belongs to another update order")
        return []

    def answer_same_order(self, exchange: Exchange, cause: Initiate, now: Now) -> list[Output]:
        """The same order again, which has been answered."""
        self.same_order(exchange, cause, now)
        order: Download = exchange.detail
        if order.why and exchange.status is not None:
            return self.report_failure(exchange, Failure(exchange.status, order.why), now)
        return self.repeat_answer(exchange, cause, now)

    def begin_activation(self, exchange: Exchange, cause: Activate | Data, now: Now) -> list[Output]:
        """The server wants what was fetched to be activated, at any time or, in a Data message, until one."""
        self._check_in_time(cause, now)
        if not exchange.peer.member:
            raise PolicyError(f"{exchange.peer.identity:x} is not our server any more")
        if self._is_overtaken(exchange):
            failure = Failure(Status.ACTIVATE_FAIL, _OVERTAKEN)
            return [*self.session.step(exchange, Trigger.ACTIVATION_FAILED, failure, now)]
        version, floor = self._version(exchange), self._activation_floor()
        if floor is not None and (version is None or version < floor):
            why = f"the firmware {_named(version)}, and by now the floor is {shown_version(floor)}"
            unexpected = Unexpected(exchange.peer.identity, exchange.token, Activate, why)
            failure = Failure(Status.ACTIVATE_FAIL, why)
            return [unexpected, *self.session.step(exchange, Trigger.ACTIVATION_FAILED, failure, now)]
        return [self._activation(exchange)]

    def report_failure(self, exchange: Exchange, cause: Failure, now: Now) -> list[Output]:
        """Answer with a failure; say why before, to a partner that may know what that is (docs/extensions.md)."""
        said = printable(cause.why, MAX_REASON)
        exchange.status = cause.status
        exchange.detail = (exchange.detail or Download("", ""))._replace(why=said)
        if not said:
            return [self.session.send(exchange, Response, status=cause.status)]
        return [*self._with_reason(exchange, said)]

    def give_way(self, exchange: Exchange, cause: str, now: Now) -> list[Output]:
        """Another order has come: this one is not carried out, and its download ends."""
        failure = Failure(Status.UPDATE_FAIL_FILE, cause)
        return [self._fetch_ended(exchange, failure.status, cause), *self.report_failure(exchange, failure, now)]

    def cancelled(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The server takes its order back, which may not have got here yet."""
        self.cancelled_too_late(exchange, cause, now)
        why = "the server took the order back"
        failure = Failure(Status.UPDATE_FAIL_FILE, why)
        ended = [] if exchange.detail is None else [self._fetch_ended(exchange, failure.status, why)]
        return [*ended, *self.report_failure(exchange, failure, now)]

    def cancelled_too_late(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The server takes its order back when it is over, or being activated."""
        if cause.data_id != UPDATE_CANCEL:
            raise PolicyError(f"{cause.data_id[:80]!r} does not belong to an update")
        return []

    def give_order_up(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """We leave before the order to activate it; a repetition of the order is answered with a failure."""
        self.give_activation_up(exchange, cause, now)
        return [self._fetch_ended(exchange, None, _LEFT)]

    def give_activation_up(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """We leave before the firmware is active: what was answered when it had been fetched holds no more."""
        exchange.status = Status.UPDATE_FAIL_FILE
        exchange.detail = exchange.detail._replace(why=_LEFT)
        return []

    def fetch_expired(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """The time of the order is over before the firmware is here."""
        return [self._fetch_ended(exchange, None, "the order has expired")]

    def refuse_activation(self, exchange: Exchange, cause: Activate | Data, now: Now) -> list[Output]:
        """There is nothing to activate under this token; what was said about that before is said again."""
        known: Download | None = exchange.detail
        why = (known.why if known else "") or "nothing was fetched for it"
        unexpected = Unexpected(exchange.peer.identity, exchange.token, Activate, "nothing was fetched for it")
        return [unexpected, *self.report_failure(exchange, Failure(Status.ACTIVATE_FAIL, why), now)]

    # Mechanism.

    def _check_in_time(self, cause: Activate | Data, now: Now) -> None:
        """Raise PolicyError if it is too late to do as a server says, as far as we know what time it is (T41)."""
        if isinstance(cause, Data):
            if not cause.data.isdigit() or len(cause.data) > _DIGITS:
                raise PolicyError(f"{cause.data[:80]!r} is no time until which firmware may be activated")
            policy, late = self.session.policy, self.session.unix(now.time) - int(cause.data)
            if policy.has_clock and late > policy.clock_skew:
                raise PolicyError(f"the firmware was to be activated {late:.0f} seconds ago at the latest")

    def ordered(self) -> set[str]:
        """Return the digests of all firmware that is to be fetched or activated; any thread may ask."""
        known = self.session.known
        return {each.detail.digest for each in known if isinstance(each.detail, Download) and known.is_open(each)}

    def _fail(self, exchange: Exchange, why: str, now: Now) -> list[Output]:
        """Do not fetch what is ordered."""
        return self.session.step(exchange, Trigger.FETCH_FAILED, Failure(Status.UPDATE_FAIL_FILE, why), now)

    def _with_reason(self, exchange: Exchange, why: str) -> list[Send]:
        """Answer an order with its status, behind a text under the same token unless the partner is a deployed one."""
        assert exchange.status is not None  # noqa: S101 - it was just given
        answer = {"status": exchange.status}
        if not self.session.binds_tokens(exchange.peer):
            return [self.session.send(exchange, Response, **answer)]
        text = self.session.send(exchange, Data, data_id=UPDATE_REASON, data=why.encode())
        return [text, self.session.send(exchange, Response, **answer)]

    @staticmethod
    def _fetch_ended(exchange: Exchange, status: Status | None, why: str) -> Event:
        return FetchCancelled(exchange.peer.identity, exchange.token, exchange.detail.digest, status, why)

    def _activation(self, order: Exchange) -> Event:
        """Have firmware activated; until the owner says what became of it, nothing older is."""
        signed = order.horizon or order.peer.horizon
        activation = Activation(order.peer.identity, self._version(order), order.detail.sequence_id, signed)
        self.activating[order.token] = activation
        return ActivationRequested(order.peer.identity, order.token, order.detail.digest)

    def _activation_floor(self) -> int | None:
        """Return the lowest version that may be activated now: not below what is just being activated (T12)."""
        versions = [each.version for each in self.activating.values() if each.version is not None]
        return None if self.session.version_floor is None else max(self.session.version_floor, *versions, 0)

    @staticmethod
    def _number(order: Exchange, signer: Horizon | None) -> int:
        """Return the sequence id of an order as one of ``signer`` is compared with it (T30)."""
        number: int = order.detail.sequence_id
        return number if order.horizon is signer else order.peer.counting(number)

    def _is_overtaken(self, order: Exchange) -> bool:
        """Return whether firmware of a newer order of this server was activated, or is just being (T12)."""
        counting = order.peer.horizon
        newest = max(each.activated_sequence_id for each in (order.horizon or counting, counting))
        under_way = [each.sequence_id for each in self.activating.values() if each.server == order.peer.identity]
        return bool(order.detail.sequence_id < max(newest, *under_way, 0))

    @staticmethod
    def _version(order: Exchange) -> int | None:
        bound = tokens.parse(order.token)
        return None if bound is None else bound.version


class ServerUpdates(Flow):
    """The server's end. Deployed peers never answer an Activate: for them the order ends when they were told."""

    states = UpdateState
    table = {
        (_S.FETCHING, Status.UPDATE_SUCCESS): Transition(_S.READY, "update_ready"),
        **{(_S.FETCHING, status): Transition(_S.FAILED, "update_changed") for status in FETCH_FAILURES},
        (_S.FETCHING, Trigger.SUPERSEDE): Transition(_S.FAILED, "update_withdrawn"),
        **{(state, Trigger.CANCEL): Transition(_S.FAILED, "cancel_update") for state in (_S.FETCHING, _S.READY)},
        **{(state, Data): Transition(state, "reason_received") for state in (_S.FETCHING, _S.READY, _S.ACTIVATING)},
        (_S.FAILED, Data): Transition(_S.FAILED, "late_reason_received"),
        (_S.READY, Trigger.ACTIVATE): Transition(_S.ACTIVATING, "send_activate"),
        (_S.ACTIVATING, Trigger.ACTIVATE): Transition(_S.ACTIVATING, "send_activate_again"),
        (_S.READY, Status.UPDATE_SUCCESS): Transition(_S.READY),
        (_S.ACTIVATING, Status.UPDATE_SUCCESS): Transition(_S.ACTIVATING),
        (_S.ACTIVATING, Status.ACTIVATE_SUCCESS): Transition(_S.ACTIVATED, "update_changed"),
        (_S.ACTIVATING, Status.ACTIVATE_FAIL): Transition(_S.FAILED, "update_changed"),
        (_S.ACTIVATING, Trigger.TOLD): Transition(_S.UNCONFIRMED),
        (_S.UNCONFIRMED, Status.UPDATE_SUCCESS): Transition(_S.UNCONFIRMED),
        (_S.ACTIVATED, Status.ACTIVATE_SUCCESS): Transition(_S.ACTIVATED),
        (_S.ACTIVATED, Status.UPDATE_SUCCESS): Transition(_S.ACTIVATED),
        (_S.FAILED, Status.UPDATE_SUCCESS): Transition(_S.FAILED),
        (_S.FAILED, Status.ACTIVATE_FAIL): Transition(_S.FAILED),
        **{(_S.FAILED, status): Transition(_S.FAILED) for status in FETCH_FAILURES},
        (_S.FETCHING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "update_changed"),
        (_S.READY, Trigger.EXPIRE): Transition(_S.UNANSWERED, "update_changed"),
        (_S.ACTIVATING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "update_changed"),
    }

    def update(
        self,
        device: int,
        url: str,
        digest: str,
        now: float,
        nonce: bytes,
        lifetime: float | None = None,
        hold: bool = False,
        version: int | None = None,
    ) -> list[Output]:
        """Order new firmware; UpdateChanged follows at each step. What the device is still to fetch is withdrawn.

        The device is told to activate as soon as it has the file, or, with ``hold``, when :meth:`activate` is called.
        ``version`` lets a device with a version floor tell an old firmware from a new one (T12). Errors are those of
        :func:`srup.update.check_order`.
        """
        check_order(url, digest, version)
        if lifetime is None:
            lifetime = self.session.policy.update_lifetime
        state = UpdateState.FETCHING
        fields: dict[str, Any] = {"url": url, "digest": digest}
        order = Order(url, digest, hold)
        sends = self.session.ask(device, state, Initiate, now, nonce, lifetime, detail=order, version=version, **fields)
        token = sends[0].message.token
        older = [other for other in self.session.peer(device).in_state(state) if other.token != token]
        said = "a newer order has taken its place"
        return [*sends, *self.session.step_all(older, Trigger.SUPERSEDE, said, Now(now, b""))]

    def cancel_order(self, device: int, token: bytes, now: float) -> list[Output]:
        """Take an update order back that the device has not been told to activate; PolicyError for any other.

        The device is told if it binds its tokens. It may have fetched the file all the same; it will not activate it.
        """
        return self.session.decide(device, token, Trigger.CANCEL, "the order was taken back", now)

    def activate(self, device: int, token: bytes, now: float, until: float | None = None) -> list[Output]:
        """Let a device activate what it has fetched under this token; PolicyError if it has nothing.

        It is not told again after the Unix time ``until``, nor does it obey then if it binds its tokens and has a
        clock; it may be told anew.
        """
        return self.session.decide(device, token, Trigger.ACTIVATE, until, now)

    def goes_on_asking(self, exchange: Exchange, unix: float) -> bool:
        """See :meth:`Flow.goes_on_asking`."""
        order = exchange.detail
        return exchange.state is not _S.ACTIVATING or not order.until or unix < order.until

    # Effects.

    def update_ready(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The device has the file."""
        ready = UpdateChanged(exchange.peer.identity, exchange.token, UpdateState.READY, Status(cause.status))
        if exchange.detail.hold:
            return [ready]
        return [ready, *self.session.step(exchange, Trigger.ACTIVATE, None, now)]

    def send_activate(self, exchange: Exchange, cause: float | None, now: Now) -> list[Output]:
        """The device is to activate the file, until a Unix time if there is a ``cause``."""
        changed = UpdateChanged(exchange.peer.identity, exchange.token, UpdateState.ACTIVATING, None)
        told: list[Output] = [self._tell(exchange, cause), changed]
        if self.session.binds_tokens(exchange.peer):
            return told
        return [*told, *self.session.step(exchange, Trigger.TOLD, None, now)]

    def send_activate_again(self, exchange: Exchange, cause: float | None, now: Now) -> list[Output]:
        """The device, which may not have heard it in time, is to activate the file until another time."""
        if not exchange.detail.until or cause is None:
            raise PolicyError(f"{exchange.peer.identity:x} was told already, and is told again until it answers")
        return [self._tell(exchange, cause)]

    def _tell(self, exchange: Exchange, until: float | None) -> Send:
        """Tell the device to activate the file."""
        if not exchange.peer.member:
            raise PolicyError(f"{exchange.peer.identity:x} is not joined: it would not take Activate")
        if until is None or not self.session.binds_tokens(exchange.peer):
            send = self.session.send(exchange, Activate)
        else:
            send = self.session.send(exchange, Data, data_id=UPDATE_ACTIVATE, data=b"%d" % until)
        exchange.detail = exchange.detail._replace(until=until or 0.0)
        self.session.expect(exchange, send.message, resend=True)
        return send

    def update_changed(self, exchange: Exchange, cause: Message | None, now: Now) -> list[Output]:
        """The update came to its end: activated, failed, or the time is over."""
        status = Status(cause.status) if isinstance(cause, Response) else None
        exchange.status = status
        reason = exchange.detail.reason if exchange.state is UpdateState.FAILED else ""
        assert isinstance(exchange.state, UpdateState)  # noqa: S101 - only rows of SERVER_TABLE lead here
        return [UpdateChanged(exchange.peer.identity, exchange.token, exchange.state, status, reason)]

    def update_withdrawn(self, exchange: Exchange, cause: str, now: Now) -> list[Output]:
        """The order does not stand any more."""
        exchange.detail = exchange.detail._replace(reason=cause)
        return self.update_changed(exchange, None, now)

    def cancel_update(self, exchange: Exchange, cause: str, now: Now) -> list[Output]:
        """The operator takes the order back."""
        told = (
            [self.session.send(exchange, Data, data_id=UPDATE_CANCEL, data=b"")]
            if self.session.binds_tokens(exchange.peer)
            else []
        )
        return [*told, *self.update_withdrawn(exchange, cause, now)]

    def reason_received(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The device says why the answer that comes next is a failure."""
        if cause.data_id != UPDATE_REASON:
            raise PolicyError(f"{cause.data_id[:80]!r} does not belong to an update")
        exchange.detail = exchange.detail._replace(reason=printable(cause.data.decode(errors="replace"), MAX_REASON))
        return []

    def late_reason_received(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """The same, after the answer that it belongs to; said again it is no news."""
        before = exchange.detail.reason
        self.reason_received(exchange, cause, now)
        if before or exchange.status is None:
            exchange.detail = exchange.detail._replace(reason=before)
            return []
        failed = UpdateState.FAILED
        return [UpdateChanged(exchange.peer.identity, exchange.token, failed, exchange.status, exchange.detail.reason)]


def _named(version: int | None) -> str:
    return "names no version" if version is None else f"is of version {shown_version(version)}"
