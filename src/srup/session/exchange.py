"""Exchanges and the peers that they are with: look-up, room, timers, and what has changed since the last commit."""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from types import MappingProxyType
from typing import Any, Final

from ..errors import PolicyError
from ..messages import Message
from ..replay import ReplayWindow
from ..wire import Status
from . import retry
from .freshness import Horizon, Signer

__all__ = ["MAX_EXCHANGES", "MAX_REMEMBERED", "Exchange", "ExchangeTable", "Peer"]

MAX_EXCHANGES: Final = 256
"""How many exchanges each side may have open with the other at a time (T9)."""

MAX_REMEMBERED: Final = 1024
"""How many finished exchanges that a peer has begun are remembered, for it may ask for the answer again (T9)."""


_NONE: Final[Mapping[bytes, "Exchange"]] = MappingProxyType({})  # one for all peers: most have no exchange at a time


@dataclass(slots=True, eq=False)
class Exchange:
    """A question and its answers, held together by a token."""

    peer: "Peer"
    token: bytes
    state: Enum
    expiry: float
    mine: bool  # I asked
    request: Message | None = None  # what was asked; sent again while it has a retry
    status: Status | None = None  # the last answer
    retry: float = 0.0  # pause before the next retransmission; 0 for none
    due: float = 0.0  # when time changes something
    single_use: bool = False  # its token is good until the expiry, and must not work twice (T11)
    began: float = 0.0  # when I asked, for whoever watches
    detail: Any = None  # what the flow needs to know besides: what was ordered, and how
    horizon: Horizon | None = None  # of the key that began it, if that was not ours

    @property
    def partner(self) -> "Peer":
        """The other side, as the agents call it."""
        return self.peer


@dataclass(slots=True, eq=False)
class Room:
    """What one side has under way with a peer, counted."""

    open: dict[Exchange, None] = field(default_factory=dict)  # in the order in which they began
    # What is finished, the one that ended first at the front: those of single use, and others.
    answered: OrderedDict[Exchange, None] = field(default_factory=OrderedDict)
    disposable: OrderedDict[Exchange, None] = field(default_factory=OrderedDict)


@dataclass(slots=True, eq=False)
class Peer:
    """The other side, once a message of it has verified or we have something to say to it."""

    identity: int
    member: bool = False
    binds: bool = False  # has sent a bound token: from then on it must (T3)
    last_sent: int = 0
    reserved: int = 0  # after a restart, ids of ours begin above this one
    horizon: Horizon = field(default_factory=Horizon)  # of its key
    exchanges: Mapping[bytes, Exchange] = field(default_factory=lambda: _NONE)  # only their table changes them
    theirs: Room | None = None
    ours: Room | None = None
    hearing: Horizon | None = None  # of the key that signed what is being heard
    signer: Signer | None = None  # whose horizon it is, if that has been said since the start

    @property
    def window(self) -> ReplayWindow:
        """Which sequence ids were seen under the key that counts."""
        return self.horizon

    @property
    def heard(self) -> Horizon:
        """What is known of the key that signed what is being heard, or last was."""
        return self.hearing or self.horizon

    def counting(self, sequence_id: int) -> int:
        """Return a sequence id that was just heard as the later ones under the key that counts are compared with it.

        A retiring key may be in other hands: nothing that it says is newer than what its successor has said (T30).
        """
        return min(sequence_id, self.horizon.highest)

    def room(self, mine: bool) -> Room:
        """Return the room of our exchanges, or of theirs."""
        room = self.ours if mine else self.theirs
        if room is None:
            room = Room()
            if mine:
                self.ours = room
            else:
                self.theirs = room
        return room

    def in_state(self, *states: Enum) -> list[Exchange]:
        """Return the exchanges in one of these states, which are open ones, in the order in which they began."""
        rooms = [room for room in (self.ours, self.theirs) if room is not None]
        return [each for room in rooms for each in room.open if each.state in states]


class ExchangeTable:
    """All peers of a session and all exchanges with them. A state is ``open`` if time ends it with an effect.

    ``on_forget`` is called with each exchange that is about to be forgotten.
    """

    def __init__(self, open_states: Collection[Enum]) -> None:
        self.peers: dict[int, Peer] = {}
        self.size = 0  # exchanges of all peers
        self.timers: list[tuple[float, int, Exchange]] = []
        self.durable = False  # whether somebody asks for what has changed
        self.on_forget: Callable[[Exchange], None] = lambda exchange: None
        self._open_states = frozenset(open_states)
        self._order = count()
        self._changed_peers: dict[int, Peer] = {}
        self._changed: dict[tuple[int, bytes], None] = {}
        self._dropped: list[int] = []
        self._changed_freshness: dict[int, None] = {}

    # Look-up.

    def find(self, peer_id: int, token: bytes) -> Exchange | None:
        """Return the exchange of this peer and token, if it is remembered."""
        peer = self.peers.get(peer_id)
        return peer.exchanges.get(token) if peer else None

    def is_open(self, exchange: Exchange) -> bool:
        """Return whether something is still to happen in this exchange."""
        return exchange.state in self._open_states

    def open_of(self, peer_id: int) -> list[Exchange]:
        """Return our exchanges with a peer that are open."""
        peer = self.peers.get(peer_id)
        return list(peer.ours.open) if peer is not None and peer.ours is not None else []

    def __iter__(self) -> Iterator[Exchange]:
        """Go through all exchanges; any thread may."""
        return iter([each for peer in list(self.peers.values()) for each in list(peer.exchanges.values())])

    # Room.

    def check_room(self, new: Exchange) -> Exchange | None:
        """Return which exchange is to be forgotten for a new one: None, an old one, or the new one itself.

        Each side has its own room: what one of them opens must not crowd out what the other is doing. What is finished
        gives way to what is new, the one that ended first before all others. Where nothing is finished, an exchange
        that is finished at once (a termination, a value) goes unremembered; any other is refused with PolicyError.
        """
        room = new.peer.room(new.mine)
        if len(room.open) + len(room.disposable) >= MAX_EXCHANGES:
            if room.disposable:
                return next(iter(room.disposable))
            if self.is_open(new):
                held = len(room.open) + len(room.answered)
                raise PolicyError(f"there are too many exchanges with {new.peer.identity:x}: {held}")
            return new
        return next(iter(room.answered)) if len(room.answered) >= MAX_REMEMBERED else None

    def _place(self, exchange: Exchange, room: Room) -> dict[Exchange, None]:
        """Return where in its room an exchange is counted."""
        if exchange.state in self._open_states:
            return room.open
        return room.answered if exchange.single_use else room.disposable

    def _enter(self, exchange: Exchange) -> None:
        self._place(exchange, exchange.peer.room(exchange.mine))[exchange] = None

    def _leave(self, exchange: Exchange) -> None:
        peer = exchange.peer
        room = peer.room(exchange.mine)
        self._place(exchange, room).pop(exchange, None)
        if not (room.open or room.answered or room.disposable):  # a quiet peer costs no memory
            if exchange.mine:
                peer.ours = None
            else:
                peer.theirs = None

    # Changes.

    def add(self, exchange: Exchange) -> None:
        """Remember an exchange."""
        self._insert(exchange)
        self.size += 1
        self._enter(exchange)
        self.mark(exchange)

    def remember(self, exchange: Exchange) -> bool:
        """Remember an exchange if there is room; PolicyError if it must be remembered and there is none."""
        if exchange.token in exchange.peer.exchanges:
            self.mark(exchange)
            return True
        oldest = self.check_room(exchange)
        if oldest is exchange:
            self.on_forget(exchange)
            return False
        if oldest is not None:
            self.forget(oldest)
        self.add(exchange)
        return True

    def forget(self, exchange: Exchange) -> None:
        """Forget an exchange that is remembered."""
        self.on_forget(exchange)
        self._remove(exchange)
        self.size -= 1
        self._leave(exchange)
        self.mark(exchange)

    def rename(self, exchange: Exchange, token: bytes) -> None:
        """Let an exchange that is remembered go on under another token."""
        self._remove(exchange)
        self.mark(exchange)
        exchange.token = token
        self._insert(exchange)
        self.mark(exchange)

    def _insert(self, exchange: Exchange) -> None:
        peer = exchange.peer
        if not isinstance(peer.exchanges, dict):
            peer.exchanges = {}
        peer.exchanges[exchange.token] = exchange

    def _remove(self, exchange: Exchange) -> None:
        peer = exchange.peer
        assert isinstance(peer.exchanges, dict)  # noqa: S101 - this one is in it
        del peer.exchanges[exchange.token]
        if not peer.exchanges:
            peer.exchanges = _NONE

    def move(self, exchange: Exchange, state: Enum) -> None:
        """Let an exchange be in another state."""
        same_place = (exchange.state in self._open_states) is (state in self._open_states)
        if same_place or not self.holds(exchange):
            exchange.state = state
            return
        room = exchange.peer.room(exchange.mine)
        self._place(exchange, room).pop(exchange, None)
        exchange.state = state
        self._place(exchange, room)[exchange] = None

    def holds(self, exchange: Exchange) -> bool:
        """Return whether this exchange is remembered."""
        return exchange.peer.exchanges.get(exchange.token) is exchange

    def drop_peer(self, peer: Peer) -> None:
        """Forget a peer whose exchanges are forgotten."""
        del self.peers[peer.identity]
        if self.durable:
            self._dropped.append(peer.identity)
            self._changed_peers.pop(peer.identity, None)

    # Timers.

    def schedule(self, exchange: Exchange, now: float) -> None:
        """Have :meth:`pop_due` return the exchange when time changes something about it."""
        self._set_due(exchange, retry.due(exchange.expiry, exchange.retry, now))

    def hasten(self, exchange: Exchange, now: float) -> None:
        """Have :meth:`pop_due` return the exchange as soon as may be, behind those that are due before."""
        self._set_due(exchange, min(exchange.due, now))

    def _set_due(self, exchange: Exchange, due: float) -> None:
        if due != exchange.due:
            exchange.due = due
            heapq.heappush(self.timers, (due, next(self._order), exchange))
        if len(self.timers) > 64 + 2 * self.size:  # entries of what was forgotten or rescheduled
            self.timers = [entry for entry in self.timers if self._is_current(entry[0], entry[2])]
            heapq.heapify(self.timers)

    def pop_due(self, now: float) -> Exchange | None:
        """Return an exchange whose time has come, None if there is none."""
        while self.timers and self.timers[0][0] <= now:
            due, _, exchange = heapq.heappop(self.timers)
            if self._is_current(due, exchange):
                return exchange
        return None

    def _is_current(self, due: float, exchange: Exchange) -> bool:
        return due == exchange.due and self.holds(exchange)

    # What has changed, for a store.

    def mark_peer(self, peer: Peer) -> None:
        """Note that a peer has changed, if there is a store to be told."""
        if self.durable:
            self._changed_peers[peer.identity] = peer

    def mark_freshness(self, peer_id: int) -> None:
        """Note that more is refused from a peer than before, besides what its window refuses."""
        if self.durable:
            self._changed_freshness[peer_id] = None

    def take_changed_freshness(self) -> list[int]:
        """Return the peers that :meth:`mark_freshness` has named since the last call."""
        taken, self._changed_freshness = list(self._changed_freshness), {}
        return taken

    def mark(self, exchange: Exchange) -> None:
        """Note that an exchange has changed, began or ended, if there is a store to be told."""
        if self.durable:
            self._changed[exchange.peer.identity, exchange.token] = None

    @property
    def changed_ids(self) -> list[int]:
        """The identities of peers that have changed or were dropped since the last :meth:`take_changed`."""
        return [*self._changed_peers, *self._dropped]

    def take_changed(self) -> tuple[list[Peer], list[tuple[int, bytes]], list[int]]:
        """Return the peers and exchanges that have changed since the last call, and the peers that were dropped."""
        taken = list(self._changed_peers.values()), list(self._changed), self._dropped
        self._changed_peers, self._changed, self._dropped = {}, {}, []
        return taken
