"""srup audit and srup store backup: what they print and write of a store, also of one that a server is using."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from typer.testing import CliRunner

from srup import Action, Fleet, Response, SqliteStore, Status, StoreError, encode
from srup.cli.app import app
from srup.fleet import Verdict
from srup.records import AuditRow, Changes, KeyRecord, SignerRecord
from srup.store import Leases, RedisStore
from srup.store.sqlitebackup import back_up

from .fleet import SERVER, WAIT, key_of
from .redis_server import redis_server
from .test_fleet_sqlite import DEVICE, site  # noqa: F401 - a fixture

NOW = 1_790_812_800.0  # 2026-10-01T00:00:00Z
RUNNER = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
SIGNERS = {SERVER: key_of(SERVER).public_key, DEVICE: key_of(DEVICE).public_key}


def fingerprint(identity):
    return bytes.fromhex(SIGNERS[identity].fingerprint)


def exchange(number, at, device=DEVICE):
    """What is written down of an action and its answer."""
    token = b"token%d" % number
    asked = encode(Action(sequence_id=2 * number, sender_id=SERVER, token=token, action_id=3), key_of(SERVER))
    answer = Response(sequence_id=2 * number + 1, sender_id=DEVICE, token=token, status=Status.ACTION_SUCCESS)
    told = encode(answer, key_of(DEVICE))
    order, by = number.to_bytes(16, "big"), "alice"
    return [
        AuditRow(at, device, 2 * number, 4, token, "sent", True, asked, fingerprint(SERVER), order, by),
        AuditRow(at + 1, device, 2 * number + 1, 2, token, "ACTION_SUCCESS", False, told, fingerprint(DEVICE)),
        AuditRow(at + 1, device, 0, 0, b"", "action: ACTION_SUCCESS", order=order, posted_by=by),
    ]


def signers():
    return [SignerRecord(fingerprint(each), key.to_pem(), NOW) for each, key in SIGNERS.items()]


@pytest.fixture
def database(tmp_path):
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)
        rows = [row for number in range(5) for row in exchange(number, NOW + 86400.0 * number)]
        rows.append(AuditRow(NOW, 0xD9, 1, 5, b"x\x1b[2J", "accepted"))
        store.commit(Changes(signers=signers(), audit=rows, keys=[KeyRecord(DEVICE, SIGNERS[DEVICE].to_pem())]))
        yield tmp_path / "server.db"


def run(database, *arguments):
    return RUNNER.invoke(app, ["audit", "--store", str(database), "--identity", f"{SERVER:x}", *arguments])


def test_a_table_of_both_directions(database):
    done = run(database, "--verify")
    assert done.exit_code == 0, done.output
    lines = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    assert lines[0] == [
        *("AT", "DIRECTION", "PEER", "MESSAGE", "OUTCOME", "SIGNATURE", "POSTED BY", "TOKEN", "ORDER"),
    ]
    order = f"{DEVICE:x}.{4:032x}"
    assert lines[1] == [
        *("2026-10-05T00:00:01Z", "ordered", "d1", "action", "ACTION_SUCCESS", "none", "alice", "-", order)
    ]
    assert lines[2][1:7] == ["received", "d1", "Response", "ACTION_SUCCESS", "valid", "-"]
    assert lines[3][1:8] == ["sent", "d1", "Action", "sent", "valid", "alice", "token4"]
    assert r"x\x1b[2J" in done.stdout
    assert "16 records: 10 valid, 0 invalid, 0 unknown, 6 none" in done.output


def test_which_records_are_chosen(database):
    def chosen(*arguments):
        done = run(database, "--json", *arguments)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert [row["token"] for row in chosen("--device", "d9")] == ["x\x1b[2J"]
    assert len(chosen("--since", "2026-10-03")) == 9
    assert len(chosen("--since", "2026-10-03T00:00:01+00:00", "--until", "2026-10-04")) == 2
    assert chosen("--since", "1h") == []
    newest, oldest = chosen("--limit", "2"), chosen("--limit", "2", "--oldest-first")
    assert newest[0]["at"] == "2026-10-05T00:00:01+00:00"
    assert oldest[0]["at"] == "2026-10-01T00:00:00+00:00"
    sent = next(row for row in chosen() if row["direction"] == "sent")
    assert (sent["posted_by"], sent["order"]) == ("alice", f"{DEVICE:x}.{4:032x}")
    assert bytes.fromhex(sent["wire"]).startswith(b"\x05")
    assert sent["fingerprint"] == SIGNERS[SERVER].fingerprint
    assert {row["signature"] for row in chosen("--verify")} == {"valid", "none"}


@pytest.mark.parametrize("typed", ["yesterday", "2026-13-01", "", "nan"])
def test_times_that_are_none_are_mistakes(database, typed):
    done = run(database, "--since", typed)
    assert done.exit_code == 2
    assert "is no time: 2026-10-01" in done.output


def spoil(database):
    """Change a signed message in the store, as somebody might who can write to it."""
    row = exchange(9, NOW + 10 * 86400.0)[0]
    wire = bytearray(row.wire)
    wire[-1] ^= 1
    with closing(SqliteStore(database)) as store:
        store.open(SERVER)
        store.commit(Changes(audit=[row._replace(wire=bytes(wire))]))


def test_a_signature_that_is_wrong_is_named(tmp_path):
    path = tmp_path / "other.db"
    with closing(SqliteStore(path)) as store:
        store.open(SERVER)
        store.commit(Changes(signers=signers(), audit=exchange(1, NOW)))
    spoil(path)
    done = run(path, "--verify")
    assert done.exit_code == 1
    assert "Action 18 sent at 2026-10-11T00:00:00+00:00, d1: the signature is not valid" in done.output
    assert run(path).exit_code == 0


def test_an_export_is_checked_without_any_store(database, tmp_path):
    file = tmp_path / "audit.jsonl"
    done = run(database, "--device", "d1", "export", str(file))
    assert done.exit_code == 0, done.output
    lines = file.read_text().splitlines()
    assert json.loads(lines[0]) == {"srup_audit": 1, "server": "5e"}
    assert [json.loads(line)["key"] for line in lines if '"key"' in line] == [
        SIGNERS[DEVICE].fingerprint,
        SIGNERS[SERVER].fingerprint,
    ]
    done = RUNNER.invoke(app, ["audit", "verify", str(file)])
    assert (done.exit_code, "15 records: 10 valid, 0 invalid, 0 unknown, 5 none" in done.output) == (0, True)
    assert run(database, "export", str(file)).exit_code == 2  # it is there already

    sent = next(line for line in lines if '"sent"' in line)
    file.write_text(file.read_text().replace(sent, sent.replace('"sequence_id": 8', '"sequence_id": 9')))
    done = RUNNER.invoke(app, ["audit", "verify", str(file)])
    assert done.exit_code == 1
    assert "the sequence_id that was signed is another one" in done.output
    done = RUNNER.invoke(app, ["audit", "verify", "--json", str(file)])
    assert done.exit_code == 1
    assert [json.loads(line)["signature"] for line in done.stdout.splitlines()].count("invalid") == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "the file is empty"),
        ("junk\n", "line 1 is no line of an audit"),
        ('{"srup_audit": 2, "server": "5e"}\n', 'it must begin with "srup_audit": 1'),
        ('{"srup_audit": 1, "server": "5e"}\n[]\n', "line 2 is no line of an audit: it is no object"),
        ('{"srup_audit": 1, "server": "5e"}\n{"sequence_id": true}\n', "line 2"),
        ('{"srup_audit": 1, "server": "5e"}\n{"key": "f", "pem": 3}\n', "pem is no text"),
        ('{"srup_audit": 1, "server": "5e"}\n' + "x" * (1 << 20) + "x\n", "it is too long"),
    ],
)
def test_a_file_that_is_no_audit_is_refused_by_line(tmp_path, content, why):
    file = tmp_path / "audit.jsonl"
    file.write_text(content)
    done = RUNNER.invoke(app, ["audit", "verify", str(file)])
    assert done.exit_code == 2
    assert why in done.output


def test_a_device_is_shown_with_its_last_exchanges(database):
    base = ["devices", "--store", str(database), "--identity", "5e", "show", "d1", "--exchanges", "2"]
    lines = RUNNER.invoke(app, base).stdout.splitlines()
    assert [re.split(r"\s{2,}", line)[1:5] for line in lines[-2:]] == [
        ["ordered", "action", "ACTION_SUCCESS", "none"],
        ["received", "Response", "ACTION_SUCCESS", "valid"],
    ]
    told = json.loads(RUNNER.invoke(app, [*base, "--json"]).stdout)
    assert [each["signature"] for each in told["exchanges"]] == ["none", "valid"]


def test_orders_are_posted_by_whoever_is_logged_in(database, monkeypatch):
    monkeypatch.setenv("LOGNAME", "alice")
    done = RUNNER.invoke(app, ["order", "--store", str(database), "--identity", "5e", "action", "d1", "3"])
    assert done.exit_code == 0, done.output
    with closing(sqlite3.connect(database)) as db:
        [(body,)] = db.execute("SELECT body FROM orders").fetchall()
    assert json.loads(body)["posted_by"] == "alice"


# --- Copies.


def test_a_copy_of_a_database_in_use_is_whole_and_must_be_adopted(database, tmp_path):
    copy = tmp_path / "copy.db"
    done = RUNNER.invoke(app, ["store", "backup", str(database), str(copy)])
    assert done.exit_code == 0, done.output
    assert "has the state of 5e after 1 commits" in done.output
    assert [each.name for each in tmp_path.iterdir() if "copy" in each.name] == ["copy.db"]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert RUNNER.invoke(app, ["store", "backup", str(database), str(copy)]).exit_code == 2
    with closing(SqliteStore(copy)) as store, pytest.raises(StoreError, match="adopt=True"):
        store.open(SERVER)
    with closing(SqliteStore(copy, adopt=True)) as store:
        assert store.open(SERVER).adopted
        assert len([*store.audit()]) == 16
        assert store.signer(fingerprint(DEVICE)) == SIGNERS[DEVICE].to_pem()


@pytest.mark.parametrize(
    ("source", "why"), [("missing.db", "is missing"), ("redis://localhost", "BGSAVE"), ("text.db", "no database")]
)
def test_what_cannot_be_copied_leaves_nothing(tmp_path, source, why):
    (tmp_path / "text.db").write_text("text " * 100)
    named = source if "://" in source else tmp_path / source
    done = RUNNER.invoke(app, ["store", "backup", str(named), str(tmp_path / "copy.db")])
    assert done.exit_code == 2
    assert why in done.output
    assert [each.name for each in tmp_path.iterdir()] == ["text.db"]


def test_copies_that_are_made_while_commits_go_on_are_of_one_moment(tmp_path):
    done = threading.Event()
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)

        def write():
            for number in range(1, 2_000):
                store.commit(Changes(audit=[AuditRow(1.0, number, number, 5, b"t" * 300, "accepted")] * 2))
                if done.is_set():
                    return

        writer = threading.Thread(target=write)
        writer.start()
        copied = [back_up(tmp_path / "server.db", tmp_path / f"copy{number}.db") for number in range(10)]
        done.set()
        writer.join()
    assert {each.owner for each in copied} == {SERVER}
    for number, each in enumerate(copied):
        with closing(SqliteStore(tmp_path / f"copy{number}.db", read_only=True)) as copy:
            copy.open(SERVER)
            assert len([*copy.audit()]) == 2 * each.commits


# --- Real processes.


def srup(*arguments):
    command = [sys.executable, "-m", "srup", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, env=os.environ | {"LOGNAME": "alice"})


@pytest.mark.process
def test_the_command_on_a_server_that_runs(site):  # noqa: F811
    site.server()
    site.joined()
    server = "--store", site.database, "--identity", f"{SERVER:x}"
    ordered = srup("order", *server, "action", f"{DEVICE:x}", "3", "--wait")
    assert ordered.returncode == 0, ordered.stderr
    done = srup("audit", *server, "--device", f"{DEVICE:x}", "--verify", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["direction"], row["message"], row["outcome"]) for row in rows[:3]] == [
        ("ordered", "action", "ACTION_SUCCESS"),
        ("received", "Response", "ACTION_SUCCESS"),
        ("sent", "Action", "sent"),
    ]
    assert [row["signature"] for row in rows[1:]] == ["valid"] * (len(rows) - 1)
    assert {row["posted_by"] for row in rows[:3]} == {"alice"}
    file = site.folder / "audit.jsonl"
    assert srup("audit", *server, "export", file).returncode == 0
    assert srup("store", "backup", site.database, site.folder / "copy.db").returncode == 0
    site.processes[0].kill()
    site.processes[0].wait(WAIT)
    site.database.unlink()
    done = srup("audit", "verify", file)
    assert (done.returncode, "0 invalid" in done.stderr + done.stdout) == (0, True)
    with Fleet(site.folder / "copy.db", SERVER) as fleet:
        assert fleet.verify(next(row for row in fleet.audit() if row.direction == "sent"))[0] is Verdict.VALID


@pytest.mark.process
@pytest.mark.parametrize("moment", ["before", "after"])
def test_rows_are_there_with_the_commit_that_they_belong_to(site, moment):  # noqa: F811
    site.server()
    site.joined()
    site.processes[0].kill()
    site.processes[0].wait(WAIT)
    process = site.server(moment)
    with Fleet(site.database, SERVER) as fleet:
        order = fleet.action(DEVICE, 5)
        assert process.wait(WAIT) == -signal.SIGKILL
        sent = [row for row in fleet.audit() if row.message == "Action"]
        assert len(sent) == (moment == "after")
        site.server()
        assert order.result(WAIT) is Status.ACTION_SUCCESS
        about = [row for row in fleet.audit() if row.order == order.id]
        assert [row.message for row in about] == ["action", "Response", "Action"]
        assert [fleet.verify(row)[0] for row in about] == [Verdict.ABSENT, Verdict.VALID, Verdict.VALID]


@pytest.mark.process
def test_the_rows_of_all_partitions_in_one_order(tmp_path):
    with redis_server(tmp_path / "redis") as server:
        RedisStore.create(server.url, SERVER, partitions=4)
        at = NOW
        for lease in Leases(server.url, SERVER, ttl=3600.0).step().gained:
            store = RedisStore(lease)
            store.open(SERVER)
            rows = [AuditRow(NOW + number, lease.partition, number, 5, b"", "accepted") for number in range(300)]
            store.commit(Changes(audit=rows, signers=signers()))
        with Fleet(server.url, SERVER) as fleet:
            found = [row.at for row in fleet.audit(newest_first=False)]
            assert found == sorted(found)
            assert len(found) == 1_200
            assert [row.at for row in fleet.audit()] == found[::-1]
            assert [row.at for row in fleet.audit(since=at + 10, until=at + 11)] == [at + 10] * 4
        done = run(server.url, "--limit", "3", "--json")
        assert len(done.stdout.splitlines()) == 3
