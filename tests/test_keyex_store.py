"""srup.keyex.store: what is durable, what is bounded, and which files are not opened."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from srup import KeyServiceError
from srup.keyex.store import (
    _APPLICATION,
    _UPGRADES,
    VERSION,
    Candidate,
    Invitation,
    Issued,
    Registration,
    Rotation,
    Store,
)

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


# A service in a process of its own: it does what it reads, a line each, and says when it has done so.
SERVICE = """
import pathlib, sys
from srup.keyex.store import Store
path = pathlib.Path(sys.argv[1])
store = Store(path)
print("open", flush=True)
for line in sys.stdin:
    command, *arguments = line.split()
    try:
        if command == "copy":
            path.with_name("copy.db").write_bytes(path.read_bytes())
        elif command == "set":
            store.set(*arguments)
        elif command == "write":
            with store.writing():
                store.set(*arguments)
        print(store.setting(arguments[0]) if arguments else "done", flush=True)
    except Exception as error:
        print(error, flush=True)
"""

# What a command of the folder does: it opens the database, changes something, and closes it.
COMMAND = (
    "import sys; from srup.keyex.store import Store; s = Store(sys.argv[1]); s.set('command', sys.argv[2]); s.close()"
)

# Another program, which knows no lock of ours.
OTHER = (
    "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('SELECT * FROM settings').fetchall(); d.close()"
)


class Service:
    """The process, and what it answers."""

    def __init__(self, path):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVICE, str(path)], **pipes)
        assert self.process.stdout.readline() == "open\n"

    def __call__(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def end(self):
        self.process.communicate()


@pytest.fixture
def service(path):
    service = Service(path)
    yield service
    if service.process.poll() is None:
        service.kill()


def run(code, *arguments):
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


@pytest.mark.process
@pytest.mark.parametrize("copied", [False, True])
def test_what_is_committed_beside_commands_survives_although_the_file_was_copied(path, service, copied):
    """Copying it drops SQLite's lock: the command would delete the log, and the service write into nothing."""
    for number in range(3):
        assert service("write service before") == "before"
        if copied:
            assert service("copy") == "done"
        run(COMMAND, path, number)
        assert service("write service after") == "after"
        assert service(f"set own {number}") == f"{number}"
    service.kill()
    with closing(Store(path)) as store:
        assert [store.setting(name) for name in ("service", "own", "command")] == ["after", "2", "2"]
    assert not path.with_name("keyex.db-wal").exists()  # who is alone closes in SQLite's way


@pytest.mark.process
def test_a_service_sees_what_commands_do_after_the_file_was_copied(path, service):
    """A device that is revoked, for example."""
    service("write command 0")
    for number in range(1, 4):
        service("copy")
        run(COMMAND, path, number)
        assert service("get command") == f"{number}"


@pytest.mark.process
def test_a_log_that_another_program_has_deleted_is_neither_read_nor_written(path, service):
    service("write service before")
    service("copy")
    run(OTHER, path)
    run(COMMAND, path, "theirs")
    for line in ("write service lost", "get command", "set service lost"):
        assert "keyex.db-wal was deleted or replaced" in service(line)
    service.end()
    with closing(Store(path)) as store:
        assert [store.setting(name) for name in ("service", "command")] == ["before", "theirs"]


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


def test_what_is_revoked_is_counted_and_only_that(store):
    for identity in (1, 2):
        store.register(Registration(identity, "pem", "device", False, 1.0, None), b"%d" % identity)
        for serial in (10, 11):
            store.issue(Issued(100 * identity + serial, identity, b"", 0.0, 10.0, b""))
    assert (store.revocations, store.revoked_serials()) == (0, [])
    store.rotate(1, Rotation("new", b"", b""), b"n")
    assert (store.revocations, store.revoked_serials()) == (1, [110, 111])
    store.issue(Issued(112, 1, b"", 0.0, 10.0, b""))
    store.revoke(2, 5.0)
    assert (store.revocations, store.revoked_serials()) == (2, [110, 111, 210, 211])
    store.revoke(2, 6.0)
    assert store.revocations == 2


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
    store.expire(9.0, 4.0)
    assert store.invitations()
    assert store.candidates()
    store.expire(10.0, 5.0)
    assert not store.invitations()
    assert not store.candidates()


def test_of_the_certificates_of_an_identity_the_revoked_the_good_and_the_latest_are_kept(store):
    def issue(first, number, at=0.0, identity=1):
        for serial in range(first, first + number):
            store.issue(Issued(serial, identity, b"", at, at + 10.0, b"pem"))

    for identity in (1, 2):
        store.register(Registration(identity, "pem", "device", False, 1.0, None), b"%d" % identity)
    issue(1, 2)
    store.rotate(1, Rotation("new", b"", b""), b"n")
    issue(100, 50)
    issue(900, 1, identity=2)
    assert len(store.issued(1)) == 52
    issue(200, 1, at=9.0)
    assert len(store.issued(1)) == 53
    issue(201, 1, at=10.0)
    kept = {each.serial: each.pem for each in store.issued(1)}
    assert set(kept) == {1, 2, *range(120, 150), 200, 201}
    assert {serial for serial, pem in kept.items() if pem} == {200, 201}
    assert store.revoked_serials() == [1, 2]
    assert [each.pem for each in store.issued(2)] == [b"pem"]


def test_a_database_of_the_first_version_is_upgraded(path):
    """Which certificates are revoked followed from the keys then; now it stands beside each of them."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{_UPGRADES[0]}; PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = 1")
        rows = [("1", None), ("2", None), ("3", 9.0)]
        db.executemany("INSERT INTO registrations VALUES(?, 'pem', 'device', 0, 1.0, ?)", rows)
        db.executemany("INSERT INTO keys VALUES(?, ?)", [(b"a", "1"), (b"c", "3"), (b"z", "2"), (b"b", "2")])
        issued = [("a1", "1", b"a"), ("b1", "2", b"z"), ("b2", "2", b"b"), ("c1", "3", b"c")]
        db.executemany("INSERT INTO certificates VALUES(?, ?, ?, 1.0, 2.0, x'')", issued)
        db.execute("INSERT INTO candidates VALUES(1, '4', 'f', 'pem', 'device', 1.0)")
        db.commit()
    for _ in range(2):
        with closing(Store(path)) as store:
            assert store.revoked_serials() == [0xB1, 0xC1]
            assert store.revoked() == [3]
            assert store.candidates() == [Candidate(4, "f", "pem", "device", 1.0, "")]
            assert len(store.issued()) == 4


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
