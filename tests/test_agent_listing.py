"""Keys that an operator lists: what a new list changes, while the server runs and between two runs."""

import pytest

from srup import KeyRing, PolicyError, Server
from srup.store import MemoryStore
from srup.transport import MemoryTransport

from .fleet import SERVER, Fleet, key_of

A, B, C = 0xD0, 0xD1, 0xD2


def public(identity, scheme="ed25519"):
    return key_of(identity, scheme).public_key


def listed(*identities, **others):
    return {identity: public(identity) for identity in identities} | others


class Listed(Fleet):
    """A fleet whose server has a store, and keys from a list."""

    def __init__(self, tmp_path, size=2):
        self.store = MemoryStore()
        super().__init__(tmp_path, size, server_options={"store": self.store})
        self.server.reload_keys(dict(self.ring))

    def again(self, keys, ring=None):
        """Another process of the server, with this list; what it says has changed."""
        self.server = Server(
            SERVER,
            key_of(SERVER, self.scheme),
            devices=KeyRing(keys) if ring is None else ring,
            broker=MemoryTransport(self.network, "server"),
            clock=self.clock,
            entropy=self.randbytes,
            store=self.store,
        )
        changes = self.server.reload_keys(keys)
        self.server.start(threads=False)
        self.settle()
        return changes.result(0)

    def reload(self, keys):
        changes = self.server.reload_keys(keys)
        self.settle()
        return changes.result(0)


@pytest.fixture
def fleet(tmp_path):
    with Listed(tmp_path) as fleet:
        yield fleet.joined()


def obeys(fleet, device):
    """Whether a device takes an order of the server."""
    try:
        asked = fleet.server.identify(device)
        fleet.settle()
        return asked.result(0) == f"device {device:x}"
    except PolicyError:
        return False


def test_a_key_that_is_listed_no_more_puts_its_device_out(fleet):
    left = []
    fleet.server.on_left(left.append)
    assert fleet.reload(listed(B)) == ((), (), (A,), {})
    assert (left, fleet.server.members, A in fleet.server.devices) == ([A], {B}, False)
    assert (obeys(fleet, A), obeys(fleet, B)) == (False, True)
    fleet.devices[A].join()
    fleet.settle()
    assert "UnknownSenderError" in fleet.errors(fleet.server)
    assert fleet.reload(listed(A, B)) == ((A,), (), (), {})
    fleet.devices[A].join()
    fleet.settle()
    assert fleet.server.members == {A, B}


def test_it_does_so_when_it_went_while_the_server_was_down(fleet):
    fleet.server.stop()
    assert fleet.again(listed(B)) == ((), (), (A,), {})
    assert (fleet.server.members, A in fleet.server.devices) == ({B}, False)
    fleet.server.stop()
    assert fleet.again(listed(B)) == ((), (), (), {})
    fleet.server.stop()
    assert fleet.again(listed(A, B)) == ((A,), (), (), {})
    fleet.devices[A].join()
    fleet.settle()
    assert fleet.server.members == {A, B}


def test_a_new_key_may_join_without_a_restart(fleet):
    device = fleet.add(C)
    fleet.ring.remove(C)
    device.start(threads=False)
    fleet.settle()
    assert C not in fleet.server.members
    assert fleet.reload(listed(A, B, C)) == ((C,), (), (), {})
    device.join()
    fleet.settle()
    assert fleet.server.members == {A, B, C}


@pytest.mark.parametrize("down", [False, True])
def test_another_key_is_another_device(fleet, down):
    keys = listed(B) | {A: public(C)}
    if down:
        fleet.server.stop()
    assert (fleet.again if down else fleet.reload)(keys) == ((), (A,), (), {})
    assert fleet.server.members == {B}
    assert fleet.server.devices[A] == public(C)


def test_what_is_listed_as_before_changes_nothing(fleet):
    """Neither a key that was dropped nor one that was rotated comes back."""
    fleet.devices[A].rotate_key(key_of(C))
    fleet.server.deregister(B)
    fleet.settle()
    assert (fleet.server.devices[A], B in fleet.server.devices) == (public(C), False)
    assert fleet.reload(listed(A, B)) == ((), (), (), {})
    assert (fleet.server.devices[A], B in fleet.server.devices) == (public(C), False)
    fleet.server.stop()
    assert fleet.again(listed(A, B)) == ((), (), (), {})
    assert (fleet.server.devices[A], B in fleet.server.devices) == (public(C), False)
    assert fleet.reload(listed(B) | {A: public(C)}) == ((), (A,), (), {})  # the operator has caught up
    assert fleet.server.members == {A}


def test_what_was_not_listed_stays(fleet):
    fleet.server.devices.add(C, public(C))
    assert fleet.reload(listed(A)) == ((), (), (B,), {})
    fleet.server.stop()
    assert fleet.again(listed(A)) == ((), (), (), {})
    assert set(fleet.server.devices) == {A, C}


@pytest.mark.parametrize("down", [False, True])
def test_a_revoked_key_is_refused_by_name(fleet, down):
    fleet.server.revoke(A)
    fleet.reload(listed(B))
    if down:
        fleet.server.stop()
    changes = (fleet.again if down else fleet.reload)(listed(A, B))
    assert changes[:3] == ((), (), ())
    assert list(changes.refused) == [A]
    assert "was revoked" in changes.refused[A]
    assert set(fleet.server.devices) == {B}


def test_a_store_from_before_lists_were_kept(tmp_path):
    """Nobody knows what was listed; what was dropped stays dropped."""
    store = MemoryStore()
    with Fleet(tmp_path, 2, server_options={"store": store}) as fleet:
        fleet.joined()
        fleet.server.deregister(B)
        fleet.settle()
        fleet.server.stop()
        fleet.store = store
        assert Listed.again(fleet, listed(A, B)) == ((), (), (), {})
        assert set(fleet.server.devices) == {A}


def test_without_a_store(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        assert fleet.server.reload_keys(dict(fleet.ring)).result(0) == ((), (), (), {})
        fleet.joined()
        changes = fleet.server.reload_keys(listed(B))
        fleet.settle()
        assert changes.result(0) == ((), (), (A,), {})
        assert fleet.server.members == {B}
