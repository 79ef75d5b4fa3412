"""srup store: what is printed of a database, and what its commands never touch."""

import json
import re
from contextlib import closing

import pytest
from typer.testing import CliRunner

from srup import SqliteStore, StoreError, Worker
from srup.cli.app import app
from srup.records import AuditRow, Changes

from .redis_server import redis_server

RUNNER = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})


def audit(path, *options):
    return RUNNER.invoke(app, ["store", "audit", str(path), "--identity", "5e", *options])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "server.db"
    with closing(SqliteStore(path)) as store:
        store.open(0x5E)
        store.commit(Changes(audit=[AuditRow(float(at), 0xD0 + at, at, 9, b"t", "accepted") for at in (1, 2, 3)]))
    return path


def test_the_rows_of_a_database_are_printed(path):
    done = audit(path, "--since", "2", "--partner", "d3")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["partner"] for line in done.stdout.splitlines()] == ["d3"]


def test_the_database_says_whose_it_is(path):
    done = RUNNER.invoke(app, ["store", "audit", str(path)])
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 3)
    done = RUNNER.invoke(app, ["store", "audit", str(path), "--identity", "5f"])
    assert (done.exit_code, "belongs to 5e, not to 5f" in done.output) == (2, True)


def test_a_folder_is_no_database(tmp_path):
    done = audit(tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path} is a folder" in done.output
    with pytest.raises(StoreError, match="is a folder"):
        SqliteStore(tmp_path).open(0x5E)
    assert not [*tmp_path.iterdir()]


def test_types_of_messages_have_names(path):
    with closing(SqliteStore(path)) as store:
        store.open(0x5E)
        store.commit(Changes(audit=[AuditRow(4.0, 0xD4, 4, 0xEE, b"t", "accepted")]))  # of a version to come
    done = audit(path, "--since", "3")
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["JoinRequest", 0xEE]


def test_a_copy_without_its_witness_can_be_read(path):
    """And is not taken over by that."""
    path.with_name("server.db-witness").unlink()
    before = path.read_bytes()
    assert len(audit(path).stdout.splitlines()) == 3
    assert path.read_bytes() == before


def test_the_database_of_a_server_that_runs_is_left_alone(path):
    with closing(SqliteStore(path)) as store:
        store.open(0x5E)
        path.read_bytes()  # which lets go of SQLite's own lock
        done = audit(path)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "server.db is in use: one process at a time" in done.output
        store.commit(Changes(audit=[AuditRow(4.0, 1, 4, 9, b"t", "accepted")]))
    assert len(audit(path).stdout.splitlines()) == 4


@pytest.mark.parametrize("options", [("--since", "nan"), ("--partner", "-1"), ("--partner", "1" * 17)])
def test_numbers_that_are_none_are_mistakes(path, options):
    done = audit(path, *options)
    assert done.exit_code == 2
    assert re.search("since must be|Invalid value for .--partner", done.output)


@pytest.mark.process
def test_a_redis_that_loses_state_is_refused_with_what_to_do(tmp_path):
    with redis_server(tmp_path, appendonly="no") as redis:
        done = RUNNER.invoke(app, ["store", "create", redis.url, "--identity", "5e"])
        assert done.exit_code == 2
        commands = re.findall(r"redis-cli -h 127\.0\.0\.1 -p [0-9]+ (config set \w+ \w+)", done.output)
        assert commands == ["config set appendonly yes", "config set appendfsync always"]
        for command in commands:
            redis.client.execute_command(*command.split())
        assert RUNNER.invoke(app, ["store", "create", redis.url, "--identity", "5e"]).exit_code == 0
        redis.client.config_set("appendonly", "no")
        with pytest.raises(StoreError, match="appendonly no"):
            Worker.check(redis.url, 0x5E)


def test_a_database_that_is_missing_is_not_made(tmp_path):
    done = audit(tmp_path / "none.db")
    assert done.exit_code == 2
    assert "none.db is missing" in done.output
    assert not [*tmp_path.iterdir()]
