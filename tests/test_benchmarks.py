"""What the benchmarks stand on: a failure is told as what it is, and whoever needs the same keys has the same."""

import socket
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import durable, material, receive  # noqa: E402

sys.path.remove(str(ROOT))


@pytest.mark.parametrize("way", ["backlog", "live"])
@pytest.mark.parametrize("module", [durable, receive])
def test_a_publisher_that_fails_is_why_nothing_arrives(module, way, monkeypatch):
    def apart(function, *_):
        raise RuntimeError("no publisher") if function is module.publish else TimeoutError("1 of 1 did not arrive")

    monkeypatch.setattr(module, "broker_with_session", lambda *_: nullcontext("mqtt://127.0.0.1"))
    monkeypatch.setattr(module, "apart", apart)
    with pytest.raises(RuntimeError, match="no publisher"):
        module.measure(way, "plain", 1, 1)


@pytest.mark.timeout(20)  # instead of for ever
def test_a_publisher_hears_that_the_broker_has_hung_up():
    def accept_and_hang_up(listener):
        line, _ = listener.accept()
        with line:
            assert line.recv(23, socket.MSG_WAITALL)[0] == 0x10
            line.sendall(b"\x20\x02\x00\x00")
            assert line.recv(1)[0] == 0x32
            line.sendall(b"\x40\x02\x00\x01")
            line.shutdown(socket.SHUT_WR)
            while line.recv(4096):
                pass

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        broker = threading.Thread(target=accept_and_hang_up, args=(listener,))
        broker.start()
        with pytest.raises(RuntimeError, match="after 1 of 2 messages"):
            receive.send(f"mqtt://127.0.0.1:{listener.getsockname()[1]}", [("SRUP/1", b"x" * 200)] * 2)
        broker.join()


def test_a_session_that_does_not_stand_is_not_published_to(monkeypatch):
    monkeypatch.setattr(receive, "TIMEOUT", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimeoutError, match="do not stand"):
        receive.make_session(f"mqtt://127.0.0.1:{listener.getsockname()[1]}", ["SRUP/1/#"])


def test_all_who_need_keys_at_the_same_time_have_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(material, "ProcessPoolExecutor", lambda: ThreadPoolExecutor(1))
    with ThreadPoolExecutor(4) as pool:
        rings = list(pool.map(material.rsa_keys.__wrapped__, [2, 1, 2, 1]))
    assert len({ring[0].public_key().public_numbers() for ring in rings}) == 1
    assert [len(ring) for ring in rings] == [2, 1, 2, 1]
