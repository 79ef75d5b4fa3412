"""A deployed home server, syndication device and away server, by docs/protocol/deployed-peers.md (D-16, D-19, D-27).

The device passes every message on under the token that it came with; the away server gives home's token to the device
that it asks, and that device's token to home. None of them answers anything.
"""

from .old_peer import OldDevice, OldServer, seal, unseal

TO_AWAY = ("SyndicatedAction", "SyndicatedIdRequest", "SyndicatedEndRequest")
TO_HOME = ("SyndicatedDeviceCount", "SyndicatedDeviceList", "SyndicatedData", "SyndicatedTerminate")


class Fragile:
    """A peer that tells what it would not have survived: answers that none of its handlers waits for."""

    def unexpected(self, *asked):
        """The statuses about memberships that it has heard under other tokens than those that it ``asked`` under."""
        answers = [message for message in self.of("Response") if message.token not in asked]
        return [message.fields["status"] for message in answers if message.fields["status"] >> 4 in (5, 7)]


class OldHome(Fragile, OldServer):
    """The home server."""

    def syndicate(self, device, url, value):
        return self.send(device, "SyndicationInit", url=url, sealed=seal(self.keys[device], value))

    def syndicated_action(self, device, target, action_id):
        return self.send(device, "SyndicatedAction", target_id=target, action_id=action_id)

    def syndicated_identify(self, device, target):
        return self.send(device, "SyndicatedIdRequest", target_id=target)

    def end_syndication(self, device):
        return self.send(device, "SyndicatedEndRequest")


class OldSide(Fragile, OldDevice):
    """One side of the syndication device; ``across`` is the link of the other side, and ``carries`` what goes there."""

    across = None
    carries = ()
    asked = ()  # the tokens of its joins
    offered = None  # the token of home's SyndicationInit and the value in it

    def hear(self, topic, wire):
        before = len(self.heard)
        sends = super().hear(topic, wire)
        for message in self.heard[before:]:
            other = self.across.peer
            if message.name == "SyndicationInit":
                other.offered = message.token, unseal(self.key, message.fields["sealed"])
                self.across.do(other.join)
            elif message.name in self.carries:
                self.across.do(other.send, other.server, message.name, message.token, **message.fields)
        return sends

    def join(self):
        sends = super().join()
        self.asked = (*self.asked, *self._asked)
        return sends

    def answered(self, message):
        sends = super().answered(message)
        if not self.joined or self.offered is None:
            return sends
        (token, value), self.offered = self.offered, None
        sealed = seal(self.keys[self.server], value.encode())
        return [*sends, *self.send(self.server, "SyndicationRequest", token, sealed=sealed)]


class OldAway(Fragile, OldServer):
    """The away server, which shares ``shared`` with whoever asks."""

    takes = {
        **OldServer.takes,
        "SyndicationRequest": "begin",
        "SyndicatedAction": "carry_action",
        "SyndicatedIdRequest": "carry_question",
        "SyndicatedEndRequest": "end",
        "Data": "pass_on",
    }
    handlers = frozenset({"on_data"})
    shared = ()
    relay = None

    def begin(self, message):
        self.relay = message.sender
        sends = self.send(self.relay, "SyndicatedDeviceCount", count=len(self.shared))
        for number, device in enumerate(self.shared):
            sends += self.send(self.relay, "SyndicatedDeviceList", device_sequence=number, device_id=device)
        return sends

    def carry_action(self, message):
        fields = {"action_id": message.fields["action_id"]}
        return self.send(message.fields["target_id"], "Action", message.token, **fields)

    def carry_question(self, message):
        return self.send(message.fields["target_id"], "IdRequest", message.token)

    def pass_on(self, message):
        if self.relay is None or message.sender not in self.shared:
            return []
        return self.send(self.relay, "SyndicatedData", message.token, **message.fields, source_id=message.sender)

    def end(self, message):
        self.relay = None
        return []
