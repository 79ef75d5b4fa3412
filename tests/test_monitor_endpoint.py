"""The HTTP side: addresses, answers, and clients that mean no good."""

import json
import logging
import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from srup import TransportError
from srup.monitor import Monitor, endpoint
from srup.monitor.endpoint import Address

from .fleet import WAIT, Fleet, wait_until


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=WAIT) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path) as fleet:
        yield fleet.joined()


@pytest.fixture
def monitor(fleet):
    with Monitor("0", fleet.server) as monitor:
        yield monitor


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("localhost:9464", ("localhost", 9464)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_an_address(text, address):
    assert Address.parse(text) == address
    assert Address.parse(str(Address.parse(text))) == address


def test_the_addresses_of_several_processes():
    assert Address.parse("9464").after(3) == ("127.0.0.1", 9467)
    assert Address.parse("[::1]:0").after(3) == ("::1", 0)
    with pytest.raises(ValueError, match="there are no 3 ports from 65534 on"):
        Address("x", 65534).after(2)


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "host:", ":9464", "::1:9464", "[::1]", "65536", "-1", "9464x", "a b:1", "\uff11", "http://x:1"],
)
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="is no address to listen on: HOST:PORT"):
        Monitor(text)


def test_an_address_that_cannot_be_had(monitor):
    with pytest.raises(TransportError, match=rf"^cannot listen on {monitor.address}: Address already in use$"):
        Monitor(str(monitor.address))
    with pytest.raises(TransportError, match=r"^cannot listen on host\.invalid:9464: "):
        Monitor("host.invalid:9464")


def test_the_address_is_free_again_after_the_end(fleet):
    with Monitor("0", fleet.server) as first:
        pass
    first.stop()
    with Monitor(str(first.address)) as second:
        assert second.address == first.address


def test_the_three_answers(monitor):
    assert monitor.address.host == "127.0.0.1"
    status, headers, text = get(f"{monitor.url}/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"srup_messages_received", "srup_members", "srup_commit_seconds", "process_cpu_seconds"} <= names
    for path in ("healthz", "readyz", "readyz?verbose"):
        status, headers, text = get(f"{monitor.url}/{path}")
        assert (status, headers["Content-Type"], json.loads(text)) == (
            200,
            "application/json",
            {"ok": True, "problems": []},
        )
    assert get(f"{monitor.url}/")[0] == get(f"{monitor.url}/metrics/x")[0] == 404


def test_what_is_not_ready_is_503(fleet, monitor):
    fleet.server.engine.report_link(False, "gone \x1b[2J\n")
    fleet.server.step()
    status, _, text = get(f"{monitor.url}/readyz")
    assert status == 503
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert json.loads(text)["problems"] == [{"agent": "Server 5e", "part": "broker", "why": "gone \x1b[2J\n"}]
    assert get(f"{monitor.url}/healthz")[0] == 200


def test_a_head_request_has_the_headers_of_the_answer_and_no_more(monitor):
    for path, status in (("metrics", 200), ("healthz", 200), ("readyz", 200), ("elsewhere", 404)):
        with socket.create_connection(monitor.address, WAIT) as client:
            client.sendall(f"HEAD /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head, blank, body = b"".join(iter(lambda: client.recv(4096), b"")).decode().partition("\r\n\r\n")
        assert head.startswith(f"HTTP/1.0 {status} ")
        assert "Content-Type: " in head
        assert (blank, body) == ("\r\n\r\n", "")


def hold_all(monitor):
    """Connect as often as one may, and say nothing."""
    silent = [socket.create_connection(monitor.address, WAIT) for _ in range(endpoint.MAX_CLIENTS)]
    wait_until(lambda: len(monitor._server._clients) == endpoint.MAX_CLIENTS, "they are all there")
    return silent


def test_silent_clients_give_way_to_those_who_come(monitor):
    silent = hold_all(monitor)
    for _ in range(2):
        assert get(f"{monitor.url}/healthz")[0] == 200
    assert silent[0].recv(1) == b""  # the oldest
    assert len(monitor._server._clients) <= endpoint.MAX_CLIENTS
    assert len(monitor._server._silent) <= endpoint.MAX_CLIENTS
    for client in silent:
        client.close()


def test_clients_that_are_answered_do_not_give_way(monitor):
    """As many as there may be have asked, and the answer takes a while: the next is turned away."""
    held = threading.Event()
    monitor._healthy["slow"] = lambda: None if held.wait(WAIT) else "never"
    asking = hold_all(monitor)
    for client in asking:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
    wait_until(lambda: not monitor._server._silent, "they have asked")
    with pytest.raises(OSError, match=r"."):
        get(f"{monitor.url}/readyz")
    held.set()
    for client in asking:
        assert client.recv(100).startswith(b"HTTP/1.0 200 ")
        client.close()


def test_silent_clients_are_put_out_in_time(monitor, monkeypatch):
    monkeypatch.setattr(endpoint._Handler, "timeout", None)  # a client that drips evades it
    silent = hold_all(monitor)
    monkeypatch.setattr(endpoint, "PATIENCE", 0.0)
    for client in silent:
        assert client.recv(1) == b""
        client.close()
    monkeypatch.setattr(endpoint, "PATIENCE", WAIT)
    wait_until(lambda: not monitor._server._clients, "they are gone")
    assert get(f"{monitor.url}/healthz")[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00" * 100_000,
        b"GET /" + b"x" * 70_000,
        b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200,
        b"\x16\x03\x01",
        b"",
    ],
    ids=["zeros", "long line", "many headers", "TLS", "nothing"],
)
def test_junk_is_no_request(monitor, caplog, request_):
    caplog.set_level(logging.INFO)
    with socket.create_connection(monitor.address, WAIT) as client:
        try:
            client.sendall(request_ + b"\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(100)
        except OSError:
            answer = b""
    assert b" 200 " not in answer
    assert get(f"{monitor.url}/healthz")[0] == 200
    assert caplog.records == []


def test_a_fault_here_is_logged_and_the_next_request_answered(monitor, caplog):
    monitor._ready["broken"] = lambda: 1 // 0
    with pytest.raises(OSError, match=r"."):
        get(f"{monitor.url}/readyz")
    wait_until(lambda: caplog.records, "it is logged")
    assert "ZeroDivisionError" in caplog.text
    assert get(f"{monitor.url}/healthz")[0] == 200
