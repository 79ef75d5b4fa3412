"""Ordering from outside: who can reach the Redis of a server commands its devices, whichever worker serves them now.

An order goes into the mailbox of its device's partition (srup.store.mailbox) as JSON: what is to be done, with which
device, and how. It is checked when it is posted, by the rules of the server's own methods, and again when it is taken.
"""

import json
import os
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from inspect import signature
from secrets import token_bytes
from typing import Any, Final, NamedTuple, Self

from .. import errors
from ..errors import EncodeError, PolicyError, SrupError, StoreError, UpdateError
from ..keys import PublicKey
from ..messages import Action, Data, DataKind, Initiate
from ..session.base import check_number, check_seconds
from ..store.keyspace import Keyspace
from ..store.mailbox import CAPACITY, MAX_ORDER_SIZE, Mailbox
from ..tokens import MAX_VERSION, parse
from ..update import UpdateState, is_digest
from ..wire import Status
from .base import check_identity, check_type

__all__ = ["KINDS", "Order", "OrderReport", "Orders", "PostedOrder"]

_ID: Final = re.compile(r"(0|[1-9a-f][0-9a-f]{0,15})\.([0-9a-f]{32})")
_HEADER: Final[dict[str, Any]] = {"sequence_id": 1, "sender_id": 0, "token": b"-"}  # of a message that is never sent


def _nothing() -> None:
    """There is nothing to check."""


def _lasts(lifetime: float | None) -> None:
    if lifetime is not None:
        check_seconds(lifetime, "lifetime")


def _check_action(action_id: int, lifetime: float | None = None) -> None:
    Action(**_HEADER, action_id=action_id)
    _lasts(lifetime)


def _check_update(
    url: str, digest: str, hold: bool = False, lifetime: float | None = None, version: int | None = None
) -> None:
    Initiate(**_HEADER, url=url, digest=digest)
    if not is_digest(digest):
        raise EncodeError("digest", "expected a SHA-256 as 64 lower-case hex digits")
    check_type(hold, bool, "hold")
    if version is not None:
        check_number(version, "version", 0, MAX_VERSION)
    _lasts(lifetime)


def _check_activation(update: str) -> None:
    check_type(update, str, "update")


def _check_data(data_id: str, data: str, lifetime: float | None = None) -> None:
    Data(**_HEADER, data_id=data_id, data=b64decode(data, validate=True))
    _lasts(lifetime)


def _check_join_command(server: int | None = None) -> None:
    if server is not None:
        check_identity(server, "server")


def _check_registration(key: str) -> None:
    check_type(key, str, "key")
    PublicKey.from_pem(key.encode())


KINDS: Final[Mapping[str, Callable[..., None]]] = {
    "action": _check_action,
    "activate": _check_activation,
    "command_join": _check_join_command,
    "deregister": _nothing,
    "identify": _nothing,
    "register": _check_registration,
    "remove": _nothing,
    "revoke": _nothing,
    "send_data": _check_data,
    "terminate": _nothing,
    "update": _check_update,
}
"""What can be ordered, and what checks the details; its parameters are those that the order has."""


class Order(NamedTuple):
    """What is to be done with a device; ``details`` are named and typed as JSON has them."""

    device: int
    kind: str
    details: Mapping[str, Any]

    def check(self) -> None:
        """Raise what the server's method of this name would raise at once: EncodeError, ValueError, TypeError, ..."""
        check_identity(self.device, "device")
        check = KINDS.get(self.kind)
        if check is None:
            raise ValueError(f"{self.kind!r:.80} cannot be ordered; what can is {', '.join(KINDS)}")
        try:
            signature(check).bind(**self.details)
        except TypeError as error:
            raise TypeError(f"{self.kind}: {error}") from None
        check(**self.details)

    def dump(self) -> bytes:
        """Return it as a mailbox keeps it; ValueError when it is too long for one."""
        details = {name: value for name, value in self.details.items() if value is not None}
        content = json.dumps({"order": self.kind, "device": f"{self.device:x}"} | details).encode()
        if len(content) > MAX_ORDER_SIZE:
            raise ValueError(f"an order has at most {MAX_ORDER_SIZE} bytes, not {len(content)}")
        return content

    @classmethod
    def load(cls, content: bytes) -> Self:
        """Return what :meth:`dump` has written, checked; ValueError, TypeError or SrupError for anything else."""
        details = json.loads(content)
        check_type(details, dict, "an order")
        kind, device = details.pop("order", ""), details.pop("device", "")
        check_type(kind, str, "what is ordered")
        check_type(device, str, "device")
        order = cls(int(device, 16), kind, details)
        order.check()
        return order


class OrderReport(NamedTuple):
    """What an order had come to ``at`` that Unix time.

    ``state`` is POSTED, then TAKEN by the worker that serves the device, which has made it durable and sends it, and at
    last DONE or FAILED. An update goes through the states of :class:`UpdateOrder` after POSTED. With ``over`` comes
    what it came to: a ``value`` (the name of a Status or of an UpdateState, a description), or an ``error``, its name,
    with the ``text`` of it. ``token`` is the one under which the device was asked.
    """

    at: float
    kind: str
    state: str
    over: bool = False
    value: str | None = None
    error: str | None = None
    text: str | None = None
    token: str | None = None

    def dump(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(
            {name: value for name, value in self._asdict().items() if value not in (None, False)}
        ).encode()

    @classmethod
    def load(cls, content: bytes) -> Self:
        """Return what :meth:`dump` has written; StoreError for anything else."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise StoreError(f"a report on an order is not readable: {error}") from None

    def result(self) -> Status | UpdateState | str | None:
        """Return or raise what the server's own method of this kind would have."""
        if self.error is not None:
            raise self._error()
        if self.kind == "update":
            return UpdateState[self.value or ""]
        return Status[self.value or ""] if self.kind in ("action", "command_join") else self.value

    def _error(self) -> Exception:
        text = self.text or ""
        if self.error == "UpdateError":
            return UpdateError(Status[self.value] if self.value else Status.UPDATE_FAIL_SERVER, text)
        if self.error == "EncodeError":
            return EncodeError(*text.split(": ", 1)) if ": " in text else EncodeError("order", text)
        kinds: dict[str, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError}
        plain = [errors.InvalidKeyError, PolicyError, errors.TransportError, errors.UnansweredError]
        return (kinds | {kind.__name__: kind for kind in plain}).get(self.error or "", SrupError)(text)


class PostedOrder:
    """An order that was posted; its ``id`` finds it again (:meth:`Orders.find`), from whichever process."""

    def __init__(self, mailbox: Mailbox, device: int, number: bytes) -> None:
        self.device = device
        self._mailbox = mailbox
        self._number = number

    @property
    def id(self) -> str:
        """Its name: the device in hex, a dot, and 32 hex digits."""
        return f"{self.device:x}.{self._number.hex()}"

    def reports(self, timeout: float | None = None) -> Iterator[OrderReport]:
        """Tell what it comes to, from the beginning, as it happens, to the end.

        TimeoutError when it is not over after ``timeout`` seconds, PolicyError when nobody knows of such an order (any
        more), StoreError when Redis does not answer; asking again does no harm.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        place = b"0"
        while True:
            left = 1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic()))
            rows = self._mailbox.reports(self.device, self._number, place, 0.0 if place == b"0" else left)
            if not rows and not self._mailbox.reports(self.device, self._number, b"0", 0.0):
                raise PolicyError(
                    f"there is no order {self.id}: its result is not kept any more, or it was never posted"
                )
            for after, content in rows:
                report, place = OrderReport.load(content), after
                yield report
                if report.over:
                    return
            if not rows and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"order {self.id} is not over after {timeout:g} seconds; it stands")

    def report(self) -> OrderReport:
        """Return what it has come to by now; errors as in :meth:`reports`."""
        known: list[OrderReport] = []
        with suppress(TimeoutError):
            for report in self.reports(0.0):
                known.append(report)
        return known[-1]  # without any it was a PolicyError

    def result(self, timeout: float | None = None) -> Status | UpdateState | str | None:
        """Wait for the end; return or raise what the server's own method would have: see :class:`Server`.

        An order that no worker took before its lifetime was over raises UnansweredError; nothing was sent then. For
        more errors see :meth:`reports`.
        """
        *_, last = self.reports(timeout)
        return last.result()

    def __repr__(self) -> str:
        return f"<PostedOrder {self.id}>"


class Orders:
    """Commands the devices of server ``identity``, whose workers share the Redis at the URL ``store`` (or a client).

    Methods are named as those of :class:`Server` and check the same. Each posts an order and returns it at once; it is
    durable then, and the worker that serves the device carries it out, in order with the others for this device, once,
    within milliseconds, or when there is such a worker again: an order that has a ``lifetime`` only while that lasts,
    counted from now. What became of it can be asked for a week after its end.

    ``capacity`` is how many orders may wait in the mailbox of a partition: with so many in it a post is a StoreError.
    StoreError also if Redis does not answer or holds no state of this server. Threads may share one of these.
    """

    def __init__(self, store: Any, identity: int, *, capacity: int = CAPACITY) -> None:
        check_identity(identity)
        if isinstance(store, str | os.PathLike) and "://" not in os.fspath(store):
            raise StoreError(
                f"{os.fspath(store)} is no address of a Redis: one process has an SQLite database to itself, and only "
                "the application in it commands the devices; for others run srup server --store redis://host:port/db"
            )
        self.identity = identity
        self._capacity = capacity
        self._mailbox = Mailbox(Keyspace(store, identity, timeout=5.0))

    def action(self, device: int, action_id: int, lifetime: float | None = None) -> PostedOrder:
        """See :meth:`Server.action`; the result is a Status."""
        return self._post(device, "action", action_id=action_id, lifetime=lifetime)

    def identify(self, device: int) -> PostedOrder:
        """See :meth:`Server.identify`; the result is the description."""
        return self._post(device, "identify")

    def update(
        self,
        device: int,
        url: str,
        digest: str,
        *,
        hold: bool = False,
        lifetime: float | None = None,
        version: int | None = None,
    ) -> PostedOrder:
        """See :meth:`Server.update`; the result is an UpdateState, the reports tell of each state."""
        details = {"url": url, "digest": digest, "hold": hold, "lifetime": lifetime, "version": version}
        return self._post(device, "update", **details)

    def activate(self, update: PostedOrder | str) -> PostedOrder:
        """Let a device activate what it was to hold: name the order of the update, its id, or its token.

        The result is PolicyError unless it waits for that; how the activation ends is told by the update.
        """
        if isinstance(update, PostedOrder):
            return self._post(update.device, "activate", update=update._number.hex())
        if (match := _ID.fullmatch(update)) is not None:
            return self._post(int(match[1], 16), "activate", update=match[2])
        bound = parse(update.encode())
        if bound is None:
            raise ValueError(f"{update!r} names no update: neither the id of an order nor a token")
        return self._post(bound.recipient, "activate", update=update)

    def send_data(
        self,
        device: int,
        data_id: str,
        value: bytes | str | int | float,
        kind: DataKind | None = None,
        *,
        lifetime: float | None = None,
    ) -> PostedOrder:
        """See :meth:`Server.send_data`, confirmed: over when the device has the value for good."""
        data = b64encode(Data.encode_value(value, kind)).decode()
        return self._post(device, "send_data", data_id=data_id, data=data, lifetime=lifetime)

    def command_join(self, device: int, server: int | None = None) -> PostedOrder:
        """See :meth:`Server.command_join`; the result is a Status."""
        return self._post(device, "command_join", server=server)

    def register(self, device: int, key: PublicKey) -> PostedOrder:
        """Register the key of a device, which may join from then on; PolicyError if another one is registered."""
        check_type(key, PublicKey, "key")
        return self._post(device, "register", key=key.to_pem().decode())

    def remove(self, device: int) -> PostedOrder:
        """Drop the key of a device and end its membership, without telling it; it may be registered again."""
        return self._post(device, "remove")

    def revoke(self, device: int) -> PostedOrder:
        """See :meth:`Server.revoke`. Nothing that the device signed has an effect once this is DONE.

        While its partition is served that takes milliseconds, a second at most. While it is not, nothing of the device
        is accepted by anybody, and the worker that comes next carries this out within a second.
        """
        return self._post(device, "revoke")

    def terminate(self, device: int) -> PostedOrder:
        """See :meth:`Server.terminate`; over when the command is on its way for good."""
        return self._post(device, "terminate")

    def deregister(self, device: int) -> PostedOrder:
        """See :meth:`Server.deregister`; over when the command is on its way for good."""
        return self._post(device, "deregister")

    def find(self, order_id: str) -> PostedOrder:
        """Return the order with this id; ValueError for what is none. Whether it is known, its reports say."""
        match = _ID.fullmatch(order_id)
        if match is None:
            raise ValueError(f"{order_id!r} is no id of an order: a device in hex, a dot, and 32 hex digits")
        return PostedOrder(self._mailbox, int(match[1], 16), bytes.fromhex(match[2]))

    def waiting(self) -> dict[int, int]:
        """Return how many orders wait for a worker, by partition."""
        return self._mailbox.waiting()

    def close(self) -> None:
        """Let go of the connections. Orders stand."""
        self._mailbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, device: int, kind: str, **details: Any) -> PostedOrder:
        order = Order(device, kind, {name: value for name, value in details.items() if value is not None})
        order.check()
        posted = PostedOrder(self._mailbox, device, token_bytes(16))
        report = OrderReport(round(time.time(), 3), kind, "POSTED")
        self._mailbox.post(device, posted._number, order.dump(), report.dump(), self._capacity)
        return posted

    def __repr__(self) -> str:
        return f"<Orders for server {self.identity:x}>"
