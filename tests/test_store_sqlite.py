"""srup.store.sqlite: crashes, full disks, old backups, and files that are not opened."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

import srup.store.sqlite as module
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
from srup.store.witness import Position, Witness

OWNER = 0x5E
PRESENT = len(module._MIGRATIONS)


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
    assert names == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-witness": 0o600}


def test_a_commit_is_durable_when_it_returns(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        settings = [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]


class Counted:
    """A connection that notes what it is asked."""

    def __init__(self, connection):
        self.connection = connection
        self.asked = []

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self.connection, name)


def test_a_commit_is_one_statement(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        counted = store._connection = Counted(store._connection)
        commit(store, 1)
        assert counted.asked == ["execute"]


def test_what_is_written_and_finished_in_one_step_is_never_written(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        written = []
        for size in (1, 100):
            before = store._db.total_changes
            entries = [InboxEntry(number, 7, b"", "data", b"") for number in range(size)]
            store.commit(Changes(inbox=entries, finished=[(7, number) for number in range(size)]))
            written.append(store._db.total_changes - before)
    assert written[0] == written[1]


@pytest.mark.parametrize("seen", [1, (1 << 1024) - 1, (1 << 1024) - 1 - (1 << 20)])
def test_a_window_of_few_ones_or_few_zeros_takes_little_room(path, seen):
    """What a commit costs is mostly the pages that its partners are on."""
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        store.commit(
            Changes(partners=[PartnerRecord(2**63 + each, True, True, 64, 2**60, seen) for each in range(5000)])
        )
    assert path.stat().st_size / 5000 < 60


def test_the_log_is_bounded(path):
    bound = module._WAL_PAGES * 4096
    log = path.with_name("state.db-wal")
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        sizes = []
        for number in range(200):
            entry = InboxEntry(1, 7, b"", "data", bytes([number]) * 200_000)
            store.commit(Changes(inbox=[entry]))
            sizes.append(log.stat().st_size)
        assert bound / 2 < max(sizes) < 1.5 * bound
        store.commit(Changes(inbox=[InboxEntry(1, 7, b"", "data", bytes(30_000_000))]))
        assert log.stat().st_size > 3 * bound
        commit(store, 2, 3)
        assert log.stat().st_size < 1.5 * bound


def test_a_missing_database_is_made_only_if_it_may(path):
    with pytest.raises(StoreError, match=r"state\.db is missing; create=True"):
        SqliteStore(path, create=False).open(OWNER)
    assert not path.exists()
    filled(path, 1)
    assert number_in(path, create=False) == 1


@contextmanager
def unprivileged():
    """As a user whom file modes concern."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public():
    """A folder that anybody can get to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_is_missing_or_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "state.db", tmp_path / "file" / "state.db", tmp_path):
        with pytest.raises(StoreError, match=r"its folder must be there, and both must be writable") as caught:
            SqliteStore(path).open(OWNER)
        assert str(path) in str(caught.value)


def test_a_folder_that_is_read_only(public):
    public.chmod(0o555)
    with unprivileged(), pytest.raises(StoreError, match=r"state\.db: Permission denied: .* must be writable"):
        SqliteStore(public / "state.db").open(OWNER)


def test_a_database_that_is_read_only(public):
    path = public / "state.db"
    filled(path, 1)
    path.chmod(0o444)
    with unprivileged(), pytest.raises(StoreError, match=r"state\.db: .*must be writable"):
        SqliteStore(path).open(OWNER)
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


@pytest.mark.parametrize("table", ["partners", "inbox", "audit"])
def test_a_damaged_record(path, table):
    filled(path, 1)
    edit(path, f"UPDATE {table} SET record = x'01'")
    with pytest.raises(StoreError, match=r"is damaged .*: restore it"):
        number_in(path)


# --- Versions of the schema.

FIRST = Path(__file__).parent / "vectors" / "store-1.sql"


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


def test_old_and_new_databases_have_one_schema(first, tmp_path):
    number = tmp_path / "new.db"
    schemas = []
    for path in (first, number):
        with closing(SqliteStore(path)) as store:
            store.open(OWNER)
            schemas.append(store._db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall())
    assert schemas[0] == schemas[1]


def test_a_migration_happens_or_does_not(first, monkeypatch):
    good = module._MIGRATIONS
    monkeypatch.setattr(
        module, "_MIGRATIONS", (*good, "CREATE TABLE extra(a); DELETE FROM inbox; CREATE TABLE inbox(a);")
    )
    with pytest.raises(StoreError, match="table inbox already exists"):
        SqliteStore(first).open(OWNER)
    monkeypatch.setattr(module, "_MIGRATIONS", good)
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


def test_one_process_at_a_time(path):
    filled(path, 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "open\n"
            with pytest.raises(StoreError, match=r"state\.db: database is locked: another process uses it"):
                SqliteStore(path).open(OWNER)
        finally:
            other.kill()
    assert number_in(path) == 1


def test_one_object_at_a_time(path):
    with closing(SqliteStore(path)) as store:
        store.open(OWNER)
        with pytest.raises(StoreError, match="another process uses it"):
            SqliteStore(path).open(OWNER)
        commit(store, 1)
    assert number_in(path) == 1


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
        StoreError, match=r"state\.db-witness is missing: .* may be an old backup; open it with adopt=True"
    ):
        SqliteStore(path).open(OWNER)
    with closing(SqliteStore(path, adopt=True)) as store:
        assert store.open(OWNER).adopted
        commit(store, 2)
    assert witness.exists()
    assert number_in(path) == 2


def test_a_crash_before_there_was_a_witness(path, witness):
    """A database without a commit has nothing to lose."""
    filled(path)
    witness.unlink()
    filled(path, 1)
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
