"""The owners in a syndication world: what they ask of their own devices and of each other's, share, end and put out.

Each method that makes something happen returns whether it was possible.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

from ...errors import UnansweredError
from ...wire import Status
from ..party import ACTIONS, Party
from .oracle import Side, url_of, value_of

if TYPE_CHECKING:
    from ..ledger import Order
    from .parties import Lamp, Relay, SharingServer
    from .world import SyndicationWorld

__all__ = ["Operators"]


class Operators:
    """The owners in a ``world``."""

    def __init__(self, world: "SyndicationWorld") -> None:
        self._world = world
        self._actions: Counter[tuple[int, int]] = Counter()  # how many action ids are used up, by server and device
        self._numbers: Counter[int] = Counter()  # how many syndications there were, by relay
        self._ends: dict[int, Order] = {}  # by relay, home's last end, until it begins again
        self._reviews: dict[int, Order] = {}  # by relay, what home's owner has asked to see whether it works

    # What an owner asks of devices of his own.

    def action(self, server: "SharingServer", device: int) -> bool:
        """Order an action of a device of one's own."""
        number = self._next_action(server.identity, device) if server.up else None
        if number is None:
            return False
        order = self._order("action", server, device, number)
        self._world.expect(order, server.agent.action(device, number))
        return True

    def data(self, lamp: "Lamp") -> bool:
        """Let a device send a value to its server, which is for those it is shared with, too."""
        if not lamp.up:
            return False
        what = ("reading", f"{self._world.ledger.counts['ordered data']} by {lamp}")
        policy = self._world.policy
        lifetime = policy.update_lifetime if lamp.durable else policy.lifetime
        order = self._world.order("data", lamp, lamp.server.identity, what, lifetime)
        self._world.expect(order, lamp.agent.send_data(lamp.server.identity, *what))
        return True

    def identify(self, server: "SharingServer", device: int) -> bool:
        """Ask a device of one's own what it is."""
        if not server.up:
            return False
        order = self._order("identify", server, device, len(self._world.ledger.orders))
        self._world.expect(order, server.agent.identify(device))
        return True

    # What an owner asks of devices of others.

    def syndicated_action(self, relay: "Relay", device: int) -> bool:
        """Ask for an action of a device that is shared, or is not."""
        number = self._next_action(relay.away.identity, device) if relay.home.up else None
        if number is None:
            return False
        order = self._order("syndicated action", relay.home, relay.identity, (device, number))
        self._world.oracle.gave(order, relay.identity)
        self._world.expect(order, relay.home.agent.syndicated_action(relay.identity, device, number))
        return True

    def syndicated_identify(self, relay: "Relay", device: int) -> bool:
        """Ask what a device is that is shared, or is not."""
        if not relay.home.up:
            return False
        order = self._order("syndicated identify", relay.home, relay.identity, device)
        self._world.expect(order, relay.home.agent.syndicated_identify(relay.identity, device))
        return True

    def syndicated_request(self, relay: "Relay") -> "Order | None":
        """Make a request of the other owner; return the order."""
        if not relay.home.up:
            return None
        content = f"request {len(self._world.ledger.orders)}".encode()
        order = self._order("syndicated request", relay.home, relay.identity, content)
        self._world.expect(order, relay.home.agent.syndicated_request(relay.identity, 7, content))
        return order

    # Beginnings and ends.

    def begin(self, relay: "Relay") -> bool:
        """Begin a syndication as home, unless there is one."""
        home = relay.home
        session: Any = home.agent.debug.session
        if not home.up or session.syndication(relay.identity) or relay.identity not in home.agent.members:
            return False
        home.wants[relay.identity] = True
        self._ends.pop(relay.identity, None)
        self._numbers[relay.identity] += 1
        number = self._numbers[relay.identity]
        lifetime = self._world.policy.update_lifetime
        order = self._world.order("begin", home, relay.identity, url_of(number), lifetime)
        self._world.oracle.begins(relay.identity, number)
        self._world.expect(order, home.agent.syndicate(relay.identity, url_of(number), value_of(number)))
        return True

    def end(self, relay: "Relay") -> bool:
        """End a syndication as home."""
        if not relay.home.up:
            return False
        relay.home.wants[relay.identity] = False
        self._end(relay)
        return True

    def _end(self, relay: "Relay") -> None:
        order = self._order("end", relay.home, relay.identity, len(self._world.ledger.orders))
        self._world.oracle.home_ends(relay.identity)
        session: Any = relay.home.agent.debug.session
        if session.syndication(relay.identity) is not None:  # or else an earlier end counts
            self._ends[relay.identity] = order
        future = relay.home.agent.end_syndication(relay.identity)
        self._world.expect(order, future)

    def share(self, relay: "Relay", devices: tuple[int, ...]) -> bool:
        """Share other devices than before as the away owner."""
        away = relay.away
        if not away.up:
            return False
        away.offers[relay.identity] = devices
        self._world.oracle.shares(relay.identity, devices)
        order = self._order("share", away, relay.away_id, devices)
        self._world.expect(order, away.agent.share(relay.away_id, devices))
        return True

    def terminate(self, relay: "Relay", for_good: bool) -> bool:
        """End a syndication as the away owner; ``for_good``: and do not agree to another one."""
        away = relay.away
        if not away.up:
            return False
        if for_good:
            away.offers[relay.identity] = None
        self._world.oracle.ends(relay.identity, Side.AWAY)
        order = self._order("terminate", away, relay.away_id, len(self._world.ledger.orders))
        self._world.expect(order, away.agent.terminate_syndication(relay.away_id))
        return True

    def offer(self, relay: "Relay", devices: tuple[int, ...]) -> bool:
        """Agree to syndications again."""
        if relay.away.offers[relay.identity] is not None:
            return False
        relay.away.offers[relay.identity] = devices
        return True

    # Who may be in.

    def put_out(self, server: "SharingServer", device: int) -> bool:
        """Put a member out, be it a relay."""
        if not server.up or device not in server.agent.members:
            return False
        for relay in self._world.relays.values():
            if device in (relay.identity, relay.away_id):
                sides = tuple(Side) if device == relay.identity else (Side.AWAY,)
                self._world.oracle.ends(relay.identity, *sides)
        order = self._order("put out", server, device, len(self._world.ledger.orders))
        self._world.expect(order, server.agent.terminate(device))
        return True

    def resign(self, device: "Lamp") -> bool:
        """Let a device leave its server, be it a relay."""
        if not device.up or not device.agent.joined:
            return False
        device.wanted = False
        if device.identity in self._world.relays:
            self._world.oracle.ends(device.identity)
        order = self._order("resign", device, device.server.identity, device.life)
        self._world.expect(order, device.agent.resign())
        return True

    def rejoin(self, device: "Lamp") -> bool:
        """Let a device join its server again."""
        if not device.up or device.agent.joined:
            return False
        device.wanted = True
        device.agent.join()
        return True

    def decide(self, server: "SharingServer", which: int, refuse: bool) -> bool:
        """Say something about one of the joins that wait for a person."""
        waiting = server.agent.pending_joins if server.up else []
        if waiting:
            server.decide(waiting[which % len(waiting)], refuse)
        return bool(waiting)

    # The end.

    def bring_in(self, device: "Lamp") -> None:
        """Do what an owner does who wants a device in that is not."""
        if device.up and device.wanted and not device.agent.joined and device.out:
            device.agent.join()

    def tidy(self, relay: "Relay") -> None:
        """Do what two owners do for a syndication that is not as they want it."""
        home, away = relay.home, relay.away
        wanted = home.wants.get(relay.identity, False) and relay.wanted
        at_home: Any = home.agent.debug.session
        at_away: Any = away.agent.debug.session
        known = at_home.syndication(relay.identity)
        if known is None and wanted and away.offers[relay.identity] is not None and relay.agent.joined:
            self.begin(relay)
        elif known is not None and not wanted:
            self._end(relay)
        elif known is None and (relay.forgotten or self._unconfirmed(relay)):
            self._ends.pop(relay.identity, None)
            self.put_out(home, relay.identity)  # nothing else calls it back
        if relay.unheard and relay.agent.away is None and away.up and not (known is not None and wanted):
            self.put_out(away, relay.away_id)  # its owner sees that nobody is there
        sharing = at_away.syndication(relay.away_id)
        offered = away.offers[relay.identity]
        if sharing is not None and offered is None:
            self.terminate(relay, for_good=True)
        elif sharing is not None and offered is not None and tuple(sharing.devices.values()) != offered:
            self.share(relay, offered)  # he has not been told that it took effect

    def _unconfirmed(self, relay: "Relay") -> bool:
        """Return whether home's owner was told that nobody has confirmed the end, and has not begun again since."""
        end = self._ends.get(relay.identity)
        answer = None if end is None else end.answer
        return answer is not None and answer.done() and isinstance(answer.exception(), UnansweredError)

    def review(self, relay: "Relay") -> None:
        """Ask the other owner something as home, and end a syndication that has not answered the last time."""
        session: Any = relay.home.agent.debug.session
        asked = self._reviews.pop(relay.identity, None)
        if session.syndication(relay.identity) is None:
            return
        if asked is not None and asked.answer is not None and asked.answer.done():
            answer = asked.answer
            if answer.exception() is not None or answer.result() is not Status.ACTION_SUCCESS:
                self._end(relay)
                return
        order = self.syndicated_request(relay)
        if order is not None:
            self._reviews[relay.identity] = order

    def probe(self) -> "tuple[list[Order], dict[int, list[str]]]":
        """Ask everybody who is joined, and every shared device, once more.

        Return the orders, and by relay the values that home must have taken.
        """
        self._world.note("everybody who is joined is asked once more")
        before, expected = len(self._world.ledger.orders), dict[int, list[str]]()
        for lamp in self._world.lamps.values():
            if lamp.up and lamp.agent.joined:
                self.action(lamp.server, lamp.identity)
                self.identify(lamp.server, lamp.identity)
                self.data(lamp)
                for relay in self._world.relays.values():
                    if lamp.identity in (self._world.link_view(relay).shared or ()):
                        expected.setdefault(relay.identity, []).append(self._world.ledger.orders[-1].what[1])  # type: ignore[index]
        for relay in self._world.relays.values():
            view = self._world.link_view(relay)
            for device in (view.shared or ()) if view.agreed else ():
                if self._world.lamps[device].agent.joined:
                    self.syndicated_action(relay, device)
                    self.syndicated_identify(relay, device)
            if view.agreed:
                self.syndicated_request(relay)
        self._world.pass_time(self._world.policy.lifetime * 2)
        return self._world.ledger.orders[before:], expected

    def _next_action(self, server: int, device: int) -> int | None:
        number = self._actions[server, device]
        if number >= ACTIONS:
            return None
        self._actions[server, device] += 1
        return number

    def _order(self, kind: str, issuer: Party, target: int, what: Any) -> "Order":
        return self._world.order(kind, issuer, target, what, self._world.policy.lifetime)
