"""A server that is ordered from outside, in simulated time: it crashes at every commit, on either side of it."""

import base64

import pytest

from srup import KeyRing, PolicyError, Status, StoreError, UnansweredError
from srup.store import MemoryStore
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, key_of
from .test_agent_durable import DAY, DurableFleet

pytest.importorskip("redis")

from srup.agent.ordered import OrderedServer
from srup.agent.orders import Order, OrderReport
from srup.store.mailbox import Entry

NEW = 0xE01


class Crash(BaseException):
    """The process ends here."""


class MailStore(MemoryStore):
    """A store with a mailbox, as that in Redis: a commit takes orders out of it and adds reports, or does nothing."""

    def __init__(self):
        super().__init__()
        self.mail = {}
        self.reports = {}
        self.commits = 0
        self.crash = (None, None)  # at which commit, on which side of it

    def post(self, at, order):
        number = len(self.reports)
        place, order_id = b"%013d-0" % number, number.to_bytes(16, "big")
        self.reports[order_id] = []
        self.mail[place] = Entry(place, at, order_id, order.dump())
        return self.reports[order_id]

    def commit(self, changes):
        self.commits += bool(changes)
        if self.crash == (self.commits, "before"):
            raise Crash
        super().commit(changes)
        for report in changes.reports:
            self.mail.pop(report.entry, None)
            self.reports[report.order].append(OrderReport.load(report.body))
        if self.crash == (self.commits, "after"):
            raise Crash


class OrderedFleet(DurableFleet):
    """A fleet with such a server, which reads its mailbox whenever it starts and when :meth:`read` is called."""

    def __init__(self, tmp_path):
        super().__init__(tmp_path)
        self.done = []
        self.crashes = 0
        self.ordered_server()
        self.equip(self.device)

    def store(self, identity):
        return self.stores.setdefault(identity, MailStore() if identity == SERVER else MemoryStore())

    def equip(self, device):
        """Let a device do what it is told, and note it."""
        device.on_action(7)(lambda server: self.done.append("action"))
        device.on_data("n", "uint8")(lambda server, name, value: self.done.append(value))
        device.on_activate(lambda path: self.done.append("activated"))

    def ordered_server(self):
        self.server = OrderedServer(
            SERVER,
            key_of(SERVER, self.scheme),
            devices=KeyRing({self.device.identity: key_of(self.device.identity, self.scheme).public_key}),
            broker=MemoryTransport(self.network, "server"),
            clock=self.clock,
            entropy=self.randbytes,
            store=self.store(SERVER),
        )
        self.server.on_refused(lambda refusal: self.refusals.append((self.server, refusal)))
        self.seen = b""
        return self.server

    def crash_server(self):
        server = self.ordered_server().start(threads=False)
        self.read()
        return server

    def read(self):
        for place, entry in self.store(SERVER).mail.items():
            if place > self.seen:
                self.seen = place
                self.server.take(entry)

    def order(self, kind, **details):
        reports = self.store(SERVER).post(self.clock.now, Order(self.device.identity, kind, details))
        self.read()
        return reports

    def settle(self):
        while True:
            try:
                return super().settle()
            except Crash:
                self.crashes += 1
                self.crash_server()


@pytest.fixture
def fleet(tmp_path):
    return OrderedFleet(tmp_path)


DATA = base64.b64encode(b"\x05").decode()
KEY = key_of(NEW).public_key.to_pem().decode()
ORDERS = {  # what is ordered; what the device does for it; what the order comes to
    "action": ({"action_id": 7}, ["action"], Status.ACTION_SUCCESS),
    "identify": ({}, [], "device 1000"),
    "update": ({"url": URL, "digest": DIGEST}, ["activated"], UpdateState.ACTIVATED),
    "send_data": ({"data_id": "n", "data": DATA}, [5], None),
    "command_join": ({"server": 0x99}, [], Status.JOIN_REFUSED),
    "terminate": ({}, [], None),
    "deregister": ({}, [], None),
    "remove": ({}, [], None),
    "revoke": ({}, [], None),
}


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("moment", range(1, 6))
@pytest.mark.parametrize("kind", ORDERS)
def test_an_order_is_carried_out_once_whenever_the_server_crashes(fleet, kind, moment, side):
    details, done, result = ORDERS[kind]
    fleet.joined()
    store = fleet.store(SERVER)
    store.crash = (store.commits + moment, side)
    reports = fleet.order(kind, **details)
    fleet.run(lambda: reports and reports[-1].over and (not done or fleet.done), DAY)
    expected = f"device {fleet.device.identity:x}" if kind == "identify" else result
    assert reports[-1].result() == expected
    assert fleet.crashes == 1 or moment > 1
    assert store.mail == {}
    assert fleet.done == done
    assert sum(report.over for report in reports) == 1 or kind in ("remove", "revoke")
    store.crash = (None, None)
    server = fleet.crash_server()
    fleet.settle()
    member = fleet.device.identity in server.members
    assert member is (kind not in ("terminate", "deregister", "remove", "revoke"))
    assert (fleet.device.identity in server.devices) is (kind not in ("deregister", "remove", "revoke"))
    assert [fact for facts in server._facts.values() for fact in facts if fact.startswith("order")] == []
    assert fleet.server.counts["faults"] == 0
    assert reports[-1].result() == expected


def test_the_states_of_an_update_are_told_once_each_over_a_crash(fleet):
    fleet.joined()
    reports = fleet.order("update", url=URL, digest=DIGEST, hold=True)
    fleet.run(lambda: reports[-1].state == "READY", DAY)
    fleet.crash_server()
    fleet.settle()
    assert fleet.order("activate", update=reports[0].token)[-1:] == []
    fleet.run(lambda: reports[-1].over, DAY)
    assert [report.state for report in reports] == ["FETCHING", "READY", "ACTIVATING", "ACTIVATED"]
    assert fleet.done == ["activated"]


def test_an_order_that_nobody_answers_ends_with_its_lifetime(fleet):
    fleet.joined()
    fleet.network.cut(f"device-{fleet.device.identity:x}")
    reports = fleet.order("action", action_id=7, lifetime=3600.0)
    fleet.settle()
    fleet.crash_server()
    fleet.run(lambda: reports[-1].over, 3700.0)
    with pytest.raises(UnansweredError):
        reports[-1].result()


def test_an_order_whose_time_was_over_before_it_was_taken_is_not_sent(fleet):
    fleet.joined()
    late = fleet.store(SERVER).post(fleet.clock.now - 3600.0, Order(fleet.device.identity, "action", {"action_id": 7}))
    ever = fleet.store(SERVER).post(fleet.clock.now - 3600.0, Order(fleet.device.identity, "terminate", {}))
    fleet.read()
    fleet.settle()
    with pytest.raises(UnansweredError, match="it waited 3600 seconds"):
        late[-1].result()
    assert ever[-1].result() is None
    assert fleet.done == []


def test_a_value_whose_stream_begins_anew_is_still_the_order_s(fleet):
    """The device has forgotten how far the stream came, so that the value gets another token."""
    fleet.joined()
    first = fleet.order("send_data", data_id="n", data=DATA)
    fleet.run(lambda: first[-1].over, DAY)
    identity = fleet.device.identity
    fleet.network.cut(f"device-{identity:x}")
    reports = fleet.order("send_data", data_id="n", data=DATA)
    fleet.settle()
    before = {token for _, token in fleet.server._pending}
    fleet.stores.pop(identity)
    fleet.equip(fleet.crash_device())
    fleet.network.heal(f"device-{identity:x}")
    fleet.device.start(threads=False)
    fleet.run(lambda: not reports[-1].over and {token for _, token in fleet.server._pending} - before, DAY)
    fleet.crash_server()
    fleet.run(lambda: reports[-1].over, DAY)
    assert reports[-1].result() is None
    assert fleet.done == [5, 5]


@pytest.mark.parametrize("kind", ["revoke", "remove", "deregister"])
def test_a_store_that_refuses_delays_an_order_and_what_comes_behind_it(fleet, kind):
    fleet.joined()
    save, refused = fleet.server._store.commit, []

    def refuse(changes):
        if changes.keys and not refused:
            refused.append(changes)
            raise StoreError("the disk is full")
        save(changes)

    fleet.server._store.commit = refuse
    dropped = fleet.order(kind)
    registered = fleet.order("register", key=KEY)
    fleet.server.step()
    assert (dropped, registered, len(refused)) == ([], [], 1)
    fleet.run(lambda: registered, 10.0)
    assert dropped[-1].result() is None
    assert registered[-1].result() is None
    assert fleet.server.devices[fleet.device.identity] == key_of(NEW).public_key


def test_what_was_under_way_ends_when_the_device_is_put_out(fleet):
    fleet.joined()
    fleet.network.cut(f"device-{fleet.device.identity:x}")
    action, update = fleet.order("action", action_id=7), fleet.order("update", url=URL, digest=DIGEST)
    fleet.settle()
    fleet.order("revoke")
    fleet.settle()
    for reports in (action, update):
        with pytest.raises(PolicyError, match="was revoked"):
            reports[-1].result()
