"""srup.keyex.store: what is durable, what is bounded, and which files are not opened."""

import sqlite3
from contextlib import closing

import pytest

from srup import KeyServiceError
from srup.keyex.store import VERSION, Candidate, Invitation, Issued, Registration, Rotation, Store

TOP = 2**64 - 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keyex.db"


@pytest.fixture
def store(path):
    with closing(Store(path)) as store:
        yield store


def test_everything_is_there_again_after_it_was_closed(path):
    registration = Registration(TOP, "pem", "device", True, 1.5, None)
    candidate = Candidate(0, "f" * 64, "pem", "RSYND", 2.5)
    invitation = Invitation(b"d" * 32, 7, False, 3.5)
    issued = Issued(2**159, TOP, b"k" * 32, 4.5, 5.5, b"pem")
    with closing(Store(path)) as store, store.writing():
        store.register(registration, b"s" * 32)
        store.propose(candidate, 1, 1)
        store.invite(invitation)
        store.issue(issued)
        store.rotate(TOP, Rotation("new", b"o", b"n"), b"t" * 32)
        store.set("name", "value")
    with closing(Store(path)) as store:
        assert store.registration(TOP) == registration._replace(key="new")
        assert store.registrations() == [registration._replace(key="new")]
        assert store.candidates() == store.candidates(0) == [candidate]
        assert store.invitations() == [invitation]
        assert store.invitation(7) == invitation
        assert store.issued() == store.issued(TOP) == [issued]
        assert store.rotations(TOP) == [Rotation("new", b"o", b"n")]
        assert store.setting("name") == "value"
        assert store.owner_of(b"s" * 32) == store.owner_of(b"t" * 32) == TOP
        assert store.registration(1) is store.invitation(1) is store.owner_of(b"") is store.setting("none") is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_durable_when_a_transaction_ends(store):
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_what_raises_has_changed_nothing(store):
    before = list(store._db.iterdump())

    def fail():
        with store.writing():
            store.set("name", "value")
            store.invite(Invitation(b"d", 1, False, 1.0))
            raise KeyServiceError(400, "", "no")

    with pytest.raises(KeyServiceError):
        fail()
    assert list(store._db.iterdump()) == before


def test_a_file_that_another_process_holds_too_long_is_told(path, store, monkeypatch):
    monkeypatch.setattr("srup.keyex.store._PATIENCE", 0.01)
    with closing(Store(path)) as other, store.writing():
        for call in (lambda: other.set("name", "value"), other.writing().__enter__):
            with pytest.raises(KeyServiceError, match="locked"):
                call()


def test_two_processes_share_the_file(path, store):
    with closing(Store(path)) as other:
        with other.writing():
            other.set("name", "value")
        assert store.setting("name") == "value"


def test_one_registration_for_an_identity_and_one_owner_for_a_key(store):
    store.register(Registration(1, "a", "device", False, 1.0, None), b"a")
    for identity, digest in ((1, b"b"), (2, b"a")):
        with pytest.raises(sqlite3.IntegrityError), store.writing():
            store.register(Registration(identity, "b", "device", False, 1.0, None), digest)
    assert [each.identity for each in store.registrations()] == [1]


def test_a_newer_invitation_makes_the_earlier_one_void(store):
    store.invite(Invitation(b"a", 1, False, 1.0))
    store.invite(Invitation(b"b", 1, True, 2.0))
    assert store.invitations() == [Invitation(b"b", 1, True, 2.0)]


def test_candidates_are_bounded_and_the_oldest_go_first(store):
    def propose(identity, number):
        store.propose(Candidate(identity, f"{number:064x}", "pem", "device", float(number)), 3, 10)

    propose(1, 0)
    for number in range(5):
        propose(1, number)
    assert [each.asked for each in store.candidates(1)] == [2.0, 3.0, 4.0]
    for number in range(50):
        propose(100 + number, number)
    assert [each.identity for each in store.candidates()] == list(range(140, 150))
    propose(140, 40)  # who asks again does not get younger, and pushes nobody out
    assert [each.identity for each in store.candidates()] == list(range(140, 150))
    assert store.dismiss(145) == 1
    assert store.dismiss(146, "f") == 0


def test_what_has_expired_is_forgotten(store):
    store.invite(Invitation(b"a", 1, False, 10.0))
    store.propose(Candidate(1, "f", "pem", "device", 5.0), 9, 9)
    store.issue(Issued(1, 1, b"", 0.0, 10.0, b""))
    store.expire(9.0, 4.0)
    assert store.invitations()
    assert store.candidates()
    store.expire(10.0, 5.0)
    assert not store.invitations()
    assert not store.candidates()
    assert store.issued()  # a broker whose clock is behind must still find it revoked
    store.expire(10.0 + 86400.0, 5.0)
    assert not store.issued()


# --- files that are not opened


def refused(path):
    with pytest.raises(KeyServiceError) as caught:
        Store(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_newer_database(path):
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    assert f"has version {VERSION + 1}" in refused(path)


def test_a_database_of_something_else(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t(x)")
    assert "not the database of a key exchange service" in refused(path)


def test_a_file_that_is_no_database(path):
    path.write_bytes(b"not a database" * 1000)
    assert "not a database" in refused(path)


def test_a_corrupt_database(path):
    with closing(Store(path)) as store, store.writing():
        for number in range(500):
            store.set(f"{number}", "x" * 100)
    content = bytearray(path.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 200] = b"\xff" * 200
    path.write_bytes(content)
    assert "backup" in refused(path)


def test_a_path_that_cannot_be_used(tmp_path):
    refused(tmp_path)
    refused(tmp_path / "nowhere" / "keyex.db")
