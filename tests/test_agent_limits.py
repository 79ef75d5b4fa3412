"""What an agent does when the broker refuses something: a message that is too large, a subscription."""

import socket
from functools import partial

import pytest

from srup import KeyRing, MessageTooLargeError, Server, UnansweredError
from srup.monitor import readiness
from srup.transport import MemoryTransport
from srup.update import UpdateState

from .fleet import DIGEST, SERVER, URL, Fleet, key_of, wait_until
from .test_agent_durable import DurableFleet

LIMIT = 1000


class Narrow(MemoryTransport):
    """A link to a broker that takes no large message, which it says at once or when it gets one."""

    def __init__(self, network, client_id, late):
        super().__init__(network, client_id)
        self.late = late
        self.tries = 0

    def publish(self, topic, payload, on_settled=None, on_refused=None):
        if len(payload) <= LIMIT:
            super().publish(topic, payload, on_settled, on_refused)
            return
        self.tries += 1
        error = MessageTooLargeError(f"at most {LIMIT} bytes")
        if not self.late:
            raise error
        on_refused(error)


@pytest.fixture(params=[False, True], ids=["at once", "later"])
def late(request):
    return request.param


@pytest.fixture(params=[Fleet, DurableFleet], ids=["memory", "store"])
def fleet(request, tmp_path, late):
    with request.param(tmp_path, server_transport=partial(Narrow, late=late)) as fleet:
        fleet.add(0xD0, broker=Narrow(fleet.network, "device-d0", late))
        yield fleet.joined()


def test_a_value_that_is_too_large_ends_with_the_reason_and_the_next_ones_arrive(fleet):
    heard = []
    fleet.server.on_data("v")(lambda device, data_id, value: heard.append(value))
    values = [b"1", bytes(2000), b"2", b"3"]
    futures = [fleet.device.send("v", value, confirmed=True) for value in values]
    fleet.run(lambda: all(future.done() for future in futures), 60.0)
    assert isinstance(futures[1].exception(0), MessageTooLargeError)
    assert [future.exception(0) for future in (futures[0], *futures[2:])] == [None] * 3
    assert heard == [b"1", b"2", b"3"]
    assert fleet.device.debug.transport.tries == 1
    assert fleet.device.counts["unsent"] == 1
    assert fleet.faults() == 0


def test_a_value_without_a_receipt_is_told_at_once_if_it_is_known(fleet, late):
    future = fleet.device.send("v", bytes(2000), confirmed=False)
    fleet.settle()
    assert late or isinstance(future.exception(0), MessageTooLargeError)
    assert fleet.device.counts["unsent"] == 1
    assert fleet.faults() == 0


def test_an_order_that_is_too_large_fails_with_the_reason(fleet):
    order = fleet.server.update(fleet.device.identity, URL + "x" * 2000, DIGEST)
    fleet.settle()
    assert order.state is UpdateState.FAILED
    with pytest.raises(MessageTooLargeError):
        order.result(0)
    assert fleet.server.orders == []
    again = fleet.server.update(fleet.device.identity, URL, DIGEST)
    fleet.settle()
    assert again.state is UpdateState.ACTIVATED
    assert fleet.server.debug.transport.tries == 1
    assert fleet.faults() == 0


def test_a_question_whose_answer_is_too_large_ends_when_its_time_is_over(fleet):
    fleet.device.debug.session.description = "x" * 2000
    asked = fleet.server.identify(fleet.device.identity)
    fleet.run(asked.done, 3600.0)
    assert isinstance(asked.exception(0), UnansweredError)
    assert fleet.faults() == 0


def test_a_refused_subscription_is_not_ready():
    with socket.create_server(("127.0.0.1", 0)) as broker:
        broker.settimeout(20)
        url = f"mqtt://127.0.0.1:{broker.getsockname()[1]}"
        server = Server(SERVER, key_of(SERVER), devices=KeyRing(), broker=url).start()
        try:
            connection, _ = broker.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x20\x03\x00\x00\x00")
                subscribe = connection.recv(1000)
                connection.sendall(b"\x90\x04" + subscribe[2:4] + b"\x00\x87")
                wait_until(lambda: "refuses" in server.vitals().link, "the refusal is told")
                [problem] = readiness(server.vitals())
                assert problem.part == "broker"
                assert "refuses the subscription to 'SRUP/servers/5e/#': Not authorized" in problem.why
        finally:
            server.stop(0)
