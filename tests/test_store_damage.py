"""Stores whose contents are damaged: whatever is wrong, it is a StoreError that says where."""

import sqlite3
from contextlib import closing

import pytest

from srup import SqliteStore, StoreError
from srup.records import Changes, Fact, InboxEntry, KeyRecord, OutboxEntry

from .fleet import SERVER, Fleet, key_of

TABLES = {
    "partners": ["record"],
    "exchanges": ["token", "record"],
    "inbox": ["record"],
    "outbox": ["record"],
    "keys": ["record"],
    "facts": ["name", "record"],
    "audit": ["record"],
    "store": ["owner", "commits", "id"],
}
JUNK = {"text": "'text'", "number": "5", "empty": "x''", "short": "x'00'", "nines": "x'" + "39" * 40 + "'"}


@pytest.fixture
def path(tmp_path):
    """A server's database with something in each table."""
    path = tmp_path / "server.db"
    with Fleet(tmp_path, server_options={"store": SqliteStore(path)}) as fleet:
        fleet.joined()
        device = fleet.device.identity
        fleet.device.stop()
        fleet.server.action(device, 1)
        fleet.settle()
    with closing(SqliteStore(path)) as store:
        store.open(SERVER)
        outbox = [OutboxEntry(1, device, "", b"", 1e12), OutboxEntry(2, device, "topic", b"signed", 1e12)]
        inbox = [InboxEntry(3, device, b"token", "data", b"{}"), InboxEntry(4, device, b"token", "left", b"")]
        keys = [KeyRecord(device, key_of(device).public_key.to_pem())]
        store.commit(Changes(inbox=inbox, outbox=outbox, keys=keys))
    return path


def restart(path, tmp_path):
    """Start the server again on what is there."""
    with Fleet(tmp_path, server_options={"store": SqliteStore(path)}) as fleet:
        fleet.server.start(threads=False)
        [*fleet.server.debug.store.audit()]


def test_there_is_something_to_damage(path, tmp_path):
    with closing(sqlite3.connect(path)) as db:
        for table in TABLES:
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone()[0], table


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize(("table", "column"), [(table, each) for table, many in TABLES.items() for each in many])
def test_a_damaged_column_is_a_store_error_that_names_the_file(path, tmp_path, table, column, junk):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        try:
            db.execute(f"UPDATE OR REPLACE {table} SET {column} = {JUNK[junk]}")
        except sqlite3.IntegrityError:
            pytest.skip("SQLite would not have it")
    try:
        restart(path, tmp_path)
    except StoreError as error:
        assert "server.db" in str(error)  # noqa: PT017 - or nothing is wrong with it


@pytest.mark.parametrize("name", ["stream in", "stream out", "spent", "decided", "version", "firmware", "rotation"])
@pytest.mark.parametrize("value", ["", "junk", "-1", "1 2 3", "9" * 5000, "{", '{"a": []}'])
def test_a_fact_that_nobody_has_stated(path, tmp_path, name, value):
    with closing(SqliteStore(path)) as store:
        state = store.open(SERVER)
        store.commit(Changes(facts=[Fact(each.identity, name, value) for each in state.partners]))
    try:
        restart(path, tmp_path)
    except StoreError as error:
        assert "server.db" in str(error)  # noqa: PT017
