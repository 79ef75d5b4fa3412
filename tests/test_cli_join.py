"""A server and devices in terminals of their own: a person compares, and decides."""

import os
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import srup
from srup.transport import LocalBroker

from .pseudoterminal import CONTROLS, Program

pytestmark = pytest.mark.process

DEVICE, OTHER = 0xD0, 0xD1
GROUPS = r"(\d{5}) (\d{5}) (\d{5}) (\d{5})\s+(\d{5}) (\d{5}) (\d{5}) (\d{5})"
COLUMNS, ROWS = 33, 17  # of the QR code
WIPED = "\x1b[2J\x1b[H\x1b[?25h\x1b[?1049l"
"""Cleared, cursor back, and out of the alternate screen."""


@pytest.fixture(scope="module")
def broker():
    with LocalBroker() as broker:
        yield broker.url


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A server's key, and those of two devices that it knows."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "devices").mkdir()
    for name in ("5e", "d0", "d1"):
        key = srup.PrivateKey.generate("ed25519")
        key.save(folder / f"{name}.pem")
        key.public_key.save(folder / f"{name}.pub")
        if name != "5e":
            key.public_key.save(folder / "devices" / f"{name}.pem")
    return folder


class Stage:
    """Starts commands with this test's keys and broker."""

    def __init__(self, keys, broker, folder):
        self.keys, self.broker, self.folder = keys, broker, folder
        self.running = []

    def server_arguments(self, *options):
        devices = str(self.keys / "devices")
        key = str(self.keys / "5e.pem")
        return ["server", "--identity", "5e", "--key", key, "--devices", devices, "--broker", self.broker, *options]

    def device_arguments(self, *options, identity=DEVICE):
        name = f"{identity:x}"
        return [
            *("device", "--identity", name, "--key", str(self.keys / f"{name}.pem"), "--server", "5e"),
            *("--server-key", str(self.keys / "5e.pub"), "--broker", self.broker),
            *("--firmware", str(self.folder / name), *options),
        ]

    def server(self, *options, human=True, verbose=False, **terminal):
        options = (*(("--admission", "human") if human else ()), *options)
        program = self._run([*(("-v",) if verbose else ()), *self.server_arguments(*options)], **terminal)
        program.expect("connected to")
        return program

    def device(self, *options, identity=DEVICE, join="human", verbose=False, **terminal):
        arguments = self.device_arguments("--join", join, *options, identity=identity)
        return self._run([*(("-v",) if verbose else ()), *arguments], **terminal)

    def _run(self, arguments, **terminal):
        program = Program(arguments, **terminal)
        self.running.append(program)
        return program


@pytest.fixture
def stage(keys, broker, tmp_path):
    stage = Stage(keys, broker, tmp_path)
    yield stage
    for program in stage.running:
        program.close()


def shown(program):
    """The value that a program's screen shows, in its numbers, once it stands there in full."""
    groups = program.expect(rf"Numbers\s+{GROUPS}").groups()
    return srup.JoinValue.new(int("".join(groups)).to_bytes(16))


def words(program):
    """The words on the screen that was drawn last."""
    text = program.text
    return text[text.rindex("Words") + 5 : text.rindex("Numbers")].split()


def code(program):
    """The QR code that is drawn next."""
    program.expect("▀{33}")
    lines = (program.before + program.after).splitlines()[-ROWS:]
    return "\n".join(line[:COLUMNS] for line in lines)


def not_in_what_stays(program, value):
    """Only the alternate screen has had the value, and it was wiped."""
    assert program.raw.count("\x1b[?1049h") == program.raw.count(WIPED) >= 1
    rest = CONTROLS.sub("", re.sub(r"\x1b\[\?1049h.*?\x1b\[\?1049l", "", program.raw, flags=re.DOTALL))
    once = " ".join(rest.split())
    pairs = zip(value.words.split(), value.words.split()[1:], strict=False)  # some words are in what it says anyway
    for form in (value.text, *value.groups.split(), *map(" ".join, pairs)):
        assert form not in once


def restored(program):
    assert termios.tcgetattr(program.child_fd) == program.modes


def test_the_operator_compares_and_accepts(stage):
    server = stage.server(verbose=True)
    device = stage.device("--description", "a lamp\x1b[31m\n\u202e", verbose=True)
    value = shown(device)
    assert shown(server) == value
    assert words(device) == words(server) == value.words.split()
    server.expect(r"1[45]:\d\d left")
    server.send("a\r")
    device.expect("joined server 5e")
    server.expect("d0 has joined")
    server.expect(r"d0 describes itself as: a lamp\\x1b\[31m\\n\\u202e")
    assert (server.end(), device.end()) == (0, 0)
    for program in (server, device):
        not_in_what_stays(program, value)
        restored(program)
        assert "Traceback" not in program.text


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (40, 40)])
def test_the_qr_code_is_that_of_the_value(stage, size):
    columns, rows = size
    server = stage.server(columns=columns, rows=rows)
    device = stage.device(columns=columns, rows=rows)
    seen = {program: code(program) for program in (server, device)}
    for program in seen:
        numbers = re.findall(r"\d{5} \d{5} \d{5} \d{5}", program.text)[:2]
        value = srup.JoinValue.new(int("".join(numbers).replace(" ", "")).to_bytes(16))
        assert seen[program] == value.qr().rstrip("\n")
    assert seen[server] == seen[device]


@pytest.mark.parametrize(("key", "status"), [("r", "JOIN_REFUSED"), ("f", "JOIN_FAIL")])
def test_the_operator_says_no_and_the_device_asks_again(stage, key, status):
    server, device = stage.server(), stage.device()
    first = shown(device)
    shown(server)
    server.send(f"{key}\r")
    device.expect(f"refused the join: {status}")
    server.expect(f"d0 was not admitted: {status}")
    device.send("\r")
    second = shown(device)
    assert second == shown(server)
    assert second != first
    server.send("x\r")
    server.expect("type a, r or f")
    server.send("x\x7fA\r")  # taken back
    device.expect("joined server 5e")


def test_nobody_answers_in_time(stage):
    server = stage.server("--join-timeout", "2")
    device = stage.device()
    value = shown(server)
    assert shown(device) == value
    server.expect("the join of d0 ended: nobody decided in time")
    device.expect("refused the join: JOIN_FAIL")
    assert (server.end(), device.end()) == (0, 0)
    not_in_what_stays(server, value)
    not_in_what_stays(device, value)


def test_what_was_typed_for_one_join_does_not_answer_the_next(stage):
    server = stage.server()
    with stage.device() as first:
        value = shown(first)
        assert shown(server) == value
        server.send("a")
        server.expect("then Enter: a")
    second = stage.device()
    other = shown(second)
    while shown(server) != other:  # the screen is drawn again and again
        pass
    server.send("\r")
    server.expect("type a, r or f")
    assert "it was withdrawn" in server.text
    server.send("r\r")
    second.expect("JOIN_REFUSED")


def test_joins_wait_for_their_turn(stage):
    server = stage.server()
    devices = {DEVICE: stage.device(), OTHER: stage.device(identity=OTHER)}
    values = {identity: shown(device) for identity, device in devices.items()}
    first = int(server.expect(r"Is this what (d[01]) shows\? [\d:]+ left;\s+1\s+more").group(1), 16)
    second = DEVICE + OTHER - first
    assert shown(server) == values[first]
    server.send("a\ra\r")  # the second answer comes before its question, and does not count
    devices[first].expect("joined")
    server.expect(f"Is this what {second:x} shows")
    assert shown(server) == values[second]
    server.send("r\r")
    devices[second].expect("JOIN_REFUSED")
    server.expect(f"{second:x} was not admitted: JOIN_REFUSED")
    assert server.end() == 0
    assert f"{second:x} has joined" not in server.text


def test_a_device_that_is_there_before_its_server_asks_again(stage):
    with LocalBroker() as empty:  # the other one keeps messages for the server
        stage.broker = empty.url
        device = stage.device()
        device.expect(r"press\s+Enter\s+to\s+ask\s+again")
        device.expect("connected to")
        server = stage.server()
        device.send("\r")
        assert shown(device) == shown(server)


def test_a_device_that_gives_up_while_it_shows_a_value(stage):
    server, device = stage.server(), stage.device()
    value = shown(device)
    shown(server)
    assert device.end() == 0
    not_in_what_stays(device, value)
    restored(device)
    assert server.end() == 0
    not_in_what_stays(server, value)
    restored(server)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_it_with_the_terminal_as_it_was(stage, ending):
    server, device = stage.server(), stage.device()
    value = shown(device)
    shown(server)
    for program in (server, device):
        program.kill(ending)
        assert program.wait() == 0
        not_in_what_stays(program, value)
        restored(program)


def test_no_answer_without_a_terminal(stage):
    arguments = [sys.executable, "-u", "-m", "srup", *stage.server_arguments("--admission", "human")]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = [server.stdout.readline() for _ in range(3)]
            assert "2 devices in" in said[0]
            assert "nobody can compare" in said[1]
            device = stage.device()
            device.expect("refused the join: JOIN_REFUSED")
            assert "d0 wants a compared join: refused, because this is not a terminal" in server.stdout.readline()
        finally:
            server.terminate()
            rest, _ = server.communicate()
    assert server.returncode == 0
    assert "\x1b" not in rest


def test_a_server_that_nobody_can_type_into(stage):
    server = stage.server(deaf=True)
    device = stage.device()
    server.expect("d0 wants a compared join: refused")
    device.expect("JOIN_REFUSED")
    assert "Numbers" not in server.text


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--join", "human"], 2, "standard output is not a terminal"),
        (["--observe"], 2, "--reader"),
        (["--join", "observed"], 2, "names its observer"),
        (["--identity", "xyz"], 2, "not an identity"),
        (["--broker", "pigeon://x"], 2, "mqtts://host:port"),
        (["--key", "/nowhere/device.pem"], 2, "/nowhere/device.pem"),
        (["--ca", "/nowhere/ca.pem"], 2, "mqtts"),
    ],
)
def test_a_mistake_is_named(stage, options, code, said):
    arguments = [sys.executable, "-m", "srup", *stage.device_arguments(*options)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"})
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert said in done.stderr


def test_a_server_needs_observers_where_they_decide(stage):
    arguments = [sys.executable, "-m", "srup", *stage.server_arguments("--admission", "observed")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"})
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "--admission observed needs --observer HEX" in done.stderr


def test_an_observer_that_is_not_a_member_is_told_on_both_sides(stage):
    server = stage.server("--admission", "observed", "--observer", f"{OTHER:x}", human=False)
    device = stage.device("--observer", f"{OTHER:x}", join="observed")
    why = f"JOIN_REFUSED: the observer {OTHER:x} has not joined"
    device.expect(why)
    server.expect(why)


def test_a_bad_key_in_the_folder_is_named(stage, tmp_path):
    (tmp_path / "d5.pem").write_text("junk")
    arguments = [sys.executable, "-m", "srup", *stage.server_arguments("--devices", str(tmp_path))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert str(tmp_path / "d5.pem") in done.stderr


def test_a_device_without_a_terminal_ends_when_it_is_refused(stage):
    stage.server()
    arguments = [sys.executable, "-m", "srup", *stage.device_arguments()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "server 5e refused the join: JOIN_REFUSED" in done.stdout


def test_a_wrong_server_key_is_told(stage):
    stage.server()
    device = stage.device("--server-key", str(stage.keys / "d1.pub"))
    device.expect(r"is\s+refused: SignatureError")
    assert device.end() == 0
    assert "Numbers" not in device.text


def test_a_wrong_device_key_is_told(stage):
    server = stage.server()
    stage.device("--key", str(stage.keys / "d1.pem"))
    server.expect(r"is\s+refused: SignatureError")
    server.expect("the key we have for it: fingerprint")
    assert server.end() == 0


def test_a_broker_that_is_not_there(stage):
    stage.broker = "mqtt://127.0.0.1:9"
    device = stage.device()
    device.expect("not connected: cannot connect to mqtt://127.0.0.1:9: Connection refused")
    assert device.end() == 0
    restored(device)


def test_the_operator_of_an_observer_types_what_is_shown(stage):
    server = stage.server("--admission", "observed", "--observer", f"{OTHER:x}", human=False)
    observer = stage.device("--observe", identity=OTHER)
    shown(server)
    server.send("a\r")
    observer.expect("joined")
    device = stage.device("--observer", f"{OTHER:x}", join="observed")
    value = shown(device)
    observer.expect("d0 wants to join: what does it show")
    observer.expect("It shows:")
    for left in ("2 more times", "once more"):
        observer.send("a typing mistake\r")
        observer.expect(left)
    observer.expect("It shows:")
    observer.send(value.groups)
    observer.expect(value.groups.split()[-1])
    observer.send("\r")
    device.expect("joined server 5e")
    server.expect("d0 has joined")
    assert observer.end() == 0
    not_in_what_stays(observer, value)


def test_a_refused_simple_join_is_observed_and_an_empty_line_fails_it(stage):
    server = stage.server("--admission", "observed", "--observer", f"{OTHER:x}", human=False)
    observer = stage.device("--observe", identity=OTHER)
    shown(server)
    server.send("a\r")
    observer.expect("joined")
    device = stage.device(join="simple")
    shown(device)
    observer.expect("It shows:")
    observer.send("\r")
    device.expect("refused the join: JOIN_FAIL")
    observer.send("\x03")
    assert observer.wait() == 0


def test_ctrl_c_while_an_observer_is_asked(stage):
    server = stage.server("--admission", "observed", "--observer", f"{OTHER:x}", human=False)
    observer = stage.device("--observe", identity=OTHER)
    shown(server)
    server.send("a\r")
    observer.expect("joined")
    stage.device("--observer", f"{OTHER:x}", join="observed")
    observer.expect("It shows:")
    assert observer.end() == 0
    restored(observer)


def test_a_command_reads_what_is_shown(stage, tmp_path):
    script, pipe = tmp_path / "reader.py", tmp_path / "camera"
    script.write_text("import pathlib, sys\nassert sys.argv[2] == 'd0'\nprint(pathlib.Path(sys.argv[1]).read_text())\n")
    os.mkfifo(pipe)
    server = stage.server("--admission", "observed", "--observer", f"{OTHER:x}", human=False)
    observer = stage.device("--reader", f"{sys.executable} {script} {pipe}", identity=OTHER)
    shown(server)
    server.send("a\r")
    observer.expect("joined")
    device = stage.device("--observer", f"{OTHER:x}", join="observed")
    value = shown(device)
    Path(pipe).write_text(value.words)
    device.expect("joined server 5e")
    assert observer.end() == 0


def test_an_action_is_shown_and_answered(stage):
    server_key = srup.PrivateKey.load(stage.keys / "5e.pem")
    ring = srup.KeyRing.load(stage.keys / "devices")
    server = srup.Server(0x5E, server_key, devices=ring, broker=stage.broker)
    with server:
        device = stage.device(join="simple")
        device.expect("joined server 5e")
        assert server.action(DEVICE, 7).result(60) is srup.Status.ACTION_UNKNOWN
        device.expect("5e ordered action 7, which this device does")
        server.send_data(DEVICE, "bell\x07", "ring\x1b[2J").result(60)
        device.expect(r"5e sends bell\\x07: b'ring\\x1b\[2J'")
        server.terminate(DEVICE).result(60)
        device.expect("has ended our membership")
        assert device.end() == 0
