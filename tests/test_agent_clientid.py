"""Client ids: nobody can guess them, and sessions outlive restarts, moves between workers and changes of keys."""

import re
import socket
from contextlib import contextmanager

import pytest

from srup import Device, KeyRing, PrivateKey, Server
from srup.agent.clientid import client_id
from srup.cli.options import transport_of
from srup.store import MemoryStore
from srup.transport import MqttTransport

from .fleet import SERVER, key_of

NOWHERE = "mqtt://127.0.0.1:1"


class TestTheId:
    def test_it_is_what_every_broker_takes_and_as_secret_as_the_key(self, key):
        ours = client_id(key, SERVER)
        assert re.fullmatch("[0-9a-z]{23}", ours)
        assert ours == client_id(PrivateKey.from_pem(key.to_pem("secret"), "secret"), SERVER)
        others = {client_id(key, 0xD1), client_id(PrivateKey.generate("ed25519"), SERVER)}
        others |= {client_id(key, SERVER, partition) for partition in range(64)}
        assert len(others - {ours}) == 66


def server(broker=NOWHERE, key=None, **options):
    return Server(SERVER, key or key_of(SERVER), devices=KeyRing(), broker=broker, **options)


def device(tmp_path, broker=NOWHERE, **options):
    known = {"server": SERVER, "server_key": key_of(SERVER).public_key, "firmware": tmp_path / "firmware"}
    return Device(0xD1, key_of(0xD1), broker=broker, **known, **options)


@contextmanager
def started(agent):
    """An agent that is started, has made durable what it does then, and is stopped."""
    agent.start(threads=False)
    try:
        agent.step()
        yield agent.debug.transport.client_id
    finally:
        agent.stop(0)


class TestWhoNamesTheSession:
    @pytest.mark.parametrize("broker", [NOWHERE, MqttTransport], ids=["a url", "a transport without an id"])
    def test_an_agent_does_by_its_key(self, tmp_path, broker):
        def link():
            return broker if broker is NOWHERE else broker(NOWHERE)

        with started(server(link())) as ours:
            assert ours == client_id(key_of(SERVER), SERVER)
        with started(server(link())) as again:
            assert again == ours
        with started(device(tmp_path, link())) as other:
            assert other == client_id(key_of(0xD1), 0xD1)

    def test_the_command_leaves_it_to_the_agent(self):
        assert transport_of(NOWHERE, None, None, None, None).client_id is None

    def test_whoever_gives_an_id_keeps_it(self):
        with started(server(MqttTransport(NOWHERE, "mine"), store=MemoryStore())) as ours:
            assert ours == "mine"

    def test_with_a_store_the_session_outlives_a_change_of_the_key(self):
        store, new = MemoryStore(), PrivateKey.generate("ed25519")
        with started(server(store=store)) as before:
            assert re.fullmatch("[0-9a-z]{23}", before)
        changed = server(key=new, store=store)
        with started(changed) as after:
            assert after == before
            assert changed.facts(SERVER) == {}  # it is nobody's business
        with started(server(key=new)) as without:
            assert without == client_id(new, SERVER)

    def test_t18_with_a_store_no_key_tells_the_id(self):
        """A key that was changed because somebody else has it must not name the session that goes on."""
        with started(server(store=MemoryStore())) as ours:
            assert ours != client_id(key_of(SERVER), SERVER)
        with started(server(store=MemoryStore())) as another:
            assert another != ours

    def test_t18_a_guess_from_the_identity_is_wrong(self, tmp_path):
        """What any certified device would connect with, to take the server's session and drop what waits in it."""
        with socket.create_server(("127.0.0.1", 0)) as broker:
            broker.settimeout(20)
            running = server(f"mqtt://127.0.0.1:{broker.getsockname()[1]}").start()
            try:
                connection, _ = broker.accept()
                with connection:
                    connect = connection.recv(1000)
            finally:
                running.stop(0)
        assert client_id(key_of(SERVER), SERVER).encode() in connect
        assert not re.search(rb"srup-?5e", connect)
