"""srup inspect: what is printed of messages from everywhere, and the exit status."""

import json

import pytest
from typer.testing import CliRunner

import srup
from srup import tokens
from srup.cli.app import app

from .fleet import key_of
from .test_capture import capture, frame, segments

RUNNER = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
TOKEN = tokens.bind(0x5E, 0xD1, 1_800_000_000, b"n" * 16, version=7)
ACTION = srup.encode(srup.Action(sequence_id=7, sender_id=0x5E, token=TOKEN, action_id=3), key_of(0x5E))
REFUSAL = srup.encode(
    srup.Response(sequence_id=8, sender_id=0x5E, token=b"plain", status=srup.Status.JOIN_REFUSED), key_of(0x5E)
)


def inspect(*arguments, typed=None):
    return RUNNER.invoke(app, ["inspect", *map(str, arguments)], input=typed)


@pytest.fixture
def devices(tmp_path):
    folder = tmp_path / "devices"
    folder.mkdir()
    key_of(0x5E).public_key.save(folder / "5e.pem")
    return folder


def test_a_message_is_shown_field_by_field(devices):
    done = inspect(ACTION.hex(), "--devices", devices)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Action, {len(ACTION)} bytes\n")
    assert "sender_id    5e\n" in done.output
    assert "from 5e for d1, valid until 2027-01-15 08:00:00 UTC, firmware version 7" in done.output
    assert f"signature    valid  by key {key_of(0x5E).public_key.fingerprint}" in done.output
    assert "status       JOIN_REFUSED  0x5E" in inspect(REFUSAL.hex()).output


def test_json_has_integers_and_hexadecimal_digits(tmp_path):
    public = tmp_path / "key.pub"
    key_of(0x5E).public_key.save(public)
    shown = json.loads(inspect(ACTION.hex(), "--json", "--key", public).stdout)
    assert shown["message"] == "Action"
    assert shown["fields"] == {"sequence_id": 7, "sender_id": 0x5E, "token": TOKEN.hex(), "action_id": 3}
    assert shown["signature"]["verdict"] == "valid"
    assert shown["signature"]["key"] == key_of(0x5E).public_key.fingerprint


def test_messages_come_from_files_and_pipes(tmp_path):
    binary, text, captured = (tmp_path / name for name in ("one.bin", "two.txt", "three.pcap"))
    binary.write_bytes(ACTION)
    text.write_text(f"{ACTION.hex()}\n{REFUSAL.hex()}\n")
    captured.write_bytes(capture([frame(*part) for part in segments([300])]))
    assert inspect(binary, text).output.count("not checked") == 3
    assert inspect(typed=ACTION).output == inspect(binary).output
    assert inspect("-", typed=f"{ACTION.hex()}\n").output == inspect(binary).output
    lines = inspect(captured, "--json").stdout.splitlines()
    assert [json.loads(line)["fields"]["action_id"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[0])["topic"] == "SRUP/d1"
    assert "UTC  10.0.0.2:40000 to 10.0.0.1:1883  SRUP/d1\nAction, " in inspect(captured).output


def test_what_is_wrong_sets_the_exit_status(devices):
    forged = srup.encode(srup.Action(sequence_id=7, sender_id=0x5E, token=TOKEN, action_id=3), key_of(0xD1))
    done = inspect(forged.hex(), "--devices", devices)
    assert (done.exit_code, "invalid  nothing of this may be believed" in done.output) == (1, True)
    done = inspect(f"{ACTION[:-1].hex()}", ACTION.hex())
    assert (done.exit_code, "not an SRUP message: " in done.output, "Action, " in done.output) == (1, True, True)
    done = inspect("--json", "06")
    assert (done.exit_code, json.loads(done.stdout)["bytes"]) == (1, "06")


@pytest.mark.parametrize(
    ("arguments", "typed", "said"),
    [
        (["nofile"], None, "'nofile' is neither a file nor a message in hexadecimal digits or base64"),
        ([], b"", "no SRUP message found"),
        ([], b"\xff\xff", "neither an SRUP message"),
        ([ACTION.hex(), "--key", "nokey"], None, "nokey"),
        ([ACTION.hex(), "--devices", "nofolder"], None, "nofolder"),
        (["/"], None, "is a folder; name a file in it"),
    ],
)
def test_mistakes_are_named(arguments, typed, said):
    done = inspect(*arguments, typed=typed)
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_a_huge_file_is_refused_before_it_fills_the_memory(tmp_path):
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(1 << 40)
    done = RUNNER.invoke(app, ["inspect", str(tmp_path / "disk.img")])
    assert (done.exit_code, "more than 64 MiB, and no packet capture" in " ".join(done.stderr.split())) == (2, True)


def test_nothing_from_a_message_steers_the_terminal():
    text = "\x1b[2J\u202e\n"
    wire = srup.encode(
        srup.Data(sequence_id=1, sender_id=2, token=b"\x1b[31m", data_id=text, data=b"\x1b]0;x\a"), key_of(0x5E)
    )
    shown = inspect(wire.hex()).output
    assert not [sign for sign in shown if sign != "\n" and not sign.isprintable()]
