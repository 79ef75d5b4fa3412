"""srup devices: a table that fits, JSON, conditions; the store of a server that is running in this process."""

import json
import re
from contextlib import closing

import pytest
from typer.testing import CliRunner

from srup import Fleet, SqliteStore
from srup.cli.app import app
from srup.fleet import FleetDevice, LastUpdate, where
from srup.records import Changes, Fact, KeyRecord, PartnerRecord

from .fleet import SERVER, key_of

NOW = 1_700_000_000.0
DIGEST = "38e237ce" + "0" * 56
HOSTILE = "a lamp\x1b[2J"


@pytest.fixture
def database(tmp_path):
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)
        update = {"state": "FAILED", "at": NOW, "digest": DIGEST, "version": 42, "reason": "certificate expired " * 5}
        facts = {
            0xD1: {
                "heard": f"{NOW:.0f}",
                "firmware": DIGEST,
                "version": "41",
                "description": HOSTILE,
                "tag site": "berlin",
                "inventory": json.dumps({"type": "lock", "serial": HOSTILE, "identity": "ee"}),
            },
            0xD2: {
                "update": json.dumps(update),
                "tag site": "paris",
                "heard": "junk",
                "version": "junk",
                "inventory": "[1]",
            },
        }
        facts[0xD1]["tag site"] = "berlin"
        keys = [KeyRecord(each, key_of(each).public_key.to_pem()) for each in (0xD1, 0xD2)]
        store.commit(
            Changes(
                keys=[*keys, KeyRecord(0xD3, None)],
                partners=[PartnerRecord(0xD1, True, True, 64, 5, 31)],
                facts=[Fact(device, name, value) for device, of in facts.items() for name, value in of.items()],
            )
        )
        yield tmp_path / "server.db"


def run(database, *arguments):
    return CliRunner().invoke(app, ["devices", "--store", str(database), "--identity", f"{SERVER:x}", *arguments])


def test_a_table_says_what_is_known(database):
    done = run(database)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == [
        *("IDENTITY", "NAME", "TYPE", "MEMBER", "FIRMWARE", "LAST CONTACT", "UPDATE", "DESCRIPTION", "TAGS")
    ]
    assert lines[1].split()[:6] == ["d1", "-", "lock", "yes", "41", "38e237ce"]
    assert "2023-11-14T22:13:20+00:00" in lines[1]
    assert lines[1].endswith(r"a lamp\x1b[2J  site=berlin")
    assert "failed: certificate expired" in lines[2]
    assert lines[3].split() == ["d3", "-", "-", "no", "-", "never", "-", "-", "-"]
    assert lines[4] == "3 devices; 0 heard in the last hour; 1 update failed"


def test_what_is_in_json_is_typed(database):
    rows = [json.loads(line) for line in run(database, "--json").stdout.splitlines()]
    assert [row["identity"] for row in rows] == ["d1", "d2", "d3"]
    assert (rows[0]["member"], rows[0]["version"], rows[0]["tags"]) == (True, 41, {"site": "berlin"})
    assert rows[0]["last_contact"] == "2023-11-14T22:13:20+00:00"
    assert (rows[1]["update"]["state"], rows[1]["last_contact"], rows[1]["version"]) == ("FAILED", None, None)
    assert rows[2]["fingerprint"] is None
    assert (rows[0]["type"], rows[0]["facts"]["serial"], rows[1]["facts"]) == ("lock", HOSTILE, {})
    [shown] = [json.loads(line) for line in run(database, "show", "d1", "--json").stdout.splitlines()]
    assert shown == rows[0] | {"exchanges": []}


def test_one_device_is_shown_with_everything(database):
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in run(database, "show", "d1").stdout.splitlines())
    assert lines["key"] == key_of(0xD1).public_key.fingerprint
    assert (lines["tag site"], lines["description"]) == ("berlin", r"a lamp\x1b[2J")
    assert (lines["fact type"], lines["fact serial"], lines["identity"]) == ("lock", r"a lamp\x1b[2J", "d1")
    assert run(database, "show", "ee").exit_code == 2


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("tag.site=berlin", ["d1"]),
        ("tag.site!=berlin", ["d2", "d3"]),
        ("member=yes and version<42", ["d1"]),
        ("version>=42", []),
        ("update=failed", ["d2"]),
        ("last_contact>1d", ["d1"]),
        ("last_contact<1h", []),
        ("identity>d1 and identity<=d3", ["d2", "d3"]),
        (f"firmware={DIGEST}", ["d1"]),
        ("type=lock", ["d1"]),
        ("fact.type!=lock", ["d2", "d3"]),
        ("fact.identity=ee and name!=door", ["d1"]),
    ],
)
def test_conditions(database, condition, found):
    rows = [json.loads(line) for line in run(database, "--json", "--where", condition).stdout.splitlines()]
    assert [row["identity"] for row in rows] == found


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("nonsense", "is no condition"),
        ("colour=red", "colour cannot be compared; what can is identity"),
        ("last_contact<1", "'1' is no time"),
        ("version<new", "version: 'new' is no version"),
        ("identity=lamp", "identity: 'lamp' is no identity"),
        ("member=perhaps", "neither yes nor no"),
        ("", "is no condition"),
    ],
)
def test_a_condition_that_is_none_is_status_2(database, condition, told):
    done = run(database, "--where", condition)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in " ".join(done.stderr.split())


def test_a_quoted_value_may_have_blanks():
    device = FleetDevice(
        1, True, None, 0.0, None, None, LastUpdate("READY", 0.0, DIGEST), {}, {"description": "a lamp"}
    )
    assert where('description="a lamp" and update=ready')(device, 1.0)
    assert not where('description="a lamp" and update=ready and last_contact>1h')(device, 1.0)


def test_only_so_many_are_shown(database):
    assert len(run(database, "--json", "--limit", "2").stdout.splitlines()) == 2


def test_what_is_missing_is_named(tmp_path):
    assert "which server?" in CliRunner().invoke(app, ["devices"]).stderr
    assert "is missing: name the database of a server" in run(tmp_path / "none.db").stderr


@pytest.mark.parametrize(
    ("name", "value"), [("", "x"), ("a b", "x"), ("a=b", "x"), ("x" * 101, "x"), ("x", "y" * 201), ("x", "\n")]
)
def test_a_tag_that_is_none_is_refused(database, name, value):
    with Fleet(database, SERVER) as fleet, pytest.raises(ValueError, match="of a tag"):
        fleet.tag(0xD1, name, value)
