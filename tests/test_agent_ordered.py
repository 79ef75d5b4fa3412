"""A server that is ordered from outside, in simulated time: it crashes at every commit, on either side of it."""

import pytest

from srup import Fleet, KeyRing, PolicyError, Server, Status, StoreError, UnansweredError
from srup.agent.ordered import MailOrders
from srup.agent.reports import OrderReport
from srup.agent.updateorder import Updates
from srup.agent.verbs import VERBS
from srup.store import MemoryStore
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, key_of
from .test_agent_durable import DAY, DurableFleet

NEW = 0xE01


POSTED = OrderReport(0.0, "action", "POSTED").dump()


class Crash(BaseException):
    """The process ends here."""


class MailStore(MemoryStore):
    """A store whose process can end at a commit, and which tells what is reported."""

    def __init__(self):
        super().__init__()
        self.reports = {}
        self.commits = 0
        self.crash = (None, None)  # at which commit, on which side of it

    def post(self, at, order):
        order_id = len(self.reports).to_bytes(16, "big")
        self.reports[order_id] = []
        mailbox = self.mailbox(SERVER, lambda: at)
        mailbox.post(order.device, order_id, order.dump(), POSTED, capacity=100_000, urgent=order.urgent)
        return self.reports[order_id]

    def commit(self, changes):
        self.commits += bool(changes)
        if self.crash == (self.commits, "before"):
            raise Crash
        super().commit(changes)
        for report in changes.reports:
            self.reports[report.order].append(OrderReport.load(report.body))
        if self.crash == (self.commits, "after"):
            raise Crash


class OrderedFleet(DurableFleet):
    """A fleet with such a server."""

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
        self.server = Server(
            SERVER,
            key_of(SERVER, self.scheme),
            devices=KeyRing({self.device.identity: key_of(self.device.identity, self.scheme).public_key}),
            broker=MemoryTransport(self.network, "server"),
            clock=self.clock,
            entropy=self.randbytes,
            store=self.store(SERVER),
        )
        self.server.on_refused(lambda refusal: self.refusals.append((self.server, refusal)))
        return self.server

    def crash_server(self):
        return self.ordered_server().start(threads=False)

    def order(self, kind, **details):
        return self.store(SERVER).post(self.clock.now, VERBS[kind](self.device.identity, **details))

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


DATA = b"\x05"
KEY = key_of(NEW).public_key
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
    assert store.mailbox(SERVER).waiting() == {}
    assert fleet.done == done
    assert sum(report.over for report in reports) == 1 or kind in ("remove", "revoke")
    store.crash = (None, None)
    server = fleet.crash_server()
    fleet.settle()
    member = fleet.device.identity in server.members
    assert member is (kind not in ("terminate", "deregister", "remove", "revoke"))
    assert (fleet.device.identity in server.devices) is (kind not in ("deregister", "remove", "revoke"))
    assert [fact for facts in server.debug.facts.values() for fact in facts if fact.startswith("order")] == []
    assert fleet.server.counts["faults"] == 0
    assert reports[-1].result() == expected


def test_tags_are_kept_and_taken_away(fleet):
    fleet.joined()
    for value in ("berlin", "paris"):
        reports = fleet.order("tag", name="site", value=value)
        fleet.settle()
        assert reports[-1].result() is None
    fleet.crash_server()
    identity = fleet.device.identity
    assert Fleet(fleet.store(SERVER), SERVER).device(identity).tags == {"site": "paris"}
    fleet.order("tag", name="site", value="")
    fleet.settle()
    assert Fleet(fleet.store(SERVER), SERVER).device(identity).tags == {}
    fleet.order("revoke")
    late = fleet.order("tag", name="site", value="rome")
    fleet.settle()
    with pytest.raises(PolicyError, match="no key is registered"):
        late[-1].result()


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


def test_an_update_is_taken_back_over_a_crash(fleet):
    fleet.joined()
    reports = fleet.order("update", url=URL, digest=DIGEST, hold=True)
    fleet.run(lambda: reports[-1].state == "READY", DAY)
    fleet.crash_server()
    fleet.settle()
    cancel = fleet.order("cancel", update=reports[0].token)
    fleet.settle()
    assert cancel[-1].result() is None
    with pytest.raises(PolicyError, match="is off: the order was taken back"):
        reports[-1].result()
    late = fleet.order("cancel", update=reports[0].token)
    fleet.settle()
    with pytest.raises(PolicyError, match="there is no update of"):
        late[-1].result()
    assert fleet.done == []
    assert fleet.server.counts["faults"] == 0


def id_of(fleet, reports):
    """The id of an order, by what is told of it."""
    return next(each.hex() for each, told in fleet.store(SERVER).reports.items() if told is reports)


@pytest.mark.parametrize("crash", ["before", "after", None])
def test_an_order_that_waits_is_taken_back_before_it_is_begun(fleet, crash):
    fleet.joined()
    fleet.server.stop()
    waits = [fleet.order("action", action_id=7) for _ in range(3)]
    cancel = fleet.order("cancel", update=id_of(fleet, waits[1]))
    store = fleet.store(SERVER)
    store.crash = (store.commits + 1, crash)
    fleet.crash_server()
    fleet.settle()
    assert fleet.crashes == (crash is not None)
    fleet.run(lambda: len(fleet.done) >= 2, DAY)
    assert cancel[-1].result() is None
    assert fleet.done == ["action"] * 2
    with pytest.raises(PolicyError, match="was taken back"):
        waits[1][-1].result()
    fleet.order("action", action_id=7)
    fleet.run(lambda: len(fleet.done) >= 3, DAY)
    assert len(fleet.done) == 3
    assert [fact for facts in fleet.server.debug.facts.values() for fact in facts if fact.startswith("void")] == []
    server = fleet.crash_server()
    assert [name for facts in server.debug.facts.values() for name in facts if "at" in name.split()] == []


def test_a_value_that_waits_for_its_device_is_taken_back(fleet):
    fleet.joined()
    fleet.order("terminate")
    fleet.settle()
    values = [fleet.order("send_data", data_id="n", data=DATA) for _ in range(2)]
    fleet.settle()
    assert [reports[-1].state for reports in values] == ["TAKEN"] * 2
    fleet.crash_server()
    cancel = fleet.order("cancel", update=id_of(fleet, values[0]))
    fleet.settle()
    assert cancel[-1].result() is None
    with pytest.raises(PolicyError, match="was taken back"):
        values[0][-1].result()
    fleet.device.join()
    fleet.run(lambda: values[1][-1].over, DAY)
    assert values[1][-1].result() is None
    assert fleet.done == [5]


def test_what_the_device_was_asked_cannot_be_taken_back(fleet):
    fleet.joined()
    fleet.network.cut(f"device-{fleet.device.identity:x}")
    asked = fleet.order("action", action_id=7)
    fleet.settle()
    cancel = fleet.order("cancel", update=id_of(fleet, asked))
    fleet.settle()
    with pytest.raises(PolicyError, match="it is too late: d0 was asked already"):
        cancel[-1].result()
    fleet.network.heal(f"device-{fleet.device.identity:x}")
    fleet.run(lambda: asked[-1].over, DAY)
    assert asked[-1].result() is Status.ACTION_SUCCESS


def test_a_newer_update_takes_the_place_of_one_for_a_device_that_is_away(fleet):
    fleet.joined()
    name = f"device-{fleet.device.identity:x}"
    fleet.network.cut(name)
    older = fleet.order("update", url=URL + "/old", digest="0" * 64)
    fleet.settle()
    newer = fleet.order("update", url=URL, digest=DIGEST)
    fleet.settle()
    with pytest.raises(PolicyError, match="a newer order has taken its place"):
        older[-1].result()
    fleet.network.heal(name)
    fleet.run(lambda: newer[-1].over, DAY)
    assert newer[-1].result() is UpdateState.ACTIVATED
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
    late = fleet.store(SERVER).post(fleet.clock.now - 3600.0, VERBS["action"](fleet.device.identity, 7))
    ever = fleet.store(SERVER).post(fleet.clock.now - 3600.0, VERBS["terminate"](fleet.device.identity))
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
    before = {token for _, token in fleet.server.debug.pending}
    fleet.stores.pop(identity)
    fleet.equip(fleet.crash_device())
    fleet.network.heal(f"device-{identity:x}")
    fleet.device.start(threads=False)
    fleet.run(lambda: not reports[-1].over and {token for _, token in fleet.server.debug.pending} - before, DAY)
    fleet.crash_server()
    fleet.run(lambda: reports[-1].over, DAY)
    assert reports[-1].result() is None
    assert fleet.done == [5, 5]


@pytest.mark.parametrize("kind", ["revoke", "remove", "deregister"])
def test_a_store_that_refuses_delays_an_order_and_what_comes_behind_it(fleet, kind):
    fleet.joined()
    save, refused = fleet.server.debug.store.commit, []

    def refuse(changes):
        if changes.keys and not refused:
            refused.append(changes)
            raise StoreError("the disk is full")
        save(changes)

    fleet.server.debug.store.commit = refuse
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


@pytest.mark.parametrize("kind", ["action", "revoke"])
def test_what_waits_in_an_old_copy_is_not_done_again_unless_it_is_a_revocation(fleet, kind):
    fleet.joined()
    fleet.server.stop()
    number = id_of(fleet, fleet.order(kind, **ORDERS[kind][0]))
    old = fleet.store(SERVER).copy()
    old.adopt()
    fleet.stores[SERVER] = old
    for _ in range(2):  # and the process after that does not do it either
        fleet.ordered_server().start(threads=False)
        fleet.settle()
        fleet.server.stop()
    order = Fleet(old, SERVER).find(f"{fleet.device.identity:x}.{number}")
    if kind == "revoke":
        assert order.result(0.0) is None
    else:
        with pytest.raises(PolicyError, match="nobody knows whether it was carried out"):
            order.result(0.0)
    assert fleet.done == []


class Unscanned(dict):
    """A table in which things are only looked up, however many there are."""

    def __iter__(self):
        raise AssertionError("it is gone through")

    items = keys = values = __iter__


def test_no_order_looks_at_all_others(fleet):
    """Else whoever orders something of a whole fleet waits for the square of its size."""
    mail, updates = fleet.server.engine.part(MailOrders), fleet.server.engine.part(Updates)
    fleet.joined()
    mail._values, updates._orders = Unscanned(mail._values), Unscanned(updates._orders)
    values = [fleet.order("send_data", data_id="n", data=DATA) for _ in range(3)]
    held = fleet.order("update", url=URL, digest=DIGEST, hold=True)
    fleet.settle()
    named = id_of(fleet, held)
    fleet.order("activate", update=named)
    fleet.settle()
    assert [reports[-1].over for reports in (*values, held)] == [True] * 4
    assert held[-1].state == "ACTIVATED"
    assert not len(mail._values)
    assert not len(updates._orders)
    updates._orders = {}  # which are looked at when it stops
