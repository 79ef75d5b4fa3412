"""One member floods the server while its handlers are slow: what the others notice of it (T9)."""

import itertools
import threading
from concurrent.futures import Executor, Future

import pytest

from srup import Action, PolicyError, Status, encode
from srup.agent.audit import AuditQuota
from srup.agent.fairline import WIDTH, FairLine
from srup.agent.transaction import Call
from srup.store import MemoryStore
from srup.tokens import bind
from srup.transport import Delivery

from .fleet import SERVER, Fleet, key_of

pytestmark = pytest.mark.backend

FLOODER, OTHER = 0xD0, 0xD1
FLOOD = 6000


class Slow(Executor):
    """An application's thread that has not come to anything yet."""

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append((job, Future()))
        return self.jobs[-1][1]

    def catch_up(self):
        while self.jobs:
            job, future = self.jobs.pop(0)
            future.set_result(job())


@pytest.fixture
def flooded(tmp_path):
    """A fleet whose server one member has flooded with values; ``heard`` is what its handler was called with."""
    with Fleet(tmp_path, size=2) as fleet:
        fleet.heard = []
        fleet.server.on_data("n", "uint32")(lambda device, name, value: fleet.heard.append((device, value)))
        fleet.joined()
        fleet.server.engine.handlers.application = fleet.slow = Slow()
        for value in range(FLOOD // 2):
            fleet.devices[FLOODER].send("n", value, "uint32")
        fleet.settle()
        yield fleet
        fleet.slow.catch_up()


def test_t9_the_flood_is_refused_beyond_its_share_and_holds_up_no_acknowledgement(flooded):
    assert flooded.server.counts["PolicyError"] > 0
    assert flooded.server.debug.handlers <= 2000
    assert flooded.network._sessions["server"].unsettled == {}
    flooded.slow.catch_up()
    values = [value for device, value in flooded.heard if device == FLOODER]
    assert values == list(range(len(values)))  # in order, to where it was refused


def test_t9_the_value_of_another_member_waits_for_a_few_handlers_only(flooded):
    flooded.devices[OTHER].send("n", 1, "uint32")
    flooded.settle()
    flooded.slow.catch_up()
    assert flooded.heard.index((OTHER, 1)) <= 8


def test_t9_answers_never_wait_for_handlers(flooded):
    flooded.devices[FLOODER].on_action(1)(lambda server: None)
    asked = [flooded.server.action(device, 1) for device in (OTHER, FLOODER)]
    flooded.settle()
    assert [future.result(0) for future in asked] == [Status.ACTION_UNKNOWN, Status.ACTION_SUCCESS]
    assert flooded.heard == []


@pytest.mark.slow
def test_t9_a_flood_from_many_leaves_room_for_one_more(tmp_path):
    with Fleet(tmp_path, size=12) as fleet:
        heard = []
        fleet.server.on_data("n", "uint32")(lambda device, name, value: heard.append(device))
        fleet.joined()
        fleet.server.engine.handlers.application = slow = Slow()
        for identity, device in fleet.devices.items():
            if identity != OTHER:
                for value in range(600):
                    device.send("n", value, "uint32")
        fleet.settle()
        fleet.devices[OTHER].send("n", 1, "uint32")
        fleet.settle()
        assert fleet.network._sessions["server"].unsettled == {}
        slow.catch_up()
        assert heard.index(OTHER) <= 8 * len(fleet.devices)


@pytest.mark.slow
def test_a_partner_that_is_the_only_one_is_not_refused(tmp_path):
    """It keeps nobody waiting; the broker holds what it sends."""
    with Fleet(tmp_path, size=1) as fleet:
        heard = []
        fleet.server.on_data("n", "uint32")(lambda device, name, value: heard.append(value))
        fleet.joined()
        fleet.server.engine.handlers.application = slow = Slow()
        for value in range(FLOOD):
            fleet.device.send("n", value, "uint32")
        fleet.settle()
        assert fleet.network._sessions["server"].unsettled != {}
        slow.catch_up()
        fleet.settle()
        slow.catch_up()
        assert heard == list(range(FLOOD))
        assert fleet.network._sessions["server"].unsettled == {}


def test_calls_of_one_partner_keep_their_order_in_a_fair_line():
    line, order = FairLine(), []
    line.put(Call(lambda each=number: order.append((1, each)), peer=1) for number in range(50))
    line.put(Call(lambda each=number: order.append((2, each)), peer=2) for number in range(3))
    line.put([Call(lambda: order.append((None, 0)))])
    while (call := line.take()) is not None:
        call.job(*call.arguments)
    assert [number for peer, number in order if peer == 1] == list(range(50))
    assert [number for peer, number in order if peer == 2] == [0, 1, 2]
    assert order.index((2, 0)) == WIDTH
    assert order.index((None, 0)) == WIDTH + 3


def test_t9_values_that_wait_for_one_device_refuse_none_for_another(tmp_path):
    with Fleet(tmp_path, size=2) as fleet:
        fleet.devices[OTHER].on_data("n", "uint32")(lambda server, name, value: None)
        fleet.joined()
        fleet.network.cut(f"device-{FLOODER:x}")
        futures = [fleet.server.send_data(FLOODER, "n", 1, "uint32", confirmed=True) for _ in range(12_000)]
        fleet.server.step()
        refused = [future for future in futures if future.done()]
        assert refused
        assert all(isinstance(future.exception(0), PolicyError) for future in refused)
        assert fleet.server.debug.values >= 9_000  # for one that is away there is room enough
        sent = fleet.server.send_data(OTHER, "n", 1, "uint32", confirmed=True)
        fleet.run(sent.done, 30.0)
        assert sent.result(0) is None


def test_messages_are_acknowledged_in_order_from_whichever_thread(tmp_path):
    with Fleet(tmp_path) as fleet:
        engine, order, started = fleet.joined().server.engine, [], []

        def first():
            started.append(True)
            other = threading.Thread(target=engine.handlers.progress)  # as when a handler ends meanwhile
            other.start()
            other.join(0.2)  # it may be over, and must not have acknowledged the second one
            order.append(1)

        for ack in (first, lambda: order.append(2)):
            engine.inbox.put(Delivery("SRUP/d0", b"junk", ack))
        # Both are due at once, as when the handlers have caught up.
        engine.handlers.backlog.is_long = lambda: not order and engine.inbound.unacknowledged() == 1 and not started
        fleet.server.step()
        assert order == [1, 2]


# The audit of a server with a store.


def outsider(fleet, identity):
    """Put a device out, and return what signs an action of it that the server hears on its join topic all the same."""
    fleet.server.terminate(identity)
    fleet.settle()
    numbers = itertools.count(2**60)  # above all that it has sent

    def send(token):
        action = Action(sequence_id=next(numbers), sender_id=identity, token=token, action_id=1)
        fleet.network.inject(f"SRUP/servers/{SERVER:x}/{identity:x}", encode(action, key_of(identity)))

    return send


def fresh_token(fleet, identity):
    return bind(identity, SERVER, fleet.clock() + 60, fleet.randbytes(16))


def test_t9_a_token_has_a_limit(tmp_path):
    with Fleet(tmp_path, size=2, server_options={"store": MemoryStore()}) as fleet:
        send = outsider(fleet.joined(), FLOODER)
        rows = len(list(fleet.server.debug.store.audit()))
        send(fresh_token(fleet, FLOODER) + b":" + b"x" * 60_000)
        fleet.settle()
        assert fleet.errors(fleet.server) == ["PolicyError"]
        assert len(list(fleet.server.debug.store.audit())) == rows
        assert len(fresh_token(fleet, FLOODER)) < 128  # the control


def test_t9_the_audit_gives_way_before_service_does(tmp_path):
    store = MemoryStore()
    with Fleet(tmp_path, size=2, server_options={"store": store}) as fleet:
        send = outsider(fleet.joined(), FLOODER)
        for _ in range(3000):
            send(fresh_token(fleet, FLOODER))
        fleet.settle()
        assert len(list(store.audit(partner=FLOODER))) <= 1000
        assert fleet.server.counts["not audited"] >= 1990
        before = len(list(store.audit(partner=OTHER)))
        asked = fleet.devices[OTHER].action(SERVER, 7)
        fleet.settle()
        assert asked.result(0) is Status.ACTION_UNKNOWN
        assert len(list(store.audit(partner=OTHER))) == before + 2  # the others' rows are written
        fleet.clock.now += 10.0
        send(fresh_token(fleet, FLOODER))
        fleet.settle()
        assert [row.at for row in store.audit(partner=FLOODER)][-1] == fleet.clock()  # and its own, in time


def test_a_clock_that_was_set_back_does_not_silence_the_audit():
    quota = AuditQuota()
    assert quota.admits(1, 1e9)
    assert quota.admits(1, 1e6)
    assert sum(quota.admits(1, 1e6) for _ in range(3000)) <= 1000
    assert quota.admits(1, 1e6 + 2)


def test_the_audit_remembers_few_partners_and_looks_through_them_seldom():
    """In a fleet of any size a row costs the same: partners are forgotten many at a time."""
    quota = AuditQuota()
    looked = 0
    for number in range(20_000):
        now = 1e9 + number / 5000  # of each second's 5,000 partners none was heard before
        before = quota.remembered
        assert quota.admits(number, now)
        looked += before + 1 if quota.remembered <= before else 0
        assert quota.remembered <= 2 * 5001
    assert looked <= 2 * 20_000
