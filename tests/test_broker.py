"""The local broker: it runs when start returns, keeps its port, and leaves nothing behind."""

import asyncio
import logging
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from srup.errors import TransportError
from srup.transport import LocalBroker, MqttTransport
from srup.transport import broker as broker_module

from .fleet import wait_until
from .programs import need


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.process), "amqtt"])
def kind(request):
    if request.param == "mosquitto":
        need("mosquitto")
    return request.param


def port_of(broker):
    return int(broker.url.rpartition(":")[2])


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_accepts_connections_as_soon_as_it_has_started(kind):
    with LocalBroker(kind) as broker:
        assert broker.kind == kind
        assert broker.url.startswith("mqtt://127.0.0.1:")
        assert broker_module._answers(port_of(broker))
        assert broker.start() is broker  # which does nothing
    assert not is_open(port_of(broker))


def test_it_says_what_runs_and_why(kind):
    description = LocalBroker(kind).description
    assert description.startswith(f"{kind} version ")
    assert "asked for" in description
    assert "\n" not in description


def test_stop_restart_and_kill_work_in_any_order_and_keep_the_port(kind):
    broker = LocalBroker(kind)
    broker.stop()
    broker.kill()
    broker.start()
    port = port_of(broker)
    for end in (broker.kill, broker.stop, broker.stop, broker.kill):
        end()
        assert not is_open(port)
    broker.restart()
    broker.restart()
    assert port_of(broker) == port
    assert broker_module._answers(port)
    broker.stop()


def test_two_can_run_side_by_side(kind):
    with LocalBroker(kind) as one, LocalBroker(kind) as other:
        assert one.url != other.url
        assert broker_module._answers(port_of(one))
        assert broker_module._answers(port_of(other))


@pytest.mark.process
def test_it_works_where_an_event_loop_runs_already(kind):
    async def program():
        with LocalBroker(kind) as broker:
            return await asyncio.to_thread(broker_module._answers, port_of(broker))

    assert asyncio.run(program())


@pytest.mark.process
def test_the_port_that_was_asked_for(kind):
    port = broker_module.free_port()
    with LocalBroker(kind, port) as broker:
        assert broker.url == f"mqtt://127.0.0.1:{port}"
        assert broker.running
        with pytest.raises(TransportError, match=f"port {port} cannot be used: .*another broker"):
            LocalBroker(kind, port).start()
        broker.restart()
        assert port_of(broker) == port
    assert not broker.running


@pytest.mark.process
def test_a_port_that_is_snatched_away_is_tried_again_elsewhere(kind, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as thief:
        taken, find = thief.getsockname()[1], broker_module.free_port
        ports = iter([taken, taken, find()])
        monkeypatch.setattr(broker_module, "free_port", lambda: next(ports))
        with LocalBroker(kind) as broker:
            assert port_of(broker) != taken
            assert broker_module._answers(port_of(broker))


def test_a_broker_that_cannot_start_says_why(kind, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as thief:
        monkeypatch.setattr(broker_module, "free_port", lambda: thief.getsockname()[1])
        with pytest.raises(TransportError, match="did not start on port"):
            LocalBroker(kind).start()


def test_without_mosquitto_amqtt_runs(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    broker = LocalBroker()
    assert broker.kind == "amqtt"
    assert "mosquitto is not installed" in broker.description
    with pytest.raises(TransportError, match="apt install mosquitto"):
        LocalBroker("mosquitto")


def test_without_any_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise broker_module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(broker_module.importlib.metadata, "version", missing)
    with pytest.raises(TransportError, match=r"srup\[demo\]"):
        LocalBroker()


def test_an_unknown_kind_is_refused():
    with pytest.raises(TransportError, match="use mosquitto or amqtt"):
        LocalBroker("rabbit")


def test_there_is_no_url_before_the_start():
    with pytest.raises(TransportError, match="not been started"):
        _ = LocalBroker("amqtt").url


def test_mosquitto_leaves_no_process_and_no_file(kind):
    if kind != "mosquitto":
        pytest.skip("amqtt has neither")
    broker = LocalBroker(kind).start()
    engine = broker._engine
    process, directory = engine._process, Path(engine._directory.name)
    assert directory.exists()
    broker.stop()
    assert process.returncode is not None
    assert not directory.exists()


def test_mosquitto_keeps_sessions_over_a_restart(kind):
    if kind != "mosquitto":
        pytest.skip("amqtt forgets")
    with LocalBroker(kind) as broker:
        receiver = MqttTransport(broker.url, "receiver")
        receiver.subscribe("SRUP/1")
        up, inbox = threading.Event(), queue.Queue()
        receiver.start(lambda delivery: None, lambda connected, why: up.set() if connected else None)
        assert up.wait(20)
        receiver.stop()
        sender = MqttTransport(broker.url, "sender")
        sender.publish("SRUP/1", b"kept")
        sender.start(lambda delivery: None, lambda *_: None)
        sender.stop()
        broker.restart()
        receiver = MqttTransport(broker.url, "receiver")
        receiver.start(inbox.put, lambda *_: None)
        assert inbox.get(timeout=20).payload == b"kept"
        receiver.stop()


def test_amqtt_does_not_fill_the_log(caplog):
    caplog.set_level(logging.INFO)
    with LocalBroker("amqtt") as broker:
        assert broker_module._answers(port_of(broker))
    assert not [
        record for record in caplog.records if record.name.startswith("amqtt") and record.levelno < logging.WARNING
    ]


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_mosquitto_ends_with_whoever_has_started_it(kind, number):
    if kind != "mosquitto":
        pytest.skip("amqtt lives in its process")
    code = "from srup.transport import LocalBroker as B; b = B('mosquitto').start(); print(b.url, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as us:
        port = int(us.stdout.readline().rpartition(":")[2])
        assert broker_module._answers(port)
        us.send_signal(number)
        us.wait()
        wait_until(lambda: not broker_module._answers(port), "the broker has ended")
