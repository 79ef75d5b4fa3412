"""``srup server --metrics``: a real process, a real broker, and an independent reader of what it shows."""

import json
import os
import signal
import socket
import time

import pytest

from srup import Data, JoinRequest, PrivateKey, encode, tokens
from srup.transport import LocalBroker

from .fleet import WAIT, key_of, wait_until
from .server_process import DEVICE, SERVER, Publisher, ServerProcess, keys_in, lamp

pytestmark = pytest.mark.process

TOPIC = f"SRUP/{DEVICE:x}"


@pytest.fixture
def broker():
    with LocalBroker() as broker:
        yield broker


def value(sequence_id, *, key=None, sender=DEVICE, recipient=SERVER):
    """A value as the device would send it, by default."""
    token = tokens.bind(sender, recipient, time.time() + 60, os.urandom(16))
    message = Data(sequence_id=sequence_id, sender_id=sender, token=token, data_id="x", data=b"1")
    return encode(message, key or key_of(sender))


def test_counters_grow_by_exactly_what_is_sent(tmp_path, broker):
    with ServerProcess(keys_in(tmp_path), broker.url, "--metrics", "0", "--log-format", "json") as server:
        with lamp(tmp_path, broker.url, "a lamp"):
            server.heard("describes itself as: a lamp")
        # The device is gone, and nobody else publishes; ids of ours are above all of its own.
        first = int(time.time() * 1e6) + 1_000_000
        before = server.samples()
        assert before[("srup_members",)] == before[("srup_agents_connected",)] == 1
        twice = value(first)
        sent = [
            *(value(first + number) for number in range(1, 41)),
            *(twice, twice, twice),
            *(value(first + 50 + number, key=PrivateKey.generate("ed25519")) for number in range(3)),
            *(value(first + 60 + number, recipient=0x99) for number in range(4)),
            *(value(1, sender=0xBAD, key=PrivateKey.generate("ed25519")) for _ in range(5)),
            *(b"junk" for _ in range(6)),
        ]
        names = ("received", "verified", "sent", "duplicate", "unexpected", "unsent")
        # Verified is what has its sender's signature: the 40, thrice the one, and the four for somebody else.
        expected = {"received": len(sent), "verified": 47, "sent": 0, "duplicate": 2, "unexpected": 0, "unsent": 0}
        refused = {"DecodeError": 6, "PolicyError": 4, "SignatureError": 3, "UnknownSenderError": 5}

        def counted(samples):
            grown = {name: samples[key] - before[key] for name in names for key in [(f"srup_messages_{name}_total",)]}
            return grown, {name[1]: n for name, n in samples.items() if name[0] == "srup_messages_refused_total"}

        with Publisher(broker.url) as publisher:
            for wire in sent:
                publisher.publish(TOPIC, wire)
            # Received is counted when a batch begins, the rest as it is handled.
            wait_until(lambda: counted(server.samples()) == (expected, refused), "all are counted")
        after = server.samples()
        assert counted(after) == (expected, refused)
        assert after[("srup_faults_total",)] == 0
        batches = after[("srup_batch_messages_sum",)]
        assert batches == after[("srup_messages_received_total",)]


def test_readiness_follows_the_broker_and_the_process_ends_when_told(tmp_path, broker):
    with ServerProcess(keys_in(tmp_path), broker.url, "--metrics", "0", "--log-format", "text") as server:
        wait_until(lambda: server.problems() == {}, "it is ready")
        assert server.get("healthz") == (200, '{"ok": true, "problems": []}\n')
        broker.kill()
        wait_until(lambda: server.problems().keys() == {"broker"}, "it notices")
        assert server.get("healthz")[0] == 200
        assert server.samples()[("srup_agents_connected",)] == 0
        broker.restart()
        wait_until(lambda: server.problems() == {}, "it is ready again")
        # Nobody who holds on to the endpoint keeps the process.
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), WAIT):
            assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere", "'nowhere' is no address to listen on: HOST:PORT, [IPV6]:PORT, or PORT on 127.0.0.1"),
        ("70000", "'70000' is no address to listen on"),
        ("host.invalid:1", "cannot listen on host.invalid:1: "),
    ],
)
def test_an_address_that_is_none(tmp_path, address, said):
    with ServerProcess(keys_in(tmp_path), "mqtt://127.0.0.1:1", "--metrics", address) as server:
        assert server.wait() == 2
        assert said in server.heard("error: ")


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with ServerProcess(keys_in(tmp_path), "mqtt://127.0.0.1:1", "--metrics", address) as server:
            assert server.wait() == 2
            assert f"cannot listen on {address}: Address already in use" in server.heard("error: ")


def test_a_join_request_of_a_stranger_is_counted(tmp_path, broker):
    with ServerProcess(keys_in(tmp_path), broker.url, "--metrics", "0", "--log-format", "text") as server:
        wait_until(lambda: server.problems() == {}, "it is ready")
        stranger = JoinRequest(sequence_id=1, sender_id=0xBAD, token=b"t")
        with Publisher(broker.url) as publisher:
            publisher.publish(f"SRUP/servers/{SERVER:x}/bad", encode(stranger, PrivateKey.generate("ed25519")))
            name = ("srup_messages_refused_total", "UnknownSenderError")
            wait_until(lambda: server.samples()[name] == 1, "it is counted")


def test_each_worker_shows_its_share(tmp_path, broker):
    from srup.store import RedisStore

    from .redis_server import redis_server

    def urls():
        found = [line[line.index("http://") :].split("/metrics")[0] for line in server.lines if "metrics at " in line]
        return sorted(set(found))

    def total(name):
        return sum(server.samples(url)[(name,)] for url in urls())

    def all_ready():
        return len(urls()) == 2 and all(server.problems(url) == {} for url in urls())

    with redis_server(tmp_path) as redis:
        RedisStore.create(redis.url, SERVER, 4)
        options = ("--store", redis.url, "--workers", "2", "--metrics", "0", "--log-format", "json")
        with ServerProcess(keys_in(tmp_path), broker.url, *options) as server:
            wait_until(all_ready, "both workers serve their share")
            wait_until(lambda: [server.samples(url)[("srup_leases_held",)] for url in urls()] == [2, 2], "it is fair")
            assert total("srup_agents") == total("srup_agents_connected") == total("srup_agents_storing") == 4
            left = [value for url in urls() for name, value in server.samples(url).items() if "remaining" in name[0]]
            assert len(left) == 4
            assert all(0 < seconds <= 15.0 for seconds in left)
            with lamp(tmp_path, broker.url):
                wait_until(lambda: total("srup_members") == 1, "it is a member of one of them")
            verified = total("srup_messages_verified_total")
            assert verified >= 1
            assert total("srup_commit_seconds_count") >= 1
            redis.kill()
            wait_until(lambda: all("leases" in server.problems(url) for url in urls()), "they cannot ask for leases")
            assert all(server.get("healthz", url)[0] == 200 for url in urls())
            # What partitions that are served no more have counted stays.
            wait_until(lambda: total("srup_agents") == 0, "the leases are over")
            assert total("srup_messages_verified_total") >= verified
            assert server.end(signal.SIGTERM) == 0
        for line in server.lines:
            assert {"time", "level", "event"} <= json.loads(line).keys()


def test_workers_need_as_many_ports(tmp_path):
    options = ("--store", "redis://127.0.0.1:1/0", "--workers", "3", "--metrics", "65534")
    with ServerProcess(keys_in(tmp_path), "mqtt://127.0.0.1:1", *options) as server:
        assert server.wait() == 2
        server.heard("there are no 3 ports from 65534 on")
