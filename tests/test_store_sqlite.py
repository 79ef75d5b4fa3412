"""srup.store.sqlite: crashes, full disks, old backups, and files that are not opened."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from srup import SqliteStore, StoreError
from srup.records import (
    AuditRow,
    Changes,
    ExchangeRecord,
    Fact,
    InboxEntry,
    KeyRecord,
    OutboxEntry,
    PartnerRecord,
)
from srup.store import sqlitefile
from srup.store.witness import Position, Witness

OWNER = 0x5E
PRESENT = len(sqlitefile.MIGRATIONS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
def witness(path):
    return path.with_name("state.db-witness")


def partner(identity=7, highest=5):
    return PartnerRecord(identity, True, True, 64, highest, 1)


def commit(store, *numbers):
    """One commit for each number, which leaves it in the partner, the inbox and an audit row."""
    for number in numbers:
        entry = InboxEntry(number, 7, b"token", "data", b"body" * 50)
        row = AuditRow(float(number), 7, number, 3, b"token", "accepted")
        store.commit(
            Changes(
                partners=[partner(highest=number)],
                inbox=[entry],
                finished=[(7, old) for old in range(number)],
                audit=[row],
            )
        )


def filled(path, *numbers):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, *numbers)


def number_in(path, **options):
    """The number of the last commit, which all parts must agree on."""
    with closing(SqliteStore(path, **options)) as store:
        state = store.open(OWNER)
        (found,) = {record.highest for record in state.partners} | {entry.number for entry in state.inbox}
        assert [row.sequence_id for row in store.audit()][-1] == found
        return found


def snapshot(folder, target):
    """Copy the files as they are. Another process does: SQLite's locks go when this one closes such a file."""
    subprocess.run(["cp", "-r", str(folder), str(target)], check=True)


def run(code, *arguments):
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )


def edit(path, *commands):
    with closing(sqlite3.connect(path)) as db:
        for command in commands:
            db.execute(command)
        db.commit()


# --- Files.


def test_only_its_user_reads_the_files(tmp_path, path):
    before = os.umask(0)
    try:
        store = SqliteStore(path)
        store.open(OWNER)
        commit(store, 1)
        names = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        store.close()
    finally:
        os.umask(before)
    beside = ("lock", "shm", "wal", "witness")
    assert names == dict.fromkeys(["state.db", *(f"state.db-{each}" for each in beside)], 0o600)
    assert number_in(path) == 1


@pytest.mark.parametrize(
    "lists",
    [
        {"facts": [Fact(7, "n" * 100_000, "")]},
        {"barred": ["f" * 100_000]},
        {"ended": [(7, bytes(100_000))]},
        {"exchanges": [ExchangeRecord(7, bytes(100_000), 0.0, "")]},
        {"inbox": [InboxEntry(1, 7, bytes(65_536), "data", b"")]},
        {"facts": [Fact(7, "half of a pair: \ud800", "")]},
    ],
)
def test_what_does_not_fit_is_refused(path, lists):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        with pytest.raises(StoreError, match=r"state\.db: a record cannot be kept: "):
            store.commit(Changes(**lists))
        store.commit(Changes(facts=[Fact(7, "n" * 99_999, "v")]))
        assert store.open(OWNER).facts == [Fact(7, "n" * 99_999, "v")]


# --- Files that are no good.


def test_a_newer_version_is_refused(path):
    filled(path, 1)
    edit(path, f"PRAGMA user_version = {PRESENT + 1}")
    with pytest.raises(
        StoreError, match=rf"has version {PRESENT + 1}, and this srup knows {PRESENT}: use a newer srup"
    ):
        SqliteStore(path).open(OWNER)
    edit(path, f"PRAGMA user_version = {PRESENT}")
    assert number_in(path) == 1


@pytest.mark.parametrize("command", ["PRAGMA application_id = 77", "CREATE TABLE theirs(a)", "PRAGMA user_version = 1"])
def test_a_database_of_another_program_is_left_alone(path, command):
    edit(path, "CREATE TABLE gone(a)", "DROP TABLE gone", command)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"state\.db is the database of another program"):
        SqliteStore(path).open(OWNER)
    assert path.read_bytes() == before


def test_no_database_at_all(path):
    path.write_bytes(b"hello, this is a text" * 1000)
    with pytest.raises(StoreError, match=r"state\.db: file is not a database: "):
        SqliteStore(path).open(OWNER)


def test_a_damaged_page(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        store.commit(Changes(partners=[partner(number) for number in range(5000)]))
    assert path.stat().st_size > 20 * 4096
    for page in range(1, 20):
        with path.open("r+b") as file:
            file.seek(page * 4096)
            good = file.read(4096)
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
        with pytest.raises(
            StoreError, match=r"(damaged|malformed).*restore it from a backup and open it with adopt=True"
        ):
            SqliteStore(path).open(OWNER)
        with path.open("r+b") as file:
            file.seek(page * 4096)
            file.write(good)
    with closing(SqliteStore(path)) as store:
        assert len(store.open(OWNER).partners) == 5000


def test_a_damaged_key_is_found_by_whoever_reads_the_keys(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        store.commit(Changes(keys=[KeyRecord(7, b"pem")]))
    edit(path, "UPDATE keys SET record = x'01'")
    with closing(SqliteStore(path)) as store:
        keys = store.open(OWNER).keys
        with pytest.raises(StoreError, match=r"state\.db is damaged .*: restore it"):
            list(keys)


@pytest.mark.parametrize("table", ["partners", "inbox", "audit"])
def test_a_damaged_record(path, table):
    filled(path, 1)
    edit(path, f"UPDATE {table} SET record = x'01'")
    with pytest.raises(StoreError, match=r"is damaged .*: restore it"):
        number_in(path)


# --- Versions of the schema.

FIRST = Path(__file__).parent / "vectors" / "store-1.sql"
FIFTH = FIRST.with_name("store-5.sql")


@pytest.fixture
def first(path, witness):
    """A database of version 1 with one of everything."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(FIRST.read_text())
    Witness(witness).replace_by(Position(bytes(range(16)), 1))
    return path


def test_a_database_of_version_1_is_brought_up_to_date(first):
    with closing(SqliteStore(first)) as store:
        state = store.open(OWNER)
        state = state._replace(keys=[*state.keys])
        assert store._db.execute("PRAGMA user_version").fetchone()[0] == PRESENT > 1
        assert state == (
            [
                PartnerRecord(7, True, False, 64, 5, 31),
                PartnerRecord(2**64 - 1, False, True, *[2**64 - 1] * 2, 2**1024 - 2),
            ],
            [ExchangeRecord(7, b"token", 12.5, '{"a": 1}')],
            [InboxEntry(1, 7, b"token", "data", b"body")],
            [OutboxEntry(1, 7, "a/topic", b"signed", 3.5)],
            [KeyRecord(7, b"pem", b"old", 9.25, b"first"), KeyRecord(8, None)],
            ["aa:bb"],
            [Fact(7, "version", "1.2")],
            False,
        )
        assert [*store.audit()] == [AuditRow(1.0, 7, 9, 3, b"token", "accepted")]
        commit(store, 2, 3)
    with closing(SqliteStore(first)) as store:
        assert store.open(OWNER).partners[0] == partner(highest=3)


def test_rows_of_version_5_stay_readable_without_their_bytes(path, witness):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(FIFTH.read_text())
        (database,) = db.execute("SELECT id FROM store").fetchone()
    Witness(witness).replace_by(Position(database, 2))
    old = [
        AuditRow(1_700_000_000.0, 0xD1, 1, 9, b"join", "accepted"),
        AuditRow(1_700_000_001.5, 0xD1, 2, 5, b"\xffvalue", "unexpected: d1 is not joined"),
        AuditRow(1_700_000_002.0, 0xD2, 2**64 - 1, 2, b"", "repeated"),
    ]
    new = AuditRow(1_700_000_001.5, 0xD1, 3, 2, b"t", "ACTION_SUCCESS", False, b"signed", b"f" * 32)
    with closing(SqliteStore(path)) as store:
        store.open(0x5E)
        assert [*store.audit()] == old
        store.commit(Changes(audit=[new]))
    with closing(SqliteStore(path)) as store:
        store.open(0x5E)
        assert [*store.audit()] == [*old[:2], new, old[2]]
        assert [*store.audit(partner=0xD1, newest_first=True)] == [new, old[1], old[0]]
        assert store.mailbox(0x5E).waiting() == {0: 1}


def test_old_and_new_databases_have_one_schema(first, tmp_path):
    number = tmp_path / "new.db"
    schemas = []
    for path in (first, number):
        with closing(SqliteStore(path)) as store:
            store.open(OWNER)
            schemas.append(store._db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall())
    assert schemas[0] == schemas[1]


def test_a_migration_happens_or_does_not(first, monkeypatch):
    good = sqlitefile.MIGRATIONS
    monkeypatch.setattr(
        sqlitefile, "MIGRATIONS", (*good, "CREATE TABLE extra(a); DELETE FROM inbox; CREATE TABLE inbox(a);")
    )
    with pytest.raises(StoreError, match="table inbox already exists"):
        SqliteStore(first).open(OWNER)
    monkeypatch.setattr(sqlitefile, "MIGRATIONS", good)
    with closing(SqliteStore(first)) as store:
        assert len(store.open(OWNER).inbox) == 1
        assert store._db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'extra'").fetchone()[0] == 0


# --- One process.

HOLD = """
import sys
from srup import SqliteStore
store = SqliteStore(sys.argv[1])
store.open(0x5E)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.process
def test_one_process_at_a_time(path):
    filled(path, 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "open\n"
            with pytest.raises(StoreError, match=r"state\.db is in use: one process at a time"):
                SqliteStore(path).open(OWNER)
        finally:
            other.kill()
    assert number_in(path) == 1


def test_one_object_at_a_time(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        with pytest.raises(StoreError, match="one store object in it"):
            SqliteStore(path).open(OWNER)
        commit(store, 1)
    assert number_in(path) == 1


OPEN = """
import sys
from srup import SqliteStore, StoreError
try:
    store = SqliteStore(sys.argv[1], create=False, read_only=sys.argv[2:] == ["read only"])
    store.open(0x5E)
    print(len([*store.audit()]))
    store.close()
except StoreError as error:
    print(error)
"""


@pytest.mark.process
@pytest.mark.parametrize("mode", ["", "read only"])
def test_reading_the_file_in_the_server_s_process_lets_no_other_in(path, mode):
    """SQLite's own lock goes when this process closes the file: another one then deleted the log with its commits."""
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 1)
        assert path.read_bytes().startswith(b"SQLite format 3")
        shutil.copy(path, path.with_name("copy.db"))
        assert "state.db is in use: one process at a time" in run(OPEN, path, mode).stdout
        commit(store, *range(2, 202))
        snapshot(path.parent, path.parent.with_name("crashed"))
    crashed = path.parent.with_name("crashed") / "state.db"
    assert number_in(crashed) == 201
    shutil.rmtree(crashed.parent)


def test_a_lock_that_nobody_holds_is_no_lock(path):
    filled(path, 1)
    assert path.with_name("state.db-lock").exists()
    assert number_in(path) == 1
    path.with_name("state.db-lock").unlink()
    assert number_in(path) == 1


READS = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as db:
    print(db.execute("SELECT count(*) FROM audit").fetchone()[0])
db.close()
"""


@pytest.mark.process
def test_another_program_that_reads_the_database_does_not_delete_its_log(path):
    """It does not know our lock, and SQLite's is gone, so that it takes itself for the last one."""
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 1, 2)
        path.read_bytes()
        assert run(READS, path).stdout == "2\n"
        commit(store, 3)
    assert number_in(path) == 3


def test_no_commit_goes_into_a_log_that_was_deleted(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 1, 2)
        path.with_name("state.db-wal").unlink()
        for _ in range(2):
            with pytest.raises(StoreError, match=r"state\.db-wal was deleted or replaced .* start again"):
                commit(store, 3)


# --- Reading only.


@pytest.mark.process
def test_reading_only_changes_nothing(path, tmp_path):
    """Not even of files as a crash left them, whose witness is missing."""
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 1, 2, 3)
        snapshot(tmp_path, tmp_path.with_name("copy"))
    copy = tmp_path.with_name("copy")
    for name in ("state.db-witness", "state.db-lock"):
        (copy / name).unlink()
    (copy / "state.db-shm").unlink()  # which SQLite makes again
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert before["state.db-wal"]
    with closing(SqliteStore(copy / "state.db", read_only=True)) as store:
        assert [entry.number for entry in store.open(OWNER).inbox] == [3]
        assert [row.sequence_id for row in store.audit()] == [1, 2, 3]
        for change in (lambda: commit(store, 4), lambda: store.prune(10.0)):
            with pytest.raises(StoreError, match="opened with read_only=True"):
                change()
    after = {file.name: file.read_bytes() for file in copy.iterdir() if not file.name.endswith("-shm")}
    assert after == before
    assert number_in(copy / "state.db", adopt=True) == 3  # what is left of reading is in nobody's way
    shutil.rmtree(copy)


def test_reading_only_makes_no_database(path, tmp_path):
    for options in ({}, {"create": True, "adopt": True}):
        with pytest.raises(StoreError, match="is missing"):
            SqliteStore(path, read_only=True, **options).open(OWNER)
    assert not [*tmp_path.iterdir()]


def test_reading_only_reads_what_is_its_owner_s_and_of_this_version(path):
    filled(path, 1)
    with pytest.raises(StoreError, match="belongs to 5e"):
        SqliteStore(path, read_only=True).open(OWNER + 1)
    edit(path, f"PRAGMA user_version = {PRESENT - 1}")
    with pytest.raises(StoreError, match="of an older srup"):
        SqliteStore(path, read_only=True).open(OWNER)


# --- Numbers that are none of this world.


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("path", ["a\0b", "half of a pair: \ud800", "a/\0"])
def test_a_path_that_is_none(path):
    with pytest.raises(StoreError, match="is no path of a database"):
        SqliteStore(path)


def test_another_owner_does_not_close_an_open_store(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        with pytest.raises(StoreError, match="belongs to 5e"):
            store.open(OWNER + 1)
        commit(store, 1)


FORK = """
import os, sys
from srup import SqliteStore, StoreError
from srup.records import Changes, PartnerRecord
store = SqliteStore(sys.argv[1])
store.open(0x5E)
store.commit(Changes(partners=[PartnerRecord(1, True, True, 0, 0, 0)]))
child = os.fork()
if child == 0:
    for use in (lambda: store.commit(Changes(forgotten=[1])), lambda: store.open(0x5E)):
        try:
            use()
            print("used", flush=True)
        except StoreError:
            pass
    store.close()
    sys.exit()
os.waitpid(child, 0)
store.commit(Changes(partners=[PartnerRecord(2, True, True, 0, 0, 0)]))
print("done", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.process
def test_a_forked_child_leaves_the_store_to_its_parent(path):
    """SQLite would copy its log back and delete it when the child ends, and what the parent commits then were lost."""
    done = subprocess.run([sys.executable, "-c", FORK, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "done\n"), done.stderr
    with closing(SqliteStore(path)) as store:
        assert [record.identity for record in store.open(OWNER).partners] == [1, 2]


# --- Crashes.

LOOP = """
import sys
from srup import SqliteStore
from srup.records import AuditRow, Changes, InboxEntry, PartnerRecord
store = SqliteStore(sys.argv[1])
number = max((entry.number for entry in store.open(0x5E).inbox), default=0)
while True:
    number += 1
    partners = [PartnerRecord(identity, True, True, 0, number, 1) for identity in range(200)]
    entries = [InboxEntry(number, identity, b"token", "data", b"body") for identity in range(200)]
    finished = [(identity, number - 1) for identity in range(200)]
    audit = [AuditRow(float(number), 7, number, 3, b"token", "accepted")]
    store.commit(Changes(partners=partners, inbox=entries, finished=finished, audit=audit))
    print(number, flush=True)
"""


@pytest.mark.process
def test_what_was_confirmed_survives_sigkill(path):
    """And what was not is there as a whole or not at all; the witness never keeps the database from being opened."""
    last = 0
    for round in range(20):
        with subprocess.Popen([sys.executable, "-c", LOOP, path], stdout=subprocess.PIPE, text=True) as child:
            try:
                confirmed = [int(child.stdout.readline()) for _ in range(1 + round * 7 % 40)]
            finally:
                child.kill()
            confirmed += [int(line) for line in child.stdout.read().splitlines(True) if line.endswith("\n")]
        assert confirmed[0] == last + 1
        with closing(SqliteStore(path)) as store:
            state = store.open(OWNER)
            (last,) = {record.highest for record in state.partners} | {entry.number for entry in state.inbox}
            assert last in (confirmed[-1], confirmed[-1] + 1)
            assert len(state.partners) == len(state.inbox) == 200
            assert [row.sequence_id for row in store.audit()] == [*range(1, last + 1)]


@pytest.mark.process
def test_the_files_as_they_are_after_any_commit(tmp_path):
    """A power cut leaves what was durable, and a witness that may be older by any number of commits."""
    folder = tmp_path / "live"
    folder.mkdir()
    with closing(SqliteStore(folder / "state.db")) as store:
        for number in range(6):
            store.open(OWNER)
            if number:
                commit(store, number)
            snapshot(folder, tmp_path / f"{number}")
    for present in range(1, 6):
        for written in range(6):
            both = tmp_path / "both"
            shutil.copytree(tmp_path / f"{present}", both)
            shutil.copy(tmp_path / f"{written}" / "state.db-witness", both)
            if written <= present:
                assert number_in(both / "state.db") == present
            else:
                with pytest.raises(StoreError, match=rf"has {present} commits, and had {written}: it is an old backup"):
                    number_in(both / "state.db")
            shutil.rmtree(both)


# --- Full disks and other trouble.

FILE_LIMIT = """
import resource, sys
from srup import SqliteStore, StoreError
from srup.records import Changes, InboxEntry
store = SqliteStore(sys.argv[1])
store.open(0x5E)
def commit(number):
    store.commit(Changes(inbox=[InboxEntry(number, 7, b"", "data", bytes(20_000))]))
for number in range(10):
    commit(number)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, most))
failed = 0
while failed < 5:
    number += 1
    try:
        commit(number)
        assert not failed
    except StoreError as error:
        assert sys.argv[1] in str(error), error
        failed += 1
        number -= 1
        assert len(store.open(0x5E).inbox) == number + 1
        assert not store._db.in_transaction
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
for _ in range(100):
    number += 1
    commit(number)
print(number, flush=True)
"""


@pytest.mark.process
def test_a_file_that_may_not_grow(path):
    last = int(run(FILE_LIMIT, path).stdout)
    assert last > 110
    with closing(SqliteStore(path)) as store:
        assert [entry.number for entry in store.open(OWNER).inbox] == [*range(last + 1)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.process
def test_a_full_disk(small_disk):
    path = small_disk / "state.db"
    witness = Witness(small_disk / "state.db-witness")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        steps = [Changes(inbox=[InboxEntry(number, 7, b"", "data", bytes(20_000))]) for number in range(1, 100)]
        number = -1
        with suppress(StoreError):
            for number, step in enumerate(steps):  # noqa: B007
                store.commit(step)
        assert 10 < number < 90
        for _ in range(3):
            with pytest.raises(StoreError, match=r"state\.db: database or disk is full: make room"):
                store.commit(steps[number])
        assert witness.read().commits == number
        assert [entry.number for entry in store.open(OWNER).inbox] == [*range(1, number + 1)]
        ballast.unlink()
        for step in steps[number : number + 3]:
            store.commit(step)
            number += 1
    with closing(SqliteStore(path)) as store:
        assert [entry.number for entry in store.open(OWNER).inbox] == [*range(1, number + 1)]
        assert witness.read().commits == number


@pytest.mark.process
def test_a_full_disk_at_the_beginning(small_disk):
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(2_000_000))
    with pytest.raises(StoreError):
        SqliteStore(small_disk / "state.db").open(OWNER)
    ballast.unlink()
    filled(small_disk / "state.db", 1)
    assert number_in(small_disk / "state.db") == 1


# --- Old backups.


def backup_and_more(path):
    """A backup of commit 2, while the database goes on to commit 5."""
    old = path.with_name("backup.db")
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 1, 2)
        store.backup(old)
        commit(store, 3, 4, 5)
    return old


def test_an_old_backup_is_refused(path):
    shutil.copy(backup_and_more(path), path)
    with pytest.raises(StoreError, match=r"has 2 commits, and had 5: it is an old backup; open it with adopt=True"):
        SqliteStore(path).open(OWNER)
    with pytest.raises(StoreError, match="old backup"):
        SqliteStore(path).open(OWNER)


def test_the_present_state_is_no_old_backup(path):
    old = path.with_name("backup.db")
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 1, 2)
        store.backup(old)
    shutil.copy(old, path)
    assert number_in(path) == 2


@pytest.mark.process
def test_a_lost_log_is_an_old_backup(path, tmp_path):
    filled(path, 1, 2)
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 3)
        snapshot(tmp_path, tmp_path.with_name("copy"))
    copied = tmp_path.with_name("copy") / "state.db"
    copied.with_name("state.db-wal").unlink()
    with pytest.raises(StoreError, match="has 2 commits, and had 3"):
        SqliteStore(copied).open(OWNER)
    shutil.rmtree(copied.parent)


def crashed(path, tmp_path, *numbers):
    """Files as a crash leaves them after these commits, the last of them in the log; returns the database's path."""
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, *numbers)
        snapshot(tmp_path, tmp_path.with_name(f"{tmp_path.name}-crashed"))
    return tmp_path.with_name(f"{tmp_path.name}-crashed") / "state.db"


def check_refused_with_its_log(path):
    """It is refused, however often, and nothing is written; without the log it can be adopted."""
    log = path.with_name("state.db-wal")
    before = path.read_bytes(), log.read_bytes()
    for options in ({}, {"adopt": True}, {"read_only": True}):
        with pytest.raises(
            StoreError, match=r"state\.db and .*state\.db-wal do not belong together: .* move state\.db-wal"
        ):
            SqliteStore(path, **options).open(OWNER)
    assert (path.read_bytes(), log.read_bytes()) == before
    log.unlink()
    with pytest.raises(StoreError, match=r"old backup|is of another database|has \d+ commits"):
        SqliteStore(path).open(OWNER)
    number = number_in(path, adopt=True)
    shutil.rmtree(path.parent)
    return number


@pytest.mark.process
@pytest.mark.parametrize("more", [0, 3, 200])
def test_a_backup_beside_the_log_of_the_present_database(path, tmp_path, more):
    """SQLite applies the log's pages to whatever file is there; those of a backup are others."""
    filled(path, 1)
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, 2)
        store.backup(tmp_path / "backup.db")
    left = crashed(path, tmp_path, *range(3, 4 + more))
    shutil.copy(tmp_path / "backup.db", left)
    assert check_refused_with_its_log(left) == 2


@pytest.mark.process
@pytest.mark.parametrize("more", [0, 3, 200])
def test_a_copy_of_the_file_beside_a_log_that_began_later(path, tmp_path, more):
    filled(path, 1, 2)
    shutil.copy(path, tmp_path / "backup.db")
    filled(path, 3)
    left = crashed(path, tmp_path, *range(4, 5 + more))
    shutil.copy(tmp_path / "backup.db", left)
    assert check_refused_with_its_log(left) == 2


@pytest.mark.process
def test_a_copy_that_was_made_since_the_server_began_beside_a_later_log(path, tmp_path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        log, copies = path.with_name("state.db-wal"), []
        for number in range(1, 1500):
            before = log.read_bytes()[:32]
            commit(store, number)
            if log.read_bytes()[:32] != before:  # it has begun anew
                subprocess.run(["cp", path, tmp_path / f"copy{number}"], check=True)
                copies.append(tmp_path / f"copy{number}")
        snapshot(tmp_path, tmp_path.with_name(f"{tmp_path.name}-crashed"))
    left = tmp_path.with_name(f"{tmp_path.name}-crashed") / "state.db"
    assert len(copies) > 3
    whole = tmp_path / "whole"
    for copy in copies[1:-1]:  # the first has no log before it
        shutil.copytree(left.parent, whole)
        shutil.copy(copy, whole / "state.db")
        check_refused_with_its_log(whole / "state.db")
    shutil.copy(copies[-1], left)  # the control: the present log began with this file
    assert number_in(left) == 1499
    shutil.rmtree(left.parent)


@pytest.mark.process
@pytest.mark.parametrize("number", [1, 2, 100, 700])
def test_what_a_crash_leaves_belongs_together(path, tmp_path, number):
    """Whenever it comes: at the first commit, and after the log was copied back once and again."""
    left = crashed(path, tmp_path, *range(1, number + 1))
    assert number_in(left) == number
    filled(left, number + 1)
    assert number_in(left) == number + 1
    shutil.rmtree(left.parent)


def test_adopting_an_old_backup(path):
    shutil.copy(backup_and_more(path), path)
    for options in ({"adopt": True}, {}):  # a crash between them: it is adopted until there has been a commit
        with closing(SqliteStore(path, **options)) as store:
            state = store.open(OWNER)
            assert state.adopted
            assert [record.highest for record in state.partners] == [2]
    with closing(SqliteStore(path)) as store:
        assert store.open(OWNER).adopted
        store.prune(1.0)
        assert store.open(OWNER).adopted
        commit(store, 100)
        assert not store.open(OWNER).adopted
    assert number_in(path) == 100


def test_what_was_adopted_is_another_database(path, witness, tmp_path):
    """Neither the files from before nor the backup itself are let in after it."""
    old = backup_and_more(path)
    before = tmp_path / "before.db"
    shutil.copy(path, before)
    shutil.copy(old, path)
    with closing(SqliteStore(path, adopt=True)) as store:
        store.open(OWNER)
        commit(store, *range(100, 110))
    for other in (before, old):
        shutil.copy(other, path)
        with pytest.raises(StoreError, match="is of another database"):
            SqliteStore(path).open(OWNER)


def test_adopting_what_is_not_old(path):
    """Whoever restored the whole folder, witness and all, says so; nothing else can tell."""
    filled(path, 1)
    with closing(SqliteStore(path, adopt=True)) as store:
        assert store.open(OWNER).adopted


def test_a_new_database_is_not_adopted(path):
    with closing(SqliteStore(path, adopt=True)) as store:
        assert not store.open(OWNER).adopted
        commit(store, 1)
    assert number_in(path) == 1


def test_a_missing_witness(path, witness):
    filled(path, 1)
    witness.unlink()
    with pytest.raises(
        StoreError, match=r"state\.db-witness is missing: .* may be an old copy; open it with adopt=True"
    ):
        SqliteStore(path).open(OWNER)
    with closing(SqliteStore(path, adopt=True)) as store:
        assert store.open(OWNER).adopted
        commit(store, 2)
    assert witness.exists()
    assert number_in(path) == 2


def test_a_database_that_was_opened_once_is_refused_without_its_witness(path, witness):
    """Though it has no commit: there may have been some since it was copied."""
    filled(path)
    witness.unlink()
    with pytest.raises(StoreError, match=r"state\.db-witness is missing: .* open it with adopt=True"):
        filled(path, 1)
    with closing(SqliteStore(path, adopt=True)) as store:
        assert store.open(OWNER).adopted


@pytest.mark.parametrize("step", ["_check_owner", "_check_witness", "_own", "_state"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_beginning_that_was_interrupted_can_be_made_again(path, monkeypatch, step, when):
    """Nobody has been told yet that there is a database: nothing can be missing."""
    done = getattr(SqliteStore, step)

    def interrupted(store, *arguments):
        if when == "after":
            done(store, *arguments)
        raise StoreError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, step, interrupted)
        with pytest.raises(StoreError, match="the power is gone"):
            SqliteStore(path).open(OWNER)
    filled(path, 1)
    assert number_in(path) == 1


@pytest.mark.parametrize("commits", [0, 1, 3])
@pytest.mark.process
def test_a_copy_of_the_file_alone_is_never_a_new_database(path, tmp_path, commits):
    """Made while it is in use: whatever SQLite still had in its log is missing."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copied = elsewhere / "copy.db"
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        commit(store, *range(1, commits + 1))
        subprocess.run(["cp", str(path), str(copied)], check=True)
    with pytest.raises(StoreError, match=r"copy\.db-witness is missing: .* open it with adopt=True"):
        SqliteStore(copied).open(OWNER)
    with closing(SqliteStore(copied, adopt=True)) as store:
        assert store.open(OWNER).adopted


def test_a_copy_of_a_file_that_was_only_in_the_log_is_no_new_database(path):
    """What earlier versions left of a database that was new when it was copied."""
    edit(path, "PRAGMA journal_mode = WAL")
    assert path.stat().st_size == 4096
    for adopt in (False, True):
        with pytest.raises(StoreError, match=r"has nothing in it: it is a copy that was made without its log"):
            SqliteStore(path, adopt=adopt).open(OWNER)


@pytest.mark.parametrize("adopt", [False, True])
def test_a_log_without_its_database_is_not_thrown_away(path, adopt):
    log = path.with_name("state.db-wal")
    log.write_bytes(b"commits")
    with pytest.raises(StoreError, match=r"state\.db is missing, and .*state\.db-wal is there .* move that file away"):
        SqliteStore(path, adopt=adopt).open(OWNER)
    assert log.read_bytes() == b"commits"
    assert not path.exists()


def test_a_database_behind_a_symbolic_link_is_one_database(path, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    filled(link, 1)
    with closing(SqliteStore(link)) as store:
        store.open(OWNER)
        with pytest.raises(StoreError, match="in use"):
            SqliteStore(path).open(OWNER)
    assert number_in(path) == 1


def test_a_missing_database_with_a_witness(path, witness):
    filled(path, 1)
    path.unlink()
    with pytest.raises(StoreError, match=r"state\.db is missing, and .*state\.db-witness knows it"):
        SqliteStore(path).open(OWNER)
    assert not path.exists()
    with closing(SqliteStore(path, adopt=True)) as store:
        state = store.open(OWNER)
        assert state.adopted
        assert not state.partners


@pytest.mark.parametrize("content", [b"", b"short", bytes(25)])
def test_a_damaged_witness(path, witness, content):
    filled(path, 1)
    witness.write_bytes(content)
    with pytest.raises(StoreError, match=r"state\.db-witness is damaged; open the store with adopt=True"):
        SqliteStore(path).open(OWNER)
    with closing(SqliteStore(path, adopt=True)) as store:
        assert store.open(OWNER).adopted


def test_another_owner_adopts_nothing(path):
    filled(path, 1)
    with pytest.raises(StoreError, match="belongs to 5e"):
        SqliteStore(path, adopt=True).open(OWNER + 1)
    assert number_in(path) == 1
    with closing(SqliteStore(path)) as store:
        assert not store.open(OWNER).adopted


def test_a_backup_is_whole_and_overwrites_nothing(path, tmp_path):
    old = backup_and_more(path)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        with pytest.raises(StoreError, match=r"backup\.db: File exists: name a new file"):
            store.backup(old)
        with pytest.raises(StoreError, match=r"name a new file"):
            store.backup(tmp_path / "missing" / "backup.db")
    assert number_in(old, adopt=True) == 2


def test_the_same_object_opens_again_and_commits_go_on(tmp_path):
    store = SqliteStore(tmp_path / "state.db")
    for _ in range(2):
        store.open(OWNER)
        for number in range(3):
            store.commit(Changes(facts=[Fact(1, f"fact {number}", "x")]))
        (tmp_path / "kept").unlink(missing_ok=True)
        (tmp_path / "kept").hardlink_to(tmp_path / "state.db-wal")  # so that the next log is another file
        store.close()
