"""What all commands have in common, asked of every one that there is."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import srup
from srup.cli import logs
from srup.cli.app import app

PRINTS_DATA = {  # store audit prints nothing but JSON
    "init",
    "version",
    "keygen",
    "keyex enroll",
    "keyex renew",
    "keyex list",
    "console user list",
    "devices show",
    "audit verify",
    "order waiting",
    "order result",
    "inspect",
    "simulate",
    "bench fleet",
}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command, and every group of some."""
    yield " ".join(path), command
    if hasattr(command, "list_commands"):
        context = command.make_context("srup", [], resilient_parsing=True)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


ALL = dict(commands(get_command(app)))
LEAVES = {name: command for name, command in ALL.items() if not hasattr(command, "list_commands")}


def run(arguments: str, columns: int = 200) -> Any:
    return CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"}).invoke(app, arguments.split())


@pytest.mark.parametrize("name", ALL)
def test_everything_is_explained_in_sentences(name: str) -> None:
    assert name == "" or ALL[name].help.strip().endswith((".", "printed.", "done."))
    for parameter in ALL[name].params:
        assert (parameter.help or "").endswith("."), f"{name}: {parameter.name}"


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("name", ALL)
def test_help_needs_nothing_and_loses_nothing(name: str, columns: int) -> None:
    """No option has to be given, and no bracket is taken for markup."""
    done = run(f"{name} --help", columns)
    assert done.exit_code == 0, done.output
    long = [line for line in done.output.splitlines() if len(line) > columns]
    assert [line for line in long if not re.fullmatch(r"  --\S+ <\S+>", line)] == []  # one word; the terminal breaks it
    shown = re.sub(r"[^\x21-\x7e]", "", done.output)  # without the frame, and without line breaks
    for parameter in ALL[name].params:
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert option in shown, option
        if columns == 200:
            text = re.sub(r"\s", "", f"{parameter.metavar or ''} {parameter.help}")
            for piece in re.findall(r"[\[\]<>|:A-Za-z0-9/.-]{3,}", f"{parameter.metavar or ''} {parameter.help}"):
                assert piece in shown, (text, piece)


@pytest.mark.parametrize("name", LEAVES)
def test_the_log_can_be_asked_for_before_and_behind_a_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [option.opts for option in LEAVES[name].params if "-v" in option.opts] == (
        [["--verbose", "-v"]] if name != "version" else []
    )
    if name == "simulate":
        levels: list[int] = []
        monkeypatch.setattr(logs, "show", lambda level, _form="text": levels.append(level))
        for arguments in ("-v simulate --seed 1 --steps 0", "simulate -v --seed 1 --steps 0"):
            assert run(arguments).exit_code == 0
            assert min(levels) == 20
            levels.clear()


@pytest.mark.parametrize("name", LEAVES)
def test_what_prints_data_prints_json(name: str) -> None:
    """Under one option; orders and what steers a campaign too, for what comes of them is printed."""
    has = any("--json" in parameter.opts for parameter in LEAVES[name].params)
    steers = name.startswith(("order ", "campaign ")) and name != "campaign run"
    assert has == (name in PRINTS_DATA or steers)


def test_identities_are_given_in_one_way() -> None:
    """What a command acts on is an argument, all others are options; they are read and explained alike."""
    found = {
        (name, parameter.name): (parameter.param_type_name, parameter.metavar)
        for name, command in ALL.items()
        for parameter in command.params
        if parameter.name in ("identity", "device", "server", "observer", "partner")
        and not getattr(parameter, "is_flag", False)
        if name != "bench fleet"  # its server is a kind
    }
    assert len(found) > 25
    assert set(found.values()) == {("argument", "IDENTITY"), ("option", "HEX")}
    for name, arguments in {"keyex token": "0xd1", "order --store s --identity 5e identify": "0xd1"}.items():
        assert "is not an identity: 1 to 16 hexadecimal digits (leave out the 0x)" in run(f"{name} {arguments}").output


MEAN_MORE = {
    "--store": {"PATH|URL", "PATH"},  # where state is, of each command that has some
    "--version": {None, "VERSION"},  # of this program, and of firmware
    "--workers": {None, "N,..."},  # a measurement takes several numbers
}


def test_options_of_one_name_mean_one_thing() -> None:
    meant: dict[str, set[str | None]] = {}
    for command in ALL.values():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                meant.setdefault(option, set()).add(parameter.metavar)
    assert {option: metavars for option, metavars in meant.items() if len(metavars) > 1} == MEAN_MORE


def test_options_of_one_name_are_of_one_kind() -> None:
    """A flag is no option with a value elsewhere; letters are for one option each."""
    kinds: dict[str, set[tuple[bool, str]]] = {}
    for command in LEAVES.values():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                kinds.setdefault(option, set()).add((parameter.is_flag, parameter.name))
    assert {option: found for option, found in kinds.items() if len({flag for flag, _ in found}) > 1} == {}
    assert {option: found for option, found in kinds.items() if len(option) == 2 and len(found) > 1} == {}


@pytest.mark.parametrize("name", ALL)
def test_a_mistake_is_status_2(name: str) -> None:
    assert run(f"{name} --no-such-option").exit_code == 2


def test_json_of_the_version() -> None:
    assert json.loads(run("version --json").stdout) == {"version": srup.__version__, "backend": srup.BACKEND}


def test_json_of_simulations() -> None:
    done = run("simulate --seed 1 --runs 2 --steps 0 --json")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(report["seed"], report["passed"], report["violations"]) for report in reports] == [
        (1, True, []),
        (2, True, []),
    ]


def test_json_of_a_key_exchange_service(tmp_path) -> None:
    folder = f"--folder {tmp_path / 'keyex'}"
    for arguments in (f"keyex create {folder}", f"keyex token d1 {folder}"):
        assert run(arguments).exit_code == 0
    [row] = [json.loads(line) for line in run(f"keyex list --json {folder}").stdout.splitlines()]
    assert (row["identity"], row["state"], row["fingerprint"]) == ("d1", "token", "")
    assert row["at"].endswith("+00:00")
