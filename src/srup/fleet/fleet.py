"""The control plane of a server: what is posted here, the running server carries out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from secrets import token_bytes
from threading import Lock
from typing import Any, Final, Self

from ..agent.admission import Decision
from ..agent.arguments import check_identity
from ..agent.joinboard import BOARD, load_joins
from ..agent.reports import OrderReport
from ..agent.verbs import (
    AboutUpdate,
    Activate,
    Cancel,
    CommandJoin,
    DecideJoin,
    Deregister,
    DoAction,
    Identify,
    Order,
    Register,
    Remove,
    Revoke,
    SendData,
    Tag,
    Terminate,
    Update,
    check_name,
)
from ..errors import PolicyError
from ..keys import PublicKey
from ..messages import Data, DataKind
from ..store.auditing import AuditReader, span_of
from ..store.directory import Directory
from ..store.mailbox import CAPACITY
from ..store.mailboxes import audit_at, campaigns_at, directory_at, mailbox_at
from ..tokens import parse
from .audit import AuditRecord, Verdict, judge
from .campaigns import Campaigns
from .devices import FleetDevice
from .joins import WaitingJoin
from .posted import PostedOrder, parse_id

__all__ = ["Fleet"]

PAGE: Final = 500
"""How many devices are read at a time."""

_KEYS: Final = 1024  # that are remembered while an audit is verified
_LARGEST: Final = (1 << 64) - 1


class Fleet:
    """The devices of server ``identity``, whose state is in ``store``.

    That is the path of the server's SQLite database, or the URL of the Redis that its workers share (or a client).
    Methods are named as those of :class:`Server` and check the same. Each posts an order and returns it at once; it is
    durable then, and the server, or the worker that serves the device, carries it out, in order with the others for
    this device, once, in less than a tenth of a second, or when there is such a server again: an order that has a
    ``lifetime`` only while that lasts, counted from now; it is at most 10**10 seconds. What became of it can be asked
    for a week after its end.

    ``posted_by`` is who posts here, at most 100 characters, for the audit; an order may name somebody else.
    ``capacity`` is how many orders may wait in the mailbox of a partition: with so many in it a post is a StoreError.
    ``lease`` is after how many seconds somebody else carries campaigns out when whoever did so, with a Redis, is gone.
    StoreError also if the store cannot be reached or holds no state of this server. Threads may share one of these.
    """

    def __init__(
        self, store: Any, identity: int, *, capacity: int = CAPACITY, lease: float = 15.0, posted_by: str = ""
    ) -> None:
        check_identity(identity)
        self.posted_by: Final = check_name(posted_by)
        self.identity: Final = identity
        self._capacity = capacity
        self._lease = lease
        self._mailbox = mailbox_at(store, identity)
        self._store = store
        self._directory: Directory | None = None
        self._reader: AuditReader | None = None
        self._key_of: Callable[[bytes, int], bytes | None] = lambda fingerprint, partner: None
        self._campaigns: Campaigns | None = None
        self._opening = Lock()

    # One method for each verb.

    def action(self, device: int, action_id: int, lifetime: float | None = None) -> PostedOrder:
        """See :meth:`Server.action`; the result is a Status."""
        return self.post(DoAction(device, action_id, lifetime))

    def identify(self, device: int) -> PostedOrder:
        """See :meth:`Server.identify`; the result is the description."""
        return self.post(Identify(device))

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
        return self.post(Update(device, url, digest, hold, version, lifetime))

    def activate(self, update: PostedOrder | str, lifetime: float | None = None) -> PostedOrder:
        """Let a device activate what it was to hold: name the order of the update, its id, or its token.

        After ``lifetime`` seconds it is not told any more, and does not obey. The result is PolicyError unless it waits
        for that; how the activation ends is told by the update.
        """
        return self.post_about(Activate, update, lifetime=lifetime)

    def cancel(self, order: PostedOrder | str) -> PostedOrder:
        """Take any order back that has had no effect yet: name it, its id, or the token of an update.

        That is what waits for the server, a value that waits for its device, and an update until the device is told to
        activate it (:meth:`UpdateOrder.cancel`). It overtakes all orders that wait. The result is PolicyError when it
        is too late, for example because the device was asked already. An order that is taken back ends with PolicyError
        itself; if it was ending at this very moment, what it says counts.
        """
        return self.post_about(Cancel, order)

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
        return self.post(SendData(device, data_id, Data.encode_value(value, kind), lifetime))

    def command_join(self, device: int, server: int | None = None) -> PostedOrder:
        """See :meth:`Server.command_join`; the result is a Status."""
        return self.post(CommandJoin(device, server))

    def decide_join(self, device: int, decision: Decision, join: WaitingJoin | str, *, by: str = "") -> PostedOrder:
        """Decide about a join that waits for a person: "accept", "refuse" or "fail" if it could not be compared.

        ``join`` names which one, itself or by its id (:meth:`joins`): a device that has asked anew shows another value,
        and that is another join. ``by`` says in the server's log who has decided. The result is PolicyError when that
        join does not wait any more: its time was up, it was withdrawn, or somebody else has decided.
        """
        return self.post(DecideJoin(device, join.id if isinstance(join, WaitingJoin) else join, decision, by))

    def register(self, device: int, key: PublicKey) -> PostedOrder:
        """Register the key of a device, which may join from then on; PolicyError if another one is registered."""
        return self.post(Register(device, key))

    def remove(self, device: int) -> PostedOrder:
        """Drop the key of a device and end its membership, without telling it; it may be registered again."""
        return self.post(Remove(device))

    def revoke(self, device: int) -> PostedOrder:
        """See :meth:`Server.revoke`. Nothing that the device signed has an effect once this is DONE.

        It overtakes all orders that wait; those for this device from before it fail. While its partition is served that
        takes milliseconds, a second at most. While it is not, nothing of the device is accepted by anybody, and the
        worker that comes next carries this out before it takes any message.
        """
        return self.post(Revoke(device))

    def terminate(self, device: int) -> PostedOrder:
        """See :meth:`Server.terminate`; over when the command is on its way for good."""
        return self.post(Terminate(device))

    def deregister(self, device: int) -> PostedOrder:
        """See :meth:`Server.deregister`; over when the command is on its way for good."""
        return self.post(Deregister(device))

    def tag(self, device: int, name: str, value: str) -> PostedOrder:
        """Give a device a tag, by which it is found; an empty value takes it away. The device is not told."""
        return self.post(Tag(device, name, value))

    # Any of them.

    def post(self, order: Order) -> PostedOrder:
        """Post an order that was made elsewhere, checked as by its own method."""
        if not order.posted_by and self.posted_by:
            order = replace(order, posted_by=self.posted_by)
        order.checked()
        posted = PostedOrder(self._mailbox, order.device, token_bytes(16))
        report = OrderReport(round(time.time(), 3), order.verb, "POSTED")
        content = order.dump(), report.dump(), self._capacity
        self._mailbox.post(order.device, posted.number, *content, urgent=order.urgent)
        return posted

    def post_about(self, verb: type[AboutUpdate], update: PostedOrder | str, **details: Any) -> PostedOrder:
        """Post an order about an update, named as for :meth:`activate`; ValueError for what names none."""
        if isinstance(update, PostedOrder):
            return self.post(verb(update.device, update.number.hex(), **details))
        if (named := parse_id(update)) is not None:
            return self.post(verb(named[0], named[1].hex(), **details))
        bound = parse(update.encode())
        if bound is None:
            raise ValueError(f"{update!r} names no update: neither the id of an order nor a token")
        return self.post(verb(bound.recipient, update, **details))

    def find(self, order_id: str) -> PostedOrder:
        """Return the order with this id; ValueError for what is none. Whether it is known, its reports say."""
        named = parse_id(order_id)
        if named is None:
            raise ValueError(f"{order_id!r} is no id of an order: a device in hex, a dot, and 32 hex digits")
        return PostedOrder(self._mailbox, *named)

    def waiting(self) -> dict[int, int]:
        """Return how many orders wait for the server, by partition (0 in an SQLite database)."""
        return self._mailbox.waiting()

    # What is known.

    def devices(self, first: int = 0) -> Iterator[FleetDevice]:
        """Return the devices that the store knows, from the identity ``first`` on, by identity.

        That are those whose key is or was registered, as of the last commit of the server, which is not kept waiting;
        they are read in pages, each from one moment.
        """
        check_identity(first, "first")
        directory = self._known()
        while page := directory.page(first, PAGE):
            yield from (FleetDevice.of(known) for known in page if known.identity != self.identity)
            if len(page) < PAGE or page[-1].identity >= _LARGEST:
                return
            first = page[-1].identity + 1

    def device(self, identity: int) -> FleetDevice:
        """Return what is known about a device; PolicyError when nothing is."""
        check_identity(identity, "device")
        return self.find_device(identity)

    def find_device(self, identity: int, names: Sequence[str] | None = None) -> FleetDevice:
        """Return a device as :meth:`device` does; with ``names``, only these of its facts are read."""
        if (found := self._known().one(identity, names)) is None:
            raise PolicyError(f"nothing is known about {identity:x}: no key was ever registered for it")
        return FleetDevice.of(found)

    def joins(self) -> list[WaitingJoin]:
        """Return the joins that wait for somebody's word now, the oldest first.

        Only a server whose ``moderation`` is by "orders" lets others know of them.
        """
        now = time.time()
        records = (each for fact in self._known().facts(self.identity, BOARD) for each in load_joins(fact))
        waiting = [WaitingJoin.of(record) for record in records if record.expires > now]
        return sorted(waiting, key=lambda join: (join.since, join.device))

    def audit(
        self,
        device: int | None = None,
        since: float | None = None,
        until: float | None = None,
        newest_first: bool = True,
    ) -> Iterator[AuditRecord]:
        """Return what was heard and signed, with one device or all, from ``since`` on and before ``until`` (Unix time).

        It is read in pages, beside the server, which is not kept waiting. ValueError for what is no time.
        """
        if device is not None:
            check_identity(device, "device")
        span = span_of(0.0 if since is None else since, device, until, newest_first)
        return (AuditRecord.of(row, self.identity) for row in self._audited().rows(span))

    def verify(self, record: AuditRecord) -> tuple[Verdict, str]:
        """Return what there is to say about the signature of a record, by the keys that the store has kept, and why."""
        return judge(record, self.signer_key(record))

    def signer_key(self, record: AuditRecord) -> bytes | None:
        """Return the key that a record names, as PEM; None if the store has not kept it."""
        if record.fingerprint is None:
            return None
        self._audited()
        return self._key_of(bytes.fromhex(record.fingerprint), record.peer)

    @property
    def campaigns(self) -> Campaigns:
        """The campaigns of these devices; StoreError where the store keeps none, which is one in memory."""
        with self._opening:
            if self._campaigns is None:
                self._campaigns = Campaigns(self, campaigns_at(self._store, self.identity, self._lease))
            return self._campaigns

    def close(self) -> None:
        """Let go of the connections. Orders stand."""
        self._mailbox.close()
        with self._opening:
            if self._campaigns is not None:
                self._campaigns.close()
            if self._directory is not None:
                self._directory.close()
            if self._reader is not None:
                self._reader.close()

    def _known(self) -> Directory:
        """Return what reads the devices, which is opened when it is first needed: to post, nobody needs it."""
        with self._opening:
            if self._directory is None:
                self._directory = directory_at(self._store, self.identity)
            return self._directory

    def _audited(self) -> AuditReader:
        with self._opening:
            if self._reader is None:
                self._reader = audit_at(self._store, self.identity)
                self._key_of = lru_cache(_KEYS)(self._reader.key)
            return self._reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Fleet of server {self.identity:x}>"
