"""Whoever owns the broker: he keeps messages back as long as he likes, and writes with whatever keys he has."""

from srup import encode, peek
from srup.simulation import START, Clock
from srup.tokens import bind

from .fleet import SERVER, key_of
from .test_agent_durable import DurableFleet


class Broker:
    """The attacker's hand on a MemoryNetwork of a :class:`Simulator`; ``held`` is what he keeps back, in order."""

    def __init__(self, world, network):
        self.world = world
        self.network = network
        self.held = []
        self._wanted = ()
        self._by = None
        self._used = 0
        self._pass = network._publish
        network._publish = self._take

    def _take(self, topic, wire):
        header = peek(wire) if self._wanted else None
        if header and header.type in self._wanted and self._by in (None, header.sender_id):
            self.held.append((topic, wire))
        else:
            self._pass(topic, wire)

    def hold(self, *classes, by=None):
        """Keep messages of these types back from now on, all or those that ``by`` sends; no others any more."""
        self._wanted, self._by = [cls.layout.type for cls in classes], by

    def deliver(self, *messages):
        """Hold nothing any more, and put these on the network, by default all that was held; let it have its effect."""
        self.hold()
        for topic, wire in messages or self.held:
            self.network.inject(topic, wire)
        self._settle()

    def _settle(self):
        for _ in range(2):  # what crosses from one network to the other inside a device is seen on neither
            self.world.settle()

    def heard(self, cls, by):
        """What ``by`` has sent of this type so far: pairs of topic and bytes."""
        return [
            (topic, wire)
            for topic, wire in self.network.log
            if peek(wire).type == cls.layout.type and peek(wire).sender_id == by
        ]

    def unused_id(self):
        """A sequence id that nobody uses: below the first one of this world, and inside the window."""
        self._used += 1
        return int(START * 1e6) - self._used

    def newer_id(self):
        """One above all that are in use: what its owner says after it is refused."""
        self._used += 1
        return int(START * 1e6) + 10**9 + self._used

    def signed(self, cls, sender, recipient, *, key=None, token=None, sequence_id=None, **fields):
        """A message that ``sender`` did not send, right in everything; in the key of its identity by default."""
        token = token or bind(sender, recipient, self.world.clock() + 60, self.world.randbytes(16))
        message = cls(sequence_id=sequence_id or self.unused_id(), sender_id=sender, token=token, **fields)
        return encode(message, key or key_of(sender))

    def write(self, cls, sender, recipient, *, topic=None, **options):
        """Put such a message on a topic, by default the device's of the two, and let it have its effect."""
        device = sender if recipient == SERVER else recipient
        self.network.inject(topic or f"SRUP/{device:x}", self.signed(cls, sender, recipient, **options))
        self._settle()


class HostileFleet(DurableFleet):
    """A fleet at an attacker's broker. Devices have a clock each, which may differ from the world's.

    ``durable`` says whether its ends have stores. What devices are asked for is in ``done``, as (device, action), and
    what the server is asked for and told as well, as (SERVER, action) and (device, data_id, value).
    """

    def __init__(self, tmp_path, size=1, *, durable=False, **options):
        self.durable = durable
        self.clocks = {}
        self.done = []
        if not durable:
            options["server_options"] = {"store": None} | options.get("server_options", {})
        super().__init__(tmp_path, size, **options)
        self.hand = Broker(self, self.network)
        self.listen(self.server)

    def listen(self, server):
        server.on_action(1)(lambda _: self.done.append((SERVER, 1)))
        server.on_data("t")(lambda device, data_id, value: self.done.append((device, data_id, value)))

    def add(self, identity, **options):
        if not self.durable:
            options.setdefault("store", None)
        clock = options.setdefault("clock", Clock(ahead_of=self.clock))
        device = super().add(identity, **options)
        self.clocks[device] = clock
        device.on_action(1)(lambda _: self.done.append((identity, 1)))
        device.on_action(2)(lambda _: None)
        return device

    def deadline(self, agent):
        due = agent.deadline()
        return due if due is None or agent not in self.clocks else due - self.clocks[agent].skew

    def restart_server(self, **options):
        """A new process of the server, which has what the store has."""
        self.server.stop()
        server = self.crash_server(**options)
        self.listen(server)
        server.start(threads=False)
        self.settle()
        return server

    def works(self):
        """Both directions of the link to the first device, and no faults."""
        device = self.device
        asked = [self.server.action(device.identity, 2), device.action(SERVER, 9)]
        self.settle()
        answers = [future.result(0).name if future.done() else "no answer" for future in asked]
        assert answers == ["ACTION_SUCCESS", "ACTION_UNKNOWN"]
        assert self.faults() == 0
