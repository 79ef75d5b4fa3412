"""srup campaign, as an operator types it: with a real server, broker and devices, each a process."""

import json
import re
import signal
from contextlib import ExitStack, closing
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from srup import Fleet, SqliteStore
from srup.campaign import At, State
from srup.campaign.state import Member
from srup.cli.app import app
from srup.cli.campaign import bar, states
from srup.records import Changes, KeyRecord, PartnerRecord
from srup.transport import LocalBroker

from .command import Command
from .fleet import DIGEST, FIRMWARE, SERVER, FirmwareHost, key_of, wait_until

FILE = """\
name = "locks-42"
[firmware]
file = "firmware.bin"
url = "{url}"
version = 42
[target]
share = "100%"
{more}
"""


def invoke(folder, *arguments, columns=200):
    typed = ["campaign", "--store", str(folder / "server.db"), "--identity", f"{SERVER:x}", *map(str, arguments)]
    return CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"}).invoke(app, typed)


@pytest.fixture
def folder(tmp_path):
    """A database of four members, which no server has open, and a campaign file beside it."""
    (tmp_path / "firmware.bin").write_bytes(FIRMWARE)
    with closing(SqliteStore(tmp_path / "server.db")) as store:
        store.open(SERVER)
        devices = range(0xD1, 0xD5)
        keys = [KeyRecord(each, key_of(each).public_key.to_pem()) for each in devices]
        partners = [PartnerRecord(each, each != 0xD4, True, 64, 5, 31) for each in devices]
        store.commit(Changes(keys=keys, partners=partners))
        yield tmp_path


def write(folder, more="", url="https://updates.example/firmware.bin"):
    (folder / "locks.toml").write_text(FILE.format(url=url, more=more))
    return folder / "locks.toml"


def test_a_dry_run_shows_who_would_take_part_and_changes_nothing(folder):
    file = write(folder, '[[group]]\nsize = 1\nhold = "24h"\n[[group]]\nsize = "100%"')
    done = invoke(folder, "apply", file, "--dry-run", "--no-download")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "locks-42 would be running"
    assert lines[1] == f"  firmware  version 42, 1,200 bytes, {DIGEST[:8]}, https://updates.example/firmware.bin"
    assert lines[3] == "  gate      100 % of a group must succeed; stop at 3 failures and more than 10 %"
    table = [re.split(r"\s{2,}", line) for line in lines[5:9]]
    assert table[0] == ["GROUP", "SIZE", "DEVICES", "PROGRESS", "STATES"]
    assert table[1] == ["1", "1", "1", ">", "1 ordered"]
    assert table[2] == ["2", "100 %", "2", "..", "closed: 2 waiting"]
    assert lines[9] == "1 device would be ordered to update at once"
    assert lines[10] == "1 skipped: it is not joined"
    assert "no campaigns" in invoke(folder, "list").stdout
    told = json.loads(invoke(folder, "apply", file, "--dry-run", "--no-download", "--json").stdout)
    assert (told["dry_run"], told["counts"]) == (True, {"ordered": 1, "waiting": 2, "skipped": 1})
    assert {each["identity"] for each in told["devices"]} == {"d1", "d2", "d3", "d4"}


def test_a_campaign_is_steered(folder):
    file = write(folder, "[approval]\npeople = 1")
    done = invoke(folder, "apply", file, "--no-download", "--by", "ann")
    assert done.exit_code == 0
    assert "locks-42 awaiting approval, applied by ann" in done.stdout
    assert "it waits for 1 to approve it: srup campaign approve locks-42" in done.stdout
    refused = invoke(folder, "approve", "locks-42", "--by", "ann")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "ann has applied campaign locks-42: somebody else must approve it" in refused.stderr
    assert invoke(folder, "approve", "locks-42", "--by", "bob").stdout == "locks-42: awaiting approval\n"
    with Fleet(folder / "server.db", SERVER) as fleet:
        fleet.campaigns.step()
    assert invoke(folder, "pause", "locks-42", "--by", "bob").stdout == "locks-42: paused, paused by bob\n"
    assert invoke(folder, "resume", "locks-42", "--by", "bob").exit_code == 0
    told = json.loads(invoke(folder, "abort", "locks-42", "--by", "eve", "--json").stdout)
    assert (told["state"], told["reason"], told["approvals"][0]["by"]) == ("aborted", "aborted by eve", "bob")
    assert told["document"]["firmware"]["digest"] == DIGEST
    row = invoke(folder, "list").stdout.splitlines()[1]
    assert re.split(r"\s{2,}", row)[:2] == ["locks-42", "aborted"]
    assert invoke(folder, "retry", "locks-42").exit_code == 2
    assert invoke(folder, "activate", "locks-42").exit_code == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("colour = 1", "locks.toml, line 8, column 1: [target] unknown key 'colour'"),
        ('tags = { site = "berlin" }', "campaign locks-42 would be for nobody: no device matches its target"),
    ],
)
def test_a_mistake_is_status_2_and_one_line(folder, more, told):
    done = invoke(folder, "apply", write(folder, more), "--no-download")
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in " ".join(done.stderr.split())


@pytest.mark.parametrize("arguments", [["status", "none"], ["pause", "none"], ["apply", "none.toml"]])
def test_what_is_not_there(folder, arguments):
    done = invoke(folder, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "none" in done.stderr


def test_firmware_that_cannot_be_had_is_found_before_anything_is_sent(folder):
    with FirmwareHost({"/other": b"something else"}).running() as host:
        for path, told in {"/other": "has the digest", "/missing": "404"}.items():
            done = invoke(folder, "apply", write(folder, url=host.url + path))
            assert (done.exit_code, done.stdout) == (2, "")
            assert told in " ".join(done.stderr.split())
    assert "no campaigns" in invoke(folder, "list").stdout


def test_a_bar_has_a_place_for_each_or_for_so_many():
    members = [Member(0, At.HEALTHY)] * 2 + [Member(0, At.FAILED), Member(0, At.ORDERED), Member(0, At.WAITING)]
    assert bar(members, 6) == "##>.x "
    assert bar([Member(0, At.HEALTHY)] * 500 + [Member(0, At.WAITING)] * 500, 6) == "###..."
    assert states({At.FAILED: 2, At.HEALTHY: 3}) == "3 healthy, 2 failed"


# --- with everything


@pytest.fixture
def site(tmp_path):
    (tmp_path / "devices").mkdir()
    (tmp_path / "firmware.bin").write_bytes(FIRMWARE)
    key_of(SERVER).save(tmp_path / "server.pem")
    key_of(SERVER).public_key.save(tmp_path / "server.pub")
    scripts = {0xD1: "exit 0", 0xD2: "echo the boot loader is locked; exit 1"}
    with ExitStack() as stack:
        broker = stack.enter_context(LocalBroker())
        host = stack.enter_context(FirmwareHost({"/firmware.bin": FIRMWARE}).running())
        for device in scripts:
            key_of(device).public_key.save(tmp_path / "devices" / f"{device:x}.pem")

        def serve():
            server = Command(
                *("-v", "server", "--identity", f"{SERVER:x}", "--key", "server.pem", "--devices", "devices"),
                *("--store", "server.db", "--broker", broker.url),
                folder=tmp_path,
            )
            stack.enter_context(server)
            server.heard("connected to")
            return server

        server = serve()
        for device, script in scripts.items():
            key_of(device).save(tmp_path / f"{device:x}.key")
            (tmp_path / f"activate-{device:x}").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / f"activate-{device:x}").chmod(0o700)
            started = Command(
                *("device", "--identity", f"{device:x}", "--key", f"{device:x}.key", "--server", f"{SERVER:x}"),
                *("--server-key", "server.pub", "--broker", broker.url, "--allow-http"),
                *("--firmware", f"images-{device:x}", "--on-activate", f"./activate-{device:x}"),
                folder=tmp_path,
            )
            stack.enter_context(started)
            started.heard("joined server 5e")
        for device in scripts:
            server.heard(f"{device:x} has joined")
        yield SimpleNamespace(folder=tmp_path, server=server, serve=serve, url=f"{host.url}/firmware.bin")


@pytest.mark.process
def test_one_device_ends_healthy_and_the_other_fails_with_its_reason(site):
    file = write(site.folder, "[pace]\nat_once = 1", site.url)
    applied = invoke(site.folder, "apply", file)
    assert (applied.exit_code, applied.stderr) == (0, "")

    def told():
        return json.loads(invoke(site.folder, "status", "locks-42", "--json").stdout)

    wait_until(lambda: told()["state"] == State.FINISHED, "the campaign is over")
    found = {each["identity"]: each for each in told()["devices"]}
    assert (found["d1"]["state"], found["d2"]["state"]) == ("healthy", "failed")
    assert found["d2"]["reason"].endswith("the boot loader is locked")
    shown = invoke(site.folder, "status", "locks-42").stdout
    assert re.search(r"d2 +1 +failed .*ACTIVATE_FAIL.*the boot loader is locked", shown)
    assert "1 healthy, 1 failed" in shown
    site.server.heard("campaign locks-42: d2 is failed", "the boot loader is locked")
    (site.folder / "activate-d2").write_text("#!/bin/sh\nexit 0\n")
    assert invoke(site.folder, "retry", "locks-42", "d2").stdout == "locks-42: running\n"


@pytest.mark.process
def test_a_campaign_goes_on_after_the_server_was_killed(site):
    (site.folder / "activate-d2").write_text("#!/bin/sh\nexit 0\n")
    file = write(site.folder, '[activation]\nwhen = "command"', site.url)
    assert invoke(site.folder, "apply", file).exit_code == 0

    def counts():
        return json.loads(invoke(site.folder, "status", "locks-42", "--json").stdout)["counts"]

    wait_until(lambda: counts() == {"ready": 2}, "both devices hold the firmware")
    site.server.end(signal.SIGKILL)
    assert invoke(site.folder, "activate", "locks-42").exit_code == 0
    assert counts() == {"ready": 2}
    site.serve().heard("campaign locks-42: finished")
    assert counts() == {"healthy": 2}
