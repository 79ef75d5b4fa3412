"""The operators of a fleet's servers and the owners of its devices: what they order, decide, register and replace.

Each method that makes something happen returns whether it was possible.
"""

import hashlib
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..agent import UpdateOrder
from ..errors import SrupError
from ..update import UpdateState
from .party import ACTIONS, Party

if TYPE_CHECKING:
    from .ledger import Order
    from .parties import DeviceParty, ServerParty
    from .world import World

__all__ = ["Operators"]


class Operators:
    """Everybody in a ``world`` who can tell a server or a device what to do."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._actions: Counter[tuple[int, int]] = Counter()  # how many action ids are used up between two
        self._held: list[UpdateOrder] = []
        self._rotated: dict[int, float] = {}  # when an identity last changed its key

    # What servers and devices ask of each other.

    def action(self, issuer: Party, target: int) -> bool:
        """Order an action of a partner."""
        number = self._actions[issuer.identity, target]
        if not issuer.up or number >= ACTIONS:
            return False
        self._actions[issuer.identity, target] += 1
        order = self._order("action", issuer, target, number)
        self._world.expect(order, issuer.agent.action(target, number))
        return True

    def data(self, issuer: Party, target: int) -> bool:
        """Send a value to a partner."""
        if not issuer.up:
            return False
        what = ("reading", f"{self._world.ledger.counts['ordered data']} by {issuer}")
        policy = self._world.policy
        lifetime = policy.update_lifetime if issuer.durable else policy.lifetime  # with receipts, or without
        order = self._world.order("data", issuer, target, what, lifetime)
        self._world.expect(order, issuer.agent.send_data(target, *what))
        return True

    def identify(self, server: "ServerParty", device: int) -> bool:
        """Ask a device what it is."""
        if not server.up:
            return False
        order = self._order("identify", server, device, len(self._world.ledger.orders))
        self._world.expect(order, server.agent.identify(device))
        return True

    # Updates.

    def update(self, server: "ServerParty", device: int, hold: bool, age: int, host: str) -> bool:
        """Order firmware: one that is ``age`` versions old, from a host that is "good", "lying", "lost" or "fickle"."""
        if not server.up:
            return False
        number = len(self._world.ledger.orders)
        content = f"firmware {number}".encode() * 50
        digest = hashlib.sha256(content).hexdigest()
        url = f"https://firmware.example/{number}"
        contents: dict[str, Any] = self._world.host.contents  # type: ignore[assignment]
        answers = {"good": [content], "lying": [b"something else"], "fickle": [b"cut off", content], "lost": []}[host]
        if answers:
            contents[url] = lambda: answers[0] if len(answers) == 1 else answers.pop(0)
        version = max(1, number - age)
        order = self._world.order("update", server, device, digest, self._world.policy.update_lifetime)
        self._world.oracle.ordered_update(order, digest, version)
        update = server.agent.update(device, url, digest, hold=hold, version=version)
        if hold:
            self._held.append(update)
        ended: Future[Any] = Future()
        update.add_done_callback(lambda _: _end(ended, update))
        self._world.expect(order, ended)
        return True

    def activate(self, which: int) -> bool:
        """Let one of the orders that were made with ``hold`` go on."""
        ready = [order for order in self._held if order.state is UpdateState.READY]
        if not ready:
            return False
        ready[which % len(ready)].activate()
        return True

    def activate_all(self) -> None:
        """Let all of them go on that can."""
        for order in list(self._held):
            with suppress(SrupError):
                order.activate()

    def update_told(self, update: UpdateOrder) -> None:
        """Let it be checked what is told about an update."""
        order = self._world.oracle.open_update(update.digest) if update.done else None
        if order is not None:
            order.told = True
            error = update.exception()
            self._world.answered(order, error if error is not None else update.result(0))

    # Who may be in.

    def terminate(self, server: "ServerParty", device: int, ban: bool) -> bool:
        """Put a device out, and with ``ban`` do not let it in again until :meth:`readmit`."""
        if not server.up or device not in server.agent.members:
            return False
        self._dismiss(server, device)
        if ban:
            server.banned.add(device)
        order = self._order("terminate", server, device, len(self._world.ledger.orders))
        self._world.expect(order, server.agent.terminate(device))
        return True

    def readmit(self, server: "ServerParty", device: int) -> bool:
        """Let a device in again that was put out."""
        known = device in server.banned
        server.banned.discard(device)
        return known

    def deregister(self, server: "ServerParty", device: int) -> bool:
        """Put a device out for good."""
        if not server.up or device not in server.ring:
            return False
        self._dismiss(server, device)
        order = self._order("deregister", server, device, len(self._world.ledger.orders))
        self._world.expect(order, server.agent.deregister(device))
        return True

    def _dismiss(self, server: "ServerParty", device: int) -> None:
        until = server.clock.now + self._world.policy.lifetime + self._world.policy.clock_skew
        self._world.oracle.dismisses(server.identity, device, until)

    def revoke(self, server: "ServerParty", device: int) -> bool:
        """Bar a device's key; the attacker has it from then on."""
        if not server.up or device not in server.ring:
            return False
        self._world.note(f"{server} revokes {device:x}")
        server.revoked |= server.keys_of(device)
        before = [self._world.devices[device].key, self._world.devices[device].next_key]
        server.agent.revoke(device)
        self._world.oracle.become_new(server.identity, device)
        for key in before:
            if key is not None and key.public_key.fingerprint in server.revoked:
                self._world.attacker.steal(key, self._world.clock.now, device, server.identity)
        return True

    def command_join(self, server: "ServerParty", device: int, to: int | None = None) -> bool:
        """Tell a device to join, or to go to another server."""
        if not server.up:
            return False
        target = server.identity if to is None else to
        order = self._order("command join" if to is None else "send away", server, device, target)
        self._world.oracle.sends_away(order, target)
        self._world.expect(order, server.agent.command_join(device, to))
        return True

    def decide(self, server: "ServerParty", which: int, how: str) -> bool:
        """Say something about one of the joins that wait for a person."""
        waiting = server.agent.pending_joins if server.up else []
        if waiting:
            server.decide(waiting[which % len(waiting)], how)
        return bool(waiting)

    # Owners of devices.

    def resign(self, device: "DeviceParty", for_good: bool = False) -> bool:
        """Leave the server."""
        if not device.up or not device.agent.joined:
            return False
        device.wanted = False
        order = self._order("deregister" if for_good else "resign", device, device.server, device.life)
        self._world.expect(order, device.agent.deregister() if for_good else device.agent.resign())
        return True

    def rejoin(self, device: "DeviceParty") -> bool:
        """Ask the server again."""
        if not device.up:
            return False
        device.wanted = True
        device.agent.join()
        return True

    def provision(self, device: "DeviceParty") -> bool:
        """Give a device a new key and everything it needs to know, register it everywhere, and start it.

        Not before the last word to its former self has expired.
        """
        if self._world.oracle.still_dismissed(device.identity, device.clock.now):
            return False
        device.die()
        old, device.key, device.next_key = device.key, device.new_key(), None
        device.first_floor = device.floor
        device.renew_store()  # whoever begins anew does not go on where another key has ended
        self._world.note(f"{device} is provisioned anew")
        self._world.oracle.provisioned(device.identity)
        for server in self._world.servers.values():
            server.register(device.identity, device.key.public_key)
            device.server_keys[server.identity] = server.key.public_key
        self._world.attacker.steal(old, self._world.clock.now, device.identity)
        device.boot()
        return True

    def rotate(self, party: "ServerParty | DeviceParty") -> bool:
        """Change a party's key."""
        now = self._world.clock.now
        if not party.up or party.next_key is not None or now < self._rotated.get(party.identity, 0.0) + 300.0:
            return False
        if party.identity in self._world.devices and not self._world.devices[party.identity].agent.joined:
            return False
        self._rotated[party.identity] = now
        self._world.note(f"{party} changes its key")
        party.rotate(party.new_key())
        return True

    def offer_again(self, device: "DeviceParty") -> bool:
        """Offer a key again that has not been answered."""
        possible = device.next_key is not None and not device.offering
        device.offer_again()
        return possible

    def spread(self, device: "DeviceParty") -> None:
        """Tell the other servers a device's key, which it has changed by a rotation with its own one."""
        for server in self._world.servers.values():
            known = server.ring.get(device.identity)
            if server.identity != device.server and known is not None and not server.ring.bars(device.key.public_key):
                server.register(device.identity, device.key.public_key)

    def bring_in(self, device: "DeviceParty") -> None:
        """Do what an owner does who wants a device in that is not."""
        if not device.up or not device.wanted or device.server not in device.server_keys:
            return
        server = self._world.servers[device.server]
        registered = server.ring.get(device.identity)
        if device.server_keys[device.server] != server.key.public_key and server.next_key is None:
            # It has slept through a rotation of the server's key (Server.rotate_key).
            device.server_keys[device.server] = server.key.public_key
            device.die()
            device.boot()
        elif device.next_key is not None and device.next_key.public_key == registered:
            # The server has taken it, and its answer was lost with what the device knew.
            device.key, device.next_key = device.next_key, None
            self.spread(device)
            device.die()
            device.boot()
        elif registered is not None and not device.agent.joined and device.shown is None and device.out:
            device.agent.join()
        device.offer_again()

    # The end.

    def probe(self) -> "list[Order]":
        """Ask everybody who is joined once more; return the orders."""
        self._world.note("everybody who is joined is asked once more")
        before = len(self._world.ledger.orders)
        for device in self._world.devices.values():
            if device.up and device.agent.joined:
                server = self._world.servers[device.server]
                if server.ring.get(device.identity) is None:
                    continue
                for issuer, target in ((server, device.identity), (device, server.identity)):
                    self.action(issuer, target)
                    self.data(issuer, target)
                self.identify(server, device.identity)
        self._world.pass_time(self._world.policy.lifetime * 2)
        return self._world.ledger.orders[before:]

    def _order(self, kind: str, issuer: Party, target: int, what: Any) -> "Order":
        return self._world.order(kind, issuer, target, what, self._world.policy.lifetime)


def _end(future: "Future[Any]", update: UpdateOrder) -> None:
    error = update.exception()
    if not future.done():
        future.set_result(update.result(0)) if error is None else future.set_exception(error)
